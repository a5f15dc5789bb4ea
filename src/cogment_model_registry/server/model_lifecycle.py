"""The calls of ModelLifecycle: decode the request, call the rules, encode the reply."""

import json
from collections.abc import Awaitable, Sequence

import grpc
import structlog

from cogment_model_registry.errors import InvalidError
from cogment_model_registry.records.lifecycle import Version
from cogment_model_registry.records.uploads import UploadHeader
from cogment_model_registry.records.versions import VERSION_NUMBER_MAX
from cogment_model_registry.registry.access import find_readable
from cogment_model_registry.registry.filters import Order, Position, may_have, parse_filter, parse_order, position_of
from cogment_model_registry.registry.lifecycle import Lifecycle
from cogment_model_registry.registry.resuming import RepeatableUploads
from cogment_model_registry.server.consumer_calls import ConsumerCalls
from cogment_model_registry.server.model_calls import ModelCalls
from cogment_model_registry.server.peers import is_for_a_peer
from cogment_model_registry.server.transfers import Receiver, Transfers
from cogment_model_registry.server.watching import WatchCalls
from cogment_model_registry.serving.caller_limits import CallerLimits
from cogment_model_registry.serving.calls import Call, Guard, Handlers, Observer
from cogment_model_registry.settings import Settings
from cogment_model_registry.wire import lifecycle
from cogment_model_registry.wire.frames import build_read_chunk
from cogment_model_registry.wire.watching import WatchRequest

_log = structlog.stdlib.get_logger(__name__)


