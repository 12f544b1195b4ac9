"""Columns of sequences: values one behind the other, and where each sequence begins; whole columns in, whole ones out.

Rows of one length run as the rows of a program (``blocks.py``), whatever order they come in. Nothing is padded and
nothing is done for each sequence by itself, and a row's bits are those that ``run()`` gives the sequence alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from typing import Any, Final, TypeAlias

import numpy as np

from .blocks import Blocks, shares_of
from .errors import InputError, LstmEngineError, UnsupportedModelError, listed, of_row
from .feeds import converted
from .graph import Graph, TensorSpec
from .many import Arrangement
from .passes.axes import assign_roles
from .passes.shapes import specialise
from .program.packing import Store
from .program.plan import OTHER_STEPS, Lowered, lower_run
from .program.program import Means
from .program.streaming import branched, probe
from .reference import completed, is_control

ROWS_AT_ONCE: Final = 1024  # of one length, laid out beside each other before they run
ELEMENTS_AT_ONCE: Final = 1 << 21
SEVERAL: Final = -1  # in the place of the axis of steps of an output: there is more than one


@dataclass(frozen=True, eq=False)
class Ragged:
    """Sequences of any lengths: ``values`` [steps of all, …]; sequence k is ``values[offsets[k]:offsets[k + 1]]``."""

    values: np.ndarray
    offsets: np.ndarray

    def __post_init__(self) -> None:
        offsets = np.asarray(self.offsets)
        if offsets.ndim != 1 or not len(offsets) or offsets.dtype.kind not in "iu":
            raise InputError(f"Ragged: expected offsets int[rows + 1], got {offsets.dtype}{list(offsets.shape)}")
        offsets = offsets.astype(np.int64, copy=False)
        values = np.asarray(self.values)
        if values.ndim < 1 or offsets[0] < 0 or offsets[-1] > len(values) or (np.diff(offsets) < 0).any():
            raise InputError(
                f"Ragged: expected offsets that rise from 0 to at most the {len(values) if values.ndim else 0} steps "
                f"that values have; got {offsets[0]} to {offsets[-1]}"
            )
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "offsets", offsets)

    @staticmethod
    def of(sequences: Iterable[Any]) -> Ragged:
        """The column of some sequences, steps first. Raises InputError where they do not go together."""
        arrays = [np.asarray(sequence) for sequence in sequences]
        shapes = {array.shape[1:] for array in arrays if array.size} or {array.shape[1:] for array in arrays}
        if len(shapes) > 1 or any(array.ndim == 0 for array in arrays):
            got = ", ".join(str(list(array.shape)) for array in arrays[:4])
            raise InputError(f"Ragged.of: expected sequences [steps, …] of steps of one shape; got shapes {got}, …")
        whole = [array for array in arrays if array.size] or arrays or [np.zeros(0, np.float32)]
        return Ragged(np.concatenate(whole), np.cumsum([0, *map(len, arrays)]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        """One sequence, as a view."""
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        row %= len(self)
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[row] for row in range(len(self)))

    @property
    def lengths(self) -> np.ndarray:
        """Steps of each sequence."""
        steps: np.ndarray = np.diff(self.offsets)
        return steps

    def shortened(self, lengths: Any) -> Ragged:
        """The first steps of each sequence, ``lengths`` of them: what lies behind is padding."""
        kept = converted(TensorSpec("lengths", np.dtype(np.int64), ("rows",)), lengths)
        if kept.shape != (len(self),):
            raise InputError(f"lengths: expected one for each of {len(self)} rows, got shape {list(kept.shape)}")
        if len(wrong := np.flatnonzero((kept < 0) | (kept > self.lengths))):
            row = int(wrong[0])
            raise of_row(row, InputError(f"length {kept[row]} lies outside 0 to its {self.lengths[row]} steps"))
        return Ragged(self.values[_places(self.offsets[:-1], kept)], np.concatenate([[0], np.cumsum(kept)]))


Column: TypeAlias = "Ragged | np.ndarray"


def _places(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The places of the steps of sequences that begin at ``starts``, one sequence after the other."""
    ends = np.cumsum(lengths)
    places: np.ndarray = np.repeat(starts - ends + lengths, lengths) + np.arange(ends[-1] if len(ends) else 0)
    return places


