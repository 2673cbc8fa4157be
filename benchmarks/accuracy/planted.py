"""Errors planted in the fine-tuning step, which its check must find."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from unittest import mock

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mpn.export.autodiff import backward
from mpn.export.autodiff.builder import Tape
from mpn.export.finetune.optimizer import OptimizerSettings, TensorGroup
from mpn.export.finetune.step import FinetuneGraph, adapt_graph
from mpn.export.finetune.trace import ForwardGraph

Grads = Iterator[tuple[str, str]]
Wrapper = Callable[[backward.Rule, Tape, onnx.NodeProto, str], Grads]


@dataclass(frozen=True)
class Planted:
    """An error.

    Attributes:
        operator: Operator whose derivative rule is wrapped; None if the rules are right.
        wrapper: Yields the wrong gradients of a node, given the right rule.
        nth: Number of the only wrong node, counted from the output; None for all.
        settings: Returns the wrong optimiser.
        edit: Changes the finished graph.
    """

    operator: str | None = None
    wrapper: Wrapper | None = None
    nth: int | None = None
    settings: Callable[[OptimizerSettings], OptimizerSettings] | None = None
    edit: Callable[[onnx.ModelProto], None] | None = None

    def graph(self, forward: ForwardGraph, settings: OptimizerSettings) -> FinetuneGraph:
        """Build the step of scope "all" with the error."""
        rules = dict(backward.RULES)
        if self.operator is not None and self.wrapper is not None:
            rules[self.operator] = self._wrapped(rules[self.operator], self.wrapper)
        with mock.patch.object(backward, "RULES", rules):
            built = adapt_graph(
                forward, settings if self.settings is None else self.settings(settings)
            )
        if self.edit is not None:
            self.edit(built.model)
        return built

    def _wrapped(self, right: backward.Rule, wrapper: Wrapper) -> backward.Rule:
        count = 0

        def rule(tape: Tape, node: onnx.NodeProto, grad: str) -> Grads:
            nonlocal count
            count += 1
            if self.nth is None or count == self.nth:
                return wrapper(right, tape, node, grad)
            return right(tape, node, grad)

        return rule


def _altered(node: onnx.NodeProto, **attributes: object) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    kept = [item for item in node.attribute if item.name not in attributes]
    del copy.attribute[:]
    copy.attribute.extend(kept)
    copy.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
    return copy


def _of_altered_weight(change: Callable[[Mapping[str, list[int]]], dict[str, object]]) -> Wrapper:
    """Return the rule of Conv with the weight's gradient of a changed convolution."""

    def wrapper(right: backward.Rule, tape: Tape, node: onnx.NodeProto, grad: str) -> Grads:
        attributes = {item.name: list(item.ints) for item in node.attribute if item.name != "group"}
        for name, part in right(tape, node, grad):
            if name == node.input[1]:
                wrong = dict(_weight_of(right, tape, _altered(node, **change(attributes)), grad))
                yield name, wrong[name]
            else:
                yield name, part

    return wrapper


def _weight_of(right: backward.Rule, tape: Tape, node: onnx.NodeProto, grad: str) -> Grads:
    """Yield the gradient of a convolution's weight, the only trained tensor."""
    only = Tape(tape.builder, frozenset({node.input[1]}), tape.constants)
    yield from right(only, node, grad)


def _without_stride(attributes: Mapping[str, list[int]]) -> dict[str, object]:
    # The pixels of a pointwise convolution would not have the number of its gradients.
    return {} if attributes["kernel_shape"] == [1, 1] else {"strides": [1, 1]}


def scaled(factor: float, index: int) -> Wrapper:
    """Return the rule with the gradient of one input multiplied by a factor."""

    def wrapper(right: backward.Rule, tape: Tape, node: onnx.NodeProto, grad: str) -> Grads:
        place = index % len(node.input)
        for name, part in right(tape, node, grad):
            if name == node.input[place]:
                yield name, tape.builder.op("Mul", part, tape.builder.scalar(factor))
            else:
                yield name, part

    return wrapper


def _without_count(right: backward.Rule, tape: Tape, node: onnx.NodeProto, grad: str) -> Grads:
    del right
    name = node.input[0]
    yield name, tape.builder.op("Expand", grad, tape.builder.once("Shape", name))


def _half_pixel(right: backward.Rule, tape: Tape, node: onnx.NodeProto, grad: str) -> Grads:
    yield from right(tape, _altered(node, coordinate_transformation_mode="half_pixel"), grad)


def _swap_kernel_axes(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        for item in node.attribute:
            if node.op_type == "Transpose" and list(item.ints) == [1, 0, 2, 3]:
                item.ints[:] = [1, 0, 3, 2]


def _keep_kernel_order(model: onnx.ModelProto) -> None:
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != "Slice" or len(node.input) < 5:
            continue
        steps = constants.get(node.input[4])
        if steps is not None and np.array_equal(steps, [-1, -1]):
            node.op_type = "Identity"
            del node.input[1:]


def _pass_all_units(model: onnx.ModelProto) -> None:
    """Replace z > 0 by z >= 0, which is always true of an output of ReLU."""
    for node in model.graph.node:
        if node.op_type == "HardSigmoid":
            for item in node.attribute:
                item.f = 1.0 if item.name == "beta" else item.f


def _drop_update(model: onnx.ModelProto) -> None:
    """Return one tensor, the middle one, as it was."""
    made = [
        node
        for node in model.graph.node
        if node.output[0].endswith(".weight::next") and node.op_type == "Sub"
    ]
    node = made[len(made) // 2]
    node.op_type = "Identity"
    name = node.output[0].removesuffix("::next")
    del node.input[:]
    node.input.append(name)


def grouped(**changes: float) -> Callable[[OptimizerSettings], OptimizerSettings]:
    """Return a change of the rates of all tensors."""

    def changed(settings: OptimizerSettings) -> OptimizerSettings:
        def group(name: str) -> TensorGroup:
            return replace(settings.group(name), **changes)

        return replace(settings, group=group)

    return changed


PLANTED: Mapping[str, Planted] = {
    "kernel transposed": Planted(edit=_swap_kernel_axes),
    "kernel not flipped": Planted(edit=_keep_kernel_order),
    "stride ignored": Planted("Conv", _of_altered_weight(_without_stride)),
    "dilation ignored": Planted("Conv", _of_altered_weight(lambda _: {"dilations": [1, 1]})),
    "padding off by one": Planted(
        "Conv", _of_altered_weight(lambda now: {"pads": [each + 1 for each in now["pads"]]})
    ),
    "bias gradient dropped": Planted("Conv", scaled(0.0, 2), nth=20),
    "scale of a folded batch norm": Planted("Conv", scaled(1.05, 1), nth=20),
    "mean not divided": Planted("ReduceMean", _without_count),
    "ReLU passes all": Planted(edit=_pass_all_units),
    "one ReLU negated": Planted("Relu", scaled(-1.0, 0), nth=10),
    "interpolation at half pixels": Planted("Resize", _half_pixel),
    "branch of a concatenation dropped": Planted("Concat", scaled(0.0, -1)),
    "one shortcut dropped": Planted("Add", scaled(0.0, 1), nth=4),
    "learning rate twice": Planted(settings=grouped(learning_rate_factor=2.0)),
    "weight decay missing": Planted(settings=grouped(weight_decay=0.0)),
    "one update dropped": Planted(edit=_drop_update),
}
"""Errors by name. Those of one node are in the middle of the network."""
