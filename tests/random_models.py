"""Random valid ONNX models: recurrent nodes with any option, random glue before, between and after them.

A model is a function of its seed alone. Sizes are small and often equal, so that an axis taken for another is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Final

import builders
import numpy as np
import onnx
from onnx import helper, numpy_helper

Array = np.ndarray
OPSETS: Final = (7, 9, 10, 11, 12, 13, 14, 15, 17, 18, 20, 21, 22)
GATES: Final = {"LSTM": 4, "GRU": 3, "RNN": 1}
ACTIVATIONS: Final = {"LSTM": 3, "GRU": 2, "RNN": 1}
#: How many of alpha, beta each gate activation takes; those of the second group need both given.
PARAMETERS: Final = {
    "Relu": 0, "Tanh": 0, "Sigmoid": 0, "Softsign": 0, "Softplus": 0, "LeakyRelu": 1, "Elu": 1, "ThresholdedRelu": 1,
    "HardSigmoid": 2, "ScaledTanh": 2, "Affine": 2,
}  # fmt: skip
#: Functions of gates and candidates under which a state stays bounded.
BOUNDED: Final = ("Tanh", "Sigmoid", "Softsign", "HardSigmoid", "ScaledTanh")
MOST_ELEMENTS: Final = 4000


@dataclass
class RandomModel:
    """A model, feeds that fit it and what it was made of."""

    seed: int
    content: bytes
    feeds: dict[str, Array]
    data: str  # which feed is the sequence: X[T,B,I], or X[B,T,I] where time_axis is 1
    time_axis: int
    operators: tuple[str, ...]
    peers: bool  # whether onnxruntime's answer is right


@dataclass
class Writer:
    """A model under construction; every tensor's concrete shape is known."""

    draw: np.random.Generator
    opset: int
    dtype: Any
    causal: bool = False  # mostly what a stream can run
    batch_first: bool = False
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initialisers: dict[str, Array] = field(default_factory=dict)
    inputs: list[builders.Info] = field(default_factory=list)
    feeds: dict[str, Array] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    states: list[str] = field(default_factory=list)  # results of recurrent nodes that may be another's initial state
    peers: bool = True

    # --- choices ------------------------------------------------------------------------------------------------------

    def chance(self, p: float) -> bool:
        return bool(self.draw.random() < p)

    def pick(self, options: Sequence[Any]) -> Any:
        return options[int(self.draw.integers(len(options)))]

    def size(self) -> int:
        return int(self.pick([1, 1, 2, 2, 3, 3, 3, 4, 5, 7]))

    def values(self, *shape: int, scale: float = 1.0) -> Array:
        return (scale * self.draw.standard_normal(shape)).astype(self.dtype)

    # --- tensors ------------------------------------------------------------------------------------------------------

    def name(self, stem: str) -> str:
        separator = self.pick(["_", "/", ":", "."])
        return f"{stem}{separator}{len(self.shapes) + len(self.nodes)}"

    def op(self, op: str, inputs: Sequence[str], *shapes: Sequence[int], **attributes: Any) -> Any:
        """Append a node with results of these shapes; their name, or names where there are several."""
        outputs = [self.name(op) + ("" if k == 0 else f"_{k}") for k in range(len(shapes))]
        self.shapes |= {name: tuple(map(int, shape)) for name, shape in zip(outputs, shapes, strict=True)}
        self.nodes.append(helper.make_node(op, list(inputs), outputs, name=f"n{len(self.nodes)}", **attributes))
        return outputs[0] if len(outputs) == 1 else outputs

    def constant(self, value: Any) -> str:
        """A tensor of this value: stored, in a Constant node, or computed from others."""
        value = np.asarray(value)
        make = self.pick([self._stored, self._stored, self._node, self._joined, self._turned, self._viewed])
        name: str = make(value)
        return name

    def integers(self, *values: int) -> str:
        return self._stored(np.array(values, np.int64)) if self.chance(0.7) else self._node(np.array(values, np.int64))

    def _stored(self, value: Array) -> str:
        name = self.name("w")
        self.initialisers[name] = value
        self.shapes[name] = value.shape
        return name

    def _node(self, value: Array) -> str:
        made: str = self.op("Constant", [], value.shape, value=numpy_helper.from_array(value))
        return made

    def _joined(self, value: Array) -> str:
        """Cut in two, stored the wrong way round, put right by Slice and Concat: as exporters reorder gates."""
        axis = next((a for a, size in enumerate(value.shape) if size > 1), None)
        if axis is None:
            return self._stored(value)
        cut = int(self.draw.integers(1, value.shape[axis]))
        first, second = np.split(value, [cut], axis)
        turned = self._stored(np.concatenate([second, first], axis))
        size = value.shape[axis]
        parts = [self.sliced(turned, axis, size - cut, size), self.sliced(turned, axis, 0, size - cut)]
        made: str = self.op("Concat", parts, value.shape, axis=axis)
        return made

    def _turned(self, value: Array) -> str:
        order = [int(a) for a in self.draw.permutation(value.ndim)]
        stored = self._stored(np.ascontiguousarray(value.transpose(np.argsort(order)) if value.ndim else value))
        return self.op("Transpose", [stored], value.shape, perm=order) if value.ndim else stored

    def _viewed(self, value: Array) -> str:
        if not value.ndim:
            return self.op("Identity", [self._stored(value)], ())
        flat = self._stored(value.reshape(-1))
        made: str = self.op("Reshape", [flat, self.integers(*value.shape)], value.shape)
        return made

    def feed(self, stem: str, value: Array, dims: Sequence[str | int | None]) -> str:
        name = self.name(stem)
        self.inputs.append((name, value.dtype, list(dims)))
        self.feeds[name], self.shapes[name] = value, value.shape
        return name

    # --- operators whose form depends on the operator set --------------------------------------------------------------

    def sliced(self, x: str, axis: int, start: int, end: int, step: int = 1) -> str:
        shape = list(self.shapes[x])
        shape[axis] = len(range(shape[axis])[slice(start, None if end < -shape[axis] else end, step)])
        if self.opset < 10:
            assert step == 1
            return self.op("Slice", [x], shape, starts=[start], ends=[end], axes=[axis])
        places = [self.integers(start), self.integers(end), self.integers(axis)]
        places += [self.integers(step)] if step != 1 or self.chance(0.3) else []
        made: str = self.op("Slice", [x, *places], shape)
        return made

    def with_axes(self, op: str, x: str, axes: Sequence[int], shape: Sequence[int], since: int, **more: Any) -> str:
        """An operator whose axes are an attribute before operator set ``since`` and an input from then on."""
        rank = max(len(self.shapes[x]), len(shape))
        negative = self.opset >= 11 and self.chance(0.3)
        said = [a - rank if negative else a for a in axes]
        if self.opset < since:
            return self.op(op, [x], shape, axes=said, **more)
        return self.op(op, [x, self.integers(*said)], shape, **more)


