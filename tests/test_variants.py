"""Machine code for lesser variants of this CPU, run here; other machines have libraries (test_library_targets.py)."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import cases
import numpy as np
import pytest
from cases import assert_same_bits
from processes import child

import lstm_engine as le
from lstm_engine.machine import Target, chosen, native, variants

TESTS: Final = Path(__file__).resolve().parent
HERE: Final = variants(native())
LINUX: Final = "x86_64-unknown-linux-gnu"
ARM: Final = "aarch64-unknown-linux-gnu"
x86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="for x86-64")

# --- facts ------------------------------------------------------------------------------------------------------------

ZEN4 = "+avx,+avx2,+avx512bf16,+avx512bw,+avx512cd,+avx512dq,+avx512f,+avx512vl,+avx512vnni,-avxvnni,-amx-tile"


def facts(target: Target) -> str:
    """What of a target's facts holds."""
    names = [name for name in ("fma", "vnni", "bf16", "amx", "dotprod") if getattr(target, name)]
    return " ".join([target.variant, str(target.vector_bytes), str(target.registers), *names])


@pytest.mark.parametrize(
    ("triple", "cpu", "features", "expected"),
    [
        (LINUX, "x86-64", "", "x86-64 16 16"),
        (LINUX, "x86-64-v2", "", "x86-64 16 16"),
        (LINUX, "x86-64-v3", "", "avx2 32 16 fma"),
        (LINUX, "alderlake", "+avx2,+fma,+avxvnni", "avx2 32 16 fma vnni"),
        (LINUX, "haswell", "-fma", "x86-64 32 16"),
        (LINUX, "x86-64-v4", "", "avx512 64 32 fma"),
        (LINUX, "x86-64-v4", "+avxvnni", "avx512 64 32 fma"),
        (LINUX, "znver4", ZEN4, "avx512 64 32 fma vnni bf16"),
        (LINUX, "znver4", f"{ZEN4},-avx512bf16", "avx512 64 32 fma vnni"),
        (LINUX, "cooperlake", ZEN4, "avx512 64 32 fma vnni"),
        (LINUX, "x86-64-v4", "+amx-tile,+amx-int8,+amx-bf16", "avx512 64 32 fma amx"),
        (LINUX, "x86-64-v4", "+amx-int8,+amx-bf16,-amx-tile", "avx512 64 32 fma"),
        (ARM, "cortex-a72", "", "neon 16 32 fma"),
        (ARM, "neoverse-n1", "", "neon 16 32 fma dotprod"),
        (ARM, "generic", "+dotprod", "neon 16 32 fma dotprod"),
        ("arm64-apple-darwin23", "apple-m1", "", "neon 16 32 fma dotprod"),
    ],
)
def test_facts(triple: str, cpu: str, features: str, expected: str) -> None:
    assert facts(Target.of(triple, cpu, features)) == expected


@pytest.mark.parametrize(
    ("here", "wish", "expected"),
    [
        (("znver4", ZEN4), "", "avx512 64 32 fma vnni bf16"),
        (("znver4", ZEN4), "avx512", "avx512 64 32 fma vnni bf16"),
        (("znver4", ZEN4), "avx512,-avx512vnni", "avx512 64 32 fma bf16"),
        (("znver4", ZEN4), " AVX512, -avx512vnni ,-avx512bf16", "avx512 64 32 fma"),
        (("x86-64-v4", "+avx512vnni,+avxvnni"), "avx2", "avx2 32 16 fma vnni"),
        (("x86-64-v4", "+avx512vnni,+avxvnni"), "avx2,-avxvnni", "avx2 32 16 fma"),
        (("x86-64-v4", ""), "x86-64", "x86-64 16 16"),
        (("x86-64-v3", ""), "avx2", "avx2 32 16 fma"),
        (("x86-64", ""), "x86-64", "x86-64 16 16"),
    ],
)
def test_a_variant_is_chosen(here: tuple[str, str], wish: str, expected: str) -> None:
    assert facts(chosen(Target.of(LINUX, *here), wish)) == expected


def test_the_best_variant_is_the_machine_itself() -> None:
    """Asking for what one has changes no code, hence no cache file either."""
    assert chosen(native(), HERE[0]) is native()
    arm = Target.of(ARM, "neoverse-n1")
    assert chosen(arm, "neon") is arm
    assert not chosen(arm, "neon,-dotprod" if "dotprod" in arm.features else "neon").features


