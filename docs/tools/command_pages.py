"""Reference pages of the command line, from the parsers of the program."""

from __future__ import annotations

import argparse
import inspect

from docs.tools import commands
from docs.tools.markdown import anchor_code, escape, table


def magnet_page() -> str:
    """Return the page of ``magnet``: its description, then one section for each of its commands."""
    parser = commands.magnet_parser()
    lines = ["# magnet", "", *_block(parser.description), *_block(parser.epilog)]
    forwarded = {"serve": "ray_jobs.serve", "plan": "ray_jobs.plan"}
    for name, subparser in commands.subparsers(parser).items():
        # These two replace the process by a script, whose own parser has the options.
        shown = commands.module_parser(forwarded[name]) if name in forwarded else subparser
        lines += ["", f"## magnet {name}", "", *_body(shown, f"magnet {name}")]
    return "\n".join(lines) + "\n"


def scripts_page() -> str:
    """Return the page of the scripts that run as jobs or on their own, one section for each."""
    lines = [
        "# Scripts",
        "",
        "`ray job submit -- python ray_jobs/NAME.py ...` runs a script of `ray_jobs` as a job on a cluster, from the "
        "repository's root. `python -m ray_jobs.NAME ...` runs it on this machine, from any folder. The exit statuses "
        "are [these](exit-statuses.md).",
    ]
    for module in commands.script_modules():
        if module == "ray_jobs.serve":  # it is `magnet serve`
            continue
        lines += ["", f"## {module}", "", *_body(commands.module_parser(module), f"python -m {module}")]
    return "\n".join(lines) + "\n"


def _body(parser: argparse.ArgumentParser, command: str) -> list[str]:
    usage = parser.format_usage().removeprefix("usage: ").strip().replace(parser.prog, command, 1)
    lines = [*_block(parser.description), "```text", inspect.cleandoc(usage), "```", ""]
    rows = [_row(action) for action in parser._actions if not isinstance(action, argparse._HelpAction)]
    if rows:
        lines += table(("argument", "meaning", "default"), rows)
    return [*lines, "", *_block(parser.epilog)]


def _row(action: argparse.Action) -> tuple[str, str, str]:
    name = ", ".join(action.option_strings) or str(action.metavar or action.dest)
    if action.option_strings and action.nargs != 0:
        choices = "" if action.choices is None else "{" + ",".join(map(str, action.choices)) + "}"
        name += f" {action.metavar or choices or action.dest.upper()}"
    elif action.choices is not None and not action.option_strings:
        name += " {" + ",".join(map(str, action.choices)) + "}"
    help_text = (action.help or "").replace("%(default)s", str(action.default)).replace("%%", "%")
    required = "required" if action.required and action.option_strings else ""
    repeatable = "repeatable" if isinstance(action, argparse._AppendAction) else ""
    is_value = action.default not in (None, False, [], argparse.SUPPRESS)
    default = f"`{action.default}`" if is_value else required or repeatable
    return anchor_code(name), escape(help_text), default


def _block(text: str | None) -> list[str]:
    """Return text of a parser: one line as prose, more as it is laid out in the terminal, with examples and lists."""
    if not text:
        return []
    text = inspect.cleandoc(text)
    return ["```text", text, "```", ""] if "\n" in text else [escape(text), ""]
