"""Export the paper-size networks to ONNX and measure time, size and parity.

    python -m benchmarks.speed.export [--networks flow,propagation,osvos] [--frame-size 854x480]
        [--roi-size 513] [--threads 2] [-o FILE.json]

Weights are random but reproducible: the seed of each tensor is its name, the scale is that of He et
al., so activations neither vanish nor explode. Each graph is compared with its float32 module on
rendered pictures, as ``mpn export`` does it. The command prints a Markdown table and exits with 1
if a graph differs.
"""

from __future__ import annotations

import argparse
import gc
import math
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.report.schema import cpu_backend, result_header, write_result
from mpn._common.files import sha256_of_file
from mpn.engines.directory.manifest import Preprocessing
from mpn.engines.spec import EngineSpec, Precision, Role
from mpn.errors import ExportError
from mpn.export.description import spec_of, variant_name
from mpn.export.graph import export_graph
from mpn.export.options import ExportOptions, frame_size_hw_from_text, roles_from_text
from mpn.export.parity import verify_graph
from mpn.export.parity_inputs import ParityPictures
from mpn.export.progress import Progress, Step
from mpn.networks.checkpoint import RoleWeights
from mpn.networks.flownet2 import FlowNet2
from mpn.networks.osvos import OsvosVgg
from mpn.networks.propagation import PropagationNet
from mpn.runtime.bench.result import load_average

NETWORKS: dict[Role, tuple[Callable[[], nn.Module], float]] = {
    "flow": (FlowNet2, 2.0),
    "propagation": (PropagationNet, 1.4),
    "osvos": (OsvosVgg, 1.0),
}
"""Network class and gain of its weights by role."""
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")


class Seconds(Progress):
    """Store the seconds of each step."""

    def __init__(self) -> None:
        self.steps: dict[Step, float] = {}

    def finished(self, role: Role, step: Step, elapsed_s: float) -> None:
        """Store one step."""
        self.steps[step] = round(elapsed_s, 2)


@torch.no_grad()
def fixed_weights(network: nn.Module, gain: float, seed: int = 0) -> nn.Module:
    """Return the network with weights seeded by tensor names, in evaluation mode.

    Args:
        network: The network.
        gain: Gain of convolution weights.
        seed: Number of the set of weights.
    """
    prefix = f"{seed}/" if seed else ""
    for name, value in network.state_dict().items():
        if name.startswith("upscale") or not value.is_floating_point():
            continue
        noise = np.random.default_rng(zlib.crc32((prefix + name).encode())).standard_normal(
            value.shape
        )
        if value.ndim >= 2:
            noise *= math.sqrt(gain / math.prod(value.shape[1:]))
        elif name.endswith("running_var"):
            noise = 1 + 0.1 * np.abs(noise)
        elif name.endswith("weight"):
            noise = 1 + 0.1 * noise
        else:
            noise *= 0.1 if name.endswith("running_mean") else 0.05
        value.copy_(torch.from_numpy(noise))
    return network.eval()


def measure(
    role: Role, network: nn.Module, spec: EngineSpec, precision: Precision, threads: int
) -> dict[str, Any]:
    """Export one network to a temporary folder, compare it, and return the figures."""
    seconds = Seconds()
    with tempfile.TemporaryDirectory(prefix="mpn-export-") as folder:
        path = Path(folder) / f"{role}.onnx"
        graph = export_graph(network, spec, path, precision=precision, progress=seconds)
        result: dict[str, Any] = {
            "role": role,
            "variant": variant_name(RoleWeights.from_network(role, network)),
            "precision": precision,
            "parameters": sum(value.numel() for value in network.parameters()),
            "inputs": [list(tensor.shape) for tensor in spec.inputs],
            "sha256": sha256_of_file(path),
            "nodes": graph.nodes,
            "size_bytes": graph.size_bytes,
            "half_weights": graph.precision_report.half_weights,
            "total_weights": graph.precision_report.total_weights,
            "weights_lost_to_zero": graph.underflows,
            "export_s": round(graph.elapsed_s, 2),
        }
        try:
            parity = verify_graph(
                path,
                spec,
                network,
                precision=precision,
                pictures=ParityPictures(),
                preprocessing=Preprocessing(),
                progress=seconds,
                threads=threads,
            )
        except ExportError as error:
            return result | {"steps_s": seconds.steps, "verdict": "differs", "error": str(error)}
    return result | {"steps_s": seconds.steps, "verdict": "ok", "parity": parity.as_json()}


def markdown(results: list[dict[str, Any]]) -> str:
    """Return a Markdown table."""
    lines = [
        "| role | network | params | precision | nodes | MiB | half weights | export | "
        "worst differences | verdict |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in results:
        lines.append(
            f"| {row['role']} | {row['variant']} | {row['parameters'] / 1e6:.1f} M "
            f"| {row['precision']} | {row['nodes']} | {row['size_bytes'] / (1 << 20):.0f} "
            f"| {row['half_weights']}/{row['total_weights']} | {row['export_s']:.0f} s "
            f"| {differences_text(row)} | {row['verdict']} |"
        )
    return "\n".join(lines)


def differences_text(row: dict[str, Any]) -> str:
    """Return the worst value of each measure, for example ``max_relative 1.1e-06``."""
    worst: dict[str, float] = {}
    for case in row.get("parity", {}).get("cases", []):
        for measure_ in case["measures"]:
            name, value = measure_["measure"], measure_["value"]
            pick = min if name == "mask_iou" else max
            worst[name] = pick(worst.get(name, value), value)
    return ", ".join(
        f"{name} {value:.4f}" if name == "mask_iou" else f"{name} {value:.1e}"
        for name, value in worst.items()
    ) or row.get("error", "")


def main() -> int:
    """Parse the arguments, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--networks", type=roles_from_text, default=tuple(NETWORKS))
    parser.add_argument("--frame-size", type=frame_size_hw_from_text, default=(480, 854))
    parser.add_argument("--roi-size", type=int, default=513)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    load_before = load_average()
    options = ExportOptions(frame_size_hw=arguments.frame_size, roi_size=arguments.roi_size)
    results = []
    for role in arguments.networks:
        build, gain = NETWORKS[role]
        network = fixed_weights(build(), gain)
        for precision in PRECISIONS:
            print(f"{role} {precision} ...", file=sys.stderr, flush=True)
            results.append(
                measure(role, network, spec_of(role, options), precision, arguments.threads)
            )
            gc.collect()
    print(markdown(results))
    if arguments.out is not None:
        body = result_header(
            backend=cpu_backend(arguments.threads),
            engine=None,
            frame_size_hw=arguments.frame_size,
            objects=None,
            frames=None,
            warmup=None,
            load_average_before=load_before,
            not_measured=[
                "GPU (CUDA, TensorRT): the graphs ran in onnxruntime on the CPU",
            ],
        )
        body |= {
            "weights": "random, seeded by tensor names",
            "pictures": ParityPictures().description,
            "results": results,
        }
        write_result(arguments.out, "export_table", body)
    return 0 if all(row["verdict"] == "ok" for row in results) else 1


if __name__ == "__main__":
    sys.exit(main())
