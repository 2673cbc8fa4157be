"""Masks of other programs, in files written by hand or with their packages."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cvat_sdk.masks import encode_mask
from pycocotools import mask as coco

from mpn.errors import MaskError
from mpn.formats import FrameNames, GivenMasks, ObjectIds, VideoFacts, read_masks
from mpn.formats.arrays import labels_from_npy
from mpn.masks import png_from_labels

SIZE_HW = (8, 12)
FILE = VideoFacts(SIZE_HW, "clip", end=50)
NAMES = ["00005", "00010", "00015"]
IMAGES = VideoFacts(SIZE_HW, "fish", FrameNames(NAMES, "fish"), end=3)
LEFT, RIGHT = np.zeros(SIZE_HW, bool), np.zeros(SIZE_HW, bool)
LEFT[1:5, 2:5] = True
RIGHT[3:8, 8:12] = True
RIGHT[5, 9] = False
LABELS = (LEFT + 2 * RIGHT).astype(np.uint8)
BOX = [[2.0, 1.0], [5.0, 1.0], [5.0, 5.0], [2.0, 5.0]]
"""Edges of LEFT."""


def rle(mask: np.ndarray) -> dict[str, Any]:
    encoded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def coco_file(*annotations: dict[str, Any], names: tuple[str, ...] = ("a.jpg",)) -> bytes:
    images = [
        {"id": number, "file_name": name, "height": 8, "width": 12}
        for number, name in enumerate(names, 1)
    ]
    document = {
        "images": images,
        "categories": [{"id": 1, "name": "koi"}, {"id": 2, "name": "boat"}],
        "annotations": [{"id": n, **entry} for n, entry in enumerate(annotations, 1)],
    }
    return json.dumps(document).encode()


def entry(mask: Any, category: int, image: int = 1, **more: Any) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "segmentation": mask, **more}


def ytvis_file(*segmentations: list[Any], names: list[str]) -> bytes:
    video = {"id": 7, "height": 8, "width": 12, "file_names": names, "length": len(names)}
    annotations = [
        {"id": n, "video_id": 7, "category_id": n, "segmentations": s}
        for n, s in enumerate(segmentations, 1)
    ]
    categories = [{"id": 1, "name": "koi"}, {"id": 2, "name": "boat"}]
    document = {"videos": [video], "categories": categories, "annotations": annotations}
    return json.dumps(document).encode()


def cvat_mask(mask: np.ndarray, **attributes: Any) -> str:
    *counts, left, top, right, bottom = (int(v) for v in encode_mask(mask))
    values = {
        "rle": ", ".join(map(str, counts)), "left": left, "top": top,
        "width": right - left + 1, "height": bottom - top + 1, **attributes,
    }  # fmt: skip
    return "<mask " + " ".join(f'{key}="{value}"' for key, value in values.items()) + "></mask>"


def cvat_file(body: str, head: str = "") -> bytes:
    size = "<original_size><width>12</width><height>8</height></original_size>"
    meta = f"<meta><task><labels><label><name>koi</name></label></labels>{size}</task></meta>"
    text = f"<?xml version='1.0' encoding='utf-8'?>\n{head}<annotations><version>1.1</version>"
    return f"{text}{meta}{body}</annotations>".encode()


def image(body: str, name: str = "a.png") -> str:
    return f'<image id="0" name="{name}" width="12" height="8">{body}</image>'


def track(body: str, track_id: int = 0, label: str = "koi", group: str = "") -> str:
    return f'<track id="{track_id}" label="{label}" {group}>{body}</track>'


def zipped(**files: bytes) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in files.items():
            archive.writestr(name.replace("_", "."), content)
    return data.getvalue()


def npy(array: Any) -> bytes:
    data = io.BytesIO()
    np.save(data, array)
    return data.getvalue()


def npy_header(shape: tuple[int, int]) -> bytes:
    data = io.BytesIO()
    header = {"shape": shape, "fortran_order": False, "descr": "|u1"}
    np.lib.format.write_array_header_1_0(data, header)
    return data.getvalue()


def yolo_line(number: int, points: list[tuple[float, float]]) -> str:
    return f"{number} " + " ".join(f"{x / 12:.6f} {y / 8:.6f}" for x, y in points) + "\n"


YOLO = (
    yolo_line(0, [(2.5, 1.5), (4.5, 1.5), (4.5, 4.5), (2.5, 4.5)])
    + yolo_line(1, [(8.5, 3.5), (11.5, 3.5), (11.5, 7.5), (8.5, 7.5)])
).encode()
POLYGON = '<polygon label="koi" points="2,1;5,1;5,5;2,5" z_order="0"/>'
TWO = image(POLYGON + cvat_mask(RIGHT, label="boat", z_order=1))


def read(
    folder: Path, data: bytes, facts: VideoFacts = FILE, frame: int | None = None
) -> GivenMasks:
    path = folder / "mask.bin"  # the content decides, not the suffix
    path.write_bytes(data)
    return read_masks(path, facts, frame=frame)


@pytest.mark.parametrize(
    "data",
    [
        coco_file(entry([np.ravel(BOX).tolist()], 1), entry(rle(RIGHT), 2)),
        coco_file(
            entry(rle(LEFT), 1),
            entry({"size": [8, 12], "counts": [67, 5, 3, 2, 1, 2, 3, 5, 3, 5]}, 2),
        ),
        ytvis_file([rle(LEFT)], [rle(RIGHT)], names=["clip/a.jpg"]),
        cvat_file(TWO),
        cvat_file(image('<box label="koi" xtl="2" ytl="1" xbr="5" ybr="5"/>'
                        + cvat_mask(RIGHT, label="boat"))),
        zipped(annotations_xml=cvat_file(TWO), b_png=b"", c_json=b"{}"),
        zipped(instances_json=coco_file(entry(rle(LEFT), 1), entry(rle(RIGHT), 2))),
        b"\xef\xbb\xbf" + coco_file(entry(rle(LEFT), 1), entry(rle(RIGHT), 2)),
    ],
    ids=["coco-polygon", "coco-counts", "ytvis", "cvat", "cvat-box", "zip", "zip-coco", "mark"],
)  # fmt: skip
def test_named_masks_of_one_frame_are_read(data: bytes, tmp_path: Path) -> None:
    given = read(tmp_path, data)
    (labels,) = given.labels.values()
    np.testing.assert_array_equal(labels, LABELS)
    assert given.names == {1: "koi", 2: "boat"}
    assert given.notes == ()


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (LABELS, LABELS),
        (LABELS.astype(np.int64)[None], LABELS),
        (np.stack([LEFT, RIGHT]), LABELS),
        (np.stack([LEFT, RIGHT])[:, None].astype(np.uint8) * 255, LABELS),
        (LEFT, LEFT),
        (LEFT[..., None].astype(np.uint8) * 255, LEFT),
    ],
    ids=["ids", "one", "stack", "sam", "bool", "white"],
)
def test_arrays_are_read(array: np.ndarray, expected: np.ndarray, tmp_path: Path) -> None:
    given = read(tmp_path, npy(array))
    np.testing.assert_array_equal(given.labels[None], expected)
    assert given.names == {}


def test_yolo_is_read_with_the_names_next_to_it(tmp_path: Path) -> None:
    given = read(tmp_path, YOLO)
    solid = LABELS.copy()
    solid[5, 9] = 2  # the polygon has no hole
    np.testing.assert_array_equal(given.labels[None], solid)
    assert given.names == {1: "class 0", 2: "class 1"}
    (tmp_path / "classes.txt").write_text("koi\nboat\n")
    assert read(tmp_path, YOLO).names == {1: "koi", 2: "boat"}


@pytest.mark.parametrize(
    "names",
    [
        "names:\n  0: koi, white\n  1: boat  # of wood\n\nnc: 2\n",
        "names: # classes\n- 'koi, white'\n- boat\ntrain: images\n",
        """nc: 2\nnames: ["koi, white",\n  boat]\n""",
        "names: {1: boat, 0: 'koi, white'}",
    ],
    ids=["lines", "list", "brackets", "braces"],
)
def test_data_set_of_yolo_is_read_with_its_names(names: str, tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text(names)
    labels = tmp_path / "labels" / "train"
    labels.mkdir(parents=True)
    (labels / "00000.txt").write_bytes(YOLO)
    given = read_masks(tmp_path, VideoFacts(LABELS.shape, "clip", end=12))
    assert given.names == {1: "koi, white", 2: "boat"}
    assert given.labels[0].any()


def test_polygons_of_datumaro_are_drawn_as_of_coco(tmp_path: Path) -> None:
    points = [2, 1, 5, 1, 5, 5, 2, 5]
    region = {"type": "polygon", "label_id": 1, "group": 0, "z_order": 0, "points": points}
    front = region | {"label_id": 0, "z_order": 1, "points": [2, 1, 5, 1, 5, 3, 2, 3]}
    box = {"type": "bbox", "label_id": 0, "bbox": [0, 0, 2, 2]}
    value = {
        "categories": {"label": {"labels": [{"name": "boat"}, {"name": "koi"}]}},
        "items": [{"id": "00003", "annotations": [front, region, box]}],
    }
    given = read(tmp_path, json.dumps(value).encode())
    expected = np.zeros_like(LABELS)
    expected[1:5, 2:5], expected[1:3, 2:5] = 1, 2
    np.testing.assert_array_equal(given.labels[None], expected)
    assert given.names == {1: "koi", 2: "boat"}
    with pytest.raises(MaskError, match="annotation 1 in it cannot be drawn"):
        read(tmp_path, json.dumps(value).replace("[2, 1, 5, 1,", "[2,").encode())


def test_line_of_yolo_may_be_long(tmp_path: Path) -> None:
    """The first bytes of the file end in each place of a number."""
    for count in range(5):
        line = ("0 " + "0.5 " * 2 * count + "1e-3 " * 1000).encode()
        assert len(line) > 4096
        assert read(tmp_path, line).names == {1: "class 0"}


def test_tracks_of_cvat_are_objects(tmp_path: Path) -> None:
    """Interpolated and outside shapes are left out, other types are counted."""
    body = track(
        cvat_mask(LEFT, frame=3, outside=0, keyframe=1)
        + '<polygon frame="4" keyframe="0" outside="0" points="0,0;9,0;9,5"/>'
        + cvat_mask(RIGHT, frame=9, outside=0, keyframe=1)
        + cvat_mask(LEFT, frame=12, outside=1, keyframe=1)
    ) + track(cvat_mask(RIGHT, frame=3, outside=0, keyframe=1) + '<points points="1,1"/>', 1)
    given = read(tmp_path, cvat_file(body))
    assert sorted(given.labels) == [3, 9]
    np.testing.assert_array_equal(given.labels[3], LABELS)
    np.testing.assert_array_equal(given.labels[9], RIGHT)
    assert given.names == {1: "koi", 2: "koi"}
    assert given.notes[:2] == (
        "1 shapes of type points are left out",
        "1 shapes between key frames are left out",
    )
    assert given.notes[-1].endswith("has masks of 2 frames: 3, 9")


@pytest.mark.parametrize("group", ["", 'group_id="6"'])
def test_tracks_of_one_frame_are_one_object(group: str, tmp_path: Path) -> None:
    """CVAT writes each mask that is drawn as a track of one frame."""

    def one(number: int, mask: np.ndarray, frame: int) -> str:
        end = '<mask frame="{}" outside="1" keyframe="1" rle="1" left="0" top="0" width="1"/>'
        return track(cvat_mask(mask, frame=frame) + end.format(frame + 1), number, group=group)

    given = read(tmp_path, cvat_file(one(0, LEFT, 3) + one(1, RIGHT, 9)))
    assert {k: set(np.unique(m).tolist()) for k, m in given.labels.items()} == {
        3: {0, 6 if group else 1}, 9: {0, 6 if group else 1},
    }  # fmt: skip


def test_frames_are_found_by_name_and_number(tmp_path: Path) -> None:
    names = ("other/00010.jpg", "x/00005.jpg", "none.jpg")
    data = coco_file(
        entry(rle(LEFT), 1, 1), entry(rle(RIGHT), 1, 2), entry(rle(LEFT), 1, 3), names=names
    )
    given = read(tmp_path, data, IMAGES)
    assert sorted(given.labels) == [0, 1]
    np.testing.assert_array_equal(given.labels[1], LEFT)
    assert any("masks of 1 images are left out" in note for note in given.notes)
    assert sorted(read(tmp_path, data).labels) == [5, 10]  # of a video file: the numbers
    assert list(read(tmp_path, data, IMAGES, frame=1).labels) == [1]
    video = ytvis_file([rle(LEFT), None, rle(RIGHT)], names=["fish/00005.jpg", "b", "c"])
    assert sorted(read(tmp_path, video).labels) == [0, 2]
    names_5 = [f"fish/{name}.jpg" for name in NAMES]
    video = ytvis_file([None, rle(LEFT), rle(RIGHT)], names=names_5)
    assert sorted(read(tmp_path, video, IMAGES).labels) == [1, 2]
    assert sorted(read(tmp_path, video).labels) == [10, 15]


def test_folder_of_masks_has_the_names_of_frames(tmp_path: Path) -> None:
    """As in DAVIS and YouTube-VOS: not every frame, and objects that appear later."""
    for name, labels in (("00005", LEFT), ("00015", LABELS), ("00010", LEFT & RIGHT)):
        (tmp_path / f"{name}.png").write_bytes(png_from_labels(labels.astype(np.uint8)))
    (tmp_path / "._00005.png").write_bytes(b"AppleDouble")
    given = read_masks(tmp_path, IMAGES)
    assert sorted(given.labels) == [0, 2]
    np.testing.assert_array_equal(given.labels[2], LABELS)
    assert given.notes == (f"the folder {tmp_path} has masks of 2 frames: 0, 2",)
    assert sorted(read_masks(tmp_path, FILE).labels) == [5, 15]
    (tmp_path / "00010.png").unlink()
    (tmp_path / "00015.png").unlink()
    assert list(read_masks(tmp_path, FILE).labels) == [5]  # the name of a single file counts too
    (tmp_path / "00015.png").write_bytes(png_from_labels(LABELS))
    only = read_masks(tmp_path, VideoFacts(SIZE_HW, end=12))
    assert sorted(only.labels) == [5]
    assert "1 frames before or after" in only.notes[0]
    (tmp_path / "00005.npy").write_bytes(npy(LEFT))
    with pytest.raises(MaskError, match="has images and arrays"):
        read_masks(tmp_path, IMAGES)


def test_folder_of_labelme_keeps_objects(tmp_path: Path) -> None:
    """The images lie next to the files; objects keep their ids in all files."""
    for name, label in (("00005", "koi"), ("00010", "boat"), ("00015", "koi")):
        shape = {"label": label, "points": BOX, "shape_type": "polygon", "group_id": None}
        (tmp_path / f"{name}.json").write_text(json.dumps({"shapes": [shape]}))
        (tmp_path / f"{name}.png").write_bytes(png_from_labels(LABELS))
    given = read_masks(tmp_path, IMAGES)
    ids = {index: int(labels.max()) for index, labels in given.labels.items()}
    assert ids == {0: 1, 1: 2, 2: 1}
    assert given.names == {1: "koi", 2: "boat"}


def test_objects_keep_their_ids_over_files(tmp_path: Path) -> None:
    objects = ObjectIds()
    path = tmp_path / "a"

    def ids(data: bytes) -> list[int]:
        path.write_bytes(data)
        (labels,) = read_masks(path, FILE, objects=objects).labels.values()
        return [int(k) for k in np.unique(labels) if k]

    assert ids(coco_file(entry(rle(LEFT), 2))) == [1]
    assert ids(cvat_file(TWO)) == [1, 2]  # the boat is known, koi is new
    assert objects.names == {1: "boat", 2: "koi"}
    assert ids(png_from_labels(LABELS)) == [1, 2]
    assert ids(png_from_labels(LABELS * 3)) == [3, 6]
    with pytest.raises(MaskError, match=r"'class 0' may be a new one or one of the ids 3, 6"):
        ids(YOLO)
    twice = coco_file(entry(rle(LEFT), 2, track_id=1), entry(rle(RIGHT), 2, track_id=2))
    with pytest.raises(MaskError, match="'boat' may be 1 of another mask"):
        ids(twice)


def two_images(*names: str) -> bytes:
    return coco_file(entry(rle(LEFT), 1, 1), entry(rle(LEFT), 1, 2), names=names)


def test_crowds_next_to_objects_are_left_out_with_a_note(tmp_path: Path) -> None:
    path = tmp_path / "crowd.json"
    path.write_bytes(coco_file(entry(rle(LEFT), 1), entry(rle(RIGHT), 2, iscrowd=1)))
    found = read_masks(path, VideoFacts(SIZE_HW))
    assert found.names == {1: "koi"}
    assert "1 crowd regions (iscrowd) are left out" in found.notes


REFUSED: list[tuple[str, bytes | Callable[[], bytes], str]] = [
    ("empty file", b"", "cannot be read"),
    ("json", b"[1, 2", "invalid JSON"),
    ("other json", b'{"a": 1}', "not of labelme, COCO, YouTube-VIS or Datumaro"),
    ("twice", b'{"images": [], "images": []}', "stands twice"),
    ("no match", two_images("a.jpg", "b.jpg"),
     r"COCO file with masks of 2 frames, and none is a frame of the video, such as 'a.jpg'"),
    ("same frame", two_images("a/00007.jpg", "b/00007.jpg"), "both stand for frame 7"),
    ("crowds", coco_file(entry(rle(LEFT), 1, iscrowd=1), entry(rle(RIGHT), 2, iscrowd=1)),
     r"all its regions are marked iscrowd \(2\)"),
    ("no annotation", coco_file(), "without a mask, polygon or box"),
    ("no image", coco_file(entry(rle(LEFT), 1, 9)), "annotation 1 in it is of no image"),
    ("twins", coco_file(entry(rle(LEFT), 1, 1), entry(rle(RIGHT), 1, 1), entry(rle(LEFT), 1, 2),
                        names=("1.jpg", "2.jpg")), "2 objects of frame 1 have the label 'koi'"),
    ("rle size", coco_file(entry({"size": [12, 8], "counts": [96]}, 1)), "its size is not"),
    ("rle", coco_file(entry({"size": [8, 12], "counts": "5"}, 1)), "do not sum to its 96 pixels"),
    ("polygon", coco_file(entry([[1, 2, 3]], 1)), "annotation 1 in it .* no valid points"),
    ("far", coco_file(entry([[1, 2, 3, 4, 5, 1e30]], 1)), "no valid points"),
    ("blank", coco_file(entry(rle(LEFT & RIGHT), 1)), "is empty"),
    ("videos", b'{"videos": [{"id": 1, "name": "a"}, {"id": 2}], "annotations": []}',
     r"2 videos \('a'\), and 0 of them have the name 'clip'"),
    ("doctype", cvat_file(TWO, '<!DOCTYPE annotations [<!ENTITY a "b">]>'), "document type"),
    ("other doctype", cvat_file(TWO, '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///b">]>'),
     "entities are not read"),
    ("cut", cvat_file(TWO)[:-20], "no valid XML"),
    ("bounds", cvat_file(image(cvat_mask(RIGHT, label="a", left=11))), "shape 1 .*outside of the"),
    ("points", cvat_file(image('<polygon label="a" points="1,2;3,nan;4,5"/>')),
     "no valid polygon"),
    ("size", cvat_file(TWO.replace("height=\"8\"", "height=\"9\"", 1)),
     "the image a.png in it is 12x9 but the video is 12x8"),
    ("zip", zipped(a_xml=b"", b_xml=b""), "zip file with 2 annotation files"),
    ("no zip", b"PK\3\4cut", "zip file that cannot be read"),
    ("pickle", lambda: npy(np.array([{"segmentation": LEFT}])), "is a pickle.*np.stack"),
    ("cut npy", npy(LABELS)[:-5], "damaged .npy"),
    ("huge npy", lambda: npy_header((10**6, 10**6)), "more than 4 GB"),
    ("logits", npy(LABELS.astype(np.float32)), "values of type float32"),
    ("many ids", npy(LABELS.astype(np.int32) * 400), "values from 0 to 800"),
    ("void", npy(np.where(LEFT, 255, LABELS).astype(np.uint8)), "255 next to ids"),
    ("frames", npy(np.stack([LABELS, LABELS])), r"shape \(2, 8, 12\) and ids"),
    ("alternatives", npy(np.stack([LEFT, LEFT | RIGHT])), "masks 1 and 2 .* alternatives"),
    ("4d", npy(np.zeros((2, 2, 2, 2), bool)), r"shape \(2, 2, 2, 2\)"),
    ("other size", npy(LABELS[:, 1:]), "is 11x8 but the video is 12x8"),
    ("nothing", npy(np.zeros(SIZE_HW, bool)), "is empty"),
    ("box", b"0 0.5 0.5 0.2 0.2\n", "line 1 of it is a box"),
    ("confidence", b"0 0.1 0.1 0.2 0.1 0.2 0.2 0.9\n", "7 coordinates"),
    ("pixels", b"0 10 10 20 10 20 20\n", "outside of 0..1"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("data", "reason"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_masks_that_cannot_be_decided_are_refused(
    data: bytes | Callable[[], bytes], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(MaskError, match=reason) as raised:
        read(tmp_path, data if isinstance(data, bytes) else data())
    assert "mask.bin" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_frame_of_the_user_must_be_in_the_file(tmp_path: Path) -> None:
    with pytest.raises(MaskError, match="no mask of frame 4, but of 2 frames: 1, 2"):
        read(tmp_path, two_images("1.jpg", "2.jpg"), frame=4)
    one = cvat_file(track(cvat_mask(LEFT, frame=3)))
    with pytest.raises(MaskError, match="mask of frame 3, but was given for frame 4"):
        read(tmp_path, one, frame=4)
    assert list(read(tmp_path, one, frame=3).labels) == [3]


def test_missing_and_useless_paths_are_named(tmp_path: Path) -> None:
    with pytest.raises(MaskError, match="no such mask"):
        read_masks(tmp_path / "none.json", FILE)
    with pytest.raises(MaskError, match="has no mask"):
        read_masks(tmp_path, FILE)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("shape", ["(True, 6)", "(9223372036854775808, 0)", "(4, -6)"])
def test_npy_of_an_impossible_shape_is_a_mask_error(tmp_path: Path, shape: str) -> None:
    """NumPy raised TypeError and OverflowError."""
    path = tmp_path / "a.npy"
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    path.write_bytes(b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header.encode())
    with pytest.raises(MaskError, match="it is a damaged"):
        read_masks(path, VideoFacts((4, 6)))


@pytest.mark.parametrize("shape", [(0, 400_000, 400_000), (3, 0, 8)])
def test_stack_without_a_mask_takes_no_memory(tmp_path: Path, shape: tuple[int, ...]) -> None:
    (tmp_path / "stack.npy").write_bytes(npy(np.zeros(shape, np.uint8)))
    with pytest.raises(ValueError, match="at least one mask"):
        labels_from_npy(tmp_path / "stack.npy")
