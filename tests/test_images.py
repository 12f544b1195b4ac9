"""Images: which one a program gets, that it does not matter which, how Python calls them, what starting costs."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from cases import FEW, Case, LayerCase, NetCase, assert_same_bits, model_of, steps_of
from processes import child

import lstm_engine as le
from lstm_engine import image, images
from lstm_engine.encoding import Opcode
from lstm_engine.image import Export, Image, Progress
from lstm_engine.program.plan import lower_run

HEAD: Final = len(b"lstm_engine compiled code 2\n") + 32  # of a cache file: magic and checksum

# --- which one --------------------------------------------------------------------------------------------------------

PLAIN: Final = {int(Opcode.LOAD), int(Opcode.LSTM), int(Opcode.STORE), int(Opcode.HALT)}
PEEPHOLES: Final = {int(Opcode.LOAD), int(Opcode.CELL), int(Opcode.STORE), int(Opcode.HALT)}


@dataclass
class Ready:
    """An image as far as the choice goes."""

    name: str
    loaded: bool = False
    cached: bool = False


@pytest.mark.parametrize(
    ("loaded", "cached", "plain", "peepholes"),
    [
        ([], [], "core", "full"),
        ([], ["core", "full"], "core", "full"),
        ([], ["full"], "full", "full"),  # rather than compile what it also holds
        (["full"], ["core"], "full", "full"),
        (["core", "full"], [], "core", "full"),
        (["core"], ["full"], "core", "full"),
    ],
)
def test_a_program_gets_what_is_ready_else_the_smallest(
    monkeypatch: pytest.MonkeyPatch, loaded: list[str], cached: list[str], plain: str, peepholes: str
) -> None:
    there = {name: Ready(name, name in loaded, name in cached) for name in images.KERNEL_SETS}
    monkeypatch.setattr(images, "image", lambda precision, kernel_set: there[kernel_set])
    assert images.executor("float32", PLAIN).name == plain
    assert images.executor("float32", PEEPHOLES).name == peepholes


def test_the_sets_grow_and_the_last_holds_every_instruction() -> None:
    sets = list(images.KERNEL_SETS.values())
    assert all(smaller < larger for smaller, larger in pairwise(sets))
    assert sets[-1] == set(Opcode)


# --- it does not matter which -----------------------------------------------------------------------------------------


def opcodes_of(case: Case) -> set[int]:
    """The instructions of a whole run."""
    model = model_of(case)
    shapes = {name: np.shape(x) for name, x in case.feeds(0, 3, 2).items()}
    return set(lower_run(model.graph, shapes, model.store, model.means).program.code[:, 0].tolist())


#: Every instruction of the smallest set but JOIN has a case here; JOIN's kernel is in the residual network's.
CORE: Final[list[Case]] = [
    LayerCase(I=8, H=32),
    LayerCase(I=5, H=20, direction="bidirectional"),
    *(case for case in FEW if isinstance(case, NetCase) and case.dtype == "float32"),
]


@pytest.mark.parametrize("case", CORE, ids=str)
def test_the_same_bits_in_every_image(monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    """Whole sequences of several rows, and steps of one: what a set leaves out changes nothing of what it holds."""
    feeds, lone = case.feeds(0, 40, 3), case.feeds(0, 40, 1)
    results: list[Any] = []
    for kernel_set, codes in images.KERNEL_SETS.items():
        if not codes.issuperset(opcodes_of(case)):
            continue
        monkeypatch.setattr(images, "executor", lambda precision, _, name=kernel_set: images.image(precision, name))
        model = model_of(case)
        result = dict(model.run(feeds))
        if case.streams:
            stream = model.stream()
            for at, given in enumerate(steps_of(case, lone)):
                stepped = stream.step(given if len(given) > 1 else next(iter(given.values())))
                result[f"step {at}"] = stepped
        results.append(result)
    assert results
    for result in results[1:]:
        assert_same_bits(result, results[0])


def test_the_cases_meet_the_smallest_set() -> None:
    """The test above compares images, not one with itself."""
    smallest = next(iter(images.KERNEL_SETS.values()))
    met = set().union(*(codes for case in CORE if smallest.issuperset(codes := opcodes_of(case))))
    assert {Opcode.LOAD, Opcode.STORE, Opcode.LSTM, Opcode.DENSE, Opcode.SOFTMAX} <= met


def test_an_instruction_that_an_image_lacks_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "executor", lambda precision, _: images.image(precision, "core"))
    case = LayerCase(peephole=True)
    assert int(Opcode.CELL) in opcodes_of(case)
    with pytest.raises(AssertionError, match="chosen without looking"):
        le.load(case.model()).run(case.feeds())  # not the one that other tests share


@pytest.mark.skipif(shutil.which("nm") is None, reason="nothing here lists symbols")
@pytest.mark.parametrize("name", ["entries", "sampling", *images.KERNEL_SETS])
def test_machine_code_calls_next_to_nothing(tmp_path: Path, name: str) -> None:
    """A name that nobody defines would end the process when the code is linked."""
    made = images.image("float32", name) if name in images.KERNEL_SETS else getattr(images, name)()
    made.load()
    if not made.cached or made.path is None:
        pytest.skip("the cache is off")
    (tmp_path / "code.o").write_bytes(made.path.read_bytes()[HEAD:].partition(b"\n")[2])
    listed = subprocess.run(["nm", "-u", tmp_path / "code.o"], capture_output=True, text=True, check=True).stdout
    assert set(listed.split()) - {"U"} <= {*image.PYTHON_FUNCTIONS, "memcpy", "memmove", "memset"}


# --- how Python calls one ---------------------------------------------------------------------------------------------

EXPORTS: Final[Mapping[str, Export]] = {
    "difference": Export("difference", "ii"),
    "of_objects": Export("difference", "oo"),
    "nothing": Export("nothing", ""),
    "wait": Export("wait", "ii"),
    "wait_nogil": Export("wait", "ii", nogil=True),
}


def compiled(progress: Progress) -> bytes:
    """An image of a few functions."""
    from lstm_engine.jit import compile_image, kernel
    from lstm_engine.kernels.simd import try_acquire

    @kernel
    def difference(a, b):  # type: ignore[no-untyped-def]
        return a - b

    @kernel
    def nothing():  # type: ignore[no-untyped-def]
        return -1

    @kernel
    def wait(at, most):  # type: ignore[no-untyped-def]
        tried = 0
        while tried < most:
            if try_acquire(at) == 1:
                return 1
            tried += 1
        return 0

    progress("all", 0, 1)
    return compile_image("calls", EXPORTS, lambda: {"difference": difference, "nothing": nothing, "wait": wait})


@pytest.fixture(scope="module")
def calls() -> Image:
    return Image("calls", EXPORTS, compiled)


@pytest.mark.parametrize(("a", "b"), [(5, 3), (-1, 0), (0, -1), (2**62, -(2**61)), (np.int64(-7), np.uint8(200))])
def test_integers_in_and_out(calls: Image, a: int, b: int) -> None:
    assert calls.function("difference")(a, b) == int(a) - int(b)
    assert calls.function("nothing")() == -1


def test_objects_go_in_by_address(calls: Image) -> None:
    a, b = [1], np.zeros(3)
    before = sys.getrefcount(a), sys.getrefcount(b)
    assert calls.function("of_objects")(a, b) == id(a) - id(b)
    assert (sys.getrefcount(a), sys.getrefcount(b)) == before


@pytest.mark.parametrize(
    ("arguments", "error"),
    [((), TypeError), ((1,), TypeError), ((1, 2, 3), TypeError), ((1, "2"), TypeError), ((2**63, 0), OverflowError)],
)
def test_wrong_arguments_are_errors(calls: Image, arguments: tuple[Any, ...], error: type[Exception]) -> None:
    with pytest.raises(error):
        calls.function("difference")(*arguments)
    with pytest.raises(TypeError):
        calls.function("difference")(1, b=2)


def test_integers_are_not_leaked(calls: Image) -> None:
    held = 2**40 + 1
    before = sys.getrefcount(held)
    for _ in range(1000):
        calls.function("difference")(held, held)
    assert sys.getrefcount(held) == before


def test_the_interpreter_lock_is_given_up_where_it_should(calls: Image) -> None:
    """A Python thread lets another one's machine code go on, if that one has given up the lock, and only then."""
    word = np.ones(1, np.int64)
    assert calls.function("wait")(word.ctypes.data, 1000) == 0
    waiting = threading.Event()

    def let_go() -> None:
        waiting.wait()
        word[0] = 0

    other = threading.Thread(target=let_go)
    other.start()
    waiting.set()
    try:
        assert calls.function("wait_nogil")(word.ctypes.data, 2**40) == 1
    finally:
        other.join()


