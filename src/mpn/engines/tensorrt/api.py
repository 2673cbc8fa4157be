"""Load TensorRT (10.14 to 11.x) or TensorRT for RTX, and hide their differences.

Both have the same Python classes. Differences between their bindings (from the sources of 10.14,
11.0, 11.4 and RTX 1.7):

* ``NetworkDefinitionCreationFlag.STRONGLY_TYPED`` is bit 1 in 10.x and bit 0, without effect, from
  11 on: always set, by its value.
* A tensor's dtype can be set in 10.x only; nothing here sets one.
* ``device_memory_size`` is gone from 11 on; ``device_memory_size_v2`` is in all.
* RTX: no timing cache (it would need a GPU while building), a runtime cache of compiled
  kernels instead, compute capabilities to build for, ``get_engine_validity``,
  ``is_stream_capturable``, and a flag without which no stream can be captured.

Methods that fail return None or False and write to the log. :meth:`TrtApi.check` raises an error
with the log's messages.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from mpn._common.text import one_line
from mpn.errors import BackendError, EngineError, import_or_explain

TrtBackend = Literal["tensorrt", "tensorrt-rtx"]
TRT_BACKENDS: tuple[TrtBackend, ...] = ("tensorrt", "tensorrt-rtx")

OLDEST: dict[TrtBackend, tuple[int, int]] = {"tensorrt": (10, 14), "tensorrt-rtx": (1, 4)}
"""Oldest versions whose bindings were read; older ones are refused."""

_MODULES: dict[TrtBackend, tuple[str, str]] = {
    "tensorrt": ("tensorrt", "tensorrt"),
    "tensorrt-rtx": ("tensorrt_rtx", "rtx"),
}
_KEPT_MESSAGES = 20
_ERROR_SEVERITY = 1

T = TypeVar("T")


@dataclass(frozen=True)
class TrtApi:
    """A loaded TensorRT library.

    Attributes:
        backend: ``"tensorrt"`` or ``"tensorrt-rtx"``.
        module: The Python module.
        version: The module's version, such as ``"11.4.0.106"``.
        logger: Passed to each object of the library; it must outlive all of them.
        messages: The latest errors that the library logged.
    """

    backend: TrtBackend
    module: Any
    version: str
    logger: Any
    messages: deque[str] = field(repr=False)

    @property
    def is_rtx(self) -> bool:
        """Whether this is TensorRT for RTX."""
        return self.backend == "tensorrt-rtx"

    @property
    def title(self) -> str:
        """Name and version of the library, for messages."""
        name = "TensorRT for RTX" if self.is_rtx else "TensorRT"
        return f"{name} {self.version}"

    def check(self, result: T | None, what: str) -> T:
        """Return a method's result, or raise if it is None or False.

        Args:
            result: Result of a method of the library.
            what: The attempted action; the message continues with "failed".

        Raises:
            EngineError: If the result is None or False; with the library's messages.
        """
        if result is None or result is False:
            raise EngineError(f"{what} failed in {self.title}: {self.pop_errors()}")
        self.messages.clear()
        return result

    def pop_errors(self) -> str:
        """Return the library's messages on one line, and clear them."""
        text = "; ".join(dict.fromkeys(self.messages))
        self.messages.clear()
        return one_line(text) if text else "it gave no reason"

    def strongly_typed(self) -> int:
        """Return the flags of a network with the types of the graph."""
        return 1 << int(self.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)

    def numpy_dtype(self, dtype: Any) -> str:
        """Return NumPy's name of a tensor's type.

        Raises:
            EngineError: If it is neither float32 nor float16.
        """
        kinds = self.module.DataType
        for kind, name in ((kinds.FLOAT, "float32"), (kinds.HALF, "float16")):
            if dtype == kind:
                return name
        raise EngineError(f"an engine's tensors are float or half, got {dtype}")


def load_trt(backend: TrtBackend) -> TrtApi:
    """Load a TensorRT library.

    Raises:
        BackendError: If it is installed but cannot be loaded, or is too old.
        MissingExtraError: If it is not installed.
    """
    name, extra = _MODULES[backend]
    try:
        module = import_or_explain(name, extra=extra, purpose=f"the {backend} backend")
    except (ImportError, OSError) as error:
        raise BackendError(
            f"{name} is installed but cannot be loaded ({one_line(error)}): reinstall mpn-runtime "
            f"with its extra [{extra}]"
        ) from error
    version = str(getattr(module, "__version__", "0"))
    if _numbers(version)[:2] < OLDEST[backend]:
        oldest = ".".join(map(str, OLDEST[backend]))
        raise BackendError(
            f"{name} {version} is too old, {oldest} or newer is needed: reinstall mpn-runtime with "
            f"its extra [{extra}]"
        )
    messages: deque[str] = deque(maxlen=_KEPT_MESSAGES)
    return TrtApi(backend, module, version, _logger(module, messages), messages)


def _numbers(version: str) -> tuple[int, ...]:
    numbers = []
    for part in version.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers) or (0,)


def _logger(module: Any, messages: deque[str]) -> Any:
    """Create a logger that keeps errors and prints nothing."""
    lock = threading.Lock()

    class Logger(module.ILogger):  # type: ignore[misc]  # the module is known at run time only
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            if int(severity.value) <= _ERROR_SEVERITY:
                with lock:  # builders log from several threads
                    messages.append(" ".join(msg.split()))

    return Logger()
