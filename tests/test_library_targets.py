"""Libraries for other machines: their instructions, their symbols, and what they give where they can be run."""

from __future__ import annotations

import functools
import re
import subprocess
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import builders
import llvmlite.binding as llvm
import numpy as np
import pytest
from cases import NetCase, assert_same_bits
from libraries import (
    FUNCTIONS,
    MOST_TOKENS,
    NAME,
    Library,
    Script,
    assert_is_the_stream,
    assert_same_state,
    built,
    drawn,
    emitted_elsewhere,
    found,
    lowered,
    order_of,
    played,
    stacked,
    streamed,
    written,
)
from onnx import helper
from processes import child
from test_states import Front, front_model

import lstm_engine as le
from lstm_engine.encoding import Opcode
from lstm_engine.library.emitting import Emitted
from lstm_engine.library.interface import Result
from lstm_engine.machine import TARGETS, Target, named_target, native, variants

Made = Mapping[str, Emitted]


# --- the models ---------------------------------------------------------------------------------------------------------


def everything() -> bytes:
    """A network of tokens whose steps use nearly every instruction there is."""
    draw, make = np.random.default_rng(0), helper.make_node

    def f(*shape: int) -> np.ndarray:
        return (draw.standard_normal(shape) / 3).astype(np.float32)

    arrays = {
        "E": f(MOST_TOKENS, 16), "W1": f(1, 64, 16), "R1": f(1, 64, 16), "B1": f(1, 128),
        "W2": f(1, 20, 16), "R2": f(1, 20, 5), "B2": f(1, 40), "P2": f(1, 15), "W3": f(1, 9, 5), "R3": f(1, 9, 3),
        "D": f(8, 6), "d": f(6), "one": np.array([1]), "two": np.array([2]), "last": np.array([-1]),
        "three": np.array(3), "most": np.array(MOST_TOKENS - 1), "zero": np.array(0, np.float32),
    }  # fmt: skip
    nodes = [
        make("Add", ["tokens", "three"], ["later"]),
        make("Min", ["later", "most"], ["bounded"]),
        make("Gather", ["E", "bounded"], ["e"]),
        make("LSTM", ["e", "W1", "R1", "B1"], ["y1"], hidden_size=16),
        make("Squeeze", ["y1", "one"], ["s1"]),
        make("LSTM", ["s1", "W2", "R2", "B2", "", "", "", "P2"], ["y2"], hidden_size=5),
        make("Squeeze", ["y2", "one"], ["s2"]),
        make("GRU", ["s2", "W3", "R3"], ["y3"], hidden_size=3),
        make("Squeeze", ["y3", "one"], ["s3"]),
        make("Concat", ["s3", "s2"], ["c"], axis=-1),
        make("MatMul", ["c", "D"], ["m"]),
        make("Add", ["m", "d"], ["dense"]),
        make("Softmax", ["dense"], ["p"], axis=-1),
        make("ReduceMean", ["p"], ["mean"], axes=[-1], keepdims=1),
        make("Greater", ["p", "mean"], ["over"]),
        make("Where", ["over", "p", "zero"], ["chosen"]),
        make("Cast", ["over"], ["weight"], to=1),
        make("Mul", ["chosen", "weight"], ["kept"]),
        make("ArgMax", ["kept"], ["place"], axis=-1, keepdims=0),
        make("Unsqueeze", ["place", "last"], ["places"]),
        make("GatherElements", ["dense", "places"], ["best"], axis=-1),
        make("Tanh", ["best"], ["bent"]),
        make("Unsqueeze", ["kept", "last"], ["column"]),
        make("Unsqueeze", ["dense", "two"], ["row"]),
        make("MatMul", ["column", "row"], ["outer"]),
        make("Sub", ["kept", "bent"], ["y"]),
    ]
    lead = ["time", "batch"]
    outputs = [("y", np.float32, [*lead, 6]), ("place", np.int64, lead), ("outer", np.float32, [*lead, 6, 6])]
    return builders.make_model(nodes, [("tokens", np.int64, lead)], outputs, arrays, 17).SerializeToString()


AUDIO: Final = NetCase(I=1, hidden=(16,), head="dense", outputs=1)
TOKENS: Final = NetCase(vocabulary=MOST_TOKENS, hidden=(20, 20), head="dense_log_softmax", outputs=65)
WINDOW: Final = Front(kernel=4, dilation=2, form="chomp", recurrent=False)


