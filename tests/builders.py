"""Small ONNX models for tests, written as exporters write them, and back from Graph to ONNX for onnxruntime."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from lstm_engine.graph import UNKNOWN_DTYPE, Graph, TensorSpec

Info = tuple[str, Any, Sequence[int | str | None] | None]


def make_model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Iterable[Info],
    outputs: Iterable[Info],
    initialisers: Mapping[str, np.ndarray] | None = None,
    opset: int = 17,
    domains: Mapping[str, int] | None = None,
    metadata: Mapping[str, str] | None = None,
    functions: Sequence[onnx.FunctionProto] = (),
    inputs_too: bool = False,
) -> onnx.ModelProto:
    """A model; inputs and outputs are (name, dtype, shape). ``inputs_too``: initialisers are also graph inputs."""
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in (initialisers or {}).items()]
    infos = [value_info(*info) for info in inputs]
    if inputs_too:
        infos += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in tensors]
    graph = helper.make_graph(list(nodes), "graph", infos, [value_info(*info) for info in outputs], tensors)
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, v) for d, v in (domains or {}).items())]
    model = helper.make_model(graph, opset_imports=imports, ir_version=8, functions=list(functions))
    if metadata:
        helper.set_model_props(model, dict(metadata))
    return model


def value_info(name: str, dtype: Any, shape: Sequence[int | str | None] | None) -> onnx.ValueInfoProto:
    kind = dtype if isinstance(dtype, int) else helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return helper.make_tensor_value_info(name, kind, shape)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def random_weights(
    inputs: int,
    hidden: int,
    directions: int = 1,
    *,
    bias: bool = True,
    peephole: bool = False,
    gates: int = 4,
    seed: int = 0,
    dtype: Any = np.float32,
) -> dict[str, np.ndarray]:
    """W, R and, where asked for, B and P of a recurrent layer in ONNX's shapes."""
    draw = rng(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "W": (directions, gates * hidden, inputs),
        "R": (directions, gates * hidden, hidden),
    }
    if bias:
        shapes["B"] = (directions, 2 * gates * hidden)
    if peephole:
        shapes["P"] = (directions, 3 * hidden)
    scale = 1 / np.sqrt(hidden)
    return {name: draw.uniform(-scale, scale, shape).astype(dtype) for name, shape in shapes.items()}


def make_lstm_model(
    inputs: int = 3,
    hidden: int = 4,
    *,
    direction: str = "forward",
    bias: bool = True,
    peephole: bool = False,
    sequence_lens: bool = False,
    initial_states: bool = False,
    layout: int = 0,
    outputs: Sequence[str] = ("Y", "Y_h", "Y_c"),
    opset: int = 17,
    seed: int = 0,
    dtype: Any = np.float32,
    weights: Mapping[str, np.ndarray] | None = None,
    **attributes: Any,
) -> onnx.ModelProto:
    """One LSTM node: X [T, B, I] → Y, Y_h, Y_c; ``attributes`` go to the node as they are."""
    directions = 2 if direction == "bidirectional" else 1
    if weights is None:
        weights = random_weights(inputs, hidden, directions, bias=bias, peephole=peephole, seed=seed, dtype=dtype)
    optional = {
        "B": "B" if "B" in weights else "",
        "sequence_lens": "sequence_lens" if sequence_lens else "",
        "initial_h": "initial_h" if initial_states else "",
        "initial_c": "initial_c" if initial_states else "",
        "P": "P" if "P" in weights else "",
    }
    attributes = {"hidden_size": hidden, "direction": direction, **({"layout": layout} if layout else {}), **attributes}
    node = helper.make_node("LSTM", ["X", "W", "R", *optional.values()], list(outputs), name="lstm", **attributes)
    state = ["batch", directions, hidden] if layout else [directions, "batch", hidden]
    ports: list[Info] = [("X", dtype, ["batch", "time", inputs] if layout else ["time", "batch", inputs])]
    if sequence_lens:
        ports.append(("sequence_lens", np.int32, ["batch"]))
    if initial_states:
        ports += [("initial_h", dtype, state), ("initial_c", dtype, state)]
    y = ["batch", "time", directions, hidden] if layout else ["time", directions, "batch", hidden]
    shapes = {"Y": y, "Y_h": state, "Y_c": state}
    return make_model([node], ports, [(name, dtype, shapes[name]) for name in outputs if name], weights, opset)


