"""The ``mpn demo`` command."""

from __future__ import annotations


def demo() -> None:
    """(being written)."""
    raise NotImplementedError
