"""`cogment archive verify` compares the database with the files, and its repair loses no readable data."""

import asyncio
import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cogment_model_registry.records.lifecycle import AliasChange, AnnotationChange
from cogment_model_registry.storage.filesystem.findings import Kind
from cogment_model_registry.storage.filesystem.layout import CATALOG_NAME
from tests.archive_tools.annotated import (
    ALL,
    NOTHING,
    Verify,
    annotated_archive,
    change_database,
    described,
    remove_version,
)
from tests.archive_tools.test_archive_verify import tree
from tests.archive_tools.test_damaged_archives import write_version
from tests.client import connected
from tests.processes import run_cogment, server_process
from tests.server.test_model_lifecycle import Lifecycle


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return annotated_archive(tmp_path)


def kinds(document: dict[str, Any], field: str = "findings") -> list[tuple[str, int | None]]:
    return [(item["kind"], item["version_number"]) for item in document[field]]


def copied_with_log(archive: Path, place: Path) -> Path:
    """Return a copy of an archive whose database has changes in its log, as a killed server leaves it."""
    with closing(sqlite3.connect(archive / CATALOG_NAME, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("UPDATE tags SET value = 'in the log'")
        shutil.copytree(archive, place)
    (place / f"{CATALOG_NAME}-shm").unlink()
    assert (place / f"{CATALOG_NAME}-wal").stat().st_size
    return place


def test_a_consistent_database_is_reported_as_sound_and_not_changed(
    archive: Path, tmp_path: Path, verify: Verify
) -> None:
    for place in (archive, copied_with_log(archive, tmp_path / "killed")):
        before = tree(place)
        assert verify(place)[0] == 0
        code, document = verify(place)
        assert (code, document["findings"]) == (0, [])
        assert tree(place) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_database_in_a_read_only_directory_is_verified(archive: Path, verify: Verify) -> None:
    archive.chmod(0o500)
    try:
        assert verify(archive)[0] == 0
    finally:
        archive.chmod(0o750)


def replace_version(archive: Path) -> None:
    write_version(archive / "m", 3, b"another", creation_timestamp="2026-01-01T00:00:00Z")


def change_user_data(archive: Path) -> None:
    path = archive / "m" / "m-v000002.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("'2'", "'7'").replace('"2"', '"7"'), encoding="utf-8")


NOT_ALIASED = {**ALL, "aliases": {"b": (1, 5)}}
WITHOUT_3 = {**NOT_ALIASED, "metrics": {}}


@pytest.mark.parametrize(
    ("change", "expected", "is_problem", "after"),
    [
        (replace_version, [("catalog_version_differs", 3)], True, {**WITHOUT_3, "versions": [1, 2, 3]}),
        (change_user_data, [("catalog_version_differs", 2)], True, ALL),
        (
            lambda archive: remove_version(archive, 3),
            [("alias_without_version", 3)],
            True,
            {**WITHOUT_3, "versions": [1, 2]},
        ),
        (
            lambda archive: remove_version(archive, 2),
            [("catalog_version_gone", 2)],
            False,
            {**ALL, "tags": {}, "versions": [1, 3]},
        ),
        (
            lambda archive: write_version(archive / "m", 9, b"from elsewhere"),
            [("catalog_lacks_versions", None), ("high_water_mark_low", None)],
            False,
            {**ALL, "versions": [1, 2, 3, 9]},
        ),
        (
            lambda archive: (archive / CATALOG_NAME).unlink(),
            [],
            False,
            NOTHING,
        ),
    ],
)
def test_a_difference_is_found_and_repaired(
    *,
    change: Callable[[Path], None],
    expected: list[tuple[str, int | None]],
    is_problem: bool,
    after: dict[str, Any],
    archive: Path,
    verify: Verify,
) -> None:
    change(archive)
    before = tree(archive)
    code, document = verify(archive)
    assert (code, kinds(document)) == (int(is_problem), expected)
    assert tree(archive) == before
    code, document = verify(archive, "--repair")
    assert (code, sorted(kinds(document, "repaired"), key=str)) == (0, sorted(expected, key=str))
    assert verify(archive)[1]["findings"] == []
    assert described(archive) == after


def test_a_starting_server_repairs_the_same_differences(archive: Path, verify: Verify) -> None:
    replace_version(archive)
    remove_version(archive, 2)
    write_version(archive / "m", 9, b"from elsewhere")
    expected = {**ALL, "aliases": {"b": (1, 5)}, "tags": {}, "metrics": {}, "versions": [1, 3, 9]}
    assert described(archive) == expected
    code, document = verify(archive)
    assert (code, kinds(document)) == (0, [("high_water_mark_low", None)])


def test_a_damaged_version_keeps_its_annotations(archive: Path, verify: Verify) -> None:
    path = archive / "m" / "m-v000003.yaml"
    text = path.read_text(encoding="utf-8")
    path.write_text("", encoding="utf-8")
    code, document = verify(archive, "--repair")
    assert (code, kinds(document)) == (1, [("version_metadata_damaged", 3)])
    path.write_text(text, encoding="utf-8")
    assert described(archive) == ALL


def zero_the_end(archive: Path) -> None:
    path = archive / CATALOG_NAME
    data = bytearray(path.read_bytes())
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    path.write_bytes(data)


def not_a_database(archive: Path) -> None:
    (archive / CATALOG_NAME).write_bytes(b"no database" * 1000)


def of_another_program(archive: Path) -> None:
    (archive / CATALOG_NAME).unlink()
    change_database(archive, "CREATE TABLE other (x)")


def a_directory(archive: Path) -> None:
    (archive / CATALOG_NAME).unlink()
    (archive / CATALOG_NAME).mkdir()


def only_a_log(archive: Path) -> None:
    (archive / CATALOG_NAME).rename(archive / f"{CATALOG_NAME}-wal")


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (zero_the_end, Kind.CATALOG_DAMAGED),
        (not_a_database, Kind.CATALOG_DAMAGED),
        (of_another_program, Kind.CATALOG_OF_ANOTHER_PROGRAM),
        (a_directory, Kind.CATALOG_NOT_A_FILE),
        (only_a_log, Kind.CATALOG_LOG_ALONE),
    ],
)
def test_an_unusable_database_is_moved_aside_and_rebuilt(
    damage: Callable[[Path], None], kind: Kind, archive: Path, verify: Verify
) -> None:
    damage(archive)
    old = {path.name: path.read_bytes() for path in archive.glob(f"{CATALOG_NAME}*") if path.is_file()}
    code, document = verify(archive)
    assert (code, kinds(document)) == (1, [(kind, None)])
    code, document = verify(archive, "--repair")
    assert (code, kinds(document, "repaired")) == (0, [(kind, None)])
    assert "kept" in document["repaired"][0]["message"]
    assert sorted(old.values()) == sorted(
        path.read_bytes() for path in archive.glob(f"{CATALOG_NAME}.damaged-*") if path.is_file()
    )
    assert len(list(archive.glob(f"{CATALOG_NAME}.damaged-*"))) == 1
    code, document = verify(archive)
    assert code == 0
    assert kinds(document) in ([("foreign_entry", None)], [("not_a_model", None)])
    assert described(archive)["versions"] == [1, 2, 3]