# --- recurrent nodes --------------------------------------------------------------------------------------------------


def recurrent(w: Writer, x: str) -> list[str]:
    """A recurrent node over a tensor with three axes; its results that are asked for."""
    op = str(w.pick(["LSTM", "LSTM", "LSTM", "GRU", "GRU", "RNN"]))
    layout = int(w.batch_first if w.causal else w.opset >= 14 and w.chance(0.2))
    T, B = w.shapes[x][:2] if not layout else w.shapes[x][1::-1]
    I = w.shapes[x][2]  # noqa: E741
    H = int(w.pick([1, 2, 3, 4, 5, 7, 16, 17, B, T, I]))
    direction = "forward" if w.causal else str(w.pick(["forward", "forward", "reverse", "bidirectional"]))
    D = 1 + (direction == "bidirectional")
    attributes = gate_functions(w, op, D)
    attributes |= {"direction": direction} if direction != "forward" or w.chance(0.3) else {}
    attributes |= {"layout": layout} if layout else {}
    attributes |= {"linear_before_reset": int(w.chance(0.6))} if op == "GRU" else {}
    attributes |= {"input_forget": int(w.chance(0.5))} if op == "LSTM" and w.chance(0.3) else {}
    attributes |= {"clip": float(w.pick([0.1, 0.5, 2.0]))} if w.chance(0.2) else {}
    attributes |= {"hidden_size": H} if w.chance(0.95) else {}
    w.peers &= not layout and "hidden_size" in attributes and w.dtype == np.float32
    G, scale = GATES[op], 1 / np.sqrt(H)
    inputs = [x, w.constant(w.values(D, G * H, I, scale=scale)), w.constant(w.values(D, G * H, H, scale=scale))]
    inputs.append(w.constant(w.values(D, 2 * G * H, scale=0.5)) if w.chance(0.7) else "")
    inputs.append(lengths(w, T, B) if w.chance(0.25) and not w.causal else "")
    state = (B, D, H) if layout else (D, B, H)
    inputs += [initial_state(w, state) if w.chance(0.5) else "" for _ in range(1 + (op == "LSTM"))]
    if op == "LSTM":
        inputs.append(w.constant(w.values(D, 3 * H, scale=0.5)) if w.chance(0.3) else "")
    while not inputs[-1]:
        inputs.pop()
    y = (B, T, D, H) if layout else (T, D, B, H)
    return asked_for(w, op, inputs, [y, state, state][: 2 + (op == "LSTM")], attributes)


