"""The hash of the bytes of a version."""

import hashlib
from collections.abc import Iterable

from cogment_model_registry.records.versions import digest_text

Bytes = memoryview | bytes | bytearray
"""The types of pieces of bytes."""

INLINE_HASH_MAX_BYTES = 64 * 1024
"""Up to so many bytes are hashed in the caller's thread: handing them to another one costs about as much."""


class PayloadHash:
    """An incremental SHA-256, to be fed from one thread at a time.

    `hashlib` releases the interpreter's lock while it hashes more than 2,047 bytes, so feeding it from a thread lets
    the event loop go on.
    """

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()

    def update(self, parts: Iterable[Bytes]) -> None:
        """Hash the parts, in order."""
        for part in parts:
            self._sha256.update(part)

    def digest_text(self) -> str:
        """Return the hash of all parts so far, in standard base64 with padding."""
        return digest_text(self._sha256.digest())


def hash_of(parts: Iterable[Bytes]) -> str:
    """Return the hash of some parts, in order, in standard base64 with padding; blocks."""
    payload_hash = PayloadHash()
    payload_hash.update(parts)
    return payload_hash.digest_text()
