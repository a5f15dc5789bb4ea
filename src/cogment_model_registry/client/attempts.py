"""The attempts to upload one version.

A server with ModelLifecycle knows an upload by its id, so an attempt whose reply was lost is repeated. With
the original, an upload is sent again only if the server cannot have received it.

Small data is sent at once, in one round trip as with the original: the server is not asked from which byte on it wants
them. Of large data only the missing bytes are sent.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field

from cogment_model_registry.client.backends import Channel
from cogment_model_registry.client.blocks import Source
from cogment_model_registry.client.calls import Calls, method_path
from cogment_model_registry.client.deadlines import Deadline
from cogment_model_registry.client.failures import Subject
from cogment_model_registry.client.progress import Report
from cogment_model_registry.errors import ModelRegistryError, WrongServerError
from cogment_model_registry.records.uploads import UploadHeader
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.wire import convert, lifecycle
from cogment_model_registry.wire.frames import build_body, build_upload_data

CHUNK_BYTES = 2 * 1024 * 1024
"""The size of the chunks of an upload: that of the stock SDK, which all servers accept."""

_SMALL_BYTES = 1024 * 1024
"""Sending so many bytes again costs less than the question whether the server has them."""


@dataclass(slots=True)
class _Attempt:
    """One of the attempts of an upload.

    Attributes:
        is_all_sent: Whether the last bytes were handed to gRPC, or none were wanted.
        is_over: Whether its call has ended.
        offset: From where the server wants the bytes; None if the call ended before it said so.
    """

    is_all_sent: bool = False
    is_over: bool = False
    offset: "Future[int | None]" = field(default_factory=Future)

    def begin_at(self, offset: int | None) -> None:
        """Let the bytes follow, unless that was said before."""
        with suppress(InvalidStateError):
            self.offset.set_result(offset)

    def end(self) -> None:
        """End it, with what still waits for it."""
        self.is_over = True
        self.begin_at(None)


class Upload:
    """The upload of one version; it can be run again if the version did not arrive.

    Args:
        calls: Makes calls.
        header: The declaration of the version.
        source: Its bytes.
        subject: What errors are about.
        deadline: When to give up.
        report: Receives the progress.
    """

    def __init__(
        self,
        calls: Calls,
        header: UploadHeader,
        source: Source,
        *,
        subject: Subject,
        deadline: Deadline,
        report: Report,
    ) -> None:
        self.header = header
        self._calls = calls
        self._source = source
        self._subject = subject
        self._deadline = deadline
        self._report = report
        self._attempt = _Attempt()

    async def run(self) -> VersionInfo:
        """Upload, and repeat it until the server has answered.

        Raises:
            WrongServerError: The server does not have this call; nothing was done unless it says so.
        """
        is_small = self._source.size_bytes <= _SMALL_BYTES
        once = self._send_at_once if is_small else self._send_what_is_wanted
        return await self._calls.retrying(
            once, self._subject, self._deadline, may_be_done=self._may_be_done, is_repeatable=True
        )

    async def run_plain(self) -> VersionInfo:
        """Upload to any server, and repeat it as long as the server cannot have received it."""
        return await self._calls.retrying(
            self._send_plainly, self._subject, self._deadline, may_be_done=self._may_be_done
        )

    @property
    def is_plain(self) -> bool:
        """Whether nothing belongs to the version but what any server takes."""
        header = self.header
        return not (header.tags or header.metrics or header.aliases or header.version.signature)

    def require_plain(self, error: WrongServerError) -> None:
        """Refuse to upload to a server that takes only the bytes of a version.

        Raises:
            ModelRegistryError: Tags, metrics, an alias or a signature belong to the version.
        """
        if not self.is_plain:
            message = (
                f"{self._subject.text}: the server takes no tags, metrics, aliases and signatures, since it has no "
                f"{lifecycle.SERVICE_NAME}; it is the original one, or an older release"
            )
            raise ModelRegistryError(message, model_id=self._subject.model_id) from error

    def _may_be_done(self) -> bool:
        return self._attempt.is_all_sent

    def _begin(self) -> _Attempt:
        self._report.restart()
        self._attempt = _Attempt()
        return self._attempt

    async def _send_plainly(self, channel: Channel) -> VersionInfo:
        attempt = self._begin()
        first = convert.encode_header(self.header.version)
        try:
            reply = await self._calls.backend.upload(
                channel,
                method_path("CreateVersion"),
                self._messages(attempt, first, build_body),
                self._deadline.left_seconds(),
            )
        finally:
            attempt.end()
        return convert.version_from_reply(reply)

    async def _send_at_once(self, channel: Channel) -> VersionInfo:
        attempt = self._begin()
        first = lifecycle.encode_upload_header(self.header)
        try:
            reply = await self._calls.backend.upload(
                channel,
                _UPLOAD_PATH,
                self._messages(attempt, first, build_upload_data),
                self._deadline.left_seconds(),
                lifecycle.WHOLE_UPLOAD,
            )
        finally:
            attempt.end()
        return lifecycle.version_from_message(lifecycle.UploadVersionReply.FromString(reply).version).info

    async def _send_what_is_wanted(self, channel: Channel) -> VersionInfo:
        attempt = self._begin()
        versions: list[VersionInfo] = []

        def receive(reply: bytes) -> None:
            message = lifecycle.UploadVersionReply.FromString(reply)
            if message.WhichOneof("reply") == "version":
                versions.append(lifecycle.version_from_message(message.version).info)
            else:
                attempt.begin_at(message.next_offset)

        try:
            await self._calls.backend.exchange(
                channel, _UPLOAD_PATH, self._wanted_messages(attempt), receive, self._deadline.left_seconds()
            )
        finally:
            attempt.end()
        if not versions:
            raise convert.DecodeError
        return versions[0]

    def _wanted_messages(self, attempt: _Attempt) -> Iterator[bytes]:
        yield lifecycle.encode_upload_header(self.header)
        offset = attempt.offset.result()  # on a thread of gRPC's
        if offset is None:
            return
        if offset:
            self._report.advance(min(offset, self._source.size_bytes))
        yield from self._bodies(attempt, build_upload_data, offset)

    def _messages(
        self, attempt: _Attempt, first: bytes, build: Callable[[memoryview | bytes], bytes]
    ) -> Iterator[bytes]:
        attempt.is_all_sent = not self._source.size_bytes
        yield first
        yield from self._bodies(attempt, build)

    def _bodies(
        self, attempt: _Attempt, build: Callable[[memoryview | bytes], bytes], offset: int = 0
    ) -> Iterator[bytes]:
        left_bytes = self._source.size_bytes - offset
        attempt.is_all_sent = left_bytes <= 0
        try:
            for block in self._source.blocks(CHUNK_BYTES, offset):
                left_bytes -= len(block)
                # From here on it is not known what the server has, until it answers.
                attempt.is_all_sent = not left_bytes
                yield build(block)
                if attempt.is_over:
                    return  # gRPC's thread may still be here although the call is over
                self._report.advance(len(block))
        except (OSError, ValueError):
            if not attempt.is_over:  # otherwise the source was closed in the meantime
                raise


_UPLOAD_PATH = method_path("UploadVersion", lifecycle.SERVICE_NAME)
