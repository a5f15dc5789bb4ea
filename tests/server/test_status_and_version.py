"""Version and Status; and for all nine calls: both names of the service, and malformed messages."""

import asyncio
import platform
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import grpc
import pytest
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cogment_model_registry
from cogment_model_registry.server.composition import Server
from cogment_model_registry.settings import Settings
from cogment_model_registry.testing.server import serving
from cogment_model_registry.wire import messages as m
from cogment_model_registry.wire import pings
from tests.client import Client, connected, header, next_version, refused, upload
from tests.server.under_way import under_way
from tests.waiting import eventually

INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
MIB = 1024 * 1024
BUDGET_BYTES = 64 * MIB  # of the fixture `server`
DOCUMENTED_NAMES = ("cogmentAPI.ModelRegistrySP", "cogment.ModelRegistrySP")
QUICKLY = settings(
    max_examples=50, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
SERVICE = pytest.mark.parametrize("service", DOCUMENTED_NAMES)

REQUESTS: dict[str, Message] = {
    "CreateOrUpdateModel": m.CreateOrUpdateModelRequest(model_info=m.ModelInfo(model_id="m", user_data={"k": "v"})),
    "DeleteModel": m.DeleteModelRequest(model_id="m"),
    "RetrieveModels": m.RetrieveModelsRequest(model_ids=["m"], models_count=3, model_handle="0"),
    "CreateVersion": header("m", 0, user_data={"k": "v"}),
    "RetrieveVersionInfos": m.RetrieveVersionInfosRequest(model_id="m", version_numbers=[1, -1], version_handle="0"),
    "RetrieveVersionData": m.RetrieveVersionDataRequest(model_id="m", version_number=1),
    "VersionUpdate": m.VersionUpdateRequest(model_id="m"),
    "Version": m.VersionRequest(),
    "Status": m.StatusRequest(names=["overall_load", "*"]),
}
METHOD = pytest.mark.parametrize("method", REQUESTS)


async def answer(client: Client, method: str, data: bytes) -> grpc.StatusCode:
    """Send one message to a method, and return the resulting status; OK if an endless stream begins."""
    if method == "CreateVersion":
        call = client.uploading()
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await call.write(data)
            await call.done_writing()
    else:
        call = client.streamed(method, data)  # on the wire, a call with one reply is a stream of one
        with suppress(grpc.aio.AioRpcError):
            if await call.read() is not grpc.aio.EOF and method == "VersionUpdate":
                call.cancel()
                return grpc.StatusCode.OK
    code: grpc.StatusCode = await call.code()
    return code


# Version.


async def test_version_names_the_registry_python_and_grpcio(client: Client) -> None:
    assert await client.version() == {
        "cogment-model-registry": cogment_model_registry.__version__,
        "python": platform.python_version(),
        "grpcio": grpc.__version__,
    }


# Status.


async def test_idle_registry_has_no_load(client: Client) -> None:
    assert await client.status("overall_load") == {"overall_load": "0"}


async def test_star_returns_all_statuses_even_next_to_other_names(client: Client) -> None:
    everything = await client.status("*")
    assert everything.keys() > {"overall_load", "uploads", "watchers", "transient_bytes"}
    assert await client.status("overall_load", "*", "unknown") == everything


async def test_only_the_named_statuses_are_returned(client: Client) -> None:
    assert await client.status() == {}
    assert await client.status("unknown", "", "overall", "OVERALL_LOAD", "over*") == {}
    assert await client.status("watchers", "unknown", "overall_load", "watchers") == {
        "watchers": "0",
        "overall_load": "0",
    }
    for name, value in (await client.status("*")).items():
        assert await client.status(name) == {name: value}


async def test_how_often_to_ping_is_returned_only_to_those_who_ask_for_it(client: Client) -> None:
    assert await client.status(pings.STATUS) == {pings.STATUS: "1"}
    assert pings.STATUS not in await client.status("*")


async def test_status_counts_models_versions_and_active_calls(client: Client) -> None:
    names = ("models", "versions", "transient_versions", "transient_bytes", "uploads", "retrievals", "watchers")

    async def counts() -> list[int]:
        status = await client.status(*names)
        return [int(status[name]) for name in names]

    assert await counts() == [0] * 7
    for model_id in ("m", "n"):
        await client.create_model(model_id)
    data = bytes(30 * MIB)  # more than the connection can buffer
    await client.publish("m", data)
    await client.store("m", b"archived")
    assert await counts() == [2, 2, 1, len(data), 0, 0, 0]
    retrieval = client.streamed("RetrieveVersionData", m.RetrieveVersionDataRequest(model_id="m", version_number=1))
    await retrieval.read()
    watch = client.watching("m")
    await next_version(watch)
    upload_call = client.uploading()
    await upload_call.write(header("m", 1, archived=True).SerializeToString())

    async def are_in_progress(count: int) -> bool:
        return await counts() == [2, 2, 1, len(data), count, count, count]

    await eventually(lambda: are_in_progress(1))
    for call in (retrieval, watch, upload_call):
        call.cancel()
    await eventually(lambda: are_in_progress(0))
    await client.delete_model("m")
    assert await counts() == [1, 0, 0, 0, 0, 0, 0]


async def load_of(client: Client) -> int:
    load = int((await client.status("overall_load"))["overall_load"])
    assert 0 <= load <= 255
    return load


@asynccontextmanager
async def active_uploads(client: Client, count: int, size: int, archived: bool = False) -> AsyncIterator[None]:
    """Return a context manager for uploads that have declared their size and sent nothing."""
    calls = [client.uploading() for _ in range(count)]
    for call in calls:
        await call.write(header("m", size, archived).SerializeToString())
    await under_way(client, uploads=count)
    yield
    for call in calls:
        call.cancel()
    await under_way(client, uploads=0)


async def test_load_rises_with_reserved_memory_and_falls_again(client: Client) -> None:
    await client.create_model("m")
    async with active_uploads(client, 1, BUDGET_BYTES // 2):
        assert 120 <= await load_of(client) <= 135
    async with active_uploads(client, 1, BUDGET_BYTES):
        assert await load_of(client) >= 240

    async def is_idle() -> bool:
        return await load_of(client) == 0

    await eventually(is_idle)


@pytest.mark.parametrize("archived", [False, True], ids=["transient", "archived"])
async def test_load_rises_with_each_active_transfer(client: Client, archived: bool) -> None:
    await client.create_model("m")
    loads = []
    for count in (1, 10, 40):
        async with active_uploads(client, count, 1, archived):
            loads.append(await load_of(client))
    assert 0 < loads[0] < loads[1] < loads[2] <= 255


async def test_evictable_memory_does_not_count_as_load(client: Client) -> None:
    await client.create_model("m")
    await client.publish("m", bytes(BUDGET_BYTES))
    assert await client.status("transient_bytes") == {"transient_bytes": str(BUDGET_BYTES)}
    assert await load_of(client) == 0


async def test_registry_without_free_memory_still_answers(client: Client) -> None:
    await client.create_model("m")
    async with active_uploads(client, 1, BUDGET_BYTES):
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED):
            await client.create_version([header("m", 1)])
        replies = await asyncio.gather(*(client.models("m") for _ in range(200)))
        assert all(len(reply.model_infos) == 1 for reply in replies)
        assert (await client.store("m", b"x")).version_number == 1


# All calls.


@SERVICE
async def test_all_calls_answer_under_both_names(server: Server, client: Client, service: str) -> None:
    async with connected(server.port, service) as other:
        assert await other.version() == await client.version()
        assert await other.status("*") == await client.status("*")
        await other.create_model("m", a="b")
        watch = other.watching("m")
        first = await other.publish("m", b"1")
        assert await next_version(watch) == first
        second = await other.store("m", b"2")
        assert await next_version(watch) == second
        assert await other.infos("m") == await client.infos("m")
        assert await other.models() == await client.models()
        assert await other.chunks("m") == [b"2"]
        assert await client.data("m", 1) == b"1"
        await other.delete_model("m")
        with refused(NOT_FOUND):
            await client.infos("m")
        with refused(NOT_FOUND):
            await next_version(watch)


UNDECODABLE = {
    "no tag": b"\xff",
    "no length": b"\x0a",
    "too short": b"\x0a\x05ab",
    "wire type 7": b"\x0f",
    "open group": b"\x1b",
    "long varint": b"\x08" + b"\xff" * 11,
}
NOT_UTF_8 = {
    "CreateOrUpdateModel": b"\x0a\x03\x0a\x01\xff",
    "DeleteModel": b"\x0a\x01\xff",
    "RetrieveModels": b"\x22\x01\xff",
    "CreateVersion": b"\x0a\x05\x0a\x03\x0a\x01\xff",
    "RetrieveVersionInfos": b"\x0a\x02\xc3\x28",
    "RetrieveVersionData": b"\x0a\x03\xed\xa0\x80",  # half of a surrogate pair
    "VersionUpdate": b"\x0a\x02\xc0\x80",
    "Status": b"\x0a\x01\xff",
}


@SERVICE
@METHOD
async def test_malformed_request_is_invalid(server: Server, service: str, method: str) -> None:
    samples = UNDECODABLE | ({"not UTF-8": NOT_UTF_8[method]} if method in NOT_UTF_8 else {})
    async with connected(server.port, service) as client:
        statuses = {name: await answer(client, method, data) for name, data in samples.items()}
    assert statuses == dict.fromkeys(samples, INVALID)


@SERVICE
@METHOD
async def test_unknown_fields_are_ignored(server: Server, service: str, method: str) -> None:
    async with connected(server.port, service) as client:
        await client.create_model("m")
        await client.publish("m", b"x")
        data = REQUESTS[method].SerializeToString() + b"\xfa\x7f\x03abc"
        assert await answer(client, method, data) == grpc.StatusCode.OK


@METHOD
@QUICKLY
@given(data=st.data())
async def test_no_request_bytes_cause_a_server_fault(client: Client, method: str, data: st.DataObject) -> None:
    await client.create_model("m")
    if not await client.numbers("m"):
        await client.publish("m", b"x")
    sound = REQUESTS[method].SerializeToString()
    start = data.draw(st.integers(0, len(sound)))
    end = data.draw(st.integers(start, len(sound)))
    request = sound[:start] + data.draw(st.binary(max_size=4)) + sound[end:]
    assert await answer(client, method, request) in {
        grpc.StatusCode.OK,
        INVALID,
        NOT_FOUND,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }


@METHOD
async def test_request_of_16_mib_is_accepted_and_a_larger_one_refused_on_every_call(
    client: Client, method: str
) -> None:
    await client.create_model("m")
    await client.publish("m", b"x")
    sound = REQUESTS[method].SerializeToString()
    for excess, expected in ((1, grpc.StatusCode.RESOURCE_EXHAUSTED), (0, grpc.StatusCode.OK)):
        filling = bytes(16 * MIB + excess - len(sound) - 6)  # in addition to a tag of two bytes and a length of four
        unknown_field = b"\xfa\x7f" + m.RetrieveVersionDataReplyChunk(data_chunk=filling).SerializeToString()[1:]
        assert len(sound + unknown_field) == 16 * MIB + excess
        assert await answer(client, method, sound + unknown_field) == expected


async def test_request_limit_is_a_setting(tmp_path: Path) -> None:
    small = Settings(cache_max_bytes=MIB, grace_seconds=0, request_max_bytes=64 * 1024)
    async with serving(tmp_path, small) as server, connected(server.port) as client:
        await client.create_model("m")
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED):
            await client.create_version(upload("m", bytes(64 * 1024), chunk_size=64 * 1024))
        assert (await client.create_version(upload("m", bytes(64 * 1024), chunk_size=60_000))).version_number == 1
