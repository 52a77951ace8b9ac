"""Masks secrets in logs.

Secrets are: values of environment variables with a secret's name, the contents of files that such variables name,
passwords in URLs, tokens of the service. They are also masked in base64, and escaped for JSON or for a URL.
"""

from __future__ import annotations

import base64
import json
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

SECRET_NAME = re.compile(r"SECRET|TOKEN|PASSW|CREDENTIAL|PRIVATE|API_?KEY|ACCOUNT_KEY|CONNECTION_STRING", re.I)
"""Names of variables and JSON keys whose values are secrets."""
FILE_NAME = re.compile(r"(_FILE|_PATH|^GOOGLE_APPLICATION_CREDENTIALS)$", re.I)
"""Names of variables whose values are paths of files."""
KNOWN_FILES = {"AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials", "RAY_AUTH_TOKEN_PATH": "~/.ray/auth_token"}
"""Variables with the path of a file of secrets, and its path if the variable is not set."""
URL_PASSWORD = re.compile(r"(?P<before>\b[a-z][a-z0-9+.-]*://[^\s:/@]*:)[^\s/@]+(?=@)", re.I)
"""A password in a URL."""
OWN_TOKEN = re.compile(r"\bmagnet_[A-Za-z0-9_-]{20,}")
"""A token of the service."""
PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.S)
SECRET_LINE = re.compile(
    r"^\s*[\w.-]*(?:secret|token|passw|private|api_?key)[\w.-]*\s*[=:]\s*(?P<value>\S+)\s*$", re.I | re.M
)
"""A line with a secret in an INI file such as ~/.aws/credentials."""
MIN_CHARS = 6
"""Length of the shortest secret in characters; a shorter one would mask ordinary words."""
MAX_FILE_BYTES = 64 << 10
"""Bound of a file of secrets in bytes; a larger file contains something else."""
MASK = "***"
"""What replaces a secret."""


class Mask:
    """Replaces secrets in text.

    Args:
        environment: variables with secrets, and with paths of files of secrets.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        values = {form for value in _secrets(environment) for form in _forms(value)}
        longest_first = sorted(values, key=len, reverse=True)  # a secret may contain another one
        self._values = re.compile("|".join(map(re.escape, longest_first))) if values else None
        self._longest = max((len(value.encode()) for value in values), default=0)

    def __call__(self, text: str) -> str:
        """Return the text with its secrets masked."""
        if self._values is not None:
            text = self._values.sub(MASK, text)
        text = PRIVATE_KEY.sub(MASK, text)
        return OWN_TOKEN.sub(f"magnet_{MASK}", URL_PASSWORD.sub(rf"\g<before>{MASK}", text))

    def cut(self, line: bytes, max_bytes: int) -> int:
        """Find a place to cut a line without cutting a secret in two, since neither half would be masked.

        Args:
            line: longer than `max_bytes`.
            max_bytes: bound of the first piece in bytes.

        Returns:
            Size of the first piece in bytes.
        """
        text = line.decode("utf-8", "surrogateescape")
        matches = [] if self._values is None else list(self._values.finditer(text))
        matches += [*PRIVATE_KEY.finditer(text), *OWN_TOKEN.finditer(text), *URL_PASSWORD.finditer(text)]
        spans = [tuple(len(text[:k].encode("utf-8", "surrogateescape")) for k in match.span()) for match in matches]
        cut = min(max_bytes, len(line) - self._longest)  # the rest of a secret may not have arrived yet
        while within := [begin for begin, end in spans if begin < cut < end]:
            cut = min(within)
        while cut > 1 and line[cut] & 0xC0 == 0x80:  # do not cut within a character of UTF-8
            cut -= 1
        return cut if cut > 0 else max_bytes


class MaskingFilter(logging.Filter):
    """Masks secrets in the log records of a process, including their tracebacks.

    Args:
        mask: replaces secrets.
    """

    def __init__(self, mask: Mask) -> None:
        super().__init__()
        self._mask = mask

    def filter(self, record: logging.LogRecord) -> bool:
        """Mask a record; return True, which keeps it."""
        record.msg, record.args = self._mask(record.getMessage()), None
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = self._mask(record.exc_text)
        return True


def mask_logs(environment: Mapping[str, str]) -> None:
    """Mask the secrets of an environment in every record that this process logs, with any logger and handler.

    Args:
        environment: variables with secrets, and with paths of files of secrets.
    """
    masking, make_record = MaskingFilter(Mask(environment)), logging.getLogRecordFactory()

    def make_masked_record(*arguments: Any, **options: Any) -> logging.LogRecord:
        record = make_record(*arguments, **options)
        masking.filter(record)
        return record

    logging.setLogRecordFactory(make_masked_record)


def _secrets(environment: Mapping[str, str]) -> Iterator[str]:
    """Yield the secrets of an environment and of the files that it names."""
    paths = {str(Path(environment.get(name) or default)) for name, default in KNOWN_FILES.items()}
    for name, value in environment.items():
        if FILE_NAME.search(name) and (SECRET_NAME.search(name) or name.upper().endswith("_FILE")):
            paths.add(value)
        elif SECRET_NAME.search(name) and len(value) >= MIN_CHARS:
            yield value
    for path in sorted(paths):
        yield from (secret for secret in _secrets_in_file(path) if len(secret) >= MIN_CHARS)


def _secrets_in_file(path: str) -> Iterator[str]:
    """Yield the secrets of a file: values of JSON or INI with a secret's name, private keys, or its only word."""
    try:
        file = Path(path).expanduser()
        if not file.is_file() or file.stat().st_size > MAX_FILE_BYTES:
            return
        text = file.read_text(errors="replace")
    except (OSError, RuntimeError, ValueError):
        return  # this process cannot print what it cannot read
    if len(text.split()) == 1:
        yield text.strip()
        return
    try:
        yield from _secrets_in_json(json.loads(text))
    except (ValueError, RecursionError):
        yield from (match["value"] for match in SECRET_LINE.finditer(text))
    for key in PRIVATE_KEY.findall(text):
        yield from (line for line in key.splitlines()[1:-1] if len(line) > 20)


def _secrets_in_json(value: object, name: str = "") -> Iterator[str]:
    """Yield the strings whose key has a secret's name."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _secrets_in_json(inner, str(key))
    elif isinstance(value, list):
        for inner in value:
            yield from _secrets_in_json(inner, name)
    elif isinstance(value, str) and SECRET_NAME.search(name):
        yield value
        # A private key of several lines may be printed line by line.
        yield from (line for line in value.splitlines() if len(line) > 20 and not line.startswith("-----"))


def _forms(secret: str) -> set[str]:
    """Return the forms in which a secret may be printed: as it is, in JSON, for a URL, in base64.

    Base64 encodes three bytes as four characters, so a secret within a longer text has three forms.
    """
    forms = {secret, json.dumps(secret)[1:-1]}
    forms |= {quote(secret, safe="", errors="replace"), quote(secret, errors="replace")}
    forms.add(quote_plus(secret, errors="replace"))
    data = secret.encode("utf-8", "surrogateescape")
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        for shift in range(3):
            text = encode(b"\0" * shift + data).decode().rstrip("=")
            begin, end = -(-8 * shift // 6), len(text) - (1 if (shift + len(data)) % 3 else 0)
            if end - begin >= 8:
                forms.add(text[begin:end])
    return forms
