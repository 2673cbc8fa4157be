"""The sides of ``compare_torch.py`` behind one interface: our pipeline, and the one in PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

from eager_pipeline import EagerPipeline
from mpn import Pipeline
from mpn.runtime.host.flow import FlowEstimator, FlowFrame
from mpn.types import Float32Array, UInt8Array


@dataclass(frozen=True)
class SideFrame:
    """What a side made of a frame.

    Attributes:
        labels: (H, W) uint8 ids.
        probs: (K, H, W) float32.
        flow_px: (2, H, W) float32, as estimated; None if no flow was.
        stages_s: Seconds by stage.
        seconds: Of the whole call.
    """

    labels: UInt8Array
    probs: Float32Array
    flow_px: Float32Array | None
    stages_s: Mapping[str, float]
    seconds: float


class Side(Protocol):
    """One of the implementations that are compared."""

    def start(self, rgb: UInt8Array, labels: UInt8Array) -> None:
        """Begin a video."""

    def step(self, rgb: UInt8Array, flow_to_prev_px: Float32Array | None) -> SideFrame:
        """Segment the next frame; warp by that flow if it is given."""

    def restart_from(self, labels: UInt8Array) -> None:
        """Put the objects where the labels say."""


class GivenFlow:
    """A flow estimator that works for its time, and answers with another flow if it is given one.

    Args:
        inner: What works.

    Attributes:
        given_px: (2, H, W) float32 to answer with; None: what ``inner`` says.
        answer_px: What ``inner`` said last.
    """

    def __init__(self, inner: FlowEstimator) -> None:
        self._inner = inner
        self.given_px: Float32Array | None = None
        self.answer_px: Float32Array | None = None

    def prepare(self, rgb: UInt8Array) -> FlowFrame:
        """See :meth:`mpn.runtime.host.flow.FlowEstimator.prepare`."""
        return self._inner.prepare(rgb)

    def between(self, frame0: FlowFrame, frame1: FlowFrame) -> Float32Array:
        """See :meth:`mpn.runtime.host.flow.FlowEstimator.between`."""
        self.answer_px = self._inner.between(frame0, frame1)
        return self.answer_px if self.given_px is None else self.given_px


class OurSide:
    """The package's own pipeline.

    Args:
        pipeline: Open, its flow being ``flow``.
        flow: To see and to replace the flow.
    """

    def __init__(self, pipeline: Pipeline, flow: GivenFlow) -> None:
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
        return SideFrame(result.labels, result.probs, self._flow.answer_px, result.timings, seconds)

    def restart_from(self, labels: UInt8Array) -> None:
        """See :class:`Side`."""
        self._pipeline.correct(labels)


class EagerSide:
    """The pipeline in PyTorch.

    Args:
        pipeline: With networks of its own.
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
