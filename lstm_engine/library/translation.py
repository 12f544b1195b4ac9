"""Kernels as LLVM IR for one program: what its instructions say is known here, so nothing asks at run time.

Kernels are written in a small part of Python: integers, floats and vectors in variables, `while`, `if`, and calls of
other kernels and of intrinsics. Numba makes an executor of them that runs any program; here the same sources are
evaluated as far as the program's words reach, and the rest is written down. A branch that no instruction takes leaves
no trace, a size is a number in the code, an address is a distance from where the caller put the instance.

Where the two must agree is in the intrinsics (kernels/simd.py), which both call, and in Python's own arithmetic.
"""

from __future__ import annotations

import ast
import builtins
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType
from typing import Any, Final, TypeAlias

import numpy as np
from llvmlite import ir

from ..jit import written_as

INT64: Final = ir.IntType(64)
_BOOL: Final = ir.IntType(1)
_DOUBLE: Final = ir.DoubleType()


@dataclass(frozen=True)
class Spot:
    """An address that is known as a distance from where a space begins."""

    space: str
    offset: int


#: What an expression is: an ``ir.Value``, or whatever is known already: a number, a Spot, a kernel, a tuple of values.
Value: TypeAlias = Any


@dataclass(frozen=True)
class Spaces:
    """Memory that spots lie in.

    ``known(spot)``: the word there, None if it is not known; ``address(body, spot)``: the address in machine code.
    ``fixed``: spaces whose spots are known across calls of kernels: code is made for each such argument.
    """

    known: Callable[[Spot], int | Spot | None]
    address: Callable[[Body, Spot], ir.Value]
    fixed: frozenset[str]


Macro: TypeAlias = "Callable[[Body, list[Value]], Value]"


class Unit:
    """One module under way: the functions that kernels have become.

    ``macros``: what stands for an intrinsic or kernel, by identity, instead of its own code.
    """

    def __init__(self, module: ir.Module, spaces: Spaces, macros: Mapping[Any, Macro]) -> None:
        self.module = module
        self.spaces = spaces
        self.macros = {id(what): (what, macro) for what, macro in macros.items()}
        self._made: dict[Any, ir.Function] = {}

    def macro(self, callee: Any) -> Macro | None:
        """What stands for a callee."""
        return self.macros.get(id(callee), (None, None))[1]

    def called(self, body: Body, kernel: FunctionType, arguments: Sequence[Value]) -> ir.Value:
        """The result of a function of its own, made for the arguments that are known."""
        sources = [self._passed(body, value) for value in arguments]
        known = tuple(None if isinstance(value, ir.Value) else _told(value) for value in sources)
        given = [value for value in sources if isinstance(value, ir.Value)]
        key = (kernel.__code__, tuple(map(id, _cells(kernel))), known, tuple(str(value.type) for value in given))
        if key not in self._made:
            self._made[key] = self._translated(kernel, sources)
        return body.b.call(self._made[key], [body.instance, *given])

    def _passed(self, body: Body, value: Value) -> Value:
        if isinstance(value, Spot) and value.space not in self.spaces.fixed:
            return body.machine(value)
        return value

    def _translated(self, kernel: FunctionType, arguments: Sequence[Value]) -> ir.Function:
        types = [INT64, *(value.type for value in arguments if isinstance(value, ir.Value))]
        name = self.module.get_unique_name(kernel.__qualname__.replace(".<locals>", ""))
        function = ir.Function(self.module, ir.FunctionType(INT64, types), name)
        function.linkage = "internal"
        function.attributes.add("nounwind")
        instance, *given = function.args
        rest = iter(given)
        own = [next(rest) if isinstance(value, ir.Value) else value for value in arguments]
        body = Body(self, ir.IRBuilder(function.append_basic_block()), instance)
        result = body.expanded(kernel, own)
        made = body.machine(0 if result is None else result)
        if made.type == _BOOL:
            made = body.b.zext(made, INT64)
        if made.type != INT64:
            _returning(function, made.type)
        body.b.ret(made)
        return function


def _returning(function: ir.Function, kind: ir.Type) -> None:
    """Give a function, which nothing calls yet, another type of result: known once it is written."""
    function.ftype = ir.FunctionType(kind, function.ftype.args)
    function.type = function.ftype.as_pointer()
    function.return_value = ir.ReturnValue(function, kind)


