"""The latest version of a model, followed in the background: fetched and decoded before it is needed."""

import asyncio
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Generic, NoReturn, TypeVar

from cogment_model_registry.client import watching
from cogment_model_registry.client.arguments import LATEST, checked_id, checked_seconds, checked_text, checked_whole
from cogment_model_registry.client.blocking_backend import BlockingBackend, StoppedError, run
from cogment_model_registry.client.core import Core
from cogment_model_registry.client.deadlines import CALL_SECONDS, Backoff, Deadline
from cogment_model_registry.client.reporting import Reporter, TaskReporter, ThreadReporter
from cogment_model_registry.client.signatures import TrustedKeys, trust_of, verified
from cogment_model_registry.client.threads import SIGNAL_SECONDS, do_apart, submit
from cogment_model_registry.client.watch_streams import Received
from cogment_model_registry.errors import (
    ClosedError,
    DataLossError,
    InvalidError,
    ModelRegistryError,
    NotFoundError,
    SignatureError,
    TimedOutError,
    counted,
    quoted,
)
from cogment_model_registry.records.consumers import Consumer, State
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.system.tasks import wait_at_most

if TYPE_CHECKING:
    from typing import Self  # from Python 3.11 on

_T = TypeVar("_T")

_PROMPT_SECONDS = 0.002
"""News that came faster than this may have been queued, with newer ones behind them."""


