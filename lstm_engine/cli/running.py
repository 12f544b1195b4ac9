"""Whole sequences: run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..terminal import waiting
from .files import check_folder, read_arrays, write_arrays
from .options import ModelPath, Options, command


@command
def run(
    model: ModelPath,
    source: Annotated[
        Path,
        typer.Option("--input", "-i", help="An .npz with an array per input, or a single array.", show_default=False),
    ],
    target: Annotated[Path, typer.Option("--output", "-o", help="The .npz to write.", show_default=False)],
    options: Options,
) -> None:
    """Run whole sequences: arrays in, arrays out."""
    check_folder(target)
    feeds = read_arrays(source)
    loaded = options.load(model)
    if isinstance(feeds, dict) and len(feeds) == 1 and not set(feeds) & {spec.name for spec in loaded.inputs}:
        feeds = next(iter(feeds.values()))
    with waiting("running"):
        results = loaded.run(feeds)
    write_arrays(target, results)
