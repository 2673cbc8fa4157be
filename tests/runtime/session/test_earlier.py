"""Files of an earlier run, and files of the user."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpn.errors import OutputError
from mpn.masks import png_from_labels
from mpn.runtime.media.video import VideoSource, open_video
from mpn.runtime.media.writers import crc32_of_frame
from mpn.runtime.session.earlier import (
    EarlierFrames,
    load_earlier_frames,
    load_earlier_run,
    match_video,
)
from mpn.runtime.session.layout import ResultPaths
from mpn.runtime.session.replace import check_replaceable, remove_previous_results
from tests.runtime.media.clips import level_frame, write_folder

REPORT: dict[str, Any] = {"schema_version": 1, "state": "complete", "saved": ["masks", "overlay"]}


def paths_in(out: Path) -> ResultPaths:
    return ResultPaths(out, out / "masks", out)


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def list_frames(paths: ResultPaths, names: Iterable[str]) -> EarlierFrames:
    paths.folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"frame": k, "name": name, "objects": []}) for k, name in enumerate(names)]
    paths.tracks.write_text("".join(f"{line}\n" for line in lines))
    return load_earlier_frames(paths)


@pytest.fixture
def video(tmp_path: Path) -> Iterable[VideoSource]:
    """Four images, 00000 to 00003."""
    folder = write_folder(tmp_path / "frames", [level_frame(k) for k in range(4)], "{:05d}.png")
    with open_video(folder) as opened:
        yield opened


def test_only_listed_results_are_removed(tmp_path: Path) -> None:
    paths = paths_in(tmp_path)
    theirs = [tmp_path / "notes.txt", paths.masks / "drawn.png", paths.masks / "00007.png"]
    theirs += [paths.probs / "other.npz", paths.rle]  # the run did not save RLE
    corrected = paths.masks / "00002.png"
    touch(*theirs, corrected, paths.masks / "00000.png", paths.probs / "00000.npz",
          paths.overlay, paths.run_json)  # fmt: skip
    frames = list_frames(paths, ["00000", "00001", "00002"])
    remove_previous_results(paths, REPORT, frames, keep=[corrected])
    left = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {*theirs, corrected}


def test_results_are_removed_without_their_report(tmp_path: Path, video: VideoSource) -> None:
    """The user removed run.json, as a message advises: the list is left."""
    paths = paths_in(tmp_path / "out")
    touch(paths.masks / "00000.png", paths.overlay)
    frames = list_frames(paths, ["00000"])
    check_replaceable(paths, None, frames, video, {"masks", "overlay"})
    remove_previous_results(paths, None, frames)
    assert [path for path in paths.out.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("name", ["../keep", "a/../../keep", "", "/keep"])
def test_name_that_leads_out_of_the_folder_is_ignored(tmp_path: Path, name: str) -> None:
    paths = paths_in(tmp_path / "out")
    touch(paths.masks / "00000.png", tmp_path / "out" / "keep.png", tmp_path / "keep.png")
    remove_previous_results(paths, REPORT, list_frames(paths, ["00000", name]))
    assert not (paths.masks / "00000.png").exists()
    assert (tmp_path / "out" / "keep.png").exists()
    assert (tmp_path / "keep.png").exists()


def test_nothing_is_removed_through_a_link(tmp_path: Path, video: VideoSource) -> None:
    paths, elsewhere = paths_in(tmp_path / "out"), tmp_path / "elsewhere"
    touch(elsewhere / "00000.png")
    frames = list_frames(paths, ["00000"])
    paths.masks.symlink_to(elsewhere)
    with pytest.raises(OutputError, match=r"masks is a symbolic link, .*choose another folder"):
        check_replaceable(paths, REPORT, frames, video, {"masks"})
    with pytest.raises(OutputError, match="masks is a symbolic link"):
        remove_previous_results(paths, REPORT, frames)
    assert (elsewhere / "00000.png").exists()
    paths.masks.unlink()  # control
    check_replaceable(paths, REPORT, frames, video, {"masks"})


def test_link_as_a_mask_is_removed_and_its_file_kept(tmp_path: Path) -> None:
    paths = paths_in(tmp_path / "out")
    touch(tmp_path / "theirs.png")
    paths.masks.mkdir(parents=True)
    (paths.masks / "00000.png").symlink_to(tmp_path / "theirs.png")
    remove_previous_results(paths, REPORT, list_frames(paths, ["00000"]))
    assert not (paths.masks / "00000.png").is_symlink()
    assert (tmp_path / "theirs.png").exists()


def test_masks_of_unknown_origin_stop_the_run(tmp_path: Path, video: VideoSource) -> None:
    paths = paths_in(tmp_path / "out")
    touch(paths.masks / "any.png")
    with pytest.raises(OutputError, match="holds 1 PNG files that no earlier run wrote"):
        check_replaceable(paths, None, load_earlier_frames(paths), video, {"masks"})


@pytest.mark.parametrize(
    ("file", "is_refused"),
    [
        ("masks/00003.png", True),  # a frame of the video
        ("masks/00004.png", False),
        ("rle.jsonl", True),
        ("overlay.mp4", False),  # the earlier run saved one
    ],
)
def test_file_of_the_user_in_the_way_is_refused(
    tmp_path: Path, video: VideoSource, file: str, is_refused: bool
) -> None:
    paths = paths_in(tmp_path / "out")
    frames = list_frames(paths, ["00000", "00001"])
    touch(paths.out / file)
    save = {"masks", "overlay", "rle"}
    if not is_refused:
        check_replaceable(paths, REPORT, frames, video, save)
        return
    with pytest.raises(OutputError, match=f"{file} would be replaced, .*move it away"):
        check_replaceable(paths, REPORT, frames, video, save)
    (paths.out / file).write_bytes(b"")  # what a power failure leaves counts as absent
    check_replaceable(paths, REPORT, frames, video, save)


def test_tracks_of_another_tool_are_not_replaced(tmp_path: Path, video: VideoSource) -> None:
    paths = paths_in(tmp_path / "out")
    touch(paths.tracks)
    with pytest.raises(OutputError, match=r"tracks\.jsonl would be replaced"):
        check_replaceable(paths, None, load_earlier_frames(paths), video, {"masks"})


def test_truncated_last_line_still_lists_its_mask(tmp_path: Path) -> None:
    paths = paths_in(tmp_path)
    list_frames(paths, ["00000", "00001"])
    paths.tracks.write_text(paths.tracks.read_text()[:-9])
    frames = load_earlier_frames(paths)
    assert len(frames.entries) == 1
    assert frames.names == {"00000", "00001"}


def test_video_is_compared_frame_by_frame(video: VideoSource) -> None:
    read = list(video)
    entries = [
        {"frame": f.index, "name": f.name, "objects": [], "frame_crc32": crc32_of_frame(f)}
        for f in read
    ]
    paths = paths_in(Path(video.address).parent / "out")
    paths.folder.mkdir()
    paths.tracks.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))
    frames = load_earlier_frames(paths)
    match = match_video(read, frames, 0)
    assert (match.same, match.has_more, match.is_shorter) == (4, False, False)
    assert match_video([*read, read[0]], frames, 0).has_more
    assert match_video(read[:3], frames, 0).is_shorter
    read[2].rgb[5, 5] ^= 1  # one level of one pixel
    assert match_video(read, frames, 0).same == 2


def test_earlier_run_is_found_finished_or_not(tmp_path: Path) -> None:
    paths = paths_in(tmp_path / "out")
    assert load_earlier_run(paths) is None
    paths.folder.mkdir()
    assert load_earlier_run(paths) is None
    paths.run_json.write_text(json.dumps({"schema_version": 1, "state": "complete"}))
    assert (load_earlier_run(paths) or {})["state"] == "complete"
    paths.run_partial_json.write_text("")  # what a power failure leaves
    assert (load_earlier_run(paths) or {})["state"] == "complete"
    paths.run_partial_json.write_text(json.dumps({"schema_version": 1, "state": "running"}))
    assert (load_earlier_run(paths) or {})["state"] == "running"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot read"),
        ('{"schema_version": 99}', "another version"),
        ("[]", "another version"),
    ],
)
def test_unreadable_earlier_run_is_an_error(tmp_path: Path, content: str, message: str) -> None:
    paths = paths_in(tmp_path)
    paths.run_json.write_text(content)
    with pytest.raises(OutputError, match=message):
        load_earlier_run(paths)


def test_png_of_labels_is_the_same_each_time() -> None:
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert png_from_labels(labels) == png_from_labels(labels.copy())
