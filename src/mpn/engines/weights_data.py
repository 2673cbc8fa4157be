"""Weights as they lie in an engine directory: reading them, and writing others in their place."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from mpn.engines.adapt_entry import WeightTensor
from mpn.engines.files import resolve_inside
from mpn.errors import EngineError, ManifestError
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
