"""Archives in object stores, and what a server puts into one."""

import subprocess
from pathlib import Path
from uuid import uuid4

import obstore
from obstore.store import ObjectStore

from cogment_model_registry import ModelRegistry
from tests.object_store import BUCKET, SECRET_ACCESS_KEY, S3Server
from tests.processes import ServerProcess, run_cogment

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


def names(store: ObjectStore, *prefixes: str) -> list[str]:
    """Return the names of the objects below some prefixes."""
    return sorted(each["path"] for prefix in prefixes for chunk in obstore.list(store, prefix) for each in chunk)
