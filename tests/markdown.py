"""Pages of Markdown as tests see them: their blocks of code, what should come of each, and where they link to."""

from __future__ import annotations

import ast
import re
import sys
from dataclasses import dataclass
from pathlib import Path

#: Languages whose blocks are programs, and the ending of their files.
COMPILED = {"c": ".c", "cpp": ".cpp", "cmake": ".txt"}
#: What a page may import and be sure to have.
AT_HAND = {"lstm_engine", "numpy", *sys.stdlib_module_names}
LANGUAGES = {"python", "sh", *COMPILED}
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)|\b(?:src|srcset|href)=\"([^\"]+)\"")


@dataclass(frozen=True)
class Block:
    """A block of code. ``said``: the block of text right behind it, what it prints or the error it ends in."""

    language: str
    code: str
    line: int
    said: str | None

    @property
    def packages(self) -> list[str]:
        """What it imports beyond what is at hand."""
        if self.language != "python":
            return []
        found = set()
        for node in ast.walk(ast.parse(self.code)):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add((node.module or "").partition(".")[0])
        return sorted(found - AT_HAND)


def blocks(page: Path) -> list[Block]:
    """The blocks of code, in the order they stand there."""
    text = page.read_text(encoding="utf-8")
    fences = list(_FENCE.finditer(text))
    found = []
    for fence, behind in zip(fences, [*fences[1:], None], strict=True):
        if fence[1] in LANGUAGES:
            near = behind is not None and behind[1] == "text" and not text[fence.end() : behind.start()].strip()
            said = behind[2] if near and behind is not None else None
            found.append(Block(fence[1], fence[2], text.count("\n", 0, fence.start()) + 2, said))
    return found


def as_said(said: str, got: str) -> bool:
    """Whether ``got`` is the text of the page, however lines are broken; … stands for anything."""
    words = [re.escape(" ".join(part.split())) for part in said.split("…")]
    return re.fullmatch(r"\s*.*?\s*".join(words), " ".join(got.split()), re.DOTALL) is not None


def links(page: Path) -> list[str]:
    """Where it links to, code apart."""
    prose = re.sub(r"`[^`\n]*`", "", _FENCE.sub("", page.read_text(encoding="utf-8")))
    return [one or other for one, other in _LINK.findall(prose)]


def anchors(page: Path) -> set[str]:
    """The names of its headings, as GitHub makes them."""
    prose = _FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ +(.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
