"""List the formats of conversions in one table, from name to writer.

This module imports no other one of the runtime, so that the help of the command line is fast.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpn.errors import InputError

if TYPE_CHECKING:
    from mpn.runtime.convert.conversion import Conversion

WriteFormat = Callable[["Conversion", Path], Any]
"""Write a conversion to a path that does not exist: create the file, or the folder and its files.

The path is in a private folder, which is renamed or removed by the caller: a writer needs no care
for files that are not finished. Errors of the disk are raised as OSError or OutputError.
"""


@dataclass(frozen=True)
class Format:
    """A format that results can be converted to.

    Attributes:
        description: Short text for the help, with its readers.
        suffix: Suffix of the file; empty if the format is a folder of files.
        writer: ``module:function`` of a :data:`WriteFormat`.
        needs_video: Whether the writer reads the video again.
    """

    description: str
    suffix: str
    writer: str
    needs_video: bool = False

    def load_writer(self) -> WriteFormat:
        """Import and return the writer."""
        module, _, function = self.writer.partition(":")
        writer: WriteFormat = getattr(import_module(module), function)
        return writer


_ANNOTATIONS = "mpn.runtime.convert.annotations"

FORMATS: Mapping[str, Format] = {
    "prores4444": Format(
        "ProRes 4444 video with straight alpha, for editors",
        ".mov",
        "mpn.runtime.convert.movies:write_prores4444",
        needs_video=True,
    ),
    "mattes": Format(
        "One black and white ProRes 422 HQ video per object, for editors",
        "",
        "mpn.runtime.convert.movies:write_mattes",
        needs_video=True,
    ),
    "rgba-png": Format(
        "RGBA PNG per frame, with straight alpha",
        "",
        "mpn.runtime.convert.images:write_rgba_png",
        needs_video=True,
    ),
    "exr": Format(
        "OpenEXR per frame, one layer per object",
        "",
        "mpn.runtime.convert.images:write_exr",
    ),
    "ytvis": Format(
        "JSON of YouTube-VIS (COCO for videos), masks as RLE",
        ".json",
        f"{_ANNOTATIONS}:write_ytvis",
    ),
    "coco": Format(
        "JSON of COCO, one image per frame, masks as RLE",
        ".json",
        f"{_ANNOTATIONS}:write_coco",
    ),
    "coco-polygons": Format(
        "JSON of COCO with polygons, for trainers that read no RLE",
        ".json",
        f"{_ANNOTATIONS}:write_coco_polygons",
    ),
    "cvat": Format(
        "Zip file 'CVAT for video 1.1'",
        ".zip",
        f"{_ANNOTATIONS}:write_cvat_video",
    ),
    "labelme": Format(
        "JSON of labelme per frame, with polygons",
        "",
        f"{_ANNOTATIONS}:write_labelme",
    ),
    "yolo": Format(
        "Text of YOLO segmentation per frame, and data.yaml",
        "",
        f"{_ANNOTATIONS}:write_yolo",
    ),
    "datumaro": Format(
        "Data set of Datumaro",
        "",
        f"{_ANNOTATIONS}:write_datumaro",
    ),
}
"""Formats by their name in ``mpn convert --to`` and ``mpn run --save``."""


def format_named(name: str) -> Format:
    """Return a format by its name.

    Raises:
        InputError: If there is none; the message lists all.
    """
    if name not in FORMATS:
        raise InputError(f"no format is named '{name}': use one of {', '.join(FORMATS)}")
    return FORMATS[name]
