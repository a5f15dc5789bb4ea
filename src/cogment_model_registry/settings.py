"""The settings of the server: each one's name, kind, default, environment variable and meaning, once.

The command line, its help, the environment and the table in the documentation derive from the fields of `Settings`.
A flag beats its environment variable, which beats the default; an empty environment variable counts as unset.

Names, variables and defaults of the documented settings are those of the original. The others are ours.
"""

import dataclasses
import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

from cogment_model_registry.errors import SettingError
from cogment_model_registry.machine import usable_memory_bytes

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


@dataclass(frozen=True, slots=True)
class Setting:
    """How one field of `Settings` is set and explained.

    Attributes:
        name: The field's name, and the flag's.
        environment: The environment variable's name.
        kind: What it may be.
        help: What it does, in a sentence or two.
        default_text: The default, for people.
    """

    name: str
    environment: str
    kind: Kind
    help: str
    default_text: str

    @property
    def is_switch(self) -> bool:
        """Whether it is on or off, so that its flag needs no value."""
        return self.kind is _SWITCH

    def parse(self, text: str, source: str) -> object:
        """Return the value that `text` stands for.

        Args:
            text: The text received.
            source: The flag or the variable that it came from, for the message.

        Raises:
            SettingError: It stands for nothing that is allowed.
        """
        try:
            return self.kind.parse(text)
        except ValueError:
            raise SettingError(f"{self.name} (from {source})", text, self.kind.allowed) from None


def _whole_number(text: str) -> int:
    # int() also takes signs, spaces, underscores and the digits of other scripts: none of them is meant here.
    if not re.fullmatch(r"[0-9]{1,19}", text):
        raise ValueError(text)
    return int(text)


def _integer(least: int, most: int, unit: str = "") -> Kind:
    def parse(text: str) -> int:
        value = _whole_number(text)
        if not least <= value <= most:
            raise ValueError(text)
        return value

    return Kind("N", f"a whole number{unit} from {least:,} to {most:,}".replace(",", "_"), parse)


_BYTE_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": KIB, "mib": MIB, "gib": GIB}


def _byte_count(least: int, most: int) -> Kind:
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


def _seconds(least: float, most: float) -> Kind:
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


def _parse_token(text: str) -> str:
    # It travels as the value of a gRPC metadata entry, which is printable ASCII.
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


def _parse_endpoint(text: str) -> str:
    parts = urlsplit(text)
    # Reading `port` raises ValueError where it is not a number up to 65535.
    if parts.scheme != "grpc" or not parts.hostname or not parts.port or parts.netloc != text.removeprefix("grpc://"):
        raise ValueError(text)
    _parse_host(parts.hostname)
    if parts.username is not None:
        raise ValueError(text)
    return text


