"""Frames and planes on the device, through the shim, against the host."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from mpn.errors import InputError
from mpn.runtime.device import images as cuda_images
from mpn.runtime.host import preprocess
from tests.emulation.cuda_shim.compare import largest_difference
from tests.emulation.cuda_shim.device import ShimDevice
from tests.emulation.cuda_shim.shim import Shim
from tests.tolerances import FLOW_RESIZE_PX, KERNEL_RESIZE

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (40, 50, 3), dtype=np.uint8)
SIZES = [(40, 50), (64, 64), (20, 25), (30, 70), (31, 33)]
BGR_MEAN = (104.00699, 116.66877, 122.67892)


@pytest.fixture
def device(shim: Shim) -> ShimDevice:
    return ShimDevice(shim, seed=1)


@pytest.mark.parametrize("size_hw", SIZES)
def test_frames_are_the_cpus_bit_for_bit(device: ShimDevice, size_hw: tuple[int, int]) -> None:
    rgb = device.upload(RGB)
    resized = cuda_images.resize_rgb(device, rgb, size_hw)
    assert np.array_equal(device.download(resized), preprocess.resize_rgb(RGB, size_hw))
    flow = device.download(cuda_images.flow_input(device, rgb, size_hw))
    assert np.array_equal(flow, preprocess.flow_input(RGB, size_hw))
    for order in ("bgr", "rgb"):
        how = {"channel_order": order, "mean": BGR_MEAN}
        image = device.download(cuda_images.osvos_input(device, rgb, size_hw, **how))
        expected = preprocess.osvos_input(RGB, size_hw, **how)
        assert np.array_equal(image, expected)
        half = cuda_images.osvos_input(device, rgb, size_hw, **how, dtype="float16")
        assert np.array_equal(device.download(half), expected.astype(np.float16))
        assert not np.array_equal(image, flow), "control"


@pytest.mark.parametrize("size_hw", SIZES)
def test_planes_and_flows_are_the_cpus(device: ShimDevice, size_hw: tuple[int, int]) -> None:
    planes = RNG.random((2, 40, 50), dtype=np.float32)
    prob = device.download(cuda_images.resize_prob(device, device.upload(planes), size_hw))
    assert largest_difference(prob, preprocess.resize_prob(planes, size_hw)) <= KERNEL_RESIZE
    flow = device.download(cuda_images.resize_flow(device, device.upload(planes * 9), size_hw))
    expected = np.stack([cv2.resize(plane * 9, size_hw[::-1]) for plane in planes])
    expected[0] *= size_hw[1] / 50
    expected[1] *= size_hw[0] / 40
    assert largest_difference(flow, expected) <= FLOW_RESIZE_PX


def test_network_input_is_written_to_the_given_array(device: ShimDevice) -> None:
    out = device.empty((1, 3, 64, 64), np.float32)
    rgb = device.upload(RGB)
    assert cuda_images.flow_input(device, rgb, (64, 64), out=out) is out
    assert np.array_equal(device.download(out), preprocess.flow_input(RGB, (64, 64)))
    with pytest.raises(InputError, match=r"out must be \(1, 3, 64, 65\) float32"):
        cuda_images.flow_input(device, rgb, (64, 65), out=out)
    with pytest.raises(InputError, match="float16"):
        cuda_images.flow_input(device, rgb, (64, 64), dtype="float16", out=out)
