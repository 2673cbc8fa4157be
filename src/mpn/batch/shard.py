"""Split a batch into shards that are disjoint and complete."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from mpn.batch.manifest import Unit
from mpn.errors import InputError

_TEXT = re.compile(r"(\d+)/(\d+)")
_HASH_BYTES = 8


@dataclass(frozen=True)
class Shard:
    """One of ``count`` parts of a batch.

    Attributes:
        number: From 1.
        count: Number of shards.

    Raises:
        InputError: If ``number`` is not in 1..``count``.
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise InputError(f"--shard must be i/n with i from 1 to n, such as 1/4, got '{self}'")

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @classmethod
    def from_text(cls, text: str) -> Shard:
        """Convert ``i/n``.

        Raises:
            InputError: If it is no shard.
        """
        match = _TEXT.fullmatch(text.strip())
        if match is None:
            raise InputError(f"--shard must be i/n with i from 1 to n, such as 1/4, got '{text}'")
        return cls(int(match[1]), int(match[2]))

    def has(self, name: str) -> bool:
        """Return whether a unit of this name is in the shard.

        SHA-256 of the name decides: the result is the same on each machine, and does not depend
        on the other names.
        """
        digest = hashlib.sha256(name.encode(errors="surrogateescape")).digest()
        return int.from_bytes(digest[:_HASH_BYTES], "big") % self.count == self.number - 1

    def units_of(self, units: Iterable[Unit]) -> list[Unit]:
        """Return the units of this shard, in order."""
        return [unit for unit in units if self.has(unit.name)]
