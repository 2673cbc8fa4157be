"""Compile CUDA C++ to cubins with NVRTC through cuda.core, and cache them.

Compiling needs no GPU. The cache is a folder of the user. Its key covers the source with its
headers, the options, the architecture and the compiler's version. If a file is damaged or the
folder cannot be written, the source is compiled again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

from mpn._common.cache_dirs import distrust_reason, make_private_folder, user_cache_dir
from mpn._common.files import write_bytes_atomically
from mpn.cuda.registry import KERNEL_FILES, kernel_source
from mpn.errors import BackendError, MissingExtraError, OutputError, import_or_explain

CACHE_DIR_VARIABLE: Final = "MPN_CUDA_CACHE_DIR"
"""Environment variable that names the cache folder; set but empty: no cache."""

_DIGEST_BYTES = hashlib.sha256().digest_size


@dataclass(frozen=True, kw_only=True)
class CompileOptions:
    """Options of the compiler.

    Attributes:
        std: C++ standard.
        fma: Whether a multiplication and an addition may become one operation. False, so that the
            GPU rounds as the CPU does: what the tests show of the same source on the CPU holds on
            the GPU bit for bit, up to exp and log. The kernels wait for memory, not for
            arithmetic.
    """

    std: str = "c++17"
    fma: bool = False


def compiled_kernels(
    family: str,
    arch: str,
    *,
    options: CompileOptions | None = None,
    cache_dir: Path | None = None,
) -> bytes:
    """Return the cubin of a kernel family, from the cache if it is there.

    Args:
        family: One of :data:`mpn.cuda.registry.KERNEL_FILES`.
        arch: Like ``"sm_90"``.
        options: Default: the defaults.
        cache_dir: Folder of the cache; default: :func:`default_cache_dir`.

    Returns:
        A cubin.

    Raises:
        BackendError: If the source does not compile for the architecture.
        MissingExtraError: If cuda-core, cuda-bindings or NVRTC is not installed.
    """
    if family not in KERNEL_FILES:
        raise BackendError(f"unknown kernel family '{family}': there are {', '.join(KERNEL_FILES)}")
    options = options or CompileOptions()
    source = kernel_source(family)
    directory = default_cache_dir() if cache_dir is None else cache_dir
    path = None
    if directory is not None:
        key = cache_key(source, arch, options, compiler_version())
        path = directory / f"{family}-{arch}-{key[:16]}.cubin"
        cubin = _cached(path)
        if cubin is not None:
            return cubin
    cubin = compile_cubin(source, arch, options=options, name=f"{family}.cu")
    if path is not None:
        _keep(path, cubin)
    return cubin


def compile_cubin(
    source: str, arch: str, *, options: CompileOptions | None = None, name: str = "kernel.cu"
) -> bytes:
    """Compile CUDA C++ that includes nothing.

    Args:
        source: The code.
        arch: Like ``"sm_90"``.
        options: Default: the defaults.
        name: File name in the compiler's messages.

    Returns:
        A cubin.

    Raises:
        BackendError: If it does not compile.
        MissingExtraError: If cuda-core, cuda-bindings or NVRTC is not installed.
    """
    options = options or CompileOptions()
    version = compiler_version()
    core = import_or_explain("cuda.core", extra="gpu", purpose="compiling CUDA kernels")
    try:
        settings = core.ProgramOptions(name=name, arch=arch, std=options.std, fma=options.fma)
        program = core.Program(source, "c++", settings)
        return bytes(program.compile("cubin").code)
    except Exception as error:  # cuda-core's own hierarchy differs from version to version
        reason = " ".join(str(error).split())
        raise BackendError(
            f"NVRTC {version} cannot compile {name} for {arch}: {reason[:600]}"
        ) from error


def compiler_version() -> str:
    """Return the version of NVRTC, for example ``"13.0"``.

    Raises:
        MissingExtraError: If it is not installed.
    """
    nvrtc = import_or_explain("cuda.bindings.nvrtc", extra="gpu", purpose="compiling CUDA kernels")
    try:
        status, major, minor = nvrtc.nvrtcVersion()
    except RuntimeError as error:  # the bindings are there, the library is not
        raise MissingExtraError(
            "compiling CUDA kernels needs the library of the Python package 'nvidia-cuda-nvrtc', "
            "which is not installed: install mpn-runtime with its extra [gpu], e.g. pip install "
            "'.[gpu]'"
        ) from error
    if int(status) != 0:
        raise BackendError(f"NVRTC does not return its version: {status}")
    return f"{major}.{minor}"


def cache_key(source: str, arch: str, options: CompileOptions, version: str) -> str:
    """Return the hexadecimal digest of everything that a cubin depends on."""
    settings = [f"{field.name}={getattr(options, field.name)}" for field in fields(options)]
    return hashlib.sha256("\0".join([version, arch, *settings, source]).encode()).hexdigest()


def default_cache_dir() -> Path | None:
    """Return the folder of ``CACHE_DIR_VARIABLE``, else the user's cache folder."""
    given = os.environ.get(CACHE_DIR_VARIABLE)
    if given is not None:
        return Path(os.path.expanduser(given)) if given else None
    return user_cache_dir("cuda")


def _cached(path: Path) -> bytes | None:
    """Read the cubin in a file; None if there is none or it is damaged."""
    try:
        kept = path.read_bytes()
    except OSError:
        return None
    if distrust_reason(path) is not None:
        return None
    digest, cubin = kept[:_DIGEST_BYTES], kept[_DIGEST_BYTES:]
    return cubin if cubin and hashlib.sha256(cubin).digest() == digest else None


def _keep(path: Path, cubin: bytes) -> None:
    """Write digest and bytes of a cubin, and rename the complete file."""
    # A read-only home or a full disk must not stop a run: the cache only saves time.
    with contextlib.suppress(OSError, OutputError):
        make_private_folder(path.parent)
        write_bytes_atomically(path, hashlib.sha256(cubin).digest() + cubin, durable=True)
