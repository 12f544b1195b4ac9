"""Shapes, types and values that are known before anything runs.

``specialise`` follows concrete input shapes through a graph; ``fold`` replaces what depends on constants alone.
A shape is always worked out before a value is, so that no file can make the engine allocate what it merely names.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from ..errors import InputError, LstmEngineError, ModelFormatError, UnsupportedModelError, listed
from ..graph import ENGINE_DOMAIN, Graph, Node, reads
from ..reference import Work, check_kinds, evaluate, honoured, is_control, node_faults, sized
from ..reference.control import body_units, captures
from ..reference.registry import SEQUENCES
from .bodies import UNITS_PER_NODE, control_known, foldable
from .control import Names, inlined, renamed
from .shape_rules import RULES, DataDependentError, DType, Known, Size

__all__ = ["BUDGET", "RULES", "Known", "Specialised", "Walk", "fold", "infer", "measured", "specialise"]

#: How many elements a folded tensor may have, or as many as the file itself carries if that is more.
BUDGET: Final = 1 << 24
#: How often that may be folded in all (every weight passes through a few Concats and Casts).
TOTAL: Final = 8
#: The share of a run's work on bodies that folding may do: 1 in so many.
LOADING: Final = 4
#: Operators whose result is a view and costs no memory.
VIEWS: Final = frozenset({"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split"})


@dataclass(frozen=True, slots=True)
class Specialised:
    """Every tensor of a graph for one set of input shapes; ``values`` holds those that no feed can change."""

    shapes: Mapping[str, Size]
    dtypes: Mapping[str, DType]
    values: Mapping[str, np.ndarray]


def specialise(graph: Graph, shapes: Mapping[str, Size], *, budget: int = BUDGET) -> Specialised:
    """Follow the shapes of all graph inputs through the graph (optional ones may be left out).

    Raises ModelFormatError where shapes do not fit, UnsupportedModelError for an operator that is not implemented,
    a shape that depends on data (DataDependentError), or a constant of more than ``budget`` elements.
    """
    walk = Walk(graph, shapes, budget=budget)
    for node in graph.nodes:
        walk.enter(node)
    return walk.specialised()


class Walk:
    """What is known of a graph's tensors at one set of input shapes, node by node."""

    def __init__(self, graph: Graph, shapes: Mapping[str, Size], *, budget: int = BUDGET) -> None:
        """Raises InputError for shapes that are missing or of no input."""
        sizes = _input_shapes(graph, shapes)
        dtypes = {spec.name: spec.dtype for spec in graph.inputs}
        self.known = {name: constant(value) for name, value in graph.constants.items()}
        self.known |= {name: Known(shape, dtypes[name]) for name, shape in sizes.items()}
        self._follower = _Follower(_Folder(budget, graph, sum(map(math.prod, sizes.values()))))

    def enter(self, node: Node) -> None:
        """Learn a node's outputs.

        Raises DataDependentError where a shape hangs on data; nothing is then learnt.
        """
        results = self._follower.node(node, self.known)
        self.known |= {name: result for name, result in zip(node.outputs, results, strict=False) if name}

    def learn(self, constants: Mapping[str, np.ndarray]) -> None:
        """Tensors that came into the graph."""
        self.known |= {name: constant(value) for name, value in constants.items()}

    def specialised(self) -> Specialised:
        """Everything known so far."""
        return Specialised(
            {name: k.shape for name, k in self.known.items()},
            {name: k.dtype for name, k in self.known.items()},
            {name: k.value for name, k in self.known.items() if k.value is not None},
        )


def fold(graph: Graph, *, budget: int = BUDGET) -> Graph:
    """The graph with every node that reads only constants replaced by its value, whatever the input shapes.

    An If whose condition is constant gives way to its branch. Nodes that are not implemented or exceed the budget stay
    as they are. Bodies are folded like the graph around them, but for nodes that do not fit: they may never run.
    """
    folder = _Folder(budget, graph)
    folder.work.units //= LOADING
    return _folded(graph, {}, folder)


