"""Signing what is uploaded, and verifying what is retrieved, by both flavours of the client."""

import base64
import os
import pickle
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey

from cogment_model_registry import VersionInfo, errors
from cogment_model_registry.client import downloads, fetching, partial_files
from cogment_model_registry.client.signatures import Trust, public_keys_of, signer_of, trust_of
from cogment_model_registry.server.composition import Server
from cogment_model_registry.settings import AUTO, MIB, Settings
from cogment_model_registry.testing.bytes import hash_of
from cogment_model_registry.testing.server import serving
from cogment_model_registry.wire import lifecycle, messages
from cogment_model_registry.wire import watching as wire_watching
from tests.registry_client.conftest import opened
from tests.registry_client.scripted import Call, created, has_model, infos, scripted, silence
from tests.registry_client.test_resumed_downloads import Interruption, after
from tests.signing import KeyPair
from tests.waiting import until

SIGNER, OTHER = KeyPair(), KeyPair()
SMALL = b"some weights"
LARGE = os.urandom(5 * MIB + 7)
TIERS = pytest.mark.parametrize("archived", [False, True], ids=["transient", "archived"])
SIZES = pytest.mark.parametrize("data", [b"", SMALL, LARGE], ids=["empty", "small", "large"])
PLACES = pytest.mark.parametrize("local_socket", ["", AUTO], ids=["by gRPC", "by the local socket"])

ATTEMPTS: dict[str, Callable[..., Any]] = {
    "retrieve": lambda registry, path, keys, model="m": registry.retrieve(model, verify=keys),
    "a view": lambda registry, path, keys, model="m": registry.retrieve(model, copy=False, verify=keys),
    "download": lambda registry, path, keys, model="m": registry.download(model, path, verify=keys),
    "resumed download": lambda registry, path, keys, model="m": registry.download(
        model, path, resume=True, verify=keys
    ),
}


@pytest.fixture(params=["", AUTO], ids=["by gRPC", "by the local socket"])
async def server(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Server]:
    settings = Settings(cache_max_bytes=64 * MIB, grace_seconds=0, local_socket=request.param, retention_seconds=0)
    async with serving(tmp_path / "archive", settings) as running:
        yield running


async def create(registry: Any, data: bytes, *, archived: bool = False, **options: Any) -> VersionInfo:
    version: VersionInfo = await (registry.store if archived else registry.publish)("m", data, **options)
    return version


def contents(path: Path) -> bytes:
    """Return the bytes of a file, and remove it."""
    data = path.read_bytes()
    path.unlink()
    return data


async def obtained(registry: Any, path: Path, keys: Any) -> dict[str, bytes]:
    """Return the bytes of the newest version as each way has them."""
    found = {}
    for name, attempt in ATTEMPTS.items():
        result = await attempt(registry, path, keys)
        found[name] = contents(path) if isinstance(result, VersionInfo) else bytes(result)
    return found


@TIERS
@SIZES
async def test_what_was_signed_is_verified_in_each_way(
    registry: Any, tmp_path: Path, archived: bool, data: bytes
) -> None:
    version = await create(registry, data, archived=archived, sign=SIGNER.private_pem, user_data={"step": 1000})
    assert version.signature == SIGNER.sign_data(data, user_data={"step": "1000"})
    assert await obtained(registry, tmp_path / "copy", SIGNER.public_pem) == dict.fromkeys(ATTEMPTS, data)
    assert await registry.retrieve(version, verify=[OTHER.public, SIGNER.private.public_key()]) == data
    assert await registry.retrieve(await registry.get_version("m"), verify=SIGNER.public) == data
    assert await registry.retrieve("m", archived=archived, verify=SIGNER.public) == data
    assert (await registry.describe_version("m")).signature == version.signature


