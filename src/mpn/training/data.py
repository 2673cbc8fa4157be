"""Readers of the training material: DAVIS sequences and image/mask pairs.

Frames stay compressed in memory (a sequence is 5-10 MB of JPEG) and are decoded on demand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from mpn._common.files import visible_files
from mpn._common.text import read_text
from mpn.errors import EvaluationError, TrainingError
from mpn.masks import load_annotation
from mpn.runtime.media.video_images import load_rgb
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
    """Image with the mask of one object.

    Attributes:
        image_path: The image.
        mask_path: Its PNG.
        instance_id: Value of the object in the PNG; None: the PNG is a mask of 0/255.
    """

    image_path: Path
    mask_path: Path
    instance_id: int | None = None

    def rgb(self) -> UInt8Array:
        """Load the image: (H, W, 3) uint8 RGB."""
        return cached_rgb(self.image_path)

    def mask(self) -> BoolArray:
        """Load the mask of the object: (H, W) bool."""
        values = load_label_png(self.mask_path, void=None)
        return values >= 128 if self.instance_id is None else values == self.instance_id


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
    for name in names_from_list(listing):
        images = tuple(visible_files(root / "JPEGImages" / resolution / name, "*.jpg"))
        masks = tuple(visible_files(root / "Annotations" / resolution / name, "*.png"))
        if not images or [p.stem for p in images] != [p.stem for p in masks]:
            raise TrainingError(
                f"sequence '{name}' of {root}: {len(images)} frames and {len(masks)} masks do not "
                "pair by name"
            )
        sequences.append(DavisSequence(name, images, masks))
    return sequences


def names_from_list(path: Path) -> list[str]:
    """Read the words of a list of a data set.

    Raises:
        TrainingError: If it is no text in UTF-8 or UTF-16.
    """
    try:
        return read_text(path).split()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise TrainingError(f"{path} cannot be read: {reason}") from error


_LAYOUTS = (
    ("MSRA10K", "Imgs", "Imgs"),
    ("MSRA10K", "MSRA10K_Imgs_GT/Imgs", "MSRA10K_Imgs_GT/Imgs"),
    ("ECSSD", "images", "ground_truth_mask"),
    ("images and masks", "images", "masks"),
)
"""Name, folder of the .jpg files, folder of the .png files."""


def load_stills(root: Path) -> list[StillPair]:
    """List the image/mask pairs of a folder in a public layout, by name.

    Args:
        root: The unpacked folder, or the folder ``Imgs`` of MSRA10K itself.

    Raises:
        TrainingError: If it has none of the layouts, or images and masks do not pair.
    """
    return [StillPair(image, mask) for image, mask in _pairs(root, *_layout(root))]


_INSTANCE_SHARE_MIN = 0.012
"""Smallest instance as a share of the image: 60x60 pixels of a COCO photograph."""
_CROWD = 255


def load_instances(root: Path) -> list[StillPair]:
    """List the instances of a folder of images with label PNGs, by name and id.

    Each instance of at least 1.2 % of its image is a pair; the others remain in the image as
    distractors. Value 0 is background, 255 a crowd that is not used.

    Args:
        root: Folder with ``images/NAME.jpg`` and ``masks/NAME.png``.

    Raises:
        TrainingError: If a folder is missing, images and masks do not pair, a PNG holds no ids, or
            no instance is large enough.
    """
    images, masks = root / "images", root / "masks"
    if not (images.is_dir() and masks.is_dir()):
        raise TrainingError(
            f"{root} is no folder of instances: expected images/NAME.jpg and masks/NAME.png"
        )
    found = [
        StillPair(image, mask, instance_id)
        for image, mask in _pairs(root, "images and masks", images, masks)
        for instance_id in _large_instances(mask)
    ]
    if not found:
        raise TrainingError(
            f"{root} holds no instance of at least {_INSTANCE_SHARE_MIN:.1%} of its image: the "
            "PNGs must hold one id per instance, 0 for background and 255 for crowds"
        )
    return found


def _large_instances(mask_path: Path) -> list[int]:
    labels = load_label_png(mask_path, void=_CROWD)
    counts = np.bincount(labels.ravel(), minlength=_CROWD + 1)
    counts[0] = 0
    return [int(k) for k in np.flatnonzero(counts >= _INSTANCE_SHARE_MIN * labels.size)]


def _pairs(root: Path, name: str, images: Path, masks: Path) -> list[tuple[Path, Path]]:
    """Pair the .jpg files of a folder with the .png files of another, by name."""
    pictures = {path.stem: path for path in visible_files(images, "*.jpg")}
    truths = {path.stem: path for path in visible_files(masks, "*.png")}
    if not pictures or not truths:
        raise TrainingError(f"{root} holds no pair {_pattern(root, images, masks)}")
    alone = sorted(pictures.keys() ^ truths.keys())
    if alone:
        raise TrainingError(
            f"{root}, taken for {name}: {len(pictures)} images and {len(truths)} masks do not pair "
            f"by name, '{alone[0]}' has no partner: unpack it again"
        )
    return [(pictures[stem], truths[stem]) for stem in sorted(pictures)]


def _layout(root: Path) -> tuple[str, Path, Path]:
    for name, images, masks in _LAYOUTS:
        if (root / images).is_dir() and (root / masks).is_dir():
            return name, root / images, root / masks
    if root.name == "Imgs" and root.is_dir():
        return "MSRA10K", root, root
    raise TrainingError(
        f"{root} is no folder of images with masks: expected Imgs/NAME.jpg and NAME.png "
        "(MSRA10K), images/ and ground_truth_mask/ (ECSSD), or images/ and masks/"
    )


def _pattern(root: Path, images: Path, masks: Path) -> str:
    def shown(folder: Path) -> str:
        return f"{folder.relative_to(root)}/".removeprefix("./")

    return f"{shown(images)}NAME.jpg + {shown(masks)}NAME.png"


@dataclass(frozen=True)
class DataOptions:
    """Folders of the training material, each in its public layout.

    Attributes:
        davis_root: DAVIS 2017: JPEGImages, Annotations, ImageSets.
        split: List of sequences; the held-out ones are removed from it.
        year: Folder of that list, under ImageSets.
        resolution: Folder under JPEGImages and Annotations.
        stills: Folders of images with masks: MSRA10K, ECSSD, or ``images/`` and ``masks/``.
    """

    davis_root: Path | None = None
    split: str = "train"
    year: str = "2017"
    resolution: str = "480p"
    stills: tuple[Path, ...] = ()

    def sequences(self) -> list[DavisSequence]:
        """Load the sequences of the split; empty without a folder.

        Raises:
            TrainingError: If the folder is no DAVIS folder.
        """
        if self.davis_root is None:
            return []
        return load_davis_split(self.davis_root, self.split, self.resolution, self.year)

    def still_pairs(self) -> list[StillPair]:
        """List the pairs of all folders, in the order of the folders.

        Raises:
            TrainingError: If a folder has no known layout, or is given twice.
        """
        if len(set(self.stills)) < len(self.stills):
            raise TrainingError(
                f"a folder of stills is given twice: {', '.join(map(str, self.stills))}"
            )
        return [pair for folder in self.stills for pair in load_stills(folder)]


_Sample = TypeVar("_Sample")
_STEPS_AHEAD = 3


class Prefetched(Generic[_Sample]):
    """Batches of samples that are functions of (step, index), made by a pool.

    Args:
        make: Makes sample ``index`` of the batch of ``step``; called in threads.
        indices: Indices of the samples of each batch.
        steps: Steps in all: no sample is made beyond them.
    """

    def __init__(
        self, make: Callable[[int, int], _Sample], indices: Sequence[int], steps: int
    ) -> None:
        self._make, self._indices, self._steps = make, list(indices), steps
        self._pending: dict[int, list[Future[_Sample]]] = {}

    def take(self, step: int, pool: ThreadPoolExecutor) -> list[_Sample]:
        """Return the samples of a step, in the order of their indices."""
        for ahead in range(step, min(step + _STEPS_AHEAD, self._steps)):
            if ahead not in self._pending:
                self._pending[ahead] = [pool.submit(self._make, ahead, k) for k in self._indices]
        return [task.result() for task in self._pending.pop(step)]