# --- what a model's arrays look like row by row -----------------------------------------------------------------------


@dataclass(frozen=True)
class Form:
    """How the rows of an input or output lie in an array of a call: the axis of its rows, and that of its steps.

    ``running``: its steps are those that the model's layers run along.
    """

    spec: TensorSpec
    rank: int
    rows: int | None
    steps: int | None
    running: bool = False

    @property
    def inner(self) -> tuple[int | None, ...]:
        """The shape of one step of one row; None: open."""
        axes = (axis for axis in range(self.rank) if axis not in (self.rows, self.steps))
        shape = self.spec.shape or (None,) * self.rank
        return tuple(size if isinstance(size := shape[axis], int) else None for axis in axes)

    def _order(self) -> list[int]:
        """The axes of a call's array as they lie in a column: rows, steps, the others."""
        leading = [axis for axis in (self.rows, self.steps) if axis is not None]
        return leading + [axis for axis in range(self.rank) if axis not in leading]

    def to_call(self, column: np.ndarray) -> np.ndarray:
        """[rows, steps, …] as a call takes it; without an axis of rows there is one of them."""
        rows = column if self.rows is not None else column[0]
        call: np.ndarray = np.ascontiguousarray(rows.transpose(np.argsort(self._order()).tolist()))
        return call

    def from_call(self, array: np.ndarray) -> np.ndarray:
        """Back from to_call()'s form."""
        moved: np.ndarray = array.transpose(self._order())
        return moved if self.rows is not None else moved[np.newaxis]

    def in_steps(self, column: Any) -> Ragged:
        """A column of an input that has steps, in its own dtype. Raises InputError naming the first row at fault."""
        spec, inner = self.spec, self.inner
        values = converted(spec, column.values if isinstance(column, Ragged) else column)
        if isinstance(column, Ragged):
            offsets = column.offsets
        elif values.ndim > 1:
            rows, steps = values.shape[:2]
            values, offsets = values.reshape(rows * steps, *values.shape[2:]), np.arange(rows + 1) * steps
        else:
            raise InputError(f"'{spec}': expected sequences: Ragged, or an array [rows, steps, …]")
        if values.shape[1:] == inner:
            return Ragged(np.ascontiguousarray(values), offsets)
        if values.ndim > 1:
            raise InputError(f"'{spec}': expected steps of shape {list(inner)}, got {list(values.shape[1:])}")
        width = max(1, prod(size or 0 for size in inner))
        lengths = np.diff(offsets)
        if len(wrong := np.flatnonzero(lengths % width)):
            row = int(wrong[0])
            got = f"{lengths[row]} numbers are no whole steps of {width} (shape {list(inner)})"
            raise of_row(row, InputError(f"'{spec}': {got}"))
        held = np.ascontiguousarray(values[offsets[0] : offsets[-1]])
        shape = (len(held) // width, *(size or 0 for size in inner))
        return Ragged(held.reshape(shape), (offsets - offsets[0]) // width)

    def shape_of(self, rows: int, steps: int) -> tuple[int, ...]:
        """The shape that a call's array has."""
        sizes = iter(self.inner)
        return tuple(
            rows if axis == self.rows else steps if axis == self.steps else next(sizes) or 0
            for axis in range(self.rank)
        )


def forms_of(graph: Graph, arrangement: Arrangement) -> tuple[dict[str, Form], dict[str, Form]]:
    """The forms of a network's inputs and outputs.

    Raises UnsupportedModelError where sizes of rows are open that are no steps, or several of an output's hang on them.
    """
    try:
        probed = probe(graph, 1)
        roles = assign_roles(probed.graph, probed.known)
        rows = arrangement.rows
        inputs = {}
        for spec in graph.inputs:
            batch = None if rows is None else rows.inputs[spec.name]
            axis = roles.axis_of(spec.name, roles.time)
            open_ = [k for k, size in enumerate(spec.shape or ()) if not isinstance(size, int) and k != batch]
            found = axis if axis in open_ else open_[0] if len(open_) == 1 else None
            inputs[spec.name] = Form(spec, len(spec.shape or ()), batch, found, found is not None and found == axis)
        longer = {
            name: tuple(size + OTHER_STEPS * (k == inputs[name].steps) for k, size in enumerate(shape))
            for name, shape in probed.shapes.items()
        }
        beyond = specialise(branched(graph, longer).graph, longer)
    except LstmEngineError as fault:
        raise UnsupportedModelError(
            f"{graph.origin}: the sizes of its results cannot be told ahead ({fault}); run_many() takes it"
        ) from fault
    outputs = {}
    for spec in graph.outputs:
        here, there = probed.known.shapes[spec.name], beyond.shapes[spec.name]
        batch = None if rows is None else rows.outputs[spec.name]
        varying = [axis for axis, sizes in enumerate(zip(here, there, strict=True)) if sizes[0] != sizes[1]]
        several = SEVERAL if varying else None
        outputs[spec.name] = Form(spec, len(here), batch, varying[0] if len(varying) == 1 else several)
    open_inputs = [f"'{form.spec}'" for form in inputs.values() if form.rows is not None and None in form.inner]
    if open_inputs:
        raise UnsupportedModelError(
            f"{graph.origin}: which axes of {', '.join(open_inputs)} are rows and steps is not certain; "
            "run_many() takes sequences as run() does"
        )
    return inputs, outputs


# --- runs -------------------------------------------------------------------------------------------------------------

Arrays: TypeAlias = dict[str, np.ndarray]
Run: TypeAlias = Callable[[Arrays, Sequence[str]], Arrays]


class Columns:
    """Runs of a model over whole columns."""

    def __init__(self, graph: Graph, store: Store, means: Means, arrangement: Arrangement, run: Run) -> None:
        """``run``: a call of the model."""
        self.graph, self._run = graph, run
        self._store, self._means = store, means
        self.inputs, self.outputs = forms_of(graph, arrangement)
        self._together = arrangement.together
        running = all(form.running or form.steps is None for form in self.inputs.values())
        axes = {form.spec.name: form.rows for form in (*self.inputs.values(), *self.outputs.values())}
        found = {name: axis for name, axis in axes.items() if axis is not None}
        plain = running and len(found) == len(axes) and not any(is_control(node) for node in graph.nodes)
        self._blocks = Blocks(self._lower, found) if self._together and plain else None

    def _lower(self, rows: int, steps: int) -> Lowered | None:
        shapes = {name: form.shape_of(rows, steps) for name, form in self.inputs.items()}
        try:
            return lower_run(self.graph, shapes, self._store, self._means)
        except LstmEngineError:  # run() says what of, if it has no other way either
            return None

    def prepare(self) -> None:
        """Pack the weights, as the first run would."""
        if self._blocks is not None:
            self._blocks.prepare()

    def run(self, columns: Mapping[str, Any], wanted: Sequence[str]) -> dict[str, Column]:
        """All rows. Raises InputError naming the first row that cannot be run."""
        if several := [name for name in wanted if self.outputs[name].steps == SEVERAL]:
            raise UnsupportedModelError(
                f"{self.graph.origin}: rows of {', '.join(several)} are of several open sizes; choose other outputs"
            )
        given, shared, count = self._checked(columns)
        parts: list[tuple[np.ndarray, Arrays]] = []
        for rows in _alike([column.lengths for column in given.values() if isinstance(column, Ragged)], count):
            parts.extend(self._run_alike(rows, given, shared, wanted))
        return {name: self._assembled(name, count, [(rows, made[name]) for rows, made in parts]) for name in wanted}

    # --- feeds -------------------------------------------------------------------------------------------------------

    def _checked(self, columns: Mapping[str, Any]) -> tuple[dict[str, Column], Arrays, int]:
        """Columns as the inputs have them; inputs that all rows share; the number of rows."""
        faults = [f"'{name}' is not an input" for name in columns if name not in self.inputs]
        faults += [
            f"'{form.spec}' is missing"
            for name, form in self.inputs.items()
            if name not in columns and not form.spec.optional
        ]
        given: dict[str, Column] = {}
        shared: Arrays = {}
        for name, form in self.inputs.items():
            try:
                if name not in columns:
                    continue
                if form.rows is None and any(each.rows is not None for each in self.inputs.values()):
                    shared[name] = converted(form.spec, columns[name])
                else:
                    given[name] = _fitted(form, columns[name])
            except InputError as fault:
                if fault.row is not None:
                    raise
                faults.append(str(fault))
        counts = {name: len(column) for name, column in given.items()}
        if len(set(counts.values())) > 1:
            faults.append(f"columns of different numbers of rows: {counts}")
        if faults:
            expected = "; ".join(map(str, self.graph.inputs))
            raise InputError(listed(f"columns for {self.graph.origin} (inputs: {expected})", faults))
        return given, shared, next(iter(counts.values()), 0)

    # --- rows of one length ------------------------------------------------------------------------------------------

    def _run_alike(
        self, rows: np.ndarray, given: Mapping[str, Column], shared: Arrays, wanted: Sequence[str]
    ) -> Iterator[tuple[np.ndarray, Arrays]]:
        """The results of rows whose inputs are as long as each other's, some at a time."""
        first = int(rows[0])
        sizes = [
            prod(column[first].shape) if isinstance(column, Ragged) else prod(column.shape[1:])
            for column in given.values()
        ]
        at_once = max(1, min(ROWS_AT_ONCE, ELEMENTS_AT_ONCE // max(1, *sizes)))
        for begin in range(0, len(rows), at_once):
            mine = rows[begin : begin + at_once]
            laid = {name: _laid(column, mine) for name, column in given.items()}
            yield mine, self._run_laid(mine, laid, shared, wanted)

    def _run_laid(self, rows: np.ndarray, laid: Arrays, shared: Arrays, wanted: Sequence[str]) -> Arrays:
        """The results of rows laid beside each other; where there are none, the fault of the first that is at fault."""
        with suppress(LstmEngineError):  # of some row: its own run says so
            made = self._by_block(laid, wanted) if not shared else None
            if made is not None:
                return made
            if self._together and all(array.size for array in laid.values()):
                return _joined([self._call(part, shared, wanted) for part in _cut(laid, shares_of(len(rows)))])
        singles = []
        for row, part in zip(rows.tolist(), _cut(laid, [1] * len(rows)), strict=True):
            try:
                singles.append(self._call(part, shared, wanted))
            except LstmEngineError as fault:
                raise of_row(row, fault) from fault
        return _joined(singles)

    def _by_block(self, laid: Arrays, wanted: Sequence[str]) -> Arrays | None:
        """By programs of several rows, None where there are none for these."""
        steps = {array.shape[1] for name, array in laid.items() if self.inputs[name].steps is not None}
        if self._blocks is None or len(steps) > 1 or 0 in steps:
            return None
        count, length = len(next(iter(laid.values()))), next(iter(steps), 1)
        absent = {name: form for name, form in self.inputs.items() if name not in laid}
        zeros = self._zeros(laid, absent) if absent else {}
        return self._blocks.run(count, length, laid | zeros, wanted)

    def _zeros(self, laid: Arrays, absent: Mapping[str, Form]) -> Arrays:
        """What stands in for inputs that are left out."""
        called = {name: self.inputs[name].to_call(array) for name, array in laid.items()}
        whole = completed(self.graph, called)
        return {name: np.ascontiguousarray(form.from_call(whole[name])) for name, form in absent.items()}

    def _call(self, laid: Arrays, shared: Arrays, wanted: Sequence[str]) -> Arrays:
        """By a call of the model."""
        called = {name: self.inputs[name].to_call(array) for name, array in laid.items()}
        made = self._run(called | shared, wanted)
        return {name: self.outputs[name].from_call(array) for name, array in made.items()}

    # --- results -----------------------------------------------------------------------------------------------------

    def _assembled(self, name: str, count: int, parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> Column:
        """An output's column, from the results of rows in any order."""
        form = self.outputs[name]
        timed = form.steps is not None
        inner = {array.shape[1 + timed :]: int(rows[0]) for rows, array in parts if array.size or not timed}
        if len(inner) > 1:
            (usual, _), *_, (other, row) = inner.items()
            shapes = f"'{form.spec}' has shape {list(other)}, where others have {list(usual)}"
            raise of_row(row, InputError(f"{shapes}: that is no column; run_many() gives each by itself"))
        shape = next(iter(inner), tuple(size or 0 for size in form.inner))
        dtype = parts[0][1].dtype if parts else form.spec.dtype
        if not timed:
            column = np.empty((count, *shape), dtype)
            for rows, array in parts:
                column[rows] = array
            return column
        lengths = np.zeros(count, np.int64)
        for rows, array in parts:
            lengths[rows] = array.shape[1]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        values = np.empty((int(offsets[-1]), *shape), dtype)
        for rows, array in ((rows, array) for rows, array in parts if array.size):
            values[offsets[rows][:, np.newaxis] + np.arange(array.shape[1])] = array
        return Ragged(values, offsets)


def _fitted(form: Form, column: Any) -> Column:
    """A column as an input has it, in its own dtype. Raises InputError naming the first row that does not fit."""
    if form.steps is not None:
        return form.in_steps(column)
    spec = form.spec
    if not isinstance(column, Ragged):
        array = converted(spec, column)
        return _rows_of(spec, form.inner, Ragged(array.reshape(array.size), _even(array)))
    values = converted(spec, column.values)
    return _rows_of(spec, form.inner, Ragged(values.reshape(values.size), column.offsets * prod(values.shape[1:])))


def _even(array: np.ndarray) -> np.ndarray:
    """Offsets of rows in an array that is flattened."""
    if array.ndim == 0:
        raise InputError("expected a row for each sequence, got a single number")
    return np.arange(len(array) + 1) * prod(array.shape[1:])


def _rows_of(spec: TensorSpec, inner: tuple[int | None, ...], flat: Ragged) -> np.ndarray:
    """Rows that all have the same, declared number of elements."""
    sizes = tuple(size or 0 for size in inner)
    if len(wrong := np.flatnonzero(flat.lengths != prod(sizes))):
        row = int(wrong[0])
        expected = f"expected {prod(sizes)} numbers (shape {list(sizes)})"
        raise of_row(row, InputError(f"'{spec}': {expected}, got {flat.lengths[row]}"))
    held = flat.values[flat.offsets[0] : flat.offsets[-1]]
    return np.ascontiguousarray(held).reshape(len(flat), *sizes)


def _alike(lengths: Sequence[np.ndarray], count: int) -> Iterator[np.ndarray]:
    """Rows whose lengths are the same in all columns, longest first, each time in their order."""
    if not count:
        return
    if not lengths:
        yield np.arange(count)
        return
    _, kinds = (
        np.unique(np.stack(lengths, axis=1), axis=0, return_inverse=True)
        if len(lengths) > 1
        else np.unique(lengths[0], return_inverse=True)
    )
    kinds = kinds.reshape(count)
    order = np.argsort(kinds, kind="stable")
    ends = np.cumsum(np.bincount(kinds))
    yield from reversed(np.split(order, ends[:-1]))


def _laid(column: Column, rows: np.ndarray) -> np.ndarray:
    """Rows of one length beside each other: [rows, steps, …] or [rows, …]."""
    first, last = int(rows[0]), int(rows[-1])
    neighbours = last - first + 1 == len(rows)
    if not isinstance(column, Ragged):
        return column[first : last + 1] if neighbours else column[rows]
    begin, steps = column.offsets[first], int(column.offsets[first + 1] - column.offsets[first])
    if neighbours:
        values = column.values[begin : column.offsets[last + 1]]
        return values.reshape(len(rows), steps, *values.shape[1:])
    laid: np.ndarray = column.values[column.offsets[rows][:, np.newaxis] + np.arange(steps)]
    return laid


def _cut(laid: Arrays, shares: Sequence[int]) -> Iterator[Arrays]:
    first = 0
    for share in shares:
        yield {name: array[first : first + share] for name, array in laid.items()}
        first += share


def _joined(parts: Sequence[Arrays]) -> Arrays:
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
