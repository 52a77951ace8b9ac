"""Headers of every response: browsers must neither guess its type, nor store, run or frame it."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.types import Message

COMMON_POLICY = "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
DATA_POLICY = f"default-src 'none'; {COMMON_POLICY}"
"""Content-Security-Policy of responses that are not pages."""
REPORT_POLICY = f"default-src 'none'; img-src data: 'self'; style-src 'unsafe-inline'; {COMMON_POLICY}"
"""Content-Security-Policy of a scoring's report: it contains names from slides, so no script may run in it."""
DOCS_POLICY = (
    "default-src 'none'; connect-src 'self'; img-src 'self' data:; script-src 'self' 'unsafe-inline'; "
    f"style-src 'self' 'unsafe-inline'; {COMMON_POLICY}"
)
"""Content-Security-Policy of the API documentation, whose scripts come from this service."""
DEFAULTS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": DATA_POLICY,
}
HSTS = "max-age=31536000"
"""Value of Strict-Transport-Security, which is sent where this process itself terminates TLS."""


def add_headers(message: Message, *, tls: bool) -> None:
    """Add the default headers to a response; headers that its route has set stay as they are.

    Args:
        message: the ASGI message ``http.response.start``.
        tls: whether this process encrypts the connection.
    """
    headers = MutableHeaders(scope=message)
    for name, value in (DEFAULTS | ({"Strict-Transport-Security": HSTS} if tls else {})).items():
        headers.setdefault(name, value)
