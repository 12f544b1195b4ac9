"""One HTML file that holds all it needs. Whatever comes from a model or its user is taken for hostile, and escaped."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

_ASSETS: Final = Path(__file__).resolve().parent / "assets"
#: What no HTML file may hold: controls but tab and newline, halves of characters, what is no character.
_NOT_TEXT: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
_MOST_SHOWN: Final = 2000  # characters of one text


@cache
def asset(name: str) -> str:
    """A style sheet or script that comes with the package."""
    return (_ASSETS / name).read_text(encoding="utf-8")


def escaped(text: object) -> str:
    """A text for HTML, in an attribute too; what is overlong is cut."""
    whole = _NOT_TEXT.sub("�", str(text))
    return html.escape(whole if len(whole) <= _MOST_SHOWN else whole[:_MOST_SHOWN] + "…")


def as_json(value: Any) -> str:
    """A value as JSON that is safe inside a script element: ASCII, and no sign that HTML knows."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def document(title: str, body: str, styles: Sequence[str], scripts: Sequence[str], data: Any) -> str:
    """A page. ``body``: HTML whose texts are escaped; ``styles``, ``scripts``: assets; ``data``: what scripts read.

    The page's policy lets nothing be loaded and nothing run but these scripts.
    """
    style = "\n".join(map(asset, styles))
    script = "\n".join(map(asset, scripts))
    policy = f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escaped(title)}</title>
<style>{style}</style>
</head>
<body>
{body}
<script type="application/json" id="data">{as_json(data)}</script>
<script>{script}</script>
</body>
</html>
"""


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
