"""The conformance suite of `Catalog`."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from cogment_model_registry.errors import DataLossError, NotFoundError, UnavailableError
from cogment_model_registry.records.versions import ModelInfo, VersionInfo
from cogment_model_registry.registry.contracts import Catalog
from cogment_model_registry.testing.bytes import describe

_WAIT_SECONDS = 20


async def publish(catalog: Catalog, model_id: str) -> VersionInfo:
    """Publish a transient version under the next number."""
    ref = await catalog.find(model_id)
    async with catalog.exclusive(model_id):
        info = describe(model_id, await catalog.next_number(ref), b"data", False)
        await catalog.publish(info)
    return info


async def told(watch: AsyncGenerator[VersionInfo, None]) -> int:
    """Return the number of the next version that a watch yields."""
    async with asyncio.timeout(_WAIT_SECONDS):
        return (await anext(watch)).number


class CatalogSuite(ABC):
    """Demands on every catalog. A subclass says how to open one, and what a model needs before it is put there."""

    @abstractmethod
    def opened(self, place: Path) -> AbstractAsyncContextManager[Catalog]:
        """Return a context manager with the catalog at a place: each time with the same content."""

    @abstractmethod
    async def prepare_model(self, catalog: Catalog, info: ModelInfo) -> None:
        """Do what comes before `put_model`."""

    @abstractmethod
    async def retire_model(self, catalog: Catalog, model_id: str) -> None:
        """Do what comes after `remove_model`."""

    async def put_model(self, catalog: Catalog, model_id: str, **user_data: str) -> None:
        """Create a model."""
        async with catalog.exclusive(model_id):
            await self.prepare_model(catalog, ModelInfo(model_id, user_data))
            await catalog.put_model(ModelInfo(model_id, user_data))

    async def remove_model(self, catalog: Catalog, model_id: str) -> None:
        """Delete a model."""
        async with catalog.exclusive(model_id):
            await catalog.remove_model(model_id)
            await self.retire_model(catalog, model_id)

    @pytest.fixture
    async def catalog(self, tmp_path: Path) -> AsyncIterator[Catalog]:
        """A catalog with the model ``m``."""
        async with self.opened(tmp_path) as catalog:
            await self.put_model(catalog, "m", a="b")
            yield catalog

    async def test_models_are_listed_in_order_and_by_offset(self, catalog: Catalog) -> None:
        for model_id in ("z", "été", "a", "_"):
            await self.put_model(catalog, model_id)
        assert [info.model_id for info in await catalog.list_models(0, 100)] == ["_", "a", "m", "z", "été"]
        assert [info.model_id for info in await catalog.list_models(1, 2)] == ["a", "m"]
        assert await catalog.list_models(5, 10) == []
        assert (catalog.counts.models, catalog.counts.versions) == (5, 0)

    async def test_user_data_is_replaced(self, catalog: Catalog) -> None:
        assert await catalog.get_model("m") == ModelInfo("m", {"a": "b"})
        await self.put_model(catalog, "m", c="d")
        assert await catalog.get_model("m") == ModelInfo("m", {"c": "d"})

    async def test_an_unknown_model_is_not_found(self, catalog: Catalog) -> None:
        for call in (
            catalog.find("other"),
            catalog.get_model("other"),
            catalog.remove_model("other"),
            catalog.get_versions("other", [1]),
            catalog.list_versions("other", 0, 10),
            anext(catalog.watch("other")),
        ):
            with pytest.raises(NotFoundError):
                await call

    async def test_numbers_begin_at_one_and_follow_each_other(self, catalog: Catalog) -> None:
        assert [(await publish(catalog, "m")).number for _ in range(300)] == list(range(1, 301))
        assert (catalog.counts.models, catalog.counts.versions) == (1, 300)

    async def test_numbers_are_unique_whoever_asks_at_once(self, catalog: Catalog) -> None:
        infos = await asyncio.gather(*(publish(catalog, "m") for _ in range(300)))
        assert sorted(info.number for info in infos) == list(range(1, 301))
        assert [info.number for info in await catalog.list_versions("m", 0, 1000)] == list(range(1, 301))

    async def test_numbers_go_on_after_a_clean_stop(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as catalog:
            await self.put_model(catalog, "m")
            for _ in range(5):
                await publish(catalog, "m")
        async with self.opened(tmp_path) as catalog:
            assert (await publish(catalog, "m")).number == 6

    async def test_a_model_created_anew_is_another_one(self, catalog: Catalog) -> None:
        await publish(catalog, "m")
        before = await catalog.find("m")
        await self.remove_model(catalog, "m")
        await self.put_model(catalog, "m")
        assert await catalog.find("m") != before
        assert await catalog.list_versions("m", 0, 10) == []
        async with catalog.exclusive("m"):
            with pytest.raises(NotFoundError):
                await catalog.next_number(before)
        assert (await publish(catalog, "m")).number == 1

    async def test_versions_are_found_by_number_and_from_the_last(self, catalog: Catalog) -> None:
        infos = [await publish(catalog, "m") for _ in range(5)]
        assert await catalog.get_versions("m", [2, -1, 2, -5]) == [infos[1], infos[4], infos[1], infos[0]]
        for number in (0, 6, -6, -(2**31), 2**31 - 1):
            with pytest.raises(NotFoundError):
                await catalog.get_versions("m", [1, number])

    async def test_a_forgotten_version_is_gone_and_not_counted(self, catalog: Catalog) -> None:
        infos = [await publish(catalog, "m") for _ in range(4)]
        for number in (3, 4):
            await catalog.forget("m", number)
        await catalog.forget("m", 77)
        await catalog.forget("other", 1)
        assert await catalog.list_versions("m", 0, 10) == infos[:2]
        assert await catalog.get_versions("m", [-1, -2]) == [infos[1], infos[0]]
        with pytest.raises(NotFoundError):
            await catalog.get_versions("m", [3])
        assert (catalog.counts.models, catalog.counts.versions) == (1, 2)
        assert (await publish(catalog, "m")).number == 5

    async def test_versions_are_listed_from_a_number_on(self, catalog: Catalog) -> None:
        infos = [await publish(catalog, "m") for _ in range(5)]
        await catalog.forget("m", 3)
        assert await catalog.list_versions("m", 2, 2) == [infos[1], infos[3]]
        assert await catalog.list_versions("m", 3, 10) == infos[3:]
        assert await catalog.list_versions("m", 2**70, 10) == []

    async def test_a_damaged_version_leaves_the_listing_and_says_so(self, catalog: Catalog) -> None:
        infos = [await publish(catalog, "m") for _ in range(3)]
        error = DataLossError.version("m", 3, "its bytes do not match their hash")
        await catalog.mark_damaged(replace(await catalog.find("m"), life=-1), error)  # of another life: not meant
        assert len(await catalog.list_versions("m", 0, 10)) == 3
        await catalog.mark_damaged(await catalog.find("m"), error)
        assert await catalog.list_versions("m", 0, 10) == infos[:2]
        assert await catalog.get_versions("m", [-1]) == [infos[1]]
        for _ in range(2):
            with pytest.raises(DataLossError, match="do not match"):
                await catalog.get_versions("m", [3])

    async def test_a_watch_begins_with_the_latest(self, catalog: Catalog) -> None:
        await publish(catalog, "m")
        await publish(catalog, "m")
        async with aclosing(catalog.watch("m")) as watch:
            assert await told(watch) == 2

    async def test_a_watch_waits_for_what_comes(self, catalog: Catalog) -> None:
        async with aclosing(catalog.watch("m")) as watch:
            waiting = asyncio.create_task(told(watch))
            await asyncio.sleep(0)
            await publish(catalog, "m")
            assert await waiting == 1

    async def test_a_slow_watch_skips_to_the_latest_and_never_goes_back(self, catalog: Catalog) -> None:
        async with aclosing(catalog.watch("m")) as watch:
            await publish(catalog, "m")
            assert await told(watch) == 1
            for _ in range(5):
                await publish(catalog, "m")
            assert await told(watch) == 6
            await catalog.forget("m", 6)
            await publish(catalog, "m")
            assert await told(watch) == 7

    async def test_a_watch_is_not_told_of_other_models(self, catalog: Catalog) -> None:
        await self.put_model(catalog, "other")
        async with aclosing(catalog.watch("m")) as watch:
            waiting = asyncio.create_task(told(watch))
            await publish(catalog, "other")
            await publish(catalog, "m")
            assert await waiting == 1

    async def test_a_watch_ends_when_its_model_is_deleted(self, catalog: Catalog) -> None:
        async with aclosing(catalog.watch("m")) as watch:
            waiting = asyncio.create_task(told(watch))
            await asyncio.sleep(0)
            await self.remove_model(catalog, "m")
            await self.put_model(catalog, "m")
            with pytest.raises(NotFoundError):
                await waiting

    async def test_all_watches_end_when_the_catalog_stops(self, catalog: Catalog) -> None:
        async with aclosing(catalog.watch("m")) as watch:
            waiting = asyncio.create_task(told(watch))
            await asyncio.sleep(0)
            catalog.stop_watching()
            with pytest.raises(UnavailableError):
                await waiting
        with pytest.raises(UnavailableError):
            await anext(catalog.watch("m"))

    async def test_the_latest_always_arrives(self, catalog: Catalog) -> None:
        """Subscribe against publish, 1,000 times over: the last number arrives, whatever the order."""
        for _ in range(1000):
            publishing = asyncio.create_task(publish(catalog, "m"))
            async with aclosing(catalog.watch("m")) as watch:
                last = 0
                while not publishing.done() or last < publishing.result().number:
                    last = await told(watch)

    async def test_whoever_is_exclusive_is_alone_with_the_model(self, catalog: Catalog) -> None:
        order: list[str] = []

        async def enter(name: str, model_id: str) -> None:
            async with catalog.exclusive(model_id):
                order.append(name)

        async with catalog.exclusive("m"):
            same = asyncio.create_task(enter("same", "m"))
            await enter("other", "other")
            order.append("first")
        await same
        assert order == ["other", "first", "same"]
