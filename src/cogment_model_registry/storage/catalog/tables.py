"""The tables of a catalog, and what is asked of them.

An archived version has a row, which can be rebuilt from its files. What people may change (tags, metrics, aliases)
is only here. Transient versions are not: they end with the process.

Times are nanoseconds since the Unix epoch less 2^63, since their range is that of an unsigned integer of 64 bits, and
the order of SQLite's integers is signed.
"""

import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from sqlite3 import Connection
from typing import Any

from cogment_model_registry.records.lifecycle import (
    FIRST_REVISION,
    Alias,
    AliasChange,
    AnnotationChange,
    Annotations,
    check_alias_revision,
    check_revision,
)
from cogment_model_registry.records.signatures import Signature, parse_signature
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.storage.catalog.connections import Migration
from cogment_model_registry.storage.folder import FolderStamp, KnownFolder

TIME_OFFSET = 2**63
"""What is taken from a time before it is stored."""

MIGRATIONS = (
    Migration(
        """
        CREATE TABLE models (
            model INTEGER PRIMARY KEY,
            model_id TEXT NOT NULL UNIQUE,
            life INTEGER NOT NULL,
            last_revision INTEGER NOT NULL DEFAULT 1,
            revision INTEGER NOT NULL DEFAULT 1,
            max_items INTEGER NOT NULL DEFAULT 0,
            max_bytes INTEGER NOT NULL DEFAULT 0,
            reserved_items INTEGER NOT NULL DEFAULT 0,
            reserved_bytes INTEGER NOT NULL DEFAULT 0,
            folder_inode TEXT NOT NULL DEFAULT '',
            folder_changed INTEGER NOT NULL DEFAULT 0,
            folder_complete INTEGER NOT NULL DEFAULT 0
        );
        CREATE TABLE model_tags (
            model INTEGER NOT NULL REFERENCES models ON DELETE CASCADE,
            key TEXT NOT NULL,
            value TEXT NOT NULL,
            PRIMARY KEY (model, key)
        ) WITHOUT ROWID;
        CREATE TABLE rules (
            model INTEGER NOT NULL REFERENCES models ON DELETE CASCADE,
            position INTEGER NOT NULL,
            tier TEXT NOT NULL,
            filter TEXT NOT NULL,
            keep_last INTEGER NOT NULL,
            keep_best INTEGER NOT NULL,
            metric TEXT NOT NULL,
            lower_is_better INTEGER NOT NULL,
            keep_seconds INTEGER NOT NULL,
            keep_every INTEGER NOT NULL,
            PRIMARY KEY (model, position)
        ) WITHOUT ROWID;
        CREATE TABLE versions (
            model INTEGER NOT NULL REFERENCES models ON DELETE CASCADE,
            number INTEGER NOT NULL,
            created INTEGER NOT NULL,
            data_hash TEXT NOT NULL,
            data_size INTEGER NOT NULL,
            revision INTEGER NOT NULL DEFAULT 1,
            PRIMARY KEY (model, number)
        ) WITHOUT ROWID;
        CREATE INDEX versions_by_time ON versions (model, created, number);
        CREATE TABLE user_data (
            model INTEGER NOT NULL,
            number INTEGER NOT NULL,
            key TEXT NOT NULL,
            value TEXT NOT NULL,
            PRIMARY KEY (model, number, key),
            FOREIGN KEY (model, number) REFERENCES versions ON DELETE CASCADE
        ) WITHOUT ROWID;
        CREATE TABLE tags (
            model INTEGER NOT NULL,
            number INTEGER NOT NULL,
            key TEXT NOT NULL,
            value TEXT NOT NULL,
            PRIMARY KEY (model, number, key),
            FOREIGN KEY (model, number) REFERENCES versions ON DELETE CASCADE
        ) WITHOUT ROWID;
        CREATE INDEX tags_by_value ON tags (key, value, model, number);
        CREATE INDEX tags_of_model ON tags (model, key, value, number);
        CREATE TABLE metrics (
            model INTEGER NOT NULL,
            number INTEGER NOT NULL,
            key TEXT NOT NULL,
            value REAL NOT NULL,
            PRIMARY KEY (model, number, key),
            FOREIGN KEY (model, number) REFERENCES versions ON DELETE CASCADE
        ) WITHOUT ROWID;
        CREATE INDEX metrics_by_value ON metrics (key, value, model, number);
        CREATE INDEX metrics_of_model ON metrics (model, key, value, number);
        CREATE TABLE aliases (
            model INTEGER NOT NULL,
            name TEXT NOT NULL,
            number INTEGER NOT NULL,
            revision INTEGER NOT NULL,
            set_at INTEGER NOT NULL,
            PRIMARY KEY (model, name),
            FOREIGN KEY (model, number) REFERENCES versions
        ) WITHOUT ROWID;
        CREATE INDEX aliases_by_version ON aliases (model, number);
        CREATE INDEX versions_by_hash ON versions (model, data_hash);
        CREATE TABLE requests (
            request_id TEXT PRIMARY KEY,
            digest TEXT NOT NULL,
            model_id TEXT NOT NULL,
            number INTEGER NOT NULL,
            finished INTEGER NOT NULL,
            pending TEXT NOT NULL
        ) WITHOUT ROWID;
        CREATE INDEX requests_by_version ON requests (model_id, number);
        """
    ),
    Migration(
        """
        CREATE TABLE grants (
            name TEXT PRIMARY KEY,
            kind TEXT NOT NULL,
            identity TEXT NOT NULL,
            scopes TEXT NOT NULL,
            created INTEGER NOT NULL,
            expires INTEGER,
            UNIQUE (kind, identity)
        ) WITHOUT ROWID;
        """
    ),
    Migration(
        """
        ALTER TABLE versions ADD COLUMN signature TEXT NOT NULL DEFAULT '';
        CREATE TABLE signers (
            model INTEGER NOT NULL REFERENCES models ON DELETE CASCADE,
            public_key BLOB NOT NULL,
            PRIMARY KEY (model, public_key)
        ) WITHOUT ROWID;
        """
    ),
)
"""The schema, step by step. A step that was released never changes."""


