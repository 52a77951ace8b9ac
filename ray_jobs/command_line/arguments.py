"""Options that several commands share, each with one wording, and their translation into settings."""

from __future__ import annotations

import argparse
import re
import time
import uuid
from typing import Any

from service import exit_status
from service.errors import UsageError

SHARED_OPTIONS: dict[str, dict[str, Any]] = {
    "--manifest": {"help": "CSV or Parquet file that lists the slides; a path or URI (s3://, gs://, az://, https://)"},
    "--config": {
        "help": "YAML file with preset, model, recipe and compute settings of the training (default: evidence preset)"
    },
    "--name": {"help": "name of this job; the same name again continues the job (default: a new name)"},
    "--storage": {
        "help": "folder for runs and checkpoints, a path or s3:// URI (default: MAGNET_STORAGE, or ~/magnet-runs)"
    },
    "--schedule": {"metavar": "P1,P2,...", "help": "number of regions per parent in each layer, for example 3,2,3"},
    "--epochs": {"type": int, "help": "number of passes over the training slides"},
    "--seed": {"type": int, "help": "seed of all random numbers"},
    "--num-workers": {"type": int, "help": "number of training processes"},
    "--gpu-memory": {"metavar": "24GB", "help": "GPU memory that the micro-batch must fit (default: that of the GPU)"},
    "--set": {
        "action": "append",
        "default": [],
        "metavar": "KEY=VALUE",
        "help": "change any setting, for example recipe.learning_rate=1e-4; can be repeated",
    },
}
"""Keyword arguments of `add_argument` by option."""

SETTING_OF_OPTION = {
    "epochs": "recipe.epochs",
    "seed": "recipe.seed",
    "num_workers": "compute.num_workers",
    "schedule": "model.zoom.schedule",
    "gpu_memory": "compute.gpu_memory_gb",
}
"""Training setting that an option changes."""


def make_parser(script: str, description: str | None) -> argparse.ArgumentParser:
    """Create the parser of a command.

    Args:
        script: name to show in the usage line.
        description: the script's docstring; its line breaks are kept.
    """
    return argparse.ArgumentParser(
        prog=script, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_shared(parser: argparse.ArgumentParser, option: str, **changes: Any) -> None:
    """Add one of the `SHARED_OPTIONS` to a parser.

    Args:
        parser: parser of the command.
        option: the option, such as ``--manifest``.
        changes: keyword arguments of `add_argument` that differ in this command.
    """
    parser.add_argument(option, **(SHARED_OPTIONS[option] | changes))


def parse(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    """Parse the arguments of a command. Without any, print the help and exit with `exit_status.USAGE`."""
    # argparse would only complain about the first missing option.
    if not arguments:
        parser.print_help()
        parser.exit(exit_status.USAGE)
    return parser.parse_args(arguments)


def to_overrides(options: argparse.Namespace, *names: str) -> list[str]:
    """Return --set and other options as overrides ``key=value`` of the training settings; later ones win.

    Args:
        options: parsed options.
        names: options that change a setting, as in `SETTING_OF_OPTION`; those that were not given are skipped.

    Raises:
        UsageError: --gpu-memory is not a number of gigabytes.
    """
    overrides = list(options.set)
    for name in names:
        value = getattr(options, name)
        if value in (None, ""):  # 0 is a valid seed
            continue
        if name == "schedule":
            value = f"[{value}]"
        elif name == "gpu_memory":
            value = parse_gigabytes(value)
        overrides.append(f"{SETTING_OF_OPTION[name]}={value}")
    return overrides


def parse_gigabytes(text: str) -> float:
    """Return the value of --gpu-memory in gigabytes (10^9 bytes), above 0.

    Args:
        text: such as 24GB or 40.

    Raises:
        UsageError: the text has another form.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:GB)?", text.strip(), re.IGNORECASE)
    if not match or not float(match[1]) > 0:
        raise UsageError(f"--gpu-memory {text!r}: must be a number of gigabytes above 0, for example 24GB")
    return float(match[1])


def choose_job_name(option: str | None, kind: str) -> str:
    """Return the job's name: the value of --name, or a new name.

    Args:
        option: value of --name; None or empty if it was not given.
        kind: what a new name starts with.

    Raises:
        UsageError: the name has characters that folders, MLflow's filters or object stores do not accept.
    """
    if not option:
        return make_job_name(kind)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", option):
        raise UsageError(
            f"--name {option!r}: must be 1 to 100 letters, digits, '.', '_' or '-', and start with a letter or digit"
        )
    return option


def make_job_name(kind: str) -> str:
    """Return a new name, which is unique and sorts by time."""
    # The random part keeps jobs apart that start in the same second.
    return f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
