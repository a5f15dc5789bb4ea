"""Versions of some models as files in a directory, each of them whole, as they appear.

The files are `DIRECTORY/MODEL/NUMBER.bin`: see `model_folder`. A version whose file is there, with its size and its
hash, is not fetched. What exists when a mirror begins is sent without bytes, since its files may be there; later
versions come with their bytes where they are small.
"""

import hashlib
import os
import string
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import TypeAlias

from cogment_model_registry.client.calls import Calls
from cogment_model_registry.client.deadlines import CALL_SECONDS, Backoff, Deadline
from cogment_model_registry.client.failures import Subject
from cogment_model_registry.client.lifecycle_calls import missing_service
from cogment_model_registry.client.retrievals import Retrievals
from cogment_model_registry.client.signatures import Trust, verified
from cogment_model_registry.client.threads import submit
from cogment_model_registry.client.watch_streams import Received, Wishes, stream
from cogment_model_registry.client.watching import ARCHIVED, CHECK_SECONDS, Connected, Disconnected, stream_seconds
from cogment_model_registry.errors import (
    DataLossError,
    NotFoundError,
    TimedOutError,
    UnavailableError,
    WrongServerError,
    counted,
)
from cogment_model_registry.records.lifecycle import Version
from cogment_model_registry.records.news import CaughtUp, Gap, Gone, Saved
from cogment_model_registry.records.payload import hash_of
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.system.replacement import Replacement
from cogment_model_registry.wire import messages

_PLAIN = frozenset(string.ascii_letters + string.digits + "-_.")
"""The characters of an id that stay as they are in the name of a folder."""

_FOLDER_MAX_CHARACTERS = 180
"""How much of a long id such a name has; the hash that follows makes it unique."""

_READ_BYTES = 1024 * 1024

_Event: TypeAlias = Saved | Gap | Connected | Disconnected


def model_folder(model_id: str) -> str:
    """Return the name of the folder of a model: its id, with some characters as the bytes of UTF-8, such as ``%2F``.

    Those are all but letters and digits of ASCII, ``-``, ``_`` and ``.``, and a dot at the beginning or the end. If
    that is longer than 180 characters, they are followed by ``~`` and 32 digits of the id's SHA-256. So two ids have
    the same name nowhere but where the file system ignores case.
    """
    last = len(model_id) - 1
    name = "".join(
        character if character in _PLAIN and not (character == "." and index in (0, last)) else _escaped(character)
        for index, character in enumerate(model_id)
    )
    if len(name) <= _FOLDER_MAX_CHARACTERS:
        return name
    return f"{name[:_FOLDER_MAX_CHARACTERS]}~{hashlib.sha256(model_id.encode()).hexdigest()[:32]}"


def _escaped(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode())


class Mirror:
    """Writes the versions of some models to files.

    Args:
        calls: Makes the calls.
        retrievals: Fetches the versions that come without their bytes.
        directory: Where the files go.
        model_ids: The models; none for all.
        after: The number after which to begin, in models that are not created again.
        archived: Whether to take archived versions only.
        inline_max_bytes: The size up to which versions should come with their bytes.
        trust: Verifies the versions; None for no check.
    """

    def __init__(
        self,
        calls: Calls,
        retrievals: Retrievals,
        directory: Path,
        model_ids: Sequence[str],
        *,
        after: int,
        archived: bool,
        inline_max_bytes: int,
        trust: Trust | None = None,
    ) -> None:
        self._trust = trust
        self._calls = calls
        self._retrievals = retrievals
        self._directory = directory
        self._model_ids = model_ids
        self._after = after
        self._created_again: set[str] = set()
        self._inline_max_bytes = inline_max_bytes
        self._wishes = Wishes(every=True, accepted=ARCHIVED if archived else "", ends_with_model=False)

    async def events(self) -> AsyncGenerator[_Event, None]:
        """Yield each version once its file is there, gaps, and the changes of the connection.

        Raises:
            ModelRegistryError: The server does not have the call.
            OSError: A file cannot be written.
        """
        await self._calls.backend.wait(submit(lambda: self._directory.mkdir(parents=True, exist_ok=True)))
        subject = Subject(f"watching {counted(len(self._model_ids), 'model') if self._model_ids else 'all models'}")
        backoff = Backoff()
        while True:
            try:
                await self._check(subject)
                yield Connected()
                async with aclosing(
                    stream(self._calls, self._model_ids, subject, self._wishes, stream_seconds())
                ) as news:
                    async for event in news:
                        backoff = Backoff()
                        if isinstance(event, CaughtUp) and self._wishes.inline_max_bytes != self._inline_max_bytes:
                            self._wishes.inline_max_bytes = self._inline_max_bytes
                            break
                        result = await self._taken(event)
                        if result is not None:
                            yield result
            except WrongServerError as error:
                raise missing_service(subject) from error
            except (UnavailableError, TimedOutError) as error:
                yield Disconnected(error)
                await self._calls.backend.sleep(backoff.next_seconds(error))

    async def _check(self, subject: Subject) -> None:
        """Check that the server answers: a stream without events looks like a dead one."""
        calls, deadline = self._calls.without_retries(), Deadline(CHECK_SECONDS)
        await calls.unary("Version", messages.VersionRequest(), messages.ServiceVersionInfo, subject, deadline)

    async def _taken(self, event: object) -> Saved | Gap | None:
        """Return what comes of an event."""
        if isinstance(event, Version):
            event = Received(event.info)
        if isinstance(event, Gone) and event.version_number is None:
            self._created_again.add(event.model_id)
        elif isinstance(event, Received) and event.version.number > self._begin(event.version.model_id):
            return await self._saved(event.version, event.data)
        elif isinstance(event, Gap) and event.last_number > self._begin(event.model_id):
            first = max(event.first_number, self._begin(event.model_id) + 1)
            return Gap(event.model_id, first, event.last_number)
        return None

    def _begin(self, model_id: str) -> int:
        return 0 if model_id in self._created_again else self._after

    async def _saved(self, info: VersionInfo, data: bytes | None) -> Saved | Gap:
        """Write the file of a version, unless it is there; return a gap if the version is gone or damaged.

        Raises:
            SignatureError: None of the keys has signed it.
        """
        if self._trust is not None:
            try:
                info = await verified(self._calls, info, info.model_id, self._trust, Deadline(CALL_SECONDS))
            except NotFoundError:
                return Gap(info.model_id, info.number, info.number)
        path = self._directory / model_folder(info.model_id) / f"{info.number:06}.bin"
        if not await self._calls.backend.wait(submit(lambda: _prepare(path, info))):
            if data is not None:
                await self._write(path, data)
            else:
                try:
                    verify = self._trust or False
                    await self._retrievals.download(
                        info, path, info, None, False, archived=False, resume=False, verify=verify
                    )
                except (NotFoundError, DataLossError):
                    return Gap(info.model_id, info.number, info.number)
        return Saved(info, str(path))

    async def _write(self, path: Path, data: bytes) -> None:
        replacement = Replacement(path)

        def write() -> None:
            replacement.open().write(data)
            replacement.commit()

        try:
            await self._calls.backend.wait(submit(write))
        finally:
            replacement.close()


def _prepare(path: Path, info: VersionInfo) -> bool:
    """Create the folder of a file, and return whether the file is there with the bytes of a version."""
    path.parent.mkdir(exist_ok=True)
    try:
        with path.open("rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_size != info.data_size_bytes:
                return False
            return hash_of(iter(partial(file.read, _READ_BYTES), b"")) == info.data_hash
    except FileNotFoundError:
        return False
