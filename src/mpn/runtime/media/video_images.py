"""Read the frames of a folder of images or of a printf pattern."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from mpn._common.file_kinds import kind_of_file
from mpn._common.images import open_image
from mpn.errors import VideoError
from mpn.runtime.media.video import EndsEarlyError, VideoSource, start_beyond_end
from mpn.types import Frame, UInt8Array

IMAGE_SUFFIXES = frozenset(
    (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)

_NUMBER = re.compile(r"((?<![.\d])\d+\.\d+(?!\.?\d)|\d+)")
"""A whole number, or one with a fraction; the parts of ``1.2.3`` are three whole numbers."""
_AFTER_DOT = re.compile(r"(?<![.\d])\.(\d+)(?!\.?\d)")
"""The digits of ``t.75``: a fraction, or a counter as in ``shot.9``, ``shot.10``."""
_FRACTION = re.compile(r"((?:(?<![.\d])\d+|(?<![.\d]))\.\d+(?!\.?\d)|\d+)")
_AFTER_COMMA = re.compile(r"(?<![,\d])(\d+),(\d+)(?!,?\d)")
_HEXADECIMAL = re.compile(r"(?<![0-9a-z])0x[0-9a-f]*[a-f][0-9a-f]*(?![0-9a-z])")
_SIGNED = re.compile(r"-?\d+(\.\d+)?")
_PRINTF = re.compile(r"%(?:0(\d+))?d")
_EXIF_ORIENTATION = 0x0112
_TRANSPOSED = frozenset({5, 6, 7, 8})
"""EXIF orientations that swap width and height."""

_DEEP = re.compile(r";16|;32")
"""Pillow's raw modes of more than 8 bits."""
_PPM_MAXIMUM = 65535
"""Of a PPM of 16 bits, whose raw mode is that of 8 bits."""
_DEPTHS = (8, 10, 12, 14, 16, 24, 31)
"""Bits that cameras and files use, without a sign."""


