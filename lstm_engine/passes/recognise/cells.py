"""The normal forms of recurrent cells: how a new state is made of gates, and gates of affine expressions.

    LSTM  h' = o ∘ φ(c'),  c' = f ∘ c + i ∘ g
    GRU   h' = (1 - z) ∘ n + z ∘ h,  with r inside n before or after the product
    RNN   h' = f(W x + R h + b)

A matcher takes the elements of a new state [B,H] and gives what it can be; the weights are read off afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ...reference import Activation
from ...reference.cells import DEFAULT_ACTIVATIONS
from .affine import NotAffineError, affine
from .elements import Elements, Ids, Kind
from .functions import applied, applied_or_linear, complement

#: What a reset gate times a state is: a product, or the gate times a number where the state is known to be zero.
GATED: Final = (Kind.MUL, Kind.FUNCTION, Kind.MIN, Kind.MAX)


@dataclass(frozen=True, eq=False)
class Gates:
    """A new state taken apart into gates. ``inputs``: what each gate function is applied to, in ONNX's order.

    ``h_old`` and ``c_old`` are None where the form does not tell them.
    """

    op: str
    functions: tuple[Activation, ...]
    inputs: tuple[Ids, ...]
    h_new: Ids
    h_old: Ids | None = None
    c_new: Ids | None = None
    c_old: Ids | None = None


@dataclass(frozen=True, eq=False)
class Cell:
    """A recurrent cell with its weights: x[B,I] elements, weights as float64 in ONNX's shapes without directions."""

    op: str
    functions: tuple[Activation, ...]
    x: Ids
    W: np.ndarray
    R: np.ndarray
    B: np.ndarray
    P: np.ndarray | None
    h_old: Ids | None
    h_new: Ids
    c_old: Ids | None = None
    c_new: Ids | None = None
    linear_before_reset: bool = False

    @property
    def units(self) -> int:
        """H."""
        return int(self.R.shape[1])

    @property
    def inputs(self) -> int:
        """I."""
        return int(self.W.shape[1])

    def attributes(self) -> dict[str, Any]:
        """The attributes of the ONNX node."""
        attributes: dict[str, Any] = {"hidden_size": self.units}
        if tuple(f.name for f in self.functions) != DEFAULT_ACTIVATIONS[self.op]:
            attributes["activations"] = tuple(f.name for f in self.functions)
            for key in ("alpha", "beta"):
                given = tuple(getattr(f, key) for f in self.functions if getattr(f, key) is not None)
                if given:
                    attributes[f"activation_{key}"] = given
        if self.linear_before_reset:
            attributes["linear_before_reset"] = 1
        return attributes

    def alike(self, other: Cell) -> bool:
        """Whether this is the same cell, found at other sizes."""
        arrays = ((self.W, other.W), (self.R, other.R), (self.B, other.B))
        return (
            self.attributes() == other.attributes()
            and self.op == other.op
            and all(np.array_equal(mine, its) for mine, its in arrays)
            and (self.P is None) == (other.P is None)
            and (self.P is None or other.P is None or np.array_equal(self.P, other.P))
        )


# --- forms ------------------------------------------------------------------------------------------------------------


def lstm_forms(table: Elements, h_new: Ids) -> Iterator[Gates]:
    """The ways to read h_new[B,H] as o ∘ φ(f ∘ c + i ∘ g)."""
    for left, right in _factors(table, h_new):
        o, squashed = applied(table, left), applied_or_linear(table, right)
        if o is None:
            continue
        for forget, update in _summands(table, squashed.argument):
            for f_ids, c_old in _factors(table, forget):
                f = applied(table, f_ids)
                if f is None or f.function != o.function:
                    continue
                for i_ids, g_ids in _factors(table, update):
                    i, g = applied(table, i_ids), applied_or_linear(table, g_ids)
                    if i is not None and i.function == o.function:
                        functions = (o.function, g.function, squashed.function)
                        inputs = (i.argument, o.argument, f.argument, g.argument)
                        yield Gates("LSTM", functions, inputs, h_new, None, squashed.argument, c_old)


