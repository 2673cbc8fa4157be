"""Measure the engines of every backend for gpu_check.py, and eager PyTorch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.harness import (
    Bench,
    Budget,
    CannotRunError,
    features_size_hw,
    guarded,
    one_line,
    times,
)
from mpn._common.closeable import Closeable
from mpn.cuda.api import Stream
from mpn.cuda.array import DeviceArray
from mpn.engines.base import DeviceEngine, EngineBuffers
from mpn.engines.directory.manifest import load_manifest
from mpn.engines.onnxruntime.finetune import finetune_entry
from mpn.engines.open import GpuBackend, open_engines, open_object_engine
from mpn.engines.spec import EngineSpec, Precision, Role, engine_spec, features_spec
from mpn.engines.tensorrt.engine import TrtEngine
from mpn.engines.weights import read_weights
from mpn.errors import BackendError
from mpn.types import Float32Array

DEVICE_BACKENDS: tuple[GpuBackend, ...] = ("cuda", "tensorrt", "tensorrt-rtx")


def example_inputs(spec: EngineSpec, objects: int = 1) -> dict[str, np.ndarray]:
    """Return random inputs with the shapes and value ranges of a network."""
    rng = np.random.default_rng(3)
    made = {}
    for tensor in spec.inputs:
        shape = tuple(objects if isinstance(size, str) else size for size in tensor.shape)
        values = rng.random(shape, np.float32)
        if spec.role in ("flow", "features"):
            values *= 255
        elif spec.role == "osvos":
            values = 255 * values - 115
        else:  # probability and score are both in 0..1
            values[:, :3] = 4 * values[:, :3] - 2
        made[tensor.name] = values.astype(np.float32)
    return made


def engines(bench: Bench, budget: Budget) -> dict[str, Any]:
    """Measure parity, precision and latency of each backend and engine directory.

    Engines in int8 must be refused by each of these backends.
    """
    figures: dict[str, Any] = {"lite-int8 is refused": guarded(int8_refusals)}
    for directory in bench.engine_dirs:
        for backend in ("cpu",) if bench.is_dry else DEVICE_BACKENDS:
            name = f"{Path(directory).name} on {backend}"
            if budget.is_spent:
                figures[name] = {"status": "not run", "why": "the time of the section is spent"}
                continue
            figures[name] = guarded(
                lambda directory=directory, backend=backend: _engines(bench, directory, backend)  # type: ignore[misc]
            )
    return figures


def int8_refusals() -> dict[str, Any]:
    """Open the int8 engines on each GPU backend, which must refuse, and with auto."""
    refused = {}
    for backend in DEVICE_BACKENDS:
        try:
            open_engines("lite-int8", backend=backend).close()
        except BackendError as error:
            refused[backend] = one_line(error)
        else:
            refused[backend] = ""
    with open_engines("lite-int8", with_osvos=False, with_features=False, threads=1) as opened:
        used, note = opened.backend, opened.backend_note
    wanted = "engine is int8, which backends cpu and openvino run"
    return {
        "refused": refused,
        "auto": {"backend": used, "note": note},
        "holds": used == "cpu" and all(wanted in message for message in refused.values()),
    }


def _engines(bench: Bench, directory: str, backend: Any) -> dict[str, Any]:
    stream = bench.need_stream()
    before = time.perf_counter()
    with open_engines(directory, backend=backend, threads=2) as opened:
        figures: dict[str, Any] = {
            "opened_s": round(time.perf_counter() - before, 2),
            "note": opened.backend_note,
            "roles": {},
        }
        references = guarded(lambda: _references(directory, opened.engines))
        for role, engine in opened.engines.items():
            entry = opened.manifest.roles[role]
            figures["roles"][role] = role_figures = {
                "precision": entry.precision,
                "half_weights": entry.half_weights,
                "total_weights": entry.total_weights,
            }
            if isinstance(engine, DeviceEngine):
                most = opened.manifest.max_objects
                for k in [
                    k for k in bench.sizes.objects if role == "propagation" and k <= most
                ] or [1]:
                    engine.prepare(stream.address, k)
                    taken = bench.seconds(
                        lambda engine=engine, k=k: engine.enqueue(stream.address, k),  # type: ignore[misc]
                        repeats=bench.sizes.repeats,
                    )
                    role_figures[f"objects {k}"] = times(taken)
                role_figures["supports_graph_capture"] = engine.supports_graph_capture
                if isinstance(engine, TrtEngine):
                    role_figures["why_no_graph"] = {
                        str(k): reason for k, reason in engine.why_no_graphs.items()
                    }
            outputs = engine.run(example_inputs(engine.spec))
            if references["status"] != "done":
                role_figures["parity"] = references
                continue
            role_figures["parity"] = {
                name: parity(role, entry.precision, outputs[name], expected)
                for name, expected in references["by_role"][role].items()
            }
    return figures


def parity(
    role: Role, precision: Precision, output: Float32Array, expected: Float32Array
) -> dict[str, Any]:
    """Compare an output with onnxruntime on the CPU, by the export's limits.

    Args:
        role: Role of the network.
        precision: Of its layers.
        output: (N, C, H, W) float32.
        expected: The same on the CPU.
    """
    figures: dict[str, Any] = {
        "max_abs": float(np.abs(output - expected).max()),
        "largest_value": float(np.abs(expected).max()),
    }
    try:
        from mpn.export.parity import limits_for, measured
    except ImportError as error:
        return {**figures, "verdict": f"cannot run: {one_line(error)}"}
    measures = [measured(limit, output, expected) for limit in limits_for(role, precision)]
    within = all(measure.is_within for measure in measures)
    return {
        **figures,
        "measures": {m.limit.name: {"value": m.value, "limit": m.limit.value} for m in measures},
        "verdict": "within the limits" if within else "differs",
    }


def _references(directory: str, wanted: Mapping[Role, Any]) -> dict[str, Any]:
    with open_engines(directory, backend="cpu", threads=4) as host:
        return {
            "by_role": {
                role: host.engines[role].run(example_inputs(host.engines[role].spec))
                for role in wanted
            }
        }


class TorchEngine(Closeable):
    """Run a network in PyTorch as a DeviceEngine.

    It measures the pipeline on machines without TensorRT and onnxruntime for CUDA. It is not a
    backend of the package.

    Args:
        bench: Devices and sizes.
        stream: Stream that allocates the buffers.
        role: Role of the network.
        module: Network as deployed for its role.
        spec: Tensors of the network.
        objects: Rows of the buffers.
    """

    def __init__(
        self, bench: Bench, stream: Stream, role: Role, module: Any, spec: EngineSpec, objects: int
    ) -> None:
        self._torch, self._is_dry = bench.need_torch(), bench.is_dry
        self._stream, self._module, self._spec = stream, module, spec
        self._rows = role == "propagation"

        def buffer(shape: tuple[int | str, ...]) -> DeviceArray:
            return stream.empty(
                tuple(objects if isinstance(n, str) else n for n in shape), np.float32
            )

        self._inputs = {t.name: buffer(t.shape) for t in spec.inputs}
        self._outputs = {t.name: buffer(t.shape) for t in spec.outputs}
        self._graphs: dict[int, Any] = {}

    @property
    def spec(self) -> EngineSpec:
        """See DeviceEngine."""
        return self._spec

    @property
    def backend(self) -> str:
        """See DeviceEngine."""
        return "pytorch"

    @property
    def supports_graph_capture(self) -> bool:
        """See DeviceEngine."""
        return False  # the allocator of torch supports captures by torch only

    def buffers(self, objects: int = 1) -> EngineBuffers:
        """See DeviceEngine."""

        def rows(arrays: dict[str, DeviceArray]) -> dict[str, DeviceArray]:
            return {n: a.part(0, objects) if self._rows else a for n, a in arrays.items()}

        return EngineBuffers(inputs=rows(self._inputs), outputs=rows(self._outputs))

    def prepare(self, stream: int, objects: int = 1) -> None:
        """See DeviceEngine."""
        for _ in range(2):
            self.enqueue(stream, objects)
        if not self._is_dry:
            self._torch.cuda.synchronize()

    def enqueue(self, stream: int, objects: int = 1) -> EngineBuffers:
        """See DeviceEngine."""
        buffers = self.buffers(objects)
        if self._is_dry:
            self._stream.scheduler.put(stream, self._spec.role, lambda: self._run(buffers))  # type: ignore[attr-defined]
        else:
            torch = self._torch
            with torch.cuda.stream(torch.cuda.ExternalStream(stream)):
                self._run(buffers)
        return buffers

    def infer_on_device(self, inputs: Any, stream: int) -> Any:
        """See DeviceEngine; not used."""
        raise CannotRunError("the PyTorch engine runs with its own buffers only")

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See Engine."""
        torch = self._torch
        given = {n: torch.from_numpy(np.ascontiguousarray(a)) for n, a in inputs.items()}
        device = "cpu" if self._is_dry else "cuda"
        with torch.inference_mode():
            out = self._module(*(given[t.name].to(device) for t in self._spec.inputs))
        return {self._spec.outputs[0].name: out.float().cpu().numpy()}

    def close(self) -> None:
        """Release the network."""
        self._module = None

    def _run(self, buffers: EngineBuffers) -> None:
        torch = self._torch
        with torch.inference_mode():
            given = [self._view(buffers.inputs[t.name]) for t in self._spec.inputs]
            self._view(buffers.outputs[self._spec.outputs[0].name]).copy_(self._module(*given))

    def _view(self, array: Any) -> Any:
        if self._is_dry:
            from tests.emulation.cuda_shim.device import host_view

            return self._torch.from_numpy(host_view(array))
        # The stream is already the current one of torch, so the interface needs no ordering.
        plain = DeviceArray(array.address, array.shape, array.dtype, array.owner)
        return self._torch.as_tensor(plain, device="cuda")


