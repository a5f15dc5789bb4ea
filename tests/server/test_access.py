"""Access control over real channels: every call, with each scope, and with each way not to be allowed."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from cogment_model_registry import aio, errors
from cogment_model_registry.records.access import ACTIONS, Grant, identity_of, parse_scopes
from cogment_model_registry.records.uploads import UploadHeader
from cogment_model_registry.records.versions import VersionHeader
from cogment_model_registry.server.needs import NEEDS
from cogment_model_registry.settings import MIB, Settings
from cogment_model_registry.storage.tools.tokens import add_grant, remove_grant
from cogment_model_registry.testing.server import serving
from cogment_model_registry.wire import audit, consumers, convert, lifecycle, models, watching
from cogment_model_registry.wire import messages as m
from tests.client import connected
from tests.waiting import PATIENCE_SECONDS

MODEL, OTHER = "policy-1", "other"
SP = m.SERVICE_NAMES[0]
LIFECYCLE = lifecycle.SERVICE_NAME
REFUSED = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
VERSION = lifecycle.VersionRef(model_id=MODEL, version_number=1)

# Each call: its service, a request, and which scopes are enough for it, each list of them together.
CALLS: Mapping[str, tuple[str, bytes, Sequence[set[str]]]] = {
    "CreateOrUpdateModel": (
        SP,
        m.CreateOrUpdateModelRequest(model_info=m.ModelInfo(model_id=MODEL)).SerializeToString(),
        [{"publish"}, {"store"}],
    ),
    "DeleteModel": (SP, m.DeleteModelRequest(model_id=MODEL).SerializeToString(), [{"delete", "alias"}]),
    "RetrieveModels": (SP, m.RetrieveModelsRequest(model_ids=[MODEL]).SerializeToString(), [{"read"}]),
    "CreateVersion": (
        SP,
        convert.encode_header(VersionHeader(MODEL, archived=False, data_size_bytes=1)),
        [{"publish"}],
    ),
    "RetrieveVersionInfos": (SP, m.RetrieveVersionInfosRequest(model_id=MODEL).SerializeToString(), [{"read"}]),
    "RetrieveVersionData": (
        SP,
        m.RetrieveVersionDataRequest(model_id=MODEL, version_number=1).SerializeToString(),
        [{"read"}],
    ),
    "VersionUpdate": (SP, m.VersionUpdateRequest(model_id=MODEL).SerializeToString(), [{"read"}]),
    "Version": (SP, b"", [set()]),
    "Status": (SP, m.StatusRequest(names=["*"]).SerializeToString(), [set()]),
    "UploadVersion": (
        LIFECYCLE,
        lifecycle.encode_upload_header(UploadHeader(VersionHeader(MODEL, archived=True, data_size_bytes=1))),
        [{"store"}],
    ),
    "ReadVersion": (LIFECYCLE, lifecycle.ReadVersionRequest(version=VERSION).SerializeToString(), [{"read"}]),
    "ListVersions": (LIFECYCLE, lifecycle.ListVersionsRequest(model_id=MODEL).SerializeToString(), [{"read"}]),
    "UpdateVersion": (
        LIFECYCLE,
        lifecycle.UpdateVersionRequest(version=VERSION).SerializeToString(),
        [{"publish"}, {"store"}],
    ),
    "PromoteVersion": (
        LIFECYCLE,
        lifecycle.PromoteVersionRequest(version=VERSION, aliases=["a"]).SerializeToString(),
        [{"store", "alias"}],
    ),
    "DeleteVersion": (
        LIFECYCLE,
        lifecycle.DeleteVersionRequest(version=VERSION, force=True).SerializeToString(),
        [{"delete", "alias"}],
    ),
    "SetAliases": (
        LIFECYCLE,
        lifecycle.SetAliasesRequest(
            model_id=MODEL, changes=[lifecycle.SetAliasesRequest.Change(alias="a", version_number=1)]
        ).SerializeToString(),
        [{"alias"}],
    ),
    "ListModels": (LIFECYCLE, models.ListModelsRequest(model_ids=[MODEL]).SerializeToString(), [{"read"}]),
    "UpdateModel": (
        LIFECYCLE,
        models.UpdateModelRequest(model_id=MODEL, retention=models.UpdateModelRequest.Retention()).SerializeToString(),
        [{"admin"}],
    ),
    "ApplyRetention": (LIFECYCLE, models.ApplyRetentionRequest(model_id=MODEL).SerializeToString(), [{"delete"}]),
    "Watch": (LIFECYCLE, watching.WatchRequest(model_ids=[MODEL]).SerializeToString(), [{"read"}]),
    "ReportConsumer": (
        LIFECYCLE,
        consumers.ReportConsumerRequest(
            consumer=consumers.ConsumerMessage(model_id=MODEL, consumer_id="c")
        ).SerializeToString(),
        [{"read"}],
    ),
    "ListConsumers": (LIFECYCLE, consumers.ListConsumersRequest(model_id=MODEL).SerializeToString(), [{"read"}]),
    "ListChanges": (
        audit.SERVICE_NAME,
        audit.ListChangesRequest(model_id=MODEL).SerializeToString(),
        [{"admin"}],
    ),
}


STREAMED_REQUESTS = ("CreateVersion", "UploadVersion")
STREAMED_REPLIES = ("RetrieveVersionData", "VersionUpdate", "ReadVersion", "Watch")
SETTINGS = Settings(
    cache_max_bytes=16 * MIB, grace_seconds=0, local_socket="", retention_seconds=0, anonymous="nothing"
)
_DAY_NS = 86_400 * 10**9
_number = iter(range(10**9))


def granted(archive_dir: Path, *scopes: str, seconds: float | None = None, revoked: bool = False) -> str:
    """Return a new token with some scopes."""
    number = next(_number)
    token, now_ns = f"cmr_{number:040}", time.time_ns()
    expires_ns = None if seconds is None else now_ns + int(seconds * 1e9)
    grant = Grant(f"g{number}", "token", identity_of(token), parse_scopes(scopes), now_ns, expires_ns)
    add_grant(str(archive_dir), grant)
    if revoked:
        remove_grant(str(archive_dir), grant.name)
    return token


async def call(channel: grpc.aio.Channel, method: str, token: str | None, request: bytes | None = None) -> Any:
    """Return the status of a call; None as soon as it is admitted."""
    service, usual, _ = CALLS[method]
    path, data = f"/{service}/{method}", usual if request is None else request
    metadata = [] if token is None else [("authorization", f"Bearer {token}")]
    anything: Any = channel
    try:
        if method in STREAMED_REQUESTS:
            await anything.stream_unary(path)(iter([data]), metadata=metadata, timeout=PATIENCE_SECONDS)
        elif method in STREAMED_REPLIES:
            replies = anything.unary_stream(path)(data, metadata=metadata, timeout=PATIENCE_SECONDS)
            first = await replies.read()
            replies.cancel()
            if first is grpc.aio.EOF:
                return await replies.code()
        else:
            await anything.unary_unary(path)(data, metadata=metadata, timeout=PATIENCE_SECONDS)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return None


@asynccontextmanager
async def registry_of(tmp_path: Path, settings: Settings = SETTINGS) -> AsyncIterator[grpc.aio.Channel]:
    """A server with a model of one version, and a channel to it."""
    add_grant(str(tmp_path / "archive"), ADMIN)
    async with serving(tmp_path / "archive", settings) as server, connected(server.port) as client:
        await prepare(server.port)
        yield client.channel


async def prepare(port: int) -> None:
    """Create the models, if they are not there."""
    async with aio.ModelRegistry(f"grpc://127.0.0.1:{port}", token=ADMIN_TOKEN) as registry:
        for model_id in (MODEL, OTHER):
            await registry.publish(model_id, b"1")


ADMIN_TOKEN = "cmr_admin"
ADMIN = Grant("admin", "token", identity_of(ADMIN_TOKEN), parse_scopes(["admin"]), 0)


def is_enough(method: str, *actions: str) -> bool:
    """Return whether some scopes for the model are enough for a call."""
    return "admin" in actions or any(each <= {*actions} for each in CALLS[method][2])


def test_every_method_is_here() -> None:
    services = {method.name for pool in (m, lifecycle, audit) for method in _methods(pool)}
    assert services == CALLS.keys() == {name for name in NEEDS if not name.startswith("Local")}


def _methods(module: Any) -> Sequence[Any]:
    if module is m:
        return [*m.CreateVersionReply.DESCRIPTOR.file.services_by_name["ModelRegistrySP"].methods]
    if module is audit:
        return [*audit.ListChangesRequest.DESCRIPTOR.file.services_by_name["AuditLog"].methods]
    return [*lifecycle.UploadVersionRequest.DESCRIPTOR.file.services_by_name["ModelLifecycle"].methods]


@pytest.mark.parametrize("method", [*CALLS])
async def test_each_call_needs_its_scopes_and_no_others(tmp_path: Path, method: str) -> None:
    archive = tmp_path / "archive"
    async with registry_of(tmp_path) as channel:

        async def refused(token: str | None) -> bool:
            return await call(channel, method, token) in REFUSED

        is_open = CALLS[method][2] == [set()]
        assert await call(channel, method, None) is (None if is_open else grpc.StatusCode.UNAUTHENTICATED)
        for token in ("cmr_wrong", "", "x" * 1000, ADMIN_TOKEN + "x", ADMIN_TOKEN[:-1]):
            assert await call(channel, method, token) is grpc.StatusCode.UNAUTHENTICATED
        for action in ACTIONS:
            assert await refused(granted(archive, f"{action}:{MODEL}")) is not is_enough(method, action)
            assert await refused(granted(archive, f"{action}:policy-*")) is not is_enough(method, action)
            assert await refused(granted(archive, f"{action}:{OTHER}")) is not is_open
            assert await refused(granted(archive, f"{action}:{MODEL}x")) is not is_open
            expired, revoked = granted(archive, action, seconds=-1), granted(archive, action, revoked=True)
            assert await call(channel, method, expired) is grpc.StatusCode.UNAUTHENTICATED
            await until_refused(channel, revoked)  # the server may have seen it before it was revoked
            assert await call(channel, method, revoked) is grpc.StatusCode.UNAUTHENTICATED
        everything_else = [f"{each}:{MODEL}" for each in ACTIONS if each != "admin"]
        assert await refused(granted(archive, *everything_else)) is not is_enough(method, *ACTIONS.keys() - {"admin"})


async def test_a_token_that_was_used_is_refused_once_revoked(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    async with registry_of(tmp_path) as channel:
        token = granted(archive, "read")
        name = f"g{int(token.removeprefix('cmr_'))}"
        assert await call(channel, "RetrieveModels", token) is None
        remove_grant(str(archive), name)

        await until_refused(channel, token)


async def test_a_watch_tells_nothing_after_its_token_was_revoked(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    async with registry_of(tmp_path) as channel:
        token = granted(archive, "read")
        anything: Any = channel
        metadata = [("authorization", f"Bearer {token}")]
        told = anything.unary_stream(f"/{LIFECYCLE}/Watch")(CALLS["Watch"][1], metadata=metadata)
        assert await told.read() is not grpc.aio.EOF
        remove_grant(str(archive), f"g{int(token.removeprefix('cmr_'))}")
        await until_refused(channel, token)
        assert await call(channel, "CreateVersion", ADMIN_TOKEN) is grpc.StatusCode.INVALID_ARGUMENT  # no bytes came
        await publish_one(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await read_to_end(told)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def read_to_end(told: Any) -> None:
    """Read all replies of a call: some of them may have been sent before it ended."""
    while await told.read() is not grpc.aio.EOF:
        pass


async def until_refused(channel: grpc.aio.Channel, token: str) -> None:
    """Wait until a token is refused."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while await call(channel, "RetrieveModels", token) is not grpc.StatusCode.UNAUTHENTICATED:
        assert time.monotonic() < deadline


