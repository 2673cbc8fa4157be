from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from mpn.errors import InputError, OutputError
from mpn.masks import load_labels, save_labels
from mpn.runtime.host import memory
from mpn.runtime.options import PipelineOptions
from mpn.runtime.session import session
from mpn.runtime.session.request import Progress, RunRequest
from mpn.runtime.session.resume import FIELDS_OF_0_1, check_same_run
from mpn.runtime.session.session import run_video
from tests.builders.engine_dirs import make_engine_dir
from tests.runtime.media.clips import SCENE_HW, scene, scene_labels, write_folder, write_video
from tests.tolerances import TRACKED_IOU_MIN

FRAMES = 12
DONE = 5


@pytest.fixture(scope="module")
def engine_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_engine_dir(tmp_path_factory.mktemp("engines") / "tiny", frame_size_hw=SCENE_HW)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", scene(FRAMES))


@pytest.fixture
def interrupted(clip: Path, engine_dir: Path, tmp_path: Path) -> RunRequest:
    """Interrupt a run after five frames; return the request to resume it."""
    save_labels(tmp_path / "first.png", scene_labels(0))
    request = RunRequest(
        video=str(clip),
        masks={None: tmp_path / "first.png"},
        out=tmp_path / "out",
        engine_dir=engine_dir,
        backend="cpu",
        threads=1,
        save=frozenset({"masks", "overlay", "rle"}),
    )
    with pytest.raises(KeyboardInterrupt):
        run_video(request, on_progress=stop_after(DONE))
    return replace(request, resume=True)


def stop_after(frames: int) -> Callable[[Progress], None]:
    def on_progress(progress: Progress) -> None:
        if progress.done == frames:
            raise KeyboardInterrupt

    return on_progress


def out_of(request: RunRequest) -> Path:
    assert request.out is not None
    return request.out


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def check_complete(request: RunRequest) -> None:
    out = out_of(request)
    for name in ("tracks.jsonl", "rle.jsonl"):
        assert [line["frame"] for line in lines_of(out / name)] == list(range(FRAMES))
    assert len(list((out / "masks").glob("*.png"))) == FRAMES
    with av.open(str(out / "overlay.mp4")) as container:
        assert len(list(container.decode(video=0))) == FRAMES
    assert json.loads((out / "run.json").read_text())["state"] == "complete"
    assert not list(out.rglob("*partial*"))


def test_resume_computes_only_missing_frames(
    interrupted: RunRequest,
) -> None:
    out = out_of(interrupted)
    before = {path: path.stat().st_mtime_ns for path in (out / "masks").iterdir()}
    progress: list[Progress] = []
    report = run_video(interrupted, on_progress=progress.append)
    check_complete(interrupted)
    assert report["resumed_at"] == DONE - 1
    assert (report["frames"], report["frames_computed"]) == (FRAMES, FRAMES - DONE)
    assert [p.computed for p in progress] == [0] * DONE + list(range(1, FRAMES - DONE + 1))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    last = load_labels(out / f"masks/{FRAMES - 1:05d}.png")
    truth = scene_labels(FRAMES - 1)
    for object_id in (1, 2):
        a, b = last == object_id, truth == object_id
        assert (a & b).sum() / (a | b).sum() >= TRACKED_IOU_MIN


def test_killed_run_is_resumed_from_its_partial_files(interrupted: RunRequest) -> None:
    out = out_of(interrupted)
    # State after SIGKILL: no final names, a truncated line, a mask of a frame without a line.
    (out / "run.json").rename(out / "run.partial.json")
    tracks = (out / "tracks.jsonl").read_text()
    (out / "tracks.jsonl").unlink()
    (out / "tracks.jsonl.partial").write_text(tracks[:-20])
    (out / "rle.jsonl").unlink()
    (out / "overlay.mp4").unlink()
    (out / "overlay.mp4.partial").write_bytes(b"half")
    (out / "masks" / "00007.png.partial").write_bytes(b"half")
    report = run_video(interrupted)
    check_complete(interrupted)
    assert report["resumed_at"] == DONE - 2


def test_damaged_last_mask_is_computed_again(interrupted: RunRequest) -> None:
    (out_of(interrupted) / "masks" / "00004.png").write_bytes(b"\x89PNG half")
    assert run_video(interrupted)["resumed_at"] == DONE - 2
    check_complete(interrupted)


