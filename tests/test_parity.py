"""Model.run against the float64 definition and onnxruntime: every LSTM option, whole networks, special values."""

from __future__ import annotations

import io
from dataclasses import replace
from functools import cache
from typing import Any

import cases
import numpy as np
import onnxruntime
import pytest
from cases import LAYERS, NETS, PARAMETERS, Case, Feeds, LayerCase, NetCase, examples, model_of, with_activations
from hypothesis import given
from hypothesis import strategies as st
from peers import PEER_IS_CURRENT

import lstm_engine as le
from lstm_engine import reference

#: h and c of an LSTM node; outputs of a whole network; both times max(1, range).
STATE, OUTPUT, F64 = 3e-6, 2e-6, 1e-12
#: onnxruntime's own gate activations are approximations with a larger error than the engine's.
PEER = 2e-5


def tolerance(expected: np.ndarray, element: str, float32: float = STATE) -> float:
    """Absolute tolerance, per unit of range."""
    finite = expected[np.isfinite(expected)]
    reach = max(1.0, float(np.abs(finite).max())) if finite.size else 1.0
    return (float32 if element == "float32" else F64) * reach


def doubled(feeds: Feeds) -> Feeds:
    return {name: x.astype(np.float64) if x.dtype.kind == "f" else x for name, x in feeds.items()}


def oracle(model: le.Model, feeds: Feeds) -> dict[str, np.ndarray]:
    return reference.run(model.graph, doubled(feeds))


def rounding(model: le.Model, feeds: Feeds, expected: Feeds) -> dict[str, float]:
    """How far the definition itself is off where it is computed in float32."""
    single = reference.run(model.graph, feeds, dtype=np.float32)
    return {name: float(np.abs(single[name] - expected[name]).max(initial=0)) for name in expected}


def assert_parity(model: le.Model, feeds: Feeds, amplifying: bool = False) -> dict[str, np.ndarray]:
    """Within the tolerance; an ``amplifying`` recurrence (unbounded activations) within ten times it and NumPy's error."""
    got, expected = model.run(feeds), oracle(model, feeds)
    inherent = rounding(model, feeds, expected) if amplifying else {}
    float32 = OUTPUT if "y" in got else STATE
    assert list(got) == [spec.name for spec in model.outputs]
    for name, x in got.items():
        assert x.dtype == model.element, name
        assert x.shape == expected[name].shape, name
        assert x.flags.c_contiguous
        assert x.flags.writeable
        limit = tolerance(expected[name], model.element, float32)
        limit = 10 * max(limit, inherent[name]) if amplifying else limit
        np.testing.assert_allclose(x, expected[name], rtol=0, atol=limit)
    return got


