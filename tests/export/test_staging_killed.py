"""Exports that are killed while the engine directory is put in place."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from mpn._common import files
from mpn._common.files import publish_folder, restore_folder
from mpn.export.staging import Staging, check_target

MANIFEST = json.dumps({"schema_version": 1, "roles": {}, "provenance": {}})
KEY = {"checkpoints": "abc"}


class Killed(BaseException):
    """A kill: no handler of the package catches it."""


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """An engine directory with a file of the user, and a new one next to it."""
    target = tmp_path / "engines"
    target.mkdir()
    (target / "manifest.json").write_text(MANIFEST)
    (target / "flow.onnx").write_bytes(b"old")
    (target / "MODEL_CARD.md").write_text("card")
    staging = Staging.open(check_target(target), KEY)
    (staging.path / "flow.onnx").write_bytes(b"new")
    (staging.path / "flow.onnx.data").write_bytes(b"weights")
    (staging.path / "manifest.json").write_text(MANIFEST)
    return target


@pytest.mark.parametrize("can_exchange", [True, False])
def test_old_folder_goes_after_the_new_one_is_flushed(
    target: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool
) -> None:
    flushed: list[str] = []
    real = os.fsync
    if not can_exchange:
        monkeypatch.setattr(files, "_exchange", lambda left, right: False)

    def fsync(descriptor: int) -> None:
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        if Path(name) != target.parent:  # the old one is whole until the new one is on the disk
            assert (target / "flow.onnx").read_bytes() == b"old"
        flushed.append(Path(name).name)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    old = publish_folder(target.with_name(".engines.mpn-export"), target)
    assert old is not None
    assert {"flow.onnx", "flow.onnx.data", "manifest.json", ".engines.mpn-export"} <= set(flushed)
    assert flushed[-1] == target.parent.name
    assert (target / "flow.onnx").read_bytes() == b"new"
    assert (old / "flow.onnx").read_bytes() == b"old"


@pytest.mark.parametrize("can_exchange", [True, False])
@pytest.mark.parametrize("renames", [0, 1, 2])
def test_kill_at_any_rename_loses_no_engine_directory(
    target: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool, renames: int
) -> None:
    staging = Staging(target.with_name(".engines.mpn-export"), target, KEY)
    real, left = os.replace, [renames]
    if not can_exchange:
        monkeypatch.setattr(files, "_exchange", lambda left, right: False)

    def replace(source: Path, to: Path) -> None:
        if not left[0]:
            raise Killed
        left[0] -= 1
        real(source, to)

    monkeypatch.setattr(os, "replace", replace)
    try:
        staging.publish()
    except Killed:
        if can_exchange:  # at no time without an engine directory
            assert (target / "manifest.json").exists()
    monkeypatch.setattr(os, "replace", real)
    Staging.open(check_target(target), KEY)  # the next export
    assert (target / "flow.onnx").read_bytes() in (b"old", b"new")
    assert (target / "MODEL_CARD.md").read_text() == "card"
    names = {path.name for path in target.parent.iterdir()}
    assert names == {"engines", ".engines.mpn-export"}


def test_folder_without_its_name_gets_it_back(target: Path) -> None:
    lost = target.with_name(".engines.0a1b2c3d.old")
    target.rename(lost)
    theirs = target.with_name(".engines.backup.old")
    theirs.mkdir()
    assert restore_folder(target) == []
    assert (target / "flow.onnx").read_bytes() == b"old"
    assert theirs.exists()
