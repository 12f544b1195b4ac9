"""InferenceSession: a drop-in for onnxruntime's."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builders import make_lstm_model, make_tagger, rng

import lstm_engine as le

MODELS = {
    "lstm": make_lstm_model(initial_states=True),
    "lengths": make_lstm_model(sequence_lens=True),
    "float64": make_lstm_model(dtype=np.float64),
    "tagger": make_tagger(),
}


def feeds_of(session: Any) -> dict[str, np.ndarray]:
    """Random feeds by what the session says of its inputs, for 2 rows of 3 steps."""
    draw, sizes = rng(1), {"batch": 2, "time": 3}
    dtypes = {"float": np.float32, "double": np.float64, "int32": np.int32, "int64": np.int64}
    feeds = {}
    for arg in session.get_inputs():
        dtype = dtypes[arg.type.removeprefix("tensor(").removesuffix(")")]
        shape = [sizes.get(dim, dim) for dim in arg.shape]
        values = draw.normal(size=shape) if np.issubdtype(dtype, np.floating) else draw.integers(1, 4, shape)
        feeds[arg.name] = values.astype(dtype)
    return feeds


@pytest.mark.parametrize("name", MODELS)
def test_it_answers_as_onnxruntime_does(name: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    data = MODELS[name].SerializeToString()
    theirs = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    ours = le.InferenceSession(data, providers=["CPUExecutionProvider"])
    for kind in ("get_inputs", "get_outputs"):
        described = [[(arg.name, arg.type, arg.shape) for arg in getattr(s, kind)()] for s in (ours, theirs)]
        assert described[0] == described[1]
    feeds = feeds_of(theirs)
    if name == "float64":
        pytest.skip("onnxruntime has no LSTM in float64")
    for mine, other in zip(ours.run(None, feeds), theirs.run(None, feeds), strict=True):
        assert mine.dtype == other.dtype
        np.testing.assert_allclose(mine, other, rtol=0, atol=2e-6)


def test_outputs_come_in_the_order_asked_for() -> None:
    session = le.InferenceSession(MODELS["lstm"].SerializeToString())
    feeds = feeds_of(session)
    y, y_h, y_c = session.run(None, feeds)
    again = session.run(["Y_c", "Y"], feeds, None)
    np.testing.assert_array_equal(again[0], y_c)
    np.testing.assert_array_equal(again[1], y)
    assert [array.shape for array in session.run([], feeds)] == [y.shape, y_h.shape, y_c.shape]
    assert [array.shape for array in session.run(["Y", "Y"], feeds)] == [y.shape, y.shape]


def test_faults_are_input_errors() -> None:
    session = le.InferenceSession(MODELS["lstm"].SerializeToString())
    feeds = feeds_of(session)
    with pytest.raises(le.InputError, match="'Z' is not an output"):
        session.run(["Z"], feeds)
    with pytest.raises(le.InputError, match=r"'X.*is missing"):
        session.run(None, {name: value for name, value in feeds.items() if name != "X"})
    with pytest.raises(le.InputError, match="input_feed"):
        session.run(None, feeds["X"])  # type: ignore[arg-type]


def test_it_is_called_as_onnxruntime_is() -> None:
    data = MODELS["tagger"].SerializeToString()
    providers = [("CUDAExecutionProvider", {"device_id": 0}), "CPUExecutionProvider"]
    session = le.InferenceSession(data, sess_options=object(), providers=providers, provider_options=None)
    assert session.get_providers() == ["CPUExecutionProvider"]
    assert session.get_provider_options() == {"CPUExecutionProvider": {}}
    assert session.get_overridable_initializers() == []


def test_it_takes_paths_and_shows_metadata(tmp_path: Path) -> None:
    model = make_tagger()
    onnx.helper.set_model_props(model, {"author": "somebody"})
    path = tmp_path / "tagger.onnx"
    onnx.save(model, path)
    for source in (path, str(path)):
        meta = le.InferenceSession(source).get_modelmeta()
        assert meta.custom_metadata_map == {"author": "somebody"}
        assert meta.graph_name == "tagger.onnx"
    with pytest.raises(FileNotFoundError):
        le.InferenceSession(tmp_path / "none.onnx")


def test_optional_inputs_are_overridable(tmp_path: Path) -> None:
    draw = rng(2)
    shapes = {"weight_ih_l0": (8, 3), "weight_hh_l0": (8, 2), "bias_ih_l0": (8,), "bias_hh_l0": (8,)}
    path = tmp_path / "bare.npz"
    np.savez(path, **{name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()})
    session = le.InferenceSession(path)
    assert [arg.name for arg in session.get_inputs()] == ["input"]
    assert {arg.name for arg in session.get_overridable_initializers()} == {"h_0", "c_0"}
    assert session.run(["output"], {"input": np.zeros((4, 2, 3), np.float32)})[0].shape == (4, 2, 2)


def test_it_serves_many_threads() -> None:
    session = le.InferenceSession(MODELS["lstm"].SerializeToString())
    feeds = feeds_of(session)
    expected = session.run(None, feeds)
    with ThreadPoolExecutor(4) as pool:
        for results in pool.map(lambda _: session.run(None, feeds), range(40)):
            for got, want in zip(results, expected, strict=True):
                np.testing.assert_array_equal(got, want)
