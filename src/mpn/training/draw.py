"""Random choice of clips."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mpn._common.validation import check_number
from mpn.errors import TrainingError
from mpn.training.clips import Clip, ClipSources, DavisClip, ShapeClip, StillClip
from mpn.training.composites import CompositeClip, VanishingClip


@dataclass(frozen=True)
class ClipMix:
    """Share of each kind of clip; the shares need not sum to 1.

    In sequences and stills the network can identify the object by its appearance, and then fails on
    unseen objects. A composite has two objects, and only the mask identifies the target.

    Attributes:
        davis: Sequences.
        still: Still images in motion.
        composite: One object pasted over a clip that has its own; either is the target.
        vanishing: Composites whose pasted object, the target, disappears after some frames.
        third_object: Share of the composites with a third object that passes and occludes.
    """

    davis: float = 0.35
    still: float = 0.15
    composite: float = 0.50
    vanishing: float = 0.0
    third_object: float = 0.0

    def __post_init__(self) -> None:
        shares = (self.davis, self.still, self.composite, self.vanishing)
        if min(shares) < 0 or not sum(shares):
            raise TrainingError(
                f"the shares of clips must be at least 0 and not all 0, got davis {self.davis}, "
                f"still {self.still}, composite {self.composite}, vanishing {self.vanishing}"
            )
        check_number("third_object", self.third_object, least=0, most=1, error=TrainingError)


def sample_clip(material: ClipSources, mix: ClipMix, seed: int) -> Clip:
    """Sample a random clip; the same for the same seed and material.

    Raises:
        TrainingError: If a sequence cannot be read.
    """
    rng = np.random.default_rng(seed)
    still = mix.still if material.stills else 0.0
    shares = np.array([mix.davis, still, mix.composite, mix.vanishing])
    kind = rng.choice(len(shares), p=shares / shares.sum())
    if kind == 0:
        return _sample_davis(material, rng)
    if kind == 1:
        return _sample_still(material, rng)
    base = _sample_davis(material, rng) if rng.random() < 0.5 else _sample_still(material, rng)
    over = _sample_pasted(material, rng)
    if kind == 3:
        return VanishingClip(base, over, seed=int(rng.integers(2**31)))
    clip = CompositeClip(
        base, over, target_over=bool(rng.integers(2)), seed=int(rng.integers(2**31))
    )
    if mix.third_object and rng.random() < mix.third_object:
        third = _sample_pasted(material, rng)
        clip = CompositeClip(clip, third, target_over=False, seed=int(rng.integers(2**31)))
    return clip


def _sample_pasted(material: ClipSources, rng: np.random.Generator) -> Clip:
    source = rng.random()
    if source < 0.35:
        return _sample_davis(material, rng)
    return _sample_still(material, rng, StillClip if source < 0.65 else ShapeClip)


def _sample_davis(material: ClipSources, rng: np.random.Generator) -> Clip:
    sequence = material.sequences[rng.integers(len(material.sequences))]
    stride = int(rng.choice([1, 2, 3], p=[0.65, 0.25, 0.1])) * int(rng.choice([-1, 1]))
    length = len(sequence)
    # At least four frames remain after the start in the direction of play.
    ahead = min(4 * abs(stride), length - 1)
    start = int(rng.integers(0, length - ahead)) if stride > 0 else int(rng.integers(ahead, length))
    ids: npt.NDArray[Any] = np.unique(sequence.labels(start))
    ids = ids[ids > 0]
    object_id = int(ids[rng.integers(len(ids))]) if len(ids) else 1
    return DavisClip(sequence, object_id, start, stride)


def _sample_still(
    material: ClipSources, rng: np.random.Generator, kind: type[StillClip] = StillClip
) -> Clip:
    if not material.stills:
        return _sample_davis(material, rng)
    pair = material.stills[rng.integers(len(material.stills))]
    return kind(pair, int(rng.integers(2**31)))
