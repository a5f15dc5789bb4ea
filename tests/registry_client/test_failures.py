"""What the client does when the server or the network fails."""

import asyncio
import hashlib
import io
import os
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import grpc
import pytest

from cogment_model_registry import ModelRegistry, Progress, aio, errors
from cogment_model_registry.client import connection, watching
from cogment_model_registry.discovery.server import running
from cogment_model_registry.records.versions import digest_text
from cogment_model_registry.server.composition import Server
from cogment_model_registry.settings import MIB, DirectorySettings, Settings
from cogment_model_registry.testing.server import serving
from cogment_model_registry.wire import messages as m
from cogment_model_registry.wire.frames import split_body
from tests.ports import free_port
from tests.registry_client.conftest import Awaited, counted, opened
from tests.registry_client.network import Freezing, cutting, http2_server, listening, tcp_server
from tests.registry_client.scripted import (
    DATA,
    HASH,
    Call,
    chunks,
    created,
    failing,
    infos,
    scripted,
    silence,
    version_message,
)
from tests.waiting import PATIENCE_SECONDS, eventually, until

LARGE = os.urandom(32 * MIB)

Calling = Callable[[Any], Any]

READS: dict[str, Calling] = {
    "list_models": lambda registry: registry.list_models(),
    "get_model": lambda registry: registry.get_model("policy"),
    "list_versions": lambda registry: registry.list_versions("policy"),
    "get_version": lambda registry: registry.get_version("policy"),
    "retrieve": lambda registry: registry.retrieve("policy"),
    "status": lambda registry: registry.status(),
    "server_versions": lambda registry: registry.server_versions(),
}
WRITES: dict[str, Calling] = {
    "create_model": lambda registry: registry.create_model("policy"),
    "delete_model": lambda registry: registry.delete_model("policy"),
    "publish": lambda registry: registry.publish("policy", DATA),
    "store": lambda registry: registry.store("policy", DATA),
}
ALL = READS | WRITES


@pytest.mark.parametrize("call", ALL.values(), ids=ALL)
async def test_a_server_that_is_down_is_unavailable(flavour: str, call: Calling) -> None:
    port = free_port()
    advice = "check that a model registry runs there, on this port"
    message = f"cannot connect to grpc://127.0.0.1:{port}: Connection refused; {advice}$"
    async with opened(flavour, port, retry_seconds=0.2) as registry:
        with pytest.raises(errors.UnavailableError, match=message) as caught:
            await call(registry)
    assert not caught.value.may_be_done


@pytest.mark.parametrize("call", ALL.values(), ids=ALL)
async def test_a_server_that_does_not_answer_times_out(flavour: str, call: Calling) -> None:
    methods = ["RetrieveModels", "CreateOrUpdateModel", "DeleteModel", "RetrieveVersionInfos", "CreateVersion"]
    methods += ["Status", "Version"]
    async with (
        scripted(**dict.fromkeys(methods, silence)) as server,
        opened(flavour, server.port, timeout=0.3) as registry,
    ):
        with pytest.raises(errors.TimedOutError):
            await call(registry)


async def test_a_timeout_of_one_call_overrides_that_of_the_client(flavour: str) -> None:
    async with scripted(RetrieveModels=silence) as server, opened(flavour, server.port, timeout=50) as registry:
        with pytest.raises(errors.TimedOutError, match="listing the models: it took longer than its timeout"):
            await registry.list_models(timeout=0.2)


async def test_a_download_that_stalls_times_out(flavour: str, tmp_path: Path) -> None:
    async def stall(call: Call) -> None:
        await chunks(DATA[:1000])(call)
        await silence(call)

    async with (
        scripted(RetrieveVersionInfos=infos, RetrieveVersionData=stall) as server,
        opened(flavour, server.port) as registry,
    ):
        with pytest.raises(errors.TimedOutError):
            await registry.download("policy", tmp_path / "file", timeout=0.5)
    assert os.listdir(tmp_path) == []


async def test_a_call_is_retried_while_the_server_sheds_load(flavour: str) -> None:
    async def models(call: Call) -> None:
        await call.send(m.RetrieveModelsReply())

    async with scripted(RetrieveModels=failing(3, models)) as server, opened(flavour, server.port) as registry:
        assert await registry.list_models() == []
        assert server.calls == {"RetrieveModels": 4}


