"""From the JSON document to Markdown: every row, those that are lost among them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Final

from .allowance import APART, allowance, at_best
from .cold import TITLES as COLD_TITLES
from .crowd import CROWD
from .engines import ENGINES
from .measure import OURS, SCHEMA
from .special import AT
from .workloads import KINDS, STEPPED, WORKLOADS, Workload

BEGIN, END = "<!-- bench:start -->", "<!-- bench:end -->"
LOST: Final = "▼"
BUSY: Final = "†"
WRONG: Final = "wrong"
TIMED: Final = ("step", "sequence", "ragged", "character", "tokens", "speech", "zoo")
#: The rows of a summary.
SUMMARY: Final = (
    *[f"step-h{H}" for H in (8, 16, 32, 64, 128, 256, 512, 1024)],
    *["step-h256-bfloat16", "step-h256-int8", "step-h512-int8", "step-h256-t2", "step-h512-t2", "step-h512-int8-t2"],
    *["step-gru-h64", "step-2x128", "step-3x256", "step-3x480", "step-6x320", "streams-h128-b256"],
    *["sequence-h64-b1", "sequence-h256-b1", "sequence-h256-b1-int8", "sequence-h256-b1-t2"],
    *[
        "sequence-h256-b16",
        "sequence-h256-b16-bfloat16",
        "sequence-h256-b64",
        "sequence-h512-b64",
        "bidirectional-2x256",
        "ragged-h128-b64",
        "character",
        "tokens",
        "tokens-int8",
        "tokens-2x64",
        "speech",
    ],
)


#: Pictures by name, in the order of a page, with what they show to who does not see them.
PICTURES: Final = {
    "step": "Microseconds of one LSTM step against hidden units, for every engine, and the machine's limit",
    "ratios": "How many times as fast as the fastest other engine each workload is",
}


class ReportError(ValueError):
    """The document cannot be shown: it holds what this suite does not know, or lacks what it needs."""


def readable(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """The document, if it is of this suite's form. Raises ReportError."""
    if document.get("schema") != SCHEMA:
        raise ReportError(f"schema {document.get('schema')!r}: this suite reads {SCHEMA}; measure again")
    return document


def validated(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """The document, if every row and engine of it is known. Raises ReportError listing those that are not."""
    faults = []
    for row in readable(document)["rows"]:
        name, kind = row["workload"], row["kind"]
        if kind == "zoo":
            pass  # a row for each file of whichever folder there was
        elif name not in WORKLOADS:
            faults.append(f"unknown row '{name}'")
        elif WORKLOADS[name].kind != kind or WORKLOADS[name].shape != row["shape"]:
            faults.append(f"row '{name}' is another workload than this suite's ({kind} {row['shape']})")
        known = COLD_TITLES if kind == "cold" else ENGINES
        engines = {each: each.split(AT)[0] for each in row.get("engines", {})}
        faults += [f"row '{name}': unknown engine '{each}'" for each, bare in engines.items() if bare not in known]
    if faults:
        raise ReportError("the results hold what this suite does not know: " + "; ".join(faults))
    return document


def markdown(document: Mapping[str, Any]) -> str:
    """All tables, the machine first."""
    rows = validated(document)["rows"]
    parts = [machine_line(document)]
    for kind in KINDS:
        chosen = [row for row in rows if row["kind"] == kind]
        if chosen:
            parts += [f"**{KINDS[kind][0].upper()}{KINDS[kind][1:]}**", _TABLES[kind](chosen)]
            if kind in STEPPED:
                parts += ["**Single calls of these, p50 / p99 / p99.9 in µs**", tail_table(chosen)]
    timed = [row for row in rows if row["kind"] in TIMED]
    if timed:
        parts += ["**Largest difference from the float64 definition, as a part of the range**", error_table(timed)]
    parts += [*wrong_lines(rows), *_legend(rows)]
    return "\n\n".join(parts)


def summary(document: Mapping[str, Any]) -> str:
    """A line a workload: this engine, the fastest other, and the machine's limit."""
    rows = validated(document)["rows"]
    named = {row["workload"]: row for row in rows}
    chosen = [named[name] for name in SUMMARY if name in named and OURS in named[name]["engines"]]
    if not chosen:
        raise ReportError("none of the summary's rows was measured")
    lines = []
    for row in chosen:
        other, ratio = fastest_peer(row), ""
        shown = "–"
        if other is not None:
            shown = f"{_microseconds(row['engines'][other]['median'])} {ENGINES[other].title}"
            ratio = _times(row["engines"][other]["median"] / row["engines"][OURS]["median"])
        ours = _microseconds(row["engines"][OURS]["median"])
        lines.append([_marked(row, described(WORKLOADS[row["workload"]])), ours, shown, ratio, _reached(row)])
    header = ["µs a call", OURS, "fastest other", "times faster", "of the limit"]
    return "\n\n".join([machine_line(document), table(header, lines), *_legend(document["rows"])])


def described(workload: Workload) -> str:
    """A workload in words."""
    words = {
        "step": f"a step, {workload.L} × {workload.H}" if workload.L > 1 else f"a step, H = {workload.H}",
        "sequence": f"{workload.T} steps, H = {workload.H}",
        "ragged": f"{workload.B} sequences of {workload.lengths.min()}–{workload.T} steps, H = {workload.H}",
        "character": "a character of the character model",
        "tokens": f"a token drawn, {workload.L} × {workload.H}",
        "speech": "a frame of speech: convolutions, LSTM 128",
    }[workload.kind]
    words = words.replace("a step", "a GRU step").replace("steps,", "GRU steps,") if workload.cell == "GRU" else words
    if workload.kind == "step" and workload.B > 1:
        words += f", {workload.B} streams"
    if workload.kind == "sequence":
        words += ", both directions" * (workload.D > 1) + f", {workload.B} rows" * (workload.B > 1)
    words += f", {workload.precision}" if workload.precision != "float32" else ""
    return words + (f", {workload.threads} threads" if workload.threads > 1 else "")


def machine_line(document: Mapping[str, Any]) -> str:
    """Which machine and software the figures are of."""
    machine = document["machine"]
    caches = ", ".join(f"{level} {_size(size)}" for level, size in machine["caches"].items())
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items() if name != OURS)
    load = machine["load_at_start"]
    return (
        f"{machine['cpu']} ({machine['family']}), {machine['code']['variant']} code, {caches}; a core a thread. "
        f"{machine['system']}, Python {machine['python']}, {packages}. {machine['date'][:10]}"
        + (f", load average {load[0]} at the start." if load else ".")
    )


