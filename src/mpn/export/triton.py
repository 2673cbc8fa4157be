"""Export of an engine directory to a model repository of NVIDIA's Triton server.

Does not need torch. Each network becomes a model for Triton's onnxruntime backend. The objects of
the propagation network are its batch, so that the server can join those of several requests; flow
and OSVOS take one frame. The operations between the networks (warp, crops, masks) are the client's.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mpn._common.files import publish
from mpn._common.locks import TemporaryFolder
from mpn.engines.directory.entries import RoleEntry
from mpn.engines.directory.files import resolve_inside
from mpn.engines.directory.manifest import Manifest, load_manifest, verify_digests
from mpn.engines.spec import OBJECTS_AXIS, Role, TensorSpec
from mpn.errors import OutputError

BACKEND = "onnxruntime"
MODEL_FILE = "model.onnx"
VERSION = "1"
"""Folder of the only version of each model."""

_DATA_TYPES = {"float32": "TYPE_FP32"}


@dataclass(frozen=True)
class TritonModel:
    """Model of the repository.

    Attributes:
        role: Role of the network.
        name: Name of the model and of its folder.
        config: Content of ``config.pbtxt``, a ModelConfig in protobuf's text format.
    """

    role: Role
    name: str
    config: str


def export_triton(
    directory: str | os.PathLike[str], out: str | os.PathLike[str]
) -> list[TritonModel]:
    """Write a model repository.

    Args:
        directory: An engine directory; its digests are checked.
        out: The repository: an empty or missing folder.

    Returns:
        The models in it.

    Raises:
        ManifestError: If the engine directory cannot be used.
        OutputError: If ``out`` is not empty, or cannot be written.
    """
    source, target = Path(directory), Path(out)
    manifest = load_manifest(source)
    verify_digests(source, manifest, tuple(manifest.roles))
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise OutputError(f"the Triton repository {target} is not empty: give a new folder")
    models = triton_models(manifest)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Rename it once it is complete: a server may be polling the folder.
        with TemporaryFolder(target.parent, prefix=f".{target.name}-") as scratch:
            whole = scratch.path / target.name
            for model in models:
                _write(model, manifest.roles[model.role], source, whole / model.name)
            if target.is_dir():
                target.rmdir()
            publish(whole, target, durable=True)
    except OSError as error:
        raise OutputError(
            f"cannot write the Triton repository {target}: {error.strerror}"
        ) from error
    return models


def triton_models(manifest: Manifest) -> list[TritonModel]:
    """List the models of an engine directory, by role."""
    models = []
    for role, entry in manifest.roles.items():
        name = f"{_model_name(manifest.name)}_{role}"
        has_batch = any(OBJECTS_AXIS in tensor.shape for tensor in entry.inputs)
        models.append(
            TritonModel(role, name, _config(name, entry, manifest.max_objects if has_batch else 0))
        )
    return models


def _config(name: str, entry: RoleEntry, max_batch_size: int) -> str:
    lines = [
        f'name: "{name}"',
        f'backend: "{BACKEND}"',
        f'default_model_filename: "{MODEL_FILE}"',
        f"max_batch_size: {max_batch_size}",
    ]
    lines += _tensors("input", entry.inputs, has_batch=max_batch_size > 0)
    lines += _tensors("output", entry.outputs, has_batch=max_batch_size > 0)
    if max_batch_size > 1:
        lines.append("dynamic_batching { }")
    lines.append("version_policy { latest { num_versions: 1 } }")
    return "\n".join(lines) + "\n"


def _tensors(kind: str, tensors: Sequence[TensorSpec], *, has_batch: bool) -> list[str]:
    """Format tensors for the schema, which excludes the batch axis."""
    lines = []
    for tensor in tensors:
        shape = tensor.shape[1:] if has_batch else tensor.shape
        dims = ", ".join("-1" if isinstance(size, str) else str(size) for size in shape)
        lines += [
            f"{kind} {{",
            f'  name: "{tensor.name}"',
            f"  data_type: {_DATA_TYPES[tensor.dtype]}",
            f"  dims: [ {dims} ]",
            "}",
        ]
    return lines


def _write(model: TritonModel, entry: RoleEntry, source: Path, folder: Path) -> None:
    version = folder / VERSION
    version.mkdir(parents=True)
    shutil.copyfile(resolve_inside(source, entry.onnx), version / MODEL_FILE)
    for file in entry.external_data:  # the graph refers to them by file name
        target = version / Path(file.path).name
        shutil.copyfile(resolve_inside(source, file.path), target)
    (folder / "config.pbtxt").write_text(model.config, encoding="utf-8")


def _model_name(name: str) -> str:
    """Convert a manifest's name to letters, digits, dots, dashes, underscores."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in name)
    return kept.strip("._-") or "mpn"
