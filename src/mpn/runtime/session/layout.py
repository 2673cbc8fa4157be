"""Define the paths in the folder of a run, and check what may be replaced."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from mpn._common.files import (
    PARTIAL_SUFFIX,
    create_temporary,
    output_errors,
    remove_temporaries,
)
from mpn.errors import OutputError
from mpn.runtime.media.overlay import OverlayWriter
from mpn.runtime.media.video import VideoSource
from mpn.runtime.media.video_images import ImageSequence
from mpn.types import StepResult

RUN_JSON_SCHEMA = 1

_DAVIS_IMAGES = "JPEGImages"
DAVIS_EXTRAS: Final = "_runs"
"""Folder of the files other than masks, for a data set in DAVIS layout."""

_USUAL_NAME_BYTES = 255
_FRAME_PARTIAL = re.compile(r".+\.(?:png|npz)(?:\.[0-9a-f]{16})?\.partial", re.DOTALL)
"""Unfinished file of one frame; version 0.1 wrote it without a random part."""


@dataclass(frozen=True)
class ResultPaths:
    """Paths that a run writes.

    Masks go to ``OUT/masks/*.png``, all other files to ``OUT``. If the video is a sequence of a
    data set in DAVIS layout, masks go to ``OUT/<sequence>/*.png``, which the official evaluator
    reads, and all other files to ``OUT/_runs/<sequence>/``, which it ignores.

    Attributes:
        out: Folder that the user named.
        masks: Folder of the masks.
        folder: Folder of all other files.
    """

    out: Path
    masks: Path
    folder: Path

    @property
    def probs(self) -> Path:
        """Folder of the probabilities."""
        return self.folder / "probs"

    @property
    def before(self) -> Path:
        """Folder of the masks that corrections replaced."""
        return self.folder / "before"

    @property
    def review(self) -> Path:
        """Page with the frames that are worth a look."""
        return self.folder / "review.html"

    @property
    def overlay(self) -> Path:
        """Video with the masks drawn on it."""
        return self.folder / "overlay.mp4"

    @property
    def tracks(self) -> Path:
        """Tracks of the objects, one line per frame."""
        return self.folder / "tracks.jsonl"

    @property
    def rle(self) -> Path:
        """Masks as COCO RLE."""
        return self.folder / "rle.jsonl"

    @property
    def run_json(self) -> Path:
        """Report of the run: inputs, options, versions and times."""
        return self.folder / "run.json"

    @property
    def run_partial_json(self) -> Path:
        """Report of a run that has not ended; it remains if the run is killed."""
        return self.folder / "run.partial.json"

    @property
    def growing(self) -> tuple[Path, ...]:
        """Files that are written during the whole run."""
        return (self.overlay, self.tracks, self.rle)


def result_paths(out: Path, video: VideoSource) -> ResultPaths:
    """Return the paths of a run on ``video`` if the user names ``out``."""
    if isinstance(video, ImageSequence) and _is_davis_sequence(video.folder.resolve()):
        return ResultPaths(out, out / video.name, out / DAVIS_EXTRAS / video.name)
    return ResultPaths(out, out / "masks", out)


def davis_sequence(source: str) -> str | None:
    """Return the name of a sequence in DAVIS layout; None for other videos.

    Args:
        source: See :func:`mpn.runtime.media.video.open_video`. It is not opened.
    """
    path = Path(source)
    if not os.path.isdir(path):  # unlike Path.is_dir, False for a name that is too long
        if os.path.exists(path) or "%" not in path.name:
            return None
        path = path.parent
    folder = path.resolve()
    return folder.name if _is_davis_sequence(folder) else None


def _is_davis_sequence(folder: Path) -> bool:
    # JPEGImages/480p/<sequence>, or YouTube-VOS without 480p
    return _DAVIS_IMAGES in [parent.name for parent in folder.parents[:2]]


def check_out(out: Path) -> None:
    """Raise OutputError unless ``out`` is a writable folder or can be created.

    Nothing is created. Writing may still fail later (read-only or full file system).
    """
    with output_errors(out):
        existing = next((path for path in (out, *out.absolute().parents) if path.exists()), None)
    if existing is None or not existing.is_dir():
        raise OutputError(f"cannot write to {out}: {existing or out} is a file, not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise OutputError(
            f"cannot write to {out}: no permission to write in {existing}; choose another with -o"
        )


def check_not_input(paths: ResultPaths, video: VideoSource) -> None:
    """Raise OutputError if results would replace the video or lie in its images."""
    if isinstance(video, ImageSequence):
        images = video.folder.resolve()
        if images in (paths.out.resolve(), *paths.out.resolve().parents):
            raise OutputError(
                f"the results would be written into the images of {video.address}: choose another "
                "folder with -o"
            )
    source = video.folder if isinstance(video, ImageSequence) else Path(video.address)
    written = {path.resolve() for path in (paths.masks, paths.probs, *paths.growing)}
    if source.resolve() in written:
        raise OutputError(
            f"the results would be written over the video {video.address}: choose another folder "
            "with -o"
        )


def check_writable(paths: ResultPaths, save: Iterable[str], video: VideoSource) -> None:
    """Check, before any work, that the results of a run can be created.

    Args:
        paths: Paths of the run.
        save: Results of the run.
        video: Its video.

    Raises:
        OutputError: If a folder cannot be written, the name of a file is too long, or only an
            overlay is requested and the encoder refuses its size or times.
    """
    kinds = set(save)
    names = [video.first_frame.name]
    if isinstance(video, ImageSequence):
        names += video.frame_names
    longest_name = max(names, key=lambda name: len(os.fsencode(name)))
    folders = [paths.folder]
    folders += [paths.masks] if "masks" in kinds else []
    folders += [paths.probs] if "probs" in kinds else []
    for folder in folders:
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        with output_errors(folder):
            create_temporary(existing / "check").unlink()
    if kinds == {"overlay"}:
        _check_overlay(paths, video)
    for folder, suffix in ((paths.masks, ".png"), (paths.probs, ".npz")):
        if folder not in folders:
            continue
        name_bytes = len(os.fsencode(longest_name + suffix))
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        if name_bytes > (most := _longest_name_bytes(existing)):
            raise OutputError(
                f"cannot write {folder}: the name of frame {longest_name[:40]}... with {suffix} "
                f"has {name_bytes} bytes, but the file system takes {most}: rename the frames"
            )


def _check_overlay(paths: ResultPaths, video: VideoSource) -> None:
    """Encode the first frame to a file that is removed, before earlier results are."""
    existing = next(path for path in (paths.folder, *paths.folder.parents) if path.exists())
    frame, size_hw = video.first_frame, video.size_hw
    writer = OverlayWriter(
        existing / paths.overlay.name,
        size_hw=size_hw,
        fps=video.fps,
        time_base=video.time_base,
        sample_aspect_ratio=video.sample_aspect_ratio,
    )
    try:
        labels, probs = np.zeros(size_hw, np.uint8), np.empty((0, *size_hw), np.float32)
        writer.write(frame, StepResult(frame.index, labels, probs, (), ()))
    finally:
        writer.discard()


def _longest_name_bytes(folder: Path) -> int:
    try:
        return os.pathconf(folder, "PC_NAME_MAX")
    except (AttributeError, OSError, ValueError):  # Windows, and some network file systems
        return _USUAL_NAME_BYTES


def remove_partials(paths: ResultPaths) -> None:
    """Remove the unfinished files of a killed run, except the journal of the tracks."""
    for folder in {paths.masks, paths.probs, paths.before}:
        if folder.is_dir() and not folder.is_symlink():
            for path in folder.glob(f"*{PARTIAL_SUFFIX}"):
                if _FRAME_PARTIAL.fullmatch(path.name):
                    path.unlink(missing_ok=True)
    for path in paths.growing:
        remove_temporaries(path, with_journal=path != paths.tracks)
