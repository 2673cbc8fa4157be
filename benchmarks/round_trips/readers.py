"""Read annotations with the packages of the programs that they are written for.

Each reader returns the masks of each frame by the name of their object. This module imports neither
mpn nor another module of the repository: it runs in an environment that has the packages.

    python readers.py JOBS.json

JOBS.json is a list of ``reader``, ``path``, ``size_hw`` and ``out``: the masks go to the .npz file
``out`` with the keys ``<frame>/<object>``, or the reason why the reader raised. The versions of the
packages are printed as JSON.
"""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

Masks = dict[str, dict[str, Any]]
"""Frame name -> object name -> (H, W) bool."""


def read_coco(path: Path, size_hw: tuple[int, int]) -> Masks:
    """Read COCO with pycocotools, which also decodes or draws the masks."""
    from pycocotools.coco import COCO

    coco = COCO(str(path))
    names = {entry["id"]: entry["name"] for entry in coco.loadCats(coco.getCatIds())}
    found: Masks = {Path(image["file_name"]).stem: {} for image in coco.loadImgs(coco.getImgIds())}
    for entry in coco.loadAnns(coco.getAnnIds()):
        image = coco.loadImgs([entry["image_id"]])[0]
        frame = found[Path(image["file_name"]).stem]
        frame[names[entry["category_id"]]] = coco.annToMask(entry) > 0
    return found


def read_ytvis(path: Path, size_hw: tuple[int, int]) -> Masks:
    """Decode the masks of YouTube-VIS with pycocotools."""
    from pycocotools import mask as coder

    value = json.loads(path.read_text())
    (video,) = value["videos"]
    names = {entry["id"]: entry["name"] for entry in value["categories"]}
    frames = [Path(name).stem for name in video["file_names"]]
    found: Masks = {frame: {} for frame in frames}
    for entry in value["annotations"]:
        for frame, segmentation, box, area in zip(
            frames, entry["segmentations"], entry["bboxes"], entry["areas"], strict=True
        ):
            if segmentation is not None:
                mask = coder.decode(segmentation) > 0
                encoded = coder.encode(np.asfortranarray(mask.astype(np.uint8)))
                assert coder.area(encoded) == area
                assert coder.toBbox(encoded).tolist() == box
                found[frame][names[entry["category_id"]]] = mask
    return found


def read_cvat(path: Path, size_hw: tuple[int, int]) -> Masks:
    """Decode the first mask of each track with cvat-sdk; CVAT imports only that."""
    from xml.etree.ElementTree import fromstring

    from cvat_sdk.masks import decode_mask

    with zipfile.ZipFile(path) as archive:
        root = fromstring(archive.read("annotations.xml"))
    task = root.find("meta/task")
    size = (int(task.findtext("original_size/height")), int(task.findtext("original_size/width")))
    assert size == size_hw
    labels = {label.findtext("name") for label in task.iter("label")}
    frames = range(int(task.findtext("start_frame")), int(task.findtext("stop_frame")) + 1)
    assert len(frames) == int(task.findtext("size"))
    found: Masks = {f"{frame:05d}": {} for frame in frames}
    for track in root.iter("track"):
        shape = track[0]
        left, top, width, height = (int(shape.get(k)) for k in ("left", "top", "width", "height"))
        counts = [int(count) for count in shape.get("rle").split(",")]
        points = [*counts, left, top, left + width - 1, top + height - 1]
        mask = decode_mask(points, image_width=size_hw[1], image_height=size_hw[0])
        assert track.get("label") in labels
        assert [s.get("outside") for s in track] == ["0", "1"]
        found[f"{int(shape.get('frame')):05d}"][track.get("label")] = mask
    return found


