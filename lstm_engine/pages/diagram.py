"""A network as a picture: boxes in columns, data from left to right, state that goes round. Drawn as SVG."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, pairwise
from typing import Final, NamedTuple

from .document import document, escaped

_WIDE, _HIGH = 184, 74  # of a box
_GAP, _LANE = 140, 18  # between columns; for what only passes by
_BETWEEN = 26  # boxes of a column
_MARGIN, _LOOP = 16, 30
_SWEEPS: Final = 6
_LETTERS: Final = 25  # of a line in a box
_EDGE_LETTERS: Final = 20
KINDS: Final = ("input", "output", "fast", "host", "free")


@dataclass(frozen=True)
class Box:
    """Something that computes, or where data enter or leave; ``share``: of the time, None for unknown."""

    title: str
    name: str
    kind: str
    fact: str = ""
    share: float | None = None
    more: str = ""  # on pointing at it


class Edge(NamedTuple):
    """Data from one box to another; boxes go by their index."""

    source: int
    target: int
    label: str


class Loop(NamedTuple):
    """State that a box leaves for the next step of the same or an earlier one."""

    source: int
    target: int
    label: str


@dataclass(frozen=True)
class Row:
    """An instruction; shares None for unknown."""

    cells: Sequence[str]
    bytes_share: float | None
    time_share: float | None
    host: bool = False


@dataclass(frozen=True)
class Picture:
    """Everything on the page. ``about``: name and value; ``verdicts``: heading and paragraphs; ``columns``: of rows."""

    title: str
    about: Sequence[tuple[str, str]]
    boxes: Sequence[Box]
    edges: Sequence[Edge]
    loops: Sequence[Loop]
    verdicts: Sequence[tuple[str, Sequence[str]]]
    columns: Sequence[str]
    rows: Sequence[Row]
    time_name: str


def page(picture: Picture) -> str:
    """The page as HTML."""
    about = "".join(f"<div><dt>{escaped(name)}</dt><dd>{escaped(value)}</dd></div>" for name, value in picture.about)
    verdicts = "".join(
        f"<section><h2>{escaped(heading)}</h2>{''.join(f'<p>{escaped(text)}</p>' for text in texts)}</section>"
        for heading, texts in picture.verdicts
    )
    body = _BODY.format(
        title=escaped(picture.title),
        about=about,
        drawing=_svg(picture.boxes, picture.edges, picture.loops),
        legend=_LEGEND,
        verdicts=verdicts,
        table=_table(picture),
    )
    return document(picture.title, body, ("page.css", "diagram.css"), ("page.js",), {})


# --- the instructions ------------------------------------------------------------------------------------------------


def _table(picture: Picture) -> str:
    if not picture.rows:
        return "<p>There is no program to show.</p>"
    heads = "".join(f"<th scope='col'>{escaped(name)}</th>" for name in picture.columns)
    heads += f"<th scope='col'>share of weights</th><th scope='col'>{escaped(picture.time_name)}</th>"
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(map(_row, picture.rows))}</tbody></table>"


def _row(row: Row) -> str:
    cells = "".join(f"<td>{escaped(cell)}</td>" for cell in row.cells)
    shares = "".join(f"<td>{_bar(share)}</td>" for share in (row.bytes_share, row.time_share))
    return f"<tr class='{'host' if row.host else 'fast'}'>{cells}{shares}</tr>"


def _bar(share: float | None) -> str:
    if share is None:
        return ""
    width = max(0.0, min(1.0, share)) * 80
    bar = f'<rect width="{width:.1f}" height="10"></rect>' if width >= 0.1 else ""
    return f'<svg class="share" width="80" height="10" aria-hidden="true">{bar}</svg> {share:.1%}'


# --- where things go -------------------------------------------------------------------------------------------------


class _Spot(NamedTuple):
    """A place in a column: a box, or a point that an edge passes through."""

    column: int
    box: int | None
    edge: int | None

    @property
    def high(self) -> int:
        """The room that it takes."""
        return _LANE if self.box is None else _HIGH + _BETWEEN


def _columns(boxes: int, edges: Sequence[Edge]) -> list[int]:
    """The column of each box: behind all it reads; what nothing was read for stands just before its first reader."""
    readers: dict[int, list[int]] = defaultdict(list)
    waiting = [0] * boxes
    for edge in edges:
        readers[edge.source].append(edge.target)
        waiting[edge.target] += 1
    sources = {edge.target for edge in edges}
    columns = [0] * boxes
    ready = [box for box in range(boxes) if not waiting[box]]
    while ready:
        box = ready.pop()
        for reader in readers[box]:
            columns[reader] = max(columns[reader], columns[box] + 1)
            waiting[reader] -= 1
            if not waiting[reader]:
                ready.append(reader)
    for box in range(boxes):
        if box not in sources and readers[box]:
            columns[box] = max(0, min(columns[reader] for reader in readers[box]) - 1)
    return columns


def _paths(columns: Sequence[int], edges: Sequence[Edge]) -> list[list[_Spot]]:
    """The spots of each edge, one in each column that it meets."""
    paths = []
    for index, (source, target, _) in enumerate(edges):
        between = range(columns[source] + 1, columns[target])
        passing = [_Spot(column, None, index) for column in between]
        paths.append([_Spot(columns[source], source, None), *passing, _Spot(columns[target], target, None)])
    return paths


def _ordered(columns: Sequence[int], paths: Sequence[Sequence[_Spot]]) -> list[list[_Spot]]:
    """The spots of each column from the top, each near the mean of its neighbours'."""
    spots = {_Spot(column, box, None): None for box, column in enumerate(columns)}
    spots.update((spot, None) for path in paths for spot in path)
    found: list[list[_Spot]] = [[] for _ in range(max(columns, default=-1) + 1)]
    for spot in spots:
        found[spot.column].append(spot)
    before: dict[_Spot, list[_Spot]] = defaultdict(list)
    behind: dict[_Spot, list[_Spot]] = defaultdict(list)
    for path in paths:
        for one, other in pairwise(path):
            behind[one].append(other)
            before[other].append(one)
    for sweep in range(_SWEEPS):
        near = behind if sweep % 2 else before
        _sort_by_neighbours(found[::-1] if sweep % 2 else found, near)
    return found


