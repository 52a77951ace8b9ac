"""The entry point of `magnet`."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import logging
import os
import signal
import sys
from collections.abc import Sequence

from service import exit_status
from service.cli.parser import build_parser
from service.errors import MagnetError, UsageError

FORWARDED = {"serve": "ray_jobs.serve", "plan": "ray_jobs.plan"}
"""Commands that need Ray or torch, which this package must not import: a script of `ray_jobs` replaces the process."""
WRONG_INPUT = (400, 404, 422)
"""HTTP statuses of requests that the user must correct."""


def main() -> None:
    """Run the command line, and exit with its status."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `magnet logs JOB | head` ends quietly
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run the command line.

    Args:
        arguments: arguments after the program's name.

    Returns:
        The exit status.
    """
    if arguments and arguments[0] in FORWARDED:
        return _forward(arguments[0], arguments[1:])
    commands = build_parser()
    if not arguments:
        commands.print_help()
        return 0
    options = commands.parse_args(arguments)
    module, _, function = options.target.partition(":")
    try:
        gc.disable()  # the objects that an import creates all stay: collecting garbage would only take time
        command = getattr(importlib.import_module(f"service.cli.{module}"), function)
        gc.enable()
        return int(command(options))
    except MagnetError as error:
        print(f"error: {error}", file=sys.stderr)
        wrong_input = isinstance(error, UsageError) or getattr(error, "status", 0) in WRONG_INPUT
        return exit_status.USAGE if wrong_input else exit_status.FAILED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return exit_status.INTERRUPTED


def _forward(name: str, arguments: Sequence[str]) -> int:
    module = FORWARDED[name]
    if importlib.util.find_spec(module) is None:
        print(f"error: this installation lacks {module}; install the whole package on this machine", file=sys.stderr)
        return exit_status.USAGE
    # The script replaces this process, so that signals reach it directly.
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])
