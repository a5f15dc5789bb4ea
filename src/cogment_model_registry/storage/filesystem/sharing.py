"""An upload whose bytes are those of another archived version: one file with two names.

Each version keeps the bytes when the other one is removed. They are hashed unless that was done since the file last
changed, so a damaged version is never spread.
"""

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from cogment_model_registry.records.payload import hash_of
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.registry.contracts import Upload
from cogment_model_registry.storage.filesystem.checks import CheckedData
from cogment_model_registry.storage.filesystem.directory import ArchiveDirectory, NewFile
from cogment_model_registry.storage.filesystem.files import Files
from cogment_model_registry.storage.filesystem.reading import fingerprint
from cogment_model_registry.system.tasks import run_to_end

_BLOCK_BYTES = 1024 * 1024


class SharedUpload(Upload):
    """A version that shares its bytes.

    Args:
        directory: The archive directory.
        checked: Whose bytes were checked already.
        run: Runs a blocking function on a thread of the archive.
        new: The second name, which is temporary.
        source: The version whose bytes they are.
    """

    def __init__(
        self,
        directory: ArchiveDirectory,
        checked: CheckedData,
        run: Callable[[Callable[[], object]], Coroutine[Any, Any, object]],
        new: NewFile,
        source: VersionInfo,
    ) -> None:
        self._directory = directory
        self._checked = checked
        self._run = run
        self._new = new
        self._source = source
        self._data_hash = ""
        self._open = True

    async def write(self, *parts: memoryview) -> None:
        raise RuntimeError("the upload has all its bytes")

    async def finish(self) -> str:
        await run_to_end(self._run(self._finish))
        return self._data_hash

    def _finish(self) -> None:
        files = self._directory.files
        found = fingerprint(files, self._new.file)
        self._data_hash = self._source.data_hash
        if not self._checked.has(self._source, found):
            self._data_hash = hash_of_file(files, self._new.file)
            again = fingerprint(files, self._new.file)
            if self._data_hash == self._source.data_hash and again == found and again.is_settled:
                self._checked.add(self._source, again)
        self._directory.writer.sync_file(self._new.file)  # a file that was put there by hand may not be durable

    async def prepare(self, info: VersionInfo) -> None:
        await run_to_end(self._run(partial(self._prepare, info)))

    def _prepare(self, info: VersionInfo) -> None:
        self._new = self._directory.prepare(self._new, info)

    async def commit(self, info: VersionInfo) -> None:
        await run_to_end(self._run(partial(self._commit, info)))

    def _commit(self, info: VersionInfo) -> None:
        self._new = self._directory.commit(self._new, info)

    async def aclose(self) -> None:
        if self._open:
            self._open = False
            await run_to_end(self._run(partial(self._directory.discard_upload, self._new)))


def hash_of_file(files: Files, file: int) -> str:
    """Return the hash of all bytes of an open file."""
    files.seek(file, 0)
    return hash_of(iter(partial(files.read, file, _BLOCK_BYTES), b""))
