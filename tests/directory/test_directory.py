"""The small Directory, over real channels: its calls, the services that it returns, its checks, and its file."""

import asyncio
import dataclasses
import json
import os
import socket
import stat
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from cogment_model_registry import __version__
from cogment_model_registry.discovery.client import DirectoryClient, connected
from cogment_model_registry.discovery.server import running
from cogment_model_registry.errors import InvalidError, StartError, WrongServerError
from cogment_model_registry.records.services import Details, Endpoint, Protocol, ServiceType
from cogment_model_registry.settings import DirectorySettings
from cogment_model_registry.testing.server import serving
from cogment_model_registry.wire import directory as wire
from cogment_model_registry.wire import messages as m
from cogment_model_registry.wire._generated.cogment.api import directory_pb2 as pb
from tests.client import refused
from tests.ports import free_port
from tests.registry_client.network import http2_server, tcp_server
from tests.waiting import PATIENCE_SECONDS, eventually

SETTINGS = DirectorySettings(port=0, host="127.0.0.1", persistence_file="", check_seconds=0.1, grace_seconds=0)
NAMED = Endpoint(Protocol.COGMENT, "somewhere", 0)
"""An endpoint that is never checked."""


@asynccontextmanager
async def directory(**settings: Any) -> AsyncIterator[str]:
    """Return a context manager for a Directory that serves; it returns the endpoint."""
    async with running(dataclasses.replace(SETTINGS, **settings)) as server:
        yield f"grpc://127.0.0.1:{server.port}"


@asynccontextmanager
async def client_of_new(token: str = "", **settings: Any) -> AsyncIterator[DirectoryClient]:
    """Return a context manager for a client of a new Directory."""
    async with directory(**settings) as endpoint, connected(endpoint, token) as client:
        yield client


@pytest.fixture
async def endpoint() -> AsyncIterator[str]:
    async with directory() as address:
        yield address


@pytest.fixture
async def client(endpoint: str) -> AsyncIterator[DirectoryClient]:
    async with connected(endpoint) as connection:
        yield connection


class Raw:
    """Sends exactly the messages of a test."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel

    async def unary(self, method: str, request: Message | bytes) -> bytes:
        call: Any = self.channel.unary_unary(f"/{wire.SERVICE_NAME}/{method}")
        return bytes(await call(encoded(request), timeout=PATIENCE_SECONDS))

    async def inquire(self, request: Message | bytes) -> list[pb.InquireReply]:
        call: Any = self.channel.unary_stream(f"/{wire.SERVICE_NAME}/Inquire")
        return [wire.InquireReply.FromString(data) async for data in call(encoded(request), timeout=PATIENCE_SECONDS)]

    def stream(self, method: str) -> Any:
        call: Any = self.channel.stream_stream(f"/{wire.SERVICE_NAME}/{method}")
        return call(timeout=PATIENCE_SECONDS)

    async def register(self, *requests: Message | bytes) -> list[pb.RegisterReply]:
        """Return the reply to each request, which is sent after the previous one was answered."""
        return [wire.RegisterReply.FromString(data) for data in await self._answers("Register", requests)]

    async def deregister(self, *requests: Message | bytes) -> list[pb.DeregisterReply]:
        return [wire.DeregisterReply.FromString(data) for data in await self._answers("Deregister", requests)]

    async def _answers(self, method: str, requests: Sequence[Message | bytes]) -> list[bytes]:
        call = self.stream(method)
        replies = []
        for request in requests:
            await call.write(encoded(request))
            replies.append(await call.read())
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK
        return replies

    async def status(self, *names: str) -> dict[str, str]:
        return dict(m.StatusReply.FromString(await self.unary("Status", m.StatusRequest(names=names))).statuses)


def encoded(message: Message | bytes) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()


@pytest.fixture
async def raw(endpoint: str) -> AsyncIterator[Raw]:
    async with grpc.aio.insecure_channel(endpoint.removeprefix("grpc://")) as channel:
        yield Raw(channel)


@asynccontextmanager
async def raw_of(endpoint: str) -> AsyncIterator[Raw]:
    async with grpc.aio.insecure_channel(endpoint.removeprefix("grpc://")) as channel:
        yield Raw(channel)


class FakeService:
    """A model registry in this process whose load and health the test sets.

    Attributes:
        load: Its `overall_load`; None if `Status` fails.
        has_version: Whether `Version` works.
        asked: The requested names of each call of `Status`.
    """

    def __init__(self, load: str | None = "0") -> None:
        self.load = load
        self.has_version = False
        self.asked: list[list[str]] = []
        self.port = 0

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(Protocol.GRPC, "127.0.0.1", self.port)

    async def _status(self, data: bytes, context: Any) -> bytes:
        self.asked.append(list(m.StatusRequest.FromString(data).names))
        if self.load is None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "it has no status")
        statuses = {"overall_load": self.load} if self.load else {}
        return m.StatusReply(statuses=statuses).SerializeToString()

    async def _version(self, _data: bytes, context: Any) -> bytes:
        if not self.has_version:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "it has no version")
        return b""

    @asynccontextmanager
    async def serving(self, name: str = "cogmentAPI.ModelRegistrySP") -> AsyncIterator["FakeService"]:
        methods: dict[str, Any] = {
            "Status": grpc.unary_unary_rpc_method_handler(self._status),
            "Version": grpc.unary_unary_rpc_method_handler(self._version),
        }
        server = grpc.aio.server()
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(name, methods)])
        self.port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            yield self
        finally:
            await server.stop(None)


@asynccontextmanager
async def fake_service(load: str | None = "0") -> AsyncIterator[FakeService]:
    async with FakeService(load).serving() as service:
        yield service


@asynccontextmanager
async def listener() -> AsyncIterator[int]:
    """Return a context manager for a port that accepts TCP connections and does not use gRPC."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


