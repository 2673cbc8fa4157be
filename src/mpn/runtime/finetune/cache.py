"""Store fine-tuned weights on disk for later runs on the same frame."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpn._common.cache_dirs import distrust_reason, make_private_folder
from mpn._common.files import output_error
from mpn.engines.weights import read_weights_file, save_weights
from mpn.errors import EngineError, MpnError, OutputError
from mpn.types import Float32Array, UInt8Array

CACHE_FORMAT = 1
"""Part of each key. Raise it when the same options give other weights."""

MAX_CACHE_BYTES = 2 << 30
"""2 GiB: about 200 objects of the lite networks."""

_SUFFIX = ".safetensors"
_OWN_NAME = re.compile(r"[0-9a-f]{64}" + re.escape(_SUFFIX))
_KEY = "key"
"""Of the metadata: who can rename files in the folder cannot exchange them. Not in version 0.2."""


def cache_key(facts: Mapping[str, Any], *, rgb: UInt8Array, labels: UInt8Array) -> str:
    """Return the key of the weights that fine-tuning computes from these inputs.

    Args:
        facts: All other inputs, as JSON types.
        rgb: (h, w, 3) uint8 RGB, the first frame.
        labels: (h, w) uint8, ids of all objects.

    Returns:
        64 hexadecimal digits: the SHA-256 of all inputs.
    """
    digest = hashlib.sha256()
    head = {"format": CACHE_FORMAT, "facts": facts, "size_hw": list(labels.shape)}
    digest.update(json.dumps(head, sort_keys=True).encode())
    digest.update(rgb.tobytes())
    digest.update(labels.tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class CacheLookup:
    """The result of looking up a key.

    Attributes:
        weights: The tensors by name; None if there is no usable entry.
        note: The reason if an existing entry is not used; otherwise empty.
    """

    weights: Mapping[str, Float32Array] | None
    note: str = ""


class WeightCache:
    """A folder of fine-tuned weights with a size limit.

    A full cache deletes the least recently used entries. Several processes may share a folder:
    entries are written under a temporary name and then renamed.

    Args:
        folder: Created by the first :meth:`save`.
        max_bytes: Largest total size. A larger entry is deleted by the next :meth:`save`.
    """

    def __init__(self, folder: Path, *, max_bytes: int = MAX_CACHE_BYTES) -> None:
        self._folder = folder
        self._max_bytes = max_bytes

    def load(self, key: str) -> CacheLookup:
        """Load the weights of a key.

        Never raises for a damaged entry, or one that another user wrote: the note reports it, and
        the next :meth:`save` replaces it.
        """
        path = self._path(key)
        if not path.is_file():
            return CacheLookup(None)
        if reason := distrust_reason(path):
            return CacheLookup(None, f"the stored weights are not used: {reason}")
        try:
            weights, metadata = read_weights_file(path)
            if metadata.get(_KEY, key) != key:
                raise EngineError(f"{path} was renamed: it holds the weights of another key")
        except (MpnError, OSError) as error:
            note = f"the stored weights are damaged and are computed again ({error})"
            return CacheLookup(None, note)
        try:
            os.utime(path)  # most recently used: deleted last
        except OSError:
            return CacheLookup(weights, "the stored weights cannot be marked as used (read-only)")
        return CacheLookup(weights)

    def save(self, key: str, weights: Mapping[str, Float32Array]) -> None:
        """Store weights and delete the oldest entries if the cache is full.

        Raises:
            OutputError: If the weights cannot be written. No partial file is left.
        """
        path = self._path(key)
        try:
            make_private_folder(self._folder)
        except OSError as error:
            raise output_error(self._folder, error) from error
        save_weights(path, weights, {_KEY: key})
        self._trim(path)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}{_SUFFIX}"

    def _trim(self, newest: Path) -> None:
        entries = []
        for path in self._folder.glob(f"*{_SUFFIX}"):
            if not _OWN_NAME.fullmatch(path.name):  # a file of the user
                continue
            try:
                stat = path.lstat()
            except FileNotFoundError:  # another process deleted it
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