def read_labelme(path: Path, size_hw: tuple[int, int]) -> Masks:
    """Read labelme's files with labelme, which also draws the masks."""
    import imgviz  # noqa: F401  (labelme needs it before its utils)
    from labelme import LabelFile
    from labelme.utils import shapes_to_label

    found: Masks = {}
    for file in sorted(path.glob("*.json")):
        shapes = LabelFile(str(file)).shapes
        names = sorted({shape["label"] for shape in shapes})
        for shape in shapes:
            if isinstance(shape.get("mask"), str):
                raise AssertionError("labelme has not decoded the mask")
        numbers = {name: number for number, name in enumerate(names, 1)}
        labels, _ = shapes_to_label(size_hw, shapes, numbers)
        found[file.stem] = {name: labels == number for name, number in numbers.items()}
    return found


def read_datumaro(path: Path, size_hw: tuple[int, int], kind: str = "datumaro") -> Masks:
    """Import a data set with Datumaro."""
    from datumaro.components.annotation import AnnotationType
    from datumaro.components.dataset import Dataset

    data = Dataset.import_from(str(path), kind)
    names = [entry.name for entry in data.categories()[AnnotationType.label]]
    found: Masks = {}
    for item in data:
        frame = found.setdefault(Path(item.id).name, {})
        for entry in item.annotations:
            if entry.type != AnnotationType.mask:  # a box of COCO
                continue
            frame[names[entry.label]] = np.asarray(entry.image) > 0
    return found


def read_datumaro_coco(path: Path, size_hw: tuple[int, int]) -> Masks:
    """Import a file of COCO with Datumaro."""
    return read_datumaro(path, size_hw, "coco_instances")


def read_supervision_coco(path: Path, size_hw: tuple[int, int]) -> Masks:
    """Read COCO with supervision, which also decodes or draws the masks."""
    from supervision import DetectionDataset

    images = str(path.parent / "images")
    return _of_supervision(DetectionDataset.from_coco(images, str(path), force_masks=True))


def read_supervision_labelme(path: Path, size_hw: tuple[int, int]) -> Masks:
    """Read labelme's files with supervision, which also draws the masks."""
    from supervision import DetectionDataset

    return _of_supervision(DetectionDataset.from_labelme(str(path), str(path), force_masks=True))


def read_supervision_yolo(path: Path, size_hw: tuple[int, int]) -> Masks:
    """Read a data set of YOLO with supervision, which also draws the masks."""
    from supervision import DetectionDataset

    return _of_supervision(
        DetectionDataset.from_yolo(
            str(path / "images"), str(path / "labels"), str(path / "data.yaml"), force_masks=True
        )
    )


def _of_supervision(data: Any) -> Masks:
    found: Masks = {}
    for image, detections in data.annotations.items():
        frame = found.setdefault(Path(image).stem, {})
        for number, mask in zip(detections.class_id, detections.mask, strict=True):
            name = data.classes[number]
            frame[name] = frame.get(name, False) | np.asarray(mask, bool)
    return found


READERS: dict[str, tuple[str, Callable[[Path, tuple[int, int]], Masks]]] = {
    "coco": ("pycocotools", read_coco),
    "ytvis": ("pycocotools", read_ytvis),
    "cvat": ("cvat-sdk", read_cvat),
    "labelme": ("labelme", read_labelme),
    "datumaro": ("datumaro", read_datumaro),
    "datumaro-coco": ("datumaro", read_datumaro_coco),
    "supervision-coco": ("supervision", read_supervision_coco),
    "supervision-labelme": ("supervision", read_supervision_labelme),
    "supervision-yolo": ("supervision", read_supervision_yolo),
}
"""Readers by name, each with its package."""


def package_version(package: str) -> str | None:
    """Return the version of an installed package; None without it."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def main(jobs: list[dict[str, Any]]) -> None:
    """Run readers and save their masks."""
    for job in jobs:
        masks = READERS[job["reader"]][1](Path(job["path"]), tuple(job["size_hw"]))
        arrays = {f"{f}/{name}": mask for f, each in masks.items() for name, mask in each.items()}
        np.savez_compressed(job["out"], frames=np.array(sorted(masks)), **arrays)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
