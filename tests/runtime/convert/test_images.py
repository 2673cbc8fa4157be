"""Images for editors, read by the packages of others: Pillow and OpenEXR."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mpn.runtime.convert.conversion import convert_results
from mpn.runtime.convert.exr import exr_from_channels
from mpn.runtime.convert.images import safe_names
from mpn.runtime.media.video import open_video
from mpn.runtime.results import open_results
from tests.runtime.convert.conftest import FRAMES, LABELS
from tests.runtime.media.clips import NTSC

OpenEXR = pytest.importorskip("OpenEXR")


def read_exr(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return header and channels as the library of the OpenEXR project reads them."""
    with OpenEXR.File(str(path), separate_channels=True) as file:
        pixels = {name: channel.pixels.copy() for name, channel in file.channels().items()}
        return dict(file.header()), pixels


def test_rgba_png_is_the_frame_inside_the_mask(out: Path, clip: Path) -> None:
    [folder] = convert_results(out, ["rgba-png"], object_ids=[2])
    assert [path.name for path in sorted(folder.iterdir())] == [
        f"{i:05d}.png" for i in range(FRAMES)
    ]
    with open_video(clip) as video:
        for index, frame in enumerate(video):
            image = Image.open(folder / f"{index:05d}.png")
            rgba = np.asarray(image)
            inside = LABELS[index] == 2
            assert image.mode == "RGBA"
            assert inside.any()
            assert np.array_equal(rgba[..., 3], inside * 255)
            assert np.array_equal(rgba[inside][:, :3], frame.rgb[inside])
            assert not rgba[~inside].any()


def test_rgba_png_with_probs_has_soft_straight_alpha(soft_out: Path, clip: Path) -> None:
    """A premultiplied picture would have darker colours at the edge."""
    [folder] = convert_results(soft_out, ["rgba-png"], start=2, end=3)
    rgba = np.asarray(Image.open(folder / "00002.png"))
    probs = open_results(soft_out).probs(2)
    assert probs is not None
    alpha = np.rint(np.clip(probs[1] + probs[2], 0, 1) * 255)
    edge = (alpha > 20) & (alpha < 235)
    assert edge.sum() > 50
    assert np.array_equal(rgba[..., 3], alpha)
    with open_video(clip, start=2) as video:
        rgb = video.first_frame.rgb
    assert np.array_equal(rgba[edge][:, :3], rgb[edge])


def test_exr_has_one_exact_layer_per_object(soft_out: Path) -> None:
    [folder] = convert_results(soft_out, ["exr"])
    results = open_results(soft_out)
    for index in range(FRAMES):
        header, layers = read_exr(folder / f"{index:05d}.exr")
        probs = results.probs(index)
        assert probs is not None
        assert set(layers) == {"a_b.A", "koi.A"}
        assert layers["koi.A"].dtype == np.float16
        assert np.array_equal(layers["a_b.A"], probs[1])
        assert np.array_equal(layers["koi.A"], probs[2])
        assert not np.array_equal(probs[1], probs[2])
        assert header["framesPerSecond"] == Fraction(NTSC)
        assert header["pixelAspectRatio"] == 1


@pytest.mark.parametrize("size_hw", [(1, 1), (17, 5), (64, 33)])
def test_exr_of_any_pixels_is_exact(tmp_path: Path, size_hw: tuple[int, int]) -> None:
    """Noise is stored without compression; a name of 62 bytes needs a flag."""
    rng = np.random.default_rng(0)
    noise = rng.uniform(0, 1, size_hw).astype(np.float16).astype(np.float32)
    flat = np.full(size_hw, 0.25, np.float32)
    path = tmp_path / "image.exr"
    names = ("z.A", "B.A", "long" * 15 + ".A")
    planes = dict(zip(names, (noise, flat, noise[::-1]), strict=True))
    path.write_bytes(
        exr_from_channels(planes, fps=Fraction(25), sample_aspect_ratio=Fraction(4, 3))
    )
    header, layers = read_exr(path)
    assert set(layers) == set(names)
    for name in names:
        assert np.array_equal(layers[name], planes[name])
    assert header["pixelAspectRatio"] == np.float32(4 / 3)


def test_layer_names_are_safe_and_different() -> None:
    names = {1: "a.b/c", 2: "Koi", 3: "koi", 4: "..", 5: "Fisch\n"}
    assert safe_names(names) == {1: "a_b_c", 2: "Koi_2", 3: "koi_3", 4: "object_4", 5: "Fisch"}
