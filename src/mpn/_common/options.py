"""Common parts of option dataclasses: UNSET, a short repr, refusal of old names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from enum import Enum
from functools import wraps
from typing import Any, Final, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", bound=type)


class Unset(Enum):
    """Type of :data:`UNSET`. An enum keeps its identity when it is copied or pickled."""

    UNSET = "UNSET"

    def __repr__(self) -> str:
        return self.value


UNSET: Final = Unset.UNSET
"""Value of an option that was not given."""


class GivenRepr:
    """Mixin for a dataclass: its repr has only the fields that are not the default."""

    def __repr__(self) -> str:
        given = [
            f"{option.name}={getattr(self, option.name)!r}"
            for option in fields(self)  # type: ignore[arg-type]
            if getattr(self, option.name) != option.default
        ]
        return f"{type(self).__name__}({', '.join(given)})"


def refuse_old_arguments(
    renamed: Mapping[str, str],
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator that raises TypeError for an old keyword.

    Args:
        renamed: Old keyword -> what to write instead.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            for name in kwargs:
                if name in renamed:
                    raise TypeError(f"{name} is now {renamed[name]}")
            return function(*args, **kwargs)

        return checked

    return decorate


def refuse_old_fields(renamed: Mapping[str, str]) -> Callable[[C], C]:
    """Return a decorator that applies ``refuse_old_arguments`` to ``__init__``."""

    def decorate(cls: C) -> C:
        init: Any = cls.__init__  # type: ignore[misc]
        cls.__init__ = refuse_old_arguments(renamed)(init)  # type: ignore[misc]
        return cls

    return decorate
