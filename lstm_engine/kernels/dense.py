"""Dense layers: y = x·W + b over all rows of a block."""

from __future__ import annotations

from typing import Any

from ..encoding import PREPARED_AT_ONCE, Dense
from ..jit import kernel
from .rows import field, locate, scratch, steps
from .simd import never_inline
from .weights import Floats


def outputs_of(weights: Floats, product: Any, product_narrow: Any) -> Any:
    """outputs(w, x, x_stride, K, z, z_stride, out, out_stride, vectors, rows, room, unit): out = z + x·W.

    Blocks of 64 outputs, then of 16: a layer pays for the padding of its last 16 only. ``room``: scratch for rows as
    the products take them; ``unit``: no element is beyond ±1, or hardly.
    """
    one = weights.v.vector_bytes
    four = 4 * one
    prepare, prepared_stride = weights.activations()
    wide_bytes, narrow_bytes = weights.part_bytes(4), weights.part_bytes(1)

    @kernel
    def blocks(w, x, xs, depth, z, zs, out, os, vectors, rows):  # type: ignore[no-untyped-def]
        q = vectors
        while q >= 4:
            product(w, x, xs, depth, 0, 0, 0, z, zs, out, os, rows)
            w += wide_bytes(depth)
            z += four
            out += four
            q -= 4
        while q > 0:
            product_narrow(w, x, xs, depth, 0, 0, 0, z, zs, out, os, rows)
            w += narrow_bytes(depth)
            z += one
            out += one
            q -= 1

    @kernel
    def outputs(w, x, xs, depth, z, zs, out, os, vectors, rows, room, unit):  # type: ignore[no-untyped-def]
        never_inline()
        r = 0
        while r < rows:
            n = min(rows - r, PREPARED_AT_ONCE) if room != 0 else rows
            made = prepare(room, x + r * xs, xs, depth, unit, n)
            blocks(w, made, prepared_stride(xs, depth), depth, z + r * zs, zs, out + r * os, os, vectors, n)
            r += n

    return outputs


def dense_rows(weights: Floats, product: Any, product_narrow: Any) -> Any:
    """A dense layer over rows."""
    outputs = outputs_of(weights, product, product_narrow)
    X, X_STRIDE, OUT, OUT_STRIDE, WEIGHTS, BIAS, DEPTH, WIDE, NARROW, ROWS, TIMED, ROOM = (int(f) for f in Dense)

    @kernel
    def dense(ip, cx):  # type: ignore[no-untyped-def]
        never_inline()
        rows = steps(ip, cx, TIMED) * field(ip, ROWS)
        x, xs = locate(cx, field(ip, X)), field(ip, X_STRIDE)
        out, os = locate(cx, field(ip, OUT)), field(ip, OUT_STRIDE)
        w, bias, depth = locate(cx, field(ip, WEIGHTS)), locate(cx, field(ip, BIAS)), field(ip, DEPTH)
        vectors, room = 4 * field(ip, WIDE) + field(ip, NARROW), scratch(ip, cx, ROOM)
        outputs(w, x, xs, depth, bias, 0, out, os, vectors, rows, room, 0)
        return 0

    return dense
