"""Holding a model's results against the float64 definition, and against onnxruntime where it is installed.

A model with weights of a lesser precision is held against the definition of that precision; what the file's own
weights give is shown beside it, as what the precision costs.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .. import reference
from ..encoding import Opcode
from ..errors import InputError, LstmEngineError
from ..graph import reads
from ..machine import target
from ..precision import ROUNDINGS
from ..program.plan import probe_shapes
from ..program.streaming import FRAMES, probe

if TYPE_CHECKING:
    from ..graph import Graph, Node, TensorSpec
    from ..model import Model

Feeds = Mapping[str, np.ndarray]
#: Largest error allowed, as a part of the range of the values (at least 1), by the type the model computes in.
TOLERANCES: Final[Mapping[str, float]] = {"float32": 2e-6, "float64": 1e-12}
#: How many times the error of the definition in that type is allowed: a network may amplify rounding.
INHERENT: Final = 10
#: Fractions of a level this near a tie may be rounded either way; how many times what they then do is allowed.
NEAR_TIE: Final = 2.0**-13
FROM_TIES: Final = 2
#: Largest difference to onnxruntime, whose gate activations are approximations, as a part of the range.
PEER_TOLERANCE: Final = 1e-4
_MOVES: Final = frozenset({"Cast", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze", "Concat", "Slice"})
#: Which input of an operator holds lengths.
_LENGTH_INPUTS: Final[Mapping[str, int]] = {"LSTM": 4, "GRU": 4, "RNN": 4, "ReverseSequence": 1}
#: What onnxruntime calls the types of constants.
_NUMBERS: Final[Mapping[str, str]] = {
    f"tensor({name})": dtype
    for name, dtype in (("float", "float32"), ("double", "float64"), ("int64", "int64"), ("int32", "int32"))
}
#: Instructions that compute nothing.
_MOVING: Final = frozenset({Opcode.HALT, Opcode.COPY, Opcode.LOAD, Opcode.STORE})


class OtherEngineError(Exception):
    """The engine compared with cannot run the model; that says nothing about ours."""


@dataclass(frozen=True)
class Comparison:
    """One output, the worst of all rounds.

    ``greatest``: its greatest value. ``error``: the engine's from the definition, ``allowed`` the bound of that.
    ``other``: onnxruntime's error from the definition; ``between``: the engine's difference to onnxruntime, with its
    bound; None where it was not run. ``cost``: its difference to the file's own weights, where its are less precise.
    ``random``: drawn at random, so that there is nothing to compare.
    """

    output: str
    greatest: float
    error: float
    allowed: float
    other: float | None = None
    between: float | None = None
    between_allowed: float = 0.0
    random: bool = False
    cost: float | None = None

    @property
    def holds(self) -> bool:
        """Whether the engine's error is allowed."""
        return self.random or self.error <= self.allowed

    @property
    def agrees(self) -> bool:
        """Whether the difference to onnxruntime is allowed."""
        return self.random or self.between is None or self.between <= self.between_allowed

    @property
    def verdict(self) -> str:
        """In a word or two."""
        if self.random:
            return "random"
        if not self.holds:
            return "DIFFERS"
        return "agrees" if self.agrees else "DIFFERS from onnxruntime"


@dataclass(frozen=True)
class Ways:
    """How the nodes ran: instructions by operator, and each node that ran in NumPy, with the reason."""

    instructions: Mapping[str, int]
    hosts: tuple[tuple[str, str], ...]


def compared(
    model: Model,
    other: Callable[[Feeds], Mapping[str, np.ndarray]] | None,
    seed: int,
    rounds: int,
    definition: Graph | None = None,
) -> list[Comparison]:
    """The model against its definition on random feeds, the worst of all rounds by output.

    ``other``: another engine to show beside it. ``definition``: the network as its file has it, before any pass that
    rewrites it (the model's own graph where it is left out).

    Raises OtherEngineError if that one fails, and what running the model or its definition raises.
    """
    draw = np.random.default_rng(seed)
    graph = definition or model.graph
    shapes = feasible_shapes(model)
    drawn = random_tensors(graph)
    worst: dict[str, Comparison] = {}
    for _ in range(rounds):
        feeds = random_feeds(model.graph, shapes, draw)
        ours = model.run(feeds)
        bounds = _Bounds.of(model, graph, feeds)
        theirs = other(feeds) if other is not None else {}
        for name in ours:
            new = _compared(name, bounds, ours[name], theirs.get(name), name in drawn)
            worst[name] = _worse(worst.get(name), new)
    return list(worst.values())


