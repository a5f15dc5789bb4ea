"""Uploads that were finished, by the ids of their requests: how a repeated upload finds its version.

Those of archived versions are in the database, those of transient ones in memory alone. A database has them before the
version exists, so a start drops those whose version does not. Both are known for a day, and only the newest of them:
far longer than a client repeats an upload.
"""

import json
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from sqlite3 import Connection

from cogment_model_registry.records.uploads import UploadRequest
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.storage.catalog.tables import TIME_OFFSET

_KEPT_NS = 24 * 3600 * 10**9
_KEPT_MAX = 50_000
"""Some 20 MiB of memory."""


@dataclass(eq=False, slots=True)
class Entry:
    """What is known of a finished upload.

    Attributes:
        digest: The digest of its header.
        model_id: Its model.
        life: The life of the model.
        number: The number of its version.
        finished_ns: When it was finished, in nanoseconds since the Unix epoch.
        pending: Aliases that are still to be set.
    """

    digest: str
    model_id: str
    life: int
    number: int
    finished_ns: int
    pending: tuple[str, ...] = ()


class RequestLog:
    """The newest finished uploads of one tier, oldest first."""

    def __init__(self) -> None:
        self._entries: OrderedDict[str, Entry] = OrderedDict()

    def find(self, request_id: str) -> Entry | None:
        """Return the upload with an id, if it is known."""
        return self._entries.get(request_id)

    def add(self, request_id: str, entry: Entry) -> None:
        """Add the newest upload."""
        self._entries.pop(request_id, None)
        self._entries[request_id] = entry

    def forget_old(self, now_ns: int) -> list[str]:
        """Forget uploads that are too old, or too many; return their ids."""
        return list(self._forget_old(now_ns))

    def _forget_old(self, now_ns: int) -> Iterator[str]:
        while self._entries:
            request_id, oldest = next(iter(self._entries.items()))
            if len(self._entries) <= _KEPT_MAX and oldest.finished_ns > now_ns - _KEPT_NS:
                return
            del self._entries[request_id]
            yield request_id


# Operations on the database.

_UNFINISHED = (
    "number > 0 AND NOT EXISTS (SELECT 1 FROM versions v JOIN models m USING (model)"
    " WHERE m.model_id = requests.model_id AND v.number = requests.number)"
)
"""The condition of uploads whose version does not exist: a crash came first."""


def put(connection: Connection, info: VersionInfo, request: UploadRequest, forgotten: Iterable[str]) -> None:
    """Add the upload of a version that is about to exist, and remove those that were forgotten."""
    connection.executemany("DELETE FROM requests WHERE request_id = ?", [(request_id,) for request_id in forgotten])
    row = (request.request_id, request.digest, info.model_id, info.number, time.time_ns() - TIME_OFFSET)
    connection.execute("INSERT OR REPLACE INTO requests VALUES (?, ?, ?, ?, ?, ?)", (*row, json.dumps(request.aliases)))


def clear_pending(connection: Connection, request_id: str) -> None:
    """Record that the aliases of an upload are set."""
    connection.execute("UPDATE requests SET pending = '[]' WHERE request_id = ?", (request_id,))


def mark_gone(connection: Connection, model_id: str, number: int | None = None) -> None:
    """Record that a version is gone, or all of a model, so that a repeated upload does not make it again."""
    condition, parameters = ("", ()) if number is None else (" AND number = ?", (number,))
    sql = f"UPDATE requests SET number = 0, pending = '[]' WHERE model_id = ?{condition}"  # noqa: S608 - ours
    connection.execute(sql, (model_id, *parameters))


def drop_unfinished(connection: Connection) -> None:
    """Remove uploads whose version does not exist."""
    connection.execute(f"DELETE FROM requests WHERE {_UNFINISHED}")  # noqa: S608 - ours


def restore(connection: Connection, uploads: Iterable[tuple[str, Entry]]) -> None:
    """Add uploads of another database to an empty table; the next start drops those without a version."""
    connection.executemany(
        "INSERT INTO requests VALUES (?, ?, ?, ?, ?, ?)",
        [
            (id_, each.digest, each.model_id, each.number, each.finished_ns - TIME_OFFSET, json.dumps(each.pending))
            for id_, each in uploads
        ],
    )


def uploads(connection: Connection) -> list[tuple[str, Entry]]:
    """Return all uploads in a database with their ids, oldest first; they have no lives."""
    return _selected(connection, "TRUE")


def finished(connection: Connection) -> list[tuple[str, Entry]]:
    """Return the uploads whose version exists, or was deleted, with their ids, oldest first; they have no lives."""
    return _selected(connection, f"NOT ({_UNFINISHED})")


def _selected(connection: Connection, condition: str) -> list[tuple[str, Entry]]:
    columns = "request_id, digest, model_id, number, finished, pending"
    rows = connection.execute(f"SELECT {columns} FROM requests WHERE {condition} ORDER BY finished")  # noqa: S608 - ours
    return [
        (request_id, Entry(digest, model_id, 0, number, time_ + TIME_OFFSET, tuple(json.loads(pending))))
        for request_id, digest, model_id, number, time_, pending in rows
    ]
