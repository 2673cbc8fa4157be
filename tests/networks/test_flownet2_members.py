from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mpn.networks.flownet2_members import (
    CORRELATION_CHANNELS,
    channel_norm,
    correlation,
    warp_border,
)
from tests.tolerances import CORRELATION_ABSOLUTE, WARP_ABSOLUTE

WARP_CASES = (
    "all_out",
    "edge_half",
    "half_pixel",
    "int_shift",
    "leaves_image",
    "minus_one",
    "nonfinite",
    "rotation",
    "smooth",
    "sub32",
    "sub_third",
    "zero",
)


def _correlation_by_definition(features0: Tensor, features1: Tensor) -> Tensor:
    """Compute the definition in float64 by four loops."""
    a, b = features0.double(), features1.double()
    batch, channels, height, width = a.shape
    out = torch.zeros(batch, CORRELATION_CHANNELS, height, width, dtype=torch.float64)
    for dj in range(-10, 11):
        for di in range(-10, 11):
            for y in range(height):
                for x in range(width):
                    y1, x1 = y + 2 * dj, x + 2 * di
                    if 0 <= y1 < height and 0 <= x1 < width:
                        value = (a[:, :, y, x] * b[:, :, y1, x1]).sum(dim=1) / channels
                        out[:, 21 * (dj + 10) + (di + 10), y, x] = value
    return out


@pytest.fixture(scope="module")
def features() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (2, 6, 5, 9)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def test_correlation_follows_its_definition(features: tuple[Tensor, Tensor]) -> None:
    expected = _correlation_by_definition(*features)
    difference = (correlation(*features).double() - expected).abs().max().item()
    assert difference <= CORRELATION_ABSOLUTE
    # Controls: a swapped order of displacements and swapped frames are detected.
    transposed = expected.unflatten(1, (21, 21)).transpose(1, 2).flatten(1, 2)
    assert (transposed - expected).abs().max() > 1000 * CORRELATION_ABSOLUTE
    swapped = correlation(features[1], features[0]).double()
    assert (swapped - expected).abs().max() > 1000 * CORRELATION_ABSOLUTE


@pytest.mark.parametrize(("dj", "di"), [(0, 0), (1, 0), (0, 1), (-3, 2), (10, -10)])
def test_correlation_peaks_at_the_displacement(dj: int, di: int) -> None:
    generator = torch.Generator().manual_seed(2)
    features0 = torch.randn((1, 64, 24, 25), generator=generator)
    features1 = torch.roll(features0, shifts=(2 * dj, 2 * di), dims=(2, 3))
    y, x = (2 if dj > 0 else 21 if dj < 0 else 12), (22 if di < 0 else 2 if di > 0 else 12)
    scores = correlation(features0, features1)[0, :, y, x]
    assert scores.argmax().item() == 21 * (dj + 10) + (di + 10)


def test_correlation_in_half_cannot_overflow_before_the_mean() -> None:
    features = torch.full((1, 256, 4, 4), 100.0, dtype=torch.float16)
    centre = correlation(features, features)[0, CORRELATION_CHANNELS // 2]
    assert centre.dtype == torch.float16
    assert torch.isfinite(centre).all()
    assert centre == pytest.approx(np.full((4, 4), 1e4), rel=1e-2)
    # Control: the plain sum of these products is not a half number.
    assert torch.isinf((features * features).float().sum(dim=1).half()).all()


@pytest.mark.parametrize("case", WARP_CASES)
def test_warp_matches_the_exact_one_with_repeated_border(golden: Path, case: str) -> None:
    data = np.load(golden / "warp" / f"{case}.npz")
    finite = np.isfinite(data["flow"]).all(axis=-1)
    flow = np.where(finite[..., None], data["flow"], 0)
    image = torch.from_numpy(data["prob"])[None, None]
    flow_px = torch.from_numpy(flow.astype(np.float32)).permute(2, 0, 1)[None]
    warped = warp_border(image, flow_px)[0, 0].numpy()
    assert np.abs(warped - data["exact_border"])[finite].max() <= WARP_ABSOLUTE


def test_warp_check_detects_other_conventions() -> None:
    image = torch.rand((1, 1, 12, 16), generator=torch.Generator().manual_seed(3))
    flow_px = torch.zeros((1, 2, 12, 16))
    flow_px[:, 0] = 1.0
    shifted = torch.cat((image[..., 1:], image[..., -1:]), dim=-1)  # border repeated
    assert (warp_border(image, flow_px) - shifted).abs().max() <= WARP_ABSOLUTE
    zero_outside = F.pad(image[..., 1:], (0, 1))
    assert (warp_border(image, flow_px) - zero_outside).abs().max() > 1000 * WARP_ABSOLUTE
    assert (warp_border(image, -flow_px) - shifted).abs().max() > 1000 * WARP_ABSOLUTE


def test_channel_norm_is_the_length_without_epsilon() -> None:
    values = torch.tensor([[3.0, 0.0, 300.0], [4.0, 0.0, 400.0]])[None, :, None, :]
    assert channel_norm(values).flatten().tolist() == [5.0, 0.0, 500.0]


def test_channel_norm_can_be_trained_through_at_zero() -> None:
    values = torch.zeros((1, 2, 1, 3), requires_grad=True)
    channel_norm(values).sum().backward()
    assert values.grad is not None
    assert torch.isfinite(values.grad).all()
