"""Read, check and write the manifest of an engine directory.

The exporter writes ``manifest.json``, the runtime reads it. A :class:`Manifest` cannot be built
with values that contradict each other, so both sides check the same things.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mpn._common.files import write_text_atomically
from mpn._common.records import (
    Scalar,
    check_complete,
    json_from_record,
    read_json,
    record_from_json,
    schema_version_of,
)
from mpn._common.text import LONGEST_MESSAGE, one_line
from mpn.engines.directory.entries import (
    DIS_SOURCE,
    ENGINE_SOURCE,
    FlowSource,
    OsvosPreprocessing,
    Preprocessing,
    PropagationPreprocessing,
    Provenance,
    RoleEntry,
    utc_now_iso,
)
from mpn.engines.directory.files import (
    MANIFEST_NAME,
    FileDigest,
    ManifestFieldError,
    check_digest,
    check_engine_dir,
    resolve_inside,
)
from mpn.engines.spec import (
    PROPAGATION_INPUTS,
    ROLES,
    EngineSpec,
    Role,
    TensorSpec,
    engine_spec,
    features_spec,
    propagation_spec,
)
from mpn.errors import BackendError, EngineError, ManifestError

__all__ = [
    "DIS_SOURCE",
    "ENGINE_SOURCE",
    "MANIFEST_NAME",
    "SCHEMA_VERSION",
    "FileDigest",
    "FlowSource",
    "Manifest",
    "OsvosPreprocessing",
    "Preprocessing",
    "PropagationPreprocessing",
    "Provenance",
    "RoleEntry",
    "load_manifest",
    "resolve_inside",
    "save_manifest",
    "utc_now_iso",
    "verify_digests",
]

SCHEMA_VERSION = 1
"""The schema that this version writes and reads."""


@dataclass(frozen=True)
class Manifest:
    """Description of an engine directory, read before an engine is opened.

    Attributes:
        schema_version: Always :data:`SCHEMA_VERSION`.
        name: For people, for example ``"lite"``.
        frame_size_hw: (height, width) of the working frame that flow and OSVOS are exported for.
        roi_size: Side of the propagation crop; 16 n + 1.
        max_objects: Largest object batch that plans are built for.
        preprocessing: Normalisation of the network inputs.
        flow: Source of the flow.
        roles: The engines; propagation always, flow if ``flow.source`` is ``"engine"``.
        runtime_defaults: Pipeline option names to values that suit these weights; the pipeline
            checks them.
        provenance: Origin of the engines.

    Raises:
        ManifestError: If the values contradict each other or the specs of the roles.
    """

    schema_version: int = field(default=SCHEMA_VERSION, kw_only=True)
    name: str
    frame_size_hw: tuple[int, int]
    roi_size: int
    max_objects: int
    preprocessing: Preprocessing
    flow: FlowSource
    roles: Mapping[Role, RoleEntry]
    runtime_defaults: Mapping[str, Scalar]
    provenance: Provenance

    def __post_init__(self) -> None:
        if self.schema_version != SCHEMA_VERSION:
            raise ManifestError(_unknown_schema(self.schema_version))
        if min(self.frame_size_hw) < 1:
            raise ManifestFieldError("frame_size_hw", f"must be positive, got {self.frame_size_hw}")
        for name, value in self.runtime_defaults.items():
            if max(len(name), len(str(value))) > LONGEST_MESSAGE:
                raise ManifestFieldError("runtime_defaults", f"has a long entry, {name[:80]!r}")
        if self.max_objects < 1:
            raise ManifestFieldError("max_objects", f"must be at least 1, got {self.max_objects}")
        try:
            propagation_spec(self.roi_size, self.max_objects)
        except EngineError as error:
            raise ManifestFieldError("roi_size", f"does not fit: {error}") from error
        for role, entry in self.roles.items():
            self._check_role(role, entry)
        if "propagation" not in self.roles:
            raise ManifestFieldError("roles.propagation", "is missing: every directory needs it")
        if self.flow.source == ENGINE_SOURCE and "flow" not in self.roles:
            raise ManifestFieldError(
                "roles.flow",
                "is missing although flow.source is 'engine': export a flow network too, or use "
                "'opencv-dis'",
            )

    def spec(self, role: Role) -> EngineSpec:
        """Return the interface of the engine of ``role`` at this directory's sizes.

        The size of a features engine does not depend on the working frame.
        """
        if role == "features":
            return _features_spec(self.roles[role])
        return engine_spec(
            role,
            frame_size_hw=self.frame_size_hw,
            roi_size=self.roi_size,
            max_objects=self.max_objects,
            propagation_channels=self.propagation_channels,
        )

    @property
    def propagation_channels(self) -> int:
        """Channels of the propagation input: 5 with the score of a target model, else 4."""
        inputs = self.roles["propagation"].inputs if "propagation" in self.roles else ()
        names = {name: channels for channels, name in PROPAGATION_INPUTS.items()}
        return names.get(inputs[0].name, 4) if inputs else 4

    def check_is_float(self, backend: str, roles: Iterable[Role] = ROLES) -> None:
        """Raise BackendError if a role is quantised, which a GPU backend does not run."""
        for role in roles:
            if role in self.roles and self.roles[role].precision == "int8":
                raise BackendError(
                    f"the {role} engine is int8, which backends cpu and openvino run, not "
                    f"{backend}: use the engine directory that it was made from"
                )

    def as_json(self) -> dict[str, Any]:
        """Return a dict of JSON types: the content of ``manifest.json``."""
        return json_from_record(self)

    @classmethod
    def from_json(cls, value: Any) -> Manifest:
        """Convert the content of ``manifest.json``, the inverse of :meth:`as_json`.

        Raises:
            ManifestError: If the schema is unknown, or a field is missing or of another type.
        """
        schema_version = schema_version_of(value, ManifestError)
        if schema_version != SCHEMA_VERSION:
            raise ManifestError(_unknown_schema(schema_version))
        manifest = record_from_json(value, cls, ManifestError)
        # The defaults of the records are for the exporter: preprocessing that is left out here
        # would change masks without notice.
        check_complete(value, manifest.as_json(), ManifestError)
        return manifest

    def _check_role(self, role: Role, entry: RoleEntry) -> None:
        try:
            spec = self.spec(role)
        except EngineError as error:
            raise ManifestFieldError(f"roles.{role}.inputs", f"does not fit: {error}") from error
        for kind, found, expected in (
            ("inputs", entry.inputs, spec.inputs),
            ("outputs", entry.outputs, spec.outputs),
        ):
            if found != expected:
                raise ManifestFieldError(
                    f"roles.{role}.{kind}",
                    f"is {_tensors_text(found)}, but a {role} engine of these sizes has "
                    f"{_tensors_text(expected)}: export it again",
                )


def load_manifest(directory: str | os.PathLike[str]) -> Manifest:
    """Read and check the manifest of an engine directory; no other file is opened.

    Raises:
        ManifestError: If the directory or its manifest cannot be used; one line that names the
            file and the field.
    """
    path = check_engine_dir(directory)
    file = path / MANIFEST_NAME
    try:
        manifest = Manifest.from_json(read_json(resolve_inside(path, MANIFEST_NAME), ManifestError))
        _check_paths(path, manifest)
    except ManifestError as error:
        raise ManifestError(f"{file}: {one_line(error, LONGEST_MESSAGE)}") from error
    return manifest


def save_manifest(directory: str | os.PathLike[str], manifest: Manifest) -> Path:
    """Write the manifest into an existing directory, atomically.

    Every path in it is checked to stay inside the directory first.

    Returns:
        The file written.

    Raises:
        ManifestError: If a path leaves the directory.
        OutputError: If it cannot be written.
    """
    path = Path(directory)
    _check_paths(path, manifest)
    # ASCII: a command line may hold file names that are no UTF-8.
    text = json.dumps(manifest.as_json(), indent=2, allow_nan=False)
    write_text_atomically(path / MANIFEST_NAME, text + "\n", durable=True)
    return path / MANIFEST_NAME


def verify_digests(
    directory: str | os.PathLike[str],
    manifest: Manifest,
    roles: Iterable[Role] = ROLES,
    *,
    with_adapt: bool = False,
) -> None:
    """Compare the SHA-256 of the files of the roles with the manifest.

    Args:
        directory: The engine directory.
        manifest: Its manifest.
        roles: Roles to check; those that the manifest does not have are skipped.
        with_adapt: Check the graphs for fine-tuning too, which inference does not need.

    Raises:
        ManifestError: If a file is missing, leaves the directory or has another content.
    """
    wanted = set(roles)
    for role, entry in manifest.roles.items():
        if role in wanted:
            for file in entry.all_files if with_adapt else entry.files:
                check_digest(Path(directory), file)


def _check_paths(directory: Path, manifest: Manifest) -> None:
    for role, entry in manifest.roles.items():
        for name, path in entry.named_files.items():
            try:
                resolve_inside(directory, path)
            except ManifestError as error:
                raise ManifestError(f"field 'roles.{role}.{name}': {error}") from error


def _features_spec(entry: RoleEntry) -> EngineSpec:
    shapes = [tensor.shape for tensor in (*entry.inputs, *entry.outputs)]
    if [len(shape) for shape in shapes] != [4, 4]:
        raise EngineError("a features engine has one input and one output of four axes")
    _, _, height, width = shapes[0]
    channels = shapes[1][1]
    if not (isinstance(height, int) and isinstance(width, int) and isinstance(channels, int)):
        raise EngineError("a features engine has fixed sizes")
    return features_spec((height, width), channels)


def _unknown_schema(found: int) -> str:
    return (
        f"schema_version {found} is unknown: this version of mpn-runtime reads {SCHEMA_VERSION}; "
        "export again with this version, or install the one that exported it"
    )


def _tensors_text(tensors: tuple[TensorSpec, ...]) -> str:
    return ", ".join(tensor.describe() for tensor in tensors) or "nothing"
