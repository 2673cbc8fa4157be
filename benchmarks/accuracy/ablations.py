"""Define the sets of stages of ``davis.py``, and count their fine-tuning cost.

Engines with a features engine run the target model. Their sets are ``warp``, ``propagation`` (no
model of the first mask), ``target`` (the target model, solved on the first frame alone),
``updates`` (the target model with updates: the default of ``mpn run``), ``no-channel`` (the default
with the score blended into the mask instead of given to the network), ``finetuned`` (the default
with propagation fine-tuned on the first frame: ``mpn run --finetune``), ``osvos`` (OSVOS in the
place of the target model, both networks fine-tuned), ``crf`` (the default with a DenseCRF) and
``fast`` (``mpn run --fast``).

Engines without one have no ``target`` and ``updates``: ``finetuned`` adds fine-tuning to
``propagation``, ``osvos`` adds OSVOS (the default of ``mpn run``), ``crf`` adds a DenseCRF, and
``no-finetuning`` is the default without fine-tuning.

The ``paper-`` sets leave out what the paper does not have (target model, flow check, colours,
horizontal flip), and average OSVOS with the propagation whatever the manifest advises. Sets that an
engine directory cannot run, or that are equal to another one, are left out and reported. A
*variant* is one of these sets with other options.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mpn import Pipeline
from mpn.engines.base import Engine
from mpn.engines.directory.manifest import Manifest
from mpn.engines.open import EngineSet
from mpn.engines.spec import PROPAGATION_INPUTS, propagation_spec
from mpn.errors import InputError
from mpn.runtime.finetune.plan import (
    FinetuneOptions,
    finetunable_roles,
    options_affecting_weights,
    options_for,
)
from mpn.runtime.one_shot import one_shot_models
from mpn.runtime.options import FINETUNABLE_ROLES, PipelineOptions, ResolvedOptions
from mpn.runtime.target import NO_SCORE
from mpn.types import Float32Array

PAPER_CHAIN = ("warp", "propagation", "finetuned", "osvos", "crf")
"""Stages of the paper: each set adds one to the set before it."""
TARGET_CHAIN: Mapping[str, tuple[str, ...]] = {
    "warp": ("warp",),
    "propagation": ("warp", "propagation"),
    "target": ("warp", "propagation", "target"),
    "updates": ("warp", "propagation", "target", "updates"),
    "no-channel": ("warp", "propagation", "target", "updates"),
    "finetuned": ("warp", "propagation", "target", "updates", "finetuned"),
    "osvos": ("warp", "propagation", "finetuned", "osvos"),
    "crf": ("warp", "propagation", "target", "updates", "crf"),
}
"""Stages of each set with the target model."""
NO_FINETUNING, FAST = "no-finetuning", "fast"
PAPER = "paper-"
"""Prefix of a name of :data:`PAPER_CHAIN`: the set without the stages that the paper lacks."""
DEFAULT = (
    *TARGET_CHAIN,
    NO_FINETUNING,
    FAST,
    "paper-warp",
    "paper-propagation",
    "paper-crf",
)
_OF_TARGET: Mapping[str, Mapping[str, Any]] = {
    "warp": {"one_shot": "off", "use_propagation": False},
    "propagation": {"one_shot": "off"},
    "target": {"target.update_every": 0},
    "updates": {},
    "no-channel": {},
    "finetuned": {},
    "osvos": {"one_shot": "osvos"},
    "crf": {"crf": True},
}
"""Options of each set with the target model that differ from those of ``mpn run``."""
NOT_IN_THE_PAPER: Mapping[str, Any] = {
    "flow_check_px": 0.0,
    "colour_weight": 0.0,
    "flip_tta": False,
}


@dataclass(frozen=True)
class Ablation:
    """Describe one set of stages.

    Attributes:
        name: Name from the module docstring.
        stages: Names of the chain that the set contains.
        options: Options of the pipeline with the advice of the manifest.
        finetune: Options of fine-tuning; None for no fine-tuning.
        feeds_score: Whether the propagation network gets the score of the target model.
    """

    name: str
    stages: tuple[str, ...]
    options: ResolvedOptions
    finetune: FinetuneOptions | None
    feeds_score: bool = True

    def engines(self, engines: EngineSet) -> EngineSet:
        """Return the engines of the set, which share their networks with ``engines``."""
        if self.feeds_score:
            return engines
        return replace(engines, propagation=WithoutScore(engines.propagation), owned=False)

    def is_equal_to(self, other: Ablation) -> bool:
        """Return whether another set gives the same masks."""
        mine, theirs = ((a.options, a.finetune, a.feeds_score) for a in (self, other))
        return mine == theirs


class WithoutScore:
    """A propagation engine of five channels that gets no score: 0.5 in each pixel.

    In training the score is left out of some clips in the same way. Its spec has four channels, so
    that the pipeline blends the score into the mask.

    Args:
        engine: The engine, on the host.
    """

    def __init__(self, engine: Engine) -> None:
        shape = engine.spec.inputs[0].shape
        self._engine, self.backend = engine, engine.backend
        self.spec = propagation_spec(int(shape[-1]), engine.spec.max_objects or 1)

    def run(self, inputs: Mapping[str, Float32Array]) -> dict[str, Float32Array]:
        """See :meth:`mpn.engines.base.Engine.run`."""
        rgb_prob = inputs[PROPAGATION_INPUTS[4]]
        no_score = np.full_like(rgb_prob[:, :1], NO_SCORE)
        return self._engine.run(
            {PROPAGATION_INPUTS[5]: np.concatenate([rgb_prob, no_score], axis=1)}
        )

    def close(self) -> None:
        """Do nothing: the engine is shared."""


def ablations_from_names(
    manifest: Manifest, names: Sequence[str], finetune: FinetuneOptions
) -> tuple[list[Ablation], list[str]]:
    """Return the sets that the engines can run, and one line for each other set.

    Args:
        manifest: Manifest of the engine directory.
        names: Names of the sets.
        finetune: Options of fine-tuning for the sets that have it.

    Raises:
        InputError: If a name is unknown or given twice.
    """
    if not names or len(set(names)) < len(names):
        raise InputError(f"ablations must be given, each once, got {', '.join(names) or 'none'}")
    uses_target = is_target_used(manifest)
    missing = _missing_stages(manifest)
    built: list[Ablation] = []
    left_out = []
    for name in names:
        last = name.removeprefix(PAPER)
        chain: Collection[str] = PAPER_CHAIN if name.startswith(PAPER) else TARGET_CHAIN
        if name not in (NO_FINETUNING, FAST) and last not in chain:
            raise InputError(
                f"'{name}' is no ablation: {', '.join(TARGET_CHAIN)}, {NO_FINETUNING}, {FAST}, or "
                f"{PAPER} before {', '.join(PAPER_CHAIN)}"
            )
        if last in missing:
            left_out.append(f"{name}: {missing[last]}")
            continue
        if name in (NO_FINETUNING, FAST):
            ablation = _without_finetuning(name, manifest)
        elif uses_target and not name.startswith(PAPER):
            ablation = _of_target(name, manifest, finetune)
        else:
            stages = tuple(
                s for s in PAPER_CHAIN[: PAPER_CHAIN.index(last) + 1] if s not in missing
            )
            ablation = _of_paper(name, stages, manifest, finetune)
        same = next((a.name for a in built if uses_target and a.is_equal_to(ablation)), None)
        if same is None:
            built.append(ablation)
        else:
            left_out.append(f"{name}: with these engines it is the same as '{same}'")
    return built, left_out


def is_target_used(manifest: Manifest) -> bool:
    """Return whether ``mpn run`` uses the target model, and so does not fine-tune."""
    options = PipelineOptions().with_defaults(manifest.runtime_defaults)
    return one_shot_models(options, manifest.roles.keys()).target


def with_variants(ablations: Sequence[Ablation], given: Sequence[str]) -> list[Ablation]:
    """Return the sets, followed by their variants.

    Args:
        ablations: The sets that run.
        given: Variants as ``NAME=SET:OPTION=VALUE,...``.

    Raises:
        InputError: If a variant has another form, its set does not run, or an option is unknown.
    """
    known = {ablation.name: ablation for ablation in ablations}
    for text in given:
        name, _, rest = text.partition("=")
        base, _, options = rest.partition(":")
        if not name or not options or name in known:
            raise InputError(f"a variant is NEWNAME=SET:OPTION=VALUE,..., got '{text}'")
        if base not in known:
            raise InputError(f"variant '{text}': the set '{base}' does not run here")
        try:
            values = dict(map(option_from_text, options.split(",")))
            changed = known[base].options.with_values(values)
        except InputError as error:
            raise InputError(f"variant '{text}': {error}") from error
        known[name] = replace(known[base], name=name, options=changed)
    return list(known.values())


def option_from_text(text: str) -> tuple[str, Any]:
    """Parse ``name=value`` of a pipeline option; numbers and booleans are converted.

    Raises:
        InputError: If the text has another form.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"an option is NAME=VALUE, got '{text}'")
    if value in ("true", "false"):
        return name, value == "true"
    for convert in (int, float):
        try:
            return name, convert(value)
        except ValueError:
            continue
    return name, value