# Changes. Each is an operation of `Database.change`, with the connection first.


def put_versions(connection: Connection, infos: Iterable[VersionInfo]) -> list[int]:
    """Add archived versions, or replace their records; return the numbers of those that are another version now.

    A number whose hash or time differs from its record was given to another version, by a program that deleted the
    model and created it again: what people said of the old version goes, and so do its aliases.
    """
    others = []
    for info in infos:
        model = _model_of(connection, info.model_id)
        key, created = (model, info.number), info.created_ns - TIME_OFFSET
        sql = "SELECT created, data_hash FROM versions WHERE model = ? AND number = ?"
        found = connection.execute(sql, key).fetchone()
        is_other = found not in (None, (created, info.data_hash))
        if is_other:
            remove_versions(connection, info.model_id, [info.number])
            others.append(info.number)
        revision = _next_revision(connection, model) if is_other else FIRST_REVISION
        connection.execute(
            "INSERT INTO versions (model, number, created, data_hash, data_size, revision, signature)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT DO UPDATE SET data_size = excluded.data_size, signature = excluded.signature",
            (*key, created, info.data_hash, info.data_size_bytes, revision, signature_text(info)),
        )
        if found is None or is_other:
            connection.execute("UPDATE models SET folder_complete = 0 WHERE model = ? AND folder_complete", (model,))
        _put_entries(connection, "user_data", key, info.user_data)
    return others


def remove_versions(connection: Connection, model_id: str, numbers: Iterable[int]) -> None:
    """Remove versions, with the aliases that point to them."""
    model = find_model(connection, model_id)
    keys = [(model, number) for number in numbers]
    connection.executemany("DELETE FROM aliases WHERE model = ? AND number = ?", keys)
    connection.executemany("DELETE FROM versions WHERE model = ? AND number = ?", keys)


def put_folder(connection: Connection, model_id: str, stamp: FolderStamp, numbers: Collection[int] | None) -> None:
    """Record in what state the folder of a model was when its versions were compared with their records.

    Args:
        connection: The database.
        model_id: The model.
        stamp: The state.
        numbers: The versions in the folder, if it has nothing else; None if it has.
    """
    is_complete = numbers is not None and numbers_of(connection, model_id) == {*numbers}
    connection.execute(
        "UPDATE models SET folder_inode = ?, folder_changed = ?, folder_complete = ? WHERE model_id = ?",
        (str(stamp.inode), stamp.changed_ns, is_complete, model_id),
    )


def remove_model(connection: Connection, model_id: str) -> None:
    """Remove a model and all that belongs to it; does nothing when it has no rows."""
    model = find_model(connection, model_id)
    connection.execute("DELETE FROM aliases WHERE model = ?", (model,))
    connection.execute("DELETE FROM models WHERE model = ?", (model,))


def set_aliases(connection: Connection, model_id: str, changes: Sequence[AliasChange], now_ns: int) -> list[Alias]:
    """Make changes of the aliases of a model, all or none; return its aliases afterwards, ordered by name.

    Raises:
        ConflictError: An alias has another revision than was expected.
        NotFoundError: An alias to be removed does not exist.
    """
    model = _model_of(connection, model_id)
    aliases = {alias.name: alias for alias in aliases_of(connection, model_id)}
    for change in changes:
        check_alias_revision(model_id, aliases.pop(change.name, None), change)
        connection.execute("DELETE FROM aliases WHERE model = ? AND name = ?", (model, change.name))
        if change.version_number is not None:
            alias = Alias(change.name, change.version_number, _next_revision(connection, model), now_ns)
            put_aliases(connection, model_id, [alias])
            aliases[alias.name] = alias
    return [aliases[name] for name in sorted(aliases)]


