"""The parts that sessions of both feeds share: state, masks, events, files."""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
import shutil
import threading
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from starlette.exceptions import HTTPException

from mpn._common.files import PARTIAL_SUFFIX
from mpn._common.images import open_image_bytes
from mpn._common.memory import memory_errors
from mpn.errors import InputError, MpnError, OutputError
from mpn.formats.rle import counts_from_mask, string_from_counts
from mpn.masks import png_from_labels
from mpn.runtime.session.outputs import SaveKind
from mpn.service.engines import ServerEngines
from mpn.service.events import Changes, EventLog
from mpn.service.limits import Limits, not_found, stopping, too_large, unusable
from mpn.service.metrics import Metrics
from mpn.types import StepResult

Feed = Literal["video", "frames"]
MaskFormat = Literal["png", "rle"]
State = Literal["open", "running", "complete", "stopped", "failed"]

_ALWAYS: frozenset[SaveKind] = frozenset({"masks"})
_ID_BYTES = 16
_UPLOAD_NAME = re.compile(rf"upload-[0-9a-f]+{re.escape(PARTIAL_SUFFIX)}")
_RECENT = 12
"""Masks in memory: more than wait for the thread that writes files (4), and the latest one."""


@dataclass(frozen=True)
class _Version:
    """Identity of the latest mask of a frame.

    Attributes:
        run: Number of the run that computed it, from 1.
        revision: Number of corrections of the frame in that run.
        digest: Of its PNG.
    """

    run: int
    revision: int
    digest: bytes


@dataclass(frozen=True)
class KeptMask:
    """A mask of a frame.

    Attributes:
        png: Palette PNG.
        run: Number of the run that computed it, from 1.
        revision: Number of corrections of the frame in that run.
    """

    png: bytes
    run: int
    revision: int


class RunStopped(KeyboardInterrupt):
    """Stop of a run by its session; a run treats it as Ctrl-C and keeps its frames."""


@dataclass(frozen=True, kw_only=True)
class Shared:
    """Objects that all sessions share.

    Attributes:
        engines: The engines.
        limits: The limits.
        metrics: The figures.
        reserve: Reserve memory in MB for a session by its id; raises 503.
    """

    engines: ServerEngines
    limits: Limits
    metrics: Metrics
    reserve: Callable[[str, int], None]


