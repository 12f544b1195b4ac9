"""The definitions, held against onnxruntime, onnx's own evaluator and PyTorch."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import make_golden
import numpy as np
import onnx
import onnx.reference
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_cases import CASES, Case, f32, i64
from peers import PEER_IS_CURRENT, current_peer

from lstm_engine import reference
from lstm_engine.errors import InputError, ModelFormatError, UnsupportedModelError
from lstm_engine.graph import ENGINE_DOMAIN, Graph, Node, TensorSpec
from lstm_engine.reference.registry import SEQUENCES

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
DEFAULTS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}
OUTPUTS = {"LSTM": 3, "GRU": 2, "RNN": 2}


def single_node_model(node: Node, inputs: list[np.ndarray | None], opset: int) -> bytes:
    """The node as an ONNX file."""
    tensor = onnx.helper.np_dtype_to_tensor_dtype
    given_ = [(n, x) for n, x in zip(node.inputs, inputs, strict=True) if x is not None]
    attributes = {
        k: onnx.numpy_helper.from_array(v) if isinstance(v, np.ndarray) else v for k, v in node.attributes.items()
    }
    domain = "com.microsoft" if node.domain == ENGINE_DOMAIN else node.domain
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(node.op, node.inputs, node.outputs, domain=domain, **attributes)],
        "one",
        [onnx.helper.make_tensor_value_info(n, tensor(x.dtype), x.shape) for n, x in given_],
        [onnx.helper.make_empty_tensor_value_info(n) for n in node.outputs],
    )
    imports = [onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=10)
    return model.SerializeToString()


def feeds(node: Node, inputs: list[np.ndarray | None]) -> dict[str, np.ndarray]:
    return {n: x for n, x in zip(node.inputs, inputs, strict=True) if x is not None}


# --- recurrent layers against onnxruntime -----------------------------------------------------------------------------

SESSION_OPTIONS = onnxruntime.SessionOptions()
SESSION_OPTIONS.intra_op_num_threads = 1
SESSION_OPTIONS.log_severity_level = 4


def onnxruntime_outputs(node: Node, inputs: list[np.ndarray | None]) -> list[np.ndarray]:
    opset = {"Attention": 24, "RotaryEmbedding": 23, "TensorScatter": 24}.get(node.op, 21)
    model = onnx.load_from_string(single_node_model(node, inputs, opset))
    for output in model.graph.output:
        output.ClearField("type")
    model = onnx.shape_inference.infer_shapes(model)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), SESSION_OPTIONS, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds(node, inputs))


@st.composite
def activations(draw: st.DrawFn, op: str, D: int) -> dict[str, Any]:
    """Activations with as many alphas and betas as they take; ThresholdedRelu's default differs in onnxruntime."""
    names, alphas, betas = [], [], []
    needs = {
        "Affine": (1, 1),
        "LeakyRelu": (1, 0),
        "ThresholdedRelu": (1, 0),
        "ScaledTanh": (1, 1),
        "HardSigmoid": (1, 1),
        "Elu": (1, 0),
    }
    # the candidate and output functions of a GRU and an LSTM, and all of an RNN, may be any; unbounded gates explode
    for k in range(len(DEFAULTS[op]) * D):
        gate = op != "RNN" and k % len(DEFAULTS[op]) == 0
        name = draw(
            st.sampled_from(["Sigmoid", "HardSigmoid", "ScaledTanh"] if gate else sorted(reference.ACTIVATIONS))
        )
        alpha, beta = needs.get(name, (0, 0))
        alphas += [draw(st.floats(0.125, 0.875, width=16)) for _ in range(alpha)]
        betas += [draw(st.floats(0.125, 0.875, width=16)) for _ in range(beta)]
        names.append(draw(st.sampled_from([name] if op == "RNN" else [name, name.lower(), name.upper()])))
    given_ = {"activations": names, "activation_alpha": alphas, "activation_beta": betas}
    return {key: value for key, value in given_.items() if value}


