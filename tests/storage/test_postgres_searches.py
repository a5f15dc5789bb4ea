"""Searches in PostgreSQL find what the rules for filters and orders say, page by page."""

import math
import random
from dataclasses import replace

import pytest

from cogment_model_registry.records.lifecycle import AliasChange, Annotations, Version
from cogment_model_registry.registry.contracts import Search
from cogment_model_registry.registry.filter_text import parse_filter
from cogment_model_registry.registry.filters import And, Comparison, Field, arranged, matches, parse_order, position_of
from cogment_model_registry.storage.postgres.catalog import PostgresCatalog
from cogment_model_registry.testing.bytes import SIGNATURE, describe
from tests.storage.test_shared_catalog import opened, write_model

FILTERS = [
    "",
    "archived = true",
    "archived = false AND version_number > 3",
    "version_number != 4",
    "data_size >= 5 AND data_size < 9",
    "creation_timestamp > 1633119005107454625",
    "tags.stage = new",
    "tags.stage != new",
    "tags.stage > m OR tags:other",
    "NOT tags:stage",
    "metrics.return > 0",
    "metrics.return <= 0.5 OR NOT metrics:return",
    "user_data.seed = 1 AND aliases:best",
    "NOT aliases:best",
    "NOT (tags.stage = old OR metrics.return < 0)",
]

ORDERS = [
    "",
    "version_number desc",
    "archived",
    "data_size desc",
    "creation_timestamp",
    "data_hash",
    "tags.stage",
    "tags.stage desc",
    "user_data.seed",
    "metrics.return",
    "metrics.return desc",
    "metrics.none desc",
]


async def fill(catalog: PostgresCatalog) -> list[Version]:
    """Add versions of both tiers to two models, and return them."""
    chance = random.Random(5)
    versions: list[Version] = []
    for model_id in ("m", "n"):
        ref = await write_model(catalog, model_id)
        for _ in range(14):
            archived = chance.random() < 0.5
            tags = {"stage": chance.choice(["new", "old", "z\0", "z\1", "z"])} if chance.random() < 0.7 else {}
            metrics = {"return": chance.choice([-1.5, -0.0, 0.5, 1e308, 5e-324])} if chance.random() < 0.7 else {}
            async with catalog.publishing(ref, archived=archived) as slot:
                info = describe(model_id, slot.number, b"x" * chance.randrange(9), archived, seed=str(slot.number % 3))
                info = replace(info, signature=SIGNATURE if slot.number % 2 else None)
                await slot.annotate(info, Annotations({**tags, "other\0": "\1"} if tags else {}, metrics))
                slot.show(info)
            versions += await catalog.describe([info])
        first = next(each.number for each in versions if each.archived and each.model_id == model_id)
        await catalog.set_aliases(ref, [AliasChange("best", first)], 1)
    return await catalog.describe(versions)


async def pages(catalog: PostgresCatalog, search: Search) -> list[Version]:
    found: list[Version] = []
    while page := await catalog.search(search):
        found += page
        search = replace(search, after=position_of(search.order, page[-1]))
    return found


async def test_searches_find_what_the_rules_say(database: str) -> None:
    async with opened(database) as catalog:
        versions = await fill(catalog)
        for model_id in ("m", None):
            listed = [each for each in versions if model_id in (None, each.model_id)]
            for turn, text in enumerate(FILTERS):
                accepted = parse_filter(text)
                for order in map(parse_order, ORDERS[turn % 5 :: 5]):
                    found = await pages(catalog, Search(model_id, accepted, order, None, 5))
                    expected = arranged(order, [each for each in listed if matches(accepted, each)], None)
                    assert found == expected, (model_id, text, order)
                    assert [each.signature for each in found] == [each.signature for each in expected]


@pytest.mark.parametrize("value", [2**70, -(2**70), 2**63])
async def test_numbers_beyond_the_range_of_a_column_compare_as_they_are(database: str, value: int) -> None:
    async with opened(database) as catalog:
        versions = await fill(catalog)
        for symbol in ("=", "!=", "<", ">="):
            for name in ("version_number", "data_size", "creation_timestamp"):
                accepted = And((Comparison(Field(name), symbol, value),))
                found = await pages(catalog, Search(None, accepted, parse_order(""), None, 100))
                assert len(found) == sum(matches(accepted, each) for each in versions), (name, symbol)


async def test_texts_and_numbers_are_kept_as_they_are(database: str) -> None:
    texts = {
        "\0": "\1",
        "\1": "\0",
        "": "",
        "\1\2": "\1\1\0",
        "ключ": "値\U0001f600",
        '"\\': "'; DROP TABLE models; --",
    }
    numbers = {"a": -0.0, "b": 5e-324, "c": 1.7976931348623157e308, "d": 0.1, "\0": 3}
    async with opened(database) as catalog:
        ref = await write_model(catalog, "m", **{"k\0": "v\0"})
        for archived in (False, True):
            async with catalog.publishing(ref, archived=archived) as slot:
                info = replace(describe("m", slot.number, b"", archived), user_data=texts)
                await slot.annotate(info, Annotations(texts, numbers))
                slot.show(info)
        assert (await catalog.get_model("m")).user_data == {"k\0": "v\0"}
        for info in await catalog.list_versions("m", 1, 10):
            [version] = await catalog.describe([info])
            assert version.user_data == version.tags == texts
            assert version.metrics == numbers
            assert math.copysign(1, version.metrics["a"]) == -1
