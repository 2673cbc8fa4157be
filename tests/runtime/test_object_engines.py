from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from mpn.errors import EngineError, InputError
from mpn.runtime.host.memory import labels_at_size
from mpn.runtime.object_engines import ObjectEngines, finetuned_engines
from tests.builders.clips import by_colour, iou
from tests.emulation.engines import FakeFinetuner, fake_engine_set, fourth_channel, nothing_found
from tests.runtime.pipelines import PAN, TWO, finetuner_of, make, propagation_calls, run
from tests.tolerances import PASTED_IOU

FRAME = np.zeros((30, 45, 3), np.uint8)


def finetuned_ids(finetuner: FakeFinetuner) -> list[int]:
    return [object_id for _, _, object_id in finetuner.calls]


def labels_of(*ids: int, size_hw: tuple[int, int] = (30, 45)) -> np.ndarray:
    labels = np.zeros(size_hw, np.uint8)
    for n, object_id in enumerate(ids):
        labels[4:20, 2 + 8 * n : 8 + 8 * n] = object_id
    return labels


def a_finetuner(**options: int) -> FakeFinetuner:
    engine_set = fake_engine_set(osvos=nothing_found)
    functions = {"propagation": lambda k: fourth_channel, "osvos": lambda k: nothing_found}
    return FakeFinetuner(engine_set, functions, **options)  # type: ignore[arg-type]


def nobody_home(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"prob": np.zeros_like(inputs["rgb_prob"][:, 3:4])}


def test_objects_are_finetuned_in_turn_from_all_labels() -> None:
    finetuner, labels = a_finetuner(), labels_of(2, 5, 9)
    engines = finetuned_engines(finetuner, FRAME, labels, (2, 9))
    assert finetuned_ids(finetuner) == [2, 9]
    assert all(np.array_equal(seen, labels) for _, seen, _ in finetuner.calls)
    assert {object_id: set(own) for object_id, own in engines.items()} == {
        2: {"propagation", "osvos"},
        9: {"propagation", "osvos"},
    }


def test_labels_at_size_takes_the_largest_share() -> None:
    small = labels_of(2, 5)
    large = np.kron(small, np.ones((2, 2), np.uint8))
    assert np.array_equal(labels_at_size(large, small.shape), small)
    assert labels_at_size(small, small.shape) is small
    large[10:12, 4:6] = 0
    assert labels_at_size(large, small.shape)[5, 2] == 0 != small[5, 2]


def test_object_without_pixels_is_not_finetuned() -> None:
    finetuner = a_finetuner()
    labels = np.zeros((300, 450), np.uint8)
    labels[10, 10], labels[100:200, 100:200] = 3, 4
    small = labels_at_size(labels, FRAME.shape[:2])
    assert finetuned_engines(finetuner, FRAME, small, (3, 4)).keys() == {4}


def test_failed_object_closes_engines_of_others() -> None:
    finetuner = a_finetuner(fails_for=9)
    with pytest.raises(EngineError, match="object 9"):
        finetuned_engines(finetuner, FRAME, labels_of(2, 9), (2, 9))
    assert [engine.is_closed for engine in finetuner.engines] == [True, True]


def test_object_engines_replacement_closes_old_engine() -> None:
    finetuner, objects = a_finetuner(), ObjectEngines()
    first = finetuned_engines(finetuner, FRAME, labels_of(2), (2,))
    objects.add(first)
    objects.add(finetuned_engines(finetuner, FRAME, labels_of(5), (5,)))
    assert objects.get("propagation", 2) is first[2]["propagation"]
    assert objects.get("flow", 2) is None
    assert objects.get("osvos", 3) is None
    assert objects.all_have("osvos", (2, 5))
    assert not objects.all_have("osvos", (2, 3))
    objects.replace(finetuned_engines(finetuner, FRAME, labels_of(2), (2,)))
    assert [engine.is_closed for engine in finetuner.engines] == [True] * 4 + [False] * 2
    objects.close()
    objects.close()
    assert all(engine.is_closed for engine in finetuner.engines)


# --- in the pipeline ----------------------------------------------------------------------------


def test_propagation_dispatches_to_object_engines() -> None:
    own = {"propagation": lambda k: by_colour if k == 7 else None}
    pipeline = make(TWO, adapts=own, propagation=by_colour)  # type: ignore[arg-type]
    results = run(pipeline, TWO)
    for object_id in (2, 7):
        assert iou(results[2].labels == object_id, TWO.labels[2] == object_id) > PASTED_IOU
    (engine,) = finetuner_of(pipeline).engines
    assert [len(call["rgb_prob"]) for call in engine.calls] == [1] * 12
    assert [len(call) for call in propagation_calls(pipeline)] == [1] * 12
    together = run(make(TWO, propagation=by_colour), TWO)
    for result, expected in zip(results, together, strict=True):
        assert np.array_equal(result.probs, expected.probs)
    # Control: another network for object 7 gives another result.
    pipeline = make(TWO, adapts={"propagation": lambda k: nobody_home if k == 7 else None})
    assert not (run(pipeline, TWO)[1].labels == 7).any()


