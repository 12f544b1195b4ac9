"""NumPy's array objects as machine code reads them: data, nd, dimensions, strides, base, descr, flags (since 1.7)."""

from __future__ import annotations

from ..encoding import Form
from ..jit import kernel
from .simd import word, word32

HEADER, TYPE, DTYPE, FLAGS, AXES, SIZES, LEAN_AXES, LEAN_SIZES = (int(w) * 8 for w in Form)


@kernel
def data_of(array, form):  # type: ignore[no-untyped-def]
    """Address of an array's first element."""
    return word(array + word(form + HEADER))


@kernel
def is_kind(array, form):  # type: ignore[no-untyped-def]
    """Whether an object is an array of a form's type, dtype and flags; any other object may come."""
    fields = array + word(form + HEADER)
    if word(fields - 8) != word(form + TYPE) or word(fields + 40) != word(form + DTYPE):
        return False
    return word32(fields + 48) & word(form + FLAGS) == word(form + FLAGS)


@kernel
def has_sizes(array, form, first, wanted):  # type: ignore[no-untyped-def]
    """Whether an array's axes from ``first`` on have the sizes at ``wanted``."""
    fields = array + word(form + HEADER)
    axes, sizes = word32(fields + 8), word(fields + 16)
    i = first
    while i < axes:
        if word(sizes + 8 * i) != word(wanted + 8 * i):
            return False
        i += 1
    return True


@kernel
def matches(array, form):  # type: ignore[no-untyped-def]
    """Which of a form's shapes an object has: 1 the full, 2 the lean one, 0 none, or it is another kind of object."""
    if not is_kind(array, form):
        return 0
    axes = word32(array + word(form + HEADER) + 8)
    if axes == word(form + AXES):
        kind, wanted = 1, form + SIZES
    elif axes == word(form + LEAN_AXES):
        kind, wanted = 2, form + LEAN_SIZES
    else:
        return 0
    return kind if has_sizes(array, form, 0, wanted) else 0


@kernel
def rows_of(array, form):  # type: ignore[no-untyped-def]
    """Size of the first axis of an array whose others are a form's; -1 for another object or shape."""
    if not is_kind(array, form):
        return -1
    fields = array + word(form + HEADER)
    if word32(fields + 8) != word(form + AXES) or not has_sizes(array, form, 1, form + SIZES):
        return -1
    return word(word(fields + 16))
