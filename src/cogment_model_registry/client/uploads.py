"""Uploads of versions: sent again only if the server cannot have received them."""

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

from cogment_model_registry.client import sources
from cogment_model_registry.client.arguments import (
    UserData,
    checked_id,
    checked_user_data,
)
from cogment_model_registry.client.backends import Channel
from cogment_model_registry.client.calls import Calls, method_path
from cogment_model_registry.client.connection import Subject
from cogment_model_registry.client.deadlines import Deadline, Timeouts, transfer_deadline
from cogment_model_registry.client.progress import Report, Wish, reporting
from cogment_model_registry.client.sources import Source
from cogment_model_registry.errors import DataLossError, NotFoundError, TimedOutError, quoted
from cogment_model_registry.records.versions import VersionHeader, VersionInfo
from cogment_model_registry.wire import convert
from cogment_model_registry.wire.frames import build_body

CHUNK_BYTES = 2 * 1024 * 1024
"""The size of the chunks of an upload: that of the stock SDK, which all servers accept."""


class Uploads:
    """Publishes and stores versions.

    Args:
        calls: Makes calls.
        timeouts: How long they may take.
        progress: How to report the progress by default.
        create_missing: Creates a model for its first version.
        preparations: Those under way, so that `close` ends them.
    """

    def __init__(
        self,
        calls: Calls,
        timeouts: Timeouts,
        progress: Wish,
        create_missing: Callable[[str, Deadline], Awaitable[None]],
        preparations: set[sources.Preparation],
    ) -> None:
        self._calls = calls
        self._backend = calls.backend
        self._timeouts = timeouts
        self._progress = progress
        self._create_missing = create_missing
        self._preparations = preparations

    async def upload(
        self,
        model_id: str,
        data: sources.Data,
        user_data: UserData | None,
        *,
        archived: bool,
        create: bool,
        timeout: float | None,
        progress: Wish,
    ) -> VersionInfo:
        """See `ModelRegistry.publish` and `ModelRegistry.store`."""
        noted = checked_user_data(user_data)
        what = f"{'storing' if archived else 'publishing'} a version of model {quoted(checked_id(model_id))}"
        subject = Subject(what, model_id)
        deadline = self._timeouts.wanted(timeout)
        source, data_hash = await self._prepared(data, subject, deadline)
        deadline = deadline or transfer_deadline(source.size_bytes)
        try:
            header = VersionHeader(model_id, archived, source.size_bytes, data_hash, user_data=noted)
            with reporting(what, source.size_bytes, self._progress if progress is None else progress) as report:
                upload = Upload(self._calls, header, source, subject, deadline, report)
                try:
                    info = await upload.run()
                except NotFoundError:
                    if not create:
                        raise
                    await self._create_missing(model_id, deadline)
                    info = await upload.run()
            source.finish()
        finally:
            source.close()
        if info.data_hash != data_hash or info.data_size_bytes != source.size_bytes:
            raise DataLossError.version(model_id, info.number, "the server stored other bytes than were sent")
        return info

    async def _prepared(self, data: sources.Data, subject: Subject, deadline: Deadline | None) -> sources.Prepared:
        """Return the data to upload, once its size and hash are known."""
        preparation = sources.Preparation(data)
        if preparation.prepared.done():
            return preparation.prepared.result()
        self._preparations.add(preparation)
        try:
            self._calls.check_open()  # it may have been closed before that
            return await self._backend.wait(preparation.prepared, deadline.left_seconds() if deadline else None)
        except BaseException as error:
            is_late = isinstance(error, TimeoutError) and not preparation.prepared.done()
            preparation.abandon()
            if is_late:
                message = f"{subject.text}: its bytes could not be read in time"
                raise TimedOutError(message, model_id=subject.model_id) from None
            raise
        finally:
            self._preparations.discard(preparation)


@dataclass(slots=True)
class Upload:
    """The upload of one version; it can be run again if the version did not arrive."""

    _calls: Calls
    _header: VersionHeader
    _source: Source
    _subject: Subject
    _deadline: Deadline
    _report: Report
    _attempt: "_Attempt | None" = None

    async def run(self) -> VersionInfo:
        """Upload, and repeat as long as the server cannot have received it."""
        return await self._calls.retrying(self._once, self._subject, self._deadline, may_be_done=self._may_be_done)

    def _may_be_done(self) -> bool:
        return self._attempt is not None and self._attempt.is_all_sent

    async def _once(self, channel: Channel) -> VersionInfo:
        attempt = self._attempt = _Attempt()
        self._report.restart()
        try:
            reply = await self._calls.backend.upload(
                channel, method_path("CreateVersion"), self._messages(attempt), self._deadline.left_seconds()
            )
        finally:
            attempt.is_over = True
        return convert.version_from_reply(reply)

    def _messages(self, attempt: "_Attempt") -> Iterator[bytes]:
        left_bytes = self._source.size_bytes
        attempt.is_all_sent = not left_bytes
        yield convert.encode_header(self._header)
        try:
            for block in self._source.blocks(CHUNK_BYTES):
                left_bytes -= len(block)
                # From here on it is not known what the server has, until it answers.
                attempt.is_all_sent = not left_bytes
                yield build_body(block)
                if attempt.is_over:
                    return  # gRPC's thread may still be here although the call is over
                self._report.advance(len(block))
        except (OSError, ValueError):
            if not attempt.is_over:  # otherwise the source was closed in the meantime
                raise


@dataclass(slots=True)
class _Attempt:
    """One of the attempts of an upload.

    Attributes:
        is_all_sent: Whether the last bytes were handed to gRPC.
        is_over: Whether its call has ended.
    """

    is_all_sent: bool = False
    is_over: bool = False
