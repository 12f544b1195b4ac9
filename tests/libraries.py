"""Libraries of models, as C programs see them: made in this process or another, linked here or run under an emulator."""

from __future__ import annotations

import ctypes
import pickle
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import llvmlite.binding as llvm
import numpy as np
from cases import assert_same_bits
from processes import child

import lstm_engine as le
from lstm_engine.library.emitting import Emitted, emitted
from lstm_engine.library.interface import Result
from lstm_engine.library.layout import Layout
from lstm_engine.library.maker import lowered_for, refuse_host_calls
from lstm_engine.library.order import Order
from lstm_engine.library.texts import header
from lstm_engine.machine import Target, assume, target
from lstm_engine.program.streaming import Streamable

NAME: Final = "net"
#: What every library exports.
FUNCTIONS: Final = ("init", "step", "feed", "reset", "save", "load", "describe")
ALIGNMENT: Final = 64
MOST_TOKENS: Final = 11  # of the vocabularies here

Shapes = Mapping[str, Sequence[int]]
Arrays = dict[str, np.ndarray]


def order_of(
    model: le.Model,
    machine: Target,
    *,
    batch: int = 1,
    block: int = 1,
    shapes: Shapes | None = None,
    apart: bool = False,
) -> Order:
    """What export() has another process make."""
    given = {name: [*shape] for name, shape in (shapes or {}).items()}
    precision, declared, fingerprint = model.precision, model.declared, model.fingerprint
    return Order("", precision, declared, machine, NAME, batch, block, given, apart, fingerprint, False)


def lowered(model: le.Model, order: Order) -> Streamable:
    """The program of a library; UnsupportedModelError if a part of it is no machine code."""
    made = lowered_for(model.graph, order)
    refuse_host_calls(model.graph, made)
    return made


def emitted_here(model: le.Model, machine: Target | None = None, *, assembly: bool = False, **options: Any) -> Emitted:
    """A library for the machine that this process makes code for."""
    order = order_of(model, machine or target(), **options)
    layout = Layout(lowered(model, order), model.fingerprint, order.apart)
    if layout.copied:
        raise le.UnsupportedModelError(f"rows of {layout.copied} are not in one piece")
    return emitted(layout, order.machine, NAME, assembly)


@dataclass
class Library:
    """The functions of a library that this process can call, and what it says of itself.

    ``keeper``: what the code lives in; ``weights``: the file of weights, empty where the object holds them.
    """

    functions: Mapping[str, Any]
    description: Mapping[str, Any]
    keeper: Any
    weights: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint8))

    @classmethod
    def linked(cls, made: Emitted) -> Library:
        """An object, linked into this process without a linker's help."""
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        engine = llvm.create_mcjit_compiler(
            llvm.parse_assembly(""), llvm.Target.from_default_triple().create_target_machine()
        )
        engine.add_object_file(llvm.ObjectFileRef.from_data(made.object))
        engine.finalize_object()
        addresses = {name: engine.get_function_address(f"{NAME}_{name}") for name in FUNCTIONS}
        assert all(addresses.values())
        functions = {name: ctypes.CFUNCTYPE(ctypes.c_int32)(at) for name, at in addresses.items()}
        return cls(functions, made.description, engine, aligned_copy(made.weights))

    @classmethod
    def loaded(cls, path: Any, description: Mapping[str, Any], weights: bytes = b"") -> Library:
        """A shared library."""
        library = ctypes.CDLL(str(path))
        functions = {name: library[f"{description['name']}_{name}"] for name in FUNCTIONS}
        return cls(functions, description, library, aligned_copy(weights))

    def call(self, name: str, *arguments: Any) -> int:
        """Call a function; arrays as their addresses, numbers as size_t. Its code."""
        given = [address(each) if each is None or isinstance(each, np.ndarray) else ctypes.c_size_t(each)
                 for each in arguments]  # fmt: skip
        return int(self.functions[name](*given))

    @property
    def given_weights(self) -> list[Any]:
        """What init() takes behind the memory."""
        return [self.weights, len(self.weights)] if self.description["weights"]["apart"] else []

    def described(self) -> str:
        """What describe() says."""
        function = ctypes.CFUNCTYPE(ctypes.c_char_p)(ctypes.cast(self.functions["describe"], ctypes.c_void_p).value)
        return str(function().decode())


def address(array: np.ndarray | None) -> ctypes.c_void_p:
    """Of an array's first byte; NULL for None."""
    return ctypes.c_void_p(None if array is None else array.ctypes.data)


