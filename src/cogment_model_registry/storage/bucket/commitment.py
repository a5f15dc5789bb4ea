"""The commit of a version: its record is created, once.

When the store does not answer, the record may exist, now or later. Then the number is made void, by creating a void
record of it: either that succeeds, and the record can never exist, or it fails because the record exists, and the
version is committed. If the store answers neither, that is done later, and a record that exists is replaced by a
void one, since the caller was told that the version does not. It is not deleted: what the network still has of the
request could create it again.

A promotion that failed leaves a version in memory whose number is void. Where several servers share the archive, a
later promotion replaces the void record, if that is still as it was read while this server could still write. So each
void record has a text of its own, whoever makes a number void replaces what was read, too, and does so again where it
is void already: then nothing that is still under way in the network can replace it.

The bytes of a version that failed are deleted only when its record cannot exist.
"""

import asyncio
import contextlib
import enum

import structlog

from cogment_model_registry.errors import ModelRegistryError, TooLargeError, UnavailableError
from cogment_model_registry.storage.bucket import layout
from cogment_model_registry.storage.bucket.holdings import Holdings
from cogment_model_registry.storage.bucket.layout import Record
from cogment_model_registry.storage.bucket.objects import Written
from cogment_model_registry.storage.bucket.translation import ObjectExists

_log = structlog.stdlib.get_logger(__name__)


class _Outcome(enum.Enum):
    COMMITTED = enum.auto()
    VOID = enum.auto()


class Commitment:
    """The commit of one version.

    Args:
        home: What the archive has.
        life: The life of the model.

    Attributes:
        keeps_data: Whether the bytes must stay: a record leads to them, or may.
    """

    def __init__(self, home: Holdings, life: str) -> None:
        self._home = home
        self._life = life
        self.keeps_data = False
        self._may_replace = False

    async def make(self, record: Record) -> None:
        """Create the record; see `Upload.commit`."""
        await self._home.require_upload(record.info.model_id, self._life, record.key)
        # Created at the same time: a start trusts a hint only where there is a record too.
        hinting = asyncio.ensure_future(self._put_hint(record))
        self.keeps_data = True
        try:
            await self._create(record)
        finally:
            await asyncio.wait([hinting])
        self._home.keep_record(self._life, record)
        try:
            # This process may have lost the right to write, and others may have looked before the record was there.
            await self._home.require_writable()
        except ModelRegistryError:
            self._doubt(record)
            raise

    async def _put_hint(self, record: Record) -> None:
        with contextlib.suppress(ModelRegistryError):  # without it, a start reads the record
            await self._home.objects.put(layout.hint_name(self._life, record.info.number, record), b"")

    async def _create(self, record: Record) -> None:
        try:
            await self._write(record)
        except TooLargeError:
            self._give_up(record)
            raise
        except (ObjectExists, UnavailableError) as error:
            try:
                outcome = await self._settle(record)
            except ModelRegistryError:
                self._doubt(record)
                raise error if isinstance(error, UnavailableError) else _unconfirmed() from error
            if outcome is _Outcome.VOID:
                self._give_up(record)
                raise _unconfirmed() from error

    async def _write(self, record: Record) -> None:
        objects, name = self._home.objects, layout.version_name(self._life, record.info.number)
        try:
            await objects.create(name, layout.build_record(record))
        except ObjectExists:
            if not self._home.is_shared:
                raise
            before = await objects.find_written(name)
            if before is None or not layout.is_void(before.data):
                raise
            # After it was read: whoever undoes what this server began has taken its lease first.
            await self._home.require_upload(record.info.model_id, self._life, record.key)
            self._may_replace = True
            await objects.replace(name, layout.build_record(record), before)

    def _give_up(self, record: Record) -> None:
        self.keeps_data = False
        self._home.chores.delete_soon([layout.hint_name(self._life, record.info.number, record)])

    async def _settle(self, record: Record) -> _Outcome:
        """Return whether the record exists; if not, it never will.

        Raises:
            UnavailableError: The store failed.
        """
        objects, number = self._home.objects, record.info.number
        name = layout.version_name(self._life, number)
        # First: with this hint, a start reads the record, whatever the hint of the version says that may be there too.
        await objects.put(layout.hint_name(self._life, number, None), b"")
        try:
            await objects.create(name, layout.build_void())
        except ObjectExists:
            found = await objects.find_written(name)
            if found is None:
                raise UnavailableError("the archive failed: the object store contradicts itself") from None
            if _is_of(found, record):
                return _Outcome.COMMITTED
            if self._may_replace and layout.is_void(found.data):
                try:
                    await objects.replace(name, layout.build_void(), found)
                except ObjectExists:
                    found = await objects.find_written(name)
                    if found is not None and _is_of(found, record):
                        return _Outcome.COMMITTED
        return _Outcome.VOID

    def _doubt(self, record: Record) -> None:
        """Leave it for later to see that the version does not exist."""
        _log.warning("record of a version in doubt", model_id=record.info.model_id, number=record.info.number)
        self._home.forget_record(self._life, record.info.number)
        self._home.doubts.add((self._life, record.info.number))
        self._home.chores.settle_soon(lambda: self._undo(record))

    async def _undo(self, record: Record) -> None:
        objects, number = self._home.objects, record.info.number
        if await self._settle(record) is _Outcome.COMMITTED:
            name = layout.version_name(self._life, number)
            found = await objects.find_written(name)
            if found is not None and _is_of(found, record):
                with contextlib.suppress(ObjectExists):  # undone by somebody else
                    await write_void(self._home, self._life, number, found)
        await objects.delete([layout.hint_name(self._life, number, record)])
        self._home.chores.delete_data_soon(record.key, layout.data_names(self._life, record))
        self._home.doubts.discard((self._life, number))


async def write_void(home: Holdings, life: str, number: int, before: Written | None) -> None:
    """Make a number void, so that nothing can create a record of it again.

    Args:
        home: What the archive has.
        life: The life of the model.
        number: The number.
        before: The record that is there, which may be void already; None if there is none.

    Raises:
        ObjectExists: Several servers share the archive, and the record was changed since it was read.
        UnavailableError: The store failed.
    """
    objects, name = home.objects, layout.version_name(life, number)
    await objects.put(layout.hint_name(life, number, None), b"")
    if not home.is_shared:  # its store may not be able to replace what is as it was read
        await objects.put(name, layout.build_void())
    elif before is None:
        await objects.create(name, layout.build_void())
    else:
        await objects.replace(name, layout.build_void(), before)
    home.forget_record(life, number)


def _is_of(written: Written, record: Record) -> bool:
    """Return whether an object is a record that leads to the same bytes."""
    with contextlib.suppress(layout.BadObject):
        found = layout.parse_record(written.data, record.info.model_id, record.info.number)
        return found is not None and found.key == record.key
    return False


def _unconfirmed() -> UnavailableError:
    return UnavailableError("the archive failed: the object store did not confirm the version; store it again")
