"""Typed reads of a JSON object, whose errors name the field."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from typing import Any, NoReturn, TypeVar

from mpn._common.validation import is_int, is_number
from mpn.errors import ManifestError

_Choice = TypeVar("_Choice", bound=str)

Scalar = bool | int | float | str | None
"""What a flat JSON object may hold as a value."""


def json_from_text(text: str) -> Any:
    """Parse strict JSON: NaN and Infinity, which Python would accept, are refused.

    Raises:
        ManifestError: If the text is no JSON, with its line and column.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise ManifestError(
            f"invalid JSON ({error.msg} at line {error.lineno} column {error.colno})"
        ) from error
    except (RecursionError, ValueError) as error:
        # ValueError: an integer of more digits than Python is willing to convert.
        raise ManifestError(f"invalid JSON ({error})") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ManifestError(f"invalid JSON ({name} is not a JSON number)")


class Fields:
    """A JSON object that is read field by field.

    Every reader raises ManifestError naming the field by its dotted path, for example
    ``field 'roles.flow.opset' must be an integer, got "18"``. Fields that nobody reads are ignored,
    so that a note added by hand does no harm.

    Args:
        value: What the JSON parser returned; anything but an object is an error.
        path: Dotted path of the object; empty for the outermost.
    """

    def __init__(self, value: Any, path: str = "") -> None:
        if not isinstance(value, dict):
            where = f"field '{path}'" if path else "the file"
            raise ManifestError(f"{where} must be a JSON object, got {_shown(value)}")
        self._value: dict[str, Any] = value
        self._path = path

    def __contains__(self, name: str) -> bool:
        return name in self._value

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all fields, in the order of the file."""
        return tuple(self._value)

    def string(self, name: str) -> str:
        """A string, which may be empty."""
        value = self._get(name)
        if not isinstance(value, str):
            self._refuse(name, "a string", value)
        return value

    def boolean(self, name: str) -> bool:
        """True or false."""
        value = self._get(name)
        if not isinstance(value, bool):
            self._refuse(name, "true or false", value)
        return value

    def integer(self, name: str) -> int:
        """An integer; true and false are none."""
        value = self._get(name)
        if not is_int(value):
            self._refuse(name, "an integer", value)
        return value

    def number(self, name: str) -> float:
        """A finite number."""
        value = self._get(name)
        if not is_number(value):
            self._refuse(name, "a number", value)
        return float(value)

    def choice(self, name: str, options: tuple[_Choice, ...]) -> _Choice:
        """One of the strings in ``options``."""
        value = self._get(name)
        if value not in options:
            self._refuse(name, "one of " + ", ".join(map(repr, options)), value)
        return options[options.index(value)]

    def choices(self, name: str, options: tuple[_Choice, ...]) -> tuple[_Choice, ...]:
        """A list of strings in ``options``, each at most once."""
        values = self.strings(name)
        if any(value not in options for value in values) or len(set(values)) != len(values):
            known = ", ".join(map(repr, options))
            self._refuse(name, f"a list of some of {known}, each once", list(values))
        return tuple(options[options.index(value)] for value in values)

    def strings(self, name: str) -> tuple[str, ...]:
        """A list of strings."""
        value = self._get(name)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self._refuse(name, "a list of strings", value)
        return tuple(value)

    def triple(self, name: str) -> tuple[float, float, float]:
        """Three finite numbers."""
        value = self._get(name)
        if not isinstance(value, list) or len(value) != 3 or not all(map(is_number, value)):
            self._refuse(name, "a list of 3 numbers", value)
        return (float(value[0]), float(value[1]), float(value[2]))

    def size_hw(self, name: str) -> tuple[int, int]:
        """(height, width) as two integers."""
        value = self._get(name)
        if not isinstance(value, list) or len(value) != 2 or not all(map(is_int, value)):
            self._refuse(name, "[height, width] as integers", value)
        return (value[0], value[1])

    def shape(self, name: str) -> tuple[int | str, ...]:
        """Sizes as integers and names of dynamic axes as strings."""
        value = self._get(name)
        if not isinstance(value, list) or not all(
            isinstance(size, str) or is_int(size) for size in value
        ):
            self._refuse(name, "a list of integers and axis names", value)
        return tuple(value)

    def scalars(self, name: str) -> Mapping[str, Scalar]:
        """An object whose values are strings, numbers, booleans or null."""
        nested = self.object(name)
        for key, value in nested._value.items():
            scalar = value is None or isinstance(value, bool | int | str)
            if not scalar and not is_number(value):
                nested._refuse(key, "a string, a finite number, true, false or null", value)
        return dict(nested._value)

    def object(self, name: str) -> Fields:
        """A nested object."""
        return Fields(self._get(name), self._path_of(name))

    def objects(self, name: str) -> tuple[Fields, ...]:
        """A list of objects."""
        value = self._get(name)
        if not isinstance(value, list):
            self._refuse(name, "a list of objects", value)
        path = self._path_of(name)
        return tuple(Fields(item, f"{path}[{index}]") for index, item in enumerate(value))

    def raw(self) -> Mapping[str, Any]:
        """The whole object, unchecked: for what is shown and never acted upon."""
        return dict(self._value)

    def _get(self, name: str) -> Any:
        if name not in self._value:
            raise ManifestError(f"field '{self._path_of(name)}' is missing")
        return self._value[name]

    def _path_of(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name

    def _refuse(self, name: str, expected: str, value: Any) -> NoReturn:
        raise ManifestError(
            f"field '{self._path_of(name)}' must be {expected}, got {_shown(value)}"
        )


def _shown(value: Any) -> str:
    """``value`` as short as an error line can carry."""
    return reprlib.repr(value)
