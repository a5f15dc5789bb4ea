"""The logic of the client, written once for both flavours; see `backends`."""

import contextlib
import os
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import SupportsIndex

from cogment_model_registry.client import following, lookups, sources, watching
from cogment_model_registry.client.arguments import (
    UserData,
    checked_id,
    checked_key,
    checked_path,
    checked_seconds,
    checked_text,
    checked_user_data,
    checked_whole,
)
from cogment_model_registry.client.backends import Backend
from cogment_model_registry.client.cache import Cache
from cogment_model_registry.client.calls import Calls
from cogment_model_registry.client.consumers import Consumers
from cogment_model_registry.client.deadlines import Deadline, Timeouts
from cogment_model_registry.client.failures import Subject
from cogment_model_registry.client.lifecycle import Lifecycle
from cogment_model_registry.client.lifecycle_calls import look_up
from cogment_model_registry.client.mirroring import Mirror
from cogment_model_registry.client.models import Models
from cogment_model_registry.client.progress import Wish
from cogment_model_registry.client.retrievals import Retrievals
from cogment_model_registry.client.signatures import TrustedKeys, trust_of
from cogment_model_registry.client.uploads import Uploads
from cogment_model_registry.client.watch_streams import INLINE_MAX_BYTES
from cogment_model_registry.errors import ClosedError, NotFoundError, quoted
from cogment_model_registry.records.lifecycle import Version
from cogment_model_registry.records.news import Gap, News, Saved
from cogment_model_registry.records.versions import ModelInfo, VersionInfo
from cogment_model_registry.system.paths import expanded
from cogment_model_registry.wire import convert, messages


