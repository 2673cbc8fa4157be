from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpn.errors import InputError
from mpn.runtime.crf import kernels as crf_kernels
from mpn.runtime.crf.dense import dense_crf
from tests.reference.crf import plain_crf, softmax
from tests.tolerances import (
    CRF_ARGMAX_AGREEMENT,
    CRF_MEAN_ABSOLUTE,
    CRF_VERSUS_FLOAT64,
    PROBS_SUM,
)

GOLDEN_NAMES = {
    "sxy_gaussian": "sxy_g",
    "compat_gaussian": "compat_g",
    "sxy_bilateral": "sxy_b",
    "srgb_bilateral": "srgb_b",
    "compat_bilateral": "compat_b",
    "iterations": "iterations",
}
DEFAULTS: dict[str, Any] = {
    "sxy_gaussian": 1,
    "compat_gaussian": 5,
    "sxy_bilateral": 15,
    "srgb_bilateral": 7,
    "compat_bilateral": 9,
    "iterations": 5,
}


def parameters_from_json(text: np.ndarray) -> dict[str, Any]:
    """Return golden parameters under the names of this package."""
    golden = json.loads(text.item())
    return {ours: golden[theirs] for ours, theirs in GOLDEN_NAMES.items()}


def picture(
    labels: int, size_hw: tuple[int, int], seed: int, noise: float = 12.0
) -> tuple[np.ndarray, np.ndarray]:
    """Draw blobs of one colour each with noise, and an uncertain unary of them."""
    rng = np.random.default_rng(seed)
    fields = [
        cv2.GaussianBlur(rng.standard_normal(size_hw).astype(np.float32), (0, 0), 5)
        for _ in range(labels)
    ]
    truth = np.argmax(fields, axis=0)
    colours = rng.integers(0, 256, (labels, 3))
    rgb = np.clip(colours[truth] + rng.normal(0, noise, (*size_hw, 3)), 0, 255).astype(np.uint8)
    soft = [cv2.GaussianBlur((truth == k).astype(np.float32), (0, 0), 2) for k in range(labels)]
    prob = softmax(5 * np.stack(soft) + rng.normal(0, 1, (labels, *size_hw)))
    return -np.log(np.clip(prob, 1e-5, 1)).astype(np.float32), rgb


@pytest.mark.parametrize(
    ("labels", "name"),
    [
        (2, "deeplab_like"),
        (2, "pydensecrf_readme"),
        (2, "osvos_like"),
        (2, "gauss_only"),
        (4, "deeplab_like"),
        (4, "pydensecrf_readme"),
    ],
)
def test_agrees_with_pydensecrf(golden: Path, labels: int, name: str) -> None:
    with np.load(golden / "crf" / f"crf_{labels}labels.npz") as case:
        unary, rgb = case["unary"], case["image_rgb"]
        parameters = parameters_from_json(case[f"params_{name}"])
        expected, winners = case[f"Q_{name}"], case[f"argmax_{name}"]
    q = dense_crf(unary, rgb, **parameters)
    assert np.abs(q - expected).mean() <= CRF_MEAN_ABSOLUTE
    assert (q.argmax(axis=0) == winners).mean() >= CRF_ARGMAX_AGREEMENT
    if parameters["compat_bilateral"]:
        other = dense_crf(unary, rgb, **{**parameters, "compat_bilateral": 0})
        assert (other.argmax(axis=0) == winners).mean() < CRF_ARGMAX_AGREEMENT


def test_agrees_with_pydensecrf_after_one_iteration(golden: Path) -> None:
    with np.load(golden / "crf" / "crf_4labels.npz") as case:
        parameters = parameters_from_json(case["params_deeplab_like"]) | {"iterations": 1}
        q = dense_crf(case["unary"], case["image_rgb"], **parameters)
        assert np.abs(q - case["Q_deeplab_like_iter1"]).mean() <= CRF_MEAN_ABSOLUTE
        assert np.abs(q - case["Q_deeplab_like"]).mean() > CRF_MEAN_ABSOLUTE


@pytest.mark.parametrize("name", ["deeplab_like", "gauss_only", "osvos_like", "pydensecrf_readme"])
def test_small_pictures_are_exact(golden: Path, name: str) -> None:
    with np.load(golden / "crf" / f"small_exact_{name}.npz") as case:
        unary = -np.log(np.clip(case["prob"], 1e-5, 1))
        q = dense_crf(unary, case["image_rgb"], **parameters_from_json(case["params"]))
        assert np.abs(q - case["Q_exact_float64"]).max() <= CRF_VERSUS_FLOAT64
        assert np.abs(case["Q_pydensecrf"] - case["Q_exact_float64"]).max() > CRF_VERSUS_FLOAT64


