"""Loop and Scan nodes whose body is one step of recurrent cells become LSTM, GRU and RNN nodes.

A body is understood whole or not at all: each state it carries is a cell's, a counter or never changed; what it reads
of the outside is constant or the next step of a sequence; it runs once for every step of that sequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from ...graph import Graph, Node, TensorSpec, reads
from ..shape_rules import Known
from .agreement import agrees
from .cells import Cell, gru_forms, lstm_forms, rnn_forms, weighted
from .elements import Elements, Ids, Kind, TooManyError
from .surroundings import Surroundings
from .trace import Trace
from .writing import Writer, is_state_form


@dataclass(frozen=True)
class Carried:
    """A tensor that each step hands to the next: its names outside before, in the body before, after, and outside."""

    initial: str
    old: str
    new: str
    final: str


@dataclass(frozen=True)
class Collected:
    """A tensor of each step that is stacked: its name in the body and outside, the axis, whether last step first.

    ``appended``: the step's tensor has that axis already, of length 1.
    """

    step: str
    whole: str
    axis: int = 0
    backwards: bool = False
    appended: bool = False


@dataclass(frozen=True)
class Sequenced:
    """A tensor of which a step reads a slice: its name in the body and outside, the axis, whether last slice first."""

    step: str
    whole: str
    axis: int = 0
    backwards: bool = False


@dataclass(frozen=True)
class Steps:
    """A Loop or Scan in one form. ``nodes``: those of the body, reading what never changes from outside."""

    node: Node
    body: Graph
    nodes: tuple[Node, ...]
    carried: tuple[Carried, ...]
    collected: tuple[Collected, ...]
    sequences: tuple[Sequenced, ...]

    @property
    def backwards(self) -> bool:
        """Whether the steps go from the last to the first."""
        return bool(self.sequences) and self.sequences[0].backwards


@dataclass(frozen=True)
class Found:
    """The cells of a body at one set of sizes: each with its state's place among ``carried`` (h, and c or -1)."""

    trace: Trace
    cells: tuple[tuple[Cell, int, int], ...]


def recognised(node: Node, surroundings: Sequence[Surroundings], used: set[str], writer: Writer) -> bool:
    """Whether a Loop or Scan could be written as recurrent nodes; if so the writer has them.

    ``surroundings``: at several sets of sizes, the last far beyond any step count. ``used``: tensors that are read.
    """
    try:
        read = [_steps(node, around) for around in surroundings]
        steps = read[0]
        if steps is None or any(each is None or _plan(each) != _plan(steps) for each in read):
            return False
        found = [_found(steps, around) for around in surroundings[: max(1, len(surroundings) - 1)]]
    except TooManyError:
        return False
    first = found[0]
    if first is None or not all(each is not None and _alike(first, each) for each in found):
        return False
    return _written(steps, first, surroundings[0], used, writer)


def _plan(steps: Steps) -> tuple[Any, ...]:
    return steps.carried, steps.collected, steps.sequences


def _alike(one: Found, other: Found) -> bool:
    return len(one.cells) == len(other.cells) and all(
        mine[1:] == its[1:] and mine[0].alike(its[0]) for mine, its in zip(one.cells, other.cells, strict=True)
    )


# --- reading the node -------------------------------------------------------------------------------------------------


def _steps(node: Node, around: Surroundings) -> Steps | None:
    return _loop_steps(node, around) if node.op == "Loop" else _scan_steps(node, around)


