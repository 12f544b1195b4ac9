"""Control flow: what If, Loop and Scan compute, and how much work a file may ask of them.

A body reads its own inputs and what it *captures* from the graphs around it, its scope. A *closed* node (of the
engine's domain) takes what its bodies capture as inputs of its own, behind the others; the attribute ``captured``
holds their names. So a closed node is a function of its inputs, like any other operator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

import numpy as np

from ..errors import ModelFormatError, UnsupportedModelError
from ..graph import ENGINE_DOMAIN, Graph, Node, reads
from .registry import Array

Scope: TypeAlias = Mapping[str, Any]
Inputs: TypeAlias = Sequence[Any]
#: Evaluates a node that has no bodies.
Plain: TypeAlias = Callable[[Inputs], tuple[Any, ...]]
Binder: TypeAlias = Callable[[Node], Plain]
#: Elements that a node would make of its inputs, by its shape rule.
Measure: TypeAlias = Callable[[Node, Inputs], int]

#: Attributes that hold bodies, by operator.
BODIES: Final[Mapping[str, tuple[str, ...]]] = {
    "If": ("then_branch", "else_branch"),
    "Loop": ("body",),
    "Scan": ("body",),
    "BatchScan": ("body",),
}
#: Attributes beside the bodies, by operator. BatchScan is the engine's name of Scan in operator set 8.
SETTINGS: Final[Mapping[str, frozenset[str]]] = {
    "If": frozenset(),
    "Loop": frozenset(),
    "Scan": frozenset(
        {"num_scan_inputs", "scan_input_axes", "scan_input_directions", "scan_output_axes", "scan_output_directions"}
    ),
    "BatchScan": frozenset({"num_scan_inputs", "directions"}),
}

#: Work is counted in node evaluations, and in thousands of elements they read and make: some microseconds each.
FREE_UNITS: Final = 100_000
UNITS_PER_FED: Final = 8  # and what the bodies take: a trip for each element fed
UNITS_PER_CARRIED: Final = 1  # thousands of trips over all weights
ELEMENTS_PER_UNIT: Final = 1 << 13  # read or made, or products summed up
UNITS_TO_MEASURE: Final = 4
UNITS_OF_A_LAYER: Final = 80  # a recurrent one, in NumPy
UNITS_OF_A_STEP: Final = 16
UNITS_OF_OTHERS: Final = 8  # operators that are more than a NumPy function or two
#: Elements of one tensor that a body makes, or of all that a loop stacks.
FREE_ELEMENTS: Final = 1 << 25
ELEMENTS_PER_ELEMENT: Final = 256  # fed or carried
#: Operators whose work does not grow with the data they read.
LIGHT: Final = frozenset({
    "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Reshape", "Shape", "Size", "Slice",
    "Split", "Squeeze", "Transpose", "Unsqueeze",
})  # fmt: skip
#: Operators that cannot make more elements than the product of what they read (and a few).
BOUNDED: Final = frozenset({
    *LIGHT - {"Expand"},
    "Abs", "Add", "And", "ArgMax", "ArgMin", "BatchNormalization", "Cast", "Ceil", "Clip", "Concat", "Cos", "CumSum",
    "Div", "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu", "Gemm", "Greater", "GreaterOrEqual", "HardSigmoid",
    "LayerNormalization", "LeakyRelu", "Less", "LessOrEqual", "Log", "LogSoftmax", "MatMul", "Max", "Mean", "Min",
    "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pow", "Reciprocal", "ReduceMax", "ReduceMean", "ReduceMin",
    "ReduceProd", "ReduceSum", "Relu", "ScatterElements", "ScatterND", "Sigmoid", "Sign", "Sin", "Softmax",
    "Softplus", "Sqrt", "Sub", "Sum", "Tanh", "TopK", "Where", "Xor",
})  # fmt: skip
RECURRENT: Final = frozenset({"GRU", "LSTM", "RNN"})
#: Operators whose work is more than the elements they read and make.
SUMMING: Final = RECURRENT | {"Conv", "ConvTranspose", "Gemm", "MatMul", "MatMulInteger"}
MANY: Final = 1 << 22


class Work:
    """What one call may still spend on the bodies of control-flow nodes, however they nest."""

    def __init__(self, fed: int = 0, carried: int = 0, units: int = 0, measure: Measure | None = None) -> None:
        """``fed``, ``carried``: elements of the feeds and of the weights; ``units``: what all bodies take once."""
        self.units = FREE_UNITS + fed * (UNITS_PER_FED + units) + carried * UNITS_PER_CARRIED
        self.most_elements = max(FREE_ELEMENTS, (fed + carried) * ELEMENTS_PER_ELEMENT)
        self.measure = measure
        self.started_with = self.units

    def spend(self, node: Node, units: int) -> None:
        """Take units off.

        Raises UnsupportedModelError, naming the node, when there are none left.
        """
        self.units -= units
        if self.units < 0:
            raise UnsupportedModelError(
                f"{node.label}: its trips ask for more work than the budget of {self.started_with} node evaluations "
                f"for feeds and weights of this size"
            )

    def foresee(self, node: Node, trips: int, body: Graph, stacked: int) -> None:
        """Raise UnsupportedModelError if so many trips, or what they stack, are bound to exceed the budget."""
        least = 1 + sum(map(_units, body.nodes))
        if trips * least > self.units:
            self.spend(node, trips * least)
        self.admit(node, stacked)

    def admit(self, node: Node, elements: int) -> None:
        """Raise UnsupportedModelError if a tensor of so many elements is beyond the budget."""
        if elements > self.most_elements:
            raise UnsupportedModelError(
                f"{node.label}: makes {elements} elements, more than the budget of {self.most_elements} "
                f"for feeds and weights of this size"
            )

    def admit_results(self, node: Node, inputs: Inputs) -> None:
        """Look at how large a node's results would be before they are made."""
        if self.measure is not None and not (node.op in BOUNDED and _product(inputs) <= MANY):
            self.units -= UNITS_TO_MEASURE
            self.admit(node, self.measure(node, inputs))


