"""Plan a run: which pass computes each frame, and from which masks.

Each mask has a direction. The *forward pass* starts at the earliest mask with a forward direction,
and each later one corrects it. A *backward pass* starts from a mask with a backward direction and
ends before the mask before it, or at the first frame of the run. If both reach a frame, their
results are blended. A frame that none reaches has no objects. The frame of a mask has its labels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

Direction = Literal["both", "forward", "backward"]
"""Direction in which a mask is propagated."""

DIRECTIONS: tuple[Direction, ...] = get_args(Direction)


@dataclass(frozen=True)
class GivenMask:
    """A mask of the user, without its pixels.

    Attributes:
        sha256: Digest of the labels.
        object_ids: Ids in the labels, ascending.
        direction: See :data:`Direction`.
    """

    sha256: str
    object_ids: tuple[int, ...]
    direction: Direction = "both"

    @property
    def is_forward(self) -> bool:
        """Whether it is propagated forward."""
        return self.direction != "backward"

    @property
    def is_backward(self) -> bool:
        """Whether it is propagated backward."""
        return self.direction != "forward"


@dataclass(frozen=True)
class BackwardPass:
    """Frames that are computed backward from one mask.

    Attributes:
        source: Frame of the mask.
        first: Earliest frame; the pass computes ``source - 1`` to ``first``.
        object_ids: Objects of the mask that these frames get.
        anchor: Frame of the mask before, whose forward results are blended with this pass; None:
            the frames have no forward results.
    """

    source: int
    first: int
    object_ids: tuple[int, ...]
    anchor: int | None

    @property
    def frames(self) -> range:
        """The computed frames, ascending."""
        return range(self.first, self.source)

    def progress_at(self, index: int) -> float:
        """Return the place of a frame between anchor (0) and source (1)."""
        if self.anchor is None:
            return 1.0
        return (index - self.anchor) / (self.source - self.anchor)


@dataclass(frozen=True)
class Schedule:
    """Passes of a run; a pure function of its first frame and its masks.

    Attributes:
        first: Index of the first frame.
        masks: Frame index -> mask; none is before ``first``.
    """

    first: int
    masks: Mapping[int, GivenMask]

    @cached_property
    def mask_frames(self) -> tuple[int, ...]:
        """Frames with a mask, ascending."""
        return tuple(sorted(self.masks))

    @cached_property
    def forward_frames(self) -> tuple[int, ...]:
        """Frames of the masks of the forward pass, ascending; it starts at the first one."""
        return tuple(index for index in self.mask_frames if self.masks[index].is_forward)

    @cached_property
    def backward_passes(self) -> tuple[BackwardPass, ...]:
        """All backward passes, by frame."""
        passes = []
        known: set[int] = set()
        anchor: int | None = None
        begin = self.first
        for index in self.mask_frames:
            mask = self.masks[index]
            if mask.is_backward and index > begin:
                ids = set(mask.object_ids)
                # An object that no earlier mask has appears at this mask.
                if anchor is not None and mask.direction == "both":
                    ids &= known
                if ids:
                    passes.append(BackwardPass(index, begin, tuple(sorted(ids)), anchor))
            if mask.is_forward:
                known |= set(mask.object_ids)
            if mask.is_forward or anchor is not None:
                anchor = index
            begin = index + 1
        return tuple(passes)

    def is_forward(self, index: int) -> bool:
        """Return whether the forward pass has a result of a frame."""
        return bool(self.forward_frames) and index >= self.forward_frames[0]

    def backward_pass_of(self, index: int) -> BackwardPass | None:
        """Return the backward pass that computes a frame."""
        return next((p for p in self.backward_passes if p.first <= index < p.source), None)

    def passes_for(self, frames: Collection[int]) -> tuple[BackwardPass, ...]:
        """Return the backward passes of some frames, each down to the first of them."""
        needed = []
        for one in self.backward_passes:
            wanted = [index for index in one.frames if index in frames]
            if wanted:
                needed.append(BackwardPass(one.source, wanted[0], one.object_ids, one.anchor))
        return tuple(needed)

    def inputs_of(self, index: int) -> str:
        """Return a digest of the masks that the result of a frame depends on.

        Frames with one digest in two runs of the same video, engines and options are the same.
        """
        forward = [(k, self.masks[k].sha256) for k in self.forward_frames if k <= index]
        given = self.masks.get(index)
        backward = self.backward_pass_of(index)
        parts = [
            forward,
            None if given is None else given.sha256,
            None if backward is None else [
                backward.source,
                self.masks[backward.source].sha256,
                backward.object_ids,
                backward.anchor,
            ],
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:_DIGEST_DIGITS]


_DIGEST_DIGITS = 16
