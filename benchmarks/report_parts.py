"""Results of single parts as Markdown: exports, scoring, and finding what had vanished.

Each function takes a result and whether it is for README, which has the main table only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from report_text import Result, milliseconds, share_of_limit, table, where


def export_table(result: Result, is_short: bool) -> str:
    """Nodes, size, precision and parity of each export."""
    lines = [
        "Exports of the paper-size networks (random weights), each graph compared with its PyTorch "
        f"module in float32. {where(result)} (`benchmarks/export_table.py`).",
        "",
    ]
    rows = []
    for row in result["results"]:
        measures = [m for case in row["parity"]["cases"] for m in case["measures"]]
        worst = max(measures, key=lambda m: share_of_limit(m["measure"], m["value"], m["limit"]))
        shown = [worst] if is_short else measures
        differences = ", ".join(
            f"{m['measure']} {m['value']:.2g} (limit {m['limit']:g})" for m in shown
        )
        rows.append(
            [
                row["variant"],
                row["precision"],
                row["nodes"],
                f"{row['size_bytes'] / 2**20:.0f}",
                f"{row['half_weights']}/{row['total_weights']}",
                f"{row['export_s']:.0f} s",
                differences,
            ]
        )
    difference = "largest difference" if is_short else "differences"
    lines.append(
        table(["network", "precision", "nodes", "MiB", "half weights", "export", difference], rows)
    )
    return "\n".join(lines) + "\n"


def evaluation_speed_table(result: Result, is_short: bool) -> str:
    """Our J and F beside the plain ones."""
    lines = [
        "Scoring one frame, ours against a plain transcription of what davis2017-evaluation "
        "computes, taking turns, CPU time of one thread; same values to the last bit. *J of masks*:"
        " from two whole bool masks that come from memory; *J of a sequence*: (T, H, W) masks at "
        "once, as the official tool calls it; *J beside F*: on the crop that F needs anyway, as "
        f"`mpn eval` pays for it; *whole sequence*: label maps in, all values out. {where(result)} "
        "(`benchmarks/evaluation_speed.py`).",
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
    headings = ["what", "objects", "ours, ms", "plain, ms", "ratio"]
    lines.append(table(headings, rows))
    lines.append("\nMedians, and minima in brackets.")
    return "\n".join(lines) + "\n"


def vanish_return_table(result: Result, is_short: bool) -> str:
    """How soon each object is found again."""
    clips, in_time = result["clips"], result["in_time"]
    within = result["in_time_means_frames"]
    lines = [
        f"An object that vanishes and returns elsewhere is found within {within} frames in "
        f"{in_time['with_osvos']} of {len(clips)} clips with OSVOS, in {in_time['without_osvos']} "
        f"without. {where(result)} (`benchmarks/vanish_return.py`).",
    ]
    if not is_short:
        rows = [
            [name, *(_found(run[side]) for side in ("with_osvos", "without_osvos"))]
            for name, run in clips.items()
        ]
        lines += ["", table(["clip", "with OSVOS", "without OSVOS"], rows)]
    return "\n".join(lines) + "\n"


def precision_table(result: Result, is_short: bool) -> str:
    """J and F of two engine directories, and how far their masks agree."""
    how = "fine-tuned each on its own" if result["is_fine_tuned"] else "not fine-tuned"
    lines = [
        "The same networks with weights of other precision over the set "
        f"`{result['data']['set']}`, {how}: the IoU of their masks is "
        f"{result['mask_iou']['mean']:.4f} on average. "
        f"{where(result)} (`benchmarks/precision.py`).",
        "",
    ]
    rows = [
        [
            name,
            *(f"{side[key]:.4f}" for key in ("J-Mean", "F-Mean", "J&F-Mean")),
            f"{side['size_bytes'] / 1e6:.1f} MB",
        ]
        for name, side in result["sides"].items()
    ]
    lines.append(table(["engines", "J", "F", "J&F", "size"], rows))
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
        headings = ["object", *(f"J, {name}" for name in result["sides"]), "IoU", "least IoU"]
        lines += ["", table(headings, rows)]
    return "\n".join(lines) + "\n"


def flow_accuracy_table(result: Result, is_short: bool) -> str:
    """Endpoint error of each flow source."""
    lines = [
        "Mean endpoint error on pairs with true flow, pixels, and the time of a pair. "
        f"{where(result)} (`benchmarks/flow_accuracy.py`).",
        "",
    ]
    rows = [
        [name, f"{found['epe_px']:.2f}", milliseconds(found["times"]["median_ms"])]
        for name, found in result["sources"].items()
    ]
    lines.append(table(["flow", "EPE, px", "ms"], rows))
    return "\n".join(lines) + "\n"


def _found(side: Mapping[str, Any]) -> str:
    until = side["frames_until_found"]
    return "not found" if until is None else f"in frame {until}"
