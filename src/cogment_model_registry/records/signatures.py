"""Signatures of versions: the bytes that are signed, and signatures and public keys as texts. Nothing here computes.

A signature is of Ed25519 (RFC 8032). What is signed is what the publisher chose, and what never changes: the model, the
hash and the size of the bytes, and `user_data`. The number, the time and the tier are the server's; tags, metrics and
aliases may be changed by others later.
"""

import base64
import binascii
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol

from cogment_model_registry.errors import InvalidError, counted

MESSAGE_PREFIX = b"cogment-model-registry version signature 1\n"
"""The beginning of each message: nothing signed for another purpose begins so. A new format gets a new number."""

VALUE_BYTES = 64
KEY_BYTES = 32
SIGNERS_MAX = 32
"""How many keys may sign the versions of a model: few enough to list them in each description of it."""

_DER_PREFIX = bytes.fromhex("302a300506032b6570032100")
"""The beginning of each Ed25519 key as a SubjectPublicKeyInfo in DER (RFC 8410, section 4); the key follows."""

_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----\s(.*?)-----END \1-----", re.DOTALL)
"""A block of a PEM file (RFC 7468)."""

_LINE_CHARACTERS = 64

_KEY_ID = re.compile("[0-9a-f]{64}")

# The points whose order divides 8, each with the most significant bit, which is the sign of x, cleared: 0 and -1 and 1
# with the encodings of the former that are not reduced, and the two of order 8. Anybody can sign for such a key.
_SMALL_ORDER = frozenset(
    bytes.fromhex(text)
    for text in (
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    )
)


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature of a version.

    Attributes:
        key_id: The SHA-256, in hexadecimal digits, of the public key as a SubjectPublicKeyInfo in DER.
        value: The 64 bytes of the signature, in standard base64 with padding.
    """

    key_id: str
    value: str

    def __str__(self) -> str:
        """Return both, with a colon between them."""
        return f"{self.key_id}:{self.value}"

    @property
    def value_bytes(self) -> bytes:
        """The 64 bytes of the signature."""
        return base64.b64decode(self.value)

    @property
    def key_id_bytes(self) -> bytes:
        """The 32 bytes of the SHA-256."""
        return bytes.fromhex(self.key_id)


@dataclass(frozen=True, slots=True)
class PublicKey:
    """The public key of a signer.

    Attributes:
        key_id: The SHA-256, in hexadecimal digits, of the key as a SubjectPublicKeyInfo in DER.
        pem: The key in PEM.
    """

    key_id: str
    pem: str

    @property
    def der(self) -> bytes:
        """The key as a SubjectPublicKeyInfo in DER."""
        return base64.b64decode("".join(self.pem.splitlines()[1:-1]))

    @property
    def key_id_bytes(self) -> bytes:
        """The 32 bytes of the SHA-256."""
        return bytes.fromhex(self.key_id)

    @property
    def raw(self) -> bytes:
        """The 32 bytes of the key itself."""
        return self.der[len(_DER_PREFIX) :]


class Signable(Protocol):
    """What is signed of a version, which its header and its record have."""

    @property
    def model_id(self) -> str:
        """The model."""

    @property
    def data_hash(self) -> str:
        """The SHA-256 of its bytes, in standard base64 with padding."""

    @property
    def data_size_bytes(self) -> int:
        """How many bytes it has."""

    @property
    def user_data(self) -> Mapping[str, str]:
        """The annotations of its creator."""


def message_of(version: Signable) -> bytes:
    """Return the bytes that are signed for a version.

    They are `MESSAGE_PREFIX`, then fields, each as its length in bytes in decimal digits, a colon, its bytes and a
    comma (a netstring, https://cr.yp.to/proto/netstrings.txt): the model's id; the SHA-256 of the bytes, in standard
    base64 with padding; how many bytes there are, in decimal digits; then the key and the value of each entry of
    `user_data`, in the order of the bytes of the keys. Texts are in UTF-8. So the fields can be read back from the
    message, and two versions that differ in any of them have different messages.
    """
    # The order of code points is that of the bytes in UTF-8.
    entries = (part for entry in sorted(version.user_data.items()) for part in entry)
    texts = (version.model_id, version.data_hash, str(version.data_size_bytes), *entries)
    return MESSAGE_PREFIX + b"".join(_netstring(text.encode()) for text in texts)


def _netstring(data: bytes) -> bytes:
    return b"%d:%b," % (len(data), data)


def signature_of(key_id: bytes, value: bytes) -> Signature:
    """Return a signature.

    Raises:
        InvalidError: The id of the key is not a SHA-256, or the value has another length than 64 bytes.
    """
    if len(key_id) != sha256().digest_size:
        raise InvalidError(f"the key_id of a signature has {counted(len(key_id), 'byte')}; it must have 32")
    if len(value) != VALUE_BYTES:
        raise InvalidError(f"the value of a signature has {counted(len(value), 'byte')}; it must have {VALUE_BYTES}")
    return Signature(key_id.hex(), base64.b64encode(value).decode())


def parse_signature(text: str) -> Signature | None:
    """Return the signature in a text that `str` made of one; None for a malformed text, which verifies nothing."""
    key_id, _, encoded = text.partition(":")
    try:
        value = base64.b64decode(encoded.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error):
        value = b""
    # Comparing with the canonical text also refuses stray bits in the last character.
    if _KEY_ID.fullmatch(key_id) and len(value) == VALUE_BYTES:
        signature = Signature(key_id, base64.b64encode(value).decode())
        if str(signature) == text:
            return signature
    return None


def public_key(der: bytes) -> PublicKey:
    """Return a public key.

    Args:
        der: The key as a SubjectPublicKeyInfo in DER.

    Raises:
        InvalidError: It is not an Ed25519 key, or one for which anybody can sign.
    """
    raw = der[len(_DER_PREFIX) :]
    if der[: len(_DER_PREFIX)] != _DER_PREFIX or len(raw) != KEY_BYTES:
        raise InvalidError("a public key is not an Ed25519 key; make one with `openssl genpkey -algorithm ed25519`")
    if raw[:-1] + bytes([raw[-1] & 0x7F]) in _SMALL_ORDER:
        raise InvalidError("a public key is a point of small order, for which anybody can sign")
    text = base64.b64encode(der).decode()
    lines = [text[start : start + _LINE_CHARACTERS] for start in range(0, len(text), _LINE_CHARACTERS)]
    pem = "\n".join(["-----BEGIN PUBLIC KEY-----", *lines, "-----END PUBLIC KEY-----", ""])
    return PublicKey(sha256(der).hexdigest(), pem)


def public_key_of_raw(raw: bytes) -> PublicKey:
    """Return the public key whose 32 bytes these are; see `public_key`."""
    return public_key(_DER_PREFIX + raw)


def parse_public_keys(pem: bytes) -> list[PublicKey]:
    """Return the public keys in a PEM file, which may have several; text around them is ignored.

    Raises:
        InvalidError: It has none, a private key, or a key that is not of Ed25519.
    """
    keys = []
    for label, content in _BLOCK.findall(pem):
        if label != b"PUBLIC KEY":
            what = "a private key" if label.endswith(b"PRIVATE KEY") else "something else"
            raise InvalidError(f"public keys are expected, and there is {what}; `openssl pkey -pubout` writes them")
        try:
            der = base64.b64decode(b"".join(content.split()), validate=True)
        except binascii.Error:
            der = b""
        keys.append(public_key(der))
    if not keys:
        raise InvalidError("there is no public key in PEM; `openssl pkey -pubout` writes one")
    return keys


def check_signers(signers: Iterable[PublicKey], model_id: str) -> None:
    """Refuse more keys than a model may have.

    Raises:
        InvalidError: They are.
    """
    count = len([*signers])
    if count > SIGNERS_MAX:
        raise InvalidError(f"a model may have {SIGNERS_MAX} keys of signers, not {count}", model_id=model_id)
