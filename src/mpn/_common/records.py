"""Read JSON into typed records, with one-line errors that name the field.

A record is a dataclass; msgspec checks a JSON value against its annotations. Unknown fields are
ignored, so that a note added by hand does no harm.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import msgspec

from mpn._common.files import read_plain_file
from mpn._common.validation import repeated
from mpn.errors import MpnError

_Record = TypeVar("_Record")
_Path = tuple[str | int, ...]

Scalar = bool | int | float | str | None
"""A value of a flat JSON object."""

_MOST_JSON_BYTES = 64 << 20
"""A manifest has 100 kB, the report of a long run some MB."""

_ANY_KEY = "..."
"""In a path of msgspec: a value of a mapping, under a key that the path does not name."""
_SEGMENT = re.compile(r"\.(?P<field>\w+)|\[(?P<index>\d+)\]|\[\.\.\.\]")
_WORDS = {
    "object": "a JSON object",
    "array": "a list",
    "int": "an integer",
    "float": "a number",
    "str": "a string",
    "bool": "true or false",
    "null": "null",
}


class FieldError(ValueError):
    """Base of the error of ``__post_init__`` of a record about one of its fields.

    :func:`record_from_json` raises it again with the path of the field in the document.

    Args:
        field: Path of the field in its record, for example ``"graphs.all"``.
        problem: The rest of the sentence, for example ``"must be above 0, got -7"``.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"field '{field}' {problem}")
        self.field, self.problem = field, problem


def read_json(path: Path, error: type[MpnError], *, most_bytes: int = _MOST_JSON_BYTES) -> Any:
    """Read a file of strict JSON, see :func:`json_from_text`.

    Args:
        path: The file.
        error: Class of the error to raise.
        most_bytes: Largest size of the file.

    Raises:
        error: If the file cannot be read or holds no JSON; one line, to stand after the name of
            the file and a colon.
    """
    try:
        return json_from_text(read_plain_file(path, most_bytes).decode(), error)
    except OSError as cause:
        raise error(f"cannot be read: {cause.strerror or cause}") from cause
    except UnicodeDecodeError as cause:
        raise error("invalid JSON (no UTF-8 text)") from cause


def json_from_text(text: str, error: type[MpnError]) -> Any:
    """Parse strict JSON: finite numbers, and each name once in an object.

    json and not msgspec parses the text: a command line in a manifest may hold file names that are
    no UTF-8, which msgspec refuses.

    Args:
        text: The whole document.
        error: Class of the error to raise.

    Raises:
        error: If the text is no JSON; one line with the reason and the position.
    """
    try:
        return json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            object_pairs_hook=_without_duplicates,
        )
    except json.JSONDecodeError as cause:
        raise error(
            f"invalid JSON ({cause.msg} at line {cause.lineno} column {cause.colno})"
        ) from cause
    except (RecursionError, ValueError) as cause:
        # ValueError also for an integer of more digits than Python converts.
        raise error(f"invalid JSON ({cause})") from cause


def record_from_json(value: Any, kind: type[_Record], error: type[MpnError]) -> _Record:
    """Convert a JSON value to a record.

    Args:
        value: Result of the JSON parser.
        kind: Dataclass of the record.
        error: Class of the error to raise.

    Raises:
        error: If a field is missing or of another type; one line that names the field by its path,
            for example ``field 'roles.flow.inputs[0].shape[1]' must be an integer, got 2.5``.
        MpnError: If ``__post_init__`` of a record raises it.
    """
    try:
        return msgspec.convert(value, kind)
    except UnicodeEncodeError as cause:
        raise error(f"invalid JSON ({cause.object[:80]!r} is no Unicode text)") from cause
    except msgspec.ValidationError as cause:
        raise error(_explained(cause, value, kind)) from cause


def json_from_record(record: Any) -> dict[str, Any]:
    """Convert a record to a dict of JSON types, in the order of its fields.

    A record in it that has a method ``as_json`` is converted by that.
    """
    # msgspec.to_builtins leaves out defaults of records that msgspec read, and keeps tuples.
    return {field.name: _json(getattr(record, field.name)) for field in fields(record)}


def check_complete(value: Any, written: Any, error: type[MpnError], path: _Path = ()) -> None:
    """Check that a JSON value has every field that this package writes.

    :func:`record_from_json` fills fields that are left out with their defaults.

    Args:
        value: The JSON value that was read.
        written: The JSON value that its record is written as.
        error: Class of the error to raise.
        path: Path of ``value`` in its document.

    Raises:
        error: If a field is missing; one line that names it by its path.
    """
    if isinstance(written, dict):
        for name, part in written.items():
            if name not in value:
                raise error(f"{_named((*path, name))} is missing")
            check_complete(value[name], part, error, (*path, name))
    elif isinstance(written, list):
        for index, (item, part) in enumerate(zip(value, written, strict=True)):
            check_complete(item, part, error, (*path, index))


