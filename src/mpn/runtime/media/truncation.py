"""Find files whose headers state more bytes than they have."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

_EBML_HEADER = b"\x1a\x45\xdf\xa3"
_MATROSKA_SEGMENT = b"\x18\x53\x80\x67"
_MATROSKA_CLUSTER = b"\x1f\x43\xb6\x75"

_BOXES = frozenset(
    b"ftyp styp moov moof mdat mfra free skip wide junk udta meta uuid pnot PICT pdin sidx ssix "
    b"prft emsg".split()
)
"""Top-level boxes of MP4 and QuickTime; other bytes after the last box are ignored."""
_BOXES_WITH_FRAMES = frozenset((b"mdat", b"moof", b"moov"))
_OPEN_RIFF_SIZES = (0, 0xFFFFFFFF)
"""Left by a writer that could not go back to the header, such as a pipe."""


def is_truncated(path: Path) -> bool:
    """Return whether a file lacks bytes of frames that its headers require.

    Reads MP4/MOV boxes (ISO/IEC 14496-12, 4.2), Matroska/WebM elements (RFC 8794, RFC 9559) and
    the RIFF lists of AVI. Returns False for other formats, for a size that was left open, if only
    an index or tags are cut, and for other bytes after the end.

    Args:
        path: The file; the result is False if it cannot be read.
    """
    try:
        length = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(12)
            file.seek(0)
            if head[4:8] in _BOXES:
                return _is_mp4_cut(file, length)
            if head[:4] == _EBML_HEADER:
                return _is_matroska_cut(file, length)
            return head[:4] == b"RIFF" and head[8:12] == b"AVI " and _is_avi_cut(file, length)
    except (OSError, struct.error):
        return False


def has_tag_beyond_end(path: Path) -> bool:
    """Return whether a tag of a RIFF file (AVI, WAV) is longer than the file.

    FFmpeg allocates and clears as many bytes as the tag states, up to 4 GiB, and then refuses the
    file.

    Args:
        path: The file; the result is False if it cannot be read.
    """
    try:
        length = path.stat().st_size
        with path.open("rb") as file:
            if file.read(4) != b"RIFF":
                return False
            position = 12
            while position + 12 <= length:
                file.seek(position)
                name, size, kind = struct.unpack("<4sI4s", file.read(12))
                if name in (b"LIST", b"RIFF") and kind == b"movi":
                    return False
                if name == b"LIST" and kind == b"INFO" and _is_tag_cut(file, size, length):
                    return True
                is_opened = name in (b"LIST", b"RIFF") and kind != b"INFO"
                position += 12 if is_opened else 8 + size + size % 2
    except (OSError, struct.error):
        return False
    return False


def _is_tag_cut(file: BinaryIO, list_bytes: int, length: int) -> bool:
    """Return whether a tag of a list, whose first tag is the next one, is cut."""
    position = file.tell()
    end = min(position + list_bytes - 4, length)
    while position + 8 <= end:
        file.seek(position + 4)
        size = struct.unpack("<I", file.read(4))[0]
        position += 8 + size + size % 2
        if position > length + 1:
            return True
    return False


def _is_mp4_cut(file: BinaryIO, length: int) -> bool:
    position = 0
    while position + 8 <= length:
        file.seek(position)
        header = file.read(16)
        size, box = struct.unpack(">I", header[:4])[0], header[4:8]
        if size == 1:
            size = struct.unpack(">Q", header[8:16])[0]
        if size < 8 or box not in _BOXES:  # 0: to the end of the file
            return False
        position += size
        if position > length:
            return box in _BOXES_WITH_FRAMES
    return False


def _is_avi_cut(file: BinaryIO, length: int) -> bool:
    """Return whether a list ``movi``, of one of the RIFF parts of OpenDML, is cut."""
    riff = 0
    while riff + 12 <= length:
        file.seek(riff)
        name, size = struct.unpack("<4sI", file.read(8))
        if name != b"RIFF" or size in _OPEN_RIFF_SIZES:
            return False
        position, riff = riff + 12, riff + 8 + size + size % 2
        while position + 12 <= min(riff, length):
            file.seek(position)
            name, size, kind = struct.unpack("<4sI4s", file.read(12))
            position += 8 + size + size % 2
            if name == b"LIST" and kind == b"movi":
                if size in _OPEN_RIFF_SIZES:
                    return False
                if position - size % 2 > length:
                    return True
    return False


def _is_matroska_cut(file: BinaryIO, length: int) -> bool:
    file.read(4)
    header_size = _ebml_size(file)
    if header_size is None:
        return False
    file.seek(header_size, 1)
    if file.read(4) != _MATROSKA_SEGMENT:
        return False
    size = _ebml_size(file)
    if size is None or file.tell() + size <= length:
        return False
    has_cluster = False
    while name := _ebml_name(file):
        size = _ebml_size(file)
        has_cluster |= name == _MATROSKA_CLUSTER
        if size is None:
            return True
        if file.tell() + size > length:
            return name == _MATROSKA_CLUSTER or not has_cluster
        file.seek(size, 1)
    return True  # between two elements


def _ebml_name(file: BinaryIO) -> bytes:
    """Read the name of an element; empty at the end of the file."""
    first = file.read(1)
    return first + file.read(8 - first[0].bit_length()) if first and first[0] else b""


def _ebml_size(file: BinaryIO) -> int | None:
    """Read a variable-length size; None if it is unknown (all ones).

    The number of leading zero bits is the number of further bytes.
    """
    first = file.read(1)
    if not first or first[0] == 0:
        return None
    width = 9 - first[0].bit_length()
    rest = file.read(width - 1)
    if len(rest) != width - 1:
        return None
    value = int.from_bytes(bytes([first[0] & ((1 << (8 - width)) - 1)]) + rest, "big")
    return None if value == (1 << (7 * width)) - 1 else value
