"""From data folders to OSVOS weights that can be exported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor

from mpn import __version__
from mpn.errors import TrainingError
from mpn.networks.checkpoint import load_checkpoint, save_checkpoint
from mpn.networks.osvos_vgg import OsvosConfig, OsvosVgg
from mpn.training.datasets import DavisSequence, StillPair, load_davis_split, load_still_pairs
from mpn.training.osvos import train_osvos
from mpn.training.osvos_options import OsvosTrainingOptions, OsvosTrainingReport
from mpn.training.osvos_samples import CropOptions

Stages = Literal["both", "salient", "davis"]


@dataclass(frozen=True)
class OsvosRecipe:
    """What the command line sets; everything else keeps its documented default.

    Attributes:
        stages: Offline stages to train.
        davis_root: Folder in DAVIS layout, for stage 2 and for validation, or None.
        split: List of sequences; those held out for validation are taken from it.
        stills_root: Folder with ``images/`` and ``masks/``, for stage 1 and a share of stage 2, or
            None.
        width: See :class:`mpn.networks.osvos_vgg.OsvosConfig`.
        start_from: Checkpoint whose OSVOS weights to start from, or None.
        crop_size: Side of the crops in pixels, a multiple of 16.
        salient_steps: Steps of stage 1 where it is trained.
        davis_steps: Steps of stage 2 where it is trained.
        batch: See :class:`mpn.training.osvos_options.OsvosTrainingOptions`.
        salient_rate: The same.
        davis_rate: The same.
        seed: The same.
        threads: The same.
        bfloat16: The same.
    """

    stages: Stages
    davis_root: Path | None
    split: str
    stills_root: Path | None
    width: float
    start_from: Path | None
    crop_size: int
    salient_steps: int
    davis_steps: int
    batch: int
    salient_rate: float
    davis_rate: float
    seed: int
    threads: int
    bfloat16: bool

    def __post_init__(self) -> None:
        if self.stages not in get_args(Stages):
            raise TrainingError(
                f"the stages to train are {', '.join(get_args(Stages))}, got '{self.stages}'"
            )
        if self.crop_size % 16 or self.crop_size < 64:
            raise TrainingError(
                f"the crop size must be a multiple of 16 and at least 64 (192, 224, 256), "
                f"got {self.crop_size}"
            )
        if self.stages != "davis" and self.stills_root is None:
            raise TrainingError(
                "stage 1 learns from salient-object images: name their folder with --stills, or "
                "train --stage davis alone"
            )
        if self.stages != "salient" and self.davis_root is None:
            raise TrainingError(
                "stage 2 learns from a DAVIS folder: name it with --davis-root, or train "
                "--stage salient alone"
            )

    def options(self) -> OsvosTrainingOptions:
        """The options of the training loop."""
        return OsvosTrainingOptions(
            network=OsvosConfig(width=self.width),
            crop=CropOptions(size_px=self.crop_size),
            salient_steps=0 if self.stages == "davis" else self.salient_steps,
            davis_steps=0 if self.stages == "salient" else self.davis_steps,
            batch=self.batch,
            salient_rate=self.salient_rate,
            davis_rate=self.davis_rate,
            seed=self.seed,
            threads=self.threads,
            bfloat16=self.bfloat16,
        )


def run_osvos_recipe(
    recipe: OsvosRecipe,
    out: Path,
    *,
    resume: bool = False,
    report: Callable[[OsvosTrainingReport], None] = lambda _: None,
) -> Path:
    """Read the data, train, and write the averaged weights as ``out/osvos.pth``.

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
    options = recipe.options()
    start: Mapping[str, Tensor] | None = None
    if recipe.start_from is not None:
        checkpoint = load_checkpoint(recipe.start_from, expected_role="osvos")
        start = checkpoint.roles["osvos"].state_dict
    sequences = load_davis_split(recipe.davis_root, recipe.split) if recipe.davis_root else []
    stills = load_still_pairs(recipe.stills_root) if recipe.stills_root else []
    weights = train_osvos(
        sequences, stills, out, options, start_from=start, resume=resume, report=report
    )
    network = OsvosVgg(options.network)
    network.load_state_dict(weights)
    path = out / "osvos.pth"
    provenance = osvos_provenance(recipe, sequences, stills)
    save_checkpoint(path, {"osvos": network}, provenance=provenance)
    return path


def osvos_provenance(
    recipe: OsvosRecipe, sequences: list[DavisSequence], stills: list[StillPair]
) -> dict[str, Any]:
    """What a checkpoint says about its origin, as JSON types."""
    options = recipe.options()
    settings = {k: v for k, v in asdict(recipe).items() if not isinstance(v, Path)}
    trained = [s.name for s in sequences if s.name not in options.holdout]
    return {
        "tool": f"mpn-runtime {__version__}",
        "recipe": settings,
        "data": {
            "davis_sequences": trained if options.davis_steps else [],
            "held_out": list(options.holdout),
            "still_pairs": len(stills),
        },
    }
