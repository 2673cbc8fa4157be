"""The onnxruntime engine: the CPU reference backend, and CUDA.

onnxruntime falls back to the CPU without an error in three cases: the requested provider is not
compiled in, its libraries cannot be loaded, or a run fails. This module raises in each case.
"""

from __future__ import annotations

import ctypes
import io
import mmap
import os
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Literal
from weakref import WeakSet

import numpy as np

from mpn._common.closeable import Closeable
from mpn._common.concurrency import usable_threads
from mpn._common.cores import limited_cores
from mpn._common.locks import TemporaryFolder
from mpn._common.memory import is_out_of_memory, out_of_memory_message
from mpn._common.text import LONGEST_MESSAGE, one_line
from mpn.engines.spec import EngineSpec, TensorSpec
from mpn.errors import BackendError, EngineError, OutOfMemoryError, import_or_explain
from mpn.types import Float32Array

OrtBackend = Literal["cpu", "cuda"]

CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"

_INSTALL_CUDA = (
    "uninstall onnxruntime, then install mpn-runtime with its extra [gpu] (never together with "
    "[cpu]: both own the same folder) on a machine with an NVIDIA driver, or use the cpu backend"
)
_QUIET_LOG_SEVERITY = 4
"""Fatal messages only: errors are raised, and one line on stderr reports them."""

_GRAPH_FAULTS = frozenset(
    {"InvalidProtobuf", "InvalidGraph", "NoSuchFile", "NoModel", "NotImplemented"}
)
"""onnxruntime's exceptions about the graph, never about the device."""

_ARENA_MESSAGE = "Failed to allocate memory"

_sessions: WeakSet[Any] = WeakSet()
"""All open sessions of this process."""


def _keep_sessions() -> None:
    """Keep the sessions of the parent process to the end of a fork.

    A session joins its threads when it is deleted. A fork does not have these threads, so that the
    join never returns (onnxruntime 1.30: ``del``, and the exit of the interpreter).
    """
    for session in _sessions:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_keep_sessions)


class OrtEngine(Closeable):
    """Implement :class:`mpn.engines.base.Engine` by onnxruntime; loads the graph.

    The ``objects`` axis is dynamic: any K from 1 on works, because ``spec.max_objects`` bounds
    plans only. Outputs belong to the caller. Values are not checked: NaN and infinity propagate.

    On ``"cuda"`` onnxruntime may compute some shapes on the CPU. TF32 is off there, because it
    keeps only 10 bits of the mantissa.

    Args:
        onnx_path: Graph file; external data is in the same folder.
        spec: The interface it must have.
        backend: ``"cpu"`` or ``"cuda"``.
        threads: Threads per operator; None for one per physical core, or
            per usable core if the process may not use all.

    Raises:
        BackendError: If another backend than the requested one would run.
        EngineError: If the graph is missing, damaged or of another interface.
        InputError: If ``threads`` is under 1.
        MissingExtraError: If onnxruntime is not installed.
    """

    def __init__(
        self,
        onnx_path: str | os.PathLike[str],
        spec: EngineSpec,
        *,
        backend: OrtBackend = "cpu",
        threads: int | None = None,
    ) -> None:
        self._path = Path(onnx_path)
        self._spec = spec
        self._backend = backend
        session = open_session(self._path, backend, threads)
        check_interface(self._path, spec, session)
        self._session: Any = session

    def __repr__(self) -> str:
        state = "closed" if self._session is None else self._backend
        return f"OrtEngine({self._path.name}, role={self._spec.role}, {state})"

    @property
    def spec(self) -> EngineSpec:
        """Names and shapes of its tensors."""
        return self._spec

    @property
    def backend(self) -> str:
        """``"cpu"`` or ``"cuda"``, checked against the session's provider."""
        return self._backend

    def run(self, inputs: Mapping[str, Float32Array]) -> dict[str, Float32Array]:
        """Run once.

        Args:
            inputs: Every input of the spec by name, float32.

        Returns:
            Every output of the spec by name, float32, new arrays.

        Raises:
            EngineError: If a name, shape or dtype does not fit the spec, an axis is empty, the
                engine is closed, or onnxruntime fails.
            OutOfMemoryError: If memory ran out.
        """
        if self._session is None:
            raise EngineError(f"the {self._spec.role} engine is closed: open it again to run it")
        self._spec.check_inputs(inputs)
        feeds = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        try:
            outputs = self._session.run(list(self._spec.output_names), feeds)
        except Exception as error:  # onnxruntime's exceptions share no base but Exception
            what = f"the {self._spec.role} engine"
            check_not_out_of_memory(error, what, self._backend)
            raise EngineError(f"{what} failed on {self._backend}: {one_line(error)}") from error
        return dict(zip(self._spec.output_names, outputs, strict=True))

    def close(self) -> None:
        """Release the session; :meth:`run` raises afterwards."""
        self._session = None


