"""The upload of one version."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Self

from cogment_model_registry.records.lifecycle import Annotations
from cogment_model_registry.records.payload import PayloadCheck
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
        self._check = PayloadCheck(header)
        self._data_hash = ""

    async def __aenter__(self) -> Self:
        self._under_way.count += 1
        return self

    async def __aexit__(self, *_: object) -> None:
        self._under_way.count -= 1
        await self._upload.aclose()

    async def aclose(self) -> None:
        """Leave nothing behind, unless it was committed."""
        await self._upload.aclose()

    @property
    def received_bytes(self) -> int:
        """How many bytes were written."""
        return self._check.received_bytes

    async def write(self, *parts: memoryview) -> None:
        """Write the next bytes, which must not change until the upload is over.

        Raises:
            InvalidError: They are more than were declared.
            TooLargeError: No space is left for them.
        """
        self._check.accept(len(parts[0]) if len(parts) == 1 else sum(map(len, parts)))
        await self._upload.write(*parts)

    async def adopt(self, memory: SealedMemory, data_hash: str) -> None:
        """Take all bytes from memory that nobody can change, in place of `write`; see `Upload.adopt`.

        Raises:
            InvalidError: They are more than were declared.
            TooLargeError: No space is left for them.
        """
        self._check.accept(memory.size_bytes)
        await self._upload.adopt(memory, data_hash)

    def accept_all(self) -> None:
        """Count all bytes, which the upload has without a write."""
        self._check.accept_all()

    async def finish(self) -> None:
        """End the bytes, and check them. Done by `commit`, unless it was done before.

        Raises:
            InvalidError: Fewer bytes came than were declared, or others.
            TooLargeError: No space is left.
        """
        self._check.finish()
        data_hash = await self._upload.finish()
        self._check.check_hash(data_hash)
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
