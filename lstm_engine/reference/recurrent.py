"""LSTM, GRU and RNN as equations: one line each, every attribute of the ONNX operators.

Weights are in ONNX's order: LSTM gates i, o, f, g; GRU gates z, r, h; peepholes i, o, f.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from ..errors import InputError
from .cells import Activation, CellAttributes
from .layers import layer_of
from .registry import Array, operator

# --- the LSTM ---------------------------------------------------------------------------------------------------------


class Gates(NamedTuple):
    """The four gate blocks of a stacked array, in ONNX's order."""

    i: Array
    o: Array
    f: Array
    g: Array


def lstm_step(x: Array, h: Array, c: Array, weights: LstmWeights, cell: LstmCell) -> tuple[Array, Array, Gates]:
    """One time step: x[B,I], h[B,P or H], c[B,H] → h[B,P or H], c[B,H] and the gates [B,H] each."""
    W, R, b, p = weights.W, weights.R, weights.b, weights.p
    σ, bounded = cell.gate, cell.bounded

    # 1  forget gate: what of the old cell state to keep
    f = σ(bounded(x @ W.f.T + h @ R.f.T + b.f + p.f(c)))
    # 2  input gate and candidate: which entries to update, and the values they could take
    i = σ(bounded(x @ W.i.T + h @ R.i.T + b.i + p.i(c)))
    g = cell.candidate(bounded(x @ W.g.T + h @ R.g.T + b.g))
    if cell.input_forget:
        f = 1 - i
    # 3  cell update
    c = f * c + i * g
    # 4  output gate (its peephole sees the new cell state)
    o = σ(bounded(x @ W.o.T + h @ R.o.T + b.o + p.o(c)))
    h = o * cell.output(c)

    if weights.projection is not None:
        h = h @ weights.projection.T
    return h, c, Gates(i, o, f, g)


@operator("LSTM")
def lstm(
    X: Array,
    W: Array,
    R: Array,
    B: Array | None = None,
    sequence_lens: Array | None = None,
    initial_h: Array | None = None,
    initial_c: Array | None = None,
    P: Array | None = None,
    projection: Array | None = None,
    *,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    input_forget: int = 0,
    layout: int = 0,
) -> tuple[Array, Array, Array]:
    """Long short-term memory over a sequence.

    X[T,B,I] W[D,4H,I] R[D,4H,H] B[D,8H] sequence_lens[B] initial_h[D,B,H] initial_c[D,B,H] P[D,3H]
    → Y[T,D,B,H] Y_h[D,B,H] Y_c[D,B,H]; with layout=1 X[B,T,I], initial_*[B,D,H] → Y[B,T,D,H] Y_h[B,D,H] Y_c[B,D,H].
    With projection[D,P,H], an extension of ONNX: R[D,4H,P] initial_h[D,B,P] → Y[T,D,B,P] Y_h[D,B,P].
    """
    layer = layer_of("LSTM", locals())
    X, initial_h, initial_c = time_first(layer.cell.layout, X, initial_h, initial_c)
    h0 = np.zeros((*layer.sized("D", "B"), R.shape[2]), X.dtype) if initial_h is None else initial_h
    c0 = np.zeros(layer.sized("D", "B", "H"), X.dtype) if initial_c is None else initial_c

    runs = []
    for d, way in enumerate(layer.cell.directions):
        weights = LstmWeights.of(d, W, R, B, P, projection)
        step = partial(_lstm_state, weights=weights, cell=LstmCell.of(layer.cell, d))
        runs.append(scan(step, X, (h0[d], c0[d]), sequence_lens, way))
    Y, (Y_h, Y_c) = stacked(runs, layer.cell.layout)
    return Y, Y_h, Y_c


def _lstm_state(x: Array, state: State, weights: LstmWeights, cell: LstmCell) -> State:
    h, c = state
    h, c, _ = lstm_step(x, h, c, weights, cell)
    return h, c


class Peepholes(NamedTuple):
    """What each gate adds of the cell state; without peepholes exactly nothing, even where c is infinite."""

    i: Callable[[Array], Array | float]
    o: Callable[[Array], Array | float]
    f: Callable[[Array], Array | float]

    @staticmethod
    def of(P: Array | None) -> Peepholes:
        """From the stacked P[3H]."""
        if P is None:
            return Peepholes(*[lambda c: 0.0] * 3)
        return Peepholes(*(lambda c, p=p: p * c for p in np.split(P, 3)))


