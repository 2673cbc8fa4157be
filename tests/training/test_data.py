from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mpn.errors import TrainingError, VideoError
from mpn.training.data import (
    cached_rgb,
    load_davis_split,
    load_instances,
    load_label_png,
    load_stills,
)


def test_a_split_lists_its_sequences_in_order_with_paired_files(davis_like: Path) -> None:
    sequences = load_davis_split(davis_like)
    assert [s.name for s in sequences] == ["alpha", "beta", "gamma"]
    assert len(sequences[0]) == 8
    assert sequences[0].rgb(0).shape == (96, 128, 3)
    assert np.unique(sequences[0].labels(3)).tolist() == [0, 1]


def test_colours_are_rgb(tmp_path: Path) -> None:
    path = tmp_path / "red.png"
    Image.new("RGB", (8, 8), (200, 10, 20)).save(path)
    assert cached_rgb(path)[0, 0].tolist() == [200, 10, 20]


def test_void_becomes_background_and_ids_stay(tmp_path: Path) -> None:
    path = tmp_path / "labels.png"
    Image.fromarray(np.array([[0, 1, 7, 255]], np.uint8)).save(path)
    assert load_label_png(path).tolist() == [[0, 1, 7, 0]]
    assert load_label_png(path, void=None).tolist() == [[0, 1, 7, 255]]


def test_shared_arrays_cannot_be_changed(davis_like: Path) -> None:
    rgb = load_davis_split(davis_like)[0].rgb(0)
    with pytest.raises(ValueError, match="read-only"):
        rgb[0, 0] = 0


def test_a_missing_list_and_a_missing_mask_are_named(davis_like: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"not a DAVIS folder.*train\.txt"):
        load_davis_split(tmp_path)
    (tmp_path / "ImageSets/2017").mkdir(parents=True)
    (tmp_path / "ImageSets/2017/train.txt").write_text("alpha")
    (tmp_path / "JPEGImages/480p").mkdir(parents=True)
    (tmp_path / "JPEGImages/480p/alpha").symlink_to(davis_like / "JPEGImages/480p/alpha")
    with pytest.raises(TrainingError, match=r"'alpha'.*8 frames and 0 masks"):
        load_davis_split(tmp_path)


def test_split_written_on_other_systems_is_read(davis_like: Path, tmp_path: Path) -> None:
    shutil.copytree(davis_like, tmp_path, dirs_exist_ok=True)
    (tmp_path / "ImageSets/2017/train.txt").write_bytes("beta\r\n".encode("utf-16"))
    for folder, suffix in (("JPEGImages", "jpg"), ("Annotations", "png")):
        (tmp_path / folder / f"480p/beta/._00000.{suffix}").touch()
    assert [(s.name, len(s)) for s in load_davis_split(tmp_path)] == [("beta", 8)]
    (tmp_path / "ImageSets/2017/train.txt").write_bytes(b"beta\xff")
    with pytest.raises(TrainingError, match=r"train\.txt cannot be read: it is no text"):
        load_davis_split(tmp_path)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_text("no picture")
    with pytest.raises(VideoError, match=r"bad\.png cannot be read as an image"):
        cached_rgb(bad)
    with pytest.raises(TrainingError, match=r"bad\.png cannot be read"):
        load_label_png(bad)
    with pytest.raises(TrainingError, match="no folder of images with masks"):
        load_stills(tmp_path)


def test_large_instances_are_pairs_of_one_image(instances_like: Path) -> None:
    """Small instances and crowds are none, and stay in the image as distractors."""
    pairs = load_instances(instances_like)
    assert [(p.image_path.stem, p.instance_id) for p in pairs] == [
        ("a", 1),
        ("a", 2),
        ("b", 1),
        ("b", 2),
    ]
    first, second = pairs[0].mask(), pairs[1].mask()
    assert np.count_nonzero(first) == np.count_nonzero(second) == 1600
    assert not (first & second).any()


def test_folders_without_instances_are_one_line(stills_like: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"no instance of at least 1\.2%.*255 for crowds"):
        load_instances(stills_like)  # masks of 0/255
    with pytest.raises(TrainingError, match=r"expected images/NAME\.jpg and masks/NAME\.png"):
        load_instances(tmp_path)
