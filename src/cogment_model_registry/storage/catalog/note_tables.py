"""Reading all that only a database has, also from one that is damaged, and putting it into another one."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from sqlite3 import Connection, DatabaseError
from typing import Any

from cogment_model_registry.records.lifecycle import FIRST_REVISION, Alias, Annotations
from cogment_model_registry.records.retention import ModelAnnotations
from cogment_model_registry.storage.catalog import model_tables, tables
from cogment_model_registry.storage.catalog.notes import ModelNotes, VersionNotes
from cogment_model_registry.storage.catalog.tables import TIME_OFFSET


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
    reader = _Reader(connection, on_loss)
    models = [*reader.rows("models", "model", "model_id, last_revision")]
    return {
        name: reader.notes_of(model, name, last_revision)
        for model, name, last_revision in models
        if model_id in (None, name)
    }


@dataclass(frozen=True, slots=True)
class _Reader:
    connection: Connection
    on_loss: Callable[[str], object] | None

    def notes_of(self, model: int, model_id: str, last_revision: int) -> ModelNotes:
        notes = ModelNotes(last_revision, self._model(model_id))
        for _, name, number, revision, set_at in self.rows("aliases", "model, name", "number, revision, set_at", model):
            notes.aliases.append(Alias(name, number, revision, set_at + TIME_OFFSET))
        tags, metrics = self._entries("tags", model), self._entries("metrics", model)
        aliased = {alias.version_number for alias in notes.aliases}
        for number in sorted({*tags, *metrics, *aliased}):
            # The revision of a version whose record cannot be read is not known; this one is as high as any.
            annotations = Annotations(tags.get(number, {}), metrics.get(number, {}), last_revision)
            notes.versions[number] = VersionNotes(annotations)
        for _, number, created, data_hash, revision in self.rows(
            "versions", "model, number", "created, data_hash, revision", model
        ):
            if number in notes.versions or revision != FIRST_REVISION:
                annotations = Annotations(tags.get(number, {}), metrics.get(number, {}), revision)
                notes.versions[number] = VersionNotes(annotations, (created + TIME_OFFSET, data_hash))
        return notes

    def _model(self, model_id: str) -> ModelAnnotations:
        try:
            return model_tables.annotations_of_model(self.connection, model_id)
        except DatabaseError:
            if self.on_loss is None:
                raise
            self.on_loss("rules")
            return ModelAnnotations()

    def _entries(self, table: str, model: int) -> dict[int, dict[str, Any]]:
        found: dict[int, dict[str, Any]] = {}
        for _, number, name, value in self.rows(table, "model, number, key", "value", model):
            found.setdefault(number, {})[name] = value
        return found

    def rows(self, table: str, key: str, columns: str, model: int | None = None) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of a table: of a damaged one those before the damage, and those after it from the end."""
        seen = set()
        for direction in ("ASC", "DESC"):
            order = ", ".join(f"{column} {direction}" for column in key.split(", "))
            where, parameters = ("WHERE model = ?", (model,)) if model is not None else ("", ())
            sql = f"SELECT {key}, {columns} FROM {table} {where} ORDER BY {order}"  # noqa: S608 - names of ours
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
            self.on_loss(table)


def put_notes(connection: Connection, model_id: str, notes: ModelNotes) -> None:
    """Put notes into a database that has a record of each version that they are on, and no notes on the model yet."""
    tables.put_model_row(connection, model_id)
    model_tables.put_model(connection, model_id, notes.model)
    for number, version in notes.versions.items():
        tables.put_annotations(connection, model_id, number, version.annotations)
    tables.put_aliases(connection, model_id, notes.aliases)
    tables.raise_revision(connection, model_id, notes.last_revision)
