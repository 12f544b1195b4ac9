"""From the JSON document to Markdown: every row, those that are lost among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from .cold import TITLES as COLD_TITLES
from .engines import ENGINES
from .measure import SCHEMA
from .workloads import KINDS, WORKLOADS

BEGIN, END = "<!-- bench:start -->", "<!-- bench:end -->"
OURS: Final = "lstm_engine"
LOST: Final = "▼"
BUSY: Final = "†"


class ReportError(ValueError):
    """The document cannot be shown: it holds what this suite does not know, or lacks what it needs."""


def validated(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """The document, if every row and engine of it is known. Raises ReportError listing those that are not."""
    if document.get("schema") != SCHEMA:
        raise ReportError(f"schema {document.get('schema')!r}: this suite reads {SCHEMA}; measure again")
    faults = []
    for row in document["rows"]:
        name, kind = row["workload"], row["kind"]
        if name not in WORKLOADS:
            faults.append(f"unknown row '{name}'")
        elif WORKLOADS[name].kind != kind or WORKLOADS[name].shape != row["shape"]:
            faults.append(f"row '{name}' is another workload than this suite's ({kind} {row['shape']})")
        known = COLD_TITLES if kind == "cold" else ENGINES
        faults += [f"row '{name}': unknown engine '{each}'" for each in row.get("engines", {}) if each not in known]
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
            if kind == "step":
                parts += ["**Single steps, p50 / p99 / p99.9 in µs**", tail_table(chosen)]
    timed = [row for row in rows if row["kind"] in ("step", "sequence", "character")]
    if timed:
        parts += ["**Largest difference from the float64 definition**", error_table(timed)]
    lost = [row["workload"] for row in rows if row["kind"] != "memory" and lost_to(row)]
    if any(row["kind"] != "memory" for row in rows):
        parts.append(f"{LOST} another engine is faster (its figure is bold): {', '.join(lost) if lost else 'no row'}.")
    if any(is_disturbed(row) for row in rows):
        parts.append(f"{BUSY} the machine was busy: most rounds of this row were disturbed.")
    return "\n\n".join(parts)


def machine_line(document: Mapping[str, Any]) -> str:
    """Which machine and software the figures are of."""
    machine = document["machine"]
    caches = ", ".join(f"{level} {_size(size)}" for level, size in machine["caches"].items())
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items() if name != OURS)
    load = machine["load_at_start"]
    return (
        f"{machine['cpu']} ({machine['family']}), {machine['code']['variant']} code, {caches}; one thread, one core. "
        f"{machine['system']}, Python {machine['python']}, {packages}. {machine['date'][:10]}"
        + (f", load average {load[0]} at the start." if load else ".")
    )


def lost_to(row: Mapping[str, Any]) -> list[str]:
    """The engines that are faster than this one in a row."""
    engines = row["engines"]
    if OURS not in engines:
        return []
    ours = engines[OURS]["median"]
    return [name for name in engines if not name.startswith(OURS) and engines[name]["median"] < ours]


def is_disturbed(row: Mapping[str, Any]) -> bool:
    """Whether most rounds were timed while the system gave the core to others too."""
    return any(result.get("disturbed", 0) for result in row.get("engines", {}).values())


# --- tables ----------------------------------------------------------------------------------------------------------


def timed_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Median µs a call, each rival's ratio to ours, the limit and the part of it reached."""
    names = _engines_of(rows)
    header = ["", *[f"{ENGINES[name].title}, µs" for name in names], "limit, µs", "of the limit"]
    lines = []
    for row in rows:
        limit = row["limit"]["seconds"]
        ours = row["engines"].get(OURS, {}).get("median")
        reached = "–" if ours is None else f"{100 * limit / ours:.0f} %"
        cells = [_timed_cell(row, name, _microseconds) for name in names]
        lines.append([_row_title(row), *cells, f"{_microseconds(limit)} {_bound(row)}", reached])
    return table(header, lines)


def character_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Tokens a second."""
    names = _engines_of(rows)
    header = ["tokens a second", *[ENGINES[name].title for name in names], "limit", "of the limit"]
    lines = []
    for row in rows:
        limit = row["limit"]["seconds"]
        ours = row["engines"].get(OURS, {}).get("median")
        reached = "–" if ours is None else f"{100 * limit / ours:.0f} %"
        cells = [_timed_cell(row, name, lambda seconds: f"{1 / seconds:,.0f}") for name in names]
        lines.append([_row_title(row), *cells, f"{1 / limit:,.0f} {_bound(row)}", reached])
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
            title = f"{COLD_TITLES[name]} {LOST}" if name == OURS and lost_to(row) else COLD_TITLES[name]
            lines.append([title, f"**{whole}**" if faster else whole, ratio, *parts])
        floor = f"{1e3 * row['limit']['seconds']:.0f}"
        lines.append(["an interpreter that imports NumPy (the limit)", floor, *[""] * 5])
    return table(["ms", "median", "to ours", "interpreter", "imports", "load", "first output"], lines)


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


def error_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Per engine over all rows of a kind."""
    names = _engines_of(rows)
    lines = []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        errors = [
            [row["engines"][name]["error"] for row in rows if row["kind"] == kind and name in row["engines"]]
            for name in names
        ]
        lines.append([kind, *[f"{max(each):.1e}" if each else "–" for each in errors]])
    return table(["", *[ENGINES[name].title for name in names]], lines)


_TABLES: Final = {
    "step": timed_table,
    "sequence": timed_table,
    "character": character_table,
    "cold": cold_table,
    "memory": memory_table,
}


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table, all columns but the first to the right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *lines))


def rewrite(page: Path, document: Mapping[str, Any]) -> None:
    """Put the tables between the page's marks. Raises ReportError where the marks are missing."""
    content = page.read_text(encoding="utf-8")
    if content.count(BEGIN) != 1 or content.count(END) != 1 or content.index(BEGIN) > content.index(END):
        raise ReportError(f"{page}: expected one {BEGIN} and, behind it, one {END}")
    before, rest = content.split(BEGIN)
    after = rest.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n\n{markdown(document)}\n\n{END}{after}", encoding="utf-8")


# --- cells -----------------------------------------------------------------------------------------------------------


def _engines_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    present = {name for row in rows for name in row["engines"]}
    return [name for name in ENGINES if name in present]


def _row_title(row: Mapping[str, Any]) -> str:
    return " ".join([row["workload"], *[LOST] * bool(lost_to(row)), *[BUSY] * is_disturbed(row)])


def _timed_cell(row: Mapping[str, Any], name: str, shown: Any) -> str:
    result = row["engines"].get(name)
    if result is None:
        return "–"
    cell = f"{shown(result['median'])} {_spread(result)}"
    if not name.startswith(OURS):
        cell += f" {_ratio(row, name)}"
    return f"**{cell}**" if name in lost_to(row) else cell


def _spread(result: Mapping[str, Any]) -> str:
    """Half the distance of the quartiles, in per cent of the median."""
    return f"±{50 * (result['q3'] - result['q1']) / result['median']:.0f}%"


def _ratio(row: Mapping[str, Any], name: str) -> str:
    if OURS not in row["engines"]:
        return ""
    ratio = row["engines"][name]["median"] / row["engines"][OURS]["median"]
    return f"{ratio:.2f}×" if ratio < 10 else f"{ratio:.0f}×"


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
