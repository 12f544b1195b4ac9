"""The definition of every operator the engine knows, in NumPy: readable first, and exact.

In float64 it is the oracle that the kernels are held against. In a tensor's own type it folds constants and runs
the operators that have no machine code. Graphs are expected in canonical form (opset 18 and later: axes, pads,
starts and ends are inputs).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from ..errors import InputError, LstmEngineError, ModelFormatError, UnsupportedModelError, listed
from ..graph import ENGINE_DOMAIN, Graph, Node, TensorSpec
from . import attention as attention
from . import bridge, pointwise
from . import causal as causal
from . import chance as chance
from . import convolution as convolution
from . import linear as linear
from . import microsoft as microsoft
from . import normalisation as normalisation
from . import pooling as pooling
from . import quantised as quantised
from . import recurrent as recurrent
from . import reduction as reduction
from . import resampling as resampling
from . import sequences as sequences
from . import shaping as shaping
from . import signal as signal
from .cells import ACTIVATIONS, DEFAULT_ACTIVATIONS, Activation, CellAttributes, cell_attributes
from .control import Evaluation, Measure, Work, body_units, control_faults, is_control
from .kinds import check_kinds
from .layers import Layer, layer_of
from .recurrent import lstm, lstm_step
from .registry import OPERATORS, SEQUENCES, Array, Operator, quiet
from .rounded import at_precision

__all__ = [
    "ACTIVATIONS",
    "OPERATORS",
    "Activation",
    "CellAttributes",
    "Layer",
    "Operator",
    "Work",
    "at_precision",
    "bind",
    "cell_attributes",
    "check_kinds",
    "evaluate",
    "honoured",
    "is_control",
    "layer_of",
    "lstm",
    "lstm_step",
    "node_faults",
    "run",
    "sized",
    "unsupported",
]

#: Domains whose operators are ONNX's own or the engine's extensions of them.
KNOWN_DOMAINS: Final = ("", "ai.onnx", ENGINE_DOMAIN)

#: Attributes that change nothing at the value given (None: at any value), beside those an operator honours.
HARMLESS: Final[dict[tuple[str, str], Any]] = {
    ("Attention", "left_window_size"): -1,
    ("Attention", "qk_matmul_output_mode"): 0,
    ("Attention", "right_window_size"): -1,
    ("Attention", "softmax_precision"): None,
    ("BatchNormalization", "spatial"): 1,
    ("BatchNormalization", "is_test"): 1,
    ("BatchNormalization", "momentum"): None,
    ("BatchNormalization", "training_mode"): 0,
    ("Cast", "round_mode"): None,
    ("Dropout", "ratio"): None,
    ("Dropout", "is_test"): 1,
    ("GRU", "output_sequence"): None,
    ("LSTM", "output_sequence"): None,
    ("LSTM", "linear_before_reset"): 0,
    ("RNN", "output_sequence"): None,
}


def evaluate(
    node: Node,
    inputs: Sequence[Array | None],
    *,
    scope: Mapping[str, Any] | None = None,
    work: Work | None = None,
) -> tuple[Array, ...]:
    """The outputs of one node. Absent optional inputs are None; results may be views of the inputs.

    ``scope``: tensors that the bodies of a control-flow node capture; ``work``: what these may still spend.

    Raises UnsupportedModelError for an unknown operator or attribute or too much work, ModelFormatError where the
    inputs do not fit, InputError for an index out of range.
    """
    if not is_control(node):
        return bind(node)(inputs)
    _refuse(node)
    return Evaluation(bind, work or Work()).node(node, inputs, scope or {})


def bind(node: Node) -> Callable[[Sequence[Array | None]], tuple[Array, ...]]:
    """What evaluates a node again and again: ``evaluate`` with the node already checked."""
    _refuse(node)
    known, attributes = OPERATORS[node.op], honoured(node)
    sequences = node.op in SEQUENCES or node.op == "Identity"
    onnx_own = node.domain != ENGINE_DOMAIN

    def evaluate_bound(inputs: Sequence[Array | None]) -> tuple[Array, ...]:
        try:
            if not sequences and any(isinstance(x, list) for x in inputs):
                raise TypeError("a sequence is no tensor")
            if onnx_own:
                check_kinds(node.op, inputs)
            with quiet():
                result = known.function(*_trimmed(inputs, known.min_inputs), **attributes)
        except LstmEngineError as error:
            raise type(error)(f"{node.label}: {error}") from error
        except (ValueError, IndexError, TypeError, AttributeError, ArithmeticError) as error:
            got = ", ".join(map(_shown, inputs))
            raise ModelFormatError(f"{node.label}: inputs {got} do not fit: {error}") from error
        results = result if isinstance(result, tuple) else (result,)
        return tuple(_typed(node, x, inputs) for x in results)

    return evaluate_bound


def run(
    graph: Graph,
    feeds: Mapping[str, Array],
    *,
    dtype: Any = np.float64,
    outputs: Sequence[str] | None = None,
    measure: Measure | None = None,
) -> dict[str, Array]:
    """Run a whole graph with every floating tensor in ``dtype`` (None: its own); outputs (any tensors) by name.

    Optional inputs that are not fed count as zeros; their named dimensions are those of the given feeds. With
    ``measure`` no tensor is made that is out of all proportion to feeds and weights.
    """
    dtype = None if dtype is None else np.dtype(dtype)
    wanted = tuple(spec.name for spec in graph.outputs) if outputs is None else tuple(outputs)
    values = {name: promoted(value, dtype) for name, value in graph.constants.items()}
    values |= {name: promoted(value, dtype) for name, value in completed(graph, feeds).items()}
    work = Work(sum(np.size(x) for x in feeds.values()), graph.carried, body_units(graph), measure)
    bodies = Evaluation(lambda node: bind(_in_dtype(node, dtype)), work, lambda x: promoted(x, dtype))
    for node in graph.nodes:
        inputs = [values[name] if name else None for name in node.inputs]
        if is_control(node):
            _refuse(node)
            results = bodies.node(node, inputs, values)
        else:
            work.admit_results(node, inputs)
            results = evaluate(_in_dtype(node, dtype), inputs)
        values |= {name: promoted(x, dtype) for name, x in zip(node.outputs, results, strict=False) if name}
    missing = [name for name in wanted if name not in values]
    if missing:
        raise InputError(f"{graph.origin} has no tensor {', '.join(missing)}")
    return {name: values[name] for name in wanted}


def unsupported(graph: Graph) -> list[str]:
    """Every operator, attribute and attribute value of the graph, bodies included, that is not implemented, by node."""
    faults = [fault for node in graph.nodes for fault in node_faults(node)]
    return faults + [fault for body in graph.subgraphs() for fault in unsupported(body)]


def node_faults(node: Node) -> list[str]:
    """What of one node, its bodies left aside, is not implemented."""
    if node.domain in KNOWN_DOMAINS and is_control(node):
        return control_faults(node)
    if node.domain not in KNOWN_DOMAINS or node.op not in OPERATORS:
        return [f"{node.label}: operator {node.domain + '.' if node.domain else ''}{node.op} is not implemented"]
    known = OPERATORS[node.op]
    faults = [
        f"{node.label}: attribute {name}={_brief(value)} is not implemented"
        for name, value in node.attributes.items()
        if name not in known.attributes and not _harmless(node.op, name, value)
    ]
    required = known.attributes - known.defaults.keys()
    faults += [f"{node.label}: attribute {name} is missing" for name in sorted(required - node.attributes.keys())]
    given = len(_trimmed([name or None for name in node.inputs], 0))
    if given < known.min_inputs or (known.max_inputs is not None and given > known.max_inputs):
        most = "any number" if known.max_inputs is None else known.max_inputs
        faults.append(f"{node.label}: takes {known.min_inputs} to {most} inputs, got {given}")
    more = [name for name in node.outputs[known.results :] if name]
    if more:
        faults.append(f"{node.label}: makes {known.results} outputs, '{', '.join(more)}' is not implemented")
    return faults + _value_faults(node)


def honoured(node: Node, *, defaults: bool = False) -> dict[str, Any]:
    """The attributes that a node's definition takes: those the node gives, on request also the others' defaults."""
    known = OPERATORS[node.op]
    attributes = dict(known.defaults) if defaults else {}
    attributes |= {name: value for name, value in node.attributes.items() if name in known.attributes}
    if node.op == "Split" and node.input(1) == "":
        attributes["num_outputs"] = attributes.get("num_outputs") or len(node.outputs)
    return attributes


def completed(graph: Graph, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The feeds, and zeros for the optional inputs that are not fed."""
    specs = {spec.name: spec for spec in graph.inputs}
    faults = [f"'{name}' is not an input" for name in feeds if name not in specs]
    faults += [f"'{spec}' is missing" for spec in graph.inputs if spec.name not in feeds and not spec.optional]
    if faults:
        raise InputError(listed(f"feeds of {graph.origin}", faults))
    arrays = {name: np.asarray(value) for name, value in feeds.items()}
    bound = {
        dim: size
        for name, value in arrays.items()
        for dim, size in zip(specs[name].shape or (), value.shape, strict=False)
        if isinstance(dim, str)
    }
    return {spec.name: arrays[spec.name] if spec.name in arrays else _zeros(spec, bound) for spec in graph.inputs}


