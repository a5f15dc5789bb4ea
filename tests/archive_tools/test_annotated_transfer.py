"""`cogment archive export` and `import` include aliases, tags and metrics, completely or not at all."""

import hashlib
import io
import json
import os
import re
import tarfile
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cogment_model_registry.records.lifecycle import Alias, Annotations
from cogment_model_registry.records.retention import ModelAnnotations, RetentionRule, TransientShare
from cogment_model_registry.records.versions import digest_text
from cogment_model_registry.storage.catalog.connections import open_for_writing
from cogment_model_registry.storage.catalog.notes import ModelNotes, VersionNotes, from_fields, to_fields
from cogment_model_registry.storage.catalog.tables import MIGRATIONS, all_aliases
from cogment_model_registry.storage.filesystem import export_format
from cogment_model_registry.storage.filesystem.layout import CATALOG_NAME
from tests.archive_tools.annotated import (
    ALL,
    NOTHING,
    Command,
    annotated_archive,
    change_database,
    described,
    remove_version,
)
from tests.processes import server_process


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return annotated_archive(tmp_path)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "target").mkdir()
    return tmp_path / "target"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "m.tar"


def manifest(file: Path) -> dict[str, Any]:
    with tarfile.open(file) as tar:
        manifest: dict[str, Any] = json.load(tar.extractfile("m/.manifest.json") or io.BytesIO())
        return manifest


@pytest.mark.parametrize("new_id", ["", "été"])
def test_an_import_has_the_annotations_of_the_exported_model(
    new_id: str, archive: Path, target: Path, file: Path, run: Command
) -> None:
    assert run("export", archive, "m", "--output", file)[0] == 0
    assert manifest(file)["format"] == "cogment model export 2"
    code, output, _ = run("import", target, file, *(["--model_id", new_id] if new_id else []))
    assert code == 0
    assert "2 rules, 2 aliases, tags and metrics of 2 versions" in output
    assert described(target, new_id or "m") == ALL
    assert run("verify", target)[0] == 0


def test_a_running_server_does_not_disturb_an_export_and_refuses_an_import(
    archive: Path, target: Path, file: Path, run: Command
) -> None:
    with server_process(archive):
        assert run("export", archive, "m", "--output", file)[0] == 0
        code, _, errors = run("import", archive, file, "--model_id", "n")
        assert code == 1
        assert "stop it first, or import the model with --without_annotations" in errors
        assert not (archive / "n").exists()
        assert run("import", archive, file, "--model_id", "n", "--without_annotations")[0] == 0
    assert run("import", target, file)[0] == 0
    assert described(target) == ALL
    assert described(archive, "n") == NOTHING


def test_without_annotations_the_file_has_the_format_of_older_releases(
    archive: Path, target: Path, file: Path, run: Command
) -> None:
    assert run("export", archive, "m", "--output", file, "--without_annotations")[0] == 0
    before = file.read_bytes()
    assert manifest(file)["format"] == export_format.FORMAT
    (archive / CATALOG_NAME).unlink()
    assert run("export", archive, "m", "--output", file, "--force")[0] == 0
    assert file.read_bytes() == before
    assert run("import", target, file)[0] == 0
    assert not (target / CATALOG_NAME).exists()


def test_an_import_removes_remains_of_a_former_model_from_the_database(archive: Path, file: Path, run: Command) -> None:
    assert run("export", archive, "m", "--output", file, "--without_annotations")[0] == 0
    for path in (archive / "m").iterdir():
        path.unlink()
    (archive / "m").rmdir()
    assert run("import", archive, file)[0] == 0
    assert described(archive) == NOTHING


def test_a_damaged_version_is_left_out_with_its_aliases(archive: Path, target: Path, file: Path, run: Command) -> None:
    (archive / "m" / "m-v000003.data").write_bytes(b"other!")
    assert run("export", archive, "m", "--output", file)[0] == 1
    code, _, errors = run("export", archive, "m", "--output", file, "--skip_damaged")
    assert code == 0
    assert 'left out: alias "a", whose version 3 is not in the export' in errors
    assert run("import", target, file)[0] == 0
    assert described(target) == {
        **ALL,
        "aliases": {"b": (1, 5)},
        "tags": {2: {"stage": "candidate"}},
        "metrics": {},
        "versions": [1, 2],
    }


def test_a_damaged_database_fails_an_export_unless_it_is_left_out(archive: Path, file: Path, run: Command) -> None:
    (archive / CATALOG_NAME).write_bytes(b"no database" * 1000)
    code, _, errors = run("export", archive, "m", "--output", file)
    assert (code, file.exists()) == (1, False)
    assert "the aliases, tags and metrics of model" in errors
    code, _, errors = run("export", archive, "m", "--output", file, "--skip_damaged")
    assert code == 0
    assert "left out: the aliases, tags and metrics" in errors


