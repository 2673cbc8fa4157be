"""From an engine directory to engines that TensorRT runs: the plan that fits, loaded and proven."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mpn.engines.plans.options import BuildOptions
from mpn.engines.plans.progress import OnPlanProgress
from mpn.engines.plans.store import Plan, PlanStore
from mpn.engines.spec import Role
from mpn.engines.trt_engine import TrtEngine
from mpn.errors import BackendError, EngineError


@dataclass(frozen=True, kw_only=True)
class PlanPolicy:
    """How plans are come by.

    Attributes:
        build: Build what is missing or does not fit; False: that is an error.
        options: How they are built.
        use_graphs: Capture a CUDA graph for every number of objects.
        on_progress: Told how far a build is.
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
        role: Which network.
        policy: How its plan is come by.
        options: Instead of the policy's.
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