def gru_forms(table: Elements, h_new: Ids) -> Iterator[Gates]:
    """The ways to read h_new[B,H] as (1 - z) ∘ n + z ∘ h. The reset gate is still within n."""
    for z_ids, off, on in _blends(table, h_new):
        kept = table.binary(Kind.SUB, table.constant(np.float64(1.0)), z_ids)
        for gate, n_ids, h_old in ((z_ids, off, on), (kept, on, off)):
            z, n = applied(table, gate), applied_or_linear(table, n_ids)
            if z is not None:
                yield Gates("GRU", (z.function, n.function), (z.argument, n.argument), h_new, h_old)


def rnn_forms(table: Elements, h_new: Ids) -> Iterator[Gates]:
    """h_new[B,H] as a function of something."""
    f = applied(table, h_new)
    if f is not None:
        yield Gates("RNN", (f.function,), (f.argument,), h_new)


def _factors(table: Elements, ids: Ids) -> tuple[tuple[Ids, Ids], ...]:
    """Both orders of the operands of products."""
    if not table.all_are(ids, Kind.MUL):
        return ()
    left, right, _ = table.operands(ids)
    return (left, right), (right, left)


def _summands(table: Elements, ids: Ids) -> tuple[tuple[Ids, Ids], ...]:
    if not table.all_are(ids, Kind.ADD):
        return ()
    left, right, _ = table.operands(ids)
    return (left, right), (right, left)


def _blends(table: Elements, ids: Ids) -> Iterator[tuple[Ids, Ids, Ids]]:
    """(z, off, on) with ids = (1 - z) ∘ off + z ∘ on, in each way exporters write it."""
    for one, other in _summands(table, ids):
        for rest, off in _factors(table, one):
            z = complement(table, rest)
            for gate, on in _factors(table, other):
                if z is not None and np.array_equal(z, gate):
                    yield z, off, on
        for z, difference in _factors(table, other):
            target = _difference(table, difference, minus=one)
            if target is not None:
                yield z, one, target
    if table.all_are(ids, Kind.SUB):
        off, product, _ = table.operands(ids)
        for z, difference in _factors(table, product):
            if table.all_are(difference, Kind.SUB):
                left, on, _ = table.operands(difference)
                if np.array_equal(left, off):
                    yield z, off, on


def _difference(table: Elements, ids: Ids, minus: Ids) -> Ids | None:
    """x where the elements are x - ``minus``."""
    if not table.all_are(ids, Kind.SUB):
        return None
    left, right, _ = table.operands(ids)
    return left if np.array_equal(right, minus) else None


# --- weights ----------------------------------------------------------------------------------------------------------


class _Inputs:
    """The columns of x: whatever the gates read that is no state."""

    def __init__(self) -> None:
        self.columns: list[Ids] = []
        self._places: dict[int, int] = {}

    def place(self, column: Ids) -> int:
        """Where a column of elements [B] stands in x. Raises NotAffineError if part of it stands elsewhere."""
        first = int(column[0])
        if first not in self._places:
            self._places[first] = len(self.columns)
            self.columns.append(column)
        place = self._places[first]
        if not np.array_equal(self.columns[place], column):
            raise NotAffineError
        return place


class _State:
    """Where the elements of a state[B,H] stand in it."""

    def __init__(self, ids: Ids | None) -> None:
        self.ids = ids
        self._places = {} if ids is None else {int(first): place for place, first in enumerate(ids[0])}

    def place(self, column: Ids) -> int | None:
        """The unit whose elements a column [B] is, if it is one."""
        place = self._places.get(int(column[0]))
        if place is None or self.ids is None or not np.array_equal(self.ids[:, place], column):
            return None
        return place


@dataclass(frozen=True)
class _States:
    """The states a cell may read: h by its recurrent weights, c and c' by peepholes."""

    h: _State
    c: _State
    c_new: _State
    units: int

    @staticmethod
    def of(units: int, h: Ids | None, c: Ids | None = None, c_new: Ids | None = None) -> _States:
        return _States(_State(h), _State(c), _State(c_new), units)