def _scan_steps(node: Node, around: Surroundings) -> Steps | None:
    body = node.attributes.get("body")
    count = _integer(node, "num_scan_inputs", 0)
    if (
        not isinstance(body, Graph)
        or count is None
        or not 0 < count <= len(node.inputs)
        or len(body.inputs) != len(node.inputs)
    ):
        return None
    states = len(node.inputs) - count
    if len(body.outputs) < states or len(node.outputs) > len(body.outputs):
        return None
    carried, nodes = _carried(body, node.inputs[:states], body.inputs[:states], body.outputs[:states], node.outputs)
    results = len(body.outputs) - states
    in_axes, out_axes = (_listed(node, f"scan_{way}put_axes", size) for way, size in (("in", count), ("out", results)))
    ins, outs = (_listed(node, f"scan_{way}put_directions", size) for way, size in (("in", count), ("out", results)))
    if in_axes is None or out_axes is None or ins is None or outs is None:
        return None
    sequences = []
    for spec, whole, axis, way in zip(body.inputs[states:], node.inputs[states:], in_axes, ins, strict=True):
        shape = around.shape(whole)
        if shape is None or not -len(shape) <= axis < len(shape):
            return None
        sequences.append(Sequenced(spec.name, whole, axis % len(shape), bool(way)))
    collected = []
    for k, spec in enumerate(body.outputs[states:]):
        if out_axes[k] < 0:
            return None
        collected.append(Collected(spec.name, node.output(states + k), out_axes[k], bool(outs[k])))
    if len({sequence.backwards for sequence in sequences}) > 1:
        return None
    return Steps(node, body, nodes, carried, tuple(collected), tuple(sequences))


def _listed(node: Node, attribute: str, count: int) -> tuple[int, ...] | None:
    """A number for each of ``count`` inputs or outputs: zeros where there is no such attribute; None if it is wrong."""
    given = node.attributes.get(attribute, (0,) * count)
    fits = isinstance(given, tuple) and len(given) == count and all(isinstance(value, int) for value in given)
    return tuple(given) if fits else None


def _integer(node: Node, attribute: str, default: int) -> int | None:
    value = node.attributes.get(attribute, default)
    return value if isinstance(value, int) else None


def _carried(
    body: Graph,
    initial: Sequence[str],
    old: Sequence[TensorSpec],
    new: Sequence[TensorSpec],
    final: Sequence[str],
) -> tuple[tuple[Carried, ...], tuple[Node, ...]]:
    """The states of a body; those that are handed on as they are become what they were at first."""
    states = []
    fixed: dict[str, str] = {}
    for k, (start, before, after) in enumerate(zip(initial, old, new, strict=True)):
        if before.name == after.name:
            fixed[before.name] = start
        states.append(Carried(start, before.name, after.name, final[k] if k < len(final) else ""))
    nodes = tuple(replace(node, inputs=tuple(fixed.get(name, name) for name in node.inputs)) for node in body.nodes)
    return tuple(states), nodes


def _loop_steps(node: Node, around: Surroundings) -> Steps | None:
    body = node.attributes.get("body")
    states = len(node.inputs) - 2
    if not isinstance(body, Graph) or states < 0 or len(body.inputs) != states + 2 or len(body.outputs) < states + 1:
        return None
    carried, nodes = _carried(body, node.inputs[2:], body.inputs[2:], body.outputs[1 : states + 1], node.outputs)
    collected = tuple(
        Collected(spec.name, node.output(states + k)) for k, spec in enumerate(body.outputs[states + 1 :])
    )
    growing = [found for state in carried if (found := _appended(state, nodes, around)) is not None]
    carried = tuple(state for state in carried if state.final not in {each.whole for each in growing})
    collected = (*collected, *growing)
    steps = Steps(node, body, nodes, carried, collected, ())
    counting = _Counting(steps, around)
    sequences = tuple(counting.sequences())
    lengths = {around.known[each.whole].shape[each.axis] for each in sequences}
    if len(lengths) != 1 or len({each.backwards for each in sequences}) != 1 or counting.trips() != lengths.pop():
        return None
    return replace(steps, sequences=sequences)


def _appended(state: Carried, nodes: Sequence[Node], around: Surroundings) -> Collected | None:
    """What is collected by a state that begins with nothing and gets a slice more in each step."""
    readers = [node for node in nodes if state.old in reads(node)]
    shape = around.shape(state.initial)
    if len(readers) != 1 or readers[0].op != "Concat" or readers[0].output(0) != state.new or not shape:
        return None
    axis = _integer(readers[0], "axis", 0)
    if axis is None or not -len(shape) <= axis < len(shape):
        return None
    axis %= len(shape)
    if len(readers[0].inputs) != 2 or readers[0].inputs[0] != state.old or shape[axis] != 0 or not state.final:
        return None
    if sum(state.new in reads(node) for node in nodes):
        return None
    return Collected(readers[0].inputs[1], state.final, axis, appended=True)


