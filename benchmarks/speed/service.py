"""Run many sessions of ``mpn serve`` at once, and check their masks.

    python -m benchmarks.speed.service [--minutes 5] [--sessions 8] [--frames 60] [--objects 2]
        [--frame-size 854x480] [--threads 1] [--engine-dir DIR] [-o FILE.json]

The built-in clip is fed to the server in another process, which shares the cores with the clients:
half of the sessions send JPEG images one by one, and wait for each mask; the other half upload a
video and read the events. A session ends after its frames, its results are compared with the files
of ``mpn run`` on the same input, and the next one begins. ``latency`` of frames is the time from
the request to the mask, at the client; of a video, the time between two events. ``memory`` is the
resident set of the server. At the end one more session is requested, and SIGTERM is sent while all
sessions send frames: ``lost`` counts the accepted frames without a mask on the disk. Exits with 1
after an error, a mask that differs or a lost frame.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, perf_counter, sleep
from typing import Any

import cv2
import httpx
import numpy as np

from benchmarks.report.schema import cpu_backend, measured, result_header
from mpn.engines.open import default_engine_dir, open_engines
from mpn.errors import InputError
from mpn.export.options import frame_size_hw_from_text
from mpn.masks import png_from_labels
from mpn.runtime.bench.result import check_result_path, engine_facts, load_average, summary_ms
from mpn.runtime.bench.variants import labels_of_objects
from mpn.runtime.session.request import RunRequest
from mpn.runtime.session.session import run_video
from mpn.synthetic import render_clip

FEEDS = ("frames", "video")
_MAIN = "from mpn.cli.main import main; main()"
_SESSIONS = "/v1/sessions"
_SAMPLE_EVERY_S = 2.0
_SETTLED_SHARE = 0.2
"""Memory counts after this share of the time, when every client has had sessions."""
_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Inputs:
    """The files that are sent, and the masks of ``mpn run``, by feed."""

    images: Sequence[bytes]
    video: bytes
    first_masks: dict[str, bytes]
    masks: dict[str, list[bytes]]


@dataclass
class Figures:
    """Figures of all clients, which add to them from their threads."""

    latency_s: dict[str, list[float]] = field(default_factory=lambda: {f: [] for f in FEEDS})
    sessions: Counter[str] = field(default_factory=Counter)
    retried: int = 0
    differing: int = 0
    errors: list[str] = field(default_factory=list)


def make_inputs(folder: Path, given: argparse.Namespace, size_hw: tuple[int, int]) -> Inputs:
    """Render the clip, and run ``mpn run`` on both kinds of input."""
    clip = list(render_clip(frames=given.frames, size_hw=size_hw))
    images = folder / "images"
    images.mkdir()
    for index, frame in enumerate(clip):
        cv2.imwrite(str(images / f"{index:05d}.jpg"), frame.rgb[:, :, ::-1])
    video = folder / "clip.mp4"
    _encode(video, images)
    mask = folder / "first.png"
    mask.write_bytes(png_from_labels(labels_of_objects(clip[0].labels, given.objects)))
    masks = {}
    for feed, source in (("frames", images), ("video", video)):
        out = folder / f"run-{feed}"
        run_video(
            RunRequest(
                video=str(source),
                masks={0: mask},
                out=out,
                engine_dir=given.engine_dir,
                backend="cpu",
                save=frozenset({"masks"}),
            )
        )
        masks[feed] = [path.read_bytes() for path in sorted((out / "masks").iterdir())]
    return Inputs(
        images=[path.read_bytes() for path in sorted(images.iterdir())],
        video=video.read_bytes(),
        first_masks=dict.fromkeys(FEEDS, mask.read_bytes()),
        masks=masks,
    )


def _encode(path: Path, images: Path) -> None:
    import av

    with av.open(f"file:{path}", "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=24)
        frames = [cv2.imread(str(image))[:, :, ::-1] for image in sorted(images.iterdir())]
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        for rgb in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


class Client:
    """A client that has one session after another.

    Args:
        http: With the address and the token.
        inputs: The files.
        figures: Of all clients.
    """

    def __init__(self, http: httpx.Client, inputs: Inputs, figures: Figures) -> None:
        self._http, self._inputs, self._figures = http, inputs, figures

    def run(self, feed: str, end_s: float) -> None:
        """Run sessions until a time of ``monotonic``; note the error that ends it early."""
        try:
            while monotonic() < end_s:
                session = self.create(feed)
                if feed == "frames":
                    self._send_frames(session)
                else:
                    self._send_video(session)
                self._compare_results(session, feed)
                self._checked(self._http.delete(session))
                self._figures.sessions[feed] += 1
        except Exception as error:
            self._figures.errors.append(f"{feed}: {type(error).__name__}: {error}")

    def create(self, feed: str) -> str:
        """Create a session, and return its path."""
        return self._checked(self._http.post(_SESSIONS, json={"feed": feed})).headers["location"]

    def put_frame(self, session: str, index: int) -> httpx.Response:
        """Send a frame; a full queue is tried again."""
        images = self._inputs.images
        while True:
            sent = self._http.put(f"{session}/frames/{index}", content=images[index % len(images)])
            if sent.status_code != 429:
                return sent
            self._figures.retried += 1
            sleep(float(sent.headers["retry-after"]))

    def put_mask(self, session: str, feed: str) -> None:
        """Send the mask of frame 0."""
        mask = self._inputs.first_masks[feed]
        self._checked(self._http.put(f"{session}/masks/0", content=mask))

    def _send_frames(self, session: str) -> None:
        for index, expected in enumerate(self._inputs.masks["frames"]):
            begun_s = perf_counter()
            self._checked(self.put_frame(session, index))
            if index == 0:
                self.put_mask(session, "frames")
            mask = self._checked(self._http.get(f"{session}/masks/{index}?wait_s=60"))
            if index:
                self._figures.latency_s["frames"].append(perf_counter() - begun_s)
            self._figures.differing += mask.content != expected
        self._checked(self._http.post(f"{session}/end"))

    def _send_video(self, session: str) -> None:
        self._checked(self._http.put(f"{session}/video", content=self._inputs.video))
        self.put_mask(session, "video")
        self._checked(self._http.post(f"{session}/run"))
        before_s = None
        with self._http.stream("GET", f"{session}/events?masks=png") as events:
            for line in events.iter_lines():
                if not line.startswith("data: "):
                    continue
                event = json.loads(line[6:])
                now_s = perf_counter()
                if "frame" in event:
                    if before_s is not None:
                        self._figures.latency_s["video"].append(now_s - before_s)
                    before_s = now_s
                elif event.get("state") not in ("open", "running"):
                    if event.get("state") != "complete":
                        raise InputError(f"the run ended: {event}")
                    return

    def _compare_results(self, session: str, feed: str) -> None:
        content = self._checked(self._http.get(f"{session}/results")).content
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for index, expected in enumerate(self._inputs.masks[feed]):
                self._figures.differing += archive.read(f"masks/{index:05d}.png") != expected

    @staticmethod
    def _checked(response: httpx.Response) -> httpx.Response:
        if not response.is_success:
            raise InputError(f"{response.request.url.path}: {response.status_code} {response.text}")
        return response


@contextmanager
def running_server(
    root: Path, given: argparse.Namespace
) -> Iterator[tuple[subprocess.Popen[str], str, dict[str, str]]]:
    """Start the server; yield the process, its address and the headers of a client."""
    command = [sys.executable, "-c", _MAIN, "serve", "-o", str(root), "--port", "0"]
    command += ["--sessions", str(given.sessions), "--threads", str(given.threads)]
    command += ["--engine-dir", str(given.engine_dir)]
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "MPN_SERVE_TOKEN": ""}
    )
    assert server.stdout is not None
    try:
        address = server.stdout.readline().strip()
        if not address:
            raise InputError("mpn serve has not started")
        token = (root / "token").read_text(encoding="ascii")
        yield server, address, {"authorization": f"Bearer {token}"}
    finally:
        if server.poll() is None:
            server.kill()
        server.wait()


def resident_mib(http: httpx.Client) -> float:
    """Return the resident set of the server in MiB, by its metrics."""
    for line in http.get("/metrics").text.splitlines():
        if line.startswith("process_resident_memory_bytes "):
            return float(line.split()[1]) / 2**20
    raise InputError("the server has no process_resident_memory_bytes")


def memory_figures(samples: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Summarise (second, MiB) samples.

    Raises:
        InputError: If there are too few.
    """
    settled = [sample for sample in samples if sample[0] >= _SETTLED_SHARE * samples[-1][0]]
    if len(settled) < 3:
        raise InputError("too few samples of the memory: use more --minutes")
    seconds, values_mib = np.array(settled).T
    return {
        "samples": [[round(second, 1), round(value, 1)] for second, value in samples],
        "rss_settled_mib": round(settled[0][1], 1),
        "rss_end_mib": round(settled[-1][1], 1),
        "rss_peak_mib": round(max(value for _, value in samples), 1),
        "rss_slope_per_minute_mib": round(60 * float(np.polyfit(seconds, values_mib, 1)[0]), 2),
    }


