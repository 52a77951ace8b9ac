"""The pages of the documentation, and what is in them."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from docs.tools.commands import ROOT

HAND_WRITTEN = sorted(
    [
        *(ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")),
        *(path for path in (ROOT / "docs").rglob("*.md") if "security" not in path.name),
    ]
)
"""Pages that this folder's tests check; those about security have tests of their own."""

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`\n]+)`")
_HEREDOC = re.compile(r"<<\s*(\w+)\n(.*?)^\1$", re.MULTILINE | re.DOTALL)


@cache
def text_of(page: Path) -> str:
    return page.read_text()


def blocks(page: Path, language: str) -> list[str]:
    """Code blocks of one language."""
    return [code for name, code in _FENCE.findall(text_of(page)) if name == language]


def inline_code(page: Path) -> list[str]:
    """Pieces of code in running text."""
    return _INLINE.findall(_FENCE.sub("", text_of(page)))


def heredoc(page: Path, file: str) -> str:
    """What a page's commands write into a file by ``cat > FILE <<END``."""
    for code in blocks(page, "bash"):
        for match in _HEREDOC.finditer(code):
            if code[: match.start()].rstrip().endswith(f"cat > {file}"):
                return match[2]
    raise AssertionError(f"{page.name} writes no {file}")


def command_lines(page: Path) -> list[str]:
    """Commands of the page's shell blocks, each in one line, without what they write into files."""
    lines = []
    for code in blocks(page, "bash"):
        code = _HEREDOC.sub("", code).replace("\\\n", " ")
        lines += [line for line in code.splitlines() if line.strip()]
    return lines


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))