def test_a_version_that_differs_from_the_database_has_no_annotations(archive: Path, file: Path, run: Command) -> None:
    change_database(archive, "UPDATE versions SET created = created + 1 WHERE number = 3")
    remove_version(archive, 1)
    assert run("export", archive, "m", "--output", file)[0] == 0
    assert manifest(file)["annotations"]["aliases"] == []


def test_a_failed_import_leaves_nothing_in_the_database(
    archive: Path, target: Path, file: Path, run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("export", archive, "m", "--output", file)[0] == 0
    rename = os.rename

    def fail(old: Any, new: Any, **fields: Any) -> None:
        if new == b"m":
            raise OSError(5, "disk failed")
        rename(old, new, **fields)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", fail)
        assert run("import", target, file)[0] == 1
    with closing(open_for_writing(str(target / CATALOG_NAME), MIGRATIONS)) as connection:
        assert all_aliases(connection) == {}
    assert run("import", target, file)[0] == 0
    assert described(target) == ALL


def changed(file: Path, old: str, new: str) -> None:
    """Change the annotations in an export, and its manifest accordingly."""
    with tarfile.open(file) as tar:
        member = tar.getmember("m/.manifest.json")
        reader = tar.extractfile(member)
        assert reader is not None
        text = reader.read().decode()
    assert re.search(old, text), text
    body = re.sub(old, new, text)
    body = body[: body.rindex(',\n "manifest_hash"')]
    digest = digest_text(hashlib.sha256(body.encode()).digest())
    whole = f'{body},\n "manifest_hash": "{digest}"\n}}\n'.encode()
    start = file.read_bytes()[: member.offset]
    header = export_format.header(member.name, len(whole), 0)
    rest = start + header + whole + export_format.padding(len(whole))
    file.write_bytes(rest + export_format.ending(len(rest)))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"alias": "a"', '"alias": "latest"'),
        ('"alias": "a"', '"alias": "b"'),
        ('"alias": "a"', '"alias": "../a"'),
        ('"alias": "a"', '"alias": 7'),
        ('("alias": "a", "version_number": )3', r"\g<1>9"),
        ('"return": 0.5', '"return": NaN'),
        ('"return": 0.5', '"return": "0.5"'),
        ('"return": 0.5', '"return": 1'),
        ('"stage": "candidate"', '"stage": "\\\\ud800"'),
        ('"stage": "candidate"', '"stage": null'),
        ('"last_revision": [0-9]+', '"last_revision": -1'),
        ('"last_revision": [0-9]+', '"last_revision": 1'),
        ('"last_revision": [0-9]+', '"last_revision": true'),
        ('"last_revision": [0-9]+, ', ""),
        ('"last_revision"', '"more": 1, "last_revision"'),
        ('"max_items": 7', '"max_items": -1'),
        ('"max_items": 7', '"most_items": 7'),
        ('"tier": "archived"', '"tier": "some"'),
        ('"tier": "archived"', '"tier": 7'),
        ('"filter": ""', '"filter": "AND"'),
        ('"keep_last": 2', '"keep_last": "2"'),
        ('"keep_last": 2', '"keep_last": 0'),
        ('"lower_is_better": false', '"lower_is_better": 0'),
        ('"annotations": {.*}', '"annotations": []'),
        ('"annotations": {.*}', '"annotations": {}'),
        ('"annotations": {.*}', '"annotations": "x"'),
        ("model export 2", "model export 1"),
    ],
)
def test_annotations_that_no_export_writes_are_refused(
    *, old: str, new: str, archive: Path, target: Path, file: Path, run: Command
) -> None:
    assert run("export", archive, "m", "--output", file)[0] == 0
    changed(file, "export 2", "export 2")
    changed(file, old, new)
    code, _, errors = run("import", target, file)
    assert code == 1
    assert f"importing {file}: this is not a complete export of a model" in errors
    assert [path.name for path in target.iterdir() if path.is_dir()] == []


def test_an_export_of_a_newer_format_says_so(archive: Path, target: Path, file: Path, run: Command) -> None:
    assert run("export", archive, "m", "--output", file)[0] == 0
    changed(file, "export 2", "export 3")
    assert "import it with a newer version" in run("import", target, file)[2]


def test_annotations_survive_an_export_and_an_import() -> None:
    rules = (RetentionRule("archived", "metrics.m > 1", keep_best=3, metric="m"), RetentionRule(keep_last=1))
    notes = ModelNotes(
        9,
        ModelAnnotations({"team": "é"}, rules, TransientShare(9, 8, 7, 6), 5),
        [Alias("é", 1, 9, 2**64 - 1)],
        {1: VersionNotes(Annotations({"k": 'v\n"é'}, {"m": 1e-300, "n": -0.0}, 3))},
    )
    assert from_fields(json.loads(json.dumps(to_fields(notes))), "m") == notes
