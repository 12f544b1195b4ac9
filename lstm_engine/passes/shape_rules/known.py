"""What is known of a tensor, the table of rules, and the words they are written in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

import numpy as np

from ...errors import ModelFormatError, UnsupportedModelError

Size: TypeAlias = tuple[int, ...]
DType: TypeAlias = np.dtype[Any]


class DataDependentError(UnsupportedModelError):
    """A shape that hangs on values which no shape decides: it is known only as the network runs."""


class Known(NamedTuple):
    """What is known of a tensor. A value may be unknown, a shape never."""

    shape: Size
    dtype: DType
    value: np.ndarray | None = None

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


Rule = TypeVar("Rule", bound=Callable[..., Any])
RULES: Final[dict[str, Callable[..., Any]]] = {}

BOOL: Final = np.dtype(bool)
INT64: Final = np.dtype(np.int64)


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register the shape rule of some operators."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def value_of(known: Known, what: str) -> np.ndarray:
    """The value of an input that decides a shape."""
    if known.value is None:
        raise DataDependentError(f"data-dependent shape: {what} is computed from the feeds")
    return known.value


def optional_value(known: Known | None, what: str) -> np.ndarray | None:
    """The value of an optional input that decides a shape."""
    return None if known is None else value_of(known, what)


def one_type(*inputs: Known | None) -> DType:
    """The type all inputs share."""
    dtypes = list(dict.fromkeys(k.dtype for k in inputs if k is not None))
    if len(dtypes) > 1:
        raise ModelFormatError(f"inputs must have one type, got {' and '.join(map(str, dtypes))}")
    return dtypes[0]


def broadcast(*inputs: Known) -> Size:
    """The shape the inputs broadcast to."""
    try:
        return np.broadcast_shapes(*(k.shape for k in inputs))
    except ValueError:
        shapes = " and ".join(str(list(k.shape)) for k in inputs)
        raise ModelFormatError(f"shapes {shapes} do not broadcast") from None


def fits(name: str, small: Known | None, what: str, big: Size) -> None:
    """Refuse an optional input that broadcasting would not leave within the shape."""
    padded = (1,) * (len(big) - small.rank) + small.shape if small is not None else big
    if len(padded) > len(big) or any(n not in (1, m) for n, m in zip(padded, big, strict=True)):
        raise ModelFormatError(f"{name} {small} does not broadcast to {what} {list(big)}")


def axis_of(axis: int, rank: int) -> int:
    """An axis counted from the front."""
    if not -rank <= axis < rank:
        raise ModelFormatError(f"axis {axis} does not exist in a tensor of rank {rank}")
    return axis % rank


def replaced(shape: Size, axis: int, size: int) -> Size:
    """The shape with another size on one axis."""
    axis = axis_of(axis, len(shape))
    return (*shape[:axis], size, *shape[axis + 1 :])
