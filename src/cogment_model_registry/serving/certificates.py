"""The certificate that a server shows, and the authorities of its clients: loaded, checked, and renewed while it runs.

Files are looked at by a timer, and not in handshakes, which run on threads of gRPC that must not wait for a disk. gRPC
asks for a renewed certificate before each handshake, and so connections that exist are not disturbed.
"""

import asyncio
import os
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Protocol

import grpc
import structlog

from cogment_model_registry.errors import StartError
from cogment_model_registry.settings import TlsSettings, check_tls, requires_client_certificate
from cogment_model_registry.system.certificates import (
    CertificateError,
    Pair,
    PemFile,
    new_context,
    read_authorities,
    read_pair,
    validity_seconds,
)
from cogment_model_registry.system.tasks import end, wait_at_most

_log = structlog.stdlib.get_logger(__name__)

LOOK_SECONDS = 1.0
"""How often the files are looked at. A file that cannot be used is refused at the second look that finds it so: it may
be in the middle of being written at the first one."""


_NOTICE_SECONDS, _NOTICE_PART = 14 * 86_400, 1 / 6
"""How long before its end a certificate is reported: two weeks, or a part of the time for which it is valid if that is
shorter. Programs that renew certificates do so with a third of this time left."""

_NOTICE_PAUSE_SECONDS = 86_400


@dataclass(frozen=True, slots=True, eq=False)
class _Loaded:
    """What was read from the files.

    Attributes:
        pair: The certificate and its key.
        authorities: The authorities of clients' certificates; empty if clients need none.
        configuration: The same for gRPC.
        context: The same for the standard library, which asks for the certificate of a client and takes none, too.
        begins_at: When the certificate begins to be valid, in seconds since the epoch.
        expires_at: When it expires.
    """

    pair: Pair
    authorities: bytes
    configuration: grpc.ServerCertificateConfiguration
    context: ssl.SSLContext
    begins_at: float
    expires_at: float

    @property
    def notice_at(self) -> float:
        """When its end is close enough to report it, in seconds since the epoch."""
        return self.expires_at - min(_NOTICE_SECONDS, _NOTICE_PART * (self.expires_at - self.begins_at))


