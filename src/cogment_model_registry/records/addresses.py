"""The texts that describe a service: its endpoint, its token, its properties. Settings and clients share them."""

import ipaddress
import re
import socket
from urllib.parse import urlsplit

ENDPOINT_FORM = "an endpoint of the form grpc://host:port, or grpcs://host:port for TLS"
"""What an endpoint may be, to end a sentence with "it must be"."""

_SCHEMES = ("grpc", "grpcs")
_HOST_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?"


def parse_host(text: str) -> str:
    """Return a host name or an IP address as it is.

    Raises:
        ValueError: It is neither.
    """
    if ":" in text:
        ipaddress.IPv6Address(text)  # raises a ValueError
    elif not re.fullmatch(rf"{_HOST_LABEL}(\.{_HOST_LABEL})*\.?", text):
        raise ValueError(text)
    return text


def is_unspecified(host: str) -> bool:
    """Return whether a host is an address that stands for every interface, in any of its spellings.

    Those are 0.0.0.0 and ::, and what the system takes for them, such as 00.0.0.0, 0 and ::ffff:0.0.0.0.
    """
    try:
        if ":" in host:
            address = ipaddress.IPv6Address(host)
            return (address.ipv4_mapped or address).is_unspecified
        return not any(socket.inet_aton(host))
    except (ValueError, OSError):
        return False  # a name


def is_loopback(host: str) -> bool:
    """Return whether a host is an address that only this host can reach, in the usual spelling."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False  # a name
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def network_of(host: str) -> str:
    """Return whose address a caller has: an IPv4 address, or the /64 network of an IPv6 address, or ``this host``.

    Within its /64 network, a host chooses its address.

    Raises:
        ValueError: It is no address.
    """
    # The scope of a link-local address, behind a percent sign that gRPC encodes, does not matter in its network.
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            return "this host" if address.is_loopback else str(ipaddress.IPv6Network((address, 64), strict=False))
        address = address.ipv4_mapped
    return "this host" if address.is_loopback else str(address)


def parse_endpoint(text: str) -> str:
    """Return an endpoint of the form ``grpc://host:port`` or ``grpcs://host:port`` as it is.

    Raises:
        ValueError: It has another form.
    """
    parts = urlsplit(text)
    # Reading `port` raises ValueError where it is not a number up to 65535.
    if parts.scheme not in _SCHEMES or not parts.hostname or not parts.port:
        raise ValueError(text)
    if parts.netloc != text.removeprefix(f"{parts.scheme}://"):
        raise ValueError(text)
    parse_host(parts.hostname)
    if parts.username is not None:
        raise ValueError(text)
    return text


def split_endpoint(text: str) -> tuple[str, bool]:
    """Return host and port of an endpoint, in gRPC's form, and whether it is over TLS.

    Raises:
        ValueError: It is not an endpoint.
    """
    scheme, _, address = parse_endpoint(text).partition("://")
    return address, scheme == "grpcs"


def endpoint_text(address: str, *, is_secure: bool) -> str:
    """Return the endpoint of a host and a port."""
    return f"{'grpcs' if is_secure else 'grpc'}://{address}"


def is_http(text: str) -> bool:
    """Return whether a text begins as an http or https address; `parse_http` says whether all of it is one."""
    return text.startswith(("http://", "https://"))


def parse_http(text: str) -> str:
    """Return an http or https address as it is.

    Raises:
        ValueError: It is none, or it has a user or a fragment.
    """
    parts = urlsplit(text)
    # Reading `port` raises ValueError where it is not a number up to 65535.
    is_address = is_http(text) and parts.hostname and parts.port != 0 and text.isascii() and text.isprintable()
    if not is_address or " " in text or "@" in parts.netloc or "#" in text:
        raise ValueError(text)
    parse_host(parts.hostname or "")
    return text


def parse_token(text: str) -> str:
    """Return a text that can travel as the value of a gRPC metadata entry, as it is.

    Raises:
        ValueError: It cannot.
    """
    if not text.isascii() or not text.isprintable() or text != text.strip():
        raise ValueError(text)
    return text


def parse_properties(text: str) -> dict[str, str]:
    """Return the properties in "name=value,name,name=value".

    White space around names and values is trimmed, an empty item is skipped; an empty name or a second ``=`` is an
    error.

    Raises:
        ValueError: It has one of these errors.
    """
    text.encode()  # a word with bytes that are not text is a UnicodeError, which is a ValueError
    properties: dict[str, str] = {}
    for item in text.split(","):
        if not item.strip():
            continue
        name, _, value = (part.strip() for part in item.partition("="))
        if not name or "=" in value:
            raise ValueError(text)
        properties[name] = value
    return properties
