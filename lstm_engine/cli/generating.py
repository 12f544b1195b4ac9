"""Token by token: generate."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import chain, islice, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from ..errors import InputError, LstmEngineError
from ..signals import remembered_interrupts
from ..terminal import is_terminal, say, shown_safely, waiting
from .options import Options, command

if TYPE_CHECKING:
    from ..generation import Piece

_SHIPPED_PROMPT: Final = "def "  # the shipped model writes Python
_LONG_PROMPT: Final = 10_000  # characters that take a moment to read


@command
def generate(
    options: Options,
    model: Annotated[
        Path | None,
        typer.Argument(metavar="MODEL", help="Default: the character model that comes along.", show_default=False),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(help=f"Text to go on from; default: the beginning of a text, {_SHIPPED_PROMPT!r} without MODEL."),
    ] = None,
    prompt_file: Annotated[
        Path | None, typer.Option(help="Read the prompt from a file ('-': stdin).", show_default=False)
    ] = None,
    ids: Annotated[bool, typer.Option("--ids", help="The prompt is token ids; print ids, too.")] = False,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", min=0, help="At most so many.")] = 500,
    temperature: Annotated[float, typer.Option("--temperature", "-t", min=0, help="0: always the most likely.")] = 0.7,
    top_k: Annotated[int | None, typer.Option(min=1, help="Only the k most likely tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option(min=0, max=1, help="Only the most likely, up to this probability.")
    ] = None,
    min_p: Annotated[
        float | None, typer.Option(min=0, max=1, help="Only those at least so likely as this part of the likeliest.")
    ] = None,
    repetition_penalty: Annotated[
        float, typer.Option(min=0, help="Above 1: tokens that were read become less likely.")
    ] = 1.0,
    repetition_window: Annotated[
        int | None, typer.Option(min=1, help="The penalty is for the last so many tokens read; default: all.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The same seed gives the same text.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="Text (with --ids: a token id) that ends it; may be repeated.")
    ] = None,
    vocabulary: Annotated[
        Path | None, typer.Option(help="JSON with the model's tokens; default: its own, or MODEL's .vocab.json.")
    ] = None,
    endless: Annotated[bool, typer.Option("--endless", help="Go on past the boundary between texts.")] = False,
    echo: Annotated[bool, typer.Option(help="Print the prompt before what follows it.")] = True,
    speed: Annotated[
        bool | None, typer.Option(help="Say on stderr how fast it was; default: on a terminal.", show_default=False)
    ] = None,
) -> None:
    """Go on from a prompt, token by token."""
    from ..generation import Sampler, stream_generate

    if prompt is None:
        prompt = _SHIPPED_PROMPT if model is None and not ids else ""
    text = prompt if prompt_file is None else _read_prompt(prompt_file)
    if endless and stop:
        raise typer.BadParameter("--endless and --stop exclude each other")
    start: Any = _parsed_ids(text.replace(",", " ").split()) if ids else text
    ends: Any = () if endless else (_parsed_ids(stop) if ids else stop) if stop else None
    sampler = Sampler(
        temperature,
        top_k,
        top_p,
        seed,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        repetition_window=repetition_window,
    )
    printer = _Printer(ids, is_terminal(sys.stderr) if speed is None else speed)
    with remembered_interrupts() as interrupts:
        opened = options.load(_shipped_model() if model is None else model).stream()
        pieces = stream_generate(
            opened, start, max_tokens=max_tokens, sampler=sampler, stop=ends, vocabulary=vocabulary
        )
        try:
            printer.show(" ".join(map(str, start)) if echo and ids else text if echo else "")
            first = _first_of(pieces) if len(text) > _LONG_PROMPT else []
            printer.show_all(takewhile(lambda _: not interrupts, chain(first, pieces)))
        finally:
            printer.finish()
    if interrupts:
        raise KeyboardInterrupt


def _shipped_model() -> Path:
    """The character model that comes with the engine. Raises LstmEngineError if it was left out."""
    here = Path(__file__).resolve().parent.parent
    places = (here / "data" / "char.onnx", here.parent / "models" / "char" / "char.onnx")
    for place in places:
        if place.is_file():
            return place
    raise LstmEngineError("this installation comes without the character model; name a MODEL")


def _first_of(pieces: Iterator[Piece]) -> list[Piece]:
    """The first token, for which the whole prompt is read."""
    with waiting("reading the prompt"):
        return list(islice(pieces, 1))


def _parsed_ids(words: list[str]) -> list[int]:
    try:
        return [int(word) for word in words]
    except ValueError as fault:
        raise typer.BadParameter(f"--ids: expected token ids, got {' '.join(words)[:80]!r}") from fault


def _read_prompt(path: Path) -> str:
    data = _read_stdin() if str(path) == "-" else path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        raise InputError(f"{path}: the prompt is not UTF-8 ({fault.reason} at byte {fault.start})") from fault


def _read_stdin() -> bytes:
    return b"" if sys.stdin is None else sys.stdin.buffer.read()


class _Printer:
    """Prints tokens as they come, ids with a space between them, and in the end how many there were and how fast."""

    def __init__(self, ids: bool, speed: bool) -> None:
        self.ids, self.speed = ids, speed
        self.shown = shown_safely if is_terminal(sys.stdout) else str
        self.last = ""
        self.count = 0
        self.latest: Piece | None = None

    def show(self, text: str) -> None:
        """Print a text, at once."""
        shown = self.shown(text)
        if shown:
            sys.stdout.write((" " if self.ids and self.last else "") + shown)
            sys.stdout.flush()
            self.last = shown

    def show_all(self, pieces: Iterator[Piece]) -> None:
        """Print all tokens."""
        for piece in pieces:
            self.latest, self.count = piece, self.count + 1
            self.show(str(piece.token) if self.ids or piece.text is None else piece.text)

    def finish(self) -> None:
        """End the last line; also after an interruption."""
        if self.last and not self.last.endswith("\n"):
            sys.stdout.write("\n")
            sys.stdout.flush()
        if self.speed and self.latest is not None:
            rate, first = self.latest.tokens_per_second, 1e3 * self.latest.first_token_seconds
            say(f"[{self.count} tokens, {rate:,.0f} a second; the first took {first:,.1f} ms]")
