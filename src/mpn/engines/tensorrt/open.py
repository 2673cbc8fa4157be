"""Open engines with TensorRT: find, build and load their plans."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mpn.cuda.device import CudaDevice
from mpn.engines.directory.manifest import load_manifest, verify_digests
from mpn.engines.spec import Role
from mpn.engines.tensorrt.api import TRT_BACKENDS, TrtApi, TrtBackend, load_trt
from mpn.engines.tensorrt.engine import TrtEngine
from mpn.engines.tensorrt.plans.options import BuildOptions
from mpn.engines.tensorrt.plans.progress import OnPlanProgress
from mpn.engines.tensorrt.plans.store import Plan, PlanStore
from mpn.errors import BackendError, EngineError, MissingExtraError, MpnError


@dataclass(frozen=True, kw_only=True)
class PlanPolicy:
    """Options for loading and building plans.

    Attributes:
        build: Build a plan that is missing or does not fit; if False, raise.
        options: Build options.
        use_graphs: Capture a CUDA graph per number of objects.
        on_progress: Called with the progress of a build.
    """

    build: bool = True
    options: BuildOptions = field(default_factory=BuildOptions)
    use_graphs: bool = True
    on_progress: OnPlanProgress | None = None


def open_trt_engine(
    store: PlanStore,
    role: Role,
    policy: PlanPolicy,
    *,
    options: BuildOptions | None = None,
    weights: Mapping[str, np.ndarray[Any, Any]] | None = None,
) -> tuple[TrtEngine, str]:
    """Open the engine of a role.

    A plan of the cache that the library refuses is built again, once.

    Args:
        store: The plans of the directory.
        role: The network.
        policy: Build or load its plan.
        options: Build options that replace the policy's.
        weights: See :class:`TrtEngine`.

    Returns:
        The engine, and one sentence on its plan.

    Raises:
        BackendError: If there is no GPU, or no plan and none may be built.
        EngineError: If it cannot be built or loaded.
        OutputError: If a plan cannot be written.
    """
    wanted = options or policy.options
    plan = store.plan(role, wanted, build=policy.build, on_progress=policy.on_progress)
    try:
        return _loaded(store, role, plan, policy, weights), plan.note
    except EngineError as error:
        if plan.was_built:
            raise
        rejected = f"{plan.path.name} does not load: {error}"
    plan = store.plan(
        role, wanted, build=policy.build, rejected=rejected, on_progress=policy.on_progress
    )
    return _loaded(store, role, plan, policy, weights), plan.note


def _loaded(
    store: PlanStore,
    role: Role,
    plan: Plan,
    policy: PlanPolicy,
    weights: Mapping[str, np.ndarray[Any, Any]] | None,
) -> TrtEngine:
    if store.device is None:
        raise BackendError(f"{store.api.title} runs on a GPU, and there is none here")
    return TrtEngine(
        store.api,
        plan.data,
        store.manifest.spec(role),
        store.device,
        use_graphs=policy.use_graphs,
        weights=weights,
        kernel_cache=plan.path.with_name(f"{plan.path.stem}-{store.device.arch}.kernels"),
        allow_host_code=plan.record.key.options.version_compatible,
    )


def build_plans(
    directory: str | os.PathLike[str],
    *,
    backend: TrtBackend | None = None,
    options: BuildOptions | None = None,
    on_progress: OnPlanProgress | None = None,
) -> tuple[Plan, ...]:
    """Build the missing plans of an engine directory.

    If there is a GPU, a second, refittable plan is built for each network that can be fine-tuned.
    Without a GPU that plan is built at its first use.

    Args:
        directory: Engine directory.
        backend: The library; None for the first one that can build here: TensorRT on a GPU,
            TensorRT for RTX on any machine.
        options: See :class:`BuildOptions`.
        on_progress: Called with the progress of each build.

    Returns:
        All plans; ``note`` gives whether a plan was built or found.

    Raises:
        BackendError: If no library can build here.
        EngineError: If one cannot be built.
        ManifestError: If the directory cannot be used.
        MissingExtraError: If the library is not installed.
    """
    options = options or BuildOptions()
    path = Path(directory)
    manifest = load_manifest(path)
    verify_digests(path, manifest)
    api, device = builder_for(backend)
    store = PlanStore(path, manifest, api, device)
    plans = []
    for role, entry in manifest.roles.items():
        plans.append(store.plan(role, options, on_progress=on_progress))
        if entry.adapt is not None and device is not None:
            refit = refittable(options)
            plans.append(store.plan(role, refit, on_progress=on_progress))
    return tuple(plans)


def refittable(options: BuildOptions) -> BuildOptions:
    """Return the same options for a refittable plan."""
    return replace(options, refittable=True)


def builder_for(backend: TrtBackend | None) -> tuple[TrtApi, CudaDevice | None]:
    """Return a library that can build here, and the GPU if there is one.

    Raises:
        BackendError: If none can.
        MissingExtraError: If the requested library is not installed.
    """
    device, no_device = _device_or_why()
    if backend is not None:
        api = load_trt(backend)
        if device is None and not api.is_rtx:
            raise BackendError(
                f"{api.title} builds a plan only on the GPU that runs it: {no_device}; or build "
                "for backend tensorrt-rtx, which needs none"
            )
        return api, device
    reasons = []
    for name in TRT_BACKENDS:
        if name == "tensorrt" and device is None:
            reasons.append(f"tensorrt builds on a GPU only: {no_device}")
            continue
        try:
            return load_trt(name), device
        except MpnError as error:
            reasons.append(str(error))
    raise BackendError(f"no plans can be built here: {'; '.join(reasons)}")


def _device_or_why() -> tuple[CudaDevice | None, str]:
    try:
        return CudaDevice(), ""
    except (BackendError, MissingExtraError) as error:
        return None, str(error)
