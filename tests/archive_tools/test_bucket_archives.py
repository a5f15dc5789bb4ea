"""`cogment archive verify` and `copy` with archives in object stores."""

import json
import subprocess
from pathlib import Path
from uuid import uuid4

import obstore
import pytest

from cogment_model_registry import ModelRegistry
from cogment_model_registry.storage.bucket import layout
from tests.object_store import BUCKET, SECRET_ACCESS_KEY, S3Server
from tests.processes import ServerProcess, run_cogment, server_process

LARGE = bytes(range(256)) * 70_000


class Archives:
    """A directory, and a bucket with its catalog."""

    def __init__(self, place: Path, server: S3Server) -> None:
        self.prefix = uuid4().hex
        self.url = f"s3://{BUCKET}/{self.prefix}"
        self.directory = place / "archive"
        self.catalog = place / "catalog"
        self.environment = server.environment
        self.store = server.store(self.prefix)

    def cogment(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command of `cogment archive`."""
        ended = run_cogment("archive", *arguments, environment=self.environment)
        assert SECRET_ACCESS_KEY not in ended.stdout + ended.stderr
        return ended

    def copy(self, source: object, target: object) -> subprocess.CompletedProcess[str]:
        flags = [f"--from_catalog_dir={self.catalog}"] if source == self.url else []
        flags += [f"--to_catalog_dir={self.catalog}"] if target == self.url else []
        return self.cogment("copy", str(source), str(target), *flags)


@pytest.fixture
def archives(object_store: S3Server, tmp_path: Path) -> Archives:
    return Archives(tmp_path, object_store)


def fill(process: ServerProcess) -> None:
    with ModelRegistry(f"grpc://127.0.0.1:{process.port}") as registry:
        registry.create_model("été", user_data={"a": "b"})
        registry.store("été", b"first", tags={"kind": "small"}, alias="production")
        registry.publish("été", b"transient")
        registry.store("été", LARGE, user_data={"note": "\0 line\nbreak"})
        registry.create_model("empty")


def check(process: ServerProcess) -> None:
    with ModelRegistry(f"grpc://127.0.0.1:{process.port}") as registry:
        assert [model.model_id for model in registry.list_models()] == ["empty", "été"]
        assert registry.get_model("été").user_data == {"a": "b"}
        assert [each.number for each in registry.list_versions("été")] == [1, 3]
        assert registry.retrieve("été", "production") == b"first"
        assert registry.describe_version("été", 1).tags == {"kind": "small"}
        assert registry.retrieve("été", 3) == LARGE
        assert registry.get_version("été", 3).user_data == {"note": "\0 line\nbreak"}
        assert registry.publish("été", b"next").number == 129  # after the block that the first server had


def test_an_archive_goes_to_a_bucket_and_back_with_all_it_has(archives: Archives, tmp_path: Path) -> None:
    with server_process(archives.directory) as process:
        fill(process)
        ended = archives.copy(archives.directory, archives.url)  # a server may use what is copied
        assert (ended.returncode, ended.stderr) == (0, "")
        assert ended.stdout == "2 models: 2 versions copied (17.1 MiB), 0 unchanged, with a catalog: 0 problems\n"
    again = archives.copy(archives.directory, archives.url)
    assert again.stdout == "2 models: 0 versions copied (0 B), 2 unchanged, with a catalog: 0 problems\n"
    flags = [f"--archive_url={archives.url}"]
    with server_process(archives.catalog, *flags, environment=archives.environment) as process:
        check(process)
        assert process.stop() == 0
    back = tmp_path / "back"
    ended = archives.copy(archives.url, back)
    assert ended.returncode == 0, ended.stderr
    verified = archives.cogment("verify", str(back), "--json")
    assert json.loads(verified.stdout)["findings"] == [], verified.stdout
    with server_process(back) as process, ModelRegistry(f"grpc://127.0.0.1:{process.port}") as registry:
        assert registry.publish("été", b"next").number == 130
        assert registry.retrieve("été", "production") == b"first"
        assert registry.retrieve("été", 3) == LARGE


def test_a_copy_that_has_something_else_is_refused_and_stays(archives: Archives, tmp_path: Path) -> None:
    for name in ("one", "other"):
        with server_process(tmp_path / name) as process, ModelRegistry(f"grpc://127.0.0.1:{process.port}") as registry:
            registry.create_model(name)
            registry.create_model("both")
            registry.store("both", name.encode())
    assert archives.copy(tmp_path / "one", archives.url).returncode == 0
    before = sorted(each["path"] for chunk in obstore.list(archives.store, "data") for each in chunk)
    ended = archives.copy(tmp_path / "other", archives.url)
    assert ended.returncode == 1
    assert ended.stderr == ('error: the copy has model "one", and the archive has not: copy to a new place\n')
    assert sorted(each["path"] for chunk in obstore.list(archives.store, "data") for each in chunk) == before


def test_what_is_damaged_in_a_bucket_is_found_and_not_copied(archives: Archives, tmp_path: Path) -> None:
    with server_process(archives.directory) as process:
        fill(process)
    assert archives.copy(archives.directory, archives.url).returncode == 0
    sound = archives.cogment("verify", archives.url)
    assert sound.returncode == 0, sound.stderr
    assert sound.stdout.startswith("2 models, 2 versions, 17.1 MiB read in ")
    parts = sorted(each["path"] for chunk in obstore.list(archives.store, "data") for each in chunk if each["size"] > 5)
    obstore.put(archives.store, parts[0], b"x" + LARGE[1 : 8 * 1024 * 1024], use_multipart=False)
    obstore.put(archives.store, f"{layout.MODELS}/m.json", b"{}")
    ended = archives.cogment("verify", archives.url, "--json")
    document = json.loads(ended.stdout)
    assert (ended.returncode, document["sound"]) == (1, False)
    assert [(each["kind"], each["version_number"]) for each in document["findings"]] == [
        ("model_metadata_damaged", None),
        ("data_wrong_hash", 3),
    ]
    ended = archives.copy(archives.url, tmp_path / "copy")
    assert ended.returncode == 1
    assert 'problem: version 3 of model "été" is damaged: its bytes do not match their hash\n' in ended.stdout
    assert "1 version copied" in ended.stdout


def test_what_is_no_archive_is_an_error_of_one_line(archives: Archives, tmp_path: Path) -> None:
    ended = archives.cogment("verify", archives.url)
    assert ended.returncode == 3
    assert ended.stderr == f"error: archive {archives.url} cannot be used: no server has used it\n"
    ended = archives.cogment("verify", "s3://key:secret@bucket/a")
    assert ended.returncode == 2
    assert "secret" not in ended.stderr
    (tmp_path / "notes.txt").touch()
    assert archives.cogment("copy", str(tmp_path), str(tmp_path)).returncode == 1
