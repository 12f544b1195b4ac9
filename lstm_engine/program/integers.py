"""Lowering of what is computed in integers and booleans: conversions, arithmetic, comparisons, choices."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from ..encoding import Comparison, Convert, Integers, Kind, Opcode, Select
from ..graph import Node
from .lower import Lowering, NoInstructionError, emits
from .packing import LANES
from .program import Pinned, Rows
from .rearranging import spread

KINDS: Final = {
    np.dtype(name): kind
    for name, kind in {
        "bool": Kind.BOOL,
        "int8": Kind.INT8,
        "uint8": Kind.UINT8,
        "int16": Kind.INT16,
        "uint16": Kind.UINT16,
        "int32": Kind.INT32,
        "uint32": Kind.UINT32,
        "int64": Kind.INT64,
    }.items()
}
#: Integers as large as an element: what SELECT moves has no meaning for it.
SIZED: Final = {1: Kind.INT8, 2: Kind.INT16, 4: Kind.INT32, 8: Kind.INT64}
#: Each operator's code, and whether its operands change places.
COMPARISONS: Final = {
    "Equal": (Comparison.EQUAL, False),
    "Less": (Comparison.LESS, False),
    "LessOrEqual": (Comparison.LESS_OR_EQUAL, False),
    "Greater": (Comparison.LESS, True),
    "GreaterOrEqual": (Comparison.LESS_OR_EQUAL, True),
    "And": (Comparison.MINIMUM, False),
    "Or": (Comparison.MAXIMUM, False),
    "Xor": (Comparison.DIFFERENT, False),
}
ARITHMETIC: Final = {
    "Add": Comparison.ADD,
    "Sub": Comparison.SUBTRACT,
    "Mul": Comparison.MULTIPLY,
    "Min": Comparison.MINIMUM,
    "Max": Comparison.MAXIMUM,
}


def kind_of(low: Lowering, dtype: np.dtype[Any]) -> Kind:
    """The kind of a type of numbers that there are lanes for."""
    if dtype == low.dtype:
        return Kind.FLOAT
    if dtype not in KINDS:
        raise NoInstructionError(f"{dtype} operand in a {low.dtype} program")
    return KINDS[dtype]


def are_integers(low: Lowering, name: str) -> bool:
    """Whether a tensor is of integers or booleans."""
    return low.known.dtypes[name].kind in "biu"


def number(low: Lowering, value: Any, dtype: np.dtype[Any]) -> Rows:
    """One number as rows that stand still."""
    packed = low.store.shared(np.full(LANES, value, dtype), dtype)
    return Rows(Pinned(packed), 0, False, False, 1, dtype)


@emits("Cast")
def lower_cast(low: Lowering, node: Node) -> None:
    """A cast to the same type is a view."""
    x, made = low.read(node.input(0)), low.known.dtypes[node.output(0)]
    if x.dtype == made:
        low.rows[node.output(0)] = x
        return
    source, target = kind_of(low, x.dtype), kind_of(low, made)
    if low.form(node.output(0)) != low.form(node.input(0)):
        raise NoInstructionError("it reorders the elements of a row")
    out = low.new_rows(node.output(0), x.timed, x.batched, x.width, made, together=x.together)
    low.emit(
        Opcode.CONVERT,
        {
            Convert.X: x.place,
            Convert.X_STRIDE: x.stride,
            Convert.OUT: out.place,
            Convert.OUT_STRIDE: out.stride,
            Convert.WIDTH: x.width,
            Convert.ROWS: low.per_step(x),
            Convert.TIMED: int(x.timed),
            Convert.FROM: int(source),
            Convert.TO: int(target),
        },
        f"{x.dtype} to {made} of {x.width}",
        operations=x.width * low.per_step(x),
    )
    low.rows[node.output(0)] = out


@emits(*COMPARISONS)
def lower_comparison(low: Lowering, node: Node) -> None:
    """Whether x and y are so; And, Or and Xor are arithmetic of 0 and 1."""
    operation, swapped = COMPARISONS[node.op]
    x, y = (operand(low, name, node.output(0)) for name in node.inputs)
    if swapped:
        x, y = y, x
    low.rows[node.output(0)] = emit_integers(low, node.output(0), operation, x, y)


@emits("Not")
def lower_not(low: Lowering, node: Node) -> None:
    """Whether x is 0."""
    x = operand(low, node.input(0), node.output(0))
    zero = number(low, False, x.dtype)
    low.rows[node.output(0)] = emit_integers(low, node.output(0), Comparison.EQUAL, x, zero)


def lower_arithmetic(low: Lowering, node: Node) -> None:
    """x + y, x - y, x·y, the lesser or the greater of integers, which wrap around."""
    if node.op not in ARITHMETIC or len(node.inputs) != 2:
        raise NoInstructionError("no instruction for it on integers")
    x, y = (operand(low, name, node.output(0)) for name in node.inputs)
    low.rows[node.output(0)] = emit_integers(low, node.output(0), ARITHMETIC[node.op], x, y)


def lower_bounds(low: Lowering, node: Node) -> None:
    """Clip of integers: at least the one bound, then at most the other."""
    name, x = node.output(0), low.read(node.input(0))
    kind_of(low, x.dtype)
    if low.form(name) != low.form(node.input(0)):
        raise NoInstructionError("it reorders the elements of a row")
    for index, operation in ((1, Comparison.MAXIMUM), (2, Comparison.MINIMUM)):
        value = low.value(node.input(index)) if node.input(index) else None
        if node.input(index) and (value is None or value.size != 1):
            raise NoInstructionError("its bounds are computed at run time")
        if value is not None:
            x = emit_integers(low, name, operation, x, number(low, value.reshape(-1)[0], x.dtype))
    low.rows[name] = x


def operand(low: Lowering, name: str, result: str) -> Rows:
    """An operand as rows of the result's width, or of width 1."""
    kind_of(low, low.known.dtypes[name])
    form, own = low.form(result), low.form(name)
    if low.roles.aligned(name, result) and (not own.width or own.width == form.width):
        return low.read(name)
    return spread(low, name, result)