@TIERS
async def test_what_is_not_signed_by_a_trusted_key_is_refused_and_leaves_no_file(
    registry: Any, tmp_path: Path, archived: bool
) -> None:
    path = tmp_path / "copy"
    for sign, reason in ((None, "has no signature"), (OTHER.private, f"is signed by key {OTHER.public.key_id}")):
        version = await create(registry, LARGE, archived=archived, sign=sign)
        for attempt in ATTEMPTS.values():
            with pytest.raises(errors.SignatureError, match=reason) as caught:
                await attempt(registry, path, SIGNER.public)
            assert (caught.value.model_id, caught.value.version_number) == ("m", version.number)
        assert not path.exists()


async def test_a_file_that_was_there_stays_when_its_successor_is_refused(registry: Any, tmp_path: Path) -> None:
    path = tmp_path / "copy"
    await create(registry, SMALL, sign=SIGNER.private)
    await registry.download("m", path, verify=SIGNER.public)
    await create(registry, b"other", sign=OTHER.private)
    with pytest.raises(errors.SignatureError):
        await registry.download("m", path, verify=SIGNER.public)
    assert path.read_bytes() == SMALL


async def test_a_view_that_was_verified_is_not_one_of_a_file_of_the_archive(registry: Any, tmp_path: Path) -> None:
    await create(registry, LARGE, archived=True, sign=SIGNER.private)
    view = await registry.retrieve("m", copy=False, verify=SIGNER.public)
    [path] = (tmp_path / "archive").rglob("*.data")
    with path.open("r+b") as file:
        file.write(b"changed in place")
    assert view == LARGE


async def test_signed_versions_can_be_promoted_and_have_the_same_signature(registry: Any) -> None:
    version = await create(registry, SMALL, sign=SIGNER.private)
    promoted = await registry.promote("m", version.number, alias="production")
    assert promoted.signature == version.signature
    assert await registry.retrieve("m", "production", verify=SIGNER.public) == SMALL
    await registry.update_version("m", 1, tags={"stage": "good"}, metrics={"return": 1.0})
    assert await registry.retrieve("m", "production", verify=SIGNER.public) == SMALL


async def test_the_cache_is_not_trusted_more_than_the_server(server: Server, flavour: str, tmp_path: Path) -> None:
    async with opened(flavour, server.port, cache_dir=tmp_path / "cache") as registry:
        await create(registry, SMALL, sign=SIGNER.private)
        for _ in range(2):
            assert await registry.retrieve("m", verify=SIGNER.public) == SMALL
        [cached] = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.name != "lock"]
        cached.write_bytes(b"soma weights")
        assert await registry.retrieve("m", verify=SIGNER.public) == SMALL
        await create(registry, SMALL)  # the same bytes, which the cache has, without a signature
        with pytest.raises(errors.SignatureError, match="has no signature"):
            await registry.retrieve("m", verify=SIGNER.public)


async def test_downloads_in_parts_and_resumed_ones_are_verified(
    tmp_path: Path, flavour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "_LARGE_BYTES", 2 * MIB)
    monkeypatch.setattr(downloads, "_PART_BYTES", MIB)
    monkeypatch.setattr(fetching, "_FAST_BYTES_PER_SECOND", float("inf"))
    monkeypatch.setattr(partial_files, "_SYNC_BYTES", 64 * 1024)
    monkeypatch.setattr(partial_files, "_UNSYNCED_BYTES", 64 * 1024)
    path = tmp_path / "copy"
    async with serving(tmp_path / "archive") as server, opened(flavour, server.port) as registry:
        await create(registry, LARGE, archived=True, sign=SIGNER.private)
        assert await registry.retrieve("m", verify=SIGNER.public) == LARGE
        with pytest.raises(Interruption):
            await registry.download("m", path, resume=True, verify=SIGNER.public, progress=after(2 * MIB))
        partial = tmp_path / "copy.cogment-partial"
        data = bytearray(partial.read_bytes())
        data[1] ^= 1  # what was received before is not trusted
        partial.write_bytes(data)
        with pytest.raises(errors.SignatureError):
            await registry.download("m", path, resume=True, verify=OTHER.public)
        assert not path.exists()
        await registry.download("m", path, resume=True, verify=SIGNER.public)
        assert path.read_bytes() == LARGE


# Following.