def torch_modules(bench: Bench, precision: str) -> dict[Role, Any]:
    """Return the paper-size networks with fixed random weights as deployed modules."""
    torch = bench.need_torch()
    try:
        from benchmarks.torch_baseline.networks import PAPER, TINY, seeded_networks
        from mpn.export.tracing import deployed
    except ImportError as error:
        raise CannotRunError(f"the networks cannot be built ({error})") from error
    made: dict[Role, Any] = {}
    for role, network in seeded_networks(TINY if bench.sizes.is_tiny else PAPER).items():
        network = network.to(bench.torch_device)
        if precision == "fp16":
            network = network.half().to(memory_format=torch.channels_last)
        made[role] = deployed(role, network)
    return made


def torch_trunk(bench: Bench, precision: str) -> tuple[Any, EngineSpec]:
    """Return a random EfficientNet-Lite0 as a features network, and its tensors."""
    torch = bench.need_torch()
    from mpn.networks.backbones import build_backbone

    torch.manual_seed(0)
    backbone = build_backbone(
        "efficientnet-lite0", output_stride=32, width=0.125 if bench.sizes.is_tiny else 1.0
    ).eval()

    class Joined(torch.nn.Module):  # type: ignore[misc, name-defined]
        """Join the maps of all strides on the grid of stride 8."""

        def __init__(self) -> None:
            super().__init__()
            self.backbone = backbone

        def forward(self, image: Any) -> Any:
            weight = next(self.backbone.parameters())
            maps = self.backbone(((image - 127) / 128).to(weight.dtype))
            grid = maps[8].shape[2:]
            return torch.cat(
                [
                    torch.nn.functional.interpolate(
                        plane, size=grid, mode="bilinear", align_corners=True
                    )
                    for plane in maps.values()
                ],
                dim=1,
            )

    trunk = Joined().to(bench.torch_device)
    if precision == "fp16":
        trunk = trunk.half().to(memory_format=torch.channels_last)
    size_hw = features_size_hw(bench.sizes.frame_hw)
    return trunk, features_spec(size_hw, sum(backbone.channels.values()))