def _folded(graph: Graph, outer: Mapping[str, np.ndarray], folder: _Folder, in_body: bool = False) -> Graph:
    """``outer``: constants of the graphs around a body."""
    constants = dict(graph.constants)
    names = Names(graph)
    aliases: dict[str, str] = {}
    waiting = deque(graph.nodes)
    kept: list[Node] = []
    while waiting:
        node = renamed(waiting.popleft(), aliases)
        try:
            values = _constant_outputs(node, constants, outer, folder)
        except LstmEngineError:
            if not in_body:
                raise
            values = None
        condition = _held(node.input(0), constants, outer) if node.op == "If" and not node_faults(node) else None
        if values is not None:
            constants |= values
        elif condition is not None and condition.size == 1:
            branch = inlined(node, condition, names)
            constants |= branch.constants
            aliases |= {target: aliases.get(source, source) for target, source in branch.aliases.items()}
            waiting.extendleft(reversed(branch.nodes))
        else:
            kept.append(_with_folded_bodies(node, constants, outer, folder) if is_control(node) else node)
    kept += copies(graph, aliases)
    return graph.with_nodes(kept, constants)


def copies(graph: Graph, aliases: Mapping[str, str]) -> list[Node]:
    """Nodes that give the graph's outputs which others make their own names."""
    outputs = [spec.name for spec in graph.outputs if spec.name in aliases]
    return [Node("Identity", (aliases[name],), (name,)) for name in outputs]


def _held(name: str, constants: Mapping[str, np.ndarray], outer: Mapping[str, np.ndarray]) -> np.ndarray | None:
    return constants[name] if name in constants else outer.get(name)


def _constant_outputs(
    node: Node, constants: Mapping[str, np.ndarray], outer: Mapping[str, np.ndarray], folder: _Folder
) -> dict[str, np.ndarray] | None:
    """The values of a node's outputs where it reads constants alone and the budget allows it."""
    held = {name: _held(name, constants, outer) for name in reads(node)}
    known = {name: constant(value) for name, value in held.items() if value is not None}
    if len(known) < len(held) or node_faults(node) or not foldable(node):
        return None
    inputs = [known[name] if name else None for name in node.inputs]
    if is_control(node):
        with suppress(UnsupportedModelError):
            return _named_values(node, folder.run_bodies(node, inputs, known))
    elif node.op in RULES and folder.affords(made := infer(node, inputs)):
        return _named_values(node, folder.settle(node, inputs, made))
    return None


def _named_values(node: Node, results: Sequence[Known]) -> dict[str, np.ndarray]:
    return {o: k.value for o, k in zip(node.outputs, results, strict=False) if o and k.value is not None}


def _with_folded_bodies(
    node: Node, constants: Mapping[str, np.ndarray], outer: Mapping[str, np.ndarray], folder: _Folder
) -> Node:
    around = {name: _held(name, constants, outer) for name in reads(node)}
    known = {name: value for name, value in around.items() if value is not None}
    attributes = {
        name: _folded(value, known, folder, in_body=True) if isinstance(value, Graph) else value
        for name, value in node.attributes.items()
    }
    return replace(node, attributes=attributes)


def infer(node: Node, inputs: Sequence[Known | None]) -> tuple[Known, ...]:
    """Shape and type of a node's outputs, by its rule."""
    faults = node_faults(node)
    if node.op in SEQUENCES:
        raise DataDependentError(f"{node.label} takes or makes a sequence of tensors that data decides")
    if not faults and node.op not in RULES:
        faults = [f"{node.label}: operator {node.op} has no shape rule"]
    if faults:
        raise UnsupportedModelError(listed("not implemented", faults))
    try:
        if node.domain != ENGINE_DOMAIN:
            check_kinds(node.op, inputs)
        result = RULES[node.op](*inputs, **honoured(node, defaults=True))
    except LstmEngineError as error:
        raise type(error)(f"{node.label}: {error}") from error
    except (ValueError, IndexError, TypeError, AttributeError, ArithmeticError) as error:
        got = ", ".join("absent" if k is None else str(k) for k in inputs)
        raise ModelFormatError(f"{node.label}: inputs {got} do not fit: {error}") from error
    return (result,) if isinstance(result, Known) else tuple(result)


def measured(node: Node, inputs: Sequence[Any]) -> int:
    """How many elements a node would make of its inputs; 0 where that does not show."""
    if any(isinstance(x, list) for x in inputs):
        return sum(sum(item.size for item in x) if isinstance(x, list) else np.size(x) for x in inputs)
    try:
        return sum(math.prod(k.shape) for k in infer(node, [None if x is None else constant(x) for x in inputs]))
    except LstmEngineError:
        return 0


def constant(value: np.ndarray) -> Known:
    """What is known of a constant: all."""
    return Known(value.shape, value.dtype, value)


