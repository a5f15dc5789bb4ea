"""Connections to a SQLite database of ours: opened, recognised, and brought to the schema of this release."""

import os
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from cogment_model_registry.errors import StartError

APPLICATION_ID = 0x436F674D  # "CogM", so that `file` and people recognise the database

_BUSY_SECONDS = 10.0
"""How long to wait for another process that looks at the database, such as `sqlite3` in a terminal."""

_CACHE_KIB = 32 * 1024
"""The memory of a connection for pages of the database: a search looks at many, in the order of an index."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of the schema.

    Attributes:
        statements: SQL that leads from the version before to this one.
    """

    statements: str


def connect(path: str, mode: str) -> sqlite3.Connection:
    """Return a connection to a file.

    Args:
        path: The file.
        mode: ``ro`` to read, ``rw`` to write as well.

    Raises:
        sqlite3.Error: It cannot be opened.
    """
    connection = sqlite3.connect(
        f"file:{_uri_path(path)}?mode={mode}",
        uri=True,
        timeout=_BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,  # closed on the thread that uses it, but opened by the pool's choice
    )
    try:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")  # reads the file, which may be no database
    except BaseException:
        connection.close()
        raise
    return connection


def open_for_writing(path: str, migrations: Sequence[Migration]) -> sqlite3.Connection:
    """Return a connection whose commits are durable; create the file when it does not exist.

    Args:
        path: The file.
        migrations: The steps of the schema; its version is how many of them were made.

    Raises:
        StartError: It is no such database, it is of a newer release, or the system refuses it.
    """
    connection = None
    try:
        # With the mode of the other files of an archive; SQLite gives the same to those that it adds.
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        if hasattr(os, "posix_fadvise"):  # read all of it now, in order, and not page by page for the first search
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_WILLNEED)
        os.close(file)
        connection = connect(path, "rw")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        migrate(connection, path, migrations)
    except StartError:
        if connection is not None:
            connection.close()
        raise
    except (sqlite3.Error, OSError) as error:
        if connection is not None:
            connection.close()
        reason = error.strerror if isinstance(error, OSError) else error
        raise StartError(f"the catalog {path} is not usable: {reason}") from error
    return connection


def schema_of(connection: sqlite3.Connection) -> int | None:
    """Return the version of the schema; 0 for an empty database, None for one of another program."""
    [application_id] = connection.execute("PRAGMA application_id").fetchone()
    [version] = connection.execute("PRAGMA user_version").fetchone()
    [tables] = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if application_id != APPLICATION_ID and (application_id or tables):
        return None
    return int(version) if tables else 0


def migrate(connection: sqlite3.Connection, path: str, migrations: Sequence[Migration]) -> None:
    """Bring the schema of a database up to date.

    Raises:
        StartError: It is a database of another program, or of a newer release.
    """
    version = schema_of(connection)
    if version is None:
        raise StartError(f"{path} is a database of another program; move it away")
    if version > len(migrations):
        raise StartError(
            f"the catalog {path} was written by a newer release (schema {version}; this one knows "
            f"{len(migrations)}): start that release, or move the file away, which loses aliases, tags and metrics"
        )
    for number, migration in enumerate(migrations[version:], version + 1):
        script = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {number};"
        connection.executescript(f"BEGIN IMMEDIATE; {migration.statements}; {script} COMMIT;")


def _uri_path(path: str) -> str:
    """Return a path as part of a URI of SQLite (https://www.sqlite.org/uri.html)."""
    return os.path.abspath(path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
