"""The machine's own limit: how fast one core reads memory of a given size, and how fast it multiplies and adds.

Both probes are bare machine code with nothing else in the loop, in the widest vectors of the code generator's
target. Read sweeps come in two orders, always forward and back and forth (piece by piece, which finds the end of the
last sweep still in the cache); the faster one counts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from .workloads import Workload

STREAMS: Final = 8  # vectors read an iteration, each into a sum of its own
CHAINS: Final = 12  # independent accumulators: latency × multiplications a cycle is at most 10 on today's cores
UNROLLED: Final = 4
BLOCK: Final = 4096  # FMA iterations behind one call of the probe
PIECE: Final = 128  # groups that a sweep backward reads forward: 64 KB of 512-bit vectors
CACHE_LINE: Final = 64


@dataclass(frozen=True)
class Limit:
    """The least time a call can take, and what sets it.

    ``bandwidth`` in bytes a second at the workload's footprint, ``peak`` in floating-point operations a second.
    """

    seconds: float
    bound: str
    bytes: int
    footprint: int
    bandwidth: float
    flops: int
    peak: float


def limit_of(workload: Workload, bandwidth: float, peak: float) -> Limit:
    """max(bytes / bandwidth, flops / peak)."""
    reading, computing = workload.bytes / bandwidth, workload.flops / peak
    bound = "memory" if reading >= computing else "arithmetic"
    return Limit(max(reading, computing), bound, workload.bytes, workload.footprint, bandwidth, workload.flops, peak)


class Sweep:
    """Reads a buffer from end to end; one call is one sweep."""

    def __init__(self, buffer: np.ndarray, back_and_forth: bool) -> None:
        self.buffer = buffer
        self.bytes = buffer.nbytes
        self.groups = self.bytes // (STREAMS * _vector_bytes())
        self.address = int(self.buffer.ctypes.data)
        self.back_and_forth = back_and_forth
        self.swept = 0  # the direction of the next sweep
        self.sum = 0

    def loop(self, n: int) -> None:
        first = self.swept % 2
        self.sum += _probes().sweep(self.address, self.groups, first, first + n, int(self.back_and_forth))
        self.swept += n


class Multiplier:
    """Independent chains of fused multiply-adds in registers; one call is ``flops`` operations."""

    def __init__(self) -> None:
        self.flops = 2 * CHAINS * UNROLLED * BLOCK * (_vector_bytes() // 4)
        self.sum = 0.0

    def loop(self, n: int) -> None:
        self.sum += _probes().multiply(n * BLOCK, np.float32(0.5), np.float32(1.0))


def probes_for(workload: Workload) -> dict[str, Sweep | Multiplier]:
    """What is measured beside the engines of a row."""
    buffer = swept_buffer(workload.footprint)
    return {
        "sweep": Sweep(buffer, back_and_forth=False),
        "sweep, back and forth": Sweep(buffer, back_and_forth=True),
        "multiply-add": Multiplier(),
    }


def measured_limit(workload: Workload, probes: Mapping[str, Any], seconds: Mapping[str, float]) -> Limit:
    """The limit from the probes' seconds a call."""
    sweeps = [probe.bytes / seconds[name] for name, probe in probes.items() if isinstance(probe, Sweep)]
    peak = next(probe.flops / seconds[name] for name, probe in probes.items() if isinstance(probe, Multiplier))
    return limit_of(workload, max(sweeps), peak)


