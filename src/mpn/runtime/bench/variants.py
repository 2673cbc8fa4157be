"""Select the variants of a pipeline that a benchmark compares, and its clip.

The name of a variant is ``plain`` (flow, warp, propagation, merge) or the added stages, joined by
``+``:

* ``osvos``: OSVOS in each frame, as in the paper. The manifest's advice is not used, because OSVOS
  only for lost objects is free until an object is lost.
* ``crf``: DenseCRF.
* ``finetune``: fine-tune the networks on the first frame if possible, which takes minutes.

``default`` is the pipeline of ``mpn-run`` with these engines, with fine-tuning if that does it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mpn.engines.directory.manifest import ENGINE_SOURCE, Manifest
from mpn.engines.open import EngineSet
from mpn.errors import InputError
from mpn.masks import load_labels
from mpn.runtime.finetune.finetuner import ObjectFinetuner
from mpn.runtime.finetune.plan import (
    finetunable_roles,
    options_affecting_weights,
    options_for,
    plan_finetuning,
    why_not_finetuned,
)
from mpn.runtime.media.video import open_video
from mpn.runtime.options import (
    CrfOptions,
    FinetuneOptions,
    OsvosOptions,
    PipelineOptions,
    ResolvedOptions,
)
from mpn.runtime.pipeline import Pipeline
from mpn.runtime.state import object_ids_from_labels
from mpn.synthetic import write_clip
from mpn.types import UInt8Array

PLAIN = "plain"
DEFAULT = "default"
ADDITIONS = ("osvos", "crf", "finetune")
"""Stages that a variant can add, in the order of its name."""


@dataclass(frozen=True)
class Variant:
    """A variant of the pipeline.

    Attributes:
        name: See the module.
        options: The options of the variant, with the manifest's advice for all others.
        finetune: Options of fine-tuning; None: no fine-tuning.
    """

    name: str
    options: ResolvedOptions
    finetune: FinetuneOptions | None

    def open_pipeline(
        self, engine_dir: Path, engines: EngineSet, threads: int | None = None
    ) -> Pipeline:
        """Open a pipeline on shared engines, which it does not close.

        Args:
            engine_dir: Directory of the engines.
            engines: Open engines. Close them after the pipeline.
            threads: Threads of fine-tuning.
        """
        return pipeline_on_shared_engines(engine_dir, engines, self.options, self.finetune, threads)


def pipeline_on_shared_engines(
    engine_dir: Path,
    engines: EngineSet,
    options: ResolvedOptions,
    finetune: FinetuneOptions | None = None,
    threads: int | None = None,
) -> Pipeline:
    """Open a pipeline that closes only the fine-tuned engines of its objects.

    Args:
        engine_dir: Directory of the engines.
        engines: Open engines. Close them after the pipeline.
        options: Options of the pipeline, with all defaults filled in.
        finetune: Options of fine-tuning; None: no fine-tuning.
        threads: Threads of fine-tuning.
    """
    shared = replace(engines, owned=False)
    finetuner = None
    if finetune is not None:
        affecting = options_affecting_weights(options)
        finetuner = ObjectFinetuner(engine_dir, shared, finetune, affecting, threads=threads)
    return Pipeline(shared, options=options, finetuner=finetuner)


def not_measured(engines: EngineSet, variants: Sequence[Variant]) -> list[str]:
    """List what a result with these variants does not contain, one line each."""
    manifest = engines.manifest
    missing = [
        "GPU (CUDA, TensorRT): the networks ran on the CPU"
        if engines.is_on_host
        else f"backends other than {engines.backend}",
    ]
    if "osvos" not in manifest.roles:
        missing.append("OSVOS: the engine directory has none")
    elif all(variant.options.osvos.mode == "off" for variant in variants):
        missing.append("OSVOS: no variant with it was requested")
    if not any(variant.options.crf for variant in variants):
        missing.append("DenseCRF: no variant with it was requested")
    if not any(variant.finetune for variant in variants):
        why_not = why_not_finetuned(manifest, variants[-1].options)
        missing.append(f"fine-tuning: {why_not or 'no variant with it was requested'}")
    if manifest.flow.source != ENGINE_SOURCE:
        missing.append(f"flow network: the flow is {manifest.flow.source}, a stage of the pipeline")
    return missing


def check_variant_names(names: Sequence[str]) -> None:
    """Raise InputError if a name is no variant or is given twice."""
    for name in names:
        _additions(name)
    if not names or len(set(names)) < len(names):
        raise InputError(f"variants must be given, each once, got {', '.join(names) or 'none'}")


def variants_of(
    manifest: Manifest,
    names: Sequence[str] | None = None,
    finetune: FinetuneOptions | None = None,
) -> tuple[Variant, ...]:
    """Return the requested variants.

    Args:
        manifest: Manifest of the engine directory.
        names: Names of variants; None: all that the directory can run, without fine-tuning.
        finetune: Options of fine-tuning, for variants with it.

    Raises:
        InputError: If a name is no variant, is given twice, or needs a missing engine.
        ManifestError: If the manifest's advice does not fit the options.
    """
    if names is None:
        names = [PLAIN, "osvos", "crf", "osvos+crf"]
        if "osvos" not in manifest.roles:
            names = [PLAIN, "crf"]
    check_variant_names(names)
    return tuple(_variant(name, manifest, finetune or FinetuneOptions()) for name in names)


def _variant(name: str, manifest: Manifest, finetune: FinetuneOptions) -> Variant:
    if name == DEFAULT:
        given = PipelineOptions(finetune=finetune)
        plan = plan_finetuning(manifest, given, must_finetune=False, is_live=False)
        options = PipelineOptions().with_defaults(manifest.runtime_defaults)
        return Variant(name, options, plan.options)
    additions = _additions(name)
    crf, osvos = CrfOptions() if "crf" in additions else None, OsvosOptions(mode="off")
    if "osvos" in additions:
        if "osvos" not in manifest.roles:
            raise InputError(
                f"variant '{name}' needs OSVOS, but the engine directory '{manifest.name}' has "
                "none: leave it out, or export OSVOS with the others"
            )
        osvos = OsvosOptions(mode="blend", every=1)
    options = PipelineOptions(osvos=osvos, crf=crf).with_defaults(manifest.runtime_defaults)
    if "finetune" not in additions:
        return Variant(name, options, None)
    if not finetunable_roles(manifest, options):
        raise InputError(f"variant '{name}' cannot be run: {why_not_finetuned(manifest, options)}")
    return Variant(name, options, options_for(manifest, options, finetune))


def _additions(name: str) -> tuple[str, ...]:
    if name in (PLAIN, DEFAULT):
        return ()
    additions = tuple(name.split("+"))
    if additions != tuple(stage for stage in ADDITIONS if stage in additions):
        raise InputError(
            f"'{name}' is no variant: {PLAIN}, {DEFAULT}, or of {', '.join(ADDITIONS)} in this "
            "order, joined by +"
        )
    return additions


_MIN_AREA_PX = 16
"""Least area of an object in the first frame: smaller ones cannot be propagated."""


@dataclass(frozen=True)
class BenchmarkClip:
    """The clip of a benchmark.

    Attributes:
        video: H.264 in an MP4.
        frames: (H, W, 3) uint8 RGB each, decoded from ``video``.
        labels: (H, W) uint8 of the first frame.
    """

    video: Path
    frames: tuple[UInt8Array, ...]
    labels: UInt8Array


def make_clip(folder: Path, *, frames: int, size_hw: tuple[int, int]) -> BenchmarkClip:
    """Render the built-in clip into ``folder`` and read it back.

    Args:
        folder: Folder for its files.
        frames: Number of frames.
        size_hw: (height, width), both even.

    Raises:
        InputError: If the clip cannot have this size.
        OutputError: If a file cannot be written.
    """
    paths = write_clip(folder, frames=frames, size_hw=size_hw)
    with open_video(paths.video) as source:
        decoded = tuple(frame.rgb for frame in source)
    return BenchmarkClip(paths.video, decoded, load_labels(paths.first_mask, size_hw=size_hw))


def labels_of_objects(labels: UInt8Array, objects: int) -> UInt8Array:
    """Return labels with a given number of objects; the result is deterministic.

    For fewer objects, the first ones are kept. For more, the largest one is split into two halves
    of equal area, across its longer side, until there are enough.

    Args:
        labels: (H, W) uint8 ids.
        objects: Number of objects.

    Returns:
        (H, W) uint8, ids 1 .. ``objects``.

    Raises:
        InputError: If the objects are too small to split.
        MaskError: If there are no objects.
    """
    result = np.zeros_like(labels)
    kept_ids = object_ids_from_labels(labels)[:objects]
    for new_id, object_id in enumerate(kept_ids, start=1):
        result[labels == object_id] = new_id
    for new_id in range(len(kept_ids) + 1, objects + 1):
        areas_px = np.bincount(result.ravel())[1:]
        if areas_px.max() < 2 * _MIN_AREA_PX:
            raise InputError(
                f"the frame size {labels.shape[1]}x{labels.shape[0]} is too small for {objects} "
                "objects: use fewer objects or larger frames"
            )
        rows, columns = np.nonzero(result == int(areas_px.argmax()) + 1)
        along = columns if np.ptp(columns) >= np.ptp(rows) else rows
        half = np.argsort(along, kind="stable")[len(along) // 2 :]
        result[rows[half], columns[half]] = new_id
    return result
