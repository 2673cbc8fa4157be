"""Limits of the service, and the errors that its clients get."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.exceptions import HTTPException

_LEAST_REQUESTS = 64
_REQUESTS_PER_SESSION = 8
RETRY_AFTER_S = 5
SHUTDOWN_RETRY_AFTER_S = 30
"""Clients that were refused may try again after this time."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of the service.

    Attributes:
        sessions: Sessions at once.
        memory_mb: Memory of all sessions together in MB, by :func:`memory_need_mb`.
        idle_s: A session without a request and without work is removed after this time.
        queue: Frames of a session that wait for the networks.
        wait_s: A frame waits so long for room in the queue, before it is refused.
        upload_mb: All uploads of one session in MiB, and so the largest video.
        image_mb: Largest frame or mask file in MiB.
        pixels: Most pixels of a frame, for :func:`mpn.runtime.media.decoder.limit_pixels`.
        objects: Most objects of a session.
        frames: Most frames of a session.
        patience_s: Time for a body of no bytes, see :class:`mpn.web.access.AccessControl`.
        shutdown_s: Time to finish the queued frames and to save all sessions at the end.
    """

    sessions: int = 8
    memory_mb: int = 4000
    idle_s: float = 600.0
    queue: int = 4
    wait_s: float = 10.0
    upload_mb: int = 2048
    image_mb: int = 32
    pixels: int = 10_000_000
    objects: int = 20
    frames: int = 100_000
    patience_s: float = 30.0
    shutdown_s: float = 30.0

    @property
    def requests(self) -> int:
        """Most requests at once, open event streams included."""
        return max(_LEAST_REQUESTS, _REQUESTS_PER_SESSION * self.sessions)


_MB_PER_SESSION, _MB_PER_OBJECT, _MB_PER_MPX = 60, 45, 90
"""As a run, see :mod:`mpn.runtime.session.session`, without the engines, which are shared."""


def memory_need_mb(size_hw: tuple[int, int], objects: int, queue: int) -> int:
    """Estimate the memory of a session in MB.

    Args:
        size_hw: Of its frames.
        objects: Their number.
        queue: Decoded frames that may wait.
    """
    pixels_m = size_hw[0] * size_hw[1] / 1e6
    return round(
        _MB_PER_SESSION + _MB_PER_OBJECT * objects + _MB_PER_MPX * pixels_m + 3 * queue * pixels_m
    )


def not_found(what: str) -> HTTPException:
    """Return the error for a session or a frame that does not exist."""
    return HTTPException(404, f"there is no {what}")


def conflict(message: str) -> HTTPException:
    """Return the error for a request that does not fit the state of the session."""
    return HTTPException(409, message)


def unusable(message: str) -> HTTPException:
    """Return the error for an upload that cannot be used."""
    return HTTPException(422, message)


def too_large(message: str) -> HTTPException:
    """Return the error for a request over a limit of size."""
    return HTTPException(413, message)


def busy(status: int, message: str, retry_after_s: int = RETRY_AFTER_S) -> HTTPException:
    """Return the error for a request that may succeed later, 429 or 503."""
    return HTTPException(status, message, {"retry-after": str(retry_after_s)})


def stopping() -> HTTPException:
    """Return the error for new work while the server stops."""
    return busy(503, "the server stops: send new work to another", SHUTDOWN_RETRY_AFTER_S)
