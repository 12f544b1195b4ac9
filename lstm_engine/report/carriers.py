"""Where a network keeps something it has been told: the units, or the direction, of a layer's cell state that carry it.

Questions are beginnings of sequences that tell a label early (the subject is plural) and ask for it later (which form
of the verb?). What correlates with the label between telling and asking may carry it; what carries it is shown by
ablation: held at its mean at every step between, it has the network answer by chance, and other units held do not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from ..errors import InputError, listed

if TYPE_CHECKING:
    from ..graph import Node
    from ..model import Model
    from ..stream import Stream

#: Rows that one stream plays at once.
_ROWS: Final = 256


class Layer(NamedTuple):
    """An LSTM layer, named as in a Trace: the arrays of a State that hold its c and h, and which rows [L·D,B,H]."""

    name: str
    cell: str
    hidden: str
    row: int = 0


def layers_of(model: Model) -> tuple[Layer, ...]:
    """The LSTM layers of a model whose state a stream keeps as c and h [L·D,B,H], one for each direction's row."""
    held = model.stream().state.arrays
    makers = {name: node for node in model.graph.nodes for name in node.outputs}
    found = []
    for node in (node for node in model.graph.nodes if node.op == "LSTM"):
        hidden, cell = ((node.input(place) or f"{node.output(0)}.{end}") for place, end in ((5, "h"), (6, "c")))
        (cell_name, row), (hidden_name, _) = (_cut_from(name, makers, model) for name in (cell, hidden))
        if cell_name in held and hidden_name in held:
            found.append(Layer(node.name or next(filter(None, node.outputs)), cell_name, hidden_name, row))
    return tuple(found)


def _cut_from(name: str, makers: dict[str, Node], model: Model) -> tuple[str, int]:
    """What a tensor is a slice of, and from which row on."""
    maker = makers.get(name)
    if maker is None or maker.op != "Slice" or maker.input(1) not in model.graph.constants:
        return name, 0
    return maker.input(0), int(model.graph.constants[maker.input(1)].reshape(-1)[0])


@dataclass(frozen=True)
class Questions:
    """N beginnings of sequences, T steps with whatever fills them up, and which token should follow.

    ``tokens`` [N,T]; ``labels`` [N] bool: what is told; ``told``, ``asked`` [N]: the step that tells it and the one
    whose scores answer; ``choices`` [N,K]: the tokens to choose from, the right one first.
    """

    tokens: np.ndarray
    labels: np.ndarray
    told: np.ndarray
    asked: np.ndarray
    choices: np.ndarray

    def __post_init__(self) -> None:
        faults = []
        counts = {len(array) for array in (self.tokens, self.labels, self.told, self.asked, self.choices)}
        if len(counts) > 1:
            faults.append(f"expected arrays of one length, got {sorted(counts)}")
        elif counts == {0}:
            faults.append("expected at least one")
        elif self.tokens.ndim != 2 or self.choices.ndim != 2:
            faults.append(f"expected tokens[N,T] and choices[N,K], got {self.tokens.shape} and {self.choices.shape}")
        else:
            if not np.all((self.told >= 0) & (self.told <= self.asked)):
                faults.append("expected every label to be told before it is asked for")
            if self.asked.max() >= self.tokens.shape[1]:
                faults.append(f"expected steps below T = {self.tokens.shape[1]}, got {int(self.asked.max())}")
        if faults:
            raise InputError(listed("questions", faults))

    @staticmethod
    def of(entries: Sequence[Mapping[str, Any]], vocabulary: Sequence[str]) -> Questions:
        """From entries {"text": "words with a space between", "told": place of a word, "label": bool, "choices":
        [words, the right one first]}; asked is what comes behind the text.

        Raises InputError naming the words that are not in the vocabulary.
        """
        ids = {word: token for token, word in enumerate(vocabulary)}
        texts = [str(entry["text"]).split(" ") for entry in entries]
        strange = sorted({word for words in [*texts, *(e["choices"] for e in entries)] for word in words} - set(ids))
        if strange:
            raise InputError(f"questions: {', '.join(map(repr, strange[:10]))} not in the vocabulary")
        tokens = np.zeros((len(texts), max(map(len, texts), default=0)), np.int64)
        for row, words in zip(tokens, texts, strict=True):
            row[: len(words)] = [ids[word] for word in words]
        return Questions(
            tokens,
            np.array([entry["label"] for entry in entries], bool),
            np.array([entry["told"] for entry in entries], np.int64),
            np.array([len(words) - 1 for words in texts], np.int64),
            np.array([[ids[word] for word in entry["choices"]] for entry in entries], np.int64),
        )

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: np.ndarray | slice) -> Questions:
        """Some of them."""
        return Questions(self.tokens[rows], self.labels[rows], self.told[rows], self.asked[rows], self.choices[rows])

    @property
    def kept(self) -> np.ndarray:
        """[N,T] bool: the steps behind which memory has to hold the label: the telling one to that before the asked."""
        steps = np.arange(self.tokens.shape[1])
        return (steps >= self.told[:, None]) & (steps < self.asked[:, None])


