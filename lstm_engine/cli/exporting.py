"""export: a model as a C library."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..machine import NATIVE, TARGETS
from ..terminal import fail, say, shown_safely, waiting
from .options import ModelPath, Options, command


@command
def export(
    model: ModelPath,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Folder to write to.", show_default=False)
    ],
    options: Options,
    target: Annotated[
        str,
        typer.Option(help=f"{NATIVE}, {', '.join(TARGETS)}, or LLVM's triple:cpu:features.", metavar="TARGET"),
    ] = NATIVE,
    name: Annotated[
        str | None, typer.Option(help="What files and functions are called by; default: as the model's file.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Rows of a step.", min=1)] = 1,
    block: Annotated[int, typer.Option(help="Steps that feed() computes at once, for so much more memory.", min=1)] = 1,
    shape: Annotated[
        list[str] | None,
        typer.Option(help="Of an input of one call, where the file leaves it open: NAME=1x512; repeatable."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="In the object, or in a file of their own; default: by their size.", metavar="object|file"),
    ] = None,
    flush_denormals: Annotated[
        bool,
        typer.Option(help="Have calls flush denormals to zero, or leave that to the caller: shorter calls."),
    ] = True,
    assembly: Annotated[bool, typer.Option("--assembly", help="Write the assembly text too.")] = False,
) -> None:
    """Write a streamed model as a C library: object file, header, example, and libraries where there is a linker.

    It needs no Python where it runs, and nothing of the C library. lstm_engine.runtime loads it with NumPy alone.
    """
    if weights not in (None, "object", "file"):
        raise typer.BadParameter(f"--weights {weights}: expected object or file")
    shapes = dict(_shape(text) for text in shape or ())
    if output.exists() and not output.is_dir():
        fail(f"{output}: expected a folder, it is a file")
    loaded = options.load(model)
    from ..library import export as write

    with waiting(f"making a library for {target}"):
        made = write(
            loaded,
            output,
            target=target,
            name=name,
            batch=batch,
            block=block,
            shapes=shapes,
            weights=weights,
            flush_denormals=flush_denormals,
            assembly=assembly,
        )
    for file in made.files:
        print(f"{file.stat().st_size:>10,}  {shown_safely(str(file))}")
    about = made.description
    print(
        f"{about['target']['triple']}, CPU {about['target']['cpu']}, {about['precision']}: "
        f"{about['weights']['bytes']:,} bytes of weights, {about['instance_bytes']:,} an instance, "
        f"{about['state_bytes']:,} a saved state"
    )
    for text in made.missing:
        say(text)


def _shape(text: str) -> tuple[str, list[int]]:
    """NAME=1x512."""
    name, equals, sizes = text.rpartition("=")
    parts = sizes.lower().replace(",", "x").split("x")
    if not equals or not all(part.strip().isdigit() for part in parts):
        raise typer.BadParameter(f"--shape {text}: expected NAME=1x512")
    return name, [int(part) for part in parts]
