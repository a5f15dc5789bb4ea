"""Archives with aliases, tags and metrics."""

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from cogment_model_registry import aio
from cogment_model_registry.records.lifecycle import AliasChange, AnnotationChange
from cogment_model_registry.records.retention import RetentionRule, TransientShare
from cogment_model_registry.storage.filesystem.layout import CATALOG_NAME
from cogment_model_registry.testing.server import serving
from tests.client import connected
from tests.server.test_model_lifecycle import Lifecycle

Command = Callable[..., tuple[int, str, str]]
"""Runs `cogment archive`, and returns its exit code, its output and its errors."""

Verify = Callable[..., tuple[int, dict[str, Any]]]
"""Runs `cogment archive verify --json`, and returns its exit code and its document."""

ALL = {
    "aliases": {"a": (3, 4), "b": (1, 5)},
    "tags": {2: {"stage": "candidate"}},
    "metrics": {3: {"return": 0.5}},
    "model": ({"team": "walkers"}, [(0, 1), (2, 0)], 7),
    "versions": [1, 2, 3],
}
"""The result of `described` for such an archive."""

NOTHING = {**ALL, "aliases": {}, "tags": {}, "metrics": {}, "model": ({}, [], 0)}
"""The result of `described` if the database is lost."""


def annotated_archive(place: Path) -> Path:
    """Let a server create an archive with the model `m`: versions 1 to 3, a tag, a metric, and the aliases `a` and `b`.

    `a` points to version 3, whose metric is 0.5; `b` to version 1; the tag is that of version 2. The model has a tag,
    rules of retention that delete nothing, and a share of the transient store.
    """
    archive = place / "archive"

    async def work() -> None:
        async with serving(archive) as server, connected(server.port) as client:
            await client.create_model("m", key="of the model")
            lifecycle = Lifecycle(client)
            for number in (1, 2, 3):
                await client.store("m", b"data %d" % number, user_data={"step": str(number)})
            await lifecycle.update(2, AnnotationChange(set_tags={"stage": "candidate"}))
            await lifecycle.update(3, AnnotationChange(set_metrics={"return": 0.5}))
            await lifecycle.set_aliases(AliasChange("a", 3), AliasChange("b", 1))
        async with serving(archive) as server, aio.ModelRegistry(f"grpc://127.0.0.1:{server.port}") as registry:
            await registry.update_model("m", tags={"team": "walkers"})
            await registry.set_retention("m", [RetentionRule("archived", keep_every=1), RetentionRule(keep_last=2)])
            await registry.set_share("m", TransientShare(max_items=7))

    asyncio.run(work())
    return archive


def described(archive: Path, model_id: str = "m") -> dict[str, Any]:
    """Return the aliases and annotations that a server shows of an archive."""

    async def ask() -> dict[str, Any]:
        async with serving(archive) as server, connected(server.port) as client:
            lifecycle = Lifecycle(client)
            versions = (await lifecycle.find(model_id=model_id)).versions
            [model] = (await lifecycle.models(model_id)).models
            return {
                "aliases": {alias.alias: (alias.version_number, alias.revision) for alias in model.aliases},
                "tags": {each.version_info.version_number: dict(each.tags) for each in versions if each.tags},
                "metrics": {each.version_info.version_number: dict(each.metrics) for each in versions if each.metrics},
                "model": (
                    dict(model.tags),
                    [(rule.keep_last, rule.keep_every) for rule in model.retention],
                    model.transient_share.max_items,
                ),
                "versions": [each.version_info.version_number for each in versions],
            }

    return asyncio.run(ask())


def change_database(archive: Path, *statements: str) -> None:
    """Change the database of an archive without its server."""
    with closing(sqlite3.connect(archive / CATALOG_NAME, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


def remove_version(archive: Path, number: int) -> None:
    """Remove the files of a version of `m`."""
    for ending in ("yaml", "data"):
        (archive / "m" / f"m-v{number:06d}.{ending}").unlink()


Damage = Callable[[Path], None]
