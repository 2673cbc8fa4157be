"""Resume an interrupted run: compare the runs, and find the frames to keep.

The forward pass continues from the mask of a kept frame, not from the soft probability that the
earlier run had in memory. An object that was lost there stays lost, unless OSVOS re-detects it.
First areas, colours and fine-tuned weights are computed again from the masks of the user. run.json
gives the last frame before the first one that was computed again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mpn._common.files import json_text
from mpn._common.records import record_from_json
from mpn.errors import InputError, OutputError
from mpn.masks import load_labels
from mpn.runtime.options import CONSTANTS_OF_0_1, OPTIONS_OF_0_1
from mpn.runtime.session.earlier import EarlierFrames, ListedCheck, ListedFrame, VideoMatch
from mpn.runtime.session.layout import ResultPaths
from mpn.runtime.session.passes import KeptFrames
from mpn.runtime.session.schedule import GivenMask, Schedule
from mpn.runtime.session.stepping import mask_after_end
from mpn.types import MAX_OBJECT_ID, UInt8Array

FIELDS_OF_0_1: Mapping[str, str] = {
    "adapt": "finetune",
    "options.osvos": "options.osvos.mode",
    **{f"options.{old}": f"options.{new}" for old, new in OPTIONS_OF_0_1.items()},
    **{f"options.{old}": f"a constant, {value}" for old, value in CONSTANTS_OF_0_1.items()},
}
"""Fields of a fingerprint in version 0.1 -> their names now."""


class ResumedFrames(KeptFrames):
    """Frames of an earlier run that are kept.

    Args:
        paths: Paths of the earlier run.
        size_hw: (height, width) of the video.
        entries: The kept frames.
        end: See :class:`mpn.runtime.session.passes.KeptFrames`.
    """

    def __init__(
        self,
        paths: ResultPaths,
        size_hw: tuple[int, int],
        entries: Iterable[ListedFrame],
        end: int | None = None,
    ) -> None:
        self._paths, self._size_hw = paths, size_hw
        listed = tuple(entries)
        self._names = {entry.frame: entry.name for entry in listed}
        self.object_ids = {entry.frame: entry.object_ids for entry in listed}
        self.end = end

    def labels(self, index: int) -> UInt8Array:
        """See :meth:`KeptFrames.labels`."""
        path = self._paths.masks / f"{self._names[index]}.png"
        return load_labels(path, size_hw=self._size_hw, max_objects=MAX_OBJECT_ID, allow_empty=True)


@dataclass(frozen=True)
class _EarlierVideo:
    end: int | None


@dataclass(frozen=True)
class _EarlierFingerprint:
    masks: Mapping[str, str]


@dataclass(frozen=True)
class _EarlierFolders:
    masks: str
    folder: str


@dataclass(frozen=True)
class _EarlierRun:
    """Fields of run.json that a resumed run reads or shows."""

    state: str
    saved: tuple[str, ...]
    frames: int
    object_ids: tuple[int, ...]
    out: _EarlierFolders
    video: _EarlierVideo
    fingerprint: _EarlierFingerprint


def check_resumable(report: Mapping[str, Any]) -> None:
    """Check that the run.json of an earlier run has the required fields.

    Raises:
        OutputError: If a field is missing or of another type; the message gives its path.
    """
    try:
        earlier = record_from_json(report, _EarlierRun, OutputError)
        for index in earlier.fingerprint.masks:
            if not index.isdecimal():
                raise OutputError(f"field 'fingerprint.masks' must name frames, got '{index}'")
    except OutputError as error:
        raise OutputError(
            f"cannot resume: the run.json of the earlier run is damaged ({error}); run again "
            "without --resume"
        ) from error


def check_end(frames: EarlierFrames, end: int | None) -> None:
    """Check that a resumed run does not end before the earlier run did.

    Raises:
        InputError: If it does: the masks after ``end`` would be of no run.
    """
    if end is not None and end < frames.end_index:
        raise InputError(
            f"cannot resume with the end at frame {end}: the earlier run has frames up to "
            f"{frames.end_index - 1}; set the end to {frames.end_index} or more, or run again "
            "without --resume"
        )


def check_unchanged(check: ListedCheck) -> None:
    """Check that no mask was changed since the earlier run wrote it.

    Raises:
        OutputError: If one was: it is neither a result of the run nor may it be replaced.
    """
    if check.changed is not None:
        index, path = check.changed
        raise OutputError(
            f"cannot resume: {path} was changed after the earlier run wrote it; remove it to "
            f"compute it again, or give it with --mask {index}:{path} to keep it as a correction"
        )


def check_same_run(earlier: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Compare two fingerprints (nested dicts of JSON values).

    Raises:
        InputError: If they differ; the message gives the first difference. If the earlier run has
            a field of version 0.1, the message gives its new name.
    """
    before, now = _leaves(earlier), _leaves(json.loads(json.dumps(current)))
    for name in sorted(before):
        old = name.partition(".")[0] if name.startswith("adapt.") else name
        if old in FIELDS_OF_0_1:
            raise InputError(
                f"cannot resume: field {old} of run.json is now {FIELDS_OF_0_1[old]}; run again "
                "without --resume"
            )
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            raise InputError(
                f"cannot resume: {name} was {before.get(name)} and is now {now.get(name)}; resume "
                "with the same video, masks, engines and options, or run again without --resume"
            )


