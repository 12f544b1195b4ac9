"""Files written by hand, as other tools and people leave them: python tests/exporters/by_hand.py

Cells in Scan and Loop bodies, and the quirks of files in public repositories: shapes that lie, odd names, unused parts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from golden import Arrays, Writer
from onnx import TensorProto, helper, numpy_helper, parser

I, H = 3, 4  # noqa: E741
RNG = np.random.default_rng(7)
SIZES = ((5, 2), (7, 3))


def weights(*shape: int) -> np.ndarray:
    return RNG.uniform(-0.6, 0.6, shape).astype(np.float32)


LSTM = {"W": weights(1, 4 * H, I), "R": weights(1, 4 * H, H), "B": weights(1, 8 * H)}
CELL = {"Wt": weights(I, 4 * H), "Rt": weights(H, 4 * H), "b": weights(4 * H)}
GATES = """
    x_w = MatMul(x, Wt)
    h_r = MatMul(h, Rt)
    sum_ = Add(x_w, h_r)
    z = Add(sum_, b)
    zi, zf, zg, zo = Split <axis = 1> (z)
    i = Sigmoid(zi)
    f = Sigmoid(zf)
    g = Tanh(zg)
    o = Sigmoid(zo)
    kept = Mul(f, c)
    new = Mul(i, g)
    c_out = Add(kept, new)
    c_t = Tanh(c_out)
    h_out = Mul(o, c_t)
"""
OUTER = """
    shape = Shape(X)
    one = Constant <value_ints = [1]> ()
    two = Constant <value_ints = [2]> ()
    batch = Slice(shape, one, two)
    width = Constant <value_ints = [4]> ()
    state_shape = Concat <axis = 0> (batch, width)
    zeros = ConstantOfShape(state_shape)
