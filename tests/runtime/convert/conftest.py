from __future__ import annotations

from pathlib import Path

import pytest

from tests.builders.output_folders import write_output_folder
from tests.runtime.media.clips import scene, scene_labels, write_video

FRAMES = 4
LABELS = [scene_labels(index) for index in range(FRAMES)]


@pytest.fixture(scope="package")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", scene(FRAMES))


@pytest.fixture
def out(clip: Path, tmp_path: Path) -> Path:
    """Output folder with hard masks of the objects 1 and 2."""
    return write_output_folder(tmp_path / "out", clip, LABELS, names={2: "koi"})


@pytest.fixture
def soft_out(clip: Path, tmp_path: Path) -> Path:
    """Output folder with probabilities too."""
    folder = tmp_path / "soft"
    return write_output_folder(folder, clip, LABELS, names={1: "a.b", 2: "koi"}, with_probs=True)
