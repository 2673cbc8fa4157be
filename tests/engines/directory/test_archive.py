"""Zip files of engine directories: complete, reproducible, hostile."""

from __future__ import annotations

import json
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from mpn._common.files import sha256_of_file
from mpn.engines.directory import archive
from mpn.engines.directory.archive import save_zip, unpack_zip
from mpn.errors import ManifestError
from tests.builders.engine_dirs import make_engine_dir, parity_document

Files = dict[str, bytes]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = make_engine_dir(tmp_path / "engines", with_osvos=True, external_data=True)
    (path / "parity.json").write_text(json.dumps(parity_document()))
    (path / "plans").mkdir()
    (path / "plans" / "a.plan").write_bytes(b"a program")
    return path


def files_of(directory: Path) -> Files:
    found = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in found}


def unpacked(path: Path) -> Path:
    folder = path.parent / "unpacked"
    folder.mkdir()
    unpack_zip(path, folder, path.name)
    return folder


def write_zip(path: Path, files: Files, top: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name, data in files.items():
            target.writestr(top + name, data)
    return path


def test_saved_zip_unpacks_to_all_but_the_plans(directory: Path, tmp_path: Path) -> None:
    save_zip(directory, tmp_path / "a.zip")
    expected = {k: v for k, v in files_of(directory).items() if not k.startswith("plans/")}
    assert files_of(unpacked(tmp_path / "a.zip")) == expected
    assert "propagation.onnx.data" in expected


def test_saved_zip_has_the_same_bytes_each_time(directory: Path, tmp_path: Path) -> None:
    save_zip(directory, tmp_path / "a.zip")
    for path in directory.iterdir():
        path.touch()
    save_zip(directory, tmp_path / "b.zip")
    assert sha256_of_file(tmp_path / "a.zip") == sha256_of_file(tmp_path / "b.zip")
    (directory / "osvos.onnx").write_bytes(b"damaged")
    with pytest.raises(ManifestError, match="has changed since export"):
        save_zip(directory, tmp_path / "c.zip")
    assert not (tmp_path / "c.zip").exists()


@pytest.mark.parametrize("top", ["", "engines/"])
def test_zip_of_the_folder_itself_unpacks(directory: Path, tmp_path: Path, top: str) -> None:
    """As ``zip -r engines.zip engines/`` writes it, and with the files of macOS."""
    files = {**files_of(directory), "readme.txt": b"hello"}
    path = write_zip(tmp_path / "a.zip", files, top)
    with zipfile.ZipFile(path, "a") as target:
        target.writestr("__MACOSX/engines/._manifest.json", b"")
        target.writestr("engines/notes/", b"")
    folder = unpacked(path)
    assert "readme.txt" not in files_of(folder)
    assert files_of(folder)["osvos.onnx"] == files["osvos.onnx"]


def _with_name(name: str) -> Callable[[Path, Files], None]:
    def make(path: Path, files: Files) -> None:
        write_zip(path, {**files, name: b"outside"})

    return make


def _link(path: Path, files: Files) -> None:
    rest = {name: data for name, data in files.items() if name != "osvos.onnx"}
    write_zip(path, rest)
    with zipfile.ZipFile(path, "a") as target:
        entry = zipfile.ZipInfo("osvos.onnx")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        target.writestr(entry, b"/etc/passwd")


def _bomb(path: Path, files: Files) -> None:
    write_zip(path, {**files, "osvos.onnx": bytes(4 * archive._FREE_BYTES)})


def _wrong_size(path: Path, files: Files) -> None:
    """State a small size in the central directory for a bomb."""
    big = bytes(archive._FREE_BYTES)
    write_zip(path, {**files, "osvos.onnx": big})
    size = len(big).to_bytes(4, "little")
    path.write_bytes(path.read_bytes().replace(size, (1000).to_bytes(4, "little")))


def _twice(path: Path, files: Files) -> None:
    write_zip(path, files)
    with zipfile.ZipFile(path, "a") as target, pytest.warns(UserWarning, match="Duplicate"):
        target.writestr("osvos.onnx", b"another")


def _encrypted(path: Path, files: Files) -> None:
    write_zip(path, files)
    data = path.read_bytes()
    at = data.rindex(b"PK\x01\x02", 0, data.rindex(b"osvos.onnx"))
    path.write_bytes(data[: at + 8] + b"\1" + data[at + 9 :])


def _truncated(path: Path, files: Files) -> None:
    write_zip(path, files)
    path.write_bytes(path.read_bytes()[:-500])


def _flipped(path: Path, files: Files) -> None:
    write_zip(path, files)
    data = bytearray(path.read_bytes())
    at = data.index(b"osvos.onnx") + 60
    data[at] ^= 0xFF
    path.write_bytes(data)


def _path_in_manifest(path: Path, files: Files) -> None:
    text = files["manifest.json"].replace(b'"osvos.onnx"', b'"../osvos.onnx"')
    write_zip(path, {**files, "manifest.json": text})


def _changed_graph(path: Path, files: Files) -> None:
    write_zip(path, {**files, "osvos.onnx": files["osvos.onnx"] + b"\0"})


def _no_graph(path: Path, files: Files) -> None:
    write_zip(path, {name: data for name, data in files.items() if name != "osvos.onnx"})


def _many(path: Path, files: Files) -> None:
    write_zip(path, {**files, **{f"{index}.txt": b"" for index in range(archive._MOST_ENTRIES)}})


def _two_tops(path: Path, files: Files) -> None:
    write_zip(path, {"a/manifest.json": b"{}", "b/manifest.json": b"{}"})


def _deep(path: Path, files: Files) -> None:
    write_zip(path, files, "a/b/")


def _manifest_is_a_folder(path: Path, files: Files) -> None:
    write_zip(path, {"manifest.json/": b"", "manifest.json/a": b""})


def _text(path: Path, files: Files) -> None:
    path.write_text("version https://git-lfs")


HOSTILE: dict[str, tuple[Callable[[Path, Files], None], str]] = {
    "escape": (_with_name("../outside"), "leads out of it"),
    "absolute": (_with_name("/tmp/outside"), "leads out of it"),
    "inner escape": (_with_name("a/../../outside"), "leads out of it"),
    "backslash": (_with_name("..\\outside"), "leads out of it"),
    "drive": (_with_name("C:outside"), "leads out of it"),
    "link": (_link, "is a link"),
    "bomb": (_bomb, "more than 4 times its size"),
    "wrong size": (_wrong_size, "no zip file that can be read|has changed"),
    "twice": (_twice, "two files of one name"),
    "encrypted": (_encrypted, "is encrypted"),
    "truncated": (_truncated, "no zip file that can be read"),
    "flipped": (_flipped, "no zip file that can be read"),
    "path in manifest": (_path_in_manifest, "contains '..'"),
    "changed graph": (_changed_graph, "osvos.onnx in it has changed"),
    "no graph": (_no_graph, "osvos.onnx is missing"),
    "many": (_many, "files, more than"),
    "two tops": (_two_tops, "2 engine directories"),
    "deep": (_deep, "has no manifest.json at its top"),
    "manifest is a folder": (_manifest_is_a_folder, "has no manifest.json"),
    "text": (_text, "no zip file that can be read"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_zip_is_one_line_and_writes_inside(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(archive, "_FREE_BYTES", 1 << 20)
    monkeypatch.setattr(archive, "_MOST_ENTRIES", 50)
    make, message = HOSTILE[name]
    path = tmp_path / "a.zip"
    make(path, files_of(directory))
    before = {found for found in tmp_path.rglob("*") if "unpacked" not in found.parts}
    with pytest.raises(ManifestError, match=message) as caught:
        unpacked(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("a.zip: ")
    after = {found for found in tmp_path.rglob("*") if "unpacked" not in found.parts}
    assert after == before
    folder = tmp_path / "unpacked"
    assert not any(found.is_symlink() for found in folder.rglob("*"))
    assert sum(found.stat().st_size for found in folder.rglob("*")) < 2 << 20
    folder.rename(tmp_path / "earlier")
    write_zip(path, files_of(directory))
    unpacked(path)  # control: the same files, honest
