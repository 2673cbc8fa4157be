"""Compare the fine-tuning step in onnxruntime with the same step in PyTorch.

    python -m benchmarks.speed.finetune_step [--engine-dir DIR] [--roles propagation,osvos]
        [--threads 2] [--steps 200] [--rounds 30] [-o FILE.json]

The networks are those of an engine directory (the shipped one), loaded into PyTorch with the
weights of its graphs, BatchNorm folded. Step graphs are exported once for each optimiser.

*Agreement*: both sides run ``--steps`` steps from the same start on the same inputs, each with its
own weights. The result has the largest difference of a weight (relative to the largest weight of
its tensor) after one step and after all, that of the probability at the end, and the losses.

*Time*: sizes and batches of fine-tuning, the sides interleaved step by step: onnxruntime, eager
PyTorch, and eager PyTorch in channels_last. The result has elapsed time and processor time, which
is less sensitive to a busy machine.

*Exchange*: time to open the inference engine with fine-tuned weights and with its own.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from benchmarks.report.schema import cpu_backend, result_header, write_result
from benchmarks.torch_baseline.networks import propagation_from_graph
from mpn.engines.directory.entries import FINETUNE_OPTIMIZERS, FinetuneOptimizer
from mpn.engines.directory.manifest import Manifest, load_manifest
from mpn.engines.onnxruntime.engine import OrtEngine
from mpn.engines.onnxruntime.finetune import OrtFinetuneEngine
from mpn.engines.onnxruntime.reweight import open_finetuned_engine
from mpn.engines.open import default_engine_dir, open_engines
from mpn.engines.spec import Role
from mpn.errors import MpnError
from mpn.export.finetune.torch_step import TorchStep, step_example
from mpn.export.finetune.write import FINETUNABLE_ROLES, WrittenFinetune, write_adapt
from mpn.export.options import roles_from_text
from mpn.networks.osvos import OsvosConfig, OsvosVgg
from mpn.runtime.bench.result import engine_facts, load_average, summary_ms
from mpn.types import Float32Array

AGREEMENT_SHAPE = (2, 97, 113)
"""Images, height, width."""
EXAMPLES = 5
"""Number of different inputs."""
SHAPES: Mapping[Role, tuple[tuple[int, int, int], ...]] = {
    "propagation": ((4, 161, 161), (8, 193, 193), (4, 225, 225)),
    "osvos": ((4, 192, 192), (1, 240, 432)),
}
"""Timed shapes; fine-tuning uses the first of each by default."""
RATES: Mapping[tuple[Role, FinetuneOptimizer], float] = {
    ("propagation", "sgd"): 1e-3,
    ("propagation", "adamw"): 1e-4,
    ("osvos", "sgd"): 1e-4,
    ("osvos", "adamw"): 1e-4,
}
"""Learning rates, low enough for random inputs."""
LARGEST_DIFFERENCE = {"sgd": 2e-2, "adamw": 0.5}
"""Largest allowed difference of a weight after all steps. AdamW's first step is the sign of the
gradient, and rounding decides the sign if the gradient is near 0."""
SWAPS = 5


def network_of(role: Role, engine_dir: Path) -> nn.Module:
    """Load the network of a role into PyTorch from an engine directory."""
    path = engine_dir / f"{role}.onnx"
    if role == "propagation":
        return propagation_from_graph(path)
    found = {
        tensor.name: torch.from_numpy(np.array(numpy_helper.to_array(tensor)))
        for tensor in onnx.load(path).graph.initializer
    }
    network = OsvosVgg(
        OsvosConfig(
            branches=sum(name.startswith("side_prep.") for name in found) // 2,
            upsample="deconv_center_crop" if "upscale.0.weight" in found else "resize",
            width=found["stages.4.5.weight"].shape[0] / 512,
        )
    )
    state = network.state_dict()
    state |= {
        name: found[name] for name in state if name in found
    }  # score_dsn is only for training
    network.load_state_dict(state)
    return network.eval()


def agreement(
    role: Role, written: WrittenFinetune, folder: Path, steps: int, threads: int
) -> dict[str, Any]:
    """Run the steps of both sides from the same start; return their differences."""
    optimizer = written.entry.optimizer
    rate = RATES[role, optimizer]
    examples = [step_example(role, AGREEMENT_SHAPE, seed) for seed in range(EXAMPLES)]
    losses: dict[str, list[float]] = {"onnxruntime": [], "torch": []}
    with OrtFinetuneEngine(folder, role, written.entry, threads=threads) as engine:
        start = engine.weights()
        reference = TorchStep(role, written.network, written.settings, start)
        after_one = 0.0
        for number in range(steps):
            example = examples[number % EXAMPLES]
            losses["onnxruntime"].append(engine.step(example.inputs, example.target, rate))
            losses["torch"].append(reference.step(example, rate))
            if number == 0:
                after_one = _largest_difference(engine.weights(), reference.weights())[0]
        weights, expected = engine.weights(), reference.weights()
    inputs = examples[0].inputs
    given = TorchStep(role, written.network, written.settings, weights).prob(inputs)
    difference, worst = _largest_difference(weights, expected)
    moved, _ = _largest_difference(weights, start)
    if difference > LARGEST_DIFFERENCE[optimizer]:
        raise MpnError(f"the {role} step differs from PyTorch's by {difference:.2g} in {worst}")
    return {
        "steps": steps,
        "learning_rate": rate,
        "shape": list(AGREEMENT_SHAPE),
        "weight_relative_after_one_step": after_one,
        "weight_relative": difference,
        "worst_weight": worst,
        "weight_moved_relative": moved,
        "prob_abs": float(np.abs(given - reference.prob(inputs)).max()),
        "losses": {
            side: {"first": values[0], "last": float(np.mean(values[-EXAMPLES:]))}
            for side, values in losses.items()
        },
        "loss_relative": abs(losses["onnxruntime"][-1] / losses["torch"][-1] - 1),
    }


def measure_step(
    role: Role,
    written: WrittenFinetune,
    folder: Path,
    shape: tuple[int, int, int],
    *,
    rounds: int,
    threads: int,
) -> dict[str, Any]:
    """Measure steps of one shape, the sides interleaved."""
    example = step_example(role, shape)
    rate = 1e-6  # so small that the weights stay the same
    with OrtFinetuneEngine(folder, role, written.entry, threads=threads) as engine:
        start = engine.weights()
        plain = TorchStep(role, written.network, written.settings, start)
        last = TorchStep(
            role,
            written.network,
            written.settings,
            start,
            memory_format=torch.channels_last,
        )
        sides: dict[str, Callable[[], float]] = {
            "onnxruntime": lambda: engine.step(example.inputs, example.target, rate),
            "torch": lambda: plain.step(example, rate),
            "torch_channels_last": lambda: last.step(example, rate),
        }
        clock: dict[str, list[float]] = {side: [] for side in sides}
        cpu: dict[str, list[float]] = {side: [] for side in sides}
        order = list(sides)
        for number in range(rounds + 2):
            for side in order:
                began, used = time.perf_counter(), time.process_time()
                sides[side]()
                if number > 1:
                    clock[side].append(time.perf_counter() - began)
                    cpu[side].append(time.process_time() - used)
            order.append(order.pop(0))
    ours = clock["onnxruntime"]
    return {
        "shape": list(shape),
        "sides": {
            side: {"step": summary_ms(clock[side]), "cpu": summary_ms(cpu[side])} for side in sides
        },
        "ratios": {
            side: {
                "ratio_of_medians": round(float(np.median(ours) / np.median(clock[side])), 3),
                "ratio_of_minima": round(min(ours) / min(clock[side]), 3),
                "ratio_of_cpu_medians": round(
                    float(np.median(cpu["onnxruntime"]) / np.median(cpu[side])), 3
                ),
            }
            for side in ("torch", "torch_channels_last")
        },
    }


def measure_exchange(role: Role, folder: Path, manifest: Manifest, threads: int) -> dict[str, Any]:
    """Measure opening the inference engine with other weights and with its own."""
    weights = _scaled_weights(folder, manifest, role)
    path, spec = folder / f"{role}.onnx", manifest.spec(role)
    swaps, plain = [], []
    with OrtEngine(path, spec, threads=threads) as base:
        for _ in range(SWAPS):
            began = time.perf_counter()
            OrtEngine(path, spec, threads=threads).close()
            plain.append(time.perf_counter() - began)
            began = time.perf_counter()
            finetuned = open_finetuned_engine(
                folder, manifest, role, weights, threads=threads, base=base
            )
            swaps.append(time.perf_counter() - began)
            finetuned.close()
    return {"open": summary_ms(plain), "open_finetuned_checked": summary_ms(swaps)}


def _scaled_weights(folder: Path, manifest: Manifest, role: Role) -> dict[str, Float32Array]:
    entry = manifest.roles[role].adapt
    if entry is None:
        raise MpnError(f"{folder} cannot fine-tune {role}: export it without --no-finetune")
    with OrtFinetuneEngine(folder, role, entry) as engine:
        return {name: values * np.float32(1.01) for name, values in engine.weights().items()}


def _largest_difference(
    left: Mapping[str, Float32Array], right: Mapping[str, Float32Array]
) -> tuple[float, str]:
    """Return the largest difference relative to the largest weight, and the tensor."""
    return max(
        (float(np.abs(left[name] - value).max() / max(np.abs(value).max(), 1e-30)), name)
        for name, value in right.items()
    )


def measure(
    engine_dir: Path, roles: Sequence[Role], *, steps: int, rounds: int, threads: int
) -> list[dict[str, Any]]:
    """Measure all roles."""
    results = []
    manifest = load_manifest(engine_dir)
    for role in roles:
        network = network_of(role, engine_dir)
        with tempfile.TemporaryDirectory(prefix="mpn-finetune-") as name:
            folder = Path(name)
            for file in manifest.roles[role].files:
                shutil.copyfile(engine_dir / file.path, folder / file.path)
            result: dict[str, Any] = {"role": role, "agreement": {}, "times": {}}
            for optimizer in FINETUNE_OPTIMIZERS:
                written = write_adapt(role, network, folder, precision="fp32", optimizer=optimizer)
                print(f"{role} {optimizer}: {steps} steps ...", file=sys.stderr, flush=True)
                result["agreement"][optimizer] = agreement(role, written, folder, steps, threads)
                for shape in SHAPES[role][: 1 if optimizer == "sgd" else None]:
                    print(f"{role} {optimizer}: {shape} ...", file=sys.stderr, flush=True)
                    result["times"].setdefault(optimizer, []).append(
                        measure_step(role, written, folder, shape, rounds=rounds, threads=threads)
                    )
            result["parameters"] = manifest.roles[role].parameters
            result["exchange"] = measure_exchange(role, engine_dir, manifest, threads)
            results.append(result)
    return results


def markdown(results: Sequence[Mapping[str, Any]]) -> str:
    """Return two tables: agreement and times."""
    lines = [
        "| role | optimiser | steps | loss (ONNX Runtime) | loss (PyTorch) | largest difference of "
        "a weight | of the probability |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        for optimizer, found in result["agreement"].items():
            falls = [
                f"{found['losses'][side]['first']:.4f} -> {found['losses'][side]['last']:.4f}"
                for side in ("onnxruntime", "torch")
            ]
            lines.append(
                f"| {result['role']} | {optimizer} | {found['steps']} | {falls[0]} | {falls[1]} "
                f"| {found['weight_relative']:.1e} | {found['prob_abs']:.1e} |"
            )
    lines += [
        "",
        "| role | optimiser | batch and size | ONNX Runtime | PyTorch | channels_last | ratio to "
        "the faster |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        for optimizer, rows in result["times"].items():
            for row in rows:
                medians = [row["sides"][side]["step"]["median_ms"] for side in row["sides"]]
                images, height, width = row["shape"]
                lines.append(
                    f"| {result['role']} | {optimizer} | {images} x {width}x{height} "
                    f"| {medians[0]:.0f} ms | {medians[1]:.0f} ms | {medians[2]:.0f} ms "
                    f"| {medians[0] / min(medians[1:]):.2f} |"
                )
    return "\n".join(lines)


def main() -> None:
    """Parse the arguments, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--engine-dir", type=Path)
    parser.add_argument("--roles", type=roles_from_text, default=FINETUNABLE_ROLES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("-o", "--out", type=Path)
    given = parser.parse_args()
    engine_dir = given.engine_dir or default_engine_dir()
    torch.set_num_threads(given.threads)
    busy = load_average()
    results = measure(
        engine_dir, given.roles, steps=given.steps, rounds=given.rounds, threads=given.threads
    )
    print(markdown(results))
    if given.out is not None:
        with open_engines(engine_dir, backend="cpu", threads=given.threads) as engines:
            facts = engine_facts(engines)
            size_hw = engines.manifest.frame_size_hw
        body = result_header(
            backend=cpu_backend(given.threads),
            engine=facts,
            frame_size_hw=size_hw,
            objects=None,
            frames=None,
            warmup=2,
            load_average_before=busy,
            not_measured=["CUDA", "scope head, whose time depends on cached features"],
        )
        write_result(given.out, "finetune_step", {**body, "results": results})


if __name__ == "__main__":
    try:
        main()
    except MpnError as error:
        sys.exit(f"error: {error}")
