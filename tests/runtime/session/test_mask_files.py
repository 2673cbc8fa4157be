"""Annotation files and folders as the masks of a run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpn.errors import InputError
from mpn.formats.annotated import AnnotatedFrame, VideoInfo
from mpn.formats.coco import write_ytvis
from mpn.formats.labelme import write_labelme
from mpn.masks import load_labels, save_labels
from mpn.runtime.media.video import open_video
from mpn.runtime.session.mask_files import read_mask_files
from mpn.runtime.session.propagate import propagate
from mpn.runtime.session.request import RunRequest
from mpn.runtime.session.session import run_video
from tests.builders.engine_dirs import make_engine_dir
from tests.runtime.media.clips import SCENE_HW, scene, scene_labels, write_folder, write_video

FRAMES = 5
INFO = VideoInfo("clip", SCENE_HW, (1, 2), {1: "koi", 2: "boat"})
GIVEN = [AnnotatedFrame(index, f"{index:05d}", scene_labels(index)) for index in (0, 3)]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", scene(FRAMES))


@pytest.fixture
def request_(clip: Path, tmp_path: Path) -> RunRequest:
    write_labelme(tmp_path / "labelme", GIVEN, INFO)
    return RunRequest(
        video=str(clip),
        masks={None: tmp_path / "labelme"},
        out=tmp_path / "out",
        engine_dir=make_engine_dir(tmp_path / "engines", frame_size_hw=SCENE_HW),
        backend="cpu",
        threads=1,
        save=frozenset({"masks"}),
    )


def test_folder_gives_masks_of_its_frames_and_names(request_: RunRequest, tmp_path: Path) -> None:
    report = run_video(request_)
    assert report["object_names"] == {"1": "koi", "2": "boat"}
    assert [(mask["frame"], mask["object_ids"]) for mask in report["masks"]] == [
        (0, [1, 2]), (3, [1, 2]),
    ]  # fmt: skip
    folder = tmp_path / "labelme"
    assert report["warnings"][0] == f"the mask {folder} has masks of 2 frames: 0, 3"
    for frame in GIVEN:
        path = tmp_path / "out" / "masks" / f"{frame.name}.png"
        np.testing.assert_array_equal(load_labels(path), frame.labels)
    plain = replace(request_, masks={None: tmp_path / "first.png"}, out=tmp_path / "plain")
    save_labels(tmp_path / "first.png", scene_labels(0))
    assert "object_names" not in run_video(plain)


@pytest.mark.parametrize("end", [None, 4, 50])
def test_masks_of_a_folder_after_the_end_are_left_out(
    request_: RunRequest, tmp_path: Path, end: int | None
) -> None:
    folder = tmp_path / "sparse"
    folder.mkdir()
    for index in (0, 3, 4, 9, 70):
        save_labels(folder / f"{index:05d}.png", scene_labels(index % FRAMES))
    report = run_video(replace(request_, masks={None: folder}, end=end))
    expected = [0, 3] if end == 4 else [0, 3, 4]
    assert [mask["frame"] for mask in report["masks"]] == expected
    assert report["frames"] == (4 if end == 4 else FRAMES)
    assert any("are left out" in note for note in report["warnings"])
    with pytest.raises(InputError, match="frame 9, but the last frame is"):
        run_video(replace(request_, masks={0: folder / "00000.png", 9: folder / "00009.png"}))
    for index in (0, 3, 4):
        (folder / f"{index:05d}.png").unlink()
    with pytest.raises(InputError, match=r"last frame is|none is a frame of the video"):
        run_video(replace(request_, masks={None: folder}, end=end))


def test_masks_given_as_their_own_folder_are_kept(request_: RunRequest, tmp_path: Path) -> None:
    """Masks that were changed in OUT/masks are given to the next run in OUT."""
    run_video(request_)
    masks = tmp_path / "out" / "masks"
    for path in masks.glob("*.png"):
        if path.stem != "00002":
            path.unlink()
    changed = np.roll(scene_labels(2), 1, axis=1)
    save_labels(masks / "00002.png", changed)
    run_video(replace(request_, masks={None: masks}))
    np.testing.assert_array_equal(load_labels(masks / "00002.png"), changed)
    assert len(list(masks.iterdir())) == FRAMES


def test_file_of_many_images_fits_an_image_folder(tmp_path: Path) -> None:
    write_folder(tmp_path / "clip", scene(FRAMES), pattern="f{:03d}.png")
    frames = [AnnotatedFrame(k, f"f{k:03d}", scene_labels(k)) for k in (1, 4)]
    write_ytvis(tmp_path / "a.json", frames, INFO)
    with open_video(tmp_path / "clip", start=1) as video:
        found, paths = read_mask_files({None: tmp_path / "a.json"}, video)
        assert sorted(paths) == [1, 4]
        np.testing.assert_array_equal(found.labels[4], scene_labels(4))
        save_labels(tmp_path / "f004.png", scene_labels(4))
        both = {None: tmp_path / "a.json", 4: tmp_path / "f004.png"}
        with pytest.raises(InputError, match="two masks were given for frame 4"):
            read_mask_files(both, video)


def test_propagate_takes_masks_of_several_frames(clip: Path, tmp_path: Path) -> None:
    write_ytvis(tmp_path / "a.json", GIVEN, INFO)
    directory = make_engine_dir(tmp_path / "engines", frame_size_hw=SCENE_HW)

    def labels(mask: Any) -> list[np.ndarray]:
        results = propagate(clip, mask, engine_dir=directory, backend="cpu", threads=1)
        return [result.labels for result in results]

    several = labels(tmp_path / "a.json")
    assert len(several) == FRAMES
    for frame in GIVEN:
        np.testing.assert_array_equal(several[frame.index], frame.labels)
    value = json.loads((tmp_path / "a.json").read_text())
    for entry in value["annotations"]:
        entry["segmentations"][0] = None
    (tmp_path / "b.json").write_text(json.dumps(value))
    with pytest.raises(InputError, match=r"has the name of frame 3.*\{3: mask\}"):
        labels(tmp_path / "b.json")
