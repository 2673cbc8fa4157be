"""HTTP interface of the studio."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import numpy.typing as npt
from fastapi import Body, FastAPI, Header, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel
from starlette.types import ASGIApp

from mpn._common.files import json_text
from mpn._common.locks import TemporaryFolder
from mpn.errors import InputError, MaskError, MpnError
from mpn.masks import load_labels
from mpn.runtime.media.overlay import OVERLAY_PALETTE
from mpn.runtime.session.schedule import Direction
from mpn.studio.events import Broadcaster
from mpn.studio.frames import SIDES_PX, FrameReader
from mpn.studio.project import Project, ShownMask, StaleError
from mpn.studio.runner import Runner
from mpn.studio.worker import provisional_path, request_as_json
from mpn.studio.worth import frames_to_check
from mpn.types import MAX_OBJECT_ID, UInt8Array
from mpn.web.access import AccessControl

API_PREFIX: Final = "/api/"
WEB_FOLDER: Final = Path(__file__).with_name("web")
_MEDIA_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

_SMALL_BODY_BYTES = 64 << 10
_GZIP_LEVEL = 1
_COUNT_BYTES = 4
_MOST_LENGTH_BYTES = 5
_ANY_ETAG = "*"


class NameOfObject(BaseModel):
    """Body of a request that names an object."""

    name: str


class DirectionOfMask(BaseModel):
    """Body of a request that sets the direction of a mask."""

    direction: Direction


class RunOptions(BaseModel):
    """Body of a request that starts a run."""

    restart: bool = False


class Studio:
    """State that all requests of one server share.

    Args:
        project: The output folder.
        frames: The video.
        engine_dir: Engines of the runs; None for those of the package.
    """

    def __init__(self, project: Project, frames: FrameReader, *, engine_dir: Path | None) -> None:
        self.project, self.frames, self.engine_dir = project, frames, engine_dir
        self.events = Broadcaster()
        self._provisional = TemporaryFolder()
        self.runner = Runner(
            project.journal,
            project.tracks,
            project.result_count,
            self._provisional.path,
            self.events.publish,
        )

    def state(self) -> dict[str, Any]:
        """Return all that a page needs at its start, as JSON types."""
        project = self.project
        height, width = project.size_hw
        return {
            "video": {
                "name": project.name,
                "frames": project.frame_count,
                "width": width,
                "height": height,
                "first": project.first_index,
                "sides": SIDES_PX,
            },
            "out": str(project.out),
            "palette": OVERLAY_PALETTE.tolist(),
            "run": self.runner.status,
            **self.edits(),
        }

    def edits(self) -> dict[str, Any]:
        """Return the drawn masks, names and directions, as JSON types."""
        project = self.project
        return {
            "drawn": {str(index): etag for index, etag in project.drawn().items()},
            "pending": project.pending(),
            "names": {str(object_id): name for object_id, name in project.names.items()},
            "directions": {str(index): each for index, each in project.directions.items()},
        }

    def mask(self, index: int) -> ShownMask:
        """Return the mask of a frame, that of a backward pass in progress included."""
        shown = self.project.mask(index)
        path = provisional_path(self._provisional.path, index)
        if shown.source == "drawn" or not path.exists():
            return shown
        try:
            labels = load_labels(path, max_objects=MAX_OBJECT_ID, allow_empty=True)
        except MaskError:  # it became a result in the meantime
            return self.project.mask(index)
        return replace(shown, labels=labels, source="result")

    def start(self, *, restart: bool) -> None:
        """Start a run with all drawn masks.

        Raises:
            InputError: If no object was drawn, or a run is in progress.
        """
        project = self.project
        masks = project.usable_masks()
        if not masks:
            raise InputError("no object is drawn yet: paint one, then run")
        earlier = project.run_report() or {}
        self.runner.start(
            request_as_json(
                video=project.video,
                masks=masks,
                directions=project.directions,
                names=project.names,
                out=project.out,
                provisional=self._provisional.path,
                engine_dir=self.engine_dir,
                start=project.first_index or None,
                end=project.end,
                save=frozenset({"masks", *earlier.get("saved", ())}),
                resume=not restart,
                review=project.paths.review.exists(),
            )
        )

    def close(self) -> None:
        """End the event streams, and stop the run."""
        self.events.close()
        self.runner.close()
        self._provisional.close()


def create_app(studio: Studio, *, token: str) -> ASGIApp:
    """Create the application, with access control around it.

    Args:
        studio: Shared state.
        token: Token that each request of the interface must have.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    project = studio.project
    height, width = project.size_hw
    most_body_bytes = _SMALL_BODY_BYTES + 2 * height * width  # each pixel a run

    for path in sorted(WEB_FOLDER.iterdir()):
        if path.suffix in _MEDIA_TYPES:
            _add_file(app, path)

    @app.exception_handler(MpnError)
    async def _refused(request: Request, error: MpnError) -> Response:
        status = 409 if isinstance(error, InputError) else 500
        return _json({"message": str(error)}, status)

    @app.exception_handler(StaleError)
    async def _stale(request: Request, error: StaleError) -> Response:
        return _json({"message": str(error), "etag": error.etag}, 412)

    @app.get("/api/state")
    def _state() -> Response:
        return _json(studio.state())

    @app.get("/api/tracks")
    def _tracks() -> Response:
        entries = project.tracks()
        return _json({"frames": entries, "worth": frames_to_check(entries)}, is_compressed=True)

    @app.get("/api/frames/{index}/{level}")
    def _frame(index: int, level: int) -> Response:
        _check_index(index, project)
        if not 0 <= level < len(SIDES_PX):
            raise HTTPException(404)
        return Response(studio.frames.jpeg(index, level), media_type="image/jpeg")

    @app.get("/api/masks/{index}")
    def _mask(index: int) -> Response:
        _check_index(index, project)
        mask = studio.mask(index)
        headers = {"x-mask-source": mask.source, "etag": f'"{mask.etag}"'}
        if mask.labels is None:
            return Response(status_code=204, headers=headers)
        data = gzip.compress(mask.labels.tobytes(), _GZIP_LEVEL)
        headers["content-encoding"] = "gzip"
        return Response(data, media_type="application/octet-stream", headers=headers)

    @app.put("/api/masks/{index}")
    async def _save_mask(
        index: int,
        request: Request,
        if_match: Annotated[str, Header()],
        x_page: Annotated[str, Header()] = "",
    ) -> Response:
        _check_index(index, project)
        body = await request.body()

        def save() -> str:
            labels = labels_from_body(body, project.size_hw)
            return project.save_mask(index, labels, base_etag=_base(if_match))

        etag = await run_in_threadpool(save)
        studio.events.publish({"type": "mask", "frame": index, "etag": etag, "page": x_page})
        return _json({"etag": etag})

    @app.delete("/api/masks/{index}")
    def _remove_mask(
        index: int, if_match: Annotated[str, Header()], x_page: Annotated[str, Header()] = ""
    ) -> Response:
        _check_index(index, project)
        project.remove_mask(index, base_etag=_base(if_match))
        etag = project.etag(index)
        studio.events.publish({"type": "mask", "frame": index, "etag": etag, "page": x_page})
        return _json({"etag": etag})

    @app.get("/api/edits")
    def _edits() -> Response:
        return _json(studio.edits())

    @app.put("/api/names/{object_id}")
    def _set_name(object_id: int, body: Annotated[NameOfObject, Body()]) -> Response:
        project.set_name(object_id, body.name)
        if not studio.runner.is_running:  # a run writes them at its end
            project.save_names_of_results()
        studio.events.publish({"type": "edits"})
        return _json(studio.edits())

    @app.put("/api/directions/{index}")
    def _set_direction(index: int, body: Annotated[DirectionOfMask, Body()]) -> Response:
        _check_index(index, project)
        project.set_direction(index, body.direction)
        studio.events.publish({"type": "edits"})
        return _json(studio.edits())

    @app.post("/api/run")
    def _run(body: Annotated[RunOptions, Body()]) -> Response:
        studio.start(restart=body.restart)
        return _json(studio.runner.status)

    @app.delete("/api/run")
    def _cancel() -> Response:
        studio.runner.cancel()
        return _json(studio.runner.status)

    @app.get("/api/events")
    async def _events() -> Response:
        first = {"type": "hello", "run": studio.runner.status}
        stream: AsyncIterator[str] = studio.events.subscribe(first)
        return StreamingResponse(stream, media_type="text/event-stream")

    return AccessControl(
        app,
        token=token,
        needs_token=lambda path: path.startswith(API_PREFIX),
        most_body_bytes=lambda path: most_body_bytes,
    )


