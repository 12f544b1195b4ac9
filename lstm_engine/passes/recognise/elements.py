"""Tensors whose elements are expressions: what a piece of a graph computes, element by element.

A number stands for each expression, and a tensor is an array of such numbers. An operator that only moves elements
moves their numbers (its own definition does it), so Split, Concat, Transpose, Slice and the like need no rules here;
elementwise operators and products with constant matrices make new expressions. Whatever else is met becomes a leaf.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from math import prod
from typing import Final, TypeAlias

import numpy as np

#: Numbers of expressions, in the shape of a tensor.
Ids: TypeAlias = np.ndarray

#: Expressions that one table may hold: a network that asks for more keeps the form it has.
MOST_EXPRESSIONS: Final = 1 << 23


class TooManyError(Exception):
    """The table is full."""


class Kind(IntEnum):
    """What an expression is. ``a``, ``b``, ``c`` are its operands: expressions where not said otherwise."""

    LEAF = 0  # element ``b`` of leaf ``a``
    CONSTANT = 1  # the number ``value``
    DOT = 2  # the vector ``a`` (a number of a vector) times column ``c`` of matrix ``b``
    ADD = 3
    SUB = 4
    MUL = 5
    DIV = 6
    MIN = 7
    MAX = 8
    NEG = 9
    WHERE = 10  # ``b`` where ``a``, else ``c``
    LESS = 11
    LESS_EQUAL = 12
    AND = 13
    NOT = 14
    FUNCTION = 15  # function ``b`` of ``a``


_FOLDED: Final = {
    Kind.ADD: np.add,
    Kind.SUB: np.subtract,
    Kind.MUL: np.multiply,
    Kind.DIV: np.divide,
    Kind.MIN: np.minimum,
    Kind.MAX: np.maximum,
}


class Elements:
    """A table of expressions, each kept once however often an array of them is made."""

    def __init__(self) -> None:
        self._size = 0
        self._kind = np.zeros(1024, np.int8)
        self._operands = np.zeros((3, 1024), np.int64)
        self._value = np.zeros(1024, np.float64)
        self._constants: dict[float, int] = {}
        self._made: dict[tuple[int, bytes, bytes, bytes], Ids] = {}
        self._vectors: dict[bytes, int] = {}
        self.vectors: list[Ids] = []
        self.matrices: list[np.ndarray] = []
        self._matrix_numbers: dict[int, int] = {}
        self.functions: list[tuple[str, tuple[tuple[str, float], ...]]] = []
        self.leaves = 0

    # --- making ------------------------------------------------------------------------------------------------------

    def leaf(self, shape: Sequence[int]) -> Ids:
        """A tensor of which nothing is known."""
        ids = self._new(Kind.LEAF, int(np.prod(shape, dtype=np.int64)))
        self._operands[0, ids] = self.leaves
        self._operands[1, ids] = np.arange(ids.size)
        self.leaves += 1
        return ids.reshape(tuple(shape))

    def constant(self, value: np.ndarray) -> Ids:
        """A known tensor."""
        distinct, places = np.unique(np.asarray(value, np.float64).ravel(), return_inverse=True)
        ids = np.array([self._constant(float(number)) for number in distinct], np.int64)
        return ids[places.reshape(-1)].reshape(np.shape(value))

    def _constant(self, number: float) -> int:
        if number not in self._constants:
            made = int(self._new(Kind.CONSTANT, 1)[0])
            self._value[made] = number
            self._constants[number] = made
        return self._constants[number]

    def dot(self, x: Ids, matrix: np.ndarray) -> Ids:
        """x[..., K] @ matrix[K, N]."""
        number = self._matrix_numbers.get(id(matrix))
        if number is None:
            number = self._matrix_numbers[id(matrix)] = len(self.matrices)
            self.matrices.append(matrix)  # kept, so that its id stays its own
        rows = np.array([self._vector(row) for row in x.reshape(prod(x.shape[:-1]), x.shape[-1])], np.int64)
        columns = np.arange(matrix.shape[1])
        shape = (len(rows), len(columns))
        ids = self._expression(
            Kind.DOT, np.broadcast_to(rows[:, None], shape), np.full(shape, number), np.broadcast_to(columns, shape)
        )
        return ids.reshape(*x.shape[:-1], len(columns))

    def _vector(self, row: Ids) -> int:
        key = row.tobytes()
        if key not in self._vectors:
            self._vectors[key] = len(self.vectors)
            self.vectors.append(row.copy())
        return self._vectors[key]

    def function(self, x: Ids, name: str, **parameters: float) -> Ids:
        """A function of one number, by its operator's name."""
        signature = (name, tuple(sorted(parameters.items())))
        if signature not in self.functions:
            self.functions.append(signature)
        return self._expression(Kind.FUNCTION, x, np.full(x.shape, self.functions.index(signature)))

    def negated(self, x: Ids) -> Ids:
        """-x."""
        return self._expression(Kind.NEG, x)

    def inverted(self, x: Ids) -> Ids:
        """Not x."""
        return self._expression(Kind.NOT, x)

    def where(self, condition: Ids, yes: Ids, no: Ids) -> Ids:
        """Elements of one or the other."""
        return self._expression(Kind.WHERE, *np.broadcast_arrays(condition, yes, no))

    def binary(self, kind: Kind, x: Ids, y: Ids) -> Ids:
        """x ∘ y with broadcasting; what the constants 0 and 1 leave as it is stays as it is."""
        x, y = np.broadcast_arrays(x, y)
        ids = np.empty(x.shape, np.int64)
        numbers_x, numbers_y = self.numbers(x), self.numbers(y)
        left, right = ~np.isnan(numbers_x), ~np.isnan(numbers_y)
        folded = left & right if kind in _FOLDED else np.zeros(x.shape, bool)
        keeps_x = np.zeros(x.shape, bool)
        keeps_y = np.zeros(x.shape, bool)
        if kind in (Kind.MUL, Kind.DIV):
            keeps_x = numbers_y == 1
        if kind == Kind.MUL:
            keeps_y = numbers_x == 1
        if kind in (Kind.ADD, Kind.SUB):
            keeps_x = numbers_y == 0
        if kind == Kind.ADD:
            keeps_y = numbers_x == 0
        keeps_x &= ~folded
        keeps_y &= ~folded & ~keeps_x
        made = ~(folded | keeps_x | keeps_y)
        ids[keeps_x], ids[keeps_y] = x[keeps_x], y[keeps_y]
        if folded.any():
            with np.errstate(all="ignore"):
                ids[folded] = self.constant(_FOLDED[kind](numbers_x[folded], numbers_y[folded]))
        if made.any():
            ids[made] = self._expression(kind, x[made], y[made])
        return ids

    def _expression(self, kind: Kind, *operands: Ids) -> Ids:
        keys = [np.ascontiguousarray(operand, np.int64).tobytes() for operand in operands]
        key = (int(kind), *keys, *(b"",) * (3 - len(keys)))
        known = self._made.get(key)  # type: ignore[arg-type]
        if known is None:
            known = self._new(kind, operands[0].size)
            for place, operand in enumerate(operands):
                self._operands[place, known] = operand.ravel()
            self._made[key] = known  # type: ignore[index]
        return known.reshape(operands[0].shape)

    def _new(self, kind: Kind, count: int) -> Ids:
        end = self._size + count
        if end > MOST_EXPRESSIONS:
            raise TooManyError
        if end > len(self._kind):
            room = max(end, 2 * len(self._kind)) - len(self._kind)
            self._kind = np.concatenate([self._kind, np.zeros(room, np.int8)])
            self._operands = np.concatenate([self._operands, np.zeros((3, room), np.int64)], axis=1)
            self._value = np.concatenate([self._value, np.zeros(room)])
        ids = np.arange(self._size, end)
        self._kind[ids] = kind
        self._size = end
        return ids

    # --- reading -----------------------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """How many expressions there are."""
        return self._size

    def kinds(self, ids: Ids) -> np.ndarray:
        """The kind of each expression."""
        kinds: np.ndarray = self._kind[ids]
        return kinds

    def all_are(self, ids: Ids, kind: Kind) -> bool:
        """Whether every expression is of one kind."""
        return bool(ids.size) and bool((self._kind[ids] == kind).all())

    def operands(self, ids: Ids) -> tuple[Ids, Ids, Ids]:
        """The operands of each expression; what they mean depends on its kind."""
        a, b, c = self._operands[:, ids]
        return a, b, c

    def numbers(self, ids: Ids) -> np.ndarray:
        """The value of each constant, NaN for every other expression (and for a constant NaN)."""
        values: np.ndarray = np.where(self._kind[ids] == Kind.CONSTANT, self._value[ids], np.nan)
        return values