def asked_for(w: Writer, op: str, inputs: list[str], shapes: list[tuple[int, ...]], attributes: Any) -> list[str]:
    """The node with some of its results, at least one; unused ones are '' or, at the end, left out."""
    kept = [w.chance(0.7) for _ in shapes]
    if not any(kept):
        kept[int(w.draw.integers(len(kept)))] = True
    names = [w.name(op + "_" + kind) if keep else "" for kind, keep in zip(("Y", "h", "c"), kept, strict=False)]
    w.shapes |= {name: shape for name, shape in zip(names, shapes, strict=True) if name}
    w.states += [name for name in names[1:] if name]
    while not names[-1]:
        names.pop()
    w.nodes.append(helper.make_node(op, inputs, names, name=f"{op.lower()}{len(w.nodes)}", **attributes))
    return [name for name in names if name]


def gate_functions(w: Writer, op: str, directions: int) -> dict[str, Any]:
    """Activations of all directions with their parameters; each may be left to its default where there is one."""
    if w.chance(0.6):
        return {}
    names, alphas, betas = [], [], []
    bounded = w.chance(0.8)
    for k in range(directions * ACTIVATIONS[op]):
        gate = k % ACTIVATIONS[op] == 0 and op != "RNN"
        name = str(w.pick(("Sigmoid", "HardSigmoid", "Tanh") if gate else BOUNDED if bounded else [*PARAMETERS]))
        names.append(name if w.chance(0.8) else name.lower())
        if PARAMETERS[name] >= 1:
            alphas.append(float(np.float32(w.draw.uniform(0.1, 0.9))))
        if PARAMETERS[name] >= 2:
            betas.append(float(np.float32(w.draw.uniform(0.1, 0.9))))
    defaults = {n.lower() for n in names} & {"scaledtanh", "affine", "thresholdedrelu"} == set() and w.chance(0.2)
    given = {} if defaults else {"activation_alpha": alphas, "activation_beta": betas}
    return {"activations": names, **{k: v for k, v in given.items() if v}}


def lengths(w: Writer, T: int, B: int) -> str:
    """Ragged lengths, zero among them: an input, a constant, or a Cast of int64."""
    value = w.draw.integers(0, T + 1, B)
    how = w.pick(["input", "constant", "cast"])
    if how == "constant":
        return w._stored(value.astype(np.int32))
    if how == "input":
        return w.feed("lengths", value.astype(np.int32), [w.pick([B, None])])
    return w.op("Cast", [w.feed("lengths", value.astype(np.int64), [B])], [B], to=onnx.TensorProto.INT32)


