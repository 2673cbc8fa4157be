"""Opening an engine directory: the one way from a folder to engines that run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from mpn.closing import Closing
from mpn.cuda.device import CudaDevice
from mpn.engines.backends import BACKENDS, Backend, Opening, open_with
from mpn.engines.base import Engine
from mpn.engines.files import check_engine_dir
from mpn.engines.manifest import (
    ENGINE_SOURCE,
    MANIFEST_NAME,
    Manifest,
    load_manifest,
    verify_digests,
)
from mpn.engines.plans.store import PlanStore
from mpn.engines.spec import Role
from mpn.engines.trt_open import PlanPolicy
from mpn.errors import BackendError, ManifestError

__all__ = [
    "BACKENDS",
    "Backend",
    "EngineSet",
    "PlanPolicy",
    "check_engine_dir",
    "default_engine_dir",
    "open_engines",
]


@dataclass(frozen=True)
class EngineSet(Closing):
    """The open engines of a directory; a context manager that closes them.

    Attributes:
        manifest: What the directory says about itself.
        propagation: The propagation engine.
        flow: The flow engine; None where the manifest's flow source is OpenCV DIS.
        osvos: The OSVOS engine; None where the directory has none or it was left out.
        backend: What really runs them: ``"cpu"``, ``"cuda"``, ``"tensorrt"`` or
            ``"tensorrt-rtx"``. All but those of ``"cpu"`` are
            :class:`mpn.engines.base.DeviceEngine`.
        backend_note: One sentence on why it is this backend, and which plans were used or built.
        digests: File in the directory -> SHA-256 by the manifest, of every file opened.
        plans: Where the plans come from; None where there are none.
        device: The GPU; None on the CPU.
        policy: How plans are come by.
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

    @property
    def engines(self) -> Mapping[Role, Engine]:
        """The open engines by role."""
        found: dict[Role, Engine] = {"propagation": self.propagation}
        if self.flow is not None:
            found["flow"] = self.flow
        if self.osvos is not None:
            found["osvos"] = self.osvos
        return found

    def close(self) -> None:
        """Close every engine; closing twice is allowed."""
        with ExitStack() as stack:  # the others are closed even if one fails
            for engine in self.engines.values():
                stack.callback(engine.close)


def default_engine_dir() -> Path:
    """The engine directory that ships inside the package.

    Raises:
        ManifestError: If this installation has none.
    """
    path = Path(str(files("mpn").joinpath("assets", "lite")))
    if not (path / MANIFEST_NAME).is_file():
        raise ManifestError(
            f"this installation ships no engine directory (there is none at {path}): reinstall "
            "mpn-runtime, or give a folder that mpn-export wrote"
        )
    return path


def open_engines(
    directory: str | os.PathLike[str],
    *,
    backend: Backend = "auto",
    threads: int | None = None,
    verify: bool = True,
    with_osvos: bool = True,
    plans: PlanPolicy | None = None,
) -> EngineSet:
    """Open the engines of a directory.

    Args:
        directory: What mpn-export wrote, or :func:`default_engine_dir`.
        backend: ``"cpu"``, ``"cuda"``, ``"tensorrt"``, ``"tensorrt-rtx"``, or ``"auto"``: the first
            of TensorRT, TensorRT for RTX, CUDA that really works, which one run proves, else the
            CPU; ``backend_note`` says which and why.
        threads: Threads within an operator; None leaves it to onnxruntime.
        verify: Compare the digests of the files to be opened with the manifest first.
        with_osvos: Open the OSVOS engine too, if the directory has one.
        plans: How plans of TensorRT are come by. By default one that is missing is built, which
            takes from seconds to minutes, and kept.

    Returns:
        The open engines. Close them, or use them in a ``with`` statement.

    Raises:
        BackendError: If the backend asked for cannot run here.
        EngineError: If an engine cannot be opened; those already open are closed.
        InputError: If ``threads`` is under 1.
        ManifestError: If the directory or its manifest cannot be used.
        MissingExtraError: If onnxruntime is not installed.
    """
    _check_backend(backend)
    manifest = load_manifest(directory)
    roles = _roles_to_open(manifest, with_osvos=with_osvos)
    if verify:
        verify_digests(directory, manifest, roles)
    path = Path(directory)

    policy = plans or PlanPolicy()
    opened = open_with(Opening(path, manifest, roles, threads, policy), backend)
    return EngineSet(
        manifest=manifest,
        propagation=opened.engines["propagation"],
        flow=opened.engines.get("flow"),
        osvos=opened.engines.get("osvos"),
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


def _roles_to_open(manifest: Manifest, *, with_osvos: bool) -> tuple[Role, ...]:
    roles: list[Role] = ["propagation"]
    if manifest.flow.source == ENGINE_SOURCE:
        roles.append("flow")
    if with_osvos and "osvos" in manifest.roles:
        roles.append("osvos")
    return tuple(roles)
