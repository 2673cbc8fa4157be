"""The ``mpn run`` command, also installed as ``mpn-run``."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mpn.cli.run_arguments import (
    AdaptArguments,
    masks_by_frame,
    missing_video,
    rate_from_text,
    save_kinds,
)
from mpn.cli.run_progress import progress_display

if TYPE_CHECKING:
    from mpn.runtime.request import Progress, RunRequest

INTERRUPTED = 130


class BackendName(StrEnum):
    """What ``--backend`` takes; a test keeps it equal to ``mpn.engines.load.BACKENDS``."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"
    TENSORRT = "tensorrt"
    TENSORRT_RTX = "tensorrt-rtx"


class DecodeName(StrEnum):
    """The values of ``--decode``; a test keeps it equal to ``mpn.runtime.video.DECODERS``."""

    AUTO = "auto"
    CPU = "cpu"
    NVDEC = "nvdec"


class ScopeName(StrEnum):
    """What ``--adapt-scope`` takes; a test keeps it equal to ``AdaptScope``."""

    ALL = "all"
    HEAD = "head"


def run(
    video: str = typer.Argument(
        None,
        metavar="VIDEO",
        help="A file, a folder of images, a pattern like 'frames/%05d.jpg', a camera index, or an "
        "rtsp:// address.",
        show_default=False,
    ),
    mask: list[str] = typer.Option(
        [],
        metavar="[FRAME:]FILE",
        help="Mask of the first frame: a palette PNG (0 background, ids from 1) or a 0/255 mask. "
        "Repeat as FRAME:FILE to correct or add objects at a later frame.",
        show_default=False,
    ),
    engine_dir: Path = typer.Option(
        None, metavar="DIR", help="What mpn-export wrote.", show_default="ships with the package"
    ),
    out: Path = typer.Option(
        None,
        "--out",
        "-o",
        metavar="OUT",
        help="Folder for the results.",
        show_default="<video>-mpn",
    ),
    backend: BackendName = typer.Option(BackendName.AUTO, help="What runs the networks."),
    threads: int = typer.Option(
        None, metavar="N", min=1, help="CPU threads.", show_default="all cores"
    ),
    fast: bool = typer.Option(
        False,
        "--fast",
        help="The quickest masks: no fine-tuning, no mirrored second look, no CRF unless --crf.",
    ),
    build: bool = typer.Option(
        True,
        "--build/--no-build",
        help="Build a plan of TensorRT that is missing or does not fit this GPU.",
    ),
    no_osvos: bool = typer.Option(
        False, "--no-osvos", help="Leave OSVOS out, also where the engines have it."
    ),
    osvos_every: int = typer.Option(
        None,
        metavar="N",
        min=1,
        help="Run OSVOS on every N-th frame, and on all for objects that are lost or doubtful.",
        show_default="what the engines advise, else 1",
    ),
    crf: bool = typer.Option(
        None,
        "--crf/--no-crf",
        help="Sharpen the masks with a dense CRF.",
        show_default="what the engines advise, else no",
    ),
    no_adapt: bool = typer.Option(
        False, "--no-adapt", help="Do not fine-tune the networks on the given masks."
    ),
    adapt_steps: int = typer.Option(
        None,
        metavar="N",
        min=1,
        help="Steps of fine-tuning, an object and network.",
        show_default="by network",
    ),
    adapt_seconds: float = typer.Option(
        None,
        metavar="S",
        help="Seconds after which fine-tuning ends, an object and network. The masks then depend "
        "on the speed of the machine.",
        show_default="no limit",
    ),
    adapt_size: int = typer.Option(
        None,
        metavar="PX",
        help="Side of the crops to learn from, 16 n + 1.",
        show_default="by network",
    ),
    adapt_scope: ScopeName = typer.Option(
        None,
        help="Fine-tune all weights, or the last layers alone (faster).",
        show_default="by network",
    ),
    adapt_cache: Path = typer.Option(
        None,
        metavar="DIR",
        help="Where fine-tuned weights are kept for the next run on the same masks.",
        show_default="~/.cache/mpn-runtime/adapt",
    ),
    no_adapt_cache: bool = typer.Option(
        False, "--no-adapt-cache", help="Keep no fine-tuned weights, and use none."
    ),
    seed: int = typer.Option(
        None, metavar="N", min=0, help="Seed of fine-tuning.", show_default="0"
    ),
    size: int = typer.Option(
        None,
        metavar="PX",
        help="Work at this short side; -1 for the video's own.",
        show_default="what the engines advise, else 480",
    ),
    start: int = typer.Option(
        None,
        metavar="FRAME",
        min=0,
        help="First frame, counted from 0; --mask belongs to it.",
        show_default="0",
    ),
    end: int = typer.Option(
        None, metavar="FRAME", min=1, help="Stop before this frame.", show_default="the whole video"
    ),
    fps: str = typer.Option(
        None,
        metavar="RATE",
        help="Frame rate of a folder of images, as 25 or 30000/1001.",
        show_default="24",
    ),
    decode: DecodeName = typer.Option(
        DecodeName.AUTO,
        help="Decode a video file on the CPU or on the GPU (NVDEC, extra nvdec). auto: on the GPU "
        "if the networks run there and the extra is installed.",
    ),
    save: str = typer.Option(
        "masks,overlay", metavar="KINDS", help="Comma-separated: masks, overlay, probs, rle."
    ),
    resume: bool = typer.Option(False, "--resume", help="Go on with an interrupted run in OUT."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="Print errors only."),
    as_json: bool = typer.Option(
        False, "--json", help="Print run.json to stdout when done; progress goes to stderr."
    ),
) -> None:
    """Segment VIDEO from the mask of its first frame: a mask for every frame, and an overlay video.

    OUT gets masks/00000.png (a palette PNG a frame), overlay.mp4, tracks.jsonl and run.json. For a
    sequence of a data set in DAVIS layout the masks go to OUT/<sequence>/00000.png and the rest to
    OUT/_runs/<sequence>/. Results of an earlier run in OUT are replaced.
    """
    if video is None:
        raise typer.BadParameter(missing_video(engine_dir))
    masks = masks_by_frame(mask)
    kinds = save_kinds(save)
    adapt = AdaptArguments(
        off=no_adapt or fast,
        off_by="--no-adapt" if no_adapt else "--fast",
        steps=adapt_steps,
        seconds=adapt_seconds,
        size=adapt_size,
        scope=None if adapt_scope is None else adapt_scope.value,
        cache=adapt_cache,
        no_cache=no_adapt_cache,
        seed=seed,
    )

    from mpn.runtime.options import PipelineOptions
    from mpn.runtime.request import RunRequest
    from mpn.runtime.session import run_video

    given: dict[str, Any] = {"size": size, "osvos_every": osvos_every, "crf": crf}
    if fast:
        given |= {"mirror": False, "crf": bool(crf)}
    given |= {"osvos": "off"} if no_osvos else {}
    request = RunRequest(
        video=video,
        masks=masks,
        out=out,
        engine_dir=engine_dir,
        backend=backend.value,
        threads=threads,
        options=PipelineOptions(**{k: v for k, v in given.items() if v is not None}),
        adapt=adapt.options(),
        must_adapt=adapt.are_given,
        start=start,
        end=end,
        fps=rate_from_text(fps),
        decode=decode.value,
        save=kinds,
        resume=resume,
        build=build,
    )
    report = _run_with_progress(request, run_video, quiet=quiet)
    if as_json:
        import json

        typer.echo(json.dumps(report, indent=2, ensure_ascii=False))
    elif not quiet:
        typer.echo(_summary(report))