@dataclass
class _Frame:
    """One kernel being evaluated: its variables, where its other names are looked up, and the ends it has come to."""

    kernel: FunctionType
    variables: dict[str, Value]
    ends: list[tuple[Value, ir.Block]] = field(default_factory=list)
    breaks: list[tuple[dict[str, Value], ir.Block]] = field(default_factory=list)


class Body:
    """The body of one function: evaluates kernels, writing down what is not known."""

    def __init__(self, unit: Unit, b: ir.IRBuilder, instance: ir.Value) -> None:
        self.unit = unit
        self.b = b
        self.instance = instance
        self._alive = True  # the end of the current block is reached
        self._frames: list[_Frame] = []

    # --- values ------------------------------------------------------------------------------------------------------

    def machine(self, value: Value, like: ir.Type | None = None) -> ir.Value:
        """A value as machine code has it, of the type ``like`` if that is given and its own is known."""
        if isinstance(value, Spot):
            value = self.unit.spaces.address(self, value)
        if isinstance(value, ir.Value):
            return self._as(value, like)
        if isinstance(value, bool | np.bool_):
            return ir.Constant(like or _BOOL, int(value))
        if isinstance(value, int | np.integer):
            return ir.Constant(like or INT64, float(value) if _is_float(like) else int(value))
        if isinstance(value, float | np.floating):
            return ir.Constant(like or (ir.FloatType() if isinstance(value, np.float32) else _DOUBLE), float(value))
        raise TypeError(f"{value!r} is nothing that machine code can hold")

    def _as(self, value: ir.Value, like: ir.Type | None) -> ir.Value:
        if like is None or value.type == like:
            return value
        if value.type == _BOOL and like == INT64:
            return self.b.zext(value, INT64)
        if value.type == ir.FloatType() and like == _DOUBLE:
            return self.b.fpext(value, like)
        if value.type == _DOUBLE and like == ir.FloatType():
            return self.b.fptrunc(value, like)
        raise TypeError(f"{value.type} where {like} is wanted")

    def truth(self, value: Value) -> Any:
        """A condition: True or False where it is known."""
        if isinstance(value, Spot):
            return True
        if not isinstance(value, ir.Value):
            return bool(value)
        return value if value.type == _BOOL else self.b.icmp_signed("!=", value, ir.Constant(value.type, 0))

    # --- kernels -----------------------------------------------------------------------------------------------------

    def expanded(self, kernel: FunctionType, arguments: Sequence[Value]) -> Value:
        """The value of a kernel, its statements evaluated here."""
        definition = source_of(kernel)
        names = [argument.arg for argument in definition.args.args]
        frame = _Frame(kernel, dict(zip(names, arguments, strict=True)))
        self._frames.append(frame)
        self._block(definition.body)
        if self._alive:
            frame.ends.append((None, self.b.block))
        self._frames.pop()
        self._alive = True
        return self._joined(frame.ends)

    def _joined(self, ends: list[tuple[Value, ir.Block]]) -> Value:
        """What the ends of a kernel return, at a block that follows them all."""
        if len(ends) == 1:
            value, block = ends[0]
            self.b.position_at_end(block)
            return value
        made, _ = self._merged([({"": value}, block) for value, block in ends])
        return made[""]

    @property
    def _frame(self) -> _Frame:
        return self._frames[-1]

    def call(self, callee: Any, arguments: list[Value]) -> Value:
        """A call: of what stands for it, of a kernel, of an intrinsic, or of a few functions of Python's own."""
        macro = self.unit.macro(callee)
        if macro is not None:
            return macro(self, arguments)
        intrinsic = getattr(callee, "emitted", None)
        if intrinsic is not None:
            types = intrinsic.arguments
            made = intrinsic.emit(
                self.b, *(self.machine(value, like) for value, like in zip(arguments, types, strict=True))
            )
            return made if intrinsic.result is not None else None
        kernel = written_as(callee)
        if kernel is not None:
            return self.expanded(kernel, arguments) if _is_short(kernel) else self.unit.called(self, kernel, arguments)
        if callee in (min, max):
            return self._extreme(callee, arguments)
        if callee in (np.float32, np.float64):
            return self._rounded(callee, *arguments)
        if any(isinstance(value, ir.Value) for value in arguments):
            raise TypeError(f"{callee!r} of what is known at run time alone")
        return callee(*arguments)

    def _extreme(self, callee: Any, arguments: list[Value]) -> Value:
        if not any(isinstance(value, ir.Value | Spot) for value in arguments):
            return callee(arguments)
        x, y = (self.machine(value, INT64) for value in arguments)
        return self.b.select(self.b.icmp_signed("<" if callee is min else ">", x, y), x, y)

    def _rounded(self, kind: Any, value: Value) -> Value:
        if not isinstance(value, ir.Value):
            return kind(value)
        return self.machine(value, ir.FloatType() if kind is np.float32 else _DOUBLE)

    # --- statements --------------------------------------------------------------------------------------------------

    def _block(self, statements: Sequence[ast.stmt]) -> None:
        for statement in statements:
            if not self._alive:
                return
            getattr(self, f"_on_{type(statement).__name__.lower()}")(statement)

    def _on_expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):  # a docstring
            self.value(node.value)

    def _on_assign(self, node: ast.Assign) -> None:
        value = self.value(node.value)
        for target in node.targets:
            self._bind(target, value)

    def _bind(self, target: ast.expr, value: Value) -> None:
        if isinstance(target, ast.Tuple):
            for each, part in zip(target.elts, value, strict=True):
                self._bind(each, part)
            return
        assert isinstance(target, ast.Name)
        self._frame.variables[target.id] = value

    def _on_augassign(self, node: ast.AugAssign) -> None:
        assert isinstance(node.target, ast.Name)
        before = self._frame.variables[node.target.id]
        self._frame.variables[node.target.id] = self._operation(type(node.op), before, self.value(node.value))

    def _on_return(self, node: ast.Return) -> None:
        value = None if node.value is None else self.value(node.value)
        self._frame.ends.append((value, self.b.block))
        self._alive = False

    def _on_break(self, _: ast.Break) -> None:
        self._frame.breaks.append((dict(self._frame.variables), self.b.block))
        self._alive = False

    def _on_if(self, node: ast.If) -> None:
        test = self.truth(self.value(node.test))
        if isinstance(test, bool):
            self._block(node.body if test else node.orelse)
            return
        inside, beside = self.b.append_basic_block("then"), self.b.append_basic_block("else")
        self.b.cbranch(test, inside, beside)
        before = self._frame.variables
        arms = []
        for block, statements in ((inside, node.body), (beside, node.orelse)):
            self.b.position_at_end(block)
            self._frame.variables, self._alive = dict(before), True
            self._block(statements)
            if self._alive:
                arms.append((self._frame.variables, self.b.block))
        self._follow(arms)

    def _on_while(self, node: ast.While) -> None:
        if not self._turned_once(node):
            self._turned(node)

    def _turned_once(self, node: ast.While) -> bool:
        """Evaluate a loop that is known to turn once at most; False, and nothing done, if it is no such loop."""
        frame, function, block = self._frame, self.b.function, self.b.block
        blocks, instructions = len(function.blocks), len(block.instructions)
        before, ends, breaks = frame.variables, len(frame.ends), len(frame.breaks)
        frame.variables = dict(before)
        test = self.truth(self.value(node.test))
        if test is True:
            self._block(node.body)
            test = self._alive and self.truth(self.value(node.test))
        if test is False and len(frame.breaks) == breaks:
            return True
        del function.blocks[blocks:], block.instructions[instructions:]
        del frame.ends[ends:], frame.breaks[breaks:]
        block.terminator = None
        frame.variables, self._alive = before, True
        self.b.position_at_end(block)
        return False

    def _turned(self, node: ast.While) -> None:
        frame = self._frame
        outer, frame.breaks = frame.breaks, []
        changing = [name for name in _assigned(node) if name in frame.variables]
        starts = {name: self._moving(frame.variables[name]) for name in changing}
        before, header = self.b.block, self.b.append_basic_block("while")
        self.b.branch(header)
        self.b.position_at_end(header)
        phis = {name: self.b.phi(start.type) for name, start in starts.items()}
        for name, phi in phis.items():
            phi.add_incoming(starts[name], before)
        frame.variables = {**frame.variables, **phis}
        test = self.truth(self.value(node.test))
        kept = dict(frame.variables)
        inside, after = self.b.append_basic_block("do"), self.b.append_basic_block("done")
        self.b.cbranch(self.machine(test), inside, after)
        self.b.position_at_end(inside)
        self._block(node.body)
        if self._alive:
            for name, phi in phis.items():
                value = self.machine(frame.variables[name], phi.type)
                phi.add_incoming(value, self.b.block)
            self.b.branch(header)
        leaving, frame.breaks = frame.breaks, outer
        self._alive = True
        self._follow([(kept, after), *leaving])

    def _moving(self, value: Value) -> ir.Value:
        """A variable that a loop changes, as it begins: a truth value as a number, which it may become."""
        made = self.machine(value)
        return self._as(made, INT64) if made.type == _BOOL else made

    def _follow(self, arms: list[tuple[dict[str, Value], ir.Block]]) -> None:
        """Go on behind ways that meet, or nowhere if none goes on."""
        self._alive = bool(arms)
        if not arms:
            return
        if len(arms) == 1:
            self._frame.variables = arms[0][0]
            self.b.position_at_end(arms[0][1])
            return
        self._frame.variables, _ = self._merged(arms)

    def _merged(self, arms: list[tuple[dict[str, Value], ir.Block]]) -> tuple[dict[str, Value], ir.Block]:
        """The variables that all ways have, at a block that follows them."""
        names = [name for name in arms[0][0] if all(name in variables for variables, _ in arms)]
        columns = {name: [variables[name] for variables, _ in arms] for name in names}
        blocks = [block for _, block in arms]
        made = {name: self._leveled(values, blocks) for name, values in columns.items()}
        after = self.b.append_basic_block("after")
        for block in blocks:
            self.b.position_at_end(block)
            self.b.branch(after)
        self.b.position_at_end(after)
        return {name: self._met(value, blocks) for name, value in made.items()}, after

    def _leveled(self, values: list[Value], blocks: list[ir.Block]) -> Value:
        """Values of one variable as ways bring them: the one they share, or a list of machine values of one type."""
        first = values[0]
        if all(_same(first, value) for value in values[1:]):
            return first
        if all(isinstance(value, tuple) for value in values):
            return tuple(self._leveled([*parts], blocks) for parts in zip(*values, strict=True))
        types = {value.type for value in values if isinstance(value, ir.Value)} or {None}
        like = INT64 if len(types) > 1 or types == {None} or types <= {_BOOL} else types.pop()
        if all(isinstance(v, bool) or (isinstance(v, ir.Value) and v.type == _BOOL) for v in values):
            like = _BOOL
        elif any(isinstance(v, float | np.floating) for v in values) and like == INT64:
            like = _DOUBLE
        brought = []
        for value, block in zip(values, blocks, strict=True):
            self.b.position_at_end(block)
            brought.append(self.machine(value, like))
        return brought

    def _met(self, value: Value, blocks: list[ir.Block]) -> Value:
        if isinstance(value, tuple):
            return tuple(self._met(part, blocks) for part in value)
        if not isinstance(value, list):
            return value
        phi = self.b.phi(value[0].type)
        for each, block in zip(value, blocks, strict=True):
            phi.add_incoming(each, block)
        return phi

    # --- expressions -------------------------------------------------------------------------------------------------

    def value(self, node: ast.expr) -> Value:
        """What an expression is."""
        return getattr(self, f"_of_{type(node).__name__.lower()}")(node)

    def _of_constant(self, node: ast.Constant) -> Value:
        return node.value

    def _of_name(self, node: ast.Name) -> Value:
        frame = self._frame
        if node.id in frame.variables:
            return frame.variables[node.id]
        return _outer_name(frame.kernel, node.id)

    def _of_tuple(self, node: ast.Tuple) -> Value:
        return tuple(self.value(each) for each in node.elts)

    def _of_call(self, node: ast.Call) -> Value:
        callee = self.value(node.func)
        return self.call(callee, [self.value(argument) for argument in node.args])

    def _of_unaryop(self, node: ast.UnaryOp) -> Value:
        value = self.value(node.operand)
        if isinstance(node.op, ast.Not):
            truth = self.truth(value)
            return not truth if isinstance(truth, bool) else self.b.not_(truth)
        if not isinstance(value, ir.Value | Spot):
            return -value if isinstance(node.op, ast.USub) else ~value
        value = self.machine(value, INT64)
        return self.b.neg(value) if isinstance(node.op, ast.USub) else self.b.not_(value)

    def _of_binop(self, node: ast.BinOp) -> Value:
        return self._operation(type(node.op), self.value(node.left), self.value(node.right))

    def _operation(self, kind: type[ast.operator], x: Value, y: Value) -> Value:
        if not any(isinstance(value, ir.Value | Spot) for value in (x, y)):
            return _KNOWN[kind](x, y)
        if isinstance(x, Spot) and isinstance(y, int) and kind in (ast.Add, ast.Sub):
            return Spot(x.space, _KNOWN[kind](x.offset, y))
        if isinstance(y, Spot) and isinstance(x, int) and kind is ast.Add:
            return Spot(y.space, x + y.offset)
        like = self._common(x, y)
        left, right = self.machine(x, like), self.machine(y, like)
        if _is_float(like):
            return getattr(self.b, _FLOAT_OPERATIONS[kind])(left, right)
        if kind in (ast.FloorDiv, ast.Mod):
            return self._floored(kind, left, right)
        return getattr(self.b, _OPERATIONS[kind])(left, right)

    def _common(self, x: Value, y: Value) -> ir.Type:
        """The type that two operands meet in."""
        for value in (x, y):
            if isinstance(value, ir.Value) and _is_float(value.type):
                return value.type
        return INT64

    def _floored(self, kind: type[ast.operator], x: ir.Value, y: ir.Value) -> ir.Value:
        """Division as Python has it: towards minus infinity."""
        quotient, rest = self.b.sdiv(x, y), self.b.srem(x, y)
        zero = ir.Constant(INT64, 0)
        uneven = self.b.icmp_signed("!=", rest, zero)
        apart = self.b.icmp_signed("<", self.b.xor(x, y), zero)
        short = self.b.zext(self.b.and_(uneven, apart), INT64)
        if kind is ast.FloorDiv:
            return self.b.sub(quotient, short)
        return self.b.add(rest, self.b.mul(short, y))

    def _of_compare(self, node: ast.Compare) -> Value:
        """A chain of comparisons: what stands behind one that fails is not evaluated."""
        left = self.value(node.left)
        arms: list[tuple[dict[str, Value], ir.Block]] = []
        *first, (operator, following) = zip(node.ops, node.comparators, strict=True)
        for each, middle in first:
            right = self.value(middle)
            test = self._comparison(type(each), left, right)
            left = right
            if test is False:
                return self._ended(arms, False)
            if test is not True:
                on, off = self.b.append_basic_block("more"), self.b.append_basic_block("enough")
                self.b.cbranch(test, on, off)
                arms.append(({"": False}, off))
                self.b.position_at_end(on)
        return self._ended(arms, self._comparison(type(operator), left, self.value(following)))

    def _comparison(self, kind: type[ast.cmpop], x: Value, y: Value) -> Value:
        if kind in (ast.In, ast.NotIn):
            return self._membership(x, y, kind is ast.In)
        if not any(isinstance(value, ir.Value | Spot) for value in (x, y)):
            return bool(_COMPARED[kind][1](x, y))
        like = self._common(x, y)
        left, right, symbol = self.machine(x, like), self.machine(y, like), _COMPARED[kind][0]
        if not _is_float(like):
            return self.b.icmp_signed(symbol, left, right)
        compared = self.b.fcmp_unordered if symbol == "!=" else self.b.fcmp_ordered
        return compared(symbol, left, right)

    def _membership(self, x: Value, among: tuple[Value, ...], expected: bool) -> Value:
        """Whether a value is one of several, or none of them."""
        found: Value = False
        for each in among:
            same = self._comparison(ast.Eq, x, each)
            if same is True:
                return expected
            if same is not False:
                found = same if found is False else self.b.or_(found, same)
        if found is False:
            return not expected
        return found if expected else self.b.not_(found)

    def _of_boolop(self, node: ast.BoolOp) -> Value:
        """`and` and `or`: one of their operands; what stands behind is evaluated only where it counts."""
        decided = isinstance(node.op, ast.Or)  # the truth that ends the evaluation
        *first, last = node.values
        arms: list[tuple[dict[str, Value], ir.Block]] = []
        for each in first:
            value = self.value(each)
            test = self.truth(value)
            if isinstance(test, bool):
                if test == decided:
                    return self._ended(arms, value)
                continue
            on, off = self.b.append_basic_block("more"), self.b.append_basic_block("enough")
            self.b.cbranch(test, off if decided else on, on if decided else off)
            arms.append(({"": value}, off))
            self.b.position_at_end(on)
        return self._ended(arms, self.value(last))

    def _ended(self, arms: list[tuple[dict[str, Value], ir.Block]], value: Value) -> Value:
        if not arms:
            return value
        made, _ = self._merged([*arms, ({"": value}, self.b.block)])
        return made[""]

    def _of_ifexp(self, node: ast.IfExp) -> Value:
        test = self.truth(self.value(node.test))
        if isinstance(test, bool):
            return self.value(node.body if test else node.orelse)
        inside, beside = self.b.append_basic_block("then"), self.b.append_basic_block("else")
        self.b.cbranch(test, inside, beside)
        arms = []
        for block, each in ((inside, node.body), (beside, node.orelse)):
            self.b.position_at_end(block)
            arms.append(({"": self.value(each)}, self.b.block))
        made, _ = self._merged(arms)
        return made[""]


