"""Malformed and contradictory ONNX files from seeds, and the child process that loads, runs and streams them.

``python tests/fuzzing.py 0 1000`` prints a line for each file after which anything but a typed error came out, or that
took too long or too much memory. A crash or a hang ends the process; the last line it printed names the seed.
"""

from __future__ import annotations

import json
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import builders
import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper
from random_models import random_model

import lstm_engine as le

SECONDS: Final = 2.0
BYTES: Final = 1 << 30
HANG: Final = 30  # seconds after which the process is killed
MOST_FED: Final = 1 << 16  # elements
NUMBERS: Final = (
    0,
    1,
    -1,
    2,
    3,
    -2,
    7,
    63,
    1000,
    1 << 20,
    (1 << 31) - 1,
    1 << 31,
    -(1 << 31),
    1 << 40,
    1 << 62,
    -(1 << 63),
)
FLOATS: Final = (0.0, -1.0, 1e-30, 1e30, float("nan"), float("inf"), float("-inf"))
WORDS: Final = ("", "forward", "reverse", "bidirectional", "Tanh", "linear", "é", "x" * 300, "SAME_UPPER", "constant")

Draw = np.random.Generator
Mutation = Callable[[Draw, onnx.ModelProto], None]


# --- files ------------------------------------------------------------------------------------------------------------


def malformed(seed: int) -> bytes:
    """The file of a seed."""
    draw = np.random.default_rng([seed, 77])
    kind = draw.random()
    if kind < 0.15:
        return soup(draw).SerializeToString()
    content = sample(draw)
    if kind < 0.85:
        model = onnx.load_from_string(content)
        for _ in range(pick(draw, [1, 1, 1, 2, 3])):
            MUTATIONS[int(draw.integers(len(MUTATIONS)))](draw, model)
        content = model.SerializeToString()
    if kind > 0.8:
        content = damaged(draw, content)
    return content


def sample(draw: Draw) -> bytes:
    """A small valid file."""
    makers = (
        lambda: builders.make_lstm_model(2, 2, peephole=True, sequence_lens=True, initial_states=True),
        lambda: builders.make_tagger(5, 2, 2, 3, opset=11),
        lambda: builders.make_stacked_like_pytorch(2, 2, opset=9),
        lambda: builders.make_with_branches(2),
    )
    which = int(draw.integers(8))
    if which < len(makers):
        return makers[which]().SerializeToString()
    return random_model(int(draw.integers(1 << 30))).content


def damaged(draw: Draw, content: bytes) -> bytes:
    """Bits flipped, bytes cut off, removed, doubled or overwritten."""
    data = bytearray(content)
    kind = int(draw.integers(4))
    begin = int(draw.integers(len(data) + 1))
    end = min(len(data), begin + int(draw.integers(1, 40)))
    if kind == 0:
        for place in draw.integers(len(data), size=int(draw.integers(1, 9))):
            data[place] ^= 1 << int(draw.integers(8))
    elif kind == 1:
        del data[begin:]
    elif kind == 2:
        data[begin:end] = b""
    else:
        data[begin:end] = bytes(draw.bytes(int(draw.integers(0, 40))))
    return bytes(data)


def pick(draw: Draw, options: Any) -> Any:
    return options[int(draw.integers(len(options)))]


def some_graph(draw: Draw, model: onnx.ModelProto) -> onnx.GraphProto:
    """The model's graph or the body of a node within it."""
    graph = model.graph
    bodies = [a.g for node in graph.node for a in node.attribute if a.type == AttributeProto.GRAPH]
    return pick(draw, bodies) if bodies and draw.random() < 0.5 else graph


def some_node(draw: Draw, model: onnx.ModelProto) -> onnx.NodeProto | None:
    graph = some_graph(draw, model)
    return pick(draw, graph.node) if graph.node else None


def names_of(graph: onnx.GraphProto) -> list[str]:
    made = [o for node in graph.node for o in node.output]
    return ["", "nothing", *made, *(i.name for i in graph.input), *(t.name for t in graph.initializer)]


def tensors_of(graph: onnx.GraphProto) -> list[TensorProto]:
    values = [a.t for node in graph.node for a in node.attribute if a.type == AttributeProto.TENSOR]
    return [*graph.initializer, *values]


