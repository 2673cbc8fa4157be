"""Run one unit in the process that has the engines open."""

from __future__ import annotations

import errno
import os
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mpn._common.closeable import Closeable
from mpn._common.files import save_json
from mpn._common.locks import LOCK_NAME as RUN_LOCK_NAME
from mpn._common.locks import FolderLock, is_locked
from mpn._common.records import read_json
from mpn._common.storage import public_address
from mpn._common.text import one_line
from mpn.batch.manifest import Unit
from mpn.batch.outcome import Settings, UnitOutcome
from mpn.batch.records import (
    digest_of_engines,
    inputs_of,
    load_done,
    remove_done,
    save_done,
    save_error,
    skip_reason,
    stale_reason,
)
from mpn.engines.directory.manifest import Manifest
from mpn.engines.open import EngineSet, open_engines
from mpn.errors import FolderInUseError, InputError, MpnError, OutputError
from mpn.runtime.convert.conversion import convert_results
from mpn.runtime.run_options import check_formats_of
from mpn.runtime.session.request import Progress, RunRequest
from mpn.runtime.session.session import run_video

LOCK_NAME = ".mpn-batch-lock"
"""File that a batch locks while it works on a unit: the lock of its run ends before done.json."""

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_LONGEST_REASON = 600
_LONGEST_LOCK_WAIT_S = 60.0
"""The worker of an earlier attempt may still stop: the driver can lose a node before it ends."""
_LOCK_POLL_S = 0.2


@dataclass(frozen=True)
class Origin:
    """The unit of the manifest that a unit with local paths is a copy of.

    Attributes:
        unit: The unit of the manifest.
        inputs: See :func:`mpn.batch.records.inputs_of`, from before its files were copied.
    """

    unit: Unit
    inputs: Mapping[str, Any]

    def record(self, outcome: UnitOutcome) -> dict[str, Any]:
        """Return the fields for done.json or error.json, with the video of the manifest."""
        return {**outcome.record(), "video": public_address(self.unit.video)}


class ReusedEngines(Closeable):
    """Engines that stay open from one run of this process to the next."""

    def __init__(self) -> None:
        self._sets: dict[tuple[Any, ...], EngineSet] = {}
        self.failure: MpnError | None = None

    def open(
        self, directory: str | os.PathLike[str], *, manifest: Manifest, plans: Any, **how: Any
    ) -> EngineSet:
        """Return engines that the pipeline does not close, see ``open_engines``.

        Engines of a directory that was written again are opened again. The error of a call that
        fails is kept in ``failure``: no unit can run.
        """
        key = (os.path.realpath(directory), *sorted(how.items()))
        found = self._sets.get(key)
        if found is None or found.manifest != manifest:
            if found is not None:
                found.close()
            self._sets.pop(key, None)
            try:
                found = open_engines(directory, manifest=manifest, plans=plans, **how)
            except MpnError as error:
                self.failure = error
                raise
            self._sets[key] = found
        return replace(found, owned=False)

    def close(self) -> None:
        """Close all engines. They are opened again when they are needed."""
        while self._sets:
            self._sets.popitem()[1].close()


def run_unit(
    unit: Unit,
    settings: Settings,
    engines: ReusedEngines,
    *,
    attempt: int = 1,
    worker: str = "",
    on_progress: Callable[[Progress], None] | None = None,
    origin: Origin | None = None,
) -> UnitOutcome:
    """Run one unit, and write done.json or error.json.

    Args:
        unit: The unit; its paths are local.
        settings: Settings of the batch.
        engines: Engines of this process.
        attempt: Number of the attempt, from 1.
        worker: Name of this worker.
        on_progress: Called after each frame.
        origin: The unit of the manifest if ``unit`` has local copies of its files.

    Returns:
        The outcome. A unit that another batch completed in the meantime is skipped.

    Raises:
        MpnError: If the engines cannot be opened: no unit can run.
        KeyboardInterrupt: On a stop signal; the unit has neither record.
    """
    started_s = time.perf_counter()
    base = UnitOutcome(name=unit.name, state="failed", attempt=attempt, worker=worker)
    try:
        lock = _locked(unit, _LONGEST_LOCK_WAIT_S if attempt > 1 else 0.0)
    except MpnError as error:  # the folder is in use, or cannot be written: without error.json
        return failed_outcome(base, error, started_s)
    with lock:
        try:
            return _run_locked(unit, settings, engines, base, started_s, on_progress, origin)
        except Exception as error:
            if engines.failure is not None:
                raise engines.failure from error
            if not isinstance(error, InputError | OutputError):
                engines.close()  # they may be damaged; they are opened again
            outcome, details = failed_outcome(base, error, started_s), {}
            if outcome.is_in_use:  # the other run may remove files that it has not written
                return outcome
            if not isinstance(error, MpnError):
                details["traceback"] = traceback.format_exc()
            with suppress(MpnError, OSError):  # the batch reports the reason, too
                facts = outcome.record() if origin is None else origin.record(outcome)
                save_error(unit, {**facts, **details})
            return outcome


