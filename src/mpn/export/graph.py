"""One network -> one ONNX graph whose names, axes and operators are those its spec promises."""

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
from mpn.export.description import Progress, timed
from mpn.export.precision import (
    PrecisionLedger,
    check_ledger,
    ledger_from_graph,
    prepare_network,
)
from mpn.export.tracing import deployed, traced_program

_WRAPPER_PREFIX = "network."
_WEIGHT_SUFFIX = ".weight"
_WITH_BIAS = frozenset({"Conv", "ConvTranspose"})


def strip_metadata(model: onnx.ModelProto) -> None:
    """Remove stack traces, which hold file paths, and the wrapper's prefix of weight names.

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
    """Give every convolution its own bias again, under its name.

    The exporter's optimiser drops biases that are zero and merges equal ones. Either would be wrong
    as soon as the weights are exchanged for fine-tuned ones: the side branch that is new in the
    five-branch OSVOS starts with a bias of zero.

    Args:
        model: Stripped of prefixes; changed in place.
        network: The network that was traced.

    Returns:
        How many were restored.
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
"""A cache line, and more than any vector instruction asks for."""
_DTYPES = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.FLOAT16: "float16"}


@dataclass(frozen=True)
class StoredTensor:
    """Where a weight lies in the file beside its graph.

    Attributes:
        name: Of the initialiser.
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
        model: With all its values inside; changed in place, not written.
        path: Where the graph will be written.
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
            tensor.ClearField("int32_data")  # where half values without raw_data are
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", location), ("offset", offset), ("length", len(data))):
                tensor.external_data.add(key=key, value=str(value))
    return location


def stored_tensors(path: Path) -> tuple[StoredTensor, ...]:
    """Every weight that a written graph keeps outside.

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
"""From this many bytes of weights on, they lie in a file of their own beside the graph."""

MAX_FLOW_NODES = 800
"""FlowNet 2.0 with the correlation as a band of matrix products has 445 nodes; the correlation as
441 slices alone has 1346 and takes 12 s a frame instead of 0.4 s."""

_TRACED_OBJECTS = 2  # the exporter would take a size of 1 as fixed


@dataclass(frozen=True)
class ExportedGraph:
    """A graph that was written and has passed :func:`graph_failures`.

    Attributes:
        path: The ``.onnx`` file.
        external_data: Names of the weight files beside it.
        nodes: Number of nodes.
        size_bytes: Of all its files.
        ledger: Which weights are half.
        underflows: Weights that became 0 in half precision and were not.
        elapsed_s: Preparing, tracing and writing together.
    """

    path: Path
    external_data: tuple[str, ...]
    nodes: int
    size_bytes: int
    ledger: PrecisionLedger
    underflows: int
    elapsed_s: float


def export_graph(
    network: nn.Module,
    spec: EngineSpec,
    path: Path,
    *,
    precision: Precision = "fp32",
    weights_beside: bool = False,
    progress: Progress | None = None,
) -> ExportedGraph:
    """Write ``network`` as the graph of ``spec.role``, and check what was written.

    The graph has static sizes but for the objects axis, opset 18, the names of the network's own
    weights, and no trace of the machine that exported it. Weights of 16 MiB and more lie beside it
    in ``<name>.onnx.data``.

    Args:
        network: FlowNet2, DeepLabXception or OsvosVgg; it is not changed.
        spec: The interface the graph must have.
        path: The ``.onnx`` file to write; its folder exists.
        precision: ``"fp16"``: half inside, float32 at the edges.
        weights_beside: Keep every weight in ``<name>.onnx.data``, whatever their size, so that
            they can be exchanged for fine-tuned ones.
        progress: Told of each step.

    Raises:
        ExportError: If the network cannot be exported as asked, or the graph is not what the spec
            says; all differences are named.
        OutputError: If the files cannot be written.
    """
    progress = Progress() if progress is None else progress
    role = spec.role
    with timed(progress, role, "prepare") as prepare:
        prepared = prepare_network(role, network, precision, probe_inputs(role))
    with timed(progress, role, "trace") as trace:
        program = _trace(deployed(role, prepared.network), spec)
    with timed(progress, role, "write") as write:
        external_data = _write(program, path, prepared.network, weights_beside)
    failures = graph_failures(path, spec)
    if failures:
        raise ExportError(f"the {role} graph is not what it must be: {'; '.join(failures)}")
    ledger = ledger_from_graph(path)
    check_ledger(role, ledger, precision, prepared.float32_layers)
    files = [path, *(path.with_name(name) for name in external_data)]
    return ExportedGraph(
        path=path,
        external_data=external_data,
        nodes=len(onnx.load(path, load_external_data=False).graph.node),
        size_bytes=sum(file.stat().st_size for file in files),
        ledger=ledger,
        underflows=prepared.underflows,
        elapsed_s=prepare.elapsed_s + trace.elapsed_s + write.elapsed_s,
    )


def graph_failures(path: Path, spec: EngineSpec) -> list[str]:
    """What in a written graph differs from its spec or would go wrong on a backend.

    Args:
        path: The ``.onnx`` file; its external data is not read.
        spec: The interface it must have.

    Returns:
        One phrase a failure; empty if the graph is fine.
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


def probe_inputs(role: Role) -> tuple[Tensor, ...]:
    """Small inputs that make every layer of a role's network run, of values a network may see."""
    generator = torch.Generator().manual_seed(0)
    if role == "flow":
        return tuple(torch.rand((2, 1, 3, 64, 64), generator=generator).mul(255.0).unbind())
    channels, size = (4, 65) if role == "propagation" else (3, 64)
    return (torch.rand((1, channels, size, size), generator=generator),)


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


def _write(program: Any, path: Path, network: nn.Module, weights_beside: bool) -> tuple[str, ...]:
    """Write the graph without metadata of the exporting machine; names of its external files."""
    external = not weights_beside and _weight_bytes(network) >= EXTERNAL_DATA_BYTES
    with output_errors(path):
        program.save(path, external_data=external)
        model = onnx.load(path, load_external_data=False)
        strip_metadata(model)
        restore_biases(model, network)
        if weights_beside:
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
