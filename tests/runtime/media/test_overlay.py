from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from mpn._common import h264
from mpn._common.h264 import h264_encoder
from mpn.errors import OutputError
from mpn.masks import DAVIS_PALETTE
from mpn.runtime.media.overlay import OVERLAY_PALETTE, OverlayWriter, draw_overlay
from mpn.types import Frame, StepResult, UInt8Array
from tests.runtime.media.clips import NTSC, level_frame, noise_frame
from tests.tolerances import CODEC_MEAN_LEVEL


def frame_and_result(
    index: int, rgb: np.ndarray, pts_s: Fraction, labels: np.ndarray | None = None
) -> tuple[Frame, StepResult]:
    labels = np.zeros(rgb.shape[:2], np.uint8) if labels is None else labels
    probs = np.zeros((0, *labels.shape), np.float32)
    return (
        Frame(index=index, rgb=rgb, pts_s=pts_s, name=f"{index:05d}"),
        StepResult(index=index, labels=labels, probs=probs, object_ids=(), tracks=()),
    )


def write_overlay(
    path: Path, frames: list[np.ndarray], pts_s: list[Fraction], fps: Fraction, base: Fraction
) -> None:
    size_hw = frames[0].shape[:2]
    writer = OverlayWriter(path, size_hw=size_hw, fps=fps, time_base=base)
    for index, (rgb, time) in enumerate(zip(frames, pts_s, strict=True)):
        writer.write(*frame_and_result(index, rgb, time))
    assert not path.exists()
    writer.close()


def test_overlay_tints_objects_and_keeps_background() -> None:
    rgb = noise_frame(0, (20, 30))
    labels = np.zeros((20, 30), np.uint8)
    labels[5:15, 5:12] = 1
    labels[5:15, 12:20] = 2
    drawn = draw_overlay(rgb, labels)
    np.testing.assert_array_equal(drawn[labels == 0], rgb[labels == 0])
    assert drawn[5, 8].tolist() == OVERLAY_PALETTE[1].tolist()  # outline of object 1, opaque
    assert drawn[10, 11].tolist() == OVERLAY_PALETTE[1].tolist()  # at the border with object 2
    assert drawn[10, 12].tolist() == OVERLAY_PALETTE[2].tolist()
    expected = np.rint(rgb[10, 8] * 0.5 + OVERLAY_PALETTE[1] * 0.5)
    assert np.abs(drawn[10, 8] - expected).max() <= 1
    np.testing.assert_array_equal(rgb, noise_frame(0, (20, 30)))  # the input is unchanged


def least_distances(palette: UInt8Array) -> np.ndarray:
    """Return the CIEDE2000 distance of each colour to the nearest one before it.

    Sharma, Wu, Dalal: The CIEDE2000 color-difference formula, 2005.
    """
    rgb = palette.astype(np.float32)[None] / 255
    light, a, b = np.moveaxis(cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB)[0].astype(np.float64), -1, 0)
    c = np.hypot(a, b)
    mean = (c[:, None] + c) / 2
    g = 0.5 * (1 - np.sqrt(mean**7 / (mean**7 + 25.0**7)))
    a1, a2 = (1 + g) * a[:, None], (1 + g) * a
    c1, c2 = np.hypot(a1, b[:, None]), np.hypot(a2, b)
    h1, h2 = np.degrees(np.arctan2(b[:, None], a1)), np.degrees(np.arctan2(b, a2))
    turn = (h2 - h1 + 180) % 360 - 180
    hue = 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn / 2))
    h, c, light_mean = (h1 + turn / 2) % 360, (c1 + c2) / 2, (light[:, None] + light) / 2
    t = 1 - 0.17 * np.cos(np.radians(h - 30)) + 0.24 * np.cos(np.radians(2 * h))
    t += 0.32 * np.cos(np.radians(3 * h + 6)) - 0.2 * np.cos(np.radians(4 * h - 63))
    away = (light_mean - 50) ** 2
    terms = (
        (light - light[:, None]) / (1 + 0.015 * away / np.sqrt(20 + away)),
        (c2 - c1) / (1 + 0.045 * c),
        hue / (1 + 0.015 * c * t),
    )
    rotation = -2 * np.sqrt(c**7 / (c**7 + 25.0**7))
    rotation *= np.sin(np.radians(60 * np.exp(-(((h - 275) / 25) ** 2))))
    distances = np.sqrt(sum(term**2 for term in terms) + rotation * terms[1] * terms[2])
    return np.array([distances[k, :k].min() for k in range(1, len(palette))])


def test_overlay_colours_of_the_first_ids_are_distinct() -> None:
    assert least_distances(OVERLAY_PALETTE[1:13]).min() > 20
    assert least_distances(OVERLAY_PALETTE[1:21]).min() > 17
    assert least_distances(OVERLAY_PALETTE[1:33]).min() > 13
    dull = DAVIS_PALETTE[1:21] * (255 / DAVIS_PALETTE[1:21].max(axis=1, keepdims=True))
    assert least_distances(dull).min() == 0, "positive control: ids 1, 8 and 9 of DAVIS"
    known = np.array([[255, 0, 0], [0, 255, 0]], np.uint8)
    assert least_distances(known) == pytest.approx(86.608, abs=0.02)


def test_without_objects_the_frame_is_copied() -> None:
    rgb = noise_frame(1)
    drawn = draw_overlay(rgb, np.zeros(rgb.shape[:2], np.uint8))
    np.testing.assert_array_equal(drawn, rgb)
    assert not np.shares_memory(drawn, rgb)


