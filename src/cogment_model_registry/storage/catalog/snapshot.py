"""A copy of the database of a catalog, made while a server may be using it, and read without disturbing it.

A database that a server writes is copied by SQLite, which sees one moment of it. One that nobody has open is copied
file by file: SQLite would write next to what it reads, and an archive may be on a read-only file system. If a server
starts or stops in between, the copy is made again.
"""

import contextlib
import os
import shutil
import sqlite3
import stat
from collections.abc import Callable, Iterator
from enum import Enum, auto
from tempfile import TemporaryDirectory

from cogment_model_registry.errors import UnavailableError
from cogment_model_registry.storage.catalog import connections
from cogment_model_registry.storage.catalog.tables import MIGRATIONS

_ATTEMPTS = 10
_LOGS = ("-wal", "-journal")
"""The endings of the files that have changes which are not in the database yet (https://www.sqlite.org/tempfiles.html)."""

_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


class Flaw(Enum):
    """Why a database cannot be read."""

    NOT_A_FILE = auto()
    DAMAGED = auto()
    OF_ANOTHER_PROGRAM = auto()
    NEWER = auto()
    UNREADABLE = auto()


class UnusableCatalogError(UnavailableError):
    """The database of a catalog cannot be read.

    Args:
        flaw: Why.
        message: A sentence on it.
    """

    def __init__(self, flaw: Flaw, message: str) -> None:
        super().__init__(message)
        self.flaw = flaw


@contextlib.contextmanager
def opened_snapshot(
    path: str, is_in_use: Callable[[], bool], *, is_salvage: bool = False
) -> Iterator[sqlite3.Connection | None]:
    """Return a context manager with a connection to a copy of a database; None when it does not exist or is empty.

    Args:
        path: The database.
        is_in_use: Says whether a server uses it now.
        is_salvage: Whether to open a copy in which something is damaged too.

    Raises:
        UnusableCatalogError: It is not readable.
    """
    with TemporaryDirectory(prefix="cogment-catalog-") as folder, contextlib.ExitStack() as stack:
        copy = os.path.join(folder, os.path.basename(path))
        if not copy_database(path, copy, is_in_use):
            yield None
            return
        with translated():
            connection = stack.enter_context(contextlib.closing(opened_copy(copy)))
            schema = connections.schema_of(connection)
            if not is_salvage:
                check_integrity(connection)
        yield connection if schema else None


def copy_database(path: str, target: str, is_in_use: Callable[[], bool]) -> bool:
    """Copy a database as it is at one moment; return whether it exists.

    Args:
        path: The database.
        target: Where to copy it; its log may get a file next to it.
        is_in_use: Says whether a server uses it now.

    Raises:
        UnusableCatalogError: It is not readable.
    """
    for _ in range(_ATTEMPTS):
        with translated():
            if not _is_there(path):
                return False
            if is_in_use():
                with contextlib.suppress(sqlite3.OperationalError):  # the server may have stopped
                    _copy_by_sqlite(path, target)
                    return True
            elif _copy_files(path, target) and not is_in_use():
                return True
    raise UnusableCatalogError(Flaw.UNREADABLE, "it cannot be read: servers start and stop on it all the time")


def _is_there(path: str) -> bool:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(status.st_mode):
        raise UnusableCatalogError(Flaw.NOT_A_FILE, "it is not a regular file")
    return True


def _copy_by_sqlite(path: str, target: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(target)
    with (
        contextlib.closing(connections.connect(path, "ro")) as source,
        contextlib.closing(sqlite3.connect(target)) as copy,
    ):
        source.backup(copy)


def _copy_files(path: str, target: str) -> bool:
    """Copy the files of a database; return whether none of them changed in that time."""
    before = _statuses(path)
    for ending in ("", *_LOGS):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(target + ending)
        if ending in before:
            _copy_file(path + ending, target + ending)
    return _statuses(path) == before


def _copy_file(path: str, target: str) -> None:
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as source, open(target, "wb") as copy:
        shutil.copyfileobj(source, copy)


def _statuses(path: str) -> dict[str, tuple[int, int, int]]:
    found = {}
    for ending in ("", *_LOGS):
        with contextlib.suppress(FileNotFoundError):
            status = os.lstat(path + ending)
            found[ending] = (status.st_ino, status.st_size, status.st_mtime_ns)
    return found


def opened_copy(copy: str) -> sqlite3.Connection:
    """Return a connection to a copy, with the schema of this release.

    Raises:
        UnusableCatalogError: It is one of another program, or of a newer release.
        sqlite3.Error: It is not readable.
    """
    connection = connections.connect(copy, "rw")
    try:
        schema = connections.schema_of(connection)
        if schema is None:
            raise UnusableCatalogError(Flaw.OF_ANOTHER_PROGRAM, "it is a database of another program")
        if schema > len(MIGRATIONS):
            message = f"it was written by a newer release (schema {schema}; this one knows {len(MIGRATIONS)})"
            raise UnusableCatalogError(Flaw.NEWER, message)
        if schema:
            connections.migrate(connection, copy, MIGRATIONS)
    except BaseException:
        connection.close()
        raise
    return connection


def check_integrity(connection: sqlite3.Connection) -> None:
    """Refuse a database in which something is damaged.

    Raises:
        UnusableCatalogError: Something is.
    """
    problems = [row[0] for row in connection.execute("PRAGMA integrity_check(1)") if row[0] != "ok"]
    problems += [
        f"a row of {table} belongs to no row of {parent}"
        for table, _, parent, _ in connection.execute("PRAGMA foreign_key_check")
    ]
    if problems:
        raise UnusableCatalogError(Flaw.DAMAGED, f"it is damaged: {' '.join(problems[0].split())}")


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Return a context manager that turns errors of SQLite and of the system into `UnusableCatalogError`."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in _DAMAGE:
            raise UnusableCatalogError(Flaw.DAMAGED, f"it is damaged: {error}") from error
        raise UnusableCatalogError(Flaw.UNREADABLE, f"it cannot be read: {error}") from error
    except OSError as error:
        raise UnusableCatalogError(Flaw.UNREADABLE, f"it cannot be read: {error.strerror}") from error
