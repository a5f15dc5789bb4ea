"""Signing what is uploaded, and verifying what is retrieved: see `records.signatures` for what is signed.

Keys come as PEM, by the path of a file or as bytes, or as objects of the package cryptography, which is an extra. A
private key is in no message and in no representation.
"""

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias

from cogment_model_registry.client.calls import Calls
from cogment_model_registry.client.deadlines import Deadline
from cogment_model_registry.client.lifecycle_calls import LifecycleCalls
from cogment_model_registry.errors import (
    InvalidError,
    ModelRegistryError,
    NotFoundError,
    SignatureError,
    WrongServerError,
    quoted,
    shown,
)
from cogment_model_registry.records.signatures import (
    PublicKey,
    Signable,
    Signature,
    message_of,
    parse_public_keys,
    public_key_of_raw,
    signature_of,
)
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.system import ed25519
from cogment_model_registry.system.paths import expanded

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SigningKey: TypeAlias = "str | os.PathLike[str] | bytes | Ed25519PrivateKey | Signer"
"""A private key: the path of a PEM file, the PEM itself as bytes, the key as cryptography has it, or loaded before."""

TrustedKey: TypeAlias = "str | os.PathLike[str] | bytes | Ed25519PublicKey | PublicKey"
"""Public keys: the path of a PEM file with one or more, the PEM itself as bytes, or one as cryptography has it."""

TrustedKeys: TypeAlias = "TrustedKey | Iterable[TrustedKey]"

_FILE_MAX_BYTES = 1024 * 1024


class Signer:
    """Signs versions with one key.

    Args:
        key: The private key, of cryptography.
        public_key: Its public key.
    """

    def __init__(self, key: Any, public_key: PublicKey) -> None:
        self._key = key
        self._public_key = public_key

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: key {self._public_key.key_id}>"

    def sign(self, version: Signable) -> Signature:
        """Return the signature of a version whose hash is known."""
        return signature_of(self._public_key.key_id_bytes, self._key.sign(message_of(version)))


class Trust:
    """Verifies versions by the keys that somebody trusts.

    Args:
        keys: The keys.
    """

    def __init__(self, keys: Iterable[PublicKey]) -> None:
        self._keys: Mapping[str, PublicKey] = {key.key_id: key for key in keys}

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {', '.join(self._keys)}>"

    def check(self, info: VersionInfo, model_id: str) -> None:
        """Refuse a version that none of the keys has signed; its bytes are to be checked against its hash.

        Args:
            info: The version, as the server describes it.
            model_id: The model that was asked for.

        Raises:
            SignatureError: It has no signature, one by another key, or a wrong one.
        """
        reason = self._objection(info, model_id)
        if reason:
            what = f"version {info.number} of model {quoted(model_id)}"
            raise SignatureError(f"{what} {reason}", model_id=model_id, version_number=info.number)

    def _objection(self, info: VersionInfo, model_id: str) -> str:
        if info.model_id != model_id:
            return f"is not what the server sent, which is of model {quoted(info.model_id)}"
        if info.signature is None:
            return "has no signature"
        key = self._keys.get(info.signature.key_id)
        if key is None:
            return f"is signed by key {info.signature.key_id}, which is not trusted"
        if not ed25519.is_signed(key.raw, info.signature.value_bytes, message_of(info)):
            return f"has a wrong signature: key {key.key_id} did not sign this model, hash, size and user_data"
        return ""


async def verified(calls: Calls, info: VersionInfo, model_id: str, trust: Trust, deadline: Deadline) -> VersionInfo:
    """Return a version with its signature, which was checked.

    A record without one may be from a call of the original's service, which has no field for it: then it is looked up.

    Args:
        calls: Makes the call.
        info: The version.
        model_id: The model that was asked for.
        trust: The keys.
        deadline: When to give up.

    Raises:
        NotFoundError: The version is gone, or another one has its number.
        SignatureError: It has no signature, one by another key, or a wrong one; or the server keeps none.
    """
    if info.signature is None:
        described = await described_version(calls, model_id, info.number, deadline)
        if (described.data_hash, described.created_ns) != (info.data_hash, info.created_ns):
            raise NotFoundError.version(model_id, info.number)
        info = described
    trust.check(info, model_id)
    return info


