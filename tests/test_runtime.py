"""Exported libraries from Python without the engine: the same results as its streams, the same errors, nothing heavy."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import CHAR
from cases import FEW, Case, NetCase, assert_same_bits, cut, model_of, steps_of
from processes import child

import lstm_engine as le
from lstm_engine import runtime
from lstm_engine.exported import FUNCTIONS, MEANINGS, VERSION, Result
from lstm_engine.library.emitting import emitted
from lstm_engine.library.layout import Layout
from lstm_engine.library.linking import linked
from lstm_engine.library.maker import lowered_for
from lstm_engine.library.order import Order
from lstm_engine.machine import target

CLIPPER = Path(__file__).resolve().parents[1] / "models" / "clipper" / "clipper.onnx"
COMPILER = next((found for found in map(shutil.which, ("cc", "gcc", "clang")) if found), None)
pytestmark = pytest.mark.skipif(
    COMPILER is None or not sys.platform.startswith("linux"), reason="no linker of shared libraries"
)


def written(model: le.Model, folder: Path, name: str = "net", **more: Any) -> Path:
    """The shared library of a model, made in this process."""
    order = Order(
        **{
            "archive": "", "precision": model.precision, "declared": model.declared, "machine": target(), "name": name,
            "batch": 1, "block": 1, "shapes": {}, "apart": False, "fingerprint": model.fingerprint, "assembly": False,
            **more,
        }
    )  # fmt: skip
    made = emitted(Layout(lowered_for(model.graph, order), model.fingerprint, order.apart), order.machine, name)
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.o").write_bytes(made.object)
    if order.apart:
        (folder / f"{name}.weights").write_bytes(made.weights)
    libraries, _ = linked(folder, name, folder / f"{name}.o", order.machine)
    return libraries[0]


@pytest.fixture(scope="module")
def clipper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(le.load(CLIPPER), tmp_path_factory.mktemp("clipper"), "clipper")


@pytest.fixture(scope="module")
def char(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(le.load(CHAR, precision="int8"), tmp_path_factory.mktemp("char"), "letters", apart=True)


def signal(steps: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(steps, 1, 1)).astype(np.float32)


# --- results ----------------------------------------------------------------------------------------------------------

STREAMED: list[Case] = [
    *(case for case in FEW if case.streams),
    NetCase(hidden=(8,), head="last_y_h", B=1),
    NetCase(vocabulary=7, batch_first=True, token_dtype="int32", head="dense", B=2),
    NetCase(hidden=(8,), head="dense", precision="int8", B=1),
]


@pytest.mark.parametrize("case", STREAMED, ids=str)
def test_a_library_gives_what_a_stream_gives(case: Case, tmp_path: Path) -> None:
    model, feeds = model_of(case), case.feeds(steps=9)
    library = runtime.load(written(model, tmp_path, batch=case.B))
    ours, theirs = library.stream(), model.stream(case.B)
    assert ours.inputs == theirs.inputs
    assert ours.outputs == theirs.outputs
    assert (ours.batch, ours.time_axes) == (theirs.batch, theirs.time_axes)
    assert library.fingerprint == model.fingerprint
    for step in steps_of(case, cut(case, feeds, 0, 3)):
        assert_same_bits(ours.step(step), theirs.step(step))
    for first, last in ((3, 4), (4, 9), (9, 9)):
        assert_same_bits(ours.feed(cut(case, feeds, first, last)), theirs.feed(cut(case, feeds, first, last)))
    assert ours.state == theirs.state


def test_a_step_of_whatever_numbers(clipper: Path) -> None:
    for x in (
        0.3, 1, np.float64(0.3), np.float32([0.3]), [0.3], [[0.3]], np.array([[0.3]], ">f4"), np.array([[1]], np.int8),
        {"x": np.float16([0.3])}, np.full((4, 2), 0.3, np.float32)[::4, :1], 1e300,
    ):  # fmt: skip
        assert_same_bits(runtime.load(clipper).stream().step(x), le.load(CLIPPER).stream().step(x), repr(x))


def test_results_go_where_they_are_wanted(clipper: Path) -> None:
    ours, theirs = runtime.load(clipper).stream(), le.load(CLIPPER).stream()
    for x, out in zip(
        [*signal(3), *signal(2).reshape(2, 1)],
        [np.empty((1, 1), np.float32), np.empty((2, 2), np.float32)[1:, 1:], None, np.empty(1, np.float32), None],
        strict=True,
    ):
        expected = theirs.step(x)
        got = ours.step(x, out=out)
        assert out is None or got is out
        assert_same_bits(got, expected)
    kept = ours.step(signal(1)[0])
    before = kept.copy()
    ours.step(signal(1, 1)[0])
    assert_same_bits(kept, before)  # results are the caller's own


def test_weights_in_a_file_of_their_own(char: Path) -> None:
    library = runtime.load(char.parent)
    ours, twin, theirs = library.stream(), library.stream(), le.load(CHAR, precision="int8").stream()
    for token in (3, np.int64(5), 7):
        assert_same_bits(ours.step(token), theirs.step(token))
    assert_same_bits(ours.feed(np.arange(1, 6)), theirs.feed(np.arange(1, 6)))
    assert twin.state != ours.state
    moved = shutil.move(char.parent / "letters.weights", char.parent / "elsewhere")
    try:
        with pytest.raises(FileNotFoundError, match="weights="):
            runtime.load(char)
        again = runtime.load(char, weights=moved).stream()
        again.state = ours.state
        assert_same_bits(again.step(2), theirs.step(2))
    finally:
        shutil.move(moved, char.parent / "letters.weights")


def test_whole_frames(tmp_path: Path) -> None:
    case = NetCase(bidirectional=True, head="dense", B=1)
    model, feeds = model_of(case), case.feeds()
    library = runtime.load(written(model, tmp_path, shapes={"x": list(feeds["x"].shape)}))
    assert library.description["framed"]
    expected = next(iter(model.run(feeds).values()))
    assert_same_bits(library.stream().step(feeds["x"]), expected)
    assert_same_bits(library.stream().feed(np.stack([feeds["x"]] * 2)), np.stack([expected] * 2))


# --- states -----------------------------------------------------------------------------------------------------------


def test_states_go_to_and_fro(clipper: Path) -> None:
    ours, theirs = runtime.load(clipper).stream(), le.load(CLIPPER).stream()
    theirs.feed(signal(20))
    ours.state = le.State.from_bytes(theirs.state.to_bytes())
    assert ours.state.to_bytes() == theirs.state.to_bytes()
    twin = ours.fork()
    assert_same_bits(ours.feed(signal(5, 1)), theirs.feed(signal(5, 1)))
    theirs.state = twin.state
    assert_same_bits(twin.step(0.2), theirs.step(0.2))
    ours.reset()
    assert ours.state == runtime.load(clipper).stream().state
    mixed = le.State(twin.state.fingerprint, 1, dict(reversed(twin.state.arrays.items())), b"a sampler's")
    ours.state = mixed
    assert ours.state == twin.state


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: le.State("0" * 16, 1, s.arrays), "it belongs to model 000000000000"),
        (lambda s: le.State(s.fingerprint, 2, s.arrays), "batch 2"),
        (lambda s: le.State(s.fingerprint, 1, {}), "2 faults"),
        (lambda s: s.to_bytes(), "expected a State, got bytes"),
    ],
)
def test_another_state_is_refused(clipper: Path, change: Callable[[le.State], Any], said: str) -> None:
    stream = runtime.load(clipper).stream()
    stream.feed(signal(3))
    before = stream.state
    with pytest.raises(le.StateError, match=said):
        stream.state = change(before)
    assert stream.state == before


def test_one_caller_at_a_time(char: Path) -> None:
    stream = runtime.load(char).stream()
    acts: list[Callable[[], Any]] = [
        lambda: stream.step(1), lambda: stream.step(np.array([1])), lambda: stream.feed([1]), stream.reset, stream.fork,
        lambda: stream.state, lambda: setattr(stream, "state", None),
    ]  # fmt: skip
    with stream._alone():
        for act in acts:
            with pytest.raises(le.StateError, match="in use by another caller"):
                act()
    stream.step(1)


def test_threads_that_share_a_stream_step_one_after_the_other(char: Path) -> None:
    stream, taken = runtime.load(char).stream(), []

    def hammer() -> None:
        for _ in range(2000):
            try:
                stream.step(np.array([7]))
            except le.StateError:
                continue
            taken.append(1)

    threads = [threading.Thread(target=hammer) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone = runtime.load(char).stream()
    alone.feed(np.full(len(taken), 7))
    assert stream.state == alone.state


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda s: s.step(60_000), "out of range"),
        (lambda s: s.step(-60_000), "out of range"),
        (lambda s: s.step(1.5), "expected integers, got float64"),
        (lambda s: s.step(2**70), "feed real numbers|does not fit int64"),
        (lambda s: s.step(np.uint64(2**63)), "do(es)? not fit int64"),
        (lambda s: s.step([1, 2]), "expected shape"),
        (lambda s: s.step({"nothing": 1}), "'nothing' is not an input"),
        (lambda s: s.step(1, out=np.empty(3, np.float32)), "out: .*expected float32"),
        (lambda s: s.step(np.array([1]), out=np.empty((1, 65), np.float64)), "out: .*expected float32"),
        (lambda s: s.feed([1, 2, 60_000]), "out of range"),
        (lambda s: s.feed([[[1]]]), "expected shape"),
        (lambda s: s.feed([0.5]), "expected integers"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_done(char: Path, act: Callable[[Any], Any], said: str) -> None:
    for stream in (runtime.load(char).stream(), le.load(CHAR, precision="int8").stream()):
        stream.feed([1, 2, 3])
        before = stream.state
        with pytest.raises(le.InputError, match=said):
            act(stream)
        assert stream.state == before


def test_a_read_only_result_is_refused_and_nothing_done(clipper: Path) -> None:
    stream, out = runtime.load(clipper).stream(), np.empty(1, np.float32)
    out.flags.writeable = False
    before = stream.state
    with pytest.raises(le.InputError, match="read-only"):
        stream.step(np.float32([0.1]), out=out)
    assert stream.state == before


def compiled(folder: Path, name: str, functions: dict[str, str]) -> Path:
    """A shared library of functions that return these expressions of C's."""
    source, library = folder / "made.c", folder / f"lib{name}.so"
    texts = [
        f"{'const char *' if f == 'describe' else 'int '}{name}_{f}(void) {{ return {e}; }}"
        for f, e in functions.items()
    ]
    source.write_text("\n".join(texts), encoding="utf-8")
    assert COMPILER is not None
    assert os.spawnl(os.P_WAIT, COMPILER, "cc", "-shared", "-fPIC", "-o", str(library), str(source)) == 0
    return library