class _Follower:
    """Follows what is known from node to node, into bodies too."""

    def __init__(self, folder: _Folder) -> None:
        self.folder = folder
        self.work = folder.work
        self._captures: dict[int, tuple[Graph, tuple[str, ...]]] = {}

    def node(self, node: Node, known: Mapping[str, Known]) -> tuple[Known, ...]:
        """What is known of a node's outputs."""
        inputs = [known[name] if name else None for name in node.inputs]
        if not is_control(node):
            return self.folder.settle(node, inputs, infer(node, inputs))
        faults = node_faults(node)
        if faults:
            raise UnsupportedModelError(listed("not implemented", faults))
        if foldable(node) and all(known[name].value is not None for name in reads(node)):
            return self.folder.run_bodies(node, inputs, known)
        return control_known(self, node, inputs, known)

    def body(self, graph: Graph, inputs: Sequence[Known], scope: Mapping[str, Known]) -> list[Known]:
        """What is known of a body's outputs."""
        _, captured = self._captures.setdefault(id(graph), (graph, captures(graph)))
        known = {name: scope[name] for name in captured}
        known |= {name: constant(value) for name, value in graph.constants.items()}
        known |= zip((spec.name for spec in graph.inputs), inputs, strict=True)
        for node in graph.nodes:
            self.work.spend(node, UNITS_PER_NODE)
            results = self.node(node, known)
            known |= {name: result for name, result in zip(node.outputs, results, strict=False) if name}
        return [known[spec.name] for spec in graph.outputs]


class _Folder:
    """Evaluates what is known, within a budget of elements and of work."""

    def __init__(self, budget: int, graph: Graph, fed: int = 0) -> None:
        self.limit = max(budget, graph.carried)
        self.left = TOTAL * self.limit
        self.work = Work(fed, graph.carried, body_units(graph), measured)

    def may_evaluate(self, node: Node, inputs: Sequence[Known | None]) -> bool:
        """Whether no feed can change the outputs. A recurrent node is never folded: it may have any length."""
        if node.op in ("Shape", "Size"):
            return True
        return foldable(node) and all(k is None or k.value is not None for k in inputs)

    def affords(self, results: Iterable[Known]) -> bool:
        """Whether the budget still allows these results."""
        count = sum(math.prod(k.shape) for k in results)
        return count <= min(self.limit, self.left)

    def settle(self, node: Node, inputs: Sequence[Known | None], results: tuple[Known, ...]) -> tuple[Known, ...]:
        """The results with their values where those are known."""
        if not self.may_evaluate(node, inputs):
            return results
        if not self.affords(results):
            made = ", ".join(map(str, results))
            raise UnsupportedModelError(f"{node.label}: makes {made}, more than the budget of {self.limit} elements")
        if node.op not in VIEWS:
            self.left -= sum(math.prod(k.shape) for k in results)
        values = evaluate(node, [None if k is None else _value_or_shape(k) for k in inputs])
        return tuple(constant(value) for value in values)

    def run_bodies(self, node: Node, inputs: Sequence[Known | None], known: Mapping[str, Known]) -> tuple[Known, ...]:
        """The outputs of a control-flow node all of whose inputs and captures are known."""
        scope = {name: known[name].value for name in reads(node)}
        values = evaluate(node, [None if k is None else k.value for k in inputs], scope=scope, work=self.work)
        if any(isinstance(value, list) for value in values):
            raise DataDependentError(f"{node.label} makes a sequence")
        results = tuple(constant(value) for value in values)
        if not self.affords(results):
            raise UnsupportedModelError(f"{node.label}: makes more than the budget of {self.limit} elements")
        self.left -= sum(value.size for value in values)
        return results


def _value_or_shape(known: Known) -> np.ndarray:
    """The value, or for Shape and Size, which look at nothing else, an array of that shape without memory."""
    return np.broadcast_to(np.zeros((), known.dtype), known.shape) if known.value is None else known.value


def _input_shapes(graph: Graph, shapes: Mapping[str, Size]) -> dict[str, Size]:
    """The shapes of all inputs; those of optional ones from the named dimensions of the others."""
    names = {spec.name for spec in graph.inputs}
    faults = [f"'{name}' is not an input" for name in shapes if name not in names]
    bound = {
        dim: size
        for spec in graph.inputs
        for dim, size in zip(spec.shape or (), shapes.get(spec.name, ()), strict=False)
        if isinstance(dim, str)
    }
    found: dict[str, Size] = {}
    for spec in graph.inputs:
        if spec.name in shapes:
            found[spec.name] = tuple(int(size) for size in shapes[spec.name])
            continue
        size = sized(spec, bound)
        if not spec.optional or size is None:
            faults.append(f"the shape of '{spec}' is missing")
        found[spec.name] = size or ()
    if faults:
        raise InputError(listed(f"shapes for {graph.origin}", faults))
    return found
