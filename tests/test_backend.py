"""onnx's own conformance tests, through the engine's backend: each is right or refused by name, none is wrong.

They see no permutation of gates (all weights of a test are equal) and are no proof by themselves: see test_reference,
test_parity and test_random_operators.
"""

from __future__ import annotations

import re
import unittest
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import lstm_engine as le
from lstm_engine import reference
from lstm_engine.onnx_backend import Backend

#: Cases without a right answer to compare with, by name, and why.
NO_ANSWER: Final[dict[str, str]] = {
    "^test_bernoulli": "its output is random",
    "^test_resize_downsample_scales_(linear|cubic)_align_corners": "aligns with a size that is no whole number; "
    "onnxruntime and PyTorch round it first, and so does the engine",
    "^test_training_dropout": "its output is random, drawn as NumPy's legacy generator draws",
}
#: Every recurrent case of onnx: forward, reverse, bidirectional, batchwise, bias, peepholes, lengths.
RECURRENT: Final = re.compile("^test_(lstm|gru|rnn|simple_rnn)_")
#: Cases that were right when this was written: fewer is a loss. Most of the last two are of operator set 6, which is refused.
LEAST_RIGHT: Final = {"node": 1400, "simple": 14, "pytorch-operator": 2, "pytorch-converted": 3}
#: What float16 and bfloat16 models run in.
WIDER: Final = np.dtype(np.float32)


@cache
def cases_of(kind: str) -> tuple[Any, ...]:
    """onnx's cases of a kind; writing them computes their answers, which takes seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.loader import load_model_tests

        return tuple(load_model_tests(kind=kind))


def data_sets(case: Any, model: onnx.ModelProto) -> Iterator[tuple[list[Any], list[Any]]]:
    """Inputs and answers, which are in memory or in files beside the model."""
    for inputs, outputs in case.data_sets or ():
        yield [plain(x) for x in inputs], [plain(y) for y in outputs]
    for folder in sorted(Path(case.model_dir).glob("test_data_set*")) if case.model_dir else ():
        parts = zip(("input", "output"), (model.graph.input, model.graph.output), strict=True)
        yield tuple(stored(folder, name, infos) for name, infos in parts)  # type: ignore[misc]


def stored(folder: Path, name: str, infos: Any) -> list[Any]:
    """The values of a data set's files, in order."""
    return [
        plain(message_of(info).FromString((folder / f"{name}_{k}.pb").read_bytes()))
        for k, info in enumerate(infos)
        if (folder / f"{name}_{k}.pb").exists()
    ]


def message_of(info: Any) -> Any:
    """The kind of message that holds a value of the declared type."""
    kinds = {"sequence_type": onnx.SequenceProto, "optional_type": onnx.OptionalProto}
    return kinds.get(info.type.WhichOneof("value"), onnx.TensorProto)


def plain(value: Any) -> Any:
    """A message as NumPy would hold it."""
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, onnx.SequenceProto):
        return numpy_helper.to_list(value)
    return numpy_helper.to_optional(value) if isinstance(value, onnx.OptionalProto) else value


def operators_of(graph: onnx.GraphProto) -> set[str]:
    """Operators of a graph and of the bodies within it."""
    found = set()
    for node in graph.node:
        found |= {node.op_type} | {op for a in node.attribute for g in (a.g, *a.graphs) for op in operators_of(g)}
    return found


def assert_answer(got: Any, expected: Any, case: Any) -> None:
    """As onnx's runner compares, but that narrow floats may come as float32 (the engine says so in its outputs)."""
    assert isinstance(got, np.ndarray), f"a {type(got).__name__} where an array is expected"
    narrow = expected.dtype.itemsize == 2 and expected.dtype.kind in "fV"
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype or (narrow and got.dtype == WIDER), f"{got.dtype}, expected {expected.dtype}"
    if expected.dtype.kind in "OUS":
        np.testing.assert_array_equal(got, expected)
    elif narrow:
        relative = max(case.rtol, 2**-6 if expected.dtype != np.float16 else 2**-9)
        np.testing.assert_allclose(got.astype(WIDER), expected.astype(WIDER), rtol=relative, atol=max(case.atol, 1e-3))
    else:
        np.testing.assert_allclose(got, expected, rtol=case.rtol, atol=case.atol)


