"""Whole runs with fine-tuning."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpn.errors import EngineError, InputError
from mpn.masks import load_labels, save_labels
from mpn.runtime.finetune.loop import FinetuneProgress
from mpn.runtime.options import CrfOptions, FinetuneOptions, PipelineOptions
from mpn.runtime.session.request import Progress, RunRequest
from mpn.runtime.session.session import run_video
from tests.builders.engine_dirs import make_engine_dir
from tests.builders.learning_dirs import make_adaptable_engine_dir
from tests.runtime.media.clips import SCENE_HW, scene, scene_labels, write_video

FRAMES = 8
QUICK = FinetuneOptions(steps=4, size=65, batch=2)


@pytest.fixture(scope="module")
def engine_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engines")
    return make_adaptable_engine_dir(folder / "tiny", frame_size_hw=SCENE_HW)


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
        options=PipelineOptions(finetune=QUICK),
        save=frozenset({"masks", "probs"}),
    )


def probs_of(request: RunRequest) -> np.ndarray:
    paths = sorted(((request.out or Path()) / "probs").glob("*.npz"))
    assert len(paths) == FRAMES
    return np.stack([np.load(path)["probs"] for path in paths])


def masks_of(request: RunRequest) -> np.ndarray:
    folder = (request.out or Path()) / "masks"
    return np.stack([load_labels(path, allow_empty=True) for path in sorted(folder.glob("*.png"))])


def test_cache_that_cannot_be_written_is_one_warning(request_: RunRequest, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    finetune = replace(QUICK, cache_dir=tmp_path / "file" / "cache")
    report = run_video(replace(request_, options=PipelineOptions(finetune=finetune)))
    (warning,) = report["warnings"]  # for two objects
    assert warning.startswith("fine-tuned weights are not kept for the next run (choose a folder")
    assert "cache: " in warning
    assert [entry["finetuned"] for entry in report["finetune"]["objects"]] == [True, True]
    assert len(masks_of(request_)) == FRAMES


def test_each_object_is_finetuned_and_reported(request_: RunRequest) -> None:
    seen: list[FinetuneProgress] = []
    report = run_video(request_, on_finetune=seen.append)
    assert [(p.object_id, p.role, p.step, p.steps) for p in seen] == [
        (k, "propagation", step, 4) for k in (1, 2) for step in (1, 2, 3, 4)
    ]
    finetuned = report["finetune"]
    assert finetuned["ran"] is True
    assert finetuned["seconds"] > 0
    assert (finetuned["options"]["steps"], finetuned["options"]["roles"]) == (4, ["propagation"])
    assert [
        (o["object_id"], o["role"], o["finetuned"], o["steps"]) for o in finetuned["objects"]
    ] == [
        (1, "propagation", True, 4),
        (2, "propagation", True, 4),
    ]
    assert report["stages"]["finetune"]["frames"] == 1
    assert report["fps_after_finetune"] > report["fps"] > 0
    assert report["state"] == "complete"


def test_the_same_input_and_seed_give_the_same_masks_twice(
    request_: RunRequest, tmp_path: Path
) -> None:
    run_video(request_)
    first, probs = masks_of(request_), probs_of(request_)
    again = replace(request_, out=tmp_path / "again")
    run_video(again)
    assert np.array_equal(masks_of(again), first)
    assert np.array_equal(probs_of(again), probs)
    # Controls: another seed, and no fine-tuning, give other results.
    for name, finetune in (("seed", replace(QUICK, seed=1)), ("off", None)):
        options = PipelineOptions(finetune=finetune)
        other = replace(request_, out=tmp_path / name, options=options)
        run_video(other)
        assert not np.array_equal(probs_of(other), probs)


def test_a_second_run_takes_the_weights_that_the_first_one_kept(
    request_: RunRequest, tmp_path: Path
) -> None:
    finetune = replace(QUICK, cache_dir=tmp_path / "cache")
    kept = replace(request_, options=PipelineOptions(finetune=finetune))
    assert [o["cached"] for o in run_video(kept)["finetune"]["objects"]] == [False, False]
    probs = probs_of(kept)
    assert [o["cached"] for o in run_video(kept)["finetune"]["objects"]] == [True, True]
    assert np.array_equal(probs_of(kept), probs)
    # Options of stages after the network do not change the weights.
    changed = replace(kept, options=replace(kept.options, crf=CrfOptions()))
    assert [o["cached"] for o in run_video(changed)["finetune"]["objects"]] == [True, True]


def interrupted(request: RunRequest, frames: int) -> None:
    def stop(progress: Progress) -> None:
        if progress.done == frames:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_video(request, on_progress=stop)


@pytest.mark.parametrize("is_kept", [False, True])
def test_resumed_run_finetunes_to_the_same_weights(
    request_: RunRequest, tmp_path: Path, is_kept: bool
) -> None:
    finetune = replace(QUICK, cache_dir=tmp_path / "cache" if is_kept else None)
    options = PipelineOptions(finetune=finetune)
    request = replace(request_, options=options, save=frozenset({"masks"}))
    interrupted(request, 4)
    assert json.loads(((request.out or Path()) / "run.json").read_text())["finetune"]["ran"] is True
    report = run_video(replace(request, resume=True))
    assert report["frames_computed"] == FRAMES - 4
    assert [o["cached"] for o in report["finetune"]["objects"]] == [is_kept] * 2
    unbroken = replace(request, out=tmp_path / "unbroken")
    run_video(unbroken)
    resumed, whole = masks_of(request), masks_of(unbroken)
    assert np.array_equal(resumed[:4], whole[:4])
    # A resumed run starts from the mask, not from the soft probability.
    assert (resumed != whole).mean() < 0.02


@pytest.mark.parametrize(
    ("finetune", "message"),
    [
        (replace(QUICK, seed=7), r"cannot resume: finetune\.seed was 0 and is now 7"),
        (replace(QUICK, steps=5), r"cannot resume: finetune\."),
        (None, r"cannot resume: finetune"),
    ],
)
def test_a_run_is_not_resumed_with_another_fine_tuning(
    request_: RunRequest, finetune: FinetuneOptions | None, message: str
) -> None:
    request = replace(request_, save=frozenset({"masks"}))
    interrupted(request, 3)
    with pytest.raises(InputError, match=message):
        run_video(replace(request, resume=True, options=PipelineOptions(finetune=finetune)))


def test_objects_of_later_masks_are_finetuned_in_their_frame(
    request_: RunRequest, tmp_path: Path
) -> None:
    later = np.where(scene_labels(3) == 1, 1, 0).astype(np.uint8)
    later[2:20, 2:24] = 9
    save_labels(tmp_path / "later.png", later)
    masks = {**request_.masks, 3: tmp_path / "later.png"}
    request = replace(request_, masks=masks, direction="forward")
    report = run_video(request)
    assert [o["object_id"] for o in report["finetune"]["objects"]] == [1, 2, 9]
    assert report["stages"]["finetune"]["frames"] == 2


def test_missing_finetune_graph_raises_only_if_required(
    request_: RunRequest, tmp_path: Path
) -> None:
    plain = make_engine_dir(tmp_path / "plain", frame_size_hw=SCENE_HW)
    request = replace(request_, engine_dir=plain)
    with pytest.raises(EngineError, match="have no graphs to fine-tune with"):
        run_video(replace(request, must_finetune=True))
    assert not (request.out or Path()).exists()
    report = run_video(request)
    assert report["finetune"]["ran"] is False
    assert "no graphs" in report["finetune"]["reason"]


def test_interrupted_finetuning_leaves_no_files(request_: RunRequest) -> None:
    def stop(progress: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_video(request_, on_finetune=stop)
    assert not (request_.out or Path()).exists()


def test_finetuning_that_gets_worse_gives_the_common_masks(
    request_: RunRequest, tmp_path: Path
) -> None:
    """A rate that is far too high: not used, not stored, and reported."""
    cache = tmp_path / "cache"
    worse = replace(QUICK, steps=16, learning_rate=1e3, cache_dir=cache, roles=("propagation",))
    report = run_video(replace(request_, options=PipelineOptions(finetune=worse)))
    with_worse = masks_of(request_)
    (entry,) = [e for e in report["finetune"]["objects"] if e["object_id"] == 1]
    assert not entry["finetuned"], entry
    assert any("the loss rose from" in warning for warning in report["warnings"])
    assert not list(cache.glob("*.safetensors"))
    without = replace(request_, options=PipelineOptions(), out=tmp_path / "plain")
    run_video(without)
    np.testing.assert_array_equal(with_worse, masks_of(without))
