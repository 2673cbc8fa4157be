"""HTTP interface of the service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from fractions import Fraction
from typing import Annotated, Any, Final, Literal

from fastapi import Body, FastAPI, Header, HTTPException, Path, Query, Request, Security
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.security import HTTPBearer
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mpn import __version__
from mpn._common.files import json_text
from mpn._common.text import LONGEST_MESSAGE, one_line
from mpn.errors import InputError, MpnError, OutputError
from mpn.service.archive import zip_of_folder
from mpn.service.frame_session import FrameSession
from mpn.service.limits import RETRY_AFTER_S, Limits, busy, conflict, not_found, unusable
from mpn.service.models import (
    AcceptedFrame,
    Frame,
    GivenMask,
    Health,
    NewSession,
    Problem,
    RleMask,
    SessionList,
    SessionState,
)
from mpn.service.session import MaskFormat, Session, rle_from_png
from mpn.service.sessions import Sessions
from mpn.service.uploads import uploaded
from mpn.service.video_session import VideoSession
from mpn.web.access import LOOPBACK_NAMES, AccessControl

PREFIX: Final = "/v1/sessions"
_OPEN_PATHS: Final = frozenset({"/healthz", "/readyz"})
"""Load balancers have no token, and these paths state nothing about sessions."""

_SMALL_BODY_BYTES = 64 << 10
_LONGEST_WAIT_S = 60.0

_DESCRIPTION = """\
Segment objects in videos with the Mask Propagation Network: a mask in, masks out.

**A video.** `POST /v1/sessions` with `{"feed": "video"}`, then `PUT .../video`, then
`PUT .../masks/0` with the mask of frame 0, then `POST .../run`. The events stream the masks as
they come. To correct a frame, or to add an object, `PUT` its mask and `POST .../run` again: only
the frames that depend on it are computed.

**Frames.** `POST /v1/sessions` with `{"feed": "frames"}`, then `PUT .../frames/0` and
`PUT .../masks/0`, then `PUT .../frames/1`, ... in order. `GET .../masks/N?wait_s=30` returns the
mask of a frame when it is computed. A mask of the latest frame corrects it before the next frame.

**Bodies.** Files are sent as the body of the request, without a form. A mask may have any format
of `mpn run --mask`: a palette PNG, a 0/255 mask, JSON of labelme, COCO or YouTube-VIS, XML or zip
of CVAT, text of YOLO, `.npy`.

