"""The ``mpn inspect`` command."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import typer

from mpn.cli.output import echo_document

if TYPE_CHECKING:
    from mpn.engines.directory.inspect import EngineDirReport
    from mpn.engines.directory.parity import ParityReport


def inspect(
    directory: str | None = typer.Argument(
        None,
        metavar="DIR",
        help="Engine directory: a folder, zip file or address.",
        show_default="the installed weights",
    ),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object instead of tables."),
) -> None:
    """Show the contents of an engine directory and whether this machine can run it.

    Exit code 1 if it cannot: files have changed since export, or no backend can open it.
    """
    from mpn.engines.directory.inspect import describe_engine_dir
    from mpn.errors import EngineError

    report = describe_engine_dir(directory)
    if as_json:
        import json

        echo_document(json.dumps(report.as_json(), indent=2))
    else:
        _print(report)
    if report.problem is not None:
        raise EngineError(report.problem)


def _print(report: EngineDirReport) -> None:
    from mpn._common.console import PlainConsole
    from mpn._common.records import json_from_record

    console = PlainConsole(highlight=False)
    manifest = report.manifest
    height, width = manifest.frame_size_hw
    console.print(f"[bold]{_plain(manifest.name)}[/bold] in {_plain(report.directory)}")
    console.print(f"pinned: {_plain(report.pin)}", soft_wrap=True)
    console.print(_engines_table(report))
    console.print(_facts_table("Tensors", _tensor_rows(report)))
    if report.plans:
        console.print(_plans_table(report))
    console.print(_facts_table("Fine-tuning on the given frame", _adapt_rows(report)))
    console.print(
        _facts_table(
            "Use",
            [
                ("frame", f"{width}x{height}"),
                ("crop", f"{manifest.roi_size}x{manifest.roi_size}"),
                ("objects in a batch", f"up to {manifest.max_objects}"),
                *_flat_rows("flow", manifest.flow.as_json()),
                *_flat_rows("preprocessing", json_from_record(manifest.preprocessing)),
                *_flat_rows("default", manifest.runtime_defaults),
            ],
        )
    )
    console.print(_facts_table("Provenance", _provenance_rows(report)))
    if report.parity is not None:
        console.print(_facts_table("Parity at export", _parity_rows(report.parity)))
    console.print(_backends_table(report))


def _engines_table(report: EngineDirReport) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(title="Engines", title_justify="left", box=box.SIMPLE)
    for heading in ("role", "file", "size", "precision", "half", "digest"):
        table.add_column(heading, overflow="fold")
    for role, entry in report.manifest.roles.items():
        half = f"{entry.half_weights} of {entry.total_weights}"
        precision: str = entry.precision
        if entry.quantized is not None:
            counts = f"{entry.quantized.operators} of {entry.quantized.total_operators}"
            precision = f"int8 ({counts})"
        for file in report.files[role]:
            first = file.path == entry.onnx
            digest = "[green]ok[/green]" if file.problem is None else "[red]differs[/red]"
            facts = (precision, half) if first else ("", "")
            table.add_row(
                role if first else "", _plain(file.path), _size(file.size_bytes), *facts, digest
            )
    return table


def _plans_table(report: EngineDirReport) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(title="Plans", title_justify="left", box=box.SIMPLE)
    for heading in ("role", "for", "built by", "on", "size", "half", "state"):
        table.add_column(heading, overflow="fold")
    for plan in report.plans:
        record = plan.record
        if record is None:
            table.add_row(_plain(plan.path.name), *[""] * 5, f"[red]{_plain(plan.problem)}[/red]")
            continue
        count = record.precision.engine or record.precision.network
        state = (
            "[green]ok[/green]" if plan.problem is None else f"[red]{_plain(plan.problem)}[/red]"
        )
        exchange = " (weights can be exchanged)" if record.key.options.refittable else ""
        table.add_row(
            f"{record.key.role}{exchange}",
            _plain(record.key.arch),
            _plain(f"{record.key.backend} {record.built_by}"),
            _plain(record.device or "no GPU"),
            _size(record.nbytes),
            f"{count.half_layers} of {count.layers} layers",
            state,
        )
    return table


def _size(size_bytes: int | None) -> str:
    if size_bytes is None:
        return "missing"
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1e6 else f"{size_bytes / 1e3:.1f} kB"


def _backends_table(report: EngineDirReport) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(title="This machine", title_justify="left", show_header=False, box=box.SIMPLE)
    for backend in report.backends:
        usable = "[green]yes[/green]" if backend.usable else "[red]no[/red]"
        table.add_row(backend.backend, usable, _plain(backend.reason))
    return table


def _facts_table(title: str, rows: list[tuple[str, str]]) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=False, box=box.SIMPLE)
    for name, value in rows:
        table.add_row(_plain(name), _plain(value))
    return table


def _tensor_rows(report: EngineDirReport) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for role, entry in report.manifest.roles.items():
        inputs = ", ".join(tensor.describe() for tensor in entry.inputs)
        outputs = ", ".join(tensor.describe() for tensor in entry.outputs)
        rows.append((role, f"{inputs} -> {outputs}"))
        facts = f"{entry.variant}, {entry.parameters:,} parameters, opset {entry.opset}"
        rows.append(("", facts))
    return rows


def _adapt_rows(report: EngineDirReport) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for role, entry in report.manifest.roles.items():
        if entry.adapt is None:
            continue
        settings = [f"{name} {value}" for name, value in entry.adapt.settings.items()]
        rows.append((role, ", ".join([entry.adapt.optimizer, *settings])))
        for scope in entry.adapt.graphs:
            trained = entry.adapt.trained(scope)
            values = sum(math.prod(tensor.shape) for tensor in trained)
            rows.append(("", f"scope {scope}: {len(trained)} tensors, {values:,} values"))
    return rows or [("none", "exported without it")]


def _provenance_rows(report: EngineDirReport) -> list[tuple[str, str]]:
    provenance = report.manifest.provenance
    return [
        ("licence of the weights", provenance.licence),
        ("exported", f"{provenance.created} by mpn-runtime {provenance.tool_version}"),
        ("command", provenance.command),
        *(("checkpoint", f"{file.path} {file.sha256[:12]}") for file in provenance.checkpoints),
    ]


def _parity_rows(parity: ParityReport) -> list[tuple[str, str]]:
    if parity.reference is None:
        return [("not compared", parity.inputs)]
    return [
        ("compared with", parity.reference),
        ("on", parity.inputs),
        *(
            (
                measure.role,
                f"{measure.name} {measure.value:.3g} (limit {measure.limit:g}), "
                f"worst of {measure.cases}",
            )
            for measure in parity.measures
        ),
    ]


def _flat_rows(name: str, value: Any) -> list[tuple[str, str]]:
    """List one row per leaf of nested JSON, named by its dotted path."""
    from collections.abc import Mapping

    if isinstance(value, Mapping):
        return [row for key, nested in value.items() for row in _flat_rows(f"{name}.{key}", nested)]
    return [(name, str(value))]


def _plain(text: object) -> str:
    """Escape rich's markup characters: file names may have brackets."""
    from rich.markup import escape

    return escape(str(text))
