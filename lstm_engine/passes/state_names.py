"""What names say about states: whether an input's name and an output's name are those of one state, before and after.

Exporters write ``h0``/``hn``, ``state``/``stateN``, ``h_in``/``h_out``, ``cache``/``new_cache``. A name consists of
words; some say when (``in``, ``prev``, ``0`` … ``out``, ``next``, ``n``), the rest say what. Two names belong together
when the rest is the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import IntEnum
from typing import Final, TypeAlias

Words: TypeAlias = tuple[str, ...]

_WORD: Final = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|[0-9]+")
#: PyTorch's and ONNX's short names: hx, hy, hn, cx, cy, cn.
_SHORT: Final = re.compile(r"([hc])([nxy])$")
_BEFORE: Final = frozenset({
    "0", "before", "in", "init", "initial", "inp", "input", "last", "old", "past", "prev", "previous", "x",
})  # fmt: skip
_AFTER: Final = frozenset({
    "after", "cur", "current", "final", "last", "n", "new", "next", "out", "output", "present", "updated", "y",
})  # fmt: skip
#: Words for time, not merely for the side of the network: enough on one side of a pair.
_TEMPORAL: Final = frozenset({"next", "old", "past", "prev", "previous"})
#: What a state is called.
_STATES: Final = frozenset({
    "buf", "buffer", "c", "cache", "carry", "cell", "context", "ctx", "cx", "ema", "gru", "h", "hidden", "hist",
    "history", "hx", "lstm", "mem", "memory", "recurrent", "rnn", "s", "state",
})  # fmt: skip
#: What the data are called: such an input is never a state because of its name.
_DATA: Final = frozenset({
    "action", "audio", "data", "enh", "feat", "feature", "frame", "id", "image", "img", "len", "length", "logit",
    "mask", "mel", "mix", "model", "noisy", "ob", "output", "prob", "sample", "seq", "sequence", "signal", "spec",
    "spectrogram", "speech", "src", "text", "tgt", "token", "video", "wav", "wave", "waveform",
})  # fmt: skip


class Likeness(IntEnum):
    """How well two names go together."""

    NONE = 0
    TIME = 1  # x_in/x_out, y_prev/y: their words say before and after
    STATE = 2  # moreover, they name a state


def likeness(before: str, after: str) -> Likeness:
    """How well an input's and an output's name are those of one state before and after a step."""
    best = Likeness.NONE
    for what, by in _readings(before, _BEFORE):
        for other, by_other in _readings(after, _AFTER):
            if what == other and any(word.isalpha() for word in what):
                best = max(best, _weight(what, by, by_other))
    return best


def _weight(what: Words, by: str, by_other: str) -> Likeness:
    kinds = {word.removesuffix("s") if len(word) > 1 else word for word in what}
    if not by and not by_other:
        return Likeness.NONE
    if kinds & _STATES:
        return Likeness.STATE
    if kinds & _DATA:
        return Likeness.NONE
    return Likeness.TIME if (by and by_other) or {by, by_other} & _TEMPORAL else Likeness.NONE


def _readings(name: str, when: frozenset[str]) -> Iterator[tuple[Words, str]]:
    """The words of a name that say what it is, and the one that says when ('' for none)."""
    words = tuple(_words(name))
    yield words, ""
    for index, word in enumerate(words):
        if word in when:
            yield words[:index] + words[index + 1 :], word


def _words(name: str) -> Iterator[str]:
    for word in _WORD.findall(name.split(":")[0]):
        short = _SHORT.match(word.lower())
        yield from short.groups() if short else (word.lower(),)
