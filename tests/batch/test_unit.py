from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mpn._common.locks import FolderLock
from mpn.batch import unit as unit_module
from mpn.batch.manifest import Unit
from mpn.batch.outcome import Settings, UnitOutcome
from mpn.batch.records import digest_of_engines, load_done, stale_reason
from mpn.batch.unit import LOCK_NAME, ReusedEngines, run_unit
from mpn.errors import EngineError, OutputError
from mpn.masks import load_labels, save_labels
from mpn.runtime.run_options import RunOptions
from mpn.runtime.session.session import run_video
from tests.batch.clips import FRAMES, MASKS_ONLY, unit_of, write_inputs
from tests.builders.engine_dirs import make_engine_dir
from tests.runtime.media.clips import SCENE_HW, scene, scene_labels, write_video


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return write_inputs(tmp_path)


def run(unit: Unit, settings: Settings, **how: Any) -> UnitOutcome:
    with ReusedEngines() as engines:
        return run_unit(unit, settings, engines, **how)


def record_of(unit: Unit, name: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((unit.folder / name).read_text())
    return record


def staleness_of(unit: Unit, settings: Settings) -> str | None:
    return stale_reason(unit, digest_of_engines(settings.manifest()), load_done(unit))


def test_unit_result_is_that_of_a_single_run(tmp_path: Path, settings: Settings) -> None:
    unit = unit_of(tmp_path)
    outcome = run(unit, settings, attempt=2, worker="w")
    assert (outcome.state, outcome.frames, outcome.attempt) == ("done", FRAMES, 2)
    assert UnitOutcome.from_json(json.loads(json.dumps(outcome.as_json()))).frames == FRAMES
    request = MASKS_ONLY.request(
        video=unit.video,
        masks={None: tmp_path / "first.png"},
        out=tmp_path / "single",
        engine_dir=settings.engine_dir,
        backend="cpu",
        threads=1,
        resume=False,
    )
    report = run_video(request)
    assert report["engine"] == json.loads((unit.folder / "run.json").read_text())["engine"]
    for index in range(FRAMES):
        name = f"masks/{index:05d}.png"
        assert (unit.folder / name).read_bytes() == (tmp_path / "single" / name).read_bytes()
    assert {path.name for path in unit.folder.iterdir()} == {
        "masks", "run.json", "tracks.jsonl", "done.json",
    }  # fmt: skip
    assert staleness_of(unit, settings) is None
    again = run_video(replace(request, out=Path(unit.out), resume=True))
    assert again["frames"] == FRAMES
    assert run(unit, settings).state == "skipped"
    assert run(unit, replace(settings, fresh=True)).state == "done"


def test_two_units_share_the_open_engines(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []
    original = unit_module.open_engines

    def counted(*args: Any, **how: Any) -> Any:
        opened.append(how)
        return original(*args, **how)

    monkeypatch.setattr(unit_module, "open_engines", counted)
    with ReusedEngines() as engines:
        for name in ("a", "b"):
            assert run_unit(unit_of(tmp_path, name), settings, engines).state == "done"
        assert len(opened) == 1
        make_engine_dir(tmp_path / "engines", frame_size_hw=SCENE_HW, dis_scale=0.5)
        assert run_unit(unit_of(tmp_path, "a"), settings, engines).state == "done"
        assert len(opened) == 2


def test_unit_is_stale_when_an_input_changes(tmp_path: Path, settings: Settings) -> None:
    unit = unit_of(tmp_path)
    assert staleness_of(unit, settings) == "it has no result"
    run(unit, settings)
    for name in ("clip.mp4", "first.png"):  # copied again: other times, same content
        os.utime(tmp_path / name, ns=(1, 1))
    assert staleness_of(unit, settings) is None
    assert "options" in (staleness_of(replace(unit, options=RunOptions()), settings) or "")
    both = {**unit.masks, 2: str(tmp_path / "first.png")}
    assert "mask of frame 2" in (staleness_of(replace(unit, masks=both), settings) or "")
    save_labels(tmp_path / "first.png", scene_labels(1))
    assert staleness_of(unit, settings) == "its mask changed"
    run(unit, settings)
    assert staleness_of(unit, settings) is None
    write_video(tmp_path / "clip.mp4", scene(FRAMES + 1))
    assert staleness_of(unit, settings) == "its video changed"
    run(unit, settings)
    make_engine_dir(tmp_path / "engines", frame_size_hw=SCENE_HW, dis_scale=0.5)
    assert staleness_of(unit, settings) == "the engines changed"
    run(unit, settings)
    report = (unit.folder / "run.json").read_bytes()
    (unit.folder / "run.json").write_bytes(report + b" ")
    assert run(unit, settings).reason == "done before, then changed by another run"
    (unit.folder / "masks" / "00001.png").rename(tmp_path / "moved.png")
    assert staleness_of(unit, settings) == "masks were removed"
    (unit.folder / "run.json").unlink()
    assert staleness_of(unit, settings) == "its result was removed"
    (unit.folder / "done.json").write_text("{")
    assert staleness_of(unit, settings) == "it has no result"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"video": "absent.mp4"}, "no such video"),
        ({"masks": {None: "absent.png"}}, "absent.png"),
        ({"masks": {9: "FIRST"}}, "frame 9"),
        ({"options": RunOptions(save="masks,mattes"), "video": "http://0.0.0.0/a"}, "read again"),
    ],
)
def test_unit_failure_is_one_line_in_error_json(
    tmp_path: Path, settings: Settings, fields: dict[str, Any], reason: str
) -> None:
    if fields.get("masks") == {9: "FIRST"}:
        fields = {"masks": {9: str(tmp_path / "first.png")}}
    unit = unit_of(tmp_path, **fields)
    outcome = run(unit, settings)
    assert (outcome.state, outcome.may_retry, outcome.is_disk_full) == ("failed", False, False)
    assert reason in outcome.reason
    assert "\n" not in outcome.reason
    assert record_of(unit, "error.json")["reason"] == outcome.reason
    assert {path.name for path in unit.folder.iterdir()} == {"error.json"}
    good = unit_of(tmp_path)
    assert run(good, settings).state == "done"
    assert not (good.folder / "error.json").exists()