@dataclass(frozen=True)
class _Bounds:
    """What the definition gives: ``exact`` in float64, ``near`` in the type the model computes in.

    ``tied``: with all that is almost a tie rounded up, then down. ``own``: with the file's own weights, where the
    model's are less precise.
    """

    element: str
    exact: Feeds
    near: Feeds
    tied: Sequence[Feeds] = ()
    own: Feeds | None = None

    @staticmethod
    def of(model: Model, graph: Graph, feeds: Feeds) -> _Bounds:
        """For a model that has run with these feeds, and the graph of its file."""
        element, precision = model.element, model.precision
        if precision not in ROUNDINGS:
            return _Bounds(element, reference.run(graph, feeds), reference.run(graph, feeds, dtype=element))
        hosts = {label for label, _ in ways_of(model).hosts}
        one, up, down = (
            reference.at_precision(model.graph, precision, hosts, lean, rows_too=target().bf16)
            for lean in (0.0, NEAR_TIE, -NEAR_TIE)
        )
        exact, near = reference.run(one, feeds), reference.run(one, feeds, dtype=element)
        tied = [reference.run(way, feeds) for way in (up, down)] if precision == "int8" or target().bf16 else []
        return _Bounds(element, exact, near, tied, reference.run(graph, feeds))


def definition_of(path: str, constants: Mapping[str, Any] | None) -> Graph:
    """The network of an .onnx file as the file has it: no pass but the one that makes old operators today's."""
    from ..feeds import bind_constants
    from ..formats import read
    from ..passes.modernise import modernise

    graph = modernise(read(path))
    return bind_constants(graph, constants) if constants else graph


def random_tensors(graph: Graph) -> set[str]:
    """Tensors that depend on what operators draw at random."""
    found: set[str] = set()
    for node in graph.nodes:
        if _draws(node) or not found.isdisjoint(reads(node)):
            found.update(node.outputs)
    return found


def _draws(node: Node) -> bool:
    known = reference.OPERATORS.get(node.op)
    bodies = [value for value in node.attributes.values() if hasattr(value, "nodes")]
    return (known is not None and known.random) or any(_draws(inner) for body in bodies for inner in body.nodes)


def ways_of(model: Model) -> Ways:
    """How the runs so far were made, node by node."""
    programs, deciding = model.ways()
    listing = [part for program in programs for part in program.listing if part.opcode not in _MOVING]
    counts = Counter(node.split(" '")[0] for node in {part.node for part in listing if part.node})
    hosts = {call.node.label: call.reason for program in programs for call in program.hosts}
    hosts |= {node.label: "its result decides shapes or branches" for node in deciding}
    return Ways(dict(sorted(counts.items())), tuple(hosts.items()))


# --- feeds ------------------------------------------------------------------------------------------------------------


def feasible_shapes(model: Model) -> Mapping[str, tuple[int, ...]]:
    """Shapes that the network really runs at: declared sizes, and small ones where the file leaves them open.

    Raises UnsupportedModelError for an input whose rank is unknown; what the first attempt raises, if none runs.
    """
    first: LstmEngineError | None = None
    for shapes in _candidates(model.graph):
        try:
            model.run(random_feeds(model.graph, shapes, np.random.default_rng(0)))
            return shapes
        except InputError as fault:
            first = first or fault
    assert first is not None
    raise first


def _candidates(graph: Graph) -> Iterator[Mapping[str, tuple[int, ...]]]:
    """Distinct sizes; those of a stream; each open size in turn that of a frame, and 1 for all others."""
    distinct = probe_shapes(graph)
    yield distinct
    with suppress(LstmEngineError):
        yield probe(graph, 1).shapes
    open_ = {dim or (spec.name, k) for spec in graph.inputs for k, dim in _open_sizes(spec)}
    for size in (1, *FRAMES):
        for chosen in sorted(open_, key=str):
            yield {
                spec.name: tuple(
                    dim if isinstance(dim, int) else size if (dim or (spec.name, k)) == chosen else 1
                    for k, dim in enumerate(spec.shape or ())
                )
                for spec in graph.inputs
            }


