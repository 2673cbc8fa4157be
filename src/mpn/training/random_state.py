"""Torch's sources of randomness, which dropout draws from, saved with a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mpn.training.processes import Processes


def random_state(device: torch.device) -> dict[str, Any]:
    """State of the generators that a network on ``device`` draws from."""
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(saved: Sequence[Mapping[str, Any]], processes: Processes) -> None:
    """Put this process's generators back; a process that was not there keeps its seed.

    Args:
        saved: :func:`random_state` of every process of the run that is resumed, by rank.
        processes: This process among those of now.
    """
    if processes.rank >= len(saved):
        return
    mine = saved[processes.rank]
    if mine.get("cpu") is not None:
        torch.set_rng_state(mine["cpu"])
    if mine.get("cuda") is not None and processes.device.type == "cuda":
        torch.cuda.set_rng_state(mine["cuda"], processes.device)
