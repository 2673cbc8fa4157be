"""Measure kernels for gpu_check.py: agreement with the reference, bandwidth, CRF."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.gpu.harness import (
    Bench,
    Budget,
    CannotRunError,
    features_size_hw,
    guarded,
    times,
)
from mpn.cuda.api import Stream
from mpn.cuda.array import DeviceArray
from mpn.cuda.registry import kernel_signatures
from mpn.runtime.crf.options import ResolvedCrf
from mpn.runtime.device.crf import CudaCrf
from mpn.runtime.device.images import (
    box_rows,
    flow_input,
    osvos_input,
    resize_flow,
    resize_prob,
    resize_rgb,
)
from mpn.runtime.device.state import DeviceState
from mpn.runtime.device.target import TargetScores
from mpn.runtime.host.crf import refine
from mpn.runtime.host.merge import merge
from mpn.runtime.host.reliability import colour_table
from mpn.runtime.host.roi import box_from_prob
from mpn.runtime.options import ResolvedOptions
from mpn.runtime.target import Targets, grid_hw
from mpn.types import Roi
from tests.reference.kernels import kernel_references

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

NUMBERED_IN_THREAD_ORDER = {"crf_insert", "crf_number"}
"""Kernels whose hash slots and vertex numbers depend on the order of threads.

