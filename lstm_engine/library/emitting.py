"""From a layout to an object file: one module, optimised for its target as a whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import llvmlite.binding as llvm
from llvmlite import ir

from .. import __version__
from ..exported import VERSION
from ..machine import Target
from .code import Code
from .interface import WEIGHTS_HEAD, WEIGHTS_MARK, Interface
from .layout import End, Layout

_SPEED: Final = 3  # LLVM's optimisation level
_BYTE: Final = ir.IntType(8)
_POINTER: Final = ir.PointerType()
_WEIGHTS: Final = "weights"
#: No function calls the C library, or keeps a frame pointer or tables for exceptions.
_ATTRIBUTES: Final = ' "no-builtins"'


@dataclass(frozen=True)
class Emitted:
    """A library as it is written; ``weights``: a file of their own, empty where the object holds them; ``assembly``:
    empty where it was not asked for."""

    object: bytes
    weights: bytes
    assembly: bytes
    description: Mapping[str, Any]


def emitted(layout: Layout, machine: Target, prefix: str, assembly: bool = False) -> Emitted:
    """The object of a program, whose functions begin with ``prefix``."""
    module = ir.Module(prefix)
    module.triple = machine.triple
    generator = _generator(machine)
    module.data_layout = str(generator.target_data)
    weights = None if layout.apart else _external(module, _WEIGHTS)
    program = Code(module, layout, weights)
    name = hashlib.blake2b(_identity(layout), digest_size=16).digest()
    pointer_bits = 8 * _POINTER.get_abi_size(generator.target_data)
    interface = Interface(
        program, prefix, ir.IntType(pointer_bits), int.from_bytes(name[:8], "little", signed=True), name
    )
    interface.build()
    content = layout.constants.packed()
    described = description(layout, machine, prefix)
    _describe(module, prefix, json.dumps(described, separators=(",", ":")).encode() + b"\0")
    attributes = _ATTRIBUTES + (" optsize minsize" if machine.small else "")
    text = "\n".join(
        line + attributes if line.startswith("define ") else line
        for line in str(module).splitlines()
        if not line.startswith(f'@"{_WEIGHTS}"')
    )
    if weights is not None:
        text += f'\n@"{_WEIGHTS}" = internal constant {_literal(content)}, align 64\n'
    optimised = llvm.parse_assembly(text)
    optimised.verify()
    tuning = llvm.create_pipeline_tuning_options(speed_level=2 if machine.small else _SPEED)
    if machine.small:
        tuning.loop_unrolling = tuning.loop_vectorization = tuning.slp_vectorization = False
    builder = llvm.create_pass_builder(generator, tuning)
    builder.getModulePassManager().run(optimised, builder)
    apart = b"" if weights is not None else (WEIGHTS_MARK + name).ljust(WEIGHTS_HEAD, b"\0") + content
    # of a copy: emission changes a module
    listing = generator.emit_assembly(optimised.clone()).encode() if assembly else b""
    return Emitted(generator.emit_object(optimised), apart, listing, described)


def description(layout: Layout, machine: Target, prefix: str) -> dict[str, Any]:
    """All that a caller may want to know of a library."""
    return {
        "interface": VERSION,
        "name": prefix,
        "engine": __version__,
        "fingerprint": layout.fingerprint,
        "precision": layout.program.precision,
        "batch": layout.batch,
        "target": {
            "triple": machine.triple,
            "cpu": machine.cpu,
            "features": machine.features,
            "needs": machine.needs,
        },
        "inputs": [_described(end) for end in layout.inputs],
        "outputs": [_described(end) for end in layout.outputs],
        "framed": layout.framed,
        "instance_bytes": layout.instance_bytes,
        "state_bytes": layout.state.bytes,
        "weights": {
            "apart": layout.apart,
            "bytes": layout.constants.size,
            "file_bytes": WEIGHTS_HEAD + layout.constants.size if layout.apart else 0,
        },
    }


def _described(end: End) -> dict[str, Any]:
    return {
        "name": end.name,
        "dtype": end.dtype.name,
        "shape": list(end.shape),
        "steps": end.step != 0,
        "axis": end.axis,
        "optional": end.optional,
    }


def _identity(layout: Layout) -> bytes:
    """What tells the constants of one library from those of another."""
    parts = [layout.fingerprint, layout.program.precision, str(VERSION), str(layout.instance_bytes)]
    return "\n".join(parts).encode() + layout.constants.packed()


def _generator(machine: Target) -> llvm.TargetMachine:
    """What emits code for a machine."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    return llvm.Target.from_triple(machine.triple).create_target_machine(
        cpu=machine.cpu,
        features=machine.features,
        opt=_SPEED,
        reloc=machine.relocation,
        codemodel="default",
        abiname=machine.calling,
    )


def _external(module: ir.Module, name: str) -> ir.GlobalVariable:
    return ir.GlobalVariable(module, _BYTE, name)


def _describe(module: ir.Module, prefix: str, text: bytes) -> None:
    """``const char *describe(void)``: the description, as JSON."""
    content = ir.GlobalVariable(module, ir.ArrayType(_BYTE, len(text)), "description")
    content.initializer = ir.Constant(content.value_type, bytearray(text))
    content.global_constant, content.linkage = True, "internal"
    function = ir.Function(module, ir.FunctionType(_POINTER, []), f"{prefix}_describe")
    function.attributes.add("nounwind")
    ir.IRBuilder(function.append_basic_block()).ret(content)


def _literal(content: bytes) -> str:
    """Bytes as LLVM writes an array of them."""
    return f'[{len(content)} x i8] c"' + "".join(_ESCAPED[value] for value in content) + '"'


_ESCAPED: Final = [f"\\{value:02x}" for value in range(256)]
