"""Write the inputs of small batches."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

from mpn.batch.manifest import Unit
from mpn.batch.outcome import Settings, UnitOutcome
from mpn.batch.runner import Feed, OnProgress
from mpn.batch.unit import ReusedEngines, run_unit
from mpn.masks import save_labels
from mpn.runtime.run_options import RunOptions
from tests.builders.engine_dirs import make_engine_dir
from tests.runtime.media.clips import SCENE_HW, scene, scene_labels, write_video

FRAMES = 3
MASKS_ONLY = RunOptions(save="masks", review=False, fast=True)


def write_inputs(folder: Path, *, frames: int = FRAMES) -> Settings:
    """Write clip.mp4, first.png and engines/; return settings with the engines."""
    folder.mkdir(parents=True, exist_ok=True)
    write_video(folder / "clip.mp4", scene(frames))
    save_labels(folder / "first.png", scene_labels(0))
    engines = make_engine_dir(folder / "engines", frame_size_hw=SCENE_HW)
    return Settings(engine_dir=str(engines), backend="cpu", threads=1)


def unit_of(folder: Path, name: str = "a", **fields: object) -> Unit:
    """Return a unit of the clip of :func:`write_inputs`."""
    values: dict[str, object] = {
        "name": name,
        "video": str(folder / "clip.mp4"),
        "masks": {None: str(folder / "first.png")},
        "out": str(folder / "out" / name),
        "options": MASKS_ONLY,
    }
    return Unit(**{**values, **fields})  # type: ignore[arg-type]


class InProcessRunner:
    """Run attempts in this process."""

    workers = 1

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def run(self, feed: Feed, on_progress: OnProgress) -> Generator[UnitOutcome, None, None]:
        """See :meth:`mpn.batch.runner.Runner.run`."""
        with ReusedEngines() as engines:
            while (attempt := feed.take()) is not None:
                yield run_unit(
                    attempt.unit, self._settings, engines, attempt=attempt.number, worker="w"
                )
