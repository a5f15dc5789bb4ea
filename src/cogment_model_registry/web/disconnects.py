"""Whether a client is still connected while a long answer is sent."""

import asyncio
from types import TracebackType
from typing import TYPE_CHECKING

from starlette.types import Receive

if TYPE_CHECKING:
    from typing import Self


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
