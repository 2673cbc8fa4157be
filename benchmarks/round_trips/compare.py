"""Write clips in each format, run the readers, and compare the masks."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from benchmarks.round_trips.clips import Clip
from mpn.formats.annotated import AnnotatedFrame, AnnotationWriter, VideoInfo
from mpn.formats.coco import write_coco, write_coco_polygons, write_ytvis
from mpn.formats.cvat import write_cvat_video
from mpn.formats.datumaro import write_datumaro
from mpn.formats.labelme import write_labelme
from mpn.formats.yolo import write_yolo

READERS_FILE = Path(__file__).with_name("readers.py")


@dataclass(frozen=True)
class Trip:
    """A format and a reader of it.

    Attributes:
        format: Name of the format in ``mpn convert --to``.
        write: Its writer.
        target: Name of the file or folder.
        reader: Name of the reader.
        is_lossless: Whether the reader must find every mask exactly.
        images: Folder in the target for images, which some readers need; None: next to it.
    """

    format: str
    write: AnnotationWriter
    target: str
    reader: str
    is_lossless: bool = True
    images: str = "../images"


TRIPS = (
    Trip("ytvis", write_ytvis, "ytvis.json", "ytvis"),
    Trip("coco", write_coco, "annotations.json", "coco"),
    Trip("coco", write_coco, "annotations.json", "supervision-coco"),
    Trip(
        "coco",
        write_coco,
        "annotations/instances_default.json",  # the layout that Datumaro imports
        "datumaro-coco",
        images="../../images/default",
    ),
    Trip("coco-polygons", write_coco_polygons, "annotations.json", "coco"),
    Trip("coco-polygons", write_coco_polygons, "annotations.json", "supervision-coco", False),
    Trip("cvat", write_cvat_video, "cvat.zip", "cvat"),
    Trip("labelme", write_labelme, "labelme", "labelme", images="."),
    Trip("labelme", write_labelme, "labelme", "supervision-labelme", False, images="."),
    Trip("yolo", write_yolo, "yolo", "supervision-yolo", False, images="images"),
    Trip("datumaro", write_datumaro, "datumaro", "datumaro", images="images/default"),
)


@dataclass(frozen=True)
class Result:
    """Comparison of all masks of a round trip.

    Attributes:
        format: Name of the format.
        reader: Package and version; None if it is not installed.
        clips: Number of clips.
        frames: Number of frames.
        masks: Number of masks.
        exact: Number of masks that were read without another pixel.
        mean_iou: Mean intersection over union of the masks.
        min_iou: The smallest.
        is_lossless: Whether all masks must be exact.
        problem: One line, if the round trip failed.
    """

    format: str
    reader: str
    clips: int = 0
    frames: int = 0
    masks: int = 0
    exact: int = 0
    mean_iou: float = 0.0
    min_iou: float = 0.0
    is_lossless: bool = True
    problem: str = ""


def compare(
    clips: Sequence[Clip], folder: Path, python: str, trips: Sequence[Trip] = TRIPS
) -> list[Result]:
    """Write the clips, read them, and compare.

    Args:
        clips: The masks.
        folder: An existing folder for the files.
        python: Interpreter of the readers. Those whose package it lacks are left out.
        trips: Formats and readers.
    """
    versions = _versions(python)
    results = []
    for trip in trips:
        package, found = versions[trip.reader]
        if found is None:
            continue
        results.append(_compared(trip, clips, folder, python, f"{package} {found}"))
    return results


def table(results: Sequence[Result]) -> str:
    """Return the results as a table in Markdown."""
    lines = [
        "| format | read with | frames | masks | exact | mean IoU | smallest IoU |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in results:
        exact = "all" if r.exact == r.masks else f"{100 * r.exact / max(r.masks, 1):.1f} %"
        lines.append(
            f"| `{r.format}` | {r.reader} | {r.frames} | {r.masks} | {exact} | "
            f"{_iou(r.mean_iou, 4)} | {_iou(r.min_iou, 3)} |"
        )
    return "\n".join(lines)


def _iou(value: float, digits: int) -> str:
    return "1" if value == 1 else f"{value:.{digits}f}"


def _versions(python: str) -> dict[str, tuple[str, str | None]]:
    code = (
        "import json, readers; print(json.dumps({name: (package, readers.package_version(package)) "
        "for name, (package, _) in readers.READERS.items()}))"
    )
    done = subprocess.run(
        [python, "-c", code], cwd=READERS_FILE.parent, check=True, capture_output=True, text=True
    )
    return {name: (package, found) for name, (package, found) in json.loads(done.stdout).items()}


def _compared(trip: Trip, clips: Sequence[Clip], root: Path, python: str, reader: str) -> Result:
    jobs = []
    for number, clip in enumerate(clips):
        folder = root / f"{trip.format}-{trip.reader}" / f"{number:03d}"
        (folder / trip.target).parent.mkdir(parents=True)
        size_hw = clip.labels[0].shape
        trip.write(folder / trip.target, frames_of(clip), info_of(clip))
        _write_images(folder / trip.target / trip.images, clip)
        jobs.append(
            {
                "reader": trip.reader,
                "path": str(folder / trip.target),
                "size_hw": size_hw,
                "out": str(folder / "read.npz"),
            }
        )
    listed = root / f"{trip.format}-{trip.reader}" / "jobs.json"
    listed.write_text(json.dumps(jobs))
    done = subprocess.run(
        [python, str(READERS_FILE), str(listed)],
        env={**os.environ, "QT_QPA_PLATFORM": "offscreen"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return Result(trip.format, reader, problem=f"it cannot be read ({reason})")
    found: list[float] = []
    problem = ""
    for clip, job in zip(clips, jobs, strict=True):
        with np.load(str(job["out"])) as read:
            for iou, reason in ious(clip, dict(read)):
                found.append(iou)
                problem = problem or reason
    exact = sum(iou == 1 for iou in found)
    if trip.is_lossless and exact < len(found):
        problem = problem or f"{len(found) - exact} of {len(found)} masks differ"
    return Result(
        trip.format,
        reader,
        len(clips),
        sum(len(clip.labels) for clip in clips),
        len(found),
        exact,
        float(np.mean(found)),
        min(found),
        trip.is_lossless,
        problem,
    )


def ious(clip: Clip, read: dict[str, np.ndarray]) -> Iterator[tuple[float, str]]:
    """Yield the IoU of each mask, and a problem if a frame or an object differs."""
    names = {f"{index:05d}" for index in range(len(clip.labels))}
    found = set(read.pop("frames").tolist())
    for index, labels in enumerate(clip.labels):
        for object_id in np.unique(labels[labels > 0]).tolist():
            mask = labels == object_id
            key = f"{index:05d}/{_name(object_id)}"
            if key not in read:
                yield 0.0, f"{clip.name} has no {key}"
                continue
            other = read.pop(key)
            if other.shape != mask.shape:
                yield 0.0, f"{clip.name} {key} has the size {other.shape}"
                continue
            yield float((mask & other).sum() / (mask | other).sum()), ""
    extra = sorted((found - names) | {key for key, mask in read.items() if mask.any()})
    if extra:
        yield 0.0, f"{clip.name} has {extra[0]}, which was not written"


def frames_of(clip: Clip) -> Iterator[AnnotatedFrame]:
    """Yield the frames of a clip."""
    for index, labels in enumerate(clip.labels):
        yield AnnotatedFrame(index, f"{index:05d}", labels)


def info_of(clip: Clip) -> VideoInfo:
    """Return the facts of a clip."""
    ids = np.unique(np.stack(clip.labels)).tolist()
    ids = tuple(k for k in ids if k)
    return VideoInfo(clip.name, clip.labels[0].shape, ids, {k: _name(k) for k in ids})


def _name(object_id: int) -> str:
    return f"koi no. {object_id}"


def _write_images(folder: Path, clip: Clip) -> None:
    """Write black images with the names of the frames: some readers open them."""
    folder = Path(os.path.normpath(folder))
    folder.mkdir(parents=True, exist_ok=True)
    height, width = clip.labels[0].shape
    for index in range(len(clip.labels)):
        cv2.imwrite(str(folder / f"{index:05d}.png"), np.zeros((height, width, 3), np.uint8))
