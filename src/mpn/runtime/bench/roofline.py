"""Count FLOP and bytes of operators, and measure the peaks of this machine.

The roofline of an operator is ``min(peak FLOP/s, FLOP / bytes * bandwidth)`` (Williams, Waterman
and Patterson, 2009). An operator without FLOP has only the bandwidth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import numpy as np

from mpn._common.cores import usable_cores
from mpn.engines.onnxruntime.engine import import_onnxruntime

_BYTES = {"float": 4, "float16": 2, "double": 8, "int64": 8, "int32": 4, "int8": 1, "uint8": 1}
_WEIGHTS_AT = {"QLinearConv": 3, "QLinearMatMul": 3, "QGemm": 3}
"""Input that has the weights of a quantised operator; 1 for all others."""
_CONVOLUTIONS = ("Conv", "FusedConv", "QLinearConv", "ConvInteger")
_PRODUCTS = (
    "MatMul",
    "Gemm",
    "FusedMatMul",
    "FusedGemm",
    "MatMulInteger",
    "QLinearMatMul",
    "QGemm",
)
_FLOAT, _UINT8, _INT8, _INT32 = 1, 2, 3, 6
"""Element types of ONNX."""


@dataclass(frozen=True)
class Peaks:
    """Measured peaks of this machine.

    Attributes:
        gemm_flop_s: Single-precision matrix product, FLOP per second.
        int8_flop_s: The same of 8-bit integers.
        bandwidth_bytes_s: Copy of a large array, bytes read and written per second.
    """

    gemm_flop_s: float
    int8_flop_s: float
    bandwidth_bytes_s: float

    def as_json(self) -> dict[str, float]:
        """Return the peaks by name."""
        return asdict(self)

    def best(self, other: Peaks) -> Peaks:
        """Return the higher of each peak of two measurements."""
        return Peaks(
            max(self.gemm_flop_s, other.gemm_flop_s),
            max(self.int8_flop_s, other.int8_flop_s),
            max(self.bandwidth_bytes_s, other.bandwidth_bytes_s),
        )

    def least_s(self, flop: float, nbytes: float, *, is_int8: bool = False) -> float:
        """Return the seconds that the roofline allows at least."""
        peak = self.int8_flop_s if is_int8 else self.gemm_flop_s
        return max(flop / peak, nbytes / self.bandwidth_bytes_s)


@dataclass(frozen=True)
class Cost:
    """FLOP and bytes of one run of an operator.

    Attributes:
        flop: Multiplications and additions of convolutions and matrix products, otherwise 0.
        nbytes: Inputs, weights and outputs, each once.
        is_int8: Whether the weights are 8-bit integers.
        is_depthwise: Whether it is a convolution with one input channel per group.
    """

    flop: float
    nbytes: float
    is_int8: bool
    is_depthwise: bool


def cost_of(operator: str, arguments: Mapping[str, Any]) -> Cost:
    """Count an operator from the shapes in onnxruntime's profile.

    Args:
        operator: Type of the operator.
        arguments: ``args`` of its event, with ``input_type_shape`` and ``output_type_shape``.
    """
    inputs, outputs = (_tensors(arguments[f"{side}_type_shape"]) for side in ("input", "output"))
    nbytes = float(sum(_BYTES.get(t, 4) * math.prod(shape) for t, shape in (*inputs, *outputs)))
    at = _WEIGHTS_AT.get(operator, 1)
    if len(inputs) <= at or not outputs:
        return Cost(0.0, nbytes, False, False)
    (dtype, weights), first, out = inputs[at], inputs[0][1], outputs[0][1]
    flop = 0.0
    if operator in (*_CONVOLUTIONS, "ConvTranspose") and len(weights) < 3:
        return Cost(0.0, nbytes, False, False)  # reordered weights are not in the profile
    if operator in _CONVOLUTIONS:
        flop = 2.0 * math.prod(out) * math.prod(weights[1:])
    elif operator == "ConvTranspose":
        flop = 2.0 * math.prod(first) * math.prod(weights[1:])
    elif operator in _PRODUCTS:
        flop = 2.0 * math.prod(out) * first[-1]
    # Channels are axis 1, or the last axis of a quantised convolution.
    channels = min(first[1], first[-1]) if operator in _CONVOLUTIONS else 0
    is_depthwise = channels > 1 and weights[1] == 1
    return Cost(flop, nbytes, flop > 0 and dtype in ("int8", "uint8"), is_depthwise)


def _tensors(listed: Sequence[Mapping[str, Sequence[int]]]) -> list[tuple[str, Sequence[int]]]:
    return [(dtype, shape) for tensor in listed for dtype, shape in tensor.items()]


def measure_peaks(
    threads: int | None, *, side: int = 1536, copy_bytes: int = 2**28, repeats: int = 5
) -> Peaks:
    """Measure the peaks by onnxruntime and NumPy, each the best of several runs.

    Args:
        threads: Threads; None for all usable cores.
        side: Rows and columns of the matrices.
        copy_bytes: Size of the copied array: larger than the caches.
        repeats: Runs of each.
    """
    number = threads or usable_cores()
    flop = 2.0 * side**3
    rng = np.random.default_rng(0)
    floats = rng.random((side, side), np.float32)
    feeds = {"a": floats, "b": floats.T.copy()}
    gemm = _session(_product("MatMul", side, (_FLOAT, _FLOAT, _FLOAT)), number)
    gemm_s = _best(lambda: gemm.run(None, feeds), repeats)
    integers = {
        "a": rng.integers(0, 255, (side, side), np.uint8),
        "b": rng.integers(-127, 127, (side, side), np.int8),
    }
    product = _session(_product("MatMulInteger", side, (_UINT8, _INT8, _INT32)), number)
    int8_s = _best(lambda: product.run(None, integers), repeats)
    source = np.ones(copy_bytes, np.uint8)
    target = np.zeros_like(source)
    parts = list(zip(np.array_split(target, number), np.array_split(source, number), strict=True))
    with ThreadPoolExecutor(number) as pool:
        copy_s = _best(lambda: list(pool.map(lambda part: np.copyto(*part), parts)), repeats)
    return Peaks(flop / gemm_s, flop / int8_s, 2.0 * copy_bytes / copy_s)


def _best(call: Callable[[], object], repeats: int) -> float:
    call()
    seconds = []
    for _ in range(repeats):
        begun = perf_counter()
        call()
        seconds.append(perf_counter() - begun)
    return min(seconds)


def _session(model: bytes, threads: int) -> Any:
    ort = import_onnxruntime("cpu")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _product(operator: str, side: int, types: tuple[int, int, int]) -> bytes:
    """Return an ONNX model of one matrix product; the runtime does not import onnx.

    The numbers are the field numbers of onnx.proto.
    """
    a, b, out = (
        _field(1, name)
        + _field(2, _field(1, _field(1, t) + _field(2, _field(1, _field(1, side)) * 2)))
        for name, t in zip((b"a", b"b", b"out"), types, strict=True)
    )
    node = _field(1, b"a") + _field(1, b"b") + _field(2, b"out") + _field(4, operator.encode())
    graph = _field(1, node) + _field(2, b"g") + _field(11, a) + _field(11, b) + _field(12, out)
    return _field(1, 8) + _field(7, graph) + _field(8, _field(1, b"") + _field(2, 17))


def _field(number: int, value: int | bytes) -> bytes:
    """Encode a field of Protocol Buffers: a number, or bytes with their length."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    encoded = b""
    while value > 127:
        encoded += bytes([value & 127 | 128])
        value >>= 7
    return encoded + bytes([value])
