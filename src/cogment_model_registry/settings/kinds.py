"""What settings may be: how a text becomes a value, and what to say when it does not."""

import dataclasses
import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

LOG_LEVELS = ("off", "error", "warning", "info", "debug", "trace")
LOG_FORMATS = ("text", "json")

ALL_INTERFACES = "*"
"""The `host` that stands for every interface, IPv4 and IPv6."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a setting may be.

    Attributes:
        placeholder: What stands for the value in help texts.
        allowed: What the value may be, to end a sentence with "it must be".
        parse: Returns the value that a text stands for, or raises `ValueError`.
    """

    placeholder: str
    allowed: str
    parse: Callable[[str], object]


def _whole_number(text: str) -> int:
    # int() also takes signs, spaces, underscores and the digits of other scripts: none of them is meant here.
    if not re.fullmatch(r"[0-9]{1,19}", text):
        raise ValueError(text)
    return int(text)


def integer(least: int, most: int) -> Kind:
    """Return the kind of whole numbers in a range."""

    def parse(text: str) -> int:
        value = _whole_number(text)
        if not least <= value <= most:
            raise ValueError(text)
        return value

    return Kind("N", f"a whole number from {least} to {most}", parse)


_BYTE_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": KIB, "mib": MIB, "gib": GIB}


def byte_count(least: int, most: int) -> Kind:
    """Return the kind of numbers of bytes in a range, plain or with a unit."""

    def parse(text: str) -> int:
        match = re.fullmatch(r"([0-9]+) ?([a-zA-Z]*)", text)
        if not match or match[2].lower() not in _BYTE_UNITS:
            raise ValueError(text)
        value = _whole_number(match[1]) * _BYTE_UNITS[match[2].lower()]
        if not least <= value <= most:
            raise ValueError(text)
        return value

    allowed = f"a number of bytes from {least} to {most}, plain or with one of kB, MB, GB, KiB, MiB, GiB"
    return Kind("BYTES", allowed, parse)


def seconds(least: float, most: float) -> Kind:
    """Return the kind of numbers of seconds in a range, with or without a fraction."""

    def parse(text: str) -> float:
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text) or not least <= float(text) <= most:
            raise ValueError(text)
        return float(text)

    return Kind("SECONDS", f"a number of seconds from {least:g} to {most:g}", parse)


_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")


def _parse_switch(text: str) -> bool:
    if text.lower() not in _TRUE + _FALSE:
        raise ValueError(text)
    return text.lower() in _TRUE


def _parse_path(text: str) -> str:
    if not text or "\0" in text:
        raise ValueError(text)
    return text


def parse_token(text: str) -> str:
    """Return a text that can travel as the value of a gRPC metadata entry, as it is.

    Raises:
        ValueError: It cannot.
    """
    if not text.isascii() or not text.isprintable() or text != text.strip():
        raise ValueError(text)
    return text


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


_HOST_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?"


def _parse_host(text: str) -> str:
    if ":" in text:
        ipaddress.IPv6Address(text)  # raises a ValueError
    elif not re.fullmatch(rf"{_HOST_LABEL}(\.{_HOST_LABEL})*\.?", text):
        raise ValueError(text)
    return text


def _parse_interface(text: str) -> str:
    return text if text == ALL_INTERFACES else _parse_host(text)


def parse_endpoint(text: str) -> str:
    """Return an endpoint of the form ``grpc://host:port`` as it is.

    Raises:
        ValueError: It has another form.
    """
    parts = urlsplit(text)
    # Reading `port` raises ValueError where it is not a number up to 65535.
    if parts.scheme != "grpc" or not parts.hostname or not parts.port or parts.netloc != text.removeprefix("grpc://"):
        raise ValueError(text)
    _parse_host(parts.hostname)
    if parts.username is not None:
        raise ValueError(text)
    return text


def parse_properties(text: str) -> dict[str, str]:
    """Return the properties in "name=value,name,name=value".

    White space around names and values is trimmed, an empty item is skipped; an empty name or a second ``=`` is an
    error.

    Raises:
        ValueError: There is one.
    """
    properties: dict[str, str] = {}
    for item in text.split(","):
        if not item.strip():
            continue
        name, _, value = (part.strip() for part in item.partition("="))
        if not name or "=" in value:
            raise ValueError(text)
        properties[name] = value
    return properties


def optional(kind: Kind, none: object = "") -> Kind:
    """Return a kind that also takes the empty text, which stands for `none`."""
    return dataclasses.replace(kind, parse=lambda text: kind.parse(text) if text else none)


TOKEN = Kind("TOKEN", "printable ASCII", parse_token)
PATH = Kind("PATH", "a path", _parse_path)
SWITCH = Kind("SWITCH", f"one of {', '.join(_TRUE + _FALSE)}", _parse_switch)
HOST_NAME = Kind("HOST", "a host name or an IP address", _parse_host)
INTERFACE = Kind("HOST", f"a host name, an IP address, or {ALL_INTERFACES} for all interfaces", _parse_interface)
ENDPOINT = Kind("ENDPOINT", "an endpoint of the form grpc://host:port", parse_endpoint)
PROPERTIES = Kind("PROPERTIES", 'properties of the form "name=value,name,name=value"', parse_properties)
LOG_LEVEL = Kind("LEVEL", f"one of {', '.join(LOG_LEVELS)}, or a number from 0 to 6", _parse_log_level)
LOG_FORMAT = Kind("FORMAT", f"one of {', '.join(LOG_FORMATS)}", _parse_choice(LOG_FORMATS))
