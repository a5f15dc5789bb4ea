"""Peers that break HTTP/2 and gRPC on purpose, in parallel with a client that does not.

Each kind of abuse is a function that talks to a real server process over raw sockets, with frames made by hand, since
libraries refuse to make them. It sends a bounded amount, checks whether the server still answers, and disconnects with
or without a reset. In parallel, a well-behaved client creates, lists and retrieves: none of its calls may fail or take
long. The replies to the abuser are not checked: the server may end its connection or keep it. Afterwards the server
must run without errors in its log, with as many descriptors and as much memory as before.
"""

import asyncio
import contextlib
import itertools
import os
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import psutil

from cogment_model_registry.wire import messages as m
from tests.client import Client, body, connected, header
from tests.processes import ServerProcess
from tests.torture.oracle import unharmed_server
from tests.torture.proof import Figures, Proof
from tests.waiting import eventually

_STREAMS_MAX = 100
_CONNECTIONS_MAX = 60
_FLAGS = (
    f"--max_concurrent_streams={_STREAMS_MAX}",
    f"--max_connections={_CONNECTIONS_MAX}",
    "--cache_max_bytes=16000000",
    "--keepalive_seconds=2",
    "--keepalive_timeout_seconds=2",
    "--upload_idle_seconds=2",
    "--request_max_bytes=200000",
    "--log_format=json",
)
_WAIT_MAX_SECONDS = 15
"""How long a well-behaved call may take; a generous bound for a busy machine."""

_SETTLE_SECONDS = 30
"""How long the server may take to free what disconnected peers held."""

_SPARE_DESCRIPTORS = 12
_SPARE_BYTES = 64 * 2**20
_BIG_ID, _BIG_BYTES = "big", 8 * 2**20

Fields = dict[str, bytes | None]

# Frames. See https://www.rfc-editor.org/rfc/rfc9113#name-frame-definitions
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS, ACK, PADDED = 0x1, 0x4, 0x1, 0x8
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADER_TABLE_SIZE, ENABLE_PUSH, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 1, 2, 4, 5


def frame(kind: int, flags: int, stream: int, payload: bytes = b"", length: int | None = None) -> bytes:
    """Return a frame, with a false length if one is given."""
    size = len(payload) if length is None else length
    return struct.pack(">I", size)[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def setting(name: int, value: int) -> bytes:
    """Return an entry of a SETTINGS frame."""
    return struct.pack(">HI", name, value)


def field(name: bytes, value: bytes) -> bytes:
    """Return a header as a literal that is not indexed. See https://www.rfc-editor.org/rfc/rfc7541#section-6.2.2"""
    return b"\x00" + _hpack_length(len(name)) + name + _hpack_length(len(value)) + value


def _hpack_length(size: int) -> bytes:
    if size < 127:
        return bytes((size,))
    encoded, rest = bytearray((127,)), size - 127
    while rest >= 128:
        encoded.append(rest % 128 | 128)
        rest //= 128
    return bytes((*encoded, rest))


def call_fields(method: str, changes: Fields | None = None) -> bytes:
    """Return the headers of a call, with some changed, or left out if None."""
    fields: Fields = {
        ":method": b"POST",
        ":scheme": b"http",
        ":path": f"/{m.SERVICE_NAMES[0]}/{method}".encode(),
        ":authority": b"localhost",
        "te": b"trailers",
        "content-type": b"application/grpc",
        **(changes or {}),
    }
    return b"".join(field(name.encode("latin-1"), value) for name, value in fields.items() if value is not None)


def grpc_message(payload: bytes, flag: int = 0, length: int | None = None) -> bytes:
    """Return a message as gRPC frames it."""
    return struct.pack(">BI", flag, len(payload) if length is None else length) + payload


STATUS = grpc_message(m.StatusRequest(names=["*"]).SerializeToString())
RETRIEVE = grpc_message(m.RetrieveVersionDataRequest(model_id=_BIG_ID, version_number=-1).SerializeToString())
WATCH = grpc_message(m.VersionUpdateRequest(model_id=_BIG_ID).SerializeToString())
UPLOAD = grpc_message(header(_BIG_ID, 1000).SerializeToString())
PIECE = grpc_message(body(b"piece").SerializeToString())


class Peer:
    """A connection of an abuser. It tolerates whatever the server does."""

    def __init__(self, port: int, *, greet: bool = True, settings: bytes = b"") -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=5)
        self.is_gone = False
        if greet:
            self.send(PREFACE + frame(SETTINGS, 0, 0, settings) + frame(SETTINGS, ACK, 0))

    def send(self, data: bytes) -> None:
        """Send bytes, unless the server has ended the connection or does not take them."""
        if not self.is_gone:
            try:
                self.socket.sendall(data)
            except OSError:
                self.is_gone = True

    def call(
        self, stream: int, method: str, payload: bytes = b"", *, end: bool = True, changes: Fields | None = None
    ) -> None:
        """Begin a call, with a message and an end, or without."""
        self.send(frame(HEADERS, END_HEADERS, stream, call_fields(method, changes)))
        if payload or end:
            self.send(frame(DATA, END_STREAM if end else 0, stream, payload))

    def wait(self) -> None:
        """Wait until the server has received everything, or has ended the connection, or a short time is over."""
        mark = os.urandom(8)
        self.send(frame(PING, 0, 0, mark))
        self.socket.settimeout(0.3)
        seen = b""
        deadline = time.monotonic() + 3
        with contextlib.suppress(OSError):
            while not self.is_gone and mark not in seen and time.monotonic() < deadline:
                received = self.socket.recv(65536)
                self.is_gone = not received
                seen = seen[-16:] + received

    def close(self, *, rudely: bool = False) -> None:
        """End the connection, with a TCP reset if this peer uses one."""
        if rudely:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