def swept_buffer(footprint: int) -> np.ndarray:
    """So many bytes, rounded up to whole iterations of a sweep.

    They begin at a cache line and are written once, so that every page is there and is its own.
    """
    group = STREAMS * _vector_bytes()
    size = group * max(1, -(-footprint // group))
    base = np.empty(size + CACHE_LINE, np.uint8)
    start = -base.ctypes.data % CACHE_LINE
    buffer = base[start : start + size]
    buffer[...] = np.arange(size, dtype=np.uint8)
    return buffer


@functools.cache
def _vector_bytes() -> int:
    from lstm_engine.machine import target

    return target().vector_bytes


# --- machine code ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Probes:
    sweep: Callable[[int, int, int, int, int], int]
    multiply: Callable[[int, np.float32, np.float32], float]


@functools.cache
def _probes() -> _Probes:
    """Compiled when first asked for."""
    from llvmlite import ir
    from numba import float32, int64, njit
    from numba.core import cgutils
    from numba.extending import intrinsic

    from lstm_engine.machine import target

    width = _vector_bytes()
    lanes = width // 4
    integers, floats = ir.VectorType(ir.IntType(32), lanes), ir.VectorType(ir.FloatType(), lanes)
    group = STREAMS * width
    has_fma = target().fma

    def call(b: ir.IRBuilder, name: str, result: ir.Type, arguments: list[ir.Value]) -> ir.Value:
        kind = ir.FunctionType(result, [a.type for a in arguments])
        return b.call(cgutils.get_or_insert_function(b.module, kind, name), arguments)

    @intrinsic
    def read_all(typing_context: Any, first: Any, groups: Any) -> Any:
        """XOR of all words of so many groups of vectors."""

        def code(context: Any, b: ir.IRBuilder, signature: Any, values: Any) -> Any:
            at, count = values
            zero = ir.Constant(integers, [0] * lanes)
            sums = [cgutils.alloca_once_value(b, zero) for _ in range(STREAMS)]
            with cgutils.for_range(b, count) as loop:
                start = b.add(at, b.mul(loop.index, ir.Constant(ir.IntType(64), group)))
                for k, total in enumerate(sums):
                    where = b.inttoptr(b.add(start, ir.Constant(ir.IntType(64), k * width)), ir.PointerType())
                    b.store(b.xor(b.load(total), b.load(where, typ=integers, align=width)), total)
            joined = functools.reduce(b.xor, [b.load(total) for total in sums])
            return b.sext(call(b, f"llvm.vector.reduce.xor.v{lanes}i32", ir.IntType(32), [joined]), ir.IntType(64))

        return int64(int64, int64), code

    @intrinsic
    def multiply_all(typing_context: Any, count: Any, x: Any, y: Any) -> Any:
        """``count`` times UNROLLED rounds of a ← a·x + y on CHAINS vectors a; the sum of all lanes."""

        def code(context: Any, b: ir.IRBuilder, signature: Any, values: Any) -> Any:
            n, x_scalar, y_scalar = values
            x_vector, y_vector = (_splat(b, ir, floats, lanes, value) for value in (x_scalar, y_scalar))
            starts = [ir.Constant(floats, [float(k)] * lanes) for k in range(CHAINS)]
            chains = [cgutils.alloca_once_value(b, start) for start in starts]
            with cgutils.for_range(b, n):
                for _ in range(UNROLLED):
                    for chain in chains:
                        a = b.load(chain)
                        if has_fma:
                            a = call(b, f"llvm.fma.v{lanes}f32", floats, [a, x_vector, y_vector])
                        else:
                            a = b.fadd(b.fmul(a, x_vector), y_vector)
                        b.store(a, chain)
            joined = functools.reduce(b.fadd, [b.load(chain) for chain in chains])
            zero = ir.Constant(ir.FloatType(), 0.0)
            return call(b, f"llvm.vector.reduce.fadd.v{lanes}f32", ir.FloatType(), [zero, joined])

        return float32(int64, float32, float32), code

    @njit(int64(int64, int64, int64, int64, int64))
    def sweep(address: int, groups: int, first: int, end: int, back_and_forth: int) -> int:
        total = 0
        for k in range(first, end):
            if back_and_forth and k % 2:
                left = groups
                while left:  # the last piece first, each of them forward as the prefetchers like it
                    piece = (left - 1) % PIECE + 1
                    left -= piece
                    total += read_all(address + left * group, piece)
            else:
                total += read_all(address, groups)
        return total

    @njit(float32(int64, float32, float32))
    def multiply(n: int, x: float, y: float) -> float:
        return multiply_all(n, x, y)

    return _Probes(sweep, multiply)


def _splat(b: Any, ir: Any, vector: Any, lanes: int, value: Any) -> Any:
    undefined = ir.Constant(vector, ir.Undefined)
    first = b.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
    return b.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes))
