from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mpn.errors import InputError
from mpn.export.options import (
    ExportOptions,
    frame_size_hw_from_text,
    options_from_values,
    roles_from_text,
    runtime_defaults_from_texts,
)


def test_the_defaults_are_the_contract() -> None:
    options = ExportOptions()
    assert options.precision == "fp32"
    assert options.frame_size_hw == (480, 854)
    assert options.roi_size == 513
    assert options.max_objects == 8
    assert options.verify
    assert (options.flow_preset, options.flow_scale) == ("ultrafast", 1.0)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"precision": "int8"}, "unknown precision 'int8': the precisions are fp32, fp16"),
        ({"frame_size_hw": (63, 854)}, "854x63 is too small: .* at least 64.* halves"),
        ({"frame_size_hw": (480, 0)}, "0x480 is too small"),
        ({"frame_size_hw": (480, 9000)}, "9000x480 is too large"),
        ({"roi_size": 512}, r"16 n \+ 1 .* got 512"),
        ({"roi_size": 49}, "at least 65 .* got 49"),
        ({"max_objects": 0}, "max_objects must be at least 1, got 0"),
        ({"max_objects": 255}, "max_objects must be at most 254, got 255"),
        ({"roles": ()}, "no role is given"),
        ({"verify": False, "parity_images": Path("x")}, "leave out either"),
        ({"flow_preset": "slow"}, "unknown flow preset 'slow'"),
        ({"flow_scale": 0.0}, "flow scale must be over 0 and at most 1, got 0.0"),
        ({"flow_scale": float("nan")}, "flow scale must be"),
        ({"name": "a\nb"}, "the name must be printable"),
        ({"name": "a" * 81}, "at most 80"),
    ],
)
def test_values_that_cannot_be_used_are_one_line(values: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says) as info:
        ExportOptions(**values)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("text", "size_hw"),
    [("854x480", (480, 854)), (" 1920 X 1080 ", (1080, 1920)), ("64×64", (64, 64))],
)
def test_a_frame_size_is_width_by_height(text: str, size_hw: tuple[int, int]) -> None:
    assert frame_size_hw_from_text(text) == size_hw
    options = options_from_values(frame_size=text, features_size="97x65")
    assert options.frame_size_hw == size_hw
    assert options.features_size_hw == (65, 97)


@pytest.mark.parametrize("text", ["854", "", "x", "854x", "-1x480", "8.5x4", "854x480x3", "ax480"])
def test_invalid_frame_size_raises(text: str) -> None:
    with pytest.raises(InputError, match=f"WIDTHxHEIGHT such as 854x480, got '{text}'"):
        frame_size_hw_from_text(text)


def test_roles_come_as_a_list() -> None:
    assert roles_from_text("osvos, propagation") == ("osvos", "propagation")
    with pytest.raises(InputError, match="unknown role 'segmentation': the roles are flow"):
        roles_from_text("flow,segmentation")
    with pytest.raises(InputError, match="'flow' is given twice"):
        roles_from_text("flow,flow")


def test_runtime_defaults_are_json_values_or_text() -> None:
    texts = ["a=1", "b=0.5", "c=true", "d=null", "e=fast", 'f="7"', "g=x=y", "h=[1]", "i="]
    assert runtime_defaults_from_texts(texts) == {
        "a": 1,
        "b": 0.5,
        "c": True,
        "d": None,
        "e": "fast",
        "f": "7",
        "g": "x=y",
        "h": "[1]",
        "i": "",
    }


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (["a"], "must be NAME=VALUE .* got 'a'"),
        (["=1"], "must be NAME=VALUE"),
        (["a b=1"], "must be NAME=VALUE"),
        (["a=1", "a=2"], "'a' is given twice"),
        (["a=NaN"], "must be finite"),
        (["a=-Infinity"], "must be finite"),
    ],
)
def test_runtime_defaults_that_cannot_be_used_are_refused(texts: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        runtime_defaults_from_texts(texts)
