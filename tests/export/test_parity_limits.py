from __future__ import annotations

import numpy as np
import pytest

from mpn.engines.spec import ROLES, Precision, Role
from mpn.export.parity import Limit, Measure, MeasureName, limits_for, measured
from mpn.types import Float32Array
from tests.tolerances import PARITY_RELATIVE

FLOW = np.array([[3.0, 0.0], [4.0, 0.0]], np.float32).reshape(1, 2, 1, 2)
"""Two pixels: (3, 4) and (0, 0)."""
PROB = np.array([[0.9, 0.8, 0.2, 0.1], [0.6, 0.1, 0.1, 0.1]], np.float32).reshape(2, 1, 1, 4)


def _moved(array: Float32Array, index: tuple[int, ...], value: float) -> Float32Array:
    moved = array.copy()
    moved[index] += value
    return moved


@pytest.mark.parametrize(
    ("name", "got", "expected", "value"),
    [
        ("max_relative", _moved(FLOW, (0, 0, 0, 1), -0.4), FLOW, 0.1),
        ("logit_relative", _moved(PROB, (0, 0, 0, 1), 0.1), PROB, 0.369070),
        ("logit_relative", PROB * 0 + 1e-9, PROB * 0 + 1e-6, 0.0),
        ("max_abs", _moved(PROB, (0, 0, 0, 2), 0.25), PROB, 0.25),
        ("mean_abs", _moved(PROB, (0, 0, 0, 2), 0.4), PROB, 0.05),
        ("mask_iou", _moved(PROB, (0, 0, 0, 1), -0.4), PROB, 0.5),
        ("mask_iou", _moved(PROB, (1, 0, 0, 0), -0.2), PROB, 0.0),
        ("mask_iou", PROB * 0.1, PROB * 0.2, 1.0),
        ("epe_mean", _moved(_moved(FLOW, (0, 0, 0, 1), 3.0), (0, 1, 0, 1), 4.0), FLOW, 2.5),
        ("epe_relative", _moved(FLOW, (0, 0, 0, 1), 0.5), FLOW, 0.1),
    ],
)
def test_measures(
    name: MeasureName, got: Float32Array, expected: Float32Array, value: float
) -> None:
    assert measured(Limit(name, 1.0, ""), got, expected).value == pytest.approx(value, rel=1e-5)
    equal = measured(Limit(name, 1.0, ""), expected, expected).value
    assert equal == (1.0 if name == "mask_iou" else 0.0)


@pytest.mark.parametrize("name", ["max_relative", "max_abs", "mean_abs", "epe_mean"])
def test_nan_is_never_within_a_limit(name: MeasureName) -> None:
    spoilt = _moved(FLOW, (0, 0, 0, 0), float("nan"))
    assert not measured(Limit(name, 1e9, ""), spoilt, FLOW).is_within


@pytest.mark.parametrize(
    ("name", "limit", "value", "within", "used"),
    [
        ("max_abs", 0.1, 0.05, True, 0.5),
        ("max_abs", 0.1, 0.1, True, 1.0),
        ("max_abs", 0.1, 0.2, False, 2.0),
        ("mask_iou", 0.99, 0.995, True, 0.5),
        ("mask_iou", 0.99, 0.98, False, 2.0),
    ],
)
def test_limit_bounds_differences_above_and_iou_below(
    name: MeasureName, limit: float, value: float, within: bool, used: float
) -> None:
    measure = Measure(Limit(name, limit, "why"), value)
    assert measure.is_within == within
    assert measure.used == pytest.approx(used)
    assert (">=" in str(measure)) == (name == "mask_iou")
    assert measure.as_json() == {"measure": name, "value": value, "limit": limit, "reason": "why"}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("role", ROLES)
def test_every_limit_has_a_reason(role: Role, precision: Precision) -> None:
    limits = limits_for(role, precision)
    assert limits
    assert all(len(limit.reason) > 20 for limit in limits)


@pytest.mark.parametrize("role", ROLES)
def test_fp32_keeps_the_bound_of_the_golden_cases(role: Role) -> None:
    first = limits_for(role, "fp32")[0]
    is_prob = role in ("propagation", "osvos")
    assert first.name == ("logit_relative" if is_prob else "max_relative")
    assert first.value == PARITY_RELATIVE