def test_unit_in_use_fails_and_leaves_the_folder(tmp_path: Path, settings: Settings) -> None:
    unit = unit_of(tmp_path)
    with FolderLock(unit.folder, lock_file=unit.folder / LOCK_NAME):
        outcome = run(unit, settings)
        assert [path.name for path in unit.folder.iterdir()] == [LOCK_NAME]
    assert (outcome.state, outcome.is_in_use) == ("failed", True)
    assert f"in use by another run (process {os.getpid()})" in outcome.reason


def test_second_attempt_waits_for_the_worker_of_the_first(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver can lose a node whose worker still finishes its files."""
    unit = unit_of(tmp_path)
    lock = FolderLock(unit.folder, lock_file=unit.folder / LOCK_NAME)
    assert run(unit, settings, attempt=1).state == "failed"
    monkeypatch.setattr(unit_module.time, "sleep", lambda seconds: lock.close())
    assert run(unit, settings, attempt=2).state == "done"


def test_unit_internal_error_has_a_traceback(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **how: Any) -> None:
        raise TypeError("two\nlines")

    monkeypatch.setattr(unit_module, "run_video", broken)
    outcome = run(unit_of(tmp_path), settings)
    assert outcome.reason == "internal error: TypeError: two lines"
    assert outcome.may_retry
    assert "in broken" in record_of(unit_of(tmp_path), "error.json")["traceback"]


def test_engines_that_cannot_be_opened_end_the_batch(tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "engines" / "propagation.onnx").write_bytes(b"")
    with pytest.raises(EngineError, match=r"propagation\.onnx"):
        run(unit_of(tmp_path), settings)


def test_full_disk_is_no_result_even_for_the_overlay(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run leaves out such an overlay; a batch would never write it again."""
    unit = unit_of(tmp_path)
    report = {"frames": FRAMES, "warnings": [f"overlay: {os.strerror(errno.ENOSPC)}"]}
    monkeypatch.setattr(unit_module, "run_video", lambda *args, **how: report)
    outcome = run(unit, settings)
    assert (outcome.state, outcome.is_disk_full) == ("failed", True)

    def full(*args: Any, **how: Any) -> None:
        try:
            raise OSError(errno.ENOSPC, "full")
        except OSError as error:
            raise OutputError("cannot write") from error

    monkeypatch.setattr(unit_module, "run_video", full)
    assert run(unit, settings).is_disk_full
    assert not (unit.folder / "done.json").exists()


def test_interrupted_unit_starts_again_or_continues(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = unit_of(tmp_path)

    def interrupt(progress: Any) -> None:
        if progress.done == 2:
            raise KeyboardInterrupt

    with ReusedEngines() as engines, pytest.raises(KeyboardInterrupt):
        run_unit(unit, settings, engines, on_progress=interrupt)
    assert not (unit.folder / "done.json").exists()
    shutil.copytree(unit.folder, tmp_path / "out" / "b")
    assert run(unit, settings).state == "done"
    assert record_of(unit, "run.json")["frames_computed"] == FRAMES
    other = unit_of(tmp_path, "b")
    resuming = replace(settings, resume=True)
    assert run(other, resuming).state == "done"
    assert record_of(other, "run.json")["frames_computed"] < FRAMES
    # Other options: nothing can be kept, so it starts again.
    changed = replace(other, options=replace(MASKS_ONLY, size=32))
    assert run(changed, resuming).state == "done"
    assert record_of(other, "run.json")["frames_computed"] == FRAMES


def test_unit_converts_to_the_saved_formats(tmp_path: Path, settings: Settings) -> None:
    unit = unit_of(tmp_path, options=replace(MASKS_ONLY, save="coco"))
    assert run(unit, settings).state == "done"
    assert (unit.folder / "converted" / "coco.json").is_file() or any(
        (unit.folder / "converted").iterdir()
    )
    labels = load_labels(unit.folder / "masks" / "00000.png", size_hw=SCENE_HW)
    assert labels.any()
