"""What inspect shows, as a picture: the graph's nodes as boxes, with what each costs and how it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..errors import LstmEngineError
from ..pages.diagram import Box, Edge, Loop, Picture, Row
from ..passes.shapes import specialise
from ..program.plan import PROBES
from .inspect import size_text, summary_rows

if TYPE_CHECKING:
    from ..graph import Graph, Node, TensorSpec
    from ..model import Model

_RECURRENT: Final = frozenset({"LSTM", "GRU", "RNN"})
_HOST: Final = "host call"
_SIZES: Final = (("Weights", "weight"), ("state", "state"), ("arena", "arena"))


def pictured(model: Model, description: Mapping[str, Any]) -> Picture:
    """The picture of a model, from what inspect's described() says of it."""
    name = Path(model.graph.origin).name
    program = description["program"]
    boxes, edges, loops = _Drawing(model, program).drawn()
    measured = program is not None and program["measured"]
    return Picture(
        f"The network in {name}",
        [row for row in summary_rows(description) if row[0] not in ("metadata", "streams", "states")],
        boxes,
        edges,
        loops,
        list(_verdicts(description)),
        ("#", "opcode", "node", "what", "weights"),
        [] if program is None else list(_rows(program)),
        "share of time" if measured else "share of time (estimate)",
    )


def _rows(program: Mapping[str, Any]) -> Iterator[Row]:
    total = sum(row["bytes"] for row in program["instructions"])
    for row in program["instructions"]:
        host = row["opcode"] == _HOST
        cells = (str(row["index"]), row["opcode"], row["node"], row["what"], size_text(row["bytes"], zero=""))
        yield Row(cells, row["bytes"] / total if row["bytes"] else None, row["share"], host)


def _verdicts(description: Mapping[str, Any]) -> Iterator[tuple[str, Sequence[str]]]:
    pairs = [f"{pair['input']} ← {pair['output']}" for pair in description["states"]]
    kept = f"State among the inputs: {', '.join(pairs)}." if pairs else "No input is the past of an output."
    if description["streams"]:
        yield "It streams", ["It runs one step at a time, and the stream keeps its state.", kept]
    else:
        yield "It does not stream", [str(description["why_not"]), kept]
    program = description["program"]
    if program is None:
        yield "It is not lowered", ["There is no program for it."]
        return
    hosts = program["host_calls"]
    counted = sum(row["opcode"] != _HOST for row in program["instructions"])
    said = [f"{counted:,} instructions of machine code for {program['for']}, batch {program['batch']}."]
    sizes = [f"{what} {size_text(program[f'{key}_bytes'])}" for what, key in _SIZES]
    said.append(f"{', '.join(sizes)}; {program['operations']:,} operations a step.")
    yield "What runs fast", said
    none = ["None: the whole network is machine code."]
    yield "Host operators", [f"{call['node']}: {call['reason']}" for call in hosts] or none


# --- the graph as boxes ----------------------------------------------------------------------------------------------


@dataclass
class _Cost:
    """What the instructions of a node cost together."""

    weights: int = 0
    share: float | None = None
    host: bool = False
    notes: list[str] = field(default_factory=list)


def _costs(program: Mapping[str, Any] | None) -> dict[str, _Cost]:
    found: dict[str, _Cost] = {}
    for row in [] if program is None else program["instructions"]:
        cost = found.setdefault(row["node"], _Cost())
        cost.weights += row["bytes"]
        cost.host |= row["opcode"] == _HOST
        if row["share"] is not None:
            cost.share = (cost.share or 0.0) + row["share"]
        cost.notes.append(f"{row['opcode']} {row['what']}")
    return found


