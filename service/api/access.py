"""Who sends a request, and what the caller's token allows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from service.api.errors import ForbiddenError, HiddenError

TokenScope = Literal["read", "submit", "promote", "admin"]
RIGHTS: dict[str, int] = {"read": 0, "submit": 1, "promote": 2, "admin": 3}
"""Rank of each scope; a scope includes those of lower rank: read one's jobs; submit and cancel them; set aliases of
models; everything."""

CALLER_KEY = "magnet.caller"
"""Key of the ASGI scope under which the gate stores the caller."""
HIDDEN_KEY = "magnet.hidden"
"""Key of the ASGI scope that is true after a request for an object of another user."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """The sender of a request."""

    token_id: str
    """ID of the token that the request carries."""
    owner: str
    """User who owns the token."""
    scope: str
    """Scope of the token, a key of `RIGHTS`."""
    groups: frozenset[str] = frozenset()
    """Groups that a login named; the service's settings may add more."""
    expires_s: float | None = None
    """Time at which the token expires, in seconds since 1970; None: never."""
    address: str | None = None
    """IP address of the client."""

    def has_scope(self, scope: str) -> bool:
        """Return whether the token has this scope or a wider one."""
        return RIGHTS[self.scope] >= RIGHTS[scope]

    def require_scope(self, scope: str, what: str = "this request") -> None:
        """Refuse a caller whose token is too narrow.

        Args:
            scope: the scope that is needed.
            what: what needs the scope, for the message.

        Raises:
            ForbiddenError: the token has a narrower scope.
        """
        if not self.has_scope(scope):
            raise ForbiddenError(f"{what} needs the scope {scope}; the token has {self.scope}")

    def require_owner(self, owner: str, what: str) -> None:
        """Refuse access to objects of other users.

        Args:
            owner: user who owns the object.
            what: the object, for the message.

        Raises:
            HiddenError: the object belongs to another user, and the caller is not an administrator.
        """
        # The message equals that for a missing object: an ID must not reveal that another user's object exists.
        if owner != self.owner and not self.has_scope("admin"):
            raise HiddenError(f"no {what}")
