"""Define the request for a run, and read its masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from mpn.errors import InputError
from mpn.runtime.media.video import Decode, VideoSource
from mpn.runtime.options import PipelineOptions
from mpn.runtime.session.mask_files import read_mask_files
from mpn.runtime.session.outputs import DEFAULT_SAVE, SaveKind
from mpn.runtime.session.propagate import check_corrections
from mpn.types import UInt8Array

if TYPE_CHECKING:
    from mpn.engines.open import Backend


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """Inputs, options and outputs of one run.

    Attributes:
        video: See :func:`mpn.runtime.media.video.open_video`.
        masks: Frame index -> mask file or folder, see :func:`mpn.formats.read_masks`; None stands
            for the first frame, or the frames named in the file. Masks of later frames correct
            objects, or add new ones. For a folder of images, a file with the name of an image
            belongs to that image.
        out: Folder for the results; None for ``<name of the video>-mpn`` in the current folder.
        engine_dir: Engine directory of mpn-export; None for the one in the package.
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
        build: Build a plan that is missing or does not fit, for backends that run plans. If False,
            raise, or let ``"auto"`` take another backend.
    """

    video: str
    masks: Mapping[int | None, Path]
    out: Path | None = None
    engine_dir: Path | None = None
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
    build: bool = True


@dataclass(frozen=True)
class Progress:
    """Progress of a run.

    Attributes:
        done: Finished frames, resumed ones included.
        computed: Frames that this run computed.
        expected: Total frames by the container's header, which may be wrong; None if unknown.
    """

    done: int
    computed: int
    expected: int | None


@dataclass(frozen=True)
class Masks:
    """Masks of a run, read and checked.

    Attributes:
        first: (H, W) uint8 ids of the first frame.
        later: Frame index -> (H, W) uint8 ids.
        notes: Lines for the user, such as the number of void pixels.
        names: Object id -> name, of the objects that have one.
    """

    first: UInt8Array
    later: Mapping[int, UInt8Array]
    notes: tuple[str, ...] = ()
    names: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    def load(cls, files: Mapping[int | None, Path], video: VideoSource) -> Masks:
        """Read the files of :attr:`RunRequest.masks`.

        Raises:
            InputError: If the first frame has no mask or two, a mask is for a frame before it or
                after the end, or the frame of a mask is ambiguous.
            MaskError: If a file cannot be used as a mask of this video.
        """
        first_index = video.first_frame.index
        given = read_mask_files(files, video)
        loaded = dict(given.labels)
        if None in loaded:
            first = loaded.pop(None)  # a second one, by its number, fails in check_corrections
        elif first_index in loaded:
            first = loaded.pop(first_index)
        elif loaded:
            given_first = min(index for index in loaded if index is not None)
            raise InputError(
                f"the first frame to segment, frame {first_index}, has no mask, the earliest given "
                f"is for frame {given_first}: add --mask FIRST.png, or begin there with "
                f"--start {given_first}"
            )
        else:
            raise InputError("no mask was given: add --mask FIRST.png, the mask of the first frame")
        later = {index: labels for index, labels in loaded.items() if index is not None}
        check_corrections(later, first_index, video.end_index)
        return cls(first, later, given.notes, given.names)