def test_a_repair_keeps_all_readable_data(archive: Path, verify: Verify) -> None:
    # An index is damaged, and the tables are not.
    upload = ("id", "digest", "m", 3, 10**15, "[]")
    change_database(
        archive,
        f"INSERT INTO requests VALUES {upload}",
        "PRAGMA writable_schema = ON",
        "UPDATE sqlite_schema SET rootpage = 1 WHERE name = 'tags_by_value'",
    )
    assert kinds(verify(archive)[1]) == [("catalog_damaged", None)]
    code, document = verify(archive, "--repair")
    assert code == 0
    assert "kept 2 aliases, and tags and metrics of 2 versions; the old" in document["repaired"][0]["message"]
    with closing(sqlite3.connect(archive / CATALOG_NAME)) as connection:
        assert connection.execute("SELECT * FROM requests").fetchall() == [upload]
    assert described(archive) == ALL


def test_a_repair_reports_lost_data(archive: Path, verify: Verify) -> None:
    remove_version(archive, 3)
    with closing(sqlite3.connect(archive / CATALOG_NAME, isolation_level=None)) as connection:
        [page] = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'tags'").fetchone()
        [size] = connection.execute("PRAGMA page_size").fetchone()
    with (archive / CATALOG_NAME).open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)
    code, document = verify(archive, "--repair")
    assert code == 0
    message = document["repaired"][0]["message"]
    assert "kept 1 alias, and tags and metrics of 0 versions" in message
    assert 'lost: a part of the table tags; alias "a" of model "m", whose version 3 has no files' in message
    assert described(archive) == {**ALL, "aliases": {"b": (1, 5)}, "tags": {}, "metrics": {}, "versions": [1, 2]}


def test_a_database_of_a_newer_release_is_reported_and_left_alone(archive: Path, verify: Verify) -> None:
    change_database(archive, "PRAGMA user_version = 1000")
    before = (archive / CATALOG_NAME).read_bytes()
    code, document = verify(archive, "--repair")
    assert (code, kinds(document), document["repaired"]) == (1, [("catalog_newer", None)], [])
    assert "newer release" in document["findings"][0]["remedy"]
    assert (archive / CATALOG_NAME).read_bytes() == before


async def test_a_database_in_use_is_compared_while_it_changes(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    with server_process(archive) as server:
        async with connected(server.port) as client:
            await client.create_model("m")
            lifecycle = Lifecycle(client)

            async def work() -> None:
                while True:
                    info = await client.store("m", b"data")
                    await lifecycle.update(info.version_number, AnnotationChange(set_tags={"k": "v"}))
                    await lifecycle.set_aliases(AliasChange("a", info.version_number))
                    if info.version_number > 3:
                        await lifecycle.delete(info.version_number - 3)

            working = asyncio.ensure_future(work())
            for _ in range(3):
                result = await asyncio.to_thread(run_cogment, "archive", "verify", str(archive), "--json")
                document = json.loads(result.stdout)
                assert (result.returncode, document["findings"]) == (0, [])
                assert document["in_use_by"]
            assert not working.done(), "it failed"
            working.cancel()
