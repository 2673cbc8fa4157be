"""Hidden folder in which an engine directory is built.

It is in the same folder as the final one, so that one rename publishes it. Finished roles in it
survive an interruption: the next export with the same checkpoints and options continues with them.
"""

from __future__ import annotations

import contextlib
import filecmp
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpn._common.files import (
    PARTIAL_SUFFIX,
    check_plain_file,
    output_error,
    publish_folder,
    restore_folder,
    sha256_of_file,
    write_text_atomically,
)
from mpn._common.records import json_from_record, read_json, record_from_json
from mpn.engines.directory.files import MANIFEST_NAME, FileDigest
from mpn.engines.directory.parity import PARITY_NAME
from mpn.engines.spec import Role
from mpn.errors import MpnError, OutputError

STATE_NAME = "export-state.json"
STATE_SCHEMA = 1
_OWN_SUFFIXES = (".onnx", ".onnx.data")
_ADAPT_PARTS = ("adapt", "adapt_head", "features")
_OWN_NAMES = frozenset({MANIFEST_NAME, PARITY_NAME, STATE_NAME, "plans"})


@dataclass(frozen=True)
class FinishedRole:
    """Role whose graph is finished in the staging folder.

    Attributes:
        files: Its files with digests.
        facts: Data that the exporter reads again, as JSON types.
    """

    files: tuple[FileDigest, ...]
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class _State:
    """Content of the note about an unfinished export.

    Attributes:
        schema_version: Always :data:`STATE_SCHEMA` if this version wrote it.
        key: The request, as JSON types.
        roles: The finished roles.
    """

    schema_version: int
    key: Mapping[str, Any]
    roles: Mapping[str, FinishedRole]


