"""Masks in the middle, backward passes, and frames between two masks."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpn.errors import InputError, OutputError
from mpn.masks import load_labels, save_labels
from mpn.runtime.media import video_file
from mpn.runtime.session.passes import FrameUpdate
from mpn.runtime.session.request import Progress, RunRequest
from mpn.runtime.session.session import run_video
from tests.builders.engine_dirs import make_engine_dir
from tests.builders.tiny_disk import tiny_disk as tiny_disk
from tests.runtime.media.clips import SCENE_HW, scene, scene_labels, write_folder, write_video
from tests.tolerances import TRACKED_IOU_MIN

FRAMES = 12
LAST = FRAMES - 1


@pytest.fixture(scope="module")
def engine_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_engine_dir(tmp_path_factory.mktemp("engines") / "tiny", frame_size_hw=SCENE_HW)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mkv", scene(FRAMES), codec="ffv1",
                       pix_fmt="bgr0")  # fmt: skip


@pytest.fixture
def request_(clip: Path, engine_dir: Path, tmp_path: Path) -> RunRequest:
    return RunRequest(
        video=str(clip),
        masks={},
        out=tmp_path / "out",
        engine_dir=engine_dir,
        backend="cpu",
        threads=1,
        save=frozenset({"masks"}),
    )


def mask(folder: Path, index: int, *ids: int, of: int | None = None) -> Path:
    """Save the labels of a frame; those of another one are a wrong mask."""
    labels = scene_labels(index if of is None else of)
    path = folder / f"given-{index}-{len(list(folder.iterdir()))}.png"
    save_labels(path, labels if not ids else np.where(np.isin(labels, ids), labels, 0))
    return path


def masks_of(request: RunRequest) -> list[np.ndarray]:
    assert request.out is not None
    paths = sorted((request.out / "masks").glob("*.png"))
    return [load_labels(path, allow_empty=True) for path in paths]


def lines_of(request: RunRequest) -> list[dict[str, Any]]:
    assert request.out is not None
    return [json.loads(line) for line in (request.out / "tracks.jsonl").read_text().splitlines()]


def check_follows(labels: np.ndarray, index: int, *ids: int) -> None:
    truth = scene_labels(index)
    for object_id in ids:
        a, b = labels == object_id, truth == object_id
        assert (a & b).sum() / (a | b).sum() >= TRACKED_IOU_MIN


def all_same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return len(one) == len(other) and all(map(np.array_equal, one, other))


def test_backward_run_is_the_forward_run_of_the_reversed_clip(
    request_: RunRequest, tmp_path: Path
) -> None:
    backward = replace(request_, masks={LAST: mask(tmp_path, LAST)})
    report = run_video(backward)
    folder = write_folder(tmp_path / "reversed", scene(FRAMES)[::-1])
    forward = replace(
        request_, video=str(folder), masks={None: mask(tmp_path, LAST)}, out=tmp_path / "other"
    )
    run_video(forward)
    assert all_same(masks_of(backward), masks_of(forward)[::-1])
    assert not all_same(masks_of(backward), masks_of(forward))  # control
    assert (report["frames"], report["frames_computed"]) == (FRAMES, FRAMES)
    assert [line["frame"] for line in lines_of(backward)] == list(range(FRAMES))
    assert report["stages"]["propagation"]["frames"] == LAST


def test_middle_mask_runs_both_ways(request_: RunRequest, tmp_path: Path) -> None:
    given = mask(tmp_path, 5)
    report = run_video(replace(request_, masks={5: given}))
    both = masks_of(request_)
    for index, labels in enumerate(both):
        check_follows(labels, index, 1, 2)
    np.testing.assert_array_equal(both[5], scene_labels(5))
    run_video(replace(request_, masks={5: given}, start=5))
    assert all_same(both[5:], masks_of(request_))
    assert report["masks"] == [
        {
            "frame": 5,
            "file": str(given),
            "direction": "both",
            "object_ids": [1, 2],
            "sha256": report["fingerprint"]["masks"]["5"],
        }
    ]


@pytest.mark.parametrize(
    ("direction", "empty"), [("forward", range(5)), ("backward", range(6, 12))]
)
def test_one_direction_leaves_the_other_side_empty(
    request_: RunRequest, tmp_path: Path, direction: Any, empty: range
) -> None:
    run_video(replace(request_, masks={5: mask(tmp_path, 5)}, direction=direction))
    assert [k for k, labels in enumerate(masks_of(request_)) if not labels.any()] == [*empty]
    assert [line["frame"] for line in lines_of(request_) if not line["objects"]] == [*empty]


def test_frames_between_masks_are_blended(request_: RunRequest, tmp_path: Path) -> None:
    """The first mask is wrong: frames near the second one follow it."""
    masks = {0: mask(tmp_path, 0, of=9), LAST: mask(tmp_path, LAST)}
    run_video(replace(request_, masks=masks))
    both, lines = masks_of(request_), lines_of(request_)
    run_video(replace(request_, masks=masks, direction="forward"))
    forward = masks_of(request_)
    changed = {k for k in range(FRAMES) if not np.array_equal(both[k], forward[k])}
    assert set(range(6, LAST)) <= changed <= set(range(1, LAST))
    check_follows(both[LAST - 1], LAST - 1, 1, 2)
    truth, wrong = scene_labels(LAST - 1) == 1, forward[LAST - 1] == 1
    assert (truth & wrong).sum() / (truth | wrong).sum() < TRACKED_IOU_MIN  # control
    assert {track["state"] for line in lines[1:LAST] for track in line["objects"]} == {"tracked"}


def test_object_of_a_later_mask_appears_there(request_: RunRequest, tmp_path: Path) -> None:
    masks = {2: mask(tmp_path, 2, 1), 8: mask(tmp_path, 8, 2)}
    report = run_video(replace(request_, masks=masks))
    ids = [[track["object_id"] for track in line["objects"]] for line in lines_of(request_)]
    assert ids == [[1]] * 8 + [[1, 2]] * 4
    assert report["object_ids"] == [1, 2]
    run_video(replace(request_, masks=masks, directions={8: "backward"}))
    ids = [[track["object_id"] for track in line["objects"]] for line in lines_of(request_)]
    assert ids == [[1]] * 3 + [[1, 2]] * 6 + [[1]] * 3


@pytest.mark.parametrize(
    ("masks", "change", "message"),
    [
        ({99: 0}, {}, "mask was given for frame 99, but the last frame is 11"),
        ({0: 0, 99: 0}, {}, "mask was given for frame 99, but the last frame is 11"),
        ({3: 3}, {"start": 4}, "for frame 3, but the first frame to segment is 4"),
        ({5: 5}, {"end": 5}, "mask was given for frame 5, but the last frame is 4"),
        ({None: 0, 0: 1}, {}, "two masks were given for frame 0, "),
        ({0: 0}, {"direction": "up"}, "direction of a mask must be one of both, forward, backw"),
    ],
)
def test_masks_of_no_frame_leave_no_file(
    request_: RunRequest, tmp_path: Path, masks: dict[Any, int], change: Any, message: str
) -> None:
    given = {index: mask(tmp_path, frame) for index, frame in masks.items()}
    with pytest.raises(InputError, match=message):
        run_video(replace(request_, masks=given, **change))
    assert not (tmp_path / "out").exists()


def test_one_frame_and_a_folder_of_named_images(request_: RunRequest, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "one", scene(1))
    request = replace(request_, video=str(folder), masks={0: mask(tmp_path, 0)})
    assert run_video(request)["frames"] == 1
    folder = write_folder(tmp_path / "images", scene(4), "img_{:d}0.png")
    named = tmp_path / "img_20.png"
    save_labels(named, scene_labels(2))
    report = run_video(replace(request_, video=str(folder), masks={None: named}))
    assert [m["frame"] for m in report["masks"]] == [2]
    for index, labels in enumerate(masks_of(request_)):
        check_follows(labels, index, 1, 2)


def test_on_frame_gives_provisional_and_final_results(request_: RunRequest, tmp_path: Path) -> None:
    updates: list[FrameUpdate] = []
    progress: list[Progress] = []
    request = replace(request_, masks={2: mask(tmp_path, 2), 5: mask(tmp_path, 5)}, end=7)
    run_video(request, on_frame=updates.append, on_progress=progress.append)
    assert [(u.index, u.is_final, u.direction) for u in updates] == [
        (2, False, "backward"), (1, False, "backward"), (0, False, "backward"),
        (0, True, "backward"), (1, True, "backward"),
        (5, False, "backward"), (4, False, "backward"), (3, False, "backward"),
        (2, True, "forward"), (3, True, "both"), (4, True, "both"), (5, True, "forward"),
        (6, True, "forward"),
    ]  # fmt: skip
    backward = [p.backward for p in progress if p.backward is not None]
    assert [(b.source, b.done, b.count) for b in backward] == [
        (2, 0, 2), (2, 1, 2), (2, 2, 2), (5, 0, 2), (5, 1, 2), (5, 2, 2),
    ]  # fmt: skip
    finals = [update.result.labels for update in updates if update.is_final]
    assert all_same(finals, masks_of(request))


def test_probabilities_of_a_backward_pass_are_saved(request_: RunRequest, tmp_path: Path) -> None:
    request = replace(request_, save=frozenset({"masks", "probs"}))
    run_video(replace(request, masks={LAST: mask(tmp_path, LAST)}))
    with np.load(tmp_path / "out/probs/00003.npz") as saved:
        probs, ids = saved["probs"], saved["object_ids"]
    assert probs.shape == (2, *SCENE_HW)
    np.testing.assert_array_equal(
        np.where(probs.max(axis=0) > 0.5, ids[probs.argmax(axis=0)], 0), masks_of(request)[3]
    )


def test_live_source_runs_forward_only(
    request_: RunRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_file, "camera_address", lambda index: (request_.video, "matroska"))
    first, later = mask(tmp_path, 0), mask(tmp_path, 3)
    camera = replace(request_, video="0", end=5)
    report = run_video(replace(camera, masks={None: first, 3: later}))
    assert [m["direction"] for m in report["masks"]] == ["forward", "forward"]
    for masks, directions, message in (
        ({3: later}, {}, "frame 0, has no mask.*a live source runs forward only"),
        ({None: first, 3: later}, {3: "backward"}, "of frame 3 has the direction 'backward'"),
    ):
        with pytest.raises(InputError, match=message):
            run_video(replace(camera, masks=masks, directions=directions))


def test_full_disk_in_a_backward_pass_leaves_nothing(
    request_: RunRequest, tmp_path: Path, tiny_disk: Path
) -> None:
    clip = write_video(tmp_path / "long.mp4", scene(80))
    out = tiny_disk / "out"
    request = replace(request_, video=str(clip), out=out, masks={79: mask(tmp_path, 79)})
    with pytest.raises(OutputError, match=r"cannot write .*: No space left on device"):
        run_video(request)
    assert list(tiny_disk.iterdir()) == []


# --- resume -----------------------------------------------------------------------------------


def files(request: RunRequest) -> dict[int, tuple[int, bytes]]:
    assert request.out is not None
    paths = sorted((request.out / "masks").glob("*.png"))
    return {int(p.stem): (p.stat().st_mtime_ns, p.read_bytes()) for p in paths}


@pytest.mark.parametrize(
    ("added", "direction", "computed"),
    [
        (8, "backward", range(6, 9)),
        (8, "forward", range(8, 12)),
        (8, "both", range(6, 12)),
        (3, "backward", range(4)),
    ],
)
def test_resume_computes_the_frames_that_depend_on_a_mask(
    request_: RunRequest, tmp_path: Path, added: int, direction: Any, computed: range
) -> None:
    first = replace(request_, masks={5: mask(tmp_path, 5)})
    run_video(first)
    before, lines = files(first), lines_of(first)
    masks = {**first.masks, added: mask(tmp_path, added, 1, of=added - 1)}
    request = replace(first, masks=masks, directions={added: direction}, resume=True)
    report = run_video(request)
    after = files(request)
    assert [k for k in range(FRAMES) if after[k] != before[k]] == [*computed]
    assert report["frames_computed"] == len(computed)
    assert report["resumed_at"] == (computed[0] - 1 if computed[0] else None)
    kept = [k for k in range(FRAMES) if k not in computed]
    assert [lines_of(request)[k] for k in kept] == [lines[k] for k in kept]
    assert [line["frame"] for line in lines_of(request)] == list(range(FRAMES))
    unchanged = files(request)
    assert run_video(request) == report  # nothing is left to do
    assert files(request) == unchanged
    # The backward parts are those of a run from the beginning.
    run_video(replace(request, resume=False))
    if direction == "backward":
        assert {k: data for k, (_, data) in files(request).items()} == {
            k: data for k, (_, data) in after.items()
        }


@pytest.mark.parametrize("direction", [None, "both"])
def test_resume_keeps_directions_of_the_same_masks(
    request_: RunRequest, tmp_path: Path, direction: Any
) -> None:
    masks: dict[int | None, Path] = {
        2: mask(tmp_path, 2), 6: mask(tmp_path, 6, 1), 8: mask(tmp_path, 8),
    }  # fmt: skip
    run_video(replace(request_, masks=masks, directions={2: "backward", 6: "forward"}))
    masks[8] = mask(tmp_path, 8, 1)
    report = run_video(replace(request_, masks=masks, direction=direction, resume=True))
    kept = ["both"] * 3 if direction else ["backward", "forward", "both"]
    assert [m["direction"] for m in report["masks"]] == kept
    assert report["frames_computed"] == (FRAMES - 2 if direction else FRAMES - 7)
    masks[2] = mask(tmp_path, 2, 1)  # changed: the default again
    report = run_video(replace(request_, masks=masks, directions={6: "backward"}, resume=True))
    assert [m["direction"] for m in report["masks"]] == ["both", "backward", "both"]


def stop_at(update_of: Callable[[FrameUpdate], bool]) -> Callable[[FrameUpdate], None]:
    def on_frame(update: FrameUpdate) -> None:
        if update_of(update):
            raise KeyboardInterrupt

    return on_frame


def test_run_stopped_in_a_backward_pass_is_resumed(request_: RunRequest, tmp_path: Path) -> None:
    request = replace(request_, masks={5: mask(tmp_path, 5), 9: mask(tmp_path, 9)})
    run_video(replace(request, out=tmp_path / "whole"))
    whole = masks_of(replace(request, out=tmp_path / "whole"))
    assert request.out is not None
    with pytest.raises(KeyboardInterrupt):
        run_video(request, on_frame=stop_at(lambda u: u.index == 2))
    assert not request.out.exists()  # no frame was finished
    with pytest.raises(KeyboardInterrupt):
        run_video(request, on_frame=stop_at(lambda u: u.is_final and u.index == 3))
    assert sorted(files(request)) == [0, 1, 2, 3]
    request = replace(request, resume=True)
    with pytest.raises(KeyboardInterrupt):
        run_video(request, on_frame=stop_at(lambda u: not u.is_final and u.index == 7))
    assert sorted(files(request)) == [0, 1, 2, 3, 4]
    assert not [path for path in request.out.iterdir() if path.name.startswith(".")]
    report = run_video(request)
    assert report["resumed_at"] == 4
    assert all_same(masks_of(request), whole)


def test_killed_recomputation_keeps_the_lines_of_all_frames(
    request_: RunRequest, tmp_path: Path
) -> None:
    """A kill leaves the journal, and a spool that the next run removes."""
    first = replace(request_, masks={0: mask(tmp_path, 0)})
    run_video(first)
    before = files(first)
    request = replace(first, masks={**first.masks, 6: mask(tmp_path, 6, 1)}, resume=True,
                      directions={6: "backward"})  # fmt: skip
    assert request.out is not None
    out, lines = request.out, (request.out / "tracks.jsonl").read_bytes()
    partial = b""

    def stop(update: FrameUpdate) -> None:
        nonlocal partial
        if update.is_final and update.index == 4:
            partial = (out / "run.partial.json").read_bytes()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_video(request, on_frame=stop)
    assert [line["frame"] for line in lines_of(request)] == [*range(5), *range(7, FRAMES)]
    # The state after SIGKILL at this frame: the lines of both runs, the last one is cut.
    again = (out / "tracks.jsonl").read_bytes().splitlines(keepends=True)
    (out / "tracks.jsonl.partial").write_bytes(b"".join([lines, *again[1:5], again[5][:40]]))
    (out / "run.partial.json").write_bytes(partial)
    (out / "tracks.jsonl").unlink()
    (out / "run.json").unlink()
    abandoned = out / ".mpn-runtime-0123456789abcdef"
    abandoned.mkdir()
    report = run_video(request)
    assert not abandoned.exists()
    assert [line["frame"] for line in lines_of(request)] == list(range(FRAMES))
    after = files(request)
    assert [k for k in range(FRAMES) if after[k] == before[k]] == [0, *range(7, FRAMES)]
    assert report["frames_computed"] == 2
