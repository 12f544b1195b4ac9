"""Lowering of the recurrent layers: LSTM, GRU, RNN, one instruction a direction."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, count
from math import prod
from typing import Any, Final

import numpy as np

from ..encoding import PREPARED_AT_ONCE, SHARE_WORDS, WORD_BYTES, Cell, Function, Lstm, Opcode, Recurrent
from ..errors import StreamingError
from ..graph import Node
from ..machine import cache_sizes, target
from ..passes.states import node_key
from ..reference import Activation, CellAttributes, cell_attributes
from ..reference.layers import BLOCKS
from .layers import optional_weights, prepared_rows, source, weights
from .lower import FEWEST_STEPS, Lowering, NoInstructionError, emits, falls_back
from .packing import LANES, aligned_copy, blocks, pack_dense, pack_gates, pack_narrow, pack_planes, pack_vectors
from .program import Field, Pinned, Place, Rows, Traced
from .rearranging import emit_pieces, rearranged_row

#: Codes of the gate activations, by ONNX's names in lower case.
GATE_FUNCTIONS: Final = {
    "sigmoid": Function.SIGMOID,
    "tanh": Function.TANH,
    "relu": Function.RELU,
    "affine": Function.AFFINE,
    "leakyrelu": Function.LEAKY_RELU,
    "thresholdedrelu": Function.THRESHOLDED_RELU,
    "scaledtanh": Function.SCALED_TANH,
    "hardsigmoid": Function.HARD_SIGMOID,
    "elu": Function.ELU,
    "softsign": Function.SOFTSIGN,
    "softplus": Function.SOFTPLUS,
}
#: A step is cut into shares of at least so long, by what a core roughly does.
SECONDS_A_SHARE: Final = 1.5e-6
BYTES_PER_SECOND: Final = 80e9
OPERATIONS_PER_SECOND: Final = 80e9
#: Below this many bytes of input weights, with one row a step, projecting ahead saves nothing
#: (bench row `sequence-h16-b1`, whose 4 KB are where it begins to).
HOIST_BYTES: Final = 4 << 10
#: Rows projected at a time, where the weights lie in the second-level cache and where they do not: more rows read far
#: weights less often, fewer keep the projections near (bench rows `sequence-h256-b16` and `sequence-h512-b16`).
NEAR_ROWS: Final = 64
FAR_ROWS: Final = 256
LIKELY_L2: Final = 1 << 20


@dataclass(frozen=True)
class Direction:
    """One direction of a layer: which one, and the rows it reads and writes."""

    index: int
    name: str
    x: Rows
    y: Rows
    h: Rows
    c: Rows | None
    timed: bool
    lengths: Rows | None
    rows: int  # per time step
    inner: Inner | None = None


@dataclass(frozen=True)
class Inner:
    """A sequence within each row of the program, over an axis that is not the program's time.

    Strides in bytes between the ``steps``, and between the ``together`` batch rows that a row holds, in x and y.
    """

    steps: int
    together: int
    inputs: int
    x_step: int
    x_row: int
    y_step: int
    y_row: int


@emits("LSTM", "GRU", "RNN")
def lower_recurrent(low: Lowering, node: Node) -> None:
    """One instruction a direction, and copies that bring Y, Y_h and Y_c together."""
    attributes = cell_attributes(node.op, node.attributes)
    W, R = (weights(low, node, index) for index in (1, 2))
    x, timed = _input_rows(low, node, attributes)
    lengths = _lengths(low, node)
    if low.plan.causal and timed and (len(attributes.directions) > 1 or attributes.directions[0] == "reverse"):
        raise StreamingError(
            f"{node.label} runs {'both ways' if len(attributes.directions) > 1 else 'backwards'}: "
            "it needs the whole sequence"
        )
    units, width = R.shape[1] // BLOCKS[node.op], R.shape[2]
    directions = len(attributes.directions)
    Y = _sequence_rows(low, node, directions, width, timed, own=lengths is not None)
    ends = []
    for d, name in enumerate(attributes.directions):
        h = _state(low, node, "h", d, width)
        c = _state(low, node, "c", d, units) if node.op == "LSTM" else None
        y = _direction_rows(low, node, Y, directions, d, width, timed, clear=lengths is not None, units=units)
        direction = Direction(d, name, x, y, h, c, timed, lengths, low.per_step(x))
        low.fallible |= lengths is not None
        _EMITTERS[node.op](low, node, attributes, direction, W[d], R[d])
        if low.plan.traced:
            functions = tuple(activation.name for activation in attributes.activations[d])
            _keep_trace(low, node, name, functions, directions, y, units)
        if y.place != _column_place(Y, d * width):
            low.copy(y, Y.columns(d * width, width))
        ends.append((h, c))
    _deliver(low, node, Y, ends, width, units, timed)


def _emit_lstm(
    low: Lowering, node: Node, attributes: CellAttributes, direction: Direction, W: np.ndarray, R: np.ndarray
) -> None:
    c, lengths = direction.c, direction.lengths
    assert c is not None
    units = W.shape[0] // 4
    fields, plain = _cell_fields(low, node, attributes, direction.index, W, R, optional_weights(low, node, 8))
    fields |= {
        **_walk(Lstm, direction),
        Lstm.C: c.place,
        Lstm.C_STRIDE: c.stride,
        Lstm.GATES: low.buffer(_at_once(low, direction) * 4 * LANES * low.dtype.itemsize, "gates"),
        Lstm.LENGTHS: -1 if lengths is None else lengths.place,
        Lstm.LENGTH_STRIDE: lengths.stride if lengths is not None and lengths.batched else 0,
    }
    if fields[Lstm.PROJECTION] != -1:
        hidden = _at_once(low, direction) * blocks(units) * LANES * low.dtype.itemsize
        fields[Lstm.HIDDEN] = low.buffer(hidden, "hidden")
    weight_bytes = blocks(units) * (low.weights.part_bytes(W.shape[1], 4) + low.weights.part_bytes(R.shape[1], 4))
    operations = 2 * (W.size + R.size) * _steps_a_row(direction) * direction.rows
    general = lengths is not None or not plain
    if low.plan.traced:
        fields[Lstm.TRACE] = _behind(direction)
    row = blocks(units) * 4 * LANES * low.dtype.itemsize
    steps = _steps_ahead(low, direction, W.nbytes)
    fields[Lstm.HOIST] = steps
    if steps:
        fields[Lstm.PRE] = low.buffer(steps * _at_once(low, direction) * row, "input projections")
    fields |= _shares(low, direction, units, weight_bytes, 2 * (W.size + R.size), steps * row)
    fields[Lstm.X_ROOM] = prepared_rows(low, W.shape[1], max(1, steps) * _at_once(low, direction))
    fields[Lstm.H_ROOM] = prepared_rows(low, R.shape[1], _at_once(low, direction))
    opcodes = (Opcode.TRACED_LSTM, Opcode.TRACED_CELL) if low.plan.traced else (Opcode.LSTM, Opcode.CELL)
    low.emit(
        opcodes[general],
        fields,
        _note(low, direction, units, "general cell" if general else "plain cell"),
        weight_bytes,
        operations,
    )


def _behind(direction: Direction) -> int:
    """Bytes from a row of y to what is written down of its step."""
    return blocks(direction.y.width) * LANES * direction.y.dtype.itemsize


def _shares(
    low: Lowering, direction: Direction, units: int, weight_bytes: int, operations: int, pre_bytes: int
) -> dict[Any, Field]:
    """Into how many shares a step is cut, and room for what helpers make; ``operations``, ``pre_bytes``: of a row."""
    rows = _at_once(low, direction)
    products = operations * rows / low.weights.pace
    seconds = max(weight_bytes / BYTES_PER_SECOND, products / OPERATIONS_PER_SECOND)
    parts = max(1, min(low.means.threads, blocks(units), int(seconds / SECONDS_A_SHARE)))
    if parts == 1:
        return {Lstm.PARTS: 1, Lstm.JOBS: -1, Lstm.STAGED: -1, Lstm.PRE_STAGED: -1}
    return {
        Lstm.PARTS: parts,
        Lstm.JOBS: low.apart((parts - 1) * SHARE_WORDS * WORD_BYTES, "shares"),
        Lstm.STAGED: low.apart(staged_bytes(parts, rows, blocks(units), low.dtype.itemsize), "made by helpers"),
        Lstm.PRE_STAGED: low.apart((parts - 1) * rows * pre_bytes, "projections made by helpers") if pre_bytes else -1,
    }


def staged_bytes(parts: int, rows: int, count: int, size: int) -> int:
    """Bytes of what helpers make: c and h of ``count`` blocks of units, and scratch for the gates of one, for each."""
    return (parts - 1) * rows * (2 * count + 4) * LANES * size


@falls_back("LSTM", "GRU", "RNN")
def lower_inner(low: Lowering, node: Node) -> None:
    """A recurrence along an axis within the rows: each row of the program runs its own sequences from the start."""
    attributes = cell_attributes(node.op, node.attributes)
    if low.plan.traced:
        raise NoInstructionError("it runs along an axis within rows, where nothing is written down")
    if node.input(4):
        raise NoInstructionError("it has sequence lengths along an axis within rows")
    W, R = (weights(low, node, index) for index in (1, 2))
    units, width, directions = R.shape[1] // BLOCKS[node.op], R.shape[2], len(attributes.directions)
    x, form = low.read_float(node.input(0)), low.form(node.input(0))
    x = low.uniform(x, x.timed or form.timed, form.batched)  # rows of one input may begin in states of their own
    steps, together = _inner_axes(low, node, attributes)
    padded = blocks(width) * LANES
    x_strides = _inner_strides(steps, together, W.shape[2], attributes.layout)
    y_strides = _inner_strides(steps, together, directions * padded, attributes.layout)
    size = low.dtype.itemsize
    inner = Inner(steps, together, W.shape[2], *(size * stride for stride in (*x_strides, *y_strides)))
    Y = low.new_rows(f"{node.label}.Y", x.timed, x.batched, steps * together * directions * padded, low.dtype)
    ends = []
    for d, name in enumerate(attributes.directions):
        h, c = (
            _inner_state(low, node, kind, d, directions, x, together, n) for kind, n in (("h", width), ("c", units))
        )
        y = Y.columns(d * padded, Y.width - d * padded)
        state = Rows(h.place, h.stride // together, h.timed, h.batched, width, h.dtype)
        cell = Rows(c.place, c.stride // together, c.timed, c.batched, units, c.dtype) if node.op == "LSTM" else None
        direction = Direction(d, name, x, y, state, cell, x.timed, None, low.per_step(x), inner)
        _EMITTERS[node.op](low, node, attributes, direction, W[d], R[d])
        ends.append((h, c))
    _deliver_inner(low, node, attributes, Y, ends, inner, width, units)


def _inner_axes(low: Lowering, node: Node, attributes: CellAttributes) -> tuple[int, int]:
    """Length of the axis it runs along, and how many batch rows lie in a row of the program."""
    name = node.input(0)
    form, axes = low.form(name), low.roles.axes[name]
    rows = (low.roles.time if form.timed else ()) + (low.roles.batch if form.batched else ())
    time, batch, inputs = (axes[1], axes[0], axes[2]) if attributes.layout else axes
    within = tuple(atom for atom in batch if atom not in rows)
    expected = (*within, *time, *inputs) if attributes.layout else (*time, *within, *inputs)
    if set(time) & set(rows) or not set(rows) <= set(batch) or form.width != expected:
        raise NoInstructionError("its time or batch axis lies across the program's")
    return low.roles.size(time), low.roles.size(within)


def _inner_strides(steps: int, together: int, width: int, layout: int) -> tuple[int, int]:
    """Elements from step to step, and from batch row to batch row."""
    return (width, steps * width) if layout else (together * width, width)


def _inner_state(
    low: Lowering, node: Node, kind: str, d: int, directions: int, x: Rows, together: int, width: int
) -> Rows:
    """Scratch for the state of all batch rows in a row of the program, set to where the node begins."""
    plane = blocks(width) * LANES
    state = low.new_rows(f"{node.label}.{kind}{d}", x.timed, x.batched, together * plane, low.dtype)
    if kind == "c" and node.op != "LSTM":
        return state
    _clear(low, state)
    name = node.input(5 if kind == "h" else 6)
    if name:
        layout = int(node.attributes.get("layout", 0))
        numbers = _state_numbers(layout, directions, together, width)
        _within(low, node, name, numbers, 0 if layout else 1)
        source = low.read_float(name)
        columns = np.take(numbers, d, axis=1 if layout else 0).reshape(-1)
        places = (np.arange(together)[:, None] * plane + np.arange(width)).reshape(-1)
        emit_pieces(low, source, state, columns, places)
    return state


def _state_numbers(layout: int, directions: int, together: int, width: int) -> np.ndarray:
    """Columns of a state [D, B, H], or [B, D, H], as a row of the program holds it."""
    shape = (together, directions, width) if layout else (directions, together, width)
    return np.arange(directions * together * width).reshape(shape)


def _within(low: Lowering, node: Node, name: str, numbers: np.ndarray, batch: int) -> None:
    """Refuse a tensor of which the rows are not the program's, or no rows of its ``batch`` axis, or lie otherwise."""
    form, axes = low.form(name), low.roles.axes[name]
    rows = (low.roles.time if form.timed else ()) + (low.roles.batch if form.batched else ())
    if not set(rows) <= set(axes[batch]):
        raise NoInstructionError(f"'{name}' has another batch axis")
    atoms = tuple(atom for axis in low.roles.axes[name] for atom in axis if atom in form.width)
    whole = low.form(node.input(0))
    more = (form.timed and not whole.timed) or (form.batched and not whole.batched)
    if more or form.width != atoms or low.roles.size(form.width) != numbers.size:
        raise NoInstructionError(f"'{name}' lies otherwise than its input")


