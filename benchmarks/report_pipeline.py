"""Results of whole pipelines as Markdown: J, F and FPS, variants, and eager PyTorch beside us.

Each function takes a result and whether it is for README, which has the main table only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from report_text import Result, count, milliseconds, table, where

STAGE_SETS = {
    "warp": "warp alone",
    "propagation": "+ propagation",
    "adapted": "+ fine-tuning",
    "osvos": "+ OSVOS",
    "crf": "+ DenseCRF",
}
"""The sets of ``davis.py``: what each adds to those before it."""
_MEANINGLESS_RATIO = 100
PAPER_PREFIX = "paper-"
README_OBJECTS = (1, 3)
"""In README the variants beside the plain pipeline are told for these numbers of objects."""


def davis_table(result: Result, is_short: bool) -> str:
    """J, F and FPS of each set of stages."""
    data, ablations = result["data"], result["ablations"]
    sequences = data["sequences"].values()
    frames = sum(sequence["frames"] for sequence in sequences)
    lines = [
        "J and F as `mpn eval` scores them, and FPS, from one run over the "
        f"{count(len(sequences), 'sequence')} of the set `{data['set']}` ({frames} frames); each "
        "row has the stages of those before it. Wall: decode, segment, save the PNG, one thread; "
        f"fine-tuning on the first frame is told apart. {where(result)} (`benchmarks/davis.py`).",
        "",
    ]
    rows = []
    for name, done in ablations.items():
        adapt = done["adapt"]
        rows.append(
            [
                _set_name(name, ablations),
                *(f"{done[key]:.3f}" for key in ("J-Mean", "F-Mean", "J&F-Mean")),
                f"{done['pipeline_fps']:.1f}",
                f"{done['wall_fps']:.1f}",
                "" if adapt is None else f"{adapt['seconds_per_object']:.1f} s",
            ]
        )
    headings = ["stages", "J", "F", "J&F", "pipeline FPS", "wall FPS", "fine-tuning an object"]
    lines.append(table(headings, rows))
    if any(name.startswith(PAPER_PREFIX) for name in ablations):
        lines += [
            "\n*As in the paper*: without the stages that this project adds (flow check, mirror, "
            "colours of the first frame)."
        ]
    if not is_short:
        lines += ["", "J (F) of each object:", ""]
        objects = dict.fromkeys(k for done in ablations.values() for k in done["objects"])
        rows = [[k, *(_score(done["objects"][k]) for done in ablations.values())] for k in objects]
        lines.append(table(["object", *(f"`{name}`" for name in ablations)], rows))
    return "\n".join(lines) + "\n"


def _set_name(name: str, ablations: Mapping[str, Any]) -> str:
    stages = ablations[name]["stages"]
    if name in STAGE_SETS:
        return STAGE_SETS[name]
    if name.removeprefix(PAPER_PREFIX) in STAGE_SETS:
        return f"as in the paper: {' '.join(STAGE_SETS[stage] for stage in stages)}"
    base = next(n for n, done in ablations.items() if n in STAGE_SETS and done["stages"] == stages)
    before, after = (ablations[n]["options"] for n in (base, name))
    changed = (f"{key}={after[key]}" for key in after if after[key] != before[key])
    return f"{name}: {STAGE_SETS[base]}, `{', '.join(changed)}`"


def _score(scores: Mapping[str, float]) -> str:
    return f"{scores['J-Mean']:.3f} ({scores['F-Mean']:.3f})"


def fps_table(result: Result, is_short: bool) -> str:
    """Engine-only, pipeline and wall FPS of each variant and number of objects."""
    lines = [
        "Frames a second on the built-in clip. *Engine-only*: the networks alone; *pipeline*: all "
        "stages, frames in memory; *wall*: from decoding an H.264 file to masks and overlay "
        "written. First mask: from the call of a cold run on, engines opened. Variants add to the "
        "plain pipeline; OSVOS then runs in every frame. *default*: what `mpn-run` does, "
        "fine-tuned networks and OSVOS as the engines advise. "
        f"{where(result)} (`mpn bench`).",
        "",
    ]
    runs = [
        run
        for run in result["runs"]
        if not is_short or run["variant"] == "plain" or run["objects"] in README_OBJECTS
    ]
    rows = []
    for run in sorted(runs, key=lambda run: _order_of_variants(result).index(run["variant"])):
        wall, memory = run["wall"], run["wall"]["peak_memory_mib"]
        rows.append(
            [
                run["variant"],
                run["objects"],
                *(f"{run[f]['fps']:.1f}" for f in ("engine_only", "pipeline", "wall")),
                f"{wall['until_first_mask_ms']:.0f} ms",
                _adaptation(run),
                "?" if memory is None else f"{memory:.0f} MiB",
            ]
        )
    headings = ["variant", "objects", "engine-only", "pipeline", "wall", "first mask"]
    lines.append(table([*headings, "of it fine-tuning", "peak memory"], rows))
    if not is_short:
        lines += [_stage_tables(result)]
    return "\n".join(lines) + "\n"


def _order_of_variants(result: Result) -> list[str]:
    return list(dict.fromkeys(run["variant"] for run in result["runs"]))


def _adaptation(run: Mapping[str, Any]) -> str:
    adapt_ms = run["wall"].get("adapt_ms")
    return "" if not adapt_ms else f"{adapt_ms / 1e3:.1f} s"


def _stage_tables(result: Result) -> str:
    lines = []
    for objects in result["objects"]:
        runs = [run for run in result["runs"] if run["objects"] == objects]
        stages = dict.fromkeys(name for run in runs for name in run["pipeline"]["stages"])
        rows = [
            [stage, *(_times(run["pipeline"]["stages"].get(stage)) for run in runs)]
            for stage in stages
        ]
        rows.append(["**frame**", *(_times(run["pipeline"]["frame"]) for run in runs)])
        rows.append(["first frame", *(f"{run['pipeline']['start_ms']:.1f}" for run in runs)])
        lines += [
            "",
            f"Stages of the pipeline, {count(objects, 'object')}, ms, median (minimum to 95th "
            "percentile):",
            "",
            table(["stage", *(run["variant"] for run in runs)], rows),
        ]
    return "\n".join(lines)


def _times(summary: Mapping[str, float] | None) -> str:
    if summary is None:
        return ""
    return f"{summary['median_ms']:.2f} ({summary['min_ms']:.2f} to {summary['p95_ms']:.2f})"


_MAIN_STAGES = ("flow", "warp", "osvos", "propagation", "crf", "frame")
"""What README tells beside PyTorch; docs/benchmarks.md has every stage."""


def compare_torch_table(result: Result, is_short: bool) -> str:
    """Ours and eager PyTorch, stage by stage."""
    names = {"paper": "paper-size networks, random weights", "lite": "the engines that ship"}
    lines = [
        f"Our pipeline against the same one in eager PyTorch ({result['versions']['torch']}), "
        f"{names.get(result['networks'], result['networks'])}: median ms a frame, and how many "
        f"times faster ours is (of minima). {where(result)} (`benchmarks/compare_torch.py`).",
        "",
    ]
    others = list(result["runs"][0]["ratios"])
    rows = []
    for run in result["runs"]:
        ours, ratios = run["sides"]["ours"], run["ratios"]
        for stage in (*ours["stages"], "frame"):
            if is_short and stage not in _MAIN_STAGES:
                continue
            cells = [_side_times(ours, stage)]
            for other in others:
                cells.append(_side_times(run["sides"][other], stage))
                cells.append(_ratio_cell(ratios[other], stage))
            is_whole = stage == "frame"
            name = "**whole frame**" if is_whole else stage
            rows.append([run["objects"], name, *cells])
    headings = ["objects", "stage", "ours"]
    for other in others:
        headings += [other.replace("_", " "), "ratio"]
    lines.append(table(headings, rows))
    for run in result["runs"]:
        agreement = run["agreement"][others[0]]["mask_iou"]
        share = run["sides"]["ours"]["outside_networks_share"]
        lines.append(
            f"\n{count(run['objects'], 'object')}: the masks of both sides agree with an IoU of "
            f"{agreement['min']:.4f} at worst, {agreement['mean']:.4f} on average; outside the "
            f"networks is {share:.1%} of our frame without CRF."
        )
    rows = [
        [
            entry["operation"],
            entry["objects"],
            milliseconds(entry["sides"]["ours"]["median_ms"]),
            *(
                f"{other.replace('_', ' ')} {milliseconds(entry['sides'][other]['median_ms'])}, "
                f"{_ratio(ratio)}"
                for other, ratio in entry["ratios"].items()
            ),
        ]
        for entry in result.get("operations", [])
    ]
    if rows:
        others = [f"other side {number}, ratio" for number in range(1, len(rows[0]) - 2)]
        lines += ["", table(["one operation alone", "objects", "ours, ms", *others], rows)]
    if not is_short:
        lines += ["", *(f"- {said}" for said in result["conditions"])]
    return "\n".join(lines) + "\n"


def _side_times(side: Mapping[str, Any], stage: str) -> str:
    summary = side["frame"] if stage == "frame" else side["stages"].get(stage)
    return "" if summary is None else milliseconds(summary["median_ms"])


def _ratio_cell(ratios: Mapping[str, Any], stage: str) -> str:
    found = ratios["frame"] if stage == "frame" else ratios["stages"].get(stage)
    return "" if found is None else _ratio(found)


def _ratio(found: Mapping[str, float]) -> str:
    """A stage that one side does not really have gives a ratio that means nothing."""
    if found["of_medians"] >= _MEANINGLESS_RATIO:
        return f"over {_MEANINGLESS_RATIO}"
    return f"{found['of_medians']:.2f} ({found['of_minima']:.2f})"