@st.composite
def recurrent_cases(draw: st.DrawFn, op: str) -> tuple[Node, list[np.ndarray | None]]:
    """A recurrent node and its inputs, every option drawn."""
    T, B, size, H = (draw(st.integers(1, high)) for high in (6, 4, 5, 5))
    direction = draw(st.sampled_from(["forward", "reverse", "bidirectional"]))
    D, G = 1 + (direction == "bidirectional"), GATES[op]
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def normal(*shape: int) -> np.ndarray:
        return (0.7 * random.standard_normal(shape)).astype(np.float32)

    def maybe(value: np.ndarray) -> np.ndarray | None:
        return value if draw(st.booleans()) else None

    inputs: list[np.ndarray | None] = [normal(T, B, size), normal(D, G * H, size), normal(D, G * H, H)]
    inputs.append(maybe(normal(D, 2 * G * H)))
    inputs.append(maybe(random.integers(0, T + 1, B).astype(np.int32)))
    inputs.append(maybe(normal(D, B, H)))
    attributes: dict[str, Any] = {"direction": direction, "hidden_size": H}
    if op == "LSTM":
        inputs += [maybe(normal(D, B, H)), maybe(normal(D, 3 * H))]
        attributes["input_forget"] = draw(st.integers(0, 1))
    if op == "GRU":
        attributes["linear_before_reset"] = draw(st.integers(0, 1))
    if draw(st.booleans()):
        attributes["clip"] = draw(st.floats(0.125, 2, width=16))
    if draw(st.booleans()):
        attributes |= draw(activations(op, D))
    names = tuple("" if x is None else f"x{k}" for k, x in enumerate(inputs))
    return Node(op, names, ("Y", "Y_h", "Y_c")[: OUTPUTS[op]], attributes), inputs


def assert_like_onnxruntime(node: Node, inputs: list[np.ndarray | None]) -> None:
    expected = onnxruntime_outputs(node, inputs)
    doubles = [x.astype(np.float64) if x is not None and x.dtype == np.float32 else x for x in inputs]
    for dtype, given_ in ((np.float64, doubles), (np.float32, inputs)):
        got = reference.evaluate(node, given_)
        for name, ours, theirs in zip(node.outputs, got, expected, strict=True):
            assert ours.dtype == dtype
            np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-5, err_msg=f"{name} in {dtype}")


@settings(max_examples=150, deadline=None)
@given(recurrent_cases("LSTM"))
def test_lstm_is_onnxruntimes(case: tuple[Node, list[np.ndarray | None]]) -> None:
    assert_like_onnxruntime(*case)


@settings(max_examples=100, deadline=None)
@given(recurrent_cases("GRU"))
def test_gru_is_onnxruntimes(case: tuple[Node, list[np.ndarray | None]]) -> None:
    assert_like_onnxruntime(*case)


@current_peer
@settings(max_examples=60, deadline=None)
@given(recurrent_cases("RNN"))
def test_rnn_is_onnxruntimes(case: tuple[Node, list[np.ndarray | None]]) -> None:
    assert_like_onnxruntime(*case)


# --- what onnxruntime cannot say --------------------------------------------------------------------------------------


def recurrent_inputs(op: str = "LSTM", T: int = 5, B: int = 3, size: int = 4, H: int = 2, D: int = 1) -> list[Any]:
    """X, W, R, B, sequence_lens, initial_h and for an LSTM initial_c, P in float64."""
    random, G = np.random.default_rng(3), GATES[op]
    shapes = [(T, B, size), (D, G * H, size), (D, G * H, H), (D, 2 * G * H), (), (D, B, H), (D, B, H), (D, 3 * H)]
    inputs = [random.standard_normal(shape) if shape else None for shape in shapes]
    return inputs if op == "LSTM" else inputs[:6]


def node_of(op: str, **attributes: Any) -> Node:
    return Node(op, tuple("XWRBlhcp"[: 8 if op == "LSTM" else 6]), ("Y", "Y_h", "Y_c")[: OUTPUTS[op]], attributes)


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_layout_1_is_layout_0_transposed(op: str, direction: str) -> None:
    inputs = recurrent_inputs(op, D=1 + (direction == "bidirectional"))
    inputs[4] = np.array([5, 0, 2])
    expected = reference.evaluate(node_of(op, direction=direction), inputs)
    swapped = [x.swapaxes(0, 1) if k in (0, 5, 6) and x is not None else x for k, x in enumerate(inputs)]
    Y, *states = reference.evaluate(node_of(op, direction=direction, layout=1), swapped)
    np.testing.assert_array_equal(Y, expected[0].transpose(2, 0, 1, 3))
    for ours, theirs in zip(states, expected[1:], strict=True):
        np.testing.assert_array_equal(ours, theirs.swapaxes(0, 1))


