"""Pages as a browser reads them: what is in them, and whether they are well made."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np

from lstm_engine.pages.packing import unpacked

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Fragment(HTMLParser):
    """Parsed HTML; asserts that tags are closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(html)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open[-1] == tag, (tag, self.open[-5:])
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)

    def text(self, tag: str) -> str:
        return "".join(self.texts.get(tag, []))


class Page(Fragment):
    """A parsed page; asserts that ids are unique, and that what refers to an id finds it."""

    def __init__(self, html: str) -> None:
        super().__init__(html)
        ids = [attributes["id"] for _, attributes in self.tags if "id" in attributes]
        assert len(ids) == len(set(ids))
        for _, attributes in self.tags:
            for name in ("aria-labelledby", "for", "aria-describedby"):
                assert name not in attributes or attributes[name] in ids
        assert html.startswith("<!DOCTYPE html>")

    @property
    def data(self) -> Any:
        """What its scripts read."""
        return json.loads(self.texts["script"][0])


def parsed(html: str) -> Page:
    """A page that loads nothing, runs nothing but its own script, and has no handlers in its tags."""
    page = Page(html)
    policy = next(a["content"] or "" for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    script, style = page.texts["script"][1], page.texts["style"][0]
    for text in (script, style):
        assert base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in policy
    assert page.count("script") == 2
    for tag, attributes in page.tags:
        assert tag not in ("iframe", "object", "embed", "base", "img", "form")
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "style")], attributes
        assert not (attributes.get("href") or "#").lstrip("#").startswith(("http", "javascript", "data", "/"))
    assert not re.search(r"(?:fetch|XMLHttpRequest|import|innerHTML|eval|document\.write)\s*[(=]", script)
    return page


def arrays_of(layer: dict[str, Any], rows: int, steps: int) -> dict[str, tuple[np.ndarray, int]]:
    """The arrays [T,B,H] of a layer in a page's data, and with how many digits they are shown."""
    found = {}
    for part, packing in layer["parts"].items():
        values = unpacked(packing).reshape(rows, steps, layer["units"])
        found[part] = np.swapaxes(values, 0, 1), packing["d"]
    return found


def texts_of(packing: dict[str, Any]) -> list[str]:
    """Texts of which a page holds each once."""
    return [packing["words"][at] for at in np.frombuffer(base64.b64decode(packing["x"]), "<i4")]
