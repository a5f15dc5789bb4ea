"""`watch --data`: versions as files, printed after they exist."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from cogment_model_registry import ModelRegistry
from tests.cli.test_model_registry_command_line import Cogment, failed, line_of
from tests.processes import START_SECONDS
from tests.waiting import wait_until


@pytest.fixture
def registry(shared_endpoint: str) -> Iterator[ModelRegistry]:
    with ModelRegistry(shared_endpoint) as client:
        yield client


@pytest.fixture
def cogment(shared_endpoint: str, tmp_path: Path) -> Cogment:
    return Cogment(shared_endpoint, tmp_path)


def test_each_version_is_printed_after_its_file_exists(cogment: Cogment, registry: ModelRegistry) -> None:
    registry.publish("a", b"one")
    with cogment.started("watch", "--data=data", "a", "b") as process:
        assert line_of(process).split()[:3] == [b"data/a/000001.bin", b"1", b"transient"]
        registry.store("a", b"two")
        path = line_of(process).split()[0].decode()
        assert (cogment.directory / path).read_bytes() == b"two"
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=START_SECONDS) == (b"", b"")
    assert process.returncode == 143
    assert cogment.output("watch", "--data=data", "--quiet", "--count=2") == "data/a/000001.bin\ndata/a/000002.bin\n"


def test_versions_and_gaps_as_json(cogment: Cogment, registry: ModelRegistry) -> None:
    for data in (b"1", b"2", b"3"):
        registry.store("a", data)
    registry.delete_version("a", 2)
    first, gap, last = map(json.loads, cogment.output("watch", "a", "--data=d", "--count=2", "--json").splitlines())
    assert (first["path"], first["number"]) == ("d/a/000001.bin", 1)
    assert gap == {"model_id": "a", "first_number": 2, "last_number": 2}
    assert last["path"] == "d/a/000003.bin"
    result = cogment.run("watch", "a", "--data=d", "--count=2", "--quiet")
    assert result.stdout == "d/a/000001.bin\nd/a/000003.bin\n"
    assert result.stderr == "version 2 is gone or never existed: model a\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_leave_no_half_files(
    cogment: Cogment, registry: ModelRegistry, number: signal.Signals, code: int
) -> None:
    registry.store("a", os.urandom(64 * 2**20))
    folder = cogment.directory / "d" / "a"
    with cogment.started("watch", "--data=d") as process:
        wait_until(lambda: folder.is_dir() and os.listdir(folder))  # at first, its temporary file
        process.send_signal(number)
        _, errors = process.communicate(timeout=START_SECONDS)
    assert (process.returncode, errors) in ((code, b""), (code, b"\n"))
    assert os.listdir(folder) in ([], ["000001.bin"])


def test_an_unwritable_directory_is_reported_in_one_line(cogment: Cogment, registry: ModelRegistry) -> None:
    registry.publish("a", b"1")
    (cogment.directory / "file").write_bytes(b"")
    assert failed(cogment.run("watch", "--data=file"), 1, "saving versions in file failed: File exists")
    (cogment.directory / "d/a/000001.bin").mkdir(parents=True)
    assert failed(cogment.run("watch", "--data=d"), 1, "saving versions in d failed: Is a directory")


def test_a_full_disk_is_reported_in_one_line(cogment: Cogment, registry: ModelRegistry) -> None:
    registry.store("a", os.urandom(3 * 2**20))
    command = ["bash", "-c", 'trap "" XFSZ; ulimit -f 1024; exec "$@"', "bash", *cogment.command("watch", "--data=d")]
    with cogment.started_command(command) as process:
        output, errors = process.communicate(timeout=START_SECONDS)
    assert (process.returncode, output, errors.count(b"\n")) == (1, b"", 1)
    assert b"saving versions in d failed: not enough space" in errors
    assert os.listdir(cogment.directory / "d/a") == []


@pytest.mark.parametrize("words", [[], ["a", "b"]])
def test_several_models_need_a_directory(cogment: Cogment, words: list[str]) -> None:
    assert failed(cogment.run("watch", *words), 2, "one MODEL must be given")
