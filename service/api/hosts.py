"""The Host header: which names a request may be sent to. A page that a browser runs cannot reach us by its own name
(DNS rebinding)."""

from __future__ import annotations

import ipaddress
import re

from service.api.problems import RefusedError
from service.settings.service import ServiceSettings

LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Names of this machine, always accepted."""
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::[0-9]{1,5})?")


class Hosts:
    """The names of a service.

    Args:
        settings: with `host` and `hosts`.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self._names = {_canonical(name.strip("[]")) for name in (*LOOPBACK, settings.host, *settings.hosts)}
        # A service on all interfaces is called by addresses that its settings do not know, such as a pod's by its
        # cluster's probes. An address cannot be rebound, only a name can.
        self._any_address = _canonical(settings.host) in ("0.0.0.0", "::")

    def check(self, headers: list[tuple[bytes, bytes]]) -> None:
        """Refuse a request that was sent to another name.

        Raises:
            RefusedError: 400 if there is no valid Host header, 421 if it names another host.
        """
        sent = [value for name, value in headers if name == b"host"]
        match = _HOST.fullmatch(sent[0].decode("latin-1")) if len(sent) == 1 else None
        if match is None:
            raise RefusedError("the request has no valid Host header", 400, "send one Host header, as HTTP/1.1 asks")
        name = _canonical(match[1] or match[2])
        if name not in self._names and not (self._any_address and _is_address(name)):
            raise RefusedError(
                f"this service is not called {name}", 421, "use its own name; an administrator adds names to `hosts`"
            )


def _canonical(name: str) -> str:
    """A name as it is compared: lower case, no final dot, addresses in their short form."""
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name.lower().rstrip(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
