"""`cogment archive share`, and tokens of a shared catalog, on the command line."""

import asyncio
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cogment_model_registry import ModelRegistry, RetentionRule, TransientShare, errors
from tests.postgres import PostgresServer, execute, new_database
from tests.processes import ServerProcess, run_cogment, server_process
from tests.several import endpoint, several_processes
from tests.waiting import wait_until


@pytest.fixture
def other_database(postgres: PostgresServer) -> Iterator[str]:
    """The address of another database, which is empty."""
    with new_database(postgres) as url:
        yield url


def single(folder: Path) -> tuple[Path, str]:
    """Return what a single server on an archive in an object store takes."""
    return folder / "catalog", f"--archive_url=file://{folder / 'archive'}"


def share(folder: Path, database: str, *flags: str) -> tuple[int, str, str]:
    """Share the archive of a single server; return the exit code and the outputs."""
    catalog, _ = single(folder)
    ended = run_cogment(
        "archive", "share", f"file://{folder / 'archive'}", database, f"--catalog_dir={catalog}", *flags
    )
    return ended.returncode, ended.stdout, ended.stderr


def fill(process: ServerProcess) -> None:
    """Let a single server have something of everything."""
    with ModelRegistry(endpoint(process)) as registry:
        registry.create_model("été", user_data={"a\1b": "c"})
        registry.store(
            "été", b"first", user_data={"k": "v"}, tags={"run": "7"}, metrics={"reward": -0.0, "best": 1e300}
        )
        registry.store("été", b"second", alias="production")
        registry.update_model("été", tags={"team": "x"})
        registry.set_retention("été", [RetentionRule(tier="archived", filter='tags.run = "7"', keep_last=5)])
        registry.set_share("été", TransientShare(max_items=3))
        registry.store("été", b"third")
        registry.delete_version("été", 3)
        for _ in range(5):
            registry.publish("other", b"transient")


def test_an_archive_of_one_server_becomes_one_of_several_with_all_that_people_said(
    tmp_path: Path, database: str
) -> None:
    catalog, flag = single(tmp_path)
    with server_process(catalog, flag) as process:
        fill(process)
        with ModelRegistry(endpoint(process)) as registry:
            before = registry.find_versions("été"), registry.describe_model("été"), registry.aliases("été")
        code, output, error = share(tmp_path, database)
        assert (code, output) == (3, ""), error
        assert "is in use by process" in error
        assert process.stop() == 0
    create = run_cogment("token", "create", "--name=trainer", "--scope=store", f"--archive_dir={catalog}")
    assert create.returncode == 0
    first, again = share(tmp_path, database), share(tmp_path, database)
    assert first[:2] == (0, "2 models with 2 versions and 1 token added, 0 models there before: 0 problems\n")
    assert again[:2] == (0, "0 models with 0 versions and 0 tokens added, 2 models there before: 0 problems\n")
    with several_processes(database, tmp_path / "archive") as processes:
        for process in processes:
            with ModelRegistry(endpoint(process)) as registry:
                assert (
                    registry.find_versions("été"),
                    registry.describe_model("été"),
                    registry.aliases("été"),
                ) == before
                assert registry.retrieve("été", "production") == b"second"
        with ModelRegistry(endpoint(processes[1])) as registry:
            assert registry.store("été", b"next").number > 3
            assert registry.publish("other", b"next").number > 5
        listed = run_cogment("token", "list", f"--catalog_url={database}")
        assert [line.split()[0] for line in listed.stdout.splitlines()[1:]] == ["trainer"]
    with pytest.raises(AssertionError, match="share"), server_process(catalog, flag):
        pass


