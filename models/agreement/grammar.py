"""A small English grammar that writes texts, and says in each which word agrees with which.

Subjects agree with their verbs across prepositional phrases and relative clauses, with the second of two verbs, and
with pronouns later on (``he``, ``their``, ``itself``), in number and gender. Every draw comes from one seed.

A relative clause belongs to the noun right before it; a pronoun stands for the subject of the clause before, or of
its own. So each agreeing word has one form that is right, however many nouns stand between.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, NamedTuple

BOUNDARY: Final = "<text>"
END: Final = "."


class Noun(NamedTuple):
    """A noun in both numbers; gender m, f or n."""

    singular: str
    plural: str
    gender: str

    def form(self, plural: bool) -> str:
        return self.plural if plural else self.singular


class Verb(NamedTuple):
    """A verb in both numbers, and what follows it."""

    singular: str
    plural: str
    kind: str  # alone, object, state (an adjective), own (a thing)

    def form(self, plural: bool) -> str:
        return self.plural if plural else self.singular


def _nouns(gender: str, words: str) -> list[Noun]:
    """Nouns with a regular plural, or with ``singular/plural``."""
    pairs = (word.split("/") if "/" in word else (word, word + "s") for word in words.split())
    return [Noun(singular, plural, gender) for singular, plural in pairs]


def _verbs(kind: str, words: str) -> list[Verb]:
    """Verbs whose singular has an s, or ``singular/plural``."""
    pairs = (word.split("/") if "/" in word else (word + "s", word) for word in words.split())
    return [Verb(singular, plural, kind) for singular, plural in pairs]


PERSONS: Final = [
    *_nouns("m", "boy man/men king father uncle brother prince monk"),
    *_nouns("f", "girl woman/women queen mother aunt sister lady/ladies nun"),
]
THINGS: Final = _nouns("n", "car house tree key cabinet boat tower bridge lamp bottle garden clock")
NOUNS: Final = [*PERSONS, *THINGS]

PERSON_VERBS: Final = [
    *_verbs("alone", "sleep laugh wait sing dance smile run walk"),
    *_verbs("object", "see like help know follow admire remember call"),
    *_verbs("state", "is/are was/were seem"),
    *_verbs("own", "has/have want"),
]
THING_VERBS: Final = [
    *_verbs("alone", "fall stand break shine move vanishes/vanish"),
    *_verbs("state", "is/are was/were look"),
    *_verbs("object", "hide touches/touch"),
    *_verbs("own", "need lack"),
]
VERBS: Final = list(dict.fromkeys([*PERSON_VERBS, *THING_VERBS]))
PERSON_STATES: Final = ["happy", "tired", "hungry", "kind", "brave", "angry", "famous", "clever"]
THING_STATES: Final = ["new", "broken", "heavy", "green", "dirty", "expensive"]
QUALITIES: Final = ["old", "young", "small", "tall", "strange", "quiet"]  # before a person
THING_QUALITIES: Final = ["old", "small", "tall", "strange", "red", "blue"]  # before a thing
PREPOSITIONS: Final = ["near", "behind", "beside", "with", "under", "above"]
ADVERBS: Final = ["often", "never", "always", "still"]  # before a verb
TIMES: Final = ["today", "again", "now", "here"]  # after it
DETERMINERS: Final = {False: ["the"] * 5 + ["one", "every", "this"], True: ["the"] * 5 + ["some", "two", "these"]}
LINKS: Final = ["because", "when", "while"]  # before a pronoun that is the same subject
NEW_CLAUSE: Final = ["and", "but", "while"]  # before a new subject
AGAIN: Final = "and"  # before a second verb of the same subject

#: Pronouns by use, each for a masculine, feminine, neuter and plural subject.
PRONOUNS: Final[dict[str, dict[str, str]]] = {
    "subject": {"m": "he", "f": "she", "n": "it", "p": "they"},
    "possessive": {"m": "his", "f": "her", "n": "its", "p": "their"},
    "reflexive": {"m": "himself", "f": "herself", "n": "itself", "p": "themselves"},
}


def words() -> list[str]:
    """Every word the grammar writes, the boundary first: a word's place is its token."""
    found = [BOUNDARY, END, "who", "that", AGAIN, *LINKS, *NEW_CLAUSE, *PREPOSITIONS, *ADVERBS, *TIMES]
    found += [*DETERMINERS[False], *DETERMINERS[True]]
    found += [word for forms in PRONOUNS.values() for word in forms.values()]
    for noun in NOUNS:
        found += [noun.singular, noun.plural]
    for verb in VERBS:
        found += [verb.singular, verb.plural]
    found += [*QUALITIES, *THING_QUALITIES, *PERSON_STATES, *THING_STATES]
    return list(dict.fromkeys(found))