def _deliver_inner(
    low: Lowering,
    node: Node,
    attributes: CellAttributes,
    Y: Rows,
    ends: list[tuple[Rows, Rows]],
    inner: Inner,
    width: int,
    units: int,
) -> None:
    """Y, Y_h and Y_c without the padding of whole vectors."""
    directions, padded, layout = len(ends), blocks(width) * LANES, attributes.layout
    shape = (inner.together, inner.steps) if layout else (inner.steps, inner.together)
    columns = np.arange(prod(shape) * directions * padded).reshape(*shape, directions, padded)[..., :width]
    if not layout:
        columns = columns.swapaxes(1, 2)  # [T, D, B, H]
    if low.is_read(node.output(0)):
        _within(low, node, node.output(0), columns, 0 if layout else 2)
        low.rows[node.output(0)] = rearranged_row(low, node.output(0), Y, columns.reshape(-1), 0)
    for kind, size in ((0, width), (1, units)):
        name = node.output(1 + kind)
        if not low.is_read(name):
            continue
        numbers = _state_numbers(layout, directions, inner.together, size)
        _within(low, node, name, numbers, 0 if layout else 1)
        out = low.new_rows(name, Y.timed, Y.batched, numbers.size, low.dtype)
        places = (np.arange(inner.together)[:, None] * blocks(size) * LANES + np.arange(size)).reshape(-1)
        for d, both in enumerate(ends):
            emit_pieces(low, both[kind], out, places, np.take(numbers, d, axis=1 if layout else 0).reshape(-1))
        low.rows[name] = out


