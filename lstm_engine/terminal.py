"""What the command line says and how it ends: lines, bars and tables on a terminal, plain ones in a pipe.

Exit codes: 0; 1, it failed (one line on stderr says why); 2, wrong usage; 128 + n, ended by signal n.
"""

from __future__ import annotations

import functools
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, NoReturn

import typer

from .errors import LstmEngineError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

PIPE_WIDTH: Final = 500  # of tables where nobody's terminal says: wide enough that nothing is cut
DEBUG: Final = "LSTM_ENGINE_DEBUG"  # '1' also shows tracebacks
#: What terminals act on; a model may put anything out.
CONTROLS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


# --- failing ---------------------------------------------------------------------------------------------------------


def failing_plainly(function: Callable[..., None]) -> Callable[..., None]:
    """A command whose exceptions become a line and an exit code."""

    @functools.wraps(function)
    def plain(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
            if sys.stdout is not None:
                sys.stdout.flush()  # a reader that has gone is noticed here, not when the interpreter ends
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except BrokenPipeError:
            _forget_stdout()
            raise typer.Exit(0) from None
        except KeyboardInterrupt:
            raise typer.Exit(128 + signal.SIGINT) from None
        except Exception as fault:
            if os.environ.get(DEBUG, "0") not in ("", "0"):
                raise
            fail(_reason(fault))

    return plain


def _reason(fault: Exception) -> str:
    if isinstance(fault, LstmEngineError):
        return str(fault)
    if isinstance(fault, OSError) and fault.strerror:
        return f"{fault.filename}: {fault.strerror}" if fault.filename else fault.strerror
    if isinstance(fault, MemoryError):
        return "out of memory"
    # load() and the readers raise TypeError and ValueError for keywords that the file has no use for.
    known = isinstance(fault, TypeError | ValueError) and str(fault)
    text = " ".join(str(fault).split())
    return text if known else f"{type(fault).__name__}: {text} ({DEBUG}=1 shows where)"


def fail(why: str) -> NoReturn:
    """Say why, and exit with 1."""
    say(f"lstm-engine: {why}")
    if sys.stdout is not None:
        try:
            sys.stdout.flush()
        except OSError:  # a full disk: the interpreter would try again at its end, and say so a second time
            _forget_stdout()
    raise typer.Exit(1)


def say(line: str) -> None:
    """A line on stderr, if anybody holds it."""
    if sys.stderr is not None:
        with suppress(OSError):
            print(line, file=sys.stderr, flush=True)


def _forget_stdout() -> None:
    """Point stdout nowhere: what is left in its buffer has no reader."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# --- showing ---------------------------------------------------------------------------------------------------------


def console(stderr: bool = False) -> Console:
    """A rich console that leaves a closed pipe to us."""
    from rich.console import Console

    class Plain(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    stream = sys.stderr if stderr else sys.stdout
    width = None if is_terminal(stream) else PIPE_WIDTH
    return Plain(stderr=stderr, width=width, highlight=False, soft_wrap=False, markup=False)


def is_terminal(stream: Any) -> bool:
    """Whether a person may be watching."""
    return stream is not None and not stream.closed and bool(stream.isatty())


_shown: Final[list[Status]] = []  # what turns while something takes its time


@contextmanager
def compile_bar() -> Iterator[Callable[[str, int, int], None]]:
    """What to report compilation to: a bar on a terminal, once there is anything to compile."""
    if not is_terminal(sys.stderr):
        yield lambda name, done, total: None
        return
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[part]}"), TimeElapsedColumn())
    bar = Progress(*columns, console=console(stderr=True), transient=True)
    task: list[TaskID] = []

    def report(name: str, done: int, total: int) -> None:
        if not task:
            for status in _shown:  # one thing moves at a time
                status.stop()
            bar.start()
            task.append(bar.add_task("compiling, once for this machine", total=total, part=""))
        bar.update(task[0], completed=done, total=total, part=name)

    try:
        yield report
    finally:
        if task:
            bar.stop()
            for status in _shown:
                status.start()


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show on a terminal that something takes its time."""
    if not is_terminal(sys.stderr):
        yield
        return
    with console(stderr=True).status(what) as status:
        _shown.append(status)
        try:
            yield
        finally:
            _shown.remove(status)


def shown_safely(text: str) -> str:
    """Text without what would command a terminal."""
    return CONTROLS.sub("�", text)
