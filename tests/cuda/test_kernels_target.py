from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mpn.runtime.device.images import box_rows, boxes_from_rows
from mpn.runtime.host import target as cpu
from mpn.runtime.target import Targets, grid_hw, raw_weights, target_scores
from mpn.types import Float32Array, Roi
from tests.emulation.cuda_shim.compare import (
    kernel_and_reference,
    kernel_outputs,
    largest_difference,
)
from tests.emulation.cuda_shim.scene import empty
from tests.emulation.cuda_shim.shim import Shim
from tests.tolerances import (
    KERNEL_HALF_RELATIVE,
    KERNEL_VERSUS_REFERENCE,
    TARGET_SCORE,
    WARP_ABSOLUTE,
)

FRAME_HW, INPUT_HW = (37, 53), (65, 97)
GRID_HW = grid_hw(INPUT_HW)
GRID: dict[str, Any] = {"grid_height": GRID_HW[0], "grid_width": GRID_HW[1]}
TO_INPUT = {"scale_x": INPUT_HW[1] / FRAME_HW[1], "scale_y": INPUT_HW[0] / FRAME_HW[0]}
ROIS = box_rows([Roi(3, 2, 41, 33), None, Roi(50, 0, 53, 1)])


def random_scores(objects: int = 3) -> Float32Array:
    return np.random.default_rng(0).random((objects, *GRID_HW), dtype=np.float32)


def score_arguments(objects: int, channels: int, dtype: str = "float32") -> dict[str, Any]:
    """Return arguments of target_scores, and the classifiers."""
    rng = np.random.default_rng(1)
    features = rng.normal(2, 3, (channels, *GRID_HW)).astype(dtype)
    targets = Targets(
        rng.normal(2, 1, channels).astype(np.float32),
        rng.uniform(1, 4, channels).astype(np.float32),
        {k: rng.normal(0, 1.5, channels + 1).astype(np.float32) for k in range(objects)},
    )
    weights, biases = raw_weights(targets, range(objects))
    return {
        "features": features,
        "weights": weights,
        "biases": biases,
        "objects": objects,
        "channels": channels,
        "points": GRID_HW[0] * GRID_HW[1],
        "scores": empty((objects, *GRID_HW)),
        "targets": targets,
    }


@pytest.mark.parametrize(("objects", "channels"), [(1, 3), (6, 21)])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_target_scores_match_cpu(shim: Shim, objects: int, channels: int, dtype: str) -> None:
    arguments = score_arguments(objects, channels, dtype)
    targets = arguments.pop("targets")
    name = {"float32": "target_scores_f32", "float16": "target_scores_f16"}[dtype]
    kernel, reference = kernel_and_reference(shim, name, **arguments)
    given = kernel["scores"]
    assert largest_difference(given, reference["scores"]) <= KERNEL_VERSUS_REFERENCE
    expected = target_scores(targets, arguments["features"].astype(np.float32), range(objects))
    assert largest_difference(given, expected) <= TARGET_SCORE
    assert given.min() < 0.01
    assert given.max() > 0.99
    # Control: another bias.
    arguments["biases"] = arguments["biases"] + np.float32(0.1)
    other = kernel_outputs(shim, name, **arguments)["scores"]
    assert largest_difference(other, expected) > 100 * TARGET_SCORE


def warp_arguments() -> dict[str, Any]:
    rng = np.random.default_rng(2)
    flow = rng.normal(0, 3, (2, *FRAME_HW)).astype(np.float32)
    flow[:, 20:, 30:] += 25  # outside
    flow[0, 0, 0] = np.nan
    return {
        "scores": random_scores(),
        "flow_to_prev_px": flow,
        "objects": 3,
        "height": FRAME_HW[0],
        "width": FRAME_HW[1],
        **GRID,
        "scale_x": FRAME_HW[1] / INPUT_HW[1],
        "scale_y": FRAME_HW[0] / INPUT_HW[0],
        "step_x": INPUT_HW[1] / FRAME_HW[1] / 8,
        "step_y": INPUT_HW[0] / FRAME_HW[0] / 8,
        "warped": empty((3, *GRID_HW)),
    }


def test_warp_scores_matches_cpu(shim: Shim) -> None:
    arguments = warp_arguments()
    kernel, reference = kernel_and_reference(shim, "warp_scores", **arguments)
    assert largest_difference(kernel["warped"], reference["warped"]) <= KERNEL_VERSUS_REFERENCE
    expected = cpu.warp_scores(arguments["scores"], arguments["flow_to_prev_px"], INPUT_HW)
    assert largest_difference(kernel["warped"], expected) <= WARP_ABSOLUTE
    assert (expected == 0).any()
    # Control: the axes of the flow differ.
    arguments["step_x"], arguments["step_y"] = arguments["step_y"], 0.5 * arguments["step_x"]
    other = kernel_outputs(shim, "warp_scores", **arguments)["warped"]
    assert largest_difference(other, expected) > 0.1


@pytest.mark.parametrize("objects", [1, 3])
def test_exclude_others_matches_cpu(shim: Shim, objects: int) -> None:
    scores = random_scores(objects)
    prob = np.random.default_rng(4).random((objects, *FRAME_HW), dtype=np.float32)
    arguments = {
        "scores": scores,
        "prob": prob,
        "objects": objects,
        "height": FRAME_HW[0],
        "width": FRAME_HW[1],
        **GRID,
        "scale_x": FRAME_HW[1] / INPUT_HW[1],
        "scale_y": FRAME_HW[0] / INPUT_HW[0],
        "exclusive": empty((objects, *GRID_HW)),
    }
    kernel, reference = kernel_and_reference(shim, "exclude_others", **arguments)
    exclusive = kernel["exclusive"]
    assert largest_difference(exclusive, reference["exclusive"]) <= KERNEL_VERSUS_REFERENCE
    expected = cpu.exclusive_scores(scores, prob, INPUT_HW)
    assert largest_difference(exclusive, expected) <= WARP_ABSOLUTE
    # Control: one object excludes none, several exclude each other.
    assert (largest_difference(exclusive, scores) > 0.1) == (objects > 1)


