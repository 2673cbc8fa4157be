"""The ``mpn inspect`` command."""

from __future__ import annotations


def inspect() -> None:
    """(being written)."""
    raise NotImplementedError
