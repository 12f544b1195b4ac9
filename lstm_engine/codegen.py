"""Numba's code generator for a CPU that Numba has not chosen: a lesser variant of this machine, or another machine.

Numba's context is lent a code generator of ours while it compiles one of our images, and has its own back afterwards:
what else the process compiles stays as it was.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core import config
from numba.core.codegen import AOTCodeLibrary, CPUCodegen, JITCPUCodegen
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target
from numba.core.runtime import rtsys

from .machine import Target, native, target

_SPEED: Final = 3  # LLVM's optimisation level for objects


class VariantCodegen(JITCPUCodegen):  # type: ignore[misc]
    """Code for this process, made for a given CPU."""

    def __init__(self, machine: Target) -> None:
        self._machine = machine
        super().__init__(f"lstm_engine.{machine.variant}")

    def _get_host_cpu_name(self) -> str:
        return self._machine.cpu

    def _get_host_cpu_features(self) -> str:
        return self._machine.features


class Part(AOTCodeLibrary):  # type: ignore[misc]
    """Code that an object is linked from: neither optimised nor made into machine code by itself."""

    def add_linking_library(self, library: Any) -> None:
        """Link whatever is needed: not Numba's run-time objects, made for this machine and not used."""
        if library is not rtsys.library:
            super().add_linking_library(library)

    def _optimize_final_module(self) -> None:
        pass

    def get_pointer_to_function(self, name: str) -> int:
        """None: nothing here runs."""
        return 0


class ObjectCodegen(CPUCodegen):  # type: ignore[misc]
    """Code for any machine that LLVM knows, none of which runs here."""

    _library_class = Part

    def __init__(self, machine: Target) -> None:
        self._machine = machine
        super().__init__(f"lstm_engine.{machine.variant}")

    def _init(self, llvm_module: Any) -> None:
        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()
        self._tm = llvm.Target.from_triple(self._machine.triple).create_target_machine(
            cpu=self._machine.cpu, features=self._machine.features, opt=_SPEED, reloc="pic", codemodel="default"
        )
        self._tm_features = self._machine.features
        self._target_data = self._tm.target_data
        self._data_layout = str(self._target_data)
        self._loopvect, self._opt_level = False, 0

    def _create_empty_module(self, name: str) -> Any:
        module = super()._create_empty_module(name)
        module.triple = self._machine.triple
        return module

    def _add_module(self, module: Any) -> None:
        pass

    def set_env(self, name: str, environment: Any) -> None:
        """Objects have no Python environment."""

    def emit(self, symbol: str, context: Any, parts: Any, function: Any, assembly: bool) -> bytes:
        """An object, or its assembly text, whose only symbol ``int64 symbol(int64 …)`` calls a compiled function."""
        library = self.create_library(symbol)
        library.add_ir_module(_exported(symbol, context, function))
        library.add_linking_library(parts)
        library.finalize()
        module = library._final_module
        for value in (*module.functions, *module.global_variables):
            if not value.is_declaration and value.name != symbol:
                value.linkage = "internal"
        tuning = llvm.create_pipeline_tuning_options(speed_level=_SPEED)
        tuning.loop_vectorization = bool(config.LOOP_VECTORIZE)
        builder = llvm.create_pass_builder(self._tm, tuning)
        builder.getModulePassManager().run(module, builder)
        module.verify()
        made: bytes = self._tm.emit_assembly(module).encode() if assembly else self._tm.emit_object(module)
        return made


def _exported(symbol: str, context: Any, function: Any) -> Any:
    """A module with a function of the C calling convention; kernels raise nothing, so the status is not looked at."""
    module = context.create_module(symbol)
    callee = ir.Function(
        module, context.call_conv.get_function_type(function.restype, function.argtypes), function.llvm_func_name
    )
    arguments = [context.get_value_type(kind) for kind in function.argtypes]
    outer = ir.Function(module, ir.FunctionType(context.get_value_type(function.restype), arguments), symbol)
    builder = ir.IRBuilder(outer.append_basic_block("entry"))
    _, result = context.call_conv.call_function(builder, callee, function.restype, function.argtypes, outer.args)
    builder.ret(result)
    return module


@functools.cache
def _variant(machine: Target) -> VariantCodegen:
    """The code generator of a variant: it owns the machine code, so it lives as long as the process."""
    return VariantCodegen(machine)


@contextmanager
def lent(codegen: Any) -> Iterator[Any]:
    """Numba's context, with a code generator lent to it; other threads' compilations wait."""
    with global_compiler_lock:
        context = cpu_target.target_context
        own = context._internal_codegen, context.cached_internal_func
        context._internal_codegen, context.cached_internal_func = codegen, {}
        try:
            yield context
        finally:
            context._internal_codegen, context.cached_internal_func = own


@contextmanager
def compiling() -> Iterator[Any]:
    """Numba's context as it compiles and loads for target()."""
    wanted, here = target(), native()
    if (wanted.cpu, wanted.features) == (here.cpu, here.features):
        yield cpu_target.target_context
    else:
        with lent(_variant(wanted)) as context:
            yield context
