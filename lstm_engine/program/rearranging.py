"""Lowering of what moves elements within rows in ways that no view and no copy of columns does.

Where each element of the result comes from is found by running the operator's definition on element numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Final

import numpy as np

from ..encoding import Opcode, Rearrange
from ..graph import Node
from ..reference import evaluate
from .lower import Lowering, NoInstructionError, falls_back, to_physical
from .program import Pinned, Rows

#: More elements than this are no step of a stream: NumPy moves them as fast.
MOST_ELEMENTS: Final = 1 << 20
TOO_LARGE: Final = "it moves more elements than the tables allow"
#: Operators that move the elements of their first input, the others being known. Concat and ScatterND move several.
MOVES: Final = (
    "Concat", "DepthToSpace", "Expand", "Flatten", "GatherND", "Identity", "Pad", "Reshape", "ReverseSequence",
    "ScatterND", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
)  # fmt: skip
NOWHERE: Final = -1


@falls_back(*MOVES)
def lower_moves(low: Lowering, node: Node) -> None:
    """Each row of the results is made of elements of the same row of the operands."""
    data = _data(node)
    named = [node.inputs[k] for k in data] + [name for name in node.outputs if name]
    if max(prod(low.shape(name)) for name in named) > MOST_ELEMENTS:
        raise NoInstructionError(TOO_LARGE)
    numbered = dict(zip(data, _numbers([low.shape(node.inputs[k]) for k in data]), strict=True))
    fill = _fill(low, node)
    arrays = []
    for index, name in enumerate(node.inputs):
        value = numbered.get(index) if index in numbered else low.value(name) if name else None
        if value is None and name:
            raise NoInstructionError("what it moves where is computed at run time")
        arrays.append(np.array(NOWHERE) if node.op == "Pad" and index == 2 and name else value)
    if node.op == "Pad" and len(arrays) < 3:
        arrays.append(np.array(NOWHERE))
    results = evaluate(node, arrays)
    sources = [node.inputs[index] for index in data]
    made = {
        name: rearranged(low, sources, name, result, fill)
        for name, result in zip(node.outputs, results, strict=False)
        if name
    }
    low.rows.update(made)


def _data(node: Node) -> list[int]:
    """Which inputs are moved."""
    if node.op == "Concat":
        return list(range(len(node.inputs)))
    if node.op == "ScatterND":
        if node.attributes.get("reduction", "none") != "none":
            raise NoInstructionError("it does arithmetic")
        return [0, 2]
    return [0]


def _fill(low: Lowering, node: Node) -> float | int:
    """What Pad puts around."""
    if node.op != "Pad" or not node.input(2):
        return 0
    value = low.value(node.input(2))
    if value is None:
        raise NoInstructionError("what it pads with is computed at run time")
    return value.reshape(-1)[0].item() if value.size else 0


def numbers_of(shape: tuple[int, ...]) -> np.ndarray:
    """An array of this shape whose elements are numbered."""
    (numbers,) = _numbers([shape])
    return numbers


def _numbers(shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """Arrays of these shapes whose elements are numbered through all of them."""
    first, numbered = 0, []
    for shape in shapes:
        numbered.append(np.arange(first, first + prod(shape)).reshape(shape))
        first += prod(shape)
    return numbered


def spread(low: Lowering, name: str, result: str) -> Rows:
    """A tensor repeated within rows to the shape, and the order, of the result of an elementwise operator."""
    shape = low.shape(result)
    if prod(shape) > MOST_ELEMENTS:
        raise NoInstructionError(TOO_LARGE)
    value = low.value(name)
    if value is not None:
        return low.constant_rows(result, np.broadcast_to(value, shape))
    return rearranged(low, [name], result, np.broadcast_to(numbers_of(low.shape(name)), shape), 0)


def rearranged(low: Lowering, sources: Sequence[str], result: str, numbers: np.ndarray, fill: float | int) -> Rows:
    """Rows in the form of ``result``, whose elements are those of ``sources`` with these numbers, or ``fill``.

    Raises NoInstructionError where an element comes from another row.
    """
    if numbers.size > MOST_ELEMENTS:
        raise NoInstructionError(TOO_LARGE)
    if not numbers.size:
        raise NoInstructionError("it moves nothing")
    columns = _columns(low, sources, result, numbers)
    parts = [low.read(name) for name in sources]
    dtype = parts[0].dtype
    if any(part.dtype != dtype for part in parts):
        raise NoInstructionError("its operands are of different types")
    timed, batched = any(part.timed for part in parts), any(part.batched for part in parts)
    out = low.new_rows(result, timed, batched, columns.shape[1], dtype)
    if (columns[0] == NOWHERE).any():
        low.copy(filled(low, out, fill), out)
    for index, part in enumerate(parts):
        places = np.flatnonzero(columns[0] == index)
        if places.size:
            emit_pieces(low, part, out, columns[1][places], places)
    return out


def rearranged_row(low: Lowering, name: str, x: Rows, columns: np.ndarray, fill: float | int) -> Rows:
    """Rows whose columns are these columns of ``x``, or ``fill`` where a column is NOWHERE."""
    out = low.new_rows(name, x.timed, x.batched, columns.size, x.dtype)
    places = np.flatnonzero(columns != NOWHERE)
    if places.size < columns.size:
        low.copy(filled(low, out, fill), out)
    emit_pieces(low, x, out, columns[places], places)
    return out


def _columns(low: Lowering, sources: Sequence[str], result: str, numbers: np.ndarray) -> np.ndarray:
    """For each column of the result the source it comes from (NOWHERE: none) and the column there: [2, width]."""
    whole = low.form(result)
    if any(form.timed > whole.timed or form.batched > whole.batched for form in map(low.form, sources)):
        raise NoInstructionError("it takes one of several rows")
    places = np.concatenate([homes(low, index, name) for index, name in enumerate(sources)])
    physical = physical_numbers(low, result, numbers)
    found = np.where(physical[..., None] == NOWHERE, [NOWHERE, 0, NOWHERE, NOWHERE], places[physical])
    steps, rows = np.arange(physical.shape[0])[:, None, None], np.arange(physical.shape[1])[None, :, None]
    from_step, from_row = found[..., 2], found[..., 3]
    if ((from_step != NOWHERE) & (from_step != steps)).any() or ((from_row != NOWHERE) & (from_row != rows)).any():
        raise NoInstructionError("it moves elements from row to row")
    if (found[..., :2] != found[:1, :1, :, :2]).any():
        raise NoInstructionError("it moves the elements of each row in another way")
    columns: np.ndarray = found[0, 0, :, :2].T
    return columns


def physical_numbers(low: Lowering, name: str, numbers: np.ndarray) -> np.ndarray:
    """An array in the shape of a tensor as its rows: [T or 1, B or 1, width]."""
    roles = low.roles
    return to_physical(numbers, roles.axes[name], roles.sizes, roles.time, roles.batch, low.form(name))


def homes(low: Lowering, index: int, name: str) -> np.ndarray:
    """For each element of a tensor: the source's index, its column, step and row (NOWHERE: in all of them)."""
    form, shape = low.form(name), low.shape(name)
    physical = physical_numbers(low, name, numbers_of(shape))
    places = np.empty((prod(shape), 4), np.int64)
    steps, rows, columns = np.indices(physical.shape)
    for column, value in enumerate(
        (index, columns, steps if form.timed else NOWHERE, rows if form.batched else NOWHERE)
    ):
        places[physical.reshape(-1), column] = np.broadcast_to(value, physical.shape).reshape(-1)
    return places


