"""Measure the speed of an engine directory on this machine, for ``mpn bench``.

There are three figures for each number of objects and variant of the pipeline:

* *engine-only*: only the networks, on fixed inputs;
* *pipeline*: all stages, frames in memory;
* *wall*: decoding an H.264 file, segmentation, writing masks and overlay, as in ``mpn-run``.

All three use the same rendered clip. A variant adds stages to the plain pipeline, see
:mod:`mpn.runtime.bench.variants`. The variants run interleaved, frame by frame. First frame,
loading and warm-up are reported separately, and the result lists all that was not measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from mpn._common.concurrency import OpenCvThreads, usable_threads
from mpn._common.cores import limited_cores
from mpn._common.locks import TemporaryFolder
from mpn._common.validation import check_int
from mpn.engines.directory.manifest import load_manifest
from mpn.engines.open import Backend, EngineSet, local_engine_dir, open_engines
from mpn.engines.spec import Role
from mpn.errors import InputError
from mpn.masks import DEFAULT_MAX_OBJECTS, save_labels
from mpn.runtime.bench.figures import NetworkFigure, PipelineFigure, run_wall_apart
from mpn.runtime.bench.result import (
    benchmark_document,
    engine_facts,
    load_average,
    summary_ms,
)
from mpn.runtime.bench.variants import (
    BenchmarkClip,
    Variant,
    check_variant_names,
    labels_of_objects,
    make_clip,
    not_measured,
    variants_of,
)
from mpn.runtime.finetune.plan import finetune_as_json
from mpn.runtime.host.preprocess import working_size_hw
from mpn.runtime.options import FinetuneOptions, PipelineOptions
from mpn.runtime.session.request import RunRequest
from mpn.synthetic.clip import MIN_SIDE_PX
from mpn.types import UInt8Array

_LOADS = 3
"""Number of times that the engines are opened: the first one also loads onnxruntime."""

OnProgress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """Options of a benchmark.

    Attributes:
        objects: Numbers of objects, measured one after another.
        frame_size_hw: (height, width) of the clip, both even because H.264 halves the colours.
        frames: Measured frames per figure.
        warmup: Frames after the first one that are not measured.
        variants: Names, see :mod:`mpn.runtime.bench.variants`; None: all that the engine directory
            can run, without fine-tuning.
        finetune: Options of fine-tuning, for variants with it.
        backend: See :func:`mpn.engines.open.open_engines`.
        threads: See :meth:`mpn.runtime.pipeline.Pipeline.from_engines`.

    Raises:
        InputError: If a value is out of range.
    """

    objects: tuple[int, ...] = (1, 2, 3, 5)
    frame_size_hw: tuple[int, int] = (480, 854)
    frames: int = 50
    warmup: int = 5
    variants: tuple[str, ...] | None = None
    finetune: FinetuneOptions = field(default_factory=FinetuneOptions)
    backend: Backend = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        height, width = self.frame_size_hw
        if min(height, width) < MIN_SIDE_PX or height % 2 or width % 2:
            raise InputError(
                f"the frame size must be at least {MIN_SIDE_PX}x{MIN_SIDE_PX} and even (H.264 "
                f"halves the colours), got {width}x{height}"
            )
        if not self.objects or len(set(self.objects)) < len(self.objects):
            raise InputError(
                f"the numbers of objects must be given, each once, got {list(self.objects)}"
            )
        if not all(1 <= number <= DEFAULT_MAX_OBJECTS for number in self.objects):
            raise InputError(
                f"a number of objects must be 1..{DEFAULT_MAX_OBJECTS}, got {list(self.objects)}"
            )
        for name in ("frames", "warmup"):
            check_int(f"option {name}", getattr(self, name), least=1)
        if self.variants is not None:
            check_variant_names(self.variants)
        object.__setattr__(self, "threads", usable_threads(self.threads))


def run_benchmark(
    engine_dir: str | Path | None = None,
    options: BenchmarkOptions | None = None,
    *,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Measure an engine directory.

    Takes minutes at full size and writes to a temporary folder. The machine should be idle.

    Args:
        engine_dir: See :func:`mpn.engines.directory.locate.local_engine_dir`.
        options: Options of the benchmark.
        on_progress: Called with a short text at the start of each step.

    Returns:
        The result in the format of :mod:`mpn.runtime.bench.result`. ``runs`` has an entry for each
        number of objects and variant, with ``engine_only``, ``pipeline`` and ``wall``.

    Raises:
        EngineError: If the engines cannot be opened or fail.
        InputError: If the frames are too small for the number of objects, or a variant needs a
            missing engine.
        OutputError: If the temporary folder cannot be written.
    """
    options = options or BenchmarkOptions()
    directory = local_engine_dir(engine_dir)
    variants = variants_of(load_manifest(directory), options.variants, options.finetune)
    before = load_average()
    opencv_threads = options.threads or limited_cores()
    with (
        TemporaryFolder() as folder,
        nullcontext() if opencv_threads is None else OpenCvThreads(opencv_threads),
    ):
        measurement = _Measurement(
            directory, options, variants, folder.path, on_progress or (lambda _: None)
        )
        body = measurement.run(is_shipped=engine_dir is None)
    return benchmark_document("fps", {**body, "load_average_before": before})