@contextlib.contextmanager
def peer(port: int, random: Random, *, greet: bool = True, settings: bytes = b"") -> Iterator[Peer]:
    """Return a context manager for a peer, which finally waits for the server and disconnects in one of two ways."""
    with contextlib.closing(Peer(port, greet=greet, settings=settings)) as connection:
        yield connection
        connection.wait()
        connection.close(rudely=random.random() < 0.5)


# The kinds of abuse.


def resets(port: int, random: Random) -> None:
    """Begin calls and reset them at once."""
    for method, payload in (("Status", STATUS), ("CreateVersion", UPLOAD), ("VersionUpdate", WATCH)):
        with peer(port, random) as it:
            for stream in range(1, 601, 2):
                it.call(stream, method, payload, end=random.random() < 0.5)
                it.send(frame(RST_STREAM, 0, stream, struct.pack(">I", 8)))


def resets_of_retrievals(port: int, random: Random) -> None:
    """Begin retrievals of a large version, and reset them after they began."""
    with peer(port, random) as it:
        for stream in range(1, 101, 2):
            it.call(stream, "RetrieveVersionData", RETRIEVE)
            if stream % 20 == 1:
                it.wait()
            it.send(frame(RST_STREAM, 0, stream, struct.pack(">I", 8)))


def resets_of_nothing(port: int, random: Random) -> None:
    """Reset streams that do not exist."""
    for stream in (0, 2, 3, 2**31 - 1):
        with peer(port, random) as it:
            for _ in range(100):
                it.send(frame(RST_STREAM, 0, stream, struct.pack(">I", 8)))


def pings(port: int, random: Random) -> None:
    """Send very many PINGs."""
    with peer(port, random) as it:
        for _ in range(50):
            it.send(b"".join(frame(PING, 0, 0, random.randbytes(8)) for _ in range(100)))
    for bad in (frame(PING, 0, 1, bytes(8)), frame(PING, 0, 0, bytes(7)), frame(PING, ACK, 0, bytes(8)) * 1000):
        with peer(port, random) as it:
            it.send(bad)


