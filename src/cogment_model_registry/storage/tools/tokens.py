"""Grants of an archive directory, made and revoked next to the server that uses it, or before its first start."""

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Sequence

from cogment_model_registry.errors import UnavailableError
from cogment_model_registry.records.access import Grant
from cogment_model_registry.storage.catalog import grants, tables
from cogment_model_registry.storage.catalog.connections import open_for_writing
from cogment_model_registry.storage.filesystem import layout
from cogment_model_registry.storage.filesystem.claim import OwnedFiles, opened_root


@contextlib.contextmanager
def _changing(archive_dir: str) -> Iterator[sqlite3.Connection]:
    """Return a context manager with the database, whose changes are durable at its end, all of them or none.

    Raises:
        StartError: The database is not usable.
        UnavailableError: It failed.
        OSError: The directory is not available.
    """
    files = OwnedFiles(archive_dir)
    with (
        opened_root(files, archive_dir) as root,
        contextlib.closing(
            open_for_writing(os.path.join(archive_dir, layout.CATALOG_NAME), tables.MIGRATIONS)
        ) as connection,
    ):
        for name in sorted(layout.CATALOG_NAMES):
            with contextlib.suppress(FileNotFoundError):
                files.give(root, name)
        try:
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise UnavailableError(f"the catalog failed: {error}") from error


def add_grant(archive_dir: str, grant: Grant) -> None:
    """Add a grant; durable on return. A server that uses the archive knows it when it is first used.

    Args:
        archive_dir: The archive directory; created when it does not exist.
        grant: The grant.

    Raises:
        ExistsError: Its name is taken, or the certificate or subject has one.
        StartError: The database is not usable.
        UnavailableError: It failed.
        OSError: The directory is not available.
    """
    os.makedirs(archive_dir, exist_ok=True)
    with _changing(archive_dir) as connection:
        grants.add(connection, grant)


def remove_grant(archive_dir: str, name: str) -> None:
    """Remove a grant; durable on return. A server that uses the archive notices within a second; see `add_grant`.

    Raises:
        NotFoundError: There is none of this name.
    """
    with _changing(archive_dir) as connection:
        grants.remove(connection, name)


def list_grants(archive_dir: str) -> Sequence[Grant]:
    """Return all grants, by name; see `add_grant`."""
    with _changing(archive_dir) as connection:
        return grants.read(connection)
