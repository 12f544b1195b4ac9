"""From a graph to the program of a stream.

A stream's step is a time step where the file has an open time axis and looks only back along it; the program then
serves any number of steps, block by block. Where the file is made to be called frame by frame, its states going in
and coming out, a step is such a call: a frame has a program of its own, or one for each size the file allows.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, TypeAlias

from ..errors import InputError, ModelFormatError, StateError, StreamingError, UnsupportedModelError, listed
from ..graph import Graph, TensorSpec
from ..locks import Lock
from ..passes.axes import Roles, assign_roles, running_axes
from ..passes.causality import check_no_return
from ..passes.context import causal_forms, with_context
from ..passes.cut import Resolved, resolved
from ..passes.shape_rules import DataDependentError
from ..passes.shapes import Specialised, specialise
from ..passes.states import (
    RECURRENT,
    SLOTS,
    StatePair,
    check_declared,
    node_key,
    pair_states,
    with_sizes_of_states,
    without_states,
    without_zero_states,
)
from ..passes.statistics import with_normalisation_written_out
from .lower import Kept, Lowering, Plan, block_steps
from .packing import Store
from .plan import OTHER_STEPS, PROBES, Shapes, independent_of_steps, probe_shapes
from .program import Means, Program

MOST_SIZES: Final = 8  # sizes of frames that programs are kept for
#: Sizes to try for an open dimension that primes do not fit: frames of audio, mostly.
FRAMES: Final = (512, 1024, 256, 4096, 64, 16384)
MOST_TRIES: Final = 64
FEW_STEPS: Final = range(2, 9)  # tried for a sequence, whatever sizes the network has

Axis: TypeAlias = tuple[str, int]  # an input and one of its axes


@dataclass(frozen=True)
class Probe:
    """Shapes that the network takes, the graph and what is known at them, and the open axes that only a batch fits."""

    graph: Graph
    shapes: Shapes
    known: Specialised
    batch: frozenset[Axis]


def probe(graph: Graph, batch: int) -> Probe:
    """Shapes that the network takes.

    Weights or stored states may fix a dimension that the file declares open (a batch of 1, most often), and some
    networks take no short frames: where distinct primes do not fit, open dimensions are given the batch that is asked
    for, or the size of a frame. A sequence that may as well have more steps than one is given some.

    Raises ModelFormatError as specialise() does, for the first attempt; UnsupportedModelError.
    """
    shapes = probe_shapes(graph)
    try:
        return _probed(graph, shapes, frozenset())
    except ModelFormatError:
        bound = [*_fitting(graph, islice(_bound_sizes(graph, shapes, batch), MOST_TRIES))]
        found = next((each for each in bound if assign_roles(each.graph, each.known).time), None)
        found = found or next(iter(bound), None)  # a batch of 1 could be a sequence of one step as well
        found = found or next(_fitting(graph, islice(_other_sizes(graph, shapes, batch), MOST_TRIES)), None)
        if found is not None:
            return next(_of_several_steps(graph, found), found)
        raise


def _of_several_steps(graph: Graph, single: Probe) -> Iterator[Probe]:
    """The network with a longer sequence, where an axis bound to a batch of one is one that its layers run along.

    Beside a tensor of several steps a single step is repeated: a network that takes one step and as many as that
    tensor has, but no other number, would on the way to the last of them be another network at each.
    """
    sizes = {size for shape in single.known.shapes.values() for size in shape if size > 1}.union(FEW_STEPS)
    for axes in _open_axes(graph).values():
        if not single.batch.issuperset(axes) or any(single.shapes[name][index] != 1 for name, index in axes):
            continue
        tries = islice(sorted(sizes), MOST_TRIES)
        longer = ((_resized(single.shapes, dict.fromkeys(axes, size)), single.batch.difference(axes)) for size in tries)
        for other in _fitting(graph, longer):
            traced = assign_roles(other.graph, other.known).axes
            along = {atom for time, _ in running_axes(other.graph, traced) for atom in time}
            if any(not along.isdisjoint(traced[name][index]) for name, index in axes):
                yield other


def _fitting(graph: Graph, tries: Iterable[tuple[Shapes, frozenset[Axis]]]) -> Iterator[Probe]:
    """Those of the shapes that the network takes."""
    for tried, bound in tries:
        with suppress(ModelFormatError, UnsupportedModelError):  # a size may be beyond the budget
            yield _probed(graph, tried, bound)


def _probed(graph: Graph, shapes: Shapes, batch: frozenset[Axis]) -> Probe:
    now = branched(graph, shapes).graph
    try:
        return Probe(now, shapes, specialise(now, shapes), batch)
    except DataDependentError as fault:
        raise _data_decides(graph, fault) from fault


def _data_decides(graph: Graph, fault: DataDependentError) -> StreamingError:
    """A stream's program is the same at every step."""
    return StreamingError(
        f"{graph.origin} cannot be streamed: {fault}; if that hangs on an input that never changes, "
        f"give it: stream(constants={{name: value}})"
    )


