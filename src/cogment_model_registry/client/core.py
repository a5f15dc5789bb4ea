"""The logic of the client, written once for both flavours; see `backends`."""

import contextlib
import functools
import io
import os
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import IO, ClassVar, SupportsIndex, TypeAlias, TypedDict, TypeVar

from cogment_model_registry.client import lookups, sources, watching
from cogment_model_registry.client.arguments import (
    SupportsItem,
    UserData,
    asked_for,
    checked_id,
    checked_key,
    checked_metrics,
    checked_number,
    checked_path,
    checked_seconds,
    checked_tags,
    checked_text,
    checked_user_data,
    checked_whole,
)
from cogment_model_registry.client.backends import Backend, Channel
from cogment_model_registry.client.cache import Cache
from cogment_model_registry.client.calls import Calls, method_path
from cogment_model_registry.client.connection import Connection, Subject
from cogment_model_registry.client.deadlines import Deadline
from cogment_model_registry.client.downloads import Download
from cogment_model_registry.client.endpoints import locate
from cogment_model_registry.client.lifecycle import LifecycleCalls
from cogment_model_registry.client.progress import Wish, reporting
from cogment_model_registry.client.threads import submit
from cogment_model_registry.client.uploads import Upload
from cogment_model_registry.errors import ClosedError, DataLossError, NotFoundError, TimedOutError, quoted
from cogment_model_registry.records.lifecycle import Alias, AliasChange, AnnotationChange, Version
from cogment_model_registry.records.versions import ModelInfo, VersionHeader, VersionInfo
from cogment_model_registry.system.replacement import Replacement
from cogment_model_registry.wire import convert, messages

_T = TypeVar("_T")

CALL_SECONDS = 30.0
"""How long a call that moves no data may take by default, with all retries."""

RETRY_SECONDS = 10.0
"""How long a call is retried by default while the registry is unavailable: longer than a restart takes."""

_TRANSFER_SECONDS = 60.0
_TRANSFER_BYTES_PER_SECOND = 1024 * 1024
_TRANSFER_MAX_SECONDS = 7 * 24 * 3600.0
"""How long a transfer may take by default: a minute, and what it takes at 1 MiB in a second; a week at most."""

_PROMOTE_SECONDS = 3600.0
"""How long a promotion may take by default: the server copies the bytes, however many, and sends none."""

Key: TypeAlias = SupportsIndex | str | VersionInfo | Version
"""What names a version: its number, -n for the n-th from the last, an alias, or a record of it."""

_RESOLVE_ATTEMPTS = 5
"""How often to look up a version again that was evicted, replaced or damaged before it could be fetched."""

CACHE_VARIABLE = "COGMENT_MODEL_REGISTRY_CACHE_DIR"


