"""Segment a whole video from Python, one frame in memory at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from mpn._common.array_likes import labels_from
from mpn._common.concurrency import Prefetch
from mpn._common.options import refuse_old_arguments
from mpn._common.validation import check_choice
from mpn.errors import InputError
from mpn.formats import VideoFacts
from mpn.runtime.media.video import (
    Decode,
    EndsEarlyError,
    VideoSource,
    check_frame_range,
    open_video,
)
from mpn.runtime.session.mask_files import facts_of, read_mask_files
from mpn.runtime.session.passes import FrameUpdate, Passes, PassResult, ReadBackwards
from mpn.runtime.session.request import check_mask_frames, given_mask
from mpn.runtime.session.schedule import DIRECTIONS, Direction, Schedule
from mpn.runtime.session.spool import Spool
from mpn.runtime.session.stepping import (
    PipelineLike,
    frame_from_array,
    frames_between,
    frames_from_arrays,
)
from mpn.types import ArrayLike, Frame, StepResult, UInt8Array, check_labels

if TYPE_CHECKING:
    from mpn.engines.open import Backend
    from mpn.runtime.options import PipelineOptions

Labels = UInt8Array | str | Path
"""Object ids as an array, (H, W) uint8, or as the path of a mask file."""

Cancel = threading.Event | Callable[[], bool]
"""Ends a generator when it is set, or returns True."""


@refuse_old_arguments({"adapt": "options=PipelineOptions(finetune=...)"})
def propagate(
    video: str | Path | VideoSource | Iterable[ArrayLike],
    mask: ArrayLike | str | Path | Mapping[int, ArrayLike | str | Path],
    *,
    corrections: Mapping[int, ArrayLike | str | Path] | None = None,
    direction: Direction = "both",
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
        mask: Labels of the first frame, as for ``Pipeline.start``, or a file. Or a mapping of frame
            index in the video -> labels or a file: masks of any frames, in the directions of
            ``direction``.
        corrections: Frame index in the video -> labels of that frame. Objects with a known id are
            corrected, others are added. Objects that are not in the labels do not change, and no
            frame before it does. For a folder of images, a file with the name of an image belongs
            to that image. Not with a mapping of masks.
        direction: Of a mapping of masks. ``"both"``: frames before the first mask are computed
            backward, and frames between two masks are blended from both. Backward needs a path, an
            open source or a sequence of arrays; results of the backward pass wait in a temporary
            folder.
        engine_dir: A folder, zip file or address, see :mod:`mpn.engines.directory.locate`; None
            for the installed weights.
        backend: See :func:`mpn.engines.open.open_engines`.
        threads: See :meth:`mpn.runtime.pipeline.Pipeline.from_engines`.
        options: See :class:`mpn.runtime.options.PipelineOptions`.
        pipeline: Used instead of opening engines; the caller closes it.
        start: Index of the first frame, see ``open_video``; ``mask`` belongs to it.
        end: Index of the frame to stop before.
        decode: Decoder of a video file that is given by its path; see
            :func:`mpn.runtime.media.video_nvdec.choose_decoder`.

    Yields:
        The result of each frame, in order. In the frame of a mask it has the labels as given.

    Raises:
        InputError: If the video or a mask cannot be used, or a mask lies outside the video.
        EngineError: If the engines cannot be opened or fail.
    """
    check_choice("the direction of a mask", direction, DIRECTIONS)
    check_frame_range(start, end)
    given: dict[int | None, Labels] = {}
    if isinstance(mask, Mapping):
        if corrections:
            raise InputError("give all masks in one mapping, frame index -> labels, or corrections")
        given |= _own_by_frame(mask)
        if not given:
            raise InputError("no mask was given: give labels for at least one frame")
    else:
        direction = "forward"
        given[None] = _own(mask)
        given |= _own_by_frame({} if corrections is None else corrections)
    run = _Run(video, given, direction, start=start, end=end)
    return run.results(
        engine_dir=engine_dir,
        backend=backend,
        threads=threads,
        options=options,
        pipeline=pipeline,
        decode=decode,
    )


class RangeFrame(NamedTuple):
    """A frame of :func:`propagate_range`.

    Attributes:
        frame: Index of the frame in the video.
        labels: (H, W) uint8 ids, 0 background.
        confidences: Object id -> mean probability over its pixels, 0..1; 0 without a pixel.
    """

    frame: int
    labels: UInt8Array
    confidences: dict[int, float]


