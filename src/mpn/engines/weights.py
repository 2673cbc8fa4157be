"""Read and write network weights in engine directories and in safetensors files.

Fine-tuned weights are kept in safetensors files, which hold no pickle and other tools read.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from mpn._common.files import write_bytes_atomically
from mpn._common.text import one_line
from mpn.engines.directory.entries import WeightTensor
from mpn.engines.directory.files import resolve_inside
from mpn.errors import EngineError, InputError, ManifestError
from mpn.types import Float32Array

FORMAT = "mpn-weights-2"
_FORMAT_OF_0_1 = "mpn-weights-1"
"""Its digest is over the data in the order of the file, that of FORMAT in the order of the names:
safetensors chooses the order of the file."""


def read_weights(directory: Path, tensors: Sequence[WeightTensor]) -> dict[str, Float32Array]:
    """Read weights of an engine directory, and undo the scale they are stored with.

    Args:
        directory: The engine directory.
        tensors: Entries of the weights in the manifest.

    Returns:
        float32 arrays by name, the values that are trained.

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
                f"{tensor.file} ends before weight '{tensor.name}': copy the folder again"
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
    """Convert a weight to the bytes in the inference graph's data.

    Raises:
        EngineError: If half precision is stored and a value is beyond it.
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
        tensors: Entries of the weights in the manifest.
        weights: The weights to check, by name.
        complete: Whether every tensor must be among them.

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


def save_weights(
    path: Path, weights: Mapping[str, Float32Array], metadata: Mapping[str, str] | None = None
) -> None:
    """Write weights and their digest to a safetensors file, atomically.

    Args:
        path: The file.
        weights: float32 arrays by name.
        metadata: Texts to store with them.

    Raises:
        InputError: If an array is of another dtype.
        OutputError: If the file cannot be written; its old content stays.
    """
    arrays = {}
    for name, values in weights.items():
        if values.dtype != np.float32:
            raise InputError(f"weight '{name}' must be float32, got {values.dtype}")
        # safetensors writes the buffer of an array, whatever its strides.
        arrays[name] = np.asarray(values, order="C")
    digest = _digest(arrays[name] for name in sorted(arrays))
    header = {**(metadata or {}), "format": FORMAT, "sha256": digest}
    write_bytes_atomically(path, safetensors.numpy.save(arrays, header), durable=True)


def load_weights(path: Path) -> dict[str, Float32Array]:
    """Read a file of :func:`save_weights` and check its digest.

    Raises:
        EngineError: If the file is missing, damaged, cut short, or not one of these.
    """
    return read_weights_file(path)[0]


def read_weights_file(path: Path) -> tuple[dict[str, Float32Array], dict[str, str]]:
    """Read the weights and the metadata of a file, see :func:`load_weights`."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            for name in file.offset_keys():
                # Before it is read: NumPy lacks some types, and safetensors then raises anything.
                if (dtype := file.get_slice(name).get_dtype()) != "F32":
                    raise ManifestError(f"weight '{name}' is {dtype}, not F32")
            weights: dict[str, Float32Array] = {
                name: file.get_tensor(name) for name in file.offset_keys()
            }
            metadata: dict[str, str] = file.metadata() or {}
        _check_content(weights, metadata)
    except OSError as error:
        raise EngineError(f"{path} cannot be read: {error.strerror or error}") from error
    except (safetensors.SafetensorError, ManifestError) as error:
        raise EngineError(
            f"{path} holds no weights of this package, or is damaged: {one_line(error)}"
        ) from error
    return weights, metadata


def _check_content(weights: Mapping[str, Float32Array], metadata: dict[str, str]) -> None:
    """Check the format and the digest, and take them out of the metadata."""
    form = metadata.pop("format", None)
    if form not in (FORMAT, _FORMAT_OF_0_1):
        raise ManifestError(f"its format is not {FORMAT}")
    names = sorted(weights) if form == FORMAT else weights
    if _digest(weights[name] for name in names) != metadata.pop("sha256", None):
        raise ManifestError("its content differs from its digest")


def _digest(arrays: Iterable[Float32Array]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(array.tobytes())
    return digest.hexdigest()


def _check_names(known: Collection[str], given: Collection[str], *, complete: bool) -> None:
    surplus = [name for name in given if name not in known]
    missing = [name for name in known if name not in given]
    if surplus:
        raise EngineError(f"weight '{surplus[0]}' is not one of the {len(known)} of this engine")
    if complete and missing:
        raise EngineError(f"weight '{missing[0]}' is missing ({len(missing)} of {len(known)} are)")


def _stored_dtype(tensor: WeightTensor) -> np.dtype[np.floating]:
    return np.dtype("<f4" if tensor.dtype == "float32" else "<f2")