class ModelLifecycleService:
    """Answers ModelLifecycle.

    Args:
        rules: What answers.
        uploads: What answers uploads.
        models: What answers the calls for models.
        consumers: What answers the calls for consumers.
        watches: What answers watches.
        transfers: The limits of transfers.
        settings: The limits of messages.
        observe: Called after each finished call.
        guard: Decides what callers may do.
        limits: How much each caller may do; None for no limits.
    """

    def __init__(
        self,
        rules: Lifecycle,
        *,
        uploads: RepeatableUploads,
        models: ModelCalls,
        consumers: ConsumerCalls,
        watches: WatchCalls,
        transfers: Transfers,
        settings: Settings,
        observe: Observer,
        guard: Guard | None = None,
        limits: CallerLimits | None = None,
    ) -> None:
        self._rules = rules
        self._uploads = uploads
        self._models = models
        self._consumers = consumers
        self._watches = watches
        self._transfers = transfers
        self._settings = settings
        self._handlers = Handlers(observe, guard, limits)

    async def drained(self) -> None:
        """Wait until no call is in progress."""
        await self._handlers.drained()
        await self._watches.drained()

    def handlers(self) -> grpc.GenericRpcHandler:
        """Return the handler to add to a `grpc.aio` server."""
        methods = self._handlers.unary(
            {
                "ListVersions": (lifecycle.ListVersionsRequest, self._list_versions),
                "UpdateVersion": (lifecycle.UpdateVersionRequest, self._update_version),
                "PromoteVersion": (lifecycle.PromoteVersionRequest, self._promote_version),
                "DeleteVersion": (lifecycle.DeleteVersionRequest, self._delete_version),
                "SetAliases": (lifecycle.SetAliasesRequest, self._set_aliases),
                **self._models.answers(),
                **self._consumers.answers(),
            }
        )
        # With one reply at its end and those before written by itself, the last one goes with the status.
        methods["UploadVersion"] = self._handlers.streamed_request("UploadVersion", self._upload_version)
        methods["ReadVersion"] = self._handlers.streamed_reply(
            "ReadVersion", lifecycle.ReadVersionRequest, self._read_version
        )
        methods["Watch"] = self._handlers.streamed_reply("Watch", WatchRequest, self._watches.watch)
        return grpc.method_handlers_generic_handler(lifecycle.SERVICE_NAME, methods)

    async def _read_version(self, request: lifecycle.ReadVersionRequest, call: Call) -> None:
        model_id, key = _about(call, request.version)
        call.about(offset=request.offset, limit=request.limit)
        reading = self._rules.reading_own if is_for_a_peer(call) else self._rules.reading
        async with reading(model_id, key, request.offset, request.expected_hash) as (version, reader):
            call.about(number=version.number, size_bytes=version.info.data_size_bytes)
            with self._transfers.sending(call, version.info.data_size_bytes) as sender:
                first = lifecycle.ReadVersionReply(version=lifecycle.version_message(version))
                await sender.send(first.SerializeToString())
                await sender.send_version(reader, build_read_chunk, request.offset, request.limit or None)

    async def _upload_version(self, call: Call) -> bytes:
        with self._transfers.receiving(call, lifecycle.decode_upload) as receiver:
            version = await receiver.accepting(self._receive_version(receiver, call))
        call.about(number=version.number)
        return lifecycle.encode_uploaded(version)

    async def _receive_version(self, receiver: Receiver[UploadHeader], call: Call) -> Version:
        """Create a version from the bytes that are received, or find the one that the upload made before."""
        [(key, value)] = lifecycle.WHOLE_UPLOAD
        is_whole = call.metadata(key) == value
        async with self._uploads.begin(await receiver.header(), is_whole=is_whole) as upload:
            if not is_whole:
                await call.write(lifecycle.encode_next_offset(upload.next_offset))
            if not upload.is_complete:
                await receiver.pass_on(upload.write)
            version = await upload.commit()
        if upload.has_moved_aliases:
            log_aliases(version.info.model_id, upload.header.aliases, version.number, call.context.peer())
        if upload.is_complete and upload.is_whole:
            await receiver.discard()  # the client sent the bytes without being asked
        return version

    async def _list_versions(self, request: lifecycle.ListVersionsRequest, call: Call) -> bytes:
        if request.model_id:
            call.about(model_id=request.model_id)
        if request.versions:
            return await self._get_versions(request)
        question = (request.model_id, request.filter, request.order_by)
        accepted, order = parse_filter(request.filter), parse_order(request.order_by)
        after = position_in(order, lifecycle.parse_token(request.page_token, question, 3))
        limit = lifecycle.page_size(request.page_size)

        def find(after: Position | None, limit: int) -> Awaitable[Sequence[Version]]:
            return self._rules.search(request.model_id or None, accepted, order, after, limit)

        versions = await find_readable(
            call.caller, find, after, limit, lambda version: (version.model_id, position_of(order, version))
        )
        page = self._page(versions)
        token = ""
        if len(page) < len(versions) or len(versions) == limit:
            last = position_of(order, versions[len(page) - 1])
            token = lifecycle.build_token(question, (last.value, last.model_id, last.number))
        return lifecycle.ListVersionsReply(versions=page, next_page_token=token).SerializeToString()

    async def _get_versions(self, request: lifecycle.ListVersionsRequest) -> bytes:
        """Return the page of the versions that are named."""
        if request.filter or request.order_by:
            raise InvalidError("ListVersions takes versions, or a filter and an order, and not both")
        if len(request.versions) > lifecycle.PAGE_MAX_ITEMS:
            raise InvalidError(
                f"versions has {len(request.versions)} entries; at most {lifecycle.PAGE_MAX_ITEMS} are allowed"
            )
        refs = [(ref.model_id or request.model_id, lifecycle.key_of(ref)) for ref in request.versions]
        named = [json.dumps(ref) for ref in refs]
        start = lifecycle.parse_index(request.page_token, named)
        page = self._page(await self._rules.get_versions(refs[start:]))
        token = lifecycle.build_index(named, start + len(page))
        return lifecycle.ListVersionsReply(versions=page, next_page_token=token).SerializeToString()

    def _page(self, versions: Sequence[Version]) -> list[lifecycle.VersionMessage]:
        """Return the messages of as many versions as fit a reply, at least one."""
        return lifecycle.fitting(map(lifecycle.version_message, versions), self._settings.reply_max_bytes)

    async def _update_version(self, request: lifecycle.UpdateVersionRequest, call: Call) -> bytes:
        model_id, key = _about(call, request.version)
        change = lifecycle.annotation_change(request)
        return _encode(await self._rules.update_version(model_id, key, change))

    async def _promote_version(self, request: lifecycle.PromoteVersionRequest, call: Call) -> bytes:
        model_id, key = _about(call, request.version)
        version = await self._rules.promote_version(model_id, key, request.aliases)
        call.about(number=version.info.number)
        if request.aliases:
            log_aliases(model_id, [*request.aliases], version.info.number, call.context.peer())
        return _encode(version)

    async def _delete_version(self, request: lifecycle.DeleteVersionRequest, call: Call) -> bytes:
        if request.HasField("tried"):
            model_id, key = _about(call, request.tried)
            return lifecycle.objections_reply(await self._rules.objections(model_id, key)).SerializeToString()
        model_id, key = _about(call, request.version)
        await self._rules.delete_version(model_id, key, force=request.force, expected_state=request.expected_state)
        _log.info("version deleted", model_id=model_id, version=key, peer=call.context.peer())
        return lifecycle.DeleteVersionReply().SerializeToString()

    async def _set_aliases(self, request: lifecycle.SetAliasesRequest, call: Call) -> bytes:
        call.about(model_id=request.model_id)
        changes = lifecycle.alias_changes(request)
        aliases = await self._rules.set_aliases(request.model_id, changes)
        for change in changes:
            log_aliases(request.model_id, [change.name], change.version_number, call.context.peer())
        return lifecycle.SetAliasesReply(aliases=lifecycle.alias_messages(aliases)).SerializeToString()


def log_aliases(model_id: str, names: Sequence[str], number: int | None, peer: str) -> None:
    """Log who set aliases to a version, or removed them, for a number of None."""
    event = "alias removed" if number is None else "alias set"
    fields = {} if number is None else {"number": number}
    for name in names:
        _log.info(event, model_id=model_id, alias=name, **fields, peer=peer)


def _about(call: Call, ref: lifecycle.VersionRef) -> tuple[str, int | str]:
    """Return the model and the key of a version, noted for the log."""
    key = lifecycle.key_of(ref)
    call.about(model_id=ref.model_id, version=key)
    return ref.model_id, key


def _encode(version: Version) -> bytes:
    return lifecycle.version_message(version).SerializeToString()


def position_in(order: Order, parts: list[str | int | float | bool | None] | None) -> Position | None:
    """Return the position in an order that a page token has; None for the first page.

    Raises:
        InvalidError: No version could be there.
    """
    if parts is None:
        return None
    value, model_id, number = parts
    is_number = isinstance(number, int) and 0 < number <= VERSION_NUMBER_MAX
    if not isinstance(model_id, str) or not is_number or not may_have(order.field, value):
        raise InvalidError("page_token is malformed")
    return Position(value, model_id, int(number or 0))
