"""Copy files and folders from and to addresses with a scheme, through fsspec.

An address is ``s3://bucket/clips/a.mp4``, ``gs://...``, ``file:///mnt/share/...`` or any other that
an installed package of fsspec reads. Credentials come from that package: its environment variables
and files. No message contains those of an address: :func:`public_address` removes them.

A fetched file or folder gets its final name when it is complete. Of an uploaded folder, the file
that marks it as complete is removed first and written last.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import IO, Any

from mpn._common.files import (
    PARTIAL_SUFFIX,
    output_errors,
    publish_folder,
    read_plain_file,
    replacing,
)
from mpn._common.text import LONGEST_MESSAGE, one_line
from mpn.errors import InputError, MissingExtraError, MpnError, OutputError, import_or_explain

MOST_BYTES = 1 << 40
"""Largest file or folder that is fetched unless the caller has another limit: 1 TiB."""

MOST_FILES = 1_000_000
"""Most files of a folder that is fetched."""

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_ADDRESS_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://[^\s'\"<>]*")
_CREDENTIALS = re.compile(r"(?<=://)[^/?#@]+(?=@)|(?<=[?#]).+")
_TAGS = ("ETag", "etag", "md5Hash", "md5", "content_md5", "checksum", "generation")
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "created")
"""Fields of a listing that change with the content of a file: each package has others."""
_CHUNK_BYTES = 4 << 20
_OBJECT_STORES = frozenset({"s3", "gs", "gcs", "abfs", "az", "oss", "r2"})
"""They have no folders; fsspec would create a bucket that does not exist."""
_TRANSFERS = 8
"""Files at once: a folder of frames is small files, and each waits for the network."""


def is_remote(text: str | os.PathLike[str]) -> bool:
    """Return whether a text is an address with a scheme, as ``s3://bucket/a``.

    A drive letter of Windows has no ``//`` and is none.
    """
    return _ADDRESS.match(os.fspath(text)) is not None


def public_address(address: str) -> str:
    """Return an address without user, password, query and fragment.

    It is for messages and records. The query of a signed HTTP address is a credential.
    """
    scheme, separator, rest = address.partition("://")
    if not separator:
        return address
    rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def joined_address(address: str, *names: str) -> str:
    """Return the address of a file below a folder's address."""
    return "/".join([address.rstrip("/"), *names])


def exists(address: str) -> bool:
    """Return whether a file or folder exists at an address.

    Raises:
        InputError: If the storage cannot be reached.
        MissingExtraError: If the package for its scheme is not installed.
    """
    system, path = _opened(address)
    with _input_errors(address):
        return bool(system.exists(path))


def read_bytes(address: str, most_bytes: int) -> bytes:
    """Read a whole small file.

    Args:
        address: The file.
        most_bytes: Largest size that a valid file of this kind has.

    Raises:
        InputError: If it does not exist, cannot be read or is larger.
        MissingExtraError: If the package for its scheme is not installed.
    """
    system, path = _opened(address)
    with _input_errors(address):
        if _is_local(system):
            return read_plain_file(Path(path), most_bytes)
        with system.open(path, "rb") as file:
            data = bytes(file.read(most_bytes + 1))
    if len(data) > most_bytes:
        raise InputError(f"{public_address(address)} has more than {most_bytes} bytes")
    return data


def version_of(address: str) -> str:
    """Return a digest that changes with a file, or with any file of a folder.

    It is made of names, sizes and the tags of the storage, or the times of change if the storage
    has no tags. No content is read.

    Args:
        address: The file or folder.

    Raises:
        InputError: If it does not exist or cannot be read.
        MissingExtraError: If the package for its scheme is not installed.
    """
    system, path = _opened(address)
    with _input_errors(address):
        entry = system.info(path)
        files = [("", path, entry)]
        if entry["type"] == "directory":
            files = list(_files_below(system, address, path))
    digest = hashlib.sha256()
    for name, _, entry in files:
        facts = [entry.get(key) for key in _TAGS if entry.get(key) is not None]
        facts = facts or [entry.get(key) for key in _TIMES if entry.get(key) is not None]
        line = [name, entry.get("size"), *facts[:1]]
        digest.update("\0".join(map(str, line)).encode(errors="surrogateescape") + b"\n")
    return digest.hexdigest()


