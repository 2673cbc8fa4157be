"""The ``mpn train flow`` command."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mpn.cli import train_options as options
from mpn.cli.train_common import build_recipe, launch, print_next, run_with_progress


class FlowVariantChoice(StrEnum):
    """Networks of the FlowNet family."""

    flownet2 = "FlowNet2"
    css = "FlowNet2CSS"
    cs = "FlowNet2CS"
    c = "FlowNet2C"
    s = "FlowNet2S"
    sd = "FlowNet2SD"


def flow(
    stills: options.Stills = None,
    flow_pairs: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of frames with true flow (FlyingChairs, Sintel); repeatable."),
    ] = None,
    davis_root: Annotated[
        Path | None, typer.Option(help="DAVIS folder; its held-out sequences are for validation.")
    ] = None,
    out: options.Out = Path("runs/flow"),
    recipe: options.Recipe = None,
    config: options.Config = None,
    start_from: options.StartFrom = None,
    variant: Annotated[FlowVariantChoice | None, typer.Option(help="Network.")] = None,
    width: Annotated[
        float | None, typer.Option(help="Channel factor; 1 is the public size.")
    ] = None,
    steps: options.Steps = None,
    batch: options.Batch = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak rate, AdamW.")] = None,
    seed: options.Seed = None,
    threads: options.Threads = None,
    workers: options.Workers = None,
    device: options.Device = None,
    precision: options.Precision = None,
    tensorboard: options.TensorBoard = None,
    settings: options.Settings = None,
    resume: options.Resume = False,
) -> None:
    """Train a network of the FlowNet family on true flow, and write OUT/flow.pth.

    Frames with true flow are made from still images with synthetic motion, or read from folders, or
    both. --steps is for networks of one member; for FlowNet2's five members use --set
    training.steps_by_member=[...]. A run can be stopped at any time and resumed.
    """
    launch()
    from mpn.training.flow_recipe import FlowRecipe, run_flow_recipe

    changes = {
        "start_from": start_from,
        "flow_pairs": flow_pairs or None,
        "data.davis_root": davis_root,
        "data.stills": stills or None,
        "training.network.variant": variant,
        "training.network.width": width,
        "training.steps_by_member": None if steps is None else [steps],
        "training.batch": batch,
        "training.learning_rate": learning_rate,
        "training.seed": seed,
        "training.threads": threads,
        "training.workers": workers,
        "training.device": device,
        "training.precision": precision,
        "training.tensorboard": tensorboard,
    }
    built = build_recipe(FlowRecipe, "flow", recipe, config, settings, changes)
    checkpoint = run_with_progress(run_flow_recipe, built, out, resume=resume)
    print_next(checkpoint, f"mpn export PROPAGATION.pth {checkpoint} -o engines")
