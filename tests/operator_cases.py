"""One-node cases of every operator but the recurrent ones, for tests of definitions and of shape rules."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lstm_engine.graph import ENGINE_DOMAIN, Node

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
    domain: str = ""  # the engine's: an operator of onnxruntime's own set
    peer: str = "onnx"  # whose answer is right: onnx's evaluator, unless it has a fault there; "none": nobody's

    @property
    def node(self) -> Node:
        names = tuple("" if x is None else f"x{k}" for k, x in enumerate(self.inputs))
        return Node(self.op, names, tuple(f"y{k}" for k in range(self.outputs)), self.attributes, "", self.domain)

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
    arrays = [None if x is None else np.asarray(x) for x in inputs]
    CASES.append(Case(op, arrays, attributes, outputs, "", peer))


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
case("TopK", f32(4, 6), i64(3), outputs=2)
case("TopK", ints(0, 5, 4, 6), i64(3), outputs=2)
case("TopK", f32(4, 6), i64(2), outputs=2, axis=0, largest=0)
case("CumSum", f32(4, 3), np.array(0))
case("CumSum", f32(4, 3), np.array(-1), exclusive=1, reverse=1)

for name in ["Conv", "ConvTranspose"]:
    for options in [
        {},
        {"pads": (2, 1), "strides": (2,)},
        {"dilations": (2,), "kernel_shape": (3,)},
        {"auto_pad": "SAME_UPPER", "strides": (2,)},
        {"auto_pad": "SAME_LOWER"},
        {"auto_pad": "VALID", "strides": (3,)},
    ]:
        case(name, f32(2, 4, 8), f32(4, 4, 3), f32(4), peer="onnxruntime", **options)
    case(name, f32(1, 6, 5), f32(6, 1, 2), peer="onnxruntime", group=6)
    case(name, f32(2, 4, 5, 6), f32(4, 2, 2, 3), f32(4), peer="onnxruntime", group=2, strides=(1, 2), dilations=(2, 1))
    case(name, f32(1, 2, 3, 4, 5), f32(2, 2, 2, 1, 3), peer="onnxruntime", pads=(1, 0, 0, 0, 0, 2))
    case(name, f32(0, 2, 4), f32(2, 2, 3), peer="none")
    case(name, f32(1, 1, 1), f32(1, 1, 1), peer="onnxruntime")
case("ConvTranspose", f32(2, 3, 5), f32(3, 2, 4), peer="onnxruntime", strides=(2,), pads=(1, 1), output_padding=(1,))
case("ConvTranspose", f32(1, 2, 4, 5), f32(2, 3, 3, 2), peer="onnxruntime", strides=(2, 2), output_shape=(8, 10))
case("ConvTranspose", f32(1, 2, 4), f32(2, 1, 3), f32(1), peer="onnxruntime", strides=(2,), output_shape=(10,))
case("ConvTranspose", f32(1, 2, 4), f32(2, 1, 3), peer="onnxruntime", output_shape=(4,), auto_pad="SAME_UPPER")
for name in ["MaxPool", "AveragePool", "LpPool"]:
    case(name, f32(2, 3, 8), peer="onnxruntime", kernel_shape=(3,))
    case(name, f32(2, 3, 8), peer="onnxruntime", kernel_shape=(3,), strides=(2,), pads=(1, 2))
    case(name, f32(2, 3, 8), peer="onnxruntime", kernel_shape=(3,), strides=(3,), ceil_mode=1)
    case(name, f32(2, 3, 9), peer="onnxruntime", kernel_shape=(2,), dilations=(3,))
    case(name, f32(1, 2, 5, 6), peer="onnxruntime", kernel_shape=(2, 3), strides=(2, 1), auto_pad="SAME_UPPER")
    case(name, f32(1, 2, 5, 6), peer="onnxruntime", kernel_shape=(2, 3), auto_pad="SAME_LOWER")
    case(name, f32(1, 2, 4, 3, 5), peer="onnxruntime", kernel_shape=(2, 2, 2), auto_pad="VALID")
    case(name, f32(0, 2, 4), peer="none", kernel_shape=(2,))
case("MaxPool", f32(2, 3, 6, 5), outputs=2, peer="onnxruntime", kernel_shape=(3, 2), strides=(2, 1), pads=(1, 0, 1, 1))
case("MaxPool", f32(2, 3, 6, 5), outputs=2, peer="onnxruntime", kernel_shape=(3, 2), storage_order=1)
case("MaxPool", ints(-99, 99, 1, 2, 6).astype(np.int8), peer="onnxruntime", kernel_shape=(3,), pads=(2, 0))
case("AveragePool", f32(2, 3, 8), peer="onnxruntime", kernel_shape=(3,), pads=(1, 2), count_include_pad=1)
case(
    *("AveragePool", f32(1, 2, 5, 6)),
    peer="onnxruntime",
    kernel_shape=(3, 2),
    strides=(2, 3),
    pads=(1, 0, 1, 1),
    ceil_mode=1,
    count_include_pad=1,
)
case("LpPool", f32(2, 3, 8), peer="onnxruntime", kernel_shape=(3,), p=1)
case("LpPool", f32(2, 3, 8), peer="onnxruntime", kernel_shape=(3,), p=3)
for name in ["GlobalMaxPool", "GlobalAveragePool", "GlobalLpPool"]:
    case(name, f32(2, 3, 5), peer="onnxruntime")
    case(name, f32(2, 3, 4, 5), peer="onnxruntime")
case("GlobalLpPool", f32(2, 3, 5), peer="onnxruntime", p=3)

case("ScatterElements", f32(4, 3), i64([0, 1, 2], [3, 2, 0]), f32(2, 3), reduction="max")
case("ScatterElements", f32(4, 3), i64([0, 1], [2, 2]), f32(2, 2), axis=-1, reduction="min")
case("ScatterND", f32(4, 3), i64([0], [0]), f32(2, 3), reduction="add")
case("ScatterND", f32(4, 3), i64([1], [1]), f32(2, 3), reduction="max")
case("ScatterND", f32(4, 3), i64([1], [1]), f32(2, 3), reduction="min")

case("Multinomial", f32(3, 4), peer="none", sample_size=5, dtype=7)
case("Multinomial", f32(3, 4), peer="none", seed=2.0)
case("RandomUniform", peer="none", shape=(2, 3), low=-1.0)
case("RandomNormal", peer="none", shape=(2, 3), mean=5.0, seed=1.5, dtype=11)
case("RandomUniformLike", f32(2, 3), peer="none")
case("RandomNormalLike", f32(2, 3), peer="none", dtype=11)
case("Bernoulli", rng.random((3, 4)).astype(np.float32), peer="none", dtype=9)
case("Bernoulli", rng.random((3, 4)).astype(np.float32), peer="none")

for name in ["Tan", "Sinh", "Cosh", "Asinh", "Atan"]:
    case(name, f32(2, 3))
for name in ["Asin", "Acos", "Atanh"]:
    case(name, rng.uniform(-0.9, 0.9, (2, 3)).astype(np.float32))
case("Acosh", 1 + positive(2, 3))
case("Shrink", EDGES, bias=0.25, lambd=1.0)
case("Shrink", f32(2, 3))
case("BitwiseNot", SMALL)
for name in ["BitwiseAnd", "BitwiseOr", "BitwiseXor"]:
    case(name, SMALL, i64(3, -3, 4))
for direction in ["LEFT", "RIGHT"]:
    case("BitShift", ints(0, 255, 3, 4).astype(np.uint8), ints(0, 8, 4).astype(np.uint8), direction=direction)
    case("BitShift", np.array([1, 1 << 31], np.uint32), np.array([31, 3], np.uint32), direction=direction)

case("InstanceNormalization", f32(2, 3, 4), f32(3), f32(3))
case("InstanceNormalization", f32(2, 3, 4, 5), f32(3), f32(3), epsilon=0.1, peer="onnxruntime")
case("GroupNormalization", f32(2, 6, 4), f32(6), f32(6), num_groups=3)
case("GroupNormalization", f32(2, 4, 3, 2), f32(4), f32(4), num_groups=1, epsilon=0.1)
case("GroupNormalization", f32(2, 6, 4), f32(3), f32(3), num_groups=3, per_group=1, peer="none")
case("RMSNormalization", f32(2, 3, 4), f32(4))
case("RMSNormalization", f32(2, 3, 4), f32(3, 4), axis=1, epsilon=0.1)
case("MeanVarianceNormalization", f32(2, 3, 4, 5))
case("MeanVarianceNormalization", f32(2, 3, 4), axes=(0, -1))
case("LpNormalization", f32(2, 3, 4))
case("LpNormalization", f32(2, 3, 4), axis=1, p=1, peer="onnxruntime")
case("LpNormalization", np.zeros((2, 3), np.float32), axis=0, peer="onnxruntime")
case("LRN", f32(2, 5, 3, 4), size=3, peer="onnxruntime")
case("LRN", f32(2, 5, 3, 4), size=5, alpha=0.5, beta=0.6, bias=2.0, peer="onnxruntime")

case("Einsum", f32(2, 3), f32(3, 4), equation="ij,jk->ik")
case("Einsum", f32(2, 3), f32(3, 4), equation="ij, jk")
case("Einsum", f32(2, 5, 3), f32(2, 3, 4), equation="...ij,...jk->...ik", peer="onnxruntime")
case("Einsum", f32(3, 3), equation="ii->i")
case("Einsum", f32(3, 4), equation="ij->")
case("Einsum", f32(2, 3, 4), f32(4), f32(2), equation="bij,j,b->bi")
case("Einsum", f32(2, 3, 4), equation="b...->...b")
case("Det", f32(2, 3, 3))
case("Det", f32(3, 3))

for mode in ["nearest", "linear", "cubic"]:
    for place in ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel", "half_pixel_symmetric"]:
        options = {"mode": mode, "coordinate_transformation_mode": place, "peer": "onnxruntime"}
        case("Resize", f32(1, 1, 4, 5), None, np.array([1, 1, 1.7, 0.6], np.float32), **options)
        case("Resize", f32(1, 1, 4, 5), None, None, i64(1, 1, 7, 9), **options)
        case("Resize", f32(1, 1, 4, 5), None, None, i64(1, 1, 1, 3), **options)
for rounding in ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]:
    case(*("Resize", f32(2, 5), None, np.array([1, 2.5], np.float32)), nearest_mode=rounding, peer="onnxruntime")
    case(
        *("Resize", f32(2, 6), None, np.array([1, 0.5], np.float32)),
        nearest_mode=rounding,
        coordinate_transformation_mode="asymmetric",
        peer="onnxruntime",
    )
case("Resize", f32(1, 1, 4, 5), None, None, i64(7, 3), axes=(2, 3), mode="linear", peer="onnxruntime")
case("Resize", f32(1, 1, 4, 5), None, None, i64(7, 8), axes=(2, 3), keep_aspect_ratio_policy="not_larger")
case("Resize", f32(1, 1, 4, 5), None, None, i64(7, 8), axes=(2, 3), keep_aspect_ratio_policy="not_smaller")
case("Resize", f32(1, 1, 4, 5), None, None, i64(1, 1, 8, 8), mode="cubic", cubic_coeff_a=-0.5, exclude_outside=1)
case("Resize", f32(1, 1, 8, 9), None, None, i64(1, 1, 3, 4), mode="linear", antialias=1, peer="onnxruntime")
case("Resize", f32(1, 1, 8, 9), None, None, i64(1, 1, 3, 4), mode="cubic", antialias=1, peer="onnxruntime")
for mode in ["linear", "cubic"]:
    options = {"mode": mode, "antialias": 1, "exclude_outside": 1, "peer": "onnxruntime"}
    case("Resize", f32(1, 1, 8, 9), None, None, i64(1, 1, 3, 12), **options)
case(
    *("Resize", f32(1, 1, 4, 5), np.array([0, 0, 0.4, -0.2, 1, 1, 0.8, 0.9], np.float32), None, i64(1, 1, 3, 4)),
    coordinate_transformation_mode="tf_crop_and_resize",
    mode="linear",
    extrapolation_value=7.0,
    peer="onnxruntime",
)

case("DFT", f32(2, 6, 1))
case("DFT", f32(2, 6, 2), None, np.array(1))
case("DFT", f32(2, 6, 1), np.array(8), onesided=1)
case("DFT", f32(2, 6, 4, 1), np.array(3), np.array(1), onesided=1)
case("DFT", f32(2, 6, 2), inverse=1)
case("DFT", f32(2, 4, 2), inverse=1, onesided=1, peer="none")
case("STFT", f32(2, 16, 1), np.array(4), positive(8))
case("STFT", f32(2, 16, 1), np.array(4), None, np.array(6), onesided=0)
case("STFT", f32(1, 20), np.array(3), positive(5), np.array(5), peer="onnxruntime")
for name in ["HannWindow", "HammingWindow", "BlackmanWindow"]:
    case(name, np.array(10))
    case(name, np.array(9), periodic=0, output_datatype=11)
    case(name, np.array(0), peer="none")
case("MelWeightMatrix", np.array(8), np.array(16), np.array(8192), np.float32(0), np.float32(4096))
case(
    "MelWeightMatrix", np.array(20), np.array(64), np.array(16000), np.float32(20), np.float32(7000), peer="onnxruntime"
)

case("DepthToSpace", f32(2, 8, 2, 3), blocksize=2)
case("DepthToSpace", f32(2, 8, 2, 3), blocksize=2, mode="CRD")
case("SpaceToDepth", f32(2, 2, 4, 6), blocksize=2)
case("EyeLike", ints(0, 9, 3, 4), k=1, dtype=1)
case("EyeLike", f32(3, 3), k=-1)
case("Compress", f32(3, 4), np.array([True, False, True]), axis=0)
case("Compress", f32(3, 4), np.array([False, True]), axis=-1)
case("Compress", f32(3, 4), mask(12))
case("Unique", ints(0, 4, 10).astype(np.float32), outputs=4)
case("Unique", ints(0, 4, 10), outputs=4, sorted=0)
case("Unique", ints(0, 2, 6, 2), outputs=4, axis=0, peer="onnxruntime")
case("CumProd", f32(4, 3), np.array(0), peer="none")
case("CumProd", f32(4, 3), np.array(-1), exclusive=1, reverse=1, peer="none")


def u8(*shape: int) -> np.ndarray:
    return ints(0, 256, *shape).astype(np.uint8)


def i8(*shape: int) -> np.ndarray:
    return ints(-128, 128, *shape).astype(np.int8)


def scale(*shape: int) -> np.ndarray:
    return rng.uniform(0.01, 0.1, shape).astype(np.float32)


ort: dict[str, Any] = {"peer": "onnxruntime"}
case("QuantizeLinear", EDGES, np.float32(0.1), np.uint8(128), **ort)
case("QuantizeLinear", f32(2, 3), np.float32(0.1), **ort)
case("QuantizeLinear", f32(2, 3), scale(1), np.zeros(1, np.int8), **ort)
case("QuantizeLinear", f32(2, 3, 4), scale(3), i8(3), **ort)
case("QuantizeLinear", f32(2, 3, 4), scale(2), i8(2), axis=0, **ort)
case("QuantizeLinear", f32(2, 3), np.float32(0.01), np.int16(5), **ort)
case("QuantizeLinear", f32(2, 6), scale(2, 3), i8(2, 3), axis=1, block_size=2, **ort)
case("QuantizeLinear", f32(2, 3), np.float32(0.1), output_dtype=3, **ort)
case("DequantizeLinear", u8(2, 3), np.float32(0.1), np.uint8(128), **ort)
case("DequantizeLinear", i8(2, 3, 4), scale(3), i8(3), **ort)
case("DequantizeLinear", i8(2, 3, 4), scale(4), axis=-1, **ort)
case("DequantizeLinear", ints(-999, 999, 2, 3).astype(np.int32), np.float32(0.1), **ort)
case("DequantizeLinear", i8(2, 5), scale(2, 3), i8(2, 3), axis=1, block_size=2, **ort)
case("DynamicQuantizeLinear", f32(3, 4), outputs=3, **ort)
case("DynamicQuantizeLinear", positive(3, 4), outputs=3, **ort)
case("DynamicQuantizeLinear", -positive(3, 4), outputs=3, **ort)
case("DynamicQuantizeLinear", np.zeros((2, 2), np.float32), outputs=3, **ort)
case("MatMulInteger", u8(2, 3), i8(3, 4), **ort)
case("MatMulInteger", u8(5, 2, 3), u8(3, 4), np.uint8(120), np.uint8(99), **ort)
case("MatMulInteger", u8(2, 3), i8(3, 4), np.uint8(120), i8(4), **ort)
case("MatMulInteger", u8(2, 3), i8(3, 4), u8(2), peer="none")
case(
    "QLinearMatMul", u8(2, 30), scale(), np.uint8(9), i8(30, 4), scale(), np.int8(3), np.float32(3), np.uint8(99), **ort
)
case("QLinearMatMul", i8(2, 30), scale(), np.int8(9), i8(30, 4), scale(4), i8(4), np.float32(3), np.int8(9), **ort)
case("ConvInteger", u8(2, 3, 8), u8(4, 3, 3), np.uint8(7), np.uint8(9), pads=(1, 1), **ort)
case("ConvInteger", u8(1, 4, 5, 6), u8(4, 2, 3, 2), np.uint8(7), group=2, strides=(2, 1), **ort)
q = (u8(2, 4, 9), scale(), np.uint8(120))
case("QLinearConv", *q, i8(6, 4, 3), scale(), np.int8(0), np.float32(2), np.uint8(99), pads=(1, 1), **ort)
case("QLinearConv", *q, i8(6, 4, 3), scale(6), np.zeros(6, np.int8), np.float32(2), np.uint8(99), strides=(2,), **ort)
bias = ints(-5000, 5000, 6).astype(np.int32)
case("QLinearConv", *q, u8(6, 2, 2), scale(), np.uint8(99), np.float32(2), np.uint8(99), bias, group=2, **ort)


def theirs(op: str, *inputs: np.ndarray | None, outputs: int = 1, **attributes: Any) -> None:
    """A case of onnxruntime's own set."""
    arrays = [None if x is None else np.asarray(x) for x in inputs]
    CASES.append(Case(op, arrays, attributes, outputs, ENGINE_DOMAIN, "onnxruntime"))


