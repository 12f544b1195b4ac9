"""What is written beside an object file: its C header, an example, and what CMake wants to know."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from ..exported import ALIGNMENT, MEANINGS, VERSION, Result

_TYPES: Final = {
    "float32": "float",
    "float64": "double",
    "bool": "uint8_t",
    **{f"{sign}int{bits}": f"{sign}int{bits}_t" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
#: How scanf() and printf() of the example take numbers: what they are read into, its format, that of the output.
_READ: Final = {"float32": ("float", "%f"), "float64": ("double", "%lf")}
_OTHER: Final = ("long long", "%lld")
#: Words of C and C++, and those that the functions' own parameters have.
RESERVED: Final = frozenset(
    [
        "auto",
        "break",
        "case",
        "char",
        "const",
        "continue",
        "default",
        "do",
        "double",
        "else",
        "enum",
        "extern",
        "float",
        "for",
        "goto",
        "if",
        "inline",
        "int",
        "long",
        "register",
        "restrict",
        "return",
        "short",
        "signed",
        "sizeof",
        "static",
        "struct",
        "switch",
        "typedef",
        "union",
        "unsigned",
        "void",
        "volatile",
        "while",
        "bool",
        "true",
        "false",
        "new",
        "delete",
        "class",
        "this",
        "private",
        "public",
        "protected",
        "template",
        "namespace",
        "using",
        "operator",
        "self",
        "steps",
        "memory",
        "bytes",
        "weights",
    ]
)


def identifier(text: str, taken: Iterable[str] = ()) -> str:
    """A name of C's for a name of a file's, different from those taken."""
    plain = re.sub(r"[^0-9A-Za-z]+", "_", text.encode("ascii", "ignore").decode()).strip("_") or "x"
    plain = f"_{plain}"[plain[0].isalpha() :][:48]
    names = {*taken, *RESERVED}
    made, count = plain, 1
    while made in names:
        count += 1
        made = f"{plain}_{count}"
    return made


def array_names(description: Mapping[str, Any]) -> list[str]:
    """The parameters of step(): inputs, then outputs."""
    names: list[str] = []
    for end in _ends(description):
        names.append(identifier(end["name"], names))
    return names


def header(description: Mapping[str, Any], origin: str) -> str:
    """The C header of a library."""
    name = description["name"]
    upper, arrays = name.upper(), array_names(description)
    inputs = len(description["inputs"])
    count = "frames" if description["framed"] else "steps"
    parameters = [
        f"{'const ' * (k < inputs)}{_TYPES[end['dtype']]} *{array}"
        for k, (end, array) in enumerate(zip(_ends(description), arrays, strict=True))
    ]
    weights = description["weights"]
    given = ", const void *weights, size_t weight_bytes" if weights["apart"] else ""
    runs = "frame by frame" if description["framed"] else "step by step"
    target = description["target"]
    place = f"in {name}.weights" if weights["apart"] else "in the object"
    lines = [
        f"/* {name}: a network that runs {runs}, carrying its state.",
        " *",
        f" * Made by lstm_engine {description['engine']} from {_comment(origin)}.",
        f" * For {target['triple']}, CPU {target['cpu']}; weights in {description['precision']}",
        f" * ({weights['bytes']} bytes, {place}).",
        " *",
        " * Nothing here allocates, locks, starts threads or calls the C library. All that an instance remembers lies",
        f" * in the memory that {name}_init() is given; different instances may run in different threads at once.",
        f" * Every function returns a code of enum {name}_result, and leaves the instance as it was unless that is 0.",
        " */",
        f"#ifndef {upper}_H",
        f"#define {upper}_H",
        "",
        "#include <stddef.h>",
        "#include <stdint.h>",
        "",
        "#ifdef __cplusplus",
        'extern "C" {',
        f"#define {upper}_ALIGNED alignas({ALIGNMENT})",
        "#else",
        f"#define {upper}_ALIGNED _Alignas({ALIGNMENT})",
        "#endif",
        "",
        f"#define {upper}_INTERFACE {VERSION}",
        f"#define {upper}_INSTANCE_BYTES {description['instance_bytes']}",
        f"#define {upper}_ALIGNMENT {ALIGNMENT}",
        f"#define {upper}_STATE_BYTES {description['state_bytes']} /* what {name}_save() writes */",
    ]
    if weights["apart"]:
        lines.append(f"#define {upper}_WEIGHT_BYTES {weights['file_bytes']} /* of {name}.weights */")
    for end, array in zip(_ends(description), arrays, strict=True):
        lines.append(
            f"#define {upper}_{array.upper()}_COUNT {_count(end)} "
            f"/* elements of '{_comment(end['name'])}' a {count[:-1]}: {end['dtype']}{end['shape']} */"
        )
    lines += [
        "",
        f"enum {name}_result {{",
        *(f"    {upper}_{result.name} = {int(result)}, /* {MEANINGS[result]} */" for result in Result),
        "};",
        "",
        "/* Memory of one instance; any other of as many bytes at such an address will do. */",
        f"typedef struct {name} {{",
        f"    {upper}_ALIGNED unsigned char memory[{upper}_INSTANCE_BYTES];",
        f"}} {name};",
        "",
        "/* Set up an instance in memory of so many bytes; it starts as the model starts. */",
        f"int32_t {name}_init(void *memory, size_t bytes{given});",
        "",
        f"/* One {count[:-1]}. Arrays are C-contiguous. */",
        f"int32_t {name}_step({name} *self, {', '.join(parameters)});",
        "",
        f"/* As many {count}, which lie one behind the other in each array"
        f"{_still(description, arrays, count[:-1])}; the same bits as one by one. */",
        f"int32_t {name}_feed({name} *self, size_t {count}, {', '.join(parameters)});",
        "",
        "/* Back to where the model starts. */",
        f"int32_t {name}_reset({name} *self);",
        "",
        "/* The state as bytes, those of lstm_engine.State in Python, and on from such bytes. */",
        f"int32_t {name}_save(const {name} *self, void *bytes, size_t room);",
        f"int32_t {name}_load({name} *self, const void *bytes, size_t count);",
        "",
        "/* All about this library, as JSON. */",
        f"const char *{name}_describe(void);",
        "",
        "#ifdef __cplusplus",
        "}",
        "#endif",
        "#endif",
        "",
    ]
    return "\n".join(lines)


def example(description: Mapping[str, Any]) -> str:
    """A C program that reads steps from its input and writes results, a line each."""
    name = description["name"]
    upper, arrays = name.upper(), array_names(description)
    count = len(description["inputs"])
    ends = [*zip(_ends(description), arrays, strict=True)]
    apart = description["weights"]["apart"]
    lines = [
        f"/* Reads {_listed(array for _, array in ends[:count])} of one call after the other as numbers, and prints "
        f"{_listed(array for _, array in ends[count:])}.",
        " *",
        f" *     cc -O2 example.c {name}.o -o example && echo 0 0 0 | ./example",
        " */",
        "#include <stdio.h>",
        f'#include "{name}.h"',
        "",
        f"static {name} self;",
        *(f"static {_TYPES[end['dtype']]} {array}[{upper}_{array.upper()}_COUNT];" for end, array in ends),
    ]
    if apart:
        lines.append(f"static {upper}_ALIGNED unsigned char weights[{upper}_WEIGHT_BYTES];")
    lines += ["", "int main(void)", "{"]
    if apart:
        lines += [
            f'    FILE *file = fopen("{name}.weights", "rb");',
            "    if (!file || fread(weights, 1, sizeof weights, file) != sizeof weights) {",
            f'        fprintf(stderr, "{name}.weights cannot be read\\n");',
            "        return 1;",
            "    }",
            "    fclose(file);",
        ]
    given = ", weights, sizeof weights" if apart else ""
    lines += [
        f"    int32_t result = {name}_init(&self, sizeof self{given});",
        f"    while (result == {upper}_OK) {{",
    ]
    for end, array in ends[:count]:
        kind, code = _READ.get(end["dtype"], _OTHER)
        lines += [
            f"        for (size_t i = 0; i < {upper}_{array.upper()}_COUNT; i++) {{",
            f"            {kind} number;",
            f'            if (scanf("{code}", &number) != 1) return 0;',
            f"            {array}[i] = ({_TYPES[end['dtype']]})number;",
            "        }",
        ]
    lines.append(f"        result = {name}_step(&self, {', '.join(arrays)});")
    for end, array in ends[count:]:
        shown = ("%.9g", f"(double){array}[i]") if end["dtype"] in _READ else ("%lld", f"(long long){array}[i]")
        lines.append(
            f"        for (size_t i = 0; i < {upper}_{array.upper()}_COUNT; i++) "
            f'printf("%s{shown[0]}", i ? " " : "", {shown[1]});'
        )
        lines.append('        printf("\\n");')
    lines += [
        "    }",
        f'    fprintf(stderr, "{name}: result %d\\n", (int)result);',
        "    return 1;",
        "}",
        "",
    ]
    return "\n".join(lines)


def cmake(description: Mapping[str, Any], object_name: str) -> str:
    """What CMakeLists.txt includes to have the library as a target."""
    name = description["name"]
    return (
        f"# include(path/to/{name}.cmake), then target_link_libraries(your_program PRIVATE {name})\n"
        f"add_library({name} STATIC ${{CMAKE_CURRENT_LIST_DIR}}/{object_name})\n"
        f"set_source_files_properties(${{CMAKE_CURRENT_LIST_DIR}}/{object_name} PROPERTIES EXTERNAL_OBJECT TRUE)\n"
        f"set_target_properties({name} PROPERTIES LINKER_LANGUAGE C)\n"
        f"target_include_directories({name} PUBLIC ${{CMAKE_CURRENT_LIST_DIR}})\n"
    )


def _ends(description: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return [*description["inputs"], *description["outputs"]]


def _count(end: Mapping[str, Any]) -> int:
    count = 1
    for size in end["shape"]:
        count *= size
    return count


def _comment(text: str) -> str:
    """A file's words within a comment: plain letters on one line, and no end of it."""
    return (
        "".join(c if c.isprintable() and c.isascii() else "?" for c in text).replace("*/", "* /").replace("/*", "/ *")
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _still(description: Mapping[str, Any], arrays: Sequence[str], count: str) -> str:
    still = [array for end, array in zip(_ends(description), arrays, strict=True) if not end["steps"]]
    return f" ({_listed(still)}: of one {count} alone)" if still else ""
