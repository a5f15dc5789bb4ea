"""The addresses of clients behind trusted proxies, and whether these use TLS.

Everybody can send `X-Forwarded-For`, so it counts only if a trusted proxy sent it, and only as far as trusted proxies
have added to it. uvicorn has a middleware for this; it is not used since it also takes malformed entries for addresses,
does not compare IPv4 addresses that are mapped to IPv6, and, in the oldest version that is allowed, knows no ports.
"""

import ipaddress
import re
from collections.abc import Iterable, Iterator
from typing import TypeAlias

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_ENTRY = re.compile(r"(?:\[(?P<bracketed>[0-9a-fA-F:.]+)\]|(?P<ipv4>[0-9.]+))(?::(?P<port>[0-9]{1,5}))?")
"""An entry with brackets or a port; an IPv6 address alone has neither."""

_PORT_MAX = 65535

_PROXIES_MAX = 32
"""How many proxies may be in a row: a header of trusted addresses alone takes no more time than this."""


class TrustedProxies:
    """Replaces the address of a trusted proxy by that of its client, and the scheme if the client uses TLS.

    Args:
        app: The application that answers.
        networks: The networks of the proxies.
    """

    def __init__(self, app: ASGIApp, networks: Iterable[str]) -> None:
        self._app = app
        self._networks = tuple(map(ipaddress.ip_network, networks))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "http" and scope.get("client") is not None:
            peer = _plain(ipaddress.ip_address(scope["client"][0].partition("%")[0]))
            if self._is_trusted(peer):
                headers = Headers(scope=scope)
                lines = headers.getlist("x-forwarded-for")
                if lines:
                    found = self._client(peer, ",".join(lines))
                    if found is not None:
                        scope["client"] = found
                protocols = ",".join(headers.getlist("x-forwarded-proto"))
                if protocols.rpartition(",")[2].strip().lower() == "https":
                    scope["scheme"] = "https"
        await self._app(scope, receive, send)

    def _is_trusted(self, address: _Address) -> bool:
        return any(address in network for network in self._networks)

    def _client(self, peer: _Address, forwarded: str) -> tuple[str, int] | None:
        """Return the address and the port of the client; None if it is the peer.

        Args:
            peer: The trusted proxy that sent the header.
            forwarded: The entries, each added by the proxy that the next one is the address of.
        """
        reporter, found = peer, None
        for entry in _from_the_right(forwarded):
            read = _parsed(entry)
            if read is None:
                break
            address, port = read
            if address.is_loopback and not reporter.is_loopback:
                break  # the other host means itself: whoever it serves is not on this host
            reporter, found = address, (str(address), port)
            if not self._is_trusted(address):
                break
        return found


def _from_the_right(forwarded: str) -> Iterator[str]:
    """Return the last entries of a header, the last one first."""
    entries = forwarded.rsplit(",", _PROXIES_MAX)[-_PROXIES_MAX:]
    return (entry.strip(" \t") for entry in reversed(entries))


def _parsed(entry: str) -> tuple[_Address, int] | None:
    """Return the address and the port of an entry, 0 for no port; None if it is malformed."""
    match = _ENTRY.fullmatch(entry)
    host, port = (match["bracketed"] or match["ipv4"], int(match["port"] or 0)) if match else (entry, 0)
    if "%" in host or port > _PORT_MAX:
        return None
    try:
        if match and match["bracketed"]:
            return _plain(ipaddress.IPv6Address(host)), port
        return _plain(ipaddress.ip_address(host)), port
    except ValueError:
        return None


def _plain(address: _Address) -> _Address:
    """Return the IPv4 address of one that is mapped to IPv6; others as they are."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