async def ids(client: DirectoryClient, service_type: ServiceType = ServiceType.MODEL_REGISTRY) -> list[int]:
    return [service.service_id for service in await client.inquire(Details(service_type))]


async def eventually_ids(client: DirectoryClient, *expected: int) -> None:
    """Wait until exactly these model registries are returned, in this order."""

    async def are_they() -> bool:
        return await ids(client) == list(expected)

    await eventually(are_they)


def registry(**properties: str) -> Details:
    return Details(ServiceType.MODEL_REGISTRY, properties)


async def add(client: DirectoryClient, details: Details | None = None, permanent: bool = False) -> int:
    """Register a service that is never checked, and return its id."""
    service_id, _ = await client.register(NAMED, details or registry(), permanent=permanent)
    return service_id


# The calls.


async def test_a_service_is_found_by_id_and_by_type_until_it_is_deregistered(client: DirectoryClient) -> None:
    details = registry(Sim="20", hpp="")
    async with fake_service() as service:
        service_id, secret = await client.register(service.endpoint, details)
        assert service_id
        assert secret
        await eventually_ids(client, service_id)
        [by_id] = await client.inquire(service_id)
        [by_type] = await client.inquire(registry())
        assert by_id == by_type
        assert (by_id.service_id, by_id.endpoint, by_id.details) == (service_id, service.endpoint, details)
        assert not by_id.permanent
        await client.deregister(service_id, secret)
        assert await client.inquire(service_id) == []
        assert await client.inquire(registry()) == []
        assert service.asked[0] == ["overall_load"]


def register_request(**details: Any) -> pb.RegisterRequest:
    endpoint = pb.ServiceEndpoint(protocol=pb.ServiceEndpoint.COGMENT, host="somewhere")
    return wire.RegisterRequest(endpoint=endpoint, details=pb.ServiceDetails(**{"type": pb.OTHER_SERVICE} | details))


async def test_each_request_of_a_stream_is_answered_at_once_refused_or_not(raw: Raw) -> None:
    replies = await raw.register(register_request(), register_request(type=0), register_request())
    assert [reply.status for reply in replies] == [pb.RegisterReply.OK, pb.RegisterReply.FAILED, pb.RegisterReply.OK]
    assert [bool(reply.error_msg) for reply in replies] == [False, True, False]
    assert [bool(reply.service_id and reply.secret) for reply in replies] == [True, False, True]
    first, _, second = replies
    assert first.service_id != second.service_id
    assert first.secret != second.secret
    removals = await raw.deregister(
        wire.DeregisterRequest(service_id=second.service_id, secret=second.secret),
        wire.DeregisterRequest(service_id=second.service_id, secret=second.secret),
        wire.DeregisterRequest(service_id=first.service_id, secret=first.secret),
    )
    ok, failed = pb.DeregisterReply.OK, pb.DeregisterReply.FAILED
    assert [reply.status for reply in removals] == [ok, failed, ok]
    assert [bool(reply.error_msg) for reply in removals] == [False, True, False]


