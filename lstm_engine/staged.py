"""Runs in which data decides shapes or branches.

What is known at once runs in machine code; the nodes that decide run in NumPy; then the rest is a network of its own,
with definite shapes, and so on. The parts are models like any other: they keep their programs, and share the weights.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from .graph import Graph, Node, reads
from .locks import Lock
from .passes.cut import Cut, rest_of
from .reference import Work, evaluate, is_control

if TYPE_CHECKING:
    from .model import Model

MOST_PARTS: Final = 32  # kept by a model, least recently used first to go
MOST_STAGES: Final = 16  # one after another; what is left then runs in NumPy


class Parts:
    """The networks that a model falls into, by what tells them apart."""

    def __init__(self, make: Callable[[Graph], Model], stage: int) -> None:
        """``stage``: how many parts deep the model itself lies."""
        self.stage = stage
        self._make = make
        self._models: OrderedDict[Any, Model] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Any, graph: Callable[[], Graph]) -> Model:
        """The network of a key."""
        with self._lock:
            if key not in self._models:
                self._models[key] = self._make(graph())
                while len(self._models) > MOST_PARTS:
                    self._models.popitem(last=False)
            self._models.move_to_end(key)
            return self._models[key]

    def made(self) -> tuple[Model, ...]:
        """The networks so far."""
        with self._lock:
            return tuple(self._models.values())


@dataclass(frozen=True)
class Staged:
    """A run at one set of shapes, in parts."""

    cut: Cut
    parts: Parts
    signature: tuple[Any, ...]

    @staticmethod
    def of(cut: Cut, parts: Parts) -> Staged:
        """The run of a graph that was cut."""
        made = tuple(name for node in cut.head.nodes for name in node.outputs)
        return Staged(cut, parts, (cut.choices, made, tuple(spec.name for spec in cut.head.outputs)))

    def run(self, feeds: Mapping[str, np.ndarray], wanted: tuple[str, ...], work: Work) -> dict[str, np.ndarray]:
        """The outputs asked for, as fresh arrays. ``feeds``: all inputs of the graph."""
        values: dict[str, Any] = {**feeds, **self.cut.known}
        fresh = self._run_head(feeds, work)
        values |= fresh
        for node in self.cut.deciding:
            values |= _evaluated(node, values, work)
        late = [name for name in wanted if name not in values]
        if late:
            results = self._run_rest(values, late, work)
            values |= results
            fresh |= results
        return {name: fresh[name] if name in fresh else np.array(values[name]) for name in wanted}

    def _run_head(self, feeds: Mapping[str, np.ndarray], work: Work) -> dict[str, np.ndarray]:
        head = self.cut.head
        if not head.outputs:
            return {}
        model = self.parts.get(("head", self.signature), lambda: _with_read_inputs(head))
        return model.run_part({spec.name: feeds[spec.name] for spec in model.inputs}, None, work)

    def _run_rest(self, values: dict[str, Any], wanted: list[str], work: Work) -> dict[str, np.ndarray]:
        conditions = {name: values[name] for name in self.cut.conditions}
        inputs = {spec.name: values[spec.name] for spec in self.cut.rest.inputs if spec.name not in conditions}
        if self.parts.stage >= MOST_STAGES or any(isinstance(value, list) for value in inputs.values()):
            return _interpreted(self.cut.rest, values, wanted, work)
        key = (
            *("rest", self.signature, _digest({**self.cut.known, **conditions})),
            tuple((name, array.dtype.str, array.ndim) for name, array in inputs.items()),
        )
        model = self.parts.get(key, lambda: rest_of(self.cut, conditions, inputs))
        return model.run_part(inputs, wanted, work)


def _with_read_inputs(graph: Graph) -> Graph:
    """The graph without inputs that nothing reads."""
    read = {name for node in graph.nodes for name in reads(node)}
    return replace(graph, inputs=tuple(spec for spec in graph.inputs if spec.name in read))


def _digest(values: Mapping[str, np.ndarray]) -> bytes:
    state = hashlib.blake2b()
    for name, value in sorted(values.items()):
        state.update(repr((name, value.dtype.str, value.shape)).encode())
        state.update(np.ascontiguousarray(value).tobytes())
    return state.digest()


def _evaluated(node: Node, values: Mapping[str, Any], work: Work) -> dict[str, Any]:
    """A node's outputs by its definition."""
    inputs = [values[name] if name else None for name in node.inputs]
    if not is_control(node):
        work.admit_results(node, inputs)
    results = evaluate(node, inputs, scope=values, work=work)
    return {name: value for name, value in zip(node.outputs, results, strict=False) if name}


def _interpreted(graph: Graph, values: dict[str, Any], wanted: list[str], work: Work) -> dict[str, np.ndarray]:
    """A part as its definition has it: one that hands sequences of tensors on, which no program holds, or the tail of
    a chain of decisions that goes on and on."""
    values = {**values, **graph.constants}
    for node in graph.nodes:
        values |= _evaluated(node, values, work)
    return {name: np.array(values[name]) for name in wanted}
