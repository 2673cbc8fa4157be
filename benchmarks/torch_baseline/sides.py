"""Run both sides of ``compare.py``, and summarise times and agreement."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.torch_baseline.pipeline import EagerPipeline, warp_by_grid_sample
from mpn import Pipeline
from mpn.engines.directory.entries import DIS_SOURCE, FlowSource
from mpn.evaluation import region_similarity
from mpn.runtime.bench.result import summary_ms
from mpn.runtime.host.flow import DisFlow, FlowEstimator, PreparedFrame, flow_px
from mpn.runtime.host.ops import warp_bilinear
from mpn.runtime.host.preprocess import one_hot
from mpn.runtime.host.roi import box_from_prob, reachable_boxes
from mpn.synthetic.clip import SyntheticFrame
from mpn.types import Float32Array, UInt8Array

NETWORK_STAGES = ("flow", "osvos", "propagation")
CRF_STAGE = "crf"
REPETITIONS = 30
PAUSE_S = 0.02
"""Pause before each side: idle threads of the other library spin for some time on a core."""
_GEMM_SIZE = 2048
_GEMM_REPETITIONS = 6


@dataclass(frozen=True)
class SideFrame:
    """Hold the result of one side for one frame.

    Attributes:
        labels: (H, W) uint8 ids.
        probs: (K, H, W) float32.
        flow_px: (2, H, W) float32, as estimated; None if no flow was estimated.
        stages_s: Seconds by stage.
        seconds: Seconds of the whole call.
    """

    labels: UInt8Array
    probs: Float32Array
    flow_px: Float32Array | None
    stages_s: Mapping[str, float]
    seconds: float


class Side(Protocol):
    """Define one of the compared implementations."""

    def start(self, rgb: UInt8Array, labels: UInt8Array) -> None:
        """Start a video."""

    def step(self, rgb: UInt8Array, flow_to_prev_px: Float32Array | None) -> SideFrame:
        """Segment the next frame; warp by the given flow if there is one."""

    def restart_from(self, labels: UInt8Array) -> None:
        """Replace the masks by the labels."""


class ReplacedFlow:
    """Estimate flow for the measurement, and return another flow if one is given.

    Args:
        inner: Estimator that runs.

    Attributes:
        given_px: (2, H, W) float32 to return; None to return the flow of ``inner``.
        estimated_px: Last flow of ``inner``.
    """

    def __init__(self, inner: FlowEstimator) -> None:
        self._inner = inner
        self.given_px: Float32Array | None = None
        self.estimated_px: Float32Array | None = None

    def prepare(self, rgb: UInt8Array) -> PreparedFrame:
        """See :meth:`mpn.runtime.host.flow.FlowEstimator.prepare`."""
        return self._inner.prepare(rgb)

    def estimate(self, frame0: PreparedFrame, frame1: PreparedFrame) -> Float32Array:
        """See :meth:`mpn.runtime.host.flow.FlowEstimator.estimate`."""
        self.estimated_px = self._inner.estimate(frame0, frame1)
        return self.estimated_px if self.given_px is None else self.given_px

    def both_ways(
        self, frame0: PreparedFrame, frame1: PreparedFrame
    ) -> tuple[Float32Array, Float32Array]:
        """See :meth:`mpn.runtime.host.flow.FlowEstimator.both_ways`."""
        return self.estimate(frame0, frame1), self.estimate(frame1, frame0)


class OurSide:
    """Run the pipeline of this package.

    Args:
        pipeline: An open pipeline that uses ``flow``.
        flow: Records and replaces the flow.
    """

    def __init__(self, pipeline: Pipeline, flow: ReplacedFlow) -> None:
        self._pipeline, self._flow = pipeline, flow

    def start(self, rgb: UInt8Array, labels: UInt8Array) -> None:
        """See :class:`Side`."""
        self._pipeline.start(rgb, labels)

    def step(self, rgb: UInt8Array, flow_to_prev_px: Float32Array | None) -> SideFrame:
        """See :class:`Side`."""
        self._flow.given_px = flow_to_prev_px
        begun = perf_counter()
        result = self._pipeline.step(rgb)
        seconds = perf_counter() - begun
        return SideFrame(
            result.labels, result.probs, self._flow.estimated_px, result.timings, seconds
        )

    def restart_from(self, labels: UInt8Array) -> None:
        """See :class:`Side`."""
        self._pipeline.correct(labels)


class EagerSide:
    """Run the pipeline in PyTorch.

    Args:
        pipeline: The pipeline.
    """

    def __init__(self, pipeline: EagerPipeline) -> None:
        self._pipeline = pipeline

    def start(self, rgb: UInt8Array, labels: UInt8Array) -> None:
        """See :class:`Side`."""
        self._pipeline.start(rgb, labels)

    def step(self, rgb: UInt8Array, flow_to_prev_px: Float32Array | None) -> SideFrame:
        """See :class:`Side`."""
        begun = perf_counter()
        result = self._pipeline.step(rgb, flow_to_prev_px)
        seconds = perf_counter() - begun
        return SideFrame(result.labels, result.probs, result.flow_px, result.timings, seconds)

    def restart_from(self, labels: UInt8Array) -> None:
        """See :class:`Side`."""
        self._pipeline.restart_from(labels)


@dataclass
class Times:
    """Collect the times of one side.

    Attributes:
        frames_s: Seconds per frame.
        stages_s: Seconds per frame by stage.
    """

    frames_s: list[float] = field(default_factory=list)
    stages_s: dict[str, list[float]] = field(default_factory=dict)

    def add(self, frame: SideFrame) -> None:
        """Add one frame."""
        self.frames_s.append(frame.seconds)
        for stage, seconds in frame.stages_s.items():
            self.stages_s.setdefault(stage, []).append(seconds)

    def as_json(self) -> dict[str, Any]:
        """Return summaries, and the share of the stages outside networks and CRF."""
        outside_s = np.zeros(len(self.frames_s))
        counted_s = np.zeros(len(self.frames_s))
        for stage, values in self.stages_s.items():
            counted_s += 0 if stage == CRF_STAGE else np.array(values)
            outside_s += 0 if stage in (*NETWORK_STAGES, CRF_STAGE) else np.array(values)
        return {
            "frame": summary_ms(self.frames_s),
            "stages": {stage: summary_ms(values) for stage, values in self.stages_s.items()},
            "outside_networks_share": round(float(outside_s.sum() / counted_s.sum()), 5),
        }


def ratios(ours: Times, other: Times) -> dict[str, Any]:
    """Return the ratios of times of the frame and of each stage of both sides."""
    shared = [stage for stage in ours.stages_s if stage in other.stages_s]
    return {
        "frame": ratio(ours.frames_s, other.frames_s),
        "stages": {stage: ratio(ours.stages_s[stage], other.stages_s[stage]) for stage in shared},
    }


def ratio(ours_s: Sequence[float], other_s: Sequence[float]) -> dict[str, float]:
    """Return the seconds of the other side divided by ours, of minima and of medians."""
    return {
        "of_minima": round(min(other_s) / min(ours_s), 3),
        "of_medians": round(float(np.median(other_s) / np.median(ours_s)), 3),
    }


class Agreement:
    """Compare the masks, probabilities and flows of two sides over all frames.

    Args:
        object_ids: Object ids to compare.
    """

    def __init__(self, object_ids: Sequence[int]) -> None:
        self._object_ids = object_ids
        self._iou: list[list[float]] = []
        self._prob: list[tuple[float, float]] = []
        self._flow_px: list[tuple[float, float, float]] = []
        self._share: list[float] = []

    @property
    def iou_min(self) -> float:
        """Smallest IoU of all frames and objects."""
        return float(np.min(self._iou))

    def add(self, ours: SideFrame, other: SideFrame) -> None:
        """Compare one frame."""
        pairs = [(ours.labels == k, other.labels == k) for k in self._object_ids]
        self._iou.append([region_similarity(*pair) for pair in pairs])
        self._share.append(float(np.mean(other.labels > 0)))
        difference = np.abs(ours.probs - other.probs)
        self._prob.append((float(difference.mean()), float(difference.max())))
        if ours.flow_px is not None and other.flow_px is not None:
            epe_px = np.hypot(*(ours.flow_px - other.flow_px))
            length_px = np.hypot(*other.flow_px)
            self._flow_px.append(
                (float(epe_px.mean()), float(epe_px.max()), float(length_px.max()))
            )

    def as_json(self) -> dict[str, Any]:
        """Return the IoU of the masks, and the differences of probabilities and flows.

        Probabilities are those after the CRF if there is one, so single pixels can differ by 1.
        """
        iou = np.array(self._iou)
        prob_mean, prob_max = np.array(self._prob).T
        found: dict[str, Any] = {
            "frames": len(iou),
            "mask_iou": {"min": round(self.iou_min, 6), "mean": round(float(iou.mean()), 6)},
            "mask_iou_of_objects": {
                str(k): {
                    "min": round(float(column.min()), 6),
                    "mean": round(float(column.mean()), 6),
                }
                for k, column in zip(self._object_ids, iou.T, strict=True)
            },
            "mask_iou_of_frames": [[round(float(v), 6) for v in row] for row in iou],
            "foreground_share": round(float(np.mean(self._share)), 5),
            "prob": {
                "mean_difference": float(prob_mean.max()),
                "max_difference": float(prob_max.max()),
            },
        }
        if self._flow_px:
            mean_px, max_px, length_px = np.array(self._flow_px).T
            found["flow"] = {
                "mean_difference_px": float(mean_px.max()),
                "max_difference_px": float(max_px.max()),
                "longest_px": float(length_px.max()),
            }
        return found


def compare_warps(clip: list[SyntheticFrame], objects: int) -> dict[str, Any]:
    """Compare the warp of all objects, including the preparation that each way needs.

    Args:
        clip: At least two frames; the flow is OpenCV's.
        objects: Number of objects K.

    Returns:
        An entry of ``operations``: ours, ``grid_sample`` per object, and one ``grid_sample`` with
        the objects as channels.
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
    """Warp all objects as the channels of one ``grid_sample``, its fastest form."""
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
    """Return 10^9 operations per second of the fastest of some large matrix products."""
    a, b = torch.randn(2, _GEMM_SIZE, _GEMM_SIZE).unbind()
    seconds = []
    for _ in range(_GEMM_REPETITIONS):
        begun = perf_counter()
        torch.mm(a, b)
        seconds.append(perf_counter() - begun)
    return round(2 * _GEMM_SIZE**3 / min(seconds) / 1e9, 1)