def promoted(x: Array, dtype: np.dtype[Any] | None) -> Array:
    """x (or each tensor of a sequence) in ``dtype`` if that is one and x is floating, else as it is."""
    if dtype is None:
        return x
    if isinstance(x, list):
        return [promoted(each, dtype) for each in x]
    return x.astype(dtype, copy=False) if np.issubdtype(x.dtype, np.floating) else x


def sized(spec: TensorSpec, bound: Mapping[str, int]) -> tuple[int, ...] | None:
    """The shape of an input whose named dimensions are bound; None if some are not."""
    dims = [None] if spec.shape is None else [bound.get(d) if isinstance(d, str) else d for d in spec.shape]
    return None if None in dims else tuple(d for d in dims if d is not None)


def _zeros(spec: TensorSpec, bound: Mapping[str, int]) -> Array:
    size = sized(spec, bound)
    if size is None:
        raise InputError(f"optional input '{spec}' must be fed: the other feeds do not tell its size")
    return np.zeros(size, spec.dtype)


def _in_dtype(node: Node, dtype: np.dtype[Any] | None) -> Node:
    """A Cast between floating types would throw away the precision of ``dtype``."""
    to = node.attributes.get("to")
    if (
        dtype is None
        or node.op != "Cast"
        or not isinstance(to, int)
        or to not in pointwise.DTYPES
        or not np.issubdtype(pointwise.DTYPES[to], np.floating)
    ):
        return node
    number = next(n for n, known in pointwise.DTYPES.items() if known == dtype)
    return Node(node.op, node.inputs, node.outputs, {**node.attributes, "to": number}, node.name, node.domain)


