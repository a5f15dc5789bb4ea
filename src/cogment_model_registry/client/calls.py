"""Calls on a connection, repeated while the registry is unavailable."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from cogment_model_registry.client.backends import Backend, Channel
from cogment_model_registry.client.connection import Connection
from cogment_model_registry.client.deadlines import Backoff, Deadline
from cogment_model_registry.client.failures import Subject, translated
from cogment_model_registry.errors import (
    ClosedError,
    LimitedError,
    ModelRegistryError,
    NotFoundError,
    TimedOutError,
    UnavailableError,
    WrongServerError,
)
from cogment_model_registry.wire import messages
from cogment_model_registry.wire.channels import was_sent

_T = TypeVar("_T")
_Reply = TypeVar("_Reply", bound=messages.Message)


class Calls:
    """Makes calls on a connection.

    Args:
        backend: How to call and wait.
        connection: The connection.
        retry_seconds: How long a call is retried while the registry is unavailable.
    """

    def __init__(self, backend: Backend, connection: Connection, retry_seconds: float) -> None:
        self.backend = backend
        self.connection = connection
        self.retry_seconds = retry_seconds

    def on(self, backend: Backend) -> "Calls":
        """Return an object that makes calls on the same connection with another backend."""
        return Calls(backend, self.connection, self.retry_seconds)

    def check_open(self) -> None:
        """Refuse to begin anything that the connection would refuse; see `Connection.check_open`."""
        self.connection.check_open(self.backend)

    def without_retries(self) -> "Calls":
        """Return an object that makes each call once."""
        return Calls(self.backend, self.connection, 0.0)

    async def unary(
        self,
        method: str,
        request: messages.Message,
        reply_type: type[_Reply],
        subject: Subject,
        deadline: Deadline,
        *,
        is_idempotent: bool = True,
        service: str = messages.SERVICE_NAMES[0],
    ) -> _Reply:
        """Make a call with one request and one reply, and return the reply.

        Args:
            method: The name of the method.
            request: The request.
            reply_type: The reply's message.
            subject: What it is about.
            deadline: When to give up, with all retries.
            is_idempotent: Whether to repeat it when it is not known whether it was done.
            service: The service of the method.
        """
        data = request.SerializeToString()

        async def call(channel: Channel) -> _Reply:
            reply = await self.backend.unary(channel, method_path(method, service), data, deadline.left_seconds())
            return reply_type.FromString(reply)

        return await self.retrying(call, subject, deadline, may_be_done=lambda: not is_idempotent)

    async def retrying(
        self,
        call: Callable[[Channel], Awaitable[_T]],
        subject: Subject,
        deadline: Deadline,
        may_be_done: Callable[[], bool] = lambda: False,
        *,
        is_repeatable: bool = False,
        progress: Callable[[], int] = lambda: 0,
    ) -> _T:
        """Make a call, and repeat it while the registry is unavailable, or the caller is over a limit.

        Nothing was done for a caller over a limit, so any call is made again when the server said, until its deadline.

        Args:
            call: Makes it once, on a channel.
            subject: What it is about.
            deadline: When to give up.
            may_be_done: Returns whether the server may have done the call, which it must not do twice; called after
                a failure that does not say.
            is_repeatable: Whether the server does it only once, so that it can be repeated then too.
            progress: Returns its progress. When that grows between two failures, `retry_seconds` begin again.

        Raises:
            ModelRegistryError: It failed; with `may_be_done` when the server may have done it nevertheless.
        """
        backoff = Backoff()
        patience: Deadline | None = None
        furthest = 0
        is_uncertain = False
        while True:
            is_begun = False
            try:
                async with self.connection.channel(self.backend, deadline) as channel:
                    is_begun = True
                    with translated(subject, self.connection):
                        return await call(channel)
            except ModelRegistryError as caught:
                error = caught if is_begun else _about(subject, caught)
                if is_begun and was_sent(error.__cause__) and _is_vague(error) and may_be_done():
                    is_uncertain = True
                # Only an answer to this attempt says what an earlier one did.
                raised = _uncertain(error) if is_uncertain and not _is_answer(error) else error
                if not isinstance(error, UnavailableError) or (is_uncertain and not is_repeatable):
                    raise raised from error.__cause__
                limit = patience
                if isinstance(error, LimitedError):
                    limit = deadline if self.retry_seconds else None
                elif patience is None or progress() > furthest:
                    if patience is None:
                        await self.connection.check_stranger(self.backend, subject, error)
                    limit = patience = Deadline(min(self.retry_seconds, deadline.left_seconds()))
                    backoff, furthest = Backoff(), progress()
                seconds = backoff.next_seconds(error)
                if limit is None or limit.left_seconds() < seconds:
                    raise raised from error.__cause__
            await self.backend.sleep(seconds)


def _about(subject: Subject, error: ModelRegistryError) -> ModelRegistryError:
    """Return the error of a call for which no registry was found, with what the call was about."""
    if not isinstance(error, UnavailableError | TimedOutError | WrongServerError | NotFoundError):
        return error
    about = error.reworded(subject.message(error.message))
    about.__cause__ = error.__cause__
    return about


def _is_vague(error: ModelRegistryError) -> bool:
    """Return whether an error leaves open what the server did.

    The base class stands for a status of no certain meaning, such as of a stream that broke, or a malformed reply.
    """
    is_vague = type(error) is ModelRegistryError or isinstance(error, UnavailableError | TimedOutError | ClosedError)
    return is_vague and not isinstance(error, LimitedError)


def _is_answer(error: ModelRegistryError) -> bool:
    """Return whether an error is the registry's answer to a call, and not that of a network or of another server.

    One to a caller over a limit was given before the registry looked at the call.
    """
    return not _is_vague(error) and not isinstance(error, WrongServerError | LimitedError)


def _uncertain(error: ModelRegistryError) -> ModelRegistryError:
    """Return an error with the note that the server may have done the call."""
    uncertain = error.reworded(f"{error.message}; the server may have done it nevertheless")
    uncertain.may_be_done = True
    return uncertain


def method_path(method: str, service: str = messages.SERVICE_NAMES[0]) -> str:
    """Return the path of a method of the registry."""
    return f"/{service}/{method}"
