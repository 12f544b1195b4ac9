"""Whole sets of sequences: those of one length are rows of one call, whatever order they come in.

A window of sequences lies before whoever takes the results: the oldest is run next, together with all others in the
window that are alike. Nothing is padded, and a row's bits do not depend on its neighbours: each result is what the
sequence gives alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias

import numpy as np

from .errors import InputError, LstmEngineError, UnsupportedModelError
from .graph import Graph, TensorSpec
from .passes.causality import EXACT
from .passes.rows import Rows, rows_apart, rows_of
from .passes.shapes import Specialised, specialise
from .program.packing import Store
from .program.plan import lower_run
from .program.program import Means
from .program.streaming import Probe, branched, probe

Arrays: TypeAlias = dict[str, np.ndarray]
Progress: TypeAlias = Callable[[int, int | None], object]

_MORE_ROWS: Final = 53  # no probe's size


@dataclass(frozen=True)
class Arrangement:
    """How sequences of a model become calls.

    ``rows``: the axis that a batch has in each input and output, None where there is none for certain; a sequence may
    leave it out. ``together``: several sequences may be rows of one call. ``ranks``: axes that inputs have in a call.
    """

    rows: Rows | None
    together: bool
    ranks: Mapping[str, int]

    @staticmethod
    def of(graph: Graph, store: Store, means: Means) -> Arrangement:
        """The arrangement of a network; where its file fixes the batch, sequences go one by one."""
        ranks = {spec.name: len(spec.shape) for spec in graph.inputs if spec.shape is not None}
        rows, apart = _analysed(graph)
        if rows is not None:
            return Arrangement(rows, apart and _exact(graph, store, means), ranks)
        return Arrangement(_analysed(_opened(graph))[0], False, ranks)

    def completed(self, feeds: Mapping[str, Any]) -> tuple[Mapping[str, Any], bool]:
        """The feeds of a sequence with their batch axis; second, whether it had been left out."""
        axes = {} if self.rows is None else {n: a for n, a in self.rows.inputs.items() if a is not None and n in feeds}
        arrays = {name: value for name in axes if (value := _as_array(feeds[name])) is not None}
        if not axes or any(name not in arrays or arrays[name].ndim != self.ranks[name] - 1 for name in axes):
            return feeds, False
        return {**feeds, **{name: arrays[name][(slice(None),) * axis + (None,)] for name, axis in axes.items()}}, True

    def kind(self, feeds: Arrays) -> Hashable:
        """What sequences have in common that may be rows of one call; None: this one goes alone."""
        if not self.together or self.rows is None:
            return None
        axes = self.rows.inputs
        if any(axis is not None and feeds[n].shape[axis] != 1 for n, axis in axes.items() if n in feeds):
            return None
        return tuple((n, a.shape, None if axes[n] is not None else a.tobytes()) for n, a in sorted(feeds.items()))

    def joined(self, several: Sequence[Arrays]) -> Arrays:
        """The feeds of one call for sequences of a kind."""
        if len(several) == 1 or self.rows is None:
            return several[0]
        axes = self.rows.inputs
        return {
            name: array if (axis := axes[name]) is None else np.concatenate([each[name] for each in several], axis)
            for name, array in several[0].items()
        }

    def row(self, results: Arrays, index: int, lean: bool) -> Arrays:
        """A row of a call's results, as arrays of its own; ``lean``: without its batch axis."""
        assert self.rows is not None
        axes = self.rows.outputs
        return {name: array.take(index if lean else [index], axes[name]) for name, array in results.items()}


def _analysed(graph: Graph) -> tuple[Rows | None, bool]:
    """The rows of a graph, if it has any, and whether they keep apart."""
    try:
        probed = probe(graph, 1)
        rows = rows_of(probed.graph, probed.known)
        if rows is None or any(isinstance((spec.shape or ())[axis], int) for spec, axis in _batched(graph, rows)):
            return None, False
        single, more = (_of_rows(graph, probed, rows, count) for count in (1, _MORE_ROWS))
        if any(single.shapes[name][axis] != 1 for name, axis in rows.outputs.items()):
            return None, False
        return rows, rows_apart(probed.graph, probed.known, [single, more])
    except (LstmEngineError, IndexError):  # no such shapes, or a network of its own for one row: each goes as it is
        return None, False


