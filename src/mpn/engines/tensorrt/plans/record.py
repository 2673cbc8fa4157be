"""Define the key of a plan, its file name, and its record.

The record is a separate file, ``<plan>.json``, and not a part of ``manifest.json``: plans are a
cache that every machine fills for itself, and the exported files must not change with it (their
digests, and the permission to write there).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mpn._common.records import (
    json_from_record,
    read_json,
    record_from_json,
    schema_version_of,
)
from mpn._common.text import LONGEST_MESSAGE, one_line
from mpn.cuda.device import CudaDevice
from mpn.engines.directory.entries import RoleEntry
from mpn.engines.spec import EngineSpec, Precision, Role
from mpn.engines.tensorrt.api import TrtApi, TrtBackend
from mpn.engines.tensorrt.plans.options import BuildOptions, object_profiles
from mpn.engines.tensorrt.plans.report import PlanPrecision
from mpn.errors import EngineError, MpnError

PLANS_DIR = "plans"
RECORD_SCHEMA = 1
PORTABLE_ARCH = "ampere+"
"""Of plans that run on every GPU from Ampere on."""
_TURING = "sm_75"
_SHOWN_DIGITS = 8


@dataclass(frozen=True)
class PlanKey:
    """Inputs of a plan; two plans with the same key are interchangeable.

    Attributes:
        role: Which network.
        backend: Which library.
        arch: ``"sm_90"``, or ``"ampere+"``.
        version: Of the library, whole; of a version-compatible plan the major version and ``+``.
        graph: SHA-256 of the ONNX file, then of its external data.
        profiles: (least, optimal, most) numbers of objects.
        options: How it is built.
    """

    role: Role
    backend: TrtBackend
    arch: str
    version: str
    graph: tuple[str, ...]
    profiles: tuple[tuple[int, int, int], ...]
    options: BuildOptions

    @property
    def digest(self) -> str:
        """SHA-256 of the whole key, 64 hexadecimal digits."""
        text = json.dumps(json_from_record(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def file_name(self) -> str:
        """``<role>-<backend>-<arch>-<version>-<digest8>.plan``."""
        parts = (self.role, self.backend, self.arch, self.version, self.digest[:_SHOWN_DIGITS])
        return f"{'-'.join(parts)}.plan"

    def why_not(self, other: PlanKey) -> str:
        """Return why a plan of key ``other`` does not fit, to stand after "because"."""
        if other.graph != self.graph:
            return "it was built from another graph"
        if other.arch != self.arch:
            return f"it was built for {other.arch} and this GPU is {self.arch}"
        if other.version != self.version:
            return f"it was built by version {other.version} and {self.version} is installed"
        if other.profiles != self.profiles:
            return "it was built for other numbers of objects"
        return "it was built with other options"


def plan_key(
    api: TrtApi,
    entry: RoleEntry,
    spec: EngineSpec,
    options: BuildOptions,
    device: CudaDevice | None,
) -> PlanKey:
    """Return the key of the plan that this machine needs.

    Args:
        api: The library.
        entry: Of the role in the manifest.
        spec: The role's interface.
        options: How it is built.
        device: The GPU; None for a plan that is built without one.
    """
    if device is not None and device.arch == _TURING:
        arch = _TURING
    elif api.is_rtx or options.hardware_compatible or device is None:
        arch = PORTABLE_ARCH
    else:
        arch = device.arch
    compatible = options.version_compatible and not api.is_rtx
    return PlanKey(
        role=spec.role,
        backend=api.backend,
        arch=arch,
        version=f"{api.version.split('.')[0]}+" if compatible else api.version,
        graph=tuple(file.sha256 for file in entry.files),
        profiles=tuple(profile.counts for profile in object_profiles(spec)),
        # Without effect on a plan for RTX, which runs on other GPUs anyway.
        options=replace(options, version_compatible=False, hardware_compatible=False)
        if api.is_rtx
        else options,
    )


@dataclass(frozen=True)
class PlanRecord:
    """Content of ``<plan>.json``.

    Attributes:
        key: Inputs of the build.
        built_by: Version of the library, whole.
        device: Name of the GPU it was built on; empty if there was none.
        sha256: Of the plan.
        nbytes: Of the plan.
        build_s: Seconds the build took.
        built: UTC time as ISO 8601.
        graph_precision: Precision of the exported graph.
        precision: Layers in half precision.
        half_inputs: Inputs it takes in half precision.
    """

    key: PlanKey
    built_by: str
    device: str
    sha256: str
    nbytes: int
    build_s: float
    built: str
    graph_precision: Precision
    precision: PlanPrecision
    half_inputs: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return a dict of JSON types: the content of ``<plan>.json``."""
        fields = json_from_record(self)
        key = fields.pop("key")
        return {
            "schema_version": RECORD_SCHEMA,
            "key": key,
            "digest": self.key.digest,
            **fields,
        }

    @classmethod
    def from_json(cls, value: Any) -> PlanRecord:
        """Convert the content of ``<plan>.json``, the inverse of :meth:`as_json`.

        Raises:
            EngineError: If it is of another schema, or damaged.
        """
        try:
            schema_version = schema_version_of(value, EngineError)
            if schema_version != RECORD_SCHEMA:
                raise EngineError(f"schema_version {schema_version} is not {RECORD_SCHEMA}")
            record = record_from_json(value, cls, EngineError)
            if record_from_json(value, _Sealed, EngineError).digest != record.key.digest:
                raise EngineError("its digest is not that of its key")
        except MpnError as error:
            text = one_line(error, LONGEST_MESSAGE)
            raise EngineError(f"the record cannot be used ({text})") from error
        return record


@dataclass(frozen=True)
class _Sealed:
    """The field of a record that follows from the others.

    Attributes:
        digest: Of the key.
    """

    digest: str


def record_path(plan: Path) -> Path:
    """Return the path of the record of a plan, ``<plan>.json`` in the same folder."""
    return plan.with_name(f"{plan.name}.json")


def load_record(plan: Path) -> PlanRecord:
    """Read the record of a plan.

    Raises:
        EngineError: If there is none, or it is damaged.
    """
    path = record_path(plan)
    if not path.exists():
        raise EngineError(f"{path.name} is missing")
    try:
        value = read_json(path, EngineError)
    except EngineError as error:
        raise EngineError(f"{path.name}: {error}") from error
    return PlanRecord.from_json(value)
