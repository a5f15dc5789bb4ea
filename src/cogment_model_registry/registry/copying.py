"""Copying the bytes of a version inside the server."""

from contextlib import aclosing

from cogment_model_registry.registry.contracts import Reader, Upload
from cogment_model_registry.registry.uploads import VersionUpload

_CHUNK_BYTES = 4 * 1024 * 1024
"""How much of a version is handed from store to store at once: handing it to threads costs as much as 100 KiB do."""


async def copy_bytes(reader: Reader, upload: Upload | VersionUpload) -> None:
    """Write all that a reader yields to an upload. The reader must stay open until the bytes are finished.

    Raises:
        DataLossError: The bytes are damaged.
    """
    async with aclosing(reader.chunks(_CHUNK_BYTES, 2 * _CHUNK_BYTES)) as chunks:
        async for parts in chunks:
            await upload.write(*parts)
