"""Sums, maxima and minima over elements of each row: reductions, and pooling."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from ..encoding import Reduce
from ..jit import kernel
from .pointwise import combination
from .rows import field, locate, steps
from .simd import INT32, Lanes, float64_of_bits, never_inline, pointer, word

(
    X, X_STRIDE, OUT, OUT_STRIDE, PLACES, COUNT, OFFSETS, DEPTH, NEIGHBOURS, FUNCTION, SCALE, ROWS, TIMED,
) = (int(f) for f in Reduce)  # fmt: skip
#: Elements summed before their sum is added to the others': rounding errors grow with the number of runs.
RUN = 16


def reduce_rows(v: Lanes) -> Any:
    """The kernel of REDUCE: 16 neighbouring results at once, or each by itself; in the same order either way."""
    load = v.intrinsic(lambda b, at: v.load(b, at, aligned=False), "a", "v")
    store = v.intrinsic(lambda b, at, x: v.store(b, x, at, aligned=False), "av", "")
    broadcast = v.intrinsic(v.broadcast, "a", "v")
    splat = v.intrinsic(v.splat, "s", "v")
    multiply = v.intrinsic(lambda b, x, y: b.fmul(x, y), "vv", "v")
    store_first = v.intrinsic(
        lambda b, at, x: b.store(b.extract_element(x, ir.Constant(INT32, 0)), pointer(b, at), align=v.bytes), "av", ""
    )
    combine = combination(v)
    scalar, size, one = v.dtype.type, v.bytes, v.vector_bytes

    @kernel
    def part(at, offsets, depth, function, whole):  # type: ignore[no-untyped-def]
        """Over at most RUN elements."""
        total = load(at + word(offsets)) if whole else broadcast(at + word(offsets))
        k = 1
        while k < depth:
            element = at + word(offsets + 8 * k)
            total = combine(function, total, load(element) if whole else broadcast(element))
            k += 1
        return total

    @kernel
    def reduce_row(ip, cx, x, out):  # type: ignore[no-untyped-def]
        never_inline()
        places, offsets = locate(cx, field(ip, PLACES)), locate(cx, field(ip, OFFSETS))
        count, depth, function = field(ip, COUNT), field(ip, DEPTH), field(ip, FUNCTION)
        scale = splat(scalar(float64_of_bits(field(ip, SCALE))))
        whole = field(ip, NEIGHBOURS) != 0
        j = 0
        while j < count:
            at = x + word(places + 8 * j)
            total = part(at, offsets, min(depth, RUN), function, whole)
            k = RUN
            while k < depth:
                total = combine(function, total, part(at, offsets + 8 * k, min(depth - k, RUN), function, whole))
                k += RUN
            if whole:
                store(out + j * size, multiply(total, scale))
                j += one // size
            else:
                store_first(out + j * size, multiply(total, scale))
                j += 1

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
