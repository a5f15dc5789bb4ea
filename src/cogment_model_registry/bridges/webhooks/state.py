"""The state of webhooks in an SQLite database: the position in the watch, known versions and aliases, waiting posts.

An event and the position after it are written in one transaction, so no event is lost and none is queued twice. A post
is removed once its receiver has confirmed it; a crash before that sends it again.
"""

import json
import sqlite3
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cogment_model_registry.errors import PreconditionError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS texts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS numbers (model_id TEXT PRIMARY KEY, version_number INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS aliases (
    model_id TEXT, alias TEXT, version_number INTEGER NOT NULL, revision INTEGER NOT NULL,
    PRIMARY KEY (model_id, alias)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS transient (
    model_id TEXT, version_number INTEGER, PRIMARY KEY (model_id, version_number)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS lagging (
    model_id TEXT, consumer_id TEXT, PRIMARY KEY (model_id, consumer_id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS posts (
    id INTEGER PRIMARY KEY AUTOINCREMENT, hook TEXT NOT NULL, message_id TEXT NOT NULL, body BLOB NOT NULL,
    tries INTEGER NOT NULL DEFAULT 0, first_try REAL);
CREATE INDEX IF NOT EXISTS posts_of_hooks ON posts (hook, id);
"""

TRANSIENT_MAX = 10_000
"""How many transient versions are remembered, to notice when they are archived; the oldest are forgotten."""

_TOKEN, _MODELS = "resume_token", "models"


@dataclass(frozen=True, slots=True)
class Post:
    """An event that waits for its receiver.

    Attributes:
        number: Its place in the queue.
        message_id: The id of the event for the receiver.
        body: The body.
        tries: How many tries have failed.
        first_try: When the first one was, in seconds since the Unix epoch; None before it.
    """

    number: int
    message_id: str
    body: bytes
    tries: int
    first_try: float | None


class State:
    """The database; several threads may use it.

    Args:
        path: The file.

    Raises:
        PreconditionError: Another process uses it, or it is not such a database. Later, of all methods: it cannot be
            read or written, for example because the disk is full.
    """

    def __init__(self, path: Path) -> None:
        self._name = path.name
        self._lock = threading.RLock()
        self.news = threading.Condition(self._lock)
        try:
            self._database = sqlite3.connect(path, timeout=1, isolation_level=None, check_same_thread=False)
            try:
                self._set_up()
            except BaseException:
                self._database.close()
                raise
        except sqlite3.DatabaseError as error:
            reason = "another process uses it" if "locked" in str(error) else str(error)
            raise PreconditionError(f"the state {path.name} cannot be used: {reason}") from None
        self._waiting: Counter[str] = Counter()
        self._count()

    def _set_up(self) -> None:
        """Take the file for this process, and create the tables."""
        self._database.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")
        self._database.executescript(_SCHEMA)
        self._database.execute("BEGIN IMMEDIATE")
        self._database.execute("COMMIT")

    def _count(self) -> None:
        # Kept in memory, since counting 100,000 rows before each post would take longer than the post.
        self._waiting = Counter(dict(self._rows("SELECT hook, count(*) FROM posts GROUP BY hook")))

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Return a context manager for one transaction; threads that wait for posts are woken at its end."""
        with self._lock:
            self._rows("BEGIN")
            try:
                yield
                self._rows("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._rows("ROLLBACK")
                self._count()
                raise
            self.news.notify_all()

    def _rows(self, statement: str, *values: Any) -> list[Any]:
        with self._lock:
            try:
                return self._database.execute(statement, values).fetchall()
            except sqlite3.DatabaseError as error:
                raise PreconditionError(f"the state {self._name} cannot be used: {error}") from error

    # The position.

    def token(self, model_ids: Iterable[str]) -> str:
        """Return where to resume the watch of some models; empty at the first start, or if the models have changed."""
        found = dict(self._rows("SELECT name, value FROM texts"))
        return found.get(_TOKEN, "") if found.get(_MODELS) == json.dumps(list(model_ids)) else ""

    def set_token(self, token: str, model_ids: Iterable[str]) -> None:
        """Record where to resume."""
        for name, value in ((_TOKEN, token), (_MODELS, json.dumps(list(model_ids)))):
            self._rows("INSERT OR REPLACE INTO texts VALUES (?, ?)", name, value)

    # Known models, versions, aliases and consumers.

    def note_number(self, model_id: str, number: int) -> None:
        """Record the newest version whose events were queued; numbers of a model that was created again are lower."""
        self._rows("INSERT OR REPLACE INTO numbers VALUES (?, ?)", model_id, number)

    def note_model(self, model_id: str) -> None:
        """Record that a model exists."""
        self._rows("INSERT OR IGNORE INTO numbers VALUES (?, 0)", model_id)

    def last_number(self, model_id: str) -> int:
        """Return the newest version of a model whose events were queued; 0 for none."""
        rows = self._rows("SELECT version_number FROM numbers WHERE model_id = ?", model_id)
        return int(rows[0][0]) if rows else 0

    def models(self) -> list[str]:
        """Return the recorded models."""
        return [model_id for (model_id,) in self._rows("SELECT model_id FROM numbers")]

    def set_aliases(
        self, model_id: str, aliases: dict[str, tuple[int, int]]
    ) -> dict[str, tuple[int | None, int | None]]:
        """Record the aliases of a model: version and revision by name. Return those that changed: before and after."""
        rows = self._rows("SELECT alias, version_number, revision FROM aliases WHERE model_id = ?", model_id)
        before = {alias: (number, revision) for alias, number, revision in rows}
        changed: dict[str, tuple[int | None, int | None]] = {}
        for alias in sorted({*before, *aliases}):
            old, new = before.get(alias), aliases.get(alias)
            if old == new:
                continue
            changed[alias] = (old[0] if old else None, new[0] if new else None)
            if new is None:
                self._rows("DELETE FROM aliases WHERE model_id = ? AND alias = ?", model_id, alias)
            else:
                self._rows("INSERT OR REPLACE INTO aliases VALUES (?, ?, ?, ?)", model_id, alias, *new)
        return changed

    def add_transient(self, model_id: str, number: int) -> None:
        """Remember a transient version."""
        self._rows("INSERT OR IGNORE INTO transient VALUES (?, ?)", model_id, number)
        count = self._rows("SELECT count(*) FROM transient WHERE model_id = ?", model_id)[0][0]
        if count > TRANSIENT_MAX:
            self._rows(
                "DELETE FROM transient WHERE model_id = ? AND version_number = "
                "(SELECT min(version_number) FROM transient WHERE model_id = ?)",
                model_id,
                model_id,
            )

    def take_transient(self, model_id: str, number: int) -> bool:
        """Forget a transient version, and return whether it was remembered."""
        found = self._rows(
            "DELETE FROM transient WHERE model_id = ? AND version_number = ? RETURNING 1", model_id, number
        )
        return bool(found)

    def transient_models(self) -> list[str]:
        """Return the models of which transient versions are remembered."""
        return [model_id for (model_id,) in self._rows("SELECT DISTINCT model_id FROM transient")]

    def transient(self, model_id: str) -> set[int]:
        """Return the remembered transient versions of a model."""
        return {number for (number,) in self._rows("SELECT version_number FROM transient WHERE model_id = ?", model_id)}

    def forget_model(self, model_id: str) -> bool:
        """Forget a deleted model, and return whether it was recorded."""
        is_known = bool(self._rows("DELETE FROM numbers WHERE model_id = ? RETURNING 1", model_id))
        for table in ("aliases", "transient", "lagging"):
            self._rows(f"DELETE FROM {table} WHERE model_id = ?", model_id)  # noqa: S608 # our own names
        return is_known

    def forget_models(self) -> None:
        """Forget all models, before what exists is recorded for the first time."""
        for table in ("numbers", "aliases", "transient", "lagging"):
            self._rows(f"DELETE FROM {table}")  # noqa: S608 # our own names

    def set_lagging(self, model_id: str, consumer_id: str, *, lags: bool) -> bool:
        """Record whether a consumer lags, and return whether that is new."""
        if lags:
            found = self._rows("INSERT OR IGNORE INTO lagging VALUES (?, ?) RETURNING 1", model_id, consumer_id)
        else:
            found = self._rows(
                "DELETE FROM lagging WHERE model_id = ? AND consumer_id = ? RETURNING 1", model_id, consumer_id
            )
        return bool(found)

    # Posts.

    def add_post(self, hook: str, body: bytes) -> None:
        """Queue an event for a receiver."""
        self._rows("INSERT INTO posts (hook, message_id, body) VALUES (?, ?, ?)", hook, f"msg_{uuid.uuid4().hex}", body)
        self._waiting[hook] += 1

    def first_post(self, hook: str) -> Post | None:
        """Return the next event for a receiver."""
        return next(iter(self.first_posts(hook, 1)), None)

    def first_posts(self, hook: str, count: int) -> list[Post]:
        """Return the next events for a receiver, in order."""
        rows = self._rows(
            "SELECT id, message_id, body, tries, first_try FROM posts WHERE hook = ? ORDER BY id LIMIT ?", hook, count
        )
        return [Post(*row) for row in rows]

    def waiting(self, hook: str) -> int:
        """Return how many events wait for a receiver."""
        with self._lock:
            return self._waiting[hook]

    def waiting_hooks(self) -> list[str]:
        """Return the receivers for which events wait, also those that are not configured any more."""
        with self._lock:
            return sorted(hook for hook, count in self._waiting.items() if count)

    def note_failure(self, post: Post) -> Post:
        """Record a failed try, and return the updated post."""
        first = time.time() if post.first_try is None else post.first_try
        with self.changing():
            self._rows("UPDATE posts SET tries = tries + 1, first_try = ? WHERE id = ?", first, post.number)
        return Post(post.number, post.message_id, post.body, post.tries + 1, first)

    def remove_posts(self, hook: str, posts: Iterable[Post]) -> None:
        """Remove events that were received, or given up."""
        with self.changing():
            for post in posts:
                self._rows("DELETE FROM posts WHERE id = ?", post.number)
                self._waiting[hook] -= 1

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._database.close()
