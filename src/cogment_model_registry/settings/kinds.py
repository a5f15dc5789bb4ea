"""The values that settings may have: how a text becomes a value, which values are allowed, and how errors say so."""

import dataclasses
import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from cogment_model_registry.records.addresses import (
    ENDPOINT_FORM,
    is_unspecified,
    parse_endpoint,
    parse_host,
    parse_http,
    parse_properties,
    parse_token,
)
from cogment_model_registry.records.sizes import GIB, KIB, MIB, TIB
from cogment_model_registry.system.paths import expanded

LOG_LEVELS = ("off", "error", "warning", "info", "debug", "trace")
LOG_FORMATS = ("text", "json")
ANONYMOUS = ("auto", "everything", "read", "nothing")

ALL_INTERFACES = "*"
"""The `host` that stands for every interface, IPv4 and IPv6."""


def means_all_interfaces(host: str) -> bool:
    """Return whether a `host` stands for every interface, of one or both families: `*`, 0.0.0.0, :: and so on."""
    return host == ALL_INTERFACES or is_unspecified(host)


def is_local(host: str) -> bool:
    """Return whether only this machine reaches a `host`, as far as its text says: a loopback address, or localhost."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host.rstrip(".").lower() == "localhost"
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of value.

    Attributes:
        placeholder: What stands for the value in help texts.
        allowed: What the value may be, to end a sentence with "it must be".
        parse: Returns the value that a text stands for, or raises `ValueError`.
        check: Returns a value that a program gave, in its usual form, or raises `ValueError`.
    """

    placeholder: str
    allowed: str
    parse: Callable[[str], object]
    check: Callable[[object], object]


def _text_kind(placeholder: str, allowed: str, parse: Callable[[str], object]) -> Kind:
    """Return a kind whose values are texts, so that one rule serves texts and values."""

    def check(value: object) -> object:
        if not isinstance(value, str):
            raise ValueError(value)  # what `check` raises
        return parse(value)

    return Kind(placeholder, allowed, parse, check)


def _whole_number(text: str) -> int:
    # int() also takes signs, spaces, underscores and the digits of other scripts: none of them is meant here.
    if not re.fullmatch(r"[0-9]{1,19}", text):
        raise ValueError(text)
    return int(text)


def _check_integer(least: int, most: int) -> Callable[[object], int]:
    def check(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise ValueError(value)
        return value

    return check


def integer(least: int, most: int) -> Kind:
    """Return the kind of whole numbers in a range."""
    check = _check_integer(least, most)
    return Kind("N", f"a whole number from {least} to {most}", lambda text: check(_whole_number(text)), check)


_BINARY_UNITS = {"k": KIB, "m": MIB, "g": GIB, "t": TIB}
_DECIMAL_UNITS = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_BYTE_UNITS = {"": 1, "b": 1, **_DECIMAL_UNITS}
_BYTE_UNITS |= {letter + end: size for letter, size in _BINARY_UNITS.items() for end in ("", "ib")}
"""The units of sizes, in upper or lower case. A letter alone is binary, as systemd and container engines read it; only
kB, MB, GB and TB are decimal, as the SI defines them."""


def _number_of_bytes(text: str) -> int:
    match = re.fullmatch(r"([0-9]+) ?([a-zA-Z]*)", text)
    if not match or match[2].lower() not in _BYTE_UNITS:
        raise ValueError(text)
    return _whole_number(match[1]) * _BYTE_UNITS[match[2].lower()]


def byte_count(least: int, most: int) -> Kind:
    """Return the kind of numbers of bytes in a range, plain or with a unit."""
    check = _check_integer(least, most)
    units = "KiB or K, MiB or M, GiB or G, TiB or T; decimal: kB, MB, GB, TB"
    allowed = f"a number of bytes from {least} to {most}, plain or with a unit ({units})"
    return Kind("BYTES", allowed, lambda text: check(_number_of_bytes(text)), check)


def seconds(least: float, most: float) -> Kind:
    """Return the kind of numbers of seconds in a range, with or without a fraction."""
    return number(least, most, "SECONDS", " of seconds")


def number(least: float, most: float, placeholder: str = "NUMBER", of_what: str = "") -> Kind:
    """Return the kind of numbers in a range, with or without a fraction.

    Args:
        least: The least one.
        most: The largest one.
        placeholder: What stands for the value in help texts.
        of_what: Its unit, to follow "a number".
    """

    def check(value: object) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
            raise ValueError(value)
        return float(value)

    def parse(text: str) -> float:
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text):
            raise ValueError(text)
        return check(float(text))

    return Kind(placeholder, f"a number{of_what} from {least:g} to {most:g}", parse, check)


