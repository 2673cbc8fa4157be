"""Write results as annotations of other programs, see :mod:`mpn.formats`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from mpn.errors import VideoError
from mpn.formats.annotated import AnnotatedFrame, AnnotationWriter, VideoInfo
from mpn.formats.coco import write_coco as coco
from mpn.formats.coco import write_coco_polygons as coco_polygons
from mpn.formats.coco import write_ytvis as ytvis
from mpn.formats.cvat import write_cvat_video as cvat_video
from mpn.formats.datumaro import write_datumaro as datumaro
from mpn.formats.labelme import write_labelme as labelme
from mpn.formats.yolo import write_yolo as yolo
from mpn.runtime.convert.conversion import Conversion
from mpn.runtime.media.video_images import ImageSequence


def write_coco(conversion: Conversion, path: Path) -> None:
    """Write one JSON file of COCO."""
    _write(coco, conversion, path)


def write_coco_polygons(conversion: Conversion, path: Path) -> None:
    """Write one JSON file of COCO with polygons."""
    _write(coco_polygons, conversion, path)


def write_ytvis(conversion: Conversion, path: Path) -> None:
    """Write one JSON file of YouTube-VIS."""
    _write(ytvis, conversion, path)


def write_cvat_video(conversion: Conversion, path: Path) -> None:
    """Write a zip file "CVAT for video 1.1"."""
    _write(cvat_video, conversion, path)


def write_labelme(conversion: Conversion, folder: Path) -> None:
    """Write one JSON file of labelme per frame."""
    _write(labelme, conversion, folder)


def write_yolo(conversion: Conversion, folder: Path) -> None:
    """Write one text file of YOLO per frame."""
    _write(yolo, conversion, folder)


def write_datumaro(conversion: Conversion, folder: Path) -> None:
    """Write a data set folder of Datumaro."""
    _write(datumaro, conversion, folder)


def _write(write: AnnotationWriter, conversion: Conversion, path: Path) -> None:
    results = conversion.results
    name, images = _name_and_images(conversion)
    info = VideoInfo(
        name=name,
        size_hw=results.size_hw,
        object_ids=conversion.object_ids,
        object_names={k: n for k, n in results.object_names.items() if k in conversion.object_ids},
    )
    write(path, _frames(conversion, images), info)


def _frames(conversion: Conversion, images: Sequence[Path]) -> Iterator[AnnotatedFrame]:
    for frame, labels in conversion.read_labels():
        image = images[frame.index] if frame.index < len(images) else None
        yield AnnotatedFrame(frame.index, frame.name, labels, image)


def _name_and_images(conversion: Conversion) -> tuple[str, Sequence[Path]]:
    """Return the name of the video, and its images if it is a sequence.

    The masks are enough for annotations: the video may be gone.
    """
    try:
        with conversion.open_video() as video:
            return video.name, video.image_paths if isinstance(video, ImageSequence) else ()
    except VideoError:
        return Path(conversion.results.video_address).stem, ()
