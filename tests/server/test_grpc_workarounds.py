"""Each workaround for gRPC is still needed: without it, gRPC fails."""

import asyncio
import contextlib
import gc
import importlib
import logging
import subprocess
import sys
import weakref
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import grpc.aio
import pytest

from cogment_model_registry.serving import grpc_workarounds
from tests.torture.http2_abuse import Peer

ExecuteBatchError: Any = importlib.import_module("grpc._cython.cygrpc").ExecuteBatchError  # it has no type

SERVER = """
import asyncio, sys
import grpc.aio
from cogment_model_registry.serving.grpc_workarounds import install

async def answer(request, context):
    return request

async def main():
    if sys.argv[1] == "with":
        install()
    server = grpc.aio.server()
    methods = {"Echo": grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Service", methods)])
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await server.wait_for_termination()

asyncio.run(main())
"""


@contextlib.contextmanager
def serving(workaround: str) -> Iterator[int]:
    """Run a gRPC server in a separate process, and return its port."""
    command = [sys.executable, "-c", SERVER, workaround]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout
            yield int(process.stdout.readline())
        finally:
            process.kill()


def answers(port: int, timeout_seconds: float) -> bool:
    """Return whether a server answers a valid call."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        echo: Any = channel.unary_unary("/test.Service/Echo")
        try:
            return bool(echo(b"x", timeout=timeout_seconds) == b"x")
        except grpc.RpcError:
            return False


@pytest.mark.parametrize("workaround", ["with", "without"])
def test_a_path_that_is_not_utf8_stops_a_server_only_without_the_workaround(workaround: str) -> None:
    with serving(workaround) as port:
        assert answers(port, 30)
        with contextlib.closing(Peer(port)) as peer:
            peer.call(1, "Echo", changes={":path": b"/test.Service/\xff"})
            peer.wait()
        # Without the workaround, no wait is long enough; with it, the wait is short.
        assert answers(port, 30 if workaround == "with" else 2) == (workaround == "with")


class Received:
    """Stands for the bytes that a handler holds."""


async def aborted(forget: Callable[[BaseException], None]) -> bool:
    """Abort a call, and return whether the bytes of its handler are freed without a garbage collection."""
    held: list[weakref.ref[Received]] = []
    ended = asyncio.Event()

    async def answer(_request: bytes, context: Any) -> None:
        received = Received()
        held.append(weakref.ref(received))
        task = asyncio.current_task()
        assert task
        task.add_done_callback(lambda _: ended.set())
        try:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT)
        except grpc.aio.AbortError as error:
            task.add_done_callback(_forgetting(forget, error))
            raise

    server = grpc.aio.server()
    methods: dict[str, Any] = {"Abort": grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Service", methods)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await _called(channel)
        await ended.wait()
        await asyncio.sleep(0)
        return held[0]() is None
    finally:
        await server.stop(0)


def _forgetting(
    forget: Callable[[BaseException], None], error: BaseException
) -> Callable[["asyncio.Task[object]"], None]:
    return lambda _: forget(error)


def _called(channel: Any) -> Awaitable[bytes]:
    call: Awaitable[bytes] = channel.unary_unary("/test.Service/Abort")(b"")
    return call


@pytest.mark.parametrize("is_needed", [True, False])
async def test_an_aborted_call_keeps_its_received_bytes_only_without_the_workaround(is_needed: bool) -> None:
    gc.collect()
    gc.disable()
    try:
        forget = (lambda _: None) if is_needed else grpc_workarounds.forget_traceback
        assert await aborted(forget) != is_needed
    finally:
        gc.enable()


@pytest.mark.parametrize(("error", "is_logged"), [(ExecuteBatchError("Failed"), False), (ValueError("a bug"), True)])
def test_only_the_loss_of_a_peer_is_not_logged(
    error: Exception, is_logged: bool, caplog: pytest.LogCaptureFixture
) -> None:
    grpc_workarounds.install()
    try:
        raise error
    except (ExecuteBatchError, ValueError):
        logging.getLogger("grpc._cython.cygrpc").exception("raised in core")
    assert bool(caplog.records) == is_logged


def test_metadata_that_is_not_text_leaves_no_error_in_the_log() -> None:
    """The proof `http2_abuse` sends such metadata, and fails if gRPC's error is in the log."""
    try:
        b"\xff".decode()
    except UnicodeDecodeError:
        shown = logging.LogRecord("grpc", logging.ERROR, "", 0, "Invalid encoding on %s", (b"\xff",), sys.exc_info())
    assert not grpc_workarounds._is_about_the_server(shown)
