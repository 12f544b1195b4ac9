"""Lowering of the layers with weights that look at one row: dense, embedding."""

from __future__ import annotations

import numpy as np

from ..encoding import PREPARED_AT_ONCE, Dense, Embed, Opcode
from ..graph import Node
from ..machine import target
from .lower import Lowering, NoInstructionError, emits
from .packing import LANES, WIDE, aligned_copy, blocks, pack_dense, split_outputs
from .program import Field, Pinned, Rows


def weights(low: Lowering, node: Node, index: int) -> np.ndarray:
    """An input that is known and of the program's own type."""
    value = low.value(node.input(index))
    if value is None:
        raise NoInstructionError("its weights are computed at run time")
    if value.dtype != low.dtype:
        raise NoInstructionError(f"{value.dtype} weights in a {low.dtype} program")
    return value


def source(low: Lowering, node: Node, index: int) -> bytes:
    """What tells the content of an input that is known from all others; nothing where it is absent."""
    value = low.value(node.input(index)) if node.input(index) else None
    return b"" if value is None else low.store.digest(value)


def optional_weights(low: Lowering, node: Node, index: int) -> np.ndarray | None:
    """As weights(), None where the input is absent."""
    return weights(low, node, index) if node.input(index) else None


@emits("MatMul", "Gemm")
def lower_dense(low: Lowering, node: Node) -> None:
    """x·W + b with constant W and b; alpha, beta and transposes are folded into them."""
    weights, bias = dense_weights(low, node)
    depth = weights.shape[0]
    x_form = low.form(node.input(0))
    if low.roles.axes[node.input(0)][-1] != x_form.width:
        raise NoInstructionError("the axis it sums over is not the last in memory")
    if low.roles.size(x_form.width) != depth:
        raise NoInstructionError("its rows hold several vectors")
    out_form = low.form(node.output(0))
    if (out_form.timed, out_form.batched) != (x_form.timed, x_form.batched):
        raise NoInstructionError("its rows change")
    x = low.read_float(node.input(0))
    x = low.uniform(x, x.timed, x_form.batched)
    low.rows[node.output(0)] = emit_dense(low, node, x, weights, bias)


def dense_weights(low: Lowering, node: Node) -> tuple[np.ndarray, np.ndarray | None]:
    """W [K,N] and bias [N] of a Gemm or MatMul, its scales and transposes worked in."""
    W = weights(low, node, 1)
    if W.ndim != 2 or len(low.shape(node.input(0))) < 2:
        raise NoInstructionError("its second operand is not a matrix of weights")
    if node.op == "MatMul":
        return W, None
    alpha, beta = (float(node.attributes.get(name, 1.0)) for name in ("alpha", "beta"))
    if node.attributes.get("transA", 0):
        raise NoInstructionError("its first operand is transposed")
    W = W.T if node.attributes.get("transB", 0) else W
    bias = optional_weights(low, node, 2)
    if bias is not None:
        if bias.size not in (1, W.shape[1]) or (bias.ndim > 1 and bias.shape[-1] != bias.size):
            raise NoInstructionError("its third operand is not a bias")
        bias = np.broadcast_to(bias.reshape(-1) * low.dtype.type(beta), (W.shape[1],))
    return (W if alpha == 1.0 else W * low.dtype.type(alpha)), bias


def prepared_rows(low: Lowering, width: int, rows: int) -> Field:
    """Scratch for rows in the form the products take them; -1 where that is the form they have."""
    size = low.weights.row_bytes(width)
    return low.buffer(rows * size, "prepared rows") if size else -1


def emit_dense(low: Lowering, node: Node, x: Rows, weights: np.ndarray, bias: np.ndarray | None) -> Rows:
    """Append DENSE; returns where its result lies."""
    depth, outputs = weights.shape
    wide, narrow = split_outputs(outputs)
    size = low.dtype.itemsize
    columns = wide * WIDE + narrow * LANES
    padded = np.zeros(columns, low.dtype)
    if bias is not None:
        padded[:outputs] = bias
    stride = -(-columns * size // 64) * 64
    out = low.new_rows(node.output(0), x.timed, x.batched, outputs, low.dtype, stride, x.together)
    key = (node.op, source(low, node, 1), tuple(sorted(map(str, node.attributes.items()))))
    low.emit(
        Opcode.DENSE,
        {
            Dense.X: x.place,
            Dense.X_STRIDE: x.stride,
            Dense.OUT: out.place,
            Dense.OUT_STRIDE: out.stride,
            Dense.WEIGHTS: Pinned(low.store.get(("dense", *key), lambda: pack_dense(weights, low.weights))),
            Dense.BIAS: Pinned(low.store.shared(padded, low.dtype)),
            Dense.DEPTH: depth,
            Dense.WIDE: wide,
            Dense.NARROW: narrow,
            Dense.ROWS: low.per_step(x),
            Dense.TIMED: int(x.timed),
            Dense.ROOM: prepared_rows(low, depth, PREPARED_AT_ONCE),
        },
        f"{depth} → {outputs} {low.weights.precision} {target().variant}",
        low.weights.part_bytes(depth, 1) * blocks(outputs),
        2 * depth * outputs * low.per_step(x),
    )
    return out


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
    packed = low.store.get(("table", source(low, node, 0)), lambda: aligned_copy(table, low.dtype))
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
