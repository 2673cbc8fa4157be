"""Where the time of a frame goes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter

STAGES: tuple[str, ...] = (
    "input",
    "adapt",
    "flow",
    "warp",
    "osvos",
    "crop",
    "propagation",
    "paste",
    "merge",
    "crf",
    "output",
    "until propagation",
    "from merge on",
)
"""Stages of a frame in their order; a frame reports those that it went through.

The last two are those of a device whose stages are one CUDA graph: warp, crop and propagation, and
all stages behind them.
"""


class StageTimer:
    """Wall-clock seconds by stage, of the current frame and of all frames together.

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
        """Time what happens inside; a stage entered twice in a frame adds up.

        Args:
            name: One of :data:`STAGES`.
        """
        start = perf_counter()
        try:
            yield
        finally:
            self._frame_s[name] = self._frame_s.get(name, 0.0) + perf_counter() - start

    def add(self, name: str, seconds: float) -> None:
        """Add seconds that something else has measured."""
        self._frame_s[name] = self._frame_s.get(name, 0.0) + seconds

    def finish_frame(self) -> dict[str, float]:
        """End the frame: its seconds by stage, which also go into the totals."""
        frame_s, self._frame_s = self._frame_s, {}
        for name, seconds in frame_s.items():
            self._total_s[name] = self._total_s.get(name, 0.0) + seconds
        return frame_s

    def drop_frame(self) -> None:
        """Forget the current frame, which failed."""
        self._frame_s = {}
