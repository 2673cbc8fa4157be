from __future__ import annotations

from pathlib import Path

import cv2
import pytest

from mpn.masks import save_labels
from mpn.synthetic import render_clip

SIZE_HW = (64, 96)
FRAMES = 5


@pytest.fixture(scope="module")
def davis_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write two rendered sequences, with two objects and with one."""
    root = tmp_path_factory.mktemp("davis")
    for name, objects in (("pond", 2), ("koi", 1)):
        images, annotations = (
            root / part / "480p" / name for part in ("JPEGImages", "Annotations")
        )
        images.mkdir(parents=True)
        annotations.mkdir(parents=True)
        clip = render_clip(frames=FRAMES, size_hw=SIZE_HW, objects=objects)
        for t, frame in enumerate(clip):
            bgr = cv2.cvtColor(frame.rgb, cv2.COLOR_RGB2BGR)
            cv2.imwrite(str(images / f"{t:05d}.jpg"), bgr)
            save_labels(annotations / f"{t:05d}.png", frame.labels)
    (root / "ImageSets" / "2017").mkdir(parents=True)
    (root / "ImageSets" / "2017" / "val.txt").write_text("pond\nkoi\n")
    return root