async def test_a_server_that_sheds_load_for_too_long_is_unavailable(flavour: str) -> None:
    async with scripted(RetrieveModels=failing(10**6, silence)) as server:
        async with opened(flavour, server.port, retry_seconds=0.3) as registry:
            with pytest.raises(errors.UnavailableError, match="listing the models: for the test"):
                await registry.list_models()
        assert server.calls["RetrieveModels"] > 1


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, errors.InvalidError),
        (grpc.StatusCode.NOT_FOUND, errors.NotFoundError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.TooLargeError),
        (grpc.StatusCode.DATA_LOSS, errors.DataLossError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.TimedOutError),
        (grpc.StatusCode.INTERNAL, errors.ModelRegistryError),
        (grpc.StatusCode.UNKNOWN, errors.ModelRegistryError),
        (grpc.StatusCode.UNIMPLEMENTED, errors.WrongServerError),
        (grpc.StatusCode.PERMISSION_DENIED, errors.PermissionDeniedError),
        (grpc.StatusCode.UNAUTHENTICATED, errors.UnauthenticatedError),
    ],
)
async def test_a_final_error_is_not_retried(
    flavour: str, status: grpc.StatusCode, kind: type[errors.ModelRegistryError]
) -> None:
    async with scripted(RetrieveModels=failing(10**6, silence, status)) as server:
        async with opened(flavour, server.port) as registry:
            with pytest.raises(errors.ModelRegistryError, match="for the test") as caught:
                await registry.list_models()
        assert type(caught.value) is kind
        assert server.calls["RetrieveModels"] == 1


async def test_a_malformed_reply_is_an_error(flavour: str) -> None:
    async def garbage(call: Call) -> None:
        await call.send(b"\xff\xff\xff")

    async with (
        scripted(RetrieveModels=garbage, RetrieveVersionInfos=infos, RetrieveVersionData=garbage) as server,
        opened(flavour, server.port) as registry,
    ):
        for call in (registry.list_models, lambda: registry.retrieve("policy")):
            with pytest.raises(errors.ModelRegistryError, match="malformed reply"):
                await call()


async def test_a_silent_server_is_unavailable_or_times_out(flavour: str) -> None:
    async with tcp_server(b"") as port, opened(flavour, port, retry_seconds=0.2, timeout=1) as registry:
        with pytest.raises((errors.UnavailableError, errors.TimedOutError)):
            await registry.list_models()


# Servers that are not registries. These errors are not retried: that would end with another error after the timeout.


@pytest.mark.parametrize(
    ("answer", "who"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "an HTTP/1 server"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "an SSH server"),
        (b"-ERR unknown command 'PRI'\r\n", "something else"),
        (b"\0" * 100, "something else"),
    ],
    ids=["http", "ssh", "redis", "zeros"],
)
async def test_a_server_that_does_not_speak_grpc_is_named_at_once(flavour: str, answer: bytes, who: str) -> None:
    async with tcp_server(answer) as port, opened(flavour, port, retry_seconds=600) as registry:
        message = f"grpc://127.0.0.1:{port} is not a model registry: {who} answers there; check"
        with pytest.raises(errors.WrongServerError, match=f"listing the models: {message}"):
            await registry.list_models()
        async with aclosing(registry.watch("policy")) as versions:
            with pytest.raises(errors.WrongServerError, match=f'watching model "policy": {message}'):
                await anext(versions)
        async with registry.track("policy") as latest:
            await until(lambda: isinstance(latest.error, errors.WrongServerError))


@pytest.mark.parametrize("call", ALL.values(), ids=ALL)
async def test_every_call_says_that_another_grpc_server_is_not_a_model_registry(flavour: str, call: Calling) -> None:
    directory = DirectorySettings(port=0, host="127.0.0.1", persistence_file="", grace_seconds=0)
    async with running(directory) as server, opened(flavour, server.port, retry_seconds=600) as registry:
        message = f"grpc://127.0.0.1:{server.port} is not a model registry: the server there does not know the call"
        with pytest.raises(errors.WrongServerError, match=message) as caught:
            await call(registry)
    assert not caught.value.may_be_done


