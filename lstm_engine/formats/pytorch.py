"""A PyTorch state_dict saved as npz: the recurrent module PyTorch would build from it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ..errors import ModelFormatError, listed
from ..graph import Graph, Node, TensorSpec
from ..vocabulary import to_onnx_gates
from .archive import Archive
from .bare import Sketch, chosen_module, common_float, named

KEY: Final = re.compile(r"(?P<prefix>(?:.*\.)?)(?P<kind>weight_ih|weight_hh|bias_ih|bias_hh|weight_hr)"
                        r"_l(?P<layer>0|[1-9]\d{0,3})(?P<reverse>_reverse)?")  # fmt: skip
#: Rows of weight_hh per hidden unit tell the cell.
CELLS: Final = {4: "LSTM", 3: "GRU", 1: "RNN"}
NONLINEARITIES: Final = {"tanh": "Tanh", "relu": "Relu"}


@dataclass(frozen=True, slots=True)
class _Module:
    """A recurrent module's sizes: I inputs, H hidden units, ``out`` per direction (P with a projection, else H)."""

    prefix: str
    op: str
    inputs: int
    hidden: int
    out: int
    layers: int
    directions: int
    bias: bool
    projection: bool

    @property
    def gates(self) -> int:
        return {op: rows for rows, op in CELLS.items()}[self.op]

    def expected(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Every key PyTorch would write, with its shape."""
        rows = self.gates * self.hidden
        for layer in range(self.layers):
            width = self.inputs if layer == 0 else self.directions * self.out
            for suffix in self.suffixes(layer):
                yield f"{self.prefix}weight_ih{suffix}", (rows, width)
                yield f"{self.prefix}weight_hh{suffix}", (rows, self.out)
                if self.bias:
                    yield f"{self.prefix}bias_ih{suffix}", (rows,)
                    yield f"{self.prefix}bias_hh{suffix}", (rows,)
                if self.projection:
                    yield f"{self.prefix}weight_hr{suffix}", (self.out, self.hidden)

    def suffixes(self, layer: int) -> list[str]:
        return [f"_l{layer}", f"_l{layer}_reverse"][: self.directions]


def is_state_dict(keys: list[str]) -> bool:
    """Whether some key is one that a PyTorch recurrent module writes."""
    return any(KEY.fullmatch(key) for key in keys)


def read_state_dict(
    archive: Archive, *, prefix: str | None, batch_first: bool | None, nonlinearity: str | None
) -> Graph:
    """The LSTM, GRU or RNN module whose parameters the archive holds.

    Input ``input`` [T, B, I] ([B, T, I] with ``batch_first``), optional ``h_0`` [L·D, B, P or H] and ``c_0``
    [L·D, B, H]; outputs ``output``, ``h_n``, ``c_n``, all in PyTorch's shapes. An RNN needs ``nonlinearity``.

    Raises ModelFormatError listing what is missing, misshapen or claimed by no layer.
    """
    module = _module(archive, prefix)
    origin = archive.origin
    if module.op == "RNN" and nonlinearity not in NONLINEARITIES:
        raise ModelFormatError(
            f"{origin}: the parameters are an RNN's; whether of tanh or relu the file cannot say: nonlinearity="
            f'"tanh" or "relu" is needed, got {nonlinearity!r}'
        )
    if module.op != "RNN" and nonlinearity is not None:
        raise TypeError(f"{origin}: nonlinearity has no meaning for {module.op}")
    weights = _checked_weights(archive, module)
    activation = NONLINEARITIES.get(nonlinearity or "", "")
    return _graph(module, weights, origin, bool(batch_first), activation)


def _module(archive: Archive, prefix: str | None) -> _Module:
    parsed = {key: match for key in archive.keys if (match := KEY.fullmatch(key))}
    found = list(dict.fromkeys(match["prefix"] for match in parsed.values()))
    chosen = chosen_module(found, prefix, archive.origin, "recurrent modules")
    mine = {key: match for key, match in parsed.items() if match["prefix"] == chosen}
    pool = archive.keys if prefix is None else [key for key in archive.keys if _belongs(key, chosen)]
    strangers = [key for key in pool if key not in mine]
    if strangers:
        remedy = "" if prefix is not None else f"; prefix={chosen!r} reads that module and leaves them out"
        raise ModelFormatError(f"{archive.origin}: no layer claims {named(strangers)}{remedy}")
    first = {kind: archive.array(f"{chosen}{kind}_l0") if f"{chosen}{kind}_l0" in mine else None
             for kind in ("weight_ih", "weight_hh", "weight_hr")}  # fmt: skip
    op, inputs, hidden, out = _sizes(first, archive.origin, chosen)
    return _Module(
        prefix=chosen,
        op=op,
        inputs=inputs,
        hidden=hidden,
        out=out,
        layers=1 + max(int(match["layer"]) for match in mine.values()),
        directions=2 if any(match["reverse"] for match in mine.values()) else 1,
        bias=any(match["kind"].startswith("bias") for match in mine.values()),
        projection=first["weight_hr"] is not None,
    )


def _belongs(key: str, prefix: str) -> bool:
    return key.startswith(prefix) if prefix else "." not in key


def _sizes(first: Mapping[str, np.ndarray | None], origin: str, prefix: str) -> tuple[str, int, int, int]:
    """Cell, I, H and P (or H) as the first layer's matrices tell them."""
    faults = [
        f"'{prefix}{kind}_l0' "
        + ("is missing" if value is None else f"has shape {list(value.shape)}, a matrix expected")
        for kind, value in first.items()
        if (value is None and kind != "weight_hr") or (value is not None and (value.ndim != 2 or 0 in value.shape))
    ]
    if faults:
        raise ModelFormatError(listed(f"{origin}: no recurrent module", faults))
    weight_ih, weight_hh, weight_hr = first["weight_ih"], first["weight_hh"], first["weight_hr"]
    assert weight_ih is not None
    assert weight_hh is not None
    rows, out = weight_hh.shape
    hidden = out if weight_hr is None else int(weight_hr.shape[1])
    op = CELLS.get(rows // hidden) if rows % hidden == 0 else None
    if op is None or (weight_hr is not None and op != "LSTM"):
        raise ModelFormatError(
            f"{origin}: '{prefix}weight_hh_l0' has shape {[rows, out]}: of an LSTM [4H, H] is expected, of a GRU "
            f"[3H, H], of an RNN [H, H], with H = {hidden}"
        )
    return op, int(weight_ih.shape[1]), hidden, out


def _checked_weights(archive: Archive, module: _Module) -> dict[str, np.ndarray]:
    keys = set(archive.keys)
    expected = dict(module.expected())
    faults = [f"'{key}' is missing, {list(shape)} expected" for key, shape in expected.items() if key not in keys]
    claimed = [key for key in archive.keys if KEY.fullmatch(key) and _belongs(key, module.prefix)]
    faults += [f"'{key}' belongs to no layer" for key in claimed if key not in expected and _same(key, module.prefix)]
    weights = archive.arrays(key for key in expected if key in keys)
    faults += [
        f"'{key}' has shape {list(value.shape)}, {list(expected[key])} expected"
        for key, value in weights.items()
        if value.shape != expected[key]
    ]
    if faults:
        raise ModelFormatError(
            listed(f"{archive.origin}: incomplete or mismatched {module.op} parameters", faults[:40])
        )
    dtype = common_float(weights.items(), archive.origin)
    return {key.removeprefix(module.prefix): value.astype(dtype, copy=False) for key, value in weights.items()}


def _same(key: str, prefix: str) -> bool:
    match = KEY.fullmatch(key)
    return match is not None and match["prefix"] == prefix


# ---------------------------------------------------------------- the graph


def _graph(
    module: _Module, weights: Mapping[str, np.ndarray], origin: str, batch_first: bool, activation: str
) -> Graph:
    sketch = Sketch(origin)
    x = sketch.transpose("input", (1, 0, 2), "input.time_first") if batch_first else "input"
    last: dict[str, list[str]] = {"h": [], "c": []}
    for layer in range(module.layers):
        name = f"{module.prefix}l{layer}"
        results = _add_layer(sketch, module, weights, layer, x, activation)
        for state, result in zip("hc", results[1:], strict=False):
            last[state].append(result)
        final = layer == module.layers - 1
        x = _join_directions(sketch, module, results[0], "output" if final and not batch_first else f"{name}.output")
    if batch_first:
        sketch.transpose(x, (1, 0, 2), "output")
    states = "hc" if module.op == "LSTM" else "h"
    for state in states:
        if module.layers > 1:
            sketch.add("Concat", last[state], f"{state}_n", axis=0)
    inputs, outputs = _specs(module, states, batch_first, next(iter(weights.values())).dtype)
    return sketch.graph(inputs, outputs)


def _add_layer(
    sketch: Sketch, module: _Module, weights: Mapping[str, np.ndarray], layer: int, x: str, activation: str
) -> list[str]:
    """One recurrent node over all directions; returns Y, Y_h and, for an LSTM, Y_c."""
    name = f"{module.prefix}l{layer}"
    inputs = [x, *_stacked_weights(sketch, module, weights, layer), ""]
    states = "hc" if module.op == "LSTM" else "h"
    for state in states:
        whole = f"{state}_0"
        begin, end = layer * module.directions, (layer + 1) * module.directions
        inputs.append(whole if module.layers == 1 else sketch.cut(whole, begin, end, 0, f"{name}.{whole}"))
    if module.projection:
        stacked = np.stack([weights[f"weight_hr{suffix}"] for suffix in module.suffixes(layer)])
        inputs += ["", sketch.constant(f"{name}.projection", stacked)]
    single = module.layers == 1
    outputs = [f"{name}.Y", *(f"{state}_n" if single else f"{name}.Y_{state}" for state in states)]
    sketch.nodes.append(Node(module.op, tuple(inputs), tuple(outputs), _attributes(module, activation), name))
    return outputs


def _attributes(module: _Module, activation: str) -> dict[str, Any]:
    attributes: dict[str, Any] = {"hidden_size": module.hidden}
    if module.directions == 2:
        attributes["direction"] = "bidirectional"
    if module.op == "GRU":
        attributes["linear_before_reset"] = 1
    if module.op == "RNN":
        attributes["activations"] = (activation,) * module.directions
    return attributes


def _stacked_weights(sketch: Sketch, module: _Module, weights: Mapping[str, np.ndarray], layer: int) -> list[str]:
    """Names of W, R and B ('' without bias) in ONNX's layout and gate order."""
    name, suffixes = f"{module.prefix}l{layer}", module.suffixes(layer)
    w = np.stack([_reordered(weights[f"weight_ih{suffix}"], module.op) for suffix in suffixes])
    r = np.stack([_reordered(weights[f"weight_hh{suffix}"], module.op) for suffix in suffixes])
    names = [sketch.constant(f"{name}.W", w), sketch.constant(f"{name}.R", r)]
    if not module.bias:
        return [*names, ""]
    both = [[_reordered(weights[f"bias_{side}{suffix}"], module.op) for side in ("ih", "hh")] for suffix in suffixes]
    return [*names, sketch.constant(f"{name}.B", np.stack([np.concatenate(pair) for pair in both]))]


def _reordered(stacked: np.ndarray, op: str) -> np.ndarray:
    if op == "LSTM":
        return to_onnx_gates(stacked, "pytorch")
    if op == "GRU":  # PyTorch r, z, n; ONNX z, r, h
        reset, update, new = np.split(stacked, 3)
        return np.concatenate([update, reset, new])
    return stacked


def _join_directions(sketch: Sketch, module: _Module, y: str, output: str) -> str:
    """[T, D, B, H] → [T, B, D·H]."""
    if module.directions == 1:
        return sketch.squeeze(y, 1, output)
    swapped = sketch.transpose(y, (0, 2, 1, 3), f"{output}.swapped")
    return sketch.reshape(swapped, (0, 0, 2 * module.out), output)


def _specs(
    module: _Module, states: str, batch_first: bool, dtype: np.dtype[Any]
) -> tuple[list[TensorSpec], list[TensorSpec]]:
    head = ("batch", "time") if batch_first else ("time", "batch")
    rows = module.layers * module.directions
    widths = {"h": module.out, "c": module.hidden}
    inputs = [TensorSpec("input", dtype, (*head, module.inputs))]
    inputs += [TensorSpec(f"{state}_0", dtype, (rows, "batch", widths[state]), optional=True) for state in states]
    outputs = [TensorSpec("output", dtype, (*head, module.directions * module.out))]
    outputs += [TensorSpec(f"{state}_n", dtype, (rows, "batch", widths[state])) for state in states]
    return inputs, outputs
