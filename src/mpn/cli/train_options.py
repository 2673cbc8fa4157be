"""Common options of the ``mpn train`` commands."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class PrecisionChoice(StrEnum):
    """Precisions; see :data:`mpn.training.options.Precision`."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class DeviceChoice(StrEnum):
    """Devices to train on."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


Out = Annotated[
    Path, typer.Option("-o", "--out", help="Folder of the run: checkpoints, recipe, log.csv.")
]
StartFrom = Annotated[
    Path | None,
    typer.Option("--start-from", "--init", help="Checkpoint of the initial weights."),
]
Recipe = Annotated[str | None, typer.Option("--recipe", help="Shipped recipe: lite or paper.")]
PropagationRecipe = Annotated[
    str | None, typer.Option("--recipe", help="Shipped recipe: lite, paper, target or tune.")
]
Config = Annotated[Path | None, typer.Option("--config", help="Your own recipe file, TOML.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any option of the recipe, KEY=VALUE: training.mix.still=0.2."),
]
DavisRoot = Annotated[
    Path | None, typer.Option(help="DAVIS folder: JPEGImages, Annotations, ImageSets.")
]
Stills = Annotated[
    list[Path] | None,
    typer.Option(help="Folder of images with masks (MSRA10K, ECSSD); may be repeated."),
]
Split = Annotated[str | None, typer.Option(help="List of sequences to train on.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Optimisation steps.")]
Batch = Annotated[int | None, typer.Option(min=1, help="Samples per step, of all processes.")]
Seed = Annotated[int | None, typer.Option(help="Seed of all random choices.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Network threads per process.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Data threads per process.")]
Device = Annotated[DeviceChoice | None, typer.Option(help="Device to train on.")]
Precision = Annotated[
    PrecisionChoice | None, typer.Option(help="Precision of convolutions; weights are float32.")
]
TensorBoard = Annotated[
    bool | None, typer.Option("--tensorboard/--no-tensorboard", help="Also log for TensorBoard.")
]
Resume = Annotated[bool, typer.Option(help="Continue the run in OUT.")]