def branched(graph: Graph, shapes: Shapes) -> Resolved:
    """The graph without the branches that these shapes do not take.

    Raises StreamingError naming the node where data decides a shape.
    """
    try:
        return resolved(graph, shapes, join=True)
    except DataDependentError as fault:
        raise _data_decides(graph, fault) from fault


def _open_axes(graph: Graph) -> dict[str | Axis, list[Axis]]:
    """The axes that the file leaves open, together those of the same name."""
    open_: dict[str | Axis, list[Axis]] = {}
    for spec in graph.inputs:
        for index, dim in enumerate(spec.shape or ()):
            if not isinstance(dim, int):
                open_.setdefault((spec.name, index) if dim is None else dim, []).append((spec.name, index))
    return open_


def _bound_sizes(graph: Graph, shapes: Shapes, batch: int) -> Iterator[tuple[Shapes, frozenset[Axis]]]:
    """The shapes with the batch for one open dimension."""
    for bound in _open_axes(graph).values():
        yield _resized(shapes, dict.fromkeys(bound, batch)), frozenset(bound)


def _other_sizes(graph: Graph, shapes: Shapes, batch: int) -> Iterator[tuple[Shapes, frozenset[Axis]]]:
    """The shapes with the same sizes in all inputs; with the batch in front as well; with a frame; with both."""
    open_ = _open_axes(graph)
    alike = {axis: PROBES[axis[1] % len(PROBES)] for axes in open_.values() for axis in axes}
    yield _resized(shapes, alike), frozenset()
    first = [min(axis for axis in alike if axis[0] == name) for name in dict.fromkeys(name for name, _ in alike)]
    yield _resized(shapes, {**alike, **dict.fromkeys(first, batch)}), frozenset(first)
    for size in FRAMES:
        for key, samples in open_.items():
            yield _resized(shapes, dict.fromkeys(samples, size)), frozenset()
            others = [axes for other, axes in open_.items() if other != key]
            for bound in (*others, [axis for axes in others for axis in axes]):
                both = dict.fromkeys(samples, size) | dict.fromkeys(bound, batch)
                yield _resized(shapes, both), frozenset(bound)


def _resized(shapes: Shapes, sizes: Mapping[Axis, int]) -> Shapes:
    return {
        name: tuple(sizes.get((name, index), size) for index, size in enumerate(shape))
        for name, shape in shapes.items()
    }


def find_states(graph: Graph, declared: Mapping[str, str | None] | None) -> tuple[StatePair, ...]:
    """Inputs that are outputs' pasts, at probing shapes; none where a stream would need to know more first."""
    try:
        probed = probe(graph, 1)
    except (ModelFormatError, StreamingError, UnsupportedModelError):
        return ()
    return pair_states(probed.graph, probed.known, declared).pairs


def check_states(graph: Graph, declared: Mapping[str, str | None]) -> None:
    """Raise StateError for declared pairs that name no input or output, or that differ in shape or type."""
    try:
        check_declared(graph, declared, probe(graph, 1).known)
    except (ModelFormatError, StreamingError, UnsupportedModelError):
        check_declared(graph, declared)


@dataclass(frozen=True)
class Streamable:
    """A model as a stream sees it: what it carries, and the program of one block or of one frame.

    ``state_shapes``: of the inputs it carries, in the file's own axes.
    """

    pairs: tuple[StatePair, ...]
    state_shapes: Shapes
    program: Program
    batch: int
    frames: Frames | None = None


