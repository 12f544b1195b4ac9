"""How the weights of a product are held, and how it reads them: float32 or float64, bfloat16, int8.

A part of a block of outputs is what one operand (x, or h) meets: K weights for each of G vectors of 16 outputs. All
forms are 64-byte aligned and read once, from front to back:

    float32, float64    [K][G][16]
    bfloat16            [⌈K/2⌉][G][16] words of 32 bits, the even k in the low half, the odd one in the high half
    int8                [G][16] int32: -128·Σ_k w; [G][16] float32: scale; then [⌈K/4⌉][G][16][4] int8

bfloat16 weights are widened in registers, so a result is that of the float32 kernel with rounded weights, bit by bit;
but where the processor multiplies pairs of them by itself, at twice the rate (``Target.bf16``), they meet rows that are
rounded to such pairs (``prepare``), and a chain of sums takes two neighbouring k at a time. All products of a processor
are made one way: chunks, batches and threads would show otherwise.
int8 weights meet rows that are rounded to int8 too, with a scale of their own: products are summed in int32, exactly,
in any order; the scales meet the sum at its end.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from llvmlite import ir

from ..jit import kernel
from ..machine import target
from .simd import BYTES, INT32, INT64, WIDTH, WORDS, Lanes, call, dot, dot_halves, int64, pointer, spread

Sums = list[list[ir.Value]]
Part = tuple[ir.Value, ir.Value, ir.Value]  # address of the first row, stride of rows, K
LINE = 64
NAN = 0x7FC00000  # bits of a quiet NaN


def repeated(
    b: ir.IRBuilder, count: ir.Value, values: list[ir.Value], body: Callable[[ir.Value, list[ir.Value]], list[ir.Value]]
) -> list[ir.Value]:
    """Emit a loop: ``values`` after values = body(k, values) for k = 0 … count - 1."""
    before = b.block
    inside, after = b.function.append_basic_block("k"), b.function.append_basic_block("k_done")
    b.cbranch(b.icmp_signed(">", count, int64(0)), inside, after)
    b.position_at_end(inside)
    k, held = b.phi(INT64), [b.phi(value.type) for value in values]
    made = body(k, list(held))
    following = b.add(k, int64(1))
    for phi, first, new in zip([k, *held], [int64(0), *values], [following, *made], strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(new, b.block)
    end = b.block
    b.cbranch(b.icmp_signed("<", following, count), inside, after)
    b.position_at_end(after)
    results = []
    for first, new in zip(values, made, strict=True):
        phi = b.phi(first.type)
        phi.add_incoming(first, before)
        phi.add_incoming(new, end)
        results.append(phi)
    return results


def _flat(sums: Sums) -> list[ir.Value]:
    return [value for row in sums for value in row]


def _rows(values: list[ir.Value], vectors: int) -> Sums:
    return [values[first : first + vectors] for first in range(0, len(values), vectors)]


#: Lines of the next weights asked for ahead of a cell (bench row `step-h128`: 32 gain a twentieth).
LINES_AHEAD = 32


def _held_at_once(v: Lanes, rows: int, vectors: int) -> list[range]:
    """Vectors of ``rows`` sums each that are made together: all, unless registers are far too few for their sums.

    Then a fifth of the registers is left for weights and factors.
    """
    room, one = target().registers * target().vector_bytes, rows * v.vector_bytes
    count = 1 if vectors * one <= room else -(-vectors // max(1, room * 4 // 5 // one))
    bounds = [vectors * k // count for k in range(count + 1)]
    return [range(first, last) for first, last in pairwise(bounds)]


class Floats:
    """Weights of the element type."""

    most_rows = 6  # that share a pass over the weights

    def __init__(self, v: Lanes, lines_ahead: int = LINES_AHEAD) -> None:
        self.v = v
        self.lines_ahead = lines_ahead

    def add(self, b: ir.IRBuilder, sums: Sums, w: ir.Value, part: Part) -> tuple[Sums, ir.Value]:
        """sums[m][g] += Σ_k x[m, k]·w[k, g]; also the address behind the weights of the part."""
        x, stride, depth = part
        size = int64(self.v.bytes)

        def elements(k: ir.Value) -> list[ir.Value]:
            first = b.add(x, b.mul(k, size))
            return [b.add(first, b.mul(stride, int64(m))) for m in range(len(sums))]

        return self.summed(b, sums, w, depth, elements)

    def summed(
        self, b: ir.IRBuilder, sums: Sums, w: ir.Value, depth: ir.Value, elements: Callable[[ir.Value], list[ir.Value]]
    ) -> tuple[Sums, ir.Value]:
        """sums[m][g] += Σ_k x·w[k, g] with x at the address elements(k)[m]."""
        v, vectors = self.v, len(sums[0])
        line = int64(vectors * v.vector_bytes)

        def of(columns: range) -> list[ir.Value]:
            """The address behind the weights, and the sums of some neighbouring vectors."""

            def body(k: ir.Value, values: list[ir.Value]) -> list[ir.Value]:
                at, *flat = values
                weights = [v.load(b, b.add(at, int64(g * v.vector_bytes))) for g in columns]
                made = []
                for place, row in zip(elements(k), _rows(flat, len(columns)), strict=True):
                    factor = v.broadcast(b, place)
                    made += [v.fma(b, factor, weight, total) for weight, total in zip(weights, row, strict=True)]
                return [b.add(at, line), *made]

            return repeated(b, depth, [w, *(row[g] for row in sums for g in columns)], body)

        made: Sums = [[] for _ in sums]
        for columns in _held_at_once(v, len(sums), vectors):
            end, *flat = of(columns)
            for row, values in zip(made, _rows(flat, len(columns)), strict=True):
                row += values
        return made, end

    def activations(self) -> tuple[Any, Any]:
        """prepare(room, x, x_stride, width, unit, rows): rows as the products take them; and their stride."""

        @kernel
        def prepare(room, x, xs, width, unit, rows):  # type: ignore[no-untyped-def]
            return x

        @kernel
        def prepared_stride(xs, width):  # type: ignore[no-untyped-def]
            return xs

        return prepare, prepared_stride

    def part_bytes(self, vectors: int) -> Any:
        """part_bytes(K) for a block of ``vectors``."""
        line = vectors * self.v.vector_bytes

        @kernel
        def floats_bytes(depth):  # type: ignore[no-untyped-def]
            return depth * line

        return floats_bytes


class Halves(Floats):
    """Weights in bfloat16 that meet rows in float32."""

    most_rows = 5  # words and what they are widened to take registers of their own

    def add(self, b: ir.IRBuilder, sums: Sums, w: ir.Value, part: Part) -> tuple[Sums, ir.Value]:
        """As Floats.add(): two neighbouring k of each weight word."""
        v, vectors = self.v, len(sums[0])
        x, stride, depth = part
        pair = vectors * LINE

        def terms(values: list[ir.Value], weights: list[ir.Value], first: ir.Value) -> list[ir.Value]:
            made = []
            for m, row in enumerate(_rows(values, vectors)):
                factor = v.broadcast(b, b.add(first, b.mul(stride, int64(m))))
                made += [v.fma(b, factor, weight, total) for weight, total in zip(weights, row, strict=True)]
            return made

        def words(at: ir.Value) -> list[ir.Value]:
            places = [pointer(b, b.add(at, int64(g * LINE))) for g in range(vectors)]
            return [b.load(place, typ=v.bits, align=LINE) for place in places]

        def even(word: ir.Value) -> ir.Value:
            return b.bitcast(b.shl(word, v.bit_pattern(16)), v.vector)

        def odd(word: ir.Value) -> ir.Value:
            return b.bitcast(b.and_(word, v.bit_pattern(0xFFFF0000)), v.vector)

        def both(k: ir.Value, values: list[ir.Value]) -> list[ir.Value]:
            at, *flat = values
            read, first = words(at), b.add(x, b.mul(k, int64(2 * v.bytes)))
            flat = terms(flat, [even(word) for word in read], first)
            flat = terms(flat, [odd(word) for word in read], b.add(first, int64(v.bytes)))
            return [b.add(at, int64(pair)), *flat]

        pairs = b.ashr(depth, int64(1))

        def last(k: ir.Value, values: list[ir.Value]) -> list[ir.Value]:
            at, *flat = values
            flat = terms(flat, [even(word) for word in words(at)], b.add(x, b.mul(pairs, int64(2 * v.bytes))))
            return [b.add(at, int64(pair)), *flat]

        values = repeated(b, pairs, [w, *_flat(sums)], both)
        end, *flat = repeated(b, b.and_(depth, int64(1)), values, last)
        return _rows(flat, vectors), end

    def part_bytes(self, vectors: int) -> Any:
        """As Floats.part_bytes()."""
        pair = vectors * LINE

        @kernel
        def halves_bytes(depth):  # type: ignore[no-untyped-def]
            return ((depth + 1) >> 1) * pair

        return halves_bytes


class Pairs(Halves):
    """Weights in bfloat16; rows they meet are ⌈K/2⌉ words of two elements, rounded likewise."""

    most_rows = Floats.most_rows

    def add(self, b: ir.IRBuilder, sums: Sums, w: ir.Value, part: Part) -> tuple[Sums, ir.Value]:
        """As Floats.add(): two neighbouring k of each word, of weights and of rows."""
        v, vectors = self.v, len(sums[0])
        x, stride, depth = part

        def products(k: ir.Value, values: list[ir.Value]) -> list[ir.Value]:
            at, *flat = values
            places = [pointer(b, b.add(at, int64(g * LINE))) for g in range(vectors)]
            weights = [b.load(place, typ=v.bits, align=LINE) for place in places]
            first, made = b.add(x, b.mul(k, int64(4))), []
            for m, row in enumerate(_rows(flat, vectors)):
                two = spread(b, b.load(pointer(b, b.add(first, b.mul(stride, int64(m)))), typ=INT32, align=4))
                made += [dot_halves(b, total, two, weight) for weight, total in zip(weights, row, strict=True)]
            return [b.add(at, int64(vectors * LINE)), *made]

        pairs = b.ashr(b.add(depth, int64(1)), int64(1))
        end, *flat = repeated(b, pairs, [w, *_flat(sums)], products)
        return _rows(flat, vectors), end

    def activations(self) -> tuple[Any, Any]:
        """As Floats.activations(): rows rounded to bfloat16, zeros behind them up to whole vectors."""

        @kernel
        def prepared_stride(xs, width):  # type: ignore[no-untyped-def]
            return (2 * width + LINE - 1) & -LINE

        return rounding_rows(self.v, halved_row, prepared_stride), prepared_stride


def rounding_rows(v: Lanes, emit: Callable[..., None], prepared_stride: Any) -> Any:
    """prepare() of Floats.activations() for rows that are rounded: emit(v, b, to, x, width, unit) rounds one."""
    round_row = v.intrinsic(lambda b, *operands: emit(v, b, *operands), "aaaa", "")

    @kernel
    def prepare(room, x, xs, width, unit, rows):  # type: ignore[no-untyped-def]
        stride = prepared_stride(xs, width)
        r = 0
        while r < rows:
            round_row(room + r * stride, x + r * xs, width, unit)
            r += 1
        return room

    return prepare


def _elements(v: Lanes, b: ir.IRBuilder, x: ir.Value, width: ir.Value, j: ir.Value) -> ir.Value:
    """The j-th 16 elements of a row, zero beyond its width."""
    begun = b.mul(j, int64(WIDTH))
    read = v.load(b, b.add(x, b.mul(begun, int64(v.bytes))), aligned=False)
    return v.first_lanes(b, b.sub(width, begun), read, v.constant(0.0))


def halved_row(v: Lanes, b: ir.IRBuilder, to: ir.Value, x: ir.Value, width: ir.Value, unit: ir.Value) -> None:
    """Round a row to the nearest bfloat16, ties to even, whatever its ``unit``; NaN stays NaN."""
    narrow = ir.VectorType(ir.IntType(16), WIDTH)

    def rounded(j: ir.Value, values: list[ir.Value]) -> list[ir.Value]:
        element = _elements(v, b, x, width, j)
        bits = b.bitcast(element, v.bits)
        up = b.add(b.and_(b.lshr(bits, v.bit_pattern(16)), v.bit_pattern(1)), v.bit_pattern(0x7FFF))
        number = b.fcmp_ordered("ord", element, element)
        nearest = b.select(number, b.add(bits, up), v.bit_pattern(NAN))
        halves = b.trunc(b.lshr(nearest, v.bit_pattern(16)), narrow)
        b.store(halves, pointer(b, b.add(to, b.mul(j, int64(2 * WIDTH)))), align=2)
        return []

    repeated(b, b.sdiv(b.add(width, int64(WIDTH - 1)), int64(WIDTH)), [], rounded)


MAGNITUDE, INFINITE, ONE = 0x7FFFFFFF, 0x7F800000, 0x3F800000  # bits of float32
SCALE_BYTES = 4  # in front of a row of int8
LEVELS = 127.0
#: Rows whose largest element is smaller hold nothing: its reciprocal would overflow.
NOTHING = 2.0**-100


class Bytes(Floats):
    """Weights in int8; rows they meet are a float32 scale and then ⌈K/4⌉·4 bytes of element/scale + 128."""

    def add(self, b: ir.IRBuilder, sums: Sums, w: ir.Value, part: Part) -> tuple[Sums, ir.Value]:
        """As Floats.add(): the part's integer sums, then their scales."""
        v, vectors = self.v, len(sums[0])
        x, stride, depth = part
        groups = b.ashr(b.add(depth, int64(3)), int64(2))
        rows = range(len(sums))

        def products(k: ir.Value, values: list[ir.Value]) -> list[ir.Value]:
            at, *flat = values
            places = [pointer(b, b.add(at, int64(g * LINE))) for g in range(vectors)]
            weights = [b.load(place, typ=BYTES, align=LINE) for place in places]
            first, made = b.add(x, b.add(b.mul(k, int64(4)), int64(SCALE_BYTES))), []
            for m, row in zip(rows, _rows(flat, vectors), strict=True):
                four = spread(b, b.load(pointer(b, b.add(first, b.mul(stride, int64(m)))), typ=INT32, align=4))
                made += [dot(b, total, four, weight) for weight, total in zip(weights, row, strict=True)]
            return [b.add(at, int64(vectors * LINE)), *made]

        def whole(k: ir.Value, values: list[ir.Value]) -> list[ir.Value]:
            at, *flat = values
            columns = [b.add(at, int64(g * LINE)) for g in range(vectors)]
            starts = [b.load(pointer(b, column), typ=WORDS, align=LINE) for column in columns]
            begin = b.add(at, int64(2 * vectors * LINE))
            end, *totals = repeated(b, groups, [begin, *(starts * len(sums))], products)
            scales = [v.load(b, b.add(column, int64(vectors * LINE))) for column in columns]
            made = []
            for m, row, total in zip(rows, _rows(flat, vectors), _rows(totals, vectors), strict=True):
                own = v.broadcast(b, b.add(x, b.mul(stride, int64(m))))
                made += [
                    v.fma(b, b.sitofp(integers, v.vector), b.fmul(scale, own), value)
                    for integers, scale, value in zip(total, scales, row, strict=True)
                ]
            return [end, *made]

        present = b.zext(b.icmp_signed(">", depth, int64(0)), INT64)
        end, *flat = repeated(b, present, [w, *_flat(sums)], whole)
        return _rows(flat, vectors), end

    def activations(self) -> tuple[Any, Any]:
        """As Floats.activations(): rows rounded to int8."""

        @kernel
        def prepared_stride(xs, width):  # type: ignore[no-untyped-def]
            return (((width + 15) & -16) + SCALE_BYTES + LINE - 1) & -LINE

        return rounding_rows(self.v, quantised_row, prepared_stride), prepared_stride

    def part_bytes(self, vectors: int) -> Any:
        """As Floats.part_bytes()."""
        line = vectors * LINE

        @kernel
        def bytes_bytes(depth):  # type: ignore[no-untyped-def]
            if depth == 0:
                return 0
            return (2 + ((depth + 3) >> 2)) * line

        return bytes_bytes


