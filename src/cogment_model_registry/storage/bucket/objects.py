"""The objects of an archive, by name: what the rest of this folder asks of an object store.

Objects are whole or not there. What `put` and `create` have written is seen by each later `get` and `list_names`, and
is durable; `probe` tries this at the start. Errors are those of `translation`.

A store on a local path is not durable by itself: the library renames files and syncs nothing, so this module does.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, TypeAlias, TypeVar

import obstore
import structlog
from obstore.store import LocalStore, ObjectStore

from cogment_model_registry.errors import TooLargeError, UnavailableError
from cogment_model_registry.storage.bucket.translation import ObjectExists, ObjectMissing, reason_of, translated

_T = TypeVar("_T")
_log = structlog.stdlib.get_logger(__name__)

_LIST_OBJECTS = 1000
_DELETE_OBJECTS = 500
_LAST_SECONDS = 5.0

SMALL_BYTES = 1024 * 1024
"""Requests that move at most so much count as small."""

Observe: TypeAlias = Callable[[str, float], None]
"""Called after each finished operation, with its name and the seconds that it took."""


@dataclass(frozen=True, slots=True)
class Found:
    """An object of a listing.

    Attributes:
        name: Its name.
        size_bytes: Its size.
    """

    name: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Written:
    """An object as it was read, so that it can be replaced if it is still the same.

    Attributes:
        data: Its bytes.
        tag: What tells the store whether it is the same.
    """

    data: bytes
    tag: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an object.

    Attributes:
        data: Its bytes.
        tag: What differs once the object was replaced; empty where the store does not say.
    """

    data: memoryview
    tag: str


