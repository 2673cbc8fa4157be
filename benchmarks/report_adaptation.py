"""Results of fine-tuning as Markdown: what it brings by its budget, and what a step costs.

Each function takes a result and whether it is for README, which has the main table only.
"""

from __future__ import annotations

from report_text import Result, count, milliseconds, table, where


def adaptation_table(result: Result, is_short: bool) -> str:
    """J and F by the number of steps."""
    data = result["data"]
    lines = [
        f"Fine-tuning {' and '.join(result['roles'])} on the first frame: J and F by the number of "
        f"steps an object, over {count(len(data['sequences']), 'sequence')} of the set "
        f"`{data['set']}` ({', '.join(data['sequences'])}; {frames(result)}), means over "
        f"{count(len(result['seeds']), 'seed')}. {recipes(result)}. {where(result)} "
        "(`benchmarks/adaptation.py`).",
        "",
    ]
    rows = []
    for run in result["runs"]:
        worst, adapt = run["worst"], run["adapt"]
        of_seeds = run["J-Mean_of_seeds"].values()
        rows.append(
            [
                run["steps"],
                *(f"{run[key]:.3f}" for key in ("J-Mean", "F-Mean", "J&F-Mean")),
                f"{min(of_seeds):.3f} to {max(of_seeds):.3f}" if len(of_seeds) > 1 else "",
                "" if adapt is None else f"{adapt['median_ms'] / 1e3:.1f} s",
                "" if worst is None else f"{worst['object']} {worst['J_gain']:+.3f}",
            ]
        )
    headings = ["steps", "J", "F", "J&F", "J by seed", "an object takes", "least gain in J"]
    lines.append(table(headings, rows))
    return "\n".join(lines) + "\n"


def frames(result: Result) -> str:
    """How much of each sequence was looked at."""
    return f"first {result['frames']} frames of each" if result["frames"] else "all frames"


def recipes(result: Result) -> str:
    """What stayed the same from run to run."""
    return "; ".join(
        f"{role}: {recipe['batch']} crops of {recipe['size_px']} px a step, rate "
        f"{recipe['learning_rate']:g}, scope `{recipe['scope']}`"
        for role, recipe in result["recipes"].items()
    )


def adapt_step_table(result: Result, is_short: bool) -> str:
    """One step of the optimiser beside PyTorch's."""
    lines = [
        "One step of fine-tuning (forward, backward, optimiser) as an ONNX graph, beside the same "
        f"step in PyTorch, median ms. {where(result)} (`benchmarks/adapt_step.py`).",
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
    headings = ["network", "optimiser", "crops", *sides, "faster of them by ours"]
    lines.append(table(headings, rows))
    if not is_short:
        agreed = [
            [
                entry["role"],
                optimizer,
                found["steps"],
                f"{found['weight_relative']:.1e}",
                f"{found['prob_abs']:.1e}",
            ]
            for entry in result["results"]
            for optimizer, found in entry["agreement"].items()
        ]
        headings = ["network", "optimiser", "steps", "difference of a weight", "of a probability"]
        lines += [
            "",
            table(headings, agreed),
            "\nDifferences after so many steps, each side on its own way, the weight's relative to "
            "the largest of its tensor. AdamW divides each gradient by its own size, so where one "
            "is near 0 its rounding decides the direction of a whole step, and the sides drift.",
        ]
    return "\n".join(lines) + "\n"