def fetch(address: str, folder: Path, *, most_bytes: int = MOST_BYTES) -> Path:
    """Copy a file, or a folder with all files below it, into a local folder.

    An earlier copy of the same name is replaced. Links of a ``file://`` folder become the files
    that they lead to; a link to a folder is not followed.

    Args:
        address: The file or folder.
        folder: An existing local folder.
        most_bytes: Limit of all bytes together.

    Returns:
        ``folder / NAME``, the last part of the address as its name.

    Raises:
        InputError: If it does not exist, cannot be read, is larger, or has names that lead out of
            the folder.
        MissingExtraError: If the package for its scheme is not installed.
        OutputError: If it cannot be written.
    """
    system, path = _opened(address)
    name = PurePosixPath(public_address(path)).name  # the path of HTTP is the whole address
    if not name or not _is_plain_name(name):
        raise InputError(f"{public_address(address)} names no file or folder")
    target = folder / name
    with _input_errors(address):
        entry = system.info(path)
        is_folder = entry["type"] == "directory"
        files = list(_files_below(system, address, path)) if is_folder else [("", path, entry)]
    _check_sizes(address, (entry for _, _, entry in files), most_bytes)
    budget = _Budget(address, most_bytes)
    if not is_folder:
        with replacing(target) as temporary:
            _download(system, address, path, temporary, budget)
        return target
    temporary = folder / f".{name[:100]}.{secrets.token_hex(8)}{PARTIAL_SUFFIX}"
    try:
        with output_errors(temporary):
            temporary.mkdir()
            for relative, _, _ in files:
                (temporary / relative).parent.mkdir(parents=True, exist_ok=True)
        _each(
            files,
            lambda file: _download(system, address, file[1], temporary / file[0], budget),
        )
        with output_errors(target):
            old = publish_folder(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)
    return target


def upload_folder(
    folder: Path,
    address: str,
    *,
    last: Collection[str] = ("done.json",),
    is_obsolete: Callable[[str], bool] | None = None,
) -> None:
    """Copy all files of a folder to an address, those that mark it as complete last.

    First ``last`` are removed at the address, so a copy that is interrupted is not complete. Other
    files that the address has already stay, unless ``is_obsolete``. Hidden files, which belong to a
    running process, and links are not copied.

    Args:
        folder: The local folder.
        address: The folder to write; it need not exist.
        last: Names in ``folder``, in the order in which they are written after all others; those
            that do not exist are left out.
        is_obsolete: Called with the name of each file at the address that ``folder`` does not
            have; the file is removed if it is true.

    Raises:
        MissingExtraError: If the package for the scheme is not installed.
        OutputError: If a file cannot be written or removed.
    """
    system, root = _opened(address)
    local = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and not path.is_symlink()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    names = [path.relative_to(folder).as_posix() for path in local]
    with _storage_output_errors(address):
        for name in reversed(list(last)):
            with suppress(FileNotFoundError):
                system.rm_file(f"{root}/{name}")
        if is_obsolete is not None:
            system.invalidate_cache()
            for path in system.find(root) if system.isdir(root) else ():
                name = path[len(root) :].lstrip("/")
                if name not in names and is_obsolete(name):
                    system.rm_file(path)

    def upload(name: str) -> None:
        with _storage_output_errors(address):
            _upload(system, folder / name, f"{root}/{name}")

    _each([name for name in names if name not in last], upload)
    for name in last:
        if name in names:
            upload(name)


class _Budget:
    """Bytes that a fetch may still write.

    A listing may give other sizes than the files have.
    """

    def __init__(self, address: str, most_bytes: int) -> None:
        self._address, self._left = address, most_bytes
        self._lock = Lock()

    def take(self, count: int) -> None:
        with self._lock:
            self._left -= count
            if self._left < 0:
                raise InputError(f"{public_address(self._address)} has more bytes than allowed")


def _opened(address: str) -> tuple[Any, str]:
    """Return the file system of an address, and the path in it."""
    shown = public_address(address)
    if not is_remote(address) or "::" in address or "\0" in address:
        raise InputError(f"{shown!r} is no address of a file or folder: give SCHEME://PATH")
    core = import_or_explain("fsspec.core", extra="remote", purpose=f"the address {shown}")
    try:
        system, path = core.url_to_fs(address)
    except ImportError as error:
        missing = getattr(error.__cause__, "name", None) or getattr(error, "name", None)
        package = f"the Python package '{missing}'" if missing else "a Python package"
        raise MissingExtraError(
            f"the address {shown} needs {package}, which is not installed: pip install "
            f"{missing or 'it'}"
        ) from None
    except Exception as error:  # each package has other errors
        raise InputError(f"{shown} cannot be opened: {_reason(error, address)}") from None
    return system, str(path).rstrip("/")


