"""What callers hand in, made into arrays of the dtypes and shapes a model declares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from .errors import InputError, listed
from .graph import Graph, Shape, TensorSpec

#: Floats that NumPy itself does not have (the package ml_dtypes has them), by name.
EXTENDED_FLOATS: Final = frozenset({"bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"})


def bind_constants(graph: Graph, constants: Mapping[str, Any]) -> Graph:
    """The graph with some inputs fixed for good.

    Raises InputError for names that are no inputs or values that do not fit them.
    """
    specs = {spec.name: spec for spec in graph.inputs}
    faults = [f"'{name}' is not an input" for name in constants if name not in specs]
    if faults:
        raise InputError(listed(f"constants= of {graph.origin} (inputs: {', '.join(specs)})", faults))
    values = {name: converted(specs[name], value) for name, value in constants.items()}
    kept = [spec for spec in graph.inputs if spec.name not in constants]
    return graph.with_nodes(graph.nodes, {**graph.constants, **values}, inputs=kept)


def converted(spec: TensorSpec, value: Any) -> np.ndarray:
    """A feed in the input's own dtype, in native byte order.

    Any real dtype becomes a float by rounding; floats to an integer input are refused, integers range-checked.
    """
    try:
        array = np.asarray(value)
    except ValueError as fault:
        raise InputError(f"input '{spec}': the feed is no rectangular array ({fault})") from fault
    want = np.dtype(spec.dtype)
    if array.dtype == want and array.dtype.isnative:
        return array
    if array.dtype.name in EXTENDED_FLOATS:
        array = array.astype(np.float32)
    if array.dtype.kind not in "fiub":
        raise InputError(f"input '{spec}': expected {want}, got {array.dtype}; feed real numbers")
    if want.kind in "iu" and array.dtype.kind == "f":
        raise InputError(f"input '{spec}': expected integers, got {array.dtype}; convert them where you know how")
    if want.kind == "b" and array.dtype.kind != "b":
        raise InputError(f"input '{spec}': expected bool, got {array.dtype}")
    if want.kind in "iu" and array.size:
        bounds = np.iinfo(want)
        if int(array.min()) < bounds.min or int(array.max()) > bounds.max:
            raise InputError(f"input '{spec}': values {array.min()} to {array.max()} do not fit {want}")
    with np.errstate(over="ignore"):
        result: np.ndarray = array.astype(want)
    return result


def step_feeds(subject: str, specs: Sequence[TensorSpec], x: Any) -> Mapping[str, Any]:
    """What a step of these inputs is given, as {name: value}; what may be left out may be missing.

    Raises InputError for names that are no inputs, and inputs that are missing.
    """
    if len(specs) == 1 and not isinstance(x, Mapping):
        return {specs[0].name: x}
    names = [spec.name for spec in specs]
    if not isinstance(x, Mapping):
        raise InputError(f"{subject}: expected {{name: array}} for inputs {', '.join(names)}, got {described(x)}")
    faults = [f"'{name}' is not an input of a step" for name in x if name not in names]
    faults += [f"'{spec}' is missing" for spec in specs if spec.name not in x and not spec.optional]
    if faults:
        raise InputError(listed(f"{subject} (inputs: {'; '.join(map(str, specs))})", faults))
    return x


def step_arrays(specs: Sequence[TensorSpec], batch: int, x: Any) -> tuple[dict[str, np.ndarray], bool]:
    """Feeds of one step with their batch axis; second, whether the caller left it out.

    Raises InputError, for all faults at once.
    """
    named = step_feeds("step", specs, x)
    faults: list[str] = []
    arrays, lean = {}, False
    for spec in specs:
        if spec.name not in named:
            continue
        try:
            array, left_out = _of_one_step(spec, batch, named[spec.name])
        except InputError as fault:
            faults.append(str(fault))
            continue
        arrays[spec.name] = array
        lean = lean or left_out
    if faults:
        raise InputError(listed("step", faults))
    return arrays, lean


def _of_one_step(spec: TensorSpec, batch: int, value: Any) -> tuple[np.ndarray, bool]:
    array = converted(spec, value)
    shape = spec.shape or ()
    if fits(shape, array.shape):
        return array, False
    if batch == 1 and shape and shape[0] == 1 and fits(shape[1:], array.shape):
        return array[np.newaxis], True
    if batch == 1 and array.ndim == 0 and all(size == 1 for size in shape):
        return array.reshape((1,) * len(shape)), True
    raise InputError(f"'{spec}': expected shape {shown(shape)}, got {list(array.shape)}")


def chunk_arrays(
    specs: Sequence[TensorSpec], axes: Mapping[str, int | None], batch: int, chunk: Any
) -> tuple[dict[str, np.ndarray], int]:
    """Feeds of many steps with their batch axis, and how many steps they are.

    ``axes``: where the steps lie, by input; None for one that does not go from step to step.
    Raises InputError.
    """
    named = step_feeds("step", specs, chunk)
    faults: list[str] = []
    arrays: dict[str, np.ndarray] = {}
    counts: dict[str, int] = {}
    for spec in specs:
        if spec.name not in named:
            continue
        array = converted(spec, named[spec.name])
        shape, axis = spec.shape or (), axes[spec.name]
        wanted = shape if axis is None else (*shape[:axis], None, *shape[axis:])
        if batch == 1 and array.ndim == len(wanted) - 1 and 1 in wanted:
            array = _with_batch(array, wanted)
        if not fits(wanted, array.shape):
            letters = shape if axis is None else (*shape[:axis], "T", *shape[axis:])
            faults.append(f"'{spec.name}': expected shape {shown(letters)}, got {list(array.shape)}")
            continue
        arrays[spec.name] = array
        if axis is not None:
            counts[spec.name] = array.shape[axis]
    if not faults and len(set(counts.values())) > 1:
        faults.append(f"chunks of different lengths: {counts}")
    if faults:
        raise InputError(listed("feed", faults))
    return arrays, next(iter(counts.values()), 1)


def _with_batch(array: np.ndarray, wanted: Shape) -> np.ndarray:
    """A chunk given without its batch axis of 1."""
    axis = wanted.index(1)
    given = fits(wanted[:axis] + wanted[axis + 1 :], array.shape)
    return np.expand_dims(array, axis) if given else array


def lean_shape(shape: tuple[int, ...], batch: int) -> tuple[int, ...] | None:
    """The shape of a step whose batch axis is left out; None where it has to be there."""
    return shape[1:] if batch == 1 and shape and shape[0] == 1 else None


def target_arrays(
    out: Any, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, np.dtype[Any]]
) -> dict[str, np.ndarray]:
    """``out=`` of a step as {output: array}, each of the shape and dtype of its output, and writable.

    Raises InputError, for all faults at once.
    """
    named = out if isinstance(out, Mapping) else {next(iter(shapes)): out} if len(shapes) == 1 else None
    if named is None:
        raise InputError(f"out: expected {{name: array}} for outputs {', '.join(shapes)}, got {described(out)}")
    faults = []
    for name, target in named.items():
        if name not in shapes:
            faults.append(f"'{name}' is not an output of a step")
        elif not isinstance(target, np.ndarray) or target.dtype != dtypes[name] or target.shape != shapes[name]:
            faults.append(f"'{name}': expected {dtypes[name]}{list(shapes[name])}, got {described(target)}")
        elif not target.flags.writeable:
            faults.append(f"'{name}': the array is read-only")
    if faults:
        raise InputError(listed("out", faults))
    return dict(named)


def with_zeros(specs: Sequence[TensorSpec], names: Sequence[str], feeds: Mapping[str, Any]) -> dict[str, Any]:
    """The feeds, and zeros for those of ``names`` that are left out, where the others say how large they are."""
    sizes = {
        dim: size
        for spec in specs
        if spec.name in feeds and len(spec.shape or ()) == np.ndim(feeds[spec.name])
        for dim, size in zip(spec.shape or (), np.shape(feeds[spec.name]), strict=True)
        if isinstance(dim, str)
    }
    found = dict(feeds)
    for spec in specs:
        shape = [sizes.get(dim) if isinstance(dim, str) else dim for dim in spec.shape or ()]
        if spec.name in names and spec.name not in feeds and None not in shape:
            found[spec.name] = np.zeros([size or 0 for size in shape], spec.dtype)
    return found


def shape_faults(specs: Sequence[TensorSpec], arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Ranks and sizes that are not the declared ones."""
    faults = []
    for spec in specs:
        if spec.name not in arrays or spec.shape is None:
            continue
        got = arrays[spec.name].shape
        if len(got) != len(spec.shape):
            faults.append(f"'{spec}': expected {len(spec.shape)} axes, got {len(got)} (shape {list(got)})")
            continue
        if any(isinstance(dim, int) and dim != size for dim, size in zip(spec.shape, got, strict=True)):
            expected = next(d for d, size in zip(spec.shape, got, strict=True) if isinstance(d, int) and d != size)
            faults.append(f"'{spec}': expected size {expected}, got shape {list(got)}")
    return faults


