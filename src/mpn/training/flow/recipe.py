"""Training of a FlowNet network on true flow.

A run can be resumed: ``last.pth`` holds weights and optimiser, and samples are functions of step
and number. It is seeded and logged to ``log.csv``. The members of FlowNet 2.0 and its stacks are
trained one after the other, as in E. Ilg et al., "FlowNet 2.0", CVPR 2017, section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from mpn.networks.checkpoint import load_checkpoint
from mpn.networks.flownet2 import FLOW_SCALE, FlowNet2
from mpn.training.data import DataOptions, DavisSequence, StillPair
from mpn.training.flow.options import FlowTrainingOptions, FlowTrainingReport
from mpn.training.flow.pairs import FlowPairs, FlowSamples, load_flow_pairs
from mpn.training.flow.synthetic import FlowSample, SyntheticPairs
from mpn.training.flow.trainer import (
    FlowTrainer,
    validation_epe_px,
    validation_estimator,
    warp_mean_j,
    weights_in_public_units,
)
from mpn.training.loop import run_loop, saved_state, seeded_processes
from mpn.training.run_folder import load_start, open_run, write_checkpoint

_VALIDATION_KEY = 2**31
"""First number of the synthetic validation pairs, larger than any step."""


def train_flow(
    sequences: Sequence[DavisSequence],
    stills: Sequence[StillPair],
    pairs: FlowPairs,
    out: Path,
    options: FlowTrainingOptions,
    *,
    start_from: Mapping[str, Tensor] | None = None,
    resume: bool = False,
    report: Callable[[FlowTrainingReport], None] = lambda _: None,
) -> dict[str, Tensor]:
    """Train, and write ``last.pth`` and ``log.csv`` to ``out``.

    Args:
        sequences: Those named in ``options.holdout`` are for validation; none is trained on.
        stills: Images for synthetic pairs.
        pairs: Pairs with true flow.
        out: See :func:`mpn.training.propagation.recipe.train_propagation`.
        options: See :class:`FlowTrainingOptions`.
        start_from: Weights to start from instead of random ones, in public units; those of a
            resumed run win.
        resume: As for ``out``.
        report: As for ``out``.

    Returns:
        The averaged state dict in public units, on the CPU.

    Raises:
        TrainingError: If there is no training data, the initial weights do not fit, the loss is not
            finite (the last good state stays on disk), or the folder holds another run.
    """
    samples = FlowSamples(stills, pairs.train, options)
    state = saved_state(out, resume=resume)
    held_out = [s for s in sequences if s.name in options.holdout]
    synthetic = _synthetic_validation(stills, options) if not pairs.held_out else []
    with seeded_processes(options) as processes:
        network = FlowNet2(options.network, small_flow_scale=FLOW_SCALE)
        init_flow_weights(network)
        if start_from is not None:
            load_start(
                network,
                weights_in_public_units(start_from, options, back=True),
                advice="the variant and width that they were trained with",
            )
        network.to(processes.device)
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        trainer = FlowTrainer(network, samples, options, processes)
        if state is not None:
            trainer.restore(state)

        def validate() -> dict[str, float]:
            averaged = trainer.averaged_network()
            scores = {"validation_epe_px": validation_epe_px(averaged, pairs.held_out, synthetic)}
            if held_out and options.validation_frames:
                estimator = validation_estimator(averaged, options.validation_hw)
                scores["validation_j"] = warp_mean_j(estimator, held_out, options.validation_frames)
            return scores

        run_loop(
            trainer,
            options,
            options.steps,
            out,
            processes=processes,
            validate=validate,
            report=report,
        )
        return trainer.deployed_weights()


def init_flow_weights(network: nn.Module) -> None:
    """Draw random weights that keep the size of features over the layers.

    Biases are zero. K. He et al., "Delving Deep into Rectifiers", ICCV 2015, for leaky ReLUs of
    slope 0.1. Flows are upsampled bilinearly at first and begin near zero. Uses torch's global
    generator.
    """
    for name, layer in network.named_modules():
        if not isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            continue
        last = name.rsplit(".", 1)[-1]
        with torch.no_grad():
            if last.startswith("upsampled_flow"):
                layer.weight.copy_(_bilinear_upsampling())
            elif last.startswith("predict_flow"):
                layer.weight.normal_(0, 1e-3)
            else:
                transposed = isinstance(layer, nn.ConvTranspose2d)
                # An output of a transposed convolution of stride 2 uses a quarter of its kernel.
                taps = layer.kernel_size[0] * layer.kernel_size[1]
                fan = layer.in_channels * (taps / 4 if transposed else taps)
                layer.weight.normal_(0, (2 / (1 + 0.1**2) / fan) ** 0.5)
            if layer.bias is not None:
                layer.bias.zero_()


def _bilinear_upsampling() -> Tensor:
    """Return (2, 2, 4, 4) weights that double each flow component in size."""
    line = torch.tensor([0.25, 0.75, 0.75, 0.25])
    weight = torch.zeros(2, 2, 4, 4)
    for axis in range(2):
        weight[axis, axis] = line[:, None] * line
    return weight


def _synthetic_validation(
    stills: Sequence[StillPair], options: FlowTrainingOptions
) -> list[FlowSample]:
    made = SyntheticPairs(stills, options.size_hw, options.synthetic, options.seed)
    return [made.pair(_VALIDATION_KEY, k) for k in range(options.synthetic_validation)]


@dataclass(frozen=True, kw_only=True)
class FlowRecipe:
    """Data, options and initial weights of a run.

    Attributes:
        data: Stills for synthetic motion, and a DAVIS folder for validation only.
        flow_pairs: Folders of frames with true flow: FlyingChairs, Sintel.
        training: Options of the run.
        start_from: Checkpoint of the initial flow weights, in the project's or a public
            format, or None.
    """

    data: DataOptions = field(default_factory=DataOptions)
    flow_pairs: tuple[Path, ...] = ()
    training: FlowTrainingOptions = field(default_factory=FlowTrainingOptions)
    start_from: Path | None = None


def run_flow_recipe(
    recipe: FlowRecipe,
    out: Path,
    *,
    resume: bool = False,
    notice: Callable[[str], None] = lambda _: None,
    report: Callable[[FlowTrainingReport], None] = lambda _: None,
) -> Path:
    """Read the data, train, and write the averaged weights as ``out/flow.pth``.

    See :func:`mpn.training.recipe.run_propagation_recipe` for arguments, result and errors.
    """
    options = recipe.training
    start = None
    if recipe.start_from is not None:
        checkpoint = load_checkpoint(
            recipe.start_from, expected_role="flow", expected_variant=options.network.variant
        )
        start = checkpoint.roles["flow"].state_dict
    sequences, stills = recipe.data.sequences(), recipe.data.still_pairs()
    pairs = _pairs(recipe)
    with open_run(recipe, "flow", out, resume=resume, notice=notice):
        weights = train_flow(
            sequences, stills, pairs, out, options, start_from=start, resume=resume, report=report
        )
        network = FlowNet2(options.network)
        network.load_state_dict(weights)
        data = {
            "still_pairs": len(stills),
            "flow_pairs": len(pairs.train),
            "held_out_flow_pairs": len(pairs.held_out),
        }
        return write_checkpoint(network, recipe, "flow", out, data)


def _pairs(recipe: FlowRecipe) -> FlowPairs:
    folders = [load_flow_pairs(root, recipe.training.holdout_pairs) for root in recipe.flow_pairs]
    return FlowPairs(
        tuple(pair for folder in folders for pair in folder.train),
        tuple(pair for folder in folders for pair in folder.held_out),
    )
