from __future__ import annotations

import argparse
import io
import lzma
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mpn.errors import CheckpointError
from mpn.networks.checkpoint import read_torch_file
from mpn.networks.numpy_values import IgnoredNumpy

CONTENT = {"state_dict": {"weight": torch.arange(5000, dtype=torch.float32)}, "epoch": 3}


def _saved(content: object, *, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def _flipped(data: bytes) -> bytes:
    damaged = bytearray(data)
    damaged[len(damaged) // 2] ^= 0xFF  # inside the tensor's bytes
    return bytes(damaged)


def _zip_of_text() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("folder/readme.txt", "hello")
    return buffer.getvalue()


def _zeros(count: int) -> dict[str, torch.Tensor]:
    return {"w": torch.zeros(count)}


def _deflated(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as stored,
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for name in stored.namelist():
            archive.writestr(name, stored.read(name))
    return buffer.getvalue()


def _tar_of_text() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("readme.txt"), io.BytesIO())
    return buffer.getvalue()


def _torchscript() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "torch < 1.6"])
def test_undamaged_files_are_read(tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "net.pth.tar"
    path.write_bytes(_saved(CONTENT, legacy=legacy))
    content = read_torch_file(path)
    assert content["epoch"] == 3
    assert torch.equal(content["state_dict"]["weight"], CONTENT["state_dict"]["weight"])


UNREADABLE: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", r"is empty \(0 bytes\): copy or download it again"),
    "truncated": (lambda: _saved(CONTENT)[:-200], r"is truncated \(\d+ bytes"),
    "half": (lambda: _saved(CONTENT)[:9000], r"is truncated \(9000 bytes"),
    "truncated, legacy": (lambda: _saved(CONTENT, legacy=True)[:-9], r"is truncated \(\d+ bytes"),
    "flipped byte": (lambda: _flipped(_saved(CONTENT)), "is damaged .bad checksum of"),
    "text": (
        lambda: b"hello, this is text\n" * 9,
        r"not a file of torch.save \(it starts with b'hell",
    ),
    "noise": (lambda: bytes(range(7, 256)), "not a file of torch.save"),
    "plain pickle": (lambda: pickle.dumps([1, 2]), "a pickle that torch.save did not write"),
    "plain pickle 2": (lambda: pickle.dumps({"a": 1}, protocol=2), "torch.save did not write"),
    "other zip": (_zip_of_text, "an archive but no checkpoint"),
    "tar": (_tar_of_text, "is a tar archive"),
    "compressed tar": (lambda: lzma.compress(_tar_of_text()), r"it starts with b'\\xfd7zX"),
    "TorchScript": (_torchscript, "is a TorchScript program"),
    "module": (
        lambda: _saved(nn.Linear(2, 2)),
        r"pickled object \(torch.nn.modules.linear.Linear\)",
    ),
    "options": (lambda: _saved({"args": argparse.Namespace()}), r"\(argparse.Namespace\), not a"),
    "compressed": (lambda: _deflated(_saved(_zeros(1 << 16))), r"is compressed: \d+ bytes hold 2"),
    "sparse": (lambda: _saved({"w": torch.eye(3).to_sparse()}), r"'w' is not dense \(sparse_coo\)"),
    "in a list": (
        lambda: _saved({"s": [{"a": torch.eye(3)}, {"b": torch.eye(3).to_sparse_csr()}]}),
        r"'b' is not dense \(sparse_csr\)",
    ),
    "meta": (
        lambda: _saved({"w": torch.zeros(3, device="meta")}),
        r"'w' has no values \(device meta\)",
    ),
    "expanded": (
        lambda: _saved({"w": torch.zeros(1).expand(1 << 20, 1 << 20)}),
        r"'w' of shape \(1048576, 1048576\) repeats few stored values",
    ),
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "torch < 1.6"])
@pytest.mark.parametrize(
    "value",
    [np.float64(0.71), np.float32(0.5), np.int64(-7), np.uint8(200), np.bool_(True)],
    ids=str,
)
def test_numpy_scalars_are_numbers(tmp_path: Path, value: np.generic, legacy: bool) -> None:
    """Programs keep their best score, often the mean of an array."""
    path = tmp_path / "model_best.pth.tar"
    path.write_bytes(_saved({"best_pred": value, "w": torch.ones(2)}, legacy=legacy))
    content = read_torch_file(path)
    assert content["best_pred"] == value.item()
    assert type(content["best_pred"]) is type(value.item())
    path.write_bytes(path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    if legacy:  # NumPy 1 has the other name; the checksums of an archive would differ
        assert read_torch_file(path)["best_pred"] == value.item()


def test_other_numpy_values_are_ignored(tmp_path: Path) -> None:
    """Random states and histories are arrays; weights are tensors."""
    path = tmp_path / "weights.pth"
    values = {"rng": np.random.default_rng(0).random(3), "at": np.datetime64("2024-01-01"),
              "record": np.zeros(1, [("a", "f8"), ("b", "O")])}  # fmt: skip
    path.write_bytes(_saved({**values, "w": torch.ones(2)}))
    content = read_torch_file(path)
    assert all(isinstance(content[name], IgnoredNumpy) for name in values)
    assert torch.equal(content["w"], torch.ones(2))


class _Forged:
    """A scalar of a type with a pointer, which the state of the type hides."""

    def __reduce__(self) -> tuple[Any, ...]:
        kind = np.dtype([("a", "O")])
        reduced = kind.__reduce__()
        state = list(reduced[2])
        state[-1] = 0  # the flags: holds no objects
        return np.float64(0).__reduce__()[0], (_State(kind, tuple(state)), b"\1" * 8)


class _State:
    def __init__(self, kind: np.dtype[Any], state: tuple[Any, ...]) -> None:
        self.kind, self.state = kind, state

    def __reduce__(self) -> tuple[Any, ...]:
        return np.dtype, ("V8", False, True), self.state


def test_forged_type_of_a_numpy_scalar_reads_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"best": _Forged(), "w": torch.ones(2)}, path)
    assert isinstance(read_torch_file(path)["best"], IgnoredNumpy)


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("case", UNREADABLE)
def test_unusable_files_get_one_line_that_names_them(tmp_path: Path, case: str) -> None:
    make, message = UNREADABLE[case]
    path = tmp_path / "weights.pth"
    path.write_bytes(make())
    with pytest.raises(CheckpointError, match=message) as caught:
        read_torch_file(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)  # False runs the code of the file


