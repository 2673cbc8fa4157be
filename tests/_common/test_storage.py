"""Copy from and to addresses: whole, bounded, no credentials in messages."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from mpn._common import storage
from mpn._common.storage import (
    exists,
    fetch,
    is_remote,
    joined_address,
    public_address,
    read_bytes,
    upload_folder,
    version_of,
)
from mpn.errors import InputError, MissingExtraError, OutputError


@pytest.fixture
def memory() -> Iterator[Any]:
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://bucket/a", True),
        ("file:///a", True),
        ("memory://a", True),
        ("clip.mp4", False),
        ("C:\\clips\\a.mp4", False),
        ("c:/clips/a.mp4", False),
        ("/a://b", False),
        ("", False),
    ],
)
def test_is_remote_is_true_for_a_scheme(text: str, expected: bool) -> None:
    assert is_remote(text) is expected


def test_public_address_has_no_credentials() -> None:
    assert public_address("https://me:pw@host/a/b.zip?X-Sig=s#f") == "https://host/a/b.zip"
    assert public_address("s3://bucket/a@b/c") == "s3://bucket/a@b/c"
    assert joined_address("s3://bucket/out/", "a", "b.png") == "s3://bucket/out/a/b.png"


def test_fetch_file_replaces_an_earlier_copy(memory: Any, tmp_path: Path) -> None:
    memory.pipe("/clips/a.mp4", b"new")
    (tmp_path / "a.mp4").write_bytes(b"old")
    assert exists("memory://clips/a.mp4")
    assert not exists("memory://clips/b.mp4")
    assert fetch("memory://clips/a.mp4", tmp_path) == tmp_path / "a.mp4"
    assert (tmp_path / "a.mp4").read_bytes() == b"new"
    assert read_bytes("memory://clips/a.mp4", 3) == b"new"
    assert os.listdir(tmp_path) == ["a.mp4"]


def test_fetch_folder_has_all_files_and_no_others(memory: Any, tmp_path: Path) -> None:
    frames = {f"/clips/bear/{name}": name.encode() for name in ("0.png", "1.png", "deep/2.png")}
    memory.pipe(frames)
    memory.pipe("/clips/bear2/0.png", b"of another folder")
    (tmp_path / "bear").mkdir()
    (tmp_path / "bear" / "stale.png").write_bytes(b"old")
    folder = fetch("memory://clips/bear/", tmp_path)
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == {"0.png", "1.png", "deep/2.png"}
    assert (folder / "deep" / "2.png").read_bytes() == b"deep/2.png"
    assert os.listdir(tmp_path) == ["bear"]


def test_fetch_missing_or_nameless_is_an_input_error(memory: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is nothing at memory://no/such"):
        fetch("memory://no/such", tmp_path)
    with pytest.raises(InputError, match="names no file or folder"):
        fetch("memory://", tmp_path)
    with pytest.raises(InputError, match="is no address"):
        fetch("simplecache::memory://a/b", tmp_path)


def test_fetch_too_many_bytes_leaves_nothing(
    memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.pipe({"/d/a": b"12345", "/d/b": b"12345"})
    for address in ("memory://d", "memory://d/a"):
        with pytest.raises(InputError, match="more than"):
            fetch(address, tmp_path, most_bytes=4)
        with monkeypatch.context() as patched:  # a server that gives a wrong size
            patched.setattr(storage, "_check_sizes", lambda *given: None)
            with pytest.raises(InputError, match="more bytes than allowed"):
                fetch(address, tmp_path, most_bytes=4)
    with pytest.raises(InputError, match="more than 4 bytes"):
        read_bytes("memory://d/a", 4)
    assert os.listdir(tmp_path) == []
    assert fetch("memory://d", tmp_path, most_bytes=10).is_dir()  # control


@pytest.mark.parametrize("name", ["../up", "a/../../up", "a\\b", "a//b"])
def test_fetch_name_that_leads_out_is_refused(memory: Any, tmp_path: Path, name: str) -> None:
    memory.store["/d/fine"] = memory.store[f"/d/{name}"] = _memory_file(memory)
    folder = tmp_path / "scratch"
    folder.mkdir()
    with pytest.raises(InputError, match="leads elsewhere"):
        fetch("memory://d", folder)
    assert [path.name for path in tmp_path.rglob("*")] == ["scratch"]


def _memory_file(memory: Any) -> Any:
    memory.pipe("/other/file", b"1")
    return memory.store["/other/file"]


def test_fetch_local_links_become_their_files(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    (tmp_path / "blob").write_bytes(b"blob")
    (source / "a").symlink_to("../blob")
    (source / "loop").symlink_to(".")
    copied = fetch(f"file://{source}", target)
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == {"a": b"blob"}
    assert not (copied / "a").is_symlink()
    os.mkfifo(source / "pipe")
    with pytest.raises(InputError, match="no plain file"):
        fetch(f"file://{source}", target)
    with pytest.raises(InputError, match="no plain file"):
        fetch(f"file://{source}/pipe", target)


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_upload_folder_writes_done_json_last(
    memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    address = "memory://out/bear" if scheme == "memory" else f"file://{tmp_path}/out/bear"
    folder = tmp_path / "run"
    (folder / "masks").mkdir(parents=True)
    for name in ("done.json", "a.json", "masks/0.png", ".mpn-lock"):
        (folder / name).write_text(name)
    order: list[str] = []
    upload = storage._upload

    def record(system: Any, source: Path, path: str) -> None:
        upload(system, source, path)
        order.append(source.name)

    monkeypatch.setattr(storage, "_upload", record)
    upload_folder(folder, address)
    assert order[-1] == "done.json"
    copied = fetch(address, tmp_path)
    found = {path.relative_to(copied).as_posix() for path in copied.rglob("*") if path.is_file()}
    assert found == {"done.json", "a.json", "masks/0.png"}

    def fail(system: Any, source: Path, path: str) -> None:
        if source.name == "0.png":
            raise OSError(errno.ENOSPC, "No space left on device")
        record(system, source, path)

    monkeypatch.setattr(storage, "_upload", fail)
    with pytest.raises(OutputError, match="No space left"):
        upload_folder(folder, address)
    assert not exists(joined_address(address, "done.json"))  # incomplete, and marked so
    assert exists(joined_address(address, "a.json"))


def test_error_of_a_storage_has_no_credentials(
    memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Any, path: str, **options: Any) -> None:
        raise ValueError(f"403 for https://key:secret@host{path}?sig=secret")

    monkeypatch.setattr(type(memory), "info", refuse)
    with pytest.raises(InputError, match=r"403 for https://host/\.\.\.@host/a") as caught:
        fetch("memory://me:secret@host/a?sig=secret", tmp_path)
    assert "secret" not in str(caught.value)


def test_storage_without_a_package_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="Protocol not known"):
        exists("nosuchscheme://a/b")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(MissingExtraError, match="pip install s3fs"):
        exists("s3://key:secret@bucket/a")
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(MissingExtraError, match=r"\[remote\]"):
        exists("s3://bucket/a")


@pytest.mark.parametrize("root", ["memory://clips", "file://"])
def test_version_of_changes_with_any_file(memory: Any, tmp_path: Path, root: str) -> None:
    root = root if root.startswith("memory") else f"file://{tmp_path}/clips"
    system, path = fsspec.core.url_to_fs(root)
    system.makedirs(f"{path}/bear", exist_ok=True)
    system.pipe({f"{path}/bear/0.png": b"0", f"{path}/bear/1.png": b"1"})
    first = version_of(f"{root}/bear"), version_of(f"{root}/bear/0.png")
    assert first == (version_of(f"{root}/bear/"), version_of(f"{root}/bear/0.png"))
    assert first[0] != first[1]
    system.pipe({f"{path}/bear/1.png": b"one"})
    assert version_of(f"{root}/bear") != first[0]
    assert version_of(f"{root}/bear/0.png") == first[1]
    with pytest.raises(InputError, match="there is nothing at"):
        version_of(f"{root}/cat")


def test_upload_removes_only_obsolete_files(memory: Any, tmp_path: Path) -> None:
    memory.pipe({"/out/masks/0.png": b"old", "/out/masks/9.png": b"old", "/out/notes.txt": b"own"})
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "0.png").write_bytes(b"new")
    upload_folder(tmp_path, "memory://out", is_obsolete=lambda name: name.endswith(".png"))
    assert memory.find("/out") == ["/out/masks/0.png", "/out/notes.txt"]
    assert memory.cat("/out/masks/0.png") == b"new"


def test_fetch_of_a_signed_address_has_a_name_without_query(
    memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path that fsspec has for HTTP is the whole address."""
    signed = "https://host/clips/a.mp4?sig=secret"
    memory.store["/a.mp4"] = _memory_file(memory)
    monkeypatch.setattr(storage, "_opened", lambda address: (_OneFile(memory), signed))
    assert fetch(signed, tmp_path) == tmp_path / "a.mp4"


class _OneFile:
    protocol = "https"

    def __init__(self, memory: Any) -> None:
        self._memory = memory

    def info(self, path: str) -> Any:
        return self._memory.info("/a.mp4")

    def open(self, path: str, mode: str) -> Any:
        return self._memory.open("/a.mp4", mode)