def filled(low: Lowering, like: Rows, fill: float | int) -> Rows:
    """A constant row of one value, as wide as another."""
    values = np.full(like.width, fill, like.dtype)
    return Rows(Pinned(low.store.shared(values, like.dtype)), 0, False, False, like.width, like.dtype)


def _pieces(sources: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Runs of elements that lie together on both sides, those that follow evenly as one.

    [count, 6]: source, target, length, how many runs, and from one to the next in source and target.
    """
    breaks = np.flatnonzero((np.diff(sources) != 1) | (np.diff(targets) != 1)) + 1
    starts = np.concatenate([[0], breaks])
    lengths = np.diff(np.concatenate([starts, [len(sources)]]))
    runs = np.stack([sources[starts], targets[starts], lengths], axis=1)
    steps = np.diff(runs, axis=0)
    firsts, alike = progressions(steps, (steps[:, :2] >= 0).all(axis=1) & (steps[:, 2] == 0))
    following = np.concatenate([steps, np.zeros((1, 3), np.int64)])[firsts, :2]
    return np.column_stack([runs[firsts], alike, np.where(alike[:, None] > 1, following, 0)])


def progressions(steps: np.ndarray, even: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Things with these steps from one to the next, in runs of one and the same step: first of each run, how many.

    ``even``: the steps that may be within a run.
    """
    if not len(steps):
        return np.zeros(1, np.int64), np.ones(1, np.int64)
    other = np.concatenate([[False], np.diff(steps.reshape(len(steps), -1), axis=0).any(axis=1)])
    breaks = np.flatnonzero(~even | (other & np.concatenate([[False], even[:-1]]))) + 1
    starts = np.concatenate([[0], breaks])
    return starts, np.diff(np.concatenate([starts, [len(steps) + 1]]))


def emit_pieces(low: Lowering, source: Rows, target: Rows, columns: np.ndarray, places: np.ndarray) -> None:
    """Append REARRANGE: these columns of the source's rows to these places of the target's."""
    size = source.dtype.itemsize
    table = np.ascontiguousarray(_pieces(columns, places) * [size, size, size, 1, size, size], np.int64)
    low.emit(
        Opcode.REARRANGE,
        {
            Rearrange.SOURCE: source.place,
            Rearrange.SOURCE_STEP: low.step_stride(source),
            Rearrange.SOURCE_ROW: source.stride if source.batched else 0,
            Rearrange.TARGET: target.place,
            Rearrange.TARGET_STEP: low.step_stride(target),
            Rearrange.TARGET_ROW: target.stride,
            Rearrange.PIECES: Pinned(low.store.shared(table, np.int64)),
            Rearrange.COUNT: len(table),
            Rearrange.ROWS: low.per_step(target),
            Rearrange.TIMED: int(target.timed),
        },
        f"{int(table[:, 3].sum())} pieces of {int(table[:, 2] @ table[:, 3])} bytes",
    )
