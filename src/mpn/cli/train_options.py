"""Options that every ``mpn train`` command has."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class PrecisionChoice(StrEnum):
    """See :data:`mpn.training.loop.Precision`."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class DeviceChoice(StrEnum):
    """Where a network is trained."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


Out = Annotated[
    Path, typer.Option("-o", "--out", help="Folder of the run: checkpoints, recipe, log.csv.")
]
StartFrom = Annotated[
    Path | None,
    typer.Option("--start-from", "--init", help="Checkpoint whose weights to start from."),
]
Recipe = Annotated[
    str | None, typer.Option("--recipe", help="Recipe of the package to start from (lite, paper).")
]
Config = Annotated[
    Path | None, typer.Option("--config", help="Recipe file of your own, TOML, instead.")
]
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
Batch = Annotated[int | None, typer.Option(min=1, help="Samples a step, of all processes.")]
Seed = Annotated[int | None, typer.Option(help="Decides everything random.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of the network, a process.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Threads that prepare data, a process.")]
Device = Annotated[DeviceChoice | None, typer.Option(help="Where to train.")]
Precision = Annotated[
    PrecisionChoice | None, typer.Option(help="Of the convolutions; weights stay float32.")
]
TensorBoard = Annotated[
    bool | None, typer.Option("--tensorboard/--no-tensorboard", help="Log for TensorBoard too.")
]
Resume = Annotated[bool, typer.Option(help="Go on where the run in OUT stopped.")]