def put_aliases(connection: Connection, model_id: str, aliases: Iterable[Alias]) -> None:
    """Add aliases with the revisions that they have; the model has a row, and none of them."""
    model = find_model(connection, model_id)
    rows = [(model, each.name, each.version_number, each.revision, each.set_ns - TIME_OFFSET) for each in aliases]
    connection.executemany("INSERT INTO aliases VALUES (?, ?, ?, ?, ?)", rows)


def put_model_row(connection: Connection, model_id: str) -> None:
    """Give a model a row, unless it has one."""
    _model_of(connection, model_id)


def begin_lives(connection: Connection, model_ids: Sequence[str]) -> dict[str, int]:
    """Give models rows, unless they have some; return the number that each life of a model has by chance."""
    rows = [(model_id, new_life()) for model_id in model_ids]
    connection.executemany("INSERT INTO models (model_id, life) VALUES (?, ?) ON CONFLICT DO NOTHING", rows)
    found = {}
    for model_id in model_ids:
        [found[model_id]] = connection.execute("SELECT life FROM models WHERE model_id = ?", (model_id,)).fetchone()
    return found


def new_life() -> int:
    """Return a number for a life of a model that no other one is likely to have."""
    return secrets.randbits(53) | 1  # not 0, and any reader of JSON can have it


def raise_revision(connection: Connection, model_id: str, revision: int) -> None:
    """Let no change of a model have this revision, or one below it, again."""
    key = (revision, find_model(connection, model_id))
    connection.execute("UPDATE models SET last_revision = max(last_revision, ?) WHERE model = ?", key)


def change_annotations(connection: Connection, info: VersionInfo, change: AnnotationChange) -> Annotations:
    """Change tags and metrics of an archived version; return what it has afterwards.

    Raises:
        ConflictError: It has another revision than was expected.
    """
    before = annotations_of(connection, info)
    check_revision(info, before, change)
    after = change.apply_to(info, before, next_revision(connection, info.model_id))
    put_annotations(connection, info.model_id, info.number, after)
    return after


def put_annotations(connection: Connection, model_id: str, number: int, annotations: Annotations) -> None:
    """Replace the tags, the metrics and the revision of an archived version."""
    key = (find_model(connection, model_id), number)
    connection.execute("UPDATE versions SET revision = ? WHERE model = ? AND number = ?", (annotations.revision, *key))
    _put_entries(connection, "tags", key, annotations.tags)
    _put_entries(connection, "metrics", key, annotations.metrics)


def _put_entries(
    connection: Connection, table: str, key: tuple[int | None, int], entries: Mapping[str, str | float]
) -> None:
    connection.execute(f"DELETE FROM {table} WHERE model = ? AND number = ?", key)  # noqa: S608 - a name of ours
    rows = [(*key, name, value) for name, value in entries.items()]
    connection.executemany(f"INSERT INTO {table} VALUES (?, ?, ?, ?)", rows)  # noqa: S608 - a name of ours


def next_revision(connection: Connection, model_id: str) -> int:
    """Return a revision that no change of the model had before."""
    return _next_revision(connection, _model_of(connection, model_id))


def _next_revision(connection: Connection, model: int | None) -> int:
    [revision] = connection.execute(
        "UPDATE models SET last_revision = last_revision + 1 WHERE model = ? RETURNING last_revision", (model,)
    ).fetchone()
    return int(revision)


# Questions. Each is an operation of `Database.read`.


def info_of(connection: Connection, model_id: str, number: int) -> VersionInfo | None:
    """Return the record of an archived version; None when there is none."""
    key = (find_model(connection, model_id), number)
    row = connection.execute(
        "SELECT created, data_hash, data_size, signature FROM versions WHERE model = ? AND number = ?", key
    ).fetchone()
    if row is None:
        return None
    created, data_hash, data_size, signature = row
    user_data = entries(connection, "user_data", key)
    return VersionInfo(
        model_id, number, created + TIME_OFFSET, True, data_hash, data_size, user_data, signature_in(signature)
    )


def signature_text(info: VersionInfo) -> str:
    """Return the signature of a version as its column has it."""
    return "" if info.signature is None else str(info.signature)


def signature_in(text: str) -> Signature | None:
    """Return the signature in the column of a version."""
    return parse_signature(text) if text else None


def lives(connection: Connection) -> dict[str, int]:
    """Return the number of the life of each model."""
    return dict(connection.execute("SELECT model_id, life FROM models").fetchall())