async def test_a_stream_without_requests_ends_without_replies(raw: Raw) -> None:
    assert await raw.register() == []
    assert await raw.deregister() == []


@pytest.mark.parametrize(
    ("where", "words"),
    [
        (pb.ServiceEndpoint(protocol=pb.ServiceEndpoint.UNKNOWN, host="a", port=1), "protocol"),
        (pb.ServiceEndpoint(protocol=pb.ServiceEndpoint.GRPC, port=1), "host"),
        (pb.ServiceEndpoint(protocol=pb.ServiceEndpoint.GRPC, host="a"), "port"),
        (pb.ServiceEndpoint(protocol=pb.ServiceEndpoint.GRPC_SSL, host="a", port=65536), "port"),
    ],
)
async def test_a_malformed_endpoint_is_refused_with_a_message(raw: Raw, where: pb.ServiceEndpoint, words: str) -> None:
    details = pb.ServiceDetails(type=pb.MODEL_REGISTRY_SERVICE)
    [reply] = await raw.register(wire.RegisterRequest(endpoint=where, details=details))
    assert reply.status == pb.RegisterReply.FAILED
    assert words in reply.error_msg


@pytest.mark.parametrize("number", [0, 10, 101])
async def test_a_type_that_does_not_exist_is_refused(raw: Raw, number: int) -> None:
    details = b"\x12" + bytes([2, 8, number])  # encoded by hand: no generated class accepts all of these
    [reply] = await raw.register(register_request().SerializeToString() + details)
    assert reply.status == pb.RegisterReply.FAILED
    assert str(number) in reply.error_msg
    with refused(grpc.StatusCode.INVALID_ARGUMENT, str(number)):
        await raw.inquire(details)


async def test_a_malformed_message_is_an_invalid_argument(raw: Raw) -> None:
    for method in ("Version", "Status"):
        with refused(grpc.StatusCode.INVALID_ARGUMENT):
            await raw.unary(method, b"\xff")
    with refused(grpc.StatusCode.INVALID_ARGUMENT):
        await raw.inquire(b"\xff")


async def test_a_malformed_registration_is_refused_and_the_stream_continues(raw: Raw) -> None:
    bad, good = await raw.register(b"\xff", register_request())
    assert (bad.status, good.status) == (pb.RegisterReply.FAILED, pb.RegisterReply.OK)
    assert bad.error_msg
    [removal] = await raw.deregister(b"\xff")
    assert removal.status == pb.DeregisterReply.FAILED
    assert removal.error_msg


async def test_an_inquiry_for_nothing_is_an_invalid_argument(raw: Raw) -> None:
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "service_id"):
        await raw.inquire(wire.InquireRequest())


async def test_status_returns_the_requested_names_and_everything_for_a_star(raw: Raw) -> None:
    await raw.register(register_request())
    everything = await raw.status("*")
    assert everything["overall_load"] == "0"
    assert everything["services"] == everything["healthy_services"] == "1"
    assert await raw.status("services") == {"services": "1"}
    assert await raw.status() == {}


async def test_version_returns_the_version(raw: Raw) -> None:
    reply = m.ServiceVersionInfo.FromString(await raw.unary("Version", m.VersionRequest()))
    assert __version__ in [part.version for part in reply.versions]


@pytest.mark.parametrize("name", ["", "cogmentAPI.DirectorySP"])
async def test_health_is_serving(raw: Raw, name: str) -> None:
    call: Any = raw.channel.unary_unary("/grpc.health.v1.Health/Check")
    request = health_pb2.HealthCheckRequest(service=name)
    reply = health_pb2.HealthCheckResponse.FromString(await call(request.SerializeToString(), timeout=PATIENCE_SECONDS))
    assert reply.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("is_on", [True, False])
async def test_reflection_can_be_enabled(is_on: bool) -> None:
    list_services = b"\x3a\x00"
    async with directory(grpc_reflection=is_on) as endpoint, raw_of(endpoint) as raw:
        ask: Any = raw.channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
        call = ask(timeout=PATIENCE_SECONDS)
        if is_on:
            await call.write(list_services)
            assert b"cogmentAPI.DirectorySP" in await call.read()
            call.cancel()
        else:
            assert await call.code() is grpc.StatusCode.UNIMPLEMENTED


# Tokens, secrets, ids.


