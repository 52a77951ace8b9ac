"""Masking of secrets in logs, in every form in which they may be printed."""

from __future__ import annotations

import base64
import json
import logging
import os
from pathlib import Path
from urllib.parse import quote

import pytest

from service.supervisor import secrets
from service.supervisor.command_log import LONGEST_LINE, CommandLog
from service.supervisor.secrets import Mask, MaskingFilter

TOKEN = "s3cr+t/tok en=Val\u00fce"


@pytest.fixture(autouse=True)
def _no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.mark.parametrize("name", ["MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY"])
@pytest.mark.parametrize("before", ["", "a", "ab", "user:"])
def test_a_secret_is_masked_as_it_is_in_base64_at_any_offset_and_in_urls(name: str, before: str) -> None:
    mask = Mask({name: TOKEN})
    data = (before + TOKEN).encode()
    for text in (TOKEN, quote(TOKEN, safe=""), json.dumps(TOKEN)):
        assert mask(f"x {text} y").strip("x y").strip('"') == "***"
    for encoded in (base64.b64encode(data).decode(), base64.urlsafe_b64encode(data).decode()):
        masked = mask(f"Authorization: Basic {encoded}")
        assert "***" in masked
        # The characters that are left encode its neighbours as well.
        assert len(masked.partition("Basic ")[2]) <= len("***") + 2 * 8


def test_the_contents_of_files_that_the_environment_names_are_masked(tmp_path: Path) -> None:
    files = {
        "RAY_AUTH_TOKEN_PATH": "raytoken-0123456789\n",
        "PGPASS_FILE": "pgpass-0123456789",
        "AWS_SHARED_CREDENTIALS_FILE": "[default]\naws_secret_access_key = awssecret/01234\n",
        "GOOGLE_APPLICATION_CREDENTIALS": json.dumps(
            {
                "type": "service_account",
                "private_key": "-----BEGIN PRIVATE KEY-----\nMIIabcdefghijklmnopqrstuvw\n-----END",
            }
        ),
    }
    environment = {}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        environment[name] = str(tmp_path / name)
    mask = Mask(environment)
    for secret in ("raytoken-0123456789", "pgpass-0123456789", "awssecret/01234", "MIIabcdefghijklmnopqrstuvw"):
        assert mask(f"<{secret}>") == "<***>"
    assert mask("[default] service_account") == "[default] service_account"


def test_the_token_in_rays_default_file_is_masked(tmp_path: Path) -> None:
    (tmp_path / "home" / ".ray").mkdir(parents=True)
    (tmp_path / "home" / ".ray" / "auth_token").write_text("defaulttoken-0123")
    assert Mask({})("token defaulttoken-0123") == "token ***"


def test_files_that_cannot_be_read_or_are_large_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"x" * (secrets.MAX_FILE_BYTES + 1))
    for path in (str(tmp_path / "large"), str(tmp_path), "/no/such/file", "~nobody-here/x", "\0"):
        assert Mask({"SOME_TOKEN_FILE": path})("an ordinary line") == "an ordinary line"


@pytest.mark.parametrize("shift", range(-25, 6))
def test_a_secret_is_masked_wherever_a_long_line_or_the_pipe_is_cut(tmp_path: Path, shift: int) -> None:
    reading, writing = os.pipe()
    log = CommandLog(Mask({"MY_TOKEN": "0123456789abcdefghij"}))
    line = b"." * (LONGEST_LINE + shift) + b"0123456789abcdefghij" + b"." * LONGEST_LINE
    if os.fork() == 0:
        os.write(writing, line[:65536]) and os.write(writing, line[65536:])
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as stream:
        log.read(stream)
    os.wait()
    text = b"".join(bytes(part) for part in log._parts).decode()
    assert text.count("***") == 1
    assert set(text) == set(".*\n")
    assert text.count(".") == 2 * LONGEST_LINE + shift


def test_logs_of_the_services_processes_are_masked_with_tracebacks() -> None:
    record = logging.LogRecord("x", logging.ERROR, __file__, 1, "got %s", ("hunter2-hunter2",), None)
    try:
        raise ValueError("password hunter2-hunter2")
    except ValueError as error:
        record.exc_info = (ValueError, error, error.__traceback__)
    assert MaskingFilter(Mask({"DB_PASSWORD": "hunter2-hunter2"})).filter(record)
    text = logging.Formatter().format(record)
    assert "hunter2" not in text
    assert "got ***" in text
    assert "ValueError: password ***" in text