class _Measurement:
    """The state of one call of :func:`run_benchmark`."""

    def __init__(
        self,
        directory: Path,
        options: BenchmarkOptions,
        variants: Sequence[Variant],
        folder: Path,
        on_progress: OnProgress,
    ) -> None:
        self._directory, self._options, self._variants = directory, options, variants
        self._folder, self._on_progress = folder, on_progress

    def run(self, *, is_shipped: bool) -> dict[str, Any]:
        options = self._options
        self._on_progress("opening the engines")
        engines, load_s = self._opened()
        with engines:
            self._on_progress("rendering the clip")
            clip = make_clip(
                self._folder,
                frames=1 + options.warmup + options.frames,
                size_hw=options.frame_size_hw,
            )
            runs = [run for number in options.objects for run in self._runs(engines, clip, number)]
            pipeline_options = PipelineOptions().with_defaults(engines.manifest.runtime_defaults)
        return {
            "engine": {**engine_facts(engines), "is_shipped": is_shipped},
            "backend": {
                "asked": options.backend,
                "used": engines.backend,
                "note": engines.backend_note,
                "threads": options.threads,
            },
            "options": pipeline_options.as_json(),
            "frame_size_hw": list(options.frame_size_hw),
            "working_size_hw": list(working_size_hw(options.frame_size_hw, pipeline_options.size)),
            "objects": list(options.objects),
            "frames": options.frames,
            "warmup": options.warmup,
            "load": {"first_ms": round(load_s[0] * 1e3, 3), **summary_ms(load_s)},
            "runs": runs,
            "not_measured": not_measured(engines, self._variants),
        }

    def _opened(self) -> tuple[EngineSet, list[float]]:
        """Open the engines several times; return the last ones and all seconds."""
        load_s: list[float] = []
        while True:
            begun = perf_counter()
            engines = open_engines(
                self._directory, backend=self._options.backend, threads=self._options.threads
            )
            load_s.append(perf_counter() - begun)
            if len(load_s) == _LOADS:
                return engines, load_s
            engines.close()

    def _runs(self, engines: EngineSet, clip: BenchmarkClip, objects: int) -> list[dict[str, Any]]:
        """Measure all figures for one number of objects; return one entry per variant."""
        labels = labels_of_objects(clip.labels, objects)
        mask = self._folder / f"first-{objects}.png"
        save_labels(mask, labels)
        self._on_progress(f"K = {objects}: the networks alone, and the pipeline")
        in_memory = self._in_memory(engines, clip, labels)
        runs = []
        for variant in self._variants:
            self._on_progress(f"K = {objects}, {variant.name}: from file to files")
            wall = self._wall(clip, mask, variant, f"out-{objects}-{variant.name}")
            runs.append(
                {
                    "objects": objects,
                    "variant": variant.name,
                    "osvos": variant.options.osvos.mode,
                    "crf": variant.options.crf is not None,
                    "finetune": variant.finetune and finetune_as_json(variant.finetune),
                    **in_memory[variant.name],
                    "wall": wall,
                }
            )
        return runs

    def _in_memory(
        self, engines: EngineSet, clip: BenchmarkClip, labels: UInt8Array
    ) -> dict[str, dict[str, Any]]:
        """Measure networks and pipelines interleaved, in rotating order."""
        warmup, threads = self._options.warmup, self._options.threads
        networks = {
            roles: NetworkFigure(
                engines, self._variants[0].options, clip.frames, labels, one_by_one=roles
            )
            for roles in dict.fromkeys(_finetuned_roles(v) for v in self._variants)
        }
        with ExitStack() as stack:
            pipelines: dict[str, PipelineFigure] = {}
            for variant in self._variants:
                pipeline = variant.open_pipeline(self._directory, engines, threads)
                pipelines[variant.name] = PipelineFigure(stack.enter_context(pipeline))
                pipelines[variant.name].start(clip.frames[0], labels)
            sides: list[Callable[[UInt8Array], None]] = [n.step for n in networks.values()]
            sides += [figure.step for figure in pipelines.values()]
            for rgb in clip.frames[1:]:
                for step in sides:
                    step(rgb)
                sides.append(sides.pop(0))
        return {
            variant.name: {
                "engine_only": networks[_finetuned_roles(variant)].as_json(
                    warmup=warmup,
                    every_frame=pipelines[variant.name].roles_of_every_frame(warmup=warmup),
                ),
                "pipeline": pipelines[variant.name].as_json(warmup=warmup),
            }
            for variant in self._variants
        }

    def _wall(self, clip: BenchmarkClip, mask: Path, variant: Variant, out: str) -> dict[str, Any]:
        run = run_wall_apart(
            RunRequest(
                video=str(clip.video),
                masks={None: mask},
                out=self._folder / out,
                engine_dir=self._directory,
                backend=self._options.backend,
                threads=self._options.threads,
                options=replace(variant.options, finetune=variant.finetune),
                must_finetune=variant.finetune is not None,
            )
        )
        return run.as_json(warmup=self._options.warmup)


def _finetuned_roles(variant: Variant) -> tuple[Role, ...]:
    return () if variant.finetune is None else variant.finetune.roles
