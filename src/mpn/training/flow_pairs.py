"""Frames with true flow, in the layouts they are published in.

FlyingChairs (A. Dosovitskiy et al., "FlowNet", ICCV 2015): ``data/NNNNN_img1.ppm``,
``_img2.ppm``, ``_flow.flo``. MPI Sintel (D. J. Butler et al., ECCV 2012): ``training/final/SCENE/
frame_NNNN.png`` with ``training/flow/SCENE/frame_NNNN.flo``. And pairs side by side in one folder:
``NAME-img0.png``, ``NAME-img1.png``, ``NAME-gt.flo``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpn.errors import TrainingError
from mpn.training.datasets import cached_rgb
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