def test_a_peephole_of_each_gate_is_where_onnx_puts_it() -> None:
    """P is i, o, f; with only one of them given a weight, only that gate changes."""
    inputs = recurrent_inputs(T=1, B=1, size=1, H=1)
    x, (W, R, b), h, c = inputs[0][0], inputs[1:4], inputs[5][0], inputs[6][0]
    pre = W[0] @ x.T + R[0] @ h.T + (b[0][:4] + b[0][4:])[:, None]
    i, o, f, g = pre[:, 0]

    def σ(v: float) -> float:
        return 1 / (1 + np.exp(-v))

    for p_i, p_o, p_f in np.eye(3):
        inputs[7] = np.array([[p_i, p_o, p_f]])
        _, Y_h, Y_c = reference.evaluate(node_of("LSTM"), inputs)
        c_t = σ(f + p_f * c[0, 0]) * c[0, 0] + σ(i + p_i * c[0, 0]) * np.tanh(g)
        np.testing.assert_allclose(Y_c.item(), c_t)
        np.testing.assert_allclose(Y_h.item(), σ(o + p_o * c_t) * np.tanh(c_t))


@pytest.mark.parametrize("op", GATES)
def test_reverse_turns_only_the_valid_part(op: str) -> None:
    inputs = recurrent_inputs(op)
    lengths = np.array([5, 2, 0])
    Y, *states = reference.evaluate(node_of(op, direction="reverse"), [*inputs[:4], lengths, *inputs[5:]])
    for b, length in enumerate(lengths):
        alone = [x[:, b : b + 1] if k in (0, 5, 6) and x is not None else x for k, x in enumerate(inputs)]
        alone[0] = alone[0][:length][::-1]
        expected, *last = reference.evaluate(node_of(op), alone)
        np.testing.assert_allclose(Y[:length, :, b : b + 1], expected[::-1])
        assert not Y[length:, :, b].any()
        for state, after in zip(states, last, strict=True):
            np.testing.assert_allclose(state[:, b : b + 1], after if length else 0)


