"""Output of an evaluation: official CSV files, JSON, and one line as in papers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mpn._common.files import write_text_atomically
from mpn.evaluation.scores import DatasetScore
from mpn.evaluation.statistics import Statistics

GLOBAL_COLUMNS = (
    "J&F-Mean",
    "J-Mean",
    "J-Recall",
    "J-Decay",
    "F-Mean",
    "F-Recall",
    "F-Decay",
)
PER_SEQUENCE_COLUMNS = ("Sequence", "J-Mean", "F-Mean")


def global_csv_name(set_name: str) -> str:
    """Return the official tool's file name for the figures of a set."""
    return f"global_results-{set_name}.csv"


def per_sequence_csv_name(set_name: str) -> str:
    """Return the official tool's file name for the figures of each object."""
    return f"per-sequence_results-{set_name}.csv"


def global_csv_from_score(score: DatasetScore) -> str:
    """Format the official table of a set: fractions with three decimals."""
    row = ",".join(f"{value:.3f}" for value in _global_values(score))
    return f"{','.join(GLOBAL_COLUMNS)}\n{row}\n"


def per_sequence_csv_from_score(score: DatasetScore) -> str:
    """Format the official table of objects, one row each.

    Rows are named ``<sequence>_<id>``.
    """
    rows = [
        f"{scored.name},{scored.region.mean:.3f},{scored.boundary.mean:.3f}"
        for scored in score.objects
    ]
    return "\n".join([",".join(PER_SEQUENCE_COLUMNS), *rows]) + "\n"


def json_from_score(score: DatasetScore, *, per_frame: bool = False) -> dict[str, Any]:
    """Convert the figures to JSON types, fractions at full precision.

    Args:
        score: The score.
        per_frame: Add ``"frames"``, the frame names of each sequence, and ``"J"`` and ``"F"`` of
            each object in every frame.

    Returns:
        ``{"global": {"J&F-Mean": ...}, "objects": {"<sequence>_<id>": {"J-Mean": ...}}}``, with
        every column of the global CSV that applies.
    """
    objects: dict[str, dict[str, Any]] = {}
    for scored in score.objects:
        objects[scored.name] = {
            **_columns("J", scored.region),
            **_columns("F", scored.boundary),
        }
        if per_frame:
            objects[scored.name]["J"] = list(scored.region_values)
            objects[scored.name]["F"] = list(scored.boundary_values)
    figures: dict[str, Any] = {
        "global": dict(zip(GLOBAL_COLUMNS, _global_values(score), strict=True)),
        "objects": objects,
    }
    if per_frame:
        figures["frames"] = {sequence.name: list(sequence.frames) for sequence in score.sequences}
    return figures


def paper_line_from_score(score: DatasetScore) -> str:
    """Format one line of percentages in the order of the DAVIS tables."""
    region, boundary = score.region, score.boundary
    return (
        f"J&F {100 * score.j_and_f:.1f} | "
        f"J mean {100 * region.mean:.1f} recall {100 * region.recall:.1f} "
        f"decay {100 * region.decay:.1f} | "
        f"F mean {100 * boundary.mean:.1f} recall {100 * boundary.recall:.1f} "
        f"decay {100 * boundary.decay:.1f}"
    )


def save_csvs(score: DatasetScore, directory: Path) -> tuple[Path, Path]:
    """Write both official CSV files atomically, replacing older ones.

    Args:
        score: The score.
        directory: An existing folder; the official tool uses the results folder.

    Returns:
        Paths of the global and the per-sequence file.

    Raises:
        OutputError: If they cannot be written.
    """
    texts = (
        (directory / global_csv_name(score.set_name), global_csv_from_score(score)),
        (directory / per_sequence_csv_name(score.set_name), per_sequence_csv_from_score(score)),
    )
    for path, text in texts:
        write_text_atomically(path, text, durable=True)
    return texts[0][0], texts[1][0]


def _global_values(score: DatasetScore) -> tuple[float, ...]:
    region, boundary = score.region, score.boundary
    return (
        score.j_and_f,
        region.mean,
        region.recall,
        region.decay,
        boundary.mean,
        boundary.recall,
        boundary.decay,
    )


def _columns(measure: str, statistics: Statistics) -> dict[str, float]:
    return {
        f"{measure}-Mean": statistics.mean,
        f"{measure}-Recall": statistics.recall,
        f"{measure}-Decay": statistics.decay,
    }