def name_faults(specs: Sequence[TensorSpec], arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Named dimensions that are of several sizes. Files name carelessly: a network may run all the same."""
    faults = []
    bound: dict[str, tuple[int, str]] = {}
    for spec in specs:
        sizes = arrays[spec.name].shape if spec.name in arrays else ()
        for dim, size in zip(spec.shape or (), sizes, strict=False):
            if isinstance(dim, str):
                known, where = bound.setdefault(dim, (size, spec.name))
                if known != size:
                    faults.append(f"'{spec}': {dim} is {size} here but {known} in '{where}'")
    return faults


def described(value: Any) -> str:
    """What a value is, for messages."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    return "nothing" if value is None else type(value).__name__


def fits(wanted: Shape, got: tuple[int, ...]) -> bool:
    """Whether a shape is the one wanted; None: any size."""
    return len(wanted) == len(got) and all(w is None or w == g for w, g in zip(wanted, got, strict=True))


def shown(shape: Shape) -> str:
    """A shape for messages."""
    return f"[{', '.join('?' if size is None else str(size) for size in shape)}]"


def rows_of(spec: TensorSpec, value: Any, n: int) -> np.ndarray:
    """A row for each of n slots, C-contiguous and in the input's dtype; zeros for None.

    Raises InputError for another shape or kind of numbers.
    """
    shape = (n, *(spec.shape or ()))
    if value is None:
        return np.zeros([size if isinstance(size, int) else 0 for size in shape], spec.dtype)
    array = converted(spec, value)
    if not fits(shape, array.shape):
        raise InputError(f"'{spec}': expected shape {shown(shape)}, got {list(array.shape)}")
    return np.ascontiguousarray(array)
