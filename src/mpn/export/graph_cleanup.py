"""Repairs of a traced graph: metadata to remove, and biases to restore."""

from __future__ import annotations

import onnx
from onnx import numpy_helper
from torch import nn

_WRAPPER_PREFIX = "network."
_WEIGHT_SUFFIX = ".weight"
_WITH_BIAS = frozenset({"Conv", "ConvTranspose"})


def strip_metadata(model: onnx.ModelProto) -> None:
    """Remove stack traces, which hold file paths, and a prefix of weight names.

    Args:
        model: Changed in place.
    """
    graph = model.graph
    for item in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
        item.doc_string = ""
        del item.metadata_props[:]
    for tensor in graph.initializer:
        tensor.doc_string = ""
        del tensor.metadata_props[:]
        tensor.name = tensor.name.removeprefix(_WRAPPER_PREFIX)
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = name.removeprefix(_WRAPPER_PREFIX)
    for value in graph.value_info:
        value.name = value.name.removeprefix(_WRAPPER_PREFIX)


def restore_biases(model: onnx.ModelProto, network: nn.Module) -> int:
    """Restore the bias of every convolution, under its own name.

    The exporter's optimiser removes biases that are zero and merges equal ones. Both would be wrong
    after the weights are replaced by fine-tuned ones: the additional side branch of the five-branch
    OSVOS starts with a bias of zero.

    Args:
        model: Without name prefixes; changed in place.
        network: The traced network.

    Returns:
        Number of restored biases.
    """
    parameters = dict(network.named_parameters())
    present = {tensor.name for tensor in model.graph.initializer}
    restored = 0
    for node in model.graph.node:
        if node.op_type not in _WITH_BIAS or not node.input[1].endswith(_WEIGHT_SUFFIX):
            continue
        name = f"{node.input[1].removesuffix(_WEIGHT_SUFFIX)}.bias"
        if name not in parameters or (len(node.input) > 2 and node.input[2] == name):
            continue
        if name not in present:
            values = parameters[name].detach().cpu().numpy()
            model.graph.initializer.append(numpy_helper.from_array(values, name))
            present.add(name)
        node.input[:] = [*node.input[:2], name]
        restored += 1
    used = {name for node in model.graph.node for name in node.input}
    unused = [tensor for tensor in model.graph.initializer if tensor.name not in used]
    for tensor in unused:
        model.graph.initializer.remove(tensor)
    return restored