@cache
def session_of(case: Case) -> onnxruntime.InferenceSession | None:
    """onnxruntime's session; None where it refuses the model."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(case.model(), options, providers=["CPUExecutionProvider"])
    except Exception:
        return None


def assert_like_peer(case: Case, feeds: Feeds, got: dict[str, np.ndarray]) -> None:
    if case.dtype == "float64":
        return  # onnxruntime loads a float64 LSTM and then refuses to run it
    if getattr(case, "op", "LSTM") != "LSTM" and not PEER_IS_CURRENT:
        return
    session = session_of(case)
    if session is None:
        assert getattr(case, "layout", 0) == 1 or not getattr(case, "hidden_size", True)
        return
    for spec, x in zip(session.get_outputs(), session.run(None, feeds), strict=True):
        reach = max(1.0, float(np.abs(x).max())) if x.size else 1.0
        np.testing.assert_allclose(got[spec.name], x, rtol=0, atol=PEER * reach)


@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_a_recurrent_node(case: LayerCase) -> None:
    feeds = case.feeds()
    got = assert_parity(model_of(case), feeds)
    # onnxruntime gives ThresholdedRelu another default, and none of the others where an activation has no alpha
    if not case.activations or case.alphas or case.betas:
        assert_like_peer(case, feeds, got)


@pytest.mark.parametrize("case", NETS, ids=str)
def test_a_network(case: NetCase) -> None:
    feeds = case.feeds()
    assert_like_peer(case, feeds, assert_parity(model_of(case), feeds))


@pytest.mark.parametrize("case", cases.FEW, ids=str)
def test_one_model_serves_every_length_and_batch(case: Case) -> None:
    if getattr(case, "lengths", "") == "constant" or getattr(case, "states", "") in ("zeros", "constants"):
        pytest.skip("the file fixes the batch")
    model = model_of(case)
    for steps, batch in cases.SIZES:
        assert_parity(model, case.feeds(steps, steps, batch))


# --- drawn ------------------------------------------------------------------------------------------------------------


STATES = ["", "inputs", "h input", "c input", "zeros", "constants"]
OUTPUTS = [("Y", "Y_h"), ("Y",), ("", "Y_h"), ("", "", "Y_c"), ("Y", "Y_h", "Y_c")]


@st.composite
def layer_cases(draw: st.DrawFn) -> LayerCase:
    direction = draw(st.sampled_from(["forward", "reverse", "bidirectional"]))
    H = draw(st.integers(1, 20) | st.sampled_from(cases.WIDTHS))
    op = draw(st.sampled_from(["LSTM", "LSTM", "GRU", "RNN"]))
    lstm = op == "LSTM"
    # Weights are drawn from ±1/√H: with many more inputs than units, sums are far beyond what a trained network makes.
    inputs = min(draw(st.integers(1, 20) | st.sampled_from([31, 64, 65, 130])), 16 * H)
    case = LayerCase(
        op=op,
        linear_before_reset=draw(st.sampled_from([None, 0, 1])) if op == "GRU" else None,
        I=inputs,
        H=H,
        T=draw(st.integers(1, 8) | st.sampled_from([31, 32, 33, 65])),
        B=draw(st.sampled_from([1, 2, 3, 4, 5, 6, 7, 16])),
        direction=direction,
        layout=draw(st.integers(0, 1)),
        clip=draw(st.none() | st.floats(0.0625, 4, width=16)),
        input_forget=draw(st.sampled_from([None, 0, 1])) if lstm else None,
        bias=draw(st.booleans()),
        peephole=draw(st.booleans()) and lstm,
        lengths=draw(st.sampled_from(["", "", "input", "constant"])),
        states=draw(st.sampled_from(STATES if lstm else [s for s in STATES if s != "c input"])),
        hidden_size=draw(st.booleans()),
        outputs=draw(st.sampled_from(OUTPUTS if lstm else OUTPUTS[:3])),
        dtype=draw(st.sampled_from(["float32", "float32", "float64"])),
        seed=draw(st.integers(0, 1000)),
    )
    if draw(st.booleans()):
        names = []
        for _ in range(case.directions):
            names.append(draw(st.sampled_from(["Sigmoid", "HardSigmoid", "ScaledTanh", "Tanh", "Softsign"])))
            names += [draw(st.sampled_from(sorted(PARAMETERS))) for _ in range({"LSTM": 2, "GRU": 1, "RNN": 0}[op])]
        case = with_activations(case, *names)
    return case


@examples(250)
@given(case=layer_cases(), seed=st.integers(0, 1000))
def test_any_recurrent_node(case: LayerCase, seed: int) -> None:
    assert_parity(le.load(case.model()), case.feeds(seed), case.dtype == "float32" and bool(case.activations))


@st.composite
def net_cases(draw: st.DrawFn) -> NetCase:
    return NetCase(
        I=draw(st.integers(1, 18)),
        hidden=tuple(draw(st.lists(st.sampled_from(cases.WIDTHS), min_size=1, max_size=3))),
        vocabulary=draw(st.sampled_from([0, 0, 1, 2, 7, 50])),
        outputs=draw(st.integers(3, 20) | st.sampled_from([31, 33, 63, 64, 65, 100])),
        head=draw(st.sampled_from(sorted(cases.HEADS))),
        bidirectional=draw(st.booleans()),
        batch_first=draw(st.booleans()),
        states=draw(st.sampled_from(["", "inputs"])),
        peephole=draw(st.booleans()),
        clip=draw(st.sampled_from([None, None, 0.5])),
        dtype=draw(st.sampled_from(["float32", "float32", "float64"])),
        token_dtype=draw(st.sampled_from(["int64", "int32"])),
        T=draw(st.integers(1, 8) | st.sampled_from([32, 33])),
        B=draw(st.sampled_from([1, 2, 3, 4, 5, 6, 7, 16])),
        seed=draw(st.integers(0, 1000)),
    )


@examples(150)
@given(case=net_cases(), seed=st.integers(0, 1000))
def test_any_network(case: NetCase, seed: int) -> None:
    assert_parity(le.load(case.model()), case.feeds(seed))


@pytest.mark.nightly
@examples(3000)
@given(case=layer_cases() | net_cases(), seed=st.integers(0, 1000))
def test_any_model_at_length(case: Case, seed: int) -> None:
    assert_parity(le.load(case.model()), case.feeds(seed), case.dtype == "float32")


# --- bare weights -----------------------------------------------------------------------------------------------------


def state_dict(inputs: int, hidden: int, layers: int, both: bool, proj: int, dtype: str, bias: bool = True) -> Feeds:
    draw = np.random.default_rng(layers + 10 * hidden)
    made = {}
    for layer in range(layers):
        for suffix in ("", "_reverse") if both else ("",):
            width = inputs if layer == 0 else (proj or hidden) * (2 if both else 1)
            shapes = {"weight_ih": (4 * hidden, width), "weight_hh": (4 * hidden, proj or hidden)}
            shapes |= {"bias_ih": (4 * hidden,), "bias_hh": (4 * hidden,)} if bias else {}
            shapes |= {"weight_hr": (proj, hidden)} if proj else {}
            for name, shape in shapes.items():
                made[f"{name}_l{layer}{suffix}"] = draw.uniform(-1, 1, shape).astype(dtype) / np.sqrt(hidden)
    return {name: x.astype(dtype) for name, x in made.items()}


def as_npz(arrays: Feeds) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


STATE_DICTS = [
    (3, 4, 1, False, 0, "float32"),
    (3, 17, 2, True, 0, "float32"),
    (5, 16, 1, False, 7, "float32"),
    (5, 33, 2, False, 16, "float32"),
    (5, 20, 2, True, 3, "float32"),
    (5, 20, 2, True, 17, "float32"),
    (4, 9, 3, False, 0, "float64"),
    (4, 9, 2, True, 5, "float64"),
]


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(("inputs", "hidden", "layers", "both", "proj", "dtype"), STATE_DICTS)
def test_a_state_dict(
    inputs: int, hidden: int, layers: int, both: bool, proj: int, dtype: str, batch_first: bool
) -> None:
    arrays = state_dict(inputs, hidden, layers, both, proj, dtype)
    model = le.load(as_npz(arrays), batch_first=batch_first)
    draw = np.random.default_rng(1)
    directions = 2 if both else 1
    for steps, batch in ((1, 1), (6, 3), (37, 2)):
        x = draw.normal(size=(batch, steps, inputs) if batch_first else (steps, batch, inputs)).astype(dtype)
        h = draw.normal(size=(layers * directions, batch, proj or hidden)).astype(dtype)
        c = draw.normal(size=(layers * directions, batch, hidden)).astype(dtype)
        assert_parity(model, {"input": x, "h_0": h, "c_0": c})
        left_out = model.run(x)
        with_zeros = model.run({"input": x, "h_0": 0 * h, "c_0": 0 * c})
        cases.assert_same_bits(left_out, with_zeros)


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
@pytest.mark.parametrize(("inputs", "hidden", "layers", "both", "proj", "dtype"), STATE_DICTS)
def test_a_state_dict_is_what_pytorch_runs(
    inputs: int, hidden: int, layers: int, both: bool, proj: int, dtype: str
) -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.LSTM(inputs, hidden, layers, bidirectional=both, proj_size=proj, dtype=getattr(torch, dtype))
    arrays = {name: x.detach().numpy() for name, x in module.state_dict().items()}
    x = np.random.default_rng(2).normal(size=(7, 3, inputs)).astype(dtype)
    got = le.load(as_npz(arrays)).run(x)
    with torch.no_grad():
        y, (h, c) = module(torch.from_numpy(x))
    for name, expected in (("output", y), ("h_n", h), ("c_n", c)):
        np.testing.assert_allclose(got[name], expected.numpy(), rtol=0, atol=STATE if dtype == "float32" else F64)


# --- special values ---------------------------------------------------------------------------------------------------


def agree_on_specials(model: le.Model, feeds: Feeds) -> None:
    """NaN and infinities exactly where the definition has them, everything else within tolerance."""
    got, expected = model.run(feeds), oracle(model, feeds)
    for name, x in got.items():
        np.testing.assert_array_equal(np.isnan(x), np.isnan(expected[name]), err_msg=name)
        np.testing.assert_allclose(x, expected[name], rtol=1e-5, atol=tolerance(expected[name], model.element))


SPECIAL = [
    LayerCase(H=17, T=6, B=3),
    LayerCase(H=17, T=40, B=1, I=20),
    LayerCase(H=17, T=40, B=2, I=130),
    LayerCase(H=5, B=3, peephole=True, states="inputs"),
    LayerCase(H=5, B=3, clip=0.5),
    LayerCase(H=5, B=3, input_forget=1),
    LayerCase(H=5, B=3, direction="bidirectional", lengths="input"),
    LayerCase(H=5, B=3, dtype="float64"),
    with_activations(LayerCase(H=5, B=3), "HardSigmoid", "Softsign", "ScaledTanh"),
    NetCase(head="dense_softmax", B=3),
    NetCase(head="dense_log_softmax", B=3, outputs=17),
    NetCase(head="dense_relu", B=3),
    NetCase(head="dense_elu", B=3),
    NetCase(head="gates", B=3),
    NetCase(head="two_layers", B=3, hidden=(8, 9)),
    NetCase(head="last_gather", B=3),
]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("case", SPECIAL, ids=str)
def test_a_special_value_in_one_place(case: Case, value: float) -> None:
    """In one row at one step: what it spoils is what the definition says, no row beside it."""
    feeds = case.feeds()
    x = feeds["X" if isinstance(case, LayerCase) else "x"]
    x[(x.shape[0] - 1) // 2, x.shape[1] - 1, 1] = value
    agree_on_specials(model_of(case), feeds)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["h0", "c0"])
def test_a_special_value_in_the_state(name: str, value: float) -> None:
    case = LayerCase(H=17, states="inputs", B=3)
    feeds = case.feeds()
    feeds[name][0, 1, 5] = value
    agree_on_specials(model_of(case), feeds)


@pytest.mark.parametrize("scale", [1e-45, 1e-40, 1e-30, 1e4, 1e19, 1e30, 3e38])
@pytest.mark.parametrize(
    "case", [LayerCase(H=17, B=3), LayerCase(H=9, B=1, peephole=True), LayerCase(H=9, clip=2.0)], ids=str
)
def test_tiny_and_huge_inputs(case: LayerCase, scale: float) -> None:
    feeds = case.feeds()
    feeds["X"] = (np.sign(feeds["X"]) * scale).astype(np.float32)
    agree_on_specials(model_of(case), feeds)


def test_a_decaying_state_passes_through_the_denormals() -> None:
    """With a forget gate below one and no input, c dies away: what is left is tiny, never NaN."""
    case = LayerCase(I=1, H=16, states="inputs", B=1)
    model = model_of(case)
    feeds = {
        "X": np.zeros((3000, 1, 1), np.float32),
        **{k: np.full((1, 1, 16), 1e-36, np.float32) for k in ("h0", "c0")},
    }
    agree_on_specials(model, feeds)


# --- nothing to do ----------------------------------------------------------------------------------------------------

EMPTY = [
    LayerCase(states="inputs"),
    LayerCase(states="inputs", layout=1),
    LayerCase(states="inputs", direction="bidirectional"),
    LayerCase(peephole=True),
    LayerCase(dtype="float64", states="inputs"),
    NetCase(head="dense_softmax", states="inputs", hidden=(4, 5)),
    NetCase(vocabulary=9, batch_first=True),
]


@pytest.mark.parametrize(("steps", "batch"), [(0, 2), (3, 0), (0, 0)])
@pytest.mark.parametrize("case", EMPTY, ids=str)
def test_no_steps_or_no_rows(case: Case, steps: int, batch: int) -> None:
    model = model_of(case)
    feeds = case.feeds(steps=steps, batch=batch)
    got = model.run(feeds)
    expected = oracle(model, feeds)
    for name, x in got.items():
        assert x.dtype == model.element
        assert x.shape == expected[name].shape
        np.testing.assert_allclose(x, expected[name], rtol=0, atol=1e-6)
    if isinstance(case, LayerCase) and case.states == "inputs":
        np.testing.assert_array_equal(got["Y_h"], feeds["h0"])
        np.testing.assert_array_equal(got["Y_c"], feeds["c0"])


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_lengths_of_zero_and_what_lies_behind_a_row(direction: str) -> None:
    """Rows of every length, with NaN in the padding and in unused initial states."""
    case = LayerCase(H=17, T=6, B=7, direction=direction, lengths="input", states="inputs")
    feeds = case.feeds()
    feeds["lengths"] = np.arange(7, dtype=np.int32)
    for b, length in enumerate(feeds["lengths"]):
        feeds["X"][length:, b] = np.nan
    got = assert_parity(model_of(case), feeds)
    assert not got["Y_h"][:, 0].any()
    assert not got["Y_c"][:, 0].any()
    for b, length in enumerate(feeds["lengths"]):
        assert not got["Y"][length:, :, b].any()


@pytest.mark.parametrize("lengths", [[-1, 2], [2, 7]])
def test_lengths_out_of_range_are_refused(lengths: list[int]) -> None:
    case = LayerCase(T=6, lengths="input")
    feeds = {**case.feeds(), "lengths": np.array(lengths, np.int32)}
    with pytest.raises(le.InputError):
        model_of(case).run(feeds)
    assert_parity(model_of(case), case.feeds())


def test_wanted_outputs_alone() -> None:
    case = LayerCase(states="inputs")
    everything = model_of(case).run(case.feeds())
    some: Any = model_of(case).run(case.feeds(), outputs=["Y_c", "Y"])
    assert list(some) == ["Y_c", "Y"]
    cases.assert_same_bits(some, {name: everything[name] for name in some})


def test_one_weight_set_at_trained_scale_over_a_thousand_steps() -> None:
    """Rounding errors of a contracting recurrence do not add up."""
    for case in (LayerCase(I=8, H=64, T=1000, B=1), replace(LayerCase(), I=8, H=32, T=1000, B=3, peephole=True)):
        assert_parity(model_of(case), case.feeds())
