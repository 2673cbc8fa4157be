"""Read an engine directory from a zip file, and write one.

Only the files that the manifest names are unpacked, and ``parity.json``. Plans are not: they are
programs, which each machine builds.
"""

from __future__ import annotations

import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from mpn._common.files import output_errors, replacing
from mpn._common.text import LONGEST_MESSAGE, one_line
from mpn.engines.directory.files import MANIFEST_NAME, check_engine_dir, resolve_inside
from mpn.engines.directory.manifest import Manifest, load_manifest, verify_digests
from mpn.engines.directory.parity import PARITY_NAME
from mpn.errors import ManifestError, MpnError

MOST_MANIFEST_BYTES = 64 << 20
"""Largest manifest; one has 0.1 to 1 MB."""

_MOST_ENTRIES = 10_000
_FREE_BYTES = 64 << 20
_MOST_RATIO = 4
"""Weights hardly shrink: float16 by an eighth. Graphs shrink tenfold and have a few MB."""
_CHUNK_BYTES = 1 << 20
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The date of each file that :func:`save_zip` writes: the same engines give the same digest."""
_ENCRYPTED = 0x1


def files_to_copy(manifest: Manifest) -> list[str]:
    """Return the paths of the files of an engine directory, without the manifest."""
    named = (file.path for entry in manifest.roles.values() for file in entry.all_files)
    return sorted({*named} - {MANIFEST_NAME})


def unpack_zip(path: Path, folder: Path, shown: str) -> None:
    """Unpack the engine directory in a zip file, and check its digests.

    The directory is the top of the file, or the only folder there with a manifest.

    Args:
        path: The zip file.
        folder: An empty folder.
        shown: Its name in messages.

    Raises:
        ManifestError: If it holds no intact engine directory, a name in it leads out of it, a file
            is a link, or it unpacks to more than four times its size.
        OutputError: If a file cannot be written.
    """
    try:
        size = path.stat().st_size
        with _zip_errors(), zipfile.ZipFile(path) as archive:
            entries = _entries_by_name(archive)
            budget = _Budget(_FREE_BYTES + _MOST_RATIO * size)
            _unpack(archive, entries, MANIFEST_NAME, folder, MOST_MANIFEST_BYTES, budget)
            manifest = load_manifest(folder)
            for name in files_to_copy(manifest):
                if name not in entries:
                    raise ManifestError(f"{name} is missing from it: zip the whole directory")
            names = [*files_to_copy(manifest), *({PARITY_NAME} & entries.keys())]
            budget.check(sum(entries[name].file_size for name in names))
            for name in names:
                _unpack(archive, entries, name, folder, budget.left, budget)
        verify_digests(folder, manifest, with_adapt=True)
    except OSError as error:
        raise ManifestError(f"{shown} cannot be read: {error.strerror or error}") from error
    except ManifestError as error:
        text = str(error).replace(f"{folder}/", "").replace(str(folder), "it")
        raise ManifestError(f"{shown}: {one_line(text, LONGEST_MESSAGE)}") from error


def save_zip(directory: Path, path: Path) -> None:
    """Write an engine directory as a zip file.

    The same directory gives the same bytes.

    Args:
        directory: A complete engine directory. Plans are left out.
        path: The file to write.

    Raises:
        ManifestError: If a file of the directory is missing or has changed.
        OutputError: If the file cannot be written.
    """
    check_engine_dir(directory)
    manifest = load_manifest(directory)
    verify_digests(directory, manifest, with_adapt=True)
    names = [MANIFEST_NAME, *files_to_copy(manifest)]
    if (directory / PARITY_NAME).is_file():
        names.append(PARITY_NAME)
    # Stored, not deflated: the digest does not depend on the version of zlib.
    with (
        replacing(path, durable=True) as temporary,
        zipfile.ZipFile(temporary, "w") as archive,
    ):
        for name in names:
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            source = resolve_inside(directory, name)
            with source.open("rb") as file, archive.open(entry, "w", force_zip64=True) as target:
                shutil.copyfileobj(file, target, _CHUNK_BYTES)


class _Budget:
    """Bytes that may still be unpacked.

    The sizes that a zip file states may be wrong.
    """

    def __init__(self, most_bytes: int) -> None:
        self.left = most_bytes

    def check(self, count: int) -> None:
        if count > self.left:
            raise ManifestError(
                f"it unpacks to more than {_MOST_RATIO} times its size, which engines do not"
            )

    def take(self, count: int) -> None:
        self.check(count)
        self.left -= count


@contextmanager
def _zip_errors() -> Iterator[None]:
    try:
        yield
    except MpnError:  # some are ValueErrors too
        raise
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        NotImplementedError,
        RuntimeError,
        ValueError,
        struct.error,
    ) as error:
        raise ManifestError(
            f"it is no zip file that can be read ({one_line(error)}): copy it again"
        ) from error


def _entries_by_name(archive: zipfile.ZipFile) -> Mapping[str, zipfile.ZipInfo]:
    """Return the files of the engine directory by their name in it."""
    found = archive.infolist()
    if len(found) > _MOST_ENTRIES:
        raise ManifestError(f"it has {len(found)} files, more than {_MOST_ENTRIES}")
    names = [entry.filename for entry in found]
    for name in names:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or name[1:2] == ":":
            raise ManifestError(f"a name in it leads out of it, {name[:80]!r}")
    tops = [name[: -len(MANIFEST_NAME)] for name in names if _is_manifest(name)]
    if not tops:
        raise ManifestError(
            f"it has no {MANIFEST_NAME} at its top or in a folder there: zip the folder that "
            "mpn-export wrote"
        )
    if len(tops) > 1 and "" not in tops:
        raise ManifestError(f"it has {len(tops)} engine directories: make a zip file of one")
    top = min(tops, key=len)
    inside = [entry for entry in found if entry.filename.startswith(top)]
    entries = {entry.filename[len(top) :]: entry for entry in inside}
    if len(entries) < len(inside):
        raise ManifestError("it has two files of one name")
    return entries


def _is_manifest(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return len(parts) <= 2 and parts[-1:] == (MANIFEST_NAME,) and not name.endswith("/")


def _unpack(
    archive: zipfile.ZipFile,
    entries: Mapping[str, zipfile.ZipInfo],
    name: str,
    folder: Path,
    most_bytes: int,
    budget: _Budget,
) -> None:
    entry = entries[name]
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if entry.is_dir() or kind not in (0, stat.S_IFREG):
        raise ManifestError(f"{name} in it is a link or no plain file: zip the files themselves")
    if entry.flag_bits & _ENCRYPTED:
        raise ManifestError(f"{name} in it is encrypted")
    if entry.file_size > most_bytes:
        raise ManifestError(f"{name} in it has more than {most_bytes} bytes")
    target = resolve_inside(folder, name)
    with output_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(entry) as source, output_errors(target), target.open("xb") as file:
        while chunk := source.read(_CHUNK_BYTES):
            budget.take(len(chunk))
            file.write(chunk)