def fastest_peer(row: Mapping[str, Any], pattern: str = "*") -> str | None:
    """The fastest of the other engines whose name fits."""
    others = [name for name in row["engines"] if not name.startswith(OURS) and fnmatch(name, pattern)]
    return min(others, key=lambda name: row["engines"][name]["median"], default=None)


def lost_to(row: Mapping[str, Any]) -> list[str]:
    """The engines that are faster than this one in a row."""
    engines = row.get("engines", {})
    if row["kind"] not in (*TIMED, "cold") or OURS not in engines:
        return []
    ours = engines[OURS]["median"]
    return [name for name in engines if not name.startswith(OURS) and engines[name]["median"] < ours]


def is_disturbed(row: Mapping[str, Any]) -> bool:
    """Whether most rounds were timed while the system gave the core to others too."""
    return any(result.get("disturbed", 0) for result in row.get("engines", {}).values())


def wrong_lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Engines whose outputs were not what they should be, which is why they were not timed."""
    found = [
        f"- {row['workload']}: {ENGINES[name.split(AT)[0]].title}: {reason}"
        for row in rows
        for name, reason in row.get("wrong", {}).items()
    ]
    if found:
        yield "**Wrong outputs, not timed**"
        yield "\n".join(found)


def _legend(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    lost = [row["workload"] for row in rows if lost_to(row)]
    if any(row["kind"] in (*TIMED, "cold") for row in rows):
        yield f"{LOST} another engine is faster: {', '.join(lost) if lost else 'no row'}."
        reasons = [*_lost_lines(rows)]
        if reasons:
            yield "\n".join(["Beside the fastest other, by the machine's limit:", "", *reasons])
    if any(is_disturbed(row) for row in rows):
        yield f"{BUSY} the machine was busy: most rounds of this row were disturbed."


def _lost_lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """For each lost row that has a limit, what that allows."""
    for row in at_best(rows):
        other = fastest_peer(row) if lost_to(row) else None
        found = None if other is None else allowance(row, row["engines"][other]["median"])
        if other is not None and found is not None:
            yield f"- {row['workload']}: {_ratio(row, other)} {ENGINES[other].title}; {found}."


# --- tables ----------------------------------------------------------------------------------------------------------


def timed_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Median µs a call, each rival's ratio to ours, the limit and the part of it reached."""
    names = _engines_of(rows)
    header = ["", *[f"{ENGINES[name].title}, µs" for name in names], "limit, µs", "of the limit"]
    lines = []
    for row in rows:
        cells = [_timed_cell(row, name, _microseconds) for name in names]
        lines.append([_marked(row, row["workload"]), *cells, _limit(row, _microseconds), _reached(row)])
    return table(header, lines)