def body_units(graph: Graph) -> int:
    """Units of work that every node in the bodies of a graph takes at least, evaluated once."""
    return sum(units_of(body) for body in graph.subgraphs())


def units_of(body: Graph) -> int:
    """Units of work that every node of a body, and of those in it, takes at least, evaluated once."""
    return sum(map(_units, body.nodes)) + body_units(body)


def _units(node: Node) -> int:
    if node.op in RECURRENT:
        return UNITS_OF_A_LAYER + UNITS_OF_A_STEP
    return 1 if node.op in BOUNDED or is_control(node) else UNITS_OF_OTHERS


def is_control(node: Node) -> bool:
    """Whether a node has bodies."""
    return node.op in BODIES


def bodies(node: Node) -> tuple[Graph, ...]:
    """The bodies of a control-flow node."""
    return tuple(node.attributes[name] for name in BODIES[node.op])


def captures(graph: Graph) -> tuple[str, ...]:
    """Names a body reads from the graphs around it, in order of first use."""
    return tuple(dict.fromkeys(reads(Node("", (), (), {"body": graph}))))


def closed(node: Node) -> Node:
    """The node with what its bodies capture as further inputs."""
    if node.domain == ENGINE_DOMAIN and "captured" in node.attributes:
        return node
    captured = tuple(dict.fromkeys(name for body in bodies(node) for name in captures(body)))
    least = 2 if node.op == "Loop" else 0
    own = (*node.inputs, *("",) * (least - len(node.inputs)))
    attributes = {**node.attributes, "captured": captured}
    return replace(node, inputs=(*own, *captured), attributes=attributes, domain=ENGINE_DOMAIN)


def opened(node: Node, inputs: Inputs) -> tuple[list[Any], dict[str, Any]]:
    """A control-flow node's own inputs, and those that are captured, by name."""
    captured = node.attributes.get("captured", ())
    count = len(inputs) - len(captured)
    return list(inputs[:count]), dict(zip(captured, inputs[count:], strict=True))


# ---------------------------------------------------------------- faults that show before anything runs


def control_faults(node: Node) -> list[str]:
    """What is wrong with a control-flow node itself, its bodies left aside."""
    known = SETTINGS[node.op] | set(BODIES[node.op]) | ({"captured"} if node.domain == ENGINE_DOMAIN else set())
    faults = [f"attribute {name} is not implemented" for name in node.attributes if name not in known]
    for name in BODIES[node.op]:
        if not isinstance(node.attributes.get(name), Graph):
            faults.append(f"attribute {name} must be a graph")
    if not faults:
        faults = _FAULTS[node.op](node)
    return [f"{node.label}: {fault}" for fault in faults]


