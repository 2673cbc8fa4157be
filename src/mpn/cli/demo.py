"""The ``mpn demo`` command."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mpn.cli.output import echo

if TYPE_CHECKING:
    from rich.progress import Progress

    from mpn.evaluation import DatasetScore
    from mpn.synthetic import ClipPaths

_MIN_FRAMES = 3
"""Smallest length: the first frame has the given mask, and the last is not scored."""


def demo(
    out: Path = typer.Option(
        Path("demo-out"), "--out", "-o", metavar="OUT", help="Folder for clip and results."
    ),
    frames: int = typer.Option(48, metavar="N", min=_MIN_FRAMES, help="Length of the clip."),
    engine_dir: str = typer.Option(
        None,
        metavar="DIR",
        help="Engine directory: a folder, zip file or address.",
        show_default="the installed weights",
    ),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="Print errors only."),
) -> None:
    """Segment a clip that the package renders, and score the masks.

    OUT gets the clip (clip/clip.mp4, clip/first_mask.png, true masks in DAVIS layout) and the
    output of mpn-run: masks, overlay.mp4, tracks.jsonl, run.json.
    """
    from mpn.engines.directory.locate import local_engine_dir
    from mpn.runtime.session.layout import check_out
    from mpn.runtime.session.request import RunRequest
    from mpn.runtime.session.session import run_video
    from mpn.synthetic import write_clip

    # Check first: rendering takes a while.
    check_out(out)
    local_engine_dir(engine_dir)
    with _progress(quiet) as progress:
        rendering = progress.add_task("rendering the clip", total=frames)
        clip = write_clip(out / "clip", frames=frames, on_frame=lambda: progress.advance(rendering))
        segmenting = progress.add_task("segmenting it", total=frames)
        request = RunRequest(
            video=str(clip.video), masks={None: clip.first_mask}, out=out, engine_dir=engine_dir
        )
        report = run_video(
            request, on_progress=lambda state: progress.update(segmenting, completed=state.done)
        )
        score = _score(clip, Path(report["out"]["masks"]))
    if not quiet:
        _print_summary(clip, report, score)


@contextmanager
def _progress(quiet: bool) -> Iterator[Progress]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as EtaColumn

    from mpn._common.console import PlainConsole

    columns = (TextColumn("{task.description:18}"), BarColumn(), MofNCompleteColumn(), EtaColumn())
    console = PlainConsole(stderr=True)
    hidden = quiet or not sys.stderr.isatty()
    with Progress(*columns, console=console, disable=hidden, transient=True) as progress:
        yield progress


def _score(clip: ClipPaths, masks: Path) -> DatasetScore:
    from mpn.evaluation import DatasetScore, evaluate_sequence, load_davis

    dataset = load_davis(clip.davis_root, "val")
    (sequence,) = dataset.sequences
    return DatasetScore(dataset.set_name, (evaluate_sequence(sequence, masks),))


def _print_summary(clip: ClipPaths, report: dict[str, Any], score: DatasetScore) -> None:
    from mpn.evaluation.scores import paper_line_from_score
    from mpn.synthetic import OBJECT_NAMES

    height, width = report["video"]["size_hw"]
    objects = ", ".join(
        f"{OBJECT_NAMES[scored.object_id]} J {scored.region.mean:.3f} F {scored.boundary.mean:.3f}"
        for scored in score.objects
    )
    folder = Path(report["out"]["folder"])
    lines = (
        ("clip", f"{clip.video} ({report['frames']} frames of {width}x{height})"),
        ("masks", report["out"]["masks"]),
        ("overlay", folder / "overlay.mp4"),
        (
            "speed",
            f"{report['fps']:.1f} FPS on {report['backend']['used']} with the engines "
            f"'{report['engine']['name']}', from decoding to encoding",
        ),
        ("score", paper_line_from_score(score)),
        ("objects", objects),
    )
    for name, text in lines:
        echo(f"{name:8} {text}")