class Objects:
    """The objects under a prefix of an object store.

    Args:
        store: The store, with the prefix.
        url: Its address, for people.
        observe: See `Observe`.
        small: The same store, for small requests, which may take less time; without it, they go to the first one.

    Attributes:
        url: Its address, for people.
        failure: Why the last write failed; empty when it succeeded.
    """

    def __init__(
        self,
        store: ObjectStore,
        url: str,
        observe: Observe = lambda _operation, _seconds: None,
        small: ObjectStore | None = None,
    ) -> None:
        self._store = store
        self._small = small or store
        self._observe = observe
        self._root = str(store.prefix) if isinstance(store, LocalStore) else ""
        self._under_way: set[asyncio.Future[Any]] = set()
        self.url = url
        self.failure = ""

    @property
    def is_local(self) -> bool:
        """Whether the store is a local path."""
        return bool(self._root)

    async def get(self, name: str) -> bytes:
        """Return an object.

        Raises:
            ObjectMissing: There is none.
            UnavailableError: The store failed.
        """
        with self._operation("get"):
            return await self._ask(_get(self._small, name))

    async def find(self, name: str) -> bytes | None:
        """Return an object; None if there is none.

        Raises:
            UnavailableError: The store failed.
        """
        try:
            return await self.get(name)
        except ObjectMissing:
            return None

    async def find_written(self, name: str) -> Written | None:
        """Return an object for `replace`; None if there is none.

        Raises:
            UnavailableError: The store failed.
        """
        try:
            with self._operation("get"):
                return await self._ask(_get_written(self._small, name))
        except ObjectMissing:
            return None

    async def get_range(self, name: str, start: int, size_bytes: int) -> Piece:
        """Return a part of an object; less where it ends before.

        Raises:
            ObjectMissing: There is none.
            UnavailableError: The store failed.
        """
        with self._operation("get_range"):
            return await self._ask(_get_range(self._store_for(size_bytes), name, start, size_bytes))

    async def put(self, name: str, data: bytes) -> None:
        """Write an object, in place of another one of that name.

        Raises:
            TooLargeError: No space is left.
            UnavailableError: The store failed: the object may be written nevertheless, even later.
        """
        with self._writing("put"):
            await self._ask(obstore.put_async(self._store_for(len(data)), name, data, use_multipart=False))
            await self._sync(name)

    async def create(self, name: str, data: bytes) -> None:
        """Write an object unless there is one of that name: of those who try at once, one succeeds.

        Raises:
            ObjectExists: There is one. It may be this one, if the store did not answer at first.
            TooLargeError: No space is left.
            UnavailableError: The store failed: the object may be written nevertheless, even later.
        """
        with self._writing("create"):
            await self._ask(obstore.put_async(self._small, name, data, mode="create", use_multipart=False))
            await self._sync(name)

    async def replace(self, name: str, data: bytes, written: Written) -> None:
        """Write an object in place of one that was read and is still the same: of those who try at once, one succeeds.

        On a local path, two who try within the same microseconds may both succeed: no file system has this operation.
        There, nothing is under way in a network either.

        Raises:
            ObjectExists: The object is another one now, or gone. It may be this one, if the store did not answer at
                first.
            TooLargeError: No space is left.
            UnavailableError: The store failed: the object may be written nevertheless, even later.
        """
        with self._writing("replace"):
            try:
                if self._root:
                    await asyncio.to_thread(self._replace_file, name, data, written.data)
                    return
                mode: Any = dict(written.tag)
                await self._ask(obstore.put_async(self._small, name, data, mode=mode, use_multipart=False))
            except FileNotFoundError as error:
                raise ObjectExists from error

    def _replace_file(self, name: str, data: bytes, before: bytes) -> None:
        """Write a file durably in place of one that has some bytes; blocks."""
        path = os.path.join(self._root, name)
        with open(path, "rb") as file:
            if file.read() != before:
                raise ObjectExists
        obstore.put(self._store, name, data, use_multipart=False)
        self._sync_file(name)

    async def copy(self, source: str, name: str) -> None:
        """Copy an object within the store, which does not send it to anyone.

        Raises:
            ObjectMissing: There is no source.
            UnavailableError: The store failed.
        """
        with self._writing("copy"):
            await self._ask(obstore.copy_async(self._store, source, name))
            await self._sync(name)

    async def delete(self, names: Sequence[str]) -> None:
        """Delete objects, of which some may be gone.

        Raises:
            UnavailableError: The store failed: some may be deleted.
        """
        for start in range(0, len(names), _DELETE_OBJECTS):
            batch = names[start : start + _DELETE_OBJECTS]
            with self._writing("delete"):
                if self._root:
                    await asyncio.to_thread(self._delete_files, batch)
                else:
                    await self._delete(batch)

    async def _delete(self, names: Sequence[str]) -> None:
        try:
            await self._ask(obstore.delete_async(self._store, names[0] if len(names) == 1 else names))
        except FileNotFoundError:
            # S3 deletes what is gone without a word; Azure and Google refuse, and may leave the rest of a batch.
            if len(names) > 1:
                for name in names:
                    await self._delete([name])

    async def list_names(self, prefix: str) -> AsyncIterator[list[Found]]:
        """Yield the objects below a prefix, in no particular order, some at once.

        Raises:
            UnavailableError: The store failed.
        """
        with self._operation("list"):
            stream = obstore.list(self._store, prefix, chunk_size=_LIST_OBJECTS)
        iterator = aiter(stream)
        while True:
            with self._operation("list"):
                try:
                    chunk = await self._ask(anext(iterator))
                except StopAsyncIteration:
                    return
                found = [Found(each["path"], each["size"]) for each in chunk]
            yield found

    async def all_names(self, prefix: str) -> list[str]:
        """Return the names of all objects below a prefix, ordered.

        Raises:
            UnavailableError: The store failed.
        """
        return sorted([found.name async for chunk in self.list_names(prefix) for found in chunk])

    async def close(self) -> None:
        """Wait for the requests that go on, some seconds at most."""
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=_LAST_SECONDS)
        for request in self._under_way:
            request.cancel()

    def _store_for(self, size_bytes: int) -> ObjectStore:
        return self._small if size_bytes <= SMALL_BYTES else self._store

    async def _ask(self, request: Awaitable[_T]) -> _T:
        """Await a request, which goes on when the caller is cancelled.

        A request that is cancelled has a thread of the library call Python when it notices that; if Python has begun to
        end by then, the process aborts (https://github.com/PyO3/pyo3-async-runtimes/issues/40). So `close`
        waits for all.
        """
        future = asyncio.ensure_future(request)
        self._under_way.add(future)
        future.add_done_callback(self._note_end)
        return await asyncio.shield(future)

    def _note_end(self, future: "asyncio.Future[Any]") -> None:
        self._under_way.discard(future)
        if not future.cancelled():
            future.exception()  # retrieved, so that asyncio does not report it: the caller may be gone

    @contextlib.contextmanager
    def _operation(self, operation: str) -> Iterator[None]:
        """Return a context manager that translates errors, and observes how long it took."""
        started = perf_counter()
        try:
            with translated():
                yield
        finally:
            self._observe(operation, perf_counter() - started)

    @contextlib.contextmanager
    def _writing(self, operation: str) -> Iterator[None]:
        """Return a context manager of an operation whose outcome says whether the store takes writes."""
        try:
            with self._operation(operation):
                yield
        except (TooLargeError, UnavailableError) as error:
            if isinstance(error, UnavailableError):
                self.failure = error.message
            _log.warning("operation on the object store failed", operation=operation, reason=reason_of(error))
            raise
        self.failure = ""

    async def _sync(self, name: str) -> None:
        if self._root:
            await asyncio.to_thread(self._sync_file, name)

    def _sync_file(self, name: str) -> None:
        """Make a file durable with the directories that lead to it; blocks."""
        _sync_path(os.path.join(self._root, name))
        self._sync_directories(name)

    def _sync_directories(self, name: str) -> None:
        while name:
            name = os.path.dirname(name)
            _sync_path(os.path.join(self._root, name))

    def _delete_files(self, names: Sequence[str]) -> None:
        """Delete files durably; blocks."""
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self._root, name))
        for directory in {os.path.dirname(name) for name in names}:
            with contextlib.suppress(FileNotFoundError):
                _sync_path(os.path.join(self._root, directory))


async def _get_written(store: ObjectStore, name: str) -> Written:
    result = await obstore.get_async(store, name)
    tag = {key: str(result.meta[key]) for key in ("e_tag", "version") if result.meta.get(key) is not None}
    return Written(bytes(await result.bytes_async()), tag)


async def _get_range(store: ObjectStore, name: str, start: int, size_bytes: int) -> Piece:
    result = await obstore.get_async(store, name, options={"range": (start, start + size_bytes)})
    return Piece(memoryview(await result.bytes_async()), result.meta["e_tag"] or "")


async def _get(store: ObjectStore, name: str) -> bytes:
    return bytes(await (await obstore.get_async(store, name)).bytes_async())


def _sync_path(path: str) -> None:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
