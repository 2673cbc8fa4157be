"""Allocate arrays with a guard page on one side to detect accesses outside."""

from __future__ import annotations

import ctypes
import mmap
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Guard = Literal["end", "start"]

ALIGNMENT = 16
"""Alignment of pointers that kernels may assume; a GPU's allocator gives 256."""
_CANARY = 0xA5
_PROT_NONE = 0

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class GuardedMemory:
    """Single allocation; an access outside its guarded side stops the kernel.

    Args:
        nbytes: Size of the allocation.
        guard: Side that borders on the guard page. Alignment can leave a few bytes between; these
            are filled and checked.
    """

    def __init__(self, nbytes: int, guard: Guard) -> None:
        page = mmap.PAGESIZE
        padded = -(-nbytes // ALIGNMENT) * ALIGNMENT
        body = -(-max(padded, 1) // page) * page
        self._map = mmap.mmap(-1, body + 2 * page)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        for guard_page in (base, base + page + body):
            if _libc.mprotect(guard_page, page, _PROT_NONE) != 0:
                raise OSError(ctypes.get_errno(), "mprotect")
        start = page + (body - padded if guard == "end" else 0)
        self._bytes = np.frombuffer(self._map, np.uint8, body, page)
        self._bytes[:] = _CANARY
        self._inside = slice(start - page, start - page + nbytes)
        self.address = base + start

    @property
    def bytes(self) -> npt.NDArray[np.uint8]:
        """(nbytes,) uint8, the allocation."""
        return self._bytes[self._inside]

    def is_intact(self) -> bool:
        """Return whether the bytes around the allocation are unchanged."""
        before = self._bytes[: self._inside.start]
        behind = self._bytes[self._inside.stop :]
        return bool((before == _CANARY).all() and (behind == _CANARY).all())


def array_in(
    memory: GuardedMemory, shape: tuple[int, ...], dtype: npt.DTypeLike
) -> npt.NDArray[Any]:
    """Return the allocation as an array."""
    return memory.bytes.view(dtype).reshape(shape)
