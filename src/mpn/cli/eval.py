"""The ``mpn eval`` command."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mpn.cli.output import echo, echo_document

if TYPE_CHECKING:
    from mpn.evaluation import DatasetScore, DavisDataset, EvaluationOptions, ObjectScore


def evaluate(
    davis_root: Path = typer.Option(
        ..., "--davis-root", metavar="ROOT", help="DAVIS folder: Annotations and ImageSets."
    ),
    results: Path = typer.Option(
        ..., "--results", metavar="DIR", help="Predictions: DIR/<sequence>/<frame>.png."
    ),
    set_name: str = typer.Option("val", "--set", help="List in ImageSets/YEAR, without .txt."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of the table."),
    per_frame: bool = typer.Option(False, "--per-frame", help="Add J and F of every frame."),
    csv_dir: Path | None = typer.Option(
        None,
        "--csv-dir",
        metavar="DIR",
        help="Folder of the two CSV files.",
        show_default="the results folder",
    ),
    jobs: int = typer.Option(0, "--jobs", min=0, help="Processes; 0 for one per CPU core."),
    year: str = typer.Option("2017", "--year", help="Folder of the list in ImageSets."),
    resolution: str = typer.Option("480p", "--resolution", help="Folder in Annotations."),
    quiet: bool = typer.Option(False, "--quiet", help="No progress bar."),
) -> None:
    """Score masks exactly as the official DAVIS-2017 semi-supervised evaluation does.

    Prints J, F and J&F and writes global_results-SET.csv and per-sequence_results-SET.csv. The
    first and the last frame of a sequence are not scored and need not exist. Errors are: a missing
    frame or sequence, an id that the first annotation does not have, void (255), another size, and
    colours instead of ids.
    """
    import json

    from mpn._common.cores import usable_cores
    from mpn.errors import OutputError
    from mpn.evaluation import EvaluationOptions, load_davis
    from mpn.evaluation.scores import json_from_score, paper_line_from_score

    if per_frame and not as_json:
        raise typer.BadParameter("--per-frame needs --json")
    if csv_dir is not None and not csv_dir.is_dir():  # check before minutes of scoring
        raise OutputError(f"--csv-dir {csv_dir}: no such folder")
    dataset = load_davis(davis_root, set_name, year=year, resolution=resolution)
    options = EvaluationOptions(workers=jobs or usable_cores())
    score = _evaluate_with_progress(dataset, results, options, quiet=quiet)
    if as_json:
        echo_document(json.dumps(json_from_score(score, per_frame=per_frame), indent=2))
    else:
        _print_table(score)
        echo(paper_line_from_score(score))
    _save_csvs(score, csv_dir, results)


def _evaluate_with_progress(
    dataset: DavisDataset, results: Path, options: EvaluationOptions, *, quiet: bool
) -> DatasetScore:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from mpn._common.console import PlainConsole
    from mpn.evaluation import evaluate_dataset

    frames = sum(len(sequence.annotation_paths) for sequence in dataset.sequences)
    with Progress(
        "scoring",
        BarColumn(),
        MofNCompleteColumn(),
        "frames",
        TimeRemainingColumn(),
        console=PlainConsole(stderr=True),
        disable=quiet or not sys.stderr.isatty(),
        transient=True,
    ) as progress:
        task = progress.add_task("scoring", total=frames)
        return evaluate_dataset(
            dataset, results, options, on_frames=lambda count: progress.advance(task, count)
        )


def _print_table(score: DatasetScore) -> None:
    from rich.table import Table

    from mpn._common.console import PlainConsole

    table = Table(title=f"DAVIS semi-supervised, set {score.set_name}")
    table.add_column("object", no_wrap=True)
    for column in ("J mean", "recall", "decay", "F mean", "recall", "decay", "J&F"):
        table.add_column(column, justify="right")
    for sequence in score.sequences:
        for scored in sequence.objects:
            table.add_row(scored.name, *_cells(scored))
        table.add_section()
    table.add_row("all objects", *_cells(score), style="bold")
    PlainConsole().print(table)


def _cells(score: ObjectScore | DatasetScore) -> list[str]:
    region, boundary = score.region, score.boundary
    values = [region.mean, region.recall, region.decay]
    values += [boundary.mean, boundary.recall, boundary.decay, score.j_and_f]
    return [f"{value:.3f}" for value in values]


def _save_csvs(score: DatasetScore, csv_dir: Path | None, results: Path) -> None:
    from mpn.errors import OutputError
    from mpn.evaluation.scores import save_csvs

    try:
        paths = save_csvs(score, csv_dir or results)
    except OutputError as error:
        if csv_dir is not None:  # the user requested this folder
            raise
        echo(f"note: {error}; give a folder with --csv-dir", err=True)
        return
    echo(f"wrote {paths[0]} and {paths[1]}", err=True)
