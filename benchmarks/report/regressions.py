"""Compare two results of one benchmark and find regressions.

``python -m benchmarks.report --compare`` calls :func:`print_comparison`. :data:`TOLERANCES` sets
how much worse each kind of figure may be.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report.schema import Result, load_result, share_of_limit

SAME, REGRESSION, NOT_COMPARABLE = 0, 1, 2
"""Exit codes of ``--compare``."""


@dataclass(frozen=True)
class Tolerance:
    """Set how much worse a figure may be.

    Attributes:
        higher_is_better: False if a lower value is better.
        share: Allowed change as a fraction of the old value.
        absolute: Allowed change in the unit of the figure. The larger of both counts.
    """

    higher_is_better: bool
    share: float = 0.0
    absolute: float = 0.0

    def verdict(self, old: float, new: float) -> str:
        """Return ``"worse"``, ``"better"``, or ``""`` within the tolerance."""
        change = new - old if self.higher_is_better else old - new
        allowed = max(self.share * abs(old), self.absolute)
        if abs(change) <= allowed:
            return ""
        return "better" if change > 0 else "worse"


TOLERANCES: Mapping[str, Tolerance] = {
    "time": Tolerance(higher_is_better=False, share=0.15, absolute=0.05),
    "once": Tolerance(higher_is_better=False, share=0.5, absolute=50.0),
    "fps": Tolerance(higher_is_better=True, share=0.2),
    "ratio": Tolerance(higher_is_better=True, share=0.2),
    "memory": Tolerance(higher_is_better=False, share=0.1, absolute=16.0),
    "score": Tolerance(higher_is_better=True, absolute=0.005),
    "agreement": Tolerance(higher_is_better=True, absolute=0.002),
    "size": Tolerance(higher_is_better=False, share=0.02),
    "count": Tolerance(higher_is_better=True),
    "parity": Tolerance(higher_is_better=False, absolute=1.0),
}
"""Tolerance for each kind of figure.

``time`` (ms over many frames) and ``ratio`` are worse only if both minimum and median are worse:
load on the machine raises the median first. ``once`` (ms, measured once) is noisy. Scores, IoU and
counts are exactly reproducible on one machine. ``parity`` is a fraction of the limit."""


@dataclass(frozen=True)
class Figure:
    """Hold one figure of a result.

    Attributes:
        kind: Key of :data:`TOLERANCES`.
        values: Median and minimum of times and ratios, otherwise one value.
    """

    kind: str
    values: tuple[float, ...]

    def verdict(self, new: Figure) -> str:
        """Return the verdict that all values share, or ``""``."""
        tolerance = TOLERANCES[self.kind]
        verdicts = {tolerance.verdict(*pair) for pair in zip(self.values, new.values, strict=True)}
        return verdicts.pop() if len(verdicts) == 1 else ""


def figures_of(result: Result) -> Iterator[tuple[str, Figure]]:
    """Yield each figure of a result with its path.

    A path is the same in every result of a benchmark.
    """
    for key, value in result.items():
        if key not in _NO_FIGURES:
            yield from _walk(value, key, "")


_NO_FIGURES = frozenset(
    ("schema", "benchmark", "machine", "versions", "backend", "engine", "frame_size_hw", "objects",
     "frames", "warmup", "load_average_before", "not_measured", "data", "options", "gemm_gflops",
     "gflop_per_run")
)  # fmt: skip
_NAMES = ("objects", "steps", "variant", "name", "operation", "role", "precision", "case")
"""Keys whose values identify an entry of a list."""
_RATIO_KEYS = frozenset(("ratio_of_medians", "ratio_of_minima"))
_COUNTS = ("half_weights", "with_osvos", "without_osvos", "with_target", "without_target")


def _walk(value: Any, path: str, key: str) -> Iterator[tuple[str, Figure]]:
    """Yield the figures below ``value``; ``key`` is the last part of ``path``."""
    if isinstance(value, list):
        for index, entry in enumerate(value):
            if isinstance(entry, Mapping):
                yield from _walk(entry, f"{path}[{_name(entry, index)}]", "")
    elif isinstance(value, Mapping):
        figure = _figure_of_mapping(value)
        if figure is not None:
            yield path, figure
            return
        if value.keys() >= _RATIO_KEYS:
            yield f"{path}.ratio", Figure("ratio", tuple(value[key] for key in sorted(_RATIO_KEYS)))
        for inside, entry in value.items():
            if inside not in _RATIO_KEYS and inside not in ("options", "n"):
                yield from _walk(entry, f"{path}.{inside}", inside)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        figure = _figure_of_number(key, path, value)
        if figure is not None:
            yield path, figure


def _name(entry: Mapping[str, Any], index: int) -> str:
    named = [str(entry[key]) for key in _NAMES if isinstance(entry.get(key), int | str)]
    return " ".join(named) or str(entry.get("measure", index))


def _figure_of_mapping(value: Mapping[str, Any]) -> Figure | None:
    """Return the figure of a mapping that is one figure as a whole."""
    if "median_ms" in value and "first_ms" not in value:
        return Figure("time", (value["median_ms"], value["min_ms"]))
    if "of_medians" in value:
        return Figure("ratio", (value["of_medians"], value["of_minima"]))
    if "measure" in value and "limit" in value:
        return Figure("parity", (share_of_limit(value["measure"], value["value"], value["limit"]),))
    return None


def _figure_of_number(key: str, path: str, value: float) -> Figure | None:
    if key == "fps" or key.endswith("_fps") or "_fps_" in key:
        return Figure("fps", (value,))
    if key.endswith(("-Mean", "-Recall")) or key.startswith("iou_") or key == "tracked_share":
        return Figure("score", (value,))
    if ".mask_iou." in path:
        return Figure("agreement", (value,))
    if key.endswith("_mib"):
        return Figure("memory", (value,))
    if key in ("nodes", "size_bytes"):
        return Figure("size", (value,))
    if key in _COUNTS:
        return Figure("count", (value,))
    if key.endswith("_ms") or "_ms." in path:
        return Figure("once", (value,))
    if key.endswith("_s") or key.startswith("seconds") or "_s." in path:
        return Figure("once", (value * 1e3,))
    return None


def print_comparison(old_path: Path, new_path: Path, *, force: bool) -> int:
    """Compare two files and print one row per figure.

    Args:
        old_path: Result before a change.
        new_path: Result after it.
        force: Also compare results that were measured under different conditions.

    Returns:
        :data:`SAME`, :data:`REGRESSION` or :data:`NOT_COMPARABLE`.

    Raises:
        ResultError: If a file is not in the common format.
    """
    old, new = load_result(old_path), load_result(new_path)
    difference = different_condition(old, new)
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
    worse = [path for path, verdict in verdicts.items() if verdict == "worse"]
    better = [path for path, verdict in verdicts.items() if verdict == "better"]
    print(f"{len(shared)} figures: {len(worse)} worse, {len(better)} better, others unchanged")
    if worse:
        print(f"regression: {', '.join(worse)}")
    return REGRESSION if worse else SAME


def different_condition(old: Result, new: Result) -> str:
    """Return the first condition that differs between two results, or ``""``."""
    for path in _CONDITIONS:
        before, after = _at(old, path), _at(new, path)
        if before != after:
            values = f"{_shortened(before)} in one and {_shortened(after)} in the other"
            return f"{'.'.join(path)} is {values}"
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


def _shortened(value: Any) -> str:
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
