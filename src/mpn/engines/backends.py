"""Opening engines with one backend, and finding the one that really works."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from mpn.cuda.device import CudaDevice, gpu_unavailable_reason
from mpn.engines.base import Engine
from mpn.engines.files import check_present, resolve_inside
from mpn.engines.manifest import Manifest
from mpn.engines.ort import OrtEngine, why_no_cuda
from mpn.engines.ort_cuda import OrtCudaEngine
from mpn.engines.plans.store import PlanStore
from mpn.engines.spec import Role
from mpn.engines.trt_api import TrtBackend, load_trt
from mpn.engines.trt_open import PlanPolicy, open_trt_engine
from mpn.errors import BackendError, EngineError, MissingExtraError, OutputError

Backend = Literal["auto", "cpu", "cuda", "tensorrt", "tensorrt-rtx"]
BACKENDS: tuple[Backend, ...] = ("auto", "cpu", "cuda", "tensorrt", "tensorrt-rtx")
GpuBackend = Literal["tensorrt", "tensorrt-rtx", "cuda"]
PROBED: tuple[GpuBackend, ...] = ("tensorrt", "tensorrt-rtx", "cuda")
"""What ``auto`` tries before the CPU, the fastest first."""


@dataclass(frozen=True)
class OpenedRoles:
    """Engines that are open.

    Attributes:
        backend: What runs them.
        note: One sentence on why it is this backend, and on the plans.
        engines: By role.
        store: The plans they come from; None where there are none.
        device: The GPU; None on the CPU.
    """

    backend: str
    note: str
    engines: Mapping[Role, Engine]
    store: PlanStore | None = None
    device: CudaDevice | None = None


@dataclass(frozen=True)
class Opening:
    """What is to be opened, whatever runs it.

    Attributes:
        directory: The engine directory.
        manifest: Its manifest.
        roles: Which engines.
        threads: Threads within an operator on the CPU; None leaves it to onnxruntime.
        policy: How plans are come by.
    """

    directory: Path
    manifest: Manifest
    roles: tuple[Role, ...]
    threads: int | None
    policy: PlanPolicy

    def on_cpu(self) -> dict[Role, Engine]:
        """Open them with onnxruntime on the CPU.

        Raises:
            EngineError: If one cannot be opened; those already open are closed.
            ManifestError: If a file is missing.
            MissingExtraError: If onnxruntime is not installed.
        """

        def open_one(role: Role) -> Engine:
            return OrtEngine(
                self._graph(role), self.manifest.spec(role), backend="cpu", threads=self.threads
            )

        return self._all(open_one)

    def on_gpu(self, backend: GpuBackend) -> OpenedRoles:
        """Open them with a backend that runs on a GPU.

        Raises:
            BackendError: If it does not work here.
            EngineError: If one cannot be opened; those already open are closed.
            ManifestError: If a file is missing.
            MissingExtraError: If what it needs is not installed.
            OutputError: If a plan cannot be written.
        """
        if backend == "cuda":
            return self._on_cuda()
        return self._on_trt(backend)

    def _on_cuda(self) -> OpenedRoles:
        reason = why_no_cuda()
        if reason is not None:
            raise BackendError(
                f"cuda was asked for, but {reason}: uninstall onnxruntime and install mpn-runtime "
                "with its extra [gpu], never together with [cpu], or use backend cpu"
            )
        device = CudaDevice()

        def open_one(role: Role) -> Engine:
            spec = self.manifest.spec(role)
            return OrtCudaEngine(self._graph(role), spec, device, threads=self.threads)

        return OpenedRoles("cuda", "", self._all(open_one), device=device)

    def _on_trt(self, backend: TrtBackend) -> OpenedRoles:
        api = load_trt(backend)
        device = CudaDevice()
        store = PlanStore(self.directory, self.manifest, api, device)
        notes = []

        def open_one(role: Role) -> Engine:
            self._graph(role)
            engine, note = open_trt_engine(store, role, self.policy)
            notes.append(note)
            return engine

        engines = self._all(open_one)
        return OpenedRoles(backend, "; ".join(notes), engines, store, device)

    def _graph(self, role: Role) -> Path:
        for file in self.manifest.roles[role].files:
            check_present(self.directory, file.path)
        return resolve_inside(self.directory, self.manifest.roles[role].onnx)

    def _all(self, open_one: Callable[[Role], Engine]) -> dict[Role, Engine]:
        engines: dict[Role, Engine] = {}
        with ExitStack() as opened:
            for role in self.roles:
                engines[role] = open_one(role)
                opened.callback(engines[role].close)
            opened.pop_all()
        return engines


def open_with(opening: Opening, backend: Backend) -> OpenedRoles:
    """Open engines with the backend asked for; ``"auto"``: the first of :data:`PROBED` that works.

    Raises:
        BackendError: If the backend asked for cannot run here.
        EngineError: If an engine cannot be opened; those already open are closed.
        ManifestError: If a file is missing.
        MissingExtraError: If what it needs is not installed.
    """
    if backend == "cpu":
        return OpenedRoles("cpu", "cpu, as asked for", opening.on_cpu())
    if backend != "auto":
        opened = opening.on_gpu(backend)
        return _noted(opened, f"{backend}, as asked for")
    reasons = []
    without = gpu_unavailable_reason()
    if without is not None:
        # Said once: a library may be there and load, without a GPU it runs nothing.
        return OpenedRoles(
            "cpu", f"cpu, because no GPU can be used here: {without}", opening.on_cpu()
        )
    for candidate in PROBED:
        try:
            opened = opening.on_gpu(candidate)
            _prove(opened.engines)
        except (BackendError, MissingExtraError, OutputError) as error:
            reasons.append(f"{candidate} does not work here: {error}")
        except EngineError as error:
            if candidate == "cuda":  # the graph's fault: the CPU would not run it either
                raise
            reasons.append(f"{candidate} does not run these engines: {error}")
        else:
            passed_over = f" ({'; '.join(reasons)})" if reasons else ""
            return _noted(opened, f"{candidate}, because it works here{passed_over}")
    return OpenedRoles("cpu", f"cpu, because {'; '.join(reasons)}", opening.on_cpu())


def _noted(opened: OpenedRoles, note: str) -> OpenedRoles:
    whole = f"{note}; {opened.note}" if opened.note else note
    return OpenedRoles(opened.backend, whole, opened.engines, opened.store, opened.device)


def _prove(engines: Mapping[Role, Engine]) -> None:
    """Run the propagation engine once, or close all and raise BackendError.

    An engine that opened on a GPU may still fail at its first kernel: no code for this GPU, no
    cuDNN, no memory left.
    """
    propagation = engines["propagation"]
    zeros = {
        tensor.name: np.zeros(
            tuple(1 if isinstance(size, str) else size for size in tensor.shape), np.float32
        )
        for tensor in propagation.spec.inputs
    }
    try:
        propagation.run(zeros)
    except EngineError as error:
        for engine in engines.values():
            engine.close()
        raise BackendError(str(error)) from error
