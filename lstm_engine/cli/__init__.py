"""The command line. Nothing heavy is imported before a command needs it.

options.py     what makes a function a command; the options of load()      files.py      arrays and whole files
describing.py  inspect, verify, bench, explain                             running.py    run
preparing.py   convert, warm-up                                            streaming.py  stream
generating.py  generate                                                    scoring.py    score, on Ray

A new command is a function under ``@command``, and its place in ``_COMMANDS``.
Exit codes: 0; 1, it failed (one line on stderr says why); 2, wrong usage; 128 + n, ended by signal n.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Final

import typer

from .. import __version__
from .describing import bench, explain, inspect, verify
from .exporting import export
from .generating import generate
from .preparing import convert, warm_up
from .running import run
from .scoring import score
from .streaming import stream

#: In the order of --help; a command is called as its function is, with '-' for '_'.
_COMMANDS: Final = (inspect, convert, verify, bench, warm_up, explain, run, stream, generate, export, score)

app = typer.Typer(
    name="lstm-engine",
    help="Run trained LSTM networks on the CPU: whole sequences, or one step at a time.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """The entry point."""
    if sys.stdout is None:  # closed by the caller, who wants nothing of it
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (open until the end)
    for output in (sys.stdout, sys.stderr):
        encoding = (getattr(output, "encoding", None) or "").lower().replace("-", "")
        if encoding != "utf8" and hasattr(output, "reconfigure"):
            output.reconfigure(errors="replace")  # a terminal that lacks a letter is no reason to fail
    app(prog_name="lstm-engine")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lstm-engine {__version__}")
        raise typer.Exit(0)


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


for _command in _COMMANDS:
    app.command()(_command)
