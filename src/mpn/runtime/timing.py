"""Measure the time of each stage of a frame."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter

STAGES: tuple[str, ...] = (
    "input",
    "finetune",
    "flow",
    "warp",
    "features",
    "target",
    "osvos",
    "crop",
    "propagation",
    "paste",
    "merge",
    "crf",
    "output",
    "graph_front",
    "graph_back",
)
"""Stages of a frame in their order; a frame reports those that ran.

The last two are CUDA graphs: warp, crop and propagation, and all stages after them.
"""


class StageTimer:
    """Wall-clock seconds by stage, of the current frame and summed over all frames.

    Not for use from two threads at once.
    """

    def __init__(self) -> None:
        self._frame_s: dict[str, float] = {}
        self._total_s: dict[str, float] = {}

    @property
    def total_s(self) -> Mapping[str, float]:
        """Seconds by stage over all finished frames."""
        return dict(self._total_s)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the body; a stage entered twice in a frame adds up.

        Args:
            name: One of :data:`STAGES`.
        """
        start = perf_counter()
        try:
            yield
        finally:
            self._frame_s[name] = self._frame_s.get(name, 0.0) + perf_counter() - start

    def add(self, name: str, seconds: float) -> None:
        """Add seconds that were measured elsewhere."""
        self._frame_s[name] = self._frame_s.get(name, 0.0) + seconds

    def finish_frame(self) -> dict[str, float]:
        """Return the seconds of the frame by stage, and add them to the totals."""
        frame_s, self._frame_s = self._frame_s, {}
        for name, seconds in frame_s.items():
            self._total_s[name] = self._total_s.get(name, 0.0) + seconds
        return frame_s

    def drop_frame(self) -> None:
        """Drop the seconds of the current frame, which failed."""
        self._frame_s = {}

    def reset(self) -> None:
        """Drop all seconds."""
        self._frame_s, self._total_s = {}, {}