class FinetuneCosts:
    """Store the seconds of fine-tuning, for sets that share weights."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[str, int, str], dict[ResolvedOptions, float]] = {}

    def cost_s(
        self, ablation: Ablation, sequence: str, reports: Sequence[Mapping[str, Any]]
    ) -> float:
        """Return the fine-tuning seconds of a sequence, in this set or in another.

        Args:
            ablation: The set that used the weights.
            sequence: Name of the sequence.
            reports: Reports of :func:`finetune_reports`.
        """
        options = options_affecting_weights(ablation.options)
        total_s = 0.0
        for report in reports:
            known = self._seconds.setdefault((sequence, report["object_id"], report["role"]), {})
            if not report["cached"]:
                known[options] = report["seconds"]
            # OSVOS weights do not depend on the options, so another set may have trained them.
            # Weights from another run have no known cost: 0.
            total_s += known.get(options, next(reversed(known.values()), 0.0))
        return total_s


def finetune_reports(pipeline: Pipeline, ablation: Ablation) -> list[dict[str, Any]]:
    """Return the fine-tuning reports of the current sequence."""
    if ablation.finetune is None:
        return []
    # The pipeline keeps the reports of earlier sequences before them.
    return pipeline.finetune_report()[-len(pipeline.object_ids) * len(ablation.finetune.roles) :]


def with_cache(finetune: FinetuneOptions | None, folder: Path) -> FinetuneOptions | None:
    """Return the same fine-tuning with its weights cached in a folder."""
    return None if finetune is None else replace(finetune, cache_dir=folder)


def _missing_stages(manifest: Manifest) -> dict[str, str]:
    """Return the stages that the engines do not have, with the reason."""
    missing = {}
    if not is_target_used(manifest):
        for stage in ("target", "updates", "no-channel"):
            missing[stage] = f"the engines '{manifest.name}' do not run the target model"
    elif PROPAGATION_INPUTS[5] not in [of.name for of in manifest.roles["propagation"].inputs]:
        missing["no-channel"] = f"the engines '{manifest.name}' take no score"
    if "osvos" not in manifest.roles:
        missing["osvos"] = f"the engines '{manifest.name}' have no OSVOS"
    advised = PipelineOptions().with_defaults(manifest.runtime_defaults)
    if "propagation" not in finetunable_roles(manifest, advised):
        missing["finetuned"] = (
            f"the engines '{manifest.name}' have no graph to fine-tune propagation with"
        )
    return missing


def _of_target(name: str, manifest: Manifest, finetune: FinetuneOptions) -> Ablation:
    given = dict(_OF_TARGET[name])
    options = PipelineOptions().with_values(given).with_defaults(manifest.runtime_defaults)
    stages = TARGET_CHAIN[name]
    tuned = _finetune(manifest, options, finetune, stages)
    return Ablation(name, stages, options, tuned, feeds_score=name != "no-channel")


def _of_paper(
    name: str, stages: tuple[str, ...], manifest: Manifest, finetune: FinetuneOptions
) -> Ablation:
    advised = PipelineOptions().with_defaults(manifest.runtime_defaults)
    given: dict[str, Any] = dict(NOT_IN_THE_PAPER) if name.startswith(PAPER) else {}
    # The paper averages OSVOS with the propagation; the manifest may advise another use.
    is_advised = not name.startswith(PAPER) and advised.osvos.mode != "off"
    osvos = advised.osvos.mode if is_advised else "auto"
    given |= {"use_propagation": "propagation" in stages, "crf": "crf" in stages}
    if is_target_used(manifest) and "osvos" not in stages:
        given["one_shot"] = "off"
    elif is_target_used(manifest):
        given |= {"one_shot": "osvos", "osvos.mode": osvos}
    else:
        given["osvos.mode"] = osvos if "osvos" in stages else "off"
    options = PipelineOptions().with_values(given).with_defaults(manifest.runtime_defaults)
    return Ablation(name, stages, options, _finetune(manifest, options, finetune, stages))


def _finetune(
    manifest: Manifest,
    options: ResolvedOptions,
    finetune: FinetuneOptions,
    stages: tuple[str, ...],
) -> FinetuneOptions | None:
    """Return the options of fine-tuning of a set; None if it has no fine-tuned stage."""
    wanted = "finetuned" in stages or "osvos" in stages
    roles = tuple(r for r in FINETUNABLE_ROLES if r in finetunable_roles(manifest, options))
    return options_for(manifest, options, finetune) if wanted and roles else None


def _without_finetuning(name: str, manifest: Manifest) -> Ablation:
    given: dict[str, Any] = {"flip_tta": False} if name == FAST else {}
    options = PipelineOptions().with_values(given).with_defaults(manifest.runtime_defaults)
    models = one_shot_models(options, manifest.roles.keys())
    stages = TARGET_CHAIN["updates"] if models.target else TARGET_CHAIN["propagation"]
    return Ablation(name, (*stages, "osvos") if models.osvos else stages, options, None)
