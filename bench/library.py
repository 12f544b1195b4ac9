"""Exported libraries, a sample a call, beside the engine's own kernels: both called from C, with no Python in between.

The engine's side is its compiled executor on a stream's own context: what a step of Stream is without the way in.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

import lstm_engine as le
from lstm_engine.encoding import Context, port_word
from lstm_engine.encoding import Port as PortWord
from lstm_engine.report.timing import Loop, Settings, Summary, interleave

from .environment import cores_for, pin

BEGIN, END = "<!-- library:start -->", "<!-- library:end -->"
NAME: Final = "network"
SAMPLES: Final = 512  # that loops take their inputs from, again and again
BLOCK: Final = 64
CLIPPER: Final = Path(__file__).resolve().parents[1] / "models" / "clipper" / "clipper.onnx"
#: The loops. A context is what the executor is called with; places: of the words that are set anew for each step.
_SOURCE: Final = f"""
#include <stddef.h>
#include <stdint.h>
typedef int32_t (*step)(void *, const float *, float *);
typedef int32_t (*feed)(void *, size_t, const float *, float *);
typedef int64_t (*call)(int64_t);
int64_t by_steps(step f, void *self, int64_t n, const float *x, int64_t in, float *y, int64_t out)
{{
    int64_t fault = 0;
    for (int64_t k = 0; k < n; k++) fault |= f(self, x + k % {SAMPLES} * in, y + k % {SAMPLES} * out);
    return fault;
}}
int64_t by_blocks(feed f, void *self, int64_t n, const float *x, int64_t in, float *y, int64_t out)
{{
    int64_t fault = 0;
    for (int64_t k = 0; k < n; k += {BLOCK}) fault |= f(self, {BLOCK}, x + k % {SAMPLES} * in, y + k % {SAMPLES} * out);
    return fault;
}}
int64_t by_kernels(call f, int64_t *context, int64_t n, const float *x, int64_t in, float *y, int64_t out,
                   int64_t x_word, int64_t y_word, int64_t total_word)
{{
    int64_t fault = 0;
    for (int64_t k = 0; k < n; k++) {{
        context[x_word] = (int64_t)(x + k % {SAMPLES} * in);
        context[y_word] = (int64_t)(y + k % {SAMPLES} * out);
        context[total_word] = 1;
        fault |= f((int64_t)context);
    }}
    return fault;
}}
"""


@dataclass(frozen=True)
class Network:
    """A row. ``units``: (I, H, O) of an LSTM and a dense layer behind it (O = 0: none), None for the shipped model;
    ``published``: RTNeural's nanoseconds for the shape, on its authors' machine with its Eigen backend."""

    name: str
    units: tuple[int, int, int] | None
    published: float | None = None

    def model(self) -> le.Model:
        """The network, with seeded weights."""
        return le.load(CLIPPER if self.units is None else _written(*self.units))


ROWS: Final = (
    Network("audio effect: LSTM 1 → 24, dense 1", None),
    Network("LSTM 1 → 16, dense 1", (1, 16, 1), 80),
    Network("LSTM 1 → 32, dense 1", (1, 32, 1), 210),
    Network("LSTM 64 → 64", (64, 64, 0), 1040),
)


@dataclass(frozen=True)
class Figures:
    """Of one network: seconds a sample."""

    network: Network
    library: Summary
    kernels: Summary
    blocks: Summary


def measure(settings: Settings, networks: tuple[Network, ...] = ROWS) -> list[Figures]:
    """Every row, on one core. Raises RuntimeError where there is no compiler, or a result is not the engine's."""
    pin(cores_for(1))
    with tempfile.TemporaryDirectory() as folder:
        driver = _driver(Path(folder))
        return [_measured(network, driver, Path(folder) / str(k), settings) for k, network in enumerate(networks)]


