from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from mpn.errors import InputError, MaskError, OutputError, VideoError
from mpn.masks import load_labels, save_labels
from mpn.runtime.options import OsvosOptions, PipelineOptions
from mpn.runtime.session.request import Progress, RunRequest
from mpn.runtime.session.session import run_video
from tests.builders.engine_dirs import make_engine_dir
from tests.builders.tiny_disk import tiny_disk as tiny_disk
from tests.runtime.media.clips import NTSC, SCENE_HW, scene, scene_labels, write_folder, write_video
from tests.tolerances import TRACKED_IOU_MIN

FRAMES = 12


@pytest.fixture(scope="module")
def engine_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_engine_dir(tmp_path_factory.mktemp("engines") / "tiny", frame_size_hw=SCENE_HW)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", scene(FRAMES))


@pytest.fixture
def request_(clip: Path, engine_dir: Path, tmp_path: Path) -> RunRequest:
    save_labels(tmp_path / "first.png", scene_labels(0))
    return RunRequest(
        video=str(clip),
        masks={None: tmp_path / "first.png"},
        out=tmp_path / "out",
        engine_dir=engine_dir,
        backend="cpu",
        threads=1,
    )


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def run_json(out: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((out / "run.json").read_text())
    return report


def track_lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "tracks.jsonl").read_text().splitlines()]


def overlay_times(out: Path) -> list[Fraction]:
    with av.open(str(out / "overlay.mp4")) as container:
        return [frame.pts * frame.time_base for frame in container.decode(video=0)]


def mask_names(count: int, start: int = 0) -> set[str]:
    return {f"masks/{index:05d}.png" for index in range(start, start + count)}


def stop_after(frames: int, error: BaseException) -> Callable[[Progress], None]:
    def on_progress(progress: Progress) -> None:
        if progress.done == frames:
            raise error

    return on_progress


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max((a | b).sum(), 1))


# --- whole runs -------------------------------------------------------------------------------


def test_run_video_writes_masks_overlay_tracks_report(
    request_: RunRequest,
) -> None:
    seen: list[Progress] = []
    report = run_video(request_, on_progress=seen.append)
    out = request_.out
    assert out is not None
    assert files_in(out) == mask_names(FRAMES) | {"overlay.mp4", "tracks.jsonl", "run.json"}

    np.testing.assert_array_equal(load_labels(out / "masks/00000.png"), scene_labels(0))
    for index in range(FRAMES):
        labels = load_labels(out / f"masks/{index:05d}.png", size_hw=SCENE_HW)
        for object_id in (1, 2):
            overlap = iou(labels == object_id, scene_labels(index) == object_id)
            assert overlap >= TRACKED_IOU_MIN
    # Control: the first mask without motion does not pass.
    assert iou(scene_labels(0) == 1, scene_labels(FRAMES - 1) == 1) < TRACKED_IOU_MIN

    lines = track_lines(out)
    assert [line["frame"] for line in lines] == list(range(FRAMES))
    assert [track["state"] for track in lines[0]["objects"]] == ["given", "given"]
    assert overlay_times(out) == [i / NTSC for i in range(FRAMES)]
    assert [(p.done, p.computed, p.expected) for p in seen] == [
        (i + 1, i + 1, FRAMES) for i in range(FRAMES)
    ]
    assert report == run_json(out)
    assert report["state"] == "complete"
    assert report["frames"] == report["frames_computed"] == FRAMES
    assert report["backend"]["used"] == "cpu"
    assert report["engine"]["digests"].keys() == {"propagation.onnx"}
    assert report["options"]["crf"] is None
    assert report["video"]["fps"] == "30000/1001"
    assert report["stages"]["propagation"]["frames"] == FRAMES - 1
    assert report["stages"]["propagation"].keys() == {"frames", "min_s", "median_s", "p95_s"}


def test_only_requested_kinds_are_saved(request_: RunRequest) -> None:
    run_video(replace(request_, save=frozenset({"probs", "rle"}), end=3))
    assert files_in(request_.out or Path()) == {
        "probs/00000.npz", "probs/00001.npz", "probs/00002.npz", "rle.jsonl", "tracks.jsonl",
        "run.json",
    }  # fmt: skip
    with np.load((request_.out or Path()) / "probs/00002.npz") as saved:
        assert saved["probs"].shape == (2, *SCENE_HW)


def test_start_and_end_name_masks_by_their_frame(request_: RunRequest, tmp_path: Path) -> None:
    save_labels(tmp_path / "third.png", scene_labels(3))
    report = run_video(replace(request_, masks={3: tmp_path / "third.png"}, start=3, end=6))
    assert {n for n in files_in(request_.out or Path()) if "masks" in n} == mask_names(3, start=3)
    assert (report["video"]["start"], report["video"]["end"]) == (3, 6)


def test_masks_of_later_frames_correct_and_add(request_: RunRequest, tmp_path: Path) -> None:
    later = np.where(scene_labels(5) == 1, 1, 0).astype(np.uint8)
    later[2:8, 2:12] = 9
    save_labels(tmp_path / "later.png", later)
    report = run_video(replace(request_, masks={**request_.masks, 5: tmp_path / "later.png"}))
    assert report["object_ids"] == [1, 2, 9]
    ids = [
        [t["object_id"] for t in line["objects"]] for line in track_lines(request_.out or Path())
    ]
    assert ids == [[1, 2]] * 5 + [[1, 2, 9]] * (FRAMES - 5)


