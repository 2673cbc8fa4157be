"""Define the paths in the folder of a run, and check what may be replaced."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpn._common.files import PARTIAL_SUFFIX, output_errors, remove_temporaries
from mpn._common.records import read_json
from mpn.errors import OutputError
from mpn.runtime.media.video import VideoSource
from mpn.runtime.media.video_images import ImageSequence

RUN_JSON_SCHEMA = 1

_DAVIS_IMAGES = "JPEGImages"
_DAVIS_EXTRAS = "_runs"


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
    if isinstance(video, ImageSequence):
        parents = [parent.name for parent in video.folder.resolve().parents[:2]]
        if _DAVIS_IMAGES in parents:  # JPEGImages/480p/<sequence>, or YouTube-VOS without 480p
            return ResultPaths(out, out / video.name, out / _DAVIS_EXTRAS / video.name)
    return ResultPaths(out, out / "masks", out)


def check_out(out: Path) -> None:
    """Raise OutputError unless ``out`` is a writable folder or can be created.

    Nothing is created. Writing may still fail later (read-only or full file system).
    """
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


def load_earlier_run(paths: ResultPaths) -> dict[str, Any] | None:
    """Load the report of an earlier run in this folder, finished or not.

    Returns:
        None if there is none.

    Raises:
        OutputError: If it cannot be read.
    """
    for path in (paths.run_partial_json, paths.run_json):
        if not path.exists():
            continue
        try:
            report = read_json(path, OutputError)
        except OutputError as error:
            raise OutputError(
                f"cannot read {path} of an earlier run: remove it ({error})"
            ) from error
        if isinstance(report, dict) and report.get("schema_version") == RUN_JSON_SCHEMA:
            return report
        raise OutputError(f"{path} was written by another version: choose another folder with -o")
    return None


def remove_previous_results(
    paths: ResultPaths, earlier: Mapping[str, Any] | None, *, keep: Iterable[Path] = ()
) -> None:
    """Remove the results of an earlier run.

    Masks without a run.json may be drawn by hand. They are not removed; the function raises.

    Args:
        paths: Paths of this run.
        earlier: Report of the earlier run; None if there was none.
        keep: Files to keep: masks corrected in place and given to this run.

    Raises:
        OutputError: If there are masks without a report, or a file cannot be removed.
    """
    with output_errors(paths.out):
        masks = sorted(paths.masks.glob("*.png")) if paths.masks.is_dir() else []
        if earlier is None and masks:
            raise OutputError(
                f"{paths.masks} holds {len(masks)} PNG files that no earlier run wrote: "
                "choose another folder with -o"
            )
        if earlier is not None:
            kept = {path.resolve() for path in keep}
            masks = [path for path in masks if path.resolve() not in kept]
            stale = [*masks, *paths.probs.glob("*.npz"), *paths.growing]
            for path in [*stale, paths.run_json, paths.run_partial_json]:
                path.unlink(missing_ok=True)


def remove_partials(paths: ResultPaths) -> None:
    """Remove the unfinished files of a killed run."""
    for folder in {paths.masks, paths.probs}:
        if folder.is_dir():
            for path in folder.glob(f"*{PARTIAL_SUFFIX}"):
                path.unlink(missing_ok=True)
    for path in paths.growing:
        remove_temporaries(path)
