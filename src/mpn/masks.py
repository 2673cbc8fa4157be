"""Read and write object ids as PNG files in the DAVIS palette."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from mpn._common.file_kinds import kind_of_file
from mpn._common.files import write_atomically
from mpn._common.images import open_image
from mpn.errors import EvaluationError, MaskError, MpnError
from mpn.types import UInt8Array

VOID: Final = 255
"""Pixels that DAVIS leaves out of the score; as an input they are background."""

DEFAULT_MAX_OBJECTS = 32
"""More ids than this indicate a gray-scale picture or a soft mask, not objects: DAVIS has at most
10 objects in a sequence, and a blurred edge has hundreds of values."""

_FULL_PALETTE = 256
_LOSSLESS = ("PNG", "TIFF", "BMP", "GIF", "PPM", "TGA")
_LOSSY = ("JPEG", "JPEG2000", "WEBP")
"""File formats of Pillow. Those that can be lossy change ids. MPO files open as JPEG."""

_MIN_SOFT_SIDE_PX = 16  # of a video; smaller masks have no room for a 3x3 square per id
_MIN_THIN_LEVELS = 3
_MIN_THIN_SCALED_LEVELS = 2
"""Levels without a square of 3x3 pixels from which on a gray mask is soft: the second number if
levels are above DEFAULT_MAX_OBJECTS. Of 1,376 masks of DAVIS, BMS and COCO, 2 have 2 or more such
ids, and there they are 4 of 26 ids at most."""

_MIN_BLEND_PX = 16  # an object of fewer pixels may be between two others by chance

_SAME_COLOUR_LEVELS = 1
"""Two DAVIS palettes are in circulation, which differ by one level in places (191, 192)."""

_COMPRESS_LEVEL = 3
"""zlib: as fast as level 1 on masks (0.9 ms at 480p) and smaller; level 9 takes 6 times longer."""

_FULL_GRAY = 255
_TIFF_BITS = 258  # the tag BitsPerSample
_EXIF_ORIENTATION = 0x0112

_HOW_TO_SAVE = (
    "save it as a palette (indexed) PNG, 0 background and ids from 1, or as a 0/255 gray PNG"
)
_MODE_NAMES = {
    "RGB": "an RGB image",
    "RGBA": "an RGB image with alpha",
    "LA": "a gray image with alpha",
    "PA": "a palette image with alpha",
    "CMYK": "a CMYK image",
    "F": "floating-point pixels",
} | dict.fromkeys(("I", "I;16", "I;16B", "I;16L"), "16 bits a pixel")


def _davis_palette() -> UInt8Array:
    """Distribute the bits of each id to R, G, B in turn, highest colour bit first."""
    ids = np.arange(_FULL_PALETTE)
    palette = np.zeros((_FULL_PALETTE, 3), np.uint8)
    for level in range(8):
        for channel in range(3):
            bit = (ids >> (3 * level + channel)) & 1
            palette[:, channel] |= (bit << (7 - level)).astype(np.uint8)
    palette.flags.writeable = False
    return palette


DAVIS_PALETTE: Final[UInt8Array] = _davis_palette()
"""(256, 3) uint8 RGB, PASCAL VOC's ``labelcolormap``, which DAVIS uses. Read-only."""


def load_labels(
    path: str | Path,
    *,
    size_hw: tuple[int, int] | None = None,
    max_objects: int = DEFAULT_MAX_OBJECTS,
    allow_empty: bool = False,
    on_note: Callable[[str], None] | None = None,
) -> UInt8Array:
    """Read a mask that a user made.

    A palette image gives its indices; its colours do not matter. An RGB image gives the ids whose
    colours in the DAVIS palette it has, without smooth edges; transparent pixels are background. A
    gray image gives its values; a
    black and white one (0/255, or 1 bit) gives one object with id 1. Value 255 next to other ids is
    DAVIS's void and becomes background. In a gray image this holds only next to ids up to 32;
    next to larger values 255 may be white, and the mask is refused. Gray of 2 or 4 bits gives its
    stored values (ids up to 3 or 15), or one object if they are 0 and the largest only. The EXIF
    orientation is applied, as to frames.

    Args:
        path: An image file, PNG, since a lossy codec changes ids.
        size_hw: (height, width) that the mask must have, if known.
        max_objects: Largest number of different ids.
        allow_empty: Whether a mask without objects is valid, as in results.
        on_note: Called with one line if pixels became background as void; None: a warning.

    Returns:
        (H, W) uint8: 0 background, object ids 1..254.

    Raises:
        MaskError: If the file is missing or no image, is of a lossy format, holds several images,
            or colours or gray levels instead of ids, has no object or too many, is of another
            size, or an image tool has re-ordered its palette.
    """
    path = Path(path)
    note = on_note or _warn
    labels, is_gray = _read_ids(path, MaskError, size_hw)
    counts = np.bincount(labels.ravel(), minlength=256)
    foreground = np.flatnonzero(counts[1:]) + 1
    if foreground.tolist() == [VOID]:
        labels = np.minimum(labels, 1)
    else:
        foreground = foreground[foreground != VOID]
        if is_gray and 0 < foreground.size <= max_objects:
            _check_levels(path, labels, counts)
        if counts[VOID]:
            labels[labels == VOID] = 0
            note(
                f"{counts[VOID]} pixels of value 255 in the mask {path} were taken for void "
                "(background)"
            )
        if not allow_empty and 0 < foreground.size <= max_objects:
            _check_blends(path, labels)
    if foreground.size == 0 and not allow_empty:
        raise MaskError(f"the mask {path} is empty (every pixel is 0): mark at least one object")
    if foreground.size > max_objects:
        raise MaskError(
            f"the mask {path} holds {foreground.size} different ids, more than the {max_objects} "
            f"allowed: it may be a gray-scale picture or a soft mask; {_HOW_TO_SAVE}"
        )
    return labels


