"""What the agreement model has learnt, measured by this project's engine: ``python models/agreement/measure.py``.

Writes the card's figures and ``labelled.json``: texts with a label a word, and the questions that find the units which
carry number and gender.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent.parent), str(HERE.parent)]

import common  # noqa: E402
import grammar  # noqa: E402

import lstm_engine as le  # noqa: E402
from lstm_engine.report import carriers  # noqa: E402

PLACE = ("<!-- measured: written by measure.py -->", "<!-- end of measured -->")
LABELLED = HERE / "labelled.json"
HELDOUT_WORDS, BASELINE_WORDS = 50_000, 1_000_000
QUESTIONS = 500
VERBS, PRONOUNS = ("verb",), tuple(grammar.PRONOUNS)
AT_ONCE = 2048  # words fed in one call
Entry = dict[str, Any]


def vocabulary(model: le.Model) -> list[str]:
    """The model's words."""
    return list(json.loads(model.metadata["vocabulary"]))


# --- running text -----------------------------------------------------------------------------------------------------


def texts(seed: str, words: int, style: grammar.Style) -> list[grammar.Text]:
    """Texts of at least so many words together."""
    chosen: list[grammar.Text] = []
    for text in grammar.Writer(seed, style).texts():
        chosen.append(text)
        words -= len(text.words)
        if words <= 0:
            break
    return chosen


def heldout_texts(words: int = HELDOUT_WORDS) -> list[grammar.Text]:
    """Texts with another seed, in which every pair of subject and verb is one that training never saw."""
    return texts("held out", words, grammar.Style(grammar.held_out))


def tokens_of(chosen: Sequence[grammar.Text], words: Sequence[str]) -> np.ndarray:
    """Texts, one after another, as tokens."""
    ids = {word: i for i, word in enumerate(words)}
    return np.array([ids[word] for text in chosen for word in text.words], np.int64)


def read(model: le.Model, tokens: np.ndarray) -> np.ndarray:
    """The scores [T,V] behind each of the tokens, the state carried from the first to the last."""
    stream = model.stream()
    pieces = (tokens[first : first + AT_ONCE] for first in range(0, len(tokens), AT_ONCE))
    return np.concatenate([stream.feed(piece[None])[0] for piece in pieces])


def bits_a_word(scores: np.ndarray, tokens: np.ndarray) -> float:
    """Mean bits of each token but the first."""
    logits = scores[:-1].astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    chosen = np.take_along_axis(logits, tokens[1:, None], axis=1)[:, 0]
    return float((np.log(np.exp(logits).sum(axis=1)) - chosen).mean() / np.log(2))


def next_right(scores: np.ndarray, tokens: np.ndarray) -> float:
    """How often the likeliest next word comes next."""
    return float((scores[:-1].argmax(axis=1) == tokens[1:]).mean())


def ngram_right(past: np.ndarray, tokens: np.ndarray, order: int) -> float:
    """The same for the word that came most often behind the order - 1 words before; behind fewer if they are new."""
    guesses: dict[tuple[int, ...], int] = {}
    for length in range(order):
        counts: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        for at in range(length, len(past)):
            counts[tuple(past[at - length : at])][past[at]] += 1
        guesses |= {context: counter.most_common(1)[0][0] for context, counter in counts.items()}
    right = 0
    for at in range(1, len(tokens)):
        contexts = (tuple(tokens[at - length : at]) for length in range(min(order - 1, at), -1, -1))
        right += next(guesses[context] for context in contexts if context in guesses) == tokens[at]
    return right / (len(tokens) - 1)


def prediction(model: le.Model, tokens: Sequence[np.ndarray], scores: Sequence[np.ndarray]) -> str:
    """Next words in texts, beside what needs no network."""
    words = vocabulary(model)
    past = tokens_of(texts("train 0", BASELINE_WORDS, grammar.Style()), words)
    rows = [["**this model**"], ["5-gram"], ["trigram"], ["the most frequent word"]]
    for text, behind in zip(tokens, scores, strict=True):
        rows[0] += [f"**{next_right(behind, text):.3f}**", f"**{bits_a_word(behind, text):.3f}**"]
        for row, order in zip(rows[1:], (5, 3, 1), strict=True):
            bits = common.ngram_bits(past.tolist(), text.tolist(), order, len(words))
            row += [f"{ngram_right(past, text, order):.3f}", f"{bits:.3f}"]
    return common.table(
        ["", "held-out pairs: next word right", "bits a word", "new texts: next word right", "bits a word"], rows
    )


