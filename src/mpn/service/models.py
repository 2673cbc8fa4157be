"""JSON bodies of the interface, for its OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mpn.runtime.session.schedule import Direction
from mpn.service.session import Feed, State

Frame = Annotated[int, Field(ge=0, le=10_000_000)]


class Problem(BaseModel):
    """Body of every error."""

    detail: str = Field(description="One line: the received value, the expected one, the remedy.")


class NewSession(BaseModel):
    """Body of a request that creates a session."""

    model_config = ConfigDict(extra="forbid")

    feed: Feed = Field(
        description="`video`: one file is uploaded, and runs with all masks can be repeated. "
        "`frames`: images are sent one by one, and each mask comes before the next frame is known."
    )
    save: list[Literal["overlay", "rle"]] = Field(
        default=[],
        max_length=2,
        description="Results in addition to the masks: a video with the masks drawn on it, and "
        "all masks as COCO RLE in one file.",
    )
    direction: Direction = Field(
        default="both",
        description="Only of a video: where its masks apply. `both`: frames before the first mask "
        "are segmented backward, and frames between two masks are blended.",
    )
    fps: float = Field(
        default=24.0,
        ge=0.001,
        le=1000.0,
        allow_inf_nan=False,
        strict=True,  # JSON true is no number
        description="Only of frames: their rate in the results.",
    )


class SessionState(BaseModel):
    """A session."""

    id: str = Field(description="32 hexadecimal digits.")
    feed: Feed
    state: State = Field(
        description="`open`: waits for uploads. `running`. `complete`. `stopped`: ended early, the "
        "finished frames are kept. `failed`: see `message`."
    )
    message: str = Field(
        description="The error of a session that failed, or a line about masks whose frames did "
        "not come; else empty."
    )
    run: int = Field(description="Number of the latest run, from 1; 0 before the first one.")
    width: int | None = Field(description="Of the frames; null before the first upload.")
    height: int | None = Field(description="Of the frames; null before the first upload.")
    frames_done: int = Field(description="Index after the last frame that has a mask.")
    frames_expected: int | None = Field(
        description="Number of frames of the video: by its header, which may be wrong, and after "
        "a complete run as counted."
    )
    next_frame: int | None = Field(default=None, description="Of a session of frames: send this.")
    queued: int | None = Field(default=None, description="Frames that wait for the networks.")
    object_ids: list[int]
    save: list[str]


class SessionList(BaseModel):
    """All sessions."""

    sessions: list[SessionState]


class GivenMask(BaseModel):
    """A mask that was taken."""

    frames: list[int] = Field(description="Frames that it has labels of.")
    object_ids: list[int] = Field(description="Objects in it.")
    object_names: dict[str, str] = Field(description="Names of the objects, by id.")
    is_applied: bool = Field(
        description="Whether the mask of the latest frame is corrected already. Otherwise it "
        "applies when its frame is computed: at the next run, or when that frame is sent."
    )
    notes: list[str] = Field(description="Lines about parts of the file that were left out.")


class AcceptedFrame(BaseModel):
    """A frame that was queued."""

    frame: int
    queued: int = Field(description="Frames that wait for the networks, this one included.")


class RleMask(BaseModel):
    """A mask as COCO RLE."""

    frame: int
    run: int = Field(description="Number of the run that computed it.")
    revision: int = Field(description="Number of its corrections in that run.")
    objects: list[dict[str, Any]] = Field(
        description="`object_id` and `segmentation` (`size` [height, width] and compressed "
        "`counts`, as pycocotools reads it) of each object that has pixels."
    )


class Health(BaseModel):
    """Status of the server."""

    status: Literal["ok", "ready", "stopping"]
