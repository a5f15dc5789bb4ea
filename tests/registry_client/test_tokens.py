"""The token of a client: its sources, replaced files, and the local socket."""

import asyncio
import logging
import pickle
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cogment_model_registry import ModelRegistry, SealedMemory, errors
from cogment_model_registry.client import credentials
from cogment_model_registry.records.access import Grant, identity_of, parse_scopes
from cogment_model_registry.server.composition import Server
from cogment_model_registry.settings import MIB, Settings
from cogment_model_registry.storage.tools.tokens import add_grant
from cogment_model_registry.testing.server import serving
from tests.registry_client.conftest import opened
from tests.waiting import PATIENCE_SECONDS

TOKENS = {"cmr_reader": "read", "cmr_writer": "publish", "cmr_admin": "admin"}


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[Server]:
    """A server that requires a token for every call, with a local socket."""
    archive, socket = tmp_path / "archive", tmp_path / "socket"
    for token, scope in TOKENS.items():
        add_grant(str(archive), Grant(token, "token", identity_of(token), parse_scopes([scope]), 0))
    settings = Settings(
        cache_max_bytes=64 * MIB, grace_seconds=0, anonymous="nothing", retention_seconds=0, local_socket=str(socket)
    )
    async with serving(archive, settings) as server:
        yield server


@pytest.mark.parametrize("flavour", ["blocking", "asyncio"])
async def test_every_kind_of_call_carries_the_token(guarded: Server, flavour: str, tmp_path: Path) -> None:
    async with opened(flavour, guarded.port, token="cmr_admin") as registry:
        for _ in range(2):
            await registry.publish("m", b"12")
        await registry.store("m", b"x" * MIB)
        assert await registry.retrieve("m") == b"x" * MIB
        await registry.download("m", tmp_path / "m", resume=True)
        assert [info.number for info in await registry.list_versions("m")] == [1, 2, 3]
        assert await registry.consumers("m") == []
        async for event in registry.watch("m"):
            assert event.number == 3
            break
    async with opened(flavour, guarded.port) as registry:
        with pytest.raises(errors.UnauthenticatedError):
            await registry.list_models()


@pytest.mark.parametrize("flavour", ["blocking", "asyncio"])
async def test_a_tracker_with_the_scope_read_follows_and_reports(guarded: Server, flavour: str) -> None:
    async with (
        opened(flavour, guarded.port, token="cmr_writer") as trainer,
        opened(flavour, guarded.port, token="cmr_reader") as actor,
    ):
        await trainer.publish("m", b"1")
        with pytest.raises(errors.PermissionDeniedError, match="lacks the scope read:m"):
            await trainer.retrieve("m")
        async with actor.track("m", consumer="actor") as latest:
            assert (await latest.wait_for(timeout=PATIENCE_SECONDS)).number == 1
            assert [each.consumer_id for each in await actor.consumers("m")] == ["actor"]


def test_the_token_comes_from_an_argument_a_file_or_a_variable(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("of_file\n")
    both = {"COGMENT_MODEL_REGISTRY_TOKEN": "of_variable", "COGMENT_MODEL_REGISTRY_TOKEN_FILE": str(file)}
    found = credentials.find_credentials
    assert found("given", file, both).authorization() == "Bearer given"
    assert found(None, file, both).authorization() == "Bearer of_file"
    assert found(None, None, both).authorization() == "Bearer of_variable"
    del both["COGMENT_MODEL_REGISTRY_TOKEN"]
    assert found(None, None, both).authorization() == "Bearer of_file"
    assert found("", None, both).authorization() == ""
    assert found(None, None, {}).metadata() == ()


@pytest.mark.parametrize("token", ["a b", "a\nb", "é", "a\x00"])
def test_a_malformed_token_is_refused_and_not_shown(token: str, tmp_path: Path) -> None:
    with pytest.raises(errors.SettingError) as caught:
        ModelRegistry(token=token)
    assert token not in str(caught.value)
    file = tmp_path / "token"
    file.write_text(token)
    with pytest.raises(errors.SettingError) as caught:
        ModelRegistry(token_file=file)
    assert token not in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_token_of_the_wrong_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidError, match="token is a int"):
        ModelRegistry(token=5)  # type: ignore[arg-type]
    with pytest.raises(errors.SettingError, match="No such file"):
        ModelRegistry(token_file=tmp_path / "none")


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read again for each call."""
    monkeypatch.setattr(credentials, "AGAIN_SECONDS", 0)


@pytest.mark.parametrize("flavour", ["blocking", "asyncio"])
@pytest.mark.usefixtures("no_pause")
async def test_a_file_that_is_replaced_is_read_again(guarded: Server, tmp_path: Path, flavour: str) -> None:
    file = tmp_path / "token"
    file.write_text("cmr_reader")
    async with opened(flavour, guarded.port, token_file=str(file)) as registry:
        with pytest.raises(errors.PermissionDeniedError):
            await registry.publish("m", b"1")
        file.write_text("cmr_writer\n")
        assert (await registry.publish("m", b"1")).number == 1
        file.unlink()
        with pytest.raises(errors.SettingError, match="No such file"):
            await registry.publish("m", b"1")


async def test_a_pickled_client_has_the_token(guarded: Server) -> None:
    async with opened("blocking", guarded.port, token="cmr_reader") as registry:
        copy = pickle.loads(pickle.dumps(registry.registry))
        with copy:
            assert await asyncio.to_thread(copy.list_models) == await registry.list_models() == []


async def test_the_local_socket_asks_for_the_token_too(guarded: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "cogment_model_registry.client")
    async with opened("blocking", guarded.port, token="cmr_writer") as trainer:
        with SealedMemory.of(b"x" * 2 * MIB) as memory:
            assert (await trainer.publish("m", memory)).number == 1
        assert not caplog.messages
        with pytest.raises(errors.PermissionDeniedError, match="lacks the scope read:m"):
            await trainer.retrieve("m", 1)
    async with opened("blocking", guarded.port, token="cmr_reader") as actor:
        view: Any = await actor.retrieve("m", 1, copy=False)
        assert bytes(view[:3]) == b"xxx"
        assert not caplog.messages
        with pytest.raises(errors.PermissionDeniedError, match="lacks the scope publish:m"):
            await actor.publish("m", b"x" * 2 * MIB)
        assert "lacks the scope publish:m" in caplog.text  # first over the socket, then over gRPC