@pytest.mark.parametrize("growth", [0.0, 0.25, 3.0, 1e12])
def test_grow_rois_matches_cpu(shim: Shim, growth: float) -> None:
    scores = np.full((6, *GRID_HW), 0.5, np.float32)  # the test is strict
    scores[:, 3:6, 2:9] = 0.75
    scores[1, 0, 0] = scores[1, -1, -1] = 1.0
    scores[4, 7, 6] = np.nan
    given = [
        Roi(10, 5, 30, 25),
        Roi(10, 5, 30, 25),
        None,
        Roi(40, 30, 53, 37),
        Roi(0, 0, 53, 37),
        Roi(18, 14, 19, 15),
    ]
    arguments = {
        "scores": scores,
        "objects": len(given),
        "height": FRAME_HW[0],
        "width": FRAME_HW[1],
        **GRID,
        "scale_x": FRAME_HW[1] / INPUT_HW[1],
        "scale_y": FRAME_HW[0] / INPUT_HW[0],
        "cell_x": 8 * FRAME_HW[1] / INPUT_HW[1],
        "cell_y": 8 * FRAME_HW[0] / INPUT_HW[0],
        "growth": growth,
        "rois": box_rows(given),
    }
    kernel, reference = kernel_and_reference(shim, "grow_rois", **arguments)
    assert np.array_equal(kernel["rois"], reference["rois"])
    expected = cpu.grown_rois(scores, given, frame_hw=FRAME_HW, size_hw=INPUT_HW, growth=growth)
    assert boxes_from_rows(kernel["rois"]) == expected
    assert expected[0] != given[0]
    assert (expected[1] == Roi(0, 0, 53, 37)) == (growth > 1)


def crop_arguments(size: int, dtype: str = "float32", **changes: Any) -> dict[str, Any]:
    given = {
        "scores": random_scores(),
        "rois": ROIS,
        "objects": None,
        "slots": 3,
        "channels": 5,
        **GRID,
        **TO_INPUT,
        "size": size,
    }
    given |= changes
    return {**given, "packed": empty((given["slots"], 5, size, size), dtype)}


@pytest.mark.parametrize("size", [65, 7])
def test_crop_scores_match_cpu(shim: Shim, size: int) -> None:
    arguments = crop_arguments(size)
    kernel, reference = kernel_and_reference(shim, "crop_scores_f32", **arguments)
    packed = kernel["packed"]
    assert np.isnan(packed[:, :4]).all(), "crop_pack writes these"
    score = packed[:, 4]
    assert largest_difference(score, reference["packed"][:, 4]) <= KERNEL_VERSUS_REFERENCE
    rois = boxes_from_rows(ROIS)
    expected = cpu.crop_scores(
        arguments["scores"], rois, frame_hw=FRAME_HW, size_hw=INPUT_HW, side=size
    )
    assert largest_difference(score[[0, 2]], expected) <= WARP_ABSOLUTE
    assert not score[1].any()
    # Control: scores of another object.
    other = kernel_outputs(
        shim, "crop_scores_f32", **crop_arguments(size, scores=arguments["scores"][::-1].copy())
    )["packed"]
    assert largest_difference(other[[0, 2], 4], expected) > 0.1


def test_crop_scores_of_chosen_objects_or_none(shim: Shim) -> None:
    chosen = np.array([2, 0], np.int32)
    every = kernel_outputs(shim, "crop_scores_f32", **crop_arguments(33))["packed"]
    kernel, reference = kernel_and_reference(
        shim, "crop_scores_f16", **crop_arguments(33, "float16", objects=chosen, slots=2)
    )
    assert np.array_equal(kernel["packed"][:, 4], every[chosen, 4].astype(np.float16))
    error = largest_difference(kernel["packed"][:, 4], reference["packed"][:, 4])
    assert error <= KERNEL_HALF_RELATIVE
    without = kernel_outputs(shim, "crop_scores_f32", **crop_arguments(33, scores=None))["packed"]
    assert (without[[0, 2], 4] == 0.5).all()
    assert not without[1, 4].any()


def test_scores_at_frame_match_cpu(shim: Shim) -> None:
    scores = random_scores()
    sizes = {"height": FRAME_HW[0], "width": FRAME_HW[1]}
    planes = empty((3, *FRAME_HW))
    kernel, reference = kernel_and_reference(
        shim, "scores_at_frame", scores=scores, objects=3, **GRID, **TO_INPUT, **sizes,
        planes=planes,
    )  # fmt: skip
    assert largest_difference(kernel["planes"], reference["planes"]) <= KERNEL_VERSUS_REFERENCE
    expected = np.stack(cpu.scores_at_frame(scores, FRAME_HW, INPUT_HW))
    assert largest_difference(kernel["planes"], expected) <= WARP_ABSOLUTE
    # Control: half a cell aside.
    other = np.stack(cpu.scores_at_frame(scores, FRAME_HW, (57, 89)))
    assert largest_difference(kernel["planes"], other) > 0.1