@functools.cache
def models() -> dict[str, tuple[le.Model, dict[str, Any]]]:
    """By name, with how their libraries are made."""
    return {
        "audio": (le.load(AUDIO.model()), {"assembly": True}),
        "audio_int8": (le.load(AUDIO.model(), precision="int8"), {"assembly": True}),
        "everything": (le.load(everything()), {"assembly": True}),
        "window": (front_model(WINDOW), {"assembly": True}),
        "tokens": (le.load(TOKENS.model()), {"batch": 3, "block": 4, "assembly": True}),
    }


def test_the_models_use_every_instruction() -> None:
    """But those that write down what a layer computes, for traces."""
    used = set()
    for model, options in models().values():
        kinds = {name: value for name, value in options.items() if name != "assembly"}
        program = lowered(model, order_of(model, native(), **kinds)).program
        used |= {Opcode(each.opcode).name for each in program.listing}
    assert {code.name for code in Opcode if not code.name.startswith("TRACED")} - used == {"REARRANGE"} - used


_made: dict[str, Made] = {}


@pytest.fixture
def made_for(
    tmp_path_factory: pytest.TempPathFactory, fresh_environment: dict[str, str]
) -> Callable[[str], Mapping[str, Emitted]]:
    """The libraries of all models for a target, made once."""

    def made(target: str) -> Mapping[str, Emitted]:
        if target not in _made:
            folder = tmp_path_factory.mktemp("libraries")
            _made[target] = emitted_elsewhere(named_target(target), models(), folder, fresh_environment)
        return _made[target]

    return made


# --- what is in them ----------------------------------------------------------------------------------------------------


def undefined(assembly: str) -> set[str]:
    """Symbols that an assembly text calls or names and does not define."""
    defined = set(re.findall(r'^"?([\w.$@]+)"?:', assembly, re.MULTILINE))
    called = re.findall(
        r'^\t(?:bl?|blx|callq?|call|tail|jmp|b\.w)\s+"?([A-Za-z_][\w.$]*)"?(?:@PLT|@plt)?\s*(?:[#;/@].*)?$',
        assembly,
        re.MULTILINE,
    )
    return set(called) - defined


#: Every target; by default one of each kind.
EACH_TARGET: Final = [
    name if name in ("x86-64-v3", "aarch64", "cortex-m7") else pytest.param(name, marks=pytest.mark.nightly)
    for name in TARGETS
]


def exported(assembly: str) -> set[str]:
    names = re.findall(r"^\t\.glob[al]+\s+(\S+)", assembly, re.MULTILINE)
    return {name.removeprefix("_") for name in names} - {"@feat.00"}  # what linkers of Windows ask of any object


def instructions(made: Emitted) -> str:
    """Assembly without data, which is text of any kind."""
    return re.sub(r"^\t\.asci.*$", "", made.assembly.decode(), flags=re.MULTILINE)


@pytest.mark.parametrize("target", EACH_TARGET)
def test_nothing_is_left_to_the_linker(target: str, made_for: Callable[[str], Made], tmp_path: Path) -> None:
    """No call of the C library, of LLVM's own, or of anything; seven functions are seen, and no more."""
    tool = f"{named_target(target).tools}-nm"
    for name, made in made_for(target).items():
        text = made.assembly.decode()
        assert undefined(text) == set(), name
        assert exported(text) == {f"{NAME}_{each}" for each in FUNCTIONS}, name
        if found(tool) and "apple" not in target:
            (tmp_path / "net.o").write_bytes(made.object)
            done = subprocess.run([tool, "-u", "net.o"], cwd=tmp_path, capture_output=True, text=True, check=True)
            assert not done.stdout.strip(), name