@pytest.mark.parametrize(
    ("here", "wish", "said"),
    [
        (
            (LINUX, "x86-64-v3"),
            "avx512",
            "expected one of avx2, x86-64, the variants that this CPU .x86-64-v3. can run",
        ),
        ((LINUX, "x86-64"), "avx2", "expected one of x86-64,"),
        ((LINUX, "x86-64"), "neon", "got 'neon'"),
        ((ARM, "cortex-a72"), "avx2", "expected one of neon,"),
        ((LINUX, "znver4", ZEN4), "sse9", "expected one of avx512, x86-64,.*got 'sse9'"),  # without bmi it is no AVX2
        ((LINUX, "znver4", ZEN4), "avx512,avx512vnni", "features to do without.*got 'avx512vnni'"),
        ((LINUX, "znver4", ZEN4), "avx512,-vnni,-avx512f", "got '-vnni', '-avx512f'"),
        ((LINUX, "x86-64", "+sse2"), "x86-64,-sse2", "no part of 'x86-64' itself, got '-sse2'"),
        ((LINUX, "x86-64"), ",avx2", "got ''"),
    ],
)
def test_a_variant_that_cannot_be_had(here: tuple[str, ...], wish: str, said: str) -> None:
    with pytest.raises(le.TargetError, match=f"LSTM_ENGINE_VARIANT={re.escape(wish)}: .*{said}"):
        chosen(Target.of(*here), wish)


def test_it_is_said_when_code_is_needed(warm_environment: dict[str, str]) -> None:
    """Importing is inert, whatever the environment says; the error is typed, and one line on the command line."""
    code = """
import cases, lstm_engine as le
case = cases.LayerCase()
try:
    cases.model_of(case).run(case.feeds())
except le.TargetError as fault:
    print(fault)
"""
    assert "LSTM_ENGINE_VARIANT=pentium: expected one of" in child(
        code, warm_environment, LSTM_ENGINE_VARIANT="pentium"
    )
    done = subprocess.run(
        [sys.executable, "-m", "lstm_engine", "warm-up"],
        env={**warm_environment, "LSTM_ENGINE_VARIANT": "pentium"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "LSTM_ENGINE_VARIANT=pentium" in done.stderr
    assert "Traceback" not in done.stderr


@x86
@pytest.mark.parametrize(
    ("name", "features", "expected"), [("haswell", "+avx2,+fma", "avx2"), ("x86-64", "", "x86-64")]
)
def test_what_numba_is_told_is_a_fact(
    warm_environment: dict[str, str], name: str, features: str, expected: str
) -> None:
    code = "from lstm_engine.machine import target; print(target().variant, target().cpu)"
    said = child(code, warm_environment, NUMBA_CPU_NAME=name, NUMBA_CPU_FEATURES=features)
    assert said.split() == [expected, name]


# --- lesser variants, run ---------------------------------------------------------------------------------------------

#: One process a variant: the laws over a compact set of models, denormals, and the assembly of a kernel; outputs to a file.
RUN = """
import sys, numpy as np
import cases, laws, test_variants
from cases import FEW, LayerCase, NetCase
element, path = sys.argv[1:]
some = [*FEW, LayerCase(H=1, T=40, B=1), LayerCase(H=7, T=9), LayerCase(H=64, I=16, T=20, B=9)]
outputs = laws.held_by(case for case in some if case.dtype == element)
outputs |= test_variants.operators(element)
test_variants.denormals_are_zero(element)
np.savez(path, **outputs)
test_variants.print_assembly(element)
"""


def operators(element: str) -> dict[str, np.ndarray]:
    """What is not made of recurrences, beside its definition."""
    from test_instructions import assert_in_machine_code, graph_of

    from lstm_engine.graph import Node

    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 5, 40)).astype(element)
    nodes = {
        "Conv": (
            Node("Conv", ("x", "w"), ("y",), {"pads": (2, 2)}),
            {"w": rng.standard_normal((20, 5, 5)).astype(element)},
        ),
        "MatMul": (Node("MatMul", ("x", "w"), ("y",)), {"w": rng.standard_normal((40, 33)).astype(element)}),
        "Add": (Node("Add", ("x", "w"), ("y",)), {"w": rng.standard_normal((5, 40)).astype(element)}),
        **{op: (Node(op, ("x",), ("y",)), {}) for op in ("Exp", "Tanh", "Sigmoid", "Softplus", "Elu", "Abs", "Sqrt")},
        "Softmax": (Node("Softmax", ("x",), ("y",), {"axis": -1}), {}),
        "ReduceMean": (Node("ReduceMean", ("x", "w"), ("y",)), {"w": np.array([2])}),
        "MaxPool": (Node("MaxPool", ("x",), ("y",), {"kernel_shape": (3,), "strides": (2,)}), {}),
    }
    return {op: assert_in_machine_code(graph_of([node], {"x": x}, w), {"x": x})["y"] for op, (node, w) in nodes.items()}