@pytest.mark.parametrize(("status", "kind"), [(404, errors.WrongServerError), (503, errors.UnavailableError)])
@pytest.mark.parametrize("version", [1, 2])
async def test_a_proxy_without_a_registry_is_a_wrong_server_or_unavailable(
    flavour: str, version: int, status: int, kind: type[errors.ModelRegistryError]
) -> None:
    proxy = http2_server(status) if version == 2 else tcp_server(f"HTTP/1.1 {status} For The Test\r\n\r\n".encode())
    async with proxy as port, opened(flavour, port, retry_seconds=0.5) as registry:
        with pytest.raises(errors.ModelRegistryError) as caught:
            await registry.list_models()
    assert type(caught.value) is kind
    if kind is errors.WrongServerError:
        assert f"grpc://127.0.0.1:{port} is not a model registry" in caught.value.message


async def test_a_registry_given_as_a_directory_is_named_in_the_error(flavour: str, server: Server) -> None:
    cls = ModelRegistry if flavour == "blocking" else aio.ModelRegistry
    client: Any = cls(directory_endpoint=f"grpc://127.0.0.1:{server.port}", retry_seconds=600)
    registry = Awaited(client) if flavour == "blocking" else client
    try:
        with pytest.raises(errors.WrongServerError, match=f"grpc://127.0.0.1:{server.port} is not a Directory: the"):
            await registry.list_models()
    finally:
        await registry.close()


# Uploads.


async def test_an_upload_is_retried_while_the_server_cannot_have_received_it(flavour: str) -> None:
    async def answer(call: Call) -> None:
        await call.receive()
        if call.number == 1:
            await call.fail(grpc.StatusCode.UNAVAILABLE)
        await created(call, LARGE)

    async with scripted(CreateVersion=answer) as server, opened(flavour, server.port) as registry:
        assert (await registry.publish("policy", LARGE)).number == 1
        assert server.calls["CreateVersion"] == 2


@pytest.mark.parametrize("data", [b"", b"weights", DATA], ids=["empty", "small", "large"])
async def test_an_upload_that_the_server_may_have_received_is_not_retried(flavour: str, data: bytes) -> None:
    async def answer(call: Call) -> None:
        await call.receive_all()
        await call.fail(grpc.StatusCode.UNAVAILABLE)

    async with scripted(CreateVersion=answer) as server, opened(flavour, server.port) as registry:
        with pytest.raises(errors.UnavailableError, match="may have done it nevertheless") as caught:
            await registry.publish("policy", data)
        assert caught.value.may_be_done
        assert server.calls["CreateVersion"] == 1


async def test_an_upload_that_ends_with_an_ambiguous_status_may_have_taken_effect(flavour: str) -> None:
    async def answer(call: Call) -> None:
        await call.receive_all()
        if call.number == 1:
            await call.fail(grpc.StatusCode.INTERNAL)
        await call.send(b"\xff\xff\xff")

    async with scripted(CreateVersion=answer) as server, opened(flavour, server.port) as registry:
        for _ in range(2):
            with pytest.raises(errors.ModelRegistryError) as caught:
                await registry.publish("policy", DATA)
            assert caught.value.may_be_done
        assert server.calls["CreateVersion"] == 2


async def test_an_upload_without_a_reply_may_have_taken_effect(flavour: str) -> None:
    async def answer(call: Call) -> None:
        await call.receive_all()
        await silence(call)

    async with scripted(CreateVersion=answer) as server, opened(flavour, server.port) as registry:
        with pytest.raises(errors.TimedOutError) as caught:
            await registry.publish("policy", DATA, timeout=1)
        assert caught.value.may_be_done


async def test_a_deletion_that_may_have_taken_effect_is_not_retried(flavour: str) -> None:
    async with scripted(DeleteModel=failing(1, silence)) as server, opened(flavour, server.port) as registry:
        with pytest.raises(errors.UnavailableError) as caught:
            await registry.delete_model("policy")
        assert caught.value.may_be_done
        assert server.calls["DeleteModel"] == 1