#: What must and what must not be in the code of the float32 models, and the product of bytes.
INSTRUCTIONS: Final[dict[str, tuple[list[str], list[str], str]]] = {
    "x86-64": ([r"\tmulps\s", r"%xmm"], [r"%ymm", r"%zmm", r"\tv[a-z]+ps\s"], r"\tpmaddwd\s"),
    "x86-64-v3": ([r"\tvfn?madd\d+ps\s.*%ymm"], [r"%zmm", r"%k[0-7]"], r"\tvpmaddwd\s"),
    "x86-64-v4": ([r"\tvfn?madd\d+ps\s.*%zmm"], [], r"\tvpmaddwd\s"),
    "aarch64": ([r"\tfmla\s+v\d+\.4s", r"\tmsr\s+FPCR"], [r"\tsdot\s"], r"\tsmull2?\s"),
    "apple-arm64": ([r"\tfmla\.4s\s"], [], r"\tsdot\."),
    "windows-x64": ([r"\tvfn?madd\d+ps\s.*%ymm"], [r"%zmm"], r"\tvpmaddwd\s"),
    "riscv64": ([r"\tvfn?(?:macc|madd)\.v[vf]\s", r"\tvsetv"], [], r"\tvw?(?:mul|macc)\w*\.v[vx]\s"),
    "cortex-m7": ([r"\tvf?n?m(?:la|ls|a|s)\.f32\s"], [r"\bq\d+\b"], r"\t(?:smlabb|smla\w+|mla|smulbb)\s"),
}


@pytest.mark.parametrize("target", EACH_TARGET)
def test_its_own_instructions(target: str, made_for: Callable[[str], Made]) -> None:
    there, absent, byte_product = INSTRUCTIONS[target]
    for name, made in made_for(target).items():
        text = instructions(made)
        if name == "audio_int8":
            assert re.search(byte_product, text)
            continue
        for pattern in absent:
            assert not re.search(pattern, text), (name, pattern)
        if name != "window":
            for pattern in there:
                assert re.search(pattern, text), (name, pattern)


def code_bytes(made: Emitted) -> int:
    """Bytes of machine code in an object."""
    sections = llvm.ObjectFileRef.from_data(made.object).sections()
    return sum(section.size() for section in sections if section.is_text())


def test_only_what_a_program_uses_is_in_it(made_for: Callable[[str], Made]) -> None:
    """The audio model knows no tables, tokens or probabilities: no such function, no fault, and less code."""
    made = made_for("x86-64-v3")
    labels = {
        name: set(re.findall(r"^\"?([\w.]+)\"?:", each.assembly.decode(), re.MULTILINE)) for name, each in made.items()
    }
    for word in ("embed", "softmax", "recurrent", "convolution", "matmul", "pick", "reduce"):
        assert not [label for label in labels["audio"] if word in label.lower()], word
    assert code_bytes(made["audio"]) < code_bytes(made["everything"]) / 2


# --- on this machine ----------------------------------------------------------------------------------------------------

HERE: Final = variants(native())
OF_VARIANT: Final = {"x86-64": "x86-64", "avx2": "x86-64-v3", "avx512": "x86-64-v4"}
RUN: Final = "import sys, libraries; libraries.compare_elsewhere({!r})"


@pytest.mark.skipif(HERE[-1] != "x86-64", reason="for x86-64")
@pytest.mark.parametrize(
    "names",
    [
        ("audio", "audio_int8", "tokens"),
        pytest.param(("everything",), marks=pytest.mark.nightly),  # compiles every kernel for every variant
    ],
    ids=",".join,
)
def test_each_variant_has_its_engines_bits(
    names: tuple[str, ...], fresh_environment: dict[str, str], warm_environment: dict[str, str], tmp_path: Path
) -> None:
    """Libraries for v1, v3 and v4 beside the engine in that variant: the same bits. Beside one another: where both round
    a multiply-add once, too; else within 2e-6."""
    some = {name: models()[name] for name in names}

    def results(variant: str) -> dict[str, np.ndarray]:
        folder = tmp_path / variant
        emitted_elsewhere(named_target(OF_VARIANT[variant]), some, folder, fresh_environment)
        wish = f"{variant}," + ",".join(f"-{name}" for name in ("avx512vnni", "avx512bf16") if name in native().enabled)
        chosen = wish.rstrip(",") if variant == HERE[0] == "avx512" else variant
        child(RUN.format(str(folder)), warm_environment, LSTM_ENGINE_VARIANT=chosen)
        with np.load(folder / "results.npz") as file:
            return dict(file)

    with ThreadPoolExecutor(2) as pool:
        every = dict(zip(HERE, pool.map(results, HERE), strict=True))
    for variant, got in every.items():
        for name, x in got.items():
            if variant != "x86-64":
                assert_same_bits(x, every[HERE[0]][name], f"{variant} {name}")
            elif "int8" not in name:
                np.testing.assert_allclose(x, every[HERE[0]][name], rtol=0, atol=2e-6, err_msg=name)