def _note(low: Lowering, direction: Direction, units: int, kind: str) -> str:
    inner = direction.inner
    sizes = f"I={inner.inputs if inner else direction.x.width} H={units} B={direction.rows}"
    if inner:
        sizes += f" over {inner.steps} × {inner.together} within rows"
    return f"{direction.name} {sizes} {kind} {low.weights.precision} {target().variant}"


def _emit_gated(
    low: Lowering, node: Node, attributes: CellAttributes, direction: Direction, W: np.ndarray, R: np.ndarray
) -> None:
    """GRU and RNN."""
    lengths = direction.lengths
    d, gates = direction.index, BLOCKS[node.op]
    units = W.shape[0] // gates
    cell = Cell.RNN if node.op == "RNN" else Cell.GRU_LINEAR if attributes.linear_before_reset else Cell.GRU
    key = (source(low, node, 1), source(low, node, 2), d, low.dtype.name)
    plane = blocks(units) * LANES * low.dtype.itemsize
    row = plane * (1 if cell == Cell.RNN else 4)
    steps = max(1, _steps_ahead(low, direction, W.nbytes))
    fields: dict[Recurrent, Field] = {
        **_walk(Recurrent, direction),
        Recurrent.BIAS: _planes_bias(low, node, cell, d, units),
        Recurrent.INPUTS: W.shape[1],
        Recurrent.UNITS: units,
        Recurrent.VECTORS: blocks(units),
        Recurrent.SUMS: low.buffer(steps * _at_once(low, direction) * row, "sums"),
        Recurrent.HOIST: steps,
        Recurrent.CELL: int(cell),
        Recurrent.CLIP: _bits(attributes.clip or 0.0),
        Recurrent.LENGTHS: -1 if lengths is None else lengths.place,
        Recurrent.LENGTH_STRIDE: lengths.stride if lengths is not None and lengths.batched else 0,
        Recurrent.R_CANDIDATE: -1,
        Recurrent.RESET: -1,
        Recurrent.ACTIVATIONS: _codes(attributes.activations[d]),
        Recurrent.PARAMETERS: _parameters(low, attributes.activations[d]),
        Recurrent.ROOM: prepared_rows(low, max(W.shape[1], units), PREPARED_AT_ONCE),
        Recurrent.UNIT: int(attributes.within_one(d)),
    }
    # ONNX stacks z, r, n; the sums begin with n, so that what x adds to and what h adds to are each one run of planes.
    from_x, from_h = ([0], [0]) if cell == Cell.RNN else ([2, 0, 1], [0, 1] if cell == Cell.GRU else [0, 1, 2])
    fields[Recurrent.W] = _packed_planes(low, ("from x", *key), W, gates, from_x)
    fields[Recurrent.R] = _packed_planes(low, ("from h", cell, *key), R, gates, from_h)
    if cell == Cell.GRU:
        fields[Recurrent.R_CANDIDATE] = _packed_planes(low, ("candidate", *key), R, gates, [2])
        fields[Recurrent.RESET] = low.buffer(_at_once(low, direction) * plane, "reset h")
    if low.plan.traced:
        fields[Recurrent.TRACE] = _behind(direction)
    low.emit(
        Opcode.TRACED_RECURRENT if low.plan.traced else Opcode.RECURRENT,
        fields,
        _note(low, direction, units, cell.name.lower()),
        gates * blocks(units) * (low.weights.part_bytes(W.shape[1], 1) + low.weights.part_bytes(R.shape[1], 1)),
        2 * (W.size + R.size) * _steps_a_row(direction) * direction.rows,
    )


