"""Every error the engine raises on purpose.

    LstmEngineError
    ├── ModelFormatError        not a readable model file                   (also ValueError)
    ├── UnsupportedModelError   readable, but asks for what is not implemented
    ├── InputError              a feed of the wrong name, rank, size or dtype (also ValueError)
    ├── StreamingError          the model needs the whole sequence at once
    ├── StateError              a state that does not belong to this stream
    ├── BusyError               more waits already than was said may wait
    ├── ClusterError            actors or stores of a cluster that do not answer
    ├── TargetError             machine code for a CPU that cannot be had      (also ValueError)
    └── MissingExtraError       a package that an optional part needs is not installed

A message says: subject, what was expected (in named dimensions), what was got, where it came from
and what to do about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar


class LstmEngineError(Exception):
    """Base of all errors of this package. ``row``: that of a column which is at fault, where it is one's."""

    row: int | None = None


class ModelFormatError(LstmEngineError, ValueError):
    """The file is damaged, is no model, or contradicts itself."""


class UnsupportedModelError(LstmEngineError):
    """The model is readable but uses what the engine does not implement; names node, operator, attribute."""


class InputError(LstmEngineError, ValueError):
    """A feed has the wrong name, rank, size, dtype or value."""


class StreamingError(LstmEngineError):
    """The model cannot be run one step at a time; says which node and why."""


class StateError(LstmEngineError):
    """A state of another model, batch or version, or a stream used by two callers at once."""


class BusyError(LstmEngineError):
    """More steps wait than were said to be let wait; nothing is wrong with this one: try again later."""


class ClusterError(LstmEngineError):
    """Actors or stores of a cluster do not answer for so long that the call gives up; it may be made again."""


class TargetError(LstmEngineError, ValueError):
    """Machine code is asked for that this CPU cannot run, or for a CPU that it cannot be made for."""


class MissingExtraError(LstmEngineError):
    """An optional part of this package is asked for whose packages are not installed; says what to install."""


MOST_LISTED = 50
Fault = TypeVar("Fault", bound=LstmEngineError)


def of_row(row: int, fault: Fault) -> Fault:
    """The same error, saying which row of a column it is of."""
    located = type(fault)(f"row {row}: {fault}")
    located.row, located.__cause__ = row, fault
    return located


def listed(heading: str, faults: Sequence[str]) -> str:
    """One message for all faults: the only fault on the heading's line, several as a list below it."""
    if len(faults) == 1:
        return f"{heading}: {faults[0]}"
    more = [f"… and {len(faults) - MOST_LISTED} more"] if len(faults) > MOST_LISTED else []
    return "\n  - ".join([f"{heading}: {len(faults)} faults", *faults[:MOST_LISTED], *more])
