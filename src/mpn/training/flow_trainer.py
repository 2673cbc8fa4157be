"""Trainer of the flow network."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from mpn.networks.flownet2 import FLOW_SCALE, FlowNet2
from mpn.networks.flownet2_rescale import sd_weights_with_larger_flow
from mpn.training.averaging import AveragedWeights
from mpn.training.flow_loss import mean_epe_px, multiscale_epe
from mpn.training.flow_options import FlowTrainingOptions, FlowTrainingReport
from mpn.training.flow_samples import FlowSamples, joined
from mpn.training.loop import ResumableTrainer
from mpn.training.mixed_precision import MixedPrecision
from mpn.training.prefetch import Prefetched
from mpn.training.processes import Processes
from mpn.training.schedule import adamw, cosine, warmed_up


class FlowTrainer(ResumableTrainer):
    """Network, optimiser and averaged weights of one training run.

    Args:
        network: With ``small_flow_scale=FLOW_SCALE``, on the device of ``processes``.
        samples: Training samples.
        options: See :class:`FlowTrainingOptions`.
        processes: Each process computes its share of a batch.
    """

    schema = 1
    options: FlowTrainingOptions

    def __init__(
        self,
        network: FlowNet2,
        samples: FlowSamples,
        options: FlowTrainingOptions,
        processes: Processes | None = None,
    ) -> None:
        self.processes = processes = Processes() if processes is None else processes
        self.network, self.options, self.step = network, options, 0
        self._parallel = processes.parallel(_Pyramid(network), all_used=len(options.members) == 1)
        share = processes.share(range(options.batch))
        self.optimiser = adamw(network.parameters(), weight_decay=options.weight_decay)
        self.precision = MixedPrecision(options.precision, processes.device)
        self.average = AveragedWeights(network, options.ema_decay)
        self._batches = Prefetched(samples.sample, share, options.steps)
        self._sums = np.zeros(3)

    def train_step(self, pool: ThreadPoolExecutor) -> None:
        """Train on one batch: forward, backward, update, average.

        Raises:
            TrainingError: If the loss is not finite.
        """
        options, device = self.options, self.processes.device
        member, done, _ = options.stage_at(self.step)
        frames, target_px, valid = (
            part.to(device, non_blocking=True)
            for part in joined(self._batches.take(self.step, pool))
        )
        if not done and self.step:
            # The earlier members are trained: the later ones use their averaged weights.
            self.network.load_state_dict(self.average.state)
        self._parallel.train()
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate()
        with self.precision.autocast():
            flows_px = self._parallel(frames[:, 0], frames[:, 1], member)
        loss = multiscale_epe(flows_px, target_px, valid, options.weights_of(member))
        self.check_finite(loss)
        self.precision.step(loss, self.optimiser, self.network.parameters(), options.clip_norm)
        self.step += 1
        self.average.update(self.network, self.step)
        finest = F.interpolate(
            flows_px[-1].detach().float(),
            size=target_px.shape[-2:],
            mode="bilinear",
            align_corners=False,
        )
        self._sums += (1, float(loss.detach()), float(mean_epe_px(finest, target_px, valid)))

    def learning_rate(self) -> float:
        """Compute the rate of this step: warm-up and cosine, once per member."""
        _, done, steps = self.options.stage_at(self.step)
        rise = warmed_up(done, self.options.warmup_steps)
        return self.options.learning_rate * rise * cosine(done, steps)

    def deployed_weights(self) -> dict[str, Tensor]:
        """Return the averaged weights in public units, on the CPU."""
        return weights_in_public_units(self.average.on_cpu(), self.options)

    def averaged_network(self) -> FlowNet2:
        """Create a network with averaged weights, in eval mode, on the device."""
        network = FlowNet2(self.options.network)
        network.load_state_dict(self.deployed_weights())
        return network.to(self.processes.device).eval()

    def take_report(self, scores: Mapping[str, float]) -> FlowTrainingReport:
        """Return the means since the last report.

        See :meth:`mpn.training.loop.TrainerProtocol.take_report`.
        """
        count, loss, epe_px = self.processes.mean(self._sums.tolist())
        self._sums = np.zeros(3)
        return FlowTrainingReport(
            step=self.step,
            steps=self.options.steps,
            stage=self.options.stage_at(max(0, self.step - 1))[0] or "alone",
            loss=loss / max(count, 1.0),
            epe_px=epe_px / max(count, 1.0),
            learning_rate=float(self.optimiser.param_groups[0]["lr"]),
            validation_epe_px=scores.get("validation_epe_px"),
            validation_j=scores.get("validation_j"),
        )


class _Pyramid(nn.Module):
    """Forward pass of training as a module, for DistributedDataParallel."""

    def __init__(self, network: FlowNet2) -> None:
        super().__init__()
        self.network = network

    def forward(self, frame0: Tensor, frame1: Tensor, member: str) -> tuple[Tensor, ...]:
        return self.network.pyramid(frame0, frame1, member)


def weights_in_public_units(
    state: Mapping[str, Tensor], options: FlowTrainingOptions, *, back: bool = False
) -> dict[str, Tensor]:
    """Convert weights in training to public units, or back.

    Args:
        state: A state dict of the network.
        options: Options with the variant of the network.
        back: Convert from public units to those of training.
    """
    if "flownets_d" not in options.members:
        return dict(state)
    factor = FLOW_SCALE**2
    return sd_weights_with_larger_flow(state, 1 / factor if back else factor)
