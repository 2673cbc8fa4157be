"""The ``mpn eval`` command."""

from __future__ import annotations


def evaluate() -> None:
    """(being written)."""
    raise NotImplementedError
