"""Lowering of elementwise operators and softmax."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Final

import numpy as np

from ..encoding import Convolution, Dense, Function, Join, Map, Opcode, Operation, Softmax
from ..graph import Node
from ..reference import OPERATORS
from .integers import are_integers, lower_arithmetic, lower_bounds
from .lower import Lowering, NoInstructionError, emits
from .program import Pinned, Rows
from .rearranging import MOST_ELEMENTS, TOO_LARGE, spread

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
    "PRelu": Operation.RECTIFY,
}


@emits(*MAPS)
def lower_map(low: Lowering, node: Node) -> None:
    """f(x), with the operator's own defaults."""
    if node.op == "Relu" and _fold_floor(low, node):
        return
    known = OPERATORS[node.op].defaults
    alpha, beta = (float(node.attributes.get(name, known.get(name, 0.0))) for name in ("alpha", "beta"))
    emit_map(low, node, MAPS[node.op], alpha, beta)


def _fold_floor(low: Lowering, node: Node) -> bool:
    """A convolution and a Relu are one instruction: nothing below 0 is written."""
    x = node.input(0)
    made = low.sole_makers(x, Opcode.CONVOLUTION, Convolution.OUT)
    if not made or low.form(x) != low.form(node.output(0)):
        return False
    for index in made:
        before = low.instructions[index]
        note = f"{before.note}, relu"
        fields = {**before.fields, Convolution.FLOOR: int(np.float64(0.0).view(np.int64))}
        low.instructions[index] = replace(before, fields=fields, note=note)
    low.rows[node.output(0)] = low.rows[x]
    return True


@emits("Clip")
def lower_clip(low: Lowering, node: Node) -> None:
    """Constant bounds."""
    if are_integers(low, node.input(0)):
        lower_bounds(low, node)
        return
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
    if are_integers(low, node.output(0)):
        lower_arithmetic(low, node)
        return
    if node.op == "Add" and _fold_bias(low, node):
        return
    x, y = (_operand(low, name, node.output(0)) for name in node.inputs)
    low.rows[node.output(0)] = emit_join(low, node.output(0), JOINS[node.op], x, y)


def _operand(low: Lowering, name: str, result: str) -> Rows:
    """An operand as rows of the result's width, or of width 1."""
    form = low.form(result)
    if low.dtype != low.known.dtypes[name]:
        raise NoInstructionError(f"{low.known.dtypes[name]} operand in a {low.dtype} program")
    single = not low.form(name).width
    if low.roles.aligned(name, result) and (single or low.form(name).width == form.width):
        return low.read_float(name)
    return spread(low, name, result)


def emit_join(low: Lowering, result: str, operation: Operation, x: Rows, y: Rows) -> Rows:
    """Append JOIN of rows of one width, or of width 1; returns where its result lies."""
    width = low.roles.size(low.form(result).width)
    out = low.new_rows(result, x.timed or y.timed, x.batched or y.batched, width, low.dtype)
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
            Join.FUNCTION: int(operation),
        },
        f"{operation.name.lower()} of {width}",
        operations=width * low.per_step(out),
    )
    return out


def _fold_bias(low: Lowering, node: Node) -> bool:
    """MatMul + a constant vector is one dense layer: put the vector where the product starts from."""
    for product, vector in ((node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])):
        value = low.value(vector)
        if value is None or value.ndim == 0 or value.shape[-1] != value.size:
            continue
        made = low.sole_makers(product, Opcode.DENSE, Dense.OUT)
        if len(made) != 1 or value.size != low.rows[product].width or low.form(product) != low.form(node.output(0)):
            continue
        before = low.instructions[made[0]]
        held = before.fields[Dense.BIAS]
        if not isinstance(held, Pinned) or held.array.any():
            continue
        padded = np.zeros(held.array.size, low.dtype)
        padded[: value.size] = value.reshape(-1)
        packed = low.store.shared(padded, low.dtype)
        low.instructions[made[0]] = replace(before, fields={**before.fields, Dense.BIAS: Pinned(packed)})
        low.rows[node.output(0)] = low.rows[product]
        return True
    return False


@emits("Pow")
def lower_power(low: Lowering, node: Node) -> None:
    """A constant exponent that a product, a root or a reciprocal says."""
    exponent = low.value(node.input(1))
    if exponent is None or exponent.size != 1 or low.shape(node.input(0)) != low.shape(node.output(0)):
        raise NoInstructionError("its exponent is not one known number")
    value = float(exponent.reshape(-1)[0])
    if value == 2.0:
        x = low.read_float(node.input(0))
        low.rows[node.output(0)] = emit_join(low, node.output(0), Operation.MULTIPLY, x, x)
    elif value in _POWERS:
        emit_map(low, node, _POWERS[value], 1.0, 0.0)
    else:
        raise NoInstructionError(f"its exponent is {value}")


#: Powers that are functions of their own, as NumPy has it (C's pow(-∞, ½) alone is another: ∞, not NaN).
_POWERS: Final = {1.0: Function.AFFINE, -1.0: Function.RECIPROCAL, 0.5: Function.SQRT}


@emits("BatchNormalization")
def lower_normalisation(low: Lowering, node: Node) -> None:
    """x·s + t, with what training measured folded into s and t."""
    if node.attributes.get("training_mode", 0) or any(node.outputs[1:]):
        raise NoInstructionError("it learns")
    known = [low.value(name) for name in node.inputs[1:5]]
    if any(value is None for value in known):
        raise NoInstructionError("its statistics are computed at run time")
    scale, shift, mean, variance = (np.asarray(value, np.float64) for value in known)
    factor = scale / np.sqrt(variance + float(node.attributes.get("epsilon", 1e-5)))
    name, shape = node.output(0), low.shape(node.output(0))
    if prod(shape) > MOST_ELEMENTS:
        raise NoInstructionError(TOO_LARGE)
    sizes = (-1, *(1,) * (len(shape) - 2))
    rows = []
    for values in (factor, shift - mean * factor):
        row = np.broadcast_to(values.reshape(sizes), shape).astype(low.dtype)
        rows.append(low.constant_rows(name, row))
    x = _operand(low, node.input(0), name)
    product = emit_join(low, name, Operation.MULTIPLY, x, rows[0])
    low.rows[name] = emit_join(low, name, Operation.ADD, product, rows[1])


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
    low.rows[node.output(0)] = emit_softmax(low, node, low.read_float(node.input(0)))


def emit_softmax(low: Lowering, node: Node, x: Rows) -> Rows:
    """Append SOFTMAX; returns where its result lies."""
    out = low.new_rows(node.output(0), x.timed, x.batched, x.width, low.dtype, together=x.together)
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
    return out
