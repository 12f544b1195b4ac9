"""The public face: loading, feeds, steps, threads, saving, and what the messages say."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import FEW, Case, LayerCase, NetCase, assert_same_bits, model_of, with_activations

import lstm_engine as le

PLAIN = LayerCase(I=5, H=17)
ONE = LayerCase(I=5, H=17, outputs=("Y",))
TOKENS = NetCase(vocabulary=11, hidden=(9,), head="dense", outputs=4)
STATEFUL = LayerCase(I=5, H=17, states="inputs")
SCALAR = NetCase(I=1, hidden=(8,), head="dense", outputs=1)


def x_of(case: Case, batch: int = 1, steps: int = 4) -> np.ndarray:
    feeds = case.feeds(0, steps, batch)
    return feeds["X" if isinstance(case, LayerCase) else "x"]


# --- load -------------------------------------------------------------------------------------------------------------


def test_load_takes_paths_and_bytes(tmp_path: Path) -> None:
    data = PLAIN.model()
    path = tmp_path / "net.onnx"
    path.write_bytes(data)
    feeds = PLAIN.feeds()
    results = [le.load(source).run(feeds) for source in (path, str(path), data)]
    for result in results[1:]:
        assert_same_bits(result, results[0])
    with path.open("rb") as file, pytest.raises((TypeError, le.LstmEngineError)):
        le.load(file)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", le.ModelFormatError),
        (b"\x00" * 100, le.ModelFormatError),
        (b"PK\x03\x04" + b"\x00" * 100, le.ModelFormatError),
        (b"not a model at all, but long enough to be looked at", le.ModelFormatError),
    ],
)
def test_what_is_no_model(data: bytes, error: type[Exception], tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(data)
    for source in (data, path):
        with pytest.raises(error) as caught:
            le.load(source)
        assert isinstance(caught.value, ValueError)
    assert "broken.onnx" in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        le.load(tmp_path / "nothing.onnx")


@pytest.mark.parametrize(
    ("keywords", "error"),
    [
        ({"precision": "float16"}, le.UnsupportedModelError),
        ({"threads": 0}, ValueError),
        ({"threads": "two"}, ValueError),
        ({"states": {"X": "nothing"}}, le.StateError),
        ({"states": {"nothing": "Y"}}, le.StateError),
        ({"states": {"X": "Y"}}, le.StateError),
        ({"constants": {"nothing": 1}}, le.InputError),
    ],
    ids=str,
)
def test_keywords_out_of_range(keywords: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        le.load(PLAIN.model(), **keywords)


def test_what_is_not_implemented_is_named() -> None:
    import onnx
    from builders import make_model

    node = onnx.helper.make_node("Frobnicate", ["X"], ["Y"], name="odd", domain="my.domain")
    model = make_model([node], [("X", np.float32, [2])], [("Y", np.float32, [2])], domains={"my.domain": 1})
    with pytest.raises(le.UnsupportedModelError, match="Frobnicate"):
        le.load(model.SerializeToString())
    gates = with_activations(LayerCase(), "Affine", "Tanh", "Tanh")
    bare = LayerCase(activations=gates.activations)  # Affine has no alpha of its own
    with pytest.raises((le.UnsupportedModelError, le.ModelFormatError), match="Affine"):
        le.load(bare.model())


def test_a_model_describes_itself() -> None:
    model = model_of(STATEFUL)
    assert [spec.name for spec in model.inputs] == ["X", "h0", "c0"]
    assert model.inputs[0].shape == ("time", "batch", 5)
    assert model.inputs[0].dtype == np.float32
    assert model.states == (("h0", "Y_h"), ("c0", "Y_c"))
    assert "X: float32[time, batch, 5]" in repr(model)
    assert model_of(PLAIN).states == ()


# --- feeds of run -----------------------------------------------------------------------------------------------------

REAL = ["float16", "float32", "float64", "longdouble", "int8", "int16", "int32", "int64", "uint8", "uint64", "bool"]


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("case", [ONE, LayerCase(I=5, H=9, dtype="float64", outputs=("Y",))], ids=str)
def test_any_real_dtype_rounds(case: LayerCase, dtype: str) -> None:
    x = (10 * x_of(case, 2)).astype(dtype)
    got = model_of(case).run(x)
    assert_same_bits(got, model_of(case).run(x.astype(case.dtype)))


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("case", [ONE, LayerCase(I=5, H=9, dtype="float64", outputs=("Y",)), PLAIN], ids=str)
def test_any_real_dtype_steps(case: LayerCase, dtype: str) -> None:
    x = (10 * x_of(case)).astype(dtype)
    one, other = model_of(case).stream(), model_of(case).stream()
    for t in range(len(x)):
        assert_same_bits(one.step(x[t]), other.step(x[t].astype(case.dtype)))
        assert_same_bits(one.step(x[t, 0]), other.step(x[t, 0].astype(case.dtype)))
    assert_same_bits(one.feed(x), other.feed(x.astype(case.dtype)))


def laid_out(x: np.ndarray) -> dict[str, np.ndarray]:
    """The same values in every odd layout."""
    unaligned = np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(np.uint8)
    raw = np.empty(x.nbytes + 1, np.uint8)
    raw[1:] = unaligned
    read_only = x.copy()
    read_only.flags.writeable = False
    every_other = np.zeros((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)
    every_other[..., ::2] = x
    return {
        "fortran": np.asfortranarray(x),
        "every other": every_other[..., ::2],
        "backwards": np.ascontiguousarray(x[..., ::-1])[..., ::-1],
        "read-only": read_only,
        "unaligned": raw[1:].view(x.dtype).reshape(x.shape),
        "big-endian": x.astype(x.dtype.newbyteorder(">")),
        "broadcast": np.broadcast_to(x, x.shape),
        "subclass": x.view(np.matrix) if x.ndim == 2 else x.view(type("Own", (np.ndarray,), {})),
    }


@pytest.mark.parametrize("case", [ONE, STATEFUL, TOKENS], ids=str)
def test_any_layout_is_taken_right(case: Case) -> None:
    model = model_of(case)
    feeds = case.feeds(0, 4, 3)
    expected = model.run(feeds)
    for name in feeds:
        for kind, array in laid_out(feeds[name]).items():
            assert_same_bits(model.run({**feeds, name: array}), expected, f"{name} {kind}")
    x = x_of(case, 3)
    stream = model.stream(3)
    wanted = [stream.step(x[t]) for t in range(4)]
    for kind in laid_out(x[0]):
        stream.reset()
        for t in range(4):
            assert_same_bits(stream.step(laid_out(x[t])[kind]), wanted[t], kind)
    for kind, array in laid_out(x).items():
        one, other = model.stream(3), model.stream(3)
        assert_same_bits(one.feed(array), other.feed(x), kind)


def test_lists_are_arrays() -> None:
    x = x_of(ONE)
    assert_same_bits(model_of(ONE).run(x.tolist()), model_of(ONE).run(x))
    assert_same_bits(model_of(ONE).stream().step(x[0].tolist()), model_of(ONE).stream().step(x[0]))


def test_one_array_where_one_input_is_required() -> None:
    x = x_of(ONE)
    assert_same_bits(model_of(ONE).run(x), model_of(ONE).run({"X": x}))
    with pytest.raises(le.InputError, match="h0"):
        model_of(STATEFUL).run(x)


def test_integers_are_checked_not_wrapped() -> None:
    model = model_of(NetCase(vocabulary=11, token_dtype="int32"))
    ids = np.array([[1, 2], [3, 4]])
    expected = model.run(ids.astype(np.int32))
    for dtype in ("int8", "uint8", "int64", "uint64", ">i2", "bool"):
        if dtype == "bool":
            assert_same_bits(model.run(ids.astype(bool)), model.run(ids.astype(bool).astype(np.int32)))
        else:
            assert_same_bits(model.run(ids.astype(dtype)), expected)
    for bad in (np.array([[2**32 + 1]]), np.array([[2**63]], np.uint64), np.array([[-(2**40)]])):
        with pytest.raises(le.InputError, match="int32"):
            model.run(bad)
        with pytest.raises(le.InputError, match="int32"):
            model.stream().step(bad[0])
    for bad in (ids.astype(np.float32), ids.astype(np.float64), [[1.0]]):
        with pytest.raises(le.InputError, match="integer"):
            model.run(bad)
    with pytest.raises(le.InputError, match="integer"):
        model.stream().step(1.0)
    with pytest.raises(le.InputError, match="out of range"):
        model.run([[11]])


@pytest.mark.parametrize(
    ("feeds", "said"),
    [
        ({}, ["X", "missing", "time, batch, 5"]),
        ({"x": 1}, ["'x'", "not an input", "X"]),
        ({"X": np.zeros((4, 2, 6), np.float32)}, ["X", "5", "[4, 2, 6]"]),
        ({"X": np.zeros((2, 5), np.float32)}, ["X", "3 axes", "got 2"]),
        ({"X": np.zeros((4, 2, 5), complex)}, ["X", "float32", "complex"]),
        ({"X": np.zeros((4, 2, 5), object)}, ["X", "float32", "object"]),
        ({"X": [[[1.0], [1.0, 2.0]]]}, ["X", "rectangular"]),
    ],
    ids=str,
)
def test_messages_name_input_expected_and_got(feeds: Any, said: list[str]) -> None:
    with pytest.raises(le.InputError) as caught:
        model_of(PLAIN).run(feeds)
    for words in said:
        assert words in str(caught.value)


def test_all_faults_at_once() -> None:
    feeds = {"X": np.zeros((4, 2, 6)), "h0": np.zeros((1, 3, 17)), "c0": np.zeros((17,)), "more": 1}
    with pytest.raises(le.InputError) as caught:
        model_of(STATEFUL).run(feeds)
    for name in ("'X", "'c0", "'more"):
        assert name in str(caught.value)
    with pytest.raises(le.InputError, match="batch is 3 here but 2"):
        model_of(STATEFUL).run({**STATEFUL.feeds(), "h0": np.zeros((1, 3, 17))})


def test_outputs_wanted() -> None:
    model, feeds = model_of(PLAIN), PLAIN.feeds()
    assert list(model.run(feeds, outputs=["Y_h"])) == ["Y_h"]
    assert model.run(feeds, outputs=[]) == {}
    with pytest.raises(le.InputError, match=r"'Z'.*"):
        model.run(feeds, outputs=["Z"])


def test_results_are_the_callers() -> None:
    model, feeds = model_of(PLAIN), PLAIN.feeds()
    first = model.run(feeds)
    kept = {name: x.copy() for name, x in first.items()}
    for x in first.values():
        x[...] = 7
    assert_same_bits(model.run(feeds), kept)
    stream = model_of(ONE).stream()
    one = stream.step(x_of(ONE)[0])
    held = one.copy()
    stream.step(x_of(ONE)[1])
    assert_same_bits(one, held)


# --- steps ------------------------------------------------------------------------------------------------------------


def test_the_batch_axis_may_be_left_out() -> None:
    for case in (ONE, PLAIN, NetCase(I=5, head="dense", batch_first=True), NetCase(I=5, head="last_gather")):
        model = model_of(case)
        x = x_of(case)
        step = np.take(x, 0, axis=case.time_axis)
        full, lean = model.stream().step(step), model.stream().step(step[0])
        full = full if isinstance(full, dict) else {"": full}
        lean = lean if isinstance(lean, dict) else {"": lean}
        for name, array in full.items():
            assert lean[name].ndim == array.ndim - 1
            assert_same_bits(lean[name].reshape(array.shape), array)
        chunk = np.squeeze(x, 1 - case.time_axis)
        one, other = model.stream().feed(x), model.stream().feed(chunk)
        assert_same_bits(other, one)
    with pytest.raises(le.InputError):
        model_of(ONE).stream(2).step(np.zeros(5, np.float32))


def test_tokens_as_numbers() -> None:
    for dtype in ("int64", "int32"):
        case = NetCase(vocabulary=11, hidden=(9,), head="dense", outputs=4, token_dtype=dtype)
        model = model_of(case)
        ids = [3, 10, 0, 7, 7]
        expected = model.stream().feed(np.array(ids)[:, None])
        for convert in (int, np.int64, np.int32, np.uint8, np.array):
            stream = model.stream()
            for t, token in enumerate(ids):
                assert_same_bits(stream.step(convert(token)), expected[t, 0], f"{dtype} {convert}")
        with pytest.raises(le.InputError, match="out of range"):
            model.stream().step(11)
        with pytest.raises(le.InputError):
            model.stream().step(2**70)
        with pytest.raises(le.InputError):
            model.stream().step(1.5)
        with pytest.raises(le.InputError):
            model.stream().step("1")


def test_readings_as_numbers() -> None:
    model = model_of(SCALAR)
    values = [0.5, -1.25, 3.0, 2.0]
    expected = model.stream().feed(np.array(values, np.float32).reshape(-1, 1, 1)).reshape(-1)
    for convert in (float, np.float32, np.float64, lambda v: np.array([v], np.float32), lambda v: [v]):
        stream = model.stream()
        got = [float(np.asarray(stream.step(convert(v))).reshape(())) for v in values]
        assert got == expected.tolist()
    stream = model.stream()
    stream.step(3)
    assert model.stream().step(3.0) is not None


def out_of(case: Case, batch: int = 1) -> np.ndarray:
    stream = model_of(case).stream(batch)
    return np.empty_like(stream.step(np.take(x_of(case, batch), 0, axis=case.time_axis)))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    "case", [ONE, TOKENS, NetCase(head="dense_softmax", batch_first=True), LayerCase(H=9, dtype="float64", outputs=("Y",))],
    ids=str,
)  # fmt: skip
def test_out_is_written_and_returned(case: Case, batch: int) -> None:
    model = model_of(case)
    x = x_of(case, batch)
    stream, twin = model.stream(batch), model.stream(batch)
    out = out_of(case, batch)
    for t in range(4):
        step = np.take(x, t, axis=case.time_axis)
        assert stream.step(step, out=out) is out
        assert_same_bits(out, twin.step(step))
    strided = np.zeros((*out.shape[:-1], 2 * out.shape[-1]), out.dtype)[..., ::2]
    fortran = np.asfortranarray(out)
    raw = np.zeros(out.nbytes + 1, np.uint8)[1:].view(out.dtype).reshape(out.shape)
    for target in (strided, fortran, raw):
        step = np.take(x, 0, axis=case.time_axis)
        assert stream.step(step, out=target) is target
        assert_same_bits(np.ascontiguousarray(target), twin.step(step))


def test_out_without_its_batch_axis() -> None:
    model, x = model_of(ONE), x_of(ONE)
    out = np.empty((1, 17), np.float32)
    assert model.stream().step(x[0, 0], out=out) is out
    assert_same_bits(out, model.stream().step(x[0])[0])
    with pytest.raises(le.InputError, match="out"):
        model.stream().step(x[0], out=out)
    with pytest.raises(le.InputError, match="out"):
        model.stream().step(x[0, 0], out=np.empty((1, 1, 17), np.float32))


def test_a_wrong_out_changes_nothing() -> None:
    stream = model_of(ONE).stream()
    x = x_of(ONE)[0]
    stream.step(x)
    before = stream.state
    read_only = np.zeros((1, 1, 17), np.float32)
    read_only.flags.writeable = False
    wrong: list[Any] = [
        read_only,
        np.zeros((1, 1, 17)),
        np.zeros((1, 1, 17), np.float16),
        np.zeros((1, 1, 17), ">f4"),
        np.zeros((1, 1, 17), np.int32),
        np.zeros((1, 1, 16), np.float32),
        np.zeros((2, 1, 17), np.float32),
        np.zeros(17, np.float32),
        np.zeros((), np.float32),
        [0.0] * 17,
        "out",
        bytearray(68),
        {"Y": np.zeros((1, 1, 16), np.float32)},
        {"Z": np.zeros((1, 1, 17), np.float32)},
    ]
    for out in wrong:
        with pytest.raises(le.InputError, match="out"):
            stream.step(x, out=out)
        assert stream.state == before, type(out)
    assert not read_only.any()


def test_out_of_several_outputs_by_name() -> None:
    model, x = model_of(PLAIN), x_of(PLAIN)
    out = {name: np.empty_like(array) for name, array in model.stream().step(x[0]).items()}
    assert model.stream().step(x[0], out=out) is out
    assert_same_bits(out, model.stream().step(x[0]))
    with pytest.raises(le.InputError, match="out"):
        model.stream().step(x[0], out=next(iter(out.values())))


def test_the_same_array_in_and_out() -> None:
    """Input and output may share memory."""
    case = NetCase(I=5, hidden=(8,), head="dense", outputs=5)
    model, x = model_of(case), x_of(case)[0]
    expected = model.stream().step(x)
    both = x.copy()
    assert model.stream().step(both, out=both) is both
    assert_same_bits(both, expected)


def test_streams_refuse_what_is_no_batch() -> None:
    for batch in (0, -1, 1.5, True, "1", None):
        with pytest.raises(le.InputError, match="batch"):
            model_of(PLAIN).stream(batch)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("case", "said"),
    [
        (LayerCase(direction="bidirectional"), "both ways"),
        (LayerCase(direction="reverse"), "backwards"),
        (LayerCase(lengths="input"), "lengths"),
        (NetCase(bidirectional=True, head="dense"), "both ways"),
    ],
    ids=str,
)
def test_what_needs_the_whole_sequence_says_why(case: Case, said: str) -> None:
    with pytest.raises(le.StreamingError, match=said) as caught:
        model_of(case).stream()
    assert "LSTM 'layer'" in str(caught.value) or "LSTM.0" in str(caught.value)


def test_streams_describe_themselves() -> None:
    stream = model_of(STATEFUL).stream(3)
    assert [str(spec) for spec in stream.inputs] == ["X: float32[3, 5]"]
    assert [str(spec) for spec in stream.outputs] == ["Y: float32[1, 3, 17]"]
    assert stream.batch == 3
    assert set(stream.state.arrays) == {"h0", "c0"}
    assert stream.state.arrays["h0"].shape == (1, 3, 17)


# --- threads ----------------------------------------------------------------------------------------------------------


def in_threads(count: int, work: Callable[[int], Any]) -> list[BaseException]:
    """Run in several threads that begin together; what they raised."""
    raised: list[BaseException] = []
    barrier = threading.Barrier(count)

    def body(index: int) -> None:
        barrier.wait()
        try:
            work(index)
        except BaseException as fault:
            raised.append(fault)

    threads = [threading.Thread(target=body, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    return raised


@pytest.mark.parametrize("case", [ONE, PLAIN, TOKENS, LayerCase(I=64, H=200, outputs=("Y",))], ids=str)
def test_one_stream_in_two_threads_is_serial_or_refused(case: Case) -> None:
    """Never a crash, never a torn result: what got through went one after another."""
    stream = model_of(case).stream()
    x = x_of(case)[0]
    done: list[int] = []
    fork = stream.fork()

    def work(index: int) -> None:
        for _ in range(200):
            try:
                stream.step(x)
            except le.StateError:
                continue
            else:
                done.append(index)

    assert in_threads(4, work) == []
    for _ in done:
        fork.step(x)
    assert stream.state == fork.state


def test_other_calls_on_a_busy_stream_are_refused_or_serial() -> None:
    case = LayerCase(I=64, H=128, outputs=("Y",))
    stream = model_of(case).stream()
    chunk = x_of(case, steps=300)
    calls = [
        lambda: stream.feed(chunk),
        stream.reset,
        lambda: stream.state.to_bytes(),
        lambda: stream.fork().step(chunk[0]),
        lambda: stream.step(chunk[0]),
    ]

    def work(index: int) -> None:
        for _ in range(30):
            with contextlib.suppress(le.StateError):
                calls[index]()

    assert in_threads(len(calls), work) == []


def test_a_model_runs_in_many_threads_at_once() -> None:
    cases = [STATEFUL, TOKENS, LayerCase(H=16, T=6, B=5, direction="bidirectional", lengths="input")]
    jobs = [(model_of(case), case.feeds(seed, 3 + 11 * seed, 1 + seed)) for case in cases for seed in range(3)]
    expected = [model.run(feeds) for model, feeds in jobs]

    def work(index: int) -> None:
        for turn in range(25):
            which = (index + turn) % len(jobs)
            assert_same_bits(jobs[which][0].run(jobs[which][1]), expected[which])

    assert in_threads(6, work) == []


def test_streams_in_threads_do_not_meet() -> None:
    x = x_of(PLAIN, steps=60)
    expected = model_of(PLAIN).stream().feed(x)

    def work(index: int) -> None:
        for _ in range(10):
            stream = model_of(PLAIN).stream()
            for t in range(60):
                result = stream.step(x[t])
                assert_same_bits(result["Y"], expected["Y"][t])

    assert in_threads(6, work) == []


def test_loading_in_threads() -> None:
    data, feeds = PLAIN.model(), PLAIN.feeds()
    expected = model_of(PLAIN).run(feeds)
    assert in_threads(4, lambda index: assert_same_bits(le.load(data).run(feeds), expected)) == []


# --- save -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", FEW, ids=str)
def test_saved_and_loaded_is_the_same_model(case: Case, tmp_path: Path) -> None:
    model = model_of(case)
    path = tmp_path / "net.npz"
    model.save(path)
    again = le.load(path)
    feeds = case.feeds()
    assert_same_bits(again.run(feeds), model.run(feeds))
    assert again.inputs == model.inputs
    assert again.outputs == model.outputs
    assert again.states == model.states
    assert again.fingerprint == model.fingerprint
    assert le.load(path.read_bytes()).fingerprint == model.fingerprint
    second = tmp_path / "again.npz"
    again.save(second)
    assert second.read_bytes() == path.read_bytes()
    if case.streams:
        stream, twin = model.stream(), again.stream()
        x = x_of(case)
        stream.feed(x)
        twin.state = stream.state  # a state outlives conversion
        assert_same_bits(twin.feed(x), stream.feed(x))


def test_a_saved_model_needs_no_onnx(tmp_path: Path, fresh_environment: dict[str, str]) -> None:
    path, results = tmp_path / "net.npz", tmp_path / "results.npz"
    model = model_of(STATEFUL)
    model.save(path)
    feeds = STATEFUL.feeds()
    np.savez(tmp_path / "feeds.npz", **feeds)
    code = """