def emit_integers(low: Lowering, result: str, operation: Comparison, x: Rows, y: Rows) -> Rows:
    """Append INTEGERS for rows of one width, or of width 1; returns where its result lies."""
    if x.dtype != y.dtype:
        raise NoInstructionError("its operands are of different types")
    if max(x.together, y.together) > 1:
        raise NoInstructionError("its rows hold several vectors")
    width, dtype = low.roles.size(low.form(result).width), low.known.dtypes[result]
    out = low.new_rows(result, x.timed or y.timed, x.batched or y.batched, width, dtype)
    low.emit(
        Opcode.INTEGERS,
        {
            Integers.X: x.place,
            Integers.X_STEP: low.step_stride(x),
            Integers.X_ROW: x.stride if x.batched else 0,
            Integers.X_SINGLE: int(x.width == 1),
            Integers.Y: y.place,
            Integers.Y_STEP: low.step_stride(y),
            Integers.Y_ROW: y.stride if y.batched else 0,
            Integers.Y_SINGLE: int(y.width == 1),
            Integers.OUT: out.place,
            Integers.OUT_STEP: low.step_stride(out),
            Integers.OUT_ROW: out.stride,
            Integers.WIDTH: width,
            Integers.ROWS: low.per_step(out),
            Integers.TIMED: int(out.timed),
            Integers.FUNCTION: int(operation),
            Integers.KIND: int(kind_of(low, x.dtype)),
            Integers.OUT_KIND: int(kind_of(low, dtype)),
        },
        f"{operation.name.lower()} of {width} {x.dtype}",
        operations=width * low.per_step(out),
    )
    return out


@emits("Where")
def lower_where(low: Lowering, node: Node) -> None:
    """x or y, element by element."""
    result = node.output(0)
    condition, x, y = (_movable(low, name, result) for name in node.inputs)
    if x.dtype != y.dtype or condition.dtype != bool or max(r.together for r in (condition, x, y)) > 1:
        raise NoInstructionError("its operands are of different types")
    width = low.roles.size(low.form(result).width)
    timed, batched = (any(getattr(r, role) for r in (condition, x, y)) for role in ("timed", "batched"))
    out = low.new_rows(result, timed, batched, width, x.dtype)
    fields: dict[Select, Any] = {}
    for rows, (place, step, row, single) in zip((condition, x, y), _SELECTED, strict=True):
        fields |= {
            place: rows.place,
            step: low.step_stride(rows),
            row: rows.stride if rows.batched else 0,
            single: int(rows.width == 1),
        }
    low.emit(
        Opcode.SELECT,
        {
            **fields,
            Select.OUT: out.place,
            Select.OUT_STEP: low.step_stride(out),
            Select.OUT_ROW: out.stride,
            Select.WIDTH: width,
            Select.ROWS: low.per_step(out),
            Select.TIMED: int(out.timed),
            Select.KIND: int(SIZED[x.dtype.itemsize]),
        },
        f"of {width} {x.dtype}",
        operations=width * low.per_step(out),
    )
    low.rows[result] = out


_SELECTED: Final = (
    (Select.CONDITION, Select.CONDITION_STEP, Select.CONDITION_ROW, Select.CONDITION_SINGLE),
    (Select.X, Select.X_STEP, Select.X_ROW, Select.X_SINGLE),
    (Select.Y, Select.Y_STEP, Select.Y_ROW, Select.Y_SINGLE),
)


def _movable(low: Lowering, name: str, result: str) -> Rows:
    """As operand(), of any type whose elements are as large as some integer."""
    dtype = low.known.dtypes[name]
    if dtype.itemsize not in SIZED or dtype.kind not in "fbiu":
        raise NoInstructionError(f"{dtype} operand in a {low.dtype} program")
    form, own = low.form(result), low.form(name)
    if low.roles.aligned(name, result) and (not own.width or own.width == form.width):
        return low.read(name)
    return spread(low, name, result)
