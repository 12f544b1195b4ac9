"""What an exported library and those who call it agree on: its functions, and the codes that they return."""

from __future__ import annotations

from enum import IntEnum
from types import MappingProxyType
from typing import Final

#: Version of the interface; in every description, and in the mark of an instance.
VERSION: Final = 1
#: What instances and weights are aligned to, in bytes.
ALIGNMENT: Final = 64
#: What its functions are called by, behind the library's own name and an underscore.
FUNCTIONS: Final = ("init", "step", "feed", "reset", "save", "load", "describe")


class Result(IntEnum):
    """What a function of a library returns."""

    OK = 0
    NULL_POINTER = 1
    MISALIGNED = 2
    TOO_SMALL = 3
    NOT_AN_INSTANCE = 4
    OTHER_WEIGHTS = 5
    BAD_TOKEN = 6
    BAD_LENGTH = 7
    DAMAGED_STATE = 8
    OTHER_STATE = 9


MEANINGS: Final = MappingProxyType(
    {
        Result.OK: "done",
        Result.NULL_POINTER: "a pointer is NULL",
        Result.MISALIGNED: f"memory does not begin at a multiple of {ALIGNMENT} bytes",
        Result.TOO_SMALL: "memory is smaller than is needed",
        Result.NOT_AN_INSTANCE: "this memory was not set up by the init function of this library",
        Result.OTHER_WEIGHTS: "these weights belong to another model, target or precision",
        Result.BAD_TOKEN: "a token or index is out of range; nothing was done",
        Result.BAD_LENGTH: "a sequence length is out of range; nothing was done",
        Result.DAMAGED_STATE: "a state's bytes are damaged; the instance keeps its own",
        Result.OTHER_STATE: "a state of another model, batch or version; the instance keeps its own",
    }
)
