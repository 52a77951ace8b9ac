"""The parser of every command of the project, captured from the program itself.

A command is run up to the point where it parses its arguments, and no further. So a page and a test see the options
that the program has, and depend on no function's name.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import runpy
import sys
import tomllib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
OTHER_MODULES = ("service.synthetic", "service.cohort.camelyon", "ray_jobs.serving.mlflow_guard")
"""Modules outside the top level of ``ray_jobs`` that users run."""


class _CapturedParser(BaseException):
    """Carries a parser out of a program. Not an `Exception`, so that a command's error handling lets it pass."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__()
        self.parser = parser


def script_modules() -> list[str]:
    """Return the modules that users run: the scripts at the top of ``ray_jobs``, and `OTHER_MODULES`."""
    scripts = sorted((ROOT / "ray_jobs").glob("[!_]*.py"))
    return [f"ray_jobs.{script.stem}" for script in scripts] + list(OTHER_MODULES)


def module_parser(module: str) -> argparse.ArgumentParser:
    """Return the parser of ``python -m MODULE``.

    Raises:
        ValueError: The module parses no arguments.
    """
    with warnings.catch_warnings():
        # That another program has imported the module already does no harm: it runs up to its parser only.
        warnings.filterwarnings(
            "ignore", message=".*found in sys.modules after import of package", category=RuntimeWarning
        )
        return _capture(lambda: runpy.run_module(module, run_name="__main__", alter_sys=True), module)


def file_parser(path: Path) -> argparse.ArgumentParser:
    """Return the parser of ``python PATH``.

    Raises:
        ValueError: The script parses no arguments.
    """
    # Python puts a script's folder first on the path; the benchmarks import each other by it.
    with mock.patch.object(sys, "path", [str(path.parent), *sys.path]):
        return _capture(lambda: runpy.run_path(str(path), run_name="__main__"), str(path))


def magnet_parser() -> argparse.ArgumentParser:
    """Return the parser of ``magnet``, which has one subparser for each of its commands."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts["magnet"].partition(":")
    return _capture(getattr(importlib.import_module(module), function), "magnet")


def subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parsers of a program's subcommands by name; none where it has no subcommands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _capture(run: Callable[[], object], name: str) -> argparse.ArgumentParser:
    def stop(parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        raise _CapturedParser(parser)

    # Some scripts print their help and end when they get no arguments; they never see this argument.
    arguments = mock.patch.object(sys, "argv", [name, "--captured"])
    with _quiet(), arguments, mock.patch.object(argparse.ArgumentParser, "parse_args", stop):
        try:
            run()
        except _CapturedParser as captured:
            return captured.parser
    raise ValueError(f"{name} parses no arguments")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drop what a program prints while it starts."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
