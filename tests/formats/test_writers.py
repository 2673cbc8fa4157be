"""Writers of annotations: memory, names, empty frames."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.round_trips.compare import TRIPS, Trip
from mpn.formats import VideoFacts, read_masks
from mpn.formats.annotated import AnnotatedFrame, VideoInfo
from mpn.formats.yolo import write_yolo

SIZE_HW = (6, 8)
BY_FORMAT = {trip.format: trip for trip in TRIPS}
LABELS = np.zeros(SIZE_HW, np.uint8)
LABELS[1:4, 2:6], LABELS[4:, :3] = 1, 3
UNUSUAL = "a \"<koi>\" & 'b' \\ \u2603"


def target(trip: Trip, folder: Path) -> Path:
    return folder / Path(trip.target).name


@pytest.mark.parametrize("trip", BY_FORMAT.values(), ids=BY_FORMAT)
def test_writers_keep_one_frame(trip: Trip, tmp_path: Path) -> None:
    made: list[weakref.ref[AnnotatedFrame]] = []
    most = 0

    def frames() -> Iterator[AnnotatedFrame]:
        nonlocal most
        for index in range(20):
            frame = AnnotatedFrame(index, f"{index:05d}", np.roll(LABELS, index))
            made.append(weakref.ref(frame))
            most = max(most, sum(one() is not None for one in made))
            yield frame
            del frame

    trip.write(target(trip, tmp_path), frames(), VideoInfo("clip", SIZE_HW, (1, 3)))
    assert 1 <= most <= 2  # the one before, until the next is there


@pytest.mark.parametrize("name", ["ytvis", "coco", "coco-polygons", "cvat", "labelme"])
def test_any_name_and_gaps_in_the_frames_are_kept(name: str, tmp_path: Path) -> None:
    """Object 3 has no name, and no frame before frame 5 was converted."""
    trip = BY_FORMAT[name]
    info = VideoInfo("clip & co", SIZE_HW, (1, 3), {1: UNUSUAL})
    frames = [AnnotatedFrame(index, f"{index:05d}", LABELS * (index != 6)) for index in (5, 6, 9)]
    path = target(trip, tmp_path)
    trip.write(path, frames, info)
    given = read_masks(path, VideoFacts(SIZE_HW, "clip"))
    assert sorted(given.labels) == [5, 9]
    for labels in given.labels.values():
        np.testing.assert_array_equal(labels, LABELS)
    assert given.names == {1: UNUSUAL}


def test_control_characters_are_escaped_in_xml(tmp_path: Path) -> None:
    info = VideoInfo("clip", SIZE_HW, (1, 3), {1: "a\x01\n", 3: "b"})
    path = tmp_path / "a.zip"
    BY_FORMAT["cvat"].write(path, [AnnotatedFrame(0, "00000", LABELS)], info)
    given = read_masks(path, VideoFacts(SIZE_HW, "clip"))
    assert given.names == {1: "a\\u0001\\u000a", 3: "b"}


def test_objects_of_one_name_share_a_category(tmp_path: Path) -> None:
    info = VideoInfo("clip", SIZE_HW, (1, 3), {1: "koi", 3: "koi"})
    frame = AnnotatedFrame(0, "00000", LABELS)
    BY_FORMAT["coco"].write(tmp_path / "a.json", [frame], info)
    value = json.loads((tmp_path / "a.json").read_text())
    assert value["categories"] == [{"id": 1, "name": "koi"}]
    assert [(a["category_id"], a["track_id"]) for a in value["annotations"]] == [(1, 1), (1, 3)]
    write_yolo(tmp_path / "yolo", [frame], info)
    lines = (tmp_path / "yolo" / "labels" / "00000.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["0", "0"]
    assert '  0: "koi"\n' in (tmp_path / "yolo" / "data.yaml").read_text()
