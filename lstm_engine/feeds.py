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
