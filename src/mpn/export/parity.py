"""Parity of a written graph with its PyTorch module."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mpn.engines.manifest import Preprocessing
from mpn.engines.ort import OrtEngine, import_onnxruntime
from mpn.engines.parity import PARITY_SCHEMA
from mpn.engines.spec import EngineSpec, Precision, Role
from mpn.errors import EngineError, ExportError
from mpn.export.deploy import deployed
from mpn.export.graph import graph_failures, probe_inputs
from mpn.export.parity_inputs import ParityCase, ParityPictures
from mpn.export.parity_limits import Measure, limits_for, measured
from mpn.export.precision import folded_network
from mpn.export.progress import Progress, timed
from mpn.export.ranges import ActivationPeak, activation_peak, check_activation_peak
from mpn.types import Float32Array

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
        document["skipped"] = "the export was asked not to verify (--no-verify)"
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
    folded = folded_network(role, network, probe_inputs(role), for_half=True)
    inputs = [torch.from_numpy(array) for array in case.inputs.values()]
    return activation_peak(deployed(role, folded), inputs)
