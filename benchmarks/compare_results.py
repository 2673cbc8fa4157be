"""Two results of one benchmark, figure by figure: what became better, what is a regression.

``report.py --compare`` calls this; the tolerances are those of result_figures.py.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from report_text import Result
from result_figures import Figure, figures_of
from result_format import load_result

SAME, REGRESSION, NOT_COMPARABLE = 0, 1, 2
"""Exit codes."""


def print_comparison(old_path: Path, new_path: Path, *, force: bool) -> int:
    """Compare two files and print a row a figure.

    Args:
        old_path: The result to hold the other against.
        new_path: The other.
        force: Compare what was measured under different conditions, too.

    Returns:
        :data:`SAME`, :data:`REGRESSION` or :data:`NOT_COMPARABLE`.

    Raises:
        ResultError: If a file is not in the format.
    """
    old, new = load_result(old_path), load_result(new_path)
    difference = why_not_comparable(old, new)
    if difference and not (force and old["benchmark"] == new["benchmark"]):
        way_out = "" if old["benchmark"] != new["benchmark"] else "; --force compares them anyway"
        print(f"error: the results cannot be compared: {difference}{way_out}", file=sys.stderr)
        return NOT_COMPARABLE
    if difference:
        print(f"note: compared although {difference}", file=sys.stderr)
    before, after = dict(figures_of(old)), dict(figures_of(new))
    shared = [path for path in before if path in after]
    if not shared:
        print("error: the results cannot be compared: no figure is in both", file=sys.stderr)
        return NOT_COMPARABLE
    verdicts = {path: before[path].verdict(after[path]) for path in shared}
    print(_table([_row(p, before[p], after[p], verdicts[p]) for p in shared]))
    for these, others, path in ((before, after, old_path), (after, before, new_path)):
        if alone := sorted(these.keys() - others.keys()):
            print(f"only in {path}: {', '.join(alone)}")
    worse = [path for path, said in verdicts.items() if said == "worse"]
    better = [path for path, said in verdicts.items() if said == "better"]
    print(f"{len(shared)} figures: {len(worse)} worse, {len(better)} better, the others alike")
    if worse:
        print(f"regression: {', '.join(worse)}")
    return REGRESSION if worse else SAME


def why_not_comparable(old: Result, new: Result) -> str:
    """The first condition in which two results differ, as a clause; empty if they do not."""
    for path in _CONDITIONS:
        before, after = _at(old, path), _at(new, path)
        if before != after:
            return f"{'.'.join(path)} is {_told(before)} in one and {_told(after)} in the other"
    return ""


_CONDITIONS: tuple[tuple[str, ...], ...] = (
    ("benchmark",),
    ("machine", "processor"),
    ("machine", "cores"),
    ("backend", "used"),
    ("backend", "threads"),
    ("engine", "digests"),
    ("frame_size_hw",),
    ("objects",),
    ("data",),
    ("networks",),
)


def _at(result: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        result = result.get(key) if isinstance(result, Mapping) else None
    return result


def _told(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _row(path: str, old: Figure, new: Figure, verdict: str) -> tuple[str, ...]:
    before, after = old.values[0], new.values[0]
    ratio = f"{after / before:.3f}" if before else ""
    return path, _number(before), _number(after), ratio, verdict


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"


def _table(rows: list[tuple[str, ...]]) -> str:
    rows = [("figure", "old", "new", "new/old", ""), *rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in (0, 4) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
