"""The second net: a recognised cell computes what the nodes it stands for compute, on numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from ...errors import LstmEngineError
from ...graph import Graph, Node
from ...reference import OPERATORS, run
from ...reference.registry import quiet
from .cells import Cell
from .trace import Trace

#: How far the two may be apart, relative to the largest value: weights that were added up are rounded once.
TOLERANCE: Final = 1e-5
SEED: Final = 20261122


def agrees(trace: Trace, cell: Cell, dtype: np.dtype[np.generic]) -> bool:
    """Whether one step of the cell gives what its nodes give: random, zero, saturating and one-sided values."""
    new = [ids for ids in (cell.h_new, cell.c_new) if ids is not None]
    names = [trace.holder(ids) for ids in new]
    if any(name is None for name in names):
        return False
    nodes = _slice(trace, [name for name in names if name is not None])
    weights = [array.astype(dtype).astype(np.float64)[None] for array in (cell.W, cell.R, cell.B)]
    fixed = _constants(trace, nodes)
    for draw in _draws():
        values = _values(trace, nodes, fixed, draw)
        if values is None:
            return False
        for expected, got in zip([values[ids] for ids in new], _stepped(cell, values, weights), strict=False):
            reach = max(1.0, float(np.abs(expected).max(initial=0)))
            if not np.allclose(got, expected, rtol=0, atol=TOLERANCE * reach):
                return False
    return True


def _draws() -> Iterator[np.ndarray]:
    """Numbers to draw from, for one step each."""
    rng = np.random.default_rng(SEED)
    yield from (rng.normal(size=4096), np.zeros(1), 50 * rng.normal(size=4096), rng.uniform(0, 1, 4096))


def _slice(trace: Trace, names: list[str]) -> list[Node]:
    """The nodes between the leaves and some tensors, in order."""
    needed: dict[str, bool] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        node = trace.producers.get(name)
        if name in needed or node is None or name in trace.leaves or trace.value(name) is not None:
            continue
        needed[name] = True
        waiting.extend(i for i in node.inputs if i)
    chosen = {id(trace.producers[name]): trace.producers[name] for name in needed}
    return [node for node in trace.order if id(node) in chosen]


def _constants(trace: Trace, nodes: list[Node]) -> dict[str, np.ndarray]:
    """What the nodes read that no feed can change, in float64."""
    found = {}
    for name in sorted({name for node in nodes for name in node.inputs if name}):
        value = trace.value(name)
        if value is not None:
            found[name] = value.astype(np.float64) if value.dtype.kind == "f" else value
    return found


def _values(trace: Trace, nodes: list[Node], constants: dict[str, np.ndarray], draw: np.ndarray) -> np.ndarray | None:
    """The value of every expression the nodes make, by its number; NaN where they do not make it."""
    made = {name for node in nodes for name in node.outputs if name}
    read = {name for node in nodes for name in node.inputs if name} - made - set(constants)
    feeds = {}
    rng = np.random.default_rng(SEED)
    for name in sorted(read | (set(trace.leaves) - made)):
        ids = trace.found.get(name)
        if ids is None:
            return None
        feeds[name] = rng.choice(draw, ids.shape)
    graph = Graph(tuple(nodes), (), (), {**constants, **feeds}, opset=0)
    try:
        results = run(graph, {}, outputs=sorted(made))
    except LstmEngineError:
        return None
    values = np.full(trace.table.size, np.nan)
    for name, array in {**feeds, **constants, **results}.items():
        ids = trace.found.get(name)
        if ids is not None and ids.shape == array.shape:
            values[ids] = array
    return values


def _stepped(cell: Cell, values: np.ndarray, weights: list[np.ndarray]) -> Iterator[np.ndarray]:
    """h'[B,H] and c'[B,H] of the cell, by the definition of its operator, with weights as the new node has them."""
    states = [None if ids is None else values[ids][None] for ids in (cell.h_old, cell.c_old)]
    inputs = [values[cell.x][None], *weights, None, *states]
    if cell.op == "LSTM" and cell.P is not None:
        inputs.append(cell.P[None])
    if cell.op != "LSTM":
        inputs = inputs[:6]
    with quiet():
        _, *new = OPERATORS[cell.op].function(*inputs, **cell.attributes())
    yield from (state[0] for state in new)
