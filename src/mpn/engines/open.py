"""Open the engines of a directory with the backend that runs here."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from mpn._common.closeable import Closeable
from mpn._common.memory import return_freed_memory
from mpn.cuda.device import CudaDevice, gpu_unavailable_reason
from mpn.engines.base import Engine
from mpn.engines.directory.files import check_engine_dir, check_present, resolve_inside
from mpn.engines.directory.locate import (
    default_engine_dir,
    local_engine_dir,
    shipped_engine_dir,
)
from mpn.engines.directory.manifest import (
    ENGINE_SOURCE,
    Manifest,
    load_manifest,
    verify_digests,
)
from mpn.engines.onnxruntime.cuda_engine import OrtCudaEngine
from mpn.engines.onnxruntime.engine import OrtBackend, OrtEngine, why_no_cuda
from mpn.engines.onnxruntime.reweight import open_finetuned_engine
from mpn.engines.openvino.engine import OpenVinoEngine
from mpn.engines.spec import Role
from mpn.engines.tensorrt.api import TrtBackend, load_trt
from mpn.engines.tensorrt.open import PlanPolicy, open_trt_engine
from mpn.engines.tensorrt.plans.store import PlanStore
from mpn.engines.tensorrt.reweight import open_refitted_engine
from mpn.errors import BackendError, EngineError, MissingExtraError, OutputError
from mpn.types import Float32Array

Backend = Literal["auto", "cpu", "openvino", "cuda", "tensorrt", "tensorrt-rtx"]
BACKENDS: tuple[Backend, ...] = ("auto", "cpu", "openvino", "cuda", "tensorrt", "tensorrt-rtx")
HOST_BACKENDS = ("cpu", "openvino")
"""Backends whose engines take and return host memory."""
GpuBackend = Literal["tensorrt", "tensorrt-rtx", "cuda"]
GPU_BACKENDS: tuple[GpuBackend, ...] = ("tensorrt", "tensorrt-rtx", "cuda")
"""Backends that ``auto`` tries before the CPU, the fastest first."""


@dataclass(frozen=True)
class OpenEngines:
    """Open engines and the backend that runs them.

    Attributes:
        backend: Backend that runs them.
        note: One sentence on the choice of the backend, and on the plans.
        engines: By role.
        store: Source of the plans; None if the backend has none.
        device: The GPU; None on the CPU.
    """

    backend: str
    note: str
    engines: Mapping[Role, Engine]
    store: PlanStore | None = None
    device: CudaDevice | None = None


@dataclass(frozen=True)
class EngineOpener:
    """Opener of the engines of a directory with any backend.

    Attributes:
        directory: The engine directory.
        manifest: Its manifest.
        roles: Roles to open.
        threads: Threads per operator on the CPU; None for onnxruntime's default.
        policy: Build or load plans; see :class:`PlanPolicy`.
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

    def on_openvino(self) -> dict[Role, Engine]:
        """Open them with OpenVINO on the CPU.

        Raises:
            BackendError: If OpenVINO is installed but broken.
            EngineError: If one cannot be opened; those already open are closed.
            ManifestError: If a file is missing.
            MissingExtraError: If OpenVINO is not installed.
        """

        def open_one(role: Role) -> Engine:
            spec = self.manifest.spec(role)
            return OpenVinoEngine(self._graph(role), spec, threads=self.threads)

        return self._all(open_one)

    def on_gpu(self, backend: GpuBackend) -> OpenEngines:
        """Open them with a backend that runs on a GPU.

        Raises:
            BackendError: If it does not work here.
            EngineError: If one cannot be opened; those already open are closed.
            ManifestError: If a file is missing.
            MissingExtraError: If a package that it needs is not installed.
            OutputError: If a plan cannot be written.
        """
        self.manifest.check_is_float(backend, self.roles)
        if backend == "cuda":
            return self._on_cuda()
        return self._on_trt(backend)

    def _on_cuda(self) -> OpenEngines:
        reason = why_no_cuda()
        if reason is not None:
            raise BackendError(
                f"cuda was requested, but {reason}: uninstall onnxruntime and install mpn-runtime "
                "with its extra [gpu], never together with [cpu], or use backend cpu"
            )
        device = CudaDevice()

        def open_one(role: Role) -> Engine:
            spec = self.manifest.spec(role)
            return OrtCudaEngine(self._graph(role), spec, device, threads=self.threads)

        return OpenEngines("cuda", "", self._all(open_one), device=device)

    def _on_trt(self, backend: TrtBackend) -> OpenEngines:
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
        return OpenEngines(backend, "; ".join(notes), engines, store, device)

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


