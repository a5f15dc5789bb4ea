"""TLS of channels: whom they trust, what they show, and why a connection over TLS failed.

gRPC says why in the details of a call, where it is this side that refuses. Where the other side does, gRPC knows only
that the connection ended; then a handshake of the standard library finds out.
"""

import os
import pkgutil
import re
import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic

import grpc

from cogment_model_registry.system.certificates import PemFile, new_context, read_authorities, read_pair

_ROOTS_VARIABLE = "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"
"""gRPC reads the authorities from this file, if it is set, when the caller gives none."""

_VERIFY_FAILED = re.compile(r"CERTIFICATE_VERIFY_FAILED(?:: ([^:]+))?")
_NAME_FAILED = re.compile(r"Hostname Verification Check failed|is not in peer certificate")
_NO_TLS = re.compile("WRONG_VERSION_NUMBER|HTTP_REQUEST|UNEXPECTED_MESSAGE|RECORD_LAYER_FAILURE|PACKET_LENGTH_TOO_LONG")

TLS_RECORDS = (b"\x15", b"\x16")
"""How answers to the first message of a client begin: the handshake is refused, or goes on (RFC 8446, 5.1)."""

_NAME_MISMATCH_CODES = (62, 64)
"""`X509_V_ERR_HOSTNAME_MISMATCH` and `X509_V_ERR_IP_ADDRESS_MISMATCH` of OpenSSL."""


@dataclass(frozen=True, slots=True)
class Tls:
    """What a channel trusts and shows.

    Attributes:
        authorities: The authorities of servers' certificates, in PEM; empty for those that gRPC knows.
        certificate: The certificate that the channel shows, in PEM; empty for none.
        key: Its key; never shown.
    """

    authorities: bytes = b""
    certificate: bytes = b""
    key: bytes = field(default=b"", repr=False)

    def credentials(self) -> grpc.ChannelCredentials:
        """Return the same for gRPC."""
        return grpc.ssl_channel_credentials(self.authorities or None, self.key or None, self.certificate or None)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The files of a `Tls`, which may be renewed at any time.

    Attributes:
        authorities: The file of the authorities; None for those that gRPC knows.
        pair: The files of a certificate and its key; None for none.
    """

    authorities: PemFile | None = None
    pair: tuple[PemFile, PemFile] | None = None

    def read(self) -> Tls:
        """Return what they have; blocks.

        Raises:
            CertificateError: One of them cannot be used.
        """
        authorities = read_authorities(self.authorities) if self.authorities else b""
        if self.pair is None:
            return Tls(authorities)
        pair = read_pair(*self.pair, new_context(ssl.PROTOCOL_TLS_CLIENT))
        return Tls(authorities, pair.certificate, pair.key)

    def context(self) -> ssl.SSLContext:
        """Return the same for the standard library; blocks.

        Raises:
            CertificateError: One of them cannot be used.
        """
        context = new_context(ssl.PROTOCOL_TLS_CLIENT)
        context.set_alpn_protocols(["h2"])
        authorities = read_authorities(self.authorities) if self.authorities else _grpc_roots()
        if authorities:
            context.load_verify_locations(cadata=authorities.decode("ascii", "ignore"))
        if self.pair is not None:
            read_pair(*self.pair, context)
        return context


def _grpc_roots() -> bytes:
    """Return the authorities that gRPC knows."""
    path = os.environ.get(_ROOTS_VARIABLE)
    with suppress(OSError):
        if path:
            with open(path, "rb") as file:
                return file.read()
        return pkgutil.get_data("grpc", "_cython/_credentials/roots.pem") or b""
    return b""


def explained(details: str, address: str) -> str:
    """Return what the details of a call that was never sent say of TLS, and what to do; empty if nothing.

    Args:
        details: As gRPC has them.
        address: Host and port.
    """
    if match := _VERIFY_FAILED.search(details):
        return _untrusted((match[1] or "").strip())
    if _NAME_FAILED.search(details):
        return _misnamed(address)
    if "SSL_ERROR_SSL" in details and _NO_TLS.search(details):
        return _NOT_ENCRYPTED
    return ""


def is_certain(details: str) -> bool:
    """Return whether the details of a call say exactly which part of TLS failed; those of grpcio 1.60 do not always."""
    match = _VERIFY_FAILED.search(details)
    return bool(match[1]) if match else bool(explained(details, ""))


def _untrusted(reason: str) -> str:
    if "expired" in reason:
        return "its certificate has expired; renew it there"
    if "not yet valid" in reason:
        return "its certificate is not valid yet; check the clocks of both machines"
    shown = f" ({reason})" if reason else ""
    return f"its certificate is not trusted{shown}; check that tls_ca names the file of the authority that issued it"


def _misnamed(address: str) -> str:
    host = address.rpartition(":")[0].strip("[]")
    return f"its certificate is not for {host}; use a name that it has, or add this one to its subjectAltName"


_NOT_ENCRYPTED = "it does not use TLS; use grpc:// in place of grpcs://, or serve there with tls_certificate"
_CERTIFICATE_REQUIRED = "it requires a client certificate; give tls_certificate and tls_key"


def client_hello() -> bytes:
    """Return what a client sends first. Nothing is agreed on with it, so it does not matter who the server is."""
    sent, context = ssl.MemoryBIO(), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.set_alpn_protocols(["h2"])
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), sent).do_handshake()
    return sent.read()


def handshake_failure(address: str, files: TlsFiles, seconds: float = 1.0) -> str:
    """Return why a server refuses connections over TLS, and what to do; empty if it does not, or nobody knows; blocks.

    Args:
        address: Host and port.
        files: What to trust, and what to show.
        seconds: How long to look at most.

    Raises:
        CertificateError: One of the files cannot be used.
    """
    context = files.context()
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    deadline = monotonic() + seconds
    try:
        with socket.create_connection((host, int(port)), seconds) as plain:
            plain.settimeout(max(deadline - monotonic(), 0.001))
            with context.wrap_socket(plain, server_hostname=host) as connection:
                # With TLS 1.3 a server looks at the client's certificate after the client believes to be connected.
                is_closed = not connection.recv(1)
    except ssl.SSLCertVerificationError as error:
        return _misnamed(address) if error.verify_code in _NAME_MISMATCH_CODES else _untrusted(error.verify_message)
    except ssl.SSLError as error:
        return _refused(error.reason or "", has_pair=files.pair is not None)
    except ConnectionResetError:
        is_closed = True
    except (OSError, ValueError):  # nothing is there, or it says nothing
        return ""
    if not is_closed:
        return ""
    return _CLOSED_WITH_PAIR if files.pair else _CLOSED


_CLOSED = "it closes connections over TLS; if it requires a client certificate, give tls_certificate and tls_key"
_CLOSED_WITH_PAIR = "it closes connections over TLS; check that it trusts the authority of tls_certificate"


def _refused(reason: str, *, has_pair: bool) -> str:
    """Return what an error of OpenSSL means, by the name that it has for that."""
    if _NO_TLS.search(reason):
        return _NOT_ENCRYPTED
    if "CERTIFICATE_REQUIRED" in reason or ("HANDSHAKE_FAILURE" in reason and not has_pair):
        return _CERTIFICATE_REQUIRED
    if "ALERT" in reason:
        alert = reason.rpartition("ALERT_")[2].lower().replace("_", " ")
        return f"it refuses the client certificate ({alert}); check that it trusts the authority of tls_certificate"
    return ""