def settings_floods(port: int, random: Random) -> None:
    """Change the settings continuously, during calls."""
    with peer(port, random) as it:
        it.call(1, "RetrieveVersionData", RETRIEVE)
        for value in range(2000):
            name = random.choice((HEADER_TABLE_SIZE, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, 77))
            it.send(frame(SETTINGS, 0, 0, setting(name, 16384 + value)))
    with peer(port, random) as it:
        it.send(frame(SETTINGS, 0, 0, setting(77, 1) * 2000) + frame(SETTINGS, ACK, 0) * 1000)


def bad_settings(port: int, random: Random) -> None:
    """Send invalid settings."""
    entries = [(INITIAL_WINDOW_SIZE, 2**31), (ENABLE_PUSH, 2), (MAX_FRAME_SIZE, 1), (HEADER_TABLE_SIZE, 2**32 - 1)]
    frames = [frame(SETTINGS, 0, 0, setting(*entry)) for entry in entries]
    frames += [frame(SETTINGS, 0, 0, b"odd"), frame(SETTINGS, 0, 1), frame(SETTINGS, ACK, 0, bytes(6))]
    for bad in frames:
        with peer(port, random) as it:
            it.send(bad)
            it.call(1, "Status", STATUS)


def half_open(port: int, random: Random) -> None:
    """Connect, and stop sending at some point."""
    whole = PREFACE + frame(SETTINGS, 0, 0) + frame(HEADERS, END_HEADERS, 1, call_fields("Status"))
    with contextlib.ExitStack() as stack:
        for end in (0, 1, 10, len(PREFACE), len(PREFACE) + 5, len(whole) - 40, len(whole) - 1, len(whole)):
            it = stack.enter_context(contextlib.closing(Peer(port, greet=False)))
            it.send(whole[:end])
            it.wait()


def byte_by_byte(port: int, random: Random) -> None:
    """Send a call in very small pieces."""
    with peer(port, random, greet=False) as it:
        it.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        call = frame(HEADERS, END_HEADERS, 1, call_fields("Status")) + frame(DATA, END_STREAM, 1, STATUS)
        for byte in PREFACE + frame(SETTINGS, 0, 0) + call:
            it.send(bytes((byte,)))


def other_protocols(port: int, random: Random) -> None:
    """Speak other protocols."""
    for data in (
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        random.randbytes(5000),
    ):
        with peer(port, random, greet=False) as it:
            it.send(data)


def large_headers(port: int, random: Random) -> None:
    """Send more headers than a server should accept."""
    with peer(port, random) as it:
        fields = call_fields("Status") + field(b"x", bytes(300_000))
        _send_headers(it, 1, fields, 16_000)
    with peer(port, random) as it:
        fields = call_fields("Status") + b"".join(field(b"x%d" % number, b"y") for number in range(5000))
        _send_headers(it, 1, fields, 16_000)


def _send_headers(it: Peer, stream: int, fields: bytes, size: int) -> None:
    parts = [fields[start : start + size] for start in range(0, len(fields), size)]
    it.send(frame(HEADERS, 0, stream, parts[0]))
    for part in parts[1:-1]:
        it.send(frame(CONTINUATION, 0, stream, part))
    it.send(frame(CONTINUATION, END_HEADERS, stream, parts[-1]))


def endless_continuations(port: int, random: Random) -> None:
    """Send headers without an end."""
    for part in (b"", field(b"x", b"y" * 1000)):
        with peer(port, random) as it:
            it.send(frame(HEADERS, 0, 1, call_fields("Status")))
            for _ in range(2000):
                it.send(frame(CONTINUATION, 0, 1, part))
    with peer(port, random) as it:
        it.send(frame(HEADERS, 0, 1, call_fields("Status")) + frame(PING, 0, 0, bytes(8)))
    with peer(port, random) as it:
        it.send(frame(CONTINUATION, END_HEADERS, 1, call_fields("Status")))