def test_run_json_with_earlier_names_is_resumed(interrupted: RunRequest) -> None:
    path = out_of(interrupted) / "run.json"
    report = json.loads(path.read_text())
    for name in ("backend", "decode"):
        report[name]["asked"] = report[name].pop("requested")
    report["finetune"] = {"ran": False, "why": "not wanted"}
    path.write_text(json.dumps(report))
    assert run_video(interrupted)["resumed_at"] == DONE - 1
    check_complete(interrupted)


def test_resume_with_another_first_mask_starts_over(
    interrupted: RunRequest, tmp_path: Path
) -> None:
    save_labels(tmp_path / "first.png", np.roll(scene_labels(0), 1, axis=1))
    report = run_video(interrupted)
    check_complete(interrupted)
    assert report["resumed_at"] is None
    assert report["frames_computed"] == FRAMES


def test_resume_without_earlier_run_starts_over(interrupted: RunRequest, tmp_path: Path) -> None:
    request = replace(interrupted, out=tmp_path / "other")
    assert run_video(request)["resumed_at"] is None
    check_complete(request)


def test_complete_run_is_not_run_again(
    interrupted: RunRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = run_video(interrupted)
    monkeypatch.setattr(session.Passes, "run", None)
    assert run_video(interrupted) == report


def test_complete_run_can_be_made_longer(interrupted: RunRequest) -> None:
    run_video(replace(interrupted, end=8))
    report = run_video(interrupted)
    assert report["resumed_at"] == 7
    check_complete(interrupted)


def contents(folder: Path) -> dict[Path, tuple[int, bytes]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.mark.parametrize("is_empty_at_end", [False, True])
def test_resume_with_an_earlier_end_changes_no_file(
    interrupted: RunRequest, is_empty_at_end: bool
) -> None:
    run_video(interrupted)
    out = out_of(interrupted)
    if is_empty_at_end:  # the resume point is then before the end that is given
        for index in range(3, FRAMES):
            save_labels(out / f"masks/{index:05d}.png", np.zeros(SCENE_HW, np.uint8))
    before = contents(out)
    with pytest.raises(InputError, match="the earlier run has frames up to 11; set the end to 12"):
        run_video(replace(interrupted, end=8))
    assert contents(out) == before


@pytest.mark.parametrize("was_killed", [False, True])
def test_resume_on_a_shorter_video_changes_no_result(
    interrupted: RunRequest, engine_dir: Path, tmp_path: Path, was_killed: bool
) -> None:
    """End the video before the resume point: images were removed meanwhile."""
    folder = write_folder(tmp_path / "frames", scene(FRAMES))
    request = replace(interrupted, video=str(folder), out=tmp_path / "images")
    run_video(replace(request, resume=False, end=8))
    out = out_of(request)
    if was_killed:
        report = json.loads((out / "run.json").read_text()) | {"state": "running"}
        (out / "run.partial.json").write_text(json.dumps(report))
        (out / "run.json").unlink()
        (out / "tracks.jsonl").rename(out / "tracks.jsonl.partial")
    for path in sorted(folder.iterdir())[4:]:
        path.rename(tmp_path / path.name)
    before = contents(out)
    with pytest.raises(OutputError, match="the video ends before it; run again"):
        run_video(request)
    assert contents(out) == before
    for path in tmp_path.glob("0*.png"):
        path.rename(folder / path.name)
    assert run_video(request)["resumed_at"] == 7  # control


def test_other_options_or_engines_are_refused_by_name(
    interrupted: RunRequest, engine_dir: Path, tmp_path: Path
) -> None:
    other_engine = make_engine_dir(tmp_path / "other", frame_size_hw=SCENE_HW, roi_size=81)
    changes: list[tuple[dict[str, Any], str]] = [
        ({"options": PipelineOptions(size=32)}, "options.size was 480 and is now 32"),
        ({"engine_dir": other_engine}, r"engine\.propagation\.onnx was "),
        ({"start": 0, "video": str(tmp_path / "other.mp4")}, r"video\.\w+ was "),
        ({"save": frozenset({"masks", "probs"})}, "cannot resume with probs saved"),
    ]
    write_video(tmp_path / "other.mp4", scene(FRAMES)[1:])
    before = {p: p.stat().st_mtime_ns for p in out_of(interrupted).rglob("*") if p.is_file()}
    for change, message in changes:
        with pytest.raises(InputError, match=message):
            run_video(replace(interrupted, **change))
    after = {p: p.stat().st_mtime_ns for p in out_of(interrupted).rglob("*") if p.is_file()}
    assert after == before


def test_mask_of_a_frame_still_to_come_may_be_added(
    interrupted: RunRequest, tmp_path: Path
) -> None:
    save_labels(tmp_path / "later.png", np.where(scene_labels(8) == 1, 7, 0).astype(np.uint8))
    masks = {**interrupted.masks, 8: tmp_path / "later.png"}
    report = run_video(replace(interrupted, masks=masks))
    assert report["object_ids"] == [1, 2, 7]
    check_complete(interrupted)


def without_digests(path: Path) -> None:
    lines = lines_of(path)
    for line in lines:
        line.pop("mask_sha256", None)
        line.pop("frame_crc32", None)
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def test_mask_that_was_changed_is_neither_used_nor_replaced(interrupted: RunRequest) -> None:
    out = out_of(interrupted)
    mask = out / "masks" / "00002.png"
    written = mask.read_bytes()
    save_labels(mask, np.where(scene_labels(2) == 1, 1, 0).astype(np.uint8))
    before = contents(out)
    with pytest.raises(
        OutputError, match=r"00002\.png was changed .*--mask 2:.*00002\.png to keep"
    ):
        run_video(interrupted)
    assert contents(out) == before
    mask.write_bytes(written)  # control
    assert run_video(interrupted)["resumed_at"] == DONE - 1


def remove_mask(out: Path) -> None:
    (out / "masks" / "00005.png").unlink()


def empty_mask(out: Path) -> None:
    (out / "masks" / "00005.png").write_bytes(b"")


def blank_mask(out: Path) -> None:
    save_labels(out / "masks" / "00005.png", np.zeros(SCENE_HW, np.uint8))


def remove_overlay(out: Path) -> None:
    (out / "overlay.mp4").unlink()


def cut_overlay(out: Path) -> None:
    path = out / "overlay.mp4"
    path.write_bytes(path.read_bytes()[:-100])


def empty_rle(out: Path) -> None:
    (out / "rle.jsonl").write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "resumed_at"),
    [
        (remove_mask, 4),
        (empty_mask, 4),
        (blank_mask, 4),
        (remove_overlay, FRAMES - 1),
        (cut_overlay, FRAMES - 1),
        (empty_rle, FRAMES - 1),
    ],
)
def test_complete_run_without_a_file_makes_it_again(
    interrupted: RunRequest, damage: Callable[[Path], None], resumed_at: int
) -> None:
    run_video(interrupted)
    damage(out_of(interrupted))
    assert run_video(interrupted)["resumed_at"] == resumed_at
    check_complete(interrupted)
    before = contents(out_of(interrupted))
    run_video(interrupted)  # control: now nothing is left to do
    assert contents(out_of(interrupted)) == before