class Core:
    """The calls of a client.

    Args:
        calls: Makes calls.
        timeout_seconds: How long a call may take; None for the defaults.
        cache: The cache of downloads, if any.
        progress: How to report the progress of transfers by default.
    """

    def __init__(
        self,
        calls: Calls,
        timeout_seconds: float | None,
        cache: Cache | None,
        progress: Wish,
    ) -> None:
        self._calls = calls
        self._backend = calls.backend
        self._timeout_seconds = timeout_seconds
        self._cache = cache
        self._progress = progress
        self._preparations: set[sources.Preparation] = set()

    def on(self, backend: Backend) -> "Core":
        """Return the same client, calling and waiting in another way."""
        other = Core(self._calls.on(backend), self._timeout_seconds, self._cache, self._progress)
        other._preparations = self._preparations
        return other

    @property
    def calls(self) -> Calls:
        """The object that makes its calls."""
        return self._calls

    async def aclose(self) -> None:
        """Close the connection; calls under way end."""
        await self._calls.connection.aclose(self._backend)
        for preparation in list(self._preparations):
            preparation.give_up(ClosedError())

    # Models.

    async def create_model(
        self, model_id: str, user_data: UserData | None, timeout: float | None, *, replace: bool
    ) -> ModelInfo:
        """See `ModelRegistry.create_model`."""
        info = ModelInfo(checked_id(model_id), checked_user_data(user_data))
        deadline = self._call_deadline(timeout)
        if not replace:
            with contextlib.suppress(NotFoundError):
                return await self.get_model(model_id, deadline.left_seconds())
        request = messages.CreateOrUpdateModelRequest(model_info=convert.model_message(info))
        subject = Subject(f"creating model {quoted(model_id)}", model_id)
        await self._calls.unary("CreateOrUpdateModel", request, messages.CreateOrUpdateModelReply, subject, deadline)
        return info

    async def delete_model(self, model_id: str, timeout: float | None) -> None:
        """See `ModelRegistry.delete_model`."""
        subject = Subject(f"deleting model {quoted(checked_id(model_id))}", model_id)
        request = messages.DeleteModelRequest(model_id=model_id)
        deadline = self._call_deadline(timeout)
        await self._calls.unary(
            "DeleteModel", request, messages.DeleteModelReply, subject, deadline, is_idempotent=False
        )

    async def get_model(self, model_id: str, timeout: float | None) -> ModelInfo:
        """See `ModelRegistry.get_model`."""
        subject = Subject(f"looking up model {quoted(checked_id(model_id))}", model_id)
        request = messages.RetrieveModelsRequest(model_ids=[model_id])
        reply = await self._calls.unary(
            "RetrieveModels", request, messages.RetrieveModelsReply, subject, self._call_deadline(timeout)
        )
        for message in reply.model_infos:
            if message.model_id == model_id:
                return convert.model_from_message(message)
        raise NotFoundError.model(model_id)

    async def list_models(self, timeout: float | None) -> list[ModelInfo]:
        """See `ModelRegistry.list_models`."""
        models: dict[str, ModelInfo] = {}
        handle = ""
        deadline = self._call_deadline(timeout)
        while True:
            request = messages.RetrieveModelsRequest(model_handle=handle)
            subject = Subject("listing the models")
            reply = await self._calls.unary("RetrieveModels", request, messages.RetrieveModelsReply, subject, deadline)
            # Pages are cut by position: when models come and go between two pages, one may come twice, or not at all.
            models.update((message.model_id, convert.model_from_message(message)) for message in reply.model_infos)
            if not reply.model_infos or reply.next_model_handle in ("", handle):
                return list(models.values())
            handle = reply.next_model_handle

    # Versions.

    async def get_version(
        self, model_id: str, number: SupportsIndex | str, timeout: float | None, *, archived: bool
    ) -> VersionInfo:
        """See `ModelRegistry.get_version`."""
        key = checked_key(checked_id(model_id), number)
        deadline = self._call_deadline(timeout)
        if isinstance(key, str):  # an alias, which only archived versions have
            return (await LifecycleCalls(self._calls, deadline).get_version(model_id, key)).info
        look_up = lookups.one_archived if archived else lookups.one
        return await look_up(self._calls, model_id, key, deadline)

    async def list_versions(self, model_id: str, timeout: float | None, *, archived: bool) -> list[VersionInfo]:
        """See `ModelRegistry.list_versions`."""
        versions = await lookups.every(self._calls, checked_id(model_id), self._call_deadline(timeout))
        return [version for version in versions if version.archived or not archived]

    # The life of versions.

    def _lifecycle(self, timeout: float | None) -> LifecycleCalls:
        return LifecycleCalls(self._calls, self._call_deadline(timeout))

    async def describe_version(self, model_id: str, key: Key, timeout: float | None) -> Version:
        """See `ModelRegistry.describe_version`."""
        checked = checked_key(checked_id(model_id), key)
        return await self._lifecycle(timeout).get_version(model_id, checked)

    async def find_versions(
        self, model_id: str | None, accepted: str, order_by: str, limit: int | None, timeout: float | None
    ) -> list[Version]:
        """See `ModelRegistry.find_versions`."""
        return await self._lifecycle(timeout).find_versions(
            None if model_id is None else checked_id(model_id),
            checked_text("the filter", accepted),
            checked_text("order_by", order_by),
            None if limit is None else checked_whole("limit", limit),
        )

    async def update_version(
        self,
        model_id: str,
        key: Key,
        timeout: float | None,
        *,
        tags: Mapping[str, str | None],
        metrics: Mapping[str, float | SupportsItem | None],
        expected: int | None,
    ) -> Version:
        """See `ModelRegistry.update_version`."""
        checked = checked_key(checked_id(model_id), key)
        set_tags, remove_tags = checked_tags(tags)
        set_metrics, remove_metrics = checked_metrics(metrics)
        revision = 0 if expected is None else checked_whole("expected", expected)
        change = AnnotationChange(set_tags, remove_tags, set_metrics, remove_metrics, revision)
        return await self._lifecycle(timeout).update_version(model_id, checked, change)

    async def promote(self, model_id: str, key: Key, alias: str | None, timeout: float | None) -> Version:
        """See `ModelRegistry.promote`."""
        checked = checked_key(checked_id(model_id), key)
        aliases = [] if alias is None else [checked_text("the alias", alias)]
        deadline = self._wanted_deadline(timeout) or Deadline(_PROMOTE_SECONDS)
        return await LifecycleCalls(self._calls, deadline).promote_version(model_id, checked, aliases)

    async def delete_version(self, model_id: str, key: Key, timeout: float | None, *, force: bool) -> None:
        """See `ModelRegistry.delete_version`."""
        checked = checked_key(checked_id(model_id), key)
        await self._lifecycle(timeout).delete_version(model_id, checked, force=force)

    async def aliases(self, model_id: str, timeout: float | None) -> dict[str, Alias]:
        """See `ModelRegistry.aliases`."""
        what = f"listing the aliases of model {quoted(checked_id(model_id))}"
        summary = await self._lifecycle(timeout).summarize(model_id, what)
        return {alias.name: alias for alias in summary.aliases}

    async def set_alias(
        self, model_id: str, alias: str, key: Key, expected: int | None, timeout: float | None
    ) -> Alias:
        """See `ModelRegistry.set_alias`."""
        checked = checked_key(checked_id(model_id), key)
        what = f"setting alias {quoted(checked_text('the alias', alias))} of model {quoted(model_id)}"
        deadline = self._wanted_deadline(timeout) or Deadline(_PROMOTE_SECONDS)
        if isinstance(checked, str):
            checked = (await LifecycleCalls(self._calls, deadline).get_version(model_id, checked)).number
        revision = None if expected is None else checked_whole("expected", expected)
        changes = [AliasChange(alias, checked, revision)]
        return (await LifecycleCalls(self._calls, deadline).change_aliases(model_id, changes, what))[alias]

    async def remove_alias(self, model_id: str, alias: str, expected: int | None, timeout: float | None) -> None:
        """See `ModelRegistry.remove_alias`."""
        what = f"removing alias {quoted(checked_text('the alias', alias))} of model {quoted(checked_id(model_id))}"
        revision = None if expected is None else checked_whole("expected", expected)
        changes = [AliasChange(alias, None, revision)]
        await self._lifecycle(timeout).change_aliases(model_id, changes, what)

    # The server.

    async def status(self, timeout: float | None) -> dict[str, str]:
        """See `ModelRegistry.status`."""
        subject = Subject("asking for the status")
        request, deadline = messages.StatusRequest(names=["*"]), self._call_deadline(timeout)
        reply = await self._calls.unary("Status", request, messages.StatusReply, subject, deadline)
        return dict(reply.statuses)

    async def server_versions(self, timeout: float | None) -> dict[str, str]:
        """See `ModelRegistry.server_versions`."""
        subject = Subject("asking for the version")
        request, deadline = messages.VersionRequest(), self._call_deadline(timeout)
        reply = await self._calls.unary("Version", request, messages.ServiceVersionInfo, subject, deadline)
        return {part.name: part.version for part in reply.versions}

    def _call_deadline(self, timeout: float | None) -> Deadline:
        return self._wanted_deadline(timeout) or Deadline(CALL_SECONDS)

    def _wanted_deadline(self, timeout: float | None) -> Deadline | None:
        """Return the deadline of the caller, if it set one."""
        seconds = self._timeout_seconds if timeout is None else checked_seconds("timeout", timeout)
        return None if seconds is None else Deadline(seconds)

    # Uploads.

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
        deadline = self._wanted_deadline(timeout)
        source, data_hash = await self._prepared(data, subject, deadline)
        deadline = deadline or _default_deadline(source.size_bytes)
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

    async def _create_missing(self, model_id: str, deadline: Deadline) -> None:
        """Create a model for its first version, unless another client did so, perhaps with `user_data`."""
        await self.create_model(model_id, None, deadline.left_seconds(), replace=False)

    # Downloads.

    async def retrieve(
        self,
        model: str | VersionInfo | Version,
        version: Key,
        timeout: float | None,
        progress: Wish,
        *,
        archived: bool,
    ) -> bytes:
        """See `ModelRegistry.retrieve`."""
        # It returns its bytes without a copy.
        return (await self._retrieved(model, version, timeout, progress, archived=archived)).getvalue()

    async def retrieve_writable(self, version: VersionInfo, timeout: float | None, progress: Wish) -> memoryview:
        """Return the bytes of a version in memory of their own, which may be written to."""
        return (await self._retrieved(version, version, timeout, progress)).getbuffer()

    async def _retrieved(
        self,
        model: str | VersionInfo | Version,
        version: Key,
        timeout: float | None,
        progress: Wish,
        *,
        archived: bool = False,
    ) -> io.BytesIO:
        buffer = _Memory()
        await self._download(model, version, buffer, timeout, progress, archived=archived)
        return buffer

    async def download(
        self,
        model: str | VersionInfo | Version,
        path: str | os.PathLike[str],
        version: Key,
        timeout: float | None,
        progress: Wish,
        *,
        archived: bool,
    ) -> VersionInfo:
        """See `ModelRegistry.download`."""
        replacement = Replacement(checked_path("path", path))
        try:
            file = await self._on_thread(replacement.open)
            info = await self._download(model, version, file, timeout, progress, archived=archived)
            await self._on_thread(replacement.commit)
        finally:
            replacement.close()
        return info

    async def _download(
        self,
        model: str | VersionInfo | Version,
        version: Key,
        file: IO[bytes],
        timeout: float | None,
        progress: Wish,
        *,
        archived: bool,
    ) -> VersionInfo:
        """Write the bytes of a version to a file, and return the version."""
        deadline = self._wanted_deadline(timeout)

        async def looked_up() -> VersionInfo:
            left_seconds = deadline.left_seconds() if deadline else None
            return await self.get_version(model_id, number, left_seconds, archived=archived)

        model_id, number, known = asked_for(model, version)
        if known and archived:
            lookups.checked_archived(known)
        info = known or await looked_up()
        for _ in range(_RESOLVE_ATTEMPTS):
            try:
                await self._fetch(info, file, deadline, progress)
            except (NotFoundError, DataLossError):
                # A given version never changes, but another one may be the latest by now.
                again = known or await looked_up()
                if again == info:
                    raise
                info = again
            else:
                return info
        wanted = lookups.version_text(model_id, number, archived=archived)
        message = f"{wanted} was replaced {_RESOLVE_ATTEMPTS} times before it could be retrieved"
        raise NotFoundError(message, model_id=model_id)

    async def _fetch(self, info: VersionInfo, file: IO[bytes], deadline: Deadline | None, progress: Wish) -> None:
        """Write the bytes of a version to a file: those in the cache, or those of the server."""
        cache = self._cache
        if cache is not None and await self._on_thread(lambda: cache.copy_to(info, file)):
            return
        what = f"retrieving {lookups.version_text(info.model_id, info.number)}"
        subject = Subject(what, info.model_id, info.number)
        limit = deadline or _default_deadline(info.data_size_bytes)
        wish = self._progress if progress is None else progress
        number = checked_number(info.model_id, info.number)
        request = messages.RetrieveVersionDataRequest(model_id=info.model_id, version_number=number)
        with reporting(what, info.data_size_bytes, wish) as report:

            async def receive(channel: Channel) -> None:
                report.restart()
                file.seek(0)
                file.truncate()
                replies = self._backend.stream(
                    channel, method_path("RetrieveVersionData"), request.SerializeToString(), limit.left_seconds()
                )
                download = Download(info, file, self._backend)
                try:
                    while (message := await replies.read()) is not None:
                        data = convert.decode_data_chunk(message)
                        await download.write(data)
                        report.advance(len(data))
                    await download.finish()
                finally:
                    if self._calls.connection.is_usable():  # elsewhere their threads stand still
                        replies.cancel()
                        download.abandon()

            await self._calls.retrying(receive, subject, limit)
        if cache is not None:
            await self._on_thread(lambda: cache.keep(info, file))

    async def _on_thread(self, work: Callable[[], _T]) -> _T:
        """Return the result of work that may take long."""
        self._calls.check_open()
        return await self._backend.wait(submit(work))

    # News.

    def watch(
        self, model_id: str, after: int, patience_seconds: float, *, archived: bool
    ) -> AsyncGenerator[VersionInfo, None]:
        """See `ModelRegistry.watch`."""
        known = watching.Known(checked_whole("after", after))
        patience_seconds = checked_seconds("patience_seconds", patience_seconds)
        return watching.versions(self._calls, checked_id(model_id), known, patience_seconds, archived=archived)