class _Raised:
    """The error that the caller's own function raised instead of returning a value."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class _Tracked(ABC, Generic[_T]):
    """The latest known version of a model, and the work that keeps it current."""

    def __init__(
        self,
        core: Core,
        model_id: str,
        decode: Callable[..., _T],
        *,
        copy: bool,
        archived: bool,
        alias: str | None = None,
        verify: "TrustedKeys | None" = None,
        reporter: Reporter | None = None,
    ) -> None:
        self._trust = None if verify is None else trust_of(verify)
        self.model_id = checked_id(model_id)
        if alias is not None and archived:
            raise InvalidError("only archived versions have an alias: give alias or archived, and not both")
        self._alias = None if alias is None else checked_text("alias", alias)
        if not callable(decode):
            raise InvalidError(f"decode is {decode!r}; it must be a function that takes the bytes of a version")
        self._core = core
        self._archived = archived
        self._reports = reporter
        self._decode = decode
        self._copies = copy
        self._current: tuple[VersionInfo, _T] | None = None
        self._connection_error: Exception | None = None
        self._version_error: BaseException | None = None
        self._end: BaseException | None = ClosedError(
            f"model {quoted(model_id)} is not tracked yet: enter it, using `with`", model_id=model_id
        )
        self._was_entered = False
        self._known = watching.Known()
        self._damaged: VersionInfo | None = None
        self._backoff = Backoff()

    def __repr__(self) -> str:
        version, error = self.version, self.error
        state = f"version {version.number}" if version else "no version yet"
        problem = f", {type(error).__name__}: {error}" if error else ""
        where = self._core.calls.connection.location
        return f"<{type(self).__name__}: model {quoted(self.model_id)} of {where}, {state}{problem}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"a {type(self).__name__} cannot be pickled or copied: it follows its model in the process in which it was "
            "made; pickle the client, and call its `track` there"
        )

    @property
    def value(self) -> _T | None:
        """The result of `decode` for the bytes of `version`; None until the first."""
        current = self._current
        return current[1] if current else None

    @property
    def version(self) -> VersionInfo | None:
        """The version of `value`; None until the first."""
        current = self._current
        return current[0] if current else None

    @property
    def snapshot(self) -> tuple[VersionInfo, _T] | None:
        """The version and its value, which always belong together; None until the first."""
        return self._current

    @property
    def error(self) -> BaseException | None:
        """Why `value` may not be the latest; None without a problem.

        The registry does not answer, the model does not exist, the version could not be fetched, `decode` raised it, or
        the model is not tracked: not yet entered, left, the client was closed, or the process was forked.
        """
        return self._end or self._core.calls.connection.refusal() or self._connection_error or self._version_error

    @property
    def consumer(self) -> Consumer | None:
        """What the registry last answered to a report, with the lag; None until then, and without a consumer's id."""
        return self._reports.consumer if self._reports else None

    def _note(self, state: State, *, number: int | None = None, error: object = "") -> None:
        """Report a state, if there is a consumer to be reported."""
        if self._reports is not None:
            self._reports.note(state, version_number=number, error=error)

    @property
    def age_seconds(self) -> float | None:
        """How long ago `version` was created, by the clocks of the server and of this machine; None until the first."""
        version = self.version
        return max(time.time() - version.created_ns / 1e9, 0.0) if version else None

    def _newer_than(self, number: int) -> VersionInfo | None:
        """Return the version if it is newer than one; None if the caller has to wait.

        Raises:
            ClosedError: None will come.
        """
        version = self.version
        if version is not None and (version.number > number if self._alias is None else version.number != number):
            return version
        if self._end is not None:
            raise self._end.with_traceback(None)
        return None

    def _timed_out(self, newer_than: int, timeout: float | None) -> TimedOutError:
        time_text = counted(float(timeout or 0), "second")
        message = f"model {quoted(self.model_id)} got no version newer than {newer_than} within {time_text}"
        error = self.error
        if isinstance(error, ModelRegistryError):
            message += f": {error}"
        elif error is not None:
            message += f": {type(error).__name__}: {error}"
        return TimedOutError(message, model_id=self.model_id)

    async def _follow(self) -> None:
        """Follow the model, also when it is deleted and created again, until the client is closed."""
        try:
            while True:
                failure: Exception | None = None
                try:
                    await self._follow_one_life()
                except (StoppedError, ClosedError):
                    raise
                except NotFoundError as error:
                    # The model does not exist yet; or was deleted, and then its value is stale until a new model comes.
                    self._known, self._damaged, self._version_error = watching.Known(), None, None
                    if self._current is None:
                        self._connection_error = error
                    else:
                        self._version_error = error
                except Exception as error:
                    # The server's reply is malformed; or a version could not be fetched, which is tried again.
                    self._connection_error = failure = error
                await self._core.calls.backend.sleep(self._backoff.next_seconds(failure))
        except BaseException as error:
            self._note_end(error)
            if not isinstance(error, StoppedError | ClosedError):
                raise

    def _note_begin(self) -> None:
        """Begin to expect versions.

        Raises:
            ClosedError: It was entered before.
        """
        if self._was_entered:
            raise ClosedError(
                f"model {quoted(self.model_id)} was tracked before with this object: call `track` again",
                model_id=self.model_id,
            )
        self._core.calls.check_open()
        self._was_entered = True
        self._end = None

    def _note_end(self, error: BaseException) -> None:
        """Stop expecting versions."""
        if isinstance(error, StoppedError | asyncio.CancelledError):
            error = ClosedError(f"model {quoted(self.model_id)} is not tracked any more", model_id=self.model_id)
        self._end = error
        self._notify()

    async def _follow_one_life(self) -> None:
        """Follow the model until it is deleted, or until an error that the next version will not cure."""
        async with aclosing(self._events()) as news:
            waiting_since = time.monotonic()
            async for event in news:
                was_waiting = self._known.number > 0 and time.monotonic() - waiting_since < _PROMPT_SECONDS
                self._connection_error = event.error if isinstance(event, watching.Disconnected) else None
                if isinstance(event, Received):
                    await self._take(event.version, event.data, was_waiting=was_waiting)
                elif isinstance(event, watching.Absent):
                    self._version_error = event.error
                elif isinstance(event, watching.Connected) and self._damaged is not None:
                    # It may be intact now: the server may have another copy, or the network damaged it.
                    await self._take(self._damaged, None, was_waiting=False)
                waiting_since = time.monotonic()

    def _events(self) -> AsyncGenerator[watching.Event | watching.Absent, None]:
        if self._alias is not None:
            return watching.aliased(self._core.calls, self.model_id, self._alias)
        inline_max_bytes = self._core.inline_max_bytes
        return watching.events(
            self._core.calls, self.model_id, self._known, archived=self._archived, inline_max_bytes=inline_max_bytes
        )

    async def _take(self, version: VersionInfo, data: bytes | memoryview | None, *, was_waiting: bool) -> None:
        """Decode a version, or the latest if a newer one may exist by now; fetch it unless its bytes came along."""
        self._damaged = None
        if self._alias is not None:
            was_waiting = False
            if self._current is not None and self._current[0] == version:
                self._version_error = None
                self._note("active")
                return
        self._note("loading")
        try:
            if was_waiting:
                latest = await self._core.get_version(version.model_id, LATEST, None, archived=self._archived)
                version, data = (latest, None) if latest.number > version.number else (version, data)
            version, data = await self._obtained(version, data)
        except NotFoundError as error:
            # It was evicted, so a newer one is on its way; or the model was deleted, which the next event reports.
            self._version_error = error
            if self._alias is None:
                await self._take_older(version)
            return
        except (DataLossError, SignatureError) as error:
            self._damaged, self._version_error = version, error
            self._known.note(version)
            self._note("failed", error=error)
            return
        except ModelRegistryError as error:
            self._version_error = error
            raise
        self._known.note(version)
        self._backoff = Backoff()
        value = await self._decoded(data if self._copies else memoryview(data))
        if isinstance(value, _Raised):
            self._version_error = value.error
            self._note("failed", error=value.error)
        else:
            self._current = (version, value)
            self._version_error = None
            self._note("active", number=version.number)
            self._notify()

    async def _obtained(
        self, version: VersionInfo, data: bytes | memoryview | None
    ) -> tuple[VersionInfo, bytes | memoryview]:
        """Return a version, which was verified if that is wanted, and its bytes: those that came along, or fetched."""
        if self._trust is not None:
            deadline = Deadline(CALL_SECONDS)
            version = await verified(self._core.calls, version, self.model_id, self._trust, deadline)
        return version, await self._fetched(version) if data is None else data

    async def _fetched(self, version: VersionInfo) -> bytes | memoryview:
        """Return the bytes of a version, or a view of them."""
        retrievals, verify = self._core.retrievals, self._trust or False
        if self._copies:
            return await retrievals.retrieve(version, LATEST, None, False, archived=self._archived, verify=verify)
        return await retrievals.view(
            version, LATEST, None, False, archived=self._archived, verify=verify, is_writable=True
        )

    async def _take_older(self, gone: VersionInfo) -> None:
        """Fetch the version that is the latest after a newer one was deleted, unless it or a later one is there."""
        try:
            latest = await self._core.get_version(gone.model_id, LATEST, None, archived=self._archived)
        except ModelRegistryError:
            return
        current = self._current[0].number if self._current else 0
        if current == latest.number:
            self._version_error = None
            self._note("active")
        elif current < latest.number < gone.number:
            await self._take(latest, None, was_waiting=False)

    def _caught(self, data: bytes | memoryview) -> _T | _Raised:
        """Call the caller's function, which may raise anything: a Rust library that panics raises no `Exception`."""
        try:
            return self._decode(data)
        except BaseException as error:
            return _Raised(error)

    @abstractmethod
    async def _decoded(self, data: bytes | memoryview) -> _T | _Raised:
        """Return the value of the bytes of a version, or the error that was raised."""

    @abstractmethod
    def _notify(self) -> None:
        """Wake those who wait for a newer version."""


