"""Work that must run to its end although whoever waits for it gives up."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")


async def run_to_end(work: Coroutine[Any, Any, _T]) -> _T:
    """Run `work` to its end even when the caller is cancelled meanwhile, and only then let the cancellation through.

    A call that its client cancelled must not stop between two files, nor leave a thread with a buffer that is already
    someone else's.

    Raises:
        asyncio.CancelledError: The caller was cancelled; `work` has ended nevertheless.
    """
    task = asyncio.ensure_future(work)
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