def propagate_range(
    video: str | Path | Sequence[ArrayLike],
    masks: Mapping[int, ArrayLike | str | Path],
    first: int,
    last: int,
    *,
    direction: Direction = "both",
    cancel: Cancel | None = None,
    engine_dir: str | Path | None = None,
    backend: Backend = "auto",
    threads: int | None = None,
    options: PipelineOptions | None = None,
    pipeline: PipelineLike | None = None,
) -> Iterator[RangeFrame]:
    """Segment frames ``first`` to ``last`` of a video, for annotation tools.

    A generator like :func:`propagate`; closing it ends the work. Calls in several threads share
    nothing but a pipeline that is given to all of them: a generator then holds it from its first
    result until it ends or is closed, and the others wait.

    Args:
        video: An address for :func:`mpn.runtime.media.video.open_video`, or a sequence of frames as
            for :meth:`mpn.runtime.pipeline.Pipeline.step`.
        masks: Frame index in the video -> labels or a file, see :func:`propagate`. A mask may be
            outside of the range: frames between it and the range are computed and not yielded.
        first: Index of the first frame.
        last: Index of the last frame, which is yielded too.
        direction: See :func:`propagate`.
        cancel: An event, or a function; the generator ends before the next frame when it is set or
            returns True. Checked in each frame, also in those of a backward pass.
        engine_dir: See :func:`propagate`, as for the following.
        backend: Of the engines.
        threads: Of the networks.
        options: Of the pipeline.
        pipeline: An open pipeline. Opening the engines takes about a second: make one for many
            ranges.

    Yields:
        Each frame in order; fewer if the video ends before ``last``.

    Raises:
        InputError: If the range, the video or a mask cannot be used, or this thread already has a
            generator with the pipeline.
        EngineError: If the engines cannot be opened or fail.
    """
    for name, value in (("first", first), ("last", last)):
        if not isinstance(value, int | np.integer) or isinstance(value, bool):
            raise InputError(f"{name} must be the index of a frame, a whole number, got {value!r}")
    if not 0 <= first <= last:
        raise InputError(f"a range must have 0 <= first <= last, got {first}..{last}")
    if cancel is not None and not isinstance(cancel, threading.Event) and not callable(cancel):
        raise InputError(f"cancel must be a threading.Event, a function or None, got {cancel!r}")
    given = _own_by_frame(masks)
    if not given:
        raise InputError("no mask was given: give labels for at least one frame")
    run = _Run(
        video,
        given,
        direction,
        start=min(first, *given),
        end=last + 1,
        wanted=range(first, last + 1),
        cancel=cancel,
    )
    return _range_frames(
        run, engine_dir=engine_dir, backend=backend, threads=threads, options=options,
        pipeline=pipeline,
    )  # fmt: skip


def _range_frames(
    run: _Run, *, pipeline: PipelineLike | None, **engines: Any
) -> Iterator[RangeFrame]:
    with ExitStack() as stack:
        if pipeline is not None:
            try:
                stack.enter_context(_only_user(pipeline, run.is_cancelled))
            except _CancelledError:
                return
        if run.is_cancelled():
            return
        for one in run.passes(pipeline=pipeline, decode="cpu", **engines):
            confidences = {t.object_id: t.confidence for t in one.result.tracks}
            yield RangeFrame(one.frame.index, one.result.labels, confidences)


_USERS: WeakKeyDictionary[Any, tuple[threading.Lock, list[int]]] = WeakKeyDictionary()
_USERS_LOCK = threading.Lock()
_CANCEL_CHECK_S = 0.1


@contextmanager
def _only_user(pipeline: PipelineLike, is_cancelled: Callable[[], bool]) -> Iterator[None]:
    """Hold a pipeline, which has the state of one video, for the whole block."""
    with _USERS_LOCK:
        lock, owner = _USERS.setdefault(pipeline, (threading.Lock(), []))
    if owner == [threading.get_ident()]:
        raise InputError(
            "this thread already has a generator that uses the pipeline: close it first, or make "
            "one pipeline for each"
        )
    while not lock.acquire(timeout=_CANCEL_CHECK_S):
        if is_cancelled():
            raise _CancelledError
    owner[:] = [threading.get_ident()]
    try:
        yield
    finally:
        owner.clear()
        lock.release()


class _CancelledError(Exception):
    """The caller does not wait for the result any more."""


def _own(labels: ArrayLike) -> Labels:
    """Copy labels that are no file into an array."""
    return labels if isinstance(labels, str | Path) else labels_from(labels).copy()


def _own_by_frame(masks: Mapping[int, ArrayLike | str | Path]) -> dict[Any, Labels]:
    """Copy the labels of a mapping.

    Raises:
        InputError: If it is no mapping of indices.
    """
    if not isinstance(masks, Mapping):
        raise InputError(
            f"masks must be a mapping, frame index -> labels or a file, got {type(masks).__name__}"
        )
    for index in masks:
        if not isinstance(index, int | np.integer) or isinstance(index, bool) or index < 0:
            raise InputError(
                f"the key of a mask must be the index of its frame, a whole number from 0, "
                f"got {index!r}"
            )
    return {int(index): _own(labels) for index, labels in masks.items()}


