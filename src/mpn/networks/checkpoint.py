"""Checkpoints in the project's own format, and recognised public files.

One ``.pth`` file of ``torch.save``, readable with ``weights_only=True``::

    {"format": "mpn-checkpoint", "schema_version": 1,
     "roles": {role: {"variant": str, "config": {...}, "state_dict": {key: tensor}}},
     "provenance": {...}}
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import warnings
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import safetensors
import torch
from torch import Tensor, nn

from mpn._common.files import SizedFile, first_bytes, sha256_of_file, write_atomically
from mpn._common.text import one_line
from mpn.engines.spec import ROLES, Role
from mpn.errors import CheckpointError, OutputError
from mpn.networks.build import OWN_KIND, CheckpointSource, RoleWeights, build_network
from mpn.networks.fit import check_expected_role, check_expected_variant, fitted_weights
from mpn.networks.imagenet import features_weights
from mpn.networks.numpy_values import STAND_INS
from mpn.networks.pickle_cost import has_costly_tuple
from mpn.networks.propagation import check_fourth_channel
from mpn.networks.recognise import is_state_dict, recognise, unwrapped_state_dict

_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
_TAR_MAGIC = b"ustar"
_TAR_MAGIC_END = 262
_ZIP_MAGIC = b"PK\x03\x04"
_PICKLE_MAGIC = b"\x80"
_MOST_INFLATION = 4
"""Largest size of an archive's content by that of the file. Weights hardly compress."""

_MOST_REPEATED_BYTES = 1 << 30
"""Largest size of values that a file does not hold: of tensors that were expanded. FlowNet2, the
largest network, has 650 MB."""
_LONGEST_NAME = 1000
"""Characters of a name of a tensor, a network or an option: messages hold names."""