def make_tagger(
    vocabulary: int = 11, embedding: int = 5, hidden: int = 6, classes: int = 4, *, opset: int = 17, seed: int = 0
) -> onnx.ModelProto:
    """Token ids [T, B] → Embedding → LSTM → Gemm → Softmax: class probabilities of each row after the last step."""
    draw = rng(seed)
    constants = {
        "table": draw.normal(size=(vocabulary, embedding)).astype(np.float32),
        **random_weights(embedding, hidden, seed=seed + 1),
        "head.weight": draw.normal(size=(classes, hidden)).astype(np.float32),
        "head.bias": draw.normal(size=classes).astype(np.float32),
        "axis0": np.array([0]),
    }
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"], axis=0),
        helper.make_node("LSTM", ["x", "W", "R", "B"], ["", "Y_h"], hidden_size=hidden),
        _squeeze("Y_h", "last", 0, opset, "axis0"),
        helper.make_node("Gemm", ["last", "head.weight", "head.bias"], ["logits"], transB=1),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
    ]
    if opset < 13:
        del constants["axis0"]
    outputs = [("probabilities", np.float32, ["batch", classes])]
    return make_model(nodes, [("ids", np.int64, ["time", "batch"])], outputs, constants, opset)


def _squeeze(x: str, output: str, axis: int, opset: int, axes_name: str) -> onnx.NodeProto:
    if opset < 13:
        return helper.make_node("Squeeze", [x], [output], axes=[axis])
    return helper.make_node("Squeeze", [x, axes_name], [output])


def make_stacked_like_pytorch(
    inputs: int = 3,
    hidden: int = 4,
    layers: int = 2,
    *,
    bidirectional: bool = False,
    batch_first: bool = False,
    opset: int = 17,
    states: str = "zeros",
    seed: int = 0,
) -> onnx.ModelProto:
    """nn.LSTM as PyTorch's tracing exporter writes it.

    Constants are nodes; the states are computed zeros, or graph inputs that are sliced per layer
    (``states="inputs"``); the direction axis goes by Squeeze or by Transpose and Reshape.
    """
    directions = 2 if bidirectional else 1
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, np.ndarray] = {}
    counter = iter(range(10**6))

    def add(op: str, names: Sequence[str], count: int = 1, **attributes: Any) -> list[str]:
        outputs = [f"/{op}_{next(counter)}_output_{index}" for index in range(count)]
        nodes.append(
            helper.make_node(op, list(names), outputs, name=outputs[0].removesuffix("_output_0"), **attributes)
        )
        return outputs

    def constant(value: Any) -> str:
        return add("Constant", [], value=numpy_helper.from_array(np.asarray(value)))[0]

    def unsqueeze(name: str) -> str:
        return (add("Unsqueeze", [name], axes=[0]) if opset < 13 else add("Unsqueeze", [name, constant([0])]))[0]

    def sliced(name: str, begin: int, end: int) -> str:
        if opset < 10:
            return add("Slice", [name], axes=[0], starts=[begin], ends=[end])[0]
        return add("Slice", [name, constant([begin]), constant([end]), constant([0])])[0]

    def zeros() -> str:
        batch = add("Gather", [add("Shape", ["input"])[0], constant(0 if batch_first else 1)], axis=0)[0]
        parts = [unsqueeze(name) for name in (constant(layers * directions), batch, constant(hidden))]
        shape = add("Concat", parts, axis=0)[0]
        return add("ConstantOfShape", [shape], value=numpy_helper.from_array(np.zeros(1, np.float32)))[0]

    whole = {state: f"{state}_0" if states == "inputs" else zeros() for state in "hc"}
    x = add("Transpose", ["input"], perm=[1, 0, 2])[0] if batch_first else "input"
    last: dict[str, list[str]] = {"h": [], "c": []}
    for layer in range(layers):
        width = inputs if layer == 0 else directions * hidden
        weights = random_weights(width, hidden, directions, seed=seed + layer)
        constants.update({f"onnx::LSTM_{100 * layer + i}": value for i, value in enumerate(weights.values())})
        part = {
            state: whole[state] if layers == 1 else sliced(whole[state], layer * directions, (layer + 1) * directions)
            for state in "hc"
        }
        names = [x, *(f"onnx::LSTM_{100 * layer + i}" for i in range(3)), "", part["h"], part["c"]]
        extra = {"direction": "bidirectional"} if bidirectional else {}
        y, y_h, y_c = add("LSTM", names, 3, hidden_size=hidden, **extra)
        last["h"].append(y_h)
        last["c"].append(y_c)
        if bidirectional:
            x = add("Reshape", [add("Transpose", [y], perm=[0, 2, 1, 3])[0], constant([0, 0, -1])])[0]
        else:
            x = (add("Squeeze", [y], axes=[1]) if opset < 13 else add("Squeeze", [y, constant([1])]))[0]
    if batch_first:
        x = add("Transpose", [x], perm=[1, 0, 2])[0]
    for source, output in ((x, "output"), (last["h"], "h_n"), (last["c"], "c_n")):
        if isinstance(source, list):
            nodes.append(helper.make_node("Concat", source, [output], axis=0))
        else:
            nodes.append(helper.make_node("Identity", [source], [output]))
    head = ["batch", "time"] if batch_first else ["time", "batch"]
    state = [layers * directions, "batch", hidden]
    ports: list[Info] = [("input", np.float32, [*head, inputs])]
    if states == "inputs":
        ports += [("h_0", np.float32, state), ("c_0", np.float32, state)]
    results: list[Info] = [("output", np.float32, [*head, directions * hidden])]
    results += [("h_n", np.float32, state), ("c_n", np.float32, state)]
    return make_model(nodes, ports, results, constants, opset)


