"""The fuzzer: its mutations, and the check that it finds planted faults."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from pathlib import Path

import pytest

from mpn.masks import png_from_labels
from tests.runtime.media.clips import scene_labels
from tools.fuzz.__main__ import main
from tools.fuzz.mutations import mutated
from tools.fuzz.targets import TARGETS
from tools.fuzz.worker import read_outcome

PNG = png_from_labels(scene_labels(0))


def _zip(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.json", content)
    return file.getvalue()


def _crcs_hold(data: bytes) -> bool:
    """Return whether all chunks of a PNG are whole, and have their checksum."""
    at = 8
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunk, crc = data[at + 4 : at + 8 + size], data[at + 8 + size : at + 12 + size]
        if len(crc) != 4 or zlib.crc32(chunk) != int.from_bytes(crc, "big"):
            return False
        at += 12 + size
    return True


def _archive_holds(data: bytes) -> bool:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return archive.testzip() is None
    except Exception:  # zipfile raises many
        return False


@pytest.mark.parametrize(
    ("data", "is_whole"),
    [(PNG, _crcs_hold), (_zip(json.dumps({"a": [1, 2], "b": "c"}).encode()), _archive_holds)],
    ids=["png", "zip"],
)
def test_mutations_change_files_below_the_checksums(data: bytes, is_whole: object) -> None:
    """Half of the changes are inside: without them, only checksums would be tested."""
    assert callable(is_whole)
    assert is_whole(data)
    made = [mutated(data, salt, (data,)) for salt in range(200)]
    assert made == [mutated(data, salt, (data,)) for salt in range(200)]
    changed = [each for each in made if each != data]
    whole = sum(map(is_whole, changed))
    assert len(changed) > 150
    assert len(changed) / 4 < whole < len(changed)


def test_outcome_is_an_escape_for_foreign_errors_only(tmp_path: Path) -> None:
    contents = {
        "a.json": (b'{"frames": 1, "names": ["a"]}', "accepted"),
        "b.json": (b"{", "refused"),
        "c.json": (b'{"frames": 1, "names": []}', "exception"),
        "d.bin": (b"MPNF" + struct.pack("<II", 1 << 29, 0xFFFFFFFF), "memory"),
    }
    for name, (data, kind) in contents.items():
        (tmp_path / name).write_bytes(data)
        outcome = read_outcome(TARGETS["planted"], tmp_path / name, set())
        assert outcome.kind == kind, name
        assert outcome.is_escape == (kind in ("exception", "memory"))
        assert bool(outcome.lines) == name.endswith("json")  # they run code of the package


@pytest.mark.fullsize
def test_fuzzer_finds_every_planted_fault(tmp_path: Path) -> None:
    """An exception, a crash of the process, a hang and unbounded memory."""
    arguments = ["planted", "--minutes", "10", "--limit", "3", "--folder", str(tmp_path / "found")]
    assert main(arguments) == 0
    assert main([*arguments, "--minutes", "0"]) == 1  # control: nothing was read
