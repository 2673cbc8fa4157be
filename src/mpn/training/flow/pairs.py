"""Frames with true flow, in the layouts they are published in.

FlyingChairs (A. Dosovitskiy et al., "FlowNet", ICCV 2015): ``data/NNNNN_img1.ppm``,
``_img2.ppm``, ``_flow.flo``. MPI Sintel (D. J. Butler et al., ECCV 2012): ``training/final/SCENE/
frame_NNNN.png`` with ``training/flow/SCENE/frame_NNNN.flo``. And pairs side by side in one folder:
``NAME-img0.png``, ``NAME-img1.png``, ``NAME-gt.flo``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from mpn.errors import TrainingError
from mpn.training.data import StillPair, cached_rgb
from mpn.training.flow.recipe import FlowTrainingOptions
from mpn.training.flow.synthetic import FlowSample, SyntheticPairs
from mpn.training.propagation.augment import ColourShift
from mpn.types import Float32Array, UInt8Array

_MAGIC = 202021.25
"""First float of a .flo file: "PIEH" in ASCII."""
_LARGEST_SIDE_PX = 20_000
_CHAIRS_SPLIT = "FlyingChairs_train_val.txt"
_SINTEL_PASSES = ("clean", "final")


@dataclass(frozen=True)
class FlowPair:
    """Two frames and the flow from the first to the second."""

    image0_path: Path
    image1_path: Path
    flow_path: Path

    def frames(self) -> tuple[UInt8Array, UInt8Array]:
        """Both frames, (H, W, 3) uint8 RGB."""
        return cached_rgb(self.image0_path), cached_rgb(self.image1_path)

    def flow_px(self) -> Float32Array:
        """(2, H, W) float32, (x, y) in pixels; NaN where unknown."""
        return read_flo(self.flow_path)


@dataclass(frozen=True)
class FlowPairs:
    """Pairs to train on, and pairs that only validate."""

    train: tuple[FlowPair, ...]
    held_out: tuple[FlowPair, ...]


def read_flo(path: Path) -> Float32Array:
    """A Middlebury .flo file: (2, H, W) float32, (x, y) in pixels; NaN where marked unknown.

    Raises:
        TrainingError: If it is no .flo file or is cut short.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TrainingError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(content) < 12 or np.frombuffer(content, "<f4", 1)[0] != np.float32(_MAGIC):
        raise TrainingError(f"{path} is no .flo file: it does not begin with 202021.25")
    width, height = map(int, np.frombuffer(content, "<i4", 2, offset=4))
    if not (0 < width <= _LARGEST_SIDE_PX and 0 < height <= _LARGEST_SIDE_PX):
        raise TrainingError(f"{path} says it is {width}x{height}: it is damaged")
    wanted = 12 + 8 * width * height
    if len(content) != wanted:
        raise TrainingError(
            f"{path} has {len(content)} bytes where {width}x{height} needs {wanted}: it is cut "
            "short or damaged"
        )
    values = np.frombuffer(content, "<f4", 2 * width * height, offset=12)
    flow_px: Float32Array = np.ascontiguousarray(
        values.reshape(height, width, 2).transpose(2, 0, 1), dtype=np.float32
    )
    flow_px[:, (np.abs(flow_px) > 1e9).any(axis=0)] = np.nan
    return flow_px


def load_flow_pairs(root: Path, held_out: int) -> FlowPairs:
    """The pairs of a folder, split.

    Args:
        root: The folder as it is unpacked.
        held_out: Pairs that only validate: the last ones by name, whole scenes for Sintel, unless
            FlyingChairs' own list ``FlyingChairs_train_val.txt`` lies in the folder.

    Raises:
        TrainingError: If the folder is of no known layout, files lack their partners, or nothing
            would be left to train on.
    """
    chairs = root / "data" if (root / "data").is_dir() else root
    if any(chairs.glob("*_flow.flo")):
        pairs = _beside(chairs, "_flow.flo", ("_img1.ppm", "_img2.ppm"))
        listed = root / _CHAIRS_SPLIT
        if listed.is_file():
            return _by_list(pairs, listed)
    elif any(root.glob("*-gt.flo")):
        pairs = _beside(root, "-gt.flo", ("-img0.png", "-img1.png"))
    elif (root / "training" / "flow").is_dir():
        return _sintel(root / "training", held_out)
    else:
        raise TrainingError(
            f"{root} holds no frames with true flow: expected data/NNNNN_img1.ppm, _img2.ppm and "
            "_flow.flo (FlyingChairs), training/flow/SCENE/frame_NNNN.flo (Sintel), or "
            "NAME-img0.png, -img1.png and -gt.flo"
        )
    if held_out >= len(pairs):
        raise TrainingError(
            f"{root} has {len(pairs)} pairs, of which {held_out} are to be held out: none is left "
            "to train on; hold out fewer (--set training.holdout_pairs=N)"
        )
    cut = len(pairs) - held_out
    return FlowPairs(tuple(pairs[:cut]), tuple(pairs[cut:]))


