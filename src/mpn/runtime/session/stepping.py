"""Step a pipeline through frames: the parts that all passes share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Protocol, runtime_checkable

import numpy as np

from mpn._common.array_likes import rgb_from
from mpn.cuda.api import is_on_device
from mpn.errors import InputError
from mpn.runtime.state import object_ids_from_labels
from mpn.types import ArrayLike, Frame, StepResult, UInt8Array


class PipelineLike(Protocol):
    """Part of :class:`mpn.runtime.pipeline.Pipeline` that a run uses."""

    @property
    def object_ids(self) -> tuple[int, ...]:
        """Ids of the tracked objects."""

    def start(self, rgb: UInt8Array, labels: UInt8Array) -> StepResult:
        """Start with the first frame and its labels."""

    def step(self, rgb: UInt8Array) -> StepResult:
        """Segment the next frame."""

    def correct(self, labels: UInt8Array) -> StepResult:
        """Replace objects of the current frame."""

    def add_objects(self, labels: UInt8Array) -> StepResult:
        """Add objects to the current frame."""

    def resume_at(self, rgb: UInt8Array, labels: UInt8Array) -> StepResult:
        """Continue at another frame, from labels of an earlier run."""


@runtime_checkable
class SupportsPrefetch(Protocol):
    """A pipeline that can compute parts of the next frame early."""

    @property
    def supports_prefetch(self) -> bool:
        """Whether :meth:`prefetch_frame` makes the next frame faster."""

    def prefetch_frame(self, rgb: UInt8Array) -> None:
        """Announce the frame after the one that :meth:`step` gets next."""


def pairs_for(
    pipeline: PipelineLike, frames: Iterable[Frame], *, is_live: bool = False
) -> Iterator[tuple[Frame, Frame | None]]:
    """Yield each frame with the next one, if the pipeline prefetches it.

    The newest frame of a live source must not wait for the next.
    """
    if is_live or not (isinstance(pipeline, SupportsPrefetch) and pipeline.supports_prefetch):
        return ((frame, None) for frame in frames)
    return with_lookahead(frames)


def with_lookahead(frames: Iterable[Frame]) -> Iterator[tuple[Frame, Frame | None]]:
    """Yield each frame with the next one, which is read first.

    An error while reading a frame is raised when that frame itself is due.
    """
    reader = iter(frames)
    frame = next(reader, None)
    while frame is not None:
        following, failure = None, None
        try:
            following = next(reader, None)
        except Exception as error:
            failure = error
        yield frame, following
        if failure is not None:
            raise failure
        frame = following


def step(pipeline: PipelineLike, frame: Frame, following: Frame | None) -> StepResult:
    """Segment a frame, and announce the one after it."""
    if following is not None and isinstance(pipeline, SupportsPrefetch):
        pipeline.prefetch_frame(following.rgb)
    return pipeline.step(frame.rgb)


def apply_corrections(
    pipeline: PipelineLike, labels: UInt8Array, stepped: StepResult
) -> StepResult:
    """Correct the known objects of the current frame, and add the new ones."""
    known = set(pipeline.object_ids)
    given = object_ids_from_labels(labels)
    result = stepped
    timings = dict(stepped.timings)
    for ids, apply in (
        ([k for k in given if k in known], pipeline.correct),
        ([k for k in given if k not in known], pipeline.add_objects),
    ):
        if ids:
            result = apply(np.where(np.isin(labels, ids), labels, 0).astype(np.uint8))
            for stage, seconds in result.timings.items():
                timings[stage] = timings.get(stage, 0.0) + seconds
    return replace(result, timings=timings, labels_before=stepped.labels)


def frame_from_array(array: ArrayLike, index: int) -> Frame:
    """Make a frame of an (H, W, 3) uint8 RGB array, one per second.

    NumPy arrays are copied: frames wait in a queue, and the caller may fill one array again and
    again. Arrays in device memory are not.
    """
    rgb = array if is_on_device(array) else rgb_from(array).copy()
    return Frame(index=index, rgb=rgb, pts_s=Fraction(index), name=f"{index:05d}")


def frames_from_arrays(arrays: Iterable[ArrayLike]) -> Iterator[Frame]:
    """Yield arrays as frames, see :func:`frame_from_array`.

    Raises:
        InputError: If ``arrays`` is not iterable.
    """
    try:
        numbered = enumerate(arrays)
    except TypeError as error:
        raise InputError(
            "a video must be a path, an open source or an iterable of frames, got "
            f"{'None' if arrays is None else f'a {type(arrays).__name__}'}"
        ) from error
    for index, given in numbered:
        yield frame_from_array(given, index)


def frames_between(frames: Iterable[Frame], start: int | None, end: int | None) -> Iterator[Frame]:
    """Yield the frames with an index in ``start``..``end - 1``; reads none after."""
    for frame in frames:
        if frame.index >= (start or 0):
            yield frame
        if end is not None and frame.index + 1 >= end:
            return


def mask_after_end(index: int, count: int) -> InputError:
    """Return the error for a mask of a frame after the last one."""
    return InputError(
        f"a mask was given for frame {index}, but the last frame is {count - 1}: "
        "frames are numbered from 0"
    )
