"""Work that must run to its end even if its caller gives up, and waits that must end."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from time import monotonic
from typing import Any, Generic, TypeVar

_K = TypeVar("_K")
_T = TypeVar("_T")


async def run_to_end(work: Coroutine[Any, Any, _T]) -> _T:
    """Run `work` to its end even when the caller is cancelled, and only then let the cancellation through.

    A call that its client cancelled must not stop between two files, nor leave a thread with a buffer that already has
    another user. Work that never waits costs no task. For the same reason the first step of work that waits is made
    in the caller's task: it must not ask which task it runs in, as `asyncio.timeout` and `TaskGroup` do.

    Raises:
        asyncio.CancelledError: The caller was cancelled; `work` has ended nevertheless.
    """
    try:
        waited_for = work.send(None)
    except StopIteration as end:
        result: _T = end.value
        return result
    task: asyncio.Future[_T] = asyncio.ensure_future(_Begun(work, waited_for))
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        if not task.cancelled():
            task.exception()  # retrieved, so that asyncio does not report it: the cancellation is raised instead
        raise asyncio.CancelledError
    return task.result()


def begun(work: Coroutine[Any, Any, _T]) -> "asyncio.Future[_T]":
    """Return the future of `work`, whose first step is made now: work that never waits is done, and costs no task.

    As in `run_to_end`, the first step must not ask which task it runs in.
    """
    try:
        waited_for = work.send(None)
    except StopIteration as end:
        done: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        done.set_result(end.value)
        return done
    return asyncio.ensure_future(_Begun(work, waited_for))


class SharedWork(Generic[_K, _T]):
    """Work that is done once for all who want its result while it is under way."""

    def __init__(self) -> None:
        self._under_way: dict[_K, asyncio.Future[_T]] = {}

    def is_under_way(self, key: _K) -> bool:
        """Return whether somebody waits for the result that has a key."""
        return key in self._under_way

    async def result(self, key: _K, start: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """Return the result of the work that has a key; it goes on when those who want it are cancelled.

        Args:
            key: What the result is called.
            start: Returns the work if nobody wanted it before; see `begun`.
        """
        future = self._under_way.get(key)
        if future is None:
            future = self._under_way[key] = begun(start())
            # Called back after those who are to run in this turn of the event loop, or with whom the work ended.
            future.add_done_callback(lambda done: self._note_done(key, done))
        return future.result() if future.done() else await asyncio.shield(future)

    def _note_done(self, key: _K, future: "asyncio.Future[_T]") -> None:
        del self._under_way[key]
        if not future.cancelled():
            future.exception()  # all who wanted it may be gone


class _Begun:
    """A coroutine that was started and waits for something; awaiting this continues it."""

    def __init__(self, work: Coroutine[Any, Any, Any], waited_for: Any) -> None:
        self._work = work
        self._waited_for = waited_for

    def __await__(self) -> Generator[Any, Any, Any]:
        waited_for = self._waited_for
        while True:
            thrown, sent = None, None
            try:
                sent = yield waited_for
            except BaseException as error:
                thrown = error
            try:
                waited_for = self._work.throw(thrown) if thrown else self._work.send(sent)
            except StopIteration as end:
                return end.value


def run_without_task(work: Coroutine[Any, Any, None], when_over: Callable[[BaseException | None], None]) -> None:
    """Run `work`, which waits for futures only, without a task of its own; its first step is made now.

    Where very many tasks wait and one knows what each has to do next, that one can do it for all of them: what a task
    costs to be woken and to wait again is saved. As in `run_to_end`, the steps must not ask which task they run in.

    Args:
        work: What is run. It cannot be cancelled.
        when_over: Called with the error by which it ended, or None; it must not raise.
    """
    _Taskless(work, when_over).step()


class _Taskless:
    """A coroutine that futures continue."""

    __slots__ = ("_when_over", "_work")

    def __init__(self, work: Coroutine[Any, Any, None], when_over: Callable[[BaseException | None], None]) -> None:
        self._work = work
        self._when_over = when_over

    def step(self, _done: object = None) -> None:
        try:
            waited_for: asyncio.Future[Any] = self._work.send(None)
        except StopIteration:
            self._when_over(None)
        except (Exception, asyncio.CancelledError) as error:
            self._when_over(error)
        else:
            waited_for.add_done_callback(self.step)


async def run_to_have(work: Coroutine[Any, Any, _T], release: Callable[[_T], None]) -> _T:
    """Run `work`, which acquires something, and hand it to the caller, or to `release` when the caller was cancelled.

    Raises:
        asyncio.CancelledError: The caller was cancelled; nothing is held.
    """
    acquired: list[_T] = []

    async def acquire() -> None:
        acquired.append(await work)

    try:
        await run_to_end(acquire())
    except asyncio.CancelledError:
        for item in acquired:
            release(item)
        raise
    return acquired[0]


async def end(task: "asyncio.Task[None]") -> None:
    """End a task that has no end of its own."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@contextlib.contextmanager
