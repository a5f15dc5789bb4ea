"""Keys that sign versions, made by chance, and what they sign with cryptography alone."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cogment_model_registry.records.signatures import (
    PublicKey,
    Signable,
    Signature,
    message_of,
    public_key_of_raw,
    signature_of,
)
from cogment_model_registry.records.versions import VersionHeader
from cogment_model_registry.testing.bytes import hash_of


@dataclass(frozen=True)
class KeyPair:
    """A private key with what belongs to it.

    Attributes:
        private: The key, of cryptography.
    """

    private: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)

    @property
    def private_pem(self) -> bytes:
        return self.private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    @property
    def public_pem(self) -> bytes:
        return self.public.pem.encode()

    @property
    def public(self) -> PublicKey:
        return public_key_of_raw(self.private.public_key().public_bytes_raw())

    def sign(self, version: Signable) -> Signature:
        return signature_of(self.public.key_id_bytes, self.private.sign(message_of(version)))

    def sign_data(self, data: bytes, model_id: str = "m", user_data: Mapping[str, str] | None = None) -> Signature:
        """Return the signature of a version with these bytes."""
        return self.sign(VersionHeader(model_id, False, len(data), hash_of(data), user_data=user_data or {}))
