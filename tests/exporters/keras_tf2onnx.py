"""Files of tf2onnx from Keras 3 and Keras 2 (tf_keras): python tests/exporters/keras_tf2onnx.py [scenario …]

Needs an environment of its own with tensorflow-cpu, keras, tf_keras and tf2onnx.
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "KERAS_BACKEND": "tensorflow"}

import keras
import numpy as np
import onnx
import tensorflow as tf
import tf2onnx
import tf_keras
from golden import Arrays, Writer

I, H, V, B0, T0 = 3, 4, 11, 2, 5  # noqa: E741
OPSETS = (15, 18)
MORE_OPSETS = (9, 11, 13, 17)
#: what is exported at these too, and by Keras's own model.export
SAMPLES = (
    "lstm",
    "lstm_masking",
    "embedding_mask_zero",
    "gru",
    "bidirectional_concat",
    "rnn_of_cells",
    "conv_causal",
    "lstm_backwards",
)
Axes = Sequence[str | int]
MANY, FIXED = ({"T": T0, "B": B0}, {"T": 7, "B": 3}), ({"T": T0, "B": B0}, {"T": T0, "B": 3})


@dataclass(frozen=True)
class Scenario:
    """A Keras model. ``build`` takes the module keras or tf_keras; ``values``: how an input's values are drawn."""

    name: str
    build: Callable[[Any], Any]
    inputs: dict[str, Axes]
    stream: str = ""
    sizes: tuple[dict[str, int], ...] = MANY
    values: str = ""

    def feeds(self, sizes: dict[str, int], seed: int) -> Arrays:
        rng = np.random.default_rng(seed)
        return {name: self.drawn([sizes.get(str(a), a) for a in axes], name, rng) for name, axes in self.inputs.items()}

    def drawn(self, shape: Axes, name: str, rng: np.random.Generator) -> np.ndarray:
        x = rng.standard_normal(shape).astype(np.float32)
        if self.values == "padded":  # whole steps of zeros, at the end and in the middle
            x[0, -2:] = x[-1, 1] = 0
        if self.values == "tokens" and name == "tokens":
            x = rng.integers(1, V, shape).astype(np.int32)
            x[0, -2:] = x[-1, 0] = 0
        return x


def sequential(*layers: Callable[[Any], Any], shape: Axes = (None, I), **given: Any) -> Callable[[Any], Any]:
    """A Sequential of layers, each made from the Keras module."""
    return lambda k: k.Sequential([k.layers.Input(shape=shape, **given), *(layer(k.layers) for layer in layers)])


def lstm(units: int = H, **options: Any) -> Callable[[Any], Any]:
    return lambda layers: layers.LSTM(units, **{"return_sequences": True, **options})


def gru(units: int = H, **options: Any) -> Callable[[Any], Any]:
    return lambda layers: layers.GRU(units, **{"return_sequences": True, **options})


def dense(units: int, activation: str | None = None) -> Callable[[Any], Any]:
    return lambda layers: layers.Dense(units, activation=activation)


def bidirectional(merge: str | None, kind: str = "LSTM", **options: Any) -> Callable[[Any], Any]:
    def build(k: Any) -> Any:
        x = k.Input(shape=(None, I))
        layer = getattr(k.layers, kind)(H, **{"return_sequences": True, **options})
        y = k.layers.Bidirectional(layer, merge_mode=merge)(x)
        return k.Model(x, y)

    return build


def with_states(k: Any) -> Any:
    """An encoder: its outputs and last states."""
    x = k.Input(shape=(None, I))
    return k.Model(x, k.layers.LSTM(H, return_sequences=True, return_state=True)(x))


def decoder_step(k: Any) -> Any:
    """A decoder's step: token and states in, probabilities and states out."""
    token, h, c = k.Input(shape=(1,), dtype="int32"), k.Input(shape=(H,)), k.Input(shape=(H,))
    y, h2, c2 = k.layers.LSTM(H, return_sequences=True, return_state=True)(
        k.layers.Embedding(V, I)(token), initial_state=[h, c]
    )
    return k.Model([token, h, c], [k.layers.Dense(V, activation="softmax")(y), h2, c2])


