"""The words that drawing a token reads and writes. Python writes them too: nothing here needs a compiler."""

from __future__ import annotations

from enum import IntEnum


class Draw(IntEnum):
    """Words of a sampler: how it draws, its random numbers, and which tokens were read."""

    RANDOM = 0  # state of the generator
    TEMPERATURE = 1  # this and the words marked so: the bits of a float64
    TOP_K = 2
    TOP_P = 3  # bits
    BUSY = 4  # 1 while a caller draws; where a Context has it, so that the same guards serve
    MIN_P = 5  # bits
    PENALTY = 6  # bits
    SEEN = 7  # address of a word a token: how many times it stands in the window
    SEEN_COUNT = 8  # tokens that the table has room for
    RING = 9  # address of the window's tokens
    RING_SIZE = 10  # 0: all tokens since the beginning count, each as one
    RING_AT = 11  # where the next token goes
    RING_FILLED = 12


class Scores(IntEnum):
    """Words that say where scores lie and what they are, with the tables that drawing from them needs."""

    COUNT = 0  # tokens
    BYTES = 1  # of a score: 4 or 8
    PROBABILITIES = 2  # 1: they are probabilities; 0: logits or log-probabilities
    PLACE = 3  # address that a step writes them to
    CONTEXT = 4  # of the steps
    BACKUP = 5  # address for the state while a step runs; 0: the context keeps one itself
    VALUES = 6  # addresses of tables of a float64 or a word a token, whole vectors of them
    WEIGHTS = 7
    KEPT = 8
    ORDER = 9
    INPUT = 10  # the token that a step reads
    TOKEN = 11  # the token that was drawn
    FAULT = 12  # 0, or why there is none
    BEST = 13  # bits of the greatest score
    TELL = 14  # 1: TOLD and SUM are wanted
    TOLD = 15  # bits of the drawn token's score less the greatest one
    SUM = 16  # bits of the sum of e^ all scores less the greatest