import sys
sys.modules["onnx"] = None
import numpy as np, lstm_engine as le
model = le.load(sys.argv[1])
results = model.run(dict(np.load(sys.argv[2])))
stream = model.stream()
stream.step(np.zeros((1, 5), np.float32))
assert not [name for name in sys.modules if name.split(".")[0] == "onnx" and sys.modules[name]]
np.savez(sys.argv[3], **results)
"""
    environment = {k: v for k, v in fresh_environment.items() if k != "LSTM_ENGINE_CACHE"}
    arguments = [str(path), str(tmp_path / "feeds.npz"), str(results)]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, env=environment, timeout=300)
    assert_same_bits(dict(np.load(results)), model.run(feeds))


def test_saving_over_the_file_that_was_loaded(tmp_path: Path) -> None:
    path = tmp_path / "net.npz"
    model_of(PLAIN).save(path)
    model = le.load(path)
    model.save(path)
    assert le.load(path).fingerprint == model.fingerprint


# --- the face of onnxruntime ------------------------------------------------------------------------------------------


def test_a_session_is_a_model() -> None:
    session = le.InferenceSession(STATEFUL.model())
    feeds = STATEFUL.feeds()
    expected = model_of(STATEFUL).run(feeds)
    for got, name in zip(session.run(None, feeds), ("Y", "Y_h", "Y_c"), strict=True):
        assert_same_bits(got, expected[name])
    (only,) = session.run(["Y_c"], feeds)
    assert_same_bits(only, expected["Y_c"])
    assert [node.name for node in session.get_inputs()] == ["X", "h0", "c0"]
    assert [node.name for node in session.get_outputs()] == ["Y", "Y_h", "Y_c"]
    assert session.get_inputs()[0].type == "tensor(float)"


# --- errors -----------------------------------------------------------------------------------------------------------


def test_the_tree_of_errors() -> None:
    for name in ("ModelFormatError", "UnsupportedModelError", "InputError", "StreamingError", "StateError"):
        assert issubclass(getattr(le, name), le.LstmEngineError)
    for error in (le.ModelFormatError, le.InputError):
        assert issubclass(error, ValueError)
    for error in (le.UnsupportedModelError, le.StreamingError, le.StateError):
        assert not issubclass(error, ValueError)


def test_errors_in_a_stream_are_not_swallowed_by_threads() -> None:
    """After a failed call the stream is free again."""
    stream = model_of(TOKENS).stream()
    for _ in range(3):
        with pytest.raises(le.InputError):
            stream.step(99)
        with pytest.raises(le.InputError):
            stream.feed(np.full((50, 1), 99))
    stream.step(1)
    stream.reset()


# --- inputs of other kinds --------------------------------------------------------------------------------------------


def joined(gain: list[Any] | None = None) -> le.Model:
    """Two inputs side by side into an LSTM, times a third one where ``gain`` gives its shape."""
    from builders import make_model, random_weights
    from onnx import helper

    nodes = [
        helper.make_node("Concat", ["a", "b"], ["x"], axis=2),
        helper.make_node("LSTM", ["x", "W", "R", "B"], ["Y"], hidden_size=6, name="lstm"),
        helper.make_node("Squeeze", ["Y", "axis"], ["y" if gain is None else "q"]),
    ]
    inputs: list[Any] = [("a", np.float32, ["T", "B", 2]), ("b", np.float32, ["T", "B", 3])]
    if gain is not None:
        nodes.append(helper.make_node("Mul", ["q", "gain"], ["y"]))
        inputs.append(("gain", np.float32, gain))
    arrays = {**random_weights(5, 6), "axis": np.array([1])}
    return le.load(make_model(nodes, inputs, [("y", np.float32, ["T", "B", 6])], arrays).SerializeToString())


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_several_inputs_go_by_name() -> None:
    model = joined()
    feeds = {"a": drawn(40, 2, 2), "b": drawn(40, 2, 3, seed=1)}
    expected = model.run(feeds)["y"]
    stream = model.stream(2)
    assert_same_bits(stream.feed(feeds), expected)
    stream.reset()
    for t in range(40):
        assert_same_bits(stream.step({"b": feeds["b"][t], "a": feeds["a"][t]}), expected[t])
    before = stream.state
    one = {name: x[0] for name, x in feeds.items()}
    for bad, said in (
        ({"a": one["a"]}, "'b"),
        ({**one, "c": 1}, "'c'"),
        ({**one, "b": one["b"][:1]}, "[2, 3]"),
        (one["a"], "a, b"),
    ):
        with pytest.raises(le.InputError, match=r".*") as caught:
            stream.step(bad)
        assert said in str(caught.value)
        assert stream.state == before
    with pytest.raises(le.InputError, match="lengths"):
        stream.feed({"a": feeds["a"][:3], "b": feeds["b"][:4]})


@pytest.mark.parametrize("shape", [[], [1], ["B", 1], ["B", 6], [6], ["T", "B", 1]], ids=str)
def test_an_input_beside_the_sequence(shape: list[Any]) -> None:
    """A scalar, a vector, a value per row or per step: the same in a run, a step and a feed; as a constant too."""
    model = joined(shape)
    feeds = {"a": drawn(9, 2, 2), "b": drawn(9, 2, 3, seed=1)}
    gain = drawn(*[{"T": 9, "B": 2}.get(d, d) for d in shape], seed=2)
    expected = model.run({**feeds, "gain": gain})["y"]
    stream = model.stream(2)
    assert_same_bits(stream.feed({**feeds, "gain": gain}), expected)
    stream.reset()
    for t in range(9):
        step = {name: x[t] for name, x in feeds.items()}
        value = gain[t] if shape[:1] == ["T"] else float(gain) if not shape else gain
        assert_same_bits(stream.step({**step, "gain": value}), expected[t])
    if shape in ([], [1], [6]):
        fixed = model.stream(2, constants={"gain": gain})
        assert [spec.name for spec in fixed.inputs] == ["a", "b"]
        assert_same_bits(fixed.feed(feeds), expected)
        assert fixed.state == stream.state
        with pytest.raises(le.InputError, match="gain"):
            fixed.feed({**feeds, "gain": gain})


def cell_model(batch: int | str, timed: bool) -> le.Model:
    """One step a call, the state in and out: X[B, I], or X[1, B, I]."""
    from builders import make_model, random_weights
    from onnx import helper

    nodes = [] if timed else [helper.make_node("Unsqueeze", ["x", "axis"], ["X"])]
    source = "x" if timed else "X"
    lstm = ["LSTM", [source, "W", "R", "B", "", "h", "c"], ["Y", "hn", "cn"]]
    nodes.append(helper.make_node(*lstm, hidden_size=6, name="lstm"))
    nodes.append(helper.make_node("Squeeze", ["hn", "axis"], ["y"]))
    state = [1, batch, 6]
    inputs: list[Any] = [("x", np.float32, [1, batch, 5] if timed else [batch, 5])]
    inputs += [("h", np.float32, state), ("c", np.float32, state)]
    outputs: list[Any] = [("y", np.float32, [batch, 6]), ("hn", np.float32, state), ("cn", np.float32, state)]
    arrays = {**random_weights(5, 6), "axis": np.array([0])}
    return le.load(make_model(nodes, inputs, outputs, arrays).SerializeToString())


@pytest.mark.parametrize(("batch", "timed"), [("B", False), (1, False), (1, True), ("B", True)])
def test_a_model_of_one_step(batch: int | str, timed: bool) -> None:
    """Feedback by the caller, steps of a stream and a feed along a new axis: the same bits."""
    model = cell_model(batch, timed)
    assert model.states == (("h", "hn"), ("c", "cn"))
    for rows in (1,) if batch == 1 else (1, 3):
        x = drawn(9, rows, 5)
        x = x[:, None] if timed else x
        h = c = np.zeros((1, rows, 6), np.float32)
        stream, twin = model.stream(rows), model.stream(rows)
        everything = twin.feed(x)
        for t in range(9):
            results = model.run({"x": x[t], "h": h, "c": c})
            h, c = results["hn"], results["cn"]
            assert_same_bits(stream.step(x[t]), results["y"])
            assert_same_bits(everything[t], results["y"])
        assert_same_bits(stream.state.arrays["h"], h)
        assert stream.state == twin.state
    if batch == 1:
        with pytest.raises(le.StreamingError, match="batch"):
            model.stream(2)


def test_declared_states() -> None:
    """states= makes a pair of an input and an output that no recurrent node connects."""
    from builders import make_model
    from onnx import helper

    nodes = [
        helper.make_node("Mul", ["past", "decay"], ["kept"]),
        helper.make_node("Add", ["kept", "x"], ["sum"]),
        helper.make_node("Tanh", ["sum"], ["y"]),
    ]
    shape = ["batch", 20]
    inputs: list[Any] = [("x", np.float32, shape), ("past", np.float32, shape)]
    outputs: list[Any] = [("y", np.float32, shape), ("sum", np.float32, shape)]
    data = make_model(nodes, inputs, outputs, {"decay": np.array([0.5], np.float32)}).SerializeToString()
    assert le.load(data).states == ()
    model = le.load(data, states={"past": "sum"})
    assert model.states == (("past", "sum"),)
    x = drawn(6, 2, 20)
    stream = model.stream(2)
    past = np.zeros((2, 20), np.float32)
    for t in range(6):
        results = model.run({"x": x[t], "past": past})
        past = results["sum"]
        assert_same_bits(stream.step(x[t]), results["y"])
    assert_same_bits(stream.state.arrays["past"], past)
    stream.reset()
    assert_same_bits(stream.feed(x)[5], results["y"])


def test_many_shapes_from_many_threads() -> None:
    """More programs than are kept, wanted at once: each run gets its own."""
    case = LayerCase(H=9, direction="bidirectional")
    model = le.load(case.model())
    jobs = [case.feeds(0, 1 + k % 5, 1 + k) for k in range(30)]
    expected = [model_of(case).run(feeds) for feeds in jobs]

    def work(index: int) -> None:
        for turn in range(60):
            which = (7 * index + turn) % len(jobs)
            assert_same_bits(model.run(jobs[which]), expected[which])

    assert in_threads(4, work) == []


@pytest.mark.parametrize("axes", [9, 32])
def test_arrays_of_many_axes_are_refused_not_unboxed_into_too_small_a_place(axes: int) -> None:
    model = le.load(LayerCase(I=5, H=17, outputs=("Y",)).model())
    stream = model.stream()
    many = np.zeros((1,) * (axes - 1) + (5,), np.float32)
    before = stream.state
    with pytest.raises(le.InputError, match="expected shape"):
        stream.step(many)
    with pytest.raises(le.InputError):
        stream.step(np.zeros((1, 5), np.float32), out=many)
    with pytest.raises(le.InputError, match="axes"):
        model.run(many)
    assert stream.state == before