def denormals_are_zero(element: str) -> None:
    """As inputs and as results, and in a state that decays; NumPy's own are left alone."""
    from cases import LayerCase, model_of
    from test_instructions import graph_of

    from lstm_engine.graph import Node
    from lstm_engine.model import Model

    smallest = np.finfo(element).tiny
    tiny = np.full((2, 33), smallest / 8, element)
    small = np.full((2, 33), np.sqrt(smallest) / 8, element)
    for x, factor in ((tiny, np.ones(33, element)), (tiny, np.full(33, 1024, element)), (small, small[0])):
        model = Model(graph_of([Node("Mul", ("x", "w"), ("y",))], {"x": x}, {"w": factor}), element)
        assert not model.run({"x": x})["y"].any(), factor
        assert model.run({"x": np.ones_like(x)})["y"].all(), factor
    weights = {"w": np.full((33, 17), small[0, 0], element)}
    product = Model(graph_of([Node("MatMul", ("x", "w"), ("y",))], {"x": small}, weights), element)
    assert not product.run({"x": small})["y"].any()

    case = LayerCase(H=16, states="inputs", B=1, T=1, dtype=element)
    stream = model_of(case).stream()
    silence = {name: np.zeros_like(x) for name, x in case.feeds().items() if name not in ("h0", "c0")}
    decaying = stream.feed({name: np.repeat(x, 3000, axis=0) for name, x in silence.items()})
    y = decaying["Y"] if isinstance(decaying, dict) else decaying
    assert ((y == 0) | (np.abs(y) >= smallest)).all()
    assert (tiny * 1 > 0).all()


def print_assembly(element: str) -> None:
    """Facts of the assembly of a model's own code, and of a function that the user compiles beside it."""
    import numba
    from libraries import emitted_here

    from lstm_engine.machine import target

    case = cases.NetCase(I=1, hidden=(16,), head="dense", outputs=1, dtype=element)
    text = emitted_here(cases.model_of(case), assembly=True).assembly.decode()

    @numba.njit
    def doubled(x: Any) -> None:
        for i in range(len(x)):
            x[i] += x[i]

    doubled(np.ones(40, np.float32))
    registers = re.findall(r"%([xyz]mm|k[0-7])", text)
    fused = re.findall(r"\tvf?n?m(?:add|sub)\d+[ps][sd]", text)
    theirs = re.findall(r"%([yz])mm", next(iter(doubled.inspect_asm().values())))
    found = {
        "variant": target().variant,
        "registers": sorted({name[0] for name in registers}),
        "fused": bool(fused),
        "theirs": sorted(set(theirs)),
    }
    print(json.dumps(found))


#: Registers that a variant's code is made of: it has these, and no others of x, y, z and the masks k.
REGISTERS = {"avx512": {"x", "y", "z", "k"}, "avx2": {"x", "y"}, "x86-64": {"x"}}


def outcome(variant: str, element: str, environment: dict[str, str], folder: Path) -> tuple[Any, dict[str, np.ndarray]]:
    """What the assembly of a variant says, and the outputs of its models."""
    path = folder / f"{variant}-{element}.npz"
    code = f"import sys; sys.argv[1:] = [{element!r}, {str(path)!r}]\n{RUN}"
    said = child(code, environment, LSTM_ENGINE_VARIANT=variant)
    with np.load(path) as outputs:
        return json.loads(said), dict(outputs)


