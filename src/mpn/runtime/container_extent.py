"""Does a media file reach as far as its own structure says?

Demuxers of several formats end in silence where a file was cut; a cut must not look like the end.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

_EBML_HEADER = b"\x1a\x45\xdf\xa3"
_MATROSKA_SEGMENT = b"\x18\x53\x80\x67"


def is_cut_short(path: Path) -> bool:
    """Whether the file is shorter than its top-level structure announces.

    Reads MP4/MOV boxes (ISO/IEC 14496-12, 4.2), the Matroska/WebM segment size (RFC 8794) and the
    RIFF size of AVI; any other format, and a size left open as in a live recording, is False.

    Args:
        path: The file; anything that is not one is False.
    """
    try:
        length = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(12)
            file.seek(0)
            if head[4:8] == b"ftyp":
                end = _mp4_end(file, length)
            elif head[:4] == _EBML_HEADER:
                end = _matroska_end(file)
            elif head[:4] == b"RIFF" and head[8:12] == b"AVI ":
                end = 8 + struct.unpack("<I", head[4:8])[0]
            else:
                return False
    except (OSError, struct.error):
        return False
    return end is not None and end > length


def _mp4_end(file: BinaryIO, length: int) -> int | None:
    """Where the last top-level box ends; None if it is open-ended."""
    position = 0
    while position + 8 <= length:
        file.seek(position)
        header = file.read(16)
        size = struct.unpack(">I", header[:4])[0]
        if size == 1:
            size = struct.unpack(">Q", header[8:16])[0]
        if size < 8:  # 0: to the end of the file; less than its own header: not a box
            return None
        position += size
    return position


def _matroska_end(file: BinaryIO) -> int | None:
    """Where the segment ends; None if its size is unknown or it does not follow the header."""
    file.read(4)
    header_size = _ebml_size(file)
    if header_size is None:
        return None
    file.seek(header_size, 1)
    if file.read(4) != _MATROSKA_SEGMENT:
        return None
    size = _ebml_size(file)
    return None if size is None else file.tell() + size


def _ebml_size(file: BinaryIO) -> int | None:
    """A variable-length size: leading zero bits count its bytes; all ones mean unknown."""
    first = file.read(1)
    if not first or first[0] == 0:
        return None
    width = 9 - first[0].bit_length()
    rest = file.read(width - 1)
    if len(rest) != width - 1:
        return None
    value = int.from_bytes(bytes([first[0] & ((1 << (8 - width)) - 1)]) + rest, "big")
    return None if value == (1 << (7 * width)) - 1 else value
