"""The cases that parity, property and contract tests share: one recurrent node with any option, and whole networks.

A case is a frozen value that builds its model, draws its feeds and says where the time axes lie.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import builders
import numpy as np
from hypothesis import settings
from onnx import helper, numpy_helper

import lstm_engine as le

Feeds = dict[str, np.ndarray]

#: (steps, batch) that reach one step, blocks and their remainders, and every row remainder of the kernels.
SIZES = [(1, 1), (2, 1), (5, 2), (7, 3), (33, 1), (9, 5), (3, 6), (6, 7), (17, 16), (70, 1), (40, 2)]
#: Gates in the stacked weights.
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
#: Hidden sizes around the vector width and its multiples.
WIDTHS = [1, 2, 3, 7, 15, 16, 17, 31, 33, 48, 63, 64, 65]


@dataclass(frozen=True)
class LayerCase:
    """One LSTM, GRU or RNN node; ``precision`` '' loads it as it is.

    ``lengths``: '' absent, 'input' a graph input, 'constant' an initialiser (of value T for all rows).
    ``states``: '' absent, 'inputs', 'h input' (c absent), 'c input', 'zeros' or 'constants' (initialisers, batch ``B``).
    """

    I: int = 3  # noqa: E741 (the field's own letter)
    H: int = 4
    T: int = 5
    B: int = 2
    direction: str = "forward"
    layout: int = 0
    activations: tuple[str, ...] = ()
    alphas: tuple[float, ...] = ()
    betas: tuple[float, ...] = ()
    clip: float | None = None
    input_forget: int | None = None
    bias: bool = True
    peephole: bool = False
    lengths: str = ""
    states: str = ""
    hidden_size: bool = True
    op: str = "LSTM"
    linear_before_reset: int | None = None
    outputs: tuple[str, ...] = ("Y", "Y_h", "Y_c")
    dtype: str = "float32"
    precision: str = ""
    opset: int = 17
    seed: int = 0

    def __str__(self) -> str:
        plain = LayerCase()
        changed = {k: getattr(self, k) for k in self.__dataclass_fields__ if getattr(self, k) != getattr(plain, k)}
        return ",".join(f"{k}={v}" for k, v in changed.items()) or "plain"

    @property
    def directions(self) -> int:
        return 2 if self.direction == "bidirectional" else 1

    @property
    def time_axis(self) -> int:
        return self.layout

    @property
    def streams(self) -> bool:
        return self.direction == "forward" and not self.lengths

    @property
    def scale(self) -> float:
        return 1.0 / np.sqrt(self.H)

    def weights(self) -> Feeds:
        return builders.random_weights(
            self.I, self.H, self.directions, bias=self.bias, peephole=self.peephole,
            gates=GATES[self.op], seed=self.seed, dtype=self.dtype,
        )  # fmt: skip

    @property
    def results(self) -> tuple[str, ...]:
        """Names of the outputs there are: only an LSTM has a cell state."""
        return tuple(name for name in self.outputs if self.op == "LSTM" or name != "Y_c")

    @property
    def kinds(self) -> str:
        """The states there are."""
        return "hc" if self.op == "LSTM" else "h"

    def model(self) -> bytes:
        arrays = self.weights()
        state = [self.directions, "batch", self.H] if not self.layout else ["batch", self.directions, self.H]
        inputs: list[builders.Info] = [
            ("X", self.dtype, ["batch", "time", self.I] if self.layout else ["time", "batch", self.I])
        ]
        names = {"h": "", "c": "", "lengths": ""}
        if self.lengths == "input":
            inputs.append(("lengths", np.int32, ["batch"]))
            names["lengths"] = "lengths"
        elif self.lengths == "constant":
            arrays["lengths"] = np.full(self.B, self.T, np.int32)
            names["lengths"] = "lengths"
        for kind in self.kinds:
            if self.states in ("inputs", f"{kind} input"):
                inputs.append((f"{kind}0", self.dtype, state))
                names[kind] = f"{kind}0"
            elif self.states in ("zeros", "constants"):
                drawn = np.random.default_rng(self.seed + ord(kind)).uniform(-1, 1, self.state_shape(self.B))
                arrays[f"{kind}0"] = (drawn * (self.states == "constants")).astype(self.dtype)
                names[kind] = f"{kind}0"
        places = ["X", "W", "R", "B" if self.bias else "", names["lengths"], names["h"], names["c"]]
        places += ["P"] if self.peephole else []
        while not places[-1]:
            places.pop()
        node = helper.make_node(self.op, places, list(self.results), name="layer", **self.attributes())
        y = ["batch", "time", self.directions, self.H] if self.layout else ["time", self.directions, "batch", self.H]
        shapes = {"Y": y, "Y_h": state, "Y_c": state}
        results = [(name, self.dtype, shapes[name]) for name in self.results if name]
        return builders.make_model([node], inputs, results, arrays, self.opset).SerializeToString()

    def attributes(self) -> dict[str, Any]:
        given = {
            "hidden_size": self.H if self.hidden_size else None,
            "direction": self.direction if self.direction != "forward" else None,
            "layout": self.layout or None,
            "activations": list(self.activations) or None,
            "activation_alpha": list(self.alphas) or None,
            "activation_beta": list(self.betas) or None,
            "clip": self.clip,
            "input_forget": self.input_forget,
            "linear_before_reset": self.linear_before_reset,
        }
        return {name: value for name, value in given.items() if value is not None}

    def state_shape(self, batch: int) -> tuple[int, int, int]:
        return (batch, self.directions, self.H) if self.layout else (self.directions, batch, self.H)

    def feeds(self, seed: int = 0, steps: int | None = None, batch: int | None = None) -> Feeds:
        T, B = self.T if steps is None else steps, self.B if batch is None else batch
        draw = np.random.default_rng(1000 + seed)
        made = {"X": draw.normal(size=(B, T, self.I) if self.layout else (T, B, self.I)).astype(self.dtype)}
        if self.lengths == "input":
            made["lengths"] = draw.integers(0, T + 1, B).astype(np.int32)
        for kind in self.kinds:
            if self.states in ("inputs", f"{kind} input"):
                made[f"{kind}0"] = draw.uniform(-1, 1, self.state_shape(B)).astype(self.dtype)
        return made


@dataclass(frozen=True)
class NetCase:
    """A network as exporters write it: tokens or readings, a stack of LSTM layers, a head.

    ``vocabulary`` 0: readings of ``I`` values. ``head``: a key of HEADS. ``states``: '' or 'inputs'.
    """

    I: int = 3  # noqa: E741
    hidden: tuple[int, ...] = (8,)
    vocabulary: int = 0
    outputs: int = 5
    head: str = "none"
    bidirectional: bool = False
    batch_first: bool = False
    states: str = ""
    peephole: bool = False
    clip: float | None = None
    dtype: str = "float32"
    precision: str = ""
    token_dtype: str = "int64"
    T: int = 6
    B: int = 2
    seed: int = 0

    def __str__(self) -> str:
        plain = NetCase()
        changed = {k: getattr(self, k) for k in self.__dataclass_fields__ if getattr(self, k) != getattr(plain, k)}
        return ",".join(f"{k}={v}" for k, v in changed.items()) or "plain"

    @property
    def time_axis(self) -> int:
        return int(self.batch_first)

    @property
    def streams(self) -> bool:
        return not self.bidirectional

    @property
    def keeps_time(self) -> bool:
        """Whether the output has the time axis of the input."""
        return not self.head.startswith("last")

    def model(self) -> bytes:
        return _Writer(self).model()

    def feeds(self, seed: int = 0, steps: int | None = None, batch: int | None = None) -> Feeds:
        T, B = self.T if steps is None else steps, self.B if batch is None else batch
        draw = np.random.default_rng(2000 + seed)
        lead = (B, T) if self.batch_first else (T, B)
        if self.vocabulary:
            made = {"x": draw.integers(0, self.vocabulary, lead).astype(self.token_dtype)}
        else:
            made = {"x": draw.normal(size=(*lead, self.I)).astype(self.dtype)}
        if self.states == "inputs":
            for layer, width in enumerate(self.hidden):
                shape = (2 if self.bidirectional else 1, B, width)
                made |= {f"{k}{layer}": draw.uniform(-1, 1, shape).astype(self.dtype) for k in "hc"}
        return made


Case = LayerCase | NetCase


def examples(count: int) -> settings:
    """Settings for a drawn test: ``count`` examples, the same each time; forty times as many, all new, at night."""
    return settings(max_examples=count * (40 if os.environ.get("HYPOTHESIS_PROFILE") == "nightly" else 1))


class _Writer:
    """Writes the nodes of a NetCase."""

    def __init__(self, case: NetCase) -> None:
        self.case = case
        self.draw = np.random.default_rng(case.seed)
        self.nodes: list[Any] = []
        self.arrays: dict[str, np.ndarray] = {}
        self.extra_outputs: list[builders.Info] = []

    def add(self, op: str, *inputs: str, outputs: Sequence[str] = (), **attributes: Any) -> str:
        made = list(outputs) or [f"{op.lower()}_{len(self.nodes)}"]
        self.nodes.append(helper.make_node(op, list(inputs), made, name=f"{op}.{len(self.nodes)}", **attributes))
        return next(name for name in made if name)

    def ints(self, *values: int) -> str:
        name = f"ints_{len(self.arrays)}"
        self.arrays[name] = np.array(values, np.int64)
        return name

    def floats(self, *shape: int, scale: float = 1.0) -> str:
        name = f"floats_{len(self.arrays)}"
        self.arrays[name] = self.draw.uniform(-scale, scale, shape).astype(self.case.dtype)
        return name

    def model(self) -> bytes:
        case = self.case
        lead = ["batch", "time"] if case.batch_first else ["time", "batch"]
        tokens = bool(case.vocabulary)
        inputs: list[builders.Info] = [
            ("x", case.token_dtype if tokens else case.dtype, lead if tokens else [*lead, case.I])
        ]
        x, width = "x", case.I
        if tokens:
            x = self.add("Gather", self.floats(case.vocabulary, case.I), x, axis=0)
        if case.batch_first:
            x = self.add("Transpose", x, perm=[1, 0, 2])
        y_h = ""
        for layer, units in enumerate(case.hidden):
            x, y_h = self.lstm(x, layer, width, units, inputs)
            width = units * (2 if case.bidirectional else 1)
        y, shape = HEADS[case.head](self, x, y_h, width)
        if case.keeps_time and case.batch_first:
            y = self.add("Transpose", y, perm=[1, 0, 2])
        self.add("Identity", y, outputs=["y"])
        dims = [*lead, *shape] if case.keeps_time else ["batch", *shape]
        outputs = [("y", case.dtype, dims), *self.extra_outputs]
        return builders.make_model(self.nodes, inputs, outputs, self.arrays).SerializeToString()

    def lstm(self, x: str, layer: int, width: int, units: int, inputs: list[builders.Info]) -> tuple[str, str]:
        case = self.case
        directions = 2 if case.bidirectional else 1
        arrays = builders.random_weights(
            width, units, directions, peephole=case.peephole, seed=case.seed + layer, dtype=case.dtype
        )
        names = {key: f"{key}.{layer}" for key in arrays}
        self.arrays |= {names[key]: value for key, value in arrays.items()}
        h = c = ""
        if case.states == "inputs":
            h, c = f"h{layer}", f"c{layer}"
            shape = [directions, "batch", units]
            inputs += [(h, case.dtype, shape), (c, case.dtype, shape)]
            self.extra_outputs += [(f"{name}_out", case.dtype, shape) for name in (h, c)]
        places = [x, names["W"], names["R"], names["B"], "", h, c, *([names["P"]] if case.peephole else [])]
        ends = [f"{h}_out", f"{c}_out"] if case.states == "inputs" else [f"last_h{layer}", f"last_c{layer}"]
        attributes: dict[str, Any] = {"hidden_size": units}
        attributes |= {"direction": "bidirectional"} if case.bidirectional else {}
        attributes |= {} if case.clip is None else {"clip": case.clip}
        y = self.add("LSTM", *places, outputs=[f"y{layer}", *ends], **attributes)
        if case.bidirectional:
            y = self.add("Reshape", self.add("Transpose", y, perm=[0, 2, 1, 3]), self.ints(0, 0, -1))
        else:
            y = self.add("Squeeze", y, self.ints(1))
        return y, ends[0]


Head = tuple[str, list[Any]]


def _none(w: _Writer, x: str, y_h: str, width: int) -> Head:
    return x, [width]


def _matmul_add(w: _Writer, x: str, y_h: str, width: int) -> Head:
    n = w.case.outputs
    return w.add("Add", w.add("MatMul", x, w.floats(width, n, scale=width**-0.5)), w.floats(n)), [n]


def _act(op: str, **attributes: Any) -> Any:
    def head(w: _Writer, x: str, y_h: str, width: int) -> Head:
        y, shape = _matmul_add(w, x, y_h, width)
        return w.add(op, y, **attributes), shape

    return head


def _two_layers(w: _Writer, x: str, y_h: str, width: int) -> Head:
    middle = w.case.outputs + 3
    y = w.add("Add", w.add("MatMul", x, w.floats(width, middle, scale=width**-0.5)), w.floats(middle))
    y = w.add("LeakyRelu", y, alpha=0.1)
    y = w.add("MatMul", y, w.floats(middle, w.case.outputs, scale=middle**-0.5))
    return w.add("Sub", y, w.floats(w.case.outputs)), [w.case.outputs]


def _residual(w: _Writer, x: str, y_h: str, width: int) -> Head:
    inner = w.add("Tanh", w.add("MatMul", x, w.floats(width, width, scale=width**-0.5)))
    return w.add("Mul", w.add("Add", x, inner), w.floats(1)), [width]


def _gates(w: _Writer, x: str, y_h: str, width: int) -> Head:
    """A gated pair of columns and a clip: Split, Sigmoid, Mul, Concat, Clip."""
    y, _ = _matmul_add(w, x, y_h, width)
    left, right = f"left_{len(w.nodes)}", f"right_{len(w.nodes)}"
    n = w.case.outputs
    w.arrays["split"] = np.array([2, n - 2], np.int64)
    w.add("Split", y, "split", outputs=[left, right], axis=-1)
    joined = w.add("Concat", w.add("Sigmoid", right), w.add("Mul", left, left), axis=-1)
    w.arrays["low"], w.arrays["high"] = (np.array(v, w.case.dtype) for v in (-0.25, 0.75))
    return w.add("Clip", joined, "low", "high"), [n]


def _last(pick: str, tail: str = "", bias: bool = True) -> Any:
    """A head on the last step: by Gather, Slice and Squeeze, or Y_h."""

    def head(w: _Writer, x: str, y_h: str, width: int) -> Head:
        if pick == "gather":
            w.arrays["minus_one"] = np.array(-1, np.int64)
            y = w.add("Gather", x, "minus_one", axis=0)
        elif pick == "slice":
            y = w.add("Slice", x, w.ints(-1), w.ints(2**31 - 1), w.ints(0), w.ints(1))
            y = w.add("Squeeze", y, w.ints(0))
        elif w.case.bidirectional:
            y = w.add("Reshape", w.add("Transpose", y_h, perm=[1, 0, 2]), w.ints(0, -1))
        else:
            y = w.add("Squeeze", y_h, w.ints(0))
        n = w.case.outputs
        weights = [w.floats(n, width, scale=width**-0.5), *([w.floats(n)] if bias else [])]
        y = w.add("Gemm", y, *weights, transB=1)
        return (w.add(tail, y, axis=-1) if tail else y), [n]

    return head


HEADS: Mapping[str, Any] = {
    "none": _none,
    "matmul": lambda w, x, y_h, width: (w.add("MatMul", x, w.floats(width, w.case.outputs)), [w.case.outputs]),
    "dense": _matmul_add,
    "dense_sigmoid": _act("Sigmoid"),
    "dense_tanh": _act("Tanh"),
    "dense_relu": _act("Relu"),
    "dense_elu": _act("Elu", alpha=0.7),
    "dense_softmax": _act("Softmax", axis=-1),
    "dense_log_softmax": _act("LogSoftmax", axis=-1),
    "two_layers": _two_layers,
    "residual": _residual,
    "gates": _gates,
    "last_gather": _last("gather"),
    "last_gather_softmax": _last("gather", "Softmax"),
    "last_slice": _last("slice", bias=False),
    "last_slice_log_softmax": _last("slice", "LogSoftmax"),
    "last_y_h": _last("y_h"),
    "last_y_h_softmax": _last("y_h", "Softmax"),
}

#: What each activation takes, beside which the ones without parameters.
PARAMETERS = {
    "Affine": (1, 1),
    "LeakyRelu": (1, 0),
    "ThresholdedRelu": (1, 0),
    "ScaledTanh": (1, 1),
    "HardSigmoid": (1, 1),
    "Elu": (1, 0),
    "Sigmoid": (0, 0),
    "Tanh": (0, 0),
    "Relu": (0, 0),
    "Softsign": (0, 0),
    "Softplus": (0, 0),
}


def with_activations(case: LayerCase, *names: str) -> LayerCase:
    """The case with these activations and as many alphas and betas as they take."""
    alphas = [0.25 + 0.125 * k for k, name in enumerate(names) for _ in range(PARAMETERS[name][0])]
    betas = [0.5 + 0.0625 * k for k, name in enumerate(names) for _ in range(PARAMETERS[name][1])]
    return replace(case, activations=names, alphas=tuple(alphas), betas=tuple(betas))


def _layer_table() -> list[LayerCase]:
    plain = LayerCase()
    table = [LayerCase(I=3 + k % 3, H=H, T=4 + k % 3, B=1 + k % 3, seed=k) for k, H in enumerate(WIDTHS)]
    table += [LayerCase(I=5, H=17, T=T, B=B, seed=T) for T, B in SIZES]
    table += [LayerCase(I=inputs, H=6, T=35, B=1) for inputs in (1, 2, 13, 16, 17, 64, 65)]
    table += [LayerCase(I=200, H=33, T=37, B=B) for B in (1, 2)]  # projected ahead of the steps
    for direction in ("reverse", "bidirectional"):
        table += [LayerCase(I=4, H=H, T=9, B=B, direction=direction) for H in (3, 16, 17, 32) for B in (1, 3)]
        table += [LayerCase(H=16, T=70, B=2, direction=direction), LayerCase(I=130, H=20, T=40, direction=direction)]
    for direction in ("forward", "reverse", "bidirectional"):
        base = replace(plain, direction=direction, B=3)
        table += [replace(base, layout=1), replace(base, layout=1, states="inputs", H=16)]
        table += [replace(base, lengths=lengths, T=T) for lengths in ("input", "constant") for T in (1, 6)]
        table += [replace(base, lengths="input", layout=1, H=17), replace(base, lengths="input", states="inputs")]
        table += [replace(base, states=s) for s in ("inputs", "h input", "c input", "zeros", "constants")]
        table += [replace(base, states="constants", layout=1, B=2), replace(base, states="constants", H=17, B=1)]
        table += [replace(base, peephole=True), replace(base, peephole=True, bias=False, H=17)]
        table += [replace(base, clip=0.3), replace(base, clip=0.3, peephole=True, H=16)]
        table += [replace(base, input_forget=1), replace(base, input_forget=1, peephole=True, clip=0.5)]
        table += [replace(base, bias=False, peephole=True, states="inputs", lengths="input", layout=1, H=19)]
        table += [replace(base, dtype="float64", H=17), replace(base, dtype="float64", peephole=True, clip=0.4)]
        six = ["HardSigmoid", "Softsign", "ScaledTanh", "Sigmoid", "Affine", "Elu"]
        table += [with_activations(base, *six[: 3 * base.directions])]
    for name in PARAMETERS:
        table += [with_activations(replace(plain, H=17), "Sigmoid", name, "Tanh")]
        table += [with_activations(plain, "Sigmoid", "Tanh", name)]
        if name in ("Sigmoid", "HardSigmoid", "ScaledTanh", "Tanh", "Softsign"):
            table += [with_activations(plain, name, "Tanh", "Tanh")]
    table += [replace(plain, activations=("sigmoid", "TANH", "tanH"))]
    table += [replace(plain, activations=("HardSigmoid", "Tanh", "Tanh"))]  # the operator's own alpha and beta
    table += [replace(plain, activations=("Sigmoid", "Elu", "LeakyRelu"))]
    table += [replace(plain, input_forget=0), replace(plain, hidden_size=False), replace(plain, clip=1e3)]
    table += [replace(plain, outputs=o) for o in (("Y",), ("", "Y_h"), ("", "", "Y_c"), ("Y", "", "Y_c"))]
    table += [replace(plain, outputs=("", "Y_h"), direction=d, lengths="input") for d in ("reverse", "bidirectional")]
    table += [replace(plain, opset=opset) for opset in (7, 14, 22)]
    return table


def _gated_table() -> list[LayerCase]:
    """GRU, its reset gate before and after the product, and RNN."""
    table = []
    for op, linear, functions in (("GRU", None, 2), ("GRU", 1, 2), ("RNN", None, 1)):
        plain = LayerCase(op=op, linear_before_reset=linear)
        table += [replace(plain, I=3 + k % 3, H=H, T=4 + k % 3, B=1 + k % 3, seed=k) for k, H in enumerate(WIDTHS)]
        table += [replace(plain, I=5, H=17, T=T, B=B, seed=T) for T, B in SIZES]
        table += [replace(plain, I=200, H=33, T=37, B=B) for B in (1, 2)]  # projected ahead of the steps
        table += [replace(plain, opset=opset) for opset in (7, 14, 22)]
        for direction in ("forward", "reverse", "bidirectional"):
            base = replace(plain, direction=direction, B=3)
            table += [replace(base, H=16, T=70), replace(base, layout=1, states="inputs", H=16)]
            table += [replace(base, lengths=lengths, T=6) for lengths in ("input", "constant")]
            table += [replace(base, lengths="input", layout=1, states="inputs", H=17, bias=False)]
            table += [replace(base, states=s) for s in ("inputs", "zeros", "constants")]
            table += [replace(base, clip=0.3), replace(base, dtype="float64", H=17)]
            table += [
                with_activations(base, *["HardSigmoid", "Softsign", "ScaledTanh", "Elu"][: functions * base.directions])
            ]
        for name in PARAMETERS:
            table += [with_activations(replace(plain, H=17), *["Sigmoid", name][-functions:])]
        table += [replace(plain, outputs=o) for o in (("Y",), ("", "Y_h"))]
    return table


def _net_table() -> list[NetCase]:
    table = [NetCase(head=head, hidden=(9,)) for head in HEADS]
    table += [NetCase(head=head, hidden=(16, 7), batch_first=True, B=3) for head in HEADS]
    table += [NetCase(head=head, vocabulary=11, B=1, T=40) for head in ("none", "dense_softmax", "last_gather")]
    table += [NetCase(hidden=h) for h in ((1,), (5, 17), (16, 16, 16), (33, 2, 8))]
    table += [NetCase(hidden=(5, 6), bidirectional=True, head=h) for h in ("none", "dense", "last_y_h_softmax")]
    table += [NetCase(hidden=(16,), bidirectional=True, batch_first=True, B=3, head=h) for h in ("dense", "residual")]
    table += [NetCase(hidden=(8, 5), states="inputs", head=h) for h in ("dense", "last_gather_softmax")]
    table += [NetCase(hidden=(8,), states="inputs", bidirectional=True), NetCase(hidden=(8, 9), peephole=True)]
    table += [NetCase(hidden=(8,), clip=0.4, head="dense_tanh"), NetCase(dtype="float64", head="gates", hidden=(8, 7))]
    table += [NetCase(dtype="float64", head="dense_log_softmax", hidden=(33,), T=40)]
    table += [NetCase(vocabulary=300, token_dtype="int32", hidden=(20, 20), head="dense_log_softmax", outputs=300)]
    table += [NetCase(head="dense_softmax", outputs=n, hidden=(6,)) for n in (1 + 1, 15, 16, 17, 48, 64, 65, 129)]
    return table


LAYERS = _layer_table() + _gated_table()
NETS = _net_table()


@cache
def model_of(case: Case) -> le.Model:
    """The loaded model of a case, kept."""
    return le.load(case.model(), precision=case.precision or None)


def steps_of(case: Case, feeds: Feeds) -> list[Feeds]:
    """The feeds of each single step: what has a time axis without it, the rest left out."""
    name = "X" if isinstance(case, LayerCase) else "x"
    x = feeds[name]
    return [{name: np.take(x, t, axis=case.time_axis)} for t in range(x.shape[case.time_axis])]


def cut(case: Case, feeds: Feeds, first: int, last: int) -> Feeds:
    """The feeds of steps ``first`` to ``last``."""
    name = "X" if isinstance(case, LayerCase) else "x"
    places = (slice(None),) * case.time_axis
    return {name: feeds[name][(*places, slice(first, last))]}


def bits(x: np.ndarray) -> np.ndarray:
    """An array's bits as integers: equal means identical, NaN and the sign of zero included."""
    x = np.ascontiguousarray(x)
    return x.view(f"i{x.itemsize}") if x.dtype.kind == "f" else x


