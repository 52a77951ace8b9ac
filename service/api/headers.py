"""Headers that every answer has, so that browsers neither guess its type, nor keep it, nor run or frame it."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.types import Message

CLOSED = "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
NOTHING = f"default-src 'none'; {CLOSED}"
"""Content-Security-Policy of answers that are no pages."""
REPORT = f"default-src 'none'; img-src data: 'self'; style-src 'unsafe-inline'; {CLOSED}"
"""Of a scoring's report: it holds names of slides, and nothing in it may run."""
DOCS = (
    "default-src 'none'; connect-src 'self'; img-src 'self' data:; script-src 'self' 'unsafe-inline'; "
    f"style-src 'self' 'unsafe-inline'; {CLOSED}"
)
"""Of the API's documentation, whose scripts this service hands out itself."""
ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": NOTHING,
}
HSTS = "max-age=31536000"
"""Strict-Transport-Security, where this process itself speaks TLS."""


def add_headers(message: Message, *, tls: bool) -> None:
    """Add the headers to the start of an answer; those that its route has set stay.

    Args:
        message: of ASGI, ``http.response.start``.
        tls: whether the connection is encrypted by this process.
    """
    headers = MutableHeaders(scope=message)
    for name, value in (ALWAYS | ({"Strict-Transport-Security": HSTS} if tls else {})).items():
        headers.setdefault(name, value)