@pytest.mark.parametrize("op", GATES)
def test_padding_never_leaks(op: str) -> None:
    inputs = recurrent_inputs(op, D=2)
    lengths = np.array([5, 2, 0])
    node = node_of(op, direction="bidirectional")
    clean = reference.evaluate(node, [*inputs[:4], lengths, *inputs[5:]])
    inputs[0][2:, 1], inputs[0][:, 2] = np.nan, np.inf
    dirty = reference.evaluate(node, [*inputs[:4], lengths, *inputs[5:]])
    for ours, theirs in zip(dirty, clean, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("op", GATES)
def test_no_steps_and_no_rows(op: str) -> None:
    inputs = recurrent_inputs(op, T=0)
    Y, *states = reference.evaluate(node_of(op), inputs)
    assert Y.shape == (0, 1, 3, 2)
    for state, initial in zip(states, inputs[5:7], strict=False):
        np.testing.assert_array_equal(state, initial)
    Y, *states = reference.evaluate(node_of(op), recurrent_inputs(op, B=0))
    assert Y.shape == (5, 1, 0, 2)
    assert all(state.shape == (1, 0, 2) for state in states)


def test_nan_in_is_nan_out_and_infinity_saturates() -> None:
    inputs = recurrent_inputs(T=2, B=2)
    inputs[0][0, 0] = np.nan
    Y, _, Y_c = reference.evaluate(node_of("LSTM"), inputs)
    assert np.isnan(Y[:, :, 0]).all()
    assert np.isfinite(Y[:, :, 1]).all()
    assert np.isfinite(Y_c[:, 1]).all()
    inputs[0][0, 0], inputs[1] = np.inf, np.ones_like(inputs[1])
    assert np.isfinite(reference.evaluate(node_of("LSTM"), inputs)[0]).all()


@pytest.mark.parametrize("lengths", [[6, 1, 1], [-1, 1, 1]])
def test_sequence_lens_out_of_range_are_refused(lengths: list[int]) -> None:
    inputs = recurrent_inputs()
    inputs[4] = np.array(lengths)
    with pytest.raises(InputError, match=r"LSTM 'Y': sequence_lens must lie in 0\.\.T = 0\.\.5"):
        reference.evaluate(node_of("LSTM"), inputs)


# --- attributes -------------------------------------------------------------------------------------------------------


def test_attributes_are_resolved_with_onnx_defaults() -> None:
    cell = reference.cell_attributes("LSTM", {"direction": "bidirectional"})
    default = tuple(reference.Activation(name) for name in ("Sigmoid", "Tanh", "Tanh"))
    assert cell == reference.CellAttributes(("forward", "reverse"), (default, default), None, False, 0)


def test_parameters_are_consumed_only_by_functions_that_take_them() -> None:
    names = ["Sigmoid", "leakyrelu", "HARDSIGMOID"]
    cell = reference.cell_attributes(
        "LSTM", {"activations": names, "activation_alpha": [0.3], "activation_beta": [0.7]}
    )
    assert [(a.name, a.alpha, a.beta) for a in cell.activations[0]] == [
        ("Sigmoid", None, None),
        ("LeakyRelu", 0.3, None),
        ("HardSigmoid", 0.2, 0.7),
    ]


@pytest.mark.parametrize(
    ("name", "alpha", "beta"),
    [("LeakyRelu", 0.01, None), ("ThresholdedRelu", 1.0, None), ("HardSigmoid", 0.2, 0.5), ("Elu", 1.0, None)],
)
def test_default_parameters_are_the_operators(name: str, alpha: float, beta: float | None) -> None:
    cell = reference.cell_attributes("RNN", {"activations": [name]})
    assert cell.activations[0][0] == reference.Activation(name, alpha, beta)


@pytest.mark.parametrize(
    ("attributes", "error", "message"),
    [
        ({"activations": ["Sigmoid", "Swish", "Tanh"]}, UnsupportedModelError, "activation 'Swish'"),
        ({"activations": ["Affine", "Tanh", "Tanh"]}, UnsupportedModelError, "activation_alpha"),
        (
            {"activations": ["Sigmoid", "ScaledTanh", "Tanh"], "activation_alpha": [1.0]},
            UnsupportedModelError,
            "explicit activation_beta",
        ),
        (
            {"activations": ["Sigmoid", "LeakyRelu", "Tanh"], "activation_alpha": [0.0, 0.3, 0.0]},
            UnsupportedModelError,
            "ambiguous",
        ),
        ({"activations": ["Sigmoid", "Tanh"]}, ModelFormatError, "3 x 1"),
        ({"direction": "bidirectional", "activations": ["Sigmoid", "Tanh", "Tanh"]}, ModelFormatError, "3 x 2"),
        ({"direction": "backward"}, ModelFormatError, "direction"),
        ({"layout": 2}, ModelFormatError, "layout"),
        ({"clip": 0.0}, ModelFormatError, "clip"),
    ],
)
def test_attributes_that_make_no_sense_are_refused(attributes: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        reference.cell_attributes("LSTM", attributes)
    assert message in reference.node_faults(node_of("LSTM", **attributes))[0]


# --- against PyTorch --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", make_golden.CASES)
def test_pytorch_layers(name: str) -> None:
    golden = make_golden.load(name)
    outputs = make_golden.run_layers(golden)
    for key in ("output", "h_n", "c_n"):
        if key in golden:
            np.testing.assert_allclose(outputs[key], golden[key], rtol=1e-12, atol=1e-14, err_msg=key)


@pytest.mark.torch
@pytest.mark.parametrize("name", make_golden.CASES)
def test_the_goldens_are_what_pytorch_says_now(name: str) -> None:
    pytest.importorskip("torch")
    golden, made = make_golden.load(name), make_golden.make(name)
    assert golden.keys() == made.keys()
    for key, value in made.items():
        if value.dtype == np.float64:
            np.testing.assert_allclose(golden[key], value, rtol=1e-12, atol=1e-14, err_msg=key)
        else:
            assert golden[key] == value


def test_the_goldens_are_small() -> None:
    assert sum(path.stat().st_size for path in Path(make_golden.FOLDER).glob("*.npz")) < 200_000


# --- the other operators against onnx's evaluator ---------------------------------------------------------------------


def onnx_outputs(node: Node, inputs: list[np.ndarray | None]) -> list[np.ndarray]:
    model = onnx.load_from_string(single_node_model(node, inputs, 24))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return onnx.reference.ReferenceEvaluator(model).run(None, feeds(node, inputs))


@pytest.mark.parametrize("case", [c for c in CASES if c.peer != "none"], ids=str)
def test_operator_is_onnxs(case: Case) -> None:
    if case.peer == "onnxruntime" and not PEER_IS_CURRENT:
        pytest.skip("onnxruntime is older than the answers held against it")
    expected = (onnxruntime_outputs if case.peer == "onnxruntime" else onnx_outputs)(case.node, case.inputs)
    got = reference.evaluate(case.node, case.inputs)
    for ours, theirs in zip(got, expected, strict=False):
        theirs = np.asarray(theirs)
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype
        reach = float(np.abs(theirs[np.isfinite(theirs)]).max(initial=1)) if theirs.dtype.kind == "f" else 1
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6 * reach)


def test_every_operator_has_a_case() -> None:
    assert {case.op for case in CASES} | set(GATES) | SEQUENCES == set(reference.OPERATORS)


OWN_TYPE = {"Cast", "CastLike", "EyeLike", "MelWeightMatrix", "HannWindow", "HammingWindow", "BlackmanWindow"}
DOUBLED = [
    case for case in CASES if case.inputs and case.op not in OWN_TYPE and not reference.OPERATORS[case.op].random
]


@pytest.mark.parametrize("case", DOUBLED, ids=str)
def test_double_stays_double(case: Case) -> None:
    inputs = [x.astype(np.float64) if x is not None and x.dtype == np.float32 else x for x in case.inputs]
    single, double = reference.evaluate(case.node, case.inputs), reference.evaluate(case.node, inputs)
    for a, b in zip(single, double, strict=True):
        assert b.dtype == (np.float64 if a.dtype == np.float32 and case.op != "ConstantOfShape" else a.dtype)
        if a.dtype == np.float32 and case.op != "Exp":  # which overflows elsewhere
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def one(op: str, *inputs: Any, **attributes: Any) -> np.ndarray:
    names = tuple(f"x{k}" for k in range(len(inputs)))
    return reference.evaluate(Node(op, names, ("y",), attributes), [np.asarray(x) for x in inputs])[0]


def test_softmax_before_opset_13_normalises_all_later_axes() -> None:
    x = f32(2, 3, 4)
    expected = one("Softmax", x.reshape(2, 12)).reshape(2, 3, 4)
    np.testing.assert_array_equal(one("Softmax", x, axis=1, flatten_from=1), expected)
    np.testing.assert_array_equal(
        one("LogSoftmax", x, flatten_from=-2), one("LogSoftmax", x.reshape(2, 12)).reshape(2, 3, 4)
    )


@pytest.mark.parametrize("op", ["RandomUniform", "RandomNormal"])
def test_draws_are_new_unless_seeded(op: str) -> None:
    def drawn(**seed: float) -> np.ndarray:
        return one(op, shape=(1000,), **seed)

    assert (drawn() != drawn()).any()
    np.testing.assert_array_equal(drawn(seed=3.0), drawn(seed=3.0))
    assert (drawn(seed=3.0) != drawn(seed=3.5)).any()


def test_draws_follow_their_distribution() -> None:
    classes = one("Multinomial", np.array([[0, -np.inf, np.log(3)]]), sample_size=4000, seed=1.0)[0]
    counts = np.bincount(classes, minlength=3)
    assert counts[1] == 0
    assert 800 < counts[0] < 1200
    assert 0.65 < one("Bernoulli", np.full(4000, 0.7), seed=1.0).mean() < 0.75
    x = one("RandomUniformLike", np.zeros(4000), low=2.0, high=4.0, seed=1.0)
    assert x.min() >= 2
    assert x.max() < 4
    assert 2.9 < x.mean() < 3.1
    x = one("RandomNormalLike", np.zeros(4000), mean=2.0, scale=0.5, seed=1.0)
    assert 1.95 < x.mean() < 2.05
    assert 0.45 < x.std() < 0.55


def test_the_mean_of_nothing_is_quietly_nan() -> None:
    assert np.isnan(one("ReduceMean", f32(0, 3), i64(0))).all()


def test_sequences() -> None:
    """Split, insert, erase, take and join; a position may count from the end."""
    a, b, c = f32(2), f32(2), f32(2)

    def run(op: str, *inputs: Any, **attributes: Any) -> Any:
        names = tuple("" if x is None else f"x{k}" for k, x in enumerate(inputs))
        return reference.evaluate(Node(op, names, ("y",), attributes), list(inputs))[0]

    built = run("SequenceInsert", run("SequenceInsert", run("SequenceEmpty"), a), c)
    built = run("SequenceInsert", built, b, np.array(-1))
    np.testing.assert_array_equal(run("ConcatFromSequence", built, axis=0), np.concatenate([a, b, c]))
    np.testing.assert_array_equal(run("ConcatFromSequence", built, axis=1, new_axis=1), np.stack([a, b, c], 1))
    assert run("SequenceAt", run("SequenceErase", built), np.array(-1)) is b
    assert run("SequenceAt", run("SequenceErase", built, np.array(0)), np.array(0)) is b
    assert run("SequenceLength", run("SequenceConstruct", a, b)) == 2
    x = f32(5, 2)
    for split, expected in [(None, [1] * 5), (np.array(2), [2, 2, 1]), (i64(1, 4), [1, 4])]:
        parts = run("SplitToSequence", x, split)
        assert [len(part) for part in parts] == expected
        np.testing.assert_array_equal(run("ConcatFromSequence", parts, axis=0), x)
    assert run("SplitToSequence", x, axis=1, keepdims=0)[1].shape == (5,)
    with pytest.raises(InputError, match="position 3 is outside a sequence of 3"):
        run("SequenceAt", built, np.array(3))
    with pytest.raises(ModelFormatError, match="expected a sequence, got a tensor"):
        run("SequenceAt", x, np.array(0))
    with pytest.raises(ModelFormatError, match="nothing to concatenate"):
        run("ConcatFromSequence", [], axis=0)
    with pytest.raises(ModelFormatError, match="a sequence of 3"):
        run("Neg", built)


# --- invariants -------------------------------------------------------------------------------------------------------

doubles = st.floats(allow_nan=True, allow_infinity=True)


@given(doubles)
def test_sigmoid_and_tanh(x: float) -> None:
    σ, tanh = one("Sigmoid", x), one("Tanh", x)
    if np.isnan(x):
        assert np.isnan(σ)
        assert np.isnan(tanh)
        return
    assert 0 <= σ <= 1
    assert abs(tanh) <= 1
    assert one("Tanh", -x) == -tanh
    np.testing.assert_allclose(one("Sigmoid", -x), 1 - σ, atol=1e-16)


@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=6))
def test_softmax_sums_to_one(x: list[float]) -> None:
    np.testing.assert_allclose(one("Softmax", x).sum(), 1)
    np.testing.assert_allclose(np.exp(one("LogSoftmax", x)), one("Softmax", x), atol=1e-15)