class Latest(_Tracked[_T]):
    """The latest version of a model, kept up to date by a thread. Made by `ModelRegistry.track`; enter it using `with`.

    Reading it is immediate, takes no lock, and delays neither the thread nor the network.

    Args:
        core: Makes the calls.
        backend: How to call and wait; stopped at the end.
        model_id: The model.
        decode: Turns the bytes of a version into its value, on the thread.
        copy: Whether it gets bytes, and not a view.
        archived: Whether only archived versions count.
        alias: The alias whose version counts; None for the latest one.
        verify: The keys of which one must have signed each version; None for no check.
        reporter: Reports the version as that of a consumer, if there is one.
    """

    def __init__(
        self,
        core: Core,
        backend: BlockingBackend,
        model_id: str,
        decode: Callable[..., _T],
        *,
        copy: bool,
        archived: bool,
        alias: str | None = None,
        verify: "TrustedKeys | None" = None,
        reporter: ThreadReporter | None = None,
    ) -> None:
        super().__init__(
            core.on(backend),
            model_id,
            decode,
            copy=copy,
            archived=archived,
            alias=alias,
            verify=verify,
            reporter=reporter,
        )
        self._reporter = reporter
        self._backend = backend
        self._waiting: list[queue.SimpleQueue[None]] = []
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Self":
        self._note_begin()
        name = f"tracking {self.model_id}"
        self._thread = threading.Thread(target=lambda: run(self._follow()), name=name, daemon=True)
        do_apart(self._thread.start)
        if self._reporter is not None:
            do_apart(self._reporter.start)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._core.calls.connection.is_usable():
            do_apart(self._stop)

    def wait_for(self, newer_than: int = 0, timeout: float | None = None) -> VersionInfo:
        """Wait for a version with a higher number, and return it; its value is then `value`.

        Where an alias is followed, wait for a version with another number.

        Args:
            newer_than: The number of the version that the caller has; 0 for none.
            timeout: How many seconds to wait at most; None for no limit.

        Raises:
            TimedOutError: None came; the message includes `error`, if one is set.
            ClosedError: None will come: the model is not tracked, or the client was closed.
        """
        number = checked_whole("newer_than", newer_than)
        seconds = None if timeout is None else checked_seconds("timeout", timeout)
        deadline = None if seconds is None else Deadline(seconds)
        # Not a `Condition`: an interruption could leave its lock taken.
        news: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._waiting.append(news)
        try:
            while (version := self._newer_than(number)) is None:
                self._core.calls.check_open()
                left_seconds = deadline.left_seconds() if deadline else SIGNAL_SECONDS
                if not left_seconds:
                    raise self._timed_out(number, seconds)
                with suppress(queue.Empty):
                    news.get(timeout=min(left_seconds, SIGNAL_SECONDS))
            return version
        finally:
            self._waiting.remove(news)

    async def _decoded(self, data: bytes | memoryview) -> _T | _Raised:
        return self._caught(data)

    def _notify(self) -> None:
        for news in list(self._waiting):
            news.put(None)

    def _stop(self) -> None:
        self._backend.stop()
        if self._thread is not None:
            self._thread.join()
        if self._reporter is not None:
            self._reporter.stop()


