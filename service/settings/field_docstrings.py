"""Reads the docstrings below the fields of a class from its source: Python itself does not keep them."""

from __future__ import annotations

import ast
import inspect
import textwrap
from itertools import pairwise

PACKAGES = ("magnet.", "service.", "ray_jobs.")


def read_field_docstrings(described: type) -> dict[str, str]:
    """Return the docstring below each field of a class and of its bases, by the name of the field.

    Classes of other packages have no such docstrings, or no source, and are left out.
    """
    docstrings: dict[str, str] = {}
    for owner in reversed(described.__mro__):
        if not owner.__module__.startswith(PACKAGES):
            continue
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        assert isinstance(definition, ast.ClassDef)
        docstrings |= {
            statement.target.id: inspect.cleandoc(following.value.value)
            for statement, following in pairwise(definition.body)
            if isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
            and isinstance(following.value.value, str)
        }
    return docstrings
