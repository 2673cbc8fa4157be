"""Export of one network to one ONNX graph that matches its spec."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from mpn._common.files import output_errors
from mpn._common.text import one_line
from mpn.engines.spec import OPSET, EngineSpec, Precision, Role, TensorSpec
from mpn.errors import ExportError
from mpn.export.precision import (
    PrecisionReport,
    check_precision,
    precision_report,
    prepare_network,
)
from mpn.export.progress import Progress, timed
from mpn.export.tracing import deployed, traced_program
from mpn.networks.propagation import PropagationNet

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


_ALIGNMENT = 64
"""Bytes of a cache line, and more than any vector instruction requires."""
_DTYPES = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.FLOAT16: "float16"}


@dataclass(frozen=True)
class StoredTensor:
    """Location of a weight in the external file of its graph.

    Attributes:
        name: Name of the initialiser.
        shape: Sizes, row-major.
        file: Name of the file.
        offset: First byte.
        nbytes: Number of bytes, little endian.
        dtype: ``"float32"`` or ``"float16"``.
    """

    name: str
    shape: tuple[int, ...]
    file: str
    offset: int
    nbytes: int
    dtype: str


def move_weights_out(model: onnx.ModelProto, path: Path, names: Collection[str]) -> str:
    """Move weights into ``<graph>.data``, in the order of the graph.

    Args:
        model: Model with all its values; changed in place, not written.
        path: Future path of the graph.
        names: The initialisers to move.

    Returns:
        The name of the file.

    Raises:
        OSError: If it cannot be written.
    """
    location = f"{path.name}.data"
    with path.with_name(location).open("wb") as stream:
        for tensor in model.graph.initializer:
            if tensor.name not in names:
                continue
            values = numpy_helper.to_array(tensor)
            data = values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
            offset = math.ceil(stream.tell() / _ALIGNMENT) * _ALIGNMENT
            stream.write(b"\0" * (offset - stream.tell()) + data)
            tensor.ClearField("raw_data")
            tensor.ClearField("float_data")
            tensor.ClearField("int32_data")  # holds half values if there is no raw_data
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", location), ("offset", offset), ("length", len(data))):
                tensor.external_data.add(key=key, value=str(value))
    return location


def stored_tensors(path: Path) -> tuple[StoredTensor, ...]:
    """List the external weights of a written graph.

    Args:
        path: The ``.onnx`` file; its data is not read.

    Raises:
        ExportError: If one is neither float32 nor half.
    """
    found = []
    for tensor in onnx.load(path, load_external_data=False).graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        if tensor.data_type not in _DTYPES:
            raise ExportError(f"weight '{tensor.name}' of {path.name} is neither float32 nor half")
        where = {item.key: item.value for item in tensor.external_data}
        found.append(
            StoredTensor(
                name=tensor.name,
                shape=tuple(tensor.dims),
                file=where["location"],
                offset=int(where.get("offset", 0)),
                nbytes=int(where["length"]),
                dtype=_DTYPES[tensor.data_type],
            )
        )
    return tuple(found)


EXTERNAL_DATA_BYTES = 16 << 20
"""Weights of at least this many bytes are stored in a separate file."""

MAX_FLOW_NODES = 800
"""FlowNet 2.0 with the correlation as banded matrix products has 445 nodes. The correlation as 441
slices alone has 1346 and takes 12 s per frame instead of 0.4 s."""

_TRACED_OBJECTS = 2  # the exporter treats a size of 1 as fixed


@dataclass(frozen=True)
class ExportedGraph:
    """Written graph that has passed :func:`graph_failures`.

    Attributes:
        path: The ``.onnx`` file.
        external_data: Names of its weight files, in the same folder.
        nodes: Number of nodes.
        size_bytes: Size of all its files.
        precision_report: Counts of weights in half precision.
        underflows: Nonzero weights that became 0 in half precision.
        elapsed_s: Seconds of preparing, tracing and writing.
    """

    path: Path
    external_data: tuple[str, ...]
    nodes: int
    size_bytes: int
    precision_report: PrecisionReport
    underflows: int
    elapsed_s: float


def export_graph(
    network: nn.Module,
    spec: EngineSpec,
    path: Path,
    *,
    precision: Precision = "fp32",
    weights_in_file: bool = False,
    progress: Progress | None = None,
) -> ExportedGraph:
    """Write ``network`` as the graph of ``spec.role``, and check the file.

    The graph has static sizes except for the objects axis, opset 18, the names of the network's own
    weights, and no data of the exporting machine. Weights of 16 MiB and more are stored in
    ``<name>.onnx.data``.

    Args:
        network: FlowNet2, PropagationNet or OsvosVgg; it is not changed.
        spec: The interface of the graph.
        path: The ``.onnx`` file to write; its folder exists.
        precision: ``"fp16"``: layers in half, inputs and outputs in float32.
        weights_in_file: Store all weights in ``<name>.onnx.data``, for any size, so that they can
            be replaced by fine-tuned ones.
        progress: Called for each step.

    Raises:
        ExportError: If the network cannot be exported as requested, or the graph differs from the
            spec; the message lists all differences.
        OutputError: If the files cannot be written.
    """
    progress = Progress() if progress is None else progress
    role = spec.role
    with timed(progress, role, "prepare") as prepare:
        prepared = prepare_network(role, network, precision, probe_inputs(role, network))
    with timed(progress, role, "trace") as trace:
        program = _trace(deployed(role, prepared.network), spec)
    with timed(progress, role, "write") as write:
        external_data = _write(program, path, prepared.network, weights_in_file)
    failures = graph_failures(path, spec)
    if failures:
        raise ExportError(f"the {role} graph differs from its spec: {'; '.join(failures)}")
    report = precision_report(path)
    check_precision(role, report, precision, prepared.float32_layers)
    files = [path, *(path.with_name(name) for name in external_data)]
    return ExportedGraph(
        path=path,
        external_data=external_data,
        nodes=len(onnx.load(path, load_external_data=False).graph.node),
        size_bytes=sum(file.stat().st_size for file in files),
        precision_report=report,
        underflows=prepared.underflows,
        elapsed_s=prepare.elapsed_s + trace.elapsed_s + write.elapsed_s,
    )


def graph_failures(path: Path, spec: EngineSpec) -> list[str]:
    """List differences of a graph from its spec, and problems for a backend.

    Args:
        path: The ``.onnx`` file; its external data is not read.
        spec: The interface it must have.

    Returns:
        One phrase per failure; empty if there is none.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # OSError, or protobuf's, which has no type stubs
        return [f"it cannot be read as ONNX ({one_line(error)})"]
    graph = model.graph
    failures = []
    opsets = {item.domain: item.version for item in model.opset_import}
    if opsets != {"": OPSET}:
        failures.append(f"it uses the operator sets {opsets}, expected ONNX {OPSET} alone")
    failures += _tensor_failures("input", graph.input, spec.inputs)
    failures += _tensor_failures("output", graph.output, spec.outputs)
    allowed = {axis for tensor in spec.inputs for axis in tensor.dynamic_axes.values()}
    dynamic = {
        size
        for value in graph.value_info
        for size in _tensor_spec(value).shape
        if isinstance(size, str) and size not in allowed
    }
    if dynamic:
        failures.append(f"it has axes without a fixed size inside: {', '.join(sorted(dynamic))}")
    for node in graph.node:
        if node.op_type == "GridSample":
            failures += _grid_sample_failures(node)
    if spec.role == "flow" and len(graph.node) > MAX_FLOW_NODES:
        failures.append(
            f"it has {len(graph.node)} nodes, expected at most {MAX_FLOW_NODES}: the correlation "
            "was not traced as matrix products"
        )
    return failures


