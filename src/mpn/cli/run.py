"""The ``mpn run`` command."""

from __future__ import annotations


def run() -> None:
    """(being written)."""
    raise NotImplementedError
