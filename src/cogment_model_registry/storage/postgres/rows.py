"""Rows and records: what the columns of the catalog mean."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from cogment_model_registry.records.lifecycle import Alias, Annotations, Version
from cogment_model_registry.records.retention import ModelAnnotations, RetentionRule, TransientShare, ordered_signers
from cogment_model_registry.records.signatures import PublicKey, parse_signature, public_key
from cogment_model_registry.records.versions import ModelInfo, VersionInfo
from cogment_model_registry.storage.postgres.translation import Record

TIME_OFFSET = 2**63
"""What is taken from a time before it is stored."""

VERSION = "number, created, archived, data_hash, data_size, signature, user_data, tags, metrics, revision"
"""The columns of a version in `visible`, in the order in which `version_of` and `info_of` take them."""


def escaped(text: str) -> str:
    """Return a text without U+0000, which PostgreSQL does not keep; the order of texts stays."""
    if "\0" in text or "\1" in text:
        return text.replace("\1", "\1\2").replace("\0", "\1\1")
    return text


def unescaped(text: str) -> str:
    """Return the text that was escaped."""
    return text.replace("\1\1", "\0").replace("\1\2", "\1") if "\1" in text else text


def texts_json(texts: Mapping[str, str]) -> str:
    """Return texts by name as JSON."""
    if not texts:
        return "{}"
    return json.dumps({escaped(key): escaped(value) for key, value in texts.items()}, ensure_ascii=False)


def texts_of(text: str) -> dict[str, str]:
    """Return the texts in a column."""
    if text == "{}":
        return {}
    return {unescaped(key): unescaped(value) for key, value in json.loads(text).items()}


def metrics_json(metrics: Mapping[str, float]) -> str:
    """Return numbers by name as JSON: as texts, since numbers of JSON have no -0.0 in PostgreSQL."""
    if not metrics:
        return "{}"
    return json.dumps({escaped(name): repr(float(value)) for name, value in metrics.items()}, ensure_ascii=False)


def metrics_of(text: str) -> dict[str, float]:
    """Return the numbers in a column."""
    if text == "{}":
        return {}
    return {unescaped(name): float(value) for name, value in json.loads(text).items()}


def metric_rows(metrics: Mapping[str, float]) -> tuple[list[str], list[float]]:
    """Return the names and the values of metrics for the table that searches use; those without order are left out."""
    ordered = {escaped(name): float(value) for name, value in metrics.items() if not math.isnan(value)}
    return [*ordered], [*ordered.values()]


def info_of(model_id: str, row: Record) -> VersionInfo:
    """Return the version in a row with the columns `VERSION`."""
    return VersionInfo(
        model_id,
        row["number"],
        row["created"] + TIME_OFFSET,
        row["archived"],
        row["data_hash"],
        row["data_size"],
        texts_of(row["user_data"]),
        parse_signature(row["signature"]) if row["signature"] else None,
    )


def annotations_of(row: Record) -> Annotations:
    """Return what people said of the version in a row."""
    return Annotations(texts_of(row["tags"]), metrics_of(row["metrics"]), row["revision"])


def version_of(model_id: str, row: Record) -> Version:
    """Return the version in a row that has its aliases too."""
    return Version.of(info_of(model_id, row), annotations_of(row), tuple(row["aliases"] or ()))


def version_values(info: VersionInfo, annotations: Annotations) -> tuple[object, ...]:
    """Return the values of a new row, from its number to its revision, in the order of the columns."""
    return (
        info.number,
        info.created_ns - TIME_OFFSET,
        info.data_hash,
        info.data_size_bytes,
        "" if info.signature is None else str(info.signature),
        texts_json(info.user_data),
        texts_json(annotations.tags),
        metrics_json(annotations.metrics),
        annotations.revision,
    )


def alias_of(row: Record) -> Alias:
    """Return the alias in a row."""
    return Alias(row["name"], row["number"], row["revision"], row["set_at"] + TIME_OFFSET)


def model_of(row: Record) -> ModelInfo:
    """Return the model in a row."""
    return ModelInfo(row["model_id"], texts_of(row["user_data"]))


DECIDED = "tags, rules, share, signers, revision"
"""The columns of what people decided about a model."""


def decided_of(row: Record) -> ModelAnnotations:
    """Return what people decided about the model in a row."""
    rules = [RetentionRule(**{**each, **_rule_texts(each)}) for each in json.loads(row["rules"])]
    share = TransientShare(*row["share"])
    return ModelAnnotations(texts_of(row["tags"]), tuple(rules), share, row["revision"], signers_of(row))


def signers_of(row: Record) -> tuple[PublicKey, ...]:
    """Return the keys of which one must have signed each new version of the model in a row."""
    return ordered_signers(public_key(der) for der in row["signers"] or ())


def decided_values(decided: ModelAnnotations) -> tuple[object, ...]:
    """Return the values of the columns `DECIDED`."""
    share = decided.share
    rules = [{**(fields := asdict(rule)), **_rule_texts(fields, escape=True)} for rule in decided.retention]
    return (
        texts_json(decided.tags),
        json.dumps(rules, ensure_ascii=False),
        [share.max_items, share.max_bytes, share.reserved_items, share.reserved_bytes],
        [key.der for key in decided.signers],
        decided.revision,
    )


def _rule_texts(fields: Mapping[str, object], *, escape: bool = False) -> dict[str, str]:
    """Return those fields of a rule that are texts of people, escaped or not."""
    change = escaped if escape else unescaped
    return {name: change(value) for name, value in fields.items() if isinstance(value, str)}


def names_of(aliases: Sequence[Alias], number: int) -> tuple[str, ...]:
    """Return the aliases that point to a version, in order."""
    return tuple(alias.name for alias in aliases if alias.version_number == number)
