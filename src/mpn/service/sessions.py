"""All sessions of a server: their number, memory and time."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from mpn._common.locks import FolderLock
from mpn._common.memory import return_freed_memory
from mpn.service.engines import ServerEngines
from mpn.service.limits import Limits, busy, not_found, stopping
from mpn.service.metrics import Metrics
from mpn.service.session import Session, Shared

_EXPIRY_INTERVAL_S: Final = 5.0


class Sessions:
    """The sessions of one server, in a folder that this process locks.

    Methods may be called from any thread.

    Args:
        root: Folder of all sessions; created for this user only.
        engines: Shared engines; closed by the caller.
        limits: The limits.

    Raises:
        OutputError: If the folder cannot be used, or another server uses it.
    """

    def __init__(self, root: Path, engines: ServerEngines, limits: Limits) -> None:
        self.root, self.limits, self.metrics = root, limits, Metrics()
        is_new = not root.exists()
        self._lock_file = FolderLock(root)
        if is_new:  # the folder of a user keeps its permissions
            root.chmod(0o700)
        self.shared = Shared(
            engines=engines, limits=limits, metrics=self.metrics, reserve=self._reserve
        )
        self._sessions: dict[str, Session] = {}
        self._reserved_mb: dict[str, int] = {}
        self._lock = threading.Lock()
        self._opening = 0
        self._ended = threading.Event()
        self._draining = threading.Event()
        self._reaper = threading.Thread(target=self._expire, name="mpn-expiry", daemon=True)
        self._reaper.start()

    @property
    def is_draining(self) -> bool:
        """Whether the server takes no more work."""
        return self._draining.is_set()

    def create(self, make: Callable[[Path, Shared], Session]) -> Session:
        """Create a session.

        Raises:
            HTTPException: 429 if there are too many, 503 if the server stops.
        """
        with self._lock:
            if self._draining.is_set():
                raise stopping()
            if len(self._sessions) + self._opening >= self.limits.sessions:
                raise busy(
                    429,
                    f"{self.limits.sessions} sessions exist, and there may be no more: close one, "
                    "or try again later",
                )
            self._opening += 1
        try:
            session = make(self.root, self.shared)
        finally:
            with self._lock:
                self._opening -= 1
        with self._lock:
            self._sessions[session.id] = session
            if self._draining.is_set():
                session.drain()
        self.metrics.sessions.labels(session.feed).inc()
        return session

    def get(self, session_id: str) -> Session:
        """Return a session, and count the use.

        Raises:
            HTTPException: 404 if there is none.
        """
        session = self._sessions.get(session_id)
        if session is None:
            raise not_found("such session")
        session.used_s = time.monotonic()
        return session

    def all(self) -> list[Session]:
        """Return all sessions, in the order of their creation."""
        with self._lock:
            return list(self._sessions.values())

    def remove(self, session_id: str, reason: str) -> None:
        """Stop a session and remove everything of it; waits for its thread.

        Raises:
            HTTPException: 404 if there is none.
        """
        with self._lock:
            session = self._sessions.pop(session_id, None)
            self._reserved_mb.pop(session_id, None)
        if session is None:
            raise not_found("such session")
        session.close(reason)
        feed = session.feed
        del session
        # Its arrays may be in cycles, which Python would keep until many objects are made.
        gc.collect()
        return_freed_memory()
        self.metrics.sessions.labels(feed).dec()
        self.metrics.sessions_ended.labels(reason).inc()

    def drain(self) -> None:
        """Take no more work; queued frames are still computed."""
        with self._lock:
            self._draining.set()
            sessions = list(self._sessions.values())
        for session in sessions:
            session.drain()

    def finish(self) -> bool:
        """Wait for all sessions after :meth:`drain`, within the time of a shutdown.

        Returns:
            Whether all have ended in time. The others are stopped after their current frame; if
            that takes too long, they are left, as after a kill.
        """
        end_s = time.monotonic() + self.limits.shutdown_s
        in_time = True
        for session in self.all():
            in_time &= session.join(max(0.0, end_s - time.monotonic()))
        for session in self.all():
            session.stop()
        for session in self.all():
            session.join(max(0.0, end_s + self.limits.shutdown_s / 4 - time.monotonic()))
            session.end()
        return in_time

    def close(self) -> None:
        """End the thread that removes idle sessions, and unlock the folder."""
        self._ended.set()
        self._reaper.join()
        self._lock_file.close()

    def remove_idle(self) -> None:
        """Remove the sessions that were idle for too long."""
        now_s = time.monotonic()
        for session in self.all():
            if now_s - session.used_s > self.limits.idle_s and not session.is_working:
                self.remove(session.id, "idle")

    def _expire(self) -> None:
        interval_s = min(_EXPIRY_INTERVAL_S, self.limits.idle_s / 2)
        while not self._ended.wait(interval_s):
            if not self.is_draining:
                self.remove_idle()

    def _reserve(self, session_id: str, need_mb: int) -> None:
        with self._lock:
            others_mb = sum(mb for k, mb in self._reserved_mb.items() if k != session_id)
            if need_mb > self.limits.memory_mb:
                raise busy(
                    503,
                    f"the session needs about {need_mb} MB, and this server has "
                    f"{self.limits.memory_mb} MB for all sessions: use smaller frames",
                    3600,
                )
            if others_mb + need_mb > self.limits.memory_mb:
                raise busy(
                    503,
                    f"the session needs about {need_mb} MB, and the others have {others_mb} of "
                    f"{self.limits.memory_mb} MB: try again when one is closed",
                )
            if session_id in self._sessions:
                self._reserved_mb[session_id] = need_mb
