"""Define the ``mpn run`` command, also installed as ``mpn-run``."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mpn.cli.convert import check_formats_of, convert_with_progress
from mpn.cli.output import echo, echo_document
from mpn.cli.progress import progress_display
from mpn.cli.usage import option_errors
from mpn.errors import MpnWarning
from mpn.runtime.convert.formats import FORMATS

if TYPE_CHECKING:
    from mpn.runtime.options import FinetuneOptions
    from mpn.runtime.session.outputs import SaveKind
    from mpn.runtime.session.request import Progress, RunRequest

_FRAME_AND_FILE = re.compile(r"(\d+):(.+)", re.DOTALL)
_OTHER_NUMBER = re.compile(r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?):.+", re.DOTALL)
"""A number that is no frame; a drive (C:) or an address is none."""


def missing_video(engine_dir: Path | None) -> str:
    """Return the error message for a missing VIDEO argument."""
    if engine_dir is not None and engine_dir.suffix and not engine_dir.is_dir():
        return (
            f"VIDEO is missing, and {engine_dir} is no engine directory; did you mean "
            f"mpn-run {engine_dir} --mask FIRST.png, with the engines of the package?"
        )
    return "VIDEO is missing: mpn-run clip.mp4 --mask FIRST.png"


def masks_by_frame(given: list[str]) -> dict[int | None, Path]:
    """Convert ``--mask`` (FILE or FRAME:FILE) to a file per frame index.

    The key None stands for the first frame. A text that is the name of an existing file is FILE.
    """
    if not given:
        raise typer.BadParameter(
            "no mask was given: add --mask FIRST.png, the mask of the first frame"
        )
    masks: dict[int | None, Path] = {}
    for text in given:
        match = None if os.path.exists(text) else _FRAME_AND_FILE.fullmatch(text)
        if match is None and not os.path.exists(text) and (wrong := _OTHER_NUMBER.fullmatch(text)):
            raise typer.BadParameter(
                f"FRAME of --mask must be a whole number from 0, such as 12:m.png, not '{wrong[1]}'"
            )
        frame, name = (int(match[1]), match[2]) if match else (None, text)
        path = Path(os.path.expanduser(name))
        if frame in masks:
            which = "the first frame" if frame is None else f"frame {frame}"
            raise typer.BadParameter(
                f"two masks for {which}, {masks[frame]} and {path}: "
                "give --mask FRAME:FILE for those of other frames"
            )
        masks[frame] = path
    return masks


def save_kinds(text: str) -> tuple[frozenset[SaveKind], list[str]]:
    """Convert ``--save``, names separated by commas.

    Returns:
        The kinds of results that the run writes, and the formats that they are converted to at its
        end, which need the masks.
    """
    known: dict[str, SaveKind] = {
        "masks": "masks", "overlay": "overlay", "probs": "probs", "rle": "rle",
    }  # fmt: skip
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known and name not in FORMATS:
            raise typer.BadParameter(
                f"--save takes {', '.join([*known, *FORMATS])}, separated by commas, not '{name}'"
            )
    if not names:
        raise typer.BadParameter(
            f"--save takes at least one of {', '.join([*known, *FORMATS])}, separated by commas, "
            f"not '{text}'"
        )
    formats = [name for name in names if name in FORMATS]
    kinds = {known[name] for name in names if name in known}
    return frozenset(kinds | ({"masks"} if formats else set())), formats


def rate_from_text(text: str | None) -> Any:
    """Convert ``--fps`` to a fraction; None if it was not given."""
    if text is None:
        return None
    from fractions import Fraction

    from mpn.runtime.media.video import HIGHEST_RATE, LOWEST_RATE

    try:
        # The float first: as a fraction, 1e999999999 has a billion digits.
        is_number = "/" in text or LOWEST_RATE / 2 < float(text) < HIGHEST_RATE * 2
        rate = Fraction(text) if is_number else Fraction(0)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise typer.BadParameter(
            "--fps takes a rate above 0 like 25 or 30000/1001, "
            f"from {LOWEST_RATE} to {HIGHEST_RATE}, not '{text}'"
        )
    return rate


@dataclass(frozen=True, kw_only=True)
class FinetuneArguments:
    """Options ``--finetune*`` of the command line; None: not given."""

    wanted: bool | None
    is_fast: bool
    steps: int | None
    seconds: float | None
    size: int | None
    scope: str | None
    cache: Path | None
    no_cache: bool
    seed: int | None

    @property
    def are_given(self) -> bool:
        """Whether one of them requires fine-tuning; a seed alone does not."""
        given = (self.steps, self.seconds, self.size, self.scope, self.cache)
        return bool(self.wanted) or any(value is not None for value in given)

    def options(self) -> FinetuneOptions | None:
        """Return the options of the runtime; None: no fine-tuning.

        Raises:
            typer.BadParameter: If they contradict each other.
            InputError: If a value is out of range.
        """
        if self.is_fast or self.wanted is False:
            if self.are_given:
                name = "--fast" if self.is_fast else "--no-finetune"
                raise typer.BadParameter(f"{name} contradicts the --finetune options")
            return None
        if self.cache is not None and self.no_cache:
            raise typer.BadParameter("--finetune-cache contradicts --no-finetune-cache")
        from mpn.runtime.options import FinetuneOptions

        given: dict[str, Any] = {
            "steps": self.steps,
            "seconds": self.seconds,
            "size": self.size,
            "scope": self.scope,
            "cache_dir": None if self.no_cache else self.cache or default_finetune_cache(),
        }
        if self.seed is not None:
            given["seed"] = self.seed
        return FinetuneOptions(**given)


def default_finetune_cache() -> Path | None:
    """Return the default folder of fine-tuned weights.

    Returns None if the user has no home folder. The folder keeps its name of version 0.1, so that
    weights stored by that version are found.
    """
    from mpn._common.cache_dirs import user_cache_dir

    return user_cache_dir("adapt")


SIGNAL_BASE = 128
INTERRUPTED = 130


class BackendName(StrEnum):
    """Values of ``--backend``; a test compares them with ``mpn.engines.open``."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"
    TENSORRT = "tensorrt"
    TENSORRT_RTX = "tensorrt-rtx"


