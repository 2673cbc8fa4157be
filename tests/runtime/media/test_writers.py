from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mpn.errors import OutputError
from mpn.formats.rle import counts_from_string, mask_from_counts
from mpn.runtime.media.overlay import OverlayWriter
from mpn.runtime.media.writers import MaskWriter, ProbsWriter, RleWriter, TracksWriter, Writer
from mpn.types import Frame, StepResult, Track
from tests.builders.tiny_disk import tiny_disk as tiny_disk
from tests.runtime.media.clips import noise_frame
from tests.tolerances import FLOAT16_PROB

SIZE_HW = (48, 64)


def frame_and_result(index: int) -> tuple[Frame, StepResult]:
    rng = np.random.default_rng(index)
    labels = rng.integers(0, 3, SIZE_HW).astype(np.uint8) * 2  # ids 2 and 4
    tracks = (
        Track(
            2,
            "tracked",
            "propagation",
            int((labels == 2).sum()),
            (0, 0, 64, 48),
            0.98765,
            reliability=0.61234,
        ),
        Track(4, "lost", "none", 0, None, 0.0),
    )
    return (
        Frame(index=index, rgb=noise_frame(index), pts_s=Fraction(index, 3), name=f"f{index}"),
        StepResult(
            index=index,
            labels=labels,
            probs=rng.random((2, *SIZE_HW), np.float32),
            object_ids=(2, 4),
            tracks=tracks,
        ),
    )


def fill(writer: Writer, frames: int) -> None:
    for index in range(frames):
        writer.write(*frame_and_result(index))
    writer.close()


def test_masks_are_palette_pngs_under_the_frames_names(tmp_path: Path) -> None:
    writer = MaskWriter(tmp_path)
    for index in range(3):
        writer.write(*frame_and_result(index))
    writer.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f0.png", "f1.png", "f2.png"]
    with Image.open(tmp_path / "f1.png") as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), frame_and_result(1)[1].labels)


def test_probs_keep_three_digits_and_their_ids(tmp_path: Path) -> None:
    frame, result = frame_and_result(0)
    ProbsWriter(tmp_path).write(frame, result)
    with np.load(tmp_path / "f0.npz", allow_pickle=False) as saved:
        assert saved["probs"].dtype == np.float16
        assert saved["object_ids"].tolist() == [2, 4]
        assert np.abs(saved["probs"].astype(np.float32) - result.probs).max() <= FLOAT16_PROB


def test_tracks_have_one_line_a_frame(tmp_path: Path) -> None:
    path = tmp_path / "tracks.jsonl"
    writer = TracksWriter(path)
    for index in range(3):
        writer.write(*frame_and_result(index))
    assert not path.exists()
    writer.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["frame"] for line in lines] == [0, 1, 2]
    assert lines[1]["name"] == "f1"
    assert lines[1]["pts_s"] == pytest.approx(1 / 3, abs=1e-6)
    assert lines[0]["objects"][0]["object_id"] == 2
    assert lines[0]["objects"][0]["confidence"] == 0.9877
    assert lines[0]["objects"][0]["reliability"] == 0.6123
    assert lines[0]["objects"][1] == {
        "object_id": 4, "state": "lost", "branch": "none", "area_px": 0, "box_xyxy": None,
        "confidence": 0.0, "reliability": None, "events": [],
    }  # fmt: skip
    assert [p.name for p in tmp_path.iterdir()] == ["tracks.jsonl"]


def test_lines_of_an_earlier_run_come_first(tmp_path: Path) -> None:
    writer = TracksWriter(tmp_path / "tracks.jsonl", ['{"frame": 0}', '{"frame": 1}\n'])
    writer.write(*frame_and_result(2))
    writer.close()
    lines = (tmp_path / "tracks.jsonl").read_text().splitlines()
    assert [json.loads(line)["frame"] for line in lines] == [0, 1, 2]


def test_a_failed_line_is_taken_back_and_the_others_are_kept(tiny_disk: Path) -> None:
    writer = TracksWriter(tiny_disk / "tracks.jsonl")
    with pytest.raises(OutputError):
        fill(writer, 500)
    writer.close()
    lines = [json.loads(line) for line in (tiny_disk / "tracks.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(range(len(lines)))
    assert 50 < len(lines) < 500


def test_lines_are_on_disk_during_the_run(tmp_path: Path) -> None:
    writer = TracksWriter(tmp_path / "tracks.jsonl")
    writer.write(*frame_and_result(0))
    assert (tmp_path / "tracks.jsonl.partial").read_text().endswith("}\n")
    writer.discard()
    assert list(tmp_path.iterdir()) == []


def test_rle_decodes_to_the_masks(tmp_path: Path) -> None:
    frame, result = frame_and_result(5)
    writer = RleWriter(tmp_path / "rle.jsonl")
    writer.write(frame, result)
    writer.close()
    line = json.loads((tmp_path / "rle.jsonl").read_text())
    for entry in line["objects"]:
        assert entry["segmentation"]["size"] == [48, 64]
        counts = counts_from_string(entry["segmentation"]["counts"])
        mask = mask_from_counts(counts, SIZE_HW)
        np.testing.assert_array_equal(mask, result.labels == entry["object_id"])


# --- a full disk -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["masks", "probs", "tracks", "overlay"])
def test_full_disk_is_one_line_and_leaves_nothing_half_written(tiny_disk: Path, kind: str) -> None:
    writers = {
        "masks": lambda: MaskWriter(tiny_disk),
        "probs": lambda: ProbsWriter(tiny_disk),
        "tracks": lambda: TracksWriter(tiny_disk / "tracks.jsonl"),
        "overlay": lambda: OverlayWriter(
            tiny_disk / "overlay.mp4", size_hw=SIZE_HW, fps=Fraction(24), time_base=Fraction(1, 24)
        ),
    }
    writer: Writer = writers[kind]()
    with pytest.raises(OutputError, match=r"^cannot write .*: No space left on device$"):
        fill(writer, 500)
    writer.discard()
    left = sorted(tiny_disk.iterdir())
    assert not [path for path in left if path.name.endswith(".partial")]
    if kind == "masks":
        assert len(left) > 5
        for number, path in enumerate(sorted(left, key=lambda p: int(p.stem[1:]))):
            with Image.open(path) as image:  # all of them are complete
                np.testing.assert_array_equal(image, frame_and_result(number)[1].labels)
    elif kind != "probs":
        assert left == []