def quantised_row(v: Lanes, b: ir.IRBuilder, to: ir.Value, x: ir.Value, width: ir.Value, unit: ir.Value) -> None:
    """Round a row to int8: scale = max|x|/127 (``unit`` = 1: at least 1/127), then round(x/scale) + 128.

    A row with NaN or ±inf has the scale NaN, so that all that is made of it is NaN.
    """
    vectors = b.sdiv(b.add(width, int64(WIDTH - 1)), int64(WIDTH))

    def elements(j: ir.Value) -> ir.Value:
        return _elements(v, b, x, width, j)

    def larger(k: ir.Value, values: list[ir.Value]) -> list[ir.Value]:
        bits = b.and_(b.bitcast(elements(k), v.bits), v.bit_pattern(MAGNITUDE))
        return [b.select(b.icmp_signed(">", bits, values[0]), bits, values[0])]

    least = b.select(b.icmp_signed("!=", unit, int64(0)), v.bit_pattern(ONE), v.bit_pattern(0))
    (magnitudes,) = repeated(b, vectors, [least], larger)
    bits = call(b, f"llvm.vector.reduce.smax.v{WIDTH}i32", INT32, [magnitudes])
    largest = b.bitcast(bits, v.scalar)
    number = ir.Constant(v.scalar, LEVELS)
    finite = b.icmp_signed("<", bits, ir.Constant(INT32, INFINITE))
    some = b.fcmp_ordered(">", largest, ir.Constant(v.scalar, NOTHING))
    zero, nan = ir.Constant(v.scalar, 0.0), ir.Constant(v.scalar, float("nan"))
    inverse = b.select(b.and_(finite, some), b.fdiv(number, largest), zero)
    scale = b.select(finite, b.select(some, b.fdiv(largest, number), zero), nan)
    b.store(scale, pointer(b, to), align=SCALE_BYTES)
    factor = v.splat(b, inverse)
    # Added to a number this large, a fraction is rounded away and the integer stands in the lowest bits.
    shift = v.constant(1.5 * 2.0**23 + 128.0)
    narrow = ir.VectorType(ir.IntType(8), WIDTH)

    def rounded(k: ir.Value, values: list[ir.Value]) -> list[ir.Value]:
        levels = b.trunc(b.bitcast(v.fma(b, elements(k), factor, shift), v.bits), narrow)
        b.store(levels, pointer(b, b.add(to, b.add(b.mul(k, int64(WIDTH)), int64(SCALE_BYTES)))), align=1)
        return []

    repeated(b, vectors, [], rounded)


def weights_of(precision: str, v: Lanes, lines_ahead: int = LINES_AHEAD) -> Floats:
    """The form of a precision on the processor that code is made for."""
    halves = Pairs if target().bf16 else Halves
    return {"bfloat16": halves, "int8": Bytes}.get(precision, Floats)(v, lines_ahead)
