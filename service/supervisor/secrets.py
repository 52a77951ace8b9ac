"""Secrets kept out of logs: values of the environment that are secret by their name, the contents of files that such
variables name, passwords in URLs, our tokens; also where they are written in base64 or escaped for a URL.
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
FILE_NAME = re.compile(r"(_FILE|_PATH|^GOOGLE_APPLICATION_CREDENTIALS)$", re.I)
"""Names of variables that name files; those of secrets also match `SECRET_NAME`, or come from `KNOWN_FILES`."""
KNOWN_FILES = {"AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials", "RAY_AUTH_TOKEN_PATH": "~/.ray/auth_token"}
"""Variables that name files of secrets, and where those lie if the variables are not set."""
URL_PASSWORD = re.compile(r"(?P<before>\b[a-z][a-z0-9+.-]*://[^\s:/@]*:)[^\s/@]+(?=@)", re.I)
OWN_TOKEN = re.compile(r"\bmagnet_[A-Za-z0-9_-]{20,}")
PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.S)
SECRET_LINE = re.compile(
    r"^\s*[\w.-]*(?:secret|token|passw|private|api_?key)[\w.-]*\s*[=:]\s*(?P<value>\S+)\s*$", re.I | re.M
)
"""A line of an INI file such as ~/.aws/credentials."""
SHORTEST = 6
"""Characters; a shorter value would mask ordinary words."""
BIGGEST_BYTES = 64 << 10
"""Of a file of secrets; a larger one holds something else."""
MASK = "***"


class Mask:
    """Replaces secrets in text.

    Args:
        environment: whose secret values are masked, and the secrets in the files that it names.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        values = {form for value in _secrets(environment) for form in _forms(value)}
        longest_first = sorted(values, key=len, reverse=True)
        self._values = re.compile("|".join(map(re.escape, longest_first))) if values else None
        self._longest = max((len(value.encode()) for value in values), default=0)

    def __call__(self, text: str) -> str:
        """The text without its secrets."""
        if self._values is not None:
            text = self._values.sub(MASK, text)
        text = PRIVATE_KEY.sub(MASK, text)
        return OWN_TOKEN.sub(f"magnet_{MASK}", URL_PASSWORD.sub(rf"\g<before>{MASK}", text))

    def cut(self, line: bytes, most: int) -> int:
        """Where a line can be cut without cutting a secret in two, which would show both halves.

        Args:
            line: longer than `most`.
            most: bytes of the first piece, at most.
        """
        text = line.decode("utf-8", "surrogateescape")
        found = [] if self._values is None else list(self._values.finditer(text))
        found += [*PRIVATE_KEY.finditer(text), *OWN_TOKEN.finditer(text), *URL_PASSWORD.finditer(text)]
        spans = [tuple(len(text[:k].encode("utf-8", "surrogateescape")) for k in match.span()) for match in found]
        cut = min(most, len(line) - self._longest)  # the rest of a secret may not have arrived yet
        while within := [begin for begin, end in spans if begin < cut < end]:
            cut = min(within)
        while cut > 1 and line[cut] & 0xC0 == 0x80:  # not within a character
            cut -= 1
        return cut if cut > 0 else most


class MaskingFilter(logging.Filter):
    """Masks secrets in a process's log, tracebacks included.

    Args:
        mask: of the secrets.
    """

    def __init__(self, mask: Mask) -> None:
        super().__init__()
        self._mask = mask

    def filter(self, record: logging.LogRecord) -> bool:
        """Mask a record; it is kept."""
        record.msg, record.args = self._mask(record.getMessage()), None
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = self._mask(record.exc_text)
        return True


def mask_logs(environment: Mapping[str, str]) -> None:
    """Mask the secrets of an environment in everything that this process logs, by whichever logger and handler."""
    masking, make = MaskingFilter(Mask(environment)), logging.getLogRecordFactory()

    def masked(*arguments: Any, **options: Any) -> logging.LogRecord:
        record = make(*arguments, **options)
        masking.filter(record)
        return record

    logging.setLogRecordFactory(masked)


def _secrets(environment: Mapping[str, str]) -> Iterator[str]:
    paths = {str(Path(environment.get(name) or default)) for name, default in KNOWN_FILES.items()}
    for name, value in environment.items():
        if FILE_NAME.search(name) and (SECRET_NAME.search(name) or name.upper().endswith("_FILE")):
            paths.add(value)
        elif SECRET_NAME.search(name) and len(value) >= SHORTEST:
            yield value
    for path in sorted(paths):
        yield from (secret for secret in _in_file(path) if len(secret) >= SHORTEST)


def _in_file(path: str) -> Iterator[str]:
    """Secrets of a file: values of JSON or INI with a secret's name, private keys, or the one word that it holds."""
    try:
        file = Path(path).expanduser()
        if not file.is_file() or file.stat().st_size > BIGGEST_BYTES:
            return
        text = file.read_text(errors="replace")
    except (OSError, RuntimeError, ValueError):
        return  # what this process cannot read, it cannot print
    if len(text.split()) == 1:
        yield text.strip()
        return
    try:
        yield from _in_json(json.loads(text))
    except (ValueError, RecursionError):
        yield from (match["value"] for match in SECRET_LINE.finditer(text))
    for key in PRIVATE_KEY.findall(text):
        yield from (line for line in key.splitlines()[1:-1] if len(line) > 20)


def _in_json(value: object, name: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _in_json(inner, str(key))
    elif isinstance(value, list):
        for inner in value:
            yield from _in_json(inner, name)
    elif isinstance(value, str) and SECRET_NAME.search(name):
        yield value
        yield from (line for line in value.splitlines() if len(line) > 20 and not line.startswith("-----"))


def _forms(secret: str) -> set[str]:
    """A secret as it is, in JSON, for a URL, and in base64 at each of the three places where it can begin there."""
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