def images_from_folder(folder: Path) -> list[Path]:
    """List the images of a folder in natural order, without hidden files.

    Raises:
        VideoError: If there are no images, two differ only in their suffix (their masks would have
            one name), or the order of two is ambiguous.
    """
    try:
        files = [path for path in folder.iterdir() if path.is_file()]
    except OSError as error:
        raise VideoError(f"cannot read the folder {folder}: {error.strerror}") from error
    images = [p for p in files if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")]
    if not images:
        raise VideoError(
            f"the folder {folder} holds no images ({len(files)} other files): a video folder holds "
            f"one image per frame ({', '.join(sorted(IMAGE_SUFFIXES))})"
        )
    images.sort(key=lambda path: path.name)
    for before, after in pairwise(images):
        if before.stem == after.stem:
            raise VideoError(
                f"the folder {folder} holds both {before.name} and {after.name}: "
                "keep one image per frame"
            )
    path_of = {path.stem: path for path in images}
    try:
        return [path_of[stem] for stem in natural_order(path_of)]
    except ValueError as error:
        raise VideoError(f"the folder {folder}: {error}") from error


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


def natural_order(stems: Iterable[str]) -> list[str]:
    """Sort names by the values of their numbers, and by text without regard to case.

    Digits after a dot are a fraction: ``t.75``, ``t0.8`` and ``Frame_9``, ``FRAME_13``; without a
    digit before the dot they may be a counter, see :func:`_prefixes_of_fractions`. If all names are
    numbers, some with a minus sign, it counts.

    Raises:
        ValueError: If the order of two names is ambiguous: they have the same value, the digits
            after their dot count up, as in ``1.9``, ``1.10``, those after a comma differ in
            length, or they are hexadecimal.
    """
    names = sorted(stems)
    is_signed = all(map(_SIGNED.fullmatch, names)) and not all(n.startswith("-") for n in names)

    _check_other_numbers(names)
    fractions = _prefixes_of_fractions(names)

    def key(name: str) -> list[Any]:
        folded = name.casefold()
        after_dot = _AFTER_DOT.search(folded)
        is_fraction = after_dot is not None and folded[: after_dot.start()] in fractions
        parts: list[Any] = (_FRACTION if is_fraction else _NUMBER).split(folded)
        parts[1::2] = map(Fraction, parts[1::2])
        return ["", -parts[1], ""] if is_signed and name.startswith("-") else parts

    ordered = sorted(names, key=key)
    for before, after in pairwise(ordered):
        if key(before) == key(after):
            raise ValueError(
                f"the order of {before} and {after} is ambiguous, they have the same value: rename "
                "one, or give the digits after a dot one length"
            )
    counters: defaultdict[str, set[str]] = defaultdict(set)
    for name in ordered:
        for number in _NUMBER.finditer(name):
            whole, dot, digits = number[0].partition(".")
            if dot and not digits.startswith("0"):
                counters[name[: number.start()].casefold() + whole].add(digits)
    for whole, digits_of in counters.items():
        counts = sorted(map(int, digits_of))
        is_run = len(counts) > 1 and counts[-1] - counts[0] == len(counts) - 1
        if is_run and len(set(map(len, digits_of))) > 1:
            raise ValueError(_in_doubt(f"{whole}.{counts[0]}", f"{whole}.{counts[-1]}", "dot"))
    return ordered


def _prefixes_of_fractions(names: Iterable[str]) -> set[str]:
    """Return the texts before a dot that starts a fraction, as in ``t.75``.

    They are if other names have digits before the dot (``t0.8``), or if only as fractions they have
    one step (``t.7``, ``t.75``, ``t.8``). They count if one ends with 0, which a fraction does not
    need, or if they have one step as numbers (``shot.9``, ``shot.10``).

    Raises:
        ValueError: If neither holds.
    """
    groups: defaultdict[str, set[str]] = defaultdict(set)
    wholes = set()
    for name in map(str.casefold, names):
        if match := _AFTER_DOT.search(name):
            groups[name[: match.start()]].add(match[1])
        for number in _NUMBER.finditer(name):
            if "." in number[0]:
                wholes.add(name[: number.start()])
    fractions = set()
    for prefix, digits_of in groups.items():
        shortest = min(map(len, digits_of))
        longer = [digits for digits in digits_of if len(digits) > shortest]
        if prefix in wholes:
            fractions.add(prefix)
        elif longer and not any(digits.endswith("0") for digits in longer):
            is_counter = _has_one_step(map(Fraction, digits_of))
            is_fraction = _has_one_step(Fraction(f".{digits}") for digits in digits_of)
            if is_counter is is_fraction:
                first, *_, second = sorted(digits_of, key=lambda digits: (len(digits), digits))
                raise ValueError(_in_doubt(f"{prefix}.{first}", f"{prefix}.{second}", "dot"))
            if is_fraction:
                fractions.add(prefix)
    return fractions


def _has_one_step(values: Iterable[Fraction]) -> bool:
    return len({after - before for before, after in pairwise(sorted(values))}) == 1


def _check_other_numbers(names: Iterable[str]) -> None:
    """Raise ValueError for hexadecimal numbers and ambiguous commas."""
    hexadecimal = [name for name in names if _HEXADECIMAL.search(name.casefold())]
    others = [name for name in names if "0x" in name.casefold() and name not in hexadecimal[:1]]
    if hexadecimal and others:
        raise ValueError(
            f"the order of {hexadecimal[0]} and {others[0]} is ambiguous, they may hold "
            "hexadecimal numbers: give them decimal ones"
        )
    decimals: dict[str, tuple[str, str]] = {}
    for name in names:
        for match in _AFTER_COMMA.finditer(name):
            whole = name[: match.start(2)].casefold()
            before, digits = decimals.setdefault(whole, (name, match[2]))
            if len(digits) != len(match[2]):
                raise ValueError(_in_doubt(before, name, "comma"))


def _in_doubt(first: str, second: str, mark: str) -> str:
    return (
        f"the order of {first} and {second} is ambiguous, the digits after the {mark} may be a "
        "fraction or a counter: give them one length"
    )


def load_rgb(path: Path, *, bits: int = 16) -> UInt8Array:
    """Read an image as (H, W, 3) uint8 RGB, upright.

    The EXIF orientation is applied: masks must have the upright orientation too. Gray becomes three
    equal channels, palettes are resolved, alpha is dropped. Values of more than 8 bits are scaled
    to 8.

    Args:
        path: The file.
        bits: Used bits of the values, if the file has more than 8: a camera of 12 bits leaves 4 of
            16 unused. Larger values become 255.

    Raises:
        VideoError: If the file is missing, damaged, truncated, or has floating-point pixels.
    """
    try:
        with open_image(path) as image:
            is_deep = _is_deep(image)  # before the pixels are read
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):  # 16-bit gray; Pillow's own conversion would clip it
                return np.repeat(_scaled(np.asarray(upright), bits)[:, :, None], 3, axis=2)
            if bits != 16 and is_deep:  # Pillow keeps the higher 8 bits of colours only
                rgb = Image.fromarray(_scaled(_deep_rgb(path), bits))
                rgb.getexif()[_EXIF_ORIENTATION] = image.getexif().get(_EXIF_ORIENTATION, 1)
                return np.array(ImageOps.exif_transpose(rgb), dtype=np.uint8)
            if upright.mode == "F":
                raise VideoError(f"{path} holds floating-point pixels: save it as 8 or 16 bits")
            # np.array, not asarray: frames are writable and contiguous.
            return np.array(upright.convert("RGB"), dtype=np.uint8)
    except OSError as error:
        raise VideoError(f"{path} cannot be read as an image: {_reason(path, error)}") from error


