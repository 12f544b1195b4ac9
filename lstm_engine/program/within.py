"""Lowering of what runs along the last axis of a tensor whose rows hold several such vectors: dense layers, softmax,
products of computed matrices."""

from __future__ import annotations

from math import prod

import numpy as np

from ..encoding import Matmul, Opcode
from ..graph import Node
from .layers import dense_weights, emit_dense
from .lower import Lowering, NoInstructionError, falls_back
from .packing import LANES, blocks
from .pointwise import emit_softmax
from .program import Pinned, Rows
from .rearranging import rearranged_row


@falls_back("MatMul", "Gemm")
def lower_dense_within(low: Lowering, node: Node) -> None:
    """x[..., K]·W, or a product of two computed tensors."""
    if low.value(node.input(1)) is None:
        _lower_matmul(low, node)
        return
    weights, bias = dense_weights(low, node)
    x = _unfolded(low, node.input(0), len(low.shape(node.input(0))) - 1)
    low.rows[node.output(0)] = _folded(low, node.output(0), emit_dense(low, node, x, weights, bias))


@falls_back("Softmax", "LogSoftmax")
def lower_softmax_within(low: Lowering, node: Node) -> None:
    """Along the last axes of a row."""
    rank = len(low.shape(node.input(0)))
    flattened = node.attributes.get("flatten_from")
    first = int(node.attributes.get("axis", -1)) % rank if flattened is None else flattened % rank
    if flattened is None and first != rank - 1:
        raise NoInstructionError("it does not run along the last axis")
    x = _unfolded(low, node.input(0), first)
    low.rows[node.output(0)] = _folded(low, node.output(0), emit_softmax(low, node, x))


def _unfolded(low: Lowering, name: str, first: int) -> Rows:
    """Each vector along the axes from ``first`` on as a row of its own."""
    form, axes = low.form(name), low.roles.axes[name]
    inner = tuple(atom for axis in axes[first:] for atom in axis)
    if form.width != tuple(atom for axis in axes for atom in axis if atom in form.width):
        raise NoInstructionError("its rows lie in another order")
    if not set(inner) <= set(form.width):
        raise NoInstructionError("it runs along steps or rows")
    width = low.roles.size(inner)
    if not width:
        raise NoInstructionError("its vectors are empty")
    x = low.read_float(name)
    x = low.uniform(x, x.timed, form.batched)
    together = x.width // width
    stride = width * low.dtype.itemsize
    if x.stride != together * stride and (x.timed or x.batched):  # rows of vectors, but not evenly apart
        even = low.new_rows(name, x.timed, x.batched, x.width, x.dtype, together * stride)
        low.copy(x, even)
        x = even
    return Rows(x.place, stride, x.timed, x.batched, width, x.dtype, together)


def _folded(low: Lowering, name: str, rows: Rows) -> Rows:
    """The vectors of a row side by side again, without the padding of each."""
    atoms = tuple(atom for axis in low.roles.axes[name] for atom in axis if atom in low.form(name).width)
    if low.form(name).width != atoms:
        raise NoInstructionError("its result lies in another order")
    columns = rows.stride // rows.dtype.itemsize
    whole = Rows(rows.place, rows.together * rows.stride, rows.timed, rows.batched, rows.together * columns, rows.dtype)
    if columns == rows.width:
        return whole
    kept = (np.arange(rows.together)[:, None] * columns + np.arange(rows.width)).reshape(-1)
    return rearranged_row(low, name, whole, kept, 0)


def _matrices(low: Lowering, name: str) -> list[int]:
    """Sizes of the axes along which the matrices of a row are laid out."""
    within = set(low.form(name).width)
    return [low.roles.size(axis) for axis in low.roles.axes[name][:-2] if axis and set(axis) <= within]


def _lower_matmul(low: Lowering, node: Node) -> None:
    """[..., M, K]·[..., K, N], both within rows; matrices may be shared by broadcasting over all that come before."""
    if node.op != "MatMul":
        raise NoInstructionError("its second operand is computed")
    result, names = node.output(0), (node.input(0), node.input(1))
    shapes = [low.shape(name) for name in names]
    if min(map(len, shapes)) < 2 or not all(map(prod, shapes)):
        raise NoInstructionError("an operand is a vector, or empty")
    operands, counts = [], []
    for name in (*names, result):
        form, axes = low.form(name), low.roles.axes[name]
        if form.width != tuple(atom for axis in axes for atom in axis if atom in form.width):
            raise NoInstructionError("an operand's rows lie in another order")
        if not {atom for axis in axes[-2:] for atom in axis} <= set(form.width):
            raise NoInstructionError("it runs along steps or rows")
        counts.append(low.roles.size(form.width) // prod(low.shape(name)[-2:]))
    if any(count not in (1, counts[2]) for count in counts[:2]) or not low.roles.size(low.form(result).width):
        raise NoInstructionError("its matrices are broadcast within rows")
    timed = any(low.read_float(name).timed for name in names)
    rows = low.form(result)
    for name, count in zip(names, counts, strict=False):
        form = low.form(name)
        if (form.timed and not rows.timed) or (form.batched and not rows.batched):
            raise NoInstructionError("its result is not the program's rows")
        if count > 1 and _matrices(low, name) != _matrices(low, result):
            raise NoInstructionError("its matrices are broadcast within rows")
        operands.append(low.uniform(low.read_float(name), timed, low.form(result).batched))
    x, y = operands
    height, depth, width = shapes[0][-2], shapes[0][-1], shapes[1][-1]
    out = low.new_rows(result, x.timed, x.batched, low.roles.size(low.form(result).width), low.dtype)
    size = low.dtype.itemsize
    zeros = low.store.shared(np.zeros(LANES * size, np.uint8), np.uint8)
    low.emit(
        Opcode.MATMUL,
        {
            Matmul.X: x.place,
            Matmul.X_STRIDE: x.stride,
            Matmul.X_MATRIX: height * depth * size if counts[0] > 1 else 0,
            Matmul.Y: y.place,
            Matmul.Y_STRIDE: y.stride,
            Matmul.Y_MATRIX: depth * width * size if counts[1] > 1 else 0,
            Matmul.OUT: out.place,
            Matmul.OUT_STRIDE: out.stride,
            Matmul.COUNT: counts[2],
            Matmul.HEIGHT: height,
            Matmul.DEPTH: depth,
            Matmul.WIDTH: width,
            Matmul.PACKED: low.buffer(depth * LANES * size, "packed"),
            Matmul.TILE: low.buffer(height * LANES * size, "tile"),
            Matmul.ZEROS: Pinned(zeros),
            Matmul.ROWS: low.per_step(out),
            Matmul.TIMED: int(out.timed),
        },
        f"{counts[2]} × [{height}, {depth}]·[{depth}, {width}] {low.dtype.name}",
        operations=2 * counts[2] * height * depth * blocks(width) * LANES * low.per_step(out),
    )
    low.rows[result] = out
