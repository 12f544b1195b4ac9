"""A model as a C library: the engine's bits, its states, its faults, the files that export() writes."""

from __future__ import annotations

import contextlib
import json
import re
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import builders
import numpy as np
import onnx
import pytest
from cases import LAYERS, NETS, Case, LayerCase, NetCase, assert_same_bits, examples, model_of
from exporters.golden import entries
from hypothesis import given
from hypothesis import strategies as st
from libraries import (
    FUNCTIONS,
    Instance,
    Library,
    aligned_memory,
    assert_is_the_call,
    assert_is_the_stream,
    drawn,
    emitted_here,
    found,
    stacked,
    streamed,
)
from onnx import helper
from random_models import random_model

import lstm_engine as le
from lstm_engine.library import export, texts
from lstm_engine.library.interface import Result
from lstm_engine.library.order import Order, made
from lstm_engine.machine import NATIVE, TARGETS, Target, named_target

ROOT: Final = Path(__file__).resolve().parent.parent
MODELS: Final = {path.stem: path for path in sorted((ROOT / "models").glob("*/*.onnx"))}
ZOO: Final = ROOT.parent / "shared" / "zoo"
STREAMED: Final = [case for case in (*LAYERS, *NETS) if case.streams]
PRECISIONS: Final = (None, "int8", "bfloat16")

# --- the engine's bits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", sorted(set(MODELS) - {"digits"}))
def test_shipped_models(name: str, precision: str | None) -> None:
    assert_is_the_stream(le.load(MODELS[name], precision=precision))


def test_a_call_of_a_whole_sequence() -> None:
    """Of a model that runs both ways: calls of one shape, which carry nothing."""
    model = le.load(MODELS["digits"])
    feeds = {spec.name: np.random.default_rng(0).normal(size=(1, 8, 8)).astype(np.float32) for spec in model.inputs}
    instance = assert_is_the_call(model, feeds)
    assert instance.library.description["framed"]
    with pytest.raises(le.StreamingError, match="say what shapes they have"):
        emitted_here(model)


def held(case: Case) -> None:
    tokens = getattr(case, "vocabulary", 0) or 2
    for block in (1, 8) if case.T >= 30 else (1,):
        assert_is_the_stream(model_of(case), batch=case.B, block=block, most=tokens)
    if case.dtype == "float32":
        for precision in ("int8", "bfloat16"):
            assert_is_the_stream(le.load(case.model(), precision=precision), batch=case.B, most=tokens)


@pytest.mark.parametrize("case", STREAMED[::58], ids=str)
def test_some_of_the_table(case: Case) -> None:
    held(case)


@pytest.mark.nightly
@pytest.mark.parametrize("case", STREAMED, ids=str)
def test_the_table(case: Case) -> None:
    held(case)


def test_weights_in_a_file_of_their_own() -> None:
    assert_is_the_stream(model_of(NetCase(hidden=(20,), head="dense")), apart=True)


@examples(6)
@given(st.integers(0, 100_000))
def test_random_models(seed: int) -> None:
    """Streamed where they can be; called with whole sequences where not; what runs in Python is refused by name."""
    random = random_model(seed, causal=True)
    model = le.load(random.content)
    try:
        assert_is_the_stream(model)
    except le.StreamingError:
        with contextlib.suppress(le.LstmEngineError):
            assert_is_the_call(model, random.feeds)
    except le.UnsupportedModelError as fault:
        if not re.search("run in Python|not in one piece", str(fault)):
            raise


EXPORTERS: Final = [entry for entry in entries() if not entry.refused and entry.stream in ("steps", "last")]


def of_an_exporter(entry: Any) -> None:
    model = le.load(entry.path, states=entry.states or None)
    try:
        assert_is_the_stream(model)
    except le.StreamingError:
        assert entry.constants or entry.axes
    except le.UnsupportedModelError as fault:
        if "run in Python" not in str(fault):
            raise


@pytest.mark.parametrize("entry", EXPORTERS[::80], ids=str)
def test_some_files_of_exporters(entry: Any) -> None:
    of_an_exporter(entry)


@pytest.mark.nightly
@pytest.mark.parametrize("entry", EXPORTERS, ids=str)
def test_files_of_exporters(entry: Any) -> None:
    of_an_exporter(entry)


@pytest.mark.nightly
@pytest.mark.skipif(not ZOO.exists(), reason="the collection of public models is not here")
def test_frames() -> None:
    """A file that is made to be called frame by frame, of any size: one size is chosen."""
    model = le.load(ZOO / "silero_v3_op13.onnx")
    with pytest.raises(le.InputError, match="takes frames of any size"):
        emitted_here(model)
    assert_is_the_stream(model, shapes={"input": (1, 512)})


