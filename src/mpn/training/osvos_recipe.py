"""Recipe of OSVOS, from data folders to a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from mpn.errors import TrainingError
from mpn.networks.osvos_vgg import OsvosVgg
from mpn.training.data_options import DataOptions
from mpn.training.datasets import DavisSequence, StillPair
from mpn.training.osvos import train_osvos
from mpn.training.osvos_options import OsvosTrainingOptions, OsvosTrainingReport
from mpn.training.run_folder import open_run, write_checkpoint
from mpn.training.start_weights import osvos_start

Stages = Literal["both", "salient", "davis"]


@dataclass(frozen=True, kw_only=True)
class OsvosRecipe:
    """Data, options and initial weights of a run.

    Attributes:
        stages: Offline stages to train: ``"salient"`` on still images, ``"davis"`` on sequences.
        data: Folders of the training material.
        training: Options of the run; the steps of a skipped stage do not count.
        start_from: Checkpoint of the initial weights, or None: an own or a public OSVOS, or
            torchvision's VGG16.
    """

    stages: Stages = "both"
    data: DataOptions = field(default_factory=DataOptions)
    training: OsvosTrainingOptions = field(default_factory=OsvosTrainingOptions)
    start_from: Path | None = None

    def __post_init__(self) -> None:
        size = self.training.crop.size_px
        if size % 16 or size < 64:
            raise TrainingError(
                f"the crop size must be a multiple of 16 and at least 64 (192, 224, 256), "
                f"got {size}"
            )
        if self.stages != "davis" and not self.data.stills:
            raise TrainingError(
                "stage 1 is trained on salient-object images: add --stills, or "
                "train --stage davis alone"
            )
        if self.stages != "salient" and self.data.davis_root is None:
            raise TrainingError(
                "stage 2 is trained on a DAVIS folder: add --davis-root, or train "
                "--stage salient alone"
            )

    def options(self) -> OsvosTrainingOptions:
        """Return the options of the training loop, without skipped stages."""
        return replace(
            self.training,
            salient_steps=0 if self.stages == "davis" else self.training.salient_steps,
            davis_steps=0 if self.stages == "salient" else self.training.davis_steps,
        )


def run_osvos_recipe(
    recipe: OsvosRecipe,
    out: Path,
    *,
    resume: bool = False,
    notice: Callable[[str], None] = lambda _: None,
    report: Callable[[OsvosTrainingReport], None] = lambda _: None,
) -> Path:
    """Read the data, train, and write the averaged weights as ``out/osvos.pth``.

    See :func:`mpn.training.recipe.run_propagation_recipe` for arguments, result and errors.
    """
    options = recipe.options()
    start = None
    if recipe.start_from is not None:
        start = osvos_start(recipe.start_from, options.network, seed=options.seed)
    sequences, stills = recipe.data.sequences(), recipe.data.still_pairs()
    open_run(recipe, "osvos", out, resume=resume, notice=notice)
    weights = train_osvos(
        sequences, stills, out, options, start_from=start, resume=resume, report=report
    )
    network = OsvosVgg(options.network)
    network.load_state_dict(weights)
    data = osvos_data(options, sequences, stills)
    return write_checkpoint(network, recipe, "osvos", out, data)


def osvos_data(
    options: OsvosTrainingOptions, sequences: list[DavisSequence], stills: list[StillPair]
) -> dict[str, Any]:
    """Describe the training data as JSON types."""
    trained = [s.name for s in sequences if s.name not in options.holdout]
    return {
        "davis_sequences": trained if options.davis_steps else [],
        "held_out": list(options.holdout),
        "still_pairs": len(stills),
    }
