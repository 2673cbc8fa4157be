import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mpn.errors import EvaluationError
from mpn.masks import DAVIS_PALETTE, load_annotation

LABELS = np.array([[0, 1, 2], [3, 2, 0]], np.uint8)


def palette_png(path: Path, labels: np.ndarray, palette_rgb: np.ndarray) -> Path:
    image = Image.fromarray(labels)
    image.putpalette(palette_rgb.astype(np.uint8).tobytes())
    image.save(path)
    return path


def raw_png(path: Path, *, bit_depth: int, colour_type: int, rows: list[bytes]) -> Path:
    """Write a PNG of a kind that Pillow does not write."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    width = len(rows[0]) * 8 // bit_depth
    header = struct.pack(">IIBBBBB", width, len(rows), bit_depth, colour_type, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    body = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


READABLE = {
    "indexed_davis.png": True,
    "indexed_evaluator.png": True,
    "gray8.png": True,
    "indexed_7_entries.png": False,  # holds the ids up to 6 only
    "one_bit.png": False,  # holds foreground only
}
REFUSED = ("requantized_BROKEN.png", "rgb_of_palette.png")


def test_every_golden_encoding_gives_its_ids_or_an_error(golden: Path) -> None:
    labels = np.load(golden / "palette" / "labels.npy")
    recorded = json.loads((golden / "palette" / "expected.json").read_text())
    assert set(recorded) == {*READABLE, *REFUSED}
    for name, whole in READABLE.items():
        read = load_annotation(golden / "palette" / name)
        assert np.unique(read).tolist() == recorded[name]["pil_values"], name
        if whole:
            np.testing.assert_array_equal(read, labels)
    for name in REFUSED:
        with pytest.raises(EvaluationError, match=name):
            load_annotation(golden / "palette" / name)


@pytest.mark.parametrize(("entries", "bits"), [(4, 2), (16, 4), (255, 8)])
def test_small_palettes_of_any_bit_depth_keep_their_ids(
    tmp_path: Path, entries: int, bits: int
) -> None:
    path = palette_png(tmp_path / "a.png", LABELS, DAVIS_PALETTE[:entries])
    assert path.read_bytes()[24] == bits
    np.testing.assert_array_equal(load_annotation(path), LABELS)


def test_colours_of_a_full_palette_do_not_matter(tmp_path: Path) -> None:
    shuffled = np.random.default_rng(0).permutation(DAVIS_PALETTE)
    path = palette_png(tmp_path / "a.png", LABELS, shuffled)
    np.testing.assert_array_equal(load_annotation(path), LABELS)


def test_a_palette_that_an_optimiser_reordered_is_refused(tmp_path: Path) -> None:
    """Positive control: the same image with entries 1 and 2 exchanged."""
    order = [0, 2, 1, 3]
    path = palette_png(tmp_path / "a.png", LABELS, DAVIS_PALETTE[order])
    with pytest.raises(EvaluationError, match=r"a\.png .*palette entry 1 has .* colour of id 2"):
        load_annotation(path)


def test_own_colours_of_a_small_palette_are_accepted(tmp_path: Path) -> None:
    own = np.array([[0, 0, 0], [255, 90, 10], [10, 200, 250], [77, 3, 3]])
    path = palette_png(tmp_path / "a.png", LABELS, own)
    np.testing.assert_array_equal(load_annotation(path), LABELS)


@pytest.mark.parametrize("bit_depth", [2, 4, 16])
def test_gray_of_other_depths_is_refused_since_its_values_change(
    tmp_path: Path, bit_depth: int
) -> None:
    path = raw_png(tmp_path / "a.png", bit_depth=bit_depth, colour_type=0, rows=[b"\x10\x01"] * 2)
    with pytest.raises(EvaluationError, match=f"gray PNG of {bit_depth} bits|16 bits a pixel"):
        load_annotation(path)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_colours_are_refused(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(LABELS).convert(mode).save(path)
    with pytest.raises(EvaluationError, match=r"the mask .*a\.png holds colours .* not object ids"):
        load_annotation(path)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    whole = palette_png(tmp_path / "whole.png", np.zeros((64, 64), np.uint8), DAVIS_PALETTE)
    contents = {
        "cut.png": whole.read_bytes()[:-60],
        "text.png": b"not an image at all, but long enough to have a header",
        "empty.png": b"",
        "header.png": whole.read_bytes()[:20],
    }
    jpeg = tmp_path / "jpeg.png"
    Image.fromarray(LABELS).save(jpeg, format="JPEG")
    contents["jpeg.png"] = jpeg.read_bytes()
    for name, content in contents.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(EvaluationError, match=f"{name} cannot be read .*no PNG at all"):
            load_annotation(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"no such mask: .*00007\.png"):
        load_annotation(tmp_path / "00007.png")


@pytest.mark.parametrize("orientation", [1, 3])
def test_an_orientation_is_refused(tmp_path: Path, orientation: int) -> None:
    path = tmp_path / "a.png"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(LABELS).save(path, exif=exif)
    if orientation == 1:
        np.testing.assert_array_equal(load_annotation(path), LABELS)
    else:
        with pytest.raises(EvaluationError, match=r"a\.png has an EXIF orientation.*upright"):
            load_annotation(path)