def change_tensor(draw: Draw, model: onnx.ModelProto) -> None:
    """Sizes, element type, values or place of a stored tensor."""
    tensors = tensors_of(some_graph(draw, model))
    if not tensors:
        return
    tensor = pick(draw, tensors)
    kind = int(draw.integers(7))
    if kind == 0 and tensor.dims:
        tensor.dims[int(draw.integers(len(tensor.dims)))] = pick(draw, NUMBERS)
    elif kind == 1:
        tensor.dims.append(pick(draw, NUMBERS))
    elif kind == 2:
        tensor.data_type = int(draw.integers(30))
    elif kind == 3:
        tensor.raw_data = tensor.raw_data[: int(draw.integers(len(tensor.raw_data) + 1))]
    elif kind == 4:
        change_values(draw, tensor)
    elif kind == 5:
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=pick(draw, ["../../etc/passwd", "/dev/zero", "", "none", "\0"]))
        tensor.external_data.add(key="length", value=str(pick(draw, NUMBERS)))
    elif tensor.dims:
        del tensor.dims[int(draw.integers(len(tensor.dims)))]


def change_values(draw: Draw, tensor: TensorProto) -> None:
    """Numbers that a file may well hold, and that shapes, places and bounds may not have."""
    if tensor.data_type == TensorProto.INT64 and len(tensor.raw_data) >= 8:
        values = np.frombuffer(tensor.raw_data[: len(tensor.raw_data) // 8 * 8], np.int64).copy()
        values[int(draw.integers(len(values)))] = pick(draw, NUMBERS)
        tensor.raw_data = values.tobytes()
    elif tensor.data_type == TensorProto.FLOAT and len(tensor.raw_data) >= 4:
        values = np.frombuffer(tensor.raw_data[: len(tensor.raw_data) // 4 * 4], np.float32).copy()
        values[int(draw.integers(len(values)))] = pick(draw, FLOATS)
        tensor.raw_data = values.tobytes()


def change_attribute(draw: Draw, model: onnx.ModelProto) -> None:
    """A value, a kind, a name; one gone, doubled or from elsewhere."""
    node = some_node(draw, model)
    if node is None:
        return
    kind = int(draw.integers(8))
    if not node.attribute or kind == 0:
        node.attribute.append(new_attribute(draw, model))
        return
    attribute = pick(draw, node.attribute)
    if kind == 1:
        node.attribute.remove(attribute)
    elif kind == 2:
        attribute.type = int(draw.integers(15))
    elif kind == 3:
        node.attribute.append(attribute)
    elif kind == 4:
        attribute.name = pick(draw, [*WORDS, "axis", "perm", "direction", "hidden_size", "layout", "to"])
    else:
        change_value(draw, attribute)


def change_value(draw: Draw, attribute: AttributeProto) -> None:
    if attribute.type == AttributeProto.INT:
        attribute.i = pick(draw, NUMBERS)
    elif attribute.type == AttributeProto.FLOAT:
        attribute.f = pick(draw, FLOATS)
    elif attribute.type == AttributeProto.STRING:
        attribute.s = pick(draw, [*(w.encode() for w in WORDS), b"\xff\xfe"])
    elif attribute.type == AttributeProto.INTS:
        values = [*attribute.ints, pick(draw, NUMBERS)]
        attribute.ints[:] = [pick(draw, NUMBERS) if draw.random() < 0.3 else v for v in values[int(draw.integers(2)) :]]
    elif attribute.type == AttributeProto.FLOATS:
        attribute.floats[:] = [pick(draw, FLOATS), *attribute.floats[1:]]
    elif attribute.type == AttributeProto.STRINGS:
        attribute.strings[:] = [pick(draw, WORDS).encode(), *attribute.strings]
    elif attribute.type == AttributeProto.TENSOR:
        change_values(draw, attribute.t)
    elif attribute.type == AttributeProto.GRAPH:
        body = attribute.g
        del (body.output if draw.random() < 0.5 else body.input)[:1]


def new_attribute(draw: Draw, model: onnx.ModelProto) -> AttributeProto:
    name = pick(draw, ["axis", "axes", "perm", "keepdims", "to", "clip", "direction", "then_branch", "body", "value"])
    small = helper.make_graph([], "g", [], [model.graph.output[0]] if model.graph.output else [])
    value = pick(
        draw, [pick(draw, NUMBERS), pick(draw, FLOATS), pick(draw, WORDS), [1, 0, 0], [0.5, float("nan")], small]
    )
    return helper.make_attribute(name, value)


def change_wiring(draw: Draw, model: onnx.ModelProto) -> None:
    """What a node reads and makes: cycles, things that are nowhere, made twice, absent or too many."""
    graph = some_graph(draw, model)
    if not graph.node:
        return
    node = pick(draw, graph.node)
    kind = int(draw.integers(6))
    name = pick(draw, names_of(graph))
    if kind <= 1 and node.input:
        node.input[int(draw.integers(len(node.input)))] = name
    elif kind == 2:
        node.input.append(name)
    elif kind == 3 and node.input:
        del node.input[int(draw.integers(len(node.input)))]
    elif kind == 4 and node.output:
        node.output[int(draw.integers(len(node.output)))] = name
    else:
        node.output.append(pick(draw, [name, "extra"]))


def change_nodes(draw: Draw, model: onnx.ModelProto) -> None:
    """Nodes gone, doubled, turned round, or of another operator."""
    graph = some_graph(draw, model)
    if not graph.node:
        return
    kind = int(draw.integers(5))
    node = pick(draw, graph.node)
    if kind == 0:
        graph.node.remove(node)
    elif kind == 1:
        graph.node.append(node)
    elif kind == 2:
        nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in graph.node]
        del graph.node[:]
        graph.node.extend(nodes[int(k)] for k in draw.permutation(len(nodes)))
    elif kind == 3:
        node.domain = pick(draw, ["com.microsoft", "ai.onnx.ml", "private", "ai.onnx"])
    else:
        node.op_type = pick(draw, [*(n.op_type for n in graph.node), *OPERATORS])


def change_ports(draw: Draw, model: onnx.ModelProto) -> None:
    """Declared inputs and outputs: type, sizes, names."""
    graph = some_graph(draw, model)
    infos = [*graph.input, *graph.output]
    if not infos:
        return
    info = pick(draw, infos)
    kind = int(draw.integers(7))
    tensor = info.type.tensor_type
    if kind == 0:
        tensor.elem_type = int(draw.integers(30))
    elif kind == 1 and tensor.shape.dim:
        pick(draw, tensor.shape.dim).dim_value = pick(draw, NUMBERS)
    elif kind == 2 and tensor.shape.dim:
        pick(draw, tensor.shape.dim).dim_param = pick(draw, [*WORDS, "batch", "time"])
    elif kind == 3:
        tensor.shape.dim.add(dim_value=pick(draw, NUMBERS))
    elif kind == 4:
        info.type.Clear()
    elif kind == 5:
        info.name = pick(draw, names_of(graph))
    else:
        graph.output.append(info)


def change_model(draw: Draw, model: onnx.ModelProto) -> None:
    """Versions, metadata, functions."""
    kind = int(draw.integers(5))
    if kind == 0 and model.opset_import:
        model.opset_import[0].version = pick(draw, [*NUMBERS, 5, 6, 7, 12, 13, 18, 21, 25])
    elif kind == 1:
        model.opset_import.add(domain=pick(draw, ["", "ai.onnx", "x"]), version=pick(draw, NUMBERS))
    elif kind == 2:
        model.metadata_props.add(key=pick(draw, WORDS), value=pick(draw, WORDS))
    elif kind == 3:
        call = helper.make_node(pick(draw, OPERATORS), ["a"], ["b"], domain=pick(draw, ["", "f"]))
        imports = [helper.make_opsetid("", 17)]
        model.functions.append(helper.make_function("f", pick(draw, OPERATORS), ["a"], ["b"], [call], imports))
    else:
        model.ir_version = pick(draw, [0, 1, 3, 4, 7, 99])


def in_a_body(draw: Draw, model: onnx.ModelProto) -> None:
    """All nodes moved into the branches of an If, or the body of a Loop that never ends by itself."""
    graph = model.graph
    outputs = [onnx.ValueInfoProto(name=o.name) for o in graph.output]
    body = helper.make_graph(list(graph.node), "body", [], outputs)
    del graph.node[:]
    names = [o.name for o in graph.output]
    if draw.random() < 0.5:
        graph.node.append(helper.make_node("If", ["condition"], names, then_branch=body, else_branch=body))
        graph.initializer.append(helper.make_tensor("condition", TensorProto.BOOL, [], [True]))
        return
    body.input.extend([helper.make_tensor_value_info("i", TensorProto.INT64, []), onnx.ValueInfoProto(name="go")])
    body.output.insert(0, onnx.ValueInfoProto(name="go"))
    trips = pick(draw, NUMBERS)
    graph.initializer.append(helper.make_tensor("trips", TensorProto.INT64, [], [trips]))
    graph.initializer.append(helper.make_tensor("condition", TensorProto.BOOL, [], [True]))
    graph.node.append(helper.make_node("Loop", ["trips", "condition"], names, body=body))


MUTATIONS: Final[tuple[Mutation, ...]] = (
    change_tensor, change_tensor, change_tensor, change_attribute, change_attribute, change_attribute, change_wiring,
    change_wiring, change_nodes, change_nodes, change_ports, change_ports, change_model, in_a_body,
)  # fmt: skip
OPERATORS: Final = sorted({s.name for s in onnx.defs.get_all_schemas() if not s.domain})


# --- soup -------------------------------------------------------------------------------------------------------------


def soup(draw: Draw) -> onnx.ModelProto:
    """Operators of every kind over tensors that are there, with attributes of the kinds they take."""
    arrays = {
        "ints": draw.integers(-2, 4, int(draw.integers(1, 5))),
        "bomb": np.array([pick(draw, NUMBERS) for _ in range(int(draw.integers(1, 4)))], np.int64),
        "one": np.array(pick(draw, NUMBERS[:10]), np.int64),
        "yes": np.array(True),
        "floats": draw.standard_normal(pick(draw, [(), (3,), (2, 3), (1, 2, 3), (1, 4, 3)])).astype(np.float32),
    }
    names = ["x", *arrays]
    nodes = []
    for k in range(int(draw.integers(1, 6))):
        schema = onnx.defs.get_schema(pick(draw, OPERATORS))
        most = min(schema.max_input, schema.min_input + int(draw.integers(0, 3)), 8)
        inputs = [pick(draw, ["x", names[-1], *names]) for _ in range(most)]
        outputs = [f"t{k}_{j}" for j in range(min(max(1, schema.min_output), 4))]
        attributes = {
            name: made
            for name, each in schema.attributes.items()
            if (each.required or draw.random() < 0.4) and (made := a_value(draw, each.type.name)) is not None
        }
        nodes.append(helper.make_node(schema.name, inputs, outputs, **attributes))
        names += outputs
    shape = pick(draw, [[2, 3], [1, 2, 3], ["a", "b", 3], [4], None])
    inputs = [("x", np.float32, shape)]
    return builders.make_model(
        nodes, inputs, [(names[-1], np.float32, None)], arrays, int(pick(draw, [13, 18, 21, 22]))
    )


def a_value(draw: Draw, kind: str) -> Any:
    values: dict[str, Any] = {
        "INT": lambda: pick(draw, NUMBERS),
        "FLOAT": lambda: pick(draw, (*FLOATS, 0.5)),
        "STRING": lambda: pick(draw, WORDS),
        "INTS": lambda: [pick(draw, NUMBERS[:8]) for _ in range(int(draw.integers(1, 5)))],
        "FLOATS": lambda: [pick(draw, FLOATS) for _ in range(int(draw.integers(1, 5)))],
        "STRINGS": lambda: [pick(draw, WORDS) for _ in range(int(draw.integers(1, 4)))],
        "TENSOR": lambda: helper.make_tensor("t", TensorProto.FLOAT, [1], [0.5]),
        "GRAPH": lambda: helper.make_graph([helper.make_node("Relu", ["x"], ["r"])], "g", [], [onnx.ValueInfoProto(name="r")]),
    }  # fmt: skip
    return values[kind]() if kind in values else None


# --- the child --------------------------------------------------------------------------------------------------------


def exercise(content: bytes) -> str:
    """Load, run and stream; what became of it. Only the engine's own errors, and OSError, may be raised."""
    try:
        model = le.load(content)
    except (le.LstmEngineError, OSError) as refusal:
        return type(refusal).__name__
    shapes = {s.name: tuple(d if isinstance(d, int) else 2 for d in s.shape or ()) for s in model.inputs}
    if sum(int(np.prod(shape, dtype=float)) for shape in shapes.values()) > MOST_FED:
        return "too large to feed"
    feeds = {s.name: np.ones(shapes[s.name], s.dtype) for s in model.inputs}
    for attempt in (lambda: model.run(feeds), lambda: model.states, lambda: model.stream().feed(feeds)):
        try:
            attempt()
        except le.LstmEngineError:
            continue
    return "loaded"


def allow(more: int) -> None:
    """Bound what memory the process may still take."""
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def main(first: str, last: str) -> None:
    """A JSON line for each seed: before it, and after it what became of it."""
    exercise(builders.make_lstm_model(2, 2).SerializeToString())  # what the first use of any model compiles
    warnings.simplefilter("error")
    allow(BYTES)
    for seed in range(int(first), int(last)):
        content = malformed(seed)
        print(json.dumps({"seed": seed}), flush=True)
        signal.alarm(HANG)
        start = time.process_time()
        try:
            became = exercise(content)
        except BaseException as error:
            became = f"WRONG {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        took = time.process_time() - start
        signal.alarm(0)
        if took > SECONDS:
            became = f"WRONG took {took:.1f} s, {became}"
        print(json.dumps({"seed": seed, "became": became}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
