"""A start reads only the folders that changed since the last comparison, and finds every change in them."""

import asyncio
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cogment_model_registry.records.lifecycle import Alias, AliasChange, AnnotationChange, Version
from cogment_model_registry.records.versions import ModelInfo
from cogment_model_registry.registry import filters
from cogment_model_registry.registry.contracts import Search
from cogment_model_registry.storage.catalog.database import Database
from cogment_model_registry.storage.catalog.local import LocalCatalog
from cogment_model_registry.storage.catalog.tables import MIGRATIONS
from cogment_model_registry.storage.filesystem import layout, reading
from cogment_model_registry.storage.filesystem.archive import DirectoryArchive
from cogment_model_registry.storage.filesystem.files import Entry, Files
from cogment_model_registry.testing.bytes import describe, hash_of, keep
from tests.waiting import wait_until

SETTLING_NS = 20 * 10**6
"""A few ticks of a kernel: the file systems of tests keep fractions of a second."""

EVERYTHING = Search(None, filters.And(()), filters.Order(filters.Field("version_number")), None, 10**6)
MODELS = ("a", "b")


class Watched(Files):
    """File operations that record which directories are listed."""

    def __init__(self) -> None:
        self.listed: list[str] = []

    def list_directory(self, directory: int) -> list[Entry]:
        self.listed.append(os.path.basename(os.readlink(f"/proc/self/fd/{directory}")))
        return super().list_directory(directory)


@pytest.fixture(autouse=True)
def _settle_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "FOLDER_SETTLING_NS", SETTLING_NS)


def let_settle(place: Path) -> None:
    """Wait until the last changes of the folders are old enough to be distinguished from the next ones."""
    newest_ns = max(path.stat().st_ctime_ns for path in [place, *place.glob("archive/*")])
    wait_until(lambda: time.time_ns() - newest_ns > SETTLING_NS)


@asynccontextmanager
async def started(
    place: Path, database: str = "catalog.db"
) -> AsyncIterator[tuple[DirectoryArchive, LocalCatalog, list[str]]]:
    """Run a catalog; also return the models whose folders it has listed."""
    files = Watched()
    archive = DirectoryArchive(str(place / "archive"), 128, files)
    catalog = LocalCatalog(archive, Database(str(place / database), MIGRATIONS))
    try:
        await archive.open()
        await catalog.open()
        await catalog.search(EVERYTHING)  # waits until everything is read
        yield archive, catalog, [name for name in files.listed if name != "archive"]
    finally:
        await catalog.close()
        await archive.close()


async def state(catalog: LocalCatalog) -> dict[str, Any]:
    """Return the content of a catalog."""
    models = await catalog.list_models(0, 100)
    return {
        "models": models,
        "versions": {m.model_id: await catalog.list_versions(m.model_id, 0, 10**6) for m in models},
        "found": {(v.info.model_id, v.number, v.info.data_hash) for v in await catalog.search(EVERYTHING)},
        "counts": await catalog.count(),
        "next": {model.model_id: catalog._models.by_id[model.model_id].next_number for model in models},
    }


def write(place: Path, model_id: str, number: int, data: bytes) -> None:
    """Write a version as another program does: directly under its final name."""
    folder = place / "archive" / model_id
    info = describe(model_id, number, data, True)
    (folder / layout.data_file_name(model_id, number)).write_bytes(data)
    temporary = folder / "temporary"
    temporary.write_bytes(layout.format_version(info))
    temporary.rename(folder / layout.version_file_name(model_id, number))


async def make(place: Path) -> None:
    """Create an archive with two models of three versions."""
    async with started(place) as (archive, catalog, _):
        for model_id in MODELS:
            async with catalog.writing_model(ModelInfo(model_id)):
                await archive.write_model(ModelInfo(model_id))
            for number in (1, 2, 3):
                async with catalog.publishing(await catalog.find(model_id)) as slot:
                    info = describe(model_id, slot.number, b"data %d" % number, True)
                    await keep(archive, info, b"data %d" % number)
                    slot.show(info)