def test_numbers_at_the_edges() -> None:
    """NaN, infinities, the largest and the smallest: the engine's bits, but for which NaN."""
    model = model_of(NetCase(hidden=(17,), head="dense"))
    instance, stream = Instance(Library.linked(emitted_here(model))), model.stream()
    edges = [0.0, -0.0, np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-40, -1e-45, 1.0]
    for k, value in enumerate(edges):
        x = {"x": np.array([1e-39, value, -0.5 * k], np.float32).reshape(instance.inputs[0]["shape"])}
        if not np.isfinite(value):
            instance.reset()
            stream.reset()
        code, got = instance.step(x)
        assert code == Result.OK
        np.testing.assert_equal(got, streamed(stream, x, instance.outputs))
    tiny = np.float32(1e-39)
    assert tiny * np.float32(1) != 0, "the caller's treatment of denormals is its own"


def test_instances_in_threads() -> None:
    """Instances are each other's strangers, in one thread or several."""
    model = model_of(LayerCase(H=33, T=9))
    library = Library.linked(emitted_here(model))

    def run(seed: int) -> list[np.ndarray]:
        instance = Instance(library)
        steps = drawn(instance.inputs, np.random.default_rng(seed), 200)
        return [instance.step(step)[1]["Y"] for step in steps]

    alone = [run(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for got, expected in zip(pool.map(run, range(4)), alone, strict=True):
            assert_same_bits(np.stack(got), np.stack(expected))


# --- faults -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokens() -> tuple[le.Model, Library]:
    model = model_of(NetCase(vocabulary=11, hidden=(6,), head="dense"))
    return model, Library.linked(emitted_here(model, apart=True, block=3))


def test_codes_of_faults(tokens: tuple[le.Model, Library]) -> None:
    _, library = tokens
    about, weights = library.description, library.given_weights
    memory = aligned_memory(about["instance_bytes"])
    size = len(memory)
    x, y = np.zeros((1, 1), np.int64), np.zeros(5, np.float32)
    state = np.zeros(about["state_bytes"], np.uint8)
    strange = weights[0].copy()
    other = aligned_memory(len(strange))
    other[:] = strange
    other[12] ^= 1

    def expect(result: Result, name: str, *arguments: Any) -> None:
        assert library.call(name, *arguments) == result, (result, name)

    memory[:] = 0xFF
    expect(Result.NULL_POINTER, "init", None, size, *weights)
    expect(Result.MISALIGNED, "init", aligned_memory(size, 32), size, *weights)
    expect(Result.TOO_SMALL, "init", memory, size - 1, *weights)
    expect(Result.NULL_POINTER, "init", memory, size, None, weights[1])
    expect(Result.MISALIGNED, "init", memory, size, aligned_memory(weights[1], 8), weights[1])
    expect(Result.TOO_SMALL, "init", memory, size, weights[0], weights[1] - 1)
    expect(Result.OTHER_WEIGHTS, "init", memory, size, other, weights[1])
    assert (memory == 0xFF).all(), "nothing was set up"
    expect(Result.NOT_AN_INSTANCE, "step", memory, x, y)
    expect(Result.NOT_AN_INSTANCE, "feed", memory, 1, x, y)
    expect(Result.NOT_AN_INSTANCE, "reset", memory)
    expect(Result.NOT_AN_INSTANCE, "save", memory, state, len(state))
    expect(Result.NOT_AN_INSTANCE, "load", memory, state, len(state))
    expect(Result.OK, "init", memory, size, *weights)
    for name, more in (
        ("step", [x, y]),
        ("feed", [1, x, y]),
        ("reset", []),
        ("save", [state, 0]),
        ("load", [state, 0]),
    ):
        expect(Result.NULL_POINTER, name, None, *more)
        expect(Result.MISALIGNED, name, memory[8:], *more)
    expect(Result.NULL_POINTER, "step", memory, None, y)
    expect(Result.NULL_POINTER, "step", memory, x, None)
    expect(Result.NULL_POINTER, "feed", memory, 2, x, None)
    expect(Result.OK, "feed", memory, 0, None, None)
    expect(Result.NULL_POINTER, "save", memory, None, len(state))
    expect(Result.TOO_SMALL, "save", memory, state, len(state) - 1)
    expect(Result.NULL_POINTER, "load", memory, None, len(state))
    expect(Result.OTHER_STATE, "load", memory, state, len(state) - 1)
    expect(Result.DAMAGED_STATE, "load", memory, state, len(state))
    expect(Result.OK, "save", memory, state, len(state))
    expect(Result.OK, "load", memory, state, len(state))


@pytest.mark.parametrize("place", range(8))
def test_a_bad_token_changes_nothing(tokens: tuple[le.Model, Library], place: int) -> None:
    """Wherever in a chunk it is: the state stays, and the same instance goes on."""
    model, library = tokens
    instance, stream = Instance(library), model.stream()
    steps = drawn(instance.inputs, np.random.default_rng(1), 8, 11)
    name = instance.inputs[0]["name"]
    for step in steps[:3]:
        instance.step(step)
        stream.step(step[name])
    before = instance.save()
    for bad in (11, -12, 2**62, -(2**63)):
        wrong = [dict(step) for step in steps]
        wrong[place] = {name: np.full_like(steps[place][name], bad)}
        assert instance.feed(stacked(wrong, instance.inputs), 8)[0] == Result.BAD_TOKEN
        assert instance.step(wrong[place])[0] == Result.BAD_TOKEN
        assert instance.save() == before
    code, got = instance.feed(stacked(steps, instance.inputs), 8)
    assert code == Result.OK
    wanted = [streamed(stream, step, instance.outputs) for step in steps]
    assert_same_bits(got, stacked(wanted, instance.outputs))


def test_states_of_other_models() -> None:
    """Another fingerprint, another batch, another precision."""
    case = NetCase(hidden=(6,), head="dense")
    own, model = Instance(Library.linked(emitted_here(model_of(case)))), model_of(case)
    same_size = model_of(replace(case, seed=1))
    assert own.load(same_size.stream().state.to_bytes()) == Result.OTHER_STATE
    assert own.load(le.load(case.model(), precision="int8").stream().state.to_bytes()) == Result.OTHER_STATE
    assert own.load(model.stream(2).state.to_bytes()) == Result.OTHER_STATE
    assert own.load(model.stream().state.to_bytes()) == Result.OK


# --- export() -----------------------------------------------------------------------------------------------------------


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("name", sorted(set(MODELS) - {"digits"}))
def test_export_writes_what_it_says(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All files in its folder and none beside it, in bounded time; the shared library gives the engine's bits."""
    inside, beside = tmp_path / "inside", tmp_path / "beside"
    for folder in (beside, beside / "home"):
        folder.mkdir()
    for knob in ("TMPDIR", "HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(knob, str(beside / "home"))
    monkeypatch.chdir(beside)
    model = le.load(MODELS[name])
    before, models_before = resource.getrusage(resource.RUSAGE_CHILDREN), tree(ROOT / "models")
    made_of = export(model, inside, weights="file" if name == "char" else "object")
    name = made_of.description["name"]  # `char` is a word of C's
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 30, "seconds of processor time"
    assert {path.name for path in made_of.files} == {path.name for path in inside.iterdir()}
    assert tree(beside) == {"home"}
    assert tree(ROOT / "models") == models_before
    shared = inside / f"lib{name}.so"
    if shared not in made_of.files:
        assert made_of.missing
        return
    content = (inside / f"{name}.weights").read_bytes() if made_of.description["weights"]["apart"] else b""
    library = Library.loaded(shared, made_of.description, content)
    assert json.loads(library.described()) == made_of.description
    instance, stream = Instance(library), model.stream()
    for step in drawn(instance.inputs, np.random.default_rng(0), 3):
        code, got = instance.step(step)
        assert code == Result.OK
        assert_same_bits(got, streamed(stream, step, instance.outputs))


def test_two_exports_at_once(tmp_path: Path) -> None:
    model = model_of(NetCase(hidden=(6,), head="dense"))
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda name: export(model, tmp_path, name=name), ("one", "two"))
    assert first.files[0].stat().st_size > 0
    assert {path.name for path in (*first.files, *second.files)} == {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("options", "fault", "said"),
    [
        ({"target": "pdp11"}, le.TargetError, "pdp11.*expected native, x86-64"),
        ({"target": "pdp11-dec-unix"}, le.TargetError, "library for pdp11-dec-unix"),
        ({"target": "aarch64-unknown-linux-gnu:cortex-z1"}, le.TargetError, "cortex-z1.*not a recognized processor"),
        ({"name": "9 lives"}, le.InputError, "is no name in C; '_9_lives' would be"),
        ({"name": "while"}, le.InputError, "is no name in C"),
        ({"batch": 0, "block": True}, le.InputError, "(?s)batch=0.*block=True"),
        ({"weights": "cloud"}, le.InputError, "'object', 'file' or None"),
        ({"shapes": {"x": (1, 1, 3)}}, le.InputError, "streamed step by step"),
    ],
)
def test_what_export_refuses(options: dict[str, Any], fault: type[Exception], said: str, tmp_path: Path) -> None:
    """By a typed error, and the folder is left as it was."""
    with pytest.raises(fault, match=said):
        export(model_of(NetCase(hidden=(6,), head="dense")), tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(OSError, match="taken"):
        export(model_of(NetCase()), tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "mine"


def test_operators_that_run_in_python_are_named(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Mod", ["x", "two"], ["m"], name="remainder", fmod=1),
        helper.make_node("LSTM", ["m", "W", "R"], ["y"], hidden_size=4),
    ]
    arrays = {"two": np.float32(2), **builders.random_weights(3, 4, bias=False)}
    inputs, outputs = [("x", np.float32, ["time", "batch", 3])], [("y", np.float32, ["time", 1, "batch", 4])]
    model = builders.make_model(nodes, inputs, outputs, arrays)
    with pytest.raises(le.UnsupportedModelError, match=r"(?s)cannot be a library: these run in Python.*remainder"):
        export(le.load(model.SerializeToString()), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not ZOO.exists(), reason="the collection of public models is not here")
def test_a_public_model_with_such_operators(tmp_path: Path) -> None:
    with pytest.raises(le.UnsupportedModelError, match="these run in Python"):
        export(le.load(ZOO / "mlagents_hallway.onnx"), tmp_path)


def test_a_crash_of_the_compiler_is_an_error(tmp_path: Path) -> None:
    """Instructions that a machine lacks end the process that emits them, and no other."""
    model = le.load(NetCase(hidden=(16,), head="dense").model(), precision="int8")
    model.save(tmp_path / "net.npz")
    arm = named_target("aarch64")
    claimed = replace(arm, vnni=True, vector_bytes=64)
    order = Order(str(tmp_path / "net.npz"), "int8", {}, claimed, "net", 1, 1, {}, False, model.fingerprint, False)
    with pytest.raises(le.TargetError, match=f"library for {re.escape(arm.triple)}.*got: ."):
        made(order)


# --- names --------------------------------------------------------------------------------------------------------------

HOSTILE: Final = (
    "while", "a\nb", "x*/ #error", "/*", "größe", "", "int", "9", "a b", "a_b", "a/b", "self", "steps", "\\", '"', "x" * 300,
    "INPUT", "input", "%s", "_A", "__x__",
)  # fmt: skip


def with_names(names: tuple[str, ...]) -> le.Model:
    """As many inputs, added up and passed through a layer, as many outputs."""
    given = [name or "empty" for name in names]
    weights = builders.random_weights(2, 3)
    sums = [given[0], *(f"sum {k}" for k in range(1, len(given)))]
    added = [helper.make_node("Add", [sums[k - 1], given[k]], [sums[k]]) for k in range(1, len(given))]
    layer = helper.make_node("LSTM", [sums[-1], *weights], ["Y"], hidden_size=3)
    outputs = [helper.make_node("Identity", ["Y"], [f"{name} out"]) for name in given]
    model = builders.make_model(
        [*added, layer, *outputs],
        [(name, np.float32, ["T", "B", 2]) for name in given],
        [(f"{name} out", np.float32, ["T", 1, "B", 3]) for name in given],
        weights,
    )
    return le.load(model.SerializeToString())


@pytest.mark.skipif(not found("gcc", "g++"), reason="no compilers")
def test_hostile_names_are_words_of_c(tmp_path: Path) -> None:
    """Header and example compile without a warning, as C and as C++."""
    model = with_names(HOSTILE)
    path = tmp_path / "*" if sys.platform == "win32" else tmp_path / "ev*il\n#error x.onnx"
    onnx.save(onnx.load_from_string(_content(model)), str(path))
    folder = tmp_path / "made"
    export(le.load(path), folder, name="net")
    strict = ["-Wall", "-Wextra", "-Werror", "-pedantic", "-fsyntax-only"]
    (folder / "use.cpp").write_text('#include "net.h"\nint main() { static net self; return net_reset(&self); }\n')
    for command in (
        ["gcc", "-std=c11", *strict, "example.c"],
        ["gcc", "-std=c11", *strict, "-x", "c", "net.h"],
        ["g++", "-std=c++17", *strict, "use.cpp"],
    ):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        clean = "\n".join(line for line in done.stderr.splitlines() if "#pragma once" not in line)
        assert done.returncode == 0, clean


def _content(model: le.Model) -> bytes:
    return builders.to_onnx(model.graph).SerializeToString()


@given(st.lists(st.text(max_size=60), min_size=1, max_size=6))
def test_identifiers(names: list[str]) -> None:
    """Whatever a file calls its arrays: names of C's, all different."""
    made_of: list[str] = []
    for name in names:
        made_of.append(texts.identifier(name, made_of))
    assert len(set(made_of)) == len(names)
    for name in made_of:
        assert re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name)
        assert name not in {"while", "int", "self", "steps"}


def test_every_target_has_what_names_it() -> None:
    for name in (NATIVE, *TARGETS):
        assert isinstance(named_target(name), Target)
    assert named_target("thumbv7em-none-unknown-eabihf:cortex-m7").small
    assert len(FUNCTIONS) == len(set(FUNCTIONS)) == 7