def used_bits(deep_paths: Iterable[Path]) -> int:
    """Return the bits that values of a sequence use; 16 without images.

    Reads images up to one that uses all 16 bits: in most sequences that is the first one.

    Args:
        deep_paths: Images of more than 8 bits per value.

    Raises:
        VideoError: If a file cannot be read, or has negative pixels.
    """
    largest = -1
    for path in deep_paths:
        try:
            with open_image(path) as image:
                is_gray = image.mode.startswith("I")
                values = np.asarray(image) if is_gray else _deep_rgb(path)
        except OSError as error:
            raise VideoError(
                f"{path} cannot be read as an image: {_reason(path, error)}"
            ) from error
        if values.min() < 0:
            raise VideoError(f"{path} holds negative pixels: save it as 8 or 16 bits")
        largest = max(largest, int(values.max()))
        if largest >> _DEPTHS[3] and values.dtype.itemsize == 2:
            return 16
    if largest < 0:
        return 16
    return next(bits for bits in _DEPTHS if not largest >> bits)


def _is_deep(image: Image.Image) -> bool:
    """Return whether the file of an image has more than 8 bits per value."""
    if image.mode == "F":
        return False
    arguments = [tile[3] for tile in getattr(image, "tile", ())]
    if image.format == "PPM" and image.mode == "RGB":  # other maxima state the used bits
        return any(
            _PPM_MAXIMUM in (each if isinstance(each, tuple) else (each,)) for each in arguments
        )
    return image.mode.startswith("I") or any(_DEEP.search(str(each)) for each in arguments)


def _deep_rgb(path: Path) -> npt.NDArray[Any]:
    """Read a file of more than 8 bits as (H, W, 3) RGB, not turned upright."""
    flags = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    bgr = cv2.imdecode(np.fromfile(path, np.uint8), flags)
    if bgr is None:
        raise ValueError("its values of more than 8 bits cannot be decoded")
    rgb: npt.NDArray[Any] = bgr[:, :, ::-1]
    return rgb


def _scaled(values: npt.NDArray[Any], bits: int) -> UInt8Array:
    """Scale values of 0..2^bits - 1 to 0..255."""
    scaled = np.rint(values.astype(np.float64) / (((1 << bits) - 1) / 255))
    return scaled.clip(0, 255).astype(np.uint8)


