"""LSTM, GRU and RNN nodes of one step as the expressions they stand for, so that a loop around one can be read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from ...graph import Node
from ...reference import Activation, cell_attributes
from .elements import Elements, Ids, Kind

#: Functions that expressions can have; a gate of another one is not opened.
KNOWN: Final = ("Sigmoid", "Tanh", "Relu", "Softsign", "Softplus", "HardSigmoid", "LeakyRelu", "Elu", "ThresholdedRelu")


def opened(
    table: Elements, node: Node, x: Ids, weights: Sequence[np.ndarray | None], states: Sequence[Ids | None]
) -> list[Ids] | None:
    """The elements of Y, Y_h and Y_c of a node over x[1,B,I]; None for a node of another form.

    ``weights``: W[1,GH,I], R[1,GH,H] and B[1,2GH]; ``states``: initial h and c [1,B,H]. None where they are absent.
    """
    cell = cell_attributes(node.op, node.attributes)
    plain = cell.directions == ("forward",) and not cell.layout and cell.clip is None and not cell.input_forget
    W, R, B = weights
    if not plain or W is None or R is None or x.ndim != 3 or len(x) != 1 or len(W) != 1:
        return None
    if any(function.name not in KNOWN for function in cell.activations[0]):
        return None
    H = R.shape[2]
    zeros = table.constant(np.zeros((x.shape[1], H)))
    h, c = (zeros if state is None else state[0] for state in states)
    bias = np.zeros(2 * W.shape[1]) if B is None else B[0]
    forward = table.binary(Kind.ADD, table.dot(x[0], W[0].T), table.constant(bias[: W.shape[1]]))
    past = table.binary(Kind.ADD, table.dot(h, R[0].T), table.constant(bias[W.shape[1] :]))
    functions = cell.activations[0]
    if node.op == "LSTM":
        new = _lstm(table, table.binary(Kind.ADD, forward, past), c, functions)
    elif node.op == "RNN":
        new = [_applied(table, functions[0], table.binary(Kind.ADD, forward, past))]
    elif cell.linear_before_reset:
        new = [_gru(table, forward, past, h, functions)]
    else:
        return None
    return [new[0][None, None], *(state[None] for state in new)]


def _lstm(table: Elements, gates: Ids, c: Ids, functions: Sequence[Activation]) -> list[Ids]:
    σ, candidate, output = functions
    i, o, f, g = np.split(gates, 4, axis=1)
    kept = table.binary(Kind.MUL, _applied(table, σ, f), c)
    added = table.binary(Kind.MUL, _applied(table, σ, i), _applied(table, candidate, g))
    c = table.binary(Kind.ADD, kept, added)
    return [table.binary(Kind.MUL, _applied(table, σ, o), _applied(table, output, c)), c]


def _gru(table: Elements, forward: Ids, past: Ids, h: Ids, functions: Sequence[Activation]) -> Ids:
    σ, candidate = functions
    (z, r, n), (z_past, r_past, n_past) = np.split(forward, 3, axis=1), np.split(past, 3, axis=1)
    z, r = (_applied(table, σ, table.binary(Kind.ADD, *pair)) for pair in ((z, z_past), (r, r_past)))
    n = _applied(table, candidate, table.binary(Kind.ADD, n, table.binary(Kind.MUL, r, n_past)))
    rest = table.binary(Kind.SUB, table.constant(np.ones(z.shape)), z)
    return table.binary(Kind.ADD, table.binary(Kind.MUL, rest, n), table.binary(Kind.MUL, z, h))


def _applied(table: Elements, function: Activation, x: Ids) -> Ids:
    given = {key: value for key in ("alpha", "beta") if (value := getattr(function, key)) is not None}
    return table.function(x, function.name, **given)
