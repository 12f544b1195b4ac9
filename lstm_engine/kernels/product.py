"""Matrix products in registers: the inner block of every dense and recurrent layer.

    out[m] = z[m] + Σ_k x[m, k]·w[k] + Σ_k h[m, k]·w[Kx + k]        m < M rows, G vectors of 16 outputs

One pass over the weights of a block (weights.py says how they lie) serves M rows whose accumulators stay in registers.
Each output has one chain: its z (bias, or the hoisted input projection), then x over k, then h over k, in that order,
whatever M is, so that results do not depend on batch, chunk or thread count.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from ..jit import kernel
from ..machine import target
from . import maths
from .simd import INT64, Lanes, int64, never_inline, pointer
from .weights import Floats, Sums, repeated


def rows_in_registers(weights: Floats, vectors: int) -> int:
    """How many rows' accumulators fit, leaving a fifth of the registers for weights and operands."""
    v = weights.v
    per_vector = max(1, v.vector_bytes // target().vector_bytes)
    return max(1, min(weights.most_rows, target().registers * 4 // 5 // (vectors * per_vector)))


def _sums(
    weights: Floats, b: ir.IRBuilder, w: ir.Value, z_rows: list[ir.Value], vectors: int, parts: list[Any]
) -> Sums:
    """z + x·W + h·R of some rows, in registers."""
    v = weights.v
    sums = [[v.load(b, b.add(row, int64(g * v.vector_bytes))) for g in range(vectors)] for row in z_rows]
    for part in parts:
        sums, w = weights.add(b, sums, w, part)
    return sums


def _tile(weights: Floats, rows: int, vectors: int) -> Any:
    """tile(w, x, x_stride, Kx, h, h_stride, Kh, z, z_stride, out, out_stride) for M = ``rows``, G = ``vectors``."""
    v = weights.v

    def emit(b: ir.IRBuilder, *operands: ir.Value) -> None:
        w, x, x_stride, x_depth, h, h_stride, h_depth, z, z_stride, out, out_stride = operands
        z_rows = [b.add(z, b.mul(z_stride, int64(m))) for m in range(rows)]
        out_rows = [b.add(out, b.mul(out_stride, int64(m))) for m in range(rows)]
        sums = _sums(weights, b, w, z_rows, vectors, [(x, x_stride, x_depth), (h, h_stride, h_depth)])
        for row, values in zip(out_rows, sums, strict=True):
            for g, value in enumerate(values):
                v.store(b, value, b.add(row, int64(g * v.vector_bytes)))

    return v.intrinsic(emit, "a" * 11, "")


def _finish(
    weights: Floats,
    b: ir.IRBuilder,
    z: list[ir.Value],
    c: ir.Value,
    c_new: ir.Value,
    out: ir.Value,
    following: ir.Value,
) -> None:
    """The cell of 16 units from their pre-activations, the first lines of the weights read next asked for before."""
    v = weights.v
    for line in range(weights.lines_ahead):
        v.prefetch(b, b.add(following, int64(64 * line)))
    i, o, f, g = z
    cell, hidden = maths.cell(v, b, (i, o, f, g), v.load(b, c))
    v.store(b, cell, c_new)
    v.store(b, hidden, out)


def lstm_block(weights: Floats) -> Any:
    """block(w, x, Kx, h, Kh, z, c, c_new, out, next): 16 units of one row, product and cell in registers.

    ``next``: the weights read after these. Their first lines are asked for before the cell is computed, which
    leaves the way from the second-level cache idle otherwise.
    """
    v = weights.v

    def emit(b: ir.IRBuilder, *operands: ir.Value) -> None:
        w, x, x_depth, h, h_depth, z, c, c_new, out, following = operands
        (sums,) = _sums(weights, b, w, [z], 4, [(x, int64(0), x_depth), (h, int64(0), h_depth)])
        _finish(weights, b, sums, c, c_new, out, following)

    return v.intrinsic(emit, "a" * 10, "")


AHEAD_ROWS = 6  # whose input projections are made beside a recurrent product


def lstm_block_ahead(weights: Floats) -> Any:
    """block(r, h, Kh, z, c, c_new, out, next, w, Kx, x, x_stride, bias, pre, pre_stride): lstm_block() of a projected
    row, and on the way pre = bias + x·w for AHEAD_ROWS rows of x and 16 outputs: every fourth vector from w on.

    The recurrent weights come from the second-level cache at half the pace of the multiplications: the other half is
    there for rows to come (bench rows `sequence-h64-b1`, `sequence-h128-b1`).
    """
    v = weights.v
    one, rows = v.vector_bytes, range(AHEAD_ROWS)

    def emit(b: ir.IRBuilder, *operands: ir.Value) -> None:
        r, h, h_depth, z, c, c_new, out, following, w, x_depth, x, x_stride, bias, pre, pre_stride = operands
        x_rows = [b.add(x, b.mul(x_stride, int64(m))) for m in rows]
        begun = v.load(b, bias)

        def recurrent(k: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
            at = b.add(r, b.mul(k, int64(4 * one)))
            factor = v.broadcast(b, b.add(h, b.mul(k, int64(v.bytes))))
            return [v.fma(b, factor, v.load(b, b.add(at, int64(g * one))), total) for g, total in enumerate(sums)]

        def ahead(k: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
            weight, place = v.load(b, b.add(w, b.mul(k, int64(4 * one)))), b.mul(k, int64(v.bytes))
            return [v.fma(b, v.broadcast(b, b.add(x_rows[m], place)), weight, total) for m, total in enumerate(sums)]

        def both(k: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
            return [*recurrent(k, sums[:4]), *ahead(k, sums[4:])]

        together = b.select(b.icmp_signed("<", h_depth, x_depth), h_depth, x_depth)
        starts = [v.load(b, b.add(z, int64(g * one))) for g in range(4)]
        sums = repeated(b, together, [*starts, *([begun] * AHEAD_ROWS)], both)
        gates, made = sums[:4], sums[4:]
        made = repeated(b, b.sub(x_depth, together), made, lambda k, held: ahead(b.add(k, together), held))
        gates = repeated(b, b.sub(h_depth, together), gates, lambda k, held: recurrent(b.add(k, together), held))
        for m, total in zip(rows, made, strict=True):
            v.store(b, total, b.add(pre, b.mul(pre_stride, int64(m))))
        _finish(weights, b, gates, c, c_new, out, following)

    return v.intrinsic(emit, "a" * 15, "")


def cell_block(v: Lanes) -> Any:
    """cell(z, c, c_new, out): 16 units of one row from their pre-activations z[4][16]."""

    def emit(b: ir.IRBuilder, z: ir.Value, c: ir.Value, c_new: ir.Value, out: ir.Value) -> None:
        i, o, f, g = (v.load(b, b.add(z, int64(gate * v.vector_bytes))) for gate in range(4))
        cell, hidden = maths.cell(v, b, (i, o, f, g), v.load(b, c))
        v.store(b, cell, c_new)
        v.store(b, hidden, out)

    return v.intrinsic(emit, "aaaa", "")


def traced_cell_block(v: Lanes) -> Any:
    """cell(z, c, c_new, out) as cell_block(); z becomes i, o, f, g, c and h."""

    def emit(b: ir.IRBuilder, z: ir.Value, c: ir.Value, c_new: ir.Value, out: ir.Value) -> None:
        i, o, f, g = (v.load(b, b.add(z, int64(gate * v.vector_bytes))) for gate in range(4))
        cell, hidden = maths.cell(v, b, (i, o, f, g), v.load(b, c))
        gates = [maths.sigmoid(v, b, i), maths.sigmoid(v, b, o), maths.sigmoid(v, b, f), maths.tanh(v, b, g)]
        v.store(b, cell, c_new)
        v.store(b, hidden, out)
        for place, value in enumerate([*gates, cell, hidden]):
            v.store(b, value, b.add(z, int64(place * v.vector_bytes)))

    return v.intrinsic(emit, "aaaa", "")


def product_rows(weights: Floats, vectors: int) -> Callable[..., None]:
    """The tile over any number of rows, as many at a time as registers hold.

    product(w, x, x_stride, Kx, h, h_stride, Kh, z, z_stride, out, out_stride, rows)
    """
    most = rows_in_registers(weights, vectors)
    one = _tile(weights, 1, vectors)
    if most == 1:

        @kernel
        def product_one(w, x, xs, kx, h, hs, kh, z, zs, out, os, rows):  # type: ignore[no-untyped-def]
            never_inline()
            r = 0
            while r < rows:
                one(w, x + r * xs, xs, kx, h + r * hs, hs, kh, z + r * zs, zs, out + r * os, os)
                r += 1

        return product_one

    full, two = _tile(weights, most, vectors), _tile(weights, 2, vectors)
    three, four = _tile(weights, min(3, most), vectors), _tile(weights, min(4, most), vectors)

    @kernel
    def product(w, x, xs, kx, h, hs, kh, z, zs, out, os, rows):  # type: ignore[no-untyped-def]
        never_inline()
        r = 0
        while rows - r >= most:
            full(w, x + r * xs, xs, kx, h + r * hs, hs, kh, z + r * zs, zs, out + r * os, os)
            r += most
        if most > 4 and rows - r >= 4:
            four(w, x + r * xs, xs, kx, h + r * hs, hs, kh, z + r * zs, zs, out + r * os, os)
            r += 4
        if most > 3 and rows - r == 3:
            three(w, x + r * xs, xs, kx, h + r * hs, hs, kh, z + r * zs, zs, out + r * os, os)
            r += 3
        if rows - r == 2:
            two(w, x + r * xs, xs, kx, h + r * hs, hs, kh, z + r * zs, zs, out + r * os, os)
            r += 2
        if rows - r == 1:
            one(w, x + r * xs, xs, kx, h + r * hs, hs, kh, z + r * zs, zs, out + r * os, os)

    return product


def _gathering_tile(v: Lanes, rows: int, vectors: int) -> Any:
    """tile(w, x, places, offsets, K, z, out, out_stride) for M = ``rows``, G = ``vectors``.

    out[m] = z + Σ_k x[places[m] + offsets[k]]·w[k], both tables in bytes.
    """

    def word(b: ir.IRBuilder, table: ir.Value, index: ir.Value) -> ir.Value:
        return b.load(pointer(b, b.add(table, b.mul(index, int64(8)))), typ=INT64, align=8)

    weights = Floats(v)

    def emit(b: ir.IRBuilder, *operands: ir.Value) -> None:
        w, x, places, offsets, depth, z, out, out_stride = operands
        columns = [g * v.vector_bytes for g in range(vectors)]
        starts = [b.add(x, word(b, places, int64(m))) for m in range(rows)]
        first = [v.load(b, b.add(z, int64(column))) for column in columns]

        def elements(k: ir.Value) -> list[ir.Value]:
            offset = word(b, offsets, k)
            return [b.add(start, offset) for start in starts]

        sums, _ = weights.summed(b, [first] * rows, w, depth, elements)
        for m, row in enumerate(sums):
            for column, value in zip(columns, row, strict=True):
                v.store(b, value, b.add(b.add(out, b.mul(out_stride, int64(m))), int64(column)))

    return v.intrinsic(emit, "a" * 8, "")


def gathering_rows(v: Lanes, vectors: int) -> Callable[..., None]:
    """The gathering tile over any number of places.

    gather(w, x, places, offsets, K, z, out, out_stride, count)
    """
    most = rows_in_registers(Floats(v), vectors)
    full, two, one = (_gathering_tile(v, rows, vectors) for rows in (most, min(2, most), 1))

    @kernel
    def gather(w, x, places, offsets, depth, z, out, os, count):  # type: ignore[no-untyped-def]
        never_inline()
        r = 0
        while count - r >= most:
            full(w, x, places + 8 * r, offsets, depth, z, out + r * os, os)
            r += most
        while most > 2 and count - r >= 2:
            two(w, x, places + 8 * r, offsets, depth, z, out + r * os, os)
            r += 2
        while count - r >= 1:
            one(w, x, places + 8 * r, offsets, depth, z, out + r * os, os)
            r += 1

    return gather