def _open_sizes(spec: TensorSpec) -> list[tuple[int, str | None]]:
    return [(k, dim) for k, dim in enumerate(spec.shape or ()) if not isinstance(dim, int)]


def random_feeds(graph: Graph, shapes: Mapping[str, Sequence[int]], draw: np.random.Generator) -> dict[str, np.ndarray]:
    """Normal numbers; integers that what reads them can take: ids, places, lengths, what they are compared with."""
    feeds = {}
    for spec in graph.inputs:
        shape, dtype = tuple(shapes[spec.name]), np.dtype(spec.dtype)
        if dtype.kind == "f":
            feeds[spec.name] = draw.standard_normal(shape).astype(dtype)
        else:
            feeds[spec.name] = draw.choice(_choices(graph, spec.name, shapes), shape).astype(dtype)
    return feeds


def _choices(graph: Graph, name: str, shapes: Mapping[str, Sequence[int]]) -> np.ndarray:
    """Which integers an input may hold, by the nodes that read it."""
    compared_with: list[int] = []
    sizes: list[int] = []
    for node, tensor in _readers(graph, name):
        if node.op in ("Gather", "GatherElements") and node.input(1) == tensor and node.input(0) in graph.constants:
            table = graph.constants[node.input(0)]
            sizes.append(table.shape[int(node.attributes.get("axis", 0))])
        elif node.op == "OneHot" and node.input(0) == tensor and node.input(1) in graph.constants:
            sizes.append(int(graph.constants[node.input(1)].reshape(-1)[0]))
        elif node.op in _LENGTH_INPUTS and node.input(_LENGTH_INPUTS[node.op]) == tensor:
            return np.arange(1, 1 + _steps(node, graph, shapes))
        elif node.op == "Equal":
            others = [graph.constants[other] for other in node.inputs if other in graph.constants]
            compared_with += [int(value) for other in others for value in other.reshape(-1)[:1]]
    return np.array(compared_with) if compared_with else np.arange(min(sizes, default=2))


def _readers(graph: Graph, name: str) -> Iterator[tuple[Node, str]]:
    """Nodes that read a tensor, or what only moves its elements, and under which name."""
    consumers = graph.consumers()
    waiting, seen = [name], {name}
    while waiting:
        tensor = waiting.pop()
        for node in consumers.get(tensor, ()):
            yield node, tensor
            if node.op in _MOVES:
                waiting += [output for output in node.outputs if output and output not in seen]
                seen.update(node.outputs)


def _steps(node: Node, graph: Graph, shapes: Mapping[str, Sequence[int]]) -> int:
    """How many steps a node that takes lengths runs over at these input shapes."""
    from ..passes.shapes import specialise

    first = "time_axis" if node.op == "ReverseSequence" else "layout"
    with suppress(LstmEngineError):  # shapes that data decides
        known = specialise(graph, {name: tuple(shape) for name, shape in shapes.items()})
        return int(known.shapes[node.input(0)][int(node.attributes.get(first, 0))])
    return 1


# --- differences ------------------------------------------------------------------------------------------------------


def _compared(name: str, bounds: _Bounds, ours: np.ndarray, theirs: np.ndarray | None, random: bool) -> Comparison:
    exact = bounds.exact[name]
    finite = exact[np.isfinite(exact)].astype(np.float64)
    greatest = float(np.abs(finite).max(initial=0.0))
    if random:
        return Comparison(name, greatest, 0.0, 0.0, random=True)
    reach = max(1.0, float(np.ptp(finite)) if finite.size else 0.0)
    spread = [INHERENT * _error(exact, bounds.near[name])]
    spread += [FROM_TIES * _error(exact, tied[name]) for tied in bounds.tied]
    inherent = max([0.0, *filter(np.isfinite, spread)])
    return Comparison(
        name,
        greatest,
        _error(exact, ours),
        max(TOLERANCES[bounds.element] * reach, inherent),
        None if theirs is None else _error(exact, theirs),
        None if theirs is None else _error(theirs, ours),
        max(PEER_TOLERANCE * reach, inherent),
        cost=None if bounds.own is None else _error(bounds.own[name], ours),
    )


