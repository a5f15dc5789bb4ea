"""`cogment archive share`, and tokens of a shared catalog, on the command line."""

from pathlib import Path

import pytest

from cogment_model_registry import ModelRegistry, RetentionRule, TransientShare, errors
from tests.processes import ServerProcess, run_cogment, server_process
from tests.several import endpoint, several_processes
from tests.waiting import wait_until


def single(folder: Path) -> tuple[Path, str]:
    """Return what a single server on an archive in an object store takes."""
    return folder / "catalog", f"--archive_url=file://{folder / 'archive'}"


def share(folder: Path, database: str) -> tuple[int, str, str]:
    """Share the archive of a single server; return the exit code and the outputs."""
    catalog, _ = single(folder)
    ended = run_cogment("archive", "share", f"file://{folder / 'archive'}", database, f"--catalog_dir={catalog}")
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


def test_servers_refuse_an_archive_that_their_catalog_does_not_know(tmp_path: Path, database: str) -> None:
    catalog, flag = single(tmp_path)
    with server_process(catalog, flag) as process:
        fill(process)
        process.stop()
    ended = run_cogment("services", "model_registry", flag, f"--catalog_url={database}", "--port=0")
    assert ended.returncode == 3
    assert f"cogment archive share file://{tmp_path / 'archive'} CATALOG_URL" in ended.stderr


def test_bad_arguments_are_explained(tmp_path: Path, database: str) -> None:
    for arguments, message in (
        ((str(tmp_path), database), "give its address"),
        (("file:///a/b", "mysql://a/b"), "it must be postgresql://"),
        (("file:///a/b", "postgresql://user:secret@a/b"), "without a password"),
    ):
        ended = run_cogment("archive", "share", *arguments)
        assert ended.returncode == 2
        assert message in ended.stderr
        assert "secret" not in ended.stderr
    missing = run_cogment("archive", "share", f"file://{tmp_path}/none", "postgresql://x@127.0.0.1:1/none")
    assert missing.returncode == 3
    assert missing.stderr.startswith("error: the database of the catalog is not usable")


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
