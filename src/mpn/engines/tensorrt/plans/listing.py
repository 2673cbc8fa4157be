"""List the plans of an engine directory, for ``mpn inspect``."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from mpn._common.files import sha256_of_file, visible_files
from mpn._common.text import one_line
from mpn.engines.directory.files import resolve_inside
from mpn.engines.directory.manifest import Manifest
from mpn.engines.tensorrt.plans.record import PLANS_DIR, PlanRecord, load_record
from mpn.engines.tensorrt.plans.store import user_plans_dir
from mpn.errors import EngineError


@dataclass(frozen=True)
class PlanReport:
    """One plan of a directory, for ``mpn inspect``.

    Attributes:
        path: The plan file.
        record: Its record; None if that cannot be used.
        problem: Reason why it cannot be used: changed, no record, or another graph. None if it is
            a plan of this directory; whether it fits this machine is not checked.
    """

    path: Path
    record: PlanRecord | None
    problem: str | None


def plan_reports(directory: Path, manifest: Manifest) -> tuple[PlanReport, ...]:
    """List the plans in ``plans/`` of a directory, then those in the user's cache."""
    reports = []
    for path in visible_files(resolve_inside(directory, PLANS_DIR), "*.plan"):
        try:
            record = load_record(path)
        except EngineError as error:
            reports.append(PlanReport(path, None, one_line(error)))
            continue
        reports.append(PlanReport(path, record, _problem(path, record, manifest)))
    cache = user_plans_dir()
    for path in () if cache is None else visible_files(cache, "*.plan"):
        with contextlib.suppress(EngineError):  # the cache has plans of all directories
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