def is_refused(latest: Any, version: VersionInfo) -> bool:
    return f"version {version.number} of " in str(latest.error)


async def test_a_tracker_keeps_its_value_until_a_trusted_version_comes(registry: Any) -> None:
    await create(registry, b"1", sign=SIGNER.private)
    async with registry.track("m", verify=SIGNER.public) as latest:
        await latest.wait_for(0)
        for sign in (None, OTHER.private):
            version = await create(registry, b"not this one", sign=sign)
            await until(partial(is_refused, latest, version))
            assert isinstance(latest.error, errors.SignatureError)
            assert latest.value == b"1"
        await create(registry, LARGE, sign=SIGNER.private)
        await latest.wait_for(1)
        assert latest.value == LARGE
        assert latest.error is None


async def test_a_tracker_of_an_alias_verifies_too(registry: Any) -> None:
    await create(registry, b"1", sign=SIGNER.private, alias="production")
    async with registry.track("m", alias="production", verify=SIGNER.public) as latest:
        await latest.wait_for(0)
        assert latest.value == b"1"
        await create(registry, b"2", alias="production")
        await until(lambda: isinstance(latest.error, errors.SignatureError))
        assert latest.value == b"1"


async def test_a_mirror_ends_with_the_first_version_that_is_not_signed(registry: Any, tmp_path: Path) -> None:
    await create(registry, SMALL, sign=SIGNER.private)
    await create(registry, LARGE, sign=SIGNER.private)
    events = registry.mirror(tmp_path / "mirror", "m", verify=SIGNER.public)
    saved = [await anext(events) for _ in range(2)]
    assert [contents(Path(each.path)) for each in saved] == [SMALL, LARGE]
    await create(registry, b"inline")
    with pytest.raises(errors.SignatureError, match=r"version 3 .* has no signature"):
        await anext(events)
    assert os.listdir(tmp_path / "mirror" / "m") == []


# Signers.


async def test_signers_are_set_and_shown(registry: Any) -> None:
    await registry.create_model("m")
    model = await registry.set_signers("m", [SIGNER.public_pem, OTHER.public_pem])
    assert {*model.signers} == {SIGNER.public, OTHER.public}
    with pytest.raises(errors.ConflictError):
        await registry.set_signers("m", [], expected=model.revision + 1)
    with pytest.raises(errors.PreconditionError, match="has no signature"):
        await registry.publish("m", SMALL)
    await registry.publish("m", SMALL, sign=SIGNER.private)
    assert (await registry.set_signers("m", [])).signers == ()
    await registry.publish("m", SMALL)


# Other servers.


async def test_a_server_of_the_original_takes_no_signed_version_and_has_none(flavour: str) -> None:
    async with (
        scripted(RetrieveModels=has_model, CreateVersion=created, RetrieveVersionInfos=infos) as server,
        opened(flavour, server.port) as registry,
    ):
        with pytest.raises(errors.ModelRegistryError, match="takes no tags, metrics, aliases and signatures"):
            await registry.publish("policy", SMALL, sign=SIGNER.private)
        assert server.calls["CreateVersion"] == 0
        for version in ("policy", await registry.get_version("policy")):
            with pytest.raises(errors.SignatureError, match=r"nothing can be verified: .* has no .*ModelLifecycle"):
                await registry.retrieve(version, verify=SIGNER.public)


def record(data: bytes, signature: Any, **changes: Any) -> lifecycle.VersionMessage:
    fields = {"model_id": "policy", "version_number": 1, "data_hash": hash_of(data), "data_size": len(data), **changes}
    info = messages.ModelVersionInfo(**fields)
    return lifecycle.VersionMessage(version_info=info, signature=lifecycle.signature_message(signature))


async def test_an_older_release_that_drops_the_signature_is_an_error(flavour: str) -> None:
    async def uploaded(call: Call) -> None:
        await call.receive_all()
        await call.send(lifecycle.UploadVersionReply(version=record(SMALL, None)))

    async with scripted(UploadVersion=uploaded) as server, opened(flavour, server.port) as registry:
        with pytest.raises(errors.ModelRegistryError, match="was created without its signature") as caught:
            await registry.publish("policy", SMALL, sign=SIGNER.private)
        assert caught.value.may_be_done


