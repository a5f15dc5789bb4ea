"""The tables of the shared catalog, and how a database gets them.

All are in a schema of their own. Those that are UNLOGGED are for what ends with the servers anyway: a change of them
waits for no disk, and they are empty after a crash of PostgreSQL, and after a standby has taken over. Whoever holds
transient versions announces them again then.

A model's key is its life, a random number, so that another model of the same name never has it, not even one in a
database that was restored from a backup. Versions of both tiers have the same columns, and the view `visible` has all
that can be listed. Times are nanoseconds since the Unix epoch less 2^63, since their range is that of an unsigned
integer of 64 bits. Texts of people are escaped (see `rows`), since PostgreSQL keeps no U+0000; they compare by code
point.

`models.stamp`, `heads.stamp` and `ended.stamp` are the transactions that changed them last, so that a server whose
listening connection was lost finds out what it missed.
"""

import asyncpg
import structlog

from cogment_model_registry.errors import StartError
from cogment_model_registry.storage.postgres.translation import Connection

_log = structlog.stdlib.get_logger(__name__)

SCHEMA = "cogment_model_registry"
"""The schema with all tables; notifications have a channel of the same name."""

_MIGRATION_LOCK = 0x436F674D
"""The advisory lock that a server has while it brings the tables up to date."""

_VERSION = """
    life bigint NOT NULL,
    number bigint NOT NULL,
    created bigint NOT NULL,
    data_hash text COLLATE "C" NOT NULL,
    data_size bigint NOT NULL,
    signature text NOT NULL DEFAULT '',
    user_data jsonb NOT NULL DEFAULT '{}',
    tags jsonb NOT NULL DEFAULT '{}',
    metrics jsonb NOT NULL DEFAULT '{}',
    revision bigint NOT NULL DEFAULT 1,
    damage text NOT NULL DEFAULT ''"""

_VISIBLE = "life, number, created, data_hash, data_size, signature, user_data, tags, metrics, revision"

MIGRATIONS = (
    f"""
    CREATE TABLE models (
        life bigint PRIMARY KEY,
        model_id text COLLATE "C" NOT NULL UNIQUE,
        user_data jsonb NOT NULL DEFAULT '{{}}',
        tags jsonb NOT NULL DEFAULT '{{}}',
        rules jsonb NOT NULL DEFAULT '[]',
        share bigint[] NOT NULL DEFAULT '{{0,0,0,0}}',
        signers bytea[] NOT NULL DEFAULT '{{}}',
        revision bigint NOT NULL DEFAULT 1,
        last_revision bigint NOT NULL DEFAULT 1,
        changes bigint NOT NULL DEFAULT 0,
        mark bigint NOT NULL DEFAULT 0,
        archived_versions bigint NOT NULL DEFAULT 0,
        archived_bytes numeric NOT NULL DEFAULT 0,
        stamp xid8 NOT NULL DEFAULT pg_current_xact_id()
    );
    CREATE TABLE versions ({_VERSION},
        PRIMARY KEY (life, number),
        FOREIGN KEY (life) REFERENCES models ON DELETE CASCADE
    );
    CREATE INDEX versions_by_hash ON versions (data_hash);
    CREATE INDEX versions_by_tags ON versions USING gin (tags jsonb_path_ops);
    CREATE TABLE metrics (
        life bigint NOT NULL,
        name text COLLATE "C" NOT NULL,
        value double precision NOT NULL,
        number bigint NOT NULL,
        PRIMARY KEY (life, number, name),
        FOREIGN KEY (life, number) REFERENCES versions ON DELETE CASCADE
    );
    CREATE INDEX metrics_of_model ON metrics (life, name, value, number);
    CREATE INDEX metrics_by_value ON metrics (name, value, life, number);
    CREATE TABLE aliases (
        life bigint NOT NULL,
        name text COLLATE "C" NOT NULL,
        number bigint NOT NULL,
        revision bigint NOT NULL,
        set_at bigint NOT NULL,
        PRIMARY KEY (life, name),
        FOREIGN KEY (life, number) REFERENCES versions
    );
    CREATE INDEX aliases_by_version ON aliases (life, number);
    CREATE TABLE requests (
        request_id text COLLATE "C" PRIMARY KEY,
        digest text NOT NULL,
        model_id text COLLATE "C" NOT NULL,
        life bigint NOT NULL,
        number bigint NOT NULL,
        finished bigint NOT NULL
    );
    CREATE INDEX requests_by_time ON requests (finished);
    CREATE TABLE grants (
        name text COLLATE "C" PRIMARY KEY,
        kind text NOT NULL,
        identity text COLLATE "C" NOT NULL,
        scopes text NOT NULL,
        created bigint NOT NULL,
        expires bigint,
        UNIQUE (kind, identity)
    );
    CREATE TABLE servers (
        server integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        endpoint text NOT NULL,
        beat bigint NOT NULL DEFAULT 0
    );
    CREATE TABLE pending (
        pending bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        server integer NOT NULL,
        kind text NOT NULL,
        model_id text COLLATE "C" NOT NULL,
        life bigint NOT NULL,
        number bigint NOT NULL
    );
    CREATE INDEX pending_by_server ON pending (server);
    CREATE TABLE deleted (
        life bigint NOT NULL,
        number bigint NOT NULL,
        deleted timestamptz NOT NULL DEFAULT clock_timestamp(),
        PRIMARY KEY (life, number)
    );
    CREATE INDEX deleted_by_time ON deleted (deleted);
    CREATE TABLE ended (
        life bigint PRIMARY KEY,
        model_id text COLLATE "C" NOT NULL,
        ended timestamptz NOT NULL DEFAULT clock_timestamp(),
        stamp xid8 NOT NULL DEFAULT pg_current_xact_id()
    );
    CREATE INDEX ended_by_time ON ended (ended);
    CREATE UNLOGGED TABLE transient ({_VERSION},
        holders integer[] NOT NULL,
        PRIMARY KEY (life, number)
    );
    CREATE INDEX transient_by_hash ON transient (data_hash);
    CREATE UNLOGGED TABLE heads (
        life bigint PRIMARY KEY,
        last_number bigint NOT NULL,
        stamp xid8 NOT NULL DEFAULT pg_current_xact_id()
    ) WITH (fillfactor = 50);
    CREATE UNLOGGED TABLE appearances (
        life bigint NOT NULL,
        number bigint NOT NULL,
        appeared bigint NOT NULL,
        PRIMARY KEY (life, number)
    );
    CREATE UNLOGGED TABLE holds (
        life bigint NOT NULL,
        server integer NOT NULL,
        number bigint NOT NULL,
        reason text NOT NULL,
        PRIMARY KEY (life, server, number)
    );
    CREATE INDEX holds_by_server ON holds (server);
    CREATE UNLOGGED TABLE transient_requests (
        request_id text COLLATE "C" PRIMARY KEY,
        digest text NOT NULL,
        model_id text COLLATE "C" NOT NULL,
        life bigint NOT NULL,
        number bigint NOT NULL,
        finished bigint NOT NULL
    );
    CREATE INDEX transient_requests_by_time ON transient_requests (finished);
    CREATE UNLOGGED TABLE generation (
        singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
        generation bigint NOT NULL
    );
    CREATE VIEW visible AS
        SELECT {_VISIBLE}, true AS archived FROM versions WHERE damage = ''
        UNION ALL
        SELECT {_VISIBLE}, false AS archived FROM transient WHERE damage = '';
    """,
    """
    CREATE TABLE archive (
        singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
        id text NOT NULL
    );
    """,
)
"""The schema, step by step. A step that was released never changes."""