# --- under emulation ----------------------------------------------------------------------------------------------------

MACHINES: Final = {
    "aarch64": ("aarch64-linux-gnu-gcc", (), ("qemu-aarch64",)),
    "riscv64": ("riscv64-linux-gnu-gcc", (), ("qemu-riscv64", "-cpu", "rv64,v=true,vext_spec=v1.0,vlen=128")),
    "riscv64-wide": ("riscv64-linux-gnu-gcc", (), ("qemu-riscv64", "-cpu", "rv64,v=true,vext_spec=v1.0,vlen=512")),
    # An A-profile core runs the same instructions; its linker is told not to mind whose they are.
    "cortex-m7": ("arm-linux-gnueabihf-gcc", ("-mthumb", "-Wl,--no-warn-mismatch"), ("qemu-arm", "-cpu", "max")),
}


@pytest.mark.parametrize("machine", MACHINES)
def test_under_emulation(machine: str, made_for: Callable[[str], Made], tmp_path: Path) -> None:
    """Steps, chunks, a state saved there that goes on here and one from here that goes on there: this engine's bits,
    for all these machines round a multiply-add once."""
    compiler, options, emulator = MACHINES[machine]
    if not found(compiler, emulator[0]):
        pytest.skip(f"no {compiler} or no {emulator[0]}")
    if not native().fma:
        pytest.skip("this machine rounds twice")
    for name, made in made_for(machine.removesuffix("-wide")).items():
        folder = tmp_path / name
        written(made, folder)
        model, given = models()[name]
        stream, ends = model.stream(given.get("batch", 1)), made.description["outputs"]
        draw, script, expected = np.random.default_rng(5), Script(made.description), []
        for count in (0, 7, 1):
            steps = drawn(made.description["inputs"], draw, count or 1, MOST_TOKENS - 1)
            wanted = [streamed(stream, step, ends) for step in steps]
            expected += [stacked(wanted, ends) if count else wanted[0], stream.state.to_bytes()]
            if count:
                script.feed(steps)
            else:
                script.step(steps[0])
            script.save()
        for step in drawn(made.description["inputs"], draw, 3, MOST_TOKENS - 1):
            stream.step(step if len(step) > 1 else next(iter(step.values())))
        script.load(stream.state.to_bytes())
        expected.append(None)
        (step,) = drawn(made.description["inputs"], draw, 1, MOST_TOKENS - 1)
        script.step(step)
        expected.append(streamed(stream, step, ends))
        answers = played(built(folder, [compiler, "-static", *options]), script, *emulator)
        for (code, got), wanted in zip(answers, expected, strict=True):
            assert code == Result.OK
            if isinstance(wanted, bytes):
                assert got == wanted, name
            elif wanted is not None:
                assert_same_bits(got, wanted, name)


# --- a microcontroller --------------------------------------------------------------------------------------------------

MOST_FLASH: Final = 24 << 10  # code and weights
MOST_RAM: Final = 1 << 10  # state and scratch
M7: Final = ("-mthumb", "-mcpu=cortex-m7", "-mfpu=fpv5-d16", "-mfloat-abi=hard", "--specs=nosys.specs")


def test_on_a_microcontroller(made_for: Callable[[str], Made]) -> None:
    """The audio model of 16 units: code and weights, memory of an instance, and of the stack where step() goes deepest."""
    made = made_for("cortex-m7")["audio"]
    sections = llvm.ObjectFileRef.from_data(made.object).sections()
    flash = sum(section.size() for section in sections if section.name() in (".text", ".rodata") or section.is_text())
    kept = code_bytes(made) + made.description["weights"]["bytes"]
    assert max(flash, kept) < MOST_FLASH
    assert made.description["instance_bytes"] < MOST_RAM
    assert stack_bytes(made.assembly.decode(), f"{NAME}_step") < MOST_RAM


