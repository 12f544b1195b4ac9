"""Trace: what the gates of a network did, step by step."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from .calls import Call
from .errors import InputError, ModelFormatError, UnsupportedModelError
from .graph import Graph, TensorSpec
from .passes.shape_rules import DataDependentError
from .program.packing import LANES, Store, blocks
from .program.plan import lower_run
from .program.program import Means, Traced
from .reference import completed

#: What is kept of a layer, by operator, in the order it is shown: names of the equations (ONNX LSTM, GRU, RNN).
PARTS: Final[Mapping[str, tuple[str, ...]]] = {
    "LSTM": ("f", "i", "g", "o", "c", "h"),
    "GRU": ("z", "r", "n", "h"),
    "RNN": ("h",),
}
GATES: Final = frozenset("fiozr")  # between 0 and 1 with the usual activations
EDGE: Final = 0.05  # a gate nearer than this to 0 or 1 is shut or open
STILL: Final = 1e-3  # a unit that stays within this range is dead
Path = str | os.PathLike[str]


@dataclass(frozen=True)
class LayerTrace:
    """One direction of a recurrent layer, over the steps of a run.

    ``op`` LSTM: ``f``, ``i``, ``o`` the gates after their activations, ``g`` the candidate, ``c`` the cell state after
    the step, ``h`` = o∘tanh(c) (before a projection). GRU: ``z`` and ``r`` the gates, ``n`` the candidate, ``h``. RNN:
    ``h``. Each [T,B,H] in the network's type; a layer that runs backwards has its steps in the order of the input.
    """

    name: str
    op: str
    arrays: Mapping[str, np.ndarray]

    def __getattr__(self, part: str) -> np.ndarray:
        arrays = self.__dict__.get("arrays", {})
        if part not in arrays:
            raise AttributeError(f"a trace of {self.__dict__.get('op')} has {', '.join(arrays)}, not '{part}'")
        found: np.ndarray = arrays[part]
        return found

    def __getitem__(self, part: str) -> np.ndarray:
        return self.arrays[part]

    @property
    def parts(self) -> tuple[str, ...]:
        """What there is of the layer."""
        return tuple(self.arrays)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(T, B, H)."""
        steps, rows, units = self.arrays["h"].shape
        return steps, rows, units

    @property
    def updates(self) -> np.ndarray:
        """How much each step changed each unit's memory, [T,B,H]: |i∘g| of an LSTM, else |h - h before|."""
        if self.op == "LSTM":
            written: np.ndarray = np.abs(self.i * self.g)
            return written
        return np.abs(np.diff(self.h, axis=0, prepend=np.zeros_like(self.h[:1])))

    @property
    def forgotten(self) -> np.ndarray:
        """How much of its memory each unit gave up at each step, [T,B,H]: |(1 - f)∘c before| of an LSTM."""
        before = np.concatenate([np.zeros_like(self.c[:1]), self.c[:-1]])
        given_up: np.ndarray = np.abs((1 - self.f) * before)
        return given_up

    def statistics(self) -> Mapping[str, np.ndarray]:
        """Of each unit, over all steps and rows.

        ``shut.f`` … ``open.o``: the part of the steps at which a gate is within 0.05 of 0, or of 1; ``mean.f`` …;
        ``dead``: whether h stays within a thousandth; ``range.h``, ``range.c``: greatest less least; ``memory``: steps
        after which a unit keeps 1/e of what it held, -1 / ln(mean f) (of a GRU, mean z).
        """
        found: dict[str, np.ndarray] = {}
        for part, values in self.arrays.items():
            if part in GATES:
                found[f"shut.{part}"] = (values < EDGE).mean(axis=(0, 1))
                found[f"open.{part}"] = (values > 1 - EDGE).mean(axis=(0, 1))
                found[f"mean.{part}"] = values.mean(axis=(0, 1), dtype=np.float64)
            elif part in ("c", "h"):
                found[f"range.{part}"] = np.ptp(values.reshape(-1, values.shape[2]), axis=0)
        found["dead"] = found["range.h"] < STILL
        kept = found.get("mean.f" if self.op == "LSTM" else "mean.z")
        if kept is not None:
            with np.errstate(divide="ignore"):
                found["memory"] = -1 / np.log(np.clip(kept, 0, 1))
        return found

    def largest(self, count: int = 10, of: str = "updates") -> list[tuple[int, int, int, float]]:
        """The steps of the largest ``updates`` or ``forgotten``: (step, row, unit, how much), the largest first."""
        values = getattr(self, of)
        order = np.argsort(-values, axis=None, kind="stable")[:count]
        places = np.unravel_index(order, values.shape)
        return [(int(t), int(b), int(k), float(values[t, b, k])) for t, b, k in zip(*places, strict=True)]


