"""Files of certificates and keys in PEM: read, checked, and described by what is wrong with which of them.

What is checked is what is used: a file is read before and after OpenSSL has read it, since programs that renew
certificates write them in place, or swap them, at any moment. Nothing here shows the bytes of a key.
"""

import base64
import binascii
import re
import ssl
from dataclasses import dataclass, field

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
_KEY = re.compile(rb"-----BEGIN ([A-Z ]*PRIVATE KEY)-----.*?-----END \1-----", re.DOTALL)
_BEGIN = b"-----BEGIN "

_MAX_BYTES = 4 * 2**20
"""More than all authorities of an operating system have; a larger file is no such file."""

_NO_CHECK_TIME = 0x200000
"""`X509_V_FLAG_NO_CHECK_TIME` of OpenSSL, which Python has no name for."""

_EDWARDS_KEYS = (bytes.fromhex("300506032b6570"), bytes.fromhex("300506032b6571"))
"""How the algorithm of an Ed25519 or Ed448 key begins in its encoding (RFC 8410)."""


class CertificateError(Exception):
    """A file cannot be used. The message has one line: which file, what is wrong with it, and what to do."""


@dataclass(frozen=True, slots=True)
class PemFile:
    """A file in PEM.

    Attributes:
        name: The setting or the argument that names it.
        path: Where it is.
    """

    name: str
    path: str

    def __str__(self) -> str:
        return f"{self.name} {self.path}"

    def read(self) -> bytes:
        """Return its bytes; blocks.

        Raises:
            CertificateError: It cannot be read.
        """
        try:
            with open(self.path, "rb") as file:
                data = file.read(_MAX_BYTES + 1)
        except OSError as error:
            advice = "name a file that exists and that this user may read"
            raise CertificateError(f"{self} cannot be read: {error.strerror}; {advice}") from None
        if len(data) > _MAX_BYTES:
            raise CertificateError(f"{self} has more than {_MAX_BYTES} bytes; name a file in PEM")
        return data


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate with its chain, and its private key, in PEM.

    Attributes:
        certificate: The certificate, followed by those between it and its authority.
        key: The key; never shown.
    """

    certificate: bytes
    key: bytes = field(repr=False)


def read_pair(certificate: PemFile, key: PemFile, context: ssl.SSLContext) -> Pair:
    """Return a certificate and its key, which may be in one file; blocks.

    Args:
        certificate: The file of the certificate and its chain.
        key: The file of the key.
        context: Shows the certificate from then on.

    Raises:
        CertificateError: One of them cannot be used, or they do not belong together.
    """
    certificate_data, key_data = certificate.read(), key.read()
    pair = Pair(_certificates(certificate, certificate_data), _private_key(key, key_data, certificate))
    _load(context, certificate, key)
    if (certificate.read(), key.read()) != (certificate_data, key_data):
        raise CertificateError(f"{certificate} or {key} changed while it was read; try again when both are complete")
    return pair


def read_authorities(file: PemFile) -> bytes:
    """Return the certificates in a file, in PEM; blocks.

    Raises:
        CertificateError: It has none, or something else.
    """
    return _certificates(file, file.read())


def new_context(protocol: int) -> ssl.SSLContext:
    """Return a context of the standard library with the versions of TLS that gRPC has too."""
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def validity_seconds(context: ssl.SSLContext, pair: Pair) -> tuple[float, float]:
    """Return when a certificate begins to be valid and when it expires, in seconds since the epoch.

    The standard library shows it of a peer alone, so one side shows the certificate to the other, in memory.

    Args:
        context: A context of a server that has loaded the pair.
        pair: The pair.

    Raises:
        ssl.SSLError: Clients would refuse the certificate, for another reason than time.
    """
    client = new_context(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VerifyFlags(ssl.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME)
    client.load_verify_locations(cadata=_first(pair.certificate))
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    here = client.wrap_bio(to_client, to_server)
    there = context.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(3):  # flights of TLS 1.3
        for side in (here, there):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    shown = here.getpeercert() or {}
    begins, expires = (float(ssl.cert_time_to_seconds(str(shown.get(name)))) for name in ("notBefore", "notAfter"))
    return begins, expires


def _first(certificates: bytes) -> str:
    match = _CERTIFICATE.search(certificates)
    return match[0].decode("ascii") if match else ""


def _certificates(file: PemFile, data: bytes) -> bytes:
    """Return the certificates of a file, without what is between them."""
    blocks = _CERTIFICATE.findall(data)
    if len(blocks) != data.count(b"-----BEGIN CERTIFICATE-----"):
        raise CertificateError(f"{file} ends in the middle of a certificate; write it again, as a whole")
    if not blocks:
        what = "has a private key and no certificate" if _KEY.search(data) else "has no certificate in PEM"
        advice = "name a file with -----BEGIN CERTIFICATE----- (`openssl x509 -inform DER` converts others)"
        raise CertificateError(f"{file} {what}; {advice}")
    for number, block in enumerate(blocks, 1):
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=block.decode("ascii"))
        except (ssl.SSLError, ValueError):
            raise CertificateError(f"{file} has a damaged certificate, the one with the number {number}") from None
    return b"\n".join(blocks) + b"\n"


def _private_key(file: PemFile, data: bytes, certificate: PemFile) -> bytes:
    """Return the key of a file, without what is around it."""
    match = _KEY.search(data)
    if match is None:
        if b"PRIVATE KEY-----" in data:
            raise CertificateError(f"{file} ends in the middle of a key; write it again, as a whole")
        what = "has a certificate and no private key" if _CERTIFICATE.search(data) else "has no private key in PEM"
        raise CertificateError(
            f"{file} {what}; name the file with the key of {certificate}, -----BEGIN PRIVATE KEY-----"
        )
    if match[1].startswith(b"ENCRYPTED") or b"Proc-Type: 4,ENCRYPTED" in match[0]:
        raise CertificateError(
            f"{file} is protected by a passphrase, for which nobody can be asked; write a key without one: "
            f"`openssl pkey -in {file.path} -out KEY`, readable by the user of this process alone"
        )
    if match[1] == b"PRIVATE KEY":
        try:
            der = base64.b64decode(b"".join(match[0].splitlines()[1:-1]))
        except binascii.Error:
            raise CertificateError(f"{file} has a damaged key; write it again, as a whole") from None
        if any(algorithm in der[:16] for algorithm in _EDWARDS_KEYS):
            raise CertificateError(
                f"{file} is an Ed25519 or Ed448 key, which gRPC cannot use; create an ECDSA or RSA key"
            )
    return match[0] + b"\n"


def _load(context: ssl.SSLContext, certificate: PemFile, key: PemFile) -> None:
    try:
        # A password is asked for on the terminal unless there is something that gives one.
        context.load_cert_chain(certificate.path, key.path, password=lambda: "")
    except ssl.SSLError as error:
        raise CertificateError(_refusal(certificate, key, error.reason or "")) from None
    except OSError as error:
        raise CertificateError(f"{certificate} and {key} cannot be read: {error.strerror}") from None


def _refusal(certificate: PemFile, key: PemFile, reason: str) -> str:
    """Return why OpenSSL refuses a certificate and a key, by the name that it has for that."""
    if "MISMATCH" in reason or reason == "NO_CERTIFICATE_ASSIGNED":
        return f"{key} is not the key of {certificate}; name the key with which {certificate.path} was requested"
    if "TOO_SMALL" in reason or "TOO_WEAK" in reason:
        weakness = reason.lower().replace("_", " ")
        return f"{certificate} is too weak ({weakness}); create an ECDSA key, or an RSA key of 2048 bits"
    return f"{key} has a damaged key; write it again, as a whole"
