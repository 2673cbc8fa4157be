"""Whole frames on the device, through the shim, against the stages of the host."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from mpn.cuda.array import DeviceArray
from mpn.errors import InputError
from mpn.runtime.device.images import box_rows, boxes_from_rows
from mpn.runtime.device.state import DeviceState
from mpn.runtime.host import ops as cpu
from mpn.runtime.host.merge import blend, labels_from_merged, merge
from mpn.runtime.host.osvos import blend_osvos
from mpn.runtime.host.reliability import colour_table, suppress_unreliable
from mpn.runtime.host.roi import box_from_prob, reachable_boxes, roi_from_prob
from mpn.runtime.options import ResolvedOptions
from mpn.runtime.tracks import measure_objects
from mpn.types import Roi
from tests.emulation.cuda_shim.compare import largest_difference
from tests.emulation.cuda_shim.device import ShimDevice
from tests.emulation.cuda_shim.scene import make_scene
from tests.emulation.cuda_shim.shim import Shim
from tests.runtime.host.test_ops import MEAN, STD
from tests.tolerances import KERNEL_CHAIN, KERNEL_CONFIDENCE, KERNEL_RESIZE, NORMALISED_RGB

SIZE_HW, SIZE, IDS = (45, 70), 33, (2, 5, 9)
ALL_ZERO = np.zeros(3, np.int32)
PLAIN = ResolvedOptions(roi_margin_px_min=3)
ALL = ResolvedOptions(
    flow_check_px=3.0,
    colour_weight=0.7,
    roi_margin_px_min=3,
    propagation_weight=0.7,
    lost_area_frac=0.2,
)


@dataclass
class Cpu:
    """The same state in NumPy, computed by functions of the host."""

    prob: np.ndarray
    bounds: tuple[Roi | None, ...]
    areas: list[float]
    tables: np.ndarray
    options: ResolvedOptions

    def warp(self, rgb: np.ndarray, there: np.ndarray, back: np.ndarray) -> None:
        options = self.options
        self.warp_bounds = reachable_boxes(self.bounds, there)
        self.candidates = cpu.warp_bilinear(self.prob, there, boxes=self.warp_bounds)
        self.rois: list[Roi | None] = []
        for k, (plane, box) in enumerate(zip(self.candidates, self.warp_bounds, strict=True)):
            if box is not None:
                suppress_unreliable(
                    plane,
                    box,
                    flow_to_prev_px=there,
                    flow_from_prev_px=back if options.flow_check_px else None,
                    flow_check_px=options.flow_check_px,
                    rgb=rgb,
                    colour_table=self.tables[k] if options.colour_weight else None,
                    colour_weight=options.colour_weight,
                )
            is_lost = (plane > options.threshold).sum() < options.lost_area_frac * self.areas[k]
            roi = roi_from_prob(
                plane,
                threshold=options.threshold,
                margin_frac=options.roi_margin_frac,
                margin_px_min=options.roi_margin_px_min,
            )
            self.rois.append(None if is_lost else roi)
            if self.rois[-1] is None:
                plane[:] = 0
                self.warp_bounds[k] = None

    def crop(self, rgb: np.ndarray) -> np.ndarray:
        return cpu.crop_resize_pack(rgb, self.candidates, self.rois, size=SIZE, mean=MEAN, std=STD)

    def merge(self, crops: np.ndarray | None, foreground: np.ndarray | None) -> None:
        prob = self.candidates
        if crops is not None:
            present = [k for k, roi in enumerate(self.rois) if roi is not None]
            prob = cpu.paste(crops[present], self.rois, SIZE_HW)
            weight = self.options.propagation_weight
            if weight != 1:
                prob = blend(prob, self.candidates, self.rois, other_weight=1 - weight)
        if foreground is not None:
            rois = tuple(self.rois)
            if crops is None:  # only pixels in the ROIs are blended and kept
                prob = blend(prob, prob, rois, other_weight=0.0)
            planes, weight = [foreground] * len(prob), self.options.osvos.blend_weight
            prob = blend_osvos(prob, planes, rois, osvos_weight=weight)
        is_in_rois = crops is not None or foreground is not None
        self.bounds = tuple(self.rois if is_in_rois else self.warp_bounds)
        self.prob = merge(prob, self.bounds)


def first_masks() -> np.ndarray:
    masks = np.zeros((3, *SIZE_HW), np.float32)
    masks[0, 8:25, 10:30] = 1
    masks[1, 20:40, 35:60] = 1
    masks[2, 2:5, 63:66] = 1  # small: it gets lost
    return masks


def started(shim: Shim, options: ResolvedOptions) -> tuple[ShimDevice, DeviceState, Cpu]:
    masks = first_masks()
    rgb = make_scene(SIZE_HW).rgb
    tables = np.stack([colour_table(rgb, mask > 0.5) for mask in masks])
    bounds = tuple(box_from_prob(mask, 0.0) for mask in masks)
    areas = [float(mask.sum()) for mask in masks]
    device = ShimDevice(shim, seed=1)
    frame = DeviceState(
        device,
        object_ids=IDS,
        size_hw=SIZE_HW,
        roi_size=SIZE,
        mean=MEAN,
        std=STD,
        options=options,
    )
    frame.start(masks, box_rows(bounds), areas, tables)
    return device, frame, Cpu(masks, bounds, areas, tables, options)


def flows(step: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(step)
    there = rng.normal(0, 0.4, (2, *SIZE_HW)) + np.array([-1.5, 0.75])[:, None, None]
    there[:, :6, 55:] += step * 4  # moves the small object out
    back = -there + rng.normal(0, 0.3, there.shape)
    return there.astype(np.float32), back.astype(np.float32)


def cropped(
    device: ShimDevice, frame: DeviceState, rgb: DeviceArray, dtype: str = "float32"
) -> np.ndarray:
    packed = device.empty((3, 4, SIZE, SIZE), dtype)
    frame.crop(rgb, packed)
    return device.download(packed)


def crops_for(step: int, packed: np.ndarray) -> np.ndarray:
    """Make the output of a network: the warped probability, sharpened, with noise."""
    noise = np.random.default_rng(step).random(packed[:, 3:].shape, dtype=np.float32)
    return np.clip(1.3 * packed[:, 3:].astype(np.float32) - 0.15 + 0.2 * (noise - 0.5), 0, 1)


@pytest.mark.parametrize("options", [PLAIN, ALL], ids=["paper", "all stages"])
@pytest.mark.parametrize("mode", ["network", "network and OSVOS", "warp only"])
def test_four_frames_in_a_row_are_the_cpus(shim: Shim, options: ResolvedOptions, mode: str) -> None:
    device, frame, host = started(shim, options)
    lost = []
    for step in range(1, 5):
        scene, (there, back) = make_scene(SIZE_HW, seed=step), flows(step)
        rgb = device.upload(scene.rgb)
        frame.warp(rgb, device.upload(there), device.upload(back))
        host.warp(scene.rgb, there, back)
        assert boxes_from_rows(device.download(frame.rois)) == tuple(host.rois)
        assert largest_difference(device.download(frame.candidates), host.candidates) <= (
            KERNEL_CHAIN
        )
        crops = given = None
        if mode != "warp only":
            packed = cropped(device, frame, rgb)
            present = [k for k, roi in enumerate(host.rois) if roi is not None]
            assert largest_difference(packed[present], host.crop(scene.rgb)) <= NORMALISED_RGB
            assert not np.delete(packed, present, axis=0).any()
            crops = crops_for(step, packed)
            given = device.upload(crops)
        foreground = scene.prob[0] if mode == "network and OSVOS" else None
        if foreground is None:
            frame.merge(given)
        else:
            frame.merge(
                given,
                device.upload(foreground[None]),
                device.upload(ALL_ZERO),
                foreground_weight=options.osvos.blend_weight,
            )
        frame.commit()
        host.merge(crops, foreground)
        prob, labels = device.download(frame.prob), device.download(frame.labels)
        assert largest_difference(prob, host.prob) <= KERNEL_CHAIN
        assert np.array_equal(labels, labels_from_merged(prob, IDS))
        expected_labels = labels_from_merged(host.prob, IDS)
        assert (labels != expected_labels).sum() <= 1, "a tie at most"
        assert boxes_from_rows(device.download(frame.bounds)) == host.bounds
        lost.append(host.rois[2] is None)
    assert lost == sorted(lost)
    assert lost[-1], "the small object is lost on the way: lost slots are part of the test"
    assert len(np.unique(labels)) == 3, "and the others are not"


def test_nothing_comes_back_to_the_host_within_a_frame(shim: Shim) -> None:
    device, frame, _ = started(shim, ALL)
    scene, (there, back) = make_scene(SIZE_HW, seed=1), flows(1)
    rgb = device.upload(scene.rgb)
    before = list(device.launched)
    crops = device.upload(np.zeros((3, 1, SIZE, SIZE), np.float32))
    there_px, back_px = device.upload(there), device.upload(back)
    packed = device.empty((3, 4, SIZE, SIZE), np.float32)
    planes, plane_of = device.upload(scene.prob[:1]), device.upload(ALL_ZERO)
    frame.warp(rgb, there_px, back_px)
    frame.crop(rgb, packed)
    frame.agreement(rgb, planes, plane_of)
    frame.flag_not_finite(crops, 0)
    frame.merge(crops, planes, plane_of)
    frame.tracks(frame.labels, frame.merged)
    frame.commit()
    assert device.downloads == 0
    assert device.launched[len(before) :] == [
        "flow_extent",
        "reach_boxes",
        "colour_bins",
        "warp_colour_box",
        "rois_from_boxes",
        "clear_lost",
        "crop_pack_f32",
        "osvos_agreement",
        "flag_not_finite_f32",
        "paste_merge_f32",
        "reset_boxes",
        "track_stats",
    ]


def test_state_is_unchanged_until_commit(shim: Shim) -> None:
    device, frame, host = started(shim, PLAIN)
    there, back = flows(1)
    rgb = device.upload(make_scene(SIZE_HW, seed=1).rgb)
    for _ in range(2):  # a frame whose network fails is repeated
        frame.warp(rgb, device.upload(there), device.upload(back))
        frame.merge(device.upload(crops_for(1, cropped(device, frame, rgb))))
        assert np.array_equal(device.download(frame.prob), host.prob)
        assert boxes_from_rows(device.download(frame.bounds)) == host.bounds


def test_half_precision_in_and_out_of_the_network(shim: Shim) -> None:
    (there, back), scene = flows(1), make_scene(SIZE_HW, seed=1)
    results = []
    for dtype in ("float32", "float16"):
        device, frame, _ = started(shim, PLAIN)
        rgb = device.upload(scene.rgb)
        frame.warp(rgb, device.upload(there), device.upload(back))
        packed = cropped(device, frame, rgb, dtype)
        assert packed.dtype == dtype
        frame.merge(device.upload(crops_for(1, packed).astype(dtype)))
        results.append(device.download(frame.merged))
    difference = largest_difference(*results)
    assert 0 < difference <= 2**-8


def test_tracks_are_the_cpus(shim: Shim) -> None:
    device, frame, host = started(shim, PLAIN)
    labels = labels_from_merged(host.prob, IDS)
    frame.tracks(device.upload(labels), frame.prob)
    figures = frame.readback.read(device.download(frame.readback.buffer))
    areas, boxes, sums = (figures[f"track_{name}"] for name in ("areas", "boxes", "sums"))
    expected = measure_objects(labels, host.prob, IDS, host.bounds)  # type: ignore[arg-type]
    for measured, area, box, total in zip(
        expected, areas, boxes_from_rows(boxes), sums, strict=True
    ):
        found = area, None if box is None else box.box_xyxy
        assert found == (measured.area_px, measured.box_xyxy)
        assert abs(int(total) / 2**24 / area - measured.confidence) <= KERNEL_CONFIDENCE


def test_missing_state_inputs_raise(shim: Shim) -> None:
    device, _, _ = started(shim, PLAIN)
    sizes = {"size_hw": SIZE_HW, "roi_size": SIZE, "mean": MEAN, "std": STD}
    with pytest.raises(InputError, match="at least one object"):
        DeviceState(device, object_ids=(), **sizes)  # type: ignore[arg-type]
    frame = DeviceState(device, object_ids=IDS, options=ALL, **sizes)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="colour tables"):
        frame.start(first_masks(), box_rows([None] * 3), [1.0] * 3)


def test_a_frame_of_davis_size_is_the_cpus(shim: Shim) -> None:
    """854x480 and a ROI of 513, where coordinates are large and no row is aligned."""
    size_hw, size = (480, 854), 513
    masks = np.zeros((1, *size_hw), np.float32)
    masks[0, 120:400, 200:700] = 1
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (*size_hw, 3), dtype=np.uint8)
    there = (rng.normal(0, 0.5, (2, *size_hw)) + 3.25).astype(np.float32)
    back = (-there + rng.normal(0, 0.3, there.shape)).astype(np.float32)
    table = colour_table(rgb, masks[0] > 0.5)[None]
    support = [box_from_prob(masks[0], 0.0)]
    device = ShimDevice(shim)
    frame = DeviceState(
        device,
        object_ids=[1],
        size_hw=size_hw,
        roi_size=size,
        mean=MEAN,
        std=STD,
        options=ALL,
    )
    frame.start(masks, box_rows(support), [1.0], table)
    host = Cpu(masks, tuple(support), [1.0], table, ALL)
    given = device.upload(rgb)
    frame.warp(given, device.upload(there), device.upload(back))
    host.warp(rgb, there, back)
    assert largest_difference(device.download(frame.candidates), host.candidates) <= KERNEL_CHAIN
    assert boxes_from_rows(device.download(frame.rois)) == tuple(host.rois)
    into = device.empty((1, 4, size, size), np.float32)
    frame.crop(given, into)
    packed = device.download(into)
    expected = cpu.crop_resize_pack(rgb, host.candidates, host.rois, size=size, mean=MEAN, std=STD)
    assert largest_difference(packed, expected) <= NORMALISED_RGB
    crops = crops_for(1, packed)
    frame.merge(device.upload(crops))
    prob = cpu.paste(crops, host.rois, size_hw)
    prob = blend(prob, host.candidates, host.rois, other_weight=1 - ALL.propagation_weight)
    merged = device.download(frame.merged)
    assert largest_difference(merged, prob) <= KERNEL_RESIZE
    assert np.array_equal(device.download(frame.labels), labels_from_merged(merged, [1]))
