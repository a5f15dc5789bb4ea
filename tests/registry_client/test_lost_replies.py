"""Uploads over a network that loses connections and replies: each creates one version."""

import asyncio
import os
from typing import Any

import grpc
import grpc.aio
import pytest

from cogment_model_registry import errors
from cogment_model_registry.server.composition import Server
from cogment_model_registry.settings import MIB
from cogment_model_registry.wire import lifecycle
from cogment_model_registry.wire import messages as m
from tests.client import connected
from tests.registry_client.conftest import opened
from tests.registry_client.network import Cutting, listening
from tests.registry_client.scripted import Answer, Call, created, scripted
from tests.waiting import PATIENCE_SECONDS

LARGE = os.urandom(32 * MIB)
DATA = pytest.mark.parametrize("data", [b"", b"weights", LARGE[: 5 * MIB]], ids=["empty", "small", "large"])
TIERS = pytest.mark.parametrize("call", ["publish", "store"])


def losing(server: Server, times: int) -> Answer:
    """Return an answer that passes uploads on to a server, and loses the last reply a number of times."""

    async def answer(call: Call) -> None:
        async with connected(server.port) as client:
            method: Any = client.channel.stream_stream(f"/{lifecycle.SERVICE_NAME}/UploadVersion")
            metadata = [each for each in call.context.invocation_metadata() if each in lifecycle.WHOLE_UPLOAD]
            upload = method(metadata=metadata, timeout=PATIENCE_SECONDS)

            async def pass_on() -> None:
                while (message := await call.receive()) is not None:
                    await upload.write(message)
                await upload.done_writing()

            passing = asyncio.ensure_future(pass_on())
            while (reply := await upload.read()) is not grpc.aio.EOF:
                if lifecycle.UploadVersionReply.FromString(reply).HasField("version") and call.number <= times:
                    await passing
                    await call.fail(grpc.StatusCode.UNAVAILABLE)
                await call.send(reply)
            passing.cancel()
            await asyncio.wait([passing])

    return answer


@DATA
@TIERS
async def test_an_upload_whose_reply_was_lost_creates_one_version(
    flavour: str, server: Server, call: str, data: bytes
) -> None:
    async with scripted(UploadVersion=losing(server, 2)) as proxy, opened(flavour, proxy.port) as registry:
        version = await getattr(registry, call)("policy", data, alias=None, metrics={"return": 1})
        assert (version.number, version.archived) == (1, call == "store")
        assert proxy.calls["UploadVersion"] == 3
    async with opened(flavour, server.port) as registry:
        assert await registry.list_versions("policy") == [version]
        assert await registry.retrieve(version) == data


async def test_an_upload_may_have_taken_effect_if_all_replies_are_lost(flavour: str, server: Server) -> None:
    async with scripted(UploadVersion=losing(server, 10**6)) as proxy:
        async with opened(flavour, proxy.port, retry_seconds=0.5) as registry:
            with pytest.raises(errors.UnavailableError, match="may have done it nevertheless") as caught:
                await registry.publish("policy", b"weights")
        assert caught.value.may_be_done
        assert proxy.calls["UploadVersion"] > 1
    async with opened(flavour, server.port) as registry:
        assert len(await registry.list_versions("policy")) == 1


async def test_an_upload_is_never_repeated_on_a_server_that_cannot_recognize_it(flavour: str) -> None:
    """Such as the original, if it has replaced the server in the meantime."""

    async def answer(call: Call) -> None:
        await call.receive_all()
        await call.fail(grpc.StatusCode.UNAVAILABLE if call.number == 1 else grpc.StatusCode.UNIMPLEMENTED)

    async with (
        scripted(UploadVersion=answer, CreateVersion=created) as server,
        opened(flavour, server.port) as registry,
    ):
        with pytest.raises(errors.WrongServerError) as caught:
            await registry.publish("policy", b"weights")
        assert caught.value.may_be_done
        assert server.calls["CreateVersion"] == 0


async def test_a_server_without_repeatable_uploads_gets_one_request(flavour: str) -> None:
    async def answer(call: Call) -> None:
        await call.fail(grpc.StatusCode.UNIMPLEMENTED)

    async with (
        scripted(UploadVersion=answer, CreateVersion=created) as server,
        opened(flavour, server.port) as registry,
    ):
        for _ in range(3):
            await registry.publish("policy", b"weights")
        assert server.calls == {"UploadVersion": 1, "CreateVersion": 3}


@TIERS
async def test_a_large_upload_resumes_where_the_connection_was_cut(flavour: str, server: Server, call: str) -> None:
    relay = Cutting(server.port, cuts=1, after_bytes=24 * MIB, upwards=True)
    async with listening(relay.relay) as port, opened(flavour, port) as registry:
        version = await getattr(registry, call)("policy", LARGE)
        assert await registry.retrieve(version) == LARGE
        assert await registry.list_versions("policy") == [version]
    # 32 MiB, and the bytes in flight when the connection was cut; from the beginning it would be 56 MiB.
    assert relay.sent_bytes < 48 * MIB


async def test_storing_what_was_just_published_sends_no_bytes(flavour: str, server: Server) -> None:
    relay = Cutting(server.port, cuts=0, after_bytes=0, upwards=True)
    async with listening(relay.relay) as port, opened(flavour, port) as registry:
        published = await registry.publish("policy", LARGE)
        before = relay.sent_bytes
        stored = await registry.store("policy", LARGE)
        again = await registry.store("policy", LARGE, user_data={"copy": "yes"})
        assert relay.sent_bytes - before < MIB
        assert [stored.archived, again.archived, again.user_data] == [True, True, {"copy": "yes"}]
        assert {published.data_hash} == {stored.data_hash, again.data_hash}
        assert await registry.retrieve(again) == LARGE


async def test_bytes_that_the_server_got_wrong_are_an_error(flavour: str) -> None:
    async def answer(call: Call) -> None:
        await call.receive_all()
        info = m.ModelVersionInfo(model_id="policy", version_number=1, data_hash="other", data_size=7)
        version = lifecycle.VersionMessage(version_info=info)
        await call.send(lifecycle.UploadVersionReply(version=version))

    async with scripted(UploadVersion=answer) as server, opened(flavour, server.port) as registry:
        with pytest.raises(errors.DataLossError, match="stored other bytes"):
            await registry.publish("policy", b"weights")
