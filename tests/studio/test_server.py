"""The server as a process: its address, its end, and kill -9 (POSIX)."""

from __future__ import annotations

import fcntl
import json
import threading
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np

from mpn._common.files import is_nonempty_file
from mpn._common.locks import LOCK_NAME
from mpn.masks import load_labels
from mpn.runtime.session.request import RunRequest
from mpn.runtime.session.session import run_video
from mpn.types import UInt8Array
from tests.runtime.media.clips import SCENE_HW, scene, scene_labels, write_video
from tests.studio.servers import StudioProcess, body_of

RUN_FRAMES = 1200
"""Far more than a run computes between the kill of its server and its stop."""


def put(client: httpx.Client, index: int, labels: UInt8Array) -> httpx.Response:
    content = body_of(labels)
    return client.put(f"/api/masks/{index}", content=content, headers={"if-match": "*"})


def test_killed_server_leaves_whole_masks(clip: Path, tmp_path: Path) -> None:
    """Kill -9 while masks are saved: the file is one of those sent."""
    sent = [np.full(SCENE_HW, 1 + number % 2, np.uint8) for number in range(2)]
    with StudioProcess(clip, tmp_path / "out") as server:
        assert server.address.startswith("http://127.0.0.1:")
        with server.client() as client:
            put(client, 0, sent[0])
            has_saved = threading.Event()

            def draw() -> None:
                for number in range(1, 10_000):
                    try:
                        put(client, 0, sent[number % 2])
                    except httpx.HTTPError:
                        return
                    if number == 5:
                        has_saved.set()

            drawing = threading.Thread(target=draw)
            drawing.start()
            assert has_saved.wait(30)
            server.kill()
            drawing.join(30)
    saved = load_labels(tmp_path / "out" / "corrections" / "00000.png")
    assert any(np.array_equal(saved, labels) for labels in sent)
    with StudioProcess(clip, tmp_path / "out") as server, server.client() as client:
        assert client.get("/api/masks/0").content == saved.tobytes()
        # An open page does not keep the server from its end.
        with client.stream("GET", "/api/events") as events:
            assert '"hello"' in next(events.iter_text())
            assert server.stop() == 0
    assert {path.name for path in (tmp_path / "out" / "corrections").glob("*.p*")} == {"00000.png"}


def test_killed_server_stops_its_run(engine_dir: Path, tmp_path: Path) -> None:
    """Cancel a run, kill -9 the server in the next: it stops, --resume continues."""
    clip = write_video(tmp_path / "clip.mp4", scene(RUN_FRAMES))
    out = tmp_path / "out"
    with (
        StudioProcess(clip, out, "--engine-dir", str(engine_dir)) as server,
        server.client() as client,
    ):
        put(client, 0, scene_labels(0))
        with client.stream("GET", "/api/events") as events:
            received = (
                json.loads(line[6:]) for line in events.iter_lines() if line.startswith("data: ")
            )
            client.post("/api/run", json={})
            next(event for event in received if event["type"] == "frames")
            client.delete("/api/run")
            end = next(event for event in received if event.get("state") in ("stopped", "complete"))
            assert end["state"] == "stopped"
            cancelled = len(list((out / "masks").glob("*.png")))
            assert 0 < cancelled < RUN_FRAMES
            client.post("/api/run", json={})
            next(event for event in received if event["type"] == "frames")
            server.kill()
    _wait_for_end_of_run(out)
    finished = sorted((out / "masks").glob("*.png"))
    assert cancelled <= len(finished) < RUN_FRAMES
    for path in finished:
        load_labels(path, size_hw=SCENE_HW, allow_empty=True)
    assert is_nonempty_file(out / "run.json")  # it was stopped, not killed
    report = run_video(
        RunRequest(
            video=str(clip),
            masks={0: out / "corrections" / "00000.png"},
            out=out,
            engine_dir=engine_dir,
            save=frozenset({"masks"}),
            resume=True,
        )
    )
    assert (report["state"], report["frames"]) == ("complete", RUN_FRAMES)
    assert 0 < report["frames_computed"] < RUN_FRAMES


def _wait_for_end_of_run(folder: Path) -> None:
    """Wait until the process that holds a folder has ended, however it ends."""
    with suppress(FileNotFoundError), (folder / LOCK_NAME).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
