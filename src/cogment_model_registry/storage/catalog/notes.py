"""What people have said of a model and its versions: all that only the database has, as one value.

An export carries it, and a repair saves it from a database that is damaged. This is the only place that lists what
there is: what gets into the database and is not in the files gets a field of `ModelNotes`, a line in
`to_fields` and `from_fields` here, and one in `read_notes` and `put_notes` of `note_tables`.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeGuard

from cogment_model_registry.errors import InvalidError
from cogment_model_registry.records.lifecycle import FIRST_REVISION, Alias, Annotations, check_alias, check_metrics
from cogment_model_registry.records.retention import (
    ModelAnnotations,
    RetentionRule,
    TransientShare,
    check_rules,
    check_share,
    ordered_signers,
)
from cogment_model_registry.records.signatures import check_signers, parse_public_keys
from cogment_model_registry.records.versions import VERSION_NUMBER_MAX
from cogment_model_registry.registry.filter_text import parse_filter

_ALIAS_MAX_BYTES = 255
_REVISION_MAX = 2**63 - 1


@dataclass(slots=True)
class VersionNotes:
    """What people have said of a version.

    Attributes:
        annotations: Its tags, metrics and revision.
        identity: Its time, in nanoseconds since the Unix epoch, and its hash; None when they are not known.
    """

    annotations: Annotations = field(default_factory=Annotations)
    identity: tuple[int, str] | None = None

    def may_be_of(self, identity: tuple[int, str]) -> bool:
        """Return whether they are on the version with a time and a hash, as far as is known."""
        return self.identity in (None, identity)


@dataclass(slots=True)
class ModelNotes:
    """What people have said of a model and its versions.

    Attributes:
        last_revision: The highest revision that anything of the model had.
        model: What people decided about the model: its tags, rules of retention, share and signers.
        aliases: Its aliases.
        versions: The versions of which something was said, by number.
    """

    last_revision: int = FIRST_REVISION
    model: ModelAnnotations = field(default_factory=ModelAnnotations)
    aliases: list[Alias] = field(default_factory=list)
    versions: dict[int, VersionNotes] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether anything was said."""
        return bool(self.aliases or self.versions) or self.model != ModelAnnotations()

    def restricted(self, keep: Callable[[int, VersionNotes | None], bool]) -> "ModelNotes":
        """Return those on the versions that `keep` accepts, and the aliases that point to them."""
        versions = {number: notes for number, notes in self.versions.items() if keep(number, notes)}
        aliases = [
            alias for alias in self.aliases if keep(alias.version_number, self.versions.get(alias.version_number))
        ]
        return ModelNotes(self.last_revision, self.model, aliases, versions)


Fields = dict[str, Any]
"""Notes as values of JSON."""


def to_fields(notes: ModelNotes) -> Fields:
    """Return notes for the file of an export."""
    return {
        "last_revision": notes.last_revision,
        "model": {
            "revision": notes.model.revision,
            "tags": dict(sorted(notes.model.tags.items())),
            "retention": [asdict(rule) for rule in notes.model.retention],
            "share": asdict(notes.model.share),
            # Left out where there are none: releases that do not know them refuse the field, as they should.
            **({"signers": [key.pem for key in notes.model.signers]} if notes.model.signers else {}),
        },
        "aliases": [
            {
                "alias": alias.name,
                "version_number": alias.version_number,
                "revision": alias.revision,
                "set_timestamp": alias.set_ns,
            }
            for alias in sorted(notes.aliases, key=lambda alias: alias.name)
        ],
        "versions": [
            {
                "version_number": number,
                "revision": version.annotations.revision,
                "tags": dict(sorted(version.annotations.tags.items())),
                "metrics": dict(sorted(version.annotations.metrics.items())),
            }
            for number, version in sorted(notes.versions.items())
        ],
    }


def from_fields(fields: Fields, model_id: str) -> ModelNotes:
    """Return the notes in the file of an export, which may come from anywhere.

    Raises:
        InvalidError: They are not what `to_fields` returns.
    """
    try:
        notes = ModelNotes(_whole(fields["last_revision"], _REVISION_MAX))
        notes.model = _model(fields["model"], model_id, notes.last_revision)
        for alias in fields["aliases"]:
            check_alias(alias["alias"], model_id, _ALIAS_MAX_BYTES)
            number = _whole(alias["version_number"], VERSION_NUMBER_MAX)
            revision = _whole(alias["revision"], notes.last_revision)
            notes.aliases.append(Alias(alias["alias"], number, revision, _whole(alias["set_timestamp"], 2**64 - 1)))
        for version in fields["versions"]:
            annotations = Annotations(
                _texts(version["tags"]),
                _numbers(version["metrics"], model_id),
                _whole(version["revision"], notes.last_revision),
            )
            notes.versions[_whole(version["version_number"], VERSION_NUMBER_MAX)] = VersionNotes(annotations)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidError("its aliases, tags, metrics or rules are malformed", model_id=model_id) from error
    if to_fields(notes) != fields or len({alias.name for alias in notes.aliases}) < len(notes.aliases):
        raise InvalidError("its aliases, tags, metrics or rules are malformed", model_id=model_id)
    return notes


def _model(fields: Fields, model_id: str, last_revision: int) -> ModelAnnotations:
    rules = tuple(RetentionRule(**rule) for rule in fields["retention"])
    share = TransientShare(**fields["share"])
    if not all(isinstance(text, str) for rule in rules for text in (rule.tier, rule.filter, rule.metric)):
        raise ValueError(rules)
    if not all(isinstance(rule.lower_is_better, bool) for rule in rules):
        raise ValueError(rules)
    check_rules(rules, model_id)
    check_share(share, model_id)
    for rule in rules:
        parse_filter(rule.filter)
    signers = ordered_signers(key for pem in fields.get("signers", ()) for key in parse_public_keys(pem.encode()))
    check_signers(signers, model_id)
    return ModelAnnotations(_texts(fields["tags"]), rules, share, _whole(fields["revision"], last_revision), signers)


def _whole(value: object, largest: int) -> int:
    if type(value) is not int or not 0 <= value <= largest:
        raise ValueError(value)
    return value


def _texts(value: object) -> Mapping[str, str]:
    if not _is_mapping(value) or not all(isinstance(part, str) for item in value.items() for part in item):
        raise ValueError(value)
    for part in (*value.keys(), *value.values()):
        part.encode()  # a lone surrogate, which no message can carry, is a ValueError
    return dict(value)


def _numbers(value: object, model_id: str) -> Mapping[str, float]:
    if not _is_mapping(value) or not all(type(number) is float for number in value.values()):
        raise ValueError(value)
    for name in value:
        name.encode()
    check_metrics(value, model_id)
    return dict(value)


def _is_mapping(value: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)