_KNOWN: Final[Mapping[type[ast.operator], Callable[[Any, Any], Any]]] = {
    ast.Add: lambda x, y: x + y,
    ast.Sub: lambda x, y: x - y,
    ast.Mult: lambda x, y: x * y,
    ast.Div: lambda x, y: x / y,
    ast.FloorDiv: lambda x, y: x // y,
    ast.Mod: lambda x, y: x % y,
    ast.LShift: lambda x, y: x << y,
    ast.RShift: lambda x, y: x >> y,
    ast.BitAnd: lambda x, y: x & y,
    ast.BitOr: lambda x, y: x | y,
    ast.BitXor: lambda x, y: x ^ y,
}
_OPERATIONS: Final = {
    ast.Add: "add",
    ast.Sub: "sub",
    ast.Mult: "mul",
    ast.LShift: "shl",
    ast.RShift: "ashr",
    ast.BitAnd: "and_",
    ast.BitOr: "or_",
    ast.BitXor: "xor",
}
_FLOAT_OPERATIONS: Final = {ast.Add: "fadd", ast.Sub: "fsub", ast.Mult: "fmul", ast.Div: "fdiv"}
_COMPARED: Final[Mapping[type[ast.cmpop], tuple[str, Callable[[Any, Any], Any]]]] = {
    ast.Eq: ("==", lambda x, y: x == y),
    ast.NotEq: ("!=", lambda x, y: x != y),
    ast.Lt: ("<", lambda x, y: x < y),
    ast.LtE: ("<=", lambda x, y: x <= y),
    ast.Gt: (">", lambda x, y: x > y),
    ast.GtE: (">=", lambda x, y: x >= y),
}


