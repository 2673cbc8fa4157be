"""No mask of an earlier run is that of the latest one; no session is stuck."""

from __future__ import annotations

import io
import json
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpn.errors import OutputError
from mpn.masks import png_from_labels
from mpn.service.server import serve
from mpn.service.sessions import Sessions
from tests.runtime.media.clips import SCENE_HW, scene, scene_labels, write_video
from tests.service.conftest import FRAMES
from tests.service.servers import SESSIONS, RunningServer, events_of, png, send_frames

MASK = png_from_labels(scene_labels(0))


def correction(left: int) -> bytes:
    labels = np.zeros(SCENE_HW, np.uint8)
    labels[5:15, left : left + 20] = 1
    return png_from_labels(labels)


def labelme() -> bytes:
    points = [[10, 10], [40, 10], [40, 40], [10, 40]]
    shape = {"label": "fish", "shape_type": "polygon", "points": points, "group_id": None}
    height, width = SCENE_HW
    facts = {"imagePath": "00000.png", "imageHeight": height, "imageWidth": width}
    return json.dumps({"shapes": [shape], **facts}).encode()


def video_session(server: RunningServer, content: bytes, **options: Any) -> str:
    session = server.create("video", **options)
    assert server.client.put(f"{session}/video", content=content).status_code == 200
    assert server.client.put(f"{session}/masks/0", content=MASK).status_code == 200
    return session


def run(server: RunningServer, session: str) -> dict[str, Any]:
    """Run to the end, and return the last state."""
    number = server.client.post(f"{session}/run").json()["run"]
    started = 0
    for event in events_of(server, session):
        started += event["event"] == "state" and event["state"] == "running"
        if started == number and event["event"] == "state" and event["state"] != "running":
            return event
    raise AssertionError("the events ended")


@contextmanager
def held_engines(server: RunningServer) -> Iterator[None]:
    """Let no network run in the block."""
    engines = server.sessions.shared.engines
    turns = engines.engines.propagation._turns  # type: ignore[attr-defined]
    for _ in range(engines.parallel):
        turns.acquire()
    try:
        yield
    finally:
        for _ in range(engines.parallel):
            turns.release()


def test_mask_of_an_earlier_run_is_not_given(server: RunningServer, clip: Path) -> None:
    session = video_session(server, clip.read_bytes())
    assert run(server, session)["state"] == "complete"
    before = server.client.get(f"{session}/masks/5")
    assert before.headers["mpn-run"] == "1"
    server.client.put(f"{session}/masks/4", content=correction(60))
    with held_engines(server):
        server.client.post(f"{session}/run")
        for query in ("", "?wait_s=0.1", "?format=rle"):
            assert server.client.get(f"{session}/masks/5{query}").status_code == 404, query
        assert server.client.get(f"{session}/results").status_code == 409
    after = server.client.get(f"{session}/masks/5?wait_s=30")
    assert (after.status_code, after.headers["mpn-run"]) == (200, "2")
    assert after.content != before.content
    rle = server.client.get(f"{session}/masks/{FRAMES - 1}?wait_s=30&format=rle").json()
    assert (rle["run"], rle["revision"]) == (2, 0)
    # Control: a kept frame is given, with the number of the run that computed it.
    kept = server.client.get(f"{session}/masks/0?wait_s=30")
    assert (kept.status_code, kept.headers["mpn-run"]) == (200, "1")
    with_masks = [
        (event["run"], event["frame"])
        for _, event in zip(range(11), events_of(server, session, "?masks=png"), strict=False)
        if "mask_png" in event
    ]
    assert (1, 0) in with_masks
    assert (1, 5) not in with_masks


def test_event_of_a_corrected_frame_has_no_mask(server: RunningServer) -> None:
    session = server.create()
    send_frames(server, session, [scene(1)[0]], scene_labels(0))
    server.client.put(f"{session}/masks/0", content=correction(60))
    events = events_of(server, session, "?masks=png")
    frames = [event for _, event in zip(range(3), events, strict=False) if "frame" in event]
    assert [(event["revision"], "mask_png" in event) for event in frames] == [
        (0, False),
        (1, True),
    ]
    assert server.client.get(f"{session}/masks/0").headers["mpn-revision"] == "1"


def test_stopped_run_gives_no_earlier_mask(server: RunningServer, clip: Path) -> None:
    """The second run fails before its first frame; the third one has its own masks."""
    session = video_session(server, clip.read_bytes())
    run(server, session)
    server.client.put(f"{session}/masks/4", content=correction(60))
    video = server.folder(session) / "input" / "video"
    content = video.read_bytes()
    video.write_bytes(content[:200])
    failed = run(server, session)
    assert failed["state"] == "failed"
    for path in ("masks/5?wait_s=60", "results"):
        refused = server.client.get(f"{session}/{path}", timeout=20)
        assert refused.status_code == (409 if path == "results" else 404)
        assert failed["message"] in refused.json()["detail"]
    video.write_bytes(content)
    assert run(server, session)["state"] == "complete"
    assert server.client.get(f"{session}/masks/5").headers["mpn-run"] == "3"


def test_mask_after_the_end_is_refused(server: RunningServer, clip: Path) -> None:
    session = video_session(server, clip.read_bytes())
    refused = server.client.put(f"{session}/masks/{FRAMES}", content=correction(60))
    assert refused.status_code == 422
    assert f"{FRAMES} frames" in refused.json()["detail"]
    last = server.client.put(f"{session}/masks/{FRAMES - 1}", content=correction(60))
    assert last.status_code == 200
    assert run(server, session)["state"] == "complete"


