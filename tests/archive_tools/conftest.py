"""Shared fixtures of the tests of `cogment archive`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from obstore.store import LocalStore, ObjectStore

from cogment_model_registry.cli import main
from tests.archive_tools.annotated import Command, Verify
from tests.archive_tools.bucket_places import Archives
from tests.object_store import S3Server


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `cogment archive`, and return its exit code, its output and its errors."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        code = main(["archive", *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def verify(capsys: pytest.CaptureFixture[str]) -> Verify:
    """Run the command with `--json`, and return its exit code and its document."""

    def run(archive: Path, *flags: str) -> tuple[int, dict[str, Any]]:
        code = main(["archive", "verify", str(archive), "--json", *flags])
        output, errors = capsys.readouterr()
        assert errors == ""
        document = json.loads(output)
        assert document["sound"] == (code == 0)
        return code, document

    return run


@pytest.fixture
def archives(object_store: S3Server, tmp_path: Path) -> Archives:
    """Archives in a directory and in a bucket."""
    return Archives(tmp_path, object_store)


@pytest.fixture(params=["s3", "file"])
def place(request: pytest.FixtureRequest, archives: Archives, tmp_path: Path) -> Iterator[tuple[str, ObjectStore]]:
    """The address of an archive, with its store."""
    if request.param == "s3":
        yield archives.url, archives.store
    else:
        yield f"file://{tmp_path}/objects", LocalStore(tmp_path / "objects", mkdir=True)
