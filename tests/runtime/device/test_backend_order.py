"""Order of the streams, and the single wait of the host per frame."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mpn.runtime.options import DeviceOptions, OsvosOptions
from mpn.runtime.pipeline import Pipeline, PipelineOptions
from tests.builders.clips import squares_clip
from tests.emulation.cuda_shim.shim import Shim
from tests.emulation.engines import fake_engine_set
from tests.emulation.streams import Order, ShimEvent, ShimStream
from tests.runtime.device.helpers import device_pipeline, pan_both_ways, run
from tests.runtime.device.test_backend import red, sharpened
from tests.runtime.pipelines import ONE, PLAIN

CLIP = squares_clip([ONE], pan_xy=(3, 2), frames=9)
OPTIONS = PipelineOptions(flow_check_px=3.0, size=40, osvos=OsvosOptions(mode="blend"))


def started(shim: Shim, **options: Any) -> tuple[Pipeline, ShimStream]:
    engines = fake_engine_set(
        flow=pan_both_ways(), osvos=red, propagation=sharpened, preprocessing=PLAIN
    )
    return device_pipeline(shim, engines, OPTIONS, **options)


def probs(shim: Shim, *, expects: bool, **options: Any) -> np.ndarray:
    pipeline, _ = started(shim, **options)
    with pipeline:
        results = run(pipeline, CLIP.frames, CLIP.labels[0], expects=expects)
    return np.stack([result.probs for result in results])


@pytest.mark.parametrize("use_graphs", [False, True])
@pytest.mark.parametrize("expects", [False, True], ids=["each frame by itself", "next expected"])
@pytest.mark.parametrize(("order", "seed"), [("late", 0), ("random", 1), ("random", 2)])
def test_no_order_that_the_events_allow_changes_a_bit(
    shim: Shim, order: Order, seed: int, *, expects: bool, use_graphs: bool
) -> None:
    options = DeviceOptions(use_graphs=use_graphs)
    expected = probs(shim, expects=False, device_options=options)
    given = probs(shim, expects=expects, order=order, seed=seed, device_options=options)
    assert given.tobytes() == expected.tobytes()


@pytest.mark.parametrize("awaited", ["flow", "osvos"])
def test_an_event_that_is_not_awaited_is_found(
    shim: Shim, awaited: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: without one of the waits, late work gives another result."""
    expected = probs(shim, expects=True)
    monkeypatch.setattr(
        f"mpn.runtime.device.backend.DeviceBackend.wait_for_{awaited}", lambda *_: None
    )
    monkeypatch.setattr(ShimEvent, "elapsed_s", lambda *_: 0.001)
    assert probs(shim, expects=True, order="late").tobytes() != expected.tobytes()


def test_the_host_waits_once_a_frame_and_nothing_is_allocated(shim: Shim) -> None:
    pipeline, stream = started(shim, order="late")
    scheduler = stream.scheduler
    with pipeline:
        pipeline.start(CLIP.frames[0], CLIP.labels[0])
        for n, frame in enumerate(CLIP.frames[1:-1], start=1):
            pipeline.prefetch_frame(CLIP.frames[n + 1])
            waits, allocations, start = (
                scheduler.host_waits,
                scheduler.allocations,
                len(scheduler.log),
            )
            pipeline.step(frame)
            assert scheduler.host_waits == waits + 1
            log = scheduler.log[start:]
            waited = log.index(("host", "sync"))
            main = [what for where, what in log if where == str(stream.address)]
            assert main[-2:] == ["copy", "copy"], "after the labels, the state is taken over"
            assert all(where != "host" for where, _ in log[:waited])
            if n > 1:  # the list of planes is uploaded once
                assert scheduler.allocations == allocations
        copies = [what for _, what in log if what in ("upload_async", "download_async", "upload")]
    assert copies == ["download_async", "download_async", "upload_async"], (
        "labels and readback block out, the next frame in"
    )


def test_prefetched_flow_and_osvos_do_not_wait(shim: Shim) -> None:
    """With late execution they stay in the queue until the next frame uses them."""
    pipeline, stream = started(shim, order="late")
    with pipeline:
        pipeline.start(CLIP.frames[0], CLIP.labels[0])
        for n, frame in enumerate(CLIP.frames[1:5], start=1):
            pipeline.prefetch_frame(CLIP.frames[n + 1])
            pipeline.step(frame)
        held = {
            address: [what for what, _ in queue]
            for address, queue in stream.scheduler.queues.items()
        }
    assert [what for what in held[2] if what == "flow"] == ["flow", "flow"], "there and back"
    assert "osvos" in held[3]


def test_unexpected_frame_after_prefetch_is_processed(shim: Shim) -> None:
    expected = probs(shim, expects=False)
    pipeline, _ = started(shim, order="random", seed=3)
    with pipeline:
        results = [pipeline.start(CLIP.frames[0], CLIP.labels[0])]
        for frame in CLIP.frames[1:]:
            pipeline.prefetch_frame(frame[::-1].copy())
            results.append(pipeline.step(frame))
            assert results[-1].probs is not None
    assert np.stack([result.probs for result in results]).tobytes() == expected.tobytes()


def test_engines_that_cannot_be_captured_are_left_out_of_graphs(shim: Shim) -> None:
    expected = probs(shim, expects=False)
    pipeline, stream = started(shim, engine_options={"supports_graph_capture": False})
    with pipeline:
        results = run(pipeline, CLIP.frames, CLIP.labels[0])
    assert stream.scheduler.graphs == 0
    assert np.stack([result.probs for result in results]).tobytes() == expected.tobytes()