def _run_with_progress(
    request: RunRequest, run_video: Callable[..., dict[str, Any]], *, quiet: bool
) -> dict[str, Any]:
    done = 0
    with progress_display(quiet) as show:

        def on_progress(progress: Progress) -> None:
            nonlocal done
            done = progress.done
            show.frame(progress)

        try:
            return run_video(
                request, on_progress=on_progress, on_adapt=show.adapt, on_build=show.build
            )
        except KeyboardInterrupt:
            interrupted_at = done
    typer.echo(
        f"interrupted: {interrupted_at} frames are done and kept, --resume goes on from there"
        if interrupted_at
        else "interrupted",
        err=True,
    )
    raise typer.Exit(INTERRUPTED)


def _summary(report: dict[str, Any]) -> str:
    used, out = report["backend"]["used"], report["out"]
    masks = f"masks in {out['masks']}, the rest in {out['folder']}"
    if "masks" not in report["saved"]:
        masks = f"results in {out['folder']}"
    learnt = ""
    if report["adapt"]["ran"]:
        seconds, fps = report["adapt"]["seconds"], report["fps_after_adapt"]
        learnt = f" ({fps:.1f} after {seconds:.0f} s of fine-tuning)"
    return (
        f"{report['frames']} frames, {report['fps']:.1f} FPS on {used}{learnt}, "
        f"objects {', '.join(map(str, report['object_ids']))}: {masks}"
    )
