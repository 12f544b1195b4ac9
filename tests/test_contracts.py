"""What the project promises about itself: imports, layers, exports, memory, forks."""

from __future__ import annotations

import ast
import gc
import importlib
import inspect
import os
import re
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from cases import FEW, Case, LayerCase, NetCase, model_of
from processes import child

import lstm_engine as le

PACKAGE: Final = Path(__file__).resolve().parent.parent / "lstm_engine"
SOURCES: Final = sorted(PACKAGE.rglob("*.py"))


# --- import -----------------------------------------------------------------------------------------------------------


def test_importing_is_inert(fresh_environment: dict[str, str]) -> None:
    code = """
import os, sys, threading
before = set(sys.modules)
environment = dict(os.environ)
tasks = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 1
import lstm_engine
heavy = {"numba", "llvmlite", "onnx", "onnxruntime", "typer", "rich", "numpy", "torch", "matplotlib"}
print(sorted({name.split(".")[0] for name in set(sys.modules) - before} & heavy))
assert dict(os.environ) == environment
assert threading.active_count() == 1
assert not os.path.isdir("/proc/self/task") or len(os.listdir("/proc/self/task")) == tasks
assert [name for name in sys.modules if name.startswith("lstm_engine.")] == []
assert not os.path.exists(os.environ["LSTM_ENGINE_CACHE"])
print(set(dir(lstm_engine)) >= set(lstm_engine.__all__))
lstm_engine.LstmEngineError, lstm_engine.InputError
print(sorted({name.split(".")[0] for name in set(sys.modules) - before} & heavy))
"""
    assert child(code, fresh_environment, "-W", "error").split("\n") == ["[]", "True", "[]", ""]


