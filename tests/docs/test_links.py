"""Links of the documentation lead to files, pages and headings that exist; named files and modules exist."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from docs.tools import links, python_pages
from docs.tools.commands import ROOT
from tests.docs.pages import HAND_WRITTEN, inline_code, name_of, text_of

FILE = re.compile(r"(?:magnet|service|ray_jobs|infra|docs|configs|benchmarks|tests)/[\w./-]*")
MODULE = re.compile(r"(?:magnet|service|ray_jobs)(?:\.[a-z_]\w*)+")
PAGES = [*HAND_WRITTEN, ROOT / "infra" / "README.md", ROOT / "benchmarks" / "RESULTS.md"]


@cache
def headings(page: Path) -> frozenset[str]:
    """Anchors of a page's headings, as MkDocs and code hosts make them."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text_of(page), flags=re.M | re.S), re.MULTILINE)
    return frozenset(re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles)


def generated_places() -> set[str]:
    """Pages of the reference that exist on the site alone."""
    pattern = re.compile(r"reference/[\w./-]+\.md")
    return set(pattern.findall((ROOT / "mkdocs.yml").read_text())) | {
        f"reference/python/{name}.md" for name in python_pages.python_pages()
    }


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_pages_and_headings(page: Path) -> None:
    wrong = []
    for target in links.links(text_of(page)):
        if "://" in target:
            continue
        path, _, heading = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        is_generated = links.page_of(str(file.relative_to(ROOT))) in generated_places()
        has_heading = not heading or not file.is_file() or file.suffix != ".md" or heading in headings(file)
        if not (file.exists() or is_generated) or not has_heading:
            wrong.append(target)
    assert wrong == []


@pytest.mark.parametrize("page", HAND_WRITTEN, ids=name_of)
def test_named_files_exist(page: Path) -> None:
    named = {match[0] for code in inline_code(page) if (match := FILE.fullmatch(code))}
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", HAND_WRITTEN, ids=name_of)
def test_named_modules_exist(page: Path) -> None:
    named = {match[0] for code in inline_code(page) if (match := MODULE.fullmatch(code))}
    # The last part, or the last two, may be a class or function of the module.
    missing = [name for name in sorted(named) if not any(_is_module(name, drop) for drop in range(3))]
    assert missing == []


def _is_module(name: str, drop: int) -> bool:
    parts = name.split(".")
    path = ROOT.joinpath(*parts[: len(parts) - drop])
    if len(parts) - drop < 2 or not (path.is_dir() or path.with_suffix(".py").is_file()):
        return False
    return drop == 0 or (path.is_file() or re.search(rf"\b{parts[len(parts) - drop]}\b", _source(path)) is not None)


def _source(path: Path) -> str:
    return (path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py").read_text()


def test_a_link_on_the_site_is_relative_to_the_page_that_a_file_became() -> None:
    text = links.for_site(
        "see [results](benchmarks/RESULTS.md#demo), [a guide](docs/how-to/slides.md)", "ARCHITECTURE.md"
    )
    assert text == "see [results](results.md#demo), [a guide](../how-to/slides.md)"


def test_a_link_to_a_file_that_is_no_page_becomes_its_path() -> None:
    assert (
        links.for_site("[statuses](../service/exit_status.py)", "docs/index.md")
        == "statuses (`service/exit_status.py`)"
    )


def test_links_in_code_blocks_stay() -> None:
    code = "```text\n[a](benchmarks/RESULTS.md)\n```\n"
    assert links.for_site(code, "ARCHITECTURE.md") == code
