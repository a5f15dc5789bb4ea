"""The calls of ModelRegistrySP: decode the request, call the registry, encode the reply.

How a call begins and ends is the business of `serving.calls`; here are the nine answers.
"""

import asyncio
import platform
from contextlib import aclosing

import grpc

from cogment_model_registry._version import __version__
from cogment_model_registry.errors import InvalidError
from cogment_model_registry.records.versions import VersionHeader, VersionInfo
from cogment_model_registry.registry.access import Caller
from cogment_model_registry.registry.registry import Registry
from cogment_model_registry.server.audit import AuditLog
from cogment_model_registry.server.local_socket import LocalSocket
from cogment_model_registry.server.transfers import Receiver, Transfers
from cogment_model_registry.serving.caller_limits import CallerLimits
from cogment_model_registry.serving.calls import Call, Guard, Handlers, Observer
from cogment_model_registry.settings import Settings
from cogment_model_registry.wire import convert, local, messages, pings
from cogment_model_registry.wire.frames import build_data_chunk
from cogment_model_registry.wire.paging import ExplicitHandle, Page, cut_handle, parse_handle

_BATCH = 1000
"""Entries of a listing that are asked for at once, at most."""

_FIRST_BATCH = 16
"""The size of the first step of a listing: a page may be full after it, and reading more would be in vain."""


_PUBLIC_STATUSES = {"overall_load", "archive", "catalog", "audit_log"}
"""The statuses that say nothing of models which a caller may not read."""