_MOST_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library."""
_SAVE_STATE_DICT = "save model.state_dict() alone, as in torch.save(model.state_dict(), FILE)"


def read_torch_file(path: Path) -> Any:
    """Read a file of ``torch.save`` to the CPU with ``weights_only=True``.

    Args:
        path: A file of torch >= 1.6 (zip) or older (pickle).

    Returns:
        Containers, numbers, text and dense tensors; other types are refused. A NumPy scalar is a
        Python number, an array :class:`IgnoredNumpy`.

    Raises:
        CheckpointError: If the file is missing, unreadable, damaged, no checkpoint, or holds
            objects whose unpickling would run code.
    """
    _check_readable(path)
    try:
        _check_archive(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice is for direct callers
            with torch.serialization.safe_globals(STAND_INS):
                content = torch.load(path, map_location="cpu", weights_only=True)
        _check_content(path, content)
        return content
    except CheckpointError:
        raise
    except Exception as error:  # a damaged file can raise any exception in the unpickler
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # a seek before the start
            raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
        raise CheckpointError(_explanation(path, error)) from error


def _is_safetensors(path: Path) -> bool:
    """Return whether a file starts as safetensors: the size of its JSON header."""
    head = first_bytes(path, 9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") < _MOST_HEADER_BYTES


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file of safetensors to the CPU.

    Raises:
        CheckpointError: If it cannot be read or is damaged.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            content = {name: file.get_tensor(name) for name in file.offset_keys()}
        _check_content(path, content)
        return content
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except (safetensors.SafetensorError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} is a damaged file of safetensors ({one_line(error)}): copy or download it "
            "again"
        ) from error


def _check_readable(path: Path) -> None:
    if "\0" in str(path):
        raise CheckpointError("the checkpoint's name contains a NUL character")
    try:
        if path.is_dir():
            raise CheckpointError(
                f"{path} is a folder, not a checkpoint: give the .pth file, and an engine "
                "directory to mpn-run instead"
            )
        if not path.exists():
            raise CheckpointError(f"there is no checkpoint at {path}: check the path")
        if not path.is_file():  # reading a pipe would block forever
            raise CheckpointError(f"{path} is not a plain file: give the .pth file itself")
        if path.stat().st_size == 0:
            raise CheckpointError(f"{path} is empty (0 bytes): copy or download it again")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error


def _check_archive(path: Path) -> None:
    """Check the checksums of a file, which torch does not do.

    A flipped byte would be a wrong weight.
    """
    if not zipfile.is_zipfile(path):
        with path.open("rb") as stream:
            if stream.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC:
                raise CheckpointError(
                    f"{path} is truncated ({path.stat().st_size} bytes, the end of the archive is "
                    "missing): copy or download it again"
                )
        with SizedFile(path) as pickles:
            _check_cost(path, pickles)
        return
    with zipfile.ZipFile(path) as archive:
        # torch.save does not compress. Reading the entries of a bomb would fill the memory.
        unpacked, packed = sum(i.file_size for i in archive.infolist()), path.stat().st_size
        if unpacked > _MOST_INFLATION * packed:
            raise CheckpointError(
                f"{path} is compressed: {packed} bytes hold {unpacked}, which torch.save does not "
                f"write: {_SAVE_STATE_DICT}"
            )
        damaged = archive.testzip()
        for entry in archive.infolist() if damaged is None else ():
            if entry.filename.endswith(".pkl"):
                with archive.open(entry) as pickled:
                    _check_cost(path, pickled)
    if damaged is not None:
        raise CheckpointError(
            f"{path} is damaged (bad checksum of {one_line(damaged)}): copy or download it again"
        )


def _check_cost(path: Path, file: BinaryIO | IO[bytes]) -> None:
    if has_costly_tuple(file):
        raise CheckpointError(
            f"{path} has tuples in tuples that take any time to read: {_SAVE_STATE_DICT}"
        )


def _check_content(path: Path, content: object) -> None:
    """Raise CheckpointError for a tensor that is not stored, or a long name."""
    pending: list[tuple[object, object]] = [("", content)]
    seen: set[int] = set()  # one container may be in many: a walk without it may never end
    repeated = 0
    while pending:
        name, value = pending.pop()
        if isinstance(value, Tensor):
            if problem := _tensor_problem(value):
                raise CheckpointError(
                    f"{path}: the tensor {name!r} {problem}: save a state dict of dense tensors"
                )
            needed = value.numel() * value.element_size()
            repeated += max(needed - value.untyped_storage().nbytes(), 0)
            if repeated > _MOST_REPEATED_BYTES:
                raise CheckpointError(
                    f"{path}: the tensor {name!r} of shape {tuple(value.shape)} repeats few stored "
                    "values and may fill the memory: save a state dict of contiguous tensors"
                )
        elif isinstance(value, Mapping | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            inner = value.items() if isinstance(value, Mapping) else enumerate(value)
            for key, item in inner:
                if isinstance(key, str) and len(key) > _LONGEST_NAME:
                    raise CheckpointError(
                        f"{path} has a name of {len(key)} characters, more than {_LONGEST_NAME}: "
                        f"{_SAVE_STATE_DICT}"
                    )
                pending.append((key if isinstance(key, str) else name, item))


def _tensor_problem(tensor: Tensor) -> str:
    if tensor.layout != torch.strided or tensor.is_nested:
        kind = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
        return f"is not dense ({kind})"
    if tensor.device.type != "cpu":
        return f"has no values (device {tensor.device.type})"
    if tensor.is_quantized:
        return f"is quantized ({str(tensor.dtype).removeprefix('torch.')})"
    return ""


def _explanation(path: Path, error: Exception) -> str:
    text = str(error)
    with path.open("rb") as stream:
        start = stream.read(len(_ZIP_MAGIC))
    blocked = _GLOBAL.search(text)
    if isinstance(error, pickle.UnpicklingError) and blocked is not None:
        return _blocked_explanation(path, one_line(blocked.group(1)))
    if isinstance(error, zipfile.BadZipFile | zlib.error):
        return f"{path} is damaged ({one_line(text)}): copy or download it again"
    if start == _ZIP_MAGIC:
        if "TorchScript" in text:
            return f"{path} is a TorchScript program, not a checkpoint: {_SAVE_STATE_DICT}"
        return f"{path} is an archive but no checkpoint of torch.save: give the .pth file itself"
    if "unexpected EOF" in text or isinstance(error, EOFError):
        return (
            f"{path} is truncated ({path.stat().st_size} bytes, more are expected): copy or "
            "download it again"
        )
    # Python's tarfile tries compressions first, and xz may state a dictionary of 4 GiB.
    if first_bytes(path, _TAR_MAGIC_END).endswith(_TAR_MAGIC):
        return (
            f"{path} is a tar archive or a checkpoint of torch 0.1: unpack it, or load it with an "
            "old torch and save its state dict again"
        )
    if start.startswith(_PICKLE_MAGIC):
        return f"{path} is damaged, or a pickle that torch.save did not write: {_SAVE_STATE_DICT}"
    return (
        f"{path} is not a file of torch.save (it starts with {start!r}): give a checkpoint, "
        "usually .pth, .ckpt or .safetensors"
    )


def _blocked_explanation(path: Path, name: str) -> str:
    return (
        f"{path} holds a pickled object ({name}), not a state dict, and reading it would run its "
        f"code: {_SAVE_STATE_DICT}"
    )


def write_torch_file(path: Path, content: object) -> None:
    """Write ``content`` with ``torch.save``, atomically and flushed to disk.

    Args:
        path: The file. Its folder must exist.
        content: Tensors, numbers and texts in dicts and lists.

    Raises:
        OutputError: If it cannot be written. The old content is then unchanged.
    """

    def write(stream: BinaryIO) -> None:
        try:
            torch.save(content, stream)
        except RuntimeError as error:
            raise _system_error(error) from error

    write_atomically(path, write, durable=True)


def _system_error(error: RuntimeError) -> OSError:
    """Return the OSError that caused a RuntimeError of torch's writer."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            return cause
        cause = cause.__cause__ or cause.__context__
    return OSError(f"the disk may be full ({one_line(error)})")


