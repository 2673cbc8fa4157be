"""Checks of values that a caller gave."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from mpn._common.validation import check_bool, check_choice, check_int, check_number, repeated
from mpn.errors import InputError, TrainingError


@pytest.mark.parametrize(
    ("value", "bounds", "message"),
    [
        (0, {"least": 1}, "x must be a whole number of at least 1, got 0"),
        (9, {"least": 1, "most": 8}, "x must be a whole number of 1..8, got 9"),
        (9, {"most": 8}, "x must be a whole number of at most 8, got 9"),
        (1.0, {}, "x must be a whole number, got 1.0"),
        (True, {}, "x must be a whole number, got True"),
        ("1", {"kind": "a number of frames"}, "x must be a number of frames, got '1'"),
    ],
)
def test_check_int_refuses(value: Any, bounds: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        check_int("x", value, **bounds)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("value", "bounds"), [(1, {"least": 1}), (8, {"most": 8}), (-3, {}), (np.int64(1), {})]
)
def test_check_int_returns_the_value(value: int, bounds: dict[str, Any]) -> None:
    assert check_int("x", value, **bounds) == value


@pytest.mark.parametrize(
    ("value", "bounds", "message"),
    [
        (-0.1, {"least": 0}, "x must be a finite number of at least 0, got -0.1"),
        (0, {"above": 0}, "x must be a finite number above 0, got 0"),
        (1.1, {"least": 0, "most": 1}, "x must be a finite number of 0..1, got 1.1"),
        (1, {"above": 0, "below": 1}, "x must be a finite number above 0 and below 1, got 1"),
        (5, {"above": 0, "most": 4}, "x must be a finite number above 0 and at most 4, got 5"),
        (5, {"least": 0, "below": 4}, "x must be a finite number of at least 0 and below 4, got 5"),
        (math.nan, {}, "x must be a finite number, got nan"),
        (math.inf, {"least": 0}, "x must be a finite number of at least 0, got inf"),
        (False, {"kind": "a share"}, "x must be a share, got False"),
        (None, {}, "x must be a finite number, got None"),
    ],
)
def test_check_number_refuses(value: Any, bounds: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        check_number("x", value, **bounds)
    assert str(caught.value) == message


def test_check_number_refuses_an_int_too_large_for_a_float() -> None:
    with pytest.raises(InputError, match="x must be a finite number, got 1000"):
        check_number("x", 10**400)


@pytest.mark.parametrize(
    ("value", "bounds"), [(0, {"least": 0}), (1, {"most": 1}), (0.5, {"above": 0, "below": 1})]
)
def test_check_number_returns_a_float(value: float, bounds: dict[str, Any]) -> None:
    checked = check_number("x", value, **bounds)
    assert (type(checked), checked) == (float, value)


def test_check_bool_refuses_other_types() -> None:
    assert check_bool("x", False) is False
    with pytest.raises(InputError, match=r"^x must be true or false, got 1$"):
        check_bool("x", 1)


def test_check_choice_refuses_other_values() -> None:
    assert check_choice("x", "b", ("a", "b")) == "b"
    for value in ("c", None, 1, True):
        with pytest.raises(InputError, match=r"^x must be one of a, b, got "):
            check_choice("x", value, ("a", "b"))
    with pytest.raises(InputError):
        check_choice("x", True, (0, 1))


def test_checks_raise_the_given_class() -> None:
    with pytest.raises(TrainingError):
        check_int("x", 0, least=1, error=TrainingError)
    with pytest.raises(TrainingError):
        check_number("x", -1, least=0, error=TrainingError)


def test_repeated_names_of_a_long_list_are_found() -> None:
    """A search that compares all pairs takes hours."""
    names = [str(number) for number in range(300_000)]
    assert repeated(names) == []
    assert repeated([*names, "7", "299999", "7"]) == ["7", "299999"]
