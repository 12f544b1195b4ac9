"""Whether the rows of a batch keep apart: a network that gives each row what it would give it alone.

Then sequences of one length are rows of one call. What is not certain to keep them apart is taken to mix them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..graph import Graph, Node, TensorSpec
from .axes import Roles, assign_roles
from .causality import steps_apart
from .shapes import Specialised
from .states import RECURRENT, SLOTS

#: Operators that lay a row's elements out anew; the axes of their results tell whether rows stay rows.
_VIEWS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Expand"})


@dataclass(frozen=True)
class Rows:
    """Where the rows are in a network's inputs and outputs: an axis of each, None for inputs that all rows share."""

    inputs: Mapping[str, int | None]
    outputs: Mapping[str, int]


def rows_of(graph: Graph, known: Specialised) -> Rows | None:
    """The rows of a graph at shapes whose batch is larger than 1; None where they are no axis of every output's own."""
    roles = assign_roles(graph, known)
    inputs = {spec.name: roles.axis_of(spec.name, roles.batch) for spec in graph.inputs}
    if any(axis is None and not _all_declared(spec) for spec, axis in zip(graph.inputs, inputs.values(), strict=True)):
        return None
    outputs = {spec.name: roles.axis_of(spec.name, roles.batch) for spec in graph.outputs}
    found = {name: axis for name, axis in outputs.items() if axis is not None}
    return Rows(inputs, found) if roles.batch and len(found) == len(outputs) else None


def _all_declared(spec: TensorSpec) -> bool:
    """Whether a file says all sizes of an input: none of them is a number of rows that was not traced."""
    return all(isinstance(size, int) for size in spec.shape or (None,))


def rows_apart(graph: Graph, known: Specialised, others: Sequence[Specialised]) -> bool:
    """Whether no row of any result depends on another row, nor on how many there are.

    ``known``, ``others``: the graph at several sizes of its batch.
    """
    roles = assign_roles(graph, known)
    turned = replace(roles, time=roles.batch, batch=roles.time)
    return all(
        _apart(node, known, roles, turned) and not any(_counts(node, known, other) for other in others)
        for node in graph.nodes
    )


def _apart(node: Node, known: Specialised, roles: Roles, turned: Roles) -> bool:
    made = [name for name in node.outputs if name and name not in known.values]
    if not made:
        return True
    computed = [name for name in node.inputs if name and name not in known.values]
    if node.op in RECURRENT:
        axis = 0 if node.attributes.get("layout", 0) else 1
        return roles.axes[node.input(0)][axis] == roles.batch and _same_states(node, known, axis)
    if node.op in _VIEWS or (node.op == "Gather" and node.input(0) in known.values):
        batched = any(roles.form(name).batched for name in computed)
        return not batched or all(roles.form(name).batched for name in made)
    return steps_apart(known, turned, node, made)


def _same_states(node: Node, known: Specialised, axis: int) -> bool:
    """Whether a layer's stored initial states are those of every row."""
    states = [known.values.get(node.input(index)) for index, _ in SLOTS.values()]
    return all(np.array_equal(s, np.broadcast_to(s.take([0], axis), s.shape)) for s in states if s is not None)


def _counts(node: Node, known: Specialised, other: Specialised) -> bool:
    """Whether a node computes with a number that the size of the batch decides; shapes it may ask for."""
    if all(name in known.values for name in node.outputs if name):
        return False
    differing = [
        index
        for index, name in enumerate(node.inputs)
        if name in known.values and not _agree(known.values[name], other.values.get(name))
    ]
    shapes = (1,) if node.op in ("Reshape", "Expand") else tuple(index for index, _ in SLOTS.values())
    return bool(differing) and not (set(differing) <= set(shapes) and node.op in {"Reshape", "Expand", *RECURRENT})


def _agree(here: np.ndarray, there: np.ndarray | None) -> bool:
    return there is not None and (here is there or np.array_equal(here, there, equal_nan=here.dtype.kind == "f"))