async def described_version(calls: Calls, model_id: str, key: int | str, deadline: Deadline) -> VersionInfo:
    """Return a version, with its signature if it has one.

    Raises:
        NotFoundError: It does not exist.
        SignatureError: The server keeps no signatures.
    """
    try:
        return (await LifecycleCalls(calls, deadline).get_version(model_id, key)).info
    except ModelRegistryError as error:
        if isinstance(error.__cause__, WrongServerError):
            raise SignatureError(f"nothing can be verified: {error.message}", model_id=model_id) from error
        raise


def signer_of(key: SigningKey) -> Signer:
    """Return what signs with a private key.

    Raises:
        InvalidError: It is no Ed25519 key in PEM, it is encrypted, or cryptography is not installed.
        OSError: Its file cannot be read.
    """
    if isinstance(key, Signer):
        return key
    if not ed25519.is_available():
        raise InvalidError(f"signing needs cryptography, which is not installed: {ed25519.INSTALL}")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415 # an extra

    private = key if isinstance(key, Ed25519PrivateKey) else _loaded(*_pem(key, "sign"))
    if not isinstance(private, Ed25519PrivateKey):
        raise InvalidError("the key to sign with is not an Ed25519 key; see `openssl genpkey -algorithm ed25519`")
    return Signer(private, public_key_of_raw(private.public_key().public_bytes_raw()))


def _loaded(pem: bytes, where: str) -> object:
    """Return the private key in a PEM file."""
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415 # an extra
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415 # as above

    # Whatever the errors of the package say, it is not repeated: a key may be in it.
    problem = "has no private key in PEM; `openssl genpkey -algorithm ed25519` makes one"
    with suppress(ValueError, UnsupportedAlgorithm):
        try:
            return load_pem_private_key(pem, password=None)
        except TypeError:
            problem = (
                "has an encrypted private key: decrypt it with `openssl pkey`, or load it with cryptography, and give "
                "the key that it returns"
            )
    raise InvalidError(f"{where} {problem}")


def trust_of(keys: TrustedKeys) -> Trust:
    """Return what verifies by public keys.

    Raises:
        InvalidError: One is no Ed25519 key in PEM, there is none, or cryptography is not installed.
        OSError: A file cannot be read.
    """
    if not ed25519.is_available():
        raise InvalidError(f"verifying needs cryptography, which is not installed: {ed25519.INSTALL}")
    found = public_keys_of(keys)
    if not found:
        raise InvalidError("verify has no key, so no version could be verified")
    return Trust(found)


def public_keys_of(keys: TrustedKeys) -> list[PublicKey]:
    """Return public keys.

    Raises:
        InvalidError: One is no Ed25519 key in PEM.
        OSError: A file cannot be read.
    """
    is_one = isinstance(keys, str | bytes | os.PathLike | PublicKey) or hasattr(keys, "public_bytes_raw")
    listed: Any = [keys] if is_one else keys
    if not isinstance(listed, Iterable):
        raise InvalidError(f"a public key is of type {type(keys).__name__}; it must be a path, PEM as bytes, or a key")
    return [found for key in listed for found in _public_keys(key)]


def _public_keys(key: Any) -> list[PublicKey]:
    if isinstance(key, PublicKey):
        return [key]
    if not isinstance(key, str | bytes | os.PathLike) and hasattr(key, "public_bytes_raw"):
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415 # it is there

        if not isinstance(key, Ed25519PublicKey):
            raise InvalidError(f"a public key is of type {type(key).__name__}; it must be an Ed25519 key")
        return [public_key_of_raw(key.public_bytes_raw())]
    pem, where = _pem(key, "a public key")
    try:
        return parse_public_keys(pem)
    except InvalidError as error:
        raise InvalidError(f"{where}: {error.message}") from None


def _pem(key: Any, name: str) -> tuple[bytes, str]:
    """Return the PEM of a key, and where it comes from, for errors."""
    if isinstance(key, bytes):
        return key, "the given PEM"
    if not isinstance(key, str | os.PathLike):
        raise InvalidError(f"{name} is of type {type(key).__name__}; it must be a path, PEM as bytes, or a key")
    path = os.fsdecode(key)
    if "\n" in path or "-----BEGIN" in path or "\0" in path:
        raise InvalidError(f"{name} is a text that is not the path of a file; give PEM as bytes")
    with open(expanded(path), "rb") as file:
        data = file.read(_FILE_MAX_BYTES + 1)
    if len(data) > _FILE_MAX_BYTES:
        raise InvalidError(f"{shown(path)} has more than {_FILE_MAX_BYTES} bytes; keys take less")
    return data, str(shown(path))
