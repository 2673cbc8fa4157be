"""Folders of the training material."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mpn.errors import TrainingError
from mpn.training.datasets import DavisSequence, StillPair, load_davis_split
from mpn.training.still_layouts import load_stills


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