# --- counting ---------------------------------------------------------------------------------------------------------


class _Counting:
    """The integers of a Loop's body: its counters, its condition and the slices it reads."""

    def __init__(self, steps: Steps, around: Surroundings) -> None:
        self.steps = steps
        self.outside = around
        self.table = Elements()
        inside = around.inside(steps.body)
        self.iteration, self.condition = (spec.name for spec in steps.body.inputs[:2])
        inside.known[self.iteration] = Known((), np.dtype(np.int64))
        inside.known[self.condition] = Known((), np.dtype(bool))
        for state in steps.carried:
            inside.known.pop(state.old, None)
            initial = around.known.get(state.initial)
            if initial is not None:
                inside.known[state.old] = Known(initial.shape, initial.dtype)
        inside.follow(steps.nodes)
        self.trace = Trace(steps.nodes, inside, self.table)
        self._forms: dict[int, tuple[int, int]] = {}
        self._learn()

    def _learn(self) -> None:
        """Which scalars are known functions of the number of the step: slope and value at the first."""
        own = self.trace.leaf(self.iteration)
        if own is not None:
            self._forms[int(own.reshape(-1)[0])] = (1, 0)
        for state in self.steps.carried:
            known = self.outside.known.get(state.initial)
            if known is None or known.dtype.kind not in "iu" or len(known.shape) > 1 or int(np.prod(known.shape)) != 1:
                continue
            old, new = self.trace.ids(state.old), self.trace.ids(state.new)
            if old is None or new is None or known.value is None or not self.table.all_are(new, Kind.ADD):
                continue
            left, right, _ = (part.reshape(-1) for part in self.table.operands(new))
            for one, other in ((left, right), (right, left)):
                if np.array_equal(one, old.reshape(-1)) and self.table.numbers(other)[0] == 1:
                    self._forms[int(one[0])] = (1, int(known.value.reshape(-1)[0]))

    def form(self, expression: int) -> tuple[int, int] | None:
        """(a, b) where the expression is a·i + b in step i."""
        if expression in self._forms:
            return self._forms[expression]
        ids = np.array(expression)
        number = float(self.table.numbers(ids))
        if number.is_integer():
            return 0, int(number)
        kind = Kind(int(self.table.kinds(ids)))
        left, right, _ = (int(operand) for operand in self.table.operands(ids))
        if kind not in (Kind.ADD, Kind.SUB):
            return None
        one, other = self.form(left), self.form(right)
        if one is None or other is None:
            return None
        sign = 1 if kind == Kind.ADD else -1
        return one[0] + sign * other[0], one[1] + sign * other[1]

    def sequences(self) -> Iterator[Sequenced]:
        """The slices that are read by the number of the step, from the first or from the last."""
        made = set(self.trace.producers) | {spec.name for spec in self.steps.body.inputs}
        for node in self.steps.nodes:
            known = self.outside.known.get(node.input(0))
            if node.op != "Gather" or node.domain or node.input(0) in made or known is None or not known.shape:
                continue
            index = self.trace.ids(node.input(1))
            axis = _integer(node, "axis", 0)
            if index is None or axis is None or index.size != 1 or not -known.rank <= axis < known.rank:
                continue
            form = self.form(int(index.reshape(-1)[0]))
            length = known.shape[axis % known.rank]
            if form == (1, 0) or form in ((-1, length - 1), (-1, -1)):
                yield Sequenced(node.output(0), node.input(0), axis % known.rank, form[0] < 0)

    def trips(self) -> int | None:
        """How often the body runs; None where that is not known."""
        most, start = self.steps.node.input(0), self.steps.node.input(1)
        limits = []
        if start and not self._is_true(start):
            return None
        if most:
            value = self.outside.value(most)
            if value is None or value.size != 1:
                return None
            limits.append(int(value.reshape(-1)[0]))
        condition = self.trace.ids(self.steps.body.outputs[0].name)
        if condition is None or condition.size != 1:
            return None
        ends = self._ends(int(condition.reshape(-1)[0]), negated=False)
        if ends is None:
            return None
        limits += ends
        return min(limits) if limits else None

    def _is_true(self, name: str) -> bool:
        value = self.outside.value(name)
        return value is not None and value.size == 1 and bool(value.reshape(-1)[0])

    def _ends(self, expression: int, negated: bool) -> list[int] | None:
        """Trip counts that the parts of a condition allow, None where a part is not understood."""
        ids = np.array(expression)
        kind = Kind(int(self.table.kinds(ids)))
        left, right, _ = (int(operand) for operand in self.table.operands(ids))
        if kind == Kind.NOT:
            return self._ends(left, not negated)
        if kind == Kind.AND and not negated:
            one, other = self._ends(left, False), self._ends(right, False)
            return None if one is None or other is None else one + other
        if kind in (Kind.LESS, Kind.LESS_EQUAL):
            return self._compared(left, right, kind == Kind.LESS, negated)
        if kind == Kind.CONSTANT:
            return [] if bool(self.table.numbers(ids)) != negated else None
        unchanged = self.trace.found.get(self.condition)
        return [] if unchanged is not None and int(unchanged.reshape(-1)[0]) == expression and not negated else None

    def _compared(self, left: int, right: int, strict: bool, negated: bool) -> list[int] | None:
        """Trips while i + k < n (or ≤): the condition is asked after each."""
        if negated:  # not a < b is b ≤ a
            left, right, strict = right, left, not strict
        one, other = self.form(left), self.form(right)
        if one is None or other is None or one[0] != 1 or other[0] != 0:
            return None
        return [max(1, other[1] - one[1] + (1 if strict else 2))]


