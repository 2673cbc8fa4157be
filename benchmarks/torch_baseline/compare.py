"""Compare our pipeline with the same pipeline in eager PyTorch.

    python -m benchmarks.torch_baseline.compare [--networks paper|own|tiny] [--objects 1,3]
        [--frames 6] [--threads 2] [--no-crf] [--channels-last] [--no-contiguous] [--openvino]
        [--int8] [--engine-dir DIR] [-o FILE.json]

*paper*: FlowNet 2.0, DeepLab v3+ Xception at 513x513 and five-branch OSVOS with fixed random
weights. Their masks are meaningless, so on both sides each frame starts from the true masks of the
previous one and is warped by OpenCV's flow: crops are those of real objects, the networks run on
real pixels, and their outputs are compared. *own*: the engines of --engine-dir, whose propagation
network has four channels; each side propagates its own masks. *tiny*: a test of the command, in
seconds.

--openvino and --int8 add sides of ours: the same graphs on another backend, and quantised ones
(see ``quantized.py``), which are kept in DIR-int8.

All sides run in one process, interleaved frame by frame, with the same weights, frames, options
and number of threads. The exit code is 1 if the masks of two
float32 sides differ.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.report.schema import cpu_backend, result_header, write_result
from benchmarks.torch_baseline.networks import (
    PAPER,
    TINY,
    centre_outputs,
    gflop,
    propagation_from_graph,
    seeded_networks,
    use_public_forms,
)
from benchmarks.torch_baseline.pipeline import EagerPipeline
from benchmarks.torch_baseline.quantized import quantize_graphs, with_graphs
from benchmarks.torch_baseline.sides import (
    NETWORK_STAGES,
    PAUSE_S,
    Agreement,
    EagerSide,
    OurSide,
    ReplacedFlow,
    Side,
    Times,
    compare_warps,
    gemm_gflops,
    ratios,
)
from mpn import Pipeline, PipelineOptions
from mpn._common.concurrency import OpenCvThreads
from mpn.engines.directory.entries import DIS_SOURCE, FlowSource
from mpn.engines.directory.files import resolve_inside
from mpn.engines.directory.manifest import MANIFEST_NAME
from mpn.engines.open import EngineSet, open_engines
from mpn.engines.spec import Role
from mpn.errors import InputError, MpnError
from mpn.export.bundle import export_bundle
from mpn.export.options import ExportOptions, frame_size_hw_from_text
from mpn.networks.checkpoint import save_checkpoint
from mpn.runtime.bench.result import engine_facts, load_average
from mpn.runtime.host.flow import DisFlow, flow_estimator_from, flow_px
from mpn.runtime.options import CrfOptions, OsvosOptions
from mpn.synthetic import render_clip
from mpn.synthetic.clip import MAX_OBJECTS, SyntheticFrame

MASK_IOU_MIN = {False: 0.995, True: 0.97}
"""Minimum IoU of each object in each frame, without and with CRF.

