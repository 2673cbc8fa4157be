"""Draw results as plots with matplotlib: each as SVG and as PNG.

A :class:`Plot` holds the data of a plot. Its digest is written into both files, so the check for
stale plots compares data, needs no matplotlib, and does not depend on its version.
"""

from __future__ import annotations

import hashlib
import json
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.report.schema import Result
from benchmarks.report.tables import (
    conditions_text,
    count,
    release_text,
    run_modes,
    scores_text,
    stage_sets,
)
from mpn.errors import MissingExtraError
from mpn.runtime.bench.profile import by_type

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".svg", ".png")
OTHER = "other"
_STYLE_VERSION = 1
"""Part of each digest. Raise it when the drawing code changes, so that all plots become stale."""
_COLOURS = (
    "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#8c6d31", "#999999",
    "#f0e442", "#5e4fa2", "#1b1b1b",
)  # fmt: skip
"""Colours of Okabe and Ito, which colour-blind readers can distinguish, and four more."""
_GREY, _GRID = "#555555", "#dddddd"
_WIDTH_IN, _PNG_DPI = 8.0, 150
_CAPTION_COLUMNS = 145
_VALUE_DISTANCE_PT = 11
_STAGE_SHARE_MIN = 0.01
"""Stages below this fraction of every bar are drawn as one stage, :data:`OTHER`."""
_TORCH_SHARE_MIN = 0.005
"""Stages below this fraction of our frame are left out of the comparison with PyTorch."""
_PANELS = ("plain", "osvos", "crf", "osvos+crf")
"""Variants that get a panel of FPS against the number of objects."""
_DIGEST = re.compile(rb"mpn-plot:([0-9a-f]{64})")


@dataclass(frozen=True)
class Series:
    """Hold the data of one plot.

    Attributes:
        kind: Key of :data:`_DRAWERS`: how the data is drawn.
        title: First line.
        caption: How it was measured; the last lines.
        rows: Panels of lines, or rows of bars or dots: label, and value (or points) by series.
        x_label: Label of the x axis with its unit.
        y_label: Label of the y axis with its unit; lines only. Empty if the label of
            each panel is that of its y axis.
        is_from_zero: Whether the y axis starts at 0; lines only.
        remarks: One bold text per row at the right; bars only.
    """

    kind: str
    title: str
    caption: str
    rows: Sequence[tuple[str, Mapping[str, Any]]]
    x_label: str
    y_label: str = ""
    is_from_zero: bool = True
    remarks: Sequence[str] = ()

    @property
    def names(self) -> list[str]:
        """Names of all series, in the order of the legend."""
        return list(dict.fromkeys(name for _, values in self.rows for name in values))


@dataclass(frozen=True)
class Plot:
    """Hold one plot and its place in the report.

    Attributes:
        name: File name without suffix.
        alternative: Description for screen readers.
        series: Data of the plot.
    """

    name: str
    alternative: str
    series: Series

    @property
    def digest(self) -> str:
        """SHA-256 of the data and of the style version."""
        text = json.dumps([_STYLE_VERSION, asdict(self.series)])
        return hashlib.sha256(text.encode()).hexdigest()


def is_stale(plot: Plot, path: Path) -> bool:
    """Return whether a file is missing or was drawn from other data."""
    if not path.is_file():
        return True
    match = _DIGEST.search(path.read_bytes())
    return match is None or match[1].decode() != plot.digest