def _if_faults(node: Node) -> Iterator[str]:
    for name, branch in zip(BODIES["If"], bodies(node), strict=True):
        if branch.inputs:
            yield f"{name} takes inputs, which a branch never gets"
        if len(branch.outputs) < len(node.outputs):
            yield f"{name} gives {len(branch.outputs)} outputs, {len(node.outputs)} are asked for"
    if _own_count(node) != 1 or not node.input(0):
        yield f"takes 1 input, got {_own_count(node)}"


def _loop_faults(node: Node) -> Iterator[str]:
    (body,) = bodies(node)
    carried = max(_own_count(node) - 2, 0)
    if len(body.inputs) != 2 + carried:
        yield f"its body must take the trip, the condition and {carried} carried values, takes {len(body.inputs)}"
    if not 1 + carried <= len(body.outputs):
        yield f"its body must give the condition and {carried} carried values, gives {len(body.outputs)}"
    if len(node.outputs) > len(body.outputs) - 1:
        yield f"{len(node.outputs)} outputs are asked for, its body makes {len(body.outputs) - 1}"


def _scan_faults(node: Node) -> Iterator[str]:
    (body,) = bodies(node)
    first = 1 if node.op == "BatchScan" else 0
    count = node.attributes.get("num_scan_inputs")
    given = _own_count(node) - first
    if not isinstance(count, int) or not 1 <= count <= given:
        yield f"num_scan_inputs must lie in 1..{given}, got {count!r:.40}"
        return
    carried = given - count
    if len(body.inputs) != given:
        yield f"its body must take {carried} states and {count} elements, takes {len(body.inputs)}"
    if len(body.outputs) < carried or len(node.outputs) > len(body.outputs):
        yield f"its body gives {len(body.outputs)} outputs for {carried} states and {len(node.outputs)} outputs"
    stacked = len(body.outputs) - carried
    wanted = {"scan_input_axes": count, "scan_input_directions": count, "directions": count}
    wanted |= {"scan_output_axes": stacked, "scan_output_directions": stacked}
    for name, length in wanted.items():
        value = node.attributes.get(name)
        if value is not None and (
            not isinstance(value, tuple) or len(value) != length or not all(isinstance(item, int) for item in value)
        ):
            yield f"attribute {name} must hold {length} integers, got {value!r:.40}"


def _own_count(node: Node) -> int:
    return len(node.inputs) - len(node.attributes.get("captured", ()))


_FAULTS: Final[Mapping[str, Callable[[Node], list[str]]]] = {
    "If": lambda node: list(_if_faults(node)),
    "Loop": lambda node: list(_loop_faults(node)),
    "Scan": lambda node: list(_scan_faults(node)),
    "BatchScan": lambda node: list(_scan_faults(node)),
}


# ---------------------------------------------------------------- evaluation