def _walk(fields: Any, direction: Direction) -> dict[Any, Field]:
    """Where one direction reads and writes, step by step: words that Lstm and Recurrent share."""
    x, y, h, inner = direction.x, direction.y, direction.h, direction.inner
    return {
        fields.X: x.place,
        fields.Y: y.place,
        fields.H: h.place,
        fields.H_STRIDE: h.stride,
        fields.X_STRIDE: inner.x_row if inner and inner.together > 1 else x.stride,
        fields.Y_STRIDE: inner.y_row if inner and inner.together > 1 else y.stride,
        fields.X_STEP: inner.x_step if inner else direction.rows * x.stride,
        fields.Y_STEP: inner.y_step if inner else direction.rows * y.stride,
        fields.X_OUTER: x.stride,
        fields.Y_OUTER: y.stride,
        fields.INNER: inner.steps if inner else 0,
        fields.INNER_ROWS: inner.together if inner else 1,
        fields.ROWS: direction.rows,
        fields.TIMED: int(direction.timed),
        fields.REVERSE: int(direction.name == "reverse"),
    }


def _at_once(low: Lowering, direction: Direction) -> int:
    """Batch rows that run side by side."""
    if direction.inner is None:
        return direction.rows
    rows = direction.rows * (low.block if direction.timed else 1)
    return direction.inner.together if direction.inner.together > 1 else rows


