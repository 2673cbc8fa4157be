from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mpn.errors import InputError
from mpn.runtime.options import DEFAULT_RECIPES, FINETUNABLE_ROLES, SGD_RATES, FinetuneOptions


def test_default_options_finetune_every_capable_role() -> None:
    options = FinetuneOptions()
    assert options.roles == FINETUNABLE_ROLES
    for role in FINETUNABLE_ROLES:
        assert options.recipe(role) == DEFAULT_RECIPES[role]
    assert (options.seconds, options.seed, options.cache_dir) == (None, 0, None)


def test_given_options_apply_to_all_roles() -> None:
    options = FinetuneOptions(steps=7, size=161, scope="head", learning_rate=0.5, batch=3)
    for role, size_px in (("propagation", 161), ("osvos", 160)):
        recipe = options.recipe(role)  # type: ignore[arg-type]
        assert (recipe.steps, recipe.size_px, recipe.scope) == (7, size_px, "head")
        assert (recipe.learning_rate, recipe.batch) == (0.5, 3)


def test_default_sizes_suit_their_networks() -> None:
    assert (DEFAULT_RECIPES["propagation"].size_px - 1) % 16 == 0
    assert DEFAULT_RECIPES["osvos"].size_px % 16 == 0


@pytest.mark.parametrize("role", FINETUNABLE_ROLES)
def test_the_default_rate_suits_the_optimiser(role: Any) -> None:
    assert (
        FinetuneOptions().recipe(role, "adamw").learning_rate
        == FinetuneOptions().recipe(role).learning_rate
    )
    assert FinetuneOptions().recipe(role, "sgd").learning_rate == SGD_RATES[role]
    given = FinetuneOptions(learning_rate=0.5)
    assert given.recipe(role, "sgd").learning_rate == given.recipe(role).learning_rate == 0.5


def test_flow_has_no_recipe() -> None:
    with pytest.raises(InputError, match="the flow network cannot be fine-tuned"):
        FinetuneOptions().recipe("flow")


@pytest.mark.parametrize(
    "options",
    [
        {"roles": ()},
        {"roles": ("flow",)},
        {"roles": ["osvos"]},
        {"roles": ("osvos", "osvos")},
        {"steps": 0},
        {"steps": 1.0},
        {"steps": True},
        {"batch": 0},
        {"size": 160},
        {"size": 49},
        {"size": 161.0},
        {"scope": "trunk"},
        {"seconds": 0},
        {"seconds": float("inf")},
        {"seconds": "20"},
        {"learning_rate": -1e-3},
        {"learning_rate": float("nan")},
        {"seed": -1},
        {"seed": 2**63},
        {"seed": 0.5},
        {"cache_dir": "cache"},
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_name(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(InputError, match=f"option finetune.{name} "):
        FinetuneOptions(**options)


def test_the_largest_values_are_taken() -> None:
    options = FinetuneOptions(seed=2**63 - 1, cache_dir=Path("cache"), seconds=0.5, size=65)
    assert options.recipe("propagation").size_px == 65
