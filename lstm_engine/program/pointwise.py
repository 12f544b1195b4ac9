"""Lowering of elementwise operators and softmax."""

from __future__ import annotations

from functools import partial
from typing import Final

import numpy as np

from ..encoding import Dense, Function, Join, Map, Opcode, Operation, Softmax
from ..graph import Node
from ..reference import OPERATORS
from .lower import Lowering, NoInstructionError, emits
from .packing import aligned_copy
from .program import Instruction, Pinned, Rows

MAPS: Final = {
    "Sigmoid": Function.SIGMOID,
    "Tanh": Function.TANH,
    "Relu": Function.RELU,
    "LeakyRelu": Function.LEAKY_RELU,
    "ThresholdedRelu": Function.THRESHOLDED_RELU,
    "HardSigmoid": Function.HARD_SIGMOID,
    "Elu": Function.ELU,
    "Softsign": Function.SOFTSIGN,
    "Softplus": Function.SOFTPLUS,
    "Exp": Function.EXP,
    "Log": Function.LOG,
    "Neg": Function.NEGATE,
    "Abs": Function.ABSOLUTE,
    "Sqrt": Function.SQRT,
    "Reciprocal": Function.RECIPROCAL,
}
JOINS: Final = {
    "Add": Operation.ADD,
    "Sub": Operation.SUBTRACT,
    "Mul": Operation.MULTIPLY,
    "Div": Operation.DIVIDE,
    "Min": Operation.MINIMUM,
    "Max": Operation.MAXIMUM,
}


@emits(*MAPS)
def lower_map(low: Lowering, node: Node) -> None:
    """f(x), with the operator's own defaults."""
    known = OPERATORS[node.op].defaults
    alpha, beta = (float(node.attributes.get(name, known.get(name, 0.0))) for name in ("alpha", "beta"))
    emit_map(low, node, MAPS[node.op], alpha, beta)


@emits("Clip")
def lower_clip(low: Lowering, node: Node) -> None:
    """Constant bounds."""
    bounds = []
    for index, default in ((1, -np.inf), (2, np.inf)):
        name = node.input(index)
        value = low.value(name) if name else np.array(default)
        if value is None or value.size != 1:
            raise NoInstructionError("its bounds are computed at run time")
        bounds.append(float(value.reshape(-1)[0]))
    emit_map(low, node, Function.BOUND, *bounds)


def emit_map(low: Lowering, node: Node, function: Function, alpha: float, beta: float) -> None:
    """Append MAP and give its result to the node's output."""
    x = low.read_float(node.input(0))
    if not isinstance(x, Rows) or low.form(node.output(0)).width != low.form(node.input(0)).width:
        raise NoInstructionError("its operand is broadcast")
    out = low.new_rows(node.output(0), x.timed, x.batched, x.width, low.dtype)
    low.emit(
        Opcode.MAP,
        {
            Map.X: x.place,
            Map.X_STRIDE: x.stride,
            Map.OUT: out.place,
            Map.OUT_STRIDE: out.stride,
            Map.WIDTH: x.width,
            Map.ROWS: low.per_step(x),
            Map.TIMED: int(x.timed),
            Map.FUNCTION: int(function),
            Map.ALPHA: int(np.float64(alpha).view(np.int64)),
            Map.BETA: int(np.float64(beta).view(np.int64)),
        },
        f"{function.name.lower()} of {x.width}",
        operations=x.width * low.per_step(x),
    )
    low.rows[node.output(0)] = out


