"""Whole data sets, on Ray: score."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from ..errors import InputError, LstmEngineError
from ..machine import cores
from ..terminal import is_terminal, say, waiting
from .options import ModelPath, Options, command

#: Endings of files, and what Ray Data calls their format.
FORMATS: Final[Mapping[str, str]] = {
    ".parquet": "parquet",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".npy": "numpy",
}
#: Ray Data's own settings for a machine of few cores: actors that read footers, and bytes of files that a task reads.
_LOCAL: Final = {"RAY_DATA_PARQUET_FOOTER_NUM_ACTORS": "1", "RAY_DATA_PARQUET_BIN_PACKING_BYTES": str(16 << 20)}
_ADVICE: Final = "\nFailed to apply UDF transform"  # how to have Ray try again what will not change
_SPARE_CPUS: Final = 2  # of a local Ray, for what reads and writes


@command
def score(
    model: ModelPath,
    source: Annotated[
        str, typer.Argument(metavar="INPUT", help="A file or folder of .parquet, .jsonl or .npy.", show_default=False)
    ],
    target: Annotated[str, typer.Argument(metavar="OUTPUT", help="The folder to write.", show_default=False)],
    options: Options,
    column: Annotated[
        list[str] | None,
        typer.Option("--column", "-c", help="Column of sequences, or INPUT=COLUMN; repeatable. Default: as the input."),
    ] = None,
    output: Annotated[
        list[str] | None,
        typer.Option("--output", "-o", help="New column, or OUTPUT=COLUMN; repeatable. Default: all, as the outputs."),
    ] = None,
    lengths: Annotated[str | None, typer.Option(help="Column with the number of steps, where rows are padded.")] = None,
    keys: Annotated[
        list[str] | None, typer.Option("--key", help="Column to keep; repeatable. Default: all but those fed.")
    ] = None,
    form: Annotated[
        str | None, typer.Option("--format", metavar="parquet|json", help="Of OUTPUT; default: as INPUT, or parquet.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Of a Ray cluster ('auto': the one of this machine); default: a Ray of its own.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default: as there are CPUs.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Rows of a call; default: blocks as they come.")] = None,
) -> None:
    """Score a data set on Ray: every row's sequence becomes what the model makes of it, in order, beside its keys.

    Needs the extra: pip install 'lstm_engine[ray]'.
    """
    from ..ray import require

    require("pyarrow", "pandas")
    kind = _format_of(source)
    written = form or ("json" if kind == "json" else "parquet")
    if written not in ("parquet", "json"):
        raise typer.BadParameter(f"--format {form}: expected parquet or json")
    if "://" not in target and Path(target).exists() and (not Path(target).is_dir() or any(Path(target).iterdir())):
        raise InputError(f"{target}: is there already; expected a folder that is new or empty")
    loaded = options.load(model)
    inputs = [spec.name for spec in loaded.inputs if not spec.optional]
    columns = _named(["data"] if kind == "numpy" and not column else column, inputs)
    outputs = _named(output, [spec.name for spec in loaded.outputs]) if output else None
    with _ray(address, workers) as ray, _plain_faults(ray):
        from ..ray import score as scored

        data = getattr(ray.data, f"read_{kind}")(source)
        results = scored(
            data,
            loaded,
            column=columns,
            output=outputs,
            length_column=lengths,
            keep=keys,
            concurrency=workers,
            batch_size=batch,
        )
        getattr(results, f"write_{written}")(target)
    say(f"wrote {target}")


def _format_of(source: str) -> str:
    """The format of a file, or of the files in a folder."""
    path = Path(source)
    names = [source] if path.suffix in FORMATS or not path.is_dir() else [str(each) for each in path.rglob("*")]
    if "://" not in source and not path.exists():
        raise InputError(f"{source}: there is no such file or folder")
    found = {FORMATS[suffix] for name in names if (suffix := Path(name).suffix) in FORMATS}
    if len(found) != 1:
        got = f"files of {', '.join(sorted(found))}" if found else "none of these"
        raise InputError(f"{source}: expected files of one format ({', '.join(FORMATS)}), got {got}")
    return found.pop()


def _named(given: list[str] | None, names: list[str]) -> dict[str, str]:
    """{name: column} of options of the form COLUMN or NAME=COLUMN; of none: each name as it is."""
    pairs = [each.partition("=") for each in given or names]
    if len(names) > 1 and any(not mark for _, mark, _ in pairs) and given:
        raise typer.BadParameter(f"{' '.join(given)}: expected NAME=COLUMN for some of {', '.join(names)}")
    return {name if mark else names[0] if given else name: column if mark else name for name, mark, column in pairs}


@contextmanager
def _ray(address: str | None, workers: int | None) -> Iterator[Any]:
    """Ray, connected to a cluster or to one of its own, and no longer afterwards; it keeps what it does to itself."""
    settings = {"RAY_BACKEND_LOG_LEVEL": "fatal"}
    if address is None:
        settings |= _LOCAL
    shown = is_terminal(sys.stdout)
    if not shown:
        settings["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings(record=True):  # and forgotten
        with waiting("starting Ray" if address is None else "joining Ray"):
            ray = importlib.import_module("ray")
            importlib.import_module("ray.data")
            for name in ("ray", "ray.data"):
                logging.getLogger(name).setLevel(logging.CRITICAL)
            quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
            if address is None:
                cpus = (workers or cores()) + _SPARE_CPUS
                ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
            else:
                ray.init(address=address, **quiet)
        if shown:  # Ray Data's own bars, those that need no other package
            context = ray.data.DataContext.get_current()
            context.enable_rich_progress_bars, context.use_ray_tqdm = True, False
        try:
            yield ray
        finally:
            ray.shutdown()


@contextmanager
def _plain_faults(ray: Any) -> Iterator[None]:
    """What went wrong in a worker as its own error, without the worker's traceback."""
    try:
        yield
    except ray.exceptions.RayTaskError as fault:
        if not isinstance(fault.cause, LstmEngineError):
            raise fault.cause from None
        why, _, _ = str(fault.cause).partition(_ADVICE)
        raise type(fault.cause)(why) from None
