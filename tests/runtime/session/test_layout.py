from __future__ import annotations

import os
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
    check_writable,
    remove_partials,
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


def test_partial_files_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    paths = paths_in(tmp_path)
    save_target = paths.masks / "00000.png"
    paths.masks.mkdir()
    save_labels(save_target, np.ones((4, 4), np.uint8))
    journal, theirs = tmp_path / "tracks.jsonl.partial", paths.masks / "draft.partial"
    touch(paths.masks / "00001.png.partial", paths.masks / f".00001.png.{'0a' * 8}.partial",
          tmp_path / "overlay.mp4.partial", journal, theirs)  # fmt: skip
    remove_partials(paths)
    # The journal has the lines to resume from, until the new one replaces it.
    left = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {save_target, journal, theirs}


def test_partial_files_are_not_removed_through_a_link(tmp_path: Path) -> None:
    paths, elsewhere = paths_in(tmp_path / "out"), tmp_path / "elsewhere"
    touch(elsewhere / "00001.png.partial")
    paths.folder.mkdir()
    paths.masks.symlink_to(elsewhere)
    remove_partials(paths)
    assert (elsewhere / "00001.png.partial").exists()


def test_name_that_is_too_long_is_refused_before_work(tmp_path: Path) -> None:
    longest = os.pathconf(tmp_path, "PC_NAME_MAX") - len(".ppm")
    for length, fits in ((longest, True), (longest + 1, False)):
        folder = write_folder(tmp_path / str(length), [level_frame(0)], "a{:d}.png")
        name = "a" * length
        with open_video(folder) as video:
            video._names = frozenset({name})  # type: ignore[attr-defined]
            if fits:
                check_writable(paths_in(tmp_path / "out"), {"masks"}, video)
                continue
            with pytest.raises(OutputError, match=r"has \d+ bytes, but the file system takes \d+"):
                check_writable(paths_in(tmp_path / "out"), {"masks"}, video)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["masks", "probs"])
def test_folder_that_is_a_file_is_refused_before_work(tmp_path: Path, kind: str) -> None:
    paths = paths_in(tmp_path / "out")
    touch(paths.folder / kind)
    with open_video(write_folder(tmp_path / "frames", [level_frame(0)])) as video:
        with pytest.raises(OutputError, match=f"cannot write .*{kind}: Not a directory"):
            check_writable(paths, {kind}, video)
        (paths.folder / kind).unlink()
        check_writable(paths, {kind}, video)  # control


def test_overlay_that_no_encoder_takes_is_refused_before_work(tmp_path: Path) -> None:
    wide, widest = np.zeros((32, 16385, 3), np.uint8), np.zeros((32, 16384, 3), np.uint8)
    for name, rgb in (("wide", wide), ("widest", widest)):
        folder = write_folder(tmp_path / name, [rgb])
        with open_video(folder) as video:
            paths = paths_in(tmp_path / "out")
            check_writable(paths, {"masks", "overlay"}, video)  # then a warning
            if name == "widest":  # control
                check_writable(paths, {"overlay"}, video)
                continue
            with pytest.raises(OutputError, match=r"16385x32 .* H\.264 takes sides up to 16384"):
                check_writable(paths, {"overlay"}, video)
