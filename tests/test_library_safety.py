"""What a library touches, and what it takes: C programs with guarded memory and sanitizers, states of any bytes."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from cases import LayerCase, NetCase, assert_same_bits
from libraries import Script, built, drawn, emitted_here, found, played, stacked, streamed, written
from test_states import Front, front_model

import lstm_engine as le
from lstm_engine.library.interface import Result
from lstm_engine.state import DIGEST_BYTES, DIGEST_PLACE

ROOT: Final = Path(__file__).resolve().parent.parent
CLIPPER: Final = ROOT / "models" / "clipper" / "clipper.onnx"
compiled = pytest.mark.skipif(not found("gcc"), reason="no C compiler")
SANITIZERS: Final = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
Options = Mapping[str, Any]


def model_of(source: Any, precision: str | None = None) -> le.Model:
    return front_model(source) if isinstance(source, Front) else le.load(source.model(), precision=precision)


#: Sizes around vectors, every kind of layer, several rows, tokens, weights of each precision, windows that look back.
GUARDED: Final[list[tuple[Any, str | None, Options]]] = [
    (LayerCase(I=5, H=17), None, {"batch": 3, "block": 8}),
    (LayerCase(I=3, H=7, peephole=True, clip=0.4), "int8", {}),
    (LayerCase(I=33, H=20), "bfloat16", {"block": 4}),
    (LayerCase(op="GRU", H=5, linear_before_reset=1), None, {"batch": 2}),
    (LayerCase(op="RNN", H=19, dtype="float64"), None, {}),
    (NetCase(hidden=(9, 5), head="dense_softmax", outputs=3), "int8", {"batch": 2}),
    (NetCase(vocabulary=11, hidden=(6,), head="dense_log_softmax", outputs=11), None, {"apart": True}),
    (NetCase(hidden=(8, 5), states="inputs", head="gates"), None, {}),
    (Front(kernel=4, dilation=2), None, {}),
]


def guarded_script(model: le.Model, made: Any, batch: int) -> tuple[Script, list[Any]]:
    """Steps, chunks and states, and what the engine gives for them."""
    script, stream, draw = Script(made.description), model.stream(batch), np.random.default_rng(1)
    ends, expected = made.description["outputs"], []
    for count in (0, 1, 3, 9):
        steps = drawn(made.description["inputs"], draw, count or 1)
        if count:
            script.feed(steps)
        else:
            script.step(steps[0])
        results = [streamed(stream, step, ends) for step in steps]
        expected.append(stacked(results, ends) if count else results[0])
        script.save()
        expected.append(stream.state.to_bytes())
        script.load(expected[-1])
        expected.append(None)
    return script, expected


def assert_answers(answers: list[tuple[int, Any]], expected: list[Any]) -> None:
    for (code, got), wanted in zip(answers, expected, strict=True):
        assert code == Result.OK
        if isinstance(wanted, bytes):
            assert got == wanted
        elif wanted is not None:
            assert_same_bits(got, wanted)


@compiled
@pytest.mark.parametrize(
    ("source", "precision", "options"), GUARDED, ids=lambda x: str(x) if not isinstance(x, dict) else ""
)
def test_nothing_else_is_touched(source: Any, precision: str | None, options: Options, tmp_path: Path) -> None:
    """Instance, arrays, states and weights of exactly the size the header says, with pages around them that no access
    survives; the sanitizers watch the caller."""
    model = model_of(source, precision)
    made = emitted_here(model, **options)
    written(made, tmp_path)
    script, expected = guarded_script(model, made, options.get("batch", 1))
    for extra in (("-DGUARDED=1",), ("-DGUARDED=-1",)):
        assert_answers(played(built(tmp_path, ["gcc"], *extra), script), expected)


@compiled
def test_under_the_sanitizers(tmp_path: Path) -> None:
    model = le.load(CLIPPER)
    made = emitted_here(model)
    written(made, tmp_path)
    script, expected = guarded_script(model, made, 1)
    assert_answers(played(built(tmp_path, ["gcc"], *SANITIZERS), script), expected)


# --- states of any bytes ------------------------------------------------------------------------------------------------


def resealed(content: bytes) -> bytes:
    """The same bytes with the digest that belongs to them."""
    after = DIGEST_PLACE + DIGEST_BYTES
    digest = blake2b(content[:DIGEST_PLACE] + content[after:], digest_size=DIGEST_BYTES).digest()
    return content[:DIGEST_PLACE] + digest + content[after:]


def judged(content: bytes, own: bytes, value_bytes: int) -> Result:
    """What loading bytes is to return, ``own``: a state of the instance's; the definition, in words of its own."""
    if len(content) != len(own):
        return Result.OTHER_STATE
    if resealed(content) != content:
        return Result.DAMAGED_STATE
    values, after = len(own) - value_bytes, DIGEST_PLACE + DIGEST_BYTES
    same = content[:DIGEST_PLACE] == own[:DIGEST_PLACE] and content[after:values] == own[after:values]
    return Result.OK if same else Result.OTHER_STATE


