"""One step of training after the other: rollouts, network, optimiser, averaged weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mpn.engines.manifest import PropagationPreprocessing
from mpn.errors import TrainingError
from mpn.networks.deeplab_xception import DeepLabXception
from mpn.training.clips import Material
from mpn.training.losses import segmentation_loss
from mpn.training.options import PropagationTrainingOptions, TrainingReport
from mpn.training.rollout import Rollout, Sample
from mpn.types import Float32Array

PROPAGATION = PropagationPreprocessing()
"""Mean and std of the input, as an engine directory's manifest has them by default."""

_STATE_SCHEMA = 1


class Trainer:
    """Model, optimiser and rollouts: everything that changes from step to step."""

    def __init__(
        self, model: nn.Module, material: Material, options: PropagationTrainingOptions
    ) -> None:
        self.model, self.options, self.step = model, options, 0
        matrices = [p for p in model.parameters() if p.ndim >= 2]
        vectors = [p for p in model.parameters() if p.ndim < 2]
        self.optimiser = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": options.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=options.learning_rate,
        )
        self.averaged = {k: v.detach().clone() for k, v in model.state_dict().items()}
        # Two groups take turns: while the network trains on one, the other one's next frames are
        # prepared, although each group needs the network's answer to its last step first.
        self.groups = [
            [
                Rollout(material, options.mix, options.rollout, seed=options.seed * 1000 + k)
                for k in range(group, 2 * options.batch, 2)
            ]
            for group in range(2)
        ]
        self._prepared: list[Future[_Prepared] | None] = [None, None]
        self._sums = np.zeros(4)

    def train_step(self, pool: ThreadPoolExecutor) -> None:
        """One batch: forward, backward, update, and the answers handed back to its rollouts."""
        options = self.options
        for group in range(2):
            if self._prepared[group] is None:
                self._prepared[group] = pool.submit(_prepare, self.groups[group], None, None)
        turn = self.step % 2
        inputs, target = batch_from_samples(self._wait(turn).samples)
        self.model.train()
        for parameters in self.optimiser.param_groups:
            parameters["lr"] = self.learning_rate()
        with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bfloat16"):
            logits = self.model(inputs)
        loss = segmentation_loss(logits, target, dice_weight=options.dice_weight)
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss is {float(loss.detach())} at step {self.step}: the state before it is "
                "kept in last.pth; resume with a lower learning rate"
            )
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        prob = logits.detach().float().softmax(dim=1)[:, 1]
        horizon = 1 + int(
            (options.rollout.max_steps - 1) * min(1.0, self.step / max(1, options.curriculum_steps))
        )
        self._prepared[turn] = pool.submit(_prepare, self.groups[turn], prob.numpy(), horizon)
        nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
        self.optimiser.step()
        self.step += 1
        self._average()
        self._sums += (
            1,
            float(loss.detach()),
            float(_thresholded_iou(prob, target).mean()),
            float(_thresholded_iou(inputs[:, 3], target).mean()),
        )

    def _wait(self, group: int) -> _Prepared:
        future = self._prepared[group]
        if future is None:
            raise RuntimeError("nothing is being prepared")
        return future.result()

    def learning_rate(self) -> float:
        """Warm-up, plateau, cosine decay to zero."""
        options = self.options
        rise = min(1.0, (self.step + 1) / max(1, options.warmup_steps))
        into_decay = self.step - (options.steps - options.decay_steps)
        fall = 1.0
        if into_decay > 0:
            fall = 0.5 * (
                1 + math.cos(math.pi * min(1.0, into_decay / max(1, options.decay_steps)))
            )
        return float(options.learning_rate * rise * fall)

    def _average(self) -> None:
        # A young average would be dominated by the random start.
        decay = min(self.options.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            pairs = [(self.averaged[k], v) for k, v in self.model.state_dict().items()]
            floats = [pair for pair in pairs if pair[1].is_floating_point()]
            torch._foreach_lerp_([a for a, _ in floats], [v for _, v in floats], 1 - decay)
            for average, value in pairs:
                if not value.is_floating_point():
                    average.copy_(value)

    def averaged_model(self) -> DeepLabXception:
        """A copy of the network with the averaged weights, in eval mode."""
        model = DeepLabXception(self.options.network)
        model.load_state_dict(self.averaged)
        return model.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload,no-any-return]

    def take_report(self, validation_j: float | None) -> TrainingReport:
        """The means since the last report."""
        count, loss, crop_iou, input_iou = map(float, self._sums)
        self._sums = np.zeros(4)
        count = max(count, 1.0)
        return TrainingReport(
            self.step,
            self.options.steps,
            loss / count,
            crop_iou / count,
            input_iou / count,
            self.learning_rate(),
            validation_j,
        )

    def state(self) -> dict[str, Any]:
        """Primitives and tensors only, so that it loads with ``weights_only=True``."""
        return {
            "schema": _STATE_SCHEMA,
            "network": asdict(self.options.network),
            "step": self.step,
            "model": self.model.state_dict(),
            "averaged": self.averaged,
            "optimiser": self.optimiser.state_dict(),
            "torch_rng": torch.get_rng_state(),
            "groups": [
                [_mapped(s, np.ndarray, torch.from_numpy) for s in self._wait(group).before]
                for group in range(2)
            ],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state`.

        Raises:
            TrainingError: If the state belongs to another network or batch.
        """
        if state.get("schema") != _STATE_SCHEMA or state["network"] != asdict(self.options.network):
            raise TrainingError(
                f"the run to resume has network {state.get('network')}, "
                f"asked for {asdict(self.options.network)}"
            )
        self.step = int(state["step"])
        self.model.load_state_dict(state["model"])
        self.averaged = {k: v.clone() for k, v in state["averaged"].items()}
        self.optimiser.load_state_dict(state["optimiser"])
        torch.set_rng_state(state["torch_rng"])
        for rollouts, saved in zip(self.groups, state["groups"], strict=True):
            for rollout, entry in zip(rollouts, saved, strict=True):
                rollout.restore(_mapped(entry, Tensor, Tensor.numpy))


def _mapped(
    entries: Mapping[str, Any], kind: type, convert: Callable[[Any], Any]
) -> dict[str, Any]:
    """The entries with every value of a kind converted."""
    return {k: convert(v) if isinstance(v, kind) else v for k, v in entries.items()}


@dataclass(frozen=True)
class _Prepared:
    """The next batch of a group, and the state of its rollouts before it was observed."""

    before: list[dict[str, Any]]
    samples: list[Sample]


def _prepare(
    rollouts: Sequence[Rollout], answers: Float32Array | None, horizon: int | None
) -> _Prepared:
    if answers is not None:
        for rollout, answer in zip(rollouts, answers, strict=True):
            rollout.absorb(answer)
    if horizon is not None:
        for rollout in rollouts:
            rollout.set_max_steps(horizon)
    before = [rollout.state() for rollout in rollouts]
    return _Prepared(before, [rollout.observe() for rollout in rollouts])


def batch_from_samples(samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """Normalised (B, 4, S, S) inputs in channels_last and (B, S, S) targets, both float32."""
    mean, std = PROPAGATION.mean_rgb, PROPAGATION.std_rgb
    rgb = torch.from_numpy(np.stack([s.rgb for s in samples])).div_(255)
    rgb = (rgb - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    prob = torch.from_numpy(np.stack([s.prob for s in samples]))
    inputs = torch.cat([rgb, prob[:, None]], dim=1).contiguous(memory_format=torch.channels_last)
    return inputs, torch.from_numpy(np.stack([s.target for s in samples]))


def _thresholded_iou(prob: Tensor, target: Tensor) -> Tensor:
    """IoU of the thresholded maps, (B, S, S) each -> (B,)."""
    a, b = prob > 0.5, target > 0.5
    union = (a | b).sum(dim=(1, 2))
    return torch.where(union > 0, (a & b).sum(dim=(1, 2)) / union.clamp(min=1), 1.0)
