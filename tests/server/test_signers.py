"""Models that demand signatures: each way in, and what survives with a version, over real channels and processes."""

import asyncio
import os
import signal
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import grpc
import pytest

from cogment_model_registry import ModelRegistry, Signature, Version, errors
from cogment_model_registry.cli import main
from cogment_model_registry.server.composition import Server
from cogment_model_registry.server.needs import NEEDS
from cogment_model_registry.settings import AUTO, MIB, Settings
from cogment_model_registry.storage.filesystem.layout import CATALOG_NAME
from cogment_model_registry.testing.bytes import hash_of
from cogment_model_registry.testing.server import serving
from cogment_model_registry.wire import lifecycle as m
from cogment_model_registry.wire import messages
from cogment_model_registry.wire import models as wire_models
from tests.client import Client, connected, refused
from tests.processes import ServerProcess, server_process
from tests.server.test_model_lifecycle import Lifecycle
from tests.server.test_upload_version import Upload, chunk
from tests.server.under_way import leftovers
from tests.signing import KeyPair

PRECONDITION, INVALID = grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT
ENDED = (grpc.aio.AioRpcError, AssertionError)
"""How a refused upload ends: while it is written to, or when `Upload` reads the reply."""

SIGNER, OTHER = KeyPair(), KeyPair()
DATA = os.urandom(3 * MIB)
SMALL = b"some weights"
TIERS = pytest.mark.parametrize("archived", [False, True], ids=["transient", "archived"])
HASHED = pytest.mark.parametrize("hashed", [False, True], ids=["without a hash", "with a hash"])

BAD: dict[str, Callable[[bytes], Signature | None]] = {
    "none": lambda _: None,
    "another key": OTHER.sign_data,
    "another model": lambda data: SIGNER.sign_data(data, "n"),
    "other bytes": lambda data: SIGNER.sign_data(data + b"x"),
    "other user_data": lambda data: SIGNER.sign_data(data, user_data={"a": "b"}),
}


def header(
    data: bytes, signature: Signature | None, *, archived: bool, hashed: bool = True, **fields: Any
) -> m.UploadVersionRequest:
    """Return the header of an upload of the model "m"."""
    info = messages.ModelVersionInfo(
        model_id="m", archived=archived, data_size=len(data), data_hash=hash_of(data) if hashed else ""
    )
    return m.UploadVersionRequest(
        header=m.UploadVersionRequest.Header(version_info=info, signature=m.signature_message(signature), **fields)
    )


async def demand(client: Client, *keys: KeyPair) -> None:
    signers = wire_models.UpdateModelRequest.Signers(public_keys=[key.public.der for key in keys])
    request = wire_models.UpdateModelRequest(model_id="m", signers=signers)
    await Client(client.channel, m.SERVICE_NAME).unary("UpdateModel", request, wire_models.ModelMessage)


@pytest.fixture
async def guarded(client: Client) -> Client:
    """A client of a server with the model "m", which demands signatures."""
    await client.create_model("m")
    await demand(client, SIGNER)
    return client


async def upload(client: Client, first: m.UploadVersionRequest, data: bytes) -> Any:
    """Upload a version by waiting for the first reply, as for large ones."""
    call = Upload(client)
    wanted = await call.begin(first)
    return await call.finish(data[wanted:])


async def upload_at_once(client: Client, first: m.UploadVersionRequest, data: bytes) -> Any:
    """Upload a version in one round trip, as small ones are."""
    call: Any = client.channel.stream_unary(f"/{m.SERVICE_NAME}/UploadVersion")
    requests = [first.SerializeToString(), chunk(data).SerializeToString()]
    return await call(iter(requests), metadata=m.WHOLE_UPLOAD)


WAYS = pytest.mark.parametrize("way", [upload, upload_at_once])


@TIERS
@HASHED
@WAYS
async def test_a_version_without_a_right_signature_is_refused(
    guarded: Client, tmp_path: Path, *, archived: bool, hashed: bool, way: Callable[..., Awaitable[Any]]
) -> None:
    for bad, sign in BAD.items():
        first = header(SMALL, sign(SMALL), archived=archived, hashed=hashed, request_id="id")
        with pytest.raises(ENDED, match="FAILED_PRECONDITION"):
            await way(guarded, first, SMALL)
        assert await guarded.numbers("m") == [], bad
        assert leftovers(tmp_path / "archive") == [], bad
    await way(guarded, header(SMALL, SIGNER.sign_data(SMALL), archived=archived, hashed=hashed), SMALL)
    assert await guarded.numbers("m") == [1]


