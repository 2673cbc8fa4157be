"""Define the request for a run, and read its masks."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpn._common.concurrency import usable_threads
from mpn._common.validation import check_choice
from mpn.errors import InputError
from mpn.runtime.media.video import Decode, VideoSource
from mpn.runtime.options import PipelineOptions
from mpn.runtime.session.mask_files import read_mask_files
from mpn.runtime.session.outputs import DEFAULT_SAVE, SaveKind
from mpn.runtime.session.passes import BackwardProgress
from mpn.runtime.session.report import sha256_of_array
from mpn.runtime.session.schedule import DIRECTIONS, Direction, GivenMask
from mpn.runtime.session.stepping import mask_after_end
from mpn.runtime.state import object_ids_from_labels
from mpn.types import UInt8Array

if TYPE_CHECKING:
    from mpn.engines.open import Backend


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """Inputs, options and outputs of one run.

    Attributes:
        video: See :func:`mpn.runtime.media.video.open_video`.
        masks: Frame index -> mask file or folder, see :func:`mpn.formats.read_masks`; None stands
            for the first frame, or the frames named in the file. Any frame may have a mask; later
            masks correct objects, or add new ones. For a folder of images, a file with the name of
            an image belongs to that image.
        direction: Direction of the masks, see :mod:`mpn.runtime.session.schedule`. None: a resumed
            run keeps the direction of each mask that the earlier run had too; others are "both".
        directions: Frame index -> direction of its mask, instead of ``direction``.
        names: Object id -> name, instead of those in the files.
        out: Folder for the results; None for ``<name of the video>-mpn`` in the current folder.
        engine_dir: See :func:`mpn.engines.directory.locate.local_engine_dir`.
        backend: See :func:`mpn.engines.open.open_engines`.
        threads: See :meth:`mpn.runtime.pipeline.Pipeline.from_engines`.
        options: Options of the pipeline. ``finetune`` applies if the engine directory can be
            fine-tuned, see ``must_finetune``.
        must_finetune: Raise if the engine directory cannot be fine-tuned. Otherwise the run
            continues without fine-tuning, and run.json gives the reason; a live source is then not
            fine-tuned either.
        start: Index of the first frame.
        end: Index of the frame to stop before.
        fps: Frame rate of a folder of images.
        decode: Decoder of a video file: see
            :func:`mpn.runtime.media.video_nvdec.choose_decoder`.
        save: Results to write in addition to tracks.jsonl and run.json.
        resume: Continue an earlier run in ``out``, if there is one.
        review: Write review.html, a page with the frames to check. A failure is a warning. mpn-run
            sets it.
        build: Build a plan that is missing or does not fit, for backends that run plans. If False,
            raise, or let ``"auto"`` take another backend.
    """

    video: str
    masks: Mapping[int | None, Path]
    direction: Direction | None = None
    directions: Mapping[int, Direction] = field(default_factory=dict)
    names: Mapping[int, str] = field(default_factory=dict)
    out: Path | None = None
    engine_dir: str | Path | None = None
    backend: Backend = "auto"
    threads: int | None = None
    options: PipelineOptions = field(default_factory=PipelineOptions)
    must_finetune: bool = False
    start: int | None = None
    end: int | None = None
    fps: Fraction | None = None
    decode: Decode = "auto"
    save: frozenset[SaveKind] = DEFAULT_SAVE
    resume: bool = False
    review: bool = False
    build: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "threads", usable_threads(self.threads))

    @property
    def mask_paths(self) -> list[Path]:
        """Files of the masks, those in folders included."""
        paths = self.masks.values()
        return [
            file for path in paths for file in (path.iterdir() if os.path.isdir(path) else [path])
        ]


@dataclass(frozen=True)
class Progress:
    """Progress of a run.

    Attributes:
        done: Finished frames, resumed ones included.
        computed: Frames that this run computed.
        expected: Total frames by the container's header, which may be wrong; None if unknown.
        backward: The backward pass that runs; its frames are not finished yet. None: the frames
            are computed in order.
    """

    done: int
    computed: int
    expected: int | None
    backward: BackwardProgress | None = None


@dataclass(frozen=True)
class Masks:
    """Masks of a run, read and checked.

    Attributes:
        labels: Frame index -> (H, W) uint8 ids.
        given: Frame index -> digest, ids and direction.
        files: Frame index -> the file.
        notes: Lines for the user, such as the number of void pixels.
        names: Object id -> name, of the objects that have one.
    """

    labels: Mapping[int, UInt8Array]
    given: Mapping[int, GivenMask]
    files: Mapping[int, Path]
    notes: tuple[str, ...] = ()
    names: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    def load(cls, request: RunRequest, video: VideoSource) -> Masks:
        """Read the files of a request.

        Raises:
            InputError: If there is no mask or two for a frame, a mask is for a frame that is not
                segmented, the frame of a mask is ambiguous, or frames before the first mask of a
                live source would be needed.
            MaskError: If a file cannot be used as a mask of this video.
        """
        if not request.masks:
            raise InputError("no mask was given: add --mask FIRST.png, the mask of the first frame")
        first = video.first_frame.index
        found, paths = read_mask_files(request.masks, video)
        labels: dict[int, UInt8Array] = {}
        files: dict[int, Path] = {}
        for given, mask in found.labels.items():
            index = first if given is None else given
            if index in labels:
                raise InputError(
                    f"two masks were given for frame {index}, {files[index]} and {paths[given]}: "
                    "give one per frame"
                )
            labels[index], files[index] = mask, paths[given]
        default = request.direction or "both"
        directions = {index: request.directions.get(index, default) for index in labels}
        check_mask_frames(labels, first, video.end_index)
        if video.is_live:
            directions = _forward_only(directions, first)
        masks = {index: given_mask(labels[index], directions[index]) for index in sorted(labels)}
        return cls(labels, masks, files, found.notes, {**found.names, **request.names})

    def with_directions_of(self, report: Mapping[str, Any], keep: Collection[int]) -> Masks:
        """Return the masks with the directions that an earlier run recorded.

        Args:
            report: Its run.json. Only a mask of the same frame and digest counts.
            keep: Frames whose direction does not change.
        """
        given = dict(self.given)
        entries = report.get("masks")
        for entry in entries if isinstance(entries, list) else ():
            if not isinstance(entry, Mapping):
                continue
            index, direction = entry.get("frame"), entry.get("direction")
            if not isinstance(index, int) or index in keep or direction not in DIRECTIONS:
                continue
            mask = given.get(index)
            if mask is not None and mask.sha256 == entry.get("sha256"):
                given[index] = replace(mask, direction=direction)
        return replace(self, given=given)

    def as_json(self) -> list[dict[str, Any]]:
        """Return one JSON entry per mask, by frame."""
        return [
            {
                "frame": index,
                "file": str(self.files[index]),
                "direction": mask.direction,
                "object_ids": list(mask.object_ids),
                "sha256": mask.sha256,
            }
            for index, mask in self.given.items()
        ]


def given_mask(labels: UInt8Array, direction: Direction) -> GivenMask:
    """Return the facts of a mask that its schedule needs.

    Raises:
        InputError: If the direction is unknown.
        MaskError: If the labels hold no object.
    """
    check_choice("the direction of a mask", direction, DIRECTIONS)
    return GivenMask(sha256_of_array(labels), object_ids_from_labels(labels), direction)


def check_mask_frames(frames: Iterable[int], first_index: int, end_index: int | None) -> None:
    """Check that the frames of all masks are segmented.

    Args:
        frames: Their indices.
        first_index: Index of the first frame.
        end_index: Index after the last frame, or an upper bound; None if unknown.

    Raises:
        InputError: If one is not.
    """
    for index in sorted(frames):
        if index < first_index:
            raise InputError(
                f"a mask was given for frame {index}, but the first frame to segment is "
                f"{first_index}: begin there with --start {index}, or leave the mask out"
            )
        if end_index is not None and index >= end_index:
            raise mask_after_end(index, end_index)


def _forward_only(directions: Mapping[int, Direction], first: int) -> dict[int, Direction]:
    if first not in directions:
        raise InputError(
            f"the first frame to segment, frame {first}, has no mask, the earliest given is for "
            f"frame {min(directions)}: a live source runs forward only, so add --mask FIRST.png"
        )
    for index, direction in directions.items():
        if direction == "backward":
            raise InputError(
                f"the mask of frame {index} has the direction 'backward', but a live source runs "
                "forward only"
            )
    return dict.fromkeys(directions, "forward")
