"""Links between pages in different folders of the repository.

Some pages of the site are files outside ``docs/``, and pages link to files that are no pages. In the repository a link
is relative to the file that holds it; the site needs it relative to the page that the file became.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from pathlib import Path

from docs.tools.commands import ROOT

OUTSIDE_PAGES = {
    "ARCHITECTURE.md": "explanation/architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "infra/README.md": "how-to/deploy.md",
    "benchmarks/RESULTS.md": "explanation/results.md",
}
"""Place on the site of each page whose file is outside ``docs/``, by its path in the repository."""

_LINK = re.compile(r"(!?\[(?:[^\[\]]|\[[^\]]*\])*\])\(([^()\s]+)\)")
_FENCE = re.compile(r"^(```|~~~).*?^\1[ ]*$", re.MULTILINE | re.DOTALL)


def links(markdown: str) -> list[str]:
    """Return the targets of the links and images of a text, outside code blocks."""
    return [match[2] for match in _LINK.finditer(_FENCE.sub("", markdown))]


def for_site(markdown: str, source: str) -> str:
    """Return a page's text with links that hold on the site; a link to a file that is no page becomes its path as code.

    Args:
        markdown: Text of the page.
        source: Path of its file in the repository.
    """

    def rewrite(match: re.Match[str]) -> str:
        text, target = match[1], match[2]
        path, hash_sign, heading = target.partition("#")
        if not path or "://" in path or path.startswith("mailto:"):
            return match[0]
        wanted = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if (place := page_of(wanted)) is None:
            return f"{text.lstrip('!')[1:-1]} (`{wanted}`)" if (ROOT / wanted).exists() else match[0]
        here = page_of(source) or source
        return f"{text}({posixpath.relpath(place, posixpath.dirname(here) or '.')}{hash_sign}{heading})"

    return _outside_code(markdown, lambda part: _LINK.sub(rewrite, part))


def page_of(path: str) -> str | None:
    """Return the place on the site of a file of the repository; None if it is not on the site."""
    if path in OUTSIDE_PAGES:
        return OUTSIDE_PAGES[path]
    is_docs = path.startswith("docs/") and Path(path).suffix != ".py"
    return path.removeprefix("docs/") if is_docs else None


def _outside_code(markdown: str, change: Callable[[str], str]) -> str:
    parts, end = [], 0
    for fence in _FENCE.finditer(markdown):
        parts += [change(markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, change(markdown[end:])])