@dataclass
class _Read:
    """N affine expressions sorted by what they read."""

    W: list[tuple[list[int], np.ndarray]]  # columns of x and their weights [N, columns]
    R: np.ndarray  # [N,H]
    bias: np.ndarray  # [N]
    peepholes: np.ndarray  # [N]: what each takes of the old cell state at its own unit
    later_peepholes: np.ndarray  # [N]: and of the new one
    gated: list[tuple[Ids, np.ndarray]]  # products [B,K] of a gate and the state, and their weights [N,K]

    def weights(self, inputs: int) -> np.ndarray:
        """W[N,I]."""
        W = np.zeros((len(self.bias), inputs))
        for columns, matrix in self.W:
            if len(set(columns)) == len(columns):
                W[:, columns] += matrix
            else:
                np.add.at(W.T, np.array(columns), matrix.T)
        return W


def weighted(table: Elements, gates: Gates, h_old: Ids | None) -> Cell | None:
    """The cell with its weights, if its gates read nothing but x, h_old[B,H] and, by peepholes, the cell state.

    Without h_old, for a first step from a state of zeros, there are no recurrent weights: R is zero.
    """
    readers = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}
    try:
        return readers[gates.op](table, gates, h_old)
    except NotAffineError:
        return None


def _lstm(table: Elements, gates: Gates, h_old: Ids | None) -> Cell | None:
    H = gates.h_new.shape[1]
    inputs = _Inputs()
    states = _States.of(H, h_old, gates.c_old, gates.c_new)
    read = _read(table, np.concatenate(gates.inputs, axis=1), inputs, states)
    i, o, f, g = np.split(read.peepholes, 4)
    later_i, later_o, later_f, later_g = np.split(read.later_peepholes, 4)
    if any(part.any() for part in (o, g, later_i, later_f, later_g)):
        return None
    P = np.concatenate([i, later_o, f]) if i.any() or f.any() or later_o.any() else None
    bias = np.concatenate([read.bias, np.zeros(4 * H)])
    return _cell(gates, inputs, read.weights(len(inputs.columns)), read.R, bias, h_old, P)


def _gru(table: Elements, gates: Gates, h_old: Ids | None) -> Cell | None:
    if h_old is not None and table.all_are(h_old, Kind.CONSTANT):
        if table.numbers(h_old).any():
            return None
        h_old = None  # the first step, from a state of zeros
    H = gates.h_new.shape[1]
    z, n = gates.inputs
    inputs = _Inputs()
    states = _States.of(H, h_old)
    candidate = _read(table, n, inputs, states, gated=True)
    reset = _reset_before(table, candidate, states) or _reset_after(table, candidate, h_old)
    gate = None if reset is None else applied(table, reset[0])
    if reset is None or gate is None or gate.function != gates.functions[0] or candidate.R.any():
        return None
    _, R_n, bias_n = reset
    read = _read(table, np.concatenate([z, gate.argument], axis=1), inputs, states)
    W = np.concatenate([part.weights(len(inputs.columns)) for part in (read, candidate)])
    bias = np.concatenate([read.bias, candidate.bias, np.zeros(2 * H), np.zeros(H) if bias_n is None else bias_n])
    R = np.concatenate([read.R, R_n])
    return _cell(gates, inputs, W, R, bias, h_old, linear_before_reset=bias_n is not None)


def _rnn(table: Elements, gates: Gates, h_old: Ids | None) -> Cell | None:
    H = gates.h_new.shape[1]
    inputs = _Inputs()
    read = _read(table, gates.inputs[0], inputs, _States.of(H, h_old))
    bias = np.concatenate([read.bias, np.zeros(H)])
    return _cell(gates, inputs, read.weights(len(inputs.columns)), read.R, bias, h_old)


def _cell(
    gates: Gates,
    inputs: _Inputs,
    W: np.ndarray,
    R: np.ndarray,
    bias: np.ndarray,
    h_old: Ids | None,
    P: np.ndarray | None = None,
    linear_before_reset: bool = False,
) -> Cell | None:
    if not inputs.columns:
        return None
    x = np.stack(inputs.columns, axis=1)
    states = h_old, gates.h_new, gates.c_old, gates.c_new
    return Cell(gates.op, gates.functions, x, W, R, bias, P, *states, linear_before_reset)