def test_one_server_takes_over_what_several_shared_with_all_that_people_said(tmp_path: Path, database: str) -> None:
    archive, back = f"file://{tmp_path / 'archive'}", tmp_path / "back"
    arguments = ("archive", "copy", archive, str(back), f"--from_catalog_url={database}")
    create = ("token", "create", "--name=trainer", "--scope=store", f"--catalog_url={database}")
    with several_processes(database, tmp_path / "archive") as processes:
        fill(processes[0])
        assert run_cogment(*create).returncode == 0
        first = run_cogment(*arguments)  # the servers may be running
        assert (first.returncode, first.stderr) == (0, "")
        assert first.stdout == "2 models: 2 versions copied (11 B), 0 unchanged, with a catalog: 0 problems\n"
        with ModelRegistry(endpoint(processes[1])) as registry:
            registry.store("été", b"fourth", tags={"a": "b"}, alias="best")
            registry.update_version("été", 1, tags={"run": None, "new": "tag"})
            registry.remove_alias("été", "production")
            before = registry.find_versions("été"), registry.describe_model("été"), registry.aliases("été")
    again = run_cogment(*arguments)
    assert again.stdout == "2 models: 1 version copied (6 B), 2 unchanged, with a catalog: 0 problems\n"
    with server_process(back) as process, ModelRegistry(endpoint(process)) as registry:
        assert (registry.find_versions("été"), registry.describe_model("été"), registry.aliases("été")) == before
        assert registry.retrieve("été", "best") == b"fourth"
        assert registry.store("été", b"next").number == 5
        assert registry.publish("other", b"next").number == 6  # 5 transient ones ended with the servers
        listed = run_cogment("token", "list", f"--archive_dir={back}")
        assert [line.split()[0] for line in listed.stdout.splitlines()[1:]] == ["trainer"]
    ended = run_cogment("archive", "verify", str(back))
    assert ended.returncode == 0, ended.stdout


def without_mark(path: Path) -> dict[str, Any]:
    """Return what is in an export, but the number up to which none is given again: one server reserves many at once."""
    found: dict[str, Any] = {}
    with tarfile.open(path) as file:
        for member in file:
            content = file.extractfile(member)
            assert content is not None
            found[member.name] = content.read()
    del found["été/.high_water_mark"]
    manifest = json.loads(str(found["été/.manifest.json"], "utf-8"))
    assert manifest["annotations"]["aliases"]
    found["été/.manifest.json"] = {**manifest, "high_water_mark": 0, "manifest_hash": ""}
    return found


def test_an_export_of_a_shared_archive_is_that_of_an_archive_of_one_server(tmp_path: Path, database: str) -> None:
    archive = f"file://{tmp_path / 'archive'}"
    one, shared, bare = tmp_path / "one.tar", tmp_path / "shared.tar", tmp_path / "bare.tar"
    catalog, flag = single(tmp_path)
    with server_process(catalog, flag) as process:
        fill(process)
        export = ("archive", "export", archive, "été")
        assert run_cogment(*export, f"--output={one}", f"--catalog_dir={catalog}").returncode == 0
        process.stop()
    assert share(tmp_path, database)[0] == 0
    ended = run_cogment(*export, f"--output={shared}", f"--catalog_url={database}")
    assert (ended.returncode, ended.stderr) == (0, "exported 2 versions: 11 B\n")
    assert without_mark(shared) == without_mark(one)
    for folder in (tmp_path / "none", catalog):  # the second one is from before
        ended = run_cogment(*export, f"--output={bare}", f"--catalog_dir={folder}", "--force")
        assert "share a catalog in PostgreSQL: give its address as catalog_url" in ended.stderr
    ended = run_cogment(
        "archive", "export", archive, "none", f"--output={bare}", f"--catalog_url={database}", "--force"
    )
    assert (ended.returncode, ended.stderr) == (3, 'error: model "none" does not exist\n')


def test_a_copy_of_a_shared_archive_has_what_the_catalog_has_and_nothing_else(tmp_path: Path, database: str) -> None:
    archive, back = f"file://{tmp_path / 'archive'}", tmp_path / "back"
    with several_processes(database, tmp_path / "archive") as processes, ModelRegistry(endpoint(processes[0])) as one:
        one.store("m", b"first", alias="best")
        one.store("m", b"second")
    # What a publish left that ended between the record and the row.
    asyncio.run(execute(database, "DELETE FROM cogment_model_registry.versions WHERE number = 2"))
    ended = run_cogment("archive", "copy", archive, str(back), f"--from_catalog_url={database}")
    assert ended.stdout == "1 model: 1 version copied (5 B), 0 unchanged, with a catalog: 0 problems\n", ended.stderr
    with server_process(back) as process, ModelRegistry(endpoint(process)) as registry:
        assert [version.number for version in registry.list_versions("m")] == [1]
        assert registry.retrieve("m", "best") == b"first"


