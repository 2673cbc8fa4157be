"""What ``compare_torch.py`` compares: sizes, weights, and under what conditions."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from eager_networks import PAPER, TINY, centre_answers, deeplab_from_graph, seeded_networks
from mpn.engines.directory.manifest import MANIFEST_NAME
from mpn.engines.load import default_engine_dir
from mpn.engines.spec import Role
from mpn.errors import InputError
from mpn.export.bundle import export_bundle
from mpn.export.options import ExportOptions
from mpn.networks.checkpoint import save_checkpoint
from mpn.synthetic import render_clip
from mpn.synthetic.clip import MAX_OBJECTS


@dataclass(frozen=True)
class Job:
    """What to compare.

    Attributes:
        networks: ``"paper"``, ``"lite"`` or ``"tiny"``.
        objects: Numbers of objects, 1..3.
        frames: That count.
        warmup: Before them.
        size_hw: (height, width) of the frames; the lite engines work at any.
        roi_size: Of seeded networks; the lite engines have theirs.
        threads: Of each side.
        crf: Whether there is a CRF.
        channels_last: Compare with PyTorch in that memory format, too.

    Raises:
        InputError: If a number is out of range.
    """

    networks: str = "paper"
    objects: tuple[int, ...] = (1, 3)
    frames: int = 6
    warmup: int = 1
    size_hw: tuple[int, int] = (480, 854)
    roi_size: int = 513
    threads: int = 2
    crf: bool = True
    channels_last: bool = False

    def __post_init__(self) -> None:
        if not self.objects or not all(1 <= number <= MAX_OBJECTS for number in self.objects):
            raise InputError(
                f"the numbers of objects must be 1..{MAX_OBJECTS}, got {list(self.objects)}"
            )
        for name in ("frames", "warmup", "threads"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def is_seeded(self) -> bool:
        """Whether the weights are random."""
        return self.networks != "lite"


def conditions(job: Job) -> list[str]:
    """What a reader must know to take the figures for what they are."""
    said = [
        "both sides run in one process, frame by frame in turn, with "
        f"{job.threads} threads each (onnxruntime, PyTorch, OpenCV)",
        "eager: torch.inference_mode, contiguous tensors as PyTorch makes them, activations in "
        "place, FlowNet 2.0's correlation as 441 slices, grid_sample for one object after another",
        "stages that the paper does not have (flow check, colours) are off on both sides",
    ]
    if job.is_seeded:
        said += [
            "random weights: every frame starts from the true masks of the one before and is "
            "warped by OpenCV's flow, on both sides, so that crops are those of real objects; the "
            "networks' answers are timed and compared, and not carried on",
            "their last layer is shifted and scaled so that half of what they see is foreground, "
            "and none of it surely: random masks that depend on every weight",
            "OSVOS runs in every frame and is averaged with the propagation",
        ]
    else:
        said.append("flow by OpenCV's DIS on both sides; each side carries its own masks on")
    if job.crf:
        said.append(
            "CRF: the same code on both sides; ours works around the objects, eager on the whole "
            "frame, as it is usually called"
        )
    return said


def not_measured(job: Job) -> list[str]:
    """What a reader may look for and not find."""
    missing = [
        "torch.compile and other compilers: the other side is eager PyTorch",
        "GPU: both sides run on the CPU",
        "decoding and writing: frames are in memory",
    ]
    if not job.crf:
        missing.append("CRF: left out")
    if not job.channels_last:
        missing.append("PyTorch in channels_last format: --channels-last")
    return missing


def prepared(job: Job, engine_dir: Path | None, folder: Path) -> tuple[Path, dict[Role, nn.Module]]:
    """Engines and networks of the same weights.

    Args:
        job: What to compare.
        engine_dir: Where seeded engines are kept, made if absent; None for ``folder``.
        folder: For files that nobody keeps.
    """
    if not job.is_seeded:
        shipped = default_engine_dir() if engine_dir is None else engine_dir
        return shipped, {"propagation": deeplab_from_graph(shipped / "propagation.onnx")}
    networks = seeded_networks(PAPER if job.networks == "paper" else TINY)
    first = next(render_clip(frames=1, size_hw=job.size_hw))
    centre_answers(networks, first, job.roi_size)
    kept = folder / job.networks if engine_dir is None else engine_dir
    if not (kept / MANIFEST_NAME).is_file():
        print(f"exporting to {kept} ...", file=sys.stderr, flush=True)
        checkpoint = folder / "seeded.pth"
        save_checkpoint(checkpoint, networks, {"licence": "CC0-1.0"})
        options = ExportOptions(
            frame_size_hw=job.size_hw,
            roi_size=job.roi_size,
            roles=tuple(networks),
            verify=False,  # both sides' answers are compared below
        )
        export_bundle([checkpoint], kept, options)
        checkpoint.unlink()
    return kept, networks