def _reset_before(table: Elements, n: _Read, states: _States) -> tuple[Ids, np.ndarray, None] | None:
    """r[B,H] and R of a candidate that multiplies r ∘ h with R."""
    if len(n.gated) != 1:
        return None
    basis, matrix = n.gated[0]
    for r_ids, old in _factors(table, basis):
        places = [states.h.place(column) for column in old.T]
        if sorted(-1 if place is None else place for place in places) == list(range(states.units)):
            order = np.argsort(np.array(places))
            return r_ids[:, order], matrix[:, order], None
    return None


def _reset_after(table: Elements, n: _Read, h_old: Ids | None) -> tuple[Ids, np.ndarray, np.ndarray] | None:
    """r[B,H], R and recurrent bias of a candidate that adds r ∘ (R h + b)."""
    if len(n.gated) != 1:
        return None
    ids, factors = n.gated[0]
    if factors.shape[0] != factors.shape[1] or np.count_nonzero(factors - np.diag(np.diag(factors))):
        return None
    for r_ids, inner in _factors(table, ids):
        if applied(table, r_ids) is None:
            continue
        inputs = _Inputs()
        past = _read(table, inner, inputs, _States.of(ids.shape[1], h_old))
        if not inputs.columns:
            return r_ids, factors @ past.R, factors @ past.bias
    if h_old is None and applied(table, ids) is not None:
        return ids, np.zeros_like(factors), np.diag(factors)
    return None


def _read(table: Elements, ids: Ids, inputs: _Inputs, states: _States, gated: bool = False) -> _Read:
    """ids[B,N] sorted by what they read; what is no state becomes a column of ``inputs``.

    ``gated``: products of two expressions are kept apart. Raises NotAffineError.
    """
    form = affine(table, ids, states.c_new.ids)
    N = ids.shape[1]
    read = _Read([], np.zeros((N, states.units)), form.bias, np.zeros(N), np.zeros(N), [])
    for basis, matrix in form.products:
        _sort_columns(table, read, inputs, states, basis, matrix, _of_state(table, basis, states) & gated)
    for places, part, factors in form.atoms:
        matrix = np.zeros((N, len(places)))
        matrix[places, np.arange(len(places))] = factors
        rest = np.ones(len(places), bool)
        for k, (n, column, factor) in enumerate(zip(places, part.T, factors, strict=True)):
            for state, peepholes in ((states.c, read.peepholes), (states.c_new, read.later_peepholes)):
                if rest[k] and state.place(column) == n % states.units:
                    peepholes[n] += factor
                    rest[k] = False
        part, matrix = part[:, rest], matrix[:, rest]
        _sort_columns(table, read, inputs, states, part, matrix, np.isin(table.kinds(part[0]), GATED) & gated)
    return read


def _of_state(table: Elements, basis: Ids, states: _States) -> np.ndarray:
    """Which columns are the state times something."""
    left, right, _ = table.operands(basis)
    products: np.ndarray = table.kinds(basis[0]) == Kind.MUL
    for k in np.flatnonzero(products):
        products[k] = any(states.h.place(side[:, k]) is not None for side in (left, right))
    return products


def _sort_columns(
    table: Elements,
    read: _Read,
    inputs: _Inputs,
    states: _States,
    basis: Ids,
    matrix: np.ndarray,
    gated: np.ndarray,
) -> None:
    """Add matrix[N,K] times basis[B,K] to what has been read; the columns that are gated[K] are kept apart."""
    kinds = table.kinds(basis[0])
    if gated.any():
        read.gated.append((basis[:, gated], matrix[:, gated]))
    mine: list[int] = []
    places: list[int] = []
    for k in np.flatnonzero(~gated):
        column = basis[:, k]
        unit = states.h.place(column)
        if kinds[k] == Kind.CONSTANT:
            numbers = table.numbers(column)
            if (numbers != numbers[0]).any():
                raise NotAffineError
            read.bias += matrix[:, k] * numbers[0]
        elif unit is not None:
            read.R[:, unit] += matrix[:, k]
        else:
            mine.append(int(k))
            places.append(inputs.place(column))
    if mine:
        read.W.append((places, matrix[:, mine]))