def gru_step(k: Any) -> Any:
    x, h = k.Input(shape=(None, I)), k.Input(shape=(H,))
    y, h2 = k.layers.GRU(H, return_sequences=True, return_state=True)(x, initial_state=h)
    return k.Model([x, h], [k.layers.Dense(2)(y), h2])


def sequence_to_sequence(k: Any) -> Any:
    source, target = k.Input(shape=(None, I)), k.Input(shape=(None, I))
    _, h, c = k.layers.LSTM(H, return_state=True)(source)
    y = k.layers.LSTM(H, return_sequences=True)(target, initial_state=[h, c])
    return k.Model([source, target], k.layers.Dense(2)(y))


def attention(k: Any) -> Any:
    x = k.Input(shape=(None, I))
    y = k.layers.LSTM(H, return_sequences=True)(x)
    z = k.layers.Concatenate()([y, k.layers.Attention()([y, y])])
    return k.Model(x, k.layers.Dense(2)(k.layers.GlobalAveragePooling1D()(z)))


def two_inputs(k: Any) -> Any:
    x, tokens = k.Input(shape=(None, I)), k.Input(shape=(None,), dtype="int32")
    z = k.layers.Concatenate()([x, k.layers.Embedding(V, 2)(tokens)])
    return k.Model([x, tokens], k.layers.Dense(2, activation="tanh")(k.layers.LSTM(H, return_sequences=True)(z)))


def normalised(k: Any) -> Any:
    """BatchNormalization with statistics of its own, and a residual."""
    x = k.Input(shape=(None, I))
    norm = k.layers.BatchNormalization()
    z = k.layers.Dense(H)(norm(x))
    y = k.layers.LayerNormalization()(k.layers.Add()([z, k.layers.LSTM(H, return_sequences=True)(z)]))
    rng = np.random.default_rng(3)
    norm.set_weights([rng.uniform(0.5, 2, w.shape) for w in norm.get_weights()])
    return k.Model(x, y)


BTI = {"x": ("B", "T", I)}
TOKENS = {"tokens": ("B", "T")}


