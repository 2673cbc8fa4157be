"""FLOP and bytes against hand-computed values, and the sums of a profile."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mpn.engines.onnxruntime.engine import open_session
from mpn.engines.open import shipped_engine_dir
from mpn.runtime.bench.profile import operators_of, profile_network, summary_of
from mpn.runtime.bench.roofline import _FLOAT, Peaks, _product, cost_of, measure_peaks
from mpn.runtime.bench.stages import FrameSizes, stage_costs

PEAKS = Peaks(gemm_flop_s=1e9, int8_flop_s=4e9, bandwidth_bytes_s=1e9)


def arguments(inputs, outputs, op_name="Conv"):
    return {
        "op_name": op_name,
        "input_type_shape": [{dtype: shape} for dtype, shape in inputs],
        "output_type_shape": [{dtype: shape} for dtype, shape in outputs],
    }


CONV = arguments([("float", [1, 3, 8, 8]), ("float", [4, 3, 3, 3])], [("float", [1, 4, 8, 8])])
DEPTHWISE = arguments([("float", [1, 4, 8, 8]), ("float", [4, 1, 3, 3])], [("float", [1, 4, 8, 8])])
MATMUL = arguments([("float", [5, 7]), ("float", [7, 2])], [("float", [5, 2])])
QUANTISED = arguments(
    [("uint8", [1, 3, 8, 8]), ("float", []), ("uint8", []), ("int8", [4, 3, 3, 3])],
    [("uint8", [1, 4, 8, 8])],
)


@pytest.mark.parametrize(
    ("operator", "args", "flop", "nbytes"),
    [
        ("Conv", CONV, 2 * 4 * 64 * 27, 4 * (192 + 108 + 256)),
        ("Conv", DEPTHWISE, 2 * 4 * 64 * 9, 4 * (256 + 36 + 256)),
        ("MatMul", MATMUL, 2 * 5 * 7 * 2, 4 * (35 + 14 + 10)),
        ("QLinearConv", QUANTISED, 2 * 4 * 64 * 27, 192 + 4 + 1 + 108 + 256),
        ("Add", MATMUL, 0, 4 * (35 + 14 + 10)),
    ],
)
def test_cost_of_operator_equals_hand_count(operator, args, flop, nbytes):
    """The last operator has no FLOP, only bytes."""
    cost = cost_of(operator, args)
    assert (cost.flop, cost.nbytes) == (flop, nbytes)
    assert cost.is_int8 == (operator == "QLinearConv")
    assert cost.is_depthwise == (args is DEPTHWISE)


def test_operators_planted_slow_one_is_first():
    """The first frame is dropped; two batches of a frame are summed."""
    events = [
        {"cat": "Node", "name": f"{name}_kernel_time", "dur": us, "args": CONV}
        for us_of_frame in (10**6, 1000)
        for _ in range(2)
        for name, us in (("quick", us_of_frame), ("slow", 50 * us_of_frame))
    ]
    found = operators_of(events, 2, PEAKS)
    assert [operator["name"] for operator in found] == ["slow", "quick"]
    assert [operator["median_ms"] for operator in found] == [100.0, 2.0]
    assert found[1]["flop"] == 2 * cost_of("Conv", CONV).flop
    assert found[1]["share"] == pytest.approx(2 * 13824 / 1e9 / 2e-3, abs=1e-4)


def test_summary_shares_sum_to_one():
    """The stage of the network takes 3 ms more than its operators."""
    stages = [
        {"name": "propagation", "kind": "network", "median_ms": 6.0, "runs_share": 1.0},
        {"name": "flow", "kind": "library", "median_ms": 3.0, "runs_share": 1.0},
        {"name": "merge", "kind": "python", "median_ms": 2.0, "runs_share": 0.5},
    ]
    stages = [{**stage, "share": None} for stage in stages]
    operators = [
        {"network": "propagation", "median_ms": 1.0, "share": 0.9, "reason": "dense operators"},
        {"network": "propagation", "median_ms": 2.0, "share": 0.2, "reason": "small shapes"},
    ]
    found = summary_of(stages, operators)
    assert found == {
        "at 70% of the roofline or more": 0.1,
        "small shapes": 0.2,
        "networks outside their operators": 0.3,
        "library code": 0.3,
        "Python and NumPy": 0.1,
    }


def test_stage_close_to_the_roofline_is_counted_as_such():
    stage = {"kind": "python", "median_ms": 1.0, "runs_share": 1.0}
    stages = [{**stage, "name": "warp", "share": 0.7}, {**stage, "name": "crop", "share": 0.6}]
    assert list(summary_of(stages, []).values()) == [0.5, 0.5]


def test_costs_of_stages_equal_hand_counts():
    """Two objects in 4x6 pixels of an 8x12 video, crops of 5x3x3, features of 7x2x2."""
    sizes = FrameSizes(2, (8, 12), (4, 6), (5, 3, 3), (7, 2, 2))
    found = {name: (cost.flop, cost.nbytes) for name, cost in stage_costs(sizes).items()}
    assert found == {
        "flow": (0, 14 * 24),
        "warp": (8 * 2 * 24, 2 * (4 * 2 * 24) + 8 * 24),
        "crop": ((8 * 5 + 6) * 2 * 9, 7 * 2 * 9 + 4 * 5 * 2 * 9),
        "paste": (8 * 2 * 9, 4 * 2 * 9 + 4 * 2 * 24),
        "merge": (3 * 2 * 24, 2 * (4 * 2 * 24)),
        "output": (0, 4 * 2 * 24 + 96),
        "target": (2 * 7 * 4 * 2, 4 * 4 * (7 + 2)),
    }
    assert "target" not in stage_costs(replace(sizes, features_chw=None))


def test_int8_network_has_the_operations_of_float(tmp_path):
    """Reordered weights have no shape in the profile of a run."""
    inputs = [{"image": np.zeros((1, 3, 385, 673), np.float32)}]
    flop = {}
    for name in ("lite", "lite-int8"):
        path = shipped_engine_dir(name) / "features.onnx"
        found = profile_network(path, inputs, PEAKS, 1, repeats=1)
        flop[name] = sum(operator["flop"] for operator in found)
    # onnxruntime pads channels of float convolutions to its blocks.
    assert flop["lite"] * 0.9 <= flop["lite-int8"] <= flop["lite"]


def test_measure_peaks_small_sizes_returns_rates():
    """The models of the matrix products are valid for onnxruntime."""
    peaks = measure_peaks(1, side=32, copy_bytes=4096, repeats=1)
    assert min(peaks.as_json().values()) > 0


def test_operators_sum_is_within_time_of_run(tmp_path):
    """Nodes run one after another, inside their run."""
    graph = tmp_path / "product.onnx"
    graph.write_bytes(_product("MatMul", 64, (_FLOAT, _FLOAT, _FLOAT)))
    session = open_session(graph, "cpu", 1, profile_prefix=tmp_path / "profile")
    for _ in range(2):
        session.run(None, {name: np.ones((64, 64), np.float32) for name in "ab"})
    events = json.loads(Path(session.end_profiling()).read_text())
    whole_ms = max(event["dur"] for event in events if event["name"] == "model_run") / 1e3
    (found,) = operators_of(events, 1, PEAKS)
    assert (found["type"], found["flop"]) == ("MatMul", 2 * 64**3)
    assert found["median_ms"] <= whole_ms
