"""An acknowledged archived version survives a killed process also when the archive is in an object store.

The same writers as in `kills`. Afterwards the objects are compared with what is known: each record has its bytes, and
what a kill left is cleared away by the server that started next.
"""

import asyncio
from pathlib import Path
from random import Random

import obstore
from obstore.store import S3Store

from cogment_model_registry.storage.bucket import layout
from tests.object_store import BUCKET, find_program, object_server
from tests.torture.kills import Model, Place, World, kill_servers
from tests.torture.proof import Figures, Proof
from tests.waiting import eventually

PREFIX = "models"


def all_names(store: S3Store, prefix: str) -> list[str]:
    """Return the names of the objects below a prefix."""
    return sorted(each["path"] for chunk in obstore.list(store, prefix) for each in chunk)


def read_model(store: S3Store, model: Model) -> tuple[str, dict[int, layout.Record]]:
    """Return the life of a model, and its records by number."""
    name = layout.model_name(model.model_id)
    life = layout.parse_model(bytes(obstore.get(store, name).bytes()), name).life
    records: dict[int, layout.Record] = {}
    for record_name in all_names(store, f"{layout.VERSIONS}/{life}"):
        parsed = layout.parse_version_name(record_name)
        assert parsed is not None, f"foreign: {record_name}"
        record = layout.parse_record(bytes(obstore.get(store, record_name).bytes()), model.model_id, parsed[1])
        if record is not None:
            records[parsed[1]] = record
    return life, records


def check_objects(store: S3Store, world: World) -> str:
    """Return what the archive has that it should not, or not yet; empty when nothing."""
    models = {layout.model_name(model_id) for model_id in world.models}
    assert {*all_names(store, layout.MODELS)} == models, "there are other models"
    data: set[str] = set()
    lives: set[str] = set()
    for model in world.models.values():
        life, records = read_model(store, model)
        lives.add(life)
        assert records.keys() == model.known.keys(), f"{model.model_id!r} has {records.keys()}"
        for record in records.values():
            data.update(layout.data_names(life, record))
    found = {*all_names(store, layout.DATA)}
    assert data <= found, f"bytes are missing: {data - found}"
    others = {name for prefix in ("versions", "hints", "marks") for name in all_names(store, prefix)}
    dead = {name for name in others if name.split("/")[1] not in lives}
    return f"left over: {(found - data) | dead}" if found - data or dead else ""


def attempt(place: Path, rounds: int, random: Random, figures: Figures) -> None:
    """Kill a server so many times, on one archive in an object store."""
    with object_server(place / "store") as server:
        store = server.store(PREFIX)

        async def check_archive(world: World) -> None:
            # A start clears away in the background what the last one left.
            async def is_clear() -> bool:
                return not await asyncio.to_thread(check_objects, store, world)

            await eventually(is_clear, lambda: check_objects(store, world))

        flags = (f"--archive_url=s3://{BUCKET}/{PREFIX}",)
        kept = Place(place / "catalog", check_archive, flags, server.environment)
        asyncio.run(kill_servers(kept, rounds, random, figures))


PROOF = Proof(
    name="bucket_kills",
    promise="An archive in an object store loses nothing acknowledged when the server is killed, and has nothing torn",
    attempt=attempt,
    unit="kills",
    short=2,
    long=200,
    batch=10,
    missing=lambda: "" if find_program() else "SeaweedFS is not installed",
    requirements="SeaweedFS",
)
