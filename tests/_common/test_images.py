"""Images whose sizes are forged."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageFile, WebPImagePlugin

from mpn.errors import MpnError
from mpn.masks import load_annotation, load_labels, save_labels
from mpn.runtime.media.video import open_video
from mpn.runtime.media.video_images import load_rgb, used_bits

FORGED_BYTES = 0x7FFFFFFF


def _peak_bytes(read: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        read()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("read", [load_labels, load_rgb])
def test_forged_size_in_a_png_allocates_the_file_only(
    tmp_path: Path, read: Callable[[Path], object]
) -> None:
    path = tmp_path / "a.png"
    save_labels(path, np.eye(8, dtype=np.uint8))
    data = path.read_bytes()
    at = data.index(b"IDAT")
    path.write_bytes(data[: at - 4] + FORGED_BYTES.to_bytes(4, "big") + data[at:])
    assert _peak_bytes(lambda: read(path)) < 1 << 20

    def pillow() -> None:
        with Image.open(path) as image:  # control: it allocates what the file states
            image.load()

    assert _peak_bytes(pillow) > FORGED_BYTES // 2


def test_mask_of_another_size_is_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A PNG of 2 kB with 134 million pixels took 1.8 GB."""
    path, decoded = tmp_path / "a.png", []
    save_labels(path, np.eye(8, dtype=np.uint8))
    load = ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda i: decoded.append(i) or load(i))
    with pytest.raises(MpnError, match="is 8x8 but the video is 9x8"):
        load_labels(path, size_hw=(8, 9))
    assert not decoded
    load_labels(path, size_hw=(8, 8))  # control
    assert decoded


@pytest.mark.parametrize(
    "error", [EOFError("x"), SyntaxError("x"), KeyError("x"), struct.error("x"), cv2.error("x")]
)
def test_any_exception_of_a_decoder_is_a_package_error(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The class depends on the format and on the version of Pillow."""
    image = Image.fromarray(np.eye(8, dtype=np.uint8) * 255)
    png, deep, webp = (tmp_path / name for name in ("a.png", "deep_a.png", "a.webp"))
    Image.fromarray(np.eye(8, dtype=np.uint16) * 4095).save(deep)
    image.save(png)
    image.save(webp, save_all=True, append_images=[image, image.transpose(0)])
    readers: list[Callable[[], object]] = [
        lambda: load_labels(png),
        lambda: load_annotation(png),
        lambda: load_rgb(png),
        lambda: used_bits([deep]),
        lambda: list(open_video(webp)),
    ]
    for read in readers:
        read()  # control

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    monkeypatch.setattr(WebPImagePlugin.WebPImageFile, "load", fail)
    for read in readers:
        with pytest.raises(MpnError, match=r"a\.(png|webp)"):
            read()