@dataclass(frozen=True)
class Hold:
    """A part of a state vector [H], held fast: its coordinates on orthonormal ``axes`` [K,H] are ``centre``'s."""

    axes: np.ndarray
    centre: np.ndarray

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """values [n,H] with this part held."""
        return np.asarray(values - (values - self.centre) @ self.axes.T @ self.axes)


class Ablation(NamedTuple):
    """What is held of a layer's c and h."""

    cell: Hold
    hidden: Hold


@dataclass(frozen=True)
class Played:
    """What the network did with questions: c and h behind every step [N,T,H], and the scores [N,V] that answer."""

    cells: np.ndarray
    hidden: np.ndarray
    scores: np.ndarray

    def lead(self, questions: Questions) -> np.ndarray:
        """[N]: by how much the right choice's score is above the best of the others."""
        scores = np.take_along_axis(self.scores, questions.choices, axis=1)
        return np.asarray(scores[:, 0] - scores[:, 1:].max(axis=1))

    def right(self, questions: Questions) -> np.ndarray:
        """[N] bool: whether the right choice has the highest score of all choices."""
        return self.lead(questions) > 0


# --- playing ----------------------------------------------------------------------------------------------------------


def play(model: Model, layer: Layer, questions: Questions, ablation: Ablation | None = None) -> Played:
    """Have a model read questions; an ablation edits the state behind each step at which the label has to be kept.

    ``model``: takes a token id a step, gives scores [B,V].
    """
    parts = [
        _play(model.stream(len(part)), layer, part, ablation)
        for part in (questions[first : first + _ROWS] for first in range(0, len(questions), _ROWS))
    ]
    return Played(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _play(
    stream: Stream, layer: Layer, questions: Questions, ablation: Ablation | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    kept = questions.kept
    edits = None if ablation is None else [(kept[:, step], ablation) for step in range(kept.shape[1])]
    cells, hidden, answers = [], [], None
    for step, (scores, c, h) in enumerate(_steps(stream, layer, questions.tokens, edits)):
        answers = np.zeros_like(scores) if answers is None else answers
        asked = questions.asked == step
        answers[asked] = scores[asked]
        cells.append(c)
        hidden.append(h)
    return np.stack(cells, axis=1), np.stack(hidden, axis=1), np.asarray(answers)


def _steps(
    stream: Stream, layer: Layer, tokens: np.ndarray, edits: Sequence[tuple[np.ndarray, Ablation]] | None
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Scores, and the layer's c and h, behind every step; ``edits``: of which rows these are ablated, and how."""
    for step in range(tokens.shape[1]):
        scores = stream.step(tokens[:, step])
        state = stream.state
        c, h = state.arrays[layer.cell][layer.row], state.arrays[layer.hidden][layer.row]
        if edits is not None:
            rows, ablation = edits[step]
            c[rows], h[rows] = ablation.cell(c[rows]), ablation.hidden(h[rows])
            stream.state = state
        yield scores, c, h


# --- what correlates --------------------------------------------------------------------------------------------------


def between(values: np.ndarray, questions: Questions) -> tuple[np.ndarray, np.ndarray]:
    """The values [N,T,H] of the steps behind the one that tells the label, up to the one asked → [M,H], labels [M]."""
    steps = np.arange(values.shape[1])
    chosen = (steps > questions.told[:, None]) & (steps <= questions.asked[:, None])
    return values[chosen], np.broadcast_to(questions.labels[:, None], chosen.shape)[chosen]


def correlations(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Pearson's correlation of each column of values [N,H] with labels [N]; 0 where either is constant."""
    x = values.astype(np.float64) - values.mean(axis=0, dtype=np.float64)
    y = labels.astype(np.float64) - labels.mean(dtype=np.float64)
    power = np.sqrt((x**2).sum(axis=0) * (y**2).sum())
    return np.asarray(np.divide(x.T @ y, power, out=np.zeros(x.shape[1]), where=power > 0))


def class_means(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The means [2,H] of values [N,H] with the label and without: row 0 without, row 1 with it."""
    told = labels.astype(bool)
    if told.all() or not told.any():
        raise InputError("labels: expected both values among them, got one")
    return np.stack([values[~told].mean(axis=0, dtype=np.float64), values[told].mean(axis=0, dtype=np.float64)])


def direction(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The unit vector [H] that leads from one class's mean to the other's."""
    without, with_it = class_means(values, labels)
    distance = np.linalg.norm(with_it - without)
    return np.asarray((with_it - without) / (distance if distance > 0 else 1.0))


def readable(values: np.ndarray, labels: np.ndarray, tested: np.ndarray, truth: np.ndarray) -> float:
    """How often a linear probe, fitted by least squares to values [N,H] and labels, tells those of ``tested``."""
    x, y = _with_one(values), np.where(labels, 1.0, -1.0)
    weights = np.linalg.solve(x.T @ x + 1e-3 * len(x) * np.eye(x.shape[1]), x.T @ y)
    return float(((_with_one(tested) @ weights > 0) == truth.astype(bool)).mean())


def _with_one(values: np.ndarray) -> np.ndarray:
    return np.hstack([values.astype(np.float64), np.ones((len(values), 1))])


# --- what is ablated --------------------------------------------------------------------------------------------------


def midpoint(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The point [H] that is as near to the mean of one class as to the other's: it tells nothing of the label."""
    return np.asarray(class_means(values, labels).mean(axis=0))


def holding_units(units: Sequence[int], played: Played, questions: Questions) -> Ablation:
    """Holds units' c and h at their means between telling and asking."""
    return Ablation(
        *(
            Hold(np.eye(values.shape[2])[list(units)], midpoint(*between(values, questions)))
            for values in (played.cells, played.hidden)
        )
    )


def holding_direction(played: Played, questions: Questions) -> Ablation:
    """Holds c and h at their means on the direction between the classes, and lets all else be."""
    return Ablation(
        *(
            Hold(direction(*between(values, questions))[None], midpoint(*between(values, questions)))
            for values in (played.cells, played.hidden)
        )
    )


# --- which units carry a label ----------------------------------------------------------------------------------------


class Ablated(NamedTuple):
    """How often the right choice is the likeliest when some units are held, and when as many others are."""

    units: tuple[int, ...]
    right: float
    others: tuple[float, ...]  # for each draw of other units


@dataclass(frozen=True)
class Carriers:
    """How a layer carries a label: each unit's correlation [H] with it, and what ablations do.

    ``right``: how often the untouched network answers rightly. ``ablated``: with one unit held, then with one more, and
    so on until the network can only guess. ``along``: with the direction between the classes held. ``probe``: how
    often a linear probe of c tells the label of questions it was not fitted to.
    """

    layer: Layer
    correlation: np.ndarray
    right: float
    ablated: tuple[Ablated, ...]
    along: float
    probe: float
    chance: float

    @property
    def order(self) -> np.ndarray:
        """All units, the most correlated first."""
        return np.argsort(-np.abs(self.correlation), kind="stable")

    @property
    def units(self) -> tuple[int, ...]:
        """The units that were held last: those that carry the label, the most telling first."""
        return self.ablated[-1].units


def carriers(
    model: Model,
    layer: Layer,
    questions: Questions,
    candidates: int = 12,
    most: int = 8,
    margin: float = 0.06,
    draws: int = 8,
    seed: int = 0,
) -> Carriers:
    """Find the units of a layer that carry the questions' label.

    The first half of the questions chooses, one after another among the ``candidates`` of highest correlation, the
    unit that takes most of the right choice's lead when it is held as well, until answers are within ``margin`` of
    chance or ``most`` units are held. The second half is answered with these held, and with as many others, drawn
    ``draws`` times.
    """
    found, asked = questions[: len(questions) // 2], questions[len(questions) // 2 :]
    chance = 1 / questions.choices.shape[1]
    played, whole = play(model, layer, found), play(model, layer, asked)
    values, labels = between(played.cells, found)
    correlation = correlations(values, labels)
    best = np.argsort(-np.abs(correlation), kind="stable")[:candidates]
    chosen = _chosen(model, layer, found, played, best.tolist(), most, chance + margin)
    dice = np.random.default_rng(seed)

    def right_with(ablation: Ablation) -> float:
        return float(play(model, layer, asked, ablation).right(asked).mean())

    ablated = []
    for count in range(1, len(chosen) + 1):
        units = chosen[:count]
        rest = np.setdiff1d(np.arange(len(correlation)), chosen)
        drawn = [dice.choice(rest, min(count, len(rest)), replace=False).tolist() for _ in range(draws)]
        others = tuple(right_with(holding_units(other, played, found)) for other in drawn)
        ablated.append(Ablated(tuple(units), right_with(holding_units(units, played, found)), others))
    return Carriers(
        layer,
        correlation,
        float(whole.right(asked).mean()),
        tuple(ablated),
        right_with(holding_direction(played, found)),
        readable(values, labels, *between(whole.cells, asked)),
        chance,
    )


def _chosen(
    model: Model, layer: Layer, questions: Questions, played: Played, candidates: list[int], most: int, enough: float
) -> list[int]:
    """Units in the order in which holding one more takes most of the lead, until no more than ``enough`` is right."""
    chosen: list[int] = []
    while candidates and len(chosen) < most:
        held = [play(model, layer, questions, holding_units([*chosen, unit], played, questions)) for unit in candidates]
        taken = int(np.argmin([one.lead(questions).mean() for one in held]))
        chosen.append(candidates.pop(taken))
        if held[taken].right(questions).mean() <= enough:
            break
    return chosen
