"""What changes about a model and its versions: aliases, tags, metrics, and their revisions."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from hashlib import sha256
from typing import TYPE_CHECKING

from cogment_model_registry.errors import ConflictError, InvalidError, NotFoundError, counted, quoted
from cogment_model_registry.records.notebooks import Shown
from cogment_model_registry.records.retention import NO_SHARE, ModelAnnotations, RetentionRule, TransientShare
from cogment_model_registry.records.signatures import PublicKey
from cogment_model_registry.records.versions import (
    ModelInfo,
    VersionInfo,
    check_model_id,
    check_user_data,
    user_data_bytes,
)

if TYPE_CHECKING:
    from typing import Self  # from Python 3.11 on

FIRST_REVISION = 1
"""The revision of a version of which nothing was changed yet. 0 means any revision, or none, in requests."""


@dataclass(frozen=True, slots=True)
class Annotations:
    """What people may change about a version.

    Attributes:
        tags: Texts by name.
        metrics: Finite numbers by name.
        revision: Changes whenever the tags, the metrics or the tier change.
    """

    tags: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    revision: int = FIRST_REVISION

    @property
    def size_bytes(self) -> int:
        """The bytes of UTF-8 in the tags and metrics; a metric counts as its name and 8 bytes."""
        return user_data_bytes(self.tags) + sum(len(name.encode()) + 8 for name in self.metrics)


@dataclass(frozen=True, slots=True)
class Version(VersionInfo):
    """A version with all that is known of it. Its fields are flat, so that lists of it make tables.

    Attributes:
        tags: Texts by name.
        metrics: Finite numbers by name.
        aliases: The aliases that point to it now, in the order of their names.
        revision: Changes whenever the tags, the metrics or the tier change.
    """

    tags: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    revision: int = FIRST_REVISION

    @classmethod
    def of(cls, info: VersionInfo, annotations: Annotations | None = None, aliases: tuple[str, ...] = ()) -> "Self":
        """Return a version with its annotations and aliases."""
        noted = annotations or Annotations()
        return cls(
            info.model_id,
            info.number,
            info.created_ns,
            info.archived,
            info.data_hash,
            info.data_size_bytes,
            info.user_data,
            info.signature,
            tags=noted.tags,
            metrics=noted.metrics,
            aliases=aliases,
            revision=noted.revision,
        )

    @property
    def info(self) -> VersionInfo:
        """What never changes."""
        return VersionInfo(*(getattr(self, each.name) for each in fields(VersionInfo)))

    @property
    def annotations(self) -> Annotations:
        """What people may change."""
        return Annotations(self.tags, self.metrics, self.revision)


@dataclass(frozen=True, slots=True)
class Alias(Shown):
    """A name that points to a version of a model, by which people deploy.

    Attributes:
        name: The alias.
        version_number: The version that it points to.
        revision: Changes whenever the alias is set; never repeats while the model exists.
        set_ns: When it was set, in nanoseconds since the Unix epoch.
    """

    name: str
    version_number: int
    revision: int
    set_ns: int


@dataclass(frozen=True, slots=True)
class ModelSummary(ModelInfo):
    """A model with what it has now. Its fields are flat, so that lists of it make tables.

    Attributes:
        aliases: Its aliases, ordered by name.
        latest_number: The number of its newest version; 0 for none.
        versions: How many versions it has, of both tiers.
        archived_bytes: Bytes of its archived versions.
        tags: Texts by name.
        retention: The rules that keep and delete its versions.
        share: Its share of the transient store.
        revision: Changes whenever its tags, its rules, its share or its signers change.
        signers: The keys of which one must have signed each new version; none if that is not required.
    """

    aliases: tuple[Alias, ...] = ()
    latest_number: int = 0
    versions: int = 0
    archived_bytes: int = 0
    tags: Mapping[str, str] = field(default_factory=dict)
    retention: tuple[RetentionRule, ...] = ()
    share: TransientShare = NO_SHARE
    revision: int = FIRST_REVISION
    signers: tuple[PublicKey, ...] = ()

    @classmethod
    def of(
        cls,
        info: ModelInfo,
        annotations: ModelAnnotations | None = None,
        *,
        aliases: tuple[Alias, ...] = (),
        latest_number: int = 0,
        versions: int = 0,
        archived_bytes: int = 0,
    ) -> "Self":
        """Return a model with what people decided about it and what it has."""
        decided = annotations or ModelAnnotations()
        return cls(
            info.model_id,
            info.user_data,
            aliases=aliases,
            latest_number=latest_number,
            versions=versions,
            archived_bytes=archived_bytes,
            tags=decided.tags,
            retention=decided.retention,
            share=decided.share,
            revision=decided.revision,
            signers=decided.signers,
        )

    @property
    def info(self) -> ModelInfo:
        """What its owner said about it."""
        return ModelInfo(self.model_id, self.user_data)

    @property
    def annotations(self) -> ModelAnnotations:
        """What people decided about it."""
        return ModelAnnotations(self.tags, self.retention, self.share, self.revision, self.signers)


@dataclass(frozen=True, slots=True)
class Decision:
    """What retention does with a version, and why.

    Attributes:
        version: The version; as it was, if it is deleted.
        deleted: Whether it is deleted.
        reason: Why it is kept or deleted, such as ``alias production``.
    """

    version: Version
    deleted: bool
    reason: str


@dataclass(frozen=True, slots=True)
class RetentionReport:
    """What applying rules of retention did, or would do.

    Attributes:
        decisions: What happens to each version, those that are deleted first; as many as fit a reply.
        deleted_versions: How many versions are deleted.
        kept_versions: How many are kept.
        freed_bytes: Bytes of those that are deleted.
    """

    decisions: tuple[Decision, ...]
    deleted_versions: int
    kept_versions: int
    freed_bytes: int


@dataclass(frozen=True, slots=True)
class Objections:
    """What stands against the deletion of a version.

    Attributes:
        aliases: The aliases that point to it.
        held: Which consumers hold it, as a text; empty for none.
    """

    aliases: Sequence[str] = ()
    held: str = ""

    @property
    def state(self) -> str:
        """A text that differs when the objections differ."""
        return sha256(json.dumps([[*self.aliases], self.held]).encode()).hexdigest()[:32]

    def __str__(self) -> str:
        """Return them in words."""
        names = ", ".join(quoted(alias) for alias in self.aliases)
        texts = (f"pointed to by the alias {names}" if names else "", self.held)
        return " and ".join(filter(None, texts)) or "neither held nor pointed to"


@dataclass(frozen=True, slots=True)
class AliasChange:
    """A change of one alias.

    Attributes:
        name: The alias.
        version_number: The version to point to; None to remove the alias.
        expected_revision: The revision that the alias must have now; 0 if it must not exist; None for any.
    """

    name: str
    version_number: int | None
    expected_revision: int | None = None


@dataclass(frozen=True, slots=True)
class AnnotationChange:
    """A change of the annotations of one version.

    Attributes:
        set_tags: Tags to add or replace.
        remove_tags: Tags to remove; those that do not exist are ignored.
        set_metrics: Metrics to add or replace.
        remove_metrics: Metrics to remove; those that do not exist are ignored.
        expected_revision: The revision that the version must have now; 0 for any.
        max_bytes: The most bytes of UTF-8 in the tags and metrics afterwards; a metric counts as its name and 8 bytes.
    """

    set_tags: Mapping[str, str] = field(default_factory=dict)
    remove_tags: Sequence[str] = ()
    set_metrics: Mapping[str, float] = field(default_factory=dict)
    remove_metrics: Sequence[str] = ()
    expected_revision: int = 0
    max_bytes: int | None = None

    def apply_to(self, info: VersionInfo, annotations: Annotations, revision: int) -> Annotations:
        """Return the annotations of a version after the change.

        Raises:
            InvalidError: They grow beyond what is allowed.
        """
        removed_tags, removed_metrics = {*self.remove_tags}, {*self.remove_metrics}
        tags = {name: text for name, text in annotations.tags.items() if name not in removed_tags}
        metrics = {name: value for name, value in annotations.metrics.items() if name not in removed_metrics}
        after = Annotations({**tags, **self.set_tags}, {**metrics, **self.set_metrics}, revision)
        if self.max_bytes is not None and annotations.size_bytes < after.size_bytes > self.max_bytes:
            raise InvalidError(
                f"the tags and metrics of version {info.number} of model {quoted(info.model_id)} would have "
                f"{counted(after.size_bytes, 'byte')}; at most {self.max_bytes} are allowed",
                model_id=info.model_id,
                version_number=info.number,
            )
        return after


def check_revision(info: VersionInfo, annotations: Annotations, change: AnnotationChange) -> None:
    """Refuse a change that expects another revision.

    Raises:
        ConflictError: It does.
    """
    if change.expected_revision not in (0, annotations.revision):
        raise ConflictError(
            f"version {info.number} of model {quoted(info.model_id)} has revision {annotations.revision}; "
            f"{change.expected_revision} was expected",
            model_id=info.model_id,
            version_number=info.number,
        )


def check_alias_revision(model_id: str, now: Alias | None, change: AliasChange) -> None:
    """Refuse a change of an alias that expects another revision, or removes what does not exist.

    Args:
        model_id: The model.
        now: The alias as it is; None when it does not exist.
        change: The change.

    Raises:
        ConflictError: It expects another revision.
        NotFoundError: It removes an alias that does not exist.
    """
    if change.expected_revision is not None and change.expected_revision != (now.revision if now else 0):
        state = f"points to version {now.version_number} with revision {now.revision}" if now else "does not exist"
        expected = f"revision {change.expected_revision}" if change.expected_revision else "no such alias"
        message = f"alias {quoted(change.name)} of model {quoted(model_id)} {state}; {expected} was expected"
        raise ConflictError(message, model_id=model_id, version_number=now.version_number if now else None)
    if change.version_number is None and now is None:
        raise NotFoundError(f"model {quoted(model_id)} has no alias {quoted(change.name)}", model_id=model_id)


def check_alias(alias: str, model_id: str, max_bytes: int) -> None:
    """Refuse a name that is no alias: the rules of model ids hold, and it is neither a number nor ``latest``.

    Raises:
        InvalidError: It breaks a rule.
    """
    try:
        check_model_id(alias, max_bytes)
    except InvalidError as error:
        problem = error.message.removeprefix(f"model_id {quoted(alias)} ")
        raise InvalidError(f"alias {quoted(alias)} {problem}", model_id=model_id) from None
    if alias == "latest" or alias.lstrip("+-").isdecimal():
        message = f"alias {quoted(alias)} is not allowed: 'latest' and numbers name versions by themselves"
        raise InvalidError(message, model_id=model_id)


def check_metrics(metrics: Mapping[str, float], model_id: str) -> None:
    """Refuse metrics that are not finite numbers: they have no order, and JSON has no word for them.

    Raises:
        InvalidError: One is not.
    """
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise InvalidError(f"metric {quoted(name)} must be a finite number, not {value}", model_id=model_id)


def check_entries(tags: Mapping[str, str], metrics: Mapping[str, float], max_bytes: int, model_id: str) -> None:
    """Refuse tags and metrics that have more than `max_bytes` bytes together; a metric has 8 next to its name.

    Raises:
        InvalidError: They are larger.
    """
    entries = {**tags, **dict.fromkeys(metrics, "12345678")}
    check_user_data(entries, max_bytes, model_id, name="tags and metrics")