def _sort_by_neighbours(columns: Iterable[list[_Spot]], near: Mapping[_Spot, Sequence[_Spot]]) -> None:
    places: dict[_Spot, float] = {}
    for column in columns:
        own = {spot: (index + 0.5) / len(column) for index, spot in enumerate(column)}
        wanted = {spot: [places[other] for other in near.get(spot, ()) if other in places] for spot in column}
        column.sort(key=lambda spot: sum(wanted[spot]) / len(wanted[spot]) if wanted[spot] else own[spot])
        places.update({spot: (index + 0.5) / len(column) for index, spot in enumerate(column)})


def _heights(columns: Sequence[Sequence[_Spot]]) -> tuple[dict[_Spot, float], float]:
    """The middle of each spot, columns centred; and how high it all is."""
    tall = [sum(spot.high for spot in column) for column in columns]
    whole = max(tall, default=0)
    middles = {}
    for column, height in zip(columns, tall, strict=True):
        at = (whole - height) / 2
        for spot in column:
            middles[spot] = at + spot.high / 2
            at += spot.high
    return middles, whole


# --- drawing ---------------------------------------------------------------------------------------------------------


def _svg(boxes: Sequence[Box], edges: Sequence[Edge], loops: Sequence[Loop]) -> str:
    edges = list(_bundled(edges))
    columns = _columns(len(boxes), edges)
    paths = _paths(columns, edges)
    order = _ordered(columns, paths)
    middles, height = _heights(order)
    left = [_MARGIN + column * (_WIDE + _GAP) for column in range(len(order))]
    loops = list(_merged(loops))
    top = _MARGIN + _LOOP * (1 + sum(loop.source != loop.target for loop in loops))
    middle = {spot: top + y for spot, y in middles.items()}
    width = (left[-1] if left else 0) + _WIDE + _MARGIN
    parts = [_edge(edge, path, left, middle) for edge, path in zip(edges, paths, strict=True)]
    at = [(left[column], middle[_Spot(column, box, None)]) for box, column in enumerate(columns)]
    parts += _loops(loops, at)
    parts += [_box(box, *at[index]) for index, box in enumerate(boxes)]
    size = f'width="{width}" height="{top + height + _MARGIN:.0f}"'
    return (
        f'<svg {size} role="img" aria-label="The network from left to right; the table below lists what it runs">'
        f'<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M 0 0 L 8 4 L 0 8 z"></path></marker>'
        f'<marker id="turn" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M 0 0 L 8 4 L 0 8 z"></path></marker></defs>{"".join(parts)}</svg>'
    )


def _box(box: Box, x: float, y: float) -> str:
    top = y - _HIGH / 2
    lines = [("name", box.title, 20), ("node", box.name, 38), ("fact", box.fact, 55)]
    texts = "".join(
        f'<text class="{kind}" x="{x + 10}" y="{top + down:.0f}">{escaped(_cut(text, _LETTERS))}</text>'
        for kind, text, down in lines
        if text
    )
    bar = ""
    if box.share is not None and box.share > 0:
        long = (_WIDE - 20) * min(box.share, 1)
        bar = f'<rect class="time" x="{x + 10}" y="{top + 62:.0f}" width="{long:.1f}" height="5"></rect>'
    whole = " · ".join(filter(None, (box.title, box.name, box.fact, box.more)))
    return (
        f'<g class="box {box.kind}"><title>{escaped(whole)}</title>'
        f'<rect class="frame" x="{x}" y="{top:.0f}" width="{_WIDE}" height="{_HIGH}" rx="8"></rect>{texts}{bar}</g>'
    )


