"""Weights as they lie in an engine directory: reading them, and writing others in their place."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mpn._common.files import write_atomically
from mpn.engines.directory.entries import WeightTensor
from mpn.engines.directory.files import resolve_inside
from mpn.engines.directory.schema import Fields, json_from_text
from mpn.errors import EngineError, InputError, ManifestError
from mpn.types import Float32Array


def read_weights(directory: Path, tensors: Sequence[WeightTensor]) -> dict[str, Float32Array]:
    """The values that are trained, by name: float32, without the scale they are stored with.

    Args:
        directory: The engine directory.
        tensors: Which, by the manifest.

    Raises:
        ManifestError: If a file is missing or too short.
    """
    weights = {}
    for tensor in tensors:
        path = resolve_inside(directory, tensor.file)
        try:
            with path.open("rb") as stream:
                stream.seek(tensor.offset)
                data = stream.read(tensor.nbytes)
        except OSError as error:
            raise ManifestError(f"{path} cannot be read: {error.strerror or error}") from error
        if len(data) != tensor.nbytes:
            raise ManifestError(
                f"{tensor.file} ends before weight '{tensor.name}': copy the folder anew"
            )
        stored = np.frombuffer(data, _stored_dtype(tensor)).astype(np.float32)
        # Scales are powers of two: nothing is rounded.
        weights[tensor.name] = (stored / np.float32(tensor.scale)).reshape(tensor.shape)
    return weights


def write_weights(
    source: Path, target: Path, tensors: Sequence[WeightTensor], weights: Mapping[str, Float32Array]
) -> list[str]:
    """Copy a file of external data and put other values in.

    Args:
        source: The file of the engine directory.
        target: The copy, which must not exist.
        tensors: The weights that lie in it; those not in ``weights`` stay.
        weights: New values by name, checked by :func:`check_weights`.

    Returns:
        The names of the weights whose bytes changed.

    Raises:
        EngineError: If a value does not fit the precision it is stored with.
        OSError: If the copy cannot be written.
    """
    changed = []
    shutil.copyfile(source, target)
    with target.open("r+b") as stream:
        for tensor in tensors:
            if tensor.name not in weights:
                continue
            data = stored_bytes(tensor, weights[tensor.name])
            stream.seek(tensor.offset)
            if stream.read(tensor.nbytes) != data:
                changed.append(tensor.name)
                stream.seek(tensor.offset)
                stream.write(data)
    return changed


def stored_bytes(tensor: WeightTensor, values: Float32Array) -> bytes:
    """A weight as the inference graph's data holds it.

    Raises:
        EngineError: If a value is beyond half precision where that is what is stored.
    """
    with np.errstate(over="ignore"):
        stored = (values * np.float32(tensor.scale)).astype(_stored_dtype(tensor))
    if not np.isfinite(stored).all():
        raise EngineError(
            f"the fine-tuned weight '{tensor.name}' does not fit {tensor.dtype}: use an engine "
            "directory exported with --precision fp32, or a smaller learning rate"
        )
    return stored.tobytes()


def check_weights(
    tensors: Sequence[WeightTensor], weights: Mapping[str, Float32Array], *, complete: bool
) -> None:
    """Check that weights fit the tensors of the manifest.

    Args:
        tensors: What there is.
        weights: What was given.
        complete: Whether every tensor must be there.

    Raises:
        EngineError: If one is unknown, missing, of another shape or dtype, or not finite.
    """
    known = {tensor.name: tensor for tensor in tensors}
    _check_names(known, weights, complete=complete)
    for name, values in weights.items():
        if values.shape != known[name].shape or values.dtype != np.float32:
            raise EngineError(
                f"weight '{name}' must be float32 {known[name].shape}, "
                f"got {values.dtype} {values.shape}"
            )
        if not np.isfinite(values).all():
            raise EngineError(f"weight '{name}' is not finite: take weights of an earlier step")


def _check_names(known: Collection[str], given: Collection[str], *, complete: bool) -> None:
    surplus = [name for name in given if name not in known]
    missing = [name for name in known if name not in given]
    if surplus:
        raise EngineError(f"weight '{surplus[0]}' is not one of the {len(known)} of this engine")
    if complete and missing:
        raise EngineError(f"weight '{missing[0]}' is missing ({len(missing)} of {len(known)} are)")


def _stored_dtype(tensor: WeightTensor) -> np.dtype[np.floating]:
    return np.dtype("<f4" if tensor.dtype == "float32" else "<f2")


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
