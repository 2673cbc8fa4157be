"""Split of a network into a frozen trunk and a trained head."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import onnx

from mpn.export.adapt_trace import MARGIN, ForwardGraph
from mpn.export.autodiff.backward import dependents

TARGET = "target"
"""Tensor with the height and width of the network's input, which the head does not get."""


@dataclass(frozen=True)
class TrunkCut:
    """Network in two parts.

    Attributes:
        trunk: Nodes from the network's input to the features.
        head: Nodes from the features to the logits; they read the image size from ``target``.
        features: Tensors that the head takes from the trunk.
    """

    trunk: tuple[onnx.NodeProto, ...]
    head: tuple[onnx.NodeProto, ...]
    features: tuple[str, ...]


def cut_trunk(forward: ForwardGraph, trained: Collection[str]) -> TrunkCut:
    """Split a network before its first trained weight.

    Args:
        forward: The network.
        trained: Its trained weights; nodes that depend on none of them are the trunk.
    """
    active = dependents(forward.nodes, trained)
    sizes: set[str] = set()
    head: list[onnx.NodeProto] = []
    trunk: list[onnx.NodeProto] = []
    for node in forward.nodes:
        of_sizes = any(name in sizes for name in node.input) and all(
            name in sizes or name in forward.constants for name in node.input if name
        )
        if node.op_type == "Shape" or of_sizes:
            # Cheap, and both parts may need them; unneeded copies are removed below.
            sizes.update(node.output)
            trunk.append(node)
            head.append(_with_size_of_target(node, forward.input_name))
        elif node.output[0] in active:
            head.append(node)
        else:
            trunk.append(node)
    kept = _needed(head, (MARGIN,))
    made = {name for node in trunk for name in node.output} - sizes
    features = tuple(dict.fromkeys(name for node in kept for name in node.input if name in made))
    return TrunkCut(_needed(trunk, features), kept, features)


def _with_size_of_target(node: onnx.NodeProto, image: str) -> onnx.NodeProto:
    if node.op_type != "Shape" or node.input[0] != image:
        return node
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.input[0] = TARGET
    return copy


def _needed(nodes: list[onnx.NodeProto], outputs: Collection[str]) -> tuple[onnx.NodeProto, ...]:
    """Return the nodes that ``outputs`` are computed from."""
    needed, kept = set(outputs), []
    for node in reversed(nodes):
        if any(name in needed for name in node.output):
            kept.append(node)
            needed.update(node.input)
    return tuple(reversed(kept))
