"""The ``mpn bench`` command."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mpn.cli.output import echo, echo_document
from mpn.cli.run import BackendName
from mpn.cli.usage import option_errors

if TYPE_CHECKING:
    from mpn.runtime.bench.benchmark import OnProgress

_BUSY_SHARE = 0.5
"""Load per core before the benchmark, above which its figures are not reliable."""


def bench(
    engine_dir: str = typer.Option(
        None,
        metavar="DIR",
        help="Engine directory: a folder, zip file or address.",
        show_default="the installed weights",
    ),
    objects: str = typer.Option(
        None,
        metavar="K,K,...",
        help="Numbers of objects to measure.",
        show_default="1,2,3,5; with --profile 1",
    ),
    frame_size: str = typer.Option("854x480", metavar="WxH", help="Size of the clip."),
    frames: int = typer.Option(50, help="Timed frames per figure."),
    warmup: int = typer.Option(5, help="Warm-up frames."),
    variants: str = typer.Option(
        None,
        metavar="NAME,NAME,...",
        help="default (what mpn-run does), plain, or osvos, crf, finetune joined by +.",
        show_default="all that DIR can run without fine-tuning",
    ),
    finetune_steps: int = typer.Option(
        None,
        metavar="N",
        help="Fine-tune for N steps per object and network.",
        show_default="by network",
    ),
    backend: BackendName = typer.Option(BackendName.AUTO, help="Backend of the networks."),
    threads: int = typer.Option(None, metavar="N", help="CPU threads.", show_default="all cores"),
    profile: bool = typer.Option(
        False,
        "--profile",
        help="Compare stages and operators of one frame with the roofline of this machine.",
    ),
    out: Path = typer.Option(
        None, "--out", "-o", metavar="FILE", help="Also write JSON to FILE.", show_default=False
    ),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of tables."),
) -> None:
    """Measure the speed of an engine directory on this machine, on a rendered clip.

    Three figures side by side, for each number of objects, without OSVOS and CRF and with them: the
    networks alone, the pipeline with frames in memory, and the whole way from an H.264 file to
    masks and overlay. With finetune, networks are fine-tuned first. Takes minutes; nothing else
    should run meanwhile.
    """
    numbers = _numbers(objects or ("1" if profile else "1,2,3,5"))
    size_hw = _size_hw(frame_size)

    from mpn.runtime.bench.benchmark import BenchmarkOptions, run_benchmark
    from mpn.runtime.bench.result import check_result_path, save_result
    from mpn.runtime.options import FinetuneOptions

    with option_errors():
        options = BenchmarkOptions(
            objects=numbers,
            frame_size_hw=size_hw,
            frames=frames,
            warmup=warmup,
            variants=None if variants is None else tuple(variants.split(",")),
            finetune=FinetuneOptions(steps=finetune_steps),
            backend=backend.value,
            threads=threads,
        )
    if out is not None:
        check_result_path(out)
    with _progress_display() as on_progress:
        if profile:
            from mpn.runtime.bench.profile import run_profile

            result = run_profile(engine_dir, options, on_progress=on_progress)
        else:
            result = run_benchmark(engine_dir, options, on_progress=on_progress)
    if out is not None:
        save_result(out, result)
    if as_json:
        import json

        echo_document(json.dumps(result, indent=2, ensure_ascii=False))
    elif profile:
        _print_profile(result)
    else:
        _print(result)
    if out is not None:
        echo(f"wrote {out}", err=True)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(
            f"--objects takes numbers separated by commas, like 1,2,3,5, not '{text}'"
        ) from error


def _size_hw(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if match is None:
        raise typer.BadParameter(f"--frame-size takes WIDTHxHEIGHT, like 854x480, not '{text}'")
    return int(match[2]), int(match[1])


@contextmanager
def _progress_display() -> Iterator[OnProgress]:
    if not sys.stderr.isatty():
        yield lambda text: echo(text, err=True)
        return
    from mpn._common.console import PlainConsole

    with PlainConsole(stderr=True).status("") as status:
        yield status.update


def _print(result: dict[str, Any]) -> None:
    from rich.markup import escape

    from mpn._common.console import PlainConsole

    console = PlainConsole(highlight=False)
    engine, machine, load = result["engine"], result["machine"], result["load"]
    height, width = result["frame_size_hw"]
    threads = result["backend"]["threads"] or "all cores"
    precisions = ", ".join(
        f"{role} {facts['precision']}" for role, facts in engine["roles"].items()
    )
    console.print(
        f"[bold]{escape(engine['name'])}[/bold] ({precisions}) on {result['backend']['used']}, "
        f"threads: {threads}, {width}x{height}, {result['frames']} frames after "
        f"{result['warmup']} to warm up"
    )
    console.print(f"{escape(machine['processor'])}, {machine['cores']} cores")
    console.print(f"engines opened in {load['median_ms']:.0f} ms ({load['first_ms']:.0f} at first)")
    console.print(_figures_table(result["runs"]))
    for objects in result["objects"]:
        console.print(_stages_table([r for r in result["runs"] if r["objects"] == objects]))
    for missing in result["not_measured"]:
        console.print(f"not measured: {escape(missing)}")
    before, cores = result["load_average_before"], machine["cores"]
    if before is not None and before > _BUSY_SHARE * cores:
        echo(
            f"note: the machine was busy before the benchmark began (load average {before:.1f} on "
            f"{cores} cores): the figures are too low",
            err=True,
        )


def _print_profile(result: dict[str, Any]) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from mpn._common.console import PlainConsole
    from mpn.runtime.bench.profile import by_type

    console, peaks = PlainConsole(highlight=False), result["peaks"]
    console.print(
        f"peaks: GEMM {peaks['gemm_flop_s'] / 1e9:.0f} GFLOP/s, int8 "
        f"{peaks['int8_flop_s'] / 1e9:.0f} GFLOP/s, "
        f"copy {peaks['bandwidth_bytes_s'] / 1e9:.1f} GB/s"
    )
    tables = (
        ("Stages", [(row["name"], row) for row in result["stages"]]),
        (
            "In other threads",
            [
                (row["name"], {**row, "flop": None, "share": None})
                for row in result["other_threads"]
            ],
        ),
        (
            "Types of operators",
            [
                (f"{r['network']} {r['type']} x{r['count']}", r)
                for r in by_type(result["operators"])
            ],
        ),
        (
            "Slowest operators",
            [(f"{r['network']} {r['name']}", r) for r in _slowest(result["operators"])],
        ),
    )
    for title, rows in tables:
        if not rows:
            continue
        table = Table(title=title, title_justify="left", box=box.SIMPLE)
        table.add_column("")
        for heading in ("ms", "min", "MFLOP", "MB", "roofline"):
            table.add_column(heading, justify="right")
        for name, row in rows:
            share = "-" if row["share"] is None else f"{row['share']:.0%}"
            table.add_row(
                escape(name),
                f"{row['median_ms']:.2f}",
                f"{row['min_ms']:.2f}",
                "-" if not row["flop"] else f"{row['flop'] / 1e6:.1f}",
                "-" if row["bytes"] is None else f"{row['bytes'] / 1e6:.1f}",
                "library" if row.get("kind") == "library" else share,
            )
        console.print(table)
    for reason, part in result["summary"].items():
        console.print(f"{part:.0%} of the frame: {reason}")
    for missing in result["not_measured"]:
        console.print(f"not measured: {escape(missing)}")


def _slowest(operators: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(operators, key=lambda row: -row["median_ms"])[:10]


def _figures_table(runs: list[dict[str, Any]]) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(
        title="Frames a second",
        title_justify="left",
        box=box.SIMPLE,
        caption="start: ms until the first mask, with opening and fine-tuning. MiB: peak "
        "of the wall run. tracked: share of the objects that were not lost.",
        caption_justify="left",
    )
    for heading in ("K", "variant", "engine-only", "pipeline", "wall", "start", "MiB", "tracked"):
        table.add_column(heading, justify="right")
    for run in runs:
        wall = run["wall"]
        memory = wall["peak_memory_mib"]
        table.add_row(
            str(run["objects"]),
            run["variant"],
            *(_short(run[figure]["fps"]) for figure in ("engine_only", "pipeline", "wall")),
            f"{wall['until_first_mask_ms']:.0f}",
            "?" if memory is None else f"{memory:.0f}",
            f"{run['pipeline']['tracked_share']:.0%}",
        )
    return table


def _stages_table(runs: list[dict[str, Any]]) -> Any:
    """Build the table of one number of objects, one column per variant."""
    from rich import box
    from rich.table import Table

    title = f"Stages of the pipeline, K = {runs[0]['objects']}, median ms"
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    table.add_column("", no_wrap=True)
    for run in runs:
        table.add_column(run["variant"], justify="right")
    for name in dict.fromkeys(name for run in runs for name in run["pipeline"]["stages"]):
        table.add_row(name, *(_median_cell(run["pipeline"]["stages"].get(name)) for run in runs))
    table.add_section()
    table.add_row("frame", *(_median_cell(run["pipeline"]["frame"]) for run in runs))
    return table


def _median_cell(summary: dict[str, float] | None) -> str:
    return "" if summary is None else _short(summary["median_ms"])


def _short(value: float) -> str:
    """Format three digits, so that all columns fit a terminal."""
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"
