"""Vectors of 16 lanes in machine code: the only kernel file that speaks LLVM IR types.

A vector is always 16 elements, whatever the CPU: LLVM splits it into the registers there are (one of
AVX-512, two of AVX2, four of NEON for float32; twice as many for float64). So one source serves every
instruction set, and lane arithmetic, hence every bit of a result, is the same for each of them that
has a fused multiply-add.

Two faces of the same operations: methods of ``Lanes`` emit IR into a builder (whole inner blocks are
emitted that way, which compiles several times faster than typed Numba statements), and the intrinsics
in ``Lanes.intrinsics`` make them callable from jitted Python.

Addresses are int64. Nothing here allocates.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import Parameter, Signature
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

from ..machine import target

WIDTH = 16  # lanes in a vector
INT64 = ir.IntType(64)
INT32 = ir.IntType(32)
POINTER = ir.PointerType()
address = types.int64


class VectorType(types.Type):
    """Numba's type of a vector of 16 elements."""

    def __init__(self, element: str) -> None:
        super().__init__(name=f"vector16_{element}")
        self.element = element


@register_model(VectorType)
class VectorModel(models.PrimitiveModel):
    """How LLVM holds a VectorType."""

    def __init__(self, dmm: Any, fe_type: VectorType) -> None:
        elements = {"float32": ir.FloatType(), "float64": ir.DoubleType(), "int64": INT64}
        super().__init__(dmm, fe_type, ir.VectorType(elements[fe_type.element], WIDTH))


#: What integers and booleans of any size are computed as.
INTEGER_LANES = VectorType("int64")


def pointer(b: ir.IRBuilder, at: ir.Value) -> ir.Value:
    """An int64 address as a pointer."""
    return b.inttoptr(at, POINTER)


def int64(value: int) -> ir.Constant:
    """An integer constant."""
    return ir.Constant(INT64, value)


def call(b: ir.IRBuilder, name: str, result: ir.Type, arguments: list[ir.Value]) -> ir.Value:
    """Call an LLVM intrinsic by name."""
    function_type = ir.FunctionType(result, [a.type for a in arguments])
    return b.call(cgutils.get_or_insert_function(b.module, function_type, name), arguments)


@dataclass(frozen=True)
class Emitted:
    """An intrinsic as what writes it: emit(builder, …) of arguments of these types; ``result``: None for nothing."""

    emit: Callable[..., Any]
    arguments: Sequence[ir.Type]
    result: ir.Type | None