class DecodeName(StrEnum):
    """Values of ``--decode``; a test compares them with ``mpn.runtime.media``."""

    AUTO = "auto"
    CPU = "cpu"
    NVDEC = "nvdec"


class OneShotName(StrEnum):
    """Values of ``--one-shot``; a test compares them with ``OneShot``."""

    AUTO = "auto"
    TARGET = "target"
    OSVOS = "osvos"
    BOTH = "both"
    OFF = "off"


class DirectionName(StrEnum):
    """Values of ``--direction``; a test compares them with ``DIRECTIONS``."""

    BOTH = "both"
    FORWARD = "forward"
    BACKWARD = "backward"


class ScopeName(StrEnum):
    """Values of ``--finetune-scope``; a test compares them with ``FinetuneScope``."""

    ALL = "all"
    HEAD = "head"


def run(
    video: str = typer.Argument(
        None,
        metavar="VIDEO",
        help="A video file, a folder of images, a pattern such as 'frames/%05d.jpg', a camera "
        "index, or an rtsp:// address.",
        show_default=False,
    ),
    mask: list[str] = typer.Option(
        [],
        metavar="[FRAME:]FILE",
        help="Mask of the first frame: a palette PNG (0 background, ids from 1), a 0/255 mask, "
        "annotations (labelme, COCO, CVAT, YOLO, .npy) or a folder of masks named as the frames. "
        "FRAME:FILE for a mask of any frame; repeat it to correct or add objects.",
        show_default=False,
    ),
    direction: DirectionName = typer.Option(
        None,
        help="Propagate all masks of this command forward, backward, or both: frames before the "
        "first mask are then segmented backward, and frames between two masks are blended from "
        "both.",
        show_default="both; with --resume as in the earlier run",
    ),
    engine_dir: Path = typer.Option(
        None,
        metavar="DIR",
        help="Use the engines that mpn-export wrote to DIR.",
        show_default="the engines of the package",
    ),
    out: Path = typer.Option(
        None,
        "--out",
        "-o",
        metavar="OUT",
        help="Write the results to this folder.",
        show_default="<video>-mpn",
    ),
    backend: BackendName = typer.Option(BackendName.AUTO, help="Run the networks with this."),
    threads: int = typer.Option(
        None, metavar="N", help="Use N CPU threads.", show_default="all cores"
    ),
    fast: bool = typer.Option(
        False,
        "--fast",
        help="Disable fine-tuning, flip TTA and CRF (--crf still enables the CRF).",
    ),
    build: bool = typer.Option(
        True,
        "--build/--no-build",
        help="Build a TensorRT plan that is missing or does not fit this GPU.",
    ),
    one_shot: OneShotName = typer.Option(
        None,
        help="Separate the objects by this model: target (solved from the first mask in a second), "
        "osvos, both, or off.",
        show_default="target if the engines have it, else osvos",
    ),
    no_osvos: bool = typer.Option(False, "--no-osvos", help="Disable OSVOS."),
    osvos_every: int = typer.Option(
        None,
        metavar="N",
        help="Run OSVOS every N frames, and in each frame for objects that are lost or uncertain.",
        show_default="as the engines advise, else 1",
    ),
    crf: bool = typer.Option(
        None,
        "--crf/--no-crf",
        help="Refine the masks with a dense CRF.",
        show_default="as the engines advise, else no",
    ),
    finetune: bool = typer.Option(
        None,
        "--finetune/--no-finetune",
        help="Fine-tune the networks on the first frame, which takes seconds per object.",
        show_default="no if the target model runs without OSVOS, otherwise yes",
    ),
    finetune_steps: int = typer.Option(
        None,
        metavar="N",
        help="Fine-tune for N steps per object and network.",
        show_default="by network",
    ),
    finetune_seconds: float = typer.Option(
        None,
        metavar="S",
        help="Stop fine-tuning after S seconds per object and network. The masks then depend on "
        "the speed of the machine.",
        show_default="no limit",
    ),
    finetune_size: int = typer.Option(
        None,
        metavar="PX",
        help="Fine-tune on crops of this side in pixels, 16 n + 1.",
        show_default="by network",
    ),
    finetune_scope: ScopeName = typer.Option(
        None,
        help="Fine-tune all weights, or only the last layers (faster).",
        show_default="by network",
    ),
    finetune_cache: Path = typer.Option(
        None,
        metavar="DIR",
        help="Keep fine-tuned weights in DIR for the next run on the same masks.",
        show_default="~/.cache/mpn-runtime/adapt",
    ),
    no_finetune_cache: bool = typer.Option(
        False, "--no-finetune-cache", help="Neither keep nor reuse fine-tuned weights."
    ),
    seed: int = typer.Option(None, metavar="N", help="Seed the fine-tuning.", show_default="0"),
    size: int = typer.Option(
        None,
        metavar="PX",
        help="Work at this short side in pixels; -1 for the size of the video.",
        show_default="as the engines advise, else 480",
    ),
    start: int = typer.Option(
        None,
        metavar="FRAME",
        min=0,
        help="Start at this frame, counted from 0; --mask FILE is its mask.",
        show_default="0",
    ),
    end: int = typer.Option(
        None, metavar="FRAME", min=1, help="Stop before this frame.", show_default="the last frame"
    ),
    fps: str = typer.Option(
        None,
        metavar="RATE",
        help="Frame rate of a folder of images, such as 25 or 30000/1001.",
        show_default="24",
    ),
    decode: DecodeName = typer.Option(
        DecodeName.AUTO,
        help="Decode a video file on the CPU or on the GPU (NVDEC, extra nvdec). auto: on the GPU "
        "if the networks run there and the extra is installed.",
    ),
    save: str = typer.Option(
        "masks,overlay",
        metavar="KINDS",
        help="Save these, separated by commas: masks, overlay, probs, rle, and formats of "
        "mpn convert.",
    ),
    review: bool = typer.Option(
        True,
        "--review/--no-review",
        help="Write review.html, a page with the frames to check.",
    ),
    resume: bool = typer.Option(False, "--resume", help="Continue an interrupted run in OUT."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="Print errors only."),
    as_json: bool = typer.Option(
        False, "--json", help="Print run.json to stdout at the end; progress goes to stderr."
    ),
) -> None:
    """Segment VIDEO from masks of its first frame or of any others.

    OUT gets masks/00000.png (a palette PNG per frame), overlay.mp4, tracks.jsonl and run.json. For
    a sequence of a data set in DAVIS layout the masks go to OUT/<sequence>/00000.png and the rest
    to OUT/_runs/<sequence>/. Results of an earlier run in OUT are replaced.
    """
    if quiet:
        warnings.simplefilter("ignore", MpnWarning)
    if video is None:
        raise typer.BadParameter(missing_video(engine_dir))
    if no_osvos and one_shot in (OneShotName.OSVOS, OneShotName.BOTH):
        raise typer.BadParameter(f"--no-osvos contradicts --one-shot {one_shot.value}")
    if osvos_every is not None:
        _check_runs_osvos(one_shot, no_osvos=no_osvos)
    masks = masks_by_frame(mask)
    kinds, formats = save_kinds(save)
    check_formats_of(video, formats)
    finetuning = FinetuneArguments(
        wanted=finetune,
        is_fast=fast,
        steps=finetune_steps,
        seconds=finetune_seconds,
        size=finetune_size,
        scope=None if finetune_scope is None else finetune_scope.value,
        cache=finetune_cache,
        no_cache=no_finetune_cache,
        seed=seed,
    )

    from mpn._common.concurrency import usable_threads
    from mpn.runtime.options import UNSET, CrfOptions, OsvosOptions, PipelineOptions
    from mpn.runtime.session.request import RunRequest
    from mpn.runtime.session.session import run_video

    is_crf_off = crf is False or (fast and crf is None)
    with option_errors():
        threads = usable_threads(threads)  # type: ignore[assignment]
        options = PipelineOptions(
            size=UNSET if size is None else size,
            flip_tta=False if fast else UNSET,
            one_shot=UNSET if one_shot is None else one_shot.value,
            osvos=OsvosOptions(
                mode="off" if no_osvos else UNSET,
                every=UNSET if osvos_every is None else osvos_every,
            ),
            crf=CrfOptions() if crf else None if is_crf_off else UNSET,
            finetune=finetuning.options(),
        )
    request = RunRequest(
        video=video if os.path.exists(video) else os.path.expanduser(video),
        masks=masks,
        direction=None if direction is None else direction.value,
        out=out,
        engine_dir=engine_dir,
        backend=backend.value,
        threads=threads,
        options=options,
        must_finetune=finetuning.are_given,
        start=start,
        end=end,
        fps=rate_from_text(fps),
        decode=decode.value,
        save=kinds,
        review=review,
        resume=resume,
        build=build,
    )
    report, did_run = _run_with_progress(request, run_video, quiet=quiet)
    if not quiet:
        for warning in report.get("warnings", ()):  # version 0.2 wrote none
            echo(f"warning: {warning}", err=True)
    paths: list[Path] = []
    if formats:
        paths = convert_with_progress(Path(report["out"]["folder"]), formats, quiet=quiet)
    if as_json:
        from mpn._common.files import json_text

        echo_document(json_text(report, indent=2))
    elif not quiet:
        echo(_summary(report, did_run=did_run))
        for path in paths:
            echo(f"converted: {path}")