def _batched(graph: Graph, rows: Rows) -> Iterator[tuple[TensorSpec, int]]:
    """The inputs that have a batch axis, and that axis."""
    return ((spec, axis) for spec in graph.inputs if (axis := rows.inputs[spec.name]) is not None)


def _of_rows(graph: Graph, probed: Probe, rows: Rows, count: int) -> Specialised:
    """What is known of the graph at another number of rows.

    Raises UnsupportedModelError where it then takes other branches.
    """
    shapes = {
        name: tuple(count if index == rows.inputs[name] else size for index, size in enumerate(shape))
        for name, shape in probed.shapes.items()
    }
    other = branched(graph, shapes)
    if other.choices != branched(graph, probed.shapes).choices:
        raise UnsupportedModelError(f"{graph.origin}: which branch it takes depends on the number of rows")
    return specialise(other.graph, shapes)


def _exact(graph: Graph, store: Store, means: Means) -> bool:
    """Whether what of it NumPy computes is the same bits for any number of rows."""
    try:
        program = lower_run(graph, probe(graph, 1).shapes, store, means).program
    except LstmEngineError:
        return False
    return all(call.node.op in EXACT for call in program.hosts)


def _opened(graph: Graph) -> Graph:
    """The graph as if its file left open what it declares to be 1."""
    inputs = tuple(
        replace(spec, shape=tuple("one" if size == 1 else size for size in spec.shape)) if spec.shape else spec
        for spec in graph.inputs
    )
    return replace(graph, inputs=inputs)


def _as_array(value: Any) -> np.ndarray | None:
    try:
        return np.asarray(value)
    except ValueError:  # no rectangle; whoever converts it says so
        return None


# --- the window -------------------------------------------------------------------------------------------------------


@dataclass
class _Item:
    """A sequence: its feeds until it is run, its results until they are taken, or why there are none."""

    index: int
    feeds: Arrays = field(default_factory=dict)
    lean: bool = False
    results: Arrays | None = None
    fault: Exception | None = None


@dataclass(frozen=True)
class Calls:
    """What a model does: feeds of any kind as {name: value}; the same checked; a call."""

    named: Callable[[Any], Mapping[str, Any]]
    checked: Callable[[Mapping[str, Any]], Arrays]
    run: Callable[[Arrays], Arrays]


def run_many(
    sequences: Iterable[Any],
    arrangement: Arrangement,
    calls: Calls,
    batch: int,
    ahead: int,
    progress: Progress | None,
) -> Iterator[Arrays]:
    """The results of all sequences, in their order. Raises InputError for what are none."""
    for name, value in (("batch", batch), ("ahead", ahead)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"run_many: {name}={value!r}: expected a positive number of sequences")
    if isinstance(sequences, str | bytes | Mapping) or not isinstance(sequences, Iterable):
        got = type(sequences).__name__
        raise InputError(f"run_many: expected a list or an iterator of sequences, each as run() takes it; got {got}")
    total = len(sequences) if isinstance(sequences, Sized) else None
    window = _Window(iter(sequences), total is None, arrangement, calls, batch, ahead)
    return window.results(total, progress)


