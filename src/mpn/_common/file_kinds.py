"""Name the kind of a file by its first bytes, for messages about unusable files."""

from __future__ import annotations

import re
from pathlib import Path

from mpn._common.files import first_bytes

_HEAD_BYTES = 4096
_TEXT = rb"(?:\xef\xbb\xbf)?\s*"
"""Start of a text: a byte order mark and white space."""

_KINDS = (
    (rb"II\*\0|MM\0\*", "a raw photograph, or a damaged TIFF image"),
    (rb"\x93NUMPY", "a NumPy array"),
    (rb"....ftyp(?:heic|heix|mif1|msf1)", "an HEIC photograph"),
    (rb"....ftypavi[fs]", "an AVIF image"),
    (rb"....ftyp", "a video (MP4 or MOV)"),
    (rb"\x1a\x45\xdf\xa3", "a video (Matroska or WebM)"),
    (rb"RIFF....AVI ", "a video (AVI)"),
    (rb"\0\0\0\x0cJXL |\xff\x0a", "a JPEG XL image"),
    (rb"\0\0\0\x0cjP  ", "a JPEG 2000 image"),
    (rb"v/1\x01", "an OpenEXR image"),
    (rb"#\?RADIANCE", "a Radiance HDR image"),
    (rb"8BPS", "a Photoshop file"),
    (rb"gimp xcf", "a GIMP file"),
    (rb"%PDF", "a PDF document"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "a PostScript file"),
    (rb"\x89HDF", "an HDF5 file"),
    (rb"MATLAB 5", "a MATLAB file"),
    (rb"SIMPLE  =", "a FITS file"),
    (rb".{128}DICM", "a DICOM file"),
    (rb"PK\x03\x04", "a ZIP archive"),
    (rb"\x1f\x8b", "a gzip archive"),
    (rb"version https://git-lfs", "a pointer of Git LFS: fetch the file itself with git lfs pull"),
    (_TEXT + rb"#EXTM3U", "a playlist (m3u8)"),
    (_TEXT + rb"(?:<\?xml[^<]*)?(?:<!--.*?-->\s*)?<svg", "an SVG drawing"),
    (_TEXT + rb"(?i:<!doctype html|<html)", "a web page"),
    (_TEXT + rb"<\?xml", "an XML document"),
    (_TEXT + rb"[\[{]", "JSON"),
)
_PATTERNS = tuple((re.compile(pattern, re.DOTALL), kind) for pattern, kind in _KINDS)


def kind_of_file(path: Path) -> str | None:
    """Return a noun phrase for the kind of a file that cannot be read.

    Args:
        path: The file.

    Returns:
        None for an image or a text, and if the kind is not known.
    """
    head = first_bytes(path, _HEAD_BYTES)
    return next((kind for pattern, kind in _PATTERNS if pattern.match(head)), None)
