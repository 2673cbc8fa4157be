"""Quantise the random networks of ``compare.py``, to measure their speed in int8.

``mpn export`` writes an engine only if its masks pass a gate. Masks of random weights mean
nothing, so that the layers that the gate would keep in float32 are not known: here all convolutions
of the three networks become int8. The flow network too, which ``mpn export`` never quantises.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.torch_baseline.sides import OurSide, ReplacedFlow
from mpn import Pipeline, PipelineOptions
from mpn.engines.directory.entries import DIS_SOURCE, FlowSource
from mpn.engines.directory.files import resolve_inside
from mpn.engines.onnxruntime.engine import OrtEngine
from mpn.engines.open import EngineSet
from mpn.engines.openvino.engine import OpenVinoEngine
from mpn.engines.spec import Role
from mpn.quantization.gate import InputSample, RecordedEngine
from mpn.quantization.graph import GraphQuantizer
from mpn.runtime.host.flow import DisFlow, flow_estimator_from, flow_px
from mpn.synthetic.clip import SyntheticFrame

SAMPLE = 4
"""Calibration inputs of each network."""


def quantize_graphs(
    engines: EngineSet,
    engine_dir: Path,
    folder: Path,
    options: PipelineOptions,
    clip: Sequence[SyntheticFrame],
) -> dict[Role, Path]:
    """Return the int8 graph of each role; those in the folder are used again.

    Args:
        engines: The open float32 engines of ``engine_dir``.
        engine_dir: Their directory.
        folder: Folder of the int8 graphs.
        options: Options of the pipeline that records the calibration inputs.
        clip: At least two frames.
    """
    paths = {role: folder / f"{role}.onnx" for role in engines.engines}
    if all(path.is_file() for path in paths.values()):
        return paths
    folder.mkdir(parents=True, exist_ok=True)
    samples = {role: InputSample(SAMPLE) for role in paths}
    recorded: dict[str, Any] = {
        role: RecordedEngine(engines.engines[role], sample) for role, sample in samples.items()
    }
    opened = replace(engines, owned=False, **recorded)
    flow = ReplacedFlow(flow_estimator_from(opened))
    dis = DisFlow(FlowSource(DIS_SOURCE, "ultrafast"))
    truth = [np.where(frame.labels == 1, 1, 0).astype(np.uint8) for frame in clip[: SAMPLE + 1]]
    side = OurSide(Pipeline(opened, options=options, flow=flow), flow)
    side.start(clip[0].rgb, truth[0])
    for t in range(1, len(truth)):
        side.step(clip[t].rgb, flow_px(dis, clip[t].rgb, clip[t - 1].rgb))
        side.restart_from(truth[t])
    for role, path in paths.items():
        print(f"quantising {role} to {path} ...", file=sys.stderr, flush=True)
        source = resolve_inside(engine_dir, engines.manifest.roles[role].onnx)
        model = GraphQuantizer(source, samples[role].inputs, folder).quantize(math.inf).model
        onnx.save(model, path)
        for left in (*folder.glob(f"{source.stem}-float*"), *folder.glob(f"{source.stem}-ranges*")):
            left.unlink()
    return paths


def with_graphs(
    engines: EngineSet, paths: dict[Role, Path], backend: str, threads: int
) -> EngineSet:
    """Return the engines with other graphs of the same interface.

    Args:
        engines: Engines in float32.
        paths: Graph of each role.
        backend: ``"cpu"`` or ``"openvino"``.
        threads: Threads of each engine.
    """
    kind = OpenVinoEngine if backend == "openvino" else OrtEngine
    opened: dict[str, Any] = {
        role: kind(path, engines.engines[role].spec, threads=threads)
        for role, path in paths.items()
    }
    return replace(engines, backend=backend, **opened)
