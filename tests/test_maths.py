"""Sigmoid, tanh, exp and log of the kernels, swept against NumPy in float64: errors and invariants."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import onnx
import pytest
from builders import make_model

import lstm_engine as le

ELEMENTS = ["float32", "float64"]


@cache
def function(op: str, element: str) -> Callable[[np.ndarray], np.ndarray]:
    """An elementwise operator as the engine runs it, on values in any shape."""
    node = onnx.helper.make_node(op, ["x"], ["y"])
    specs = [(name, element, ["n", 16]) for name in "xy"]
    model = le.load(make_model([node], specs[:1], specs[1:]).SerializeToString())

    def run(values: np.ndarray) -> np.ndarray:
        padded = np.zeros(-(-values.size // 16) * 16, element)
        padded[: values.size] = values.reshape(-1)
        return model.run(padded.reshape(-1, 16))["y"].reshape(-1)[: values.size].reshape(values.shape)

    return run


def sweep(element: str) -> np.ndarray:
    """[-100, 100], dense near 0, tiny and huge values of both signs, sorted."""
    parts = [np.linspace(-100, 100, 200_001), np.linspace(-1, 1, 100_001), np.linspace(-12, 12, 100_003)]
    least, most = (-44, 38) if element == "float32" else (-320, 307)
    tiny = np.logspace(least, 0, 20_000)
    huge = np.logspace(0, most, 20_000)
    values = np.concatenate([*parts, tiny, -tiny, huge, -huge, [0.0]]).astype(element)
    return np.unique(values)


def near(x: np.ndarray, edge: float) -> np.ndarray:
    """Every neighbour of a value where something changes, within 500 units in the last place."""
    start = np.array(edge, x.dtype)
    bits = start.view(f"i{x.itemsize}") + np.arange(-500, 501)
    return bits.astype(f"i{x.itemsize}").view(x.dtype)


@pytest.fixture(params=ELEMENTS)
def x(request: pytest.FixtureRequest) -> np.ndarray:
    values = sweep(request.param)
    edges = [0.5, 1, 2, 9, 17.3, 22, 44, 88.02, 88.72, 103.97, 709.78, 745.13]
    extra = np.concatenate([near(values, sign * edge) for edge in edges for sign in (1, -1)])
    return np.unique(np.concatenate([values, extra]))


def in_longer(f: Callable[[np.ndarray], np.ndarray], x: np.ndarray) -> np.ndarray:
    """The function in a longer type than x's own, so that its own error does not count."""
    with np.errstate(all="ignore"):
        return f(x.astype(np.longdouble))


def worst(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(got - expected).max())


def test_sigmoid(x: np.ndarray) -> None:
    y = function("Sigmoid", x.dtype.name)(x)
    expected = in_longer(lambda v: 1 / (1 + np.exp(-v)), x)
    assert worst(y, expected) <= (1.1e-7 if x.dtype == np.float32 else 4e-16)
    assert y.min() >= 0
    assert y.max() <= 1
    assert_monotone(y)
    normal = expected > np.finfo(x.dtype).tiny * 4
    relative = np.abs(y[normal] / expected[normal] - 1)
    assert relative.max() <= (1e-6 if x.dtype == np.float32 else 2e-15)


def test_tanh(x: np.ndarray) -> None:
    y = function("Tanh", x.dtype.name)(x)
    expected = in_longer(np.tanh, x)
    assert worst(y, expected) <= (1.6e-7 if x.dtype == np.float32 else 4e-16)
    assert np.abs(y).max() <= 1
    assert_monotone(y)
    np.testing.assert_array_equal(function("Tanh", x.dtype.name)(-x), -y)  # odd, to the last bit
    some = np.abs(x) > np.finfo(x.dtype).tiny * 4
    relative = np.abs(y[some] / expected[some] - 1)
    assert relative.max() <= (4e-7 if x.dtype == np.float32 else 1e-15)  # exact near 0


def test_exp(x: np.ndarray) -> None:
    y = function("Exp", x.dtype.name)(x)
    expected = in_longer(np.exp, x)
    info = np.finfo(x.dtype)
    inside = (expected > info.tiny * 4) & (expected < info.max * 0.999)
    assert np.abs(y[inside] / expected[inside] - 1).max() <= (3e-7 if x.dtype == np.float32 else 1e-15)
    assert (y[expected / 1.001 > info.max] == np.inf).all()
    assert (y[expected <= info.tiny / 2] <= info.tiny).all()
    assert y.min() >= 0
    assert_monotone(y[inside])