ELEMENTWISE = sorted(
    {c.op for c in CASES if len(c.inputs) == 1 and c.inputs[0].shape == (2, 3)}
    - {"Not", "Cast", "BitwiseNot"}
    - {name for name, known in reference.OPERATORS.items() if known.random}
)


@pytest.mark.parametrize(
    "op", [*ELEMENTWISE, "Neg", "Abs", "Exp", "Floor", "Round", "Sign", "Clip", "Softmax", "Identity"]
)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_nan_propagates_and_types_stay(op: str, dtype: type) -> None:
    x = np.array([np.nan, 1, np.inf, -np.inf], dtype)
    y = one(op, x)
    assert y.dtype == dtype
    assert np.isnan(y[0])


@pytest.mark.parametrize("name", reference.ACTIVATIONS)
def test_gate_activations_keep_types_and_nan(name: str) -> None:
    rule = reference.ACTIVATIONS[name]
    activation = reference.Activation(name, *(None if p is None else 0.5 for p in (rule.alpha, rule.beta)))
    for dtype in (np.float32, np.float64):
        y = activation(np.array([np.nan, 0.5, 1e30], dtype))
        assert y.dtype == dtype
        assert np.isnan(y[0])
        assert np.isfinite(y[1])


# --- what is refused --------------------------------------------------------------------------------------------------

