"""Recipe of the propagation network, from data folders to a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from mpn.errors import TrainingError
from mpn.networks.features import features_variant
from mpn.networks.propagation import PropagationNet
from mpn.training.data import DataOptions, load_instances
from mpn.training.propagation.clips import ClipSources
from mpn.training.propagation.features import load_features
from mpn.training.propagation.options import PropagationTrainingOptions, TrainingReport
from mpn.training.propagation.recipe import train_propagation
from mpn.training.run_folder import open_run, propagation_start, write_checkpoint


@dataclass(frozen=True, kw_only=True)
class PropagationRecipe:
    """Data, options and initial weights of a run.

    Attributes:
        data: Folders of the training material.
        training: Options of the run.
        start_from: Checkpoint of the initial weights, or None: one in the project's
            format, a public DeepLab v3+ Xception, or an ImageNet network of the backbone.
        init_fourth_channel: How to initialise the input channels that those weights lack, as that
            of the warped probability: ``"zero"``, ``"mean"`` or ``"normal"``.
        instances: Folders of images with one id per instance, see
            :func:`mpn.training.data.load_instances`; each large instance is a still image.
        features: Network of the target model, for a network of five input channels: a checkpoint
            with the role features, or an ImageNet network.
        features_cache: Folder for the features of the sequences; None: ``features`` in the
            folder of the run. Two runs must not fill one folder at the same time.
    """

    data: DataOptions = field(default_factory=DataOptions)
    training: PropagationTrainingOptions = field(default_factory=PropagationTrainingOptions)
    start_from: Path | None = None
    init_fourth_channel: Literal["zero", "mean", "normal"] | None = None
    instances: tuple[Path, ...] = ()
    features: Path | None = None
    features_cache: Path | None = None

    def __post_init__(self) -> None:
        size = self.training.rollout.roi_size
        if (size - 1) % 16 or size < 65:
            raise TrainingError(
                f"the ROI size must be 16 n + 1 and at least 65 (193, 225, 513), got {size}"
            )
        if self.data.davis_root is None:
            raise TrainingError(
                "the propagation network is trained on a DAVIS folder: add --davis-root"
            )
        channels = self.training.network.in_channels
        if (channels == 5) != (self.features is not None):
            raise TrainingError(
                "the fifth input channel is the score of a target model, on the features of a "
                f"frozen network: a network of {channels} channels "
                + ("needs it, add --features FILE" if channels == 5 else "takes no --features")
            )
        if len(set(self.instances)) < len(self.instances):
            raise TrainingError(
                f"a folder of instances is given twice: {', '.join(map(str, self.instances))}"
            )


def run_propagation_recipe(
    recipe: PropagationRecipe,
    out: Path,
    *,
    resume: bool = False,
    notice: Callable[[str], None] = lambda _: None,
    report: Callable[[TrainingReport], None] = lambda _: None,
) -> Path:
    """Read the data, train, and write averaged weights to ``out/propagation.pth``.

    Args:
        recipe: Data and options.
        out: Folder of the run; its ``recipe.toml`` holds the options as used.
        resume: Continue the run in ``out``.
        notice: Called with every option that a resumed run changes, and the size of the cache of
            features.
        report: Called every few steps.

    Returns:
        Path of the checkpoint.

    Raises:
        CheckpointError: If the initial checkpoint cannot be used.
        TrainingError: If the data cannot be used, ``out`` holds another run, or training fails.
    """
    options = recipe.training
    start = None
    if recipe.start_from is not None:
        start = propagation_start(
            recipe.start_from,
            options.network,
            fourth=recipe.init_fourth_channel,
            seed=options.seed,
        )
    features = None if recipe.features is None else load_features(recipe.features)
    sequences, stills = recipe.data.sequences(), recipe.data.still_pairs()
    instances = [pair for folder in recipe.instances for pair in load_instances(folder)]
    material = ClipSources(
        tuple(s for s in sequences if s.name not in options.holdout), (*stills, *instances)
    )
    with open_run(recipe, "propagation", out, resume=resume, notice=notice):
        averaged = train_propagation(
            sequences,
            material,
            out,
            options,
            start_from=start,
            features=features,
            features_cache=recipe.features_cache,
            resume=resume,
            notice=notice,
            report=report,
        )
        network = PropagationNet(options.network)
        network.load_state_dict(averaged)
        data: dict[str, Any] = {
            "davis_sequences": [s.name for s in material.sequences],
            "held_out": list(options.holdout),
            "still_pairs": len(stills),
            "instances": len(instances),
        }
        if features is not None:
            data["features"] = features_variant(asdict(features.config))
        return write_checkpoint(network, recipe, "propagation", out, data)
