"""The rule that new versions are signed by one of some keys, on backends in memory."""

import sys
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from random import Random

import pytest

from cogment_model_registry.errors import InvalidError, PreconditionError
from cogment_model_registry.records.lifecycle import AliasChange
from cogment_model_registry.records.retention import ModelChange
from cogment_model_registry.records.signatures import PublicKey, Signature, public_key_of_raw, signature_of
from cogment_model_registry.records.versions import ModelInfo, VersionHeader, VersionInfo
from cogment_model_registry.registry.lifecycle import Lifecycle
from cogment_model_registry.registry.models import Models
from cogment_model_registry.registry.registry import Limits, Registry
from cogment_model_registry.registry.signing_rules import check_header, check_signature
from cogment_model_registry.storage.memory.transient_store import MemoryTransientStore
from cogment_model_registry.testing.bytes import hash_of
from cogment_model_registry.testing.memory_archive import MemoryArchive
from cogment_model_registry.testing.memory_catalog import MemoryCatalog, Tables
from tests.signing import KeyPair

DATA = b"some weights"
SIGNER, OTHER = KeyPair(), KeyPair()
MUTATIONS = 10_000


@dataclass
class World:
    """A registry with the model ``m``."""

    registry: Registry
    lifecycle: Lifecycle
    models: Models

    async def demand(self, *keys: PublicKey) -> None:
        await self.models.update("m", ModelChange(signers=keys))

    async def upload(
        self, signature: Signature | None = None, *, archived: bool = False, late: PublicKey | None = None
    ) -> VersionInfo:
        """Create a version; with a late key, that is demanded after its bytes were received."""
        header = VersionHeader("m", archived, len(DATA), signature=signature)
        async with await self.registry.create_version(header) as upload:
            await upload.write(memoryview(DATA))
            if late is not None:
                await self.demand(late)
            return await upload.commit()

    async def numbers(self) -> list[int]:
        return [info.number for info in await self.registry.list_versions("m", 0, 100)]


@pytest.fixture
async def world(hashing: ThreadPoolExecutor) -> AsyncIterator[World]:
    catalog, archive = MemoryCatalog(Tables()), MemoryArchive({}, 1000)
    transient = MemoryTransientStore(10, 1000, hashing)
    registry = Registry(Limits(16, 100, 3), catalog, archive, transient)
    await registry.create_or_update_model(ModelInfo("m"))
    yield World(registry, Lifecycle(registry, catalog, archive, transient), Models(registry, catalog, transient))
    await catalog.close()


@pytest.mark.parametrize("archived", [False, True], ids=["transient", "archived"])
async def test_only_signed_versions_are_created_and_a_refused_one_uses_no_number(world: World, archived: bool) -> None:
    await world.demand(SIGNER.public)
    for signature in (None, OTHER.sign_data(DATA), SIGNER.sign_data(b"other"), SIGNER.sign_data(DATA, "n")):
        with pytest.raises(PreconditionError):
            await world.upload(signature, archived=archived)
    info = await world.upload(SIGNER.sign_data(DATA), archived=archived)
    assert (info.number, info.signature) == (1, SIGNER.sign_data(DATA))


async def test_a_rule_that_is_set_during_an_upload_holds_for_it(world: World) -> None:
    with pytest.raises(PreconditionError, match="has no signature"):
        await world.upload(late=SIGNER.public)
    assert await world.numbers() == []
    info = await world.upload(SIGNER.sign_data(DATA), late=SIGNER.public)
    assert info.signature == SIGNER.sign_data(DATA)


