"""npz files: PyTorch state_dicts, Keras weights, ONNX-named weights, and the engine's own format."""

from __future__ import annotations

import io
import json
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import builders
import numpy as np
import pytest

from lstm_engine import formats
from lstm_engine.errors import ModelFormatError, UnsupportedModelError
from lstm_engine.formats.npz import write_native
from lstm_engine.formats.onnx import read_onnx
from lstm_engine.graph import UNKNOWN_DTYPE, Graph, Node, TensorSpec
from lstm_engine.passes.modernise import modernise


def npz(compressed: bool = False, **arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(stream, **arrays)
    return stream.getvalue()


def draw(*shape: int, seed: int = 0, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def run(graph: Graph, **feeds: np.ndarray) -> list[np.ndarray]:
    """Outputs by onnxruntime; optional inputs that are left out are zeros."""
    sizes: dict[str, int] = {}
    for spec in graph.inputs:
        if spec.name in feeds:
            sizes.update({d: n for d, n in zip(spec.shape, feeds[spec.name].shape, strict=True) if isinstance(d, str)})
    for spec in graph.inputs:
        if spec.name not in feeds:
            assert spec.optional
            feeds[spec.name] = np.zeros([sizes.get(d, d) for d in spec.shape], spec.dtype)
    return list(builders.run_with_onnxruntime(graph, feeds).values())


# ---------------------------------------------------------------- PyTorch


def torch_module(kind: str = "LSTM", prefix: str = "", **options):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    module = getattr(torch.nn, kind)(3, 4, **options)
    return module, {f"{prefix}{key}": value.numpy() for key, value in module.state_dict().items()}


TORCH_OPTIONS = [
    {},
    {"num_layers": 3},
    {"bidirectional": True},
    {"num_layers": 2, "bidirectional": True},
    {"bias": False},
    {"num_layers": 2, "bidirectional": True, "bias": False},
]


@pytest.mark.torch
@pytest.mark.parametrize("batch_first", [None, False, True])
@pytest.mark.parametrize("options", TORCH_OPTIONS)
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_state_dict_is_the_module_pytorch_builds(kind, options, batch_first):
    torch = pytest.importorskip("torch")
    options = {**options, **({"nonlinearity": "relu"} if kind == "RNN" else {})}
    module, arrays = torch_module(kind, batch_first=bool(batch_first), **options)
    keywords = {"nonlinearity": "relu"} if kind == "RNN" else {}
    graph = formats.read(npz(**arrays), batch_first=batch_first, **keywords)
    rows = module.num_layers * (2 if module.bidirectional else 1)
    x, h, c = (
        draw(5, 2, 3),
        draw(rows, 5 if batch_first else 2, 4, seed=1),
        draw(rows, 5 if batch_first else 2, 4, seed=2),
    )
    for states in ({}, {"h_0": h, "c_0": c} if kind == "LSTM" else {"h_0": h}):
        given = tuple(torch.from_numpy(value) for value in states.values())
        with torch.no_grad():
            output, last = module(torch.from_numpy(x), given if kind == "LSTM" and given else (given or (None,))[0])
        expected = [output, *(last if kind == "LSTM" else [last])]
        got = run(graph, input=x, **states)
        assert [spec.name for spec in graph.outputs] == ["output", "h_n", "c_n"][: len(expected)]
        for value, wanted in zip(got, expected, strict=True):
            np.testing.assert_allclose(value, wanted.numpy(), atol=2e-6)


def test_state_dict_shapes_have_names():
    arrays = {"weight_ih_l0": draw(16, 3), "weight_hh_l0": draw(16, 4)}
    graph = formats.read(npz(**arrays))
    assert [str(spec) for spec in graph.inputs] == [
        "input: float32[time, batch, 3]",
        "h_0: float32[1, batch, 4]",
        "c_0: float32[1, batch, 4]",
    ]
    assert [spec.optional for spec in graph.inputs] == [False, True, True]
    assert formats.read(npz(**arrays), batch_first=True).inputs[0].shape == ("batch", "time", 3)


@pytest.mark.torch
def test_projection():
    _, arrays = torch_module(proj_size=2, num_layers=2, bidirectional=True)
    graph = formats.read(npz(**arrays))
    nodes = [node for node in graph.nodes if node.op == "LSTM"]
    assert [node.attributes["hidden_size"] for node in nodes] == [4, 4]
    for layer, node in enumerate(nodes):
        projection = graph.constants[node.input(8)]
        assert projection.shape == (2, 2, 4)
        np.testing.assert_array_equal(projection[1], arrays[f"weight_hr_l{layer}_reverse"])
        assert graph.constants[node.input(2)].shape == (2, 16, 2)
    assert {spec.name: spec.shape for spec in (*graph.inputs, *graph.outputs)} == {
        "input": ("time", "batch", 3),
        "h_0": (4, "batch", 2),
        "c_0": (4, "batch", 4),
        "output": ("time", "batch", 4),
        "h_n": (4, "batch", 2),
        "c_n": (4, "batch", 4),
    }


@pytest.mark.parametrize("prefix", ["lstm.", "encoder.rnn."])
def test_prefixes(prefix):
    arrays = {f"{prefix}weight_ih_l0": draw(16, 3), f"{prefix}weight_hh_l0": draw(16, 4), "fc.weight": draw(2, 4)}
    with pytest.raises(ModelFormatError, match=r"no layer claims 'fc\.weight'.*prefix="):
        formats.read(npz(**arrays))
    for given in (prefix, prefix.rstrip(".")):
        assert formats.read(npz(**arrays), prefix=given).nodes[0].name == f"{prefix}l0"
    with pytest.raises(ModelFormatError, match="no recurrent modules with the prefix 'decoder'"):
        formats.read(npz(**arrays), prefix="decoder")


def test_two_modules_need_a_prefix():
    arrays = {f"{p}.{kind}_l0": draw(16, 4) for p in ("encoder", "decoder") for kind in ("weight_ih", "weight_hh")}
    with pytest.raises(ModelFormatError, match=r"'encoder\.', 'decoder\.'; choose one with prefix="):
        formats.read(npz(**arrays))
    formats.read(npz(**arrays), prefix="decoder")


def test_prefix_still_reports_strangers_inside_the_module():
    arrays = {"a.weight_ih_l0": draw(16, 3), "a.weight_hh_l0": draw(16, 4), "a.extra": draw(2)}
    with pytest.raises(ModelFormatError, match=r"no layer claims 'a\.extra'"):
        formats.read(npz(**arrays), prefix="a")


def test_all_faults_of_a_state_dict_at_once():
    arrays = {
        "weight_ih_l0": draw(16, 3),
        "weight_hh_l0": draw(16, 4),
        "bias_ih_l0": draw(15),
        "weight_ih_l2": draw(16, 5),
        "weight_hh_l2": draw(12, 4),
    }
    with pytest.raises(ModelFormatError) as caught:
        formats.read(npz(**arrays))
    message = str(caught.value)
    assert "'bias_hh_l0' is missing, [16] expected" in message
    assert "'bias_ih_l0' has shape [15], [16] expected" in message
    assert "'weight_ih_l1' is missing, [16, 4] expected" in message
    assert "'weight_ih_l2' has shape [16, 5], [16, 4] expected" in message
    assert "'weight_hh_l2' has shape [12, 4], [16, 4] expected" in message


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"weight_ih_l0": (16, 3)}, "'weight_hh_l0' is missing"),
        ({"weight_ih_l1": (16, 3), "weight_hh_l1": (16, 4)}, "'weight_ih_l0' is missing"),
        ({"weight_ih_l0": (16, 3), "weight_hh_l0": (8, 4)}, r"an LSTM \[4H, H\] is expected"),
        ({"weight_ih_l0": (16,), "weight_hh_l0": (16, 4)}, "a matrix expected"),
        ({"weight_ih_l0": (0, 3), "weight_hh_l0": (0, 0)}, "a matrix expected"),
        ({"weight_ih_l0": (12, 3), "weight_hh_l0": (12, 2), "weight_hr_l0": (2, 4)}, "an LSTM"),
        ({"weight_ih_l0_reverse": (16, 3), "weight_hh_l0_reverse": (16, 4)}, "'weight_ih_l0' is missing"),
        (
            {"weight_ih_l0": (16, 3), "weight_hh_l0": (16, 4), "weight_ih_l0_reverse": (16, 3)},
            "'weight_hh_l0_reverse' is missing",
        ),
    ],
)
def test_incomplete_state_dicts(arrays, message):
    with pytest.raises(ModelFormatError, match=message):
        formats.read(npz(**{key: draw(*shape) for key, shape in arrays.items()}))


