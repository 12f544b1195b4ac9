"""Every historic form of every operator, read from a file and modernised, gives what an independent engine gives."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnx.reference
import onnxruntime
import pytest
from operator_cases import CASES, Case
from peers import current_peer
from test_reference import SESSION_OPTIONS

from lstm_engine import load, reference
from lstm_engine.formats.onnx import OLDEST_OPSET, read_onnx
from lstm_engine.passes.modernise import CANONICAL_OPSET, MOVED_TO_INPUTS, modernise

pytestmark = current_peer

NEWEST_OPSET = 25
#: What onnx's evaluator, or the old specification, does not do as the case says.
UNTRIED = {"Dropout"}


def schemas(op: str) -> Iterator[onnx.defs.OpSchema]:
    """The forms an operator has had, oldest first."""
    found = set()
    for opset in range(OLDEST_OPSET, NEWEST_OPSET + 1):
        try:
            schema = onnx.defs.get_schema(op, opset, "")
        except onnx.defs.SchemaError:
            continue
        if schema.since_version not in found and not schema.deprecated:
            found.add(schema.since_version)
            yield schema


def old_form(
    case: Case, schema: onnx.defs.OpSchema, opset: int
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]] | None:
    """The case as a file of that set, and what to feed it; None where that form cannot say it."""
    inputs, attributes = list(case.inputs), dict(case.attributes)
    for name, index, _, _ in MOVED_TO_INPUTS.get(case.op, ()):
        if name in schema.attributes and index < len(inputs) and inputs[index] is not None:
            value = inputs[index]
            inputs[index] = None
            attributes[name] = value.tolist() if value.ndim else value.item()
    while inputs and inputs[-1] is None:
        inputs.pop()
    if case.op == "Split" and opset < 18:
        attributes.pop("num_outputs", None)
    if not attributes.keys() <= schema.attributes.keys() or len(inputs) > schema.max_input:
        return None
    names = ["" if x is None else f"x{k}" for k, x in enumerate(inputs)]
    given = {name: x for name, x in zip(names, inputs, strict=True) if x is not None}
    fed = {name: x for name, x in given.items() if name == "x0" and x.dtype.kind == "f"}
    tensor = onnx.helper.np_dtype_to_tensor_dtype
    values = {k: onnx.numpy_helper.from_array(v) if isinstance(v, np.ndarray) else v for k, v in attributes.items()}
    outputs = [f"y{k}" for k in range(case.outputs)]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(case.op, names, outputs, **values)],
        "one",
        [onnx.helper.make_tensor_value_info(n, tensor(x.dtype), x.shape) for n, x in fed.items()],
        [onnx.helper.make_empty_tensor_value_info(name) for name in outputs],
        [onnx.numpy_helper.from_array(x, n) for n, x in given.items() if n not in fed],
    )
    imports = [onnx.helper.make_opsetid("", opset)]
    model = onnx.helper.make_model(
        graph, opset_imports=imports, ir_version=max(4, onnx.helper.find_min_ir_version_for(imports))
    )
    return model, fed


def allowed(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """The file with the types of its outputs; None if a type, value or absent input is not what the set allows."""
    try:
        typed = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
        onnx.checker.check_model(typed)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return None
    return typed


def independent(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray] | None:
    """What onnxruntime says, or onnx's evaluator where it has no kernel; None where neither runs it."""
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), SESSION_OPTIONS, providers=["CPUExecutionProvider"]
        )
        return session.run(None, feeds)
    except Exception:
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return onnx.reference.ReferenceEvaluator(model).run(None, feeds)
    except Exception:
        return None


def forms() -> Iterator[Any]:
    for op in sorted({case.op for case in CASES if not case.domain} - UNTRIED):
        if reference.OPERATORS[op].random:
            continue
        for schema in schemas(op):
            opset = max(schema.since_version, OLDEST_OPSET)
            yield pytest.param(op, schema, opset, id=f"{op}-{opset}")