# --- which subject may have which verb --------------------------------------------------------------------------------

Allowed = Callable[[Noun, Verb], bool]


def held_out(noun: Noun, verb: Verb) -> bool:
    """One combination of subject and verb in five, spread evenly over both, is kept from training in either number."""
    return (2 * NOUNS.index(noun) + VERBS.index(verb)) % 5 == 0


def trained(noun: Noun, verb: Verb) -> bool:
    """The other four."""
    return not held_out(noun, verb)


# --- what a text says of itself ---------------------------------------------------------------------------------------


class Subject(NamedTuple):
    """Who a clause is about: the head's place in the text (of two joined by ``and`` the second's)."""

    at: int
    noun: Noun
    plural: bool
    gender: str  # m, f or n

    @property
    def person(self) -> str:
        """Which pronoun stands for it: m, f, n or p."""
        return "p" if self.plural else self.gender


class Agreement(NamedTuple):
    """A word whose form an earlier subject decides."""

    kind: str  # verb, or a use of PRONOUNS
    subject: Subject
    at: int  # the word's place
    others: tuple[str, ...]  # a verb's form of the other number; the pronouns for other subjects
    construction: str
    between: int  # nouns between subject and word
    distractors: int  # those that ask for another form
    misled: bool  # whether the last of them does
    aided: bool  # whether an earlier word told of the same subject what this one has to agree in
    depth: int  # 0: of the clause; 1, 2, …: within relative clauses


@dataclass
class Text:
    """Words, and the agreements among them."""

    words: list[str] = field(default_factory=list)
    agreements: list[Agreement] = field(default_factory=list)

    def __str__(self) -> str:
        return " ".join(self.words)


class Label(NamedTuple):
    """What holds at a word."""

    number: str  # singular or plural: the current subject's, from its head to the next one's; nothing before the first
    gender: str
    role: str  # subject or verb of the clause; between them distractor (a noun of the other number) or kept; or nothing


def labels(text: Text) -> list[Label]:
    """A label a word: the current subject's number and gender from its head to the next one's, and the word's role."""
    result = [Label("", "", "")] * len(text.words)
    verbs = [a for a in text.agreements if a.kind == "verb" and a.depth == 0]
    starts = sorted({a.subject.at: a.subject for a in verbs}.items())
    for (start, subject), (end, _) in zip(starts, [*starts[1:], (len(text.words), None)], strict=True):
        number = "plural" if subject.plural else "singular"
        result[start:end] = [Label(number, subject.gender, "")] * (end - start)
    for agreement in verbs:
        subject, at = agreement.subject, agreement.at
        roles = dict.fromkeys(range(subject.at + 1, at), "kept")
        roles |= {i: "distractor" for i in roles if text.words[i] in _FORMS_OF_NUMBER[not subject.plural]}
        for i, role in {**roles, subject.at: "subject", at: "verb"}.items():
            result[i] = result[i]._replace(role=result[i].role if result[i].role == "verb" else role)
    return result


_FORMS_OF_NUMBER: Final = {plural: {noun.form(plural) for noun in NOUNS} for plural in (False, True)}


# --- writing ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Style:
    """How texts are drawn."""

    allowed: Allowed = trained
    modified: float = 0.6  # chance that a noun has something behind it; less within it
    opposed: bool = False  # every noun behind a clause's subject is of the other number and, if a person, gender
    deepest: int = 4  # nouns within nouns
    sentences: tuple[int, int] = (3, 7)


