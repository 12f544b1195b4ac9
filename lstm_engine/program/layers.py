"""Lowering of the layers with weights: LSTM, dense, embedding."""

from __future__ import annotations

from typing import Final

import numpy as np

from ..encoding import Dense, Embed, Function, Lstm, Opcode
from ..errors import StreamingError
from ..graph import Node
from ..machine import cache_sizes, target
from ..passes.states import node_key
from ..reference import CellAttributes, cell_attributes
from .lower import FEWEST_STEPS, Lowering, NoInstructionError, emits
from .packing import (
    LANES,
    WIDE,
    aligned_copy,
    blocks,
    pack_dense,
    pack_gates,
    pack_narrow,
    pack_vectors,
    split_outputs,
)
from .program import Field, Pinned, Place, Rows

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
#: Below this many bytes of input weights, with one row a step, projecting ahead saves nothing
#: (bench row `sequence-h16-b1`, whose 4 KB are where it begins to).
HOIST_BYTES: Final = 4 << 10
#: Rows projected at a time, where the weights lie in the second-level cache and where they do not: more rows read far
#: weights less often, fewer keep the projections near (bench rows `sequence-h256-b16` and `sequence-h512-b16`).
NEAR_ROWS: Final = 64
FAR_ROWS: Final = 256
LIKELY_L2: Final = 1 << 20


@emits("LSTM")
def lower_lstm(low: Lowering, node: Node) -> None:
    """One instruction a direction, and copies that bring Y, Y_h and Y_c together."""
    attributes = cell_attributes("LSTM", node.attributes)
    W, R = (_weights(low, node, index) for index in (1, 2))
    x, timed = _input_rows(low, node, attributes)
    lengths = _lengths(low, node)
    if low.plan.causal and timed and (len(attributes.directions) > 1 or attributes.directions[0] == "reverse"):
        raise StreamingError(
            f"{node.label} runs {'both ways' if len(attributes.directions) > 1 else 'backwards'}: "
            "it needs the whole sequence"
        )
    projection = _optional(low, node, 8)
    units, width = R.shape[1] // 4, R.shape[2]
    directions = len(attributes.directions)
    Y = _sequence_rows(low, node, directions, width, timed, own=lengths is not None)
    ends = []
    for d, direction in enumerate(attributes.directions):
        h = _state(low, node, "h", d, width)
        c = _state(low, node, "c", d, units)
        y = _direction_rows(low, node, Y, directions, d, width, timed, clear=lengths is not None)
        fields, plain = _cell_fields(low, node, attributes, d, W[d], R[d], projection)
        per_step = low.per_step(x)
        fields |= {
            Lstm.X: x.place,
            Lstm.X_STRIDE: x.stride,
            Lstm.Y: y.place,
            Lstm.Y_STRIDE: y.stride,
            Lstm.H: h.place,
            Lstm.H_STRIDE: h.stride,
            Lstm.C: c.place,
            Lstm.C_STRIDE: c.stride,
            Lstm.ROWS: per_step,
            Lstm.TIMED: int(timed),
            Lstm.REVERSE: int(direction == "reverse"),
            Lstm.GATES: low.buffer(per_step * 4 * LANES * low.dtype.itemsize, "gates"),
            Lstm.LENGTHS: -1,
        }
        if lengths is not None:
            fields |= {Lstm.LENGTHS: lengths.place, Lstm.LENGTH_STRIDE: lengths.stride if lengths.batched else 0}
            low.fallible = True
        general = lengths is not None or not plain
        fields |= _hoisting(low, x, units, timed, general)
        weights = 4 * units * (x.width + width) * low.dtype.itemsize
        low.emit(
            Opcode.CELL if general else Opcode.LSTM,
            fields,
            f"{direction} I={x.width} H={units} B={per_step} {'general cell' if general else 'plain cell'}"
            f" {low.dtype.name} {target().variant}",
            weights,
            2 * 4 * units * (x.width + width) * per_step,
        )
        if y.place != _column_place(Y, d * width):
            low.copy(y, Y.columns(d * width, width))
        ends.append((h, c))
    _deliver(low, node, Y, ends, width, units, timed, lengths is not None)


def _weights(low: Lowering, node: Node, index: int) -> np.ndarray:
    value = low.value(node.input(index))
    if value is None:
        raise NoInstructionError("its weights are computed at run time")
    if value.dtype != low.dtype:
        raise NoInstructionError(f"{value.dtype} weights in a {low.dtype} program")
    return value


def _optional(low: Lowering, node: Node, index: int) -> np.ndarray | None:
    return _weights(low, node, index) if node.input(index) else None


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
    low: Lowering, node: Node, Y: Rows, directions: int, d: int, width: int, timed: bool, clear: bool
) -> Rows:
    """Where one direction writes whole vectors: its columns of Y if they begin at one, else rows of its own."""
    if directions == 1 or width % LANES == 0:
        return Y.columns(d * width, width)
    own = low.new_rows(f"{node.label}.Y{d}", timed, Y.batched, width, low.dtype)
    if clear:
        _clear(low, own)
    return own


