"""Propagate a mask through a batch of images, as a custom node of ComfyUI.

Copy this file to ComfyUI/custom_nodes and install mpn-runtime into its Python. The node takes an
IMAGE batch and the MASK of one frame of it, and returns a MASK batch. It imports no torch: tensors
are read and made by their own methods, and arrays work as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

import mpn

OBJECT_ID = 1


class Frames(Sequence[np.ndarray]):
    """Frames of an IMAGE batch, converted one at a time.

    Args:
        images: (T, H, W, 3) float, 0..1, RGB: a tensor or an array.
    """

    def __init__(self, images: Any) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: Any) -> Any:
        """Return frame ``index`` as (H, W, 3) uint8 RGB."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        image = array_of(self._images[index])[..., :3]
        return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)


def array_of(values: Any) -> np.ndarray:
    """Return a tensor, also one of a GPU, or an array as an array."""
    return np.asarray(values.cpu() if hasattr(values, "cpu") else values, np.float32)


def stream_masks(
    images: Any, masks: Mapping[int, Any], *, direction: str = "both", **options: Any
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each frame's index and its mask, (H, W) float32 of 0 and 1.

    Args:
        images: See :class:`Frames`.
        masks: Frame index -> (H, W) or (1, H, W) float mask; above 0.5 is the object.
        direction: ``"both"``, ``"forward"`` or ``"backward"``.
        options: Of :func:`mpn.propagate_range`, such as ``pipeline`` or ``cancel``.
    """
    frames = Frames(images)
    labels = {}
    for index, mask in masks.items():
        plane = array_of(mask)
        labels[index] = (plane.reshape(plane.shape[-2:]) > 0.5).astype(np.uint8) * OBJECT_ID
    found = mpn.propagate_range(frames, labels, 0, len(frames) - 1, direction=direction, **options)
    for index, frame_labels, _ in found:
        yield index, (frame_labels == OBJECT_ID).astype(np.float32)


class MpnPropagate:
    """The node: IMAGE, MASK -> MASK."""

    CATEGORY = "mask"
    RETURN_TYPES = ("MASK",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        """Return the inputs of the node."""
        return {
            "required": {
                "images": ("IMAGE",),
                "mask": ("MASK",),
                "frame": ("INT", {"default": 0, "min": 0}),
                "direction": (["both", "forward", "backward"],),
            }
        }

    def run(self, images: Any, mask: Any, frame: int = 0, direction: str = "both") -> tuple[Any]:
        """Return all masks, (T, H, W) float of 0 and 1, of the type of ``images``."""
        masks = np.zeros(tuple(images.shape[:3]), np.float32)
        for index, plane in stream_masks(images, {frame: mask}, direction=direction):
            masks[index] = plane
        return (images.new_tensor(masks) if hasattr(images, "new_tensor") else masks,)


NODE_CLASS_MAPPINGS = {"MpnPropagate": MpnPropagate}
NODE_DISPLAY_NAME_MAPPINGS = {"MpnPropagate": "Propagate Mask (MPN)"}