def _parse_properties(text: str) -> dict[str, str]:
    """Return the properties in "name=value,name,name=value".

    White space around names and values is trimmed, an empty item is skipped; an empty name or a second ``=`` is an
    error.
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


def _optional(kind: Kind) -> Kind:
    """Return a kind that also takes the empty text, which stands for none."""
    return dataclasses.replace(kind, parse=lambda text: kind.parse(text) if text else "")


_TOKEN = Kind("TOKEN", "printable ASCII", _parse_token)
_PATH = Kind("PATH", "a path", _parse_path)
_SWITCH = Kind("SWITCH", f"one of {', '.join(_TRUE + _FALSE)}", _parse_switch)
_HOST_NAME = Kind("HOST", "a host name or an IP address", _parse_host)
_INTERFACE = Kind("HOST", f"a host name, an IP address, or {ALL_INTERFACES} for all interfaces", _parse_interface)
_ENDPOINT = Kind("ENDPOINT", "an endpoint of the form grpc://host:port", _parse_endpoint)
_PROPERTIES = Kind("PROPERTIES", 'properties of the form "name=value,name,name=value"', _parse_properties)
_LOG_LEVEL = Kind("LEVEL", f"one of {', '.join(LOG_LEVELS)}, or a number from 0 to 6", _parse_log_level)
_LOG_FORMAT = Kind("FORMAT", f"one of {', '.join(LOG_FORMATS)}", _parse_choice(LOG_FORMATS))

_REGISTRY = "COGMENT_MODEL_REGISTRY_"


def _documented(environment: str, kind: Kind, text: str, default_text: str = "") -> dict[str, object]:
    """Return the metadata of a field: everything of its `Setting` but the name."""
    return {"environment": environment, "kind": kind, "help": text, "default_text": default_text}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the server is told when it starts. Every field is a flag and an environment variable."""

    port: int = dataclasses.field(
        default=9002,
        metadata=_documented(
            _REGISTRY + "PORT",
            _integer(0, 65535),
            "TCP port to serve on. 0 takes a free one, which the log tells in a line with port=N.",
        ),
    )
    host: str = dataclasses.field(
        default=ALL_INTERFACES,
        metadata=_documented(
            _REGISTRY + "HOST",
            _INTERFACE,
            "Interface to serve on, by name or address.",
            "* (all interfaces, IPv4 and IPv6)",
        ),
    )
    grpc_reflection: bool = dataclasses.field(
        default=False,
        metadata=_documented(
            _REGISTRY + "GRPC_REFLECTION",
            _SWITCH,
            "Whether to answer gRPC reflection, which tools such as grpcurl need.",
            "off",
        ),
    )
    archive_dir: str = dataclasses.field(
        default=".cogment/model_registry",
        metadata=_documented(
            _REGISTRY + "ARCHIVE_DIR",
            _PATH,
            "Directory of the archived versions and of the models' metadata. Created when it is missing.",
        ),
    )
    cache_max_items: int = dataclasses.field(
        default=100,
        metadata=_documented(
            _REGISTRY + "VERSION_CACHE_MAX_ITEMS",
            _integer(1, 10**9),
            "How many transient versions to keep at most.",
        ),
    )
    cache_max_bytes: int = dataclasses.field(
        default_factory=lambda: usable_memory_bytes() // 2,
        metadata=_documented(
            _REGISTRY + "CACHE_MAX_BYTES",
            _byte_count(1, 2**60),
            "How much memory the bytes of transient versions may take, those being uploaded or read included.",
            "half of the memory that the process may use",
        ),
    )
    sent_version_chunk_size: int = dataclasses.field(
        default=2 * MIB,
        metadata=_documented(
            _REGISTRY + "SENT_MODEL_VERSION_DATA_CHUNK_SIZE",
            _byte_count(1, 256 * MIB),
            "Size, in bytes, of the largest chunk of a version's data that is sent.",
        ),
    )
    log_level: str = dataclasses.field(
        default="info",
        metadata=_documented(
            "COGMENT_LOG_LEVEL",
            _LOG_LEVEL,
            "Least level that is logged: off, error, warning, info, debug, trace (or 0 to 6: off, off, error, ...).",
        ),
    )
    log_file: str = dataclasses.field(
        default="",
        metadata=_documented(
            "COGMENT_LOG_FILE",
            _optional(_PATH),
            "Base name of the daily log files: x/cogment.log writes x/cogment_2026-11-22.log, and so on.",
            "none: logs go to standard output",
        ),
    )
    log_format: str = dataclasses.field(
        default="text",
        metadata=_documented(
            "COGMENT_LOG_FORMAT",
            _LOG_FORMAT,
            "How a line of the log is written: text for people, json for programs.",
        ),
    )
    directory_endpoint: str = dataclasses.field(
        default="",
        metadata=_documented(
            "COGMENT_DIRECTORY_ENDPOINT",
            _optional(_ENDPOINT),
            "Directory to register with, so that other services find this one.",
            "none: not registered",
        ),
    )
    directory_authentication_token: str = dataclasses.field(
        default="",
        metadata=_documented(
            "COGMENT_DIRECTORY_AUTHENTICATION_TOKEN",
            _TOKEN,
            "Token that the Directory records; whoever inquires must give the same.",
            "none",
        ),
    )
    directory_registration_host: str = dataclasses.field(
        default="",
        metadata=_documented(
            _REGISTRY + "DIRECTORY_REGISTRATION_HOST",
            _optional(_HOST_NAME),
            "Host to register with the Directory.",
            "the IP address that is found out",
        ),
    )
    directory_registration_properties: Mapping[str, str] = dataclasses.field(
        default_factory=dict,
        metadata=_documented(
            _REGISTRY + "DIRECTORY_REGISTRATION_PROPERTIES",
            _PROPERTIES,
            'Properties to register with the Directory, such as "Sim=20,hpp,mem=HIGH".',
            "none",
        ),
    )
    request_max_bytes: int = dataclasses.field(
        default=16 * MIB,
        metadata=_documented(
            _REGISTRY + "REQUEST_MAX_BYTES",
            _byte_count(64 * KIB, GIB),
            "Size of the largest request message that is taken.",
        ),
    )
    request_max_items: int = dataclasses.field(
        default=10_000,
        metadata=_documented(
            _REGISTRY + "REQUEST_MAX_ITEMS",
            _integer(1, 10**6),
            "How many model ids or version numbers one request may list at most.",
        ),
    )
    reply_max_bytes: int = dataclasses.field(
        default=4 * MIB,
        metadata=_documented(
            _REGISTRY + "REPLY_MAX_BYTES",
            _byte_count(KIB, GIB),
            "Size at which a page of a listing without a count ends. Many clients refuse messages over 4 MiB.",
        ),
    )
    model_id_max_bytes: int = dataclasses.field(
        default=128,
        metadata=_documented(
            _REGISTRY + "MODEL_ID_MAX_BYTES",
            # A file name has at most 255 bytes on the usual file systems; "-v4294967295.data" takes 17 of them.
            _integer(1, 238),
            "How many bytes of UTF-8 a model id may have at most.",
        ),
    )
    user_data_max_bytes: int = dataclasses.field(
        default=256 * KIB,
        metadata=_documented(
            _REGISTRY + "USER_DATA_MAX_BYTES",
            # Its metadata file must stay below what the archive reads back.
            _byte_count(0, MIB),
            "How many bytes the user_data of one model or version may have at most, keys and values together.",
        ),
    )
    upload_idle_seconds: float = dataclasses.field(
        default=60.0,
        metadata=_documented(
            _REGISTRY + "UPLOAD_IDLE_SECONDS",
            _seconds(0.01, 86_400),
            "How long an upload may send nothing before it ends with DEADLINE_EXCEEDED.",
        ),
    )

    grace_seconds: float = dataclasses.field(
        default=5.0,
        metadata=_documented(
            _REGISTRY + "GRACE_SECONDS",
            _seconds(0, 86_400),
            "How long transfers under way may go on when the server is told to stop.",
        ),
    )

    @classmethod
    def load(cls, flags: Mapping[str, str], environment: Mapping[str, str]) -> Self:
        """Return the settings that flags and environment variables give.

        Args:
            flags: Text by setting name, for the flags that were given.
            environment: The environment variables.

        Raises:
            SettingError: One of them has a value that is not allowed.
        """
        values: dict[str, object] = {}
        for setting in all_settings():
            text = flags.get(setting.name)
            source = f"--{setting.name}"
            if text is None:
                text = environment.get(setting.environment) or None
                source = setting.environment
            if text is not None:
                values[setting.name] = setting.parse(text, source)
        return cls(**values)  # type: ignore[arg-type] # each kind parses to the type of its field


def all_settings() -> list[Setting]:
    """Return how each field of `Settings` is set and explained, in order."""
    settings = []
    for field in dataclasses.fields(Settings):
        details = dict(field.metadata)
        if not details["default_text"]:
            details["default_text"] = f"{field.default:g}" if isinstance(field.default, float) else str(field.default)
        settings.append(Setting(name=field.name, **details))
    return settings