class Writer:
    """Draws texts, one after another."""

    def __init__(self, seed: int | str, style: Style | None = None) -> None:
        self.style = style or Style()
        self._draw = random.Random(f"agreement {seed}").random
        self._text = Text()
        self._nouns: list[Subject] = []  # all of the text, in order
        self._head: Subject | None = None  # the clause's subject

    def texts(self) -> Iterator[Text]:
        """Texts without end; each begins with the boundary."""
        while True:
            yield self.text()

    def text(self) -> Text:
        """Some sentences about changing subjects."""
        self._begin()
        low, high = self.style.sentences
        for _ in range(low + int(self._draw() * (high - low + 1))):
            self._sentence()
        return self._text

    def _begin(self) -> None:
        self._text, self._nouns, self._head = Text([BOUNDARY]), [], None

    # draws

    def _chance(self, probability: float) -> bool:
        return self._draw() < probability

    def _one(self, things: Sequence[str]) -> str:
        return things[int(self._draw() * len(things))]

    def _say(self, *words: str) -> None:
        self._text.words.extend(words)

    # clauses

    def _sentence(self) -> None:
        self._clause(pronoun=0.3)
        if self._chance(0.2):
            self._say(self._one(NEW_CLAUSE))
            self._clause(pronoun=0.0)
        self._say(END)

    def _clause(self, pronoun: float) -> None:
        """A subject and what it does; maybe a second verb; maybe a clause about the same subject."""
        if self._head is not None and self._chance(pronoun):
            subject, shape = self._pronoun_subject(self._head), "pronoun"
        else:
            subject, shape = self._subject()
        self._head = subject
        self._predicate(subject, shape, 0)
        if self._chance(0.15):
            self._say(AGAIN)
            self._predicate(subject, "second verb", 0)
        elif self._chance(0.2):
            self._say(self._one(LINKS))
            self._head = self._pronoun_subject(subject)
            self._predicate(self._head, "pronoun", 0)

    def _subject(self) -> tuple[Subject, str]:
        """A clause's noun phrase, and the name of its construction."""
        self._head = None
        subject = self._head = self._noun(PERSONS if self._chance(0.75) else THINGS, qualities=0.2)
        if subject.gender != "n" and self._chance(0.06):
            self._say("and")
            second = self._noun(PERSONS, qualities=0.1)
            return second._replace(plural=True), "two subjects"
        return subject, self._behind(subject, 1)

    def _pronoun_subject(self, subject: Subject) -> Subject:
        self._pronoun("subject", subject)
        return subject._replace(at=len(self._text.words) - 1)

    def _pronoun(self, use: str, subject: Subject, depth: int = 0) -> None:
        """The pronoun that stands for a subject."""
        forms = PRONOUNS[use]
        others = tuple(form for person, form in forms.items() if person != subject.person)
        self._agree(use, subject, forms[subject.person], others, use, depth)

    def _predicate(self, subject: Subject, construction: str, depth: int) -> None:
        """A verb and what follows it."""
        verb = self._verb(subject, construction, depth)
        if verb.kind == "state":
            self._say(self._one(THING_STATES if subject.gender == "n" else PERSON_STATES))
        elif verb.kind == "own":
            self._object(subject, THINGS, depth)
        elif verb.kind == "object":
            if self._chance(0.2):
                self._pronoun("reflexive", subject, depth)
            else:
                self._object(subject, NOUNS, depth)
        if depth == 0 and self._chance(0.2):
            self._say(self._one(TIMES))

    def _verb(self, subject: Subject, construction: str, depth: int, kinds: str = "") -> Verb:
        """A verb in the subject's number; only of some kinds, if these are given."""
        if self._chance(0.15):
            self._say(self._one(ADVERBS))
        verbs = [v for v in self._verbs_of(subject.noun) if not kinds or v.kind == kinds]
        verb = verbs[int(self._draw() * len(verbs))]
        self._agree("verb", subject, verb.form(subject.plural), (verb.form(not subject.plural),), construction, depth)
        return verb

    def _verbs_of(self, noun: Noun) -> list[Verb]:
        verbs = THING_VERBS if noun.gender == "n" else PERSON_VERBS
        return [verb for verb in verbs if self.style.allowed(noun, verb)]

    def _agree(
        self, kind: str, subject: Subject, form: str, others: tuple[str, ...], construction: str, depth: int
    ) -> None:
        """Say a word that agrees, and note it."""
        self._say(form)
        between = [noun for noun in self._nouns if noun.at > subject.at]
        if kind == "verb":
            others_form = [noun.plural != subject.plural for noun in between]
            aided = any(a.subject.at == subject.at for a in self._text.agreements)
        else:
            others_form = [noun.person != subject.person for noun in between]
            aided = any(a.subject.at == subject.at and a.kind != "verb" for a in self._text.agreements)
        self._text.agreements.append(
            Agreement(
                kind,
                subject,
                len(self._text.words) - 1,
                others,
                construction,
                between=len(between),
                distractors=sum(others_form),
                misled=others_form[-1:] == [True],
                aided=aided,
                depth=depth,
            )
        )

    # noun phrases

    def _object(self, subject: Subject, nouns: Sequence[Noun], depth: int) -> None:
        """What a verb is done to: with a possessive that agrees with the subject, or with a modifier."""
        if self._chance(0.2):
            self._pronoun("possessive", subject, depth)
            self._noun(nouns, determined=False)
            return
        noun = self._noun(nouns, qualities=0.1)
        self._behind(noun, depth + 2)

    def _noun(self, nouns: Sequence[Noun], qualities: float = 0.0, determined: bool = True) -> Subject:
        """Determiner, perhaps an adjective, and a noun."""
        if self._opposing():
            nouns = [noun for noun in nouns if noun.gender in ("n", *self._other_gender())]
        noun = nouns[int(self._draw() * len(nouns))]
        plural = self._plural()
        if determined:
            self._say(self._one(DETERMINERS[plural]))
        if self._chance(qualities):
            self._say(self._one(THING_QUALITIES if noun.gender == "n" else QUALITIES))
        self._say(noun.form(plural))
        self._nouns.append(Subject(len(self._text.words) - 1, noun, plural, noun.gender))
        return self._nouns[-1]

    def _opposing(self) -> bool:
        return self.style.opposed and self._head is not None

    def _plural(self) -> bool:
        if self._opposing() and self._head is not None:
            return not self._head.plural
        return self._chance(0.5)

    def _other_gender(self) -> tuple[str, ...]:
        assert self._head is not None
        return {"m": ("f",), "f": ("m",)}.get(self._head.gender, ("m", "f"))

    def _behind(self, noun: Subject, depth: int) -> str:
        """What stands behind a noun; returns the name of the construction."""
        chance = self.style.modified * 0.9 ** (depth - 1)
        if depth > self.style.deepest or not self._chance(chance):
            return "nothing"
        kind = self._draw()
        if kind < 0.5:
            return self._prepositional(depth)
        if kind < 0.75:
            return self._subject_relative(noun, depth)
        return self._object_relative(noun, depth)

    def _prepositional(self, depth: int) -> str:
        """``near the cars …``."""
        self._say(self._one(PREPOSITIONS))
        noun = self._noun(THINGS if self._chance(0.6) else PERSONS)
        inner = self._behind(noun, depth + 1)
        return "prepositional" if inner in ("nothing", "prepositional") else "prepositional and relative"

    def _relative_pronoun(self, noun: Subject) -> None:
        self._say("that" if noun.gender == "n" or self._chance(0.4) else "who")

    def _subject_relative(self, noun: Subject, depth: int) -> str:
        """``who sees the girls …``: its verb agrees with the noun."""
        self._relative_pronoun(noun)
        self._predicate(noun, "within a relative", depth)
        return "subject relative"

    def _object_relative(self, noun: Subject, depth: int) -> str:
        """``that the girls … see``: its verb agrees with a subject of its own."""
        self._relative_pronoun(noun)
        inner = self._noun(PERSONS)
        self._behind(inner, depth + 2)
        self._verb(inner, "within a relative", depth, kinds="object")
        return "object relative"


