from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mpn._common import locks
from mpn._common.locks import (
    LOCK_NAME,
    FolderLock,
    TemporaryFolder,
    remove_abandoned_folders,
)
from mpn.errors import OutputError

_HOLD = """
import sys
from pathlib import Path
from mpn._common.locks import FolderLock, TemporaryFolder
lock = FolderLock(Path(sys.argv[1]))
folder = TemporaryFolder(Path(sys.argv[2]))
(folder.path / "weights").write_bytes(b"x")
print("ready", flush=True)
sys.stdin.read()
"""


def hold(out: Path, temporary: Path) -> subprocess.Popen[str]:
    """Start a process that holds a lock and a temporary folder until its stdin ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(out), str(temporary)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_lock_of_a_killed_process_is_released(tmp_path: Path) -> None:
    out, temporary = tmp_path / "out", tmp_path / "tmp"
    temporary.mkdir()
    with hold(out, temporary) as process:
        with pytest.raises(OutputError, match=rf"out is in use .*process {process.pid}\): wait"):
            FolderLock(out)
        remove_abandoned_folders(temporary)
        (abandoned,) = temporary.iterdir()  # it is in use
        assert abandoned.stat().st_mode & 0o777 == 0o700
        process.send_signal(signal.SIGKILL)
        process.wait()
    with FolderLock(out):
        assert (out / LOCK_NAME).read_text() == f"{os.getpid()}\n"
    assert not (out / LOCK_NAME).exists()
    assert abandoned.exists()
    with TemporaryFolder(temporary) as folder:
        assert list(temporary.iterdir()) == [folder.path]
    assert list(temporary.iterdir()) == []


def test_lock_removes_the_folders_it_made_if_empty(tmp_path: Path) -> None:
    with FolderLock(tmp_path / "a" / "b"):
        pass
    assert list(tmp_path.iterdir()) == []
    with FolderLock(tmp_path / "a" / "b"):
        (tmp_path / "a" / "result").touch()
    assert (tmp_path / "a" / "result").exists()
    assert not (tmp_path / "a" / "b").exists()


def test_lock_is_never_taken_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("theirs")
    (tmp_path / LOCK_NAME).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match=r"cannot write .*mpn-lock"):
        FolderLock(tmp_path)
    assert (tmp_path / "elsewhere").read_text() == "theirs"


def test_only_folders_of_this_package_are_removed(tmp_path: Path) -> None:
    theirs = {tmp_path / "mpn-runtime-notes", tmp_path / "mpn-runtime-", tmp_path / "other"}
    for path in theirs:
        path.mkdir()
    target = tmp_path / "target"
    target.mkdir()
    (target / "file").touch()
    link = tmp_path / f"mpn-runtime-{'0' * 16}"
    link.symlink_to(target)
    (tmp_path / f"mpn-runtime-{'1' * 16}").mkdir()
    remove_abandoned_folders(tmp_path)
    assert set(tmp_path.iterdir()) == theirs | {link, target}
    assert (target / "file").exists()


def test_temporary_folder_that_was_cleaned_up_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process removes a folder that has no lock yet."""
    names: list[str] = []

    def cleaned_up(path: Path) -> int | None:
        names.append(path.name)
        if len(names) == 1:
            remove_abandoned_folders(tmp_path)
        return open_folder(path)

    open_folder = locks._open_folder
    monkeypatch.setattr(locks, "_open_folder", cleaned_up)
    with TemporaryFolder(tmp_path) as folder:
        assert len(names) == 2
        assert [path.name for path in tmp_path.iterdir()] == [folder.path.name] == names[1:]
