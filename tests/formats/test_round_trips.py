"""Written annotations, read with the packages of their programs.

``make round-trips`` runs all readers; those with large packages are not in the test environment.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks.round_trips import compare
from benchmarks.round_trips.clips import Clip, drawn_clips
from benchmarks.round_trips.readers import READERS
from mpn.formats import VideoFacts, read_masks
from tests.conftest import REPOSITORY

SMALL = ("coco", "ytvis", "cvat")
CLIP = next(drawn_clips())


@pytest.mark.parametrize(
    "trip", [t for t in compare.TRIPS if t.reader in SMALL], ids=lambda t: t.format
)
def test_other_readers_find_every_pixel(trip: compare.Trip, tmp_path: Path) -> None:
    path = tmp_path / Path(trip.target).name
    trip.write(path, compare.frames_of(CLIP), compare.info_of(CLIP))
    read = READERS[trip.reader][1](path, CLIP.labels[0].shape)
    arrays = {f"{frame}/{name}": mask for frame, own in read.items() for name, mask in own.items()}
    found = list(compare.ious(CLIP, {"frames": np.array(sorted(read)), **arrays}))
    assert found == [(1.0, "")] * 27
    # control: one pixel
    arrays["00000/koi no. 1"][0, 0] ^= True
    assert min(compare.ious(CLIP, {"frames": np.array(sorted(read)), **arrays}))[0] < 1


@pytest.mark.parametrize(
    "trip", {trip.format: trip for trip in compare.TRIPS}.values(), ids=lambda t: t.format
)
def test_own_reader_finds_ids_and_names(trip: compare.Trip, tmp_path: Path) -> None:
    """The file or folder is read unchanged; names of YOLO are in data.yaml."""
    path = tmp_path / Path(trip.target).name
    trip.write(path, compare.frames_of(CLIP), compare.info_of(CLIP))
    given = read_masks(path, VideoFacts(CLIP.labels[0].shape, "shapes", end=4))
    assert sorted(given.labels) == [0, 1, 2, 3]
    assert given.names == {k: f"koi no. {k}" for k in range(1, 8)}
    for index, labels in enumerate(CLIP.labels):
        equal = given.labels[index] == labels
        assert equal.mean() > 0.99
        assert equal.all() or trip.format == "yolo"
    if path.is_dir():  # a file of it alone, as --mask 2:FILE
        inner = "annotations/default.json" if trip.format == "datumaro" else "**/00002.*"
        (file,) = path.glob(inner)
        single = read_masks(file, VideoFacts(CLIP.labels[0].shape, "shapes", end=4), frame=2)
        assert next(iter(single.labels.values())) is not None
        assert set(single.names.values()) <= set(given.names.values())


def test_table_in_the_documentation_is_of_these_readers() -> None:
    page = (REPOSITORY / "docs" / "formats.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w-]+)` \| (\S+) (\S+) \| \d+ \|", page, re.MULTILINE)
    file = REPOSITORY / "benchmarks" / "round_trips" / "requirements.txt"
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", file.read_text(encoding="utf-8"), re.MULTILINE))
    expected = [(trip.format, READERS[trip.reader][0]) for trip in compare.TRIPS]
    assert [(name, package) for name, package, _ in rows] == expected
    assert {package: version for _, package, version in rows} == pins


def test_objects_that_were_not_written_are_a_problem() -> None:
    clip = Clip("x", [np.ones((2, 3), np.uint8)])
    mask = np.ones((2, 3), bool)
    read = {"frames": np.array(["00000"]), "00000/koi no. 1": mask, "00000/koi no. 2": mask}
    assert [problem for _, problem in compare.ious(clip, read)][1].endswith("was not written")
