"""Write one image per frame for editors: RGBA PNG and OpenEXR."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from mpn.runtime.convert.conversion import Conversion
from mpn.runtime.convert.exr import exr_from_channels

_PNG_COMPRESSION = 3
"""zlib: level 6 takes 3 times longer on photographs for 3 % less."""

_UNSAFE = re.compile(r"[^0-9A-Za-z_-]+")
"""Not in the names of layers and files: a dot separates layer and channel in EXR."""


def write_rgba_png(conversion: Conversion, folder: Path) -> None:
    """Write ``<frame name>.png``: 8-bit RGBA with straight alpha.

    PNG defines its alpha as straight. Pixels of alpha 0 are black, so that the files do not hold
    the background.
    """
    folder.mkdir()
    with conversion.open_video() as video:
        for entry, frame in conversion.read_frames(video):
            alpha = np.rint(conversion.alpha(entry) * 255).astype(np.uint8)
            bgra = np.dstack([frame.rgb[..., ::-1], alpha])
            bgra[alpha == 0] = 0
            encoded = cv2.imencode(".png", bgra, [cv2.IMWRITE_PNG_COMPRESSION, _PNG_COMPRESSION])[1]
            (folder / f"{entry.name}.png").write_bytes(encoded.tobytes())


def write_exr(conversion: Conversion, folder: Path) -> None:
    """Write ``<frame name>.exr``: half float, one channel ``<layer>.A`` per object.

    The layer has the name of its object. Nuke and Blender list the layers; the pixels of the video
    are not in the file, because EXR holds linear light and the video does not.
    """
    folder.mkdir()
    layers = safe_names(conversion.names)
    results = conversion.results
    for entry in conversion.frames:
        channels = {f"{layers[k]}.A": matte for k, matte in conversion.mattes(entry).items()}
        image = exr_from_channels(
            channels, fps=results.fps, sample_aspect_ratio=results.sample_aspect_ratio
        )
        (folder / f"{entry.name}.exr").write_bytes(image)
        conversion.on_frame()


def safe_names(names: Mapping[int, str]) -> dict[int, str]:
    """Return a name per object of letters, digits, ``_`` and ``-``, each one once.

    Args:
        names: Names by object id.
    """
    safe = {k: _UNSAFE.sub("_", name).strip("_") or f"object_{k}" for k, name in names.items()}
    folded = [name.casefold() for name in safe.values()]
    return {
        k: name if folded.count(name.casefold()) == 1 else f"{name}_{k}" for k, name in safe.items()
    }
