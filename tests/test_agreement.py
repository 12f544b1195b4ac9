"""The agreement model: the grammar that its texts are of, what it has learnt, and the units that its card names."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lstm_engine as le
from lstm_engine.report import carriers

FOLDER = Path(__file__).resolve().parent.parent / "models" / "agreement"
SINGULAR_VERBS = re.compile(r"is|was|has|\w+s")  # of the grammar's verbs, all that end in s
PLURAL_NOUNS = re.compile(r"men|women|ladies|\w+s")
MASCULINE = {"boy", "man", "men", "king", "father", "uncle", "brother", "prince", "monk"}
FEMININE = {"girl", "woman", "women", "queen", "mother", "aunt", "sister", "lady", "ladies", "nun"}


#: The same on every machine and in every release of Python.
KNOWN = "<text> the trees are broken . they fall while they vanish . every prince who waits follows two clocks ."


@pytest.fixture(scope="module", autouse=True)
def scripts() -> Iterator[None]:
    """The model's folder, to import its scripts from."""
    before = sys.path[:]
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path[:] = before
    for name in ("grammar", "measure", "common"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def grammar(scripts: None) -> Any:
    import grammar

    return grammar


@pytest.fixture(scope="module")
def measure(scripts: None) -> Any:
    import measure

    return measure


@pytest.fixture(scope="module")
def model() -> le.Model:
    return le.load(FOLDER / "agreement.onnx")


@pytest.fixture(scope="module")
def card() -> str:
    return (FOLDER / "README.md").read_text(encoding="utf-8")


def texts(grammar: Any, seed: str, count: int = 400, **style: Any) -> list[Any]:
    return list(islice(grammar.Writer(seed, grammar.Style(**style)).texts(), count))


# --- the grammar ------------------------------------------------------------------------------------------------------


def test_a_seed_writes_the_same_texts(grammar: Any) -> None:
    first, again, other = (texts(grammar, seed, 20) for seed in ("a", "a", "b"))
    assert first == again
    assert first != other
    assert str(grammar.Writer("known").text()) == KNOWN


def gender_of(word: str) -> str:
    stem = word.removesuffix("s")
    return "m" if {word, stem} & MASCULINE else "f" if {word, stem} & FEMININE else "n"


def test_what_is_written_agrees(grammar: Any) -> None:
    """By the words alone: noun and verb are of one number, pronouns of their noun's number and gender."""
    pronouns = {form: person for forms in grammar.PRONOUNS.values() for person, form in forms.items()}
    met = 0
    for text in texts(grammar, "agrees"):
        words = text.words
        for a in text.agreements:
            head, word = words[a.subject.at], words[a.at]
            if head in pronouns:
                plural, person = pronouns[head] == "p", pronouns[head]
            else:
                joined = words[a.subject.at - 3 : a.subject.at].count("and") and not PLURAL_NOUNS.fullmatch(head)
                plural = bool(PLURAL_NOUNS.fullmatch(head)) or bool(joined and a.subject.plural)
                person = "p" if plural else gender_of(head)
            if a.kind == "verb":
                assert bool(SINGULAR_VERBS.fullmatch(word)) == (not plural), text
                assert bool(SINGULAR_VERBS.fullmatch(a.others[0])) == plural
            else:
                assert pronouns[word] == person, text
                assert {pronouns[other] for other in a.others} == set("mfnp") - {person}
            met += 1
    assert met > 5000


def test_every_word_is_in_the_vocabulary_once(grammar: Any, model: le.Model, measure: Any) -> None:
    words = grammar.words()
    assert len(set(words)) == len(words) == model.outputs[0].shape[-1]
    assert measure.vocabulary(model) == words
    met = {word for text in texts(grammar, "words", 1500) for word in text.words}
    assert met == set(words)


def test_held_out_pairs_are_never_trained(grammar: Any) -> None:
    def pairs(held_out: bool) -> set[tuple[str, str]]:
        allowed = grammar.held_out if held_out else grammar.trained
        return {
            (a.subject.noun.singular, frozenset((text.words[a.at], *a.others)))
            for text in texts(grammar, f"pairs {held_out}", 1500, allowed=allowed)
            for a in text.agreements
            if a.kind == "verb"
        }

    trained, held_out = pairs(False), pairs(True)
    assert not trained & held_out
    nouns = {noun.singular for noun in grammar.NOUNS}
    assert {noun for noun, _ in trained} == {noun for noun, _ in held_out} == nouns
    assert len(trained) > 2.5 * len(held_out)


@pytest.mark.parametrize("kinds", [("verb",), ("subject", "possessive", "reflexive")], ids=["verb", "pronoun"])
def test_misleading_nouns_all_mislead(grammar: Any, kinds: tuple[str, ...]) -> None:
    nouns = {form: (noun, plural) for noun in grammar.NOUNS for plural, form in enumerate(noun[:2])}
    for count in range(4):
        for question in islice(grammar.misleading(0, kinds, count), 40):
            subject = question.agreement.subject
            behind = [nouns[word] for word in question.words[subject.at + 1 :] if word in nouns]
            assert len(behind) == count
            for noun, plural in behind:
                other_number = bool(plural) != subject.plural
                other_person = other_number or (not plural and noun.gender != subject.gender)
                assert other_number if kinds == ("verb",) else other_person
            assert question.choices[0] not in question.choices[1:]
            assert grammar.END in question.words  # another sentence goes before


def test_who_has_forgotten_can_only_guess(grammar: Any) -> None:
    """In the questions that find carriers the nearest noun's form is right half of the time, and so is either number."""
    found = list(islice(grammar.unaided("n", lambda a: a.kind == "verb"), 1500))
    assert abs(np.mean([q.agreement.misled for q in found]) - 0.5) < 0.05
    assert abs(np.mean([q.agreement.subject.plural for q in found]) - 0.5) < 0.06


def test_labels_follow_the_subjects(grammar: Any) -> None:
    for text in texts(grammar, "labels", 100):
        labels = grammar.labels(text)
        assert len(labels) == len(text.words)
        verbs = [a for a in text.agreements if a.kind == "verb" and a.depth == 0]
        assert [i for i, label in enumerate(labels) if label.role == "verb"] == [a.at for a in verbs]
        for a in verbs:
            number = "plural" if a.subject.plural else "singular"
            assert {label.number for label in labels[a.subject.at : a.at + 1]} == {number}
            assert labels[a.subject.at].role == "subject"
            if a.construction not in ("pronoun", "second verb", "nothing"):
                assert sum(label.role == "distractor" for label in labels[a.subject.at : a.at]) == a.distractors


# --- what it has learnt -----------------------------------------------------------------------------------------------


def table(card: str, first: str) -> dict[str, list[str]]:
    """A table of the card by the heading of its first column: rows by their first cell."""
    lines = card[card.index(f"| {first} |") :].split("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {name: cells for name, *cells in rows}


@pytest.mark.parametrize(("row", "kinds"), [("verb", ("verb",)), ("pronoun", ("subject", "possessive", "reflexive"))])
def test_agreement_is_what_the_card_says(
    model: le.Model, measure: Any, card: str, row: str, kinds: tuple[str, ...]
) -> None:
    stated = table(card, "misleading nouns")
    assert [float(cell) for cell in stated["the nearest noun's form"]] == [1, 0, 0, 0, 0]
    for distractors, cell in enumerate(stated[row]):
        assert float(cell) >= 0.95
        assert measure.agreement(model, kinds, distractors, 120) >= float(cell) - 0.03


def test_next_words_are_what_the_card_says(model: le.Model, measure: Any, card: str) -> None:
    stated = [cells for name, cells in table(card, "").items() if "this model" in name or "trigram" in name]
    (right, bits, *_), (trigram, trigram_bits, *_) = [[float(cell.strip("*")) for cell in row] for row in stated]
    assert right > trigram
    assert bits < trigram_bits
    tokens = measure.tokens_of(measure.heldout_texts(12_000), measure.vocabulary(model))
    scores = measure.read(model, tokens)
    assert abs(measure.next_right(scores, tokens) - right) < 0.015
    assert abs(measure.bits_a_word(scores, tokens) - bits) < 0.06


@pytest.mark.parametrize("label", ["number", "gender"])
def test_the_units_of_the_card_carry_their_label(model: le.Model, measure: Any, card: str, label: str) -> None:
    """Held at their mean, answers fall to chance; as many others held change nothing."""
    section = card[card.index(f"### What carries {label}") :]
    units = [cells for name, cells in table(section, "held at their mean").items() if name.isdigit()][-1][0]
    stated = [int(unit) for unit in units.split(",")]
    (layer,) = carriers.layers_of(model)
    questions = carriers.Questions.of(measure.unaided(label, 400), measure.vocabulary(model))
    found, asked = questions[:200], questions[200:]
    played = carriers.play(model, layer, found)
    correlation = carriers.correlations(*carriers.between(played.cells, found))
    assert np.argmax(np.abs(correlation)) in stated
    assert carriers.play(model, layer, asked).right(asked).mean() >= 0.95
    held = carriers.play(model, layer, asked, carriers.holding_units(stated, played, found))
    assert abs(held.right(asked).mean() - 0.5) < 0.12
    rest = np.argsort(-np.abs(correlation))[4 : 4 + len(stated)]
    others = carriers.play(model, layer, asked, carriers.holding_units(rest, played, found))
    assert others.right(asked).mean() >= 0.9


def test_number_is_found_without_being_told(model: le.Model, measure: Any, card: str) -> None:
    """From labelled.json alone, as a page would."""
    content = json.loads((FOLDER / "labelled.json").read_text(encoding="utf-8"))
    (layer,) = carriers.layers_of(model)
    questions = carriers.Questions.of(content["questions"]["number"], measure.vocabulary(model))
    found = carriers.carriers(model, layer, questions, candidates=5, draws=3)
    assert found.right >= 0.98
    assert found.ablated[-1].right < 0.65
    assert min(found.ablated[-1].others) > 0.8
    stated = table(card[card.index("### What carries number") :], "held at their mean")
    assert str(found.units[0]) == stated["1"][0]


def test_the_labelled_texts_are_the_grammars(grammar: Any, measure: Any) -> None:
    content = json.loads((FOLDER / "labelled.json").read_text(encoding="utf-8"))
    assert content == measure.labelled()
    for text in content["texts"]:
        words = text["text"].split(" ")
        assert len(words) == len(text["number"]) == len(text["gender"]) == len(text["role"])
        assert {"subject", "verb", "kept", "distractor"} <= set(text["role"])
        for a in text["agreements"]:
            assert words[a["word"]] == a["choices"][0]


@pytest.mark.parametrize(
    ("prompt", "plural"), [("the boys near the car always", True), ("the boy near the cars always", False)]
)
def test_it_goes_on_in_words_that_agree(grammar: Any, model: le.Model, prompt: str, plural: bool) -> None:
    forms = {form: bool(number) for verb in grammar.VERBS for number, form in enumerate(verb[:2])}
    stream, right = model.stream(), 0
    for seed in range(20):
        text = "".join(le.generate(stream.fork(), prompt, max_tokens=1, sampler=le.Sampler(temperature=0.7, seed=seed)))
        right += forms.get(text.strip()) == plural
    assert right >= 18