def test_rnn_needs_its_nonlinearity():
    arrays = {"weight_ih_l0": draw(4, 3), "weight_hh_l0": draw(4, 4)}
    with pytest.raises(ModelFormatError, match="nonlinearity="):
        formats.read(npz(**arrays))
    node = formats.read(npz(**arrays), nonlinearity="tanh").nodes[0]
    assert node.attributes["activations"] == ("Tanh",)
    with pytest.raises(TypeError, match="nonlinearity"):
        formats.read(npz(weight_ih_l0=draw(16, 3), weight_hh_l0=draw(16, 4)), nonlinearity="tanh")


def test_float_types():
    arrays = {"weight_ih_l0": draw(16, 3), "weight_hh_l0": draw(16, 4, dtype=np.float64)}
    graph = formats.read(npz(**arrays))
    assert graph.inputs[0].dtype == np.float64
    assert graph.constants["l0.W"].dtype == np.float64
    half = {key: value.astype(np.float16) for key, value in arrays.items()}
    assert formats.read(npz(**half)).inputs[0].dtype == np.float16
    with pytest.raises(ModelFormatError, match="'weight_ih_l0' is int64"):
        formats.read(npz(**{**arrays, "weight_ih_l0": np.ones((16, 3), np.int64)}))


# ---------------------------------------------------------------- ONNX's names


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize(("bias", "peephole"), [(True, False), (True, True), (False, False)])
def test_onnx_named_weights(directions, bias, peephole):
    weights = builders.random_weights(3, 4, directions, bias=bias, peephole=peephole)
    graph = formats.read(npz(**weights))
    direction = "bidirectional" if directions == 2 else "forward"
    model = builders.make_lstm_model(direction=direction, initial_states=True, weights=weights)
    x, h, c = draw(5, 2, 3), draw(directions, 2, 4, seed=1), draw(directions, 2, 4, seed=2)
    feeds = {"X": x, "initial_h": h, "initial_c": c}
    expected = builders.run_with_onnxruntime(read_onnx(model.SerializeToString()), feeds)
    for got, name in zip(run(graph, **feeds), ("Y", "Y_h", "Y_c"), strict=True):
        np.testing.assert_array_equal(got, expected[name])
    assert [spec.optional for spec in graph.inputs] == [False, True, True]
    prefixed = {f"enc/{key}": value for key, value in weights.items()}
    assert set(formats.read(npz(**prefixed, other=x), prefix="enc").constants) == set(prefixed)


