"""Fine-tuned weights as one file: for a cache, or to carry them elsewhere. No pickle in it.

The layout is that of safetensors (8 bytes of little-endian header length, a JSON index, raw data),
so that other tools can read it; a digest of the data is kept in its metadata.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mpn._common.files import write_atomically
from mpn.engines.fields import Fields, json_from_text
from mpn.errors import EngineError, InputError, ManifestError
from mpn.types import Float32Array

FORMAT = "mpn-weights-1"
_METADATA = "__metadata__"
_LENGTH = struct.Struct("<Q")
_LARGEST_HEADER = 16 << 20


def save_weights(
    path: Path, weights: Mapping[str, Float32Array], metadata: Mapping[str, str] | None = None
) -> None:
    """Write weights so that ``path`` holds either its old content or all of the new one.

    Args:
        path: The file.
        weights: float32 arrays by name.
        metadata: Whatever should be kept with them.

    Raises:
        InputError: If a name or array cannot be stored.
        OutputError: If it cannot be written; nothing is left.
    """
    index: dict[str, Any] = {}
    digest, offset, arrays = hashlib.sha256(), 0, []
    for name, values in weights.items():
        if name == _METADATA or values.dtype != np.float32:
            raise InputError(f"weight '{name}' must be float32, got {values.dtype}")
        array = np.ascontiguousarray(values, "<f4")
        arrays.append(array)
        digest.update(array.data)
        span = [offset, offset + array.nbytes]
        index[name] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": span}
        offset += array.nbytes
    known = {**(metadata or {}), "format": FORMAT, "sha256": digest.hexdigest()}
    header = json.dumps({_METADATA: known, **index}).encode("ascii")
    header += b" " * (-len(header) % 8)

    def write(stream: BinaryIO) -> None:
        stream.write(_LENGTH.pack(len(header)) + header)
        for array in arrays:
            stream.write(array.data)

    write_atomically(path, write, durable=True)


def load_weights(path: Path) -> dict[str, Float32Array]:
    """Read weights, and check that they are the ones that were written.

    Raises:
        EngineError: If the file is missing, damaged, cut short, or not one of these.
    """
    return read_weights_file(path)[0]


def read_weights_file(path: Path) -> tuple[dict[str, Float32Array], dict[str, str]]:
    """As :func:`load_weights`, with the metadata that was saved.

    Raises:
        EngineError: If the file is missing, damaged, cut short, or not one of these.
    """
    try:
        content = path.read_bytes()
        return _parsed(content)
    except OSError as error:
        raise EngineError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ManifestError, ValueError, struct.error) as error:
        raise EngineError(
            f"{path} holds no weights of this package, or is damaged: {error}"
        ) from error


def _parsed(content: bytes) -> tuple[dict[str, Float32Array], dict[str, str]]:
    (length,) = _LENGTH.unpack_from(content)
    if length > min(_LARGEST_HEADER, len(content)):
        raise ManifestError("its index is longer than the file")
    fields = Fields(json_from_text(content[_LENGTH.size : _LENGTH.size + length].decode("ascii")))
    metadata = {key: str(value) for key, value in fields.scalars(_METADATA).items()}
    if metadata.pop("format", None) != FORMAT:
        raise ManifestError(f"its format is not {FORMAT}")
    data = memoryview(content)[_LENGTH.size + length :]
    if hashlib.sha256(data).hexdigest() != metadata.pop("sha256", None):
        raise ManifestError("its content differs from its digest")
    weights = {}
    for name in fields.names:
        if name != _METADATA:
            weights[name] = _array(fields.object(name), data)
    return weights, metadata


def _array(fields: Fields, data: memoryview) -> Float32Array:
    fields.choice("dtype", ("F32",))
    shape = tuple(size for size in fields.shape("shape") if isinstance(size, int))
    begin, end = fields.size_hw("data_offsets")
    if not 0 <= begin <= end <= len(data):
        raise ManifestError(f"bytes {begin} to {end} lie outside of it")
    return np.frombuffer(data[begin:end], "<f4").reshape(shape).astype(np.float32)
