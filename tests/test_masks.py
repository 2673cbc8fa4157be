from __future__ import annotations

import errno
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from mpn.errors import EvaluationError, MaskError, OutputError
from mpn.masks import DAVIS_PALETTE, load_annotation, load_labels, save_labels
from mpn.runtime.state import object_ids_from_labels
from tests.test_masks_strict import raw_png

SMALL = np.array([[0, 1, 2], [2, 7, 0]], np.uint8)


def save_gray(path: Path, values: np.ndarray) -> Path:
    Image.fromarray(values).save(path)
    return path


def test_palette_deals_the_bits_of_the_id_to_red_green_and_blue() -> None:
    expected = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 4: (0, 0, 128),
                8: (64, 0, 0), 22: (0, 192, 128), 255: (224, 224, 192)}  # fmt: skip
    assert {k: tuple(DAVIS_PALETTE[k].tolist()) for k in expected} == expected
    assert len({tuple(colour) for colour in DAVIS_PALETTE.tolist()}) == 256


def test_palette_is_the_official_evaluators(golden: Path) -> None:
    with Image.open(golden / "palette" / "indexed_evaluator.png") as image:
        official = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    np.testing.assert_array_equal(DAVIS_PALETTE, official)


@pytest.mark.parametrize("name", ["indexed_davis", "indexed_evaluator", "gray8"])
def test_ids_are_read_unchanged_for_any_palette(golden: Path, name: str) -> None:
    expected = np.load(golden / "palette" / "labels.npy")
    labels = load_labels(golden / "palette" / f"{name}.png", on_note=lambda _: None)
    np.testing.assert_array_equal(labels, np.where(expected == 255, 0, expected))
    assert set(np.unique(labels)) == {0, 1, 2, 3, 4, 5, 6, 20}


def test_short_palette_of_four_bits_is_read(golden: Path) -> None:
    labels = load_labels(golden / "palette" / "indexed_7_entries.png")
    assert set(np.unique(labels)) == set(range(7))


def test_one_bit_mask_is_one_object(golden: Path) -> None:
    assert object_ids_from_labels(load_labels(golden / "palette" / "one_bit.png")) == (1,)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rgb_of_palette", r"an RGB image.*not object ids: save it as a palette .* 0/255 gray"),
        ("requantized_BROKEN", "an image tool re-ordered"),
    ],
)
def test_masks_without_ids_are_refused(golden: Path, name: str, message: str) -> None:
    with pytest.raises(MaskError, match=message) as caught:
        load_labels(golden / "palette" / f"{name}.png")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 255], [0, 1]),
        ([0, 1], [0, 1]),
        ([0, 5, 9], [0, 5, 9]),
        ([0, 3, 255], [0, 3, 0]),
        ([0, 254], [0, 254]),
    ],
)
@pytest.mark.parametrize("mode", ["L", "P"])
def test_values_become_ids(
    tmp_path: Path, mode: str, values: list[int], expected: list[int]
) -> None:
    image = Image.fromarray(np.array([values], np.uint8))
    if mode == "P":
        image.putpalette(DAVIS_PALETTE.tobytes())
    assert image.mode == mode
    image.save(tmp_path / "mask.png")
    labels = load_labels(tmp_path / "mask.png", on_note=lambda _: None)
    assert labels.tolist() == [expected]


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)),
        Image.fromarray(np.zeros((4, 4, 4), np.uint8), "RGBA"),
        Image.fromarray(np.zeros((4, 4, 2), np.uint8), "LA"),
        Image.fromarray(np.ones((4, 4), np.uint16)),
    ],
    ids=lambda image: image.mode,
)
def test_colours_alpha_and_16_bits_are_refused(tmp_path: Path, image: Image.Image) -> None:
    image.save(tmp_path / "mask.png")
    with pytest.raises(MaskError, match="not object ids"):
        load_labels(tmp_path / "mask.png")


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_mask_painted_over_a_frame_gives_its_ids(tmp_path: Path, mode: str) -> None:
    """Painting programs convert the palette; the background of a layer is clear."""
    labels = np.zeros((32, 40), np.uint8)
    labels[2:20, 3:12], labels[8:30, 20:38], labels[4:9, 30:36] = 1, 254, 7
    save_labels(tmp_path / "mask.png", labels)
    pixels = np.array(Image.open(tmp_path / "mask.png").convert(mode))
    if mode == "RGBA":
        pixels[labels == 0] = (90, 20, 30, 0)
    Image.fromarray(pixels).save(tmp_path / "fix.png")
    np.testing.assert_array_equal(load_labels(tmp_path / "fix.png"), labels)
    pixels[5, 5, 0] = 100  # of a smooth edge
    Image.fromarray(pixels).save(tmp_path / "smooth.png")
    with pytest.raises(MaskError, match="not object ids"):
        load_labels(tmp_path / "smooth.png")
    gray = Image.fromarray((labels == 7) * np.uint8(128)).convert(mode)
    gray.save(tmp_path / "g.png")
    with pytest.raises(MaskError, match="not object ids"):
        load_labels(tmp_path / "g.png")


