"""Define the sets of stages of ``davis.py``, and count their fine-tuning cost.

Each set of the chain adds one stage to the set before it: ``warp``, ``propagation``, ``finetuned``
(propagation fine-tuned on the first frame), ``osvos`` (fine-tuned too; the default of ``mpn run``),
``crf``. ``no-finetuning`` is the default without fine-tuning, ``fast`` is ``mpn run --fast``. The
``paper-`` sets leave out the stages that the paper does not have (flow check, colours, horizontal
flip), and average OSVOS with the propagation whatever the manifest advises. Stages that an engine
directory cannot run are left out and reported. A *variant* is one of these sets with other options.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mpn import Pipeline
from mpn.engines.directory.manifest import Manifest
from mpn.errors import InputError
from mpn.runtime.finetune.plan import (
    FinetuneOptions,
    finetunable_roles,
    options_affecting_weights,
    options_for,
)
from mpn.runtime.options import FINETUNABLE_ROLES, PipelineOptions, ResolvedOptions

CHAIN = ("warp", "propagation", "finetuned", "osvos", "crf")
NO_FINETUNING, FAST = "no-finetuning", "fast"
PAPER = "paper-"
"""Prefix of a name of the chain: the same set without flow check, colours and horizontal flip."""
DEFAULT = (*CHAIN, NO_FINETUNING, FAST, "paper-warp", "paper-propagation", "paper-crf")
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
    """

    name: str
    stages: tuple[str, ...]
    options: ResolvedOptions
    finetune: FinetuneOptions | None


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
    missing = _missing_stages(manifest)
    built, left_out = [], []
    for name in names:
        if name in (NO_FINETUNING, FAST):
            built.append(_without_finetuning(name, manifest))
            continue
        last = name.removeprefix(PAPER)
        if last not in CHAIN:
            raise InputError(
                f"'{name}' is no ablation: {', '.join(CHAIN)}, each also as {PAPER}NAME, "
                f"{NO_FINETUNING}, {FAST}"
            )
        if last in missing:
            left_out.append(f"{name}: {missing[last]}")
            continue
        stages = tuple(s for s in CHAIN[: CHAIN.index(last) + 1] if s not in missing)
        built.append(_ablation(name, stages, manifest, finetune))
    return built, left_out


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
    if "osvos" not in manifest.roles:
        missing["osvos"] = f"the engines '{manifest.name}' have no OSVOS"
    advised = PipelineOptions().with_defaults(manifest.runtime_defaults)
    if "propagation" not in finetunable_roles(manifest, advised):
        missing["finetuned"] = (
            f"the engines '{manifest.name}' have no graph to fine-tune propagation with"
        )
    return missing


def _ablation(
    name: str, stages: tuple[str, ...], manifest: Manifest, finetune: FinetuneOptions
) -> Ablation:
    advised = PipelineOptions().with_defaults(manifest.runtime_defaults)
    given: dict[str, Any] = dict(NOT_IN_THE_PAPER) if name.startswith(PAPER) else {}
    # The paper averages OSVOS with the propagation; the manifest may advise another use.
    is_advised = not name.startswith(PAPER) and advised.osvos.mode != "off"
    osvos = advised.osvos.mode if is_advised else "auto"
    given |= {
        "use_propagation": "propagation" in stages,
        "crf": "crf" in stages,
        "osvos.mode": osvos if "osvos" in stages else "off",
    }
    options = PipelineOptions().with_values(given).with_defaults(manifest.runtime_defaults)
    wanted = "finetuned" in stages or "osvos" in stages
    roles = tuple(r for r in FINETUNABLE_ROLES if r in finetunable_roles(manifest, options))
    tuned = options_for(manifest, options, finetune) if wanted and roles else None
    return Ablation(name, stages, options, tuned)


def _without_finetuning(name: str, manifest: Manifest) -> Ablation:
    given: dict[str, Any] = {"flip_tta": False} if name == FAST else {}
    options = PipelineOptions().with_values(given).with_defaults(manifest.runtime_defaults)
    has_osvos = "osvos" in manifest.roles and options.osvos.mode != "off"
    stages = ("warp", "propagation", "osvos") if has_osvos else ("warp", "propagation")
    return Ablation(name, stages, options, None)