async def publish_one(channel: grpc.aio.Channel) -> None:
    """Publish another version."""
    anything: Any = channel
    header = convert.encode_header(VersionHeader(MODEL, archived=False, data_size_bytes=0))
    metadata = [("authorization", f"Bearer {ADMIN_TOKEN}")]
    await anything.stream_unary(f"/{SP}/CreateVersion")(iter([header]), metadata=metadata)


ALL_MODELS = [f"{name}-{number}" for name in ("policy", "value") for number in range(7)]


async def test_listings_have_what_may_be_read(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    add_grant(str(archive), ADMIN)
    async with serving(archive, SETTINGS) as server:
        endpoint = f"grpc://127.0.0.1:{server.port}"
        async with aio.ModelRegistry(endpoint, token=ADMIN_TOKEN) as registry:
            for model_id in ALL_MODELS:
                await registry.publish(model_id, b"12")
        async with aio.ModelRegistry(endpoint, token=granted(archive, "read:policy-*", "read:value-3")) as reader:
            readable = [model for model in ALL_MODELS if model.startswith("policy")] + ["value-3"]
            assert [model.model_id for model in await reader.find_models()] == readable
            assert [model.model_id for model in await reader.find_models(limit=8)] == readable
            assert [model.model_id for model in await reader.list_models()] == readable
            assert sorted(each.model_id for each in await reader.find_versions()) == readable
            with pytest.raises(errors.PermissionDeniedError, match="lacks the scope read:value-1"):
                await reader.list_versions("value-1")
            with pytest.raises(errors.PermissionDeniedError, match="lacks the scope read:no_such_model"):
                await reader.list_versions("no_such_model")
        async with connected(server.port) as client:
            await check_pages(client.channel, granted(archive, "read:policy-*"))
            await check_watch(client.channel, granted(archive, "read:policy-*"))
            assert await call(client.channel, "Watch", granted(archive, "store"), b"") in REFUSED


async def check_pages(channel: grpc.aio.Channel, token: str) -> None:
    """Check pages of the first service: those of readable models, all of them, each once."""
    anything: Any = channel
    found: list[str] = []
    handle = ""
    while True:
        request = m.RetrieveModelsRequest(models_count=3, model_handle=handle).SerializeToString()
        metadata = [("authorization", f"bearer {token}")]
        reply = m.RetrieveModelsReply.FromString(
            await anything.unary_unary(f"/{SP}/RetrieveModels")(request, metadata=metadata)
        )
        if not reply.model_infos:
            break
        found += [model.model_id for model in reply.model_infos]
        handle = reply.next_model_handle
    assert found == [model for model in ALL_MODELS if model.startswith("policy")]


async def check_watch(channel: grpc.aio.Channel, token: str) -> None:
    """Check that a watch of all models tells of those that may be read, also when others change."""
    anything: Any = channel
    metadata = [("authorization", f"Bearer {token}")]
    request = watching.WatchRequest(consumers=True).SerializeToString()
    told = anything.unary_stream(f"/{LIFECYCLE}/Watch")(request, metadata=metadata)
    seen: set[str] = set()
    while True:
        reply = watching.WatchReply.FromString(await told.read())
        kind = reply.WhichOneof("event")
        if kind == "caught_up":
            break
        seen.add(reply.version.version_info.model_id if kind == "version" else reply.model.model_info.model_id)
    assert seen == {model for model in ALL_MODELS if model.startswith("policy")}
    for model_id in ("value-0", "policy-0"):
        header = convert.encode_header(VersionHeader(model_id, archived=False, data_size_bytes=0))
        await anything.stream_unary(f"/{SP}/CreateVersion")(
            iter([header]), metadata=[("authorization", f"Bearer {ADMIN_TOKEN}")]
        )
    reply = watching.WatchReply.FromString(await told.read())
    assert reply.version.version_info.model_id == "policy-0"
    told.cancel()


@pytest.mark.parametrize(
    ("anonymous", "may_read", "may_publish"),
    [("everything", True, True), ("read", True, False), ("nothing", False, False), ("auto", True, True)],
)
async def test_what_anonymous_callers_may_do(tmp_path: Path, anonymous: str, may_read: bool, may_publish: bool) -> None:
    settings = Settings(cache_max_bytes=16 * MIB, grace_seconds=0, local_socket="", anonymous=anonymous)
    async with registry_of(tmp_path, settings) as channel:
        assert (await call(channel, "RetrieveModels", None) in REFUSED) is not may_read
        assert (await call(channel, "UpdateVersion", None) in REFUSED) is not may_publish


@pytest.mark.parametrize("value", ["Basic abc", "Bearer", "cmr_admin", "bearer cmr_admin x", "Token x"])
async def test_malformed_authorization_is_refused(tmp_path: Path, value: str) -> None:
    async with registry_of(tmp_path, Settings(grace_seconds=0, local_socket="", anonymous="everything")) as channel:
        anything: Any = channel
        for metadata in ([("authorization", value)], [("authorization", f"Bearer {ADMIN_TOKEN}")] * 2):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await anything.unary_unary(f"/{SP}/RetrieveModels")(b"", metadata=metadata)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_no_wrong_token_is_accepted_and_none_breaks_the_server(tmp_path: Path) -> None:
    chance = random.Random(16)
    wrong = set()
    for _ in range(300):
        token = list(ADMIN_TOKEN)
        for _ in range(chance.randint(1, 3)):
            place = chance.randrange(len(token))
            token[place : place + chance.randint(0, 1)] = chr(chance.randint(0x21, 0x7E))
        wrong.add("".join(token))
    async with registry_of(tmp_path) as channel:
        # At once, since the server looks for new tokens only so often.
        calls = [call(channel, "RetrieveModels", token) for token in sorted(wrong - {ADMIN_TOKEN})]
        assert {*await asyncio.gather(*calls)} == {grpc.StatusCode.UNAUTHENTICATED}


async def test_status_says_nothing_of_models_to_those_who_may_not_read_them(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    async with registry_of(tmp_path) as channel:
        anything: Any = channel
        everything, load = {"models", "overall_load"}, {"overall_load"}
        for scope, names in (("read", everything), (f"read:{MODEL}", load), (None, load)):
            metadata = [("authorization", f"Bearer {granted(archive, scope)}")] if scope else []
            data = await anything.unary_unary(f"/{SP}/Status")(CALLS["Status"][1], metadata=metadata)
            assert m.StatusReply.FromString(data).statuses.keys() & {"models", "overall_load"} == names


async def test_alias_scopes_are_by_alias_and_rules_need_admin(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    add_grant(str(archive), ADMIN)
    async with serving(archive, SETTINGS) as server:
        endpoint = f"grpc://127.0.0.1:{server.port}"
        await prepare(server.port)
        token = granted(archive, f"alias:{MODEL}/staging*", "store:policy-*", "publish:policy-*", "delete:policy-*")
        async with aio.ModelRegistry(endpoint, token=token) as registry:
            await registry.set_alias(MODEL, "staging-1", 1)
            await registry.promote(MODEL, 1, alias="staging-2")
            for denied in (
                registry.set_alias(MODEL, "production", 1),
                registry.remove_alias(MODEL, "production"),
                registry.promote(MODEL, 1, alias="production"),
                registry.publish(MODEL, b"2", alias="production"),
                registry.delete_version(MODEL, 1, force=True),
                registry.delete_model(MODEL),
                registry.set_retention(MODEL, []),
                registry.publish(OTHER, b"2"),
            ):
                with pytest.raises(errors.PermissionDeniedError, match="lacks the scope"):
                    await denied
            await registry.update_model(MODEL, tags={"a": "b"})
            await registry.update_version(MODEL, 1, metrics={"a": 1})
