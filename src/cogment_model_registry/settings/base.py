"""What all settings classes share: fields that are flags and environment variables, and where their values come from.

A flag beats its environment variable, which beats the default; an empty environment variable counts as unset, and so
does one that the platform set.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from cogment_model_registry.errors import SettingError
from cogment_model_registry.settings.kinds import (
    ALL_INTERFACES,
    INTERFACE,
    LOG_FORMAT,
    LOG_LEVEL,
    PATH,
    SWITCH,
    Kind,
    integer,
    optional,
)

if TYPE_CHECKING:
    from typing import Self  # from Python 3.11 on

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Setting:
    """The description of one field of a settings class.

    Attributes:
        name: The field's name, and the flag's.
        environment: The environment variable's name.
        kind: The values that it may have.
        help: A sentence or two about it.
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
        return self.kind.placeholder == SWITCH.placeholder

    def is_link(self, environment: Mapping[str, str]) -> bool:
        """Return whether its variable describes a service of Kubernetes or Docker, and is no value of this setting.

        Kubernetes does so for each Service, and Docker for each container of `--link`: for a service named
        "cogment-model-registry" they set `COGMENT_MODEL_REGISTRY_PORT` to ``tcp://10.0.0.1:9002``.
        """
        text = environment.get(self.environment, "")
        return self.environment.endswith(("_PORT", "_HOST")) and bool(re.match(r"(tcp|udp|sctp)://", text))

    def parse(self, text: str, source: str) -> object:
        """Return the value that `text` stands for.

        Args:
            text: The text received.
            source: The flag or the variable that it came from, for the message.

        Raises:
            SettingError: The value is not allowed.
        """
        try:
            return self.kind.parse(text)
        except ValueError:
            raise SettingError(f"{self.name} (from {source})", text, self.kind.allowed) from None

    def check(self, value: object) -> object:
        """Return a value that a program gave, in its usual form.

        Raises:
            SettingError: It is not allowed.
        """
        try:
            return self.kind.check(value)
        except ValueError:
            raise SettingError(self.name, str(value), self.kind.allowed) from None


def setting(default: _T, environment: str, kind: Kind, text: str, default_text: str = "") -> _T:
    """Return a field with a default and the parts of its `Setting`, except for the name."""
    shown = default_text or (f"{default:g}" if isinstance(default, float) else str(default))
    field: _T = dataclasses.field(default=default, metadata=_metadata(environment, kind, text, shown))
    return field


def setting_made_by(make: Callable[[], _T], environment: str, kind: Kind, text: str, default_text: str) -> _T:
    """Return a field whose default is computed for each object; see `setting`."""
    field: _T = dataclasses.field(default_factory=make, metadata=_metadata(environment, kind, text, default_text))
    return field


def _metadata(environment: str, kind: Kind, text: str, default_text: str) -> dict[str, object]:
    return {"environment": environment, "kind": kind, "help": text, "default_text": default_text}


def port_setting(default: int, environment: str) -> int:
    """Return the field of the port that a service serves on."""
    text = "TCP port to serve on; 0 takes a free port, which the log shows as port=N."
    return setting(default, environment, integer(0, 65535), text)


def host_setting(environment: str) -> str:
    """Return the field of the interface that a service serves on."""
    text = "Interface to serve on, by name or address."
    return setting(ALL_INTERFACES, environment, INTERFACE, text, "* (all interfaces, IPv4 and IPv6)")


def certificate_setting(environment: str) -> str:
    """Return the field of the certificate that a service shows."""
    text = "PEM file of the server's certificate and of those between it and its authority: the server then uses TLS."
    return setting("", environment, optional(PATH), text, "none: not encrypted")


def key_setting(environment: str) -> str:
    """Return the field of the key of the certificate."""
    text = "PEM file of the private key of `tls_certificate`, without a passphrase."
    return setting("", environment, optional(PATH), text, "none")


def client_authorities_setting(environment: str) -> str:
    """Return the field of the authorities of clients' certificates."""
    text = "PEM file of the authorities of clients' certificates: clients must then show a certificate of one of them."
    return setting("", environment, optional(PATH), text, "none: clients show no certificate")