_ADDITIONS = """
CREATE TABLE IF NOT EXISTS identity (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    id uuid NOT NULL DEFAULT gen_random_uuid()
);
INSERT INTO identity DEFAULT VALUES ON CONFLICT DO NOTHING;
"""
"""What earlier releases do without. It is no step, so they start with it during an upgrade."""


async def migrate(connection: Connection) -> None:
    """Bring the tables of a database up to date; several servers may do so at once.

    Raises:
        StartError: They were made by a newer release, the database does not suit, or the role may not create them.
    """
    try:
        await _migrate(connection)
    except (asyncpg.InsufficientPrivilegeError, asyncpg.InvalidSchemaNameError) as error:
        message = f"the database role may not create the tables of the catalog: {error}; let the owner of the database "
        raise StartError(message + f"run CREATE SCHEMA {SCHEMA} AUTHORIZATION <role>") from None


async def _migrate(connection: Connection) -> None:
    encoding = await connection.fetchval("SHOW server_encoding")
    if encoding != "UTF8":
        raise StartError(f"the database of the catalog has the encoding {encoding}; it must be UTF8")
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", _MIGRATION_LOCK)
        if not await connection.fetchval("SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)", SCHEMA):
            await connection.execute(f"CREATE SCHEMA {SCHEMA}")
        await connection.execute("CREATE TABLE IF NOT EXISTS migrations (schema integer PRIMARY KEY)")
        schema = await connection.fetchval("SELECT coalesce(max(schema), 0) FROM migrations")
        if schema > len(MIGRATIONS):
            raise StartError(
                f"the catalog in the database was written by a newer release (schema {schema}; this one knows "
                f"{len(MIGRATIONS)}): start that release"
            )
        for number, statements in enumerate(MIGRATIONS[schema:], schema + 1):
            await connection.execute(statements)
            await connection.execute("INSERT INTO migrations VALUES ($1)", number)
            _log.info("catalog migrated", schema=number)
        await connection.execute(_ADDITIONS)