def initial_state(w: Writer, shape: tuple[int, ...]) -> str:
    """An input, a constant, zeros, zeros as exporters make them, or an earlier node's last state."""
    earlier = [name for name in w.states if w.shapes[name] == shape]
    if earlier and w.chance(0.6):
        return str(w.pick(earlier))
    how = w.pick(["constant", "zeros", "made"] if w.causal else ["input", "input", "constant", "zeros", "made"])
    if how == "input":
        return w.feed("h0", w.values(*shape), shape)
    if how == "constant":
        return w.constant(w.values(*shape))
    if how == "zeros" or w.opset < 9:
        return w.constant(np.zeros(shape, w.dtype))
    value = numpy_helper.from_array(np.zeros(1, w.dtype))
    made: str = w.op("ConstantOfShape", [w.integers(*shape)], shape, value=value)
    return made


# --- glue -------------------------------------------------------------------------------------------------------------

Glue = Callable[[Writer, str], "str | None"]


def transpose(w: Writer, x: str) -> str | None:
    order = [int(a) for a in w.draw.permutation(len(w.shapes[x]))]
    return w.op("Transpose", [x], [w.shapes[x][a] for a in order], perm=order) if order else None


def squeeze(w: Writer, x: str) -> str | None:
    shape = w.shapes[x]
    ones = [a for a, size in enumerate(shape) if size == 1]
    if not ones:
        return None
    axes = [a for a in ones if w.chance(0.7)] or ones[:1]
    return w.with_axes("Squeeze", x, axes, [s for a, s in enumerate(shape) if a not in axes], 13)


def unsqueeze(w: Writer, x: str) -> str:
    axis = int(w.draw.integers(len(w.shapes[x]) + 1))
    return w.with_axes("Unsqueeze", x, [axis], [*w.shapes[x][:axis], 1, *w.shapes[x][axis:]], 13)


def reshape(w: Writer, x: str) -> str | None:
    """Two neighbouring axes into one, or one into two; some sizes said as 0 (as before) or -1 (the rest)."""
    shape = list(w.shapes[x])
    if not shape:
        return None
    axis = int(w.draw.integers(len(shape)))
    factors = [f for f in range(2, shape[axis]) if shape[axis] % f == 0]
    if factors and w.chance(0.5):
        f = int(w.pick(factors))
        new = [*shape[:axis], f, shape[axis] // f, *shape[axis + 1 :]]
    elif axis + 1 < len(shape):
        new = [*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :]]
    else:
        new = [int(n) for n in w.draw.permutation(shape)]
    said = [0 if k < len(shape) and shape[k] == n and w.chance(0.3) else n for k, n in enumerate(new)]
    if w.chance(0.4):
        said[int(w.draw.integers(len(said)))] = -1
    return w.op("Reshape", [x, w.integers(*said)], new)


def flatten(w: Writer, x: str) -> str:
    shape = w.shapes[x]
    axis = int(w.draw.integers(len(shape) + 1))
    return w.op("Flatten", [x], [prod(shape[:axis]), prod(shape[axis:])], axis=axis)


def concat(w: Writer, x: str) -> str | None:
    shape = w.shapes[x]
    if not shape:
        return None
    axis = int(w.draw.integers(len(shape)))
    others = [n for n, s in w.shapes.items() if s == shape and is_float(w, n)]
    other = w.pick(others) if others and w.chance(0.6) else w.constant(w.values(*shape))
    parts = [x, other] if w.chance(0.5) else [other, x]
    return w.op("Concat", parts, [2 * s if a == axis else s for a, s in enumerate(shape)], axis=axis)


def gather(w: Writer, x: str) -> str | None:
    shape = w.shapes[x]
    if not shape:
        return None
    axis = int(w.draw.integers(len(shape)))
    low = -shape[axis] if w.opset >= 11 else 0
    picked = w.draw.integers(low, shape[axis], () if w.chance(0.6) else int(w.draw.integers(1, 4)))
    if w.opset >= 11 and w.chance(0.3):
        picked = np.full_like(picked, -1)
    index = w._stored(np.asarray(picked, w.pick([np.int64, np.int32])))
    return w.op("Gather", [x, index], [*shape[:axis], *picked.shape, *shape[axis + 1 :]], axis=axis)