def numbers(connection: Connection) -> dict[str, set[int]]:
    """Return the numbers of all versions by model."""
    found: dict[str, set[int]] = {}
    for model_id, number in connection.execute("SELECT model_id, number FROM models LEFT JOIN versions USING (model)"):
        found.setdefault(model_id, set()).add(number)
    return {model_id: numbers - {None} for model_id, numbers in found.items()}


def folders(connection: Connection) -> dict[str, KnownFolder]:
    """Return what is known of the folders of models since they were compared with their records."""
    found = {}
    rows = connection.execute("SELECT model, model_id, folder_inode, folder_changed, folder_complete FROM models")
    for model, model_id, inode, changed_ns, is_complete in rows.fetchall():
        sizes = connection.execute("SELECT number, data_size FROM versions WHERE model = ? ORDER BY number", (model,))
        stamp = FolderStamp(int(inode), changed_ns) if inode else None
        found[model_id] = KnownFolder(dict(sizes), stamp, is_complete=bool(is_complete))
    return found


def folder_of(connection: Connection, model_id: str) -> KnownFolder:
    """Return what is known of the folder of one model."""
    sql = "SELECT model, folder_inode, folder_changed FROM models WHERE model_id = ?"
    row = connection.execute(sql, (model_id,)).fetchone()
    if row is None:
        return KnownFolder()
    model, inode, changed_ns = row
    sizes = connection.execute("SELECT number, data_size FROM versions WHERE model = ?", (model,))
    return KnownFolder(dict(sizes), FolderStamp(int(inode), changed_ns) if inode else None)


def numbers_of(connection: Connection, model_id: str) -> set[int]:
    """Return the numbers of the versions of a model."""
    key = (find_model(connection, model_id),)
    return {number for (number,) in connection.execute("SELECT number FROM versions WHERE model = ?", key)}


def find_copies(connection: Connection, model_id: str, data_hash: str) -> list[int]:
    """Return the numbers of the newest versions of a model that have a hash, newest first."""
    rows = connection.execute(
        "SELECT number FROM versions WHERE model = ? AND data_hash = ? ORDER BY number DESC LIMIT 8",
        (find_model(connection, model_id), data_hash),
    )
    return [number for (number,) in rows]


def all_aliases(connection: Connection) -> dict[str, dict[str, Alias]]:
    """Return all aliases by model and name, in the order of their names."""
    found: dict[str, dict[str, Alias]] = {}
    for model_id, *row in connection.execute(
        "SELECT model_id, name, number, a.revision, set_at FROM aliases a JOIN models USING (model)"
        " ORDER BY model, name"
    ):
        alias = _alias(row)
        found.setdefault(model_id, {})[alias.name] = alias
    return found


def aliases_of(connection: Connection, model_id: str) -> list[Alias]:
    """Return the aliases of a model, ordered by name."""
    rows = connection.execute(
        "SELECT name, number, revision, set_at FROM aliases WHERE model = ? ORDER BY name",
        (find_model(connection, model_id),),
    )
    return [_alias(row) for row in rows]


def annotations_of(connection: Connection, info: VersionInfo) -> Annotations:
    """Return the annotations of an archived version; none when its number has no record, or that of another one."""
    key = (find_model(connection, info.model_id), info.number)
    row = connection.execute(
        "SELECT revision FROM versions WHERE model = ? AND number = ? AND created = ? AND data_hash = ?",
        (*key, info.created_ns - TIME_OFFSET, info.data_hash),
    ).fetchone()
    if row is None:
        return Annotations()
    return Annotations(entries(connection, "tags", key), entries(connection, "metrics", key), row[0])


def entries(connection: Connection, table: str, key: tuple[int | None, int]) -> dict[str, Any]:
    """Return the entries of a version in one of the tables `user_data`, `tags` and `metrics`."""
    sql = f"SELECT key, value FROM {table} WHERE model = ? AND number = ?"  # noqa: S608 - a name of ours
    return dict(connection.execute(sql, key).fetchall())


def _alias(row: Sequence[Any]) -> Alias:
    name, number, revision, set_at = row
    return Alias(name, number, revision, set_at + TIME_OFFSET)


def find_model(connection: Connection, model_id: str) -> int | None:
    """Return the key of a model; None when it has no row."""
    row = connection.execute("SELECT model FROM models WHERE model_id = ?", (model_id,)).fetchone()
    return int(row[0]) if row else None


def _model_of(connection: Connection, model_id: str) -> int:
    """Return the key of a model, which gets a row when it has none."""
    found = find_model(connection, model_id)
    if found is not None:
        return found
    cursor = connection.execute("INSERT INTO models (model_id, life) VALUES (?, ?)", (model_id, new_life()))
    return int(cursor.lastrowid or 0)