def client_certificate_setting(environment: str) -> bool | None:
    """Return the field of whether clients must show a certificate."""
    text = "Whether clients must show a certificate of `tls_client_ca`; if not, they are not asked for one."
    return setting(None, environment, optional(SWITCH, None), text, "on if `tls_client_ca` is given")


def reflection_setting(environment: str) -> bool:
    """Return the field of whether a service answers reflection."""
    text = "Whether to serve gRPC reflection, which tools such as grpcurl need."
    return setting(False, environment, SWITCH, text, "off")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """The settings of every service. Each field is a flag and an environment variable.

    Raises:
        SettingError: A field has a value that is not allowed, whether it comes from a text or from a program.
    """

    log_level: str = setting(
        "info",
        "COGMENT_LOG_LEVEL",
        LOG_LEVEL,
        "Lowest level to log: off, error, warning, info, debug, trace (or 0 to 6: off, off, error, ...).",
    )
    log_file: str = setting(
        "",
        "COGMENT_LOG_FILE",
        optional(PATH),
        "Base name of the daily log files: x/cogment.log writes x/cogment_2026-11-22.log, and so on.",
        "none: logs go to standard output",
    )
    log_format: str = setting(
        "text",
        "COGMENT_LOG_FORMAT",
        LOG_FORMAT,
        "Format of the log: text for people, json for programs.",
    )

    def __post_init__(self) -> None:
        for each in all_settings(type(self)):
            object.__setattr__(self, each.name, each.check(getattr(self, each.name)))

    @classmethod
    def load(cls, flags: Mapping[str, str], environment: Mapping[str, str]) -> "Self":
        """Return the settings that flags and environment variables give.

        Args:
            flags: Text by setting name, for the flags that were given.
            environment: The environment variables.

        Raises:
            SettingError: One of them has a value that is not allowed.
        """
        values: dict[str, object] = {}
        for each in all_settings(cls):
            text = flags.get(each.name)
            source = f"--{each.name}"
            if text is None:
                text = None if each.is_link(environment) else environment.get(each.environment) or None
                source = each.environment
            if text is not None:
                values[each.name] = each.parse(text, source)
        return cls(**values)  # type: ignore[arg-type] # each kind parses to the type of its field


class TlsSettings(Protocol):
    """The settings of a service that can use TLS."""

    @property
    def tls_certificate(self) -> str:
        """The file of the certificate; empty for none, and then the service is not encrypted."""

    @property
    def tls_key(self) -> str:
        """The file of its key."""

    @property
    def tls_client_ca(self) -> str:
        """The file of the authorities of clients' certificates; empty for none."""

    @property
    def tls_require_client_certificate(self) -> bool | None:
        """Whether clients must show a certificate; None if that is so when there are authorities."""


def check_tls(settings: TlsSettings) -> None:
    """Check that the settings of TLS are complete.

    Raises:
        SettingError: One of them is missing that another one needs.
    """
    certificate, key, authorities = settings.tls_certificate, settings.tls_key, settings.tls_client_ca
    if certificate and not key:
        raise SettingError("tls_key", key, f"the PEM file of the key of tls_certificate {certificate}")
    if key and not certificate:
        raise SettingError("tls_certificate", certificate, f"the PEM file of the certificate of tls_key {key}")
    if authorities and not certificate:
        allowed = "unset without tls_certificate and tls_key, since clients show certificates over TLS alone"
        raise SettingError("tls_client_ca", authorities, allowed)
    if settings.tls_require_client_certificate and not authorities:
        allowed = "off unless tls_client_ca names the PEM file of the authorities of clients' certificates"
        raise SettingError("tls_require_client_certificate", "true", allowed)


def requires_client_certificate(settings: TlsSettings) -> bool:
    """Return whether clients must show a certificate."""
    return bool(settings.tls_client_ca) and settings.tls_require_client_certificate is not False


def all_settings(settings_class: type[ServiceSettings]) -> list[Setting]:
    """Return the description of each field of a settings class: its own ones first, in order."""
    fields = dataclasses.fields(settings_class)
    common = {field.name for field in dataclasses.fields(ServiceSettings)}
    ordered = sorted(fields, key=lambda field: field.name in common)
    return [Setting(name=field.name, **field.metadata) for field in ordered]
