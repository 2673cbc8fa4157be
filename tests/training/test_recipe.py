from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from mpn.errors import TrainingError
from mpn.training.flow.recipe import FlowRecipe
from mpn.training.osvos.recipe import OsvosRecipe
from mpn.training.propagation.options import PropagationTrainingOptions
from mpn.training.recipe import PropagationRecipe
from mpn.training.recipe_file import (
    load_table,
    overridden,
    parsed_settings,
    recipe_from_table,
    shipped_recipes,
    toml_from_recipe,
)

KINDS = {"propagation": PropagationRecipe, "osvos": OsvosRecipe, "flow": FlowRecipe}
DATA = {"data.davis_root": "d", "data.stills": ["s"]}
SHIPPED = [(role, name) for role in KINDS for name in shipped_recipes(role)]


@dataclass(frozen=True)
class _Inner:
    names: tuple[str, ...] = ()
    pair: tuple[int, int] = (1, 2)


@dataclass(frozen=True)
class _Outer:
    count: int
    rate: float = 1.0
    on: bool = False
    kind: Literal["a", "b"] = "a"
    folder: Path | None = None
    inner: _Inner = field(default_factory=_Inner)


FULL = {
    "count": 3,
    "rate": 1e-3,
    "on": True,
    "kind": "b",
    "folder": 'odd "name"\\x',
    "inner": {"names": ["x", "y"], "pair": [3, 4]},
}


def test_a_table_becomes_the_dataclass_and_back(tmp_path: Path) -> None:
    built = recipe_from_table(_Outer, FULL)
    inner = _Inner(("x", "y"), (3, 4))
    assert built == _Outer(3, 1e-3, True, "b", Path('odd "name"\\x'), inner)
    path = tmp_path / "r.toml"
    path.write_text(toml_from_recipe(built, "flow"))
    assert recipe_from_table(_Outer, load_table("flow", path=path)) == built
    assert recipe_from_table(_Outer, {"count": 1}) == _Outer(1)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"count": 1, "rat": 2}, "unknown option 'rat' in the recipe: did you mean 'rate'"),
        ({"count": 1, "inner": {"zzz": 1}}, r"unknown option 'inner\.zzz'.*there are names, pair"),
        ({}, "the recipe lacks 'count'"),
        ({"count": 1.5}, r"'count' must be a whole number, got 1\.5"),
        ({"count": True}, "'count' must be a whole number, got True"),
        ({"count": 1, "rate": "fast"}, "'rate' must be a number, got 'fast'"),
        ({"count": 1, "rate": math.nan}, "'rate' must be a finite number, got nan"),
        ({"count": 1, "on": 1}, "'on' must be true or false, got 1"),
        ({"count": 1, "kind": "c"}, "'kind' must be one of 'a', 'b', got 'c'"),
        ({"count": 1, "folder": 3}, "'folder' must be a path, got 3"),
        ({"count": 1, "inner": 3}, "'inner' must be a table of options, got 3"),
        ({"count": 1, "inner": {"names": "x"}}, r"'inner\.names' must be a list"),
        ({"count": 1, "inner": {"pair": [1]}}, r"'inner\.pair' must have 2 values"),
    ],
)
def test_keys_and_types_are_strict(table: dict[str, object], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        recipe_from_table(_Outer, table)


def test_values_that_an_option_refuses_name_their_table() -> None:
    table = overridden({}, DATA | {"training.network.width": 9.0})
    with pytest.raises(
        TrainingError,
        match=r"training\.network: width must be a finite number above 0 and at most 4",
    ):
        recipe_from_table(PropagationRecipe, table)


@pytest.mark.parametrize(
    ("recipe", "name", "value", "message"),
    [
        (PropagationRecipe, "learning_rate", math.nan, "must be a finite number, got nan"),
        (PropagationRecipe, "weight_decay", math.inf, "must be a finite number, got inf"),
        (PropagationRecipe, "seed", 1 << 70, r"must be a whole number of 0\.\.9223372036854775807"),
        (FlowRecipe, "learning_rate", -1.0, "must be a finite number of at least 0"),
        (FlowRecipe, "seed", -1, "must be a whole number of 0"),
        (OsvosRecipe, "salient_rate", math.nan, "must be a finite number, got nan"),
        (OsvosRecipe, "davis_rate", -1e-3, "must be a finite number of at least 0"),
    ],
)
def test_rates_and_seeds_that_cannot_be_used_are_one_line(
    recipe: type, name: str, value: float, message: str
) -> None:
    with pytest.raises(TrainingError, match=rf"{name}'? {message}") as caught:
        recipe_from_table(recipe, overridden({}, DATA | {f"training.{name}": value}))
    assert "\n" not in str(caught.value)


def test_later_values_win_and_none_changes_nothing() -> None:
    table = {"a": {"b": 1, "c": 2}}
    assert overridden(table, {"a.b": 3, "a.c": None, "d.e": 4}) == {
        "a": {"b": 3, "c": 2},
        "d": {"e": 4},
    }
    assert table == {"a": {"b": 1, "c": 2}}
    with pytest.raises(TrainingError, match="'b' is no table"):
        overridden(table, {"a.b.c": 1})


def test_settings_are_toml_values_or_texts() -> None:
    assert parsed_settings(["a.b=3", "c=[1, 2]", "d=true", "e=words", 'f="x"', "g = 1e-3"]) == {
        "a.b": 3,
        "c": [1, 2],
        "d": True,
        "e": "words",
        "f": "x",
        "g": 1e-3,
    }
    with pytest.raises(TrainingError, match="'steps' sets nothing: write KEY=VALUE"):
        parsed_settings(["steps"])


@pytest.mark.parametrize(("role", "name"), SHIPPED)
def test_shipped_recipes_are_strict_and_complete(role: str, name: str) -> None:
    changes = DATA | ({"features": "f.pth"} if name == "target" else {})
    built = recipe_from_table(KINDS[role], overridden(load_table(role, name=name), changes))
    text = toml_from_recipe(built, role)
    assert 'davis_root = "d"' in text
    assert "learning_rate" in text or "rate" in text


def test_every_role_ships_lite_and_paper_size() -> None:
    for role in KINDS:
        assert {"lite", "paper"} <= set(shipped_recipes(role))


def test_files_that_are_no_recipe_of_the_role_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    with pytest.raises(TrainingError, match="cannot be read as a recipe"):
        load_table("flow", path=path)
    path.write_text("role = ")
    with pytest.raises(TrainingError, match="is not valid TOML"):
        load_table("flow", path=path)
    path.write_text('role = "osvos"\n')
    with pytest.raises(TrainingError, match="is for 'osvos', this command trains flow"):
        load_table("flow", path=path)
    with pytest.raises(TrainingError, match="there is no osvos recipe 'huge': there are lite"):
        load_table("osvos", name="huge")
    with pytest.raises(TrainingError, match="both the shipped recipe 'lite' and the file"):
        load_table("osvos", name="lite", path=path)


def test_the_lite_recipe_spells_out_the_shipped_network() -> None:
    table = overridden(load_table("propagation", name="lite"), DATA)
    recipe = recipe_from_table(PropagationRecipe, table)
    assert recipe.training.network == PropagationTrainingOptions().network