theirs("FusedMatMul", f32(2, 3), f32(3, 4), alpha=0.5)
theirs("FusedMatMul", f32(2, 3, 4), f32(2, 5, 3), transA=1, transB=1)
theirs("FusedMatMul", f32(3, 2, 4), f32(2, 4, 5), transBatchA=1)
theirs("FusedMatMul", f32(3, 4, 2, 5), f32(6, 4, 2, 5), transBatchA=1, transBatchB=1, transB=1)
theirs("MatMulIntegerToFloat", u8(2, 5), i8(5, 4), scale(), scale())
theirs("MatMulIntegerToFloat", u8(3, 2, 5), i8(5, 4), scale(), scale(4), np.uint8(99), i8(4), f32(4))
theirs("QGemm", u8(2, 9), scale(), np.uint8(9), i8(9, 4), scale(), np.int8(3), ints(-99, 99, 4).astype(np.int32))
by_column = (scale(4), i8(4))
theirs(
    "QGemm", u8(9, 2), scale(), np.uint8(9), i8(4, 9), *by_column, None, np.float32(3), np.uint8(9), transA=1, transB=1
)
ints_32 = ints(-99, 99, 2, 4).astype(np.int32)
theirs("QGemm", i8(2, 9), scale(), np.int8(9), i8(9, 4), *by_column, ints_32, np.float32(3), np.int8(9))
for name in ["QLinearAdd", "QLinearMul"]:
    theirs(name, u8(4, 5), scale(), np.uint8(9), u8(5), scale(), np.uint8(99), np.float32(0.17), np.uint8(77))
    theirs(name, i8(4, 5), scale(), np.int8(0), i8(4, 1), scale(), np.int8(-9), np.float32(0.17), np.int8(3))
