"""Work that must run to its end although whoever waits for it gives up, and waits that must not take for ever."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, TypeVar

_T = TypeVar("_T")


async def run_to_end(work: Coroutine[Any, Any, _T]) -> _T:
    """Run `work` to its end even when the caller is cancelled meanwhile, and only then let the cancellation through.

    A call that its client cancelled must not stop between two files, nor leave a thread with a buffer that is already
    someone else's. Work that never waits costs no task. For the same reason the first step of work that waits is made
    in the caller's task: it must not ask which task it runs in, as `asyncio.timeout` and `TaskGroup` do.

    Raises:
        asyncio.CancelledError: The caller was cancelled; `work` has ended nevertheless.
    """
    try:
        waited_for = work.send(None)
    except StopIteration as end:
        result: _T = end.value
        return result
    task: asyncio.Task[_T] = asyncio.ensure_future(_to_the_end(_Begun(work, waited_for)))
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        if not task.cancelled():
            task.exception()  # seen: the cancellation stands for it
        raise asyncio.CancelledError
    return task.result()


class _Begun:
    """A coroutine that waits for something, to be awaited from there on."""

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


async def _to_the_end(begun: _Begun) -> Any:
    return await begun


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


class IdleWatch:
    """Bounds each of many waits of one task, as `asyncio.timeout` does, at the cost of one timer for all of them.

    Made in the task, whose waits it bounds; to be closed.

    Args:
        seconds: How long a wait may take.
    """

    def __init__(self, seconds: float) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("there is no task to watch")
        self._task = task
        self._loop = task.get_loop()
        self._seconds = seconds
        self._waiting_since: float | None = None
        self._expired = False
        self._timer = self._loop.call_later(seconds, self._look)

    async def wait(self, work: Awaitable[_T]) -> _T:
        """Await `work`.

        Raises:
            TimeoutError: It took too long, and was cancelled.
        """
        self._waiting_since = self._loop.time()
        try:
            return await work
        except asyncio.CancelledError:
            if self._expired and not self._task.uncancel():
                raise TimeoutError from None
            raise
        finally:
            self._waiting_since = None

    def close(self) -> None:
        """Watch no more."""
        self._timer.cancel()

    def _look(self) -> None:
        """Cancel a wait that takes too long, or look again when that may be."""
        left = self._seconds
        if self._waiting_since is not None:
            left += self._waiting_since - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
        else:
            self._expired = True
            self._task.cancel()
