"""The ``mpn train`` commands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from mpn.cli import train_options as options
from mpn.cli.output import echo
from mpn.cli.usage import EPILOG, with_home

DEFAULT_RECIPE = "lite"
"""Recipe without ``--recipe`` and ``--config``."""


def launch() -> None:
    """Check that torch is installed, and restart with freed memory kept."""
    from mpn.errors import import_or_explain

    import_or_explain("torch", extra="export", purpose="mpn train")
    from mpn.training import processes as launching

    launching.keep_freed_memory()


def build_recipe(
    kind: Any,
    role: str,
    name: str | None,
    path: Path | None,
    settings: list[str] | None,
    changes: Mapping[str, Any],
) -> Any:
    """Build the recipe of a command line.

    A file or a shipped recipe is overridden by ``--set``, and then by the other options.
    """
    from mpn.training.recipe_file import load_table, overridden, parsed_settings, recipe_from_table

    if name is None and path is None:
        name = DEFAULT_RECIPE
    table = overridden(load_table(role, name=name, path=path), parsed_settings(settings or []))
    plain = {k: str(v) if isinstance(v, StrEnum) else v for k, v in changes.items()}
    return recipe_from_table(kind, overridden(table, plain))


def run_with_progress(run: Callable[..., Path], recipe: Any, out: Path, *, resume: bool) -> Path:
    """Train by a function such as ``run_flow_recipe`` with a progress display.

    Returns:
        The checkpoint.
    """
    from mpn.training.progress import TrainingProgress

    with TrainingProgress() as progress:
        return run(recipe, out, resume=resume, notice=echo, report=progress.report)


def print_next(checkpoint: Path, command: str) -> None:
    """Print the path of the weights and the command for the next step.

    Only the first process prints.
    """
    from mpn.training.processes import is_first_process

    if not is_first_process():
        return
    echo(f"averaged weights: {checkpoint}")
    echo(f"next: {command}")


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
    from mpn.training.flow.recipe import FlowRecipe, run_flow_recipe

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


train_app = typer.Typer(
    help="Train a network (needs the extra 'export'); under torchrun on several GPUs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog=EPILOG,
)


@train_app.callback()
def _train() -> None:
    pass


class BackboneChoice(StrEnum):
    """Backbones; see :data:`mpn.networks.backbones.BACKBONES`."""

    xception = "xception"
    efficientnet_lite0 = "efficientnet-lite0"
    efficientnet_lite2 = "efficientnet-lite2"
    resnet50 = "resnet50"
    resnet101 = "resnet101"
    vgg16 = "vgg16"


class HeadChoice(StrEnum):
    """Heads; see :data:`mpn.networks.propagation.HEADS`."""

    deeplab_v3_plus = "deeplab-v3+"
    deeplab_v2 = "deeplab-v2"
    pspnet = "pspnet"


class FourthChannelChoice(StrEnum):
    """Initialisations; see :data:`mpn.networks.propagation.FOURTH_CHANNELS`."""

    zero = "zero"
    mean = "mean"
    normal = "normal"


@train_app.command("propagation", epilog=EPILOG)
@with_home
def propagation(
    davis_root: options.DavisRoot = None,
    stills: options.Stills = None,
    instances: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder of images/ and masks/ with one id per instance; may be repeated."
        ),
    ] = None,
    out: options.Out = Path("runs/propagation"),
    recipe: options.PropagationRecipe = None,
    config: options.Config = None,
    start_from: options.StartFrom = None,
    init_fourth_channel: Annotated[
        FourthChannelChoice | None,
        typer.Option(help="Fill input channels that the initial weights lack."),
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(
            help="Network of the target model, whose score is the fifth input channel (recipe "
            "target): an ImageNet file of a backbone, or a checkpoint with the role features."
        ),
    ] = None,
    features_cache: Annotated[
        Path | None,
        typer.Option(help="Folder of the features of the sequences; OUT/features if not given."),
    ] = None,
    split: options.Split = None,
    backbone: Annotated[BackboneChoice | None, typer.Option(help="Trunk of the network.")] = None,
    head: Annotated[HeadChoice | None, typer.Option(help="Layers after the trunk.")] = None,
    width: Annotated[
        float | None,
        typer.Option(help="Channel factor of the backbone; 1 if it is not xception."),
    ] = None,
    head_width: Annotated[float | None, typer.Option(help="Channel factor of the head.")] = None,
    middle_blocks: Annotated[int | None, typer.Option(help="Middle-flow blocks, 1..16.")] = None,
    prior_skip: Annotated[
        bool | None,
        typer.Option(
            "--prior-skip/--no-prior-skip",
            help="Predict corrections of the warped probability, not the whole mask.",
        ),
    ] = None,
    roi_size: Annotated[int | None, typer.Option(help="Side of the crop, 16 n + 1.")] = None,
    steps: options.Steps = None,
    decay_steps: Annotated[
        int | None, typer.Option(min=0, help="Steps of the final cosine decay.")
    ] = None,
    warmup_steps: Annotated[
        int | None, typer.Option(min=0, help="Steps of the linear rise.")
    ] = None,
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
    """Train the propagation network on its rollouts; write OUT/propagation.pth.

    Options of the command line override the recipe. A run can be stopped at any time and resumed;
    more --steps prolong it.
    """
    launch()
    from mpn.training.recipe import PropagationRecipe, run_propagation_recipe

    changes = {
        "start_from": start_from,
        "init_fourth_channel": init_fourth_channel,
        "instances": instances or None,
        "features": features,
        "features_cache": features_cache,
        "data.davis_root": davis_root,
        "data.stills": stills or None,
        "data.split": split,
        "training.network.backbone": backbone,
        "training.network.head": head,
        "training.network.width": width,
        "training.network.head_width": head_width,
        "training.network.middle_blocks": middle_blocks,
        "training.network.prior_skip": prior_skip,
        "training.rollout.roi_size": roi_size,
        "training.steps": steps,
        "training.decay_steps": decay_steps,
        "training.warmup_steps": warmup_steps,
        "training.batch": batch,
        "training.learning_rate": learning_rate,
        "training.seed": seed,
        "training.threads": threads,
        "training.workers": workers,
        "training.device": device,
        "training.precision": precision,
        "training.tensorboard": tensorboard,
    }
    is_set = any(setting.startswith("training.network.width") for setting in settings or ())
    if width is None and not is_set and backbone not in (None, BackboneChoice.xception):
        changes["training.network.width"] = 1.0  # the widths of the recipes are Xception's
    built = build_recipe(PropagationRecipe, "propagation", recipe, config, settings, changes)
    checkpoint = run_with_progress(run_propagation_recipe, built, out, resume=resume)
    rollout = built.training.rollout
    features_height, features_width = built.training.score.size_hw
    with_features = (
        ""
        if built.features is None
        else f"{built.features} --features-size {features_width}x{features_height} "
    )
    print_next(
        checkpoint,
        f"mpn export {checkpoint} {with_features}-o engines --roi-size {rollout.roi_size} "
        f"--runtime-default flow_check_px={rollout.flow_check_px} "
        f"--runtime-default colour_weight={rollout.colour_weight}",
    )


class OsvosStages(StrEnum):
    """Offline stages of OSVOS to train."""

    both = "both"
    salient = "salient"
    davis = "davis"


@train_app.command("osvos", epilog=EPILOG)
@with_home
def osvos(
    davis_root: options.DavisRoot = None,
    stills: options.Stills = None,
    out: options.Out = Path("runs/osvos"),
    recipe: options.Recipe = None,
    config: options.Config = None,
    start_from: options.StartFrom = None,
    split: options.Split = None,
    stage: Annotated[
        OsvosStages | None,
        typer.Option(
            help="salient: stage 1, still images. davis: stage 2, sequences, objects merged."
        ),
    ] = None,
    width: Annotated[float | None, typer.Option(help="Channel factor; 1 is VGG16.")] = None,
    crop_size: Annotated[int | None, typer.Option(help="Side of the crops, 16 n.")] = None,
    salient_steps: Annotated[int | None, typer.Option(min=1, help="Steps of stage 1.")] = None,
    davis_steps: Annotated[int | None, typer.Option(min=1, help="Steps of stage 2.")] = None,
    batch: options.Batch = None,
    salient_rate: Annotated[float | None, typer.Option(help="Peak rate of stage 1.")] = None,
    davis_rate: Annotated[float | None, typer.Option(help="Peak rate of stage 2.")] = None,
    seed: options.Seed = None,
    threads: options.Threads = None,
    workers: options.Workers = None,
    device: options.Device = None,
    precision: options.Precision = None,
    tensorboard: options.TensorBoard = None,
    settings: options.Settings = None,
    resume: options.Resume = False,
) -> None:
    """Train OSVOS offline, and write OUT/osvos.pth.

    The weights are made to be fine-tuned on a video's first frame. Options of the command line
    override the recipe. A run can be stopped at any time and resumed.
    """
    launch()
    from mpn.training.osvos.recipe import OsvosRecipe, run_osvos_recipe

    changes = {
        "stages": stage,
        "start_from": start_from,
        "data.davis_root": davis_root,
        "data.stills": stills or None,
        "data.split": split,
        "training.network.width": width,
        "training.crop.size_px": crop_size,
        "training.salient_steps": salient_steps,
        "training.davis_steps": davis_steps,
        "training.batch": batch,
        "training.salient_rate": salient_rate,
        "training.davis_rate": davis_rate,
        "training.seed": seed,
        "training.threads": threads,
        "training.workers": workers,
        "training.device": device,
        "training.precision": precision,
        "training.tensorboard": tensorboard,
    }
    built = build_recipe(OsvosRecipe, "osvos", recipe, config, settings, changes)
    checkpoint = run_with_progress(run_osvos_recipe, built, out, resume=resume)
    short_side = round(1.25 * built.training.crop.size_px / 16) * 16
    print_next(
        checkpoint,
        f"mpn export PROPAGATION.pth {checkpoint} -o engines "
        f"--frame-size {round(short_side * 16 / 9 / 16) * 16}x{short_side}",
    )


train_app.command("flow", epilog=EPILOG)(with_home(flow))
