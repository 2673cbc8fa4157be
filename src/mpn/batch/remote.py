"""Run units whose video, masks or output are addresses.

Inputs are copied to a scratch folder before the run. The results are copied to the address as a
whole after it, done.json last. The scratch folder is in the temporary folder of the system
(TMPDIR), and the next unit removes that of a killed process.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

from mpn._common.locks import TemporaryFolder
from mpn._common.storage import fetch, is_remote, upload_folder
from mpn.batch.manifest import Unit
from mpn.batch.outcome import Settings, UnitOutcome
from mpn.batch.records import (
    DONE_NAME,
    ERROR_NAME,
    digest_of_engines,
    inputs_of,
    save_error,
)
from mpn.batch.unit import Origin, ReusedEngines, failed_outcome, run_unit, skipped_outcome
from mpn.errors import InputError, MpnError
from mpn.runtime.session.request import Progress

_RESULTS = re.compile(
    r"(?:masks|probs|before)/(?:.*/)?\d+\.\w+|overlay\.mp4|rle\.jsonl|review\.html|run\.partial\.json"
)
"""Results in the folder of a run that an earlier run may have had and a later one not."""
_FRAME = re.compile(r"\d+\.\w+")


def run_any_unit(
    unit: Unit,
    settings: Settings,
    engines: ReusedEngines,
    *,
    attempt: int = 1,
    worker: str = "",
    on_progress: Callable[[Progress], None] | None = None,
) -> UnitOutcome:
    """Run one unit, with addresses or without; see :func:`mpn.batch.unit.run_unit`."""
    if not unit.is_remote:
        return run_unit(
            unit, settings, engines, attempt=attempt, worker=worker, on_progress=on_progress
        )
    started_s = time.perf_counter()
    base = UnitOutcome(name=unit.name, state="failed", attempt=attempt, worker=worker)
    engine = digest_of_engines(settings.manifest())
    skipped = None if settings.fresh else skipped_outcome(base, unit, unit, engine)
    if skipped is not None:
        return skipped
    with ExitStack() as stack:
        try:
            scratch = stack.enter_context(TemporaryFolder()).path
        except (MpnError, OSError) as error:
            return failed_outcome(base, error, started_s)
        copy = _without_addresses(unit, scratch)
        try:
            inputs = inputs_of(unit)
            copy = _fetched(unit, copy, scratch)
        except (MpnError, OSError) as error:
            outcome = failed_outcome(base, error, started_s)
            with suppress(MpnError, OSError):  # the batch reports the reason, too
                save_error(copy, Origin(unit, {}).record(outcome))
                _upload_error(unit, copy, scratch)
            return outcome
        outcome = run_unit(
            copy,
            settings,
            engines,
            attempt=attempt,
            worker=worker,
            on_progress=on_progress,
            origin=Origin(unit, inputs),
        )
        try:
            if outcome.state == "done":
                _upload_results(unit, copy)
            elif outcome.state == "failed":
                with suppress(MpnError, OSError):
                    _upload_error(unit, copy, scratch)
        except MpnError as error:
            return failed_outcome(base, error, started_s)
        return replace(outcome, wall_s=time.perf_counter() - started_s)


def _without_addresses(unit: Unit, scratch: Path) -> Unit:
    """Return the unit with an output in the scratch folder if its own is an address."""
    return replace(unit, out=str(scratch / "out")) if is_remote(unit.out) else unit


def _fetched(unit: Unit, copy: Unit, scratch: Path) -> Unit:
    """Copy the video and the masks, and return the unit with the paths of the copies."""

    def fetched(text: str, folder: str) -> str:
        if not is_remote(text):
            return text
        if "%" in text.rpartition("/")[2]:
            raise InputError(
                f"'{text.rpartition('/')[2]}' is a pattern: give the address of the folder"
            )
        (scratch / folder).mkdir()
        return str(fetch(text, scratch / folder))

    masks = {
        index: fetched(text, f"mask{number}")
        for number, (index, text) in enumerate(unit.masks.items())
    }
    return replace(copy, masks=masks, video=fetched(unit.video, "video"))


def _upload_results(unit: Unit, copy: Unit) -> None:
    if not is_remote(unit.out):
        return
    out = Path(copy.out)
    inner = copy.folder.relative_to(out)
    # Masks of a sequence in DAVIS layout are outside of the folder of its run.
    masks = (inner / "masks" if inner == Path() else Path(inner.name)).as_posix()
    prefix = "" if inner == Path() else f"{inner.as_posix()}/"

    def is_obsolete(name: str) -> bool:
        folder, _, file = name.rpartition("/")
        if folder == masks and _FRAME.fullmatch(file):
            return True
        return name.startswith(prefix) and bool(_RESULTS.fullmatch(name.removeprefix(prefix)))

    last = [(inner / name).as_posix() for name in (ERROR_NAME, DONE_NAME)]
    upload_folder(out, unit.out, last=last, is_obsolete=is_obsolete)


def _upload_error(unit: Unit, copy: Unit, scratch: Path) -> None:
    """Copy error.json, and remove done.json of an earlier run."""
    if not is_remote(unit.out):
        return
    folder = scratch / "error"
    folder.mkdir()
    shutil.copyfile(copy.folder / ERROR_NAME, folder / ERROR_NAME)
    upload_folder(folder, unit.place, last=(DONE_NAME,))