# --- the body ---------------------------------------------------------------------------------------------------------


def _found(steps: Steps, outside: Surroundings) -> Found | None:
    """The cells of the body, if all of its float states are cells' states."""
    around = outside.inside(steps.body)
    for spec in steps.body.inputs:
        around.known.pop(spec.name, None)
    if steps.node.op == "Loop":
        around.known[steps.body.inputs[0].name] = Known((), np.dtype(np.int64))
        around.known[steps.body.inputs[1].name] = Known((), np.dtype(bool))
    for state in steps.carried:
        known = outside.known.get(state.initial)
        if known is not None:
            around.known[state.old] = Known(known.shape, known.dtype)
    for sequence in steps.sequences if steps.node.op == "Scan" else ():
        known = outside.known[sequence.whole]
        shape = known.shape[: sequence.axis] + known.shape[sequence.axis + 1 :]
        around.known[sequence.step] = Known(shape, known.dtype)
    around.follow(steps.nodes)
    trace = Trace(steps.nodes, around, Elements())
    for name in (*(state.old for state in steps.carried), *(sequence.step for sequence in steps.sequences)):
        trace.leaf(name)
    return _matched(steps, trace)


def _matched(steps: Steps, trace: Trace) -> Found | None:
    states: dict[int, tuple[Ids, Ids]] = {}
    for place, state in enumerate(steps.carried):
        old, new = trace.ids(state.old), trace.ids(state.new)
        if state.old == state.new or old is None or new is None or old.shape != new.shape:
            continue
        if trace.around.known[state.old].dtype.kind == "f" and old.ndim and is_state_form(old.shape):
            states[place] = _rows(old), _rows(new)
    cells: list[tuple[Cell, int, int]] = []
    while True:
        match = _next_cell(steps, trace, states, cells)
        if match is None:
            break
        cells.append(match)
        for place in match[1:]:
            states.pop(place, None)
    if not cells or not all(agrees(trace, cell, _dtype(steps, trace, h)) for cell, h, _ in cells):
        return None
    return Found(trace, tuple(cells))


def _dtype(steps: Steps, trace: Trace, place: int) -> np.dtype[Any]:
    return trace.around.known[steps.carried[place].old].dtype


def _rows(ids: Ids) -> Ids:
    return ids.reshape(prod(ids.shape[:-1]), ids.shape[-1])