class Staging:
    """Staging folder of one export. :meth:`open` creates or resumes it.

    Args:
        path: The folder.
        target: The final engine directory, checked by :func:`check_target`.
        key: The requested export, as JSON types; finished roles of another key are discarded.
    """

    def __init__(self, path: Path, target: Path, key: Mapping[str, Any]) -> None:
        self.path = path
        self._target = target
        self._key = json.loads(json.dumps(key))
        self._finished: dict[str, FinishedRole] = {}
        self._made_folders: list[Path] = []

    @classmethod
    def open(cls, target: Path, key: Mapping[str, Any]) -> Staging:
        """Create the folder next to ``target``, or resume one with the same key.

        Raises:
            OutputError: If it cannot be created.
        """
        staging = cls(target.with_name(f".{target.name}.mpn-export"), target, key)
        try:
            if target.parent.exists():
                for old in restore_folder(target):
                    if _is_engine_dir(old):
                        shutil.rmtree(old, ignore_errors=True)
            if staging.path.is_symlink():  # the engines would be written elsewhere
                raise OutputError(f"{staging.path} is a symbolic link: remove it")
            if staging.path.exists():
                staging._finished = _load_state(staging.path, staging._key)
                if not staging._finished:
                    _remove_own(staging.path, target)
            above = [folder for folder in staging.path.parents if not folder.exists()]
            staging.path.mkdir(parents=True, exist_ok=True)
            staging._made_folders = above
        except OSError as error:
            raise output_error(staging.path.parent, error) from error
        staging._save_state()
        return staging

    def finished(self, role: Role) -> FinishedRole | None:
        """Return an earlier run's result for a role, if its files are unchanged."""
        found = self._finished.get(role)
        if found is None:
            return None
        for file in found.files:
            path = self.path / file.path
            if not path.is_file() or sha256_of_file(path) != file.sha256:
                del self._finished[role]
                return None
        return found

    def finish_role(self, role: Role, finished: FinishedRole) -> None:
        """Record that a role is finished, so that a later run can reuse it."""
        self._finished[role] = finished
        self._save_state()

    def discard_role(self, role: Role) -> None:
        """Remove the files of an unfinished role.

        Removes the folder too if it holds no finished role.
        """
        for suffix in _OWN_SUFFIXES:
            (self.path / f"{role}{suffix}").unlink(missing_ok=True)
        self.discard_step(role)
        if not self._finished:
            self.discard()

    def discard_step(self, role: Role) -> None:
        """Remove the files of a role's fine-tuning step."""
        for part in _ADAPT_PARTS:
            for suffix in _OWN_SUFFIXES:
                (self.path / f"{role}_{part}{suffix}").unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove the folder, and the parents that were created for it."""
        shutil.rmtree(self.path, ignore_errors=True)
        for folder in self._made_folders:
            with contextlib.suppress(OSError):  # not empty any more
                folder.rmdir()

    def publish(self) -> None:
        """Rename the folder to the engine directory, replacing the previous one.

        Files that a user added (a model card, notes) are kept. Plans are not, because they belong
        to other graphs.

        Raises:
            OutputError: If it cannot be renamed; the old directory is then restored.
        """
        try:
            (self.path / STATE_NAME).unlink(missing_ok=True)
            if self._target.exists():
                _carry_over(self._target, self.path)
            old = publish_folder(self.path, self._target)
        except OSError as error:
            raise OutputError(
                f"{self._target} cannot be put in place: {error.strerror or error}"
            ) from error
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)

    def _save_state(self) -> None:
        state = json_from_record(_State(STATE_SCHEMA, self._key, self._finished))
        write_text_atomically(self.path / STATE_NAME, json.dumps(state, allow_nan=False) + "\n")


def check_target(out: Path) -> Path:
    """Check that ``out`` can become an engine directory, before any work.

    Returns:
        The path, absolute and without symbolic links.

    Raises:
        OutputError: If it is a file, another kind of folder, blocked by a file, or not writable.
    """
    if not str(out).strip() or "\0" in str(out):
        raise OutputError("the output folder has no usable name: give one such as -o engines/")
    try:
        target = out.resolve()
        _check_existing(out, target)
        above = target.parent
        while not above.exists():
            above = above.parent
        if not above.is_dir():
            raise OutputError(f"{out} cannot be created: {above} is a file, not a folder")
        if not os.access(above, os.W_OK | os.X_OK):
            raise OutputError(
                f"{out} cannot be written: no permission in {above}: choose another -o"
            )
    except (OSError, RuntimeError) as error:
        raise OutputError(f"{out} cannot be used as output folder: {error}") from error
    return target


def check_space(target: Path, needed_bytes: int) -> None:
    """Raise OutputError unless the disk has room for ``needed_bytes``."""
    above = target.parent
    while not above.exists():
        above = above.parent
    free = shutil.disk_usage(above).free
    if free < needed_bytes:
        raise OutputError(
            f"the engines need about {_mib(needed_bytes)} MiB, but {above} has {_mib(free)} MiB "
            "left: free some, or choose another -o"
        )


def _check_existing(out: Path, target: Path) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise OutputError(
            f"{out} is a file: give a folder for the engine directory, as -o engines/"
        )
    if not os.access(target, os.W_OK | os.X_OK):
        raise OutputError(f"{out} cannot be written: no permission: choose another -o")
    if target == Path.cwd() or target in Path.cwd().parents:
        raise OutputError(
            f"{out} is the current folder or above it, and would be replaced: "
            "give a folder inside it, as -o engines/"
        )
    if target.is_mount():
        raise OutputError(
            f"{out} is a mount point, which cannot be replaced in one step: "
            f"give a folder inside it, as -o {out / 'engines'}"
        )
    if any(target.iterdir()) and not _is_engine_dir(target):
        raise OutputError(
            f"{out} holds files but no engine directory's {MANIFEST_NAME}: "
            "give a new or empty folder, or an engine directory to replace"
        )


def _is_engine_dir(path: Path) -> bool:
    """Return whether a folder has a manifest of ours, of any schema.

    Web pages have files of this name too.
    """
    try:
        check_plain_file(path / MANIFEST_NAME)
        value = json.loads((path / MANIFEST_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(value, dict) and {"schema_version", "roles", "provenance"} <= set(value)


def _load_state(path: Path, key: Mapping[str, Any]) -> dict[str, FinishedRole]:
    """Return the finished roles of an earlier run if it had the same key."""
    try:
        state = record_from_json(read_json(path / STATE_NAME, OutputError), _State, OutputError)
    except MpnError:
        return {}  # a damaged note means that the work is done again, never that it is trusted
    if state.schema_version != STATE_SCHEMA or state.key != key:
        return {}
    return dict(state.roles)


def _remove_own(path: Path, target: Path) -> None:
    """Remove the staging folder of another export.

    It may hold copies of the user's files in the engine directory, if that export was killed before
    its last step.

    Raises:
        OutputError: If it holds a file that no export has written.
    """
    foreign = [
        entry.name
        for entry in path.iterdir()
        if not _is_own(entry.name) and not _is_copy(entry, target / entry.name)
    ]
    if foreign:
        raise OutputError(
            f"{path} is in the way and holds '{foreign[0]}', which no export wrote: move it away"
        )
    shutil.rmtree(path)


def _is_copy(path: Path, original: Path) -> bool:
    if path.is_symlink() or original.is_symlink():
        return (
            path.is_symlink() and original.is_symlink() and path.readlink() == original.readlink()
        )
    if path.is_dir():
        return original.is_dir() and all(_is_copy(e, original / e.name) for e in path.iterdir())
    return original.is_file() and filecmp.cmp(path, original, shallow=False)


def _is_own(name: str) -> bool:
    return name in _OWN_NAMES or name.endswith((*_OWN_SUFFIXES, PARTIAL_SUFFIX, ".tmp"))


def _carry_over(source: Path, target: Path) -> None:
    for entry in source.iterdir():
        if _is_own(entry.name):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, target / entry.name, symlinks=True, dirs_exist_ok=True)
        else:
            shutil.copy2(entry, target / entry.name, follow_symlinks=False)


def _mib(size_bytes: int) -> int:
    return -(-size_bytes // (1 << 20))
