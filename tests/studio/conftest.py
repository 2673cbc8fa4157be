"""Fixtures of the studio: a short clip, tiny engines, a studio in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from mpn.runtime.media.random_access import FrameAccess
from mpn.studio.app import Studio, create_app
from mpn.studio.frames import FrameReader
from mpn.studio.project import Project
from tests.builders.engine_dirs import make_engine_dir
from tests.runtime.media.clips import SCENE_HW, scene, write_video

FRAMES = 12
TOKEN = "token-of-the-tests"
HOST = "127.0.0.1:8000"


@pytest.fixture(scope="session")
def engine_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_engine_dir(tmp_path_factory.mktemp("engines") / "tiny", frame_size_hw=SCENE_HW)


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", scene(FRAMES))


@pytest.fixture
def access(clip: Path) -> Iterator[FrameAccess]:
    with FrameAccess(str(clip)) as opened:
        yield opened


@pytest.fixture
def project(clip: Path, access: FrameAccess, tmp_path: Path) -> Iterator[Project]:
    with Project(str(clip), access, tmp_path / "out") as opened:
        yield opened


@pytest.fixture
def studio(project: Project, access: FrameAccess, engine_dir: Path) -> Iterator[Studio]:
    opened = Studio(project, FrameReader(access), engine_dir=engine_dir)
    yield opened
    opened.close()


@pytest.fixture
def client(studio: Studio) -> Iterator[TestClient]:
    app = create_app(studio, token=TOKEN)
    headers = {"authorization": f"Bearer {TOKEN}"}
    with TestClient(app, base_url=f"http://{HOST}", headers=headers) as opened:
        yield opened
