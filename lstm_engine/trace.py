"""Trace: what the gates of a network did, step by step."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from .calls import Call
from .errors import InputError, ModelFormatError, UnsupportedModelError
from .graph import Graph, TensorSpec
from .pages import walk as pages
from .pages.notes import note
from .passes.shape_rules import DataDependentError
from .program.packing import LANES, Store, blocks
from .program.plan import lower_run
from .program.program import Means, Port, Traced
from .reference import completed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: What is kept of a layer, by operator, in the order it is shown: names of the equations (ONNX LSTM, GRU, RNN).
PARTS: Final[Mapping[str, tuple[str, ...]]] = {
    "LSTM": ("f", "i", "g", "o", "c", "h"),
    "GRU": ("z", "r", "n", "h"),
    "RNN": ("h",),
}
GATES: Final = frozenset("fiozr")  # between 0 and 1 with the usual activations
EDGE: Final = 0.05  # a gate nearer than this to 0 or 1 is shut or open
STILL: Final = 1e-3  # a unit that stays within this range is dead
TITLE: Final = "What the gates did"
Path = str | os.PathLike[str]


@dataclass(frozen=True)
class LayerTrace:
    """One direction of a recurrent layer, over the steps of a run.

    ``op`` LSTM: ``f``, ``i``, ``o`` the gates after their activations, ``g`` the candidate, ``c`` the cell state after
    the step, ``h`` = o∘tanh(c) (before a projection). GRU: ``z`` and ``r`` the gates, ``n`` the candidate, ``h``. RNN:
    ``h``. Each [T,B,H] in the network's type; a layer that runs ``backwards`` has its steps in the order of the input.
    ``functions``: of its gates, by ONNX's names and in its order.
    """

    name: str
    op: str
    arrays: Mapping[str, np.ndarray]
    backwards: bool = False
    functions: tuple[str, ...] = ()

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
        changed: np.ndarray = np.abs(self.h - self.before("h"))
        return changed

    @property
    def forgotten(self) -> np.ndarray:
        """How much of its memory each unit gave up at each step, [T,B,H]: |(1 - f)∘c before|, GRU |(1 - z)∘h before|.

        Raises AttributeError of a plain RNN, which has no gate that keeps anything.
        """
        kept, memory = (self.z, "h") if self.op == "GRU" else (self.f, "c")
        given_up: np.ndarray = np.abs((1 - kept) * self.before(memory))
        return given_up

    def before(self, part: str) -> np.ndarray:
        """A part as the layer left it one step before, [T,B,H]; zeros at the step that it reads first."""
        values = self[part]
        none = np.zeros_like(values[:1])
        ordered = [values[1:], none] if self.backwards else [none, values[:-1]]
        return np.concatenate(ordered)

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
        ports: Sequence[Port] = (),
    ) -> None:
        self._layers = {layer.name: layer for layer in layers}
        self.feeds, self.outputs, self.missing = dict(feeds), dict(outputs), dict(missing)
        self._ports = {port.name: port for port in ports}

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

    def over_time(self, name: str) -> np.ndarray | None:
        """A feed or output as [T,B,width], None where it has no axis that is time."""
        array = self.feeds.get(name, self.outputs.get(name))
        port = self._ports.get(name)
        if array is None or port is None or port.time is None:
            return None
        front = (port.time, *port.batch)
        rows = np.moveaxis(array, front, range(len(front)))
        rows = rows.reshape(array.shape[port.time], math.prod(array.shape[axis] for axis in port.batch), -1)
        return np.ascontiguousarray(rows)

    def walk(
        self, layers: Sequence[str] | None = None, labels: Sequence[str] | None = None, title: str = TITLE
    ) -> pages.Walk:
        """What html() writes, before it is a page: a value that can be added to.

        ``layers``: their names, None for all that have as many steps and rows as the first. ``labels``: a text for
        every step; without, token ids are theirs where ids were fed.

        Raises InputError for an unknown layer, layers of different lengths, or a wrong number of labels.
        """
        chosen, notes = self._alike(layers)
        steps, rows = chosen[0].shape[:2] if chosen else (0, 0)
        if labels is not None and len(labels) != steps:
            raise InputError(f"trace: expected {steps} labels, one for each step, got {len(labels)}")
        words = [[text] * rows for text in labels] if labels is not None else self._ids(steps, rows)
        notes += [f"There is no record of layer '{name}': {why}." for name, why in self.missing.items()]
        about = [("layers", str(len(chosen))), ("steps", f"{steps:,}")] + ([("rows", f"{rows:,}")] if rows > 1 else [])
        return pages.Walk(
            title,
            about,
            [_shown(layer) for layer in chosen],
            words,
            joined=False,
            inputs=self._signals(self.feeds, steps, rows),
            outputs=self._signals(self.outputs, steps, rows),
            notes=notes,
        )

    def html(
        self,
        path: Path,
        *,
        layers: Sequence[str] | None = None,
        labels: Sequence[str] | None = None,
        title: str = TITLE,
    ) -> None:
        """Write one HTML file that shows gates, cell states and outputs, step by step and unit by unit.

        Arguments as for walk(). It needs no network.
        """
        page = pages.page(self.walk(layers, labels, title))
        with open(path, "w", encoding="utf-8", newline="\n") as file:
            file.write(page)

    def plot(
        self,
        path: Path | None = None,
        *,
        layer: str | None = None,
        row: int = 0,
        labels: Sequence[str] | None = None,
    ) -> Figure:
        """Draw a layer's gates, cell state and output as heatmaps of units over time, with matplotlib.

        ``layer``: its name, None for the first; ``row`` of the batch; ``labels``: a text for every step. ``path``:
        where to write, by its ending a picture or a PDF; the figure is returned either way.

        Raises InputError for what is not there; LstmEngineError where matplotlib is not installed.
        """
        from .pages.figures import heatmaps

        if not self._layers:
            raise InputError("plot: the trace has no layer")
        shown = self[next(iter(self)) if layer is None else layer]
        steps, rows, _ = shown.shape
        if not 0 <= row < rows:
            raise InputError(f"plot: there are rows 0 to {rows - 1}, got {row}")
        if labels is not None and len(labels) != steps:
            raise InputError(f"plot: expected {steps} labels, one for each step, got {len(labels)}")
        heading = f"{shown.name} ({shown.op}, {shown.shape[2]} units)"
        gates = [part for part in shown.parts if part in GATES]
        figure = heatmaps(heading, {part: shown[part][:, row] for part in shown.parts}, gates, labels)
        if path is not None:
            figure.savefig(path)
        return figure

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        rows = []
        for layer in self.values():
            memory = layer.statistics().get("memory")
            steps = "" if memory is None else f"{float(np.median(memory)):.1f}"
            rows.append((layer.name, layer.op, *layer.shape, " ".join(layer.parts), steps))
        columns = ("layer", "kind", "steps", "rows", "units", "parts", "median memory in steps")
        return note("Trace", columns, rows)

    def _alike(self, names: Sequence[str] | None) -> tuple[list[LayerTrace], list[str]]:
        """The layers to show together, and what to say of the others."""
        asked = list(self.values()) if names is None else [self[name] for name in names]
        alike = [layer for layer in asked if layer.shape[:2] == asked[0].shape[:2]]
        others = [layer for layer in asked if layer.shape[:2] != asked[0].shape[:2]]
        described = [f"'{layer.name}' has {layer.shape[0]} steps of {layer.shape[1]} rows" for layer in others]
        if described and names is not None:
            first = f"'{asked[0].name}' has {asked[0].shape[0]} steps of {asked[0].shape[1]} rows"
            raise InputError(f"trace: layers of different lengths cannot be shown together: {first}, {described[0]}")
        return alike, [f"Not shown: layer {text}." for text in described]

    def _ids(self, steps: int, rows: int) -> list[list[str]] | None:
        """Token ids as texts [T][B], where ids were fed."""
        for name, array in self.feeds.items():
            fed = self.over_time(name)
            if array.dtype.kind in "iu" and fed is not None and fed.shape == (steps, rows, 1):
                return [[str(token) for token in step] for step in fed[:, :, 0].tolist()]
        return None

    def _signals(self, arrays: Mapping[str, np.ndarray], steps: int, rows: int) -> list[pages.Signal]:
        """The curves of all arrays of floats that are as long as the layers."""
        found = []
        for name, array in arrays.items():
            values = self.over_time(name)
            if array.dtype.kind != "f" or values is None or values.shape[:2] != (steps, rows):
                continue
            width = values.shape[2]
            found += [pages.Signal(name if width == 1 else f"{name}[{k}]", values[:, :, k]) for k in range(width)]
        return found


def traced(
    graph: Graph, feeds: Mapping[str, np.ndarray], outputs: Sequence[TensorSpec], store: Store, means: Means
) -> Trace:
    """Run a network whose recurrent layers write down what they compute.

    Raises InputError for feeds that do not fit, UnsupportedModelError where data decides which layers run.
    """
    return recorder(graph, feeds, outputs, store, means)(feeds)


def recorder(
    graph: Graph, feeds: Mapping[str, np.ndarray], outputs: Sequence[TensorSpec], store: Store, means: Means
) -> Callable[[Mapping[str, np.ndarray]], Trace]:
    """What runs a network and traces it, any number of times, for feeds of these names, dtypes and shapes.

    Raises as traced() does.
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
    traces = lowered.program.traces
    call = Call.prepare(lowered, [], arrays, absent, (*names, *(each.output for each in traces)))
    ports = (*lowered.program.inputs, *lowered.program.outputs)

    def record(feeds: Mapping[str, np.ndarray]) -> Trace:
        results = call.run(feeds)
        layers = [_layer(each, results[each.output]) for each in traces]
        return Trace(layers, feeds, {name: results[name] for name in names}, _missing(graph, layers), ports)

    return record


