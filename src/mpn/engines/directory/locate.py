"""Find the engine directory of a folder, a zip file or an address.

A text may end with ``#sha256=`` and 64 hexadecimal digits: the digest of the zip file, or of the
``manifest.json`` of a folder, which has the digests of all other files. Another digest is an error.
An address with a scheme, such as ``s3://bucket/engines.zip``, needs one.

Zip files and addresses are copied into the user's cache, into a folder named by the digest of its
manifest. Its files are compared with the manifest each time, and unpacked again if they differ.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from mpn._common import storage
from mpn._common.cache_dirs import distrust_reason, make_private_folder, user_cache_dir
from mpn._common.files import (
    first_bytes,
    output_errors,
    publish_folder,
    sha256_of_file,
    write_bytes_atomically,
    write_text_atomically,
)
from mpn._common.locks import TemporaryFolder
from mpn._common.storage import is_remote, joined_address, public_address
from mpn.engines.directory.archive import MOST_MANIFEST_BYTES, files_to_copy, unpack_zip
from mpn.engines.directory.files import (
    CHECKPOINT_SUFFIXES,
    MANIFEST_NAME,
    check_engine_dir,
)
from mpn.engines.directory.manifest import load_manifest, verify_digests
from mpn.engines.directory.parity import PARITY_NAME
from mpn.errors import ManifestError, MpnError

WEIGHTS_PACKAGE = "mpn_weights_lite"
"""Package of the weights; it holds engine directories and no code."""

SHIPPED_ENGINES = {"lite": "engines", "lite-int8": "engines_int8"}
"""Folders of the package by the names that ``--engine-dir`` takes; the first one is the default."""

_CHECKOUT = Path(__file__).resolve().parents[4]
_PIN = "#sha256="
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MOST_BYTES = 32 << 30
"""Limit of an engine directory from an address; that of the paper's networks has 1 GB."""


def default_engine_dir() -> Path:
    """Return the engine directory that is used without ``--engine-dir``.

    Raises:
        ManifestError: See :func:`shipped_engine_dir`.
    """
    return shipped_engine_dir(next(iter(SHIPPED_ENGINES)))


def shipped_engine_dir(name: str) -> Path:
    """Return an engine directory of the package mpn-weights-lite.

    A checkout of the repository takes the weights of the checkout, installed or not.

    Args:
        name: One of :data:`SHIPPED_ENGINES`.

    Raises:
        ManifestError: If the package, or this directory of it, is not installed.
    """
    packages = list(_weights_packages())
    for package in packages:
        if (package / SHIPPED_ENGINES[name] / MANIFEST_NAME).is_file():
            return package / SHIPPED_ENGINES[name]
    if any(package.is_dir() for package in packages):
        raise ManifestError(
            f"the installed mpn-weights-lite has no engines {name}: pip install -U mpn-weights-lite"
        )
    raise ManifestError(
        "no engines are installed: pip install mpn-weights-lite (9 MB, CC BY-NC 4.0: not for "
        "commercial use), or give an engine directory of mpn-export with --engine-dir"
    )


def is_installed_weights(path: Path) -> bool:
    """Return whether a path lies in the package of the weights.

    No run writes into it.
    """
    return any(path.is_relative_to(package) for package in _weights_packages())


def _weights_packages() -> Iterator[Path]:
    yield _CHECKOUT / "weights" / "lite" / "src" / WEIGHTS_PACKAGE
    spec = find_spec(WEIGHTS_PACKAGE)
    for folder in () if spec is None else spec.submodule_search_locations or ():
        yield Path(folder).resolve()


