"""The generated pages say what the program does, and load nothing from other servers."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
from mkdocs.exceptions import PluginError

from docs.tools import hooks, http_api_page, settings_pages, table_pages
from docs.tools.commands import ROOT
from service.results.scores import SCHEMA


def row(page: str, name: str) -> list[str]:
    """Cells of a table's row."""
    (line,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_setting_is_shown_with_both_presets_values() -> None:
    page = settings_pages.settings_page("settings-training")
    assert row(page, "recipe.learning_rate")[1:3] == ["number", "`0.001`; paper `3e-05`"]  # the paper's section 4.3
    assert row(page, "model.zoom.schedule")[1:3] == ["list of integer", "`[3, 2, 3]`"]


def test_settings_within_lists_and_of_named_groups_are_shown() -> None:
    page = settings_pages.settings_page("settings-service")
    assert row(page, "places[].prefix")[1:3] == ["text", "required"]
    assert row(page, "quotas.NAME.max_running")[1:3] == ["integer or null", "null"]


def test_every_column_of_the_score_table_has_a_row() -> None:
    page, _, regions = table_pages.scores_page().partition("## Each of")
    assert row(regions, "side_l0")[1] == "double"
    assert all(row(page, name)[2] for name in SCHEMA.names)


def test_every_variable_that_the_program_reads_is_on_the_page() -> None:
    page = table_pages.environment_page()
    sources = "\n".join(path.read_text() for name in ("service", "ray_jobs") for path in (ROOT / name).rglob("*.py"))
    read = set(re.findall(r"""(?:environ(?:\.get)?|_number|_flag)[(\[]["'](MAGNET_\w+)""", sources))
    assert len(read) >= 8
    assert {name for name in read if name not in page} == set()


@pytest.mark.slow
def test_every_route_has_a_section() -> None:
    schema, page = http_api_page.openapi_schema(), http_api_page.http_api_page()
    titles = {line.replace("\\", "") for line in page.splitlines() if line.startswith("## ")}
    routes = [(method, path) for path, methods in schema["paths"].items() for method in methods]
    assert len(routes) > 20
    assert {f"## {method.upper()} {path}" for method, path in routes} <= titles


@pytest.mark.parametrize(
    "html",
    [
        '<script src="https://cdn.example/x.js"></script>',
        '<link href="//fonts.example/a.css" rel="stylesheet">',
        '<img alt="" src="http://example.org/a.png">',
    ],
)
def test_a_page_that_loads_from_another_server_is_refused(html: str) -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri="a.md"))
    with pytest.raises(PluginError, match=r"a\.md loads something from another server"):
        hooks.on_post_page(f"<html>{html}</html>", page=page)


def test_links_to_other_servers_are_allowed() -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri="a.md"))
    html = '<a href="https://example.org">there</a><script src="assets/x.js"></script>'
    assert hooks.on_post_page(html, page=page) == html
