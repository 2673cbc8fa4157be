"""Small training material in DAVIS layout: textured squares that move."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from mpn.masks import save_labels
from mpn.networks.checkpoint import save_checkpoint
from mpn.networks.features import FeaturesNet
from mpn.training.data import load_davis_split, load_stills
from mpn.training.propagation.clips import ClipSources

SIZE_HW = (96, 128)
SEQUENCES = ("alpha", "beta", "gamma")
FRAMES = 8


def _texture(rng: np.random.Generator, size_hw: tuple[int, int]) -> np.ndarray:
    coarse = rng.integers(0, 256, (size_hw[0] // 8, size_hw[1] // 8, 3), dtype=np.uint8)
    return cv2.resize(coarse, size_hw[::-1], interpolation=cv2.INTER_CUBIC)


@pytest.fixture(scope="session")
def davis_like(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("davis-like")
    (root / "ImageSets/2017").mkdir(parents=True)
    (root / "ImageSets/2017/train.txt").write_text("\n".join(SEQUENCES) + "\n")
    for number, name in enumerate(SEQUENCES):
        rng = np.random.default_rng(number)
        background, patch = _texture(rng, SIZE_HW), _texture(rng, (40, 40))
        images = root / "JPEGImages/480p" / name
        masks = root / "Annotations/480p" / name
        images.mkdir(parents=True)
        masks.mkdir(parents=True)
        for t in range(FRAMES):
            x, y = 10 + 5 * t, 20 + 2 * t
            frame, labels = background.copy(), np.zeros(SIZE_HW, np.uint8)
            frame[y : y + 40, x : x + 40] = patch
            labels[y : y + 40, x : x + 40] = 1
            cv2.imwrite(str(images / f"{t:05d}.jpg"), frame)
            save_labels(masks / f"{t:05d}.png", labels)
    return root


@pytest.fixture(scope="session")
def stills_like(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stills")
    (root / "images").mkdir()
    (root / "masks").mkdir()
    for number in range(3):
        rng = np.random.default_rng(100 + number)
        mask = np.zeros(SIZE_HW, np.uint8)
        cv2.circle(mask, (64, 48), 25, 255, -1)
        image = np.where(mask[..., None] > 0, _texture(rng, SIZE_HW), _texture(rng, SIZE_HW))
        cv2.imwrite(str(root / f"images/{number}.jpg"), image)
        cv2.imwrite(str(root / f"masks/{number}.png"), mask)
    return root


@pytest.fixture(scope="session")
def instances_like(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return two images: ids 1 and 2 are large, 3 is too small, 255 is a crowd."""
    root = tmp_path_factory.mktemp("instances")
    (root / "images").mkdir()
    (root / "masks").mkdir()
    for name in ("a", "b"):
        rng = np.random.default_rng(ord(name))
        labels = np.zeros(SIZE_HW, np.uint8)
        labels[10:50, 10:50], labels[40:80, 60:100] = 1, 2
        labels[2:8, 2:8], labels[60:, :30] = 3, 255
        cv2.imwrite(str(root / f"images/{name}.jpg"), _texture(rng, SIZE_HW))
        save_labels(root / f"masks/{name}.png", labels)
    return root


@pytest.fixture(scope="session")
def features_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint of a features network with random weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("features") / "features.pth"
    return save_checkpoint(path, {"features": FeaturesNet()}, {})


@pytest.fixture(scope="session")
def material(davis_like: Path, stills_like: Path) -> ClipSources:
    return ClipSources(tuple(load_davis_split(davis_like)), tuple(load_stills(stills_like)))