def _locked(unit: Unit, wait_s: float) -> FolderLock:
    until_s = time.monotonic() + wait_s
    while True:
        try:
            return FolderLock(unit.folder, lock_file=unit.folder / LOCK_NAME, subject=unit.folder)
        except FolderInUseError:
            if time.monotonic() > until_s:
                raise
            time.sleep(_LOCK_POLL_S)


def is_in_use(unit: Unit) -> bool:
    """Return whether a process works on the folder of a unit without addresses."""
    return any(is_locked(unit.folder / name) for name in (LOCK_NAME, RUN_LOCK_NAME))


def failed_outcome(base: UnitOutcome, error: Exception, started_s: float) -> UnitOutcome:
    """Return the outcome of an attempt that an error ended."""
    reason = one_line(error, _LONGEST_REASON)
    if not isinstance(error, MpnError):
        reason = f"internal error: {type(error).__name__}: {reason}"
    return replace(
        base,
        wall_s=time.perf_counter() - started_s,
        reason=reason,
        may_retry=not isinstance(error, InputError),
        is_disk_full=_is_disk_full(error),
        is_in_use=isinstance(error, FolderInUseError),
    )


def skipped_outcome(
    base: UnitOutcome, unit: Unit, of_manifest: Unit, engine: str
) -> UnitOutcome | None:
    """Return the outcome of a unit that is done; None if it has to run.

    Args:
        base: Name, attempt and worker.
        unit: The unit, whose done.json counts.
        of_manifest: The unit of the manifest, whose inputs and options count.
        engine: See :func:`mpn.batch.records.digest_of_engines`.
    """
    done = load_done(unit)
    if done is None or stale_reason(of_manifest, engine, done) is not None:
        return None
    reason = skip_reason(of_manifest, done)
    return replace(base, state="skipped", frames=done.frames, reason=reason)


def _run_locked(
    unit: Unit,
    settings: Settings,
    engines: ReusedEngines,
    base: UnitOutcome,
    started_s: float,
    on_progress: Callable[[Progress], None] | None,
    origin: Origin | None,
) -> UnitOutcome:
    of_manifest = unit if origin is None else origin.unit
    engine = digest_of_engines(settings.manifest())
    skipped = None if settings.fresh else skipped_outcome(base, unit, of_manifest, engine)
    if skipped is not None:
        return skipped
    check_formats_of(unit.video, unit.options.formats)
    remove_done(unit)
    try:
        inputs = inputs_of(unit) if origin is None else origin.inputs
    except OSError:  # the run has a better message
        inputs = {}
    request = unit.options.request(
        video=unit.video,
        masks={index: Path(path) for index, path in unit.masks.items()},
        out=Path(unit.out),
        engine_dir=settings.engine_dir,
        backend=settings.backend,
        threads=settings.threads,
        resume=settings.resume,
        build=settings.build,
    )
    report = _report_of(request, engines, on_progress)
    full = [line for line in report["warnings"] if os.strerror(errno.ENOSPC) in line]
    if full:  # an overlay that was left out would be missing for ever
        raise OutputError(full[0]) from OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if unit.options.formats:
        convert_results(unit.folder, unit.options.formats)
    if origin is not None:
        _name_origin(unit, origin.unit)
    outcome = replace(
        base,
        state="done",
        frames=report["frames"],
        wall_s=time.perf_counter() - started_s,
        warnings=tuple(report["warnings"]),
    )
    facts = outcome.record() if origin is None else origin.record(outcome)
    save_done(unit, inputs=inputs, engine=engine, facts=facts)
    return outcome


def _report_of(
    request: RunRequest,
    engines: ReusedEngines,
    on_progress: Callable[[Progress], None] | None,
) -> dict[str, Any]:
    try:
        return run_video(request, on_progress=on_progress, opener=engines.open)
    except InputError as error:
        # The inputs, options or engines changed: nothing of the earlier run can be kept.
        if not request.resume or not str(error).startswith("cannot resume"):
            raise
    return run_video(replace(request, resume=False), on_progress=on_progress, opener=engines.open)


def _name_origin(unit: Unit, of_manifest: Unit) -> None:
    """Replace paths of copies in run.json by the addresses of the manifest."""
    pairs = [(unit.video, of_manifest.video)]
    pairs += [(path, of_manifest.masks[index]) for index, path in unit.masks.items()]
    names = {copy: public_address(source) for copy, source in pairs if copy != source}

    def named(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: named(each) for key, each in value.items()}
        if isinstance(value, list):
            return [named(each) for each in value]
        return names.get(value, value) if isinstance(value, str) else value

    path = unit.folder / "run.json"
    save_json(path, named(read_json(path, OutputError)))


def _is_disk_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK_FULL:
            return True
        error = error.__cause__ or error.__context__
    return False
