"""The server as a process: its token, and its end by SIGTERM under load."""

from __future__ import annotations

import io
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from mpn.errors import InputError
from mpn.masks import load_labels, png_from_labels
from mpn.service.server import serve, token_for
from mpn.service.sessions import Sessions
from tests.runtime.media.clips import SCENE_HW, scene, scene_labels, write_video
from tests.service.servers import SESSIONS, RunningServer, png, running_server, send_frames

_MAIN = "from mpn.cli.main import main; main()"


@contextmanager
def serve_process(out: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start ``mpn serve``; yield the process and its address."""
    process = subprocess.Popen(
        [sys.executable, "-c", _MAIN, "serve", "-o", str(out), "--port", "0", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MPN_SERVE_TOKEN": ""},
    )
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline().strip()
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_sigterm_under_load_loses_no_finished_frame(engine_dir: Path, tmp_path: Path) -> None:
    """Each accepted frame is segmented, each announced frame of a video is kept."""
    out = tmp_path / "sessions"
    clip = write_video(tmp_path / "clip.mp4", scene(300))
    image, mask = png(scene(1)[0]), png_from_labels(scene_labels(0))
    announced: set[int] = set()
    with serve_process(out, "--engine-dir", str(engine_dir)) as (process, address):
        token = (out / "token").read_text()
        assert stat.S_IMODE((out / "token").stat().st_mode) == 0o600
        headers = {"authorization": f"Bearer {token}"}
        with httpx.Client(base_url=address, headers=headers, timeout=30) as client:
            video = client.post(SESSIONS, json={"feed": "video"}).headers["location"]
            client.put(f"{video}/video", content=clip.read_bytes()).raise_for_status()
            client.put(f"{video}/masks/0", content=mask).raise_for_status()
            client.post(f"{video}/run").raise_for_status()
            has_frames = threading.Event()

            def read_events() -> None:
                with httpx.stream(
                    "GET", f"{address}{video}/events", headers=headers, timeout=30
                ) as stream:
                    for line in stream.iter_lines():
                        if line.startswith('data: {"frame"'):
                            announced.add(json.loads(line[6:])["frame"])
                            if len(announced) == 5:
                                has_frames.set()

            reader = threading.Thread(target=read_events)
            reader.start()
            frames = client.post(SESSIONS, json={"feed": "frames"}).headers["location"]
            client.put(f"{frames}/frames/0", content=image).raise_for_status()
            client.put(f"{frames}/masks/0", content=mask).raise_for_status()
            assert has_frames.wait(30)
            accepted = 1
            process.send_signal(signal.SIGTERM)
            while True:  # until the server refuses
                try:
                    sent = client.put(f"{frames}/frames/{accepted}", content=image)
                except httpx.HTTPError:
                    break
                if sent.status_code != 202:
                    assert sent.status_code == 503
                    assert int(sent.headers["retry-after"]) > 0
                    break
                accepted += 1
        _, errors = process.communicate(timeout=30)
        reader.join(30)
        assert process.returncode == 0, errors
    assert token not in errors
    assert sorted(path.name for path in out.iterdir()) == sorted(
        path.rpartition("/")[2] for path in (video, frames)
    )
    _check_results(out / frames.rpartition("/")[2], set(range(accepted)), is_exact=True)
    _check_results(out / video.rpartition("/")[2], announced, is_exact=False)
    assert len(announced) < 300


def _check_results(session: Path, frames: set[int], *, is_exact: bool) -> None:
    results = session / "results"
    saved = {int(path.stem) for path in (results / "masks").glob("*.png")}
    assert saved == frames if is_exact else saved >= frames
    for path in (results / "masks").iterdir():
        load_labels(path, size_hw=SCENE_HW, allow_empty=True)
    report = json.loads((results / "run.json").read_text())
    assert (report["state"], report["frames"]) == ("interrupted", len(saved))
    assert not list(session.rglob("*.partial"))


def test_token_of_file_and_environment_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "secret"
    path.write_text("a-token-of-24-characters\n")
    assert token_for(path, tmp_path)[0] == "a-token-of-24-characters"
    monkeypatch.setenv("MPN_SERVE_TOKEN", "another-token-of-the-user")
    token, source = token_for(None, tmp_path)
    assert token == "another-token-of-the-user"
    assert token not in source
    monkeypatch.setenv("MPN_SERVE_TOKEN", "short")
    with pytest.raises(InputError, match="at least 16"):
        token_for(None, tmp_path)
    path.write_text("with a line\nand another one")
    with pytest.raises(InputError, match="printable"):
        token_for(path, tmp_path)
    monkeypatch.delenv("MPN_SERVE_TOKEN")
    token, source = token_for(None, tmp_path)
    assert (tmp_path / "token").read_text() == token
    assert token not in source


def test_remote_address_needs_an_option(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--allow-remote"):
        serve(tmp_path, host="0.0.0.0", on_ready=lambda *_: None)
    assert list(tmp_path.iterdir()) == []


def test_folder_of_another_server_is_refused(server: RunningServer) -> None:
    with pytest.raises(Exception, match="in use"):
        Sessions(server.root, server.sessions.shared.engines, server.sessions.limits)


def test_draining_server_refuses_new_work(server: RunningServer, tmp_path: Path) -> None:
    """It still returns masks, and states that it stops."""
    with running_server(tmp_path / "other", server.sessions.shared.engines) as other:
        session = other.create()
        (mask,) = send_frames(other, session, [scene(1)[0]], scene_labels(0))
        other.sessions.drain()
        assert other.client.get("/readyz").status_code == 503
        assert other.client.get("/healthz").status_code == 200
        assert other.client.get(f"{session}/masks/0").content == mask
        for response in (
            other.client.post(SESSIONS, json={"feed": "frames"}),
            other.client.put(f"{session}/frames/1", content=png(scene(1)[0])),
            other.client.put(f"{session}/masks/1", content=io.BytesIO(b"x").read()),
        ):
            assert response.status_code == 503
            assert int(response.headers["retry-after"]) > 0
