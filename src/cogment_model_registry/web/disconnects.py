"""Whether a client is still connected while a long answer is sent."""

import asyncio
from collections.abc import Coroutine
from http import HTTPStatus
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.types import Receive

from cogment_model_registry.web.errors import RefusedError

if TYPE_CHECKING:
    from typing import Self


_T = TypeVar("_T")


async def while_connected(receive: Receive, work: Coroutine[Any, Any, _T]) -> _T:
    """Return the result of work for a client, which ends with its connection.

    Args:
        receive: Returns the messages of the connection, of which one reports its end.
        work: What takes its time.

    Raises:
        RefusedError: The client is gone.
    """
    working = asyncio.ensure_future(work)
    try:
        async with Connected(receive) as connected:
            await asyncio.wait((working, connected.end), return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise RefusedError(HTTPStatus.BAD_REQUEST, "the connection ended before the answer")
            return working.result()
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


class Connected:
    """A context manager that is true while the client is connected.

    Args:
        receive: Receives the rest of the request, and then the disconnect.
    """

    def __init__(self, receive: Receive) -> None:
        self._watching = asyncio.ensure_future(_until_gone(receive))

    def __bool__(self) -> bool:
        return not self._watching.done()

    @property
    def end(self) -> "asyncio.Future[None]":
        """Done when the client has disconnected."""
        return self._watching

    async def __aenter__(self) -> "Self":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._watching.cancel()
        await asyncio.gather(self._watching, return_exceptions=True)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