async def test_the_model_is_looked_up_only_when_it_is_missing(flavour: str) -> None:
    async def models(call: Call) -> None:
        await call.fail(grpc.StatusCode.NOT_FOUND)

    async def create(call: Call) -> None:
        await call.send(m.CreateOrUpdateModelReply())

    upload = failing(1, created, grpc.StatusCode.NOT_FOUND)
    async with scripted(CreateVersion=upload, RetrieveModels=models, CreateOrUpdateModel=create) as server:
        async with opened(flavour, server.port) as registry:
            await registry.publish("policy", DATA)
            await registry.publish("policy", DATA)
        assert server.calls == {"CreateVersion": 3, "RetrieveModels": 1, "CreateOrUpdateModel": 1}


async def test_a_server_that_stored_wrong_bytes_is_detected(flavour: str) -> None:
    async def answer(call: Call) -> None:
        await created(call, b"others")

    async with scripted(CreateVersion=answer) as server, opened(flavour, server.port) as registry:
        with pytest.raises(errors.DataLossError, match="stored other bytes"):
            await registry.publish("policy", DATA)


async def test_a_version_that_does_not_fit_the_server_is_too_large(flavour: str, tmp_path: Path) -> None:
    settings = Settings(cache_max_bytes=MIB, grace_seconds=0)
    async with serving(tmp_path / "archive", settings) as server, opened(flavour, server.port) as registry:
        with pytest.raises(errors.TooLargeError, match="publishing a version"):
            await registry.publish("policy", LARGE)
        assert await registry.list_versions("policy") == []


async def test_a_file_truncated_while_it_is_sent_leaves_no_version(
    flavour: str, server: Server, tmp_path: Path
) -> None:
    path = tmp_path / "weights"
    path.write_bytes(LARGE)

    def cut(_progress: Progress) -> None:
        os.truncate(path, 20 * MIB)

    async with opened(flavour, server.port) as registry:
        await registry.create_model("policy")
        with pytest.raises(errors.InvalidError, match="was truncated while it was read"):
            await registry.publish("policy", path, progress=cut)
        assert await registry.list_versions("policy") == []
        assert (await registry.status())["uploads"] == "0"


# Downloads.


async def test_a_broken_download_starts_again(flavour: str) -> None:
    async def answer(call: Call) -> None:
        if call.number <= 2:
            await chunks(DATA[: 3 * MIB])(call)
            await call.fail(grpc.StatusCode.UNAVAILABLE)
        await chunks(DATA[: 2 * MIB], DATA[2 * MIB :])(call)

    async with scripted(RetrieveVersionInfos=infos, RetrieveVersionData=answer) as server:
        async with opened(flavour, server.port) as registry:
            assert await registry.retrieve("policy") == DATA
        assert server.calls["RetrieveVersionData"] == 3


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([DATA[:-1]], "5242879 of its 5242880 bytes were received"),
        ([], "0 of its 5242880 bytes were received"),
        ([DATA, b"x"], "were followed by more"),
        ([DATA[: 2 * MIB], b"x", DATA[2 * MIB + 1 :]], "its data_hash is"),
    ],
    ids=["short", "nothing", "long", "wrong"],
)
async def test_wrong_bytes_are_never_returned(flavour: str, parts: list[bytes], message: str, tmp_path: Path) -> None:
    async with (
        scripted(RetrieveVersionInfos=infos, RetrieveVersionData=chunks(*parts)) as server,
        opened(flavour, server.port, cache_dir=tmp_path / "cache") as registry,
    ):
        with pytest.raises(errors.DataLossError, match=message):
            await registry.retrieve("policy")
        with pytest.raises(errors.DataLossError, match=message):
            await registry.download("policy", tmp_path / "file")
    assert os.listdir(tmp_path) == []


async def test_the_latest_version_is_looked_up_again_when_it_was_evicted_before_the_fetch(flavour: str) -> None:
    async def newer(call: Call) -> None:
        await infos(call, number=call.number)

    data = failing(2, chunks(DATA), grpc.StatusCode.NOT_FOUND)
    async with scripted(RetrieveVersionInfos=newer, RetrieveVersionData=data) as server:
        async with opened(flavour, server.port) as registry:
            assert await registry.retrieve("policy") == DATA
        assert server.calls["RetrieveVersionData"] == 3


