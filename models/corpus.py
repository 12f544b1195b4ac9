"""The text corpus that every Python installation carries.

Two kinds of documents, made from the standard library alone and without importing any of it:

* the language reference's topics (``pydoc_data.topics``: what ``help("lambda")`` prints), and
* an outline of each module: its docstring, then the signature and docstring of each documented
  class and function, indented as in the source.

The corpus depends on the Python version; the model's card names the one that was used.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import random
import re
import sysconfig
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

UNKNOWN = "<unk>"
BOUNDARY = "<doc>"
SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
MINIMUM_DOCUMENT = 200  # characters; shorter documents say little
TELLING_LINE = 30  # characters
MAXIMUM_REPEAT = 0.1  # of a document's telling lines may stand in another; else it is left out
MINIMUM_COUNT = 20  # a character seen less often in the training text is unknown
MAXIMUM_INDENT = 20
GRID, GAP = re.compile(r"\+[-=]|\|"), re.compile(" {3,}")

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Split:
    """Whole documents, shuffled: to train on, to choose the best state by, and held out."""

    train: list[str]
    valid: list[str]
    heldout: list[str]


def standard_library() -> Path:
    """The folder of the running interpreter's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def parse(path: Path) -> ast.Module | None:
    """The syntax tree of a source file, or None where it is not valid Python of this version."""
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, ValueError):
        return None


def tidy(text: str) -> str:
    """Dedented text with plain spaces and no trailing blanks."""
    lines = (line.rstrip() for line in inspect.cleandoc(text).expandtabs().splitlines())
    return "\n".join(lines).strip("\n")


def topics() -> list[str]:
    """The language reference's topics, one document each."""
    tree = parse(standard_library() / "pydoc_data" / "topics.py")
    assert tree is not None
    table = next(node.value for node in tree.body if isinstance(node, ast.Assign))
    return [tidy(text) for text in ast.literal_eval(table).values()]


def quoted(doc: str) -> str:
    """A docstring as it stands in source: closed on its line, or on a line of its own."""
    return f'"""{doc}\n"""' if "\n" in doc else f'"""{doc}"""'


def indented(text: str) -> str:
    """Text moved right by four spaces, empty lines left empty."""
    return "\n".join(f"    {line}" if line else "" for line in text.split("\n"))


def signature(node: Definition) -> str:
    """The line that opens a class or a function."""
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        return f"class {node.name}({bases}):" if bases else f"class {node.name}:"
    return f"def {node.name}({ast.unparse(node.args)}):"


def documented(node: Definition) -> str:
    """Signature, docstring and documented members of a definition; empty if there are none."""
    doc = ast.get_docstring(node)
    parts = [quoted(tidy(doc))] if doc else []
    if isinstance(node, ast.ClassDef):
        parts += members(node)
    if not parts:
        return ""
    return signature(node) + "\n" + indented("\n\n".join(parts))


def members(node: ast.Module | ast.ClassDef) -> list[str]:
    """The documented classes and functions directly inside a module or a class."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    found = (documented(child) for child in node.body if isinstance(child, kinds))
    return [text for text in found if text]


def outline(tree: ast.Module) -> str:
    """A module's documentation, laid out as in its source."""
    doc = ast.get_docstring(tree)
    parts = [quoted(tidy(doc))] if doc else []
    return "\n\n".join(parts + members(tree))


def modules() -> list[str]:
    """The outlines of the standard library's modules, one document each."""
    root = standard_library()
    texts = []
    for path in sorted(root.rglob("*.py")):
        folders = path.relative_to(root).parts[:-1]
        if SKIPPED_FOLDERS.intersection(folders) or "pydoc_data" in folders:
            continue
        if tree := parse(path):
            texts.append(outline(tree))
    return texts


def telling_lines(text: str) -> list[str]:
    """The lines long enough that two documents share them only if one repeats the other."""
    return [line.strip() for line in text.split("\n") if len(line.strip()) > TELLING_LINE]


def distinct(texts: list[str]) -> list[str]:
    """The documents, longest first, without those that repeat much of the ones before."""
    kept, seen = [], set()
    for text in sorted(texts, key=lambda text: (-len(text), text)):
        lines = telling_lines(text)
        size, repeated = sum(map(len, lines)), sum(len(line) for line in lines if line in seen)
        if repeated <= MAXIMUM_REPEAT * size:
            kept.append(text)
            seen.update(lines)
    return kept


def documents() -> list[str]:
    """The documents worth reading, none of them a repetition of another."""
    return distinct([text for text in topics() + modules() if len(text) >= MINIMUM_DOCUMENT])


def plain(text: str) -> str:
    """The text without drawn tables, and with no long runs of spaces.

    A model of characters cannot count them, and once it writes one it does not find its way out.
    """
    lines = []
    for line in text.split("\n"):
        words = line.lstrip(" ")
        if not GRID.match(words):
            indent = min(len(line) - len(words), MAXIMUM_INDENT)
            lines.append(" " * indent + GAP.sub("  ", words))
    return "\n".join(lines)


def split(seed: int = 0, valid: float = 0.03, heldout: float = 0.06) -> Split:
    """Share the documents out at random, by the part of the text that each group shall have."""
    texts = documents()
    random.Random(seed).shuffle(texts)
    total = sum(map(len, texts))
    groups: tuple[list[str], list[str]] = ([], [])
    for group, share in zip(groups, (heldout, valid), strict=True):
        while sum(map(len, group)) < share * total:
            group.append(texts.pop())
    heldouts, valids = groups
    return Split(*([plain(text) for text in group] for group in (texts, valids, heldouts)))


def vocabulary(texts: list[str]) -> list[str]:
    """The special tokens, then the characters common enough to learn, in code order."""
    counts = Counter("".join(texts))
    return [UNKNOWN, BOUNDARY, *sorted(c for c, n in counts.items() if n >= MINIMUM_COUNT)]


def encode(texts: list[str], tokens: list[str]) -> list[int]:
    """Token ids of documents in a row, a boundary before each and after the last."""
    table = {token: index for index, token in enumerate(tokens)}
    unknown, boundary = table[UNKNOWN], table[BOUNDARY]
    ids = [boundary]
    for text in texts:
        ids += [table.get(c, unknown) for c in text]
        ids.append(boundary)
    return ids


def fingerprint(texts: list[str]) -> str:
    """A short digest that tells whether two corpora are the same."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
