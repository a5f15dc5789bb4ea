"""Records as the objects of JSON documents, and back: for programs, in the output of commands and over HTTP."""

from collections.abc import Mapping
from dataclasses import fields
from datetime import datetime, timezone

from cogment_model_registry.errors import InvalidError
from cogment_model_registry.records.consumers import Consumer
from cogment_model_registry.records.history import HistoryEntry
from cogment_model_registry.records.lifecycle import Alias, ModelSummary, RetentionReport, Version
from cogment_model_registry.records.retention import RetentionRule
from cogment_model_registry.records.versions import ModelInfo, VersionInfo

_NS_PER_SECOND = 10**9

RULE_DEFAULTS = {field.name: field.default for field in fields(RetentionRule)}
"""The fields of a rule of retention, with what they are if they are not given."""


def time_text(time_ns: int) -> str:
    """Return a time in UTC as ISO 8601 has it, to the microsecond."""
    seconds, ns = divmod(time_ns, _NS_PER_SECOND)
    moment = datetime.fromtimestamp(seconds, timezone.utc).replace(microsecond=ns // 1000)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def model_info_as_json(model: ModelInfo) -> dict[str, object]:
    """Return the object that stands for a model."""
    return {"model_id": model.model_id, "user_data": dict(sorted(model.user_data.items()))}


def model_as_json(model: ModelSummary) -> dict[str, object]:
    """Return the object that stands for a model with what people decided about it."""
    share = model.share
    return {
        "model_id": model.model_id,
        "user_data": dict(sorted(model.info.user_data.items())),
        "tags": dict(sorted(model.tags.items())),
        "aliases": [alias_as_json(alias) for alias in model.aliases],
        "retention": [rule_as_json(rule) for rule in model.retention],
        "share": {
            "max_items": share.max_items,
            "max_bytes": share.max_bytes,
            "reserved_items": share.reserved_items,
            "reserved_bytes": share.reserved_bytes,
        },
        "signers": [{"key_id": key.key_id, "public_key": key.pem} for key in model.signers],
        "revision": model.revision,
        "latest_number": model.latest_number,
        "versions": model.versions,
        "archived_bytes": model.archived_bytes,
    }


def version_as_json(version: VersionInfo) -> dict[str, object]:
    """Return the object that stands for a version, with what people may change about it if that is known."""
    fields = {
        "model_id": version.model_id,
        "number": version.number,
        "created_ns": version.created_ns,
        "created": time_text(version.created_ns),
        "archived": version.archived,
        "data_hash": version.data_hash,
        "data_size_bytes": version.data_size_bytes,
        "user_data": dict(sorted(version.user_data.items())),
    }
    if isinstance(version, Version):
        fields["tags"] = dict(sorted(version.tags.items()))
        fields["metrics"] = dict(sorted(version.metrics.items()))
        fields["aliases"] = [*version.aliases]
        fields["revision"] = version.revision
    if version.signature is not None:
        fields["signature"] = {"key_id": version.signature.key_id, "value": version.signature.value}
    return fields


def alias_as_json(alias: Alias) -> dict[str, object]:
    """Return the object that stands for an alias."""
    return {
        "alias": alias.name,
        "version_number": alias.version_number,
        "revision": alias.revision,
        "set_ns": alias.set_ns,
        "set": time_text(alias.set_ns),
    }


def consumer_as_json(consumer: Consumer) -> dict[str, object]:
    """Return the object that stands for a consumer."""
    return {
        "model_id": consumer.model_id,
        "consumer_id": consumer.consumer_id,
        "version_number": consumer.version_number,
        "state": consumer.state,
        "error": consumer.error,
        "labels": dict(sorted(consumer.labels.items())),
        "ttl_seconds": consumer.ttl_seconds,
        "held_versions": [*consumer.held_versions],
        "versions_behind": consumer.versions_behind,
        "seconds_behind": consumer.seconds_behind,
        "reported_ns": consumer.reported_ns,
    }


def entry_as_json(entry: HistoryEntry) -> dict[str, object]:
    """Return the object that stands for a change."""
    return {
        "time_ns": entry.time_ns,
        "time": time_text(entry.time_ns),
        "change": entry.change,
        "model_id": entry.model_id,
        "version_number": entry.version_number,
        "alias": entry.alias,
        "before": entry.before,
        "after": entry.after,
        "call": entry.call,
        "caller": entry.caller,
        "caller_kind": entry.caller_kind,
        "peer": entry.peer,
        "reason": entry.reason,
    }


def report_as_json(report: RetentionReport) -> dict[str, object]:
    """Return the object that stands for what retention did, or would do."""
    return {
        "decisions": [
            {**version_as_json(each.version), "deleted": each.deleted, "reason": each.reason}
            for each in report.decisions
        ],
        "deleted_versions": report.deleted_versions,
        "kept_versions": report.kept_versions,
        "freed_bytes": report.freed_bytes,
    }


def rule_as_json(rule: RetentionRule) -> dict[str, object]:
    """Return the object that stands for a rule, without what has its default."""
    values = {name: getattr(rule, name) for name in RULE_DEFAULTS}
    return {name: value for name, value in values.items() if value != RULE_DEFAULTS[name]}


def rules_from_json(document: object, what: str) -> list[RetentionRule]:
    """Return the rules in a list of objects with the fields of rules.

    Args:
        document: The list.
        what: Where it comes from, for errors.

    Raises:
        InvalidError: It is malformed.
    """
    if not isinstance(document, list) or not all(isinstance(each, dict) for each in document):
        raise InvalidError(f"{what} must have a JSON list of objects, each a rule")
    return [rule_from_fields(values, f"rule {position} of {what}") for position, values in enumerate(document, 1)]


def rule_from_fields(values: Mapping[str, object], what: str) -> RetentionRule:
    """Return the rule that some fields are.

    Args:
        values: The fields by name.
        what: Where they come from, for errors.

    Raises:
        InvalidError: One is unknown, or has a wrong type.
    """
    for name, value in values.items():
        if name not in RULE_DEFAULTS:
            raise InvalidError(f"{what} has the field {name!r}; the fields are {', '.join(RULE_DEFAULTS)}")
        kind = type(RULE_DEFAULTS[name])
        if type(value) is not kind:
            expected = {str: "a text", bool: "true or false", int: "a whole number"}[kind]
            raise InvalidError(f"{what}: {name} is {value!r}; it must be {expected}")
    return RetentionRule(**values)  # type: ignore[arg-type] # checked above
