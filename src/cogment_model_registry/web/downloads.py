"""The bytes of versions: whole or in part, from a file descriptor of the server if it gives one."""

import asyncio
import os
import unicodedata
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from http import HTTPStatus
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cogment_model_registry.client.passing_on import PassingOn
from cogment_model_registry.errors import DataLossError, NotFoundError
from cogment_model_registry.records.lifecycle import Version
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.system import sealed_memory
from cogment_model_registry.web.disconnects import Connected
from cogment_model_registry.web.keys import key_of
from cogment_model_registry.web.ranges import Wanted, modified_of, tag_of, wanted_of
from cogment_model_registry.web.security import DATA_POLICY
from cogment_model_registry.web.sending import SendDescriptor, sender_of
from cogment_model_registry.web.state import registry_of
from cogment_model_registry.web.tally import exchange_of

_CHUNK_BYTES = 256 * 1024
"""How many bytes wait for a client at most, in addition to the buffers of the system."""

_ATTEMPTS = 3
"""How often a version is looked up again if it is replaced before its bytes can be read."""


async def by_version(request: Request) -> Response:
    """Answer with the bytes of a version, by its number, by -n, or by ``latest``."""
    return await _download(request, key_of(request.path_params["version"]))


async def by_alias(request: Request) -> Response:
    """Answer with the bytes of the version that an alias points to."""
    alias = request.path_params["alias"]
    if isinstance(key_of(alias), int):
        raise NotFoundError(f"{alias} is not the name of an alias", model_id=request.path_params["model"])
    return await _download(request, alias)


async def _download(request: Request, key: int | str) -> Response:
    registry, model_id = registry_of(request), request.path_params["model"]
    for attempt in range(_ATTEMPTS):
        version = await registry.describe_version(model_id, key)
        wanted = wanted_of(request.headers, version)
        headers = _headers(version, wanted)
        if wanted.status is HTTPStatus.NOT_MODIFIED or request.method == "HEAD" or not wanted.part:
            return Response(None, wanted.status, headers)
        passing_on = PassingOn(registry.calls)
        try:
            descriptor = await passing_on.descriptor(version)
            if descriptor is not None:
                return _FromDescriptor(descriptor, wanted, headers)
            return await _FromStream.begun(passing_on, version, wanted, headers)
        except NotFoundError:
            is_moving = isinstance(key, str) or key < 0
            if not is_moving or attempt + 1 == _ATTEMPTS:
                raise
    raise AssertionError("unreachable")


def _headers(version: Version, wanted: Wanted) -> dict[str, str]:
    """Return the headers of a download."""
    headers = {
        "accept-ranges": "bytes",
        "cache-control": "private, no-cache",
        "content-disposition": disposition_of(version),
        "content-security-policy": DATA_POLICY,
        "content-type": "application/octet-stream",
        "etag": tag_of(version),
        "last-modified": modified_of(version),
        "repr-digest": f"sha-256=:{version.data_hash}:",
        "vary": "authorization, cookie",
        "version-number": str(version.number),
    }
    if wanted.status is HTTPStatus.NOT_MODIFIED:
        return headers
    headers["content-length"] = str(len(wanted.part))
    if wanted.status is HTTPStatus.PARTIAL_CONTENT:
        part = wanted.part
        headers["content-range"] = f"bytes {part.start}-{part.stop - 1}/{version.data_size_bytes}"
    return headers


def disposition_of(info: VersionInfo) -> str:
    """Return the header that makes a browser save a version, with the name of the file (RFC 6266)."""
    name = f"{info.model_id}-{info.number}.bin"
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


class _Download(Response):
    """An answer whose bytes are sent as fast as the client receives them."""

    def __init__(self, wanted: Wanted, headers: Mapping[str, str]) -> None:
        super().__init__(None, wanted.status, headers)

    def chunks(self) -> AsyncGenerator[bytes | memoryview, None]:
        """Yield the bytes."""
        raise NotImplementedError

    async def aclose(self) -> None:
        """Close the source of the bytes."""
        raise NotImplementedError

    async def send_file(self, _sender: SendDescriptor, _count: Callable[[int], object]) -> bool:
        """Send the bytes from a file, if they are in one; return whether they are."""
        return False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the bytes, until the client is gone."""
        try:
            async with Connected(receive) as connected, aclosing(self.chunks()) as chunks:
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                if (sender := sender_of(scope)) and await self.send_file(sender, exchange_of(scope).count_sent):
                    await send({"type": "http.response.body", "body": b""})
                    return
                async for chunk in chunks:
                    if not connected:
                        return
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
        except ConnectionError:
            pass  # the client is gone; nothing else is affected
        finally:
            await self.aclose()


class _FromDescriptor(_Download):
    """Bytes that are read from a descriptor, which is closed with the answer."""

    def __init__(self, descriptor: int, wanted: Wanted, headers: Mapping[str, str]) -> None:
        super().__init__(wanted, headers)
        self._file = os.fdopen(descriptor, "rb", buffering=0)
        self._part = wanted.part
        self._is_memory = sealed_memory.is_sealed(descriptor)  # which never waits for a disk

    async def send_file(self, sender: SendDescriptor, count: Callable[[int], object]) -> bool:
        await sender(self._file.fileno(), self._part, count, may_wait=not self._is_memory)
        return True

    async def chunks(self) -> AsyncGenerator[bytes | memoryview, None]:
        descriptor = self._file.fileno()
        position, end = self._part.start, self._part.stop
        while position < end:
            size = min(_CHUNK_BYTES, end - position)
            if self._is_memory:
                data = os.pread(descriptor, size, position)
            else:
                data = await asyncio.to_thread(os.pread, descriptor, size, position)
            if not data:
                raise DataLossError("the file of the version was truncated")
            position += len(data)
            yield data

    async def aclose(self) -> None:
        self._file.close()


class _FromStream(_Download):
    """Bytes that are received while they are sent."""

    def __init__(
        self, stream: AsyncGenerator[memoryview, None], first: memoryview, wanted: Wanted, headers: Mapping[str, str]
    ) -> None:
        super().__init__(wanted, headers)
        self._stream = stream
        self._first = first

    @classmethod
    async def begun(
        cls, passing_on: PassingOn, info: VersionInfo, wanted: Wanted, headers: Mapping[str, str]
    ) -> "_FromStream":
        """Return the answer when its first bytes have arrived; until then an error can be answered.

        Raises:
            NotFoundError: The version does not exist any more.
        """
        stream = passing_on.receive(info, wanted.part)
        try:
            return cls(stream, await anext(stream), wanted, headers)
        except BaseException:
            await stream.aclose()
            raise

    async def chunks(self) -> AsyncGenerator[bytes | memoryview, None]:
        yield bytes(self._first)
        self._first = memoryview(b"")
        async for part in self._stream:
            yield bytes(part)

    async def aclose(self) -> None:
        await self._stream.aclose()