def bad_headers(port: int, random: Random) -> None:
    """Send headers that cannot be decoded, or that decode to a large size."""
    blocks = [
        *(b"\x80", b"\xff\xff\xff\xff\xff\xff\x0f", b"\x3f\xff\xff\xff\xff\x0f", b"\x00\xff\xff\xff\xff\x0f"),
        *(b"\x00\x81\xff\x81\xff", b"\x40", b"\xbf" * 100, random.randbytes(200)),
        b"\x40" + _hpack_length(1) + b"x" + _hpack_length(4000) + b"y" * 4000 + b"\xbe" * 12_000,
    ]
    for block in blocks:
        with peer(port, random) as it:
            it.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, block))
            it.call(3, "Status", STATUS)


def bad_windows(port: int, random: Random) -> None:
    """Increase windows by 0, and beyond their maximum."""
    for stream, step in itertools.product((0, 1, 5), (0, 2**31 - 1)):
        with peer(port, random) as it:
            it.call(1, "VersionUpdate", WATCH)
            for _ in range(100):
                it.send(frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", step)))
    with peer(port, random) as it:
        it.call(1, "RetrieveVersionData", RETRIEVE)
        it.send(b"".join(frame(WINDOW_UPDATE, 0, random.choice((0, 1)), struct.pack(">I", 1)) for _ in range(5000)))


def data_on_wrong_streams(port: int, random: Random) -> None:
    """Send data on streams that ended, that never began, and that cannot exist."""
    for stream in (0, 1, 2, 99):
        with peer(port, random) as it:
            it.call(1, "Status", STATUS)
            it.wait()
            for _ in range(200):
                it.send(frame(DATA, 0, stream, STATUS))
    with peer(port, random) as it:
        it.call(1, "CreateVersion", UPLOAD, end=False)
        it.send(frame(DATA, 0, 1, bytes(16_000)) * 60)  # beyond every window


def odd_data(port: int, random: Random) -> None:
    """Send empty data, and data with invalid padding."""
    with peer(port, random) as it:
        it.call(1, "CreateVersion", UPLOAD, end=False)
        it.send(frame(DATA, 0, 1) * 5000)
    with peer(port, random) as it:
        it.call(1, "CreateVersion", UPLOAD, end=False)
        it.send(frame(DATA, PADDED, 1, b"\xff" + bytes(255)) * 100 + frame(DATA, PADDED, 1, b"\x10abc"))
    with peer(port, random) as it:
        it.send(frame(HEADERS, END_HEADERS | PADDED, 1, b"\xff" + call_fields("Status")))


def wrong_lengths(port: int, random: Random) -> None:
    """Send frames that are longer than allowed, or than declared."""
    for kind in (*range(10), 200):
        with peer(port, random) as it:
            it.send(frame(kind, 0, 1, b"short", length=2**24 - 1))
            it.send(bytes(30_000))
    for kind in (PRIORITY, RST_STREAM, WINDOW_UPDATE, GOAWAY):
        with peer(port, random) as it:
            it.call(1, "VersionUpdate", WATCH)
            it.send(frame(kind, 0, 1, b"xx"))


def unknown_frames(port: int, random: Random) -> None:
    """Send frames of unknown types, or of types that no client may send."""
    with peer(port, random) as it:
        it.send(b"".join(frame(random.randrange(10, 256), 255, random.randrange(9), bytes(50)) for _ in range(3000)))
        it.call(1, "Status", STATUS)
    with peer(port, random) as it:
        it.call(1, "VersionUpdate", WATCH)
        it.send(frame(PUSH_PROMISE, END_HEADERS, 1, struct.pack(">I", 2) + call_fields("Status")))


def priorities(port: int, random: Random) -> None:
    """Change priorities continuously, in cycles."""
    with peer(port, random) as it:
        it.call(1, "VersionUpdate", WATCH)
        for _ in range(50):
            streams = [random.randrange(1, 2000) for _ in range(100)]
            it.send(
                b"".join(frame(PRIORITY, 0, each, struct.pack(">IB", random.randrange(2000), 7)) for each in streams)
            )
        it.send(frame(PRIORITY, 0, 7, struct.pack(">IB", 7, 7)))


def farewells(port: int, random: Random) -> None:
    """Send GOAWAY in the middle of a call, and continue."""
    for last, code in ((0, 0), (1, 11), (2**31 - 1, 0)):
        with peer(port, random) as it:
            it.call(1, "RetrieveVersionData", RETRIEVE)
            it.send(frame(GOAWAY, 0, 0, struct.pack(">II", last, code) + b"because") * 100)
            it.call(3, "Status", STATUS)


def never_reading(port: int, random: Random) -> None:
    """Request many bytes, and read none: first with closed windows, then with a socket that is not read."""
    for settings in (setting(INITIAL_WINDOW_SIZE, 0), setting(INITIAL_WINDOW_SIZE, 2**31 - 1)):
        with peer(port, random, settings=settings) as it:
            it.send(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 2**31 - 1 - 65_535)))
            for stream in range(1, 41, 2):
                it.call(stream, "RetrieveVersionData", RETRIEVE)
            for stream in range(41, 141, 2):
                it.call(stream, "Status", STATUS)


