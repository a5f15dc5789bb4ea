"""PostgreSQL with a standby, as the proof of several servers uses it; and the faults that it chooses."""

import asyncio
import os
import signal
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import pytest

from tests.postgres import program
from tests.torture.several_servers.database import Pair
from tests.torture.several_servers.faults import FAULTS, deck
from tests.torture.several_servers.network import network
from tests.torture.several_servers.proof import PROOF


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    """A primary with a standby."""
    program("pg_basebackup")
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)  # its user may be another one
        async with network((), has_own=False) as ways:
            made = Pair(Path(place), ways, ("one", "two"))
            try:
                await made.start()
                yield made
            finally:
                await asyncio.to_thread(made.close)


async def query(pair: Pair, statement: str) -> str:
    """Return what a statement returns on the primary."""
    return await asyncio.to_thread(pair.primary.query, statement)


async def test_the_standby_takes_over_with_all_commits_and_without_unlogged_rows(pair: Pair) -> None:
    await query(pair, "CREATE TABLE kept (number int)")
    await query(pair, "CREATE UNLOGGED TABLE lost (number int)")
    for node in ("two", "one"):
        await query(pair, "INSERT INTO kept SELECT count(*) FROM kept")
        await query(pair, "INSERT INTO lost VALUES (1)")
        await asyncio.to_thread(pair.primary.end, signal.SIGKILL)
        await asyncio.to_thread(pair.fail_over)
        assert pair.primary.node == node
        await pair.attach()
    assert await query(pair, "SELECT number FROM kept ORDER BY number") == "0\n1"
    assert await query(pair, "SELECT count(*) FROM lost") == "0"


async def test_a_crash_loses_unlogged_rows_and_a_fast_restart_nothing(pair: Pair) -> None:
    await query(pair, "CREATE UNLOGGED TABLE lost (number int)")
    for number, left in ((signal.SIGINT, "1"), (signal.SIGQUIT, "0"), (signal.SIGKILL, "0")):
        await query(pair, "INSERT INTO lost VALUES (1)")
        await asyncio.to_thread(pair.primary.end, number)
        await asyncio.to_thread(pair.primary.start)
        assert await query(pair, "SELECT count(*) FROM lost") == left
        await query(pair, "DELETE FROM lost")


def test_the_long_form_has_100_kills_and_freezes_of_servers_and_20_faults_of_postgresql() -> None:
    kinds = {fault: kind for kind, faults in FAULTS.items() for fault in faults}
    counted: Counter[str] = Counter()
    names: set[str] = set()
    for start in range(0, PROOF.long, PROOF.batch):
        faults = deck(PROOF.batch, Random(f"{PROOF.name} {start}"))
        counted.update(kinds[fault] for fault in faults)
        names |= {fault.name for fault in faults}
    assert counted["server"] >= 100
    assert counted["database"] >= 20
    assert names == {fault.name for fault in kinds}
