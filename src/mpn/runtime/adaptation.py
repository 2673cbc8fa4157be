"""Whether the networks of an engine directory are fine-tuned on the given masks, and which."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from mpn.engines.directory.manifest import Manifest
from mpn.engines.spec import Role
from mpn.errors import EngineError
from mpn.runtime.adapt_options import AdaptOptions
from mpn.runtime.options import PipelineOptions

_SHOWN = (
    "size",
    "threshold",
    "flow_check_px",
    "colour_weight",
    "roi_margin_frac",
    "roi_margin_px_min",
    "propagation_weight",
    "lost_area_frac",
)
_HOW = "export it again with this version of mpn-export"


@dataclass(frozen=True)
class Decision:
    """Whether a run fine-tunes its networks.

    Attributes:
        options: How; None: it does not.
        why_not: What stands in the way; empty if nothing does.
    """

    options: AdaptOptions | None
    why_not: str = ""


def decide(
    adapt: AdaptOptions | None,
    manifest: Manifest,
    options: PipelineOptions,
    *,
    must_adapt: bool,
    is_live: bool,
) -> Decision:
    """Whether a run fine-tunes its networks, and how.

    Args:
        adapt: How, where it can be done; None: not wanted.
        manifest: Of the engine directory.
        options: Of the pipeline, before the manifest's advice.
        must_adapt: Whether what cannot be done is an error.
        is_live: Whether frames pass while the networks learn; then they do only if they must.

    Raises:
        EngineError: If it must be done and cannot.
    """
    if adapt is None:
        return Decision(None, "not wanted")
    in_force = options.with_defaults(manifest.runtime_defaults)
    why_not = why_not_adapted(manifest, in_force)
    if must_adapt:
        return Decision(options_for(manifest, in_force, adapt))
    if is_live and not why_not:
        why_not = "frames of a live source would pass meanwhile"
    return Decision(None, why_not) if why_not else Decision(options_for(manifest, in_force, adapt))


def adapt_as_json(options: AdaptOptions) -> dict[str, Any]:
    """What decides about the weights, as JSON types: all but where they are kept."""
    known = asdict(options)
    del known["cache_dir"]
    recipes = {role: asdict(options.recipe(role)) for role in options.roles}
    return {**known, "roles": list(options.roles), "recipes": recipes}


def adaptable_roles(manifest: Manifest, options: PipelineOptions) -> tuple[Role, ...]:
    """The networks that can be fine-tuned and that the options let run.

    Args:
        manifest: Of the engine directory.
        options: Of the pipeline, in force.
    """
    idle: set[Role] = set()
    if options.osvos == "off":
        idle.add("osvos")
    if not options.use_propagation:
        idle.add("propagation")
    return tuple(
        role
        for role, entry in manifest.roles.items()
        if entry.adapt is not None and role not in idle
    )


def options_for(manifest: Manifest, options: PipelineOptions, adapt: AdaptOptions) -> AdaptOptions:
    """The fine-tuning that really takes place: networks that cannot, or do not run, are left out.

    Raises:
        EngineError: If none is left.
    """
    possible = adaptable_roles(manifest, options)
    roles = tuple(role for role in adapt.roles if role in possible)
    if not roles:
        raise EngineError(why_not_adapted(manifest, options))
    return replace(adapt, roles=roles)


def as_seen_in_training(options: PipelineOptions) -> PipelineOptions:
    """The options that decide what the propagation network is shown; the others at their defaults.

    Weights are kept by these: whether OSVOS or CRF follow changes nothing about them.
    """
    return PipelineOptions(**{name: getattr(options, name) for name in _SHOWN})


def why_not_adapted(manifest: Manifest, options: PipelineOptions) -> str:
    """One line on what stands in the way of fine-tuning; empty if nothing does."""
    if adaptable_roles(manifest, options):
        return ""
    if any(entry.adapt is not None for entry in manifest.roles.values()):
        return "no network that can be fine-tuned is in use"
    return (
        f"the engines '{manifest.name}' have no graphs to fine-tune with: {_HOW}, or run without "
        "fine-tuning"
    )