class _Window:
    """The sequences between source and taker."""

    def __init__(
        self, source: Iterator[Any], copies: bool, arrangement: Arrangement, calls: Calls, batch: int, ahead: int
    ) -> None:
        """``copies``: the source may use an array again for its next sequence."""
        self.source: Iterator[Any] | None = source
        self.copies = copies
        self.arrangement = arrangement
        self.calls = calls
        self.batch, self.ahead = batch, ahead
        self.items: deque[_Item] = deque()
        self.alike: dict[Hashable, deque[_Item]] = {}  # those still to be run, by kind
        self.known: dict[Hashable, Hashable] = {}  # the kind of arrays that need no checking, by their forms
        self.seen = 0

    def results(self, total: int | None, progress: Progress | None) -> Iterator[Arrays]:
        """Each in its turn."""
        done = 0
        while True:
            self._fill()
            if not self.items:
                return
            item = self.items[0]
            if item.results is None and item.fault is None:
                self._run_with(item)
            self.items.popleft()
            if item.fault is not None:
                raise item.fault
            results, item.results = item.results, None
            assert results is not None
            done += 1
            if progress is not None:
                progress(done, total)
            yield results
            del results

    def _fill(self) -> None:
        while self.source is not None and len(self.items) < self.ahead:
            item = _Item(self.seen)
            try:
                sequence = next(self.source)
            except StopIteration:
                self.source = None
                return
            except Exception as fault:  # the source's own: what came before it is delivered first
                item.fault, self.source = fault, None
            else:
                self._take(item, sequence)
            self.items.append(item)
            self.seen += 1

    def _take(self, item: _Item, sequence: Any) -> None:
        """Check a sequence, and lay it with those that are alike."""
        try:
            feeds, item.lean = self.arrangement.completed(self.calls.named(sequence))
            form = _form(feeds)
            kind = self.known.get(form)
            if kind is None:
                item.feeds = self.calls.checked(feeds)
                kind = self.arrangement.kind(item.feeds)
                self._remember(form, kind, feeds, item.feeds)
            else:
                item.feeds = dict(feeds)
        except LstmEngineError as fault:
            item.fault = _located(item, fault)
            return
        if self.copies:
            item.feeds = {name: np.array(array) for name, array in item.feeds.items()}
        key = ("alone", item.index) if kind is None else (item.lean, kind)
        self.alike.setdefault(key, deque()).append(item)

    def _remember(self, form: Hashable, kind: Hashable, feeds: Mapping[str, Any], checked: Arrays) -> None:
        """The next arrays of this form are taken as they are, if these are and all rows may have others."""
        if form is None or kind is None or any(checked[name] is not feeds[name] for name in feeds):
            return
        assert self.arrangement.rows is not None
        if all(self.arrangement.rows.inputs[name] is not None for name in feeds):
            if len(self.known) >= self.ahead:
                self.known.clear()
            self.known[form] = kind

    def _run_with(self, oldest: _Item) -> None:
        """Run the oldest sequence, with as many that are alike as are worth a program of their own."""
        key, waiting = next((key, items) for key, items in self.alike.items() if items[0] is oldest)
        count = min(len(waiting), self.batch)
        if count < self.batch:
            count = 1 << (count.bit_length() - 1)  # few numbers of rows, so that few programs serve all
        group = [waiting.popleft() for _ in range(count)]
        if not waiting:
            del self.alike[key]
        try:
            self._run(group)
        except LstmEngineError:
            for item in group:
                self._run_alone(item)

    def _run_alone(self, item: _Item) -> None:
        try:
            self._run([item])
        except LstmEngineError as fault:
            item.fault = _located(item, fault)

    def _run(self, group: list[_Item]) -> None:
        results = self.calls.run(self.arrangement.joined([item.feeds for item in group]))
        for row, item in enumerate(group):
            single = len(group) == 1 and not item.lean
            item.results = results if single else self.arrangement.row(results, row, item.lean)
            item.feeds = {}


def _form(feeds: Mapping[str, Any]) -> Hashable:
    """Names, types and shapes of arrays; None where not all are."""
    if any(value.__class__ is not np.ndarray for value in feeds.values()):
        return None
    return tuple((name, array.dtype, array.shape) for name, array in feeds.items())


def _located(item: _Item, fault: LstmEngineError) -> LstmEngineError:
    """The same error, saying which sequence it is of."""
    located = type(fault)(f"sequence {item.index}: {fault}")
    located.__cause__ = fault
    return located
