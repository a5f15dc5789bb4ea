"""Stores that relay: from peers that a test scripts, or from real servers."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from cogment_model_registry.errors import ModelRegistryError, NotFoundError
from cogment_model_registry.records.sizes import MIB
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.server.peers import Peers, PeerToken
from cogment_model_registry.server.relay_sources import RelayCounts, Stream
from cogment_model_registry.server.relays import RelayingStore
from cogment_model_registry.storage.memory.transient_store import MemoryTransientStore
from cogment_model_registry.wire.tls import TlsFiles
from tests.waiting import PATIENCE_SECONDS


class ScriptedPeer:
    """Another server, in the process of the test.

    Attributes:
        pieces: What it sends of the whole version; with a `gate` after each one that it names.
        asked: The offset of each call, and the limit.
        open_streams: How many calls are under way.
    """

    def __init__(
        self,
        data: bytes,
        piece_bytes: int = 100,
        *,
        refusal: ModelRegistryError | None = None,
        stops_at: int | None = None,
        fails_at: int | None = None,
        failure: ModelRegistryError | None = None,
    ) -> None:
        self.data = data
        self.piece_bytes = piece_bytes
        self.refusal = refusal
        self.fails_at = fails_at
        self.failure = failure
        self.asked: list[tuple[int, int | None]] = []
        self.open_streams = 0
        self.may_pass = asyncio.Event()
        self.stops_at = stops_at

    def open(self, offset: int, limit: int | None) -> "ScriptedStream":
        self.asked.append((offset, limit))
        if self.refusal is not None:
            raise self.refusal
        return ScriptedStream(self, offset, len(self.data) if limit is None else offset + limit)


class ScriptedStream:
    """A call of a `ScriptedPeer`."""

    def __init__(self, peer: ScriptedPeer, offset: int, end: int) -> None:
        self._peer = peer
        self._position = offset
        self._end = end
        self._is_open = True
        peer.open_streams += 1

    async def next(self) -> memoryview | None:
        await asyncio.sleep(0)
        peer = self._peer
        start, stop = self._position, min(self._position + peer.piece_bytes, self._end)
        if peer.stops_at is not None and start >= peer.stops_at:
            await peer.may_pass.wait()
        if peer.failure is not None and peer.fails_at is not None and start >= peer.fails_at:
            raise peer.failure
        self._position = stop
        return memoryview(peer.data)[start:stop] if start < stop else None

    async def aclose(self) -> None:
        if self._is_open:
            self._is_open = False
            self._peer.open_streams -= 1


class Relaying:
    """A store with scripted peers.

    Attributes:
        local: Its memory.
        store: The store.
        peers: The peers by endpoint, in the order in which they are asked.
        counts: What the relays did.
        announced: The versions of which the store became a holder.
    """

    def __init__(self, executor: ThreadPoolExecutor, max_bytes: int = 16 * MIB, max_items: int = 100) -> None:
        self.local = MemoryTransientStore(max_items, max_bytes, executor)
        self.peers: dict[str, ScriptedPeer] = {}
        self.announced: list[VersionInfo] = []
        self.is_gone = False
        self.counts = RelayCounts()
        self.store = RelayingStore(self.local, self._locate, self._open_stream, self._announce, self.counts)

    def add(self, *peers: ScriptedPeer) -> None:
        for peer in peers:
            self.peers[f"grpc://peer:{len(self.peers) + 1}"] = peer

    async def _locate(self, _info: VersionInfo) -> Sequence[str]:
        await asyncio.sleep(0)
        return [*self.peers]

    async def _open_stream(self, endpoint: str, _info: VersionInfo, offset: int, limit: int | None) -> ScriptedStream:
        await asyncio.sleep(0)
        return self.peers[endpoint].open(offset, limit)

    async def _announce(self, info: VersionInfo) -> None:
        await asyncio.sleep(0)
        if self.is_gone:
            raise NotFoundError.version(info.model_id, info.number)
        self.announced.append(info)


class OtherServer:
    """A store that relays over real connections, from servers that the test names.

    Attributes:
        local: Its memory.
        peers: Its connections.
        peers_by_endpoint: Those to servers that have connections of their own.
        counts: What its relays did.
        holders: The endpoints of those that hold a version, the first one asked first.
        store: The store.
    """

    def __init__(self, executor: ThreadPoolExecutor, peers: Peers, max_bytes: int) -> None:
        self.local = MemoryTransientStore(100, max_bytes, executor)
        self.peers = peers
        self.counts = RelayCounts()
        self.holders: list[str] = []
        self.peers_by_endpoint: dict[str, Peers] = {}
        self.store = RelayingStore(self.local, self._locate, self._open_stream, self._announce, self.counts)

    async def _locate(self, _info: VersionInfo) -> Sequence[str]:
        return [*self.holders]

    async def _open_stream(self, endpoint: str, info: VersionInfo, offset: int, limit: int | None) -> Stream:
        peers = self.peers_by_endpoint.get(endpoint, self.peers)
        return await peers.open_stream(endpoint, info, offset, limit)

    async def _announce(self, _info: VersionInfo) -> None:
        """Do nothing: there is no catalog."""


@asynccontextmanager
async def other_server(
    *ports: int, peers: Peers | None = None, max_bytes: int = 64 * MIB
) -> AsyncIterator[OtherServer]:
    """Return a context manager with a store that relays from the servers on some ports.

    Args:
        ports: The ports.
        peers: Its connections; without TLS and token if None.
        max_bytes: Its budget.
    """
    peers = peers or Peers(PeerToken(""), TlsFiles(), silent_seconds=PATIENCE_SECONDS)
    with ThreadPoolExecutor(2, thread_name_prefix="hash") as executor:
        server = OtherServer(executor, peers, max_bytes)
        server.holders = [f"grpc://127.0.0.1:{port}" for port in ports]
        async with peers, server.store:
            yield server