def import_onnxruntime(backend: OrtBackend) -> Any:
    """Import onnxruntime, or raise with the extra to install.

    Raises:
        BackendError: If it is installed but broken.
        MissingExtraError: If it is not installed.
    """
    extra = "gpu" if backend == "cuda" else "cpu"
    # Telemetry sends data to a host, writes files to the home folder and starts a thread. The exit
    # of a forked process waits for that thread without end. A value that the user set stays.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        ort = import_or_explain("onnxruntime", extra=extra, purpose=f"the {backend} backend")
    except ImportError as error:
        check_not_out_of_memory(error, "onnxruntime", backend)
        raise BackendError(
            f"onnxruntime is installed but cannot be loaded ({one_line(error)}): reinstall "
            f"mpn-runtime with its extra [{extra}]"
        ) from error
    # Uninstalling one of the two wheels removes files of the other.
    if not hasattr(ort, "InferenceSession"):
        raise BackendError(
            "onnxruntime is incomplete, as after onnxruntime and onnxruntime-gpu were installed "
            f"together: uninstall both, then install mpn-runtime with its extra [{extra}]"
        )
    return ort


def check_not_out_of_memory(error: Exception, what: str, backend: OrtBackend) -> None:
    """Raise OutOfMemoryError if an error means that memory of the host ran out.

    Args:
        error: The error.
        what: Subject of the message.
        backend: Where it occurred. The arena of the GPU has the same message.
    """
    if is_out_of_memory(error) or (backend == "cpu" and _ARENA_MESSAGE in str(error)):
        raise OutOfMemoryError(out_of_memory_message(what)) from error


def why_no_cuda() -> str | None:
    """Return the reason why the installed onnxruntime has no CUDA, or None if it has.

    Only opening an engine shows whether CUDA works on this machine.
    """
    available = list(import_onnxruntime("cpu").get_available_providers())
    if CUDA_PROVIDER in available:
        return None
    return f"the installed onnxruntime has no {CUDA_PROVIDER} (it has {', '.join(available)})"


def open_session(
    path: Path,
    backend: OrtBackend,
    threads: int | None,
    *,
    cuda_options: Mapping[str, str] | None = None,
    profile_prefix: Path | None = None,
    prepack: bool = True,
) -> Any:
    """Open an onnxruntime session, and check that it has the requested provider.

    Args:
        path: Graph file; external data is in the same folder.
        backend: ``"cpu"`` or ``"cuda"``.
        threads: Threads per operator; None for onnxruntime's default.
        cuda_options: Further options of the CUDA provider.
        profile_prefix: Start of the file name of onnxruntime's profile; None for no profile.
        prepack: Reorder weights when loading. The profile does not list reordered weights.

    Raises:
        BackendError: If another backend than the requested one would run.
        EngineError: If the graph is missing or damaged.
        InputError: If ``threads`` is under 1.
        MissingExtraError: If onnxruntime is not installed.
        OutOfMemoryError: If memory ran out.
    """
    threads = usable_threads(threads)
    ort = import_onnxruntime(backend)
    wanted = CUDA_PROVIDER if backend == "cuda" else CPU_PROVIDER
    providers: list[Any] = [wanted]
    loading = ""
    if backend == "cuda":
        # If a provider is missing, onnxruntime only warns and uses the CPU.
        reason = why_no_cuda()
        if reason is not None:
            raise BackendError(f"cuda was requested, but {reason}: {_INSTALL_CUDA}")
        loading = _preload_cuda_libraries(ort)
        providers = [(CUDA_PROVIDER, {"use_tf32": "0", **(cuda_options or {})}), CPU_PROVIDER]
    options = _session_options(ort)
    options.intra_op_num_threads = threads or limited_cores() or 0
    if not prepack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    if profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = os.fspath(profile_prefix)
    # Threads that wait actively, within a run or (by default) for 27 ms after it, occupy cores that
    # the rest of the frame needs: the features of the next frame, decoder and encoder.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    graph: str | bytes = os.fspath(path)
    try:
        if backend == "cpu" and _has_cast(path):
            graph = _graph_in_float32(ort, path) or graph
        # Without enable_fallback=0 a failing provider is replaced by the CPU during construction.
        session = ort.InferenceSession(graph, options, providers=providers, enable_fallback=0)
        _check_names(session)
    except Exception as error:
        check_not_out_of_memory(error, path.name, backend)
        if backend == "cuda" and type(error).__name__ not in _GRAPH_FAULTS:
            raise BackendError(
                f"cuda was requested, but onnxruntime cannot use it ({one_line(error)}{loading}): "
                f"{_INSTALL_CUDA}"
            ) from error
        raise EngineError(
            f"{path.name} cannot be loaded by onnxruntime ({one_line(error)}): export it again"
        ) from error
    session.disable_fallback()
    running = list(session.get_providers())
    if running[:1] != [wanted]:
        raise BackendError(
            f"{backend} was requested, but onnxruntime would run {', '.join(running) or 'nothing'}"
            f"{loading}: {_INSTALL_CUDA}"
        )
    _sessions.add(session)
    return session


