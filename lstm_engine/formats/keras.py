"""Keras weights saved as npz: the sequential network that ``layers=`` describes.

Keras' kernels are transposed ([I, 4H]), its gates are in order i, f, c, o, and it has one bias.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from ..errors import ModelFormatError, UnsupportedModelError, listed
from ..graph import Dimension, Graph, Node, TensorSpec
from ..vocabulary import to_onnx_gates
from .archive import Archive
from .bare import Sketch, common_float, named

VARIABLES: Final = ("kernel", "recurrent_kernel", "bias", "embeddings")
#: What a saved layer numbers instead of naming (``…/vars/0``), by kind of layer.
NUMBERED: Final = {
    "lstm": ("kernel", "recurrent_kernel", "bias"),
    "dense": ("kernel", "bias"),
    "embedding": ("embeddings",),
}
#: Parts of a variable's path below the layer's own name.
INNER_PART: Final = re.compile(r"vars|cell|lstm_cell(_\d+)?|forward_layer|backward_layer|(forward|backward)_.+")

#: Keras' activations as ONNX names them: (name, alpha, beta). Keras 3's hard_sigmoid is relu6(x + 3) / 6.
RECURRENT_ACTIVATIONS: Final[dict[str, tuple[str, float | None, float | None]]] = {
    "tanh": ("Tanh", None, None),
    "sigmoid": ("Sigmoid", None, None),
    "relu": ("Relu", None, None),
    "softsign": ("Softsign", None, None),
    "softplus": ("Softplus", None, None),
    "linear": ("Affine", 1.0, 0.0),
    "elu": ("Elu", 1.0, None),
    "leaky_relu": ("LeakyRelu", 0.2, None),
    "hard_sigmoid": ("HardSigmoid", 1 / 6, 0.5),
    "hard_sigmoid_keras2": ("HardSigmoid", 0.2, 0.5),
}
DENSE_ACTIVATIONS: Final = {"linear": "", "relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "softmax": "Softmax"}

OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "lstm": {
        "activation": "tanh",
        "recurrent_activation": "sigmoid",
        "return_sequences": False,
        "go_backwards": False,
        "bidirectional": False,
        "merge_mode": "concat",
    },
    "dense": {"activation": "linear"},
    "embedding": {"mask_zero": False},
}


@dataclass(slots=True)
class _Layer:
    """One layer: where its variables are, by direction and by name, and how ``layers=`` describes it."""

    path: str
    variables: dict[tuple[str, str], str] = field(default_factory=dict)
    kind: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


def is_keras(keys: Sequence[str]) -> bool:
    """Whether some key is named as Keras names a layer's variables."""
    return any(_split(key) is not None for key in keys)


def read_keras(archive: Archive, *, prefix: str | None, layers: Sequence[Mapping[str, Any]] | None) -> Graph:
    """The sequential network whose variables the archive holds: input ``input``, output ``output``, batch first.

    ``layers``: one mapping per layer, in order: ``name`` as in the file, ``kind`` ("lstm", "dense" or
    "embedding") and that kind's Keras arguments, defaults as in Keras (see ``OPTIONS``). It may be left out
    for a file of one LSTM and nothing else, which then returns its last step as Keras' own layer does.

    Raises ModelFormatError listing what is missing, misshapen or claimed by no layer, UnsupportedModelError for
    arguments that are not implemented.
    """
    found = _layers_in(archive, prefix)
    ordered = _described(found, layers, archive.origin)
    weights = _checked_weights(archive, ordered)
    return _Network(archive.origin, ordered, weights).graph()


# ---------------------------------------------------------------- the file


def _split(key: str) -> tuple[str, str, str] | None:
    """Layer path, direction ('' or 'backward') and variable of a key."""
    *parts, variable = key.removesuffix(":0").split("/")
    numbered = variable.isdigit() and parts[-1:] == ["vars"]
    if variable not in VARIABLES and not numbered:
        return None
    direction = "backward" if any(part.startswith("backward_") for part in parts) else ""
    while parts and INNER_PART.fullmatch(parts[-1]):
        parts.pop()
    return "/".join(parts), direction, variable