class Core:
    """The calls of a client.

    Args:
        calls: Makes calls.
        timeouts: How long they may take.
        cache: The cache of downloads, if any.
        progress: How to report the progress of transfers by default.
        preparations: Uploads whose bytes are being read, shared by all that `on` returns.

    Attributes:
        uploads: Publishes and stores.
        retrievals: Retrieves and downloads.
        lifecycle: What is done with versions that exist.
        models: What people decide about models.
        consumers: Who runs which version.
    """

    def __init__(
        self,
        calls: Calls,
        timeouts: Timeouts,
        cache: Cache | None,
        progress: Wish,
        preparations: set[sources.Preparation] | None = None,
    ) -> None:
        self._calls = calls
        self._timeouts = timeouts
        self._cache = cache
        self._progress = progress
        self._preparations = set() if preparations is None else preparations
        self.uploads = Uploads(calls, timeouts, progress, self._create_missing, self._preparations)
        self.retrievals = Retrievals(calls, timeouts, cache, progress)
        self.lifecycle = Lifecycle(calls, timeouts)
        self.models = Models(calls, timeouts)
        self.consumers = Consumers(calls, timeouts)

    def on(self, backend: Backend) -> "Core":
        """Return the same client, calling and waiting in another way."""
        return Core(self._calls.on(backend), self._timeouts, self._cache, self._progress, self._preparations)

    @property
    def calls(self) -> Calls:
        """The object that makes its calls."""
        return self._calls

    async def aclose(self) -> None:
        """Close the connection; calls under way end."""
        await self._calls.connection.aclose(self._calls.backend)
        for preparation in list(self._preparations):
            preparation.give_up(ClosedError())

    # Models.

    async def create_model(
        self, model_id: str, user_data: UserData | None, timeout: float | None, *, replace: bool
    ) -> ModelInfo:
        """See `ModelRegistry.create_model`."""
        info = ModelInfo(checked_id(model_id), checked_user_data(user_data))
        deadline = self._timeouts.of_call(timeout)
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
        deadline = self._timeouts.of_call(timeout)
        await self._calls.unary(
            "DeleteModel", request, messages.DeleteModelReply, subject, deadline, is_idempotent=False
        )

    async def get_model(self, model_id: str, timeout: float | None) -> ModelInfo:
        """See `ModelRegistry.get_model`."""
        subject = Subject(f"looking up model {quoted(checked_id(model_id))}", model_id)
        request = messages.RetrieveModelsRequest(model_ids=[model_id])
        reply = await self._calls.unary(
            "RetrieveModels", request, messages.RetrieveModelsReply, subject, self._timeouts.of_call(timeout)
        )
        for message in reply.model_infos:
            if message.model_id == model_id:
                return convert.model_from_message(message)
        raise NotFoundError.model(model_id)

    async def list_models(self, timeout: float | None) -> list[ModelInfo]:
        """See `ModelRegistry.list_models`."""
        models: dict[str, ModelInfo] = {}
        handle = ""
        deadline = self._timeouts.of_call(timeout)
        while True:
            request = messages.RetrieveModelsRequest(model_handle=handle)
            subject = Subject("listing the models")
            reply = await self._calls.unary("RetrieveModels", request, messages.RetrieveModelsReply, subject, deadline)
            # Pages are cut by position: when models come and go between two pages, one may come twice, or not at all.
            models.update((message.model_id, convert.model_from_message(message)) for message in reply.model_infos)
            if not reply.model_infos or reply.next_model_handle in ("", handle):
                return list(models.values())
            handle = reply.next_model_handle

    async def _create_missing(self, model_id: str, deadline: Deadline) -> None:
        """Create a model for its first version, unless another client did so, perhaps with `user_data`."""
        await self.create_model(model_id, None, deadline.left_seconds(), replace=False)

    # Versions.

    async def get_version(
        self, model_id: str, number: SupportsIndex | str, timeout: float | None, *, archived: bool
    ) -> VersionInfo:
        """See `ModelRegistry.get_version`."""
        key = checked_key(checked_id(model_id), number)
        return await look_up(self._calls, model_id, key, self._timeouts.of_call(timeout), archived=archived)

    async def list_versions(self, model_id: str, timeout: float | None, *, archived: bool) -> list[VersionInfo]:
        """See `ModelRegistry.list_versions`."""
        versions = await lookups.every(self._calls, checked_id(model_id), self._timeouts.of_call(timeout))
        return [version for version in versions if version.archived or not archived]

    # The server.

    async def status(self, timeout: float | None) -> dict[str, str]:
        """See `ModelRegistry.status`."""
        subject = Subject("asking for the status")
        request, deadline = messages.StatusRequest(names=["*"]), self._timeouts.of_call(timeout)
        reply = await self._calls.unary("Status", request, messages.StatusReply, subject, deadline)
        return dict(reply.statuses)

    async def server_versions(self, timeout: float | None) -> dict[str, str]:
        """See `ModelRegistry.server_versions`."""
        subject = Subject("asking for the version")
        request, deadline = messages.VersionRequest(), self._timeouts.of_call(timeout)
        reply = await self._calls.unary("Version", request, messages.ServiceVersionInfo, subject, deadline)
        return {part.name: part.version for part in reply.versions}

    # News.

    @property
    def inline_max_bytes(self) -> int:
        """The size up to which versions should come with the news; none where the cache may have their bytes."""
        return INLINE_MAX_BYTES if self._cache is None else 0

    def watch_every(
        self, model_id: str, after: int, patience_seconds: float, *, archived: bool
    ) -> AsyncGenerator[Version | Gap, None]:
        """See `ModelRegistry.watch`."""
        number, seconds = checked_whole("after", after), checked_seconds("patience_seconds", patience_seconds)
        news = watching.every(self._calls, checked_id(model_id), number, archived=archived)
        return watching.patiently(self._calls, news, seconds)

    def follow(
        self, model_ids: Sequence[str], resume_token: str, accepted: str, patience_seconds: float, *, consumers: bool
    ) -> AsyncGenerator[News, None]:
        """See `ModelRegistry.follow`."""
        ids = [checked_id(model_id) for model_id in model_ids]
        token, wanted = checked_text("resume_token", resume_token), checked_text("filter", accepted)
        seconds = checked_seconds("patience_seconds", patience_seconds)
        news = following.follow(self._calls, ids, token, accepted=wanted, consumers=consumers)
        return watching.patiently(self._calls, news, seconds)

    def mirror(
        self,
        directory: str | os.PathLike[str],
        model_ids: Sequence[str],
        after: int,
        patience_seconds: float,
        *,
        archived: bool,
        verify: "TrustedKeys | None",
    ) -> AsyncGenerator[Saved | Gap, None]:
        """See `ModelRegistry.mirror`."""
        mirror = Mirror(
            self._calls,
            self.retrievals,
            Path(expanded(checked_path("directory", directory))),
            [checked_id(model_id) for model_id in model_ids],
            after=checked_whole("after", after),
            archived=archived,
            inline_max_bytes=self.inline_max_bytes,
            trust=None if verify is None else trust_of(verify),
        )
        seconds = checked_seconds("patience_seconds", patience_seconds)
        return watching.patiently(self._calls, mirror.events(), seconds)

    def watch(
        self, model_id: str, after: int, patience_seconds: float, *, archived: bool
    ) -> AsyncGenerator[VersionInfo, None]:
        """See `ModelRegistry.watch`."""
        known = watching.Known(checked_whole("after", after))
        patience_seconds = checked_seconds("patience_seconds", patience_seconds)
        return watching.versions(self._calls, checked_id(model_id), known, patience_seconds, archived=archived)