class _Drawing:
    """Nodes that cost nothing and read one thing are left out: what they read goes straight to their readers."""

    def __init__(self, model: Model, program: Mapping[str, Any] | None) -> None:
        self.graph = model.graph
        self.states = dict(model.states)
        self.costs = _costs(program)
        self.shapes = named_shapes(model.graph)
        self.boxes: list[Box] = []
        self.edges: dict[Edge, None] = {}
        self.loops: dict[Loop, None] = {}
        self.makers: dict[str, tuple[int | str, str]] = {}  # tensor → the box that makes it, or the state that it is

    def drawn(self) -> tuple[list[Box], list[Edge], list[Loop]]:
        """Boxes, edges and loops."""
        for spec in self.graph.inputs:
            if spec.name in self.states:
                self.makers[spec.name] = (spec.name, spec.name)
            else:
                self.makers[spec.name] = (self._add(_port_box(spec, "input")), spec.name)
        readers: dict[str, list[int]] = {name: [] for name in self.states}
        for node in self._needed():
            self._enter(node, readers)
        carried = {target: source for source, target in self.states.items()}
        for spec in self.graph.outputs:
            if spec.name in carried:
                self._close(carried[spec.name], spec.name, readers)
            elif spec.name in self.makers:
                self._join(self.makers[spec.name], self._add(_port_box(spec, "output")), spec.name)
        return self.boxes, list(self.edges), list(self.loops)

    def _add(self, box: Box) -> int:
        self.boxes.append(box)
        return len(self.boxes) - 1

    def _needed(self) -> list[Node]:
        """The nodes without those that only gather states for the outputs of a file."""
        wanted = {spec.name for spec in self.graph.outputs if spec.name not in self.states.values()}
        kept: list[Node] = []
        for node in reversed(self.graph.nodes):
            if node.label in self.costs or wanted & set(node.outputs):
                wanted |= set(node.inputs)
                kept.append(node)
        return kept[::-1]

    def _origins(self, name: str) -> set[int]:
        """The boxes from which a tensor is gathered."""
        gathering = self.graph.producers()
        found: set[int] = set()
        waiting, seen = [name], {name}
        while waiting:
            tensor = waiting.pop()
            if tensor in self.makers:
                maker = self.makers[tensor][0]
                found |= {maker} if isinstance(maker, int) else set()
            elif tensor in gathering:
                fresh = [each for each in gathering[tensor].inputs if each not in seen]
                seen.update(fresh)
                waiting += fresh
        return found

    def _enter(self, node: Node, readers: Mapping[str, list[int]]) -> None:
        """A node as a box, or as nothing."""
        read = [name for name in node.inputs if name in self.makers]
        if node.label not in self.costs and len({self.makers[name][0] for name in read}) == 1:
            for name in filter(None, node.outputs):
                self.makers[name] = (self.makers[read[0]][0], name)
            return
        if node.label not in self.costs and not read:
            return
        box = self._add(self._box_of(node))
        for name in read:
            maker = self.makers[name]
            if isinstance(maker[0], str):
                readers[maker[0]].append(box)
            else:
                self._join(maker, box, name)
        for name in filter(None, node.outputs):
            self.makers[name] = (box, name)
        if node.op in _RECURRENT and not any(box in boxes for boxes in readers.values()):
            self.loops[Loop(box, box, "h, c" if node.op == "LSTM" else "h")] = None

    def _join(self, maker: tuple[int | str, str], box: int, name: str) -> None:
        if isinstance(maker[0], int) and maker[0] != box:
            self.edges[Edge(maker[0], box, self.shapes.get(name, ""))] = None

    def _close(self, source: str, target: str, readers: Mapping[str, list[int]]) -> None:
        """Loops from what makes a state to what reads it: round a box that does both."""
        origins = self._origins(target)
        for box in readers[source]:
            made_by = box if box in origins else max(origins, default=None)
            if made_by is not None:
                self.loops[Loop(made_by, box, f"{source} ← {target}")] = None

    def _box_of(self, node: Node) -> Box:
        cost = self.costs.get(node.label)
        name = node.name or next(filter(None, node.outputs), "")
        if cost is None:
            return Box(node.op, name, "free")
        facts = [size_text(cost.weights)] if cost.weights else []
        facts += [f"{cost.share:.1%} of time"] if cost.share is not None else []
        return Box(node.op, name, "host" if cost.host else "fast", ", ".join(facts), cost.share, "; ".join(cost.notes))


def _port_box(spec: TensorSpec, kind: str) -> Box:
    shape = "?" if spec.shape is None else " × ".join("?" if dim is None else str(dim) for dim in spec.shape)
    return Box(spec.name, f"{kind}, {spec.dtype}", kind, shape)


# --- shapes ----------------------------------------------------------------------------------------------------------


def named_shapes(graph: Graph) -> dict[str, str]:
    """The shape of every tensor in the names of the inputs' dimensions; empty where data decides shapes.

    Two sets of sizes are followed through the graph: what differs depends on an input's size.
    """
    names = list(dict.fromkeys(name for spec in graph.inputs for name in _open_names(spec)))
    sizes = [{name: PROBES[(k + shift) % len(PROBES)] for k, name in enumerate(names)} for shift in (0, 1)]
    try:
        one, other = (specialise(graph, _sized(graph, chosen)).shapes for chosen in sizes)
    except LstmEngineError:
        return {}
    known = {(sizes[0][name], sizes[1][name]): name for name in reversed(names)}
    found = {}
    for tensor in set(one) & set(other):
        dims = zip(one[tensor], other[tensor], strict=True) if len(one[tensor]) == len(other[tensor]) else ()
        found[tensor] = " × ".join(str(a) if a == b else known.get((a, b), "…") for a, b in dims) or "one number"
    return found


def _open_names(spec: TensorSpec) -> list[str]:
    return [_open_name(spec, axis) for axis, dim in enumerate(spec.shape or ()) if not isinstance(dim, int)]


def _open_name(spec: TensorSpec, axis: int) -> str:
    dim = None if spec.shape is None else spec.shape[axis]
    return dim if isinstance(dim, str) else "?"


def _sized(graph: Graph, sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    return {
        spec.name: tuple(
            dim if isinstance(dim, int) else sizes[_open_name(spec, k)] for k, dim in enumerate(spec.shape)
        )
        for spec in graph.inputs
        if spec.shape is not None
    }
