"""Branches in place of If nodes: what a body computes becomes part of the graph around it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..graph import Graph, Node
from ..reference.control import chosen


class Names:
    """The names a graph has given away, so that what moves into it keeps its own or gets a new one."""

    def __init__(self, graph: Graph) -> None:
        self.made = {spec.name for spec in graph.inputs} | set(graph.constants)
        self.made |= {name for node in graph.nodes for name in node.outputs}
        self._used = set(defined_names(graph))

    def own(self, name: str) -> str:
        """The name itself if it is free at this level, else one like it that is free everywhere."""
        if name not in self.made:
            self.made.add(name)
            return name
        count = 2
        while f"{name}.{count}" in self._used:
            count += 1
        fresh = f"{name}.{count}"
        self.made.add(fresh)
        self._used.add(fresh)
        return fresh


@dataclass(frozen=True)
class Inlined:
    """What stands in for a node: other nodes, constants they read, and outputs of the node that others make."""

    nodes: Sequence[Node] = ()
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)


def inlined(node: Node, condition: np.ndarray, names: Names) -> Inlined:
    """The branch of an If that its condition takes."""
    branch = chosen(node, condition)
    renames: dict[str, str] = {}
    produced = {name for inner in branch.nodes for name in inner.outputs if name}
    aliases: dict[str, str] = {}
    for target, spec in zip(node.outputs, branch.outputs, strict=False):
        if not target:
            continue
        if spec.name in produced and spec.name not in renames:
            renames[spec.name] = target
        else:
            aliases[target] = spec.name
    for name in (*branch.constants, *(n for inner in branch.nodes for n in inner.outputs if n)):
        if name not in renames:
            renames[name] = names.own(name)
    moved = {old: new for old, new in renames.items() if old != new}
    return Inlined(
        tuple(renamed(inner, moved) for inner in branch.nodes),
        {renames[name]: value for name, value in branch.constants.items()},
        {target: renames.get(source, source) for target, source in aliases.items()},
    )


def renamed(node: Node, names: Mapping[str, str]) -> Node:
    """The node with other names for what it reads and makes, captures of its bodies included."""
    if not names:
        return node
    attributes = node.attributes
    if any(isinstance(value, Graph) for value in attributes.values()):
        attributes = {k: _renamed_body(v, names) if isinstance(v, Graph) else v for k, v in attributes.items()}
        if "captured" in attributes:
            attributes["captured"] = tuple(names.get(name, name) for name in attributes["captured"])
    inputs = tuple(names.get(name, name) for name in node.inputs)
    outputs = tuple(names.get(name, name) for name in node.outputs)
    if attributes is node.attributes and inputs == node.inputs and outputs == node.outputs:
        return node
    return replace(node, inputs=inputs, outputs=outputs, attributes=attributes)


def _renamed_body(body: Graph, names: Mapping[str, str]) -> Graph:
    """What a body defines for itself hides the names outside, and gives way where a new name would be caught by it."""
    own = {spec.name for spec in body.inputs} | set(body.constants)
    own |= {name for inner in body.nodes for name in inner.outputs if name}
    outer = {old: new for old, new in names.items() if old not in own}
    caught = own & set(outer.values())
    if caught:
        used = own | set(defined_names(body)) | set(names) | set(names.values())
        outer |= {name: _unused(name, used) for name in caught}
    return replace(
        body,
        nodes=tuple(renamed(inner, outer) for inner in body.nodes),
        inputs=tuple(replace(spec, name=outer.get(spec.name, spec.name)) for spec in body.inputs),
        outputs=tuple(replace(spec, name=outer.get(spec.name, spec.name)) for spec in body.outputs),
        constants={outer.get(name, name): value for name, value in body.constants.items()},
    )


def _unused(name: str, used: set[str]) -> str:
    count = 2
    while f"{name}.{count}" in used:
        count += 1
    used.add(f"{name}.{count}")
    return f"{name}.{count}"


def defined_names(graph: Graph) -> Iterator[str]:
    """Every name the graph and the bodies inside it give to something."""
    yield from (spec.name for spec in graph.inputs)
    yield from graph.constants
    for node in graph.nodes:
        yield from (name for name in node.outputs if name)
    for body in graph.subgraphs():
        yield from defined_names(body)
