"""One step of OSVOS's offline training after the other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mpn.errors import TrainingError
from mpn.networks.osvos_vgg import OsvosVgg
from mpn.training.balanced_loss import class_balanced_loss
from mpn.training.osvos_norm import folded_weights, has_batch_norm
from mpn.training.osvos_options import OsvosStage, OsvosTrainingOptions, OsvosTrainingReport
from mpn.training.osvos_samples import CropSource

_STATE_SCHEMA = 1
_PREPARED_AHEAD = 3
_END_OF_SALIENT = 0.1
"""Share of the peak rate that stage 1 ends with: stage 2 goes on from it."""


class OsvosTrainer:
    """Network, optimiser and averaged weights: everything that changes from step to step.

    Args:
        network: Plain, or of :func:`mpn.training.osvos_norm.normalised_network`.
        sources: Crops of each stage that has steps.
        options: See :class:`OsvosTrainingOptions`.
    """

    def __init__(
        self,
        network: OsvosVgg,
        sources: Mapping[OsvosStage, CropSource],
        options: OsvosTrainingOptions,
    ) -> None:
        self.network, self.options, self.step = network, options, 0
        self._sources = sources
        trained = [p for p in network.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(
            [
                {
                    "params": [p for p in trained if p.ndim >= 2],
                    "weight_decay": options.weight_decay,
                },
                {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
            ]
        )
        self.averaged = {k: v.detach().clone() for k, v in network.state_dict().items()}
        self._prepared: dict[int, Future[tuple[Tensor, Tensor]]] = {}
        self._sums = np.zeros(3)

    def train_step(self, pool: ThreadPoolExecutor) -> None:
        """One batch: forward, backward, update, average.

        Raises:
            TrainingError: If the loss is not finite.
        """
        options = self.options
        images, masks = self._batch(pool)
        self.network.train()
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate()
        with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bfloat16"):
            logits = self.network(images)
        losses = [class_balanced_loss(each, masks) for each in logits]
        weighted = zip(self.loss_weights(), losses, strict=True)
        loss = torch.stack([weight * each for weight, each in weighted if weight > 0]).sum()
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss is {float(loss.detach())} at step {self.step}: the last state saved is "
                "kept in last.pth; resume with a lower learning rate"
            )
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), options.clip_norm)
        self.optimiser.step()
        self.step += 1
        self._average()
        answer, truth = logits[-1].detach() > 0, masks > 0.5
        union = (answer | truth).sum(dim=(1, 2, 3))
        overlap = (answer & truth).sum(dim=(1, 2, 3))
        iou = torch.where(union > 0, overlap / union.clamp(min=1), 1.0)
        self._sums += (1, float(losses[-1].detach()), float(iou.mean()))

    def _batch(self, pool: ThreadPoolExecutor) -> tuple[Tensor, Tensor]:
        last = min(self.step + _PREPARED_AHEAD, self.options.steps)
        for number in range(self.step, last):
            if number not in self._prepared:
                stage, _, _ = self.options.stage_at(number)
                self._prepared[number] = pool.submit(self._sources[stage].batch, number)
        return self._prepared.pop(self.step).result()

    def learning_rate(self) -> float:
        """Warm-up and cosine, once a stage."""
        options = self.options
        stage, done, steps = options.stage_at(self.step)
        peak = options.salient_rate if stage == "salient" else options.davis_rate
        last = _END_OF_SALIENT if stage == "salient" else 0.0
        rise = min(1.0, (done + 1) / max(1, options.warmup_steps))
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done / max(1, steps))))
        return peak * rise * (last + (1 - last) * cosine)

    def loss_weights(self) -> tuple[float, ...]:
        """Of the side branches, which fade over each stage, and of the fused output."""
        _, done, steps = self.options.stage_at(self.step)
        *sides, fused = self.options.side_weights
        return (*(weight * (1 - done / steps) for weight in sides), fused)

    def _average(self) -> None:
        # A young average would be dominated by the random start.
        decay = min(self.options.ema_decay, (1 + self.step) / (10 + self.step))
        current = self.network.state_dict()
        pairs = [(average, current[key]) for key, average in self.averaged.items()]
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        with torch.no_grad():
            torch._foreach_lerp_([a for a, _ in floats], [v for _, v in floats], 1 - decay)
            for average, value in pairs:
                if not value.is_floating_point():
                    average.copy_(value)

    def plain_weights(self) -> dict[str, Tensor]:
        """The averaged weights for :class:`OsvosVgg`, batch normalisation folded away."""
        return folded_weights(self.network, self.averaged)

    def plain_network(self) -> OsvosVgg:
        """A network with :meth:`plain_weights`."""
        network = OsvosVgg(self.options.network)
        network.load_state_dict(self.plain_weights())
        return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]

    def take_report(self, validation_j: float | None) -> OsvosTrainingReport:
        """The means since the last report."""
        count, loss, crop_iou = map(float, self._sums)
        self._sums = np.zeros(3)
        last_step = max(0, self.step - 1)
        return OsvosTrainingReport(
            step=self.step,
            steps=self.options.steps,
            stage=self.options.stage_at(last_step)[0],
            loss=loss / max(count, 1.0),
            crop_iou=crop_iou / max(count, 1.0),
            learning_rate=float(self.optimiser.param_groups[0]["lr"]),
            validation_j=validation_j,
        )

    def state(self) -> dict[str, Any]:
        """Primitives and tensors only, so that it loads with ``weights_only=True``."""
        return {
            "schema": _STATE_SCHEMA,
            "network": asdict(self.options.network),
            "normalised": has_batch_norm(self.network),
            "step": self.step,
            "model": self.network.state_dict(),
            "averaged": self.averaged,
            "optimiser": self.optimiser.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state`.

        Raises:
            TrainingError: If the state belongs to another network.
        """
        if state.get("schema") != _STATE_SCHEMA or state["network"] != asdict(self.options.network):
            raise TrainingError(
                f"the run to resume has network {state.get('network')}, "
                f"asked for {asdict(self.options.network)}"
            )
        self.step = int(state["step"])
        self.network.load_state_dict(state["model"])
        self.averaged = {k: v.clone() for k, v in state["averaged"].items()}
        self.optimiser.load_state_dict(state["optimiser"])