def _refuse(node: Node) -> None:
    faults = node_faults(node)
    if faults:
        raise UnsupportedModelError(listed("not implemented", faults))


def _typed(node: Node, x: Any, inputs: Sequence[Array | None]) -> Array:
    """A result as an array: NumPy makes scalars, and in old releases wider ones, of arrays without axes."""
    if isinstance(x, list):
        return x
    out = np.asarray(x)
    first = next((i for i in inputs if isinstance(i, np.ndarray)), None)
    widened = out.dtype == np.float64 and first is not None and not _chooses_type(node)
    if widened and first is not None and first.dtype in (np.float32, np.float16):
        return out.astype(first.dtype)
    return out


def _shown(x: Any) -> str:
    """An input as messages call it."""
    if isinstance(x, list):
        return f"a sequence of {len(x)}"
    return "absent" if x is None else f"{x.dtype}{list(x.shape)}"


def _chooses_type(node: Node) -> bool:
    """Whether the node says itself what type it makes."""
    return node.op in ("CastLike", "Constant") or not node.attributes.keys().isdisjoint(("to", "dtype"))


def _trimmed(inputs: Sequence[Any], at_least: int) -> list[Any]:
    """The inputs without absent ones at the end."""
    count = len(inputs)
    while count > at_least and inputs[count - 1] is None:
        count -= 1
    return list(inputs[:count])


def _harmless(op: str, name: str, value: Any) -> bool:
    if (op, name) not in HARMLESS:
        return False
    allowed = HARMLESS[op, name]
    return allowed is None or (isinstance(value, int) and value == allowed)


def _value_faults(node: Node) -> list[str]:
    """Attribute values that no input can make right."""
    try:
        if node.op in DEFAULT_ACTIVATIONS:
            cell_attributes(node.op, node.attributes)
        if node.op == "DynamicQuantizeLSTM":
            cell_attributes("LSTM", node.attributes)
        if node.op in bridge.BRIDGED:
            return [f"{node.label}: {fault}" for fault in bridge.refused(node.op, node.attributes)]
        if node.op == "Cast":
            pointwise.element_type(node.attributes.get("to"))
        if node.op == "Split" and node.attributes.get("num_outputs") not in (None, len(node.outputs)):
            given = _brief(node.attributes["num_outputs"])
            return [f"{node.label}: num_outputs={given}, but it has {len(node.outputs)} outputs"]
    except LstmEngineError as error:
        return [f"{node.label}: {error}"]
    except (ValueError, TypeError, AttributeError, ArithmeticError) as error:  # values of another kind
        return [f"{node.label}: attributes do not fit: {error}"]
    return []


def _brief(value: Any) -> str:
    return "(graph)" if isinstance(value, Graph) else repr(value)[:60]
