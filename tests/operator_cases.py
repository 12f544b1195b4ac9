"""One-node cases of every operator but the recurrent ones, for tests of definitions and of shape rules."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lstm_engine.graph import Node

rng = np.random.default_rng(7)


def f32(*shape: int) -> np.ndarray:
    return (3 * rng.standard_normal(shape)).astype(np.float32)


def i64(*values: Any) -> np.ndarray:
    return np.array(values, np.int64)


def positive(*shape: int) -> np.ndarray:
    return np.abs(f32(*shape)) + np.float32(0.1)


def mask(*shape: int) -> np.ndarray:
    return rng.random(shape) < 0.5


def ints(low: int, high: int, *shape: int) -> np.ndarray:
    return rng.integers(low, high, shape)


@dataclass
class Case:
    op: str
    inputs: list[np.ndarray | None]
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: int = 1
    peer: str = "onnx"  # whose answer is right: onnx's evaluator, unless it has a fault there

    @property
    def node(self) -> Node:
        names = tuple("" if x is None else f"x{k}" for k, x in enumerate(self.inputs))
        return Node(self.op, names, tuple(f"y{k}" for k in range(self.outputs)), self.attributes)

    def __str__(self) -> str:
        shapes = "_".join("none" if x is None else "x".join(map(str, x.shape)) or "scalar" for x in self.inputs)
        words = ",".join(f"{k}={v}" for k, v in self.attributes.items() if not isinstance(v, np.ndarray))
        return f"{self.op}-{shapes}-{words}".replace(" ", "")


EDGES = np.array(
    [-np.inf, -100, -20, -3, -2.5, -1.0, -0.5, -0.0, 0, 0.5, 1.0, 1.5, 2.5, 3, 20, 100, np.inf], np.float32
)
SMALL = np.array([[-7, 7, -6], [0, 5, -1]], np.int64)

CASES: list[Case] = []


def case(op: str, *inputs: np.ndarray | None, outputs: int = 1, peer: str = "onnx", **attributes: Any) -> None:
    CASES.append(Case(op, [None if x is None else np.asarray(x) for x in inputs], attributes, outputs, peer))


for name in [
    "Sigmoid",
    "Tanh",
    "Relu",
    "LeakyRelu",
    "Elu",
    "Selu",
    "Celu",
    "HardSigmoid",
    "Softplus",
    "ThresholdedRelu",
]:
    case(name, EDGES)
    case(name, f32(2, 3))
    case(name, f32())
for name in ["HardSwish", "Softsign", "Gelu", "Mish", "Erf", "Sin", "Cos"]:
    case(name, EDGES[1:-1])
    case(name, f32(2, 3))
for name in ["Neg", "Abs", "Exp", "Reciprocal", "Floor", "Ceil", "Round", "Sign", "IsNaN", "IsInf", "Identity"]:
    case(name, EDGES)
    case(name, f32(3, 0))
case("Sqrt", positive(4))
case("Log", positive(4))
case("LeakyRelu", f32(5), alpha=0.3)
case("Elu", f32(5), alpha=0.3)
case("Selu", f32(5), alpha=1.1, gamma=0.7)
case("Celu", f32(5), alpha=0.3)
case("HardSigmoid", f32(5), alpha=0.3, beta=0.1)
case("ThresholdedRelu", f32(5), alpha=0.3)
case("Gelu", f32(5), approximate="tanh")
case("Swish", f32(5), alpha=0.7)
case("IsInf", EDGES, detect_negative=0)
case("PRelu", f32(2, 3), f32(3))
case("PRelu", f32(2, 3), f32(1))
case("Neg", SMALL)
case("Abs", SMALL)
case("Sign", SMALL)
case("Not", mask(2, 3))
case("Dropout", f32(2, 3), outputs=2)
case("Dropout", f32(2, 3), np.float32(0.3), np.array(False), seed=3)

for name in ["Add", "Sub", "Mul", "Div"]:
    case(name, f32(2, 3), f32(3))
    case(name, f32(4, 1, 3), f32(2, 1))
    case(name, f32(), f32(2))
    case(name, ints(-9, 9, 3, 4), ints(1, 5, 4))
case("Div", SMALL, i64(-2, 2, 4))
case("Mod", SMALL, i64(3, -3, 4))
case("Mod", SMALL, i64(3, -3, 4), fmod=1)
case("Mod", f32(5), f32(5), fmod=1)
case("Pow", f32(2, 3), np.float32(2))
case("Pow", positive(2, 3), f32(3))
case("Pow", f32(2, 3), i64(2))
case("Pow", SMALL, i64(2, 3, 0))
case("Pow", f32(2, 3), np.float64(3))
for name in ["Min", "Max", "Sum", "Mean"]:
    case(name, f32(2, 3))
    case(name, f32(2, 3), f32(3), f32(2, 1))
for name in ["Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"]:
    case(name, np.round(f32(4, 3)), np.round(f32(3)))
    case(name, ints(0, 3, 4, 3), ints(0, 3, 3))
for name in ["And", "Or", "Xor"]:
    case(name, mask(2, 3), mask(3))
case("Where", mask(2, 1), f32(3), f32(2, 3))
case("Where", mask(), i64(1, 2), i64(3))

case("Clip", EDGES, np.float32(-1), np.float32(2))
case("Clip", EDGES, None, np.float32(2))
case("Clip", EDGES, np.float32(-1))
case("Clip", EDGES)
case("Clip", SMALL, np.array(-2), np.array(5))
case("Clip", f32(5), np.float32(2), np.float32(-1))
for name in ["Softmax", "LogSoftmax", "Hardmax"]:
    case(name, f32(2, 3, 4))
    case(name, f32(2, 3, 4), axis=1)
    case(name, f32(2, 3, 4), axis=0)
    case(name, f32(4), axis=0)
case("Softmax", 200 * f32(2, 5))
case("LogSoftmax", 200 * f32(2, 5), peer="onnxruntime")

for number in (1, 6, 7, 9, 10, 11):
    case("Cast", f32(2, 3), to=number)
    case("Cast", SMALL, to=number)
case("Cast", mask(3), to=1)
case("CastLike", f32(2, 3), i64(0))

case("MatMul", f32(2, 3), f32(3, 4))
case("MatMul", f32(5, 1, 2, 3), f32(4, 3, 2))
case("MatMul", f32(3), f32(3, 4))
case("MatMul", f32(2, 3), f32(3))
case("MatMul", f32(3), f32(3))
case("MatMul", f32(0, 3), f32(3, 4))
case("Gemm", f32(2, 3), f32(3, 4), f32(4))
case("Gemm", f32(3, 2), f32(4, 3), f32(2, 1), transA=1, transB=1, alpha=0.5, beta=2.0)
case("Gemm", f32(2, 3), f32(3, 4))
case("Gemm", f32(2, 3), f32(3, 4), f32())
case("LayerNormalization", f32(2, 3, 4), f32(4), f32(4), outputs=3)
case("LayerNormalization", f32(2, 3, 4), f32(3, 4), axis=1, epsilon=0.1)
case("LayerNormalization", f32(2, 3, 4), f32(4), None, axis=-1)
case("LayerNormalization", f32(0, 3), f32(3))
case("BatchNormalization", f32(2, 3, 4), f32(3), f32(3), f32(3), positive(3))
case("BatchNormalization", f32(5, 3), f32(3), f32(3), f32(3), positive(3), epsilon=0.1, momentum=0.5)

case("Constant", value=f32(2, 3))
case("ConstantOfShape", i64(2, 3))
case("ConstantOfShape", i64(2, 0), value=i64(5))
case("ConstantOfShape", np.zeros(0, np.int64), value=i64(5))
case("Range", np.array(2), np.array(9), np.array(3))
case("Range", np.array(9), np.array(2), np.array(-3))
case("Range", np.array(2), np.array(2), np.array(1))
case("Range", np.float32(0), np.float32(1), np.float32(0.3))
case("Shape", f32(2, 3, 4))
case("Shape", f32(2, 3, 4), start=1)
case("Shape", f32(2, 3, 4), start=-2, end=-1)
case("Size", f32(2, 3, 4))
case("Size", f32())

case("Reshape", f32(2, 3, 4), i64(3, 8))
case("Reshape", f32(2, 3, 4), i64(0, -1))
case("Reshape", f32(2, 3, 4), i64(0, 0, 2, -1))
case("Reshape", f32(0, 3), i64(3, 0), allowzero=1)
case("Reshape", f32(1), np.zeros(0, np.int64))
case("Flatten", f32(2, 3, 4))
case("Flatten", f32(2, 3, 4), axis=0)
case("Flatten", f32(2, 3, 4), axis=3)
case("Flatten", f32(2, 3, 4), axis=-1)
case("Transpose", f32(2, 3, 4))
case("Transpose", f32(2, 3, 4), perm=(1, 0, 2))
case("Squeeze", f32(2, 1, 3, 1))
case("Squeeze", f32(2, 1, 3, 1), i64(1))
case("Squeeze", f32(2, 1, 3, 1), i64(-1, 1))
case("Unsqueeze", f32(2, 3), i64(0))
case("Unsqueeze", f32(2, 3), i64(-1, 1))
case("Unsqueeze", f32(), i64(0))
case("Expand", f32(2, 1), i64(3, 2, 4))
case("Expand", f32(2, 3), i64(1, 1))
case("Expand", f32(), i64(2, 0))
case("Tile", f32(2, 3), i64(2, 2))
case("Tile", f32(2, 3), i64(0, 1))
case("Slice", f32(5, 6), i64(1), i64(3))
case("Slice", f32(5, 6), i64(1, -2), i64(3, 2**63 - 1), i64(0, 1))
case("Slice", f32(5, 6), i64(-1), i64(-(2**63)), i64(1), i64(-2))
case("Slice", f32(5, 6), i64(4, 0), i64(0, 100), i64(-2, -1), i64(-1, 3))
case("Slice", f32(5, 6), i64(3), i64(1), i64(0))
case("Trilu", f32(2, 3, 4))
case("Trilu", f32(3, 3), np.array(1), upper=0)
case("Concat", f32(2, 3), f32(2, 1), axis=1)
case("Concat", f32(2, 3), f32(1, 3), f32(0, 3), axis=-2)
case("Concat", i64(1, 2), axis=0)
case("Split", f32(7, 3), outputs=3, num_outputs=3)
case("Split", f32(6, 3), i64(1, 2), outputs=2, axis=1)
case("Split", f32(6, 4), outputs=2, num_outputs=2, axis=-1)
case("Pad", f32(2, 3), i64(1, 0, 0, 2))
case("Pad", f32(2, 3), i64(1, 0, 0, 2), np.float32(7))
case("Pad", f32(2, 3), i64(2, 1), np.float32(7), i64(1))
case("Pad", f32(2, 4), i64(0, 2, 0, 1), mode="reflect")
case("Pad", f32(2, 4), i64(1, 2, 1, 1), mode="edge")
case("Pad", f32(2, 4), i64(1, 2, 1, 1), mode="wrap")
case("Pad", f32(4, 4), i64(-1, 0, 0, -2), peer="onnxruntime")
case("Pad", f32(4, 4), i64(-1, 2, 3, -2), peer="onnxruntime")
case("ReverseSequence", f32(4, 3, 2), i64(4, 1, 2))
case("ReverseSequence", f32(3, 4, 2), i64(4, 1, 2), batch_axis=0, time_axis=1)

case("Gather", f32(4, 3), i64(0, -1, 2))
case("Gather", f32(4, 3), np.array(1), axis=1)
case("Gather", f32(4, 3), ints(0, 3, 2, 2), axis=-1)
case("GatherElements", f32(4, 3), ints(-4, 4, 2, 3))
case("GatherElements", f32(4, 3), ints(0, 3, 4, 2), axis=1)
case("GatherND", f32(4, 3, 2), ints(0, 3, 5, 2))
case("GatherND", f32(4, 3, 2), ints(0, 2, 4, 3, 2), batch_dims=1)
case("GatherND", f32(4, 3, 2), ints(0, 3, 4, 1), batch_dims=1)
case("ScatterElements", f32(4, 3), i64([0, 1, 2], [3, 2, -1]), f32(2, 3))
case("ScatterElements", f32(2, 3), i64([1], [1]), f32(2, 1), axis=1, reduction="add")
case("ScatterND", f32(4, 3), i64([0], [2]), f32(2, 3))
case("ScatterND", f32(4, 3), i64([0, 1], [2, 2]), f32(2), reduction="mul")
case("OneHot", i64(0, 2, -1), np.array(4), f32(2))
case("OneHot", ints(0, 4, 2, 3), i64(4), f32(2), axis=1, peer="onnxruntime")
case("NonZero", mask(3, 4))
case("NonZero", np.zeros(4, np.float32))

for name in ["Sum", "Mean", "Prod", "Max", "Min", "L1", "L2", "SumSquare", "LogSumExp"]:
    case(f"Reduce{name}", f32(2, 3, 4))
    case(f"Reduce{name}", f32(2, 3, 4), i64(1))
    case(f"Reduce{name}", f32(2, 3, 4), i64(0, -1), keepdims=0)
case("ReduceLogSum", positive(2, 3, 4), i64(1))
case("ReduceSum", f32(2, 3), noop_with_empty_axes=1)
case("ReduceSum", ints(0, 9, 3, 4), i64(0))
case("ReduceMax", ints(0, 9, 3, 4), i64(0))
case("ReduceSum", f32(0, 3), i64(0))
case("ReduceProd", f32(0, 3), i64(0))
case("ReduceMax", f32(0, 3), i64(0))
case("ReduceMean", f32(0, 3), i64(1), peer="onnxruntime")
for name in ["ArgMax", "ArgMin"]:
    case(name, np.round(f32(4, 5)))
    case(name, np.round(f32(4, 5)), axis=1, keepdims=0)
    case(name, ints(0, 2, 4, 5), axis=-1, select_last_index=1)
case("TopK", ints(0, 5, 4, 6), i64(3), outputs=2)
case("TopK", f32(4, 6), i64(2), outputs=2, axis=0, largest=0)
case("CumSum", f32(4, 3), np.array(0))
case("CumSum", f32(4, 3), np.array(-1), exclusive=1, reverse=1)