def test_folder_that_grew_or_changed_is_segmented_again(
    interrupted: RunRequest, tmp_path: Path
) -> None:
    frames = scene(FRAMES)
    folder = write_folder(tmp_path / "frames", frames[:8])
    request = replace(interrupted, video=str(folder), out=tmp_path / "images")
    run_video(request)
    before = contents(out_of(request))
    run_video(request)
    assert contents(out_of(request)) == before  # control
    write_folder(folder, frames)
    report = run_video(request)
    assert (report["resumed_at"], report["frames"]) == (7, FRAMES)
    check_complete(request)
    changed = frames[6].copy()
    changed[3, 3] ^= 255
    write_folder(folder, [*frames[:6], changed, *frames[7:]])
    assert run_video(request)["resumed_at"] == 5
    check_complete(request)


def test_earlier_end_is_refused_although_a_mask_is_missing(interrupted: RunRequest) -> None:
    """Frames after the end would be of no run."""
    run_video(interrupted)
    (out_of(interrupted) / "masks" / "00002.png").unlink()
    before = contents(out_of(interrupted))
    with pytest.raises(InputError, match="the earlier run has frames up to 11"):
        run_video(replace(interrupted, end=6))
    assert contents(out_of(interrupted)) == before


def as_version_0_2(out: Path) -> None:
    without_digests(out / "tracks.jsonl")
    report = json.loads((out / "run.json").read_text())
    del report["files"], report["warnings"]
    (out / "run.json").write_text(json.dumps(report))


def test_output_of_0_2_is_resumed_and_found_complete(interrupted: RunRequest) -> None:
    out = out_of(interrupted)
    as_version_0_2(out)
    assert run_video(interrupted)["resumed_at"] == DONE - 1
    as_version_0_2(out)
    before = contents(out)
    run_video(interrupted)
    assert contents(out) == before


