"""A session on an uploaded video: each run is a run of ``mpn run --resume``."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpn.errors import InputError
from mpn.runtime.media.video import open_video
from mpn.runtime.session.passes import FrameUpdate
from mpn.runtime.session.request import Masks, Progress, RunRequest
from mpn.runtime.session.schedule import Direction
from mpn.runtime.session.session import run_video
from mpn.service.limits import conflict, memory_need_mb, not_found, too_large, unusable
from mpn.service.session import (
    RunStopped,
    Session,
    Shared,
    check_not_draining,
    check_objects,
    usable_uploads,
)


@dataclass(frozen=True)
class _Upload:
    """A mask file, with the frames and objects in it."""

    path: Path
    frames: tuple[int, ...]
    object_ids: frozenset[int]


class VideoSession(Session):
    """See :class:`mpn.service.session.Session`.

    Args:
        root: Folder of all sessions.
        shared: Objects of all sessions.
        save: Results in addition to the masks.
        direction: Direction of the masks, see :mod:`mpn.runtime.session.schedule`.
    """

    feed = "video"

    def __init__(self, root: Path, shared: Shared, save: Any, direction: Direction) -> None:
        super().__init__(root, shared, save)
        self._direction: Direction = direction
        self._masks: dict[int | None, _Upload] = {}
        self._removed: set[Path] = set()
        self._frames: int | None = None
        self._is_counted = False
        self._passed = 0  # frames that the latest run has computed or kept
        self._has_computed = False
        self._name = ""
        self._stopping = threading.Event()
        self._start_lock = threading.Lock()
        self._before_s = 0.0

    @property
    def video(self) -> Path:
        """The uploaded file."""
        return self.input / "video"

    def as_json(self) -> dict[str, Any]:
        """See :meth:`Session.as_json`."""
        return {**super().as_json(), "frames_expected": self._frames}

    def put_video(self, upload: Path) -> None:
        """Take the video.

        Args:
            upload: The file, which is moved.

        Raises:
            HTTPException: If there is one already, it cannot be used or is too large.
        """
        with self.upload_lock:
            self._put_video(upload)

    def _put_video(self, upload: Path) -> None:
        check_not_draining(self)
        if self.video.exists():
            raise conflict("the session has a video already: create another session")
        with usable_uploads(self), open_video(upload) as video:
            size_hw, frames = video.size_hw, video.frame_count_hint
        if frames is not None and frames > self.shared.limits.frames:
            raise too_large(
                f"the video has about {frames} frames, but a session may have "
                f"{self.shared.limits.frames}"
            )
        with self.lock:
            os.replace(upload, self.video)
            self.size_hw, self._frames = size_hw, frames

    def is_current(self, frame: int) -> bool:
        """See :meth:`Session.is_current`: the latest run has computed or kept the frame."""
        with self.lock:
            return frame < self._passed or (self.state != "running" and self.has_results)

    @property
    def has_results(self) -> bool:
        """See :attr:`Session.has_results`.

        A run removes the files of all frames that it computes again before the first of them.
        """
        with self.lock:
            return self.state == "complete" or self._has_computed

    def put_mask(self, frame: int | None, upload: Path) -> dict[str, Any]:
        """See :meth:`Session.put_mask`; used by the next run."""
        with self.upload_lock:
            return self._put_mask(frame, upload)

    def _put_mask(self, frame: int | None, upload: Path) -> dict[str, Any]:
        check_not_draining(self)
        if not self.video.exists():
            raise conflict("the session has no video yet: upload the video first")
        with usable_uploads(self), open_video(self.video) as video:
            own = Masks.load(self._request({frame: upload}), video)
            with self.lock:
                others = {k: given.path for k, given in self._masks.items() if k != frame}
            masks = Masks.load(self._request({**others, frame: upload}), video)
        self._check_end(max(own.given))
        check_objects(
            {k for given in masks.given.values() for k in given.object_ids}, self.shared.limits
        )
        path = self.mask_path(frame)
        object_ids = frozenset(k for given in own.given.values() for k in given.object_ids)
        with self.lock:
            os.replace(upload, path)
            self._masks[frame] = _Upload(path, tuple(sorted(own.given)), object_ids)
            self.object_ids = self._given_ids()
        return {
            "frames": sorted(own.given),
            "object_ids": sorted(object_ids),
            "object_names": {str(k): name for k, name in own.names.items()},
            "is_applied": False,
            "notes": [self.clean(note) for note in own.notes],
        }

    def remove_mask(self, frame: int | None) -> None:
        """See :meth:`Session.remove_mask`; the next run is without it."""
        with self.upload_lock, self.lock:
            self.check_open()
            given = self._masks.pop(frame, None)
            if given is None:
                file = self._masks.get(None)
                if file is not None and frame in file.frames:
                    raise conflict(
                        f"the mask of frame {frame} is in a file that was given without a frame: "
                        "remove that file with DELETE .../masks"
                    )
                raise not_found("mask that was given" + _of_frame(frame))
            self.object_ids = self._given_ids()
            self._removed.add(given.path)  # a run in progress may not have read it yet
            if self.state != "running":
                self._unlink_removed()

    def _unlink_removed(self) -> None:
        for path in self._removed - {given.path for given in self._masks.values()}:
            path.unlink(missing_ok=True)
        self._removed.clear()

    def _given_ids(self) -> tuple[int, ...]:
        return tuple(sorted(set().union(*(given.object_ids for given in self._masks.values()))))

    def _check_end(self, last: int) -> None:
        """Raise 422 if a mask is for a frame after the end of the video.

        The number of frames is that of a complete run, and before it that of the header.
        """
        with self.lock:
            count = self._frames
        if count is not None and last >= count:
            about = "" if self._is_counted else " by its header"
            raise unusable(
                f"the mask is for frame {last}, but the video has {count} frames{about}: give "
                f"masks of frames 0 to {count - 1}"
            )

    def start(self) -> None:
        """Start a run with all masks; one in progress is stopped, its frames are kept.

        Raises:
            HTTPException: If there is no video or no mask.
        """
        check_not_draining(self)
        with self.lock:
            if not self._masks or self.size_hw is None:
                raise conflict("a run needs a video and a mask: upload both first")
            need_mb = memory_need_mb(self.size_hw, len(self._given_ids()), 4)
        with self._start_lock:  # two requests at once
            self.stop()
            self.join()
            self.shared.reserve(self.id, need_mb)
            with self.lock:
                check_not_draining(self)
                self._stopping.clear()
                self._unlink_removed()
                request = self._request({k: given.path for k, given in self._masks.items()})
                self.run += 1
                self._passed, self._has_computed = 0, False
                self._recent.clear()
                self.set_state("running")
                self.start_thread(lambda: self._run(request))

    def stop(self) -> None:
        """See :meth:`Session.stop`."""
        self._stopping.set()

    def drain(self) -> None:
        """Stop the run after its current frame: the rest may take hours."""
        super().drain()
        self.stop()

    def _run(self, request: RunRequest) -> None:
        self._before_s = time.perf_counter()
        with self.failures():
            report = run_video(
                request,
                on_progress=self._on_progress,
                on_frame=self._on_frame,
                opener=self.shared.engines.open,
            )
            with self.lock:
                self._frames, self._is_counted = report["frames"], True
            self.set_state("complete")

    def _on_frame(self, update: FrameUpdate) -> None:
        now_s = time.perf_counter()
        if update.is_final:
            self.announce(update.index, update.result, now_s - self._before_s)
        self._before_s = now_s

    def _on_progress(self, progress: Progress) -> None:
        backward = progress.backward
        with self.lock:
            self._passed, self._has_computed = progress.done, progress.computed > 0
        self.changes.notify()
        if backward is not None:
            self.log.append("backward", {"done": backward.done, "expected": backward.count})
        if self._stopping.is_set():
            raise RunStopped
        if progress.done > self.shared.limits.frames:
            raise InputError(
                f"the video has more than {self.shared.limits.frames} frames, which a session may "
                "have"
            )

    def _request(self, masks: Mapping[int | None, Path]) -> RunRequest:
        engines = self.shared.engines
        return RunRequest(
            video=str(self.video),
            masks=masks,
            direction=self._direction,
            out=self.results,
            engine_dir=engines.directory,
            backend="cpu",
            options=engines.options,
            save=self.save,
            resume=True,
        )


def _of_frame(frame: int | None) -> str:
    return " without a frame" if frame is None else f" for frame {frame}"