def bad_framing(port: int, random: Random) -> None:
    """Send messages that gRPC's framing does not allow."""
    bodies = [
        grpc_message(b"", flag=1),
        grpc_message(b"\x0a\x01m", flag=255),
        grpc_message(b"x", length=2**32 - 1),
        grpc_message(bytes(300_000)),
        *(grpc_message(b"\x0a\x01m")[:end] for end in (1, 4, 6)),
        STATUS * 50,
        STATUS + b"\0",
        b"",
    ]
    for method in ("Status", "CreateVersion", "RetrieveVersionData"):
        for data in bodies:
            with peer(port, random) as it:
                it.call(1, method, end=False)
                for start in range(0, len(data), 16_000):
                    it.send(frame(DATA, 0, 1, data[start : start + 16_000]))
                it.send(frame(DATA, END_STREAM, 1))
    with peer(port, random) as it:
        it.call(1, "Status", STATUS, changes={"grpc-encoding": b"gzip"})
        it.call(3, "Status", grpc_message(b"not gzip", flag=1), changes={"grpc-encoding": b"gzip"})


def empty_messages(port: int, random: Random) -> None:
    """Upload very many empty messages."""
    empty_body = grpc_message(body(b"").SerializeToString())
    for message in (grpc_message(b""), empty_body):
        with peer(port, random) as it:
            it.call(1, "CreateVersion", UPLOAD, end=False)
            for _ in range(30):
                it.send(frame(DATA, 0, 1, message * 100))


def wrong_calls(port: int, random: Random) -> None:
    """Call methods that do not exist, or in ways that gRPC does not allow."""
    service = b"/cogmentAPI.ModelRegistrySP/"
    wrong: dict[str, list[bytes | None]] = {
        "content-type": [b"text/html", b"application/grpc+json", b"", None],
        ":method": [b"GET", b"PUT", b"", b"\x00", None],
        ":path": [b"/", b"", b"no slash", b"/a/b/c", b"/../../etc/passwd", b"/" * 5000, service, service + b"x", None],
        ":scheme": [b"https", b"ftp", None],
        "te": [None, b"gzip"],
        "grpc-timeout": [b"0n", b"1n", b"99999999H", b"-1S", b"x", b"", b"999999999S"],
        "x-bin": [b"====", b"\xff", b"A", b"A" * 7000],
        "content-length": [b"0", b"-1", b"9" * 20],
        "grpc-encoding": [b"no such"],
        "grpc-accept-encoding": [b"no such"],
        "connection": [b"close"],
        ":unknown": [b"x"],
        "UPPER": [b"x"],
        "": [b"x"],
        "\0": [b"x"],
    }
    changes: list[Fields] = [{name: value} for name, values in wrong.items() for value in values]
    with peer(port, random) as together:
        for number, change in enumerate(changes):
            together.call(1 + 2 * number, "Status", STATUS, changes=change)
            with contextlib.closing(Peer(port)) as it:
                it.call(1, "Status", STATUS, changes=change)
                if number % 8 == 0:
                    it.wait()


