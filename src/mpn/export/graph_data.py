"""External weight file of a graph, which needs no ``onnx`` to be replaced."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import numpy_helper

from mpn.errors import ExportError

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
