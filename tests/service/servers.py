"""A server in a thread of the tests, and a client of it."""

from __future__ import annotations

import io
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from mpn.masks import png_from_labels
from mpn.runtime.options import PipelineOptions
from mpn.service.engines import ServerEngines
from mpn.service.limits import Limits
from mpn.service.server import ServiceServer, make_server
from mpn.service.sessions import Sessions
from mpn.types import UInt8Array

TOKEN = "token-of-the-tests"
SESSIONS = "/v1/sessions"


@dataclass(frozen=True)
class RunningServer:
    """A server, its sessions, its address and a client with the token."""

    server: ServiceServer
    sessions: Sessions
    port: int
    client: httpx.Client

    @property
    def root(self) -> Path:
        return self.sessions.root

    def create(self, feed: str = "frames", **options: Any) -> str:
        """Create a session, and return its path."""
        response = self.client.post(SESSIONS, json={"feed": feed, **options})
        assert response.status_code == 201, response.text
        return response.headers["location"]

    def folder(self, session: str) -> Path:
        return self.root / session.rpartition("/")[2]


@contextmanager
def running_server(root: Path, engines: ServerEngines, **limits: Any) -> Iterator[RunningServer]:
    sessions = Sessions(root, engines, Limits(**limits))
    server = make_server(sessions, token=TOKEN)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        headers = {"authorization": f"Bearer {TOKEN}"}
        try:
            with httpx.Client(
                base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60
            ) as client:
                yield RunningServer(server, sessions, port, client)
        finally:
            server.stop()
            thread.join(60)
            sessions.close()
            assert not thread.is_alive()


def open_engines(directory: Path) -> ServerEngines:
    return ServerEngines(directory, PipelineOptions(), threads=1)


def png(rgb: UInt8Array) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(rgb)).save(file, "PNG", compress_level=1)
    return file.getvalue()


def send_frames(
    server: RunningServer, session: str, frames: list[UInt8Array], mask: UInt8Array
) -> list[bytes]:
    """Send frames and the mask of frame 0; return all masks."""
    masks = []
    for index, rgb in enumerate(frames):
        sent = server.client.put(f"{session}/frames/{index}", content=png(rgb))
        assert sent.status_code == 202, sent.text
        if index == 0:
            given = server.client.put(f"{session}/masks/0", content=png_from_labels(mask))
            assert given.status_code == 200, given.text
        found = server.client.get(f"{session}/masks/{index}?wait_s=30")
        assert found.status_code == 200, found.text
        masks.append(found.content)
    return masks


def events_of(
    server: RunningServer, session: str, query: str = "", **headers: str
) -> Iterator[dict[str, Any]]:
    """Yield the events of a session with their names and ids."""
    with server.client.stream("GET", f"{session}/events{query}", headers=headers) as response:
        assert response.status_code == 200, response.read()
        event: dict[str, Any] = {}
        for line in response.iter_lines():
            name, _, value = line.partition(": ")
            if name in ("id", "event"):
                event[name] = value
            elif name == "data":
                yield {**event, **json.loads(value)}
                event = {}
