"""Format results as Markdown: one table per benchmark, one for the README.

Each ``*_table`` function takes a result and ``is_short``. A short table leaves out the figures per
object, per stage and per shape.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.report.schema import Result, ResultError, flat_options, share_of_limit
from mpn.runtime.bench.profile import by_type
from mpn.runtime.options import ResolvedCrf

STAGE_SETS = {
    "warp": "warp alone",
    "propagation": "+ propagation",
    "finetuned": "+ fine-tuning",
    "osvos": "+ OSVOS",
    "crf": "+ DenseCRF",
}
"""Label of each set of accuracy/ablations.py, for engines without the target model: it adds a stage
to the set before it."""
TARGET_STAGE_SETS = {
    "warp": "warp alone",
    "propagation": "+ propagation",
    "target": "+ target model of the first frame",
    "updates": "+ updates (default)",
    "no-channel": "default, score blended, not a channel",
    "finetuned": "default, + fine-tuning",
    "osvos": "fine-tuned, OSVOS for the target model",
    "crf": "default, + DenseCRF",
}
"""The same for engines with the target model."""
RUN_MODES = {
    "fast": "`--fast`",
    "no-finetuning": "default without fine-tuning",
    "osvos": "default (fine-tuned)",
}
"""Sets of stages that ``mpn run`` has an option for, with their label in the README, for engines
without the target model."""
TARGET_RUN_MODES = {
    "fast": "`--fast`",
    "updates": "default",
    "finetuned": "default, fine-tuned (`--finetune`)",
}
"""The same for engines with the target model."""
PAPER_PREFIX = "paper-"
_RATIO_MAX = 100
_PROFILE_MIN_MS = 0.1
"""Types of operators that take less time are left out of the table of a profile."""
_HEADLINE_SET = "val"


def headline_table(results: Mapping[str, Result]) -> str:
    """Return the table of the README: scores, FPS and first mask per run mode.

    Args:
        results: Headline results by file name; one of them is ``davis`` on the set ``val``, with
            dense truth.

    Raises:
        ResultError: If there is no such result.
    """
    chosen = [
        result
        for result in results.values()
        if result["benchmark"] == "davis"
        and result["data"]["set"] == _HEADLINE_SET
        and not _annotated_frames(result)
    ]
    if not chosen:
        raise ResultError(f"no headline result of benchmark 'davis' on the set '{_HEADLINE_SET}'")
    result = chosen[0]
    rows = []
    for name, label in run_modes(result["ablations"]).items():
        if name not in result["ablations"]:
            continue
        scores = result["ablations"][name]
        first_mask_s = _first_mask_s(result, scores)
        rows.append(
            [
                label,
                *(f"{scores[key]:.3f}" for key in ("J&F-Mean", "J-Mean", "F-Mean")),
                f"{scores['wall_fps']:.1f}",
                "" if first_mask_s is None else f"{first_mask_s:.2f}",
            ]
        )
    headings = ["mode", "J&F", "J", "F", "wall FPS", "first mask, s"]
    has_first_mask = any(row[-1] for row in rows)
    first_mask = (
        "First mask: from the call, engines opened; median of the sequences with one object. "
        if has_first_mask
        else ""
    )
    frames = sum(sequence["frames"] for sequence in result["data"]["sequences"].values())
    source = (
        f"{count(len(result['data']['sequences']), 'sequence')} ({frames} frames) of the DAVIS "
        f"set `{_HEADLINE_SET}`. Wall FPS: decode, segment and save each mask. {first_mask}"
        f"{conditions_text(result)}. All results: [docs/results.md](docs/results.md)."
    )
    return f"{table(headings, rows)}\n\n{source}\n"


def stage_sets(ablations: Mapping[str, Any]) -> Mapping[str, str]:
    """Return the labels of the chain that a result has."""
    return TARGET_STAGE_SETS if _has_target(ablations) else STAGE_SETS


def run_modes(ablations: Mapping[str, Any]) -> Mapping[str, str]:
    """Return the labels of the run modes that a result has."""
    return TARGET_RUN_MODES if _has_target(ablations) else RUN_MODES


def _has_target(ablations: Mapping[str, Any]) -> bool:
    return any("target" in scores["stages"] for scores in ablations.values())


def _first_mask_s(result: Result, scores: Mapping[str, Any]) -> float | None:
    seconds = scores.get("first_mask_s", {})
    single = [
        seconds[name]
        for name, facts in result["data"]["sequences"].items()
        if facts["objects"] == 1 and name in seconds
    ]
    return statistics.median(single) if single else None


def davis_table(result: Result, is_short: bool) -> str:
    """Return J, F and FPS of each set of stages."""
    data, ablations = result["data"], result["ablations"]
    sequences = data["sequences"].values()
    frames = sum(sequence["frames"] for sequence in sequences)
    annotated = _annotated_frames(result)
    frames_text = f"{frames} frames"
    if annotated:
        frames_text = f"{', '.join(data['sequences'])}: {frames_text}, {annotated} annotated"
    lines = [
        f"{scores_text(result)}, and FPS, from one run over {count(len(sequences), 'sequence')} "
        f"({frames_text}) of the set `{data['set']}`. Each row with + first adds a stage to the "
        "row before it. Pipeline FPS: all stages. Wall FPS: decode, segment and save the PNG in "
        f"one thread, without the fine-tuning on the first frame. {conditions_text(result)}.",
        "",
    ]
    rows = []
    for name, scores in ablations.items():
        finetuning, first_mask_s = scores["finetune"], _first_mask_s(result, scores)
        rows.append(
            [
                _set_label(name, ablations),
                *(f"{scores[key]:.3f}" for key in ("J-Mean", "F-Mean", "J&F-Mean")),
                f"{scores['pipeline_fps']:.1f}",
                f"{scores['wall_fps']:.1f}",
                "" if finetuning is None else f"{finetuning['seconds_per_object']:.1f}",
                "" if first_mask_s is None else f"{first_mask_s:.2f}",
            ]
        )
    headings = ["stages", "J", "F", "J&F", "pipeline FPS", "wall FPS"]
    lines.append(table([*headings, "fine-tuning, s per object", "first mask, s"], rows))
    if any(name.startswith(PAPER_PREFIX) for name in ablations):
        lines += [
            "\n*As in the paper*: without the stages that this project adds (flow check, "
            "horizontal flip, colours of the first frame)."
        ]
    if not is_short:
        lines += ["", "J (F) per object:", ""]
        objects = dict.fromkeys(k for scores in ablations.values() for k in scores["objects"])
        rows = [[k, *(_score(s["objects"][k]) for s in ablations.values())] for k in objects]
        lines.append(table(["object", *(f"`{name}`" for name in ablations)], rows))
    return "\n".join(lines) + "\n"


def scores_text(result: Result) -> str:
    """Return how the scores of a result of ``davis`` were computed."""
    if _annotated_frames(result):
        return "J and F of the annotated frames after the first, without void pixels"
    return "J and F as mpn eval computes them"


def _annotated_frames(result: Result) -> int:
    """Return the number of annotated frames if the truth is sparse, otherwise 0."""
    return sum(facts.get("annotated", 0) for facts in result["data"]["sequences"].values())


def _set_label(name: str, ablations: Mapping[str, Any]) -> str:
    stages, labels = ablations[name]["stages"], stage_sets(ablations)
    if name in labels:
        return labels[name]
    if name in run_modes(ablations):
        return run_modes(ablations)[name]
    if name.removeprefix(PAPER_PREFIX) in STAGE_SETS:
        return f"as in the paper: {' '.join(STAGE_SETS[stage] for stage in stages)}"
    base = next(n for n, other in ablations.items() if n in labels and other["stages"] == stages)
    before, after = (flat_options(ablations[n]["options"]) for n in (base, name))
    if not before["crf"]:  # then its fields have their defaults, if they are in the result at all
        before = {f"crf.{key}": value for key, value in asdict(ResolvedCrf()).items()} | before
    changed = (f"{key}={after[key]}" for key in after if after[key] != before.get(key))
    return f"{name}: {labels[base]}, `{', '.join(changed)}`"


def _score(scores: Mapping[str, float]) -> str:
    return f"{scores['J-Mean']:.3f} ({scores['F-Mean']:.3f})"


def fps_table(result: Result, is_short: bool) -> str:
    """Return engine-only, pipeline and wall FPS per variant and number of objects."""
    lines = [
        "Frames per second on the built-in clip. *Engine-only*: the networks. *Pipeline*: all "
        "stages, frames in memory. *Wall*: from decoding an H.264 file to written masks and "
        "overlay. *First mask*: from the call of the first run, with open engines. Variants add "
        "stages to `plain`; OSVOS then runs in every frame. `default` is what `mpn run` does: "
        "fine-tuned networks, and OSVOS as the manifest advises. "
        f"{conditions_text(result)} (`mpn bench`).",
        "",
    ]
    variants = _variants(result)
    rows = []
    for run in sorted(result["runs"], key=lambda run: variants.index(run["variant"])):
        wall, memory = run["wall"], run["wall"]["peak_memory_mib"]
        finetuning_ms = wall.get("finetune_ms")
        rows.append(
            [
                run["variant"],
                run["objects"],
                *(f"{run[f]['fps']:.1f}" for f in ("engine_only", "pipeline", "wall")),
                f"{wall['until_first_mask_ms']:.0f}",
                "" if not finetuning_ms else f"{finetuning_ms:.0f}",
                "?" if memory is None else f"{memory:.0f}",
            ]
        )
    headings = ["variant", "objects", "engine-only FPS", "pipeline FPS", "wall FPS"]
    headings += ["first mask, ms", "of it fine-tuning, ms", "peak memory, MiB"]
    lines.append(table(headings, rows))
    if not is_short:
        lines += [_stage_tables(result)]
    return "\n".join(lines) + "\n"


def _variants(result: Result) -> list[str]:
    return list(dict.fromkeys(run["variant"] for run in result["runs"]))


def _stage_tables(result: Result) -> str:
    lines = []
    for objects in result["objects"]:
        runs = [run for run in result["runs"] if run["objects"] == objects]
        stages = dict.fromkeys(name for run in runs for name in run["pipeline"]["stages"])
        rows = [
            [stage, *(_summary(run["pipeline"]["stages"].get(stage)) for run in runs)]
            for stage in stages
        ]
        rows.append(["**frame**", *(_summary(run["pipeline"]["frame"]) for run in runs)])
        rows.append(["first frame", *(f"{run['pipeline']['start_ms']:.1f}" for run in runs)])
        lines += [
            "",
            f"Stages of the pipeline, {count(objects, 'object')}, ms, median (minimum to 95th "
            "percentile):",
            "",
            table(["stage", *(run["variant"] for run in runs)], rows),
        ]
    return "\n".join(lines)


def _summary(summary: Mapping[str, float] | None) -> str:
    if summary is None:
        return ""
    return f"{summary['median_ms']:.2f} ({summary['min_ms']:.2f} to {summary['p95_ms']:.2f})"


def profile_table(result: Result, is_short: bool) -> str:
    """Return the stages and the types of operators against the roofline."""
    peaks, operators = result["peaks"], result["operators"]
    rows = [[f"**{row['name']}**", *_profile_cells(row)] for row in result["stages"]]
    if not is_short:
        types = by_type(operators)
        shown = [row for row in types if row["median_ms"] >= _PROFILE_MIN_MS]
        rows += [[f"{r['network']}: {r['count']} {r['type']}", *_profile_cells(r)] for r in shown]
    for row in result["other_threads"]:
        cells = _profile_cells({**row, "flop": None, "share": None})
        rows.append([f"{row['name']}, in another thread", *cells])
    headings = ["part", "ms", "minimum, ms", "MFLOP", "MB", "share of the roofline"]
    parts = ", ".join(f"{part:.0%} {reason}" for reason, part in result["summary"].items())
    return (
        "Stages of a frame (bold) and types of operators against the roofline of this machine: "
        f"GEMM {peaks['gemm_flop_s'] / 1e9:.0f} GFLOP/s, int8 {peaks['int8_flop_s'] / 1e9:.0f} "
        f"GFLOP/s, copy {peaks['bandwidth_bytes_s'] / 1e9:.1f} GB/s. Medians. "
        f"{count(result['objects'][0], 'object')}, {conditions_text(result)} "
        "(`mpn bench --profile`).\n\n"
        f"{table(headings, rows)}\n\nTime of the frame: {parts}.\n"
    )


def _profile_cells(row: Mapping[str, Any]) -> list[str]:
    share = "-" if row["share"] is None else f"{row['share']:.0%}"
    return [
        milliseconds(row["median_ms"]),
        milliseconds(row["min_ms"]),
        f"{row['flop'] / 1e6:.1f}" if row["flop"] else "-",
        "-" if row["bytes"] is None else f"{row['bytes'] / 1e6:.1f}",
        "library" if row.get("kind") == "library" else share,
    ]


def compare_torch_table(result: Result, is_short: bool) -> str:
    """Return the times of our pipeline and of eager PyTorch per stage."""
    names = {"paper": "paper-size networks, random weights", "lite": "the shipped engines"}
    lines = [
        f"Our pipeline and the same pipeline in eager PyTorch ({result['versions']['torch']}), "
        f"{names.get(result['networks'], result['networks'])}: median ms per frame. Ratio: time "
        "of eager PyTorch divided by ours, of medians (of minima). "
        f"{conditions_text(result)}.",
        "",
    ]
    others = list(result["runs"][0]["ratios"])
    rows = []
    for run in result["runs"]:
        ours, ratios = run["sides"]["ours"], run["ratios"]
        for stage in (*ours["stages"], "frame"):
            cells = [_side_median(ours, stage)]
            for other in others:
                cells.append(_side_median(run["sides"][other], stage))
                cells.append(_stage_ratio(ratios[other], stage))
            rows.append([run["objects"], "**whole frame**" if stage == "frame" else stage, *cells])
    headings = ["objects", "stage", "ours"]
    for other in others:
        headings += [other.replace("_", " "), "ratio"]
    lines.append(table(headings, rows))
    lines += _other_sides(result)
    for run in result["runs"]:
        agreement = run["agreement"][others[0]]["mask_iou"]
        share = run["sides"]["ours"]["outside_networks_share"]
        lines.append(
            f"\n{count(run['objects'], 'object')}: IoU of the masks of both sides "
            f"{agreement['mean']:.4f} on average, {agreement['min']:.4f} at least; the stages "
            f"outside the networks take {share:.1%} of our frame without CRF."
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
        others = [f"PyTorch {number}, ms, ratio" for number in range(1, len(rows[0]) - 2)]
        lines += ["", table(["single operation", "objects", "ours, ms", *others], rows)]
    if not is_short:
        lines += ["", *(f"- {condition}" for condition in result["conditions"])]
    return "\n".join(lines) + "\n"


def _other_sides(result: Result) -> list[str]:
    """Return the table of our sides on other backends or in int8, if any."""
    rows = []
    for run in result["runs"]:
        for name, compared in run.get("ratios_of_ours", {}).items():
            side = run["sides"][name]
            for other, ratios in compared.items():
                rows.append(
                    [
                        run["objects"],
                        name.replace("_", " "),
                        other.replace("_", " "),
                        _side_median(side, "frame"),
                        _stage_ratio(ratios, "frame"),
                        *(_stage_ratio(ratios, stage) for stage in _NETWORK_STAGES),
                        f"{run['agreement'][name]['mask_iou']['mean']:.4f}",
                    ]
                )
    if not rows:
        return []
    headings = ["objects", "side", "against", "frame, ms", "**whole frame**", *_NETWORK_STAGES]
    return [
        "",
        "Our other sides: ratios as above, and the mean IoU with the masks of our first side.",
        "",
        table([*headings, "mask IoU"], rows),
    ]


_NETWORK_STAGES = ("flow", "osvos", "propagation")


def _side_median(side: Mapping[str, Any], stage: str) -> str:
    summary = side["frame"] if stage == "frame" else side["stages"].get(stage)
    return "" if summary is None else milliseconds(summary["median_ms"])


def _stage_ratio(ratios: Mapping[str, Any], stage: str) -> str:
    ratio = ratios["frame"] if stage == "frame" else ratios["stages"].get(stage)
    return "" if ratio is None else _ratio(ratio)


def _ratio(ratio: Mapping[str, float]) -> str:
    # A larger ratio means that one side does not have the stage, e.g. a copy that PyTorch avoids.
    if ratio["of_medians"] >= _RATIO_MAX:
        return f"over {_RATIO_MAX}"
    return f"{ratio['of_medians']:.2f} ({ratio['of_minima']:.2f})"


def finetuning_table(result: Result, is_short: bool) -> str:
    """Return J and F per number of fine-tuning steps."""
    data = result["data"]
    recipes = "; ".join(
        f"{role}: {recipe['batch']} crops of {recipe['size_px']} px per step, learning rate "
        f"{recipe['learning_rate']:g}, scope `{recipe['scope']}`"
        for role, recipe in result["recipes"].items()
    )
    frames = f"first {result['frames']} frames of each" if result["frames"] else "all frames"
    lines = [
        f"Fine-tuning of {' and '.join(result['roles'])} on the first frame: J and F per number of "
        f"steps per object, over {count(len(data['sequences']), 'sequence')} of the set "
        f"`{data['set']}` ({', '.join(data['sequences'])}; {frames}), mean of "
        f"{count(len(result['seeds']), 'seed')}. {recipes}. {conditions_text(result)}.",
        "",
    ]
    rows = []
    for run in result["runs"]:
        worst, finetuning = run["worst"], run["finetune"]
        of_seeds = run["J-Mean_of_seeds"].values()
        rows.append(
            [
                run["steps"],
                *(f"{run[key]:.3f}" for key in ("J-Mean", "F-Mean", "J&F-Mean")),
                f"{min(of_seeds):.3f} to {max(of_seeds):.3f}" if len(of_seeds) > 1 else "",
                "" if finetuning is None else f"{finetuning['median_ms'] / 1e3:.1f}",
                "" if worst is None else f"{worst['object']} {worst['J_gain']:+.3f}",
            ]
        )
    headings = ["steps", "J", "F", "J&F", "J of the seeds", "s per object", "smallest gain in J"]
    lines.append(table(headings, rows))
    return "\n".join(lines) + "\n"


def finetune_step_table(result: Result, is_short: bool) -> str:
    """Return the time of one optimiser step and that of PyTorch."""
    lines = [
        "One fine-tuning step (forward, backward, optimiser) as an ONNX graph and in PyTorch, "
        "median ms. Ratio: the faster PyTorch side divided by onnxruntime. "
        f"{conditions_text(result)}.",
        "",
    ]
    rows = []
    for entry in result["results"]:
        for optimizer, shapes in entry["times"].items():
            for timed in shapes:
                images, height, width = timed["shape"]
                medians = {s: side["step"]["median_ms"] for s, side in timed["sides"].items()}
                ours, *others = medians.values()
                rows.append(
                    [
                        entry["role"],
                        optimizer,
                        f"{images} x {width}x{height}",
                        *map(milliseconds, medians.values()),
                        f"{min(others) / ours:.2f}",
                    ]
                )
    sides = [name.replace("_", " ") for name in timed["sides"]]
    lines.append(table(["network", "optimiser", "crops", *sides, "ratio"], rows))
    if not is_short:
        rows = [
            [
                entry["role"],
                optimizer,
                difference["steps"],
                f"{difference['weight_relative']:.1e}",
                f"{difference['prob_abs']:.1e}",
            ]
            for entry in result["results"]
            for optimizer, difference in entry["agreement"].items()
        ]
        headings = ["network", "optimiser", "steps", "weight difference", "probability difference"]
        lines += [
            "",
            table(headings, rows),
            "\nDifferences after that many steps on both sides; the weight difference is relative "
            "to the largest weight of its tensor. AdamW divides each gradient by its own magnitude,"
            " so rounding decides the sign of a step if the gradient is near 0, and both sides "
            "drift.",
        ]
    return "\n".join(lines) + "\n"


def reappearance_table(result: Result, is_short: bool) -> str:
    """Return how soon each lost object is re-detected."""
    clips, in_time = result["clips"], result["in_time"]
    with_model, without_model, *_ = in_time
    lines = [
        "An object that disappears and returns elsewhere is re-detected within "
        f"{result['in_time_means_frames']} frames in {in_time[with_model]} of {len(clips)} clips "
        f"{_side_label(with_model)}, and in {in_time[without_model]} without. "
        f"{conditions_text(result)}.",
    ]
    if not is_short:
        rows = [
            [name, *(_redetection(run[side]) for side in in_time)] for name, run in clips.items()
        ]
        lines += ["", table(["clip", *map(_side_label, in_time)], rows)]
    return "\n".join(lines) + "\n"


def _side_label(side: str) -> str:
    """Return ``with OSVOS`` for the side ``with_osvos``."""
    how, _, model = side.partition("_")
    return f"{how} {'OSVOS' if model == 'osvos' else 'the target model'}"


def _redetection(side: Mapping[str, Any]) -> str:
    frames = side["frames_until_found"]
    return "not re-detected" if frames is None else f"in frame {frames}"


def lookalikes_table(result: Result, is_short: bool) -> str:
    """Return in which clips two crossing objects keep their ids."""
    clips, kept = result["clips"], result["kept"]
    with_model, without_model, *_ = kept
    lines = [
        "Two copies of the same animal cross, and one passes in front of the other: both ids are "
        f"kept in {kept[with_model]} of {len(clips)} clips {_side_label(with_model)}, and in "
        f"{kept[without_model]} without. Kept: after the crossing each id overlaps its own object "
        f"more than the other one, with a mean IoU of at least {result['kept_means_iou']:g}. "
        f"{conditions_text(result)}.",
    ]
    if not is_short:
        rows = [[name, *(_kept(run[side]) for side in kept)] for name, run in clips.items()]
        lines += ["", "IoU of both objects after the crossing:", ""]
        lines.append(table(["clip", *map(_side_label, kept)], rows))
    return "\n".join(lines) + "\n"


def _kept(side: Mapping[str, Any]) -> str:
    values = ", ".join(f"{value:.3f}" for value in side["iou_after"])
    return f"{'kept' if side['is_kept'] else 'not kept'} ({values})"


def confidence_table(result: Result, is_short: bool) -> str:
    """Return how well confidence and reliability find wrong masks."""
    lines = [
        f"A mask is wrong if its J is below {result['wrong_below_j']:g}; an empty mask is wrong if "
        "the object is present. AUROC: probability that a wrong mask has a lower figure than a "
        f"right one. Marked: reliability below {result['marked_below']:g}. The masks of `val` were "
        "not used to choose the formula; the networks were trained on `train`. `made`: clips of "
        f"objects that cross, or that disappear and return. {conditions_text(result)}.",
        "",
    ]
    rows = []
    for set_name, found in result["sets"].items():
        rows.append([f"`{set_name}`", *_confidence_cells(found)])
        if not is_short:
            rows += [
                [name, *_confidence_cells(sequence)]
                for name, sequence in found["sequences"].items()
                if sequence["wrong"]
            ]
    headings = ["set or sequence", "N masks", "wrong (empty)", "AUROC, confidence"]
    headings += ["AUROC, reliability", "marked (of these wrong)"]
    lines.append(table(headings, rows))
    return "\n".join(lines) + "\n"


def _confidence_cells(found: Mapping[str, Any]) -> list[str]:
    return [
        str(found["masks"]),
        f"{found['wrong']} ({found['empty_wrong']} of {found['empty']})",
        *("" if value is None else f"{value:.3f}" for value in found["auroc"].values()),
        f"{found['marked']} ({found['marked_wrong']})",
    ]


def corrections_table(result: Result, is_short: bool) -> str:
    """Return J after one correction at the frame of the review and at random frames."""
    data = result["data"]
    not_on = "not " if data["is_held_out"] else ""
    lines = [
        f"J of the worst {count(len(result['sequences']), 'sequence')} of "
        f"{len(data['sequences'])} of the set `{data['set']}` after one more true mask: at the "
        f"frame that the review names first, and at {result['seeds']} random frames (mean, "
        "standard deviation, smallest to largest). Both masks work forward and backward. J is the "
        "mean over the frames without a given mask, so the J before differs by the corrected "
        f"frame. The networks were {not_on}trained on these sequences. {conditions_text(result)}.",
        "",
    ]
    rows = []
    for name, found in result["sequences"].items():
        named, gains = found["named"], [r["j_after"] - r["j_before"] for r in found["random"]]
        rows.append(
            [
                name,
                f"{found['j']:.3f}",
                named["frame"],
                f"{named['j_before']:.3f} to {named['j_after']:.3f}",
                f"{found['named_gain']:+.3f}",
                f"{found['random_gain']:+.3f}",
                f"{statistics.pstdev(gains):.3f}",
                f"{min(gains):+.3f} to {max(gains):+.3f}",
            ]
        )
    headings = ["sequence", "J", "frame named", "J there", "gain there", "gain at random frames"]
    lines.append(table([*headings, "deviation", "range"], rows))
    return "\n".join(lines) + "\n"


def directions_table(result: Result, is_short: bool) -> str:
    """Return J between masks by weight, and of both halves around a mask."""
    means, sequences = result["mean"], result["sequences"]
    anchors, halves = means["anchors"], means["halves"]
    lines = [
        f"J of frames between masks of the user, mean of {count(len(sequences), 'sequence')} of "
        f"the set `{result['data']['set']}`. Two masks: of the first and of the last frame. Three: "
        f"that of the middle too. Scored: one of {result['every']} frames. A run uses "
        f"{result['product']}. {conditions_text(result)}.",
        "",
        table(
            ["weight of a direction", "two masks", "three masks"],
            [
                [name, *(f"{anchors[masks][name]['J-Mean']:.4f}" for masks in ("two", "three"))]
                for name in anchors["two"]
            ],
        ),
        "",
        "One mask, of the first frame or in the middle, which runs both ways: J of each half.",
        "",
        table(
            ["half", "first mask", "mask in the middle"],
            [
                [name, *(f"{half[mask]['J-Mean']:.4f}" for mask in ("first_mask", "middle_mask"))]
                for name, half in halves.items()
            ],
        ),
    ]
    if not is_short:
        rows = [
            [
                name,
                *(
                    f"{run['anchors']['two'][weight]['J-Mean']:.3f}"
                    for weight in ("forward", "backward", "distance", result["product"])
                ),
            ]
            for name, run in sequences.items()
        ]
        lines += ["", "Two masks, by sequence:", ""]
        lines.append(
            table(["sequence", "forward", "backward", "distance", result["product"]], rows)
        )
    return "\n".join(lines) + "\n"


def features_table(result: Result, is_short: bool) -> str:
    """Return J and the times for each setting of the features engine."""
    sequences = result["data"]["sequences"]
    lines = [
        "The features engine of the target model at several sizes, strides of its deepest map and "
        f"intervals, in {result['precision']}, over {', '.join(sequences)} of the set "
        f"`{result['data']['set']}`. Engine: one run, median ms. Frame: all stages, ms, mean and "
        f"median. {conditions_text(result)}.",
        "",
    ]
    rows = []
    for row in result["results"]:
        height, width = row["size_hw"]
        rows.append(
            [
                f"{width}x{height}",
                row["output_stride"],
                row["every"],
                *(f"{row[key]:.3f}" for key in ("J-Mean", "F-Mean", "J&F-Mean")),
                milliseconds(row["features"]["median_ms"]),
                milliseconds(row["frame_mean_ms"]),
                milliseconds(row["frame"]["median_ms"]),
            ]
        )
    headings = ["size", "stride", "every, frames", "J", "F", "J&F", "engine", "frame, mean"]
    lines.append(table([*headings, "frame, median"], rows))
    return "\n".join(lines) + "\n"


def memory_table(result: Result, is_short: bool) -> str:
    """Return the resident memory of a long run, and whether masks are repeated."""
    repeats = result["repeats"]
    threads = ", ".join(str(run["threads"]) for run in repeats["runs"])
    equal = "the same masks" if repeats["are_equal"] else "**different masks**"
    row = [
        *(f"{result['memory'][key]:.0f}" for key in ("rss_at_100_mib", "rss_at_end_mib")),
        f"{result['memory']['rss_slope_per_1000_frames_mib']:+.2f}",
    ]
    heads = ["at frame 100, MiB", f"at frame {result['frames']}, MiB", "slope, MiB per 1000 frames"]
    return (
        f"Resident memory of a run with {count(result['objects'][0], 'object')}, including the "
        f"rendered clip. Runs of {repeats['frames']} frames with {threads} threads give {equal}. "
        f"{conditions_text(result)}.\n\n{table(heads, [row])}\n"
    )


def service_table(result: Result, is_short: bool) -> str:
    """Return latency, memory and errors of many sessions at once."""
    labels = {"frames": "frames one by one", "video": "uploaded video"}
    rows = [
        [
            labels[feed],
            str(result["sessions"].get(feed, 0)),
            *(milliseconds(times[key]) for key in ("median_ms", "p95_ms")),
        ]
        for feed, times in result["latency"].items()
    ]
    heads = ["feed", "sessions", "latency of a frame, median, ms", "p95, ms"]
    memory, stop, more = result["memory"], result["stop"], result["one_more"]
    return (
        f"{count(result['sessions_at_once'], 'session')} at once for {result['minutes']:g} minutes "
        f"with {count(result['objects'][0], 'object')}: {result['fps_of_all']:.1f} FPS of all "
        f"together, {count(len(result['errors']), 'error')}, {result['differing']} masks that "
        f"differ from `mpn run`. {conditions_text(result)}.\n\n{table(heads, rows)}\n\n"
        f"Memory of the server: {memory['rss_settled_mib']:.0f} MiB after a fifth of the time, "
        f"{memory['rss_end_mib']:.0f} MiB at the end, at most {memory['rss_peak_mib']:.0f} MiB; "
        f"slope {memory['rss_slope_per_minute_mib']:+.2f} MiB per minute. One session more gets "
        f"{more['status']} with Retry-After {more['retry_after']}. SIGTERM under load: "
        f"{stop['accepted']} frames accepted, {stop['lost']} lost, end after "
        f"{stop['seconds']:.1f} s.\n"
    )


def releases_table(result: Result, is_short: bool) -> str:
    """Return first mask, wall FPS and peak memory of releases."""
    finetuned = [name for name, facts in result["releases"].items() if facts["is_finetuned"]]
    runs = result["runs"]
    fewest = min(run["first_mask"][name]["n"] for run in runs for name in result["releases"])
    note = ""
    if fewest < result["repeats"]:
        note = f" The first mask of {', '.join(finetuned)}: {count(fewest, 'run')}."
    lines = [
        f"`mpn run` of the sides in turn, interleaved, {count(result['repeats'], 'run')} each: "
        "seconds from open engines to the written first mask without cached weights, and wall FPS "
        "of the whole clip after that. Median (best). Ratio: old divided by the side in time, of "
        "medians (of minima). Peak memory: of the process of the whole clip, median (largest). "
        f"{conditions_text(result)}.{note}",
        "",
    ]
    rows = []
    for run in runs:
        first, wall, memory = run["first_mask"], run["wall"], run.get("memory", {})
        for name, facts in result["releases"].items():
            peak = memory.get(name)
            rows.append(
                [
                    run["objects"],
                    f"{name} ({release_text(facts)})",
                    f"{first[name]['median_ms'] / 1e3:.2f} ({first[name]['min_ms'] / 1e3:.2f})",
                    _ratio(first["ratio"][name]) if name in first["ratio"] else "",
                    f"{1e3 / wall[name]['median_ms']:.1f} ({1e3 / wall[name]['min_ms']:.1f})",
                    _ratio(wall["ratio"][name]) if name in wall["ratio"] else "",
                    f"{peak['median_mib']:.0f} ({peak['max_mib']:.0f})" if peak else "",
                ]
            )
    headings = ["objects", "side", "first mask, s", "ratio", "wall FPS", "ratio"]
    lines.append(table([*headings, "peak memory, MiB"], rows))
    return "\n".join(lines) + "\n"


def release_text(facts: Mapping[str, Any]) -> str:
    """Return version, engines and any other backend than cpu of a side."""
    backend = facts.get("backend", "cpu")
    on = "" if backend == "cpu" else f" on {backend}"
    return f"{facts['version']}, '{facts['engine']['name']}'{on}"


_SWEEPS = {
    "k": ("Number of objects", "K", "object"),
    "size": ("Size", "size", "megapixel"),
    "length": ("Length", "frames", "frame"),
}
"""Heading, name of the column and unit of the fit of each sweep."""
_STAGE_SHOWN_MS = 0.2
"""Stages below this at every point are left out."""


def scaling_table(result: Result, is_short: bool) -> str:
    """Return wall FPS against objects, size and length, with fits."""
    lines = [
        "Default `mpn run`, from an H.264 file to written masks, overlay and review page, each run "
        "in a separate process. Time per frame: 1 / wall FPS. Median (best) of "
        f"{count(result['repeats'], 'run')}, the engines interleaved; lengths were run once. "
        f"{conditions_text(result)}.",
        "",
    ]
    for name, facts in result["engines"].items():
        precisions = ", ".join(sorted({role["precision"] for role in facts["roles"].values()}))
        lines.append(f"- *{name}*: engines '{facts['name']}' ({precisions}) on {facts['backend']}.")
    for sweep, sides in result["sweeps"].items():
        heading, column, unit = _SWEEPS[sweep]
        point = next(iter(sides.values()))["points"][0]
        height, width = point["frame_size_hw"]
        if sweep != "size":
            heading += f", {width}x{height}"
        if sweep != "k":
            heading += f", {count(point['objects'], 'object')}"
        lines += ["", f"{heading}:", "", _scaling_rows(sweep, sides, column), ""]
        lines += [f"- {name}: {_slope_text(sweep, f, unit)}" for name, f in sides.items()]
        if not is_short:
            for name, figures in sides.items():
                lines += [
                    "",
                    f"Stages, *{name}*: median of the fastest run, ms, of frames with it.",
                    "",
                ]
                lines.append(_stage_rows(figures, "" if sweep == "length" else unit))
    return "\n".join(lines) + "\n"


def _scaling_rows(sweep: str, sides: Mapping[str, Any], column: str) -> str:
    rows = []
    for name, figures in sides.items():
        for point in figures["points"]:
            height, width = point["frame_size_hw"]
            place = {"k": point["objects"], "size": f"{width}x{height}"}.get(sweep, point["frames"])
            per_frame, peak = point["per_frame"], point["peak_memory_mib"]
            is_length = sweep == "length"
            rows.append(
                [
                    place,
                    name,
                    f"{1e3 / per_frame['median_ms']:.1f} ({1e3 / per_frame['min_ms']:.1f})",
                    f"{per_frame['median_ms']:.1f} ({per_frame['min_ms']:.1f})",
                    f"{point['whole_run']['median_ms'] / 1e3:.1f}" if is_length else "",
                    f"{point['first_tenth_ms']:.1f}" if is_length else "",
                    f"{point['last_tenth_ms']:.1f}" if is_length else "",
                    f"{point['first_mask']['median_ms'] / 1e3:.2f}",
                    "" if peak is None else f"{peak:.0f}",
                ]
            )
    tenths = ["first tenth, ms", "last tenth, ms"]
    headings = [column, "engines", "wall FPS", "ms per frame", "whole run, s", *tenths]
    return table([*headings, "first mask, s", "peak memory, MiB"], rows)


def _slope_text(sweep: str, figures: Mapping[str, Any], unit: str) -> str:
    """Return the fit of a sweep, and how its memory grows."""
    fit, slope_mib = figures["fit"], figures["memory_slope_mib"]
    if fit is None:
        return "one point, no fit."
    subject = "whole run" if sweep == "length" else "ms per frame"
    text = (
        f"{subject} = {fit['fixed_ms']:.1f} ms + {fit['slope_ms']:.4g} ms per {unit}, residual "
        f"{fit['residual_ms']:.2f} ms (root mean square), {fit['residual_max_ms']:.2f} ms (largest)"
    )
    if slope_mib is None:
        return f"{text}."
    if sweep == "length":
        return f"{text}; memory {slope_mib * 1e3:+.2f} MiB per 1000 frames."
    return f"{text}; memory {slope_mib:+.1f} MiB per {unit}."


def _stage_rows(figures: Mapping[str, Any], unit: str) -> str:
    """Return the stages of each point, with their slopes if there is a unit."""
    points = figures["points"]
    rows = []
    for name, fit in figures["stage_fits"].items():
        found = [point["stages"].get(name) for point in points]
        if all(value is None or value < _STAGE_SHOWN_MS for value in found):
            continue
        cells = ["" if value is None else f"{value:.1f}" for value in found]
        rows.append([name, *cells, f"{fit['slope_ms']:.3f}" if fit and unit else ""])
    headings = [str(point["name"]) for point in points]
    return table(["stage", *headings, f"ms per {unit}"], rows)


def same_masks_table(result: Result, is_short: bool) -> str:
    """Return the masks and the time of two revisions over a set."""
    sequences = result["data"]["sequences"]
    frames = sum(found["frames"] for found in sequences.values())
    differing = sum(found["differing"] for found in sequences.values())
    sides = list(result["releases"])
    versions = " and ".join(result["releases"][name]["version"] for name in sides)
    option = f", options `{result['options']}`" if result["options"] else ""
    option += f", new with `{result['new_options']}`" if result["new_options"] else ""
    text = (
        f"`mpn run` of two revisions ({versions}) over the set `{result['data']['set']}`{option}, "
        f"interleaved, {count(result['repeats'], 'run')} each. Ratio: old divided by new in time. "
        f"{conditions_text(result)}."
    )
    wall = result["wall"]
    row = [
        frames,
        differing,
        *(f"{1e3 * frames / wall[name]['min_ms']:.1f}" for name in sides),
        wall["ratio"]["of_medians"],
        wall["ratio"]["of_minima"],
    ]
    heads = ["masks", "masks that differ", "FPS, old", "FPS, new", "ratio of medians", "of minima"]
    return f"{text}\n\n{table(heads, [row])}\n"


def batch_table(result: Result, is_short: bool) -> str:
    """Return the time of a batch and of a shell loop, and the masks that differ."""
    clips = result["clips"]
    frames = sum(found["frames"] for found in clips.values())
    differing = sum(found["differing"] for found in clips.values())
    option = f", options `{result['options']}`" if result["options"] else ""
    text = (
        f"`mpn batch` with {count(result['workers'], 'worker')} and a shell loop of `mpn run`, one "
        f"process per clip with all cores, over {count(len(clips), 'clip')}{option}, interleaved, "
        f"{count(result['repeats'], 'run')} each. Times are from the start of the first process to "
        f"the end of the last one. Ratio: loop divided by batch. {conditions_text(result)}."
    )
    wall = result["wall"]
    row = [
        frames,
        differing,
        *(f"{wall[side]['min_ms'] / 1e3:.1f}" for side in ("loop", "batch")),
        wall["ratio"]["of_medians"],
        wall["ratio"]["of_minima"],
    ]
    heads = ["masks", "masks that differ", "loop, s", "batch, s", "ratio of medians", "of minima"]
    lines = [text, "", table(heads, [row])]
    if killed := result.get("killed"):
        lines += [
            "",
            f"Another batch: {count(killed['workers_killed'], 'worker')} and then the batch itself "
            f"got SIGKILL, and the same command ran again. {killed['done_before']} clips were done "
            f"before, {killed['completed']} of {len(clips)} after; a clip was completed at most "
            f"{killed['most_completions']} time(s). Masks that differ: {killed['differing']}. "
            f"Unfinished files: {killed['unfinished_files']}.",
        ]
    return "\n".join(lines) + "\n"


def batch_ray_table(result: Result, is_short: bool) -> str:
    """Return the time of a batch on Ray and locally, and with a lost node."""
    clips, loss, wall = result["data"]["clips"], result["loss"], result["wall"]
    option = f", options `{result['options']}`" if result["options"] else ""
    text = (
        "`mpn batch` on a Ray cluster of two nodes on one machine and with two local workers, "
        f"over {count(len(clips), 'clip')}{option}, interleaved, "
        f"{count(result['repeats'], 'run')} each. Ratio: Ray divided by local. In one more "
        f"run on Ray all {loss['killed_processes']} "
        f"processes of a node were killed after {loss['killed_at_s']:.0f} s. "
        f"{conditions_text(result)}."
    )
    row = [
        *(f"{wall[side]['median_ms'] / 1e3:.1f}" for side in ("local", "ray")),
        wall["ratio"]["of_medians"],
        f"{loss['wall_s']:.1f}",
        f"{loss['done']} of {len(clips)}",
        loss["most_often"],
        result["differing"],
    ]
    heads = ["local, s", "Ray, s", "ratio", "with a lost node, s", "done", "most often"]
    return f"{text}\n\n{table([*heads, 'masks that differ'], [row])}\n"


def precision_table(result: Result, is_short: bool) -> str:
    """Return J and F of two engine directories, and the IoU of their masks."""
    how = "each fine-tuned" if result["is_fine_tuned"] else "not fine-tuned"
    lines = [
        "The same networks with weights of another precision over the set "
        f"`{result['data']['set']}`, {how}: the IoU of their masks is "
        f"{result['mask_iou']['mean']:.4f} on average. {conditions_text(result)}.",
        "",
    ]
    rows = [
        [
            name,
            *(f"{side[key]:.4f}" for key in ("J-Mean", "F-Mean", "J&F-Mean")),
            f"{side['size_bytes'] / 1e6:.1f}",
        ]
        for name, side in result["sides"].items()
    ]
    lines.append(table(["engines", "J", "F", "J&F", "size, MB"], rows))
    if not is_short:
        first, second = result["sides"].values()
        rows = [
            [
                name,
                *(f"{side['objects'][name]['J-Mean']:.4f}" for side in (first, second)),
                f"{agreement['mean']:.4f}",
                f"{agreement['min']:.4f}",
            ]
            for name, agreement in result["mask_iou"]["objects"].items()
        ]
        headings = ["object", *(f"J, {name}" for name in result["sides"]), "IoU", "smallest IoU"]
        lines += ["", table(headings, rows)]
    return "\n".join(lines) + "\n"


def flow_accuracy_table(result: Result, is_short: bool) -> str:
    """Return the endpoint error of each flow source."""
    rows = [
        [name, f"{figures['epe_px']:.2f}", milliseconds(figures["times"]["median_ms"])]
        for name, figures in result["sources"].items()
    ]
    return (
        "Mean endpoint error (EPE) on image pairs with ground-truth flow, and the time per pair. "
        f"{conditions_text(result)}.\n\n{table(['flow', 'EPE, px', 'ms'], rows)}\n"
    )


def crf_speed_table(result: Result, is_short: bool) -> str:
    """Return the CPU time of one DenseCRF, with pydensecrf if it was measured."""
    lines = [
        "One DenseCRF with 5 iterations, including its kernels: CPU time of one thread, ms, median "
        "(minimum). *default*: the defaults of `CrfOptions` ([crf.md](crf.md)). pydensecrf gets "
        f"the same arrays, interleaved. {conditions_text(result)}, {result['picture']}.",
        "",
    ]
    rows = []
    for entry in result["results"]:
        if is_short and not entry["name"].endswith("default"):
            continue
        height, width = entry["size_hw"]
        other, agreement = entry.get("pydensecrf"), entry.get("agreement")
        rows.append(
            [
                entry["name"],
                f"{width}x{height}",
                entry["labels"],
                _cpu_time(entry["ours"]),
                _cpu_time(other) if other else "",
                f"{entry['ratio_of_medians']:.1f}" if other else "",
                f"{agreement['mean_abs_dq']:.0e}" if agreement else "",
                f"{agreement['argmax_equal']:.2%}" if agreement else "",
            ]
        )
    headings = ["case", "size", "labels", "ours", "pydensecrf", "ratio"]
    lines.append(table([*headings, "mean difference of Q", "same label"], rows))
    return "\n".join(lines) + "\n"


def _cpu_time(side: Mapping[str, Any]) -> str:
    return f"{side['cpu']['median_ms']:.0f} ({side['cpu']['min_ms']:.0f})"


def evaluation_speed_table(result: Result, is_short: bool) -> str:
    """Return the time of our J and F and of the reference implementation."""
    lines = [
        "Scoring of one frame by this package and by a direct transcription of "
        "davis2017-evaluation, interleaved, CPU time of one thread, median (minimum). Both return "
        "the same values to the last bit. *J of masks*: two bool masks of the whole frame. *J of a "
        "sequence*: (T, H, W) masks in one call. *J beside F*: on the crop that F needs anyway, as "
        "`mpn eval` computes it. *Whole sequence*: from label maps to all values. "
        f"{conditions_text(result)}.",
        "",
    ]
    rows = [
        [
            entry["name"],
            entry["objects"],
            f"{entry['ours']['median_ms']:.3f} ({entry['ours']['min_ms']:.3f})",
            f"{entry['plain']['median_ms']:.3f} ({entry['plain']['min_ms']:.3f})",
            f"{entry['ratio_of_medians']:.1f} ({entry['ratio_of_minima']:.1f})",
        ]
        for entry in result["results"]
        if not is_short or entry["objects"] == 1
    ]
    lines.append(table(["case", "objects", "ours, ms", "reference, ms", "ratio"], rows))
    return "\n".join(lines) + "\n"


def export_table(result: Result, is_short: bool) -> str:
    """Return nodes, size, precision and parity of each export."""
    lines = [
        "Exports of the paper-size networks (random weights). Each graph is compared with its "
        f"PyTorch module in float32. {conditions_text(result)}.",
        "",
    ]
    rows = []
    for row in result["results"]:
        measures = [m for case in row["parity"]["cases"] for m in case["measures"]]
        worst = max(measures, key=lambda m: share_of_limit(m["measure"], m["value"], m["limit"]))
        shown = [worst] if is_short else measures
        rows.append(
            [
                row["variant"],
                row["precision"],
                row["nodes"],
                f"{row['size_bytes'] / 2**20:.0f}",
                f"{row['half_weights']}/{row['total_weights']}",
                f"{row['export_s']:.0f}",
                ", ".join(f"{m['measure']} {m['value']:.2g} (limit {m['limit']:g})" for m in shown),
            ]
        )
    difference = "largest difference" if is_short else "differences"
    headings = ["network", "precision", "nodes", "MiB", "half weights", "export, s", difference]
    lines.append(table(headings, rows))
    return "\n".join(lines) + "\n"


def step_parity_table(result: Result, is_short: bool) -> str:
    """Return the verdicts of the check of the fine-tuning step."""
    right, planted = result["right"], result["planted"]
    lines = [
        f"The exporter's check of the fine-tuning step ({result['optimizer']}, scope "
        f"{result['scope']}) on the DeepLab v3+ with {result['parameters'] / 1e6:.1f} M random "
        f"weights, {result['images']} images. A right graph must pass, a graph with one planted "
        f"error must not. {conditions_text(result)}.",
        "",
    ]
    names = list(right[0]["values"]) if right else []
    rows = []
    if right:
        worst = {name: max(row["values"][name] for row in right) for name in names}
        passed = sum(row["verdict"] == "passed" for row in right)
        rows.append(
            ["none", f"{passed} of {len(right)}", *(f"{worst[name]:.1e}" for name in names)]
        )
    own = [
        row["own_pattern_gradient_relative"]
        for row in right
        if row["own_pattern_gradient_relative"] is not None
    ]
    if own:
        lines += [
            f"Without the common activation pattern, the gradient differs by up to {max(own):.1e}, "
            f"and by more than 1e-3 with {sum(value > 1e-3 for value in own)} of {len(own)} sets "
            "of weights.",
            "",
        ]
    for name in planted[0]["errors"] if planted and not is_short else ():
        found = [row["errors"][name] for row in planted]
        names = names or list(found[0]["values"])
        least = [min(each["values"].get(key, 0.0) for each in found) for key in names]
        passed = sum(each["verdict"] == "passed" for each in found)
        rows.append([name, f"{passed} of {len(found)}", *(f"{value:.1e}" for value in least)])
    headings = ["error", "passed", *(f"`{name}`" for name in names)]
    note = "Largest value of the right graphs, smallest of the wrong ones."
    return "\n".join([*lines, table(headings, rows), "", note]) + "\n"


def networks_table(result: Result, is_short: bool) -> str:
    """Return parameters, multiply-adds and J of each propagation network."""
    height, width = result["frame_size_hw"]
    lines = [
        f"Multiply-adds of convolutions and matrix products for one crop of {width}x{height}, "
        "counted, with the share of the backbone in parentheses. Published widths and heads of "
        "full width at output stride 16, unless a recipe is named. J: DAVIS, warp and propagation "
        "alone, of trained networks.",
        "",
    ]
    rows = []
    for row in result["results"]:
        config, trained = row["config"], row["trained"]
        if is_short and trained is None:
            continue
        rows.append(
            [
                config["backbone"],
                config["head"],
                row["recipe"] and f"`{row['recipe']}`",
                f"{row['parameters'] / 1e6:.2f} ({row['backbone_parameters'] / 1e6:.2f})",
                f"{row['macs'] / 1e6:.0f} ({row['backbone_macs'] / 1e6:.0f})",
                "not trained"
                if trained is None
                else f"{trained['j']:.3f} on `{trained['set']}` ({trained['result']})",
            ]
        )
    headings = ["backbone", "head", "recipe", "parameters, 10^6", "multiply-adds, 10^6", "J"]
    lines.append(table(headings, rows))
    return "\n".join(lines) + "\n"


def not_measured(results: Mapping[str, Result]) -> str:
    """Return the figures that no result has as a list without repetitions."""
    names_of: dict[str, list[str]] = {}
    for name, result in results.items():
        for line in result["not_measured"]:
            names_of.setdefault(line, []).append(name)
    return "\n".join(f"- {line} ({', '.join(names)})" for line, names in names_of.items()) + "\n"


def conditions_text(result: Result) -> str:
    """Return machine, threads, engines, frame size and N of a result in one line."""
    machine, backend = result["machine"], result["backend"]
    height, width = result["frame_size_hw"]
    threads = "all cores" if backend["threads"] is None else count(backend["threads"], "thread")
    parts = [f"{machine['processor']}, {count(machine['cores'], 'core')}", threads]
    engine = result["engine"]
    if engine is not None:
        precisions = sorted({facts["precision"] for facts in engine["roles"].values()})
        parts.append(f"engines '{engine['name']}' ({', '.join(precisions)}) on {backend['used']}")
    parts.append(f"{width}x{height}")
    if result["frames"] is not None:
        warmup = (
            "" if not result["warmup"] else f" after {count(result['warmup'], 'warm-up frame')}"
        )
        parts.append(f"N = {count(result['frames'], 'frame')}{warmup}")
    return ", ".join(parts)


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table without the columns that are empty in every row."""
    cells = [[str(cell) for cell in row] for row in rows]
    kept = [i for i in range(len(headings)) if any(row[i] for row in cells)]
    lines = [[headings[i] for i in kept], ["---"] * len(kept)]
    lines += [[row[i] for i in kept] for row in cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def count(number: int, noun: str) -> str:
    """Return ``1 object`` or ``2 objects``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def milliseconds(value_ms: float) -> str:
    """Return milliseconds with about three digits: 1234, 56.7, 0.123."""
    return f"{value_ms:.0f}" if value_ms >= 100 else f"{value_ms:.{1 if value_ms >= 1 else 3}f}"


TABLES: dict[str, tuple[str, Callable[[Result, bool], str]]] = {
    "davis": ("Accuracy and speed on DAVIS", davis_table),
    "fps": ("Speed", fps_table),
    "profile": ("Roofline of a frame", profile_table),
    "compare_torch": ("Eager PyTorch", compare_torch_table),
    "finetuning": ("Fine-tuning on the first frame", finetuning_table),
    "finetune_step": ("One fine-tuning step", finetune_step_table),
    "reappearance": ("Lost objects", reappearance_table),
    "lookalikes": ("Objects that look alike", lookalikes_table),
    "confidence": ("Wrong masks", confidence_table),
    "corrections": ("Corrections", corrections_table),
    "directions": ("Masks in the middle", directions_table),
    "features": ("Features of the target model", features_table),
    "releases": ("Releases", releases_table),
    "scaling": ("Objects, size and length", scaling_table),
    "same_masks": ("Masks of two revisions", same_masks_table),
    "batch": ("Many videos", batch_table),
    "batch_ray": ("Many videos on Ray", batch_ray_table),
    "service": ("Many sessions of mpn serve", service_table),
    "memory": ("Memory and repeatability", memory_table),
    "precision": ("Precision", precision_table),
    "flow_accuracy": ("Flow", flow_accuracy_table),
    "crf_speed": ("DenseCRF", crf_speed_table),
    "evaluation_speed": ("Scoring", evaluation_speed_table),
    "export_table": ("Exports", export_table),
    "networks": ("Propagation networks", networks_table),
    "step_parity": ("Check of the fine-tuning step", step_parity_table),
}
"""Heading and table of each benchmark, in the order of the report."""
