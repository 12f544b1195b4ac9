"""States as bytes: one form of each, the same everywhere; whatever is damaged, foreign or made up is a StateError."""

from __future__ import annotations

import json
import random
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from functools import cache
from hashlib import blake2b
from typing import Any

import numpy as np
import pytest
from cases import LayerCase, NetCase, assert_same_bits, model_of, named

import lstm_engine as le

Damage = Callable[[random.Random, bytes], bytes]
STATEFUL = LayerCase(H=6, states="inputs")
TALKING = NetCase(head="dense", vocabulary=11, hidden=(5, 3), outputs=11)


def sealed(description: Any, values: bytes = b"", version: int = 2) -> bytes:
    """A state's bytes as the format is written down, with the right checksum whatever they say."""
    text = description if isinstance(description, bytes) else json.dumps(description, separators=(",", ":")).encode()
    prefix, size = b"LSTMSTAT" + struct.pack("<I", version), struct.pack("<Q", len(text))
    if version == 1:
        return prefix + struct.pack("<I", zlib.crc32(text + values)) + size + text + values
    return prefix + blake2b(prefix + size + text + values, digest_size=16).digest() + size + text + values


def opened(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The description and the values of a state of version 2."""
    (size,) = struct.unpack_from("<Q", data, 28)
    return json.loads(data[36 : 36 + size]), data[36 + size :]


def told(**changed: Any) -> dict[str, Any]:
    """A description of one row and no arrays, with changes."""
    return {"fingerprint": "f", "batch": 1, "arrays": [], "sampler": "", **changed}


@cache
def snapshots() -> tuple[bytes, ...]:
    """States of several shapes and types, one with a sampler's part, one of the earlier version."""
    stream = model_of(STATEFUL).stream(2)
    stream.feed(STATEFUL.feeds()["X"])
    talking = model_of(TALKING).stream()
    talking.step(3)
    types = {code: np.arange(4).astype(code).reshape(2, 2) for code in ("?", "i1", "u2", "i8", "f2", "f4", "f8")}
    several = le.State("0123abcd", 7, {**types, "none": np.zeros((0, 3), np.float32)}, bytes(range(40)))
    written = [state.to_bytes() for state in (stream.state, talking.state, several)]
    return (*written, sealed(*opened(written[0]), version=1))


def refused(data: bytes) -> bool:
    try:
        le.State.from_bytes(data)
    except le.StateError:
        return True
    return False


# --- the form ---------------------------------------------------------------------------------------------------------

KNOWN = le.State("abc", 2, {"h": np.array([[1.5, -2.0]], np.float32), "n": np.array([7, 256])}, b"\x01\xff")
WRITTEN = (
    "4c53544d53544154020000002ff23a59b0c5a17be45d08846649e8295d00000000000000"
    + b'{"fingerprint":"abc","batch":2,"arrays":[["h","<f4",[1,2]],["n","<i8",[2]]],"sampler":"01ff"}'.hex()
    + "0000c03f000000c007000000000000000001000000000000"
)


def test_the_form_is_fixed() -> None:
    assert KNOWN.to_bytes().hex() == WRITTEN
    assert le.State.from_bytes(bytes.fromhex(WRITTEN)) == KNOWN


def test_byte_order_and_layout_in_memory_leave_no_trace() -> None:
    other = {
        name: np.asfortranarray(array.astype(array.dtype.newbyteorder(">"))) for name, array in KNOWN.arrays.items()
    }
    strided = {name: np.repeat(array, 2, -1)[..., ::2] for name, array in KNOWN.arrays.items()}
    for arrays in (other, strided):
        same = le.State("abc", 2, arrays, KNOWN.sampler)
        assert same.to_bytes() == KNOWN.to_bytes()
        assert same == KNOWN
        assert hash(same) == hash(KNOWN)


@pytest.mark.parametrize("index", range(4))
def test_there_and_back(index: int) -> None:
    data = snapshots()[index]
    state = le.State.from_bytes(data)
    again = state.to_bytes()
    assert le.State.from_bytes(again) == state
    assert again == data or data[8] == 1  # an earlier version is written anew
    for array in state.arrays.values():
        assert array.dtype.isnative
        assert array.flags.writeable
        array[...] = 0  # its own: the bytes are nobody's
    assert le.State.from_bytes(data).to_bytes() == again


def test_the_earlier_version_is_read() -> None:
    description, values = opened(snapshots()[0])
    assert le.State.from_bytes(sealed(description, values, 1)) == le.State.from_bytes(snapshots()[0])
    assert refused(sealed(description, values, 1)[:-1])


def test_any_buffer_is_read_and_nothing_else() -> None:
    data = snapshots()[0]
    expected = le.State.from_bytes(data)
    for buffer in (bytearray(data), memoryview(data), np.frombuffer(data, np.uint8)):
        assert le.State.from_bytes(buffer) == expected  # type: ignore[arg-type]
    gone = memoryview(data)
    gone.release()
    for other in (None, 10**12, "LSTMSTAT", [1, 2], {}, expected, gone):
        with pytest.raises(le.StateError, match="expected the bytes that to_bytes"):
            le.State.from_bytes(other)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "state",
    [
        le.State("f", 1, {"z": np.zeros(2, complex)}),
        le.State("f", 1, {"z": np.zeros(2, "M8[s]")}),
        le.State("f", 0, {}),
        le.State("f", 2**63, {}),
        le.State("f", 1, {str(k): np.zeros(()) for k in range(10_001)}),
        le.State("f", 1, {}, bytes(3 << 20)),
    ],
    ids=["complex", "dates", "no rows", "rows", "arrays", "sampler"],
)
def test_what_could_not_be_read_is_not_written(state: le.State) -> None:
    with pytest.raises(le.StateError, match="cannot be written"):
        state.to_bytes()


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", range(4))
def test_every_bit_counts(index: int) -> None:
    data = snapshots()[index]
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        assert refused(bytes(damaged)), bit