_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")


def _parse_switch(text: str) -> bool:
    if text.lower() not in _TRUE + _FALSE:
        raise ValueError(text)
    return text.lower() in _TRUE


def _check_switch(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(value)  # what `Kind.check` raises
    return value


def _parse_path(text: str) -> str:
    if not text or "\0" in text:
        raise ValueError(text)
    return expanded(text)


def _parse_log_level(text: str) -> str:
    """Return the level by name, or by the number that the original's `COGMENT_LOG_LEVEL=5` (debug) implies."""
    numbered = ("off", *LOG_LEVELS)
    if re.fullmatch(r"[0-6]", text):
        return numbered[int(text)]
    return _parse_choice(LOG_LEVELS)(text)


def _parse_choice(choices: tuple[str, ...]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in choices:
            raise ValueError(text)
        return text.lower()

    return parse


def _parse_interface(text: str) -> str:
    return text if text == ALL_INTERFACES else parse_host(text)


def _parse_reachable_host(text: str) -> str:
    if is_unspecified(text):
        raise ValueError(text)
    return parse_host(text)


def _check_properties(value: object) -> Mapping[str, str]:
    """Return properties that the text form can express, so that a program cannot set what nobody could type."""
    if not isinstance(value, Mapping):
        raise ValueError(value)  # what `Kind.check` raises
    if parse_properties(",".join(f"{name}={text}" for name, text in value.items())) != value:
        raise ValueError(value)
    return value


def optional(kind: Kind, none: object = "") -> Kind:
    """Return a kind that also takes the empty text, which stands for `none`."""
    return dataclasses.replace(
        kind,
        parse=lambda text: kind.parse(text) if text else none,
        check=lambda value: none if value == none else kind.check(value),
    )


AUTO = "auto"
"""The value that lets the server choose."""


def _parse_local_socket(text: str) -> str:
    """Return a path; empty for none."""
    if text in ("", *_FALSE):
        return ""
    return text if text == AUTO else _parse_path(text)


def _parse_issuer(text: str) -> str:
    if "?" in text:
        raise ValueError(text)
    return parse_http(text)


def _parse_source(text: str) -> str:
    """Return an http or https address, or a path."""
    return parse_http(text) if "://" in text else _parse_path(text)


_NAME_MAX_CHARACTERS = 255


def _parse_archive_url(text: str) -> str:
    """Return the address of an archive in an object store, without a slash at its end."""
    parts = urlsplit(text)
    path = parts.path.removeprefix("/").removesuffix("/")
    is_plain = text.isascii() and text.isprintable() and not parts.query and not parts.fragment and "?" not in text
    # A host has no user: credentials in an address end up in logs.
    has_place = bool(path) and not parts.netloc if parts.scheme == "file" else bool(re.fullmatch(_BUCKET, parts.netloc))
    if parts.scheme not in _STORES or not is_plain or not has_place or "#" in text or " " in text:
        raise ValueError(text)
    if any(segment in ("", ".", "..") for segment in path.split("/") if path):
        raise ValueError(text)
    return f"{parts.scheme}://{parts.netloc}{'/' + path if path else ''}"


def _parse_catalog_url(text: str) -> str:
    """Return the address of a database of PostgreSQL."""
    parts = urlsplit(text)
    is_plain = text.isascii() and text.isprintable() and "#" not in text and " " not in text
    # A password in an address ends up in lists of processes and in logs.
    has_password = parts.password is not None or re.search(r"[?&]password=", text)
    if parts.scheme not in ("postgresql", "postgres") or "://" not in text or not is_plain or has_password:
        raise ValueError(text)
    return text


def _parse_name(text: str) -> str:
    if not text.isprintable() or text != text.strip() or not 0 < len(text) <= _NAME_MAX_CHARACTERS:
        raise ValueError(text)
    return text


_STORES = ("s3", "gs", "az", "file")
_BUCKET = r"[A-Za-z0-9][A-Za-z0-9._-]*"


def _parse_hosts(text: str) -> tuple[str, ...]:
    """Return names of hosts, or `ALL_INTERFACES` alone."""
    names = tuple(name.strip() for name in text.split(",")) if text else ()
    return names if names == (ALL_INTERFACES,) else tuple(dict.fromkeys(parse_host(name).lower() for name in names))


def _check_hosts(value: object) -> tuple[str, ...]:
    if not isinstance(value, tuple) or not all(isinstance(name, str) for name in value):
        raise ValueError(value)  # what `Kind.check` raises
    return _parse_hosts(",".join(value))


def _parse_network(text: str) -> str:
    """Return an address or a network of IPv4 or IPv6, in the usual form of a network.

    An address that is mapped to IPv6 is that of IPv4, and so are networks of them.
    """
    if "%" in text:
        raise ValueError(text)  # the scope of a link-local address
    network = ipaddress.ip_network(text)
    mapped = network.network_address.ipv4_mapped if isinstance(network, ipaddress.IPv6Network) else None
    if mapped is not None:
        network = ipaddress.IPv4Network((mapped, network.prefixlen - _MAPPED_PREFIX_BITS))
    return str(network)


_MAPPED_PREFIX_BITS = 96
"""How many bits addresses of IPv4 have before them when they are mapped to IPv6."""


def _parse_networks(text: str) -> tuple[str, ...]:
    """Return networks, each once."""
    return tuple(dict.fromkeys(_parse_network(each.strip()) for each in text.split(","))) if text else ()


def _check_networks(value: object) -> tuple[str, ...]:
    if not isinstance(value, tuple) or not all(isinstance(each, str) for each in value):
        raise ValueError(value)  # what `Kind.check` raises
    return _parse_networks(",".join(value))


ARCHIVE_URL = _text_kind(
    "URL",
    "s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or file:///path, without credentials or a query",
    _parse_archive_url,
)
CATALOG_URL = _text_kind("URL", "postgresql://user@host:port/database, without a password", _parse_catalog_url)
ISSUER = _text_kind("ADDRESS", "an http or https address, without a user, a query or a fragment", _parse_issuer)
KEYS = _text_kind("SOURCE", "a path, or an http or https address without a user or a fragment", _parse_source)
NAME = _text_kind("NAME", f"1 to {_NAME_MAX_CHARACTERS} printable characters without a space at an end", _parse_name)
TOKEN = _text_kind("TOKEN", "printable ASCII", parse_token)
PATH = _text_kind("PATH", "a path", _parse_path)
SWITCH = Kind("SWITCH", f"one of {', '.join(_TRUE + _FALSE)}", _parse_switch, _check_switch)
REACHABLE_HOST = _text_kind("HOST", "a host name, or the IP address of one interface", _parse_reachable_host)
INTERFACE = _text_kind("HOST", f"a host name, an IP address, or {ALL_INTERFACES} for all interfaces", _parse_interface)
ENDPOINT = _text_kind("ENDPOINT", ENDPOINT_FORM, parse_endpoint)
PROPERTIES = Kind(
    "PROPERTIES", 'properties of the form "name=value,name,name=value"', parse_properties, _check_properties
)
HOSTS = Kind("NAMES", f"host names separated by commas, or {ALL_INTERFACES} for any", _parse_hosts, _check_hosts)
NETWORKS = Kind(
    "NETWORKS",
    "IP addresses and networks separated by commas, such as 10.0.0.0/8,127.0.0.1,::1, without host bits in a network",
    _parse_networks,
    _check_networks,
)
LOCAL_SOCKET = _text_kind("PATH", f"a path, {AUTO}, or off", _parse_local_socket)
LOG_LEVEL = _text_kind("LEVEL", f"one of {', '.join(LOG_LEVELS)}, or a number from 0 to 6", _parse_log_level)
ANONYMOUS_ACCESS = _text_kind("ACCESS", f"one of {', '.join(ANONYMOUS)}", _parse_choice(ANONYMOUS))
LOG_FORMAT = _text_kind("FORMAT", f"one of {', '.join(LOG_FORMATS)}", _parse_choice(LOG_FORMATS))
