from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from mpn.errors import TrainingError
from mpn.training.data import DataOptions, load_stills

LAYOUTS = {
    "MSRA10K": ("Imgs", "Imgs"),
    "MSRA10K as zipped": ("MSRA10K_Imgs_GT/Imgs", "MSRA10K_Imgs_GT/Imgs"),
    "ECSSD": ("images", "ground_truth_mask"),
    "own": ("images", "masks"),
}


def _fill(root: Path, layout: str, names: tuple[str, ...] = ("b", "a")) -> None:
    images, masks = (root / folder for folder in LAYOUTS[layout])
    images.mkdir(parents=True, exist_ok=True)
    masks.mkdir(parents=True, exist_ok=True)
    for name in names:
        cv2.imwrite(str(images / f"{name}.jpg"), np.full((12, 16, 3), 90, np.uint8))
        mask = np.zeros((12, 16), np.uint8)
        mask[3:9, 4:10] = 255
        cv2.imwrite(str(masks / f"{name}.png"), mask)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_public_layouts_are_read_in_the_order_of_names(layout: str, tmp_path: Path) -> None:
    _fill(tmp_path, layout)
    pairs = load_stills(tmp_path)
    assert [pair.image_path.stem for pair in pairs] == ["a", "b"]
    assert pairs[0].mask().sum() == 36
    assert pairs[0].rgb().shape == (12, 16, 3)


def test_the_folder_of_msra10k_s_images_itself_will_do(tmp_path: Path) -> None:
    _fill(tmp_path, "MSRA10K")
    assert len(load_stills(tmp_path / "Imgs")) == 2


def test_several_folders_are_joined_in_their_order(tmp_path: Path) -> None:
    _fill(tmp_path / "m", "MSRA10K")
    _fill(tmp_path / "e", "ECSSD", ("x",))
    options = DataOptions(stills=(tmp_path / "e", tmp_path / "m"))
    assert [pair.image_path.stem for pair in options.still_pairs()] == ["x", "a", "b"]
    assert options.sequences() == []
    with pytest.raises(TrainingError, match="is given twice"):
        DataOptions(stills=(tmp_path, tmp_path)).still_pairs()


def test_a_folder_of_another_layout_is_one_line(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(TrainingError, match="no folder of images with masks: expected") as e:
            load_stills(folder)
        assert "\n" not in str(e.value)
    (tmp_path / "Imgs").mkdir()
    with pytest.raises(TrainingError, match=r"holds no pair Imgs/NAME\.jpg \+ Imgs/NAME\.png"):
        load_stills(tmp_path)


def test_an_image_without_its_mask_is_named(tmp_path: Path) -> None:
    _fill(tmp_path, "MSRA10K")
    (tmp_path / "Imgs/a.png").unlink()
    with pytest.raises(
        TrainingError, match=r"2 images and 1 masks do not pair.*'a' has no partner"
    ):
        load_stills(tmp_path)
