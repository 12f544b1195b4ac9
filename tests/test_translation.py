"""Kernels made for one program (library/translation.py): little functions give what Python gives, however much is known."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FunctionType
from typing import Any, Final

import llvmlite.binding as llvm
import numpy as np
import pytest
from llvmlite import ir

from lstm_engine.library.translation import INT64, Body, Spaces, Spot, Unit, Value

MOST_NOTES: Final = 4000
_DOUBLE: Final = ir.DoubleType()
_FLOAT: Final = ir.FloatType()

# --- the same function in Python and as machine code --------------------------------------------------------------------

_notes: list[int] = []
float32 = np.float32


class TooLongError(Exception):
    """A drawn function notes more than there is room for."""


def note(x: int) -> None:
    """Remember a number: which calls were made, and in which order."""
    if len(_notes) == MOST_NOTES:
        raise TooLongError
    _notes.append(int(x))


def half(x: int) -> float:
    """A float that nothing knows before it is run."""
    return x * 0.5


def single(x: int) -> np.float32:
    return np.float32(x) / np.float32(8)


def whole(x: float) -> int:
    return int(x)


def negative(x: float) -> int:
    return int(np.signbit(x))


def _note(body: Body, arguments: Sequence[Value]) -> None:
    """Notes lie in the instance: their number, then they."""
    b = body.b
    count_at = b.inttoptr(body.instance, ir.PointerType())
    count = b.add(b.load(count_at, typ=INT64), ir.Constant(INT64, 1))
    b.store(count, count_at)
    at = b.inttoptr(b.add(body.instance, b.shl(count, ir.Constant(INT64, 3))), ir.PointerType())
    b.store(body.machine(arguments[0], INT64), at)


def _half(body: Body, arguments: Sequence[Value]) -> ir.Value:
    x = body.b.sitofp(body.machine(arguments[0], INT64), _DOUBLE)
    return body.b.fmul(x, ir.Constant(_DOUBLE, 0.5))


def _single(body: Body, arguments: Sequence[Value]) -> ir.Value:
    x = body.b.sitofp(body.machine(arguments[0], INT64), _FLOAT)
    return body.b.fdiv(x, ir.Constant(_FLOAT, 8.0))


def _whole(body: Body, arguments: Sequence[Value]) -> ir.Value:
    return body.b.fptosi(body.machine(arguments[0]), INT64)


def _negative(body: Body, arguments: Sequence[Value]) -> ir.Value:
    bits = body.b.bitcast(body.machine(arguments[0], _DOUBLE), INT64)
    return body.b.lshr(bits, ir.Constant(INT64, 63))


_MACROS: Final = {note: _note, half: _half, single: _single, whole: _whole, negative: _negative}


class Translated:
    """Functions in one module: each of some arguments that are known and others that are not."""

    def __init__(self) -> None:
        self.module = ir.Module("translated")
        spaces = Spaces(self._known, self._address, frozenset({"fixed"}))
        self.unit = Unit(self.module, spaces, _MACROS)
        self.count = 0

    def _known(self, spot: Spot) -> int | None:
        return None

    def _address(self, body: Body, spot: Spot) -> ir.Value:
        return body.b.add(body.instance, ir.Constant(INT64, spot.offset))

    def add(self, function: Any, arguments: Sequence[Any], apart: bool = False) -> str:
        """``arguments``: None for one that is not known; ``apart``: as a function that the exported one calls."""
        name = f"f{self.count}"
        self.count += 1
        unknown = sum(argument is None for argument in arguments)
        made = ir.Function(self.module, ir.FunctionType(INT64, [INT64] * (1 + unknown)), name)
        instance, *given = made.args
        rest = iter(given)
        body = Body(self.unit, ir.IRBuilder(made.append_basic_block()), instance)
        values = [next(rest) if argument is None else argument for argument in arguments]
        result = self.unit.called(body, function, values) if apart else body.expanded(function, values)
        body.b.ret(body.machine(0 if result is None else result, INT64))
        return name

    def linked(self) -> Callable[[str, Sequence[int]], tuple[int, list[int]]]:
        """What calls a function: its result and its notes."""
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        module = llvm.parse_assembly(str(self.module))
        module.verify()
        machine = llvm.Target.from_default_triple().create_target_machine(opt=0)
        engine = llvm.create_mcjit_compiler(module, machine)
        engine.finalize_object()
        memory = np.zeros(1 + MOST_NOTES, np.int64)

        def call(name: str, arguments: Sequence[int]) -> tuple[int, list[int]]:
            memory[0] = 0
            types = [ctypes.c_int64] * (1 + len(arguments))
            result = ctypes.CFUNCTYPE(ctypes.c_int64, *types)(engine.get_function_address(name))
            return result(memory.ctypes.data, *arguments), memory[1 : 1 + int(memory[0])].tolist()

        return call


def in_python(function: Any, arguments: Sequence[int]) -> tuple[int, list[int]]:
    _notes.clear()
    result = function(*arguments)
    return int(0 if result is None else result), [*_notes]


def assert_as_python(functions: Sequence[FunctionType], samples: Sequence[Sequence[int]]) -> None:
    """Whatever is known of their arguments, functions return and note what they do in Python."""
    translated, calls = Translated(), []
    for function in functions:
        count = function.__code__.co_argcount
        for sample in dict.fromkeys(tuple(each[:count]) for each in samples):
            for known in itertools.product((False, True), repeat=count):
                given = [value if is_known else None for value, is_known in zip(sample, known, strict=True)]
                name = translated.add(function, given, apart=sum(known) % 2 == 1)
                calls.append((function, sample, known, name))
    call = translated.linked()
    for function, sample, known, name in calls:
        unknown = [value for value, is_known in zip(sample, known, strict=True) if not is_known]
        try:
            expected = in_python(function, sample)
        except TooLongError:
            continue
        assert call(name, unknown) == expected, (function.__name__, sample, known)


# --- the semantics that kernels are written in --------------------------------------------------------------------------


def arithmetic(x, y):  # type: ignore[no-untyped-def]
    note(x + y)
    note(x - y)
    note(x * y)
    note(x & y)
    note(x | y)
    note(x ^ y)
    note(-x)
    note(~y)
    note(x << 3)
    note(y >> 2)
    return (x << (y & 7)) >> (x & 3)


def division(x, y):  # type: ignore[no-untyped-def]
    d = y if y != 0 else -3
    note(x // d)
    note(x % d)
    note(x // 7)
    note(x % -7)
    note(-(x // -16))
    return (x // d) * d + x % d - x


def extremes(x, y):  # type: ignore[no-untyped-def]
    note(min(x, y))
    note(max(x, 3))
    note(max(-1, y))
    return min(max(x, -2), 5) - max(min(y, 4), 0)


def comparisons(x, y):  # type: ignore[no-untyped-def]
    note(x < y)
    note(x <= y)
    note(x == y)
    note(x != y)
    note(x >= 2)
    note(y < -1)
    note(-2 < x <= y < 9)
    note(x in (1, y, 8))
    note(x not in (3, -1))
    return (x == 1) == (y == 1)


def truths(x, y):  # type: ignore[no-untyped-def]
    """Truth values are numbers, too."""
    a = x > y
    b = not x
    c = a + b + (y == 3) * 5 - (x != y)
    note(a & b)
    note(a | (not y))
    note(c)
    if a and not b:
        c += True
    return c << (x > 0)


def answered(x, value):  # type: ignore[no-untyped-def]
    """A condition that says it was asked."""
    note(x)
    return value


def short_circuits(x, y):  # type: ignore[no-untyped-def]
    if answered(1, x > 0) and answered(2, y > 0) and answered(3, x > y):
        note(100)
    if answered(4, x > 0) or answered(5, y > 0) or answered(6, x > y):
        note(101)
    note(0 < answered(20, x) < answered(21, y) < answered(22, 5))
    if not (answered(7, x) and answered(8, y)) or answered(9, x == y):
        note(102)
    z = answered(10, x == 1) or (answered(11, y == 1) and answered(12, x == y))
    return z


def operands(x, y):  # type: ignore[no-untyped-def]
    """`and` and `or` are one of their operands."""
    note(x or y)
    note(x and y)
    note(x or y or 7)
    note((x and 5) or y)
    return 1 + (x and y and 3)


def conditional(x, y):  # type: ignore[no-untyped-def]
    z = answered(1, x) if x > y else answered(2, y)
    w = 1 if x == y else (2 if x < y else 3)
    a, b = (x, 1) if y > 0 else (w, 2)
    return z * 100 + w * 10 + a - b


def pair(x, y):  # type: ignore[no-untyped-def]
    return y, (x, x + y)


def tuples(x, y):  # type: ignore[no-untyped-def]
    a, b = x, y
    a, b = b, a
    note(a)
    c, (d, e) = pair(a, b)
    note(c)
    p = q = d - e
    if x > y:
        a, b = c, d
    else:
        a, (b, f) = pair(d, e)
        note(f)
    return a * 3 + b * 5 + p + q


def counted(x, y):  # type: ignore[no-untyped-def]
    i, total = 0, y
    while i < (x & 15):
        total += i * y
        note(total)
        i += 1
    return total + i


def nested(x, y):  # type: ignore[no-untyped-def]
    i, total = 0, 0
    while i < 4:
        j = i
        while j < (x & 7):
            if (i + j) & 1:
                total += y
            else:
                total -= j
            j += 2
        note(j)
        i += 1
    return total


def broken_off(x, y):  # type: ignore[no-untyped-def]
    i = found = 0
    while i < 12:
        if i == x:
            found = 1
            break
        if i * 2 == y:
            note(i)
            found = 2
            break
        i += 1
    note(found)
    while True:
        i += 3
        if i > y:
            break
    return i * 10 + found


def once(x, y):  # type: ignore[no-untyped-def]
    """Loops that are known to turn once, or never, where their bounds are."""
    i, total = 0, x
    while i < 16:
        total += answered(i, y)
        i += 16
    while i < 16:
        note(99)
        i += 1
    j = x & 1
    while j < 1:
        total *= 2
        if y > 2:
            total -= 1
        j += 1
    k = 0
    while k < 1:
        k += 1
        if total > 20:
            note(7)
            break
        note(8)
    return total * 10 + i + j + k


def early(x, y):  # type: ignore[no-untyped-def]
    if x > 6:
        return 1
    i = 0
    while i < 9:
        if i == x:
            return i * 100
        j = 0
        while j < 3:
            if j + i == y:
                note(j)
                return -1
            j += 1
        i += 1
    if y > 4:
        return 2
    return 3


def returned_once(x, y):  # type: ignore[no-untyped-def]
    i = 0
    while i < 1:
        if x > y:
            return 5
        i += 1
        if x == y:
            return early(x, y)
    return broken_off(y, x) + i


def either(x, y):  # type: ignore[no-untyped-def]
    if x > 0:
        if y > 0:
            return 11
        note(1)
    elif y > 3:
        note(2)
    else:
        return 13
    return x - y


def nothing(x, y):  # type: ignore[no-untyped-def]
    """A kernel may return nothing, early or at its end."""
    if x > y:
        return
    note(x)


def calling_nothing(x, y):  # type: ignore[no-untyped-def]
    nothing(x, y)
    nothing(y, x)
    return counted(x, 1) + nested(y, x)


def floats(x, y):  # type: ignore[no-untyped-def]
    a, b = half(x), half(y)
    c = a * b + 0.25 - a / 4.0
    i = 0
    while i < 3:
        c += a
        i += 1
    d = c if a > b else b - 1.5
    note(a < b)
    note(a == b)
    note(a != b)
    note(a >= 0.5)
    e = 0.5 if x > y else -0.0
    return whole(d * 64.0) + whole(e * 8.0) + whole(1.0 / (e * e + 0.25))


def singles(x, y):  # type: ignore[no-untyped-def]
    a, b = single(x), single(y)
    c = float32(0.1) if x > y else float32(0.3)
    return whole((a * b - a + c) * float32(4096.0))


def passed_on(a):  # type: ignore[no-untyped-def]
    """A kernel of its own: it has a loop."""
    i = 0
    while i < 2:
        i += 1
    return a


def signs_of_zero(x, y):  # type: ignore[no-untyped-def]
    """Zeros of two signs are two numbers, and two arguments."""
    a = 0.0 if x > y else -0.0
    note(negative(a))
    note(negative(passed_on(0.0)))
    return negative(passed_on(-0.0))


KERNELS: Final = [
    arithmetic, division, extremes, comparisons, truths, short_circuits, operands, conditional, tuples, counted, nested,
    broken_off, once, early, returned_once, either, nothing, calling_nothing, floats, singles,
    signs_of_zero,
]  # fmt: skip
SAMPLES: Final = [*itertools.product((-9, -1, 0, 1, 3, 8), (-4, 0, 1, 5)), (1000003, -7), (3, 3), (8, 16)]


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.__name__)
def test_it_is_what_python_says(kernel: FunctionType) -> None:
    assert_as_python([kernel], SAMPLES)


# --- drawn programs -----------------------------------------------------------------------------------------------------


class Writer:
    """Writes functions in the part of Python that kernels use; numbers stay within 64 bits, loops end."""

    NAMES: Final = ("a", "b", "c", "d")

    def __init__(self, seed: int) -> None:
        self.draw = np.random.default_rng(seed)
        self.loops = 0
        self.earlier: list[str] = []

    def pick(self, *options: Any) -> Any:
        return options[int(self.draw.integers(len(options)))]

    def function(self, name: str) -> list[str]:
        self.loops = 0
        lines = [f"def {name}(a, b):", "    c, d = b, 1", *self.block(1, 3, False), f"    return {self.expression(2)}"]
        self.earlier.append(name)
        return lines

    def block(self, indent: int, depth: int, looping: bool) -> list[str]:
        lines: list[str] = []
        for _ in range(int(self.draw.integers(1, 4))):
            lines += ["    " * indent + line for line in self.statement(depth, looping)]
        return lines

    def statement(self, depth: int, looping: bool) -> list[str]:
        kinds = ["assign", "assign", "augment", "note", "swap"]
        kinds += ["if", "if", "while", "once", "leave"] if depth else []
        match self.pick(*kinds):
            case "assign":
                return [f"{self.pick(*self.NAMES)} = ({self.expression(3)}) % 8191"]
            case "augment":
                return [f"{self.pick(*self.NAMES)} {self.pick('+', '-', '^', '|', '&')}= ({self.expression(2)}) & 1023"]
            case "note":
                return [f"note({self.expression(3)})"]
            case "swap":
                x, y = self.draw.permutation(self.NAMES)[:2]
                return [f"{x}, {y} = {y}, {self.expression(1)}"]
            case "if":
                lines = [f"if {self.condition(2)}:", *self.block(1, depth - 1, looping)]
                return lines + (["else:", *self.block(1, depth - 1, looping)] if self.pick(True, False) else [])
            case "while":
                return self.loop(depth, f"({self.expression(1)}) & {self.pick(1, 3, 7)}")
            case "once":
                return self.loop(depth, self.pick("0", "1", "1", "a & 1"))
            case _:
                way = "break" if looping and self.pick(True, False) else f"return {self.expression(1)}"
                return [f"if {self.condition(1)}:", f"    {way}"]

    def loop(self, depth: int, bound: str) -> list[str]:
        i = f"i{self.loops}"
        self.loops += 1
        test = self.pick(f"{i} < n{i}", f"{i} < n{i}", f"{i} < n{i} and ({self.condition(1)})")
        body = self.block(1, depth - 1, True)
        return [f"{i}, n{i} = 0, {bound}", f"while {test}:", *body, f"    {i} += 1"]

    def expression(self, depth: int) -> str:
        if not depth:
            return str(self.pick(*self.NAMES, *self.NAMES, self.draw.integers(-20, 20)))
        x, y, z = (self.expression(depth - 1) for _ in range(3))
        forms = [
            x, f"({x} {self.pick('+', '-', '&', '|', '^')} {y})", f"(({x}) & 1023) * (({y}) & 511)",
            f"({x}) {self.pick('//', '%')} ((({y}) & 15) + 1)", f"({x}) {self.pick('//', '%')} -((({y}) & 15) + 1)",
            f"((({x}) & 1023) << (({y}) & 7))", f"(({x}) >> (({y}) & 7))", f"(-({x}))", f"(~({x}))",
            f"{self.pick('min', 'max')}({x}, {y})", f"({x} if {self.condition(1)} else {y})", f"({self.condition(1)})",
            f"(({x}) {self.pick('and', 'or')} ({y}) {self.pick('and', 'or')} ({z}))", f"(not ({x}))",
        ]  # fmt: skip
        if self.earlier:
            forms += [f"{self.pick(*self.earlier)}(({x}) & 63, ({y}) & 63) % 4095"]
        return str(self.pick(*forms))

    def condition(self, depth: int) -> str:
        x, y, z = (self.expression(depth - 1) for _ in range(3))
        symbol, other = (self.pick("<", "<=", ">", ">=", "==", "!=") for _ in range(2))
        return str(self.pick(f"{x} {symbol} {y}", f"({x}) {symbol} ({y}) {other} ({z})", f"({x}) & 1", f"not ({x})",
                             f"({x}) > 3 {self.pick('and', 'or')} note_of({y}) < 5"))  # fmt: skip


def functions_of(seed: int, folder: Path) -> Iterator[FunctionType]:
    """Three functions, of which the later may call the earlier."""
    writer = Writer(seed)
    lines = ["def note_of(x):", "    note(x)", "    return x"]
    for k in range(3):
        lines += ["", "", *writer.function(f"drawn_{seed}_{k}")]
    path = folder / f"drawn_{seed}.py"
    path.write_text("\n".join(lines) + "\n")
    names: dict[str, Any] = {"note": note}
    exec(compile(path.read_text(), str(path), "exec"), names)
    return (names[f"drawn_{seed}_{k}"] for k in range(3))


DRAWN_SAMPLES: Final = [(0, 0), (5, -3), (-17, 40)]


def check_drawn(seeds: range, folder: Path) -> None:
    for seed in seeds:
        assert_as_python([*functions_of(seed, folder)], DRAWN_SAMPLES)


def test_drawn_programs(tmp_path: Path) -> None:
    check_drawn(range(10), tmp_path)


@pytest.mark.nightly
def test_many_drawn_programs(tmp_path: Path) -> None:
    check_drawn(range(10, 600), tmp_path)
