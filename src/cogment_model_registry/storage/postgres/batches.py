"""Publishing transient versions: publishes to one model that wait on this server share one change.

Changes of a model take turns over all servers, and each turn takes several round trips to PostgreSQL. So a publish that
begins while another change of the model is in progress joins a batch, which is one change: it takes a number for each
member, each member keeps its bytes, and all rows are committed together. A member that fails uses up its number, and
does not affect the others.

The transaction changes unlogged tables, which a crash empties, so it waits for no disk unless it raises the mark of the
numbers.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from contextvars import copy_context
from time import time_ns

from cogment_model_registry.errors import ModelRegistryError, UnavailableError
from cogment_model_registry.records.versions import VersionInfo, check_version_number
from cogment_model_registry.registry.contracts import ModelRef, Slot
from cogment_model_registry.storage.postgres.changes import Change
from cogment_model_registry.storage.postgres.core import Core, Held, Sending
from cogment_model_registry.storage.postgres.forgetting import FORGET, forgotten_json, let_go, lost_note
from cogment_model_registry.storage.postgres.notes import Note, messages
from cogment_model_registry.storage.postgres.publishing import (
    OwnSlot,
    Taken,
    UploadFinishedError,
    forget_appearances,
    take_missed,
    take_numbers,
)
from cogment_model_registry.storage.postgres.rows import TIME_OFFSET, version_values
from cogment_model_registry.storage.postgres.translation import UnclearError
from cogment_model_registry.system.tasks import TaskSet, run_to_end

_MEMBERS_MAX = 64
"""How many publishes can share a change, so that those of other servers get their turn."""

# A version becomes visible only if its upload, if it has a request id, was not finished on another server.
SHOW = """
WITH given AS (
    SELECT * FROM jsonb_to_recordset($5::jsonb)
        AS g(number bigint, created bigint, data_hash text, data_size bigint, signature text, user_data jsonb,
            tags jsonb, metrics jsonb, revision bigint, message text, request_id text, digest text)
),
finished AS (
    INSERT INTO transient_requests AS r
    SELECT request_id, digest, $2::text, $1, number, $4::bigint FROM given WHERE request_id <> ''
    ON CONFLICT (request_id) DO UPDATE SET digest = excluded.digest, model_id = excluded.model_id,
        life = excluded.life, number = excluded.number, finished = excluded.finished
        WHERE NOT EXISTS (SELECT FROM visible v WHERE v.life = r.life AND v.number = r.number)
    RETURNING number
),
accepted AS (SELECT * FROM given WHERE request_id = '' OR number IN (SELECT number FROM finished)),
shown AS (
    INSERT INTO transient (life, number, created, data_hash, data_size, signature, user_data, tags, metrics, revision,
        holders)
    SELECT $1, number, created, data_hash, data_size, signature, user_data, tags, metrics, revision, ARRAY[$3::integer]
    FROM accepted
),
appeared AS (INSERT INTO appearances SELECT $1, number, $4 FROM accepted ON CONFLICT DO NOTHING)
SELECT number, pg_notify('cogment_model_registry', message) FROM accepted ORDER BY number
"""

# Takes numbers if they are the next ones, below the durable mark, and the model demands no signatures.
_TAKE = """
UPDATE heads SET last_number = $3, stamp = pg_current_xact_id() FROM models m
WHERE heads.life = $1 AND heads.last_number = $2 AND m.life = $1 AND m.mark >= $3 AND m.signers = '{}'
    AND EXISTS (SELECT FROM servers WHERE server = $4)
"""
_TAKEN = "UPDATE 1"

_PREPARED = f"""
PREPARE take_expected(bigint, bigint, bigint, integer) AS {_TAKE};
PREPARE show_transient(bigint, text, integer, bigint, jsonb) AS {SHOW};
PREPARE forget(jsonb, integer) AS {FORGET}
"""


def _literal(text: str) -> str:
    """Return a text as a literal of SQL; ``standard_conforming_strings`` must be on."""
    return "'" + text.replace("'", "''") + "'"


class _Slot(OwnSlot):
    """A slot that also makes versions invisible.

    Attributes:
        evicted: The versions.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.evicted: list[VersionInfo] = []

    def forget(self, evicted: Sequence[VersionInfo]) -> Sequence[VersionInfo]:
        self.evicted.extend(evicted)
        return ()


