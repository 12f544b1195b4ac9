"""What a notebook shows of a value: a small table, without scripts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from .document import escaped

_MOST_ROWS: Final = 40
_CELL: Final = "text-align:left;padding:.1em 1em .1em 0"


def note(heading: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A heading and a table as HTML; a long one is cut, and says so."""
    head = "".join(f"<th style='{_CELL}'>{escaped(name)}</th>" for name in columns)
    body = "".join(
        "<tr>" + "".join(f"<td style='{_CELL}'>{escaped(cell)}</td>" for cell in row) + "</tr>"
        for row in rows[:_MOST_ROWS]
    )
    more = f"<p>… and {len(rows) - _MOST_ROWS:,} more</p>" if len(rows) > _MOST_ROWS else ""
    return (
        f"<div><strong>{escaped(heading)}</strong>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}</div>"
    )