def test_a_copy_of_a_shared_archive_without_its_catalog_warns_and_takes_no_older_one(
    tmp_path: Path, database: str
) -> None:
    catalog, flag = single(tmp_path)
    with server_process(catalog, flag) as process:
        fill(process)
        process.stop()
    assert share(tmp_path, database)[0] == 0
    archive, back = f"file://{tmp_path / 'archive'}", tmp_path / "back"
    ended = run_cogment("archive", "copy", archive, str(back), f"--from_catalog_dir={catalog}")
    assert ended.returncode == 0
    assert "left out: aliases, tags, metrics, rules and tokens: " in ended.stderr
    assert "share a catalog in PostgreSQL: give its address as from_catalog_url" in ended.stderr
    assert ", without a catalog: 0 problems\n" in ended.stdout


def test_servers_refuse_an_archive_that_their_catalog_does_not_know(tmp_path: Path, database: str) -> None:
    catalog, flag = single(tmp_path)
    with server_process(catalog, flag) as process:
        fill(process)
        process.stop()
    before = files_of(tmp_path / "archive")
    refused = check_refused(("services", "model_registry", flag, f"--catalog_url={database}", "--port=0"))
    assert f"cogment archive share file://{tmp_path / 'archive'} CATALOG_URL" in refused
    assert files_of(tmp_path / "archive") == before


def test_a_catalog_is_refused_with_another_archive_than_its_own(tmp_path: Path, database: str) -> None:
    catalog, flag = single(tmp_path)
    with server_process(catalog, flag) as process:
        fill(process)
        process.stop()
    assert share(tmp_path, database)[0] == 0
    with several_processes(database, tmp_path / "archive", count=1):
        pass
    other, copy = f"file://{tmp_path / 'other' / 'archive'}", str(tmp_path / "copy")
    serve = ("services", "model_registry", f"--archive_url={other}", f"--catalog_url={database}", "--port=0")
    to_write: list[tuple[str, ...]] = [serve, ("archive", "share", other, database)]
    for arguments in to_write:
        refused = check_refused(arguments)
        assert f"archive {other} (which no server has used) is not the one of this catalog (id " in refused
    assert files_of(tmp_path / "other") == {}
    catalog, flag = single(tmp_path / "other")
    with server_process(catalog, flag) as process:
        fill(process)
        process.stop()
    before = files_of(tmp_path / "other" / "archive")
    exported = ("export", other, "été", f"--catalog_url={database}", f"--output={tmp_path / 'model.tar'}")
    for arguments in (
        *to_write,
        ("archive", "copy", other, copy, f"--from_catalog_url={database}"),
        ("archive", *exported),
    ):
        refused = check_refused(arguments)
        assert f"archive {other} (id " in refused
        assert ") is not the one of this catalog (id " in refused
    assert not (tmp_path / "copy").exists()
    assert not (tmp_path / "model.tar").exists()
    assert files_of(tmp_path / "other" / "archive") == before


def test_an_empty_archive_that_another_database_uses_is_refused(
    tmp_path: Path, database: str, other_database: str
) -> None:
    with several_processes(database, tmp_path / "archive", count=1):
        pass
    archive = f"file://{tmp_path / 'archive'}"
    before = files_of(tmp_path / "archive")
    serve = ("services", "model_registry", f"--archive_url={archive}", f"--catalog_url={other_database}", "--port=0")
    for arguments in (serve, ("archive", "share", archive, other_database)):
        refused = check_refused(arguments)
        assert f"archive {archive} belongs to another catalog (id " in refused
        assert f"cogment archive share --replace_catalog {archive} CATALOG_URL" in refused
    assert files_of(tmp_path / "archive") == before
    with several_processes(database, tmp_path / "archive"):
        pass  # its own catalog goes on
    with several_processes(other_database, tmp_path / "others", count=1):
        pass  # the refused database is still unbound