def character_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Tokens a second."""
    names = _engines_of(rows)
    header = ["tokens a second", *[ENGINES[name].title for name in names], "limit", "of the limit"]
    lines = []
    for row in rows:
        cells = [_timed_cell(row, name, _a_second) for name in names]
        lines.append([_marked(row, row["workload"]), *cells, _limit(row, _a_second), _reached(row)])
    return table(header, lines)


def tail_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Quantiles of single calls."""
    names = _engines_of(rows)
    lines = []
    for row in rows:
        cells = []
        for name in names:
            tail = row["engines"].get(name, {}).get("tail")
            cells.append("–" if tail is None else _tail(tail))
        lines.append([row["workload"], *cells])
    return table(["", *[ENGINES[name].title for name in names]], lines)


def cold_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Milliseconds from process start to first output, and what they went to."""
    lines = []
    for row in rows:
        for name, result in row["engines"].items():
            parts = [f"{1e3 * result[part]:.0f}" for part in ("interpreter", "imports", "load", "first_output")]
            whole, ratio = f"{1e3 * result['median']:.0f}", _ratio(row, name)
            faster = name in lost_to(row)
            resident = result.get("resident")
            memory = "–" if resident is None else f"{resident / 2**20:.0f}"
            title = f"{COLD_TITLES[name]} {LOST}" if name == OURS and lost_to(row) else COLD_TITLES[name]
            lines.append([title, f"**{whole}**" if faster else whole, ratio, *parts, memory])
        floor = f"{1e3 * row['limit']['seconds']:.0f}"
        lines.append(["an interpreter that imports NumPy (the limit)", floor, *[""] * 6])
    return table(["ms", "median", "to ours", "interpreter", "imports", "load", "first output", "memory, MB"], lines)


def memory_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Bytes of a stream beside its bare state and the weights that all streams share."""
    lines = []
    for row in rows:
        measured = row["bytes"]
        grown = measured["resident"]
        resident = "–" if grown is None else f"{grown:,.0f}"
        cells = [f"{measured['state']:,}", f"{measured['arena']:,}", resident, f"{measured['weights']:,}"]
        lines.append([row["workload"], *cells])
    header = ["bytes", "h and c alone", "a stream's arena", "growth of the process a stream", "weights, shared"]
    return table(header, lines)


def busy_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """µs a step beside busy processes."""
    return _special_table(rows, ("mean", "p50", "p99"), "µs a step")


def paced_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """µs a step that comes at its time, and µs of processor time that it and the wait for it take."""
    return _special_table(rows, ("p50", "p99", "processor"), "µs a step")


def crowd_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """µs a step of one thread and of all, and how many times as many steps all make."""
    lines = []
    for row in rows:
        for name, result in row["engines"].items():
            engine, threads = name.split(AT)
            title = f"{row['workload']}: {ENGINES[engine].title}" + f", {threads} threads a call" * (threads != "1")
            figures = [_microseconds(result[figure]) for figure in ("alone", "together")]
            lines.append([title, *figures, _times(result["gain"])])
    return table(["µs a step", "one thread", f"{CROWD} threads", "times as many steps"], lines)


def idle_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """µs of processor time in a second of rest."""
    return _special_table(rows, ("processor",), "µs of a second")


def _special_table(rows: Sequence[Mapping[str, Any]], figures: Sequence[str], unit: str) -> str:
    lines = []
    for row in rows:
        for name, result in row["engines"].items():
            engine, threads = name.split(AT)
            plural = "thread" if threads == "1" else "threads"
            title = f"{row['workload']}: {ENGINES[engine].title}, {threads} {plural}"
            lines.append([title, *[_microseconds(result[figure]) for figure in figures]])
        if row["kind"] == "paced":
            waiting = [_microseconds(row["limit"][figure]) for figure in figures]
            lines.append([f"{row['workload']}: nothing but waiting", *waiting])
    return table([unit, *figures], lines)