def make_with_computed_weights(inputs: int = 3, hidden: int = 4, *, opset: int = 17, seed: int = 0) -> onnx.ModelProto:
    """An LSTM whose W, R and B are reordered in the graph from PyTorch's tensors (Slice, Concat, Unsqueeze)."""
    draw = rng(seed)
    constants = {
        "weight_ih_l0": draw.normal(size=(4 * hidden, inputs)).astype(np.float32),
        "weight_hh_l0": draw.normal(size=(4 * hidden, hidden)).astype(np.float32),
        "bias_ih_l0": draw.normal(size=4 * hidden).astype(np.float32),
        "bias_hh_l0": draw.normal(size=4 * hidden).astype(np.float32),
    }
    nodes = []

    def numbers(name: str, values: list[int]) -> str:
        constants[name] = np.array(values, np.int64)
        return name

    def reordered(name: str) -> str:
        parts = []
        for gate in (0, 3, 1, 2):
            output, bounds = f"{name}.{gate}", [gate * hidden, (gate + 1) * hidden]
            if opset < 10:
                nodes.append(helper.make_node("Slice", [name], [output], axes=[0], starts=bounds[:1], ends=bounds[1:]))
            else:
                given = [
                    numbers(f"{output}.{k}", [v]) for k, v in zip(("start", "end", "axis"), (*bounds, 0), strict=True)
                ]
                nodes.append(helper.make_node("Slice", [name, *given], [output]))
            parts.append(output)
        nodes.append(helper.make_node("Concat", parts, [f"{name}.iofc"], axis=0))
        return f"{name}.iofc"

    def unsqueezed(name: str, output: str) -> str:
        if opset < 13:
            nodes.append(helper.make_node("Unsqueeze", [name], [output], axes=[0]))
        else:
            nodes.append(helper.make_node("Unsqueeze", [name, numbers(f"{output}.axes", [0])], [output]))
        return output

    w, r = unsqueezed(reordered("weight_ih_l0"), "W"), unsqueezed(reordered("weight_hh_l0"), "R")
    nodes.append(helper.make_node("Concat", [reordered("bias_ih_l0"), reordered("bias_hh_l0")], ["bias"], axis=0))
    b = unsqueezed("bias", "B")
    nodes.append(helper.make_node("LSTM", ["X", w, r, b], ["Y"], hidden_size=hidden))
    outputs = [("Y", np.float32, ["time", 1, "batch", hidden])]
    return make_model(nodes, [("X", np.float32, ["time", "batch", inputs])], outputs, constants, opset)


def make_with_branches(hidden: int = 4, *, opset: int = 17) -> onnx.ModelProto:
    """If(flag): doubled or negated X through an LSTM; both bodies capture outer tensors through Identity."""
    weights = random_weights(3, hidden)

    def body(name: str, factor: float) -> onnx.GraphProto:
        nodes = [
            helper.make_node("Identity", ["copy"], [f"{name}.x"]),
            helper.make_node("Constant", [], [f"{name}.factor"], value_float=factor),
            helper.make_node("Mul", [f"{name}.x", f"{name}.factor"], [f"{name}.scaled"]),
            helper.make_node("LSTM", [f"{name}.scaled", "W", "R", "B"], [f"{name}.Y"], hidden_size=hidden),
        ]
        return helper.make_graph(nodes, name, [], [value_info(f"{name}.Y", np.float32, None)])

    nodes = [
        helper.make_node("Identity", ["X"], ["copy"]),
        helper.make_node("If", ["flag"], ["Y"], then_branch=body("then", 2.0), else_branch=body("else", -1.0)),
    ]
    inputs: list[Info] = [("X", np.float32, ["time", "batch", 3]), ("flag", np.bool_, [])]
    return make_model(nodes, inputs, [("Y", np.float32, ["time", 1, "batch", hidden])], weights, opset)


