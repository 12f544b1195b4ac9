"""Reads matrices off expressions: an array of sums of products with constants as W·basis + d∘atoms + b."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from .elements import Elements, Ids, Kind

#: Sums nested deeper than this are not taken apart, nor those of more summands: a gate has a handful of either.
MOST_NESTED: Final = 64
MOST_SUMMANDS: Final = 256


@dataclass
class Affine:
    """N affine expressions for each of B rows, alike in all rows but for what they read.

    ``products``: (basis[B,K], matrix[N,K]) pairs, the vectors that are multiplied with matrices.
    ``atoms``: (places[n], ids[B,n], factors[n]), what enters some of the N expressions as it is, but for a factor.
    """

    bias: np.ndarray
    products: list[tuple[Ids, np.ndarray]] = field(default_factory=list)
    atoms: list[tuple[np.ndarray, Ids, np.ndarray]] = field(default_factory=list)


class NotAffineError(Exception):
    """The rows of a batch are not computed alike, or there are too many summands."""


def affine(table: Elements, ids: Ids, whole: Ids | None = None, *, matrices: bool = True) -> Affine:
    """ids[B,N] as affine expressions. Those that are among ``whole`` are not taken apart.

    Without ``matrices`` it is only told what they are multiplied with: the matrices are empty.

    Raises NotAffineError where the rows of the batch are not computed alike, or sums are endless.
    """
    found = Affine(np.zeros(ids.shape[1]))
    products: dict[bytes, tuple[Ids, np.ndarray]] = {}
    atoms = np.zeros(0, np.int64) if whole is None else whole[0]
    everything = _Opener(table, atoms).parts(ids, np.arange(ids.shape[1]), np.ones(ids.shape[1]), 0)
    for count, (places, factors, part) in enumerate(everything):
        if count == MOST_SUMMANDS:
            raise NotAffineError
        kind = table.kinds(part[0, :1])[0]
        if kind == Kind.CONSTANT:
            found.bias[places] += factors * _alike(table.numbers(part))
        elif kind == Kind.DOT:
            for where, basis, matrix in _dots(table, part):
                key = basis.tobytes()
                if key not in products:
                    products[key] = (basis, np.zeros((ids.shape[1] if matrices else 0, basis.shape[1])))
                if matrices:
                    products[key][1][places[where]] += factors[where, None] * matrix
        else:
            found.atoms.append((places, part, factors))
    found.products = list(products.values())
    return found


def _alike(values: np.ndarray) -> np.ndarray:
    """The row that all rows are equal to."""
    if (values != values[:1]).any():
        raise NotAffineError
    row: np.ndarray = values[0]
    return row


@dataclass(frozen=True)
class _Opener:
    """Takes sums apart, down to what is among ``atoms``."""

    table: Elements
    atoms: np.ndarray

    def parts(
        self, ids: Ids, places: np.ndarray, factors: np.ndarray, depth: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray, Ids]]:
        """The summands, each for some of the places, of one kind and with a constant factor each."""
        whole = np.isin(ids[0], self.atoms)
        if whole.any():
            yield places[whole], factors[whole], ids[:, whole]
            ids, places, factors = ids[:, ~whole], places[~whole], factors[~whole]
        for kind in np.unique(_alike(self.table.kinds(ids))):
            chosen = self.table.kinds(ids[0]) == kind
            yield from self._opened(Kind(kind), ids[:, chosen], places[chosen], factors[chosen], depth)

    def _opened(
        self, kind: Kind, ids: Ids, places: np.ndarray, factors: np.ndarray, depth: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray, Ids]]:
        left, right, _ = self.table.operands(ids)
        deeper = depth + 1
        if depth == MOST_NESTED:
            yield places, factors, ids
        elif kind == Kind.NEG:
            yield from self.parts(left, places, -factors, deeper)
        elif kind in (Kind.ADD, Kind.SUB):
            yield from self.parts(left, places, factors, deeper)
            yield from self.parts(right, places, factors if kind == Kind.ADD else -factors, deeper)
        elif kind in (Kind.MUL, Kind.DIV):
            rest = np.ones(len(places), bool)
            for scale, scaled in ((right, left), (left, right))[: 2 if kind == Kind.MUL else 1]:
                numbers = self.table.numbers(scale)
                chosen = rest & ~np.isnan(numbers).any(axis=0)
                rest &= ~chosen
                if chosen.any():
                    number = _alike(numbers[:, chosen])
                    new = factors[chosen] * number if kind == Kind.MUL else factors[chosen] / number
                    yield from self.parts(scaled[:, chosen], places[chosen], new, deeper)
            if rest.any():
                yield places[rest], factors[rest], ids[:, rest]
        else:
            yield places, factors, ids


def _dots(table: Elements, ids: Ids) -> Iterator[tuple[np.ndarray, Ids, np.ndarray]]:
    """Products of a vector and a matrix: for some of the places, the vector of each row and a row of W each."""
    vectors, matrices, columns = table.operands(ids)
    numbers, chosen_columns = _alike(matrices), _alike(columns)
    for vector, number in sorted({*zip(vectors[0].tolist(), numbers.tolist(), strict=True)}):
        where = np.flatnonzero((vectors[0] == vector) & (numbers == number))
        if (vectors[:, where] != vectors[:, where[:1]]).any():
            raise NotAffineError
        basis = np.stack([table.vectors[row] for row in vectors[:, where[0]]])
        yield where, basis, table.matrices[number][:, chosen_columns[where]].T
