"""Lowering of what only moves elements: views where rows stay rows, copies where columns come together."""

from __future__ import annotations

from ..graph import Node
from .lower import Lowering, NoInstructionError, emits
from .program import Rows


@emits("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Identity", "Dropout")
def lower_view(low: Lowering, node: Node) -> None:
    """The same rows under other axes: nothing moves."""
    before, after = low.form(node.input(0)), low.form(node.output(0))
    if node.op == "Dropout" and node.output(1):
        raise NoInstructionError("its mask is asked for")
    if (before.timed, before.batched) != (after.timed, after.batched) or before.width != after.width:
        raise NoInstructionError("it reorders the elements of a row")
    low.rows[node.output(0)] = low.read(node.input(0))


@emits("Expand")
def lower_expand(low: Lowering, node: Node) -> None:
    """Repetition over time or batch costs nothing: the same row serves all."""
    before, after = low.form(node.input(0)), low.form(node.output(0))
    if before.width != after.width:
        raise NoInstructionError("it repeats elements within a row")
    low.rows[node.output(0)] = low.read(node.input(0))


def lower_pick(low: Lowering, node: Node) -> None:
    """Gather of one constant index: a time step, or columns."""
    index = low.value(node.input(1))
    if index is None or index.size != 1:
        raise NoInstructionError("it picks several or computed places")
    axis = int(node.attributes.get("axis", 0)) % len(low.shape(node.input(0)))
    size = low.shape(node.input(0))[axis]
    place = int(index.reshape(-1)[0])
    if not -size <= place < size:
        raise NoInstructionError("it picks a place that is not there")
    take(low, node.input(0), node.output(0), axis, place % size, 1)


@emits("Slice")
def lower_slice(low: Lowering, node: Node) -> None:
    """Constant bounds: the last step, or neighbouring columns."""
    shape = low.shape(node.input(0))
    arguments = [low.value(name) if name else None for name in node.inputs[1:]]
    if any(name and value is None for name, value in zip(node.inputs[1:], arguments, strict=True)):
        raise NoInstructionError("its bounds are computed at run time")
    starts, ends, axes, strides = ([*arguments, None, None])[:4]
    assert starts is not None
    assert ends is not None
    along = range(len(starts)) if axes is None else [int(a) % len(shape) for a in axes]
    by = [1] * len(starts) if strides is None else [int(s) for s in strides]
    cuts = []
    for axis, start, end, stride in zip(along, starts, ends, by, strict=True):
        kept = range(shape[axis])[slice(int(start), _bounded(int(end), shape[axis], stride), stride)]
        if len(kept) == shape[axis] and stride > 0:
            continue
        if len(kept) == 0 or (stride != 1 and len(kept) > 1):
            raise NoInstructionError("it takes every other element, or none")
        cuts.append((axis, kept[0], len(kept)))
    if len(cuts) > 1:
        raise NoInstructionError("it cuts along several axes")
    if not cuts:
        low.rows[node.output(0)] = low.read(node.input(0))
        return
    take(low, node.input(0), node.output(0), *cuts[0])


def _bounded(end: int, size: int, stride: int) -> int | None:
    """ONNX ends of a backward slice: anything below -size means 'to the very first'."""
    return None if stride < 0 and end < -size else end


@emits("Split")
def lower_split(low: Lowering, node: Node) -> None:
    """Neighbouring columns, one after the other."""
    axis = int(node.attributes.get("axis", 0)) % len(low.shape(node.input(0)))
    first = 0
    for name in node.outputs:
        count = low.shape(name)[axis]
        take(low, node.input(0), name, axis, first, count)
        first += count


def take(low: Lowering, source: str, result: str, axis: int, first: int, count: int) -> None:
    """``count`` places from ``first`` on along an axis: a step of time, or columns of the rows."""
    rows = low.read(source)
    axes = low.roles.axes[source]
    atoms, size = axes[axis], low.shape(source)[axis]
    if count == size:
        low.rows[result] = rows
        return
    if atoms == low.roles.time and atoms:
        low.rows[result] = _take_step(low, rows, result, first, count, size)
        return
    width = low.form(source).width
    if atoms != width[: len(atoms)] or not atoms:
        raise NoInstructionError("it cuts rows into pieces")
    inner = low.roles.size(width[len(atoms) :])
    low.rows[result] = rows.columns(first * inner, count * inner)


def _take_step(low: Lowering, rows: Rows, result: str, first: int, count: int, size: int) -> Rows:
    """One step: in a stream every step is the last so far; in a run block by block the last of the last block."""
    if count != 1:
        raise NoInstructionError("it takes several steps")
    if not rows.timed:
        return rows
    if low.plan.causal:
        if first != size - 1:
            raise NoInstructionError("it takes a step other than the last")
        if low.plan.streamed:
            return rows
    if first == size - 1:
        last = low.new_rows(result, False, rows.batched, rows.width, rows.dtype)
        low.copy(rows, last, last=True)
        return last
    place = rows.place.shifted(first * low.step_stride(rows))
    return Rows(place, rows.stride, False, rows.batched, rows.width, rows.dtype)


@emits("Concat")
def lower_concat(low: Lowering, node: Node) -> None:
    """Columns side by side."""
    axis = int(node.attributes["axis"]) % len(low.shape(node.output(0)))
    made = low.roles.axes[node.output(0)][axis]
    form = low.form(node.output(0))
    if not made or form.width[: len(made)] != made:
        raise NoInstructionError("it joins along time, batch or within rows")
    dtype = low.known.dtypes[node.output(0)]
    parts = [low.read(name) for name in node.inputs]
    timed, batched = any(part.timed for part in parts), any(part.batched for part in parts)
    out = low.new_rows(node.output(0), timed, batched, low.roles.size(form.width), dtype)
    inner = form.width[len(made) :]
    first = 0
    for name, part in zip(node.inputs, parts, strict=True):
        own = low.roles.axes[name][axis]
        if low.form(name).width != (*own, *inner) or not low.roles.aligned(name, node.output(0), axis):
            raise NoInstructionError("it joins differently ordered rows")
        low.copy(part, out.columns(first, part.width))
        first += part.width
    low.rows[node.output(0)] = out