def assert_same_bits(got: Any, expected: Any, what: str = "") -> None:
    """Results (an array, or {name: array}) that are identical to the last bit."""
    if isinstance(expected, Mapping):
        assert set(got) == set(expected)
        for name in expected:
            assert_same_bits(got[name], expected[name], f"{what} {name}")
        return
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape, f"{what}: {got.shape}, expected {expected.shape}"
    np.testing.assert_array_equal(bits(got), bits(expected), err_msg=what)


def named(model: le.Model | le.Stream, result: Any) -> dict[str, np.ndarray]:
    """A stream's result as {name: array}, whether one output or several."""
    return dict(result) if isinstance(result, Mapping) else {model.outputs[0].name: result}


def array_of(value: Any, name: str = "") -> Any:
    """A tensor for an initialiser."""
    return numpy_helper.from_array(np.asarray(value), name)


#: A few cases of each kind, for tests that cost a process or much time each.
FEW: list[Case] = [
    LayerCase(H=17, T=33, B=1),
    LayerCase(I=200, H=33, T=37, B=2),
    LayerCase(H=16, T=6, B=5, direction="bidirectional", lengths="input"),
    LayerCase(H=19, peephole=True, clip=0.4, input_forget=1, states="inputs", layout=1),
    LayerCase(dtype="float64", H=17, T=9, B=3),
    LayerCase(op="GRU", linear_before_reset=1, H=17, T=33, B=2, states="inputs"),
    LayerCase(op="GRU", H=16, T=6, B=5, direction="bidirectional", lengths="input"),
    LayerCase(op="RNN", H=19, I=40, T=40, B=1),
    NetCase(hidden=(16, 7), head="dense_softmax", batch_first=True, B=3),
    NetCase(vocabulary=11, hidden=(20, 20), head="dense_log_softmax", outputs=65, T=40, B=1),
    NetCase(hidden=(5, 6), bidirectional=True, head="last_y_h_softmax"),
    NetCase(hidden=(8, 5), states="inputs", head="gates"),
]

__all__ = ["FEW", "LAYERS", "NETS", "Case", "Feeds", "LayerCase", "NetCase", "field", "model_of", "steps_of"]
