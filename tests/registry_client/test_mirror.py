"""Mirrors: every version of some models as a complete file that is fetched once."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cogment_model_registry import Gap, Saved, errors
from cogment_model_registry.client import watch_streams
from cogment_model_registry.client.mirroring import model_folder
from cogment_model_registry.server.composition import Server
from tests.registry_client.conftest import opened
from tests.registry_client.network import Relay, cutting, listening
from tests.registry_client.scripted import has_model, scripted

MIB = 2**20


def files(directory: Path) -> dict[str, bytes]:
    """Return the files of a directory and its subfolders, with their bytes."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def size_bytes(path: str) -> int:
    return os.path.getsize(path)


class Mirrored:
    """Reads the versions and gaps that a mirror yields."""

    def __init__(self, events: Any) -> None:
        self._events = events

    async def next(self) -> Saved | Gap:
        event: Saved | Gap = await anext(self._events)
        return event

    async def saved(self, count: int) -> dict[tuple[str, int], str]:
        """Return the paths of the next versions; check that each file exists."""
        paths = {}
        for _ in range(count):
            event = await self.next()
            assert isinstance(event, Saved)
            assert size_bytes(event.path) == event.version.data_size_bytes
            paths[event.version.model_id, event.version.number] = event.path
        return paths


@asynccontextmanager
async def mirrored(registry: Any, *arguments: Any, **options: Any) -> AsyncIterator[Mirrored]:
    async with aclosing(registry.mirror(*arguments, **options)) as events:
        yield Mirrored(events)


async def test_every_version_of_all_models_becomes_a_file(registry: Any, tmp_path: Path) -> None:
    target = tmp_path / "new" / "mirror"
    await registry.publish("a", b"a1")
    await registry.store("b", b"b1")
    async with mirrored(registry, target) as mirror:
        await mirror.saved(2)
        await registry.publish("a", b"a2")
        await registry.publish("c", b"")
        paths = await mirror.saved(2)
    assert paths == {("a", 2): str(target / "a/000002.bin"), ("c", 1): str(target / "c/000001.bin")}
    assert files(target) == {
        "a/000001.bin": b"a1",
        "a/000002.bin": b"a2",
        "b/000001.bin": b"b1",
        "c/000001.bin": b"",
    }


async def test_a_mirror_of_some_models_includes_later_ones(registry: Any, tmp_path: Path) -> None:
    await registry.publish("a", b"a1")
    await registry.store("other", b"x")
    async with mirrored(registry, tmp_path / "m", "a", "b") as mirror:
        assert set(await mirror.saved(1)) == {("a", 1)}
        await registry.publish("b", b"b1")
        assert set(await mirror.saved(1)) == {("b", 1)}
        await registry.delete_model("a")
        await registry.store("a", b"again")
        assert set(await mirror.saved(1)) == {("a", 1)}
    assert files(tmp_path / "m") == {"a/000001.bin": b"again", "b/000001.bin": b"b1"}


@pytest.mark.parametrize("archived", [False, True])
async def test_a_mirror_may_select_versions(registry: Any, tmp_path: Path, archived: bool) -> None:
    for index in range(3):
        await registry.publish("a", bytes([index]))
        await registry.store("a", bytes([index]))
    async with mirrored(registry, tmp_path / "m", "a", after=2, archived=archived) as mirror:
        expected = [4, 6] if archived else [3, 4, 5, 6]
        assert [number for _, number in await mirror.saved(len(expected))] == expected