def error_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Per engine over all rows of a kind and precision."""
    names = _engines_of(rows)
    lines = []
    for kind, precision in dict.fromkeys((row["kind"], row["precision"]) for row in rows):
        alike = [row["engines"] for row in rows if (row["kind"], row["precision"]) == (kind, precision)]
        errors = [[engines[name]["error"] for engines in alike if name in engines] for name in names]
        lines.append([f"{kind}, {precision}", *[f"{max(each):.1e}" if each else "–" for each in errors]])
    return table(["", *[ENGINES[name].title for name in names]], lines)


_TABLES: Final[Mapping[str, Callable[[Sequence[Mapping[str, Any]]], str]]] = {
    **dict.fromkeys(TIMED, timed_table),
    **dict.fromkeys(("character", "tokens"), character_table),
    "cold": cold_table,
    "memory": memory_table,
    "busy": busy_table,
    "paced": paced_table,
    "crowd": crowd_table,
    "idle": idle_table,
}


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table, all columns but the first to the right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *lines))


def rewrite(page: Path, text: str, begin: str = BEGIN, end: str = END) -> None:
    """Put the text between the page's marks. Raises ReportError where the marks are missing."""
    content = page.read_text(encoding="utf-8")
    if content.count(begin) != 1 or content.count(end) != 1 or content.index(begin) > content.index(end):
        raise ReportError(f"{page}: expected one {begin} and, behind it, one {end}")
    before, rest = content.split(begin)
    after = rest.split(end)[1]
    page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")


def pictured(page: Path, folder: Path) -> Iterator[str]:
    """The pictures of a folder as a page shows them, in the reader's colours. Raises ReportError: there are none."""
    place = Path(os.path.relpath(folder.resolve(), page.resolve().parent)).as_posix()
    found = [(name, path.suffix) for name in PICTURES for path in sorted(folder.glob(f"{name}.*"))]
    if not found:
        raise ReportError(f"{folder}: there are no pictures; 'plot' draws them")
    for name, suffix in found:
        yield (
            f'<picture><source media="(prefers-color-scheme: dark)" srcset="{place}/{name}-dark{suffix}">'
            f'<img alt="{PICTURES[name]}" src="{place}/{name}{suffix}"></picture>'
        )


# --- cells -----------------------------------------------------------------------------------------------------------


def _engines_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    present = {name for row in rows for name in (*row["engines"], *row.get("wrong", {}))}
    return [name for name in ENGINES if name in present]


def _marked(row: Mapping[str, Any], title: str) -> str:
    return " ".join([title, *[LOST] * bool(lost_to(row)), *[BUSY] * is_disturbed(row)])


def _timed_cell(row: Mapping[str, Any], name: str, shown: Callable[[float], str]) -> str:
    result = row["engines"].get(name)
    if result is None:
        return WRONG if name in row.get("wrong", {}) else "–"
    cell = f"{shown(result['median'])} {_spread(result)}"
    if not name.startswith(OURS):
        cell += f" {_ratio(row, name)}"
    return f"**{cell}**" if name in lost_to(row) else cell


def _limit(row: Mapping[str, Any], shown: Callable[[float], str]) -> str:
    limit = row.get("limit")
    if limit is None:
        return "–"
    apart = limit["in_turn"] > APART * limit["seconds"]
    return f"{shown(limit['seconds'])} {_bound(row)}" + (f" ({shown(limit['in_turn'])})" if apart else "")


def _reached(row: Mapping[str, Any]) -> str:
    """The part of the machine's limit that ours reaches."""
    limit, ours = row.get("limit"), row["engines"].get(OURS)
    return "–" if limit is None or ours is None else f"{100 * limit['seconds'] / ours['median']:.0f} %"


def _spread(result: Mapping[str, Any]) -> str:
    """Half the distance of the quartiles, in per cent of the median."""
    return f"±{50 * (result['q3'] - result['q1']) / result['median']:.0f}%"


def _ratio(row: Mapping[str, Any], name: str) -> str:
    if OURS not in row["engines"]:
        return ""
    return _times(row["engines"][name]["median"] / row["engines"][OURS]["median"])


def _times(ratio: float) -> str:
    return f"{ratio:.2f}×" if ratio < 10 else f"{ratio:.0f}×"


def _a_second(seconds: float) -> str:
    return f"{1 / seconds:,.0f}"


def _bound(row: Mapping[str, Any]) -> str:
    return {"memory": "M", "arithmetic": "A"}[row["limit"]["bound"]]


def _tail(tail: Mapping[str, Any]) -> str:
    rare = "–" if tail["p999"] is None else _microseconds(tail["p999"])
    return f"{_microseconds(tail['p50'])} / {_microseconds(tail['p99'])} / {rare}"


def _microseconds(seconds: float) -> str:
    """Three digits that matter."""
    value = seconds * 1e6
    if value >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}" if value >= 0.0995 else f"{value:.3f}"


def _size(count: int) -> str:
    return f"{count >> 20} MB" if count >= 1 << 20 else f"{count >> 10} KB"
