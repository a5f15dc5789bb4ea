"""What a model and a version take in PostgreSQL: rows of the real tables, with their indexes, after a VACUUM."""

import asyncio

import asyncpg

from benchmarks.bench import Bench
from benchmarks.scale_model.several_servers import DATABASE_SETTINGS
from cogment_model_registry.storage.postgres.schema import SCHEMA, migrate
from tests.postgres import new_database, postgres_server

_COLUMNS = "life, number, created, data_hash, data_size, user_data, tags, metrics"
_VALUES = """
    SELECT life, number, 1700000000000000000 + number - 9223372036854775808,
        translate(encode(sha256(format('%s-%s', life, number)::bytea), 'base64'), '+/', '-_'), 10485760,
        jsonb_build_object('step', number::text), '{"stage": "trained"}'::jsonb, jsonb_build_object('reward', number)
"""
"""Versions with an entry of user_data, a tag and a metric."""


def table_sizes(bench: Bench) -> dict[str, float]:
    """Return the bytes of a row of each kind, measured with some hundred thousand rows."""
    with postgres_server(DATABASE_SETTINGS) as server, new_database(server) as url:
        return asyncio.run(_measured(url, bench.choose(300, 20), bench.choose(1000, 100)))


async def _measured(url: str, models: int, versions: int) -> dict[str, float]:
    connection = await asyncpg.connect(url, server_settings={"search_path": SCHEMA})
    try:
        await migrate(connection)
        before = await _bytes(connection)
        await connection.execute(
            "INSERT INTO models (life, model_id, user_data, mark) SELECT hashint8extended(each, 0), "
            """'project/policy-' || each, '{"owner": "somebody"}', 1000 FROM generate_series(1, $1::bigint) each""",
            models * 100,
        )
        await connection.execute("INSERT INTO heads (life, last_number) SELECT life, 1000 FROM models")
        model_bytes = (await _bytes(connection) - before) / (models * 100)
        before = await _bytes(connection)
        source = f"{_VALUES} FROM (SELECT life FROM models LIMIT $1) m, generate_series(1, $2::bigint) number"  # noqa: S608
        await connection.execute(f"INSERT INTO versions ({_COLUMNS}) {source}", models, versions)
        await connection.execute(
            "INSERT INTO metrics (life, name, value, number) SELECT life, 'reward', number, number FROM versions"
        )
        version_bytes = (await _bytes(connection) - before) / (models * versions)
        before = await _bytes(connection)
        held = source.replace(" FROM (SELECT life", ", '{1}'::integer[] FROM (SELECT life", 1)
        await connection.execute(f"INSERT INTO transient ({_COLUMNS}, holders) {held}", models, versions // 10)
        transient_bytes = (await _bytes(connection) - before) / (models * (versions // 10))
        return {"model_row": model_bytes, "version_row": version_bytes, "transient_row": transient_bytes}
    finally:
        await connection.close()


async def _bytes(connection: "asyncpg.Connection[asyncpg.Record]") -> float:
    """Return what all tables of the catalog take, with their indexes."""
    await connection.execute("VACUUM (ANALYZE)")
    total = await connection.fetchval(
        "SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE n.nspname = $1 AND c.relkind = 'r'",
        SCHEMA,
    )
    return float(total)