def video_too_short(index: int) -> OutputError:
    """Return the error for a video that has fewer frames than the earlier run."""
    return OutputError(
        f"cannot resume at frame {index}: the video ends before it; run again without --resume"
    )


@dataclass(frozen=True)
class Resumed:
    """Frames and lines of an earlier run for a resumed one.

    Attributes:
        kept: The frames that are not computed again.
        lines: Lines of tracks.jsonl of all frames of the earlier run.
        stale: Frames of these lines that are computed again.
        resumed_at: Last frame before the first one that is computed; None if it is the first.
        is_done: Whether no frame is computed.
    """

    kept: ResumedFrames
    lines: tuple[str, ...]
    stale: frozenset[int]
    resumed_at: int | None
    is_done: bool


def resume(
    schedule: Schedule,
    earlier: Mapping[str, Any],
    frames: EarlierFrames,
    check: ListedCheck,
    match: VideoMatch | None,
    *,
    paths: ResultPaths,
    size_hw: tuple[int, int],
) -> Resumed:
    """Find the frames whose results would be the same if they were computed again.

    Args:
        schedule: Of this run.
        earlier: Report of the earlier run.
        frames: Its frames.
        check: Its files.
        match: The video compared with the one of the earlier run; None: a live source.
        paths: Paths of the earlier run.
        size_hw: (height, width) of the video.

    Raises:
        InputError: If a mask is given for a frame after the last one.
        OutputError: If the video ends before the frames of the earlier run.
    """
    first = schedule.first
    before = schedule_before(earlier, first)
    changed_at = frames.end_index if match is None else min(first + match.same, frames.end_index)
    kept: list[ListedFrame] = []
    lines: list[str] = []
    for line, entry in zip(frames.lines, frames.entries, strict=True):
        if entry.frame < first:
            continue
        inputs = schedule.inputs_of(entry.frame)
        found = before.inputs_of(entry.frame) if entry.inputs is None else entry.inputs
        one = schedule.backward_pass_of(entry.frame)
        last_read = entry.frame if one is None else one.source
        is_same = changed_at == frames.end_index or last_read < changed_at
        if entry.frame in check.whole and found == inputs and is_same:
            kept.append(entry)
            if entry.inputs is None:  # it depended on masks that were all forward
                line = json_text({**json.loads(line), "inputs": inputs})
        lines.append(line)
    kept_frames = {entry.frame for entry in kept}
    if match is not None and match.is_shorter and kept:
        raise video_too_short(max(kept_frames))
    is_whole = match is not None and not match.has_more
    if is_whole and schedule.mask_frames[-1] >= frames.end_index:
        raise mask_after_end(schedule.mask_frames[-1], frames.end_index)
    end = frames.end_index if is_whole else None
    missing = first
    while missing in kept_frames:
        missing += 1
    return Resumed(
        ResumedFrames(paths, size_hw, kept, end),
        tuple(lines),
        frozenset(entry.frame for entry in frames.entries) - kept_frames,
        missing - 1 if missing > first else None,
        is_done=earlier["state"] == "complete"
        and missing == end
        and _masks_of(earlier) == {k: (m.sha256, m.direction) for k, m in schedule.masks.items()},
    )


def _masks_of(report: Mapping[str, Any]) -> dict[int, tuple[str, str]]:
    """Return digest and direction of each mask of an earlier run."""
    if "masks" in report:
        return {m["frame"]: (m["sha256"], m["direction"]) for m in report["masks"]}
    masks = schedule_before(report, 0).masks
    return {index: (mask.sha256, "both") for index, mask in masks.items()}


def schedule_before(report: Mapping[str, Any], first: int) -> Schedule:
    """Return the schedule of a run before 0.3: all masks were forward only."""
    masks = {
        int(index): GivenMask(digest, (), "forward")
        for index, digest in report["fingerprint"]["masks"].items()
    }
    return Schedule(first, masks)


def _leaves(value: Any, name: str = "") -> dict[str, Any]:
    """Flatten nested JSON to one dict: ``{"video.size_hw.0": 480, ...}``."""
    if isinstance(value, Mapping):
        items = [(str(key), nested) for key, nested in value.items()]
    elif isinstance(value, list):
        items = [(str(position), nested) for position, nested in enumerate(value)]
    else:
        return {name: value}
    leaves: dict[str, Any] = {}
    for key, nested in items:
        leaves |= _leaves(nested, f"{name}.{key}" if name else key)
    return leaves