def draw(plot: Plot, path: Path) -> None:
    """Draw a plot to a file; the suffix sets the format.

    The same data and the same matplotlib give the same bytes.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("plots need matplotlib: pip install -e '.[bench]'") from error
    style = {
        "font.family": "DejaVu Sans",  # matplotlib ships it: the same layout on each machine
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": _GRID,
        "svg.fonttype": "none",  # text stays text: smaller files, and a browser can search it
        "svg.hashsalt": plot.name,
    }
    with rc_context(style):
        figure = Figure(layout="constrained")
        _DRAWERS[plot.series.kind](figure, plot.series)
        caption = textwrap.fill(plot.series.caption, _CAPTION_COLUMNS)
        figure.supxlabel(caption, x=0.01, ha="left", fontsize=7.5, color=_GREY)
        note = f"mpn-plot:{plot.digest}"
        metadata: dict[str, str | None] = {"Description": note}
        if path.suffix == ".svg":
            metadata |= {"Title": plot.alternative, "Creator": "mpn-runtime", "Date": None}
        else:
            metadata |= {"Title": plot.alternative, "Software": None}
        figure.savefig(path, dpi=_PNG_DPI, metadata=metadata)


def _title_and_legend(figure: Figure, axes: Axes, series: Series) -> None:
    """Write the title and, below it, the legend."""
    names = series.names
    columns = max(1, min(len(names), 100 // (max(map(len, names)) + 6)))
    # The title is part of the legend, because constrained layout puts both at the same place.
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside upper left", ncols=columns, frameon=False,
        borderaxespad=0.3, handlelength=1.2, title=series.title, alignment="left",
        title_fontproperties={"size": 12, "weight": "bold"},
    )  # fmt: skip


def _draw_lines(figure: Figure, series: Series) -> None:
    """Draw line panels, each with its own y axis."""
    panels = len(series.rows)
    columns = min(panels, 2)
    lines = -(-panels // columns)
    figure.set_size_inches(_WIDTH_IN, 1.3 + 2.6 * lines)
    grid = figure.subplots(lines, columns, squeeze=False)
    colours = dict(zip(series.names, _COLOURS, strict=False))
    for axes in grid.flat[panels:]:
        axes.set_visible(False)
    for axes, (label, values) in zip(grid.flat, series.rows, strict=False):
        ys = [y for points in values.values() for _, y in points]
        base = 0.0 if series.is_from_zero else min(ys) - 0.4 * (max(ys) - min(ys))
        limits = (base, max(ys) + 0.16 * (max(ys) - base))
        axes.set_ylim(limits)
        axes.margins(x=0.09)
        if series.y_label:
            axes.set_title(label, fontsize=10)
        axes.set_xlabel(series.x_label)
        axes.set_ylabel(series.y_label or label)
        for name, points in values.items():
            axes.plot(*zip(*points, strict=True), "o-", color=colours[name], label=name, ms=4.5)
        if all(isinstance(x, int) for points in values.values() for x, _ in points):
            axes.set_xticks(sorted({x for points in values.values() for x, _ in points}))
        _write_values(axes, values, colours, limits)
    _title_and_legend(figure, grid.flat[0], series)


def _draw_lines_log_x(figure: Figure, series: Series) -> None:
    """Draw line panels with a logarithmic x axis."""
    _draw_lines(figure, series)
    for axes, (_, values) in zip(figure.axes, series.rows, strict=False):
        ticks = sorted({x for points in values.values() for x, _ in points})
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick:g}" if tick >= 100 else f"{tick:.2g}" for tick in ticks])
        axes.minorticks_off()


def _write_values(
    axes: Axes,
    values: Mapping[str, Any],
    colours: Mapping[str, str],
    limits: tuple[float, float],
) -> None:
    """Write each value above or below its dot, if there is room."""
    low, high = limits
    point_scale = 150.0 / (high - low)  # a panel is about 150 points high
    taken: dict[float, list[float]] = {}
    for points in values.values():
        for x, y in points:
            taken.setdefault(x, []).append((y - low) * point_scale)
    for name, points in values.items():
        for x, y in points:
            dot_pt = (y - low) * point_scale
            for shift_pt in (_VALUE_DISTANCE_PT, -_VALUE_DISTANCE_PT):
                middle_pt = dot_pt + shift_pt
                if middle_pt > 6 and all(abs(middle_pt - other) >= 10 for other in taken[x]):
                    taken[x].append(middle_pt)
                    axes.annotate(
                        _short(y), (x, y), (0, shift_pt), textcoords="offset points",
                        ha="center", va="center", fontsize=7.5, color=colours[name],
                    )  # fmt: skip
                    break


def _draw_stacked_bars(figure: Figure, series: Series) -> None:
    """Draw one horizontal bar per row, made of parts, with the sum at its end."""
    axes = _rows_of_bars(figure, series, 0.27)
    colours = dict(zip(series.names, _COLOURS, strict=False))
    for row, (_, values) in enumerate(series.rows):
        left = 0.0
        for name, value in values.items():
            axes.barh(row, value, 0.66, left, color=colours[name], label=_once(axes, name))
            left += value
        axes.annotate(
            _short(left), (left, row), (4, 0), textcoords="offset points", va="center",
            fontsize=8, color=_GREY,
        )  # fmt: skip
    _title_and_legend(figure, axes, series)


def _draw_grouped_bars(figure: Figure, series: Series) -> None:
    """Draw one horizontal bar per series in each row, and a remark at the right."""
    names = series.names
    axes = _rows_of_bars(figure, series, 0.2 * len(names) + 0.12)
    colours = dict(zip(names, _COLOURS, strict=False))
    height = 0.8 / len(names)
    for row, (_, values) in enumerate(series.rows):
        for name, value in values.items():
            y = row + (names.index(name) - (len(names) - 1) / 2) * height
            axes.barh(y, value, 0.9 * height, color=colours[name], label=_once(axes, name))
            axes.annotate(
                _short(value), (value, y), (4, 0), textcoords="offset points", va="center",
                fontsize=7.5, color=_GREY,
            )  # fmt: skip
        axes.annotate(
            series.remarks[row], (1, row), xycoords=axes.get_yaxis_transform(), va="center",
            ha="right", weight="bold",
        )  # fmt: skip
    axes.margins(x=0.18)
    _title_and_legend(figure, axes, series)


def _draw_dots(figure: Figure, series: Series) -> None:
    """Draw one dot per series in each row on an axis from 0 to 1.

    The dots of a row have small vertical offsets in the order of the legend, so none covers
    another.
    """
    names = series.names
    axes = _rows_of_bars(figure, series, 0.085 * len(names) + 0.14)
    axes.set_xlim(0, 1)
    for row in range(0, len(series.rows), 2):
        axes.axhspan(row - 0.5, row + 0.5, color="#f3f3f3", zorder=0)
    for index, name in enumerate(names):
        places = [(v[name], row) for row, (_, v) in enumerate(series.rows) if name in v]
        offset = (index - (len(names) - 1) / 2) * 0.8 / len(names)
        axes.scatter(
            [x for x, _ in places], [row + offset for _, row in places], 22,
            color=_COLOURS[index], label=name, zorder=3, linewidths=0.4, edgecolors="white",
        )  # fmt: skip
    for label in axes.get_yticklabels():
        label.set_weight("bold" if label.get_text().isupper() else "normal")
    _title_and_legend(figure, axes, series)


def _rows_of_bars(figure: Figure, series: Series, row_height_in: float) -> Axes:
    figure.set_size_inches(_WIDTH_IN, 1.5 + row_height_in * len(series.rows))
    axes = figure.subplots()
    axes.set_yticks(range(len(series.rows)), [label for label, _ in series.rows])
    axes.set_ylim(len(series.rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.08)
    axes.set_xlabel(series.x_label)
    return axes


def _once(axes: Axes, name: str) -> str:
    """Return a label only once per axes, so that the legend has each name once."""
    return "_" if name in axes.get_legend_handles_labels()[1] else name


def _short(value: float) -> str:
    """Return a value with about three digits."""
    if value >= 100 or value == int(value):
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.3f}"


_DRAWERS: dict[str, Callable[[Figure, Series], None]] = {
    "lines": _draw_lines,
    "lines, log x": _draw_lines_log_x,
    "stacked bars": _draw_stacked_bars,
    "grouped bars": _draw_grouped_bars,
    "dots": _draw_dots,
}


def plots_of(name: str, result: Result) -> list[Plot]:
    """Return the plots of a result; some benchmarks have a table only.

    Args:
        name: File name of the result without ``.json``.
        result: Result in the common format.
    """
    plots = _PLOTS_OF.get(result["benchmark"])
    return [] if plots is None else plots(name, result)


def _fps(name: str, result: Result) -> list[Plot]:
    if len(result["runs"]) < 2:
        return []
    variants = list(dict.fromkeys(run["variant"] for run in result["runs"]))
    panels = []
    for variant in [variant for variant in _PANELS if variant in variants] or variants[:4]:
        runs = [run for run in result["runs"] if run["variant"] == variant]
        figures = {"engine-only": "engine_only", "pipeline": "pipeline", "wall": "wall"}
        panels.append(
            (
                variant,
                {
                    label: [(run["objects"], run[key]["fps"]) for run in runs]
                    for label, key in figures.items()
                },
            )
        )
    curves = Series(
        "lines",
        f"FPS against the number of objects, engines '{result['engine']['name']}'",
        "Built-in clip. Engine-only: the networks. Pipeline: all stages. Wall: decoding to written "
        f"files. {conditions_text(result)}. Each panel has its own scale.",
        panels,
        x_label="objects K",
        y_label="FPS",
    )
    rows = [
        (f"{run['variant']}, K = {run['objects']}", _medians(run["pipeline"]["stages"]))
        for variant in variants
        for run in result["runs"]
        if run["variant"] == variant
    ]
    bars = Series(
        "stacked bars",
        f"Time per stage, engines '{result['engine']['name']}'",
        f"Pipeline, frames in memory. {conditions_text(result)}.",
        _with_other(rows),
        x_label="ms per frame (median of each stage; the sum at the end of a bar)",
    )
    return [
        Plot(name, "FPS against the number of objects", curves),
        Plot(f"{name}-stages", "Median time of every stage", bars),
    ]


def _profile(name: str, result: Result) -> list[Plot]:
    rows, remarks = [], []
    entries = [(stage["name"], stage) for stage in result["stages"]]
    entries += [(f"{r['network']}: {r['type']}", r) for r in by_type(result["operators"])]
    for label, row in entries:
        if row["median_ms"] < _STAGE_SHARE_MIN * result["frame"]["median_ms"]:
            continue
        values = {"measured": row["median_ms"]}
        share = row["share"]
        if share is not None:
            values["the roofline allows"] = round(share * row["median_ms"], 4)
        rows.append((label, values))
        remarks.append(f"{share:.0%}" if share is not None else row["kind"])
    series = Series(
        "grouped bars",
        f"A frame against the roofline, engines '{result['engine']['name']}'",
        "Stages of the pipeline, then types of operators by onnxruntime's profiler. Bold: share of "
        "the roofline, or the kind of a stage without one. "
        f"{count(result['objects'][0], 'object')}, {conditions_text(result)}.",
        rows,
        x_label="ms per frame (median)",
        remarks=remarks,
    )
    return [Plot(name, "Time of stages and operators, and what the roofline allows", series)]


def _davis(name: str, result: Result) -> list[Plot]:
    ablations = result["ablations"]
    shown = {n: scores for n, scores in ablations.items() if not n.startswith("paper-")}
    labels = {n: label.replace("`", "") for n, label in run_modes(ablations).items()}
    labels |= stage_sets(ablations)
    by_label = {labels.get(n, n): scores for n, scores in (shown or ablations).items()}
    objects = dict.fromkeys(k for scores in by_label.values() for k in scores["objects"])
    rows = [(k, {n: _j_and_f(s["objects"][k]) for n, s in by_label.items()}) for k in objects]
    rows.append(("MEAN", {n: scores["J&F-Mean"] for n, scores in by_label.items()}))
    series = Series(
        "dots",
        f"J&F per object, set {result['data']['set']}",
        f"Mean of {scores_text(result)}. Each set of the chain (+) adds a stage to the set before "
        f"it. {conditions_text(result)}.",
        rows,
        x_label="J&F",
    )
    return [Plot(name, "J&F of every object for every set of stages", series)]


def _compare_torch(name: str, result: Result) -> list[Plot]:
    plots = []
    for run in result["runs"]:
        (other, ratios), *_ = run["ratios"].items()
        rows, remarks = [], []
        for stage, ratio in [*ratios["stages"].items(), ("whole frame", ratios["frame"])]:
            medians = {
                label: (side["frame"] if stage == "whole frame" else side["stages"][stage])[
                    "median_ms"
                ]
                for label, side in (
                    ("ours", run["sides"]["ours"]),
                    *(
                        (side.replace("_", " "), run["sides"][side])
                        for side in run.get("ratios_of_ours", {})
                    ),
                    (
                        "eager PyTorch" + " channels last" * other.endswith("channels_last"),
                        run["sides"][other],
                    ),
                )
            }
            frame_ms = run["sides"]["ours"]["frame"]["median_ms"]
            if max(medians.values()) >= _TORCH_SHARE_MIN * frame_ms:
                rows.append((stage, medians))
                remarks.append(f"{ratio['of_medians']:.2f}x")
        objects = run["objects"]
        series = Series(
            "grouped bars",
            f"Eager PyTorch, networks '{result['networks']}', {count(objects, 'object')}",
            "Same weights and stages, interleaved frame by frame. Bold: time of eager PyTorch "
            f"divided by ours. {conditions_text(result)}, PyTorch {result['versions']['torch']}.",
            rows,
            x_label="ms per frame (median)",
            remarks=remarks,
        )
        alternative = f"Times of our pipeline and of eager PyTorch, K = {objects}"
        plots.append(Plot(f"{name}-k{objects}", alternative, series))
    return plots


def _finetuning(name: str, result: Result) -> list[Plot]:
    runs = result["runs"]
    if len(runs) < 2:
        return []
    values = {
        label: [(_seconds(run), run[key]) for run in runs]
        for label, key in (("J", "J-Mean"), ("F", "F-Mean"))
    }
    steps = ", ".join(str(run["steps"]) for run in runs)
    series = Series(
        "lines",
        f"Scores against fine-tuning time, {' and '.join(result['roles'])}",
        f"Mean of all objects, set {result['data']['set']}; {steps} steps. "
        f"{conditions_text(result)}.",
        [("", values)],
        x_label="fine-tuning, s per object",
        y_label="mean score",
        is_from_zero=False,
    )
    return [Plot(name, "J and F against the seconds of fine-tuning", series)]


def _releases(name: str, result: Result) -> list[Plot]:
    runs = result["runs"]
    if len(runs) < 2:
        return []
    labels = {side: f"{side} ({release_text(f)})" for side, f in result["releases"].items()}
    panels = [
        (
            "wall FPS",
            {
                label: [(run["objects"], 1e3 / run["wall"][side]["median_ms"]) for run in runs]
                for side, label in labels.items()
            },
        )
    ]
    if all("memory" in run for run in runs):
        panels.append(
            (
                "peak memory, MiB",
                {
                    label: [(run["objects"], run["memory"][side]["median_mib"]) for run in runs]
                    for side, label in labels.items()
                },
            )
        )
    series = Series(
        "lines",
        "Releases against the number of objects",
        f"mpn run, interleaved, medians of {count(result['repeats'], 'run')} each. Wall: decoding "
        f"to written files. {conditions_text(result)}.",
        panels,
        x_label="objects K",
    )
    return [Plot(name, "Wall FPS and peak memory of releases", series)]


_SWEEPS = {
    "k": ("the number of objects", "objects K"),
    "size": ("the frame size", "megapixels of a frame"),
    "length": ("the length of the video", "frames"),
}
"""Name and x axis of each sweep."""


def _scaling(name: str, result: Result) -> list[Plot]:
    plots = []
    for sweep, sides in result["sweeps"].items():
        against, x_label = _SWEEPS[sweep]
        points = {side: figures["points"] for side, figures in sides.items()}
        if len(next(iter(points.values()))) < 2:
            continue
        figures_of = {
            "wall FPS": lambda point: point["fps"],
            "ms per frame": lambda point: point["per_frame"]["median_ms"],
            "peak memory, MiB": lambda point: point["peak_memory_mib"],
        }
        panels: list[tuple[str, dict[str, Any]]] = [
            (label, {side: [(p["x"], figure(p)) for p in found] for side, found in points.items()})
            for label, figure in figures_of.items()
            if all(figure(point) is not None for found in points.values() for point in found)
        ]
        series = Series(
            "lines" if sweep == "k" else "lines, log x",
            f"Wall FPS, time and memory against {against}",
            f"Default mpn run of the built-in clip, from a video file to written files. "
            f"{_sweep_conditions(sweep, result, next(iter(points.values())))}. Each panel has its "
            "own scale.",
            panels,
            x_label=x_label,
        )
        plots.append(Plot(f"{name}-{sweep}", f"Wall FPS and memory against {against}", series))
    return plots


def _sweep_conditions(sweep: str, result: Result, points: Sequence[Mapping[str, Any]]) -> str:
    """Return the conditions of one sweep, which has its own size and length."""
    machine, point = result["machine"], points[0]
    height, width = point["frame_size_hw"]
    parts = [f"{machine['processor']}, {count(machine['cores'], 'core')}"]
    parts.append(count(result["backend"]["threads"], "thread"))
    if sweep != "size":
        parts.append(f"{width}x{height}")
    if sweep != "k":
        parts.append(count(point["objects"], "object"))
    if sweep == "length":
        parts.append(f"N = {', '.join(str(p['frames']) for p in points)} frames, 1 run")
    else:
        parts.append(f"N = {count(point['frames'], 'frame')}, {count(result['repeats'], 'run')}")
    return ", ".join(parts)


def _seconds(run: Mapping[str, Any]) -> float:
    return round(run["finetune"]["median_ms"] / 1e3, 1) if run["finetune"] else 0.0


def _medians(stages: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {stage: summary["median_ms"] for stage, summary in stages.items()}


def _with_other(rows: list[tuple[str, dict[str, float]]]) -> list[tuple[str, dict[str, float]]]:
    """Merge the stages that are too short to draw into one at the end."""
    visible = dict.fromkeys(
        stage
        for _, parts in rows
        for stage, value in parts.items()
        if value >= _STAGE_SHARE_MIN * sum(parts.values())
    )
    merged = []
    for label, parts in rows:
        kept = {stage: parts.get(stage, 0.0) for stage in visible}
        rest = sum(parts.values()) - sum(kept.values())
        merged.append((label, kept | {OTHER: max(rest, 0.0)}))
    return merged


def _j_and_f(scores: Mapping[str, float]) -> float:
    return (scores["J-Mean"] + scores["F-Mean"]) / 2


_PLOTS_OF: dict[str, Callable[[str, Result], list[Plot]]] = {
    "fps": _fps,
    "profile": _profile,
    "davis": _davis,
    "compare_torch": _compare_torch,
    "finetuning": _finetuning,
    "releases": _releases,
    "scaling": _scaling,
}