for name in ["QLinearSigmoid", "QLinearLeakyRelu"]:
    theirs(name, u8(4, 5), scale(), np.uint8(99), np.float32(1 / 256), np.uint8(3))
    theirs(name, i8(4, 5), scale(), None, np.float32(1 / 100), np.int8(-100))
theirs("QLinearLeakyRelu", u8(4, 5), scale(), np.uint8(99), np.float32(1 / 50), np.uint8(99), alpha=0.3)
theirs("QLinearSoftmax", u8(4, 5), scale(), np.uint8(99), np.float32(1 / 256), np.uint8(0), axis=-1, opset=13)
theirs("QLinearSoftmax", i8(2, 3, 4), scale(), np.int8(9), np.float32(1 / 256), np.int8(-128), axis=1, opset=11)
first, second = (u8(2, 3), scale(), np.uint8(9)), (u8(2, 4), scale(), np.uint8(99))
theirs("QLinearConcat", np.float32(0.03), np.uint8(50), *first, *second, axis=1)
theirs("QLinearWhere", mask(2, 3), *first, u8(3), scale(), np.uint8(99), np.float32(0.03), np.uint8(50))
picture = (u8(2, 3, 6, 5), np.float32(0.0513), np.uint8(9), np.float32(0.0421), np.uint8(20))
theirs("QLinearAveragePool", *picture, kernel_shape=(2, 3), strides=(2, 1), pads=(1, 0, 0, 1))
theirs("QLinearAveragePool", *picture, kernel_shape=(3, 2), count_include_pad=1, pads=(1, 1, 1, 1), ceil_mode=1)
theirs("QLinearGlobalAveragePool", *picture)