@dataclass(frozen=True, slots=True)
class LstmWeights:
    """The weights of one direction, by gate: W[H,I] R[H,P or H] b[H] each; projection[P,H]."""

    W: Gates
    R: Gates
    b: Gates
    p: Peepholes
    projection: Array | None

    @staticmethod
    def of(d: int, W: Array, R: Array, B: Array | None, P: Array | None, projection: Array | None) -> LstmWeights:
        """Direction ``d`` of the ONNX inputs."""
        b = np.zeros(W.shape[1], W.dtype) if B is None else np.add(*np.split(B[d], 2))
        return LstmWeights(
            Gates(*np.split(W[d], 4)),
            Gates(*np.split(R[d], 4)),
            Gates(*np.split(b, 4)),
            Peepholes.of(None if P is None else P[d]),
            None if projection is None else projection[d],
        )


@dataclass(frozen=True, slots=True)
class LstmCell:
    """The functions of one direction: ONNX's f, g and h, and what bounds the inputs of f and g."""

    gate: Activation
    candidate: Activation
    output: Activation
    bounded: Callable[[Array], Array]
    input_forget: bool

    @staticmethod
    def of(attributes: CellAttributes, d: int) -> LstmCell:
        """Direction ``d`` of the attributes."""
        gate, candidate, output = attributes.activations[d]
        return LstmCell(gate, candidate, output, attributes.bounded, attributes.input_forget)


# --- GRU and RNN ------------------------------------------------------------------------------------------------------


class UpdateGates(NamedTuple):
    """The three blocks of a GRU's stacked array: update gate z, reset gate r, new state n (ONNX: h)."""

    z: Array
    r: Array
    n: Array


def gru_step(
    x: Array, h: Array, W: UpdateGates, R: UpdateGates, b: UpdateGates, rb: UpdateGates, cell: GruCell
) -> Array:
    """One time step: x[B,I], h[B,H] → h[B,H]."""
    σ, bounded = cell.gate, cell.bounded
    z = σ(bounded(x @ W.z.T + h @ R.z.T + b.z + rb.z))
    r = σ(bounded(x @ W.r.T + h @ R.r.T + b.r + rb.r))
    past = r * (h @ R.n.T + rb.n) if cell.linear_before_reset else (r * h) @ R.n.T + rb.n
    n = cell.candidate(bounded(x @ W.n.T + past + b.n))
    return (1 - z) * n + z * h


@operator("GRU")
def gru(
    X: Array,
    W: Array,
    R: Array,
    B: Array | None = None,
    sequence_lens: Array | None = None,
    initial_h: Array | None = None,
    *,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
    linear_before_reset: int = 0,
) -> tuple[Array, Array]:
    """Gated recurrent unit over a sequence.

    X[T,B,I] W[D,3H,I] R[D,3H,H] B[D,6H] sequence_lens[B] initial_h[D,B,H] → Y[T,D,B,H] Y_h[D,B,H].
    """
    layer = layer_of("GRU", locals())
    X, initial_h = time_first(layer.cell.layout, X, initial_h)
    h0 = np.zeros(layer.sized("D", "B", "H"), X.dtype) if initial_h is None else initial_h

    runs = []
    for d, way in enumerate(layer.cell.directions):
        b = np.zeros(2 * W.shape[1], X.dtype) if B is None else B[d]
        blocks = [UpdateGates(*np.split(part, 3)) for part in (W[d], R[d], *np.split(b, 2))]
        step = partial(_gru_state, blocks=blocks, cell=GruCell.of(layer.cell, d))
        runs.append(scan(step, X, (h0[d],), sequence_lens, way))
    Y, (Y_h,) = stacked(runs, layer.cell.layout)
    return Y, Y_h


def _gru_state(x: Array, state: State, blocks: Sequence[UpdateGates], cell: GruCell) -> State:
    (h,), (W, R, b, rb) = state, blocks
    return (gru_step(x, h, W, R, b, rb, cell),)


@dataclass(frozen=True, slots=True)
class GruCell:
    """The functions of one direction: ONNX's f and g, and what bounds their inputs."""

    gate: Activation
    candidate: Activation
    bounded: Callable[[Array], Array]
    linear_before_reset: bool

    @staticmethod
    def of(attributes: CellAttributes, d: int) -> GruCell:
        """Direction ``d`` of the attributes."""
        gate, candidate = attributes.activations[d]
        return GruCell(gate, candidate, attributes.bounded, attributes.linear_before_reset)