async def test_only_an_equal_token_finds_or_removes_a_service(endpoint: str) -> None:
    async with connected(endpoint, "mine") as client:
        service_id, secret = await client.register(NAMED, registry())
        for token in ("", "another", "min", "mine2"):
            async with connected(endpoint, token) as stranger:
                assert await stranger.inquire(service_id) == []
                assert await stranger.inquire(registry()) == []
                with pytest.raises(InvalidError):
                    await stranger.deregister(service_id, secret)
        assert await ids(client) == [service_id]
        await client.deregister(service_id, secret)
        assert await ids(client) == []


async def test_a_service_without_token_is_not_found_with_one(endpoint: str) -> None:
    async with connected(endpoint) as client, connected(endpoint, "some") as other:
        service_id = await add(client)
        assert await ids(client) == [service_id]
        assert await ids(other) == []
        assert await other.inquire(service_id) == []


async def test_a_wrong_secret_and_an_unknown_id_get_the_same_refusal(client: DirectoryClient) -> None:
    service_id, secret = await client.register(NAMED, registry())
    messages = set()
    for wrong_id, wrong_secret in ((service_id, ""), (service_id, secret + "x"), (service_id + 1, secret)):
        with pytest.raises(InvalidError) as caught:
            await client.deregister(wrong_id, wrong_secret)
        messages.add(caught.value.message.replace(str(wrong_id), "ID"))
    assert len(messages) == 1
    assert secret not in messages.pop()
    assert await ids(client) == [service_id]


@pytest.mark.parametrize("service_id", [0, 1, 2**64 - 1])
async def test_an_unknown_id_finds_nothing(client: DirectoryClient, service_id: int) -> None:
    await add(client)
    assert await client.inquire(service_id) == []


# Returned services.


async def test_an_inquiry_matches_type_and_every_property_it_names(client: DirectoryClient) -> None:
    service_id = await add(client, registry(Sim="20", hpp=""))
    for matching in ({}, {"Sim": "20"}, {"hpp": ""}, {"hpp": "", "Sim": "20"}):
        assert [service.service_id for service in await client.inquire(registry(**matching))] == [service_id]
    for other in ({"Sim": "21"}, {"Sim": ""}, {"sim": "20"}, {"hpp": "1"}, {"Sim": "20", "more": ""}):
        assert await client.inquire(registry(**other)) == []
    assert await ids(client, ServiceType.DATASTORE) == []


async def test_the_most_recently_registered_comes_first(client: DirectoryClient) -> None:
    registered = [await add(client) for _ in range(5)]
    assert await ids(client) == registered[::-1]


async def test_a_permanent_service_is_updated_in_place(endpoint: str, client: DirectoryClient) -> None:
    first_id, first_secret = await client.register(
        Endpoint(Protocol.GRPC, "a", 1), registry(name="one"), permanent=True
    )
    other_id = await add(client, registry(name="two"), permanent=True)
    again = await client.register(Endpoint(Protocol.GRPC, "b", 2), registry(name="one"), permanent=True)
    assert again == (first_id, first_secret)
    [updated] = await client.inquire(first_id)
    assert updated.permanent
    assert updated.endpoint == Endpoint(Protocol.GRPC, "b", 2)
    assert sorted(await ids(client)) == sorted([first_id, other_id])
    async with connected(endpoint, "another") as stranger:
        their_id, _ = await stranger.register(Endpoint(Protocol.GRPC, "c", 3), registry(name="one"), permanent=True)
        assert their_id != first_id  # a service with another token is a different one
    assert [service.endpoint.host for service in await client.inquire(first_id)] == ["b"]


async def test_services_that_are_not_permanent_may_be_equal(client: DirectoryClient) -> None:
    assert len({await add(client, registry(name="one")) for _ in range(2)}) == 2
    assert len(await ids(client)) == 2


async def test_a_permanent_service_stays_without_an_answer(endpoint: str, client: DirectoryClient) -> None:
    details = Details(ServiceType.OTHER)
    await client.register(Endpoint(Protocol.GRPC, "127.0.0.1", free_port()), registry(), permanent=True)
    await client.register(Endpoint(Protocol.GRPC, "127.0.0.1", free_port()), details)
    async with raw_of(endpoint) as raw:
        await eventually(lambda: has_services(raw, 1))  # the other one has failed all its checks
    assert len(await ids(client)) == 1


async def has_services(raw: Raw, count: int) -> bool:
    return (await raw.status("services"))["services"] == str(count)