def joined(traces: Sequence[Trace]) -> Trace:
    """The traces of calls that were a step each as one: a step a call. Layers that take several steps a call are left
    out, and named."""
    several = {
        name: f"it takes {layer.shape[0]} steps in every call"
        for name, layer in traces[0].items()
        if layer.shape[0] > 1
    }
    layers = [
        replace(layer, arrays={p: np.concatenate([trace[name][p] for trace in traces]) for p in layer.parts})
        for name, layer in traces[0].items()
        if name not in several
    ]
    return Trace(layers, {}, {}, {**traces[0].missing, **several})


def _shown(layer: LayerTrace) -> pages.Layer:
    """A layer as a page has it."""
    amounts = {"updates": layer.updates} | ({"forgotten": layer.forgotten} if layer.op != "RNN" else {})
    moments = {kind: pages.moments(values) for kind, values in amounts.items()}
    return pages.Layer(
        layer.name, layer.op, layer.arrays, layer.statistics(), moments, layer.backwards, layer.functions
    )


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
    return LayerTrace(form.layer, form.op, arrays, form.backwards, form.functions)


def _missing(graph: Graph, layers: Sequence[LayerTrace]) -> dict[str, str]:
    """Recurrent layers that left no record."""
    there = {layer.name for layer in layers} | {layer.name.rpartition(".")[0] for layer in layers}
    return {
        node.name or node.output(0): "it runs along an axis within the steps, or by its definition in NumPy"
        for node in graph.nodes
        if node.op in PARTS and (node.name or next(filter(None, node.outputs))) not in there
    }
