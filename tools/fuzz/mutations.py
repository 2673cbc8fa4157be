"""Mutate files: bytes of any file, and the structure of known formats.

A mutation is a pure function of the bytes and of a random generator. Formats of nested parts (PNG,
RIFF, MP4, Matroska, protobuf, ZIP) are parsed to a tree, changed and written with correct sizes and
checksums, so that the change is read and not the checksum.
"""

from __future__ import annotations

import io
import json
import pickletools
import random
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

MOST_BYTES = 1 << 20
"""Largest mutated file. Larger ones are slow and show nothing else."""

_INTEGERS = (0, 1, 2, 3, 4, 7, 8, 15, 16, 31, 32, 64, 100, 127, 128, 129, 254, 255, 256, 257, 1000)
_INTEGERS += (32767, 32768, 65535, 65536, 1 << 24, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
_INTEGERS += ((1 << 63) - 1, 1 << 63, (1 << 64) - 1)

_TOKENS = (
    *(b"IHDR PLTE tRNS IDAT IEND acTL fcTL fdAT eXIf iCCP tEXt zTXt iTXt gAMA".split()),
    *(b"ftyp moov mvhd trak tkhd edts elst mdia mdhd hdlr stbl stsd stts ctts stsc stsz".split()),
    *(b"stco co64 stss moof traf trun mdat avc1 avcC uuid RIFF AVI LIST hdrl movi idx1".split()),
    *(b"WEBP VP8X VP8L ANIM ANMF ALPH EXIF ICCP GIF89a JFIF Exif\0\0 II*\0 MM\0*".split()),
    *(b"format mpn-checkpoint schema_version roles variant config state_dict".split()),
    *(b"provenance sha256 __metadata__ shape dtype data_offsets F32 I64 BF16".split()),
    *(b"shapes points label group_id imageHeight imageWidth polygon circle rectangle".split()),
    *(b"\x1aE\xdf\xa3 \x18S\x80g \x1fC\xb6u \x16T\xaek PK\x03\x04 PK\x01\x02 PK\x05\x06".split()),
    *(b"null true false NaN Infinity -1 1e999 1e308 .. / \\u0000 \\ud800".split()),
    b"\0\0\0\1\x67", b"\0\0\0\1\x65", b"\xff\xd8\xff\xe1", b"\xff\xda", b"\0" * 16, b"\xff" * 16,
)  # fmt: skip

_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 255, 256, -(1 << 31), 1 << 31, 1 << 63, 1 << 64, 10**40),
    *(0.0, -0.0, 0.5, -1.5, 1e-320, 1e308, "", "0", "1", "x", "..", "/", "../x", "a/b", "\0"),
    *("\ud800", "\x1b[31m", "é" * 300, "x" * 100_000, [], {}, [[]], [0], [None], {"": {}}, [1, 2]),
    *([0] * 1000, {str(n): n for n in range(300)}, "float32", "fp16", "polygon", "all"),
    *("F16", "BF16", "F8_E4M3", "I64", "F32"),
)
_NUMBER = re.compile(rb"\d+")
_NUMBERS = (
    b"-1",
    b"0.5",
    b"1e9",
    b"nan",
    b"inf",
    b"",
    b"9" * 30,
    b"9" * 5000,
    b"0x10",
    b"\xd9\xa3",
)
_DEEP = "mpn-fuzz-deep"
_DEEP_LEVELS = 50_000
_NOT_A_NUMBER = "mpn-fuzz-nan"


@dataclass
class Part:
    """A part of a file, such as a PNG chunk, MP4 box or protobuf field.

    Attributes:
        name: Its type.
        body: Its content, or the parts in it.
        size: The size to write; None for the true one.
    """

    name: bytes
    body: bytes | list[Part]
    size: int | None = None


Mutation = Callable[[bytes, random.Random, Sequence[bytes]], bytes]
"""Function from a file, a random generator and other files of its kind to another file."""


def mutated(data: bytes, salt: int, others: Sequence[bytes]) -> bytes:
    """Mutate a file once: its structure in half of all cases, otherwise its bytes.

    Args:
        data: The file.
        salt: Seed of the random choices.
        others: Files to copy pieces from.
    """
    rng = random.Random(salt)
    change = rng.choice((_structure, _bytes))
    return change(data, rng, others)[:MOST_BYTES]