async def test_a_named_endpoint_is_returned_unchecked_and_stays(endpoint: str, client: DirectoryClient) -> None:
    service_id = await add(client)
    [service] = await client.inquire(service_id)
    assert service.endpoint == NAMED
    await client.register(Endpoint(Protocol.GRPC, "127.0.0.1", free_port()), Details(ServiceType.OTHER))
    async with raw_of(endpoint) as raw:
        await eventually(lambda: has_services(raw, 1))
    assert await ids(client) == [service_id]


# Checks.


async def test_a_service_that_cannot_be_called_is_checked_by_a_tcp_connection(
    endpoint: str, client: DirectoryClient
) -> None:
    protocol, service_type = Protocol.GRPC, ServiceType.OTHER
    async with listener() as port:
        service_id, _ = await client.register(Endpoint(protocol, "127.0.0.1", port), Details(service_type))
        await client.register(Endpoint(protocol, "127.0.0.1", free_port()), Details(service_type))
        await eventually(lambda: is_handed_out(client, service_id))
        async with raw_of(endpoint) as raw:
            await eventually(lambda: has_services(raw, 1))
        assert await ids(client, service_type) == [service_id]
    async with raw_of(endpoint) as raw:
        await eventually(lambda: has_services(raw, 0))


async def is_handed_out(client: DirectoryClient, service_id: int) -> bool:
    return bool(await client.inquire(service_id))


async def test_three_failed_checks_in_a_row_remove_a_service() -> None:
    async with directory() as endpoint, connected(endpoint) as client, raw_of(endpoint) as raw, fake_service() as ill:
        service_id, secret = await client.register(ill.endpoint, registry())
        await eventually_ids(client, service_id)
        ill.load = None
        await eventually(lambda: has_services(raw, 0))
        assert await client.inquire(service_id) == []
        with pytest.raises(InvalidError):
            await client.deregister(service_id, secret)


async def test_a_failed_check_hides_a_service_by_id_too_and_a_good_one_shows_it_again() -> None:
    async with directory(check_seconds=0.5) as endpoint, connected(endpoint) as client, fake_service() as ill:
        service_id, _ = await client.register(ill.endpoint, registry())
        await eventually_ids(client, service_id)
        for _ in range(2):  # a successful check resets the count of failures
            ill.load = None
            await eventually_ids(client)
            assert await client.inquire(service_id) == []
            ill.load = "0"
            await eventually_ids(client, service_id)


async def test_a_service_that_never_passed_a_check_is_not_returned(endpoint: str, client: DirectoryClient) -> None:
    async with fake_service(None) as ill, raw_of(endpoint) as raw:
        service_id, _ = await client.register(ill.endpoint, registry())
        while not await has_services(raw, 0):
            assert await client.inquire(service_id) == []
            assert await ids(client) == []


async def test_a_service_without_status_is_healthy_when_it_answers_version(client: DirectoryClient) -> None:
    async with fake_service(None) as service:
        service.has_version = True
        service_id, _ = await client.register(service.endpoint, registry())
        await eventually_ids(client, service_id)


async def test_a_service_that_cannot_serve_is_kept_and_not_returned() -> None:
    async with (
        directory() as endpoint,
        connected(endpoint) as client,
        raw_of(endpoint) as raw,
        fake_service("255") as full,
    ):
        service_id, _ = await client.register(full.endpoint, registry())
        await eventually(lambda: is_asked(full, 5))
        assert await client.inquire(service_id) == []
        assert await has_services(raw, 1)
        assert (await raw.status("healthy_services")) == {"healthy_services": "0"}
        full.load = "254"
        await eventually_ids(client, service_id)


async def is_asked(service: FakeService, times: int) -> bool:
    return len(service.asked) >= times


async def test_load_balancing_returns_services_within_10_of_the_lowest_load() -> None:
    async with (
        client_of_new(load_balancing=True) as client,
        fake_service("30") as low,
        fake_service("40") as within,
        fake_service("41") as beyond,
        fake_service("254") as busiest,
    ):
        services = [low, within, beyond, busiest]
        low_id, within_id, beyond_id, busiest_id = [
            (await client.register(service.endpoint, registry()))[0] for service in services
        ]
        await eventually_ids(client, within_id, low_id)

        async def busiest_is_found_by_its_id() -> bool:
            return [service.service_id for service in await client.inquire(busiest_id)] == [busiest_id]

        await eventually(busiest_is_found_by_its_id)
        low.load = "200"
        await eventually_ids(client, beyond_id, within_id)
        within.load = beyond.load = "255"
        await eventually_ids(client, low_id)


