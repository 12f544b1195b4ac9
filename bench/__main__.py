"""python -m bench: run, list, table, readme, plot, check, library."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import typer

#: Published files beside a clone, where there are any.
ZOO: Final = next((p for p in [Path(__file__).parents[2] / "shared" / "zoo"] if (p / "index.json").is_file()), None)
app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False)
Results = Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="what run wrote")]


@app.command()
def run(
    quick: Annotated[bool, typer.Option(help="seconds a row, for a first look")] = False,
    sets: Annotated[list[str] | None, typer.Option("--set", help="these sets of rows ('list' shows them)")] = None,
    only: Annotated[str | None, typer.Option(help="rows whose name contains this, or a * pattern")] = None,
    goals: Annotated[bool, typer.Option("--goals", help="only rows that check has goals for")] = False,
    engine: Annotated[list[str] | None, typer.Option(help="this engine, may be given again; all without")] = None,
    core: Annotated[int | None, typer.Option(help="the first core to run on; the last one without")] = None,
    zoo: Annotated[Path | None, typer.Option(help="a folder of published files, for the zoo rows")] = ZOO,
    out: Annotated[Path, typer.Option(help="the JSON to write")] = Path("results.json"),
    merge: Annotated[bool, typer.Option(help="keep the rows that the JSON has and this run does not measure")] = False,
) -> None:
    """Measure, row by row; the JSON is written anew after each of them."""
    from lstm_engine.report.timing import FULL, QUICK

    from .conduct import conduct
    from .goals import spoken_of
    from .measure import available
    from .report import readable
    from .workloads import chosen

    with _reported():
        before = readable(_read(out))["rows"] if merge and out.exists() else []
    try:
        workloads = chosen(only, sets or (), zoo)
        if goals:
            wanted = spoken_of()
            workloads = [workload for workload in workloads if workload.name in wanted or workload.kind == "zoo"]
        engines = [*available(engine)]
        with _progress(len(workloads)) as watcher:
            conduct(
                workloads,
                engines,
                QUICK if quick else FULL,
                core,
                zoo,
                watcher,
                lambda found: _write(out, found, before),
            )
    except ValueError as fault:
        _refuse(fault)
    except RuntimeError as fault:
        print(fault, file=sys.stderr)
        raise typer.Exit(1) from fault
    print(f"{out}: {len(workloads)} rows", file=sys.stderr)


@app.command(name="list")
def list_() -> None:
    """The workloads, the sets they are chosen by, and the engines with what they lack."""
    from .engines import ENGINES
    from .workloads import KINDS, SETS, WORKLOADS

    for name, workload in WORKLOADS.items():
        letters = " ".join(f"{letter}={size}" for letter, size in workload.shape.items())
        print(f"{name:32} {letters:32} {KINDS[workload.kind]}")
    for group in SETS:
        print()
        for name, test in group.items():
            rows = sum(test(workload) for workload in WORKLOADS.values())
            print(f"--set {name:26} {rows} rows" if rows else f"--set {name:26} rows of --zoo")
    print()
    for name, engine in ENGINES.items():
        print(f"{name:32} {engine.missing() or 'installed'}")


@app.command()
def table(results: Results) -> None:
    """Markdown tables on stdout: every row, every engine, and the goals that are missed."""
    with _reported():
        print(_everything(_read(results)))


@app.command()
def readme(
    results: Results,
    page: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    full: Annotated[bool, typer.Option(help="every row and engine instead of the summary")] = False,
    pictures: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="where plot put them, to be shown in front")
    ] = None,
) -> None:
    """Rewrite what stands between the page's bench marks."""
    from .report import pictured, rewrite, summary

    with _reported():
        document = _read(results)
        text = _everything(document) if full else summary(document)
        rewrite(page, "\n\n".join([*(pictured(page, pictures) if pictures else ()), text]))


@app.command()
def plot(
    results: Results,
    folder: Annotated[Path, typer.Argument(file_okay=False, help="where the pictures go")],
    form: Annotated[str, typer.Option("--format", metavar="svg|png", help="of the pictures")] = "svg",
) -> None:
    """Draw the pictures, each for light pages and for dark ones."""
    from .plots import draw

    with _reported():
        folder.mkdir(parents=True, exist_ok=True)
        for path in draw(_read(results), folder, form):
            print(path)


@app.command()
def check(results: Results) -> None:
    """Hold the results against the speed goals; exit code 1 unless all are met, or the machine's own limit forbids."""
    from .goals import told, verdicts

    with _reported():
        found = verdicts(_read(results))
    for each in found:
        print(f"{each.sign}  {each.row:26} {each.goal:52} {each.wanted:9} {each.measured:9} {each.reason}".rstrip())
    print(told(found))
    if not all(each.passed or each.excused for each in found):
        raise typer.Exit(1)


@app.command()
def library(
    page: Annotated[
        Path | None, typer.Argument(exists=True, dir_okay=False, help="rewrite what stands between its library marks")
    ] = None,
    quick: Annotated[bool, typer.Option(help="seconds a row, for a first look")] = False,
) -> None:
    """Exported libraries from C beside the engine's own kernels: a table on stdout, or into a page."""
    from lstm_engine.report.timing import FULL, QUICK

    from .environment import cores_for, stamp
    from .library import BEGIN, END, measure
    from .library import table as table_of
    from .report import machine_line, rewrite

    try:
        text = (
            f"{machine_line({'machine': stamp({'1': cores_for(1)})})}\n\n{table_of(measure(QUICK if quick else FULL))}"
        )
    except RuntimeError as fault:
        print(fault, file=sys.stderr)
        raise typer.Exit(1) from fault
    print(text)
    if page is not None:
        with _reported():
            rewrite(page, text, BEGIN, END)


def _everything(document: dict[str, Any]) -> str:
    from .goals import missed_table, verdicts
    from .report import markdown

    return "\n\n".join([markdown(document), "**Speed goals**", missed_table(verdicts(document))])


def _write(path: Path, document: dict[str, Any], before: list[dict[str, Any]]) -> None:
    measured = {row["workload"] for row in document["rows"]}
    document = document | {"rows": [*(row for row in before if row["workload"] not in measured), *document["rows"]]}
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

    def begin(self, workload: str) -> None:
        print(workload, file=sys.stderr, flush=True)

    def done(self, part: float) -> None:
        """A log needs no bar."""


class _Bar:
    """A watcher for people. It draws between batches only: nothing runs beside what is timed."""

    def __init__(self, bars: Any, task: Any) -> None:
        self.bars, self.task = bars, task
        self.finished, self.drawn = -1, 0.0

    def begin(self, workload: str) -> None:
        self.finished += 1
        self.bars.update(self.task, description=workload, completed=self.finished, refresh=True)

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

    columns = (TextColumn("{task.description:28}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False) as bars:
        task = bars.add_task("", total=rows)
        yield _Bar(bars, task)
        bars.update(task, description="done", completed=rows, refresh=True)


if __name__ == "__main__":
    app()
