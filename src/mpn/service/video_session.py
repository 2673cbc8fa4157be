"""A session on an uploaded video: each run is a run of ``mpn run --resume``."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpn.errors import InputError
from mpn.runtime.media.video import open_video
from mpn.runtime.session.passes import FrameUpdate
from mpn.runtime.session.request import Masks, Progress, RunRequest
from mpn.runtime.session.schedule import Direction
from mpn.runtime.session.session import run_video
from mpn.service.limits import conflict, memory_need_mb, too_large
from mpn.service.session import (
    RunStopped,
    Session,
    Shared,
    check_not_draining,
    check_objects,
    usable_uploads,
)


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
        self._masks: dict[int | None, Path] = {}
        self._frames: int | None = None
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
                others = {k: path for k, path in self._masks.items() if k != frame}
            masks = Masks.load(self._request({**others, frame: upload}), video)
        object_ids = {k for given in masks.given.values() for k in given.object_ids}
        check_objects(object_ids, self.shared.limits)
        path = self.mask_path(frame)
        with self.lock:
            os.replace(upload, path)
            self._masks[frame] = path
            self.object_ids = tuple(sorted(object_ids))
        return {
            "frames": sorted(own.given),
            "object_ids": sorted({k for given in own.given.values() for k in given.object_ids}),
            "object_names": {str(k): name for k, name in own.names.items()},
            "is_applied": False,
            "notes": [self.clean(note) for note in own.notes],
        }

    def start(self) -> None:
        """Start a run with all masks; one in progress is stopped, its frames are kept.

        Raises:
            HTTPException: If there is no video or no mask.
        """
        check_not_draining(self)
        with self.lock:
            if not self._masks or self.size_hw is None:
                raise conflict("a run needs a video and a mask: upload both first")
            need_mb = memory_need_mb(self.size_hw, len(self.object_ids), 4)
        with self._start_lock:  # two requests at once
            self.stop()
            self.join()
            self.shared.reserve(self.id, need_mb)
            with self.lock:
                check_not_draining(self)
                self._stopping.clear()
                request = self._request(dict(self._masks))
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
            run_video(
                request,
                on_progress=self._on_progress,
                on_frame=self._on_frame,
                opener=self.shared.engines.open,
            )
            self.set_state("complete")

    def _on_frame(self, update: FrameUpdate) -> None:
        now_s = time.perf_counter()
        if update.is_final:
            self.announce(update.index, update.result, now_s - self._before_s)
        self._before_s = now_s

    def _on_progress(self, progress: Progress) -> None:
        backward = progress.backward
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
