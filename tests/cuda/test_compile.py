"""Compile every kernel for every architecture; test the cubin cache."""

from __future__ import annotations

import dataclasses
import struct
import sys
from pathlib import Path
from typing import Any

import pytest

from mpn.cuda import compile as cuda_compile
from mpn.cuda.compile import (
    CACHE_DIR_VARIABLE,
    CompileOptions,
    cache_key,
    compile_cubin,
    compiled_kernels,
    default_cache_dir,
)
from mpn.cuda.registry import KERNEL_FILES, kernel_signatures
from mpn.errors import BackendError, MissingExtraError
from tests.emulation.cuda_shim.fixtures import need_or_skip

ARCHS = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
"""Turing to Blackwell."""

SMALL = 'extern "C" __global__ void one(float* out) { out[threadIdx.x] = 1.0f; }'
ELF_MACHINE_CUDA = 190


@pytest.fixture(scope="session")
def nvrtc() -> None:
    try:
        import cuda.bindings.nvrtc as library
        import cuda.core  # noqa: F401

        library.nvrtcVersion()
    except (ImportError, RuntimeError) as error:
        need_or_skip(f"NVRTC cannot be used ({error}): install the extra [dev]")


@pytest.mark.usefixtures("nvrtc")
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("family", KERNEL_FILES)
def test_a_family_compiles_with_all_its_kernels(family: str, arch: str) -> None:
    cubin = compile_cubin(cuda_compile.kernel_source(family), arch, name=family)
    assert struct.unpack_from("<4s14xH", cubin) == (b"\x7fELF", ELF_MACHINE_CUDA)
    for signature in kernel_signatures().values():
        if signature.family == family:
            assert f".text.{signature.name}\0".encode() in cubin


@pytest.mark.usefixtures("nvrtc")
def test_code_of_another_architecture_differs() -> None:
    """Control: the architecture reaches the compiler."""
    assert len({compile_cubin(SMALL, arch) for arch in ARCHS}) == len(ARCHS)


@pytest.mark.usefixtures("nvrtc")
def test_multiply_add_is_not_contracted_by_default() -> None:
    source = (
        'extern "C" __global__ void one(float* v) '
        "{ v[threadIdx.x] = v[threadIdx.x] * v[40] + v[50]; }"
    )
    apart = compile_cubin(source, "sm_80")
    assert apart != compile_cubin(source, "sm_80", options=CompileOptions(fma=True))


@pytest.mark.usefixtures("nvrtc")
@pytest.mark.parametrize(
    ("source", "arch", "message"),
    [
        ("nonsense", "sm_80", "cannot compile it.cu for sm_80"),
        (SMALL, "sm_10", "cannot compile it.cu for sm_10"),
    ],
)
def test_compile_error_is_one_line(source: str, arch: str, message: str) -> None:
    with pytest.raises(BackendError, match=message) as raised:
        compile_cubin(source, arch, name="it.cu")
    assert "\n" not in str(raised.value)


def test_an_unknown_family_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="unknown kernel family 'blurr'"):
        compiled_kernels("blurr", "sm_80", cache_dir=tmp_path)


def test_the_key_depends_on_everything_that_goes_in() -> None:
    keys = {
        cache_key("a", "sm_80", CompileOptions(), "13.0"),
        cache_key("b", "sm_80", CompileOptions(), "13.0"),
        cache_key("a", "sm_86", CompileOptions(), "13.0"),
        cache_key("a", "sm_80", CompileOptions(), "13.1"),
        *(
            cache_key("a", "sm_80", dataclasses.replace(CompileOptions(), **change), "13.0")
            for change in ({"fma": True}, {"std": "c++20"})
        ),
    }
    assert len(keys) == 4 + len(dataclasses.fields(CompileOptions))


class Compiler:
    """Stand in for NVRTC and count."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        self.version = "13.0"
        monkeypatch.setattr(cuda_compile, "compile_cubin", self)
        monkeypatch.setattr(cuda_compile, "compiler_version", lambda: self.version)

    def __call__(self, source: str, arch: str, **_: Any) -> bytes:
        self.calls += 1
        return f"{arch} {self.version} {len(source)}".encode()


def test_the_cache_spares_the_second_compilation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = Compiler(monkeypatch)
    first = compiled_kernels("warp", "sm_80", cache_dir=tmp_path)
    assert compiled_kernels("warp", "sm_80", cache_dir=tmp_path) == first
    assert compiler.calls == 1
    compiled_kernels("warp", "sm_86", cache_dir=tmp_path)
    compiler.version = "13.1"
    assert compiled_kernels("warp", "sm_80", cache_dir=tmp_path) != first
    assert compiler.calls == 3
    assert not [file for file in tmp_path.iterdir() if file.suffix != ".cubin"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied"])
def test_a_damaged_file_is_compiled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    compiler = Compiler(monkeypatch)
    cubin = compiled_kernels("warp", "sm_80", cache_dir=tmp_path)
    (file,) = tmp_path.iterdir()
    kept = bytearray(file.read_bytes())
    kept[-1] ^= damage == "flipped"
    file.write_bytes({"cut": kept[:-1], "flipped": kept, "emptied": b""}[damage])
    assert compiled_kernels("warp", "sm_80", cache_dir=tmp_path) == cubin
    assert compiler.calls == 2
    assert compiled_kernels("warp", "sm_80", cache_dir=tmp_path) == cubin
    assert compiler.calls == 2


def test_a_cache_that_cannot_be_written_costs_time_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = Compiler(monkeypatch)
    (tmp_path / "file").write_text("in the way")
    for _ in range(2):
        compiled_kernels("warp", "sm_80", cache_dir=tmp_path / "file" / "cache")
    assert compiler.calls == 2


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Compiler(monkeypatch)

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(cuda_compile.os, "replace", full)
    compiled_kernels("warp", "sm_80", cache_dir=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({CACHE_DIR_VARIABLE: "/there"}, Path("/there")),
        ({CACHE_DIR_VARIABLE: ""}, None),
        ({"XDG_CACHE_HOME": "/cache"}, Path("/cache/mpn-runtime/cuda")),
        ({"HOME": "/home/me", "XDG_CACHE_HOME": ""}, Path("/home/me/.cache/mpn-runtime/cuda")),
    ],
)
def test_where_the_cache_is(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: Path | None
) -> None:
    monkeypatch.delenv(CACHE_DIR_VARIABLE, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert default_cache_dir() == expected


def test_without_the_packages_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.nvrtc", None)
    with pytest.raises(MissingExtraError, match=r"extra \[gpu\]"):
        compiled_kernels("warp", "sm_80")


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Bindings:
        @staticmethod
        def nvrtcVersion() -> None:
            raise RuntimeError("libnvrtc.so.13 was not found")

    monkeypatch.setitem(sys.modules, "cuda.bindings.nvrtc", Bindings)
    with pytest.raises(MissingExtraError, match=r"nvidia-cuda-nvrtc.*extra \[gpu\]"):
        compiled_kernels("warp", "sm_80")
