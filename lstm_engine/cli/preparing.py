"""What is done once, for later runs: convert, warm-up."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..terminal import compile_bar, fail, say
from .files import check_folder
from .options import ModelPath, Options, command


@command
def convert(
    model: ModelPath,
    output: Annotated[Path, typer.Argument(metavar="OUT.npz", help="Where to write.", show_default=False)],
    options: Options,
) -> None:
    """Write a model to the engine's own file: the whole network with its metadata; loading it needs no onnx.

    --precision bfloat16 or int8 rounds the weights for good, and the file runs in it by itself.
    """
    if output.suffix != ".npz":
        raise typer.BadParameter(f"{output}: expected a name that ends in .npz")
    check_folder(output)
    loaded = options.load(model)
    loaded.save(output)
    from ..precision import sizes

    parameters, less, _ = sizes(loaded.graph, loaded.precision)
    rounded = f", {less:,} of {parameters:,} parameters in {loaded.precision}" if less else ""
    say(f"wrote {output}: {output.stat().st_size:,} bytes{rounded}")


@command
def warm_up(
    float64: Annotated[bool, typer.Option("--float64", help="Also for models in float64.")] = False,
    precision: Annotated[
        list[str] | None, typer.Option(help="Only for weights in this: float32, bfloat16, int8, float64; repeatable.")
    ] = None,
) -> None:
    """Compile ahead of time what the first use of any model would compile; traces and explain compile more."""
    from ..image import watch
    from ..images import needed
    from ..machine import CACHE_KNOB, cache_folder
    from ..precision import PRECISIONS

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
