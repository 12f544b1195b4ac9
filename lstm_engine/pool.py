"""StreamPool: many streams of one model, and a call for any of them at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from .errors import InputError, StateError, listed
from .feeds import bind_constants, described, fits, rows_of, shown, step_feeds
from .locks import Lock
from .passes.shapes import fold
from .slots import Slots
from .state import State
from .together import OneByOne, Together, Way, joined, known

if TYPE_CHECKING:
    from .model import Model

MOST_CAPACITY: Final = 1 << 24


class StreamPool:
    """Many streams of one model that share its weights, each in a slot; one call runs a step of any of them.

    Slots are named by handles, integers that open() and fork() give; a handle is stale for good once its slot is
    closed. What a slot's stream gives is what a Stream of its own would, bit by bit in float32 and int8, whoever
    shares the call. ``inputs``, ``outputs``: what one slot takes and gives at a step, without batch and time axis.

    Several threads may use a pool at once: their calls wait for one another, and a call of more than a few
    microseconds gives up the interpreter lock. A call that fails leaves every slot as it was. In a forked process the
    pool goes on as a copy of its own.
    """

    def __init__(self, model: Model, capacity: int = 1024, constants: Mapping[str, Any] | None = None) -> None:
        if isinstance(capacity, bool) or not isinstance(capacity, int) or not 1 <= capacity <= MOST_CAPACITY:
            raise InputError(f"capacity={capacity!r}: expected room for 1 to {MOST_CAPACITY} slots to begin with")
        graph = fold(bind_constants(model.graph, constants)) if constants else model.graph
        self.model = model
        self._slots = Slots(capacity)
        self._way: Way = joined(model, graph, constants, self._slots) or OneByOne(model, constants, self._slots)
        self.inputs, self.outputs = self._way.inputs, self._way.outputs
        (first, *others) = self.outputs
        single = not others and len(self.inputs) == 1 and self.together
        self._single = (known(first), np.dtype(first.dtype)) if single else None
        self._lock = Lock()

    def __repr__(self) -> str:
        return f"StreamPool({len(self)} of {self.capacity} slots open, model {self.model.fingerprint[:12]})"

    # --- slots -------------------------------------------------------------------------------------------------------

    @property
    def capacity(self) -> int:
        """Slots there is room for; open() and fork() make more room when all are open, and move none."""
        return self._slots.capacity

    def __len__(self) -> int:
        """Slots that are open."""
        return len(self._slots)

    def __contains__(self, slot: object) -> bool:
        """Whether this is the handle of an open slot."""
        try:
            self._slots.slot(slot)
        except StateError:
            return False
        return True

    @property
    def together(self) -> bool:
        """Whether slots run as rows of one program. Else each runs alone: the model has host calls, say, or a fixed
        batch.
        """
        return isinstance(self._way, Together)

    def open(self) -> int:
        """A new stream at the model's beginning: the handle of its slot.

        Raises StateError where no more slots can be had.
        """
        with self._lock:
            handle = self._opened()
            self._way.begin(self._slots.slot(handle))
        return handle

    def close(self, slot: int) -> None:
        """End a stream: its state is wiped and its handle stale.

        Raises StateError for a handle that is not open.
        """
        with self._lock:
            self._way.wipe(self._slots.close(slot))

    def reset(self, slot: int) -> None:
        """Back to where the model starts.

        Raises StateError for a handle that is not open.
        """
        with self._lock:
            self._way.begin(self._slots.slot(slot))

    def fork(self, slot: int) -> int:
        """A second stream that continues from here on its own: its handle.

        Raises StateError for a handle that is not open.
        """
        with self._lock:
            source = self._slots.slot(slot)
            handle = self._opened()
            self._way.copy(source, self._slots.slot(handle))
        return handle

    def state(self, slot: int) -> State:
        """A snapshot, equal to that of a Stream of batch 1 that has seen the same.

        Raises StateError for a handle that is not open.
        """
        with self._lock:
            return self._way.state(self._slots.slot(slot))

    def restore(self, slot: int, state: State) -> None:
        """Continue from a snapshot of a slot, or of a Stream of batch 1.

        Raises StateError for one of another model or batch, or a handle that is not open; nothing has then changed.
        """
        with self._lock:
            self._way.restore(self._slots.slot(slot), state)

    def _opened(self) -> int:
        if self._slots.full:
            more = min(self.capacity, MOST_CAPACITY - self.capacity)
            if not more:
                raise StateError(f"pool: all of its {self.capacity} slots are open; close() some, or use another pool")
            self._slots.grow(more)
            self._way.grow(more)
        return self._slots.open()

    # --- running -----------------------------------------------------------------------------------------------------

    def step(self, slots: Sequence[int] | np.ndarray, X: Any, out: Any = None) -> Any:
        """One step of each of n different slots, in any order.

        ``X``: [n, …], a row for each slot in the order they are named: the model's step input without its batch axis;
        several inputs as {name: array}. ``out``: C-contiguous arrays of the results' shapes and dtypes to write to,
        which are then returned. Returns [n, …] in the same order; {name: array} where there are several outputs.

        Raises InputError for X that does not fit or a token id out of range, StateError for a handle that is stale or
        named twice. No slot has then made a step.
        """
        if self._single is not None and slots.__class__ is np.ndarray and slots.ndim == 1:
            shape, dtype = self._single
            target = np.empty((len(slots), *shape), dtype) if out is None else out
            with self._lock:
                if self._way.step_at_once(slots, X, target):
                    return target
        handles = self._slots.handles(slots)
        feeds = self._rows(X, len(handles))
        targets = None if out is None else self._targets(out, len(handles))
        with self._lock:
            results = self._way.step(handles, feeds, targets)
        if out is not None:
            return out
        return next(iter(results.values())) if len(results) == 1 else results

    def feed(self, slots: Sequence[int] | np.ndarray, chunks: Sequence[Any]) -> list[Any]:
        """Any number of steps of each of n different slots, each its own number of them.

        ``chunks``: for each slot what Stream.feed() takes, without the batch axis: T steps, 0 included, along the
        model's own time axis (a new leading one where it has none); several inputs as {name: array}.
        Returns for each slot the outputs of its steps along the same axis; {name: array} where there are several.

        Raises as step() does. No slot has then made a step.
        """
        handles = self._slots.handles(slots)
        if len(chunks) != len(handles):
            raise InputError(f"feed: expected a chunk for each of {len(handles)} slots, got {len(chunks)}")
        named = [step_feeds(f"feed, chunk {i}", self.inputs, chunk) for i, chunk in enumerate(chunks)]
        with self._lock:
            results = self._way.feed(handles, named)
        return [next(iter(each.values())) if len(each) == 1 else each for each in results]

    def _rows(self, X: Any, n: int) -> dict[str, np.ndarray]:
        """X by the input's name, in the inputs' dtypes and C-contiguous; zeros for what may be left out."""
        named, arrays, faults = step_feeds("step", self.inputs, X), {}, []
        for spec in self.inputs:
            try:
                arrays[spec.name] = rows_of(spec, named.get(spec.name), n)
            except InputError as fault:
                faults.append(str(fault))
        if faults:
            raise InputError(listed(f"step of {n} slots", faults))
        return arrays

    def _targets(self, out: Any, n: int) -> dict[str, np.ndarray]:
        """out= as {output: array}, checked before anything runs."""
        names = [spec.name for spec in self.outputs]
        named = out if isinstance(out, Mapping) else {names[0]: out} if len(names) == 1 else None
        if named is None:
            raise InputError(f"out: expected {{name: array}} for outputs {', '.join(names)}, got {described(out)}")
        faults = [f"'{name}' is not an output of a step" for name in named if name not in names]
        for spec in self.outputs:
            array, dtype, shape = named.get(spec.name), np.dtype(spec.dtype), (n, *(spec.shape or ()))
            if not isinstance(array, np.ndarray) or array.dtype != dtype or not fits(shape, array.shape):
                faults.append(f"'{spec.name}': expected {dtype}{shown(shape)}, got {described(array)}")
            elif not (array.flags.c_contiguous and array.flags.writeable):
                faults.append(f"'{spec.name}': the array is read-only, or not C-contiguous")
        if faults:
            raise InputError(listed("out", faults))
        return dict(named)