def local_engine_dir(
    source: str | os.PathLike[str] | None = None, *, cache: Path | None = None
) -> Path:
    """Return the local folder of an engine directory.

    A zip file is unpacked, and an address copied, unless the cache has it already.

    Args:
        source: A folder, a zip file or an address, see the module, or one of
            :data:`SHIPPED_ENGINES` if no file has that name; None for :func:`default_engine_dir`.
        cache: Folder for copies; None for ``engines/`` in the user's cache.

    Returns:
        The folder. It has a manifest; that of a zip file or an address is complete and intact.

    Raises:
        InputError: If an address cannot be read.
        ManifestError: If there is no engine directory, its digest is another one, it is damaged, or
            an address has no digest.
        MissingExtraError: If the package for the scheme of an address is not installed.
        OutputError: If the cache cannot be written.
    """
    if source is None:
        return default_engine_dir()
    text, pin = split_pin(os.fspath(source))
    if is_remote(text):
        if pin is None:
            raise ManifestError(
                f"{public_address(text)} needs a digest, so that it cannot change: add "
                f"{_PIN}DIGEST, which mpn inspect prints for a local copy"
            )
        return _Cache(cache).of_address(text, pin)
    path = _path_of(text)
    if is_zip(path):
        return _Cache(cache).of_zip(path, pin)
    if path.suffix.lower() == ".zip" and not path.exists():
        raise ManifestError(
            f"there is no zip file at {path}: check the path, or leave the option out to use the "
            "installed weights"
        )
    path = check_engine_dir(path)
    if pin is not None:
        _check_pin(str(path), pin, _digest_of(path / MANIFEST_NAME, str(path)))
    return path


def pinned(source: str | os.PathLike[str]) -> str:
    """Return the text that pins an engine directory: its place and digest.

    Args:
        source: See :func:`local_engine_dir`.

    Raises:
        ManifestError: If it cannot be read.
    """
    text, pin = split_pin(os.fspath(source))
    if is_remote(text):
        return f"{public_address(text)}{_PIN}{pin}"
    path = _path_of(text)
    return f"{text}{_PIN}{_digest_of(path if is_zip(path) else path / MANIFEST_NAME, text)}"


def _path_of(text: str) -> Path:
    if text in SHIPPED_ENGINES and not os.path.lexists(text):
        return shipped_engine_dir(text)
    return Path(text)


def split_pin(text: str) -> tuple[str, str | None]:
    """Split a text into the place of an engine directory and its digest.

    Raises:
        ManifestError: If the digest is none.
    """
    place, separator, digest = text.rpartition(_PIN)
    if not separator or os.path.exists(text):
        return text, None
    if not _DIGEST.fullmatch(digest.lower()):
        raise ManifestError(
            f"the digest after {_PIN} must be 64 hexadecimal digits, got {digest[:80]!r}"
        )
    return place, digest.lower()


def is_zip(path: Path) -> bool:
    """Return whether a path is a zip file, or by its name should be one."""
    suffix = path.suffix.lower()
    if suffix in CHECKPOINT_SUFFIXES or not os.path.isfile(path):  # torch writes zip files
        return False
    return suffix == ".zip" or first_bytes(path, 4) == b"PK\x03\x04"


