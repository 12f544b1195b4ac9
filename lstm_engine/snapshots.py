"""Between a State, arrays in the model's own shapes, and memory that begins as a program's arena does."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .engine import slot_rows
from .passes.states import CellState
from .program.program import StateSlot
from .program.streaming import Streamable
from .state import State, check_alike

Cells = list[tuple[StateSlot, np.ndarray]]


def taken(fingerprint: str, lowered: Streamable, memory: np.ndarray) -> State:
    """A snapshot of the state in ``memory``."""
    return State(fingerprint, lowered.batch, _arrays(lowered, memory))


def restore(snapshot: State, fingerprint: str, lowered: Streamable, memory: np.ndarray) -> None:
    """Put a snapshot into ``memory``.

    Raises StateError for one of another model, batch or shape; the memory is then as it was.
    """
    check_alike(snapshot, State(fingerprint, lowered.batch, _arrays(lowered, memory)))
    for name, parts in cells(lowered).items():
        values = np.ascontiguousarray(snapshot.arrays[name])
        for slot, elements in parts:
            slot_rows(memory, slot)[...] = values.reshape(-1)[elements]


def _arrays(lowered: Streamable, memory: np.ndarray) -> dict[str, np.ndarray]:
    arrays = {}
    for name, parts in cells(lowered).items():
        size = sum(elements.size for _, elements in parts)
        flat = np.empty(size, parts[0][0].dtype)
        for slot, elements in parts:
            flat[elements] = slot_rows(memory, slot)
        shape = lowered.state_shapes.get(name) or (len(parts), parts[0][0].rows, parts[0][0].width)
        arrays[name] = flat.reshape(shape)
    return arrays


def cells(lowered: Streamable) -> dict[str, Cells]:
    """Per state array of the model: its slots, and which elements of the flattened array each row of one is."""
    slots = {slot.key: slot for slot in lowered.program.slots}
    found: dict[str, Cells] = {}
    for pair in lowered.pairs:
        found[pair.input] = [entry for cell in pair.cells for entry in _slot_elements(cell, slots)]
    for key, slot in slots.items():
        if slot.elements is not None:
            found[key[0]] = [(slot, slot.elements)]
    if lowered.frames is not None:
        return found  # the recurrent nodes' own states live within a call
    claimed = {slot.key for parts in found.values() for slot, _ in parts}
    for key, slot in slots.items():
        if key not in claimed:
            name = f"{key[0]}.{key[1]}"
            first = sum(e.size for _, e in found.get(name, ()))
            elements = first + np.arange(slot.rows * slot.width).reshape(slot.rows, slot.width)
            found.setdefault(name, []).append((slot, elements))
    return found


def _slot_elements(cell: CellState, slots: Mapping[tuple[str, str, int], StateSlot]) -> Cells:
    """A recurrent node's state [D,B,H] by direction."""
    return [(slots[cell.node, cell.slot, d], elements) for d, elements in enumerate(cell.elements)]