def load_annotation(path: Path) -> UInt8Array:
    """Read ground truth or results for a score: the ids exactly as written.

    Stricter than :func:`load_labels`: only PNG, and no gray of 2 or 4 bits, whose values an image
    library scales, and no EXIF orientation. Nothing is converted.

    Args:
        path: A PNG file: a palette, or gray of 1 or 8 bits.

    Returns:
        (H, W) uint8: 0 background, object ids 1..254, 255 void.

    Raises:
        EvaluationError: If the file is missing or damaged, holds colours instead of ids or several
            images, is a kind of PNG without unambiguous ids, has an EXIF orientation, or an image
            tool has re-ordered its palette.
    """
    return _read_ids(path, EvaluationError, is_strict=True)[0]


def save_labels(path: str | Path, labels: UInt8Array) -> None:
    """Write a palette PNG with the DAVIS palette, atomically.

    Args:
        path: The file. Its folder must exist.
        labels: (H, W) uint8 object ids.

    Raises:
        OutputError: If it cannot be written; nothing is left then.
    """
    write_atomically(Path(path), lambda file: file.write(png_from_labels(labels)))


def png_from_labels(labels: UInt8Array) -> bytes:
    """Encode a palette PNG with the DAVIS palette.

    Args:
        labels: (H, W) uint8 object ids.
    """
    image = Image.fromarray(np.ascontiguousarray(labels, np.uint8)).convert("L")
    image.putpalette(DAVIS_PALETTE.tobytes())
    file = io.BytesIO()
    image.save(file, format="PNG", compress_level=_COMPRESS_LEVEL)
    return file.getvalue()


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=3)


def _check_levels(path: Path, labels: UInt8Array, counts: npt.NDArray[np.intp]) -> None:
    """Raise MaskError if the values of a gray image can be levels instead of ids."""
    levels = np.flatnonzero(counts[1:]) + 1
    square = np.ones((3, 3), np.uint8)
    is_solid = cv2.erode(labels, square) == cv2.dilate(labels, square)
    thin = np.setdiff1d(levels, labels[is_solid])
    is_scaled = levels[levels != VOID].max() > DEFAULT_MAX_OBJECTS
    if min(labels.shape) < _MIN_SOFT_SIDE_PX:
        thin = thin[:0]
    if (is_scaled and thin.size >= _MIN_THIN_SCALED_LEVELS) or (
        thin.size >= _MIN_THIN_LEVELS and 2 * thin.size >= levels.size
    ):
        raise MaskError(
            f"the mask {path} is soft: {thin.size} of its {levels.size} gray levels are only in "
            f"lines, as at a blurred edge ({_with_counts(counts)}); make each pixel 0 or 255, or "
            "save ids as a palette PNG"
        )
    if is_scaled and counts[VOID]:
        raise MaskError(
            f"the mask {path} is ambiguous: 255 next to other gray levels may be an object or void "
            f"({_with_counts(counts)}); save ids 1, 2, ... as a palette PNG, or one object as 0/255"
        )


