"""Training crops of OSVOS: still images, and frames with merged objects."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from mpn.engines.directory.manifest import OsvosPreprocessing
from mpn.errors import InputError
from mpn.networks.osvos import OsvosConfig, OsvosVgg
from mpn.training.data import DavisSequence, StillPair
from mpn.training.propagation.augment import ColourShift
from mpn.types import BoolArray, Float32Array, UInt8Array

INPUT_SCALE = 64.0
"""Divisor of the inputs in training, about the standard deviation of an image's colours."""

_MEAN_BGR = OsvosPreprocessing().mean
_MIN_OBJECT_PX = 16


class MaskedImages(Protocol):
    """Images with the mask of their salient objects."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[UInt8Array, BoolArray]:
        """Load image ``index``: (H, W, 3) uint8 RGB, and (H, W) bool mask."""


class StillImages:
    """Salient-object images, for the first offline stage.

    Args:
        pairs: Images and masks.
    """

    def __init__(self, pairs: Sequence[StillPair]) -> None:
        self._pairs = pairs

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> tuple[UInt8Array, BoolArray]:
        """Load one image; see :class:`MaskedImages`."""
        return self._pairs[index].rgb(), self._pairs[index].mask()


class MergedFrames:
    """Frames of sequences with all objects merged, for the second stage.

    Args:
        sequences: Source of the frames.
        every: Use every n-th frame.
    """

    def __init__(self, sequences: Sequence[DavisSequence], every: int = 1) -> None:
        self._frames = [(s, t) for s in sequences for t in range(0, len(s), every)]

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> tuple[UInt8Array, BoolArray]:
        """Load one frame; see :class:`MaskedImages`."""
        sequence, t = self._frames[index]
        return sequence.rgb(t), sequence.labels(t) > 0


@dataclass(frozen=True)
class CropOptions:
    """Options for cropping and changing images.

    Attributes:
        size_px: Side of the crop.
        zoom_min: Smallest length of the image's short side, in sides of the crop.
        zoom_max: Largest such length; the zoom is drawn log-uniformly between the two.
        aspect: Bound of the factor between the scales of width and height.
        rotation_deg: Largest rotation in either direction.
        on_object: Share of crops whose centre is drawn near the object.
        recolour: Share of crops with changed colours.
    """

    size_px: int = 192
    zoom_min: float = 0.9
    zoom_max: float = 2.2
    aspect: float = 1.15
    rotation_deg: float = 20.0
    on_object: float = 0.7
    recolour: float = 0.8


def random_crop(
    rgb: UInt8Array, mask: BoolArray, options: CropOptions, rng: np.random.Generator
) -> tuple[Float32Array, BoolArray]:
    """Crop an image with random scale, rotation, flip and colours.

    Borders are mirrored.

    Args:
        rgb: (H, W, 3) uint8 RGB.
        mask: (H, W) bool.
        options: Extent of the changes.
        rng: Source of randomness.

    Returns:
        (3, S, S) float32 RGB in 0..255 and (S, S) bool.
    """
    size = options.size_px
    height, width = mask.shape
    zoom = math.exp(rng.uniform(math.log(options.zoom_min), math.log(options.zoom_max)))
    scale = zoom * size / min(height, width)
    stretch = math.exp(rng.uniform(-0.5, 0.5) * math.log(options.aspect))
    mirror = -1.0 if rng.random() < 0.5 else 1.0
    angle = math.radians(rng.uniform(-options.rotation_deg, options.rotation_deg))
    centre_xy = _crop_centre(mask, size / scale, options.on_object, rng)
    cos, sin = math.cos(angle) * scale, math.sin(angle) * scale
    linear = np.array(
        [[mirror * cos * stretch, -sin * stretch], [mirror * sin / stretch, cos / stretch]]
    )
    # The origin of cv2 is the centre of the first pixel; that of the crop's centre is its corner.
    offset = (size - 1) / 2 - linear @ (centre_xy - 0.5)
    matrix = np.hstack([linear, offset[:, None]])
    out = cv2.warpAffine(
        rgb, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )
    share = cv2.warpAffine(
        mask.astype(np.uint8) * 255,
        matrix,
        (size, size),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT_101,
    )
    planes: Float32Array = np.ascontiguousarray(out.transpose(2, 0, 1), dtype=np.float32)
    if rng.random() < options.recolour:
        planes = ColourShift(rng)(planes)
    return planes, share > 127


def _crop_centre(
    mask: BoolArray, window_px: float, on_object: float, rng: np.random.Generator
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Choose the centre (x, y) of a crop; its window is inside if it fits."""
    extent = np.array(mask.shape[::-1], np.float64)
    centre = rng.uniform(0, 1, 2) * extent
    if rng.random() < on_object:
        inside = np.flatnonzero(mask)
        if len(inside) >= _MIN_OBJECT_PX:
            row, column = divmod(int(inside[rng.integers(len(inside))]), mask.shape[1])
            centre = np.array([column, row]) + rng.uniform(-0.25, 0.25, 2) * window_px
    half = window_px / 2
    low, high = np.minimum(half, extent / 2), np.maximum(extent - half, extent / 2)
    return np.clip(centre, low, high)


def network_input(planes: Sequence[Float32Array], scale: float = 1.0) -> Tensor:
    """Convert images to inputs of OSVOS.

    Args:
        planes: (3, H, W) float32 each, RGB in 0..255.
        scale: Divisor of the result: 1 for weights as stored, :data:`INPUT_SCALE` for those in
            offline training.

    Returns:
        (B, 3, H, W) float32, BGR minus the mean, in channels_last memory format.
    """
    rgb = torch.from_numpy(np.stack(planes))
    mean = torch.tensor(_MEAN_BGR)[:, None, None]
    return ((rgb.flip(1) - mean) / scale).contiguous(memory_format=torch.channels_last)


