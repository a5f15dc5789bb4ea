"""An upload of one version: sent again only if the server cannot have received it."""

from collections.abc import Iterator
from dataclasses import dataclass

from cogment_model_registry.client.backends import Channel
from cogment_model_registry.client.calls import Calls, method_path
from cogment_model_registry.client.connection import Subject
from cogment_model_registry.client.deadlines import Deadline
from cogment_model_registry.client.progress import Report
from cogment_model_registry.client.sources import Source
from cogment_model_registry.records.versions import VersionHeader, VersionInfo
from cogment_model_registry.wire import convert
from cogment_model_registry.wire.frames import build_body

CHUNK_BYTES = 2 * 1024 * 1024
"""The size of the chunks of an upload: that of the stock SDK, which all servers accept."""


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