def test_all_faults_of_onnx_named_weights():
    weights = {"W": draw(1, 16, 3), "R": draw(1, 16, 5), "B": draw(1, 30), "P": draw(2, 12)}
    with pytest.raises(ModelFormatError) as caught:
        formats.read(npz(**weights))
    for text in ("'W' has shape [1, 16, 3], [D, 4H, I]", "'R' has shape", "'B' has shape", "'P' has shape"):
        assert text in str(caught.value)
    with pytest.raises(ModelFormatError, match="3 directions"):
        formats.read(npz(W=draw(3, 16, 3), R=draw(3, 16, 4)))
    with pytest.raises(ModelFormatError, match="no layer claims 'extra'"):
        formats.read(npz(W=draw(1, 16, 3), R=draw(1, 16, 4), extra=draw(1)))


# ---------------------------------------------------------------- Keras


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


KERAS = {
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "relu": lambda x: np.maximum(x, 0),
    "linear": lambda x: x,
    "softsign": lambda x: x / (1 + abs(x)),
    "softplus": lambda x: np.log1p(np.exp(x)),
    "elu": lambda x: np.where(x > 0, x, np.exp(np.minimum(x, 0)) - 1),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.2 * x),
    "hard_sigmoid": lambda x: np.clip(x + 3, 0, 6) / 6,
    "hard_sigmoid_keras2": lambda x: np.clip(0.2 * x + 0.5, 0, 1),
}