class AsyncLatest(_Tracked[_T]):
    """The latest version of a model, kept up to date by a task. Made by `aio.ModelRegistry.track`; enter it.

    Args:
        core: Makes the calls.
        model_id: The model.
        decode: Turns the bytes of a version into its value, on a thread.
        copy: Whether it gets bytes, and not a view.
        archived: Whether only archived versions count.
        alias: The alias whose version counts; None for the latest one.
        verify: The keys of which one must have signed each version; None for no check.
        reporter: Reports the version as that of a consumer, if there is one.
    """

    def __init__(
        self,
        core: Core,
        model_id: str,
        decode: Callable[..., _T],
        *,
        copy: bool,
        archived: bool,
        alias: str | None = None,
        verify: "TrustedKeys | None" = None,
        reporter: TaskReporter | None = None,
    ) -> None:
        super().__init__(
            core, model_id, decode, copy=copy, archived=archived, alias=alias, verify=verify, reporter=reporter
        )
        self._reporter = reporter
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Self":
        self._note_begin()
        self._task = asyncio.create_task(self._follow(), name=f"tracking {self.model_id}")
        if self._reporter is not None:
            self._reporter.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._task is not None:
            if self._task.get_loop() is asyncio.get_running_loop():  # otherwise it ended with its event loop
                self._task.cancel()
                await asyncio.wait([self._task])
                if self._reporter is not None:
                    await self._reporter.stop()
            self._note_end(StoppedError())  # it may have had no turn yet

    async def wait_for(self, newer_than: int = 0, timeout: float | None = None) -> VersionInfo:
        """Wait for a version with a higher number, and return it; see `Latest.wait_for`."""
        number = checked_whole("newer_than", newer_than)
        seconds = None if timeout is None else checked_seconds("timeout", timeout)
        try:
            return await wait_at_most(seconds, self._wait_for_newer(number))
        except TimeoutError:
            raise self._timed_out(number, seconds) from None

    async def _wait_for_newer(self, number: int) -> VersionInfo:
        while (version := self._newer_than(number)) is None:
            self._core.calls.check_open()
            await self._news.wait()
        return version

    async def _decoded(self, data: bytes | memoryview) -> _T | _Raised:
        return await self._core.calls.backend.wait(submit(lambda: self._caught(data)))

    def _notify(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()
