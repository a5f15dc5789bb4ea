"""Send bytes from a file to a connection by the system (sendfile), without copying them into this process."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Protocol

from starlette.types import ASGIApp, Receive, Scope, Send

_EXTENSION = "model_registry.send_descriptor"

_CHUNK_BYTES = 4 * 1024 * 1024
"""How much one system call requests; the system takes what fits into the buffer of the connection."""


class SendDescriptor(Protocol):
    """Sends bytes of a file as a part of the body of an answer; see `serving.BoundedProtocol.send_descriptor`."""

    def __call__(
        self, descriptor: int, part: range, count: Callable[[int], object], *, may_wait: bool
    ) -> Awaitable[None]:
        """Send them."""


def sending_descriptors(app: ASGIApp, send_descriptor: SendDescriptor) -> ASGIApp:
    """Return an application that can send descriptors over a connection.

    Args:
        app: The application.
        send_descriptor: Sends one.
    """

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "extensions": {**scope.get("extensions", {}), _EXTENSION: send_descriptor}}, receive, send)

    return answer


def sender_of(scope: Scope) -> SendDescriptor | None:
    """Return a function that sends descriptors over the connection of a request; None if it cannot, as over TLS."""
    sender: SendDescriptor | None = scope.get("extensions", {}).get(_EXTENSION)
    return sender


async def sent_file(
    connection: int,
    descriptor: int,
    part: range,
    idle_seconds: float,
    count: Callable[[int], object],
    *,
    may_wait: bool,
) -> None:
    """Send bytes of a file.

    Args:
        connection: The descriptor of a non-blocking socket; nobody else may write to it in the meantime.
        descriptor: The file.
        part: The positions of the bytes.
        idle_seconds: How long the other side may receive nothing.
        count: Called with the number of bytes that the system took each time.
        may_wait: Whether reading may block on a disk, and so is done on a thread.

    Raises:
        OSError: The other side is gone, or received nothing for too long, or the file is shorter.
    """
    position, end = part.start, part.stop
    while position < end:
        size = min(_CHUNK_BYTES, end - position)
        try:
            if may_wait:
                sent = await asyncio.to_thread(os.sendfile, connection, descriptor, position, size)
            else:
                sent = os.sendfile(connection, descriptor, position, size)
        except BlockingIOError:
            async with asyncio.timeout(idle_seconds):  # a TimeoutError is an OSError
                await _writable(connection)
            continue
        if not sent:
            raise OSError("the file is shorter than the version")
        position += sent
        count(sent)


async def _writable(connection: int) -> None:
    """Wait until a socket takes more bytes."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_writer(connection, _set, ready)
    try:
        await ready
    finally:
        loop.remove_writer(connection)


def _set(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
