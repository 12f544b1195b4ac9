"""One direction of a GRU or of a simple RNN over the steps of a block.

Both are dense products and a function of their sums. A row of sums is planes of ⌈H/16⌉ vectors: for the RNN one, for
the GRU n_x, z, r, n_h (the candidate's part from x, update gate, reset gate, the candidate's part from h). The
products with x write the planes from the first on, those with h add to the last ones, so each output has one
chain: bias, x over k, h over k.
"""

from __future__ import annotations

from typing import Any

from ..encoding import Cell, Recurrent
from ..jit import kernel
from .dense import outputs_of
from .rows import copy_rows, field, locate, over_rows, ragged, scratch
from .simd import clear_bytes, float64_of_bits, never_inline, word
from .weights import Floats

(
    _, X_STRIDE, _, Y_STRIDE, _, H_STRIDE, W, R, R_CANDIDATE, BIAS, INPUTS, UNITS, VECTORS, _, _, REVERSE, SUMS,
    HOIST, CELL, CLIP, ACTIVATIONS, PARAMETERS, _, _, RESET, X_STEP, Y_STEP, _, _, _, _, ROOM, UNIT, TRACE,
) = (int(f) for f in Recurrent)  # fmt: skip
RNN, GRU, GRU_LINEAR = int(Cell.RNN), int(Cell.GRU), int(Cell.GRU_LINEAR)


