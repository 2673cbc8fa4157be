from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mpn
from mpn.engines.directory.manifest import load_manifest
from mpn.engines.open import default_engine_dir
from mpn.errors import InputError, ManifestError
from mpn.export.options import ExportOptions
from mpn.runtime.options import (
    CONSTANTS_OF_0_1,
    OPTIONS_OF_0_1,
    UNSET,
    CrfOptions,
    FinetuneOptions,
    OsvosOptions,
    PipelineOptions,
    RedetectOptions,
    ResolvedCrf,
    ResolvedOptions,
    ResolvedOsvos,
    ResolvedRedetect,
    option_names,
)
from mpn.runtime.pipeline import Pipeline
from mpn.runtime.session.propagate import propagate
from tests.builders.clips import KnownFlow
from tests.builders.engine_dirs import MANIFEST_0_1
from tests.emulation.engines import fake_engine_set
from tests.runtime.pipelines import PLAIN, TWO, run

CRF_VALUES = {
    "feedback": False,
    "sxy_gaussian": 1.0,
    "compat_gaussian": 5.0,
    "sxy_bilateral": 15.0,
    "srgb_bilateral": 7.0,
    "compat_bilateral": 9.0,
    "iterations": 5,
    "margin_px": 16,
    "whole_frame": False,
    "working_scale": 1.0,
}
DEFAULTS: dict[str, Any] = {
    "size": 480,
    "threshold": 0.5,
    "flow_check_px": 0.0,
    "colour_weight": 0.0,
    "roi_margin_frac": 0.15,
    "roi_margin_px_min": 16,
    "use_propagation": True,
    "flip_tta": False,
    "propagation_weight": 1.0,
    "lost_area_frac": 0.0,
    "one_shot": "auto",
    "target": {
        "every": 2,
        "update_every": 4,
        "memory": 4,
        "given_weight": 0.5,
        "confidence_min": 0.9,
        "ridge": 0.01,
        "agreement_min": 0.6,
        "roi_growth": 0.25,
        "blend_weight": 0.35,
    },
    "osvos": {
        "mode": "auto",
        "threshold": 0.5,
        "every": 1,
        "blend_weight": 0.5,
        "confidence_min": 0.7,
    },
    "redetect": {"area_frac_min": 0.1, "colour_min": 0.4, "agreement_min": 0.2},
    "crf": None,
}
SHIPPED: dict[str, Any] = {
    **DEFAULTS,
    "flow_check_px": 10,
    "colour_weight": 0.75,
    "roi_margin_frac": 0.05,
    "flip_tta": True,
    "osvos": {**DEFAULTS["osvos"], "threshold": 0.9, "every": 2},
}
"""Values in force with the advice of the engines of version 0.1, as that version resolved it."""


def advice() -> dict[str, Any]:
    """Return the advice with the option names of version 0.1."""
    found: dict[str, Any] = json.loads(MANIFEST_0_1.read_text())["runtime_defaults"]
    assert "osvos_every" in found
    return found


def test_advice_of_the_shipped_engines_is_in_force() -> None:
    advised = load_manifest(default_engine_dir()).runtime_defaults
    resolved = PipelineOptions().with_defaults(advised)
    assert (resolved.roi_margin_frac, resolved.osvos.threshold) == (0.1, 0.9)
    assert resolved != ResolvedOptions()


def test_options_resolve_to_documented_defaults() -> None:
    resolved = PipelineOptions().with_defaults({})
    assert resolved.as_json() == DEFAULTS
    assert resolved == ResolvedOptions()
    assert PipelineOptions(crf=CrfOptions()).with_defaults({}).as_json()["crf"] == CRF_VALUES


