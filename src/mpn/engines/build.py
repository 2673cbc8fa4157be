"""ONNX to plan: every plan of an engine directory, as ``mpn-export --build`` builds them. No torch.

The parts are in :mod:`mpn.engines.plans`.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from mpn.cuda.device import CudaDevice
from mpn.engines.manifest import load_manifest, verify_digests
from mpn.engines.plans.options import BuildOptions
from mpn.engines.plans.progress import OnPlanProgress
from mpn.engines.plans.store import Plan, PlanStore
from mpn.engines.trt_api import TRT_BACKENDS, TrtApi, TrtBackend, load_trt
from mpn.errors import BackendError, MissingExtraError, MpnError


def build_plans(
    directory: str | os.PathLike[str],
    *,
    backend: TrtBackend | None = None,
    options: BuildOptions | None = None,
    on_progress: OnPlanProgress | None = None,
) -> tuple[Plan, ...]:
    """Build the plans of an engine directory that are missing.

    Of networks that can be fine-tuned a second plan is built, whose weights can be exchanged, where
    there is a GPU; it is built when it is first needed otherwise.

    Args:
        directory: What mpn-export wrote.
        backend: Which library; None for the first one that can build here: TensorRT on a GPU,
            TensorRT for RTX on any machine.
        options: How; see :class:`BuildOptions`.
        on_progress: Told how far each build is.

    Returns:
        The plans, those that were there already among them; ``note`` says which.

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
    """The same options for a plan whose weights can be exchanged."""
    return replace(options, refittable=True)


def builder_for(backend: TrtBackend | None) -> tuple[TrtApi, CudaDevice | None]:
    """A library that can build here, and the GPU if there is one.

    Raises:
        BackendError: If none can.
        MissingExtraError: If the one that was asked for is not installed.
    """
    device, no_device = _device_or_why()
    if backend is not None:
        api = load_trt(backend)
        if device is None and not api.is_rtx:
            raise BackendError(
                f"{api.title} builds a plan on the GPU that it is for: {no_device}; or build for "
                "backend tensorrt-rtx, which needs none"
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
