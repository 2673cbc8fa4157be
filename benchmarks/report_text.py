"""What every table of the report is made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Result = Mapping[str, Any]


def where(result: Result) -> str:
    """What a figure was measured on: machine, threads, backend, engines, precision, frame size."""
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
        after = "" if result["warmup"] is None else f" after {result['warmup']} of warm-up"
        parts.append(f"N = {count(result['frames'], 'frame')}{after}")
    return ", ".join(parts)


def not_measured(results: Mapping[str, Result]) -> str:
    """What none of the results has measured, each said once.

    Args:
        results: By the name of the file.
    """
    said: dict[str, list[str]] = {}
    for name, result in results.items():
        for line in result["not_measured"]:
            said.setdefault(line, []).append(name)
    return "\n".join(f"- {line} ({', '.join(names)})" for line, names in said.items()) + "\n"


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; columns that are empty in every row are left out."""
    told = [[str(cell) for cell in row] for row in rows]
    kept = [i for i in range(len(headings)) if any(row[i] for row in told)]
    lines = [[headings[i] for i in kept], ["---"] * len(kept)]
    lines += [[row[i] for i in kept] for row in told]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def count(number: int, thing: str) -> str:
    """``1 object``, ``2 objects``."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def milliseconds(value_ms: float) -> str:
    """As many digits as a reader needs: 1234, 56.7, 0.123."""
    return f"{value_ms:.0f}" if value_ms >= 100 else f"{value_ms:.{1 if value_ms >= 1 else 3}f}"


def share_of_limit(measure: str, value: float, limit: float) -> float:
    """How much of what is allowed a difference takes up: 1 is the limit."""
    if measure == "mask_iou":  # a floor, not a ceiling
        return (1 - value) / (1 - limit)
    return value / limit