def _is_local(system: Any) -> bool:
    return "file" in _protocols(system)


def _protocols(system: Any) -> tuple[str, ...]:
    return system.protocol if isinstance(system.protocol, tuple) else (system.protocol,)


def _files_below(system: Any, address: str, root: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield the relative name, the path and the entry of each file below a folder."""
    found = system.find(root, detail=True)
    shown = public_address(address)
    if len(found) > MOST_FILES:
        raise InputError(f"{shown} has more than {MOST_FILES} files")
    for path, entry in sorted(found.items()):
        relative = path[len(root) :].lstrip("/")
        if not path.startswith(root) or not all(map(_is_plain_name, relative.split("/"))):
            raise InputError(f"{shown} has a file named {relative[:80]!r}, which leads elsewhere")
        if entry["type"] != "file":
            if entry.get("islink") and os.path.isdir(path):
                continue
            if not (entry.get("islink") and os.path.isfile(path)):
                raise InputError(f"{relative[:80]!r} in {shown} is no plain file")
        yield relative, path, entry


def _is_plain_name(name: str) -> bool:
    return name not in ("", ".", "..") and not any(letter in name for letter in "/\\\0")


def _check_sizes(address: str, entries: Iterable[dict[str, Any]], most_bytes: int) -> None:
    size = sum(entry.get("size") or 0 for entry in entries)
    if size > most_bytes:
        raise InputError(
            f"{public_address(address)} has {size} bytes, more than the {most_bytes} allowed"
        )


def _download(system: Any, address: str, path: str, target: Path, budget: _Budget) -> None:
    with _input_errors(address):
        if _is_local(system) and not os.path.isfile(path):
            raise InputError(f"{public_address(address)} is no plain file")
        source = system.open(path, "rb")
    with source, output_errors(target), target.open("wb") as file:
        for chunk in _chunks(source, address):
            budget.take(len(chunk))
            file.write(chunk)


def _chunks(source: IO[bytes], address: str) -> Iterator[bytes]:
    while True:
        with _input_errors(address):
            chunk = source.read(_CHUNK_BYTES)
        if not chunk:
            return
        yield chunk


def _upload(system: Any, source: Path, path: str) -> None:
    if _is_local(system):  # fsspec would write under the final name
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target, durable=True) as temporary:
            shutil.copyfile(source, temporary)
    else:
        if not _OBJECT_STORES.intersection(_protocols(system)):
            system.makedirs(path.rpartition("/")[0], exist_ok=True)
        system.put_file(str(source), path)


def _each(items: Iterable[Any], work: Callable[[Any], None]) -> None:
    """Call ``work`` with each item in threads; after an error, start no more."""
    pool = ThreadPoolExecutor(_TRANSFERS)
    try:
        for future in [pool.submit(work, item) for item in items]:
            future.result()
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _input_errors(address: str) -> Iterator[None]:
    """Convert each error of a storage into an InputError without credentials."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"there is nothing at {public_address(address)}") from None
    except MpnError:
        raise
    except Exception as error:  # each package has other errors
        raise InputError(
            f"{public_address(address)} cannot be read: {_reason(error, address)}"
        ) from None


@contextmanager
def _storage_output_errors(address: str) -> Iterator[None]:
    """Convert each error of a storage into an OutputError without credentials."""
    try:
        yield
    except OutputError:
        raise
    except Exception as error:  # each package has other errors
        raise OutputError(
            f"cannot write {public_address(address)}: {_reason(error, address)}"
        ) from None


def _reason(error: Exception, address: str) -> str:
    """Return the text of an error without the credentials of addresses."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    text = one_line(text or type(error).__name__, LONGEST_MESSAGE)
    text = _ADDRESS_IN_TEXT.sub(lambda found: public_address(found[0]), text)
    for credential in _CREDENTIALS.findall(address):
        text = text.replace(credential, "...")
    return text