def aligned_memory(count: int, beyond: int = 0) -> np.ndarray:
    """So many bytes at a cache line, or so many beyond one; not zeros, as nothing promises them."""
    room = np.full(count + 2 * ALIGNMENT, 0xA5, np.uint8)
    first = -room.ctypes.data % ALIGNMENT + beyond
    return room[first : first + count]


def aligned_copy(content: bytes) -> np.ndarray:
    memory = aligned_memory(len(content))
    memory[:] = np.frombuffer(content, np.uint8)
    return memory


class Instance:
    """One instance of a library: arrays in, arrays out, as a C program would have them.

    ``room``: makes the memory of a shape and type, that of instance and states included.
    """

    def __init__(self, library: Library, room: Any = None) -> None:
        self.library = library
        self.room = room or _plain_room
        about = library.description
        self.inputs, self.outputs = about["inputs"], about["outputs"]
        self.memory = (
            self.room((about["instance_bytes"],), np.uint8) if room else aligned_memory(about["instance_bytes"])
        )
        assert library.call("init", self.memory, len(self.memory), *library.given_weights) == Result.OK

    def step(self, feeds: Arrays) -> tuple[int, Arrays]:
        """The code of a step, and its outputs."""
        return self._run("step", [], feeds, None)

    def feed(self, feeds: Arrays, count: int) -> tuple[int, Arrays]:
        """The code of ``count`` steps, which lie one behind the other in each array, and their outputs."""
        return self._run("feed", [count], feeds, count)

    def _run(self, name: str, given: list[int], feeds: Arrays, count: int | None) -> tuple[int, Arrays]:
        ins = [self._array(end, count) for end in self.inputs]
        for array, end in zip(ins, self.inputs, strict=True):
            array[...] = np.asarray(feeds[end["name"]]).reshape(array.shape)
        outs = [self._array(end, count) for end in self.outputs]
        code = self.library.call(name, self.memory, *given, *ins, *outs)
        return code, {end["name"]: array for end, array in zip(self.outputs, outs, strict=True)}

    def _array(self, end: Mapping[str, Any], count: int | None) -> np.ndarray:
        shape = (*([count] if count is not None and end["steps"] else []), *end["shape"])
        made: np.ndarray = self.room(shape, np.dtype(end["dtype"]))
        return made

    def reset(self) -> None:
        assert self.library.call("reset", self.memory) == Result.OK

    def save(self) -> bytes:
        """The state's bytes."""
        content = self.room((self.library.description["state_bytes"],), np.uint8)
        assert self.library.call("save", self.memory, content, len(content)) == Result.OK
        return bytes(content)

    def load(self, content: bytes) -> int:
        """The code of going on from a state's bytes."""
        given = self.room((len(content),), np.uint8)
        given[:] = np.frombuffer(content, np.uint8)
        return self.library.call("load", self.memory, given, len(given))


