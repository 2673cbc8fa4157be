from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from mpn.engines.tensorrt.plans.report import with_half_inputs
from mpn.errors import EngineError


def graph_bytes() -> bytes:
    """Make ``prob = float(half(image) + half(other))``."""
    shape = ["objects", 3]
    nodes = [
        helper.make_node("Cast", ["image"], ["a"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["other"], ["b"], to=TensorProto.FLOAT16),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("Cast", ["c"], ["prob"], to=TensorProto.FLOAT),
    ]
    values = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name in ("image", "other", "prob")
    }
    graph = helper.make_graph(
        nodes,
        "g",
        [values["image"], values["other"]],
        [values["prob"]],
        [numpy_helper.from_array(np.ones(300, np.float32), "unused")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())


def test_one_input_becomes_half_and_nothing_else_changes() -> None:
    before = graph_bytes()
    after = with_half_inputs(before, ["other"])
    assert sum(a != b for a, b in zip(before, after, strict=True)) == 1
    model = onnx.load_from_string(after)
    onnx.checker.check_model(model, full_check=True)
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    assert kinds == {"image": TensorProto.FLOAT, "other": TensorProto.FLOAT16}


def test_the_result_is_the_same_to_the_last_bit() -> None:
    rng = np.random.default_rng(0)
    image, other = rng.standard_normal((2, 5, 3), np.float32)
    # Not onnxruntime, whose optimiser leaves casts to half and back out.
    run = [
        ReferenceEvaluator(onnx.load_from_string(content)).run
        for content in (graph_bytes(), with_half_inputs(graph_bytes(), ["image", "other"]))
    ]
    (expected,) = run[0](None, {"image": image, "other": other})
    halves = {"image": image.astype(np.float16), "other": other.astype(np.float16)}
    np.testing.assert_array_equal(run[1](None, halves)[0], expected)
    # Control: rounded otherwise, it is another.
    halves["other"] = np.nextafter(halves["other"], np.float16(9))
    assert (run[1](None, halves)[0] != expected).any()


@pytest.mark.parametrize(
    ("model", "names", "says"),
    [
        (graph_bytes(), ["prob"], r"has no input \['prob'\]"),
        (with_half_inputs(graph_bytes(), ["image"]), ["image"], "is not float32"),
        (b"\x3a\xff\xff\x7f", ["image"], "is no ONNX file"),
        (graph_bytes()[:-9], ["image"], "is no ONNX file"),
        (b"\xff" * 40, ["image"], "is no ONNX file"),
        (b"", ["image"], "has no input"),
    ],
)
def test_unsupported_change_raises(model: bytes, names: list[str], says: str) -> None:
    with pytest.raises(EngineError, match=says):
        with_half_inputs(model, names)