def assert_variants_hold(element: str, environment: dict[str, str], folder: Path) -> None:
    """Each obeys the laws with its own instructions alone; where both have a fused multiply-add, they agree to the bit."""
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda variant: outcome(variant, element, environment, folder), HERE))
    for variant, (assembly, _) in zip(HERE, found, strict=True):
        assert assembly["variant"] == variant
        assert set(assembly["registers"]) <= REGISTERS[variant], variant
        assert max("xyz".index(r) for r in assembly["registers"] if r != "k") == list(REGISTERS)[::-1].index(variant)
        assert assembly["fused"] == (variant != "x86-64")
        assert assembly["theirs"] == found[0][0]["theirs"], "what the user compiles is made for this machine"
    assert not HERE[1:] or found[0][0]["theirs"]
    fused = [outputs for variant, (_, outputs) in zip(HERE, found, strict=True) if variant != "x86-64"]
    for other in fused[1:]:
        assert_same_bits(other, fused[0])


@x86
def test_lesser_variants(warm_environment: dict[str, str], tmp_path: Path) -> None:
    assert_variants_hold("float32", warm_environment, tmp_path)


@x86
@pytest.mark.nightly
def test_lesser_variants_in_float64(warm_environment: dict[str, str], tmp_path: Path) -> None:
    assert_variants_hold("float64", warm_environment, tmp_path)


#: Weights of fewer bits: what a few models give in each precision, whole and in chunks.
NARROW = """
import sys, numpy as np
import cases, lstm_engine as le
outputs = {}
for case in (cases.LayerCase(H=64, I=33, T=21, B=1), cases.NetCase(hidden=(40, 17), head="dense_softmax", B=9, T=12)):
    for precision in ("bfloat16", "int8"):
        model = le.load(case.model(), precision=precision)
        (name, x), = case.feeds().items()
        whole = model.stream(case.B).feed({name: x})
        stream = model.stream(case.B)
        parts = [stream.feed({name: part}) for part in np.split(x, [1, 6])]
        whole, *parts = ([y] if not isinstance(y, dict) else list(y.values()) for y in (whole, *parts))
        for k, y in enumerate(whole):
            cases.assert_same_bits(np.concatenate([part[k] for part in parts]), y)
            outputs[f"{case} {precision} {k}"] = y
np.savez(sys.argv[1], **outputs)
"""


@x86
@pytest.mark.nightly
def test_weights_of_fewer_bits(warm_environment: dict[str, str], tmp_path: Path) -> None:
    """Integer products are exact, whichever instruction makes them: the same bits with and without it.

    Those of bfloat16 are the same where rows are rounded, and where they are not.
    """

    def outputs(wish: str) -> dict[str, np.ndarray]:
        path = tmp_path / f"{wish}.npz"
        child(f"import sys; sys.argv[1:] = [{str(path)!r}]\n{NARROW}", warm_environment, LSTM_ENGINE_VARIANT=wish)
        with np.load(path) as loaded:
            return dict(loaded)

    fused = [variant for variant in HERE if variant != "x86-64"]
    removable = [name for name in ("avx512vnni", "avx512bf16") if name in native().enabled]
    wishes = [*fused, *(f"{HERE[0]},-{name}" for name in removable)]
    if len(wishes) < 2:
        pytest.skip("one way to make them here")
    alike: dict[tuple[str, bool], dict[str, np.ndarray]] = {}
    for wish in wishes:
        found = outputs(wish)
        for precision, rounds in (("int8", True), ("bfloat16", chosen(native(), wish).bf16)):
            part = {name: y for name, y in found.items() if precision in name}
            assert_same_bits(part, alike.setdefault((precision, rounds), part))
    assert len(alike) == 2 + native().bf16


WIDE: Final = ("parity", "properties", "instructions", "maths", "sampling", "zoo", "random_operators")
#: Without a fused multiply-add a row's int8 levels are rounded twice, which their definition does not show.
LESSER: Final = [
    *((variant, file) for variant in HERE[1:] for file in WIDE),
    *((variant, "precision") for variant in HERE[1:] if variant != "x86-64"),
]


@x86
@pytest.mark.nightly
@pytest.mark.parametrize(("variant", "file"), LESSER)
def test_whole_files_under(variant: str, file: str, warm_environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(TESTS / f"test_{file}.py")],
        env={**warm_environment, "LSTM_ENGINE_VARIANT": variant},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
