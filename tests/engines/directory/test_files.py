from __future__ import annotations

import os
from pathlib import Path

import pytest

from mpn.engines.directory.files import FileDigest, check_digest, check_engine_dir, resolve_inside
from mpn.errors import ManifestError
from tests.builders.engine_dirs import make_engine_dir


@pytest.mark.parametrize("relative", ["a.onnx", "sub/a.onnx", "./a.onnx", "a..b", "ä ö.onnx"])
def test_paths_inside_are_kept(tmp_path: Path, relative: str) -> None:
    assert resolve_inside(tmp_path, relative) == tmp_path.resolve() / relative


@pytest.mark.parametrize(
    ("relative", "says"),
    [
        ("/etc/passwd", "absolute"),
        ("//host/share", "absolute"),
        ("C:/a.onnx", "absolute"),
        ("C:a.onnx", "absolute"),
        ("../a.onnx", r"'\.\.'"),
        ("sub/../../a.onnx", r"'\.\.'"),
        ("sub/..", r"'\.\.'"),
        ("..\\a.onnx", "backslash"),
        ("a\0b", "NUL"),
        ("", "itself"),
        (".", "itself"),
        ("\ud800", "cannot be resolved"),
    ],
)
def test_paths_outside_are_refused(tmp_path: Path, relative: str, says: str) -> None:
    with pytest.raises(ManifestError, match=says):
        resolve_inside(tmp_path, relative)


def test_files_may_be_links_but_folders_may_not_leave(tmp_path: Path) -> None:
    inside = tmp_path / "engines"
    inside.mkdir()
    (tmp_path / "secret").write_text("secret")
    (inside / "real").write_text("real")
    (inside / "stays").symlink_to("real")
    (inside / "file").symlink_to("../secret")
    (inside / "folder").symlink_to(tmp_path)
    (inside / "loop").symlink_to("loop")
    assert resolve_inside(inside, "stays").read_text() == "real"
    assert resolve_inside(inside, "file").read_text() == "secret"
    for relative in ("folder", "folder/secret"):
        with pytest.raises(ManifestError, match=r"through a linked folder.*cp -rL"):
            resolve_inside(inside, relative)


def test_directory_reached_through_a_link_is_fine(tmp_path: Path) -> None:
    directory = make_engine_dir(tmp_path / "engines")
    (tmp_path / "current").symlink_to(directory)
    assert resolve_inside(tmp_path / "current", "propagation.onnx").is_file()


@pytest.mark.parametrize("digest", ["", "0" * 63, "0" * 65, "A" * 64, "g" * 64])
def test_digest_must_be_sha256(digest: str) -> None:
    with pytest.raises(ManifestError, match="'sha256' must be 64"):
        FileDigest("a.onnx", digest)


@pytest.mark.parametrize("name", ["a.onnx", "a" * 900])
def test_missing_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ManifestError, match=f"{name} is missing from"):
        check_digest(tmp_path, FileDigest(name, "0" * 64))


def test_pipe_is_refused_and_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.onnx")
    with pytest.raises(ManifestError, match="not a plain file"):
        check_digest(tmp_path, FileDigest("a.onnx", "0" * 64))


@pytest.mark.parametrize(
    ("name", "is_file", "says"),
    [
        ("absent", False, "there is no engine directory at"),
        ("clip.mp4", True, "is a video, not an engine directory: give the folder first"),
        ("clip.MOV", False, "is a video"),
        ("lite.pth", True, r"is a checkpoint.*mpn-export .*lite\.pth"),
        ("flow.onnx", True, "is a file of an engine directory: give its folder"),
        ("manifest.json", True, "is a file of an engine directory: give its folder"),
        ("notes", True, "is a file, not an engine directory"),
        ("a\0b", False, "NUL"),
        ("a" * 300, False, "there is no engine|cannot be used"),
    ],
)
def test_check_engine_dir_other_folder_is_refused(
    tmp_path: Path, name: str, is_file: bool, says: str
) -> None:
    if is_file:
        (tmp_path / name).write_text("content")
    with pytest.raises(ManifestError, match=says) as caught:
        check_engine_dir(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_folder_without_manifest_is_no_engine_directory(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"holds no manifest\.json"):
        check_engine_dir(tmp_path)
    make_engine_dir(tmp_path)
    assert check_engine_dir(str(tmp_path)) == tmp_path
