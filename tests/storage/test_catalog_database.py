"""The database of a catalog: changes are durable when awaited, and atomic; foreign files are refused."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from cogment_model_registry.errors import ConflictError, StartError, StoppingError, TooLargeError, UnavailableError
from cogment_model_registry.storage.catalog.connections import Migration
from cogment_model_registry.storage.catalog.database import Database

FIRST = Migration("CREATE TABLE numbers (number INTEGER PRIMARY KEY)")
SECOND = Migration("ALTER TABLE numbers ADD COLUMN name TEXT NOT NULL DEFAULT 'none'")


def insert(connection: sqlite3.Connection, number: int) -> int:
    connection.execute("INSERT INTO numbers (number) VALUES (?)", (number,))
    return number


def put(connection: sqlite3.Connection, number: int) -> None:
    insert(connection, number)


def numbers(connection: sqlite3.Connection) -> list[int]:
    return [number for (number,) in connection.execute("SELECT number FROM numbers ORDER BY number")]


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(str(tmp_path / "catalog.db"), [FIRST])
    await database.open()
    yield database
    await database.close()


async def test_a_change_is_seen_by_each_later_read(database: Database) -> None:
    assert await database.change(lambda connection: insert(connection, 1)) == 1
    assert await database.read(numbers) == [1]
    database.change_later(partial(put, number=2))
    assert await database.read(numbers) == [1, 2]


async def test_a_refused_change_rolls_back_only_itself(database: Database) -> None:
    def refused(connection: sqlite3.Connection) -> int:
        insert(connection, 100)
        raise ConflictError("not now")

    changes = [database.change(partial(insert, number=number)) for number in range(5)]
    outcomes = await asyncio.gather(*changes, database.change(refused), return_exceptions=True)
    assert outcomes[:5] == [0, 1, 2, 3, 4]
    assert isinstance(outcomes[5], ConflictError)
    assert await database.read(numbers) == [0, 1, 2, 3, 4]


async def test_concurrent_changes_share_transactions(database: Database) -> None:
    commits = 0

    def count(connection: sqlite3.Connection) -> None:
        def traced(statement: str) -> None:
            nonlocal commits
            commits += statement == "COMMIT"

        connection.set_trace_callback(traced)

    await database.change(count)
    commits = 0
    await asyncio.gather(*(database.change(partial(insert, number=number)) for number in range(1000)))
    await database.change(lambda connection: connection.set_trace_callback(None))
    assert len(await database.read(numbers)) == 1000
    assert commits < 20


async def test_reads_do_not_wait_until_changes_stop_coming(database: Database) -> None:
    is_read = False
    made = 0

    async def go_on_changing() -> None:
        nonlocal made
        while not is_read and made < 10_000:
            made += 1
            await database.change(partial(insert, number=made))

    changing = [asyncio.create_task(go_on_changing()) for _ in range(4)]
    await asyncio.sleep(0)  # so that from now on a change is always in progress
    assert await database.read(numbers)
    is_read = True
    await asyncio.gather(*changing)
    assert made < 10_000


async def test_a_read_sees_one_snapshot(database: Database) -> None:
    await database.change(partial(insert, number=1))
    loop = asyncio.get_running_loop()

    def look_twice(connection: sqlite3.Connection) -> tuple[list[int], list[int]]:
        first = numbers(connection)
        asyncio.run_coroutine_threadsafe(database.change(partial(insert, number=2)), loop).result()
        return first, numbers(connection)

    assert await database.read(look_twice) == ([1], [1])
    assert await database.read(numbers) == [1, 2]


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"


async def test_an_endless_search_is_ended_and_delays_no_read(tmp_path: Path) -> None:
    database = Database(str(tmp_path / "catalog.db"), [FIRST], search_seconds=0.3)
    await database.open()
    searching = asyncio.create_task(database.search(lambda connection: connection.execute(ENDLESS).fetchone()))
    await database.change(partial(insert, number=1))
    assert await database.read(numbers) == [1]
    with pytest.raises(TooLargeError, match=r"took longer than 0\.3 seconds"):
        await searching
    assert await database.search(numbers) == [1]
    await database.close()


async def test_a_stop_does_not_wait_for_a_search(tmp_path: Path) -> None:
    database = Database(str(tmp_path / "catalog.db"), [FIRST], search_seconds=3600)
    await database.open()
    searching = asyncio.create_task(database.search(lambda connection: connection.execute(ENDLESS).fetchone()))
    await database.read(numbers)  # the search is now on its thread
    await database.close()
    assert isinstance((await asyncio.gather(searching, return_exceptions=True))[0], StoppingError)


async def test_a_cancelled_caller_leaves_the_change_complete(database: Database) -> None:
    changing = asyncio.ensure_future(database.change(lambda connection: insert(connection, 1)))
    await asyncio.sleep(0)
    changing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await changing
    assert await database.read(numbers) == [1]


async def test_a_closed_database_keeps_its_content_and_refuses_changes(tmp_path: Path) -> None:
    path = str(tmp_path / "a %41?#.db")
    database = Database(path, [FIRST])
    await database.open()
    database.change_later(partial(put, number=7))
    await database.close()
    await database.close()
    with pytest.raises(UnavailableError, match="closed"):
        await database.change(numbers)
    with closing(sqlite3.connect(path)) as connection:
        assert numbers(connection) == [7]
    assert os.stat(path).st_mode & 0o037 == 0
    assert os.listdir(tmp_path) == ["a %41?#.db"]


async def test_the_schema_follows_the_migrations(tmp_path: Path) -> None:
    path = str(tmp_path / "catalog.db")
    for migrations in ([FIRST], [FIRST, SECOND], [FIRST, SECOND]):
        database = Database(path, migrations)
        await database.open()
        await database.change(lambda connection: insert(connection, len(numbers(connection))))
        await database.close()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT * FROM numbers").fetchall() == [(0, "none"), (1, "none"), (2, "none")]
    older = Database(path, [FIRST])
    with pytest.raises(StartError, match="newer release \\(schema 2; this one knows 1\\)"):
        await older.open()
    await older.close()


async def test_a_file_that_is_not_a_catalog_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    path.write_bytes(b"not a database, but long enough to look like one" * 100)
    await _is_refused(path, "not a database")
    path.unlink()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE other (x)")
    await _is_refused(path, "another program")
    path.unlink()
    path.mkdir()
    await _is_refused(path, "not usable")


async def _is_refused(path: Path, words: str) -> None:
    database = Database(str(path), [FIRST])
    with pytest.raises(StartError, match=words):
        await database.open()
    await database.close()


async def test_a_failed_write_ends_writes_but_not_reads(database: Database) -> None:
    await database.change(lambda connection: insert(connection, 1))

    def fail(connection: sqlite3.Connection) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    with pytest.raises(UnavailableError, match="disk I/O error"):
        await database.change(fail)
    with pytest.raises(UnavailableError, match="disk I/O error"):
        await database.change(lambda connection: insert(connection, 2))
    assert database.failure
    assert await database.read(numbers) == [1]


WRITER = """
import asyncio, sys
from cogment_model_registry.storage.catalog.connections import Migration
from cogment_model_registry.storage.catalog.database import Database

async def main():
    database = Database(sys.argv[1], [Migration("CREATE TABLE numbers (number INTEGER PRIMARY KEY)")])
    await database.open()
    for number in range(10**9):
        await database.change(lambda c: c.execute("INSERT INTO numbers VALUES (?)", (number,)))
        print(number, flush=True)

asyncio.run(main())
"""


def write_and_be_killed(path: str) -> list[int]:
    """Let another process write until it is killed, and return the numbers that it acknowledged."""
    with subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        acknowledged = [int(next(writer.stdout)) for _ in range(50)]
        writer.send_signal(signal.SIGKILL)
        return acknowledged + [int(line) for line in writer.stdout]


async def test_acknowledged_changes_survive_a_kill(tmp_path: Path) -> None:
    path = str(tmp_path / "catalog.db")
    acknowledged = await asyncio.to_thread(write_and_be_killed, path)
    database = Database(path, [FIRST])
    await database.open()
    found = await database.read(numbers)
    await database.close()
    assert found[: len(acknowledged)] == acknowledged
    assert len(found) <= len(acknowledged) + 1
