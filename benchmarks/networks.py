"""Count the parameters and multiply-adds of every propagation network.

    python -m benchmarks.networks [--size 256] [--trained RESULT.json ...] [-o FILE.json]

Networks are all backbones with all heads at published widths and output stride 16, and those of the
shipped recipes. J is of networks that were trained and measured: ``--trained`` takes a result of
benchmarks.accuracy.davis, whose engine is found by its name and number of parameters; J is that of
warp and propagation alone. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.report.schema import cpu_backend, load_result, result_header, write_result
from benchmarks.report.tables import networks_table
from mpn.export.description import variant_name
from mpn.networks.backbones import BACKBONES
from mpn.networks.checkpoint import RoleWeights
from mpn.networks.propagation import (
    HEADS,
    PropagationConfig,
    PropagationNet,
    propagation_variant,
)
from mpn.runtime.bench.result import load_average
from mpn.training.propagation.options import PropagationTrainingOptions
from mpn.training.recipe_file import load_table, recipe_from_table, shipped_recipes


def configs() -> dict[PropagationConfig, str]:
    """Return the networks of the table with the name of their recipe, or ``""``."""
    found = {
        PropagationConfig(backbone=backbone, head=head): ""
        for backbone in BACKBONES
        for head in HEADS
    }
    for name in shipped_recipes("propagation"):
        table = load_table("propagation", name=name)["training"]
        config = recipe_from_table(PropagationTrainingOptions, table).network
        found[config] = ", ".join(filter(None, (found.get(config, ""), name)))
    return found


def multiply_adds(module: nn.Module, channels: int, size: int) -> int:
    """Count the multiply-adds of convolutions and matrix products for one crop."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        module(torch.empty(1, channels, size, size, device="meta"))
    return int(counter.get_total_flops()) // 2


def measure(config: PropagationConfig, recipe: str, size: int) -> dict[str, Any]:
    """Return the counts of one network."""
    with torch.device("meta"):
        network = PropagationNet(config).eval()

    def counts(module: nn.Module) -> tuple[int, int]:
        parameters = sum(value.numel() for value in module.parameters())
        return parameters, multiply_adds(module, config.in_channels, size)

    (parameters, macs), (of_backbone, macs_of_backbone) = counts(network), counts(network.backbone)
    weights = RoleWeights("propagation", propagation_variant(asdict(config)), asdict(config), {})
    return {
        "variant": variant_name(weights),
        "recipe": recipe,
        "config": asdict(config),
        "parameters": parameters,
        "backbone_parameters": of_backbone,
        "macs": macs,
        "backbone_macs": macs_of_backbone,
        "trained": None,
    }


def add_scores(rows: Sequence[dict[str, Any]], paths: Sequence[Path]) -> None:
    """Add J of the results to the networks that they measured."""
    for path in paths:
        result = load_result(path)
        facts = result["engine"]["roles"]["propagation"]
        for row in rows:
            if (row["variant"], row["parameters"]) == (facts["variant"], facts["parameters"]):
                row["trained"] = {
                    "j": result["ablations"]["propagation"]["J-Mean"],
                    "set": result["data"]["set"],
                    "result": path.stem,
                }


def main() -> int:
    """Count, print and write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.networks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--size", type=int, default=256, help="side of the crop [default: 256]")
    parser.add_argument("--trained", type=Path, nargs="*", default=[], metavar="RESULT.json")
    parser.add_argument("-o", "--out", type=Path, metavar="FILE.json")
    given = parser.parse_args()
    rows = [measure(config, recipe, given.size) for config, recipe in configs().items()]
    add_scores(rows, given.trained)
    body = result_header(
        backend=cpu_backend(1),
        engine=None,
        frame_size_hw=(given.size, given.size),
        objects=[1],
        frames=None,
        warmup=None,
        load_average_before=load_average(),
        not_measured=["J of networks that were not trained"],
    ) | {"results": rows}
    print(networks_table(body, False))
    if given.out is not None:
        write_result(given.out, "networks", body)
    return 0


if __name__ == "__main__":
    sys.exit(main())