def surviving(log: Callable[..., object], work: str) -> Iterator[None]:
    """Log an error that nobody expects, so that a loop goes on whose end nobody would notice.

    Args:
        log: Logs the error that is handled.
        work: What failed, for people.
    """
    try:
        yield
    except Exception:
        log("work in the background failed unexpectedly", work=work)


class TaskSet:
    """Tasks that nobody waits for before the end."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Begin a task."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def settled(self) -> None:
        """Wait until the tasks of now have ended."""
        if self._tasks:
            await asyncio.wait({*self._tasks})

    async def cancel(self) -> None:
        """Cancel the tasks of now, and wait until they have ended."""
        for task in self._tasks:
            task.cancel()
        await self.settled()


async def wait_at_most(seconds: float | None, work: Awaitable[_T]) -> _T:
    """Await `work` for some time, and cancel it then.

    `asyncio.timeout` exists from Python 3.11 on, and `asyncio.wait_for` may lose a cancellation before 3.12.

    Args:
        seconds: How long; None for no limit.
        work: What is awaited.

    Raises:
        TimeoutError: The time was over first.
    """
    future = asyncio.ensure_future(work)
    try:
        done, _ = await asyncio.wait([future], timeout=seconds)
        if not done:
            raise TimeoutError
    except BaseException:
        future.cancel()
        future.add_done_callback(_note_outcome)
        raise
    return future.result()


def _note_outcome(future: "asyncio.Future[Any]") -> None:
    """Keep asyncio from reporting an exception that nobody waits for."""
    if not future.cancelled():
        future.exception()


class IdleTimer:
    """Bounds the waits of many tasks like `asyncio.timeout`, with one timer for all of them.

    For one event loop. A wait may take a twentieth longer.

    Args:
        seconds: How long a wait may take.

    Attributes:
        seconds: The same.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._watches: set[IdleWatch] = set()
        self._is_running = False

    def watch(self) -> "IdleWatch":
        """Return an object that bounds the waits of the current task; close it."""
        watch = IdleWatch(self._watches)
        self._watches.add(watch)
        if not self._is_running:
            self._is_running = True
            self._look_in(self.seconds)
        return watch

    def _look_in(self, seconds: float) -> None:
        asyncio.get_running_loop().call_later(seconds, self._look)

    def _look(self) -> None:
        """End the waits that take too long, and look again when the next one may, while any is left."""
        self._is_running = bool(self._watches)
        if self._is_running:
            soonest = self.seconds
            for watch in self._watches:
                if (left := watch.end_after(self.seconds)) > 0:
                    soonest = min(soonest, left)
            self._look_in(max(soonest, self.seconds / 20))


class IdleWatch:
    """Bounds the waits of one task. Made by `IdleTimer.watch`."""

    def __init__(self, watches: "set[IdleWatch]") -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("no task is running that could be watched")
        self._task = task
        self._watches = watches
        self._waiting_since: float | None = None
        self._expired = False

    async def wait(self, work: Awaitable[_T]) -> _T:
        """Await `work`.

        Raises:
            TimeoutError: It took too long, and was cancelled.
        """
        self.begin()
        try:
            return await self.bounded(work)
        finally:
            self.end()

    async def bounded(self, work: Awaitable[_T]) -> _T:
        """Await `work` while waits that `begin` and `end` mark are bounded.

        Raises:
            TimeoutError: Such a wait took too long, and `work` was cancelled.
        """
        try:
            return await work
        except asyncio.CancelledError:
            if self._expired and not self._task.uncancel():
                raise TimeoutError from None
            raise

    def begin(self) -> None:
        """Mark the begin of a wait; its task, which may await something else, is cancelled if it takes too long."""
        self._waiting_since = monotonic()

    def end(self) -> None:
        """Mark the end of a wait."""
        self._waiting_since = None

    def close(self) -> None:
        """Stop watching."""
        self._watches.discard(self)

    def end_after(self, seconds: float) -> float:
        """End a wait that took too long; return the time that it has left, 0 when it was ended."""
        if self._waiting_since is None:
            return seconds
        left = seconds + self._waiting_since - monotonic()
        if left <= 0 and not self._expired:
            self._expired = True
            self._task.cancel()
        return max(left, 0)