def input_channels(role: Role, network: nn.Module | None = None) -> int:
    """Return the channels of a role's input.

    Args:
        role: Role of the network.
        network: The network; None for the usual channels of the role.
    """
    if isinstance(network, PropagationNet):
        return network.config.in_channels
    return 4 if role == "propagation" else 3


def probe_inputs(role: Role, network: nn.Module | None = None) -> tuple[Tensor, ...]:
    """Make small inputs that run every layer of a role's network.

    Args:
        role: Role of the network.
        network: The network, for the channels of its input; None for the usual ones.
    """
    generator = torch.Generator().manual_seed(0)
    if role == "flow":
        return tuple(torch.rand((2, 1, 3, 64, 64), generator=generator).mul(255.0).unbind())
    size = 65 if role in ("propagation", "features") else 64
    shape = (1, input_channels(role, network), size, size)
    return (torch.rand(shape, generator=generator),)


def _trace(module: nn.Module, spec: EngineSpec) -> Any:
    inputs = tuple(_example(tensor) for tensor in spec.inputs)
    dynamic_shapes = tuple(
        {
            axis: torch.export.Dim(name, min=1, max=spec.max_objects or _TRACED_OBJECTS)
            for axis, name in tensor.dynamic_axes.items()
        }
        for tensor in spec.inputs
    )
    return traced_program(
        module,
        inputs,
        what=f"the {spec.role} network",
        input_names=spec.input_names,
        output_names=spec.output_names,
        dynamic_shapes=dynamic_shapes if any(dynamic_shapes) else None,
    )


def _example(tensor: TensorSpec) -> Tensor:
    shape = [_TRACED_OBJECTS if isinstance(size, str) else size for size in tensor.shape]
    return torch.zeros(shape)


def _write(program: Any, path: Path, network: nn.Module, weights_in_file: bool) -> tuple[str, ...]:
    """Write the graph without metadata of the machine; return its data files."""
    external = not weights_in_file and _weight_bytes(network) >= EXTERNAL_DATA_BYTES
    with output_errors(path):
        program.save(path, external_data=external)
        model = onnx.load(path, load_external_data=False)
        strip_metadata(model)
        restore_biases(model, network)
        if weights_in_file:
            move_weights_out(model, path, dict(network.named_parameters()))
        onnx.save_model(model, path)
    locations = {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return tuple(sorted(locations))


def _weight_bytes(network: nn.Module) -> int:
    return sum(value.numel() * value.element_size() for value in network.state_dict().values())


def _tensor_failures(kind: str, found: Any, expected: tuple[TensorSpec, ...]) -> list[str]:
    got = tuple(_tensor_spec(value) for value in found)
    if got == expected:
        return []
    return [
        f"{kind}s are {', '.join(_shown(tensor) for tensor in got) or 'none'}, "
        f"expected {', '.join(_shown(tensor) for tensor in expected)}"
    ]


def _tensor_spec(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.tensor_type
    shape = tuple(
        size.dim_value if size.HasField("dim_value") else size.dim_param or "?"
        for size in kind.shape.dim
    )
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    return TensorSpec(value.name, shape, dtype=dtype)


def _shown(tensor: TensorSpec) -> str:
    return f"{tensor.name} {tensor.dtype}[{','.join(map(str, tensor.shape))}]"


def _grid_sample_failures(node: onnx.NodeProto) -> list[str]:
    attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    mode = attributes.get("mode", b"bilinear").decode()
    if mode == "bilinear":
        return []
    return [
        f"GridSample '{node.name}' has mode '{mode}', which TensorRT's parser reads as nearest "
        "(NVIDIA/TensorRT#4646), expected 'bilinear'"
    ]
