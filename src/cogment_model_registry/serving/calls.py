"""How a call of any gRPC service begins and ends: decoded from raw bytes, answered, logged, counted.

Requests are taken as raw bytes and decoded by the service, so that a malformed message is the caller's fault
(INVALID_ARGUMENT) and not the server's (INTERNAL, which gRPC's own decoding answers), and so that the bytes of an
upload are not copied on the way.
"""

import asyncio
import contextlib
import functools
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, NoReturn, Protocol, TypeAlias, TypeVar

import grpc
import grpc.aio
import structlog

from cogment_model_registry.errors import (
    LimitedError,
    ModelRegistryError,
    StoppingError,
    UnauthenticatedError,
    UnavailableError,
    shown,
)
from cogment_model_registry.registry.access import NOBODY, Caller
from cogment_model_registry.registry.journals import Journal
from cogment_model_registry.serving import grpc_workarounds
from cogment_model_registry.serving.caller_limits import CallerLimits, CallShare
from cogment_model_registry.wire.convert import AnyMessage, decode, status_of
from cogment_model_registry.wire.pushback import pushback

_log = structlog.stdlib.get_logger(__name__)
_levels = logging.getLogger(__name__)

_DETAILS_MAX_CHARACTERS = 1000
"""Details travel as a header, and clients refuse 8 KiB of headers."""

_T = TypeVar("_T")
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # generic in gRPC's stubs alone


class Context(Protocol):
    """The part of gRPC's context that a handler needs; gRPC's own types lack raw bytes."""

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: Sequence[tuple[str, str]] = ()
    ) -> NoReturn:
        """End the call with a status."""

    async def read(self) -> object:
        """Return the next message of a stream; `grpc.aio.EOF` at its end."""

    async def write(self, message: bytes) -> None:
        """Send a message of a stream."""

    def peer(self) -> str:
        """Return the address of the caller."""

    def invocation_metadata(self) -> Any:
        """Return the metadata that came with the call."""

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Return what is known of the caller's certificate."""


class Guard(Protocol):
    """Decides who may do what."""

    def check_method(self, method: str) -> None:
        """Raise `KeyError` for a method about which it could not decide."""

    def identify(self, call: "Call") -> Caller | None:
        """Return who makes a call; None if `look_up` may find out.

        Raises:
            UnauthenticatedError: They have to say who they are, and have not.
        """

    async def look_up(self, call: "Call") -> Caller:
        """Return who makes a call; see `identify`."""

    def is_known(self, call: "Call") -> bool:
        """Return whether `identify` has nothing to check that takes time: there is no token, or a known one."""

    def decide(self, call: "Call", request: object) -> None:
        """Refuse what the caller may not do.

        Raises:
            PermissionDeniedError: They may not.
        """

    def check_still(self, caller: Caller) -> None:
        """Refuse a caller whose time is over.

        Raises:
            UnauthenticatedError: It is.
        """