@pytest.mark.parametrize(("op", "schema", "opset"), list(forms()))
def test_every_form_is_read_right(op: str, schema: onnx.defs.OpSchema, opset: int) -> None:
    tried = 0
    for case in (c for c in CASES if c.op == op and not c.domain):
        if case.peer == "none" or (op == "Clip" and np.isinf(case.inputs[0]).any()):
            continue  # onnxruntime clips infinities even where there is no bound
        made = old_form(case, schema, opset)
        model = allowed(made[0]) if made is not None else None
        if made is None or model is None:
            continue
        feeds = made[1]
        graph = modernise(read_onnx(model.SerializeToString()))
        assert graph.opset >= CANONICAL_OPSET
        got = reference.run(graph, feeds, dtype=np.float32)
        expected = independent(model, feeds)
        if expected is None:
            continue
        tried += 1
        for (name, ours), theirs in zip(got.items(), expected, strict=True):
            theirs = np.asarray(theirs)
            assert ours.shape == theirs.shape, (str(case), name)
            reach = float(np.abs(theirs[np.isfinite(theirs)]).max(initial=1)) if theirs.dtype.kind == "f" else 1
            rtol = 1e-3 if theirs.dtype == np.float16 else 1e-5  # half precision runs in float32
            np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=2e-6 * reach, err_msg=f"{case} {name}")
    if not tried:
        pytest.skip("no case of this operator has that form, or no engine runs it")


RECURRENT_OUTPUTS = {"LSTM": ("Y", "Y_h", "Y_c"), "GRU": ("Y", "Y_h"), "RNN": ("Y", "Y_h")}


@pytest.mark.parametrize("op", RECURRENT_OUTPUTS)
@pytest.mark.parametrize("opset", [7, 14, 22])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_recurrent_operators_of_every_set(op: str, opset: int, dtype: type) -> None:
    """The forms of sets 7, 14 and 22, every input given, against onnxruntime; in float64 against float32."""
    gates, random = {"LSTM": 4, "GRU": 3, "RNN": 1}[op], np.random.default_rng(opset)
    T, B, I, H = 4, 3, 5, 2  # noqa: E741

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape).astype(np.float32)

    inputs = [normal(T, B, I), normal(2, gates * H, I), normal(2, gates * H, H), normal(2, 2 * gates * H)]
    inputs += [np.array([4, 0, 2], np.int32), normal(2, B, H)]
    attributes: dict[str, Any] = {"direction": "bidirectional", "hidden_size": H, "clip": 1.5}
    if op == "LSTM":
        inputs += [normal(2, B, H), normal(2, 3 * H)]
    if op == "GRU":
        attributes["linear_before_reset"] = 1
    names = [f"x{k}" for k in range(len(inputs))]
    tensor = onnx.helper.np_dtype_to_tensor_dtype

    def model_in(kind: Any) -> tuple[bytes, dict[str, np.ndarray]]:
        arrays = [x.astype(kind) if x.dtype == np.float32 else x for x in inputs]
        graph = onnx.helper.make_graph(
            [onnx.helper.make_node(op, names, RECURRENT_OUTPUTS[op], **attributes)],
            "one",
            [onnx.helper.make_tensor_value_info(names[0], tensor(arrays[0].dtype), ["T", "B", I])],
            [onnx.helper.make_tensor_value_info(n, tensor(arrays[0].dtype), None) for n in RECURRENT_OUTPUTS[op]],
            [onnx.numpy_helper.from_array(x, name) for name, x in zip(names[1:], arrays[1:], strict=True)],
        )
        imports = [onnx.helper.make_opsetid("", opset)]
        made = onnx.helper.make_model(graph, opset_imports=imports, ir_version=10)
        return made.SerializeToString(), {names[0]: arrays[0]}

    single, feeds = model_in(np.float32)
    expected = onnxruntime.InferenceSession(single, SESSION_OPTIONS, providers=["CPUExecutionProvider"]).run(
        None, feeds
    )
    content, feeds = model_in(dtype)
    got = load(content).run(feeds)
    for (name, ours), right in zip(got.items(), expected, strict=True):
        assert ours.dtype == dtype
        np.testing.assert_allclose(ours, right, rtol=1e-4, atol=2e-6, err_msg=name)


def test_group_normalization_of_set_18_scales_groups() -> None:
    """onnxruntime has no kernel for it: the same parameters, repeated for the channels of each group, in set 21."""
    random = np.random.default_rng(4)
    x, scale, bias = (random.standard_normal(shape).astype(np.float32) for shape in ((2, 6, 4), (3,), (3,)))
    results = []
    for opset, repeats in ((18, 1), (21, 2)):
        case = Case("GroupNormalization", [x, scale.repeat(repeats), bias.repeat(repeats)], {"num_groups": 3})
        made = old_form(case, onnx.defs.get_schema("GroupNormalization", opset), opset)
        assert made is not None
        model, feeds = made
        model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y0", onnx.TensorProto.FLOAT, None))
        results.append(reference.run(modernise(read_onnx(model.SerializeToString())), feeds)["y0"])
    np.testing.assert_array_equal(*results)