def _next_cell(
    steps: Steps, trace: Trace, states: Mapping[int, tuple[Ids, Ids]], cells: Sequence[tuple[Cell, int, int]]
) -> tuple[Cell, int, int] | None:
    """A cell whose inputs are sequences or the states of cells found before."""
    for place, (old, new) in states.items():
        for cell, c_place in _cells_of(trace.table, place, old, new, states):
            if _sources(steps, trace, cell, cells) is not None:
                return cell, place, c_place
    return None


def _cells_of(
    table: Elements, place: int, old: Ids, new: Ids, states: Mapping[int, tuple[Ids, Ids]]
) -> Iterator[tuple[Cell, int]]:
    for gates in lstm_forms(table, new):
        for c_place, (c_old, c_new) in states.items():
            if c_place == place or gates.c_old is None or gates.c_new is None:
                continue
            if np.array_equal(gates.c_old, c_old) and np.array_equal(gates.c_new, c_new):
                cell = weighted(table, gates, old)
                if cell is not None:
                    yield cell, c_place
    for gates in (*gru_forms(table, new), *rnn_forms(table, new)):
        if gates.h_old is None or np.array_equal(gates.h_old, old):
            cell = weighted(table, gates, old)
            if cell is not None:
                yield cell, -1


@dataclass(frozen=True)
class Source:
    """Where some columns of x come from: a sequence (``axis`` of its step is the batch, -1: it has none) or a cell."""

    sequence: int
    cell: int
    axis: int
    features: int
    columns: tuple[int, ...]  # of x
    places: tuple[int, ...]  # among the features


def _sources(
    steps: Steps, trace: Trace, cell: Cell, cells: Sequence[tuple[Cell, int, int]]
) -> tuple[Source, ...] | None:
    """The sequences and cells that x consists of; None if it reads anything else."""
    left = dict(enumerate(cell.x.T))
    found = []
    for number, sequence in enumerate(steps.sequences):
        ids = trace.leaves.get(sequence.step)
        if ids is None:
            continue
        shape = _slice_shape(trace, steps, number)
        for axis, rows in _as_rows(ids.reshape(shape), len(cell.x)):
            source = _taken(left, rows)
            if source:
                found.append(Source(number, -1, axis, rows.shape[1], *zip(*source, strict=True)))
                break
    for number, (earlier, _, _) in enumerate(cells):
        source = _taken(left, earlier.h_new)
        if source:
            found.append(Source(-1, number, -1, earlier.units, *zip(*source, strict=True)))
    return None if left else tuple(found)


def _slice_shape(trace: Trace, steps: Steps, number: int) -> tuple[int, ...]:
    """The shape of one slice of a sequence, the axis it was cut along gone."""
    sequence = steps.sequences[number]
    shape = trace.around.known[sequence.whole].shape
    return shape[: sequence.axis] + shape[sequence.axis + 1 :]


def _as_rows(ids: Ids, batch: int) -> Iterator[tuple[int, Ids]]:
    """The ways to see a slice as [B, features]: the axis that is the batch, -1 for none."""
    for axis, size in enumerate(ids.shape[:-1] if ids.ndim > 1 else ()):
        if size == batch:
            yield axis, np.moveaxis(ids, axis, 0).reshape(batch, -1)
    if batch == 1:
        yield -1, ids.reshape(1, -1)


def _taken(left: dict[int, Ids], rows: Ids) -> list[tuple[int, int]]:
    """The columns that are columns of ``rows``: (which, where there); they are no longer ``left``."""
    places = {int(first): place for place, first in enumerate(rows[0])}
    found = []
    for column, ids in list(left.items()):
        place = places.get(int(ids[0]))
        if place is not None and len(ids) == len(rows) and np.array_equal(rows[:, place], ids):
            found.append((column, place))
            del left[column]
    return found


# --- writing ----------------------------------------------------------------------------------------------------------


