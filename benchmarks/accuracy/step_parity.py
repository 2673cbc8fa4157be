"""Measure the check of the fine-tuning step on right and wrong graphs.

    python -m benchmarks.accuracy.step_parity [--first-seed 0] [--seeds 50] [--planted-seeds 3]
        [--width 1.0] [--optimizer adamw|sgd] [--threads 1] [--with RESULT.json ...] [-o FILE.json]

The network is Aligned Xception with the head of DeepLab v3+, traced once; each seed is another set
of random weights. The right graph is checked with each seed, and each graph of
benchmarks.accuracy.planted, which has one error, with the first seeds. A right graph must pass and
a wrong one must not. ``own_pattern_gradient_relative`` is how much a gradient changes if PyTorch
takes its own activation pattern and not the graph's, in one example. The result is written after
each seed; ``--with`` adds the seeds of other results of this command. The command exits with 1 if
the check was wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.accuracy.planted import PLANTED
from benchmarks.report.schema import cpu_backend, load_result, result_header, write_result
from benchmarks.report.tables import step_parity_table
from benchmarks.speed.export import NETWORKS, fixed_weights
from mpn.errors import ExportError
from mpn.export.finetune.graph_step import GraphStep
from mpn.export.finetune.optimizer import OptimizerSettings, optimizer_settings
from mpn.export.finetune.parity import STEP_RATES, step_measures
from mpn.export.finetune.pattern import GivenPattern
from mpn.export.finetune.step import FinetuneGraph, adapt_graph
from mpn.export.finetune.torch_step import STEP_SHAPE, TorchStep, step_example
from mpn.export.finetune.trace import ForwardGraph, trace_forward
from mpn.export.graph import probe_inputs
from mpn.export.parity import Measure
from mpn.export.precision import folded_network
from mpn.networks.propagation import PropagationConfig, PropagationNet
from mpn.runtime.bench.result import benchmark_document, load_average
from mpn.types import Float32Array

ROLE = "propagation"
OWN_PATTERN_SEEDS = 10
"""Number of first seeds with ``own_pattern_gradient_relative``."""
_GAIN = NETWORKS[ROLE][1]


class Check:
    """The check of one network, which is traced once.

    Args:
        config: Shape of the network.
        optimizer: ``"adamw"`` or ``"sgd"``.
        threads: Threads of onnxruntime.
    """

    def __init__(self, config: PropagationConfig, optimizer: str, threads: int) -> None:
        self.network = PropagationNet(config)
        self.settings: OptimizerSettings = optimizer_settings(ROLE, optimizer)
        self._threads = threads
        self.forward: ForwardGraph = trace_forward(ROLE, self.folded(0))
        self.right: FinetuneGraph = adapt_graph(self.forward, self.settings)

    def folded(self, seed: int) -> nn.Module:
        """Return the folded network with the weights of a seed."""
        network = fixed_weights(self.network, _GAIN, seed)
        return folded_network(ROLE, network, probe_inputs(ROLE, network))

    def measures_of_right(
        self, folded: nn.Module, *, with_own_pattern: bool
    ) -> tuple[tuple[Measure, ...], float | None]:
        """Check the right graph; also return how much its pattern changes a gradient.

        The change is that of PyTorch's gradients if it takes its own pattern, in the last example.
        """
        reference, weights = self.reference(folded)
        measures, step = self.measures(self.right, reference, weights)
        if not with_own_pattern:
            return measures, None
        example = step_example(ROLE, seed=len(STEP_RATES) - 1)
        _, given = reference.gradients(example, GivenPattern(step.pattern))
        _, own = reference.gradients(example)
        changes = [
            float(np.abs(own[name] - value).max()) / max(float(np.abs(value).max()), 1e-30)
            for name, value in given.items()
        ]
        return measures, max(changes)

    def reference(self, folded: nn.Module) -> tuple[TorchStep, dict[str, Float32Array]]:
        """Return the step in PyTorch and its weights."""
        parameters = dict(folded.named_parameters())
        weights = {name: parameters[name].detach().numpy() for name in self.forward.weights}
        return TorchStep(ROLE, folded, self.settings, weights), weights

    def measures(
        self, graph: FinetuneGraph, reference: TorchStep, weights: Mapping[str, Float32Array]
    ) -> tuple[tuple[Measure, ...], GraphStep]:
        """Check a graph; also return its step."""
        step = GraphStep(graph, weights, threads=self._threads)
        return step_measures(ROLE, step, reference, self.settings)[0], step


def facts(measures: tuple[Measure, ...]) -> dict[str, Any]:
    """Return the values of a check and its verdict."""
    return {
        "verdict": "passed" if all(measure.is_within for measure in measures) else "refused",
        # No limit is near this number, and JSON has no infinity.
        "values": {m.limit.name: min(m.value, 1e30) for m in measures},
    }


def right_facts(check: Check, seed: int) -> dict[str, Any]:
    """Check the right graph with the weights of a seed."""
    measures, change = check.measures_of_right(
        check.folded(seed), with_own_pattern=seed < OWN_PATTERN_SEEDS
    )
    return {"seed": seed, **facts(measures), "own_pattern_gradient_relative": change}


def wrong_facts(check: Check, seed: int, wrong: Mapping[str, FinetuneGraph]) -> dict[str, Any]:
    """Check each wrong graph with the weights of a seed."""
    reference, weights = check.reference(check.folded(seed))
    found = {}
    for name, graph in wrong.items():
        try:
            found[name] = facts(check.measures(graph, reference, weights)[0])
        except ExportError as error:
            found[name] = {"verdict": "refused", "values": {}, "error": str(error)}
        print(f"seed {seed}, {name}: {_text(found[name])}", file=sys.stderr, flush=True)
    return {"seed": seed, "errors": found}


def _text(found: Mapping[str, Any]) -> str:
    values = ", ".join(f"{name} {value:.2g}" for name, value in found["values"].items())
    return f"{found['verdict']} ({values})"


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy.step_parity",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--first-seed", type=int, default=0, help="[default: 0]")
    parser.add_argument("--seeds", type=int, default=50, help="right graphs [default: 50]")
    parser.add_argument(
        "--planted-seeds", type=int, default=3, help="seeds per planted error [default: 3]"
    )
    parser.add_argument("--width", type=float, default=1.0, help="of the layers [default: 1.0]")
    parser.add_argument("--optimizer", choices=("adamw", "sgd"), default="adamw")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--with", type=Path, nargs="*", default=[], metavar="RESULT.json")
    parser.add_argument("-o", "--out", type=Path, metavar="FILE.json")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    before = load_average()
    config = PropagationConfig(width=given.width, head_width=given.width)
    check = Check(config, given.optimizer, given.threads)
    wrong = {name: each.graph(check.forward, check.settings) for name, each in PLANTED.items()}
    images, *size_hw = STEP_SHAPE
    body: dict[str, Any] = result_header(
        backend=cpu_backend(given.threads),
        engine=None,
        frame_size_hw=(size_hw[0], size_hw[1]),
        objects=None,
        frames=None,
        warmup=None,
        load_average_before=before,
        not_measured=["planted errors with every seed"],
    ) | {
        "parameters": sum(value.numel() for value in check.network.parameters()),
        "optimizer": given.optimizer,
        "scope": "all",
        "images": images,
        "right": [],
        "planted": [],
    }
    for path in getattr(given, "with"):
        other = load_result(path)
        body["right"] += other["right"]
        body["planted"] += other["planted"]
    for number in range(max(given.seeds, given.planted_seeds)):
        seed = given.first_seed + number
        if number < given.seeds:
            body["right"].append(right_facts(check, seed))
            print(f"seed {seed}: {_text(body['right'][-1])}", file=sys.stderr, flush=True)
        if number < given.planted_seeds:
            body["planted"].append(wrong_facts(check, seed, wrong))
        if given.out is not None:
            write_result(given.out, "step_parity", body)
    print(step_parity_table(benchmark_document("step_parity", body), False))
    right = all(row["verdict"] == "passed" for row in body["right"])
    missed = [
        name
        for row in body["planted"]
        for name, each in row["errors"].items()
        if each["verdict"] == "passed"
    ]
    return 0 if right and not missed else 1


if __name__ == "__main__":
    sys.exit(main())
