"""Videos for editors, decoded by FFmpeg."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from mpn.runtime.convert.conversion import convert_results
from mpn.runtime.media.video import open_video
from mpn.runtime.results import open_results
from tests.builders.output_folders import write_output_folder
from tests.runtime.convert.conftest import FRAMES, LABELS
from tests.runtime.media.clips import NTSC, SCENE_HW, scene, write_folder, write_video
from tests.tolerances import MATTE_LEVELS, PRORES_LEVELS


def decoded(path: Path) -> list[Any]:
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def plane(picture: Any, index: int) -> np.ndarray:
    """Return one plane of more than 8 bits."""
    flat = picture.planes[index]
    lines = np.frombuffer(flat, np.uint16).reshape(flat.height, -1)
    return lines[:, : flat.width].astype(int)


def alpha_levels(picture: Any) -> np.ndarray:
    """Return the alpha in the 10 bits that were encoded; FFmpeg decodes 12."""
    assert picture.format.name == "yuva444p12le"
    return plane(picture, 3) >> 2


def test_prores4444_alpha_is_exact(out: Path, soft_out: Path) -> None:
    [hard] = convert_results(out, ["prores4444"], object_ids=[2])
    for picture, labels in zip(decoded(hard), LABELS, strict=True):
        assert np.array_equal(alpha_levels(picture), (labels == 2) * 1023)
    [soft] = convert_results(soft_out, ["prores4444"])
    results = open_results(soft_out)
    for index, picture in enumerate(decoded(soft)):
        probs = results.probs(index)
        assert probs is not None
        alpha = np.minimum(probs[1] + probs[2], 1)
        assert len(np.unique(alpha)) > 5
        assert np.array_equal(alpha_levels(picture), np.rint(alpha * 1023))


def test_prores4444_colours_are_straight(soft_out: Path, clip: Path) -> None:
    """Inside, at the edge and outside they are those of the video."""
    [path] = convert_results(soft_out, ["prores4444"])
    with open_video(clip) as video:
        frames = [frame.rgb.astype(int) for frame in video]
    for index, picture in enumerate(decoded(path)):
        shown = picture.to_ndarray(format="rgb24").astype(int)
        alpha = alpha_levels(picture)
        for part in (alpha == 1023, (alpha > 100) & (alpha < 900), alpha == 0):
            assert np.abs(shown - frames[index])[part].mean() < PRORES_LEVELS
        other = frames[(index + 1) % FRAMES]
        assert np.abs(shown - other).mean() > 10 * PRORES_LEVELS


def test_mattes_are_exact_at_half(out: Path, soft_out: Path) -> None:
    [folder] = convert_results(out, ["mattes"])
    assert sorted(path.name for path in folder.iterdir()) == ["koi.mov", "object_1.mov"]
    for object_id, name in {1: "object_1.mov", 2: "koi.mov"}.items():
        for picture, labels in zip(decoded(folder / name), LABELS, strict=True):
            assert picture.format.name == "yuv422p10le"
            assert np.array_equal(plane(picture, 0) > 502, labels == object_id)
            assert (plane(picture, 1) == 512).all()
    [soft] = convert_results(soft_out, ["mattes"], object_ids=[2])
    results = open_results(soft_out)
    errors = []
    for index, picture in enumerate(decoded(soft / "koi.mov")):
        probs = results.probs(index)
        assert probs is not None
        levels = (plane(picture, 0) - 64) / 876 * 255
        errors.append(np.abs(levels - probs[2] * 255).max())
        assert np.abs(levels - (probs[2] > 0.5) * 255).max() > 20 * MATTE_LEVELS
    assert max(errors) < MATTE_LEVELS


@pytest.mark.parametrize("name", ["prores4444.mov", "mattes/koi.mov"])
def test_movies_keep_times_shape_and_colour_tags(tmp_path: Path, name: str) -> None:
    """The clip has a variable frame rate, an odd size and the tags of BT.601."""
    size_hw = (SCENE_HW[0] - 1, SCENE_HW[1] - 3)
    frames = [frame[: size_hw[0], : size_hw[1]] for frame in scene(FRAMES)]
    ticks = [0, 20, 35, 90]

    def setup(stream: Any) -> None:
        context = stream.codec_context
        context.color_primaries, context.color_trc, context.colorspace = 5, 6, 5
        context.sample_aspect_ratio = Fraction(16, 11)

    clip = write_video(
        tmp_path / "clip.mp4", frames, pts=ticks, time_base=Fraction(1, 600), setup=setup,
        pix_fmt="yuv444p",
    )  # fmt: skip
    labels = [mask[: size_hw[0], : size_hw[1]] for mask in LABELS]
    out = write_output_folder(tmp_path / "out", clip, labels, names={2: "koi"})
    convert_results(out, [name.partition("/")[0].removesuffix(".mov")], start=1)
    with av.open(str(out / "converted" / name)) as container:
        stream = container.streams.video[0]
        pictures = list(container.decode(stream))
        assert stream.sample_aspect_ratio == Fraction(16, 11)
        assert (stream.height, stream.width) == size_hw
        assert stream.codec_context.name == "prores"
    times = [picture.pts * picture.time_base for picture in pictures]
    assert times == [Fraction(t - 20, 600) for t in ticks[1:]]
    tags = {(p.color_primaries, p.color_trc, p.colorspace, p.color_range) for p in pictures}
    assert tags == {(5, 1, 6, 1) if name == "prores4444.mov" else (1, 1, 1, 1)}


@pytest.mark.parametrize("rate", [NTSC, Fraction(24)])
def test_movies_keep_the_frame_rate(tmp_path: Path, rate: Fraction) -> None:
    folder = write_folder(tmp_path / "frames", scene(FRAMES))
    out = write_output_folder(tmp_path / "out", folder, LABELS, fps=rate)
    [path] = convert_results(out, ["prores4444"])
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == rate
        assert stream.frames == FRAMES
        times = [frame.pts * frame.time_base for frame in container.decode(stream)]
    assert times == [index / rate for index in range(FRAMES)]
    content = path.read_bytes()
    assert b"colrnclc\0\1\0\1\0\1" in content
    sample = content.index(b"ap4h", content.index(b"stsd"))
    assert content[sample + 78 : sample + 80] == b"\0\x20", "32 bits a pixel: it has alpha"
