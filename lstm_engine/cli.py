"""The command line. Nothing heavy is imported before a command needs it.

Exit codes: 0; 1, it failed (one line on stderr says why); 2, wrong usage; 128 + n, ended by signal n.
"""

from __future__ import annotations

import functools
import inspect as introspection
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, islice, takewhile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Final

import typer

from . import __version__
from .errors import InputError, LstmEngineError, StateError
from .signals import Signals, remembered_interrupts
from .terminal import compile_bar, console, fail, failing_plainly, is_terminal, say, shown_safely, waiting

if TYPE_CHECKING:
    import numpy as np

    from .generation import Piece
    from .model import Model
    from .stream import Stream

app = typer.Typer(
    name="lstm-engine",
    help="Run trained LSTM networks on the CPU: whole sequences, or one step at a time.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_LONGEST_LINE: Final = 1 << 26  # bytes of a reading
_SHIPPED_PROMPT: Final = "def "  # the shipped model writes Python
_LONG_PROMPT: Final = 10_000  # characters that take a moment to read


def main() -> None:
    """The entry point."""
    if sys.stdout is None:  # closed by the caller, who wants nothing of it
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (open until the end)
    for stream in (sys.stdout, sys.stderr):
        encoding = (getattr(stream, "encoding", None) or "").lower().replace("-", "")
        if encoding != "utf8" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that lacks a letter is no reason to fail
    app(prog_name="lstm-engine")


# --- failing ---------------------------------------------------------------------------------------------------------


def _command(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command: its ``options`` become those of load(), what it raises becomes a line and an exit code."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        return app.command(name)(failing_plainly(_with_load_options(function)))

    return register


# --- loading ---------------------------------------------------------------------------------------------------------


def _as_json(text: str) -> Any:
    """The value of an option that takes JSON, or @FILE with JSON in it."""
    try:
        return json.loads(Path(text[1:]).read_text("utf-8") if text.startswith("@") else text)
    except (OSError, ValueError, RecursionError) as fault:
        raise typer.BadParameter(f"{text!r} is not JSON ({fault})") from fault


def _option(kind: Any, text: str, panel: str, *names: str, **more: Any) -> Any:
    return Annotated[kind, typer.Option(*names, help=text, rich_help_panel=panel, **more)]


_SELDOM: Final = "Loading"
_BARE: Final = "What a file of bare weights cannot say"
_LOAD_OPTIONS: Final[Mapping[str, Any]] = {
    "precision": _option(str | None, "float32, bfloat16 or int8 weights; default: the file's.", _SELDOM),
    "threads": _option(int | None, "Use at most this many threads.", _SELDOM, min=1),
    "states": _option(str | None, '{"input": "output"} pairs that a stream carries.', _SELDOM, metavar="JSON"),
    "constants": _option(str | None, '{"input": value} that never change.', _SELDOM, metavar="JSON"),
    "prefix": _option(str | None, "Prefix of the module wanted.", _BARE),
    "batch_first": _option(bool | None, "Which axis comes first.", _BARE, "--batch-first/--time-first"),
    "nonlinearity": _option(str | None, "Of a plain PyTorch RNN.", _BARE, metavar="tanh|relu"),
    "layers": _option(str | None, "A Keras network's layers, one object each; @FILE too.", _BARE, metavar="JSON"),
}
_JSON_OPTIONS: Final = ("states", "constants", "layers")


@dataclass(frozen=True)
class _Options:
    """The options of load()."""

    given: Mapping[str, Any]

    def at(self, precision: str) -> _Options:
        """The same options, but for the precision."""
        return _Options({**self.given, "precision": precision})

    def load(self, path: Path) -> Model:
        """The model; what its first use compiles is shown."""
        from .image import watch
        from .model import load

        watch(compile_bar)
        return load(path, **self.given)


def _check_precision(name: str | None) -> None:
    if name is None:
        return
    from .model import PRECISIONS_ASKED

    if name not in PRECISIONS_ASKED:
        raise typer.BadParameter(f"--precision {name}: expected one of {', '.join(PRECISIONS_ASKED)}")


def _with_load_options(function: Callable[..., None]) -> Callable[..., None]:
    """A command with a parameter ``options`` as one that has the options themselves."""
    own = introspection.signature(function, eval_str=True).parameters
    if "options" not in own:
        return function

    @functools.wraps(function)
    def with_options(**arguments: Any) -> None:
        given = {name: arguments.pop(name) for name in _LOAD_OPTIONS}
        _check_precision(given["precision"])
        given |= {name: _as_json(given[name]) for name in _JSON_OPTIONS if given[name] is not None}
        function(options=_Options(given), **arguments)

    kind = introspection.Parameter.KEYWORD_ONLY
    parameters = [parameter.replace(kind=kind) for name, parameter in own.items() if name != "options"]
    parameters += [introspection.Parameter(name, kind, default=None, annotation=a) for name, a in _LOAD_OPTIONS.items()]
    with_options.__signature__ = introspection.Signature(parameters)  # type: ignore[attr-defined]
    with_options.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del with_options.__wrapped__
    return with_options


def _shipped_model() -> Path:
    """The character model that comes with the engine. Raises LstmEngineError if it was left out."""
    here = Path(__file__).resolve().parent
    places = (here / "data" / "char.onnx", here.parent / "models" / "char" / "char.onnx")
    for place in places:
        if place.is_file():
            return place
    raise LstmEngineError("this installation comes without the character model; name a MODEL")


# --- commands ---------------------------------------------------------------------------------------------------------


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


ModelPath = Annotated[Path, typer.Argument(metavar="MODEL", help="An .onnx or .npz file.", show_default=False)]


# --- inspect, convert, verify, bench, warm-up ------------------------------------------------------------------------


@_command("inspect")
def inspect(
    model: ModelPath,
    options: _Options,
    batch: Annotated[int, typer.Option(min=1, help="Rows of the stream whose program is shown.")] = 1,
    timed: Annotated[bool, typer.Option("--time", help="Measure each instruction instead of estimating it.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    page: Annotated[
        Path | None,
        typer.Option("--html", help="Write a page with a picture of the network; measures too."),
    ] = None,
) -> None:
    """Show a model: inputs, outputs, states, and the program that runs it."""
    if page is not None:
        if as_json:
            raise typer.BadParameter("--html and --json exclude each other")
        _check_folder(page)
    loaded = options.load(model)
    from .report.inspect import described, printed

    description = described(loaded, batch, timed or page is not None)
    if page is not None:
        from .pages import diagram
        from .report.picture import pictured

        _write_page(page, diagram.page(pictured(loaded, description)))
    elif as_json:
        print(json.dumps(description, indent=2, ensure_ascii=False))
    else:
        printed(description, console())


@_command("convert")
def convert(
    model: ModelPath,
    output: Annotated[Path, typer.Argument(metavar="OUT.npz", help="Where to write.", show_default=False)],
    options: _Options,
) -> None:
    """Write a model to the engine's own file: the whole network with its metadata; loading it needs no onnx.

    --precision bfloat16 or int8 rounds the weights for good, and the file runs in it by itself.
    """
    if output.suffix != ".npz":
        raise typer.BadParameter(f"{output}: expected a name that ends in .npz")
    _check_folder(output)
    loaded = options.load(model)
    loaded.save(output)
    from .precision import sizes

    parameters, less, _ = sizes(loaded.graph, loaded.precision)
    rounded = f", {less:,} of {parameters:,} parameters in {loaded.precision}" if less else ""
    say(f"wrote {output}: {output.stat().st_size:,} bytes{rounded}")


@_command("verify")
def verify(
    model: ModelPath,
    options: _Options,
    seed: Annotated[int, typer.Option(min=0, help="Of the random inputs.")] = 0,
    rounds: Annotated[int, typer.Option(min=1, help="How many random inputs.")] = 3,
) -> None:
    """Hold a model's results against the float64 definition, and against onnxruntime where it is installed.

    With weights in bfloat16 or int8: against the definition of that precision, its cost beside it.
    """
    loaded = options.load(model)
    from .precision import ROUNDINGS
    from .report.verify import OtherEngineError, compared, definition_of, onnxruntime_of, shown, ways_of

    other, why_not, definition = None, "onnxruntime runs whole .onnx files only", None
    lesser = loaded.precision in ROUNDINGS
    if model.suffix == ".onnx":
        definition = definition_of(os.fspath(model), options.given["constants"])
    elif lesser:
        definition = options.at("float32").load(model).graph
    if lesser:
        why_not = f"it does not run weights in {loaded.precision}"
    elif model.suffix == ".onnx":
        other, why_not = onnxruntime_of(os.fspath(model), options.given["constants"])
    with waiting("comparing"):
        try:
            comparisons = compared(loaded, other, seed, rounds, definition)
        except OtherEngineError as fault:
            other, why_not = None, str(fault)
            comparisons = compared(loaded, other, seed, rounds, definition)
    console().print(shown(comparisons, ways_of(loaded)))
    if other is None:
        say(f"not compared with onnxruntime: {why_not}")
    wrong = [f"'{c.output}' by {c.error:.2e} (allowed {c.allowed:.2e})" for c in comparisons if not c.holds]
    apart = [f"'{c.output}' by {c.between:.2e} (allowed {c.between_allowed:.2e})" for c in comparisons if not c.agrees]
    if wrong:
        fail(f"{model}: differs from its definition: {', '.join(wrong)}")
    if apart:
        fail(f"{model}: holds to its definition, differs from onnxruntime: {', '.join(apart)}")


@_command("bench")
def bench(
    model: ModelPath,
    options: _Options,
    feeds: Annotated[
        Path | None, typer.Option(help="An .npz with an array per input of one call; random without.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long to measure.")] = 10.0,
    seed: Annotated[int, typer.Option(min=0, help="Of random inputs.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Time a model on every engine installed, this one in each of its precisions: a call and, where it streams, a step.

    Engines take turns on as many threads; each one's outputs are first held against the float64 definition.
    """
    given = None if feeds is None else _read_arrays(feeds)
    loaded = options.load(model)
    from .report.bench import Request, benched, document, shown, timing_bar

    request = Request(model, loaded, options.given, given, seconds, seed)
    with timing_bar(console(stderr=True) if is_terminal(sys.stderr) else None) as progress:
        cases = benched(request, progress)
    if as_json:
        print(json.dumps(document(request, cases), indent=2, ensure_ascii=False))
    else:
        console().print(shown(request, cases))


@_command("warm-up")
def warm_up(
    float64: Annotated[bool, typer.Option("--float64", help="Also for models in float64.")] = False,
    precision: Annotated[
        list[str] | None, typer.Option(help="Only for weights in this: float32, bfloat16, int8, float64; repeatable.")
    ] = None,
) -> None:
    """Compile ahead of time what the first use of any model would compile; traces and explain compile more."""
    from .image import watch
    from .images import needed
    from .machine import CACHE_KNOB, cache_folder
    from .precision import PRECISIONS

    folder = cache_folder()
    if folder is None:
        fail(f"nowhere to keep compiled code: {CACHE_KNOB.name} turns the cache off, or there is no home folder")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    wanted = list(precision or ["float32"]) + (["float64"] if float64 else [])
    if strange := [name for name in wanted if name not in PRECISIONS]:
        raise typer.BadParameter(f"{', '.join(strange)}: expected {', '.join(PRECISIONS)}")
    watch(compile_bar)
    for name in wanted:
        for image in needed(name):
            image.load()
    missing = [name for name in wanted if not all(image.cached for image in needed(name))]
    if missing:
        fail(f"compiled for {', '.join(missing)}, but {folder} could not be written, or others can write to it")
    print(f"{', '.join(wanted)}: ready in {folder}")


# --- explain ---------------------------------------------------------------------------------------------------------


@_command("explain")
def explain(
    model: ModelPath,
    options: _Options,
    text: Annotated[str | None, typer.Option(help="Text that the model reads.", show_default=False)] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Text that the model goes on from; default: nothing before it.")
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--input", "-i", help="Readings: .npz, .npy, or .csv with a step a line.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Labelled text (.json); default: labelled.json beside MODEL, if there is one.")
    ] = None,
    length: Annotated[int, typer.Option(min=1, help="Steps, where neither text nor readings say.")] = 200,
    layer: Annotated[list[str] | None, typer.Option(help="Show only this layer; repeatable.")] = None,
    target: Annotated[
        Path | None, typer.Option("--output", "-o", help="The page to write; default: MODEL.explain.html, here.")
    ] = None,
) -> None:
    """Write a page that shows what the gates did with a text or with readings, step by step."""
    given = sum(one is not None for one in (text, prompt, source, labels))
    if given > 1:
        raise typer.BadParameter("--text, --prompt, --input and --labels exclude each other")
    page = Path(f"{model.stem}.explain.html") if target is None else target
    _check_folder(page)
    from .pages import walk
    from .report.explain import Request, explained, read_csv
    from .report.labelled import BESIDE, read_labelled

    beside = model.parent / BESIDE
    place = beside if not given and beside.is_file() else labels
    labelled = None if place is None else read_labelled(place)
    feeds = None if source is None else read_csv(source) if source.suffix == ".csv" else _read_arrays(source)
    loaded = options.load(model)
    with waiting("running"):
        shown = explained(loaded, Request(text, prompt, length, feeds, layer or (), labelled))
    _write_page(page, walk.page(shown))


def _write_page(path: Path, page: str) -> None:
    with _replacing(path) as file:
        file.write(page.encode())
    say(f"wrote {path}: {path.stat().st_size:,} bytes")


# --- run -------------------------------------------------------------------------------------------------------------


@_command("run")
def run(
    model: ModelPath,
    source: Annotated[
        Path,
        typer.Option("--input", "-i", help="An .npz with an array per input, or a single array.", show_default=False),
    ],
    target: Annotated[Path, typer.Option("--output", "-o", help="The .npz to write.", show_default=False)],
    options: _Options,
) -> None:
    """Run whole sequences: arrays in, arrays out."""
    _check_folder(target)
    feeds = _read_arrays(source)
    loaded = options.load(model)
    if isinstance(feeds, dict) and len(feeds) == 1 and not set(feeds) & {spec.name for spec in loaded.inputs}:
        feeds = next(iter(feeds.values()))
    with waiting("running"):
        results = loaded.run(feeds)
    _write_arrays(target, results)


def _read_arrays(path: Path) -> Any:
    """The arrays of an .npz by name, or the one array of an .npy."""
    import numpy as np

    if path.is_dir():
        raise InputError(f"{path}: is a folder; expected an .npz or .npy file")
    try:
        with path.open("rb") as file:
            content = np.load(file, allow_pickle=False)
            return {name: content[name] for name in content.files} if hasattr(content, "files") else content
    except (OSError, MemoryError) as fault:
        if isinstance(fault, OSError) and fault.strerror:
            raise
        raise InputError(f"{path}: cannot be read ({fault})") from fault
    except Exception as fault:  # zipfile, zlib, struct and NumPy each raise their own for damaged files
        why = _without_pickle(path) if "pickle" in str(fault) else " ".join(str(fault).split())
        raise InputError(f"{path}: not a readable .npz or .npy file ({why})") from fault


def _without_pickle(path: Path) -> str:
    """Why NumPy would take a file for pickle: whatever lacks the mark of its own files is one to it."""
    with path.open("rb") as file:
        mark = file.read(6)
    if mark.startswith((b"PK", b"\x93NUMPY", b"\x80")):
        return "it holds pickle, which is never loaded"
    return "it does not begin as one"


def _write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    import numpy as np

    # NumPy's savez takes names as keywords, and 'file' is its own: entries are written one by one instead.
    with _replacing(path) as file:
        import zipfile

        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                    np.lib.format.write_array(entry, array, allow_pickle=False)


def _check_folder(path: Path) -> None:
    """Raise InputError if no file can be put at ``path``: better before long work than after it."""
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}")
    if path.exists() and not path.is_file():  # putting a file in its place would take a device away
        raise InputError(f"{path}: is no plain file, so it is not written to")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"{path}: the folder {path.parent} cannot be written to")


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes ``path``'s place, or that of the file which a link there points at, once it is whole."""
    path = path.resolve()
    _check_folder(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp is for secrets; a result is as readable as any file the user makes.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


# --- stream ----------------------------------------------------------------------------------------------------------


@_command("stream")
def stream(
    model: ModelPath,
    options: _Options,
    form: Annotated[str, typer.Option("--format", metavar="csv|json", help="Of the lines.")] = "csv",
    batch: Annotated[int, typer.Option(min=1, help="Rows that run side by side; a line holds them all.")] = 1,
    state: Annotated[
        Path | None, typer.Option(help="Go on from the state in this file, if it exists, and keep it there at the end.")
    ] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Report lines that cannot be used, and go on.")] = False,
) -> None:
    """Readings on stdin, predictions on stdout: a line in, a line out, at once."""
    from .report.lines import FORMATS, Lines

    if form not in FORMATS:
        raise typer.BadParameter(f"--format {form}: expected one of {', '.join(FORMATS)}")
    if state is not None:
        _check_folder(state)
    opened = options.load(model).stream(batch)
    if state is not None and state.exists():
        _restore(opened, state)
    try:
        with Signals() as signals:
            _answer_lines(opened, Lines(opened, form), signals, skip_bad)
    finally:
        if state is not None:
            with _replacing(state) as file:
                file.write(opened.state.to_bytes())
    if signals.arrived:
        if is_terminal(sys.stderr):
            say("")  # behind the ^C that a terminal shows
        raise typer.Exit(128 + signals.arrived)


def _restore(opened: Stream, path: Path) -> None:
    from .state import State

    try:
        opened.state = State.from_bytes(path.read_bytes())
    except StateError as fault:
        raise StateError(f"{path}: {fault}") from fault


def _answer_lines(opened: Stream, lines: Any, signals: Signals, skip_bad: bool) -> None:
    """A step and a line for each line, until there are no more or a signal ends it between two."""
    from .report.lines import bad_line

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


# --- generate --------------------------------------------------------------------------------------------------------


@_command("generate")
def generate(
    options: _Options,
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
    from .generation import Sampler, stream_generate

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