@pytest.mark.parametrize("field", ["frames", "object_ids", "out", "video", "fingerprint"])
def test_run_json_without_a_field_is_one_line(interrupted: RunRequest, field: str) -> None:
    path = out_of(interrupted) / "run.json"
    report = json.loads(path.read_text())
    del report[field]
    path.write_text(json.dumps(report))
    with pytest.raises(OutputError, match=f"cannot resume: .*{field}.*; run again"):
        run_video(interrupted)


def test_object_that_was_lost_stays_in_the_tracks(interrupted: RunRequest) -> None:
    out = out_of(interrupted)
    only_one = np.where(scene_labels(4) == 1, 1, 0).astype(np.uint8)
    save_labels(out / "masks" / "00004.png", only_one)
    without_digests(out / "tracks.jsonl")  # as version 0.2 wrote it
    run_video(interrupted)
    last = lines_of(out / "tracks.jsonl")[-1]["objects"]
    assert [(track["object_id"], track["state"]) for track in last] == [(1, "tracked"), (2, "lost")]
    check_complete(interrupted)


def test_damaged_run_json_is_one_line(interrupted: RunRequest) -> None:
    path = out_of(interrupted) / "run.json"
    report = json.loads(path.read_text())
    path.write_text(json.dumps(report | {"saved": "masks"}))
    with pytest.raises(OutputError, match="field 'saved' must be a list, got 'masks'"):
        run_video(interrupted)
    path.write_text(json.dumps(report))  # control
    assert run_video(interrupted)["resumed_at"] == DONE - 1


def test_damaged_track_line_is_computed_again(interrupted: RunRequest) -> None:
    path = out_of(interrupted) / "tracks.jsonl"
    lines = path.read_text().splitlines()
    lines[3] = json.dumps({**json.loads(lines[3]), "objects": 2})
    path.write_text("".join(f"{line}\n" for line in lines))
    assert run_video(interrupted)["resumed_at"] == 2
    check_complete(interrupted)


def test_empty_last_masks_are_no_state_to_resume(interrupted: RunRequest) -> None:
    out = out_of(interrupted)
    for index in (3, 4):
        save_labels(out / "masks" / f"{index:05d}.png", np.zeros(SCENE_HW, np.uint8))
    assert run_video(interrupted)["resumed_at"] == 2
    check_complete(interrupted)


def test_resume_computes_colours_from_the_given_mask(
    interrupted: RunRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[np.ndarray] = []
    real = memory.colour_table

    def watched(rgb: np.ndarray, mask: np.ndarray) -> np.ndarray:
        seen.append(mask)
        return real(rgb, mask)

    monkeypatch.setattr(memory, "colour_table", watched)
    run_video(interrupted)
    given = scene_labels(0)
    assert len(seen) == 2
    for object_id, mask in zip((1, 2), seen, strict=True):
        np.testing.assert_array_equal(mask, given == object_id)


def test_an_object_added_before_the_interruption_is_followed_on(
    clip: Path, interrupted: RunRequest, tmp_path: Path
) -> None:
    save_labels(tmp_path / "added.png", np.where(scene_labels(2) == 1, 7, 0).astype(np.uint8))
    request = replace(
        interrupted,
        masks={**interrupted.masks, 2: tmp_path / "added.png"},
        out=tmp_path / "second",
        resume=False,
    )
    with pytest.raises(KeyboardInterrupt):
        run_video(request, on_progress=stop_after(DONE))
    report = run_video(replace(request, resume=True))
    assert report["resumed_at"] == DONE - 1
    assert report["object_ids"] == [1, 2, 7]
    last = lines_of(tmp_path / "second" / "tracks.jsonl")[-1]["objects"]
    assert [track["object_id"] for track in last] == [1, 2, 7]
    check_complete(request)


@pytest.mark.parametrize("field", FIELDS_OF_0_1)
def test_field_of_0_1_is_refused_with_the_new_name(field: str) -> None:
    def nested(name: str, value: object) -> dict[str, Any]:
        head, dot, rest = name.partition(".")
        return {head: nested(rest, value) if dot else value}

    message = f"field {re.escape(field)} of run.json is now {re.escape(FIELDS_OF_0_1[field])}; run"
    current = {"version": "0.2.0", "options": {"osvos": {"mode": "auto"}}}
    with pytest.raises(InputError, match=message):
        check_same_run({"version": "0.1.0", **nested(field, 1)}, current)
    check_same_run(current, current)


def test_finetuning_of_0_1_is_refused_with_the_new_name() -> None:
    with pytest.raises(InputError, match=r"field adapt of run\.json is now finetune"):
        check_same_run({"adapt": {"seed": 0}}, {"finetune": {"seed": 0}})
