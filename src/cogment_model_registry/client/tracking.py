"""Following the latest version of a model in the background: fetched, decoded, and there when it is needed."""

import asyncio
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from types import TracebackType
from typing import Generic, Self, TypeVar

from cogment_model_registry.client import watching
from cogment_model_registry.client.backends import BlockingBackend, StoppedError, run
from cogment_model_registry.client.calls import Backoff, Deadline
from cogment_model_registry.client.core import LATEST, Core
from cogment_model_registry.errors import NotFoundError, TimedOutError, quoted
from cogment_model_registry.records import VersionInfo

_T = TypeVar("_T")

_PROMPT_SECONDS = 0.002
"""News that were not waited for longer than this may have been waiting themselves, with newer ones behind them."""


class _Latest(ABC, Generic[_T]):
    """The latest version of a model, as far as it is known here. What its follower notes, its reader reads."""

    def __init__(self, model_id: str) -> None:
        self.model_id = model_id
        self._current: tuple[VersionInfo, _T] | None = None
        self._connection_error: Exception | None = None
        self._version_error: BaseException | None = None

    @property
    def value(self) -> _T | None:
        """What `decode` made of the bytes of `version`; None until the first."""
        current = self._current
        return current[1] if current else None

    @property
    def version(self) -> VersionInfo | None:
        """The version that `value` is of; None until the first."""
        current = self._current
        return current[0] if current else None

    @property
    def snapshot(self) -> tuple[VersionInfo, _T] | None:
        """The version and its value, which belong together whatever comes meanwhile; None until the first."""
        return self._current

    @property
    def error(self) -> BaseException | None:
        """Why `value` may not be the latest; None while all is well.

        The registry does not answer, the model does not exist, the version could not be fetched, or `decode` raised it.
        """
        return self._connection_error or self._version_error

    @property
    def age_seconds(self) -> float | None:
        """How long ago `version` was created, by the clocks of the server and of this machine; None until the first."""
        version = self.version
        return max(time.time() - version.created_ns / 1e9, 0.0) if version else None

    def _newer_than(self, number: int) -> VersionInfo | None:
        version = self.version
        return version if version is not None and version.number > number else None

    def _timed_out(self, newer_than: int, timeout: float) -> TimedOutError:
        message = f"no version of model {quoted(self.model_id)} after {newer_than} came within {timeout:g} seconds"
        return TimedOutError(f"{message}: {self.error}" if self.error else message, model_id=self.model_id)

    # What the follower calls.

    def note_connection(self, error: Exception | None) -> None:
        """Take note of how the connection is."""
        self._connection_error = error

    def note_version_error(self, error: BaseException) -> None:
        """Take note of why the newest version is not there."""
        self._version_error = error

    def note_version(self, version: VersionInfo, value: _T) -> None:
        """Take note of a version that is there."""
        self._current = (version, value)
        self._version_error = None
        self._connection_error = None
        self._tell()

    @abstractmethod
    def _tell(self) -> None:
        """Wake whoever waits for a newer version."""