F = TensorSpec("x", np.dtype(np.float32), ("T", "B", 4))


def graph_of(*nodes: Node, inputs: tuple[TensorSpec, ...] = (F,), constants: dict[str, Any] | None = None) -> Graph:
    last = TensorSpec(nodes[-1].outputs[0], np.dtype(np.float32), None)
    return Graph.build(nodes, inputs, [last], constants or {}, 21)


def test_unsupported_names_node_operator_and_attribute() -> None:
    graph = graph_of(
        Node("Relu", ("x",), ("a",), {"shiny": 1}, name="first"),
        Node("Frobnicate", ("a",), ("b",), name="second"),
        Node("Relu", ("b",), ("c",), domain="com.acme"),
        Node("Cast", ("c",), ("d",), {"to": 16}),
        Node("Relu", ("d", "d"), ("e",)),
        Node("Concat", ("e",), ("f",)),
        Node("Sigmoid", ("f",), ("g",), domain=ENGINE_DOMAIN),
    )
    assert reference.unsupported(graph) == [
        "Relu 'first': attribute shiny=1 is not implemented",
        "Frobnicate 'second': operator Frobnicate is not implemented",
        "Relu 'c': operator com.acme.Relu is not implemented",
        "Cast 'd': element type 16 is not one of " + ", ".join(map(str, reference.pointwise.DTYPES.values())),
        "Relu 'e': takes 1 to 1 inputs, got 2",
        "Concat 'f': attribute axis is missing",
    ]
    with pytest.raises(UnsupportedModelError, match="Frobnicate 'second'"):
        reference.evaluate(graph.nodes[1], [f32(1)])


