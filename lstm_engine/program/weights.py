"""The forms weights are held in, as the kernels read them (kernels/weights.py draws them): packing and sizes."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from ..machine import target
from ..precision import LEVELS, PRECISIONS, bfloat16, int8_levels
from .arena import ALIGNMENT

LANES = 16
SCALE_BYTES = 4


class Form:
    """Weights of the element type. A part is what one operand meets in a block of outputs: [K][G][16].

    ``pace``: products that take the time of one of float32, roughly.
    """

    pace = 1

    def __init__(self, precision: str) -> None:
        self.precision = precision
        self.dtype: np.dtype[Any] = np.dtype(PRECISIONS[precision])

    def part_bytes(self, depth: int, vectors: int) -> int:
        """Bytes of a part of K = ``depth``."""
        return depth * vectors * LANES * self.dtype.itemsize

    def row_bytes(self, width: int) -> int:
        """Bytes of a row in the form the products take it; 0: as it is."""
        return 0

    def parts(self, values: np.ndarray) -> np.ndarray:
        """values[blocks, K, G, 16] as uint8[blocks, part_bytes]."""
        return _bytes(values.astype(self.dtype))


class Half(Form):
    """bfloat16: words of two weights of neighbouring k, the even one in the low half."""

    def part_bytes(self, depth: int, vectors: int) -> int:
        """As Form.part_bytes()."""
        return -(-depth // 2) * vectors * LANES * 4

    def row_bytes(self, width: int) -> int:
        """Rows are rounded to bfloat16 where products take them so."""
        return -(-2 * width // ALIGNMENT) * ALIGNMENT if target().bf16 else 0

    def parts(self, values: np.ndarray) -> np.ndarray:
        """As Form.parts()."""
        halves = _even(bfloat16(values).view(np.uint32) >> 16, 2)
        return _bytes(halves[:, 0::2] | halves[:, 1::2] << 16)


class Byte(Form):
    """int8 with a scale for each output: sums of weights, scales, groups of four weights of neighbouring k."""

    pace = 4

    def part_bytes(self, depth: int, vectors: int) -> int:
        """As Form.part_bytes()."""
        return (2 + -(-depth // 4)) * vectors * LANES * 4 if depth else 0

    def row_bytes(self, width: int) -> int:
        """A scale, and the row in whole vectors of bytes."""
        return -(-(-(-width // LANES) * LANES + SCALE_BYTES) // ALIGNMENT) * ALIGNMENT

    def parts(self, values: np.ndarray) -> np.ndarray:
        """As Form.parts(), rounded."""
        blocks, depth, vectors, lanes = values.shape
        if not depth:
            return np.zeros((blocks, 0), np.uint8)
        levels, scales = int8_levels(values, axis=1)
        sums = -(LEVELS + 1) * levels.sum(axis=1, dtype=np.int32)
        groups = _even(levels, 4).reshape(blocks, -(-depth // 4), 4, vectors, lanes).transpose(0, 1, 3, 4, 2)
        return np.concatenate([_bytes(sums), _bytes(scales.astype(np.float32)), _bytes(groups)], axis=1)


def form_of(precision: str) -> Form:
    """The form of a precision."""
    return {"bfloat16": Half, "int8": Byte}.get(precision, Form)(precision)


def _bytes(array: np.ndarray) -> np.ndarray:
    flat: np.ndarray = np.ascontiguousarray(array).reshape(array.shape[0], prod(array.shape[1:])).view(np.uint8)
    return flat


def _even(values: np.ndarray, group: int) -> np.ndarray:
    """Zeros behind the last k, up to whole groups."""
    rest = -values.shape[1] % group
    return np.pad(values, ((0, 0), (0, rest), *((0, 0),) * (values.ndim - 2)))