@dataclass
class Frames:
    """Programs of a stream whose step is one call of the file.

    ``frame``: the shape of each input that is no state, None where any size will do.
    """

    graph: Graph
    pairs: tuple[StatePair, ...]
    state_shapes: Shapes
    frame: Mapping[str, tuple[int | None, ...]]
    shown: frozenset[str]
    store: Store
    means: Means
    _programs: OrderedDict[tuple[tuple[int, ...], ...], Program] = field(default_factory=OrderedDict)
    _lock: Lock = field(default_factory=Lock)

    def program(self, shapes: Shapes) -> Program:
        """The program for frames of these shapes.

        Raises InputError for sizes that do not fit the network.
        """
        key = tuple(shapes[name] for name in self.frame)
        with self._lock:
            if key in self._programs:
                self._programs.move_to_end(key)
                return self._programs[key]
        try:
            program = self._lowered({**shapes, **self.state_shapes})
        except ModelFormatError as fault:
            raise InputError(f"a frame for {self.graph.origin} does not fit the network: {fault}") from fault
        with self._lock:
            self._programs[key] = program
            while len(self._programs) > MOST_SIZES:
                self._programs.popitem(last=False)
        return program

    def _lowered(self, shapes: Shapes) -> Program:
        now = branched(self.graph, shapes).graph
        known = specialise(now, shapes)
        roles = assign_roles(now, known)
        kept = [Kept(pair.input, pair.output) for pair in self.pairs]
        timed, flat = Plan(False, False, roles.size(roles.time)), Plan(False, False, 1, flat=True)
        program = Lowering(now, known, timed, self.store, self.means).lower(kept, self.shown)
        if not program.hosts:
            return program
        other = Lowering(now, known, flat, self.store, self.means).lower(kept, self.shown)
        return other if len(other.hosts) < len(program.hosts) else program


def lower_stream(
    graph: Graph,
    batch: int,
    declared: Mapping[str, str | None] | None,
    store: Store,
    means: Means,
    block: int | None = None,
) -> Streamable:
    """The program of a stream of ``batch`` rows; ``block``: most steps it computes at once, None: what serves best.

    Raises StreamingError if the model needs the whole sequence, naming the node; StateError where it is not certain
    what its states are; UnsupportedModelError.
    """
    try:
        return _Streaming(graph, batch, declared, store, means, block).lower()
    except (InputError, ModelFormatError) as fault:  # the file fits itself (load saw to that), the batch does not
        raise StreamingError(f"{graph.origin} takes no stream of batch {batch}: {fault}") from fault