def test_compilation_reports_to_who_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    """And loading what there is does not."""
    seen: list[tuple[str, int, int]] = []
    ended: list[bool] = []

    @contextmanager
    def watching() -> Iterator[Progress]:
        yield lambda *what: seen.append(what)
        ended.append(True)

    monkeypatch.setattr(image, "_watched", image._watched)  # put back afterwards
    monkeypatch.setenv("LSTM_ENGINE_CACHE", "off")
    image.watch(watching)
    fresh = Image("calls", EXPORTS, compiled)
    assert not fresh.loaded
    assert fresh.function("difference")(3, 1) == 2
    assert fresh.function("nothing")() == -1
    assert (seen, ended, fresh.loaded, fresh.from_cache) == ([("all", 0, 1)], [True], True, False)


# --- what starting costs ----------------------------------------------------------------------------------------------

#: What a first output needs no part of once the code is compiled.
HEAVY: Final = {"numba", "scipy", "onnxruntime", "torch", "typer", "rich", "matplotlib"}
FIRST_OUTPUT: Final = """
import sys
import lstm_engine as le
stages = []
def stage():
    stages.append({{name.split(".")[0] for name in sys.modules}})
le.load
stage()
model = le.load({path!r})
stage()
import numpy as np
stream = model.stream()
stream.step(np.zeros((1, 3), np.float32))
model.run(np.zeros((2, 1, 3), np.float32))
stage()
for modules in stages:
    print(*sorted(modules & {heavy!r}))
"""


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """One network in two formats."""
    case = LayerCase()
    (tmp_path / "net.onnx").write_bytes(case.model())
    model_of(case).save(tmp_path / "net.npz")
    return {"onnx": tmp_path / "net.onnx", "npz": tmp_path / "net.npz"}


@pytest.mark.parametrize("kind", ["npz", "onnx"])
def test_a_cached_engine_imports_no_compiler(
    warm_environment: dict[str, str], files: dict[str, Path], kind: str
) -> None:
    code = FIRST_OUTPUT.format(path=str(files[kind]), heavy={*HEAVY, "llvmlite", *(["onnx"] if kind == "npz" else [])})
    child(code, warm_environment)  # compiles, where that is still to be done
    imported, loaded, ran = child(code, warm_environment).split("\n")[:3]
    assert (imported, loaded, ran) == ("", "", "llvmlite")


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["npz", "onnx"])
def test_a_first_output_is_soon(warm_environment: dict[str, str], files: dict[str, Path], kind: str) -> None:
    """Processor time of a process up to its first output, beyond that of importing NumPy."""

    def seconds(code: str) -> float:
        def one() -> float:
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

        return min(one() for _ in range(5))

    environment = {name: value for name, value in warm_environment.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(files[kind].parent)
    first = seconds(FIRST_OUTPUT.format(path=str(files[kind]), heavy=HEAVY))
    assert first - seconds("import numpy") < 0.6
