"""Sequences of tensors whose members are known by name: what cuts, picks and joins them becomes Split and Concat."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from ..errors import ModelFormatError
from ..graph import Node
from ..reference import honoured
from ..reference.control import number
from ..reference.shaping import part_sizes, sizes
from .control import Inlined
from .shape_rules import Known, axis_of


class Sequences:
    """The sequences of a graph whose members are known."""

    def __init__(self, own: Callable[[str], str]) -> None:
        """``own``: gives a new name out."""
        self.members: dict[str, tuple[str, ...]] = {}
        self.own = own

    def rewritten(self, node: Node, known: Mapping[str, Known]) -> Inlined | None:
        """What stands in for a sequence operator; None where data decides."""
        rule = _RULES.get(node.op)
        try:
            return None if rule is None else rule(self, node, known)
        except KeyError:  # a sequence, tensor or position that is not known
            return None

    def constructed(self, name: str) -> Node:
        """A node that makes a known sequence for operators that take it as it is."""
        members = self.members[name]
        return Node("SequenceConstruct" if members else "SequenceEmpty", members, (name,))


def _position(node: Node, index: int, known: Mapping[str, Known], count: int, end: int) -> int:
    value = known[node.input(index)].value
    if value is None:
        raise KeyError(node.input(index))
    place = number(node, "position", value)
    if not -count <= place < end:
        raise ModelFormatError(f"{node.label}: position {place} is outside a sequence of {count} tensors")
    return place + count if place < 0 else place


def _empty(held: Sequences, node: Node, known: Mapping[str, Known]) -> Inlined:
    held.members[node.output(0)] = ()
    return Inlined()


def _construct(held: Sequences, node: Node, known: Mapping[str, Known]) -> Inlined:
    held.members[node.output(0)] = node.inputs
    return Inlined()


def _insert(held: Sequences, node: Node, known: Mapping[str, Known]) -> Inlined:
    before = held.members[node.input(0)]
    count = len(before)
    place = _position(node, 2, known, count, count + 1) if node.input(2) else count
    held.members[node.output(0)] = (*before[:place], node.input(1), *before[place:])
    return Inlined()


def _erase(held: Sequences, node: Node, known: Mapping[str, Known]) -> Inlined:
    before = held.members[node.input(0)]
    place = _position(node, 1, known, len(before), len(before)) if node.input(1) else len(before) - 1
    if place < 0:
        raise ModelFormatError(f"{node.label}: an empty sequence has nothing to erase")
    held.members[node.output(0)] = (*before[:place], *before[place + 1 :])
    return Inlined()


def _at(held: Sequences, node: Node, known: Mapping[str, Known]) -> Inlined:
    members = held.members[node.input(0)]
    return Inlined(aliases={node.output(0): members[_position(node, 1, known, len(members), len(members))]})


def _length(held: Sequences, node: Node, known: Mapping[str, Known]) -> Inlined:
    return Inlined(constants={node.output(0): np.array(len(held.members[node.input(0)]), np.int64)})


def _split(held: Sequences, node: Node, known: Mapping[str, Known]) -> Inlined:
    settings = honoured(node, defaults=True)
    shape = known[node.input(0)].shape
    axis = axis_of(settings["axis"], len(shape))
    single = not node.input(1)
    parts = (1,) * shape[axis] if single else _parts(node, known, shape[axis])
    names = tuple(held.own(f"{node.output(0)}.{index}") for index in range(len(parts)))
    held.members[node.output(0)] = names
    if not parts:
        return Inlined()
    given, along = held.own(f"{node.output(0)}.sizes"), held.own(f"{node.output(0)}.axis")
    constants = {given: np.array(parts, np.int64), along: np.array([axis], np.int64)}
    if not single or settings["keepdims"]:
        return Inlined([Node("Split", (node.input(0), given), names, {"axis": axis}, node.name)], constants)
    wide = tuple(held.own(f"{name}.wide") for name in names)
    cut = Node("Split", (node.input(0), given), wide, {"axis": axis}, node.name)
    squeezed = [Node("Squeeze", (source, along), (name,)) for source, name in zip(wide, names, strict=True)]
    return Inlined([cut, *squeezed], constants)


def _parts(node: Node, known: Mapping[str, Known], length: int) -> tuple[int, ...]:
    value = known[node.input(1)].value
    if value is None:
        raise KeyError(node.input(1))
    if value.ndim:
        return part_sizes(length, sizes(value), None)
    size = int(value)
    if size < 1:
        raise ModelFormatError(f"{node.label}: split must be positive, got {size}")
    return tuple(min(size, length - first) for first in range(0, length, size))


def _concat(held: Sequences, node: Node, known: Mapping[str, Known]) -> Inlined:
    members = held.members[node.input(0)]
    settings = honoured(node, defaults=True)
    if not members:
        raise ModelFormatError(f"{node.label}: an empty sequence has nothing to concatenate")
    axis = settings["axis"]
    if not settings["new_axis"]:
        return Inlined([Node("Concat", members, node.outputs, {"axis": axis}, node.name)])
    axis = axis_of(axis, len(known[members[0]].shape) + 1)
    along = held.own(f"{node.output(0)}.axis")
    wide = tuple(held.own(f"{node.output(0)}.{index}") for index in range(len(members)))
    spread = [Node("Unsqueeze", (source, along), (name,)) for source, name in zip(members, wide, strict=True)]
    joined = Node("Concat", wide, node.outputs, {"axis": axis}, node.name)
    return Inlined([*spread, joined], {along: np.array([axis], np.int64)})


_RULES: Final[Mapping[str, Callable[[Sequences, Node, Mapping[str, Known]], Inlined]]] = {
    "SequenceEmpty": _empty,
    "SequenceConstruct": _construct,
    "SequenceInsert": _insert,
    "SequenceErase": _erase,
    "SequenceAt": _at,
    "SequenceLength": _length,
    "SplitToSequence": _split,
    "ConcatFromSequence": _concat,
}
