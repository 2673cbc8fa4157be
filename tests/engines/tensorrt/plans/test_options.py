from __future__ import annotations

from typing import Any

import pytest

from mpn._common.records import json_from_record, record_from_json
from mpn.engines.spec import EngineSpec, TensorSpec, engine_spec
from mpn.engines.tensorrt.plans.options import BuildOptions, object_profiles, profile_for
from mpn.errors import EngineError, InputError


def spec_of(role: str, max_objects: int = 8) -> EngineSpec:
    return engine_spec(role, frame_size_hw=(64, 96), roi_size=65, max_objects=max_objects)


@pytest.mark.parametrize(
    ("max_objects", "profiles"),
    [
        (1, [(1, 1, 1)]),
        (2, [(1, 1, 1), (2, 2, 2)]),
        (3, [(1, 1, 1), (2, 3, 3)]),
        (8, [(1, 1, 1), (2, 3, 8)]),
    ],
)
def test_every_number_of_objects_has_one_profile(
    max_objects: int, profiles: list[tuple[int, int, int]]
) -> None:
    found = object_profiles(spec_of("propagation", max_objects))
    assert [profile.counts for profile in found] == profiles
    for objects in range(1, max_objects + 1):
        index = profile_for(found, objects)
        assert found[index].least <= objects <= found[index].most
    with pytest.raises(EngineError, match=f"up to {max_objects} objects was given"):
        profile_for(found, max_objects + 1)


@pytest.mark.parametrize("role", ["flow", "osvos"])
def test_engines_of_fixed_sizes_have_no_profile(role: str) -> None:
    assert object_profiles(spec_of(role)) == ()
    assert profile_for((), 1) == 0


def test_other_dynamic_axes_and_a_missing_limit_are_refused() -> None:
    tensor = TensorSpec("rgb_prob", ("objects", 4, "height", 65))
    with pytest.raises(EngineError, match="dynamic axes"):
        object_profiles(EngineSpec("propagation", (tensor,), (), max_objects=4))
    tensor = TensorSpec("rgb_prob", ("objects", 4, 65, 65))
    with pytest.raises(EngineError, match="no largest number of objects"):
        object_profiles(EngineSpec("propagation", (tensor,), ()))


@pytest.mark.parametrize("wrong", [{"optimization_level": 6}, {"workspace_mib": 0}])
def test_options_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        BuildOptions(**wrong)


def test_options_survive_json() -> None:
    options = BuildOptions(refittable=True, optimization_level=5, workspace_mib=64)
    assert record_from_json(json_from_record(options), BuildOptions, EngineError) == options
