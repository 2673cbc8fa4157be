from __future__ import annotations

import pytest
import torch
from torch import nn

from mpn.errors import InputError
from mpn.networks.layers import check_width, run_layer, scaled_channels


@pytest.mark.parametrize(
    ("channels", "width", "expected"),
    [
        (728, 1.0, 728),
        (30, 1.0, 30),  # exact at width 1, whatever the step
        (64, 0.5, 32),
        (64, 0.25, 16),
        (728, 0.25, 184),  # 182 rounded to a multiple of 8
        (16, 0.25, 8),  # never under 8
        (64, 0.01, 8),
        (64, 2.0, 128),
    ],
)
def test_channels_scale_to_multiples_of_eight(channels: int, width: float, expected: int) -> None:
    assert scaled_channels(channels, width) == expected


@pytest.mark.parametrize("width", [0.0, -1.0, 4.5, float("nan")])
def test_width_out_of_range_is_refused(width: float) -> None:
    with pytest.raises(InputError, match="width must be a finite number above 0"):
        check_width(width)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_layer_runs_in_the_dtype_of_its_weights(dtype: torch.dtype) -> None:
    layer = nn.Conv2d(2, 3, 1).to(dtype)
    for given in (torch.float32, torch.float16):
        assert run_layer(layer, torch.ones((1, 2, 4, 4), dtype=given)).dtype == dtype
