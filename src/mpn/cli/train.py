"""The ``mpn train`` commands."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

train_app = typer.Typer(
    help="Train a network (needs the extra 'export').",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@train_app.callback()
def _train() -> None:
    pass


@train_app.command("propagation")
def propagation(
    davis_root: Annotated[
        Path, typer.Option(help="DAVIS folder: JPEGImages, Annotations, ImageSets.")
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Folder of the run: checkpoints and log.csv.")
    ] = Path("runs/propagation"),
    stills: Annotated[
        Path | None,
        typer.Option(help="Folder with images/ and masks/: still pictures to set in motion."),
    ] = None,
    split: Annotated[str, typer.Option(help="List of sequences to train on.")] = "train",
    width: Annotated[float, typer.Option(help="Channel multiplier of the backbone.")] = 0.25,
    head_width: Annotated[float, typer.Option(help="Channel multiplier of the head.")] = 0.25,
    middle_blocks: Annotated[int, typer.Option(help="Middle-flow blocks, 1..16.")] = 6,
    prior_skip: Annotated[
        bool, typer.Option(help="Learn corrections of the warped probability, not the whole mask.")
    ] = True,
    roi_size: Annotated[int, typer.Option(help="Side of the crop, 16 n + 1.")] = 225,
    start_from: Annotated[
        Path | None, typer.Option(help="Checkpoint whose propagation weights to start from.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimisation steps.")] = 16000,
    decay_steps: Annotated[int, typer.Option(min=0, help="Final decay of the rate.")] = 5000,
    batch: Annotated[int, typer.Option(min=2, help="Crops a step.")] = 8,
    learning_rate: Annotated[float, typer.Option(help="Peak rate, AdamW.")] = 1.5e-3,
    seed: Annotated[int, typer.Option(help="Decides everything random.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the network.")] = (
        os.cpu_count() or 1
    ),
    bfloat16: Annotated[bool, typer.Option(help="Convolutions in bfloat16.")] = False,
    resume: Annotated[bool, typer.Option(help="Go on where the run in OUT stopped.")] = False,
) -> None:
    """Train the propagation network on rollouts of itself, and write OUT/propagation.pth.

    A run can be stopped at any time and resumed; with more --steps it is prolonged.
    """
    from mpn.errors import import_or_explain

    import_or_explain("torch", extra="export", purpose="mpn train")
    from mpn.training import launch
    from mpn.training.progress import TrainingProgress
    from mpn.training.recipe import PropagationRecipe, run_propagation_recipe

    launch.keep_freed_memory()
    recipe = PropagationRecipe(
        davis_root=davis_root,
        split=split,
        stills_root=stills,
        width=width,
        head_width=head_width,
        middle_blocks=middle_blocks,
        prior_skip=prior_skip,
        start_from=start_from,
        roi_size=roi_size,
        steps=steps,
        decay_steps=decay_steps,
        batch=batch,
        learning_rate=learning_rate,
        seed=seed,
        threads=threads,
        bfloat16=bfloat16,
    )
    with TrainingProgress() as progress:
        checkpoint = run_propagation_recipe(recipe, out, resume=resume, report=progress.report)
    typer.echo(f"averaged weights: {checkpoint}")
    rollout = recipe.options().rollout
    typer.echo(
        f"next: mpn export {checkpoint} -o engines --roi-size {roi_size} "
        f"--runtime-default flow_check_px={rollout.flow_check_px} "
        f"--runtime-default colour_weight={rollout.colour_weight}"
    )


class OsvosStages(StrEnum):
    """Offline stages of OSVOS that a run trains."""

    both = "both"
    salient = "salient"
    davis = "davis"


@train_app.command("osvos")
def osvos(
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Folder of the run: checkpoints and log.csv.")
    ] = Path("runs/osvos"),
    davis_root: Annotated[
        Path | None,
        typer.Option(help="DAVIS folder: JPEGImages, Annotations, ImageSets. For stage 2."),
    ] = None,
    stills: Annotated[
        Path | None,
        typer.Option(help="Folder with images/ and masks/: salient objects. For stage 1."),
    ] = None,
    split: Annotated[str, typer.Option(help="List of sequences to train on.")] = "train",
    stage: Annotated[
        OsvosStages,
        typer.Option(
            help="salient: stage 1, still images. davis: stage 2, sequences, objects merged."
        ),
    ] = OsvosStages.both,
    width: Annotated[float, typer.Option(help="Channel multiplier; 1 is VGG16.")] = 0.25,
    start_from: Annotated[
        Path | None, typer.Option(help="Checkpoint whose OSVOS weights to start from.")
    ] = None,
    crop_size: Annotated[int, typer.Option(help="Side of the crops, 16 n.")] = 192,
    salient_steps: Annotated[int, typer.Option(min=1, help="Optimisation steps, stage 1.")] = 5500,
    davis_steps: Annotated[int, typer.Option(min=1, help="Optimisation steps, stage 2.")] = 6500,
    batch: Annotated[int, typer.Option(min=2, help="Crops a step.")] = 8,
    salient_rate: Annotated[float, typer.Option(help="Peak rate of stage 1, AdamW.")] = 2e-3,
    davis_rate: Annotated[float, typer.Option(help="Peak rate of stage 2, AdamW.")] = 1.2e-3,
    seed: Annotated[int, typer.Option(help="Decides everything random.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the network.")] = (
        os.cpu_count() or 1
    ),
    bfloat16: Annotated[bool, typer.Option(help="Convolutions in bfloat16.")] = False,
    resume: Annotated[bool, typer.Option(help="Go on where the run in OUT stopped.")] = False,
) -> None:
    """Train OSVOS offline, to be fine-tuned on a video's first frame, and write OUT/osvos.pth.

    A run can be stopped at any time and resumed.
    """
    from mpn.errors import import_or_explain

    import_or_explain("torch", extra="export", purpose="mpn train")
    from mpn.training import launch
    from mpn.training.osvos_recipe import OsvosRecipe, run_osvos_recipe
    from mpn.training.progress import TrainingProgress

    launch.keep_freed_memory()
    recipe = OsvosRecipe(
        stages=stage.value,
        davis_root=davis_root,
        split=split,
        stills_root=stills,
        width=width,
        start_from=start_from,
        crop_size=crop_size,
        salient_steps=salient_steps,
        davis_steps=davis_steps,
        batch=batch,
        salient_rate=salient_rate,
        davis_rate=davis_rate,
        seed=seed,
        threads=threads,
        bfloat16=bfloat16,
    )
    with TrainingProgress() as progress:
        checkpoint = run_osvos_recipe(recipe, out, resume=resume, report=progress.report)
    typer.echo(f"averaged weights: {checkpoint}")
    short_side = round(1.25 * crop_size / 16) * 16
    typer.echo(
        f"next: mpn export PROPAGATION.pth {checkpoint} -o engines "
        f"--frame-size {round(short_side * 16 / 9 / 16) * 16}x{short_side}"
    )
