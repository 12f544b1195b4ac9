"""Convolution of each row, over any number of axes.

The lowering turns kernel, strides, dilations and padding into tables: where in the (padded) row each place of the
output reads, how far from there each weight's element lies, and where the place goes. What is left is a dense
product whose rows are places. The lanes of its vectors are outputs, or, where 16 places lie side by side in input and
output often enough (images), places: nothing is then transposed, and few outputs waste no lanes. Each element has the
same chain of multiplications and additions either way.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from ..encoding import PLACES_AT_ONCE, Convolution
from ..jit import kernel
from ..machine import target
from .rows import field, locate, steps
from .simd import INT64, Lanes, clear_bytes, copy_bytes, float64_of_bits, int64, never_inline, pointer, word

(
    X, X_STRIDE, OUT, OUT_STRIDE, WEIGHTS, BIAS, DEPTH, GROUPS, GROUP_BYTES, OUTPUTS, VECTORS, PLACES, COUNT, OFFSETS,
    TARGETS, PLANE, LINES, LINE_COUNT, LINE_BYTES, PADDED, PADDED_BYTES, TILES, ROWS, TIMED, SPANS, SPAN_COUNT, FLOOR,
) = (int(f) for f in Convolution)  # fmt: skip
AT_ONCE = PLACES_AT_ONCE


def _span_tile(v: Lanes, outputs: int, spans: int) -> Any:
    """tile(w, w_stride, x, spans, offsets, K, bias, floor, out, plane): some outputs of some spans of places.

    out[m][place] = bias[m] + Σ_k w[m, k]·x[place + offsets[k]], at least ``floor``.
    """
    size = v.bytes

    def at(b: ir.IRBuilder, base: ir.Value, index: int, stride: ir.Value) -> ir.Value:
        return b.add(base, b.mul(stride, int64(index)))

    def table(b: ir.IRBuilder, base: ir.Value, index: ir.Value) -> ir.Value:
        return b.load(pointer(b, b.add(base, b.mul(index, int64(8)))), typ=INT64, align=8)

    def emit(b: ir.IRBuilder, *operands: ir.Value) -> None:
        w, w_stride, x, places, offsets, depth, bias, floor, out, plane = operands
        starts = [b.add(x, table(b, places, int64(2 * s))) for s in range(spans)]
        targets = [b.add(out, table(b, places, int64(2 * s + 1))) for s in range(spans)]
        weights = [at(b, w, m, w_stride) for m in range(outputs)]
        first = [v.broadcast(b, b.add(bias, int64(m * size))) for m in range(outputs)]
        before = b.block
        body, after = (b.function.append_basic_block(name) for name in ("tap", "taps_done"))
        b.branch(body)

        b.position_at_end(body)
        k = b.phi(INT64)
        k.add_incoming(int64(0), before)
        held = [[b.phi(v.vector) for _ in range(spans)] for _ in range(outputs)]
        offset = table(b, offsets, k)
        elements = [v.load(b, b.add(start, offset), aligned=False) for start in starts]
        behind = b.mul(k, int64(size))
        k_next = b.add(k, int64(1))
        k.add_incoming(k_next, body)
        sums = []
        for value, weight, phis in zip(first, weights, held, strict=True):
            factor = v.broadcast(b, b.add(weight, behind))
            sums.append([v.fma(b, factor, element, phi) for element, phi in zip(elements, phis, strict=True)])
            for phi, total in zip(phis, sums[-1], strict=True):
                phi.add_incoming(value, before)
                phi.add_incoming(total, body)
        b.cbranch(b.icmp_signed("<", k_next, depth), body, after)

        b.position_at_end(after)
        least = v.splat(b, floor)
        for m, row in enumerate(sums):
            for place, total in zip(targets, row, strict=True):
                v.store(b, v.maximum(b, least, total), at(b, place, m, plane), aligned=False)

    return v.intrinsic(emit, "aaaaaaasaa", "")


def over_spans(v: Lanes) -> Any:
    """over(w, w_stride, x, spans, count, offsets, K, bias, floor, out, plane, outputs): all outputs of all spans."""
    per_vector = max(1, v.vector_bytes // target().vector_bytes)
    room = max(2, target().registers * 4 // 5 // per_vector)  # accumulators; the rest for elements and weights
    most = 8 if room >= 8 else 4 if room >= 4 else 2
    some, pair = most // 2, 2 if room >= 2 * most else 1
    size = v.bytes

    def outputs_of(spans: int) -> Any:
        many, several, one = (_span_tile(v, outputs, spans) for outputs in (most, some, 1))

        @kernel
        def all_outputs(w, ws, x, places, offsets, depth, bias, floor, out, plane, outputs):  # type: ignore[no-untyped-def]
            never_inline()
            m = 0
            while outputs - m >= most:
                many(w + m * ws, ws, x, places, offsets, depth, bias + m * size, floor, out + m * plane, plane)
                m += most
            if outputs - m >= some:
                several(w + m * ws, ws, x, places, offsets, depth, bias + m * size, floor, out + m * plane, plane)
                m += some
            while outputs - m >= 1:
                one(w + m * ws, ws, x, places, offsets, depth, bias + m * size, floor, out + m * plane, plane)
                m += 1

        return all_outputs

    together, alone = outputs_of(pair), outputs_of(1)
    several_of_one = _span_tile(v, 1, some)  # chains enough to hide the latency of each

    @kernel
    def over(w, ws, x, spans, count, offsets, depth, bias, floor, out, plane, outputs):  # type: ignore[no-untyped-def]
        never_inline()
        s = 0
        while outputs == 1 and count - s >= some:
            several_of_one(w, ws, x, spans + 16 * s, offsets, depth, bias, floor, out, plane)
            s += some
        while count - s >= pair:
            together(w, ws, x, spans + 16 * s, offsets, depth, bias, floor, out, plane, outputs)
            s += pair
        while count - s >= 1:
            alone(w, ws, x, spans + 16 * s, offsets, depth, bias, floor, out, plane, outputs)
            s += 1

    return over


def convolution_rows(v: Lanes, gather: Any, gather_narrow: Any) -> Any:
    """The kernel of CONVOLUTION."""
    one, size, scalar = v.vector_bytes, v.bytes, v.dtype.type
    four = 4 * one
    move = v.intrinsic(
        lambda b, to, at, floor: b.store(_at_least(b, floor, b.load(pointer(b, at), typ=v.scalar)), pointer(b, to)),
        "aas",
        "",
    )
    move_vector = v.intrinsic(
        lambda b, to, at, floor: v.store(b, v.maximum(b, v.splat(b, floor), v.load(b, at)), to, aligned=False),
        "aas",
        "",
    )
    over = over_spans(v)

    @kernel
    def padded(ip, cx, x):  # type: ignore[no-untyped-def]
        """A row with zeros around its lines, where there is padding; else the row itself."""
        count = field(ip, LINE_COUNT)
        if count == 0:
            return x
        to, lines, line_bytes = locate(cx, field(ip, PADDED)), locate(cx, field(ip, LINES)), field(ip, LINE_BYTES)
        clear_bytes(to, field(ip, PADDED_BYTES))
        i = 0
        while i < count:
            copy_bytes(to + word(lines + 8 * i), x + i * line_bytes, line_bytes)
            i += 1
        return to

    @kernel
    def deliver(tiles, valid, floor, out, plane, targets, count):  # type: ignore[no-untyped-def]
        """tiles[place][output] to out[output][place], the first ``valid`` outputs, at least ``floor``."""
        j = 0
        if count == 1 and plane == size:
            while valid - j >= one // size:
                move_vector(out + word(targets) + j * size, tiles + j * size, floor)
                j += one // size
        while j < valid:
            p = 0
            while p < count:
                move(out + j * plane + word(targets + 8 * p), tiles + p * four + j * size, floor)
                p += 1
            j += 1

    @kernel
    def group(ip, cx, w, bias, x, out):  # type: ignore[no-untyped-def]
        """All outputs of one group of channels."""
        never_inline()
        floor = scalar(float64_of_bits(field(ip, FLOOR)))
        if field(ip, SPAN_COUNT) != 0:
            over(
                w, field(ip, DEPTH) * size, x, locate(cx, field(ip, SPANS)), field(ip, SPAN_COUNT),
                locate(cx, field(ip, OFFSETS)), field(ip, DEPTH), bias, floor, out, field(ip, PLANE),
                field(ip, OUTPUTS),
            )  # fmt: skip
            return
        places, targets, offsets = (
            locate(cx, field(ip, PLACES)),
            locate(cx, field(ip, TARGETS)),
            locate(cx, field(ip, OFFSETS)),
        )
        depth, plane, total = field(ip, DEPTH), field(ip, PLANE), field(ip, COUNT)
        tiles = locate(cx, field(ip, TILES))
        left, vectors = field(ip, OUTPUTS), field(ip, VECTORS)
        while vectors > 0:
            wide = vectors >= 4
            taken = 4 if wide else 1
            valid = min(left, taken * (one // size))
            p = 0
            while p < total:
                n = min(AT_ONCE, total - p)
                if wide:
                    gather(w, x, places + 8 * p, offsets, depth, bias, tiles, four, n)
                else:
                    gather_narrow(w, x, places + 8 * p, offsets, depth, bias, tiles, four, n)
                deliver(tiles, valid, floor, out, plane, targets + 8 * p, n)
                p += n
            w += depth * taken * one
            bias += taken * one
            out += valid * plane
            left -= valid
            vectors -= taken

    @kernel
    def convolution(ip, cx):  # type: ignore[no-untyped-def]
        never_inline()
        rows = steps(ip, cx, TIMED) * field(ip, ROWS)
        x, xs = locate(cx, field(ip, X)), field(ip, X_STRIDE)
        out, os = locate(cx, field(ip, OUT)), field(ip, OUT_STRIDE)
        weights, bias = locate(cx, field(ip, WEIGHTS)), locate(cx, field(ip, BIAS))
        groups, group_bytes = field(ip, GROUPS), field(ip, GROUP_BYTES)
        group_bias = field(ip, OUTPUTS) * size if field(ip, SPAN_COUNT) != 0 else field(ip, VECTORS) * one
        group_weights = group_bias * field(ip, DEPTH)
        group_out = field(ip, OUTPUTS) * field(ip, PLANE)
        r = 0
        while r < rows:
            source = padded(ip, cx, x + r * xs)
            g = 0
            while g < groups:
                group(
                    ip, cx, weights + g * group_weights, bias + g * group_bias,
                    source + g * group_bytes, out + r * os + g * group_out,
                )  # fmt: skip
                g += 1
            r += 1
        return 0

    return convolution


def _at_least(b: ir.IRBuilder, floor: ir.Value, x: ir.Value) -> ir.Value:
    """max(floor, x); x where it is NaN."""
    return b.select(b.fcmp_ordered(">", floor, x), floor, x)
