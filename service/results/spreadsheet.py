"""CSV files that a spreadsheet program opens without running what is in them.

Source: OWASP, "CSV Injection". A cell that begins with one of `FORMULA` is taken for a formula, wherever its text came
from; an apostrophe in front makes it text. Parquet files hold the text as it is.
"""

from __future__ import annotations

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""Beginnings of formulas, their full-width forms included."""


def safe_cell(value: object) -> object:
    """A cell's value, a text that would be a formula with an apostrophe in front."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
