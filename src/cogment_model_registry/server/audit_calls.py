"""The calls of AuditLog: decode the request, read the files, encode the reply."""

import asyncio
import functools
from collections.abc import Awaitable, Callable

import grpc

from cogment_model_registry.errors import InvalidError, NotFoundError, PreconditionError, UnavailableError, quoted
from cogment_model_registry.server.audit import AuditLog
from cogment_model_registry.server.audit_files import Found, Place, find_changes
from cogment_model_registry.serving.caller_limits import CallerLimits
from cogment_model_registry.serving.calls import Call, Guard, Handlers, Observer
from cogment_model_registry.wire import audit
from cogment_model_registry.wire.lifecycle import build_token, page_size, parse_token

_READERS_MAX = 2
"""How many pages are searched for at once: each takes a thread, and most of one core."""


class AuditLogService:
    """Answers AuditLog.

    Args:
        log: The audit log; None where none is kept.
        check_model_id: Refuses an id that breaks a rule.
        has_model: Tells whether a model exists.
        reply_max_bytes: Where a reply ends.
        observe: Called after each finished call.
        guard: Decides what callers may do.
        limits: How much each caller may do; None for no limits.
    """

    def __init__(
        self,
        log: AuditLog | None,
        check_model_id: Callable[[str], None],
        has_model: Callable[[str], Awaitable[bool]],
        reply_max_bytes: int,
        *,
        observe: Observer,
        guard: Guard | None = None,
        limits: CallerLimits | None = None,
    ) -> None:
        self._log = log
        self._check_model_id = check_model_id
        self._has_model = has_model
        self._reply_max_bytes = reply_max_bytes
        self._readers = asyncio.Semaphore(_READERS_MAX)
        self._handlers = Handlers(observe, guard, limits)

    async def drained(self) -> None:
        """Wait until no call is in progress."""
        await self._handlers.drained()

    def handlers(self) -> grpc.GenericRpcHandler:
        """Return the handler to add to a `grpc.aio` server."""
        methods = self._handlers.unary({"ListChanges": (audit.ListChangesRequest, self._list_changes)})
        return grpc.method_handlers_generic_handler(audit.SERVICE_NAME, methods)

    async def _list_changes(self, request: audit.ListChangesRequest, call: Call) -> bytes:
        self._check_model_id(request.model_id)
        call.about(model_id=request.model_id)
        if self._log is None:
            raise PreconditionError("this server keeps no audit log: its setting audit_log names no directory")
        question = (request.model_id, str(request.since_timestamp), request.alias)
        start, has_found = _position(parse_token(request.page_token, question, 3))
        found = await self._find(
            functools.partial(
                find_changes,
                self._log.directory,
                request.model_id,
                alias=request.alias,
                since_ns=request.since_timestamp,
                start=start,
                limit=page_size(request.page_size),
                max_bytes=self._reply_max_bytes,
            )
        )
        has_found = has_found or bool(found.entries)
        if not has_found and not found.next and not await self._has_model(request.model_id):
            such = "such changes" if request.alias or request.since_timestamp else "changes"
            message = f"model {quoted(request.model_id)} does not exist, and the audit log has no {such} of it"
            raise NotFoundError(message, model_id=request.model_id)
        token = build_token(question, (found.next.name, found.next.offset, has_found)) if found.next else ""
        changes = map(audit.change_message, found.entries)
        return audit.ListChangesReply(changes=changes, next_page_token=token).SerializeToString()

    async def _find(self, search: Callable[[], Found]) -> Found:
        try:
            async with self._readers:
                return await asyncio.to_thread(search)
        except OSError as error:
            raise UnavailableError(f"the audit log cannot be read: {error.strerror}") from error


def _position(parts: list[str | int | float | bool | None] | None) -> tuple[Place | None, bool]:
    """Return the place in a page token, and whether earlier pages had changes.

    Raises:
        InvalidError: It is malformed.
    """
    if parts is None:
        return None, False
    name, offset, has_found = parts
    if isinstance(name, str) and isinstance(offset, int) and isinstance(has_found, bool):
        place = Place(name, offset)
        if place.is_sound:
            return place, has_found
    raise InvalidError("page_token is malformed")
