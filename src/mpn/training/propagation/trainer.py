"""Trainer of the propagation network: rollouts, optimiser, averaged weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mpn.engines.directory.manifest import PropagationPreprocessing
from mpn.errors import TrainingError
from mpn.networks.propagation import PropagationNet, first_layer
from mpn.training.loop import ResumableTrainer
from mpn.training.losses import segmentation_loss
from mpn.training.optimisation import (
    GROUPS_PER_PART,
    AveragedWeights,
    MixedPrecision,
    adamw,
    cosine,
    random_state,
    restore_random_state,
    warmed_up,
)
from mpn.training.processes import Processes
from mpn.training.propagation.clips import ClipSources
from mpn.training.propagation.options import PropagationTrainingOptions, TrainingReport
from mpn.training.propagation.rollout import Rollout, Sample
from mpn.training.propagation.scores import ScoreSource
from mpn.types import Float32Array

PROPAGATION = PropagationPreprocessing()
"""Mean and std of the input, as an engine directory's manifest has them by default."""

_CLIP_NORM = 5.0
_BACKBONE = "backbone."


class Trainer(ResumableTrainer):
    """Model, optimiser and rollouts: everything that changes from step to step.

    Args:
        model: On the device of ``processes``.
        material: Sources that clips are sampled from.
        options: See :class:`PropagationTrainingOptions`.
        processes: Rollouts are numbered over all processes; each process plays its share.
        scores: Source of the fifth input channel; None for a network of four.
    """

    schema = 1
    options: PropagationTrainingOptions

    def __init__(
        self,
        model: nn.Module,
        material: ClipSources,
        options: PropagationTrainingOptions,
        processes: Processes | None = None,
        scores: ScoreSource | None = None,
    ) -> None:
        self.processes = processes = Processes() if processes is None else processes
        self.options, self.step = options, 0
        self.network = processes.synchronised_norm(model)
        self._parallel = processes.parallel(self.network)
        by_share = _parameters_by_rate(self.network, options)
        self.optimiser = adamw(*by_share.values(), weight_decay=options.weight_decay)
        self._rate_shares = [share for share in by_share for _ in range(GROUPS_PER_PART)]
        self.precision = MixedPrecision(options.precision, processes.device)
        self.average = AveragedWeights(self.network, options.ema_decay)
        # Two groups take turns: while the network trains on one group, threads prepare the next
        # frames of the other, because a group needs the network's output of its last step first.
        self.groups = [
            [
                Rollout(material, options.mix, options.rollout, options.seed * 1000 + k, scores)
                for k in processes.share(range(group, 2 * options.batch, 2))
            ]
            for group in range(2)
        ]
        self._prepared: list[_Pending | None] = [None, None]
        self._sums = np.zeros(4)

    @property
    def averaged(self) -> dict[str, Tensor]:
        """The averaged weights, on the CPU."""
        return self.average.on_cpu()

    def train_step(self, pool: ThreadPoolExecutor) -> None:
        """Train on one batch and pass the outputs back to its rollouts.

        Raises:
            TrainingError: If the loss is not finite.
        """
        options = self.options
        for group in range(2):
            if self._prepared[group] is None:
                self._prepared[group] = _Pending(pool, self.groups[group], None, None)
        turn = self.step % 2
        inputs, target = batch_from_samples(self._wait(turn).samples)
        device = self.processes.device
        inputs, target = inputs.to(device, non_blocking=True), target.to(device, non_blocking=True)
        self._set_mode()
        for parameters, share in zip(self.optimiser.param_groups, self._rate_shares, strict=True):
            parameters["lr"] = share * self.learning_rate()
        with self.precision.autocast():
            logits = self._parallel(inputs)
        loss = segmentation_loss(logits, target, dice_weight=options.dice_weight)
        self.check_finite(loss)
        prob = logits.detach().float().softmax(dim=1)[:, 1]
        horizon = 1 + int(
            (options.rollout.max_steps - 1) * min(1.0, self.step / max(1, options.curriculum_steps))
        )
        self._prepared[turn] = _Pending(pool, self.groups[turn], prob.cpu().numpy(), horizon)
        self.precision.step(loss, self.optimiser, self.network.parameters(), _CLIP_NORM)
        self.step += 1
        self.average.update(self.network, self.step)
        self._sums += (
            1,
            float(loss.detach()),
            float(_thresholded_iou(prob, target).mean()),
            float(_thresholded_iou(inputs[:, 3], target).mean()),
        )

    def _set_mode(self) -> None:
        self._parallel.train()
        if not self.options.freeze_norm:
            return
        for name, layer in self.network.named_modules():
            is_frozen = self.options.freeze_norm is True or name.startswith(_BACKBONE)
            if is_frozen and isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.eval()

    def _wait(self, group: int) -> _Prepared:
        pending = self._prepared[group]
        if pending is None:
            raise RuntimeError("nothing is being prepared")
        return pending.result()

    def learning_rate(self) -> float:
        """Compute the rate of this step: warm-up, plateau, cosine decay to zero.

        The backbone has a share of it.
        """
        options = self.options
        into_decay = self.step - (options.steps - options.decay_steps)
        fall = cosine(into_decay, options.decay_steps) if into_decay > 0 else 1.0
        return options.learning_rate * warmed_up(self.step, options.warmup_steps) * fall

    def averaged_model(self) -> PropagationNet:
        """Copy the network with the averaged weights, in eval mode, on the device."""
        model = PropagationNet(self.options.network)
        model.load_state_dict(self.averaged)
        model.to(self.processes.device)
        return model.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload,no-any-return]

    def take_report(self, scores: Mapping[str, float]) -> TrainingReport:
        """Return the means since the last report.

        See :meth:`mpn.training.loop.TrainerProtocol.take_report`.
        """
        count, loss, crop_iou, input_iou = self.processes.mean(self._sums.tolist())
        self._sums = np.zeros(4)
        count = max(count, 1.0)
        return TrainingReport(
            self.step,
            self.options.steps,
            loss / count,
            crop_iou / count,
            input_iou / count,
            self.learning_rate(),
            scores.get("validation_j"),
        )

    def state(self) -> dict[str, Any]:
        """See :meth:`ResumableTrainer.state`."""
        mine = [
            [_mapped(s, np.ndarray, torch.from_numpy) for s in self._wait(group).before]
            for group in range(2)
        ]
        by_rank = self.processes.gathered((mine, random_state(self.processes.device)))
        return {
            **super().state(),
            "random": [random for _, random in by_rank],
            # Numbered as in one process: process r of n plays every n-th rollout.
            "groups": [
                [
                    state
                    for row in zip(*(rows[group] for rows, _ in by_rank), strict=True)
                    for state in row
                ]
                for group in range(2)
            ],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """See :meth:`ResumableTrainer.restore`.

        A state without ``"random"`` is of version 0.1.

        Raises:
            TrainingError: If the state belongs to another network or batch.
        """
        super().restore(state)
        if any(len(group) != self.options.batch for group in state["groups"]):
            raise TrainingError(
                f"the run to resume has batches of {len(state['groups'][0])}, not "
                f"{self.options.batch}: its rollouts cannot be split differently"
            )
        saved = state.get("random", [{"cpu": state.get("torch_rng")}])
        restore_random_state(saved, self.processes)
        for rollouts, group in zip(self.groups, state["groups"], strict=True):
            for rollout, entry in zip(rollouts, self.processes.share(group), strict=True):
                rollout.restore(_mapped(entry, Tensor, Tensor.numpy))


def _mapped(
    entries: Mapping[str, Any], kind: type, convert: Callable[[Any], Any]
) -> dict[str, Any]:
    """Convert the values of one type, also of inner tables, and keep the others."""
    converted: dict[str, Any] = {}
    for key, value in entries.items():
        if isinstance(value, Mapping):
            value = _mapped(value, kind, convert)
        converted[key] = convert(value) if isinstance(value, kind) else value
    return converted


def _parameters_by_rate(
    network: nn.Module, options: PropagationTrainingOptions
) -> dict[float, list[nn.Parameter]]:
    """List the parameters by their share of the learning rate.

    The first layer has channels that no public file has, so it learns like the head.
    """
    first = first_layer(options.network.backbone)
    by_share: dict[float, list[nn.Parameter]] = {1.0: []}
    for name, parameter in network.named_parameters():
        is_slow = name.startswith(_BACKBONE) and name != first
        share = options.backbone_rate if is_slow else 1.0
        by_share.setdefault(share, []).append(parameter)
    return by_share


@dataclass(frozen=True)
class _Prepared:
    """Next batch of a group, and the rollout states before it was sampled."""

    before: list[dict[str, Any]]
    samples: list[Sample]


class _Pending:
    """Next batch of a group while threads prepare it, one task per rollout.

    Each rollout has its own random generator, so the result does not depend on the thread.
    """

    def __init__(
        self,
        pool: ThreadPoolExecutor,
        rollouts: Sequence[Rollout],
        outputs: Float32Array | None,
        horizon: int | None,
    ) -> None:
        each = outputs if outputs is not None else [None] * len(rollouts)
        self._tasks: list[Future[tuple[dict[str, Any], Sample]]] = [
            pool.submit(_prepare, rollout, output, horizon)
            for rollout, output in zip(rollouts, each, strict=True)
        ]

    def result(self) -> _Prepared:
        done = [task.result() for task in self._tasks]
        return _Prepared([before for before, _ in done], [sample for _, sample in done])


def _prepare(
    rollout: Rollout, output: Float32Array | None, horizon: int | None
) -> tuple[dict[str, Any], Sample]:
    if output is not None:
        rollout.update(output)
    if horizon is not None:
        rollout.set_max_steps(horizon)
    return rollout.state(), rollout.next_sample()


def batch_from_samples(samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """Stack samples into network inputs and targets.

    Returns normalised (B, 4, S, S) inputs in channels_last, or (B, 5, S, S) with scores, and
    (B, S, S) targets, all float32.
    """
    mean, std = PROPAGATION.mean_rgb, PROPAGATION.std_rgb
    rgb = torch.from_numpy(np.stack([s.rgb for s in samples])).div_(255)
    rgb = (rgb - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    prob = torch.from_numpy(np.stack([s.prob for s in samples]))
    channels = [rgb, prob[:, None]]
    scores = [s.score for s in samples if s.score is not None]
    if scores:
        channels.append(torch.from_numpy(np.stack(scores))[:, None])
    inputs = torch.cat(channels, dim=1).contiguous(memory_format=torch.channels_last)
    return inputs, torch.from_numpy(np.stack([s.target for s in samples]))


def _thresholded_iou(prob: Tensor, target: Tensor) -> Tensor:
    """Compute the IoU of thresholded maps: (B, S, S) each -> (B,)."""
    a, b = prob > 0.5, target > 0.5
    union = (a | b).sum(dim=(1, 2))
    return torch.where(union > 0, (a & b).sum(dim=(1, 2)) / union.clamp(min=1), 1.0)