def save_with_external_data(
    model: onnx.ModelProto, path: Path, location: str = "weights.bin", *, alignment: int = 1, length: bool = True
) -> None:
    """Write ``model`` to ``path`` with all initialisers in the one file ``location`` beside it."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    data = bytearray()
    for tensor in model.graph.initializer:
        data.extend(bytes(-len(data) % alignment))
        raw = numpy_helper.to_array(tensor).tobytes()
        make_external(tensor, location, len(data), len(raw) if length else None)
        data.extend(raw)
    target = path.parent / location
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(bytes(data))
    path.write_bytes(model.SerializeToString())


def make_external(
    tensor: onnx.TensorProto, location: str, offset: int | str | None = None, length: int | str | None = None
) -> None:
    """Turn ``tensor`` into one whose values are elsewhere."""
    for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "external_data"):
        tensor.ClearField(field)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))


# ---------------------------------------------------------------- Graph → ONNX, for an independent engine to run


def to_onnx(graph: Graph) -> onnx.ModelProto:
    """``graph`` as an ONNX model (of standard operators only)."""
    opsets = [helper.make_opsetid("", graph.opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(_graph_proto(graph, "graph"), opset_imports=opsets, ir_version=10)


def run_with_onnxruntime(graph: Graph, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs of ``graph`` by onnxruntime, unoptimised; optional inputs left out are zeros."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    model = to_onnx(graph).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [spec.name for spec in graph.outputs]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def _graph_proto(graph: Graph, name: str) -> onnx.GraphProto:
    nodes = [
        helper.make_node(
            node.op,
            list(node.inputs),
            list(node.outputs),
            name=node.name,
            domain=node.domain,
            **{k: _attribute_proto(v, k) for k, v in node.attributes.items()},
        )
        for node in graph.nodes
    ]
    tensors = [numpy_helper.from_array(np.asarray(value), key) for key, value in graph.constants.items()]
    inputs, outputs = [_info(spec) for spec in graph.inputs], [_info(spec) for spec in graph.outputs]
    return helper.make_graph(nodes, name, inputs, outputs, tensors)


def _info(spec: TensorSpec) -> onnx.ValueInfoProto:
    if spec.dtype == UNKNOWN_DTYPE:
        return onnx.ValueInfoProto(name=spec.name)
    return value_info(spec.name, spec.dtype, spec.shape)


def _attribute_proto(value: Any, name: str) -> Any:
    if isinstance(value, np.ndarray):
        return numpy_helper.from_array(value)
    if isinstance(value, Graph):
        return _graph_proto(value, name)
    return list(value) if isinstance(value, tuple) else value


CHAR = Path(__file__).resolve().parents[1] / "models" / "char" / "char.onnx"
LETTERS = ["<unk>", "<end>", *"abcdefgh \n"]
TEXT = {"vocabulary": json.dumps(LETTERS), "unit": "character", "unknown": "<unk>", "boundary": "<end>"}


def token_model(
    final: str = "",
    metadata: Mapping[str, str] = TEXT,
    tokens: int = len(LETTERS),
    scale: float = 3.0,
    hidden: int = 8,
) -> bytes:
    """Token ids [T, B] → embedding → LSTM → one score a token, through ``final``."""
    draw = rng(7)
    constants = {
        "table": draw.normal(size=(tokens, 5)).astype(np.float32),
        **random_weights(5, hidden, seed=3),
        "head": (scale * draw.normal(size=(hidden, tokens))).astype(np.float32),
        "one": np.array([1]),
    }
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"]),
        helper.make_node("LSTM", ["x", "W", "R", "B"], ["y"], hidden_size=hidden),
        helper.make_node("Squeeze", ["y", "one"], ["h"]),
        helper.make_node("MatMul", ["h", "head"], ["logits"]),
        *([helper.make_node(final, ["logits"], ["scores"], axis=-1)] if final else []),
    ]
    outputs = [("scores" if final else "logits", np.float32, ["time", "batch", tokens])]
    model = make_model(nodes, [("ids", np.int64, ["time", "batch"])], outputs, constants, metadata=metadata)
    data: bytes = model.SerializeToString()
    return data