SIGNATURE = SIGNER.sign_data(SMALL, "policy")
LIES: dict[str, tuple[lifecycle.VersionMessage, type[Exception], str]] = {
    "another model": (
        record(SMALL, SIGNER.sign_data(SMALL, "other"), model_id="other"),
        errors.WrongServerError,
        'the server sent one of "other"',
    ),
    "other bytes": (record(b"other bytes", SIGNATURE), errors.SignatureError, "wrong signature"),
    "another size": (record(SMALL, SIGNATURE, data_size=5), errors.SignatureError, "wrong signature"),
    "other user_data": (record(SMALL, SIGNATURE, user_data={"a": "b"}), errors.SignatureError, "wrong signature"),
    "no signature": (record(SMALL, None), errors.SignatureError, "no signature"),
    "a malformed one": (
        lifecycle.VersionMessage(version_info=record(SMALL, None).version_info, signature={"key_id": b"x"}),
        errors.SignatureError,
        "no signature",
    ),
    "the key's id on another signature": (
        record(SMALL, replace(SIGNATURE, value=base64.b64encode(bytes(64)).decode())),
        errors.SignatureError,
        "wrong signature",
    ),
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_server_that_lies_is_found_out_before_bytes_are_fetched(flavour: str, lie: str, tmp_path: Path) -> None:
    message, error, reason = LIES[lie]

    async def listed(call: Call) -> None:
        await call.send(lifecycle.ListVersionsReply(versions=[message]))

    async def never(call: Call) -> None:
        raise AssertionError("bytes were asked for")

    async with (
        scripted(ListVersions=listed, RetrieveVersionData=never, ReadVersion=never) as server,
        opened(flavour, server.port) as registry,
    ):
        for attempt in ATTEMPTS.values():
            with pytest.raises(error, match=reason):
                await attempt(registry, tmp_path / "copy", SIGNER.public, "policy")
        assert (server.calls["RetrieveVersionData"], server.calls["ReadVersion"]) == (0, 0)
    assert not (tmp_path / "copy").exists()


async def test_a_server_that_sends_other_bytes_than_were_signed_is_found_out(flavour: str) -> None:
    async def listed(call: Call) -> None:
        await call.send(lifecycle.ListVersionsReply(versions=[record(SMALL, SIGNATURE)]))

    async def other(call: Call) -> None:
        await call.send(messages.RetrieveVersionDataReplyChunk(data_chunk=b"soma weights"))

    async with (
        scripted(ListVersions=listed, RetrieveVersionData=other) as server,
        opened(flavour, server.port) as registry,
    ):
        with pytest.raises(errors.DataLossError):
            await registry.retrieve("policy", verify=SIGNER.public)


async def test_a_tracker_verifies_what_comes_with_the_news(flavour: str) -> None:
    """The record is signed, and of another model; so are the bytes."""

    async def watch(call: Call) -> None:
        reply = wire_watching.WatchReply(resume_token="t", version_data=SMALL)
        reply.version.CopyFrom(record(SMALL, SIGNER.sign_data(SMALL, "other"), model_id="other"))
        await call.send(reply)
        await silence(call)

    async def version(call: Call) -> None:
        await call.send(messages.version_reply({}))

    async with (
        scripted(Watch=watch, RetrieveModels=has_model, RetrieveVersionInfos=infos, Version=version) as server,
        opened(flavour, server.port) as registry,
        registry.track("policy", verify=SIGNER.public) as latest,
    ):
        await until(lambda: isinstance(latest.error, errors.SignatureError))
        assert 'which is of model "other"' in str(latest.error)
        assert latest.value is None


# Keys.


def test_keys_come_in_several_forms(tmp_path: Path) -> None:
    private, public = tmp_path / "signer.key", tmp_path / "signer.pub"
    private.write_bytes(SIGNER.private_pem)
    public.write_bytes(SIGNER.public_pem + OTHER.public_pem)
    version = VersionInfo("m", 1, 1, True, hash_of(SMALL), len(SMALL))
    for key in (private, str(private), SIGNER.private_pem, SIGNER.private):
        assert signer_of(key).sign(version) == SIGNER.sign_data(SMALL)
    both = [SIGNER.public, OTHER.public]
    for keys in (public, str(public), public.read_bytes(), [public], both, iter(both)):
        assert public_keys_of(keys) == both
    for one in (SIGNER.public, SIGNER.private.public_key(), [SIGNER.public_pem]):
        assert public_keys_of(one) == [SIGNER.public]


def secret_parts(pem: bytes) -> list[str]:
    return [line for line in pem.decode().splitlines() if not line.startswith("-")]


def other_key(*, password: bytes | None = None) -> bytes:
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    key = SIGNER.private if password else Ed448PrivateKey.generate()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        (b"", "has no private key in PEM"),
        (SIGNER.public_pem, "has no private key in PEM"),
        (SIGNER.private_pem[:-40], "has no private key in PEM"),
        (other_key(), "not an Ed25519 key"),
        (other_key(password=b"secret"), "encrypted private key: decrypt it with `openssl pkey`"),
        (SIGNER.private_pem.decode(), "give PEM as bytes"),
        (7, "is of type int"),
        (None, "is of type NoneType"),
    ],
    ids=["empty", "public", "cut", "another kind", "encrypted", "text", "number", "nothing"],
)
def test_other_keys_sign_nothing_and_no_message_has_a_part_of_one(key: Any, reason: str) -> None:
    with pytest.raises(errors.InvalidError, match=reason) as caught:
        signer_of(key)
    for part in secret_parts(SIGNER.private_pem):
        assert part not in str(caught.value)
        assert part not in repr(caught.value.__cause__)


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ([], "verify has no key"),
        (b"", "no public key in PEM"),
        (SIGNER.private_pem, "a private key"),
        ([7], "is of type int"),
        (7, "is of type int"),
        (Ed448PrivateKey.generate().public_key(), "must be an Ed25519 key"),
    ],
    ids=["none", "empty", "private", "numbers", "number", "another kind"],
)
def test_other_keys_verify_nothing(keys: Any, reason: str) -> None:
    with pytest.raises(errors.InvalidError, match=reason):
        trust_of(keys)


