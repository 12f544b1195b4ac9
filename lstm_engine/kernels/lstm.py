"""One direction of an LSTM layer over the steps of a block.

``lstm`` is the plain cell, product and gates fused where one row runs alone; ``cell`` is every other one ONNX can
describe: peepholes, clip, input_forget, other activations, sequence lengths, projection.

Weights are walked forward on even steps and backward on odd ones, so that what a step read last is what
the next reads first: bit-identical, and it keeps part of a matrix larger than the cache inside it.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from ..encoding import Context, Lstm
from ..jit import kernel
from .product import cell_block, lstm_block
from .rows import copy_rows, field, locate, over_rows, ragged, scratch
from .simd import Lanes, clear_bytes, float64_of_bits, never_inline, word
from .weights import Floats

PARITY = int(Context.PARITY) * 8
(
    _, X_STRIDE, _, Y_STRIDE, _, H_STRIDE, _, C_STRIDE, WEIGHTS, BIAS, INPUTS, RECURRENT, BLOCKS, _, _, REVERSE,
    PRE, HOIST, GATES, PEEPHOLES, CLIP, ACTIVATIONS, PARAMETERS, INPUT_FORGET, _, _, PROJECTION,
    PROJECTED_BLOCKS, HIDDEN, HIDDEN_UNITS, ZEROS, X_STEP, Y_STEP, _, _, _, _, X_ROOM, H_ROOM, UNIT,
) = (int(f) for f in Lstm)  # fmt: skip


def layer(weights: Floats, product: Any, floats_narrow: Any, general: Any) -> Any:
    """sequence(ip, cx, T, B, x, y, h, c): B rows over T steps, with the plain cell or (not None) a ``general`` one.

    ``floats_narrow``: the product of a projection, whose weights are of the element type in every precision.
    """
    v = weights.v
    fused, cell = lstm_block(weights), cell_block(v)
    prepare, prepared_stride = weights.activations()
    part_bytes = weights.part_bytes(4)
    one = v.vector_bytes
    four = 4 * one
    plain = general is None
    one_row = cell if plain else general

    @kernel
    def cells(ip, cx, B, gates, q, c, out, out_stride):  # type: ignore[no-untyped-def]
        """The q-th 16 units of B rows, from their pre-activations."""
        cs = field(ip, C_STRIDE)
        b = 0
        while b < B:
            if plain:
                one_row(gates + b * four, c + b * cs + q * one, out + b * out_stride + q * one)
            else:
                peepholes = field(ip, PEEPHOLES)
                peep = locate(cx, peepholes) + q * 3 * one if peepholes >= 0 else 0
                one_row(ip, cx, gates + b * four, peep, c + b * cs + q * one, out + b * out_stride + q * one)
            b += 1

    @kernel
    def project(ip, cx, B, hidden, stride, out, ys):  # type: ignore[no-untyped-def]
        """h = P·(o∘h(c)), no bias."""
        units, P, zeros = field(ip, HIDDEN_UNITS), locate(cx, field(ip, PROJECTION)), locate(cx, field(ip, ZEROS))
        q = 0
        while q < field(ip, PROJECTED_BLOCKS):
            floats_narrow(P + q * units * one, hidden, stride, units, 0, 0, 0, zeros, 0, out + q * one, ys, B)
            q += 1

    @kernel
    def hoist(ip, cx, x, stride, rows):  # type: ignore[no-untyped-def]
        """pre = bias + W·x of several steps at once: the weights are read once for all of them."""
        W, bias, pre = locate(cx, field(ip, WEIGHTS)), locate(cx, field(ip, BIAS)), locate(cx, field(ip, PRE))
        inputs, blocks = field(ip, INPUTS), field(ip, BLOCKS)
        block_bytes = part_bytes(inputs) + part_bytes(field(ip, RECURRENT))
        made, made_stride = (
            prepare(scratch(ip, cx, X_ROOM), x, stride, inputs, 0, rows),
            prepared_stride(stride, inputs),
        )
        q = 0
        while q < blocks:
            z, out = bias + q * four, pre + q * four
            product(W + q * block_bytes, made, made_stride, inputs, 0, 0, 0, z, 0, out, blocks * four, rows)
            q += 1

    @kernel
    def sequence(ip, cx, T, B, x, y, h, c):  # type: ignore[no-untyped-def]
        never_inline()
        xs, ys, hs = field(ip, X_STRIDE), field(ip, Y_STRIDE), field(ip, H_STRIDE)
        x_step, y_step = field(ip, X_STEP), field(ip, Y_STEP)
        W, bias = locate(cx, field(ip, WEIGHTS)), locate(cx, field(ip, BIAS))
        inputs, recurrent, blocks = field(ip, INPUTS), field(ip, RECURRENT), field(ip, BLOCKS)
        pre, gates, room = locate(cx, field(ip, PRE)), locate(cx, field(ip, GATES)), field(ip, HOIST)
        x_room, h_room, unit = scratch(ip, cx, X_ROOM), scratch(ip, cx, H_ROOM), field(ip, UNIT)
        between = x_step if B == 1 else xs  # the rows of several steps lie evenly, or are not projected at once
        hoisted = room > 1 and T > 1 and x_step == B * between
        reverse = field(ip, REVERSE) != 0
        projected = not plain and field(ip, PROJECTION) >= 0
        parity = word(cx + PARITY)
        x_bytes = part_bytes(inputs)
        block_bytes, pre_row = x_bytes + part_bytes(recurrent), blocks * four
        skipped, depth = (x_bytes, 0) if hoisted else (0, inputs)
        previous, previous_stride = h, hs
        t = 0
        while t < T:
            n = min(T - t, room) if hoisted else 1
            first = T - t - n if reverse else t
            if hoisted:
                hoist(ip, cx, x + first * x_step, between, n * B)
            s = 0
            while s < n:
                at = T - 1 - t if reverse else t
                out = y + at * y_step
                made, made_stride = (locate(cx, field(ip, HIDDEN)), blocks * one) if projected else (out, ys)
                x_rows, x_between = x + at * x_step, prepared_stride(xs, inputs)
                if not hoisted:
                    x_rows = prepare(x_room, x_rows, xs, inputs, 0, B)
                h_rows = prepare(h_room, previous, previous_stride, recurrent, unit, B)
                h_between = prepared_stride(previous_stride, recurrent)
                k = 0
                while k < blocks:
                    forward = (parity + t) & 1 == 0
                    q = k if forward else blocks - 1 - k
                    w = W + q * block_bytes + skipped
                    z, zs = (pre + (at - first) * B * pre_row + q * four, pre_row) if hoisted else (bias + q * four, 0)
                    if plain and B == 1:
                        following = w + block_bytes if forward else w - block_bytes
                        fused(w, x_rows, depth, h_rows, recurrent, z, c + q * one, out + q * one, following)
                    else:
                        product(w, x_rows, x_between, depth, h_rows, h_between, recurrent, z, zs, gates, four, B)
                        cells(ip, cx, B, gates, q, c, made, made_stride)
                    k += 1
                if projected:
                    project(ip, cx, B, made, made_stride, out, ys)
                previous, previous_stride = out, ys
                s += 1
                t += 1
        if T > 0:
            units = field(ip, PROJECTED_BLOCKS) if projected else blocks
            copy_rows(h, 0, hs, previous, 0, previous_stride, units * one, 1, B)
        return 0

    return sequence


def state_clearing(v: Lanes) -> Any:
    """clear(ip, cx, h, c) of one row."""
    one = v.vector_bytes

    @kernel
    def clear(ip, cx, h, c):  # type: ignore[no-untyped-def]
        blocks = field(ip, BLOCKS)
        clear_bytes(h, (field(ip, PROJECTED_BLOCKS) if field(ip, PROJECTION) >= 0 else blocks) * one)
        clear_bytes(c, blocks * one)

    return clear


def general_cell(v: Lanes, activate: Any) -> Any:
    """block(ip, cx, z, peep, c, out): 16 units of one row, any cell."""
    vector_load = v.intrinsic(lambda b, at: v.load(b, at), "a", "v")
    vector_store = v.intrinsic(lambda b, at, x: v.store(b, x, at), "av", "")
    splat = v.intrinsic(v.splat, "s", "v")
    fma = v.intrinsic(v.fma, "vvv", "v")
    multiply = v.intrinsic(lambda b, x, y: b.fmul(x, y), "vv", "v")
    subtract = v.intrinsic(lambda b, x, y: b.fsub(x, y), "vv", "v")
    scalar = v.dtype.type
    one = v.vector_bytes

    def emit_clip(b: ir.IRBuilder, bound: ir.Value, x: ir.Value) -> ir.Value:
        return v.minimum(b, bound, v.maximum(b, b.fneg(bound), x))

    clipped = v.intrinsic(emit_clip, "vv", "v")

    @kernel
    def bound(clip, x):  # type: ignore[no-untyped-def]
        if clip > 0.0:
            return clipped(splat(scalar(clip)), x)
        return x

    @kernel
    def gate(ip, cx, index, x):  # type: ignore[no-untyped-def]
        """Activation f (0), g (1) or h (2) of the cell."""
        code = (field(ip, ACTIVATIONS) >> (8 * index)) & 255
        at = locate(cx, field(ip, PARAMETERS)) + 16 * index
        return activate(code, x, float64_of_bits(word(at)), float64_of_bits(word(at + 8)))

    @kernel
    def block(ip, cx, z, peep, c, out):  # type: ignore[no-untyped-def]
        """16 units of one row: pre-activations z[4][16] and c to the new c and o∘h(c)."""
        never_inline()
        clip = float64_of_bits(field(ip, CLIP))
        cell = vector_load(c)
        zi, zo, zf, zg = (
            vector_load(z),
            vector_load(z + one),
            vector_load(z + 2 * one),
            vector_load(z + 3 * one),
        )
        if peep != 0:
            zi = fma(vector_load(peep), cell, zi)
            zf = fma(vector_load(peep + 2 * one), cell, zf)
        i = gate(ip, cx, 0, bound(clip, zi))
        f = subtract(splat(scalar(1.0)), i) if field(ip, INPUT_FORGET) != 0 else gate(ip, cx, 0, bound(clip, zf))
        g = gate(ip, cx, 1, bound(clip, zg))
        cell = fma(f, cell, multiply(i, g))
        if peep != 0:
            zo = fma(vector_load(peep + one), cell, zo)
        o = gate(ip, cx, 0, bound(clip, zo))
        vector_store(c, cell)
        vector_store(out, multiply(o, gate(ip, cx, 2, cell)))

    return block


def kernels(weights: Floats, product: Any, floats_narrow: Any, activate: Any) -> dict[str, Any]:
    """The kernels of this file by the name the executor calls them."""
    v = weights.v
    plain = layer(weights, product, floats_narrow, None)
    general = layer(weights, product, floats_narrow, general_cell(v, activate))
    return {"lstm": over_rows(plain, Lstm), "cell": over_rows(ragged(general, Lstm, state_clearing(v)), Lstm)}
