"""Readers of the training material: DAVIS sequences and image/mask pairs.

Frames stay compressed in memory (a sequence is 5-10 MB of JPEG) and are decoded on demand.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from mpn.errors import EvaluationError, TrainingError
from mpn.masks import load_annotation
from mpn.runtime.video_images import load_rgb
from mpn.types import BoolArray, UInt8Array

_DECODED_FRAMES = 512
"""Decoded frames and masks in the cache (1.2 MB each at 480p), shared by adjacent rollouts."""


@dataclass(frozen=True)
class DavisSequence:
    """Sequence in DAVIS layout.

    Attributes:
        name: Folder name.
        image_paths: JPEG of every frame, in order.
        mask_paths: Palette PNG of every frame, in order.
    """

    name: str
    image_paths: tuple[Path, ...]
    mask_paths: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.image_paths)

    def rgb(self, index: int) -> UInt8Array:
        """Load frame ``index``: (H, W, 3) uint8 RGB."""
        return cached_rgb(self.image_paths[index])

    def labels(self, index: int) -> UInt8Array:
        """Load the annotation of frame ``index``: (H, W) uint8 ids.

        Void (255) becomes background.
        """
        return load_label_png(self.mask_paths[index])


@dataclass(frozen=True)
class StillPair:
    """Image with the mask of its salient object, stored as 0/255."""

    image_path: Path
    mask_path: Path

    def rgb(self) -> UInt8Array:
        """Load the image: (H, W, 3) uint8 RGB."""
        return cached_rgb(self.image_path)

    def mask(self) -> BoolArray:
        """Load the mask of the salient object: (H, W) bool."""
        return load_label_png(self.mask_path, void=None) >= 128


@lru_cache(maxsize=_DECODED_FRAMES)
def cached_rgb(path: Path) -> UInt8Array:
    """Read an image as (H, W, 3) uint8 RGB; the array is shared and read-only.

    Raises:
        VideoError: If the file is no image.
    """
    rgb = load_rgb(path)
    rgb.flags.writeable = False
    return rgb


@lru_cache(maxsize=_DECODED_FRAMES)
def load_label_png(path: Path, void: int | None = 255) -> UInt8Array:
    """Decode a palette or grey PNG to its stored values; read-only.

    Values equal to ``void`` become 0.

    Raises:
        TrainingError: If the file does not hold object ids.
    """
    try:
        labels = load_annotation(path)
    except EvaluationError as error:
        raise TrainingError(str(error)) from error
    if void is not None:
        labels[labels == void] = 0
    labels.flags.writeable = False
    return labels


def load_davis_split(
    root: Path, split: str = "train", resolution: str = "480p", year: str = "2017"
) -> list[DavisSequence]:
    """Load the sequences of a split, in the order of its list.

    Args:
        root: Folder with JPEGImages, Annotations and ImageSets.
        split: Name of the list, for example ``"train"``.
        resolution: Folder under JPEGImages and Annotations.
        year: Folder under ImageSets.

    Raises:
        TrainingError: If a folder or file is missing, or frames and masks do not pair.
    """
    listing = root / "ImageSets" / year / f"{split}.txt"
    if not listing.is_file():
        raise TrainingError(
            f"{root} is not a DAVIS folder: {listing.relative_to(root)} is missing "
            "(expected JPEGImages/, Annotations/ and ImageSets/)"
        )
    sequences = []
    for name in listing.read_text().split():
        images = tuple(sorted((root / "JPEGImages" / resolution / name).glob("*.jpg")))
        masks = tuple(sorted((root / "Annotations" / resolution / name).glob("*.png")))
        if not images or [p.stem for p in images] != [p.stem for p in masks]:
            raise TrainingError(
                f"sequence '{name}' of {root}: {len(images)} frames and {len(masks)} masks do not "
                "pair by name"
            )
        sequences.append(DavisSequence(name, images, masks))
    return sequences
