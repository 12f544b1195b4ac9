"""How an operator declares itself: its signature is the list of what it honours."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, TypeVar

import numpy as np

Function = TypeVar("Function", bound=Callable[..., Any])

#: An array; or Any, since NumPy types what its functions return so.
Array: TypeAlias = np.ndarray | Any


def quiet() -> AbstractContextManager[Any]:
    """Where floating-point events (overflow of exp, NaN compared, 0/0) are values, not warnings."""
    return np.errstate(all="ignore")


@dataclass(frozen=True, slots=True)
class Operator:
    """An operator of the vocabulary: its definition and exactly what that definition honours."""

    name: str
    function: Callable[..., Any]
    attributes: frozenset[str]
    defaults: Mapping[str, Any]
    min_inputs: int
    max_inputs: int | None
    results: int
    random: bool = False  # draws anew at every call: never folded


OPERATORS: dict[str, Operator] = {}
#: Operators that take or make a sequence of tensors (a list of arrays): they have no shape rule.
SEQUENCES: Final = frozenset({
    "SequenceEmpty", "SequenceConstruct", "SequenceInsert", "SequenceErase", "SequenceAt", "SequenceLength",
    "SplitToSequence", "ConcatFromSequence",
})  # fmt: skip


def operator(name: str, *, random: bool = False) -> Callable[[Function], Function]:
    """Register a function as the definition of an ONNX operator.

    Positional parameters are the inputs (those with a default may be absent, ``*inputs`` is variadic),
    keyword-only parameters are the attributes.
    """

    def register(function: Function) -> Function:
        parameters = inspect.signature(function).parameters.values()
        positional = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        attributes = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
        OPERATORS[name] = Operator(
            name,
            function,
            frozenset(p.name for p in attributes),
            {p.name: p.default for p in attributes if p.default is not p.empty},
            sum(p.default is p.empty for p in positional),
            None if any(p.kind is p.VAR_POSITIONAL for p in parameters) else len(positional),
            _results(function),
            random,
        )
        return function

    return register


def _results(function: Callable[..., Any]) -> int:
    """How many results a definition declares: those of a tuple, else one; ``tuple[Array, ...]`` is any number."""
    declared = str(function.__annotations__.get("return", "Array"))
    if not declared.startswith("tuple["):
        return 1
    return sys.maxsize if "..." in declared else declared.count(",") + 1