def disc(radius: float = 12.0, centre_x: float = 24.0) -> np.ndarray:
    y, x = np.mgrid[:48, :64]
    return ((x - centre_x) ** 2 + (y - 24) ** 2 < radius**2).astype(np.uint8)


def enlarged(value: int) -> np.ndarray:
    """Draw a disc with a soft edge, as of a mask that was enlarged."""
    return cv2.resize(disc() * np.uint8(value), None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR)


def as_jpeg(image: np.ndarray) -> np.ndarray:
    data = cv2.imencode(".jpg", image)[1]
    decoded: np.ndarray = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    return decoded


@pytest.mark.parametrize("is_palette", [False, True])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        (enlarged(255), "is soft: "),
        (enlarged(200), "is soft: "),
        (as_jpeg(disc() * np.uint8(255)), "is soft: |different ids"),
        (np.maximum(disc(14) * np.uint8(128), disc(10) * np.uint8(255)), "is ambiguous: 255 "),
        (
            disc() * np.uint8(127) + disc(6, 50) * np.uint8(255),
            f"127: .* 255: {disc(6, 50).sum()} pixels",
        ),
        (disc(20) * np.uint8(85) + disc(15) * np.uint8(85) + disc(9) * np.uint8(85), "ambiguous"),
    ],
    ids=["enlarged", "enlarged-200", "once-jpeg", "trimap", "two", "three-scaled"],
)
def test_gray_levels_are_refused_as_ids(
    tmp_path: Path, values: np.ndarray, message: str, is_palette: bool
) -> None:
    image = Image.fromarray(values)
    if is_palette:
        image.putpalette(np.arange(256).repeat(3).tolist())
    image.save(tmp_path / "mask.png")
    with pytest.raises(MaskError, match=message) as caught:
        load_labels(tmp_path / "mask.png")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["mask.jpg", "mask.jp2", "mask.webp", "mask.tif"])
def test_lossy_files_are_refused(tmp_path: Path, name: str) -> None:
    """Also when their values happen to be right."""
    options = {"compression": "jpeg"} if name == "mask.tif" else {}
    Image.fromarray(np.zeros((48, 64), np.uint8)).save(tmp_path / name, **options)
    with pytest.raises(MaskError, match=r"may be lossy .* palette"):
        load_labels(tmp_path / name)


def test_void_next_to_ids_is_reported(tmp_path: Path) -> None:
    path = save_gray(tmp_path / "mask.png", disc() + disc(6, 50) * np.uint8(255))
    lines: list[str] = []
    labels = load_labels(path, on_note=lines.append)
    np.testing.assert_array_equal(labels, disc())
    assert len(lines) == 1
    assert lines[0].startswith(f"{disc(6, 50).sum()} pixels of value 255 in the mask {path} were ")
    with pytest.warns(UserWarning, match=" pixels of value 255"):
        load_labels(path)