@pytest.mark.parametrize(
    ("given", "changed"),
    [
        (PipelineOptions(), {}),
        (PipelineOptions(flip_tta=False, crf=None), {"flip_tta": False}),
        (PipelineOptions(crf=CrfOptions()), {"crf": CRF_VALUES}),
    ],
    ids=["default", "--fast", "--crf"],
)
def test_advice_of_0_1_resolves_as_in_0_1(given: PipelineOptions, changed: dict[str, Any]) -> None:
    assert given.with_defaults(advice()).as_json() == {**SHIPPED, **changed}
    assert SHIPPED != DEFAULTS  # the advice has an effect


def test_replace_keeps_unset_options_unset() -> None:
    replaced = dataclasses.replace(PipelineOptions(), size=720)
    assert replaced == PipelineOptions(size=720)
    assert replaced.threshold is UNSET
    assert replaced.with_defaults(advice()).as_json() == {**SHIPPED, "size": 720}
    every = OsvosOptions(every=5)
    group = dataclasses.replace(PipelineOptions(), osvos=dataclasses.replace(every, threshold=0.3))
    osvos = group.with_defaults(advice()).osvos
    assert (osvos.every, osvos.threshold, osvos.blend_weight) == (5, 0.3, 0.5)


def test_replace_gives_the_masks_of_the_constructor() -> None:
    """With advice that changes the masks, and must apply after replace() too."""
    advised = {"roi_margin_frac": 0.9, "propagation_weight": 0.2}

    def probs(options: PipelineOptions) -> list[np.ndarray]:
        with Pipeline(
            fake_engine_set(preprocessing=PLAIN, runtime_defaults=advised),
            options=options,
            flow=KnownFlow(TWO.flows_to_prev_px),
        ) as pipeline:
            return [result.probs for result in run(pipeline, TWO)]

    def is_same(a: PipelineOptions, b: PipelineOptions) -> bool:
        return all(np.array_equal(x, y) for x, y in zip(probs(a), probs(b), strict=True))

    replaced = dataclasses.replace(PipelineOptions(), lost_area_frac=0.01)
    assert is_same(replaced, PipelineOptions(lost_area_frac=0.01))
    all_given = ResolvedOptions(lost_area_frac=0.01)  # the result of replace() in version 0.1
    assert not is_same(all_given, PipelineOptions(lost_area_frac=0.01))


def test_given_options_win_over_advice() -> None:
    given = PipelineOptions(size=480, threshold=0.4)
    resolved = given.with_defaults({"size": 360, "threshold": 0.3, "roi_margin_frac": 0.25})
    assert resolved == ResolvedOptions(size=480, threshold=0.4, roi_margin_frac=0.25)
    osvos = OsvosOptions(every=1)
    resolved = PipelineOptions(osvos=osvos).with_defaults({"osvos.every": 3, "osvos.mode": "off"})
    assert resolved.osvos == ResolvedOsvos(every=1, mode="off")


def test_resolved_options_ignore_advice() -> None:
    resolved = PipelineOptions(threshold=0.4).with_defaults(advice())
    assert resolved.with_defaults({"size": 240, "threshold": 0.1, "crf": True}) == resolved


@pytest.mark.parametrize(
    ("given", "advised", "crf"),
    [
        (UNSET, {}, None),
        (UNSET, {"crf": True}, ResolvedCrf()),
        (UNSET, {"crf": False, "crf.iterations": 2}, None),
        (UNSET, {"crf": True, "crf_iterations": 2}, ResolvedCrf(iterations=2)),
        (None, {"crf": True}, None),
        (CrfOptions(), {"crf_iterations": 2}, ResolvedCrf(iterations=2)),
        (CrfOptions(iterations=3), {"crf.iterations": 2}, ResolvedCrf(iterations=3)),
    ],
)
def test_crf_is_none_or_a_group(given: Any, advised: dict[str, Any], crf: Any) -> None:
    assert PipelineOptions(crf=given).with_defaults(advised).crf == crf


