"""Request bodies: read once, only for a route that takes one, and within limits of size and time."""

from __future__ import annotations

import math

import anyio
from starlette.types import Message, Receive

from service.api.errors import RefusedError

TOO_LARGE = "the request is larger than this service accepts"
SEND_LESS = "send a smaller request; job settings need a few kilobytes"


async def read_body(receive: Receive, headers: list[tuple[bytes, bytes]], max_bytes: int, timeout_s: float) -> Receive:
    """Read a request's body, and return a `receive` that gives it to the application in one message.

    The work for each received byte is constant, so a body that arrives byte by byte costs no more than a whole one,
    apart from the number of messages.

    Args:
        receive: the ASGI channel of the request.
        headers: headers of the request.
        max_bytes: maximum size of the body in bytes.
        timeout_s: maximum seconds for the whole body.

    Raises:
        RefusedError: 413 if the body is too large (unread if its stated length is), 408 if it takes too long, 400 if
            the stated length is malformed.
    """
    if _stated_bytes(headers) > max_bytes:
        raise RefusedError(TOO_LARGE, 413, SEND_LESS)
    body, messages = bytearray(), list[Message]()
    with anyio.move_on_after(timeout_s) as limit:
        while True:
            message = await receive()
            if message["type"] != "http.request":  # the client has disconnected
                messages.append(message)
                break
            body += message.get("body", b"")
            if len(body) > max_bytes:
                raise RefusedError(TOO_LARGE, 413, SEND_LESS)
            if not message.get("more_body", False):
                messages.append({"type": "http.request", "body": bytes(body), "more_body": False})
                break
    if limit.cancelled_caught:
        raise RefusedError(
            f"the body took more than {timeout_s:g} s to arrive", 408, "send it again over a faster link"
        )

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


def skip_body(receive: Receive) -> Receive:
    """Return a `receive` for a route without a body: an empty body, then only the client's disconnect."""
    first = True

    async def receive_nothing() -> Message:
        nonlocal first
        if first:
            first = False
            return {"type": "http.request", "body": b"", "more_body": False}
        # A streaming response waits here for the disconnect; parts of an unwanted body must not end it.
        while (message := await receive())["type"] != "http.disconnect":
            continue
        return message

    return receive_nothing


def _stated_bytes(headers: list[tuple[bytes, bytes]]) -> float:
    """Return the value of Content-Length in bytes, 0 without the header. Raises `RefusedError`."""
    stated = [value for name, value in headers if name == b"content-length"]
    if not stated:
        return 0
    # Two different lengths let a proxy and this server disagree on where a request ends (request smuggling).
    if len(set(stated)) > 1 or not stated[0].isdigit():
        raise RefusedError("Content-Length is not a number of bytes", 400, "send the body's length, or no length")
    # Python refuses to parse a number of more than 4300 digits, and 20 digits already exceed every limit.
    return int(stated[0]) if len(stated[0]) < 20 else math.inf
