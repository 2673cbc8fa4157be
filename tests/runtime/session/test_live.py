"""Frames one by one; tests of the service compare the masks with those of a run."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpn.errors import InputError, MaskError, OutputError
from mpn.masks import load_labels
from mpn.runtime.session.live import LiveMask, LiveRun
from mpn.runtime.session.request import RunRequest
from mpn.types import UInt8Array
from tests.builders.engine_dirs import make_engine_dir
from tests.runtime.media.clips import SCENE_HW, scene, scene_labels

FRAMES = scene(3)


@pytest.fixture(scope="module")
def engine_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_engine_dir(tmp_path_factory.mktemp("engines") / "tiny", frame_size_hw=SCENE_HW)


def box(object_id: int) -> UInt8Array:
    labels = np.zeros(SCENE_HW, np.uint8)
    labels[5:20, 5:20] = object_id
    return labels


def live(out: Path, engine_dir: Path, labels: UInt8Array, save: Any = ("masks",)) -> LiveRun:
    request = RunRequest(
        video="frames", masks={}, out=out, engine_dir=engine_dir, save=frozenset(save)
    )
    return LiveRun(request, FRAMES[0], LiveMask(labels, Path("m.png")), fps=Fraction(25))


def test_correction_of_first_frame_is_its_mask(engine_dir: Path, tmp_path: Path) -> None:
    """Control: without it the masks of the next frame differ."""
    both = np.where(box(3) != 0, box(3), scene_labels(0)).astype(np.uint8)
    results = {}
    for name, first in (("merged", both), ("corrected", scene_labels(0)), ("plain", None)):
        with live(tmp_path / name, engine_dir, scene_labels(0) if first is None else first) as run:
            if name == "corrected":
                run.correct(LiveMask(box(3), Path("c.png"), {3: "ball"}))
            results[name] = run.step(FRAMES[1]).labels
    assert np.array_equal(results["corrected"], results["merged"])
    assert not np.array_equal(results["plain"], results["merged"])
    report = json.loads((tmp_path / "corrected" / "run.json").read_text())
    assert report["object_names"] == {"3": "ball"}
    assert (report["state"], report["frames"]) == ("interrupted", 2)  # close() writes the latest


def test_refused_frame_and_mask_change_nothing(engine_dir: Path, tmp_path: Path) -> None:
    with live(tmp_path / "out", engine_dir, scene_labels(0)) as run:
        for wrong in (np.zeros((8, 8, 3), np.uint8), FRAMES[1][:-1]):
            with pytest.raises(InputError, match="one size"):
                run.step(wrong)
        with pytest.raises(MaskError, match=r"no object|empty"):
            run.step(FRAMES[1], LiveMask(np.zeros(SCENE_HW, np.uint8), Path("m.png")))
        with pytest.raises(InputError):
            run.correct(LiveMask(np.ones((8, 8), np.uint8), Path("m.png")))
        expected = run.step(FRAMES[1]).labels
        report = run.finish()
    assert (report["state"], report["frames"]) == ("complete", 2)
    saved = load_labels(tmp_path / "out" / "masks" / "00001.png", allow_empty=True)
    assert np.array_equal(saved, expected)
    with live(tmp_path / "again", engine_dir, scene_labels(0)) as run:
        assert np.array_equal(run.step(FRAMES[1]).labels, expected)
    with pytest.raises(OutputError, match="earlier run"):
        live(tmp_path / "out", engine_dir, scene_labels(0))


def test_all_results_have_each_frame_once(engine_dir: Path, tmp_path: Path) -> None:
    """Also a frame that was corrected twice; ``before`` has its first mask."""
    with live(tmp_path, engine_dir, scene_labels(0), ("masks", "rle", "overlay", "probs")) as run:
        first = run.step(FRAMES[1]).labels
        run.correct(LiveMask(box(1), Path("a.png")))
        last = run.correct(LiveMask(box(4), Path("b.png"))).labels
        run.step(FRAMES[2])
        run.finish()
    for name in ("tracks.jsonl", "rle.jsonl"):
        lines = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        assert [line["frame"] for line in lines] == [0, 1, 2]
    assert np.array_equal(load_labels(tmp_path / "masks" / "00001.png", allow_empty=True), last)
    assert np.array_equal(load_labels(tmp_path / "before" / "00001.png", allow_empty=True), first)
    assert len(list((tmp_path / "probs").iterdir())) == 3
    assert (tmp_path / "overlay.mp4").stat().st_size > 0