def test_session_goes_on_without_a_removed_mask(server: RunningServer, tmp_path: Path) -> None:
    """The number of frames of a raw stream is unknown: the run names the mask."""
    content = write_video(tmp_path / "clip.h264", scene(3)).read_bytes()
    session = video_session(server, content)
    assert server.client.get(session).json()["frames_expected"] is None
    given = server.client.put(f"{session}/masks/99", content=correction(60))
    assert given.status_code == 200
    failed = run(server, session)
    assert failed["state"] == "failed"
    assert "frame 99" in failed["message"]
    waited = server.client.get(f"{session}/masks/50?wait_s=60", timeout=20)
    assert waited.status_code == 404
    assert "frame 99" in waited.json()["detail"]
    assert server.client.delete(f"{session}/masks/99").status_code == 200
    assert server.client.delete(f"{session}/masks/99").status_code == 404
    assert run(server, session)["state"] == "complete"
    again = server.client.put(f"{session}/masks/99", content=correction(60))
    assert again.status_code == 422  # the frames are counted


def test_masks_of_a_file_are_removed_together(server: RunningServer, clip: Path) -> None:
    session = video_session(server, clip.read_bytes())
    assert server.client.delete(f"{session}/masks").status_code == 404
    assert server.client.delete(f"{session}/masks/0").status_code == 200
    assert server.client.post(f"{session}/run").status_code == 409
    assert server.client.put(f"{session}/masks", content=labelme()).status_code == 200
    refused = server.client.delete(f"{session}/masks/0")
    assert (refused.status_code, "DELETE" in refused.json()["detail"]) == (409, True)
    removed = server.client.delete(f"{session}/masks")
    assert (removed.status_code, removed.json()["object_ids"]) == (200, [])


@pytest.mark.parametrize("is_removed", [False, True])
def test_mask_of_a_frame_that_never_comes_is_named(
    server: RunningServer, *, is_removed: bool
) -> None:
    session = server.create()
    send_frames(server, session, [scene(1)[0]], scene_labels(0))
    server.client.put(f"{session}/masks/4", content=correction(60))
    assert server.client.delete(f"{session}/masks/0").status_code == 409  # it is applied
    if is_removed:
        assert server.client.delete(f"{session}/masks/4").status_code == 200
    state = server.client.post(f"{session}/end").json()
    expected = "" if is_removed else "masks were given for frames that did not come: 4"
    assert (state["state"], state["message"]) == ("complete", expected)
    late = server.client.get(f"{session}/masks/4?wait_s=60", timeout=20)
    assert late.status_code == 404
    assert "complete" in late.json()["detail"]


def test_messages_have_no_names_of_uploads(server: RunningServer, clip: Path) -> None:
    video, frames = video_session(server, clip.read_bytes()), server.create()
    server.client.put(f"{frames}/frames/0", content=png(scene(1)[0]))
    small = png_from_labels(np.ones((9, 9), np.uint8))
    for path in (f"{video}/masks/1", f"{frames}/masks/0", f"{frames}/frames/1"):
        for content in (small, b"hello", io.BytesIO(labelme()[:50]).read()):
            detail = server.client.put(path, content=content).json()["detail"]
            assert "upload-" not in detail, detail
            assert ".partial" not in detail, detail


@pytest.mark.parametrize("last", ["abc", "-5", "1", "9" * 30])
def test_unknown_event_id_is_refused(server: RunningServer, last: str) -> None:
    session = server.create()
    refused = server.client.get(f"{session}/events", headers={"last-event-id": last})
    assert refused.status_code == 422, refused.text


@pytest.mark.parametrize("headers", [{}, {"content-type": "text/plain"}], ids=["none", "text"])
def test_wrong_content_type_names_the_right_one(
    server: RunningServer, headers: dict[str, str]
) -> None:
    refused = server.client.post(SESSIONS, content=b'{"feed": "frames"}', headers=headers)
    assert refused.status_code == 422
    assert "application/json" in refused.json()["detail"]


@pytest.mark.parametrize("fps", [True, "25", None])
def test_fps_that_is_no_number_is_refused(server: RunningServer, fps: object) -> None:
    refused = server.client.post(SESSIONS, json={"feed": "frames", "fps": fps})
    assert refused.status_code == 422
    assert "body.fps" in refused.json()["detail"]
    assert server.client.post(SESSIONS, json={"feed": "frames", "fps": 25}).status_code == 201


def test_port_in_use_is_named(engine_dir: Path, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(OutputError, match=f"port {port} of 127.0.0.1 is in use"):
            serve(tmp_path / "x", port=port, engine_dir=engine_dir, on_ready=lambda *_: None)


def test_folder_of_the_sessions_is_private(server: RunningServer, tmp_path: Path) -> None:
    """A new one; that of a user keeps its permissions."""
    (tmp_path / "own").mkdir(mode=0o755)
    modes = []
    for name in ("new", "own"):
        sessions = Sessions(tmp_path / name, server.sessions.shared.engines, server.sessions.limits)
        modes.append(stat.S_IMODE((tmp_path / name).stat().st_mode))
        sessions.close()
    assert modes == [0o700, 0o755]
