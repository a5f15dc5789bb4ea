"""`cogment archive verify --repair` with archives in object stores."""

import asyncio
import subprocess

import obstore
import pytest
from obstore.store import ObjectStore

from cogment_model_registry.records.versions import ModelInfo
from cogment_model_registry.storage.bucket import layout
from cogment_model_registry.storage.bucket.archive import BucketArchive
from cogment_model_registry.storage.bucket.objects import Objects
from cogment_model_registry.testing.bytes import describe, keep, read
from tests.archive_tools.annotated import Command, Verify
from tests.archive_tools.bucket_places import Archives, names

INFOS = [describe("été", number, b"data %d" % number, True) for number in (1, 2, 3)]


@pytest.fixture(autouse=True)
def _environment(archives: Archives, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let commands that run in this process find the store."""
    for name, value in archives.environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def store(place: tuple[str, ObjectStore]) -> ObjectStore:
    """The store of an archive with the models `été`, which has three versions, and `other`."""

    async def fill() -> None:
        archive = BucketArchive(Objects(place[1], place[0]))
        await archive.open()
        await archive.write_model(ModelInfo("été", {"a": "b"}))
        await archive.write_model(ModelInfo("other"))
        for info in INFOS:
            await keep(archive, info, b"data %d" % info.number)
        await archive.close()

    asyncio.run(fill())
    return place[1]


def life_of(store: ObjectStore) -> str:
    """Return the life of the model `été`."""
    name = layout.model_name("été")
    return layout.parse_model(bytes(obstore.get(store, name).bytes()), name).life


def test_what_interrupted_work_has_left_is_removed(
    place: tuple[str, ObjectStore], store: ObjectStore, verify: Verify, run: Command
) -> None:
    url, life, dead = place[0], life_of(store), layout.new_life()
    before = names(store, "versions", "hints", "marks", "data", "models")
    record = layout.Record(describe("été", 9, b"left", True), layout.new_key(0), (4,))
    left = [
        layout.data_name(life, record.key, 0),
        layout.hint_name(life, 9, record),
        layout.version_name(dead, 1),
        layout.mark_name(dead, 7),
        layout.data_name(dead, layout.new_key(0), 0),
    ]
    for name in [*left, "data/notes.txt"]:
        obstore.put(store, name, b"left")
    code, document = verify(url)
    assert (code, document["findings"]) == (0, [])  # it may be under way
    code, document = verify(url, "--repair")
    assert (code, document["not_repaired"]) == (0, [])
    assert sorted((each["kind"], each["message"]) for each in document["repaired"]) == [
        ("data_without_metadata", "removed: 1 object"),
        ("doomed_directory", "removed: 3 objects"),
        ("temporary_file", "removed: 1 object"),
    ]
    assert names(store, "versions", "hints", "marks", "data", "models") == sorted([*before, "data/notes.txt"])
    code, output, errors = run("verify", url, "--repair")
    assert (code, errors) == (0, "")
    assert "2 models, 3 versions" in output


@pytest.mark.parametrize("text", [b"", b'{"model_id": "\xc3\xa9t', b"{}"])
def test_a_malformed_model_is_rebuilt_from_its_versions(
    text: bytes, place: tuple[str, ObjectStore], store: ObjectStore, verify: Verify
) -> None:
    name, life = layout.model_name("été"), life_of(store)
    obstore.put(store, name, text)
    assert verify(place[0])[0] == 1
    code, document = verify(place[0], "--repair")
    assert (code, [each["kind"] for each in document["repaired"]]) == (0, ["model_metadata_damaged"])
    assert (document["models"], document["versions"]) == (2, 3)
    assert life_of(store) == life
    assert bytes(obstore.get(store, f"damaged/{name}").bytes()) == text

    async def check() -> None:
        archive = BucketArchive(Objects(place[1], place[0]))
        await archive.open()
        assert [await read(archive, info) for info in INFOS] == [b"data 1", b"data 2", b"data 3"]
        assert [each.info for each in await archive.scan()] == [ModelInfo("other"), ModelInfo("été")]
        await archive.close()

    asyncio.run(check())


def test_a_malformed_model_without_versions_stays_and_so_do_leftovers(
    place: tuple[str, ObjectStore], store: ObjectStore, verify: Verify
) -> None:
    obstore.put(store, layout.model_name("other"), b"{}")
    left = layout.data_name(layout.new_life(), layout.new_key(0), 0)  # it may be of that model
    obstore.put(store, left, b"left")
    code, document = verify(place[0], "--repair")
    assert (code, document["repaired"]) == (1, [])
    assert [each["message"] for each in document["not_repaired"]] == [
        "it cannot be rebuilt: 0 sets of versions may be those of the model"
    ]
    assert left in names(store, "data")


def test_damaged_versions_stay(place: tuple[str, ObjectStore], store: ObjectStore, verify: Verify) -> None:
    life = life_of(store)
    record = layout.parse_record(bytes(obstore.get(store, layout.version_name(life, 1)).bytes()), "été", 1)
    assert record is not None
    obstore.put(store, layout.data_name(life, record.key, 0), b"Data 1")
    obstore.put(store, layout.version_name(life, 2), b"{}")
    before = names(store, "versions", "data")
    code, document = verify(place[0], "--repair")
    assert (code, document["repaired"]) == (1, [])
    assert [(each["kind"], each["version_number"]) for each in document["findings"]] == [
        ("data_wrong_hash", 1),
        ("version_metadata_damaged", 2),
    ]
    assert names(store, "versions", "data") == before


def test_an_archive_that_a_server_uses_is_not_repaired(
    archives: Archives, place: tuple[str, ObjectStore], store: ObjectStore
) -> None:
    before = names(store, "versions", "data")

    async def repair() -> subprocess.CompletedProcess[str]:
        archive = BucketArchive(Objects(place[1], place[0]))
        await archive.open()
        ended = await asyncio.to_thread(archives.cogment, "verify", place[0], "--repair")
        await archive.close()
        return ended

    ended = asyncio.run(repair())
    assert ended.returncode == 3
    assert "is in use by process" in ended.stderr
    assert names(store, "versions", "data") == before
