"""The settings of the Directory.

Names, variables and defaults of the first ones are those of the original. The others are ours.
"""

from dataclasses import dataclass

from cogment_model_registry.settings.base import (
    ServiceSettings,
    certificate_setting,
    client_authorities_setting,
    client_certificate_setting,
    host_setting,
    key_setting,
    port_setting,
    reflection_setting,
    setting,
)
from cogment_model_registry.settings.kinds import PATH, SWITCH, integer, optional, seconds

_PREFIX = "COGMENT_DIRECTORY_"


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectorySettings(ServiceSettings):
    """The settings of the Directory. Every field is a flag and an environment variable."""

    port: int = port_setting(9005, _PREFIX + "PORT")
    host: str = host_setting(_PREFIX + "HOST")
    grpc_reflection: bool = reflection_setting(_PREFIX + "GRPC_REFLECTION")
    tls_certificate: str = certificate_setting(_PREFIX + "TLS_CERTIFICATE")
    tls_key: str = key_setting(_PREFIX + "TLS_KEY")
    tls_client_ca: str = client_authorities_setting(_PREFIX + "TLS_CLIENT_CA")
    tls_require_client_certificate: bool | None = client_certificate_setting(_PREFIX + "TLS_REQUIRE_CLIENT_CERTIFICATE")
    persistence_file: str = setting(
        ".cogment-directory-data",
        _PREFIX + "PERSISTENCE_FILE",
        optional(PATH),
        "File that keeps the registered services across restarts; empty for none.",
    )
    registration_lag: int = setting(
        0,
        _PREFIX + "REGISTRATION_LAG",
        integer(0, 3600),
        "How many seconds an inquiry may wait for a service that has not registered yet.",
    )
    load_balancing: bool = setting(
        False,
        _PREFIX + "LOAD_BALANCING",
        SWITCH,
        "Whether an inquiry returns only services whose load, from 0 to 255, is within 10 of the lowest.",
        "off",
    )
    check_seconds: float = setting(
        60.0,
        _PREFIX + "CHECK_SECONDS",
        seconds(0.1, 86_400),
        "How long to wait between two checks of a service.",
    )
    check_tls_ca: str = setting(
        "",
        _PREFIX + "CHECK_TLS_CA",
        optional(PATH),
        "PEM file of the authorities of the certificates of services that require TLS: their checks then ask them, as "
        "clients would; a service that asks for a certificate gets `tls_certificate`.",
        "none: such a service passes its checks if it speaks TLS",
    )
    grace_seconds: float = setting(
        5.0,
        _PREFIX + "GRACE_SECONDS",
        seconds(0, 86_400),
        "How long calls in progress may continue after the server was asked to stop.",
    )
