"""The UNIX socket of a server: descriptors for processes of the same user, and hostile processes."""

import asyncio
import contextlib
import fcntl
import mmap
import os
import socket
import stat
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import grpc
import pytest

from cogment_model_registry.errors import InvalidError, StartError
from cogment_model_registry.records.lifecycle import Version
from cogment_model_registry.records.uploads import UploadHeader
from cogment_model_registry.records.versions import VersionHeader
from cogment_model_registry.server import local_calls, local_socket
from cogment_model_registry.server.composition import Server
from cogment_model_registry.settings import AUTO, MIB, Settings
from cogment_model_registry.system import sealed_memory
from cogment_model_registry.system.sealed_memory import SealedMemory, UnsealedMemory
from cogment_model_registry.testing.bytes import hash_of
from cogment_model_registry.testing.server import serving
from cogment_model_registry.wire import local
from tests.client import Client, connected, refused, upload
from tests.processes import run, server_process
from tests.waiting import eventually, until

if not (local.is_supported() and sealed_memory.is_supported()):
    pytest.skip("this system cannot pass sealed memory", allow_module_level=True)

DATA = Random(1).randbytes(3 * MIB + 7)
ARCHIVED = pytest.mark.parametrize("archived", [False, True], ids=["transient", "archived"])
SETTINGS = Settings(cache_max_bytes=16 * MIB, grace_seconds=0, local_socket=AUTO)


class Local:
    """Makes requests over the socket of a server."""

    def __init__(self, path: str, socket_id: str) -> None:
        self.path = path
        self.socket_id = socket_id

    @classmethod
    async def of(cls, client: Client) -> "Local":
        place = await client.status(local.PATH_STATUS, local.ID_STATUS)
        return cls(place[local.PATH_STATUS], place[local.ID_STATUS])

    @contextlib.contextmanager
    def connected(self) -> Iterator[socket.socket]:
        with local.new_socket() as connection:
            connection.settimeout(60)
            connection.connect(self.path)
            yield connection

    async def ask(self, message: bytes, descriptors: list[int], received: list[int]) -> bytes:
        """Return the reply to a message, and add its descriptors to a list."""

        def ask() -> bytes:
            with self.connected() as connection:
                local.send(connection, message, descriptors)
                return local.receive(connection, received)

        return await asyncio.to_thread(ask)

    async def refusal(self, message: bytes, *descriptors: int) -> str:
        """Return why a message is refused, without a descriptor; close the descriptors that were sent with it."""
        received: list[int] = []
        with pytest.raises(local.RefusedError) as caught:
            local.read_reply(await self.ask(message, [*descriptors], received))
        local.close_all([*descriptors])
        assert not received
        return str(caught.value)

    async def read(self, number: int = 1, data: bytes = DATA, model_id: str = "m") -> int | None:
        """Return a descriptor of a version, which the caller closes."""
        received: list[int] = []
        request = local.read_request(self.socket_id, model_id, number, hash_of(data))
        assert local.read_reply(await self.ask(request, [], received)) is None
        return received[0] if received else None

    async def upload(self, header: UploadHeader, descriptor: int) -> Version:
        """Upload a descriptor, close it, and return the version."""
        try:
            reply = await self.ask(local.upload_request(self.socket_id, header), [descriptor], [])
        finally:
            os.close(descriptor)
        version = local.read_reply(reply)
        assert version is not None
        return version


def header(
    size_bytes: int = len(DATA), *, archived: bool = False, data_hash: str = "", **options: object
) -> UploadHeader:
    version = VersionHeader("m", archived, size_bytes, data_hash)
    return replace(UploadHeader(version, create_model=True), **options)  # type: ignore[arg-type]


def content(descriptor: int) -> bytes:
    """Return the bytes of a descriptor, and close it."""
    size_bytes = os.fstat(descriptor).st_size
    data = os.pread(descriptor, size_bytes, 0)
    os.close(descriptor)
    return data


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with serving(tmp_path / "archive", SETTINGS) as running:
        yield running


