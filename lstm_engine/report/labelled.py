"""Texts with a label at every word, and the questions that find which units carry the labels: for a page to show.

The file is JSON: {"texts": [{"text": "words with a space between", label: [a value for every word], "agreements":
[{"kind", "subject": place, "word": place, "distractors": how many}]}], "questions": {label: [for Questions.of()]}}.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ..errors import InputError, listed
from ..pages.walk import Finding, Jump, Track
from .carriers import Carriers, Questions, carriers, layers_of

if TYPE_CHECKING:
    from ..generation import Vocabulary
    from ..model import Model
    from ..trace import LayerTrace, Trace

BESIDE: Final = "labelled.json"
_MOST_BYTES: Final = 1 << 26
_TEXTS, _TEXT, _AGREEMENTS, _QUESTIONS = "texts", "text", "agreements", "questions"
_MOST_JUMPS: Final = 5  # agreements, two places each
_MOST_UNITS: Final = 3
_STORY: Final = (
    "the word before the subject",
    "the subject",
    "the words between",
    "the last word before the one that agrees",
    "the word that agrees",
    "the next subject, of another value (c by the old one's)",
)


@dataclass(frozen=True)
class Agreement:
    """Two words that agree: their places in the whole text, and how many between them mislead."""

    kind: str
    subject: int
    word: int
    distractors: int


@dataclass(frozen=True)
class Labelled:
    """The texts of a file, one after another."""

    words: tuple[str, ...]
    tracks: tuple[Track, ...]
    agreements: tuple[Agreement, ...]
    questions: Mapping[str, Sequence[Mapping[str, Any]]]

    def ids(self, vocabulary: Vocabulary) -> list[int]:
        """The words as tokens. Raises InputError naming those that are none."""
        known = {word: token for token, word in enumerate(vocabulary.tokens)}
        strange = sorted({word for word in self.words if word not in known})
        if strange:
            raise InputError(f"labelled text: {', '.join(map(repr, strange[:10]))} not in the vocabulary")
        return [known[word] for word in self.words]

    def track(self, name: str) -> Track | None:
        """The label of that name."""
        return next((track for track in self.tracks if track.name == name), None)


# --- reading ---------------------------------------------------------------------------------------------------------


def read_labelled(path: Path) -> Labelled:
    """The labelled texts in a file.

    Raises OSError; InputError listing what is wrong with it.
    """
    with path.open("rb") as file:
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise InputError(f"{path}: more than {_MOST_BYTES:,} bytes are no labelled text")
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as fault:
        raise InputError(f"{path}: not JSON ({fault})") from fault
    faults = _faults(content)
    if faults:
        raise InputError(listed(f"{path}: no labelled text", faults))
    return _read(content)


def _faults(content: Any) -> list[str]:
    if not isinstance(content, dict) or not isinstance(content.get(_TEXTS), list) or not content[_TEXTS]:
        return [f'expected {{"{_TEXTS}": [one or more texts]}}']
    faults = [f"text {at}: {fault}" for at, text in enumerate(content[_TEXTS]) for fault in _text_faults(text)]
    questions = content.get(_QUESTIONS, {})
    if not isinstance(questions, dict):
        return [*faults, f'"{_QUESTIONS}": expected an object']
    for label, entries in questions.items():
        faults += [f"questions of {label!r:.40}: {fault}" for fault in _asked_faults(entries)]
    return faults


def _text_faults(text: Any) -> list[str]:
    if not isinstance(text, dict) or not isinstance(text.get(_TEXT), str):
        return [f'expected an object with "{_TEXT}"']
    count = len(text[_TEXT].split(" "))
    faults = [
        f"{name!r:.40}: expected {count} labels, one for each word"
        for name, values in text.items()
        if name not in (_TEXT, _AGREEMENTS)
        and not (isinstance(values, list) and len(values) == count and all(isinstance(v, str) for v in values))
    ]
    agreements = text.get(_AGREEMENTS, [])
    told = isinstance(agreements, list) and all(_is_agreement(agreement, count) for agreement in agreements)
    return faults if told else [*faults, f'"{_AGREEMENTS}": expected objects with "kind" and places of words']


def _is_agreement(agreement: Any, count: int) -> bool:
    if not isinstance(agreement, dict) or not isinstance(agreement.get("kind"), str):
        return False
    places = [agreement.get("subject"), agreement.get("word")]
    return all(type(place) is int and 0 <= place < count for place in places)


def _asked_faults(entries: Any) -> list[str]:
    def asked(entry: Any) -> bool:
        return (
            isinstance(entry, dict)
            and isinstance(entry.get(_TEXT), str)
            and type(entry.get("told")) is int
            and isinstance(entry.get("label"), bool)
            and isinstance(entry.get("choices"), list)
            and len(entry["choices"]) == len(entries[0]["choices"]) > 1
            and all(isinstance(word, str) for word in entry["choices"])
        )

    first = isinstance(entries, list) and entries and isinstance(entries[0], dict)
    fits = first and isinstance(entries[0].get("choices"), list) and all(map(asked, entries))
    return [] if fits else ['expected objects with "text", "told", "label" and as many "choices" each']


def _read(content: Mapping[str, Any]) -> Labelled:
    words: list[str] = []
    agreements: list[Agreement] = []
    names = dict.fromkeys(n for text in content[_TEXTS] for n in text if n not in (_TEXT, _AGREEMENTS))
    tracks: dict[str, list[str]] = {name: [] for name in names}
    for text in content[_TEXTS]:
        own, first = text[_TEXT].split(" "), len(words)
        for name, values in tracks.items():
            values += text.get(name, [""] * len(own))
        for each in text.get(_AGREEMENTS, []):
            count = each.get("distractors", 0)
            told = count if type(count) is int else 0
            agreements.append(Agreement(each["kind"], first + each["subject"], first + each["word"], told))
        words += own
    shown = tuple(Track(name, values) for name, values in tracks.items())
    return Labelled(tuple(words), shown, tuple(agreements), content.get(_QUESTIONS, {}))


# --- what carries a label --------------------------------------------------------------------------------------------


def findings(model: Model, trace: Trace, labelled: Labelled, vocabulary: Vocabulary) -> list[Finding]:
    """Which units carry each label that is asked for, and what they do in this text."""
    layers = [layer for layer in layers_of(model) if layer.name in trace]
    found = []
    for label, entries in labelled.questions.items():
        questions = Questions.of(entries, vocabulary.tokens)
        found += [_finding(label, carriers(model, each, questions), trace[each.name], labelled) for each in layers]
    return found


def _finding(label: str, carrying: Carriers, layer: LayerTrace, labelled: Labelled) -> Finding:
    units = carrying.units[:_MOST_UNITS]
    track = labelled.track(label)
    table = [] if track is None else _moments(layer, units, track, labelled.agreements)
    return Finding(f"What carries {label}", _said(label, carrying), table, _jumps(layer, units[0], labelled, track))


def _said(label: str, carrying: Carriers) -> list[str]:
    """What correlation and ablation say, as they do."""
    best = ", ".join(f"{unit} ({_signed(carrying.correlation[unit])})" for unit in carrying.order[:5])
    last = carrying.ablated[-1]
    held = ", ".join(map(str, last.units))
    others = float(np.mean(last.others)), min(last.others)
    return [
        f"The cell states that go most with {label} between the word that tells it and the one that asks for it: units "
        f"{best}. A linear probe of the whole cell state tells it in {carrying.probe:.1%} of these steps.",
        f"Untouched, the network answers {carrying.right:.1%} of the questions rightly; by chance it would be "
        f"{carrying.chance:.0%}. With unit{'s' if len(last.units) > 1 else ''} {held} held at the mean in between: "
        f"{last.right:.1%}. With as many other units held: {others[0]:.1%} on average, {others[1]:.1%} at worst. With "
        f"only the direction held that leads from one value's mean to the other's: {carrying.along:.1%}.",
    ]


def _moments(layer: LayerTrace, units: Sequence[int], track: Track, agreements: Sequence[Agreement]) -> list[list[str]]:
    """The units' gates and cell states in this text, from the word before a subject to the next subject."""
    values = [value for value in dict.fromkeys(track.values[a.subject] for a in agreements) if value]
    rows = [["unit", "at", "f", "i", "o", *(f"c, {value}" for value in values)]]
    for unit in units:
        for name, places in _places(track, agreements).items():
            steps = [step for step, _ in places]
            gates = [_mean(layer[gate][steps, 0, unit], "") for gate in "fio"]
            cells = [_mean(layer.c[[step for step, told in places if told == value], 0, unit], "+") for value in values]
            rows.append([str(unit), name, *gates, *cells])
    return rows