class _Run:
    """One call of :func:`propagate` or :func:`propagate_range`.

    Args:
        video: See :func:`propagate`.
        masks: Frame index -> labels; None for the first frame.
        direction: Of all masks.
        start: Index of the first frame to read.
        end: Index to stop before.
        wanted: Frames to yield; None for all.
        cancel: See :func:`propagate_range`.
    """

    def __init__(
        self,
        video: str | Path | VideoSource | Iterable[ArrayLike],
        masks: Mapping[Any, Labels],
        direction: Direction,
        *,
        start: int | None,
        end: int | None,
        wanted: range | None = None,
        cancel: Cancel | None = None,
    ) -> None:
        check_choice("the direction of a mask", direction, DIRECTIONS)
        self._video, self._masks, self._direction = video, masks, direction
        self._start, self._end, self._wanted = start, end, wanted
        self._cancel = cancel

    def is_cancelled(self) -> bool:
        """Return whether the caller has cancelled."""
        if isinstance(self._cancel, threading.Event):
            return self._cancel.is_set()
        return self._cancel is not None and bool(self._cancel())

    def results(self, **engines: Any) -> Iterator[StepResult]:
        """Yield the results of :func:`propagate`."""
        for one in self.passes(**engines):
            yield one.result

    def passes(
        self,
        *,
        engine_dir: str | Path | None,
        backend: Backend,
        threads: int | None,
        options: PipelineOptions | None,
        pipeline: PipelineLike | None,
        decode: Decode,
    ) -> Iterator[PassResult]:
        """Open everything, and yield the frames."""
        with ExitStack() as stack:
            opened: VideoSource | None = None
            first: Frame | None
            read_backwards: ReadBackwards | None = None
            source, end_index = self._video, self._end
            frames: Iterable[Frame] = ()
            if isinstance(source, str | Path):
                opened = stack.enter_context(open_video(source, start=self._start, end=self._end))
                first = opened.first_frame
                end_index, read_backwards = opened.end_index, opened.backwards
            else:
                if isinstance(source, VideoSource):
                    frames, read_backwards = source, source.backwards
                else:
                    frames = frames_from_arrays(source)
                    if isinstance(source, Sequence | np.ndarray):
                        read_backwards = _backwards_by_index(source)
                        end_index = min(len(source), end_index or len(source))
                reader = stack.enter_context(
                    Prefetch(frames_between(frames, self._start, self._end))
                )
                first = next(reader, None)
            if first is None:
                raise InputError("the video has no frame between start and end")
            size_hw = (first.rgb.shape[0], first.rgb.shape[1])
            facts = VideoFacts(size_hw, first=first.index, end=end_index)
            labels = self._labels_by_frame(facts if opened is None else facts_of(opened), opened)
            check_mask_frames(labels, first.index, None if self._wanted else end_index)
            schedule = Schedule(
                first.index, {k: given_mask(labels[k], self._direction) for k in sorted(labels)}
            )
            if pipeline is None:
                from mpn.runtime.pipeline import Pipeline

                pipeline = stack.enter_context(
                    Pipeline.from_engines(
                        engine_dir, backend=backend, threads=threads, options=options
                    )
                )
            passes = Passes(
                schedule,
                labels,
                pipeline,
                read_backwards=read_backwards,
                spool=stack.enter_context(Spool()),
                on_backward=self._check_cancelled,
                wanted=self._wanted,
            )
            if opened is None:
                frames = chain([first], reader)
            else:
                from mpn.runtime.media.video_nvdec import choose_decoder, device_of

                chosen = choose_decoder(opened, decode, device_of(pipeline))
                frames = stack.enter_context(Prefetch(stack.enter_context(chosen)))
            del first  # otherwise it stays in memory to the end
            try:
                for one in passes.run(self._until_cancelled(frames)):
                    yield one
                    if self._wanted is not None and one.frame.index + 1 == self._wanted.stop:
                        return  # masks after the range are none after the end
            except _CancelledError:
                return

    def _until_cancelled(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        for frame in frames:
            if self.is_cancelled():
                raise _CancelledError
            yield frame

    def _check_cancelled(self, update: FrameUpdate, progress: object) -> None:
        if self.is_cancelled():
            raise _CancelledError

    def _labels_by_frame(
        self, facts: VideoFacts, video: VideoSource | None
    ) -> dict[int, UInt8Array]:
        """Read the masks, and return them by their frames."""
        files = {k: Path(m) for k, m in self._masks.items() if isinstance(m, str | Path)}
        found, _ = read_mask_files(files, facts if video is None else video)
        if None in files and not {None, facts.first} & set(found.labels):
            index = min(index for index in found.labels if index is not None)
            raise InputError(
                f"the mask {files[None]} has the name of frame {index}, or is of it, but the first "
                f"frame is {facts.first}: give a mapping, {{{index}: mask}}, or rename the mask"
            )
        by_frame: dict[int, UInt8Array] = {}
        arrays = {k: m for k, m in self._masks.items() if not isinstance(m, str | Path)}
        for index, labels in chain(found.labels.items(), arrays.items()):
            frame = facts.first if index is None else index
            if frame in by_frame:
                raise InputError(f"two masks were given for frame {frame}: give one per frame")
            check_labels(labels, facts.size_hw)
            by_frame[frame] = labels
        return by_frame


def _backwards_by_index(arrays: Any) -> ReadBackwards:
    def read(first: int, end: int) -> Iterator[Frame]:
        if end > len(arrays):
            raise EndsEarlyError("the sequence of frames", len(arrays), end - 1)
        for index in range(end - 1, first - 1, -1):
            yield frame_from_array(arrays[index], index)

    return read
