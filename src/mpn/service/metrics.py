"""Figures of the service for Prometheus."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

_SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1),
    *(0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
"""Upper bounds: from a stage of a small frame to a frame in a full queue."""


class Metrics:
    """Counters and histograms of one server, in a new registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.sessions = Gauge(
            "mpn_sessions", "Sessions that exist.", ["feed"], registry=self.registry
        )
        self.sessions_ended = Counter(
            "mpn_sessions_ended", "Sessions that were removed.", ["reason"], registry=self.registry
        )
        self.frames = Counter(
            "mpn_frames", "Frames that were segmented.", ["feed"], registry=self.registry
        )
        self.queued = Gauge(
            "mpn_queued_frames", "Frames that wait for the networks.", registry=self.registry
        )
        self.frame_seconds = Histogram(
            "mpn_frame_seconds",
            "Seconds from the upload of a frame, or in a video from the frame before, to its mask.",
            ["feed"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.stage_seconds = Histogram(
            "mpn_stage_seconds",
            "Seconds of a stage of a frame.",
            ["stage"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.errors = Counter(
            "mpn_errors", "Sessions that failed, by error class.", ["kind"], registry=self.registry
        )
        self.requests = Counter(
            "mpn_http_requests",
            "Requests by route and status.",
            ["method", "route", "status"],
            registry=self.registry,
        )

    def frame(self, feed: str, seconds: float, stages: Mapping[str, float]) -> None:
        """Count a frame."""
        self.frames.labels(feed).inc()
        self.frame_seconds.labels(feed).observe(seconds)
        for stage, stage_s in stages.items():
            self.stage_seconds.labels(stage).observe(stage_s)

    def text(self) -> bytes:
        """Return all figures in Prometheus' text format."""
        return generate_latest(self.registry)
