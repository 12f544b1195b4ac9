"""Graph: a network as its file describes it, portable and complete.

Nodes speak ONNX's vocabulary, weights are in ONNX's order (gates i, o, f, g), dimensions may be
numbers, names or unknown. A Graph is immutable: a pass takes one and returns another.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np

from .errors import ModelFormatError, listed

Dimension: TypeAlias = int | str | None
Shape: TypeAlias = tuple[Dimension, ...]

#: Domain of the engine's own extensions of ONNX's vocabulary.
ENGINE_DOMAIN = "lstm_engine"
#: dtype of a subgraph's input or output for which the file declares none.
UNKNOWN_DTYPE = np.dtype("V")


def native(dtype: Any) -> np.dtype[Any]:
    """A number type in this machine's byte order, as NumPy's one object of it (machine code knows types by address)."""
    known: np.dtype[Any] = np.dtype(np.dtype(dtype).newbyteorder("=").str)
    return known


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, dtype and shape of an input or output.

    ``shape``: a number, a name (symbolic) or None (unknown) per axis; None if even the rank is unknown.
    ``optional``: may be left out of the feeds and then counts as zeros.
    """

    name: str
    dtype: np.dtype[Any]
    shape: Shape | None
    optional: bool = False

    def __str__(self) -> str:
        dims = "?" if self.shape is None else ", ".join("?" if d is None else str(d) for d in self.shape)
        return f"{self.name}: {self.dtype}[{dims}]"


@dataclass(frozen=True, slots=True)
class Node:
    """One operator. Absent optional inputs and unused outputs have the name ''.

    Attribute values are int, float, str, tuples of these, numpy arrays or Graphs.
    An LSTM node may have a ninth input, the projection [D, P, H] of an LSTMP cell; R is then [D, 4H, P].
    """

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    domain: str = ""

    def input(self, index: int) -> str:
        """Name of the ``index``-th input, '' where it is absent."""
        return self.inputs[index] if index < len(self.inputs) else ""

    def output(self, index: int) -> str:
        """Name of the ``index``-th output, '' where it is not asked for."""
        return self.outputs[index] if index < len(self.outputs) else ""

    @property
    def label(self) -> str:
        """How messages call the node: ``LSTM 'enc.0'``."""
        name = self.name or next((o for o in self.outputs if o), "")
        return f"{self.op} '{name}'"