def open_with(opener: EngineOpener, backend: Backend) -> OpenEngines:
    """Open engines with a backend; ``"auto"`` takes the first one that works.

    ``"auto"`` tries :data:`GPU_BACKENDS` in order, then onnxruntime on the CPU; never OpenVINO,
    whose outputs differ by rounding from the reference.

    Raises:
        BackendError: If the requested backend cannot run here.
        EngineError: If an engine cannot be opened; those already open are closed.
        ManifestError: If a file is missing.
        MissingExtraError: If a package that it needs is not installed.
    """
    if backend == "cpu":
        return OpenEngines("cpu", "cpu, as requested", opener.on_cpu())
    if backend == "openvino":
        return OpenEngines("openvino", "openvino, as requested", opener.on_openvino())
    if backend != "auto":
        opened = opener.on_gpu(backend)
        return _with_note(opened, f"{backend}, as requested")
    reasons = []
    without = gpu_unavailable_reason()
    if without is not None:
        # One reason for all backends: a library may load here, but runs nothing without a GPU.
        return OpenEngines(
            "cpu", f"cpu, because no GPU can be used here: {without}", opener.on_cpu()
        )
    for candidate in GPU_BACKENDS:
        try:
            opened = opener.on_gpu(candidate)
            _smoke_test(opened.engines)
        except (BackendError, MissingExtraError, OutputError) as error:
            reasons.append(f"{candidate} does not work here: {error}")
        except EngineError as error:
            if candidate == "cuda":  # a fault of the graph: the CPU would fail, too
                raise
            reasons.append(f"{candidate} does not run these engines: {error}")
        else:
            failed = f" ({'; '.join(reasons)})" if reasons else ""
            return _with_note(opened, f"{candidate}, because it works here{failed}")
    return OpenEngines("cpu", f"cpu, because {'; '.join(reasons)}", opener.on_cpu())


def _with_note(opened: OpenEngines, note: str) -> OpenEngines:
    whole = f"{note}; {opened.note}" if opened.note else note
    return OpenEngines(opened.backend, whole, opened.engines, opened.store, opened.device)