@pytest.mark.parametrize("index", range(4))
def test_cut_anywhere_or_with_something_behind(index: int) -> None:
    data = snapshots()[index]
    for length in range(len(data)):
        assert refused(data[:length]), length
        assert refused(data[length + 1 :]), length
    for length in range(1, 70):
        assert refused(data + bytes(length))
        assert refused(data + data[:length])


def _places(draw: random.Random, data: bytes, count: int) -> list[int]:
    return sorted(draw.randrange(len(data) + 1) for _ in range(count))


def flipped(draw: random.Random, data: bytes) -> bytes:
    damaged = bytearray(data)
    for _ in range(draw.randint(2, 12)):
        damaged[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(damaged)


def overwritten(draw: random.Random, data: bytes) -> bytes:
    a, b = _places(draw, data, 2)
    return data[:a] + draw.choice([bytes(b - a), b"\xff" * (b - a), draw.randbytes(b - a)]) + data[b:]


def removed(draw: random.Random, data: bytes) -> bytes:
    a, b = _places(draw, data, 2)
    return data[:a] + data[b:]


def inserted(draw: random.Random, data: bytes) -> bytes:
    (a,) = _places(draw, data, 1)
    return data[:a] + draw.randbytes(draw.randint(1, 40)) + data[a:]


def exchanged(draw: random.Random, data: bytes) -> bytes:
    a, b, c = _places(draw, data, 3)
    return data[:a] + data[b:c] + data[a:b] + data[c:]


def repeated(draw: random.Random, data: bytes) -> bytes:
    a, b = _places(draw, data, 2)
    return data[:b] + data[a:b] + data[b:]


def turned(draw: random.Random, data: bytes) -> bytes:
    a, b = _places(draw, data, 2)
    return data[:a] + data[a:b][::-1] + data[b:]


def of_two(draw: random.Random, data: bytes) -> bytes:
    (a,), other = _places(draw, data, 1), draw.choice(snapshots())
    return data[:a] + other[a:]


def with_another_head(draw: random.Random, data: bytes) -> bytes:
    """One field of the header is any number."""
    at, size = draw.choice([(8, 4), (12, 4), (16, 8), (28, 8)])
    return (
        data[:at]
        + draw.choice([draw.randbytes(size), draw.randrange(300).to_bytes(size, "little")])
        + data[at + size :]
    )


def written_as_text(draw: random.Random, data: bytes) -> bytes:
    """What a program that takes bytes for text makes of them."""
    return draw.choice(
        [
            data.decode("latin-1").encode(),
            data.replace(b"\n", b"\r\n"),
            bytes(byte & 127 for byte in data),
            data.rstrip(b"\0"),
            data.split(b"\0")[0],
        ]
    )


DAMAGES: list[Damage] = [
    flipped, overwritten, removed, inserted, exchanged, repeated, turned, of_two, with_another_head, written_as_text,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__)
def test_damaged_in_a_thousand_ways_each(damage: Damage) -> None:
    draw, done = random.Random(damage.__name__), 0
    for _ in range(100_000):
        damaged = damage(draw, draw.choice(snapshots()))
        if damaged not in snapshots():
            assert refused(damaged), damaged
            done += 1
        if done == 1000:
            return
    raise AssertionError(f"only {done} were damaged at all")


# --- made up ----------------------------------------------------------------------------------------------------------

VALUE = ["h", "<f4", [1]]
LARGE = [["h", "<f4", [0, 2**40, 2**40]]]
MADE_UP: dict[str, tuple[Any, bytes]] = {
    "no JSON": (b"{", b""),
    "nothing": (b"", b""),
    "not UTF-8": (b'"\xff"', b""),
    "UTF-16": (json.dumps(told(), separators=(",", ":")).encode("utf-16"), b""),
    "nested deeply": (b"[" * 100_000 + b"]" * 100_000, b""),
    "a shape nested deeply": (json.dumps(told(arrays=["?"])).encode().replace(b'"?"', b"[" * 9000 + b"]" * 9000), b""),
    "a list": ([], b""),
    "a number": (3, b""),
    "null": (None, b""),
    "no arrays": ({"fingerprint": "f", "batch": 1, "sampler": ""}, b""),
    "one key more": (told(more=1), b""),
    "another order": (dict(reversed(told().items())), b""),
    "spaces": (json.dumps(told()).encode(), b""),
    "a key twice": (b'{"fingerprint":"g",' + json.dumps(told(), separators=(",", ":")).encode()[1:], b""),
    "a fingerprint that is none": (told(fingerprint=3), b""),
    "batch 0": (told(batch=0), b""),
    "batch true": (told(batch=True), b""),
    "batch 1.0": (told(batch=1.0), b""),
    "batch NaN": (told(batch=float("nan")), b""),
    "batch infinite": (told(batch=float("inf")), b""),
    "batch as text": (told(batch="1"), b""),
    "batch of 4,000 digits": (b'{"fingerprint":"f","batch":1' + b"0" * 4000 + b',"arrays":[],"sampler":""}', b""),
    "batch of 9,000 digits": (b'{"fingerprint":"f","batch":1' + b"0" * 9000 + b',"arrays":[],"sampler":""}', b""),
    "sampler no digits": (told(sampler="0g"), b""),
    "sampler in capitals": (told(sampler="AB"), b""),
    "sampler with spaces": (told(sampler="ab cd"), b""),
    "sampler a number": (told(sampler=1), b""),
    "arrays a number": (told(arrays=1), b""),
    "arrays by name": (told(arrays={"abc": 1}), b""),
    "an array of two": (told(arrays=[["h", "<f4"]]), b""),
    "an array that is text": (told(arrays=["h<f4"]), b""),
    "too many arrays": (told(arrays=[[str(k), "|b1", [0]] for k in range(10_001)]), b""),
    "the same name twice": (told(arrays=[VALUE, VALUE]), bytes(8)),
    "a name that is a number": (told(arrays=[[1, "<f4", [1]]]), bytes(4)),
    "a name that is a list": (told(arrays=[[[], "<f4", [1]]]), bytes(4)),
    "big-endian": (told(arrays=[["h", ">f4", [1]]]), bytes(4)),
    "native order": (told(arrays=[["h", "float32", [1]]]), bytes(4)),
    "objects": (told(arrays=[["h", "|O", [1]]]), bytes(8)),
    "text": (told(arrays=[["h", "|S4", [1]]]), bytes(4)),
    "a structure": (told(arrays=[["h", [["a", "<f4"]], [1]]]), bytes(4)),
    "arrays of arrays": (told(arrays=[["h", "(1000000000,)f4", [1]]]), bytes(4)),
    "a type of no size": (told(arrays=[["h", "|V0", [1]]]), b""),
    "a size below zero": (told(arrays=[["h", "<f4", [-1]]]), b""),
    "two sizes below zero": (told(arrays=[["h", "<f4", [-1, -1]]]), bytes(4)),
    "a size that is true": (told(arrays=[["h", "<f4", [True]]]), bytes(4)),
    "a size of 1.0": (told(arrays=[["h", "<f4", [1.0]]]), bytes(4)),
    "no shape": (told(arrays=[["h", "<f4", 1]]), bytes(4)),
    "a shape that is text": (told(arrays=[["h", "<f4", "1"]]), bytes(4)),
    "a thousand axes": (told(arrays=[["h", "<f4", [1] * 1000]]), bytes(4)),
    "sizes whose product wraps to 1": (told(arrays=[["h", "|u1", [2**32 + 1, 2**32 - 1]]]), bytes(1)),
    "sizes whose product wraps to 0": (told(arrays=[["h", "<f4", [2**32, 2**32]]]), b""),
    "one size beyond words": (told(arrays=[["h", "<f4", [10**30]]]), b""),
    "nothing, times more than memory": (told(arrays=LARGE), b""),
    "longer than the data": (told(arrays=[["h", "<f4", [2]]]), bytes(7)),
    "far longer than the data": (told(arrays=[["h", "<f4", [2**40]]]), bytes(8)),
    "data left over": (told(arrays=[VALUE]), bytes(5)),
    "a truth value of 2": (told(arrays=[["h", "|b1", [2]]]), b"\x01\x02"),
    "a description beyond bounds": (told(fingerprint="f" * (5 << 20)), b""),
}  # fmt: skip


@pytest.mark.parametrize("case", MADE_UP)
@pytest.mark.parametrize("version", [1, 2])
def test_made_up_with_a_right_checksum(case: str, version: int) -> None:
    with pytest.raises(le.StateError):
        le.State.from_bytes(sealed(*MADE_UP[case], version))


def test_nothing_but_what_is_there_is_allocated() -> None:
    """Neither for sizes nor for numbers of arrays that a file asks for."""
    many = {"arrays": [[f"a{k}", "|u1", [0, 2**40]] for k in range(10_000)]}
    cases = [sealed(*MADE_UP[case]) for case in MADE_UP] + [sealed(told(**many))]
    tracemalloc.start()
    try:
        for data in cases:
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            refused(data)
            assert tracemalloc.get_traced_memory()[1] - before < 40 * len(data) + (1 << 20)
    finally:
        tracemalloc.stop()
    assert len(le.State.from_bytes(cases[-1]).arrays) == 10_000


def altered(draw: random.Random, value: Any) -> Any:
    """A JSON value with something in it that is something else."""
    if isinstance(value, dict | list) and value and draw.random() < 0.9:
        changed = value.copy()
        key = draw.choice(list(value)) if isinstance(value, dict) else draw.randrange(len(value))
        fate = draw.random()
        if fate < 0.1:
            del changed[key]
        elif fate < 0.2 and isinstance(changed, list):
            changed.insert(key, draw.choice(changed))
        else:
            changed[key] = altered(draw, value[key])
        return changed
    others = [
        0,
        1,
        2,
        3,
        6,
        12,
        -1,
        2**31,
        2**63,
        1e9,
        True,
        None,
        "",
        "h0",
        "c0",
        "h1",
        "<f4",
        "<i4",
        "<f8",
        "|u1",
        [],
        {},
        [1],
    ]
    return draw.choice(others)


@pytest.mark.parametrize("case", [STATEFUL, TALKING], ids=str)
def test_what_is_made_up_well_is_a_state_or_an_error(case: LayerCase | NetCase) -> None:
    """Into a stream goes what fits it; the stream goes on, and remembers just that."""
    batch = 2 if case is STATEFUL else 1
    stream, draw = model_of(case).stream(batch), random.Random(1)
    step = case.feeds()["X"][0] if case is STATEFUL else 3
    stream.step(step)
    description, values = opened(stream.state.to_bytes())
    taken = read = 0
    for _ in range(3000):
        changed = description
        for _ in range(draw.randint(0, 2)):
            changed = altered(draw, changed)
        numbers = draw.randbytes(len(values)) if draw.random() < 0.5 else values
        data = sealed(changed, numbers)
        try:
            state = le.State.from_bytes(data)
        except le.StateError:
            continue
        read += 1
        assert state.to_bytes() == data
        before = stream.state
        try:
            stream.state = state
        except le.StateError:
            assert stream.state == before
            continue
        taken += 1
        assert {n: a.tobytes() for n, a in stream.state.arrays.items()} == {
            n: a.tobytes() for n, a in state.arrays.items()
        }
        stream.step(step)
    assert 300 < taken < read < 2700


# --- whose state ------------------------------------------------------------------------------------------------------


def test_a_state_fits_its_model_and_batch() -> None:
    state = model_of(STATEFUL).stream(2).state
    other = LayerCase(H=6, states="inputs", seed=1)
    with pytest.raises(le.StateError, match="belongs to model"):
        model_of(other).stream(2).state = state
    with pytest.raises(le.StateError, match=r"batch 2.*batch 1"):
        model_of(STATEFUL).stream(1).state = state
    with pytest.raises(le.StateError, match="expected a State, got bytes"):
        model_of(STATEFUL).stream(2).state = state.to_bytes()  # type: ignore[assignment]
    for arrays in ({}, {**state.arrays, "more": np.zeros(1)}, {n: a[:, :1] for n, a in state.arrays.items()}):
        with pytest.raises(le.StateError, match="expected"):
            model_of(STATEFUL).stream(2).state = le.State(state.fingerprint, 2, arrays)


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_a_state_fits_the_weights_it_came_from(precision: str, tmp_path: Any) -> None:
    """In another precision they are others; what is saved and loaded keeps them."""
    full, less = le.load(STATEFUL.model()), le.load(STATEFUL.model(), precision=precision)
    x = STATEFUL.feeds()["X"]
    stream = less.stream(2)
    stream.feed(x)
    state = le.State.from_bytes(stream.state.to_bytes())
    with pytest.raises(le.StateError, match="belongs to model"):
        full.stream(2).state = state
    with pytest.raises(le.StateError, match="belongs to model"):
        less.stream(2).state = full.stream(2).state
    path = tmp_path / "less.npz"
    less.save(path)
    again = le.load(path).stream(2)
    again.state = state
    assert_same_bits(named(again, again.feed(x)), named(stream, stream.feed(x)))
    assert again.state == stream.state
    widened = le.load(path, precision="float32").stream(2)  # the same weights, met by unrounded rows
    widened.state = state
    assert widened.state == state