def _layers_in(archive: Archive, prefix: str | None) -> dict[str, _Layer]:
    start = "" if prefix is None else prefix.rstrip("/") + "/"
    found: dict[str, _Layer] = {}
    strangers = []
    for key in archive.keys:
        if not key.startswith(start) or "seed_generator" in key.split("/"):
            continue
        split = _split(key)
        if split is None:
            strangers.append(key)
            continue
        path, direction, variable = split
        layer = found.setdefault(path, _Layer(path))
        if (direction, variable) in layer.variables:
            strangers.append(key)
        layer.variables[direction, variable] = key
    if strangers:
        raise ModelFormatError(f"{archive.origin}: no layer claims {named(strangers)}")
    if not found:
        raise ModelFormatError(f"{archive.origin}: no Keras variables below {prefix!r}; found: {named(archive.keys)}")
    return found


def _described(found: dict[str, _Layer], layers: Sequence[Mapping[str, Any]] | None, origin: str) -> list[_Layer]:
    """The layers of the file in the order of ``layers``, with their kinds and options."""
    if layers is None:
        return [_only_lstm(found, origin)]
    faults: list[str] = []
    ordered: list[_Layer] = []
    for index, entry in enumerate(layers):
        layer = _layer_called(found, str(entry.get("name", "")), f"layers[{index}]", faults)
        kind = str(entry.get("kind", "")).lower()
        if kind not in OPTIONS:
            faults.append(f"layers[{index}]: kind {kind!r}, one of {', '.join(OPTIONS)} expected")
        elif unknown := [name for name in entry if name not in {"name", "kind", *OPTIONS[kind]}]:
            faults.append(f"layers[{index}]: {kind} takes no {', '.join(map(str, unknown))}; it takes "
                          f"{', '.join(OPTIONS[kind])}")  # fmt: skip
        elif layer is not None:
            given = {name: value for name, value in entry.items() if name not in ("name", "kind")}
            ordered.append(_Layer(layer.path, _named_variables(layer, kind), kind, {**OPTIONS[kind], **given}))
    used = [layer.path for layer in ordered]
    faults += [f"layers names '{path}' twice" for path in sorted({path for path in used if used.count(path) > 1})]
    if not faults:
        faults += [f"layers leaves out the layer '{path}' of the file" for path in found if path not in used]
    if faults or not ordered:
        raise ModelFormatError(listed(f"{origin}: layers= does not describe the file", faults or ["it is empty"]))
    return ordered


def _only_lstm(found: dict[str, _Layer], origin: str) -> _Layer:
    [(path, layer)] = found.items() if len(found) == 1 else [("", None)]
    if layer is not None:
        variables = _named_variables(layer, "lstm")
        if ("", "recurrent_kernel") in variables:
            both = ("backward", "recurrent_kernel") in variables
            return _Layer(path, variables, "lstm", {**OPTIONS["lstm"], "bidirectional": both})
    raise ModelFormatError(
        f"{origin}: holds the layers {named(found)}; their order and arguments the file cannot say: give "
        'layers=[{"name": …, "kind": "lstm", "return_sequences": …}, …], one entry a layer'
    )


def _layer_called(found: dict[str, _Layer], name: str, subject: str, faults: list[str]) -> _Layer | None:
    matches = [layer for path, layer in found.items() if path == name] or [
        layer for layer in found.values() if layer.name == name
    ]
    if len(matches) == 1:
        return matches[0]
    problem = f"'{name}' is ambiguous, give the whole path" if matches else f"the file has no layer '{name}'"
    faults.append(f"{subject}: {problem}; it has {named(found)}")
    return None


