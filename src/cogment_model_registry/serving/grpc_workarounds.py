"""Workarounds for bugs of gRPC's asyncio server, seen with grpcio 1.85.

`tests/server/test_grpc_workarounds.py` shows that each is still needed. The one for the client is in
`client.asyncio_backend`.
"""

import asyncio
import codecs
import logging
import sys
from types import TracebackType

import grpc.aio


def install() -> None:
    """Install the workarounds that act on the whole process."""
    outlive_undecodable_paths()
    logging.getLogger("grpc._cython.cygrpc").addFilter(_is_about_the_server)


def _is_about_the_server(record: logging.LogRecord) -> bool:
    """Return whether a record of gRPC's log is about more than what a peer has done.

    gRPC logs an error with a traceback when the client of a call without a stream disappears at the moment when its
    reply is sent, and for each value of metadata that is not UTF-8, which it then takes for Latin-1. No reports of
    these are known.
    """
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, grpc.aio.BaseError | UnicodeDecodeError)


def outlive_undecodable_paths() -> None:
    """Keep a request whose path is not UTF-8 from stopping the whole gRPC server.

    gRPC decodes the path of each request in the one coroutine that takes all of them: where that fails, its server ends
    in silence, and may take the process with it while calls are under way (seen with grpcio 1.85). What it decodes
    there, and only there, is decoded right below the event loop, without a frame of Python in between. So the strict
    handler of decoding errors recognises this case by its caller, and puts a mark in place of bytes that are not text,
    for which gRPC answers UNIMPLEMENTED. All other decoding stays strict. No report of it is known.
    """
    strict = codecs.strict_errors
    # Of asyncio's own loop, and of uvloop's, which has no frame itself.
    event_loops = {asyncio.Handle._run.__code__, asyncio.Runner.run.__code__}  # noqa: SLF001

    def replace_for_grpc(error: UnicodeError) -> tuple[str | bytes, int]:
        caller = sys._getframe(1).f_code  # noqa: SLF001 # the caller has no public name
        if isinstance(error, UnicodeDecodeError) and caller in event_loops:
            return "\N{REPLACEMENT CHARACTER}", error.end
        return strict(error)

    codecs.register_error("strict", replace_for_grpc)


class _BrokenCallsAreCancelled:
    """A class of its own, since a generator costs a watcher a tenth of a message."""

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # `abort` ends a handler by an `AbortError`.
        if isinstance(error, grpc.aio.BaseError) and not isinstance(error, grpc.aio.AbortError):
            raise asyncio.CancelledError from error


broken_calls_are_cancelled = _BrokenCallsAreCancelled()
"""The context manager that turns gRPC's own errors of a write or an abort into `asyncio.CancelledError`.

gRPC cancels the handler of a call whose peer is gone, but sometimes only after an operation that was under way has
failed with an error of gRPC's own.
"""


def forget_traceback(error: BaseException) -> None:
    """Drop the traceback of an error that ended a call; call this when the call is over.

    gRPC keeps the error of an aborted call in the state of the call, and its traceback refers to that state: a cycle
    that would hold the received bytes of a refused upload until the next full garbage collection. gRPC's blocking
    server had the same bug: https://github.com/grpc/grpc/pull/17899
    """
    error.__traceback__ = None