def test_what_is_no_library_is_refused(clipper: Path, tmp_path: Path) -> None:
    def refused(kind: type[Exception], said: str, *args: Any, **more: Any) -> None:
        with pytest.raises(kind, match=said):
            runtime.load(*args, **more)

    text = tmp_path / "libnotes.so"
    text.write_text("not machine code", encoding="utf-8")
    refused(le.ModelFormatError, "got another file", text)
    refused(le.InputError, "one shared library .* got none", CLIPPER.parent)
    refused(FileNotFoundError, "nowhere", tmp_path / "nowhere")
    refused(le.TargetError, "export it for this machine", clipper.with_name("clipper.o"))
    foreign = bytearray(clipper.read_bytes())
    foreign[18] ^= 0xFF  # ELF's machine
    text.write_bytes(foreign)
    refused(le.TargetError, "export it for this machine", text)
    renamed = shutil.copy(clipper, tmp_path / "libother.so")
    refused(le.ModelFormatError, "exported as 'other'.*name=", renamed)
    refused(le.InputError, r"got libnotes\.so, libother\.so", tmp_path)
    assert runtime.load(renamed, name="clipper").stream().step(0.0).shape == (1,)


def test_another_interface_is_refused(clipper: Path, tmp_path: Path) -> None:
    described = runtime.load(clipper).description
    every = dict.fromkeys(FUNCTIONS, "0")
    for name, said, text in (
        (
            "later",
            f"expected interface {VERSION}, got 99; export the model again",
            json.dumps({**described, "interface": 99}),
        ),
        ("mute", "expected a description", "no JSON"),
    ):
        library = compiled(tmp_path, name, {**every, "describe": json.dumps(text)})
        with pytest.raises(le.ModelFormatError, match=said):
            runtime.load(library)
    needs = {**described["target"], "needs": ["avx2", "avx4096f"]}
    library = compiled(tmp_path, "wide", {**every, "describe": json.dumps(json.dumps({**described, "target": needs}))})
    with pytest.raises(le.TargetError, match=r"lacks (avx2, )?avx4096f; export it on this machine"):
        runtime.load(library)
    library = compiled(tmp_path, "sick", {**every, "init": "77", "describe": json.dumps(json.dumps(described))})
    with pytest.raises(le.ModelFormatError, match="returned 77"):
        runtime.load(library)