@settings(max_examples=20, deadline=None)
@given(
    labels=st.integers(1, 5),
    size_hw=st.tuples(st.integers(1, 16), st.integers(1, 16)),
    sigmas=st.tuples(*[st.floats(0.3, 100)] * 3),
    compats=st.tuples(*[st.sampled_from([0.0, 1.0, 3.0, 10.0])] * 2),
    iterations=st.integers(1, 8),
    seed=st.integers(0, 10_000),
)
def test_is_mean_field_by_definition(
    labels: int,
    size_hw: tuple[int, int],
    sigmas: tuple[float, float, float],
    compats: tuple[float, float],
    iterations: int,
    seed: int,
) -> None:
    unary, rgb = picture(labels, size_hw, seed)
    parameters: dict[str, Any] = {
        "sxy_gaussian": sigmas[0],
        "compat_gaussian": compats[0],
        "sxy_bilateral": sigmas[1],
        "srgb_bilateral": sigmas[2],
        "compat_bilateral": compats[1],
        "iterations": iterations,
    }
    q = dense_crf(unary, rgb, **parameters)
    assert q.shape == unary.shape
    assert q.dtype == np.float32
    assert np.abs(q.sum(axis=0) - 1).max() <= PROBS_SUM
    assert np.abs(q - plain_crf(unary, rgb, **parameters)).max() <= CRF_VERSUS_FLOAT64


@pytest.mark.parametrize(
    ("labels", "parameters"),
    [
        (2, {}),
        (3, {"sxy_gaussian": 3, "compat_gaussian": 3, "sxy_bilateral": 60, "srgb_bilateral": 10}),
    ],
)
def test_on_the_lattice_it_is_nearly_exact(
    labels: int, parameters: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crf_kernels, "EXACT_PIXELS", 0)
    unary, rgb = picture(labels, (44, 52), seed=3)
    parameters = DEFAULTS | parameters
    q, exact = dense_crf(unary, rgb, **parameters), plain_crf(unary, rgb, **parameters)
    assert np.abs(q - exact).mean() <= CRF_MEAN_ABSOLUTE
    assert (q.argmax(axis=0) == exact.argmax(axis=0)).mean() >= CRF_ARGMAX_AGREEMENT
    assert np.abs(softmax(-unary) - exact).mean() > CRF_MEAN_ABSOLUTE


@pytest.mark.parametrize("size_hw", [(20, 30), (70, 80)])
def test_no_label_is_special(size_hw: tuple[int, int]) -> None:
    unary, rgb = picture(4, size_hw, seed=5)
    order = [2, 0, 3, 1]
    q = dense_crf(unary, rgb, **DEFAULTS)
    assert np.abs(dense_crf(unary[order], rgb, **DEFAULTS) - q[order]).max() <= CRF_VERSUS_FLOAT64


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 90), (90, 1), (2, 3), (1, 5000)])
def test_any_shape_works(size_hw: tuple[int, int]) -> None:
    unary, rgb = picture(2, size_hw, seed=1)
    q = dense_crf(unary, rgb, **DEFAULTS)
    assert np.abs(q.sum(axis=0) - 1).max() <= PROBS_SUM


@pytest.mark.parametrize("size_hw", [(1, 1), (30, 40), (70, 70)])
def test_a_single_label_has_everything(size_hw: tuple[int, int]) -> None:
    unary, rgb = picture(1, size_hw, seed=1)
    assert (dense_crf(unary, rgb, **DEFAULTS) == 1).all()


@pytest.mark.parametrize("size_hw", [(30, 40), (70, 80)])
def test_crf_constant_image_takes_local_majority(
    size_hw: tuple[int, int],
) -> None:
    prob = np.full((2, *size_hw), 0.3, np.float32)
    prob[1] = 0.7
    prob[:, 10:12, 10:12] = prob[::-1, 10:12, 10:12]
    rgb = np.full((*size_hw, 3), 90, np.uint8)
    assert (dense_crf(-np.log(prob), rgb, **DEFAULTS).argmax(axis=0) == 1).all()


@pytest.mark.parametrize("size_hw", [(30, 40), (70, 80)])
@pytest.mark.parametrize("sigma", [1e-6, 0.05, 1e7])
@pytest.mark.parametrize("name", ["sxy_gaussian", "sxy_bilateral", "srgb_bilateral"])
def test_any_deviation_works(size_hw: tuple[int, int], sigma: float, name: str) -> None:
    unary, rgb = picture(2, size_hw, seed=2)
    q = dense_crf(unary, rgb, **{**DEFAULTS, name: sigma})
    assert np.abs(q.sum(axis=0) - 1).max() <= PROBS_SUM


@pytest.mark.parametrize("size_hw", [(30, 40), (70, 80)])
def test_with_vanishing_deviations_a_pixel_has_only_itself(size_hw: tuple[int, int]) -> None:
    unary, rgb = picture(3, size_hw, seed=2)
    parameters = DEFAULTS | {"sxy_gaussian": 1e-3, "sxy_bilateral": 1e-3}
    q = expected = softmax(-unary.astype(np.float64))
    for _ in range(DEFAULTS["iterations"]):
        expected = softmax(-unary + 14 * expected)
    q = dense_crf(unary, rgb, **parameters)
    # In the narrowest kernel the weight of a neighbour is 4e-6, times 14, times 4.
    assert np.abs(q - expected).max() <= 1e-3


