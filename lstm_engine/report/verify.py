"""Holding a model's results against the float64 definition, and against onnxruntime where it is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from .. import reference
from ..program.plan import probe_shapes

if TYPE_CHECKING:
    from ..graph import Graph, Node
    from ..model import Model

Feeds = Mapping[str, np.ndarray]
#: Largest error allowed, as a part of the range of the values (at least 1), by the type the model computes in.
TOLERANCES: Final[Mapping[str, float]] = {"float32": 2e-6, "float64": 1e-12}
_SEQUENCE_LENGTHS: Final = 4  # which input of a recurrent operator they are
_MOVES: Final = frozenset({"Cast", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})


class OtherEngineError(Exception):
    """The engine compared with cannot run the model; that says nothing about ours."""


@dataclass(frozen=True)
class Comparison:
    """One output: its greatest value, the engine's error, onnxruntime's (None: not run), the error allowed."""

    output: str
    greatest: float
    error: float
    other: float | None
    allowed: float

    @property
    def holds(self) -> bool:
        """Whether the engine's error is allowed."""
        return self.error <= self.allowed


def compared(
    model: Model, other: Callable[[Feeds], Mapping[str, np.ndarray]] | None, seed: int, rounds: int
) -> list[Comparison]:
    """The model against its definition on random feeds, the worst of all rounds by output.

    ``other``: another engine to show beside it.

    Raises OtherEngineError if that one fails, and what running the model or its definition raises.
    """
    draw = np.random.default_rng(seed)
    shapes = probe_shapes(model.graph)
    worst: dict[str, Comparison] = {}
    for _ in range(rounds):
        feeds = random_feeds(model.graph, shapes, draw)
        exact = reference.run(model.graph, feeds)
        ours = model.run(feeds)
        theirs = other(feeds) if other is not None else {}
        for name in exact:
            worst[name] = _worse(
                worst.get(name), _compared(name, exact[name], ours[name], theirs.get(name), model.element)
            )
    return list(worst.values())


def random_feeds(graph: Graph, shapes: Mapping[str, Sequence[int]], draw: np.random.Generator) -> dict[str, np.ndarray]:
    """Normal numbers; token ids, places and lengths within what reads them; other integers 0 or 1."""
    feeds = {}
    for spec in graph.inputs:
        shape, dtype = tuple(shapes[spec.name]), np.dtype(spec.dtype)
        if dtype.kind == "f":
            feeds[spec.name] = draw.standard_normal(shape).astype(dtype)
        else:
            low, high = _range(graph, spec.name, shapes)
            feeds[spec.name] = draw.integers(low, high, shape).astype(dtype)
    return feeds


def _range(graph: Graph, name: str, shapes: Mapping[str, Sequence[int]]) -> tuple[int, int]:
    """Which integers an input may hold, by the nodes that read it: from the first to below the second."""
    consumers = graph.consumers()
    waiting, sizes = [name], []
    while waiting:
        tensor = waiting.pop()
        for node in consumers.get(tensor, ()):
            if node.op == "Gather" and node.input(1) == tensor and node.input(0) in graph.constants:
                table = graph.constants[node.input(0)]
                sizes.append(table.shape[int(node.attributes.get("axis", 0))])
            elif node.op in ("LSTM", "GRU", "RNN") and node.input(_SEQUENCE_LENGTHS) == tensor:
                return 1, 1 + _steps(node, graph, shapes)
            elif node.op in _MOVES:
                waiting += [output for output in node.outputs if output]
    return 0, min(sizes, default=2)


def _steps(node: Node, graph: Graph, shapes: Mapping[str, Sequence[int]]) -> int:
    """How many steps a recurrent node takes at these input shapes."""
    from ..passes.shapes import specialise

    known = specialise(graph, {name: tuple(shape) for name, shape in shapes.items()})
    return int(known.shapes[node.input(0)][1 if node.attributes.get("layout") else 0])


def _compared(name: str, exact: np.ndarray, ours: np.ndarray, theirs: np.ndarray | None, element: str) -> Comparison:
    finite = exact[np.isfinite(exact)].astype(np.float64)
    greatest = float(np.abs(finite).max(initial=0.0))
    allowed = TOLERANCES[element] * max(1.0, float(np.ptp(finite)) if finite.size else 0.0)
    return Comparison(name, greatest, _error(exact, ours), None if theirs is None else _error(exact, theirs), allowed)


def _error(exact: np.ndarray, got: np.ndarray) -> float:
    """The greatest difference; infinite where one has a number and the other none, or shapes differ."""
    if exact.shape != got.shape:
        return float("inf")
    exact, got = exact.astype(np.float64), got.astype(np.float64)
    same = (exact == got) | (np.isnan(exact) & np.isnan(got))
    with np.errstate(invalid="ignore"):
        difference = np.where(same, 0.0, np.abs(exact - got))
    return float(np.nan_to_num(difference, nan=np.inf, posinf=np.inf).max(initial=0.0))


def _worse(known: Comparison | None, new: Comparison) -> Comparison:
    """Of two rounds the one whose error is the greater part of what is allowed; onnxruntime's greatest error."""
    if known is None:
        return new
    worst = max(known, new, key=lambda c: c.error / c.allowed)
    others = [c.other for c in (known, new) if c.other is not None]
    return Comparison(worst.output, worst.greatest, worst.error, max(others, default=None), worst.allowed)


def onnxruntime_of(path: str) -> tuple[Callable[[Feeds], Mapping[str, np.ndarray]] | None, str]:
    """onnxruntime on the same file; None and why, if it cannot serve."""
    if importlib.util.find_spec("onnxruntime") is None:
        return None, "onnxruntime is not installed"
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session: Any = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as fault:  # its errors have no common type
        return None, f"onnxruntime does not take it: {_first_line(fault)}"
    takes = {entry.name for entry in session.get_inputs()} | {e.name for e in session.get_overridable_initializers()}
    gives = [entry.name for entry in session.get_outputs()]

    def run(feeds: Feeds) -> Mapping[str, np.ndarray]:
        try:
            results = session.run(gives, {name: value for name, value in feeds.items() if name in takes})
        except Exception as fault:
            raise OtherEngineError(f"onnxruntime fails to run it: {_first_line(fault)}") from fault
        return dict(zip(gives, results, strict=True))

    return run, ""


def _first_line(fault: Exception) -> str:
    return next(iter(str(fault).splitlines()), type(fault).__name__)


def table_of(comparisons: Sequence[Comparison]) -> Table:
    """The comparisons, for people."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    beside = any(c.other is not None for c in comparisons)
    headings = [
        "output",
        "greatest value",
        "greatest error",
        "allowed",
        *(["onnxruntime's error"] if beside else []),
        "",
    ]
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("output", "") else "right", overflow="fold")
    for c in comparisons:
        numbers = [f"{c.greatest:.4g}", f"{c.error:.2e}", f"{c.allowed:.2e}"]
        numbers += ["" if c.other is None else f"{c.other:.2e}"] if beside else []
        verdict = Text("agrees", "green") if c.holds else Text("DIFFERS", "bold red")
        table.add_row(Text(c.output), *numbers, verdict)
    return table