class Lanes:
    """Emits 16-lane arithmetic of one element type into an IR builder."""

    def __init__(self, element: str) -> None:
        self.element = element
        self.dtype = np.dtype(element)
        self.bytes = self.dtype.itemsize
        self.vector_bytes = WIDTH * self.bytes
        self.suffix = "f32" if element == "float32" else "f64"
        self.scalar: ir.Type = ir.FloatType() if element == "float32" else ir.DoubleType()
        self.vector = ir.VectorType(self.scalar, WIDTH)
        self.bits = ir.VectorType(ir.IntType(8 * self.bytes), WIDTH)
        self.numba_scalar = types.float32 if element == "float32" else types.float64
        self.numba_vector = VectorType(element)

    def constant(self, value: float) -> ir.Constant:
        """All lanes = one number."""
        return ir.Constant(self.vector, [float(self.dtype.type(value))] * WIDTH)

    def bit_pattern(self, value: int) -> ir.Constant:
        """All lanes = one integer of the element's size."""
        return ir.Constant(self.bits, [value] * WIDTH)

    def load(self, b: ir.IRBuilder, at: ir.Value, aligned: bool = True) -> ir.Value:
        """16 neighbouring elements; ``aligned``: at a cache line."""
        return b.load(pointer(b, at), typ=self.vector, align=64 if aligned else self.bytes)

    def store(self, b: ir.IRBuilder, value: ir.Value, at: ir.Value, aligned: bool = True) -> None:
        """Write 16 neighbouring elements."""
        b.store(value, pointer(b, at), align=64 if aligned else self.bytes)

    def prefetch(self, b: ir.IRBuilder, at: ir.Value) -> None:
        """Ask for a cache line that will be read soon."""
        hints = [ir.Constant(INT32, hint) for hint in (0, 3, 1)]  # read, keep close, data
        call(b, "llvm.prefetch.p0", ir.VoidType(), [pointer(b, at), *hints])

    def splat(self, b: ir.IRBuilder, x: ir.Value) -> ir.Value:
        """All lanes = one scalar."""
        undefined = ir.Constant(self.vector, ir.Undefined)
        first = b.insert_element(undefined, x, ir.Constant(INT32, 0))
        return b.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(INT32, WIDTH), [0] * WIDTH))

    def broadcast(self, b: ir.IRBuilder, at: ir.Value) -> ir.Value:
        """All lanes = the one element at an address."""
        return self.splat(b, b.load(pointer(b, at), typ=self.scalar, align=self.bytes))

    @property
    def fused(self) -> bool:
        """Whether fma() rounds once."""
        return target().fma

    def fma(self, b: ir.IRBuilder, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
        """x·y + z, rounded once where the hardware can (llvm.fma would call a library where it cannot)."""
        if not self.fused:
            return b.fadd(b.fmul(x, y), z)
        return call(b, f"llvm.fma.v{WIDTH}{self.suffix}", self.vector, [x, y, z])

    def unary(self, b: ir.IRBuilder, name: str, x: ir.Value) -> ir.Value:
        """An LLVM intrinsic of one vector: fabs, sqrt, nearbyint …"""
        return call(b, f"llvm.{name}.v{WIDTH}{self.suffix}", self.vector, [x])

    def copysign(self, b: ir.IRBuilder, magnitude: ir.Value, sign: ir.Value) -> ir.Value:
        """The magnitude of one vector with the signs of another."""
        return call(b, f"llvm.copysign.v{WIDTH}{self.suffix}", self.vector, [magnitude, sign])

    def maximum(self, b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
        """max(x, y); y where either is NaN, so that a bound as x lets NaN through (and is one instruction)."""
        return b.select(b.fcmp_ordered(">", x, y), x, y)

    def minimum(self, b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
        """min(x, y); y where either is NaN."""
        return b.select(b.fcmp_ordered("<", x, y), x, y)

    def least(self, b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
        """min(x, y); NaN where either is, as in NumPy and ONNX."""
        return b.select(b.fcmp_unordered("uno", x, x), x, self.minimum(b, x, y))

    def most(self, b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
        """max(x, y); NaN where either is."""
        return b.select(b.fcmp_unordered("uno", x, x), x, self.maximum(b, x, y))

    def first_lanes(self, b: ir.IRBuilder, count: ir.Value, x: ir.Value, otherwise: ir.Value) -> ir.Value:
        """x in the first ``count`` (int64) lanes, ``otherwise`` in the others."""
        lane_type = ir.VectorType(INT64, WIDTH)
        lane = ir.Constant(lane_type, list(range(WIDTH)))
        undefined = ir.Constant(lane_type, ir.Undefined)
        first = b.insert_element(undefined, count, ir.Constant(INT32, 0))
        limit = b.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(INT32, WIDTH), [0] * WIDTH))
        return b.select(b.icmp_signed("<", lane, limit), x, otherwise)

    def reduce_max(self, b: ir.IRBuilder, x: ir.Value) -> ir.Value:
        """The largest lane."""
        return self._fold(b, x, lambda left, right: self.maximum(b, left, right))

    def reduce_most(self, b: ir.IRBuilder, x: ir.Value) -> ir.Value:
        """The largest lane; NaN where there is one."""
        return self._fold(b, x, lambda left, right: self.most(b, left, right))

    def reduce_add(self, b: ir.IRBuilder, x: ir.Value) -> ir.Value:
        """Sum of the lanes in one fixed order: halves, quarters, …"""
        return self._fold(b, x, lambda left, right: b.fadd(left, right))

    def _fold(self, b: ir.IRBuilder, x: ir.Value, join: Any) -> ir.Value:
        undefined = ir.Constant(self.vector, ir.Undefined)
        half = WIDTH // 2
        while half:
            pick = [*range(half, 2 * half), *([0] * (WIDTH - half))]
            x = join(x, b.shuffle_vector(x, undefined, ir.Constant(ir.VectorType(INT32, WIDTH), pick)))
            half //= 2
        return b.extract_element(x, ir.Constant(INT32, 0))

    def intrinsic(self, emit: Any, arguments: str, result: str) -> Any:
        """Make an emitter callable from jitted code.

        ``arguments`` and ``result``: one letter a value: v vector, i vector of integers, s scalar, a address or
        integer, '' nothing.
        """
        letters = {"v": self.numba_vector, "i": INTEGER_LANES, "s": self.numba_scalar, "a": address}
        signature_types = [letters[letter] for letter in arguments]
        result_type = letters[result] if result else types.void

        def code(context: Any, b: ir.IRBuilder, signature: Any, values: Any) -> Any:
            value = emit(b, *values)
            return value if result else context.get_dummy_value()

        made = _intrinsic(len(signature_types), result_type(*signature_types), code)
        kinds = {"v": self.vector, "i": ir.VectorType(INT64, WIDTH), "s": self.scalar, "a": INT64}
        made.emitted = Emitted(emit, [kinds[letter] for letter in arguments], kinds[result] if result else None)
        return made


# ---------------------------------------------------------------------------------------------------------------------
# Bytes in fours: integer products


WORDS = ir.VectorType(INT32, WIDTH)
BYTES = ir.VectorType(ir.IntType(8), 4 * WIDTH)
HALVES = ir.VectorType(ir.IntType(16), 2 * WIDTH)


def spread(b: ir.IRBuilder, word: ir.Value) -> ir.Value:
    """One word, sixteen times."""
    undefined = ir.Constant(WORDS, ir.Undefined)
    first = b.insert_element(undefined, word, ir.Constant(INT32, 0))
    return b.shuffle_vector(first, undefined, ir.Constant(WORDS, [0] * WIDTH))


def dot(b: ir.IRBuilder, total: ir.Value, four: ir.Value, weights: ir.Value) -> ir.Value:
    """total[j] + Σ_i a[i]·w[j][i]: four unsigned bytes a with sixteen times four signed bytes, exactly."""
    if target().vnni:
        name = f"llvm.x86.avx512.vpdpbusd.{8 * target().vector_bytes}"
        return _in_registers(b, name, total, b.bitcast(four, BYTES), weights)
    if target().dotprod:  # signed bytes alone: Σ a·w = Σ (a - 128)·w + 128·Σ w
        name, none = "llvm.aarch64.neon.sdot.v4i32.v16i8", ir.Constant(WORDS, [0] * WIDTH)
        signed = b.xor(b.bitcast(four, BYTES), ir.Constant(BYTES, [-128] * 4 * WIDTH))
        sums = _in_registers(b, name, none, ir.Constant(BYTES, [1] * 4 * WIDTH), weights)
        total = b.add(total, b.shl(sums, ir.Constant(WORDS, [7] * WIDTH)))
        return _in_registers(b, name, total, signed, weights)
    # Even and odd bytes as 16-bit lanes; a sum of two neighbours' products is one instruction on x86 (pmaddwd).
    eight = ir.Constant(HALVES, [8] * 2 * WIDTH)
    signed, unsigned = b.bitcast(weights, HALVES), b.bitcast(four, HALVES)
    evens = b.ashr(b.shl(signed, eight), eight), b.and_(unsigned, ir.Constant(HALVES, [0xFF] * 2 * WIDTH))
    odds = b.ashr(signed, eight), b.lshr(unsigned, eight)
    for w, a in (evens, odds):
        total = b.add(total, _neighbours(b, w, a))
    return total


def dot_halves(b: ir.IRBuilder, total: ir.Value, two: ir.Value, weights: ir.Value) -> ir.Value:
    """total[j] + Σ_i a[i]·w[j][i]: two bfloat16 a with sixteen times two bfloat16 w, all as words."""
    return call(b, "llvm.x86.avx512bf16.dpbf16ps.512", total.type, [total, two, weights])


def _in_registers(b: ir.IRBuilder, name: str, total: ir.Value, *bytes_: ir.Value) -> ir.Value:
    """An intrinsic of (words, bytes, bytes) over 16 words, as many at a time as a register holds."""
    count = target().vector_bytes // 4
    if count == WIDTH:
        return call(b, name, WORDS, [total, *bytes_])
    pieces = [
        call(
            b,
            name,
            ir.VectorType(INT32, count),
            [_slice(b, total, first, count), *(_slice(b, x, 4 * first, 4 * count) for x in bytes_)],
        )
        for first in range(0, WIDTH, count)
    ]
    while len(pieces) > 1:
        pieces = [_joined(b, *pieces[k : k + 2]) for k in range(0, len(pieces), 2)]
    return pieces[0]


def _slice(b: ir.IRBuilder, x: ir.Value, first: int, count: int) -> ir.Value:
    pick = ir.Constant(ir.VectorType(INT32, count), list(range(first, first + count)))
    return b.shuffle_vector(x, ir.Constant(x.type, ir.Undefined), pick)


def _joined(b: ir.IRBuilder, low: ir.Value, high: ir.Value) -> ir.Value:
    count = 2 * low.type.count
    return b.shuffle_vector(low, high, ir.Constant(ir.VectorType(INT32, count), list(range(count))))


def _neighbours(b: ir.IRBuilder, w: ir.Value, a: ir.Value) -> ir.Value:
    """w[2j]·a[2j] + w[2j + 1]·a[2j + 1] of 16-bit lanes, in 32 bits."""
    wide = ir.VectorType(INT32, 2 * WIDTH)
    product = b.mul(b.sext(w, wide), b.sext(a, wide))
    undefined = ir.Constant(wide, ir.Undefined)
    even, odd = (
        b.shuffle_vector(product, undefined, ir.Constant(WORDS, list(range(first, 2 * WIDTH, 2)))) for first in (0, 1)
    )
    return b.add(even, odd)


def _intrinsic(count: int, signature: Any, code: Any) -> Any:
    """An intrinsic of ``count`` arguments: Numba reads the number off the Python signature."""

    def emitted(typing_context: Any, *arguments: Any) -> Any:
        return signature, code

    names = ["typing_context", *(f"argument_{k}" for k in range(count))]
    emitted.__signature__ = Signature([Parameter(n, Parameter.POSITIONAL_OR_KEYWORD) for n in names])  # type: ignore[attr-defined]
    return intrinsic(emitted)


@functools.cache
def lanes(element: str) -> Lanes:
    """The Lanes of an element type ('float32' or 'float64'), made once."""
    return Lanes(element)


# ---------------------------------------------------------------------------------------------------------------------
# Words and bytes: what every kernel needs to read instructions and move rows


def _word_load(b: ir.IRBuilder, at: ir.Value) -> ir.Value:
    return b.load(pointer(b, at), typ=INT64, align=8)


def _word_store(b: ir.IRBuilder, at: ir.Value, value: ir.Value) -> None:
    b.store(value, pointer(b, at), align=8)


def _word32_load(b: ir.IRBuilder, at: ir.Value) -> ir.Value:
    return b.sext(b.load(pointer(b, at), typ=INT32, align=4), INT64)


def _half_load(b: ir.IRBuilder, at: ir.Value) -> ir.Value:
    return b.zext(b.load(pointer(b, at), typ=INT32, align=1), INT64)


def _half_store(b: ir.IRBuilder, at: ir.Value, value: ir.Value) -> None:
    b.store(b.trunc(value, INT32), pointer(b, at), align=1)


def _copy_bytes(b: ir.IRBuilder, to: ir.Value, at: ir.Value, count: ir.Value) -> None:
    call(
        b,
        "llvm.memmove.p0.p0.i64",
        ir.VoidType(),
        [pointer(b, to), pointer(b, at), count, ir.Constant(ir.IntType(1), 0)],
    )


def _clear_bytes(b: ir.IRBuilder, at: ir.Value, count: ir.Value) -> None:
    zero, volatile = ir.Constant(ir.IntType(8), 0), ir.Constant(ir.IntType(1), 0)
    call(b, "llvm.memset.p0.i64", ir.VoidType(), [pointer(b, at), zero, count, volatile])


def _never_inline(b: ir.IRBuilder) -> None:
    """Keep a kernel a function of its own: registers and code size stay its own business."""
    b.function.attributes.add("noinline")


def _always_inline(b: ir.IRBuilder) -> None:
    """Have a kernel's code in each of its callers."""
    b.function.attributes.add("alwaysinline")


def _slot(b: ir.IRBuilder) -> ir.Value:
    """Four bytes of the stack, of a function's fixed part: the stack pointer stays where it is."""
    with b.goto_entry_block():
        return b.alloca(INT32)


_FLUSHING = 0x8040  # FTZ | DAZ


def _flush_denormals(b: ir.IRBuilder) -> ir.Value:
    """Treat denormals as zero from here on; the control word to restore afterwards.

    Callers that do so already (audio programs) are spared two writes of the control word, as dear as a small layer.
    """
    if target().triple.startswith("x86_64"):
        slot = _slot(b)
        call(b, "llvm.x86.sse.stmxcsr", ir.VoidType(), [slot])
        before = b.load(slot, typ=INT32)
        with b.if_then(_keeps_denormals(b, before), likely=True):
            b.store(b.or_(before, ir.Constant(INT32, _FLUSHING)), slot)
            call(b, "llvm.x86.sse.ldmxcsr", ir.VoidType(), [slot])
        return b.zext(before, INT64)
    if target().triple.startswith(("aarch64", "arm64")):
        before = call(b, "llvm.aarch64.get.fpcr", INT64, [])
        call(b, "llvm.aarch64.set.fpcr", ir.VoidType(), [b.or_(before, int64(1 << 24))])  # FZ
        return before
    return int64(0)


def _keeps_denormals(b: ir.IRBuilder, control: ir.Value) -> ir.Value:
    flushing = ir.Constant(INT32, _FLUSHING)
    return b.icmp_unsigned("!=", b.and_(control, flushing), flushing)


def _restore_denormals(b: ir.IRBuilder, before: ir.Value) -> None:
    if target().triple.startswith("x86_64"):
        control = b.trunc(before, INT32)
        with b.if_then(_keeps_denormals(b, control), likely=True):
            slot = _slot(b)
            b.store(control, slot)
            call(b, "llvm.x86.sse.ldmxcsr", ir.VoidType(), [slot])
    elif target().triple.startswith(("aarch64", "arm64")):
        call(b, "llvm.aarch64.set.fpcr", ir.VoidType(), [before])


def _invoke(b: ir.IRBuilder, function: ir.Value, argument: ir.Value) -> ir.Value:
    """Call a C function int64(int64) by its address: callers need not carry a copy of its code."""
    function_type = ir.FunctionType(INT64, [INT64])
    return b.call(b.inttoptr(function, function_type.as_pointer()), [argument])


def _exchange(b: ir.IRBuilder, at: ir.Value, before: ir.Value, after: ir.Value) -> ir.Value:
    """Turn a word from one value to another; 1 if it was this caller who did."""
    outcome = b.cmpxchg(b.inttoptr(at, INT64.as_pointer()), before, after, "acq_rel", "monotonic")
    return b.zext(b.extract_value(outcome, 1), INT64)


def _try_acquire(b: ir.IRBuilder, at: ir.Value) -> ir.Value:
    """Turn a word from 0 to 1; 1 if it was this caller who did."""
    return _exchange(b, at, int64(0), int64(1))


def _publish(b: ir.IRBuilder, at: ir.Value, value: ir.Value) -> None:
    """Write a word: who observes() it sees all that was written before."""
    b.store_atomic(value, b.inttoptr(at, INT64.as_pointer()), "release", 8)


def _observe(b: ir.IRBuilder, at: ir.Value) -> ir.Value:
    """Read a word that another thread publishes."""
    return b.load_atomic(b.inttoptr(at, INT64.as_pointer()), "acquire", 8)


def _release(b: ir.IRBuilder, at: ir.Value) -> None:
    """Turn a word back to 0."""
    _publish(b, at, int64(0))


def _fence(b: ir.IRBuilder) -> None:
    """All threads agree that what stands before came before what follows."""
    b.fence("seq_cst")


def _pause(b: ir.IRBuilder) -> None:
    """Spend a moment of a loop that watches a word, at little cost to the core's other thread."""
    if target().triple.startswith("x86_64"):
        call(b, "llvm.x86.sse2.pause", ir.VoidType(), [])
    elif target().triple.startswith(("aarch64", "arm64")):
        call(b, "llvm.aarch64.isb", ir.VoidType(), [ir.Constant(INT32, 15)])


def _ticks(b: ir.IRBuilder) -> ir.Value:
    """A clock of constant rate that all cores share."""
    if target().triple.startswith(("aarch64", "arm64")):  # the cycle counter is not for user programs there
        clock_type = ir.FunctionType(INT64, [ir.MetaDataType()])
        read = cgutils.get_or_insert_function(b.module, clock_type, "llvm.read_volatile_register.i64")
        return b.call(read, [b.module.add_metadata(["cntvct_el0"])])
    return call(b, "llvm.readcyclecounter", INT64, [])


def _bits_to_float(b: ir.IRBuilder, bits: ir.Value) -> ir.Value:
    return b.bitcast(bits, ir.DoubleType())


def _splat_integer(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    undefined = ir.Constant(ir.VectorType(INT64, WIDTH), ir.Undefined)
    first = b.insert_element(undefined, x, ir.Constant(INT32, 0))
    return b.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(INT32, WIDTH), [0] * WIDTH))


integer_lanes = _integers = lanes("float32")  # only its intrinsic() is used: the letters here are all integers
splat_integer = _integers.intrinsic(_splat_integer, "a", "i")
word = _integers.intrinsic(_word_load, "a", "a")
set_word = _integers.intrinsic(_word_store, "aa", "")
word32 = _integers.intrinsic(_word32_load, "a", "a")
half = _integers.intrinsic(_half_load, "a", "a")
set_half = _integers.intrinsic(_half_store, "aa", "")
copy_bytes = _integers.intrinsic(_copy_bytes, "aaa", "")
clear_bytes = _integers.intrinsic(_clear_bytes, "aa", "")
never_inline = _integers.intrinsic(_never_inline, "", "")
always_inline = _integers.intrinsic(_always_inline, "", "")
flush_denormals = _integers.intrinsic(_flush_denormals, "", "a")
try_acquire = _integers.intrinsic(_try_acquire, "a", "a")
release = _integers.intrinsic(_release, "a", "")
exchange = _integers.intrinsic(_exchange, "aaa", "a")
publish = _integers.intrinsic(_publish, "aa", "")
observe = _integers.intrinsic(_observe, "a", "a")
fence = _integers.intrinsic(_fence, "", "")
pause = _integers.intrinsic(_pause, "", "")
ticks = _integers.intrinsic(_ticks, "", "a")
invoke = _integers.intrinsic(_invoke, "aa", "a")
float64_of_bits = lanes("float64").intrinsic(_bits_to_float, "a", "s")
restore_denormals = _integers.intrinsic(_restore_denormals, "a", "")
