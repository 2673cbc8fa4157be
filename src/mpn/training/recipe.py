"""From data folders to a checkpoint that can be exported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mpn import __version__
from mpn.errors import TrainingError
from mpn.networks.checkpoint import load_checkpoint, save_checkpoint
from mpn.networks.deeplab_xception import DeepLabConfig, DeepLabXception
from mpn.training.clips import Material
from mpn.training.datasets import load_davis_split, load_still_pairs
from mpn.training.propagation import (
    PropagationTrainingOptions,
    TrainingReport,
    train_propagation,
)
from mpn.training.rollout import RolloutOptions


@dataclass(frozen=True)
class PropagationRecipe:
    """What the command line sets; everything else keeps its documented default.

    Attributes:
        davis_root: Folder in DAVIS layout.
        split: List of sequences; those held out for validation are taken from it.
        stills_root: Folder with ``images/`` and ``masks/``, or None.
        width: See :class:`mpn.networks.deeplab_xception.DeepLabConfig`.
        head_width: The same.
        middle_blocks: The same.
        prior_skip: The same.
        start_from: Checkpoint whose propagation weights to start from, or None.
        roi_size: Side of the crop, 16 n + 1.
        steps: See :class:`mpn.training.propagation.PropagationTrainingOptions`.
        decay_steps: The same.
        batch: The same.
        learning_rate: The same.
        seed: The same.
        threads: The same.
        bfloat16: The same.
    """

    davis_root: Path
    split: str
    stills_root: Path | None
    width: float
    head_width: float
    middle_blocks: int
    prior_skip: bool
    start_from: Path | None
    roi_size: int
    steps: int
    decay_steps: int
    batch: int
    learning_rate: float
    seed: int
    threads: int
    bfloat16: bool

    def options(self) -> PropagationTrainingOptions:
        """The options of the training loop."""
        return PropagationTrainingOptions(
            network=DeepLabConfig(
                width=self.width,
                head_width=self.head_width,
                middle_blocks=self.middle_blocks,
                dropout=False,
                prior_skip=self.prior_skip,
            ),
            rollout=RolloutOptions(roi_size=self.roi_size),
            steps=self.steps,
            decay_steps=self.decay_steps,
            batch=self.batch,
            learning_rate=self.learning_rate,
            seed=self.seed,
            threads=self.threads,
            bfloat16=self.bfloat16,
        )


def run_propagation_recipe(
    recipe: PropagationRecipe,
    out: Path,
    *,
    resume: bool = False,
    report: Callable[[TrainingReport], None] = lambda _: None,
) -> Path:
    """Read the data, train, and write the averaged weights as ``out/propagation.pth``.

    Args:
        recipe: Data and options.
        out: Folder of the run.
        resume: Go on where the run in ``out`` stopped.
        report: Called every few steps.

    Returns:
        Path of the checkpoint.

    Raises:
        CheckpointError: If the checkpoint to start from cannot be used.
        TrainingError: If the data cannot be used, ``out`` holds another run, or training fails.
    """
    if (recipe.roi_size - 1) % 16 or recipe.roi_size < 65:
        raise TrainingError(
            f"the ROI size must be 16 n + 1 and at least 65 (193, 225, 513), got {recipe.roi_size}"
        )
    options = recipe.options()
    start: Mapping[str, Tensor] | None = None
    if recipe.start_from is not None:
        checkpoint = load_checkpoint(recipe.start_from, expected_role="propagation")
        start = checkpoint.roles["propagation"].state_dict
    sequences = load_davis_split(recipe.davis_root, recipe.split)
    stills = load_still_pairs(recipe.stills_root) if recipe.stills_root is not None else []
    material = Material(tuple(s for s in sequences if s.name not in options.holdout), tuple(stills))
    averaged = train_propagation(
        sequences, material, out, options, start_from=start, resume=resume, report=report
    )
    network = DeepLabXception(options.network)
    network.load_state_dict(averaged)
    path = out / "propagation.pth"
    save_checkpoint(path, {"propagation": network}, provenance=_provenance(recipe, material))
    return path


def _provenance(recipe: PropagationRecipe, material: Material) -> dict[str, Any]:
    settings = {k: v for k, v in asdict(recipe).items() if not isinstance(v, Path)}
    return {
        "tool": f"mpn-runtime {__version__}",
        "recipe": settings,
        "data": {
            "davis_sequences": [s.name for s in material.sequences],
            "held_out": list(recipe.options().holdout),
            "still_pairs": len(material.stills),
        },
    }
