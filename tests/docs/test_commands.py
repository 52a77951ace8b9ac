"""Commands in the documentation exist, with these options and settings: the program's own parsers take them."""

from __future__ import annotations

import argparse
import importlib.util
import re
import shlex
from functools import cache
from pathlib import Path

import pytest
import yaml

from docs.tools import commands
from docs.tools.commands import ROOT
from docs.tools.settings_pages import PAGES, groups, own_settings
from service.settings.service import ServiceSettings
from service.settings.train import TrainSettings, parse
from tests.docs.pages import HAND_WRITTEN, blocks, command_lines, inline_code, name_of

pytestmark = pytest.mark.slow  # the scripts load torch, Ray and MLflow

FORWARDED = {"serve": "ray_jobs.serve", "plan": "ray_jobs.plan"}
"""Commands of `magnet` whose parser is a script's."""
FOREIGN_OPTIONS = {"--working-dir"}
"""Options of other programs that the text names."""
ENDS = {">", "|", ";", "&&", "<", "<<", "||", "&"}
DOTTED_KEY = re.compile(r"(?:model|recipe|compute|gate)(?:\.\w+)+")


class WrongArgumentsError(AssertionError):
    """The program does not take the arguments."""


@cache
def parser_of(program: str) -> argparse.ArgumentParser:
    """The parser of a module, of a script's path, or of ``magnet``."""
    if program == "magnet":
        return commands.magnet_parser()
    if program.startswith("ray_jobs/"):
        return commands.module_parser(program.removesuffix(".py").replace("/", "."))
    return commands.file_parser(ROOT / program) if program.endswith(".py") else commands.module_parser(program)


def programs(line: str) -> list[tuple[str, list[str]]]:
    """The project's own programs that a line of the shell calls, with their arguments."""
    tokens = shlex.shlex(line, posix=True, punctuation_chars=True)
    tokens.whitespace_split = True
    words = list(tokens)
    calls = []
    for n, word in enumerate(words):
        end = next((k for k in range(n, len(words)) if words[k] in ENDS), len(words))
        if word == "python" and words[n + 1 : n + 2] == ["-m"]:
            calls.append((words[n + 2], words[n + 3 : end]))
        elif word == "python" and n + 1 < len(words) and words[n + 1].endswith(".py"):
            calls.append((words[n + 1], words[n + 2 : end]))
        elif word in ("magnet", "make") and (n == 0 or words[n - 1] in ENDS):
            calls.append((word, words[n + 1 : end]))
    return calls


def check(program: str, arguments: list[str], *, whole: bool) -> None:
    """Check a call against the parser.

    Args:
        program: As in `parser_of`.
        arguments: What follows it.
        whole: Whether these are all arguments; otherwise required ones may be missing.
    """
    if program == "make":
        targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        assert {word for word in arguments if "=" not in word} <= targets, arguments
        return
    if program.startswith("docs/"):
        assert (ROOT / program).is_file()
        return
    if not (arguments or whole or program == "magnet" or program.endswith(".py")):
        assert importlib.util.find_spec(program), program
        return
    parser = parser_of(program)
    if program == "magnet" and arguments:
        assert arguments[0] in commands.subparsers(parser) or not arguments[0].islower(), arguments
        if arguments[0] in FORWARDED:
            parser, arguments = parser_of(FORWARDED[arguments[0]]), arguments[1:]
        elif not whole and arguments[0] in commands.subparsers(parser):
            parser, arguments = commands.subparsers(parser)[arguments[0]], arguments[1:]
    if "..." in arguments or not whole:
        options = {word.partition("=")[0] for word in arguments if re.fullmatch(r"--?[a-z][\w-]*(=.*)?", word)}
        assert options <= set(parser._option_string_actions), f"{program}: {options}"
        return
    parser.parse_args(arguments)


@pytest.fixture(autouse=True)
def _refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong arguments raise instead of ending the process."""

    def error(parser: argparse.ArgumentParser, message: str) -> None:
        raise WrongArgumentsError(f"{parser.prog}: {message}")

    monkeypatch.setattr(argparse.ArgumentParser, "error", error)


@pytest.mark.parametrize("page", HAND_WRITTEN, ids=name_of)
def test_commands_of_code_blocks_are_taken(page: Path) -> None:
    for line in command_lines(page):
        for program, arguments in programs(line):
            if program != "mkdocs":
                check(program, arguments, whole=True)


@pytest.mark.parametrize("page", HAND_WRITTEN, ids=name_of)
def test_commands_in_the_text_exist(page: Path) -> None:
    for code in inline_code(page):
        if code.startswith(("python ", "magnet ", "make ", "ray job submit ")):
            for program, arguments in programs(code):
                # NAME and COMMAND stand for any script or command.
                if not re.search(r"NAME|KIND", program) and arguments[:1] != ["COMMAND"]:
                    check(program, arguments, whole=False)


def test_options_in_the_text_exist() -> None:
    parsers = [parser_of(module) for module in commands.script_modules()]
    parsers += [parser_of("magnet"), *commands.subparsers(parser_of("magnet")).values()]
    parsers += [parser_of(f"benchmarks/{script.name}") for script in (ROOT / "benchmarks").glob("*learn.py")]
    known = {option for parser in parsers for option in parser._option_string_actions} | FOREIGN_OPTIONS
    named = {
        (name_of(page), code.split()[0].partition("=")[0])
        for page in HAND_WRITTEN
        for code in inline_code(page)
        if code.startswith("--")
    }
    assert named
    assert sorted((page, option) for page, option in named if option not in known) == []


def known_keys() -> set[str]:
    """Dotted keys of all settings, and of their groups."""
    trees = [groups(root) for _, root, _ in PAGES.values()]
    pairs = [pair for tree in trees for pair in tree]
    return {setting.key for key, kind in pairs for setting in own_settings(kind, key)} | {key for key, _ in pairs}


@pytest.mark.parametrize("page", HAND_WRITTEN, ids=name_of)
def test_settings_in_commands_and_text_exist(page: Path) -> None:
    named = {match[0] for code in inline_code(page) if (match := DOTTED_KEY.match(code))} - {"gate."}
    for line in command_lines(page):
        named |= set(re.findall(r"--(?:search-)?set (\w[\w.]*)=", line))
    # The tutorial shows what a misspelt setting leads to.
    assert named - known_keys() - {"recipe.epoch"} == set()


@pytest.mark.parametrize("page", HAND_WRITTEN, ids=name_of)
def test_settings_files_are_taken(page: Path) -> None:
    for code in blocks(page, "yaml"):
        values = yaml.safe_load(code)
        kind, more = (ServiceSettings, {"storage": "/var/lib/magnet"}) if "places" in values else (TrainSettings, {})
        assert parse(kind, values | more, name_of(page))