async def test_load_does_not_matter_without_load_balancing(client: DirectoryClient) -> None:
    async with fake_service("0") as idle, fake_service("254") as busy:
        idle_id, _ = await client.register(idle.endpoint, registry())
        busy_id, _ = await client.register(busy.endpoint, registry())
        await eventually_ids(client, busy_id, idle_id)


async def test_load_balancing_compares_only_matching_services() -> None:
    async with client_of_new(load_balancing=True) as client, fake_service("200") as busy:
        busy_id, _ = await client.register(busy.endpoint, registry(kind="big"))
        await add(client, registry(kind="small"))
        await eventually(lambda: is_handed_out(client, busy_id))
        assert [each.service_id for each in await client.inquire(registry(kind="big"))] == [busy_id]


# Waiting.


async def test_an_inquiry_waits_for_a_service_that_has_not_registered_yet() -> None:
    async with client_of_new(registration_lag=3600) as client:
        inquiry = asyncio.create_task(client.inquire(registry(name="late")))
        await add(client, registry(name="another"))
        assert not inquiry.done()
        service_id = await add(client, registry(name="late"))
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert [service.service_id for service in await inquiry] == [service_id]


async def test_an_inquiry_waits_for_the_first_check() -> None:
    async with client_of_new(registration_lag=10) as client, fake_service() as service:
        service_id, _ = await client.register(service.endpoint, registry())
        assert await ids(client) == [service_id]


async def test_an_inquiry_waits_no_longer_than_its_limit() -> None:
    async with client_of_new(registration_lag=1) as client:
        started = time.monotonic()
        assert await ids(client) == []
        assert time.monotonic() - started > 0.9


async def test_a_waiting_inquiry_does_not_delay_the_stop() -> None:
    async with connected_after_stop() as inquiry:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await inquiry
        assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


@asynccontextmanager
async def connected_after_stop() -> AsyncIterator["asyncio.Task[Any]"]:
    """Return a context manager for an inquiry that was waiting when its Directory, with a long grace, stopped."""
    server = running(dataclasses.replace(SETTINGS, registration_lag=3600, grace_seconds=3600))
    directory_server = await server.__aenter__()
    async with raw_of(f"grpc://127.0.0.1:{directory_server.port}") as raw:
        details = pb.ServiceDetails(type=pb.MODEL_REGISTRY_SERVICE)
        inquiry = asyncio.create_task(raw.inquire(wire.InquireRequest(details=details)))
        await raw.status("*")  # answered after the inquiry arrived, on the same connection
        async with asyncio.timeout(PATIENCE_SECONDS):
            await server.__aexit__(None, None, None)
        yield inquiry


# The file.


async def test_services_survive_a_restart_with_ids_secrets_and_tokens(tmp_path: Path) -> None:
    file = str(tmp_path / "new" / "services")
    async with fake_service() as service:
        async with client_of_new("mine", persistence_file=file) as client:
            service_id, secret = await client.register(service.endpoint, registry(Sim="20"))
            named_id = await add(client, registry(name="ünï"), permanent=True)
            await eventually_ids(client, named_id, service_id)
            before = await client.inquire(registry())
        async with directory(persistence_file=file) as endpoint, connected(endpoint, "mine") as client:
            await eventually_ids(client, named_id, service_id)
            assert await client.inquire(registry()) == before
            async with connected(endpoint) as stranger:
                assert await ids(stranger) == []
            await client.deregister(service_id, secret)
        async with client_of_new("mine", persistence_file=file) as client:
            assert await ids(client) == [named_id]


async def test_a_service_that_fails_the_first_check_after_a_restart_is_removed(tmp_path: Path) -> None:
    file = str(tmp_path / "services")
    async with fake_service() as ill, fake_service() as well:
        async with client_of_new(persistence_file=file) as client:
            ill_id, _ = await client.register(ill.endpoint, registry())
            well_id, _ = await client.register(well.endpoint, registry())
            await eventually_ids(client, well_id, ill_id)
        ill.load = None
        async with (
            directory(persistence_file=file, check_seconds=3600) as endpoint,
            connected(endpoint) as client,
            raw_of(endpoint) as raw,
        ):
            await eventually(lambda: has_services(raw, 1))
            await eventually_ids(client, well_id)


