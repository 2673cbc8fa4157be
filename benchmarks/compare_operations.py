"""Single operations for ``compare_torch.py``: the warp alone, and what the machine can do."""

from __future__ import annotations

import time
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from compare_figures import ratio
from eager_pipeline import warp_by_grid_sample
from mpn.engines.directory.entries import DIS_SOURCE, FlowSource
from mpn.runtime.benchmark_result import summary_ms
from mpn.runtime.flow import DisFlow, flow_px
from mpn.runtime.ops.cpu import warp_bilinear
from mpn.runtime.preprocess import one_hot
from mpn.runtime.roi import box_from_prob, reachable_boxes
from mpn.synthetic.clip import SyntheticFrame

REPETITIONS = 30
PAUSE_S = 0.02
"""Before each side: idle threads of the other's library spin for a while, and take a core away."""
_GEMM_SIZE = 2048
_GEMM_REPETITIONS = 6


def compare_warps(clip: list[SyntheticFrame], objects: int) -> dict[str, Any]:
    """The warp alone, of all objects, with what each way needs before it.

    Args:
        clip: At least two frames; the flow is OpenCV's.
        objects: How many of the clip's objects, in the order of their ids.

    Returns:
        An entry of ``operations``: ``grid_sample`` one object after the other, and with all objects
        as the channels of one call, against ours.
    """
    prob = one_hot(clip[0].labels, range(1, objects + 1))
    supports = [box_from_prob(plane, 0.0) for plane in prob]
    dis = DisFlow(FlowSource(DIS_SOURCE, "ultrafast"))
    flow = flow_px(dis, clip[1].rgb, clip[0].rgb)
    planes, flow_tensor = torch.from_numpy(prob), torch.from_numpy(flow)
    calls: dict[str, Callable[[], Any]] = {
        "ours": lambda: warp_bilinear(prob, flow, boxes=reachable_boxes(supports, flow)),
        "grid_sample_each": lambda: [warp_by_grid_sample(plane, flow_tensor) for plane in planes],
        "grid_sample_together": lambda: _warp_together(planes, flow_tensor),
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    with torch.inference_mode():
        for _ in range(REPETITIONS):
            for name, call in calls.items():
                time.sleep(PAUSE_S)
                call()
                begun = perf_counter()
                call()
                seconds[name].append(perf_counter() - begun)
        difference = float(
            np.abs(calls["ours"]() - _warp_together(planes, flow_tensor).numpy()).max()
        )
    return {
        "operation": "warp",
        "objects": objects,
        "sides": {name: summary_ms(values) for name, values in seconds.items()},
        "ratios": {name: ratio(seconds["ours"], seconds[name]) for name in calls if name != "ours"},
        "max_difference": difference,
    }


def _warp_together(planes: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    """All objects as the channels of one ``grid_sample``, which is its fastest form."""
    height, width = planes.shape[1:]
    x = torch.arange(width, dtype=torch.float32)
    y = torch.arange(height, dtype=torch.float32)[:, None]
    grid = torch.stack(
        ((x + flow[0]) * 2 / (width - 1) - 1, (y + flow[1]) * 2 / (height - 1) - 1), dim=-1
    )
    return F.grid_sample(
        planes[None], grid[None], mode="bilinear", padding_mode="zeros", align_corners=True
    )[0]


def gemm_gflops() -> float:
    """10^9 operations a second of the best of some large matrix products: what is to be had."""
    a, b = torch.randn(2, _GEMM_SIZE, _GEMM_SIZE).unbind()
    seconds = []
    for _ in range(_GEMM_REPETITIONS):
        begun = perf_counter()
        torch.mm(a, b)
        seconds.append(perf_counter() - begun)
    return round(2 * _GEMM_SIZE**3 / min(seconds) / 1e9, 1)