def test_a_catalog_that_was_lost_is_replaced_only_on_demand(tmp_path: Path, database: str, other_database: str) -> None:
    with several_processes(database, tmp_path / "archive") as processes, ModelRegistry(endpoint(processes[0])) as one:
        one.store("m", b"first")
    code, _, error = share(tmp_path, other_database)
    assert (code, "belongs to another catalog (id " in error) == (3, True)
    added = "1 model with 1 version and 0 tokens added, 0 models there before: 0 problems\n"
    assert share(tmp_path, other_database, "--replace_catalog")[:2] == (0, added)
    assert share(tmp_path, other_database)[0] == 0
    with (
        several_processes(other_database, tmp_path / "archive") as processes,
        ModelRegistry(endpoint(processes[1])) as one,
    ):
        assert one.retrieve("m", 1) == b"first"
        assert one.store("m", b"second").number == 2
    archive = f"file://{tmp_path / 'archive'}"
    check_refused(("services", "model_registry", f"--archive_url={archive}", f"--catalog_url={database}", "--port=0"))


def test_an_archive_that_earlier_releases_shared_is_bound_by_the_next_start(tmp_path: Path, database: str) -> None:
    with several_processes(database, tmp_path / "archive", count=1):
        pass
    bound = files_of(tmp_path / "archive")["catalog.json"]
    (tmp_path / "archive" / "catalog.json").unlink()
    with several_processes(database, tmp_path / "archive"):
        pass
    assert files_of(tmp_path / "archive")["catalog.json"] == bound


def check_refused(arguments: tuple[str, ...]) -> str:
    """Run a command that must refuse to start, and return its error."""
    ended = run_cogment(*arguments)
    assert ended.returncode == 3, arguments
    return ended.stderr


def files_of(folder: Path) -> dict[str, bytes]:
    """Return all files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_bad_arguments_are_explained(tmp_path: Path, database: str) -> None:
    url, folder, to = f"--from_catalog_url={database}", f"--from_catalog_dir={tmp_path}", str(tmp_path / "to")
    for arguments, message in (
        (("share", str(tmp_path), database), "give its address"),
        (("share", "file:///a/b", "mysql://a/b"), "it must be postgresql://"),
        (("share", "file:///a/b", "postgresql://user:secret@a/b"), "without a password"),
        (("copy", str(tmp_path), to, url), "--from_catalog_url is for an address"),
        (("copy", "file:///a/b", to, url, folder), "an archive has one catalog"),
        (("copy", "file:///a/b", to, "--from_catalog_url=mysql://user:secret@a/b"), "it must be postgresql://"),
    ):
        ended = run_cogment("archive", *arguments)
        assert ended.returncode == 2
        assert message in ended.stderr
        assert "secret" not in ended.stderr
    missing = run_cogment("archive", "share", f"file://{tmp_path}/none", "postgresql://x@127.0.0.1:1/none")
    assert missing.returncode == 3
    assert missing.stderr.startswith("error: the database of the catalog at 127.0.0.1:1 is not usable: ")


def test_tokens_of_a_shared_catalog_work_on_its_servers(tmp_path: Path, database: str) -> None:
    at = f"--catalog_url={database}"
    token = run_cogment("token", "create", "--name=trainer", "--scope=publish", "--scope=read", at).stdout.strip()
    again = run_cogment("token", "create", "--name=trainer", "--scope=publish", at)
    assert (again.returncode, "the name is taken" in again.stderr) == (1, True)
    with several_processes(database, tmp_path, "--anonymous=nothing") as processes:
        for process in processes:
            with ModelRegistry(endpoint(process), token=token) as registry:
                registry.publish("m", b"data")
        assert run_cogment("token", "revoke", "trainer", at).stdout == 'token "trainer" is revoked\n'
        processes[0].stop()
        with ModelRegistry(endpoint(processes[1]), token=token) as registry:

            def is_refused() -> bool:
                try:
                    registry.list_models()
                except errors.UnauthenticatedError:
                    return True
                return False

            wait_until(is_refused)
