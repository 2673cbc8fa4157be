"""Read the frames of a folder of images or of a printf pattern."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from mpn.errors import VideoError
from mpn.runtime.media.video import VideoSource, start_beyond_end
from mpn.types import Frame, UInt8Array

IMAGE_SUFFIXES = frozenset(
    (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)

_NUMBER = re.compile(r"(\d+)")
_PRINTF = re.compile(r"%(?:0(\d+))?d")
_EXIF_ORIENTATION = 0x0112
_TRANSPOSED = frozenset({5, 6, 7, 8})
"""EXIF orientations that swap width and height."""


def images_from_folder(folder: Path) -> list[Path]:
    """List the images of a folder in natural order, without hidden files.

    Raises:
        VideoError: If there are no images, or two differ only in their suffix: their masks would
            have one name.
    """
    try:
        files = [path for path in folder.iterdir() if path.is_file()]
    except OSError as error:
        raise VideoError(f"cannot read the folder {folder}: {error.strerror}") from error
    images = sorted(
        (p for p in files if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")),
        key=lambda path: natural_key(path.name),
    )
    if not images:
        raise VideoError(
            f"the folder {folder} holds no images ({len(files)} other files): a video folder holds "
            f"one image per frame ({', '.join(sorted(IMAGE_SUFFIXES))})"
        )
    for before, after in pairwise(images):
        if before.stem == after.stem:
            raise VideoError(
                f"the folder {folder} holds both {before.name} and {after.name}: "
                "keep one image per frame"
            )
    return images


def images_from_pattern(pattern: Path) -> list[Path]:
    """List the files of a printf pattern (``shot/%05d.jpg``), from the lowest number.

    Raises:
        VideoError: If the pattern is malformed, matches no file, or a number is missing.
    """
    fields = list(_PRINTF.finditer(pattern.name))
    if len(fields) != 1 or pattern.name.count("%") != 1:
        raise VideoError(
            f"the pattern '{pattern}' must hold one %d or %05d in its file name, "
            "for example frames/%05d.jpg"
        )
    field = fields[0]
    digits = int(field.group(1) or 1)
    prefix, suffix = pattern.name[: field.start()], pattern.name[field.end() :]
    numbered = re.compile(re.escape(prefix) + r"(\d+)" + re.escape(suffix))
    try:
        names = [path.name for path in pattern.parent.iterdir()]
    except OSError as error:
        raise VideoError(f"cannot read the folder {pattern.parent}: {error.strerror}") from error
    found = {}
    for name in names:
        if (match := numbered.fullmatch(name)) and match[1] == f"{int(match[1]):0{digits}d}":
            found[int(match[1])] = pattern.parent / name
    if not found:
        raise VideoError(f"no file matches the pattern '{pattern}'")
    numbers = sorted(found)
    for number, following in pairwise(numbers):
        if following != number + 1:
            missing = f"{prefix}{number + 1:0{digits}d}{suffix}"
            raise VideoError(
                f"{pattern.parent / missing} is missing ({found[following].name} exists): "
                "a pattern needs every number; give the folder to use all files in it"
            )
    return [found[number] for number in numbers]


def natural_key(name: str) -> tuple[Any, ...]:
    """Return a key for natural order: ``f02``, ``f2``, ``f10``."""
    parts = _NUMBER.split(name)
    parts[1::2] = [f"{int(digits):020d}" for digits in parts[1::2]]
    return (parts, name)


def load_rgb(path: Path) -> UInt8Array:
    """Read an image as (H, W, 3) uint8 RGB, upright.

    The EXIF orientation is applied: masks must have the upright orientation too. Gray becomes three
    equal channels, 16 bits become 8, palettes are resolved, alpha is dropped.

    Raises:
        VideoError: If the file is missing, damaged, truncated, or has floating-point pixels.
    """
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):  # 16-bit gray; Pillow's own conversion would clip it
                gray16 = np.asarray(upright).astype(np.float64)
                gray = np.rint(gray16 / 257.0).clip(0, 255).astype(np.uint8)
                return np.repeat(gray[:, :, None], 3, axis=2)
            if upright.mode == "F":
                raise VideoError(f"{path} holds floating-point pixels: save it as 8 or 16 bits")
            # np.array, not asarray: frames are writable and contiguous.
            return np.array(upright.convert("RGB"), dtype=np.uint8)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise VideoError(f"{path} cannot be read as an image: {_reason(error)}") from error


class ImageSequence(VideoSource):
    """Frames of image files. Use :func:`mpn.runtime.media.video.open_video`.

    Args:
        address: The folder or pattern, for messages.
        paths: The files in order. All headers are read at once, so that mixed sizes raise early.
        start: Index of the first frame.
        end: Index to stop before; None for all.
        fps: Frame rate.

    Attributes:
        folder: The folder that holds the images.
    """

    def __init__(
        self, address: Path, paths: Sequence[Path], *, start: int, end: int | None, fps: Fraction
    ) -> None:
        if start >= len(paths):
            raise start_beyond_end(str(address), start, len(paths))
        chosen = paths[start:end]
        _check_one_size(chosen)
        self.folder = chosen[0].parent
        self._later = chosen[1:]
        self._start = start
        super().__init__(
            name=self.folder.resolve().name,
            address=str(address),
            first_frame=_load_frame(chosen[0], start, fps),
            fps=fps,
            time_base=1 / fps,
            frame_count_hint=len(chosen),
            end_index=start + len(chosen),
        )

    def _frames_after_first(self) -> Iterator[Frame]:
        for index, path in enumerate(self._later, self._start + 1):
            yield _load_frame(path, index, self.fps)

    def _release(self) -> None:
        pass  # a file is open only while it is read


def _load_frame(path: Path, index: int, fps: Fraction) -> Frame:
    return Frame(index=index, rgb=load_rgb(path), pts_s=index / fps, name=path.stem)


def _check_one_size(paths: Sequence[Path]) -> None:
    """Raise VideoError with the first file that differs in size from the first one."""
    first_hw = _header_size_hw(paths[0])
    for path in paths[1:]:
        size_hw = _header_size_hw(path)
        if size_hw != first_hw:
            raise VideoError(
                f"{path} is {size_hw[1]}x{size_hw[0]} but {paths[0].name} is "
                f"{first_hw[1]}x{first_hw[0]} (width x height): all frames must have one size"
            )


def _header_size_hw(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            width, height = image.size
            # Pillow would decode a whole PNG to find EXIF data after the pixels.
            has_exif = image.format != "PNG" or "exif" in image.info
            if has_exif and image.getexif().get(_EXIF_ORIENTATION) in _TRANSPOSED:
                return (width, height)
            return (height, width)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise VideoError(f"{path} cannot be read as an image: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Return the reason why a file cannot be read, without its path."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if "cannot identify" in str(error):
        return "its content is no image format that is known"
    return str(error)
