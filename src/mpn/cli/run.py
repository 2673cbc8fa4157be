"""Define the ``mpn run`` command, also installed as ``mpn-run``."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mpn.cli.convert import convert_with_progress
from mpn.cli.output import echo, echo_document
from mpn.cli.progress import progress_display
from mpn.cli.usage import option_errors
from mpn.errors import MpnWarning

if TYPE_CHECKING:
    from mpn.runtime.run_options import RunOptions
    from mpn.runtime.session.request import Progress, RunRequest

SIGNAL_BASE = 128
INTERRUPTED = 130


def missing_video(engine_dir: str | None) -> str:
    """Return the error message for a missing VIDEO argument."""
    suffix = "" if engine_dir is None else Path(engine_dir).suffix.lower()
    if engine_dir is not None and suffix not in ("", ".zip") and not os.path.isdir(engine_dir):
        return (
            f"VIDEO is missing, and {engine_dir} is no engine directory; did you mean "
            f"mpn-run {engine_dir} --mask FIRST.png, with the installed weights?"
        )
    return "VIDEO is missing: mpn-run clip.mp4 --mask FIRST.png"


def masks_by_frame(given: list[str]) -> dict[int | None, Path]:
    """Convert ``--mask``, see :func:`mpn.runtime.run_options.masks_from_texts`."""
    from mpn.runtime.run_options import masks_from_texts

    with option_errors():
        return masks_from_texts(given)


class BackendName(StrEnum):
    """Values of ``--backend``; a test compares them with ``mpn.engines.open``."""

    AUTO = "auto"
    CPU = "cpu"
    OPENVINO = "openvino"
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
    engine_dir: str = typer.Option(
        None,
        metavar="DIR",
        help="Use these engines of mpn-export: a folder, zip file or address; or lite-int8, the "
        "installed weights in int8.",
        show_default="the installed weights",
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
    masks = masks_by_frame(mask)
    options = run_options(
        direction=direction,
        fast=fast,
        one_shot=one_shot,
        no_osvos=no_osvos,
        osvos_every=osvos_every,
        crf=crf,
        finetune=finetune,
        finetune_steps=finetune_steps,
        finetune_seconds=finetune_seconds,
        finetune_size=finetune_size,
        finetune_scope=finetune_scope,
        finetune_cache=finetune_cache,
        no_finetune_cache=no_finetune_cache,
        seed=seed,
        size=size,
        start=start,
        end=end,
        fps=fps,
        decode=decode,
        save=save,
        review=review,
    )
    from mpn.runtime.run_options import check_formats_of

    check_formats_of(video, options.formats)
    with option_errors():
        request = options.request(
            video=video if os.path.exists(video) else os.path.expanduser(video),
            masks=masks,
            out=out,
            engine_dir=engine_dir,
            backend=backend.value,
            threads=threads,
            resume=resume,
            build=build,
        )
    from mpn.runtime.session.session import run_video

    report, did_run = _run_with_progress(request, run_video, quiet=quiet)
    if not quiet:
        for warning in report.get("warnings", ()):  # version 0.2 wrote none
            echo(f"warning: {warning}", err=True)
    paths: list[Path] = []
    if options.formats:
        folder = Path(report["out"]["folder"])
        paths = convert_with_progress(folder, options.formats, quiet=quiet)
    if as_json:
        from mpn._common.files import json_text

        echo_document(json_text(report, indent=2))
    elif not quiet:
        echo(_summary(report, did_run=did_run))
        for path in paths:
            echo(f"converted: {path}")


def run_options(**given: Any) -> RunOptions:
    """Return the options of a run from values of the command line.

    Raises:
        typer.BadParameter: If they contradict each other.
    """
    from mpn.runtime.run_options import RunOptions

    def plain(value: Any) -> Any:
        if isinstance(value, StrEnum):
            return value.value
        return str(value) if isinstance(value, Path) else value

    with option_errors():
        return RunOptions(**{name: plain(value) for name, value in given.items()})


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
