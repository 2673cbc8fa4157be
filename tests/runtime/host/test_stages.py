from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from mpn.errors import EngineError
from mpn.runtime.host.stages import Stages
from mpn.runtime.object_engines import ObjectEngines
from mpn.runtime.options import ResolvedOptions
from mpn.types import Float32Array
from tests.emulation.engines import FakeEngine, fake_engine_set

ROI_SIZE = 65
MOST = 4
COLUMNS = np.linspace(0, 1, ROI_SIZE, dtype=np.float32)


def looks_left(inputs: Mapping[str, Float32Array]) -> dict[str, Float32Array]:
    """Return the input on the left and 0 on the right."""
    return {"prob": inputs["rgb_prob"][:, 3:4] * (1 - COLUMNS)}


def packed(count: int) -> Float32Array:
    """Make probabilities that differ per crop and fall from left to right."""
    crops = np.zeros((count, 4, ROI_SIZE, ROI_SIZE), np.float32)
    crops[:, 3] = (1 - COLUMNS) * np.linspace(0.5, 1, count, dtype=np.float32)[:, None, None]
    return crops


def stages(*, flip: bool, objects: ObjectEngines | None = None) -> Stages:
    engines = fake_engine_set(propagation=looks_left, roi_size=ROI_SIZE, max_objects=MOST)
    return Stages(engines, ResolvedOptions(flip_tta=flip), objects)


def test_without_flip_tta_each_crop_runs_once() -> None:
    crops = packed(3)
    prob = stages(flip=False).propagate(crops, [1, 2, 3])
    assert np.array_equal(prob, crops[:, 3:4] * (1 - COLUMNS))


@pytest.mark.parametrize("count", [1, 3, 6])
def test_flip_tta_averages_both_sides(count: int) -> None:
    """The missing right half becomes half on both sides; the image does not change."""
    crops = packed(count)
    prob = stages(flip=True).propagate(crops, list(range(1, count + 1)))
    expected = crops[:, 3:4] * ((1 - COLUMNS) + COLUMNS) / 2
    assert prob == pytest.approx(expected, abs=1e-6)
    assert not np.allclose(prob, prob[..., ::-1], atol=0.1)


def test_flip_tta_batches_crops_of_object_engine() -> None:
    engines = fake_engine_set(roi_size=ROI_SIZE, max_objects=MOST)
    own = FakeEngine(engines.propagation.spec, looks_left)
    objects = ObjectEngines()
    objects.add({2: {"propagation": own}})
    crops = packed(2)
    prob = Stages(engines, ResolvedOptions(flip_tta=True), objects).propagate(crops, [1, 2])
    assert prob[0] == pytest.approx(crops[0, 3:4])  # the common one returns its input
    assert prob[1] == pytest.approx(crops[1, 3:4] / 2, abs=1e-6)
    (call,) = own.calls
    assert np.array_equal(call["rgb_prob"], np.stack([crops[1], crops[1][..., ::-1]]))


def test_no_crop_is_no_work() -> None:
    for flip in (False, True):
        prob = stages(flip=flip).propagate(packed(0), [])
        assert prob.shape == (0, 1, ROI_SIZE, ROI_SIZE)


def test_wrong_output_of_object_engine_names_the_object() -> None:
    engines = fake_engine_set(roi_size=ROI_SIZE, max_objects=MOST)

    def nonsense(inputs: Mapping[str, Float32Array]) -> dict[str, Float32Array]:
        return {"prob": np.full_like(inputs["rgb_prob"][:, :1], np.nan)}

    objects = ObjectEngines()
    objects.add({7: {"propagation": FakeEngine(engines.propagation.spec, nonsense)}})
    with pytest.raises(EngineError, match="7"):
        Stages(engines, ResolvedOptions(flip_tta=True), objects).propagate(packed(1), [7])
