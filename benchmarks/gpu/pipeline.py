"""Measure the pipeline for gpu_check.py, and compare its masks with the host."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.harness import (
    Bench,
    Budget,
    CannotRunError,
    guarded,
    peak_memory,
    times,
)
from benchmarks.gpu.networks import (
    DEVICE_BACKENDS,
    TorchEngine,
    role_spec,
    torch_modules,
    torch_trunk,
)
from mpn._common.closeable import Closeable
from mpn.cuda.api import Stream
from mpn.cuda.array import DeviceArray
from mpn.engines.base import DeviceEngine, Engine, EngineBuffers
from mpn.engines.directory.manifest import (
    FlowSource,
    Manifest,
    Preprocessing,
    Provenance,
    RoleEntry,
)
from mpn.engines.open import EngineSet, open_engines
from mpn.engines.spec import OPSET, EngineSpec, Role
from mpn.runtime.bench.result import fps_from_seconds
from mpn.runtime.options import CrfOptions, DeviceOptions, OsvosOptions
from mpn.runtime.pipeline import Pipeline, PipelineOptions
from mpn.synthetic import render_clip

SHARE = 1e-3
"""Weight of the output of a random network. The rest is the previous mask."""

SMALL_AREA_PX = 400
"""Smaller objects are left out of the mask comparison: one pixel changes their IoU too much."""


class BridgedEngine(Closeable):
    """Run a network on the host as a DeviceEngine: copy, run, copy back.

    The mask comparison uses it: the same network on both sides, all other stages on the device.

    Args:
        engine: Engine of the host.
        stream: The only stream.
        objects: Rows of the buffers.
    """

    def __init__(self, engine: Engine, stream: Stream, objects: int) -> None:
        self._engine, self._stream = engine, stream

        def buffer(shape: tuple[int | str, ...]) -> DeviceArray:
            return stream.zeros(
                tuple(objects if isinstance(n, str) else n for n in shape), np.float32
            )

        self._inputs = {t.name: buffer(t.shape) for t in engine.spec.inputs}
        self._outputs = {t.name: buffer(t.shape) for t in engine.spec.outputs}
        self._rows = engine.spec.role == "propagation"

    @property
    def spec(self) -> EngineSpec:
        """See DeviceEngine."""
        return self._engine.spec

    @property
    def backend(self) -> str:
        """See DeviceEngine."""
        return "cpu, bridged"

    @property
    def supports_graph_capture(self) -> bool:
        """See DeviceEngine."""
        return False

    def buffers(self, objects: int = 1) -> EngineBuffers:
        """See DeviceEngine."""

        def rows(arrays: dict[str, DeviceArray]) -> dict[str, DeviceArray]:
            return {n: a.part(0, objects) if self._rows else a for n, a in arrays.items()}

        return EngineBuffers(inputs=rows(self._inputs), outputs=rows(self._outputs))

    def prepare(self, stream: int, objects: int = 1) -> None:
        """See DeviceEngine."""
        return

    def enqueue(self, stream: int, objects: int = 1) -> EngineBuffers:
        """See DeviceEngine."""
        buffers = self.buffers(objects)
        given = {n: self._stream.download(a) for n, a in buffers.inputs.items()}  # type: ignore[arg-type]
        for name, answer in self._engine.run(given).items():
            self._stream.upload(np.ascontiguousarray(answer), buffers.outputs[name])  # type: ignore[arg-type]
        return buffers

    def infer_on_device(self, inputs: Any, stream: int) -> Any:
        """See DeviceEngine; not used."""
        raise CannotRunError("a bridged engine runs with its own buffers only")

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See Engine."""
        return self._engine.run(inputs)

    def close(self) -> None:
        """Release the network."""
        self._engine.close()


def masks(bench: Bench, budget: Budget) -> dict[str, Any]:
    """Compare the masks of device and host; the networks are the same."""
    figures: dict[str, Any] = {}
    for directory in bench.engine_dirs:
        for objects in (1, 3):
            figures[f"{Path(directory).name}, objects {objects}"] = guarded(
                lambda directory=directory, objects=objects: _masks(bench, directory, objects)  # type: ignore[misc]
            )
    return figures