def stack_bytes(assembly: str, entry: str) -> int:
    """Bytes of stack that a function of Thumb code needs, with all that it calls."""
    bodies = dict(re.findall(r"^([\w.]+):\s*(?:@.*)?\n(.*?)^\.Lfunc_end", assembly, re.MULTILINE | re.DOTALL))

    @functools.cache
    def depth(name: str) -> int:
        body = bodies[name]
        pushed = sum(4 * registers(text) for text in re.findall(r"\tpush(?:\.w)?\t\{(.*)\}", body))
        doubles = sum(8 * registers(text) for text in re.findall(r"\tvpush\t\{(.*)\}", body))
        moved = [int(text) for text in re.findall(r"\tsub(?:\.w|w)?\tsp, (?:sp, )?#(\d+)", body)]
        called = set(re.findall(r"\t(?:bl|b|b\.w)\t([A-Za-z_]\w*)", body)) & set(bodies)
        return pushed + doubles + sum(moved) + max((depth(each) for each in called - {name}), default=0)

    return depth(entry)


def registers(text: str) -> int:
    """Of a list like 'r4, r5, d8-d15, lr'."""
    parts = [part.strip().split("-") for part in text.split(",")]
    return sum(1 if len(part) == 1 else int(part[1][1:]) - int(part[0][1:]) + 1 for part in parts)


@pytest.mark.skipif(not found("arm-none-eabi-gcc", "arm-none-eabi-size"), reason="no compiler for bare ARM")
def test_it_links_for_bare_metal(made_for: Callable[[str], Made], tmp_path: Path) -> None:
    made = made_for("cortex-m7")["audio"]
    written(made, tmp_path)
    (tmp_path / "main.c").write_text(
        f'#include "{NAME}.h"\nstatic {NAME} self;\nstatic float x[1], y[1];\n'
        f"int main(void) {{ return {NAME}_init(&self, sizeof self) || {NAME}_step(&self, x, y); }}\n"
    )
    command = ["arm-none-eabi-gcc", *M7, "-Os", "-Wl,--gc-sections", "-o", "main", "main.c", f"{NAME}.o"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = subprocess.run(["arm-none-eabi-size", f"{NAME}.o"], cwd=tmp_path, capture_output=True, text=True, check=True)
    text, data, bss, *_ = map(int, said.stdout.splitlines()[1].split()[:3])
    assert text < MOST_FLASH
    assert (data, bss) == (0, 0)


# --- instructions of single CPUs ----------------------------------------------------------------------------------------

LINUX: Final = "x86_64-unknown-linux-gnu"
ARM: Final = "aarch64-unknown-linux-gnu"
ZEN4: Final = "+avx,+avx2,+avx512bf16,+avx512bw,+avx512cd,+avx512dq,+avx512f,+avx512vl,+avx512vnni,-avxvnni,-amx-tile"
BYTE_PRODUCTS: Final = {
    (ARM, "neoverse-n1", ""): "sdot",
    (LINUX, "alderlake", "+avx2,+fma,+avxvnni"): "vpdpbusd",
    (LINUX, "icelake-server", "+avx512f,+avx512bw,+avx512vl,+avx512vnni"): "vpdpbusd",
    (LINUX, "znver4", ZEN4): "vpdpbusd",
}


@pytest.mark.nightly
@pytest.mark.parametrize("machine", BYTE_PRODUCTS)
def test_products_of_narrow_weights(
    machine: tuple[str, str, str], fresh_environment: dict[str, str], tmp_path: Path
) -> None:
    """The instruction that a CPU has for bytes, and for halves where it pays, and no lesser one."""
    source = NetCase(I=20, hidden=(32,), head="dense")
    some = {
        precision: (le.load(source.model(), precision=precision), {"assembly": True, "batch": 4})
        for precision in ("int8", "bfloat16")
    }
    made = emitted_elsewhere(Target.of(*machine), some, tmp_path, fresh_environment)
    text = made["int8"].assembly.decode()
    assert re.search(rf"\t{BYTE_PRODUCTS[machine]}(?:\.\w+)?\s", text)
    assert not re.search(r"\tv?pmaddwd\s|\tsmull2?\s", text)
    assert bool(re.search(r"\tvdpbf16ps\s", made["bfloat16"].assembly.decode())) == Target.of(*machine).bf16


def test_the_native_library_uses_what_this_cpu_has() -> None:
    """Beside the engine as it is here, whatever this CPU is."""
    for name, (model, given) in models().items():
        kinds = {key: value for key, value in given.items() if key != "assembly"}
        instance = assert_is_the_stream(model, most=MOST_TOKENS - 1, **kinds)
        assert isinstance(instance.library, Library), name
        instance.reset()
        assert_same_state(instance, model.stream(kinds.get("batch", 1)))
