"""Build the kernels with g++ and launch them on NumPy arrays."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mpn.cuda.registry import (
    KernelSignature,
    kernel_signatures,
    kernel_source,
    signatures_in,
)
from tests.emulation.cuda_shim.memory import Guard, GuardedMemory, array_in

HERE = Path(__file__).parent
HEADERS = ("shim.h", "half.h", "thread_emulation.cpp")
FLAGS = (
    *("-std=c++17", "-O1", "-fPIC", "-w"),
    # The same as on the GPU: no contraction, IEEE division and square root.
    *("-ffp-contract=off", "-fno-strict-aliasing"),
    # Some distributions set it; its check of longjmp supports one stack only.
    "-U_FORTIFY_SOURCE",
    "-fsanitize=bounds,alignment,shift,signed-integer-overflow,float-cast-overflow,null",
    "-fsanitize-undefined-trap-on-error",
)
_RESIDENT = 3
"""Blocks that run interleaved if there is no shared memory."""

_C_TYPES = {
    "float32": "float",
    "float64": "double",
    "int32": "int",
    "uint8": "uint8",
    "uint16": "uint16",
    "uint32": "uint32",
    "uint64": "uint64",
    "float16": "Half",
}


class KernelFaultError(Exception):
    """Invalid operation of a kernel, detected by the shim."""


class _Dim3(ctypes.Structure):
    _fields_ = [("x", ctypes.c_uint), ("y", ctypes.c_uint), ("z", ctypes.c_uint)]


class Shim:
    """Kernels of one or all families as functions on NumPy arrays.

    Args:
        cache_dir: Folder of the built libraries; their names contain the digest of their sources.
        sources: Source by family; default: the package's. Controls pass broken kernels.
    """

    def __init__(self, cache_dir: Path, sources: Mapping[str, str] | None = None) -> None:
        self._cache_dir = cache_dir
        self._sources = sources
        self._libraries: dict[str, ctypes.CDLL] = {}
        if sources is None:
            self.signatures = dict(kernel_signatures())
        else:
            self.signatures = {
                signature.name: signature
                for family, source in sources.items()
                for signature in signatures_in(source, family)
            }

    @staticmethod
    def is_available() -> bool:
        """Return whether g++ is installed."""
        return shutil.which("g++") is not None

    def launch(self, name: str, *, seed: int = 0, guard: Guard = "end", **arguments: Any) -> None:
        """Run a kernel.

        Args:
            name: Name of the kernel.
            seed: 0 runs threads in order; other values shuffle them.
            guard: Side of each array that borders on a guard page.
            **arguments: Values by parameter name; a pointer is an array or None. Arrays of
                non-const pointers are changed.

        Raises:
            KernelFaultError: If the kernel does an invalid operation.
        """
        signature = self.signatures[name]
        values, arrays = self._checked(signature, arguments)
        memories: dict[str, GuardedMemory] = {}
        shared: dict[int, str] = {}
        for parameter, array in arrays.items():
            if id(array) in shared:  # an array that is passed twice stays one array
                memories[parameter] = memories[shared[id(array)]]
                continue
            shared[id(array)] = parameter
            memory = GuardedMemory(array.nbytes, guard)
            array_in(memory, array.shape, array.dtype)[...] = array
            memories[parameter] = memory
        self.launch_raw(
            signature,
            {**values, **{parameter: memory.address for parameter, memory in memories.items()}},
            seed=seed,
        )
        for parameter in signature.parameters:
            if parameter.name not in memories:
                continue
            array = arrays[parameter.name]
            after = array_in(memories[parameter.name], array.shape, array.dtype)
            if not memories[parameter.name].is_intact():
                raise KernelFaultError(f"{name} wrote outside '{parameter.name}'")
            if not parameter.is_const:
                array[...] = after
            elif not _is_written(signature, array, arrays) and after.tobytes() != array.tobytes():
                raise KernelFaultError(f"{name} wrote into '{parameter.name}', which is const")

    def launch_raw(
        self, signature: KernelSignature, arguments: Mapping[str, int | float], *, seed: int = 0
    ) -> None:
        """Run a kernel on addresses and numbers by parameter name."""
        library = self._library(signature.family)
        function = getattr(library, f"shim_{signature.name}")
        function.restype = ctypes.c_char_p
        packed = [
            _c_value(parameter.dtype, parameter.is_pointer, arguments[parameter.name])
            for parameter in signature.parameters
        ]
        numbers = {p.name: arguments[p.name] for p in signature.parameters if not p.is_pointer}
        grid, block = _Dim3(*signature.grid(numbers)), _Dim3(*signature.block)
        error = function(grid, block, ctypes.c_uint64(seed), *packed)
        if error is not None:
            raise KernelFaultError(f"{signature.name}: {error.decode()}")

    @staticmethod
    def _checked(
        signature: KernelSignature, arguments: Mapping[str, Any]
    ) -> tuple[dict[str, int | float], dict[str, npt.NDArray[Any]]]:
        names = [parameter.name for parameter in signature.parameters]
        if sorted(names) != sorted(arguments):
            raise TypeError(f"{signature.name} takes {names}, got {sorted(arguments)}")
        values: dict[str, int | float] = {}
        arrays: dict[str, npt.NDArray[Any]] = {}
        for parameter in signature.parameters:
            value = arguments[parameter.name]
            if not parameter.is_pointer:
                values[parameter.name] = value
            elif value is None:
                values[parameter.name] = 0
            elif value.dtype != parameter.dtype or not value.flags.c_contiguous:
                raise TypeError(
                    f"{signature.name} takes '{parameter.name}' as contiguous {parameter.dtype}, "
                    f"got {value.dtype}"
                )
            else:
                arrays[parameter.name] = value
        return values, arrays

    def _library(self, family: str) -> ctypes.CDLL:
        if family not in self._libraries:
            source = (self._sources or {}).get(family) or kernel_source(family)
            mine = [s for s in self.signatures.values() if s.family == family]
            resident = 1 if "__shared__" in source else _RESIDENT
            wrappers = "\n".join(_wrapper(signature, resident) for signature in mine)
            code = f'#include "{HERE}/shim.h"\nnamespace {{\n{source}\n}}\n{wrappers}'
            scheduler = self._built(
                "thread_emulation", (HERE / "thread_emulation.cpp").read_text(), "-c", ".o"
            )
            library = self._built(family, code, str(scheduler), ".so")
            self._libraries[family] = ctypes.CDLL(str(library))
        return self._libraries[family]

    def _built(self, name: str, code: str, extra: str, suffix: str) -> Path:
        """Compile C++ code, or return the library if it is built already."""
        texts = [code, *FLAGS, *((HERE / header).read_text() for header in HEADERS)]
        digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()[:20]
        built = self._cache_dir / f"{name}-{digest}{suffix}"
        if not built.exists():
            self._cache_dir.mkdir(parents=True, exist_ok=True)
            partial = built.with_suffix(f".{os.getpid()}.partial")
            text = partial.with_suffix(".cpp")
            text.write_text(code)
            kind = [] if suffix == ".o" else ["-shared"]
            done = subprocess.run(
                ["g++", *FLAGS, *kind, f"-I{HERE}", "-o", str(partial), str(text), extra],
                capture_output=True,
                text=True,
                check=False,
            )
            text.unlink()
            if done.returncode != 0:
                raise RuntimeError(f"g++ cannot compile {name}:\n{done.stderr}")
            partial.replace(built)
        return built


def _is_written(
    signature: KernelSignature, array: npt.NDArray[Any], arrays: Mapping[str, npt.NDArray[Any]]
) -> bool:
    """Return whether the array is also passed as a parameter that is written."""
    return any(
        arrays.get(parameter.name) is array
        for parameter in signature.parameters
        if not parameter.is_const
    )


def _c_value(dtype: np.dtype[Any], is_pointer: bool, value: int | float) -> Any:
    if is_pointer:
        return ctypes.c_void_p(int(value))
    return np.ctypeslib.as_ctypes_type(dtype)(value)


def _wrapper(signature: KernelSignature, resident: int) -> str:
    """Generate the C function that launches a kernel."""
    kinds = [
        f"{_C_TYPES[parameter.dtype.name]}{'*' if parameter.is_pointer else ''}"
        for parameter in signature.parameters
    ]
    members = " ".join(f"{kind} a{i};" for i, kind in enumerate(kinds))
    given = ", ".join(f"{kind} a{i}" for i, kind in enumerate(kinds))
    stored = ", ".join(f"a{i}" for i in range(len(kinds)))
    passed = ", ".join(f"given->a{i}" for i in range(len(kinds)))
    return f"""
struct Arguments_{signature.name} {{ {members} }};
extern "C" const char* shim_{signature.name}(dim3 grid, dim3 block, uint64_t seed, {given}) {{
  Arguments_{signature.name} arguments{{{stored}}};
  return shim::launch({{grid, block, seed, {resident}, __start_shim_shared, __stop_shim_shared,
                       [](void* pointer) {{
                         auto* given = static_cast<Arguments_{signature.name}*>(pointer);
                         {signature.name}({passed});
                       }},
                       &arguments}});
}}
"""
