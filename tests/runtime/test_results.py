from __future__ import annotations

import json
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from mpn.errors import InputError, MaskError, VideoError
from mpn.masks import save_labels
from mpn.runtime.results import open_results
from mpn.runtime.session.request import RunRequest
from mpn.runtime.session.session import run_video
from tests.builders.engine_dirs import make_engine_dir
from tests.builders.output_folders import write_output_folder
from tests.runtime.media.clips import NTSC, SCENE_HW, scene, scene_labels, write_folder, write_video

FRAMES = 5
LABELS = [scene_labels(index) for index in range(FRAMES)]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", scene(FRAMES))


@pytest.fixture
def out(clip: Path, tmp_path: Path) -> Path:
    return write_output_folder(tmp_path / "out", clip, LABELS, names={2: "koi"}, with_probs=True)


def test_results_of_a_real_run_have_its_frames(clip: Path, tmp_path: Path) -> None:
    """The builder of the other tests writes a copy of this format."""
    save_labels(tmp_path / "first.png", LABELS[1])
    request = RunRequest(
        video=str(clip),
        masks={None: tmp_path / "first.png"},
        out=tmp_path / "out",
        engine_dir=make_engine_dir(tmp_path / "tiny", frame_size_hw=SCENE_HW),
        backend="cpu",
        threads=1,
        start=1,
        end=4,
        save=frozenset({"masks", "probs"}),
    )
    run_video(request)
    results = open_results(tmp_path / "out")
    assert [frame.index for frame in results.frames] == [1, 2, 3]
    assert (results.state, results.given, results.object_ids) == ("complete", (1,), (1, 2))
    assert np.array_equal(results.labels(1), LABELS[1])
    probs = results.probs(3)
    assert probs is not None
    assert list(probs) == [1, 2]
    with results.open_video() as video:
        read = [(entry.index, frame.index) for entry, frame in results.read_frames(video)]
    assert read == [(1, 1), (2, 2), (3, 3)]


def test_results_state_the_facts_of_the_run(out: Path, clip: Path) -> None:
    results = open_results(out)
    assert results.video_address == str(clip)
    assert (results.size_hw, results.fps) == (SCENE_HW, NTSC)
    assert (results.name_of(1), results.name_of(2)) == ("object 1", "koi")
    assert results.frame(3).tracks[0].area_px == np.count_nonzero(LABELS[3] == 1)
    for index, labels in enumerate(LABELS):
        assert np.array_equal(results.labels(index), labels)
    with pytest.raises(InputError, match="has no frame 5: it has frames 0 to 4"):
        results.labels(FRAMES)


def test_results_say_how_to_make_a_missing_mask(out: Path) -> None:
    results = open_results(out)
    (out / "masks" / "00002.png").unlink()
    with pytest.raises(MaskError, match=r"no such mask: .*00002\.png; .*--resume"):
        results.labels(2)
    (out / "masks" / "00003.png").write_bytes(b"cut")
    with pytest.raises(MaskError, match=r"00003\.png"):
        results.labels(3)


def test_results_probs_of_a_changed_mask_are_none(out: Path) -> None:
    results = open_results(out)
    probs = results.probs(2)
    assert probs is not None
    assert 0.4 < probs[2][LABELS[2] == 2].min() < probs[2].max() <= 1
    save_labels(results.mask_path(2), LABELS[3])
    assert results.probs(2) is None
    assert np.array_equal(results.labels(2), LABELS[3])


def test_results_of_a_killed_run_end_at_its_last_mask(clip: Path, tmp_path: Path) -> None:
    out = write_output_folder(tmp_path / "out", clip, LABELS, state="running")
    (out / "masks" / "00004.png").unlink()
    with (out / "tracks.jsonl.partial").open("a") as file:
        file.write('{"frame": 5, "name": "000')
    results = open_results(out)
    assert (results.state, len(results.frames)) == ("running", 4)
    (out / "masks" / "00002.png").unlink()
    with pytest.raises(MaskError, match=r"no such mask: .*00002.png"):
        results.labels(2)


@pytest.mark.parametrize("given", ["", "_runs/bear", "bear"])
def test_results_in_davis_layout_are_found(tmp_path: Path, given: str) -> None:
    folder = write_folder(tmp_path / "JPEGImages" / "480p" / "bear", scene(FRAMES))
    out = write_output_folder(tmp_path / "out", folder, LABELS, fps=Fraction(10))
    results = open_results(out / given)
    assert np.array_equal(results.labels(4), LABELS[4])
    with results.open_video() as video:
        times = [frame.pts_s for _, frame in results.read_frames(video, [2, 4])]
    assert times == [Fraction(2, 10), Fraction(4, 10)]
    shutil.copytree(out / "_runs" / "bear", out / "_runs" / "camel")
    with pytest.raises(InputError, match=r"holds 2 runs \(bear, camel\): give one"):
        open_results(out)


def test_results_video_that_moved_can_be_given(out: Path, clip: Path, tmp_path: Path) -> None:
    moved = shutil.copy(clip, tmp_path / "moved.mp4")
    report = json.loads((out / "run.json").read_text())
    report["video"] |= {"source": "gone.mp4", "path": "/nonexistent/gone.mp4"}
    (out / "run.json").write_text(json.dumps(report))
    results = open_results(out)
    with pytest.raises(VideoError, match=r"gone\.mp4 .* is not there .* with --video PATH"):
        results.open_video()
    with results.open_video(moved, start=2) as video:
        assert len(list(results.read_frames(video))) == FRAMES - 2


def test_results_refuse_another_video(tmp_path: Path) -> None:
    frames = scene(FRAMES)
    folder = write_folder(tmp_path / "frames", frames)
    results = open_results(write_output_folder(tmp_path / "out", folder, LABELS))
    short = write_folder(tmp_path / "short", frames[:3])
    changed = write_folder(tmp_path / "changed", [*frames[:3], frames[0], frames[4]])
    small = write_folder(tmp_path / "small", [frame[:48, :64] for frame in frames])
    with results.open_video(changed) as video, pytest.raises(VideoError, match="not the video of"):
        list(results.read_frames(video))
    with results.open_video(short) as video, pytest.raises(VideoError, match="ends before frame 3"):
        list(results.read_frames(video))
    with pytest.raises(VideoError, match=r"is 64x48 but the run in .* is \d+x\d+"):
        results.open_video(small)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda out: shutil.rmtree(out), "does not exist"),
        (lambda out: (out / "run.json").unlink(), "is no output folder of a run"),
        (lambda out: (out / "run.json").write_text("{"), "cannot read the results"),
        (lambda out: (out / "tracks.jsonl").unlink(), "holds no result of any frame"),
        (
            lambda out: (out / "run.json").write_text('{"schema_version": 1, "state": 3}'),
            "field 'state' must be a string, got 3",
        ),
    ],
)
def test_results_that_are_damaged_are_one_line(out: Path, change, message: str) -> None:
    change(out)
    with pytest.raises(InputError, match=message) as raised:
        open_results(out)
    assert "\n" not in str(raised.value)
