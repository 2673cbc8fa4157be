"""Check values that a caller gave.

Every message holds the name of the value, what is allowed, and what was received.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, TypeGuard, TypeVar

import numpy as np

from mpn.errors import InputError, MpnError

T = TypeVar("T")


def is_int(value: object) -> TypeGuard[int]:
    """Return whether ``value`` is an int and no bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[int | float]:
    """Return whether ``value`` is a finite int or float and no bool."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an int that is too large for a float
        return False


def repeated(names: Iterable[str]) -> list[str]:
    """Return the names that are more than once in a list, in its order."""
    return [name for name, count in Counter(names).items() if count > 1]


def check_int(
    name: str,
    value: Any,
    *,
    least: int | None = None,
    most: int | None = None,
    kind: str = "a whole number",
    error: type[MpnError] = InputError,
) -> int:
    """Return ``value`` if it is an int within bounds.

    Args:
        name: First words of the message, for example ``"option steps"``.
        value: An int or a NumPy integer.
        least: Smallest allowed value.
        most: Largest allowed value.
        kind: Noun of the message, for example ``"a number of pixels"``.
        error: Class of the exception.

    Returns:
        An int.

    Raises:
        InputError: If it is of another type or out of bounds; ``error`` replaces the class.
    """
    is_whole = is_int(value) or isinstance(value, np.integer)
    if is_whole and (least is None or value >= least) and (most is None or value <= most):
        return int(value)
    raise error(f"{name} must be {kind}{_bounds(least, most)}, got {value!r}")


def check_number(
    name: str,
    value: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    kind: str = "a finite number",
    error: type[MpnError] = InputError,
) -> float:
    """Return ``value`` as a float if it is a finite number within bounds.

    Args:
        name: First words of the message, for example ``"option threshold"``.
        value: An int, a float or a NumPy number.
        least: Smallest allowed value.
        above: Lower bound that is not allowed itself; not together with ``least``.
        most: Largest allowed value.
        below: Upper bound that is not allowed itself; not together with ``most``.
        kind: Noun of the message, for example ``"a share"``.
        error: Class of the exception.

    Returns:
        A float.

    Raises:
        InputError: If it is of another type or out of bounds; ``error`` replaces the class.
    """
    number = value.item() if isinstance(value, np.integer | np.floating) else value
    if (
        is_number(number)
        and (least is None or number >= least)
        and (above is None or number > above)
        and (most is None or number <= most)
        and (below is None or number < below)
    ):
        return float(number)
    raise error(f"{name} must be {kind}{_bounds(least, most, above, below)}, got {value!r}")


def check_bool(name: str, value: Any, *, error: type[MpnError] = InputError) -> bool:
    """Return ``value`` if it is a bool.

    Raises:
        InputError: If it is of another type; ``error`` replaces the class.
    """
    if isinstance(value, bool):
        return value
    raise error(f"{name} must be true or false, got {value!r}")


def check_choice(
    name: str, value: Any, choices: Sequence[T], *, error: type[MpnError] = InputError
) -> T:
    """Return ``value`` if it is one of ``choices``.

    Raises:
        InputError: If it is none of them; ``error`` replaces the class.
    """
    for choice in choices:
        if type(value) is type(choice) and value == choice:
            return choice
    raise error(f"{name} must be one of {', '.join(map(str, choices))}, got {value!r}")


def _bounds(
    least: float | None,
    most: float | None,
    above: float | None = None,
    below: float | None = None,
) -> str:
    """Return the bounds as the end of a noun phrase."""
    if least is not None and most is not None:
        return f" of {least}..{most}"
    parts = [
        f"{words} {bound}"
        for words, bound in (
            ("of at least", least),
            ("above", above),
            ("of at most" if above is None else "at most", most),
            ("below", below),
        )
        if bound is not None
    ]
    return f" {' and '.join(parts)}" if parts else ""
