"""Locate the folders of the user's cache."""

from __future__ import annotations

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
