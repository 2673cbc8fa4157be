"""Find pickles that take any time to load, before they are loaded.

A tuple that has one tuple twice, which has another twice, and so on, is a few bytes in a pickle.
Its hash, which a dict needs if it is a key, visits it 2^n times (Python does not store hashes of
tuples before 3.14).
"""

from __future__ import annotations

import pickletools
from collections.abc import Sequence
from typing import IO, Any, BinaryIO

MOST_VISITS = 100_000
"""Visits of a hash. Networks have tuples of some sizes."""

_MOST_PICKLES = 8
"""A file of torch before 1.6 has five, and the values of the tensors after them."""

_MARK = object()
_TUPLES = frozenset(("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_TUPLE"))


def has_costly_tuple(file: BinaryIO | IO[bytes]) -> bool:
    """Return whether the hash of a tuple in a pickle visits over 100,000 items.

    Args:
        file: One or several pickles; nothing is loaded. A damaged pickle is checked up to the
            damage, where loading it ends too.
    """
    for _ in range(_MOST_PICKLES):
        try:
            if _costs_too_much(file):
                return True
        except Exception:  # the parser raises many for a damaged pickle
            return False
    return False


def _costs_too_much(file: BinaryIO | IO[bytes]) -> bool:
    """Follow the stack of one pickle, with the visits of each value."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for code, argument, _ in pickletools.genops(file):
        name = code.name
        if name == "MARK":
            stack.append(_MARK)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[_number(argument)] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[_number(argument)])
        else:
            taken = _taken(stack, code.stack_before)
            visits = 1 + sum(taken) if name in _TUPLES else 1
            if visits > MOST_VISITS:
                return True
            left = len(code.stack_after)
            # A list or another object that is filled costs one visit.
            stack += [visits] * left
    return False


def _number(argument: Any) -> int:
    return int(argument)


def _taken(stack: list[Any], before: Sequence[Any]) -> list[int]:
    """Remove the operands of an opcode from the stack, and return them."""
    count = len(before)
    if pickletools.markobject in before:
        at = len(stack) - 1
        while stack[at] is not _MARK:
            at -= 1
        taken = stack[at + 1 :]
        below = before.index(pickletools.markobject)
        taken = stack[at - below : at] + taken if below else taken
        del stack[at - below :]
        return taken
    taken = stack[len(stack) - count :] if count else []
    if len(taken) < count or _MARK in taken:
        raise ValueError("an opcode without its operands")
    del stack[len(stack) - count :]
    return taken