def test_loading_and_running_starts_no_thread_and_sets_nothing(
    warm_environment: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(NetCase(hidden=(40, 40), head="dense_softmax").model())
    code = f"""
import contextlib, importlib, os, threading, numba, numpy as np
with contextlib.suppress(ImportError):  # Numba may ask for it, and it has threads of its own
    importlib.import_module("scipy.linalg.cython_lapack")
tasks = lambda: len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 1
np.ones((2, 2)) @ np.ones((2, 2))
before, environment, errors = tasks(), dict(os.environ), np.geterr()
import lstm_engine as le
model = le.load({str(path)!r})
model.run(np.zeros((50, 4, 3), np.float32))
stream = model.stream()
for _ in range(100):
    stream.step(np.zeros((1, 3), np.float32))
assert threading.active_count() == 1
assert tasks() == before, (tasks(), before)
assert dict(os.environ) == environment
assert np.geterr() == errors
tiny = np.float32(1e-42)
assert float(tiny * np.float32(0.5)) > 0  # denormals are as they were
"""
    child(code, warm_environment)


def test_an_onnx_file_is_all_that_imports_onnx(warm_environment: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "net.npz"
    model_of(LayerCase()).save(path)
    code = f"""
import sys, lstm_engine as le
le.load({str(path)!r}).stream()
assert not {{"onnx", "onnxruntime", "typer", "rich", "torch"}} & {{name.split(".")[0] for name in sys.modules}}
"""
    child(code, warm_environment)


# --- layers -----------------------------------------------------------------------------------------------------------

_VALUES = {"errors", "vocabulary", "encoding", "machine", "graph", "locks"}
#: What each room may import, besides the standard library and NumPy.
MAY_IMPORT: Final[dict[str, set[str]]] = {
    "__init__": set(),
    "__main__": {"cli"},
    "errors": set(),
    "vocabulary": set(),
    "encoding": set(),
    "machine": {"errors"},
    "locks": set(),
    "image": {"locks", "machine"},
    "codegen": {"machine"},
    "jit": {"codegen", "image", "machine"},
    "graph": {"errors"},
    "precision": {"graph"},
    "reference": {"errors", "graph", "precision", "vocabulary"},
    "kernels": {"encoding", "image", "jit", "machine"},
    "images": {"encoding", "image", "jit", "kernels"},
    "formats": {"errors", "graph", "precision", "vocabulary"},
    "passes": {"errors", "graph", "vocabulary", "reference"},
    "program": {*_VALUES, "passes", "reference"},
    "workers": {*_VALUES, "program", "images"},
    "engine": {*_VALUES, "passes", "program", "images", "reference", "workers"},
    "state": {"errors", "feeds"},
    "slots": {*_VALUES, "feeds", "program"},
    "snapshots": {*_VALUES, "engine", "feeds", "passes", "program", "state"},
    "stream": {*_VALUES, "engine", "images", "passes", "program", "snapshots", "state"},
    "together": {*_VALUES, "engine", "feeds", "images", "program", "slots", "snapshots", "state", "stream"},
    "pool": {"errors", "feeds", "graph", "locks", "passes", "slots", "state", "together"},
    "calls": {*_VALUES, "engine", "program", "reference"},
    "pages": {"errors"},
    "trace": {*_VALUES, "calls", "pages", "passes", "program", "reference"},
}
MAY_IMPORT["many"] = {*_VALUES, "passes", "program"}
MAY_IMPORT["blocks"] = {*_VALUES, "calls", "engine", "program"}
MAY_IMPORT["ragged"] = {*_VALUES, "blocks", "feeds", "many", "passes", "program", "reference"}
_LOWER = set(MAY_IMPORT) - {"__init__", "__main__"}
MAY_IMPORT["model"] = {*_LOWER, "reference", "feeds"} - {"jit"}
MAY_IMPORT["program"] |= {"pages", "precision"}
MAY_IMPORT["staged"] = {"graph", "locks", "passes", "reference"}
MAY_IMPORT["model"] |= {"staged"}
MAY_IMPORT["feeds"] = {"errors", "graph", "reference"}
MAY_IMPORT["stream"] |= {"feeds"}
for _top in ("generation", "session", "onnx_backend"):
    MAY_IMPORT[_top] = {*_LOWER, "model", "feeds"}
MAY_IMPORT["report"] = {*_LOWER, "model", "feeds", "generation"}
MAY_IMPORT["serving"] = {"errors", "feeds", "graph", "model", "pool", "state"}
MAY_IMPORT["ray"] = {*_LOWER, "feeds", "generation", "model", "ragged", "serving"}
MAY_IMPORT["signals"] = set()
MAY_IMPORT["terminal"] = {"errors"}
MAY_IMPORT["library"] = {*_LOWER, "model", "__version__"}
MAY_IMPORT["exported"] = set()
MAY_IMPORT["library"] |= {"exported"}
MAY_IMPORT["runtime"] = {"errors", "exported", "feeds", "graph", "state"}
MAY_IMPORT["cli"] = {
    *_LOWER, "model", "feeds", "generation", "library", "session", "report", "signals", "terminal", "ray",
    "__version__",
}  # fmt: skip


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imported(path: Path) -> set[str]:
    """Rooms that a file imports when it runs (those for type checkers alone left out)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    folder = list(path.relative_to(PACKAGE).parent.parts)
    rooms = set()
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.ImportFrom) and node.level:
            base = folder[: len(folder) - node.level + 1] + (node.module.split(".") if node.module else [])
            rooms |= {base[0]} if base else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            rooms |= {n.split(".")[1] for n in names if n.startswith("lstm_engine.")}
    return rooms


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_arrows_point_down(path: Path) -> None:
    room = module_of(path).split(".")[0]
    assert room in MAY_IMPORT, f"{room} is no room of the design"
    beyond = imported(path) - MAY_IMPORT[room] - {room}
    assert not beyond, f"{module_of(path)} may not import {sorted(beyond)}"


def test_the_table_of_layers_has_no_circle() -> None:
    seen: set[str] = set()
    waiting = {room: wanted - {room} for room, wanted in MAY_IMPORT.items()}
    while True:
        ready = {room for room, wanted in waiting.items() if room not in seen and not (wanted & set(waiting)) - seen}
        if not ready:
            break
        seen |= ready
    assert seen == set(waiting)


def code_words(path: Path) -> set[str]:
    """Names and strings of a file's code, without docstrings and comments."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documents = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    words = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents:
            words.add(node.value)
        elif isinstance(node, ast.Name):
            words.add(node.id)
        elif isinstance(node, ast.Attribute):
            words.add(node.attr)
    return words


INSTRUCTION_SETS = re.compile(
    r"avx|\bneon\b|\bsse\d?\b|\bzmm|\bymm|vnni|\bamx|x86|aarch64|arm64|\bsve\b|\brvv\b", re.IGNORECASE
)


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_instruction_sets_are_named_in_two_places(path: Path) -> None:
    if module_of(path) in ("machine", "kernels.simd"):
        return
    assert [word for word in code_words(path) if INSTRUCTION_SETS.search(word)] == []


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_numba_is_asked_in_one_place(path: Path) -> None:
    """Flags of njit are jit.py's; formats alone read files by onnx, the bridge borrows its evaluator, one room is its
    backend."""
    room = module_of(path)
    text = path.read_text(encoding="utf-8")
    calls = {
        node.func.id
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    if room != "jit":
        assert not re.search(r"\bnjit\b|numba\.(jit|vectorize|guvectorize|cfunc|stencil)\b|\bprange\b", text)
    if room.split(".")[0] not in ("jit", "codegen", "kernels", "machine", "cli", "report"):
        assert "numba" not in {name.split(".")[0] for name in _absolute_imports(path)}
    if room.split(".")[0] not in ("formats", "cli", "report", "onnx_backend") and room != "reference.bridge":
        assert not {"onnx", "onnxruntime"} & {name.split(".")[0] for name in _absolute_imports(path)}
    assert "print" not in calls or room.split(".")[0] in ("cli", "report", "terminal")


def _absolute_imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    return found | {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and not n.level}


def test_environment_variables_are_declared() -> None:
    """Whatever the engine listens to is a knob with a meaning and a default."""
    from lstm_engine.machine import KNOBS

    read = {name for path in SOURCES for name in re.findall(r"LSTM_ENGINE_[A-Z]+", path.read_text(encoding="utf-8"))}
    assert read == set(KNOBS)
    assert all(knob.meaning and knob.default for knob in KNOBS.values())


# --- exports ----------------------------------------------------------------------------------------------------------


def test_exports() -> None:
    assert set(le.__all__) == {*le._HOMES, "__version__"}
    assert le.__all__ == sorted(le.__all__)
    for name in le.__all__:
        assert getattr(le, name) is not None
        assert name in dir(le)
    with pytest.raises(AttributeError, match="nothing"):
        le.nothing  # noqa: B018
    wanted = {
        "load", "Model", "Stream", "State", "InferenceSession", "Sampler", "generate", "stream_generate", "generate_many",
        "beam_search", "score", "Vocabulary", "Piece", "Beam", "Likelihood", "TensorSpec", "LstmEngineError",
        "ModelFormatError", "UnsupportedModelError", "InputError", "StreamingError", "StateError",
        "TargetError", "MissingExtraError", "Ragged",
    }  # fmt: skip
    assert wanted <= set(le.__all__)
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", le.__version__)


def test_the_version_is_the_distributions(root: Path) -> None:
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'^version = "(.+)"$', text, re.MULTILINE).group(1) == le.__version__  # type: ignore[union-attr]
    assert le.__version__ in (root / "CHANGELOG.md").read_text(encoding="utf-8")


def public_things() -> dict[str, Any]:
    """Every public name, and every public attribute of the public classes."""
    found: dict[str, Any] = {}
    for name in le.__all__:
        thing = getattr(le, name)
        if name == "__version__":
            continue
        found[name] = thing
        if inspect.isclass(thing) and thing.__module__.startswith("lstm_engine"):
            for key, value in vars(thing).items():
                if not key.startswith("_") and (inspect.isfunction(value) or isinstance(value, property | classmethod)):
                    found[f"{name}.{key}"] = value
    return found


@pytest.mark.parametrize("name", sorted(public_things()))
def test_public_things_say_what_they_do(name: str) -> None:
    thing = public_things()[name]
    text = inspect.getdoc(thing) or ""
    assert len(text) > 10, name
    if inspect.isfunction(thing):
        hints = inspect.signature(thing)
        assert hints.return_annotation is not inspect.Signature.empty
        for parameter in list(hints.parameters.values())[1 if "." in name else 0 :]:
            assert parameter.annotation is not inspect.Parameter.empty, f"{name}({parameter.name})"


def test_signatures_are_the_designs() -> None:
    def parameters(function: Any) -> list[str]:
        return [name for name in inspect.signature(function).parameters if name != "self"]

    assert parameters(le.load)[:5] == ["path", "precision", "threads", "states", "constants"]
    assert {"prefix", "batch_first", "nonlinearity", "layers"} <= set(parameters(le.load))
    assert parameters(le.Model.run) == ["feeds", "outputs"]
    assert parameters(le.Model.stream) == ["batch", "constants"]
    assert parameters(le.Model.save) == ["path"]
    assert parameters(le.Stream.step) == ["x", "out"]
    assert parameters(le.Stream.feed) == ["chunk"]
    assert parameters(le.Stream.reset) == parameters(le.Stream.fork) == []
    assert {"copy", "to_bytes", "from_bytes"} <= set(dir(le.State))
    assert {"run", "get_inputs", "get_outputs"} <= set(dir(le.InferenceSession))


def test_every_module_imports_alone(fresh_environment: dict[str, str]) -> None:
    """No import order is needed; each is tried from a clean slate."""
    modules = [f"lstm_engine.{module_of(path)}".removesuffix(".__init__") for path in SOURCES]
    code = """
import importlib, sys, numba, numpy, onnx, typer, rich
for name in MODULES:
    for loaded in [m for m in sys.modules if m.split(".")[0] == "lstm_engine"]:
        del sys.modules[loaded]
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as fault:
        if fault.name not in EXTRAS or not name.startswith("lstm_engine.ray."):
            raise
    except Exception as fault:
        raise SystemExit(f"{name}: {fault!r}")
"""
    code = code.replace("EXTRAS", '("ray", "pyarrow")')
    shares = [code.replace("MODULES", repr(modules[first::2])) for first in range(2)]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda share: child(share, fresh_environment), shares))


