"""The variants of a pipeline that a benchmark measures side by side: which stages are switched on.

A variant's name is ``plain`` (flow, warp, propagation, merge) or what is added to it, joined by
``+``: ``osvos`` (in every frame, as in the paper, whatever the engines advise: OSVOS that runs for
lost objects alone costs nothing until one is lost), ``crf``, ``osvos+crf``; with ``adapt``, which
takes minutes, the networks that can be are fine-tuned on the first frame. ``default`` is what
``mpn-run`` does with these engines, fine-tuning and all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from mpn.engines.directory.manifest import ENGINE_SOURCE, Manifest
from mpn.engines.load import EngineSet
from mpn.errors import InputError
from mpn.runtime.adapt import ObjectAdapter
from mpn.runtime.adapt_options import AdaptOptions
from mpn.runtime.adaptation import (
    adaptable_roles,
    as_seen_in_training,
    options_for,
    why_not_adapted,
)
from mpn.runtime.options import PipelineOptions
from mpn.runtime.pipeline import Pipeline

PLAIN = "plain"
DEFAULT = "default"
ADDITIONS = ("osvos", "crf", "adapt")
"""What a variant can add, in the order in which its name has it."""


@dataclass(frozen=True)
class Variant:
    """One variant.

    Attributes:
        name: See the module.
        options: In force: what the variant says, and otherwise what the manifest advises.
        adapt: How networks are fine-tuned; None: not at all.
    """

    name: str
    options: PipelineOptions
    adapt: AdaptOptions | None

    def open_pipeline(
        self, engine_dir: Path, engines: EngineSet, threads: int | None = None
    ) -> Pipeline:
        """A pipeline that shares its engines: closing it leaves them open.

        Args:
            engine_dir: Where the engines are from.
            engines: Open; to be closed after the pipeline.
            threads: Of fine-tuning.
        """
        return pipeline_on_shared_engines(engine_dir, engines, self.options, self.adapt, threads)


class _SharedEngines(EngineSet):
    """Engines that several pipelines use."""

    def close(self) -> None:
        """Leave them open."""


def pipeline_on_shared_engines(
    engine_dir: Path,
    engines: EngineSet,
    options: PipelineOptions,
    adapt: AdaptOptions | None = None,
    threads: int | None = None,
) -> Pipeline:
    """A pipeline that closes, with itself, the objects' own engines and no others.

    Args:
        engine_dir: Where the engines are from.
        engines: Open; to be closed after the pipeline.
        options: In force.
        adapt: How networks are fine-tuned; None: not at all.
        threads: Of fine-tuning.
    """
    shared = _SharedEngines(**{f.name: getattr(engines, f.name) for f in fields(engines)})
    adapter = None
    if adapt is not None:
        seen = as_seen_in_training(options)
        adapter = ObjectAdapter(engine_dir, shared, adapt, seen, threads=threads)
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
    elif all(variant.options.osvos == "off" for variant in variants):
        missing.append("OSVOS: no variant with it was asked for")
    if not any(variant.options.crf for variant in variants):
        missing.append("DenseCRF: no variant with it was asked for")
    if not any(variant.adapt for variant in variants):
        why_not = why_not_adapted(manifest, variants[-1].options)
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
    adapt: AdaptOptions | None = None,
) -> tuple[Variant, ...]:
    """The variants asked for, or all that an engine directory can run without fine-tuning.

    Args:
        manifest: Of the engine directory.
        names: Names of variants; None for all.
        adapt: How networks are fine-tuned, in variants that do it.

    Raises:
        InputError: If a name is no variant's, is given twice, or needs an engine that is not there.
        ManifestError: If the manifest's advice does not fit the options.
    """
    if names is None:
        names = [PLAIN, "osvos", "crf", "osvos+crf"]
        if "osvos" not in manifest.roles:
            names = [PLAIN, "crf"]
    check_variant_names(names)
    return tuple(_variant(name, manifest, adapt or AdaptOptions()) for name in names)


def _variant(name: str, manifest: Manifest, adapt: AdaptOptions) -> Variant:
    if name == DEFAULT:
        options = PipelineOptions().with_defaults(manifest.runtime_defaults)
        is_adapted = bool(adaptable_roles(manifest, options))
        return Variant(name, options, options_for(manifest, options, adapt) if is_adapted else None)
    additions = _additions(name)
    given: dict[str, Any] = {"osvos": "off", "crf": "crf" in additions}
    if "osvos" in additions:
        if "osvos" not in manifest.roles:
            raise InputError(
                f"variant '{name}' needs OSVOS, which the engine directory '{manifest.name}' has "
                "not: leave it out, or export OSVOS with the others"
            )
        given |= {"osvos": "blend", "osvos_every": 1}
    options = PipelineOptions(**given).with_defaults(manifest.runtime_defaults)
    if "adapt" not in additions:
        return Variant(name, options, None)
    if not adaptable_roles(manifest, options):
        raise InputError(f"variant '{name}' cannot be run: {why_not_adapted(manifest, options)}")
    return Variant(name, options, options_for(manifest, options, adapt))


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