def _steps_a_row(direction: Direction) -> int:
    """Steps of batch rows that one row of the program means."""
    return direction.inner.steps * direction.inner.together if direction.inner else 1


def _packed_planes(low: Lowering, key: tuple[object, ...], stacked: np.ndarray, gates: int, order: list[int]) -> Pinned:
    """Gates ``order`` of W[G·H,K] as a dense layer's weights, each padded to whole vectors of outputs."""
    chosen = stacked.reshape(gates, -1, stacked.shape[1])[order]
    return Pinned(low.store.get(key, lambda: pack_dense(pack_planes(chosen).T, low.weights)))


def _planes_bias(low: Lowering, node: Node, cell: Cell, d: int, units: int) -> Pinned:
    """The bias of each plane of sums: both halves together, but apart where the reset gate acts on one of them."""
    gates = BLOCKS[node.op]
    B = optional_weights(low, node, 3)
    Wb, Rb = np.zeros((2, gates, units), low.dtype) if B is None else B[d].reshape(2, gates, units)
    planes = Wb + Rb
    if cell != Cell.RNN:
        z, r, n = planes
        linear = cell == Cell.GRU_LINEAR
        planes = np.stack([Wb[2] if linear else n, z, r, Rb[2] if linear else np.zeros_like(z)])
    key = ("planes bias", cell, source(low, node, 3), d, units, low.dtype.name)
    return Pinned(low.store.get(key, lambda: aligned_copy(pack_planes(planes[:, :, None]), low.dtype)))