async def test_an_evicted_version_is_not_found(flavour: str) -> None:
    data = failing(10**6, silence, grpc.StatusCode.NOT_FOUND)
    async with scripted(RetrieveVersionInfos=infos, RetrieveVersionData=data) as server:
        async with opened(flavour, server.port) as registry:
            with pytest.raises(errors.NotFoundError):
                await registry.retrieve("policy")
        assert server.calls["RetrieveVersionData"] == 1


async def test_an_announced_impossible_size_allocates_no_memory(flavour: str) -> None:
    async def huge(call: Call) -> None:
        message = version_message(1, HASH, 2**62)
        await call.send(m.RetrieveVersionInfosReply(version_infos=[message]))

    async with (
        scripted(RetrieveVersionInfos=huge, RetrieveVersionData=chunks(DATA)) as server,
        opened(flavour, server.port) as registry,
    ):
        with pytest.raises(errors.DataLossError, match=f"of its {2**62} bytes were received"):
            await registry.retrieve("policy")


# Cancelling.


async def test_cancelling_ends_an_upload_and_a_download(server: Server, tmp_path: Path) -> None:
    async with aio.ModelRegistry(f"grpc://127.0.0.1:{server.port}") as registry:
        await registry.store("policy", LARGE)
        begun = asyncio.Event()
        loop = asyncio.get_running_loop()

        def note(_progress: Progress) -> None:
            loop.call_soon_threadsafe(begun.set)

        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: registry.publish(
                "policy", LARGE[1:], progress=note
            ),  # bytes that the model already has are not sent
            lambda: registry.download("policy", tmp_path / "file", progress=note),
        ]
        for call in calls:
            begun.clear()
            task = asyncio.ensure_future(call())
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert os.listdir(tmp_path) == ["archive"]
        assert [version.number for version in await registry.list_versions("policy")] == [1]
        await counted(registry, uploads=0, retrievals=0)