**Limits.** 429 and 503 have `Retry-After`. All requests but `/healthz` and `/readyz` need the
token of the server: `Authorization: Bearer TOKEN`.
"""

_BINARY: Final = {"schema": {"type": "string", "format": "binary"}}
SessionId = Annotated[
    str, Path(alias="id", pattern="^[0-9a-f]{32}$", description="Id of the session.")
]
FrameIndex = Annotated[Frame, Path(description="Index of the frame, from 0.")]
MaskQuery = Annotated[
    Literal["png", "rle"],
    Query(alias="format", description="A palette PNG, or COCO RLE as JSON."),
]


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    texts = {
        400: "The upload was cut, or the request is malformed.",
        401: "The token is missing or wrong.",
        403: "The request is from a page of another site.",
        404: "There is no such session, frame or mask.",
        408: "The upload is too slow.",
        409: "The request does not fit the state of the session.",
        413: "The upload, or the number of objects or frames, is over the limits of the server.",
        421: "The host of the request is not this server.",
        422: "The upload or a value cannot be used; the detail has the reason.",
        429: "Too many sessions, or the queue is full; try again after Retry-After seconds.",
        503: "Too little memory, or the server stops; try again after Retry-After seconds.",
        507: "The disk of the server is full.",
    }
    retry = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}}
    return {
        status: {
            "description": texts[status],
            "model": Problem,
            **({"headers": retry} if status in (429, 503) else {}),
        }
        for status in (401, 403, 421, 422, *statuses)
    }


def _file_body(*media_types: str) -> dict[str, Any]:
    content = dict.fromkeys(("application/octet-stream", *media_types), _BINARY)
    return {"requestBody": {"required": True, "content": content}}


_UPLOAD_PROBLEMS = _problems(400, 404, 408, 409, 413, 429, 503, 507)
_MASK_BODY = _file_body("image/png", "application/json", "application/xml", "application/zip")


def create_app(
    sessions: Sessions, *, token: str, hosts: frozenset[str] | None = LOOPBACK_NAMES
) -> ASGIApp:
    """Create the application, with access control around it.

    Args:
        sessions: Shared state.
        token: Token of the clients.
        hosts: See :class:`mpn.web.access.AccessControl`.
    """
    limits = sessions.limits
    app = FastAPI(
        title="mpn serve",
        version=__version__,
        description=_DESCRIPTION,
        docs_url=None,  # these pages load scripts from another host
        redoc_url=None,
        dependencies=[Security(HTTPBearer(auto_error=False, description="Token of the server."))],
        license_info={"name": "Apache-2.0"},
    )
    _add_errors(app)
    _add_status(app, sessions)
    _add_sessions(app, sessions)
    _add_uploads(app, sessions)
    _add_results(app, sessions)
    guarded = AccessControl(
        app,
        token=token,
        needs_token=lambda path: path not in _OPEN_PATHS,
        most_body_bytes=lambda path: _most_body_bytes(path, limits),
        hosts=hosts,
        patience_s=limits.patience_s,
    )
    return _Counted(guarded, sessions)


def _most_body_bytes(path: str, limits: Limits) -> int:
    parts = path.removeprefix(f"{PREFIX}/").split("/")
    if len(parts) >= 2 and parts[1] == "video":
        return limits.upload_mb << 20
    if len(parts) >= 2 and parts[1] in ("frames", "masks"):
        return limits.image_mb << 20
    return _SMALL_BODY_BYTES


class _Counted:
    """ASGI middleware that limits the requests at once, and counts them.

    Args:
        app: The application.
        sessions: Their limits and figures.
    """

    def __init__(self, app: ASGIApp, sessions: Sessions) -> None:
        self._app, self._sessions = app, sessions
        self._active = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._active += 1
        try:
            if self._active > self._sessions.limits.requests:
                headers = {"retry-after": str(RETRY_AFTER_S)}
                await Response(status_code=503, headers=headers)(scope, receive, counted)
            else:
                await self._app(scope, receive, counted)
        finally:
            self._active -= 1
            route = getattr(scope.get("route"), "path", "none")
            method = scope["method"] if route != "none" else "any"
            self._sessions.metrics.requests.labels(method, route, status).inc()


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(MpnError)
    async def _refused(request: Request, error: MpnError) -> Response:
        status = 500
        if isinstance(error, InputError):
            status = 422
        elif isinstance(error, OutputError):
            status = 507
        return JSONResponse({"detail": one_line(error, LONGEST_MESSAGE)}, status)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> Response:
        found = error.errors()
        first = found[0] if found else {"loc": (), "msg": "it cannot be read"}
        sent = request.headers.get("content-type", "")
        if first["loc"][:1] == ("body",) and not _is_json(sent):
            return JSONResponse({"detail": _wrong_type(sent)}, 422)
        place = ".".join(str(part) for part in first["loc"])
        detail = one_line(f"{place}: {first['msg']}", LONGEST_MESSAGE)
        return JSONResponse({"detail": detail}, 422)


def _is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or (
        kind.startswith("application/") and kind.endswith("+json")
    )


def _wrong_type(content_type: str) -> str:
    sent = f"the Content-Type is {content_type}" if content_type else "there is no Content-Type"
    return one_line(f"{sent}: send the body as application/json", LONGEST_MESSAGE)


def _add_status(app: FastAPI, sessions: Sessions) -> None:
    @app.get("/healthz", tags=["status"], response_model=Health)
    async def health() -> dict[str, str]:
        """Return whether the process serves requests; needs no token."""
        return {"status": "ok"}

    @app.get(
        "/readyz",
        tags=["status"],
        response_model=Health,
        responses={503: {"model": Health, "description": "The server stops."}},
    )
    async def ready() -> Response:
        """Return whether the server takes new work; needs no token."""
        is_draining = sessions.is_draining
        status = "stopping" if is_draining else "ready"
        return JSONResponse({"status": status}, 503 if is_draining else 200)

    @app.get(
        "/metrics",
        tags=["status"],
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}}, **_problems()},
    )
    async def metrics() -> Response:
        """Return figures for Prometheus: frames, latency by stage, sessions, errors."""
        text = await run_in_threadpool(sessions.metrics.text)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_sessions(app: FastAPI, sessions: Sessions) -> None:
    @app.post(
        PREFIX,
        status_code=201,
        tags=["sessions"],
        response_model=SessionState,
        responses=_problems(400, 408, 413, 429, 503, 507),
    )
    async def create_session(body: Annotated[NewSession, Body()], response: Response) -> Any:
        """Create a session for one video."""
        save: Any = frozenset(body.save)

        def make(root: Any, shared: Any) -> Session:
            if body.feed == "video":
                return VideoSession(root, shared, save, body.direction)
            return FrameSession(root, shared, save, Fraction(str(body.fps)))

        session = sessions.create(make)
        response.headers["location"] = f"{PREFIX}/{session.id}"
        return session.as_json()

    @app.get(PREFIX, tags=["sessions"], response_model=SessionList, responses=_problems())
    async def list_sessions() -> Any:
        """Return all sessions of this server."""
        return {"sessions": [session.as_json() for session in sessions.all()]}

    @app.get(
        f"{PREFIX}/{{id}}", tags=["sessions"], response_model=SessionState, responses=_problems(404)
    )
    async def get_session(session_id: SessionId) -> Any:
        """Return the state of a session."""
        return sessions.get(session_id).as_json()

    @app.delete(f"{PREFIX}/{{id}}", status_code=204, tags=["sessions"], responses=_problems(404))
    async def close_session(session_id: SessionId) -> None:
        """Stop a session, and remove its uploads and results from the server."""
        await run_in_threadpool(sessions.remove, session_id, "closed")

    @app.post(
        f"{PREFIX}/{{id}}/run",
        status_code=202,
        tags=["sessions"],
        response_model=SessionState,
        responses=_problems(404, 409, 503),
    )
    async def start_run(session_id: SessionId) -> Any:
        """Segment the video with all masks; frames that are up to date are kept.

        A run in progress is stopped first, and continued. The masks are those of
        `mpn run --resume` with the same masks.
        """
        session = _video_session(sessions, session_id)
        await run_in_threadpool(session.start)
        return session.as_json()

    @app.delete(
        f"{PREFIX}/{{id}}/run",
        status_code=202,
        tags=["sessions"],
        response_model=SessionState,
        responses=_problems(404, 409),
    )
    async def stop_run(session_id: SessionId) -> Any:
        """Stop the run of a video; its finished frames are kept."""
        session = _video_session(sessions, session_id)
        session.stop()
        await run_in_threadpool(session.join)
        return session.as_json()

    @app.post(
        f"{PREFIX}/{{id}}/end",
        status_code=202,
        tags=["sessions"],
        response_model=SessionState,
        responses=_problems(404, 409),
    )
    async def end_frames(session_id: SessionId) -> Any:
        """End a session of frames: segment the queued ones, and write the results."""
        session = _frame_session(sessions, session_id)
        session.finish()
        await run_in_threadpool(session.join)
        return session.as_json()


def _add_uploads(app: FastAPI, sessions: Sessions) -> None:
    @app.put(
        f"{PREFIX}/{{id}}/video",
        tags=["uploads"],
        response_model=SessionState,
        responses=_UPLOAD_PROBLEMS,
        openapi_extra=_file_body("video/mp4"),
    )
    async def put_video(session_id: SessionId, request: Request) -> Any:
        """Upload the video: a file that `mpn run` reads, of any container."""
        session = _video_session(sessions, session_id)
        async with uploaded(request, session) as path:
            await run_in_threadpool(session.put_video, path)
        return session.as_json()

    @app.put(
        f"{PREFIX}/{{id}}/frames/{{frame}}",
        status_code=202,
        tags=["uploads"],
        response_model=AcceptedFrame,
        responses=_UPLOAD_PROBLEMS,
        openapi_extra=_file_body("image/png", "image/jpeg"),
    )
    async def put_frame(session_id: SessionId, frame: FrameIndex, request: Request) -> Any:
        """Send the next frame: an image of 8 bits.

        Waits for room in the queue, and is refused with 429 if there is none in time.
        """
        session = _frame_session(sessions, session_id)
        if frame < session.next_frame:
            raise conflict(f"frame {frame} was sent already, the next is {session.next_frame}")
        async with uploaded(request, session, is_kept=False) as path, session.turn:
            session.check_next(frame)
            rgb = await run_in_threadpool(session.decode, path)
            loop = asyncio.get_running_loop()
            end_s = loop.time() + sessions.limits.wait_s
            while not session.put_frame(frame, rgb):
                left_s = end_s - loop.time()
                if left_s <= 0 or not await session.changes.wait(left_s):
                    raise busy(429, "the queue of the session is full", 1)
        return {"frame": frame, "queued": session.queued}

    async def take_mask(session_id: str, frame: int | None, request: Request) -> Any:
        session = sessions.get(session_id)
        async with uploaded(request, session) as path:
            return await run_in_threadpool(session.put_mask, frame, path)

    @app.put(
        f"{PREFIX}/{{id}}/masks/{{frame}}",
        tags=["uploads"],
        response_model=GivenMask,
        responses=_UPLOAD_PROBLEMS,
        openapi_extra=_MASK_BODY,
    )
    async def put_mask(session_id: SessionId, frame: FrameIndex, request: Request) -> Any:
        """Give the mask of a frame: the first one, a correction, or new objects.

        Objects with an id that exists are corrected, others are added; objects that are not in
        the mask do not change. It replaces an earlier mask of this frame. A video uses it at the
        next run. In a session of frames, the latest frame is corrected at once, the masks of later
        frames wait for them, and frames before the latest one cannot be corrected.
        """
        return await take_mask(session_id, frame, request)

    @app.put(
        f"{PREFIX}/{{id}}/masks",
        tags=["uploads"],
        response_model=GivenMask,
        responses=_UPLOAD_PROBLEMS,
        openapi_extra=_MASK_BODY,
    )
    async def put_masks(session_id: SessionId, request: Request) -> Any:
        """Give masks of the frames that the file names; without names, of frame 0."""
        return await take_mask(session_id, None, request)

    async def drop_mask(session_id: str, frame: int | None) -> Any:
        session = sessions.get(session_id)
        await run_in_threadpool(session.remove_mask, frame)
        return session.as_json()

    @app.delete(
        f"{PREFIX}/{{id}}/masks/{{frame}}",
        tags=["uploads"],
        response_model=SessionState,
        responses=_problems(404, 409),
    )
    async def remove_mask(session_id: SessionId, frame: FrameIndex) -> Any:
        """Remove a mask that was given for a frame.

        The next run of a video is without it. In a session of frames, only a mask that waits for
        its frame can be removed.
        """
        return await drop_mask(session_id, frame)

    @app.delete(
        f"{PREFIX}/{{id}}/masks",
        tags=["uploads"],
        response_model=SessionState,
        responses=_problems(404, 409),
    )
    async def remove_masks(session_id: SessionId) -> Any:
        """Remove the masks of the file that was given without a frame."""
        return await drop_mask(session_id, None)


def _add_results(app: FastAPI, sessions: Sessions) -> None:
    @app.get(
        f"{PREFIX}/{{id}}/masks/{{frame}}",
        tags=["results"],
        response_class=Response,
        responses={
            200: {
                "description": "The mask.",
                "headers": {
                    "Mpn-Run": {
                        "schema": {"type": "integer"},
                        "description": "Number of the run that computed the mask.",
                    },
                    "Mpn-Revision": {
                        "schema": {"type": "integer"},
                        "description": "Number of its corrections in that run.",
                    },
                },
                "content": {
                    "image/png": _BINARY,
                    "application/json": {"schema": RleMask.model_json_schema()},
                },
            },
            **_problems(404),
        },
    )
    async def get_mask(
        session_id: SessionId,
        frame: FrameIndex,
        kind: MaskQuery = "png",
        wait_s: Annotated[
            float,
            Query(ge=0, le=_LONGEST_WAIT_S, description="Wait so long for the mask, in seconds."),
        ] = 0.0,
    ) -> Response:
        """Return the mask of a frame.

        While a run computes, only the masks of frames that this run has passed are returned: a
        frame that was not computed again has the number of an earlier run. If the work has ended,
        a frame without a mask gets 404 at once, with the reason.
        """
        session = sessions.get(session_id)
        loop = asyncio.get_running_loop()
        end_s = loop.time() + wait_s
        while True:  # without an await before the wait: no change is lost
            has_ended = session.has_ended  # first: a mask may come before the end
            if (mask := session.mask(frame)) is not None:
                break
            if has_ended:
                raise session.without(f"mask of frame {frame}")
            left_s = end_s - loop.time()
            if left_s <= 0 or session.is_closed or not await session.changes.wait(left_s):
                raise not_found(f"mask of frame {frame} yet")
        headers = {"mpn-run": str(mask.run), "mpn-revision": str(mask.revision)}
        if kind == "png":
            return Response(mask.png, media_type="image/png", headers=headers)
        objects = await run_in_threadpool(rle_from_png, mask.png)
        body = {"frame": frame, "run": mask.run, "revision": mask.revision, "objects": objects}
        return Response(json_text(body), media_type="application/json", headers=headers)

    @app.get(
        f"{PREFIX}/{{id}}/events",
        tags=["results"],
        response_class=StreamingResponse,
        responses={
            200: {
                "description": "Server-sent events, until the session is closed.",
                "content": {"text/event-stream": {"schema": {"type": "string"}}},
            },
            **_problems(404),
        },
    )
    async def get_events(
        session_id: SessionId,
        masks: Annotated[
            Literal["none", "png", "rle"],
            Query(description="Send the masks with the frames: `mask_png` (base64) or `mask_rle`."),
        ] = "none",
        after: Annotated[
            int, Query(ge=0, le=1 << 62, description="Id of an event: begin after it.")
        ] = 0,
        last_event_id: Annotated[
            str | None, Header(description="As `after`; clients send it when they connect again.")
        ] = None,
    ) -> Response:
        """Stream what happens in a session, from its beginning.

        Each event has an `id`, a name and JSON: `frame` (`frame`, `run` from 1, `objects` with
        box, area and confidence, `revision`: 1 and more after corrections of the latest frame),
        `backward` (`done`, `expected` of a backward pass), `state` (`state`, `message`),
        `closed`. An event whose mask was computed again since then has no mask; the later event
        of that frame has it.
        """
        session = sessions.get(session_id)
        position = after
        if last_event_id:  # empty: no event yet
            if not (last_event_id.isascii() and last_event_id.isdecimal()):
                raise unusable("Last-Event-ID is no id of an event: send an id of this session")
            position = int(last_event_id[:20])
        if not session.log.is_position(position):
            raise HTTPException(422, f"{position} is no id of an event of this session")
        kind: MaskFormat | None = None if masks == "none" else masks
        return StreamingResponse(
            _event_stream(session, position, kind), media_type="text/event-stream"
        )

    @app.get(
        f"{PREFIX}/{{id}}/results",
        tags=["results"],
        response_class=StreamingResponse,
        responses={
            200: {
                "description": "Zip file with the folder that `mpn run` writes.",
                "content": {"application/zip": _BINARY},
            },
            **_problems(404, 409),
        },
    )
    async def get_results(session_id: SessionId) -> Response:
        """Download all results as a zip file, after the run or the end of the frames."""
        session = sessions.get(session_id)
        if session.state in ("open", "running"):
            raise conflict(
                "the results are not complete yet: wait for the end of the run, or end the frames"
            )
        if not session.has_results:
            raise conflict(session.without("frame of the latest run").detail)
        name = f"mpn-{session.id[:8]}.zip"
        return StreamingResponse(
            _of_one_run(session, zip_of_folder(session.results)),
            media_type="application/zip",
            headers={"content-disposition": f'attachment; filename="{name}"'},
        )


def _of_one_run(session: Session, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the pieces of a download, and cut it if another run changes the files."""
    run = session.run
    for piece in pieces:
        if session.run != run:
            raise OutputError("the download was cut: another run of the session has begun")
        yield piece


async def _event_stream(
    session: Session, position: int, kind: MaskFormat | None
) -> AsyncIterator[str]:
    async for entry in session.log.read(position):
        if entry is None:
            yield ":\n\n"
            continue
        event_id, event = entry
        if kind is not None and event["type"] == "frame":
            event = await run_in_threadpool(session.event_with_mask, event, kind)
        name = event.pop("type")
        yield f"id: {event_id}\nevent: {name}\ndata: {json_text(event)}\n\n"


def _video_session(sessions: Sessions, session_id: str) -> VideoSession:
    session = sessions.get(session_id)
    if not isinstance(session, VideoSession):
        raise conflict("the session takes frames one by one, not a video")
    return session


def _frame_session(sessions: Sessions, session_id: str) -> FrameSession:
    session = sessions.get(session_id)
    if not isinstance(session, FrameSession):
        raise conflict("the session takes a video, not frames one by one")
    return session