def one_more_session(client: Client, http: httpx.Client, sessions: int) -> dict[str, Any]:
    """Create all sessions, request one more, and close them."""
    created = [client.create("frames") for _ in range(sessions)]
    refused = http.post(_SESSIONS, json={"feed": "frames"})
    for session in created:
        http.delete(session)
    return {"status": refused.status_code, "retry_after": refused.headers.get("retry-after")}


def stop_under_load(
    server: subprocess.Popen[str], clients: Sequence[Client], root: Path
) -> dict[str, Any]:
    """Send SIGTERM while all clients send frames; count the frames that are lost."""
    accepted: dict[str, int] = {}
    has_frames = threading.Barrier(len(clients) + 1)

    def send(client: Client) -> None:
        session = client.create("frames")
        client.put_frame(session, 0)
        client.put_mask(session, "frames")
        accepted[session] = 1
        for index in range(1, 1_000_000):
            if index == 4:
                has_frames.wait()
            with suppress(httpx.HTTPError):
                if client.put_frame(session, index).status_code == 202:
                    accepted[session] += 1
                    continue
            return

    threads = [threading.Thread(target=send, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    has_frames.wait()
    begun_s = perf_counter()
    server.send_signal(signal.SIGTERM)
    code = server.wait(_TIMEOUT_S)
    stopped_s = perf_counter() - begun_s
    for thread in threads:
        thread.join()
    saved = {
        session: len(list((root / session.rpartition("/")[2] / "results/masks").glob("*.png")))
        for session in accepted
    }
    return {
        "exit_code": code,
        "seconds": round(stopped_s, 2),
        "accepted": sum(accepted.values()),
        "saved": sum(saved.values()),
        "lost": sum(max(accepted[session] - saved[session], 0) for session in accepted),
    }


def benchmark(given: argparse.Namespace) -> dict[str, Any]:
    """Run the benchmark and return the body of the result."""
    check_result_path(given.out)
    size_hw = frame_size_hw_from_text(given.frame_size)
    before = load_average()
    figures = Figures()
    with tempfile.TemporaryDirectory(prefix="mpn-service-") as temporary:
        folder = Path(temporary)
        inputs = make_inputs(folder, given, size_hw)
        root = folder / "sessions"
        with running_server(root, given) as (server, address, headers):
            https = [
                httpx.Client(base_url=address, headers=headers, timeout=_TIMEOUT_S)
                for _ in range(given.sessions + 1)
            ]
            clients = [Client(http, inputs, figures) for http in https]
            begun_s = monotonic()
            end_s = begun_s + 60 * given.minutes
            threads = [
                threading.Thread(target=client.run, args=(FEEDS[k % len(FEEDS)], end_s))
                for k, client in enumerate(clients[:-1])
            ]
            for thread in threads:
                thread.start()
            samples = []
            while monotonic() < end_s:
                samples.append((monotonic() - begun_s, resident_mib(https[-1])))
                sleep(_SAMPLE_EVERY_S)
            for thread in threads:
                thread.join()
            wall_s = monotonic() - begun_s
            refused = one_more_session(clients[-1], https[-1], given.sessions)
            stopped = stop_under_load(server, clients[:-1], root)
            for http in https:
                http.close()
    with open_engines(given.engine_dir, backend="cpu", threads=given.threads) as engines:
        engine = engine_facts(engines)
    frames = {feed: figures.sessions[feed] * len(inputs.masks[feed]) for feed in FEEDS}
    return {
        **result_header(
            backend=cpu_backend(given.threads),
            engine=engine,
            frame_size_hw=size_hw,
            objects=[given.objects],
            frames=sum(frames.values()),
            warmup=0,
            load_average_before=before,
            not_measured=["a GPU", "a network between clients and server"],
        ),
        "minutes": given.minutes,
        "sessions_at_once": given.sessions,
        "sessions": dict(figures.sessions),
        "fps_of_all": round(sum(frames.values()) / wall_s, 2),
        "latency": {feed: summary_ms(figures.latency_s[feed]) for feed in FEEDS},
        "memory": memory_figures(samples),
        "errors": figures.errors,
        "retried": figures.retried,
        "differing": figures.differing,
        "one_more": refused,
        "stop": stopped,
        "is_good": not figures.errors
        and not figures.differing
        and not stopped["lost"]
        and stopped["exit_code"] == 0
        and refused["status"] == 429,
    }


def main() -> int:
    """Parse the arguments, run, write and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine-dir", type=Path, default=default_engine_dir())
    parser.add_argument("--minutes", type=float, default=5.0, help="[%(default)s]")
    parser.add_argument("--sessions", type=int, default=8, help="at once [%(default)s]")
    parser.add_argument("--frames", type=int, default=60, help="of a session [%(default)s]")
    parser.add_argument("--objects", type=int, default=2)
    parser.add_argument("--frame-size", default="854x480", help="[%(default)s]")
    parser.add_argument("--threads", type=int, default=1, help="of a network [%(default)s]")
    parser.add_argument("-o", "--out", type=Path, default=Path("service.json"))
    given = parser.parse_args()
    body = measured("service", benchmark, given)
    if body is None:
        return 1
    shown = ("sessions", "fps_of_all", "latency", "errors", "retried", "differing", "one_more",
             "stop")  # fmt: skip
    for name in shown:
        print(f"{name:11} {body[name]}")
    memory = {key: value for key, value in body["memory"].items() if key != "samples"}
    print(f"{'memory':11} {memory}\nwritten: {given.out}")
    return 0 if body["is_good"] else 1


if __name__ == "__main__":
    sys.exit(main())
