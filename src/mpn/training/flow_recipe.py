"""Recipe of a flow network, from data folders to a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mpn.networks.checkpoint import load_checkpoint
from mpn.networks.flownet2 import FlowNet2
from mpn.training.data_options import DataOptions
from mpn.training.flow import train_flow
from mpn.training.flow_options import FlowTrainingOptions, FlowTrainingReport
from mpn.training.flow_pairs import FlowPairs, load_flow_pairs
from mpn.training.run_folder import open_run, write_checkpoint


@dataclass(frozen=True, kw_only=True)
class FlowRecipe:
    """Data, options and initial weights of a run.

    Attributes:
        data: Stills for synthetic motion, and a DAVIS folder for validation only.
        flow_pairs: Folders of frames with true flow: FlyingChairs, Sintel.
        training: Options of the run.
        start_from: Checkpoint of the initial flow weights, own or public, or None.
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
    open_run(recipe, "flow", out, resume=resume, notice=notice)
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
