"""Numba's code generator for a CPU that Numba has not chosen: a lesser variant of this machine.

Numba's context is lent a code generator of ours while it compiles one of our images, and has its own back afterwards:
what else the process compiles stays as it was.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from numba.core.codegen import JITCPUCodegen
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target

from .machine import Target, native, target


class VariantCodegen(JITCPUCodegen):  # type: ignore[misc]
    """Code for this process, made for a given CPU."""

    def __init__(self, machine: Target) -> None:
        self._machine = machine
        super().__init__(f"lstm_engine.{machine.variant}")

    def _get_host_cpu_name(self) -> str:
        return self._machine.cpu

    def _get_host_cpu_features(self) -> str:
        return self._machine.features


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
