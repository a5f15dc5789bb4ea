"""What people have said of a model and its versions: all that only the database has, as one value.

An export carries it, and a repair saves it from a database that is damaged. This is the only place that lists what
there is: what gets into the database and is not in the files gets a field of `ModelNotes`, and a line in each of
`read_notes`, `put_notes`, `to_fields` and `from_fields`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from sqlite3 import Connection, DatabaseError
from typing import Any, TypeGuard

from cogment_model_registry.errors import InvalidError
from cogment_model_registry.records.lifecycle import FIRST_REVISION, Alias, Annotations, check_alias, check_metrics
from cogment_model_registry.records.versions import VERSION_NUMBER_MAX
from cogment_model_registry.storage.catalog import tables
from cogment_model_registry.storage.catalog.tables import TIME_OFFSET

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


@dataclass(slots=True)
class ModelNotes:
    """What people have said of a model and its versions.

    Attributes:
        last_revision: The highest revision that anything of the model had.
        aliases: Its aliases.
        versions: The versions of which something was said, by number.
    """

    last_revision: int = FIRST_REVISION
    aliases: list[Alias] = field(default_factory=list)
    versions: dict[int, VersionNotes] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether anything was said."""
        return bool(self.aliases or self.versions)

    def restricted(self, keep: Callable[[int, VersionNotes | None], bool]) -> "ModelNotes":
        """Return those on the versions that `keep` accepts, and the aliases that point to them."""
        versions = {number: notes for number, notes in self.versions.items() if keep(number, notes)}
        aliases = [
            alias for alias in self.aliases if keep(alias.version_number, self.versions.get(alias.version_number))
        ]
        return ModelNotes(self.last_revision, aliases, versions)


def read_notes(
    connection: Connection, model_id: str | None = None, on_loss: Callable[[str], object] | None = None
) -> dict[str, ModelNotes]:
    """Return what a database has, by model.

    Args:
        connection: The database.
        model_id: The only model to look at; all when None.
        on_loss: Called with the name of each table of which a part cannot be read, since the database is damaged;
            without it that is an error.

    Raises:
        sqlite3.DatabaseError: The database is damaged, and there is no `on_loss`.
    """
    models = _Table(connection, "models", "model", on_loss).rows("model_id, last_revision")
    return {
        name: _notes_of(connection, model, last_revision, on_loss)
        for model, name, last_revision in models
        if model_id in (None, name)
    }


def _notes_of(
    connection: Connection, model: int, last_revision: int, on_loss: Callable[[str], object] | None
) -> ModelNotes:
    def rows(table: str, key: str, columns: str) -> Iterator[Sequence[Any]]:
        for _, *row in _Table(connection, table, f"model, {key}", on_loss).rows(columns, model):
            yield row

    notes = ModelNotes(last_revision)
    for name, number, revision, set_at in rows("aliases", "name", "number, revision, set_at"):
        notes.aliases.append(Alias(name, number, revision, set_at + TIME_OFFSET))
    tags: dict[int, dict[str, str]] = {}
    for number, key, text in rows("tags", "number, key", "value"):
        tags.setdefault(number, {})[key] = text
    metrics: dict[int, dict[str, float]] = {}
    for number, key, value in rows("metrics", "number, key", "value"):
        metrics.setdefault(number, {})[key] = value
    aliased = {alias.version_number for alias in notes.aliases}
    revisions: dict[int, int] = {}
    identities: dict[int, tuple[int, str]] = {}
    for number, created, data_hash, revision in rows("versions", "number", "created, data_hash, revision"):
        if revision != FIRST_REVISION or number in tags or number in metrics or number in aliased:
            revisions[number] = revision
            identities[number] = (created + TIME_OFFSET, data_hash)
    for number in sorted({*tags, *metrics, *aliased, *revisions}):
        revision = revisions.get(number, last_revision)
        annotations = Annotations(tags.get(number, {}), metrics.get(number, {}), revision)
        notes.versions[number] = VersionNotes(annotations, identities.get(number))
    return notes


@dataclass(frozen=True, slots=True)
class _Table:
    """A table, of which a part may be damaged."""

    connection: Connection
    name: str
    key: str
    on_loss: Callable[[str], object] | None

    def rows(self, columns: str, model: int | None = None) -> Iterator[tuple[Any, ...]]:
        """Yield the rows: of a damaged table those before the damage, and those after it from the end."""
        seen = set()
        for direction in ("ASC", "DESC"):
            order = ", ".join(f"{column} {direction}" for column in self.key.split(", "))
            where, parameters = ("WHERE model = ?", (model,)) if model is not None else ("", ())
            sql = f"SELECT {self.key}, {columns} FROM {self.name} {where} ORDER BY {order}"  # noqa: S608 - names of ours
            try:
                for row in self.connection.execute(sql, parameters):
                    if row not in seen:
                        seen.add(row)
                        yield row
            except DatabaseError:
                if self.on_loss is None:
                    raise
            else:
                return
        if self.on_loss is not None:
            self.on_loss(self.name)


def put_notes(connection: Connection, model_id: str, notes: ModelNotes) -> None:
    """Put notes into a database whose model has a row for each version that they are on, and no notes yet."""
    for number, version in notes.versions.items():
        tables.put_annotations(connection, model_id, number, version.annotations)
    tables.put_aliases(connection, model_id, notes.aliases)
    tables.raise_revision(connection, model_id, notes.last_revision)


Fields = dict[str, Any]
"""Notes as values of JSON."""


def to_fields(notes: ModelNotes) -> Fields:
    """Return notes for the file of an export."""
    return {
        "last_revision": notes.last_revision,
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
        raise InvalidError("what it says about aliases, tags and metrics is malformed", model_id=model_id) from error
    if to_fields(notes) != fields or len({alias.name for alias in notes.aliases}) < len(notes.aliases):
        raise InvalidError("what it says about aliases, tags and metrics is malformed", model_id=model_id)
    return notes


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
