"""Segment made clips with and without the model of the first mask.

That model is the target model if ``mpn run`` uses it with the engines, otherwise OSVOS. Both sides
are fine-tuned if ``mpn run`` fine-tunes these engines, or with ``--finetune``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from benchmarks.accuracy.ablations import is_target_used, option_from_text
from benchmarks.accuracy.pasting import write_clip
from benchmarks.report.schema import cpu_backend, result_header
from mpn import Pipeline, PipelineOptions
from mpn.engines.directory.manifest import load_manifest
from mpn.engines.open import default_engine_dir
from mpn.runtime.bench.result import engine_facts, load_average
from mpn.runtime.finetune.plan import FinetuneOptions, plan_finetuning
from mpn.types import UInt8Array

_OFF: dict[str, dict[str, Any]] = {
    "target": {"one_shot": "off"},
    "osvos": {"osvos.mode": "off"},
}
"""Options that disable each model."""


class Clip(Protocol):
    """A clip with true masks."""

    @property
    def name(self) -> str:
        """Name for files and tables."""

    @property
    def resolution(self) -> str:
        """Folder of the data set."""

    def pictures(self) -> Iterator[tuple[UInt8Array, UInt8Array]]:
        """Yield (H, W, 3) uint8 RGB and (H, W) uint8 labels."""


ClipT = TypeVar("ClipT", bound=Clip)


def add_clip_arguments(parser: argparse.ArgumentParser, *, pairs: str, out: str) -> None:
    """Add the arguments of :func:`run_clips`."""
    parser.add_argument("--davis-root", type=Path, required=True)
    parser.add_argument("--engine-dir", type=Path, help="engine directory [the shipped one]")
    parser.add_argument("--pairs", default=pairs, help="SUBJECT:SCENE pairs separated by commas")
    parser.add_argument(
        "--option", action="append", type=option_from_text, default=[], help="NAME=VALUE"
    )
    parser.add_argument(
        "--finetune",
        action=argparse.BooleanOptionalAction,
        help="fine-tune the networks [as mpn run]",
    )
    parser.add_argument("--finetune-steps", type=int, help="steps [the recipe of each network]")
    parser.add_argument("--finetune-cache", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", type=Path, help="folder to write the clips to in DAVIS layout")
    parser.add_argument("-o", "--out", type=Path, default=Path(out))


def pairs_of(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    """Return (subject, scene) of ``--pairs``."""
    pairs = (pair.partition(":") for pair in arguments.pairs.split(","))
    return [(subject, scene) for subject, _, scene in pairs]


def run_clips(
    arguments: argparse.Namespace,
    clips: Sequence[ClipT],
    measure: Callable[[ClipT, Pipeline], dict[str, Any]],
    summary: Callable[[dict[str, Any]], str],
    *,
    objects: int,
) -> dict[str, Any]:
    """Run all clips with and without the model; return the common part of a result.

    Args:
        arguments: See :func:`add_clip_arguments`.
        clips: The clips.
        measure: Segments a clip and returns the figures of one side.
        summary: Returns the figures of a side as one line.
        objects: Objects of each clip.
    """
    load_before = load_average()
    directory = arguments.engine_dir or default_engine_dir()
    sides = _sides(arguments, directory)
    runs: dict[str, Any] = {}
    facts: dict[str, Any] = {}
    for clip in clips:
        if arguments.write is not None:
            write_clip(clip.name, clip.resolution, clip.pictures(), arguments.write)
        runs[clip.name] = {}
        for side, options in sides.items():
            with Pipeline.from_engines(
                directory, backend="cpu", threads=arguments.threads, options=options
            ) as pipeline:
                run = measure(clip, pipeline)
                run["finetune_s"] = round(pipeline.timings.get("finetune", 0.0), 2)
                if side.startswith("with_"):
                    facts["options"] = pipeline.options.as_json()
                    facts["engine"] = engine_facts(pipeline.engines)
            runs[clip.name][side] = run
            print(f"{clip.name:34} {side:14} {summary(run)}", flush=True)
    rgb, _ = next(clips[0].pictures())
    return {
        **result_header(
            backend=cpu_backend(arguments.threads),
            engine=facts["engine"],
            frame_size_hw=rgb.shape[:2],
            objects=[objects],
            frames=None,
            warmup=None,
            load_average_before=load_before,
            not_measured=["speed: the clips are rendered during the run"],
        ),
        "options": facts["options"],
        "clips": runs,
    }


def count_of_sides(runs: dict[str, Any], key: str) -> dict[str, int]:
    """Count the clips in which a figure is true, per side."""
    sides = dict.fromkeys(side for run in runs.values() for side in run)
    return {side: sum(run[side][key] for run in runs.values()) for side in sides}


def _sides(arguments: argparse.Namespace, directory: Path) -> dict[str, PipelineOptions]:
    """Return the options of ``with_<model>`` and ``without_<model>``."""
    manifest = load_manifest(directory)
    model = "target" if is_target_used(manifest) else "osvos"
    values = dict(arguments.option)
    wanted = FinetuneOptions(
        steps=arguments.finetune_steps, seed=arguments.seed, cache_dir=arguments.finetune_cache
    )
    options = PipelineOptions(finetune=wanted).with_values(values)
    must_finetune = bool(arguments.finetune)
    plan = plan_finetuning(manifest, options, must_finetune=must_finetune, is_live=False)
    if arguments.finetune is False or plan.options is None:
        options = replace(options, finetune=None)
    return {f"with_{model}": options, f"without_{model}": options.with_values(_OFF[model])}
