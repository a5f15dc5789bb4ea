"""Calls that the HTTP process makes for its callers, over a UNIX socket of its own.

The handlers are those of all other calls. Only the address differs: it is that of the HTTP client, so that access
control, limits, the log and the audit log apply to the client.
"""

import asyncio
import os
import secrets
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import grpc
import grpc.aio
from prometheus_client import CollectorRegistry, generate_latest

from cogment_model_registry.errors import ModelRegistryError, StartError
from cogment_model_registry.server.local_socket import own_directory, variable_of_directory
from cogment_model_registry.serving.calls import Call, Context, Guard, Handlers
from cogment_model_registry.wire import forwarding, messages

_SUFFIX = ".http"

_PATH_MAX_BYTES = 107 if sys.platform == "linux" else 103
"""The longest path of a UNIX socket that the system takes."""


class _Forwarded:
    """A forwarded call, with the address of the original caller."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._peer = next(
            (str(value) for name, value in context.invocation_metadata() or () if name == forwarding.PEER_KEY), ""
        )

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: Sequence[tuple[str, str]] = ()
    ) -> NoReturn:
        await self._context.abort(code, details, trailing_metadata)

    async def read(self) -> object:
        return await self._context.read()

    async def write(self, message: bytes) -> None:
        await self._context.write(message)

    def peer(self) -> str:
        return self._peer  # never that of the process: it is on this host, where callers may do more

    def invocation_metadata(self) -> Any:
        return self._context.invocation_metadata()

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        return {}


class ForwardedHandlers(grpc.GenericRpcHandler):
    """The handlers of a service, for forwarded calls.

    Args:
        handlers: The handlers for all other calls.
    """

    def __init__(self, handlers: grpc.GenericRpcHandler) -> None:
        self._handlers = handlers

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Return the handler of a method; None for one that the service does not have."""
        handler: Any = self._handlers.service(handler_call_details)
        if handler is None:
            return None
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(_forwarded(handler.unary_unary))
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(_forwarded(handler.unary_stream))
        if handler.stream_unary:
            return grpc.stream_unary_rpc_method_handler(_forwarded(handler.stream_unary))
        return grpc.stream_stream_rpc_method_handler(_forwarded(handler.stream_stream))


def _forwarded(behaviour: Callable[..., Any]) -> Callable[..., Any]:
    # gRPC checks whether it is a coroutine function.
    async def behave(request: object, context: Context) -> Any:
        return await behaviour(request, _Forwarded(context))

    return behave


def own_handlers(handlers: Handlers, guard: Guard, metrics: CollectorRegistry) -> grpc.GenericRpcHandler:
    """Return the handlers of the calls that only this socket has."""

    async def knows_token(_request: object, context: Context) -> bytes:
        try:
            return b"\1" if guard.is_known(Call(forwarding.DESCRIBE_CALLER, context, guard)) else b""
        except ModelRegistryError:
            return b""  # the token is malformed

    async def name_caller(_request: object, context: Context) -> bytes:
        # It is for the access log, so it counts as no call of the caller, who has made it already.
        try:
            caller = guard.identify(Call(forwarding.DESCRIBE_CALLER, context, guard))
        except ModelRegistryError:
            return b""  # the token is malformed, or no longer valid
        return caller.name.encode() if caller is not None else b""

    async def read(_request: object, _call: Call) -> bytes:
        return await asyncio.to_thread(generate_latest, metrics)

    async def describe(_request: object, call: Call) -> bytes:
        caller = call.caller
        scopes = tuple(map(str, caller.scopes))
        return forwarding.Description(caller.name, caller.kind, scopes, caller.expires_ns).encoded()

    methods = handlers.unary(
        {
            forwarding.READ_METRICS: (messages.VersionRequest, read),
            forwarding.DESCRIBE_CALLER: (messages.VersionRequest, describe),
        }
    )
    methods[forwarding.KNOWS_TOKEN] = grpc.unary_unary_rpc_method_handler(knows_token)
    methods[forwarding.NAME_CALLER] = grpc.unary_unary_rpc_method_handler(name_caller)
    return grpc.method_handlers_generic_handler(forwarding.SERVICE_NAME, methods)


@contextmanager
def socket_path() -> Iterator[str]:
    """Return a context manager with the path of a new socket, in a directory that no other user can enter.

    Sockets of servers that were killed are removed.

    Raises:
        StartError: No directory for the socket is available, or its path is too long.
    """
    try:
        directory = own_directory()
        for name in os.listdir(directory):
            if name.endswith(_SUFFIX):
                _remove_if_dead(os.path.join(directory, name))
        if not os.access(directory, os.W_OK | os.X_OK):
            raise PermissionError(f"{directory} is not writable")
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)
        raise StartError(
            f"http_port needs a directory for a UNIX socket ({reason}); set the variable {variable_of_directory()} to "
            "a directory in which this user may create one"
        ) from None
    path = os.path.join(directory, f"{os.getpid()}-{secrets.token_hex(4)}{_SUFFIX}")
    size_bytes = len(os.fsencode(path))
    if size_bytes > _PATH_MAX_BYTES:
        raise StartError(
            f"http_port needs a UNIX socket, and its path {path} has {size_bytes} bytes, more than the "
            f"{_PATH_MAX_BYTES} that the system allows; set the variable {variable_of_directory()} to a directory with "
            "a shorter path"
        )
    try:
        yield path
    finally:
        with suppress(OSError):
            os.unlink(path)


def _remove_if_dead(path: str) -> None:
    """Remove a socket without a listener if its server is gone; a starting server does not listen at once."""
    process = os.path.basename(path).partition("-")[0]
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        pass
    except (OSError, ValueError, OverflowError):
        return
    else:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, suppress(OSError):
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)


def listen(server: grpc.aio.Server, path: str) -> None:
    """Let a gRPC server listen at a path.

    Raises:
        StartError: The path is not available.
    """
    try:
        server.add_insecure_port(f"unix:{path}")
    except RuntimeError as error:
        raise StartError(f"the socket for HTTP, {path}, is not available: {error}") from None