class CropSource:
    """Batches that are a pure function of their number, so that runs can be resumed.

    Args:
        images: Sources, and each one's share of the crops (need not sum to 1).
        options: Options of the crops.
        batch: Crops per batch.
        seed: Seed of all random choices.
        scale: See :func:`network_input`.
    """

    def __init__(
        self,
        images: Sequence[tuple[MaskedImages, float]],
        options: CropOptions,
        *,
        batch: int,
        seed: int,
        scale: float = 1.0,
    ) -> None:
        self._images = [source for source, share in images if share > 0 and len(source)]
        shares = np.array([share for source, share in images if share > 0 and len(source)])
        self._shares = shares / shares.sum()
        self._options, self._batch, self._seed, self._scale = options, batch, seed, scale

    def batch(self, number: int) -> tuple[Tensor, Tensor]:
        """Make batch ``number``: inputs (B, 3, S, S) and masks (B, 1, S, S).

        Inputs are those of :func:`network_input`.
        """
        return self.joined([self.sample(number, k) for k in range(self._batch)])

    def sample(self, number: int, index: int) -> tuple[Float32Array, BoolArray]:
        """Make crop ``index`` of batch ``number`` with :func:`random_crop`."""
        rng = np.random.default_rng([self._seed, number, index])
        source = self._images[int(rng.choice(len(self._images), p=self._shares))]
        rgb, mask = source[int(rng.integers(len(source)))]
        return random_crop(rgb, mask, self._options, rng)

    def joined(self, samples: Sequence[tuple[Float32Array, BoolArray]]) -> tuple[Tensor, Tensor]:
        """Stack samples to a batch, see :meth:`batch`."""
        inputs = network_input([crop for crop, _ in samples], self._scale)
        masks = np.stack([mask for _, mask in samples])[:, None]
        return inputs, torch.from_numpy(masks.astype(np.float32))


def weights_for_larger_input(state: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
    """Rescale weights to an input that is larger by a factor.

    The new weights give for ``x`` the output of ``state`` for ``x / factor``.

    Args:
        state: A state dict.
        factor: Above 0; ``1 / factor`` is the inverse.

    Returns:
        A new state dict; unchanged tensors are shared with ``state``.

    Raises:
        InputError: If the factor is not above 0.
    """
    if factor <= 0:
        raise InputError(f"inputs can be made larger by a factor above 0 only, got {factor}")
    out = {}
    for key, value in state.items():
        part, kind = key.split(".")[0], key.rsplit(".", 1)[-1]
        if part in ("stages", "side_prep") and kind == "bias":
            value = value * factor
        elif part in ("fuse", "score_dsn") and kind == "weight":
            value = value / factor
        out[key] = value
    return out


def init_weights(network: OsvosVgg) -> None:
    """Draw random weights that keep the size of features over the layers.

    Biases are zero. K. He et al., "Delving Deep into Rectifiers", ICCV 2015, for layers followed by
    a ReLU; half that variance for the linear ones. The fixed upsampling does not change. Uses
    torch's global generator.
    """
    for name, layer in network.named_modules():
        if not isinstance(layer, nn.Conv2d):
            continue
        linear = name.split(".")[0] in ("side_prep", "score_dsn", "fuse")
        nn.init.kaiming_normal_(layer.weight, nonlinearity="linear" if linear else "relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def normalised_network(config: OsvosConfig) -> OsvosVgg:
    """Create OSVOS with batch normalisation after each trunk convolution.

    Args:
        config: Shape of the network.

    Returns:
        Same inputs and outputs; other keys in ``stages``, see :func:`folded_weights`.
    """
    network = OsvosVgg(config)
    for number, stage in enumerate(network.stages):
        layers: list[nn.Module] = []
        for layer in stage.children():
            layers.append(layer)
            if isinstance(layer, nn.Conv2d):
                layers.append(nn.BatchNorm2d(layer.out_channels))
        network.stages[number] = nn.Sequential(*layers)
    return network


def has_batch_norm(network: nn.Module) -> bool:
    """Return whether a network has any batch normalisation."""
    return any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in network.modules())


def folded_weights(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fold batch normalisation into the weights of the plain network.

    Its output is that of the normalised network in eval mode.

    Args:
        network: Plain, or from :func:`normalised_network`; only its order of layers is used.
        state: Weights of this network.

    Returns:
        A state dict of :class:`OsvosVgg` with the same configuration.
    """
    folded = {k: v for k, v in state.items() if not k.startswith("stages.")}
    for number, stage in enumerate(network.get_submodule("stages").children()):
        plain_index = 0
        layers = list(stage.children())
        for index, layer in enumerate(layers):
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                conv, norm = f"stages.{number}.{index - 1}", f"stages.{number}.{index}"
                spread = torch.sqrt(state[f"{norm}.running_var"] + layer.eps)
                factor = state[f"{norm}.weight"] / spread
                key = f"stages.{number}.{plain_index - 1}"
                folded[f"{key}.weight"] = state[f"{conv}.weight"] * factor[:, None, None, None]
                offset = state[f"{conv}.bias"] - state[f"{norm}.running_mean"]
                folded[f"{key}.bias"] = state[f"{norm}.bias"] + offset * factor
            else:
                for name in layer.state_dict():
                    folded[f"stages.{number}.{plain_index}.{name}"] = state[
                        f"stages.{number}.{index}.{name}"
                    ]
                plain_index += 1
    return folded