def fixed(*layers: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return sequential(*layers, shape=(T0, I))


SCENARIOS = [
    Scenario("lstm", sequential(lstm()), BTI, "steps"),
    Scenario("lstm_two_no_bias", sequential(lstm(use_bias=False), lstm()), BTI, "steps"),
    Scenario("lstm_last", sequential(lstm(), lstm(return_sequences=False), dense(2, "softmax")), BTI, "last"),
    Scenario("lstm_fixed_time", fixed(lstm(), lstm(return_sequences=False), dense(2)), BTI, sizes=FIXED),
    Scenario("lstm_unrolled", fixed(lstm(unroll=True), dense(2)), BTI, sizes=FIXED),
    Scenario("lstm_implementation_1", sequential(lstm(implementation=1)), BTI, "steps"),
    Scenario("lstm_relu", sequential(lstm(activation="relu")), BTI, "steps"),
    Scenario("lstm_hard_sigmoid", sequential(lstm(recurrent_activation="hard_sigmoid")), BTI, "steps"),
    Scenario("lstm_softsign", sequential(lstm(activation="softsign")), BTI, "steps"),
    Scenario("lstm_elu", sequential(lstm(activation="elu", return_sequences=False)), BTI, "last"),
    Scenario("lstm_recurrent_dropout", sequential(lstm(recurrent_dropout=0.3, dropout=0.2)), BTI, "steps"),
    Scenario("lstm_backwards", sequential(lstm(go_backwards=True)), BTI, "no"),
    Scenario("lstm_backwards_last", sequential(lstm(go_backwards=True, return_sequences=False)), BTI, "no"),
    Scenario("lstm_states", with_states, BTI),
    Scenario("lstm_stateful", sequential(lstm(stateful=True), dense(1), shape=(None, I), batch_size=B0), BTI, sizes=MANY[:1]),
    Scenario("lstm_masking", sequential(lambda layers: layers.Masking(), lstm()), BTI, "steps", values="padded"),
    Scenario("lstm_masking_last", sequential(lambda layers: layers.Masking(), lstm(), lstm(return_sequences=False), dense(2)), BTI, "last", values="padded"),
    Scenario("embedding_mask_zero", sequential(lambda layers: layers.Embedding(V, I, mask_zero=True), lstm(return_sequences=False), dense(3, "softmax"), shape=(None,), dtype="int32"),
             TOKENS, "last", values="tokens"),
    Scenario("embedding_mask_bidirectional", sequential(lambda layers: layers.Embedding(V, I, mask_zero=True), lambda layers: layers.Bidirectional(layers.LSTM(H)), dense(1, "sigmoid"),
             shape=(None,), dtype="int32"), TOKENS, "no", values="tokens"),
    Scenario("embedding", sequential(lambda layers: layers.Embedding(V, I), lstm(), dense(V, "softmax"), shape=(None,), dtype="int32"), TOKENS, "steps", values="tokens"),
    *(Scenario(f"bidirectional_{merge}", bidirectional(merge), BTI, "no") for merge in ("concat", "sum", "mul", "ave", None)),
    Scenario("bidirectional_last", bidirectional("concat", return_sequences=False), BTI, "no"),
    Scenario("bidirectional_gru", bidirectional("concat", "GRU"), BTI, "no"),
    Scenario("gru", sequential(gru()), BTI, "steps"),
    Scenario("gru_before", sequential(gru(reset_after=False)), BTI, "steps"),
    Scenario("gru_last", sequential(gru(), gru(return_sequences=False), dense(2)), BTI, "last"),
    Scenario("gru_backwards", sequential(gru(go_backwards=True)), BTI, "no"),
    Scenario("gru_masking", sequential(lambda layers: layers.Masking(), gru(return_sequences=False)), BTI, "last", values="padded"),
    Scenario("gru_step", gru_step, {"x": ("B", "T", I), "h": ("B", H)}, "steps"),
    Scenario("simple_rnn", sequential(lambda layers: layers.SimpleRNN(H, return_sequences=True)), BTI, "steps"),
    Scenario("simple_rnn_relu_last", sequential(lambda layers: layers.SimpleRNN(H, activation="relu"), dense(2)), BTI, "last"),
    Scenario("rnn_of_cells", sequential(lambda layers: layers.RNN([layers.LSTMCell(H), layers.LSTMCell(H)], return_sequences=True)), BTI, "steps"),
    Scenario("rnn_of_gru_cells", sequential(lambda layers: layers.RNN(layers.StackedRNNCells([layers.GRUCell(H), layers.GRUCell(H)]))), BTI, "last"),
    Scenario("time_distributed", fixed(lstm(), lambda layers: layers.TimeDistributed(layers.Dense(2, activation="relu"))), BTI, sizes=FIXED),
    Scenario("conv_causal", sequential(lambda layers: layers.Conv1D(H, 3, padding="causal", activation="relu"), lstm(), dense(2)), BTI, "steps"),
    Scenario("conv_pool", fixed(lambda layers: layers.Conv1D(H, 2, padding="same", activation="relu"), lambda layers: layers.MaxPooling1D(2), lstm(return_sequences=False), dense(1)),
             BTI, "no", FIXED),
    Scenario("conv_lstm", sequential(lambda layers: layers.ConvLSTM1D(2, 3, padding="same", return_sequences=False), shape=(None, 6, 1)), {"x": ("B", "T", 6, 1)}),
    Scenario("normalised", normalised, BTI, "steps"),
    Scenario("autoencoder", fixed(lstm(return_sequences=False), lambda layers: layers.RepeatVector(T0), lstm(), dense(I)), BTI, "last", FIXED),
    Scenario("pooled", sequential(lstm(), lambda layers: layers.GlobalMaxPooling1D(), dense(2)), BTI, "no"),
    Scenario("attention", attention, BTI, "no"),
    Scenario("two_inputs", two_inputs, {"x": ("B", "T", I), "tokens": ("B", "T")}, "steps", values="tokens"),
    Scenario("decoder_step", decoder_step, {"tokens": ("B", 1), "h": ("B", H), "c": ("B", H)}, "steps", ({"B": B0}, {"B": 3}), "tokens"),
    Scenario("sequence_to_sequence", sequence_to_sequence, {"source": ("B", "T", I), "target": ("B", "S", I)}, "no", ({"T": T0, "B": B0, "S": 3}, {"T": 4, "B": 3, "S": 6})),
]  # fmt: skip


def signature(scenario: Scenario, model: Any) -> list[tf.TensorSpec]:
    """The model's inputs under the scenario's names."""
    return [
        tf.TensorSpec(given.shape, given.dtype, name=name)
        for name, given in zip(scenario.inputs, model.inputs, strict=True)
    ]


def called(model: Any) -> Callable[..., Any]:
    """The model as a function of its inputs; outputs as a flat list."""

    def call(*inputs: Any) -> list[Any]:
        return tf.nest.flatten(model(list(inputs) if len(inputs) > 1 else inputs[0], training=False))

    return call


def theirs(model: Any) -> Callable[[Arrays], Arrays]:
    def run(feeds: Arrays) -> Arrays:
        for layer in model.layers:
            if getattr(layer, "stateful", False):
                layer.reset_states()
        return {f"{k}": np.asarray(y) for k, y in enumerate(called(model)(*map(tf.constant, feeds.values())))}

    return run


def from_function(scenario: Scenario, model: Any, opset: int) -> onnx.ModelProto:
    spec = signature(scenario, model)
    return tf2onnx.convert.from_function(
        tf.function(called(model), input_signature=spec), input_signature=spec, opset=opset
    )[0]


def from_keras(scenario: Scenario, model: Any, opset: int) -> onnx.ModelProto:
    return tf2onnx.convert.from_keras(model, input_signature=signature(scenario, model), opset=opset)[0]


def exported(scenario: Scenario, model: Any, opset: int) -> onnx.ModelProto:
    """Keras 3's own model.export, which calls tf2onnx."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        called(model)(*(tf.zeros([size or 1 for size in given.shape], given.dtype) for given in model.inputs))
        model.export(str(path), format="onnx", verbose=False, opset_version=opset)
        return onnx.load(path)


def write(
    writer: Writer,
    scenario: Scenario,
    module: Any,
    convert: Callable[..., onnx.ModelProto],
    opset: int,
    variant: str = "",
) -> None:
    name = "-".join(filter(None, (scenario.name, variant, f"{opset}")))
    module.backend.clear_session()
    module.utils.set_random_seed(sum(map(ord, scenario.name)))
    try:
        model = scenario.build(module)
        file = convert(scenario, model, opset)
    except Exception as fault:
        print(
            f"  {writer.folder.name}/{name}: the exporter: {type(fault).__name__}: {str(fault).strip().splitlines()[0][:150]}",
            file=sys.stderr,
        )
        return
    names = [i.name for i in file.graph.input]
    by_size = [scenario.feeds(sizes, k) for k, sizes in enumerate(scenario.sizes)]
    feeds = [dict(zip(names, given.values(), strict=True)) for given in by_size]
    axes = dict(zip(names, map(list, scenario.inputs.values()), strict=True))
    try:
        writer.add(
            name, file, feeds, theirs(model), scenario=f"{scenario.name}{variant}", stream=scenario.stream, axes=axes
        )
    except Exception as fault:
        print(f"  {writer.folder.name}/{name}: {str(fault).strip().splitlines()[0][:250]}", file=sys.stderr)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    wanted = [s for s in SCENARIOS if not sys.argv[1:] or s.name in sys.argv[1:]]
    for folder, module, convert in (("keras3", keras, from_function), ("keras2", tf_keras, from_keras)):
        writer = Writer(folder, sys.argv[1:])
        for scenario in wanted:
            for opset in (*OPSETS, *(MORE_OPSETS if scenario.name in SAMPLES else ())):
                write(writer, scenario, module, convert, opset)
            if folder == "keras3" and scenario.name in SAMPLES:
                write(writer, scenario, module, exported, 18, "export")
        writer.close()
