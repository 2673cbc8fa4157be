"""A clip in which the object vanishes and returns, made of two DAVIS sequences.

The object of one sequence is laid over the frames of another, so that the background goes on while
it is away, and the true masks are known. It moves as in its own sequence, is gone for some frames
(at once, as behind an occluder; or by leaving through the nearer side), and is there again at
another place, mirrored, so that it does not simply continue.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from mpn.masks import load_labels, save_labels
from mpn.types import UInt8Array

_LEAVES_IN = 6
"""Frames in which an object slides out of the picture; in the last of them it is gone."""
_LARGEST_SHARE = 0.4
"""Of the frame's width and height: a larger object is shrunk, so that there is another place."""
_FAR = 0.8
"""Share of the width at which it returns; as far from the other side where it was on this one."""
_ALPHA_SIGMA_PX = 0.8
"""Softness of the outline: a hard one would be found by its edge alone."""

_Box = tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class VanishingClip:
    """How a clip is made.

    Attributes:
        davis_root: DAVIS layout.
        subject: Sequence whose object 1 is taken.
        scene: Sequence that it is laid over; annotated objects of its own may be in it.
        leaves: Whether it leaves through the side; else it is gone at once.
        present: Frames before it goes.
        absent: Frames without a pixel of it.
        after: Frames from its return on.
        resolution: Folder of the data set.
    """

    davis_root: Path
    subject: str
    scene: str
    leaves: bool = False
    present: int = 20
    absent: int = 10
    after: int = 15
    resolution: str = "480p"

    @property
    def name(self) -> str:
        """For files and tables."""
        return f"{self.subject}-over-{self.scene}-{'leaves' if self.leaves else 'hidden'}"

    @property
    def gone_at(self) -> int:
        """First frame without a pixel of the object."""
        return self.present + (_LEAVES_IN - 1 if self.leaves else 0)

    @property
    def returns_at(self) -> int:
        """First frame in which it is back."""
        return self.gone_at + self.absent

    def frames(self) -> Iterator[tuple[UInt8Array, UInt8Array]]:
        """Each frame, (H, W, 3) uint8 RGB, with its (H, W) uint8 labels: the object is 1."""
        scene = self._paths("JPEGImages", self.scene, "jpg")
        pictures = self._paths("JPEGImages", self.subject, "jpg")
        masks = self._paths("Annotations", self.subject, "png")
        first = _box_xyxy(_mask(masks[0]))
        last = first
        for t in range(self.returns_at + self.after):
            # There and back again, where a sequence is shorter than the clip.
            background = _rgb(scene[_bounced(t, len(scene))])
            size_hw = background.shape[:2]
            if self.gone_at <= t < self.returns_at:
                yield background, np.zeros(size_hw, np.uint8)
                continue
            k = _bounced(t - (self.absent if t >= self.returns_at else 0), len(masks))
            mask = _mask(masks[k])
            if t < self.present and mask.any():
                last = _box_xyxy(mask)
            place = self._place(t, first, last, size_hw)
            rgb, mask = (_placed(image, place, size_hw) for image in (_rgb(pictures[k]), mask))
            yield _composed(background, rgb, mask)

    def _place(
        self, t: int, first: _Box, last: _Box, size_hw: tuple[int, ...]
    ) -> npt.NDArray[np.float32]:
        """The affine matrix (2, 3) from a picture of the subject into frame t."""
        height, width = size_hw
        scale = min(
            _LARGEST_SHARE * width / (first[2] - first[0]),
            _LARGEST_SHARE * height / (first[3] - first[1]),
            1.0,
        )
        centre_x, centre_y = (first[0] + first[2]) / 2, (first[1] + first[3]) / 2
        left, right = (scale * (x - centre_x) + centre_x for x in (last[0], last[2]))
        if t >= self.returns_at:  # mirrored, in the half where it was not
            target_x = (_FAR if left + right < width else 1 - _FAR) * width
            return np.array(
                [
                    [-scale, 0, target_x + scale * (last[0] + last[2]) / 2],
                    [0, scale, centre_y * (1 - scale)],
                ],
                np.float32,
            )
        shift_x = 0.0
        if t >= self.present:
            to_right, to_left = width - left, right
            share = (t - self.present + 1) / _LEAVES_IN
            shift_x = share * (to_right if to_right < to_left else -to_left)
        return np.array(
            [
                [scale, 0, centre_x * (1 - scale) + shift_x],
                [0, scale, centre_y * (1 - scale)],
            ],
            np.float32,
        )

    def _paths(self, kind: str, sequence: str, suffix: str) -> list[Path]:
        folder = self.davis_root / kind / self.resolution / sequence
        paths = sorted(folder.glob(f"*.{suffix}"))
        if not paths:
            raise SystemExit(f"{folder} holds no *.{suffix}")
        return paths


def write_clip(clip: VanishingClip, root: Path) -> None:
    """Write a clip as a sequence of a data set in DAVIS layout, for mpn-run and mpn eval."""
    images = root / "JPEGImages" / clip.resolution / clip.name
    annotations = root / "Annotations" / clip.resolution / clip.name
    for folder in (images, annotations):
        folder.mkdir(parents=True, exist_ok=True)
    for t, (rgb, labels) in enumerate(clip.frames()):
        bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
        cv2.imwrite(str(images / f"{t:05d}.jpg"), bgr, [cv2.IMWRITE_JPEG_QUALITY, 95])
        save_labels(annotations / f"{t:05d}.png", labels)
    sets = root / "ImageSets" / "2017"
    sets.mkdir(parents=True, exist_ok=True)
    names = {path.name for path in annotations.parent.iterdir()}
    (sets / "val.txt").write_text("\n".join(sorted(names)) + "\n", encoding="utf-8")


def _rgb(path: Path) -> UInt8Array:
    bgr = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if bgr is None:
        raise SystemExit(f"{path} cannot be read")
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


def _bounced(t: int, length: int) -> int:
    period = 2 * (length - 1)
    return min(t % period, period - t % period)


def _mask(path: Path) -> UInt8Array:
    return (load_labels(path, max_objects=254, allow_empty=True) == 1).astype(np.uint8)


def _box_xyxy(mask: UInt8Array) -> _Box:
    x, y, width, height = cv2.boundingRect(mask)
    return (x, y, x + width, y + height)


def _placed(
    image: UInt8Array, place: npt.NDArray[np.float32], size_hw: tuple[int, ...]
) -> UInt8Array:
    is_mask = image.ndim == 2
    moved = cv2.warpAffine(
        image,
        place,
        (size_hw[1], size_hw[0]),
        flags=cv2.INTER_NEAREST if is_mask else cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT if is_mask else cv2.BORDER_REPLICATE,
    )
    return np.asarray(moved, np.uint8)


def _composed(
    background: UInt8Array, rgb: UInt8Array, mask: UInt8Array
) -> tuple[UInt8Array, UInt8Array]:
    alpha = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), _ALPHA_SIGMA_PX)[..., None]
    composed = rgb * alpha + background * (1 - alpha)
    return np.round(composed).astype(np.uint8), mask