def _masks(bench: Bench, directory: str, objects: int) -> dict[str, Any]:
    stream, sizes = bench.need_stream(), bench.sizes
    clip = list(render_clip(frames=sizes.mask_frames, size_hw=sizes.mask_hw, objects=objects))

    def results(opened: EngineSet, **where: Any) -> list[np.ndarray]:
        with Pipeline(opened, options=PipelineOptions(), **where) as pipeline:
            labels = [pipeline.start(clip[0].rgb, clip[0].labels).labels]
            return labels + [pipeline.step(frame.rgb).labels for frame in clip[1:]]

    expected = results(open_engines(directory, backend="cpu", threads=4))
    opened = open_engines(directory, backend="cpu", threads=4)
    most = opened.manifest.max_objects
    bridged = replace(
        opened,
        propagation=BridgedEngine(opened.propagation, stream, most),
        flow=None if opened.flow is None else BridgedEngine(opened.flow, stream, 1),
        osvos=None if opened.osvos is None else BridgedEngine(opened.osvos, stream, 1),
        features=None if opened.features is None else BridgedEngine(opened.features, stream, 1),
    )
    plain = DeviceOptions(use_graphs=False, use_streams=False)
    given = results(bridged, stream=stream, device_options=plain)
    ious = [
        np.count_nonzero((mine == k) & (theirs == k))
        / np.count_nonzero((mine == k) | (theirs == k))
        for mine, theirs in zip(given[1:], expected[1:], strict=True)
        for k in range(1, objects + 1)
        if np.count_nonzero(theirs == k) >= SMALL_AREA_PX
    ]
    if not ious:
        raise CannotRunError(f"no object has {SMALL_AREA_PX} pixels at this size")
    return {
        "frames": len(given),
        "iou_mean": round(float(np.mean(ious)), 5),
        "iou_worst": round(float(np.min(ious)), 5),
        "compared": len(ious),
        "holds": bool(np.mean(ious) >= 0.995 and np.min(ious) >= 0.98),
    }


def speed(bench: Bench, budget: Budget) -> dict[str, Any]:
    """Measure FPS per number of objects, with OSVOS or the target model."""
    bench.need_stream()
    figures: dict[str, Any] = {}
    some = bench.sizes.objects[min(2, len(bench.sizes.objects) - 1)]
    runs: list[tuple[str, int, DeviceOptions, bool]] = [
        *((f"objects {k}", k, DeviceOptions(), False) for k in bench.sizes.objects),
        (f"objects {some}, no graphs", some, DeviceOptions(use_graphs=False), False),
        (f"objects {some}, one stream", some, DeviceOptions(use_streams=False), False),
        (
            f"objects {some}, no graphs, one stream",
            some,
            DeviceOptions(use_graphs=False, use_streams=False),
            False,
        ),
        ("objects 1, CRF", 1, DeviceOptions(), True),
    ]
    for name, make in _engine_sets(bench).items():
        for what, objects, options, crf in runs:
            entry = _guarded_run(bench, budget, make, objects, options, crf=crf)
            if entry["status"] == "cannot run" and objects == 1:
                figures[name] = entry  # the engines do not load
                break
            figures[f"{name}, {what}"] = entry
    precision = "fp32" if bench.is_dry else "fp16"
    for k in bench.sizes.objects:
        figures[f"target model instead of OSVOS on PyTorch {precision}, objects {k}"] = (
            _guarded_run(
                bench,
                budget,
                lambda: torch_engine_set(bench, precision, has_target=True),
                k,
                DeviceOptions(),
            )
        )
    return figures


def _guarded_run(
    bench: Bench, budget: Budget, make: Any, objects: int, options: DeviceOptions, **more: Any
) -> dict[str, Any]:
    if budget.is_spent:
        return {"status": "not run", "why": "the time of the section is spent"}
    return guarded(lambda: _fps(bench, make(), objects, options, **more))


def _engine_sets(bench: Bench) -> dict[str, Any]:
    """Return functions that open a set of engines on the device, by name."""
    made: dict[str, Any] = {}
    for directory in bench.engine_dirs:
        for backend in () if bench.is_dry else DEVICE_BACKENDS:
            name = f"{Path(directory).name} on {backend}"
            made[name] = lambda d=directory, b=backend: open_engines(d, backend=b, threads=2)
    for precision in ("fp16", "fp32"):
        if bench.is_dry and precision == "fp16":
            continue  # half precision is slow on a CPU
        made[f"paper size on PyTorch {precision}"] = lambda p=precision: torch_engine_set(bench, p)
    return made