class Options(TypedDict):
    """The arguments of a client; see `ModelRegistry`."""

    endpoint: str | None
    directory_endpoint: str | None
    directory_authentication_token: str | None
    timeout: float | None
    retry_seconds: float
    cache_dir: str | os.PathLike[str] | None
    cache_max_bytes: int
    progress: Wish


def open_core(backend: Backend, options: Options) -> Core:
    """Return what makes the calls of a client with these arguments."""
    location = locate(options["endpoint"], options["directory_endpoint"], options["directory_authentication_token"])
    directory, max_bytes = options["cache_dir"], checked_whole("cache_max_bytes", options["cache_max_bytes"])
    directory = os.environ.get(CACHE_VARIABLE, "") if directory is None else checked_path("cache_dir", directory)
    calls = Calls(backend, Connection(location), checked_seconds("retry_seconds", options["retry_seconds"]))
    timeout = options["timeout"]
    limit = None if timeout is None else checked_seconds("timeout", timeout)
    return Core(calls, limit, Cache(directory, max_bytes) if directory else None, options["progress"])


class Opened:
    """What both clients are besides their calls: their arguments, shown and pickled.

    Unpickled, or copied, it is another client with the same arguments: a connection belongs to one process.
    """

    _shown_as: ClassVar[str]
    _options: Options
    _core: Core

    def __repr__(self) -> str:
        connection = self._core.calls.connection
        state = ", closed" if connection.is_closed else ""
        return f"<{self._shown_as}: {connection.location}{state}>"

    def __reduce__(self) -> tuple[object, ...]:
        kind: Callable[..., Opened] = type(self)
        return functools.partial(kind, **self._options), ()


class _Memory(io.BytesIO):
    """Bytes whose views may outlive it: the garbage collector closes it, and may do so before it frees a view."""

    def close(self) -> None:
        """Free the bytes, unless views of them are left, which free them later."""
        with contextlib.suppress(BufferError):
            super().close()


def _default_deadline(size_bytes: int) -> Deadline:
    """Return the deadline of a transfer for which the caller set none."""
    return Deadline(min(_TRANSFER_SECONDS + size_bytes / _TRANSFER_BYTES_PER_SECOND, _TRANSFER_MAX_SECONDS))