def slice_(w: Writer, x: str) -> str | None:
    shape = w.shapes[x]
    if not shape:
        return None
    axis = int(w.draw.integers(len(shape)))
    if w.opset >= 10 and w.chance(0.2):
        return w.sliced(x, axis, -1, -(2**31), -1)
    start = int(w.draw.integers(shape[axis]))
    end = int(w.pick([start + 1, shape[axis], 2**31 - 1]))
    return w.sliced(x, axis, start, end, int(w.pick([1, 1, 2])) if w.opset >= 10 else 1)


def split(w: Writer, x: str) -> str | None:
    shape = list(w.shapes[x])
    axis = next((a for a, size in enumerate(shape) if size > 1 and w.chance(0.7)), None)
    if axis is None:
        return None
    cut = int(w.draw.integers(1, shape[axis]))
    sizes = [cut, shape[axis] - cut]
    shapes = [[*shape[:axis], size, *shape[axis + 1 :]] for size in sizes]
    if w.opset < 13:
        parts = w.op("Split", [x], *shapes, axis=axis, split=sizes)
    else:
        parts = w.op("Split", [x, w.integers(*sizes)], *shapes, axis=axis)
    return str(parts[int(w.draw.integers(2))]) if w.chance(0.5) else w.op("Concat", parts[::-1], shape, axis=axis)


def linear(w: Writer, x: str) -> str | None:
    shape = w.shapes[x]
    if not shape:
        return None
    N = w.size()
    K, scale = shape[-1], 1 / np.sqrt(shape[-1])
    if len(shape) == 2 and w.chance(0.6):
        turned, flipped = w.chance(0.5), w.chance(0.15)
        K, M = (shape[0], shape[1]) if flipped else (shape[1], shape[0])
        weight = w.constant(w.values(*((N, K) if turned else (K, N)), scale=scale))
        bias = [w.constant(w.values(*w.pick([(N,), (1, N), (M, N), (M, 1)])))] if w.opset < 11 or w.chance(0.7) else []
        more = {"alpha": 0.5, "beta": 2.0} if w.chance(0.3) else {}
        return w.op("Gemm", [x, weight, *bias], (M, N), transB=int(turned), transA=int(flipped), **more)
    y = w.op("MatMul", [x, w.constant(w.values(K, N, scale=scale))], (*shape[:-1], N))
    return w.op("Add", [y, w.constant(w.values(N))], w.shapes[y]) if w.chance(0.7) else y


def attention(w: Writer, x: str) -> str | None:
    """Scores of all pairs along the second last axis, as weights of their sum."""
    shape = w.shapes[x]
    if len(shape) < 2:
        return None
    order = [*range(len(shape) - 2), len(shape) - 1, len(shape) - 2]
    turned = w.op("Transpose", [x], [shape[a] for a in order], perm=order)
    scores = w.op("MatMul", [x, turned], (*shape[:-1], shape[-2]))
    weights = w.op("Softmax", [scores], w.shapes[scores], axis=len(shape) - 1)
    return w.op("MatMul", [weights, x], shape)


UNARY: Final = {
    "Relu": 7, "Sigmoid": 7, "Tanh": 7, "LeakyRelu": 7, "Elu": 7, "Selu": 7, "Softplus": 7, "Softsign": 7,
    "HardSigmoid": 7, "Neg": 7, "Abs": 7, "Identity": 7, "Dropout": 13, "Erf": 9, "Sin": 7, "Cos": 7, "Celu": 12,
    "HardSwish": 14, "Mish": 18, "Gelu": 20, "Exp": 7,
}  # fmt: skip


