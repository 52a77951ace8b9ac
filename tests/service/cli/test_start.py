"""Modules that a command loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from service.cli.parser import build_parser
from service.queue import requests

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
HEAVY = {
    "pandas",
    "numpy",
    "pyarrow",
    "dbos",
    "fastapi",
    "sqlalchemy",
    "croniter",
    "alembic",
    "botocore",
    "boto3",
    "obstore",
}
HEAVY |= {"yaml", "shapely", "PIL", "imagecodecs", "torch", "ray", "mlflow", "uvicorn", "prometheus_client", "psycopg"}
NETWORK = {"httpx2", "pydantic", "ssl"}
RUN = """
import sys
from service.cli.main import run
try:
    run(sys.argv[1:])
except SystemExit:
    pass
print("LOADED", *{name.partition(".")[0] for name in sys.modules})
"""


def list_loaded(*argv: str, home: Path) -> set[str]:
    """Run a command, and return the top-level modules that it has loaded."""
    env = {"PYTHONPATH": str(ROOT), "HOME": str(home), "MAGNET_URL": "http://127.0.0.1:1", "PATH": "/usr/bin:/bin"}
    code = (
        RUN.replace("run(sys", "import service.client.connection as c; c.PATIENCE_S = 0\n    run(sys")
        if argv[0] != "-h"
        else RUN
    )
    ended = subprocess.run([sys.executable, "-c", code, *argv], env=env, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return set(ended.stdout.rpartition("LOADED")[2].split())


@pytest.mark.parametrize(
    "argv",
    [["jobs"], ["logs", "last"], ["show", "last"], ["scores", "last"], ["cancel", "last"], ["watches"]],
    ids=" ".join,
)
def test_commands_that_only_call_the_api_load_neither_tables_nor_databases(argv: list[str], tmp_path: Path) -> None:
    loaded = list_loaded(*argv, home=tmp_path)
    assert "httpx2" in loaded
    assert not loaded & HEAVY


def test_help_loads_no_client(tmp_path: Path) -> None:
    assert not list_loaded("-h", home=tmp_path) & (HEAVY | NETWORK)


def test_importing_the_client_loads_neither_databases_nor_settings_of_jobs(tmp_path: Path) -> None:
    code = "import sys\nfrom service.client import Client\nprint(*{name.partition('.')[0] for name in sys.modules})"
    env = {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    ended = subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert not set(ended.stdout.split()) & HEAVY


def test_every_command_names_a_function_that_exists() -> None:
    names = build_parser()._subparsers._group_actions[0].choices  # type: ignore[union-attr,index,call-overload]
    code = "import importlib, sys\n"
    for name, command in names.items():
        if target := command.get_default("target"):
            module, _, function = target.partition(":")
            code += f"assert callable(importlib.import_module('service.cli.{module}').{function}), {name!r}\n"
    ended = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT)}, cwd=ROOT, capture_output=True)
    assert ended.returncode == 0, ended.stderr.decode()


def test_the_kinds_of_the_options_are_those_of_the_requests() -> None:
    kinds = {
        adapter.__dataclass_fields__["kind"].default
        for adapter in (requests.Check, requests.Train, requests.Tune, requests.Score)
    }
    assert kinds == set(requests.KINDS)