def _named_variables(layer: _Layer, kind: str) -> dict[tuple[str, str], str]:
    """The layer's variables with names for those that the file only numbers."""
    names = NUMBERED[kind]
    return {
        (side, names[int(variable)] if variable.isdigit() and int(variable) < len(names) else variable): key
        for (side, variable), key in layer.variables.items()
    }


def _checked_weights(archive: Archive, layers: list[_Layer]) -> dict[str, np.ndarray]:
    """All variables, after comparing their shapes with what each layer needs; lists every fault."""
    weights = archive.arrays(key for layer in layers for key in layer.variables.values())
    faults = [fault for layer in layers for fault in _shape_faults(layer, weights)]
    if faults:
        raise ModelFormatError(listed(f"{archive.origin}: incomplete or mismatched layers", faults[:40]))
    dtype = common_float(weights.items(), archive.origin)
    return {key: value.astype(dtype, copy=False) for key, value in weights.items()}


def _shape_faults(layer: _Layer, weights: Mapping[str, np.ndarray]) -> list[str]:
    sides = ("", "backward") if layer.options.get("bidirectional") else ("",)
    required = [name for name in NUMBERED[layer.kind] if name != "bias"]
    allowed = {(side, name) for side in sides for name in NUMBERED[layer.kind]}
    faults = [
        f"layer '{layer.path}' lacks its {side} {name}".replace("  ", " ")
        for side in sides
        for name in required
        if (side, name) not in layer.variables
    ]
    faults += [
        f"'{key}' is no variable of the {layer.kind} layer '{layer.path}'"
        for part, key in layer.variables.items()
        if part not in allowed
    ]
    for side in sides:
        faults += _misshapen({n: (k, weights[k].shape) for (s, n), k in layer.variables.items() if s == side}, layer)
    return faults


def _misshapen(variables: dict[str, tuple[str, tuple[int, ...]]], layer: _Layer) -> list[str]:
    def fault(name: str, expected: str) -> list[str]:
        key, shape = variables[name]
        return [f"'{key}' has shape {list(shape)}, {expected} expected"]

    matrices = [name for name in NUMBERED[layer.kind] if name != "bias" and name in variables]
    flat = [name for name in matrices if len(variables[name][1]) != 2 or 0 in variables[name][1]]
    if flat or not matrices:
        return [text for name in flat for text in fault(name, "a matrix")]
    width = variables[matrices[0]][1][1]
    faults = []
    if layer.kind == "lstm" and "recurrent_kernel" in variables:
        hidden = variables["recurrent_kernel"][1][0]
        if variables["recurrent_kernel"][1] != (hidden, 4 * hidden):
            faults += fault("recurrent_kernel", "[H, 4H]")
        if width != 4 * hidden:
            faults += fault("kernel", f"[I, 4H] with H = {hidden}")
    if "bias" in variables and variables["bias"][1] != (width,):
        faults += fault("bias", f"[{width}]")
    return faults


# ---------------------------------------------------------------- the graph