def test_other_weights_are_refused(char: Path, tmp_path: Path) -> None:
    content = bytearray((char.parent / "letters.weights").read_bytes())
    (tmp_path / "short").write_bytes(content[:-1])
    content[8] ^= 1
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(le.ModelFormatError, match=f"expected the {len(content)} bytes"):
        runtime.load(char, weights=tmp_path / "short")
    with pytest.raises(le.ModelFormatError, match=r"other: .*another model"):
        runtime.load(char, weights=tmp_path / "other")


def test_codes_are_as_the_headers_have_them() -> None:
    assert set(MEANINGS) == set(Result)
    for code, kind in ((Result.BAD_TOKEN, le.InputError), (Result.OTHER_STATE, le.StateError)):
        assert type(runtime._error(code, "step")) is kind


# --- what it costs ----------------------------------------------------------------------------------------------------


def test_nothing_heavy_is_imported(clipper: Path, fresh_environment: dict[str, str]) -> None:
    code = f"""
import sys
import lstm_engine.runtime
library = lstm_engine.runtime.load({str(clipper)!r})
stream = library.stream()
stream.step(0.1)
stream.state = stream.state
stream.fork().feed([[[0.1]]])
heavy = {{"numba", "llvmlite", "onnx", "typer", "rich", "asyncio", "multiprocessing"}}
print(sorted({{name.split(".")[0] for name in sys.modules}} & heavy))
print(sorted(name for name in sys.modules if name.startswith("lstm_engine.")))
"""
    heavy, own = child(code, fresh_environment, "-W", "error").splitlines()
    assert heavy == "[]"
    rooms = ("errors", "exported", "feeds", "graph", "runtime", "state")
    assert own == str([f"lstm_engine.{room}" for room in rooms])


def test_steps_leave_no_memory_behind(clipper: Path) -> None:
    import tracemalloc

    stream, x, out = runtime.load(clipper).stream(), np.float32([0.1]), np.empty(1, np.float32)
    for _ in range(3):
        stream.step(x, out=out)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(1000):
        stream.step(x, out=out)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 1000


def test_weights_are_shared_by_streams(char: Path) -> None:
    library = runtime.load(char)
    assert library.description["weights"]["bytes"] > 10 * library.description["instance_bytes"]
    for stream in (library.stream(), library.stream()):
        assert stream._instance.nbytes == library.description["instance_bytes"]
    assert not library._weight_array.flags.writeable
