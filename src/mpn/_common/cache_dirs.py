"""Locate the folders of the user's cache, and refuse what another user put there.

A plan, a cubin or fine-tuned weights from a cache decide what a run computes. In a folder that
several users can write, only files of this user are read.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path


def user_cache_dir(name: str) -> Path | None:
    """Return a folder of this package in the user's cache; it need not exist.

    Args:
        name: Its content in one word.

    Returns:
        On Linux ``$XDG_CACHE_HOME/mpn-runtime/<name>``, by default in ``~/.cache``; None if the
        user has no home.
    """
    import platformdirs

    try:
        cache = platformdirs.user_cache_path("mpn-runtime", appauthor=False)
    except RuntimeError:  # no home
        return None
    # Without a home, platformdirs before 4.14 returns a tilde: a folder of that name.
    return None if cache.parts[0] == "~" else cache / name


def make_private_folder(folder: Path) -> None:
    """Create a folder that only this user can open; an existing one is not changed.

    Raises:
        OSError: If it cannot be created.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


def distrust_reason(path: Path) -> str | None:
    """Return why a cached file may be the work of another user; None if it is not.

    Args:
        path: An existing file.
    """
    if os.name == "nt":  # the user's cache has an access list there
        return None
    try:
        file = path.lstat()
    except OSError as error:
        return f"it cannot be read: {error.strerror or error}"
    if not stat.S_ISREG(file.st_mode):
        return "it is no plain file"
    if file.st_uid != os.geteuid():
        return "it belongs to another user"
    if file.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and _is_open_to_others(path.parent):
        return "other users may write it"
    return None


def _is_open_to_others(folder: Path) -> bool:
    """Return whether other users can reach files in a folder."""
    try:
        return bool(folder.stat().st_mode & (stat.S_IXGRP | stat.S_IXOTH))
    except OSError:
        return True