def _beside(folder: Path, ending: str, images: tuple[str, str]) -> list[FlowPair]:
    pairs = []
    for flow in sorted(folder.glob(f"*{ending}")):
        stem = flow.name.removesuffix(ending)
        pairs.append(
            _checked(FlowPair(folder / (stem + images[0]), folder / (stem + images[1]), flow))
        )
    return pairs


def _checked(pair: FlowPair) -> FlowPair:
    for path in (pair.image0_path, pair.image1_path):
        if not path.is_file():
            raise TrainingError(f"{pair.flow_path} lacks its frame {path.name}: unpack it again")
    return pair


def _by_list(pairs: list[FlowPair], listed: Path) -> FlowPairs:
    """FlyingChairs' list: a line a pair, 1 to train on and 2 to validate with."""
    marks = listed.read_text().split()
    if len(marks) != len(pairs) or set(marks) - {"1", "2"}:
        raise TrainingError(
            f"{listed} has {len(marks)} lines of 1 or 2 where there are {len(pairs)} pairs: take "
            "the list that belongs to the folder"
        )
    marked = list(zip(pairs, marks, strict=True))
    train, held_out = (tuple(p for p, m in marked if m == mark) for mark in "12")
    return FlowPairs(train, held_out)


def _sintel(training: Path, held_out: int) -> FlowPairs:
    passes = [name for name in _SINTEL_PASSES if (training / name).is_dir()]
    if not passes:
        raise TrainingError(f"{training} has flow/ but neither clean/ nor final/: unpack it again")
    scenes = sorted(path for path in (training / "flow").iterdir() if path.is_dir())
    train: list[FlowPair] = []
    kept: list[FlowPair] = []
    for scene in reversed(scenes):
        pairs = [
            _checked(
                FlowPair(
                    training / name / scene.name / f"frame_{number:04d}.png",
                    training / name / scene.name / f"frame_{number + 1:04d}.png",
                    flow,
                )
            )
            for flow in sorted(scene.glob("frame_*.flo"))
            for number in [int(flow.stem.removeprefix("frame_"))]
            for name in passes
        ]
        (kept if len(kept) < held_out else train).extend(pairs)
    if not train:
        raise TrainingError(
            f"{training}: with {held_out} pairs held out no scene is left to train on"
        )
    return FlowPairs(tuple(train), tuple(kept))


_NOISE_LEVELS = 5.0


@dataclass(frozen=True)
class FlowCropOptions:
    """How crops are cut and disturbed.

    Attributes:
        zoom_min: Smallest scale of the frames.
        zoom_max: Largest; the crop always fits into the frames.
        rotation_deg: Largest turn, either way.
        recolour: Share of pairs with other colours, nearly the same for both frames.
        noise: Share of pairs with noise.
    """

    zoom_min: float = 0.9
    zoom_max: float = 1.6
    rotation_deg: float = 10.0
    recolour: float = 0.8
    noise: float = 0.4


