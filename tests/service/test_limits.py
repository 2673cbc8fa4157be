"""Hostile, large, slow and cut uploads get 4xx, and leave nothing on the disk."""

from __future__ import annotations

import io
import json
import socket
import struct
import threading
import time
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import pytest

from mpn.masks import png_from_labels
from mpn.service import server as server_module
from mpn.service.limits import Limits
from tests.runtime.media.clips import SCENE_HW, scene, scene_labels, write_video
from tests.service.servers import SESSIONS, TOKEN, RunningServer, events_of, png, send_frames


def uploads_left(server: RunningServer, session: str) -> list[str]:
    return sorted(path.name for path in (server.folder(session) / "input").iterdir())


def png_of_size(width: int, height: int) -> bytes:
    """Return a PNG of some hundred bytes that states any size; its rows are all zero."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(1 + min(width, 1 << 20)), 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def zip_bomb() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("annotations.xml", b"<annotations>" + bytes(300 << 20))
    return file.getvalue()


@pytest.fixture
def frames(server: RunningServer) -> str:
    """A session of frames that has frame 0."""
    session = server.create()
    response = server.client.put(f"{session}/frames/0", content=png(scene(1)[0]))
    assert response.status_code == 202
    return session


HOSTILE_MASKS = {
    "empty": b"",
    "text": b"hello",
    "html": b"<html><body>x</body></html>",
    "cut png": png_from_labels(scene_labels(0))[:60],
    "other size": png_from_labels(np.ones((9, 9), np.uint8)),
    "no object": png_from_labels(np.zeros(SCENE_HW, np.uint8)),
    "png bomb": png_of_size(100_000, 100_000),
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "deep json": b"[" * 100_000,
    "long number": b'{"shapes": [' + b"9" * 100_000 + b"]}",
    "json of nothing": b'{"a": 1}',
    "entities": b'<!DOCTYPE a [<!ENTITY b "bbbbbbbb"><!ENTITY c "&b;&b;&b;">]><annotations>&c;'
    b"</annotations>",
    "external entity": b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]>'
    b"<annotations>&b;</annotations>",
    "zip bomb": zip_bomb(),
    "pickle": b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
    "many objects": png_from_labels(np.arange(SCENE_HW[0] * SCENE_HW[1]).reshape(SCENE_HW) % 250),
}


@pytest.mark.parametrize("name", HOSTILE_MASKS)
def test_hostile_mask_is_refused(server: RunningServer, frames: str, name: str) -> None:
    before = set(uploads_left(server, frames))
    response = server.client.put(f"{frames}/masks/0", content=HOSTILE_MASKS[name])
    assert response.status_code in (413, 422), response.text
    assert str(server.root) not in response.text
    assert "root:" not in response.text
    assert set(uploads_left(server, frames)) == before
    # Control: the session still takes a mask.
    good = server.client.put(f"{frames}/masks/0", content=png_from_labels(scene_labels(0)))
    assert good.status_code == 200


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 422),
        (b"#EXTM3U\nfile:///etc/passwd\n", 422),
        (png_of_size(70_000, 70_000), 422),
        (png(np.zeros((800, 800, 3), np.uint8)), 422),
        (png(np.zeros((8, 8, 3), np.uint8)), 422),
        (png(scene(1)[0])[:200], 422),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", 422),
    ],
    ids=["empty", "playlist", "png bomb", "large", "small", "cut", "postscript"],
)
def test_hostile_frame_is_refused(server: RunningServer, content: bytes, status: int) -> None:
    session = server.create()
    response = server.client.put(f"{session}/frames/0", content=content)
    assert response.status_code == status, response.text
    assert uploads_left(server, session) == []
    assert server.client.get(session).json()["next_frame"] == 0


def test_hostile_video_is_refused(server: RunningServer, clip: Path, tmp_path: Path) -> None:
    session = server.create("video")
    large = write_video(tmp_path / "large.mp4", [np.zeros((720, 720, 3), np.uint8)] * 2)
    for content, status in (
        (b"", 422),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n", 422),
        (clip.read_bytes()[:300], 422),
        (large.read_bytes(), 422),  # more pixels than the limit
        (b"ffconcat version 1.0\nfile /etc/passwd\n", 422),
    ):
        response = server.client.put(f"{session}/video", content=content)
        assert response.status_code == status, response.text
        assert str(server.root) not in response.text
    assert uploads_left(server, session) == []
    assert server.client.put(f"{session}/video", content=clip.read_bytes()).status_code == 200
    again = server.client.put(f"{session}/video", content=clip.read_bytes())
    assert again.status_code == 409
    assert uploads_left(server, session) == ["video"]


def test_large_upload_is_refused(server: RunningServer, frames: str) -> None:
    """By its length, and by its bytes if it states none."""
    before = uploads_left(server, frames)
    video = server.create("video")
    for path, size in ((f"{frames}/masks/0", 1 << 20), (f"{video}/video", 2 << 20)):
        assert server.client.put(path, content=bytes(size + 1)).status_code == 413
        pieces = (bytes(1 << 16) for _ in range((size >> 16) + 1))
        assert server.client.put(path, content=pieces).status_code == 413
    assert server.client.post(SESSIONS, content=b" " * 70_000).status_code == 413
    assert uploads_left(server, frames) == before
    assert uploads_left(server, video) == []


def test_all_uploads_of_a_session_are_limited(server: RunningServer, frames: str) -> None:
    """A limit of 2 MiB: the third file of 0.9 MiB is refused."""
    statuses = [
        server.client.put(f"{frames}/masks/0", content=bytes(900_000)).status_code for _ in range(3)
    ]
    assert statuses == [422, 422, 413]


def raw(server: RunningServer, head: str, body: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    lines = f"{head}\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
    connection.sendall(lines.encode() + body)
    return connection


def test_slow_upload_is_refused(server: RunningServer, frames: str) -> None:
    """The body stops in the middle (slowloris)."""
    before = uploads_left(server, frames)
    with raw(
        server, f"PUT {frames}/masks/0 HTTP/1.1", b"Content-Length: 1000\r\n\r\nabc"
    ) as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 408")
    assert uploads_left(server, frames) == before


def test_slow_headers_are_given_up(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_HEADER_TIMEOUT_S", 0.2)
    with raw(server, f"GET {SESSIONS} HTTP/1.1") as connection:  # without the empty line
        assert _received(connection) == b""
    assert server.client.get(SESSIONS).status_code == 200


def test_cut_upload_leaves_nothing(server: RunningServer, frames: str) -> None:
    before = uploads_left(server, frames)
    for session, name in ((frames, "masks/0"), (server.create("video"), "video")):
        connection = raw(
            server, f"PUT {session}/{name} HTTP/1.1", b"Content-Length: 900000\r\n\r\nabc"
        )
        _wait_until(lambda at=session: len(uploads_left(server, at)) > len(before) * (at == frames))
        connection.close()
        _wait_until(lambda at=session: uploads_left(server, at) == (before if at == frames else []))


def _received(connection: socket.socket) -> bytes:
    with suppress(ConnectionError):  # closed by a reset
        return connection.recv(100)
    return b""


def _wait_until(condition: object, timeout_s: float = 20) -> None:
    end_s = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end_s
        threading.Event().wait(0.01)


def test_ninth_session_has_to_wait(server: RunningServer) -> None:
    """Here the fifth of 4, also if all are created at once."""
    with ThreadPoolExecutor(8) as pool:
        responses = list(
            pool.map(
                lambda _: httpx.post(
                    f"http://127.0.0.1:{server.port}{SESSIONS}",
                    json={"feed": "frames"},
                    headers={"authorization": f"Bearer {TOKEN}"},
                ),
                range(8),
            )
        )
    assert sorted(response.status_code for response in responses) == [201] * 4 + [429] * 4
    refused = [response for response in responses if response.status_code == 429]
    assert all(int(response.headers["retry-after"]) > 0 for response in refused)
    created = next(r.headers["location"] for r in responses if r.status_code == 201)
    assert server.client.delete(created).status_code == 204
    assert server.client.get(created).status_code == 404
    server.create()


def test_full_queue_gets_429(server: RunningServer, frames: str) -> None:
    """Without a mask no frame is computed: the queue of 4 is full at frame 4."""
    image = png(scene(1)[0])
    for index in range(1, 4):
        assert server.client.put(f"{frames}/frames/{index}", content=image).status_code == 202
    refused = server.client.put(f"{frames}/frames/4", content=image)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    # The mask makes room, and the frame that waits for it is taken.
    server.client.put(f"{frames}/masks/0", content=png_from_labels(scene_labels(0)))
    assert server.client.put(f"{frames}/frames/4", content=image).status_code == 202
    assert server.client.get(f"{frames}/masks/4?wait_s=30").status_code == 200


def test_frames_come_in_order(server: RunningServer, frames: str) -> None:
    image = png(scene(1)[0])
    for index in (0, 2):
        assert server.client.put(f"{frames}/frames/{index}", content=image).status_code == 409
    other = png(np.zeros((64, 64, 3), np.uint8))
    assert server.client.put(f"{frames}/frames/1", content=other).status_code == 409
    assert server.client.put(f"{frames}/frames/1", content=image).status_code == 202
    assert server.client.get(f"{frames}/results").status_code == 409
    assert server.client.get(f"{frames}/masks/0").status_code == 404


def test_memory_of_all_sessions_is_limited(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two sessions need 200 MB each."""
    monkeypatch.setattr("mpn.service.frame_session.memory_need_mb", lambda *_: 200)
    monkeypatch.setattr(server.sessions, "limits", server.sessions.limits.__class__(memory_mb=300))
    first, second = server.create(), server.create()
    mask, image = png_from_labels(scene_labels(0)), png(scene(1)[0])
    for session in (first, second):
        server.client.put(f"{session}/frames/0", content=image)
    assert server.client.put(f"{first}/masks/0", content=mask).status_code == 200
    refused = server.client.put(f"{second}/masks/0", content=mask)
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) > 0
    server.client.delete(first)
    assert server.client.put(f"{second}/masks/0", content=mask).status_code == 200


