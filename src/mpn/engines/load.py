"""Opening an engine directory: the one way from a folder to engines that run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

import numpy as np

from mpn.closing import Closing
from mpn.engines.base import Engine
from mpn.engines.files import check_engine_dir, check_present, resolve_inside
from mpn.engines.manifest import (
    ENGINE_SOURCE,
    MANIFEST_NAME,
    Manifest,
    load_manifest,
    verify_digests,
)
from mpn.engines.ort import OrtBackend, OrtEngine, why_no_cuda
from mpn.engines.spec import Role
from mpn.errors import BackendError, EngineError, ManifestError

__all__ = [
    "BACKENDS",
    "Backend",
    "EngineSet",
    "check_engine_dir",
    "default_engine_dir",
    "open_engines",
]

Backend = Literal["auto", "cpu", "cuda", "tensorrt", "tensorrt-rtx"]
BACKENDS: tuple[Backend, ...] = ("auto", "cpu", "cuda", "tensorrt", "tensorrt-rtx")


@dataclass(frozen=True)
class EngineSet(Closing):
    """The open engines of a directory; a context manager that closes them.

    Attributes:
        manifest: What the directory says about itself.
        propagation: The propagation engine.
        flow: The flow engine; None where the manifest's flow source is OpenCV DIS.
        osvos: The OSVOS engine; None where the directory has none or it was left out.
        backend: What really runs them: ``"cpu"`` or ``"cuda"``.
        backend_note: One sentence on why it is this backend.
        digests: File in the directory -> SHA-256 by the manifest, of every file opened.
    """

    manifest: Manifest
    propagation: Engine
    flow: Engine | None
    osvos: Engine | None
    backend: str
    backend_note: str
    digests: Mapping[str, str]

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
) -> EngineSet:
    """Open the engines of a directory.

    Args:
        directory: What mpn-export wrote, or :func:`default_engine_dir`.
        backend: ``"cpu"``, ``"cuda"``, or ``"auto"``: CUDA where it really works, which one run
            proves, else the CPU; ``backend_note`` says which and why.
        threads: Threads within an operator; None leaves it to onnxruntime.
        verify: Compare the digests of the files to be opened with the manifest first.
        with_osvos: Open the OSVOS engine too, if the directory has one.

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

    if backend == "cpu" or backend == "cuda":
        engines = _open_roles(path, manifest, roles, backend, threads)
        return _engine_set(manifest, engines, backend, f"{backend}, as asked for")

    reason = why_no_cuda()
    if reason is None:
        try:
            engines = _open_roles(path, manifest, roles, "cuda", threads)
            _prove(engines)
        except BackendError as error:
            reason = str(error)
        else:
            return _engine_set(manifest, engines, "cuda", "cuda, because it works here")
    engines = _open_roles(path, manifest, roles, "cpu", threads)
    return _engine_set(manifest, engines, "cpu", f"cpu, because cuda does not work here: {reason}")


def _check_backend(backend: str) -> None:
    if backend not in BACKENDS:
        raise BackendError(f"unknown backend '{backend}': the backends are {', '.join(BACKENDS)}")
    if backend in ("tensorrt", "tensorrt-rtx"):
        raise BackendError(
            f"backend {backend} was asked for, but this version runs engines through onnxruntime "
            "only: use cpu or cuda"
        )


def _roles_to_open(manifest: Manifest, *, with_osvos: bool) -> tuple[Role, ...]:
    roles: list[Role] = ["propagation"]
    if manifest.flow.source == ENGINE_SOURCE:
        roles.append("flow")
    if with_osvos and "osvos" in manifest.roles:
        roles.append("osvos")
    return tuple(roles)


def _open_roles(
    directory: Path,
    manifest: Manifest,
    roles: tuple[Role, ...],
    backend: OrtBackend,
    threads: int | None,
) -> dict[Role, Engine]:
    engines: dict[Role, Engine] = {}
    with ExitStack() as opened:
        for role in roles:
            for file in manifest.roles[role].files:
                check_present(directory, file.path)
            path = resolve_inside(directory, manifest.roles[role].onnx)
            engine = OrtEngine(path, manifest.spec(role), backend=backend, threads=threads)
            opened.callback(engine.close)
            engines[role] = engine
        opened.pop_all()
    return engines


def _prove(engines: Mapping[Role, Engine]) -> None:
    """Run the propagation engine once, or close all and raise BackendError.

    A session that opened on CUDA may still fail at its first kernel: no code for this GPU, no
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


def _engine_set(
    manifest: Manifest, engines: Mapping[Role, Engine], backend: str, note: str
) -> EngineSet:
    return EngineSet(
        manifest=manifest,
        propagation=engines["propagation"],
        flow=engines.get("flow"),
        osvos=engines.get("osvos"),
        backend=backend,
        backend_note=note,
        digests={file.path: file.sha256 for role in engines for file in manifest.roles[role].files},
    )
