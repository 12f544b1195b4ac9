"""A streamed model as a C library: no Python where it runs.

The data flow: model → order (another process) → layout → code → interface → object; then header, example, libraries.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..errors import InputError, listed
from ..formats.native import write_native
from ..machine import NATIVE, named_target
from ..model import Model
from .linking import linked
from .order import Order, made
from .texts import RESERVED, cmake, example, header, identifier

#: Weights of more bytes lie in a file of their own, where nothing else is said.
MOST_IN_OBJECT: Final = 32 << 20


@dataclass(frozen=True)
class Library:
    """What export() wrote: the files, what the library says of itself, and what could not be made, and why."""

    files: tuple[Path, ...]
    description: Mapping[str, Any]
    missing: tuple[str, ...]


def export(
    model: Model,
    folder: str | os.PathLike[str],
    *,
    target: str = NATIVE,
    name: str | None = None,
    batch: int = 1,
    block: int = 1,
    shapes: Mapping[str, Sequence[int]] | None = None,
    weights: str | None = None,
    assembly: bool = False,
) -> Library:
    """Write a streamed model as a C library: an object file, its header, an example, and libraries where a linker is.

    ``target``: "native" (this CPU), a name of machine.TARGETS, or LLVM's own "triple:cpu:features".
    ``name``: of the files and what the functions begin with; None: the model's. ``batch``: rows of a step.
    ``block``: steps that feed() computes at once: input projections together, for so many times the memory.
    ``shapes``: of the inputs of one call, where the file leaves open how large a frame is; of a model that needs whole
    sequences, which is then called with sequences of these shapes and carries nothing.
    ``weights``: "object" or "file" (one of their own, to be mapped); None: what suits their size.
    ``assembly``: the code is written as text too.

    Raises UnsupportedModelError naming operators that run in Python; StreamingError as Model.stream() does;
    TargetError for a machine that LLVM does not know or that cannot express the program; InputError, OSError.
    """
    machine = named_target(target)
    prefix = _prefix(model, name)
    faults = [f"{what}={value!r}: expected a positive number" for what, value in (("batch", batch), ("block", block))
              if isinstance(value, bool) or not isinstance(value, int) or value < 1]  # fmt: skip
    if weights not in (None, "object", "file"):
        faults.append(f"weights={weights!r}: expected 'object', 'file' or None")
    if faults:
        raise InputError(listed("export", faults))
    place = Path(folder)
    new = not place.exists()
    place.mkdir(parents=True, exist_ok=True)
    archive = place / f".{prefix}-{secrets.token_hex(6)}.npz"
    apart = weights == "file" or (weights is None and _weight_bytes(model) > MOST_IN_OBJECT)
    order = Order(
        archive=str(archive),
        precision=model.precision,
        declared=model.declared,
        machine=machine,
        name=prefix,
        batch=batch,
        block=block,
        shapes={key: [int(size) for size in shape] for key, shape in (shapes or {}).items()},
        apart=apart,
        fingerprint=model.fingerprint,
        assembly=assembly,
    )
    try:
        write_native(model.graph, archive)
        done = made(order)
    except BaseException:
        archive.unlink(missing_ok=True)
        if new:
            place.rmdir()
        raise
    archive.unlink()
    description = done.description
    object_file = place / f"{prefix}.{'obj' if 'windows' in machine.triple else 'o'}"
    contents = {
        object_file: done.object,
        place / f"{prefix}.h": header(description, os.path.basename(model.graph.origin)).encode(),
        place / "example.c": example(description).encode(),
        place / f"{prefix}.cmake": cmake(description, object_file.name).encode(),
    }
    if apart:
        contents[place / f"{prefix}.weights"] = done.weights
    if assembly:
        contents[place / f"{prefix}.s"] = done.assembly
    for path, content in contents.items():
        path.write_bytes(content)
    libraries, missing = linked(place, prefix, object_file, machine)
    return Library((*contents, *libraries), description, tuple(missing))


def _prefix(model: Model, name: str | None) -> str:
    """The name of a library: the one asked for, or one made of the model's."""
    if name is None:
        stem = Path(os.path.basename(model.graph.origin)).stem
        return identifier(f"{stem}_model" if stem in RESERVED else stem)
    prefix = identifier(name)
    if prefix != name:
        raise InputError(f"export: name {name!r} is no name in C; '{prefix}' would be")
    return prefix


def _weight_bytes(model: Model) -> int:
    return sum(value.nbytes for value in model.graph.constants.values())
