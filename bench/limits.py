"""The machine's own limit: how fast it reads memory of a given size, and how fast it multiplies and adds.

The probes are bare machine code with nothing else in the loop, in the widest vectors of the code generator's target.
Read sweeps come in two orders, always forward and back and forth (piece by piece, which finds the end of the last sweep
still in the cache); the faster one counts. On several threads each reads its own part, all at once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np

from .workloads import Workload

STREAMS: Final = 8  # vectors read an iteration, each into a sum of its own
CHAINS: Final = 12  # independent accumulators: latency × multiplications a cycle is at most 10 on today's cores
UNROLLED: Final = 4
BLOCK: Final = 4096  # iterations of multiplications behind one call of a probe
PIECE: Final = 128  # groups that a sweep backward reads forward: 64 KB of 512-bit vectors
CACHE_LINE: Final = 64
#: Instructions that multiply and add short numbers into wider ones: what the processor calls the feature, the
#: instruction, and how many of its numbers a 32-bit lane holds.
DOTS: Final = {"bfloat16": ("avx512bf16", "vdpbf16ps", 2), "int8": ("avx512vnni", "vpdpbusd", 4)}


@dataclass(frozen=True)
class Limit:
    """The least time a call can take, and what sets it.

    ``bandwidth`` in bytes a second over all phases, each at that of its own footprint (``bandwidths``); ``peak`` in
    operations a second. ``in_turn``: seconds if no phase began before the one ahead of it had ended. That is no limit:
    what is multiplied ahead for later steps fits into the time that earlier ones take to read their weights.
    """

    seconds: float
    bound: str
    bytes: int
    bandwidth: float
    flops: int
    peak: float
    in_turn: float
    bandwidths: dict[int, float]


def limit_of(workload: Workload, bandwidths: Mapping[int, float], peak: float) -> Limit:
    """The larger of all phases' reading and all phases' computing. ``bandwidths``: by footprint."""
    reading = [phase.bytes / bandwidths[phase.footprint] for phase in workload.phases]
    computing = [phase.flops / peak for phase in workload.phases]
    bound = "memory" if sum(reading) >= sum(computing) else "arithmetic"
    return Limit(
        max(sum(reading), sum(computing)),
        bound,
        workload.bytes,
        workload.bytes / sum(reading),
        workload.flops,
        peak,
        sum(map(max, reading, computing)),
        dict(bandwidths),
    )


class Probe(Protocol):
    """What is measured beside the engines; one call is ``amount`` of bytes or operations."""

    amount: int

    def loop(self, n: int) -> None: ...


class Sweep:
    """Reads a buffer from end to end; one call is one sweep."""

    def __init__(self, buffer: np.ndarray, back_and_forth: bool) -> None:
        self.buffer = buffer
        self.amount = buffer.nbytes
        self.groups = self.amount // (STREAMS * _vector_bytes())
        self.address = int(self.buffer.ctypes.data)
        self.back_and_forth = back_and_forth
        self.swept = 0  # the direction of the next sweep
        self.sum = 0

    def loop(self, n: int) -> None:
        first = self.swept % 2
        self.sum += _probes().sweep(self.address, self.groups, first, first + n, int(self.back_and_forth))
        self.swept += n


class Multiplier:
    """Independent chains of fused multiply-adds in registers."""

    def __init__(self) -> None:
        self.amount = 2 * CHAINS * UNROLLED * BLOCK * (_vector_bytes() // 4)
        self.sum = 0.0

    def loop(self, n: int) -> None:
        self.sum += _probes().multiply(n * BLOCK, np.float32(0.5), np.float32(1.0))


class Dot:
    """Independent chains of dot products of short numbers, in registers."""

    def __init__(self, precision: str) -> None:
        self.amount = 2 * CHAINS * UNROLLED * BLOCK * (_vector_bytes() // 4) * DOTS[precision][2]
        self.multiply = dot_probe(precision)
        self.sum = 0

    def loop(self, n: int) -> None:
        self.sum += self.multiply(n * BLOCK)


class Team:
    """A probe for each thread, all at once."""

    def __init__(self, members: Sequence[Probe], others: ThreadPoolExecutor) -> None:
        self.members, self.others = members, others
        self.amount = sum(member.amount for member in members)

    def loop(self, n: int) -> None:
        waiting = [self.others.submit(member.loop, n) for member in self.members[1:]]
        self.members[0].loop(n)
        for each in waiting:
            each.result()


@dataclass(frozen=True)
class Probes:
    """What is measured beside the engines of a row: sweeps over each phase's footprint, and arithmetic."""

    workload: Workload
    sweeps: Mapping[int, Mapping[str, Probe]]  # by footprint: in either order
    arithmetic: Mapping[str, Probe]
    others: ThreadPoolExecutor

    @staticmethod
    def of(workload: Workload) -> Probes:
        """On as many threads as the workload has, each with its part."""
        threads = range(workload.threads)
        others = ThreadPoolExecutor(max(1, workload.threads - 1))

        def team(members: Sequence[Probe]) -> Probe:
            return members[0] if len(members) == 1 else Team(members, others)

        def sweeps(footprint: int) -> dict[str, Probe]:
            buffers = [swept_buffer(-(-footprint // workload.threads)) for _ in threads]
            return {
                f"sweep {order} over {footprint}": team([Sweep(buffer, order != "forward") for buffer in buffers])
                for order in ("forward", "back and forth")
            }

        arithmetic = {"multiply-add": team([Multiplier() for _ in threads])}
        if has_dot(workload.precision):
            arithmetic[f"{workload.precision} dot product"] = team([Dot(workload.precision) for _ in threads])
        footprints = dict.fromkeys(phase.footprint for phase in workload.phases)
        return Probes(workload, {each: sweeps(each) for each in footprints}, arithmetic, others)

    @property
    def all(self) -> dict[str, Probe]:
        """By name."""
        return {name: probe for group in (*self.sweeps.values(), self.arithmetic) for name, probe in group.items()}

    def limit(self, seconds: Mapping[str, float]) -> Limit:
        """The limit from the probes' seconds a call."""

        def fastest(probes: Mapping[str, Probe]) -> float:
            return max(probe.amount / seconds[name] for name, probe in probes.items())

        bandwidths = {footprint: fastest(probes) for footprint, probes in self.sweeps.items()}
        return limit_of(self.workload, bandwidths, fastest(self.arithmetic))

    def close(self) -> None:
        """Let the other threads go."""
        self.others.shutdown()


def has_dot(precision: str) -> bool:
    """Whether this machine multiplies numbers of that precision by themselves."""
    from lstm_engine.machine import target

    wanted = DOTS.get(precision)
    return wanted is not None and _vector_bytes() == 64 and wanted[0] in target().enabled


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

    @njit(int64(int64, int64, int64, int64, int64), nogil=True)
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

    @njit(float32(int64, float32, float32), nogil=True)
    def multiply(n: int, x: float, y: float) -> float:
        return multiply_all(n, x, y)

    return _Probes(sweep, multiply)


@functools.cache
def dot_probe(precision: str) -> Callable[[int], int]:
    """count → the sum of all lanes after ``count`` times UNROLLED rounds of CHAINS dot products.

    In assembler: code generators of different releases want different types for these instructions.
    """
    import llvmlite.binding as llvm
    from llvmlite import ir
    from numba import int64, njit
    from numba.core import cgutils
    from numba.extending import intrinsic

    llvm.initialize_native_asmparser()
    lanes = _vector_bytes() // 4
    integers = ir.VectorType(ir.IntType(32), lanes)
    code_of = ir.FunctionType(integers, [integers] * 3)
    instruction = f"{DOTS[precision][1]} $2, $1, $0"

    @intrinsic
    def multiply_all(typing_context: Any, count: Any) -> Any:
        def code(context: Any, b: ir.IRBuilder, signature: Any, values: Any) -> Any:
            factor = ir.Constant(integers, [0x01010101] * lanes)
            chains = [cgutils.alloca_once_value(b, ir.Constant(integers, [k] * lanes)) for k in range(CHAINS)]
            with cgutils.for_range(b, values[0]):
                for _ in range(UNROLLED):
                    for chain in chains:
                        made = b.asm(code_of, instruction, "=v,v,v,0", [factor, factor, b.load(chain)], False)
                        b.store(made, chain)
            joined = functools.reduce(b.xor, [b.load(chain) for chain in chains])
            kind = ir.FunctionType(ir.IntType(32), [integers])
            total = cgutils.get_or_insert_function(b.module, kind, f"llvm.vector.reduce.add.v{lanes}i32")
            return b.sext(b.call(total, [joined]), ir.IntType(64))

        return int64(int64), code

    @njit(int64(int64), nogil=True)
    def multiply(n: int) -> int:
        return multiply_all(n)

    made: Callable[[int], int] = multiply
    return made


def _splat(b: Any, ir: Any, vector: Any, lanes: int, value: Any) -> Any:
    undefined = ir.Constant(vector, ir.Undefined)
    first = b.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
    return b.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes))
