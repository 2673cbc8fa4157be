"""Controls of the shim: it runs valid kernels and detects invalid ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.emulation.cuda_shim.shim import KernelFaultError, Shim

HEADER = (
    "typedef unsigned char uint8; typedef unsigned short uint16; typedef unsigned int uint32;\n"
    "typedef unsigned long long uint64; struct Half { uint16 bits; };\n"
)
KERNELS = """
// launch: block 64; grid 2
extern "C" __global__ void __launch_bounds__(64) mirrored(const int* in, int* out) {
  __shared__ int here[64];
  here[threadIdx.x] = in[64 * blockIdx.x + threadIdx.x];
  __syncthreads();
  out[64 * blockIdx.x + threadIdx.x] = here[63 - threadIdx.x];
}
// launch: block 64; grid 2
extern "C" __global__ void __launch_bounds__(64) mirrored_without_barrier(const int* in, int* out) {
  __shared__ int here[64];
  here[threadIdx.x] = in[64 * blockIdx.x + threadIdx.x];
  out[64 * blockIdx.x + threadIdx.x] = here[63 - threadIdx.x];
}
// launch: block 64; grid 1
extern "C" __global__ void __launch_bounds__(64) unwritten_shared(int* out) {
  __shared__ int here[64];
  __syncthreads();
  out[threadIdx.x] = here[threadIdx.x];
}
// launch: block 64; grid 1
extern "C" __global__ void __launch_bounds__(64) left_early(int* out) {
  if (threadIdx.x == 3) return;
  __syncthreads();
  out[threadIdx.x] = 1;
}
// launch: block 64; grid 1
extern "C" __global__ void __launch_bounds__(64) two_barriers(int* out) {
  if (threadIdx.x == 3) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = 1;
}
// launch: block 64; grid 1
extern "C" __global__ void __launch_bounds__(64) half_a_warp(int* out) {
  if (threadIdx.x < 48) out[threadIdx.x] = __ballot_sync(0xffffffffu, true);
}
// launch: block 64; grid 1
extern "C" __global__ void __launch_bounds__(64) warp_sums(const int* in, int* out) {
  int sum = in[threadIdx.x];
  for (int distance = 16; distance > 0; distance >>= 1) {
    sum += __shfl_xor_sync(0xffffffffu, sum, distance);
  }
  out[threadIdx.x] = sum;
  out[64 + threadIdx.x] = static_cast<int>(__ballot_sync(0xffffffffu, in[threadIdx.x] & 1));
  out[128 + threadIdx.x] = __syncthreads_or(in[threadIdx.x] == 40);
  out[192 + threadIdx.x] = __syncthreads_or(in[threadIdx.x] == 99);
}
// launch: block 64; grid 3
extern "C" __global__ void __launch_bounds__(64) read_at(const int* in, int at, int* out) {
  if (threadIdx.x == 0) out[blockIdx.x] = in[at];
}
// launch: block 64; grid 1
extern "C" __global__ void __launch_bounds__(64) write_at(int at, int* out) {
  if (threadIdx.x == 0) out[at] = 1;
}
// launch: block 64; grid 1
extern "C" __global__ void __launch_bounds__(64) write_const(const int* in) {
  const_cast<int*>(in)[threadIdx.x] = 1;
}
// launch: block 64; grid 1
extern "C" __global__ void __launch_bounds__(64) beside_shared(int at, int* out) {
  __shared__ int here[8];
  here[at] = 1;
  __syncthreads();
  out[threadIdx.x] = here[0];
}
// launch: block 64; grid 1
extern "C" __global__ void __launch_bounds__(64) vector_load(const float* in, int at, float* out) {
  out[0] = reinterpret_cast<const float4*>(in + at)->w;
}
// launch: block 64; grid 1
extern "C" __global__ void __launch_bounds__(64) to_int(float value, int* out) {
  out[0] = static_cast<int>(value);
}
// launch: block 64; grid 1
extern "C" __global__ void __launch_bounds__(64) overflow(int value, int* out) {
  out[0] = value + value;
}
"""
COUNTING = """
// launch: block 32; grid 4
extern "C" __global__ void __launch_bounds__(32) counted(int* count, int* order) {
  const int mine = atomicAdd(count, 1);
  order[mine] = 32 * blockIdx.x + threadIdx.x;
}
// launch: block 32; grid 4
extern "C" __global__ void __launch_bounds__(32) counted_unsafely(int* count, int* order) {
  const int mine = *count;
  atomicAdd(order, 0);  // somewhere to be interrupted
  *count = mine + 1;
}
// launch: block 128; grid 1
extern "C" __global__ void __launch_bounds__(128) converted(
    const float* in, int count, uint16* halves, float* back) {
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    halves[i] = shim_half_from_float(in[i]);
    back[i] = shim_float_from_half(halves[i]);
  }
}
"""


@pytest.fixture(scope="module")
def broken(shim: Shim, tmp_path_factory: pytest.TempPathFactory) -> Shim:
    """Valid kernels, and kernels with one fault each."""
    del shim  # skips without g++
    folder: Path = tmp_path_factory.mktemp("shim")
    return Shim(folder, {"shared": HEADER + KERNELS, "counting": HEADER + COUNTING})


def ints(count: int) -> np.ndarray:
    return np.full(count, -1, np.int32)


@pytest.mark.parametrize("seed", range(4))
def test_a_barrier_stands_between_writing_and_reading(broken: Shim, seed: int) -> None:
    given, out = np.arange(128, dtype=np.int32), ints(128)
    broken.launch("mirrored", seed=seed, **{"in": given, "out": out})
    assert np.array_equal(out, given.reshape(2, 64)[:, ::-1].ravel())


@pytest.mark.parametrize("seed", range(3))
def test_without_the_barrier_the_result_is_wrong(broken: Shim, seed: int) -> None:
    """Control of the test above."""
    given, out = np.arange(128, dtype=np.int32), ints(128)
    broken.launch("mirrored_without_barrier", seed=seed, **{"in": given, "out": out})
    assert not np.array_equal(out, given.reshape(2, 64)[:, ::-1].ravel())


def test_shared_memory_is_poisoned(broken: Shim) -> None:
    out = ints(64)
    broken.launch("unwritten_shared", out=out)
    assert (out.view(np.uint32) == 0xCDCDCDCD).all()


def test_warp_operations(broken: Shim) -> None:
    given, out = np.arange(64, dtype=np.int32), ints(256)
    for seed in range(3):
        broken.launch("warp_sums", seed=seed, **{"in": given, "out": out})
        assert (out[:32] == 31 * 16).all()
        assert (out[32:64] == 31 * 16 + 32 * 32).all()
        assert (out[64:128].view(np.uint32) == 0xAAAAAAAA).all()
        assert out[128:192].all()
        assert not out[192:].any()


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("left_early", {}, "wait at a barrier that others never reach"),
        ("two_barriers", {}, "stand at different barriers"),
        ("half_a_warp", {}, "never reach"),
        ("write_at", {"at": 64}, "access outside an array"),
        ("write_at", {"at": -1}, "wrote outside 'out'"),
        ("beside_shared", {"at": 8}, "undefined behaviour"),
        ("to_int", {"value": 1e20}, "undefined behaviour"),
        ("overflow", {"value": 2**30}, "undefined behaviour"),
    ],
)
def test_a_kernel_that_is_wrong_is_caught(
    broken: Shim, name: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(KernelFaultError, match=f"{name}.*{message}"):
        broken.launch(name, out=ints(64), **arguments)


@pytest.mark.parametrize(("guard", "at"), [("end", 64), ("start", -1)])
def test_a_read_outside_is_caught_on_the_guarded_side(broken: Shim, guard: Any, at: int) -> None:
    arguments = {"in": ints(64), "at": at, "out": ints(3)}
    with pytest.raises(KernelFaultError, match=r"access outside an array \(block 0,0,0 thread 0"):
        broken.launch("read_at", guard=guard, **arguments)
    broken.launch("read_at", guard=guard, **{**arguments, "at": 63})


def test_a_vector_load_needs_an_aligned_address(broken: Shim) -> None:
    given, out = np.arange(64, dtype=np.float32), np.zeros(1, np.float32)
    broken.launch("vector_load", **{"in": given, "at": 4, "out": out})
    assert out[0] == 7
    with pytest.raises(KernelFaultError, match="undefined behaviour"):
        broken.launch("vector_load", **{"in": given, "at": 1, "out": out})


def test_a_const_array_must_stay_as_it_is(broken: Shim) -> None:
    with pytest.raises(KernelFaultError, match="'in', which is const"):
        broken.launch("write_const", **{"in": ints(64)})


def test_arguments_are_checked_by_name_and_dtype(broken: Shim) -> None:
    with pytest.raises(TypeError, match="takes"):
        broken.launch("write_at", at=1)
    with pytest.raises(TypeError, match="float64"):
        broken.launch("write_at", at=1, out=np.zeros(64))


def test_after_a_fault_the_next_launch_runs(broken: Shim) -> None:
    with pytest.raises(KernelFaultError):
        broken.launch("write_at", at=64, out=ints(64))
    out = ints(64)
    broken.launch("write_at", at=5, out=out)
    assert out[5] == 1


def test_shim_atomics_are_exact_in_seeded_order(broken: Shim) -> None:
    orders = []
    for seed in range(3):
        count, order = np.zeros(1, np.int32), ints(128)
        broken.launch("counted", seed=seed, count=count, order=order)
        assert count[0] == 128
        assert sorted(order) == list(range(128))
        orders.append(order.tolist())
    assert orders[0] == sorted(orders[0])
    assert orders[1] != orders[0] != orders[2] != orders[1]


def test_separate_read_and_write_loses_counts(broken: Shim) -> None:
    """Control: threads of the same and of different blocks run interleaved."""
    count = np.zeros(1, np.int32)
    broken.launch("counted_unsafely", seed=1, count=count, order=np.zeros(128, np.int32))
    assert 0 < count[0] < 128


def test_half_precision_is_numpys(broken: Shim) -> None:
    rng = np.random.default_rng(0)
    steps = np.arange(2**16, dtype=np.uint16).view(np.float16)
    values = np.concatenate(
        [
            steps.astype(np.float32)[np.isfinite(steps)],
            rng.normal(0, 1, 5000).astype(np.float32) ** 9,
            np.array([65519.99, 65520, -65520, 1e30, np.inf, 2.0**-25, 2.0**-24, 0], np.float32),
            np.nextafter(np.float32(1), np.float32(2)) + np.arange(5, dtype=np.float32) / 2048,
        ]
    ).astype(np.float32)
    halves, back = np.zeros(len(values), np.uint16), np.zeros(len(values), np.float32)
    arguments = {"in": values, "count": len(values), "halves": halves, "back": back}
    broken.launch("converted", **arguments)
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16)
    assert np.array_equal(halves, expected.view(np.uint16))
    assert np.array_equal(back, expected.astype(np.float32))
