"""What a client trusts and shows over TLS: from arguments and the environment, up to date with its files."""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from cogment_model_registry.client.arguments import checked_path
from cogment_model_registry.client.endpoints import Direct, Location, Several
from cogment_model_registry.errors import InvalidError, SettingError
from cogment_model_registry.system.certificates import CertificateError, PemFile
from cogment_model_registry.system.paths import expanded
from cogment_model_registry.wire.tls import Tls, TlsFiles

CA_VARIABLE = "COGMENT_MODEL_REGISTRY_TLS_CA"

# The server has the variables ..._TLS_CERTIFICATE and ..._TLS_KEY, and may run in the same environment.
CERTIFICATE_VARIABLE = "COGMENT_MODEL_REGISTRY_CLIENT_CERTIFICATE"
KEY_VARIABLE = "COGMENT_MODEL_REGISTRY_CLIENT_KEY"

Path = str | os.PathLike[str]


@dataclass(slots=True)
class Encryption:
    """What a client trusts and shows over TLS.

    Attributes:
        files: The files.
        last: What they had when they could be used the last time.
    """

    files: TlsFiles
    last: Tls

    @property
    def is_wanted(self) -> bool:
        """Whether there are files, so that a registry without TLS is not what the user expects."""
        return self.files != TlsFiles()

    def current(self) -> Tls:
        """Return what the files have now; what they had before while they cannot be used; blocks."""
        with suppress(CertificateError):  # they may be in the middle of being renewed
            self.last = self.files.read()
        return self.last


def encryption_of(
    location: Location,
    tls_ca: Path | None = None,
    tls_certificate: Path | None = None,
    tls_key: Path | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Encryption:
    """Return what a client trusts and shows; arguments beat the environment, which counts for TLS alone.

    Args:
        location: Where the registry is.
        tls_ca: The file of the authorities of servers' certificates; None for those that gRPC knows.
        tls_certificate: The file of the certificate to show; None for none.
        tls_key: The file of its key.
        environment: The environment variables.

    Raises:
        SettingError: They are given for a registry without TLS, or a certificate without its key, or the reverse.
        InvalidError: One of them is no path, or its file cannot be used.
    """
    given = {"tls_ca": tls_ca, "tls_certificate": tls_certificate, "tls_key": tls_key}
    arguments = [name for name, path in given.items() if path is not None]
    places = location.places if isinstance(location, Several) else (location,)
    plain = [place for place in places if isinstance(place, Direct) and not place.is_secure]
    if plain and arguments:
        raise SettingError("endpoint", str(plain[0]), f"grpcs://{plain[0].address} where {arguments[0]} is given")
    if len(plain) == len(places):
        return Encryption(TlsFiles(), Tls())
    authorities = _file("tls_ca", tls_ca, CA_VARIABLE, environment)
    certificate = _file("tls_certificate", tls_certificate, CERTIFICATE_VARIABLE, environment)
    key = _file("tls_key", tls_key, KEY_VARIABLE, environment)
    if certificate and not key:
        raise SettingError("tls_key", "", f"the file of the key of {certificate}")
    if key and not certificate:
        raise SettingError("tls_certificate", "", f"the file of the certificate of {key}")
    files = TlsFiles(authorities, (certificate, key) if certificate and key else None)
    try:
        return Encryption(files, files.read())
    except CertificateError as error:
        raise InvalidError(str(error)) from None


def _file(name: str, path: Path | None, variable: str, environment: Mapping[str, str]) -> PemFile | None:
    """Return the file that an argument or a variable names; None for none, or an empty one."""
    if path is None:
        name, path = variable, environment.get(variable, "")
    text = checked_path(name, path)
    return PemFile(name, expanded(text)) if text else None
