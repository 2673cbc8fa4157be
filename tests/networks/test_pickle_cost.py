"""Pickles whose loading takes any time."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from mpn.errors import CheckpointError
from mpn.networks.checkpoint import load_checkpoint
from mpn.networks.pickle_cost import MOST_VISITS, has_costly_tuple


def doubled(levels: int, *, in_mark: bool = False) -> bytes:
    """Return a pickle of a dict whose key is tuples of two equal tuples."""
    out = b"\x80\x02})q\x00"
    for level in range(levels):
        get = b"h" + bytes([level])
        # Either the tuple before and itself again, or both from the memo after a mark.
        out += (b"(" + 2 * get + b"t" if in_mark else get + b"\x86") + b"q" + bytes([level + 1])
    return out + (b"" if in_mark else b"K\x01s") + b"."


@pytest.mark.parametrize("in_mark", [False, True])
def test_doubled_tuples_are_costly(in_mark: bool) -> None:
    assert not has_costly_tuple(io.BytesIO(doubled(10, in_mark=in_mark)))  # control
    assert has_costly_tuple(io.BytesIO(doubled(60, in_mark=in_mark)))


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    "value",
    [
        tuple(range(MOST_VISITS // 2)),
        {"a": [(1, (2, 3))] * 10_000, ("b", 2): {"c": ()}, None: {4, 5}},
    ],
)
def test_usual_containers_are_not_costly(value: Any, protocol: int) -> None:
    assert not has_costly_tuple(io.BytesIO(pickle.dumps(value, protocol)))


@pytest.mark.parametrize("legacy", [False, True])
def test_checkpoint_that_would_load_for_ever_is_refused(tmp_path: Path, legacy: bool) -> None:
    """125 bytes of it took 13 s, and each 5 bytes more twice the time."""
    file, path = io.BytesIO(), tmp_path / "a.pth"
    torch.save({"w": torch.ones(2)}, file, _use_new_zipfile_serialization=not legacy)
    file.seek(0)
    if legacy:
        for _ in range(3):  # before the content
            pickle.load(file)
        path.write_bytes(file.getvalue()[: file.tell()] + doubled(60) + pickle.dumps([], 2))
    else:
        with zipfile.ZipFile(file) as old, zipfile.ZipFile(path, "w") as new:
            for name in old.namelist():
                is_content = name.endswith("data.pkl")
                new.writestr(name, doubled(60) if is_content else old.read(name))
    with pytest.raises(CheckpointError, match="has tuples in tuples that take any time"):
        load_checkpoint(path)
