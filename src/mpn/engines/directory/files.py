"""Resolve the files of an engine directory, and check their digests."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from mpn._common.files import sha256_of_file
from mpn._common.records import FieldError
from mpn._common.text import LONGEST_MESSAGE
from mpn.errors import ManifestError

MANIFEST_NAME = "manifest.json"

_SHA256 = re.compile(r"[0-9a-f]{64}")

_VIDEO_SUFFIXES = frozenset(
    {
        ".mp4",
        ".mov",
        ".mkv",
        ".avi",
        ".webm",
        ".m4v",
        ".mpg",
        ".mpeg",
        ".ts",
        ".wmv",
        ".flv",
        ".gif",
    }
)
CHECKPOINT_SUFFIXES = frozenset({".pth", ".pt", ".tar", ".ckpt", ".safetensors"})


class ManifestFieldError(ManifestError, FieldError):
    """A field of a record of the manifest has a value that cannot be."""


@dataclass(frozen=True)
class FileDigest:
    """A file and the digest of its content.

    Attributes:
        path: Relative to the engine directory, with ``/``; for checkpoints in the provenance, the
            file's name alone.
        sha256: 64 lower-case hexadecimal digits.
    """

    path: str
    sha256: str

    def __post_init__(self) -> None:
        if not self.path:
            raise ManifestFieldError("path", "is empty")
        if len(self.path) > LONGEST_MESSAGE:
            raise ManifestFieldError("path", f"has {len(self.path)} characters: export it again")
        if not _SHA256.fullmatch(self.sha256):
            raise ManifestFieldError(
                "sha256", f"must be 64 lower-case hexadecimal digits, got {self.sha256[:80]!r}"
            )


def check_engine_dir(directory: str | os.PathLike[str]) -> Path:
    """Check that ``directory`` can be an engine directory, and return it as a Path.

    Raises:
        ManifestError: If it does not exist, is a file (the message names a video, a checkpoint or
            a graph, since the folder was probably forgotten), or holds no manifest.
    """
    path = Path(directory)
    if "\0" in str(path):
        raise ManifestError("the engine directory's name contains a NUL character")
    try:
        if path.is_dir():
            if not (path / MANIFEST_NAME).exists():
                raise ManifestError(
                    f"{path} holds no {MANIFEST_NAME}, so it is no engine directory: "
                    "give the folder that mpn-export wrote"
                )
            return path
        if path.exists():
            raise ManifestError(_hint_for_file(path))
    except OSError as error:
        raise ManifestError(
            f"{path} cannot be used as engine directory: {error.strerror}"
        ) from error
    if path.suffix.lower() in _VIDEO_SUFFIXES:
        raise ManifestError(_hint_for_file(path))
    raise ManifestError(
        f"there is no engine directory at {path}: give the folder that mpn-export wrote, "
        "or leave the option out to use the installed weights"
    )


def _hint_for_file(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix in _VIDEO_SUFFIXES:
        return (
            f"{path} is a video, not an engine directory: give the folder first, "
            f"as in --engine-dir engines/ {path}, or leave --engine-dir out"
        )
    if suffix in CHECKPOINT_SUFFIXES:
        return (
            f"{path} is a checkpoint, not an engine directory: export it with "
            f"mpn-export {path} -o engines/ and give engines/"
        )
    if suffix == ".onnx" or path.name == MANIFEST_NAME:
        return f"{path} is a file of an engine directory: give its folder, {path.parent}"
    return f"{path} is a file, not an engine directory: give the folder that mpn-export wrote"


def resolve_inside(directory: Path, relative: str) -> Path:
    """Return the path of a file that must lie inside ``directory``.

    The file need not exist. A file may be a symbolic link to any place, as in the cache of a model
    hub: its content is compared with the manifest. A folder may not lead out of the directory.

    Args:
        directory: The engine directory.
        relative: Path from a manifest, with ``/``.

    Returns:
        ``directory / relative``, absolute.

    Raises:
        ManifestError: If ``relative`` is empty, absolute, has ``..``, a backslash or NUL in it, or
            leaves the directory through the symbolic link of a folder.
    """
    shown = f"path {relative[:80]!r}"
    if "\0" in relative or "\\" in relative:
        raise ManifestError(f"{shown} contains a {'NUL' if chr(0) in relative else 'backslash'}")
    windows = PureWindowsPath(relative)
    if PurePosixPath(relative).is_absolute() or windows.drive or windows.root:
        raise ManifestError(f"{shown} is absolute, it must be relative to the engine directory")
    if ".." in PurePosixPath(relative).parts:
        raise ManifestError(f"{shown} contains '..', it must stay inside the engine directory")
    try:
        root = directory.resolve()
        target = (root / relative).resolve()
        folder = target if os.path.isdir(target) else (root / relative).parent.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        # RuntimeError: a loop of symbolic links; ValueError: a name that is no Unicode text.
        raise ManifestError(f"{shown} cannot be resolved: {error}") from error
    if target == root:
        raise ManifestError(f"{shown} names the engine directory itself, not a file in it")
    if not folder.is_relative_to(root):
        raise ManifestError(
            f"{shown} leaves the engine directory through a linked folder: copy the directory with "
            "the files that its links lead to (cp -rL)"
        )
    # Unresolved: onnxruntime opens external data in the folder of the name that it was given.
    return root / relative


def check_present(directory: Path, relative: str) -> None:
    """Check that a file of an engine directory exists.

    Raises:
        ManifestError: If it is missing, no plain file, or outside the directory.
    """
    # os.path, not pathlib: for a name that is too long, pathlib raises instead of returning False.
    path = resolve_inside(directory, relative)
    if not os.path.exists(path):
        raise ManifestError(
            f"{relative} is missing from {directory}: copy the whole folder, or export it again"
        )
    if not os.path.isfile(path):  # a pipe would block for ever
        raise ManifestError(f"{relative} in {directory} is not a plain file: export it again")


def check_digest(directory: Path, file: FileDigest) -> None:
    """Check that a file of an engine directory is the one that was exported.

    Raises:
        ManifestError: If it is missing, no plain file, unreadable, or has another content.
    """
    path = resolve_inside(directory, file.path)
    check_present(directory, file.path)
    try:
        found = sha256_of_file(path)
    except OSError as error:
        raise ManifestError(
            f"{file.path} in {directory} cannot be read: {error.strerror}"
        ) from error
    if found != file.sha256:
        raise ManifestError(
            f"{file.path} in {directory} has changed since export (sha256 {found[:12]}..., the "
            f"manifest has {file.sha256[:12]}...): copy the folder again, or re-export it"
        )
