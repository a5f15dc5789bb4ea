"""The commit of a version: its record is created, once.

When the store does not answer, the record may exist, now or later. Then the number is made void, by creating a void
record of it: either that succeeds, and the record can never exist, or it fails because the record exists, and the
version is committed. If the store answers neither, that is done later, and a record that exists is replaced by a
void one, since the caller was told that the version does not. It is not deleted: what the network still has of the
request could create it again.

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
        name = layout.version_name(self._life, record.info.number)
        try:
            await self._home.objects.create(name, layout.build_record(record))
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
            text = await objects.find(name)
            if text is None:
                raise UnavailableError("the archive failed: the object store contradicts itself") from None
            with contextlib.suppress(layout.BadObject):
                found = layout.parse_record(text, record.info.model_id, number)
                if found is not None and found.key == record.key:
                    return _Outcome.COMMITTED
        return _Outcome.VOID

    def _doubt(self, record: Record) -> None:
        """Leave it for later to see that the version does not exist."""
        _log.warning("record of a version in doubt", model_id=record.info.model_id, number=record.info.number)
        self._home.forget_record(self._life, record.info.number)
        self._home.doubts.add((self._life, record.info.number))
        self._home.chores.settle_soon(lambda: self._undo(record))

    async def _undo(self, record: Record) -> None:
        if await self._settle(record) is _Outcome.COMMITTED:
            await make_void(self._home, self._life, record.info.number)
        await self._home.objects.delete([layout.hint_name(self._life, record.info.number, record)])
        self._home.chores.delete_data_soon(record.key, layout.data_names(self._life, record))
        self._home.doubts.discard((self._life, record.info.number))


async def make_void(home: Holdings, life: str, number: int) -> None:
    """Make a number void, whatever record it has, so that nothing can create one again.

    Raises:
        UnavailableError: The store failed.
    """
    await home.objects.put(layout.hint_name(life, number, None), b"")
    await home.objects.put(layout.version_name(life, number), layout.build_void())
    home.forget_record(life, number)


def _unconfirmed() -> UnavailableError:
    return UnavailableError("the archive failed: the object store did not confirm the version; store it again")
