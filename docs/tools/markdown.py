"""Pieces of Markdown that the generated pages share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table.

    Args:
        header: Titles of the columns.
        rows: Cells, in Markdown; line breaks in them become spaces.
    """
    lines = [list(header), ["---"] * len(header), *rows]
    return ["| " + " | ".join(" ".join(cell.split()) for cell in line) + " |" for line in lines]


def escape(text: str) -> str:
    """Return plain text as Markdown of a table's cell."""
    for character in ("\\", "|", "*", "_", "<", "[", "]"):
        text = text.replace(character, {"<": "&lt;", "|": "&#124;"}.get(character, "\\" + character))
    return text


def prose(text: str) -> str:
    """Return a docstring's text as a table's cell. It is Markdown already; only what would end the cell is changed."""
    return " ".join(text.split()).replace("|", "&#124;").replace("``", "`")


def anchor_code(text: str) -> str:
    """Return text as code of a table's cell."""
    return "`" + text.replace("|", "&#124;") + "`" if "|" not in text else "<code>" + escape(text) + "</code>"