def test_attributes_at_their_harmless_value_are_fine() -> None:
    assert not reference.node_faults(node_of("LSTM", output_sequence=1))
    assert not reference.node_faults(Node("BatchNormalization", tuple("xsbmv"), ("y",), {"spatial": 1}))
    assert reference.node_faults(Node("BatchNormalization", tuple("xsbmv"), ("y",), {"spatial": 0}))


@pytest.mark.parametrize("index", [4, -5])
@pytest.mark.parametrize("op", ["Gather", "GatherElements"])
def test_an_index_out_of_range_is_refused(op: str, index: int) -> None:
    with pytest.raises(InputError, match=rf"{op} 'y': index {index} is outside an axis of size 4"):
        one(op, f32(4), i64(index))


def test_training_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="training_mode"):
        one("Dropout", f32(3), np.float32(0.5), np.array(True))
    with pytest.raises(UnsupportedModelError, match="training_mode"):
        one("BatchNormalization", f32(2, 1), f32(1), f32(1), f32(1), f32(1), training_mode=1)


def test_inputs_that_do_not_fit_name_the_node() -> None:
    with pytest.raises(ModelFormatError, match=r"Add 'y': inputs float32\[2, 3\], float32\[4\] do not fit"):
        one("Add", f32(2, 3), f32(4))


# --- whole graphs -----------------------------------------------------------------------------------------------------


def lstm_graph() -> Graph:
    state = TensorSpec("h", np.dtype(np.float32), (1, "B", 2), optional=True)
    weights = {"W": f32(1, 8, 4), "R": f32(1, 8, 2)}
    nodes = [
        Node("Cast", ("x",), ("x32",), {"to": 1}),
        Node("LSTM", ("x32", "W", "R", "", "", "h", "h"), ("Y", "", "Y_c"), {"hidden_size": 2}),
        Node("Squeeze", ("Y", "one"), ("y",)),
    ]
    return graph_of(*nodes, inputs=(F, state), constants=weights | {"one": i64(1)})


def test_run_is_double_throughout_and_zeroes_optional_states() -> None:
    graph, x = lstm_graph(), f32(5, 3, 4)
    zeros = np.zeros((1, 3, 2))
    doubles = [v.astype(np.float64) for v in (x, graph.constants["W"], graph.constants["R"])]
    expected, _, c = reference.evaluate(node_of("LSTM"), [*doubles, None, None, zeros, zeros])
    got = reference.run(graph, {"x": x}, outputs=["y", "Y_c"])
    np.testing.assert_array_equal(got["y"], expected[:, 0])
    np.testing.assert_array_equal(got["Y_c"], c)
    assert reference.run(graph, {"x": x}, dtype=np.float32)["y"].dtype == np.float32


def test_feeds_are_checked_all_at_once() -> None:
    with pytest.raises(InputError, match="2 faults"):
        reference.run(lstm_graph(), {"z": f32(1)})
    with pytest.raises(InputError, match="no tensor w"):
        reference.run(lstm_graph(), {"x": f32(1, 1, 4)}, outputs=["w"])
