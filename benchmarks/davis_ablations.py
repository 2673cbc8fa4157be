"""The sets of stages that ``davis.py`` runs: each adds one to the one before.

``warp`` -> ``propagation`` -> ``adapted`` (propagation fine-tuned on the first frame) -> ``osvos``
(fine-tuned too, where it can be) -> ``crf``. What an engine directory cannot do is left out and
said. The ``paper`` sets leave out the stages that the paper does not have (flow check, colours,
mirror), and OSVOS is averaged with the propagation whatever the engines advise. A *variant* is one
of these sets with other options.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mpn.engines.directory.manifest import Manifest
from mpn.errors import InputError
from mpn.runtime.finetune.options import finetunable_roles, options_for
from mpn.runtime.options import FINETUNABLE_ROLES, FinetuneOptions, PipelineOptions

CHAIN = ("warp", "propagation", "adapted", "osvos", "crf")
PAPER = "paper-"
"""Before a name of the chain: the same without flow check and colours."""
DEFAULT = (*CHAIN, "paper-warp", "paper-propagation", "paper-crf")
NOT_IN_THE_PAPER: Mapping[str, Any] = {
    "flow_check_px": 0.0,
    "colour_weight": 0.0,
    "flip_tta": False,
}


@dataclass(frozen=True)
class Ablation:
    """One set of stages.

    Attributes:
        name: See the module.
        stages: Names of the chain that are in it.
        options: Of the pipeline; in force.
        adapt: How networks are fine-tuned; None: not at all.
    """

    name: str
    stages: tuple[str, ...]
    options: PipelineOptions
    adapt: FinetuneOptions | None


def ablations_of(
    manifest: Manifest, names: Sequence[str], adapt: FinetuneOptions
) -> tuple[list[Ablation], list[str]]:
    """The sets of stages that an engine directory can run, and a line on each that it cannot.

    Args:
        manifest: Of the engine directory.
        names: Which sets.
        adapt: How networks are fine-tuned, where they are.

    Raises:
        InputError: If a name is unknown or given twice.
    """
    if not names or len(set(names)) < len(names):
        raise InputError(f"ablations must be given, each once, got {', '.join(names) or 'none'}")
    missing = _missing(manifest)
    built, left_out = [], []
    for name in names:
        last = name.removeprefix(PAPER)
        if last not in CHAIN:
            raise InputError(
                f"'{name}' is no ablation: {', '.join(CHAIN)}, each also as {PAPER}NAME"
            )
        if last in missing:
            left_out.append(f"{name}: {missing[last]}")
            continue
        stages = tuple(s for s in CHAIN[: CHAIN.index(last) + 1] if s not in missing)
        built.append(_ablation(name, stages, manifest, adapt))
    return built, left_out


def with_variants(ablations: Sequence[Ablation], given: Sequence[str]) -> list[Ablation]:
    """The sets, and after them those that are like one of them but for some options.

    Args:
        ablations: The sets that run.
        given: ``NAME=SET:OPTION=VALUE,...`` each.

    Raises:
        InputError: If one is not of that form, its set does not run, or an option is unknown.
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
            changed = known[base].options.with_values(dict(map(option, options.split(","))))
        except InputError as error:
            raise InputError(f"variant '{text}': {error}") from error
        known[name] = replace(known[base], name=name, options=changed)
    return list(known.values())


def option(text: str) -> tuple[str, Any]:
    """``name=value`` of a pipeline option, numbers as numbers.

    Raises:
        InputError: If it is not of that form.
    """
    name, found, value = text.partition("=")
    if not found:
        raise InputError(f"an option is NAME=VALUE, got '{text}'")
    if value in ("true", "false"):
        return name, value == "true"
    for convert in (int, float):
        try:
            return name, convert(value)
        except ValueError:
            continue
    return name, value


def _missing(manifest: Manifest) -> dict[str, str]:
    """Stages that the engines have not, and why."""
    missing = {}
    if "osvos" not in manifest.roles:
        missing["osvos"] = f"the engines '{manifest.name}' have no OSVOS"
    advised = PipelineOptions().with_defaults(manifest.runtime_defaults)
    if "propagation" not in finetunable_roles(manifest, advised):
        missing["adapted"] = (
            f"the engines '{manifest.name}' have no graph to fine-tune propagation with"
        )
    return missing


def _ablation(
    name: str, stages: tuple[str, ...], manifest: Manifest, adapt: FinetuneOptions
) -> Ablation:
    advised = PipelineOptions().with_defaults(manifest.runtime_defaults)
    given: dict[str, Any] = dict(NOT_IN_THE_PAPER) if name.startswith(PAPER) else {}
    # The paper averages OSVOS with the propagation; these engines may advise otherwise.
    is_advised = not name.startswith(PAPER) and advised.osvos.mode != "off"
    osvos = advised.osvos.mode if is_advised else "auto"
    given |= {
        "use_propagation": "propagation" in stages,
        "crf": "crf" in stages,
        "osvos.mode": osvos if "osvos" in stages else "off",
    }
    options = PipelineOptions().with_values(given).with_defaults(manifest.runtime_defaults)
    wanted = "adapted" in stages or "osvos" in stages
    roles = tuple(r for r in FINETUNABLE_ROLES if r in finetunable_roles(manifest, options))
    tuned = options_for(manifest, options, adapt) if wanted and roles else None
    return Ablation(name, stages, options, tuned)