def by_construction(model: le.Model, chosen: Sequence[grammar.Text], scores: np.ndarray) -> str:
    """Agreement in running held-out text, beside agreeing with the nearest noun."""
    ids = {word: i for i, word in enumerate(vocabulary(model))}
    met: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
    offset = 0
    for text in chosen:
        for a in text.agreements:
            behind = scores[offset + a.at - 1]
            right = all(behind[ids[text.words[a.at]]] > behind[ids[other]] for other in a.others)
            met[a.construction if a.kind == "verb" else f"{a.kind} pronoun"].append((right, not a.misled))
        offset += len(text.words)
    rows = []
    for name, answers in sorted(met.items(), key=lambda item: -len(item[1])):
        right, nearest = np.mean(answers, axis=0)
        rows.append([CONSTRUCTIONS[name], f"{len(answers):,}", f"{right:.3f}", f"{nearest:.3f}"])
    return common.table(["between subject and word", "met", "right", "the nearest noun's form"], rows)


CONSTRUCTIONS: Final = {
    "nothing": "verb, nothing: *the boys see*",
    "prepositional": "verb, prepositional phrases: *the boys near the car see*",
    "subject relative": "verb, a relative clause: *the boys who like the king see*",
    "object relative": "verb, a relative clause with its own subject: *the boys who the king likes see*",
    "prepositional and relative": "verb, both: *the boys near the car that the king likes see*",
    "two subjects": "verb of two subjects: *the boy and the girl see*",
    "pronoun": "verb of a pronoun: *they see*",
    "second verb": "second verb: *the boys see the car and laugh*",
    "within a relative": "verb within a relative clause",
    "subject pronoun": "*he*, *she*, *it* or *they*",
    "possessive pronoun": "*his*, *her*, *its* or *their*",
    "reflexive pronoun": "*himself*, *herself*, *itself* or *themselves*",
}


# --- questions --------------------------------------------------------------------------------------------------------


def entry(question: grammar.Question, label: bool, choices: Sequence[str]) -> Entry:
    """A question as labelled.json has it."""
    return {
        "text": " ".join(question.words),
        "told": question.agreement.subject.at,
        "label": label,
        "choices": list(choices),
    }


def number_entries(found: Iterator[grammar.Question], count: int = QUESTIONS) -> list[Entry]:
    """Questions about words that depend on number."""
    return [entry(q, q.agreement.subject.plural, q.choices) for q in islice(found, count)]


def gender_entries(found: Iterator[grammar.Question], count: int = QUESTIONS) -> list[Entry]:
    """Questions about pronouns of one woman or one man: which of the two forms?"""
    return [
        entry(
            q,
            q.agreement.subject.gender == "f",
            (q.choices[0], grammar.PRONOUNS[q.agreement.kind]["m" if q.agreement.subject.gender == "f" else "f"]),
        )
        for q in islice(found, count)
    ]


def is_verb(agreement: grammar.Agreement) -> bool:
    return agreement.kind == "verb"


def is_of_one_person(agreement: grammar.Agreement) -> bool:
    return agreement.kind != "verb" and agreement.subject.person in ("m", "f")


def unaided(label: str, count: int) -> list[Entry]:
    """The questions that find what carries a label."""
    if label == "number":
        return number_entries(grammar.unaided("number", is_verb), count)
    return gender_entries(grammar.unaided("gender", is_of_one_person), count)


def agreement(model: le.Model, kinds: Sequence[str], distractors: int, count: int = QUESTIONS) -> float:
    """How often the right form is the likeliest, with so many nouns between that all ask for another."""
    (layer,) = carriers.layers_of(model)
    found = grammar.misleading("held out", kinds, distractors)
    asked = carriers.Questions.of(number_entries(found, count), vocabulary(model))
    return float(carriers.play(model, layer, asked).right(asked).mean())


def by_distractors(model: le.Model) -> str:
    """Agreement by the number of misleading nouns."""
    rows = [
        ["verb", *(f"{agreement(model, VERBS, n):.3f}" for n in range(5))],
        ["pronoun", *(f"{agreement(model, PRONOUNS, n):.3f}" for n in range(5))],
        ["the nearest noun's form", *(f"{float(n == 0):.3f}" for n in range(5))],
    ]
    return common.table(["misleading nouns", *map(str, range(5))], rows)


