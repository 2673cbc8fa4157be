"""Read an earlier run in the same folder, and compare its files and its video."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpn._common.files import (
    check_plain_file,
    is_nonempty_file,
    journal_path,
    sha256_of_file,
)
from mpn._common.records import json_from_text, read_json, record_from_json
from mpn.errors import MaskError, OutputError, VideoError
from mpn.masks import load_labels
from mpn.runtime.media.writers import crc32_of_frame
from mpn.runtime.session.layout import RUN_JSON_SCHEMA, ResultPaths
from mpn.types import MAX_OBJECT_ID, Frame

_NAME = re.compile(r'"name": ("(?:[^"\\]|\\.)*")')


@dataclass(frozen=True)
class _ObjectTrack:
    object_id: int


@dataclass(frozen=True)
class ListedFrame:
    """One line of tracks.jsonl, as far as a resumed run reads it.

    Attributes:
        frame: Index of the frame.
        name: Name of its mask, without suffix.
        objects: The tracked objects.
        mask_sha256: Digest of the mask's file; None if no mask was saved, and before 0.3.
        frame_crc32: Checksum of the frame's pixels; None if they were on a device, and before 0.3.
        inputs: Digest of the masks that it depends on, see ``Schedule.inputs_of``; None before 0.3.
    """

    frame: int
    name: str
    objects: tuple[_ObjectTrack, ...]
    mask_sha256: str | None = None
    frame_crc32: str | None = None
    inputs: str | None = None

    @property
    def object_ids(self) -> tuple[int, ...]:
        """Ids of the tracked objects."""
        return tuple(track.object_id for track in self.objects)


@dataclass(frozen=True)
class EarlierFrames:
    """Frames that tracks.jsonl of an earlier run lists.

    Attributes:
        lines: The lines that can be read, one per frame, by frame.
        entries: Their content.
        names: Names of all listed frames, also those of damaged lines.
        end_index: Index after the last listed frame; 0 if none is listed.
    """

    lines: tuple[str, ...] = ()
    entries: tuple[ListedFrame, ...] = ()
    names: frozenset[str] = frozenset()
    end_index: int = 0


@dataclass(frozen=True)
class ListedCheck:
    """Result of :func:`check_listed_files`.

    Attributes:
        whole: Frames whose files are all there and whole.
        changed: First mask that is readable and not the one that was written; None if there is
            none.
    """

    whole: frozenset[int]
    changed: tuple[int, Path] | None = None


@dataclass(frozen=True)
class VideoMatch:
    """Result of :func:`match_video`.

    Attributes:
        same: Number of leading frames that are those of the earlier run, as far as it lists them.
        has_more: Whether the video has frames after the listed ones.
        is_shorter: Whether the video ends before the listed frames.
    """

    same: int
    has_more: bool
    is_shorter: bool


def load_earlier_run(paths: ResultPaths) -> dict[str, Any] | None:
    """Load the report of an earlier run in this folder, finished or not.

    Returns:
        None if there is none. A file of 0 bytes counts as none.

    Raises:
        OutputError: If it cannot be read.
    """
    for path in (paths.run_partial_json, paths.run_json):
        if not path.exists() or (path.is_file() and not is_nonempty_file(path)):
            continue
        try:
            report = read_json(path, OutputError)
        except OutputError as error:
            raise OutputError(
                f"cannot read {path} of an earlier run: remove it, or choose another folder with "
                f"-o ({error})"
            ) from error
        if isinstance(report, dict) and report.get("schema_version") == RUN_JSON_SCHEMA:
            return report
        raise OutputError(f"{path} was written by another version: choose another folder with -o")
    return None


def load_earlier_frames(paths: ResultPaths) -> EarlierFrames:
    """Read the list of frames of an earlier run; the journal of a killed run first.

    Raises:
        OutputError: If a file cannot be read.
    """
    found: list[EarlierFrames] = []
    for path in (journal_path(paths.tracks), paths.tracks):
        if is_nonempty_file(path):
            try:
                text = path.read_bytes().decode("utf-8", "replace")
            except OSError as error:
                raise OutputError(f"cannot read {path} of an earlier run: {error}") from error
            found.append(_frames_from_text(text))
    if not found:
        return EarlierFrames()
    names = frozenset().union(*(frames.names for frames in found))
    return EarlierFrames(found[0].lines, found[0].entries, names, found[0].end_index)


def _frames_from_text(text: str) -> EarlierFrames:
    found: dict[int, tuple[str, ListedFrame]] = {}
    names: set[str] = set()
    for line in text.splitlines():
        try:
            entry = record_from_json(json_from_text(line, OutputError), ListedFrame, OutputError)
        except OutputError:  # truncated when the run was killed, or damaged
            if match := _NAME.search(line):
                names.add(json.loads(match[1]))
            continue
        names.add(entry.name)
        found[entry.frame] = line, entry  # a resumed run appends frames that it computed again
    # A name is a file name: a changed list must not lead out of the folder.
    names = {name for name in names if name and Path(name).name == name and "\0" not in name}
    ordered = [found[index] for index in sorted(found)]
    lines, entries = tuple(line for line, _ in ordered), tuple(entry for _, entry in ordered)
    return EarlierFrames(lines, entries, frozenset(names), max(found, default=-1) + 1)


def check_listed_files(
    paths: ResultPaths,
    frames: EarlierFrames,
    size_hw: tuple[int, int],
    saved: Iterable[str],
    *,
    given: Iterable[Path] = (),
) -> ListedCheck:
    """Check that the listed masks and probabilities are there and whole.

    Args:
        paths: Paths of the earlier run.
        frames: Its frames.
        size_hw: (height, width) of the video.
        saved: Kinds of results that the run wrote; without masks no frame is whole.
        given: Masks of the user, which may be results that were corrected in place.
    """
    kinds = set(saved)
    own = {path.resolve() for path in given}
    whole: set[int] = set()
    changed: tuple[int, Path] | None = None
    for entry in frames.entries:
        if entry.name not in frames.names or "masks" not in kinds:
            continue
        path = paths.masks / f"{entry.name}.png"
        state = _mask_state(path, entry, size_hw)
        if state == "changed" and changed is None and path.resolve() not in own:
            changed = entry.frame, path
        if state == "whole" and (
            "probs" not in kinds or _is_whole_zip(paths.probs / f"{entry.name}.npz")
        ):
            whole.add(entry.frame)
    return ListedCheck(frozenset(whole), changed)


def first_edited_mask(
    paths: ResultPaths, frames: EarlierFrames, *, given: Iterable[Path] = ()
) -> tuple[int, Path] | None:
    """Return frame and file of the first mask that was edited since it was written.

    Args:
        paths: Paths of the earlier run.
        frames: Its frames.
        given: Masks of the user, which may be results that were corrected in place.
    """
    own = {path.resolve() for path in given}
    for entry in frames.entries:
        path = paths.masks / f"{entry.name}.png"
        if entry.name not in frames.names or path.resolve() in own:
            continue
        if _mask_state(path, entry, None) == "changed":
            return entry.frame, path
    return None


def _mask_state(path: Path, entry: ListedFrame, size_hw: tuple[int, int] | None) -> str:
    try:
        check_plain_file(path)
        content = path.read_bytes()
    except OSError:
        return "missing"
    if hashlib.sha256(content).hexdigest() == entry.mask_sha256:
        return "whole"
    try:
        labels = load_labels(path, size_hw=size_hw, max_objects=MAX_OBJECT_ID, allow_empty=True)
    except MaskError:
        return "missing"
    if entry.mask_sha256 is None:
        return "whole"
    return "changed" if labels.any() else "missing"


def _is_whole_zip(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def match_video(video: Iterable[Frame], frames: EarlierFrames, first_index: int) -> VideoMatch:
    """Compare the frames of a video with those that an earlier run has read.

    Args:
        video: All frames, from the first.
        frames: Frames of the earlier run.
        first_index: Index of the first frame.
    """
    same = count = 0
    listed = frames.end_index - first_index
    by_index = {entry.frame: entry for entry in frames.entries}
    try:
        for frame in video:
            if count == listed:
                return VideoMatch(same, has_more=True, is_shorter=False)
            entry = by_index.get(frame.index)
            same += same == count and (
                entry is None
                or (entry.name == frame.name and entry.frame_crc32 in (None, crc32_of_frame(frame)))
            )
            count += 1
    except VideoError:  # the run itself raises it, after the frames before it
        return VideoMatch(same, has_more=True, is_shorter=False)
    return VideoMatch(same, has_more=False, is_shorter=count < listed)


def are_files_whole(paths: ResultPaths, earlier: Mapping[str, Any]) -> bool:
    """Return whether the files of the whole run have the content that was written.

    Runs before 0.3 kept no digests: their files need only have content.
    """
    by_name = {path.name: path for path in paths.growing}
    files = earlier.get("files")
    if isinstance(files, Mapping):
        return all(
            name in by_name
            and is_nonempty_file(by_name[name])
            and sha256_of_file(by_name[name]) == digest
            for name, digest in files.items()
        )
    kinds = {"overlay": paths.overlay, "rle": paths.rle}
    return all(is_nonempty_file(kinds[kind]) for kind in earlier["saved"] if kind in kinds)
