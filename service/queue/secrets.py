"""Secrets kept out of logs: values of the environment that are secret by their name, passwords in URLs, our tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping

SECRET_NAME = re.compile(r"SECRET|TOKEN|PASSW|CREDENTIAL|PRIVATE|API_?KEY|ACCOUNT_KEY|CONNECTION_STRING", re.I)
URL_PASSWORD = re.compile(r"(?P<before>\b[a-z][a-z0-9+.-]*://[^\s:/@]*:)[^\s/@]+(?=@)", re.I)
OWN_TOKEN = re.compile(r"\bmagnet_[A-Za-z0-9_-]{20,}")
SHORTEST = 6
"""Characters; a shorter value would mask ordinary words."""
MASK = "***"


class Mask:
    """Replaces secrets in text.

    Args:
        environment: whose secret values are masked.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        values = {v for name, v in environment.items() if SECRET_NAME.search(name) and len(v) >= SHORTEST}
        longest_first = sorted(values, key=len, reverse=True)
        self._values = re.compile("|".join(map(re.escape, longest_first))) if values else None

    def __call__(self, text: str) -> str:
        """The text without its secrets."""
        if self._values is not None:
            text = self._values.sub(MASK, text)
        return OWN_TOKEN.sub(f"magnet_{MASK}", URL_PASSWORD.sub(rf"\g<before>{MASK}", text))