__all__ = [
    "Checkpoint",
    "CheckpointSource",
    "RoleWeights",
    "build_network",
    "load_checkpoint",
    "merge_checkpoints",
    "save_checkpoint",
]

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """Weights of one or several roles.

    Attributes:
        roles: The weights by role.
        sources: Their files; one unless checkpoints were merged.
        provenance: Provenance in a checkpoint of the project's format, as JSON types.
    """

    roles: Mapping[Role, RoleWeights]
    sources: tuple[CheckpointSource, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """Digest of the file; for several files, their digests joined by ``+``."""
        return "+".join(source.sha256 for source in self.sources)

    @property
    def kind(self) -> str:
        """Kind of the file; for several files, their kinds joined by ``+``."""
        return "+".join(source.kind for source in self.sources)


def load_checkpoint(
    path: str | os.PathLike[str],
    *,
    init_fourth_channel: str | None = None,
    expected_role: str | None = None,
    expected_variant: str | None = None,
) -> Checkpoint:
    """Read a checkpoint and check that its weights fit their networks.

    Args:
        path: A checkpoint in the project's format, or a public file, of torch.save, Lightning or
            safetensors: FlowNet2, CSS, CS, C, S or SD of NVIDIA/flownet2-pytorch, DeepLab Xception
            of jfzhang95, parent of OSVOS-PyTorch.
        init_fourth_channel: ``"zero"``, ``"mean"`` or ``"normal"``: initialisation of the channel
            of the warped probability if DeepLab weights have three channels; no effect on other
            weights.
        expected_role: A role that the file must have.
        expected_variant: A network that the file must have, for example ``"FlowNet2"``.

    Returns:
        Every role of the file.

    Raises:
        CheckpointError: If the file is damaged, of no known kind, or does not fit.
        InputError: If an option has an unknown value.
    """
    if init_fourth_channel is not None:
        check_fourth_channel(init_fourth_channel)
    path = Path(path)
    _check_readable(path)
    content = read_safetensors(path) if _is_safetensors(path) else read_torch_file(path)
    if isinstance(content, Mapping) and content.get("format") == OWN_KIND:
        checkpoint = _own_checkpoint(content, path)
    else:
        checkpoint = _public_checkpoint(content, path)
    if expected_role is not None:
        check_expected_role(checkpoint.roles, expected_role, path)
    if expected_variant is not None:
        check_expected_variant(checkpoint.roles, expected_variant, path)
    roles = {
        role: fitted_weights(weights, path, init_fourth_channel)
        for role, weights in checkpoint.roles.items()
    }
    return replace(checkpoint, roles=roles)


def save_checkpoint(
    path: str | os.PathLike[str],
    roles: Mapping[Role, nn.Module | RoleWeights],
    provenance: Mapping[str, Any],
) -> Path:
    """Write a checkpoint in the project's format, atomically.

    ``path`` has either its old content or all of the new one.

    Args:
        path: File to write, in an existing folder.
        roles: Networks of this package, or loaded weights, by role.
        provenance: Recipe, data and licence of the weights, as JSON types.

    Returns:
        ``path``.

    Raises:
        CheckpointError: If there is no role, a network does not fit its role, or the provenance has
            other than JSON types.
        OutputError: If it cannot be written; no partial file remains.
    """
    path = Path(path)
    if not roles:
        raise CheckpointError("a checkpoint needs the weights of at least one role, got none")
    try:
        plain_provenance = json.loads(json.dumps(provenance, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"the provenance must be JSON types: {error}") from error
    entries = {}
    for role, given in roles.items():
        weights = given if isinstance(given, RoleWeights) else RoleWeights.from_network(role, given)
        if weights.role != role:
            raise CheckpointError(f"weights of the role {weights.role} are given as {role}")
        entries[role] = {
            "variant": weights.variant,
            "config": dict(weights.config),
            "state_dict": dict(weights.state_dict),
        }
    content = {
        "format": OWN_KIND,
        "schema_version": SCHEMA_VERSION,
        "roles": entries,
        "provenance": plain_provenance,
    }
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder, give a file name")
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: the folder {path.parent} is missing")
    write_torch_file(path, content)
    return path


def merge_checkpoints(checkpoints: Sequence[Checkpoint]) -> Checkpoint:
    """Merge the roles of several checkpoints.

    Raises:
        CheckpointError: If a role is in two of them, or there are none.
    """
    if not checkpoints:
        raise CheckpointError("no checkpoint was given: give at least one .pth file")
    roles: dict[Role, RoleWeights] = {}
    for checkpoint in checkpoints:
        for role, weights in checkpoint.roles.items():
            if role in roles:
                raise CheckpointError(
                    f"{_named(roles[role])} and {_named(weights)} both hold {role} weights: "
                    "give one checkpoint per role"
                )
            roles[role] = weights
    if len(checkpoints) == 1:
        return checkpoints[0]
    sources = tuple(source for checkpoint in checkpoints for source in checkpoint.sources)
    provenance = {
        str(checkpoint.sources[0].path.name): dict(checkpoint.provenance)
        for checkpoint in checkpoints
        if checkpoint.sources
    }
    return Checkpoint(roles, sources, provenance)


def _named(weights: RoleWeights) -> str:
    return str(weights.source.path) if weights.source is not None else "a network in memory"


def _source(path: Path, kind: str) -> CheckpointSource:
    try:
        return CheckpointSource(path, sha256_of_file(path), kind)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error


def _own_checkpoint(content: Mapping[str, Any], path: Path) -> Checkpoint:
    version = content.get("schema_version")
    if not isinstance(version, int) or version != SCHEMA_VERSION:
        is_shown = isinstance(version, int) and _is_plain(version)
        shown = version if is_shown else f"a {type(version).__name__}"
        raise CheckpointError(
            f"{path} has checkpoint schema {shown}, this version reads {SCHEMA_VERSION}: "
            "upgrade mpn-runtime, or write the checkpoint again"
        )
    entries, provenance = content.get("roles"), content.get("provenance", {})
    if not isinstance(entries, Mapping) or not entries or not isinstance(provenance, Mapping):
        raise CheckpointError(f"{path} lists no roles: it was not written by mpn-runtime")
    source = _source(path, OWN_KIND)
    roles: dict[Role, RoleWeights] = {}
    for name, entry in entries.items():
        if name not in ROLES:
            raise CheckpointError(
                f"{path} has the unknown role {name!r} (known: {', '.join(ROLES)}): upgrade "
                "mpn-runtime"
            )
        variant, config, state_dict = (
            entry.get(key) if isinstance(entry, Mapping) else None
            for key in ("variant", "config", "state_dict")
        )
        if (
            not isinstance(variant, str)
            or not _is_plain(variant)
            or not isinstance(config, Mapping)
            or not all(isinstance(key, str) and _is_plain(item) for key, item in config.items())
            or not isinstance(state_dict, Mapping)
            or not is_state_dict(state_dict)
        ):
            raise CheckpointError(
                f"{path}: the role {name} lacks its variant, config or state_dict: it was not "
                "written by mpn-runtime"
            )
        role = cast(Role, name)
        roles[role] = RoleWeights(role, variant, dict(config), dict(state_dict), source)
    return Checkpoint(roles, (source,), dict(provenance))


def _is_plain(value: object) -> bool:
    """Return whether this is a number, a name, or a list of them.

    A message can show it. Lists in lists can have a text of any size.
    """
    items = value if isinstance(value, list | tuple) else (value,)
    return len(items) <= _LONGEST_NAME and all(
        item is None
        or isinstance(item, bool | float)
        or (isinstance(item, int) and abs(item) < 1 << 63)
        or (isinstance(item, str) and len(item) <= _LONGEST_NAME)
        for item in items
    )


def _public_checkpoint(content: object, path: Path) -> Checkpoint:
    state_dict = unwrapped_state_dict(content, path)
    found = recognise(state_dict, path)
    source = _source(path, found.kind)
    if found.role == "features":
        state_dict = features_weights(state_dict, found.config)
    weights = RoleWeights(found.role, found.variant, found.config, state_dict, source)
    return Checkpoint({found.role: weights}, (source,))
