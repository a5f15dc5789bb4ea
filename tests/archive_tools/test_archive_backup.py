"""`cogment archive backup`: intact and consistent while a server runs, cheap to repeat, and safe to interrupt."""

import asyncio
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from cogment_model_registry.records.lifecycle import AliasChange, AnnotationChange
from cogment_model_registry.storage.filesystem import model_copy
from cogment_model_registry.storage.filesystem.claim import OwnedFiles
from cogment_model_registry.storage.filesystem.files import Files, sync_file_system
from cogment_model_registry.storage.filesystem.layout import BACKUP_NAME, CATALOG_NAME
from cogment_model_registry.storage.filesystem.model_copy import ModelCopy
from cogment_model_registry.testing.server import serving
from tests.archive_tools.annotated import ALL, Command, annotated_archive, described, remove_version
from tests.archive_tools.test_archive_verify import tree
from tests.archive_tools.test_damaged_archives import write_model, write_version
from tests.client import Client, connected
from tests.processes import clean_environment, run_cogment, server_process
from tests.server.test_model_lifecycle import Lifecycle
from tests.waiting import eventually

VERSION_FILES = "m/m-v*"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return annotated_archive(tmp_path)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "backups" / "latest"


def contents(directory: Path, pattern: str = VERSION_FILES) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.glob(pattern)}


def test_a_backup_is_an_archive_with_everything(archive: Path, target: Path, run: Command) -> None:
    before = tree(archive)
    code, output, errors = run("backup", archive, target)
    assert (code, errors) == (0, "")
    assert output == "1 model: 3 versions copied (18 B), 0 unchanged, 0 removed: 0 problems\n"
    assert tree(archive) == before
    assert contents(target) == contents(archive)
    assert sorted(os.listdir(target)) == sorted([".lock", BACKUP_NAME, CATALOG_NAME, "m"])
    assert (target / CATALOG_NAME).stat().st_mode & 0o777 == 0o640
    assert run("verify", target)[0] == 0
    shutil.rmtree(archive)
    assert described(target) == ALL


def test_an_update_copies_new_versions_and_removes_deleted_ones(archive: Path, target: Path, run: Command) -> None:
    assert run("backup", archive, target)[0] == 0
    inodes = {path: path.stat().st_ino for path in target.glob(VERSION_FILES)}
    write_version(archive / "m", 4, b"new")
    write_version(write_model(archive, "other"), 1, b"other")
    remove_version(archive, 2)
    assert run("backup", archive, target)[1].startswith("2 models: 2 versions copied (8 B), 2 unchanged, 1 removed: 0")
    assert contents(target) == contents(archive)
    kept = {path: path.stat().st_ino for path in target.glob(VERSION_FILES) if path in inodes}
    assert kept.items() <= inodes.items()
    shutil.rmtree(archive / "other")
    assert run("backup", archive, target, "--quick")[1].startswith("1 model: 0 versions copied (0 B), 3 unchanged")
    assert not (target / "other").exists()


def test_a_model_that_was_created_again_replaces_the_one_in_the_backup(
    archive: Path, target: Path, run: Command
) -> None:
    assert run("backup", archive, target)[0] == 0
    shutil.rmtree(archive / "m")
    write_version(write_model(archive, "m"), 1, b"again!", user_data="{of: another}")
    assert described(archive)["versions"] == [1]
    code, output, _ = run("backup", archive, target)
    assert (code, output[:9]) == (0, "1 model: ")
    assert contents(target) == contents(archive)
    assert described(target) == {**ALL, "aliases": {}, "tags": {}, "metrics": {}, "versions": [1]}


def test_generations_that_share_files_stay_unchanged(archive: Path, target: Path, run: Command) -> None:
    assert run("backup", archive, target)[0] == 0
    old = target.parent / "old"
    shutil.copytree(target, old, copy_function=os.link)
    shutil.rmtree(archive / "m")
    write_version(write_model(archive, "m"), 1, b"again!", user_data="{of: another}")
    described(archive)
    assert run("backup", archive, target)[0] == 0
    assert run("verify", old)[0] == 0
    assert described(old) == ALL
    assert described(target)["versions"] == [1]


