"""The file operations of SQLite are recorded, and fail on command."""

import sqlite3
from contextlib import closing
from pathlib import Path
from random import Random

import pytest

from tests.torture import watched_sqlite
from tests.torture.cut_disk import Disk
from tests.torture.recorded_files import NameChange, Patch, RecordedFiles, Sync
from tests.torture.watched_sqlite import FULL, IOERR, WatchedSQLite

pytestmark = pytest.mark.skipif(bool(watched_sqlite.missing()), reason=watched_sqlite.missing() or "it can be watched")


def connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def test_each_change_is_recorded(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    files = RecordedFiles(place)
    with WatchedSQLite(files).installed():
        with closing(connect(place / "db")) as connection:
            connection.execute("CREATE TABLE t (x)")
            before = len(files.history)
            connection.execute("INSERT INTO t VALUES (1)")
            added = files.history[before:]
            assert isinstance(added[-1], Sync)
            assert all(isinstance(each, Patch) for each in added[:-1])
        with closing(connect(tmp_path / "elsewhere")) as connection:
            before = len(files.history)
            connection.execute("CREATE TABLE t (x)")
        assert len(files.history) == before
    names = [str(each) for each in files.history if isinstance(each, NameChange)]
    assert names[0] == "creation of db"
    assert {"creation of db-wal", "removal of db-wal"} <= {*names}
    disk = Disk(files)
    for operation in files.history:
        disk.perform(operation)
    [remains, *_] = disk.remains(Random(1), 1)
    assert remains.tree == {"db": (place / "db").read_bytes()}


@pytest.mark.parametrize(("code", "message"), [(FULL, "full"), (IOERR, "disk I/O error")])
def test_operations_fail(code: int, message: str, tmp_path: Path) -> None:
    watched = WatchedSQLite(None)
    with watched.installed(), closing(connect(tmp_path / "db")) as connection:
        connection.execute("CREATE TABLE t (x)")
        watched.fail = lambda operation, _path: code if operation == "write" else 0
        with pytest.raises(sqlite3.OperationalError, match=message):
            connection.execute("INSERT INTO t VALUES (1)")
        watched.fail = lambda _operation, _path: 0
        connection.execute("INSERT INTO t VALUES (2)")
        assert connection.execute("SELECT x FROM t").fetchall() == [(2,)]
