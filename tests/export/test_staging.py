from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from mpn._common.files import sha256_of_file
from mpn.engines.directory.files import FileDigest
from mpn.errors import OutputError
from mpn.export.staging import STATE_NAME, FinishedRole, Staging, check_space, check_target

KEY = {"checkpoints": "abc", "frame_size_hw": (480, 854)}
MANIFEST = json.dumps({"schema_version": 1, "roles": {}, "provenance": {}})
AS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


def _write_role(staging: Staging, role: str = "osvos", content: bytes = b"graph") -> FinishedRole:
    path = staging.path / f"{role}.onnx"
    path.write_bytes(content)
    finished = FinishedRole((FileDigest(path.name, sha256_of_file(path)),), {"nodes": 3})
    staging.finish_role(role, finished)  # type: ignore[arg-type]
    return finished


def test_a_folder_grows_unseen_and_appears_whole(tmp_path: Path) -> None:
    target = check_target(tmp_path / "new" / "engines")
    staging = Staging.open(target, KEY)
    _write_role(staging)
    assert not target.exists()
    assert staging.path.name.startswith(".")
    staging.publish()
    assert {path.name for path in target.iterdir()} == {"osvos.onnx"}
    assert {path.name for path in target.parent.iterdir()} == {"engines"}


def test_finished_files_are_reused_by_the_same_export_only(tmp_path: Path) -> None:
    target = check_target(tmp_path / "engines")
    finished = _write_role(Staging.open(target, KEY))
    again = Staging.open(target, KEY)
    found = again.finished("osvos")
    assert found is not None
    assert found.files == finished.files
    assert found.facts == {"nodes": 3}
    assert again.finished("flow") is None
    other = Staging.open(target, KEY | {"checkpoints": "other"})
    assert other.finished("osvos") is None
    assert not (other.path / "osvos.onnx").exists()


def test_changed_finished_file_is_not_reused(tmp_path: Path) -> None:
    target = check_target(tmp_path / "engines")
    staging = Staging.open(target, KEY)
    _write_role(staging)
    (staging.path / "osvos.onnx").write_bytes(b"grapi")
    assert Staging.open(target, KEY).finished("osvos") is None
    (staging.path / "osvos.onnx").unlink()
    assert Staging.open(target, KEY).finished("osvos") is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema_version": 1, "key": 3}'])
def test_a_damaged_note_means_a_fresh_start(tmp_path: Path, text: str) -> None:
    target = check_target(tmp_path / "engines")
    staging = Staging.open(target, KEY)
    _write_role(staging)
    (staging.path / STATE_NAME).write_text(text)
    again = Staging.open(target, KEY)
    assert again.finished("osvos") is None
    assert {path.name for path in again.path.iterdir()} == {STATE_NAME}


def test_a_stranger_in_the_way_is_not_deleted(tmp_path: Path) -> None:
    target = check_target(tmp_path / "engines")
    hidden = tmp_path / ".engines.mpn-export"
    hidden.mkdir()
    (hidden / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match=r"thesis\.tex.*which no export wrote"):
        Staging.open(target, KEY)
    assert (hidden / "thesis.tex").exists()


def test_link_in_place_of_the_hidden_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / ".engines.mpn-export").symlink_to(tmp_path / "theirs")
    with pytest.raises(OutputError, match="is a symbolic link: remove it"):
        Staging.open(check_target(tmp_path / "engines"), KEY)
    assert list((tmp_path / "theirs").iterdir()) == []


def test_an_unfinished_role_leaves_nothing(tmp_path: Path) -> None:
    target = check_target(tmp_path / "engines")
    staging = Staging.open(target, KEY)
    (staging.path / "flow.onnx").write_bytes(b"half of a gra")
    (staging.path / "flow.onnx.data").write_bytes(b"ph")
    staging.discard_role("flow")
    assert list(tmp_path.iterdir()) == []
    Staging.open(check_target(tmp_path / "new" / "deep" / "engines"), KEY).discard()
    assert list(tmp_path.iterdir()) == []
    staging = Staging.open(target, KEY)
    _write_role(staging)
    (staging.path / "flow.onnx").write_bytes(b"half of a gra")
    staging.discard_role("flow")
    assert {path.name for path in staging.path.iterdir()} == {STATE_NAME, "osvos.onnx"}


