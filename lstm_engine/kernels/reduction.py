"""Sums, maxima and minima over elements of each row: reductions, and pooling."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from ..encoding import Extreme, Operation, Reduce
from ..jit import kernel
from .pointwise import combination
from .rows import field, locate, steps
from .simd import INT32, INT64, WIDTH, Lanes, float64_of_bits, int64, never_inline, pointer, set_word, word

(
    X, X_STRIDE, OUT, OUT_STRIDE, GROUPS, COUNT, OFFSETS, DEPTH, FUNCTION, SCALE, ROWS, TIMED,
) = (int(f) for f in Reduce)  # fmt: skip
FIRST_GREATEST, LAST_GREATEST, FIRST_LEAST, LAST_LEAST = (int(code) for code in Extreme)
MINIMUM, MAXIMUM = int(Operation.MINIMUM), int(Operation.MAXIMUM)
#: Elements summed before their sum is added to the others': rounding errors grow with the number of runs.
RUN = 16


def _every_other(v: Lanes, b: ir.IRBuilder, at: ir.Value) -> ir.Value:
    """The first of 31 neighbouring elements, the third, …"""
    halves = [v.load(b, b.add(at, int64(skip * v.bytes)), aligned=False) for skip in (0, WIDTH - 1)]
    pick = [2 * lane if lane < WIDTH // 2 else WIDTH + 2 * lane - (WIDTH - 1) for lane in range(WIDTH)]
    return b.shuffle_vector(*halves, ir.Constant(ir.VectorType(INT32, WIDTH), pick))


def _part(v: Lanes, join: Any, read: Any) -> Any:
    """part(at, offsets, depth): elements read at an address + each offset, joined one after the other."""

    def emit(b: ir.IRBuilder, at: ir.Value, offsets: ir.Value, depth: ir.Value) -> ir.Value:
        def element(k: ir.Value) -> ir.Value:
            offset = b.load(pointer(b, b.add(offsets, b.mul(k, int64(8)))), typ=INT64, align=8)
            return read(b, b.add(at, offset))

        first, before = element(int64(0)), b.block
        body, after = (b.function.append_basic_block(name) for name in ("element", "elements_done"))
        b.cbranch(b.icmp_signed(">", depth, int64(1)), body, after)

        b.position_at_end(body)
        k, held = b.phi(INT64), b.phi(v.vector)
        k_next, joined = b.add(k, int64(1)), join(b, held, element(k))
        for phi, start, further in ((k, int64(1), k_next), (held, first, joined)):
            phi.add_incoming(start, before)
            phi.add_incoming(further, body)
        b.cbranch(b.icmp_signed("<", k_next, depth), body, after)

        b.position_at_end(after)
        total = b.phi(v.vector)
        total.add_incoming(first, before)
        total.add_incoming(joined, body)
        return total

    return v.intrinsic(emit, "aaa", "v")


def reduce_rows(v: Lanes) -> Any:
    """The kernel of REDUCE: 16 results at once or one by itself, in the same order either way."""
    store = v.intrinsic(lambda b, at, x: v.store(b, x, at, aligned=False), "av", "")
    splat = v.intrinsic(v.splat, "s", "v")
    multiply = v.intrinsic(lambda b, x, y: b.fmul(x, y), "vv", "v")
    store_first = v.intrinsic(
        lambda b, at, x: b.store(b.extract_element(x, ir.Constant(INT32, 0)), pointer(b, at), align=v.bytes), "av", ""
    )
    element = v.intrinsic(lambda b, at: b.load(pointer(b, at), typ=v.scalar, align=v.bytes), "a", "s")
    joins = {"sum": lambda b, x, y: b.fadd(x, y), "least": v.least, "most": v.most}
    reads = {
        "one": v.broadcast,
        "neighbours": lambda b, at: v.load(b, at, aligned=False),
        "others": lambda b, at: _every_other(v, b, at),
    }
    (
        (sum_one, sum_neighbours, sum_others),
        (least_one, least_neighbours, least_others),
        (most_one, most_neighbours, most_others),
    ) = ([_part(v, join, read) for read in reads.values()] for join in joins.values())
    combine = combination(v)
    scalar, size = v.dtype.type, v.bytes

    @kernel
    def part(at, offsets, depth, function, apart):  # type: ignore[no-untyped-def]
        """Over at most RUN elements: of 16 results that lie ``apart``, or of one (0) in all lanes."""
        if function == MAXIMUM:
            if apart == 1:
                return most_neighbours(at, offsets, depth)
            return most_others(at, offsets, depth) if apart == 2 else most_one(at, offsets, depth)
        if function == MINIMUM:
            if apart == 1:
                return least_neighbours(at, offsets, depth)
            return least_others(at, offsets, depth) if apart == 2 else least_one(at, offsets, depth)
        if apart == 1:
            return sum_neighbours(at, offsets, depth)
        return sum_others(at, offsets, depth) if apart == 2 else sum_one(at, offsets, depth)

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
        group, offsets = locate(cx, field(ip, GROUPS)), locate(cx, field(ip, OFFSETS))
        depth, function = field(ip, DEPTH), field(ip, FUNCTION)
        scale = splat(scalar(float64_of_bits(field(ip, SCALE))))
        end = group + 24 * field(ip, COUNT)
        while group < end:
            at, j, apart = x + word(group), word(group + 8), word(group + 16)
            if function >= FIRST_GREATEST:
                set_word(out + 8 * j, which(at, offsets, depth, function))
            elif apart == 0:
                store_first(out + j * size, multiply(reduced(at, offsets, depth, function, 0), scale))
            else:
                store(out + j * size, multiply(reduced(at, offsets, depth, function, apart), scale))
            group += 24

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
