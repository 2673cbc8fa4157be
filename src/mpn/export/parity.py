"""Parity of a written graph with its PyTorch module."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mpn.engines.directory.manifest import Preprocessing
from mpn.engines.directory.parity import PARITY_SCHEMA
from mpn.engines.onnxruntime.engine import OrtEngine, import_onnxruntime
from mpn.engines.spec import EngineSpec, Precision, Role
from mpn.errors import EngineError, ExportError
from mpn.export.graph import graph_failures, probe_inputs
from mpn.export.parity_inputs import ParityCase, ParityPictures
from mpn.export.precision import (
    ActivationPeak,
    activation_peak,
    check_activation_peak,
    folded_network,
)
from mpn.export.progress import Progress, timed
from mpn.export.tracing import deployed
from mpn.types import Float32Array

_SATURATION = 1e-3
_TINY = 1e-30
"""Lower bound of divisors, for an all-zero reference."""

MeasureName = Literal[
    "max_relative",
    "logit_relative",
    "max_abs",
    "mean_abs",
    "mask_iou",
    "epe_mean",
    "epe_relative",
    "loss_abs",
    "pattern_relative",
    "gradient_relative",
    "update_relative",
]


@dataclass(frozen=True)
class Limit:
    """Limit of a measure.

    Attributes:
        name: Name of the measure.
        value: The bound: a largest value, or the smallest IoU.
        reason: Reason for this bound.
    """

    name: MeasureName
    value: float
    reason: str


@dataclass(frozen=True)
class Measure:
    """Measured value with its limit.

    Attributes:
        limit: The limit.
        value: The value; NaN is never within a limit.
    """

    limit: Limit
    value: float

    @property
    def is_within(self) -> bool:
        """Whether the value is within its limit."""
        if self.limit.name in _AT_LEAST:
            return self.value >= self.limit.value
        return self.value <= self.limit.value

    @property
    def used(self) -> float:
        """Used part of the limit, 1 at the limit."""
        if self.limit.name in _AT_LEAST:
            return (1.0 - self.value) / (1.0 - self.limit.value)
        return self.value / self.limit.value

    def __str__(self) -> str:
        sign = ">=" if self.limit.name in _AT_LEAST else "<="
        return f"{self.limit.name} is {self.value:.3g}, must be {sign} {self.limit.value:g}"

    @property
    def text(self) -> str:
        """Text for a table, for example ``"max_relative 3.1e-06"``."""
        return f"{self.limit.name} {self.value:.2g}"

    def as_json(self) -> dict[str, Any]:
        """Return a dict of JSON types."""
        return {
            "measure": self.limit.name,
            "value": self.value,
            "limit": self.limit.value,
            "reason": self.limit.reason,
        }


def limits_for(role: Role, precision: Precision) -> tuple[Limit, ...]:
    """Return the limits of one role at one precision."""
    if role == "features":
        return _FP32_FLOW if precision == "fp32" else _FP16_FEATURES
    if precision == "fp32":
        return _FP32_FLOW if role == "flow" else _FP32_PROB
    return _FP16_FLOW if role == "flow" else _FP16_PROB


def measured(limit: Limit, got: Float32Array, expected: Float32Array) -> Measure:
    """Compare two arrays (N, C, H, W) of one shape."""
    return Measure(limit, float(_MEASURES[limit.name](got, expected)))


def _max_relative(got: Float32Array, expected: Float32Array) -> float:
    largest = float(np.abs(expected).max())
    return float(np.abs(got - expected).max()) / max(largest, _TINY)


def _logit_relative(got: Float32Array, expected: Float32Array) -> float:
    """Compute the largest difference of log-odds over their largest magnitude.

    If the expected probability is within 1e-3 of 0 or 1, its rounding would dominate. These pixels
    count for the largest magnitude only.
    """
    steep = (expected > _SATURATION) & (expected < 1.0 - _SATURATION)
    if not steep.any():
        return 0.0
    largest = float(np.abs(_logits(expected)).max())
    difference = float(np.abs(_logits(got[steep]) - _logits(expected[steep])).max())
    return difference / max(largest, _TINY)


def _logits(prob: Float32Array) -> npt.NDArray[np.float64]:
    """Compute log-odds.

    A probability of 0 or 1 counts as the nearest float32 number that differs from it.
    """
    inside = np.clip(prob.astype(np.float64), 1e-30, 1.0 - 2.0**-24)
    return np.asarray(np.log(inside) - np.log1p(-inside), np.float64)


def _max_abs(got: Float32Array, expected: Float32Array) -> float:
    return float(np.abs(got - expected).max())


def _mean_abs(got: Float32Array, expected: Float32Array) -> float:
    return float(np.abs(got - expected).mean(dtype=np.float64))


def _mask_iou(got: Float32Array, expected: Float32Array) -> float:
    """Compute the smallest IoU of the masks p > 0.5; 1 if both are empty."""
    ious = []
    for mask_got, mask_expected in zip(got > 0.5, expected > 0.5, strict=True):
        union = np.count_nonzero(mask_got | mask_expected)
        both = np.count_nonzero(mask_got & mask_expected)
        ious.append(both / union if union else 1.0)
    return min(ious)


def _epe(got: Float32Array, expected: Float32Array) -> Float32Array:
    """Compute the endpoint error of each pixel."""
    return np.asarray(np.linalg.norm(got - expected, axis=1), np.float32)


def _epe_mean(got: Float32Array, expected: Float32Array) -> float:
    return float(_epe(got, expected).mean(dtype=np.float64))


def _epe_relative(got: Float32Array, expected: Float32Array) -> float:
    length = float(np.linalg.norm(expected, axis=1).mean(dtype=np.float64))
    return _epe_mean(got, expected) / max(length, _TINY)


_AT_LEAST: frozenset[MeasureName] = frozenset({"mask_iou"})
_MEASURES: dict[MeasureName, Callable[[Float32Array, Float32Array], float]] = {
    "max_relative": _max_relative,
    "logit_relative": _logit_relative,
    "max_abs": _max_abs,
    "mean_abs": _mean_abs,
    "mask_iou": _mask_iou,
    "epe_mean": _epe_mean,
    "epe_relative": _epe_relative,
}

_FP32_FLOW = (
    Limit(
        "max_relative",
        1e-4,
        "of the largest magnitude: two float32 computations of one network differ by the order of "
        "their sums alone; 1e-5 measured in the paper-size FlowNet 2.0 with random weights",
    ),
)
_FP32_PROB = (
    Limit(
        "logit_relative",
        1e-4,
        "of the largest log-odds, where the same bound holds before softmax and sigmoid; 1e-5 "
        "measured in the paper-size DeepLab with random weights",
    ),
    Limit(
        "max_abs",
        5e-4,
        "what log-odds of up to 20 may move the probability by at that bound (slope 1/4); PyTorch "
        "itself moves it by 1e-4 in another memory layout, with random weights and odds of 77",
    ),
)
_FP16_PROB = (
    Limit(
        "max_abs",
        0.1,
        "one pixel on the steepest part of the softmax: 0.04 measured in the paper-size DeepLab "
        "with random weights and logits up to 37, whose half-precision rounding grows with them",
    ),
    Limit(
        "mean_abs",
        2e-3,
        "of the whole map: 4e-4 measured there, most of it along edges",
    ),
    Limit(
        "mask_iou",
        0.99,
        "of the masks p > 0.5, the smallest over the objects: 0.9995 measured there; what is lost "
        "here is lost in every frame that propagates",
    ),
)
_FP16_FEATURES = (
    Limit(
        "max_relative",
        0.02,
        "of the largest magnitude, for features that a classifier weighs: half precision has 5e-4 "
        "a layer, and EfficientNet-Lite0 has 35 layers to stride 16",
    ),
)
_FP16_FLOW = (
    Limit(
        "epe_mean",
        0.1,
        "pixels: a tenth of what bilinear warping blurs; 0.01 measured in the paper-size FlowNet "
        "2.0 with random weights at a mean flow of 13 px",
    ),
    Limit(
        "epe_relative",
        0.01,
        "of the mean length of the flow: 7e-4 measured there; half precision has 5e-4 a layer",
    ),
)


COMPARED = ("names", "axes", "shapes", "values")


@dataclass(frozen=True)
class CaseParity:
    """Comparison on one set of inputs.

    Attributes:
        name: Name of the inputs.
        measures: Measures with their limits.
        reference_range: Smallest and largest value of the module's output: a constant output would
            match by chance.
    """

    name: str
    measures: tuple[Measure, ...]
    reference_range: tuple[float, float]

    def as_json(self) -> dict[str, Any]:
        """Return a dict of JSON types."""
        return {
            "case": self.name,
            "reference_range": list(self.reference_range),
            "measures": [measure.as_json() for measure in self.measures],
        }


@dataclass(frozen=True)
class RoleParity:
    """Comparison of one graph, without failures: a failing one raises.

    Attributes:
        role: Role of the graph.
        precision: Precision of the graph; the module is float32.
        cases: One per set of inputs.
        peak: Largest activation, for fp16 only.
        elapsed_s: Seconds of the comparison.
    """

    role: Role
    precision: Precision
    cases: tuple[CaseParity, ...]
    peak: ActivationPeak | None
    elapsed_s: float

    @property
    def worst(self) -> Measure:
        """The measure nearest to its limit."""
        return max(
            (measure for case in self.cases for measure in case.measures),
            key=lambda measure: measure.used,
        )

    def as_json(self) -> dict[str, Any]:
        """Return a dict of JSON types."""
        value: dict[str, Any] = {
            "precision": self.precision,
            "compared": list(COMPARED),
            "cases": [case.as_json() for case in self.cases],
        }
        if self.peak is not None:
            value["largest_activation"] = {
                "layer": self.peak.layer,
                "magnitude": self.peak.magnitude,
            }
        return value


def verify_graph(
    path: Path,
    spec: EngineSpec,
    network: nn.Module,
    *,
    precision: Precision,
    pictures: ParityPictures,
    preprocessing: Preprocessing,
    progress: Progress | None = None,
    threads: int | None = None,
) -> RoleParity:
    """Compare a graph with its spec, then with the float32 module.

    Names, axes and shapes must equal the spec's; values may differ within limits.

    Args:
        path: Path of the graph.
        spec: The interface of the graph.
        network: The network as loaded: neither folded, nor rescaled, nor halved.
        precision: Precision of the graph.
        pictures: Images to compare on.
        preprocessing: Preprocessing of the images.
        progress: Called for the step.
        threads: Threads of onnxruntime; None for its default.

    Raises:
        ExportError: If anything differs; the message lists every failure.
    """
    progress = Progress() if progress is None else progress
    role = spec.role
    with timed(progress, role, "verify") as stopwatch:
        failures = graph_failures(path, spec)
        cases: list[CaseParity] = []
        peak = None
        inputs = pictures.cases(spec, preprocessing)
        if precision == "fp16":
            peak = _peak(role, network, inputs[0])
            check_activation_peak(role, peak)
        try:
            with OrtEngine(path, spec, threads=threads) as engine:
                for case in inputs:
                    cases.append(_compared(case, engine, network, precision))
        except EngineError as error:
            failures.append(str(error))
        failures += [
            f"{case.name}: {measure}"
            for case in cases
            for measure in case.measures
            if not measure.is_within
        ]
    if failures:
        raise ExportError(
            f"{path.name} ({precision}) differs from its PyTorch module: {'; '.join(failures)}; "
            "no engine directory was written"
        )
    return RoleParity(role, precision, tuple(cases), peak, stopwatch.elapsed_s)


def parity_document(
    roles: Mapping[Role, Mapping[str, Any]], *, inputs: str | None
) -> dict[str, Any]:
    """Build the content of ``parity.json``.

    Args:
        roles: Role -> :meth:`RoleParity.as_json`.
        inputs: Description of the inputs; None if verification was disabled.
    """
    document: dict[str, Any] = {"schema_version": PARITY_SCHEMA, "verified": inputs is not None}
    if inputs is None:
        document["skipped"] = "not verified, as requested (--no-verify)"
        return document
    document |= {
        "reference": f"PyTorch {torch.__version__}, float32, CPU",
        "onnxruntime": str(import_onnxruntime("cpu").__version__),
        "inputs": inputs,
        "roles": {role: dict(value) for role, value in roles.items()},
    }
    return document


def parity_text(document: Mapping[str, Any]) -> str:
    """Format ``parity.json`` as text."""
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def _compared(
    case: ParityCase, engine: OrtEngine, network: nn.Module, precision: Precision
) -> CaseParity:
    role = engine.spec.role
    name = engine.spec.output_names[0]
    got = engine.run(case.inputs)[name]
    expected = _reference(role, network, case)
    if got.shape != expected.shape:
        raise EngineError(f"{case.name}: '{name}' has shape {got.shape}, expected {expected.shape}")
    measures = tuple(measured(limit, got, expected) for limit in limits_for(role, precision))
    return CaseParity(case.name, measures, (float(expected.min()), float(expected.max())))


def _reference(role: Role, network: nn.Module, case: ParityCase) -> Float32Array:
    """Run the module one object at a time.

    So a graph that mixes objects differs from it.
    """
    module = deployed(role, network)
    inputs = [torch.from_numpy(array) for array in case.inputs.values()]
    with torch.inference_mode():
        outputs = [module(*(tensor[k : k + 1] for tensor in inputs)) for k in range(len(inputs[0]))]
    return np.asarray(torch.cat(outputs).numpy(), np.float32)


def _peak(role: Role, network: nn.Module, case: ParityCase) -> ActivationPeak:
    folded = folded_network(role, network, probe_inputs(role, network), for_half=True)
    inputs = [torch.from_numpy(array) for array in case.inputs.values()]
    return activation_peak(deployed(role, folded), inputs)
