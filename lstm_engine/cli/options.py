"""What makes a function a command: the options of load(), and failing in one line."""

from __future__ import annotations

import functools
import inspect as introspection
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from ..terminal import compile_bar, failing_plainly

if TYPE_CHECKING:
    from ..model import Model

ModelPath = Annotated[Path, typer.Argument(metavar="MODEL", help="An .onnx or .npz file.", show_default=False)]


def command(function: Callable[..., None]) -> Callable[..., None]:
    """A command: its ``options`` become those of load(), what it raises becomes a line and an exit code."""
    return failing_plainly(_with_load_options(function))


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
class Options:
    """The options of load()."""

    given: Mapping[str, Any]

    def at(self, precision: str) -> Options:
        """The same options, but for the precision."""
        return Options({**self.given, "precision": precision})

    def load(self, path: Path) -> Model:
        """The model; what its first use compiles is shown."""
        from ..image import watch
        from ..model import load

        watch(compile_bar)
        return load(path, **self.given)


def _check_precision(name: str | None) -> None:
    if name is None:
        return
    from ..model import PRECISIONS_ASKED

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
        function(options=Options(given), **arguments)

    kind = introspection.Parameter.KEYWORD_ONLY
    parameters = [parameter.replace(kind=kind) for name, parameter in own.items() if name != "options"]
    parameters += [introspection.Parameter(name, kind, default=None, annotation=a) for name, a in _LOAD_OPTIONS.items()]
    with_options.__signature__ = introspection.Signature(parameters)  # type: ignore[attr-defined]
    with_options.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del with_options.__wrapped__
    return with_options