def schema_version_of(value: Any, error: type[MpnError]) -> int:
    """Return the ``schema_version`` of a JSON object without reading other fields.

    Another schema may have other fields, and an error about one of them would not help.

    Raises:
        error: If ``value`` is no JSON object, or has no such integer.
    """
    return record_from_json(value, _Versioned, error).schema_version


@dataclass(frozen=True)
class _Versioned:
    schema_version: int


def _json(value: Any) -> Any:
    if isinstance(value, str | int | float):
        return value
    if is_dataclass(value):
        return value.as_json() if hasattr(value, "as_json") else json_from_record(value)
    if isinstance(value, Mapping):
        return {key: _json(nested) for key, nested in value.items()}
    if isinstance(value, list | tuple):
        return [_json(item) for item in value]
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is beyond the largest number")
    return number


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        twice = repeated(name for name, _ in pairs)[0]
        raise ValueError(f"the name {twice[:80]!r} stands twice in an object")
    return value


def _explained(cause: msgspec.ValidationError, value: Any, kind: Any) -> str:
    """Rewrite a message of msgspec: the whole path, the value, and the choices."""
    message = str(cause)
    problem, _, place = message.rpartition(" - at `") if " - at `" in message else (message, "", "")
    of_key = place.startswith("key` in `")
    path = _with_keys(tuple(_segments(place)), message, value, kind)
    if isinstance(cause.__cause__, FieldError):
        in_record = cause.__cause__
        return f"{_named((*path, *in_record.field.split('.')))} {in_record.problem}"
    if of_key:
        choices = _choices(_type_at(kind, (*path, _ANY_KEY), key=True))
        unknown = next(key for key in _value_at(value, path) if repr(key) not in choices)
        return f"{_named((*path, unknown))} is unknown: use one of {', '.join(choices)}"
    missing = re.fullmatch(r"Object missing required field `(\w+)`", problem)
    if missing:
        return f"{_named((*path, missing[1]))} is missing"
    found = reprlib.repr(_value_at(value, path))
    expected = re.match(r"Expected `([^`]+)`(?: of length (\d+))?", problem)
    if expected:
        kinds = " or ".join(_WORDS.get(name, name) for name in expected[1].split(" | "))
        length = f" of {expected[2]}" if expected[2] else ""
        return f"{_named(path)} must be {kinds}{length}, got {found}"
    choices = _choices(_type_at(kind, path))
    if choices:
        return f"{_named(path)} must be one of {', '.join(choices)}, got {found}"
    return f"{_named(path)}: {problem[:1].lower()}{problem[1:]}, got {found}"


def _segments(place: str) -> Iterator[str | int]:
    for match in _SEGMENT.finditer(place):
        yield match["field"] or (int(match["index"]) if match["index"] else _ANY_KEY)


def _with_keys(path: _Path, message: str, value: Any, kind: Any) -> _Path:
    """Replace each ``[...]`` of a path by the key of the entry that is wrong.

    msgspec names no keys of mappings. With the other entries taken out, the wrong one raises the
    same message.
    """
    for depth, segment in enumerate(path):
        if segment == _ANY_KEY:
            above = path[:depth]
            entries = list(_value_at(value, above).items())
            while len(entries) > 1:  # halves: each attempt converts the document
                half = entries[: len(entries) // 2]
                is_in_half = _message(_with_value(value, above, dict(half)), kind) == message
                entries = half if is_in_half else entries[len(half) :]
            path = (*above, entries[0][0], *path[depth + 1 :])
    return path


def _message(value: Any, kind: Any) -> str | None:
    try:
        msgspec.convert(value, kind)
    except (msgspec.ValidationError, ValueError, MpnError) as error:
        return str(error)
    return None


def _value_at(value: Any, path: _Path) -> Any:
    for segment in path:
        value = value[segment]
    return value


def _with_value(value: Any, path: _Path, new: Any) -> Any:
    """Copy ``value`` with another value at ``path``."""
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = _with_value(value[path[0]], path[1:], new)
    return copy


def _type_at(kind: Any, path: _Path, *, key: bool = False) -> Any:
    """Return the type of a value in a record, or of the keys of its mapping."""
    import msgspec.inspect as types

    found: Any = types.type_info(kind)
    for depth, segment in enumerate(path):
        options = found.types if isinstance(found, types.UnionType) else (found,)
        for option in options:
            if isinstance(option, types.DataclassType):
                found = next(f.type for f in option.fields if f.encode_name == segment)
            elif isinstance(option, types.DictType):
                is_last = depth == len(path) - 1
                found = option.key_type if key and is_last else option.value_type
            elif isinstance(option, types.VarTupleType):
                found = option.item_type
            elif isinstance(option, types.TupleType):
                found = option.item_types[int(segment)]
    return found


def _choices(kind: Any) -> tuple[str, ...]:
    return tuple(map(repr, getattr(kind, "values", ())))


def _named(path: _Path) -> str:
    if not path:
        return "the file"
    # A key of a mapping may be any text, and the error is one short line.
    parts = (f"[{part}]" if isinstance(part, int) else f".{repr(part)[1:-1][:80]}" for part in path)
    return f"field '{''.join(parts).removeprefix('.')}'"