def keras_lstm(x, kernel, recurrent, bias=0.0, activation="tanh", recurrent_activation="sigmoid", backwards=False):
    """Every step's output in the order of computation; x [B, T, I]."""
    hidden = recurrent.shape[0]
    h = c = np.zeros((len(x), hidden))
    outputs = []
    for step in range(x.shape[1])[:: -1 if backwards else 1]:
        i, f, g, o = np.split(x[:, step].astype(np.float64) @ kernel + h @ recurrent + bias, 4, axis=-1)
        gate, act = KERAS[recurrent_activation], KERAS[activation]
        c = gate(f) * c + gate(i) * act(g)
        h = gate(o) * act(c)
        outputs.append(h)
    return np.stack(outputs, 1)


def keras_weights(inputs=3, hidden=4, seed=0):
    return draw(inputs, 4 * hidden, seed=seed), draw(hidden, 4 * hidden, seed=seed + 1), draw(4 * hidden, seed=seed + 2)


@pytest.mark.parametrize(
    "names",
    [
        ("kernel", "recurrent_kernel", "bias"),
        ("lstm/kernel:0", "lstm/recurrent_kernel:0", "lstm/bias:0"),
        ("lstm/lstm_cell/kernel", "lstm/lstm_cell/recurrent_kernel", "lstm/lstm_cell/bias"),
        ("lstm_1/lstm_1/lstm_cell_4/kernel:0", "lstm_1/lstm_1/lstm_cell_4/recurrent_kernel:0", "lstm_1/lstm_1/lstm_cell_4/bias:0"),
        ("layers/lstm/cell/vars/0", "layers/lstm/cell/vars/1", "layers/lstm/cell/vars/2"),
    ],
)  # fmt: skip
def test_one_keras_lstm(names):
    weights = keras_weights()
    graph = formats.read(npz(**dict(zip(names, weights, strict=True))))
    x = draw(2, 5, 3)
    assert [str(spec) for spec in (*graph.inputs, *graph.outputs)] == [
        "input: float32[batch, time, 3]",
        "output: float32[batch, 4]",
    ]
    np.testing.assert_allclose(run(graph, input=x)[0], keras_lstm(x, *weights)[:, -1], atol=1e-5)


@pytest.mark.parametrize(
    "activation", ["tanh", "relu", "linear", "softsign", "softplus", "elu", "leaky_relu", "hard_sigmoid"]
)
@pytest.mark.parametrize("recurrent", ["sigmoid", "hard_sigmoid", "hard_sigmoid_keras2"])
@pytest.mark.parametrize("backwards", [False, True])
def test_keras_activations_and_directions(activation, recurrent, backwards):
    weights = [value * 0.3 for value in keras_weights()]
    names = ("kernel", "recurrent_kernel", "bias")
    x = draw(2, 5, 3)
    expected = keras_lstm(x, *weights, activation=activation, recurrent_activation=recurrent, backwards=backwards)
    for sequences in (True, False):
        entry = {"kind": "lstm", "activation": activation, "recurrent_activation": recurrent}
        entry |= {"return_sequences": sequences, "go_backwards": backwards}
        graph = formats.read(npz(**dict(zip(names, weights, strict=True))), layers=[entry])
        got = run(graph, input=x)[0]
        np.testing.assert_allclose(got, expected if sequences else expected[:, -1], atol=1e-5)