The kernels that read these numbers are compared."""

LIMITS = {"float32": 2e-5, "float16": 2e-3, "uint8": 1.0}
"""Largest difference from the reference by dtype. expf and logf of the GPU differ by 1 to 2 units
in the last place, and a tie of labels can have another winner. Other integers agree exactly."""


class CheckedStream:
    """Compare each launched kernel with its reference once, and measure its time.

    Args:
        bench: Devices and sizes.
        stream: Stream that launches the kernels.
        budget: Time limit of the comparison.
    """

    def __init__(self, bench: Bench, stream: Stream, budget: Budget) -> None:
        self._bench, self._stream, self._budget = bench, stream, budget
        self.kernels: dict[str, dict[str, Any]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def launch(self, name: str, **arguments: Any) -> None:
        """Launch and compare, then launch again for the time and restore the output."""
        if name in self.kernels or self._budget.is_spent:
            self._stream.launch(name, **arguments)
            return
        arrays = {key: a for key, a in arguments.items() if isinstance(a, DeviceArray)}
        before = {a.address: self._stream.download(a) for a in arrays.values()}
        self._stream.launch(name, **arguments)
        after = {a.address: self._stream.download(a) for a in arrays.values()}
        entry = self.kernels[name] = {"status": "done"}
        given = {
            key: before[value.address].copy() if isinstance(value, DeviceArray) else value
            for key, value in arguments.items()
        }
        given_arrays: dict[int, npt.NDArray[Any]] = {}
        for key, array in arrays.items():  # an array that is given twice stays one array
            given[key] = given_arrays.setdefault(array.address, given[key])
        if name in NUMBERED_IN_THREAD_ORDER:
            entry["against_reference"] = "not comparable: see the kernels that read its output"
        else:
            entry |= guarded(lambda: _compared(name, arrays, after, given))
        nbytes = sum(array.nbytes for array in arrays.values())
        taken = self._bench.seconds(
            lambda: self._stream.launch(name, **arguments), repeats=self._bench.sizes.repeats
        )
        for array in arrays.values():
            self._stream.upload(after[array.address], array)
        gb_s = nbytes / min(taken) / 1e9
        entry["times"] = times(taken)
        entry["mib_of_its_arrays"] = round(nbytes / 2**20, 3)
        entry["gb_s_if_all_of_them_move"] = round(gb_s, 2)
        if self._bench.copy_gb_s:
            entry["share_of_copy_bandwidth"] = round(gb_s / self._bench.copy_gb_s, 4)


def _compared(
    name: str,
    arrays: dict[str, DeviceArray],
    after: dict[int, npt.NDArray[Any]],
    given: dict[str, Any],
) -> dict[str, Any]:
    with np.errstate(all="ignore"):  # some kernels read uninitialised memory and do not use it
        kernel_references()[name](**given)
    worst: dict[str, float] = {}
    for parameter in kernel_signatures()[name].parameters:
        if not parameter.is_pointer or parameter.is_const or parameter.name not in arrays:
            continue
        mine = after[arrays[parameter.name].address].astype(np.float64)
        theirs = np.asarray(given[parameter.name]).astype(np.float64)
        same = (mine == theirs) | (np.isnan(mine) & np.isnan(theirs))
        with np.errstate(invalid="ignore"):
            difference = np.where(same, 0.0, np.abs(mine - theirs))
        worst[parameter.name] = float(np.nan_to_num(difference, nan=1e300).max(initial=0))
        limit = LIMITS.get(parameter.dtype.name, 0.0)
        share = float((difference > limit).mean()) if difference.size else 0.0
        if share > 1e-4:
            return {
                "status": "failed",
                "why": f"{parameter.name} differs by {worst[parameter.name]:.3g}",
                "largest_difference": worst,
            }
    return {"largest_difference": worst}


def bandwidth(bench: Bench, budget: Budget) -> dict[str, Any]:
    """Measure the bandwidth of a copy on the device, the scale for all kernels."""
    stream = bench.need_stream()
    nbytes = bench.sizes.copy_mib * 2**20
    source, to = stream.zeros((nbytes,), np.uint8), stream.empty((nbytes,), np.uint8)
    taken = bench.seconds(lambda: stream.copy(source, to), repeats=10)
    bench.copy_gb_s = 2 * nbytes / min(taken) / 1e9
    return {"copy": times(taken), "copy_gb_s": round(bench.copy_gb_s, 1)}


def kernels(bench: Bench, budget: Budget) -> dict[str, Any]:
    """Run all kernels of the package on one scene: two frames through every stage."""
    stream = CheckedStream(bench, bench.need_stream(), budget)
    scene = Scene(bench)
    figures: dict[str, Any] = {}
    for part in (frame_chain, target_model, single_operations, pictures, mean_field):
        outcome = guarded(lambda part=part: part(stream, scene) or {})  # type: ignore[misc]
        if outcome["status"] != "done":
            figures[part.__name__] = outcome
    missing = sorted(set(kernel_signatures()) - set(stream.kernels))
    return {
        **figures,
        "kernels": stream.kernels,
        "checked": len(stream.kernels),
        "of": len(kernel_signatures()),
        "not_launched": missing,
        "differ": sorted(k for k, e in stream.kernels.items() if e.get("status") != "done"),
    }


class Scene:
    """Hold a frame with three objects, and flows.

    Args:
        bench: Devices and sizes.
    """

    def __init__(self, bench: Bench) -> None:
        rng = np.random.default_rng(0)
        self.hw = height, width = bench.sizes.frame_hw
        self.flow_hw, self.roi = bench.sizes.flow_hw, bench.sizes.roi
        y, x = np.mgrid[:height, :width].astype(np.float32)
        noise = rng.integers(0, 24, (height, width, 3))
        waves = np.stack([np.sin(x / 9), np.cos(y / 7), np.sin((x + y) / 11)], -1)
        self.rgb = np.clip(120 + 90 * waves + noise, 0, 255).astype(np.uint8)
        centres = ((0.3, 0.3, 0.16), (0.6, 0.5, 0.2), (0.75, 0.8, 0.08))
        soft = [
            1 / (1 + np.exp((np.hypot(x - cx * width, y - cy * height) - r * height) / 1.5))
            for cx, cy, r in centres
        ]
        planes = np.stack(soft).astype(np.float32)
        planes[planes < 1e-3] = 0
        self.prob = merge(planes)
        self.boxes: list[Roi | None] = [box_from_prob(plane, 0.0) for plane in self.prob]
        self.areas = [float(plane.sum()) for plane in self.prob]
        self.tables = np.stack([colour_table(self.rgb, plane > 0.5) for plane in self.prob])
        there = rng.normal(0, 0.4, (2, height, width)) + np.array([-2.5, 1.25])[:, None, None]
        self.there = there.astype(np.float32)
        self.back = (-there + rng.normal(0, 0.3, there.shape)).astype(np.float32)


def frame_chain(stream: Any, scene: Scene) -> None:
    """Run the stages of a frame, with and without colours, in both precisions."""
    for options, dtype in (
        (ResolvedOptions(), np.float32),
        (ResolvedOptions(flow_check_px=3.0, colour_weight=0.7, propagation_weight=0.8), np.float16),
    ):
        frame = DeviceState(
            stream,
            object_ids=(1, 2, 3),
            size_hw=scene.hw,
            roi_size=scene.roi,
            mean=MEAN,
            std=STD,
            options=options,
        )
        frame.start(scene.prob, box_rows(scene.boxes), scene.areas, scene.tables)
        rgb = stream.upload(scene.rgb)
        frame.readback.clear("flags", "agreement")
        frame.warp(rgb, stream.upload(scene.there), stream.upload(scene.back))
        packed = stream.zeros((3, 4, scene.roi, scene.roi), dtype)
        frame.crop(rgb, packed)
        frame.flip(packed, stream.zeros(packed.shape, dtype))
        crops = stream.upload(np.clip(stream.download(packed)[:, 3:], 0, 1))
        frame.average_flipped(crops, stream.upload(stream.download(crops)))
        planes = stream.upload(scene.prob[:2])
        plane_of = stream.upload(np.array([0, 1, -1], np.int32))
        frame.agreement(rgb, planes, plane_of)
        frame.flag_not_finite(crops, 0)
        frame.merge(crops, planes, plane_of, foreground_weight=0.5)
        frame.tracks(frame.labels, frame.merged)
        frame.commit()


def target_model(stream: Any, scene: Scene) -> None:
    """Run the kernels of the target model, in both precisions."""
    rng = np.random.default_rng(1)
    size_hw = features_size_hw(scene.hw)
    grid, channels, object_ids = grid_hw(size_hw), 384, (1, 2, 3)
    zeros, ones = np.zeros(channels, np.float32), np.ones(channels, np.float32)
    weights = {k: rng.normal(0, 0.2, channels + 1).astype(np.float32) for k in object_ids}
    scores = TargetScores(
        stream,
        Targets(zeros, ones, weights),
        rng.random((3, *grid), np.float32),
        object_ids,
        frame_hw=scene.hw,
        size_hw=size_hw,
        has_planes=True,
    )
    scores.warp(stream.upload(scene.there))
    rois, prob = stream.upload(box_rows(scene.boxes)), stream.upload(scene.prob)
    features = rng.normal(0, 1, (channels, *grid))
    for dtype in (np.float32, np.float16):
        scores.compute(stream.upload(features.astype(dtype)))
        scores.exclude_others(prob)
        scores.grow(rois, 0.25)
        scores.crop(rois, stream.zeros((3, 5, scene.roi, scene.roi), dtype), None)
    scores.planes()
    scores.commit()


def single_operations(stream: Any, scene: Scene) -> None:
    """Launch the kernels of which a frame uses another variant."""
    prob = stream.upload(scene.prob)
    ids = stream.upload(np.array([1, 2, 3], np.uint8))
    pixels = scene.hw[0] * scene.hw[1]
    labels = stream.empty(scene.hw, np.uint8)
    stream.launch(
        "labels_from_merged", merged=prob, object_ids=ids, objects=3, pixels=pixels, labels=labels
    )
    half = stream.upload(scene.prob.astype(np.float16))
    flag = stream.zeros((1,), np.int32)
    stream.launch("flag_not_finite_f16", values=half, count=half.size, flag=flag)
    plane = stream.upload(scene.prob[0])
    stream.launch("shift_odds", pixels=pixels, less=0.25, plane=plane)


def pictures(stream: Any, scene: Scene) -> None:
    """Resize frames and planes to the sizes of networks."""
    rgb, prob = stream.upload(scene.rgb), stream.upload(scene.prob)
    smaller = (scene.hw[0] // 2, scene.hw[1] // 2)
    resize_rgb(stream, rgb, smaller)
    resize_prob(stream, prob, smaller)
    flow = stream.upload(np.zeros((2, *scene.flow_hw), np.float32) + 1.5)
    resize_flow(stream, flow, scene.hw)
    for dtype in ("float32", "float16"):
        flow_input(stream, rgb, (scene.flow_hw[0] + 64, scene.flow_hw[1]), dtype=dtype)  # type: ignore[arg-type]
        osvos_input(stream, rgb, scene.hw, channel_order="bgr", mean=(104, 117, 123), dtype=dtype)  # type: ignore[arg-type]


def mean_field(stream: Any, scene: Scene) -> None:
    """Run the CRF with two iterations only: the reference of the lattice is slow."""
    options = ResolvedCrf(iterations=2)
    crf = CudaCrf(stream, objects=3, size_hw=scene.hw, options=options)
    crf.refine(
        stream.upload(scene.prob),
        stream.upload(scene.rgb),
        stream.upload(box_rows(scene.boxes)),
        refined=stream.zeros(scene.prob.shape, np.float32),
        refined_boxes=stream.zeros((3, 4), np.int32),
    )


def crf(bench: Bench, budget: Budget) -> dict[str, Any]:
    """Compare the CRF of one frame on the device with the host."""
    stream, scene = bench.need_stream(), Scene(bench)
    figures: dict[str, Any] = {}
    for name, options in (
        ("regions", ResolvedCrf(iterations=bench.sizes.crf_updates)),
        ("whole frame", ResolvedCrf(iterations=bench.sizes.crf_updates, whole_frame=True)),
    ):
        if budget.is_spent:
            figures[name] = {"status": "not run", "why": "the time of the section is spent"}
            continue
        figures[name] = guarded(lambda options=options: _crf(bench, stream, scene, options))  # type: ignore[misc]
    return figures


def _crf(bench: Bench, stream: Stream, scene: Scene, options: ResolvedCrf) -> dict[str, Any]:
    before = time.perf_counter()
    expected, _ = refine(scene.prob, scene.rgb, boxes=scene.boxes, options=options)
    host_s = time.perf_counter() - before
    device = CudaCrf(stream, objects=3, size_hw=scene.hw, options=options)
    merged, rgb = stream.upload(scene.prob), stream.upload(scene.rgb)
    boxes = stream.upload(box_rows(scene.boxes))
    refined = stream.empty(scene.prob.shape, np.float32)
    refined_boxes = stream.empty((3, 4), np.int32)
    work: Callable[[], None] = lambda: device.refine(  # noqa: E731
        merged, rgb, boxes, refined=refined, refined_boxes=refined_boxes
    )
    taken = bench.seconds(work, repeats=bench.sizes.repeats)
    difference = np.abs(stream.download(refined) - expected)
    if difference.max() > 0.05:
        raise CannotRunError(f"q differs from the host by {difference.max():.3g}")
    return {
        "device": times(taken),
        "host_numpy_ms": round(1e3 * host_s, 1),
        "host_over_device": round(host_s / min(taken), 1),
        "largest_difference": float(difference.max()),
    }
