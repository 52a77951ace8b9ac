"""Errors of the API; `problems` maps each to an HTTP status and an instruction.

MagnetError
|-- NoTokenError               the caller: send a valid token
|-- ForbiddenError             the caller, or an administrator: the token does not allow the request
|-- TooManyRequestsError       the caller: wait, then send fewer requests
|-- RefusedError               the caller: the request is malformed, too large, too slow or sent to another host
|-- LoginError                 the user: log in again
|-- NotReadyError              the operator: start or repair the dispatcher; a retry can help
|-- ProviderUnavailableError   the operator of the identity provider; a retry can help
|-- MlflowUnavailableError     the operator of MLflow; a retry can help
`-- NotFoundError
    `-- HiddenError            the caller: the object belongs to another user
"""

from __future__ import annotations

from typing import Any

from service.errors import MagnetError, NotFoundError


class NoTokenError(MagnetError):
    """The request has no valid token. To act: the caller."""


class ForbiddenError(MagnetError):
    """The token does not allow this request. To act: the caller, or an administrator."""


class HiddenError(NotFoundError):
    """The object belongs to another user; the response equals that for a missing object. To act: the caller."""


class TooManyRequestsError(MagnetError):
    """A caller sends too many requests, or follows too many streams at once. To act: the caller, later."""


class RefusedError(MagnetError):
    """A request is refused before any route sees it. To act: the caller.

    Args:
        message: what was wrong.
        status: HTTP status of the response.
        to_do: what the caller should do.
    """

    def __init__(self, message: str, status: int = 400, to_do: str = "correct the request", **place: Any) -> None:
        super().__init__(message, **place)
        self.status, self.to_do = status, to_do


class NotReadyError(MagnetError):
    """No dispatcher is running, or it cannot work. To act: the service's operator."""


class LoginError(MagnetError):
    """The ID token is not valid for this service. To act: the user, by a new login."""


class ProviderUnavailableError(MagnetError):
    """The identity provider does not respond as specified. To act: its operator, or this service's operator."""


class MlflowUnavailableError(MagnetError):
    """MLflow does not respond, or refuses the service's token. To act: its operator."""