def _flip_bits(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 8, 64))):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _set_bytes(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    at, length = _span(data, rng)
    return data[:at] + rng.randbytes(length) + data[at + length :]


def _set_integer(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    """Overwrite an integer, as a field of a size or an offset, or add to it."""
    width = rng.choice((1, 2, 4, 4, 8))
    order = rng.choice(("little", "big"))
    # Half of all in the first bytes: headers have the sizes.
    limit = min(len(data), 256) if rng.random() < 0.5 else len(data)
    at = rng.randrange(max(limit - width, 0) + 1)
    value = rng.choice((*_INTEGERS, len(data), len(data) - at))
    if rng.random() < 0.3:
        value = int.from_bytes(data[at : at + width], order) + rng.randint(-4, 4)
    field = (value & ((1 << (8 * width)) - 1)).to_bytes(width, order)
    return data[:at] + field + data[at + width :]


def _remove(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    at, length = _span(data, rng)
    return data[:at] + data[at + length :]


def _repeat(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    at, length = _span(data, rng)
    count = rng.choice((1, 1, 2, 50))
    return data[: at + length] + data[at : at + length] * count + data[at + length :]


def _move(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    at, length = _span(data, rng)
    rest = data[:at] + data[at + length :]
    to = rng.randrange(len(rest) + 1)
    return rest[:to] + data[at : at + length] + rest[to:]


def _insert_token(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    token = rng.choice(_TOKENS)
    at = rng.randrange(len(data) + 1)
    kept = at + len(token) * rng.randrange(2)
    return data[:at] + token + data[kept:]


def _set_number(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    """Replace a number in a text, such as XML or the header of an array."""
    found = list(_NUMBER.finditer(data[: 1 << 14]))
    if not found:
        raise ValueError("no number")
    match = rng.choice(found)
    text = rng.choice(_NUMBERS) if rng.random() < 0.5 else str(rng.choice(_INTEGERS)).encode()
    return data[: match.start()] + text + data[match.end() :]


def _truncate(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _extend(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    tail = rng.choice((b"\0" * 512, rng.randbytes(64), rng.choice(_TOKENS), data[:4096]))
    return data + tail


def _splice(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    other = rng.choice(others) if others else data
    at = rng.randrange(len(data) + 1)
    start, length = _span(other, rng)
    return data[:at] + other[start : start + length] + data[at + length * rng.randrange(2) :]


def _structure(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Change the structure of a known format; bytes of another one."""
    for is_this, change in _STRUCTURES:
        if is_this(data):
            try:
                return change(data, rng, others)
            except (ValueError, LookupError, struct.error, RecursionError):
                break  # damaged by an earlier mutation
    return _bytes(data, rng, others)


def _bytes(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    return rng.choice(_BYTE_MUTATIONS)(data, rng, others)


_BYTE_MUTATIONS: tuple[Mutation, ...] = (
    _flip_bits,
    _set_bytes,
    _set_integer,
    _set_integer,
    _remove,
    _repeat,
    _move,
    _insert_token,
    _truncate,
    _extend,
    _splice,
)


def _span(data: bytes, rng: random.Random) -> tuple[int, int]:
    """Choose a start and a length; short lengths are as frequent as long ones."""
    at = rng.randrange(len(data) + 1)
    length = min(1 << rng.randrange(13), len(data) - at)
    if rng.random() < 0.2:  # packets of MPEG-TS
        at -= at % 188
    return at, rng.randint(0, length)


# Trees of parts


def _change_tree(parts: list[Part], rng: random.Random, others: Sequence[bytes]) -> None:
    """Change one part of a tree in place."""
    lists = [parts]
    for found in lists:
        lists += [part.body for part in found if isinstance(part.body, list)]
    siblings = rng.choice([found for found in lists if found] or [parts])
    if not siblings:
        raise ValueError("no parts")
    at = rng.randrange(len(siblings))
    part = siblings[at]
    change = rng.choice(("body", "body", "body", "size", "remove", "copy", "swap", "name", "body="))
    if change == "body" and isinstance(part.body, bytes):
        part.body = _structure(part.body, rng, ())
    elif change == "body=":
        part.body = rng.choice((b"", b"\0" * 8, b"\xff" * 8, rng.randbytes(16)))
    elif change == "size":
        true = len(part.body) if isinstance(part.body, bytes) else 0
        part.size = rng.choice((*_INTEGERS, true + 1, max(true - 1, 0))) & 0xFFFFFFFF
    elif change == "remove":
        del siblings[at]
    elif change == "copy":
        siblings[at:at] = [part] * rng.choice((1, 1, 2, 100))
    elif change == "swap":
        to = rng.randrange(len(siblings))
        siblings[at], siblings[to] = siblings[to], siblings[at]
    else:
        part.name = rng.choice(rng.choice(lists) or siblings).name


def _tree(parse: Callable[[bytes], list[Part]], write: Callable[[list[Part]], bytes]) -> Mutation:
    def change(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
        parts = parse(data)
        _change_tree(parts, rng, others)
        return write(parts)

    return change


_PNG = b"\x89PNG\r\n\x1a\n"


def _png_parts(data: bytes) -> list[Part]:
    parts, at = [], len(_PNG)
    while at + 8 <= len(data):
        size, name = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + 8 + size]
        if name == b"IDAT":
            try:
                body = zlib.decompressobj().decompress(body, MOST_BYTES)
            except zlib.error:
                name = b"IDAt"
        parts.append(Part(name, body))
        at += 12 + size
    return parts


def _png(parts: list[Part]) -> bytes:
    written = [_PNG]
    for part in parts:
        body = part.body if isinstance(part.body, bytes) else b""
        name = part.name
        if name == b"IDAT":
            body = zlib.compress(body, 1)
        elif name == b"IDAt":  # not decompressed
            name = b"IDAT"
        size = len(body) if part.size is None else part.size
        written += [struct.pack(">I4s", size, name), body]
        written.append(struct.pack(">I", zlib.crc32(name + body)))
    return b"".join(written)


def _riff_parts(data: bytes) -> list[Part]:
    parts, at = [], 0
    while at + 8 <= len(data):
        name, size = struct.unpack("<4sI", data[at : at + 8])
        body = data[at + 8 : at + 8 + size]
        if name in (b"RIFF", b"LIST") and len(body) >= 4:
            parts.append(Part(name + body[:4], _riff_parts(body[4:])))
        else:
            parts.append(Part(name, body))
        at += 8 + size + size % 2
    return parts


def _riff(parts: list[Part]) -> bytes:
    written = []
    for part in parts:
        body = part.body if isinstance(part.body, bytes) else part.name[4:] + _riff(part.body)
        size = len(body) if part.size is None else part.size
        written += [struct.pack("<4sI", part.name[:4], size), body, b"\0" * (len(body) % 2)]
    return b"".join(written)


_BOXES_OF_BOXES = frozenset(b"moov trak mdia minf stbl edts dinf moof traf mvex udta".split())


def _boxes(data: bytes) -> list[Part]:
    parts, at = [], 0
    while at + 8 <= len(data):
        size, name = struct.unpack(">I4s", data[at : at + 8])
        size = len(data) - at if size == 0 else max(size, 8)
        body = data[at + 8 : at + size]
        parts.append(Part(name, _boxes(body) if name in _BOXES_OF_BOXES else body))
        at += size
    return parts


def _from_boxes(parts: list[Part]) -> bytes:
    written = []
    for part in parts:
        body = part.body if isinstance(part.body, bytes) else _from_boxes(part.body)
        size = len(body) + 8 if part.size is None else part.size
        written += [struct.pack(">I4s", size, part.name), body]
    return b"".join(written)


_MASTERS = frozenset(
    bytes.fromhex(name)
    for name in (
        *(
            "1a45dfa3",
            "18538067",
            "114d9b74",
            "4dbb",
            "1549a966",
            "1654ae6b",
            "ae",
            "e0",
            "1f43b675",
        ),
        *("a0", "1c53bb6b", "bb", "b7", "1254c367", "7373", "63c0", "67c8"),
    )
)


def _elements(data: bytes) -> list[Part]:
    parts, at = [], 0
    while at < len(data) and data[at]:
        width = 9 - data[at].bit_length()
        name, at = data[at : at + width], at + width
        if at >= len(data) or not data[at]:
            break
        width = 9 - data[at].bit_length()
        size = int.from_bytes(data[at : at + width], "big") & ((1 << (7 * width)) - 1)
        at += width
        size = min(size, len(data) - at)
        body = data[at : at + size]
        parts.append(Part(name, _elements(body) if name in _MASTERS else body))
        at += size
    return parts


def _from_elements(parts: list[Part]) -> bytes:
    written = []
    for part in parts:
        body = part.body if isinstance(part.body, bytes) else _from_elements(part.body)
        size = len(body) if part.size is None else part.size
        written += [part.name, (size | 1 << 56).to_bytes(8, "big"), body]
    return b"".join(written)


_DEEPEST = 12


def _fields(data: bytes, depth: int = 0) -> list[Part]:
    """Parse a protobuf message; a text that happens to be one is parsed too."""
    parts, at = [], 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if not 0 < tag >> 3 < 1 << 16 or kind not in (0, 1, 2, 5):
            raise ValueError("no protobuf")
        if kind == 2:
            size, at = _varint(data, at)
        elif kind == 0:
            size = _varint(data, at)[1] - at
        else:
            size = 8 if kind == 1 else 4
        body: bytes | list[Part] = data[at : at + size]
        if len(body) != size:
            raise ValueError("no protobuf")
        if kind == 2 and 1 < size < 1 << 16 and depth < _DEEPEST:
            try:
                body = _fields(data[at : at + size], depth + 1)
            except (ValueError, IndexError):
                body = data[at : at + size]
        parts.append(Part(_as_varint(tag), body))
        at += size
    return parts


def _from_fields(parts: list[Part]) -> bytes:
    written = []
    for part in parts:
        body = part.body if isinstance(part.body, bytes) else _from_fields(part.body)
        written.append(part.name)
        if part.name[0] & 7 == 2:
            written.append(_as_varint(len(body) if part.size is None else part.size))
        written.append(body)
    return b"".join(written)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128 or shift > 63:
            return value, at


def _as_varint(value: int) -> bytes:
    written = bytearray()
    while value > 127:
        written.append(value & 127 | 128)
        value >>= 7
    return bytes([*written, value])


def _zip_parts(data: bytes) -> list[Part]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return [
                Part(entry.filename.encode(), archive.read(entry)) for entry in archive.infolist()
            ]
    except Exception as error:  # zipfile raises many
        raise ValueError("no archive") from error


def _zip(parts: list[Part]) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w") as archive:
        warnings.simplefilter("ignore")  # two entries of one name are meant
        for part in parts:
            name = part.name.decode(errors="replace")
            archive.writestr(name, part.body if isinstance(part.body, bytes) else b"")
    return file.getvalue()


# Formats of other structure


def _json(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    """Replace, remove, copy or move a value, or rename a field."""
    value = json.loads(data.decode())
    places = [(holder, key) for holder in _holders(value) for key in _keys(holder)]
    if not places:
        return json.dumps(rng.choice(_VALUES)).encode(errors="surrogatepass")
    holder, key = rng.choice(places)
    change = rng.choice(("set", "set", "set", "remove", "copy", "rename", "deep", "nan", "number"))
    if change == "remove":
        del holder[key]
    elif change == "copy":
        other, from_key = rng.choice(places)
        # A copy: a value in itself has no text.
        holder[key] = json.loads(json.dumps(other[from_key]))
    elif change == "rename" and isinstance(holder, dict):
        name = rng.choice(("", "x", "\ud800", "\x1b[2J", "k" * 5000, str(rng.choice(places)[1])))
        holder[name] = holder.pop(key)
    elif change == "rename":
        holder[key:key] = [holder[key]] * rng.choice((1, 3, 1000))
    elif change == "number" and isinstance(holder[key], int | float):
        holder[key] = rng.choice((-holder[key], holder[key] + 1, holder[key] * 1000, 0.5))
    elif change == "number":
        holder[key] = rng.choice(_INTEGERS)
    elif change in ("deep", "nan"):
        holder[key] = _DEEP if change == "deep" else _NOT_A_NUMBER
    else:
        holder[key] = rng.choice(_VALUES)
    text = json.dumps(value, ensure_ascii=rng.random() < 0.8)
    text = text.replace(f'"{_DEEP}"', "[" * _DEEP_LEVELS + "]" * _DEEP_LEVELS)
    text = text.replace(
        f'"{_NOT_A_NUMBER}"', rng.choice(("NaN", "1e999", "-Infinity", "9" * 4200, "9" * 5000))
    )
    if rng.random() < 0.05:  # a field twice
        text = text.replace('"', '"x": 1, "', 1) + text[-1:]
    return text.encode(errors="surrogatepass")


def _holders(value: Any) -> list[Any]:
    found = [value]
    for each in found:
        inner = each.values() if isinstance(each, dict) else each if isinstance(each, list) else ()
        found += [item for item in inner if isinstance(item, dict | list)]
    return [each for each in found if isinstance(each, dict | list)]


def _keys(holder: Any) -> list[Any]:
    return list(holder) if isinstance(holder, dict) else list(range(len(holder)))


def _safetensors(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    size = int.from_bytes(data[:8], "little")
    header = _structure(data[8 : 8 + size], rng, ())
    if rng.random() < 0.9:
        header += b" " * (-len(header) % 8)
        size = len(header)
    return size.to_bytes(8, "little") + header + data[8 + int.from_bytes(data[:8], "little") :]


_PICKLED_TEXTS = (
    *("format", "mpn-checkpoint", "schema_version", "roles", "variant", "config", "state_dict"),
    *("flow", "propagation", "osvos", "features", "FlowNet2S", "DeepLabXception", "OsvosVgg"),
    *("width", "backbone", "weight", "predict_flow6.weight", "side_prep.0.weight", "x", ""),
    *("storage", "cpu", "cuda:0", "meta", "0", "\x1b[31m", "x" * 10_000, "module." * 1000),
)
_PICKLED_NAMES = (
    *(b"torch\nFloatStorage\n", b"torch\nHalfStorage\n", b"torch._utils\n_rebuild_tensor_v2\n"),
    *(b"torch._utils\n_rebuild_parameter\n", b"collections\nOrderedDict\n", b"torch\nSize\n"),
    *(
        b"torch._utils\n_rebuild_sparse_tensor\n",
        b"torch._utils\n_rebuild_meta_tensor_no_storage\n",
    ),
    *(b"torch._utils\n_rebuild_qtensor\n", b"torch\nfloat32\n", b"torch\ndevice\n"),
    *(b"numpy._core.multiarray\nscalar\n", b"numpy\ndtype\n", b"numpy\nndarray\n"),
    *(b"numpy.core.multiarray\n_reconstruct\n", b"_codecs\nencode\n", b"builtins\nbytearray\n"),
    *(b"torch._tensor\n_rebuild_from_type_v2\n", b"torch.storage\nUntypedStorage\n"),
    *(b"os\nsystem\n", b"torch\nbfloat16\n", b"torch._utils\n_rebuild_wrapper_subclass\n"),
)
_OPCODES = tuple(b"NU)]}tRb.0(12asue\x85\x86\x87\x88\x89\x94Qqhr")


def _pickle(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    """Change one opcode of a pickle, or its argument."""
    operations: list[tuple[Any, Any, int]] = []
    with suppress(Exception):  # a damaged pickle: the opcodes before the damage are complete
        for code, argument, at in pickletools.genops(data):
            operations.append((code, argument, at or 0))
    if len(operations) < 2:
        raise ValueError("no pickle")
    starts = [at for _, _, at in operations]
    index = rng.randrange(len(starts) - 1)
    code, argument, at = operations[index]
    end = starts[min(index + rng.choice((1, 1, 1, 2, 5)), len(starts) - 1)]
    change = rng.choice(("argument", "argument", "argument", "remove", "repeat", "opcode", "move"))
    if change == "remove":
        return data[:at] + data[end:]
    if change == "repeat":
        return data[:end] + data[at:end] * rng.choice((1, 2, 200)) + data[end:]
    if change == "opcode":
        return data[:at] + bytes([rng.choice(_OPCODES)]) + data[at + 1 :]
    if change == "move":
        to = rng.choice(starts)
        piece = data[at:end]
        return data[:to] + piece + data[to:]
    end = starts[index + 1]
    if isinstance(argument, bool | None) or code.name in ("GLOBAL", "STACK_GLOBAL"):
        new = b"c" + rng.choice(_PICKLED_NAMES)
    elif isinstance(argument, int):
        number = rng.choice((*_INTEGERS, -1, -2, abs(argument) + 1))
        number = rng.choice((number, number, number, 1 << 2000))
        width = max(16, number.bit_length() // 8 + 1)
        new = b"\x8a" + bytes([width]) + number.to_bytes(width, "little", signed=True)
        if number < 0:
            new = b"J" + number.to_bytes(4, "little", signed=True)
    else:
        text = rng.choice(_PICKLED_TEXTS).encode()
        new = b"X" + len(text).to_bytes(4, "little") + text
    return data[:at] + new + data[end:]


_EXIF = b"Exif\0\0"


def _tiff(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    """Change the tag, type, count or value of an entry of the first directory."""
    base = 6 if data.startswith(_EXIF) else 0
    order = "little" if data[base : base + 2] == b"II" else "big"
    start = base + int.from_bytes(data[base + 4 : base + 8], order)
    count = int.from_bytes(data[start : start + 2], order)
    at = start + 2 + 12 * rng.randrange(max(count, 1))
    offset, width = rng.choice(((0, 2), (2, 2), (4, 4), (8, 4), (8, 2), (8, 4)))
    value = rng.choice((*_INTEGERS, rng.randrange(0x10000))) & ((1 << (8 * width)) - 1)
    at += offset
    return data[:at] + value.to_bytes(width, order) + data[at + width :]


def _jpeg_parts(data: bytes) -> list[Part]:
    parts, at = [], 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        size = int.from_bytes(data[at + 2 : at + 4], "big")
        parts.append(Part(data[at : at + 2], data[at + 4 : at + 2 + size]))
        at += 2 + max(size, 2)
    return [*parts, Part(b"", data[at:])]


def _jpeg(parts: list[Part]) -> bytes:
    written = [b"\xff\xd8"]
    for part in parts:
        body = part.body if isinstance(part.body, bytes) else b""
        size = len(body) + 2 if part.size is None else part.size
        written += [part.name, (size & 0xFFFF).to_bytes(2, "big") if part.name else b"", body]
    return b"".join(written)


def _is_json(data: bytes) -> bool:
    return data[:1] in (b"{", b"[") and data.rstrip()[-1:] in (b"}", b"]")


_STRUCTURES: tuple[tuple[Callable[[bytes], bool], Mutation], ...] = (
    (_is_json, _json),
    (lambda data: data.startswith(_PNG), _tree(_png_parts, _png)),
    (lambda data: data.startswith(b"RIFF"), _tree(_riff_parts, _riff)),
    (lambda data: data[4:8] in (b"ftyp", b"moov", b"mdat"), _tree(_boxes, _from_boxes)),
    (lambda data: data.startswith(b"\x1aE\xdf\xa3"), _tree(_elements, _from_elements)),
    (lambda data: data.startswith(b"PK\x03\x04"), _tree(_zip_parts, _zip)),
    (lambda data: data[8:9] == b"{", _safetensors),
    (lambda data: data.startswith(b"\x80"), _pickle),
    (lambda data: data.removeprefix(_EXIF)[:4] in (b"II*\0", b"MM\0*"), _tiff),
    (lambda data: data.startswith(b"\xff\xd8"), _tree(_jpeg_parts, _jpeg)),
    (lambda data: data[:1].isdigit() or data.startswith((b"<", b"\x93", b"P")), _set_number),
    (lambda data: data[:1] == b"\x08" and len(data) > 16, _tree(_fields, _from_fields)),
)
"""Test of a format, and its mutation. ONNX files start with field 1, the version of the format."""
