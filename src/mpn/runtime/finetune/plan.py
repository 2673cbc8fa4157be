"""Decide whether a run fine-tunes its networks, and which ones."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from mpn.engines.directory.manifest import Manifest
from mpn.engines.spec import Role
from mpn.errors import EngineError
from mpn.runtime.one_shot import one_shot_models
from mpn.runtime.options import FinetuneOptions, PipelineOptions, ResolvedOptions

_AFFECTING_WEIGHTS = (
    "size",
    "threshold",
    "flow_check_px",
    "colour_weight",
    "roi_margin_frac",
    "roi_margin_px_min",
    "propagation_weight",
    "lost_area_frac",
)
_UNUSED_0_1 = {
    "use_propagation": True,
    "mirror": False,
    "osvos": "auto",
    "osvos_threshold": 0.5,
    "osvos_every": 1,
    "doubt_confidence": 0.7,
    "doubt_area_factor": 2.0,
    "ensemble_weight": 0.5,
    "retrieve_area_frac": 0.1,
    "retrieve_iou_max": 0.3,
    "retrieve_colour": 0.4,
    "retrieve_agreement": 0.2,
    "crf": False,
    "crf_feedback": False,
    "crf_sxy_gaussian": 1.0,
    "crf_compat_gaussian": 5.0,
    "crf_sxy_bilateral": 15.0,
    "crf_srgb_bilateral": 7.0,
    "crf_compat_bilateral": 9.0,
    "crf_iterations": 5,
    "crf_margin_px": 16,
    "crf_whole_frame": False,
    "crf_working_scale": 1.0,
}
"""Version 0.1 hashed these constants into the key of fine-tuned weights. They keep its caches
valid."""

_HOW = "export it again with this version of mpn-export"


@dataclass(frozen=True)
class FinetunePlan:
    """The decision whether a run fine-tunes its networks.

    Attributes:
        options: The options of fine-tuning; None: no fine-tuning.
        why_not: The reason for no fine-tuning; otherwise empty.
    """

    options: FinetuneOptions | None
    why_not: str = ""


def plan_finetuning(
    manifest: Manifest, options: PipelineOptions, *, must_finetune: bool, is_live: bool
) -> FinetunePlan:
    """Decide whether a run fine-tunes its networks, and which.

    Args:
        manifest: Manifest of the engine directory.
        options: Options of the pipeline. ``finetune`` is None if fine-tuning is not requested.
        must_finetune: Raise if fine-tuning is required but not possible. Otherwise networks that
            run with the target model alone are not fine-tuned: they do not need it.
        is_live: The source does not wait for fine-tuning; it then runs only with ``must_finetune``.

    Raises:
        EngineError: If fine-tuning is required but not possible.
        ManifestError: If the manifest's advice does not fit the options.
    """
    wanted = options.finetune
    if wanted is None:
        return FinetunePlan(None, "not requested")
    resolved = options.with_defaults(manifest.runtime_defaults)
    why_not = why_not_finetuned(manifest, resolved)
    if is_live and not why_not:
        why_not = "frames of a live source would pass meanwhile"
    models = one_shot_models(resolved, manifest.roles.keys())
    if models.target and not models.osvos and not why_not:
        why_not = "the target model separates the objects without it"
    if why_not and not must_finetune:
        return FinetunePlan(None, why_not)
    return FinetunePlan(options_for(manifest, resolved, wanted))


def finetune_as_json(options: FinetuneOptions) -> dict[str, Any]:
    """Return the options that change the weights as JSON types."""
    known = asdict(options)
    del known["cache_dir"]
    recipes = {role: asdict(options.recipe(role)) for role in options.roles}
    return {**known, "roles": list(options.roles), "recipes": recipes}


def finetunable_roles(manifest: Manifest, options: ResolvedOptions) -> tuple[Role, ...]:
    """Return the networks that run with these options and can be fine-tuned.

    Args:
        manifest: Manifest of the engine directory.
        options: Options of the pipeline.
    """
    idle: set[Role] = set()
    if not one_shot_models(options, manifest.roles.keys()).osvos:
        idle.add("osvos")
    if not options.use_propagation:
        idle.add("propagation")
    return tuple(
        role
        for role, entry in manifest.roles.items()
        if entry.adapt is not None and role not in idle
    )


def options_for(
    manifest: Manifest, options: ResolvedOptions, finetune: FinetuneOptions
) -> FinetuneOptions:
    """Return the options with only those networks that run and can be fine-tuned.

    Raises:
        EngineError: If no network is left.
    """
    possible = finetunable_roles(manifest, options)
    roles = tuple(role for role in finetune.roles if role in possible)
    if not roles:
        wanted = ", ".join(finetune.roles)
        raise EngineError(
            why_not_finetuned(manifest, options)
            or f"with these options no network of {wanted} both runs and can be fine-tuned"
        )
    return replace(finetune, roles=roles)


def options_affecting_weights(options: ResolvedOptions) -> ResolvedOptions:
    """Return the options that change the weights, with defaults for the others.

    OSVOS, redetection and CRF run after the propagation network and do not change its weights. The
    target model does if the network takes its score.
    """
    affecting = {name: getattr(options, name) for name in _AFFECTING_WEIGHTS}
    return ResolvedOptions(**affecting, one_shot=options.one_shot, target=options.target)


def options_in_cache_key(options: ResolvedOptions) -> dict[str, Any]:
    """Return the options that change the weights, with the names of version 0.1."""
    affecting = {name: getattr(options, name) for name in _AFFECTING_WEIGHTS}
    return {**affecting, **_UNUSED_0_1}


def why_not_finetuned(manifest: Manifest, options: ResolvedOptions) -> str:
    """Return the reason why fine-tuning is not possible, one line; empty if it is."""
    if finetunable_roles(manifest, options):
        return ""
    if manifest.roles["propagation"].quantized is not None:
        return "an int8 network cannot be fine-tuned: use the engines that it was made of"
    if any(entry.adapt is not None for entry in manifest.roles.values()):
        return "no network that can be fine-tuned is in use"
    return (
        f"the engines '{manifest.name}' have no graphs to fine-tune with: {_HOW}, or run without "
        "fine-tuning"
    )
