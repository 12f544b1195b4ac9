"""Arrays as text in a page: decimal numbers of a stated number of digits, each in one, two or four bytes."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

MOST_DIGITS: Final = 4
BYTE, WORD, LONG = 8, 16, 32  # bits of a number
_CODES: Final = {BYTE: "<i1", WORD: "<i2", LONG: "<i4"}
#: Codes, counted from the ends of the range, for what no digits tell.
_KEPT_BACK: Final = 2


def packed(values: np.ndarray, *sizes: int) -> dict[str, Any]:
    """Values as {"d": digits behind the point, "b": bits, "x": base64 of little-endian integers}.

    Of the ``sizes`` (bits; 16 and 32 where none are given), the first that has room for four digits, else the last.
    As many digits (at most four) as the greatest value leaves room for; each value is the nearest such decimal, so
    what a page shows of it is what the value is when written with so many digits. The least integer stands for NaN,
    the one above it and the greatest for the infinities.
    """
    numbers = np.asarray(values, np.float64)
    finite = np.isfinite(numbers)
    greatest = float(np.abs(numbers[finite]).max()) if finite.any() else 0.0
    bits = next(
        (bits for bits in sizes or (WORD, LONG) if _digits(greatest, bits) == MOST_DIGITS), (sizes or (LONG,))[-1]
    )
    digits, top = _digits(greatest, bits), _top(bits)
    codes = np.rint(np.where(finite, numbers, 0.0) * 10.0**digits)
    codes = np.select([np.isnan(numbers), numbers == np.inf, numbers == -np.inf], [-top - 1, top, -top], codes)
    return {"d": digits, "b": bits, "x": _text(codes.astype(_CODES[bits]))}


def _top(bits: int) -> int:
    return int((1 << (bits - 1)) - 1)


def _digits(greatest: float, bits: int) -> int:
    """Digits behind the point (below 0: zeros before it) that leave room for a value."""
    room = _top(bits) - _KEPT_BACK
    return next((d for d in range(MOST_DIGITS, -400, -1) if greatest * 10.0**d < room + 0.5), 0)


def unpacked(packing: Mapping[str, Any]) -> np.ndarray:
    """The values of packed(), flat, as a page has them."""
    codes = np.frombuffer(base64.b64decode(packing["x"]), _CODES[packing["b"]]).astype(np.int64)
    top = _top(packing["b"])
    special = {-top - 1: np.nan, top: np.inf, -top: -np.inf}
    values: np.ndarray = codes / 10.0 ** packing["d"]
    for code, value in special.items():
        values[codes == code] = value
    return values


def fits_a_byte(values: np.ndarray) -> bool:
    """Whether a byte tells values to two digits."""
    return bool(np.isfinite(values).all() and (np.abs(values) <= 1.0).all())


def chosen(words: Sequence[Sequence[str]] | Sequence[str]) -> dict[str, Any]:
    """Texts as {"words": each once, "x": base64 of their indices, 32 bits}; flat, rows one behind the other."""
    flat: list[str] = []
    for entry in words:
        flat.extend([entry] if isinstance(entry, str) else entry)
    places: dict[str, int] = {}
    indices = np.array([places.setdefault(word, len(places)) for word in flat], "<i4")
    return {"words": list(places), "x": _text(indices)}


def _text(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")
