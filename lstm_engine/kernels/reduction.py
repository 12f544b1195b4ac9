"""Sums, maxima and minima over elements of each row: reductions, and pooling."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from ..encoding import Extreme, Reduce
from ..jit import kernel
from .pointwise import combination
from .rows import field, locate, steps
from .simd import INT32, WIDTH, Lanes, float64_of_bits, int64, never_inline, pointer, set_word, word

(
    X, X_STRIDE, OUT, OUT_STRIDE, PLACES, COUNT, OFFSETS, DEPTH, GROUPS, GROUP_COUNT, FUNCTION, SCALE, ROWS, TIMED,
) = (int(f) for f in Reduce)  # fmt: skip
FIRST_GREATEST, LAST_GREATEST, FIRST_LEAST, LAST_LEAST = (int(code) for code in Extreme)
#: Elements summed before their sum is added to the others': rounding errors grow with the number of runs.
RUN = 16


def _every_other(v: Lanes, b: ir.IRBuilder, at: ir.Value) -> ir.Value:
    """The first of 31 neighbouring elements, the third, …"""
    halves = [v.load(b, b.add(at, int64(skip * v.bytes)), aligned=False) for skip in (0, WIDTH - 1)]
    pick = [2 * lane if lane < WIDTH // 2 else WIDTH + 2 * lane - (WIDTH - 1) for lane in range(WIDTH)]
    return b.shuffle_vector(*halves, ir.Constant(ir.VectorType(INT32, WIDTH), pick))


def reduce_rows(v: Lanes) -> Any:
    """The kernel of REDUCE: 16 results at once or one by itself, in the same order either way."""
    load = v.intrinsic(lambda b, at: v.load(b, at, aligned=False), "a", "v")
    every_other = v.intrinsic(lambda b, at: _every_other(v, b, at), "a", "v")
    store = v.intrinsic(lambda b, at, x: v.store(b, x, at, aligned=False), "av", "")
    broadcast = v.intrinsic(v.broadcast, "a", "v")
    splat = v.intrinsic(v.splat, "s", "v")
    multiply = v.intrinsic(lambda b, x, y: b.fmul(x, y), "vv", "v")
    store_first = v.intrinsic(
        lambda b, at, x: b.store(b.extract_element(x, ir.Constant(INT32, 0)), pointer(b, at), align=v.bytes), "av", ""
    )
    element = v.intrinsic(lambda b, at: b.load(pointer(b, at), typ=v.scalar, align=v.bytes), "a", "s")
    combine = combination(v)
    scalar, size = v.dtype.type, v.bytes

    @kernel
    def elements(at, apart):  # type: ignore[no-untyped-def]
        """16 elements that lie ``apart``; 0: one element in all lanes."""
        if apart == 1:
            return load(at)
        if apart == 2:
            return every_other(at)
        return broadcast(at)

    @kernel
    def part(at, offsets, depth, function, apart):  # type: ignore[no-untyped-def]
        """Over at most RUN elements."""
        total = elements(at + word(offsets), apart)
        k = 1
        while k < depth:
            total = combine(function, total, elements(at + word(offsets + 8 * k), apart))
            k += 1
        return total

    @kernel
    def reduced(at, offsets, depth, function, apart):  # type: ignore[no-untyped-def]
        never_inline()
        total = part(at, offsets, min(depth, RUN), function, apart)
        k = RUN
        while k < depth:
            total = combine(function, total, part(at, offsets + 8 * k, min(depth - k, RUN), function, apart))
            k += RUN
        return total

    @kernel
    def which(at, offsets, depth, function):  # type: ignore[no-untyped-def]
        """The place among the offsets of the first, or last, extreme; of a NaN, where there is one."""
        last, least = function in (LAST_GREATEST, LAST_LEAST), function >= FIRST_LEAST
        best, found = element(at + word(offsets)), 0
        k = 1
        while k < depth:
            x = element(at + word(offsets + 8 * k))
            if best != best:
                better = last and x != x
            elif x != x or (last and x == best):
                better = True
            else:
                better = x < best if least else x > best
            if better:
                best, found = x, k
            k += 1
        return found

    @kernel
    def reduce_row(ip, cx, x, out):  # type: ignore[no-untyped-def]
        never_inline()
        places, offsets = locate(cx, field(ip, PLACES)), locate(cx, field(ip, OFFSETS))
        depth, function = field(ip, DEPTH), field(ip, FUNCTION)
        if function >= FIRST_GREATEST:
            j = 0
            while j < field(ip, COUNT):
                set_word(out + 8 * j, which(x + word(places + 8 * j), offsets, depth, function))
                j += 1
            return
        scale = splat(scalar(float64_of_bits(field(ip, SCALE))))
        group = locate(cx, field(ip, GROUPS))
        end = group + 16 * field(ip, GROUP_COUNT)
        while group < end:
            j, apart = word(group), word(group + 8)
            total = multiply(reduced(x + word(places + 8 * j), offsets, depth, function, apart), scale)
            if apart == 0:
                store_first(out + j * size, total)
            else:
                store(out + j * size, total)
            group += 16

    @kernel
    def reduce(ip, cx):  # type: ignore[no-untyped-def]
        never_inline()
        rows = steps(ip, cx, TIMED) * field(ip, ROWS)
        x, xs = locate(cx, field(ip, X)), field(ip, X_STRIDE)
        out, os = locate(cx, field(ip, OUT)), field(ip, OUT_STRIDE)
        r = 0
        while r < rows:
            reduce_row(ip, cx, x + r * xs, out + r * os)
            r += 1
        return 0

    return reduce
