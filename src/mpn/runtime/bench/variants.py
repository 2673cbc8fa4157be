"""The variants of a pipeline that a benchmark measures side by side: which stages are switched on.

A variant's name is ``plain`` (flow, warp, propagation, merge) or what is added to it, joined by
``+``: ``osvos`` (in every frame, as in the paper, whatever the engines advise: OSVOS that runs for
lost objects alone costs nothing until one is lost), ``crf``, ``osvos+crf``; with ``finetune``,
which takes minutes, the networks that can be are fine-tuned on the first frame. ``default`` is what
``mpn-run`` does with these engines, fine-tuning and all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from mpn.engines.directory.manifest import ENGINE_SOURCE, Manifest
from mpn.engines.open import EngineSet
from mpn.errors import InputError
from mpn.masks import load_labels
from mpn.runtime.finetune.adapter import ObjectFinetuner
from mpn.runtime.finetune.plan import (
    finetunable_roles,
    options_affecting_weights,
    options_for,
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
"""What a variant can add, in the order in which its name has it."""


@dataclass(frozen=True)
class Variant:
    """One variant.

    Attributes:
        name: See the module.
        options: In force: what the variant says, and otherwise what the manifest advises.
        finetune: How networks are fine-tuned; None: not at all.
    """

    name: str
    options: ResolvedOptions
    finetune: FinetuneOptions | None

    def open_pipeline(
        self, engine_dir: Path, engines: EngineSet, threads: int | None = None
    ) -> Pipeline:
        """A pipeline that shares its engines: closing it leaves them open.

        Args:
            engine_dir: Where the engines are from.
            engines: Open; to be closed after the pipeline.
            threads: Of fine-tuning.
        """
        return pipeline_on_shared_engines(engine_dir, engines, self.options, self.finetune, threads)


class _SharedEngines(EngineSet):
    """Engines that several pipelines use."""

    def close(self) -> None:
        """Leave them open."""


def pipeline_on_shared_engines(
    engine_dir: Path,
    engines: EngineSet,
    options: ResolvedOptions,
    finetune: FinetuneOptions | None = None,
    threads: int | None = None,
) -> Pipeline:
    """A pipeline that closes, with itself, the objects' own engines and no others.

    Args:
        engine_dir: Where the engines are from.
        engines: Open; to be closed after the pipeline.
        options: In force.
        finetune: How networks are fine-tuned; None: not at all.
        threads: Of fine-tuning.
    """
    shared = _SharedEngines(**{f.name: getattr(engines, f.name) for f in fields(engines)})
    adapter = None
    if finetune is not None:
        seen = options_affecting_weights(options)
        adapter = ObjectFinetuner(engine_dir, shared, finetune, seen, threads=threads)
    return Pipeline(shared, options=options, adapter=adapter)


def not_measured(engines: EngineSet, variants: Sequence[Variant]) -> list[str]:
    """What a reader may look for in a result with these variants and not find, a line each."""
    manifest = engines.manifest
    missing = [
        "GPU (CUDA, TensorRT): the networks ran on the CPU"
        if engines.backend == "cpu"
        else f"backends other than {engines.backend}",
    ]
    if "osvos" not in manifest.roles:
        missing.append("OSVOS: the engine directory has none")
    elif all(variant.options.osvos.mode == "off" for variant in variants):
        missing.append("OSVOS: no variant with it was asked for")
    if not any(variant.options.crf for variant in variants):
        missing.append("DenseCRF: no variant with it was asked for")
    if not any(variant.finetune for variant in variants):
        why_not = why_not_finetuned(manifest, variants[-1].options)
        missing.append(f"fine-tuning: {why_not or 'no variant with it was asked for'}")
    if manifest.flow.source != ENGINE_SOURCE:
        missing.append(f"flow network: the flow is {manifest.flow.source}, a stage of the pipeline")
    return missing


def check_variant_names(names: Sequence[str]) -> None:
    """Raise InputError unless these are names of variants, each once."""
    for name in names:
        _additions(name)
    if not names or len(set(names)) < len(names):
        raise InputError(f"variants must be given, each once, got {', '.join(names) or 'none'}")


def variants_of(
    manifest: Manifest,
    names: Sequence[str] | None = None,
    finetune: FinetuneOptions | None = None,
) -> tuple[Variant, ...]:
    """The variants asked for, or all that an engine directory can run without fine-tuning.

    Args:
        manifest: Of the engine directory.
        names: Names of variants; None for all.
        finetune: How networks are fine-tuned, in variants that do it.

    Raises:
        InputError: If a name is no variant's, is given twice, or needs an engine that is not there.
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
        options = PipelineOptions().with_defaults(manifest.runtime_defaults)
        is_finetuned = bool(finetunable_roles(manifest, options))
        return Variant(
            name, options, options_for(manifest, options, finetune) if is_finetuned else None
        )
    additions = _additions(name)
    crf, osvos = CrfOptions() if "crf" in additions else None, OsvosOptions(mode="off")
    if "osvos" in additions:
        if "osvos" not in manifest.roles:
            raise InputError(
                f"variant '{name}' needs OSVOS, which the engine directory '{manifest.name}' has "
                "not: leave it out, or export OSVOS with the others"
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
"""Of an object in the first frame: below it there is nothing to propagate."""


@dataclass(frozen=True)
class BenchmarkClip:
    """The clip.

    Attributes:
        video: H.264 in an MP4.
        frames: (H, W, 3) uint8 RGB each, decoded from the file: both hold the same pixels.
        labels: (H, W) uint8 of the first frame.
    """

    video: Path
    frames: tuple[UInt8Array, ...]
    labels: UInt8Array


def make_clip(folder: Path, *, frames: int, size_hw: tuple[int, int]) -> BenchmarkClip:
    """Render the built-in clip into ``folder`` and read it back.

    Args:
        folder: Where its files go.
        frames: How many.
        size_hw: (height, width), both even.

    Raises:
        InputError: If the size is none that the clip can have.
        OutputError: If a file cannot be written.
    """
    paths = write_clip(folder, frames=frames, size_hw=size_hw)
    with open_video(paths.video) as source:
        decoded = tuple(frame.rgb for frame in source)
    return BenchmarkClip(paths.video, decoded, load_labels(paths.first_mask, size_hw=size_hw))


def labels_of_objects(labels: UInt8Array, objects: int) -> UInt8Array:
    """Labels with exactly so many objects, the same for the same arguments.

    Fewer: the first ones stay. More: the largest one is cut in two halves of equal area, across its
    longer side, until there are enough.

    Args:
        labels: (H, W) uint8 ids.
        objects: How many are wanted.

    Returns:
        (H, W) uint8, ids 1 .. ``objects``.

    Raises:
        InputError: If the objects are too small to be cut so often.
        MaskError: If there is no object at all.
    """
    wanted = np.zeros_like(labels)
    kept_ids = object_ids_from_labels(labels)[:objects]
    for new_id, object_id in enumerate(kept_ids, start=1):
        wanted[labels == object_id] = new_id
    for new_id in range(len(kept_ids) + 1, objects + 1):
        areas_px = np.bincount(wanted.ravel())[1:]
        if areas_px.max() < 2 * _MIN_AREA_PX:
            raise InputError(
                f"the frame size {labels.shape[1]}x{labels.shape[0]} is too small for {objects} "
                "objects: ask for fewer objects or larger frames"
            )
        rows, columns = np.nonzero(wanted == int(areas_px.argmax()) + 1)
        along = columns if np.ptp(columns) >= np.ptp(rows) else rows
        half = np.argsort(along, kind="stable")[len(along) // 2 :]
        wanted[rows[half], columns[half]] = new_id
    return wanted
