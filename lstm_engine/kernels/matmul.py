"""Products of two computed matrices within each row: attention, mostly."""

from __future__ import annotations

from typing import Any

from ..encoding import Matmul
from ..jit import kernel
from .rows import field, locate, steps
from .simd import Lanes, clear_bytes, copy_bytes, never_inline

(
    X, X_STRIDE, X_MATRIX, Y, Y_STRIDE, Y_MATRIX, OUT, OUT_STRIDE, COUNT, HEIGHT, DEPTH, WIDTH, PACKED, TILE, ZEROS,
    ROWS, TIMED,
) = (int(f) for f in Matmul)  # fmt: skip


def matmul_rows(v: Lanes, product_narrow: Any) -> Any:
    """The kernel of MATMUL: 16 columns of the second operand are packed at a time and serve all rows of the first."""
    size, one = v.bytes, v.vector_bytes

    @kernel
    def packed(to, y, row_bytes, count, depth):  # type: ignore[no-untyped-def]
        """``count`` bytes of each row of y, each as a whole vector."""
        if count < one:
            clear_bytes(to, depth * one)
        k = 0
        while k < depth:
            copy_bytes(to + k * one, y + k * row_bytes, count)
            k += 1

    @kernel
    def multiply(ip, cx, x, y, out):  # type: ignore[no-untyped-def]
        never_inline()
        height, depth, width = field(ip, HEIGHT), field(ip, DEPTH), field(ip, WIDTH) * size
        columns, tile, zeros = locate(cx, field(ip, PACKED)), locate(cx, field(ip, TILE)), locate(cx, field(ip, ZEROS))
        j = 0
        while j < width:
            count = min(one, width - j)
            packed(columns, y + j, width, count, depth)
            product_narrow(columns, x, depth * size, depth, 0, 0, 0, zeros, 0, tile, one, height)
            m = 0
            while m < height:
                copy_bytes(out + m * width + j, tile + m * one, count)
                m += 1
            j += one

    @kernel
    def matmul(ip, cx):  # type: ignore[no-untyped-def]
        never_inline()
        rows, count = steps(ip, cx, TIMED) * field(ip, ROWS), field(ip, COUNT)
        x, y, out = locate(cx, field(ip, X)), locate(cx, field(ip, Y)), locate(cx, field(ip, OUT))
        result = field(ip, HEIGHT) * field(ip, WIDTH) * size
        r = 0
        while r < rows:
            xr, yr = x + r * field(ip, X_STRIDE), y + r * field(ip, Y_STRIDE)
            to = out + r * field(ip, OUT_STRIDE)
            i = 0
            while i < count:
                multiply(ip, cx, xr + i * field(ip, X_MATRIX), yr + i * field(ip, Y_MATRIX), to + i * result)
                i += 1
            r += 1
        return 0

    return matmul