def recurrent_rows(weights: Floats, product: Any, product_narrow: Any, activate: Any, traced: bool) -> Any:
    """The kernel of GRU and RNN; ``traced``: gates and h of each step are written behind y."""
    v = weights.v
    outputs = outputs_of(weights, product, product_narrow)
    load = v.intrinsic(lambda b, at: v.load(b, at), "a", "v")
    store = v.intrinsic(lambda b, at, x: v.store(b, x, at), "av", "")
    splat = v.intrinsic(v.splat, "s", "v")
    fma = v.intrinsic(v.fma, "vvv", "v")
    multiply = v.intrinsic(lambda b, x, y: b.fmul(x, y), "vv", "v")
    subtract = v.intrinsic(lambda b, x, y: b.fsub(x, y), "vv", "v")
    within = v.intrinsic(lambda b, bound, x: v.minimum(b, bound, v.maximum(b, b.fneg(bound), x)), "vv", "v")
    scalar, one = v.dtype.type, v.vector_bytes

    @kernel
    def gate(ip, cx, index, x):  # type: ignore[no-untyped-def]
        """Activation f (0) or g (1) of x within ±clip."""
        clip = float64_of_bits(field(ip, CLIP))
        if clip > 0.0:
            x = within(splat(scalar(clip)), x)
        at = locate(cx, field(ip, PARAMETERS)) + 16 * index
        code = (field(ip, ACTIVATIONS) >> (8 * index)) & 255
        return activate(code, x, float64_of_bits(word(at)), float64_of_bits(word(at + 8)))

    @kernel
    def rnn_row(ip, cx, sums, plane, out):  # type: ignore[no-untyped-def]
        never_inline()
        j = 0
        while j < plane:
            store(out + j, gate(ip, cx, 0, load(sums + j)))
            j += one

    @kernel
    def reset_row(ip, cx, sums, plane, h, out):  # type: ignore[no-untyped-def]
        """out = r∘h, what a reset gate leaves of h before the product."""
        never_inline()
        j = 0
        while j < plane:
            store(out + j, multiply(gate(ip, cx, 0, load(sums + 2 * plane + j)), load(h + j)))
            j += one

    @kernel
    def gru_row(ip, cx, sums, plane, linear, h, out):  # type: ignore[no-untyped-def]
        """h = (1 - z)∘n + z∘h; ``linear``: the reset gate acts on the product with h."""
        never_inline()
        j = 0
        while j < plane:
            candidate = load(sums + j)
            if linear:
                candidate = fma(gate(ip, cx, 0, load(sums + 2 * plane + j)), load(sums + 3 * plane + j), candidate)
            n, z = gate(ip, cx, 1, candidate), gate(ip, cx, 0, load(sums + plane + j))
            store(out + j, fma(z, subtract(load(h + j), n), n))
            j += one

    @kernel
    def write_down(ip, cx, sums, plane, linear, gated, out, to):  # type: ignore[no-untyped-def]
        """What a step of a row computed on its way to ``out``: z, r, n and h, or h alone."""
        never_inline()
        j = 0
        while j < plane:
            if gated:
                candidate, r = load(sums + j), gate(ip, cx, 0, load(sums + 2 * plane + j))
                if linear:
                    candidate = fma(r, load(sums + 3 * plane + j), candidate)
                store(to + j, gate(ip, cx, 0, load(sums + plane + j)))
                store(to + plane + j, r)
                store(to + 2 * plane + j, gate(ip, cx, 1, candidate))
                store(to + 3 * plane + j, load(out + j))
            else:
                store(to + j, load(out + j))
            j += one

    @kernel
    def project(ip, cx, x, xs, rows):  # type: ignore[no-untyped-def]
        """The planes' part from bias and x, of ``rows`` rows."""
        sums, bias, vectors = locate(cx, field(ip, SUMS)), locate(cx, field(ip, BIAS)), field(ip, VECTORS)
        planes = 1 if field(ip, CELL) == RNN else 4
        stride = planes * vectors * one
        made, room = 3 * vectors if planes == 4 else vectors, scratch(ip, cx, ROOM)
        outputs(locate(cx, field(ip, W)), x, xs, field(ip, INPUTS), bias, 0, sums, stride, made, rows, room, 0)
        if planes == 4:
            copy_rows(sums + made * one, stride, 0, bias + made * one, 0, 0, vectors * one, rows, 1)

    @kernel
    def advance(ip, cx, sums, h, hs, out, os, rows):  # type: ignore[no-untyped-def]
        """One step of ``rows`` rows: adds the products with h to the planes, and makes the new h of them."""
        vectors, units, kind = field(ip, VECTORS), field(ip, UNITS), field(ip, CELL)
        plane, room, unit = vectors * one, scratch(ip, cx, ROOM), field(ip, UNIT)
        recurrent = locate(cx, field(ip, R))
        if kind == RNN:
            outputs(recurrent, h, hs, units, sums, plane, sums, plane, vectors, rows, room, unit)
            b = 0
            while b < rows:
                rnn_row(ip, cx, sums + b * plane, plane, out + b * os)
                b += 1
            return
        stride, second = 4 * plane, sums + plane
        if kind == GRU_LINEAR:
            outputs(recurrent, h, hs, units, second, stride, second, stride, 3 * vectors, rows, room, unit)
        else:
            outputs(recurrent, h, hs, units, second, stride, second, stride, 2 * vectors, rows, room, unit)
            left = locate(cx, field(ip, RESET))
            b = 0
            while b < rows:
                reset_row(ip, cx, sums + b * stride, plane, h + b * hs, left + b * plane)
                b += 1
            candidate = locate(cx, field(ip, R_CANDIDATE))
            outputs(candidate, left, plane, units, sums, stride, sums, stride, vectors, rows, room, unit)
        b = 0
        while b < rows:
            gru_row(ip, cx, sums + b * stride, plane, kind == GRU_LINEAR, h + b * hs, out + b * os)
            b += 1

    @kernel
    def sequence(ip, cx, T, B, x, y, h, c):  # type: ignore[no-untyped-def]
        never_inline()
        xs, ys, hs = field(ip, X_STRIDE), field(ip, Y_STRIDE), field(ip, H_STRIDE)
        x_step, y_step = field(ip, X_STEP), field(ip, Y_STEP)
        reverse, room = field(ip, REVERSE) != 0, field(ip, HOIST)
        sums, plane = locate(cx, field(ip, SUMS)), field(ip, VECTORS) * one
        row = plane if field(ip, CELL) == RNN else 4 * plane
        between = x_step if B == 1 else xs  # the rows of several steps lie evenly, or are not projected at once
        if x_step != B * between:
            room = 1
        previous, previous_stride = h, hs
        t = 0
        while t < T:
            n = min(T - t, room)
            first = T - t - n if reverse else t
            project(ip, cx, x + first * x_step, between, n * B)
            s = 0
            while s < n:
                at = n - 1 - s if reverse else s
                out = y + (first + at) * y_step
                advance(ip, cx, sums + at * B * row, previous, previous_stride, out, ys, B)
                if traced:
                    b, kind = 0, field(ip, CELL)
                    while b < B:
                        made, behind = sums + (at * B + b) * row, out + b * ys
                        write_down(
                            ip, cx, made, plane, kind == GRU_LINEAR, kind != RNN, behind, behind + field(ip, TRACE)
                        )
                        b += 1
                previous, previous_stride = out, ys
                s += 1
            t += n
        if T > 0:
            copy_rows(h, 0, hs, previous, 0, previous_stride, plane, 1, B)
        return 0

    @kernel
    def clear(ip, cx, h, c):  # type: ignore[no-untyped-def]
        clear_bytes(h, field(ip, VECTORS) * one)

    return over_rows(ragged(sequence, Recurrent, clear), Recurrent)
