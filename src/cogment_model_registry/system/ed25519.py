"""Ed25519 by the package cryptography, an extra that only those who sign, verify or demand signatures need."""

from cogment_model_registry.errors import PreconditionError

INSTALL = "pip install 'cogment-model-registry[signatures]'"
"""What installs it."""


def is_available() -> bool:
    """Return whether signatures can be made and checked."""
    try:
        import cryptography.hazmat.primitives.asymmetric.ed25519  # noqa: F401, PLC0415 # an extra
    except ImportError:
        return False
    return True


def is_signed(public_key: bytes, value: bytes, message: bytes) -> bool:
    """Return whether a signature of a message is that of a key.

    Args:
        public_key: The 32 bytes of the key.
        value: The 64 bytes of the signature.
        message: The message.

    Raises:
        PreconditionError: The package is not installed.
    """
    try:
        from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 # an extra
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415 # as above
    except ImportError as error:
        raise PreconditionError(f"checking signatures needs cryptography, which is not installed: {INSTALL}") from error
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(value, message)
    except (InvalidSignature, ValueError):  # ValueError: the bytes are no key
        return False
    return True
