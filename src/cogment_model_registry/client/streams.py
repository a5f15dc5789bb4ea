"""Streams of news: how they begin, how long they last, and which of their ends count as failures."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from cogment_model_registry.client.backends import Replies
from cogment_model_registry.client.calls import Calls
from cogment_model_registry.client.deadlines import Deadline
from cogment_model_registry.client.failures import Subject, translated
from cogment_model_registry.errors import TimedOutError, UnavailableError

STEADY_SECONDS = 1.0
"""A connection or a stream that ends sooner counts as a failure."""


@asynccontextmanager
async def streaming(
    calls: Calls, path: str, request: bytes, subject: Subject, seconds: float, *, is_brief: bool = False
) -> AsyncGenerator[Replies, None]:
    """Return the context manager in which a stream is read, to its end or until it has lasted for its time.

    Args:
        calls: Makes the call.
        path: Its method.
        request: Its request.
        subject: What it is about.
        seconds: How long it lasts at most.
        is_brief: Whether it may end at once.

    Raises:
        TimedOutError: The server ended the stream with that status.
        UnavailableError: The server ended the stream at once, or is not available.
    """
    deadline = Deadline(seconds)
    async with calls.connection.channel(calls.backend, deadline) as channel:
        replies = calls.backend.stream(channel, path, request, seconds)
        try:
            with translated(subject, calls.connection):
                yield replies
            if not is_brief and seconds - deadline.left_seconds() < STEADY_SECONDS:
                message = f"{subject.text}: the server ended the stream at once"
                raise UnavailableError(message, model_id=subject.model_id)
        except TimedOutError:
            if deadline.left_seconds() > 1:
                raise  # the server ended the stream with this status
        finally:
            if calls.connection.is_usable():
                replies.cancel()
