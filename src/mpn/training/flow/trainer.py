"""Trainer of the flow network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from mpn.engines.spec import flow_spec
from mpn.evaluation.sequence import SequenceEvaluator
from mpn.networks.flownet2 import FLOW_SCALE, SIZE_MULTIPLE, FlowNet2, sd_weights_with_larger_flow
from mpn.runtime.host.flow import EngineFlow, FlowEstimator, flow_px
from mpn.runtime.host.ops import warp_bilinear
from mpn.runtime.host.preprocess import one_hot
from mpn.training.data import DavisSequence, Prefetched
from mpn.training.flow.options import FlowTrainingOptions, FlowTrainingReport
from mpn.training.flow.pairs import FlowPair, FlowSamples, joined
from mpn.training.flow.synthetic import FlowSample
from mpn.training.loop import ResumableTrainer
from mpn.training.losses import mean_epe_px, multiscale_epe
from mpn.training.optimisation import AveragedWeights, MixedPrecision, adamw, cosine, warmed_up
from mpn.training.processes import Processes
from mpn.training.torch_engine import TorchEngine
from mpn.types import Float32Array


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


class TorchFlowEngine(TorchEngine):
    """Flow network in training.

    Args:
        network: Switched to eval mode.
        frame_size_hw: Size of the frames; the network's is the next multiple of 64.
    """

    def __init__(self, network: FlowNet2, frame_size_hw: tuple[int, int]) -> None:
        super().__init__(network, flow_spec(frame_size_hw))

    def forward(self, network: nn.Module, *inputs: Tensor) -> Tensor:
        """Run the network; see :class:`mpn.training.torch_engine.TorchEngine`."""
        flow_px: Tensor = network(*inputs)
        return flow_px


def validation_epe_px(
    network: FlowNet2, pairs: Sequence[FlowPair], synthetic: Sequence[FlowSample]
) -> float:
    """Compute the mean endpoint error over pairs, in pixels of each pair.

    Each pair has the same weight.

    Args:
        network: The flow network.
        pairs: Pairs with true flow.
        synthetic: Synthetic pairs.

    Returns:
        Pixels; NaN without pairs.
    """
    errors = []
    for pair in pairs:
        estimated = _estimator(network, pair.flow_px().shape[1:])
        errors.append(_epe_px(flow_px(estimated, *pair.frames()), pair.flow_px()))
    for sample in synthetic:
        estimated = _estimator(network, sample.flow_px.shape[1:])
        frames = np.rint(sample.frames).clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
        first, second = (np.ascontiguousarray(frame) for frame in frames)
        errors.append(_epe_px(flow_px(estimated, first, second), sample.flow_px))
    return float(np.mean(errors)) if errors else float("nan")


def warp_mean_j(
    estimator: FlowEstimator, sequences: Sequence[DavisSequence], max_frames: int
) -> float:
    """Compute the mean J of first masks warped from frame to frame.

    The mean is over all objects of the sequences.

    Args:
        estimator: Flow estimator.
        sequences: Sequences to segment.
        max_frames: Frames per sequence; the first and the last are not scored.

    Returns:
        0..1; NaN without sequences or frames to score.
    """
    scores: list[float] = []
    for sequence in sequences:
        frames = min(len(sequence), max_frames)
        if frames < 3:
            continue
        evaluator = SequenceEvaluator(sequence.name)
        first = sequence.labels(0)
        ids = [int(i) for i in np.unique(first) if i]
        prob = one_hot(first, ids)
        evaluator.feed(first, first)
        previous = estimator.prepare(sequence.rgb(0))
        for index in range(1, frames):
            current = estimator.prepare(sequence.rgb(index))
            prob = warp_bilinear(prob, estimator.estimate(current, previous))
            background = np.prod(1 - prob, axis=0, keepdims=True)
            best = np.concatenate([background, prob]).argmax(axis=0)
            evaluator.feed(sequence.labels(index), np.array([0, *ids], np.uint8)[best])
            previous = current
        scores.extend(score.region.mean for score in evaluator.conclude().objects)
    return float(np.mean(scores)) if scores else float("nan")


def validation_estimator(network: FlowNet2, size_hw: tuple[int, int]) -> FlowEstimator:
    """Build the runtime's flow estimator around a network.

    The network takes frames of ``size_hw``.
    """
    return EngineFlow(TorchFlowEngine(network, size_hw))


def _estimator(network: FlowNet2, size_hw: tuple[int, ...]) -> FlowEstimator:
    height, width = size_hw
    return validation_estimator(network, (max(height, SIZE_MULTIPLE), max(width, SIZE_MULTIPLE)))


def _epe_px(estimated_px: Float32Array, true_px: Float32Array) -> float:
    error = np.hypot(*(estimated_px - true_px))
    return float(np.nanmean(error))