def _written(steps: Steps, found: Found, around: Surroundings, used: set[str], writer: Writer) -> bool:
    """Write the cells, if they give everything of the node that something reads."""
    outputs = _deliveries(steps, found, used)
    if outputs is None:
        return False
    label = steps.node.name or next(name for name in steps.node.outputs if name)
    start = len(writer.nodes)
    sequences: list[str] = []  # Y[T,1,B,H] of each cell
    for number, (cell, h, c) in enumerate(found.cells):
        states = [steps.carried[place] for place in (h, c) if place >= 0]
        initial = [writer.as_state(state.initial, found.trace.around.known[state.old].shape) for state in states]
        x, W = _inputs(steps, found, number, sequences, writer)
        Y, *final = writer.cell(
            cell, W, x, [name or "" for name in initial],
            [True, *(state.final in used for state in states)],
            _dtype(steps, found.trace, h),
            writer.fresh(label if len(found.cells) == 1 else f"{label}.{number}"),
            "reverse" if steps.backwards else "forward",
        )  # fmt: skip
        sequences.append(Y)
        for state, name in zip(states, final, strict=False):
            if state.final in used:
                writer.from_state(name, found.trace.around.known[state.old].shape, state.final)
    for collected, number in outputs:
        whole = sequences[number]
        if collected.backwards != steps.backwards:
            bounds = [writer.numbers(value) for value in (-1, -(2**63) + 1, 0, -1)]
            whole = writer.add("Slice", (whole, *bounds), whole)
        shape = _step_shape(found.trace, collected)
        stacked = collected.whole if collected.axis == 0 else writer.fresh(f"{collected.whole}.steps")
        writer.from_sequence(whole, shape, stacked)
        if collected.axis:
            order = [*range(1, collected.axis + 1), 0, *range(collected.axis + 1, len(shape) + 1)]
            writer.transposed(stacked, order, collected.whole)
    assert len(writer.nodes) > start
    return True


def _deliveries(steps: Steps, found: Found, used: set[str]) -> list[tuple[Collected, int]] | None:
    """Which cell's sequence each collected tensor is; None if something is read that no cell gives."""
    own = {place for _, h, c in found.cells for place in (h, c)}
    if any(state.final in used for place, state in enumerate(steps.carried) if place not in own):
        return None
    deliveries = []
    for collected in steps.collected:
        if collected.whole not in used:
            continue
        ids = found.trace.ids(collected.step)
        shape = None if ids is None else _step_shape(found.trace, collected)
        if ids is None or not shape or not is_state_form(shape) or collected.axis > len(shape):
            return None
        ids = ids.reshape(shape)
        cells = [n for n, (cell, _, _) in enumerate(found.cells) if np.array_equal(_rows(ids), cell.h_new)]
        if not cells:
            return None
        deliveries.append((collected, cells[0]))
    return deliveries


def _step_shape(trace: Trace, collected: Collected) -> tuple[int, ...]:
    """The shape of what one step adds, without the axis along which steps are put."""
    shape = trace.around.known[collected.step].shape
    return shape[: collected.axis] + shape[collected.axis + 1 :] if collected.appended else shape


def _inputs(
    steps: Steps, found: Found, number: int, sequences: Sequence[str], writer: Writer
) -> tuple[str, np.ndarray]:
    """X[T,B,I] of a cell and W for it."""
    cell = found.cells[number][0]
    sources = _sources(steps, found.trace, cell, found.cells[:number])
    assert sources is not None  # _next_cell() saw to it
    xs = [_sequence(steps, found, source, sequences, writer) for source in sources]
    W = np.zeros((len(cell.W), sum(source.features for source in sources)))
    first = 0
    for source in sources:
        W[:, first + np.array(source.places)] = cell.W[:, np.array(source.columns)]
        first += source.features
    return writer.joined(xs, 2), W


def _sequence(steps: Steps, found: Found, source: Source, sequences: Sequence[str], writer: Writer) -> str:
    """A source as [T,B,features]."""
    if source.cell >= 0:
        return writer.squeezed(sequences[source.cell], 1)
    sequence = steps.sequences[source.sequence]
    rank = len(found.trace.around.known[sequence.whole].shape)
    rest = [axis for axis in range(rank) if axis != sequence.axis]
    if source.axis >= 0:
        batch = rest.pop(source.axis)
        x = writer.transposed(sequence.whole, (sequence.axis, batch, *rest))
    else:
        x = writer.unsqueezed(writer.transposed(sequence.whole, (sequence.axis, *rest)), 1)
    return x if len(rest) == 1 else writer.add("Reshape", (x, writer.numbers(0, 0, -1)), x)
