"""What is known about a plan: its key, its name, and the record that lies beside it.

The record is a file of its own, ``<plan>.json``, and not a part of ``manifest.json``: plans are a
cache that every machine fills for itself, and what was exported must not change with it (its
digests, and the right to write there).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mpn.cuda.device import CudaDevice
from mpn.engines.directory.entries import RoleEntry
from mpn.engines.directory.files import resolve_inside, sha256_of_file
from mpn.engines.directory.manifest import Manifest
from mpn.engines.onnxruntime.engine import one_line
from mpn.engines.spec import EngineSpec, Precision, Role
from mpn.engines.tensorrt.api import TrtApi, TrtBackend
from mpn.engines.tensorrt.plans.options import BuildOptions, ObjectProfile, object_profiles
from mpn.engines.tensorrt.plans.report import PlanPrecision
from mpn.engines.tensorrt.plans.store import user_plans_dir
from mpn.errors import EngineError

PLANS_DIR = "plans"
RECORD_SCHEMA = 1
PORTABLE_ARCH = "ampere+"
"""Of plans that run on every GPU from Ampere on."""
_TURING = "sm_75"
_SHOWN_DIGITS = 8


@dataclass(frozen=True)
class PlanKey:
    """Everything a plan depends on; two plans of the same key are interchangeable.

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
        """SHA-256 over all of it, 64 hexadecimal digits."""
        text = json.dumps(self.as_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def file_name(self) -> str:
        """``<role>-<backend>-<arch>-<version>-<digest8>.plan``."""
        parts = (self.role, self.backend, self.arch, self.version, self.digest[:_SHOWN_DIGITS])
        return f"{'-'.join(parts)}.plan"

    def as_json(self) -> dict[str, Any]:
        """A dict of JSON types."""
        return {
            "role": self.role,
            "backend": self.backend,
            "arch": self.arch,
            "version": self.version,
            "graph": list(self.graph),
            "profiles": [list(profile) for profile in self.profiles],
            "options": self.options.as_json(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> PlanKey:
        """The inverse of :meth:`as_json`."""
        return cls(
            role=value["role"],
            backend=value["backend"],
            arch=str(value["arch"]),
            version=str(value["version"]),
            graph=tuple(value["graph"]),
            profiles=tuple(ObjectProfile(*profile).counts for profile in value["profiles"]),
            options=BuildOptions(**value["options"]),
        )

    def why_not(self, other: PlanKey) -> str:
        """Why a plan of key ``other`` is not the one wanted; to stand after "because"."""
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
    """The key of the plan that this machine needs.

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
    """What ``<plan>.json`` says.

    Attributes:
        key: What the plan was built for.
        built_by: Version of the library, whole.
        device: Name of the GPU it was built on; empty if there was none.
        sha256: Of the plan.
        nbytes: Of the plan.
        build_s: Seconds the build took.
        built: UTC time as ISO 8601.
        graph_precision: What the graph was exported in.
        precision: What the plan computes in.
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
        """A dict of JSON types."""
        return {
            "schema_version": RECORD_SCHEMA,
            "key": self.key.as_json(),
            "digest": self.key.digest,
            "built_by": self.built_by,
            "device": self.device,
            "sha256": self.sha256,
            "nbytes": self.nbytes,
            "build_s": self.build_s,
            "built": self.built,
            "graph_precision": self.graph_precision,
            "precision": self.precision.as_json(),
            "half_inputs": list(self.half_inputs),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> PlanRecord:
        """The inverse of :meth:`as_json`.

        Raises:
            EngineError: If it is of another schema, or damaged.
        """
        try:
            if value["schema_version"] != RECORD_SCHEMA:
                raise ValueError(f"schema_version {value['schema_version']}")
            record = cls(
                key=PlanKey.from_json(value["key"]),
                built_by=str(value["built_by"]),
                device=str(value["device"]),
                sha256=str(value["sha256"]),
                nbytes=int(value["nbytes"]),
                build_s=float(value["build_s"]),
                built=str(value["built"]),
                graph_precision=value["graph_precision"],
                precision=PlanPrecision.from_json(value["precision"]),
                half_inputs=tuple(value["half_inputs"]),
            )
            if value["digest"] != record.key.digest:
                raise ValueError("its digest is not that of its key")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise EngineError(f"the record cannot be used ({error})") from error
        return record


def record_path(plan: Path) -> Path:
    """Where the record of a plan is: ``<plan>.json`` beside it."""
    return plan.with_name(f"{plan.name}.json")


def load_record(plan: Path) -> PlanRecord:
    """Read the record of a plan.

    Raises:
        EngineError: If there is none, or it is damaged.
    """
    path = record_path(plan)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise EngineError(f"{path.name} is missing") from error
    except (OSError, ValueError) as error:
        raise EngineError(f"{path.name} cannot be read") from error
    if not isinstance(value, dict):
        raise EngineError(f"{path.name} is no JSON object")
    return PlanRecord.from_json(value)


@dataclass(frozen=True)
class PlanReport:
    """One plan of a directory, for ``mpn inspect``.

    Attributes:
        path: Where it lies.
        record: What is known about it; None if its record cannot be used.
        problem: Why it fits nothing: changed, without a record, or of another graph; None if it is
            a plan of this directory. Whether it fits this machine is not looked at.
    """

    path: Path
    record: PlanRecord | None
    problem: str | None


def plan_reports(directory: Path, manifest: Manifest) -> tuple[PlanReport, ...]:
    """Every plan in ``plans/`` of a directory, then its plans in the user's cache, by name."""
    reports = []
    for path in sorted(resolve_inside(directory, PLANS_DIR).glob("*.plan")):
        try:
            record = load_record(path)
        except EngineError as error:
            reports.append(PlanReport(path, None, one_line(error)))
            continue
        reports.append(PlanReport(path, record, _problem(path, record, manifest)))
    cache = user_plans_dir()
    for path in () if cache is None else sorted(cache.glob("*.plan")):
        with contextlib.suppress(EngineError):  # there are plans of all directories
            record = load_record(path)
            if _is_of(record, manifest):
                reports.append(PlanReport(path, record, _problem(path, record, manifest)))
    return tuple(reports)


def _is_of(record: PlanRecord, manifest: Manifest) -> bool:
    entry = manifest.roles.get(record.key.role)
    return entry is not None and record.key.graph == tuple(file.sha256 for file in entry.files)


def _problem(path: Path, record: PlanRecord, manifest: Manifest) -> str | None:
    if not _is_of(record, manifest):
        return "built from another graph"
    try:
        if sha256_of_file(path) != record.sha256:
            return "changed since it was built"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    return None
