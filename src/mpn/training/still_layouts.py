"""Published folder layouts of salient-object images with masks.

MSRA10K (M.-M. Cheng et al., "Global Contrast Based Salient Region Detection", TPAMI 2015) is one
folder ``Imgs/`` with ``NAME.jpg`` and ``NAME.png``. ECSSD (J. Shi et al., "Hierarchical Image
Saliency Detection on Extended CSSD", TPAMI 2016) is ``images/`` and ``ground_truth_mask/``. The
project's own layout is ``images/`` and ``masks/``.
"""

from __future__ import annotations

from pathlib import Path

from mpn.errors import TrainingError
from mpn.training.datasets import StillPair

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
    name, images, masks = _layout(root)
    pictures = {path.stem: path for path in images.glob("*.jpg")}
    truths = {path.stem: path for path in masks.glob("*.png")}
    if not pictures or not truths:
        raise TrainingError(f"{root} holds no pair {_pattern(root, images, masks)}")
    alone = sorted(pictures.keys() ^ truths.keys())
    if alone:
        raise TrainingError(
            f"{root}, taken for {name}: {len(pictures)} images and {len(truths)} masks do not pair "
            f"by name, '{alone[0]}' has no partner: unpack it again"
        )
    return [StillPair(pictures[stem], truths[stem]) for stem in sorted(pictures)]


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