class _Streaming:
    """One graph about to be streamed: what is known of it, and the ways there are."""

    def __init__(
        self,
        graph: Graph,
        batch: int,
        declared: Mapping[str, str | None] | None,
        store: Store,
        means: Means,
        block: int | None,
    ) -> None:
        self.file = graph
        self.batch = batch
        self.block = block or block_steps(batch, True)
        self.store = store
        self.means = means
        self.batch_axes, self.shapes = self._at_batch()
        taken = branched(graph, self.shapes).graph
        open_ = [axis for axes in _open_axes(graph).values() for axis in axes if axis not in self.batch_axes]
        longer = {(name, index): self.shapes[name][index] + OTHER_STEPS for name, index in open_}
        taken = causal_forms(taken, self.shapes, _resized(self.shapes, longer))
        taken = with_normalisation_written_out(taken, specialise(taken, self.shapes))
        self.known = specialise(taken, self.shapes)
        taken = without_zero_states(taken, self.known.values)
        self.roles = assign_roles(taken, self.known)
        self.graph = graph = with_sizes_of_states(taken, self.known, self.roles)
        pairing = pair_states(graph, self.known, declared)
        if pairing.doubts:
            raise StateError(listed(f"{graph.origin}: it is not certain what its states are", pairing.doubts))
        self.pairs = pairing.pairs
        carried = {pair.output for pair in self.pairs}
        outputs = [spec.name for spec in graph.outputs]
        self.shown = frozenset(name for name in outputs if name not in carried) or frozenset(outputs)
        states = {pair.input for pair in self.pairs}
        self.data = [spec for spec in graph.inputs if spec.name not in states]
        self.state_shapes = {name: self.shapes[name] for name in sorted(states)}
        self.time_axes = {spec.name: self.roles.axis_of(spec.name, self.roles.time) for spec in self.data}

    def _at_batch(self) -> tuple[frozenset[Axis], Shapes]:
        """The inputs' batch axes, and shapes that the network takes with the batch that is asked for.

        Rows whose number the file declares belong to each step as they are: fewer of them would be another network.
        """
        batch = self.batch
        probed = probe(self.file, batch)
        graph = probed.graph
        roles = assign_roles(graph, probed.known)
        found: set[Axis] = {
            (spec.name, index)
            for spec in graph.inputs
            for index, (axis, size) in enumerate(zip(roles.axes[spec.name], spec.shape or (), strict=False))
            if axis and set(axis) <= set(roles.batch)
            if not isinstance(size, int) or (axis == roles.batch and size == batch)
        }
        if batch != 1 and not found and not probed.batch:
            _refuse_batch(graph, probed.known, roles, batch)
        named = {dim for spec in graph.inputs for i, dim in enumerate(spec.shape or ()) if (spec.name, i) in found}
        found |= {
            (spec.name, index)
            for spec in graph.inputs
            for index, dim in enumerate(spec.shape or ())
            if isinstance(dim, str) and dim in named
        }
        return probed.batch | found, _resized(probed.shapes, dict.fromkeys(found, batch))

    def lower(self) -> Streamable:
        """By steps where that is possible, else by frames."""
        timed = any(axis is not None for axis in self.time_axes.values())
        if self.roles.time and timed and self._open():
            if self._sizes_open():
                raise StreamingError(self._why_no_steps())
            return self._by_steps()
        if not self.pairs:
            if (self.roles.time and not timed) or self._sizes_open():
                raise StreamingError(self._why_no_steps())
            return self._by_steps()
        if (self.roles.time and not timed) or self._sizes_open() or self._starts_anew():
            return self._by_frames()
        try:
            return self._by_steps()
        except StreamingError:
            if self._carries_backwards():
                raise
            return self._by_frames()

    # --- time steps --------------------------------------------------------------------------------------------------

    def _by_steps(self) -> Streamable:
        plain = {pair.input: pair.output for pair in self.pairs if not pair.cells}
        hidden = {source: result for source, result in plain.items() if result not in self.shown}
        inner, contexts = with_context(without_states(self.graph, self.pairs, self.shown), self.roles, hidden)
        own = {context.input: context.shape for context in contexts}
        kept = [Kept(source, result) for source, result in plain.items() if source not in own]
        kept += [Kept(context.input, context.output, context.initial, blockwise=True) for context in contexts]
        shapes = {**self.shapes, **own}
        shapes = {spec.name: shapes[spec.name] for spec in inner.inputs}
        time_axes = {spec.name: self.time_axes.get(spec.name) for spec in inner.inputs}
        self._check_rows(kept)
        check_no_return(self.graph, self.known, self.roles)
        plan = Plan(True, True, self.block)
        if any(axis is not None for axis in time_axes.values()) and self._open():
            try:
                self._check_branches()
                program = independent_of_steps(inner, shapes, time_axes, self.store, self.means, plan, kept, self.shown)
            except ModelFormatError as fault:
                raise StreamingError(f"{self.graph.origin} does not take every number of steps: {fault}") from fault
            if program is None:
                raise StreamingError(f"{self.graph.origin}: what it computes depends on the number of steps")
        else:
            program = Lowering(inner, specialise(inner, shapes), plan, self.store, self.means).lower(kept, self.shown)
        return Streamable(self.pairs, {**self.state_shapes, **own}, program, self.batch)

    def _check_rows(self, kept: list[Kept]) -> None:
        """Each row of a stream keeps states of its own."""
        for state in kept:
            form = self.roles.form(state.input) if state.input in self.shapes else None
            rows = any(name == state.input for name, _ in self.batch_axes)
            if self.batch > 1 and form is not None and not form.batched and not rows:
                raise StreamingError(
                    f"state '{state.input}' has no batch axis of its own: open {self.batch} streams of one row"
                )

    def _check_branches(self) -> None:
        """No branch may be taken for its number of steps."""
        longer = {axis: self.shapes[name][axis[1]] + OTHER_STEPS for axis in self._timed() for name in [axis[0]]}
        if branched(self.file, self.shapes).choices != branched(self.file, _resized(self.shapes, longer)).choices:
            raise StreamingError(f"{self.file.origin}: which branch it takes depends on the number of steps")

    def _timed(self) -> list[Axis]:
        return [(name, axis) for name, axis in self.time_axes.items() if axis is not None]

    def _open(self) -> bool:
        """Whether the file leaves the number of steps open."""
        return all(
            axis is None or not isinstance((spec.shape or ())[axis], int)
            for spec in self.data
            for axis in [self.time_axes[spec.name]]
        )

    def _why_no_steps(self) -> str:
        """Which node makes a time axis that no input has."""
        form = self.roles.form
        for node in self.graph.nodes:
            read = [name for name in node.inputs if name and name not in self.known.values]
            made = [name for name in node.outputs if name]
            if any(form(name).timed for name in made) and not any(form(name).timed for name in read):
                return (
                    f"{node.label} makes the time axis that the recurrent layers run along, no input has it: "
                    "a step of the model is no step of its input"
                )
        open_ = "; ".join(str(spec) for spec in self.data if self._left_open(spec))
        if open_:
            return f"{self.graph.origin} leaves sizes open that are neither batch nor the time of its layers: {open_}"
        return f"{self.graph.origin}: no input has the time axis that its layers run along"

    # --- frames ------------------------------------------------------------------------------------------------------

    def _by_frames(self) -> Streamable:
        frame = {spec.name: self._frame_shape(spec) for spec in self.data}
        loose = [str(spec) for spec in self.graph.inputs if spec not in self.data and None in self._frame_shape(spec)]
        if loose:
            raise StreamingError(f"{self.graph.origin} leaves open how large its states are: {'; '.join(loose)}")
        self._check_rows([Kept(pair.input, pair.output) for pair in self.pairs])
        frames = Frames(self.file, self.pairs, self.state_shapes, frame, self.shown, self.store, self.means)
        program = frames.program({spec.name: self.shapes[spec.name] for spec in self.data})
        kept = tuple(StatePair(pair.input, pair.output, ()) for pair in self.pairs)
        return Streamable(kept, self.state_shapes, program, self.batch, frames)

    def _frame_shape(self, spec: TensorSpec) -> tuple[int | None, ...]:
        """The sizes of an input that every frame has: the file's, and the batch."""
        return tuple(
            dim if isinstance(dim, int) else self.batch if (spec.name, index) in self.batch_axes else None
            for index, dim in enumerate(spec.shape or ())
        )

    def _sizes_open(self) -> bool:
        """Whether the file leaves open how large a frame is."""
        return any(self._left_open(spec) for spec in self.data)

    def _left_open(self, spec: TensorSpec) -> bool:
        sizes = enumerate(self._frame_shape(spec))
        return any(size is None and index != self.time_axes.get(spec.name) for index, size in sizes)

    def _starts_anew(self) -> bool:
        """Whether a recurrent layer begins each call of the file with a state that is in none of its inputs."""
        carried = {(cell.node, cell.slot) for pair in self.pairs for cell in pair.cells}
        return any(
            (node_key(node), slot) not in carried and not self._computed(node.input(index))
            for node in self.graph.nodes
            if node.op in RECURRENT
            for slot, (index, _) in SLOTS.items()
            if slot == "h" or node.op == "LSTM"
        )

    def _carries_backwards(self) -> bool:
        """Whether a layer that runs backwards is handed a state: it belongs to the other end of the sequence."""
        return any(
            node.op in RECURRENT
            and node.attributes.get("direction", "forward") != "forward"
            and any(self._computed(node.input(index)) for index, _ in SLOTS.values())
            for node in self.graph.nodes
        )

    def _computed(self, name: str) -> bool:
        return bool(name) and name not in self.known.values


def _refuse_batch(graph: Graph, known: Specialised, roles: Roles, batch: int) -> None:
    """Say why a file that fixes its rows runs these in a stream, and no other number."""
    fixed = roles.size(roles.batch)
    for node in graph.nodes:
        if node.op in RECURRENT:
            shape = list(known.shapes[node.input(0)])
            raise StreamingError(
                f"{graph.origin} declares a batch of {fixed} ({node.label} reads {shape}); "
                f"it cannot run {batch} rows in one stream: open streams of batch {fixed}"
            )
    raise StreamingError(f"{graph.origin} has no batch axis: open {batch} streams")