def test_publish_replaces_directory_and_keeps_user_files(tmp_path: Path) -> None:
    target = tmp_path / "engines"
    target.mkdir()
    (target / "manifest.json").write_text(MANIFEST)
    (target / "flow.onnx").write_bytes(b"old")
    (target / "plans").mkdir()
    (target / "MODEL_CARD.md").write_text("card")
    (target / "notes").mkdir()
    (target / "notes" / "a.txt").write_text("a")
    staging = Staging.open(check_target(target), KEY)
    _write_role(staging)
    staging.publish()
    assert {path.name for path in target.iterdir()} == {"osvos.onnx", "MODEL_CARD.md", "notes"}
    assert (target / "notes" / "a.txt").read_text() == "a"
    assert [path.name for path in tmp_path.iterdir()] == ["engines"]


def test_publish_failure_restores_old_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "engines"
    target.mkdir()
    (target / "manifest.json").write_text(MANIFEST)
    staging = Staging.open(check_target(target), KEY)
    _write_role(staging)
    shutil.rmtree(staging.path)  # as if another export had taken it away
    with pytest.raises(OutputError, match="cannot be put in place"):
        staging.publish()
    assert (target / "manifest.json").read_text() == MANIFEST
    assert [path.name for path in tmp_path.iterdir()] == ["engines"]


def test_a_symbolic_link_stays_and_its_folder_is_replaced(tmp_path: Path) -> None:
    real = tmp_path / "disk" / "engines-v1"
    real.mkdir(parents=True)
    (tmp_path / "engines").symlink_to(real)
    target = check_target(tmp_path / "engines")
    assert target == real
    staging = Staging.open(target, KEY)
    _write_role(staging)
    staging.publish()
    assert (tmp_path / "engines").is_symlink()
    assert (tmp_path / "engines" / "osvos.onnx").exists()


def test_places_that_cannot_become_an_engine_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "website").mkdir()
    (tmp_path / "website" / "manifest.json").write_text('{"name": "app", "icons": []}')
    (tmp_path / "work" / "inside").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work" / "inside")
    cases = [
        (tmp_path / "file", "is a file: give a folder"),
        (tmp_path / "file" / "engines", "is a file, not a folder"),
        (tmp_path / "file" / "a" / "engines", "is a file, not a folder"),
        (tmp_path / "website", "holds files but no engine directory's manifest"),
        (Path("."), "is the current folder or above it"),
        (tmp_path / "work", "is the current folder or above it"),
        (Path(" "), "has no usable name"),
        (Path("a\0b"), "has no usable name"),
        (Path("x" * 300), "cannot be used as output folder"),
    ]
    for out, says in cases:
        with pytest.raises(OutputError, match=says) as info:
            check_target(out)
        assert "\n" not in str(info.value)
    assert (tmp_path / "website" / "manifest.json").exists()


def test_a_mount_point_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    check_target(mounted)
    monkeypatch.setattr(Path, "is_mount", lambda self: self == mounted)
    with pytest.raises(OutputError, match=r"mount point.*mounted/engines"):
        check_target(mounted)


@pytest.mark.skipif(AS_ROOT, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    with pytest.raises(OutputError, match="no permission in"):
        check_target(locked / "engines")
    with pytest.raises(OutputError, match="no permission"):
        check_target(locked)


def test_staging_without_permission_gives_os_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_target(tmp_path / "engines")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OutputError, match="no permission in"):
        check_target(tmp_path / "engines")


def test_full_disk_is_detected_before_any_work(tmp_path: Path) -> None:
    check_space(tmp_path / "not" / "yet" / "engines", 1)
    with pytest.raises(OutputError, match=r"need about \d+ MiB, but .* has \d+ MiB left"):
        check_space(tmp_path / "engines", 1 << 60)