async def test_a_download_succeeds_over_a_network_that_breaks_connections(
    flavour: str, server: Server, tmp_path: Path
) -> None:
    async with opened(flavour, server.port) as registry:
        await registry.store("policy", LARGE)
    async with cutting(server.port, cuts=2, after_bytes=10 * MIB) as port, opened(flavour, port) as registry:
        await registry.download("policy", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == LARGE


async def test_an_upload_creates_one_version_over_a_network_that_breaks_connections(
    flavour: str, server: Server
) -> None:
    async with (
        cutting(server.port, cuts=2, after_bytes=10 * MIB, upwards=True) as port,
        opened(flavour, port) as registry,
    ):
        assert (await registry.publish("policy", LARGE)).number == 1
        assert [version.number for version in await registry.list_versions("policy")] == [1]
        assert await registry.retrieve("policy") == LARGE


async def test_a_failed_upload_leaves_the_position_of_an_open_file(
    flavour: str, server: Server, tmp_path: Path
) -> None:
    path = tmp_path / "weights"
    path.write_bytes(DATA)
    async with scripted(CreateVersion=failing(1, silence, grpc.StatusCode.INTERNAL)) as broken:
        with path.open("rb") as file:
            async with opened(flavour, broken.port) as registry:
                with pytest.raises(errors.ModelRegistryError):
                    await registry.publish("policy", file)
            async with opened(flavour, server.port) as registry:
                assert await registry.retrieve(await registry.publish("policy", file)) == DATA


async def test_an_id_that_looks_like_an_error_does_not_make_an_upload_seem_unsent(flavour: str) -> None:
    async def answer(call: Call) -> None:
        await call.receive_all()
        await call.fail(grpc.StatusCode.UNAVAILABLE)

    async with scripted(CreateVersion=answer) as server, opened(flavour, server.port) as registry:
        with pytest.raises(errors.UnavailableError) as caught:
            await registry.publish("there is no connection to", b"weights")
        assert caught.value.may_be_done
        assert server.calls["CreateVersion"] == 1


async def test_a_lingering_attempt_does_not_disturb_the_next_one(flavour: str, tmp_path: Path) -> None:
    """The first attempt is still in its callback, on gRPC's thread, while the file is sent again."""
    go_on = threading.Event()
    path = tmp_path / "weights"
    path.write_bytes(DATA)
    reports: list[int] = []

    def note(progress: Progress) -> None:
        reports.append(progress.done_bytes)
        if len(reports) == 1:
            go_on.wait(20)

    async def answer(call: Call) -> None:
        await call.receive()
        if call.number == 1:
            await call.fail(grpc.StatusCode.UNAVAILABLE)
        first = split_body(await call.receive() or b"")
        go_on.set()
        rest = [split_body(message) for message in await call.receive_all()]
        data = b"".join(body for body in (first, *rest) if body is not None)
        message = version_message(1, digest_text(hashlib.sha256(data).digest()), len(data))
        await call.send(m.CreateVersionReply(version_info=message))

    async with scripted(CreateVersion=answer) as server, opened(flavour, server.port) as registry:
        assert (await registry.publish("policy", path, progress=note)).data_hash == HASH
        assert server.calls["CreateVersion"] == 2
    assert reports[-1] == len(DATA)


UNRESOLVABLE = "x" * 64 + ".invalid"  # longer than a label of a name may be, so no name server is asked


@pytest.mark.parametrize("call", ALL.values(), ids=ALL)
async def test_an_unresolvable_name_is_unavailable_and_retried(call: Calling) -> None:
    message = f"cannot connect to grpc://{UNRESOLVABLE}:9000: [^]]+$"
    async with aio.ModelRegistry(f"grpc://{UNRESOLVABLE}:9000", retry_seconds=0.3) as registry:
        begin = time.monotonic()
        with pytest.raises(errors.UnavailableError, match=message) as caught:
            await call(registry)
    assert not caught.value.may_be_done
    assert time.monotonic() - begin > 0.1


class Dribbling:
    """An open file of unknown size that never ends."""

    def __init__(self) -> None:
        self.reads = 0

    def seekable(self) -> bool:
        return False

    def read(self, _size: int) -> bytes:
        self.reads += 1
        time.sleep(0.01)  # as slow as a sensor
        return b"x"


async def test_the_timeout_of_an_upload_includes_reading_its_bytes(registry: Any) -> None:
    source = Dribbling()
    async with asyncio.timeout(20):
        with pytest.raises(errors.TimedOutError, match="its bytes could not be read in time"):
            await registry.publish("policy", source, timeout=0.2)
    reads = source.reads
    assert reads > 1
    await asyncio.sleep(0.1)  # long enough for a few more reads
    assert source.reads <= reads + 1
    assert await registry.list_models() == []


async def test_a_pipe_without_a_writer_times_out(registry: Any, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    async with asyncio.timeout(20):
        with pytest.raises(errors.TimedOutError, match="its bytes could not be read in time"):
            await registry.publish("policy", tmp_path / "pipe", timeout=0.2)


async def test_cancelling_an_upload_stops_reading_its_bytes(server: Server) -> None:
    source: Any = Dribbling()
    async with aio.ModelRegistry(f"grpc://127.0.0.1:{server.port}") as registry:
        task = asyncio.ensure_future(registry.publish("policy", source))
        await until(lambda: source.reads >= 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        reads = source.reads
        await asyncio.sleep(0.1)  # long enough for a few more reads
        assert source.reads <= reads + 1


async def test_a_failed_upload_never_moves_the_position_of_a_regular_file(
    flavour: str, server: Server, tmp_path: Path
) -> None:
    """Whether the upload failed while the file was hashed or sent; so it can be published again at once."""
    path = tmp_path / "weights"
    path.write_bytes(b"x" + LARGE)
    go_on = threading.Event()

    async def refuse(call: Call) -> None:
        await call.receive()
        await call.fail(grpc.StatusCode.INTERNAL)

    with path.open("rb") as file:
        file.seek(1)
        async with scripted(CreateVersion=refuse) as broken, opened(flavour, broken.port) as registry:
            with pytest.raises(errors.ModelRegistryError):
                await registry.publish("policy", file, progress=lambda _progress: go_on.wait(20))
            assert file.tell() == 1
            go_on.set()  # otherwise gRPC's thread would continue to read
        async with opened(flavour, server.port) as registry:
            with pytest.raises(errors.TimedOutError):
                await registry.publish("policy", file, timeout=0.001)
            assert file.tell() == 1
            version = await registry.publish("policy", file)
            assert version.data_size_bytes == len(LARGE)
            assert await registry.retrieve(version) == LARGE
        assert file.read() == b""  # its position is at the end


class Slow(io.BytesIO):
    """A file-like object."""

    def read(self, _size: int | None = -1, /) -> bytes:
        time.sleep(0.02)
        return super().read(MIB)


async def test_a_file_like_object_can_be_published_again_at_once(registry: Any) -> None:
    """Although the thread that reads it may still be in the middle of a read."""
    file = Slow(LARGE)
    file.seek(1)
    for _ in range(3):
        with pytest.raises(errors.TimedOutError):
            await registry.publish("policy", file, timeout=0.1)
    version = await registry.publish("policy", file)
    assert version.data_size_bytes == len(LARGE) - 1
    assert await registry.retrieve(version) == LARGE[1:]


@pytest.mark.parametrize("buffering", [0, -1])
async def test_a_non_blocking_file_is_refused(registry: Any, buffering: int) -> None:
    """The data that it has now may not be all of it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.send(b"part one")
        with (
            ours.makefile("rb", buffering=buffering) as file,
            pytest.raises(errors.InvalidError, match="in non-blocking mode and has no data now"),
        ):
            await registry.publish("policy", file)
    assert await registry.list_models() == []


async def test_a_task_that_survived_a_cancellation_gets_an_error_when_the_client_is_closed(server: Server) -> None:
    registry = aio.ModelRegistry(f"grpc://127.0.0.1:{server.port}")
    await registry.create_model("policy")
    begun = asyncio.Event()

    async def watch() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            begun.clear()
        async for _version in registry.watch("policy"):
            pass

    task = asyncio.ensure_future(watch())
    await begun.wait()
    task.cancel()
    await counted(registry, watchers=1)
    await registry.close()
    with pytest.raises(errors.ClosedError):
        await task


async def test_a_retrieval_gives_up_on_a_version_that_is_replaced_repeatedly(flavour: str) -> None:
    async def newer(call: Call) -> None:
        await infos(call, number=call.number)

    data = failing(10**6, silence, grpc.StatusCode.NOT_FOUND)
    async with (
        scripted(RetrieveVersionInfos=newer, RetrieveVersionData=data) as server,
        opened(flavour, server.port) as registry,
    ):
        with pytest.raises(errors.NotFoundError, match="was replaced 5 times before it could be retrieved"):
            await registry.retrieve("policy")


# Servers that freeze, and are replaced at the same address.


@pytest.fixture
def soon_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let clients replace a silent channel after half a second, and check their streams as often."""
    monkeypatch.setattr(connection, "SILENCE_SECONDS", 0.5)
    monkeypatch.setattr(watching, "STREAM_SECONDS", 0.5)
    monkeypatch.setattr(watching, "CHECK_SECONDS", 0.5)


async def test_calls_reach_the_replacement_of_a_frozen_server(
    flavour: str, server: Server, soon_replaced: None
) -> None:
    relay = Freezing(server.port)
    async with listening(relay.relay) as port, opened(flavour, port) as registry:
        await registry.publish("policy", DATA)
        assert await registry.retrieve("policy") == DATA  # which has its own connection
        relay.freeze()

        async def is_answered() -> bool:
            try:
                data: bytes = await registry.retrieve("policy", timeout=0.3)
                return data == DATA
            except errors.TimedOutError:
                return False

        assert not await is_answered()
        await eventually(is_answered)
        await registry.publish("policy", DATA)


async def test_watches_and_trackers_reach_the_replacement_of_a_frozen_server(
    flavour: str, server: Server, soon_replaced: None
) -> None:
    relay = Freezing(server.port)
    async with (
        opened(flavour, server.port) as trainer,
        listening(relay.relay) as port,
        opened(flavour, port) as registry,
        aclosing(registry.watch("policy")) as versions,
        registry.track("policy") as latest,
    ):
        await trainer.publish("policy", b"1")
        assert (await anext(versions)).number == 1
        await latest.wait_for()
        relay.freeze()
        await trainer.publish("policy", b"2")
        assert (await anext(versions)).number == 2
        await latest.wait_for(newer_than=1, timeout=PATIENCE_SECONDS)