def keras_network() -> tuple[dict[str, np.ndarray], list[dict]]:
    forward, backward, second = keras_weights(5, 4, 1), keras_weights(5, 4, 10), keras_weights(8, 3, 20)
    arrays = {"layers/embedding/vars/0": draw(9, 5)}
    for index in range(3):
        arrays[f"layers/bidirectional/forward_layer/cell/vars/{index}"] = forward[index]
        arrays[f"layers/bidirectional/backward_layer/cell/vars/{index}"] = backward[index]
        arrays[f"layers/lstm/cell/vars/{index}"] = second[index]
    arrays |= {"layers/dense/vars/0": draw(3, 2, seed=5), "layers/dense/vars/1": draw(2, seed=6)}
    arrays["layers/lstm/cell/seed_generator/vars/0"] = np.zeros(2, np.uint32)
    layers = [
        {"name": "embedding", "kind": "embedding"},
        {"name": "bidirectional", "kind": "lstm", "bidirectional": True, "return_sequences": True},
        {"name": "lstm", "kind": "lstm"},
        {"name": "dense", "kind": "dense", "activation": "softmax"},
    ]
    return arrays, layers


def test_a_keras_network():
    arrays, layers = keras_network()
    graph = formats.read(npz(**arrays), layers=layers)
    assert [str(spec) for spec in (*graph.inputs, *graph.outputs)] == [
        "input: int32[batch, time]",
        "output: float32[batch, 2]",
    ]
    ids = np.array([[1, 2, 3, 8], [0, 5, 6, 7]], np.int32)
    x = arrays["layers/embedding/vars/0"][ids]
    sides = [
        [arrays[f"layers/bidirectional/{side}_layer/cell/vars/{index}"] for index in range(3)]
        for side in ("forward", "backward")
    ]
    x = np.concatenate([keras_lstm(x, *sides[0]), keras_lstm(x, *sides[1], backwards=True)[:, ::-1]], axis=-1)
    x = keras_lstm(x, *[arrays[f"layers/lstm/cell/vars/{index}"] for index in range(3)])[:, -1]
    logits = x @ arrays["layers/dense/vars/0"] + arrays["layers/dense/vars/1"]
    expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(run(graph, input=ids)[0], expected, atol=1e-5)


def test_bidirectional_last_step():
    forward, backward = keras_weights(3, 4, 1), keras_weights(3, 4, 10)
    names = ("kernel", "recurrent_kernel", "bias")
    arrays = {f"bi/forward_lstm/lstm_cell/{n}:0": v for n, v in zip(names, forward, strict=True)}
    arrays |= {f"bi/backward_lstm/lstm_cell/{n}:0": v for n, v in zip(names, backward, strict=True)}
    x = draw(2, 5, 3)
    expected = np.concatenate([keras_lstm(x, *forward)[:, -1], keras_lstm(x, *backward, backwards=True)[:, -1]], -1)
    np.testing.assert_allclose(run(formats.read(npz(**arrays)), input=x)[0], expected, atol=1e-5)


def test_keras_layers_are_asked_for_with_their_names():
    arrays, _ = keras_network()
    with pytest.raises(ModelFormatError, match=r"'layers/lstm'.*layers=\["):
        formats.read(npz(**arrays))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda layers: layers.pop(), "leaves out the layer 'layers/dense'"),
        (lambda layers: layers[3].update(name="nothing"), "no layer 'nothing'"),
        (lambda layers: layers[3].update(kind="conv"), "kind 'conv'"),
        (lambda layers: layers[2].update(units=3), "takes no units"),
        (lambda layers: layers.append(layers[2]), "twice"),
        (lambda layers: layers[1].update(return_sequences=False), "return_sequences=True"),
        (lambda layers: layers.insert(1, layers.pop(2)), "order of layers="),
        (lambda layers: layers[2].update(bidirectional=True), "lacks its backward kernel"),
        (lambda layers: layers[1].update(bidirectional=False), "is no variable of the lstm layer"),
        (lambda layers: layers[3].update(kind="lstm"), "lacks its|expected"),
    ],
)
def test_keras_layers_that_do_not_fit(change, message):
    arrays, layers = keras_network()
    change(layers)
    with pytest.raises(ModelFormatError, match=message):
        formats.read(npz(**arrays), layers=layers)


@pytest.mark.parametrize(
    ("index", "change"),
    [
        (2, {"activation": "mish"}),
        (1, {"merge_mode": "sum"}),
        (1, {"go_backwards": True}),
        (3, {"activation": "selu"}),
        (0, {"mask_zero": True}),
    ],
)
def test_keras_arguments_that_are_not_implemented(index, change):
    arrays, layers = keras_network()
    layers[index].update(change)
    with pytest.raises(UnsupportedModelError, match=next(iter(change))):
        formats.read(npz(**arrays), layers=layers)