def test_a_weight_of_zero_leaves_its_kernel_out() -> None:
    unary, rgb = picture(3, (20, 30), seed=4)
    none = DEFAULTS | {"compat_gaussian": 0, "compat_bilateral": 0}
    unset = none | {"sxy_gaussian": None, "sxy_bilateral": None, "srgb_bilateral": None}
    assert np.abs(dense_crf(unary, rgb, **none) - softmax(-unary)).max() <= CRF_VERSUS_FLOAT64
    assert np.array_equal(dense_crf(unary, rgb, **none), dense_crf(unary, rgb, **unset))


@pytest.mark.parametrize("size_hw", [(30, 40), (70, 80)])
def test_strides_do_not_matter_and_inputs_stay(size_hw: tuple[int, int]) -> None:
    unary, rgb = picture(3, size_hw, seed=6)
    expected = dense_crf(unary, rgb, **DEFAULTS)
    turned_unary = np.asfortranarray(unary)
    bgr = np.ascontiguousarray(rgb[..., ::-1])
    bgr.flags.writeable = turned_unary.flags.writeable = False
    assert np.array_equal(dense_crf(turned_unary, bgr[..., ::-1], **DEFAULTS), expected)
    assert np.array_equal(dense_crf(unary, rgb, **DEFAULTS), expected)


def test_as_many_labels_as_a_palette_has() -> None:
    rng = np.random.default_rng(0)
    unary = rng.random((256, 66, 66), dtype=np.float32) * 8
    rgb = rng.integers(0, 256, (66, 66, 3), dtype=np.uint8)
    q = dense_crf(unary, rgb, **{**DEFAULTS, "iterations": 1})
    assert np.abs(q.sum(axis=0) - 1).max() <= 1e-5  # 256 roundings


def test_the_widest_unary_does_not_overflow() -> None:
    unary, rgb = picture(2, (70, 80), seed=7)
    unary[1] = 3e38
    q = dense_crf(unary, rgb, **DEFAULTS)
    assert (q[0] == 1).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nonfinite_values_are_counted_and_located(value: float) -> None:
    unary, rgb = picture(2, (6, 8), seed=0)
    unary[1, 2, 3] = unary[1, 4, 0] = value
    with pytest.raises(InputError, match=r"2 values .* of 96.* label 1, row 2, column 3") as error:
        dense_crf(unary, rgb, **DEFAULTS)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"iterations": 0}, "iterations must be a whole number of at least 1, got 0"),
        ({"iterations": 2.0}, "iterations must be a whole number"),
        ({"iterations": True}, "iterations must be a whole number"),
        ({"sxy_gaussian": -1}, "sxy_gaussian must be a finite number above 0, got -1"),
        ({"sxy_bilateral": 0}, "sxy_bilateral must be a finite number above 0, got 0"),
        ({"srgb_bilateral": float("nan")}, "srgb_bilateral must be a finite number above 0"),
        ({"srgb_bilateral": None}, "srgb_bilateral must be a finite number above 0, got None"),
        ({"sxy_gaussian": -1, "compat_gaussian": 0}, "sxy_gaussian must be"),
        ({"compat_gaussian": -3}, "compat_gaussian must be a finite number of at least 0, got -3"),
        ({"compat_bilateral": float("inf")}, "compat_bilateral must be a finite number"),
        ({"compat_bilateral": "9"}, "compat_bilateral must be a finite number"),
    ],
)
def test_a_parameter_out_of_range_is_refused(change: dict[str, Any], message: str) -> None:
    unary, rgb = picture(2, (6, 8), seed=0)
    with pytest.raises(InputError, match=message):
        dense_crf(unary, rgb, **(DEFAULTS | change))


@pytest.mark.parametrize(
    ("unary", "rgb", "message"),
    [
        (np.zeros((6, 8), np.float32), np.zeros((6, 8, 3), np.uint8), "unary must be .L, H, W."),
        (np.zeros((2, 6, 8)), np.zeros((6, 8, 3), np.uint8), "float32, got .* float64"),
        (np.zeros((2, 6, 8), np.float32), np.zeros((6, 8), np.uint8), "must be .H, W, 3. uint8"),
        (np.zeros((2, 6, 8), np.float32), np.zeros((6, 8, 3), np.float32), "uint8 RGB"),
        (np.zeros((2, 6, 8), np.float32), np.zeros((8, 6, 3), np.uint8), "8x6 but the picture"),
        (np.zeros((0, 6, 8), np.float32), np.zeros((6, 8, 3), np.uint8), "at least one label"),
        (np.zeros((2, 0, 8), np.float32), np.zeros((0, 8, 3), np.uint8), "at least one label"),
    ],
)
def test_an_array_of_another_kind_is_refused(
    unary: np.ndarray, rgb: np.ndarray, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        dense_crf(unary, rgb, **DEFAULTS)
