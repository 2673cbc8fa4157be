"""Replace the files of an earlier run, and no file of the user.

Only files that the earlier run lists are removed or replaced. Its lines in tracks.jsonl name its
masks and probabilities; its report states which other files it wrote.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from mpn._common.files import is_nonempty_file, output_errors, visible_files
from mpn.errors import OutputError
from mpn.runtime.media.video import VideoSource
from mpn.runtime.media.video_images import ImageSequence
from mpn.runtime.review.page import is_review
from mpn.runtime.session.earlier import EarlierFrames, first_edited_mask
from mpn.runtime.session.layout import ResultPaths


def check_replaceable(
    paths: ResultPaths,
    earlier: Mapping[str, Any] | None,
    frames: EarlierFrames,
    video: VideoSource,
    save: Iterable[str],
    *,
    keep: Iterable[Path] = (),
    resume: bool = False,
) -> None:
    """Check that a run would replace only files of earlier runs, before any work.

    Args:
        paths: Paths of this run.
        earlier: Report of the earlier run; None if there was none.
        frames: Its frames.
        video: The video of this run.
        save: Results of this run.
        keep: Files that may be replaced: masks corrected in place and given to this run.
        resume: Whether the earlier run is continued, so that nothing is removed.

    Raises:
        OutputError: If a file of the user is in the way, a mask of the earlier run was edited, or
            files would be removed through a symbolic link.
    """
    if not resume and (edited := first_edited_mask(paths, frames, given=keep)) is not None:
        raise OutputError(_edited(*edited))
    kinds = {*save, "before"}  # a correction of any run writes there
    kept = {path.resolve() for path in keep}
    for folder, suffix, kind in _frame_folders(paths):
        files = visible_files(folder, f"*{suffix}")
        listed = [path for path in files if path.stem in frames.names]
        if listed and folder.is_symlink() and not resume:
            raise OutputError(_through_link(folder))
        foreign = [path for path in files if path.stem not in frames.names]
        if kind == "masks" and foreign and earlier is None and not frames.names:
            raise OutputError(
                f"{folder} holds {len(foreign)} PNG files that no earlier run wrote: move them "
                "away, or choose another folder with -o"
            )
        in_the_way = [
            path
            for path in foreign
            if is_nonempty_file(path)
            and path.resolve() not in kept
            and _may_have_frame(video, path.stem)
        ]
        if kind in kinds and in_the_way:
            raise OutputError(_in_the_way(in_the_way[0]))
    own = _own_growing_files(paths, earlier, frames)
    written = {paths.tracks} | ({paths.overlay} if "overlay" in kinds else set())
    written |= {paths.rle} if "rle" in kinds else set()
    for path in sorted(written - set(own)):
        if is_nonempty_file(path):
            raise OutputError(_in_the_way(path))


def remove_previous_results(
    paths: ResultPaths,
    earlier: Mapping[str, Any] | None,
    frames: EarlierFrames,
    *,
    keep: Iterable[Path] = (),
) -> None:
    """Remove the results of an earlier run, and no other file.

    Args:
        paths: Paths of this run.
        earlier: Report of the earlier run; None if there was none.
        frames: Its frames.
        keep: Files to keep: masks corrected in place and given to this run.

    Raises:
        OutputError: If a file cannot be removed.
    """
    own = _own_growing_files(paths, earlier, frames)
    with output_errors(paths.out):
        _remove_frame_files(paths, tuple(frames.names), keep)
        # The lists come last: if this is interrupted, they still name what is left.
        reports = () if earlier is None else (paths.run_json, paths.run_partial_json)
        review = (paths.review,) if is_review(paths.review) else ()
        for path in (*reports, *review, *own):
            path.unlink(missing_ok=True)


def remove_frames(
    paths: ResultPaths, frames: EarlierFrames, indices: Collection[int], *, keep: Iterable[Path]
) -> None:
    """Remove the masks and probabilities of some frames, which are computed again.

    Args:
        paths: Paths of the run.
        frames: Frames of the earlier run.
        indices: Frames to remove.
        keep: Files to keep: masks corrected in place and given to this run.

    Raises:
        OutputError: If a file cannot be removed.
    """
    names = [entry.name for entry in frames.entries if entry.frame in indices]
    with output_errors(paths.out):
        _remove_frame_files(paths, [name for name in names if name in frames.names], keep)


def _remove_frame_files(paths: ResultPaths, names: Iterable[str], keep: Iterable[Path]) -> None:
    kept = {path.resolve() for path in keep}
    for folder, suffix, _ in _frame_folders(paths):
        for name in names:
            path = folder / f"{name}{suffix}"
            if not os.path.lexists(path) or path.resolve() in kept:
                continue
            if folder.is_symlink():
                raise OutputError(_through_link(folder))
            path.unlink(missing_ok=True)


def _frame_folders(paths: ResultPaths) -> tuple[tuple[Path, str, str], ...]:
    return (
        (paths.masks, ".png", "masks"),
        (paths.probs, ".npz", "probs"),
        (paths.before, ".png", "before"),
    )


def _own_growing_files(
    paths: ResultPaths, earlier: Mapping[str, Any] | None, frames: EarlierFrames
) -> list[Path]:
    """Return the files of the whole run that an earlier run wrote, tracks.jsonl last."""
    if earlier is None and not frames.names:
        return []
    by_kind = {"overlay": paths.overlay, "rle": paths.rle}
    saved = list(by_kind) if earlier is None else earlier.get("saved")
    if not isinstance(saved, list):  # a damaged report
        saved = list(by_kind)
    return [path for kind, path in by_kind.items() if kind in saved] + [paths.tracks]


def _may_have_frame(video: VideoSource, name: str) -> bool:
    if isinstance(video, ImageSequence):
        return name in video.frame_names
    first, end = video.first_frame.index, video.end_index
    if not (name.isascii() and name.isdigit()) or name != f"{int(name):05d}":
        return False
    return first <= int(name) and (end is None or int(name) < end)


def _edited(index: int, path: Path) -> str:
    return (
        f"{path} was edited after the earlier run wrote it, and would be replaced: give it with "
        f"--mask {index}:{path} to keep it as a correction, move it away, or choose another "
        "folder with -o"
    )


def _through_link(folder: Path) -> str:
    return (
        f"{folder} is a symbolic link, and nothing is removed through one: remove the link, or "
        "choose another folder with -o"
    )


def _in_the_way(path: Path) -> str:
    return (
        f"{path} would be replaced, but no earlier run here wrote it: move it away, or choose "
        "another folder with -o"
    )