def role_spec(bench: Bench, role: Role) -> EngineSpec:
    """Return the tensors of a role at the measured sizes."""
    sizes = bench.sizes
    return engine_spec(
        role,
        frame_size_hw=sizes.frame_hw,
        roi_size=sizes.roi,
        max_objects=max(sizes.objects),
    )


def eager(bench: Bench, budget: Budget) -> dict[str, Any]:
    """Measure eager PyTorch: fp32 without TF32, and fp16 in channels_last."""
    torch = bench.need_torch()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    figures: dict[str, Any] = {"torch": torch.__version__, "tf32": False}
    for precision in ("fp32", "fp16"):
        figures[precision] = guarded(lambda precision=precision: _eager(bench, budget, precision))  # type: ignore[misc]
    bench.facts["eager"] = figures
    return figures


def _eager(bench: Bench, budget: Budget, precision: str) -> dict[str, Any]:
    torch, figures = bench.need_torch(), {}
    for role, module in torch_modules(bench, precision).items():
        spec = role_spec(bench, role)
        for k in bench.sizes.objects if role == "propagation" else (1,):
            name = f"{role}, objects {k}" if role == "propagation" else role
            if budget.is_spent:
                figures[name] = {"status": "not run", "why": "the time of the section is spent"}
                continue
            given = [
                torch.from_numpy(a).to(bench.torch_device) for a in example_inputs(spec, k).values()
            ]

            def run(module: Any = module, given: list[Any] = given) -> None:
                with torch.inference_mode():
                    module(*given)

            figures[name] = guarded(
                lambda run=run: times(bench.torch_seconds(run, repeats=bench.sizes.repeats))  # type: ignore[misc]
            )
    return figures


