"""The client for asyncio: what `cogment_model_registry.ModelRegistry` does, awaited.

    async with aio.ModelRegistry("grpc://localhost:9002") as registry:
        version = await registry.publish("policy", weights)
        async for version in registry.watch("policy"):
            weights = await registry.retrieve(version)

A client belongs to the event loop in which it is first used, so each `asyncio.run` needs one of its own. Cancelling a
task ends its call and frees its resources.
"""

import os
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex, TypeVar, overload

from cogment_model_registry.client.arguments import LATEST, SupportsItem, UserData
from cogment_model_registry.client.asyncio_backend import AsyncioBackend
from cogment_model_registry.client.consumers import checked_report
from cogment_model_registry.client.lifecycle import Key
from cogment_model_registry.client.opening import Client
from cogment_model_registry.client.progress import Progress, Wish
from cogment_model_registry.client.reporting import TaskReporter
from cogment_model_registry.client.signatures import SigningKey, TrustedKeys
from cogment_model_registry.client.sources import Data
from cogment_model_registry.client.tracking import AsyncLatest
from cogment_model_registry.client.uploads import UploadOptions
from cogment_model_registry.client.watching import PATIENCE_SECONDS
from cogment_model_registry.records.consumers import TTL_DEFAULT_SECONDS, Consumer
from cogment_model_registry.records.history import HISTORY_LIMIT, HistoryEntry
from cogment_model_registry.records.lifecycle import Alias, ModelSummary, RetentionReport, Version
from cogment_model_registry.records.news import Gap, News, Saved
from cogment_model_registry.records.retention import RetentionRule, TransientShare
from cogment_model_registry.records.versions import ModelInfo, VersionInfo

__all__ = ["AsyncLatest", "ModelRegistry", "Progress"]

if TYPE_CHECKING:
    from typing import Self  # from Python 3.11 on

_T = TypeVar("_T")