"""

TEXTS: dict[str, tuple[str, dict[str, np.ndarray], str]] = {
    "scan_lstm": (f"""
        <ir_version: 8, opset_import: ["" : 13]>
        scan_lstm (float[T,B,{I}] X) => (float[T,B,{H}] Y, float[B,{H}] Yh, float[B,{H}] Yc) {{
            {OUTER}
            Yh, Yc, Y = Scan <num_scan_inputs = 1, body = cell (float[B,{H}] h, float[B,{H}] c, float[B,{I}] x)
                => (float[B,{H}] h_out, float[B,{H}] c_out, float[B,{H}] y) {{ {GATES} y = Identity(h_out) }}> (zeros, zeros, X)
        }}""", CELL, ""),
    "scan_lstm_reversed": (f"""
        <ir_version: 8, opset_import: ["" : 13]>
        scan_reversed (float[T,B,{I}] X) => (float[T,B,{H}] Y) {{
            {OUTER}
            Yh, Yc, Y = Scan <num_scan_inputs = 1, scan_input_directions = [1], scan_output_directions = [1],
                body = cell (float[B,{H}] h, float[B,{H}] c, float[B,{I}] x)
                => (float[B,{H}] h_out, float[B,{H}] c_out, float[B,{H}] y) {{ {GATES} y = Identity(h_out) }}> (zeros, zeros, X)
        }}""", CELL, "no"),
    "scan_lstm_states": (f"""
        <ir_version: 8, opset_import: ["" : 17]>
        scan_states (float[T,B,{I}] X, float[B,{H}] h0, float[B,{H}] c0) => (float[T,B,{H}] Y, float[B,{H}] hn, float[B,{H}] cn) {{
            hn, cn, Y = Scan <num_scan_inputs = 1, body = cell (float[B,{H}] h, float[B,{H}] c, float[B,{I}] x)
                => (float[B,{H}] h_out, float[B,{H}] c_out, float[B,{H}] y) {{ {GATES} y = Identity(h_out) }}> (h0, c0, X)
        }}""", CELL, "steps"),
    "scan_batch_first": (f"""
        <ir_version: 8, opset_import: ["" : 13]>
        scan_axes (float[B,T,{I}] X) => (float[B,T,{H}] Y) {{
            turned = Transpose <perm = [1, 0, 2]> (X)
            shape = Shape(turned)
            one = Constant <value_ints = [1]> ()
            two = Constant <value_ints = [2]> ()
            batch = Slice(shape, one, two)
            width = Constant <value_ints = [4]> ()
            state_shape = Concat <axis = 0> (batch, width)
            zeros = ConstantOfShape(state_shape)
            Yh, Yc, Y = Scan <num_scan_inputs = 1, scan_input_axes = [1], scan_output_axes = [1],
                body = cell (float[B,{H}] h, float[B,{H}] c, float[B,{I}] x)
                => (float[B,{H}] h_out, float[B,{H}] c_out, float[B,{H}] y) {{ {GATES} y = Identity(h_out) }}> (zeros, zeros, X)
        }}""", CELL, "steps"),
    "scan_sum": (f"""
        <ir_version: 8, opset_import: ["" : 13]>
        scan_sum (float[T,B,{I}] X) => (float[T,B,{I}] Y, float[B,{I}] total) {{
            start = Constant <value_float = 0.0> ()
            first = Constant <value_ints = [0]> ()
            second = Constant <value_ints = [1]> ()
            row = Slice(X, first, second)
            flat = Squeeze(row, first)
            nothing = Mul(flat, start)
            total, Y = Scan <num_scan_inputs = 1, body = adding (float[B,{I}] s, float[B,{I}] x)
                => (float[B,{I}] s_out, float[B,{I}] y) {{ s_out = Add(s, x) y = Tanh(s_out) }}> (nothing, X)
        }}""", {}, ""),
    "loop_lstm": (f"""
        <ir_version: 8, opset_import: ["" : 17]>
        loop_lstm (float[T,B,{I}] X) => (float[T,B,{H}] Y) {{
            {OUTER}
            nought = Constant <value_ints = [0]> ()
            length = Slice(shape, nought, one)
            trips = Squeeze(length, nought)
            yes = Constant <value = bool {{1}}> ()
            h_last, c_last, Y = Loop <body = cell (int64 t, bool more, float[B,{H}] h, float[B,{H}] c)
                => (bool more_out, float[B,{H}] h_out, float[B,{H}] c_out, float[B,{H}] y) {{
                    more_out = Identity(more) x = Gather <axis = 0> (X, t) {GATES} y = Identity(h_out) }}> (trips, yes, zeros, zeros)
        }}""", CELL, "steps"),
    "loop_until": (f"""
        <ir_version: 8, opset_import: ["" : 17]>
        loop_until (float[T,B,{I}] X, float[B,{H}] h0) => (float[B,{H}] last, int64 count) {{
            bound = Constant <value = int64 {{9}}> ()
            yes = Constant <value = bool {{1}}> ()
            none = Constant <value = int64 {{0}}> ()
            last, count = Loop <body = until (int64 t, bool more, float[B,{H}] h, int64 n)
                => (bool more_out, float[B,{H}] h_out, int64 n_out) {{
                    half = Constant <value_float = 0.5> ()
                    h_out = Mul(h, half)
                    big = ReduceMax <keepdims = 0> (h_out)
                    least = Constant <value_float = 0.1> ()
                    more_out = Greater(big, least)
                    step = Constant <value = int64 {{1}}> ()
                    n_out = Add(n, step) }}> (bound, yes, h0, none)
        }}""", {}, ""),
    "if_by_rank": (f"""
        <ir_version: 8, opset_import: ["" : 17]>
        if_by_rank (float[T,B,{I}] X, int64 rate) => (float[T,B,{H}] Y) {{
            fast = Constant <value = int64 {{16000}}> ()
            is_fast = Equal(rate, fast)
            Y = If <then_branch = quick () => (float[T,B,{H}] a) {{ y4, h4, c4 = LSTM <hidden_size = {H}> (X, W, R, B)
                    axis = Constant <value_ints = [1]> () a = Squeeze(y4, axis) }},
                else_branch = slow () => (float[T,B,{H}] e) {{ y5, h5, c5 = LSTM <hidden_size = {H}> (X, W2, R2, B2)
                    at = Constant <value_ints = [1]> () s = Squeeze(y5, at) e = Neg(s) }}> (is_fast)
        }}""", {**LSTM, "W2": weights(1, 4 * H, I), "R2": weights(1, 4 * H, H), "B2": weights(1, 8 * H)}, "steps"),
    "local_function": (f"""
        <ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        with_function (float[T,B,{I}] X) => (float[T,B,2] Y) {{
            y4, h4, c4 = LSTM <hidden_size = {H}> (X, W, R, B)
            axis = Constant <value_ints = [1]> ()
            y = Squeeze(y4, axis)
            Y = local.dense <slope = 0.2> (y, D, d)
        }}
        <opset_import: ["" : 17], domain: "local">
        dense <slope> (x, w, b) => (y) {{ a = MatMul(x, w) s = Add(a, b) y = LeakyRelu <alpha: float = @slope> (s) }}
        """, {**LSTM, "D": weights(H, 2), "d": weights(2)}, "steps"),
    "passing_through": (f"""
        <ir_version: 8, opset_import: ["" : 13, "ai.onnx.ml" : 2, "com.microsoft" : 1]>
        passing (float[T,B,{I}] X, float[B,2] note) => (float[T,1,B,{H}] Y, float[1,B,{H}] Yh, float[T,1,B,{H}] again, float[B,2] note_out, float[2] kept) {{
            Y, Yh, Yc = LSTM <hidden_size = {H}> (X, W, R, B)
            again = Identity(Y)
            note_out = Identity(note)
            kept = Identity(K)
            unused = Tanh(Y)
        }}""", {**LSTM, "K": weights(2), "U": weights(3, 3)}, ""),
}  # fmt: skip


def plain(names: tuple[str, str] = ("X", "Y"), opset: int = 13) -> onnx.ModelProto:
    """LSTM, Squeeze, dense: what the quirks are put into."""
    x, y = names
    axes = [numpy_helper.from_array(np.array([1]), "axes")]
    tensors = [numpy_helper.from_array(v, k) for k, v in {**LSTM, "D": weights(H, 2), "d": weights(2)}.items()]
    nodes = [
        helper.make_node("LSTM", [x, "W", "R", "B"], ["y4", "yh", ""], hidden_size=H),
        helper.make_node("Squeeze", ["y4", "axes"], ["y3"]),
        helper.make_node("MatMul", ["y3", "D"], ["product"]),
        helper.make_node("Add", ["product", "d"], [y]),
    ]
    inputs, outputs = [info(x, ["T", "B", I])], [info(y, ["T", "B", 2])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors + axes)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def info(name: str, shape: list[Any] | None, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def edited(change: Callable[[onnx.ModelProto], None], **options: Any) -> onnx.ModelProto:
    model = plain(**options)
    change(model)
    return model


def lying_output(model: onnx.ModelProto) -> None:
    """The output is declared with another rank, and as a batch of one."""
    model.graph.output[0].CopyFrom(info("Y", [1, 2]))


def lying_inside(model: onnx.ModelProto) -> None:
    """Inner tensors are declared with a batch of one and a length that is not."""
    model.graph.value_info.extend([info("y4", [1, 1, 1, H]), info("y3", [99, 1, H]), info("product", [2])])


def batch_of_one(model: onnx.ModelProto) -> None:
    model.graph.output[0].CopyFrom(info("Y", [5, 1, 2]))


def nameless_dims(model: onnx.ModelProto) -> None:
    """Dimensions with neither value nor name."""
    for dim in list(model.graph.input[0].type.tensor_type.shape.dim)[:2]:
        dim.Clear()
    model.graph.output[0].CopyFrom(info("Y", None))


def minus_one(model: onnx.ModelProto) -> None:
    """Open dimensions written as -1, and as 0."""
    dims = model.graph.input[0].type.tensor_type.shape.dim
    dims[0].dim_value, dims[1].dim_value = -1, -1
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 0


def one_symbol(model: onnx.ModelProto) -> None:
    """One placeholder as the name of all that is open, as some writers leave it."""
    for dim in list(model.graph.input[0].type.tensor_type.shape.dim)[:2]:
        dim.dim_param = "None"


def weights_as_inputs(model: onnx.ModelProto) -> None:
    """Every weight is an input too, as IR version 3 had it."""
    model.ir_version = 3
    model.graph.input.extend(
        helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in model.graph.initializer
    )


def odd_imports(model: onnx.ModelProto) -> None:
    model.opset_import.extend(
        [
            helper.make_opsetid("ai.onnx.training", 1),
            helper.make_opsetid("nobody.uses.this", 3),
            helper.make_opsetid("ai.onnx.ml", 1),
        ]
    )


def odd_names(model: onnx.ModelProto) -> None:
    """Names with a space, slashes, colons, brackets, letters beyond ASCII; nodes without a name."""
    names = {
        "X": "serving_default_input: 1:0",
        "Y": "StatefulPartitionedCall/модель[0].y:0",
        "y4": "a b/c.d",
        "y3": "é\t",
        "product": "0",
    }
    for node in model.graph.node:
        node.name = ""
        for names_of in (node.input, node.output):
            names_of[:] = [names.get(n, n) for n in names_of]
    model.graph.input[0].name, model.graph.output[0].name = names["X"], names["Y"]


def shuffled(model: onnx.ModelProto) -> None:
    """Nodes out of order."""
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes[::-1])


def typed_data(model: onnx.ModelProto) -> None:
    """Weights as repeated fields, not raw bytes; the axes as int64_data."""
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        tensor.ClearField("raw_data")
        (tensor.int64_data if values.dtype == np.int64 else tensor.float_data).extend(values.ravel().tolist())


def constants(model: onnx.ModelProto) -> None:
    """Weights in Constant nodes, through Identity."""
    nodes = []
    for tensor in model.graph.initializer:
        held = onnx.TensorProto()
        held.CopyFrom(tensor)
        nodes += [
            helper.make_node("Constant", [], [f"{tensor.name}_c"], value=held),
            helper.make_node("Identity", [f"{tensor.name}_c"], [tensor.name]),
        ]
    rest = list(model.graph.node)
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes + rest)


def sparse(model: onnx.ModelProto) -> None:
    """A sparse initialiser."""
    dense = next(t for t in model.graph.initializer if t.name == "D")
    values = numpy_helper.to_array(dense).copy()
    values[np.abs(values) < 0.3] = 0
    at = np.flatnonzero(values)
    made = helper.make_sparse_tensor(
        numpy_helper.from_array(values.ravel()[at], "D"),
        numpy_helper.from_array(at.astype(np.int64), "D_at"),
        values.shape,
    )
    model.graph.initializer.remove(dense)
    model.graph.sparse_initializer.append(made)


def named_domain(model: onnx.ModelProto) -> None:
    """The standard's operators under the name ai.onnx."""
    model.opset_import[0].domain = "ai.onnx"
    for node in model.graph.node:
        node.domain = "ai.onnx"


