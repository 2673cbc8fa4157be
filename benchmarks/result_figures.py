"""The figures in a benchmark result, and how much worse each kind of figure may be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from report_text import Result, share_of_limit


@dataclass(frozen=True)
class Tolerance:
    """How much worse a figure may be.

    Attributes:
        higher_is_better: Else lower is.
        share: Of the old value.
        absolute: In the figure's unit; a change below it is never a regression.
    """

    higher_is_better: bool
    share: float = 0.0
    absolute: float = 0.0

    def verdict(self, old: float, new: float) -> str:
        """``"worse"``, ``"better"`` or, within the tolerance, nothing."""
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
"""By kind of figure. ``time`` (ms over many frames) and ``ratio`` are worse only if the minimum
(the least disturbed) *and* the median are. ``once`` (ms, measured a single time) is noisy. Scores,
IoU and counts repeat exactly on one machine. ``parity`` is in parts of its own limit."""


@dataclass(frozen=True)
class Figure:
    """One figure of a result.

    Attributes:
        kind: Of :data:`TOLERANCES`.
        values: The median and the minimum of times and ratios, else one value.
    """

    kind: str
    values: tuple[float, ...]

    def verdict(self, new: Figure) -> str:
        """See :meth:`Tolerance.verdict`; several values have to agree."""
        tolerance = TOLERANCES[self.kind]
        said = {tolerance.verdict(*pair) for pair in zip(self.values, new.values, strict=True)}
        return said.pop() if len(said) == 1 else ""


def figures_of(result: Result) -> Iterator[tuple[str, Figure]]:
    """The figures of a result, each by a path that names it in every result of the benchmark."""
    for key, value in result.items():
        if key not in _NO_FIGURES:
            yield from _walk(value, key, "")


_NO_FIGURES = frozenset(
    ("schema", "benchmark", "machine", "versions", "backend", "engine", "frame_size_hw", "objects",
     "frames", "warmup", "load_average_before", "not_measured", "data", "options", "gemm_gflops",
     "gflop_per_run")
)  # fmt: skip
_NAMES = ("objects", "steps", "variant", "name", "operation", "role", "precision", "case")
"""Keys whose values name an entry of a list."""
_RATIO_KEYS = frozenset(("ratio_of_medians", "ratio_of_minima"))
_COUNTS = ("half_weights", "with_osvos", "without_osvos")


def _walk(value: Any, path: str, key: str) -> Iterator[tuple[str, Figure]]:
    """``key`` is the last part of ``path`` within its mapping."""
    if isinstance(value, list):
        for index, entry in enumerate(value):
            if isinstance(entry, Mapping):
                yield from _walk(entry, f"{path}[{_name(entry, index)}]", "")
    elif isinstance(value, Mapping):
        whole = _whole(value)
        if whole is not None:
            yield path, whole
            return
        if value.keys() >= _RATIO_KEYS:
            yield f"{path}.ratio", Figure("ratio", tuple(value[key] for key in sorted(_RATIO_KEYS)))
        for inside, entry in value.items():
            if inside not in _RATIO_KEYS and inside not in ("options", "n"):
                yield from _walk(entry, f"{path}.{inside}", inside)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        figure = _single(key, path, value)
        if figure is not None:
            yield path, figure


def _name(entry: Mapping[str, Any], index: int) -> str:
    named = [str(entry[key]) for key in _NAMES if isinstance(entry.get(key), int | str)]
    return " ".join(named) or str(entry.get("measure", index))


def _whole(value: Mapping[str, Any]) -> Figure | None:
    """A mapping that is one figure."""
    if "median_ms" in value and "first_ms" not in value:
        return Figure("time", (value["median_ms"], value["min_ms"]))
    if "of_medians" in value:
        return Figure("ratio", (value["of_medians"], value["of_minima"]))
    if "measure" in value and "limit" in value:
        return Figure("parity", (share_of_limit(value["measure"], value["value"], value["limit"]),))
    return None


def _single(key: str, path: str, value: float) -> Figure | None:
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