def _check_blends(path: Path, labels: UInt8Array) -> None:
    """Raise MaskError if ids are only steps between others, as if interpolated.

    Such an id has no square of 3x3 pixels, all of its pixels are within 2 px of both a lower and a
    higher value, and it separates these: they touch directly in fewer places than it has pixels. A
    thin object is not around all objects of higher ids.
    """
    if min(labels.shape) < _MIN_SOFT_SIDE_PX:
        return
    low, high = (cut(labels, np.ones((3, 3), np.uint8)) for cut in (cv2.erode, cv2.dilate))
    counts = np.bincount(labels.ravel(), minlength=256)
    suspects = np.setdiff1d(np.flatnonzero(counts >= _MIN_BLEND_PX), labels[low == high])
    if suspects.size == 0:
        return
    low, high = (cut(labels, np.ones((5, 5), np.uint8)) for cut in (cv2.erode, cv2.dilate))
    suspects = np.setdiff1d(suspects, labels[(low >= labels) | (labels >= high)])
    first = np.concatenate((labels[:, :-1].ravel(), labels[:-1].ravel()))
    second = np.concatenate((labels[:, 1:].ravel(), labels[1:].ravel()))
    lower, higher = np.minimum(first, second), np.maximum(first, second)
    blends = [k for k in suspects if ((lower < k) & (k < higher)).sum() < counts[k]]
    if blends:
        shown = ", ".join(f"{k}: {counts[k]} pixels" for k in blends[:4])
        raise MaskError(
            f"the mask {path} is soft: {len(blends)} of its ids are only in lines between lower "
            f"and higher ids, as after an interpolation ({shown}); resize masks with nearest "
            "neighbour"
        )


def _with_counts(counts: npt.NDArray[np.intp]) -> str:
    levels = np.flatnonzero(counts[1:]) + 1
    shown = [f"{level}: {counts[level]} pixels" for level in levels[-4:]]
    return ", ".join(["..."] * (levels.size > 4) + shown)


def _read_ids(
    path: Path,
    fault: type[MpnError],
    size_hw: tuple[int, int] | None = None,
    *,
    is_strict: bool = False,
) -> tuple[UInt8Array, bool]:
    """Read palette indices or gray values; see the callers for the arguments.

    Returns:
        The values, and whether they are gray: of a gray image, or of a palette of grays.

    Raises:
        MpnError: Of class ``fault``.
    """
    try:
        with open_image(path, ("PNG",) if is_strict else _LOSSLESS + _LOSSY) as image:
            mode = image.mode
            if image.format not in _LOSSLESS or image.info.get("compression") == "jpeg":
                raise fault(
                    f"the mask {path} is a {image.format} file, which may be lossy and change "
                    f"ids: {_HOW_TO_SAVE}"
                )
            if mode not in ("1", "L", "P") and (is_strict or mode not in ("RGB", "RGBA")):
                raise fault(_other_values(path, mode))
            # Before it is decoded: a file of 2 kB can have 179 million pixels.
            if size_hw is not None and image.size not in (size_hw, size_hw[::-1]):
                raise fault(_other_size(path, image.size, size_hw))
            if (count := getattr(image, "n_frames", 1)) > 1:
                raise fault(f"the mask {path} holds {count} images: give one image per mask")
            most_gray = _most_gray(image)
            image.load()
            if is_strict and image.getexif().get(_EXIF_ORIENTATION, 1) != 1:
                raise fault(
                    f"the mask {path} has an EXIF orientation, which not all programs apply: "
                    "save it upright and without EXIF"
                )
            upright = ImageOps.exif_transpose(image)
            if size_hw is not None and upright.size != size_hw[::-1]:
                raise fault(_other_size(path, upright.size, size_hw))
            labels = np.array(upright, dtype=np.uint8)
            if mode in ("RGB", "RGBA"):
                ids = _ids_from_colours(labels)
                if ids is None:
                    raise fault(_other_values(path, mode))
                return ids, False
            palette_rgb = np.array(image.getpalette("RGB") or []).reshape(-1, 3)
        if is_strict and most_gray != _FULL_GRAY:
            raise fault(
                f"the mask {path} is a gray PNG of {most_gray.bit_length()} bits, which has no "
                "unambiguous ids: save it as a palette PNG or as 8-bit gray"
            )
        if most_gray < _FULL_GRAY and not np.isin(labels, (0, _FULL_GRAY)).all():
            labels = np.round(labels * (most_gray / _FULL_GRAY)).astype(np.uint8)
    except FileNotFoundError as error:
        raise fault(f"no such mask: {path}") from error
    except OSError as error:
        kind = kind_of_file(path) if isinstance(error, UnidentifiedImageError) else None
        if kind is not None:
            raise fault(f"the mask {path} is {kind}: {_HOW_TO_SAVE}") from error
        reason = error.strerror or (
            f"damaged, cut short, or no {'PNG' if is_strict else 'image'} at all"
        )
        raise fault(f"the mask {path} cannot be read ({reason})") from error
    if why := _why_reordered(labels, palette_rgb):
        raise fault(
            f"the mask {path} has a palette that an image tool re-ordered ({why}), so its ids "
            "are not those that were written: save it with a fixed palette"
        )
    return labels, mode == "L" or (mode == "P" and _is_gray(labels, palette_rgb))