def _plain_room(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    return np.full(shape, 0x5A if np.dtype(dtype).kind == "u" else 1, dtype)


# --- beside the engine ------------------------------------------------------------------------------------------------


def drawn(ends: Sequence[Mapping[str, Any]], draw: np.random.Generator, count: int, most: int = 2) -> list[Arrays]:
    """Feeds of so many steps; integers below ``most``."""

    def one(end: Mapping[str, Any]) -> np.ndarray:
        dtype = np.dtype(end["dtype"])
        values = draw.integers(0, most, end["shape"]) if dtype.kind in "iub" else draw.normal(size=end["shape"])
        return np.asarray(values).astype(dtype)

    return [{end["name"]: one(end) for end in ends} for _ in range(count)]


def stacked(steps: Sequence[Arrays], ends: Sequence[Mapping[str, Any]]) -> Arrays:
    """Steps one behind the other; the last alone of what has no steps."""
    return {e["name"]: np.stack([s[e["name"]] for s in steps]) if e["steps"] else steps[-1][e["name"]] for e in ends}


def streamed(stream: le.Stream, feeds: Arrays, ends: Sequence[Mapping[str, Any]]) -> Arrays:
    """A step of the engine's, its outputs in the library's shapes."""
    result = stream.step(feeds)
    named = result if isinstance(result, Mapping) else {ends[0]["name"]: result}
    return {end["name"]: np.asarray(named[end["name"]]).reshape(end["shape"]) for end in ends}


def assert_is_the_stream(
    model: le.Model,
    *,
    batch: int = 1,
    block: int = 1,
    shapes: Shapes | None = None,
    apart: bool = False,
    most: int = 2,
    seed: int = 0,
    feeds: Sequence[Arrays] | None = None,
    made: Emitted | None = None,
) -> Instance:
    """A library (``made``, or one made now) gives the engine's bits: steps, chunks, states out and in; the instance,
    for more."""
    made = made or emitted_here(model, batch=batch, block=block, shapes=shapes, apart=apart)
    library = Library.linked(made)
    instance, stream = Instance(library), model.stream(batch)
    assert_same_state(instance, stream)
    draw, ends = np.random.default_rng(seed), library.description["outputs"]
    whole = all(end["steps"] for end in instance.inputs)
    for count in (0, 1, 2, 7, 0) if whole else (0, 0, 0):
        steps = drawn(instance.inputs, draw, count or 1, most) if feeds is None else [*feeds][: count or 1]
        wanted = [streamed(stream, step, ends) for step in steps]
        code, got = instance.feed(stacked(steps, instance.inputs), count) if count else instance.step(steps[0])
        assert code == Result.OK
        assert_same_bits(got, stacked(wanted, ends) if count else wanted[0], f"{count} steps")
    assert_same_state(instance, stream)
    return instance


def assert_same_state(instance: Instance, stream: le.Stream) -> None:
    """The same bytes, which either goes on from."""
    content = instance.save()
    assert content == stream.state.to_bytes()
    assert instance.load(content) == Result.OK
    assert instance.save() == content
    stream.state = le.State.from_bytes(content)


# --- C programs ---------------------------------------------------------------------------------------------------------

STEP, FEED, SAVE, LOAD, RESET = range(1, 6)
ALONE: Final = -1  # one step, whose arrays have no axis of steps


def driver(description: Mapping[str, Any]) -> str:
    """A C program: reads commands from one file, gives them to an instance, writes codes and results to another.

    All memory is of exactly the size that the header says; with GUARDED defined, a page that cannot be touched follows
    it, or comes before it where GUARDED is negative.
    """
    name, ends = description["name"], [*description["inputs"], *description["outputs"]]
    count = len(description["inputs"])
    sizes = [int(np.prod(end["shape"])) * np.dtype(end["dtype"]).itemsize for end in ends]
    steps = [int(end["steps"]) for end in ends]
    apart = description["weights"]["apart"]
    arrays = ", ".join(f"a[{k}]" for k in range(len(ends)))
    return f"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "{name}.h"
#ifdef __arm__
#include <malloc.h> /* newlib has no aligned_alloc() */
#define aligned_alloc memalign
#endif
#ifdef GUARDED
#include <sys/mman.h>
#endif

static const size_t sizes[] = {{ {", ".join(map(str, sizes))} }};
static const int steps[] = {{ {", ".join(map(str, steps))} }};
enum {{ INPUTS = {count}, ENDS = {len(ends)} }};

static void *room(size_t bytes)
{{
#ifdef GUARDED
    size_t page = 4096, whole = (bytes + page - 1) / page * page;
    unsigned char *first = mmap(NULL, whole + 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (first == MAP_FAILED) exit(3);
    memset(first, 0xA5, whole + 2 * page);
    if (mprotect(first, page, PROT_NONE) || mprotect(first + page + whole, page, PROT_NONE)) exit(3);
    return GUARDED > 0 ? first + page + whole - bytes : first + page;
#else
    size_t whole = (bytes + 63) / 64 * 64;
    unsigned char *made = aligned_alloc(64, whole ? whole : 64);
    if (!made) exit(3);
    memset(made, 0xA5, whole);
    return made;
#endif
}}

static void give_back(void *memory, size_t bytes)
{{
#ifdef GUARDED
    size_t page = 4096, whole = (bytes + page - 1) / page * page;
    unsigned char *first = GUARDED > 0 ? (unsigned char *)memory + bytes - whole : memory;
    munmap(first - page, whole + 2 * page);
#else
    (void)bytes;
    free(memory);
#endif
}}

static void get(void *to, size_t bytes, FILE *from)
{{
    if (bytes && fread(to, 1, bytes, from) != bytes) exit(4);
}}

static void put(const void *at, size_t bytes, FILE *to)
{{
    if (bytes && fwrite(at, 1, bytes, to) != bytes) exit(5);
}}

int main(int count, char **words)
{{
    FILE *from = count > 2 ? fopen(words[1], "rb") : stdin, *to = count > 2 ? fopen(words[2], "wb") : stdout;
    if (!from || !to) return 2;
    {name} *self = room({name.upper()}_INSTANCE_BYTES);
    int32_t command[2], code;
{_weights_in_c(name) if apart else ""}
    code = {name}_init(self, {name.upper()}_INSTANCE_BYTES{", weights, " + name.upper() + "_WEIGHT_BYTES" if apart else ""});
    put(&code, sizeof code, to);
    while (fread(command, 1, sizeof command, from) == sizeof command) {{
        size_t n = (size_t)command[1], bytes[ENDS];
        if (command[0] == {STEP} || command[0] == {FEED}) {{
            void *a[ENDS];
            for (int k = 0; k < ENDS; k++) {{
                bytes[k] = sizes[k] * (command[0] == {FEED} && steps[k] ? n : 1);
                a[k] = room(bytes[k]);
                if (k < INPUTS) get(a[k], bytes[k], from);
            }}
            code = command[0] == {STEP} ? {name}_step(self, {arrays}) : {name}_feed(self, n, {arrays});
            put(&code, sizeof code, to);
            for (int k = 0; k < ENDS; k++) {{
                if (k >= INPUTS && !code) put(a[k], bytes[k], to);
                give_back(a[k], bytes[k]);
            }}
        }} else if (command[0] == {SAVE}) {{
            void *state = room({name.upper()}_STATE_BYTES);
            code = {name}_save(self, state, {name.upper()}_STATE_BYTES);
            put(&code, sizeof code, to);
            if (!code) put(state, {name.upper()}_STATE_BYTES, to);
            give_back(state, {name.upper()}_STATE_BYTES);
        }} else if (command[0] == {LOAD}) {{
            void *state = room(n);
            get(state, n, from);
            code = {name}_load(self, state, n);
            put(&code, sizeof code, to);
            give_back(state, n);
        }} else {{
            code = {name}_reset(self);
            put(&code, sizeof code, to);
        }}
    }}
    fclose(to);
    give_back(self, {name.upper()}_INSTANCE_BYTES);
    return 0;
}}
"""


def _weights_in_c(name: str) -> str:
    return f"""
    unsigned char *weights = room({name.upper()}_WEIGHT_BYTES);
    FILE *file = fopen("{name}.weights", "rb");
    if (!file) return 2;
    get(weights, {name.upper()}_WEIGHT_BYTES, file);
    fclose(file);
"""


@dataclass
class Script:
    """Commands for a driver, and how to read what it answers."""

    description: Mapping[str, Any]
    content: bytearray = field(default_factory=bytearray)
    answers: list[int | None] = field(default_factory=list)  # steps of outputs, or ALONE; 0: a state; None: a code

    def _command(self, kind: int, count: int, payload: bytes, answer: int | None) -> None:
        self.content += np.array([kind, count], "<i4").tobytes() + payload
        self.answers.append(answer)

    def step(self, feeds: Arrays) -> None:
        self._command(STEP, 1, self._inputs(feeds), ALONE)

    def feed(self, steps: Sequence[Arrays]) -> None:
        self._command(FEED, len(steps), self._inputs(stacked(steps, self.description["inputs"])), len(steps))

    def save(self) -> None:
        self._command(SAVE, 0, b"", 0)

    def load(self, content: bytes) -> None:
        self._command(LOAD, len(content), content, None)

    def reset(self) -> None:
        self._command(RESET, 0, b"", None)

    def _inputs(self, feeds: Arrays) -> bytes:
        return b"".join(feeds[e["name"]].astype(e["dtype"]).tobytes() for e in self.description["inputs"])

    def read(self, answer: bytes) -> list[tuple[int, Any]]:
        """Each command's code, and its outputs or state."""
        assert np.frombuffer(answer, "<i4", 1)[0] == Result.OK, "init"
        at, found = 4, []
        for steps in self.answers:
            code = int(np.frombuffer(answer, "<i4", 1, at)[0])
            at += 4
            result: Any = None
            if code == Result.OK and steps == 0:
                result = answer[at : at + self.description["state_bytes"]]
                at += self.description["state_bytes"]
            elif code == Result.OK and steps is not None:
                result = {}
                for end in self.description["outputs"]:
                    shape = (*([steps] if end["steps"] and steps != ALONE else []), *end["shape"])
                    count = int(np.prod(shape))
                    array = np.frombuffer(answer, np.dtype(end["dtype"]).newbyteorder("<"), count, at)
                    result[end["name"]] = array.reshape(shape).astype(end["dtype"])
                    at += array.nbytes
            found.append((code, result))
        assert at == len(answer)
        return found


def written(made: Emitted, folder: Path) -> None:
    """A library's object, header, weights and driver."""
    folder.mkdir(parents=True, exist_ok=True)
    name = made.description["name"]
    (folder / f"{name}.o").write_bytes(made.object)
    (folder / f"{name}.h").write_text(header(made.description, "a test"))
    if made.weights:
        (folder / f"{name}.weights").write_bytes(made.weights)
    (folder / "driver.c").write_text(driver(made.description))


def built(folder: Path, compiler: Sequence[str], *options: str) -> Path:
    """The driver of a folder, linked with its library."""
    program = folder / "driver"
    command = [*compiler, "-O1", "-Wall", "-Wextra", "-Werror", *options, "-o", str(program), "driver.c", f"{NAME}.o"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return program


def played(program: Path, script: Script, *emulator: str) -> list[tuple[int, Any]]:
    """What a driver answers to a script."""
    folder = program.parent
    (folder / "commands").write_bytes(script.content)
    done = subprocess.run(
        [*emulator, str(program), "commands", "answers"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"exit {done.returncode}: {done.stderr}"
    return script.read((folder / "answers").read_bytes())


def found(*tools: str) -> bool:
    """Whether this machine has them all."""
    return all(map(shutil.which, tools))


# --- other machines -----------------------------------------------------------------------------------------------------

_MANY: Final = """
import pickle, sys
import libraries
libraries.emit_many(*sys.argv[1:])
"""


def emitted_elsewhere(
    machine: Target,
    models: Mapping[str, tuple[le.Model, Mapping[str, Any]]],
    folder: Path,
    environment: Mapping[str, str],
) -> dict[str, Emitted]:
    """Libraries of several models for another machine, made in one process."""
    folder.mkdir(parents=True, exist_ok=True)
    orders = {}
    for name, (model, options) in models.items():
        model.save(folder / f"{name}.npz")
        orders[name] = (model.precision, dict(model.declared), dict(options))
    (folder / "orders").write_bytes(pickle.dumps((machine, orders)))
    child(f"import sys; sys.argv[1:] = [{str(folder)!r}]\n{_MANY}", dict(environment))
    made: dict[str, Emitted] = pickle.loads((folder / "made").read_bytes())
    return made


def emit_many(place: str) -> None:
    """The other process."""
    folder = Path(place)
    machine, orders = pickle.loads((folder / "orders").read_bytes())
    assume(machine)
    made = {}
    for name, (precision, declared, options) in orders.items():
        model = le.load(folder / f"{name}.npz", precision=precision, states=declared or None)
        made[name] = emitted_here(model, machine, **options)
    (folder / "made").write_bytes(pickle.dumps(made))


def assert_is_the_call(model: le.Model, feeds: Arrays) -> Instance:
    """A library of whole calls gives the bits of Model.run(), where that, too, is machine code from end to end."""
    shapes = {name: x.shape for name, x in feeds.items()}
    instance = Instance(Library.linked(emitted_here(model, shapes=shapes)))
    expected = model.run(feeds)
    in_python = any(made.program.hosts for made, *_ in model._programs.values())
    for _ in range(2):
        code, got = instance.step(feeds)
        assert code == Result.OK
        for name, x in got.items():
            if in_python:
                np.testing.assert_allclose(x, expected[name], rtol=2e-5, atol=2e-6, err_msg=name)
            else:
                assert_same_bits(x, expected[name], name)
    return instance


def compare_elsewhere(place: str) -> None:
    """In a process under another variant: libraries made for it give that engine's bits; results to a file."""
    folder = Path(place)
    _, orders = pickle.loads((folder / "orders").read_bytes())
    made = pickle.loads((folder / "made").read_bytes())
    results = {}
    for name, (precision, declared, options) in orders.items():
        model = le.load(folder / f"{name}.npz", precision=precision, states=declared or None)
        batch = options.get("batch", 1)
        instance = assert_is_the_stream(model, batch=batch, most=MOST_TOKENS, made=made[name])
        instance.reset()
        (step,) = drawn(instance.inputs, np.random.default_rng(3), 1, MOST_TOKENS)
        code, got = instance.step(step)
        assert code == Result.OK
        results |= {f"{name} {output}": array for output, array in got.items()}
    np.savez(folder / "results.npz", **results)
