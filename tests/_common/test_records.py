from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest

from mpn._common.records import (
    Scalar,
    check_complete,
    json_from_record,
    json_from_text,
    read_json,
    record_from_json,
)
from mpn.errors import InputError, ManifestError


@dataclass(frozen=True)
class Leaf:
    size: int
    kind: Literal["a", "b"] = "a"
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ManifestError("size must be at least 0")


@dataclass(frozen=True)
class Branch:
    leaves: Mapping[str, Mapping[Literal["left", "right"], Leaf]]
    pair: tuple[int, int] = (1, 2)
    path: tuple[str, ...] = ()
    facts: Mapping[str, Scalar] | None = None


def tree() -> dict[str, Any]:
    return {
        "leaves": {
            "oak": {"left": {"size": 1, "kind": "b", "scale": 2}, "right": {"size": 2}},
            "elm": {"right": {"size": 3}},
        }
    }


def read(value: Any) -> Branch:
    return record_from_json(value, Branch, InputError)


def test_record_of_json_has_its_values() -> None:
    branch = read(tree() | {"note": "unknown fields are ignored"})
    assert branch.leaves["oak"]["left"] == Leaf(1, "b", 2.0)
    assert isinstance(branch.leaves["oak"]["left"].scale, float)
    assert branch.leaves["elm"] == {"right": Leaf(3)}


def test_json_of_record_loads_equal() -> None:
    branch = read(tree() | {"facts": {"x": None, "y": 1.5, "z": True}})
    written = json_from_record(branch)
    assert list(written) == ["leaves", "pair", "path", "facts"]
    assert written["pair"] == [1, 2]
    assert read(written) == branch


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"leaves": []}, "field 'leaves' must be a JSON object, got []"),
        ({"pair": [1]}, "field 'pair' must be a list of 2, got [1]"),
        ({"pair": [1, "2"]}, "field 'pair[1]' must be an integer, got '2'"),
        ({"path": ["a", None]}, "field 'path[1]' must be a string, got None"),
        (
            {"leaves": {"oak": {"left": {"size": 1}}, "elm": {"right": {"size": 1.5}}}},
            "field 'leaves.elm.right.size' must be an integer, got 1.5",
        ),
        (
            {"leaves": {"oak": {}, "elm": {"left": {"size": 1}, "right": {}}}},
            "field 'leaves.elm.right.size' is missing",
        ),
        (
            {"leaves": {"elm": {"right": {"size": 1, "kind": "c"}}}},
            "field 'leaves.elm.right.kind' must be one of 'a', 'b', got 'c'",
        ),
        (
            {"leaves": {"oak": {}, "elm": {"right": {"size": 1}, "top": {"size": 1}}}},
            "field 'leaves.elm.top' is unknown: use one of 'left', 'right'",
        ),
        (
            {"leaves": {"elm": {"right": {"size": 1, "scale": 10**400}}}},
            "field 'leaves.elm.right.scale': number out of range, got 1000",
        ),
        (
            {"facts": {"x": []}},
            "field 'facts.x' must be true or false or an integer or a number or a string or null",
        ),
        ({"leaves": {"e.l[m] - at `$": {"left": 3}}}, "field 'leaves.e.l[m] - at `$.left' must be"),
        ({"path": ["\udcff"]}, None),
        ({"leaves": {"elm": {"\udcff": {}}}}, "invalid JSON ('\\udcff' is no Unicode text)"),
        ({"leaves": {"a\n" * 500: {"left": 3}}}, "field 'leaves.a\\na\\n"),
        (
            {"leaves": {"elm": {"right": {"size": 1, "kind": "\n" * 500}}}},
            "field 'leaves.elm.right.kind' must be one of 'a', 'b', got '\\n",
        ),
    ],
)
def test_wrong_value_is_named_by_its_path(change: dict[str, Any], message: str | None) -> None:
    read(tree())  # control
    if message is None:  # a string that is no Unicode text is a string
        read(tree() | change)
        return
    with pytest.raises(InputError) as caught:
        read(tree() | change)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("wrong", [0, 1234, 1999])
def test_wrong_entry_of_many_is_found_by_halves(
    wrong: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One conversion for each entry takes minutes for the entries of a large file."""
    conversions = []
    convert = msgspec.convert
    monkeypatch.setattr(msgspec, "convert", lambda *a: conversions.append(1) or convert(*a))
    facts: dict[str, Any] = {f"k{number}": number for number in range(2000)}
    with pytest.raises(InputError, match=f"^field 'facts.k{wrong}' must be true or false"):
        read(tree() | {"facts": {**facts, f"k{wrong}": [], "k1999": []}})
    assert len(conversions) < 20


def test_value_that_is_no_object_is_named_the_file() -> None:
    with pytest.raises(InputError, match=r"^the file must be a JSON object, got \[\]$"):
        read([])


def test_error_of_a_record_is_raised_unchanged() -> None:
    with pytest.raises(ManifestError, match=r"^size must be at least 0$"):
        read({"leaves": {"elm": {"left": {"size": -1}}}})


def test_field_left_out_is_named_though_it_has_a_default() -> None:
    value = {"leaves": {"elm": {"left": {"size": 1, "kind": "a"}}}, "pair": [1, 2], "path": []}
    written = json_from_record(read(value))
    check_complete(written, written, InputError)
    with pytest.raises(InputError, match=r"^field 'leaves\.elm\.left\.scale' is missing$"):
        check_complete(value, written, InputError)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"invalid JSON \(Expecting value at line 1 column 1\)"),
        ("[1,\n 2", r"invalid JSON \(Expecting .* at line 2 column 3\)"),
        ("[-Infinity]", "-Infinity is not a JSON number"),
        ("[1e999]", "1e999 is beyond the largest number"),
        ("[" + "1" * 5000 + "]", "invalid JSON"),
        ("[" * 200_000, "invalid JSON"),
        ('[{"a": 1, "b": 2, "a": 3}]', "'a' stands twice"),
    ],
)
def test_text_that_is_no_strict_json_is_one_line(text: str, message: str) -> None:
    assert json_from_text('[1.5, "\\udcff"]', InputError) == [1.5, "\udcff"]  # control
    with pytest.raises(InputError, match=message) as caught:
        json_from_text(text, InputError)
    assert "\n" not in str(caught.value)


def test_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^cannot be read: No such file or directory$"):
        read_json(tmp_path / "absent", InputError)
    (tmp_path / "latin").write_bytes(b'"\xe4"')
    with pytest.raises(InputError, match=r"^invalid JSON \(no UTF-8 text\)$"):
        read_json(tmp_path / "latin", InputError)