def undecodable_texts(port: int, random: Random) -> None:
    """Call with bytes that are not text in names and values."""
    changes: list[Fields] = [
        {":authority": b"\xff"},
        {"x": b"\xff"},
        {"user-agent": b"\xff"},
        {"content-type": b"application/grpc\xff"},
        {"grpc-timeout": b"\xff"},
        {"\xff": b"x"},
        {":path": b"/cogmentAPI.ModelRegistrySP/\xff"},
        {":path": b"\xff"},
        {":path": b"/\xed\xa0\x80/Status"},
    ]
    for change in changes:
        with peer(port, random) as it:
            it.call(1, "Status", STATUS, changes=change)
            it.call(3, "CreateVersion", UPLOAD, changes=change)


def odd_streams(port: int, random: Random) -> None:
    """Begin streams whose numbers a client may not use, and end streams twice."""
    for streams in ((0,), (2,), (5, 3, 1), (2**31 - 1, 1), (1, 1)):
        with peer(port, random) as it:
            for stream in streams:
                it.call(stream, "VersionUpdate", WATCH)
    with peer(port, random) as it:
        it.call(1, "CreateVersion", UPLOAD)
        it.send(frame(DATA, END_STREAM, 1, PIECE) + frame(HEADERS, END_HEADERS | END_STREAM, 1, field(b"x", b"y")))
    with peer(port, random) as it:
        it.call(1, "CreateVersion", UPLOAD, end=False)
        it.send(frame(HEADERS, END_HEADERS, 1, field(b"trailer", b"that does not end the stream")))


def too_many_streams(port: int, random: Random) -> None:
    """Make more concurrent calls than a connection may have."""
    for method, payload in (("VersionUpdate", WATCH), ("CreateVersion", UPLOAD), ("RetrieveVersionData", RETRIEVE)):
        with peer(port, random) as it:
            for stream in range(1, 6 * _STREAMS_MAX, 2):
                it.call(stream, method, payload, end=method != "CreateVersion")


def too_many_connections(port: int, random: Random) -> None:
    """Open more connections than allowed."""
    with contextlib.ExitStack() as stack:
        peers = [
            stack.enter_context(contextlib.closing(Peer(port, greet=number % 2 == 0)))
            for number in range(2 * _CONNECTIONS_MAX)
        ]
        for it in peers:
            it.call(1, "VersionUpdate", WATCH)
        peers[0].wait()
        peers[-2].wait()
        for it in peers:
            it.close(rudely=random.random() < 0.5)


def short_connections(port: int, random: Random) -> None:
    """Connect and disconnect very often, sometimes in the middle of an upload."""
    for number in range(200):
        it = Peer(port, greet=number % 4 != 0)
        if number % 2:
            it.call(1, "CreateVersion", UPLOAD + PIECE, end=False)
        it.close(rudely=random.random() < 0.7)


_WAYS: list[Callable[[int, Random], None]] = [
    resets,
    resets_of_retrievals,
    resets_of_nothing,
    pings,
    settings_floods,
    bad_settings,
    half_open,
    byte_by_byte,
    other_protocols,
    large_headers,
    endless_continuations,
    bad_headers,
    bad_windows,
    data_on_wrong_streams,
    odd_data,
    wrong_lengths,
    unknown_frames,
    priorities,
    farewells,
    never_reading,
    bad_framing,
    empty_messages,
    wrong_calls,
    undecodable_texts,
    odd_streams,
    too_many_streams,
    too_many_connections,
    short_connections,
]


# The well-behaved client, and the server.