def _ids_from_colours(pixels: UInt8Array) -> UInt8Array | None:
    """Return the ids whose DAVIS colours an image has.

    Painting programs convert the palette of a mask file to colours.

    Args:
        pixels: (H, W, 3 or 4) uint8 RGB, with alpha: transparent pixels are background.

    Returns:
        (H, W) uint8; None if a pixel has another colour or is half transparent, or if all are gray:
        then they may be gray levels as well.
    """
    red, green, blue, *alpha = (pixels[..., k].astype(np.int32) for k in range(pixels.shape[2]))
    codes = red << 16 | green << 8 | blue
    for each in alpha:
        if not np.isin(each, (0, 255)).all():
            return None
        codes[each == 0] = 0
    used, places = np.unique(codes, return_inverse=True)
    if len(used) > _FULL_PALETTE:
        return None
    colours = np.stack([used >> 16, used >> 8 & 255, used & 255], axis=1)
    distances = np.abs(colours[:, None] - DAVIS_PALETTE.astype(np.int32)).max(axis=2)
    is_gray = (colours == colours[:, :1]).all()
    if is_gray or distances.min(axis=1).max() > _SAME_COLOUR_LEVELS:
        return None
    ids: UInt8Array = distances.argmin(axis=1).astype(np.uint8)[places].reshape(codes.shape)
    return ids


def _other_values(path: Path, mode: str) -> str:
    return (
        f"the mask {path} holds colours or other values ({_MODE_NAMES.get(mode, mode)}), not "
        f"object ids: {_HOW_TO_SAVE}"
    )


def _other_size(path: Path, size_wh: tuple[int, int], size_hw: tuple[int, int]) -> str:
    return (
        f"the mask {path} is {size_wh[0]}x{size_wh[1]} but the video is "
        f"{size_hw[1]}x{size_hw[0]} (width x height): give a mask of the video's size"
    )


def _is_gray(labels: UInt8Array, palette_rgb: npt.NDArray[Any]) -> bool:
    """Return whether all used entries of a palette have the gray of their index."""
    used = np.flatnonzero(np.bincount(labels.ravel(), minlength=_FULL_PALETTE))
    if used[-1] >= len(palette_rgb):
        return False
    return bool((palette_rgb[used] == used[:, None]).all())


def _most_gray(image: ImageFile.ImageFile) -> int:
    """Return the stored value that Pillow scales to 255, before the image is decoded."""
    if image.mode != "L":
        return _FULL_GRAY
    if image.format == "TIFF":
        return int(2 ** image.tag_v2.get(_TIFF_BITS, (8,))[0] - 1)  # type: ignore[attr-defined]
    codec, args = (image.tile[0].codec_name, image.tile[0].args) if image.tile else ("", None)
    if image.format == "PNG" and isinstance(args, str):
        return int(2 ** int(args.partition(";")[2] or 8) - 1)
    if codec in ("ppm", "ppm_plain") and isinstance(args, tuple):
        return int(args[1])
    return _FULL_GRAY


def _why_reordered(labels: UInt8Array, palette_rgb: npt.NDArray[Any]) -> str | None:
    """Return why the indices of a palette PNG cannot be the ids that were written.

    Optimisers and quantizers write only the used entries, in another order. A file with all 256
    entries has the palette that its writer chose; any colours are valid there.

    Args:
        labels: (H, W) uint8, the indices.
        palette_rgb: (N, 3) integers 0..255, the entries of the palette.

    Returns:
        A clause for a message; None if the indices can be the ids.
    """
    if not 0 < len(palette_rgb) < _FULL_PALETTE:
        return None
    palette = palette_rgb.astype(np.int64)
    if palette[0].any():
        return f"palette entry 0 is {tuple(palette[0].tolist())} instead of black"
    used = np.flatnonzero(np.bincount(labels.ravel(), minlength=_FULL_PALETTE))
    used = used[used < len(palette)]
    distance = np.abs(palette[used][:, None] - DAVIS_PALETTE[None].astype(np.int64)).max(axis=2)
    shown_id = distance.argmin(axis=1)
    if (distance.min(axis=1) > _SAME_COLOUR_LEVELS).any() or (shown_id == used).all():
        return None
    entry, colour_of = next((k, m) for k, m in zip(used, shown_id, strict=True) if k != m)
    return f"palette entry {entry} has the DAVIS colour of id {colour_of}"