def unary(w: Writer, x: str) -> str:
    op = str(w.pick([name for name, since in UNARY.items() if w.opset >= since]))
    if op == "Exp":
        x = w.op("Tanh", [x], w.shapes[x])
    w.peers &= not (op == "Celu" and w.dtype == np.float64)
    attributes = {"alpha": 0.3} if op in ("LeakyRelu", "Elu", "HardSigmoid", "Celu") and w.chance(0.5) else {}
    return w.op(op, [x], w.shapes[x], **attributes)


def clip(w: Writer, x: str) -> str:
    if w.opset < 11:
        return w.op("Clip", [x], w.shapes[x], min=-0.5, max=0.75)
    bounds = [w.constant(np.array(-0.5, w.dtype)), w.constant(np.array(0.75, w.dtype))]
    return w.op("Clip", [x, *w.pick([bounds, bounds[:1], ["", bounds[1]]])], w.shapes[x])


def binary(w: Writer, x: str) -> str:
    shape = w.shapes[x]
    op = str(w.pick(["Add", "Sub", "Mul", "Div", "Max", "Min", "PRelu", "Pow"]))
    if op in ("Max", "Min") and w.opset < 8:
        op = "Add"
    if op == "Pow":
        return w.op("Pow", [x, w.constant(np.array(2, w.dtype))], shape)
    other = [size if w.chance(0.6) else 1 for size in shape[len(shape) - int(w.draw.integers(len(shape) + 1)) :]]
    value = w.values(*other)
    if op == "PRelu":
        w.peers &= w.opset >= 9
        return w.op("PRelu", [x, w.constant(value)], shape)
    y = w.constant(np.sign(value) * (np.abs(value) + np.asarray(0.5, w.dtype)))
    return w.op(op, [x, y] if op == "Div" or w.chance(0.5) else [y, x], shape)


def together(w: Writer, x: str) -> str | None:
    """With an earlier tensor of a shape that broadcasts; with itself turned where its axes have one length."""
    shape = w.shapes[x]
    if len(shape) >= 2 and len(set(shape)) == 1 and w.chance(0.6):
        order = [*range(1, len(shape)), 0]
        other = w.op("Transpose", [x], shape, perm=order)
    else:
        fits = [n for n, s in w.shapes.items() if n != x and is_float(w, n) and broadcasts(s, shape)]
        if not fits:
            return None
        other = w.pick(fits)
    op = w.pick(["Add", "Sub", "Mul"])
    return w.op(op, [x, other] if w.chance(0.5) else [other, x], np.broadcast_shapes(shape, w.shapes[other]))


def reduce(w: Writer, x: str) -> str | None:
    shape = w.shapes[x]
    if not shape:
        return None
    kind = str(w.pick(["Sum", "Mean", "Max", "Min", "L1", "SumSquare", "LogSumExp", "Prod"]))
    axes = [a for a in range(len(shape)) if w.chance(0.4)] or [int(w.draw.integers(len(shape)))]
    keep = int(w.chance(0.5))
    left = [1 if a in axes else s for a, s in enumerate(shape) if keep or a not in axes]
    since = 13 if kind == "Sum" else 18
    return w.with_axes(f"Reduce{kind}", x, axes, left, since, keepdims=keep)


def softmax(w: Writer, x: str) -> str | None:
    rank = len(w.shapes[x])
    if not rank:
        return None
    op = w.pick(["Softmax", "LogSoftmax"])
    axis = int(w.draw.integers(rank)) - (rank if w.opset >= 11 and w.chance(0.5) else 0)
    return w.op(op, [x], w.shapes[x], **({"axis": axis} if rank < 2 or w.chance(0.8) else {}))


def normalise(w: Writer, x: str) -> str | None:
    shape = w.shapes[x]
    if len(shape) < 2:
        return None
    if w.opset >= 17 and w.chance(0.5):
        axis = int(w.draw.integers(len(shape)))
        scale, shift = (w.constant(w.values(*shape[axis:])) for _ in range(2))
        return w.op("LayerNormalization", [x, scale, shift], shape, axis=axis, epsilon=0.01)
    C = shape[1]
    parts = [w.constant(w.values(C)) for _ in range(3)]
    return w.op("BatchNormalization", [x, *parts, w.constant(np.abs(w.values(C)) + np.asarray(0.5, w.dtype))], shape)