@TIERS
@WAYS
async def test_a_signed_version_is_described_with_its_signature_everywhere(
    guarded: Client, archived: bool, way: Callable[..., Awaitable[Any]]
) -> None:
    signature = SIGNER.sign_data(SMALL)
    await way(guarded, header(SMALL, signature, archived=archived, tags={"stage": "test"}), SMALL)
    lifecycle = Lifecycle(guarded)
    [listed] = (await lifecycle.find(model_id="m", filter="tags.stage = test")).versions
    [got] = await lifecycle.get(1)
    assert m.version_from_message(listed).signature == got.signature == signature
    request = m.read_request("m", 1, 0, None, "")
    replies = Client(guarded.channel, m.SERVICE_NAME).streamed("ReadVersion", request)
    first, *_ = [m.read_reply(reply) async for reply in replies]
    assert isinstance(first, Version)
    assert first.signature == signature


@TIERS
async def test_stock_clients_are_refused_before_they_send_bytes(guarded: Client, archived: bool) -> None:
    call = guarded.uploading()
    first = messages.CreateVersionRequestChunk.Header(
        version_info=messages.ModelVersionInfo(model_id="m", archived=archived, data_size=len(SMALL))
    )
    await call.write(messages.CreateVersionRequestChunk(header=first).SerializeToString())
    with refused(PRECONDITION, "one of its signers has signed, and this one has no signature"):
        await call
    assert await guarded.numbers("m") == []


async def test_bytes_that_the_model_has_do_not_replace_a_signature(client: Client) -> None:
    await client.create_model("m")
    await client.store("m", DATA)
    await demand(client, SIGNER)
    call = Upload(client)
    assert await call.begin(header(DATA, None, archived=True)) == len(DATA)
    with pytest.raises(ENDED, match="FAILED_PRECONDITION"):
        await call.finish()
    assert await client.numbers("m") == [1]
    call = Upload(client)
    assert await call.begin(header(DATA, SIGNER.sign_data(DATA), archived=True)) == len(DATA)
    assert (await call.finish()).signature == SIGNER.sign_data(DATA)


async def test_an_interrupted_upload_goes_on_with_its_signature(guarded: Client, server: Server) -> None:
    first = header(DATA, SIGNER.sign_data(DATA), archived=True, request_id="one")
    call = Upload(guarded)
    await call.begin(first)
    await call.send(chunk(DATA[:MIB]))
    async with connected(server.port) as another:
        again = Upload(another)
        wanted = await again.begin(first)
        assert (await again.finish(DATA[wanted:])).signature == SIGNER.sign_data(DATA)
        # The same id with another signature is another upload.
        with pytest.raises(ENDED, match="ALREADY_EXISTS"):
            await Upload(another).begin(header(DATA, OTHER.sign_data(DATA), archived=True, request_id="one"))


@pytest.mark.parametrize(
    ("key_id", "value"), [(b"", bytes(64)), (bytes(32), b""), (bytes(33), bytes(65))], ids=["no id", "no value", "long"]
)
async def test_a_malformed_signature_is_invalid(guarded: Client, key_id: bytes, value: bytes) -> None:
    first = header(SMALL, SIGNER.sign_data(SMALL), archived=False)
    first.header.signature.key_id, first.header.signature.value = key_id, value
    with pytest.raises(ENDED, match="INVALID_ARGUMENT"):
        await upload_at_once(guarded, first, SMALL)


@pytest.mark.parametrize(
    "der",
    [b"", b"x", bytes(44), SIGNER.public.der + b"x", SIGNER.public.der[:-1]],
    ids=["empty", "short", "zeros", "one more byte", "one byte less"],
)
async def test_a_malformed_key_is_invalid(client: Client, der: bytes) -> None:
    await client.create_model("m")
    signers = wire_models.UpdateModelRequest.Signers(public_keys=[SIGNER.public.der, der])
    request = wire_models.UpdateModelRequest(model_id="m", signers=signers)
    with refused(INVALID, "key"):
        await Client(client.channel, m.SERVICE_NAME).unary("UpdateModel", request, wire_models.ModelMessage)