@pytest.mark.parametrize("name", ["mask.png", "palette.png", "mask.tif"])
def test_orientation_turns_the_mask_as_frames(tmp_path: Path, name: str) -> None:
    """The stored rows of orientation 6 are columns, from the right."""
    image = Image.fromarray(SMALL)
    if name == "palette.png":
        image.putpalette(DAVIS_PALETTE.tobytes())
    for orientation, expected in ((1, SMALL), (3, SMALL[::-1, ::-1]), (6, np.rot90(SMALL, -1))):
        exif = Image.Exif()
        exif[0x0112] = orientation
        image.save(tmp_path / name, exif=exif)
        labels = load_labels(tmp_path / name, size_hw=expected.shape)
        np.testing.assert_array_equal(labels, expected)
    with pytest.raises(MaskError, match="is 2x3 but the video is 3x2"):
        load_labels(tmp_path / name, size_hw=(2, 3))


@pytest.mark.parametrize(
    ("bits", "stored", "expected"),
    [
        (2, [0, 1, 2, 3], [0, 1, 2, 3]),
        (2, [0, 3, 3, 0], [0, 1, 1, 0]),
        (4, [0, 1, 2, 15], [0, 1, 2, 15]),
        (8, [0, 1, 2, 3], [0, 1, 2, 3]),
    ],
)
def test_gray_of_few_bits_gives_the_stored_ids(
    tmp_path: Path, bits: int, stored: list[int], expected: list[int]
) -> None:
    most = 2**bits - 1
    packed = sum(value << (bits * (3 - k)) for k, value in enumerate(stored))
    row = packed.to_bytes(bits // 2, "big")
    raw_png(tmp_path / "mask.png", bit_depth=bits, colour_type=0, rows=[row])
    (tmp_path / "mask.pgm").write_bytes(b"P5\n4 1\n%d\n" % most + bytes(stored))
    for name in ("mask.png", "mask.pgm"):
        assert load_labels(tmp_path / name).tolist() == [expected], name


@pytest.mark.parametrize("name", ["mask.png", "mask.tif", "mask.gif"])
def test_several_images_in_one_mask_are_refused(tmp_path: Path, name: str) -> None:
    first, second = (Image.fromarray(SMALL + k) for k in (0, 1))
    first.save(tmp_path / name, save_all=True, append_images=[second])
    with pytest.raises(MaskError, match=f"{name} holds 2 images: give one image per mask"):
        load_labels(tmp_path / name)
    first.save(tmp_path / f"one_{name}")
    assert load_labels(tmp_path / f"one_{name}").shape == SMALL.shape
    if name == "mask.png":
        with pytest.raises(EvaluationError, match="holds 2 images"):
            load_annotation(tmp_path / name)


def test_ids_with_thin_objects_are_read(tmp_path: Path) -> None:
    labels = disc() * np.uint8(3)
    labels[2, 2:9], labels[40:43, 60] = 1, 2
    assert np.array_equal(load_labels(save_gray(tmp_path / "mask.png", labels)), labels)


@pytest.mark.parametrize("ids", [(1, 3), (2, 0), (1, 5)])
@pytest.mark.parametrize("scale", [2, 3])
def test_interpolated_ids_are_refused(tmp_path: Path, ids: tuple[int, int], scale: int) -> None:
    """Control: enlarged by nearest neighbour, with a thin object at an edge."""
    small = np.maximum(disc(12, 20) * np.uint8(ids[0]), disc(12, 40) * np.uint8(ids[1]))
    for method in (cv2.INTER_NEAREST, cv2.INTER_LINEAR):
        labels = cv2.resize(small, None, fx=scale, fy=scale, interpolation=method)
        if method == cv2.INTER_NEAREST:
            edge = 32 * scale  # a strap between the objects and the background
            labels[24 * scale - 8 : 24 * scale + 8, edge - 4 : edge - 2] = 2
        save_labels(tmp_path / "mask.png", labels)
        if method == cv2.INTER_NEAREST:
            np.testing.assert_array_equal(load_labels(tmp_path / "mask.png"), labels)
        else:
            with pytest.raises(MaskError, match=r"is soft: \d of its ids .* nearest neighbour"):
                load_labels(tmp_path / "mask.png")


def test_empty_mask_is_refused(tmp_path: Path) -> None:
    path = save_gray(tmp_path / "empty.png", np.zeros((4, 6), np.uint8))
    with pytest.raises(MaskError, match=r"empty\.png is empty"):
        load_labels(path)


@pytest.mark.parametrize("palette", [True, False])
def test_200_ids_raise_as_a_picture(tmp_path: Path, palette: bool) -> None:
    path = tmp_path / "many.png"
    values = np.arange(201, dtype=np.uint8).reshape(3, 67).repeat(3, 0).repeat(3, 1)
    if palette:
        save_labels(path, values)
    else:
        save_gray(path, values)
    with pytest.raises(MaskError, match=r"200 different ids, more than the 32 .* gray-scale"):
        load_labels(path)
    assert len(object_ids_from_labels(load_labels(path, max_objects=200))) == 200


def test_other_size_names_both_sizes(tmp_path: Path) -> None:
    path = save_gray(tmp_path / "mask.png", SMALL)
    with pytest.raises(MaskError, match="is 3x2 but the video is 64x48"):
        load_labels(path, size_hw=(48, 64))
    assert load_labels(path, size_hw=(2, 3)).shape == (2, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such mask"), (b"text", "cannot be read"), (b"", "cannot be read")],
)
def test_unreadable_mask(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "mask.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(MaskError, match=message):
        load_labels(path)


def test_cut_png_is_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 9, (64, 64), dtype=np.uint8)
    path = save_gray(tmp_path / "mask.png", noise)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(MaskError, match="cannot be read"):
        load_labels(path)


def test_a_folder_is_no_mask(tmp_path: Path) -> None:
    with pytest.raises(MaskError, match="cannot be read"):
        load_labels(tmp_path)


@settings(max_examples=25, deadline=None)
@given(
    hnp.arrays(
        np.uint8,
        st.tuples(st.integers(1, 9), st.integers(1, 9)),
        elements=st.integers(0, 254),
    )
)
def test_saved_ids_are_read_back_exactly(
    tmp_path_factory: pytest.TempPathFactory, labels: np.ndarray
) -> None:
    path = tmp_path_factory.mktemp("labels") / "00000.png"
    save_labels(path, labels)
    with Image.open(path) as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), labels)
        assert image.getpalette("RGB") == DAVIS_PALETTE.ravel().tolist()
    if labels.any():
        np.testing.assert_array_equal(load_labels(path, max_objects=254), labels)
    assert [p.name for p in path.parent.iterdir()] == ["00000.png"]


def test_full_disk_leaves_neither_file_nor_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Image.Image, target: BinaryIO, **options: object) -> None:
        target.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OutputError, match=r"00000\.png: No space left on device"):
        save_labels(tmp_path / "00000.png", SMALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"[1, 2", "is JSON: save it as a palette"),
        (b"\x93NUMPY\x01\0v\0{'descr': '|u1'", "is a NumPy array: save it as a palette"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "is an HEIC photograph"),
        (b"<?xml version='1.0'?>\n<svg>", "is an SVG drawing"),
        (b"version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS.*git lfs pull"),
        (b"\x89PNG\r\n\x1a\ncut", "damaged, cut short"),
    ],
)
def test_files_that_are_no_masks_are_named(tmp_path: Path, content: bytes, kind: str) -> None:
    path = tmp_path / "mask.png"
    path.write_bytes(content)
    with pytest.raises(MaskError, match=kind):
        load_labels(path)