def torch_engine_set(bench: Bench, precision: str, *, has_target: bool = False) -> EngineSet:
    """Return random paper-size networks in PyTorch that keep the masks in place.

    Args:
        bench: Devices and sizes.
        precision: ``"fp32"`` or ``"fp16"``.
        has_target: Whether a features network replaces OSVOS.
    """
    torch, stream = bench.need_torch(), bench.need_stream()
    most = max(bench.sizes.objects)

    class Kept(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, role: Role, network: Any) -> None:
            super().__init__()
            self.role, self.network = role, network

        def forward(self, *given: Any) -> Any:
            answer = self.network(*given)
            if self.role == "flow":
                return torch.tanh(answer) * SHARE
            if self.role == "osvos":
                return answer
            return given[0][:, 3:4] * (1 - SHARE) + answer * SHARE

    engines: dict[Role, Engine] = {
        role: TorchEngine(bench, stream, role, Kept(role, module), role_spec(bench, role), most)
        for role, module in torch_modules(bench, precision).items()
        if not (has_target and role == "osvos")
    }
    if has_target:
        trunk, spec = torch_trunk(bench, precision)
        engines["features"] = TorchEngine(bench, stream, "features", trunk, spec, 1)
    manifest = Manifest(
        name="paper size, random weights",
        frame_size_hw=bench.sizes.frame_hw,
        roi_size=bench.sizes.roi,
        max_objects=most,
        preprocessing=Preprocessing(),
        flow=FlowSource("engine"),
        roles={role: _entry(engine.spec, precision) for role, engine in engines.items()},
        runtime_defaults={},
        provenance=Provenance((), "", "gpu_check.py", "", "2026-01-01T00:00:00+00:00"),
    )
    return EngineSet(
        manifest=manifest,
        propagation=engines["propagation"],
        flow=engines["flow"],
        osvos=engines.get("osvos"),
        features=engines.get("features"),
        backend="pytorch",
        backend_note="eager PyTorch, for the measurement only",
        digests={},
    )


def _entry(spec: EngineSpec, precision: str) -> RoleEntry:
    return RoleEntry(
        onnx=f"{spec.role}.onnx",
        sha256="0" * 64,
        external_data=(),
        opset=OPSET,
        precision="fp16" if precision == "fp16" else "fp32",
        half_weights=0,
        total_weights=1,
        inputs=spec.inputs,
        outputs=spec.outputs,
        size_multiple=1,
        variant="random",
        parameters=0,
    )


def _fps(
    bench: Bench, engines: EngineSet, objects: int, options: DeviceOptions, *, crf: bool = False
) -> dict[str, Any]:
    stream, sizes = bench.need_stream(), bench.sizes
    if objects > engines.manifest.max_objects:
        engines.close()
        raise CannotRunError(f"the engines take {engines.manifest.max_objects} objects at most")
    if not isinstance(engines.propagation, DeviceEngine):
        engines.close()
        raise CannotRunError(f"the engines run on {engines.backend}")
    frames, labels = moving_discs(sizes.frame_hw, objects, sizes.warmup + sizes.frames + 1)
    chosen = PipelineOptions(
        osvos=OsvosOptions(
            mode="blend" if engines.osvos is not None else "off",
            blend_weight=0.01,  # the random network has no information
        ),
        flip_tta=False,
        crf=CrfOptions(iterations=sizes.crf_updates) if crf else None,
    )
    with (
        peak_memory(bench) as figures,
        Pipeline(
            engines,
            options=chosen,
            stream=stream.create_stream(high_priority=True),
            device_options=options,
        ) as pipeline,
    ):
        pipeline.start(frames[0], labels)
        taken, stages = [], {}
        for n, frame in enumerate(frames[1:], start=1):
            if n + 1 < len(frames):
                pipeline.prefetch_frame(frames[n + 1])
            before = time.perf_counter()
            result = pipeline.step(frame)
            if n > sizes.warmup:
                taken.append(time.perf_counter() - before)
                for stage, seconds in result.timings.items():
                    stages.setdefault(stage, []).append(seconds)
        return {
            **figures,
            "fps": fps_from_seconds(taken),
            "frame": times(taken),
            "stages": {stage: times(seconds) for stage, seconds in stages.items()},
            "objects_at_the_end": len(set(np.unique(result.labels).tolist()) - {0}),
        }


def moving_discs(
    size_hw: tuple[int, int], objects: int, frames: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """Return frames of a moving texture, two pixels per frame, and labels of discs."""
    height, width = size_hw
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 9), np.cos(y / 7), np.sin((x + y) / 11)], -1)
    noise = np.random.default_rng(0).integers(0, 30, (height, width, 3))
    picture = np.clip(115 + 80 * waves + noise, 0, 255).astype(np.uint8)
    labels = np.zeros(size_hw, np.uint8)
    for k in range(objects):
        cx, cy = width * (k + 0.5) / objects, height * (0.4 + 0.2 * (k % 2))
        labels[np.hypot(x - cx, y - cy) < 0.3 * min(width / objects, height)] = k + 1
    return [np.ascontiguousarray(np.roll(picture, 2 * n, axis=1)) for n in range(frames)], labels