# --- what carries number and gender -----------------------------------------------------------------------------------


def carriers_of(model: le.Model, label: str, count: int = 2 * QUESTIONS) -> carriers.Carriers:
    """The units that carry a label."""
    (layer,) = carriers.layers_of(model)
    return carriers.carriers(model, layer, carriers.Questions.of(unaided(label, count), vocabulary(model)))


def ablation_table(found: carriers.Carriers) -> str:
    """What holding one unit after another does, beside holding others."""
    rows = [["none", "", f"{found.right:.3f}", "", ""]]
    for one in found.ablated:
        units, others = ", ".join(map(str, one.units)), one.others
        rows.append([str(len(one.units)), units, f"{one.right:.3f}", f"{np.mean(others):.3f}", f"{min(others):.3f}"])
    rows.append(["the direction between the means", "", f"{found.along:.3f}", "", ""])
    header = ["held at their mean", "units", "right", "as many others, mean", "the worst of 8 draws"]
    return common.table(header, rows)


def dissociation(model: le.Model, found: dict[str, carriers.Carriers], count: int = QUESTIONS) -> str:
    """Answers about each label while units are held that carry the one or the other."""
    (layer,) = carriers.layers_of(model)
    questions = {label: carriers.Questions.of(unaided(label, 2 * count), vocabulary(model)) for label in found}
    played = {label: carriers.play(model, layer, asked[:count]) for label, asked in questions.items()}
    rows = []
    for label, carrying in found.items():
        for one in carrying.ablated:
            row = [f"{', '.join(map(str, one.units))} (of {label})"]
            for asked, each in questions.items():
                ablation = carriers.holding_units(one.units, played[asked], each[:count])
                right = carriers.play(model, layer, each[count:], ablation).right(each[count:])
                row.append(f"{right.mean():.3f}")
            rows.append(row)
    return common.table(["units held", *(f"right in {label}" for label in questions)], rows)


def correlation_line(found: carriers.Carriers) -> str:
    """The best units and their correlations."""
    best = ", ".join(f"{unit} ({found.correlation[unit]:+.2f})" for unit in found.order[:8])
    return (
        f"Most correlated units: {best}. A linear probe of the whole cell state tells it in "
        f"{100 * found.probe:.1f} % of the steps between."
    )


# --- the story --------------------------------------------------------------------------------------------------------

Place = Callable[[grammar.Agreement, grammar.Agreement], int]
#: Moments between a clause's subject and the next clause's, by the clause's last verb and the next one's first.
MOMENTS: Final[dict[str, Place]] = {
    "the word before the subject": lambda verb, after: verb.subject.at - 1,
    "the subject": lambda verb, after: verb.subject.at,
    "the word behind it": lambda verb, after: verb.subject.at + 1,
    "the last word before the verb": lambda verb, after: verb.at - 1,
    "the verb": lambda verb, after: verb.at,
    "the word before the next subject": lambda verb, after: after.subject.at - 1,
    "the next subject, of the other number": lambda verb, after: after.subject.at,
    "the last word before its verb": lambda verb, after: after.at - 1,
}


def passages(text: grammar.Text) -> Iterator[tuple[grammar.Agreement, grammar.Agreement]]:
    """Verbs with nouns between them and their subject, each with the verb of a next subject of the other number."""
    verbs = [a for a in text.agreements if a.kind == "verb" and a.depth == 0]
    for verb, after in pairwise(verbs):
        fresh = after.construction not in ("pronoun", "second verb", "two subjects")
        if (
            verb.between
            and verb.construction != "second verb"
            and fresh
            and after.subject.plural != verb.subject.plural
        ):
            yield verb, after


def story(model: le.Model, unit: int, words: int = HELDOUT_WORDS) -> str:
    """A unit at the moments of a clause: mean c if the subject is singular, and plural; mean gates."""
    (layer,) = carriers.layers_of(model)
    chosen = heldout_texts(words)
    tokens = np.zeros((len(chosen), max(len(text.words) for text in chosen)), np.int64)
    for row, text in zip(tokens, chosen, strict=True):
        row[: len(text.words)] = tokens_of([text], vocabulary(model))
    trace = model.trace(tokens)[layer.name]
    met = [(row, *pair) for row, text in enumerate(chosen) for pair in passages(text)]
    plural = np.array([verb.subject.plural for _, verb, _ in met])
    rows = []
    for name, place in MOMENTS.items():
        where = [place(verb, after) for _, verb, after in met], [row for row, _, _ in met], unit
        c = trace.c[where]
        gates = [f"{trace[gate][where].mean():.2f}" for gate in "fio"]
        rows.append([name, f"{c[~plural].mean():+.2f}", f"{c[plural].mean():+.2f}", *gates])
    header = ["at", "c, singular", "c, plural", "f", "i", "o"]
    return f"Unit {unit}, over {len(met):,} clauses:\n\n" + common.table(header, rows)