@dataclass(slots=True)
class Call:
    """One call under way.

    Attributes:
        method: The method's name.
        context: gRPC's side of it.
        guard: Decides what the caller may do; None where everybody may do everything.
        limits: How much each caller may do; None for no limits.
        caller: Who makes it.
        share: What it has of what its caller may do; None where nothing is limited, and until it is known who that is.
        subject: The model, the version, and so on, for the log.
        journal: Keeps the changes that the call makes; None where none is kept, and for calls that change nothing.
        received_bytes: Bytes of request messages so far.
        received_messages: Request messages so far.
        sent_bytes: Bytes of reply messages so far.
        sent_messages: Reply messages so far.
    """

    method: str
    context: Context
    guard: Guard | None = None
    limits: CallerLimits | None = None
    caller: Caller = NOBODY
    share: CallShare | None = None
    subject: dict[str, object] = field(default_factory=dict)
    journal: Journal | None = None
    received_bytes: int = 0
    received_messages: int = 0
    sent_bytes: int = 0
    sent_messages: int = 0

    def about(self, **subject: object) -> None:
        """Record what the call is about, for the log."""
        self.subject.update(subject)

    async def identify(self) -> None:
        """Find out who makes the call.

        Raises:
            UnauthenticatedError: They have to say who they are, and have not.
            LimitedError: They have not too often.
        """
        limits = self.limits
        if self.guard is not None:
            try:
                if limits is not None and limits.has_no_logins(self.context.peer) and not self.guard.is_known(self):
                    raise limits.login_refusal(self.context.peer())
                self.caller = self.guard.identify(self) or await self.guard.look_up(self)
            except UnauthenticatedError:
                if limits is not None:
                    limits.count_refused_login(self.context.peer(), self.received_bytes)
                raise
        if limits is not None:
            self.share = limits.enter(self.caller, self.context.peer)
            self.share.charge(self.received_bytes)

    def begin(self, *, is_upload: bool = False) -> None:
        """Count the call for its caller. Every call passes here before anything of it is decoded or answered.

        Args:
            is_upload: Whether it is an upload.

        Raises:
            LimitedError: The caller is over a limit.
        """
        if self.share is not None:
            self.share.begin(is_upload=is_upload)

    async def paced(self, size_bytes: int) -> None:
        """Wait until the caller may move the next message of a stream.

        Args:
            size_bytes: Its size, as far as that is known.
        """
        if self.share is not None:
            await self.share.paced(size_bytes)

    def admit(self, request: object) -> None:
        """Refuse what the caller may not do. Every request passes here before anything answers it.

        Args:
            request: The message; of an upload, its header as a record.

        Raises:
            PermissionDeniedError: They may not.
        """
        if self.guard is not None:
            self.guard.decide(self, request)

    def count_received(self, message: bytes) -> bytes:
        """Count a request message, and return it."""
        self.received_bytes += len(message)
        self.received_messages += 1
        if self.share is not None:
            self.share.charge(len(message))
        return message

    async def read(self) -> bytes | None:
        """Return the next message of a stream, counted; None at its end.

        gRPC's own iterator of requests would keep each message in memory until the next one comes.
        """
        message = await self.context.read()
        if not isinstance(message, bytes):
            return None
        self.received_bytes += len(message)
        self.received_messages += 1
        if self.share is not None:
            self.share.charge(len(message))
        return message

    def count_sent(self, message: bytes) -> bytes:
        """Count a reply message, and return it."""
        self.sent_bytes += len(message)
        self.sent_messages += 1
        if self.share is not None:
            self.share.charge(len(message))
        return message

    async def write(self, message: bytes) -> None:
        """Send a message of a stream.

        Raises:
            asyncio.CancelledError: The peer is gone.
            UnauthenticatedError: The caller was revoked in the meantime, or has expired.
        """
        if self.guard is not None:
            self.guard.check_still(self.caller)
        with grpc_workarounds.broken_calls_are_cancelled:
            await self.context.write(self.count_sent(message))

    def when_over(self, action: Callable[[], None]) -> None:
        """Run an action when gRPC has finished the call."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a call runs in a task")
        task.add_done_callback(lambda _: action())

    def metadata(self, key: str) -> str:
        """Return the value that came with the call under a key; empty when none did."""
        return next((str(value) for name, value in self.context.invocation_metadata() or () if name == key), "")


UnaryAnswers: TypeAlias = Mapping[str, tuple[type[Any], Callable[[Any, Call], Awaitable[bytes]]]]
"""By the name of a method with one request and one reply: the type of the request, and what answers it."""

Observer: TypeAlias = Callable[[Call, str, float], None]
"""Called after each finished call, with the call, the name of its status, and the seconds that it took."""


class Handlers:
    """Makes gRPC handlers of a service's methods, and counts the calls under way.

    Args:
        observe: Called after each finished call.
        guard: Decides what callers may do; None where everybody may do everything.
        limits: How much each caller may do; None for no limits.
    """

    def __init__(self, observe: Observer, guard: Guard | None = None, limits: CallerLimits | None = None) -> None:
        self._observe = observe
        self._guard = guard
        self._limits = limits
        self._calls = 0
        self._none_left: asyncio.Event | None = None  # while somebody waits

    async def drained(self) -> None:
        """Wait until no call is under way."""
        while self._calls:
            self._none_left = self._none_left or asyncio.Event()
            await self._none_left.wait()

    def unary(self, answers: UnaryAnswers) -> dict[str, _Handler]:
        """Return the handlers of methods with one request and one reply."""
        return {
            method: grpc.unary_unary_rpc_method_handler(self._given_one(method, request_type, answer))
            for method, (request_type, answer) in answers.items()
        }

    def streamed_request(self, method: str, answer: Callable[[Call], Awaitable[bytes]]) -> _Handler:
        """Return the handler of a method with a stream of requests and one reply.

        `answer` begins the call, so that it can read what the client of a refused one still sends; and it reads and
        admits the requests.
        """
        return grpc.stream_unary_rpc_method_handler(self._given_stream(method, answer))

    def streamed_reply(
        self, method: str, request_type: type[AnyMessage], answer: Callable[[AnyMessage, Call], Awaitable[None]]
    ) -> _Handler:
        """Return the handler of a method with one request and a stream of replies."""
        return grpc.unary_stream_rpc_method_handler(self._given_one(method, request_type, answer))

    def streamed(self, method: str, answer: Callable[[Call], Awaitable[None]]) -> _Handler:
        """Return the handler of a method with a stream each way, which `answer` begins, reads, admits and writes."""
        return grpc.stream_stream_rpc_method_handler(self._given_stream(method, answer))

    def _given_one(
        self, method: str, request_type: type[AnyMessage], answer: Callable[[AnyMessage, Call], Awaitable[_T]]
    ) -> Callable[..., Awaitable[_T]]:
        """Return the behaviour of a method with one request."""
        self._check(method)

        async def answer_admitted(data: bytes, call: Call) -> _T:
            call.count_received(data)
            await call.identify()
            call.begin()
            request = decode(request_type, data)
            call.admit(request)
            return await answer(request, call)

        async def handle(data: bytes, context: Context) -> _T:
            call = Call(method, context, self._guard, self._limits)
            return await self.answer(call, answer_admitted(data, call))

        return handle

    def _given_stream(self, method: str, answer: Callable[[Call], Awaitable[_T]]) -> Callable[..., Awaitable[_T]]:
        """Return the behaviour of a method with a stream of requests."""
        self._check(method)

        async def answer_identified(call: Call) -> _T:
            await call.identify()
            return await answer(call)

        async def handle(_messages: object, context: Context) -> _T:
            call = Call(method, context, self._guard, self._limits)
            return await self.answer(call, answer_identified(call))

        return handle

    def _check(self, method: str) -> None:
        if self._guard is not None:
            self._guard.check_method(method)

    async def answer(self, call: Call, answer: Awaitable[_T]) -> _T:
        """Await an answer, and end the call with the status of an error if one is raised.

        Args:
            call: The call.
            answer: Its reply, or None where replies are a stream, which it has sent.
        """
        self._calls += 1
        started = perf_counter()
        status, details = grpc.StatusCode.OK, ""
        level = logging.DEBUG
        metadata: tuple[tuple[str, str], ...] = ()
        try:
            reply = await answer
            if call.journal is not None:
                await call.journal.written()
            if isinstance(reply, bytes):
                call.count_sent(reply)
            return reply
        except ModelRegistryError as error:
            status, details, level = status_of(error), error.message, _level(error)
            metadata = pushback(error)
            if call.journal is not None:
                with contextlib.suppress(ModelRegistryError):
                    await call.journal.written()  # a call that failed may have changed something before
        except asyncio.CancelledError:
            status = grpc.StatusCode.CANCELLED
            raise
        except Exception:
            _log.exception("call failed unexpectedly", call=call.method, **call.subject)
            status, details = grpc.StatusCode.INTERNAL, "the server failed; its log says why"
        finally:
            self._calls -= 1
            if call.share is not None:
                call.share.leave()
            if not self._calls and self._none_left is not None:
                self._none_left.set()
                self._none_left = None
            self._finish(call, status, details, level, perf_counter() - started)
        try:
            with grpc_workarounds.broken_calls_are_cancelled:
                return await call.context.abort(status, details[:_DETAILS_MAX_CHARACTERS], metadata)
        except grpc.aio.AbortError as aborted:
            call.when_over(functools.partial(grpc_workarounds.forget_traceback, aborted))
            raise

    def _finish(self, call: Call, status: grpc.StatusCode, details: str, level: int, seconds: float) -> None:
        name = "OK" if status is grpc.StatusCode.OK else status.name  # the name of an enum's member takes two calls
        self._observe(call, name, seconds)
        if _levels.isEnabledFor(level):
            fields = {
                **{name: shown(value) for name, value in call.subject.items()},
                "received_bytes": call.received_bytes,
                "sent_bytes": call.sent_bytes,
                "seconds": round(seconds, 6),
                "peer": call.context.peer(),
            }
            if call.caller.is_named:
                fields["caller"] = call.caller.name
            if details:
                fields["details"] = details
            _log.log(level, f"{call.method} {name}", **fields)


def _level(error: ModelRegistryError) -> int:
    """Return the level at which to log a call that ended with an error: a failure of the server, or a refusal.

    Damage of a version is logged once, where it is found; later calls for it count as refused.
    """
    if isinstance(error, StoppingError | LimitedError):
        return logging.DEBUG  # a stop with a thousand watchers, or a caller without end, must not log each refusal
    return logging.ERROR if isinstance(error, UnavailableError) else logging.INFO
