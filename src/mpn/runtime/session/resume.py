"""Resume an interrupted run: compare the runs, and find the frame to continue at.

A resumed run starts from the last mask, not from the soft probability that the interrupted run had
in memory. An object that was lost there stays lost, unless OSVOS re-detects it. First areas,
colours and fine-tuned weights are computed again from the masks of the user. run.json gives the
frame at which the run was resumed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from mpn._common.records import record_from_json
from mpn.errors import InputError, MaskError, OutputError
from mpn.masks import load_labels
from mpn.runtime.options import CONSTANTS_OF_0_1, OPTIONS_OF_0_1
from mpn.runtime.session.earlier import EarlierFrames, ListedCheck
from mpn.runtime.session.layout import ResultPaths
from mpn.runtime.session.propagate import PipelineLike, apply_corrections, iterate_frames
from mpn.types import MAX_OBJECT_ID, Frame, StepResult, UInt8Array

FIELDS_OF_0_1: Mapping[str, str] = {
    "adapt": "finetune",
    "options.osvos": "options.osvos.mode",
    **{f"options.{old}": f"options.{new}" for old, new in OPTIONS_OF_0_1.items()},
    **{f"options.{old}": f"a constant, {value}" for old, value in CONSTANTS_OF_0_1.items()},
}
"""Fields of a fingerprint in version 0.1 -> their names now."""


@dataclass(frozen=True)
class ResumePoint:
    """Frame of an earlier run from which a new one can continue.

    Attributes:
        frame_index: Index of the frame; its mask is the state to start from.
        track_lines: Lines of tracks.jsonl up to and including the frame.
        object_ids: Ids of the tracked objects in each of these frames.
    """

    frame_index: int
    track_lines: tuple[str, ...]
    object_ids: tuple[tuple[int, ...], ...]


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
            f"compute it again, or run without --resume and with --mask {index}:{path}"
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


def resumed_frames(
    frames: Iterable[Frame],
    pipeline: PipelineLike,
    paths: ResultPaths,
    point: ResumePoint,
    labels: UInt8Array,
    corrections: Mapping[int, UInt8Array],
) -> Iterator[tuple[Frame, StepResult]]:
    """Yield the earlier masks up to the resume point, then run the pipeline.

    Args:
        frames: Frames of the whole video, from the first.
        pipeline: Open.
        paths: Paths of the earlier masks.
        point: Frame to continue at.
        labels: (H, W) uint8, the user's mask of the first frame.
        corrections: As for :func:`mpn.runtime.session.propagate.propagate_frames`.

    Yields:
        Each frame with its result. Before the resume point that is the earlier mask, without
        probabilities and tracks.

    Raises:
        MaskError: If an earlier mask cannot be read.
        OutputError: If the video ends before the resume point.
    """
    iterator = iter(frames)
    followed = point.object_ids
    first_index = point.frame_index - len(followed) + 1
    for position, frame in enumerate(iterator):
        if position == 0:
            pipeline.start(frame.rgb, labels)
        earlier = _mask_of(paths, frame)
        is_last = frame.index == point.frame_index
        given = corrections.get(frame.index)
        if given is not None or is_last:
            known = np.where(np.isin(earlier, pipeline.object_ids), earlier, 0).astype(np.uint8)
            result = pipeline.resume_at(frame.rgb, known)
            if given is not None:
                result = apply_corrections(pipeline, given, result)
        if not is_last:
            yield frame, _earlier_result(frame, earlier, followed[frame.index - first_index])
            continue
        later = {index: mask for index, mask in corrections.items() if index > frame.index}
        yield from iterate_frames(
            chain([frame], iterator), pipeline, partial(_found, result), later
        )
        return
    raise video_too_short(point)


def video_too_short(point: ResumePoint) -> OutputError:
    """Return the error for a video that has fewer frames than the earlier run."""
    return OutputError(
        f"cannot resume at frame {point.frame_index}: the video ends before it; run again without "
        "--resume"
    )


def _found(result: StepResult, frame: Frame) -> StepResult:
    return result


def find_resume_point(
    paths: ResultPaths, frames: EarlierFrames, whole: int, first_frame: Frame
) -> ResumePoint | None:
    """Find the last frame with a readable mask that holds an object.

    Args:
        paths: Paths of the earlier run.
        frames: Its frames.
        whole: Number of leading frames that can be used.
        first_frame: First frame of the video; the run must have started there.

    Returns:
        None if there is none.
    """
    if not whole or frames.entries[0].name != first_frame.name:
        return None
    size_hw = (first_frame.rgb.shape[0], first_frame.rgb.shape[1])
    for count in range(whole, 0, -1):
        path = paths.masks / f"{frames.entries[count - 1].name}.png"
        try:  # an empty mask is no state to start from
            load_labels(path, size_hw=size_hw, max_objects=MAX_OBJECT_ID)
        except MaskError:
            continue
        return ResumePoint(
            first_frame.index + count - 1,
            frames.lines[:count],
            tuple(entry.object_ids for entry in frames.entries[:count]),
        )
    return None


def _mask_of(paths: ResultPaths, frame: Frame) -> UInt8Array:
    """Load the earlier mask of a frame; it may be empty."""
    path = paths.masks / f"{frame.name}.png"
    size_hw = (frame.rgb.shape[0], frame.rgb.shape[1])
    return load_labels(path, size_hw=size_hw, max_objects=MAX_OBJECT_ID, allow_empty=True)


def _earlier_result(frame: Frame, labels: UInt8Array, object_ids: tuple[int, ...]) -> StepResult:
    return StepResult(
        index=frame.index,
        labels=labels,
        probs=np.zeros((0, *labels.shape), np.float32),
        object_ids=object_ids,
        tracks=(),
    )


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
