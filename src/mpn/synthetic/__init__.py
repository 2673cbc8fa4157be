"""Rendered clip with an exact mask for every frame, the demo's input."""

from mpn.synthetic.clip import (
    CLIP_FPS,
    CLIP_NAME,
    OBJECT_NAMES,
    ClipPaths,
    SyntheticFrame,
    render_clip,
    write_clip,
)

__all__ = [
    "CLIP_FPS",
    "CLIP_NAME",
    "OBJECT_NAMES",
    "ClipPaths",
    "SyntheticFrame",
    "render_clip",
    "write_clip",
]