# --- operators --------------------------------------------------------------------------------------------------------


def test_every_operator_with_machine_code_has_a_definition() -> None:
    import lstm_engine.program.plan  # noqa: F401 (registers the emitters)
    from lstm_engine.program.lower import EMITTERS
    from lstm_engine.reference import OPERATORS

    assert set(EMITTERS) <= set(OPERATORS)
    assert {"LSTM", "MatMul", "Gemm", "Gather", "Softmax", "LogSoftmax"} <= set(EMITTERS)


def test_every_instruction_has_a_rule_of_what_it_touches() -> None:
    from lstm_engine.encoding import Opcode
    from lstm_engine.program import validate

    assert set(Opcode) - {Opcode.HALT} <= set(validate._RULES)


def test_a_program_that_reaches_outside_is_refused() -> None:
    """Every operand of every instruction, moved to the end of its buffer: the proof fails."""
    from lstm_engine.program.program import Place
    from lstm_engine.program.validate import extents, validate

    moved = 0
    for case in FEW:
        model = model_of(case)
        if not case.streams:
            continue
        program = model.stream(2)._lowered.program
        validate(program)
        for instruction in program.listing:
            for field, size, written in extents(instruction, program):
                place = instruction.fields.get(field)
                if not isinstance(place, Place) or not size or not written:
                    continue
                far = replace(place, offset=place.buffer.size - size + 64)
                fields = {**instruction.fields, field: far}
                with pytest.raises(AssertionError):
                    validate(replace(program, listing=(replace(instruction, fields=fields),)))
                moved += 1
    assert moved > 50