def shown(text: grammar.Text) -> bool:
    """Whether a text shows it all: distractors, a pronoun, subjects of both numbers, and is short."""
    verbs = [a for a in text.agreements if a.kind == "verb" and a.depth == 0]
    return (
        len(text.words) <= 40
        and sum(verb.distractors >= 2 and verb.between == verb.distractors for verb in verbs) >= 1
        and sum(verb.distractors >= 1 for verb in verbs) >= 2
        and len({verb.subject.plural for verb in verbs}) == 2
        and any(a.kind in ("subject", "reflexive") and a.subject.person in "mf" for a in text.agreements)
    )


def labelled_text(text: grammar.Text) -> Entry:
    """A text as labelled.json has it: a label a word, and what agrees with what."""
    labels = grammar.labels(text)
    return {
        "text": str(text),
        "number": [label.number for label in labels],
        "gender": [label.gender for label in labels],
        "role": [label.role for label in labels],
        "agreements": [
            {
                "kind": a.kind,
                "subject": a.subject.at,
                "word": a.at,
                "choices": [text.words[a.at], *a.others],
                "distractors": a.distractors,
                "within a relative": a.depth > 0,
            }
            for a in text.agreements
        ],
    }


def labelled(count: int = 240) -> dict[str, Any]:
    """What labelled.json holds."""
    style = grammar.Style(grammar.held_out, sentences=(3, 4))
    examples = islice(filter(shown, grammar.Writer("example", style).texts()), 3)
    return {
        "labels": {"number": ["singular", "plural"], "gender": ["masculine", "feminine"]},
        "texts": [labelled_text(text) for text in examples],
        "questions": {label: unaided(label, count) for label in ("number", "gender")},
    }


def lines(thing: Any, depth: int = 3) -> str:
    """JSON with a line for each entry down to a depth; lists of plain values on one."""
    inner = list(thing.values()) if isinstance(thing, dict) else thing
    if depth == 0 or not isinstance(thing, dict | list) or not any(isinstance(one, dict | list) for one in inner):
        return json.dumps(thing)
    if isinstance(thing, dict):
        return "{\n" + ",\n".join(f"{json.dumps(k)}: {lines(v, depth - 1)}" for k, v in thing.items()) + "\n}"
    return "[\n" + ",\n".join(lines(one, depth - 1) for one in thing) + "\n]"


# --- the card ---------------------------------------------------------------------------------------------------------


def figures(model: le.Model) -> str:
    """The measured part of the card."""
    chosen, new = heldout_texts(), texts("new", HELDOUT_WORDS, grammar.Style())
    tokens = [tokens_of(some, vocabulary(model)) for some in (chosen, new)]
    scores = [read(model, some) for some in tokens]
    parts = [
        "### Next words",
        prediction(model, tokens, scores),
        "### Agreement across misleading nouns",
        by_distractors(model),
        "### Agreement in running text",
        by_construction(model, chosen, scores[0]),
    ]
    found = {label: carriers_of(model, label) for label in ("number", "gender")}
    for label, carrying in found.items():
        parts += [f"### What carries {label}", correlation_line(carrying), ablation_table(carrying)]
    parts += ["### One held, the other asked", dissociation(model, found)]
    parts += ["### From one subject to the next", *(story(model, unit) for unit in found["number"].units[:3])]
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=HERE / "agreement.onnx", help="file to measure")
    parser.add_argument("--card", type=Path, default=HERE / "README.md", help="to write figures in")
    parser.add_argument("--labelled", type=Path, default=LABELLED, help="file of labelled texts to write")
    options = parser.parse_args()
    options.labelled.write_text(lines(labelled()) + "\n", encoding="utf-8")
    common.rewrite_card(options.card, figures(le.load(options.model)), PLACE)


if __name__ == "__main__":
    main()