def _smoke_test(engines: Mapping[Role, Engine]) -> None:
    """Run the propagation engine once; on failure close all and raise BackendError.

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


__all__ = [
    "BACKENDS",
    "Backend",
    "EngineSet",
    "PlanPolicy",
    "check_engine_dir",
    "default_engine_dir",
    "local_engine_dir",
    "open_engines",
    "shipped_engine_dir",
]


@dataclass(frozen=True)
class EngineSet(Closeable):
    """The open engines of a directory; a context manager that closes them.

    Attributes:
        manifest: Manifest of the directory.
        propagation: The propagation engine.
        flow: The flow engine; None if the manifest's flow source is OpenCV DIS.
        osvos: The OSVOS engine; None if the directory has none or it was left out.
        features: The features engine of the target model; None likewise.
        backend: Backend that runs them: ``"cpu"``, ``"openvino"``, ``"cuda"``, ``"tensorrt"`` or
            ``"tensorrt-rtx"``. All engines except those of the first two are
            :class:`mpn.engines.base.DeviceEngine`.
        backend_note: One sentence on the choice of the backend, and on plans used or built.
        digests: SHA-256 from the manifest by file in the directory, for each opened file.
        plans: Source of the plans; None if the backend has none.
        device: The GPU; None on the CPU.
        policy: Build or load plans; see :class:`PlanPolicy`.
        owned: Whether :meth:`close` closes the engines; False for a pipeline on shared engines.
    """

    manifest: Manifest
    propagation: Engine
    flow: Engine | None
    osvos: Engine | None
    backend: str
    backend_note: str
    digests: Mapping[str, str]
    plans: PlanStore | None = None
    device: CudaDevice | None = None
    policy: PlanPolicy = field(default_factory=PlanPolicy)
    owned: bool = True
    features: Engine | None = None

    @property
    def engines(self) -> Mapping[Role, Engine]:
        """The open engines by role."""
        found: dict[Role, Engine] = {"propagation": self.propagation}
        if self.flow is not None:
            found["flow"] = self.flow
        if self.osvos is not None:
            found["osvos"] = self.osvos
        if self.features is not None:
            found["features"] = self.features
        return found

    @property
    def is_on_host(self) -> bool:
        """Whether the engines take and return host memory."""
        return self.backend in HOST_BACKENDS

    def close(self) -> None:
        """Close every engine that is owned; closing twice is allowed.

        Their memory goes back to the system.
        """
        if not self.owned:
            return
        with ExitStack() as stack:  # the others are closed even if one fails
            stack.callback(return_freed_memory)
            for engine in self.engines.values():
                stack.callback(engine.close)


def open_engines(
    directory: str | os.PathLike[str],
    *,
    backend: Backend = "auto",
    threads: int | None = None,
    verify: bool = True,
    with_osvos: bool = True,
    with_features: bool = True,
    plans: PlanPolicy | None = None,
    manifest: Manifest | None = None,
) -> EngineSet:
    """Open the engines of a directory.

    Args:
        directory: Engine directory: a folder, a zip file or an address, see
            :mod:`mpn.engines.directory.locate`.
        backend: ``"cpu"`` (onnxruntime), ``"openvino"`` (on the CPU), ``"cuda"``, ``"tensorrt"``,
            ``"tensorrt-rtx"`` or ``"auto"``, which takes the first of TensorRT, TensorRT for RTX
            and CUDA that passes one run, else ``"cpu"``; ``backend_note`` gives the choice and its
            reason.
        threads: Threads per operator; None for the default of the backend.
        verify: Compare the digests of the files to be opened with the manifest first.
        with_osvos: Open the OSVOS engine too, if the directory has one.
        with_features: Open the features engine too, if the directory has one.
        plans: Build or load plans of TensorRT. By default a missing plan is built, which takes
            seconds to minutes, and saved.
        manifest: The directory's manifest if it is loaded already; None loads it.

    Returns:
        The open engines. Close them, or use them in a ``with`` statement.

    Raises:
        BackendError: If the requested backend cannot run here.
        EngineError: If an engine cannot be opened; those already open are closed.
        InputError: If ``threads`` is under 1.
        ManifestError: If the directory or its manifest cannot be used.
        MissingExtraError: If the package of the backend is not installed.
    """
    _check_backend(backend)
    path = local_engine_dir(directory)
    manifest = manifest or load_manifest(path)
    roles = _roles_to_open(manifest, with_osvos=with_osvos, with_features=with_features)
    if verify:
        verify_digests(path, manifest, roles)

    policy = plans or PlanPolicy()
    opened = open_with(EngineOpener(path, manifest, roles, threads, policy), backend)
    return EngineSet(
        manifest=manifest,
        propagation=opened.engines["propagation"],
        flow=opened.engines.get("flow"),
        osvos=opened.engines.get("osvos"),
        features=opened.engines.get("features"),
        backend=opened.backend,
        backend_note=opened.note,
        digests={file.path: file.sha256 for role in roles for file in manifest.roles[role].files},
        plans=opened.store,
        device=opened.device,
        policy=policy,
    )


def _check_backend(backend: str) -> None:
    if backend not in BACKENDS:
        raise BackendError(f"unknown backend '{backend}': the backends are {', '.join(BACKENDS)}")


def _roles_to_open(
    manifest: Manifest, *, with_osvos: bool, with_features: bool
) -> tuple[Role, ...]:
    roles: list[Role] = ["propagation"]
    if manifest.flow.source == ENGINE_SOURCE:
        roles.append("flow")
    if with_osvos and "osvos" in manifest.roles:
        roles.append("osvos")
    if with_features and "features" in manifest.roles:
        roles.append("features")
    return tuple(roles)


def open_object_engine(
    directory: str | os.PathLike[str],
    engines: EngineSet,
    role: Role,
    weights: Mapping[str, Float32Array],
    *,
    threads: int | None = None,
) -> Engine:
    """Open an engine with other weights on the backend of the directory's engines.

    For ``"openvino"`` it runs on onnxruntime, which the fine-tuning step needs anyway.

    Args:
        directory: Engine directory.
        engines: Its open engines.
        role: ``"propagation"`` or ``"osvos"``.
        weights: New weights by name; the others stay.
        threads: Threads per operator on the CPU; None for onnxruntime's default.

    Returns:
        The engine; on a GPU a :class:`mpn.engines.base.DeviceEngine`.

    Raises:
        BackendError: If a plan is missing and none may be built.
        EngineError: If a weight does not fit, or the check of the new weights fails.
        OutputError: If files cannot be written.
    """
    if engines.plans is not None:
        return open_refitted_engine(engines.plans, role, weights, engines.policy, threads=threads)
    return open_finetuned_engine(
        directory,
        engines.manifest,
        role,
        weights,
        backend="cuda" if engines.backend == "cuda" else "cpu",
        threads=threads,
        base=None if engines.backend == "openvino" else engines.engines[role],
        device=engines.device,
    )


def step_backend(engines: EngineSet) -> OrtBackend:
    """Return the backend of onnxruntime that runs the fine-tuning step.

    CUDA if the networks run on a GPU and the installed onnxruntime has CUDA, else the CPU.
    """
    if engines.is_on_host:
        return "cpu"
    return "cuda" if why_no_cuda() is None else "cpu"
