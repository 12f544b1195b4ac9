"""Rows that are not of the executor's float type: integers and booleans, converted, combined, compared and chosen.

Whatever an element takes in memory (encoding.Kind), its lane is an int64: sums and products that wrap around there
wrap around alike once their low bits are stored.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from ..encoding import Comparison, Convert, Integers, Kind, Select
from ..jit import kernel
from .rows import field, locate, steps
from .simd import INT64, WIDTH, Lanes, integer_lanes, never_inline, pointer, splat_integer

FLOAT, BOOL, INT8, UINT8, INT16, UINT16, INT32, UINT32, INT64_KIND = (int(kind) for kind in Kind)
(
    ADD, SUBTRACT, MULTIPLY, MINIMUM, MAXIMUM, EQUAL, DIFFERENT, LESS, LESS_OR_EQUAL,
) = (int(code) for code in Comparison)  # fmt: skip
BITS = {BOOL: 8, INT8: 8, UINT8: 8, INT16: 16, UINT16: 16, INT32: 32, UINT32: 32, INT64_KIND: 64}
SIGNED = (INT8, INT16, INT32, INT64_KIND)
LANES = ir.VectorType(INT64, WIDTH)


def _constant(value: int) -> ir.Constant:
    return ir.Constant(LANES, [value] * WIDTH)


def _widened(b: ir.IRBuilder, kind: int, x: ir.Value, wide: ir.Type) -> ir.Value:
    """An integer (or vector of them) of a kind as int64."""
    if kind == BOOL:
        return b.zext(b.icmp_unsigned("!=", x, ir.Constant(x.type, None)), wide)
    if BITS[kind] == 64:
        return x
    return b.sext(x, wide) if kind in SIGNED else b.zext(x, wide)


def _load(kind: int) -> Any:
    """16 neighbouring elements of a kind."""
    narrow = ir.VectorType(ir.IntType(BITS[kind]), WIDTH)

    def emit(b: ir.IRBuilder, at: ir.Value) -> ir.Value:
        return _widened(b, kind, b.load(pointer(b, at), typ=narrow, align=BITS[kind] // 8), LANES)

    return integer_lanes.intrinsic(emit, "a", "i")


def _load_one(kind: int) -> Any:
    """The element of a kind at an address."""

    def emit(b: ir.IRBuilder, at: ir.Value) -> ir.Value:
        return _widened(b, kind, b.load(pointer(b, at), typ=ir.IntType(BITS[kind]), align=BITS[kind] // 8), INT64)

    return integer_lanes.intrinsic(emit, "a", "a")


def _store(kind: int) -> Any:
    """16 lanes as neighbouring elements of a kind."""
    narrow = ir.VectorType(ir.IntType(BITS[kind]), WIDTH)

    def emit(b: ir.IRBuilder, at: ir.Value, x: ir.Value) -> None:
        if kind == BOOL:
            x = b.zext(b.icmp_unsigned("!=", x, _constant(0)), narrow)
        elif BITS[kind] < 64:
            x = b.trunc(x, narrow)
        b.store(x, pointer(b, at), align=BITS[kind] // 8)

    return integer_lanes.intrinsic(emit, "ai", "")


def _memory() -> tuple[Any, Any, Any]:
    """read(kind, at), broadcast(kind, at) and write(kind, at, x) of 16 lanes."""
    load8, loadu8, load16, loadu16, load32, loadu32, load64, load_bool = (
        _load(kind) for kind in (INT8, UINT8, INT16, UINT16, INT32, UINT32, INT64_KIND, BOOL)
    )
    one8, oneu8, one16, oneu16, one32, oneu32, one64, one_bool = (
        _load_one(kind) for kind in (INT8, UINT8, INT16, UINT16, INT32, UINT32, INT64_KIND, BOOL)
    )
    store8, store16, store32, store64, store_bool = (_store(kind) for kind in (INT8, INT16, INT32, INT64_KIND, BOOL))

    @kernel
    def read(kind, at):  # type: ignore[no-untyped-def]
        if kind == INT64_KIND:
            return load64(at)
        if kind == INT32:
            return load32(at)
        if kind == BOOL:
            return load_bool(at)
        if kind == UINT8:
            return loadu8(at)
        if kind == INT8:
            return load8(at)
        if kind == UINT16:
            return loadu16(at)
        if kind == INT16:
            return load16(at)
        return loadu32(at)

    @kernel
    def broadcast(kind, at):  # type: ignore[no-untyped-def]
        if kind == INT64_KIND:
            x = one64(at)
        elif kind == INT32:
            x = one32(at)
        elif kind == BOOL:
            x = one_bool(at)
        elif kind == UINT8:
            x = oneu8(at)
        elif kind == INT8:
            x = one8(at)
        elif kind == UINT16:
            x = oneu16(at)
        elif kind == INT16:
            x = one16(at)
        else:
            x = oneu32(at)
        return splat_integer(x)

    @kernel
    def write(kind, at, x):  # type: ignore[no-untyped-def]
        if kind == INT64_KIND:
            store64(at, x)
        elif kind == BOOL:
            store_bool(at, x)
        elif kind in (INT32, UINT32):
            store32(at, x)
        elif kind in (INT16, UINT16):
            store16(at, x)
        else:
            store8(at, x)

    return read, broadcast, write


@kernel
def bytes_of(kind: int, float_bytes: int) -> int:
    """Bytes of an element of a kind."""
    if kind == FLOAT:
        return float_bytes
    if kind == INT64_KIND:
        return 8
    if kind in (INT32, UINT32):
        return 4
    if kind in (INT16, UINT16):
        return 2
    return 1


def _to_integers(v: Lanes, bits: int) -> Any:
    """Floats with their fractions cut off; the lowest integer of so many bits where they lie outside."""
    beyond = 2.0 ** (bits - 1)

    def emit(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
        inside = b.and_(b.fcmp_ordered(">=", x, v.constant(-beyond)), b.fcmp_ordered("<", x, v.constant(beyond)))
        whole = b.fptosi(b.select(inside, x, v.constant(0.0)), LANES)
        return b.select(inside, whole, _constant(-(1 << (bits - 1))))

    return v.intrinsic(emit, "v", "i")


def convert_rows(v: Lanes, read: Any, write: Any) -> Any:
    """out = x as another kind, row by row."""
    load = v.intrinsic(lambda b, at: v.load(b, at, aligned=False), "a", "v")
    store = v.intrinsic(lambda b, at, x: v.store(b, x, at, aligned=False), "av", "")
    to_float = v.intrinsic(lambda b, x: b.sitofp(x, v.vector), "i", "v")
    truth = v.intrinsic(lambda b, x: b.zext(b.fcmp_unordered("!=", x, v.constant(0.0)), LANES), "v", "i")
    whole32, whole64 = _to_integers(v, 32), _to_integers(v, 64)
    size = v.bytes
    X, X_STRIDE, OUT, OUT_STRIDE, COLUMNS, ROWS, TIMED, FROM, TO = (int(f) for f in Convert)

    @kernel
    def integers(source, target, at):  # type: ignore[no-untyped-def]
        if source != FLOAT:
            return read(source, at)
        if target == BOOL:
            return truth(load(at))
        if target in (INT64_KIND, UINT32):
            return whole64(load(at))
        return whole32(load(at))

    @kernel
    def convert(ip, cx):  # type: ignore[no-untyped-def]
        never_inline()
        x, xs = locate(cx, field(ip, X)), field(ip, X_STRIDE)
        out, os = locate(cx, field(ip, OUT)), field(ip, OUT_STRIDE)
        source, target = field(ip, FROM), field(ip, TO)
        rows, width = steps(ip, cx, TIMED) * field(ip, ROWS), field(ip, COLUMNS)
        from_bytes, to_bytes = bytes_of(source, size), bytes_of(target, size)
        r = 0
        while r < rows:
            j = 0
            while j < width:
                lanes = integers(source, target, x + r * xs + j * from_bytes)
                to = out + r * os + j * to_bytes
                if target == FLOAT:
                    store(to, to_float(lanes))
                else:
                    write(target, to, lanes)
                j += WIDTH
            r += 1
        return 0

    return convert


def combination_of_integers() -> Any:
    """combine(code, x, y): lanes through the operation of a code (encoding.Comparison)."""

    def compared(how: str) -> Any:
        return integer_lanes.intrinsic(lambda b, x, y: b.zext(b.icmp_signed(how, x, y), LANES), "ii", "i")

    def chosen(how: str) -> Any:
        return integer_lanes.intrinsic(lambda b, x, y: b.select(b.icmp_signed(how, x, y), x, y), "ii", "i")

    add = integer_lanes.intrinsic(lambda b, x, y: b.add(x, y), "ii", "i")
    subtract = integer_lanes.intrinsic(lambda b, x, y: b.sub(x, y), "ii", "i")
    multiply = integer_lanes.intrinsic(lambda b, x, y: b.mul(x, y), "ii", "i")
    least, most = chosen("<"), chosen(">")
    equal, different, less, less_or_equal = (compared(how) for how in ("==", "!=", "<", "<="))

    @kernel
    def combine(code, x, y):  # type: ignore[no-untyped-def]
        if code == ADD:
            return add(x, y)
        if code == SUBTRACT:
            return subtract(x, y)
        if code == MULTIPLY:
            return multiply(x, y)
        if code == MINIMUM:
            return least(x, y)
        if code == MAXIMUM:
            return most(x, y)
        if code == EQUAL:
            return equal(x, y)
        if code == DIFFERENT:
            return different(x, y)
        if code == LESS:
            return less(x, y)
        return less_or_equal(x, y)

    return combine


def comparison_of_floats(v: Lanes) -> Any:
    """compare(code, x, y): 1 where it holds; never of a NaN."""

    def compared(how: str) -> Any:
        return v.intrinsic(lambda b, x, y: b.zext(b.fcmp_ordered(how, x, y), LANES), "vv", "i")

    equal, less, less_or_equal = (compared(how) for how in ("==", "<", "<="))

    @kernel
    def compare(code, x, y):  # type: ignore[no-untyped-def]
        if code == EQUAL:
            return equal(x, y)
        if code == LESS:
            return less(x, y)
        return less_or_equal(x, y)

    return compare


def join_integers(v: Lanes, read: Any, broadcast: Any, write: Any) -> Any:
    """out = f(x, y), row by row, of integers, or a comparison of floats; operands may stand still as those of JOIN."""
    load = v.intrinsic(lambda b, at: v.load(b, at, aligned=False), "a", "v")
    spread = v.intrinsic(v.broadcast, "a", "v")
    combine, compare = combination_of_integers(), comparison_of_floats(v)
    size = v.bytes
    (
        X, X_STEP, X_ROW, X_SINGLE, Y, Y_STEP, Y_ROW, Y_SINGLE, OUT, OUT_STEP, OUT_ROW, COLUMNS, ROWS, TIMED, FUNCTION,
        KIND, OUT_KIND,
    ) = (int(f) for f in Integers)  # fmt: skip

    @kernel
    def floats(at, single, j):  # type: ignore[no-untyped-def]
        return spread(at) if single != 0 else load(at + j * size)

    @kernel
    def integers(kind, item, at, single, j):  # type: ignore[no-untyped-def]
        return broadcast(kind, at) if single != 0 else read(kind, at + j * item)

    @kernel
    def join_row(ip, x, y, out):  # type: ignore[no-untyped-def]
        never_inline()
        x_single, y_single = field(ip, X_SINGLE), field(ip, Y_SINGLE)
        code, width, kind, made = field(ip, FUNCTION), field(ip, COLUMNS), field(ip, KIND), field(ip, OUT_KIND)
        item, made_bytes = bytes_of(kind, size), bytes_of(made, size)
        j = 0
        while j < width:
            if kind == FLOAT:
                lanes = compare(code, floats(x, x_single, j), floats(y, y_single, j))
            else:
                lanes = combine(code, integers(kind, item, x, x_single, j), integers(kind, item, y, y_single, j))
            write(made, out + j * made_bytes, lanes)
            j += WIDTH

    @kernel
    def join(ip, cx):  # type: ignore[no-untyped-def]
        never_inline()
        x, y, out = locate(cx, field(ip, X)), locate(cx, field(ip, Y)), locate(cx, field(ip, OUT))
        rows, T = field(ip, ROWS), steps(ip, cx, TIMED)
        t = 0
        while t < T:
            b = 0
            while b < rows:
                join_row(
                    ip,
                    x + t * field(ip, X_STEP) + b * field(ip, X_ROW),
                    y + t * field(ip, Y_STEP) + b * field(ip, Y_ROW),
                    out + t * field(ip, OUT_STEP) + b * field(ip, OUT_ROW),
                )
                b += 1
            t += 1
        return 0

    return join


def select_rows(read: Any, broadcast: Any, write: Any) -> Any:
    """out = x where the condition holds, else y: whatever the bits mean."""
    choose = integer_lanes.intrinsic(
        lambda b, c, x, y: b.select(b.icmp_unsigned("!=", c, _constant(0)), x, y), "iii", "i"
    )
    (
        C, C_STEP, C_ROW, C_SINGLE, X, X_STEP, X_ROW, X_SINGLE, Y, Y_STEP, Y_ROW, Y_SINGLE, OUT, OUT_STEP, OUT_ROW,
        COLUMNS, ROWS, TIMED, KIND,
    ) = (int(f) for f in Select)  # fmt: skip

    @kernel
    def lanes(kind, at, single, j):  # type: ignore[no-untyped-def]
        return broadcast(kind, at) if single != 0 else read(kind, at + j * bytes_of(kind, 0))

    @kernel
    def select_row(ip, c, x, y, out):  # type: ignore[no-untyped-def]
        never_inline()
        c_single, x_single, y_single = field(ip, C_SINGLE), field(ip, X_SINGLE), field(ip, Y_SINGLE)
        kind, width = field(ip, KIND), field(ip, COLUMNS)
        j = 0
        while j < width:
            chosen = choose(lanes(BOOL, c, c_single, j), lanes(kind, x, x_single, j), lanes(kind, y, y_single, j))
            write(kind, out + j * bytes_of(kind, 0), chosen)
            j += WIDTH

    @kernel
    def select(ip, cx):  # type: ignore[no-untyped-def]
        never_inline()
        c, x, y = locate(cx, field(ip, C)), locate(cx, field(ip, X)), locate(cx, field(ip, Y))
        out, rows, T = locate(cx, field(ip, OUT)), field(ip, ROWS), steps(ip, cx, TIMED)
        t = 0
        while t < T:
            b = 0
            while b < rows:
                select_row(
                    ip,
                    c + t * field(ip, C_STEP) + b * field(ip, C_ROW),
                    x + t * field(ip, X_STEP) + b * field(ip, X_ROW),
                    y + t * field(ip, Y_STEP) + b * field(ip, Y_ROW),
                    out + t * field(ip, OUT_STEP) + b * field(ip, OUT_ROW),
                )
                b += 1
            t += 1
        return 0

    return select


def kernels(v: Lanes) -> dict[str, Any]:
    """The kernels of this file by the name the executor calls them."""
    read, broadcast, write = _memory()
    return {
        "convert": convert_rows(v, read, write),
        "join_integers": join_integers(v, read, broadcast, write),
        "select": select_rows(read, broadcast, write),
    }
