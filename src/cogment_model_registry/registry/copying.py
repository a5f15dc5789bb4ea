"""Copying the bytes of a version inside the server."""

from collections.abc import Awaitable, Callable
from contextlib import aclosing

from cogment_model_registry.registry.contracts import Reader

_CHUNK_BYTES = 1024 * 1024
"""How much of a version is handed from store to store at once."""


async def copy_bytes(reader: Reader, write: Callable[[memoryview], Awaitable[None]]) -> None:
    """Write all that a reader yields. The reader must stay open until the bytes are finished.

    Raises:
        DataLossError: The bytes are damaged.
    """
    async with aclosing(reader.chunks(_CHUNK_BYTES, 2 * _CHUNK_BYTES)) as chunks:
        async for parts in chunks:
            for part in parts:
                await write(part)