class Follower(Generic[_T]):
    """Keeps a `Latest` up to date.

    Args:
        core: Makes the calls.
        latest: What is kept up to date.
        decode: Awaited with the bytes of each version; returns its value.
    """

    def __init__(self, core: Core, latest: _Latest[_T], decode: Callable[[bytes], Awaitable[_T]]) -> None:
        self._core = core
        self._latest = latest
        self._decode = decode

    async def follow(self) -> None:
        """Follow the model for ever, through all its lives."""
        backoff = Backoff()
        while True:
            try:
                await self._follow_one_life()
            except StoppedError:
                raise
            except Exception as error:
                # There is no such model yet, or no more; or a version could not be fetched, which is tried anew.
                self._latest.note_version_error(error)
            await self._core.calls.backend.sleep(backoff.next_seconds())

    async def _follow_one_life(self) -> None:
        """Follow the model until it is deleted, or until something goes wrong that the next version will not mend."""
        newest = 0
        async with aclosing(watching.events(self._core.calls, self._latest.model_id, 0)) as news:
            waiting_since = time.monotonic()
            async for event in news:
                was_waiting = newest > 0 and time.monotonic() - waiting_since < _PROMPT_SECONDS
                self._latest.note_connection(event.error if isinstance(event, watching.Disconnected) else None)
                if isinstance(event, VersionInfo) and event.number > newest:
                    newest = await self._take(event, was_waiting=was_waiting)
                waiting_since = time.monotonic()

    async def _take(self, version: VersionInfo, *, was_waiting: bool) -> int:
        """Fetch and decode a version, or the latest if it may be another one by now; return its number."""
        try:
            if was_waiting:
                version = await self._core.get_version(version.model_id, LATEST, None)
            data = await self._core.retrieve(version, LATEST, None, False)
        except NotFoundError as error:
            # It was evicted meanwhile, so a newer one is on its way; or the model is gone, which the next event tells.
            self._latest.note_version_error(error)
            return version.number
        try:
            value = await self._decode(data)
        except (asyncio.CancelledError, StoppedError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the caller's own; those of Rust that panics are no Exceptions
            self._latest.note_version_error(error)
        else:
            self._latest.note_version(version, value)
        return version.number


class Latest(_Latest[_T]):
    """The latest version of a model, kept up to date by a thread. Made by `ModelRegistry.track`; to be entered.

    Reading it takes no time and no lock, and holds up neither the thread nor the network.

    Args:
        core: Makes the calls.
        model_id: The model.
        decode: Turns the bytes of a version into its value, on the thread.
    """

    def __init__(self, core: Core, model_id: str, decode: Callable[[bytes], _T]) -> None:
        super().__init__(model_id)
        self._news = threading.Condition()
        self._backend = BlockingBackend()

        async def decode_here(data: bytes) -> _T:
            return decode(data)

        self._follower = Follower(core.on(self._backend), self, decode_here)
        self._thread = threading.Thread(target=self._follow, name=f"tracking {model_id}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._backend.stop()
        self._thread.join()

    def wait_for(self, newer_than: int = 0, timeout: float | None = None) -> VersionInfo:
        """Wait until there is a version with a higher number, and return it; its value is then `value`.

        Args:
            newer_than: The number of the version that the caller has; 0 for none.
            timeout: How many seconds to wait at most; for ever when None.

        Raises:
            TimedOutError: None came; the message has `error`, if there is one.
        """
        with self._news:
            self._news.wait_for(lambda: self._newer_than(newer_than), timeout)
            version = self._newer_than(newer_than)
        if version is None:
            raise self._timed_out(newer_than, timeout or 0.0)
        return version

    def _tell(self) -> None:
        with self._news:
            self._news.notify_all()

    def _follow(self) -> None:
        with suppress(StoppedError):
            run(self._follower.follow())


class AsyncLatest(_Latest[_T]):
    """The latest version of a model, kept up to date by a task. Made by `aio.ModelRegistry.track`; to be entered.

    Args:
        core: Makes the calls.
        model_id: The model.
        decode: Turns the bytes of a version into its value, on a thread.
    """

    def __init__(self, core: Core, model_id: str, decode: Callable[[bytes], _T]) -> None:
        super().__init__(model_id)
        self._news = asyncio.Event()

        async def decode_apart(data: bytes) -> _T:
            return await asyncio.to_thread(decode, data)

        self._follower = Follower(core, self, decode_apart)
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._follower.follow(), name=f"tracking {self.model_id}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def wait_for(self, newer_than: int = 0, timeout: float | None = None) -> VersionInfo:
        """Wait until there is a version with a higher number, and return it; see `Latest.wait_for`."""
        deadline = Deadline(timeout) if timeout is not None else None
        while (version := self._newer_than(newer_than)) is None:
            try:
                async with asyncio.timeout(deadline.left_seconds() if deadline else None):
                    await self._news.wait()
            except TimeoutError:
                raise self._timed_out(newer_than, timeout or 0.0) from None
        return version

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()