def pad(w: Writer, x: str) -> str | None:
    shape = w.shapes[x]
    if not shape:
        return None
    before, after = w.draw.integers(0, 2, (2, len(shape)))
    padded = [s + b + a for s, b, a in zip(shape, before, after, strict=True)]
    if w.opset < 11:
        return w.op("Pad", [x], padded, pads=[int(p) for p in (*before, *after)], value=0.25)
    return w.op("Pad", [x, w.integers(*before, *after), w.constant(np.array(0.25, w.dtype))], padded)


def repeat(w: Writer, x: str) -> str | None:
    shape = w.shapes[x]
    if not shape:
        return None
    if w.opset >= 8 and w.chance(0.5):
        wide = [int(w.draw.integers(1, 4)) if s == 1 else s for s in shape]
        return w.op("Expand", [x, w.integers(*wide)], wide)
    times = [int(n) for n in w.draw.integers(1, 3, len(shape))]
    return w.op("Tile", [x, w.integers(*times)], [s * n for s, n in zip(shape, times, strict=True)])


def along(w: Writer, x: str) -> str | None:
    """A running sum, or the first steps of each row reversed."""
    shape = w.shapes[x]
    if len(shape) < 2 or w.opset < 11:
        return None
    if w.chance(0.5):
        axis = w._stored(np.array(int(w.draw.integers(len(shape))), np.int64))
        return w.op("CumSum", [x, axis], shape, reverse=int(w.chance(0.3)), exclusive=int(w.chance(0.3)))
    time = int(w.draw.integers(2))
    counts = w.draw.integers(1, shape[time] + 1, shape[1 - time])
    return w.op("ReverseSequence", [x, w.integers(*counts)], shape, time_axis=time, batch_axis=1 - time)


def choose(w: Writer, x: str) -> str | None:
    if w.opset < 9:
        return None
    shape = w.shapes[x]
    mask = w._stored(w.draw.random(shape[-1:]) < 0.5)
    return w.op("Where", [mask, x, w.constant(np.array(0.5, w.dtype))], shape)


def residual(w: Writer, x: str) -> str:
    return w.op("Add", [x, w.op("Tanh", [x], w.shapes[x])], w.shapes[x])


def widened(w: Writer, x: str) -> str:
    """To the other float type and back."""
    other, own = (onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT)
    if w.dtype == np.float64:
        other, own = own, other
    return w.op("Cast", [w.op("Cast", [x], w.shapes[x], to=other)], w.shapes[x], to=own)


GLUE: Final[tuple[Glue, ...]] = (
    transpose, transpose, squeeze, squeeze, unsqueeze, reshape, reshape, reshape, flatten, concat, concat, gather,
    gather, slice_, slice_, split, linear, linear, attention, unary, unary, unary, clip, binary, binary, together,
    together, reduce, reduce, softmax, normalise, pad, repeat, along, choose, residual,
)  # fmt: skip


#: What mostly leaves steps apart.
STEPWISE: Final[tuple[Glue, ...]] = (
    squeeze, linear, unary, unary, clip, binary, softmax, residual, together, concat, split, choose, gather, reduce,
)  # fmt: skip


def broadcasts(one: Sequence[int], other: Sequence[int]) -> bool:
    return all(a == b or 1 in (a, b) for a, b in zip(one[::-1], other[::-1], strict=False))


def is_float(w: Writer, name: str) -> bool:
    """Whether an earlier tensor holds the model's numbers; constants take no part."""
    made = {o for node in w.nodes if node.op_type not in ("Cast", "Constant") for o in node.output}
    return name in made and name not in w.initialisers and "lengths" not in name and is_data(w, name)


def is_data(w: Writer, name: str) -> bool:
    """Whether a tensor comes from a feed."""
    made = {o: node for node in w.nodes for o in node.output if o}
    waiting, seen = [name], set()
    while waiting:
        tensor = waiting.pop()
        if tensor in w.feeds:
            return True
        if tensor in made and tensor not in seen:
            seen.add(tensor)
            waiting += [n for n in made[tensor].input if n]
    return False


