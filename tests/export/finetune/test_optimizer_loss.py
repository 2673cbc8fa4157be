from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper

from mpn.export.autodiff import GraphBuilder
from mpn.export.finetune.optimizer import cross_entropy
from mpn.training.losses import class_balanced_loss
from mpn.types import Float32Array
from tests.tolerances import LOSS_RELATIVE

SHAPE = (3, 1, 6, 7)


@pytest.fixture(scope="module")
def session() -> ort.InferenceSession:
    return _session(is_balanced=True)


def _session(*, is_balanced: bool) -> ort.InferenceSession:
    builder = GraphBuilder({})
    nodes = cross_entropy(builder, "margin", "target", is_balanced=is_balanced, loss="loss")
    sizes = ["n", 1, "h", "w"]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes)
        for name in ("margin", "target")
    ]
    outputs = [
        helper.make_tensor_value_info("loss", TensorProto.FLOAT, []),
        helper.make_tensor_value_info(nodes.gradient, TensorProto.FLOAT, None),
    ]
    graph = helper.make_graph(builder.nodes, "loss", inputs, outputs, builder.constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def _run(
    session: ort.InferenceSession, margin: Float32Array, target: Float32Array
) -> tuple[float, Float32Array]:
    loss, gradient = session.run(None, {"margin": margin, "target": target})
    return float(loss), gradient


def _torch(margin: Float32Array, target: Float32Array) -> tuple[float, Float32Array]:
    leaf = torch.tensor(margin, requires_grad=True)
    loss = class_balanced_loss(leaf, torch.tensor(target))
    loss.backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    return float(loss.detach()), leaf.grad.numpy()


def _example(scale: float = 3.0) -> tuple[Float32Array, Float32Array]:
    rng = np.random.default_rng(0)
    margin = (scale * rng.standard_normal(SHAPE)).astype(np.float32)
    return margin, (rng.random(SHAPE) < np.float32([[[[0.2]]], [[[0.5]]], [[[0.7]]]])).astype(
        np.float32
    )


def test_it_is_the_loss_that_training_uses(session: ort.InferenceSession) -> None:
    margin, target = _example()
    loss, gradient = _run(session, margin, target)
    expected, expected_gradient = _torch(margin, target)
    assert loss == pytest.approx(expected, rel=LOSS_RELATIVE)
    largest = np.abs(expected_gradient).max()
    assert np.abs(gradient - expected_gradient).max() < LOSS_RELATIVE * largest
    # Not one of its relatives: plain cross-entropy, or the published sum.
    plain = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.tensor(margin), torch.tensor(target)
    )
    assert abs(loss - float(plain)) > 0.1 * loss
    summed = class_balanced_loss(torch.tensor(margin), torch.tensor(target), reduction="sum")
    assert loss == pytest.approx(float(summed) / (SHAPE[2] * SHAPE[3]), rel=LOSS_RELATIVE)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_mask_without_object_or_without_background_has_no_loss(
    session: ort.InferenceSession, value: float
) -> None:
    margin, _ = _example()
    loss, gradient = _run(session, margin, np.full(SHAPE, value, np.float32))
    assert loss == 0.0
    np.testing.assert_array_equal(gradient, np.zeros(SHAPE, np.float32))


def test_one_empty_mask_leaves_the_others_their_share(session: ort.InferenceSession) -> None:
    margin, target = _example()
    target[1] = 0.0
    expected, expected_gradient = _torch(margin, target)
    loss, gradient = _run(session, margin, target)
    assert loss == pytest.approx(expected, rel=LOSS_RELATIVE)
    assert loss > 0
    assert not gradient[1].any()
    assert gradient[0].any()
    np.testing.assert_allclose(gradient, expected_gradient, atol=LOSS_RELATIVE)


def test_logits_however_large_stay_finite(session: ort.InferenceSession) -> None:
    margin, target = _example(scale=1e4)
    loss, gradient = _run(session, margin, target)
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()
    assert loss == pytest.approx(_torch(margin, target)[0], rel=LOSS_RELATIVE)


def test_a_target_is_an_object_from_a_half_on(session: ort.InferenceSession) -> None:
    margin, target = _example()
    soft = np.where(target > 0, np.float32(0.5), np.float32(0.49))
    assert _run(session, margin, soft)[0] == _run(session, margin, target)[0]


def test_an_image_that_is_not_a_number_shows_in_the_loss(session: ort.InferenceSession) -> None:
    margin, target = _example()
    margin[0, 0, 0, 0] = np.nan
    assert not np.isfinite(_run(session, margin, target)[0])


def test_the_plain_loss_is_the_mean_cross_entropy() -> None:
    margin, target = _example()
    loss, gradient = _run(_session(is_balanced=False), margin, target)
    leaf = torch.tensor(margin, requires_grad=True)
    plain = torch.nn.functional.binary_cross_entropy_with_logits(leaf, torch.tensor(target))
    plain.backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    assert loss == pytest.approx(float(plain.detach()), rel=LOSS_RELATIVE)
    expected = leaf.grad.numpy()
    assert np.abs(gradient - expected).max() < LOSS_RELATIVE * np.abs(expected).max()
    # control: the balanced loss has another gradient
    _, balanced = _run(_session(is_balanced=True), margin, target)
    assert np.abs(balanced - expected).max() > 0.1 * np.abs(expected).max()
