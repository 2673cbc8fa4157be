"""Measure flow estimation in parallel with other work, in three ways.

    python -m benchmarks.speed.flow_overlap [--engine-dir DIR] [--objects 1,3] [--rounds 12]
        [--threads 2] [-o RESULT.json]

*in turn*: the flow there, the flow back where the flow check wants it, then the rest of the frame.
*both at once*: there and back side by side (``FlowEstimator.both_ways``). *ahead*: the flows of the
next frame while the rest of this one is worked on (``FlowAhead``). The built-in clip at 854x480 is
in memory; each way runs some frames in a row, then it is the next one's turn. All must find the
same masks, else nothing is written.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from mpn.runtime.flow_ahead import FlowAhead

from benchmarks.report.schema import cpu_backend, result_header, write_result
from mpn import Pipeline, PipelineOptions
from mpn._common.concurrency import OpenCvThreads
from mpn.engines.open import EngineSet, default_engine_dir, open_engines
from mpn.errors import MpnError
from mpn.runtime.bench.result import engine_facts, load_average, summary_ms
from mpn.runtime.host.flow import FlowEstimator, FlowFrame, flow_estimator_from
from mpn.synthetic import render_clip
from mpn.types import Float32Array, UInt8Array

SIZE_HW = (480, 854)
IN_A_ROW = 6
"""Frames before it is another way's turn; the first of them, whose caches are another's, not
counted."""


class InTurn:
    """An estimator that works on one flow after the other, whatever it could do at once.

    Args:
        inner: Does the work.
    """

    def __init__(self, inner: FlowEstimator) -> None:
        self.prepare, self.between = inner.prepare, inner.between

    def both_ways(self, frame0: FlowFrame, frame1: FlowFrame) -> tuple[Float32Array, Float32Array]:
        """See :meth:`mpn.runtime.host.flow.FlowEstimator.both_ways`."""
        return self.between(frame0, frame1), self.between(frame1, frame0)


class AtOnce:
    """An estimator that works on both flows when it is asked for the first.

    Args:
        inner: Does the work.
    """

    def __init__(self, inner: FlowEstimator) -> None:
        self.prepare, self.both_ways = inner.prepare, inner.both_ways
        self._back: tuple[FlowFrame, FlowFrame, Float32Array] | None = None

    def between(self, frame0: FlowFrame, frame1: FlowFrame) -> Float32Array:
        """See :meth:`mpn.runtime.host.flow.FlowEstimator.between`."""
        if self._back is not None and self._back[0] is frame0 and self._back[1] is frame1:
            return self._back[2]
        there, back = self.both_ways(frame0, frame1)
        self._back = (frame1, frame0, back)
        return there


class Way:
    """A pipeline over the clip, and the times of its frames.

    Args:
        pipeline: Its own.
        clip: The frames, over and over, there and back.
        labels: (H, W) uint8 of the first.
        ahead: To be told of the next frame; None if nobody is.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        clip: Sequence[UInt8Array],
        labels: UInt8Array,
        ahead: FlowAhead | None = None,
    ) -> None:
        self._pipeline, self._ahead = pipeline, ahead
        self._clip = clip
        self._at = 0
        self.seconds: list[float] = []
        self.labels = pipeline.start(clip[0], labels).labels

    def run(self, frames: int) -> None:
        """Segment some frames; all but the first are counted."""
        for number in range(frames):
            begun = perf_counter()
            now = self._frame(self._at + 1)
            if self._ahead is not None:
                self._ahead.expect(now, self._frame(self._at + 2))
            self.labels = self._pipeline.step(now).labels
            self._at += 1
            if number:
                self.seconds.append(perf_counter() - begun)

    def _frame(self, number: int) -> UInt8Array:
        last = len(self._clip) - 1
        return self._clip[last - abs(last - number % (2 * last))]


def measure(
    engines: EngineSet, clip: Sequence[UInt8Array], labels: UInt8Array, *, rounds: int
) -> dict[str, Any]:
    """All ways in turn; an entry of the result.

    Args:
        engines: Open.
        clip: (H, W, 3) uint8 RGB frames.
        labels: (H, W) uint8 of the first.
        rounds: Turns of each way.

    Raises:
        MpnError: If two ways find different masks.
    """
    options = PipelineOptions().with_defaults(engines.manifest.runtime_defaults)
    both_ways = options.flow_check_px > 0

    def estimator() -> FlowEstimator:
        return flow_estimator_from(engines)

    with FlowAhead(estimator(), both_ways=both_ways) as ahead:
        flows: dict[str, FlowEstimator] = {"in turn": InTurn(estimator()), "ahead": ahead}
        if both_ways:
            flows["both at once"] = AtOnce(estimator())
        ways = {
            name: Way(
                Pipeline(engines, options=options, flow=flow),
                clip,
                labels,
                ahead if flow is ahead else None,
            )
            for name, flow in flows.items()
        }
        order = list(ways)
        for _ in range(rounds):
            for name in order:
                ways[name].run(IN_A_ROW)
            order.append(order.pop(0))
            if not all(np.array_equal(w.labels, ways["in turn"].labels) for w in ways.values()):
                raise MpnError("the ways found different masks: their times mean nothing")
    base = ways["in turn"].seconds
    return {
        "objects": int(labels.max()),
        "is_flow_checked": both_ways,
        "ways": {name: summary_ms(way.seconds) for name, way in ways.items()},
        "ratios": {
            name: {
                "of_minima": round(min(base) / min(way.seconds), 3),
                "of_medians": round(float(np.median(base) / np.median(way.seconds)), 3),
            }
            for name, way in ways.items()
        },
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine-dir", type=Path, help="default: the shipped engines")
    parser.add_argument("--objects", default="1,3")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--frames", type=int, default=24, help="of the clip")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--out", type=Path)
    given = parser.parse_args(arguments)
    load_before = load_average()
    try:
        objects = [int(number) for number in given.objects.split(",")]
        clip = list(render_clip(frames=given.frames, size_hw=SIZE_HW))
        directory = default_engine_dir() if given.engine_dir is None else given.engine_dir
        with ExitStack() as stack:
            stack.enter_context(OpenCvThreads(given.threads))
            engines = stack.enter_context(
                open_engines(directory, backend="cpu", threads=given.threads)
            )
            facts = engine_facts(engines)
            runs = [_run(engines, clip, number, given.rounds) for number in objects]
        if given.out is not None:
            body = result_header(
                backend=cpu_backend(threads=given.threads),
                engine=facts,
                frame_size_hw=SIZE_HW,
                objects=objects,
                frames=given.rounds * (IN_A_ROW - 1),
                warmup=None,
                load_average_before=load_before,
                not_measured=["decoding and writing beside it, which take cores, too"],
            )
            write_result(given.out, "flow_overlap", body | {"runs": runs})
    except (MpnError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _run(engines: EngineSet, clip: list[Any], objects: int, rounds: int) -> dict[str, Any]:
    labels = np.where(clip[0].labels <= objects, clip[0].labels, 0)
    entry = measure(engines, [frame.rgb for frame in clip], labels, rounds=rounds)
    for name, times in entry["ways"].items():
        ratio = entry["ratios"][name]
        print(
            f"K = {objects}, {name:14} {times['median_ms']:8.2f} ms (min {times['min_ms']:.2f}), "
            f"{ratio['of_medians']}x (of minima {ratio['of_minima']}x)"
        )
    return entry


if __name__ == "__main__":
    sys.exit(main())
