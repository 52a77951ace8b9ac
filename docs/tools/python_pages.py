"""Reference pages of the Python packages: the modules of each page. mkdocstrings fills them from the docstrings."""

from __future__ import annotations

from pathlib import Path

from docs.tools.commands import ROOT

PACKAGES = ("magnet", "service", "ray_jobs")


def python_pages() -> dict[str, str]:
    """Return the Markdown of each folder of Python modules, by the dotted name of the package."""
    pages = {}
    for package in PACKAGES:
        folders = sorted({path.parent for path in (ROOT / package).rglob("*.py")} - _hidden(package))
        for folder in folders:
            name = ".".join(folder.relative_to(ROOT).parts)
            pages[name] = _page(name, folder)
    return pages


def _hidden(package: str) -> set[Path]:
    """Return folders that hold no importable code for readers: versions of the database's tables."""
    return {path.parent for path in (ROOT / package).rglob("*.py") if "migrations" in path.parts}


def _page(name: str, folder: Path) -> str:
    # A package's own docstring comes first; modules with a leading underscore are none of the reader's business.
    modules = sorted(path.stem for path in folder.glob("[!_]*.py"))
    lines = [f"# {name}", "", f"::: {name}", "    options:", "      members: []", "      show_root_heading: false", ""]
    for module in modules:
        lines += [f"::: {name}.{module}", "    options:", "      heading_level: 2", ""]
    return "\n".join(lines) + "\n"