async def test_mutated_headers_are_refused_and_never_internal(guarded: Client) -> None:
    """The rules are tested with many more; here it is the server's answer that counts."""
    random = Random(3)
    right = header(SMALL, SIGNER.sign_data(SMALL), archived=False).SerializeToString()

    async def attempt(changed: bytearray) -> grpc.StatusCode:
        call: Any = guarded.channel.stream_unary(f"/{m.SERVICE_NAME}/UploadVersion")
        requests = [bytes(changed), chunk(SMALL).SerializeToString()]
        try:
            await call(iter(requests), metadata=m.WHOLE_UPLOAD)
        except grpc.aio.AioRpcError as error:
            return error.code()
        header = m.decode_upload(bytes(changed))
        assert not isinstance(header, memoryview)
        # What is not signed may differ: the tier, the time, tags.
        stored = replace(header.version, data_hash=hash_of(SMALL), data_size_bytes=len(SMALL))
        assert header.version.signature == SIGNER.sign(stored)
        return grpc.StatusCode.OK

    def mutated() -> bytearray:
        changed = bytearray(right)
        for _ in range(random.randint(1, 3)):
            changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
        return changed

    # At once, since the server waits a moment for what the client of a refused upload still sends.
    codes = [code for _ in range(20) for code in await asyncio.gather(*(attempt(mutated()) for _ in range(50)))]
    assert {*codes} <= {grpc.StatusCode.OK, PRECONDITION, INVALID, grpc.StatusCode.NOT_FOUND}
    assert codes.count(PRECONDITION) > 100


# By the local socket.


@TIERS
async def test_memory_that_is_handed_over_needs_a_signature_too(tmp_path: Path, archived: bool) -> None:
    settings = Settings(cache_max_bytes=64 * MIB, grace_seconds=0, local_socket=AUTO)
    async with serving(tmp_path / "archive", settings) as server:
        with ModelRegistry(f"grpc://127.0.0.1:{server.port}") as registry:

            def work() -> None:
                create = registry.store if archived else registry.publish
                registry.create_model("m")
                registry.set_signers("m", SIGNER.public)
                with pytest.raises(errors.PreconditionError, match="has no signature"):
                    create("m", DATA)
                with pytest.raises(errors.PreconditionError, match="another key"):
                    create("m", DATA, sign=OTHER.private)
                version = create("m", DATA, sign=SIGNER.private, user_data={"step": 1})
                assert registry.retrieve(version, verify=SIGNER.public) == DATA
                assert [each.number for each in registry.list_versions("m")] == [1]

            await asyncio.to_thread(work)


# What survives.


def connect(server: ServerProcess) -> ModelRegistry:
    return ModelRegistry(f"grpc://127.0.0.1:{server.port}")


def fill(registry: ModelRegistry) -> None:
    registry.store("m", DATA, sign=SIGNER.private, user_data={"step": 1})
    registry.publish("m", SMALL, sign=SIGNER.private)
    registry.promote("m", 2)
    registry.set_signers("m", SIGNER.public)


