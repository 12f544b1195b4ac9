"""The walk: gates, cell states and outputs of a run, step by step and unit by unit, as a page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np

from .document import document, escaped
from .packing import BYTE, WORD, chosen, fits_a_byte, packed

#: Values that a page holds with four digits; beyond them those that fit take one byte and two digits.
EXACT_VALUES: Final = 4_000_000
#: Values that a page holds at most: rows of the batch, then steps, beyond them are left out, and the page says so.
MOST_VALUES: Final = 24_000_000
MOST_SIGNALS: Final = 8
_DECIMALS: Final = 4  # of statistics


class Moment(NamedTuple):
    """A step at which much happened: where, which unit took most part, and how much it was over all units."""

    step: int
    row: int
    unit: int
    total: float


@dataclass(frozen=True)
class Layer:
    """A recurrent layer: ``arrays`` {part: [T,B,H]}, ``statistics`` {name: [H]}, ``moments`` {kind: the largest}."""

    name: str
    op: str
    arrays: Mapping[str, np.ndarray]
    statistics: Mapping[str, np.ndarray]
    moments: Mapping[str, Sequence[Moment]]
    backwards: bool = False
    functions: Sequence[str] = ()


class Signal(NamedTuple):
    """A curve along the steps: values [T,B]."""

    name: str
    values: np.ndarray


class Track(NamedTuple):
    """A label at every step, '' for none, for all rows: [T]."""

    name: str
    values: Sequence[str]


class Candidates(NamedTuple):
    """The likeliest next tokens behind each step: words [T][B][K], their probabilities [T,B,K]; ``follows`` [T][B]
    what did come, '' for unknown, and its probability [T,B]."""

    words: Sequence[Sequence[Sequence[str]]]
    probabilities: np.ndarray
    follows: Sequence[Sequence[str]]
    likelihood: np.ndarray


class Jump(NamedTuple):
    """A place worth looking at."""

    text: str
    step: int
    layer: str = ""
    unit: int | None = None


@dataclass(frozen=True)
class Finding:
    """What is known of some units: a heading, paragraphs, a table (its first row the header), places to look at."""

    heading: str
    paragraphs: Sequence[str]
    table: Sequence[Sequence[str]]
    jumps: Sequence[Jump]


@dataclass(frozen=True)
class Walk:
    """Everything on the page. ``labels`` [T][B]: the text along the axis; ``joined``: they make up a text as they are,
    with no spaces to put between them."""

    title: str
    about: Sequence[tuple[str, str]]
    layers: Sequence[Layer]
    labels: Sequence[Sequence[str]] | None = None
    joined: bool = True
    inputs: Sequence[Signal] = ()
    outputs: Sequence[Signal] = ()
    tracks: Sequence[Track] = ()
    candidates: Candidates | None = None
    findings: Sequence[Finding] = ()
    notes: Sequence[str] = field(default=())


def page(walk: Walk) -> str:
    """The page as HTML."""
    view, notes = _view(walk)
    about = "".join(f"<div><dt>{escaped(name)}</dt><dd>{escaped(value)}</dd></div>" for name, value in walk.about)
    remarks = "".join(f"<p class='note'>{escaped(note)}</p>" for note in [*walk.notes, *notes])
    body = _BODY.format(title=escaped(walk.title), about=about, notes=remarks)
    return document(walk.title, body, ("page.css", "walk.css"), ("page.js", "walk.js"), view)


# --- what the script reads -------------------------------------------------------------------------------------------


class _Window(NamedTuple):
    """The part of a run that a page has room for."""

    steps: int
    rows: int
    exact: bool

    def of(self, values: np.ndarray) -> np.ndarray:
        """That part of an array [T,B,…], rows first: [B,T,…]."""
        return np.swapaxes(values[: self.steps, : self.rows], 0, 1)

    def words(self, words: Sequence[Sequence[Any]]) -> list[list[Any]]:
        """That part of lists [T][B], rows first."""
        return [[step[row] for step in words[: self.steps]] for row in range(self.rows)]


def _window(layers: Sequence[Layer]) -> tuple[_Window, list[str]]:
    """What fits, and what to say of what does not."""
    steps, rows = next((next(iter(layer.arrays.values())).shape[:2] for layer in layers), (0, 0))
    cells = sum(array.shape[2] for layer in layers for array in layer.arrays.values())
    most_rows = max(1, min(rows, MOST_VALUES // max(cells * steps, 1)))
    most_steps = max(1, min(steps, MOST_VALUES // max(cells * most_rows, 1)))
    notes = []
    if most_rows < rows:
        notes.append(f"The first {most_rows:,} of {rows:,} rows are shown.")
    if most_steps < steps:
        notes.append(f"The first {most_steps:,} of {steps:,} steps are shown.")
    exact = cells * most_steps * most_rows <= EXACT_VALUES
    if not exact:
        notes.append("What lies between -1 and 1 is told to two digits, for the page to stay small.")
    return _Window(most_steps, most_rows, exact), notes


def _view(walk: Walk) -> tuple[dict[str, Any], list[str]]:
    window, notes = _window(walk.layers)
    view: dict[str, Any] = {
        "steps": window.steps if walk.layers else 0,
        "rows": window.rows if walk.layers else 0,
        "joined": walk.joined,
        "labels": None if walk.labels is None else chosen(window.words(walk.labels)),
        "inputs": [_signal(signal, window) for signal in walk.inputs[:MOST_SIGNALS]],
        "outputs": [_signal(signal, window) for signal in walk.outputs[:MOST_SIGNALS]],
        "tracks": [{"name": t.name, **chosen([t.values[: window.steps]])} for t in walk.tracks],
        "candidates": None if walk.candidates is None else _candidates(walk.candidates, window),
        "findings": [_finding(finding) for finding in walk.findings],
        "layers": [_layer(layer, window) for layer in walk.layers],
    }
    for kind, signals in (("inputs", walk.inputs), ("outputs", walk.outputs)):
        if len(signals) > MOST_SIGNALS:
            notes.append(f"The first {MOST_SIGNALS} of {len(signals)} {kind} are drawn.")
    return view, notes


def _signal(signal: Signal, window: _Window) -> dict[str, Any]:
    return {"name": signal.name, **packed(window.of(signal.values))}


def _layer(layer: Layer, window: _Window) -> dict[str, Any]:
    units = next(iter(layer.arrays.values())).shape[2]
    return {
        "name": layer.name,
        "op": layer.op,
        "units": units,
        "backwards": layer.backwards,
        "functions": list(layer.functions),
        "parts": {part: _part(window.of(values), window.exact) for part, values in layer.arrays.items()},
        "statistics": {name: _rounded(values) for name, values in layer.statistics.items()},
        "moments": {kind: _moments(moments, window) for kind, moments in layer.moments.items()},
    }


def _part(values: np.ndarray, exact: bool) -> dict[str, Any]:
    if exact:
        return packed(values)
    return packed(values, BYTE if fits_a_byte(values) else WORD)


def _rounded(values: np.ndarray) -> list[float | None]:
    """Numbers for JSON, which has none for what is not finite."""
    return [round(value, _DECIMALS) if math.isfinite(value) else None for value in map(float, values)]


def _moments(moments: Sequence[Moment], window: _Window) -> list[list[Any]]:
    there = [moment for moment in moments if moment.step < window.steps and moment.row < window.rows]
    return [[m.step, m.row, m.unit, round(m.total, _DECIMALS)] for m in there if math.isfinite(m.total)]


def _candidates(candidates: Candidates, window: _Window) -> dict[str, Any]:
    words = [each for row in window.words(candidates.words) for each in row]
    return {
        "count": candidates.probabilities.shape[2],
        "words": chosen(words),
        "probabilities": packed(window.of(candidates.probabilities)),
        "follows": chosen(window.words(candidates.follows)),
        "likelihood": packed(window.of(candidates.likelihood)),
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "heading": finding.heading,
        "paragraphs": list(finding.paragraphs),
        "table": [list(row) for row in finding.table],
        "jumps": [jump._asdict() for jump in finding.jumps],
    }


# --- moments ---------------------------------------------------------------------------------------------------------


def moments(amounts: np.ndarray, count: int = 10) -> list[Moment]:
    """The steps of a run at which the amounts [T,B,H] are largest over all units, the largest first."""
    totals = amounts.sum(axis=2, dtype=np.float64)
    order = np.argsort(-totals, axis=None, kind="stable")[:count]
    return list(_moments_at(amounts, totals, order))


def _moments_at(amounts: np.ndarray, totals: np.ndarray, order: np.ndarray) -> Iterator[Moment]:
    for step, row in zip(*np.unravel_index(order, totals.shape), strict=True):
        if totals[step, row] > 0:
            yield Moment(int(step), int(row), int(amounts[step, row].argmax()), float(totals[step, row]))


_BODY: Final = """<a class="skip" href="#walk">Skip to the walk</a>
<header>
<div class="bar"><h1 dir="auto">{title}</h1><button id="theme" type="button">Dark</button></div>
<dl class="about">{about}</dl>
{notes}
</header>
<noscript><p class="note">This page draws with a script of its own; it needs JavaScript, and no network.</p></noscript>
<main id="main">
<section id="controls" aria-label="Choose what is shown"></section>
<div id="columns">
<section id="maps" aria-labelledby="maps-title"><h2 id="maps-title">Gates and cell over time</h2></section>
<section id="walk" tabindex="0" aria-labelledby="walk-title"><h2 id="walk-title">One unit, one step</h2></section>
</div>
<div id="more"></div>
</main>
<p id="told" class="unseen" role="status" aria-live="polite"></p>
<footer><p>Written by lstm_engine. Everything is in this file; nothing is loaded.</p></footer>"""
