"""Gate functions as exporters write them, by their names in ONNX's LSTM, GRU and RNN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from ...reference import ACTIVATIONS, Activation
from .elements import Elements, Ids, Kind

#: f(x) = x, as ONNX spells it.
LINEAR: Final = Activation("Affine", 1.0, 0.0)
#: How far s·(1/s) may be from 1 where a file has rounded 1/s to float32.
ROUNDING: Final = 1e-6


@dataclass(frozen=True)
class Applied:
    """A function and what it is applied to."""

    function: Activation
    argument: Ids


def applied(table: Elements, ids: Ids) -> Applied | None:
    """The gate function that makes these elements, or None."""
    for rule in (_named, _clipped, _relu, _complement, _logistic):
        found = rule(table, ids)
        if found is not None:
            return found
    return None


def applied_or_linear(table: Elements, ids: Ids) -> Applied:
    """The gate function that makes these elements; f(x) = x where there is none."""
    return applied(table, ids) or Applied(LINEAR, ids)


def complement(table: Elements, ids: Ids) -> Ids | None:
    """z where the elements are 1 - z."""
    if not table.all_are(ids, Kind.SUB):
        return None
    left, right, _ = table.operands(ids)
    return right if (table.numbers(left) == 1).all() else None


def _named(table: Elements, ids: Ids) -> Applied | None:
    if not table.all_are(ids, Kind.FUNCTION):
        return None
    argument, numbers, _ = table.operands(ids)
    if (numbers != numbers.flat[0]).any():
        return None
    name, parameters = table.functions[int(numbers.flat[0])]
    if name not in ACTIVATIONS:
        return None
    return Applied(Activation(name, **dict(parameters)), argument)


def _clipped(table: Elements, ids: Ids) -> Applied | None:
    """s·clip(x, 0, 1/s): what a HardSigmoid is without its slope, which goes with the weights."""
    scale, within = _scaled(table, ids)
    for outer, inner in ((Kind.MIN, Kind.MAX), (Kind.MAX, Kind.MIN)):
        one = _bounded(table, within, outer)
        other = None if one is None else _bounded(table, one[0], inner)
        if one is None or other is None:
            continue
        bounds = sorted((one[1], other[1]))
        if bounds[0] == 0 and abs(bounds[1] * scale - 1) < ROUNDING:
            slope = table.constant(np.float64(scale))
            return Applied(Activation("HardSigmoid", 1.0, 0.0), table.binary(Kind.MUL, slope, other[0]))
    return None


def _scaled(table: Elements, ids: Ids) -> tuple[float, Ids]:
    """A number and what it multiplies; 1 and the elements themselves where there is none."""
    for kind in (Kind.MUL, Kind.DIV):
        if table.all_are(ids, kind):
            left, right, _ = table.operands(ids)
            for number, rest in ((right, left), (left, right))[: 2 if kind == Kind.MUL else 1]:
                scale = _number(table, number)
                if scale:
                    return (scale if kind == Kind.MUL else 1 / scale), rest
    return 1.0, ids


def _number(table: Elements, ids: Ids) -> float | None:
    """The number that all elements are."""
    numbers = table.numbers(ids)
    first = float(numbers.flat[0])
    return first if (numbers == first).all() else None


def _relu(table: Elements, ids: Ids) -> Applied | None:
    bounded = _bounded(table, ids, Kind.MAX)
    return None if bounded is None or bounded[1] != 0 else Applied(Activation("Relu"), bounded[0])


def _bounded(table: Elements, ids: Ids, kind: Kind) -> tuple[Ids, float] | None:
    """x and the bound where the elements are min(x, bound) or max(x, bound)."""
    if not table.all_are(ids, kind):
        return None
    left, right, _ = table.operands(ids)
    for number, rest in ((right, left), (left, right)):
        bound = _number(table, number)
        if bound is not None:
            return rest, bound
    return None


def _complement(table: Elements, ids: Ids) -> Applied | None:
    """1 - σ(x) = σ(-x), and for the clipped line αx + β: 1 - f(x) is the line of α and 1 - β at -x."""
    inner = complement(table, ids)
    gate = None if inner is None else _named(table, inner) or _clipped(table, inner) or _logistic(table, inner)
    if gate is None or gate.function.name not in ("Sigmoid", "HardSigmoid"):
        return None
    function = gate.function
    if function.name == "HardSigmoid":
        assert function.beta is not None
        function = Activation("HardSigmoid", function.alpha, 1.0 - function.beta)
    return Applied(function, table.negated(gate.argument))


def _logistic(table: Elements, ids: Ids) -> Applied | None:
    """1 / (1 + exp(-x))."""
    if not table.all_are(ids, Kind.DIV):
        return None
    one, sum_, _ = table.operands(ids)
    if not (table.numbers(one) == 1).all() or not table.all_are(sum_, Kind.ADD):
        return None
    for one, power in (table.operands(sum_)[:2], table.operands(sum_)[1::-1]):
        if (table.numbers(one) == 1).all() and table.all_are(power, Kind.FUNCTION):
            argument, numbers, _ = table.operands(power)
            if all(table.functions[number][0] == "Exp" for number in np.unique(numbers)):
                return Applied(Activation("Sigmoid"), table.negated(argument))
    return None
