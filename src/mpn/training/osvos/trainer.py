"""Trainer of OSVOS's offline stages."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpn.evaluation.region import region_similarity
from mpn.networks.osvos import OsvosVgg
from mpn.runtime.host.preprocess import resize_prob, resize_rgb
from mpn.training.data import Prefetched
from mpn.training.loop import ResumableTrainer
from mpn.training.losses import class_balanced_loss
from mpn.training.optimisation import AveragedWeights, MixedPrecision, adamw, cosine, warmed_up
from mpn.training.osvos.options import OsvosStage, OsvosTrainingOptions, OsvosTrainingReport
from mpn.training.osvos.samples import (
    CropSource,
    MaskedImages,
    folded_weights,
    has_batch_norm,
    network_input,
)
from mpn.training.processes import Processes
from mpn.types import Float32Array, UInt8Array

_END_OF_SALIENT = 0.1
"""Share of the peak rate at the end of stage 1, where stage 2 continues."""


class OsvosTrainer(ResumableTrainer):
    """Network, optimiser and averaged weights of one training run.

    Args:
        network: Plain, or from :func:`mpn.training.osvos.samples.normalised_network`; on the device
            of ``processes``.
        sources: Crops of each stage that has steps.
        options: See :class:`OsvosTrainingOptions`.
        processes: Each process computes its share of a batch.
    """

    schema = 1
    options: OsvosTrainingOptions

    def __init__(
        self,
        network: OsvosVgg,
        sources: Mapping[OsvosStage, CropSource],
        options: OsvosTrainingOptions,
        processes: Processes | None = None,
    ) -> None:
        self.processes = processes = Processes() if processes is None else processes
        self.options, self.step = options, 0
        self.network = processes.synchronised_norm(network)
        self._parallel = processes.parallel(
            self.network, all_used=all(weight > 0 for weight in options.side_weights)
        )
        self._sources = sources
        self._share = processes.share(range(options.batch))
        trained = [p for p in self.network.parameters() if p.requires_grad]
        self.optimiser = adamw(trained, weight_decay=options.weight_decay)
        self.precision = MixedPrecision(options.precision, processes.device)
        self.average = AveragedWeights(self.network, options.ema_decay)
        self._batches = Prefetched(self._sample_task, self._share, options.steps)
        self._sums = np.zeros(3)

    def train_step(self, pool: ThreadPoolExecutor) -> None:
        """Train on one batch: forward, backward, update, average.

        Raises:
            TrainingError: If the loss is not finite.
        """
        options, device = self.options, self.processes.device
        stage, _, _ = options.stage_at(self.step)
        samples = self._batches.take(self.step, pool)
        images, masks = self._sources[stage].joined(samples)
        images, masks = images.to(device, non_blocking=True), masks.to(device, non_blocking=True)
        self._parallel.train()
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate()
        with self.precision.autocast():
            logits = self._parallel(images)
        losses = [class_balanced_loss(each, masks) for each in logits]
        weighted = zip(self.loss_weights(), losses, strict=True)
        loss = torch.stack([weight * each for weight, each in weighted if weight > 0]).sum()
        self.check_finite(loss)
        self.precision.step(loss, self.optimiser, self.network.parameters(), options.clip_norm)
        self.step += 1
        self.average.update(self.network, self.step)
        found, truth = logits[-1].detach() > 0, masks > 0.5
        union = (found | truth).sum(dim=(1, 2, 3))
        overlap = (found & truth).sum(dim=(1, 2, 3))
        iou = torch.where(union > 0, overlap / union.clamp(min=1), 1.0)
        self._sums += (1, float(losses[-1].detach()), float(iou.mean()))

    def _sample_task(self, step: int, index: int) -> Any:
        stage, _, _ = self.options.stage_at(step)
        return self._sources[stage].sample(step, index)

    def learning_rate(self) -> float:
        """Compute the rate of this step: warm-up and cosine, once per stage."""
        options = self.options
        stage, done, steps = options.stage_at(self.step)
        peak = options.salient_rate if stage == "salient" else options.davis_rate
        last = _END_OF_SALIENT if stage == "salient" else 0.0
        rise = warmed_up(done, options.warmup_steps)
        return peak * rise * (last + (1 - last) * cosine(done, steps))

    def loss_weights(self) -> tuple[float, ...]:
        """Compute the weights of the side losses, which decay, and of the fused one."""
        _, done, steps = self.options.stage_at(self.step)
        *sides, fused = self.options.side_weights
        return (*(weight * (1 - done / steps) for weight in sides), fused)

    def plain_weights(self) -> dict[str, Tensor]:
        """Return averaged weights with folded normalisation, for :class:`OsvosVgg`."""
        return folded_weights(self.network, self.average.on_cpu())

    def plain_network(self) -> OsvosVgg:
        """Create a network with :meth:`plain_weights` on the same device."""
        network = OsvosVgg(self.options.network)
        network.load_state_dict(self.plain_weights())
        network.to(self.processes.device)
        return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]

    def take_report(self, scores: Mapping[str, float]) -> OsvosTrainingReport:
        """Return the means since the last report.

        See :meth:`mpn.training.loop.TrainerProtocol.take_report`.
        """
        count, loss, crop_iou = self.processes.mean(self._sums.tolist())
        self._sums = np.zeros(3)
        last_step = max(0, self.step - 1)
        return OsvosTrainingReport(
            step=self.step,
            steps=self.options.steps,
            stage=self.options.stage_at(last_step)[0],
            loss=loss / max(count, 1.0),
            crop_iou=crop_iou / max(count, 1.0),
            learning_rate=float(self.optimiser.param_groups[0]["lr"]),
            validation_j=scores.get("validation_j"),
        )

    def state(self) -> dict[str, Any]:
        """See :meth:`ResumableTrainer.state`."""
        return {**super().state(), "normalised": has_batch_norm(self.network)}


def frame_prob(
    network: OsvosVgg, rgb: UInt8Array, *, short_side_px: int, scale: float = 1.0
) -> Float32Array:
    """Segment a whole frame, at the frame's own size.

    Args:
        network: In eval or training mode, which are the same for it.
        rgb: (H, W, 3) uint8.
        short_side_px: Short side of the network's input; sides are multiples of 16.
        scale: Divisor of the input for these weights, see
            :func:`mpn.training.osvos.samples.network_input`.

    Returns:
        (H, W) float32 in 0..1.
    """
    height, width = rgb.shape[:2]
    ratio = short_side_px / min(height, width)
    size_hw = (max(16, round(height * ratio / 16) * 16), max(16, round(width * ratio / 16) * 16))
    planes = resize_rgb(rgb, size_hw).transpose(2, 0, 1).astype(np.float32)
    inputs = network_input([planes], scale).to(next(network.parameters()).device)
    with torch.inference_mode():
        prob = network.logits(inputs).float().sigmoid()
    full: Float32Array = resize_prob(prob.cpu().numpy()[0], (height, width))[0]
    return full


def mean_j(
    network: OsvosVgg,
    images: MaskedImages,
    *,
    short_side_px: int,
    scale: float = 1.0,
    threshold: float = 0.5,
) -> float:
    """Compute the mean J over images.

    Args:
        network: See :func:`frame_prob`.
        images: Images to segment.
        short_side_px: See :func:`frame_prob`.
        scale: See :func:`frame_prob`.
        threshold: A pixel belongs to the object above this probability.

    Returns:
        0..1; NaN without images.
    """
    scores = []
    for index in range(len(images)):
        rgb, truth = images[index]
        prob = frame_prob(network, rgb, short_side_px=short_side_px, scale=scale)
        scores.append(region_similarity(truth, prob > threshold))
    return float(np.mean(scores)) if scores else float("nan")
