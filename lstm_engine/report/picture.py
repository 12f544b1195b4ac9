"""What inspect shows, as a picture: the graph's nodes as boxes, with what each costs and how it runs."""

from __future__ import annotations

from collections import defaultdict
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
#: What a large network is told by: what else there is may be shown as part of these.
_LANDMARKS: Final = _RECURRENT | {"Conv", "ConvTranspose", "MatMul", "Gemm", "Einsum", "Loop", "Scan", "If"}
_MOST_BOXES: Final = 60
_MOST_NOTES: Final = 12
_ELSEWHERE: Final = ("metadata", "streams", "states")
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
        _about(description),
        boxes,
        edges,
        loops,
        list(_verdicts(description)),
        ("#", "opcode", "node", "what", "weights"),
        [] if program is None else list(_rows(program)),
        "share of time" if measured else "share of time (estimate)",
    )


def _about(description: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The summary's rows, one for each name; what the page says elsewhere left out."""
    found: dict[str, list[str]] = {}
    for name, value in summary_rows(description):
        found.setdefault(name or next(reversed(found)), []).append(value)
    return [(name, "; ".join(values)) for name, values in found.items() if name not in _ELSEWHERE]


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
        self.ports: dict[int, Box] = {}
        self.nodes: list[list[Node]] = []  # of each box, none for a port
        self.edges: dict[Edge, None] = {}
        self.loops: dict[Loop, None] = {}
        self.makers: dict[str, int | str] = {}  # tensor → the box that makes it, or the state that it is

    def drawn(self) -> tuple[list[Box], list[Edge], list[Loop]]:
        """Boxes, edges and loops."""
        for spec in self.graph.inputs:
            if spec.name in self.states:
                self.makers[spec.name] = spec.name
            else:
                self.makers[spec.name] = self._port(spec, "input")
        readers: dict[str, list[int]] = {name: [] for name in self.states}
        for node in self._needed():
            self._enter(node, readers)
        carried = {target: source for source, target in self.states.items()}
        for spec in self.graph.outputs:
            if spec.name in carried:
                self._close(carried[spec.name], spec.name, readers)
            elif spec.name in self.makers:
                self._join(self.makers[spec.name], self._port(spec, "output"), spec.name)
        return self._grouped(self._groups() if len(self.nodes) > _MOST_BOXES else list(range(len(self.nodes))))

    def _port(self, spec: TensorSpec, kind: str) -> int:
        self.ports[len(self.nodes)] = _port_box(spec, kind)
        return self._add()

    def _add(self, *nodes: Node) -> int:
        self.nodes.append(list(nodes))
        return len(self.nodes) - 1

    # --- large networks ----------------------------------------------------------------------------------------------

    def _minor(self, box: int) -> bool:
        """Whether a box may be shown as part of another."""
        costs = [self.costs.get(node.label) for node in self.nodes[box]]
        plain = all(node.op not in _LANDMARKS for node in self.nodes[box])
        return box not in self.ports and plain and not any(cost is not None and cost.host for cost in costs)

    def _groups(self) -> list[int]:
        """For each box the one that it is shown with: what reads one group alone is part of it."""
        sources: dict[int, list[int]] = defaultdict(list)
        readers: dict[int, list[int]] = defaultdict(list)
        for edge in self.edges:
            sources[edge.target].append(edge.source)
            readers[edge.source].append(edge.target)
        group = list(range(len(self.nodes)))
        for box in filter(self._minor, range(len(self.nodes))):  # in an order in which sources come first
            read = {group[source] for source in sources[box]}
            if len(read) == 1 and not read & set(self.ports):
                group[box] = read.pop()
        for box in filter(self._minor, range(len(self.nodes))):
            if not sources[box] and readers[box]:
                first = group[min(readers[box])]
                group = [first if each == box else each for each in group]
        return group

    def _grouped(self, group: Sequence[int]) -> tuple[list[Box], list[Edge], list[Loop]]:
        """Boxes, edges and loops of groups of boxes."""
        heads = sorted(set(group))
        place = {head: index for index, head in enumerate(heads)}
        at = [place[head] for head in group]
        members: list[list[Node]] = [[] for _ in heads]
        for box, nodes in enumerate(self.nodes):
            members[at[box]] += nodes
        boxes = [self.ports.get(head) or self._box_of(members[place[head]], self.nodes[head]) for head in heads]
        edges = dict.fromkeys(Edge(at[e.source], at[e.target], e.label) for e in self.edges)
        loops = dict.fromkeys(Loop(at[one.source], at[one.target], one.label) for one in self.loops)
        return boxes, [edge for edge in edges if edge.source != edge.target], _few(list(loops))

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
                maker = self.makers[tensor]
                found |= {maker} if isinstance(maker, int) else set()
            elif tensor in gathering:
                fresh = [each for each in gathering[tensor].inputs if each not in seen]
                seen.update(fresh)
                waiting += fresh
        return found

    def _enter(self, node: Node, readers: Mapping[str, list[int]]) -> None:
        """A node as a box, or as nothing."""
        read = [name for name in node.inputs if name in self.makers]
        if node.label not in self.costs and len({self.makers[name] for name in read}) == 1:
            for name in filter(None, node.outputs):
                self.makers[name] = self.makers[read[0]]
            return
        if node.label not in self.costs and not read:
            return
        box = self._add(node)
        for name in read:
            maker = self.makers[name]
            if isinstance(maker, str):
                readers[maker].append(box)
            else:
                self._join(maker, box, name)
        for name in filter(None, node.outputs):
            self.makers[name] = box
        if node.op in _RECURRENT and not any(box in boxes for boxes in readers.values()):
            self.loops[Loop(box, box, "h, c" if node.op == "LSTM" else "h")] = None

    def _join(self, maker: int | str, box: int, name: str) -> None:
        if isinstance(maker, int) and maker != box:
            self.edges[Edge(maker, box, self.shapes.get(name, ""))] = None

    def _close(self, source: str, target: str, readers: Mapping[str, list[int]]) -> None:
        """Loops from what makes a state to what reads it: round a box that does both."""
        origins = self._origins(target)
        for box in readers[source]:
            made_by = box if box in origins else max(origins, default=None)
            if made_by is not None:
                self.loops[Loop(made_by, box, f"{source} ← {target}")] = None

    def _box_of(self, nodes: Sequence[Node], heads: Sequence[Node]) -> Box:
        """A box for nodes, called by the foremost."""
        costs = [self.costs[node.label] for node in nodes if node.label in self.costs]
        shares = [cost.share for cost in costs if cost.share is not None]
        weights, share = sum(cost.weights for cost in costs), sum(shares) if shares else None
        facts = [size_text(weights)] if weights else []
        facts += [f"{share:.0%} of time"] if share is not None else []
        kind = "host" if any(cost.host for cost in costs) else "fast" if costs else "free"
        head = heads[0]
        title = head.op if len(nodes) == 1 else f"{head.op} and {len(nodes) - 1} more"
        notes = [note for cost in costs for note in cost.notes]
        more = "; ".join(notes[:_MOST_NOTES]) + ("; …" if len(notes) > _MOST_NOTES else "")
        return Box(title, head.name or next(filter(None, head.outputs), ""), kind, ", ".join(facts), share, more)


def _few(loops: Sequence[Loop]) -> list[Loop]:
    """Of a state that goes back to several boxes, one loop, to the foremost; those round one box all."""
    own = [loop for loop in loops if loop.source == loop.target]
    back: dict[str, list[Loop]] = defaultdict(list)
    for loop in loops:
        if loop.source != loop.target:
            back[loop.label].append(loop)
    for label, several in back.items():
        more = f", to {len(several)} places" if len(several) > 1 else ""
        own.append(Loop(several[0].source, min(loop.target for loop in several), label + more))
    return own


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