def quantised_lstm(kind: Any, columns: bool, **attributes: Any) -> None:
    """DynamicQuantizeLSTM with weights of all for one scale, or one for each column."""
    D, T, B, I, H = 1 + (attributes.get("direction") == "bidirectional"), 4, 3, 5, 6  # noqa: E741
    low, high = np.iinfo(kind).min, np.iinfo(kind).max + 1
    per = (D, 4 * H) if columns else (D,)
    zeros = [np.zeros(per, kind) if columns else ints(low, high, *per).astype(kind) // 8 for _ in range(2)]
    weights = [ints(low, high, D, rows, 4 * H).astype(kind) for rows in (I, H)]
    scales = [rng.uniform(0.001, 0.004, per).astype(np.float32) for _ in range(2)]
    theirs(
        *("DynamicQuantizeLSTM", f32(T, B, I), *weights, f32(D, 8 * H), None, f32(D, B, H), f32(D, B, H), None),
        *(scales[0], zeros[0], scales[1], zeros[1]),
        outputs=3,
        hidden_size=H,
        **attributes,
    )


for kind in [np.int8, np.uint8]:
    for columns in [False, True]:
        quantised_lstm(kind, columns)
        quantised_lstm(kind, columns, direction="bidirectional")
quantised_lstm(np.int8, True, direction="reverse", clip=0.7, activations=("HardSigmoid", "Tanh", "Relu"))
quantised_lstm(np.int8, False, input_forget=1)


def ours(op: str, *inputs: np.ndarray | None, **attributes: Any) -> None:
    """A case of the engine's own operators, which nobody else has; tests of streams hold them against ONNX's."""
    arrays = [None if x is None else np.asarray(x) for x in inputs]
    CASES.append(Case(op, arrays, attributes, 2, ENGINE_DOMAIN, "none"))


ours("CausalConv", f32(2, 4, 5), f32(2, 4, 2), f32(3, 4, 3), f32(3), axis=2)
ours("CausalConv", f32(2, 4, 5, 3), f32(2, 4, 4, 3), f32(6, 2, 3, 2), axis=2, group=2, dilations=(2, 1), strides=(1, 1))
for filters in [(), (3,)]:
    scales = [np.float32(0.03), np.uint8(7), f32(3, 4, 3).view(np.uint8)[..., :3], np.full(filters, 0.02, np.float32)]
    bytes_ = f32(2, 4, 7).view(np.uint8)[..., :7]
    quantised = [*scales, np.zeros(filters, np.uint8), np.float32(4), np.uint8(99), np.arange(3, dtype=np.int32)]
    ours("CausalQLinearConv", bytes_[..., 2:], bytes_[..., :2], *quantised, axis=2)
for name in ["CausalMaxPool", "CausalAveragePool"]:
    ours(name, f32(2, 4, 5), f32(2, 4, 2), axis=2, kernel_shape=(3,))
ours("CausalCumSum", f32(2, 5), f32(2, 1), axis=1)
ours("CausalCumSum", f32(5, 2), f32(1, 2), axis=0, exclusive=1)


heads = {"q_num_heads": 2, "kv_num_heads": 2}
case("Attention", f32(2, 2, 3, 4), f32(2, 2, 5, 4), f32(2, 2, 5, 6), **ort)
case("Attention", f32(2, 3, 8), f32(2, 5, 8), f32(2, 5, 8), **heads, **ort)
case("Attention", f32(2, 3, 8), f32(2, 5, 8), f32(2, 5, 12), f32(3, 5), **heads, scale=0.3, **ort)
case("Attention", f32(2, 3, 8), f32(2, 3, 8), f32(2, 3, 8), is_causal=1, **heads, **ort)
case("Attention", f32(2, 3, 8), f32(2, 5, 8), f32(2, 5, 8), is_causal=1, **heads, **ort)
case("Attention", f32(2, 4, 3, 4), f32(2, 2, 5, 4), f32(2, 2, 5, 4), softcap=2.0, **ort)
case("Attention", f32(2, 4, 3, 4), f32(2, 2, 5, 4), f32(2, 2, 5, 4), f32(2, 1, 3, 5), outputs=4, **ort)
past = (f32(2, 2, 2, 4), f32(2, 2, 2, 4))
case("Attention", f32(2, 2, 3, 4), f32(2, 2, 3, 4), f32(2, 2, 3, 4), None, *past, outputs=3, **ort)
case("Attention", f32(2, 2, 3, 4), f32(2, 2, 5, 4), f32(2, 2, 5, 4), mask(3, 5) | (np.arange(5) < 1), **ort)
blind = np.array([[True, True, True], [False, False, False], [False, True, True]])
for hidden in (blind, np.where(blind, 0, -np.inf).astype(np.float32)):
    for is_causal in (0, 1):
        case("Attention", f32(2, 2, 3, 4), f32(2, 2, 3, 4), f32(2, 2, 3, 4), hidden, is_causal=is_causal, **ort)
angles = f32(2, 3, 2)
case("RotaryEmbedding", f32(2, 2, 3, 4), np.cos(angles), np.sin(angles), **ort)
case("RotaryEmbedding", f32(2, 3, 8), np.cos(angles), np.sin(angles), num_heads=2, interleaved=1, **ort)
case("RotaryEmbedding", f32(2, 2, 3, 4), np.cos(f32(9, 2)), np.sin(f32(9, 2)), ints(0, 9, 2, 3), **ort)
for mode in ["linear", "nearest"]:
    for padding in ["zeros", "border", "reflection"]:
        places = rng.uniform(-1.2, 1.2, (2, 3, 4, 2)).astype(np.float32)
        case("GridSample", f32(2, 1, 5, 6), places, mode=mode, padding_mode=padding, **ort)
        case("GridSample", f32(2, 1, 5, 6), places, mode=mode, padding_mode=padding, align_corners=1, **ort)
case("CenterCropPad", f32(4, 7), i64(6, 4), **ort)
case("CenterCropPad", f32(4, 7, 2), i64(3, 9), axes=(0, 1), **ort)
case("Col2Im", f32(1, 6, 9), i64(4, 5), i64(2, 3), **ort)
case("Col2Im", f32(2, 4, 9), i64(5, 6), i64(1, 2), strides=(2, 1), pads=(0, 0, 0, 0), dilations=(1, 3), **ort)
case("MaxUnpool", positive(1, 1, 2, 2), i64([[[5, 7], [13, 15]]]), kernel_shape=(2, 2), strides=(2, 2), **ort)
case("DeformConv", f32(1, 2, 4, 4), f32(3, 2, 2, 2), 0.3 * f32(1, 8, 3, 3), f32(3), **ort)
case("TensorScatter", f32(2, 2, 6, 3), f32(2, 2, 2, 3), i64(0, 3), **ort)
case("TensorScatter", f32(2, 2, 6, 3), f32(2, 2, 2, 3), i64(5, 3), mode="circular", **ort)