async def start_and_record(place: Path) -> None:
    """Start twice, so that the states of the folders are recorded."""
    for _ in range(2):
        let_settle(place)
        async with started(place):
            pass


async def test_a_start_right_after_a_change_lets_the_next_one_read_only_what_changed_about_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make(tmp_path)
    let_settle(tmp_path)
    write(tmp_path, "b", 9, b"new")
    changed_ns = (tmp_path / "archive/b").stat().st_ctime_ns
    with monkeypatch.context() as patch:
        patch.setattr(reading, "time", SimpleNamespace(time_ns=lambda: changed_ns))
        async with started(tmp_path):
            pass
    write(tmp_path, "b", 2, b"replaced")
    read: list[tuple[str, int]] = []
    read_version = reading.read_version

    def noted(files: Files, directory: int, model_id: str, number: int) -> Any:
        read.append((model_id, number))
        return read_version(files, directory, model_id, number)

    monkeypatch.setattr(reading, "read_version", noted)
    for expected in ([("b", 2), ("b", 9)], []):
        read.clear()
        let_settle(tmp_path)
        async with started(tmp_path) as (_, catalog, _):
            hashes = {version.info.data_hash for version in await catalog.search(EVERYTHING)}
            assert {hash_of(b"new"), hash_of(b"replaced")} <= hashes
        assert sorted({*read}) == expected


async def test_a_folder_in_the_recorded_state_is_not_read(tmp_path: Path) -> None:
    await make(tmp_path)
    let_settle(tmp_path)
    async with started(tmp_path) as (_, catalog, listed):
        assert listed == [*MODELS]
        before = await state(catalog)
    async with started(tmp_path) as (_, catalog, listed):
        assert listed == []
        assert await state(catalog) == before
    write(tmp_path, "b", 9, b"new")
    async with started(tmp_path) as (_, catalog, listed):
        assert listed == ["b"]
        assert [info.number for info in await catalog.list_versions("b", 0, 10)] == [1, 2, 3, 9]


async def test_a_change_right_after_the_last_one_is_detected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await make(tmp_path)
    monkeypatch.setattr(reading, "FOLDER_SETTLING_NS", 10**15)
    for _ in range(3):
        async with started(tmp_path) as (_, _, listed):
            assert listed == [*MODELS]


async def test_a_replaced_version_with_the_same_number_is_detected(tmp_path: Path) -> None:
    await make(tmp_path)
    async with started(tmp_path) as (_, catalog, _):
        ref = await catalog.find("a")
        await catalog.set_aliases(ref, [AliasChange("production", 2), AliasChange("next", 3)], 1)
        for number in (1, 2, 3):
            await catalog.change_annotations(ref, number, AnnotationChange(set_tags={"of": str(number)}))
    await start_and_record(tmp_path)
    # As the original does when it deletes a model and creates it again; version 3 is restored unchanged.
    folder = tmp_path / "archive" / "a"
    kept = {
        path.name: path.read_bytes() for path in folder.glob("a*") if "v000003" in path.name or "-v" not in path.name
    }
    shutil.rmtree(folder)
    folder.mkdir()
    for name, text in kept.items():
        (folder / name).write_bytes(text)
    write(tmp_path, "a", 1, b"another")
    write(tmp_path, "a", 2, b"another")
    archive = DirectoryArchive(str(tmp_path / "archive"), 128)
    catalog = LocalCatalog(archive, Database(str(tmp_path / "catalog.db"), MIGRATIONS))
    await archive.open()
    await catalog.open()
    try:  # before anything is read in the background
        [alias] = await catalog.get_aliases("a")
        assert (alias.name, alias.version_number) == ("next", 3)
        described = await catalog.describe(await catalog.list_versions("a", 0, 10))
        assert [dict(version.tags) for version in described] == [{}, {}, {"of": "3"}]
        found = [version for version in await catalog.search(EVERYTHING) if version.info.model_id == "a"]
        assert [version.info.data_hash for version in found] == [hash_of(b"another")] * 2 + [hash_of(b"data 3")]
        assert [dict(version.tags) for version in found] == [{}, {}, {"of": "3"}]
    finally:
        await catalog.close()
        await archive.close()


