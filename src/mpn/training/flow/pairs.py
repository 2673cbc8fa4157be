"""Published folder layouts of frames with true flow.

FlyingChairs (A. Dosovitskiy et al., "FlowNet", ICCV 2015): ``data/NNNNN_img1.ppm``, ``_img2.ppm``,
``_flow.flo``. MPI Sintel (D. J. Butler et al., ECCV 2012): ``training/final/SCENE/frame_NNNN.png``
with ``training/flow/SCENE/frame_NNNN.flo``. And pairs in one folder: ``NAME-img0.png``,
``NAME-img1.png``, ``NAME-gt.flo``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mpn._common.files import visible_files
from mpn.errors import TrainingError
from mpn.training.data import StillPair, cached_rgb, names_from_list
from mpn.training.flow.crop import crop_pair, recoloured
from mpn.training.flow.options import FlowTrainingOptions
from mpn.training.flow.synthetic import FlowSample, SyntheticPairs
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
        """Load both frames: (H, W, 3) uint8 RGB."""
        return cached_rgb(self.image0_path), cached_rgb(self.image1_path)

    def flow_px(self) -> Float32Array:
        """Load the flow: (2, H, W) float32, (x, y) in pixels; NaN if unknown."""
        return read_flo(self.flow_path)


@dataclass(frozen=True)
class FlowPairs:
    """Pairs for training, and pairs for validation only."""

    train: tuple[FlowPair, ...]
    held_out: tuple[FlowPair, ...]


def read_flo(path: Path) -> Float32Array:
    """Read a Middlebury .flo file: (2, H, W) float32, (x, y) in pixels.

    Pixels marked as unknown are NaN.

    Raises:
        TrainingError: If it is no .flo file or is truncated.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TrainingError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(content) < 12 or np.frombuffer(content, "<f4", 1)[0] != np.float32(_MAGIC):
        raise TrainingError(f"{path} is no .flo file: it does not begin with 202021.25")
    width, height = map(int, np.frombuffer(content, "<i4", 2, offset=4))
    if not (0 < width <= _LARGEST_SIDE_PX and 0 < height <= _LARGEST_SIDE_PX):
        raise TrainingError(f"{path} has a size of {width}x{height}: it is damaged")
    expected = 12 + 8 * width * height
    if len(content) != expected:
        raise TrainingError(
            f"{path} has {len(content)} bytes, but {width}x{height} needs {expected}: it is "
            "truncated or damaged"
        )
    values = np.frombuffer(content, "<f4", 2 * width * height, offset=12)
    flow_px: Float32Array = np.ascontiguousarray(
        values.reshape(height, width, 2).transpose(2, 0, 1), dtype=np.float32
    )
    flow_px[:, (np.abs(flow_px) > 1e9).any(axis=0)] = np.nan
    return flow_px


def load_flow_pairs(root: Path, held_out: int) -> FlowPairs:
    """List the pairs of a folder, split for training and validation.

    Args:
        root: The unpacked folder.
        held_out: Pairs for validation only: the last ones by name, whole scenes for Sintel.
            FlyingChairs' own list ``FlyingChairs_train_val.txt`` takes precedence.

    Raises:
        TrainingError: If the folder has no known layout, a file has no partner, or no pair would be
            left to train on.
    """
    chairs = root / "data" if (root / "data").is_dir() else root
    if visible_files(chairs, "*_flow.flo"):
        pairs = _pairs_in_folder(chairs, "_flow.flo", ("_img1.ppm", "_img2.ppm"))
        listed = root / _CHAIRS_SPLIT
        if listed.is_file():
            return _by_list(pairs, listed)
    elif visible_files(root, "*-gt.flo"):
        pairs = _pairs_in_folder(root, "-gt.flo", ("-img0.png", "-img1.png"))
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


def _pairs_in_folder(folder: Path, ending: str, images: tuple[str, str]) -> list[FlowPair]:
    pairs = []
    for flow in visible_files(folder, f"*{ending}"):
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
    """Split by FlyingChairs' list: one line per pair, 1 to train, 2 to validate."""
    marks = names_from_list(listed)
    if len(marks) != len(pairs) or set(marks) - {"1", "2"}:
        raise TrainingError(
            f"{listed} has {len(marks)} lines of 1 or 2, but there are {len(pairs)} pairs: use "
            "the list of this folder"
        )
    marked = list(zip(pairs, marks, strict=True))
    train, held_out = (tuple(p for p, m in marked if m == mark) for mark in "12")
    return FlowPairs(train, held_out)


def _sintel(training: Path, held_out: int) -> FlowPairs:
    passes = [name for name in _SINTEL_PASSES if (training / name).is_dir()]
    if not passes:
        raise TrainingError(f"{training} has flow/ but neither clean/ nor final/: unpack it again")
    scenes = [path for path in visible_files(training / "flow", "*") if path.is_dir()]
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
            for flow in visible_files(scene, "frame_*.flo")
            for number in [int(flow.stem.removeprefix("frame_"))]
            for name in passes
        ]
        (kept if len(kept) < held_out else train).extend(pairs)
    if not train:
        raise TrainingError(
            f"{training}: with {held_out} pairs held out no scene is left to train on"
        )
    return FlowPairs(tuple(train), tuple(kept))


class FlowSamples:
    """Synthetic pairs and true crops, each a pure function of (step, index).

    Args:
        stills: Images for synthetic pairs; may be empty if there are true pairs.
        pairs: Pairs with true flow; may be empty if there are images.
        options: See :class:`FlowTrainingOptions`.

    Raises:
        TrainingError: If there is neither.
    """

    def __init__(
        self, stills: Sequence[StillPair], pairs: Sequence[FlowPair], options: FlowTrainingOptions
    ) -> None:
        if not stills and not pairs:
            raise TrainingError(
                "flow is trained on still images with synthetic motion (--stills), on frames with "
                "true flow (--flow-pairs), or on both: give at least one folder"
            )
        self._pairs, self._options = pairs, options
        self._synthetic = (
            SyntheticPairs(stills, options.size_hw, options.synthetic, options.seed)
            if stills
            else None
        )

    def sample(self, step: int, index: int) -> FlowSample:
        """Make sample ``index`` of the batch of ``step``."""
        options = self._options
        rng = np.random.default_rng([options.seed, step, index, 1])
        if self._synthetic is None or (self._pairs and rng.random() < options.true_share):
            pair = self._pairs[int(rng.integers(len(self._pairs)))]
            cropped = crop_pair(pair.frames(), pair.flow_px(), options.size_hw, options.crop, rng)
        else:
            cropped = self._synthetic.pair(step, index)
        return recoloured(cropped, options.crop, rng)


def joined(samples: Sequence[FlowSample]) -> tuple[Tensor, Tensor, Tensor]:
    """Stack samples to a batch.

    Returns:
        Frames (B, 2, 3, H, W) float32 RGB in 0..255, flow (B, 2, H, W) float32 in pixels, valid
        (B, H, W) bool.
    """
    return (
        torch.from_numpy(np.stack([s.frames for s in samples])),
        torch.from_numpy(np.stack([s.flow_px for s in samples])),
        torch.from_numpy(np.stack([s.valid for s in samples])),
    )
