"""What people decide about models, in tables: tags, rules of retention, shares of the transient store, and signers."""

from collections.abc import Iterable
from sqlite3 import Connection
from typing import Any

from cogment_model_registry.records.retention import (
    ModelAnnotations,
    ModelChange,
    RetentionRule,
    TransientShare,
    check_model_revision,
    ordered_signers,
)
from cogment_model_registry.records.signatures import public_key
from cogment_model_registry.storage.catalog.tables import next_revision

_SHARE = "max_items, max_bytes, reserved_items, reserved_bytes"
_RULE = "tier, filter, keep_last, keep_best, metric, lower_is_better, keep_seconds, keep_every"


def change_model(connection: Connection, model_id: str, change: ModelChange) -> ModelAnnotations:
    """Change what people decide about a model; return it afterwards.

    Raises:
        ConflictError: It has another revision than was expected.
    """
    before = annotations_of_model(connection, model_id)
    check_model_revision(model_id, before, change)
    after = change.apply_to(model_id, before, next_revision(connection, model_id))
    put_model(connection, model_id, after)
    return after


def put_model(connection: Connection, model_id: str, annotations: ModelAnnotations) -> None:
    """Replace what people decide about a model that has a row."""
    [model] = connection.execute("SELECT model FROM models WHERE model_id = ?", (model_id,)).fetchone()
    share = annotations.share
    connection.execute(
        f"UPDATE models SET (revision, {_SHARE}) = (?, ?, ?, ?, ?) WHERE model = ?",  # noqa: S608 - names of ours
        (
            annotations.revision,
            share.max_items,
            share.max_bytes,
            share.reserved_items,
            share.reserved_bytes,
            model,
        ),
    )
    connection.execute("DELETE FROM model_tags WHERE model = ?", (model,))
    tags = [(model, *tag) for tag in annotations.tags.items()]
    connection.executemany("INSERT INTO model_tags VALUES (?, ?, ?)", tags)
    connection.execute("DELETE FROM rules WHERE model = ?", (model,))
    rules = [(model, position, *_rule_row(rule)) for position, rule in enumerate(annotations.retention, 1)]
    connection.executemany("INSERT INTO rules VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rules)
    connection.execute("DELETE FROM signers WHERE model = ?", (model,))
    connection.executemany("INSERT INTO signers VALUES (?, ?)", [(model, key.der) for key in annotations.signers])


def annotations_of_model(connection: Connection, model_id: str) -> ModelAnnotations:
    """Return what people decided about a model."""
    return _read(connection, "WHERE model_id = ?", (model_id,)).get(model_id, ModelAnnotations())


def all_model_annotations(connection: Connection) -> dict[str, ModelAnnotations]:
    """Return what people decided about models, as far as they decided anything."""
    return _read(connection, "WHERE revision > 1", ())


def _read(connection: Connection, condition: str, parameters: tuple[str, ...]) -> dict[str, ModelAnnotations]:
    models = connection.execute(
        f"SELECT model, model_id, revision, {_SHARE} FROM models {condition}",  # noqa: S608 - names of ours
        parameters,
    ).fetchall()
    found = {}
    for model, model_id, revision, *share in models:
        tags = connection.execute("SELECT key, value FROM model_tags WHERE model = ?", (model,)).fetchall()
        rules = connection.execute(
            f"SELECT {_RULE} FROM rules WHERE model = ? ORDER BY position",  # noqa: S608 - names of ours
            (model,),
        )
        keys = connection.execute("SELECT public_key FROM signers WHERE model = ?", (model,)).fetchall()
        signers = ordered_signers(public_key(der) for (der,) in keys)
        found[model_id] = ModelAnnotations(
            dict(tags), tuple(map(_rule, rules)), TransientShare(*share), revision, signers
        )
    return found


def _rule_row(rule: RetentionRule) -> Iterable[Any]:
    return (
        rule.tier,
        rule.filter,
        rule.keep_last,
        rule.keep_best,
        rule.metric,
        rule.lower_is_better,
        rule.keep_seconds,
        rule.keep_every,
    )


def _rule(row: tuple[Any, ...]) -> RetentionRule:
    tier, accepted, keep_last, keep_best, metric, lower_is_better, keep_seconds, keep_every = row
    return RetentionRule(tier, accepted, keep_last, keep_best, metric, bool(lower_is_better), keep_seconds, keep_every)
