"""Files of tf2onnx from TensorFlow 1 graphs (dynamic_rnn) and loops: python tests/exporters/tensorflow1_tf2onnx.py [scenario …]

Needs an environment of its own with tensorflow-cpu, tf_keras and tf2onnx.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "TF_USE_LEGACY_KERAS": "1"}

import numpy as np
import tensorflow as tf
import tf2onnx
from golden import Arrays, Writer

tf1 = tf.compat.v1
tf1.disable_v2_behavior()
I, H = 3, 4  # noqa: E741
OPSETS = (9, 13)
SIZES = ((5, 2), (7, 3))
Build = Callable[[Any], list[Any]]


def run(cell: Callable[[], Any], **options: Any) -> Build:
    """dynamic_rnn of a cell: outputs and last states."""

    def build(x: Any) -> list[Any]:
        y, state = tf1.nn.dynamic_rnn(cell(), x, dtype=tf.float32, **options)
        return [y, *tf.nest.flatten(state)]

    return build


def lstm(**options: Any) -> Callable[[], Any]:
    return lambda: tf1.nn.rnn_cell.LSTMCell(H, **options)


def both_ways(x: Any) -> list[Any]:
    y, _ = tf1.nn.bidirectional_dynamic_rnn(lstm()(), lstm()(), x, dtype=tf.float32)
    return [tf.concat(y, 2)]


def with_lengths(x: Any) -> list[Any]:
    lengths = tf1.placeholder(tf.int32, (None,), "lengths")
    y, state = tf1.nn.dynamic_rnn(lstm()(), x, sequence_length=lengths, dtype=tf.float32)
    return [y, *state]


def with_states(x: Any) -> list[Any]:
    h, c = (tf1.placeholder(tf.float32, (None, H), name) for name in ("h", "c"))
    y, state = tf1.nn.dynamic_rnn(lstm()(), x, initial_state=tf1.nn.rnn_cell.LSTMStateTuple(c, h))
    return [tf1.layers.dense(y, 2), state.h, state.c]


def by_hand(x: Any) -> list[Any]:
    """A cell in a while_loop over a TensorArray: one product of [x, h], gates i, j, f, o, a forget bias of 1."""
    rng = np.random.default_rng(5)
    W, b = (tf.constant(rng.uniform(-0.6, 0.6, shape).astype(np.float32)) for shape in ((I + H, 4 * H), (4 * H,)))
    steps, zeros = tf.shape(x)[1], tf.zeros((tf.shape(x)[0], H))

    def body(t: Any, h: Any, c: Any, ys: Any) -> tuple[Any, ...]:
        i, j, f, o = tf.split(tf.matmul(tf.concat([x[:, t], h], 1), W) + b, 4, 1)
        c = c * tf.sigmoid(f + 1.0) + tf.sigmoid(i) * tf.tanh(j)
        h = tf.tanh(c) * tf.sigmoid(o)
        return t + 1, h, c, ys.write(t, h)

    start = (0, zeros, zeros, tf.TensorArray(tf.float32, size=steps))
    _, h, c, ys = tf.while_loop(lambda t, *_: t < steps, body, start)
    return [tf.transpose(ys.stack(), (1, 0, 2)), h, c]


SCENARIOS: dict[str, tuple[Build, str]] = {
    "lstm": (run(lstm()), ""),
    "lstm_basic": (run(lambda: tf1.nn.rnn_cell.BasicLSTMCell(H, forget_bias=0.7)), ""),
    "lstm_peepholes": (run(lstm(use_peepholes=True)), ""),
    "lstm_clipped": (run(lstm(cell_clip=0.3)), ""),
    "lstm_projected": (run(lstm(num_proj=2)), ""),
    "lstm_stacked": (run(lambda: tf1.nn.rnn_cell.MultiRNNCell([lstm()(), lstm()()])), ""),
    "lstm_with_lengths": (with_lengths, ""),
    "lstm_with_states": (with_states, "steps"),
    "lstm_last": (lambda x: [tf1.layers.dense(tf1.nn.dynamic_rnn(lstm()(), x, dtype=tf.float32)[0][:, -1], 2)], "last"),
    "bidirectional": (both_ways, "no"),
    "gru": (run(lambda: tf1.nn.rnn_cell.GRUCell(H)), ""),
    "rnn": (run(lambda: tf1.nn.rnn_cell.BasicRNNCell(H)), ""),
    "residual": (run(lambda: tf1.nn.rnn_cell.ResidualWrapper(tf1.nn.rnn_cell.LSTMCell(I))), ""),
    "by_hand": (by_hand, ""),
}


def feeds(names: list[str], steps: int, batch: int, seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    shapes = {"x": (batch, steps, I), "h": (batch, H), "c": (batch, H)}
    lengths = np.array([steps, 1, 3][:batch], np.int32)
    return {n: lengths if n == "lengths" else rng.standard_normal(shapes[n]).astype(np.float32) for n in names}


def write(writer: Writer, name: str, opset: int) -> None:
    build, stream = SCENARIOS[name]
    with tf.Graph().as_default() as graph, tf1.Session(graph=graph) as session:
        tf1.set_random_seed(sum(map(ord, name)))
        outputs = build(tf1.placeholder(tf.float32, (None, None, I), "x"))
        results = [tf.identity(y, f"y{k}") for k, y in enumerate(outputs)]
        session.run(tf1.global_variables_initializer())
        inputs = [op.outputs[0].name for op in graph.get_operations() if op.type == "Placeholder"]
        frozen = tf1.graph_util.convert_variables_to_constants(
            session, graph.as_graph_def(), [y.op.name for y in results]
        )

        def theirs(fed: Arrays) -> Arrays:
            found = session.run(results, {f"{key.removesuffix(':0')}:0": x for key, x in fed.items()})
            return {y.name: value for y, value in zip(results, found, strict=True)}

        try:
            model, _ = tf2onnx.convert.from_graph_def(
                frozen, input_names=inputs, output_names=[y.name for y in results], opset=opset
            )
        except Exception as fault:
            print(
                f"  {name}-{opset}: the exporter: {type(fault).__name__}: {str(fault).splitlines()[0][:150]}",
                file=sys.stderr,
            )
            return
        names = [i.name.removesuffix(":0") for i in model.graph.input]
        known = {"x": ["B", "T", I], "h": ["B", H], "c": ["B", H], "lengths": ["B"]}
        axes = {i.name: known[n] for i, n in zip(model.graph.input, names, strict=True)}
        given = [dict(zip(axes, feeds(names, *size, k).values(), strict=True)) for k, size in enumerate(SIZES)]
        try:
            writer.add(f"{name}-{opset}", model, given, theirs, scenario=name, stream=stream, axes=axes)
        except Exception as fault:
            print(f"  {name}-{opset}: {str(fault).splitlines()[0][:250]}", file=sys.stderr)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    writer = Writer("tensorflow1", sys.argv[1:])
    for name in SCENARIOS:
        if not sys.argv[1:] or name in sys.argv[1:]:
            for opset in OPSETS:
                write(writer, name, opset)
    writer.close()