class Session(ABC):
    """A video of a client with its masks and results.

    Methods may be called from any thread, unless they are documented otherwise.

    Args:
        root: Folder of all sessions.
        shared: See :class:`Shared`.
        save: Results in addition to the masks.

    Attributes:
        id: 32 hexadecimal digits.
        folder: Everything on disk: ``input``, ``results`` and ``events.jsonl``.
        changes: Notified of every change.
        log: The events.
        run: Number of the latest run, from 1; 0 before the first one.
        used_s: Time of the latest request, by ``time.monotonic``.
        lock: Held for changes of the state.
        upload_lock: Held while a video or mask is decoded: one at a time takes memory.
    """

    feed: Feed

    def __init__(self, root: Path, shared: Shared, save: frozenset[SaveKind]) -> None:
        self.id = secrets.token_hex(_ID_BYTES)
        self.folder = root / self.id
        self.folder.mkdir(mode=0o700)
        self.input.mkdir()
        self.shared = shared
        self.save: frozenset[SaveKind] = save | _ALWAYS
        self.changes = Changes()
        self.log = EventLog(self.folder / "events.jsonl", self.changes)
        self.used_s = time.monotonic()
        self.lock = threading.RLock()
        self.upload_lock = threading.Lock()
        self.state: State = "open"
        self.message = ""
        self.size_hw: tuple[int, int] | None = None
        self.run = 0
        self.done = 0
        self.is_closed = self.is_draining = False
        self.object_ids: tuple[int, ...] = ()
        self._uploaded_bytes = 0
        self._recent: OrderedDict[int, bytes] = OrderedDict()
        self._versions: dict[int, _Version] = {}
        self._thread: threading.Thread | None = None

    @property
    def input(self) -> Path:
        """Folder of the uploads."""
        return self.folder / "input"

    @property
    def results(self) -> Path:
        """Folder of the results, as ``mpn run`` writes it."""
        return self.folder / "results"

    @property
    def is_working(self) -> bool:
        """Whether its thread computes, so that it is not idle."""
        return self.state == "running"

    def as_json(self) -> dict[str, Any]:
        """Return the state as JSON types, see ``SessionState`` of the interface."""
        with self.lock:
            height, width = self.size_hw or (None, None)
            return {
                "id": self.id,
                "feed": self.feed,
                "state": self.state,
                "message": self.message,
                "run": self.run,
                "width": width,
                "height": height,
                "frames_done": self.done,
                "object_ids": list(self.object_ids),
                "save": sorted(self.save),
            }

    def add_upload(self, size: int) -> None:
        """Count the bytes of an upload.

        Raises:
            HTTPException: 413 if all uploads of the session are too large.
        """
        with self.lock:
            if self._uploaded_bytes + size > self.shared.limits.upload_mb << 20:
                raise too_large(
                    f"all uploads of a session may have {self.shared.limits.upload_mb} MiB together"
                )
            self._uploaded_bytes += size

    @abstractmethod
    def put_mask(self, frame: int | None, upload: Path) -> dict[str, Any]:
        """Take a mask file, which the caller removes unless it was moved.

        Raises:
            HTTPException: If the mask does not fit the state of the session.
            InputError: If the file cannot be used.
        """

    @abstractmethod
    def remove_mask(self, frame: int | None) -> None:
        """Remove a mask that was given and is not applied yet.

        Args:
            frame: Its frame; None for the file that was given without a frame.

        Raises:
            HTTPException: 404 if none was given, 409 if it is applied.
        """

    @abstractmethod
    def stop(self) -> None:
        """Make the thread end soon, with the results of all finished frames."""

    def drain(self) -> None:
        """Take no more work, and finish what was accepted."""
        self.is_draining = True

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for the thread; return whether it has ended."""
        thread = self._thread
        if thread is None:
            return True
        thread.join(timeout_s)
        return not thread.is_alive()

    def end(self) -> None:
        """End the session at the shutdown of the server; its folder stays."""
        with self.lock:
            self.is_closed = True
        with suppress(OutputError):
            message = "the server was stopped"
            self.log.append("state", {"state": self.state, "message": message, "run": self.run})
        self.log.close()

    def close(self, reason: str) -> None:
        """Stop the work and remove everything. A second call does nothing."""
        with self.lock:
            if self.is_closed:
                return
            self.is_closed = True
        self.stop()
        self.join()
        with suppress(OutputError):
            self.log.append("closed", {"message": reason})
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def mask(self, frame: int) -> KeptMask | None:
        """Return the mask of a frame; None if it has none of the latest run."""
        return self._kept(frame) if self.is_current(frame) else None

    def is_current(self, frame: int) -> bool:
        """Return whether a mask of a frame, if it exists, is of the latest run."""
        return True

    @property
    def has_results(self) -> bool:
        """Whether the folder of the results has a frame, and is that of the latest run."""
        return self.done > 0

    @property
    def has_ended(self) -> bool:
        """Whether no mask comes without a new request that starts a run."""
        return self.state in ("complete", "stopped", "failed")

    def without(self, what: str) -> HTTPException:
        """Return the error for a result that a session has not when its work has ended."""
        with self.lock:
            reason = f": {self.message}" if self.message else ""
            return not_found(f"{what}, and the session is {self.state}{reason}")

    def event_with_mask(self, event: dict[str, Any], kind: MaskFormat | None) -> dict[str, Any]:
        """Return an event of a frame with its mask; other events unchanged.

        An event whose mask was computed again has no mask: the later event has the later mask.
        """
        if event["type"] != "frame" or kind is None:
            return event
        mask = self._kept(event["frame"])
        if mask is None or (mask.run, mask.revision) != (event["run"], event["revision"]):
            return event
        if kind == "png":
            return {**event, "mask_png": base64.b64encode(mask.png).decode()}
        return {**event, "mask_rle": rle_from_png(mask.png)}

    def announce(self, frame: int, result: StepResult, seconds: float, revision: int = 0) -> None:
        """Keep the mask of a frame until its file is written, and publish its event."""
        png = png_from_labels(result.labels)
        with self.lock:
            self._recent[frame] = png
            self._recent.move_to_end(frame)
            self._versions[frame] = _Version(self.run, revision, _digest(png))
            while len(self._recent) > _RECENT:
                self._recent.popitem(last=False)
            self.done = max(self.done, frame + 1)
            self.object_ids = result.object_ids
        if not revision:
            self.shared.metrics.frame(self.feed, seconds, result.timings)
        self.log.append(
            "frame",
            {
                "frame": frame,
                "run": self.run,
                "revision": revision,
                "objects": [track.as_json() for track in result.tracks],
            },
        )

    def set_state(self, state: State, message: str = "") -> None:
        """Change the state, and publish it."""
        with self.lock:
            self.state, self.message = state, self.clean(message)
            event = {"state": state, "message": self.message, "run": self.run}
        with suppress(OutputError):  # the disk is full: the state itself has the error
            self.log.append("state", event)
        self.changes.notify()

    def clean(self, message: str) -> str:
        """Remove the paths of the server and the names of its uploads from a message."""
        for path in (self.input, self.results, self.folder):
            message = message.replace(f"{path}/", "").replace(str(path), path.name)
        return _UPLOAD_NAME.sub("the upload", message)

    def new_upload(self) -> Path:
        """Return a path for an upload; :meth:`clean` removes its name from messages."""
        return self.input / f"upload-{secrets.token_hex(8)}{PARTIAL_SUFFIX}"

    def start_thread(self, work: Callable[[], None]) -> None:
        """Run the work of the session in a thread."""
        self._thread = threading.Thread(target=work, name=f"mpn-session-{self.id[:8]}", daemon=True)
        self._thread.start()

    @contextmanager
    def failures(self) -> Iterator[None]:
        """Make an error of the block the state of the session."""
        try:
            with memory_errors("this session"):
                yield
        except KeyboardInterrupt:
            self.set_state("stopped")
        except MpnError as error:
            self.shared.metrics.errors.labels(type(error).__name__).inc()
            self.set_state("failed", str(error))
        except Exception as error:
            self.shared.metrics.errors.labels(type(error).__name__).inc()
            self.set_state("failed", f"internal error ({type(error).__name__})")
            raise
        finally:
            self.shared.reserve(self.id, 0)

    def check_open(self) -> None:
        """Raise 404 if the session was closed."""
        if self.is_closed:
            raise not_found("such session")

    def mask_path(self, frame: int | None) -> Path:
        """Return the path of an uploaded mask."""
        name = "mask" if frame is None else f"mask-{frame:05d}"
        return self.input / name

    def _mask_file(self, frame: int) -> Path:
        return self.results / "masks" / f"{frame:05d}.png"

    def _kept(self, frame: int) -> KeptMask | None:
        """Return the latest mask of a frame that was announced, while it exists."""
        with self.lock:
            version, png = self._versions.get(frame), self._recent.get(frame)
        if version is None:
            return None
        if png is None:
            try:
                png = self._mask_file(frame).read_bytes()
            except OSError:
                return None
        if _digest(png) != version.digest:  # of a later mask, which is not announced yet
            return None
        return KeptMask(png, version.run, version.revision)


@contextmanager
def usable_uploads(session: Session) -> Iterator[None]:
    """Convert the errors of an upload that cannot be used to status 422.

    Raises:
        HTTPException: In place of InputError.
    """
    try:
        with memory_errors("this upload"):
            yield
    except InputError as error:
        raise unusable(session.clean(str(error))) from error


def check_objects(object_ids: set[int], limits: Limits) -> None:
    """Raise 413 if a session has too many objects."""
    if len(object_ids) > limits.objects:
        raise too_large(
            f"the masks have {len(object_ids)} objects, but a session may have {limits.objects}"
        )


def check_not_draining(session: Session) -> None:
    """Raise 404 if a session was closed, or 503 if the server stops."""
    session.check_open()
    if session.is_draining:
        raise stopping()


def _digest(png: bytes) -> bytes:
    return hashlib.blake2b(png, digest_size=16).digest()


def rle_from_png(png: bytes) -> list[Mapping[str, Any]]:
    """Return COCO RLE of each object in a palette PNG."""
    with open_image_bytes(png, ("PNG",)) as image:
        labels = np.array(image, dtype=np.uint8)
    ids = np.flatnonzero(np.bincount(labels.ravel(), minlength=1)[1:]) + 1
    return [
        {
            "object_id": int(object_id),
            "segmentation": {
                "size": list(labels.shape),
                "counts": string_from_counts(counts_from_mask(labels == object_id)),
            },
        }
        for object_id in ids
    ]