_EMITTERS: Final = {"LSTM": _emit_lstm, "GRU": _emit_gated, "RNN": _emit_gated}


def _input_rows(low: Lowering, node: Node, attributes: CellAttributes) -> tuple[Rows, bool]:
    """X as rows [T][B][I]; only if its axes are the program's time and batch."""
    axes = low.roles.axes[node.input(0)]
    time, batch, width = (axes[1], axes[0], axes[2]) if attributes.layout else axes
    if (time and time != low.roles.time) or batch != low.roles.batch:
        raise NoInstructionError("its time or batch axis is not the program's")
    if low.form(node.input(0)).width != width:
        raise NoInstructionError("its inputs lie scattered in memory")
    x = low.read_float(node.input(0))
    timed = x.timed or bool(time)
    return low.uniform(x, timed, low.batch > 1), timed


def _lengths(low: Lowering, node: Node) -> Rows | None:
    """sequence_lens as rows, or None where all rows are known to be as long as the sequence."""
    name = node.input(4)
    if not name:
        return None
    value = low.value(name)
    steps = low.shape(node.input(0))[1 if node.attributes.get("layout", 0) else 0]
    if value is not None and not low.plan.causal and (value == steps).all():
        return None
    if low.plan.causal:
        raise StreamingError(f"{node.label} takes sequence lengths: it needs the whole sequence")
    if low.roles.axes[name][0] != low.roles.batch:
        raise NoInstructionError("its sequence lengths have another batch axis")
    rows = low.read(name)
    if rows.dtype != np.int32:
        raise NoInstructionError("its sequence lengths are not int32")
    return rows


def _sequence_rows(low: Lowering, node: Node, directions: int, width: int, timed: bool, own: bool) -> Rows:
    """Where Y goes: [T][B][D·H]; rows nobody steps on must be zero, so a ragged one is cleared first."""
    Y = low.new_rows(f"{node.label}.Y", timed, low.batch > 1, directions * width, low.dtype)
    if own:
        _clear(low, Y)
    return Y


def _column_place(rows: Rows, first: int) -> Place | Pinned:
    return rows.columns(first, 0).place


def _direction_rows(
    low: Lowering, node: Node, Y: Rows, directions: int, d: int, width: int, timed: bool, clear: bool, units: int
) -> Rows:
    """Where one direction writes whole vectors: its columns of Y if they begin at one, else rows of its own.

    A traced one has rows of its own, with room for the trace behind.
    """
    behind = len(_parts(node)) * blocks(units) * LANES if low.plan.traced else 0
    if not behind and (directions == 1 or width % LANES == 0):
        return Y.columns(d * width, width)
    own = low.new_rows(f"{node.label}.Y{d}", timed, Y.batched, blocks(width) * LANES + behind, low.dtype)
    if clear:
        _clear(low, own)
    return own.columns(0, width)


