"""A session on frames that the client sends one by one."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import deque
from concurrent.futures import Future
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from mpn.errors import MaskError, OutputError, VideoError
from mpn.formats import ObjectIds, VideoFacts, read_masks
from mpn.runtime.media.video_images import load_rgb
from mpn.runtime.options import MIN_SIDE_PX
from mpn.runtime.session.live import LiveMask, LiveRun
from mpn.runtime.session.request import RunRequest
from mpn.runtime.state import object_ids_from_labels
from mpn.service.limits import conflict, memory_need_mb, not_found, too_large
from mpn.service.session import (
    Session,
    Shared,
    check_not_draining,
    check_objects,
    usable_uploads,
)
from mpn.types import UInt8Array


@dataclass(frozen=True)
class _Queued:
    index: int
    rgb: UInt8Array
    accepted_s: float


class FrameSession(Session):
    """See :class:`mpn.service.session.Session`.

    Frames wait in a bounded queue. The latest frame can be corrected until the next one is
    computed; masks of later frames wait for their frames.

    Args:
        root: Folder of all sessions.
        shared: Objects of all sessions.
        save: Results in addition to the masks.
        fps: Frame rate of the results.

    Attributes:
        turn: Held by the request that decodes and queues a frame.
    """

    feed = "frames"

    def __init__(self, root: Path, shared: Shared, save: Any, fps: Fraction) -> None:
        super().__init__(root, shared, save)
        self._fps = fps
        self._work = threading.Condition(self.lock)
        self._queue: deque[_Queued] = deque()
        self._next = 0  # index of the frame that is accepted next
        self._started = -1  # index of the latest frame that the thread has begun
        self._computed = -1
        self._is_ended = self._is_stopped = False
        self._masks: dict[int, LiveMask] = {}
        self._corrections: deque[tuple[int, LiveMask, Future[None]]] = deque()
        self._objects = ObjectIds()
        self.turn = asyncio.Lock()
        self._revision = 0

    @property
    def is_working(self) -> bool:
        """See :attr:`Session.is_working`."""
        with self.lock:
            return bool(self._queue) and self.state == "running"

    @property
    def next_frame(self) -> int:
        """Index of the frame to send."""
        return self._next

    @property
    def queued(self) -> int:
        """Frames that wait."""
        return len(self._queue)

    @property
    def has_room(self) -> bool:
        """Whether the queue takes another frame."""
        with self.lock:
            return len(self._queue) < self.shared.limits.queue

    def as_json(self) -> dict[str, Any]:
        """See :meth:`Session.as_json`."""
        with self.lock:
            return {
                **super().as_json(),
                "frames_expected": None,
                "next_frame": self._next,
                "queued": len(self._queue),
            }

    def check_next(self, index: int) -> None:
        """Raise 409 if a frame is not the next one, or 413 over the limit."""
        check_not_draining(self)
        with self.lock:
            if self._is_ended or self.state in ("failed", "stopped", "complete"):
                raise conflict("the session has ended: it takes no more frames")
            if index != self._next:
                raise conflict(f"the next frame is {self._next}, not {index}")
            if index >= self.shared.limits.frames:
                raise too_large(f"a session may have {self.shared.limits.frames} frames")

    def decode(self, upload: Path) -> UInt8Array:
        """Return the pixels of an uploaded image, as ``mpn run`` reads it from a folder.

        Raises:
            HTTPException: If it cannot be used or has another size than the first frame.
        """
        with usable_uploads(self):
            rgb = load_rgb(upload)
            if min(rgb.shape[:2]) < MIN_SIDE_PX:
                raise VideoError(
                    f"the frame is {rgb.shape[1]}x{rgb.shape[0]} (width x height): it must be at "
                    f"least {MIN_SIDE_PX}x{MIN_SIDE_PX}"
                )
        if self.size_hw is not None and rgb.shape[:2] != self.size_hw:
            raise conflict(
                f"the frame is {rgb.shape[1]}x{rgb.shape[0]} but the first is "
                f"{self.size_hw[1]}x{self.size_hw[0]} (width x height)"
            )
        return rgb

    def put_frame(self, index: int, rgb: UInt8Array) -> bool:
        """Queue a frame; return False if the queue is full.

        Raises:
            HTTPException: See :meth:`check_next`.
        """
        with self._work:
            self.check_next(index)
            if not self.has_room:
                return False
            if index == 0:
                self.size_hw = (rgb.shape[0], rgb.shape[1])
            self._queue.append(_Queued(index, rgb, time.perf_counter()))
            self._next += 1
            self.shared.metrics.queued.inc()
            self._work.notify_all()
        return True

    def put_mask(self, frame: int | None, upload: Path) -> dict[str, Any]:
        """See :meth:`Session.put_mask`; a mask of the latest frame corrects it at once."""
        check_not_draining(self)
        if self.size_hw is None:
            raise conflict("the session has no frame yet: send frame 0 first, then its mask")
        with self.upload_lock:
            return self._put_mask(frame, upload, self.size_hw)

    def _put_mask(
        self, frame: int | None, upload: Path, size_hw: tuple[int, int]
    ) -> dict[str, Any]:
        at = 0 if frame is None else frame
        objects = deepcopy(self._objects)  # a refused mask names no object
        with usable_uploads(self):
            found = read_masks(upload, VideoFacts(size_hw), frame=frame, objects=objects)
            labels = dict(found.labels)
            if None in labels:
                labels[at] = labels.pop(None)
            if len(labels) != 1:
                raise MaskError(
                    f"the mask has {len(labels)} frames: send the masks of the frames one by one"
                )
            ((named, given),) = labels.items()
            at = at if named is None else named
        ids = set(object_ids_from_labels(given))
        with self.lock:
            known = set(self.object_ids).union(
                *(object_ids_from_labels(mask.labels) for mask in self._masks.values())
            )
        check_objects(known | ids, self.shared.limits)
        need_mb = memory_need_mb(size_hw, len(known | ids), self.shared.limits.queue)
        self.shared.reserve(self.id, need_mb)
        path = self.mask_path(at)
        os.replace(upload, path)
        mask = LiveMask(given, path, dict(found.names))
        applied = self._take(at, mask)
        if applied is not None:
            try:
                applied.result()
            except Exception as error:
                raise conflict(
                    f"the mask could not be applied: {self.clean(str(error))}"
                ) from error
        self._objects = objects
        return {
            "frames": [at],
            "object_ids": sorted(ids),
            "object_names": {str(k): name for k, name in found.names.items()},
            "is_applied": applied is not None,
            "notes": [self.clean(note) for note in found.notes],
        }

    def remove_mask(self, frame: int | None) -> None:
        """See :meth:`Session.remove_mask`: only a mask that waits for its frame."""
        at = 0 if frame is None else frame
        with self.upload_lock, self._work:
            self.check_open()
            if self._thread is not None and at <= self._started:
                raise conflict(f"the mask of frame {at} is applied already")
            if self._masks.pop(at, None) is None:
                raise not_found(f"mask that waits for frame {at}")
            self.mask_path(at).unlink(missing_ok=True)

    def finish(self) -> None:
        """Take no more frames, and finish those in the queue.

        Raises:
            HTTPException: 409 if the session has no mask.
        """
        with self._work:
            self.check_open()
            if self._thread is None:
                raise conflict("the session has no mask yet: there is no result to finish")
            self._is_ended = True
            self._work.notify_all()

    def stop(self) -> None:
        """See :meth:`Session.stop`."""
        with self._work:
            self._is_stopped = True
            self._work.notify_all()

    def drain(self) -> None:
        """See :meth:`Session.drain`: the queued frames are finished."""
        with self._work:
            super().drain()
            self._work.notify_all()

    def _take(self, at: int, mask: LiveMask) -> Future[None] | None:
        """Keep a mask for its frame; return a future if it corrects the latest frame.

        Raises:
            HTTPException: 409 if the frame is computed, and is not the latest one.
        """
        with self._work:
            check_not_draining(self)
            if self._is_ended or self.state in ("failed", "stopped", "complete"):
                raise conflict("the session has ended: it takes no more masks")
            if self._thread is None and at > 0:
                raise conflict("the first mask must be that of frame 0")
            if at < self._started:
                raise conflict(
                    f"frame {at} is computed, and frame {self._started} too: frames that are sent "
                    f"one by one run forward only, so correct frame {self._started} or a later one"
                )
            if at == self._started:
                done: Future[None] = Future()
                self._corrections.append((at, mask, done))
                self._work.notify_all()
                return done
            self._masks[at] = mask
            if self._thread is None:
                self.run = 1
                self.set_state("running")
                self.start_thread(self._run)
            return None

    def _run(self) -> None:
        run: LiveRun | None = None
        with self.failures():
            try:
                while (item := self._next_item(run)) is not None:
                    queued, correction = item
                    if correction is not None:
                        self._correct(run, correction)
                        continue
                    assert queued is not None
                    mask = self._masks.pop(queued.index, None)
                    if run is None:
                        assert mask is not None
                        run = self._begin(queued, mask)
                    else:
                        run.step(queued.rgb, mask)
                    self._computed = queued.index
                    self._revision = 0
                    self.announce(queued.index, run.latest, time.perf_counter() - queued.accepted_s)
                if run is not None:
                    run.finish("complete" if self._is_ended else "interrupted")
                self.set_state("complete" if self._is_ended else "stopped", self._unused())
            except BaseException as error:
                if run is not None:
                    with suppress(OutputError):
                        run.finish("failed", str(error))
                raise
            finally:
                self._refuse_rest()

    def _unused(self) -> str:
        """Return a line about the masks whose frames did not come, or nothing."""
        with self.lock:
            frames = ", ".join(map(str, sorted(self._masks)))
        return f"masks were given for frames that did not come: {frames}" if frames else ""

    def _begin(self, queued: _Queued, mask: LiveMask) -> LiveRun:
        engines = self.shared.engines
        request = RunRequest(
            video="frames",
            masks={},
            out=self.results,
            engine_dir=engines.directory,
            backend="cpu",
            options=engines.options,
            save=self.save,
        )
        return LiveRun(request, queued.rgb, mask, fps=self._fps, opener=engines.open)

    def _next_item(
        self, run: LiveRun | None
    ) -> tuple[_Queued | None, tuple[int, LiveMask, Future[None]] | None] | None:
        """Wait for the next work; None at the end."""
        with self._work:
            while True:
                if self._is_stopped:
                    return None
                if self._corrections:
                    return None, self._corrections.popleft()
                if self._queue:
                    queued = self._queue.popleft()
                    self._started = queued.index
                    self.shared.metrics.queued.dec()
                    self.changes.notify()
                    return queued, None
                if self._is_ended or self.is_draining:
                    return None
                self._work.wait()

    def _correct(self, run: LiveRun | None, correction: tuple[int, LiveMask, Future[None]]) -> None:
        at, mask, done = correction
        try:
            if run is None or at != self._computed:
                raise MaskError(f"frame {at} is not the latest one any more")
            run.correct(mask)
        except Exception as error:
            done.set_exception(error)
            return
        self._revision += 1
        self.announce(at, run.latest, 0.0, self._revision)
        done.set_result(None)

    def _refuse_rest(self) -> None:
        """Drop the frames and masks of a session that has ended."""
        with self._work:
            self.shared.metrics.queued.dec(len(self._queue))
            self._queue.clear()
            for _, _, done in self._corrections:
                done.set_exception(MaskError("the session has ended"))
            self._corrections.clear()
        self.changes.notify()