# --- memory -----------------------------------------------------------------------------------------------------------


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


linux = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="counts memory by /proc")
STEPS = 10_000


@pytest.mark.parametrize(
    "case",
    [
        LayerCase(I=8, H=32, outputs=("Y",)),
        LayerCase(I=8, H=20, peephole=True, outputs=("Y",)),
        LayerCase(I=8, H=20, outputs=("Y",), dtype="float64"),
        NetCase(I=8, hidden=(16, 16), head="dense_softmax"),
        NetCase(vocabulary=20, hidden=(16,), head="dense"),
        LayerCase(I=64, H=128, outputs=("Y",)),  # long enough to give up the interpreter lock
    ],
    ids=str,
)
@linux
def test_a_step_with_out_allocates_nothing(case: Case) -> None:
    stream = model_of(case).stream()
    feeds = case.feeds(0, 1, 1)
    x = np.take(next(iter(feeds.values())), 0, axis=case.time_axis)
    out = np.empty_like(stream.step(x))
    gc.collect()
    gc.disable()
    try:
        for _ in range(STEPS):  # fills the interpreter's own free-lists
            stream.step(x, out=out)
        blocks, memory = sys.getallocatedblocks(), resident()
        for _ in range(STEPS):
            stream.step(x, out=out)
        assert sys.getallocatedblocks() - blocks <= 20
        assert resident() - memory <= 1 << 20
        tracemalloc.start(5)
        before = tracemalloc.take_snapshot()
        start, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        for _ in range(STEPS // 10):
            stream.step(x, out=out)
        _, peak = tracemalloc.get_traced_memory()
        after = tracemalloc.take_snapshot()
    finally:
        tracemalloc.stop()
        gc.enable()
    ours = [tracemalloc.Filter(True, str(PACKAGE / "*"))]
    grown = after.filter_traces(ours).compare_to(before.filter_traces(ours), "lineno")
    assert sum(difference.size_diff for difference in grown) < 512, grown  # the last step's own few objects
    assert sum(difference.count_diff for difference in grown) < 8
    assert peak - start < 4096, "something was allocated meanwhile"


@pytest.mark.parametrize("saved", [False, True], ids=["onnx", "npz"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    "case",
    [
        LayerCase(I=8, H=32, outputs=("Y",)),
        LayerCase(I=8, H=20, states="inputs", dtype="float64"),
        NetCase(I=8, hidden=(16, 16), head="dense_softmax", batch_first=True),
        NetCase(vocabulary=20, hidden=(16,), head="dense", states="inputs"),
        NetCase(vocabulary=20, hidden=(16,), head="last_gather", token_dtype="int32"),
    ],
    ids=str,
)
def test_ordinary_arrays_take_the_short_way(case: Case, batch: int, saved: bool, tmp_path: Path) -> None:
    """NumPy's own dtypes, contiguous: checked and run in one call of machine code, nothing converted."""
    model = model_of(case)
    if saved:
        model.save(tmp_path / "net.npz")
        model = le.load(tmp_path / "net.npz")
    stream = model.stream(batch)
    x = np.take(case.feeds(0, 1, batch)["X" if isinstance(case, LayerCase) else "x"], 0, axis=case.time_axis)
    result = stream.step(x)
    assert result.dtype is np.dtype(case.dtype)
    assert stream._enter_step(np.array(x, x.dtype.name), np.empty(result.shape, case.dtype)) == 0
    if batch == 1:
        assert stream._enter_step(np.array(x[0]), np.empty_like(stream.step(x[0]))) == 0


@linux
@pytest.mark.parametrize("case", [LayerCase(I=8, H=32), NetCase(hidden=(16, 16), head="dense_softmax")], ids=str)
def test_new_lengths_grow_nothing_and_compile_nothing(case: Case) -> None:
    """200 chunk lengths and 200 sequence lengths after the first few: the same programs, the same memory."""
    from lstm_engine import images, machine

    model = model_of(case)
    stream = model.stream()
    lengths = [1, 2, 3, *np.random.default_rng(0).integers(1, 400, 200).tolist()]
    feeds = {length: next(iter(case.feeds(0, length, 1).values())) for length in lengths}

    def everything() -> None:
        for length in lengths:
            model.run(feeds[length])
            stream.feed(feeds[length])

    def facts() -> tuple[Any, ...]:
        folder = machine.cache_folder()
        files = sorted(p.name for p in folder.glob("*.code")) if folder is not None and folder.is_dir() else []
        return (images.image.cache_info().currsize, files, model.store.nbytes, len(model._programs))

    for length in (1, 2):  # a single step has no time axis, so it may have a program of its own
        model.run(feeds[length])
        stream.feed(feeds[length])
    before = facts()
    everything()
    assert facts() == before
    gc.collect()
    memory = resident()
    tracemalloc.start()
    everything()
    gc.collect()
    start, _ = tracemalloc.get_traced_memory()
    everything()
    gc.collect()
    end, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert end - start < 16_384
    assert resident() - memory < 8 << 20
    assert facts() == before


@linux
def test_streams_and_models_are_freed() -> None:
    case = LayerCase(I=16, H=64)
    data, x = case.model(), case.feeds(0, 5, 1)["X"]

    def use() -> None:
        model = le.load(data)
        model.run(x)
        for _ in range(20):
            stream = model.stream()
            stream.feed(x)
            stream.fork().step(x[0])
            _ = stream.state.to_bytes()

    for _ in range(10):
        use()
    gc.collect()
    memory = resident()
    for _ in range(60):
        use()
    gc.collect()
    assert resident() - memory < 8 << 20


def test_a_stream_is_small() -> None:
    """Weights are shared: a stream costs its state and buffers."""
    model = model_of(LayerCase(I=256, H=256, outputs=("Y",)))
    streams = [model.stream() for _ in range(3)]
    weights = 4 * 256 * 512 * 4
    assert streams[0]._runner.arena.nbytes < weights / 4
    assert model.store.nbytes < 1.2 * weights


# --- forks ------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_streams_survive_a_fork(warm_environment: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(NetCase(hidden=(40, 40), head="dense_softmax").model())
    code = f"""
import os, numpy as np, lstm_engine as le
model = le.load({str(path)!r})
x = np.random.default_rng(0).normal(size=(20, 1, 3)).astype(np.float32)
stream = model.stream()
stream.feed(x[:5])
expected = [stream.fork().feed(x[5:]), model.run(x)["y"]]
for turn in range(5):
    child = os.fork()
    if child == 0:
        same = np.array_equal(stream.feed(x[5:]), expected[0]) and np.array_equal(model.run(x)["y"], expected[1])
        fresh = np.array_equal(le.load({str(path)!r}).stream().feed(x), expected[1])
        os._exit(0 if same and fresh else 1)
    assert os.waitpid(child, 0)[1] == 0
assert np.array_equal(stream.feed(x[5:]), expected[0])
"""
    child(code, warm_environment)


# --- other ways to run ------------------------------------------------------------------------------------------------


def test_canaries_between_buffers_stay_whole(warm_environment: dict[str, str]) -> None:
    """Debug mode checks after every call that nothing was written between the buffers."""
    code = "import cases, laws; laws.held_by(cases.FEW); print(len(cases.FEW))"
    assert int(child(code, warm_environment, LSTM_ENGINE_DEBUG="1")) == len(FEW)


def test_a_canary_that_is_overwritten_is_reported(warm_environment: dict[str, str]) -> None:
    code = """
import cases
case = cases.LayerCase()
stream = cases.model_of(case).stream()
runner = stream._runner
assert runner.program.canaries
runner.arena[runner.program.canaries[0]] ^= 1
try:
    stream.feed(case.feeds(0, 3, 1)["X"])
except AssertionError as fault:
    print("reported", fault)
"""
    assert child(code, warm_environment, LSTM_ENGINE_DEBUG="1").startswith("reported")


# --- the repository ---------------------------------------------------------------------------------------------------


def test_python_files_are_of_a_size_to_read() -> None:
    for path in SOURCES:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 700, path.name


def test_no_module_changes_warnings_or_random_state() -> None:
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"np\.random\.seed|random\.seed|warnings\.(simplefilter|filterwarnings)\(", text), (
            path.name
        )


def test_the_package_is_typed() -> None:
    assert (PACKAGE / "py.typed").exists()
    assert importlib.import_module("lstm_engine").__doc__