def _is_float(kind: ir.Type | None) -> bool:
    return isinstance(kind, ir.FloatType | ir.DoubleType)


def _same(x: Value, y: Value) -> bool:
    if x is y:
        return True
    return not isinstance(x, ir.Value) and not isinstance(y, ir.Value) and bool(_told(x) == _told(y))


def _told(value: Value) -> tuple[Any, ...]:
    """What tells a known value from others: True is no 1, and there are two zeros."""
    if isinstance(value, tuple):
        return tuple(map(_told, value))
    return type(value), value, repr(value) if isinstance(value, float | np.floating) else ""


def _assigned(node: ast.While) -> Iterator[str]:
    """Variables that a loop may change."""
    names = (
        inner.id for each in node.body for inner in ast.walk(each)
        if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store)
    )  # fmt: skip
    return iter(dict.fromkeys(names))


@functools.cache
def _definitions(path: str) -> dict[int, ast.FunctionDef]:
    """The functions of a source file, by the line that each begins in, its decorators included."""
    tree = ast.parse(Path(path).read_text("utf-8"))
    found = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    return {min([node.lineno, *(each.lineno for each in node.decorator_list)]): node for node in found}


def source_of(kernel: FunctionType) -> ast.FunctionDef:
    """The definition of a kernel."""
    return _definitions(kernel.__code__.co_filename)[kernel.__code__.co_firstlineno]


def _is_short(kernel: FunctionType) -> bool:
    """Whether a kernel is evaluated where it is called: one without a loop, unless it is to be a function."""
    definition = source_of(kernel)
    called = {node.func.id for node in ast.walk(definition) if isinstance(node, ast.Call) and hasattr(node.func, "id")}
    if "always_inline" in called:
        return True
    return "never_inline" not in called and not any(isinstance(node, ast.While) for node in ast.walk(definition))


def _cells(kernel: FunctionType) -> list[Any]:
    return [cell.cell_contents for cell in kernel.__closure__ or ()]


def _outer_name(kernel: FunctionType, name: str) -> Value:
    """A name that is no variable of a kernel."""
    free = kernel.__code__.co_freevars
    if name in free:
        return _cells(kernel)[free.index(name)]
    if name in kernel.__globals__:
        return kernel.__globals__[name]
    return getattr(builtins, name)