def _edge(edge: Edge, path: Sequence[_Spot], left: Sequence[int], middle: Mapping[_Spot, float]) -> str:
    """A curve through the spots of an edge, its label behind the first box."""
    points = [(left[path[0].column] + _WIDE, middle[path[0]])]
    for spot in path[1:-1]:
        points += [(left[spot.column], middle[spot]), (left[spot.column] + _WIDE, middle[spot])]
    points.append((left[path[-1].column] - 2, middle[path[-1]]))
    line = f"M {points[0][0]} {points[0][1]:.1f}" + "".join(_curve(a, b) for a, b in pairwise(points))
    x, y = points[0][0] + _GAP / 2, (points[0][1] + points[1][1]) / 2
    label = f'<text class="shape" x="{x}" y="{y - 5:.1f}">{escaped(_first(edge.label))}</text>'
    arrow = f'<path d="{line}" marker-end="url(#tip)"></path>'
    return f'<g class="edge"><title>{escaped(edge.label)}</title>{arrow}{label}</g>'


def _curve(start: tuple[float, float], end: tuple[float, float]) -> str:
    half = (start[0] + end[0]) / 2
    return f" C {half} {start[1]:.1f} {half} {end[1]:.1f} {end[0]} {end[1]:.1f}"


def _loops(loops: Sequence[Loop], at: Sequence[tuple[float, float]]) -> Iterator[str]:
    """State: round its own box, or back above all boxes."""
    lanes = count()
    for loop in loops:
        (x, y), (x_to, y_to) = at[loop.source], at[loop.target]
        if loop.source == loop.target:
            top = y - _HIGH / 2
            line = f"M {x + _WIDE - 30} {top:.1f} v -14 a 8 8 0 0 0 -8 -8 H {x + 38} a 8 8 0 0 0 -8 8 v 12"
            place = x + _WIDE / 2, top - 26
        else:
            lane = _MARGIN + _LOOP * next(lanes) + 12
            line = f"M {x + _WIDE - 12} {y - _HIGH / 2:.1f} V {lane} H {x_to + 12} V {y_to - _HIGH / 2 - 2:.1f}"
            place = (x + x_to + _WIDE) / 2, lane - 4
        text = f'<text class="shape" x="{place[0]}" y="{place[1]:.1f}">{escaped(_cut(loop.label, _LETTERS))}</text>'
        yield (
            f'<g class="loop"><title>state {escaped(loop.label)}</title>'
            f'<path d="{line}" marker-end="url(#turn)"></path>{text}</g>'
        )


def _bundled(edges: Sequence[Edge]) -> Iterator[Edge]:
    """Edges between the same boxes as one, its label the first's; all are told on pointing at it."""
    labels: dict[tuple[int, int], list[str]] = defaultdict(list)
    for edge in edges:
        labels[edge.source, edge.target].append(edge.label)
    for (source, target), texts in labels.items():
        yield Edge(source, target, "; ".join(dict.fromkeys(texts)))


def _merged(loops: Sequence[Loop]) -> Iterator[Loop]:
    """Loops between the same boxes as one."""
    labels: dict[tuple[int, int], list[str]] = defaultdict(list)
    for loop in loops:
        labels[loop.source, loop.target].append(loop.label)
    for (source, target), texts in labels.items():
        yield Loop(source, target, ", ".join(dict.fromkeys(texts)))


def _first(label: str) -> str:
    """The first of the labels of an edge, and how many more there are."""
    first, *others = label.split("; ")
    return _cut(first, _EDGE_LETTERS) + (f" +{len(others)}" if others else "")


def _cut(text: str, letters: int) -> str:
    return text if len(text) <= letters else f"…{text[1 - letters :]}"


_LEGEND: Final = (
    '<ul class="legend"><li class="fast">machine code</li><li class="host">host operator, in NumPy</li>'
    '<li class="free">costs nothing by itself: part of another, or a view</li>'
    '<li class="loop">state, kept from step to step</li><li class="time">share of the time</li></ul>'
)
_BODY: Final = """<header>
<div class="bar"><h1 dir="auto">{title}</h1><button id="theme" type="button">Dark</button></div>
<dl class="about">{about}</dl>
</header>
<main>
<section aria-labelledby="network"><h2 id="network">The network</h2>
<div class="scroll drawing" tabindex="0" role="group" aria-label="Diagram; scrolls sideways">{drawing}</div>
{legend}</section>
<div class="verdicts">{verdicts}</div>
<section aria-labelledby="program"><h2 id="program">The program</h2>
<div class="scroll" tabindex="0" role="group" aria-label="Table of instructions">{table}</div></section>
</main>
<footer><p>Written by lstm_engine. Everything is in this file; nothing is loaded.</p></footer>"""