def test_compressed_checkpoint_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bomb.pth"
    path.write_bytes(_deflated(_saved(_zeros(1 << 16))))
    assert torch.load(path, weights_only=True)["w"].numel() == 1 << 16  # control: torch unpacks it
    unpacked: list[object] = []
    monkeypatch.setattr(torch, "load", lambda *given, **options: unpacked.append(given))
    monkeypatch.setattr(zipfile.ZipFile, "testzip", unpacked.append)
    with pytest.raises(CheckpointError, match="is compressed"):
        read_torch_file(path)
    assert not unpacked


def test_slightly_compressed_checkpoint_is_read(tmp_path: Path) -> None:
    """Some tools pack archives again: weights hardly get smaller."""
    path = tmp_path / "packed.pth"
    path.write_bytes(_deflated(_saved(CONTENT)))
    assert read_torch_file(path)["epoch"] == 3


def test_container_that_holds_itself_is_read(tmp_path: Path) -> None:
    content: dict[str, object] = {"w": torch.zeros(2)}
    content["all"] = [content, content]
    path = tmp_path / "cycle.pth"
    path.write_bytes(_saved(content))
    assert torch.equal(read_torch_file(path)["w"], torch.zeros(2))


def test_damaged_file_is_not_decompressed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of 1 kB stated a dictionary of 4 GiB, which xz allocates."""
    data = bytearray(lzma.compress(_tar_of_text(), lzma.FORMAT_ALONE))
    data[1:5] = b"\xff" * 4  # size of the dictionary
    path = tmp_path / "net.pth"
    path.write_bytes(data)
    assert tarfile.is_tarfile(path)  # control: Python reads it as an archive

    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(lzma, "LZMADecompressor", fail)
    with pytest.raises(CheckpointError, match=r"not a file of torch\.save"):
        read_torch_file(path)


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    path = tmp_path / "weights.pth"
    torch.save({"state_dict": Harmful()}, path)
    with pytest.raises(CheckpointError, match="would run its code"):
        read_torch_file(path)
    assert not (tmp_path / "ran").exists()


def test_missing_file_and_folder_have_different_errors(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a folder, not a checkpoint"):
        read_torch_file(tmp_path)
    with pytest.raises(CheckpointError, match=r"there is no checkpoint at .*absent\.pth"):
        read_torch_file(tmp_path / "absent.pth")
    with pytest.raises(CheckpointError, match="NUL"):
        read_torch_file(Path("a\0b"))
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_torch_file(tmp_path / ("long" * 100))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(CheckpointError, match="not a plain file"):
        read_torch_file(pipe)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_file_without_permission(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(_saved(CONTENT))
    path.chmod(0)
    with pytest.raises(CheckpointError, match="cannot be read: Permission denied"):
        read_torch_file(path)