def _check_runs_osvos(one_shot: OneShotName | None, *, no_osvos: bool) -> None:
    """Raise a usage error if ``--osvos-every`` would have no effect."""
    if no_osvos:
        raise typer.BadParameter("--no-osvos contradicts --osvos-every")
    if one_shot in (OneShotName.TARGET, OneShotName.OFF):
        raise typer.BadParameter(f"--one-shot {one_shot.value} contradicts --osvos-every")


def _run_with_progress(
    request: RunRequest, run_video: Callable[..., dict[str, Any]], *, quiet: bool
) -> tuple[dict[str, Any], bool]:
    """Return the report, and whether the run computed a frame."""
    done = computed = 0
    with progress_display(quiet) as show:

        def on_progress(progress: Progress) -> None:
            nonlocal done, computed
            done, computed = progress.done, progress.computed
            show.frame(progress)

        try:
            report = run_video(
                request, on_progress=on_progress, on_finetune=show.finetune, on_build=show.build
            )
            return report, computed > 0
        except KeyboardInterrupt as stop:
            interrupted_at = done
            signum = getattr(stop, "signum", INTERRUPTED - SIGNAL_BASE)
    echo(
        f"interrupted: {interrupted_at} frames are done and kept, continue with --resume"
        if interrupted_at
        else "interrupted",
        err=True,
    )
    raise typer.Exit(SIGNAL_BASE + signum)


def _summary(report: dict[str, Any], *, did_run: bool) -> str:
    used, out = report["backend"]["used"], report["out"]
    masks = f"masks in {out['masks']}, the rest in {out['folder']}"
    if "masks" not in report["saved"]:
        masks = f"results in {out['folder']}"
    finetuned = ""
    if did_run and report["finetune"]["ran"]:
        seconds, fps = report["finetune"]["seconds"], report["fps_after_finetune"]
        finetuned = f" ({fps:.1f} after {seconds:.0f} s of fine-tuning)"
    speed = f"{report['fps']:.1f} FPS on {used}{finetuned}" if did_run else "nothing left to do"
    names = report.get("object_names", {})
    objects = ", ".join(
        f"{k} {names[str(k)]!r}" if str(k) in names else str(k) for k in report["object_ids"]
    )
    return f"{report['frames']} frames, {speed}, objects {objects}: {masks}"