def finetuning(bench: Bench, budget: Budget) -> dict[str, Any]:
    """Measure fine-tuning of OSVOS on one object."""
    from mpn.runtime.finetune.finetuner import ObjectFinetuner
    from mpn.runtime.finetune.plan import FinetuneOptions, options_for
    from mpn.runtime.options import PipelineOptions
    from mpn.synthetic import render_clip

    figures: dict[str, Any] = {}
    frame = next(iter(render_clip(frames=1, size_hw=bench.sizes.mask_hw, objects=1)))
    for directory in bench.finetune_dirs:
        for backend in ("cpu",) if bench.is_dry else DEVICE_BACKENDS:
            name = f"{Path(directory).name} on {backend}"

            def work(directory: str = directory, backend: Any = backend) -> dict[str, Any]:
                with open_engines(directory, backend=backend, threads=4) as opened:
                    given = PipelineOptions(one_shot="osvos")
                    options = given.with_defaults(opened.manifest.runtime_defaults)
                    wanted = FinetuneOptions(roles=("osvos",), cache_dir=None)
                    chosen = with_steps(
                        options_for(opened.manifest, options, wanted), bench.sizes.finetune_steps
                    )
                    with ObjectFinetuner(
                        directory, opened, chosen, options, threads=4
                    ) as finetuner:
                        before = time.perf_counter()
                        for engine in finetuner.finetune(frame.rgb, frame.labels, 1).values():
                            engine.close()
                        return {
                            "steps": bench.sizes.finetune_steps,
                            "seconds": round(time.perf_counter() - before, 3),
                            "report": finetuner.report_as_json(),
                        }

            figures[name] = guarded(work)
    return figures


def with_steps(options: Any, steps: int) -> Any:
    """Return the options with another number of steps for every role."""
    from dataclasses import fields, is_dataclass, replace

    changed = {}
    for item in fields(options):
        value = getattr(options, item.name)
        if item.name == "steps":
            changed[item.name] = steps
        elif is_dataclass(value) and any(inner.name == "steps" for inner in fields(value)):
            changed[item.name] = replace(value, steps=steps)
    return replace(options, **changed)


def weight_swap(bench: Bench, budget: Budget) -> dict[str, Any]:
    """Measure the exchange of weights of an open engine: time and outputs."""
    figures: dict[str, Any] = {}
    for directory in bench.finetune_dirs:
        manifest = load_manifest(directory)
        roles = [role for role, entry in manifest.roles.items() if entry.adapt is not None]
        for role in roles:
            for backend in ("cpu",) if bench.is_dry else DEVICE_BACKENDS:
                name = f"{Path(directory).name} {role} on {backend}"
                if budget.is_spent:
                    figures[name] = {"status": "not run", "why": "the time of the section is spent"}
                    continue
                figures[name] = guarded(
                    lambda directory=directory, role=role, backend=backend: _swapped(  # type: ignore[misc]
                        directory, role, backend
                    )
                )
    if not figures:
        raise CannotRunError("no engine directory here has networks that can be fine-tuned")
    return figures


def _swapped(directory: str, role: Role, backend: Any) -> dict[str, Any]:
    with open_engines(directory, backend=backend, threads=2) as opened:
        manifest, base = opened.manifest, opened.engines[role]
        tensors = finetune_entry(manifest, role).tensors
        weights = {
            name: np.asarray(value * np.float32(1.01), np.float32)
            for name, value in read_weights(Path(directory), tensors).items()
        }
        inputs = example_inputs(base.spec)
        (before,) = base.run(inputs).values()
        taken, answers = [], []
        for _ in range(2):
            started = time.perf_counter()
            with open_object_engine(directory, opened, role, weights, threads=2) as engine:
                taken.append(round(time.perf_counter() - started, 3))
                answers.extend(engine.run(inputs).values())
        return {
            "swap_s": taken,
            "changes_output_by": float(np.abs(answers[0] - before).max()),
            "second_swap_differs_by": float(np.abs(answers[0] - answers[1]).max()),
        }
