"""The only file that names njit: how kernels become the machine code of an image.

``kernel`` compiles an inner function on demand, as part of whoever calls it; ``compile_image`` makes an object file of
kernels (``image.py``, which also keeps it on disk).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FunctionType
from typing import Any, Final

import llvmlite.binding as llvm
import numba
from llvmlite import ir
from numba import types

from .codegen import compiling
from .image import PYTHON, Export, symbol
from .machine import target

#: No reassociation (results keep one order), no no-NaN promise; division by zero as IEEE says.
_FLAGS: Final[dict[str, Any]] = {"error_model": "numpy", "boundscheck": False, "_nrt": False}
_INT64: Final = ir.IntType(64)
_POINTER: Final = ir.PointerType()


def kernel(function: Callable[..., Any]) -> Any:
    """An inner function of an image: machine code only, no Python entry.

    One instance serves all calls of the same types: Numba would make one for each literal argument.
    """
    dispatcher = numba.njit(**_FLAGS, no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)
    resolve = dispatcher.get_call_template

    def by_types(arguments: Any, keywords: Any) -> Any:
        return resolve([types.unliteral(argument) for argument in arguments], keywords)

    dispatcher.get_call_template = by_types
    return dispatcher


def written_as(callee: Any) -> FunctionType | None:
    """The Python function that a kernel is written as; None for what is no kernel."""
    plain = getattr(callee, "py_func", callee)
    return plain if isinstance(plain, FunctionType) else None


def compile_kernel(dispatcher: Any, parameters: int) -> Any:
    """Compile a kernel of so many int64 parameters now (its callers then link it): what progress is counted in."""
    signature = types.int64(*[types.int64] * parameters)
    dispatcher.compile(signature)
    return dispatcher.overloads[signature.args]


def compile_image(name: str, exports: Mapping[str, Export], build: Callable[[], Mapping[str, Any]]) -> bytes:
    """The object file of an image: the kernels that ``build`` makes, and an entry for each export."""
    with compiling() as context, _one_module(context.codegen()) as make_library:
        kernels = build()
        library = make_library(name, {symbol(name, export) + end for export in exports for end in ("", PYTHON)})
        module = library.create_ir_module(name)
        for export, what in exports.items():
            compiled = compile_kernel(kernels[what.kernel], len(what.parameters))
            library.add_linking_library(compiled.library)
            inner = _c_entry(context, module, compiled.fndesc, symbol(name, export))
            _python_entry(module, inner, what)
        library.add_ir_module(module)
        library.finalize()
        return bytes(_target_machine().emit_object(library._final_module))


def _target_machine() -> llvm.TargetMachine:
    """What emits code for the target."""
    facts = target()
    return llvm.Target.from_triple(facts.triple).create_target_machine(
        cpu=facts.cpu, features=facts.features, opt=3, reloc="default", codemodel="jitdefault", jit=True
    )


@contextmanager
def _one_module(codegen: Any) -> Iterator[Callable[[str, set[str]], Any]]:
    """Compile kernels as parts of an image: none is optimised or made into machine code by itself.

    Numba does both for every function together with all that it calls, again and again; an image needs it once, at its
    end, with all that is not exported its own business. Yields what makes the image's library from a name and the names
    it exports. The lock keeps other threads' compilations out. Where Numba works otherwise inside, it has its own way.
    """
    from numba.core import codegen as numba_codegen
    from numba.core.compiler_lock import global_compiler_lock

    whole = getattr(numba_codegen, "JITCodeLibrary", None)
    inner = ("_optimize_final_module", "_finalize_final_module", "_get_module_for_linking", "get_pointer_to_function")
    if getattr(codegen, "_library_class", None) is not whole or not all(hasattr(whole, name) for name in inner):
        with global_compiler_lock:
            yield lambda name, exports: codegen.create_library(name)
        return

    class Part(whole):  # type: ignore[misc, valid-type]
        """Code that others link."""

        def _optimize_final_module(self) -> None:
            pass

        def _finalize_final_module(self) -> None:
            self._finalized = True

        def get_pointer_to_function(self, name: str) -> int:
            return 0

    class Whole(Part):
        """All parts of an image; the linker sees its exports alone."""

        def __init__(self, name: str, exports: set[str]) -> None:
            super().__init__(codegen, name)
            self._exports = exports

        def _optimize_final_module(self) -> None:
            module = self._final_module
            for defined in [*module.functions, *module.global_variables]:
                if not defined.is_declaration and defined.name not in self._exports:
                    defined.linkage = "internal"
            super(Part, self)._optimize_final_module()

    with global_compiler_lock:
        codegen._library_class, codegen.set_env = Part, lambda name, env: None
        try:
            yield Whole
        finally:
            del codegen.set_env
            codegen._library_class = whole


def _c_entry(context: Any, module: ir.Module, native: Any, name: str) -> ir.Function:
    """int64 name(int64 …): a kernel under the C calling convention."""
    function = ir.Function(module, ir.FunctionType(_INT64, [_INT64] * len(native.argtypes)), name)
    b = ir.IRBuilder(function.append_basic_block())
    callee = context.declare_function(module, native)
    _, value = context.call_conv.call_function(b, callee, native.restype, native.argtypes, function.args)
    b.ret(value)
    return function


def _python_entry(module: ir.Module, inner: ir.Function, what: Export) -> None:
    """PyObject *name(PyObject *self, PyObject **arguments, Py_ssize_t count): METH_FASTCALL."""
    signature = ir.FunctionType(_POINTER, [_POINTER, _POINTER, _INT64])
    function = ir.Function(module, signature, inner.name + PYTHON)
    _, arguments, count = function.args
    b = ir.IRBuilder(function.append_basic_block())
    null = ir.Constant(_POINTER, None)

    def python(name: str, result: ir.Type, *values: ir.Value) -> ir.Value:
        declared = module.globals.get(name)
        if declared is None:
            declared = ir.Function(module, ir.FunctionType(result, [value.type for value in values]), name)
        return b.call(declared, values)

    with b.if_then(b.icmp_signed("!=", count, _INT64(len(what.parameters))), likely=False):
        python("PyErr_BadArgument", ir.IntType(32))
        b.ret(null)
    values = []
    for index, kind in enumerate(what.parameters):
        given = b.load(b.gep(arguments, [_INT64(index)], source_etype=_POINTER), typ=_POINTER)
        if kind == "o":
            values.append(b.ptrtoint(given, _INT64))
            continue
        value = python("PyLong_AsLongLong", _INT64, given)
        with b.if_then(b.icmp_signed("==", value, _INT64(-1)), likely=False):
            fault = python("PyErr_Occurred", _POINTER)
            with b.if_then(b.icmp_unsigned("!=", fault, null)):
                b.ret(null)
        values.append(value)
    held = python("PyEval_SaveThread", _POINTER) if what.nogil else None
    result = b.call(inner, values)
    if held is not None:
        python("PyEval_RestoreThread", ir.VoidType(), held)
    b.ret(python("PyLong_FromLongLong", _POINTER, result))
