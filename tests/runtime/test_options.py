from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any

import pytest

from mpn.errors import InputError, ManifestError
from mpn.runtime.crf.refine import CrfOptions
from mpn.runtime.options import PipelineOptions


def test_the_defaults_are_those_of_the_design() -> None:
    assert dataclasses.asdict(PipelineOptions()) == {
        "size": 480,
        "threshold": 0.5,
        "flow_check_px": 0.0,
        "colour_weight": 0.0,
        "roi_margin_frac": 0.15,
        "roi_margin_px_min": 16,
        "use_propagation": True,
        "propagation_weight": 1.0,
        "lost_area_frac": 0.0,
        "osvos": "auto",
        "osvos_threshold": 0.5,
        "osvos_every": 1,
        "doubt_confidence": 0.7,
        "doubt_area_factor": 2.0,
        "ensemble_weight": 0.5,
        "retrieve_area_frac": 0.1,
        "retrieve_iou_max": 0.3,
        "retrieve_colour": 0.4,
        "retrieve_agreement": 0.2,
        "mirror": False,
        "crf": False,
        "crf_feedback": False,
        "crf_sxy_gaussian": 1.0,
        "crf_compat_gaussian": 5.0,
        "crf_sxy_bilateral": 15.0,
        "crf_srgb_bilateral": 7.0,
        "crf_compat_bilateral": 9.0,
        "crf_iterations": 5,
        "crf_margin_px": 16,
        "crf_whole_frame": False,
        "crf_working_scale": 1.0,
    }


@pytest.mark.parametrize(
    "options",
    [
        {"size": 0},
        {"size": -2},
        {"size": 480.0},
        {"size": True},
        {"threshold": -0.1},
        {"threshold": 1.1},
        {"threshold": "0.5"},
        {"threshold": float("nan")},
        {"threshold": None},
        {"flow_check_px": -1},
        {"colour_weight": -0.1},
        {"colour_weight": float("nan")},
        {"flow_check_px": float("inf")},
        {"roi_margin_frac": -0.1},
        {"roi_margin_frac": float("inf")},
        {"roi_margin_px_min": -1},
        {"roi_margin_px_min": 1.5},
        {"use_propagation": 1},
        {"mirror": "yes"},
        {"osvos": "on"},
        {"osvos": None},
        {"osvos_threshold": 0},
        {"osvos_threshold": 1},
        {"osvos_every": 0},
        {"osvos_every": 2.0},
        {"doubt_confidence": 1.5},
        {"doubt_area_factor": 0.9},
        {"doubt_area_factor": float("inf")},
        {"ensemble_weight": 2},
        {"retrieve_agreement": -0.1},
        {"retrieve_colour": -2.1},
        {"retrieve_colour": True},
        {"crf": 1},
        {"crf_feedback": None},
        {"propagation_weight": False},
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_name(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(InputError, match=f"option {name} must be"):
        PipelineOptions(**options)
    with pytest.raises(ManifestError, match=rf"runtime_defaults.*option {name} must be"):
        PipelineOptions().with_defaults(options)


@pytest.mark.parametrize(
    "options",
    [{"crf_sxy_gaussian": 0}, {"crf_compat_bilateral": -1}, {"crf_iterations": 0},
     {"crf_margin_px": 1.5}, {"crf_whole_frame": 1}],
)  # fmt: skip
def test_a_value_that_does_not_fit_the_crf_is_refused_by_name(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(InputError, match=f"CRF option {name.removeprefix('crf_')} must be"):
        PipelineOptions(**options)


def test_every_option_of_the_crf_can_be_set() -> None:
    given = {"sxy_gaussian": 2.0, "compat_gaussian": 3.0, "sxy_bilateral": 20.0,
             "srgb_bilateral": 8.0, "compat_bilateral": 4.0, "iterations": 2, "margin_px": 4,
             "whole_frame": True, "working_scale": 0.5}  # fmt: skip
    options = PipelineOptions(**{f"crf_{name}": value for name, value in given.items()})
    assert options.crf_options == CrfOptions(**given)
    assert set(given) == {option.name for option in dataclasses.fields(CrfOptions)}


def test_other_defaults_hold_for_options_that_were_not_given() -> None:
    options = PipelineOptions(size=480, threshold=0.4).with_defaults(
        {"size": 360, "threshold": 0.3, "roi_margin_frac": 0.25}
    )
    assert options == PipelineOptions(size=480, threshold=0.4, roi_margin_frac=0.25)
    assert options.given == {"size", "threshold"}


def test_defaults_can_be_replaced_again_and_leave_the_original_alone() -> None:
    original = PipelineOptions(threshold=0.4)
    first = original.with_defaults({"size": 360})
    assert first.with_defaults({"size": 240, "threshold": 0.1}).size == 240
    assert original.size == 480


def test_a_bad_default_is_refused_even_if_an_option_overrides_it() -> None:
    with pytest.raises(ManifestError, match="size"):
        PipelineOptions(size=480).with_defaults({"size": "large"})


def test_an_unknown_default_is_refused_with_the_names_that_exist() -> None:
    with pytest.raises(ManifestError, match=r"'runtime_defaults\.margin' .*roi_margin_frac"):
        PipelineOptions().with_defaults({"margin": 1})


@pytest.mark.parametrize("copied", [copy.copy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_remembers_what_was_given(copied: Any) -> None:
    options = copied(PipelineOptions(size=-1))
    assert options == PipelineOptions(size=-1)
    assert options.with_defaults({"size": 360, "threshold": 0.3}) == PipelineOptions(
        size=-1, threshold=0.3
    )