def labels_from_body(body: bytes, size_hw: tuple[int, int]) -> UInt8Array:
    """Return the ids of a request, which are encoded by runs as in ``web/runs.js``.

    Returns:
        (H, W) uint8.

    Raises:
        MaskError: If the body is damaged or has another number of pixels.
    """
    data = np.frombuffer(body, np.uint8)
    first = _COUNT_BYTES + int.from_bytes(body[:_COUNT_BYTES], "little")
    ids, lengths = data[_COUNT_BYTES:first], _lengths_from_bytes(data[first:])
    # Checked before the pixels are made, so that no request makes more than a frame.
    if len(ids) != len(lengths) or int(lengths.sum()) != size_hw[0] * size_hw[1]:
        raise MaskError(
            f"the mask of the request is damaged or has not the {size_hw[0] * size_hw[1]} pixels "
            "of a frame"
        )
    labels: UInt8Array = np.repeat(ids, lengths).reshape(size_hw)
    return labels


def _lengths_from_bytes(data: UInt8Array) -> npt.NDArray[np.int64]:
    """Return the lengths of runs, of 7 bits in a byte; none if the bytes are damaged."""
    ends = np.flatnonzero(data < 128)
    starts = np.concatenate(([0], ends[:-1] + 1))
    sizes = ends - starts + 1
    if not len(ends) or ends[-1] != len(data) - 1 or sizes.max() > _MOST_LENGTH_BYTES:
        return np.zeros(0, np.int64)
    places = np.arange(len(data)) - np.repeat(starts, sizes)
    bits = (data & 127).astype(np.int64) << (7 * places)
    lengths: npt.NDArray[np.int64] = np.add.reduceat(bits, starts)
    return lengths


def _add_file(app: FastAPI, path: Path) -> None:
    """Serve one file of the package under its name; index.html under ``/``."""
    content, media_type = path.read_bytes(), _MEDIA_TYPES[path.suffix]

    async def serve() -> Response:
        return Response(content, media_type=media_type)

    address = "/" if path.name == "index.html" else f"/{path.name}"
    app.add_api_route(address, serve, methods=["GET"])


def _check_index(index: int, project: Project) -> None:
    if not 0 <= index < project.frame_count:
        raise HTTPException(404)


def _base(if_match: str) -> str | None:
    return None if if_match == _ANY_ETAG else if_match.strip('"')


def _json(value: Mapping[str, Any], status: int = 200, *, is_compressed: bool = False) -> Response:
    data, headers = json_text(value).encode(), {}
    if is_compressed:
        data, headers = gzip.compress(data, _GZIP_LEVEL), {"content-encoding": "gzip"}
    return Response(data, status, headers, media_type="application/json")
