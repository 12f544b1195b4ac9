"""A look at a protobuf file before it is parsed.

Parsing turns two bytes into an object of a hundred: a file of 100 MB could ask for 10 GB. Counting the
fields first bounds that; it reads tags and lengths only and skips the weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from ..errors import ModelFormatError, UnsupportedModelError

#: Files below this size are parsed without being counted.
HARMLESS_SIZE: Final = 256 << 10
#: Fields of a model, at most; bounds the memory of its messages to some hundred megabytes.
MAX_FIELDS: Final = 1_500_000

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


@dataclass(slots=True)
class _Layout:
    """What to do with a message's fields: ``children`` are messages to look into, ``lists`` packed numbers to count.

    The second are given as bytes per number, at least.
    """

    children: dict[int, _Layout] = field(default_factory=dict)
    lists: dict[int, int] = field(default_factory=dict)
    flat: bool = True


def refuse_bombs(data: bytes, descriptor: Any, origin: str) -> None:
    """Raise if the message of type ``descriptor`` in ``data`` is cut short or has more than MAX_FIELDS fields."""
    if len(data) <= HARMLESS_SIZE:
        return
    count = 0
    waiting = [(0, len(data), _layout(descriptor, {}))]
    while waiting:
        start, end, layout = waiting.pop()
        count = _count_message(data, start, end, layout, waiting, count, origin)


def _count_message(
    data: bytes,
    position: int,
    end: int,
    layout: _Layout,
    waiting: list[tuple[int, int, _Layout]],
    count: int,
    origin: str,
) -> int:
    """``count`` and the fields of one message; the messages inside it are put into ``waiting``."""
    children, lists = layout.children, layout.lists
    try:
        while position < end:
            count += 1
            if count > MAX_FIELDS:
                raise UnsupportedModelError(f"{origin}: more than {MAX_FIELDS} fields, more than any model has")
            tag = data[position]
            position += 1
            if tag > 0x7F:
                tag, position = _varint(data, position - 1)
            kind = tag & 7
            if kind == _LENGTH:
                size = data[position]
                position += 1
                if size > 0x7F:
                    size, position = _varint(data, position - 1)
                number = tag >> 3
                if size and number in children:
                    waiting.append((position, min(position + size, end), children[number]))
                elif number in lists:
                    count += size // lists[number]
                position += size
            elif kind == _VARINT:
                _, position = _varint(data, position)
            elif kind in (_FIXED32, _FIXED64):
                position += 4 if kind == _FIXED32 else 8
            else:
                raise ModelFormatError(f"{origin}: is no ONNX model, or is damaged (byte {position})")
    except IndexError:
        position = end + 1
    if position != end:
        raise ModelFormatError(f"{origin}: is no ONNX model, or is cut short or damaged (byte {min(position, end)})")
    return count


def _varint(data: bytes, position: int) -> tuple[int, int]:
    byte = data[position]
    if byte < 0x80:
        return byte, position + 1
    value, shift = byte & 0x7F, 7
    while byte >= 0x80 and shift < 70:
        position += 1
        byte = data[position]
        value |= (byte & 0x7F) << shift
        shift += 7
    return value, position + 1


def _layout(descriptor: Any, known: dict[str, _Layout]) -> _Layout:
    """The layout of a message type, by protobuf's own description of it."""
    if descriptor.full_name in known:
        return known[descriptor.full_name]
    layout = known[descriptor.full_name] = _Layout(flat=False)  # not flat while a type that holds itself is looked at
    flat = True
    for entry in descriptor.fields:
        repeated = _is_repeated(entry)
        flat = flat and not repeated and entry.message_type is None
        if entry.message_type is not None:
            child = _layout(entry.message_type, known)
            if not child.flat:
                layout.children[entry.number] = child
        elif repeated and not entry.name.endswith("_data") and entry.cpp_type != entry.CPPTYPE_STRING:
            layout.lists[entry.number] = 4 if entry.cpp_type == entry.CPPTYPE_FLOAT else 1
    layout.flat = flat
    return layout


def _is_repeated(entry: Any) -> bool:
    return bool(entry.is_repeated if hasattr(entry, "is_repeated") else entry.label == entry.LABEL_REPEATED)
