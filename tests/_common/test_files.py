"""Atomic writes, temporary files and digests."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest

from mpn._common.files import (
    create_temporary,
    flush_files,
    is_nonempty_file,
    journal_path,
    open_journal,
    publish,
    remove_temporaries,
    replacing,
    save_json,
    sha256_of_file,
    write_bytes_atomically,
    write_text_atomically,
)
from mpn.errors import OutputError

SEVERAL_READS_BYTES = 3 << 20


class FlushedPaths:
    """Record what ``os.fsync`` flushes, by (device, inode)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._seen: set[tuple[int, int]] = set()
        monkeypatch.setattr(os, "fsync", self._flush)

    def _flush(self, descriptor: int) -> None:
        stat = os.fstat(descriptor)
        self._seen.add((stat.st_dev, stat.st_ino))

    def __contains__(self, path: Path) -> bool:
        stat = path.stat()
        return (stat.st_dev, stat.st_ino) in self._seen


@pytest.fixture
def flushed(monkeypatch: pytest.MonkeyPatch) -> FlushedPaths:
    return FlushedPaths(monkeypatch)


def test_atomic_write_replaces_and_honours_the_umask(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("old")
    mode_of_open = file.stat().st_mode
    write_text_atomically(file, "näw\n")
    assert file.read_bytes() == "näw\n".encode()
    assert file.stat().st_mode == mode_of_open
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("durable", [False, True])
def test_durable_write_flushes_file_and_folder(
    tmp_path: Path, flushed: FlushedPaths, durable: bool
) -> None:
    file = tmp_path / "file"
    write_bytes_atomically(file, b"new", durable=durable)
    assert ((file in flushed), (tmp_path in flushed)) == (durable, durable)


def test_durable_publish_flushes_every_file_of_a_folder(
    tmp_path: Path, flushed: FlushedPaths
) -> None:
    staged, target = tmp_path / "staged", tmp_path / "target"
    (staged / "inner").mkdir(parents=True)
    (staged / "inner" / "file").write_text("content")
    publish(staged, target, durable=True)
    paths = (tmp_path, target, target / "inner", target / "inner" / "file")
    assert all(path in flushed for path in paths)


def test_write_when_fsync_fails_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("old")

    def disk_full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OutputError, match=r"^cannot write .*file: No space left on device$"):
        write_text_atomically(file, "new", durable=True)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_folder_without_fsync_support_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders: list[int] = []

    def files_only(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            folders.append(descriptor)
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", files_only)
    write_text_atomically(tmp_path / "file", "new", durable=True)
    assert (tmp_path / "file").read_text() == "new"
    assert len(folders) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("a bug")])
def test_replacing_after_an_exception_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def fail() -> None:
        with replacing(tmp_path / "file") as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_temporary_files_of_two_writers_differ(tmp_path: Path) -> None:
    file = tmp_path / "file"
    with replacing(file) as first, replacing(file) as second:
        first.write_text("first")
        second.write_text("second")
        assert first.parent == second.parent == tmp_path
    assert file.read_text() == "first"  # the outer block ends last


def test_temporary_file_that_exists_is_not_reused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda count: "0" * 2 * count)
    create_temporary(tmp_path / "file").write_text("of another process")
    with pytest.raises(OutputError, match="File exists"):
        write_text_atomically(tmp_path / "file", "new")


def test_remove_temporaries_spares_other_files(tmp_path: Path) -> None:
    file, other = tmp_path / "a[1]", tmp_path / "a1"
    create_temporary(file)
    journal_path(file).touch()
    kept = {create_temporary(other), journal_path(other)}
    journal_path(other).touch()
    remove_temporaries(file)
    assert set(tmp_path.iterdir()) == kept


def test_write_into_a_missing_folder_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot write .*absent.*: No such file"):
        save_json(tmp_path / "absent" / "file.json", {})


def test_sha256_of_a_file_longer_than_one_read(tmp_path: Path) -> None:
    content = bytes(range(256)) * (SEVERAL_READS_BYTES // 256) + b"end"
    (tmp_path / "file").write_bytes(content)
    assert sha256_of_file(tmp_path / "file") == hashlib.sha256(content).hexdigest()
    (tmp_path / "file").write_bytes(content[:-1])
    assert sha256_of_file(tmp_path / "file") != hashlib.sha256(content).hexdigest()


# --- journals, names and what a power failure leaves -------------------------------------------


def test_journal_replaces_a_link_and_keeps_its_file(tmp_path: Path) -> None:
    theirs, path = tmp_path / "theirs", tmp_path / "tracks.jsonl"
    theirs.write_text("theirs")
    journal_path(path).symlink_to(theirs)
    with open_journal(path, b"first\n") as journal:
        journal.write(b"second\n")
    assert theirs.read_text() == "theirs"
    assert not journal_path(path).is_symlink()
    assert journal_path(path).read_bytes() == b"first\nsecond\n"
    assert set(tmp_path.iterdir()) == {theirs, journal_path(path)}


def test_journal_is_kept_until_the_new_one_has_its_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tracks.jsonl"
    journal_path(path).write_text("old")

    def killed(source: Path, target: Path) -> None:
        assert Path(source).read_bytes() == b"new"
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        open_journal(path, b"new")
    assert journal_path(path).read_text() == "old"
    assert list(tmp_path.iterdir()) == [journal_path(path)]


@pytest.mark.parametrize("name", ["n" * 255, "é" * 127, os.fsdecode(b"caf\xe9")])
def test_any_name_that_the_file_system_takes_is_written(tmp_path: Path, name: str) -> None:
    write_text_atomically(tmp_path / name, "content")
    left = create_temporary(tmp_path / name)
    remove_temporaries(tmp_path / name, with_journal=False)
    assert not left.exists()
    assert [path.read_text() for path in tmp_path.iterdir()] == ["content"]


def test_json_of_a_name_that_is_not_utf8_is_read_back(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    save_json(tmp_path / "file", {"name": name, "other": "é"})
    assert json.loads((tmp_path / "file").read_text(encoding="utf-8")) == {
        "name": name,
        "other": "é",
    }


def test_file_of_0_bytes_counts_as_absent(tmp_path: Path) -> None:
    assert not is_nonempty_file(tmp_path / "absent")
    (tmp_path / "file").touch()
    assert not is_nonempty_file(tmp_path / "file")
    (tmp_path / "file").write_text("x")
    assert is_nonempty_file(tmp_path / "file")
    assert not is_nonempty_file(tmp_path)


def test_many_files_are_flushed_and_then_their_folder(
    tmp_path: Path, flushed: FlushedPaths
) -> None:
    files = [tmp_path / str(number) for number in range(20)]
    for path in files:
        path.touch()
    flush_files(files)
    assert all(path in flushed for path in (*files, tmp_path))