class ModelRegistryService:
    """Answers ModelRegistrySP, under both of its names.

    Args:
        registry: What answers.
        transfers: The limits of transfers.
        settings: The limits of messages.
        observe: Called after each finished call.
        guard: Decides what callers may do.
        limits: How much each caller may do; None for no limits.
        local_socket: The socket for processes on the same host, which `Status` names to those who ask for it.
        audit: The audit log, of which `Status` says whether it works; None where none is kept.
    """

    def __init__(
        self,
        registry: Registry,
        transfers: Transfers,
        settings: Settings,
        *,
        observe: Observer,
        guard: Guard | None = None,
        limits: CallerLimits | None = None,
        local_socket: LocalSocket | None = None,
        audit: AuditLog | None = None,
    ) -> None:
        self._registry = registry
        self._audit = audit
        self._local_socket = local_socket
        self._transfers = transfers
        self._settings = settings
        self._handlers = Handlers(observe, guard, limits)

    async def drained(self) -> None:
        """Wait until no call is under way."""
        await self._handlers.drained()

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """Return the handlers to add to a `grpc.aio` server."""
        methods = self._handlers.unary(
            {
                "CreateOrUpdateModel": (messages.CreateOrUpdateModelRequest, self._create_or_update_model),
                "DeleteModel": (messages.DeleteModelRequest, self._delete_model),
                "RetrieveModels": (messages.RetrieveModelsRequest, self._retrieve_models),
                "RetrieveVersionInfos": (messages.RetrieveVersionInfosRequest, self._retrieve_version_infos),
                "Version": (messages.VersionRequest, self._version),
                "Status": (messages.StatusRequest, self._status),
            }
        )
        methods["CreateVersion"] = self._handlers.streamed_request("CreateVersion", self._create_version)
        methods["RetrieveVersionData"] = self._handlers.streamed_reply(
            "RetrieveVersionData", messages.RetrieveVersionDataRequest, self._retrieve_version_data
        )
        methods["VersionUpdate"] = self._handlers.streamed_reply(
            "VersionUpdate", messages.VersionUpdateRequest, self._version_update
        )
        return [grpc.method_handlers_generic_handler(name, methods) for name in messages.SERVICE_NAMES]

    async def _create_or_update_model(self, request: messages.CreateOrUpdateModelRequest, call: Call) -> bytes:
        if not request.HasField("model_info"):
            raise InvalidError("CreateOrUpdateModel must have a model_info")
        call.about(model_id=request.model_info.model_id)
        await self._registry.create_or_update_model(convert.model_from_message(request.model_info))
        return messages.CreateOrUpdateModelReply().SerializeToString()

    async def _delete_model(self, request: messages.DeleteModelRequest, call: Call) -> bytes:
        call.about(model_id=request.model_id)
        await self._registry.delete_model(request.model_id)
        return messages.DeleteModelReply().SerializeToString()

    async def _retrieve_models(self, request: messages.RetrieveModelsRequest, call: Call) -> bytes:
        start = parse_handle(request.model_handle)
        page = Page(request.models_count, self._settings.reply_max_bytes)
        if request.model_ids:
            models = (await self._registry.get_models(request.model_ids))[start:]
            page.extend(map(convert.encode_model, models))
        elif call.caller.reads_everything:
            while page.missing != 0 and (
                models := await self._registry.list_models(start + len(page), page.batch(_BATCH))
            ):
                if page.extend(map(convert.encode_model, models)) < len(models):
                    break
        else:
            await self._list_readable(page, start, call.caller)
        return page.reply(str(start + len(page)) if len(page) else request.model_handle or "0")

    async def _list_readable(self, page: Page, start: int, caller: Caller) -> None:
        """Fill a page with the models that a caller may read, those before `start` left out."""
        position, left_out = 0, 0
        while page.missing != 0 and (models := await self._registry.list_models(position, _BATCH)):
            position += len(models)
            readable = [model for model in models if caller.may_read(model.model_id)]
            skipped = min(start - left_out, len(readable))
            left_out += skipped
            wanted = readable[skipped:][: page.batch(_BATCH)]
            if page.extend(map(convert.encode_model, wanted)) < len(wanted):
                return

    async def _create_version(self, call: Call) -> bytes:
        with self._transfers.receiving(call, convert.decode_upload_chunk) as receiver:
            info = await receiver.accepting(self._receive_version(receiver))
        call.about(number=info.number)
        return convert.encode_version(info)

    async def _receive_version(self, receiver: Receiver[VersionHeader]) -> VersionInfo:
        """Create a version from the bytes that are received."""
        async with await self._registry.create_version(await receiver.header()) as upload:
            await receiver.pass_on(upload.write)
            return await upload.commit()

    async def _retrieve_version_infos(self, request: messages.RetrieveVersionInfosRequest, call: Call) -> bytes:
        call.about(model_id=request.model_id)
        page = Page(request.versions_count, self._settings.reply_max_bytes)
        if request.version_numbers:
            return await self._list_explicitly(request, page)
        next_number = parse_handle(request.version_handle)
        most = _FIRST_BATCH
        while page.missing != 0 and (
            versions := await self._registry.list_versions(request.model_id, next_number, page.batch(most))
        ):
            most = min(2 * most, _BATCH)
            taken = page.extend(map(convert.encode_version, versions))
            if taken:
                next_number = versions[taken - 1].number + 1
            await asyncio.sleep(0)  # let other calls run during a long listing
            if taken < len(versions):
                break
        return page.reply(str(next_number) if len(page) else request.version_handle or "0")

    async def _list_explicitly(self, request: messages.RetrieveVersionInfosRequest, page: Page) -> bytes:
        """Return the page of the versions with these numbers."""
        handle = ExplicitHandle.parse(request.version_handle)
        versions = await self._registry.get_versions(request.model_id, request.version_numbers)
        start = handle.start([info.number for info in versions])
        taken = page.extend(map(convert.encode_version, versions[start:]))
        if start + taken < len(versions):
            return page.reply(cut_handle(start + taken))
        return page.reply(str(versions[-1].number + 1) if taken else request.version_handle)

    async def _retrieve_version_data(self, request: messages.RetrieveVersionDataRequest, call: Call) -> None:
        call.about(model_id=request.model_id, number=request.version_number)
        async with await self._registry.open_version(request.model_id, request.version_number) as reader:
            call.about(number=reader.info.number, size_bytes=reader.info.data_size_bytes)
            with self._transfers.sending(call, reader.info.data_size_bytes) as sender:
                await sender.send_version(reader, build_data_chunk)

    async def _version_update(self, request: messages.VersionUpdateRequest, call: Call) -> None:
        call.about(model_id=request.model_id)
        async with aclosing(self._registry.watch(request.model_id)) as versions:
            async for info in versions:
                await call.write(convert.encode_version(info))

    async def _version(self, _request: messages.VersionRequest, call: Call) -> bytes:
        versions = {
            "cogment-model-registry": __version__,
            "python": platform.python_version(),
            "grpcio": grpc.__version__,
        }
        return messages.version_reply(versions).SerializeToString()

    async def _status(self, request: messages.StatusRequest, call: Call) -> bytes:
        names = {*request.names}
        # Asked for by clients, and not for people: it is no part of "*".
        place = {name: text for name, text in self._place().items() if name in names}
        statuses = await self._statuses() if names - place.keys() else {}
        if not call.caller.reads_everything:
            statuses = {name: text for name, text in statuses.items() if name in _PUBLIC_STATUSES}
        return messages.status_reply({**statuses, **place}, names).SerializeToString()

    def _place(self) -> dict[str, str]:
        """Return the statuses that say how to reach the server: where the local socket is, and how often to ping."""
        allowed = {pings.STATUS: f"{pings.MIN_SECONDS:g}"}
        if self._local_socket is None:
            return allowed
        return {**allowed, local.PATH_STATUS: self._local_socket.path, local.ID_STATUS: self._local_socket.socket_id}

    async def _statuses(self) -> dict[str, str]:
        status = await self._registry.status()
        return {
            "overall_load": str(status.load),
            "models": str(status.models),
            "versions": str(status.versions),
            "transient_versions": str(status.transient.items),
            "transient_versions_max": str(status.transient.max_items),
            "transient_bytes": str(status.transient.bytes),
            "transient_bytes_max": str(status.transient.max_bytes),
            "uploads": str(status.uploads),
            "retrievals": str(status.readers),
            "watchers": str(status.watchers),
            "archive": status.archive_failure or ("read-only" if status.is_read_only else "ok"),
            "catalog": status.catalog_failure or "ok",
            "audit_log": (self._audit.failure or "ok") if self._audit else "off",
        }