# --- whole models -----------------------------------------------------------------------------------------------------


def random_model(seed: int, causal: bool = False) -> RandomModel:
    """The model of a seed; a ``causal`` one is mostly a forward network over an open time axis."""
    draw = np.random.default_rng([seed, int(causal)])
    w = Writer(draw, int(draw.choice(OPSETS)), np.dtype(draw.choice([np.float32] * 4 + [np.float64])), causal)
    T, B, I = w.size(), w.size(), int(w.pick([1, 2, 3, 5, 17]))  # noqa: E741
    T, B = (T, T) if w.chance(0.2) else (int(w.pick([17, 33])), B) if w.chance(0.05) else (T, B)
    T = max(T, 2) if causal else T  # the second step shows which axes grow
    dims = ["time" if causal else w.pick([T, "time", "time", None]), w.pick([B, "batch", "batch", None]), I]
    w.batch_first = causal and w.opset >= 14 and w.chance(0.3)
    order = [1, 0, 2] if w.batch_first else [0, 1, 2]
    x = data = w.feed("X", w.values(T, B, I).transpose(order), [dims[k] for k in order])
    results: list[str] = []
    for _ in range(int(w.pick([0, 0, 1, 2]))):
        x = glued(w, x)
    for _ in range(int(w.pick([1, 1, 1, 2, 3]))):
        made = recurrent(w, in_three_axes(w, x))
        x = str(w.pick(made))
        results += [name for name in made if w.chance(0.4)]
        for _ in range(int(w.pick([0, 1, 2, 3, 5]))):
            x = glued(w, x)
            results += [x] if w.chance(0.15) else []
    results = sorted({*results, x})
    model = builders.make_model(
        w.nodes,
        w.inputs,
        [(name, w.dtype, None if w.chance(0.1) else [None] * len(w.shapes[name])) for name in results],
        w.initialisers,
        w.opset,
        inputs_too=w.chance(0.1),
    )
    operators = tuple(node.op_type for node in w.nodes if node.op_type != "Constant")
    return RandomModel(seed, model.SerializeToString(), w.feeds, data, order[0], operators, w.peers)


def glued(w: Writer, x: str) -> str:
    """One more operator, if it fits and the result is not too large."""
    mark = len(w.nodes)
    known, stored = set(w.shapes), dict(w.initialisers)
    y = w.pick(STEPWISE if w.causal and w.chance(0.9) else GLUE)(w, x)
    if y is not None and 0 < prod(w.shapes[y]) <= MOST_ELEMENTS and len(w.shapes[y]) <= 5:
        return str(y)
    del w.nodes[mark:]
    w.initialisers = stored
    w.shapes = {name: shape for name, shape in w.shapes.items() if name in known}
    return x


def in_three_axes(w: Writer, x: str) -> str:
    """A tensor as what a recurrent node reads."""
    shape = w.shapes[x]
    if len(shape) == 3:
        return x
    if len(shape) == 4 and shape[1] == 1 and w.chance(0.5):
        return w.with_axes("Squeeze", x, [1], [shape[0], *shape[2:]], 13)
    if len(shape) == 4 and w.batch_first:
        joined = (*shape[:2], shape[2] * shape[3])
        return w.op("Reshape", [x, w.integers(*w.pick([joined, (0, 0, -1)]))], joined)
    if len(shape) == 4:
        order = [0, 2, 1, 3]
        turned = w.op("Transpose", [x], [shape[a] for a in order], perm=order)
        joined = (shape[0], shape[2], shape[1] * shape[3])
        return w.op("Reshape", [turned, w.integers(*w.pick([joined, (0, 0, -1)]))], joined)
    flat = (*shape[:2], prod(shape[2:])) if len(shape) > 3 else (*shape, *[1] * (3 - len(shape)))
    return w.op("Reshape", [x, w.integers(*flat)], flat)
