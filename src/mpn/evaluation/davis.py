"""DAVIS folder layout: the annotations of a set, and the results to score."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mpn._common.files import visible_files
from mpn._common.text import read_text
from mpn._common.validation import repeated
from mpn.errors import EvaluationError

MIN_FRAMES = 3
"""Smallest length: the first frame has the given mask, the last is not scored, one remains."""


@dataclass(frozen=True)
class DavisSequence:
    """Sequence of the ground truth.

    Attributes:
        name: Folder name.
        annotation_paths: Every annotated frame, in order.
    """

    name: str
    annotation_paths: tuple[Path, ...]

    def scored_paths(self) -> tuple[Path, ...]:
        """Return the scored annotations: all except the first and the last."""
        return self.annotation_paths[1:-1]


@dataclass(frozen=True)
class DavisDataset:
    """Sequences of one set.

    Attributes:
        root: Folder with ``Annotations`` and ``ImageSets``.
        set_name: For example ``"val"``.
        sequences: In the order of the list file.
    """

    root: Path
    set_name: str
    sequences: tuple[DavisSequence, ...]


def load_davis(
    root: Path, set_name: str, *, year: str = "2017", resolution: str = "480p"
) -> DavisDataset:
    """List the sequences of a set and their annotations.

    Reads ``ImageSets/<year>/<set>.txt`` and ``Annotations/<resolution>/<sequence>``.

    Args:
        root: The DAVIS folder.
        set_name: Name of the list file without ``.txt``.
        year: Folder of the list file.
        resolution: Folder of the annotations.

    Raises:
        EvaluationError: If a file or folder is missing, the list is empty or names a sequence
            twice, or a sequence has fewer than three annotations.
    """
    list_path = root / "ImageSets" / year / f"{set_name}.txt"
    if not list_path.is_file():
        found = [path.stem for path in visible_files(list_path.parent, "*.txt")]
        advice = f"sets there: {', '.join(found)}" if found else "is this a DAVIS folder?"
        raise EvaluationError(f"{list_path}: no such set list ({advice})")
    try:
        names = read_text(list_path).split()
    except (OSError, ValueError) as error:
        raise EvaluationError(
            f"{list_path} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from error
    if not names:
        raise EvaluationError(f"{list_path}: the set list is empty")
    if twice := repeated(names):
        raise EvaluationError(f"{list_path}: sequence '{twice[0]}' is listed twice")
    annotations = root / "Annotations" / resolution
    return DavisDataset(
        root=root,
        set_name=set_name,
        sequences=tuple(_load_sequence(annotations / name) for name in names),
    )


def check_results(dataset: DavisDataset, results: Path) -> None:
    """Check that every scored frame has a prediction, before any computation.

    The first and the last frame are not needed: they are neither scored nor read.

    Args:
        dataset: The ground truth.
        results: Folder with ``<sequence>/<frame>.png``.

    Raises:
        EvaluationError: If a file or folder is missing; the message has the first one and the
            number of missing ones.
    """
    if not results.is_dir():
        raise EvaluationError(f"{results}: no such results folder")
    folders = [
        path for sequence in dataset.sequences if not (path := results / sequence.name).is_dir()
    ]
    if folders:
        raise EvaluationError(
            f"{folders[0]}: no such folder, so this sequence has no results "
            f"({len(folders)} of {len(dataset.sequences)} sequences missing); expected "
            f"<sequence>/<frame>.png for each sequence of the set '{dataset.set_name}'"
        )
    for sequence in dataset.sequences:
        scored = [results / sequence.name / path.name for path in sequence.scored_paths()]
        missing = [path for path in scored if not path.is_file()]
        if missing:
            raise EvaluationError(
                f"{missing[0]}: no such file ({len(missing)} of {len(scored)} scored frames of "
                f"'{sequence.name}' missing)"
            )


def _load_sequence(folder: Path) -> DavisSequence:
    if not folder.is_dir():
        raise EvaluationError(f"{folder}: no such annotation folder, but the set list names it")
    paths = tuple(visible_files(folder, "*.png"))
    if len(paths) < MIN_FRAMES:
        raise EvaluationError(
            f"{folder}: {len(paths)} annotations; at least {MIN_FRAMES} are needed, since the "
            f"first and the last are not scored"
        )
    return DavisSequence(name=folder.name, annotation_paths=paths)
