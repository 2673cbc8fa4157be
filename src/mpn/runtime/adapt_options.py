"""The options of fine-tuning on the given frame: what, how long, and with which rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from mpn._common.validation import check_choice, check_int, check_number, is_int
from mpn.engines.adapt_entry import AdaptOptimizer as AdaptOptimizer
from mpn.engines.adapt_entry import AdaptScope as AdaptScope
from mpn.engines.spec import ROI_SIZE_STEP, Role
from mpn.errors import InputError

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
