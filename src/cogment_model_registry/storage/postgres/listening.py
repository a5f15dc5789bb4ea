"""The connection on which a server hears of the changes of others, and what is done when it was lost.

PostgreSQL sends what is committed in the order of the commits, as long as the connection lives. Every other second it
is asked for a sign of life; the answer also says which transactions are over. After a lost connection, whatever was
changed by transactions that were not over at the last but one of these moments is looked at again, and what the lost
messages would have said is recorded. Versions that disappeared in the meantime are not known one by one.
"""

import asyncio
import contextlib

import asyncpg
import structlog

from cogment_model_registry.errors import StartError
from cogment_model_registry.storage.postgres.core import Core
from cogment_model_registry.storage.postgres.notes import Note, letter_of, text_in
from cogment_model_registry.storage.postgres.schema import SCHEMA
from cogment_model_registry.storage.postgres.translation import LOST, Connection, Record
from cogment_model_registry.system.tasks import end, surviving

_log = structlog.stdlib.get_logger(__name__)

PING_SECONDS = 2.0
_ANSWER_SECONDS = 5.0
_AGAIN_SECONDS = 0.5

PING = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text"

CHANGED = """
SELECT m.model_id, m.life, m.stamp >= $1::text::xid8 AS is_changed,
    coalesce(h.stamp >= $1::text::xid8, false) AS is_shown
FROM models m LEFT JOIN heads h USING (life) WHERE m.stamp >= $1::text::xid8 OR h.stamp >= $1::text::xid8
"""

ENDED = "SELECT model_id, life FROM ended WHERE stamp >= $1::text::xid8 ORDER BY ended"

SHOWN = "SELECT number FROM visible WHERE life = $1 AND number > $2 ORDER BY number"

HELD = "SELECT life, number FROM transient WHERE $1 = ANY(holders)"


class Listening:
    """Listens for the changes of other servers.

    Args:
        core: The state of the catalog.

    Attributes:
        is_listening: Whether the connection lives, and what was missed before is known.
        pid: The process of PostgreSQL at its other end.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._task: asyncio.Task[None] | None = None
        self._over = ["0", "0"]  # transactions before these were over at the last two signs of life
        self._lost = asyncio.Event()
        self.is_listening = False
        self.pid = 0

    async def open(self) -> None:
        """Begin to listen.

        Raises:
            StartError: PostgreSQL does not answer.
        """
        try:
            connection = await self._connect()
        except (asyncpg.PostgresError, *LOST) as error:
            raise StartError(f"the database of the catalog is not usable: {error}") from error
        self.is_listening = True
        self._task = asyncio.create_task(self._run(connection), name="catalog listening")

    async def close(self) -> None:
        """Listen no more. Closing twice does nothing."""
        task, self._task = self._task, None
        if task is not None:
            await end(task)

    async def _connect(self) -> Connection:
        connection = await self._core.connections.connect()
        try:
            self._lost.clear()
            connection.add_termination_listener(self._note_lost)
            await connection.add_listener(SCHEMA, self._hear)
            over = await connection.fetchval(PING)
        except BaseException:
            connection.terminate()
            raise
        self._over_now = over
        self.pid = connection.get_server_pid()
        return connection

    async def _run(self, connection: Connection) -> None:
        self._over = [self._over_now, self._over_now]
        while True:
            self.is_listening = True
            try:
                with surviving(_log.exception, "notifications"):
                    await self._listen(connection)
            finally:
                self.is_listening = False
                connection.terminate()
            connection = await self._reconnect()

    async def _listen(self, connection: Connection) -> None:
        """Listen until the connection is lost."""
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(PING_SECONDS):
                        await self._lost.wait()
                        return
                over = await connection.fetchval(PING, timeout=_ANSWER_SECONDS)
                self._over = [self._over[1], over]
        except (asyncpg.PostgresError, *LOST) as error:
            self._core.connections.note_away(error)

    async def _reconnect(self) -> Connection:
        _log.warning("connection for notifications lost")
        while True:
            with surviving(_log.exception, "notifications"), contextlib.suppress(asyncpg.PostgresError, *LOST):
                connection = await self._connect()
                try:
                    await self._catch_up(connection)
                except BaseException:
                    connection.terminate()
                    raise
                self._over = [self._over_now, self._over_now]
                _log.info("connection for notifications is back")
                return connection
            await asyncio.sleep(_AGAIN_SECONDS)

    def _note_lost(self, _connection: object) -> None:
        self._lost.set()

    def _hear(self, _connection: object, _pid: int, _channel: str, message: object) -> None:
        letter = letter_of(str(message))
        if letter is not None:
            self._core.hear(letter)
        elif (text := text_in(str(message), self._core.origin)) is not None:
            self._core.on_received(text)

    async def _catch_up(self, connection: Connection) -> None:
        """Record what was changed while nobody listened. New messages arrive already, and say some of it again."""
        since = self._over[0]
        self._core.forget_sent()
        for row in await connection.fetch(ENDED, since):
            self._core.take(Note("removed", row["model_id"], row["life"]))
        for model_id in self._core.lines.known():
            self._core.lines.lose_unknown(model_id)
        for row in await connection.fetch(CHANGED, since):
            await self._catch_up_model(connection, row)
        await self._drop_held(connection)

    async def _catch_up_model(self, connection: Connection, row: Record) -> None:
        model_id, life = row["model_id"], row["life"]
        line = self._core.lines.find(model_id)
        if row["is_changed"]:
            known = line is not None and line.life == life
            self._core.take(Note("changed" if known else "created", model_id, life))
        if row["is_shown"]:
            line = self._core.lines.find(model_id)
            after = line.history.last_number if line is not None and line.life == life else 0
            numbers = [each["number"] for each in await connection.fetch(SHOWN, life, after)]
            if numbers:
                self._core.take(Note("shown", model_id, life, numbers))

    async def _drop_held(self, connection: Connection) -> None:
        """Free the versions that other servers removed or promoted; after a crash of PostgreSQL that is not known."""
        generation = await connection.fetchval("SELECT generation FROM generation")
        if generation is None or generation != self._core.generation:
            return
        before = [*self._core.held.items()]
        rows = await connection.fetch(HELD, self._core.server)
        known = {(row["life"], row["number"]) for row in rows}
        dropped = [held.info for _, held in before if (held.life, held.info.number) not in known]
        for info in dropped:
            self._core.held.pop((info.model_id, info.number), None)
        if dropped and self._core.server:
            self._core.on_dropped(dropped)
