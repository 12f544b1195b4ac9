"""load and Model: a trained network, ready to run."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from . import reference
from .calls import Call
from .engine import Runner
from .errors import InputError, LstmEngineError, ModelFormatError, UnsupportedModelError, listed
from .feeds import bind_constants, converted, name_faults, shape_faults, with_zeros
from .formats import read
from .graph import Graph, Node
from .locks import Lock
from .pages.notes import note
from .passes.check import check
from .passes.cut import cut, resolved
from .passes.modernise import modernise
from .passes.recognise import recognise
from .passes.shape_rules import DataDependentError
from .passes.shapes import fold, measured
from .passes.states import without_zero_states
from .precision import HELD_IN, PRECISIONS, rounded
from .program.packing import Store
from .program.plan import Lowered, capacity, element_type, lower_run
from .program.program import Means, Program
from .program.streaming import Streamable, check_states, find_states, lower_stream
from .reference.control import body_units, is_control
from .staged import Parts, Staged
from .workers import threads_allowed

if TYPE_CHECKING:
    from .many import Arrangement
    from .pool import StreamPool
    from .ragged import Column, Columns
    from .stream import Stream
    from .trace import Trace

Path = str | os.PathLike[str]
PRECISIONS_ASKED: Final = ("float32", "bfloat16", "int8")
_MOST_PROGRAMS: Final = 16  # kept at a time, least recently used first to go
_MOST_CALLS: Final = 1024  # prepared calls kept, those of a set of many lengths too; all go when there are more


def load(
    path: Path | bytes,
    *,
    precision: str | None = None,
    threads: int | None = None,
    states: Mapping[str, str | None] | None = None,
    constants: Mapping[str, Any] | None = None,
    prefix: str | None = None,
    batch_first: bool | None = None,
    nonlinearity: str | None = None,
    layers: Sequence[Mapping[str, Any]] | None = None,
) -> Model:
    """Load a trained network from an .onnx or .npz file (or its bytes).

    ``precision`` of the weights: None for the file's own, "float32", "bfloat16" (half the bytes, summed in
    float32) or "int8" (weights and the rows they meet in int8, summed in int32); a float64 model runs in float64 only.
    ``threads``: at most so many a call, where they make it faster (None: LSTM_ENGINE_THREADS, or the cores this process
    may run on).
    ``states``: {input: output} pairs a stream carries, beside those found by themselves ({input: None}: it is none).
    ``constants``: inputs that never change. ``prefix``, ``batch_first``, ``nonlinearity``, ``layers``: what a file of
    bare weights cannot say (a PyTorch state_dict, Keras weights).

    Raises OSError, ModelFormatError (damaged, contradictory), UnsupportedModelError (names node, operator and
    attribute), StateError, ValueError for keywords out of range.
    """
    if precision not in (None, *PRECISIONS_ASKED):
        raise UnsupportedModelError(
            f"precision={precision!r} is not available; expected None or one of {', '.join(PRECISIONS_ASKED)}"
        )
    if threads is not None and (not isinstance(threads, int) or threads < 1):
        raise ValueError(f"threads={threads!r}: expected a positive number or None")
    graph = read(path, prefix=prefix, batch_first=batch_first, nonlinearity=nonlinearity, layers=layers)
    graph = without_zero_states(recognise(fold(modernise(graph))))
    if constants:
        graph = recognise(fold(bind_constants(graph, constants)))
    check(graph)
    element = element_type(graph)
    if precision and element == "float64":
        raise UnsupportedModelError(f"{graph.origin}: a float64 model runs in float64; precision={precision!r} is none")
    held = graph.metadata.get(HELD_IN, element)
    chosen = precision or (held if PRECISIONS.get(held) == element else element)
    model = Model(rounded(graph, chosen), chosen, states, threads=threads)
    model.path = None if isinstance(path, bytes | bytearray | memoryview) else os.fspath(path)
    return model


class Model:
    """A trained network. May be used from many threads at once.

    ``inputs``, ``outputs``: TensorSpecs. ``states``: (input, output) pairs that a stream carries by itself.
    ``metadata``: what the file says about itself (a vocabulary, for one); ``path``: the file's, None of bytes.
    """

    def __init__(
        self,
        graph: Graph,
        precision: str,
        states: Mapping[str, str | None] | None = None,
        part_of: Model | None = None,
        threads: int | None = None,
    ) -> None:
        """``threads``: at most so many a call, None for as many as may be used here.

        ``part_of``: the network that this is what is left of, once data has decided shapes or branches.
        """
        self.graph = graph
        self.precision = precision
        self.threads = min(threads or threads_allowed(), threads_allowed())
        self.means = Means(precision, self.threads)
        self.inputs = graph.inputs
        self.outputs = graph.outputs
        self.metadata = graph.metadata
        self.path: str | None = None
        self.store: Store = Store() if part_of is None else part_of.store
        self.stage: int = 0 if part_of is None else part_of.stage + 1
        self._declared = dict(states or {})
        self._programs: OrderedDict[Any, tuple[Lowered, list[Runner]]] = OrderedDict()
        self._calls: dict[Any, Call | StagedCall] = {}
        self._parts = Parts(lambda part: Model(part, precision, part_of=self, threads=threads), self.stage)
        self._branches = any(is_control(node) for node in graph.nodes)
        required = [spec.name for spec in graph.inputs if not spec.optional]
        self._sole = required[0] if len(required) == 1 else None
        self._dtypes = tuple((spec.name, np.dtype(spec.dtype)) for spec in graph.inputs)
        self._streamables: dict[Any, Streamable] = {}
        self._lock = Lock()
        self._states: tuple[tuple[str, str], ...] | None = None
        self._fingerprint: str | None = None
        self._arrangement: Arrangement | None = None
        self._columns: Columns | None = None
        if self._declared:
            check_states(graph, self._declared)  # faults in states= are errors of load

    def __repr__(self) -> str:
        ins, outs = "; ".join(map(str, self.inputs)), "; ".join(map(str, self.outputs))
        return f"Model({self.graph.origin}: {ins} → {outs})"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        rows = [("input", spec.name, spec) for spec in self.inputs] + [
            ("output", spec.name, spec) for spec in self.outputs
        ]
        carried = dict(self.states)
        held = {**carried, **{target: source for source, target in carried.items()}}
        lines = [
            (kind, name, str(spec)[len(name) + 2 :], f"state, with {held[name]}" if name in held else "")
            for kind, name, spec in rows
        ]
        return note(f"Model {self.graph.origin}, {self.precision}", ("", "name", "what", ""), lines)

    @property
    def element(self) -> str:
        """The type of all numbers but weights: "float32" or "float64"."""
        return PRECISIONS[self.precision]

    @property
    def declared(self) -> Mapping[str, str | None]:
        """The states that load() was told of."""
        return self._declared

    @property
    def states(self) -> tuple[tuple[str, str], ...]:
        """Recognised pairs (input, output): the input is the output's past, and a stream carries it."""
        if self._states is None:
            pairs = find_states(self.graph, self._declared)
            self._states = tuple((pair.input, pair.output) for pair in pairs)
        return self._states

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the network: nodes, shapes and weights."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self.graph)
        return self._fingerprint

    def run(self, feeds: Any, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Run whole sequences.

        ``feeds``: {input name: array}, or one array where the model has one required input. Optional inputs may
        be left out. ``outputs``: names of those wanted, None for all. Returns {output name: fresh array}.

        Raises InputError listing every fault of the feeds.
        """
        if feeds.__class__ is np.ndarray and self._sole is not None:
            feeds = {self._sole: feeds}
        call = self._known_call(feeds, outputs)
        if call is None:
            wanted = self._wanted(outputs)
            feeds = self._checked(self._named(feeds))
            arrays = reference.completed(self.graph, feeds) if len(feeds) < len(self.inputs) else feeds
            try:
                if any(0 in array.shape for array in arrays.values()):
                    return self._run_empty(arrays, wanted)
                call = self._prepared(feeds, arrays, wanted)
            except LstmEngineError as fault:
                disagreeing = name_faults(self.inputs, arrays)
                if disagreeing and not isinstance(fault, UnsupportedModelError):
                    raise InputError(listed(f"feeds of {self.graph.origin}", [*disagreeing, str(fault)])) from fault
                raise
        return call.run(feeds)

    def run_part(
        self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None, work: reference.Work
    ) -> dict[str, np.ndarray]:
        """As run(), for a part of another network that shares its budget: ``feeds`` are all inputs, right in dtype."""
        wanted = self._wanted(outputs)
        if any(0 in array.shape for array in feeds.values()):
            return self._run_empty(feeds, wanted)
        call = self._known_call(feeds, wanted) or self._prepared(feeds, feeds, wanted)
        return call.run(feeds, work)

    def run_many(
        self,
        sequences: Iterable[Any],
        outputs: Sequence[str] | None = None,
        *,
        batch: int = 32,
        ahead: int = 1024,
        progress: Callable[[int, int | None], object] | None = None,
    ) -> Iterator[dict[str, np.ndarray]]:
        """Run a set of sequences of any lengths; their results come one after the other, in the same order.

        ``sequences``: a list or an iterator of what run() takes. A batch axis may be left out, and is then left out of
        the results. Sequences of one length are rows of one call, at most ``batch`` of them; nothing is padded, and
        each result is that of run() on the sequence alone, bit by bit in float32 and int8. Networks whose rows are not
        certain to keep apart, or whose number the file fixes, run one sequence after the other.
        ``ahead``: at most so many sequences are held, taken from the source but not yet delivered; with 1 each is
        run as it comes. ``progress(done, total)`` is called before each result; total is None for an iterator.

        Raises InputError for what is no set, at once; errors of a sequence name its index when its turn comes.
        """
        from .many import Calls, run_many

        wanted = self._wanted(outputs)
        calls = Calls(self._named, self._checked, lambda feeds: self.run(feeds, wanted))
        return run_many(sequences, self._arranged(), calls, batch, ahead, progress)

    def run_ragged(self, columns: Any, outputs: Sequence[str] | None = None) -> dict[str, Column]:
        """Run whole columns of sequences of any lengths; whole columns come back, with the same rows.

        ``columns``: {input name: column}, or one column where the model has one required input. A column is a Ragged
        (values of all sequences, steps first, and where each begins), or an array [rows, steps, …]; of inputs without
        steps an array [rows, …]. Values may be flat where steps have a shape. Results are a Ragged where they have
        steps, else an array [rows, …]; each row is what run() gives its sequence alone, bit by bit in float32 and int8.

        Raises InputError naming the first row that does not fit; UnsupportedModelError where a model's results are of
        sizes that cannot be told ahead.
        """
        wanted = self._wanted(outputs)
        return self.columns.run(self._named(columns), wanted)

    @property
    def columns(self) -> Columns:
        """How columns of sequences are run. Raises UnsupportedModelError as run_ragged() does."""
        from .ragged import Columns

        with self._lock:
            runs = self._columns
        if runs is None:
            runs = Columns(self.graph, self.store, self.means, self._arranged(), self.run)
            with self._lock:
                self._columns = runs
        return runs

    def _arranged(self) -> Arrangement:
        """How sequences become calls."""
        from .many import Arrangement

        with self._lock:
            if self._arrangement is None:
                self._arrangement = Arrangement.of(self.graph, self.store, self.means)
            return self._arrangement

    def stream(self, batch: int = 1, constants: Mapping[str, Any] | None = None) -> Stream:
        """A stream of ``batch`` rows: owns state and buffers, shares the weights.

        Where the file declares how many rows a call has, all of them are a step of a stream of batch 1.

        Raises StreamingError naming the node if the model needs the whole sequence at once.
        """
        from .stream import Stream

        return Stream(self, batch, constants)

    def pool(self, capacity: int = 1024, constants: Mapping[str, Any] | None = None) -> StreamPool:
        """Many streams that share the weights, and steps of any of them in one call.

        ``capacity``: slots there is room for at first.

        Raises StreamingError naming the node if the model needs the whole sequence at once.
        """
        from .pool import StreamPool

        return StreamPool(self, capacity, constants)

    def trace(self, feeds: Any) -> Trace:
        """Run whole sequences, and keep what every recurrent layer computed on the way: gates, cell states, outputs.

        ``feeds``: as for run(); ``states`` may be left out and are then zeros. The outputs are those of run(), bit by
        bit.

        Raises InputError as run() does; UnsupportedModelError where data decides at run time which layers run.
        """
        from .trace import traced

        carried = [name for name, _ in self.states]
        data = [spec.name for spec in self.inputs if spec.name not in carried and not spec.optional]
        named = feeds if isinstance(feeds, Mapping) or len(data) != 1 else {data[0]: feeds}
        arrays = self._checked(with_zeros(self.inputs, carried, self._named(named)))
        return traced(self.graph, arrays, self.outputs, self.store, self.means)

    def streamable(self, graph: Graph, batch: int, constants: Any = ()) -> Streamable:
        """The lowered form of a stream, shared by all streams of the same batch and constants."""
        key = ("stream", batch, fingerprint(graph) if constants else "")
        with self._lock:
            if key in self._streamables:
                return self._streamables[key]
        lowered = lower_stream(graph, batch, self._declared, self.store, self.means)
        with self._lock:
            return self._streamables.setdefault(key, lowered)

    def save(self, path: Path) -> None:
        """Write the whole network to the engine's own .npz; loading it never imports onnx."""
        from .formats.native import write_native

        write_native(self.graph, path)

    def ways(self) -> tuple[list[Program], list[Node]]:
        """How runs so far were made: the programs lowered, and the nodes that decided, by their definition, what next.

        Both include those of the parts into which data made the network fall.
        """
        with self._lock:
            programs = [lowered.program for lowered, _ in self._programs.values()]
        deciding = [node for call in [*self._calls.values()] if isinstance(call, StagedCall) for node in call.deciding]
        for part in self._parts.made():
            more, others = part.ways()
            programs, deciding = programs + more, deciding + others
        return programs, deciding

    # --- feeds -------------------------------------------------------------------------------------------------------

    def _wanted(self, outputs: Sequence[str] | None) -> tuple[str, ...]:
        names = tuple(spec.name for spec in self.outputs)
        if outputs is None:
            return names
        unknown = [f"'{name}' is not an output" for name in outputs if name not in names]
        if unknown:
            raise InputError(listed(f"outputs of {self.graph.origin} (it has {', '.join(names)})", unknown))
        return tuple(outputs)

    def _named(self, feeds: Any) -> Mapping[str, Any]:
        if isinstance(feeds, Mapping):
            return feeds
        if self._sole is None:
            got, names = type(feeds).__name__, ", ".join(spec.name for spec in self.inputs)
            raise InputError(f"feeds: expected {{name: array}} for inputs {names}, got one {got}")
        return {self._sole: feeds}

    def _checked(self, feeds: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The feeds as arrays of the right dtype and shape."""
        specs = {spec.name: spec for spec in self.inputs}
        faults = [f"'{name}' is not an input" for name in feeds if name not in specs]
        faults += [f"'{spec}' is missing" for spec in self.inputs if spec.name not in feeds and not spec.optional]
        arrays: dict[str, np.ndarray] = {}
        for name in specs:
            if name in feeds:
                try:
                    arrays[name] = converted(specs[name], feeds[name])
                except InputError as fault:
                    faults.append(str(fault))
        faults += shape_faults([specs[name] for name in arrays], arrays)
        if faults:
            expected = "; ".join(map(str, self.inputs))
            raise InputError(listed(f"feeds of {self.graph.origin} (inputs: {expected})", faults))
        return arrays

    def _run_empty(self, arrays: Mapping[str, np.ndarray], wanted: tuple[str, ...]) -> dict[str, np.ndarray]:
        """No steps or no rows: empty outputs of the right shape, by the definition."""
        results = reference.run(self.graph, arrays, dtype=None, outputs=wanted, measure=measured)
        return {name: np.array(value) for name, value in results.items()}

    # --- programs ----------------------------------------------------------------------------------------------------

    def _lowered(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Lowered, list[Runner]]:
        """The program for these shapes; one serves any number of steps where the model looks only back.

        Raises DataDependentError naming the node where data decides a shape or a branch.
        """
        exact = tuple(sorted(shapes.items()))
        branches = self._choices(shapes)
        with self._lock:
            for key in (exact, *((each, branches) for each in self._shared_keys(shapes))):
                if key in self._programs:
                    self._programs.move_to_end(key)
                    return self._programs[key]
        try:
            lowered = lower_run(self.graph, shapes, self.store, self.means)
        except ModelFormatError as fault:
            raise self._unfit(fault) from fault
        key = (_shared_key(shapes, lowered), branches) if lowered.any_steps else exact
        with self._lock:
            self._programs[key] = lowered, []
            while len(self._programs) > _MOST_PROGRAMS:
                self._programs.popitem(last=False)
                self._calls.clear()
            return self._programs[key]

    def _choices(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[tuple[str, bool], ...]:
        """The branches that these shapes take."""
        if not self._branches:
            return ()
        try:
            return resolved(self.graph, shapes).choices
        except ModelFormatError as fault:
            raise self._unfit(fault) from fault

    def _unfit(self, fault: ModelFormatError) -> InputError:
        """The file fits itself (load saw to that), so it is the feeds that do not."""
        return InputError(f"feeds of {self.graph.origin} do not fit the network: {fault}")

    def _budget(self, arrays: Mapping[str, np.ndarray]) -> tuple[int, int, int]:
        """Elements fed and carried, and units of work that bodies take."""
        return sum(array.size for array in arrays.values()), self.graph.carried, body_units(self.graph)

    def _shared_keys(self, shapes: Mapping[str, tuple[int, ...]]) -> list[Any]:
        """Keys of programs that serve several numbers of steps, these among them."""
        keys = []
        for lowered, _ in self._programs.values():
            counts = {shapes[name][axis] for name, axis in lowered.time_axes.items() if axis is not None}
            steps = counts.pop() if len(counts) == 1 else 1
            room = lowered.program.causal or capacity(steps) == lowered.program.block
            if lowered.any_steps and steps > 1 and room:
                keys.append(_shared_key(shapes, lowered))
        return keys

    def _known_call(self, feeds: Any, outputs: Sequence[str] | None) -> Call | StagedCall | None:
        """The prepared call of an earlier run with feeds of the same names, dtypes and shapes."""
        if feeds.__class__ is not dict:
            return None
        found = 0
        key: list[Any] = []
        for name, dtype in self._dtypes:
            array = feeds.get(name)
            if array is None:
                key.append(None)
                continue
            if array.__class__ is not np.ndarray or array.dtype != dtype:
                return None
            key.append(array.shape)
            found += 1
        if found < len(feeds):
            return None
        try:
            return self._calls.get((*key, outputs and tuple(outputs)))
        except TypeError:  # outputs that cannot be names; _wanted() says so
            return None

    def _prepared(
        self, feeds: Mapping[str, np.ndarray], arrays: Mapping[str, np.ndarray], wanted: tuple[str, ...]
    ) -> Call | StagedCall:
        """The call for these shapes, kept for the next run; ``arrays`` are the feeds and what stands in for others."""
        shapes = {name: array.shape for name, array in arrays.items()}
        absent = {name: array for name, array in arrays.items() if name not in feeds}
        call: Call | StagedCall
        try:
            lowered, runners = self._lowered(shapes)
            call = Call.prepare(lowered, runners, arrays, absent, wanted)
        except DataDependentError:
            call = StagedCall(Staged.of(cut(self.graph, shapes), self._parts), absent, wanted, self._budget(arrays))
        if len(self._calls) >= _MOST_CALLS:
            self._calls.clear()
        fed = [feeds[name].shape if name in feeds else None for name, _ in self._dtypes]
        everything = wanted == tuple(spec.name for spec in self.outputs)
        for asked in (wanted, None) if everything else (wanted,):
            key = (*fed, asked)
            self._calls[key] = call
        return call


@dataclass(frozen=True)
class StagedCall:
    """A run in which data decides shapes or branches; ``budget``: elements fed and carried, units of bodies."""

    staged: Staged
    absent: Mapping[str, np.ndarray]
    wanted: tuple[str, ...]
    budget: tuple[int, int, int]

    @property
    def deciding(self) -> tuple[Node, ...]:
        """Nodes whose results decide shapes or branches."""
        return tuple(self.staged.cut.deciding)

    def run(self, feeds: Mapping[str, np.ndarray], work: reference.Work | None = None) -> dict[str, np.ndarray]:
        """The results, stage by stage."""
        work = work or reference.Work(*self.budget, measured)
        return self.staged.run({**self.absent, **feeds}, self.wanted, work)


def _shared_key(shapes: Mapping[str, tuple[int, ...]], lowered: Lowered) -> Any:
    """Shapes as a key in which the number of steps does not count, but for the room the program has."""
    masked = tuple(
        (name, tuple(None if index == lowered.time_axes.get(name) else size for index, size in enumerate(shape)))
        for name, shape in sorted(shapes.items())
    )
    return masked, None if lowered.program.causal else lowered.program.block


def fingerprint(graph: Graph) -> str:
    """SHA-256 (hex) of a graph: inputs, outputs, nodes in order, weights."""
    state = hashlib.sha256()
    for spec in (*graph.inputs, *graph.outputs):
        state.update(repr((spec.name, np.dtype(spec.dtype).str, spec.shape)).encode())
    for node in graph.nodes:
        attributes = sorted((name, _attribute_digest(value)) for name, value in node.attributes.items())
        state.update(repr((node.op, node.domain, node.inputs, node.outputs, attributes)).encode())
    for name, value in sorted(graph.constants.items()):
        little = np.ascontiguousarray(value).astype(value.dtype.newbyteorder("<"), copy=False)
        state.update(repr((name, little.dtype.str, little.shape)).encode())
        state.update(little.tobytes())
    return state.hexdigest()


def _attribute_digest(value: Any) -> str:
    if isinstance(value, Graph):
        return fingerprint(value)
    if isinstance(value, np.ndarray):
        return f"{value.dtype.str}{value.shape}{hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()}"
    return repr(value)