class ImageSequence(VideoSource):
    """Frames of image files. Use :func:`mpn.runtime.media.video.open_video`.

    Args:
        address: The folder or pattern, for messages.
        paths: The files in order. All headers are read at once, so that mixed sizes raise early.
        start: Index of the first frame.
        end: Index to stop before; None for all.
        fps: Frame rate.

    Images of more than 8 bits are scaled by the bits that the largest value of all chosen images
    uses: 8, 10, 12, 14 or 16.

    Attributes:
        folder: The folder that holds the images.
        names: Stems of all images by frame index, those outside of start and end included.
    """

    def __init__(
        self, address: Path, paths: Sequence[Path], *, start: int, end: int | None, fps: Fraction
    ) -> None:
        if start >= len(paths):
            raise start_beyond_end(str(address), start, len(paths))
        chosen = paths[start:end]
        deep = _check_one_size(chosen)
        self.folder = chosen[0].parent
        self.names = tuple(path.stem for path in paths)
        self._bits = used_bits(deep)
        self._later = chosen[1:]
        self._paths = tuple(paths)
        self._names = frozenset(path.stem for path in chosen)
        self._start = start
        super().__init__(
            name=self.folder.resolve().name,
            address=str(address),
            first_frame=_load_frame(chosen[0], start, fps, self._bits),
            fps=fps,
            time_base=1 / fps,
            frame_count_hint=len(chosen),
            end_index=start + len(chosen),
        )

    @property
    def frame_names(self) -> frozenset[str]:
        """Names of all frames."""
        return self._names

    @property
    def image_paths(self) -> tuple[Path, ...]:
        """Absolute paths of all images, by frame index as ``names``."""
        return tuple(path.absolute() for path in self._paths)

    def backwards(self, first: int, end: int) -> Iterator[Frame]:
        """See :meth:`VideoSource.backwards`."""
        if end > len(self._paths):
            raise EndsEarlyError(self.address, len(self._paths), end - 1)
        for index in range(end - 1, first - 1, -1):
            frame = _load_frame(self._paths[index], index, self.fps, self._bits)
            yield self._check_size(frame)

    def _frames_after_first(self) -> Iterator[Frame]:
        for index, path in enumerate(self._later, self._start + 1):
            yield _load_frame(path, index, self.fps, self._bits)

    def _release(self) -> None:
        pass  # a file is open only while it is read


def _load_frame(path: Path, index: int, fps: Fraction, bits: int) -> Frame:
    rgb = load_rgb(path, bits=bits)
    return Frame(index=index, rgb=rgb, pts_s=index / fps, name=path.stem)


def _check_one_size(paths: Sequence[Path]) -> list[Path]:
    """Raise VideoError with the first file that differs in size from the first one.

    Returns:
        The files of more than 8 bits per value.
    """
    deep = []
    first_hw, _ = _header(paths[0])
    for path in paths:
        size_hw, is_deep = _header(path)
        if is_deep:
            deep.append(path)
        if size_hw != first_hw:
            raise VideoError(
                f"{path} is {size_hw[1]}x{size_hw[0]} but {paths[0].name} is "
                f"{first_hw[1]}x{first_hw[0]} (width x height): all frames must have one size"
            )
    return deep


def _header(path: Path) -> tuple[tuple[int, int], bool]:
    """Return the upright (height, width), and whether values have over 8 bits."""
    try:
        with open_image(path) as image:
            width, height = image.size
            is_deep = _is_deep(image)
            # Pillow would decode a whole PNG to find EXIF data after the pixels.
            has_exif = image.format != "PNG" or "exif" in image.info
            if has_exif and image.getexif().get(_EXIF_ORIENTATION) in _TRANSPOSED:
                return (width, height), is_deep
            return (height, width), is_deep
    except OSError as error:
        raise VideoError(f"{path} cannot be read as an image: {_reason(path, error)}") from error


def _reason(path: Path, error: OSError) -> str:
    """Return the reason why a file cannot be read, without its path."""
    if error.strerror:
        return error.strerror
    if "cannot identify" in str(error):
        kind = kind_of_file(path)
        return f"it is {kind}" if kind else "its content is no image format that is known"
    return str(error)