async def test_small_versions_arrive_with_their_bytes_and_large_ones_are_fetched(
    flavour: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[int] = []
    original = watch_streams.Wishes.has_bytes

    def has_bytes(wishes: watch_streams.Wishes, version: Any) -> bool:
        if not original(wishes, version):
            fetched.append(version.number)
        return original(wishes, version)

    monkeypatch.setattr(watch_streams.Wishes, "has_bytes", has_bytes)
    large = os.urandom(5 * MIB)
    async with opened(flavour, server.port) as registry, mirrored(registry, tmp_path / "m", "a") as mirror:
        following = asyncio.ensure_future(mirror.saved(2))
        await registry.publish("a", b"small")
        await registry.publish("a", large)
        await following
        await registry.publish("a", b"small again")
        await mirror.saved(1)
    assert files(tmp_path / "m") == {
        "a/000001.bin": b"small",
        "a/000002.bin": large,
        "a/000003.bin": b"small again",
    }
    assert 2 in fetched
    assert 3 not in fetched


async def test_existing_files_are_not_fetched_again(flavour: str, server: Server, tmp_path: Path) -> None:
    relay = Relay(server.port)
    data = [os.urandom(MIB), os.urandom(5 * MIB)]
    async with listening(relay.relay) as port, opened(flavour, port) as registry:
        for each in data:
            await registry.store("a", each)
        async with mirrored(registry, tmp_path / "m", "a") as mirror:
            await mirror.saved(2)
        before = relay.replied_bytes
        async with mirrored(registry, tmp_path / "m") as mirror:
            await mirror.saved(2)
        assert relay.replied_bytes - before < MIB
        (tmp_path / "m/a/000001.bin").write_bytes(bytes(MIB))  # of the right size
        async with mirrored(registry, tmp_path / "m") as mirror:
            await mirror.saved(2)
    assert files(tmp_path / "m") == {"a/000001.bin": data[0], "a/000002.bin": data[1]}


async def test_versions_that_are_gone_are_a_gap(registry: Any, tmp_path: Path) -> None:
    for index in range(4):
        await registry.store("a", bytes([index]))
    for number in (2, 3):
        await registry.delete_version("a", number)
    async with mirrored(registry, tmp_path / "m", "a") as mirror:
        events = [await mirror.next() for _ in range(3)]
    assert [event for event in events if isinstance(event, Gap)] == [Gap("a", 2, 3)]
    assert sorted(files(tmp_path / "m")) == ["a/000001.bin", "a/000004.bin"]


async def test_a_damaged_version_is_a_gap(registry: Any, tmp_path: Path) -> None:
    await registry.store("a", b"bytes")
    await registry.store("a", b"fine")
    (tmp_path / "archive/a/a-v000001.data").write_bytes(b"other")
    async with mirrored(registry, tmp_path / "m", "a") as mirror:
        events = [await mirror.next() for _ in range(2)]
    assert events[0] == Gap("a", 1, 1)
    assert files(tmp_path / "m") == {"a/000002.bin": b"fine"}


async def test_a_mirror_survives_broken_connections(flavour: str, server: Server, tmp_path: Path) -> None:
    async with (
        cutting(server.port, cuts=3, after_bytes=100_000) as port,
        opened(flavour, port) as registry,
        mirrored(registry, tmp_path / "m", "a") as mirror,
        opened("asyncio", server.port) as publisher,
    ):
        for index in range(5):
            await publisher.publish("a", bytes([index]) * 200_000)
            await mirror.saved(1)
    assert len(files(tmp_path / "m")) == 5


async def test_an_unwritable_directory_is_an_os_error(registry: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    await registry.publish("a", b"1")
    with pytest.raises(FileExistsError):
        async with mirrored(registry, tmp_path / "file", "a") as mirror:
            await mirror.next()
    (tmp_path / "m" / "a" / "000001.bin").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        async with mirrored(registry, tmp_path / "m", "a") as mirror:
            await mirror.next()


async def test_a_server_without_watch_is_an_error(flavour: str, tmp_path: Path) -> None:
    async def version(call: Any) -> None:
        await call.send(b"")

    async with (
        scripted(RetrieveModels=has_model, Version=version) as server,
        opened(flavour, server.port) as registry,
        mirrored(registry, tmp_path / "m", "policy") as mirror,
    ):
        with pytest.raises(errors.ModelRegistryError, match="has no cogment_model_registry"):
            await mirror.next()


@pytest.mark.parametrize(
    ("model_id", "name"),
    [
        ("policy", "policy"),
        ("a.b-c_D9", "a.b-c_D9"),
        (".", "%2E"),
        ("..", "%2E%2E"),
        (".hidden.", "%2Ehidden%2E"),
        ("a/b\\c", "a%2Fb%5Cc"),
        ("caf\u00e9 100%", "caf%C3%A9%20100%25"),
        ("~", "%7E"),
    ],
)
def test_the_folder_of_a_model_has_a_safe_name(model_id: str, name: str) -> None:
    assert model_folder(model_id) == name


def test_folders_of_long_ids_differ_and_fit_a_file_system() -> None:
    names = {model_folder("\N{SNAKE}" * 80 + end) for end in ("", "a", "b")}
    assert len(names) == 3
    assert all(len(name) < 255 and name.isascii() for name in names)
