"""Checkpoints in the project's own format, and recognised public files.

One ``.pth`` file of ``torch.save``, readable with ``weights_only=True``::

    {"format": "mpn-checkpoint", "schema_version": 1,
     "roles": {role: {"variant": str, "config": {...}, "state_dict": {key: tensor}}},
     "provenance": {...}}
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from torch import nn

from mpn._common.files import sha256_of_file
from mpn.engines.spec import ROLES, Role
from mpn.errors import CheckpointError, OutputError
from mpn.networks.build import OWN_KIND, CheckpointSource, RoleWeights, build_network
from mpn.networks.deeplab_convert import check_fourth_channel
from mpn.networks.fit import check_expected_role, check_expected_variant, fitted_weights
from mpn.networks.recognise import is_state_dict, recognise, unwrapped_state_dict
from mpn.networks.torch_file import read_torch_file, write_torch_file

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
        provenance: Provenance in an own checkpoint, as JSON types.
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
        path: An own checkpoint, or a public file: FlowNet2, CSS, CS, C, S or SD of
            NVIDIA/flownet2-pytorch, DeepLab Xception of jfzhang95, parent of OSVOS-PyTorch.
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
    content = read_torch_file(path)
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
    """Write an own checkpoint atomically.

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
        shown = version if isinstance(version, int) else f"a {type(version).__name__}"
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
            or not isinstance(config, Mapping)
            or not all(isinstance(key, str) for key in config)
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


def _public_checkpoint(content: object, path: Path) -> Checkpoint:
    state_dict = unwrapped_state_dict(content, path)
    found = recognise(state_dict, path)
    source = _source(path, found.kind)
    weights = RoleWeights(found.role, found.variant, found.config, state_dict, source)
    return Checkpoint({found.role: weights}, (source,))
