"""Results as plots: FPS against K, stage bars, J&F of every object, ours beside PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from plots import Panel, dot_rows, grouped_bars, line_panels, stacked_bars
from report_pipeline import STAGE_SETS
from report_text import Result, count, where

OTHER = "other"
_SMALL_SHARE = 0.01
"""Stages that are below this share of every bar are told as one."""
_VISIBLE_SHARE = 0.005
"""Stages beside PyTorch's that are below this share of our frame stand in the table alone."""
_PANELS = ("plain", "osvos", "crf", "osvos+crf")
"""Variants that get a panel of FPS against K, if they were measured."""


@dataclass(frozen=True)
class Plot:
    """One plot.

    Attributes:
        file_name: Of the SVG.
        alternative: What it shows, for those who cannot see it.
        svg: The file.
    """

    file_name: str
    alternative: str
    svg: str


def plots_of(name: str, result: Result) -> list[Plot]:
    """The plots of a result; none for benchmarks that are told by their table alone.

    Args:
        name: Of the result's file, without ``.json``.
        result: In the format of result_format.py.
    """
    draw = _DRAWERS.get(result["benchmark"])
    return [] if draw is None else draw(name, result)


def _fps(name: str, result: Result) -> list[Plot]:
    variants = list(dict.fromkeys(run["variant"] for run in result["runs"]))
    shown = [variant for variant in _PANELS if variant in variants] or variants[:4]
    panels = []
    for variant in shown:
        runs = [run for run in result["runs"] if run["variant"] == variant]
        panels.append(
            Panel(
                variant,
                {
                    told: [(run["objects"], run[figure]["fps"]) for run in runs]
                    for told, figure in (
                        ("engine-only", "engine_only"),
                        ("pipeline", "pipeline"),
                        ("wall, decode to encode", "wall"),
                    )
                },
            )
        )
    title = f"Frames a second against the number of objects: {result['engine']['name']}"
    caption = (
        f"Built-in clip. Engine-only: the networks alone. {where(result)}."
        f"{' Each panel has its own scale.' if len(panels) > 1 else ''}"
    )
    curves = line_panels(title, caption, panels, x_label="objects K", y_label="frames a second")
    rows = [
        (f"{run['variant']}, K = {run['objects']}", _medians(run["pipeline"]["stages"]))
        for variant in variants
        for run in result["runs"]
        if run["variant"] == variant
    ]
    title = f"Where the time of a frame goes: {result['engine']['name']}"
    caption = f"Pipeline, frames in memory; medians of the stages. {where(result)}."
    bars = stacked_bars(
        title, caption, _with_other(rows), x_label="ms a frame (median)", total="ms"
    )
    return [
        Plot(f"{name}.svg", "FPS against the number of objects", curves),
        Plot(f"{name}-stages.svg", "Median time of every stage", bars),
    ]


def _davis(name: str, result: Result) -> list[Plot]:
    ablations = result["ablations"]
    shown = {n: done for n, done in ablations.items() if not n.startswith("paper-")} or ablations
    objects = dict.fromkeys(k for done in shown.values() for k in done["objects"])
    told = {STAGE_SETS.get(n, n): done for n, done in shown.items()}
    rows = [(k, {n: _j_and_f(done["objects"][k]) for n, done in told.items()}) for k in objects]
    rows.append(("MEAN", {n: done["J&F-Mean"] for n, done in told.items()}))
    data = result["data"]
    caption = (
        f"J&F (mean of J and F) of every object of the set {data['set']}, as mpn eval scores it; "
        f"each set of stages has those before it. {where(result)}."
    )
    svg = dot_rows("J&F of every object, stage after stage", caption, rows, x_label="J&F")
    return [Plot(f"{name}.svg", "J&F of every object with stage after stage", svg)]


def _compare_torch(name: str, result: Result) -> list[Plot]:
    plots = []
    for run in result["runs"]:
        (other, ratios), *_ = run["ratios"].items()
        groups = []
        for stage, ratio in [*ratios["stages"].items(), ("whole frame", ratios["frame"])]:
            sides = {
                told: (side["frame"] if stage == "whole frame" else side["stages"][stage])
                for told, side in (
                    ("ours", run["sides"]["ours"]),
                    ("eager PyTorch", run["sides"][other]),
                )
            }
            medians = {told: summary["median_ms"] for told, summary in sides.items()}
            if max(medians.values()) < _VISIBLE_SHARE * run["sides"]["ours"]["frame"]["median_ms"]:
                continue
            groups.append((stage, medians, f"{ratio['of_medians']:.2f}x"))
        objects = run["objects"]
        caption = (
            f"Same weights, same stages, taking turns frame by frame; bold: eager by ours. "
            f"{where(result)}, PyTorch {result['versions']['torch']}."
        )
        title = f"Ours and eager PyTorch, {result['networks']} networks, {count(objects, 'object')}"
        svg = grouped_bars(title, caption, groups, x_label="ms a frame (median)")
        alternative = f"Times of ours and of eager PyTorch, K = {objects}"
        plots.append(Plot(f"{name}-k{objects}.svg", alternative, svg))
    return plots


def _adaptation(name: str, result: Result) -> list[Plot]:
    runs = result["runs"]
    if len(runs) < 2:
        return []
    series = {
        told: [(_seconds(run), run[key]) for run in runs]
        for told, key in (("J", "J-Mean"), ("F", "F-Mean"))
    }
    roles = " and ".join(result["roles"])
    title = f"What fine-tuning {roles} on the first frame brings"
    steps = ", ".join(str(run["steps"]) for run in runs)
    caption = f"Mean of all objects, set {result['data']['set']}; {steps} steps. {where(result)}."
    panel = Panel("", series)
    svg = line_panels(title, caption, [panel], x_label="seconds an object", y_label="mean score")
    return [Plot(f"{name}.svg", "J and F by the seconds of fine-tuning", svg)]


def _seconds(run: Mapping[str, Any]) -> float:
    return round(run["adapt"]["median_ms"] / 1e3, 1) if run["adapt"] else 0.0


def _medians(stages: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {stage: summary["median_ms"] for stage, summary in stages.items()}


def _with_other(rows: list[tuple[str, dict[str, float]]]) -> list[tuple[str, dict[str, float]]]:
    """The same bars, with the stages that nobody would see put together at the end."""
    seen = dict.fromkeys(
        stage
        for _, parts in rows
        for stage, value in parts.items()
        if value >= _SMALL_SHARE * sum(parts.values())
    )
    told = []
    for label, parts in rows:
        kept: dict[str, float] = {stage: parts.get(stage, 0.0) for stage in seen}
        kept[OTHER] = sum(parts.values()) - sum(kept.values())
        told.append((label, kept))
    return told


def _j_and_f(scores: Mapping[str, float]) -> float:
    return (scores["J-Mean"] + scores["F-Mean"]) / 2


_DRAWERS: dict[str, Callable[[str, Result], list[Plot]]] = {
    "fps": _fps,
    "davis": _davis,
    "compare_torch": _compare_torch,
    "adaptation": _adaptation,
}
