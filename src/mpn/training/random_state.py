"""State of torch's random generators, which dropout uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mpn.training.processes import Processes


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the generator states of a network on ``device``."""
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(saved: Sequence[Mapping[str, Any]], processes: Processes) -> None:
    """Restore this process's generators.

    A process that was not in the saved run keeps its seed.

    Args:
        saved: :func:`random_state` of every process of the resumed run, by rank.
        processes: This process in the present run.
    """
    if processes.rank >= len(saved):
        return
    mine = saved[processes.rank]
    if mine.get("cpu") is not None:
        torch.set_rng_state(mine["cpu"])
    if mine.get("cuda") is not None and processes.device.type == "cuda":
        torch.cuda.set_rng_state(mine["cuda"], processes.device)