class Evaluation:
    """Evaluates nodes, bodies included; what it learns of a body it keeps for the next trip."""

    def __init__(self, bind: Binder, work: Work, convert: Callable[[Any], Any] | None = None) -> None:
        """``bind``: makes a plain node callable; ``convert``: what becomes of every tensor (another precision)."""
        self.bind = bind
        self.work = work
        self.convert = convert
        self._bodies: dict[int, _Body] = {}

    def node(self, node: Node, inputs: Inputs, scope: Scope) -> tuple[Any, ...]:
        """The outputs of one control-flow node."""
        own, captured = opened(node, inputs)
        return DEFINITIONS[node.op](self, node, own, {**scope, **captured} if captured else scope)

    def step(self, node: Node) -> Callable[[Inputs, Scope], tuple[Any, ...]]:
        """What evaluates one node of a body again and again, within the budget."""
        work = self.work
        if is_control(node):
            return lambda inputs, scope: self.node(node, inputs, scope)
        plain = self.bind(node)
        heavy = node.op not in LIGHT
        fixed, recurrent = _units(node), node.op in RECURRENT
        summing = node.op in SUMMING

        def guarded(inputs: Inputs, _: Scope) -> tuple[Any, ...]:
            work.admit_results(node, inputs)
            if recurrent:
                work.spend(node, UNITS_OF_A_STEP * (max(inputs[0].shape[:2], default=1) - 1))
            results = plain(inputs)
            touched = 0
            for x in (*results, *inputs) if heavy else results:
                touched += _size(x)
            if summing:
                touched += operations(node, inputs)
            work.spend(node, fixed + touched // ELEMENTS_PER_UNIT)
            return results

        return guarded

    def body(self, graph: Graph, scope: Scope) -> Callable[[Inputs], list[Any]]:
        """A body as a function of its inputs."""
        known = self._bodies.get(id(graph))
        if known is None:
            known = self._bodies[id(graph)] = _Body.of(graph, self)
        return known.within(scope)


@dataclass(frozen=True)
class _Body:
    """A body, bound: its nodes as functions."""

    graph: Graph  # alive as long as its id is a key
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    captured: tuple[str, ...]
    constants: Mapping[str, Any]
    steps: tuple[tuple[Callable[[Inputs, Scope], tuple[Any, ...]], tuple[str, ...], tuple[str, ...]], ...]
    convert: Callable[[Any], Any] | None

    @staticmethod
    def of(graph: Graph, evaluation: Evaluation) -> _Body:
        convert = evaluation.convert
        constants = {k: v if convert is None else convert(v) for k, v in graph.constants.items()}
        return _Body(
            graph,
            tuple(spec.name for spec in graph.inputs),
            tuple(spec.name for spec in graph.outputs),
            captures(graph),
            constants,
            tuple((evaluation.step(node), node.inputs, node.outputs) for node in graph.nodes),
            convert,
        )

    def within(self, scope: Scope) -> Callable[[Inputs], list[Any]]:
        """The body with what it captures."""
        around = {**self.constants, **{name: scope[name] for name in self.captured}}
        return lambda values: self._call(around, values)

    def _call(self, around: Mapping[str, Any], values: Inputs) -> list[Any]:
        scope = dict(around)
        scope.update(zip(self.inputs, values, strict=True))
        for step, inputs, outputs in self.steps:
            results = step([scope[name] if name else None for name in inputs], scope)
            if self.convert is not None:
                results = tuple(self.convert(x) for x in results)
            scope.update(zip(outputs, results, strict=False))
        return [scope[name] for name in self.outputs]


def _if(evaluation: Evaluation, node: Node, inputs: Inputs, scope: Scope) -> tuple[Any, ...]:
    branch = chosen(node, inputs[0])
    return tuple(evaluation.body(branch, scope)(())[: len(node.outputs)])


def chosen(node: Node, condition: Array) -> Graph:
    """The branch of an If that is taken.

    Raises ModelFormatError unless the condition has one element.
    """
    branch: Graph = node.attributes["then_branch" if truth(node, condition) else "else_branch"]
    return branch


def _loop(evaluation: Evaluation, node: Node, inputs: Inputs, scope: Scope) -> tuple[Any, ...]:
    """Trips until M are made or the condition, before the first one or after any, is false.

    The body's condition counts also where no first condition is given, as onnxruntime has it.
    """
    limit, going = (*inputs[:2], None, None)[:2]
    carried = list(inputs[2:])
    most = None if limit is None else number(node, "M", limit)
    on = going is None or truth(node, going)
    call = evaluation.body(node.attributes["body"], scope)
    stacks = [_Stack(node, evaluation.work) for _ in node.attributes["body"].outputs[1 + len(carried) :]]
    trip = 0
    while on and (most is None or trip < most):
        evaluation.work.spend(node, 1)
        condition, *made = call((np.array(trip, np.int64), np.array(True), *carried))
        on = truth(node, condition)
        carried, elements = made[: len(carried)], made[len(carried) :]
        for stack, element in zip(stacks, elements, strict=True):
            stack.add(element)
        trip += 1
    if trip == 0 and stacks:
        shown = _dry(call, (np.array(0, np.int64), np.array(True), *carried), node.attributes["body"], 1 + len(carried))
        return (*carried, *(x[None][:0] for x in shown))
    return (*carried, *(stack.stacked(0, False) for stack in stacks))


def _scan(evaluation: Evaluation, node: Node, inputs: Inputs, scope: Scope) -> tuple[Any, ...]:
    count = node.attributes["num_scan_inputs"]
    states, scanned = list(inputs[: len(inputs) - count]), inputs[len(inputs) - count :]
    axes = node.attributes.get("scan_input_axes") or (0,) * count
    backwards = node.attributes.get("scan_input_directions") or (0,) * count
    steps = scan_length(node, [x.shape for x in scanned], axes)
    rows = [
        np.flip(np.moveaxis(x, axis, 0), 0) if back else np.moveaxis(x, axis, 0)
        for x, axis, back in zip(scanned, axes, backwards, strict=True)
    ]
    body = node.attributes["body"]
    stacked = len(body.outputs) - len(states)
    axes = node.attributes.get("scan_output_axes") or (0,) * stacked
    backwards = node.attributes.get("scan_output_directions") or (0,) * stacked
    return _scanned(evaluation, node, states, rows, steps, tuple(zip(axes, backwards, strict=True)), scope)


def _scanned(
    evaluation: Evaluation,
    node: Node,
    states: list[Any],
    rows: Sequence[Array],
    steps: int,
    layouts: Sequence[tuple[int, int]],
    scope: Scope,
) -> tuple[Any, ...]:
    """States and stacked outputs after so many steps over the rows; ``layouts``: axis and direction of each stack."""
    call = evaluation.body(node.attributes["body"], scope)
    stacks = [_Stack(node, evaluation.work) for _ in layouts]
    for t in range(steps):
        evaluation.work.spend(node, 1)
        made = call((*states, *(row[t] for row in rows)))
        fixed = [np.shape(new) == np.shape(old) for new, old in zip(made, states, strict=False)]
        if not all(fixed):
            raise ModelFormatError(f"{node.label}: state {fixed.index(False)} changes its shape")
        states, elements = made[: len(states)], made[len(states) :]
        for stack, element in zip(stacks, elements, strict=True):
            stack.add(element)
    if steps == 0:
        zeros = [np.zeros(row.shape[1:], row.dtype) for row in rows]
        shown = _dry(call, (*states, *zeros), node.attributes["body"], len(states))
        empty = [np.moveaxis(x[None][:0], 0, axis) for x, (axis, _) in zip(shown, layouts, strict=True)]
        return (*states, *empty)
    return (*states, *(s.stacked(axis, bool(back)) for s, (axis, back) in zip(stacks, layouts, strict=True)))


def _batch_scan(evaluation: Evaluation, node: Node, inputs: Inputs, scope: Scope) -> tuple[Any, ...]:
    """Scan of operator set 8: batch first, time second, rows of their own lengths. Beyond those, outputs are 0."""
    lengths, *rest = inputs
    count = node.attributes["num_scan_inputs"]
    states, scanned = rest[: len(rest) - count], rest[len(rest) - count :]
    backwards = node.attributes.get("directions") or (0,) * count
    if any(np.ndim(x) < 2 for x in scanned) or any(np.ndim(x) < 1 for x in states):
        raise ModelFormatError(f"{node.label}: states are [B, ...], scan inputs [B, T, ...]")
    steps = scan_length(node, [x.shape for x in scanned], (1,) * count)
    batch = scan_length(node, [x.shape for x in (*scanned, *states)], (0,) * (count + len(states)))
    counts = [steps] * batch if lengths is None else [int(n) for n in np.ravel(lengths)]
    if len(counts) != batch or any(not 0 <= n <= steps for n in counts):
        raise ModelFormatError(f"{node.label}: sequence_lens must be {batch} numbers in 0..{steps}, got {counts[:8]}")
    layouts = ((0, 0),) * (len(node.attributes["body"].outputs) - len(states))
    results = []
    for b, length in enumerate(counts):
        rows = [x[b, :length][:: -1 if back else 1] for x, back in zip(scanned, backwards, strict=True)]
        made = _scanned(evaluation, node, [s[b] for s in states], rows, length, layouts, scope)
        padded = [np.concatenate([x, np.zeros((steps - length, *x.shape[1:]), x.dtype)]) for x in made[len(states) :]]
        results.append([*made[: len(states)], *padded])
    if not results:
        raise ModelFormatError(f"{node.label}: a batch of 0 rows")
    return tuple(np.stack(each) for each in zip(*results, strict=True))


DEFINITIONS: Final[Mapping[str, Callable[[Evaluation, Node, Inputs, Scope], tuple[Any, ...]]]] = {
    "If": _if,
    "Loop": _loop,
    "Scan": _scan,
    "BatchScan": _batch_scan,
}


class _Stack:
    """The values of one output over all trips."""

    def __init__(self, node: Node, work: Work) -> None:
        self._node = node
        self._work = work
        self._elements: list[Array] = []
        self._count = 0

    def add(self, element: Any) -> None:
        if not isinstance(element, np.ndarray | np.generic):
            raise ModelFormatError(f"{self._node.label}: only tensors can be stacked over the trips")
        if self._elements and element.shape != self._elements[0].shape:
            raise ModelFormatError(
                f"{self._node.label}: an output that is stacked over the trips was {list(self._elements[0].shape)} "
                f"and is {list(element.shape)} in trip {len(self._elements)}"
            )
        self._count += max(element.size, 1)
        self._work.admit(self._node, self._count)
        self._elements.append(element)

    def stacked(self, axis: int, backwards: bool) -> Array:
        return np.stack(self._elements[::-1] if backwards else self._elements, axis)


def _dry(call: Callable[[Inputs], list[Any]], values: Inputs, body: Graph, first: int) -> list[Array]:
    """What the outputs stacked over no trips would have been one element of, for their shape and type."""
    try:
        return [np.asarray(x) for x in call(values)[first:]]
    except (ModelFormatError, IndexError, ValueError):
        sizes = [tuple(d if isinstance(d, int) else 0 for d in spec.shape or ()) for spec in body.outputs[first:]]
        dtypes = [np.dtype(np.float32) if spec.dtype.kind == "V" else spec.dtype for spec in body.outputs[first:]]
        return [np.zeros(size, dtype) for size, dtype in zip(sizes, dtypes, strict=True)]


def scan_length(node: Node, shapes: Sequence[tuple[int, ...]], axes: Sequence[int]) -> int:
    """The length that all scanned axes share."""
    lengths = []
    for shape, axis in zip(shapes, axes, strict=True):
        if not -len(shape) <= axis < len(shape):
            raise ModelFormatError(f"{node.label}: axis {axis} does not exist in {list(shape)}")
        lengths.append(shape[axis])
    if len(set(lengths)) > 1:
        raise ModelFormatError(f"{node.label}: its scan inputs must be of one length, got {lengths}")
    return lengths[0]


def truth(node: Node, condition: Any) -> bool:
    """A condition's value; it may have any rank, but one element."""
    if np.size(condition) != 1:
        raise ModelFormatError(f"{node.label}: the condition must have one element, got {list(np.shape(condition))}")
    return bool(np.reshape(condition, ()))


def number(node: Node, name: str, value: Any) -> int:
    """A count's value; it may have any rank, but one element."""
    if np.size(value) != 1:
        raise ModelFormatError(f"{node.label}: {name} must have one element, got {list(np.shape(value))}")
    return int(np.reshape(value, ()))


def _size(x: Any) -> int:
    """Elements of a tensor, of a sequence of them, or of an absent input."""
    if x is None:
        return 0
    return sum(map(_size, x)) if isinstance(x, list) else int(x.size)


def operations(node: Node, inputs: Inputs) -> int:
    """Roughly, the products that a node sums up; 0 for operators that only look at each element."""
    if node.op in ("MatMul", "Gemm", "MatMulInteger") and len(inputs) > 1 and min(x.ndim for x in inputs[:2]) > 0:
        right = inputs[1].shape
        columns = right[0] if node.attributes.get("transB", 0) else right[-1] if len(right) > 1 else 1
        return int(inputs[0].size * columns)
    if node.op in ("Conv", "ConvTranspose") and len(inputs) > 1 and inputs[1].ndim > 0:
        return int(inputs[0].size * inputs[1].size // max(inputs[1].shape[0], 1))
    if node.op in RECURRENT and len(inputs) > 2:
        return max(inputs[0].shape[:1], default=1) * _size(inputs[2])
    return 0


def _product(inputs: Inputs) -> int:
    product = 1
    for x in inputs:
        product *= _size(x) or 1
    return product
