"""python -m bench: run, list, table, readme, plot, check."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from .workloads import Workload

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False)
Results = Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="what run wrote")]


@app.command()
def run(
    quick: Annotated[bool, typer.Option(help="a minute or two, for a first look")] = False,
    only: Annotated[str | None, typer.Option(help="workloads whose name contains this, or a * pattern")] = None,
    engine: Annotated[list[str] | None, typer.Option(help="this engine, may be given again; all without")] = None,
    core: Annotated[int | None, typer.Option(help="the core to run on; the last one without")] = None,
    out: Annotated[Path, typer.Option(help="the JSON to write")] = Path("results.json"),
) -> None:
    """Measure, row by row; the JSON is written anew after each of them."""
    from .environment import pin

    try:
        chosen_core = pin(core)
    except ValueError as fault:
        _refuse(fault)
    from .measure import available, measure
    from .timing import FULL, QUICK
    from .workloads import chosen

    try:
        workloads, engines = chosen(only), available(engine)
    except ValueError as fault:
        _refuse(fault)
    with _progress(len(workloads)) as watcher:
        measure(workloads, engines, QUICK if quick else FULL, chosen_core, watcher, lambda found: _write(out, found))
    print(f"{out}: {len(workloads)} rows", file=sys.stderr)


@app.command(name="list")
def list_() -> None:
    """The workloads, and the engines with what they lack."""
    from .engines import ENGINES
    from .workloads import KINDS, WORKLOADS

    for name, workload in WORKLOADS.items():
        letters = " ".join(f"{letter}={size}" for letter, size in workload.shape.items())
        print(f"{name:24} {letters:28} {KINDS[workload.kind]}")
    print()
    for name, engine in ENGINES.items():
        print(f"{name:24} {engine.missing() or 'installed'}")


@app.command()
def table(results: Results) -> None:
    """Markdown tables on stdout."""
    from .report import markdown

    with _reported():
        print(markdown(_read(results)))


@app.command()
def readme(results: Results, page: Annotated[Path, typer.Argument(exists=True, dir_okay=False)]) -> None:
    """Rewrite what stands between the page's bench marks."""
    from .report import rewrite

    with _reported():
        rewrite(page, _read(results))


@app.command()
def plot(results: Results, out: Path) -> None:
    """Draw µs a step against hidden units."""
    from .plots import plot as draw

    with _reported():
        draw(_read(results), out)


@app.command()
def check(results: Results) -> None:
    """Hold the results against the speed goals; exit code 1 unless all are met."""
    from .goals import verdicts

    with _reported():
        found = verdicts(_read(results))
    signs = {True: "pass", False: "FAIL", None: "----"}
    for verdict in found:
        print(f"{signs[verdict.passed]}  {verdict.row:18} {verdict.goal:48} {verdict.wanted:14} {verdict.measured}")
    met = sum(verdict.passed is True for verdict in found)
    print(f"{met} of {len(found)} goals met")
    if met < len(found):
        raise typer.Exit(1)


def _write(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    from .report import ReportError

    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as fault:
        raise ReportError(f"{path} is no JSON: {fault}") from fault
    return document


@contextmanager
def _reported() -> Iterator[None]:
    from .report import ReportError

    try:
        yield
    except ReportError as fault:
        print(fault, file=sys.stderr)
        raise typer.Exit(1) from fault


def _refuse(fault: Exception) -> NoReturn:
    print(fault, file=sys.stderr)
    raise typer.Exit(2) from fault


class _Lines:
    """A watcher for logs: one line a row."""

    def begin(self, workload: Workload) -> None:
        print(workload.name, file=sys.stderr, flush=True)

    def done(self, part: float) -> None:
        """A log needs no bar."""


class _Bar:
    """A watcher for people. It draws between batches only: no thread runs beside what is timed."""

    def __init__(self, bars: Any, task: Any) -> None:
        self.bars, self.task = bars, task
        self.finished, self.drawn = -1, 0.0

    def begin(self, workload: Workload) -> None:
        self.finished += 1
        self.bars.update(self.task, description=workload.name, completed=self.finished, refresh=True)

    def done(self, part: float) -> None:
        now = time.monotonic()
        if now - self.drawn > 0.2:
            self.drawn = now
            self.bars.update(self.task, completed=round(self.finished + part, 2), refresh=True)


@contextmanager
def _progress(rows: int) -> Iterator[_Lines | _Bar]:
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:20}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False) as bars:
        task = bars.add_task("", total=rows)
        yield _Bar(bars, task)
        bars.update(task, description="done", completed=rows, refresh=True)


if __name__ == "__main__":
    app()