@pytest.mark.parametrize(
    ("fps", "time_base"),
    [(NTSC, Fraction(1, 30000)), (NTSC, 1 / NTSC), (Fraction(24), Fraction(1, 24)),
     (Fraction(25), Fraction(1, 12800))],
)  # fmt: skip
def test_rate_and_times_are_exact(tmp_path: Path, fps: Fraction, time_base: Fraction) -> None:
    path = tmp_path / "overlay.mp4"
    times = [Fraction(7) + i / fps for i in range(40)]  # a source need not begin at 0
    write_overlay(path, [level_frame(i) for i in range(40)], times, fps, time_base)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == fps
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        decoded = [frame.pts * frame.time_base for frame in container.decode(stream)]
    assert decoded == [i / fps for i in range(40)]
    assert [p.name for p in tmp_path.iterdir()] == ["overlay.mp4"]


def test_variable_times_are_kept(tmp_path: Path) -> None:
    base = Fraction(1, 600)
    times = [t * base for t in (0, 10, 15, 90, 91)]
    path = tmp_path / "overlay.mp4"
    write_overlay(path, [level_frame(i) for i in range(5)], times, Fraction(20), base)
    with av.open(str(path)) as container:
        assert [f.pts * f.time_base for f in container.decode(video=0)] == times


def test_repeated_times_of_a_damaged_source_still_make_a_file(tmp_path: Path) -> None:
    base = Fraction(1, 25)
    times = [t * base for t in (0, 1, 1, 0, 4)]
    path = tmp_path / "overlay.mp4"
    write_overlay(path, [level_frame(i) for i in range(5)], times, Fraction(25), base)
    with av.open(str(path)) as container:
        assert [f.pts * f.time_base / base for f in container.decode(video=0)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("size_hw", [(47, 63), (48, 63), (1, 1), (17, 2)])
def test_odd_sizes_are_padded_by_their_last_row_and_column(
    tmp_path: Path, size_hw: tuple[int, int]
) -> None:
    rgb = np.full((*size_hw, 3), 30, np.uint8)
    rgb[:, -1] = rgb[-1] = 200
    path = tmp_path / "overlay.mp4"
    write_overlay(path, [rgb] * 3, [Fraction(i, 24) for i in range(3)], Fraction(24),
                  Fraction(1, 24))  # fmt: skip
    with av.open(str(path)) as container:
        shown = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert shown.shape == (size_hw[0] + size_hw[0] % 2, size_hw[1] + size_hw[1] % 2, 3)
    if size_hw == (47, 63):
        assert shown[-1].mean() > 150
        assert shown[:, -1].mean() > 150


def test_colours_arrive_as_they_were(tmp_path: Path) -> None:
    colour = (200, 40, 90)
    path = tmp_path / "overlay.mp4"
    rgb = np.full((48, 64, 3), colour, np.uint8)
    write_overlay(path, [rgb], [Fraction(0)], Fraction(24), Fraction(1, 24))
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        assert (frame.colorspace, frame.color_range) == (1, 1)  # BT.709, limited
        mean = frame.to_ndarray(format="rgb24").reshape(-1, 3).mean(0)
        wrong = frame.to_ndarray(format="rgb24", src_colorspace="ITU601").reshape(-1, 3).mean(0)
    assert np.abs(mean - colour).max() <= CODEC_MEAN_LEVEL
    assert np.abs(wrong - colour).max() > CODEC_MEAN_LEVEL


def test_index_stands_in_front_so_that_a_browser_can_start(tmp_path: Path) -> None:
    path = tmp_path / "overlay.mp4"
    frames = [noise_frame(i) for i in range(5)]
    write_overlay(path, frames, [Fraction(i, 24) for i in range(5)], Fraction(24), Fraction(1, 24))
    data = path.read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")


def test_discard_leaves_nothing(tmp_path: Path) -> None:
    writer = OverlayWriter(
        tmp_path / "overlay.mp4", size_hw=(48, 64), fps=Fraction(24), time_base=Fraction(1, 24)
    )
    writer.write(*frame_and_result(0, noise_frame(0), Fraction(0)))
    writer.discard()
    assert list(tmp_path.iterdir()) == []


def test_folder_that_is_not_there_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot write .*overlay\.mp4: No such file"):
        OverlayWriter(
            tmp_path / "absent" / "overlay.mp4",
            size_hw=(48, 64), fps=Fraction(24), time_base=Fraction(1, 24),
        )  # fmt: skip


def test_missing_encoder_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(h264, "H264_ENCODERS", {"no-such-encoder": {}})
    with pytest.raises(OutputError, match=r"without an H\.264 encoder.*--save masks"):
        h264_encoder()


@pytest.mark.parametrize("ratio", [None, Fraction(16, 11), Fraction(8, 9)])
def test_overlay_keeps_the_sample_aspect_ratio(tmp_path: Path, ratio: Fraction | None) -> None:
    writer = OverlayWriter(
        tmp_path / "overlay.mp4",
        size_hw=(47, 63),
        fps=NTSC,
        time_base=1 / NTSC,
        sample_aspect_ratio=ratio,
    )
    writer.write(*frame_and_result(0, level_frame(0, (47, 63)), Fraction(0)))
    writer.close()
    with av.open(str(tmp_path / "overlay.mp4")) as container:
        assert container.streams.video[0].sample_aspect_ratio in {ratio, ratio or Fraction(1)}