class Trace(Mapping[str, LayerTrace]):
    """What every recurrent layer of a run computed: trace["layer"].f, .i, .g, .o, .c, .h.

    Layers go by the name of their node in the file, with ``.forward`` and ``.reverse`` where there are both directions.
    ``feeds``, ``outputs``: of the run, as Model.run() takes and gives them; ``missing``: layers of which there is no
    record, and why.
    """

    def __init__(
        self,
        layers: Sequence[LayerTrace],
        feeds: Mapping[str, np.ndarray],
        outputs: Mapping[str, np.ndarray],
        missing: Mapping[str, str],
    ) -> None:
        self._layers = {layer.name: layer for layer in layers}
        self.feeds, self.outputs, self.missing = dict(feeds), dict(outputs), dict(missing)

    def __getitem__(self, layer: str) -> LayerTrace:
        if layer not in self._layers:
            raise InputError(f"trace: there is no layer '{layer}'; there are {', '.join(self._layers) or 'none'}")
        return self._layers[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def __contains__(self, layer: object) -> bool:
        return layer in self._layers

    def __repr__(self) -> str:
        layers = ", ".join(f"{layer.name} {layer.op}{list(layer.shape)}" for layer in self.values())
        return f"Trace({layers})"

    def to_npz(self, path: Path) -> None:
        """Write every array to an npz file: ``layer/part``, ``feeds/name``, ``outputs/name``."""
        arrays = {f"{layer.name}/{part}": values for layer in self.values() for part, values in layer.arrays.items()}
        arrays |= {f"feeds/{name}": array for name, array in self.feeds.items()}
        arrays |= {f"outputs/{name}": array for name, array in self.outputs.items()}
        with open(path, "wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def traced(
    graph: Graph, feeds: Mapping[str, np.ndarray], outputs: Sequence[TensorSpec], store: Store, means: Means
) -> Trace:
    """Run a network whose recurrent layers write down what they compute.

    Raises InputError for feeds that do not fit, UnsupportedModelError where data decides which layers run.
    """
    arrays = completed(graph, feeds) if len(feeds) < len(graph.inputs) else dict(feeds)
    empty = [name for name, array in arrays.items() if 0 in array.shape]
    if empty:
        raise InputError(f"trace of {graph.origin}: feed '{empty[0]}' is empty, so there is no step to record")
    shapes = {name: array.shape for name, array in arrays.items()}
    try:
        lowered = lower_run(graph, shapes, store, replace(means, threads=1), traced=True)
    except DataDependentError as fault:
        raise UnsupportedModelError(f"trace of {graph.origin}: {fault}") from fault
    except ModelFormatError as fault:
        raise InputError(f"feeds of {graph.origin} do not fit the network: {fault}") from fault
    absent = {name: array for name, array in arrays.items() if name not in feeds}
    names = tuple(spec.name for spec in outputs)
    wanted = (*names, *(each.output for each in lowered.program.traces))
    results = Call.prepare(lowered, [], arrays, absent, wanted).run(feeds)
    layers = [_layer(each, results[each.output]) for each in lowered.program.traces]
    return Trace(layers, feeds, {name: results[name] for name in names}, _missing(graph, layers))


def _layer(form: Traced, rows: np.ndarray) -> LayerTrace:
    """A layer's arrays from the rows that its kernel wrote."""
    width = rows.shape[-1]
    steps, batch = rows.shape[0] if form.timed else 1, rows.shape[int(form.timed)] if form.batched else 1
    padded = blocks(form.units) * LANES
    if form.blockwise:
        parts = rows.reshape(steps, batch, width // (len(form.parts) * LANES), len(form.parts), LANES).transpose(
            3, 0, 1, 2, 4
        )
    else:
        parts = rows.reshape(steps, batch, len(form.parts), padded).transpose(2, 0, 1, 3)
    whole = parts.reshape(len(form.parts), steps, batch, padded)[..., : form.units]
    arrays = {name: np.ascontiguousarray(whole[form.parts.index(name)]) for name in PARTS[form.op]}
    return LayerTrace(form.layer, form.op, arrays)


def _missing(graph: Graph, layers: Sequence[LayerTrace]) -> dict[str, str]:
    """Recurrent layers that left no record."""
    there = {layer.name for layer in layers} | {layer.name.rpartition(".")[0] for layer in layers}
    return {
        node.name or node.output(0): "it runs along an axis within the steps, or by its definition in NumPy"
        for node in graph.nodes
        if node.op in PARTS and (node.name or next(filter(None, node.outputs))) not in there
    }
