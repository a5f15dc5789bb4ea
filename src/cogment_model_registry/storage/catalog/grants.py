"""The table of grants: who may do what."""

from collections.abc import Iterable
from sqlite3 import Connection, IntegrityError

from cogment_model_registry.errors import InvalidError, NotFoundError, quoted
from cogment_model_registry.records.access import Grant, scopes_of, scopes_text, taken_by


def read(connection: Connection) -> list[Grant]:
    """Return all grants, by name. One with scopes that this release does not know is left out: it allows nothing."""
    grants = []
    rows = connection.execute("SELECT name, kind, identity, scopes, created, expires FROM grants ORDER BY name")
    for name, kind, identity, scopes, created_ns, expires_ns in rows:
        try:
            grants.append(Grant(name, kind, identity, scopes_of(scopes), created_ns, expires_ns))
        except InvalidError:
            continue
    return grants


def add(connection: Connection, grant: Grant) -> None:
    """Add a grant.

    Raises:
        ExistsError: There is one with its name, or for the same certificate or subject.
    """
    scopes = scopes_text(grant.scopes)
    try:
        connection.execute(
            "INSERT INTO grants (name, kind, identity, scopes, created, expires) VALUES (?, ?, ?, ?, ?, ?)",
            (grant.name, grant.kind, grant.identity, scopes, grant.created_ns, grant.expires_ns),
        )
    except IntegrityError:
        [[holder]] = connection.execute(
            "SELECT name FROM grants WHERE name = ? OR (kind = ? AND identity = ?) LIMIT 1",
            (grant.name, grant.kind, grant.identity),
        )
        raise taken_by(grant, holder) from None


def remove(connection: Connection, name: str) -> None:
    """Remove a grant.

    Raises:
        NotFoundError: There is none with this name.
    """
    if not connection.execute("DELETE FROM grants WHERE name = ?", (name,)).rowcount:
        raise NotFoundError(f"token {quoted(name)} does not exist")


def restore(connection: Connection, grants: Iterable[Grant]) -> None:
    """Add grants of another database."""
    for grant in grants:
        add(connection, grant)
