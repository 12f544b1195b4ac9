"""Vocabulary: the texts of a model's tokens, from its metadata or a JSON file, and how text is cut into them."""

from __future__ import annotations

import codecs
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..errors import InputError, ModelFormatError, listed

if TYPE_CHECKING:
    from ..model import Model

#: Metadata keys under which a model file carries its vocabulary; those of a JSON file are the same.
VOCABULARY_KEY: Final = "vocabulary"  # JSON: a list with a string per token id, or an object {token: id}
UNIT_KEY: Final = "unit"  # how text is cut: one of UNITS; without: into the longest tokens that fit
UNKNOWN_KEY: Final = "unknown"  # the token that stands for what is not in the list
BOUNDARY_KEY: Final = "boundary"  # the token that stands before and after a text
_KEYS: Final = (VOCABULARY_KEY, UNIT_KEY, UNKNOWN_KEY, BOUNDARY_KEY)
UNITS: Final = ("", "character", "byte", "word")
BESIDE: Final = ".vocab.json"  # model.onnx's is model.vocab.json

_MOST_TOKENS: Final = 1 << 24
_MOST_BYTES: Final = 1 << 28  # of a file
_MOST_NAMED: Final = 10  # things that a message names
_BYTES: Final = 256
#: A word with its apostrophes, a newline, any other sign by itself; other space is between words only.
_WORDS: Final = re.compile(r"\w+(?:['’]\w+)*|\n|[^\w\s]")
_OPENING: Final = frozenset("\n([{“‘")  # behind these, and before those, no space is put between words
_CLOSING: Final = frozenset("\n.,;:!?)]}”’%")