def unproduced_output(model: onnx.ModelProto) -> None:
    model.graph.output.append(info("nothing_makes_this", [1]))


def private_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "my.own"
    model.opset_import.append(helper.make_opsetid("my.own", 1))


def early_layer_norm(model: onnx.ModelProto) -> None:
    """LayerNormalization under an opset that has none; onnxruntime runs it."""
    extra = [numpy_helper.from_array(weights(H), "scale"), numpy_helper.from_array(weights(H), "shift")]
    model.graph.initializer.extend(extra)
    model.graph.node.insert(
        2, helper.make_node("LayerNormalization", ["y3", "scale", "shift"], ["normed"], axis=-1, epsilon=1e-5)
    )
    model.graph.node[3].input[0] = "normed"


def scalar_rate(model: onnx.ModelProto) -> None:
    """An int64 of rank 0 that scales, and picks from a table."""
    model.graph.input.append(info("rate", [], TensorProto.INT64))
    model.graph.initializer.append(numpy_helper.from_array(np.array([8000, 16000]), "rates"))
    model.graph.node[3].output[0] = "sum_"
    model.graph.node.extend([
        helper.make_node("Equal", ["rates", "rate"], ["is_it"]), helper.make_node("Cast", ["is_it"], ["as_float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["sum_", "as_float"], ["Y"]),
    ])  # fmt: skip


QUIRKS: dict[str, tuple[Callable[[onnx.ModelProto], None], dict[str, Any]]] = {
    "lying_output": (lying_output, {}),
    "lying_inside": (lying_inside, {}),
    "batch_of_one": (batch_of_one, {}),
    "nameless_dims": (nameless_dims, {}),
    "minus_one": (minus_one, {}),
    "one_symbol": (one_symbol, {}),
    "weights_as_inputs": (weights_as_inputs, {}),
    "odd_imports": (odd_imports, {}),
    "odd_names": (odd_names, {}),
    "shuffled": (shuffled, {}),
    "typed_data": (typed_data, {}),
    "constants": (constants, {}),
    "sparse": (sparse, {"refused": "sparse"}),
    "named_domain": (named_domain, {}),
    "early_layer_norm": (early_layer_norm, {}),
    "scalar_rate": (scalar_rate, {"constants": ("rate",)}),
    "unproduced_output": (unproduced_output, {"refused": "nothing_makes_this"}),
    "private_operator": (private_operator, {"refused": "my.own"}),
}


def feeds_of(model: onnx.ModelProto, steps: int, batch: int, seed: int) -> Arrays:
    """Random inputs for the ranks that are known here."""
    rng = np.random.default_rng(seed)
    held = {t.name for t in model.graph.initializer}
    feeds: Arrays = {}
    for given in model.graph.input:
        if given.name in held:
            continue
        if given.type.tensor_type.elem_type == TensorProto.INT64:
            feeds[given.name] = np.array([16000, 8000][seed % 2])
            continue
        sizes = {"h0": (batch, H), "c0": (batch, H), "note": (batch, 2)}
        shape = sizes.get(given.name, (batch, steps, I) if model.graph.name == "scan_axes" else (steps, batch, I))
        feeds[given.name] = rng.standard_normal(shape).astype(np.float32)
    return feeds


def axes_of(model: onnx.ModelProto) -> dict[str, list[str | int]]:
    first = ["B", "T", I] if model.graph.name == "scan_axes" else ["T", "B", I]
    known = {"h0": ["B", H], "c0": ["B", H], "note": ["B", 2], "rate": []}
    return {
        i.name: known.get(i.name, first)
        for i in model.graph.input
        if i.name not in {t.name for t in model.graph.initializer}
    }


def write(writer: Writer, name: str, model: onnx.ModelProto, **judged: Any) -> None:
    feeds = [] if judged.get("refused") else [feeds_of(model, *size, k) for k, size in enumerate(SIZES)]
    writer.add(name, model, feeds, apart=name, axes=axes_of(model), **judged)


if __name__ == "__main__":
    writer = Writer("by_hand")
    for name, (text, tensors, stream) in TEXTS.items():
        model = parser.parse_model(text)
        model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in tensors.items())
        write(writer, name, model, stream=stream, **({"constants": ("rate",)} if name == "if_by_rank" else {}))
    for name, (change, judged) in QUIRKS.items():
        try:
            write(writer, name, edited(change), **{"stream": "steps", **judged})
        except Exception as fault:
            print(f"  {name}: {str(fault).splitlines()[0][:300]}")
    writer.close()