@pytest.mark.parametrize("can_sync_all", [True, False])
def test_many_versions_are_made_durable_at_once(
    *, can_sync_all: bool, tmp_path: Path, target: Path, run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = write_model(tmp_path / "archive", "m")
    for number in range(1, 41):
        write_version(directory, number, b"data %d" % number)
    synced: list[int] = []

    def sync_all(descriptor: int) -> bool:
        return can_sync_all and sync_file_system(descriptor)

    def sync_one(self: Files, descriptor: int) -> None:
        synced.append(descriptor)
        os.fsync(descriptor)

    monkeypatch.setattr(model_copy, "sync_file_system", sync_all)
    monkeypatch.setattr(Files, "sync_file", sync_one)
    assert run("backup", directory.parent, target)[0] == 0
    assert contents(target) == contents(directory.parent)
    assert (len(synced) < 10) is can_sync_all


def test_versions_that_share_bytes_share_them_in_the_backup(archive: Path, target: Path, run: Command) -> None:
    write_version(archive / "m", 4, b"data 1")
    (archive / "m" / "m-v000004.data").unlink()
    os.link(archive / "m" / "m-v000001.data", archive / "m" / "m-v000004.data")
    for _ in range(2):
        assert run("backup", archive, target)[0] == 0
        first, last = (target / "m" / f"m-v{number:06d}.data" for number in (1, 4))
        assert first.samefile(last)
        assert contents(target) == contents(archive)
        (target / "m" / "m-v000004.yaml").unlink()
    (target / "m" / "m-v000001.yaml").unlink()
    assert run("backup", archive, target)[0] == 0
    assert contents(target) == contents(archive)


def test_a_target_that_is_not_a_backup_is_refused(archive: Path, target: Path, run: Command) -> None:
    other = annotated_archive(target.parent)
    before = tree(other)
    for place in (other, archive, archive / "inside", archive / "m"):
        code, _, errors = run("backup", archive, place)
        assert code == 1, place
        assert "neither a backup nor empty" in errors or "is in the archive" in errors
    assert tree(other) == before
    assert not (archive / "inside").exists()


def test_a_backup_that_a_server_has_used_is_not_updated(archive: Path, target: Path, run: Command) -> None:
    assert run("backup", archive, target)[0] == 0
    with server_process(target):
        assert run("backup", archive, target)[0] in {1, 3}
    code, _, errors = run("backup", archive, target)
    assert code == 1
    assert "neither a backup nor empty" in errors
    assert not (target / BACKUP_NAME).exists()


def test_an_archive_without_models_empties_no_backup(archive: Path, target: Path, run: Command) -> None:
    assert run("backup", archive, target)[0] == 0
    shutil.rmtree(archive / "m")
    code, _, errors = run("backup", archive, target)
    assert code == 3
    assert "has no model" in errors
    assert run("verify", target)[0] == 0
    assert contents(target)


def damage_data(archive: Path) -> None:
    (archive / "m" / "m-v000003.data").write_bytes(b"xxxxxx")


def damage_metadata(archive: Path) -> None:
    (archive / "m" / "m-v000003.yaml").write_text("", encoding="utf-8")


def damage_database(archive: Path) -> None:
    (archive / CATALOG_NAME).write_bytes(b"no database" * 1000)


@pytest.mark.parametrize("damage", [damage_data, damage_metadata, damage_database])
def test_damage_is_reported_and_replaces_nothing(
    damage: Callable[[Path], None], archive: Path, target: Path, run: Command
) -> None:
    assert run("backup", archive, target)[0] == 0
    damage(archive)
    described_before = contents(target)
    code, output, _ = run("backup", archive, target, "--quick")
    if damage is damage_data:  # its metadata is unchanged, so the version is not read
        assert code == 0
        code, output, _ = run("verify", archive)
    assert code == 1
    assert "problem: " in output
    assert "to do: " in output
    assert contents(target) == described_before
    assert run("verify", target)[0] == 0
    assert described(target) == ALL


def test_a_damaged_version_is_left_out_of_a_new_backup(archive: Path, target: Path, run: Command) -> None:
    damage_data(archive)
    code, output, _ = run("backup", archive, target)
    assert code == 1
    assert "problem: data_wrong_hash: m/m-v000003.data" in output
    assert 'alias_without_version: .catalog.sqlite3: alias "a"' in output
    assert not list(target.glob("m/m-v000003*"))


def test_a_lost_database_is_kept_in_the_backup(archive: Path, target: Path, run: Command) -> None:
    assert run("backup", archive, target)[0] == 0
    (archive / CATALOG_NAME).unlink()
    remove_version(archive, 3)
    assert run("backup", archive, target)[0] == 0
    assert described(target) == ALL


class Killed(Exception):
    """Simulates the end of the process."""


class Counted(OwnedFiles):
    """File operations that end the process after a number of them."""

    left = 10**9

    def _count(self) -> None:
        Counted.left -= 1
        if Counted.left < 0:
            raise Killed

    def create(self, directory: int, name: str) -> int:
        self._count()
        return super().create(directory, name)

    def rename(self, directory: int, old: str, new: str) -> None:
        self._count()
        super().rename(directory, old, new)

    def remove(self, directory: int, name: str) -> None:
        self._count()
        super().remove(directory, name)


def test_an_interrupted_update_leaves_an_intact_backup_that_can_be_updated(
    archive: Path, target: Path, run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("backup", archive, target)[0] == 0
    old = target.parent / "old"
    shutil.copytree(target, old)
    write_version(archive / "m", 4, b"new")
    remove_version(archive, 2)
    for operations in itertools.count():
        shutil.rmtree(target)
        shutil.copytree(old, target)
        with monkeypatch.context() as patch:
            patch.setattr("cogment_model_registry.storage.tools.backup.OwnedFiles", Counted)
            Counted.left = operations
            try:
                assert run("backup", archive, target, "--quick")[0] == 0
                break
            except Killed:
                pass
        report = json.loads(run("verify", target, "--json")[1])
        kinds = {finding["kind"] for finding in report["findings"] if finding["problem"]}
        assert kinds <= {"temporary_file", "doomed_directory", "data_without_metadata"}
        if operations % 5 == 0:
            assert run("backup", archive, target)[0] == 0
            assert contents(target) == contents(archive)
    assert operations > 5


async def _work(client: Client, model_id: str, seed: int) -> None:
    """Publish, store, promote, annotate, alias and delete until cancelled."""
    choice = random.Random(seed)
    lifecycle = Lifecycle(client)
    with suppress(grpc.aio.AioRpcError):
        await client.create_model(model_id)
    for step in itertools.count():
        data = b"%d" % step * choice.randint(1, 20_000)
        if step % 3:
            number = (await client.store(model_id, data)).version_number
        else:
            number = (await client.publish(model_id, data)).version_number
            await lifecycle.promote(number, model_id=model_id)
        await lifecycle.update(number, AnnotationChange(set_metrics={"return": float(step)}), model_id)
        await lifecycle.set_aliases(AliasChange("production", number), model_id=model_id)
        if number > 2:
            await lifecycle.delete(number - 2, model_id=model_id)
        if step % 40 == 39:
            await client.delete_model(model_id)
            await client.create_model(model_id)


async def test_a_backup_is_consistent_while_a_server_runs(tmp_path: Path, target: Path) -> None:
    archive = tmp_path / "archive"
    with server_process(archive) as server:
        async with connected(server.port) as client:
            working = [asyncio.ensure_future(_work(client, f"m{seed}", seed)) for seed in range(3)]

            async def is_under_way() -> bool:
                with suppress(grpc.aio.AioRpcError):
                    return len((await client.infos("m2")).version_infos) > 1
                return False

            await eventually(is_under_way)
            for round_number in range(4):
                result = await asyncio.to_thread(run_cogment, "archive", "backup", str(archive), str(target))
                assert result.returncode == 0, result.stdout + result.stderr
                assert not [task.exception() for task in working if task.done()]
                copy = tmp_path / f"restored{round_number}"
                shutil.copytree(target, copy)
                async with serving(copy) as restored, connected(restored.port) as reader:
                    models = (await Lifecycle(reader).models()).models
                    for model in models:
                        model_id = model.model_info.model_id
                        numbers = await reader.numbers(model_id)
                        assert {alias.version_number for alias in model.aliases} <= {*numbers}
                        assert model.aliases or len(numbers) <= 1, "an alias is missing"
                        for number in numbers:
                            await reader.data(model_id, number)
            for task in working:
                task.cancel()


def test_a_backup_that_is_terminated_can_be_updated(archive: Path, target: Path, run: Command) -> None:
    write_version(archive / "m", 4, os.urandom(30_000_000))
    command = (sys.executable, "-m", "cogment_model_registry", "archive", "backup", str(archive), str(target))
    with subprocess.Popen(command, env=clean_environment(), stdout=subprocess.DEVNULL) as process:
        process.send_signal(signal.SIGTERM)
        process.wait()
    code, _, _ = run("backup", archive, target)
    assert code == 0
    assert contents(target) == contents(archive)


def test_versions_with_aliases_that_vanish_each_time_are_reported(
    archive: Path, target: Path, run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = ModelCopy.copy

    def without_3(self: ModelCopy, model_id: str, numbers: Any = None) -> Any:
        outcomes = copy(self, model_id, numbers)
        (target / "m" / "m-v000003.yaml").unlink(missing_ok=True)
        (archive / "m" / "m-v000003.yaml").unlink(missing_ok=True)
        return outcomes

    monkeypatch.setattr(ModelCopy, "copy", without_3)
    code, _, errors = run("backup", archive, target)
    assert code == 4
    assert "faster than they can be copied" in errors
