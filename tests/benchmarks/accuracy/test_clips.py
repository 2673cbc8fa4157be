from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.accuracy import lookalikes
from benchmarks.accuracy.lookalikes import CrossingClip, track_objects
from benchmarks.accuracy.pasting import SourceSequence
from benchmarks.accuracy.reappearance import ReappearanceClip
from benchmarks.report.schema import load_result
from mpn.errors import InputError
from mpn.types import UInt8Array
from tests.builders.engine_dirs import make_engine_dir

FRAMES = 30


@pytest.fixture(params=[True, False], ids=["mirrored", "later"])
def clip(davis_folder: Path, request: pytest.FixtureRequest) -> CrossingClip:
    return CrossingClip(
        davis_root=davis_folder,
        subject="koi",
        scene="pond",
        is_mirrored=request.param,
        frames=FRAMES,
    )


class Given:
    """Return given labels in the place of a pipeline."""

    def __init__(self, labels: Iterator[UInt8Array]) -> None:
        self._labels = labels

    def start(self, rgb: UInt8Array, labels: UInt8Array) -> Any:
        return SimpleNamespace(labels=next(self._labels))

    def step(self, rgb: UInt8Array) -> Any:
        return SimpleNamespace(labels=next(self._labels))


def tracked(clip: CrossingClip, change: Any) -> dict[str, Any]:
    """Measure the true labels of a clip, changed from frame to frame."""
    given = Given(change(t, labels) for t, (_, labels) in enumerate(clip.pictures()))
    return track_objects(clip, given)  # type: ignore[arg-type]


def test_crossing_clip_hides_rear_object_only(clip: CrossingClip) -> None:
    """Object 1 moves to the right, 2 to the left; only hidden pixels are missing."""
    frames = list(clip.crossing_frames())
    areas_px = np.array([[np.count_nonzero(f.labels == k) for k in (1, 2)] for f in frames])
    hidden_px = np.array([frame.hidden_px for frame in frames])
    crossing = np.flatnonzero(hidden_px)
    assert 0 < crossing[0] < FRAMES / 2 < crossing[-1] < FRAMES - 1
    front, rear = clip.front_id - 1, 2 - clip.front_id
    scene = SourceSequence(clip.davis_root, clip.scene, clip.resolution)
    for t, frame in enumerate(frames):
        _, whole = clip._copy(rear + 1, t, frame.labels.shape)
        _, in_front = clip._copy(front + 1, t, frame.labels.shape)
        assert areas_px[t, rear] == np.count_nonzero(whole) - frame.hidden_px
        assert areas_px[t, front] == np.count_nonzero(in_front)
        far = frame.labels[:, :8] == 0
        assert (frame.rgb[:, :8][far] == scene.image(t)[:, :8][far]).mean() > 0.9
    centres_x = [
        [np.nonzero(frames[t].labels == k)[1].mean() for k in (1, 2)] for t in (0, FRAMES - 1)
    ]
    (left, right), (after_1, after_2) = centres_x
    assert left < right
    assert after_1 > after_2


def test_lookalikes_kept_only_with_own_object(clip: CrossingClip) -> None:
    """Ids that change objects in the crossing, and a half-lost object, are not kept."""
    kept = tracked(clip, lambda t, labels: labels)
    assert kept["is_kept"]
    assert kept["iou_after"] == [1, 1]
    middle = kept["crossing"][0] + 1
    swap = np.array([0, 2, 1], np.uint8)
    swapped = tracked(clip, lambda t, labels: swap[labels] if t > middle else labels)
    assert not swapped["is_kept"]
    assert swapped["iou_before"] == [1, 1]
    assert swapped["iou_of_other_after"] == [1, 1]
    one_lost = tracked(clip, lambda t, labels: np.minimum(labels, 1) if t > middle else labels)
    assert not one_lost["is_kept"]


def test_crossing_without_separation_raises(clip: CrossingClip) -> None:
    frames = list(clip.crossing_frames())
    first = next(t for t, frame in enumerate(frames) if frame.hidden_px)
    cut = frames[: first + 1]
    given = Given(frame.labels for frame in cut)
    object.__setattr__(clip, "crossing_frames", lambda: iter(cut))
    with pytest.raises(InputError, match="do not cross and separate"):
        track_objects(clip, given)  # type: ignore[arg-type]


def test_reappearance_clip_has_no_pixel_while_absent(davis_folder: Path) -> None:
    clip = ReappearanceClip(davis_root=davis_folder, subject="koi", scene="pond", leaves=True)
    areas_px = [np.count_nonzero(labels) for _, labels in clip.pictures()]
    assert not any(areas_px[clip.gone_at : clip.returns_at])
    assert all(areas_px[: clip.present])
    assert all(areas_px[clip.returns_at :])


def test_lookalikes_command_writes_result(
    davis_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine_dir = make_engine_dir(tmp_path / "engines", with_osvos=True)
    out, clips = tmp_path / "lookalikes.json", tmp_path / "clips"
    arguments = ["--davis-root", davis_folder, "--engine-dir", engine_dir, "--pairs", "koi:pond"]
    arguments += ["--threads", "1", "--write", clips, "-o", out]
    monkeypatch.setattr("sys.argv", ["lookalikes", *map(str, arguments)])
    assert lookalikes.main() == 0
    result = load_result(out)
    assert list(result["kept"]) == ["with_osvos", "without_osvos"]
    assert set(result["clips"]) == {"koi-over-pond-mirrored", "koi-over-pond-later"}
    assert (clips / "ImageSets" / "2017" / "val.txt").read_text().split() == sorted(result["clips"])
    assert result["options"]["osvos.mode"] == "auto"