class _GoodClient:
    """Uses the registry as intended, and measures the time of each call."""

    def __init__(self, client: Client, random: Random, figures: Figures) -> None:
        self._client = client
        self._random = random
        self._figures = figures
        self.cycles = 0

    async def prepare(self) -> None:
        """Create the version that the others try to retrieve."""
        await self._client.create_model(_BIG_ID)
        await self._client.store(_BIG_ID, bytes(_BIG_BYTES), chunk_size=100_000)
        await self._client.create_model("good")

    async def cycle(self) -> None:
        """Make one call of each kind."""
        for archived in (False, True):
            data = self._random.randbytes(self._random.choice((0, 100, 100_000)))
            info = await self._timed(self._client.store if archived else self._client.publish, "good", data)
            assert await self._timed(self._client.data, "good", info.version_number) == data, (
                "wrong bytes were retrieved"
            )
            [found] = (await self._timed(self._client.infos, "good", -1)).version_infos
            assert found == info, f"the last version is {found}, and must be {info}"
        assert len((await self._timed(self._client.models)).model_infos) == 2, "the list of models is wrong"
        self.cycles += 1

    async def _timed(self, call: Callable[..., Awaitable[Any]], *arguments: object) -> Any:
        started = time.perf_counter()
        async with asyncio.timeout(_WAIT_MAX_SECONDS):
            result = await call(*arguments)
        self._figures.peak("ms of the slowest well-behaved call", (time.perf_counter() - started) * 1000)
        self._figures.count("well-behaved calls")
        return result


async def _abuse(server: ServerProcess, rounds: int, random: Random, figures: Figures) -> None:
    """Abuse the server once a round, in parallel with a well-behaved client."""
    process = psutil.Process(server.pid)
    async with connected(server.port) as client:
        good = _GoodClient(client, random, figures)
        await good.prepare()
        await good.cycle()
        await _warm_up(server.port)
        descriptors, memory_bytes = process.num_fds(), process.memory_info().rss
        ways = random.sample(_WAYS, len(_WAYS))
        for number in range(rounds):
            way = ways[number] if number < len(ways) else random.choice(_WAYS)
            seed = random.getrandbits(64)
            try:
                await _abuse_with_good_client(good, asyncio.to_thread(way, server.port, Random(seed)))
            except Exception as error:
                error.add_note(f"during {way.__name__}, with seed {seed}")
                raise
            figures.count("abuses")
        await good.cycle()
        await _all_is_freed(process, client, descriptors, memory_bytes, figures)
    async with connected(server.port) as fresh:
        assert {*(await fresh.status("watchers", "uploads", "retrievals")).values()} == {"0"}


async def _warm_up(port: int) -> None:
    """Open as many connections as the proof will, since the server keeps some of their memory."""
    await asyncio.to_thread(too_many_connections, port, Random(0))


async def _abuse_with_good_client(good: _GoodClient, abuse: Awaitable[None]) -> None:
    """Let a well-behaved client work while an abuse runs, and once more after it."""
    working = asyncio.ensure_future(abuse)
    try:
        while not working.done():
            await good.cycle()
        await good.cycle()
    finally:
        await working


async def _all_is_freed(
    process: psutil.Process, client: Client, descriptors: int, memory_bytes: int, figures: Figures
) -> None:
    """Wait until the server holds nothing for disconnected peers."""
    found: tuple[dict[str, str], int, int] | None = None

    async def is_freed() -> bool:
        nonlocal found
        held = await client.status("watchers", "uploads", "retrievals")
        more_descriptors = process.num_fds() - descriptors
        more_bytes = process.memory_info().rss - memory_bytes
        found = held, more_descriptors, more_bytes
        return {*held.values()} == {"0"} and more_descriptors <= _SPARE_DESCRIPTORS and more_bytes <= _SPARE_BYTES

    await eventually(is_freed, lambda: f"held, more descriptors and more bytes are {found}", _SETTLE_SECONDS)
    assert found
    _, more_descriptors, more_bytes = found
    figures.peak("MiB more than before", more_bytes / 2**20)
    figures.peak("descriptors more than before", more_descriptors)


def attempt(place: Path, rounds: int, random: Random, figures: Figures) -> None:
    """Abuse a server."""
    with unharmed_server(place / "archive", *_FLAGS) as server:
        asyncio.run(_abuse(server, rounds, random, figures))


PROOF = Proof(
    name="http2_abuse",
    promise="A peer that breaks the rules of HTTP/2 or gRPC harms no other client, and its memory is freed",
    attempt=attempt,
    unit="abuses",
    short=len(_WAYS),
    long=500,
    batch=100,
)
