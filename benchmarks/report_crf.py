"""The speed of the dense CRF as Markdown."""

from __future__ import annotations

from report_text import Result, table, where


def crf_speed_table(result: Result, is_short: bool) -> str:
    """CPU time of one CRF, and pydensecrf's beside it where it was measured."""
    lines = [
        "One dense CRF with 5 iterations, kernels built in it: CPU time on one thread, ms. "
        "*default* are the parameters of `CrfOptions` (docs/crf.md). pydensecrf, where it was "
        f"installed, got the same arrays in turn. {where(result)}, {result['picture']} "
        "(`benchmarks/crf_speed.py`).",
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
                f"{entry['ours']['cpu']['median_ms']:.0f} ({entry['ours']['cpu']['min_ms']:.0f})",
                _times(other),
                f"{entry['ratio_of_medians']:.1f}" if other else "",
                f"{agreement['mean_abs_dq']:.0e}" if agreement else "",
                f"{agreement['argmax_equal']:.2%}" if agreement else "",
            ]
        )
    headings = ["what", "size", "labels", "ours", "pydensecrf", "ratio", "mean dQ", "same label"]
    lines.append(table(headings, rows))
    lines.append("\nMedians, and minima in brackets.")
    return "\n".join(lines) + "\n"


def _times(figures: Result | None) -> str:
    if figures is None:
        return ""
    return f"{figures['cpu']['median_ms']:.0f} ({figures['cpu']['min_ms']:.0f})"
