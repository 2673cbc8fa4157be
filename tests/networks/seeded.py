"""Weights from their names, as in the golden cases (see golden/README.md)."""

from __future__ import annotations

import math
import zlib

import numpy as np
import torch
from torch import Tensor, nn

FLOWNET2_GAIN = 2.0
DEEPLAB_GAIN = 1.4
OSVOS_GAIN = 1.0


def seeded_tensor(key: str, shape: tuple[int, ...], gain: float) -> Tensor:
    """Make the float32 tensor of ``key``."""
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    noise = rng.standard_normal(shape).astype(np.float32)
    if key.endswith("running_mean"):
        value = 0.1 * noise
    elif key.endswith("running_var"):
        value = 1 + 0.1 * np.abs(noise)
    elif len(shape) >= 2:
        value = noise * np.float32(math.sqrt(gain / math.prod(shape[1:])))
    elif key.endswith("weight"):
        value = 1 + 0.1 * noise
    else:
        value = 0.05 * noise
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def seeded_state_dict(module: nn.Module, gain: float) -> dict[str, Tensor]:
    """Make a state dict; fixed ``upscale`` kernels are not changed."""
    return {
        key: value.clone()
        if key.startswith("upscale")
        else seeded_tensor(key, tuple(value.shape), gain)
        for key, value in module.state_dict().items()
    }


def seeded(module: nn.Module, gain: float) -> nn.Module:
    """Load seeded weights and switch to evaluation mode."""
    module.load_state_dict(seeded_state_dict(module, gain), strict=True, assign=True)
    return module.eval()
