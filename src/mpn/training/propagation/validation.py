"""J of a network in training, measured with the runtime's pipeline."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from mpn import __version__
from mpn.engines.directory.manifest import Manifest, Preprocessing, Provenance, RoleEntry
from mpn.engines.open import EngineSet
from mpn.engines.spec import OPSET, EngineSpec, Role, propagation_spec
from mpn.evaluation.sequence import SequenceEvaluator
from mpn.networks.features import FeaturesNet
from mpn.runtime.options import PipelineOptions
from mpn.runtime.pipeline import Pipeline
from mpn.training.data import DavisSequence
from mpn.training.propagation.features import TorchFeaturesEngine
from mpn.training.propagation.rollout import RolloutOptions
from mpn.training.torch_engine import TorchEngine

_MAX_OBJECTS = 8


class TorchPropagationEngine(TorchEngine):
    """Propagation network in training: (K, channels, S, S) -> (K, 1, S, S)."""

    def forward(self, network: nn.Module, *inputs: Tensor) -> Tensor:
        """Run the network; see :class:`mpn.training.torch_engine.TorchEngine`."""
        (crops,) = inputs
        logits: Tensor = network(crops.contiguous(memory_format=torch.channels_last))
        return logits.float().softmax(dim=1)[:, 1:]


def torch_engines(
    network: nn.Module,
    options: RolloutOptions,
    features: FeaturesNet | None,
    features_size_hw: tuple[int, int],
) -> EngineSet:
    """Build an engine set of PyTorch networks and the rollouts' flow.

    Args:
        network: The propagation network, of five input channels with ``features``, else four.
        options: ROI and flow options.
        features: Network of the target model.
        features_size_hw: (height, width) of its input.
    """
    spec = propagation_spec(options.roi_size, _MAX_OBJECTS, 4 if features is None else 5)
    roles: dict[Role, RoleEntry] = {"propagation": _entry(network, spec)}
    features_engine = None
    if features is not None:
        features_engine = TorchFeaturesEngine(features, features_size_hw)
        roles["features"] = _entry(features, features_engine.spec)
    manifest = Manifest(
        name="training",
        frame_size_hw=(480, 854),
        roi_size=options.roi_size,
        max_objects=_MAX_OBJECTS,
        preprocessing=Preprocessing(),
        flow=options.flow,
        roles=roles,
        runtime_defaults={},
        provenance=Provenance((), __version__, "mpn train", "none", "1970-01-01T00:00:00+00:00"),
    )
    return EngineSet(
        manifest=manifest,
        propagation=TorchPropagationEngine(network, spec),
        flow=None,
        osvos=None,
        features=features_engine,
        backend="torch",
        backend_note="torch, because the network is in training",
        digests={},
    )


def _entry(network: nn.Module, spec: EngineSpec) -> RoleEntry:
    return RoleEntry(
        onnx=f"{spec.role}.onnx",
        sha256="0" * 64,
        external_data=(),
        opset=OPSET,
        precision="fp32",
        half_weights=0,
        total_weights=1,
        inputs=spec.inputs,
        outputs=spec.outputs,
        size_multiple=1,
        variant=type(network).__name__,
        parameters=sum(p.numel() for p in network.parameters()),
    )


def mean_j(
    network: nn.Module,
    sequences: Sequence[DavisSequence],
    options: RolloutOptions,
    *,
    max_frames: int,
    features: FeaturesNet | None = None,
    features_size_hw: tuple[int, int] = (385, 673),
) -> float:
    """Compute the mean J over all objects, propagated from their first masks.

    Args:
        network: The propagation network.
        sequences: Sequences to segment.
        options: ROI and flow options, the same as in training.
        max_frames: Frames per sequence; the first and the last are not scored.
        features: Network of the target model, for a propagation network of five input channels.
        features_size_hw: (height, width) of its input.

    Returns:
        0..1; NaN without sequences.
    """
    pipeline_options = PipelineOptions(
        threshold=options.threshold,
        flow_check_px=options.flow_check_px,
        colour_weight=options.colour_weight,
        roi_margin_frac=options.roi_margin_frac,
        roi_margin_px_min=options.roi_margin_px_min,
    )
    scores: list[float] = []
    for sequence in sequences:
        evaluator = SequenceEvaluator(sequence.name)
        engines = torch_engines(network, options, features, features_size_hw)
        with Pipeline(engines, options=pipeline_options) as pipeline:
            for index in range(min(len(sequence), max_frames)):
                rgb, truth = sequence.rgb(index), sequence.labels(index)
                result = pipeline.step(rgb) if index else pipeline.start(rgb, truth)
                evaluator.feed(truth, result.labels)
        scores.extend(score.region.mean for score in evaluator.conclude().objects)
    return float(np.mean(scores)) if scores else float("nan")
