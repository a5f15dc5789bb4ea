"""The upload of one version."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Self

from cogment_model_registry.errors import InvalidError, counted, quoted
from cogment_model_registry.records.lifecycle import Annotations
from cogment_model_registry.records.uploads import UploadRequest
from cogment_model_registry.records.versions import VersionHeader, VersionInfo
from cogment_model_registry.registry.contracts import Upload
from cogment_model_registry.system.sealed_memory import SealedMemory
from cogment_model_registry.system.tasks import run_to_end


@dataclass(eq=False, slots=True)
class UploadsUnderWay:
    """How many uploads are under way.

    Attributes:
        count: The number.
    """

    count: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """What completes a version once its bytes are there.

    Attributes:
        data_hash: Their hash.
        annotations: Its tags and metrics.
        request: What makes its upload repeatable.
    """

    data_hash: str
    annotations: Annotations | None
    request: UploadRequest | None


class VersionUpload:
    """A version being created: bytes, then one `commit`. To be entered, or closed.

    Args:
        header: The declaration of the version.
        upload: Takes the bytes.
        publish: Numbers the version, commits it, and makes it visible.
        under_way: Counts it while it is entered.

    Attributes:
        received_bytes: How many bytes were written.
    """

    def __init__(
        self,
        header: VersionHeader,
        upload: Upload,
        publish: Callable[[Completion], Coroutine[Any, Any, VersionInfo]],
        under_way: UploadsUnderWay,
    ) -> None:
        self._upload = upload
        self._publish = publish
        self._under_way = under_way
        self._header = header
        self._data_hash = ""
        self.received_bytes = 0

    async def __aenter__(self) -> Self:
        self._under_way.count += 1
        return self

    async def __aexit__(self, *_: object) -> None:
        self._under_way.count -= 1
        await self._upload.aclose()

    async def aclose(self) -> None:
        """Leave nothing behind, unless it was committed."""
        await self._upload.aclose()

    async def write(self, *parts: memoryview) -> None:
        """Write the next bytes, which must not change until the upload is over.

        Raises:
            InvalidError: They are more than were declared.
            TooLargeError: No space is left for them.
        """
        self._accept(sum(map(len, parts)))
        await self._upload.write(*parts)

    async def adopt(self, memory: SealedMemory, data_hash: str) -> None:
        """Take all bytes from memory that nobody can change, in place of `write`; see `Upload.adopt`.

        Raises:
            InvalidError: They are more than were declared.
            TooLargeError: No space is left for them.
        """
        self._accept(memory.size_bytes)
        await self._upload.adopt(memory, data_hash)

    def accept_all(self) -> None:
        """Count all bytes, which the upload has without a write."""
        self.received_bytes = self._header.data_size_bytes

    async def finish(self) -> None:
        """End the bytes, and check them. Done by `commit`, unless it was done before.

        Raises:
            InvalidError: Fewer bytes came than were declared, or others.
            TooLargeError: No space is left.
        """
        if self.received_bytes < self._header.data_size_bytes:
            raise self._mismatch()
        data_hash = await self._upload.finish()
        expected = self._header.data_hash
        if expected and expected != data_hash:
            message = f"data_hash is {quoted(expected)}, but the bytes received have {quoted(data_hash)}"
            raise InvalidError(message, model_id=self._header.model_id)
        self._data_hash = data_hash

    async def commit(self, annotations: Annotations | None = None, request: UploadRequest | None = None) -> VersionInfo:
        """Make the version visible, and durable before that when it is archived.

        Args:
            annotations: Its tags and metrics.
            request: What makes the upload repeatable.

        Raises:
            InvalidError: Fewer bytes came than were declared, or others.
            NotFoundError: The model was deleted in the meantime.
            TooLargeError: No space is left.
        """
        if not self._data_hash:
            await self.finish()
        return await run_to_end(self._publish(Completion(self._data_hash, annotations, request)))

    def _accept(self, size_bytes: int) -> None:
        """Count bytes, and refuse more than were declared."""
        self.received_bytes += size_bytes
        if self.received_bytes > self._header.data_size_bytes:
            raise self._mismatch("at least ")

    def _mismatch(self, bound: str = "") -> InvalidError:
        declared = counted(self._header.data_size_bytes, "byte")
        message = f"data_size is {declared}, but {bound}{self.received_bytes} were received"
        return InvalidError(message, model_id=self._header.model_id)
