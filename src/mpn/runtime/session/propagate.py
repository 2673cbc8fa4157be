"""Segment a whole video, one frame in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from mpn._common.array_likes import labels_from, rgb_from
from mpn._common.concurrency import Prefetch
from mpn._common.options import refuse_old_arguments
from mpn.cuda.api import is_on_device
from mpn.errors import InputError
from mpn.formats import VideoFacts, read_masks
from mpn.runtime.media.video import Decode, VideoSource, open_video
from mpn.runtime.session.mask_frames import frame_of_mask
from mpn.runtime.state import object_ids_from_labels
from mpn.types import ArrayLike, Frame, StepResult, UInt8Array, check_labels

if TYPE_CHECKING:
    from mpn.engines.open import Backend
    from mpn.runtime.options import PipelineOptions

Labels = UInt8Array | str | Path
"""Object ids as an array, (H, W) uint8, or as the path of a mask file."""


class PipelineLike(Protocol):
    """Part of :class:`mpn.runtime.pipeline.Pipeline` that :func:`propagate` uses."""

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


@refuse_old_arguments({"adapt": "options=PipelineOptions(finetune=...)"})
def propagate(
    video: str | Path | VideoSource | Iterable[ArrayLike],
    mask: ArrayLike | str | Path,
    *,
    corrections: Mapping[int, ArrayLike | str | Path] | None = None,
    engine_dir: str | Path | None = None,
    backend: Backend = "auto",
    threads: int | None = None,
    options: PipelineOptions | None = None,
    pipeline: PipelineLike | None = None,
    start: int | None = None,
    end: int | None = None,
    decode: Decode = "auto",
) -> Iterator[StepResult]:
    """Segment a video, frame by frame.

    A generator: it opens video and engines when the first result is requested, and closes them
    when it ends or is closed. Memory does not grow with the length of the video. Frames are read
    ahead in a thread. Labels are copied at the call, and NumPy frames when they are read, so that
    the caller may reuse these arrays.

    Args:
        video: An address for :func:`mpn.runtime.media.video.open_video`, an open source (which the
            caller closes), or frames as for :meth:`mpn.runtime.pipeline.Pipeline.step`.
        mask: Labels of the first frame, as for ``Pipeline.start``, or a file.
        corrections: Frame index in the video -> labels of that frame. Objects with a known id are
            corrected, others are added. Objects that are not in the labels do not change. For a
            folder of images, a file with the name of an image belongs to that image.
        engine_dir: Engine directory of mpn-export; None for the one in the package.
        backend: See :func:`mpn.engines.open.open_engines`.
        threads: See :meth:`mpn.runtime.pipeline.Pipeline.from_engines`.
        options: See :class:`mpn.runtime.options.PipelineOptions`.
        pipeline: Used instead of opening engines; the caller closes it.
        start: Index of the first frame, see ``open_video``; ``mask`` belongs to it.
        end: Index of the frame to stop before.
        decode: Decoder of a video file that is given by its path; see
            :func:`mpn.runtime.media.video_nvdec.choose_decoder`.

    Yields:
        The result of each frame, the first (``mask`` as given) included.

    Raises:
        InputError: If the video or a mask cannot be used, or a correction lies outside the video.
        EngineError: If the engines cannot be opened or fail.
    """
    return _propagate(
        video,
        _own(mask),
        {index: _own(given) for index, given in (corrections or {}).items()},
        engine_dir=engine_dir,
        backend=backend,
        threads=threads,
        options=options,
        pipeline=pipeline,
        start=start,
        end=end,
        decode=decode,
    )


def _own(labels: ArrayLike) -> Labels:
    """Copy labels that are no file into an array."""
    return labels if isinstance(labels, str | Path) else labels_from(labels).copy()


def _propagate(
    video: str | Path | VideoSource | Iterable[ArrayLike],
    mask: Labels,
    corrections: Mapping[int, Labels],
    *,
    engine_dir: str | Path | None,
    backend: Backend,
    threads: int | None,
    options: PipelineOptions | None,
    pipeline: PipelineLike | None,
    start: int | None,
    end: int | None,
    decode: Decode,
) -> Iterator[StepResult]:
    with ExitStack() as stack:
        opened = None
        end_index = end
        frames: Iterable[Frame] = ()
        if isinstance(video, str | Path):
            opened = stack.enter_context(open_video(video, start=start, end=end))
            first: Frame | None = opened.first_frame
            end_index = opened.end_index
        else:
            is_source = isinstance(video, VideoSource)
            frames = video if is_source else frames_from_arrays(video)  # type: ignore[assignment]
            reader = stack.enter_context(Prefetch(frames_between(frames, start, end)))
            first = next(reader, None)
        if first is None:
            raise InputError("the video has no frame between start and end")
        size_hw = (first.rgb.shape[0], first.rgb.shape[1])
        if opened is not None:
            corrections = _by_frame(mask, corrections, opened)
        labels = _labels(mask, size_hw)
        later = {index: _labels(given, size_hw) for index, given in corrections.items()}
        check_corrections(later, first.index, end_index)
        if pipeline is None:
            from mpn.runtime.pipeline import Pipeline

            pipeline = stack.enter_context(
                Pipeline.from_engines(engine_dir, backend=backend, threads=threads, options=options)
            )
        if opened is None:
            frames = chain([first], reader)
        else:
            from mpn.runtime.media.video_nvdec import choose_decoder, device_of

            chosen = choose_decoder(opened, decode, device_of(pipeline))
            frames = stack.enter_context(Prefetch(stack.enter_context(chosen)))
        del first  # otherwise it stays in memory to the end
        for _, result in propagate_frames(frames, pipeline, labels, later):
            yield result


def propagate_frames(
    frames: Iterable[Frame],
    pipeline: PipelineLike,
    labels: UInt8Array,
    corrections: Mapping[int, UInt8Array] | None = None,
    *,
    is_live: bool = False,
) -> Iterator[tuple[Frame, StepResult]]:
    """Start the pipeline, step through the frames, and apply corrections.

    A pipeline that prefetches gets each frame while it segments the one before, unless the
    source is live: the newest frame of a live source must not wait for the next.

    Args:
        frames: Frames in order; the first one starts the pipeline.
        pipeline: Open; closed by the caller.
        labels: (H, W) uint8 ids of the first frame.
        corrections: Frame index -> (H, W) uint8 ids, see :func:`propagate`.
        is_live: Whether the source is live.

    Yields:
        Each frame with its result.

    Raises:
        InputError: If the video ends before a frame that was given labels.
    """
    return iterate_frames(
        frames,
        pipeline,
        lambda frame: pipeline.start(frame.rgb, labels),
        corrections or {},
        is_live=is_live,
    )


def iterate_frames(
    frames: Iterable[Frame],
    pipeline: PipelineLike,
    begin: Callable[[Frame], StepResult],
    corrections: Mapping[int, UInt8Array],
    *,
    is_live: bool = False,
) -> Iterator[tuple[Frame, StepResult]]:
    """Run :func:`propagate_frames` with ``begin`` for the first frame."""
    pending = dict(corrections)
    last_index = -1
    can_prefetch = isinstance(pipeline, SupportsPrefetch) and pipeline.supports_prefetch
    pairs: Iterable[tuple[Frame, Frame | None]] = (
        ((frame, None) for frame in frames)
        if is_live or not can_prefetch
        else with_lookahead(frames)
    )
    for position, (frame, following) in enumerate(pairs):
        if isinstance(pipeline, SupportsPrefetch) and following is not None:
            pipeline.prefetch_frame(following.rgb)
        last_index = frame.index
        result = pipeline.step(frame.rgb) if position else begin(frame)
        given = pending.pop(frame.index, None)
        if given is not None:
            result = apply_corrections(pipeline, given, result)
        yield frame, result
    _check_before_end(pending, last_index + 1)


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


def check_corrections(
    corrections: Mapping[int, Any], first_index: int, end_index: int | None
) -> None:
    """Check that all corrections are for frames after the first.

    Args:
        corrections: Frame index -> labels.
        first_index: Index of the first frame.
        end_index: Index after the last frame, or an upper bound; None if unknown.

    Raises:
        InputError: If one is for another frame.
    """
    early = min(corrections, default=first_index + 1)
    if early <= first_index:
        raise InputError(
            f"a second mask was given for frame {early}, but the video begins at frame "
            f"{first_index} with the first mask: corrections belong to later frames"
        )
    if end_index is not None:
        _check_before_end(corrections, end_index)


def _check_before_end(corrections: Mapping[int, Any], end_index: int) -> None:
    late = [index for index in corrections if index >= end_index]
    if late:
        raise InputError(
            f"a mask was given for frame {min(late)}, but the last frame is {end_index - 1}: "
            "frames are numbered from 0"
        )


def frames_from_arrays(arrays: Iterable[ArrayLike]) -> Iterator[Frame]:
    """Yield (H, W, 3) uint8 RGB arrays as frames, one per second.

    NumPy arrays are copied: frames wait in a queue, and the caller may fill one array again and
    again. Arrays in device memory are not.
    """
    try:
        numbered = enumerate(arrays)
    except TypeError as error:
        raise InputError(
            "a video must be a path, an open source or an iterable of frames, got "
            f"{'None' if arrays is None else f'a {type(arrays).__name__}'}"
        ) from error
    for index, given in numbered:
        rgb = given if is_on_device(given) else rgb_from(given).copy()
        yield Frame(index=index, rgb=rgb, pts_s=Fraction(index), name=f"{index:05d}")


def frames_between(frames: Iterable[Frame], start: int | None, end: int | None) -> Iterator[Frame]:
    """Yield the frames with an index in ``start``..``end - 1``; reads none after."""
    for frame in frames:
        if frame.index >= (start or 0):
            yield frame
        if end is not None and frame.index + 1 >= end:
            return


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
    return replace(result, timings=timings)


def _by_frame(
    mask: Labels, corrections: Mapping[int, Labels], video: VideoSource
) -> dict[int, Labels]:
    """Return the corrections by the frames of ``frame_of_mask``."""
    if isinstance(mask, str | Path):
        frame_of_mask(None, Path(mask), video)
    by_frame: dict[int, Labels] = {}
    for index, given in corrections.items():
        frame: int | None = index
        if isinstance(given, str | Path):
            frame = frame_of_mask(index, Path(given), video)
        assert frame is not None
        if frame in by_frame:
            raise InputError(f"two masks were given for frame {frame}: give one per frame")
        by_frame[frame] = given
    return by_frame


def _labels(given: Labels, size_hw: tuple[int, int]) -> UInt8Array:
    if isinstance(given, str | Path):
        found = read_masks(given, VideoFacts(size_hw))
        if len(found.labels) > 1:
            raise InputError(f"the mask {given} has masks of {len(found.labels)} frames: give one")
        return next(iter(found.labels.values()))
    check_labels(given, size_hw)
    return given
