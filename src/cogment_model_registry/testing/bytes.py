"""Bytes for conformance suites: writing them to an upload in pieces, and reading them back."""

import hashlib
from collections.abc import Iterable

from cogment_model_registry.records.signatures import signature_of
from cogment_model_registry.records.versions import VersionInfo, digest_text
from cogment_model_registry.registry.contracts import Reader, Upload, VersionStore


def hash_of(data: bytes) -> str:
    """Return the SHA-256 of bytes in the form of the wire and the metadata."""
    return digest_text(hashlib.sha256(data).digest())


def describe(model_id: str, number: int, data: bytes, archived: bool, **user_data: str) -> VersionInfo:
    """Return the record of a version with these bytes."""
    return VersionInfo(
        model_id=model_id,
        number=number,
        created_ns=1_633_119_005_107_454_620 + number,
        archived=archived,
        data_hash=hash_of(data),
        data_size_bytes=len(data),
        user_data=user_data,
    )


SIGNATURE = signature_of(bytes(range(32)), bytes(range(64)))
"""A signature, which nothing below the rules checks."""


def pieces(data: bytes, sizes: Iterable[int]) -> list[memoryview]:
    """Return the bytes cut into pieces of the given sizes, and the rest."""
    view = memoryview(data)
    cut = []
    for size in sizes:
        cut.append(view[:size])
        view = view[size:]
    return [*cut, view]


async def write_pieces(upload: Upload, data: bytes, sizes: Iterable[int] = ()) -> str:
    """Write the bytes in pieces, finish, and return the hash that the upload reports."""
    for piece in pieces(data, sizes):
        await upload.write(piece)
    return await upload.finish()


async def keep(store: VersionStore, info: VersionInfo, data: bytes, sizes: Iterable[int] = ()) -> None:
    """Write and commit a version."""
    async with await store.open_upload(info.model_id, len(data)) as upload:
        assert await write_pieces(upload, data, sizes) == info.data_hash
        await upload.commit(info)


async def read_chunks(reader: Reader, max_bytes: int = 1024 * 1024) -> list[bytes]:
    """Return the chunks of a reader."""
    return [b"".join(chunk) async for chunk in reader.chunks(max_bytes, 2 * max_bytes)]


async def read_part(
    store: VersionStore, info: VersionInfo, offset: int, limit: int | None, max_bytes: int = 1024 * 1024
) -> list[bytes]:
    """Return the chunks of a part of a version."""
    async with await store.open_version(info) as reader:
        chunks = reader.chunks(max_bytes, 2 * max_bytes, offset, limit)
        return [b"".join(chunk) async for chunk in chunks]


async def read(store: VersionStore, info: VersionInfo, max_bytes: int = 1024 * 1024) -> bytes:
    """Return the bytes of a version."""
    async with await store.open_version(info) as reader:
        return b"".join(await read_chunks(reader, max_bytes))
