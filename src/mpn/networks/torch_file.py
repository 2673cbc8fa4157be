"""Safe reading of ``.pth`` files, with explanations of errors."""

from __future__ import annotations

import errno
import pickle
import re
import tarfile
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import torch

from mpn._common.files import write_atomically
from mpn._common.text import one_line
from mpn.errors import CheckpointError

_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
_ZIP_MAGIC = b"PK\x03\x04"
_PICKLE_MAGIC = b"\x80"
_SAVE_STATE_DICT = "save model.state_dict() alone, as in torch.save(model.state_dict(), FILE)"


def read_torch_file(path: Path) -> Any:
    """Read a file of ``torch.save`` to the CPU with ``weights_only=True``.

    Args:
        path: A file of torch >= 1.6 (zip) or older (pickle).

    Returns:
        Containers, numbers, text and tensors; other types are refused.

    Raises:
        CheckpointError: If the file is missing, unreadable, damaged, no checkpoint, or holds
            objects whose unpickling would run code.
    """
    _check_readable(path)
    try:
        _check_archive(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice is for direct callers
            return torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged file can raise any exception in the unpickler
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # a seek before the start
            raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
        raise CheckpointError(_explanation(path, error)) from error


def _check_readable(path: Path) -> None:
    if "\0" in str(path):
        raise CheckpointError("the checkpoint's name contains a NUL character")
    try:
        if path.is_dir():
            raise CheckpointError(
                f"{path} is a folder, not a checkpoint: give the .pth file, and an engine "
                "directory to mpn-run instead"
            )
        if not path.exists():
            raise CheckpointError(f"there is no checkpoint at {path}: check the path")
        if not path.is_file():  # reading a pipe would block forever
            raise CheckpointError(f"{path} is not a plain file: give the .pth file itself")
        if path.stat().st_size == 0:
            raise CheckpointError(f"{path} is empty (0 bytes): copy or download it again")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error


def _check_archive(path: Path) -> None:
    """Check the checksums of a file, which torch does not do.

    A flipped byte would be a wrong weight.
    """
    if not zipfile.is_zipfile(path):
        with path.open("rb") as stream:
            if stream.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC:
                raise CheckpointError(
                    f"{path} is truncated ({path.stat().st_size} bytes, the end of the archive is "
                    "missing): copy or download it again"
                )
        return
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise CheckpointError(
            f"{path} is damaged (bad checksum of {damaged}): copy or download it again"
        )


def _explanation(path: Path, error: Exception) -> str:
    text = str(error)
    with path.open("rb") as stream:
        start = stream.read(len(_ZIP_MAGIC))
    blocked = _GLOBAL.search(text)
    if isinstance(error, pickle.UnpicklingError) and blocked is not None:
        return _blocked_explanation(path, blocked.group(1))
    if isinstance(error, zipfile.BadZipFile | zlib.error):
        return f"{path} is damaged ({text}): copy or download it again"
    if start == _ZIP_MAGIC:
        if "TorchScript" in text:
            return f"{path} is a TorchScript program, not a checkpoint: {_SAVE_STATE_DICT}"
        return f"{path} is an archive but no checkpoint of torch.save: give the .pth file itself"
    if "unexpected EOF" in text or isinstance(error, EOFError):
        return (
            f"{path} is truncated ({path.stat().st_size} bytes, more are expected): copy or "
            "download it again"
        )
    if tarfile.is_tarfile(path):
        return (
            f"{path} is a tar archive or a checkpoint of torch 0.1: unpack it, or load it with an "
            "old torch and save its state dict again"
        )
    if start.startswith(_PICKLE_MAGIC):
        return f"{path} is damaged, or a pickle that torch.save did not write: {_SAVE_STATE_DICT}"
    return (
        f"{path} is not a file of torch.save (it starts with {start!r}): give a checkpoint, "
        "usually .pth or .pth.tar"
    )


def _blocked_explanation(path: Path, name: str) -> str:
    if name.startswith("numpy"):
        return (
            f"{path} holds NumPy values ({name}) and weights, which cannot be read without "
            "running pickled code: if you trust the file, load it once with "
            "torch.load(FILE, weights_only=False) and torch.save only its state dict"
        )
    return (
        f"{path} holds a pickled object ({name}), not a state dict, and reading it would run its "
        f"code: {_SAVE_STATE_DICT}"
    )


def write_torch_file(path: Path, content: object) -> None:
    """Write ``content`` with ``torch.save``, atomically and flushed to disk.

    Args:
        path: The file. Its folder must exist.
        content: Tensors, numbers and texts in dicts and lists.

    Raises:
        OutputError: If it cannot be written. The old content is then unchanged.
    """

    def write(stream: BinaryIO) -> None:
        try:
            torch.save(content, stream)
        except RuntimeError as error:
            raise _system_error(error) from error

    write_atomically(path, write, durable=True)


def _system_error(error: RuntimeError) -> OSError:
    """Return the OSError that torch's writer hides behind a RuntimeError."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            return cause
        cause = cause.__cause__ or cause.__context__
    return OSError(f"the disk may be full ({one_line(error)})")
