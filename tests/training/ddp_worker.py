"""One process of several, which trains each network a few steps.

Run by test_processes.py, as torchrun would run it, and imported for the process that is alone.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from mpn.networks.flownet2 import FLOW_SCALE, FlowNet2, FlowNet2Config
from mpn.networks.osvos import OsvosConfig, OsvosVgg
from mpn.networks.propagation import PropagationConfig, PropagationNet
from mpn.training.data import load_davis_split, load_stills
from mpn.training.flow.options import FlowTrainingOptions
from mpn.training.flow.pairs import FlowSamples
from mpn.training.flow.recipe import init_flow_weights
from mpn.training.flow.trainer import FlowTrainer
from mpn.training.osvos.options import OsvosTrainingOptions
from mpn.training.osvos.samples import CropOptions, CropSource, MergedFrames, init_weights
from mpn.training.osvos.trainer import OsvosTrainer
from mpn.training.processes import Processes, joined_processes
from mpn.training.propagation.clips import ClipSources
from mpn.training.propagation.options import PropagationTrainingOptions
from mpn.training.propagation.rollout import RolloutOptions
from mpn.training.propagation.trainer import Trainer

STEPS = 2
BATCH = 4


def propagation_trainer(material: ClipSources, processes: Processes, batch: int = BATCH) -> Trainer:
    options = PropagationTrainingOptions(
        network=PropagationConfig(
            width=0.0625, head_width=0.0625, middle_blocks=1, dropout=False, prior_skip=True
        ),
        rollout=RolloutOptions(roi_size=65, max_steps=4),
        batch=batch,
        warmup_steps=1,
        freeze_norm=True,
    )
    torch.manual_seed(0)
    return Trainer(PropagationNet(options.network), material, options, processes)


def osvos_trainer(material: ClipSources, processes: Processes, batch: int = BATCH) -> OsvosTrainer:
    options = OsvosTrainingOptions(
        network=OsvosConfig(width=0.0625), crop=CropOptions(size_px=64), batch=batch, warmup_steps=1
    )
    torch.manual_seed(0)
    network = OsvosVgg(options.network)
    init_weights(network)
    source = CropSource(
        [(MergedFrames(material.sequences), 1.0)], options.crop, batch=batch, seed=0, scale=64.0
    )
    return OsvosTrainer(network, {"salient": source, "davis": source}, options, processes)


def flow_trainer(material: ClipSources, processes: Processes, batch: int = BATCH) -> FlowTrainer:
    options = FlowTrainingOptions(
        network=FlowNet2Config("FlowNet2CS", 0.0625),
        size_hw=(64, 64),
        steps_by_member=(1, 5),  # the second step trains another member
        batch=batch,
        warmup_steps=1,
    )
    torch.manual_seed(0)
    network = FlowNet2(options.network, small_flow_scale=FLOW_SCALE)
    init_flow_weights(network)
    samples = FlowSamples(material.stills, (), options)
    return FlowTrainer(network, samples, options, processes)


TRAINERS = {
    "propagation": propagation_trainer,
    "osvos": osvos_trainer,
    "flow": flow_trainer,
}


def trained(role: str, material: ClipSources, processes: Processes, batch: int = BATCH) -> Any:
    """Train a few steps; return first gradients, weights, loss and state."""
    trainer = TRAINERS[role](material, processes, batch)
    network = trainer.network
    with ThreadPoolExecutor(2) as pool:
        trainer.train_step(pool)
        gradients = {k: p.grad.clone() for k, p in network.named_parameters() if p.grad is not None}
        for _ in range(STEPS - 1):
            trainer.train_step(pool)
        report = trainer.take_report({})
        return {
            "gradients": gradients,
            "weights": network.state_dict(),
            "loss": report.loss,
            "state": trainer.state(),
        }


def material_from(davis: Path, stills: Path) -> ClipSources:
    return ClipSources(tuple(load_davis_split(davis)), tuple(load_stills(stills)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    davis_root, stills_root, out = map(Path, sys.argv[1:])
    with joined_processes("cpu") as joined:
        here = material_from(davis_root, stills_root)
        results = {role: trained(role, here, joined) for role in TRAINERS}
        results["agreed"] = joined.agree(joined.is_first)
    torch.save(results, out / f"{joined.rank}.pth")