def test_repr_shows_given_options_only() -> None:
    assert repr(PipelineOptions()) == "PipelineOptions()"
    given = PipelineOptions(size=480, osvos=OsvosOptions(every=1), crf=None)
    expected = "PipelineOptions(size=480, osvos=OsvosOptions(every=1), crf=None)"
    assert repr(given) == expected
    assert repr(FinetuneOptions(steps=3)) == "FinetuneOptions(steps=3)"
    assert "threshold=0.5" in repr(given.with_defaults({}))


@pytest.mark.parametrize("copied", [copy.copy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copy_keeps_unset_options_unset(copied: Any) -> None:
    options = copied(PipelineOptions(size=-1, osvos=OsvosOptions(every=2)))
    assert options == PipelineOptions(size=-1, osvos=OsvosOptions(every=2))
    assert options.threshold is UNSET
    assert options.osvos.mode is UNSET


@pytest.mark.parametrize(
    ("given", "resolved"),
    [
        (PipelineOptions, ResolvedOptions),
        (OsvosOptions, ResolvedOsvos),
        (RedetectOptions, ResolvedRedetect),
        (CrfOptions, ResolvedCrf),
    ],
)
def test_resolved_class_has_each_field_with_a_value(given: type, resolved: type) -> None:
    names = [option.name for option in dataclasses.fields(given)]
    assert [option.name for option in dataclasses.fields(resolved)] == names
    assert set(resolved.__annotations__) | {"finetune"} >= set(names)
    assert all(getattr(resolved(), name) is not UNSET for name in names)
    assert all(f"{name}:" in str(given.__doc__) for name in names)


BAD_VALUES: list[tuple[str, Any]] = [
    ("size", 0),
    ("size", 15),
    ("size", -2),
    ("size", 480.0),
    ("size", True),
    ("threshold", -0.1),
    ("threshold", 1.1),
    ("threshold", "0.5"),
    ("threshold", float("nan")),
    ("threshold", None),
    ("flow_check_px", -1),
    ("flow_check_px", float("inf")),
    ("colour_weight", -0.1),
    ("colour_weight", float("nan")),
    ("roi_margin_frac", -0.1),
    ("roi_margin_frac", float("inf")),
    ("roi_margin_px_min", -1),
    ("roi_margin_px_min", 1.5),
    ("use_propagation", 1),
    ("flip_tta", "yes"),
    ("propagation_weight", False),
    ("lost_area_frac", 1.5),
    ("one_shot", "on"),
    ("target.every", 0),
    ("target.update_every", -1),
    ("target.memory", 0),
    ("target.given_weight", 1.1),
    ("target.confidence_min", True),
    ("target.ridge", 0),
    ("target.roi_growth", -0.1),
    ("target.roi_growth", 1e306),
    ("target.agreement_min", 1.5),
    ("target.blend_weight", -0.1),
    ("osvos.mode", "on"),
    ("osvos.mode", None),
    ("osvos.threshold", 0),
    ("osvos.threshold", 1),
    ("osvos.every", 0),
    ("osvos.every", 2.0),
    ("osvos.confidence_min", 1.5),
    ("osvos.blend_weight", 2),
    ("redetect.area_frac_min", -1),
    ("redetect.agreement_min", -0.1),
    ("redetect.colour_min", -2.1),
    ("redetect.colour_min", True),
    ("crf", 1),
    ("crf.feedback", None),
    ("crf.sxy_gaussian", 0),
    ("crf.compat_bilateral", -1),
    ("crf.iterations", 0),
    ("crf.margin_px", 1.5),
    ("crf.whole_frame", 1),
    ("crf.working_scale", 2),
]


@pytest.mark.parametrize(("name", "value"), BAD_VALUES, ids=str)
def test_bad_value_raises_with_the_name(name: str, value: Any) -> None:
    escaped = name.replace(".", "[.]")
    message = rf"option {escaped} must be"
    crf = {"crf": True} if name.startswith("crf.") else {}
    with pytest.raises(InputError, match=message):
        PipelineOptions().with_values({**crf, name: value})
    with pytest.raises(ManifestError, match=rf"'runtime_defaults[.]{escaped}' must be"):
        PipelineOptions().with_defaults({name: value})
    if "." not in name and name != "crf":
        with pytest.raises(InputError, match=message):
            PipelineOptions(**{name: value})


def test_each_option_has_a_bad_value_in_the_table() -> None:
    untested = {"crf.compat_gaussian", "crf.sxy_bilateral", "crf.srgb_bilateral"}
    assert {name for name, _ in BAD_VALUES} | untested == set(option_names())


@pytest.mark.parametrize(
    "group",
    [{"osvos": None}, {"crf": {}}, {"redetect": {}}, {"finetune": True}],
)
def test_group_of_another_type_raises_with_an_example(group: dict[str, Any]) -> None:
    (name,) = group
    with pytest.raises(InputError, match=rf"option {name} must be {name.capitalize()}Options\("):
        PipelineOptions(**group)


@pytest.mark.parametrize(
    ("old", "now"),
    [
        ({"osvos": "blend"}, "option osvos='blend' is now osvos=OsvosOptions(mode='blend')"),
        (
            {"osvos": "retrieve-only"},
            "option osvos='retrieve-only' is now osvos=OsvosOptions(mode='redetect-only')",
        ),
        ({"crf": True}, "option crf=True is now crf=CrfOptions()"),
        ({"crf": False}, "option crf=False is now crf=None"),
    ],
)
def test_value_of_0_1_is_refused_with_the_new_form(old: dict[str, Any], now: str) -> None:
    with pytest.raises(InputError) as caught:
        PipelineOptions(**old)
    assert str(caught.value) == now


def test_bad_advice_raises_with_the_name_in_the_file() -> None:
    with pytest.raises(ManifestError) as caught:
        PipelineOptions().with_defaults({"mirror": "zz"})
    assert str(caught.value) == (
        "manifest.json: field 'runtime_defaults.mirror' must be true or false, got 'zz'"
    )


def test_bad_advice_raises_if_the_option_is_given() -> None:
    with pytest.raises(ManifestError, match="size"):
        PipelineOptions(size=480).with_defaults({"size": "large"})


def test_unknown_name_raises_with_the_known_names() -> None:
    with pytest.raises(ManifestError, match=r"'runtime_defaults\.margin' .*roi_margin_frac.*crf\."):
        PipelineOptions().with_defaults({"margin": 1})
    with pytest.raises(InputError, match=r"no option margin: .*osvos\.every"):
        PipelineOptions().with_values({"margin": 1})


def test_with_values_changes_groups_by_name() -> None:
    given = PipelineOptions(size=320).with_values(
        {"osvos.every": 3, "osvos.mode": "off", "flip_tta": True, "crf.iterations": 2, "crf": True}
    )
    assert given == PipelineOptions(
        size=320,
        flip_tta=True,
        osvos=OsvosOptions(every=3, mode="off"),
        crf=CrfOptions(iterations=2),
    )
    resolved = ResolvedOptions().with_values({"crf": True, "redetect.colour_min": 0})
    assert resolved == ResolvedOptions(crf=ResolvedCrf(), redetect=ResolvedRedetect(colour_min=0))
    assert resolved.with_values({"crf": False}).crf is None
    with pytest.raises(InputError, match=r"option crf\.iterations needs crf=true"):
        PipelineOptions().with_values({"crf.iterations": 2})


def test_as_json_leaves_out_finetune() -> None:
    options = PipelineOptions(finetune=FinetuneOptions(cache_dir=Path("kept"))).with_defaults({})
    assert options.finetune == FinetuneOptions(cache_dir=Path("kept"))
    assert json.loads(json.dumps(options.as_json())) == DEFAULTS


MANIFEST_OF_0_1: dict[str, Any] = {
    "mirror": (True, "flip_tta"),
    "osvos": ("off", "osvos.mode"),
    "osvos_threshold": (0.8, "osvos.threshold"),
    "osvos_every": (3, "osvos.every"),
    "ensemble_weight": (0.3, "osvos.blend_weight"),
    "doubt_confidence": (0.6, "osvos.confidence_min"),
    "retrieve_area_frac": (0.3, "redetect.area_frac_min"),
    "retrieve_colour": (0.1, "redetect.colour_min"),
    "retrieve_agreement": (0.3, "redetect.agreement_min"),
    **{f"crf_{name}": (2, f"crf.{name}") for name in CRF_VALUES if name.startswith(("s", "c"))},
    "crf_iterations": (2, "crf.iterations"),
    "crf_margin_px": (4, "crf.margin_px"),
    "crf_feedback": (True, "crf.feedback"),
    "crf_whole_frame": (True, "crf.whole_frame"),
    "crf_working_scale": (0.5, "crf.working_scale"),
}


@pytest.mark.parametrize("old", MANIFEST_OF_0_1)
def test_manifest_of_0_1_is_translated(old: str) -> None:
    value, new = MANIFEST_OF_0_1[old]
    on = {"crf": True}
    resolved = PipelineOptions().with_defaults({**on, old: value})
    assert resolved == PipelineOptions().with_defaults({**on, new: value})
    assert resolved != PipelineOptions().with_defaults(on)


def test_manifest_table_holds_each_renamed_option() -> None:
    assert set(MANIFEST_OF_0_1) == set(OPTIONS_OF_0_1) | {"osvos"}


def test_manifest_may_not_name_an_option_twice() -> None:
    with pytest.raises(ManifestError, match="flip_tta' gives flip_tta a second time"):
        PipelineOptions().with_defaults({"mirror": True, "flip_tta": False})


def test_manifest_mode_of_0_1_is_translated() -> None:
    resolved = PipelineOptions().with_defaults({"osvos": "retrieve-only"})
    assert resolved.osvos.mode == "redetect-only"
    with pytest.raises(InputError, match="'retrieve-only' is now 'redetect-only'"):
        OsvosOptions(mode="retrieve-only")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", CONSTANTS_OF_0_1)
def test_manifest_may_only_repeat_a_constant(name: str) -> None:
    same = PipelineOptions().with_defaults({name: CONSTANTS_OF_0_1[name]})
    assert same == ResolvedOptions()
    with pytest.raises(ManifestError, match=rf"runtime_defaults\.{name}' is a constant now, "):
        PipelineOptions().with_defaults({name: 0.25})


OLD_KEYWORDS: list[tuple[Any, str, str]] = [
    *((PipelineOptions, old, new) for old, new in OPTIONS_OF_0_1.items()),
    *((PipelineOptions, old, f"a constant, {v}") for old, v in CONSTANTS_OF_0_1.items()),
    (Pipeline.from_engines, "adapt", "options=PipelineOptions(finetune=...)"),
    (Pipeline.from_engines, "on_adapt", "on_finetune"),
    (Pipeline, "adapter", "finetuner"),
    (propagate, "adapt", "options=PipelineOptions(finetune=...)"),
    (ExportOptions, "adapt", "finetune"),
    (ExportOptions, "adapt_optimizer", "finetune_optimizer"),
    (ExportOptions, "opset", "a constant, 18"),
]


@pytest.mark.parametrize(
    ("function", "old", "new"),
    OLD_KEYWORDS,
    ids=lambda value: getattr(value, "__qualname__", value),
)
def test_old_keyword_raises_with_the_new_one(function: Any, old: str, new: str) -> None:
    with pytest.raises(TypeError) as caught:
        function(**{old: None})
    assert str(caught.value) == f"{old} is now {new}"


def test_old_class_name_raises_with_the_new_one() -> None:
    with pytest.raises(ImportError, match="AdaptOptions is now FinetuneOptions"):
        from mpn import AdaptOptions  # type: ignore[attr-defined]  # noqa: F401
    assert mpn.FinetuneOptions is FinetuneOptions
    assert mpn.OsvosOptions is OsvosOptions
    assert mpn.CrfOptions is CrfOptions