def crop_pair(
    frames: tuple[UInt8Array, UInt8Array],
    flow_px: Float32Array,
    size_hw: tuple[int, int],
    options: FlowCropOptions,
    rng: np.random.Generator,
) -> FlowSample:
    """One crop, scaled, turned and mirrored at random.

    Args:
        frames: (H, W, 3) uint8 RGB each.
        flow_px: (2, H, W) float32 from the first to the second, NaN where unknown.
        size_hw: Size of the crop.
        options: Extent of the changes.
        rng: Source of randomness.

    Returns:
        Frames and flow of the crop; unknown flow, and flow from outside the frame, is not valid.
    """
    height, width = size_hw
    full_h, full_w = flow_px.shape[1:]
    fits = max(height / full_h, width / full_w)
    zoom = max(fits, math.exp(rng.uniform(math.log(options.zoom_min), math.log(options.zoom_max))))
    angle = math.radians(rng.uniform(-options.rotation_deg, options.rotation_deg))
    mirror = -1.0 if rng.random() < 0.5 else 1.0
    cos, sin = math.cos(angle) * zoom, math.sin(angle) * zoom
    linear = np.array([[mirror * cos, -sin], [mirror * sin, cos]])
    half = np.array([width, height]) / (2 * zoom)
    extent = np.array([full_w, full_h], np.float64)
    centre = rng.uniform(np.minimum(half, extent / 2), np.maximum(extent - half, extent / 2))
    # cv2 counts from the centre of the first pixel, the centre of the crop from its edge.
    offset = np.array([width - 1, height - 1]) / 2 - linear @ (centre - 0.5)
    matrix = np.hstack([linear, offset[:, None]])
    size = (width, height)
    known = np.isfinite(flow_px).all(axis=0)
    planes = [
        cv2.warpAffine(
            frame, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
        )
        for frame in frames
    ]
    moved = np.stack(
        [
            cv2.warpAffine(np.where(known, axis, 0), matrix, size, flags=cv2.INTER_LINEAR)
            for axis in flow_px
        ]
    )
    # A pixel is known where all it is interpolated from is.
    share = cv2.warpAffine(known.astype(np.float32), matrix, size, flags=cv2.INTER_LINEAR)
    turned = np.tensordot(linear, moved, axes=1).astype(np.float32)
    out = np.stack(planes).transpose(0, 3, 1, 2).astype(np.float32)
    return FlowSample(out, np.ascontiguousarray(turned), share > 0.999)


def recoloured(
    sample: FlowSample, options: FlowCropOptions, rng: np.random.Generator
) -> FlowSample:
    """A pair with other colours and noise; its flow stays.

    Args:
        sample: Not changed.
        options: How often.
        rng: Source of randomness.
    """
    frames = sample.frames
    if rng.random() < options.recolour:
        shift = ColourShift(rng)
        frames = np.stack([shift(np.ascontiguousarray(frame)) for frame in frames])
        # Exposure and white balance are never quite the same in the next frame.
        frames[1] = np.clip(frames[1] * rng.uniform(0.97, 1.03, (3, 1, 1)), 0, 255)
    if rng.random() < options.noise:
        sigma = rng.uniform(0, _NOISE_LEVELS)
        frames = np.clip(frames + rng.normal(0, sigma, frames.shape), 0, 255)
    return FlowSample(np.ascontiguousarray(frames, dtype=np.float32), sample.flow_px, sample.valid)


class FlowSamples:
    """Synthetic pairs and crops of true ones, each a pure function of (step, index).

    Args:
        stills: Pictures for synthetic pairs; may be none where there are true pairs.
        pairs: Pairs with true flow; may be none where there are pictures.
        options: See :class:`FlowTrainingOptions`.

    Raises:
        TrainingError: If there is neither.
    """

    def __init__(
        self, stills: Sequence[StillPair], pairs: Sequence[FlowPair], options: FlowTrainingOptions
    ) -> None:
        if not stills and not pairs:
            raise TrainingError(
                "flow is learned from still images set in motion (--stills), from frames with true "
                "flow (--flow-pairs), or from both: name at least one folder"
            )
        self._pairs, self._options = pairs, options
        self._synthetic = (
            SyntheticPairs(stills, options.size_hw, options.synthetic, options.seed)
            if stills
            else None
        )

    def sample(self, step: int, index: int) -> FlowSample:
        """Sample ``index`` of the batch of ``step``."""
        options = self._options
        rng = np.random.default_rng([options.seed, step, index, 1])
        if self._synthetic is None or (self._pairs and rng.random() < options.true_share):
            pair = self._pairs[int(rng.integers(len(self._pairs)))]
            cropped = crop_pair(pair.frames(), pair.flow_px(), options.size_hw, options.crop, rng)
        else:
            cropped = self._synthetic.pair(step, index)
        return recoloured(cropped, options.crop, rng)


def joined(samples: Sequence[FlowSample]) -> tuple[Tensor, Tensor, Tensor]:
    """Samples as a batch.

    Returns:
        Frames (B, 2, 3, H, W) float32 RGB in 0..255, flow (B, 2, H, W) float32 in pixels, valid
        (B, H, W) bool.
    """
    return (
        torch.from_numpy(np.stack([s.frames for s in samples])),
        torch.from_numpy(np.stack([s.flow_px for s in samples])),
        torch.from_numpy(np.stack([s.valid for s in samples])),
    )
