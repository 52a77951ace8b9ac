"""The Host header: host names under which the service responds.

A check of the name prevents DNS rebinding: a web page whose own name was made to point to this machine cannot reach
the service under that name.
"""

from __future__ import annotations

import ipaddress
import re

from service.api.errors import RefusedError
from service.settings.service import ServiceSettings

LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Names of this machine, which are always accepted."""
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::[0-9]{1,5})?")


class Hosts:
    """Host names of a service.

    Args:
        settings: service settings; `host` and `hosts` are used.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self._names = {_normalise(name.strip("[]")) for name in (*LOOPBACK, settings.host, *settings.hosts)}
        # A service on all interfaces is called by addresses that its settings do not know, such as a pod's by its
        # cluster's probes. An address cannot be rebound, only a name can.
        self._any_address = _normalise(settings.host) in ("0.0.0.0", "::")

    def check(self, headers: list[tuple[bytes, bytes]]) -> None:
        """Refuse a request that was sent to another host name.

        Args:
            headers: headers of the request.

        Raises:
            RefusedError: 400 if there is no single valid Host header, 421 if it names another host.
        """
        values = [value for name, value in headers if name == b"host"]
        match = _HOST.fullmatch(values[0].decode("latin-1")) if len(values) == 1 else None
        if match is None:
            raise RefusedError(
                "the request has no valid Host header", 400, "send one Host header, as HTTP/1.1 requires"
            )
        name = _normalise(match[1] or match[2])
        if name not in self._names and not (self._any_address and _is_address(name)):
            raise RefusedError(
                f"this service does not have the host name {name}",
                421,
                "use a host name of the service; an administrator adds names to `hosts` in the settings",
            )


def _normalise(name: str) -> str:
    """Return a name in the form that is compared: lower case, no final dot, addresses in their short form."""
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