def test_keras_shapes():
    with pytest.raises(ModelFormatError, match=r"'recurrent_kernel' has shape \[4, 12\], \[H, 4H\] expected"):
        formats.read(npz(kernel=draw(3, 16), recurrent_kernel=draw(4, 12)))
    with pytest.raises(ModelFormatError, match=r"'bias' has shape \[2, 16\], \[16\] expected"):
        formats.read(npz(kernel=draw(3, 16), recurrent_kernel=draw(4, 16), bias=draw(2, 16)))


# ---------------------------------------------------------------- which kind


def test_unknown_contents_list_the_keys():
    with pytest.raises(ModelFormatError, match=r"'foo', 'bar'.*weight_ih_l0"):
        formats.read(npz(foo=draw(2), bar=draw(2)))


@pytest.mark.parametrize("keyword", [{"layers": []}, {"nonlinearity": "tanh"}, {"batch_first": True}])
def test_keywords_without_meaning(keyword):
    with pytest.raises(TypeError, match=next(iter(keyword))):
        formats.read(npz(W=draw(1, 16, 3), R=draw(1, 16, 4)), **keyword)


@pytest.mark.torch
def test_torch_save_is_told_what_to_do(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "m.pt"
    torch.save(torch.nn.LSTM(2, 3).state_dict(), path)
    with pytest.raises(ModelFormatError, match=r"torch\.save file.*savez"):
        formats.read(path)


def test_compressed_fortran_and_big_endian_arrays():
    w, r = draw(16, 3), draw(16, 4)
    plain = formats.read(npz(weight_ih_l0=w, weight_hh_l0=r))
    odd = {"weight_ih_l0": np.asfortranarray(w).astype(">f4"), "weight_hh_l0": np.asfortranarray(r)}
    other = formats.read(npz(compressed=True, **odd))
    for name, value in plain.constants.items():
        np.testing.assert_array_equal(other.constants[name], value)
        assert other.constants[name].dtype == value.dtype


# ---------------------------------------------------------------- the native format


def assert_same(one: Graph, other: Graph) -> None:
    """Equal in every part, constants bit by bit."""
    for part in ("inputs", "outputs", "opset"):
        assert getattr(one, part) == getattr(other, part)
    assert dict(one.metadata) == dict(other.metadata)
    assert list(one.constants) == list(other.constants)
    for name, value in one.constants.items():
        assert_same_value(value, other.constants[name])
    assert len(one.nodes) == len(other.nodes)
    for mine, theirs in zip(one.nodes, other.nodes, strict=True):
        head = [getattr(mine, part) for part in ("op", "domain", "name", "inputs", "outputs")]
        assert head == [getattr(theirs, part) for part in ("op", "domain", "name", "inputs", "outputs")]
        assert list(mine.attributes) == list(theirs.attributes)
        for name, value in mine.attributes.items():
            assert_same_value(value, theirs.attributes[name])


def assert_same_value(one, other) -> None:
    assert type(one) is type(other)
    if isinstance(one, Graph):
        assert_same(one, other)
    elif isinstance(one, np.ndarray):
        assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
        assert not other.flags.writeable
    elif isinstance(one, tuple):
        for mine, theirs in zip(one, other, strict=True):
            assert_same_value(mine, theirs)
    else:
        assert repr(one) == repr(other)


def everything() -> Graph:
    """A graph with every kind of value the format has a place for."""
    body = Graph.build(
        [Node("Mul", ("x", "k"), ("inner",), {"table": np.arange(4, dtype=np.int8)})],
        [],
        [TensorSpec("inner", UNKNOWN_DTYPE, None)],
        {"k": np.array([-0.0, np.nan, 1e-45], np.float32)},
        21,
        origin="body",
        outer={"x"},
    )
    attributes = {
        "int": -(2**63),
        "float": 0.1,
        "whole": 2.0,
        "nan": float("nan"),
        "inf": (float("inf"), float("-inf")),
        "text": 'ä "quoted" \n',
        "empty": (),
        "mixed": (1, 2.5, "x", (1,)),
        "array": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "scalar": np.array(3, np.uint16),
        "body": body,
        "bodies": (body, body),
    }
    nodes = [
        Node("If", ("flag",), ("y",), attributes, "the node", "lstm_engine"),
        Node("LSTM", ("x", "W", "", "none"), ("", "z"), {}),
    ]
    return Graph.build(
        nodes,
        [
            TensorSpec("x", np.dtype(np.float32), ("batch", None, 3), optional=True),
            TensorSpec("flag", np.dtype(bool), ()),
        ],
        [TensorSpec("y", np.dtype(np.float64), None), TensorSpec("z", np.dtype(np.float16), (0, "T"))],
        {"W": draw(2, 3), "none": np.zeros((0, 5), np.int64)},
        21,
        {"vocabulary": '["a", "ß"]'},
        "/home/somebody/somewhere.onnx",
    )


def test_round_trip_of_every_kind_of_value(tmp_path):
    path = tmp_path / "m.npz"
    write_native(everything(), path)
    assert_same(everything(), formats.read(path))
    assert_same(everything(), formats.read(path.read_bytes()))
    assert formats.read(path).origin == "somewhere.onnx"


@pytest.mark.parametrize(
    "model",
    [
        builders.make_lstm_model(peephole=True, direction="bidirectional", sequence_lens=True),
        builders.make_tagger(),
        builders.make_stacked_like_pytorch(bidirectional=True, opset=9),
        builders.make_with_computed_weights(),
        builders.make_with_branches(),
    ],
)
def test_round_trip_of_networks(model, tmp_path):
    graph = read_onnx(model.SerializeToString())
    for step, version in enumerate((graph, modernise(graph))):
        path = tmp_path / f"{step}.npz"
        write_native(version, path)
        assert_same(version, formats.read(path))


def test_equal_graphs_give_equal_bytes(tmp_path):
    for name in "ab":
        write_native(everything(), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_numpy_can_open_it(tmp_path):
    write_native(everything(), tmp_path / "m.npz")
    with np.load(tmp_path / "m.npz", allow_pickle=False) as arrays:
        assert any(key.startswith("arrays/") for key in arrays)


def test_shared_constants_are_written_once(tmp_path):
    shared = draw(100, 100)
    constants = {"a": shared, "b": shared, "c": shared.T}
    node = Node("Concat", ("a", "b", "c"), ("y",), {"axis": 0})
    graph = Graph.build([node], [], [TensorSpec("y", shared.dtype, None)], constants, 21)
    write_native(graph, tmp_path / "m.npz")
    assert (tmp_path / "m.npz").stat().st_size < 2.5 * shared.nbytes
    assert_same(graph, formats.read(tmp_path / "m.npz"))


def test_loading_needs_no_onnx(tmp_path):
    write_native(everything(), tmp_path / "m.npz")
    code = (
        "import sys; from lstm_engine import formats; "
        f"formats.read({str(tmp_path / 'm.npz')!r}); assert not {{'onnx', 'google.protobuf'}} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_saving_is_all_or_nothing(tmp_path):
    path = tmp_path / "m.npz"
    write_native(everything(), path)
    before = path.read_bytes()
    bad = Graph.build(
        [Node("Odd", ("k",), ("y",), {"value": object()})],
        [],
        [TensorSpec("y", np.dtype("f4"), None)],
        {"k": draw(2)},
        21,
    )
    with pytest.raises(UnsupportedModelError, match="object"):
        write_native(bad, path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.npz"]
    with pytest.raises(OSError, match="no such folder"):
        write_native(everything(), tmp_path / "no such folder" / "m.npz")


def test_saving_while_writing_fails_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(np.lib.format, "write_array", fail)
    with pytest.raises(OSError, match="disk full"):
        write_native(everything(), tmp_path / "m.npz")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions and links")
def test_permissions_and_links(tmp_path):
    real, link = tmp_path / "real.npz", tmp_path / "link.npz"
    real.write_bytes(b"")
    link.symlink_to(real)
    write_native(everything(), link)
    assert link.is_symlink()
    assert_same(everything(), formats.read(real))
    assert stat.S_IMODE(real.stat().st_mode) & 0o400


def rewritten(path: Path, change) -> bytes:
    """The native file with ``change`` applied to its description."""
    stream = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(stream, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith(".json"):
                description = json.loads(data)
                changed = change(description)
                data = json.dumps(description if changed is None else changed).encode()
            new.writestr(name, data)
    return stream.getvalue()


def put(*path_and_value):
    *path, last, value = path_and_value

    def change(description):
        place = description
        for key in path:
            place = place[key]
        place[last] = value

    return change


LIES = [
    (put("version", 3), "version 3"),
    (put("version", True), "version True"),
    (put("format", "other"), "format"),
    (lambda d: d.pop("graph") and None, "lacks graph"),
    (lambda d: [], "an object expected"),
    (put("graph", "opset", "21"), r"graph\.opset"),
    (put("graph", "opset", 10**15), r"graph\.opset"),
    (put("graph", "inputs", {}), r"graph\.inputs: a list"),
    (put("graph", "inputs", 0, "dtype", "|O"), r"inputs\[0\]\.dtype"),
    (put("graph", "inputs", 0, "dtype", ["<f4"]), r"inputs\[0\]\.dtype"),
    (put("graph", "inputs", 0, "shape", [-1]), r"inputs\[0\]\.shape\[0\]"),
    (put("graph", "inputs", 0, "shape", [1.5]), r"inputs\[0\]\.shape\[0\]"),
    (put("graph", "inputs", 0, "name", ""), r"inputs\[0\]\.name"),
    (put("graph", "inputs", 0, "optional", 1), r"inputs\[0\]\.optional"),
    (put("graph", "nodes", 0, "op", 3), r"nodes\[0\]\.op"),
    (put("graph", "nodes", 0, "inputs", ["nothing"]), "reads 'nothing'"),
    (put("graph", "nodes", 0, "inputs", [1]), r"nodes\[0\]\.inputs\[0\]"),
    (put("graph", "nodes", 0, "outputs", ["z"]), "made twice"),
    (put("graph", "nodes", 0, "attributes", []), "attributes: an object"),
    (put("graph", "nodes", 0, "attributes", {"a": None}), r"attributes\.a"),
    (put("graph", "nodes", 0, "attributes", {"a": {"array": "arrays/99999"}}), "'arrays/99999' is not in the archive"),
    (put("graph", "nodes", 0, "attributes", {"a": {"float": "1e3"}}), r"attributes\.a"),
    (put("graph", "nodes", 0, "attributes", {"a": {"graph": {}}}), "lacks opset"),
    (put("graph", "constants", "W", "../../etc/passwd"), "not in the archive"),
    (put("graph", "constants", "W", 7), "constants"),
    (put("graph", "constants", "x", "arrays/00000"), "made twice"),
    (put("metadata", {"a": 1}), r"metadata\.a"),
    (put("origin", None), "origin"),
    (put("graph", "outputs", [{"name": "q", "dtype": "<f4", "shape": None, "optional": False}]), "produced by nothing"),
]


@pytest.mark.parametrize(("change", "message"), LIES)
def test_descriptions_that_lie(tmp_path, change, message):
    write_native(everything(), tmp_path / "m.npz")
    with pytest.raises(ModelFormatError, match=message):
        formats.read(rewritten(tmp_path / "m.npz", change))


def test_native_files_take_no_keywords(tmp_path):
    write_native(everything(), tmp_path / "m.npz")
    with pytest.raises(TypeError, match="prefix"):
        formats.read(tmp_path / "m.npz", prefix="lstm")


def test_a_loaded_file_saves_to_the_same_bytes(tmp_path):
    write_native(everything(), tmp_path / "a")
    write_native(formats.read(tmp_path / "a"), tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert b"somebody" not in (tmp_path / "a").read_bytes()


def test_a_cell_is_told_how_to_become_a_layer():
    with pytest.raises(ModelFormatError, match=r"'rnn\.weight_hh' belongs to a PyTorch cell; rename"):
        formats.read(npz(**{"rnn.weight_ih": draw(16, 3), "rnn.weight_hh": draw(16, 4)}))