def outcome(case: Any) -> str:
    """'right', 'refused', or what is wrong with the case."""
    model = case.model or onnx.load(Path(case.model_dir) / "model.onnx")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            prepared = Backend.prepare(model)
            for inputs, expected in data_sets(case, model):
                got = prepared.run(inputs)
                assert len(got) == len(expected)
                for x, y in zip(got, expected, strict=True):
                    assert_answer(x, y, case)
    except le.UnsupportedModelError as refusal:
        names = operators_of(model.graph) | {info.name for info in (*model.graph.input, *model.graph.output)}
        names |= {f"operator set {entry.version}" for entry in model.opset_import}
        named = any(name in str(refusal) for name in names)
        return "refused" if named else f"a refusal that names neither operator, operator set nor tensor: {refusal}"
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return "right"


@pytest.mark.parametrize("kind", LEAST_RIGHT)
def test_every_case_is_right_or_refused_by_name(kind: str) -> None:
    """Random ones too must be refused, or run where only their shape and type are compared (NO_ANSWER)."""
    found = {c.name: outcome(c) for c in cases_of(kind) if not any(re.search(p, c.name) for p in NO_ANSWER)}
    wrong = {name: what for name, what in found.items() if what not in ("right", "refused")}
    assert not wrong, "\n".join([f"{len(wrong)} of {len(found)}", *(f"{name}: {w}" for name, w in wrong.items())])
    assert sum(what == "right" for what in found.values()) >= LEAST_RIGHT[kind]


def test_every_recurrent_case_is_right() -> None:
    found = {case.name: outcome(case) for case in cases_of("node") if RECURRENT.search(case.name)}
    assert len(found) >= 16
    assert set(found.values()) == {"right"}, found


def test_the_runner_of_onnx_itself_agrees() -> None:
    """As other backends are tested: BackendTest over the recurrent operators."""
    cases_of("node")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import onnx.backend.test

        suite = onnx.backend.test.BackendTest(Backend, __name__).include(f"{RECURRENT.pattern}.*_cpu").test_suite
    ran = []
    result = unittest.TestResult()
    result.addSuccess = lambda test: ran.append(test)  # type: ignore[method-assign]
    suite.run(result)
    assert not result.failures + result.errors
    assert len(ran) >= 16


# --- the interface ----------------------------------------------------------------------------------------------------


def relu(name: str = "y") -> onnx.ModelProto:
    infos = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [2]) for n in ("x", name)]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], [name])], "g", infos[:1], infos[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


X = np.array([-1, 2], np.float32)


def test_inputs_by_place_by_name_and_as_messages() -> None:
    for inputs in ([X], (X,), X, {"x": X}, [numpy_helper.from_array(X)]):
        (y,) = Backend.run_model(relu(), inputs)
        np.testing.assert_array_equal(y, [0, 2])
    with pytest.raises(le.InputError, match=r"1 inputs \(x\), got 2"):
        Backend.run_model(relu(), [X, X])


def test_one_node() -> None:
    draw = np.random.default_rng(3)
    node = helper.make_node("LSTM", ["X", "W", "R", "", "", "h"], ["", "Y_h"], hidden_size=2)
    inputs = [draw.normal(size=s).astype(np.float32) for s in ((3, 1, 4), (1, 8, 4), (1, 8, 2), (1, 1, 2))]
    (expected,) = reference.lstm(*inputs[:3], initial_h=inputs[3])[1:2]
    for given in ({}, {"opset_version": 14}, {"outputs_info": [(np.float32, (1, 1, 2))]}):
        (got,) = Backend.run_node(node, inputs, **given)
        np.testing.assert_allclose(got, expected, atol=1e-6)
    with pytest.raises(le.InputError, match="names 4 inputs, got 3"):
        Backend.run_node(node, inputs[:3])


def test_devices_and_what_is_not_implemented() -> None:
    assert Backend.supports_device("CPU")
    assert not Backend.supports_device("CUDA:0")
    with pytest.raises(le.UnsupportedModelError, match="CUDA"):
        Backend.prepare(relu(), "CUDA")
    assert Backend.is_compatible(relu())
    assert not Backend.is_compatible(relu(), "CUDA")
    foreign = relu()
    foreign.graph.node[0].op_type = "NoSuchOperator"
    assert not Backend.is_compatible(foreign)
    with pytest.raises(le.UnsupportedModelError, match="NoSuchOperator"):
        Backend.prepare(foreign)
    contradicting = relu()
    contradicting.graph.node[0].input[0] = "nothing"
    with pytest.raises(le.ModelFormatError, match="nothing"):
        Backend.is_compatible(contradicting)
