"""What ``compare_torch.py`` tells of its sides: times, their ratios, and whether they agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from compare_sides import SideFrame
from mpn.evaluation import region_similarity
from mpn.runtime.bench.result import summary_ms

NETWORK_STAGES = ("flow", "osvos", "propagation")
CRF_STAGE = "crf"


@dataclass
class Times:
    """The times of one side.

    Attributes:
        frames_s: Seconds of each frame.
        stages_s: Seconds of each frame by stage.
    """

    frames_s: list[float] = field(default_factory=list)
    stages_s: dict[str, list[float]] = field(default_factory=dict)

    def add(self, frame: SideFrame) -> None:
        """Note one frame."""
        self.frames_s.append(frame.seconds)
        for stage, seconds in frame.stages_s.items():
            self.stages_s.setdefault(stage, []).append(seconds)

    def as_json(self) -> dict[str, Any]:
        """Summaries, and the share of the frame that is neither a network nor the CRF."""
        outside_s = np.zeros(len(self.frames_s))
        counted_s = np.zeros(len(self.frames_s))
        for stage, values in self.stages_s.items():
            counted_s += 0 if stage == CRF_STAGE else np.array(values)
            outside_s += 0 if stage in (*NETWORK_STAGES, CRF_STAGE) else np.array(values)
        return {
            "frame": summary_ms(self.frames_s),
            "stages": {stage: summary_ms(values) for stage, values in self.stages_s.items()},
            "outside_networks_share": round(float(outside_s.sum() / counted_s.sum()), 5),
        }


def ratios(ours: Times, other: Times) -> dict[str, Any]:
    """How many times faster ours is: the whole frame, and every stage that both have."""
    shared = [stage for stage in ours.stages_s if stage in other.stages_s]
    return {
        "frame": ratio(ours.frames_s, other.frames_s),
        "stages": {stage: ratio(ours.stages_s[stage], other.stages_s[stage]) for stage in shared},
    }


def ratio(ours_s: Sequence[float], other_s: Sequence[float]) -> dict[str, float]:
    """The other side's seconds over ours, of minima and of medians."""
    return {
        "of_minima": round(min(other_s) / min(ours_s), 3),
        "of_medians": round(float(np.median(other_s) / np.median(ours_s)), 3),
    }


class Agreement:
    """How far two sides are from each other over all frames, warm-up included.

    Args:
        object_ids: The ids to compare.
    """

    def __init__(self, object_ids: Sequence[int]) -> None:
        self._object_ids = object_ids
        self._iou: list[list[float]] = []
        self._prob: list[tuple[float, float]] = []
        self._flow_px: list[tuple[float, float, float]] = []
        self._share: list[float] = []

    @property
    def iou_min(self) -> float:
        """The worst of all frames and objects."""
        return float(np.min(self._iou))

    def add(self, ours: SideFrame, other: SideFrame) -> None:
        """Compare one frame."""
        pairs = [(ours.labels == k, other.labels == k) for k in self._object_ids]
        self._iou.append([region_similarity(*pair) for pair in pairs])
        self._share.append(float(np.mean(other.labels > 0)))
        difference = np.abs(ours.probs - other.probs)
        self._prob.append((float(difference.mean()), float(difference.max())))
        if ours.flow_px is not None and other.flow_px is not None:
            epe_px = np.hypot(*(ours.flow_px - other.flow_px))
            length_px = np.hypot(*other.flow_px)
            self._flow_px.append(
                (float(epe_px.mean()), float(epe_px.max()), float(length_px.max()))
            )

    def as_json(self) -> dict[str, Any]:
        """IoU of the masks of each object, and differences of the probabilities and the flow.

        Probabilities are those after CRF, if there is one: a few pixels that it decides otherwise
        differ by 1 then.
        """
        iou = np.array(self._iou)
        prob_mean, prob_max = np.array(self._prob).T
        found: dict[str, Any] = {
            "frames": len(iou),
            "mask_iou": {"min": round(self.iou_min, 6), "mean": round(float(iou.mean()), 6)},
            "mask_iou_of_objects": {
                str(k): {
                    "min": round(float(column.min()), 6),
                    "mean": round(float(column.mean()), 6),
                }
                for k, column in zip(self._object_ids, iou.T, strict=True)
            },
            "mask_iou_of_frames": [[round(float(v), 6) for v in row] for row in iou],
            "foreground_share": round(float(np.mean(self._share)), 5),
            "prob": {
                "mean_difference": float(prob_mean.max()),
                "max_difference": float(prob_max.max()),
            },
        }
        if self._flow_px:
            mean_px, max_px, length_px = np.array(self._flow_px).T
            found["flow"] = {
                "mean_difference_px": float(mean_px.max()),
                "max_difference_px": float(max_px.max()),
                "longest_px": float(length_px.max()),
            }
        return found
