"""The ``mpn run`` command, also installed as ``mpn-run``."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mpn.cli.run_arguments import masks_by_frame, missing_video, rate_from_text, save_kinds
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
    no_osvos: bool = typer.Option(
        False, "--no-osvos", help="Leave OSVOS out, also where the engines have it."
    ),
    no_crf: bool = typer.Option(
        False, "--no-crf", help="Accepted; this version has no CRF stage to leave out."
    ),
    no_adapt: bool = typer.Option(
        False, "--no-adapt", help="Accepted; this version has no online adaptation to leave out."
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
    # Two flags for stages that do not exist yet: run.json says "crf": false and "adapt": false.
    del no_crf, no_adapt
    if video is None:
        raise typer.BadParameter(missing_video(engine_dir))
    masks = masks_by_frame(mask)
    kinds = save_kinds(save)

    from mpn.runtime.options import PipelineOptions
    from mpn.runtime.request import RunRequest
    from mpn.runtime.session import run_video

    given: dict[str, Any] = {}
    if size is not None:
        given["size"] = size
    if no_osvos:
        given["osvos"] = "off"
    request = RunRequest(
        video=video,
        masks=masks,
        out=out,
        engine_dir=engine_dir,
        backend=backend.value,
        threads=threads,
        options=PipelineOptions(**given),
        start=start,
        end=end,
        fps=rate_from_text(fps),
        save=kinds,
        resume=resume,
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
            show(progress)

        try:
            return run_video(request, on_progress=on_progress)
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
    return (
        f"{report['frames']} frames, {report['fps']:.1f} FPS on {used}, "
        f"objects {', '.join(map(str, report['object_ids']))}: {masks}"
    )