def rnn_step(
    x: Array, h: Array, W: Array, R: Array, b: Array, f: Activation, bounded: Callable[[Array], Array]
) -> Array:
    """One time step: x[B,I], h[B,H] → h[B,H]."""
    return f(bounded(x @ W.T + h @ R.T + b))


@operator("RNN")
def rnn(
    X: Array,
    W: Array,
    R: Array,
    B: Array | None = None,
    sequence_lens: Array | None = None,
    initial_h: Array | None = None,
    *,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
) -> tuple[Array, Array]:
    """Simple recurrent network over a sequence.

    X[T,B,I] W[D,H,I] R[D,H,H] B[D,2H] sequence_lens[B] initial_h[D,B,H] → Y[T,D,B,H] Y_h[D,B,H].
    """
    layer = layer_of("RNN", locals())
    X, initial_h = time_first(layer.cell.layout, X, initial_h)
    h0 = np.zeros(layer.sized("D", "B", "H"), X.dtype) if initial_h is None else initial_h

    runs = []
    for d, way in enumerate(layer.cell.directions):
        (f,) = layer.cell.activations[d]
        b = np.zeros(W.shape[1], X.dtype) if B is None else np.add(*np.split(B[d], 2))
        step = partial(_rnn_state, W=W[d], R=R[d], b=b, f=f, bounded=layer.cell.bounded)
        runs.append(scan(step, X, (h0[d],), sequence_lens, way))
    Y, (Y_h,) = stacked(runs, layer.cell.layout)
    return Y, Y_h


def _rnn_state(x: Array, state: State, **fixed: Any) -> State:
    (h,) = state
    return (rnn_step(x, h, **fixed),)


# --- over time --------------------------------------------------------------------------------------------------------

State: TypeAlias = tuple[Array, ...]


def scan(
    step: Callable[[Array, State], State], X: Array, state: State, sequence_lens: Array | None, way: str
) -> tuple[Array, State]:
    """Run ``step`` along X[T,B,I] in one direction → y[T,B,H], the first part of each state, and the last state.

    Only each row's first sequence_lens[B] steps count: y is 0 beyond them, the last state is the one after them,
    and a row without any has a last state of zeros.
    """
    T, batch = X.shape[:2]
    lengths = np.full(batch, T) if sequence_lens is None else checked_lengths(sequence_lens, T)
    if way == "reverse":
        X = reverse_valid(X, lengths)
    y = np.zeros((T, *state[0].shape), X.dtype)
    for t in range(T):
        valid = (t < lengths)[:, None]
        state = tuple(np.where(valid, new, old) for new, old in zip(step(X[t], state), state, strict=True))
        y[t] = np.where(valid, state[0], 0)
    if way == "reverse":
        y = reverse_valid(y, lengths)
    if sequence_lens is not None:
        state = tuple(np.where((lengths > 0)[:, None], part, 0).astype(part.dtype) for part in state)
    return y, state


def reverse_valid(x: Array, lengths: Array) -> Array:
    """Reverse the first lengths[b] steps of each row of x[T,B,...] and leave the rest where it is."""
    t = np.arange(x.shape[0])[:, None]
    source = np.where(t < lengths, lengths - 1 - t, t)
    return x[source, np.arange(x.shape[1])]


def checked_lengths(sequence_lens: Array, T: int) -> Array:
    """sequence_lens[B], refused where a row would be longer than the T steps there are."""
    wrong = sequence_lens[(sequence_lens < 0) | (sequence_lens > T)]
    if wrong.size:
        raise InputError(f"sequence_lens must lie in 0..T = 0..{T}, got {wrong[0]}")
    return sequence_lens.astype(np.int64)


def time_first(layout: int, X: Array, *states: Array | None) -> tuple[Any, ...]:
    """X and the states as [T,B,...] and [D,B,...] whatever the layout."""
    if layout == 0:
        return (X, *states)
    return (X.swapaxes(0, 1), *(None if s is None else s.swapaxes(0, 1) for s in states))


def stacked(runs: Sequence[tuple[Array, State]], layout: int) -> tuple[Array, State]:
    """Join the directions: y[T,B,H] → Y[T,D,B,H], states[B,H] → [D,B,H]; with layout=1 Y[B,T,D,H], [B,D,H]."""
    Y = np.stack([y for y, _ in runs], axis=1)
    states = tuple(np.stack(parts) for parts in zip(*(state for _, state in runs), strict=True))
    if layout == 0:
        return Y, states
    return Y.transpose(2, 0, 1, 3), tuple(state.swapaxes(0, 1) for state in states)
