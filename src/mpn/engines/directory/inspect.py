"""Describe an engine directory and this machine's backends for ``mpn inspect``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpn.engines.directory.files import FileDigest, check_digest, resolve_inside
from mpn.engines.directory.locate import local_engine_dir, pinned
from mpn.engines.directory.manifest import Manifest, load_manifest
from mpn.engines.directory.parity import ParityReport, load_parity
from mpn.engines.open import Backend, PlanPolicy, open_engines
from mpn.engines.spec import Role
from mpn.engines.tensorrt.plans.listing import PlanReport, plan_reports
from mpn.errors import ManifestError, MpnError

_TRIED: tuple[Backend, ...] = ("cpu", "openvino", "cuda", "tensorrt", "tensorrt-rtx")


@dataclass(frozen=True)
class FileReport:
    """One file of a role.

    Attributes:
        path: Relative to the directory.
        size_bytes: None if it is missing.
        problem: Why it is not the exported file; None if it is.
    """

    path: str
    size_bytes: int | None
    problem: str | None


@dataclass(frozen=True)
class BackendReport:
    """Result of opening the directory with one backend.

    Attributes:
        backend: Its name.
        usable: Whether all its engines opened.
        reason: One sentence.
    """

    backend: str
    usable: bool
    reason: str


@dataclass(frozen=True)
class EngineDirReport:
    """The report that ``mpn inspect`` prints.

    Attributes:
        directory: The local directory.
        pin: The folder or zip file that was given, with its digest, as it can be given again.
        manifest: Its manifest.
        files: The files of each role, the graph first, those of fine-tuning last.
        backends: Whether each backend of this machine can run it.
        parity: Differences of the graphs from PyTorch; None without ``parity.json``.
        plans: The plans in it, for any machine.
    """

    directory: Path
    pin: str
    manifest: Manifest
    files: Mapping[Role, tuple[FileReport, ...]]
    backends: tuple[BackendReport, ...]
    parity: ParityReport | None
    plans: tuple[PlanReport, ...] = ()

    @property
    def problem(self) -> str | None:
        """Why the directory cannot be used on this machine; None if it can."""
        for reports in self.files.values():
            for report in reports:
                if report.problem is not None:
                    return report.problem
        if any(backend.usable for backend in self.backends):
            return None
        reasons = "; ".join(f"{backend.backend}: {backend.reason}" for backend in self.backends)
        return f"no backend of this machine can run {self.directory}: {reasons}"

    def as_json(self) -> dict[str, Any]:
        """Return a dict of JSON types."""
        return {
            "directory": str(self.directory),
            "pin": self.pin,
            "manifest": self.manifest.as_json(),
            "files": {
                role: [
                    {"path": file.path, "size_bytes": file.size_bytes, "problem": file.problem}
                    for file in reports
                ]
                for role, reports in self.files.items()
            },
            "backends": {
                backend.backend: {"usable": backend.usable, "reason": backend.reason}
                for backend in self.backends
            },
            "plans": [
                {
                    "path": str(plan.path),
                    "problem": plan.problem,
                    "record": None if plan.record is None else plan.record.as_json(),
                }
                for plan in self.plans
            ],
            "parity": None if self.parity is None else dict(self.parity.document),
            "problem": self.problem,
        }


def describe_engine_dir(directory: str | os.PathLike[str] | None = None) -> EngineDirReport:
    """Read the manifest, compare the digests and open the engines with each backend.

    Engines are opened only if every file is the exported one; no plan is built.

    Args:
        directory: See :func:`mpn.engines.directory.locate.local_engine_dir`.

    Raises:
        ManifestError: If the directory, its manifest or its parity file cannot be read at all.
            Every other problem is in the report.
    """
    path = local_engine_dir(directory)
    manifest = load_manifest(path)
    files = {
        role: tuple(_file_report(path, file) for file in entry.all_files)
        for role, entry in manifest.roles.items()
    }
    intact = all(file.problem is None for reports in files.values() for file in reports)
    return EngineDirReport(
        directory=path,
        pin=pinned(path if directory is None else directory),
        manifest=manifest,
        files=files,
        backends=tuple(_backend_report(path, backend, intact=intact) for backend in _TRIED),
        parity=load_parity(path),
        plans=plan_reports(path, manifest),
    )


def _file_report(directory: Path, file: FileDigest) -> FileReport:
    path = resolve_inside(directory, file.path)
    try:
        size_bytes = path.stat().st_size
    except OSError:
        size_bytes = None
    try:
        check_digest(directory, file)
    except ManifestError as error:
        return FileReport(file.path, size_bytes, str(error))
    return FileReport(file.path, size_bytes, None)


def _backend_report(directory: Path, backend: Backend, *, intact: bool) -> BackendReport:
    if not intact:
        return BackendReport(backend, False, "not tried, since files have changed or are missing")
    try:
        # An inspection builds no plan: it would take minutes.
        policy = PlanPolicy(build=False)
        with open_engines(directory, backend=backend, verify=False, plans=policy) as engines:
            opened = ", ".join(engines.engines)
    except MpnError as error:
        return BackendReport(backend, False, str(error))
    return BackendReport(backend, True, f"opened {opened}")