def test_log(x: np.ndarray) -> None:
    positive = x[x > np.finfo(x.dtype).tiny]
    y = function("Log", x.dtype.name)(positive)
    expected = in_longer(np.log, positive)
    bound = 2e-7 if x.dtype == np.float32 else 4e-16
    assert (np.abs(y - expected) <= bound * np.maximum(1, np.abs(expected))).all()
    assert_monotone(y, slack=2)


def assert_monotone(y: np.ndarray, slack: int = 1) -> None:
    """Never falls by more than ``slack`` units in the last place."""
    drop = y[:-1] - y[1:]
    assert (drop <= slack * np.spacing(np.maximum(np.abs(y[:-1]), np.abs(y[1:])))).all()


SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 1e-39, 3.4e38, -3.4e38, 1e4, -1e4, 128.0, -127.0]


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize(
    ("op", "definition"),
    [
        ("Sigmoid", lambda v: 1 / (1 + np.exp(-v))),
        ("Tanh", np.tanh),
        ("Exp", np.exp),
        ("Log", np.log),
        ("Softplus", lambda v: np.logaddexp(v, 0)),
        ("Softsign", lambda v: np.where(np.isinf(v), np.sign(v), v / (1 + np.abs(v)))),
        ("Relu", lambda v: np.where(v < 0, 0, v)),
        ("Elu", lambda v: np.where(v < 0, np.expm1(v), v)),
        ("HardSigmoid", lambda v: np.clip(0.2 * v + 0.5, 0, 1)),
        ("LeakyRelu", lambda v: np.where(v < 0, 0.01 * v, v)),
        ("Reciprocal", lambda v: 1 / v),
        ("Sqrt", np.sqrt),
        ("Abs", np.abs),
        ("Neg", np.negative),
    ],
)
def test_special_values(op: str, definition: Callable[[np.ndarray], np.ndarray], element: str) -> None:
    """NaN gives NaN, infinities saturate, denormal inputs count as what they are or as zero."""
    values = np.array(SPECIAL, element)
    y = function(op, element)(values)
    with np.errstate(all="ignore"):
        expected = definition(values.astype(np.float64)).astype(element)
        zeroed = np.where(np.abs(values) < np.finfo(element).tiny, 0 * values, values)
        flushed = definition(zeroed.astype(np.float64)).astype(element)
    close = np.isclose(y, expected, rtol=1e-5, atol=1e-37, equal_nan=True)
    close |= np.isclose(y, flushed, rtol=1e-5, atol=1e-37, equal_nan=True)
    assert close.all(), f"{values[~close]}: {y[~close]}, expected {expected[~close]}"


@pytest.mark.parametrize("element", ELEMENTS)
def test_exp_and_elu_at_zero(element: str) -> None:
    zeros = np.array([0.0, -0.0], element)
    assert function("Exp", element)(zeros).tolist() == [1, 1]
    assert function("Elu", element)(zeros).tolist() == [0, 0]
    assert function("Log", element)(np.ones(1, element)).tolist() == [0]
    assert function("Sigmoid", element)(zeros).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("op", ["Sigmoid", "Tanh", "Exp", "Log"])
def test_a_value_does_not_depend_on_its_neighbours(op: str, element: str) -> None:
    """Every lane of a vector computes the same."""
    values = np.random.default_rng(0).uniform(0.01, 5, 64).astype(element)
    together = function(op, element)(values)
    for shift in (1, 7, 15):
        np.testing.assert_array_equal(function(op, element)(np.roll(values, shift)), np.roll(together, shift))


@pytest.mark.parametrize("element", ELEMENTS)
def test_softmax_sums_to_one(element: str) -> None:
    from cases import NetCase, model_of

    for outputs in (5, 16, 17, 65):
        case = NetCase(head="dense_softmax", outputs=outputs, dtype=element)
        y = model_of(case).run(case.feeds())["y"]
        assert np.abs(y.sum(-1) - 1).max() <= (5e-7 if element == "float32" else 1e-15)
        assert y.min() > 0
        log = NetCase(head="dense_log_softmax", outputs=outputs, dtype=element)
        logs = model_of(log).run(log.feeds())["y"]
        np.testing.assert_allclose(np.exp(logs), y, rtol=0, atol=1e-6 if element == "float32" else 1e-14)
        assert logs.max() <= 0