def _clear(low: Lowering, rows: Rows, once: bool = False) -> None:
    """Zero rows, their padding included."""
    zeros = Rows(Pinned(_zeros(low, rows.stride)), 0, False, False, rows.stride // rows.dtype.itemsize, rows.dtype)
    low.copy(zeros, rows, once=once)


def _zeros(low: Lowering, size: int) -> np.ndarray:
    return low.store.get(("zeros", size), lambda: aligned_copy(np.zeros(size, np.uint8), np.uint8))


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
    key = (node.input(1), node.input(2), d, low.dtype.name)
    B, P = _optional(low, node, 3), _optional(low, node, 7)
    bias = np.zeros(4 * units, low.dtype) if B is None else B[d, : 4 * units] + B[d, 4 * units :]
    fields: dict[Lstm, Field] = {
        Lstm.WEIGHTS: Pinned(low.store.get(("gates", *key), lambda: pack_gates(W, R, low.dtype))),
        Lstm.BIAS: Pinned(low.store.get(("bias", node.input(3), *key), lambda: pack_vectors(bias, 4, low.dtype))),
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
    codes = [GATE_FUNCTIONS[a.name.lower()] for a in chosen]
    fields[Lstm.ACTIVATIONS] = sum(int(code) << (8 * place) for place, code in enumerate(codes))
    parameters = np.array([[a.alpha or 0.0, a.beta or 0.0] for a in chosen], np.float64)
    fields[Lstm.PARAMETERS] = Pinned(
        low.store.get(("parameters", parameters.tobytes()), lambda: aligned_copy(parameters, np.float64))
    )
    if P is not None:
        peepholes = P[d]
        fields[Lstm.PEEPHOLES] = Pinned(
            low.store.get(("peepholes", node.input(7), *key), lambda: pack_vectors(peepholes, 3, low.dtype))
        )
    if projection is not None:
        transposed = projection[d].T
        packed = low.store.get(("projection", node.input(8), *key), lambda: pack_narrow(transposed, low.dtype))
        fields |= {
            Lstm.PROJECTION: Pinned(packed),
            Lstm.PROJECTED_BLOCKS: blocks(transposed.shape[1]),
            Lstm.HIDDEN_UNITS: units,
            Lstm.HIDDEN: low.buffer(blocks(units) * LANES * low.dtype.itemsize, "hidden"),
        }
    standard = codes == [Function.SIGMOID, Function.TANH, Function.TANH]
    plain = standard and P is None and projection is None and not attributes.clip and not attributes.input_forget
    return fields, plain


def _bits(value: float) -> int:
    return int(np.float64(value).view(np.int64))


def _hoisting(low: Lowering, x: Rows, units: int, timed: bool, general: bool) -> dict[Lstm, Field]:
    """Room for input projections made ahead of their steps, where that pays."""
    per_step = low.per_step(x)
    weight_bytes = 4 * units * x.width * low.dtype.itemsize
    most = FAR_ROWS if weight_bytes > cache_sizes().get("L2", LIKELY_L2) else NEAR_ROWS
    steps = min(low.block, max(FEWEST_STEPS, most // per_step))
    if general or not timed or steps < 2 or (per_step == 1 and weight_bytes < HOIST_BYTES):
        return {Lstm.HOIST: 0}
    row = blocks(units) * 4 * LANES * low.dtype.itemsize
    return {Lstm.HOIST: steps, Lstm.PRE: low.buffer(steps * per_step * row, "input projections")}


def _deliver(
    low: Lowering,
    node: Node,
    Y: Rows,
    ends: list[tuple[Rows, Rows]],
    width: int,
    units: int,
    timed: bool,
    ragged: bool,
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
        if len(ends) == 1:
            end = ends[0][kind]
            low.rows[name] = Rows(end.place, end.stride, low.plan.streamed and timed, end.batched, size, end.dtype)
            continue
        joined = low.new_rows(name, False, low.batch > 1, len(ends) * size, low.dtype)
        for d, both in enumerate(ends):
            low.copy(both[kind], joined.columns(d * size, size))
        low.rows[name] = joined


@emits("MatMul", "Gemm")
def lower_dense(low: Lowering, node: Node) -> None:
    """x·W + b with constant W and b; alpha, beta and transposes are folded into them."""
    weights, bias = _dense_weights(low, node)
    depth = weights.shape[0]
    x_form = low.form(node.input(0))
    if low.roles.axes[node.input(0)][-1] != x_form.width[-1:] and low.roles.size(x_form.width) != depth:
        raise NoInstructionError("the axis it sums over is not the last in memory")
    if low.roles.size(x_form.width) != depth:
        raise NoInstructionError("its rows hold several vectors")
    out_form = low.form(node.output(0))
    if (out_form.timed, out_form.batched) != (x_form.timed, x_form.batched):
        raise NoInstructionError("its rows change")
    x = low.read_float(node.input(0))
    x = low.uniform(x, x.timed, x_form.batched)
    emit_dense(low, node, x, weights, bias)


def _dense_weights(low: Lowering, node: Node) -> tuple[np.ndarray, np.ndarray | None]:
    W = _weights(low, node, 1)
    if W.ndim != 2 or len(low.shape(node.input(0))) < 2:
        raise NoInstructionError("its second operand is not a matrix of weights")
    if node.op == "MatMul":
        return W, None
    alpha, beta = (float(node.attributes.get(name, 1.0)) for name in ("alpha", "beta"))
    if node.attributes.get("transA", 0):
        raise NoInstructionError("its first operand is transposed")
    W = W.T if node.attributes.get("transB", 0) else W
    bias = _optional(low, node, 2)
    if bias is not None:
        if bias.size not in (1, W.shape[1]) or (bias.ndim > 1 and bias.shape[-1] != bias.size):
            raise NoInstructionError("its third operand is not a bias")
        bias = np.broadcast_to(bias.reshape(-1) * low.dtype.type(beta), (W.shape[1],))
    return (W if alpha == 1.0 else W * low.dtype.type(alpha)), bias


def emit_dense(low: Lowering, node: Node, x: Rows, weights: np.ndarray, bias: np.ndarray | None) -> None:
    """Append DENSE and give its result to the node's output."""
    depth, outputs = weights.shape
    wide, narrow = split_outputs(outputs)
    size = low.dtype.itemsize
    columns = wide * WIDE + narrow * LANES
    padded = np.zeros(columns, low.dtype)
    if bias is not None:
        padded[:outputs] = bias
    stride = -(-columns * size // 64) * 64
    out = low.new_rows(node.output(0), x.timed, x.batched, outputs, low.dtype, stride)
    key = (node.op, node.input(1), tuple(sorted(map(str, node.attributes.items()))))
    low.emit(
        Opcode.DENSE,
        {
            Dense.X: x.place,
            Dense.X_STRIDE: x.stride,
            Dense.OUT: out.place,
            Dense.OUT_STRIDE: out.stride,
            Dense.WEIGHTS: Pinned(low.store.get(("dense", *key), lambda: pack_dense(weights, low.dtype))),
            Dense.BIAS: Pinned(
                low.store.get(("dense bias", padded.tobytes()), lambda: aligned_copy(padded, low.dtype))
            ),
            Dense.DEPTH: depth,
            Dense.WIDE: wide,
            Dense.NARROW: narrow,
            Dense.ROWS: low.per_step(x),
            Dense.TIMED: int(x.timed),
        },
        f"{depth} → {outputs} {low.dtype.name} {target().variant}",
        depth * outputs * size,
        2 * depth * outputs * low.per_step(x),
    )
    low.rows[node.output(0)] = out


@emits("Gather")
def lower_gather(low: Lowering, node: Node) -> None:
    """Rows of a constant table by token id; picks along time or columns are left to the views."""
    table = low.value(node.input(0))
    if table is None:
        from .shaping import lower_pick

        lower_pick(low, node)
        return
    if int(node.attributes.get("axis", 0)) % table.ndim != 0 or table.ndim != 2 or table.dtype != low.dtype:
        raise NoInstructionError("not a table of vectors")
    tokens = low.read(node.input(1))
    if tokens.dtype not in (np.int32, np.int64):
        raise NoInstructionError("its indices are not integers")
    form, out_form = low.form(node.input(1)), low.form(node.output(0))
    per_row = low.roles.size(form.width)
    if out_form.width[: len(form.width)] != form.width:
        raise NoInstructionError("its result lies scattered in memory")
    tokens = low.uniform(tokens, tokens.timed, form.batched)
    vocabulary, entry = table.shape
    size = low.dtype.itemsize
    packed = low.store.get(("table", node.input(0)), lambda: aligned_copy(table, low.dtype))
    out = low.new_rows(node.output(0), tokens.timed, tokens.batched, per_row * entry, low.dtype)
    low.fallible = True
    low.emit(
        Opcode.EMBED,
        {
            Embed.TOKENS: tokens.place,
            Embed.TOKEN_STRIDE: tokens.stride,
            Embed.TOKEN_BYTES: tokens.dtype.itemsize,
            Embed.PER_ROW: per_row,
            Embed.OUT: out.place,
            Embed.OUT_STRIDE: out.stride,
            Embed.TABLE: Pinned(packed),
            Embed.TABLE_STRIDE: entry * size,
            Embed.ENTRY_BYTES: entry * size,
            Embed.VOCABULARY: vocabulary,
            Embed.ROWS: low.per_step(tokens),
            Embed.TIMED: int(tokens.timed),
        },
        f"{vocabulary} × {entry} {low.dtype.name}",
        vocabulary * entry * size,
    )
    low.rows[node.output(0)] = out