async def test_files_that_are_missing_are_errors_of_the_system(registry: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await registry.publish("m", SMALL, sign=tmp_path / "missing")
    with pytest.raises(FileNotFoundError):
        await registry.retrieve("m", verify=tmp_path / "missing")


def test_no_representation_has_a_private_key() -> None:
    signer, trust = signer_of(SIGNER.private), trust_of(SIGNER.public)
    assert repr(signer) == f"<Signer: key {SIGNER.public.key_id}>"
    assert repr(trust) == f"<Trust: {SIGNER.public.key_id}>"
    assert isinstance(trust, Trust)
    for part in secret_parts(SIGNER.private_pem):
        assert part not in repr(vars(signer))


async def test_without_cryptography_the_error_says_what_installs_it(
    registry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await registry.publish("m", SMALL)
    for name in [each for each in sys.modules if each.partition(".")[0] == "cryptography"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    install = r"pip install 'cogment-model-registry\[signatures\]'"
    with pytest.raises(errors.InvalidError, match=install):
        await registry.publish("m", SMALL, sign=SIGNER.private_pem)
    with pytest.raises(errors.InvalidError, match=install):
        await registry.retrieve("m", verify=SIGNER.public_pem)
    assert await registry.retrieve("m", verify=True) == SMALL


def test_records_with_signatures_can_be_pickled_and_are_equal_to_those_without() -> None:
    signed = VersionInfo("m", 1, 1, True, hash_of(SMALL), 12, signature=SIGNER.sign_data(SMALL))
    again = pickle.loads(pickle.dumps(signed))
    assert again.signature == signed.signature
    assert signed == replace(signed, signature=None)
    assert SIGNER.public.key_id in signed._repr_html_()