def check(registry: ModelRegistry, model_id: str = "m", *, has_rule: bool = True) -> None:
    """Check that both versions are verified, and that the rule holds."""
    for number, data in ((1, DATA), (2, SMALL)):
        assert registry.retrieve(model_id, number, verify=SIGNER.public) == data
    assert [each.signature for each in registry.find_versions(model_id)] == [
        registry.describe_version(model_id, number).signature for number in (1, 2)
    ]
    assert registry.describe_model(model_id).signers == ((SIGNER.public,) if has_rule else ())
    if has_rule:
        with pytest.raises(errors.PreconditionError):
            registry.store(model_id, SMALL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_signatures_and_signers_survive_the_end_of_the_server(tmp_path: Path, number: signal.Signals) -> None:
    with server_process(tmp_path / "archive") as server, connect(server) as registry:
        fill(registry)
        server.signal(number)
        server.wait()
    with server_process(tmp_path / "archive") as server, connect(server) as registry:
        check(registry)


def test_signatures_survive_the_loss_of_the_database_and_signers_do_not(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    with server_process(archive) as server, connect(server) as registry:
        fill(registry)
        server.stop()
    for path in archive.glob(f"{CATALOG_NAME}*"):
        path.unlink()
    with server_process(archive) as server, connect(server) as registry:
        check(registry, has_rule=False)


def test_a_database_of_the_former_release_is_brought_up_to_date(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    with server_process(archive) as server, connect(server) as registry:
        registry.store("m", SMALL, user_data={"step": 1}, tags={"stage": "test"})
        server.stop()
    with closing(sqlite3.connect(archive / CATALOG_NAME)) as database:
        database.executescript("DROP TABLE signers; ALTER TABLE versions DROP COLUMN signature")
        database.execute("PRAGMA user_version = 2")
    with server_process(archive) as server, connect(server) as registry:
        [version] = registry.find_versions("m", "tags.stage = test")
        assert (version.signature, version.user_data) == (None, {"step": "1"})
        registry.store("m", DATA, sign=SIGNER.private)
        assert registry.retrieve("m", verify=SIGNER.public) == DATA


def test_signatures_and_signers_survive_an_export_a_backup_and_a_repair(tmp_path: Path) -> None:
    archive, file = tmp_path / "archive", tmp_path / "m.tar"
    (tmp_path / "imported").mkdir()
    (tmp_path / "plain").mkdir()
    with server_process(archive) as server, connect(server) as registry:
        fill(registry)
        assert main(["archive", "backup", str(archive), str(tmp_path / "backup")]) == 0
        server.stop()
    assert main(["archive", "export", str(archive), "m", "--output", str(file)]) == 0
    assert main(["archive", "import", str(tmp_path / "imported"), str(file)]) == 0
    assert main(["archive", "import", str(tmp_path / "plain"), str(file), "--without_annotations"]) == 0
    for name, has_rule in (("backup", True), ("imported", True), ("plain", False)):
        assert main(["archive", "verify", str(tmp_path / name)]) == 0
        with server_process(tmp_path / name) as server, connect(server) as registry:
            check(registry, has_rule=has_rule)


def test_an_import_under_another_id_keeps_signatures_that_do_not_verify_and_the_rule(tmp_path: Path) -> None:
    archive, file = tmp_path / "archive", tmp_path / "m.tar"
    with server_process(archive) as server, connect(server) as registry:
        fill(registry)
        server.stop()
    assert main(["archive", "export", str(archive), "m", "--output", str(file)]) == 0
    assert main(["archive", "import", str(archive), str(file), "--model_id", "n"]) == 0
    with server_process(archive) as server, connect(server) as registry:
        assert registry.describe_version("n", 1).signature == registry.describe_version("m", 1).signature
        with pytest.raises(errors.SignatureError, match="wrong signature"):
            registry.retrieve("n", 1, verify=SIGNER.public)
        assert registry.describe_model("n").signers == (SIGNER.public,)


async def test_the_metadata_is_that_of_the_original_with_one_more_field(tmp_path: Path) -> None:
    async with serving(tmp_path / "archive") as server, connected(server.port) as client:
        await client.create_model("m")
        await upload_at_once(client, header(SMALL, None, archived=True), SMALL)
        await upload_at_once(client, header(SMALL, SIGNER.sign_data(SMALL), archived=True), SMALL)
    plain, signed = ((tmp_path / f"archive/m/m-v00000{number}.yaml").read_text().splitlines() for number in (1, 2))
    assert signed[-1] == f"signature: {SIGNER.sign_data(SMALL)}"
    assert [line.partition(":")[0] for line in signed[:-1]] == [line.partition(":")[0] for line in plain]


@pytest.mark.parametrize(
    "field", ["signature: x", "signature: {a: b}", "signature: [a]", "signature:", "signature: ''"]
)
async def test_another_field_of_that_name_is_no_signature_and_no_damage(tmp_path: Path, field: str) -> None:
    async with serving(tmp_path / "archive") as server, connected(server.port) as client:
        await client.create_model("m")
        await client.store("m", SMALL)
    path = tmp_path / "archive/m/m-v000001.yaml"
    path.write_text(path.read_text() + field + "\n")
    async with serving(tmp_path / "archive") as server, connected(server.port) as client:
        assert await client.data("m", 1) == SMALL
        [version] = await Lifecycle(client).get(1)
        assert version.signature is None


def test_the_rule_needs_the_right_to_administrate() -> None:
    request = wire_models.UpdateModelRequest(model_id="m")
    assert "admin" not in NEEDS["UpdateModel"](request)[0].actions
    request.signers.SetInParent()
    assert NEEDS["UpdateModel"](request)[0].actions == ("admin",)