async def test_a_rule_that_is_set_between_the_check_and_the_number_holds(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    publishing = MemoryCatalog.publishing

    def late(catalog: MemoryCatalog, ref: object, *, archived: bool) -> object:
        catalog._tables.models["m"].decided = replace(catalog._tables.models["m"].decided, signers=(SIGNER.public,))
        return publishing(catalog, ref, archived=archived)  # type: ignore[arg-type]

    monkeypatch.setattr(MemoryCatalog, "publishing", late)
    with pytest.raises(PreconditionError, match="has no signature"):
        await world.upload()
    assert await world.numbers() == []


async def test_what_was_transient_before_the_rule_is_not_promoted_unless_it_was_signed(world: World) -> None:
    await world.upload()
    await world.upload(SIGNER.sign_data(DATA))
    await world.upload(archived=True)
    await world.demand(SIGNER.public)
    with pytest.raises(PreconditionError, match="has no signature"):
        await world.lifecycle.promote_version("m", 1)
    with pytest.raises(PreconditionError, match="has no signature"):
        await world.lifecycle.set_aliases("m", [AliasChange("production", 1)])
    promoted = await world.lifecycle.promote_version("m", 2, ["production"])
    assert (promoted.archived, promoted.signature) == (True, SIGNER.sign_data(DATA))
    await world.lifecycle.set_aliases("m", [AliasChange("old", 3)])  # it is archived, so it stays what it is
    assert await world.numbers() == [1, 2, 3]


async def test_any_of_the_keys_will_do_until_the_rule_ends(world: World) -> None:
    await world.demand(SIGNER.public, OTHER.public, SIGNER.public)
    [model] = await world.models.get(["m"])
    assert {*model.signers} == {SIGNER.public, OTHER.public}
    assert len(model.signers) == 2
    await world.upload(OTHER.sign_data(DATA))
    await world.upload(SIGNER.sign_data(DATA))
    await world.demand(OTHER.public)
    with pytest.raises(PreconditionError, match=f"signed by another key, {SIGNER.public.key_id}"):
        await world.upload(SIGNER.sign_data(DATA))
    await world.demand()
    await world.upload()
    assert await world.numbers() == [1, 2, 3]


async def test_other_changes_of_a_model_leave_its_signers(world: World) -> None:
    await world.demand(SIGNER.public)
    model = await world.models.update("m", ModelChange({"team": "robots"}))
    assert model.signers == (SIGNER.public,)


async def test_too_many_keys_are_refused(world: World) -> None:
    with pytest.raises(InvalidError, match="may have 32 keys of signers, not 33"):
        await world.demand(*(KeyPair().public for _ in range(33)))


async def test_without_cryptography_the_rule_is_refused_and_an_existing_one_refuses_versions(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    transient = await world.upload(SIGNER.sign_data(DATA))
    await world.demand(SIGNER.public)
    for name in [each for each in sys.modules if each.partition(".")[0] == "cryptography"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    reason = r"cryptography is not installed: its operator installs it with pip install 'cogment-model-registry\[signat"
    with pytest.raises(PreconditionError, match=reason):
        await world.demand(OTHER.public)
    for signature in (None, SIGNER.sign_data(DATA)):
        with pytest.raises(PreconditionError, match=reason):
            await world.upload(signature)
    with pytest.raises(PreconditionError, match=reason):
        await world.lifecycle.promote_version("m", transient.number)
    await world.demand()
    await world.upload()


# Mutations.

HEADER = VersionHeader("m", True, len(DATA), hash_of(DATA), user_data={"step": "1000", "note": "é"})
VALID = replace(HEADER, signature=SIGNER.sign(HEADER))


def flipped(random: Random, data: bytes) -> bytes:
    """Return bytes with one to three other bits, or with another length."""
    changed = bytearray(data)
    for _ in range(random.randint(1, 3)):
        position = random.randrange(len(changed))
        changed[position] ^= 1 << random.randrange(8)
    return bytes(changed) if bytes(changed) != data else flipped(random, data)


def text(random: Random, before: str) -> str:
    """Return another text that resembles one."""
    position = random.randrange(len(before) + 1)
    kind = random.randrange(4)
    if kind == 0:
        return before[:position] + random.choice(":,0\n\0é") + before[position:]
    if kind == 1 and before:
        return before[:-1]
    if kind == 2 and before.swapcase() != before:
        return before.swapcase()
    return before + before + "x"


def other_value(random: Random) -> VersionHeader:
    assert VALID.signature
    value = flipped(random, VALID.signature.value_bytes)
    return replace(VALID, signature=signature_of(SIGNER.public.key_id_bytes, value))


def other_key_id(random: Random) -> VersionHeader:
    assert VALID.signature
    key_id = flipped(random, SIGNER.public.key_id_bytes)
    return replace(VALID, signature=signature_of(key_id, VALID.signature.value_bytes))


def other_user_data(random: Random) -> VersionHeader:
    kind = random.randrange(4)
    before = dict(VALID.user_data)
    key = random.choice([*before])
    if kind == 0:
        del before[key]
    elif kind == 1:
        before[text(random, key)] = before.pop(key)
    elif kind == 2:
        before[key] = text(random, before[key])
    else:
        before["step"], before["note"] = before["note"], before["step"]
    return replace(VALID, user_data=before)


RECORDS: list[Callable[[Random], VersionHeader]] = [
    other_value,
    other_key_id,
    other_user_data,
    lambda random: replace(VALID, model_id=text(random, VALID.model_id)),
    lambda random: replace(VALID, data_hash=hash_of(random.randbytes(4))),
    lambda random: replace(VALID, data_size_bytes=VALID.data_size_bytes ^ 1 << random.randrange(40)),
    lambda random: replace(VALID, signature=OTHER.sign(VALID)),
    lambda random: replace(VALID, signature=None),
]


def test_no_mutated_record_or_signature_is_accepted() -> None:
    check_header([SIGNER.public], VALID)
    random = Random(5)
    for number in range(MUTATIONS):
        header = RECORDS[number % len(RECORDS)](random)
        with pytest.raises(PreconditionError):
            check_header([SIGNER.public], header)


def test_no_mutated_key_accepts_a_signature() -> None:
    random = Random(6)
    tried = 0
    while tried < MUTATIONS:
        with suppress(InvalidError):  # one of small order
            key = public_key_of_raw(flipped(random, SIGNER.public.raw))
            tried += 1
            assert VALID.signature
            # Under the id of the mutated key, so that the key itself is what refuses it.
            signature = signature_of(key.key_id_bytes, VALID.signature.value_bytes)
            with pytest.raises(PreconditionError, match="is wrong"):
                check_signature([key], VALID, signature)