def table(figures: list[Figures]) -> str:
    """As Markdown: nanoseconds."""
    lines = [
        "| a sample, from C | library, ns | engine's kernels, ns | library to kernels | library, "
        f"blocks of {BLOCK}, ns | RTNeural, published, ns |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for each in figures:
        published = "–" if each.network.published is None else f"{each.network.published:,.0f}"
        ratio = each.library.median / each.kernels.median
        times = [f"{1e9 * summary.median:.0f}" for summary in (each.library, each.kernels, each.blocks)]
        lines.append(f"| {each.network.name} | {times[0]} | {times[1]} | {ratio:.2f} | {times[2]} | {published} |")
    return "\n".join(lines)


def _measured(network: Network, driver: ctypes.CDLL, folder: Path, settings: Settings) -> Figures:
    model = network.model()
    stream = model.stream()
    width, result = (int(np.prod(specs[0].shape)) for specs in (stream.inputs, stream.outputs))
    x = np.random.default_rng(0).normal(size=(SAMPLES, width)).astype(np.float32)
    expected = stream.fork().feed(x.reshape(SAMPLES, *(stream.inputs[0].shape or ()))).reshape(SAMPLES, result)
    loops: dict[str, Loop] = {}
    kept: list[Any] = [model]
    for name, prepare in (("library", _by_library), ("blocks", _by_library), ("kernels", _by_kernels)):
        y = np.zeros((SAMPLES, result), np.float32)
        arrays = (_at(x), ctypes.c_int64(width), _at(y), ctypes.c_int64(result))
        loop, owner = prepare(model, driver, folder / name, arrays, name)
        loop(SAMPLES)
        if not np.array_equal(y.view(np.int32), np.ascontiguousarray(expected).view(np.int32)):
            raise RuntimeError(f"{network.name}: what {name} gives is not what the stream gives")
        loops[name] = loop
        kept.append((owner, y))
    found: Mapping[str, Summary] = interleave(loops, settings)
    return Figures(network, found["library"], found["kernels"], found["blocks"])


_Arrays = tuple[ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64]


def _by_library(model: le.Model, driver: ctypes.CDLL, folder: Path, arrays: _Arrays, way: str) -> tuple[Loop, Any]:
    """Steps of an instance, or blocks of them."""
    made = le.export(model, folder, name=NAME, block=BLOCK if way == "blocks" else 1)
    shared = next((path for path in made.files if path.suffix in (".so", ".dylib")), None)
    if shared is None:
        raise RuntimeError("; ".join(made.missing) or "no shared library to load here")
    library = ctypes.CDLL(str(shared))
    room = np.zeros(made.description["instance_bytes"] + 64, np.uint8)
    instance = ctypes.c_void_p(room.ctypes.data + -room.ctypes.data % 64)
    if library[f"{NAME}_init"](instance, ctypes.c_size_t(made.description["instance_bytes"])):
        raise RuntimeError("the library refuses its instance")
    function = library[f"{NAME}_feed" if way == "blocks" else f"{NAME}_step"]
    run = driver.by_blocks if way == "blocks" else driver.by_steps

    def loop(n: int) -> None:
        _check(run(function, instance, ctypes.c_int64(n), *arrays))

    return loop, (library, room)


def _by_kernels(model: le.Model, driver: ctypes.CDLL, folder: Path, arrays: _Arrays, way: str) -> tuple[Loop, Any]:
    """Steps of the compiled executor on a stream's context."""
    stream = model.stream()
    runner = stream.short_way
    if runner is None:
        raise RuntimeError("the network's step is more than a call of the executor")
    ports = [runner.program.inputs[0].index, runner.program.outputs[0].index]
    words = [int(port_word(index, PortWord.ADDRESS)) for index in ports]
    places = [ctypes.c_int64(word) for word in (*words, int(Context.TOTAL))]
    call = ctypes.c_void_p(int(runner.context[Context.EXECUTOR]))

    def loop(n: int) -> None:
        _check(driver.by_kernels(call, ctypes.c_void_p(runner.address), ctypes.c_int64(n), *arrays, *places))

    return loop, stream


def _check(fault: int) -> None:
    if fault:
        raise RuntimeError(f"a step failed: {fault}")


def _at(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _driver(folder: Path) -> ctypes.CDLL:
    """The loops, compiled."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        raise RuntimeError("no C compiler here (cc, gcc, clang): the loops are C")
    source, library = folder / "loops.c", folder / "libloops.so"
    source.write_text(_SOURCE, encoding="utf-8")
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    driver = ctypes.CDLL(str(library))
    for name in ("by_steps", "by_blocks", "by_kernels"):
        driver[name].restype = ctypes.c_int64
        setattr(driver, name, driver[name])
    return driver


def _written(I: int, H: int, O: int) -> bytes:  # noqa: E741
    """An LSTM, and a dense layer behind it if O is not 0, as ONNX."""
    from onnx import TensorProto, helper, numpy_helper

    draw, bound = np.random.default_rng([1, I, H]), 1 / np.sqrt(H)
    shapes = {"W": (1, 4 * H, I), "R": (1, 4 * H, H), "B": (1, 8 * H), "head": (H, O), "bias": (O,)}
    weights = {name: draw.uniform(-bound, bound, shape).astype(np.float32) for name, shape in shapes.items()}
    states = {"h": "hn", "c": "cn"}
    nodes = [
        helper.make_node("LSTM", ["X", "W", "R", "B", "", *states], ["Y", *states.values()], hidden_size=H),
        helper.make_node("Squeeze", ["Y", "direction"], ["features" if O else "out"]),
    ]
    if O:
        nodes.append(helper.make_node("MatMul", ["features", "head"], ["unbiased"]))
        nodes.append(helper.make_node("Add", ["unbiased", "bias"], ["out"]))
    else:
        del weights["head"], weights["bias"]

    def tensor(name: str, *shape: int | str) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        nodes,
        "network",
        [tensor("X", "T", "B", I), *(tensor(name, 1, "B", H) for name in states)],
        [tensor("out", "T", "B", O or H), *(tensor(name, 1, "B", H) for name in states.values())],
        [
            *(numpy_helper.from_array(value, name) for name, value in weights.items()),
            numpy_helper.from_array(np.array([1]), "direction"),
        ],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(made.SerializeToString())