def test_finetuning_is_a_stage_of_frames_with_new_objects() -> None:
    pipeline = make(TWO, adapts={"propagation": lambda k: by_colour})
    first = pipeline.start(TWO.frames[0], np.where(TWO.labels[0] == 7, 7, 0).astype(np.uint8))
    assert "finetune" in first.timings
    assert "finetune" not in pipeline.step(TWO.frames[1]).timings
    added = pipeline.add_objects(np.where(TWO.labels[1] == 2, 2, 0).astype(np.uint8))
    assert "finetune" in added.timings
    finetuner = finetuner_of(pipeline)
    assert finetuned_ids(finetuner) == [7, 2]
    rgb, labels, _ = finetuner.calls[1]
    assert np.array_equal(rgb, TWO.frames[1])
    assert np.array_equal(labels, added.labels)
    assert set(np.unique(labels)) == {0, 2, 7}


def test_a_correction_keeps_the_weights_of_the_object() -> None:
    pipeline = make(TWO, adapts={"propagation": lambda k: by_colour})
    run(pipeline, TWO)
    pipeline.correct(np.where(TWO.labels[-1] == 2, 2, 0).astype(np.uint8))
    assert finetuned_ids(finetuner_of(pipeline)) == [2, 7]
    assert not any(engine.is_closed for engine in finetuner_of(pipeline).engines)


def test_start_closes_object_engines_of_last_video() -> None:
    pipeline = make(PAN, adapts={"propagation": lambda k: fourth_channel})
    pipeline.start(PAN.frames[0], PAN.labels[0])
    pipeline.start(PAN.frames[0], PAN.labels[0])
    finetuner = finetuner_of(pipeline)
    assert [engine.is_closed for engine in finetuner.engines] == [True, False]
    pipeline.close()
    assert finetuner.engines[1].is_closed
    assert finetuner.is_closed
    assert pipeline.engines.propagation.is_closed  # type: ignore[attr-defined]


def test_objects_that_cannot_be_added_leave_the_video_running() -> None:
    pipeline = make(PAN, adapts={"propagation": lambda k: fourth_channel})
    pipeline.start(PAN.frames[0], PAN.labels[0])
    finetuner = finetuner_of(pipeline)
    finetuner.fails_for = 9
    labels = np.zeros_like(PAN.labels[0])
    labels[0:9, 0:9] = 9
    with pytest.raises(EngineError, match="object 9"):
        pipeline.add_objects(labels)
    assert pipeline.object_ids == (1,)
    assert [engine.is_closed for engine in finetuner.engines] == [False]
    assert iou(pipeline.step(PAN.frames[1]).labels > 0, PAN.labels[1] > 0) > PASTED_IOU


def test_start_that_fails_closes_its_engines_and_ends_the_video() -> None:
    pipeline = make(PAN, adapts={"propagation": lambda k: fourth_channel})
    pipeline.start(PAN.frames[0], PAN.labels[0])
    finetuner = finetuner_of(pipeline)
    finetuner.fails_for = 9
    labels = PAN.labels[0].copy()
    labels[0:9, 0:9] = 9
    with pytest.raises(EngineError, match="object 9"):
        pipeline.start(PAN.frames[0], labels)
    assert pipeline.object_ids == ()
    assert finetuner.engines[1].is_closed
    with pytest.raises(InputError, match="start"):
        pipeline.step(PAN.frames[1])


def test_object_engine_nan_raises_and_frame_can_be_retried() -> None:
    factors = [np.nan, 1.0]

    def network(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"prob": inputs["rgb_prob"][:, 3:4] * np.float32(factors.pop(0))}

    still = [np.zeros((2, 60, 90), np.float32)] * 5
    pipeline = make(PAN, flows=still, adapts={"propagation": lambda k: network})
    pipeline.start(PAN.frames[0], PAN.labels[0])
    with pytest.raises(EngineError, match=r"propagation engine .*object 1.* not finite"):
        pipeline.step(PAN.frames[1])
    pipeline._flow._prepared = 1  # type: ignore[attr-defined]
    result = pipeline.step(PAN.frames[0])
    assert (result.index, result.tracks[0].state) == (1, "tracked")


def test_closed_pipeline_does_not_finetune() -> None:
    pipeline = make(PAN, adapts={"propagation": lambda k: fourth_channel})
    pipeline.close()
    with pytest.raises(InputError, match="closed"):
        pipeline.start(PAN.frames[0], PAN.labels[0])
    assert finetuner_of(pipeline).calls == []
