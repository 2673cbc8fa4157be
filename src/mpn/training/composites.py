"""Clips with pasted objects, which occlude others or disappear."""

from __future__ import annotations

import cv2
import numpy as np

from mpn.training.clips import Clip, SmoothSignal
from mpn.types import BoolArray, UInt8Array

_FEATHER_SIGMA_PX = 1.0
"""Blur of a pasted object's edge: a hard edge would reveal its outline to the network."""
_VISIBLE_FRAMES = (2, 9)
_ABSENT_FRAMES = 3


class CompositeClip:
    """Object of one clip pasted over another clip, moving independently.

    Args:
        base: Clip below; the pasted object occludes its object.
        over: Clip whose object is cut out and pasted.
        target_over: True makes the pasted object the target, False the base's object.
        seed: Seed of size and path.
    """

    def __init__(self, base: Clip, over: Clip, *, target_over: bool, seed: int) -> None:
        self.base, self.over, self.target_over = base, over, target_over
        rng = np.random.default_rng(seed)
        size_hw = base.frame(0)[1].shape
        mask = over.frame(0)[1]
        area = max(int(mask.sum()), 1)
        target_area = rng.uniform(0.02, 0.12) * size_hw[0] * size_hw[1]
        self.scale = float(np.clip(np.sqrt(target_area / area), 0.3, 2.0))
        ys, xs = np.nonzero(mask)
        self.anchor_xy = (xs.mean(), ys.mean()) if len(xs) else (0.0, 0.0)
        self.centre_xy = rng.uniform(0.2, 0.8, 2) * (size_hw[1], size_hw[0])
        # At 854x480 seldom over 15 px per frame, the limit of the flow estimator.
        self.path_x = SmoothSignal(rng, 0.4 * size_hw[1], fastest=0.06)
        self.path_y = SmoothSignal(rng, 0.3 * size_hw[0], fastest=0.06)
        self.flip = bool(rng.integers(2))

    def __len__(self) -> int:
        return min(len(self.base), len(self.over))

    def frame(self, t: int) -> tuple[UInt8Array, BoolArray]:
        """See :meth:`Clip.frame`."""
        base_rgb, base_mask = self.base.frame(t)
        over_rgb, over_mask = self.over.frame(t)
        height, width = base_mask.shape
        scale_x = -self.scale if self.flip else self.scale
        matrix = np.array(
            [
                [scale_x, 0, self.centre_xy[0] + self.path_x(t) - scale_x * self.anchor_xy[0]],
                [
                    0,
                    self.scale,
                    self.centre_xy[1] + self.path_y(t) - self.scale * self.anchor_xy[1],
                ],
            ]
        )
        rgb = cv2.warpAffine(over_rgb, matrix, (width, height), flags=cv2.INTER_LINEAR)
        mask = cv2.warpAffine(over_mask.astype(np.uint8) * 255, matrix, (width, height))
        alpha = (
            cv2.GaussianBlur(mask, (0, 0), _FEATHER_SIGMA_PX).astype(np.float32)[..., None] / 255
        )
        mixed = np.rint(base_rgb + alpha * (rgb.astype(np.float32) - base_rgb)).astype(np.uint8)
        pasted = mask > 127
        return mixed, (pasted if self.target_over else base_mask & ~pasted)


class VanishingClip(CompositeClip):
    """Composite whose pasted object, the target, disappears after some frames.

    The frames after it show the base clip and its own object. Their target is an empty mask, for
    any warped probability.

    Args:
        base: Clip below.
        over: Clip whose object is cut out, pasted and removed.
        seed: Seed of size, path and time.
    """

    def __init__(self, base: Clip, over: Clip, *, seed: int) -> None:
        super().__init__(base, over, target_over=True, seed=seed)
        self.visible_frames = int(np.random.default_rng([seed, 1]).integers(*_VISIBLE_FRAMES))

    def __len__(self) -> int:
        return min(super().__len__(), self.visible_frames + _ABSENT_FRAMES)

    def frame(self, t: int) -> tuple[UInt8Array, BoolArray]:
        """See :meth:`mpn.training.clips.Clip.frame`."""
        if t < self.visible_frames:
            return super().frame(t)
        rgb, mask = self.base.frame(t)
        return rgb, np.zeros_like(mask)
