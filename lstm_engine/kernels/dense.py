"""Dense layers: y = x·W + b over all rows of a block."""

from __future__ import annotations

from typing import Any

from ..encoding import Dense
from ..jit import kernel
from .rows import field, locate, steps
from .simd import Lanes, never_inline


def outputs_of(v: Lanes, product: Any, product_narrow: Any) -> Any:
    """outputs(w, x, x_stride, K, z, z_stride, out, out_stride, vectors, rows): out = z + x·W, whole vectors of outputs.

    Blocks of 64 outputs, then of 16: a layer pays for the padding of its last 16 only.
    """
    one = v.vector_bytes
    four = 4 * one

    @kernel
    def outputs(w, x, xs, depth, z, zs, out, os, vectors, rows):  # type: ignore[no-untyped-def]
        never_inline()
        q = vectors
        while q >= 4:
            product(w, x, xs, depth, 0, 0, 0, z, zs, out, os, rows)
            w += depth * four
            z += four
            out += four
            q -= 4
        while q > 0:
            product_narrow(w, x, xs, depth, 0, 0, 0, z, zs, out, os, rows)
            w += depth * one
            z += one
            out += one
            q -= 1

    return outputs


def dense_rows(v: Lanes, product: Any, product_narrow: Any) -> Any:
    """A dense layer over rows."""
    outputs = outputs_of(v, product, product_narrow)
    X, X_STRIDE, OUT, OUT_STRIDE, WEIGHTS, BIAS, DEPTH, WIDE, NARROW, ROWS, TIMED = (int(f) for f in Dense)

    @kernel
    def dense(ip, cx):  # type: ignore[no-untyped-def]
        never_inline()
        rows = steps(ip, cx, TIMED) * field(ip, ROWS)
        x, xs = locate(cx, field(ip, X)), field(ip, X_STRIDE)
        out, os = locate(cx, field(ip, OUT)), field(ip, OUT_STRIDE)
        w, bias, depth = locate(cx, field(ip, WEIGHTS)), locate(cx, field(ip, BIAS)), field(ip, DEPTH)
        outputs(w, x, xs, depth, bias, 0, out, os, 4 * field(ip, WIDE) + field(ip, NARROW), rows)
        return 0

    return dense