async def test_a_rescan_finds_versions_that_were_replaced(tmp_path: Path) -> None:
    await make(tmp_path)

    async def ignore(_model_id: str) -> None:
        pass

    async with started(tmp_path) as (_, catalog, _):
        await catalog.set_aliases(await catalog.find("a"), [AliasChange("production", 2)], 1)
        write(tmp_path, "a", 2, b"another")
        await catalog.refresh(ignore)
        aliases: list[Alias] = await catalog.get_aliases("a")
        assert aliases == []
        versions: list[Version] = await catalog.search(EVERYTHING)
        assert hash_of(b"another") in {version.info.data_hash for version in versions}


def remove(place: Path, model_id: str, number: int) -> None:
    for ending in ("yaml", "data"):
        (place / "archive" / model_id / f"{model_id}-v{number:06d}.{ending}").unlink(missing_ok=True)


def remove_metadata(place: Path, model_id: str, number: int) -> None:
    (place / "archive" / model_id / layout.version_file_name(model_id, number)).unlink(missing_ok=True)


def remove_data(place: Path, model_id: str, number: int) -> None:
    (place / "archive" / model_id / layout.data_file_name(model_id, number)).unlink(missing_ok=True)


def recreate(place: Path, model_id: str, number: int) -> None:
    folder = place / "archive" / model_id
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / layout.model_file_name(model_id)).write_bytes(layout.format_model(ModelInfo(model_id, {"of": "another"})))
    for each in range(1, number + 1):
        write(place, model_id, each, b"another")


def set_back_times(place: Path, model_id: str, number: int) -> None:
    """Give a version old times, as a restored backup has."""
    write(place, model_id, number, b"restored")
    folder = place / "archive" / model_id
    for path in [*folder.iterdir(), folder]:
        os.utime(path, (1, 1))


def raise_mark(place: Path, model_id: str, number: int) -> None:
    (place / "archive" / model_id / layout.HIGH_WATER_MARK_NAME).write_text(f"{number + 100}\n", encoding="utf-8")


def edit_model(place: Path, model_id: str, number: int) -> None:
    text = layout.format_model(ModelInfo(model_id, {"edited": str(number)}))
    (place / "archive" / model_id / layout.model_file_name(model_id)).write_bytes(text)


def add(place: Path, model_id: str, number: int) -> None:
    write(place, model_id, number, b"added")


CHANGES: list[Callable[[Path, str, int], None]] = [
    add,
    remove,
    remove_metadata,
    remove_data,
    recreate,
    set_back_times,
    raise_mark,
    edit_model,
]

STEPS = st.lists(
    st.lists(st.tuples(st.sampled_from(CHANGES), st.sampled_from(MODELS), st.integers(1, 5)), max_size=3), max_size=4
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_a_start_finds_what_one_without_a_database_finds(
    tmp_path_factory: pytest.TempPathFactory, steps: list[list[tuple[Callable[[Path, str, int], None], str, int]]]
) -> None:
    place = tmp_path_factory.mktemp("follow")

    async def run() -> None:
        await make(place)
        await start_and_record(place)
        for number, changes in enumerate(steps):
            for change, model_id, version in changes:
                change(place, model_id, version)
            if number % 2:
                let_settle(place)
            async with started(place) as (_, catalog, _):
                seen = await state(catalog)
            async with started(place, f"new{number}.db") as (_, catalog, _):
                assert seen == await state(catalog)

    asyncio.run(run())