class _Network:
    """Builds the sequential network; ``x`` is the tensor the next layer reads, [batch, (time,) width]."""

    def __init__(self, origin: str, layers: list[_Layer], weights: Mapping[str, np.ndarray]):
        self._origin = origin
        self._layers = layers
        self._weights = weights
        self._sketch = Sketch(origin)
        self._x = "input"
        self._sequence = any(layer.kind in ("lstm", "embedding") for layer in layers)
        self._width = 0

    def graph(self) -> Graph:
        dtype = next(iter(self._weights.values())).dtype
        spec = self._input_spec(dtype)
        builders: dict[str, Callable[[_Layer, str], str]] = {
            "lstm": self._lstm,
            "dense": self._dense,
            "embedding": self._embedding,
        }
        for index, layer in enumerate(self._layers):
            name = layer.path or "lstm"
            output = "output" if index == len(self._layers) - 1 else f"{name}.output"
            self._x = builders[layer.kind](layer, output)
        shape: tuple[Dimension, ...] = ("batch", "time", self._width) if self._sequence else ("batch", self._width)
        return self._sketch.graph([spec], [TensorSpec("output", dtype, shape)])

    def _input_spec(self, dtype: np.dtype[Any]) -> TensorSpec:
        first = self._layers[0]
        if first.kind == "embedding":
            return TensorSpec("input", np.dtype(np.int32), ("batch", "time"))
        self._width = int(self._weight(first, "kernel").shape[0])
        head = ("batch", "time") if self._sequence else ("batch",)
        return TensorSpec("input", dtype, (*head, self._width))

    def _weight(self, layer: _Layer, variable: str, side: str = "") -> np.ndarray:
        return self._weights[layer.variables[side, variable]]

    def _expect_width(self, layer: _Layer, kernel: np.ndarray) -> None:
        if kernel.shape[0] != self._width:
            raise ModelFormatError(
                f"{self._origin}: layer '{layer.path}' reads {kernel.shape[0]} features, the layer before it gives "
                f"{self._width}; is the order of layers= right?"
            )

    def _embedding(self, layer: _Layer, output: str) -> str:
        if layer.options["mask_zero"]:
            raise UnsupportedModelError(f"{self._origin}: layer '{layer.path}': mask_zero is not implemented")
        if layer is not self._layers[0]:
            raise ModelFormatError(f"{self._origin}: the embedding '{layer.path}' must be the first layer")
        table = self._weight(layer, "embeddings")
        self._width = int(table.shape[1])
        return self._sketch.add(
            "Gather", (self._sketch.constant(f"{layer.path}.table", table), "input"), output, axis=0
        )

    def _dense(self, layer: _Layer, output: str) -> str:
        kernel = self._weight(layer, "kernel")
        self._expect_width(layer, kernel)
        self._width = int(kernel.shape[1])
        activation = layer.options["activation"] or "linear"
        if activation not in DENSE_ACTIVATIONS:
            raise UnsupportedModelError(
                f"{self._origin}: layer '{layer.path}': activation {activation!r} is not implemented; "
                f"{', '.join(DENSE_ACTIVATIONS)} are"
            )
        operator = DENSE_ACTIVATIONS[activation]
        steps = ["MatMul", *(["Add"] if ("", "bias") in layer.variables else []), *([operator] if operator else [])]
        x = self._x
        for step in steps:
            target = output if step == steps[-1] else f"{layer.path}.{step}"
            operands = {"MatMul": ("kernel",), "Add": ("bias",)}.get(step, ())
            names = [self._sketch.constant(f"{layer.path}.{part}", self._weight(layer, part)) for part in operands]
            x = self._sketch.add(step, (x, *names), target, **({"axis": -1} if step == "Softmax" else {}))
        return x

    def _lstm(self, layer: _Layer, output: str) -> str:
        self._refuse_unimplemented(layer)
        if not self._sequence:
            raise ModelFormatError(
                f"{self._origin}: the LSTM '{layer.path}' reads the last step only; the LSTM before it needs "
                "return_sequences=True"
            )
        sides = ("", "backward") if layer.options["bidirectional"] else ("",)
        for side in sides:
            self._expect_width(layer, self._weight(layer, "kernel", side))
        hidden = int(self._weight(layer, "recurrent_kernel").shape[0])
        name = layer.path or "lstm"
        x = self._sketch.transpose(self._x, (1, 0, 2), f"{name}.time_first")
        inputs = (x, *self._lstm_weights(layer, sides, name))
        y, last = f"{name}.Y", f"{name}.Y_h"
        self._sketch.nodes.append(
            Node("LSTM", inputs, (y, last), self._lstm_attributes(layer, hidden, len(sides)), name)
        )
        self._width = hidden * len(sides)
        self._sequence = bool(layer.options["return_sequences"])
        join = self._sequences if self._sequence else self._last_step
        return join(layer, y if self._sequence else last, len(sides), output)

    def _refuse_unimplemented(self, layer: _Layer) -> None:
        options = layer.options
        faults = [
            f"{name}={options[name]!r} is not implemented; {', '.join(RECURRENT_ACTIVATIONS)} are"
            for name in ("activation", "recurrent_activation")
            if options[name] not in RECURRENT_ACTIVATIONS
        ]
        if options["bidirectional"] and options["go_backwards"]:
            faults.append("go_backwards of a bidirectional layer is not implemented")
        if options["bidirectional"] and options["merge_mode"] != "concat":
            faults.append(f"merge_mode={options['merge_mode']!r} is not implemented; concat is")
        if faults:
            raise UnsupportedModelError(listed(f"{self._origin}: layer '{layer.path}'", faults))

    def _lstm_weights(self, layer: _Layer, sides: tuple[str, ...], name: str) -> list[str]:
        """Names of W, R and B, stacked over the directions."""
        w = [to_onnx_gates(self._weight(layer, "kernel", side).T, "keras") for side in sides]
        r = [to_onnx_gates(self._weight(layer, "recurrent_kernel", side).T, "keras") for side in sides]
        names = [self._sketch.constant(f"{name}.W", np.stack(w)), self._sketch.constant(f"{name}.R", np.stack(r))]
        if not any((side, "bias") in layer.variables for side in sides):
            return names
        rows = []
        for side in sides:
            zeros = np.zeros(w[0].shape[0], w[0].dtype)
            bias = self._weight(layer, "bias", side) if (side, "bias") in layer.variables else zeros
            rows.append(np.concatenate([to_onnx_gates(bias, "keras"), zeros]))
        return [*names, self._sketch.constant(f"{name}.B", np.stack(rows))]

    def _lstm_attributes(self, layer: _Layer, hidden: int, directions: int) -> dict[str, Any]:
        options = layer.options
        attributes: dict[str, Any] = {"hidden_size": hidden}
        if directions == 2:
            attributes["direction"] = "bidirectional"
        elif options["go_backwards"]:
            attributes["direction"] = "reverse"
        if (options["recurrent_activation"], options["activation"]) != ("sigmoid", "tanh"):
            cell = RECURRENT_ACTIVATIONS[options["activation"]]
            chain = [RECURRENT_ACTIVATIONS[options["recurrent_activation"]], cell, cell] * directions
            attributes["activations"] = tuple(name for name, _, _ in chain)
            attributes["activation_alpha"] = tuple(alpha for _, alpha, _ in chain if alpha is not None)
            attributes["activation_beta"] = tuple(beta for _, _, beta in chain if beta is not None)
        return {name: value for name, value in attributes.items() if value != ()}

    def _sequences(self, layer: _Layer, y: str, directions: int, output: str) -> str:
        """[T, D, B, H] → [B, T, D·H]. Keras gives a backward layer's outputs in the order it computed them."""
        if directions == 2:
            swapped = self._sketch.transpose(y, (2, 0, 1, 3), f"{output}.batch_first")
            return self._sketch.reshape(swapped, (0, 0, self._width), output)
        flat = self._sketch.squeeze(y, 1, f"{output}.squeezed")
        if layer.options["go_backwards"]:
            flat = self._sketch.cut(flat, -1, -(2**31), 0, f"{output}.flipped", step=-1)
        return self._sketch.transpose(flat, (1, 0, 2), output)

    def _last_step(self, layer: _Layer, last: str, directions: int, output: str) -> str:
        """[D, B, H] → [B, D·H]."""
        if directions == 2:
            swapped = self._sketch.transpose(last, (1, 0, 2), f"{output}.batch_first")
            return self._sketch.reshape(swapped, (0, self._width), output)
        return self._sketch.squeeze(last, 0, output)