@dataclass(frozen=True, slots=True)
class Graph:
    """A whole network. ``nodes`` are in an order in which each reads only what was made before it.

    ``carried``: elements of all tensors that its file holds, whatever passes make of them.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    constants: Mapping[str, np.ndarray]
    opset: int
    metadata: Mapping[str, str] = field(default_factory=dict)
    origin: str = "model"
    carried: int = 0

    @staticmethod
    def build(
        nodes: Iterable[Node],
        inputs: Iterable[TensorSpec],
        outputs: Iterable[TensorSpec],
        constants: Mapping[str, np.ndarray],
        opset: int,
        metadata: Mapping[str, str] | None = None,
        origin: str = "model",
        outer: Container[str] = frozenset(),
    ) -> Graph:
        """Validate the parts as a whole and put the nodes in order.

        ``outer``: names that the graphs around this one offer, for the body of a control-flow node.

        Raises ModelFormatError listing every fault: names made twice, inputs nothing makes, cycles,
        outputs nothing produces.
        """
        nodes, inputs, outputs = tuple(nodes), tuple(inputs), tuple(outputs)
        faults = _naming_faults(nodes, inputs, constants)
        ordered, unordered = sort_nodes(nodes, {spec.name for spec in inputs} | set(constants), outer)
        faults += _ordering_faults(unordered, ordered, inputs, constants, outer)
        made = {spec.name for spec in inputs} | set(constants) | {o for n in nodes for o in n.outputs}
        faults += [
            f"graph output '{spec.name}' is produced by nothing"
            for spec in outputs
            if spec.name not in made and spec.name not in outer
        ]
        if faults:
            raise ModelFormatError(listed(f"{origin}: inconsistent graph", faults))
        frozen = MappingProxyType({name: _read_only(value) for name, value in constants.items()})
        carried = sum(value.size for value in frozen.values()) + sum(map(_carried, ordered))
        about = MappingProxyType(dict(metadata or {}))
        return Graph(ordered, inputs, outputs, frozen, opset, about, origin, carried)

    def with_nodes(
        self,
        nodes: Iterable[Node],
        constants: Mapping[str, np.ndarray] | None = None,
        inputs: Iterable[TensorSpec] | None = None,
        outputs: Iterable[TensorSpec] | None = None,
    ) -> Graph:
        """This graph with other nodes (and constants, inputs, outputs), without what nothing reads any more."""
        outputs = self.outputs if outputs is None else tuple(outputs)
        pool = self.constants if constants is None else constants
        alive = live_nodes(nodes, {spec.name for spec in outputs})
        read = {name for node in alive for name in reads(node)} | {spec.name for spec in outputs}
        kept = MappingProxyType({name: _read_only(value) for name, value in pool.items() if name in read})
        return replace(
            self,
            nodes=alive,
            constants=kept,
            inputs=self.inputs if inputs is None else tuple(inputs),
            outputs=outputs,
        )

    def producers(self) -> dict[str, Node]:
        """Which node makes each tensor."""
        return {name: node for node in self.nodes for name in node.outputs if name}

    def consumers(self) -> dict[str, list[Node]]:
        """Which nodes read each tensor."""
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in set(reads(node)):
                found.setdefault(name, []).append(node)
        return found

    def subgraphs(self) -> Iterator[Graph]:
        """The bodies of control-flow nodes."""
        for node in self.nodes:
            yield from (value for value in node.attributes.values() if isinstance(value, Graph))


def reads(node: Node) -> Iterator[str]:
    """Names a node reads, those its subgraphs capture from outside included."""
    yield from (name for name in node.inputs if name)
    for value in node.attributes.values():
        if isinstance(value, Graph):
            own = {spec.name for spec in value.inputs} | set(value.constants)
            own |= {name for inner in value.nodes for name in inner.outputs}
            inner_reads = [name for inner in value.nodes for name in reads(inner)]
            yield from (name for name in [*inner_reads, *(o.name for o in value.outputs)] if name not in own)


def sort_nodes(
    nodes: tuple[Node, ...], available: set[str], outer: Container[str] = frozenset()
) -> tuple[tuple[Node, ...], list[Node]]:
    """Order nodes by what they read (a stable topological sort); second, the nodes that no order satisfies.

    What the nodes make themselves is meant before what the graph ``outer`` has by the same name.
    """
    made = {name for node in nodes for name in node.outputs}
    waiting: dict[str, list[int]] = {}
    missing = []
    for index, node in enumerate(nodes):
        absent = {name for name in reads(node) if name not in available and (name in made or name not in outer)}
        missing.append(len(absent))
        for name in absent:
            waiting.setdefault(name, []).append(index)
    ready = [index for index in range(len(nodes) - 1, -1, -1) if missing[index] == 0]
    ordered = []
    while ready:
        index = ready.pop()
        ordered.append(nodes[index])
        released = []
        for name in nodes[index].outputs:
            for reader in waiting.pop(name, ()):
                missing[reader] -= 1
                if missing[reader] == 0:
                    released.append(reader)
        ready.extend(sorted(released, reverse=True))
    return tuple(ordered), [node for node, count in zip(nodes, missing, strict=True) if count > 0]


def live_nodes(nodes: Iterable[Node], wanted: set[str]) -> tuple[Node, ...]:
    """The nodes that the ``wanted`` tensors depend on."""
    wanted = set(wanted)
    alive = []
    for node in reversed(tuple(nodes)):
        if any(name in wanted for name in node.outputs if name):
            alive.append(node)
            wanted.update(reads(node))
    return tuple(reversed(alive))


def _carried(node: Node) -> int:
    """Elements that a node's attributes hold."""
    values = node.attributes.values()
    return sum(v.carried if isinstance(v, Graph) else v.size for v in values if isinstance(v, Graph | np.ndarray))


def _read_only(value: np.ndarray) -> np.ndarray:
    view: np.ndarray = np.asarray(value).view()
    view.flags.writeable = False
    return view


def _naming_faults(
    nodes: tuple[Node, ...], inputs: tuple[TensorSpec, ...], constants: Mapping[str, np.ndarray]
) -> list[str]:
    faults = []
    makers: dict[str, str] = {}
    sources = [(spec.name, "a graph input") for spec in inputs]
    sources += [(name, "an initialiser") for name in constants]
    sources += [(name, node.label) for node in nodes for name in node.outputs if name]
    for name, maker in sources:
        if name in makers:
            faults.append(f"tensor '{name}' is made twice, by {makers[name]} and by {maker}")
        makers[name] = maker
    return faults


def _ordering_faults(
    unordered: list[Node],
    ordered: tuple[Node, ...],
    inputs: tuple[TensorSpec, ...],
    constants: Mapping[str, np.ndarray],
    outer: Container[str],
) -> list[str]:
    known = {spec.name for spec in inputs} | set(constants)
    known |= {name for node in (*ordered, *unordered) for name in node.outputs}
    faults = [
        f"{node.label} reads '{name}', which is neither an input, an initialiser nor a node's output"
        for node in unordered
        for name in sorted(set(reads(node)))
        if name not in known and name not in outer
    ]
    if unordered and not faults:
        faults.append("the nodes read each other in a cycle: " + ", ".join(node.label for node in unordered[:8]))
    return faults