async def test_a_service_registered_before_a_restart_is_returned_after_its_check(tmp_path: Path) -> None:
    file = str(tmp_path / "services")
    async with fake_service() as service:
        async with client_of_new(persistence_file=file) as client:
            service_id, _ = await client.register(service.endpoint, registry())
            await eventually_ids(client, service_id)
        service.load = "255"
        service.asked.clear()
        async with client_of_new(persistence_file=file) as client:
            await eventually(lambda: is_asked(service, 2))
            assert await ids(client) == []


async def test_only_its_owner_may_read_the_file(tmp_path: Path) -> None:
    file = tmp_path / "services"
    umask = os.umask(0)
    try:
        async with client_of_new("mine", persistence_file=str(file)) as client:
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
            await add(client)
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
            assert os.listdir(tmp_path) == ["services"]
    finally:
        os.umask(umask)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b"{}",
        b'{"services": 3}',
        b'{"services": [{}]}',
        b'{"services": [3]}',
        b'{"services": {"a": 1}}',
        b"null",
    ],
)
async def test_a_damaged_file_stops_the_start_and_stays_as_it_is(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "services"
    file.write_bytes(content)
    with pytest.raises(StartError, match="persistence file"):
        async with directory(persistence_file=str(file)):
            pass
    assert file.read_bytes() == content


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("service_id", "seven"),
        ("service_id", -1),
        ("service_id", 2**64),
        ("port", 70_000),
        ("port", "x"),
        ("type", "nonsense"),
        ("type", []),
        ("protocol", "http"),
        ("host", ""),
        ("properties", []),
    ],
)
async def test_a_damaged_entry_stops_the_start(tmp_path: Path, name: str, value: object) -> None:
    file = tmp_path / "services"
    async with client_of_new(persistence_file=str(file)) as client:
        await client.register(Endpoint(Protocol.GRPC, "127.0.0.1", 1), registry(), permanent=True)
    state = json.loads(file.read_text())
    assert name in state["services"][0]
    state["services"][0][name] = value
    file.write_text(json.dumps(state))
    with pytest.raises(StartError, match="persistence file"):
        async with directory(persistence_file=str(file)):
            pass


async def test_a_file_that_cannot_be_written_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "services", tmp_path):
        with pytest.raises(StartError, match="persistence file"):
            async with directory(persistence_file=str(path)):
                pass


async def test_a_registration_that_cannot_be_persisted_is_refused(tmp_path: Path) -> None:
    """When the file can be written again, registrations succeed again."""
    folder = tmp_path / "folder"
    async with client_of_new(persistence_file=str(folder / "services")) as client:
        folder.rename(tmp_path / "aside")
        folder.touch()
        with pytest.raises(InvalidError, match="cannot write its persistence file"):
            await add(client)
        assert await ids(client) == []
        folder.unlink()
        assert await ids(client) == []
        service_id = await add(client)
        assert await ids(client) == [service_id]


async def test_checks_continue_after_a_removal_that_could_not_be_persisted(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    async with (
        directory(persistence_file=str(folder / "services")) as endpoint,
        connected(endpoint) as client,
        raw_of(endpoint) as raw,
        fake_service() as ill,
    ):
        await client.register(ill.endpoint, registry())
        await eventually(lambda: is_asked(ill, 1))
        folder.rename(tmp_path / "aside")
        folder.touch()
        ill.load = None
        ill.asked.clear()
        await eventually(lambda: is_asked(ill, 15))  # three calls of Status a check, so five checks
        folder.unlink()
        await eventually(lambda: has_services(raw, 0))


# Servers that are no Directory.


async def test_another_server_is_reported_as_not_a_directory(tmp_path: Path) -> None:
    async with (
        serving(tmp_path / "archive") as registry,
        tcp_server(b"HTTP/1.1 400 Bad Request\r\n\r\n") as web,
        http2_server(404) as proxy,
    ):
        for port, reason in ((registry.port, "call"), (web, "an HTTP/1 server"), (proxy, "HTTP status 404")):
            where = f"grpc://127.0.0.1:{port}"
            async with connected(where) as client:
                with pytest.raises(WrongServerError, match=f"{where} is not a Directory: .*{reason}"):
                    await client.inquire(Details(ServiceType.MODEL_REGISTRY))
                with pytest.raises(WrongServerError, match=f"{where} is not a Directory: .*{reason}"):
                    await client.register(NAMED, Details(ServiceType.MODEL_REGISTRY))