def _places(track: Track, agreements: Sequence[Agreement]) -> dict[str, list[tuple[int, str]]]:
    """The story's places: steps, each with the label of the subject that it is about."""
    found: dict[str, list[tuple[int, str]]] = {name: [] for name in _STORY}
    before, subject, between, last, agreeing, following = found.values()
    met = sorted({a.subject for a in agreements})
    for each in agreements:
        told = track.values[each.subject]
        if each.word > each.subject:
            between += [(step, told) for step in range(each.subject + 1, each.word - 1)]
            last += [(each.word - 1, told)] if each.word - 1 > each.subject else []
            agreeing.append((each.word, told))
    for one, other in zip([None, *met], met, strict=False):
        subject.append((other, track.values[other]))
        before += [(other - 1, track.values[other])] if other else []
        if one is not None and track.values[one] != track.values[other]:
            following.append((other, track.values[one]))
    return {name: places for name, places in found.items() if places}


def _mean(values: np.ndarray, sign: str) -> str:
    return f"{_rounded(values.mean()):{sign}.2f}".replace("-", "−") if values.size else ""


def _signed(value: float) -> str:
    return f"{_rounded(value):+.2f}".replace("-", "−")


def _rounded(value: float) -> float:
    """To two digits, zero without a sign of its own."""
    return round(float(value), 2) + 0.0


def _jumps(layer: LayerTrace, unit: int, labelled: Labelled, track: Track | None) -> list[Jump]:
    """The subject and the verb of the agreements across most that misleads."""
    chosen = sorted((a for a in labelled.agreements if a.kind == "verb"), key=lambda a: -a.distractors)[:_MOST_JUMPS]
    found: list[Jump] = []
    met: set[int] = set()
    cells = layer.c[:, 0, unit]
    for agreement in sorted(chosen, key=lambda a: (a.subject, a.word)):
        subject, word = labelled.words[agreement.subject], labelled.words[agreement.word]
        if agreement.subject not in met:
            value = track.values[agreement.subject] if track is not None else ""
            told = f"‘{subject}’" + (f", {value}" if value else "")
            held = f"{told}: unit {unit} holds {_signed(cells[agreement.subject])}"
            found.append(Jump(held, agreement.subject, layer.name, unit))
            met.add(agreement.subject)
        misled = f", past {agreement.distractors} misleading" if agreement.distractors else ""
        before = max(agreement.word - 1, 0)
        found.append(Jump(f"before its ‘{word}’{misled}: {_signed(cells[before])}", before, layer.name, unit))
    return found
