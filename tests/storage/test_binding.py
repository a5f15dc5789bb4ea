"""Which archive and which catalog belong to each other, when servers begin to use them at the same time."""

import asyncio
from collections.abc import Iterator

import pytest
from obstore.store import MemoryStore

from cogment_model_registry.errors import StartError
from cogment_model_registry.storage.binding import open_bound
from cogment_model_registry.storage.bucket.objects import Objects
from cogment_model_registry.storage.postgres.binding import Binding
from cogment_model_registry.storage.postgres.connections import opened_connections
from tests.postgres import PostgresServer, execute, new_database
from tests.storage.shared_servers import Server


@pytest.fixture
def other_database(postgres: PostgresServer) -> Iterator[str]:
    """The address of another database, which is empty."""
    with new_database(postgres) as url:
        yield url


async def start(store: MemoryStore, database: str) -> StartError | None:
    """Open an archive with a catalog; return why that was refused."""
    server = Server(store, 1)
    try:
        async with opened_connections(database) as connections:
            await open_bound(server.archive, Binding(connections), "test://bucket")
    except StartError as error:
        return error
    finally:
        await server.archive.close()
    return None


async def names_in(store: MemoryStore) -> list[str]:
    return await Objects(store, "test://bucket").all_names("")


async def test_of_two_databases_that_begin_to_use_an_archive_at_once_one_is_refused(
    database: str, other_database: str
) -> None:
    store, databases = MemoryStore(), [database, other_database]
    errors = await asyncio.gather(*[start(store, each) for each in databases for _ in range(3)])
    refused = [each for each in errors if each]
    assert len(refused) == 3
    assert len({error is None for error in errors[:3]}) == 1
    assert all("belongs to another catalog" in error.message for error in refused)
    loser, winner = databases if errors[0] else databases[::-1]
    assert await execute(loser, "SELECT FROM cogment_model_registry.archive") == []
    assert await start(store, winner) is None
    assert await start(MemoryStore(), loser) is None


async def test_of_two_archives_that_one_database_begins_to_use_at_once_one_is_left_empty(database: str) -> None:
    stores = [MemoryStore(), MemoryStore()]
    errors = await asyncio.gather(*[start(store, database) for store in stores for _ in range(3)])
    refused = [each for each in errors if each]
    assert len(refused) == 3
    assert all("(which no server has used) is not the one of this catalog" in error.message for error in refused)
    assert sorted([await names_in(store) for store in stores]) == [[], ["catalog.json", "format.json"]]


async def test_a_binding_that_is_malformed_is_explained(database: str) -> None:
    store = MemoryStore()
    await Objects(store, "test://bucket").put("catalog.json", b"{")
    error = await start(store, database)
    assert error is not None
    assert error.message == "archive test://bucket cannot be used: its catalog.json: it is not JSON"
    assert await names_in(store) == ["catalog.json"]
