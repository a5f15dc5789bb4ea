"""The archive that a catalog belongs to: the first one with which it was used.

A server with the same catalog and another archive, for example by a wrong prefix in its address, would keep versions
where the others do not find them.
"""

from collections.abc import Sequence

from cogment_model_registry.errors import StartError
from cogment_model_registry.storage.postgres.connections import Connections
from cogment_model_registry.storage.postgres.translation import Record

_BIND = """
INSERT INTO archive (id) VALUES ($1) ON CONFLICT (singleton) DO UPDATE SET id = archive.id RETURNING id
"""


async def bind(connections: Connections, archive_id: str, url: str) -> None:
    """Let a catalog that belongs to no archive belong to this one, and check that it does.

    Args:
        connections: The connections to its database; open.
        archive_id: What tells the archive from others.
        url: Its address, for the message.

    Raises:
        StartError: It belongs to another one.
        UnavailableError: PostgreSQL does not answer.
    """
    _check(await connections.fetch("bind_archive", _BIND, archive_id), archive_id, url)


async def check_bound(connections: Connections, archive_id: str, url: str) -> None:
    """Check that a catalog belongs to an archive, or to none yet. See `bind`."""
    _check(await connections.fetch("read_archive", "SELECT id FROM archive"), archive_id, url)


def _check(rows: Sequence[Record], archive_id: str, url: str) -> None:
    if rows and rows[0]["id"] != archive_id:
        raise StartError(
            f"archive {url} (id {archive_id}) is not the one of this catalog (id {rows[0]['id']}): use the address of "
            "that archive, or a database of its own for this one"
        )
