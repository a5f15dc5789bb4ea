"""The bytes of a version as they are received: hashed, and checked against the header."""

import hashlib
from collections.abc import Iterable

from cogment_model_registry.errors import InvalidError, counted, quoted
from cogment_model_registry.records.versions import VersionHeader, digest_text

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


class PayloadCheck:
    """Checks what arrives against what the header declared.

    Args:
        header: What was declared.
    """

    def __init__(self, header: VersionHeader) -> None:
        self._header = header
        self.received_bytes = 0

    def accept(self, data_bytes: int) -> None:
        """Count `data_bytes` more bytes.

        Raises:
            InvalidError: They are more than were declared.
        """
        self.received_bytes += data_bytes
        if self.received_bytes > self._header.data_size_bytes:
            raise self._mismatch("at least ")

    def accept_all(self) -> None:
        """Count all bytes that were declared: they are there already."""
        self.received_bytes = self._header.data_size_bytes

    def finish(self) -> None:
        """Check that everything arrived.

        Raises:
            InvalidError: Fewer bytes came than were declared.
        """
        if self.received_bytes < self._header.data_size_bytes:
            raise self._mismatch()

    def check_hash(self, data_hash: str) -> None:
        """Compare the hash of the bytes with the declared one, if one was declared.

        Raises:
            InvalidError: They differ.
        """
        expected = self._header.data_hash
        if expected and expected != data_hash:
            message = f"data_hash is {quoted(expected)}, but the bytes received have {quoted(data_hash)}"
            raise InvalidError(message, model_id=self._header.model_id)

    def _mismatch(self, bound: str = "") -> InvalidError:
        declared = counted(self._header.data_size_bytes, "byte")
        message = f"data_size is {declared}, but {bound}{self.received_bytes} were received"
        return InvalidError(message, model_id=self._header.model_id)
