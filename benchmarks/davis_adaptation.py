"""Fine-tuning in ``davis.py``: weights that several sets of stages share, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from davis_ablations import Ablation
from mpn import Pipeline
from mpn.runtime.finetune.options import options_affecting_weights
from mpn.runtime.options import FinetuneOptions, PipelineOptions


class LearningCosts:
    """Seconds of fine-tuning an object and network, by whichever set of stages learnt it first."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[str, int, str], dict[PipelineOptions, float]] = {}

    def of(self, ablation: Ablation, sequence: str, reports: Sequence[Mapping[str, Any]]) -> float:
        """Seconds that these weights cost, learnt now or kept from another set.

        Args:
            ablation: Who asks. Weights differ with what a network is shown, unless it is shown
                frames alone, as OSVOS is.
            sequence: Name of the sequence.
            reports: From :func:`reports_of`.
        """
        seen = options_affecting_weights(ablation.options)
        total_s = 0.0
        for report in reports:
            known = self._seconds.setdefault((sequence, report["object_id"], report["role"]), {})
            if not report["cached"]:
                known[seen] = report["seconds"]
            # Weights that were there before this run: nobody knows what they cost.
            total_s += known.get(seen, next(reversed(known.values()), 0.0))
        return total_s


def reports_of(pipeline: Pipeline, ablation: Ablation) -> list[dict[str, Any]]:
    """What was learnt for the current sequence; those of earlier ones stand before it."""
    if ablation.adapt is None:
        return []
    return pipeline.finetune_report()[-len(pipeline.object_ids) * len(ablation.adapt.roles) :]


def kept_in(adapt: FinetuneOptions | None, folder: Path) -> FinetuneOptions | None:
    """The same fine-tuning, its weights kept for the other sets of stages."""
    return None if adapt is None else replace(adapt, cache_dir=folder)
