"""CSV cells that a spreadsheet program does not run as formulas.

Source: OWASP, "CSV Injection". A spreadsheet program takes a cell that begins with one of `FORMULA_STARTS` for a
formula, also where the text came from a user's file. An apostrophe in front makes it text. Parquet files need no
escaping and hold the text unchanged.
"""

from __future__ import annotations

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""First characters of formulas, full-width forms included."""


def escape_cell(value: object) -> object:
    """Return a cell's value; a text that would run as a formula gets an apostrophe in front."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_STARTS) else value
