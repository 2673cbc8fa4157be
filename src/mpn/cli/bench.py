"""The ``mpn bench`` command."""

from __future__ import annotations


def bench() -> None:
    """(being written)."""
    raise NotImplementedError
