"""The conformance suite of `Catalog`."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import fields, replace
from pathlib import Path
from time import time_ns

import pytest

from cogment_model_registry.errors import ConflictError, DataLossError, NotFoundError, UnavailableError
from cogment_model_registry.records.lifecycle import (
    FIRST_REVISION,
    AliasChange,
    AnnotationChange,
    Annotations,
    ModelSummary,
    Version,
)
from cogment_model_registry.records.retention import ModelAnnotations, ModelChange, RetentionRule, TransientShare
from cogment_model_registry.records.signatures import public_key_of_raw
from cogment_model_registry.records.uploads import FinishedUpload, UploadRequest
from cogment_model_registry.records.versions import ModelInfo, VersionInfo
from cogment_model_registry.registry.contracts import (
    Catalog,
    ModelOutline,
    ModelRef,
    ModelState,
    Newer,
    Search,
    Watcher,
)
from cogment_model_registry.registry.filter_text import parse_filter
from cogment_model_registry.registry.filters import BY_NUMBER, EVERYTHING, parse_order, position_of
from cogment_model_registry.registry.journals import Change, recording
from cogment_model_registry.testing.bytes import SIGNATURE, describe

_WAIT_SECONDS = 20

_KEYS = (public_key_of_raw(bytes(range(32))), public_key_of_raw(bytes(range(1, 33))))


async def publish(catalog: Catalog, model_id: str) -> VersionInfo:
    """Publish a transient version with the next number."""
    async with catalog.publishing(await catalog.find(model_id)) as slot:
        info = describe(model_id, slot.number, b"data", False)
        slot.show(info)
    return info


async def publish_annotated(
    catalog: Catalog,
    annotations: Annotations | None = None,
    model_id: str = "m",
    *,
    archived: bool = False,
    request: UploadRequest | None = None,
) -> VersionInfo:
    """Make a version with annotations visible, and return it."""
    async with catalog.publishing(await catalog.find(model_id), archived=archived) as slot:
        info = describe(model_id, slot.number, b"data", archived)
        if annotations is not None:
            await slot.annotate(info, annotations, request)
        slot.show(info)
    return info


async def change_model(catalog: Catalog, ref: ModelRef, change: ModelChange) -> ModelSummary:
    """Change the tags, rules or share of a model, and return it."""
    async with catalog.changing_model(ref, change) as summary:
        return summary


async def publish_all(catalog: Catalog, count: int) -> list[VersionInfo]:
    """Publish transient versions of the model ``m``."""
    return [await publish(catalog, "m") for _ in range(count)]


async def changed(watcher: Watcher) -> Sequence[str]:
    """Wait until a model has changed, and return the changed models."""
    async with asyncio.timeout(_WAIT_SECONDS):
        return await watcher.changed(wait=True)


async def counted(catalog: Catalog) -> tuple[int, int]:
    """Return the numbers of visible models and versions."""
    counts = await catalog.count()
    return counts.models, counts.versions


async def next_number(watch: AsyncGenerator[VersionInfo, None]) -> int:
    """Return the number of the next version that a watch yields."""
    async with asyncio.timeout(_WAIT_SECONDS):
        return (await anext(watch)).number


class ListJournal:
    """A journal that is a list.

    Attributes:
        changes: What was recorded.
    """

    def __init__(self) -> None:
        self.changes: list[Change] = []

    def record(self, change: Change) -> None:
        """Take a change."""
        self.changes.append(change)

    def require_writable(self) -> None:
        """Do nothing."""

    async def written(self) -> None:
        """Do nothing."""

    def kinds(self) -> list[tuple[str, int, str]]:
        """Return what happened, to which version and alias."""
        return [(each.kind, each.version_number, each.alias) for each in self.changes]

    def is_unbroken(self) -> bool:
        """Return whether each change of the same thing begins where the last one ended."""
        last: dict[tuple[str, int, str], object] = {}
        for each in self.changes:
            key = (each.model_id, 0, each.alias) if each.alias else (each.model_id, each.version_number, "")
            if key in last and last[key] != each.before:
                return False
            last[key] = each.after
        return True


class CatalogSuite(ABC):
    """Requirements of every catalog. A subclass implements how to open one, and how to prepare a model for it.

    They hold for a catalog of one server, and for one that several servers share; so a watch may yield a version before
    the one who publishes it is answered.

    Attributes:
        watches: How often to watch while a version is published.
    """

    watches = 1000

    @abstractmethod
    def opened(self, place: Path) -> AbstractAsyncContextManager[Catalog]:
        """Return a context manager for the catalog in a directory: each time with the same content."""

    async def prepare_model(self, catalog: Catalog, info: ModelInfo) -> None:  # noqa: B027 # nothing by default
        """Prepare a model before it becomes visible. Nothing, unless the catalog belongs to an archive."""

    async def retire_model(self, catalog: Catalog, model_id: str) -> None:  # noqa: B027 # nothing by default
        """Undo `prepare_model`."""

    async def put_model(self, catalog: Catalog, model_id: str, **user_data: str) -> None:
        """Create a model, or replace its `user_data`."""
        info = ModelInfo(model_id, user_data)
        async with catalog.writing_model(info):
            await self.prepare_model(catalog, info)

    async def remove_model(self, catalog: Catalog, model_id: str) -> None:
        """Delete a model."""
        async with catalog.removing_model(model_id):
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
        assert await counted(catalog) == (5, 0)

    async def test_models_are_listed_from_an_id(self, catalog: Catalog) -> None:
        for model_id in ("b", "a", "c"):
            await self.put_model(catalog, model_id)
        for after, expected in (("", ["a", "b"]), ("a", ["b", "c"]), ("aa", ["b", "c"]), ("c", ["m"]), ("m", [])):
            assert [info.model_id for info in await catalog.list_models_after(after, 2)] == expected

    async def test_user_data_is_replaced(self, catalog: Catalog) -> None:
        assert await catalog.get_model("m") == ModelInfo("m", {"a": "b"})
        await self.put_model(catalog, "m", c="d")
        assert await catalog.get_model("m") == ModelInfo("m", {"c": "d"})

    async def test_an_unknown_model_is_not_found(self, catalog: Catalog) -> None:
        for call in (
            catalog.find("other"),
            catalog.get_model("other"),
            self.remove_model(catalog, "other"),
            catalog.get_versions("other", [1]),
            catalog.list_versions("other", 0, 10),
            anext(catalog.watch("other")),
        ):
            with pytest.raises(NotFoundError):
                await call

    async def test_numbers_are_consecutive_from_one(self, catalog: Catalog) -> None:
        assert [(await publish(catalog, "m")).number for _ in range(300)] == list(range(1, 301))
        assert await counted(catalog) == (1, 300)

    async def test_concurrent_publishes_get_unique_numbers(self, catalog: Catalog) -> None:
        infos = await asyncio.gather(*(publish(catalog, "m") for _ in range(300)))
        assert sorted(info.number for info in infos) == list(range(1, 301))
        assert [info.number for info in await catalog.list_versions("m", 0, 1000)] == list(range(1, 301))

    async def test_numbers_continue_after_a_clean_stop(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as catalog:
            await self.put_model(catalog, "m")
            for _ in range(5):
                await publish(catalog, "m")
        async with self.opened(tmp_path) as catalog:
            assert (await publish(catalog, "m")).number == 6

    async def test_a_recreated_model_is_a_new_model(self, catalog: Catalog) -> None:
        await publish(catalog, "m")
        before = await catalog.find("m")
        await self.remove_model(catalog, "m")
        await self.put_model(catalog, "m")
        assert await catalog.find("m") != before
        assert await catalog.list_versions("m", 0, 10) == []
        with pytest.raises(NotFoundError):
            await catalog.publishing(before).__aenter__()
        assert (await publish(catalog, "m")).number == 1

    async def test_versions_are_found_by_number_and_by_position_from_the_last(self, catalog: Catalog) -> None:
        infos = [await publish(catalog, "m") for _ in range(5)]
        assert await catalog.get_versions("m", [2, -1, 2, -5]) == [infos[1], infos[4], infos[1], infos[0]]
        for number in (0, 6, -6, -(2**31), 2**31 - 1):
            with pytest.raises(NotFoundError):
                await catalog.get_versions("m", [1, number])

    async def test_a_forgotten_version_is_neither_found_nor_counted(self, catalog: Catalog) -> None:
        infos = [await publish(catalog, "m") for _ in range(4)]
        for info in (infos[2], infos[3], replace(infos[1], created_ns=7), replace(infos[0], number=77)):
            await catalog.forget(info)
        await catalog.forget(replace(infos[0], model_id="other"))
        assert await catalog.list_versions("m", 0, 10) == infos[:2]
        assert await catalog.get_versions("m", [-1, -2]) == [infos[1], infos[0]]
        with pytest.raises(NotFoundError):
            await catalog.get_versions("m", [3])
        assert await counted(catalog) == (1, 2)
        assert (await publish(catalog, "m")).number == 5

    async def test_versions_are_listed_from_a_number(self, catalog: Catalog) -> None:
        infos = [await publish(catalog, "m") for _ in range(5)]
        await catalog.forget(infos[2])
        assert await catalog.list_versions("m", 2, 2) == [infos[1], infos[3]]
        assert await catalog.list_versions("m", 3, 10) == infos[3:]
        assert await catalog.list_versions("m", 2**70, 10) == []

    async def test_newer_versions_are_counted_with_the_time_of_the_first(self, catalog: Catalog) -> None:
        assert (await catalog.newer_than("m", 0)) == Newer(0, None)
        moments = []
        for _ in range(4):
            moments.append(time_ns())
            await publish(catalog, "m")  # years ago, according to its creation time
            moments.append(time_ns())
        for number in range(4):
            newer = await catalog.newer_than("m", number)
            assert newer.versions == 4 - number
            assert newer.since_ns is not None
            assert moments[2 * number] <= newer.since_ns <= moments[2 * number + 1]
        assert await catalog.newer_than("m", 4) == await catalog.newer_than("m", 9) == Newer(0, None)
        since_ns = (await catalog.newer_than("m", 1)).since_ns
        [second] = await catalog.get_versions("m", [2])
        await catalog.forget(second)
        assert await catalog.newer_than("m", 1) == Newer(2, since_ns), "deleted versions count as newer too"
        with pytest.raises(NotFoundError):
            await catalog.newer_than("none", 1)

    async def test_a_damaged_version_leaves_the_listing_and_raises_its_error(self, catalog: Catalog) -> None:
        infos = [await publish(catalog, "m") for _ in range(3)]
        error = DataLossError.version("m", 3, "its bytes do not match their hash")
        await catalog.mark_damaged(replace(await catalog.find("m"), life=-1), error)  # of another life: ignored
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
            assert await next_number(watch) == 2

    async def test_a_watch_waits_for_the_next_version(self, catalog: Catalog) -> None:
        async with aclosing(catalog.watch("m")) as watch:
            waiting = asyncio.create_task(next_number(watch))
            await asyncio.sleep(0)
            await publish(catalog, "m")
            assert await waiting == 1

    async def test_a_slow_watch_skips_to_the_latest_and_never_goes_back(self, catalog: Catalog) -> None:
        async with aclosing(catalog.watch("m")) as watch:
            await publish(catalog, "m")
            assert await next_number(watch) == 1
            infos = [await publish(catalog, "m") for _ in range(5)]
            assert await next_number(watch) == 6
            await catalog.forget(infos[-1])
            await publish(catalog, "m")
            assert await next_number(watch) == 7

    async def test_a_watch_yields_no_versions_of_other_models(self, catalog: Catalog) -> None:
        await self.put_model(catalog, "other")
        async with aclosing(catalog.watch("m")) as watch:
            waiting = asyncio.create_task(next_number(watch))
            await publish(catalog, "other")
            await publish(catalog, "m")
            assert await waiting == 1

    async def test_a_watch_ends_when_its_model_is_deleted(self, catalog: Catalog) -> None:
        async with aclosing(catalog.watch("m")) as watch:
            waiting = asyncio.create_task(next_number(watch))
            await asyncio.sleep(0)
            await self.remove_model(catalog, "m")
            await self.put_model(catalog, "m")
            with pytest.raises(NotFoundError):
                await waiting

    async def test_all_watches_end_when_the_catalog_stops(self, catalog: Catalog) -> None:
        async with aclosing(catalog.watch("m")) as watch:
            waiting = asyncio.create_task(next_number(watch))
            await asyncio.sleep(0)
            catalog.stop_watching()
            with pytest.raises(UnavailableError):
                await waiting
        with pytest.raises(UnavailableError):
            await anext(catalog.watch("m"))

    async def test_the_latest_always_arrives(self, catalog: Catalog) -> None:
        """Subscribe and publish concurrently, many times: the last number arrives, whatever the order."""
        for _ in range(self.watches):
            publishing = asyncio.create_task(publish(catalog, "m"))
            async with aclosing(catalog.watch("m")) as watch:
                # A watch may yield a version before the one who publishes it is answered.
                reading = asyncio.create_task(next_number(watch))
                number = (await publishing).number
                last = await reading
                while last < number:
                    last = await next_number(watch)

    async def test_changes_of_a_model_are_serialized(self, catalog: Catalog) -> None:
        await self.put_model(catalog, "other")
        order: list[str] = []

        async def change(name: str, model_id: str) -> None:
            await publish(catalog, model_id)
            order.append(name)

        async with catalog.publishing(await catalog.find("m")) as slot:
            same = asyncio.create_task(change("same", "m"))
            await change("other", "other")
            order.append("first")
            slot.show(describe("m", slot.number, b"data", False))
        await same
        assert order == ["other", "first", "same"]
        assert [info.number for info in await catalog.list_versions("m", 0, 10)] == [1, 2]

    async def test_a_failed_publish_shows_nothing_and_its_number_is_never_reused(self, catalog: Catalog) -> None:
        with pytest.raises(UnavailableError):
            await self._fail_to_publish(catalog)
        async with catalog.publishing(await catalog.find("m")):
            pass  # left without `show`
        assert await catalog.list_versions("m", 0, 10) == []
        assert (await publish(catalog, "m")).number == 3

    async def _fail_to_publish(self, catalog: Catalog) -> None:
        async with catalog.publishing(await catalog.find("m")) as slot:
            slot.show(describe("m", slot.number, b"data", False))
            raise UnavailableError("the commit failed")

    async def test_a_failed_change_of_a_model_changes_nothing(self, catalog: Catalog) -> None:
        async def fail(change: AbstractAsyncContextManager[None]) -> None:
            async with change:
                raise UnavailableError("the archive failed")

        info = await publish(catalog, "m")
        for change in (
            catalog.writing_model(ModelInfo("m", {"c": "d"})),
            catalog.removing_model("m"),
            catalog.writing_model(ModelInfo("new")),
        ):
            with pytest.raises(UnavailableError):
                await fail(change)
        assert await catalog.list_models(0, 10) == [ModelInfo("m", {"a": "b"})]
        assert await catalog.get_versions("m", [-1]) == [info]
        assert (await publish(catalog, "m")).number == 2

    # Aliases, tags and metrics.

    async def test_annotations_are_kept_for_either_tier(self, catalog: Catalog) -> None:
        await self.put_model(catalog, "m")
        annotations = Annotations({"stage": "candidate"}, {"return": 487.5})
        infos = [await publish_annotated(catalog, annotations, archived=archived) for archived in (False, True)]
        assert [version.annotations for version in await catalog.describe(infos)] == [annotations, annotations]
        plain = await publish(catalog, "m")
        assert await catalog.describe([plain]) == [Version.of(plain)]

    async def test_annotations_change_only_from_the_expected_revision(self, catalog: Catalog) -> None:
        await self.put_model(catalog, "m")
        ref = await catalog.find("m")
        for archived in (False, True):
            info = await publish_annotated(catalog, Annotations({"a": "1"}), archived=archived)
            change = AnnotationChange({"b": "2"}, ["a", "none"], {"return": 5}, expected_revision=FIRST_REVISION)
            changed = await catalog.change_annotations(ref, info.number, change)
            assert (changed.annotations.tags, changed.annotations.metrics) == ({"b": "2"}, {"return": 5})
            assert changed.annotations.revision > FIRST_REVISION
            with pytest.raises(ConflictError, match=f"revision {changed.annotations.revision}"):
                await catalog.change_annotations(ref, info.number, change)
            assert await catalog.describe([info]) == [changed]
        with pytest.raises(NotFoundError):
            await catalog.change_annotations(ref, 99, AnnotationChange())

    async def test_an_alias_moves_only_from_the_expected_revision(self, catalog: Catalog) -> None:
        await self.put_model(catalog, "m")
        ref = await catalog.find("m")
        infos = [await publish_annotated(catalog, archived=True) for _ in range(2)]
        [first] = await catalog.set_aliases(ref, [AliasChange("best", 1, 0)], 5)
        assert (first.version_number, first.set_ns) == (1, 5)
        for stale in (0, first.revision + 1):
            with pytest.raises(ConflictError, match=f"version 1 with revision {first.revision}"):
                await catalog.set_aliases(ref, [AliasChange("other", 1), AliasChange("best", 2, stale)], 6)
        [second] = await catalog.set_aliases(ref, [AliasChange("best", 2, first.revision)], 7)
        assert second.revision > first.revision
        assert await catalog.get_aliases("m") == [second]
        assert [version.aliases for version in await catalog.describe(infos)] == [(), ("best",)]
        assert await catalog.set_aliases(ref, [AliasChange("best", None, second.revision)], 8) == []
        [third] = await catalog.set_aliases(ref, [AliasChange("best", 1, 0)], 9)
        assert third.revision > second.revision

    async def test_an_alias_points_to_an_archived_version(self, catalog: Catalog) -> None:
        await self.put_model(catalog, "m")
        ref = await catalog.find("m")
        transient = await publish(catalog, "m")
        for change in (AliasChange("best", transient.number), AliasChange("best", 99), AliasChange("best", None)):
            with pytest.raises(NotFoundError):
                await catalog.set_aliases(ref, [change], 0)
        assert await catalog.get_aliases("m") == []

    async def test_one_of_many_moves_of_an_alias_wins(self, catalog: Catalog) -> None:
        await self.put_model(catalog, "m")
        ref = await catalog.find("m")
        await publish_annotated(catalog, archived=True)
        [alias] = await catalog.set_aliases(ref, [AliasChange("best", 1)], 0)
        moves = [catalog.set_aliases(ref, [AliasChange("best", 1, alias.revision)], ns) for ns in range(1, 21)]
        outcomes = await asyncio.gather(*moves, return_exceptions=True)
        assert sum(not isinstance(outcome, ConflictError) for outcome in outcomes) == 1

    async def test_a_promoted_version_keeps_its_place_and_its_annotations(self, catalog: Catalog) -> None:
        await self.put_model(catalog, "m")
        info = await publish_annotated(catalog, Annotations({"a": "1"}, {"return": 5}))
        await publish(catalog, "m")
        before = await counted(catalog)
        promoted = replace(info, archived=True)
        async with catalog.promoting(await catalog.find("m"), info.number) as promotion:
            assert promotion.info == info
            await promotion.annotate(promoted)
            assert await catalog.get_versions("m", [1]) == [info]
            promotion.show(promoted)
        assert await catalog.get_versions("m", [1]) == [promoted]
        assert await counted(catalog) == before
        [version] = await catalog.describe([promoted])
        assert (version.annotations.tags, version.annotations.metrics) == ({"a": "1"}, {"return": 5})
        assert version.annotations.revision > FIRST_REVISION

    async def test_a_failed_promotion_changes_nothing(self, catalog: Catalog) -> None:
        await self.put_model(catalog, "m")
        info = await publish(catalog, "m")
        with pytest.raises(RuntimeError):
            await self._fail_to_promote(catalog, info)
        assert await catalog.get_versions("m", [1]) == [info]

    async def _fail_to_promote(self, catalog: Catalog, info: VersionInfo) -> None:
        async with catalog.promoting(await catalog.find("m"), info.number) as promotion:
            promotion.show(replace(info, archived=True))
            raise RuntimeError

    async def test_a_removed_version_is_gone_with_its_alias_and_its_number_is_not_reused(
        self, catalog: Catalog
    ) -> None:
        await self.put_model(catalog, "m")
        ref = await catalog.find("m")
        for archived in (True, False, True):
            await publish_annotated(catalog, Annotations({"a": "1"}), archived=archived)
        await catalog.set_aliases(ref, [AliasChange("best", 3), AliasChange("other", 1)], 0)
        for number in (3, 2):
            async with catalog.removing_version(ref, number) as info:
                assert info.number == number
            with pytest.raises(NotFoundError):
                await catalog.get_versions("m", [number])
            with pytest.raises(NotFoundError):
                async with catalog.removing_version(ref, number):
                    pass
        assert [alias.name for alias in await catalog.get_aliases("m")] == ["other"]
        assert await counted(catalog) == (1, 1)
        assert (await publish(catalog, "m")).number == 4

    async def test_a_model_created_again_inherits_nothing(self, catalog: Catalog) -> None:
        await self.put_model(catalog, "m")
        await publish_annotated(catalog, Annotations({"a": "1"}), archived=True)
        await catalog.set_aliases(await catalog.find("m"), [AliasChange("best", 1)], 0)
        await self.remove_model(catalog, "m")
        await self.put_model(catalog, "m")
        info = await publish_annotated(catalog, archived=True)
        assert await catalog.get_aliases("m") == []
        assert await catalog.describe([info]) == [Version.of(info)]

    async def test_a_search_finds_visible_versions_page_by_page(self, catalog: Catalog) -> None:
        await self.put_model(catalog, "m")
        await self.put_model(catalog, "n")
        for number in range(1, 11):
            annotations = Annotations(metrics={"return": number % 4} if number % 5 else {})
            await publish_annotated(catalog, annotations, archived=number % 2 == 0)
        await publish_annotated(catalog, Annotations(metrics={"return": 9}), "n")
        search = Search("m", parse_filter("version_number > 1"), parse_order("metrics.return desc"), None, 3)
        found: list[Version] = []
        while page := await catalog.search(search):
            found += page
            search = replace(search, after=position_of(search.order, page[-1]))
        assert [version.info.number for version in found] == [7, 3, 6, 2, 9, 8, 4, 10, 5]
        everywhere = Search(None, EVERYTHING, parse_order("metrics.return desc"), None, 1)
        assert [version.info.model_id for version in await catalog.search(everywhere)] == ["n"]
        with pytest.raises(NotFoundError):
            await catalog.search(replace(search, model_id="none"))

    async def test_a_model_is_summarized(self, catalog: Catalog) -> None:
        for model_id in ("m", "n"):
            await self.put_model(catalog, model_id)
        infos = [await publish_annotated(catalog, archived=archived) for archived in (True, False)]
        aliases = await catalog.set_aliases(await catalog.find("m"), [AliasChange("best", 1)], 5)
        models = [ModelInfo("n"), ModelInfo("none"), ModelInfo("m")]
        expected = ModelSummary(
            "m", aliases=tuple(aliases), latest_number=2, versions=2, archived_bytes=infos[0].data_size_bytes
        )
        assert await catalog.summarize(models) == [ModelSummary("n"), expected]

    async def test_a_model_changes_only_from_the_expected_revision(self, catalog: Catalog) -> None:
        ref = await catalog.find("m")
        rules = (RetentionRule("archived", "tags.a = x", 3, 2, "return", True, 60, 10), RetentionRule(keep_last=1))
        share = TransientShare(1, 2, 3, 4)
        change = ModelChange({"a": "1"}, (), rules, share, FIRST_REVISION, signers=_KEYS)
        first = await change_model(catalog, ref, change)
        assert (first.tags, first.retention, first.share) == ({"a": "1"}, rules, share)
        assert {*first.signers} == {*_KEYS}
        assert first.revision > FIRST_REVISION
        with pytest.raises(ConflictError, match=f"revision {first.revision}"):
            await change_model(catalog, ref, ModelChange({"a": "2"}, expected_revision=first.revision + 1))
        second = await change_model(catalog, ref, ModelChange({"b": "2"}, ["a", "none"], (), None, first.revision))
        assert (second.tags, second.retention, second.share) == ({"b": "2"}, (), share)
        assert second.signers == first.signers == await catalog.get_signers(ref)
        assert second.revision > first.revision
        assert await catalog.summarize([ModelInfo("m")]) == [second]
        await publish_annotated(catalog, archived=True)
        [alias] = await catalog.set_aliases(ref, [AliasChange("best", 1)], 0)
        assert alias.revision not in (first.revision, second.revision)

    async def test_signers_end_with_their_change_and_with_their_model(self, catalog: Catalog) -> None:
        ref = await catalog.find("m")
        assert await catalog.get_signers(ref) == ()
        await change_model(catalog, ref, ModelChange(signers=_KEYS))
        await change_model(catalog, ref, ModelChange(signers=()))
        assert await catalog.get_signers(ref) == ()
        await change_model(catalog, ref, ModelChange(signers=_KEYS))
        await self.remove_model(catalog, "m")
        await self.put_model(catalog, "m")
        with pytest.raises(NotFoundError):
            await catalog.get_signers(ref)
        assert await catalog.get_signers(await catalog.find("m")) == ()

    @pytest.mark.parametrize("archived", [False, True])
    async def test_a_signature_is_described_listed_and_searched(self, catalog: Catalog, archived: bool) -> None:
        async with catalog.publishing(await catalog.find("m"), archived=archived) as slot:
            info = replace(describe("m", slot.number, b"data", archived), signature=SIGNATURE)
            await slot.annotate(info, Annotations({"a": "1"}))
            slot.show(info)
        found = [
            *await catalog.get_versions("m", [1]),
            *await catalog.list_versions("m", 1, 9),
            *await catalog.describe([info]),
            *await catalog.search(Search("m", parse_filter("tags.a = 1"), BY_NUMBER, None, 10)),
        ]
        assert [each.signature for each in found] == [SIGNATURE] * 4

    async def test_a_deleted_model_loses_its_tags_rules_and_share(self, catalog: Catalog) -> None:
        ref = await catalog.find("m")
        await change_model(catalog, ref, ModelChange({"a": "1"}, (), (RetentionRule(keep_last=1),), TransientShare(1)))
        await self.remove_model(catalog, "m")
        await self.put_model(catalog, "m")
        assert await catalog.summarize([ModelInfo("m")]) == [ModelSummary("m")]
        with pytest.raises(NotFoundError):
            await change_model(catalog, ref, ModelChange({"a": "1"}))

    async def test_the_state_of_a_model_shows_whether_a_decision_is_outdated(self, catalog: Catalog) -> None:
        ref = await catalog.find("m")
        for archived in (True, False, False):
            await publish_annotated(catalog, archived=archived)
        before = await catalog.get_state(ref)
        assert before.numbers == (1, 2, 3)
        info = await publish(catalog, "m")
        assert await catalog.get_state(ref) == ModelState((1, 2, 3, 4), before.changes)
        assert await catalog.get_outline(ref) == ModelOutline(before.changes, 4, 4)
        assert await catalog.get_outline(ref, 2) == ModelOutline(before.changes, 2, 2)
        assert await catalog.get_outline(ref, 0) == ModelOutline(before.changes, 0, 0)
        await catalog.forget(info)
        assert await catalog.get_state(ref) == before

        async def promote() -> None:
            async with catalog.promoting(ref, 2) as promotion:
                promotion.show(replace(promotion.info, archived=True))

        for change in (
            catalog.change_annotations(ref, 1, AnnotationChange({"a": "1"})),
            catalog.change_annotations(ref, 3, AnnotationChange({"a": "1"})),
            catalog.set_aliases(ref, [AliasChange("best", 1)], 0),
            change_model(catalog, ref, ModelChange({"a": "1"})),
            promote(),
        ):
            seen = (await catalog.get_state(ref)).changes
            await change
            assert (await catalog.get_state(ref)).changes > seen
        async with catalog.removing_version(ref, 3):
            seen = (await catalog.get_state(ref)).changes
        assert await catalog.get_state(ref) == ModelState((1, 2), seen)
        assert await catalog.get_outline(ref) == ModelOutline(seen, 2, 2)
        await self.put_model(catalog, "again")
        over = await catalog.find("again")
        async with catalog.removing_model("again"):
            pass
        for look in (catalog.get_state, catalog.get_outline):
            with pytest.raises(NotFoundError):
                await look(over)

    async def test_tags_rules_and_share_of_a_model_survive_a_clean_stop(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as catalog:
            await self.put_model(catalog, "m")
            rules = (RetentionRule("transient", keep_seconds=5), RetentionRule(keep_every=10))
            change = ModelChange({"a": "1"}, (), rules, TransientShare(0, 2**40), signers=_KEYS)
            changed = await change_model(catalog, await catalog.find("m"), change)
        async with self.opened(tmp_path) as catalog:
            assert await catalog.summarize([ModelInfo("m")]) == [changed]

    async def test_annotations_and_aliases_survive_a_clean_stop(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as catalog:
            await self.put_model(catalog, "m")
            info = await self.publish_archived(catalog, Annotations({"a": "1"}, {"return": 5}))
            aliases = await catalog.set_aliases(await catalog.find("m"), [AliasChange("best", 1)], 5)
        async with self.opened(tmp_path) as catalog:
            assert await catalog.get_aliases("m") == aliases
            [version] = await catalog.search(Search("m", EVERYTHING, BY_NUMBER, None, 10))
            assert version == Version.of(info, Annotations({"a": "1"}, {"return": 5}), ("best",))

    async def publish_archived(
        self, catalog: Catalog, annotations: Annotations, request: UploadRequest | None = None
    ) -> VersionInfo:
        """Publish an archived version of ``m``; a subclass also stores it in its archive."""
        return await publish_annotated(catalog, annotations, archived=True, request=request)

    @pytest.mark.parametrize("archived", [False, True])
    async def test_a_finished_upload_is_found_by_its_id(self, catalog: Catalog, archived: bool) -> None:
        assert await catalog.find_upload("id") is None
        request = UploadRequest("id", "digest")
        info = await publish_annotated(catalog, Annotations({"a": "1"}), archived=archived, request=request)
        assert await catalog.find_upload("id") == FinishedUpload("digest", "m", info.number)
        assert await catalog.find_upload("other") is None
        assert (await catalog.describe([info]))[0].tags == {"a": "1"}

    async def test_a_failed_upload_is_unknown_and_may_be_repeated(self, catalog: Catalog) -> None:
        request = UploadRequest("id", "digest", ("best",))

        async def fail() -> None:
            async with catalog.publishing(await catalog.find("m"), archived=True) as slot:
                await slot.annotate(describe("m", slot.number, b"data", True), Annotations(), request)
                raise UnavailableError("for the test")

        with pytest.raises(UnavailableError):
            await fail()
        assert await catalog.find_upload("id") is None
        assert await catalog.get_aliases("m") == []
        info = await publish_annotated(catalog, Annotations(), archived=True, request=request)
        assert await catalog.find_upload("id") == FinishedUpload("digest", "m", info.number)

    async def test_aliases_of_an_upload_are_set_with_its_version(self, catalog: Catalog) -> None:
        first = await publish_annotated(
            catalog, Annotations(), archived=True, request=UploadRequest("1", "a", ("best", "last"))
        )
        second = await publish_annotated(
            catalog, Annotations(), archived=True, request=UploadRequest("2", "b", ("last",))
        )
        aliases = await catalog.get_aliases("m")
        assert [(alias.name, alias.version_number) for alias in aliases] == [
            ("best", first.number),
            ("last", second.number),
        ]
        assert len({alias.revision for alias in aliases}) == 2
        assert (await catalog.describe([second]))[0].aliases == ("last",)

    async def test_an_upload_of_a_deleted_model_is_known_without_a_number(self, catalog: Catalog) -> None:
        await publish_annotated(catalog, Annotations(), archived=True, request=UploadRequest("id", "digest"))
        await self.remove_model(catalog, "m")
        assert await catalog.find_upload("id") == FinishedUpload("digest", "m", 0)
        await self.put_model(catalog, "m")
        assert await catalog.find_upload("id") == FinishedUpload("digest", "m", 0)

    async def test_uploads_of_archived_versions_survive_a_clean_stop(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as catalog:
            await self.put_model(catalog, "m")
            info = await self.publish_archived(catalog, Annotations(), UploadRequest("id", "digest", ("best",)))
        async with self.opened(tmp_path) as catalog:
            assert await catalog.find_upload("id") == FinishedUpload("digest", "m", info.number)
            [alias] = await catalog.get_aliases("m")
            assert (alias.name, alias.version_number) == ("best", info.number)

    async def test_versions_with_the_same_bytes_are_found(self, catalog: Catalog) -> None:
        transient = await publish(catalog, "m")
        assert await catalog.find_copies("m", transient.data_hash, transient.data_size_bytes) == [transient]
        archived = await self.publish_archived(catalog, Annotations())
        found = await catalog.find_copies("m", transient.data_hash, transient.data_size_bytes)
        assert sorted(found, key=lambda info: info.number) == [transient, archived]
        assert await catalog.find_copies("m", transient.data_hash, 5) == []
        assert await catalog.find_copies("m", describe("m", 1, b"", True).data_hash, 0) == []
        with pytest.raises(NotFoundError):
            await catalog.find_copies("other", transient.data_hash, transient.data_size_bytes)

    async def test_a_watcher_sees_which_models_exist_and_then_which_change(self, catalog: Catalog) -> None:
        await self.put_model(catalog, "n")
        with catalog.watching(None) as everything, catalog.watching(["m", "later"]) as some:
            assert sorted(await changed(everything)) == ["m", "n"]
            assert await changed(some) == ["m"]
            assert await everything.changed(wait=False) == await some.changed(wait=False) == []
            for _ in range(3):
                await publish(catalog, "n")
            await self.put_model(catalog, "later")
            assert sorted(await changed(everything)) == ["later", "n"]
            assert await changed(some) == ["later"]
            waiting = asyncio.ensure_future(changed(some))
            await publish(catalog, "n")
            await self.remove_model(catalog, "m")
            assert await waiting == ["m"]

    async def test_a_watcher_ends_when_the_catalog_stops(self, catalog: Catalog) -> None:
        with catalog.watching(None) as watcher, catalog.watching(["none"]) as waiting:
            task = asyncio.ensure_future(waiting.changed(wait=True))
            await changed(watcher)
            catalog.stop_watching()
            for each in (task, watcher.changed(wait=False)):
                with pytest.raises(UnavailableError):
                    await each
        with catalog.watching(["m"]) as later, pytest.raises(UnavailableError):
            await changed(later)

    async def test_changes_of_a_model_begin_after_a_position(self, catalog: Catalog) -> None:
        await publish_all(catalog, 4)
        news = await catalog.get_news("m", 1, 0, 2)
        assert [each.number for each in news.shown] == [2, 3]
        assert news.shown[0].sequence < news.shown[1].sequence
        assert news.last_number == 4
        assert [each.number for each in (await catalog.get_news("m", 1, 0, 0)).shown] == [4]
        assert (await catalog.get_news("m", 4, 0, 0)).shown == []
        assert (await catalog.get_news("none", 0, 0, 1)).life == 0

    async def test_changes_include_removed_versions_and_the_reason(self, catalog: Catalog) -> None:
        infos = await publish_all(catalog, 3)
        ref = await catalog.find("m")
        await catalog.forget(infos[1])
        [evicted] = (await catalog.get_news("m", 3, 0, 1)).lost
        assert (evicted.first_number, evicted.last_number, evicted.reason) == (2, 2, "evicted")
        async with catalog.removing_version(ref, 3):
            pass
        await catalog.mark_damaged(ref, DataLossError.version("m", 1, "gone"))
        news = await catalog.get_news("m", 3, evicted.sequence, 1)
        assert [(each.first_number, each.reason) for each in news.lost] == [(3, "deleted"), (1, "damaged")]
        assert (news.last_number, news.shown) == (3, [])

    async def test_changes_show_that_the_model_itself_was_changed(self, catalog: Catalog) -> None:
        ref = await catalog.find("m")
        seen = [(await catalog.get_news("m", 0, 0, 1)).changed]

        async def has_changed() -> bool:
            seen.append((await catalog.get_news("m", 0, 0, 1)).changed)
            return seen[-1] > seen[-2]

        await publish_annotated(catalog, Annotations(), archived=True)
        assert not await has_changed()
        await self.put_model(catalog, "m", a="c")
        assert await has_changed()
        await change_model(catalog, ref, ModelChange(set_tags={"a": "b"}))
        assert await has_changed()
        await catalog.set_aliases(ref, [AliasChange("production", 1)], 1)
        assert await has_changed()
        request = UploadRequest("id", "digest", ("candidate",))
        await publish_annotated(catalog, Annotations(), archived=True, request=request)
        assert await has_changed()
        async with catalog.removing_version(ref, 1):
            pass
        assert await has_changed()

    async def test_the_life_of_a_model_survives_a_restart_and_ends_with_its_deletion(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as catalog:
            await self.put_model(catalog, "m")
            await publish_all(catalog, 2)
            life = (await catalog.get_news("m", 0, 0, 1)).life
        async with self.opened(tmp_path) as catalog:
            news = await catalog.get_news("m", 0, 0, 1)
            assert (news.life, news.last_number) == (life, 2)
            with catalog.watching(["m"]) as watcher:
                assert await changed(watcher) == ["m"]
                await self.remove_model(catalog, "m")
                assert await changed(watcher) == ["m"]
            removed = await catalog.get_news("m", 0, 0, 1)
            assert (removed.life, await catalog.removed_since(removed.since - 1)) == (0, ["m"])
            assert await catalog.removed_since(removed.since) == await catalog.removed_since(0) == []
            await self.put_model(catalog, "m")
            again = await catalog.get_news("m", 0, 0, 1)
            assert again.life not in (0, life)
            assert again.last_number == 0

    async def test_the_end_of_a_life_is_known_after_later_lives(self, catalog: Catalog) -> None:
        ended: list[int] = []
        assert (await catalog.get_news("m", 0, 0, 1)).removed == 0
        for _ in range(3):
            await self.remove_model(catalog, "m")
            gone = await catalog.get_news("m", 0, 0, 1)
            ended.append(gone.since)
            await self.put_model(catalog, "m")
        assert ended == sorted(set(ended))
        for position, removed in zip([0, *ended], [*ended, 0], strict=True):
            assert (await catalog.get_news("m", 0, position, 1)).removed == removed
        await self.remove_model(catalog, "m")
        assert (await catalog.get_news("m", 0, ended[0], 1)).removed == ended[1]

    async def test_the_highest_number_at_a_past_moment_is_known(self, catalog: Catalog) -> None:
        since = (await catalog.get_news("m", 0, 0, 1)).since
        await publish_all(catalog, 3)
        shown = (await catalog.get_news("m", 0, 0, 3)).shown
        assert [await catalog.number_at("m", each.sequence) for each in shown] == [1, 2, 3]
        assert [await catalog.number_at("m", at) for at in (since - 1, since, shown[-1].sequence + 5)] == [0, 0, 3]
        assert await catalog.number_at("none", shown[-1].sequence) == 0

    async def test_changes_are_recorded_with_what_was_before_and_what_is_after(self, catalog: Catalog) -> None:
        journal = ListJournal()
        with recording(journal):
            await self.put_model(catalog, "j")
            await self.put_model(catalog, "j", owner="robots")
            ref = await catalog.find("j")
            tags = Annotations({"stage": "new"}, {"return": 1.0})
            await publish_annotated(catalog, tags, "j", request=UploadRequest("id", "digest", ()))
            async with catalog.promoting(ref, 1) as promotion:
                info = replace(promotion.info, archived=True)
                await promotion.annotate(info)
                promotion.show(info)
            before = (await catalog.describe([info]))[0]
            await catalog.change_annotations(ref, 1, AnnotationChange(set_tags={"stage": "old"}))
            await catalog.set_aliases(ref, [AliasChange("a", 1), AliasChange("b", 1)], time_ns())
            await catalog.set_aliases(ref, [AliasChange("a", 1), AliasChange("b", None)], time_ns())
            await change_model(catalog, ref, ModelChange({"team": "x"}, retention=(RetentionRule(keep_last=1),)))
            await publish_annotated(catalog, Annotations(), "j", archived=True)
            async with catalog.removing_version(ref, 1):
                pass
            await self.remove_model(catalog, "j")
        assert journal.kinds() == [
            ("model created", 0, ""),
            ("model replaced", 0, ""),
            ("version created", 1, ""),
            ("version promoted", 1, ""),
            ("version changed", 1, ""),
            *[("alias set", 1, "a"), ("alias set", 1, "b"), ("alias set", 1, "a"), ("alias removed", 1, "b")],
            ("model changed", 0, ""),
            ("version created", 2, ""),
            *[("version deleted", 1, ""), ("alias removed", 1, "a")],
            ("model deleted", 0, ""),
        ]
        changes = [(each.before or {}, each.after or {}) for each in journal.changes]
        assert changes[0] == ({}, {"user_data": {}})
        assert changes[1] == ({"user_data": {}}, {"user_data": {"owner": "robots"}})
        assert changes[2][1].items() >= {"data_hash": info.data_hash, "tags": {"stage": "new"}}.items()
        assert changes[4][0] == {"tags": {"stage": "new"}, "metrics": {"return": 1.0}, "revision": before.revision}
        assert changes[4][1]["tags"] == {"stage": "old"}
        assert [each[0] for each in changes[5:7]] == [{}, {}]
        assert changes[5][1] == changes[7][0]
        assert changes[7][1]["revision"] > changes[7][0]["revision"]
        assert changes[11][0].items() >= {"aliases": ["a"], "tags": {"stage": "old"}, "archived": True}.items()
        assert changes[9][0].items() >= {"tags": {}, "retention": []}.items()
        assert (
            changes[9][1].items() >= {"tags": {"team": "x"}, "retention": ["of all versions, keep the last 1"]}.items()
        )
        assert changes[9][1].keys() == {each.name for each in fields(ModelAnnotations)}
        names = {each.name for each in fields(VersionInfo)} - {"model_id", "number", "created_ns"}
        names.remove("signature")  # it has none
        assert changes[10][1].keys() == {*names, "created", *(each.name for each in fields(Annotations))}
        assert changes[13][0].items() >= {"versions": 1, "user_data": {"owner": "robots"}}.items()

    async def test_changes_that_were_refused_are_not_recorded(self, catalog: Catalog) -> None:
        ref = await catalog.find("m")
        await publish(catalog, "m")
        journal = ListJournal()
        with recording(journal):
            with pytest.raises(ConflictError):
                await catalog.change_annotations(ref, 1, AnnotationChange({"a": "b"}, expected_revision=99))
            with pytest.raises(NotFoundError):
                await catalog.set_aliases(ref, [AliasChange("a", 1)], time_ns())  # it is not archived
            with pytest.raises(ValueError, match="no reason"):
                async with catalog.removing_version(ref, 1):
                    raise ValueError("no reason")
        assert journal.changes == []

    async def test_what_was_before_is_right_when_many_change_one_alias(self, catalog: Catalog) -> None:
        ref = await catalog.find("m")
        versions = [await publish_annotated(catalog, Annotations(), archived=True) for _ in range(3)]
        journal = ListJournal()

        async def change(turn: int) -> None:
            aliases = await catalog.get_aliases("m")
            revision = aliases[0].revision if aliases else 0
            changes = [AliasChange("a", versions[turn % 3].number, revision)]
            try:
                await catalog.set_aliases(ref, changes, time_ns())
            except ConflictError:
                await catalog.set_aliases(ref, [AliasChange("a", versions[turn % 3].number)], time_ns())

        with recording(journal):
            async with asyncio.TaskGroup() as group:
                for turn in range(20):
                    group.create_task(change(turn))
        assert len(journal.changes) == 20
        assert journal.changes[0].before is None
        assert journal.is_unbroken()