@emits(*JOINS)
def lower_join(low: Lowering, node: Node) -> None:
    """f(x, y), either broadcast over time, batch or the whole row."""
    if len(node.inputs) != 2:
        raise NoInstructionError("it has other than two operands")
    if node.op == "Add" and _fold_bias(low, node):
        return
    form = low.form(node.output(0))
    width = low.roles.size(form.width)
    operands = [low.read_float(name) for name in node.inputs]
    for name, rows in zip(node.inputs, operands, strict=True):
        if rows.width not in (1, width) or (rows.width == width and low.form(name).width != form.width):
            raise NoInstructionError("an operand is broadcast within rows")
    x, y = operands
    out = low.new_rows(node.output(0), x.timed or y.timed, x.batched or y.batched, width, low.dtype)
    low.emit(
        Opcode.JOIN,
        {
            Join.X: x.place,
            Join.X_STEP: low.step_stride(x),
            Join.X_ROW: x.stride if x.batched else 0,
            Join.X_SINGLE: int(x.width == 1 and width > 1),
            Join.Y: y.place,
            Join.Y_STEP: low.step_stride(y),
            Join.Y_ROW: y.stride if y.batched else 0,
            Join.Y_SINGLE: int(y.width == 1 and width > 1),
            Join.OUT: out.place,
            Join.OUT_STEP: low.step_stride(out),
            Join.OUT_ROW: out.stride,
            Join.WIDTH: width,
            Join.ROWS: low.per_step(out),
            Join.TIMED: int(out.timed),
            Join.FUNCTION: int(JOINS[node.op]),
        },
        f"{JOINS[node.op].name.lower()} of {width}",
        operations=width * low.per_step(out),
    )
    low.rows[node.output(0)] = out


def _fold_bias(low: Lowering, node: Node) -> bool:
    """MatMul + a constant vector is one dense layer: put the vector where the product starts from."""
    for product, vector in ((node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])):
        value = low.value(vector)
        rows = low.rows.get(product)
        if value is None or rows is None or len(low.consumers.get(product, ())) != 1:
            continue
        if any(product == spec.name for spec in low.graph.outputs):
            continue
        made = next((i for i, ins in enumerate(low.instructions) if ins.fields.get(Dense.OUT) == rows.place), None)
        if made is None or low.instructions[made].opcode != Opcode.DENSE:
            continue
        if value.ndim == 0 or value.shape[-1] != value.size or value.size != rows.width:
            continue
        before = low.instructions[made]
        held = before.fields[Dense.BIAS]
        if not isinstance(held, Pinned) or held.array.any():
            continue
        padded = np.zeros(held.array.size, low.dtype)
        padded[: value.size] = value.reshape(-1)
        packed = low.store.get(("dense bias", padded.tobytes()), partial(aligned_copy, padded, low.dtype))
        low.instructions[made] = Instruction(
            before.opcode,
            {**before.fields, Dense.BIAS: Pinned(packed)},
            before.node,
            before.note,
            before.weight_bytes,
            before.operations,
        )
        low.rows[node.output(0)] = rows
        return True
    return False


@emits("Softmax", "LogSoftmax")
def lower_softmax(low: Lowering, node: Node) -> None:
    """Along the whole row."""
    rank = len(low.shape(node.input(0)))
    axis = int(node.attributes.get("axis", -1)) % rank
    form = low.form(node.input(0))
    flattened = node.attributes.get("flatten_from")
    reduced = (
        tuple(a for each in low.roles.axes[node.input(0)][flattened % rank :] for a in each)
        if flattened is not None
        else low.roles.axes[node.input(0)][axis]
    )
    if form.width != reduced:
        raise NoInstructionError("it does not run along whole rows")
    x = low.read_float(node.input(0))
    out = low.new_rows(node.output(0), x.timed, x.batched, x.width, low.dtype)
    low.emit(
        Opcode.SOFTMAX,
        {
            Softmax.X: x.place,
            Softmax.X_STRIDE: x.stride,
            Softmax.OUT: out.place,
            Softmax.OUT_STRIDE: out.stride,
            Softmax.WIDTH: x.width,
            Softmax.ROWS: low.per_step(x),
            Softmax.TIMED: int(x.timed),
            Softmax.LOG: int(node.op == "LogSoftmax"),
        },
        f"{node.op.lower()} over {x.width}",
        operations=3 * x.width * low.per_step(x),
    )
    low.rows[node.output(0)] = out