class _Cache:
    """Engine directories by the digest of their manifest.

    A file for each zip file holds the digest of its manifest.

    Args:
        folder: See :func:`local_engine_dir`.
    """

    def __init__(self, folder: Path | None) -> None:
        found = folder or user_cache_dir("engines")
        if found is None:
            raise ManifestError(
                "there is no home for copies of engines: set XDG_CACHE_HOME, or give a folder "
                "instead of a zip file or address"
            )
        self._folder = found

    def of_zip(self, path: Path, pin: str | None) -> Path:
        """Return the unpacked folder of a local zip file."""
        digest = _digest_of(path, str(path))
        if pin is not None:
            _check_pin(str(path), pin, digest)
        return self._found(digest) or self._unpacked(
            str(path), digest, lambda folder: _copy(path, folder / "engines.zip")
        )

    def of_address(self, address: str, pin: str) -> Path:
        """Return the local copy of a zip file or folder at an address."""
        if public_address(address).lower().endswith(".zip"):
            return self._found(pin) or self._unpacked(
                public_address(address),
                pin,
                lambda folder: storage.fetch(address, folder, most_bytes=_MOST_BYTES),
            )
        return self._intact(pin) or self._copied(address, pin)

    def _found(self, zip_digest: str) -> Path | None:
        """Return the intact folder of a zip file that was unpacked before."""
        record = self._record(zip_digest)
        if distrust_reason(record) is not None:
            return None
        with suppress(OSError, UnicodeError):
            digest = record.read_text(encoding="ascii").strip()
            return self._intact(digest) if _DIGEST.fullmatch(digest) else None
        return None

    def _record(self, zip_digest: str) -> Path:
        return self._folder / f"zip-{zip_digest}"

    def _intact(self, digest: str) -> Path | None:
        """Return the folder of a manifest if all its files are as exported."""
        folder = self._folder / digest
        if not _is_private(folder):
            return None
        with suppress(MpnError, OSError):
            if sha256_of_file(folder / MANIFEST_NAME) == digest:
                verify_digests(folder, load_manifest(folder), with_adapt=True)
                return folder
        return None

    def _unpacked(self, shown: str, digest: str, fetch: Callable[[Path], Path]) -> Path:
        with self._temporary() as temporary:
            # The private copy is compared and unpacked: the original could change meanwhile.
            copy = fetch(temporary.path)
            _check_pin(shown, digest, _digest_of(copy, shown))
            folder = _new_folder(temporary.path / "engines")
            unpack_zip(copy, folder, shown)
            found = self._published(folder)
        write_text_atomically(self._record(digest), f"{found.name}\n")
        return found

    def _copied(self, address: str, pin: str) -> Path:
        shown = public_address(address)
        data = storage.read_bytes(joined_address(address, MANIFEST_NAME), MOST_MANIFEST_BYTES)
        _check_pin(shown, pin, hashlib.sha256(data).hexdigest())
        with self._temporary() as temporary:
            folder = _new_folder(temporary.path / "engines")
            write_bytes_atomically(folder / MANIFEST_NAME, data)
            try:
                manifest = load_manifest(folder)
                names = files_to_copy(manifest)
                if storage.exists(joined_address(address, PARITY_NAME)):
                    names.append(PARITY_NAME)
                left = _MOST_BYTES
                for name in names:
                    above = (folder / name).parent
                    with output_errors(above):
                        above.mkdir(parents=True, exist_ok=True)
                    file = storage.fetch(joined_address(address, name), above, most_bytes=left)
                    left -= file.stat().st_size
                verify_digests(folder, manifest, with_adapt=True)
            except ManifestError as error:
                raise ManifestError(str(error).replace(str(folder), shown)) from error
            return self._published(folder)

    def _temporary(self) -> TemporaryFolder:
        with output_errors(self._folder):
            make_private_folder(self._folder)
            if not _is_private(self._folder):
                raise ManifestError(
                    f"{self._folder} belongs to another user or others may write it: "
                    "remove it, or chmod 700 it"
                )
            return TemporaryFolder(self._folder, prefix="new-")

    def _published(self, folder: Path) -> Path:
        """Give a complete folder its final name; another process may have done so before."""
        target = self._folder / sha256_of_file(folder / MANIFEST_NAME)
        try:
            with output_errors(target):
                old = publish_folder(folder, target)
        except MpnError:
            if self._intact(target.name) is None:
                raise
            old = None
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)
        return target


def _new_folder(path: Path) -> Path:
    with output_errors(path):
        path.mkdir(mode=0o700)
    return path


def _copy(path: Path, target: Path) -> Path:
    with output_errors(target):
        return Path(shutil.copyfile(path, target))


def _is_private(folder: Path) -> bool:
    """Return whether a folder belongs to this user and no other user may write it."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    if os.name == "nt":  # the user's cache has an access list there
        return stat.S_ISDIR(found.st_mode)
    others = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not others


def _digest_of(path: Path, shown: str) -> str:
    try:
        return sha256_of_file(path)
    except OSError as error:
        raise ManifestError(f"{shown} cannot be read: {error.strerror or error}") from error


def _check_pin(shown: str, expected: str, found: str) -> None:
    if found != expected:
        raise ManifestError(
            f"{shown} has the digest {found}, not the pinned {expected}: it is "
            "another file, or damaged"
        )