class ModelRegistry(Client[AsyncioBackend]):
    """A client for asyncio; arguments and errors are those of `cogment_model_registry.ModelRegistry`."""

    _shown_as = "aio.ModelRegistry"

    def _make_backend(self) -> AsyncioBackend:
        return AsyncioBackend()

    async def __aenter__(self) -> "Self":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls under way end with `ClosedError`."""
        if self._core.calls.connection.is_usable():
            self._backend.stop()
            await self._core.aclose()

    async def create_model(
        self,
        model_id: str,
        *,
        user_data: UserData | None = None,
        replace: bool = True,
        timeout: float | None = None,
    ) -> ModelInfo:
        """Create a model, or replace the `user_data` of an existing one; durable on return."""
        return await self._core.create_model(model_id, user_data, timeout, replace=replace)

    async def delete_model(self, model_id: str, *, timeout: float | None = None) -> None:
        """Delete a model and all its versions, archived ones too."""
        await self._core.delete_model(model_id, timeout)

    async def get_model(self, model_id: str, *, timeout: float | None = None) -> ModelInfo:
        """Return a model."""
        return await self._core.get_model(model_id, timeout)

    async def list_models(self, *, timeout: float | None = None) -> list[ModelInfo]:
        """Return all models, in the order of their ids."""
        return await self._core.list_models(timeout)

    async def get_version(
        self,
        model_id: str,
        number: SupportsIndex | str = LATEST,
        *,
        archived: bool = False,
        timeout: float | None = None,
    ) -> VersionInfo:
        """Return a version by its number; -1 is the latest, -2 the one before, and so on."""
        return await self._core.get_version(model_id, number, timeout, archived=archived)

    async def list_versions(
        self, model_id: str, *, archived: bool = False, timeout: float | None = None
    ) -> list[VersionInfo]:
        """Return all versions of a model that can be retrieved, or the archived ones alone, oldest first."""
        return await self._core.list_versions(model_id, timeout, archived=archived)

    async def publish(
        self,
        model_id: str,
        data: Data,
        *,
        user_data: UserData | None = None,
        tags: Mapping[str, str] | None = None,
        metrics: Mapping[str, float | SupportsItem] | None = None,
        alias: str | None = None,
        create: bool = True,
        sign: "SigningKey | None" = None,
        timeout: float | None = None,
        progress: Wish = None,
    ) -> VersionInfo:
        """Create a transient version: everyone who watches the model is notified, and it may be evicted later."""
        options = UploadOptions(
            tags=tags, metrics=metrics, alias=alias, create=create, sign=sign, timeout=timeout, progress=progress
        )
        return await self._core.uploads.upload(model_id, data, user_data, archived=False, options=options)

    async def store(
        self,
        model_id: str,
        data: Data,
        *,
        user_data: UserData | None = None,
        tags: Mapping[str, str] | None = None,
        metrics: Mapping[str, float | SupportsItem] | None = None,
        alias: str | None = None,
        create: bool = True,
        sign: "SigningKey | None" = None,
        timeout: float | None = None,
        progress: Wish = None,
    ) -> VersionInfo:
        """Create an archived version: durable on return, and kept until its model is deleted."""
        options = UploadOptions(
            tags=tags, metrics=metrics, alias=alias, create=create, sign=sign, timeout=timeout, progress=progress
        )
        return await self._core.uploads.upload(model_id, data, user_data, archived=True, options=options)

    @overload
    async def retrieve(
        self,
        model: str | VersionInfo | Version,
        version: Key = LATEST,
        *,
        archived: bool = False,
        copy: Literal[True] = True,
        verify: "bool | TrustedKeys" = False,
        timeout: float | None = None,
        progress: Wish = None,
    ) -> bytes: ...

    @overload
    async def retrieve(
        self,
        model: str | VersionInfo | Version,
        version: Key = LATEST,
        *,
        archived: bool = False,
        copy: Literal[False],
        verify: "bool | TrustedKeys" = False,
        timeout: float | None = None,
        progress: Wish = None,
    ) -> memoryview: ...

    async def retrieve(
        self,
        model: str | VersionInfo | Version,
        version: Key = LATEST,
        *,
        archived: bool = False,
        copy: bool = True,
        verify: "bool | TrustedKeys" = False,
        timeout: float | None = None,
        progress: Wish = None,
    ) -> bytes | memoryview:
        """Return the bytes of a version, checked against its hash, or a view of them."""
        get = self._core.retrievals.retrieve if copy else self._core.retrievals.view
        return await get(model, version, timeout, progress, archived=archived, verify=verify)

    async def download(
        self,
        model: str | VersionInfo | Version,
        path: str | os.PathLike[str],
        *,
        version: Key = LATEST,
        archived: bool = False,
        resume: bool = False,
        unpack: bool | None = None,
        verify: "bool | TrustedKeys" = False,
        timeout: float | None = None,
        progress: Wish = None,
    ) -> VersionInfo:
        """Write the bytes of a version to a file, or unpack them: whole, checked and durable, or not at all."""
        return await self._core.retrievals.download(
            model, path, version, timeout, progress, archived=archived, resume=resume, verify=verify, unpack=unpack
        )

    @overload
    def watch(
        self,
        model_id: str,
        *,
        after: int = 0,
        archived: bool = False,
        all: Literal[False] = False,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> AsyncGenerator[VersionInfo, None]: ...

    @overload
    def watch(
        self,
        model_id: str,
        *,
        after: int = 0,
        archived: bool = False,
        all: Literal[True],
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> AsyncGenerator[Version | Gap, None]: ...

    def watch(
        self,
        model_id: str,
        *,
        after: int = 0,
        archived: bool = False,
        all: bool = False,  # noqa: A002 # what people say
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> AsyncGenerator[VersionInfo, None] | AsyncGenerator[Version | Gap, None]:
        """Yield the latest version of a model, then newer ones as they appear, without end.

        If you leave it before its end, close it with `contextlib.aclosing`, which ends the call at once.
        """
        if all:
            return self._core.watch_every(model_id, after, patience_seconds, archived=archived)
        return self._core.watch(model_id, after, patience_seconds, archived=archived)

    def follow(
        self,
        *model_ids: str,
        resume_token: str = "",
        filter: str = "",  # noqa: A002 # what the server calls it
        consumers: bool = False,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> AsyncGenerator[News, None]:
        """Yield what exists, then all news of some models or of all, each with the token that resumes after it.

        If you leave it before its end, close it with `contextlib.aclosing`.
        """
        return self._core.follow(model_ids, resume_token, filter, patience_seconds, consumers=consumers)

    def mirror(
        self,
        directory: str | os.PathLike[str],
        *model_ids: str,
        after: int = 0,
        archived: bool = False,
        verify: "TrustedKeys | None" = None,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> AsyncGenerator[Saved | Gap, None]:
        """Write each version of some models to a file of its own, and yield it once the file is there, without end.

        If you leave it before its end, close it with `contextlib.aclosing`.
        """
        return self._core.mirror(directory, model_ids, after, patience_seconds, archived=archived, verify=verify)

    @overload
    def track(
        self,
        model_id: str,
        *,
        archived: bool = False,
        alias: str | None = None,
        verify: "TrustedKeys | None" = None,
        consumer: str | None = None,
        labels: Mapping[str, str] | None = None,
        ttl_seconds: int = TTL_DEFAULT_SECONDS,
    ) -> AsyncLatest[bytes]: ...

    @overload
    def track(
        self,
        model_id: str,
        *,
        decode: Callable[[bytes], _T],
        copy: Literal[True] = True,
        archived: bool = False,
        alias: str | None = None,
        verify: "TrustedKeys | None" = None,
        consumer: str | None = None,
        labels: Mapping[str, str] | None = None,
        ttl_seconds: int = TTL_DEFAULT_SECONDS,
    ) -> AsyncLatest[_T]: ...

    @overload
    def track(
        self,
        model_id: str,
        *,
        decode: Callable[[memoryview], _T],
        copy: Literal[False],
        archived: bool = False,
        alias: str | None = None,
        verify: "TrustedKeys | None" = None,
        consumer: str | None = None,
        labels: Mapping[str, str] | None = None,
        ttl_seconds: int = TTL_DEFAULT_SECONDS,
    ) -> AsyncLatest[_T]: ...

    def track(
        self,
        model_id: str,
        *,
        decode: Callable[..., Any] = bytes,
        copy: bool = True,
        archived: bool = False,
        alias: str | None = None,
        verify: "TrustedKeys | None" = None,
        consumer: str | None = None,
        labels: Mapping[str, str] | None = None,
        ttl_seconds: int = TTL_DEFAULT_SECONDS,
    ) -> AsyncLatest[Any]:
        """Return a context manager with the latest version of a model; a task updates it, `decode` runs on a thread."""
        reporter = None
        if consumer is not None:
            report = checked_report(model_id, consumer, state="loading", labels=labels, ttl_seconds=ttl_seconds)
            reporter = TaskReporter(report, self._core.calls)
        return AsyncLatest(
            self._core,
            model_id,
            decode,
            copy=copy,
            archived=archived,
            alias=alias,
            verify=verify,
            reporter=reporter,
        )

    async def consumers(
        self,
        model_id: str | None = None,
        filter: str = "",  # noqa: A002 # what the server calls it
        *,
        limit: int | None = None,
        timeout: float | None = None,
    ) -> list[Consumer]:
        """Return who runs which version, ordered by model and id."""
        return await self._core.consumers.find(model_id, filter, limit, timeout)

    async def report_consumer(
        self,
        model_id: str,
        consumer_id: str,
        *,
        version: SupportsIndex | None = None,
        state: str = "active",
        error: str = "",
        labels: Mapping[str, str] | None = None,
        ttl_seconds: SupportsIndex = TTL_DEFAULT_SECONDS,
        held_versions: Iterable[SupportsIndex] = (),
        timeout: float | None = None,
    ) -> Consumer:
        """Say which version of a model a process runs; `track` does so automatically."""
        report = checked_report(
            model_id,
            consumer_id,
            version=version,
            state=state,
            error=error,
            labels=labels,
            ttl_seconds=ttl_seconds,
            held_versions=held_versions,
        )
        return await self._core.consumers.report(report, timeout)

    async def wait_for_consumers(
        self,
        model_id: str,
        version: Key | None = None,
        *,
        count: SupportsIndex | None = None,
        max_versions_behind: SupportsIndex | None = None,
        filter: str = "",  # noqa: A002 # what the server calls it
        timeout: float | None = None,
    ) -> list[Consumer]:
        """Wait until consumers of a model run a version, or one that is new enough."""
        return await self._core.consumers.wait_for(
            model_id, version, timeout, count=count, max_versions_behind=max_versions_behind, accepted=filter
        )

    async def describe_version(self, model_id: str, version: Key = LATEST, *, timeout: float | None = None) -> Version:
        """Return a version with its tags, metrics and aliases."""
        return await self._core.lifecycle.describe_version(model_id, version, timeout)

    async def find_versions(
        self,
        model_id: str | None = None,
        filter: str = "",  # noqa: A002 # what the server calls it
        *,
        order_by: str = "",
        limit: int | None = None,
        timeout: float | None = None,
    ) -> list[Version]:
        """Return the versions that a filter accepts."""
        return await self._core.lifecycle.find_versions(model_id, filter, order_by, limit, timeout)

    async def update_version(
        self,
        model_id: str,
        version: Key,
        *,
        tags: Mapping[str, str | None] | None = None,
        metrics: Mapping[str, float | SupportsItem | None] | None = None,
        expected: int | None = None,
        timeout: float | None = None,
    ) -> Version:
        """Set tags and metrics of a version, those that are given; durable on return if it is archived."""
        return await self._core.lifecycle.update_version(
            model_id, version, timeout, tags=tags or {}, metrics=metrics or {}, expected=expected
        )

    async def promote(
        self, model_id: str, version: Key, *, alias: str | None = None, timeout: float | None = None
    ) -> Version:
        """Make a transient version archived, durably on return; does nothing with an archived one."""
        return await self._core.lifecycle.promote(model_id, version, alias, timeout)

    async def delete_version(
        self, model_id: str, version: Key, *, force: bool = False, timeout: float | None = None
    ) -> None:
        """Delete a version, durably. Its number is never given again; retrievals in progress continue."""
        await self._core.lifecycle.delete_version(model_id, version, timeout, force=force)

    async def aliases(self, model_id: str, *, timeout: float | None = None) -> dict[str, Alias]:
        """Return the aliases of a model by name."""
        return await self._core.lifecycle.aliases(model_id, timeout)

    async def set_alias(
        self,
        model_id: str,
        alias: str,
        version: Key,
        *,
        expected: int | None = None,
        timeout: float | None = None,
    ) -> Alias:
        """Point an alias to a version, atomically and durably; a transient version is promoted first."""
        return await self._core.lifecycle.set_alias(model_id, alias, version, expected, timeout)

    async def remove_alias(
        self, model_id: str, alias: str, *, expected: int | None = None, timeout: float | None = None
    ) -> None:
        """Remove an alias of a model, durably."""
        await self._core.lifecycle.remove_alias(model_id, alias, expected, timeout)

    async def describe_model(self, model_id: str, *, timeout: float | None = None) -> ModelSummary:
        """Return a model with its tags, aliases, rules of retention, share and counts."""
        return await self._core.models.describe_model(model_id, timeout)

    async def find_models(
        self,
        filter: str = "",  # noqa: A002 # what the server calls it
        *,
        limit: int | None = None,
        timeout: float | None = None,
    ) -> list[ModelSummary]:
        """Return the models that a filter accepts, ordered by id."""
        return await self._core.models.find_models(filter, limit, timeout)

    async def update_model(
        self,
        model_id: str,
        *,
        tags: Mapping[str, str | None],
        expected: int | None = None,
        timeout: float | None = None,
    ) -> ModelSummary:
        """Change tags of a model, durably."""
        return await self._core.models.update_model(model_id, tags, expected, timeout)

    async def set_retention(
        self,
        model_id: str,
        rules: Iterable[RetentionRule],
        *,
        expected: int | None = None,
        timeout: float | None = None,
    ) -> ModelSummary:
        """Replace the rules that keep and delete the versions of a model, durably."""
        return await self._core.models.set_retention(model_id, rules, expected, timeout)

    async def set_share(
        self, model_id: str, share: TransientShare, *, expected: int | None = None, timeout: float | None = None
    ) -> ModelSummary:
        """Bound what a model takes of the transient store, or reserve some of it; at once, and durably."""
        return await self._core.models.set_share(model_id, share, expected, timeout)

    async def set_signers(
        self, model_id: str, keys: TrustedKeys, *, expected: int | None = None, timeout: float | None = None
    ) -> ModelSummary:
        """See the blocking client."""
        return await self._core.models.set_signers(model_id, keys, expected, timeout)

    async def apply_retention(
        self,
        model_id: str | None = None,
        *,
        dry_run: bool = False,
        rules: Iterable[RetentionRule] | None = None,
        timeout: float | None = None,
    ) -> RetentionReport:
        """Delete the versions that the rules of a model do not keep, or find out which those are."""
        return await self._core.models.apply_retention(model_id, rules, timeout, dry_run=dry_run)

    async def history(
        self,
        model_id: str,
        *,
        alias: str | None = None,
        since_ns: SupportsIndex | None = None,
        limit: int | None = HISTORY_LIMIT,
        timeout: float | None = None,
    ) -> list[HistoryEntry]:
        """Return who changed what of a model, newest first, as the audit log of the server has it."""
        return await self._core.models.history(model_id, alias, since_ns, limit, timeout)

    async def status(self, *, timeout: float | None = None) -> dict[str, str]:
        """Return the state of the server, by name; `overall_load` is from 0 to 255."""
        return await self._core.status(timeout)

    async def server_versions(self, *, timeout: float | None = None) -> dict[str, str]:
        """Return the versions of the server and of its platform, by name."""
        return await self._core.server_versions(timeout)