Without CRF the sides differ by float32 rounding, which can flip pixels at the threshold. A CRF of
the whole frame and one of the objects' surroundings differ in IoU by 0.006 on the built-in clip at
854x480, and by 0.015 on random masks."""

OURS = "ours"
"""First word of the names of our sides, and the side that the others are compared with."""
_INT8 = "int8"
_EAGER_CHANNELS = 4
SHIPPED_OPTIONS: dict[str, Any] = {"flow_check_px": 0.0, "colour_weight": 0.0, "flip_tta": False}
"""Options of both sides: stages that the paper does not have are off."""


@dataclass(frozen=True)
class Job:
    """Hold the settings of a comparison.

    Attributes:
        networks: ``"paper"``, ``"own"`` or ``"tiny"``.
        objects: Numbers of objects, 1..3.
        frames: Measured frames.
        warmup: Frames before them.
        size_hw: (height, width) of the frames.
        roi_size: Crop side of random networks; given engines have their own.
        threads: Threads of each side.
        crf: Whether the pipelines have a CRF.
        channels_last: Whether to add PyTorch in channels_last.
        contiguous: Whether to run PyTorch in its default format.
        openvino: Whether to add our pipeline on OpenVINO.
        int8: Whether to add our pipeline with int8 graphs.

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
    contiguous: bool = True
    openvino: bool = False
    int8: bool = False

    def __post_init__(self) -> None:
        if not self.objects or not all(1 <= number <= MAX_OBJECTS for number in self.objects):
            raise InputError(
                f"the numbers of objects must be 1..{MAX_OBJECTS}, got {list(self.objects)}"
            )
        if not (self.channels_last or self.contiguous):
            raise InputError("no side in PyTorch: --no-contiguous needs --channels-last")
        if self.int8 and not self.is_seeded:
            raise InputError(
                "--int8 is for random networks: mpn export --precision int8 quantises others"
            )
        for name in ("frames", "warmup", "threads"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def is_seeded(self) -> bool:
        """Whether the weights are random."""
        return self.networks != "own"


def conditions(job: Job) -> list[str]:
    """Return the conditions of the measurement."""
    lines = [
        "both sides run in one process, frame by frame in turn, with "
        f"{job.threads} threads each (onnxruntime, PyTorch, OpenCV)",
        "eager: torch.inference_mode, contiguous tensors as PyTorch makes them, activations in "
        "place, FlowNet 2.0's correlation as 441 slices, one grid_sample per object",
        "stages that the paper does not have (flow check, colours) are off on both sides",
    ]
    if job.is_seeded:
        lines += [
            "random weights: on both sides each frame starts from the true masks of the previous "
            "one and is warped by OpenCV's flow, so crops are those of real objects; the outputs "
            "of the networks are timed and compared, not propagated",
            "their last layer is shifted and scaled: half of the pixels are foreground, none with "
            "certainty, so the masks are random and depend on every weight",
            "OSVOS runs in every frame and is averaged with the propagation",
        ]
    else:
        lines.append("flow by OpenCV's DIS on both sides; each side propagates its own masks")
    if job.int8:
        lines.append(
            "int8: all convolutions of the three networks, flow included, which mpn export keeps "
            "in float32; its gate was not run; random weights: accuracy not measured, so the "
            "ratio is of speed alone"
        )
    if job.crf:
        lines.append(
            "CRF: the same code on both sides; ours on the surroundings of the objects, eager on "
            "the whole frame, as usual"
        )
    return lines


def not_measured(job: Job) -> list[str]:
    """Return one line for each figure that a reader may expect and that is missing."""
    missing = [
        "torch.compile and other compilers",
        "GPU: both sides run on the CPU",
        "decoding and writing: frames are in memory",
    ]
    if job.int8:
        missing.append("accuracy of int8: the weights are random")
    if not job.crf:
        missing.append("CRF")
    if not job.channels_last:
        missing.append("PyTorch in channels_last format: --channels-last")
    return missing


def prepare_engines(
    job: Job, engine_dir: Path | None, folder: Path
) -> tuple[Path, dict[Role, nn.Module]]:
    """Return an engine directory and networks with the same weights.

    Args:
        job: Settings of the comparison.
        engine_dir: Folder of exported random engines, written if missing; None for ``folder``.
        folder: Folder of temporary files.
    """
    if not job.is_seeded:
        if engine_dir is None:
            raise InputError("--networks own needs --engine-dir")
        network = propagation_from_graph(engine_dir / "propagation.onnx")
        if network.config.in_channels != _EAGER_CHANNELS:
            raise InputError(
                f"the propagation network of {engine_dir} has {network.config.in_channels} input "
                "channels: the PyTorch side has no target model, so it must have 4"
            )
        return engine_dir, {"propagation": network}
    networks = seeded_networks(PAPER if job.networks == "paper" else TINY)
    first = next(render_clip(frames=1, size_hw=job.size_hw))
    centre_outputs(networks, first, job.roi_size)
    kept = folder / job.networks if engine_dir is None else engine_dir
    if not (kept / MANIFEST_NAME).is_file():
        print(f"exporting to {kept} ...", file=sys.stderr, flush=True)
        checkpoint = folder / "seeded.pth"
        save_checkpoint(checkpoint, networks, {"licence": "CC0-1.0"})
        options = ExportOptions(
            frame_size_hw=job.size_hw,
            roi_size=job.roi_size,
            roles=tuple(networks),
            verify=False,  # the outputs of both sides are compared anyway
            finetune=False,
        )
        export_bundle([checkpoint], kept, options)
        checkpoint.unlink()
    return kept, networks


def compare(job: Job, engine_dir: Path, networks: dict[Role, nn.Module]) -> dict[str, Any]:
    """Run the comparison and return the body of the result.

    Args:
        job: Settings of the comparison.
        engine_dir: Engines with the weights of ``networks``.
        networks: Networks of the PyTorch side; changed in place, see :func:`use_public_forms`.
    """
    load_before = load_average()
    torch.set_num_threads(job.threads)
    clip = list(render_clip(frames=1 + job.warmup + job.frames, size_hw=job.size_hw))
    with ExitStack() as stack:
        stack.enter_context(OpenCvThreads(job.threads))
        engines = stack.enter_context(open_engines(engine_dir, backend="cpu", threads=job.threads))
        flops = {r: gflop(r, network, engines.engines[r].spec) for r, network in networks.items()}
        use_public_forms(networks)
        gemm = gemm_gflops()
        sides = _sides(job, engines, engine_dir, networks, clip, stack)
        runs = [_run(job, sides, clip, objects, flops) for objects in job.objects]
        operations = [compare_warps(clip, objects) for objects in job.objects]
        facts = engine_facts(engines)
    worst = min(
        found["mask_iou"]["min"]
        for run in runs
        for name, found in run["agreement"].items()
        if not name.endswith(_INT8)
    )
    return {
        **result_header(
            backend=cpu_backend(threads=job.threads),
            engine=facts,
            frame_size_hw=job.size_hw,
            objects=job.objects,
            frames=job.frames,
            warmup=job.warmup,
            load_average_before=load_before,
            not_measured=not_measured(job),
        ),
        "networks": job.networks,
        "conditions": conditions(job),
        "roi_size": facts["roi_size"],
        "torch_threads": torch.get_num_threads(),
        "gflop_per_run": flops,
        "gemm_gflops": gemm,
        "mask_iou_min": worst,
        "do_masks_agree": worst >= MASK_IOU_MIN[job.crf],
        "runs": runs,
        "operations": operations,
    }


def _sides(
    job: Job,
    engines: EngineSet,
    engine_dir: Path,
    networks: dict[Role, nn.Module],
    clip: list[SyntheticFrame],
    stack: ExitStack,
) -> dict[str, Side]:
    """Open all sides; the stack closes what they opened."""
    manifest = engines.manifest
    options = PipelineOptions(
        osvos=OsvosOptions(mode="blend" if "osvos" in networks else "off"),
        crf=CrfOptions() if job.crf else None,
        **SHIPPED_OPTIONS,
    ).with_defaults(manifest.runtime_defaults)
    dis = None
    if manifest.flow.source == DIS_SOURCE:
        estimator = DisFlow(manifest.flow)

        def dis(rgb: np.ndarray, previous: np.ndarray) -> np.ndarray:
            return flow_px(estimator, rgb, previous)

    def eager(channels_last: bool) -> EagerSide:
        own = copy.deepcopy(networks) if channels_last else networks
        return EagerSide(
            EagerPipeline(
                own,
                options,
                manifest.preprocessing,
                roi_size=manifest.roi_size,
                dis=dis,
                channels_last=channels_last,
            )
        )

    def ours(opened: EngineSet) -> OurSide:
        flow = ReplacedFlow(flow_estimator_from(opened))
        return OurSide(Pipeline(replace(opened, owned=False), options=options, flow=flow), flow)

    sides: dict[str, Side] = {OURS: ours(engines)}
    backends = ("cpu", "openvino") if job.openvino else ("cpu",)
    if job.openvino:
        graphs = {
            role: resolve_inside(engine_dir, manifest.roles[role].onnx) for role in engines.engines
        }
        opened = stack.enter_context(with_graphs(engines, graphs, "openvino", job.threads))
        sides["ours_openvino"] = ours(opened)
    if job.int8:
        folder = engine_dir.with_name(f"{engine_dir.name}-int8")
        graphs = quantize_graphs(engines, engine_dir, folder, options, clip)
        for backend in backends:
            opened = stack.enter_context(with_graphs(engines, graphs, backend, job.threads))
            name = "ours_int8" if backend == "cpu" else f"ours_{backend}_int8"
            sides[name] = ours(opened)
    if job.contiguous:
        sides["eager"] = eager(False)
    if job.channels_last:
        sides["eager_channels_last"] = eager(True)
    return sides


def _run(
    job: Job,
    sides: dict[str, Side],
    clip: list[SyntheticFrame],
    objects: int,
    flops: dict[Role, float],
) -> dict[str, Any]:
    """Run all frames with K objects, the sides interleaved in rotating order."""
    truth = [np.where(frame.labels <= objects, frame.labels, 0) for frame in clip]
    ids = range(1, objects + 1)
    dis = DisFlow(FlowSource(DIS_SOURCE, "ultrafast"))
    times = {name: Times() for name in sides}
    mine = [name for name in sides if name.startswith(OURS)]
    others = [name for name in sides if name not in mine]
    agreement = {name: Agreement(ids) for name in sides if name != OURS}
    for side in sides.values():
        side.start(clip[0].rgb, truth[0])
    order = list(sides)
    for t in range(1, len(clip)):
        print(f"K = {objects}: frame {t} of {len(clip) - 1}", file=sys.stderr, flush=True)
        given_px = flow_px(dis, clip[t].rgb, clip[t - 1].rgb) if job.is_seeded else None
        found = {}
        for name in order:
            time.sleep(PAUSE_S)
            found[name] = sides[name].step(clip[t].rgb, given_px)
            if t > job.warmup:
                times[name].add(found[name])
        for name, compared in agreement.items():
            compared.add(found[OURS], found[name])
        if job.is_seeded:
            for side in sides.values():
                side.restart_from(truth[t])
        order.append(order.pop(0))
    figures = {name: times[name].as_json() for name in sides}
    for figure in figures.values():
        figure["gflops"] = _achieved(figure["stages"], flops, objects)
    return {
        "objects": objects,
        "sides": figures,
        "ratios": {name: ratios(times[OURS], times[name]) for name in others},
        "ratios_of_ours": {
            name: {other: ratios(times[name], times[other]) for other in others}
            for name in mine
            if name != OURS
        },
        "agreement": {name: found.as_json() for name, found in agreement.items()},
    }


def _achieved(
    stages: dict[str, dict[str, float]], flops: dict[Role, float], objects: int
) -> dict[str, float]:
    """Return 10^9 operations per second of each network in its fastest frame."""
    runs = {"propagation": objects}
    return {
        role: round(flops[role] * runs.get(role, 1) / stages[role]["min_ms"] * 1e3, 1)
        for role in flops
        if role in stages
    }


def summary(body: dict[str, Any]) -> str:
    """Return the figures as text."""
    lines = []
    for run in body["runs"]:
        for name, found in run["ratios"].items():
            stages = run["sides"]["ours"]["stages"]
            lines.append(
                f"K = {run['objects']}, ours against {name}: frame {found['frame']['of_medians']}x "
                f"(minima {found['frame']['of_minima']}x), worst IoU "
                f"{run['agreement'][name]['mask_iou']['min']}"
            )
            lines += [
                f"  {stage:12} {stages[stage]['median_ms']:10.2f} ms   {value['of_medians']}x "
                f"(minima {value['of_minima']}x)"
                for stage, value in found["stages"].items()
            ]
        for name, compared in run.get("ratios_of_ours", {}).items():
            for other, found in compared.items():
                values = ", ".join(
                    f"{stage} {found['stages'][stage]['of_medians']}x"
                    for stage in NETWORK_STAGES
                    if stage in found["stages"]
                )
                lines.append(
                    f"K = {run['objects']}, {name} against {other}: frame "
                    f"{found['frame']['of_medians']}x (minima {found['frame']['of_minima']}x); "
                    f"{values}"
                )
        share = run["sides"]["ours"]["outside_networks_share"]
        lines.append(f"  outside the networks, without CRF: {share:.2%} of our frame")
    for entry in body["operations"]:
        values = ", ".join(f"{n} {r['of_medians']}x" for n, r in entry["ratios"].items())
        lines.append(f"{entry['operation']} alone, K = {entry['objects']}: {values}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Parse the arguments, compare, write and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", choices=("paper", "own", "tiny"), default="paper")
    parser.add_argument(
        "--objects", default="1,3", help="numbers of objects, at most 3 [%(default)s]"
    )
    parser.add_argument(
        "--frames", type=int, default=6, help="measured frames per number of objects"
    )
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--frame-size", default="854x480")
    parser.add_argument(
        "--roi-size", type=int, default=513, help="crop side of random networks [%(default)s]"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-crf", action="store_true")
    parser.add_argument(
        "--channels-last", action="store_true", help="add a third side: PyTorch in channels_last"
    )
    parser.add_argument(
        "--no-contiguous", action="store_true", help="leave PyTorch in its default format out"
    )
    parser.add_argument("--openvino", action="store_true", help="add our pipeline on OpenVINO")
    parser.add_argument("--int8", action="store_true", help="add our pipeline in int8")
    parser.add_argument(
        "--engine-dir",
        type=Path,
        help="own: engine directory; otherwise: folder to keep the exported engines",
    )
    parser.add_argument("-o", "--out", type=Path, default=Path("compare_torch.json"))
    given = parser.parse_args(arguments)
    try:
        job = Job(
            networks=given.networks,
            objects=tuple(int(number) for number in given.objects.split(",")),
            frames=given.frames,
            warmup=given.warmup,
            size_hw=frame_size_hw_from_text(given.frame_size),
            roi_size=given.roi_size,
            threads=given.threads,
            crf=not given.no_crf,
            channels_last=given.channels_last,
            contiguous=not given.no_contiguous,
            openvino=given.openvino,
            int8=given.int8,
        )
        torch.set_num_threads(job.threads)
        with tempfile.TemporaryDirectory(prefix="mpn-compare-") as folder:
            engine_dir, networks = prepare_engines(job, given.engine_dir, Path(folder))
            body = compare(job, engine_dir, networks)
        write_result(given.out, "compare_torch", body)
    except (MpnError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(summary(body))
    print(f"written: {given.out}")
    if not body["do_masks_agree"]:
        print(
            f"error: the masks of the sides differ, worst IoU {body['mask_iou_min']:.3f}: the "
            "ratios compare different work",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