@pytest.fixture
async def peer(client: Client) -> Local:
    return await Local.of(client)


@pytest.fixture
def runtime() -> Iterator[Path]:
    """A runtime directory; the path of a socket has 107 bytes at most."""
    with tempfile.TemporaryDirectory(prefix="run-") as path:
        yield Path(path)


# The path of the socket.


async def test_status_returns_the_socket_on_request(client: Client, peer: Local) -> None:
    assert stat.S_IMODE(os.lstat(peer.path).st_mode) == 0o600
    assert stat.S_IMODE(os.lstat(os.path.dirname(peer.path)).st_mode) == 0o700
    assert not {local.PATH_STATUS, local.ID_STATUS} & (await client.status("*")).keys()
    assert (await client.status(local.PATH_STATUS, "models")) == {local.PATH_STATUS: peer.path, "models": "0"}


async def test_status_of_a_server_without_a_socket_has_none(tmp_path: Path) -> None:
    async with serving(tmp_path, replace(SETTINGS, local_socket="off")) as server, connected(server.port) as client:
        assert await client.status(local.PATH_STATUS, local.ID_STATUS) == {}


async def test_a_stop_removes_the_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    async with serving(tmp_path / "archive", replace(SETTINGS, local_socket=path)):
        assert {*os.listdir(tmp_path)} == {"archive", "socket"}
    assert os.listdir(tmp_path) == ["archive"]


async def test_the_socket_of_a_dead_server_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with server_process(tmp_path / "archive", f"--local_socket={path}") as process:
        process.kill()
    assert path.is_socket()
    settings = replace(SETTINGS, local_socket=str(path))
    async with serving(tmp_path / "archive", settings) as server, connected(server.port) as client:
        await client.create_model("m")
        await client.create_version(upload("m", DATA, archived=False))
        assert content(await (await Local.of(client)).read() or -1) == DATA


