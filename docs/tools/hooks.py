"""What MkDocs calls while it builds the site: generated pages, pages from outside ``docs/``, checks of the result."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

# MkDocs loads this file by its path, and may be started from any folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from docs.tools import command_pages, http_api_page, links, python_pages, settings_pages, table_pages

_EXTERNAL = re.compile(r"<(?:script|img|iframe|link(?=[^>]*rel=.?stylesheet))\b[^>]*?\b(?:src|href)=[\"']?(https?:)?//")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages of the Python packages into the navigation: they follow from the folders."""
    for section in config.nav or []:
        for entries in section.values():
            for entry in entries if isinstance(entries, list) else []:
                if isinstance(entry, dict) and "Python API" in entry:
                    names = python_pages.python_pages()
                    entry["Python API"] = [{name: f"reference/python/{name}.md"} for name in names]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that no file of ``docs/`` holds."""
    for place, text in generated_pages().items():
        files.append(File.generated(config, place, content=text))
    for source, place in links.OUTSIDE_PAGES.items():
        files.append(File.generated(config, place, content=(links.ROOT / source).read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Make the links of a page hold on the site."""
    sources = {place: source for source, place in links.OUTSIDE_PAGES.items()}
    return links.for_site(markdown, sources.get(page.file.src_uri, f"docs/{page.file.src_uri}"))


def on_post_page(output: str, page: Page, **_: Any) -> str:
    """Refuse a page that loads something from another server: hospital networks often have no way out."""
    if external := _EXTERNAL.search(output):
        raise PluginError(f"{page.file.src_uri} loads something from another server: {external[0]}")
    return output


def generated_pages() -> dict[str, str]:
    """Return the Markdown of the pages that are made from the code, by their place on the site."""
    pages = {f"reference/{name}.md": settings_pages.settings_page(name) for name in settings_pages.PAGES}
    pages |= {
        "reference/manifest.md": table_pages.manifest_page(),
        "reference/scores.md": table_pages.scores_page(),
        "reference/exit-statuses.md": table_pages.module_docstring_page("Exit statuses", "service.exit_status"),
        "reference/environment.md": table_pages.environment_page(),
        "reference/magnet.md": command_pages.magnet_page(),
        "reference/scripts.md": command_pages.scripts_page(),
        "reference/http-api.md": http_api_page.http_api_page(),
    }
    return pages | {f"reference/python/{name}.md": text for name, text in python_pages.python_pages().items()}
