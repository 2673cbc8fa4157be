from __future__ import annotations

import numpy as np
import pytest

from mpn._common.records import json_from_record, record_from_json
from mpn.engines.spec import (
    ROLES,
    TensorSpec,
    engine_spec,
    features_spec,
    flow_spec,
    padded_size_hw,
    propagation_spec,
)
from mpn.errors import EngineError


@pytest.mark.parametrize(
    ("size_hw", "multiple", "expected"),
    [((480, 854), 64, (512, 896)), ((512, 896), 64, (512, 896)), ((1, 1), 64, (64, 64))],
)
def test_sizes_are_padded_up(
    size_hw: tuple[int, int], multiple: int, expected: tuple[int, int]
) -> None:
    assert padded_size_hw(size_hw, multiple) == expected


def test_every_role_has_a_spec_and_no_other() -> None:
    assert features_spec((65, 97), 176).role == "features"  # of a size that the others lack
    for role in set(ROLES) - {"features"}:
        spec = engine_spec(role, frame_size_hw=(480, 854), roi_size=513, max_objects=8)
        assert spec.role == role
        assert (spec.max_objects is not None) == (role == "propagation")
    with pytest.raises(EngineError, match="unknown role 'depth': the roles are flow, prop"):
        engine_spec("depth", frame_size_hw=(480, 854), roi_size=513, max_objects=8)


@pytest.mark.parametrize("roi_size", [64, 512, 49, 1, 0, -15])
def test_roi_size_must_be_16n_plus_1(roi_size: int) -> None:
    propagation_spec(65, 1)
    with pytest.raises(EngineError, match=f"16 n \\+ 1 .* got {roi_size}"):
        propagation_spec(roi_size, 1)


def test_propagation_input_is_named_by_its_channels() -> None:
    assert propagation_spec(65, 1).input_names == ("rgb_prob",)
    assert propagation_spec(65, 1, 5).inputs[0].shape == ("objects", 5, 65, 65)
    assert propagation_spec(65, 1, 5).input_names == ("rgb_prob_score",)
    with pytest.raises(EngineError, match="must have 4 or 5 channels, got 3"):
        propagation_spec(65, 1, 3)


def test_only_the_objects_axis_is_dynamic() -> None:
    assert propagation_spec(65, 1).inputs[0].dynamic_axes == {0: "objects"}
    assert flow_spec((64, 64)).inputs[0].dynamic_axes == {}


def test_tensor_is_checked_by_dtype_and_shape() -> None:
    tensor = TensorSpec("prob", ("objects", 1, 3, 3))
    for objects in (1, 7):
        tensor.check(np.zeros((objects, 1, 3, 3), np.float32))
    for wrong in (
        np.zeros((1, 1, 3, 3), np.float64),
        np.zeros((1, 1, 3, 4), np.float32),
        np.zeros((1, 3, 3), np.float32),
    ):
        with pytest.raises(EngineError, match="tensor 'prob' must be float32"):
            tensor.check(wrong)


def test_tensor_survives_json_and_reads_well() -> None:
    tensor = TensorSpec("prob", ("objects", 1, 3, 3))
    assert record_from_json(json_from_record(tensor), TensorSpec, EngineError) == tensor
    assert tensor.describe() == "prob float32[objects,1,3,3]"
