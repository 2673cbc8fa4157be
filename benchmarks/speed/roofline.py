"""Compute an upper bound of FPS on GPUs from the exported graphs.

    python -m benchmarks.speed.roofline ENGINE_DIR [--objects 1,3] [--gpus H200,L4] [-o FILE.json]

For each convolution and matrix product it counts multiplications and additions, and the bytes that
the layer must read and write in half precision: input, weights, output. A layer takes at least the
longer of both at the peaks of the GPU. Everything else (activations, sums, resizes) is free, as if
fused. The result is a bound, not a forecast: nothing here runs on a GPU. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx
from onnx import shape_inference

from mpn.engines.directory.manifest import load_manifest
from mpn.engines.spec import OBJECTS_AXIS

BYTES = 2
"""Bytes of a half-precision value."""


@dataclass(frozen=True)
class Gpu:
    """Describe the peaks of a GPU, from the data sheet of the vendor.

    Attributes:
        name: Name of the product.
        arch: Compute capability, as NVRTC takes it.
        tflops: Dense FP16 tensor operations with FP32 sums, 10^12 per second.
        gb_s: Memory bandwidth, 10^9 bytes per second.
    """

    name: str
    arch: str
    tflops: float
    gb_s: float


GPUS = (
    Gpu("T4", "sm_75", 65, 320),
    Gpu("A10", "sm_86", 125, 600),
    Gpu("A100 80 GB", "sm_80", 312, 2039),
    Gpu("RTX 3090", "sm_86", 71, 936),
    Gpu("L4", "sm_89", 121, 300),
    Gpu("L40S", "sm_89", 362, 864),
    Gpu("RTX 4090", "sm_89", 165, 1008),
    Gpu("H100 SXM", "sm_90", 989, 3350),
    Gpu("H200", "sm_90", 989, 4800),
    Gpu("B200", "sm_100", 2250, 8000),
    Gpu("RTX 5090", "sm_120", 210, 1792),
)


@dataclass(frozen=True)
class Layer:
    """Describe one convolution or matrix product.

    Attributes:
        name: Name of the node.
        flop: Multiplications and additions.
        nbytes: Minimum bytes read and written.
    """

    name: str
    flop: float
    nbytes: float


def layers(path: Path, *, objects: int) -> list[Layer]:
    """Return the convolutions and matrix products of a graph for a number of objects."""
    model = onnx.load(str(path), load_external_data=False)
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == OBJECTS_AXIS:
                dim.dim_value = objects
    del model.graph.value_info[:]
    model = shape_inference.infer_shapes(model, data_prop=True)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        shapes[value.name] = tuple(dim.dim_value or objects for dim in dims)
    found = []
    for node in model.graph.node:
        if node.op_type not in ("Conv", "ConvTranspose", "MatMul", "Gemm"):
            continue
        first, weights, out = (shapes[name] for name in (*node.input[:2], node.output[0]))
        if node.op_type == "Conv":
            flop = 2 * math.prod(out) * math.prod(weights[1:])
        elif node.op_type == "ConvTranspose":
            flop = 2 * math.prod(first) * math.prod(weights[1:])
        else:
            flop = 2 * math.prod(out) * first[-1]
        nbytes = BYTES * sum(math.prod(shape) for shape in (first, weights, out))
        found.append(Layer(node.name or node.op_type, float(flop), float(nbytes)))
    return found


def least_seconds(counted: Sequence[Layer], gpu: Gpu) -> float:
    """Return the sum of the minimum seconds of the layers."""
    return sum(
        max(layer.flop / (gpu.tflops * 1e12), layer.nbytes / (gpu.gb_s * 1e9)) for layer in counted
    )


def main() -> int:
    """Parse the arguments, count, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--objects", default="1,3,5")
    parser.add_argument("--gpus", default="", metavar="NAME,NAME")
    parser.add_argument("-o", "--out", type=Path)
    given = parser.parse_args()
    manifest = load_manifest(given.directory)
    wanted = [name.strip() for name in given.gpus.split(",") if name.strip()]
    gpus = [gpu for gpu in GPUS if not wanted or gpu.name in wanted]
    document: dict[str, object] = {"engines": manifest.name, "measured": None, "runs": []}
    runs: list[dict[str, object]] = []
    counts = [int(text) for text in given.objects.split(",")]
    print("| network | objects | GFLOP | MB moved at least |\n|---|---|---|---|")
    by_objects: dict[int, list[Layer]] = {}
    for k in counts:
        for role, entry in manifest.roles.items():
            counted = layers(given.directory / entry.onnx, objects=k)
            by_objects.setdefault(k, []).extend(counted)
            if k == counts[0] or role == "propagation":
                flop = sum(layer.flop for layer in counted)
                nbytes = sum(layer.nbytes for layer in counted)
                print(f"| {role} | {k} | {flop / 1e9:.1f} | {nbytes / 1e6:.0f} |")
                runs.append({"role": role, "objects": k, "flop": flop, "bytes": nbytes})
    heads = " | ".join(f"K = {k}" for k in counts)
    print(f"\n| GPU | TFLOP/s | GB/s | {heads} | measured |")
    print("|---|---|---|" + "---|" * (len(counts) + 1))
    for gpu in gpus:
        bounds = [1 / least_seconds(by_objects[k], gpu) for k in counts]
        shown = " | ".join(f"{bound:.0f} fps" for bound in bounds)
        print(f"| {gpu.name} | {gpu.tflops:g} | {gpu.gb_s:g} | {shown} | not measured |")
        runs.append({**asdict(gpu), "bounds_fps": dict(zip(map(str, counts), bounds, strict=True))})
    document["runs"] = runs
    if given.out is not None:
        given.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