class _Member:
    """A publish in a batch.

    Attributes:
        taken: Its slot; None until it has one.
        left: The version to make visible; None if it failed, or has none.
        over: Done when the batch was committed.
        context: The context of the call, with its journal.
    """

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.taken: asyncio.Future[_Slot] = loop.create_future()
        self.left: asyncio.Future[VersionInfo | None] = loop.create_future()
        self.over: asyncio.Future[None] = loop.create_future()
        self.context = copy_context()

    def take(self, number: int, model_id: str) -> None:
        """Begin with a number of its own."""
        if self.left.done():
            return  # it has given up; its number stays used up
        try:
            check_version_number(number, model_id)
        except ModelRegistryError as error:
            self.fail(error)
        else:
            self.taken.set_result(_Slot(number))

    def leave(self, info: VersionInfo | None) -> None:
        """End the work of the publish; the batch is committed later."""
        if not self.left.done():
            self.left.set_result(info)

    def fail(self, error: ModelRegistryError) -> None:
        """Let the publish fail, unless it has ended."""
        for future in (self.taken, self.over):
            if not future.done():
                future.set_exception(error)
                future.exception()  # marked as retrieved, since the publish may have been cancelled
        self.leave(None)

    def end(self) -> None:
        """Let the publish return."""
        if not self.over.done():
            self.over.set_result(None)


class _Shown:
    """A version that is about to become visible."""

    def __init__(self, core: Core, ref: ModelRef, member: _Member, info: VersionInfo) -> None:
        self.member = member
        self.info = info
        self.slot = member.taken.result()
        self.sending: Sending = core.sending(Note("shown", ref.model_id, ref.life, [info.number], info=info))
        self.held = Held(ref.life, info, self.slot.annotations)
        self._values = version_values(info, self.slot.annotations)

    def as_json(self) -> str:
        """Return the row of the version, its message and its request."""
        [message] = self.sending.messages
        asked = self.slot.request
        number, created, data_hash, size, signature, user_data, tags, metrics, revision = self._values
        row = {
            "number": number,
            "created": created,
            "data_hash": data_hash,
            "data_size": size,
            "signature": signature,
            "revision": revision,
            "message": message,
            "request_id": asked.request_id if asked else "",
            "digest": asked.digest if asked else "",
        }
        # The others are JSON already.
        return f'{json.dumps(row)[:-1]}, "user_data": {user_data}, "tags": {tags}, "metrics": {metrics}}}'