def test_davis_sequence_output_is_readable_by_evaluation(
    request_: RunRequest, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "JPEGImages/480p/pan", scene(3), "{:05d}.png")
    run_video(replace(request_, video=str(folder)))
    assert files_in(request_.out or Path()) == {
        "pan/00000.png", "pan/00001.png", "pan/00002.png",
        "_runs/pan/overlay.mp4", "_runs/pan/tracks.jsonl", "_runs/pan/run.json",
    }  # fmt: skip


def test_odd_sized_video_works(request_: RunRequest, tmp_path: Path) -> None:
    frames = [frame[:63, :95] for frame in scene(3)]
    clip = write_video(tmp_path / "odd.mkv", frames, codec="ffv1", pix_fmt="bgr0")
    save_labels(tmp_path / "odd.png", scene_labels(0)[:63, :95])
    run_video(replace(request_, video=str(clip), masks={None: tmp_path / "odd.png"}))
    with Image.open((request_.out or Path()) / "masks/00002.png") as image:
        assert image.size == (95, 63)


def test_running_again_replaces_the_results(request_: RunRequest) -> None:
    run_video(request_)
    run_video(replace(request_, end=4))
    assert {n for n in files_in(request_.out or Path()) if "masks" in n} == mask_names(4)


# --- errors that write no file ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"video": "absent.mp4"}, VideoError, "no such video"),
        ({"masks": {}}, InputError, "no mask was given"),
        ({"masks": {None: Path("absent.png")}}, MaskError, "no such mask"),
        ({"start": 99}, VideoError, "has 12 frames"),
        ({"engine_dir": Path("clip.mp4")}, Exception, "clip.mp4 is a video, not an engine"),
        (
            {"options": PipelineOptions(osvos=OsvosOptions(mode="blend"))},
            Exception,
            "no OSVOS engine",
        ),
    ],
)
def test_bad_requests_leave_nothing_behind(
    request_: RunRequest, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run_video(replace(request_, **change))
    assert not (request_.out or Path()).exists()


@pytest.mark.parametrize("size_hw", [(1, 1), (15, 64)])
def test_tiny_video_is_refused(
    request_: RunRequest, tmp_path: Path, size_hw: tuple[int, int]
) -> None:
    folder = write_folder(tmp_path / "tiny", [np.zeros((*size_hw, 3), np.uint8)] * 2)
    with pytest.raises(VideoError, match=f"is {size_hw[1]}x{size_hw[0]} .* at least 16x16"):
        run_video(replace(request_, video=str(folder)))
    assert not (request_.out or Path()).exists()


# --- runs that end early ---------------------------------------------------------------------


def test_cut_video_keeps_everything_up_to_the_cut(
    request_: RunRequest, clip: Path, tmp_path: Path
) -> None:
    whole = write_video(
        tmp_path / "whole.mp4", scene(FRAMES), container_options={"movflags": "+faststart"}
    )
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[:-100])  # a few frames; the first one is most of the file
    with pytest.raises(VideoError, match=r"cut short; the \d+ frames done are in ") as caught:
        run_video(replace(request_, video=str(cut)))
    out = request_.out or Path()
    report = run_json(out)
    count = report["frames"]
    assert 2 <= count < FRAMES
    assert str(caught.value).endswith(f"the {count} frames done are in {out / 'masks'}")
    assert "\n" not in str(caught.value)
    assert report["state"] == "failed"
    assert "cut short" in report["error"]
    assert files_in(out) == mask_names(count) | {"overlay.mp4", "tracks.jsonl", "run.json"}
    assert len(overlay_times(out)) == len(track_lines(out)) == count


def test_full_disk_keeps_the_masks_that_were_complete(
    request_: RunRequest, tiny_disk: Path, tmp_path: Path
) -> None:
    clip = write_video(tmp_path / "long.mp4", scene(60))
    out = tiny_disk / "out"
    with pytest.raises(OutputError, match=r"cannot write .*: No space left on device"):
        run_video(replace(request_, video=str(clip), out=out))
    assert not [name for name in files_in(out) if name.endswith((".partial", "overlay.mp4"))]
    masks = sorted((out / "masks").iterdir())
    assert len(masks) > 5
    for mask in masks:
        load_labels(mask, size_hw=SCENE_HW)
    assert len(track_lines(out)) in (len(masks), len(masks) + 1)


def test_interrupted_run_finishes_its_files(request_: RunRequest) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_video(request_, on_progress=stop_after(5, KeyboardInterrupt()))
    out = request_.out or Path()
    assert run_json(out)["state"] == "interrupted"
    assert files_in(out) == mask_names(5) | {"overlay.mp4", "tracks.jsonl", "run.json"}
    assert len(overlay_times(out)) == 5


def test_a_bug_elsewhere_keeps_its_type(request_: RunRequest) -> None:
    with pytest.raises(ZeroDivisionError):
        run_video(request_, on_progress=stop_after(3, ZeroDivisionError()))
    assert run_json(request_.out or Path())["state"] == "failed"


def test_void_pixels_and_aspect_ratio_are_reported_and_kept(
    request_: RunRequest, tmp_path: Path
) -> None:
    def anamorphic(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(16, 11)

    path = write_video(tmp_path / "wide.mp4", scene(2), setup=anamorphic)
    labels = scene_labels(0)
    labels[0, :3] = 255
    save_labels(tmp_path / "void.png", labels)
    given = replace(request_, video=str(path), masks={None: tmp_path / "void.png"})
    report = run_video(given)
    assert request_.out is not None
    assert report["warnings"] == run_json(request_.out)["warnings"]
    assert report["warnings"][0].startswith("3 pixels of value 255 in the mask ")
    with av.open(str(request_.out / "overlay.mp4")) as container:
        assert container.streams.video[0].sample_aspect_ratio == Fraction(16, 11)
