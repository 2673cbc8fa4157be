"""The options of fine-tuning on the given frame: what, how long, and with which rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

from mpn._common.validation import check_choice, check_int, check_number, is_int
from mpn.engines.directory.entries import AdaptOptimizer as AdaptOptimizer
from mpn.engines.directory.entries import AdaptScope as AdaptScope
from mpn.engines.directory.manifest import Manifest
from mpn.engines.spec import ROI_SIZE_STEP, Role
from mpn.errors import EngineError, InputError
from mpn.runtime.options import PipelineOptions

ADAPTABLE_ROLES: tuple[Role, ...] = ("propagation", "osvos")
"""Networks that can be fine-tuned on the frame whose labels were given, in this order."""

_SMALLEST_SIZE_PX = 65
_LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class AdaptRecipe:
    """How one network is fine-tuned.

    Attributes:
        steps: Steps of the optimiser.
        size_px: Side of the square crops it learns from, in pixels.
        batch: Crops a step.
        learning_rate: Rate at its highest; it rises in the first steps and falls to zero at the
            end (of the steps, or of the seconds if those are used up first).
        scope: ``"all"``: every weight; ``"head"``: the layers after a frozen trunk.
    """

    steps: int
    size_px: int
    batch: int
    learning_rate: float
    scope: AdaptScope = "all"


DEFAULT_RECIPES: Mapping[Role, AdaptRecipe] = {
    "propagation": AdaptRecipe(steps=80, size_px=161, batch=4, learning_rate=5e-5),
    "osvos": AdaptRecipe(steps=40, size_px=192, batch=4, learning_rate=3e-4),
}
"""Used for what the options leave open, with AdamW; see docs/adaptation.md for where the numbers
come from."""

SGD_RATES: Mapping[Role, float] = {"propagation": 3e-3, "osvos": 1e-2}
"""Default rates where the step was exported with SGD."""


@dataclass(frozen=True, kw_only=True)
class AdaptOptions:
    """How networks are fine-tuned, one set of weights an object.

    What is None is taken from the recipe of each role. The budget is in steps by default, so that
    the same seed gives the same weights; a budget in seconds depends on the machine.

    Attributes:
        roles: Networks to fine-tune, of those that the engine directory can.
        steps: Steps an object and network.
        seconds: Wall time an object and network; fine-tuning ends with it or with the steps,
            whichever comes first.
        size: Side of the crops in pixels, 16 n + 1. OSVOS, which halves its input four times,
            takes 16 n.
        scope: Train every weight, or the head alone on cached features of the trunk.
        learning_rate: Highest rate.
        batch: Crops a step.
        seed: Of everything random; with it go the object's id and the network, so that no two
            objects learn from the same dreams.
        cache_dir: Folder that fine-tuned weights are kept in for the next run on the same frame;
            None keeps nothing.

    Raises:
        InputError: If a value is of another type or out of range.
    """

    roles: tuple[Role, ...] = ADAPTABLE_ROLES
    steps: int | None = None
    seconds: float | None = None
    size: int | None = None
    scope: AdaptScope | None = None
    learning_rate: float | None = None
    batch: int | None = None
    seed: int = 0
    cache_dir: Path | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.roles, tuple) or not self.roles:
            raise InputError(f"option roles must be a tuple of roles, got {self.roles!r}")
        for role in self.roles:
            check_choice("each of option roles", role, ADAPTABLE_ROLES)
        if len(set(self.roles)) != len(self.roles):
            raise InputError(f"option roles names a network twice: {', '.join(self.roles)}")
        for name in ("steps", "batch"):
            if (value := getattr(self, name)) is not None:
                check_int(f"option {name}", value, least=1)
        if self.size is not None and (
            not is_int(self.size)
            or self.size < _SMALLEST_SIZE_PX
            or (self.size - 1) % ROI_SIZE_STEP
        ):
            raise InputError(
                f"option size must be 16 n + 1 and at least {_SMALLEST_SIZE_PX} (161, 193, 225), "
                f"got {self.size!r}"
            )
        if self.scope is not None:
            check_choice("option scope", self.scope, get_args(AdaptScope))
        for name, kind in (("seconds", "seconds"), ("learning_rate", "a rate")):
            if (value := getattr(self, name)) is not None:
                check_number(f"option {name}", value, above=0, kind=kind)
        check_int("option seed", self.seed, least=0, most=_LARGEST_SEED)
        if self.cache_dir is not None and not isinstance(self.cache_dir, Path):
            raise InputError(f"option cache_dir must be a path or None, got {self.cache_dir!r}")

    def recipe(self, role: Role, optimizer: AdaptOptimizer = "adamw") -> AdaptRecipe:
        """How ``role`` is fine-tuned: its default recipe, with what these options say.

        Args:
            role: The network.
            optimizer: Of its exported step; the default rate depends on it.

        Raises:
            InputError: If the network of this role cannot be fine-tuned.
        """
        if role not in DEFAULT_RECIPES:
            raise InputError(
                f"the {role} network cannot be fine-tuned, only {', '.join(ADAPTABLE_ROLES)}"
            )
        default = DEFAULT_RECIPES[role]
        rate = default.learning_rate if optimizer == "adamw" else SGD_RATES[role]
        size = self.size if role == "propagation" or self.size is None else self.size - 1
        return AdaptRecipe(
            steps=_or(self.steps, default.steps),
            size_px=_or(size, default.size_px),
            batch=_or(self.batch, default.batch),
            learning_rate=_or(self.learning_rate, rate),
            scope=_or(self.scope, default.scope),
        )


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


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