class _Batch:
    """Publishes that share one change.

    Attributes:
        members: The publishes.
        is_open: Whether others may join.
    """

    def __init__(self, core: Core, ref: ModelRef) -> None:
        self.members: list[_Member] = []
        self.is_open = True
        self._core = core
        self._ref = ref
        self._numbered: list[_Member] = []  # those that have a number
        self._expected = 0  # the number before the first one; None if it is not known

    def join(self) -> _Member:
        """Return a new member."""
        member = _Member()
        self.members.append(member)
        self.is_open = len(self.members) < _MEMBERS_MAX
        return member

    async def run(self) -> None:
        """Wait for the turn, and make the change."""
        failure: ModelRegistryError = UnavailableError("the catalog did not take the change")
        changes, model_id = self._core.changes, self._ref.model_id
        try:
            async with changes.entered(model_id, prepared=_PREPARED, beginning=self._close) as change:
                if self._numbered:
                    await self._change(change)
        except ModelRegistryError as error:
            failure = error
        finally:
            self.is_open = False
            for member in self.members:
                member.fail(failure)

    def _close(self) -> str:
        """Admit no more members; return the statement that takes the numbers, if the next numbers are known."""
        core, life = self._core, self._ref.life
        self.is_open = False
        self._numbered = [member for member in self.members if not member.left.done()]
        line = core.lines.find(self._ref.model_id)
        heard = line.history.last_number if line is not None and line.life == life else 0
        self._expected = max(core.given.get(life, 0), heard)
        if not self._numbered or not self._expected:
            return ""
        last = self._expected + len(self._numbered)
        return f"EXECUTE take_expected({life}, {self._expected}, {last}, {core.server})"

    async def _take_numbers(self, change: Change) -> Taken:
        core, life = self._core, self._ref.life
        if change.began != _TAKEN:  # another server has published, or the statement was not run
            return await take_numbers(core, change, self._ref, len(self._numbered))
        core.given[life] = self._expected + len(self._numbered)
        core.signers[life] = ()
        return Taken(self._expected + 1, is_raised=False)

    async def _change(self, change: Change) -> None:
        core, ref = self._core, self._ref
        try:
            taken = await self._take_numbers(change)
            for number, member in enumerate(self._numbered, taken.first):
                member.take(number, ref.model_id)
            await asyncio.wait([member.left for member in self._numbered])
            await self._end(change, durably=taken.is_raised)
            for member in self._numbered:
                member.end()
        finally:
            core.signers.pop(ref.life, None)

    async def _end(self, change: Change, *, durably: bool) -> None:
        """Commit the versions of the members."""
        core, ref = self._core, self._ref
        left = [(member, info) for member in self._numbered if (info := member.left.result())]
        shown = _without_repeated([_Shown(core, ref, member, info) for member, info in left])
        evicted = [info for member, _ in left for info in member.taken.result().evicted]
        forgotten = [held for info in evicted if (held := let_go(core, info))]
        doing = ""
        if forgotten:
            # It is not known here which of them other servers have: versions that are lost are announced to this server
            # like changes by another server.
            sent = [message for held in forgotten for message in messages(0, 0, [lost_note(held)])]
            doing = f"EXECUTE forget({_literal(forgotten_json(forgotten, sent))}, {change.server}); "
        try:
            if shown:
                await self._show(change, shown, doing, durably=durably)
            else:
                await change.commit(durably=durably, doing=doing)
        except BaseException:
            core.forgotten.extend(forgotten)
            raise

    async def _show(self, change: Change, shown: Sequence[_Shown], doing: str, *, durably: bool) -> None:
        """Commit the rows of versions, after other statements, and record those that have become visible."""
        core, ref = self._core, self._ref
        first, last = shown[0].info.number, shown[-1].info.number
        await forget_appearances(change, ref, first, last)
        await take_missed(core, ref, first)
        now = time_ns() - TIME_OFFSET
        rows = f"[{','.join(each.as_json() for each in shown)}]"
        accepted = shown
        if any(each.slot.request for each in shown):
            values = ref.life, ref.model_id, change.server, now, rows
            found = {row["number"] for row in await change.fetch("show transient", SHOW, *values)}
            accepted = [each for each in shown if each.info.number in found]
        else:  # in one message with the commit
            texts = _literal(ref.model_id), _literal(rows)
            doing += f"EXECUTE show_transient({ref.life}, {texts[0]}, {change.server}, {now}, {texts[1]}); "
        await self._commit(change, accepted, doing, durably=durably)
        for each in shown:
            if each not in accepted:
                each.member.fail(UploadFinishedError())

    async def _commit(self, change: Change, accepted: Sequence[_Shown], doing: str, *, durably: bool) -> None:
        core = self._core
        for each in accepted:
            core.held[each.info.model_id, each.info.number] = each.held
        try:
            await change.commit(durably=durably, doing=doing)
        except UnclearError:
            core.unclear.extend(each.held for each in accepted)
            raise
        except BaseException:
            for each in accepted:
                core.held.pop((each.info.model_id, each.info.number), None)
            raise
        for each in accepted:
            each.sending.take()
            each.member.context.run(each.slot.record_created, each.info)


def _without_repeated(shown: Sequence[_Shown]) -> list[_Shown]:
    """Return the members whose uploads were not finished before; let the others fail."""
    kept: list[_Shown] = []
    request_ids: set[str] = set()
    for each in shown:
        request = each.slot.request
        if request is not None and request.request_id in request_ids:
            each.member.fail(UploadFinishedError())
            continue
        if request is not None:
            request_ids.add(request.request_id)
        kept.append(each)
    return kept


class Batches:
    """Publishes transient versions.

    Args:
        core: The state of the catalog.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._open: dict[ModelRef, _Batch] = {}
        self._tasks = TaskSet()

    async def close(self) -> None:
        """End publishes in progress, whose connections are closed."""
        await self._tasks.cancel()

    @asynccontextmanager
    async def publishing(self, ref: ModelRef) -> AsyncGenerator[Slot, None]:
        """Return the change that publishes a transient version; see `Catalog.publishing`."""
        member = self._join(ref)
        try:
            slot = await asyncio.shield(member.taken)
            yield slot
            member.leave(slot.info)
        except BaseException:
            member.leave(None)
            if member.taken.done():  # the number is used up before the error is reported
                with contextlib.suppress(ModelRegistryError):
                    await run_to_end(_done(member.over))
            raise
        await run_to_end(_done(member.over))

    def _join(self, ref: ModelRef) -> _Member:
        batch = self._open.get(ref)
        if batch is None or not batch.is_open:
            batch = self._open[ref] = _Batch(self._core, ref)
            self._tasks.begin(self._run(ref, batch))
        return batch.join()

    async def _run(self, ref: ModelRef, batch: _Batch) -> None:
        try:
            await batch.run()
        finally:
            if self._open.get(ref) is batch:
                del self._open[ref]


async def _done(future: "asyncio.Future[None]") -> None:
    await future
