"""Model.trace: the same run, and what its gates were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import LAYERS, NETS, Case, LayerCase, NetCase, model_of
from pools import same

import lstm_engine as le
from lstm_engine import reference
from lstm_engine.encoding import Opcode
from lstm_engine.reference import recurrent
from lstm_engine.trace import LayerTrace

GATE_TOLERANCE = {"float32": 5e-6, "float64": 1e-12}


@pytest.mark.parametrize("case", [*LAYERS, *NETS], ids=str)
def test_the_outputs_are_those_of_a_run(case: Case) -> None:
    model, feeds = model_of(case), case.feeds()
    trace, results = model.trace(feeds), model.run(feeds)
    assert list(trace.outputs) == list(results)
    for name, expected in results.items():
        assert same(trace.outputs[name], expected), name
    assert not trace.missing
    for layer in trace.values():
        assert layer.shape[:2] == (case.T, case.B)
        assert all(array.flags.c_contiguous for array in layer.arrays.values())


def recorded_gates(model: le.Model, feeds: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """(i, f, g, o, c, h before) of every step that the float64 definition takes, in its order."""
    steps: list[Any] = []
    plain = recurrent.lstm_step

    def recording(x: Any, h: Any, c: Any, weights: Any, cell: Any) -> Any:
        h_new, c_new, gates = plain(x, h, c, weights, cell)
        steps.append({**gates._asdict(), "c": c_new, "h": h_new})
        return h_new, c_new, gates

    monkeypatch.setattr(recurrent, "lstm_step", recording)
    exact = {name: x.astype(np.float64) if x.dtype.kind == "f" else x for name, x in feeds.items()}
    reference.run(model.graph, exact)
    return steps


GATED = [case for case in LAYERS if case.op == "LSTM" and not case.lengths and not case.precision]


@pytest.mark.parametrize("case", GATED, ids=str)
def test_gates_are_those_of_the_definition(case: LayerCase, monkeypatch: pytest.MonkeyPatch) -> None:
    model, feeds = model_of(case), case.feeds()
    steps = recorded_gates(model, feeds, monkeypatch)
    assert len(steps) == case.T * case.directions
    for d, layer in enumerate(model.trace(feeds).values()):
        own = steps[d * case.T : (d + 1) * case.T]
        backwards = case.direction == "reverse" or layer.name.endswith(".reverse")
        for part in "ifgoch":
            expected = np.stack([step[part] for step in (own[::-1] if backwards else own)])
            reach = max(1.0, float(np.abs(expected).max()))
            assert np.abs(layer[part] - expected).max() <= GATE_TOLERANCE[case.dtype] * reach, part


@pytest.mark.parametrize("linear", [0, 1])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_gates_of_a_gru(linear: int, direction: str) -> None:
    case = LayerCase(op="GRU", I=5, H=19, T=9, B=3, linear_before_reset=linear, direction=direction)
    model, feeds = model_of(case), case.feeds()
    weights = {name.split(".")[0]: value for name, value in model.graph.constants.items()}
    W, R, B = (weights[name][0].astype(np.float64) for name in "WRB")
    b = np.split(B, 6)
    (layer,) = model.trace(feeds).values()
    order = range(case.T)[:: -1 if direction == "reverse" else 1]
    h = np.zeros((case.B, case.H))
    for t in order:
        x = feeds["X"][t].astype(np.float64) @ W.T
        (xz, xr, xn), (hz, hr, hn) = np.split(x, 3, 1), np.split(h @ R.T, 3, 1)
        z, r = (1 / (1 + np.exp(-v)) for v in (xz + hz + b[0] + b[3], xr + hr + b[1] + b[4]))
        past = r * (hn + b[5]) if linear else (r * h) @ np.split(R, 3)[2].T + b[5]
        n = np.tanh(xn + b[2] + past)
        h = (1 - z) * n + z * h
        for part, expected in (("z", z), ("r", r), ("n", n), ("h", h)):
            assert np.abs(layer[part][t] - expected).max() < 5e-6, (part, t)


def test_rows_beyond_their_length_are_zeros() -> None:
    case = LayerCase(H=17, T=8, B=3, lengths="input")
    feeds = case.feeds()
    lengths = next(x for x in feeds.values() if x.dtype == np.int32)
    lengths[:] = [8, 0, 5]
    (layer,) = model_of(case).trace(feeds).values()
    for part in layer.parts:
        assert not layer[part][:, 1].any()
        assert not layer[part][5:, 2].any()
        assert layer[part][4, 2].all()


LESSER = [
    pytest.param(precision, marks=pytest.mark.nightly) for precision in ("bfloat16", "int8")
]  # images of their own


@pytest.mark.parametrize("precision", ["float32", *LESSER])
def test_precisions_and_threads(precision: str) -> None:
    case = NetCase(I=64, hidden=(128,), T=20, B=16, precision=precision, head="dense")
    feeds = case.feeds()
    model = le.load(case.model(), precision=precision, threads=2)
    trace = model.trace(feeds)
    assert same(trace.outputs["y"], model.run(feeds)["y"])
    assert same(trace["LSTM.0"].h[-1], model.stream(16).model.trace(feeds)["LSTM.0"].h[-1])


def test_special_values() -> None:
    model, feeds = model_of(NetCase(hidden=(18,))), NetCase(hidden=(18,)).feeds()
    feeds["x"][2, 0] = np.nan
    feeds["x"][3, 1] = np.inf
    trace = model.trace(feeds)
    assert same(trace.outputs["y"], model.run(feeds)["y"])
    assert np.isnan(trace["LSTM.0"].f[2:, 0]).all()
    assert np.isfinite(trace["LSTM.0"].f[:2]).all()


def test_a_run_without_a_trace_knows_nothing_of_it() -> None:
    traced = {Opcode.TRACED_LSTM, Opcode.TRACED_CELL, Opcode.TRACED_RECURRENT}
    for case in (NetCase(), LayerCase(peephole=True), LayerCase(op="GRU")):
        model = model_of(case)
        model.trace(case.feeds())
        model.run(case.feeds())
        assert not traced & {part.opcode for program in model.ways()[0] for part in program.listing}


# --- its face --------------------------------------------------------------------------------------------------------


def small() -> tuple[le.Model, le.Trace]:
    case = NetCase(hidden=(8, 5), T=30)
    model = model_of(case)
    return model, model.trace(case.feeds())


def test_names() -> None:
    _, trace = small()
    assert list(trace) == ["LSTM.0", "LSTM.2"]
    assert trace["LSTM.2"].parts == ("f", "i", "g", "o", "c", "h")
    assert "Trace(LSTM.0 LSTM[30, 2, 8]" in repr(trace)
    both = model_of(LayerCase(direction="bidirectional")).trace(LayerCase().feeds())
    assert [name.rpartition(".")[2] for name in both] == ["forward", "reverse"]
    with pytest.raises(le.InputError, match=r"no layer 'x'; there are LSTM\.0, LSTM\.2"):
        trace["x"]
    with pytest.raises(AttributeError, match="not 'z'"):
        _ = trace["LSTM.0"].z


def test_feeds_that_do_not_fit() -> None:
    model, _ = small()
    with pytest.raises(le.InputError, match="'y' is not an input"):
        model.trace({"y": np.zeros(3)})
    with pytest.raises(le.InputError, match="expected size 3"):
        model.trace(np.zeros((4, 1, 5), np.float32))
    with pytest.raises(le.InputError, match="empty"):
        model.trace(np.zeros((0, 1, 3), np.float32))
    tokens = model_of(NetCase(vocabulary=5))
    with pytest.raises(le.InputError, match="index 5"):
        tokens.trace(np.array([[5]]))


def test_to_npz(tmp_path: Path) -> None:
    _, trace = small()
    trace.to_npz(tmp_path / "trace.npz")
    with np.load(tmp_path / "trace.npz") as arrays:
        assert np.array_equal(arrays["LSTM.2/c"], trace["LSTM.2"].c)
        assert np.array_equal(arrays["outputs/y"], trace.outputs["y"])
        assert np.array_equal(arrays["feeds/x"], trace.feeds["x"])


def layer_of(**parts: Any) -> LayerTrace:
    arrays = {name: np.asarray(values, np.float32).reshape(-1, 1, 1) for name, values in parts.items()}
    return LayerTrace("layer", "LSTM", arrays)


def test_statistics() -> None:
    layer = layer_of(f=[0.01, 0.99, 0.5, 0.5], i=[0, 0, 0, 0.5], g=[1] * 4, o=[1] * 4, c=[1, 2, 3, 1.5], h=[0.1] * 4)
    found = layer.statistics()
    assert found["shut.f"] == [0.25]
    assert found["open.f"] == [0.25]
    assert found["open.o"] == [1.0]
    assert found["mean.f"] == pytest.approx([0.5])
    assert found["memory"] == pytest.approx([1 / np.log(2)])
    assert found["dead"] == [True]
    assert found["range.c"] == [2.0]


def test_moments() -> None:
    layer = layer_of(f=[1, 0.5, 0, 1], i=[0, 0.5, 0.1, 0], g=[1, -1, 1, 1], o=[1] * 4, c=[4, 2, 1, 1], h=[0] * 4)
    assert [moment[0] for moment in layer.largest(2)] == [1, 2]
    assert layer.largest(1)[0][3] == pytest.approx(0.5)
    assert [moment[0] for moment in layer.largest(2, "forgotten")] == [1, 2]
    assert layer.largest(1, "forgotten")[0] == (1, 0, 0, 2.0)


def test_a_shipped_model() -> None:
    path = Path(__file__).resolve().parent.parent / "models" / "char" / "char.onnx"
    model = le.load(path)
    trace = model.trace(np.arange(40)[np.newaxis])  # its states begin as zeros
    assert trace.feeds["h0"].shape == (2, 1, 256)
    assert [(layer.op, layer.shape) for layer in trace.values()] == [("LSTM", (40, 1, 256))] * 2