# --- questions --------------------------------------------------------------------------------------------------------


class Question(NamedTuple):
    """The beginning of a text, and the words that might come next, the right one first."""

    words: list[str]
    agreement: Agreement
    choices: tuple[str, ...]


Wanted = Callable[[Agreement], bool]


def questions(seed: int | str, wanted: Wanted, style: Style) -> Iterator[Question]:
    """Questions without end about a text's second sentence or a later one, at most one of each text."""
    for text in Writer(f"question {seed}", style).texts():
        first = text.words.index(END)
        fitting = (a for a in text.agreements if a.depth == 0 and a.at > first and wanted(a))
        for agreement in islice(fitting, 1):
            yield Question(text.words[: agreement.at], agreement, (text.words[agreement.at], *agreement.others))


def misleading(
    seed: int | str, kinds: Sequence[str], distractors: int, allowed: Allowed = held_out
) -> Iterator[Question]:
    """Questions with exactly so many nouns between subject and word, each of which asks for another form."""
    style = Style(allowed, modified=min(0.3 + 0.15 * distractors, 0.8), opposed=True, sentences=(2, 2))

    def wanted(agreement: Agreement) -> bool:
        return agreement.kind in kinds and agreement.between == agreement.distractors == distractors

    return questions(f"{seed} {distractors}", wanted, style)


def unaided(seed: int | str, wanted: Wanted, allowed: Allowed = held_out) -> Iterator[Question]:
    """Questions with nouns of any number and gender between subject and word, and no other word that tells the answer:
    who has forgotten the subject can only guess."""
    return questions(seed, lambda a: a.between > 0 and not a.aided and wanted(a), Style(allowed, sentences=(2, 2)))
