"""Fixtures of the service: a server with tiny engines for all tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mpn.runtime.media.decoder import MOST_PIXELS, limit_pixels
from mpn.service.engines import ServerEngines
from tests.builders.engine_dirs import make_engine_dir
from tests.runtime.media.clips import SCENE_HW, scene, write_video
from tests.service.servers import RunningServer, open_engines, running_server

FRAMES = 8


@pytest.fixture(scope="session")
def engine_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_engine_dir(tmp_path_factory.mktemp("engines") / "tiny", frame_size_hw=SCENE_HW)


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", scene(FRAMES))


@pytest.fixture(scope="package")  # not longer: they hold the number of OpenCV threads
def engines(engine_dir: Path) -> Iterator[ServerEngines]:
    with open_engines(engine_dir) as opened:
        yield opened


@pytest.fixture(scope="module")
def server(
    engines: ServerEngines, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """A server of 4 sessions with small limits."""
    limits = {
        "sessions": 4,
        "wait_s": 0.2,
        "upload_mb": 2,
        "image_mb": 1,
        "pixels": 500_000,
        "objects": 4,
        "patience_s": 0.5,
    }
    limit_pixels(500_000)
    root = tmp_path_factory.mktemp("sessions")
    with running_server(root, engines, **limits) as running:
        yield running
    limit_pixels(MOST_PIXELS)


@pytest.fixture(autouse=True)
def _no_session_stays(server: RunningServer) -> Iterator[None]:
    yield
    for session in server.sessions.all():
        server.client.delete(f"/v1/sessions/{session.id}")
    assert [path.name for path in server.root.iterdir()] == [".mpn-lock"]