def _error(exact: np.ndarray, got: np.ndarray) -> float:
    """The greatest difference; infinite where one has a number and the other none, or shapes differ."""
    if exact.shape != got.shape:
        return float("inf")
    exact, got = exact.astype(np.float64), got.astype(np.float64)
    same = (exact == got) | (np.isnan(exact) & np.isnan(got))
    with np.errstate(invalid="ignore"):
        difference = np.where(same, 0.0, np.abs(exact - got))
    return float(np.nan_to_num(difference, nan=np.inf, posinf=np.inf).max(initial=0.0))


def _worse(known: Comparison | None, new: Comparison) -> Comparison:
    """Of two rounds the one whose error, or whose difference to onnxruntime, is the greater part of what is allowed."""
    return new if known is None else max(known, new, key=_part_used)


def _part_used(comparison: Comparison) -> float:
    parts = [(comparison.error, comparison.allowed), (comparison.between or 0.0, comparison.between_allowed)]
    return max((error / allowed for error, allowed in parts if allowed > 0), default=0.0)


def onnxruntime_of(
    path: str, constants: Mapping[str, Any] | None = None
) -> tuple[Callable[[Feeds], Mapping[str, np.ndarray]] | None, str]:
    """onnxruntime on the same file, ``constants`` always fed; None and why, if it cannot serve."""
    if importlib.util.find_spec("onnxruntime") is None:
        return None, "onnxruntime is not installed"
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session: Any = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as fault:  # its errors have no common type
        return None, f"onnxruntime does not take it: {_first_line(fault)}"
    types = {e.name: e.type for e in (*session.get_inputs(), *session.get_overridable_initializers())}
    gives = [entry.name for entry in session.get_outputs()]
    fixed = {name: np.asarray(value, _NUMBERS.get(types[name])) for name, value in (constants or {}).items()}

    def run(feeds: Feeds) -> Mapping[str, np.ndarray]:
        try:
            fed = {**feeds, **fixed}
            results = session.run(gives, {name: value for name, value in fed.items() if name in types})
        except Exception as fault:
            raise OtherEngineError(f"onnxruntime fails to run it: {_first_line(fault)}") from fault
        return dict(zip(gives, results, strict=True))

    return run, ""


def _first_line(fault: Exception) -> str:
    return next(iter(str(fault).splitlines()), type(fault).__name__)


# --- tables -----------------------------------------------------------------------------------------------------------


def shown(comparisons: Sequence[Comparison], ways: Ways) -> RenderableType:
    """The comparisons and the ways, for people."""
    return Group(table_of(comparisons), *_ways_shown(ways))


def table_of(comparisons: Sequence[Comparison]) -> Table:
    """The comparisons, for people."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    beside = any(c.between is not None for c in comparisons)
    headings = ["output", "greatest", "error", "allowed"]
    headings += ["to onnx-\nruntime", "onnxrun-\ntime's"] if beside else []
    costly = any(c.cost is not None for c in comparisons)
    headings += ["to full\nprecision"] if costly else []
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "output" else "right", overflow="fold")
    table.add_column("", justify="left", overflow="fold")
    for c in comparisons:
        numbers = [f"{c.greatest:.3g}", *(["", ""] if c.random else [f"{c.error:.1e}", f"{c.allowed:.1e}"])]
        numbers += ["" if x is None else f"{x:.1e}" for x in (c.between, c.other)] if beside else []
        numbers += ["" if c.cost is None or c.random else f"{c.cost:.1e}"] if costly else []
        style = "green" if c.holds and c.agrees else "bold red"
        table.add_row(Text(c.output), *numbers, Text(c.verdict, style))
    return table


def _ways_shown(ways: Ways) -> Iterator[RenderableType]:
    made = ", ".join(f"{op} {count}" for op, count in ways.instructions.items())
    yield Text.assemble(("In machine code: ", "bold"), made or "nothing but moves")
    if not ways.hosts:
        yield Text.assemble(("In NumPy: ", "bold"), "nothing")
        return
    yield Text.assemble(("In NumPy: ", "bold"), f"{len(ways.hosts)} nodes")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("node", "why"):
        table.add_column(heading, overflow="fold")
    for node, reason in ways.hosts:
        table.add_row(Text(node, "yellow"), Text(reason))
    yield table