def damaged(content: bytes, draw: np.random.Generator, value_bytes: int) -> bytes:
    """Some other bytes: flipped bits, cut or longer, and such that have the right digest all the same."""
    bytes_ = bytearray(content)
    kind = int(draw.integers(7))
    if kind == 0:
        return content[: int(draw.integers(len(content)))]
    if kind == 1:
        return content + draw.bytes(int(draw.integers(1, 200)))
    if kind == 2:
        return draw.bytes(len(content))
    if kind == 3:  # other numbers, of which some are none
        bytes_[-value_bytes:] = draw.bytes(value_bytes)
        return resealed(bytes(bytes_))
    for _ in range(int(draw.integers(1, 9))):
        bytes_[int(draw.integers(len(bytes_)))] ^= 1 << int(draw.integers(8))
    return resealed(bytes(bytes_)) if kind > 4 else bytes(bytes_)


def fuzz(model: le.Model, count: int, folder: Path, *options: str) -> None:
    """Damaged states, one after the other: the right code, an instance that is as it was or has just that state, and
    steps that go on from it with the engine's bits."""
    made = emitted_here(model)
    written(made, folder)
    stream, draw = model.stream(), np.random.default_rng(7)
    script, ends = Script(made.description), made.description["outputs"]
    value_bytes = sum(array.nbytes for array in stream.state.arrays.values())
    expected: list[tuple[Result, Any]] = []
    own = stream.state.to_bytes()
    for turn in range(count):
        content = damaged(own, draw, value_bytes)
        code = judged(content, own, value_bytes)
        script.load(content)
        expected.append((code, None))
        if code == Result.OK:
            stream.state = le.State.from_bytes(content)
            own = content
        else:
            with pytest.raises(le.StateError):
                stream.state = le.State.from_bytes(content)
        script.save()
        expected.append((Result.OK, own))
        if turn % 16 == 0:
            (step,) = drawn(made.description["inputs"], draw, 1)
            script.step(step)
            expected.append((Result.OK, streamed(stream, step, ends)))
            script.reset()
            stream.reset()
            expected.append((Result.OK, None))
            own = stream.state.to_bytes()
    answers = played(built(folder, ["gcc"], *options), script)
    assert {code for code, _ in expected} == {Result.OK, Result.OTHER_STATE, Result.DAMAGED_STATE}
    for (code, got), (wanted_code, wanted) in zip(answers, expected, strict=True):
        assert code == wanted_code
        if isinstance(wanted, bytes):
            assert got == wanted
        elif wanted is not None:
            np.testing.assert_equal(got, wanted)


FUZZED: Final = [NetCase(hidden=(5, 3), head="dense"), LayerCase(op="GRU", H=3), Front()]


@compiled
@pytest.mark.parametrize("source", FUZZED, ids=str)
def test_states_of_any_bytes(source: Any, tmp_path: Path) -> None:
    fuzz(model_of(source), 1500, tmp_path, "-DGUARDED=1")


@compiled
def test_states_of_any_bytes_under_the_sanitizers(tmp_path: Path) -> None:
    fuzz(le.load(CLIPPER), 500, tmp_path, *SANITIZERS)


@compiled
@pytest.mark.nightly
@pytest.mark.parametrize("source", FUZZED, ids=str)
def test_a_great_many_states(source: Any, tmp_path: Path) -> None:
    fuzz(model_of(source), 100_000, tmp_path, "-DGUARDED=1")
