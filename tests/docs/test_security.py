"""The security pages name tests and files that exist, and have one row for each requirement of ASVS levels 1 and 2."""

from __future__ import annotations

import ast
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from service.settings.service import OidcSettings, ServiceSettings

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("security*.md"))
REQUIREMENTS = {
    1: 27,
    2: 11,
    3: 19,
    4: 10,
    5: 9,
    6: 35,
    7: 18,
    8: 7,
    9: 7,
    10: 29,
    11: 14,
    12: 9,
    13: 13,
    14: 9,
    15: 13,
    16: 16,
    17: 7,
}
"""Of levels 1 and 2 by chapter, counted in the table that OWASP publishes with ASVS 5.0.0."""
STATUSES = {"met", "deployment", "n/a", "not met"}
TEST = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")
FILE = re.compile(r"`((?:magnet|service|ray_jobs|infra|docs|configs|benchmarks)/[\w./-]+)`")


@cache
def functions(path: Path) -> frozenset[str]:
    return frozenset(node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef))


def rows() -> list[list[str]]:
    """Cells of each requirement's row."""
    lines = (ROOT / "docs" / "security-asvs.md").read_text().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if re.match(r"\| \d", line)]


def items(cell: str) -> list[tuple[int, int, int]]:
    """The requirements of a row: single ones and ranges, such as ``1.2.6-1.2.8``."""
    found = []
    for part in cell.split(", "):
        first, _, last = part.partition("-")
        chapter, section, number = map(int, first.split("."))
        end = tuple(map(int, (last or first).split(".")))
        assert end[:2] == (chapter, section), f"{part} leaves its section"
        found += [(chapter, section, each) for each in range(number, end[2] + 1)]
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_tests_exist(page: Path) -> None:
    named = TEST.findall(page.read_text())
    assert named
    missing = [
        f"{file}::{name}"
        for file, name in named
        if not (ROOT / file).is_file() or (name and name not in functions(ROOT / file))
    ]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_modules_and_files_exist(page: Path) -> None:
    named = FILE.findall(page.read_text())
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_headings(page: Path) -> None:
    for file, heading in re.findall(r"\]\((?!https?:)([\w./-]*)(?:#([\w-]+))?\)", page.read_text()):
        target = page.parent / file if file else page
        assert target.exists(), f"{page.name} links to {file}"
        titles = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE) if heading else []
        anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
        assert not heading or heading in anchors, f"{page.name} links to {file}#{heading}"


def test_named_settings_exist() -> None:
    known = {*ServiceSettings.__dataclass_fields__, *OidcSettings.__dataclass_fields__}
    named = re.findall(r"^\| `(\w+)` \| setting", (ROOT / "docs" / "security.md").read_text(), re.MULTILINE)
    assert named
    assert set(named) - known == set()


def test_each_requirement_has_one_row() -> None:
    found = [item for row in rows() for item in items(row[0])]
    assert [item for item, count in Counter(found).items() if count > 1] == []
    assert Counter(chapter for chapter, *_ in found) == REQUIREMENTS
    assert sum(REQUIREMENTS.values()) == 253  # as the standard says


def test_each_row_says_how_it_stands() -> None:
    for row in rows():
        assert len(row) == 5, row[0]
        assert row[1] in ("1", "2", "1, 2"), row[0]
        assert row[3] in STATUSES, row[0]
        assert row[4], row[0]
