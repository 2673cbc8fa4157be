"""Write request bodies to files that do not outlive a failed request."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from mpn.service.limits import unusable
from mpn.service.session import Session

_PIECE_BYTES = 1 << 20


@asynccontextmanager
async def uploaded(
    request: Request, session: Session, *, is_kept: bool = True
) -> AsyncIterator[Path]:
    """Write the body of a request to a file of a session for the block.

    The file is removed after the block, unless the block has moved it. The limits of size and time
    are those of :class:`mpn.web.access.AccessControl`.

    Args:
        request: The request.
        session: Owner of the file.
        is_kept: Whether the file stays on the disk, and counts for the limit of the session.

    Yields:
        Path of the file.

    Raises:
        HTTPException: If the body is empty, too large for the session or too slow, the client
            disconnects, or the disk is full.
    """
    session.check_open()
    path = session.new_upload()
    try:
        if not await _received(request, session if is_kept else None, path):
            raise unusable("the request has no body: send the file as the body")
        yield path
    except ClientDisconnect:
        raise HTTPException(400, "the upload was cut") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise HTTPException(507, "the disk of the server is full") from error
        session.check_open()  # its folder was removed
        raise
    finally:
        with suppress(OSError):  # without an await: the request may be cancelled
            path.unlink(missing_ok=True)


async def _received(request: Request, session: Session | None, path: Path) -> int:
    size, piece = 0, bytearray()
    file: BinaryIO = await run_in_threadpool(path.open, "xb")
    try:
        async for chunk in request.stream():
            piece += chunk
            if len(piece) >= _PIECE_BYTES:
                if session is not None:
                    session.add_upload(len(piece))
                size += await run_in_threadpool(file.write, bytes(piece))
                piece.clear()
        if session is not None:
            session.add_upload(len(piece))
        size += await run_in_threadpool(file.write, bytes(piece))
    finally:
        file.close()
    return size