def _check_names(session: Any) -> None:
    """Raise UnicodeDecodeError if a tensor or an axis has a name that is no UTF-8.

    onnxruntime does not check names. Reading one raises.
    """
    for node in (*session.get_inputs(), *session.get_outputs()):
        _ = node.name, node.shape


def _session_options(ort: Any) -> Any:
    options = ort.SessionOptions()
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _QUIET_LOG_SEVERITY
    return options


def _has_cast(path: Path) -> bool:
    """Return whether a graph may cast, as one of half precision does at its edges."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return data.find(b"Cast") >= 0
    except (OSError, ValueError):  # missing or empty: onnxruntime's message is the better one
        return False


def _graph_in_float32(ort: Any, path: Path) -> bytes | None:
    """Return the graph with the casts that the CPU needs for half precision.

    onnxruntime has no half-precision convolutions for most CPUs, and inserts casts. It does so
    after it has folded constants, so that the bounds of ReLU6 are no constants in the passes that
    join an activation with its convolution. A graph that has the casts from the beginning is
    folded as a whole: the same values in less time (onnxruntime 1.32).
    All weights are in the graph: onnxruntime refuses external data that is a symbolic link, unless
    it opens the graph by its path.

    Returns:
        The graph, or None if onnxruntime cannot load it, or cannot write to the temporary folder:
        then the graph itself opens, more slowly, or fails with the better message.
    """
    options = _session_options(ort)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    try:
        with TemporaryFolder() as folder:
            copy = folder.path / path.name
            options.optimized_model_filepath = os.fspath(copy)
            for name, value in (("file_name", "unused"), ("min_size_in_bytes", str(2**40))):
                options.add_session_config_entry(
                    f"session.optimized_model_external_initializers_{name}", value
                )
            ort.InferenceSession(
                os.fspath(path), options, providers=[CPU_PROVIDER], enable_fallback=0
            )
            return copy.read_bytes()
    except Exception:  # onnxruntime's exceptions share no base but Exception
        return None


def _preload_cuda_libraries(ort: Any) -> str:
    """Load CUDA and cuDNN from their wheels; return onnxruntime's failure messages."""
    if not hasattr(ort, "preload_dlls"):
        return ""
    printed = io.StringIO()
    with redirect_stdout(printed):  # it prints, which would break --json
        ort.preload_dlls()
    return f" [{one_line(printed.getvalue())}]" if printed.getvalue().strip() else ""


def check_interface(path: Path, spec: EngineSpec, session: Any) -> None:
    """Check that a session has the tensors of a spec.

    Raises:
        EngineError: If it differs; the message lists all differences.
    """
    differences = [
        *_differences("input", spec.inputs, session.get_inputs()),
        *_differences("output", spec.outputs, session.get_outputs()),
    ]
    if differences:
        raise EngineError(
            f"{path.name} is not the {spec.role} engine of this manifest: "
            f"{one_line('; '.join(differences), LONGEST_MESSAGE)}: export it again"
        )


def _differences(kind: str, expected: Sequence[TensorSpec], nodes: Sequence[Any]) -> list[str]:
    found = {node.name: _tensor_from_node(node) for node in nodes}
    differences = []
    for tensor in expected:
        got = found.pop(tensor.name, None)
        if got is None:
            differences.append(f"{kind} '{tensor.name}' is missing")
        elif got != tensor:
            differences.append(f"{kind} {got.describe()}, expected {tensor.describe()}")
    return differences + [f"{kind} {tensor.describe()} is surplus" for tensor in found.values()]


def _tensor_from_node(node: Any) -> TensorSpec:
    """Convert onnxruntime's NodeArg; an axis without a name becomes ``"?"``."""
    element = str(node.type).removeprefix("tensor(").removesuffix(")")
    shape = tuple("?" if size is None else size for size in node.shape)
    return TensorSpec(node.name, shape, dtype={"float": "float32"}.get(element, element))