class Vocabulary:
    """The texts of a model's tokens: ``tokens[id]``; ``unknown``, ``boundary``: ids or None.

    ``unit`` says how text is cut: "character"; "byte" (of UTF-8: the first 256 tokens are the bytes, those behind them
    have ids only); "word" (words with their apostrophes, newlines, and every other sign by itself; read back with a
    space between two words); "" into the longest tokens that fit. But for bytes, the unknown and the boundary token are
    never made out of text: they have ids only.

    Raises ModelFormatError listing what contradicts itself.
    """

    def __init__(self, tokens: Sequence[str], unit: str = "", unknown: str = "", boundary: str = "") -> None:
        faults = _faults(tokens, unit, {UNKNOWN_KEY: unknown, BOUNDARY_KEY: boundary})
        if faults:
            raise ModelFormatError(listed("vocabulary", faults))
        self.tokens = tuple(tokens)
        self.unit = unit
        self.unknown = self.tokens.index(unknown) if unknown else None
        self.boundary = self.tokens.index(boundary) if boundary else None
        special = {unknown, boundary, ""}
        self._ids = {text: i for i, text in enumerate(self.tokens) if text not in special}
        self._lengths = [1] if unit == "character" else sorted({len(text) for text in self._ids}, reverse=True)

    @staticmethod
    def of(model: Model) -> Vocabulary | None:
        """The vocabulary in a model's metadata, else that of the file beside it (model.vocab.json), else None.

        Raises OSError; ModelFormatError if it contradicts itself.
        """
        metadata, origin = model.metadata, f"{model.graph.origin}: metadata"
        described = {key: metadata[key] for key in _KEYS if key in metadata}
        if VOCABULARY_KEY in described:
            described[VOCABULARY_KEY] = _parsed(described[VOCABULARY_KEY], f"{origin} '{VOCABULARY_KEY}'")
        if VOCABULARY_KEY in described or described.get(UNIT_KEY) == "byte":
            return Vocabulary._described(described, origin)
        beside = None if model.path is None else Path(model.path).with_suffix(BESIDE)
        return Vocabulary.load(beside) if beside is not None and beside.is_file() else None

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Vocabulary:
        """The vocabulary in a JSON file: a list of tokens, an object {token: id}, or an object with one of these as
        "vocabulary" beside "unit", "unknown" and "boundary".

        Raises OSError; ModelFormatError if the file is none or contradicts itself.
        """
        with open(path, "rb") as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise ModelFormatError(f"{path}: more than {_MOST_BYTES:,} bytes are no vocabulary")
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as fault:
            raise ModelFormatError(f"{path}: not UTF-8 ({fault.reason} at byte {fault.start})") from fault
        content = _parsed(text, str(path))
        told = isinstance(content, dict) and (VOCABULARY_KEY in content or content.get(UNIT_KEY) == "byte")
        described = content if told and not _ids_only(content) else {VOCABULARY_KEY: content}
        return Vocabulary._described(described, str(path))

    @staticmethod
    def _described(described: Mapping[str, Any], origin: str) -> Vocabulary:
        """From the entries of metadata or a file."""
        strange = [f"'{key}' is no entry of a vocabulary" for key in described if key not in _KEYS]
        words = {key: described.get(key) or "" for key in _KEYS[1:]}
        strange += [f"'{key}' is {value!r:.80}, not a string" for key, value in words.items() if type(value) is not str]
        if strange:
            raise ModelFormatError(listed(origin, strange))
        content = described.get(VOCABULARY_KEY)
        listless = content is None and words[UNIT_KEY] == "byte"
        tokens = [chr(byte) for byte in range(_BYTES)] if listless else _tokens_of(content, origin)
        try:
            return Vocabulary(tokens, **words)
        except ModelFormatError as fault:
            raise ModelFormatError(f"{origin}: {fault}") from fault

    def __len__(self) -> int:
        return len(self.tokens)

    def encode(self, text: str) -> list[int]:
        """The ids of a text.

        Raises InputError naming what no token stands for, unless there is a token for the unknown.
        """
        if self.unit == "byte":
            return list(text.encode("utf-8", "surrogatepass"))
        strange: dict[str, None] = {}
        cut = self._words(text) if self.unit == "word" else self._longest(text)
        ids = [self._id(piece, strange) for piece in cut]
        if strange:
            named = ", ".join(map(repr, islice(strange, _MOST_NAMED)))
            more = f" and {len(strange) - _MOST_NAMED} more" if len(strange) > _MOST_NAMED else ""
            raise InputError(f"text: no token of the model stands for {named}{more}, nor for unknown characters")
        return ids

    def _id(self, piece: str, strange: dict[str, None]) -> int:
        found = self._ids.get(piece, self.unknown)
        if found is None:
            strange[piece] = None
            return -1
        return found

    def _words(self, text: str) -> Iterable[str]:
        return (word for word in _WORDS.findall(text) if word != "\n" or word in self._ids)

    def _longest(self, text: str) -> Iterable[str]:
        """Token after token, the longest that fits; what none begins with by the character."""
        at = 0
        while at < len(text):
            length = next((n for n in self._lengths if text[at : at + n] in self._ids), 1)
            yield text[at : at + length]
            at += length

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids. Raises InputError for an id out of range."""
        return "".join(map(self.speller(), ids))

    def text(self, token: int) -> str:
        """A token by itself. Raises InputError for an id out of range."""
        if not 0 <= token < len(self.tokens):
            raise InputError(f"token {token}: the vocabulary has ids 0 to {len(self.tokens) - 1}")
        return self.tokens[token]

    def speller(self, before: Sequence[int] = ()) -> Callable[[int], str]:
        """What gives the text of one token after another, behind those ``before``.

        A word has its space in front; a character of several bytes comes with the last of them.
        """
        if self.unit == "byte":
            return self._bytes_speller()
        if self.unit == "word":
            return self._words_speller(before)
        return self.text

    def _bytes_speller(self) -> Callable[[int], str]:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")

        def spelled(token: int) -> str:
            if token < _BYTES:
                return decoder.decode(bytes([token]))
            return decoder.decode(b"", final=True) + self.text(token)

        return spelled

    def _words_speller(self, before: Sequence[int]) -> Callable[[int], str]:
        last = self.text(before[-1]) if before and before[-1] != self.boundary else ""

        def spelled(token: int) -> str:
            nonlocal last
            word, after = self.text(token), last
            last = "" if token == self.boundary else word
            return f" {word}" if after and after not in _OPENING and _spaced(word) else word

        return spelled


def _spaced(word: str) -> bool:
    """Whether a word stands apart from the one before: all do but newlines and signs that close."""
    return bool(word) and word not in _CLOSING


def _ids_only(content: Mapping[str, Any]) -> bool:
    """Whether an object is {token: id}, with tokens that are called like the entries of a description."""
    return all(type(value) is int for value in content.values())


def _parsed(text: str, origin: str) -> Any:
    """JSON in which no key stands twice."""
    try:
        return json.loads(text, object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as fault:
        raise ModelFormatError(f"{origin}: is not JSON that holds a vocabulary ({fault})") from fault


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    double = _double(key for key, _ in pairs)
    if double is not None:
        raise ValueError(f"the key {double!r:.80} stands twice")
    return dict(pairs)


def _double(texts: Iterable[str]) -> str | None:
    """The first text that stands there a second time."""
    seen: set[str] = set()
    for text in texts:
        if text in seen:
            return text
        seen.add(text)
    return None


def _tokens_of(content: Any, origin: str) -> Sequence[str]:
    """The tokens by id, of a list or of {token: id}."""
    if isinstance(content, dict):
        ids = list(content.values())
        if not all(type(i) is int for i in ids) or sorted(ids) != list(range(len(ids))):
            raise ModelFormatError(f"{origin}: the ids of {len(ids)} tokens are not 0 to {len(ids) - 1}, each once")
        return sorted(content, key=content.__getitem__)
    if not isinstance(content, list) or not all(type(token) is str for token in content):
        raise ModelFormatError(f"{origin}: '{VOCABULARY_KEY}' is not a list of strings, one per token id")
    return content


def _faults(tokens: Sequence[str], unit: str, special: Mapping[str, str]) -> list[str]:
    """What is wrong with a vocabulary."""
    if len(tokens) > _MOST_TOKENS:
        return [f"{len(tokens):,} tokens are more than {_MOST_TOKENS:,}"]
    faults = [] if unit in UNITS else [f"'{UNIT_KEY}' is {unit!r:.80}, expected one of {', '.join(UNITS[1:])}"]
    known = set(tokens)
    faults += [
        f"'{key}' is {token!r:.80}, which is not in the vocabulary"
        for key, token in special.items()
        if token and token not in known
    ]
    double = _double(filter(None, tokens))  # nothing at all may stand for several that are never seen
    if double is not None:
        faults.append(f"the token {double!r:.80} stands twice")
    if unit == "byte" and [*tokens[:_BYTES]] != [chr(byte) for byte in range(_BYTES)]:
        faults.append(f"the first {_BYTES} tokens of bytes are not the characters of these codes")
    return faults