def _parts(node: Node) -> tuple[str, ...]:
    """What a traced layer writes down, in the order of memory."""
    return {"LSTM": ("i", "o", "f", "g", "c", "h"), "GRU": ("z", "r", "n", "h"), "RNN": ("h",)}[node.op]


def _keep_trace(
    low: Lowering, node: Node, name: str, functions: tuple[str, ...], directions: int, y: Rows, units: int
) -> None:
    """Have the caller given what a direction wrote down."""
    layer = node.name or next(filter(None, node.outputs))
    if directions > 1:
        layer = f"{layer}.{name}"
    taken = {trace.layer for trace, _ in low.traces}
    layer = next(each for each in chain([layer], (f"{layer}.{k}" for k in count(2))) if each not in taken)
    parts = _parts(node)
    rows = y.columns(blocks(y.width) * LANES, len(parts) * blocks(units) * LANES)
    form = rows.timed, rows.batched, node.op == "LSTM", name == "reverse", functions
    low.traces.append((Traced(layer, node.op, f"trace of {layer}", parts, units, *form), rows))


def _clear(low: Lowering, rows: Rows, once: bool = False) -> None:
    """Zero rows, their padding included."""
    zeros = Rows(Pinned(_zeros(low, rows.stride)), 0, False, False, rows.stride // rows.dtype.itemsize, rows.dtype)
    low.copy(zeros, rows, once=once)


def _zeros(low: Lowering, size: int) -> np.ndarray:
    return low.store.shared(np.zeros(size, np.uint8), np.uint8)


def _state(low: Lowering, node: Node, kind: str, d: int, width: int) -> Rows:
    """The state rows of one direction, set at the start of a call where the program is not streamed."""
    name = node.input(5 if kind == "h" else 6)
    initial = low.value(name) if name else None
    stride = blocks(width) * LANES * low.dtype.itemsize
    stride = -(-stride // 64) * 64
    start: np.ndarray | None = None
    if initial is not None and initial.any():
        batch_first = bool(node.attributes.get("layout", 0))
        start = np.ascontiguousarray(initial[:, d] if batch_first else initial[d]).astype(low.dtype)
    slot = low.slot((node_key(node), kind, d), width, stride, start)
    rows = Rows(slot.place, stride, False, low.batch > 1, width, low.dtype)
    if low.plan.streamed:
        if name and initial is None:
            raise StreamingError(
                f"{node.label} starts from '{name}', which is computed at each call; a stream cannot carry it"
            )
        return rows
    if name and (initial is None or start is not None):
        axes = low.roles.axes[name]
        if axes[0 if node.attributes.get("layout", 0) else 1] not in ((), low.roles.batch) or low.form(name).timed:
            raise NoInstructionError("its initial state has another batch axis")
        source = low.read_float(name)
        whole = Rows(rows.place, stride, False, rows.batched, width, low.dtype)
        low.copy(source.columns(d * width, width), whole, once=True)
    else:
        _clear(low, rows, once=True)
    return rows


def _cell_fields(
    low: Lowering,
    node: Node,
    attributes: CellAttributes,
    d: int,
    W: np.ndarray,
    R: np.ndarray,
    projection: np.ndarray | None,
) -> tuple[dict[Lstm, Field], bool]:
    """Weights and attributes of one direction; second, whether it is the plain cell."""
    units = W.shape[0] // 4
    key = (source(low, node, 1), source(low, node, 2), d, low.dtype.name)
    B, P = optional_weights(low, node, 3), optional_weights(low, node, 7)
    bias = np.zeros(4 * units, low.dtype) if B is None else B[d, : 4 * units] + B[d, 4 * units :]
    fields: dict[Lstm, Field] = {
        Lstm.WEIGHTS: Pinned(low.store.get(("gates", *key), lambda: pack_gates(W, R, low.weights))),
        Lstm.BIAS: Pinned(
            low.store.get(("bias", source(low, node, 3), *key), lambda: pack_vectors(bias, 4, low.dtype))
        ),
        Lstm.INPUTS: W.shape[1],
        Lstm.RECURRENT: R.shape[1],
        Lstm.BLOCKS: blocks(units),
        Lstm.PEEPHOLES: -1,
        Lstm.PROJECTION: -1,
        Lstm.ZEROS: Pinned(_zeros(low, LANES * low.dtype.itemsize)),
        Lstm.CLIP: _bits(attributes.clip or 0.0),
        Lstm.INPUT_FORGET: int(attributes.input_forget),
    }
    chosen = attributes.activations[d]
    fields[Lstm.UNIT] = int(projection is None and attributes.within_one(d))
    fields |= {Lstm.ACTIVATIONS: _codes(chosen), Lstm.PARAMETERS: _parameters(low, chosen)}
    if P is not None:
        peepholes = P[d]
        fields[Lstm.PEEPHOLES] = Pinned(
            low.store.get(("peepholes", source(low, node, 7), *key), lambda: pack_vectors(peepholes, 3, low.dtype))
        )
    if projection is not None:
        transposed = projection[d].T
        packed = low.store.get(("projection", source(low, node, 8), *key), lambda: pack_narrow(transposed, low.dtype))
        fields |= {
            Lstm.PROJECTION: Pinned(packed),
            Lstm.PROJECTED_BLOCKS: blocks(transposed.shape[1]),
            Lstm.HIDDEN_UNITS: units,
        }
    standard = [a.name for a in chosen] == ["Sigmoid", "Tanh", "Tanh"]
    plain = standard and P is None and projection is None and not attributes.clip and not attributes.input_forget
    return fields, plain


def _codes(activations: tuple[Activation, ...]) -> int:
    return sum(int(GATE_FUNCTIONS[a.name.lower()]) << (8 * place) for place, a in enumerate(activations))


def _parameters(low: Lowering, activations: tuple[Activation, ...]) -> Pinned:
    """alpha and beta of each activation."""
    values = np.array([[a.alpha or 0.0, a.beta or 0.0] for a in activations], np.float64)
    return Pinned(low.store.shared(values, np.float64))


def _bits(value: float) -> int:
    return int(np.float64(value).view(np.int64))


def _steps_ahead(low: Lowering, direction: Direction, weight_bytes: int) -> int:
    """How many steps' input projections are made at once where that pays, else 0."""
    most = FAR_ROWS if weight_bytes > cache_sizes().get("L2", LIKELY_L2) else NEAR_ROWS
    rows = _at_once(low, direction)
    length = direction.inner.steps if direction.inner else low.block if direction.timed else 1
    steps = min(length, max(FEWEST_STEPS, most // max(1, rows)))
    return 0 if steps < 2 or (rows == 1 and weight_bytes < HOIST_BYTES) else steps


def _deliver(
    low: Lowering,
    node: Node,
    Y: Rows,
    ends: list[tuple[Rows, Rows | None]],
    width: int,
    units: int,
    timed: bool,
) -> None:
    """Give Y, Y_h and Y_c to whoever reads them."""
    if node.output(0):
        low.rows[node.output(0)] = Y
    for index, kind in ((1, 0), (2, 1)):
        name = node.output(index)
        if not low.is_read(name):
            continue
        if low.plan.streamed and timed and kind == 0 and len(ends) == 1:
            low.rows[name] = Y  # each step's output is the last of what came so far
            continue
        if low.plan.streamed and timed:
            low.block = 1  # the state after a step is there only until the next
        size = width if kind == 0 else units
        states = [end[kind] for end in ends]
        if len(states) == 1:
            end = states[0]
            assert end is not None
            low.rows[name] = Rows(end.place, end.stride, low.plan.streamed and timed, end.batched, size, end.dtype)
            continue
        joined = low.new_rows(name, False, low.batch > 1, len(ends) * size, low.dtype)
        for d, state in enumerate(states):
            assert state is not None
            low.copy(state, joined.columns(d * size, size))
        low.rows[name] = joined