def test_requests_at_once_are_limited(
    server: RunningServer, frames: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An open event stream is one of two."""
    monkeypatch.setattr(Limits, "requests", 2)
    streams = [server.client.stream("GET", f"{frames}/events") for _ in range(2)]
    with streams[0]:
        assert server.client.get("/healthz").status_code == 200
        with streams[1]:
            refused = server.client.get("/healthz")
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) > 0
    _wait_until(lambda: server.client.get("/healthz").status_code == 200)


def test_idle_session_is_removed(server: RunningServer) -> None:
    idle, used = server.create(), server.create()
    server.sessions.get(idle.rpartition("/")[2]).used_s -= server.sessions.limits.idle_s + 1
    server.sessions.remove_idle()
    assert server.client.get(idle).status_code == 404
    assert server.client.get(used).status_code == 200
    assert not server.folder(idle).exists()


def test_closed_session_ends_its_events(server: RunningServer, frames: str) -> None:
    received: list[dict[str, object]] = []

    def read(events: Iterator[dict[str, object]]) -> None:
        received.extend(events)

    reader = threading.Thread(target=read, args=(events_of(server, frames),))
    server.client.put(f"{frames}/masks/0", content=png_from_labels(scene_labels(0)))
    server.client.get(f"{frames}/masks/0?wait_s=30")
    reader.start()
    _wait_until(lambda: len(received) == 2)
    server.client.delete(frames)
    reader.join(20)
    assert [event["event"] for event in received] == ["state", "frame", "state", "closed"]
    assert not server.folder(frames).exists()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", f"{SESSIONS}/../../etc/passwd"),
        ("GET", f"{SESSIONS}/..%2f..%2fetc%2fpasswd"),
        ("GET", f"{SESSIONS}/%2e%2e/results"),
        ("PUT", f"{SESSIONS}/{'0' * 32}/video"),
        ("PUT", f"{SESSIONS}/{'0' * 32}/masks/..%2f..%2fx"),
        ("GET", f"{SESSIONS}/{'0' * 32}/masks/-1"),
        ("GET", "/docs"),
        ("GET", "/token"),
    ],
)
def test_guessed_path_gets_nothing(server: RunningServer, method: str, path: str) -> None:
    response = server.client.request(method, path, content=b"x" if method == "PUT" else None)
    assert response.status_code in (404, 405, 422), response.text
    assert b"root:" not in response.content


TOKEN_IS_WRONG = "the token is missing or wrong: send the header Authorization: Bearer TOKEN"


def test_request_without_token_gets_nothing(server: RunningServer, frames: str) -> None:
    paths = (SESSIONS, frames, f"{frames}/events", f"{frames}/masks/0", "/metrics", "/openapi.json")
    for headers in ({"authorization": ""}, {"authorization": "Bearer wrong-token-of-16"}):
        for path in paths:
            response = server.client.get(path, headers=headers)
            assert response.status_code == 401, path
            assert response.json() == {"detail": TOKEN_IS_WRONG}
        assert server.client.get("/healthz", headers=headers).status_code == 200
        assert server.client.get("/readyz", headers=headers).status_code == 200
    evil = server.client.post(SESSIONS, json={"feed": "frames"}, headers={"host": "evil.example"})
    assert evil.status_code == 421
    page = {"origin": "http://evil.example"}
    assert server.client.get(SESSIONS, headers=page).status_code == 403


@pytest.mark.parametrize(
    "body", [b"{", b"[" * 60_000, b'{"feed": "x"}', b'{"feed": "frames", "out": "/etc"}', b"\xff"]
)
def test_hostile_json_is_refused(server: RunningServer, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    response = server.client.post(SESSIONS, content=body, headers=headers)
    assert response.status_code in (400, 422), response.text
    assert set(json.loads(response.content)) == {"detail"}


def test_metrics_count_frames_and_stages(server: RunningServer) -> None:
    session = server.create()
    before = _metric(server, 'mpn_frames_total{feed="frames"}')
    send_frames(server, session, list(scene(3)), scene_labels(0))
    assert _metric(server, 'mpn_frames_total{feed="frames"}') == before + 3
    assert _metric(server, 'mpn_stage_seconds_count{stage="propagation"}') >= 2
    assert _metric(server, 'mpn_sessions{feed="frames"}') == 1
    assert _metric(server, "process_resident_memory_bytes") > 1e6
    assert TOKEN not in server.client.get("/metrics").text


def _metric(server: RunningServer, name: str) -> float:
    for line in server.client.get("/metrics").text.splitlines():
        if line.startswith(name + " "):
            return float(line.rpartition(" ")[2])
    return 0.0
