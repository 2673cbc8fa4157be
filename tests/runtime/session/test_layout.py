from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mpn.errors import OutputError
from mpn.masks import save_labels
from mpn.runtime.media.video import open_video
from mpn.runtime.session.layout import (
    ResultPaths,
    check_not_input,
    check_out,
    load_earlier_run,
    remove_partials,
    remove_previous_results,
    result_paths,
)
from tests.runtime.media.clips import level_frame, write_folder, write_video


def paths_in(out: Path) -> ResultPaths:
    return ResultPaths(out, out / "masks", out)


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


@pytest.mark.parametrize(
    ("folder", "masks", "rest"),
    [
        ("JPEGImages/480p/swan", "out/swan", "out/_runs/swan"),
        ("JPEGImages/swan", "out/swan", "out/_runs/swan"),
        ("frames/swan", "out/masks", "out"),
        ("JPEGImages/480p/x/swan", "out/masks", "out"),
    ],
)
def test_davis_layout_in_gives_davis_layout_out(
    tmp_path: Path, folder: str, masks: str, rest: str
) -> None:
    write_folder(tmp_path / folder, [level_frame(0)])
    with open_video(tmp_path / folder) as video:
        paths = result_paths(Path("out"), video)
    assert (str(paths.masks), str(paths.folder)) == (masks, rest)


def test_a_file_is_never_davis_layout(tmp_path: Path) -> None:
    (tmp_path / "JPEGImages").mkdir()
    path = write_video(tmp_path / "JPEGImages" / "clip.mp4", [level_frame(0)])
    with open_video(path) as video:
        assert result_paths(Path("out"), video) == paths_in(Path("out"))


def test_out_must_be_a_folder_or_become_one(tmp_path: Path) -> None:
    touch(tmp_path / "file")
    check_out(tmp_path / "a" / "b")
    check_out(tmp_path)
    for bad in (tmp_path / "file", tmp_path / "file" / "sub"):
        with pytest.raises(OutputError, match=r"file is a file, not a folder"):
            check_out(bad)
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_out_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Permission bits have no effect for root, which may run the tests.
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(OutputError, match=r"no permission to write in .*choose another with -o"):
        check_out(tmp_path / "new")


def test_results_are_not_written_over_the_video(tmp_path: Path) -> None:
    sequence = write_folder(tmp_path / "JPEGImages" / "480p" / "swan", [level_frame(0)])
    with open_video(sequence) as video:
        with pytest.raises(OutputError, match="written over the video"):
            check_not_input(result_paths(sequence.parent, video), video)
        check_not_input(result_paths(tmp_path / "out", video), video)
    frames = write_folder(tmp_path / "frames", [level_frame(0)])
    with open_video(frames) as video:
        for out in (frames, frames / "out", tmp_path / "out" / ".." / "frames"):
            with pytest.raises(OutputError, match="written into the images of"):
                check_not_input(result_paths(out, video), video)
        check_not_input(result_paths(tmp_path / "frames-mpn", video), video)
    clip = write_video(tmp_path / "overlay.mp4", [level_frame(0)])
    with open_video(clip) as video, pytest.raises(OutputError, match="written over the video"):
        check_not_input(result_paths(tmp_path, video), video)


def test_previous_results_are_removed_but_not_other_files(tmp_path: Path) -> None:
    paths = paths_in(tmp_path)
    theirs = [tmp_path / "notes.txt", tmp_path / "masks" / "readme.txt"]
    corrected = tmp_path / "masks" / "00002.png"
    touch(*theirs, corrected, paths.masks / "00000.png", paths.probs / "00000.npz",
          paths.overlay, paths.tracks, paths.rle, paths.run_json)  # fmt: skip
    remove_previous_results(paths, {"state": "complete"}, keep=[corrected])
    left = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {*theirs, corrected}


def test_masks_of_unknown_origin_stop_the_run(tmp_path: Path) -> None:
    mask = tmp_path / "masks" / "00000.png"
    touch(mask)
    with pytest.raises(OutputError, match="holds 1 PNG files that no earlier run wrote"):
        remove_previous_results(paths_in(tmp_path), None)
    assert mask.exists()


def test_partial_files_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    paths = paths_in(tmp_path)
    save_target = paths.masks / "00000.png"
    paths.masks.mkdir()
    save_labels(save_target, np.ones((4, 4), np.uint8))
    touch(paths.masks / "00001.png.partial", tmp_path / "overlay.mp4.partial",
          tmp_path / "tracks.jsonl.partial")  # fmt: skip
    remove_partials(paths)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [save_target]


def test_earlier_run_is_found_finished_or_not(tmp_path: Path) -> None:
    paths = paths_in(tmp_path / "out")
    assert load_earlier_run(paths) is None
    paths.folder.mkdir()
    assert load_earlier_run(paths) is None
    paths.run_json.write_text(json.dumps({"schema_version": 1, "state": "complete"}))
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
