"""Fine-tuned weights kept on disk, so that a second run on the same frame costs nothing."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpn._common.files import output_error
from mpn.engines.weights_file import load_weights, save_weights
from mpn.errors import MpnError, OutputError
from mpn.types import Float32Array, UInt8Array

CACHE_FORMAT = 1
"""Part of every key: raised when the same options would give other weights."""

MAX_CACHE_BYTES = 2 << 30
"""2 GiB: about two hundred objects of the lite networks."""

_SUFFIX = ".safetensors"


def cache_key(facts: Mapping[str, Any], *, rgb: UInt8Array, labels: UInt8Array) -> str:
    """A name for what fine-tuning will give.

    Args:
        facts: Everything else it depends on, as JSON types.
        rgb: (h, w, 3) uint8 RGB, the given frame.
        labels: (h, w) uint8, ids of all objects.

    Returns:
        64 hexadecimal digits: the SHA-256 of all of it.
    """
    digest = hashlib.sha256()
    head = {"format": CACHE_FORMAT, "facts": facts, "size_hw": list(labels.shape)}
    digest.update(json.dumps(head, sort_keys=True).encode())
    digest.update(rgb.tobytes())
    digest.update(labels.tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class CacheAnswer:
    """What a cache knows under a key.

    Attributes:
        weights: The tensors by name; None if there is no usable entry.
        note: Why an entry that is there is not used; empty otherwise.
    """

    weights: Mapping[str, Float32Array] | None
    note: str = ""


class WeightCache:
    """A folder of fine-tuned weights; the entries used longest ago go when it is full.

    Several processes may share a folder: entries are written beside their name and renamed.

    Args:
        folder: Made when something is first kept.
        max_bytes: Largest total size; an entry larger than that is not kept for long.
    """

    def __init__(self, folder: Path, *, max_bytes: int = MAX_CACHE_BYTES) -> None:
        self._folder = folder
        self._max_bytes = max_bytes

    def load(self, key: str) -> CacheAnswer:
        """The weights under a key.

        A damaged entry is no error: it is told in the note, and the next :meth:`save` replaces it.
        """
        path = self._path(key)
        if not path.is_file():
            return CacheAnswer(None)
        try:
            weights = load_weights(path)
        except (MpnError, OSError) as error:
            return CacheAnswer(None, f"the kept weights were damaged and are made anew ({error})")
        try:
            os.utime(path)  # used now: the last to go
        except OSError:
            return CacheAnswer(weights, "the kept weights cannot be marked as used (read-only)")
        return CacheAnswer(weights)

    def save(self, key: str, weights: Mapping[str, Float32Array]) -> None:
        """Keep weights, and let the oldest entries go.

        Raises:
            OutputError: If they cannot be written; nothing half-written is left.
        """
        path = self._path(key)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise output_error(self._folder, error) from error
        save_weights(path, weights)
        self._trim(path)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}{_SUFFIX}"

    def _trim(self, newest: Path) -> None:
        entries = []
        for path in self._folder.glob(f"*{_SUFFIX}"):
            try:
                stat = path.stat()
            except FileNotFoundError:  # another process let it go
                continue
            entries.append((path != newest, stat.st_mtime_ns, stat.st_size, path))
        total = sum(size for _, _, size, _ in entries)
        for is_other, _, size, path in sorted(entries):
            if not is_other or total <= self._max_bytes:
                continue
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise OutputError(
                    f"the cache {self._folder} is full and {path.name} cannot be deleted: "
                    f"{error.strerror or error}"
                ) from error
            total -= size
