"""Read and write done.json and error.json in the folder of a run."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mpn._common.files import (
    flush_folder,
    is_nonempty_file,
    output_errors,
    save_json,
    sha256_of_file,
)
from mpn._common.records import json_from_text, read_json, record_from_json
from mpn._common.storage import is_remote, joined_address, public_address, read_bytes, version_of
from mpn.batch.manifest import Unit
from mpn.engines.directory.manifest import Manifest
from mpn.errors import InputError
from mpn.runtime.session.layout import RUN_JSON_SCHEMA

DONE_NAME = "done.json"
"""File that a batch writes last, when all results of a video are on the disk."""
ERROR_NAME = "error.json"
"""File with the reason of the last failed attempt."""

CHANGED = "done before, then changed by another run"
MEANWHILE = "done by another batch meanwhile"

_SCHEMA = 1
_END_BYTES = 1 << 18
"""Bytes at each end of a video that are hashed: headers and indices of containers are there."""
_MOST_BYTES = 1 << 24
"""Largest done.json that is read from an address."""
_WITHOUT_EFFECT = frozenset({"finetune_cache", "no_finetune_cache"})
"""Options that change no result."""


@dataclass(frozen=True)
class DoneRecord:
    """Fields of done.json that are read again.

    Attributes:
        schema_version: Of this file.
        results_schema: Of the results.
        inputs: See :func:`inputs_of`.
        options: Options that were not the default.
        engine: See :func:`digest_of_engines`.
        frames: Number of frames.
        wall_s: Seconds of the run.
        masks: Number of masks.
        run_sha256: Digest of run.json.
    """

    schema_version: int
    results_schema: int
    inputs: Mapping[str, Mapping[str, str]]
    options: Mapping[str, Any]
    engine: str
    frames: int
    wall_s: float
    masks: int = 0
    run_sha256: str = ""


def digest_of_engines(manifest: Manifest) -> str:
    """Return a digest of everything in a manifest that changes masks.

    The name and the provenance do not.
    """
    value = manifest.as_json()
    kept = {name: value[name] for name in value.keys() - {"name", "provenance"}}
    text = json.dumps(kept, sort_keys=True, default=str)
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def inputs_of(unit: Unit, known: Mapping[str, Mapping[str, str]] | None = None) -> dict[str, Any]:
    """Return the facts of the video and of the masks of a unit.

    Each has ``stat``, sizes and times of the files, and ``content``, a digest. If ``stat`` is that
    of ``known``, its digest is used and no file is read.

    Args:
        unit: The unit.
        known: Facts that were computed before.

    Raises:
        OSError: If a file cannot be read.
        InputError: If an address cannot be read.
    """
    known = known or {}
    facts = {"video": _facts_of(unit.video, known.get("video"), is_video=True)}
    for index, path in unit.masks.items():
        name = "mask" if index is None else f"mask of frame {index}"
        facts[name] = _facts_of(path, known.get(name), is_video=False)
    return facts


def _facts_of(text: str, known: Mapping[str, str] | None, *, is_video: bool) -> dict[str, str]:
    if is_remote(text):
        version = version_of(text)
        return {"stat": version, "content": version}
    path = Path(text)
    files = [path] if path.is_file() else _files_of(path, is_video=is_video)
    stats = [(file, os.stat(file)) for file in files]
    stat = _digest(
        f"{file.name}\0{found.st_size}\0{found.st_mtime_ns}\n".encode(errors="surrogateescape")
        for file, found in stats
    )
    if known is not None and known.get("stat") == stat:
        return {"stat": stat, "content": str(known.get("content"))}
    if not is_video:
        parts: Iterator[bytes] = (
            f"{file.name}\0{sha256_of_file(file)}\n".encode(errors="surrogateescape")
            for file in files
        )
        return {"stat": stat, "content": _digest(parts)}
    return {"stat": stat, "content": _digest(_video_parts(stats))}


def _files_of(path: Path, *, is_video: bool) -> list[Path]:
    """List the files of a folder, or those that a pattern of images may mean."""
    folder = path
    if is_video and not path.exists() and "%" in path.name:
        folder = path.parent
    with os.scandir(folder) as entries:
        names = sorted(
            entry.name for entry in entries if entry.is_file() and not entry.name.startswith(".")
        )
    return [folder / name for name in names]


def _video_parts(stats: Iterable[tuple[Path, os.stat_result]]) -> Iterator[bytes]:
    """Yield names and sizes of all files, and the ends of the first and of the last."""
    listed = list(stats)
    for file, found in listed:
        yield f"{file.name}\0{found.st_size}\n".encode(errors="surrogateescape")
    for file, found in [listed[0], listed[-1]] if listed else ():
        with file.open("rb") as stream:
            yield stream.read(_END_BYTES)
            stream.seek(max(found.st_size - _END_BYTES, 0))
            yield stream.read(_END_BYTES)


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def load_done(unit: Unit) -> DoneRecord | None:
    """Read done.json of a unit; None if there is none that this version can read."""
    try:
        if is_remote(unit.out):
            text = read_bytes(joined_address(unit.place, DONE_NAME), _MOST_BYTES)
            value = json_from_text(text.decode(errors="replace"), InputError)
        elif is_nonempty_file(unit.folder / DONE_NAME):
            value = read_json(unit.folder / DONE_NAME, InputError)
        else:
            return None
        return record_from_json(value, DoneRecord, InputError)
    except InputError:
        return None


def stale_reason(unit: Unit, engine: str, done: DoneRecord | None) -> str | None:
    """Return why a unit has to run; None if its results are those of its inputs.

    Args:
        unit: The unit.
        engine: See :func:`digest_of_engines`.
        done: See :func:`load_done`.
    """
    if done is None:
        return "it has no result"
    if (done.schema_version, done.results_schema) != (_SCHEMA, RUN_JSON_SCHEMA):
        return "its result is of another version"
    if not is_remote(unit.out):  # there it is written last, and removed first
        if not is_nonempty_file(unit.folder / "run.json"):
            return "its result was removed"
        if _count_of_masks(unit) < done.masks:
            return "masks were removed"
        if (unit.folder / "run.partial.json").exists():
            return "a later run in its folder was killed"
    if done.engine != engine:
        return "the engines changed"
    if dict(done.options) != _options_of(unit):
        return "its options changed"
    try:
        now = inputs_of(unit, done.inputs)
    except (OSError, InputError):
        return "its video or mask cannot be read"
    for name in now.keys() | done.inputs.keys():
        before = done.inputs.get(name, {})
        if now.get(name, {}).get("content") != before.get("content"):
            return f"its {name} changed"
    return None


def skip_reason(unit: Unit, done: DoneRecord) -> str:
    """Return why a unit that is not stale does not run.

    Results that another run has changed stay: they may be corrections of the user.
    """
    if done.run_sha256 and not is_remote(unit.out):
        with suppress(OSError):
            if sha256_of_file(unit.folder / "run.json") != done.run_sha256:
                return CHANGED
    return "done before"


def _count_of_masks(unit: Unit) -> int:
    try:
        with os.scandir(unit.masks_folder) as entries:
            return sum(entry.name.endswith(".png") for entry in entries)
    except OSError:
        return 0


def remove_done(unit: Unit) -> None:
    """Remove done.json before the results change.

    Raises:
        OutputError: If it cannot be removed.
    """
    path = unit.folder / DONE_NAME
    with output_errors(path):
        try:
            path.unlink()
        except FileNotFoundError:
            return
        flush_folder(path.parent)


def save_done(
    unit: Unit, *, inputs: Mapping[str, Any], engine: str, facts: Mapping[str, Any]
) -> None:
    """Write done.json to the disk, then remove error.json.

    Args:
        unit: The unit; its output is local.
        inputs: See :func:`inputs_of`, from before the run.
        engine: See :func:`digest_of_engines`.
        facts: Further fields, among them ``frames`` and ``wall_s``.

    Raises:
        OutputError: If it cannot be written.
    """
    value = {
        "schema_version": _SCHEMA,
        "results_schema": RUN_JSON_SCHEMA,
        "name": unit.name,
        "video": public_address(unit.video),
        "finished": _now(),
        **facts,
        "inputs": inputs,
        "options": _options_of(unit),
        "engine": engine,
        "masks": _count_of_masks(unit),
        "run_sha256": sha256_of_file(unit.folder / "run.json"),
    }
    save_json(unit.folder / DONE_NAME, value, durable=True)
    path = unit.folder / ERROR_NAME
    with output_errors(path):
        path.unlink(missing_ok=True)


def save_error(unit: Unit, facts: Mapping[str, Any]) -> None:
    """Write error.json.

    Args:
        unit: The unit; its output is local.
        facts: Fields, among them ``reason``, one line.

    Raises:
        OutputError: If it cannot be written.
    """
    value = {
        "schema_version": _SCHEMA,
        "name": unit.name,
        "video": public_address(unit.video),
        "failed": _now(),
    }
    with output_errors(unit.folder):
        unit.folder.mkdir(parents=True, exist_ok=True)
    save_json(unit.folder / ERROR_NAME, {**value, **facts})


def _options_of(unit: Unit) -> dict[str, Any]:
    return {
        name: value for name, value in unit.options.given().items() if name not in _WITHOUT_EFFECT
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