class Certificates:
    """The certificate of a server, up to date with its files while `keep_current` runs.

    Args:
        settings: The files, of which there must be a certificate and a key.
        now: Seconds since the epoch.

    Attributes:
        requires_clients: Whether clients must show a certificate.
        on_renewed: Called when other files are in use.

    Raises:
        StartError: A file cannot be used.
    """

    def __init__(self, settings: TlsSettings, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self.on_renewed: set[Callable[[], None]] = set()
        self.requires_clients = requires_client_certificate(settings)
        self._certificate, self._key = pair_files(settings) or (PemFile("tls_certificate", ""), PemFile("tls_key", ""))
        self._client_ca = PemFile("tls_client_ca", settings.tls_client_ca)
        self._judged = self._doubtful = self._state()
        self._asked = asyncio.Event()
        self._expiry_reported: _Loaded | None = None
        self._notice_told_at: float | None = None
        try:
            self._loaded = self._read()
        except CertificateError as error:
            raise StartError(str(error)) from None
        self.tell_expiry()

    def credentials(self) -> grpc.ServerCredentials:
        """Return what one port of a gRPC server needs; each port takes its own."""
        taken = self._loaded

        def renewed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal taken
            if taken is self._loaded:
                return None
            taken = self._loaded
            return taken.configuration

        return grpc.dynamic_ssl_server_credentials(
            taken.configuration,
            renewed,  # type: ignore[arg-type] # gRPC takes None for "unchanged", which its stubs do not know
            require_client_authentication=self.requires_clients,
        )

    def context(self) -> ssl.SSLContext:
        """Return what the next connection of another server needs.

        If clients must show a certificate, it asks for one and also takes clients that show none; the server has to
        look at what they showed.
        """
        return self._loaded.context

    @property
    def expires_at(self) -> float:
        """When the certificate expires, in seconds since the epoch."""
        return self._loaded.expires_at

    def look_now(self) -> None:
        """Let `keep_current` read the files now, whether they seem to have changed or not."""
        self._asked.set()

    async def keep_current(self) -> None:
        """Take renewed files, until cancelled. Files that cannot be used are reported once, and change nothing."""
        while True:
            is_asked = True
            try:
                await wait_at_most(LOOK_SECONDS, self._asked.wait())
            except TimeoutError:
                is_asked = False
            self._asked.clear()
            try:
                renewed = await asyncio.to_thread(self._look, is_asked=is_asked)
            except CertificateError as error:
                _log.warning("renewed certificate refused; the previous one stays in use", reason=str(error))
                continue
            if renewed is not None:
                self._loaded = renewed
                _log.info("certificate renewed", certificate=self._certificate.path, expires=_day(renewed.expires_at))
                for notify in self.on_renewed:
                    notify()
            self.tell_expiry()

    def _look(self, *, is_asked: bool) -> _Loaded | None:
        """Return what the files have if that is something else now; blocks.

        Raises:
            CertificateError: They cannot be used, which was not reported yet, or somebody asked.
        """
        state = self._state()
        if state == self._judged and not is_asked:
            return None
        try:
            loaded = self._read()
        except CertificateError:
            is_doubtful = state != self._doubtful
            self._doubtful = state
            if is_doubtful and not is_asked:
                return None
            self._judged = state
            raise
        self._judged = self._doubtful = state
        is_same = (loaded.pair, loaded.authorities) == (self._loaded.pair, self._loaded.authorities)
        return None if is_same else loaded

    def _state(self) -> tuple[tuple[int, ...], ...]:
        """Return what changes when one of the files is written or replaced, also by a link on the way to it."""
        return tuple(_state_of(file.path) for file in (self._certificate, self._key, self._client_ca) if file.path)

    def _read(self) -> _Loaded:
        """Read and check the files; blocks.

        Raises:
            CertificateError: One of them cannot be used.
        """
        context = new_context(ssl.PROTOCOL_TLS_SERVER)
        pair = read_pair(self._certificate, self._key, context)
        try:
            begins_at, expires_at = validity_seconds(context, pair)
        except ssl.SSLError as error:
            reason = getattr(error, "verify_message", "") or error.reason or "unknown reason"
            advice = "request one for servers (serverAuth)"
            raise CertificateError(f"{self._certificate} is refused by clients: {reason}; {advice}") from None
        authorities = read_authorities(self._client_ca) if self.requires_clients else b""
        if authorities:
            context.load_verify_locations(cadata=authorities.decode("ascii"))
            context.verify_mode = ssl.CERT_OPTIONAL
        configuration = grpc.ssl_server_certificate_configuration(
            [(pair.key, pair.certificate)], root_certificates=authorities or None
        )
        return _Loaded(pair, authorities, configuration, context, begins_at, expires_at)

    def tell_expiry(self) -> None:
        """Warn once of a certificate that has expired, and daily of one that is about to."""
        loaded, now = self._loaded, self._now()
        if loaded.expires_at <= now:
            if self._expiry_reported is not loaded:
                self._expiry_reported = loaded
                _log.warning(
                    "certificate has expired: clients refuse it; renew it",
                    certificate=self._certificate.path,
                    expired=_day(loaded.expires_at),
                )
        elif loaded.notice_at > now:
            self._notice_told_at = None  # it was renewed
        elif self._notice_told_at is None or now - self._notice_told_at >= _NOTICE_PAUSE_SECONDS:
            self._notice_told_at = now
            _log.warning(
                "certificate expires soon; renew it",
                certificate=self._certificate.path,
                expires=_day(loaded.expires_at),
            )


def _state_of(path: str) -> tuple[int, ...]:
    try:
        status = os.stat(path)
    except OSError:
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")


def pair_files(settings: TlsSettings) -> tuple[PemFile, PemFile] | None:
    """Return the files of a server's certificate and key; None if it has none."""
    if not settings.tls_certificate:
        return None
    return PemFile("tls_certificate", settings.tls_certificate), PemFile("tls_key", settings.tls_key)


@asynccontextmanager
async def kept_certificates(settings: TlsSettings) -> AsyncIterator[Certificates | None]:
    """Return a context manager with the certificates of a server, renewed in it; with None if it does not encrypt.

    Raises:
        SettingError: A setting is missing that another one needs.
        StartError: A file cannot be used.
    """
    check_tls(settings)
    if not settings.tls_certificate:
        yield None
        return
    certificates = await asyncio.to_thread(Certificates, settings)
    renewing = asyncio.create_task(certificates.keep_current())
    try:
        yield certificates
    finally:
        await end(renewing)


class Connected(Protocol):
    """The part of gRPC's context of a call that knows the connection."""

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Return what is known of the other side."""


_NAMES = ("x509_common_name", "x509_subject_alternative_name")


def certificate_names(context: Connected) -> tuple[str, ...]:
    """Return the names in the certificate of the client that makes a call.

    gRPC has checked the certificate against the authorities of `tls_client_ca`.

    Args:
        context: gRPC's context of the call.

    Returns:
        The common name, and the alternative names (of hosts, URIs, addresses, of mail too), each once. None if the
        client showed no certificate, or if it is not connected over TLS.
    """
    known = context.auth_context()
    names = (value.decode("utf-8", "replace") for key in _NAMES for value in known.get(key, ()))
    return tuple(dict.fromkeys(name for name in names if name))
