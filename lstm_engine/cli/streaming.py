"""A step at a time: stream."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Final

import typer

from ..errors import InputError, StateError
from ..signals import Signals
from ..terminal import is_terminal, say
from .files import check_folder, replacing
from .options import ModelPath, Options, command

if TYPE_CHECKING:
    from ..stream import Stream

_LONGEST_LINE: Final = 1 << 26  # bytes of a reading


@command
def stream(
    model: ModelPath,
    options: Options,
    form: Annotated[str, typer.Option("--format", metavar="csv|json", help="Of the lines.")] = "csv",
    batch: Annotated[int, typer.Option(min=1, help="Rows that run side by side; a line holds them all.")] = 1,
    state: Annotated[
        Path | None, typer.Option(help="Go on from the state in this file, if it exists, and keep it there at the end.")
    ] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Report lines that cannot be used, and go on.")] = False,
) -> None:
    """Readings on stdin, predictions on stdout: a line in, a line out, at once."""
    from ..report.lines import FORMATS, Lines

    if form not in FORMATS:
        raise typer.BadParameter(f"--format {form}: expected one of {', '.join(FORMATS)}")
    if state is not None:
        check_folder(state)
    opened = options.load(model).stream(batch)
    if state is not None and state.exists():
        _restore(opened, state)
    try:
        with Signals() as signals:
            _answer_lines(opened, Lines(opened, form), signals, skip_bad)
    finally:
        if state is not None:
            with replacing(state) as file:
                file.write(opened.state.to_bytes())
    if signals.arrived:
        if is_terminal(sys.stderr):
            say("")  # behind the ^C that a terminal shows
        raise typer.Exit(128 + signals.arrived)


def _restore(opened: Stream, path: Path) -> None:
    from ..state import State

    try:
        opened.state = State.from_bytes(path.read_bytes())
    except StateError as fault:
        raise StateError(f"{path}: {fault}") from fault


def _answer_lines(opened: Stream, lines: Any, signals: Signals, skip_bad: bool) -> None:
    """A step and a line for each line, until there are no more or a signal ends it between two."""
    from ..report.lines import bad_line

    source = sys.stdin.buffer if sys.stdin is not None else None
    number = 0
    while source is not None and (line := signals.line_of(source, _LONGEST_LINE)):
        number += 1
        if line.isspace():
            continue
        try:
            if len(line) == _LONGEST_LINE:
                _skip_rest(line, source)
            answer = lines.line(opened.step(lines.feed(line)))
        except InputError as fault:
            if not skip_bad:
                raise InputError(bad_line(number, fault)) from fault
            say(f"lstm-engine: {bad_line(number, fault)}")
            continue
        sys.stdout.write(answer + "\n")
        sys.stdout.flush()


def _skip_rest(line: bytes, source: IO[bytes]) -> None:
    """Read on to the end of a line that is too long to be one. Raises InputError."""
    while line and not line.endswith(b"\n"):
        line = source.readline(_LONGEST_LINE)
    raise InputError(f"longer than {_LONGEST_LINE:,} bytes")