async def test_sockets_of_dead_servers_in_the_runtime_directory_are_removed(
    tmp_path: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server_process(tmp_path / "dead", environment={"XDG_RUNTIME_DIR": str(runtime)}) as process:
        process.kill()
    [dead] = (runtime / "cogment-model-registry").iterdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    with local_socket.opened(AUTO) as first, local_socket.opened(AUTO) as second:
        assert first
        assert second
        assert {first.path, second.path} == {str(path) for path in dead.parent.iterdir()}


@pytest.mark.parametrize("what", ["a live server", "a file", "no directory"])
async def test_an_unusable_socket_path_fails_the_start(tmp_path: Path, what: str) -> None:
    path = tmp_path / "socket"
    with contextlib.ExitStack() as stack:
        if what == "a live server":
            stack.enter_context(local_socket.opened(str(path)))
        elif what == "a file":
            path.write_bytes(b"precious")
        else:
            path = tmp_path / "missing" / "socket"
        with pytest.raises(StartError, match="local socket"):
            stack.enter_context(local_socket.opened(str(path)))
        assert what != "a file" or path.read_bytes() == b"precious"


async def test_a_runtime_directory_that_others_can_enter_is_not_used(
    runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    directory = runtime / "cogment-model-registry"
    directory.mkdir()
    directory.chmod(0o755)
    with local_socket.opened(AUTO) as opened:
        assert opened is None
    directory.rmdir()
    (runtime / "elsewhere").mkdir(mode=0o700)
    directory.symlink_to("elsewhere")
    with local_socket.opened(AUTO) as opened:
        assert opened is None


# Reading.


@ARCHIVED
async def test_a_version_is_handed_over_and_still_streamed(client: Client, peer: Local, archived: bool) -> None:
    await client.create_model("m")
    await client.create_version(upload("m", DATA, archived))
    for _ in range(3):
        assert content(await peer.read() or -1) == DATA
        assert content(await peer.read(-1) or -1) == DATA
        assert await client.data("m") == DATA


@ARCHIVED
async def test_descriptors_outlive_the_version_and_the_server(tmp_path: Path, archived: bool) -> None:
    async with serving(tmp_path / "archive", SETTINGS) as server, connected(server.port) as client:
        await client.create_model("m")
        await client.create_version(upload("m", DATA, archived))
        first, second = await (await Local.of(client)).read(), await (await Local.of(client)).read()
        await client.delete_model("m")
        assert content(first or -1) == DATA
    assert content(second or -1) == DATA


@ARCHIVED
async def test_refused_reads_have_the_messages_of_the_other_services(
    client: Client, peer: Local, archived: bool
) -> None:
    for model_id in ("m", "../m"):
        request = local.read_request(peer.socket_id, model_id, 1, hash_of(DATA))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.data(model_id)
        assert await peer.refusal(request) == caught.value.details()
    await client.create_model("m")
    await client.create_version(upload("m", DATA, archived))
    assert "no version 2" in await peer.refusal(local.read_request(peer.socket_id, "m", 2, hash_of(DATA)))
    assert "data_hash" in await peer.refusal(local.read_request(peer.socket_id, "m", 1, hash_of(b"other")))


async def test_a_damaged_file_is_never_handed_over(client: Client, peer: Local, tmp_path: Path) -> None:
    await client.create_model("m")
    await client.create_version(upload("m", DATA, archived=True))
    assert content(await peer.read() or -1) == DATA
    [path] = (tmp_path / "archive").rglob("*.data")
    times = path.stat()
    with path.open("r+b") as file:
        file.write(b"changed")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    request = local.read_request(peer.socket_id, "m", 1, hash_of(DATA))
    assert "do not match their hash" in await peer.refusal(request)
    with refused(grpc.StatusCode.DATA_LOSS):
        await client.data("m", 1)


async def test_a_version_being_streamed_moves_to_sealed_memory_unchanged(client: Client, peer: Local) -> None:
    await client.create_model("m")
    await client.create_version(upload("m", DATA, archived=False))
    streams = [asyncio.create_task(client.data("m")) for _ in range(8)]
    handed = await asyncio.gather(*(peer.read() for _ in range(8)))
    assert {content(descriptor or -1) for descriptor in handed} == {DATA}
    assert set(await asyncio.gather(*streams)) == {DATA}
    assert (await client.status("transient_bytes")) == {"transient_bytes": str(len(DATA))}


async def test_an_evicted_version_stays_readable_by_its_holders_and_leaves_the_budget(
    client: Client, peer: Local
) -> None:
    await client.create_model("m")
    await client.create_version(upload("m", DATA, archived=False))
    descriptor = await peer.read()
    for _ in range(6):  # more than fits the budget
        await client.create_version(upload("m", DATA, archived=False))
    with refused(grpc.StatusCode.NOT_FOUND):
        await client.data("m", 1)
    assert int((await client.status("transient_bytes"))["transient_bytes"]) <= 16 * MIB
    assert content(descriptor or -1) == DATA


# Uploading.


@ARCHIVED
async def test_sealed_memory_becomes_a_version(client: Client, peer: Local, archived: bool) -> None:
    with SealedMemory.of(DATA) as memory:
        version = await peer.upload(header(archived=archived), memory.descriptor())
        assert (version.number, version.info.data_hash, version.info.archived) == (1, hash_of(DATA), archived)
    assert await client.data("m") == DATA
    assert content(await peer.read() or -1) == DATA
    assert (await client.status("transient_bytes"))["transient_bytes"] == ("0" if archived else str(len(DATA)))


async def test_adopted_memory_is_counted_and_evicted_like_any_version(client: Client, peer: Local) -> None:
    for _ in range(8):
        with SealedMemory.of(DATA) as memory:
            await peer.upload(header(), memory.descriptor())
    assert len(await client.numbers("m")) == 16 * MIB // len(DATA)
    too_large = header(17 * MIB)
    with SealedMemory.of(bytes(17 * MIB)) as memory:
        assert "budget" in await peer.refusal(local.upload_request(peer.socket_id, too_large), memory.descriptor())
    await client.delete_model("m")
    assert (await client.status("transient_bytes")) == {"transient_bytes": "0"}


async def test_an_upload_repeated_over_either_transport_is_one_version(client: Client, peer: Local) -> None:
    first = header(request_id="one", tags={"a": "b"}, metrics={"r": 1.0})
    with SealedMemory.of(DATA) as memory:
        version = await peer.upload(first, memory.descriptor())
        again = await peer.upload(first, memory.descriptor())
        named = header(data_hash=hash_of(DATA), request_id="one", tags={"a": "b"}, metrics={"r": 1.0})
        assert (await peer.upload(named, memory.descriptor())).number == again.number == version.number
        other = local.upload_request(peer.socket_id, replace(first, tags={}))
        assert "request_id" in await peer.refusal(other, memory.descriptor())
    assert (version.tags, version.metrics) == ({"a": "b"}, {"r": 1.0})
    assert await client.numbers("m") == [1]


async def test_an_alias_is_set_in_the_same_step(client: Client, peer: Local) -> None:
    with SealedMemory.of(DATA) as memory:
        version = await peer.upload(header(aliases=("best",)), memory.descriptor())
    assert (version.info.archived, version.aliases) == (True, ("best",))


# Hostile processes.


def writable() -> int:
    """Return memory that was filled but not sealed."""
    descriptor = os.memfd_create("m", os.MFD_ALLOW_SEALING)
    os.write(descriptor, DATA)
    return descriptor


def partly_sealed(seals: int) -> int:
    descriptor = writable()
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


def regular_file() -> int:
    return os.open(__file__, os.O_RDONLY)


def pipe() -> int:
    reading, writing = os.pipe()
    os.close(writing)
    return reading


@pytest.mark.parametrize(
    "make",
    [
        writable,
        lambda: partly_sealed(fcntl.F_SEAL_WRITE),
        lambda: partly_sealed(fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL),
        lambda: partly_sealed(fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL),
        lambda: partly_sealed(fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL),
        lambda: partly_sealed(fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW),
        regular_file,
        pipe,
        lambda: os.open("/", os.O_RDONLY),
        lambda: os.open("/dev/zero", os.O_RDONLY),
        lambda: os.eventfd(0),
        lambda: os.open("/proc/self/mem", os.O_RDONLY),
    ],
    ids=[
        "unsealed",
        "write",
        "no-shrink",
        "no-grow",
        "no-write",
        "no-seal",
        "file",
        "pipe",
        "dir",
        "dev",
        "event",
        "mem",
    ],
)
async def test_a_descriptor_of_writable_memory_is_refused(client: Client, peer: Local, make: Callable[[], int]) -> None:
    assert "sealed" in await peer.refusal(local.upload_request(peer.socket_id, header()), make())
    with refused(grpc.StatusCode.NOT_FOUND):
        await client.infos("m")


@pytest.mark.parametrize("size_bytes", [0, 1, len(DATA) - 1, len(DATA) + 1, 2**63])
async def test_a_size_that_differs_from_the_memory_is_refused(peer: Local, size_bytes: int) -> None:
    with SealedMemory.of(DATA) as memory:
        reason = await peer.refusal(local.upload_request(peer.socket_id, header(size_bytes)), memory.descriptor())
        assert "data_size" in reason


async def test_a_hash_that_differs_from_the_memory_is_refused(peer: Local) -> None:
    lying = header(data_hash=hash_of(b"other"))
    with SealedMemory.of(DATA) as memory:
        assert "data_hash" in await peer.refusal(local.upload_request(peer.socket_id, lying), memory.descriptor())


@ARCHIVED
async def test_descriptors_are_read_only_and_give_access_to_nothing_else(
    client: Client, peer: Local, archived: bool
) -> None:
    await client.create_model("m")
    await client.create_version(upload("m", DATA, archived))
    descriptor = await peer.read() or -1
    assert fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(descriptor, b"x")
    with pytest.raises(OSError, match=r"Invalid argument|Bad file descriptor|not permitted"):
        os.ftruncate(descriptor, 0)
    with pytest.raises(PermissionError):
        mmap.mmap(descriptor, len(DATA), flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    with pytest.raises(NotADirectoryError):
        os.open("..", os.O_RDONLY, dir_fd=descriptor)
    if not archived:  # the owner of a file can open it again, as docs/security.md says
        again = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR)
        with pytest.raises(PermissionError):
            os.write(again, b"x")
        with pytest.raises(PermissionError):
            mmap.mmap(again, len(DATA), flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        with pytest.raises(PermissionError):
            os.ftruncate(again, 0)
        with pytest.raises(PermissionError):
            os.posix_fallocate(again, 0, len(DATA) + 1)
        with pytest.raises(PermissionError):
            fcntl.fcntl(again, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        os.close(again)
    assert content(descriptor) == DATA
    assert await client.data("m") == DATA


@ARCHIVED
async def test_receivers_do_not_share_a_file_position(client: Client, peer: Local, archived: bool) -> None:
    await client.create_model("m")
    await client.create_version(upload("m", DATA, archived))
    one, other = await peer.read() or -1, await peer.read() or -1
    os.lseek(one, 1000, os.SEEK_SET)
    assert os.lseek(other, 0, os.SEEK_CUR) == 0
    assert await client.data("m") == DATA
    os.close(one)
    os.close(other)


async def test_later_writes_of_the_publisher_change_no_version(client: Client, peer: Local) -> None:
    memory = UnsealedMemory(len(DATA))
    memory.write([DATA])
    sealed = memory.seal()
    await peer.upload(header(), sealed.descriptor())
    descriptor = sealed.descriptor()
    again = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR)
    with pytest.raises(PermissionError):
        os.pwrite(again, b"x", 0)
    local.close_all([descriptor, again])
    assert await client.data("m") == DATA
    sealed.close()
    assert await client.data("m") == DATA


@pytest.mark.parametrize("message", [b"x", b"\xff" * 100, bytes(local.MESSAGE_MAX_BYTES + 1)])
async def test_malformed_messages_end_only_their_connection(client: Client, peer: Local, message: bytes) -> None:
    with peer.connected(), pytest.raises((local.MalformedError, OSError)):
        await peer.ask(message, [], [])
    for seed in range(100):
        noise = Random(seed).randbytes(seed)
        with contextlib.suppress(local.MalformedError, OSError):
            await peer.ask(noise, [], [])
    request = local.read_request(peer.socket_id, "m", 1, hash_of(DATA))
    for position in range(len(request)):
        with contextlib.suppress(local.MalformedError, OSError):
            await peer.ask(request[:position] + bytes([request[position] ^ 0x55]) + request[position + 1 :], [], [])
    assert await client.status("models")


async def test_a_request_for_another_server_is_refused(peer: Local) -> None:
    assert "another server" in await peer.refusal(local.read_request("0" * 32, "m", 1, hash_of(DATA)))


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_unexpected_descriptors_are_closed(client: Client, peer: Local) -> None:
    await client.status("models")
    before = descriptors()
    request = local.read_request(peer.socket_id, "m", 1, hash_of(DATA))
    for count in (1, 2, 100):
        for _ in range(20):
            flood = [os.open("/dev/null", os.O_RDONLY) for _ in range(count)]
            with contextlib.suppress(local.MalformedError, OSError):
                await peer.ask(request, flood, [])
            local.close_all(flood)
    await until(lambda: descriptors() <= before, descriptors)


async def test_many_concurrent_uploads_are_adopted_or_referred_to_grpc(client: Client, peer: Local) -> None:
    await client.create_model("m")

    async def publish() -> bool:
        with SealedMemory.of(DATA[:-1] + os.urandom(1)) as memory:
            with contextlib.suppress(local.RefusedError):
                await peer.upload(header(), memory.descriptor())
                return True
            return False

    published = await asyncio.gather(*(publish() for _ in range(40)))
    assert published.count(True) >= local_calls._UPLOADS_MAX
    assert await client.numbers("m")
    assert await publish()


async def test_memory_that_does_not_fit_is_refused_without_hashing(client: Client, peer: Local) -> None:
    size_bytes = 2**40
    with UnsealedMemory(size_bytes).seal() as memory:
        request = local.upload_request(peer.socket_id, header(size_bytes))
        assert "does not fit" in await peer.refusal(request, memory.descriptor())


async def test_slow_peers_delay_no_other_client(client: Client, peer: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    await client.create_model("m")
    await client.create_version(upload("m", DATA, archived=False))
    monkeypatch.setattr(local_socket, "_CONNECTIONS_MAX", 10)
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(peer.connected()) for _ in range(9)]
        assert content(await peer.read() or -1) == DATA
        silent.append(stack.enter_context(peer.connected()))
        with pytest.raises((local.MalformedError, OSError)):  # beyond the limit: closed at once
            await peer.read()
        assert await client.data("m") == DATA

    async def is_served() -> bool:
        with contextlib.suppress(local.MalformedError, OSError):
            return content(await peer.read() or -1) == DATA
        return False

    await eventually(is_served)


async def test_a_peer_that_sends_no_request_is_closed(peer: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_socket, "_REQUEST_SECONDS", 0.01)
    with peer.connected() as connection:
        assert await asyncio.to_thread(connection.recv, 1) == b""


async def test_a_peer_that_disconnects_before_the_reply_leaves_no_descriptor(client: Client, peer: Local) -> None:
    await client.create_model("m")
    await client.create_version(upload("m", DATA, archived=False))
    os.close(await peer.read() or -1)
    before = descriptors()
    for _ in range(50):
        with peer.connected() as connection:
            local.send(connection, local.read_request(peer.socket_id, "m", 1, hash_of(DATA)), [])
    await until(lambda: descriptors() <= before, descriptors)


_OTHER_USER = """
import os, socket, sys
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
try:
    connection.connect(sys.argv[1])
    print("closed" if not connection.recv(1) else "served")
except PermissionError:
    print("forbidden")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_another_user_can_neither_reach_the_socket_nor_use_it(peer: Local) -> None:
    async def received() -> str:
        return (await asyncio.to_thread(run, sys.executable, "-c", _OTHER_USER, peer.path)).stdout.strip()

    assert await received() == "forbidden"
    directory = os.path.dirname(peer.path)
    try:
        os.chmod(directory, 0o755)
        assert await received() == "forbidden"
        os.chmod(peer.path, 0o666)
        assert await received() == "closed"
    finally:
        os.chmod(directory, 0o700)


async def test_calls_are_logged_and_counted(tmp_path: Path) -> None:
    flags = ["--log_level=debug", "--metrics_port=0"]
    with server_process(tmp_path, *flags) as process:
        async with connected(process.port) as client:
            peer = await Local.of(client)
            with SealedMemory.of(DATA) as memory:
                await peer.upload(header(), memory.descriptor())
            os.close(await peer.read() or -1)
            process.wait_for_line(r"LocalUploadVersion OK.*model_id=m.*user=")
            process.wait_for_line(r"LocalReadVersion OK.*model_id=m.*number=1")


def test_memory_is_sealed_only_when_nothing_can_write_to_it() -> None:
    kept: list[memoryview] = []
    with pytest.raises(InvalidError, match="still refers"):
        SealedMemory.filled(10, lambda view: kept.append(view[:5]))
    with SealedMemory.filled(3, lambda view: view.__setitem__(slice(None), b"abc")) as memory:
        assert bytes(memory.view) == b"abc"
        assert memory.view.readonly
    with pytest.raises(OSError, match="closed"):
        memory.descriptor()
    assert bytes(memory.view) == b"abc"
    with pytest.raises(InvalidError):
        SealedMemory.of(b"")
    with pytest.raises(ZeroDivisionError):
        SealedMemory.filled(3, lambda view: 1 // 0)
