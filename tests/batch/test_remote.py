"""Units with addresses: copied to scratch, uploaded whole, done.json last."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from mpn._common import storage
from mpn._common.locks import TEMPORARY_PREFIX
from mpn.batch.manifest import Unit, read_units
from mpn.batch.outcome import Settings, UnitOutcome
from mpn.batch.plan import plan_units
from mpn.batch.remote import run_any_unit
from mpn.batch.unit import ReusedEngines
from mpn.errors import InputError
from mpn.masks import load_labels
from tests.batch.clips import FRAMES, MASKS_ONLY, unit_of, write_inputs


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A bucket in memory, and a scratch folder for this test."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def run(unit: Unit, settings: Settings) -> UnitOutcome:
    with ReusedEngines() as engines:
        return run_any_unit(unit, settings, engines)


def remote_unit(folder: Path, memory: Any) -> Unit:
    memory.pipe("/in/clip.mp4", (folder / "clip.mp4").read_bytes())
    memory.pipe("/in/first.png", (folder / "first.png").read_bytes())
    return unit_of(
        folder,
        video="memory://in/clip.mp4",
        masks={None: "memory://in/first.png"},
        out="memory://out/a",
    )


def test_remote_unit_has_the_masks_of_a_local_one(tmp_path: Path, memory: Any) -> None:
    settings = write_inputs(tmp_path)
    unit = remote_unit(tmp_path, memory)
    assert run(unit, settings).state == "done"
    assert run(unit_of(tmp_path), settings).state == "done"
    for index in range(FRAMES):
        (tmp_path / "got.png").write_bytes(memory.cat(f"/out/a/masks/{index:05d}.png"))
        local = load_labels(tmp_path / "out" / "a" / "masks" / f"{index:05d}.png")
        np.testing.assert_array_equal(load_labels(tmp_path / "got.png"), local)
    report = json.loads(memory.cat("/out/a/run.json"))
    assert report["video"]["source"] == "memory://in/clip.mp4"
    assert report["state"] == "complete"
    assert json.loads(memory.cat("/out/a/done.json"))["video"] == "memory://in/clip.mp4"
    assert not list((tmp_path / "scratch").glob(f"{TEMPORARY_PREFIX}*"))


def test_remote_unit_runs_again_only_if_an_input_changed(tmp_path: Path, memory: Any) -> None:
    settings = write_inputs(tmp_path)
    unit = remote_unit(tmp_path, memory)
    assert run(unit, settings).state == "done"
    assert [one.state for one in plan_units([unit], settings).skipped] == ["skipped"]
    assert run(unit, settings).state == "skipped"
    memory.pipe("/in/clip.mp4", (tmp_path / "clip.mp4").read_bytes())  # another time
    [planned] = plan_units([unit], settings).to_run
    assert planned.reason == "its video changed"
    assert run(unit, settings).state == "done"


def test_remote_rerun_removes_frames_of_a_longer_run(tmp_path: Path, memory: Any) -> None:
    settings = write_inputs(tmp_path)
    unit = remote_unit(tmp_path, memory)
    memory.pipe({"/out/a/masks/00009.png": b"old", "/out/a/notes.txt": b"of the user"})
    assert run(unit, settings).state == "done"
    assert not memory.exists("/out/a/masks/00009.png")
    assert memory.exists("/out/a/notes.txt")


def test_failed_upload_leaves_no_done_json(
    tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = write_inputs(tmp_path)
    unit = remote_unit(tmp_path, memory)
    memory.pipe("/out/a/done.json", b"of an earlier run")
    upload, uploaded = storage._upload, []

    def fails_at_the_second(system: Any, source: Path, path: str) -> None:
        uploaded.append(path)
        if len(uploaded) == 2:
            raise OSError(5, "Input/output error")
        upload(system, source, path)

    monkeypatch.setattr(storage, "_upload", fails_at_the_second)
    outcome = run(unit, settings)
    assert (outcome.state, outcome.may_retry) == ("failed", True)
    assert "memory://out/a" in outcome.reason
    assert not memory.exists("/out/a/done.json")
    monkeypatch.undo()
    assert run(unit, settings).state == "done"


def test_remote_unit_without_its_video_has_error_json(tmp_path: Path, memory: Any) -> None:
    settings = write_inputs(tmp_path)
    unit = replace(remote_unit(tmp_path, memory), video="memory://in/other.mp4")
    outcome = run(unit, settings)
    assert (outcome.state, outcome.may_retry) == ("failed", False)
    assert outcome.reason == "there is nothing at memory://in/other.mp4"
    assert json.loads(memory.cat("/out/a/error.json"))["reason"] == outcome.reason
    assert run(remote_unit(tmp_path, memory), settings).state == "done"
    assert not memory.exists("/out/a/error.json")


def test_unit_with_remote_inputs_and_local_output(tmp_path: Path, memory: Any) -> None:
    settings = write_inputs(tmp_path)
    unit = replace(remote_unit(tmp_path, memory), out=str(tmp_path / "local"))
    assert run(unit, settings).state == "done"
    assert (tmp_path / "local" / "done.json").is_file()
    assert run(unit, settings).state == "skipped"


def test_manifest_with_addresses(tmp_path: Path) -> None:
    rows = "video,mask,out\nmemory://in/a.mp4,memory://m/a.png,\nmemory://in/b,m.png,gs://b/x/\n"
    (tmp_path / "m.csv").write_text(rows)
    first, second = read_units([str(tmp_path / "m.csv")], out_root="s3://bucket/results/")
    assert (first.name, first.out) == ("a", "s3://bucket/results/a")
    assert first.masks == {None: "memory://m/a.png"}
    assert (second.name, second.place) == ("b", "gs://b/x")
    assert second.masks == {None: str(tmp_path / "m.png")}
    with pytest.raises(InputError, match="is a pattern of addresses, which is not expanded"):
        read_units(["s3://bucket/*.mp4"], mask="{name}.png")


def test_log_and_messages_have_no_credentials(tmp_path: Path, memory: Any) -> None:
    settings = write_inputs(tmp_path)
    unit = unit_of(
        tmp_path,
        video="memory://user:secret@in/none.mp4",
        out=str(tmp_path / "local"),
        options=MASKS_ONLY,
    )
    outcome = run(unit, settings)
    assert "secret" not in outcome.reason + (tmp_path / "local" / "error.json").read_text()
