"""The calls of DirectorySP."""

import asyncio
import platform
from collections.abc import Awaitable, Callable
from functools import partial
from typing import ParamSpec, TypeVar

import grpc
import structlog

from cogment_model_registry._version import __version__
from cogment_model_registry.discovery.checks import check, check_files
from cogment_model_registry.discovery.roster import Entry, Roster
from cogment_model_registry.errors import InvalidError, ModelRegistryError, StoppingError, quoted
from cogment_model_registry.records.services import Details, Service
from cogment_model_registry.serving.calls import Call, Handlers, Observer
from cogment_model_registry.settings import DirectorySettings
from cogment_model_registry.system.tasks import run_to_end
from cogment_model_registry.wire import convert, messages
from cogment_model_registry.wire import directory as wire

_P = ParamSpec("_P")
_T = TypeVar("_T")

_log = structlog.stdlib.get_logger(__name__)


class DirectoryService:
    """Answers DirectorySP, and checks the registered services.

    Args:
        roster: The services.
        settings: How often to check, and how long an inquiry may wait.
        observe: Called after each finished call.
    """

    def __init__(self, roster: Roster, settings: DirectorySettings, observe: Observer) -> None:
        self._roster = roster
        self._settings = settings
        self._tls_files = check_files(settings)
        self._handlers = Handlers(observe)
        self._changing = asyncio.Lock()
        self._changed = asyncio.Condition()
        self._checks: dict[int, asyncio.Task[None]] = {}
        self._stopping = False

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """Return the handlers to add to a `grpc.aio` server."""
        methods = {
            "Register": self._handlers.streamed("Register", partial(self._answer_each, self._register)),
            "Deregister": self._handlers.streamed("Deregister", partial(self._answer_each, self._deregister)),
            "Inquire": self._handlers.streamed_reply("Inquire", wire.InquireRequest, self._inquire),
            **self._handlers.unary(
                {
                    "Version": (messages.VersionRequest, self._version),
                    "Status": (messages.StatusRequest, self._status),
                }
            ),
        }
        return [grpc.method_handlers_generic_handler(wire.SERVICE_NAME, methods)]

    def start(self) -> None:
        """Begin to check the services that were registered before a restart."""
        for entry in self._roster:
            self._begin_checking(entry)

    async def stop(self) -> None:
        """End the inquiries that wait, and stop checking."""
        self._stopping = True
        async with self._changed:
            self._changed.notify_all()
        for task in self._checks.values():
            task.cancel()
        await asyncio.gather(*self._checks.values(), return_exceptions=True)

    async def drained(self) -> None:
        """Wait until no call is under way."""
        await self._handlers.drained()

    # The calls.

    async def _register(self, data: bytes, call: Call) -> wire.RegisterReply:
        token = call.metadata(wire.TOKEN_KEY)
        try:
            request = convert.decode(wire.RegisterRequest, data)
            endpoint = wire.endpoint_from_message(request.endpoint)
            details = wire.details_from_message(request.details)
            entry = await self._change(self._roster.register, endpoint, details, token, permanent=request.permanent)
        except ModelRegistryError as error:
            return wire.register_reply(error=error.message)
        call.about(service_id=entry.service.service_id, endpoint=str(endpoint), type=details.type.value)
        _log.info("service registered", service_id=entry.service.service_id, endpoint=str(endpoint))
        self._begin_checking(entry)
        return wire.register_reply(service_id=entry.service.service_id, secret=entry.secret)

    async def _deregister(self, data: bytes, call: Call) -> wire.DeregisterReply:
        token = call.metadata(wire.TOKEN_KEY)
        try:
            request = convert.decode(wire.DeregisterRequest, data)
            call.about(service_id=request.service_id)
            await self._change(self._roster.deregister, request.service_id, request.secret, token)
        except ModelRegistryError as error:
            return wire.deregister_reply(error=error.message)
        _log.info("service deregistered", service_id=request.service_id)
        return wire.deregister_reply()

    async def _answer_each(
        self, answer: Callable[[bytes, Call], Awaitable[wire.RegisterReply | wire.DeregisterReply]], call: Call
    ) -> None:
        while (data := await call.read()) is not None:
            await call.write((await answer(data, call)).SerializeToString())

    async def _inquire(self, request: wire.InquireRequest, call: Call) -> None:
        kind = request.WhichOneof("inquiry")
        if kind is None:
            raise InvalidError("Inquire must have a service_id or details")
        inquiry = request.service_id if kind == "service_id" else wire.details_from_message(request.details)
        for service in await self._find(inquiry, call.metadata(wire.TOKEN_KEY)):
            await call.write(wire.InquireReply(data=wire.service_message(service)).SerializeToString())

    async def _find(self, inquiry: Details | int, token: str) -> list[Service]:
        """Return the services found, after waiting for the first one where the settings allow for it."""
        found = self._roster.inquire(inquiry, token)
        if found or not self._settings.registration_lag:
            return found
        try:
            async with asyncio.timeout(self._settings.registration_lag), self._changed:
                await self._changed.wait_for(lambda: self._stopping or self._roster.inquire(inquiry, token))
        except TimeoutError:
            return []
        if self._stopping:
            raise StoppingError
        return self._roster.inquire(inquiry, token)

    async def _version(self, _request: messages.VersionRequest, _call: Call) -> bytes:
        versions = {"cogment-directory": __version__, "python": platform.python_version(), "grpcio": grpc.__version__}
        return messages.version_reply(versions).SerializeToString()

    async def _status(self, request: messages.StatusRequest, _call: Call) -> bytes:
        statuses = {
            "overall_load": "0",
            "services": str(len(self._roster)),
            "healthy_services": str(sum(entry.healthy for entry in self._roster)),
        }
        return messages.status_reply(statuses, request.names).SerializeToString()

    # Changes and checks.

    async def _change(self, change: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Run a change of the roster on a thread, alone and to its end."""

        async def run() -> _T:
            async with self._changing:
                return await asyncio.to_thread(change, *args, **kwargs)

        return await run_to_end(run())

    def _begin_checking(self, entry: Entry) -> None:
        """Check a service now, and repeatedly while it is registered."""
        service_id = entry.service.service_id
        before = self._checks.get(service_id)
        if before is not None:
            before.cancel()
        task = asyncio.create_task(self._check_repeatedly(entry))
        self._checks[service_id] = task
        task.add_done_callback(
            lambda done: self._checks.pop(service_id) if self._checks.get(service_id) is done else None
        )

    async def _check_repeatedly(self, entry: Entry) -> None:
        await self._notify()
        while entry.is_checked and entry in self._roster:
            was_healthy = entry.healthy
            try:
                await self._check_once(entry)
            except ModelRegistryError as error:
                _log.error("removal of a service that does not answer failed", reason=error.message)
            if entry.healthy != was_healthy:
                await self._notify()
            await asyncio.sleep(self._settings.check_seconds)

    async def _check_once(self, entry: Entry) -> None:
        load = await check(entry.service, self._tls_files)
        if not await self._change(self._roster.note_check, entry, load):
            _log.warning(
                "service removed: it does not answer",
                service_id=entry.service.service_id,
                endpoint=quoted(str(entry.service.endpoint)),
            )

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()
