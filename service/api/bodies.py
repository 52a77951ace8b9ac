"""Bodies of requests: read once, by a route that takes one, no further and no longer than allowed."""

from __future__ import annotations

import math

import anyio
from starlette.types import Message, Receive

from service.api.problems import RefusedError

TOO_LARGE = "the request is larger than this service takes"
SEND_LESS = "send less; settings are small"


async def read_body(receive: Receive, headers: list[tuple[bytes, bytes]], max_bytes: int, timeout_s: float) -> Receive:
    """Read a request's body; what is returned gives it to the app in one piece.

    The work for each received byte is constant: a body that arrives byte by byte costs what a whole one does, but for
    the number of messages.

    Args:
        receive: of ASGI.
        headers: of the request.
        max_bytes: of the body.
        timeout_s: seconds for the whole body.

    Raises:
        RefusedError: 413 if it is too large, before it is read if it has a length; 408 if it takes too long.
    """
    if _stated_bytes(headers) > max_bytes:
        raise RefusedError(TOO_LARGE, 413, SEND_LESS)
    body, messages = bytearray(), list[Message]()
    with anyio.move_on_after(timeout_s) as limit:
        while True:
            message = await receive()
            if message["type"] != "http.request":  # the client is gone
                messages.append(message)
                break
            body += message.get("body", b"")
            if len(body) > max_bytes:
                raise RefusedError(TOO_LARGE, 413, SEND_LESS)
            if not message.get("more_body", False):
                messages.append({"type": "http.request", "body": bytes(body), "more_body": False})
                break
    if limit.cancelled_caught:
        raise RefusedError(f"the body took more than {timeout_s:g} s to arrive", 408, "send it again, faster")

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


def without_body(receive: Receive) -> Receive:
    """For a route that takes no body: an empty one, and then only the client's leaving."""
    first = True

    async def nothing() -> Message:
        nonlocal first
        if first:
            first = False
            return {"type": "http.request", "body": b"", "more_body": False}
        while (message := await receive())["type"] != "http.disconnect":
            continue
        return message

    return nothing


def _stated_bytes(headers: list[tuple[bytes, bytes]]) -> float:
    """What Content-Length says, in bytes; 0 without one."""
    stated = [value for name, value in headers if name == b"content-length"]
    if not stated:
        return 0
    if len(set(stated)) > 1 or not stated[0].isdigit():
        raise RefusedError("Content-Length is no number of bytes", 400, "send the body's length, or none")
    return int(stated[0]) if len(stated[0]) < 20 else math.inf
